#include "core/model/matrix.h"

#include <string.h>

#include "core/base/assert.h"
#include "core/kernels/formats.h"
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

size_t sl_table_row_bytes(const struct sl_matrix *table)
{
    return table->cols * (table->kind == SL_MATRIX_F32 ? sizeof(float) : sizeof(uint16_t));
}

void sl_table_row(const struct sl_matrix *table, const uint8_t *row, float *x)
{
    if (table->kind == SL_MATRIX_F32) {
        memcpy(x, row, sl_table_row_bytes(table));
        return;
    }
    for (size_t c = 0; c < table->cols; c++) {
        uint16_t code;

        memcpy(&code, row + c * sizeof(code), sizeof(code));
        x[c] = sl_bf16_to_f32(code);
    }
}
