#include "core/model/matrix.h"

#include "core/base/assert.h"
#include "core/kernels/r16.h"

size_t sl_matrix_tile_bytes(const struct sl_matrix *matrix)
{
    switch (matrix->kind) {
    case SL_MATRIX_FP4:
        return sl_r16_fp4_tile_bytes(matrix->cols);
    case SL_MATRIX_FP8:
    case SL_MATRIX_FP8_BLOCK:
        return sl_r16_fp8_tile_bytes(matrix->cols);
    case SL_MATRIX_BF16:
        return sl_r16_bf16_tile_bytes(matrix->cols);
    case SL_MATRIX_F32:
        return sl_r16_f32_tile_bytes(matrix->cols);
    }
    sl_assert(!"a matrix is of one of these kinds");
    return 0;
}
