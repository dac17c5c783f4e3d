#include "core/model/expert_pack.h"

#include <string.h>

#include "core/kernels/r16.h"

#define BLOCK_TILES (SL_FP8_BLOCK / SL_R16_ROWS)

uint64_t sl_expert_codes_bytes(const struct sl_expert_shape *shape, int matrix)
{
    const uint64_t n =
        (uint64_t)sl_expert_matrix_rows(shape, matrix) * sl_expert_matrix_cols(shape, matrix);

    return shape->expert_dtype == SL_EXPERT_FP8 ? n : n / 2;
}

uint64_t sl_expert_scales_bytes(const struct sl_expert_shape *shape, int matrix,
                                enum sl_dtype scale_dtype)
{
    const uint64_t n =
        (uint64_t)sl_expert_matrix_rows(shape, matrix) * sl_expert_matrix_cols(shape, matrix);
    const uint64_t n_scales = shape->expert_dtype == SL_EXPERT_FP8
                                  ? n / (SL_FP8_BLOCK * SL_FP8_BLOCK)
                                  : n / SL_FP4_BLOCK_COLS;

    return n_scales * sl_dtype_size_bytes(scale_dtype);
}

/* The scales of one block of rows. E8M0 ones that are too small for a float32 scale are zero either
 * way. */
static int pack_scales(const struct sl_expert_rows *rows, size_t first, size_t count, float *packed)
{
    if (rows->scale_dtype == SL_DTYPE_F32)
        memcpy(packed, rows->scales + first * sizeof(float), count * sizeof(float));
    for (size_t i = 0; i < count && rows->scale_dtype != SL_DTYPE_F32; i++) {
        const uint8_t byte = rows->scales[first + i];

        if (byte > SL_E8M0_BIAS + SL_SCALE_EXPONENT_MAX) /* 255 is NaN */
            return -SL_ECORRUPT;
        packed[i] = byte == 0 ? 0 : sl_exp2i((int)byte - (int)SL_E8M0_BIAS);
    }
    return sl_f32_scales_read(count, packed, packed);
}

static int pack_fp8(const struct sl_expert_shape *shape, int matrix,
                    const struct sl_expert_rows *rows, size_t first_tile, size_t end_tile,
                    uint8_t *packed)
{
    const size_t cols = sl_expert_matrix_cols(shape, matrix), block_cols = cols / SL_FP8_BLOCK;
    float *scales = (float *)(void *)(packed + sl_expert_tiles_bytes(shape, matrix));
    const size_t first_block = (first_tile + BLOCK_TILES - 1) / BLOCK_TILES;
    int rc = sl_r16_pack_fp8_codes((end_tile - first_tile) * SL_R16_ROWS, cols,
                                   rows->codes + first_tile * SL_R16_ROWS * cols,
                                   packed + first_tile * sl_r16_fp8_tile_bytes(cols));

    for (size_t block = first_block; block * BLOCK_TILES < end_tile; block++)
        rc |= pack_scales(rows, block * block_cols, block_cols, scales + block * block_cols);
    return rc < 0 ? -SL_ECORRUPT : 0;
}

int sl_expert_pack(const struct sl_expert_shape *shape, int matrix,
                   const struct sl_expert_rows *rows, size_t first_tile, size_t end_tile,
                   uint8_t *packed)
{
    return shape->expert_dtype == SL_EXPERT_FP8
               ? pack_fp8(shape, matrix, rows, first_tile, end_tile, packed)
               : sl_r16_pack_fp4(sl_expert_matrix_cols(shape, matrix), first_tile, end_tile,
                                 rows->codes, rows->scales, packed);
}

const char *sl_expert_unsound_text(enum sl_expert_dtype dtype)
{
    return dtype == SL_EXPERT_FP8
               ? "a code that is NaN, or a scale that is negative, NaN or above 2^60"
               : "a scale that is NaN or above 2^60";
}
