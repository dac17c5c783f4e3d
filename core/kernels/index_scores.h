/* index_scores (core/kernels/kernels.h) by way of an instruction set's matmul_fp4, for those sets
 * that have nothing better. */
#ifndef SL_KERNELS_INDEX_SCORES_H
#define SL_KERNELS_INDEX_SCORES_H

#include "core/kernels/kernels.h"

#define SL_INDEX_HEADS_AT_ONCE 64u
#define SL_INDEX_TILES_AT_ONCE 4u

static inline void sl_index_scores_by(sl_matmul_fp4_fn *matmul, size_t tile_count, size_t cols,
                                      size_t head_count, const uint8_t *restrict keys,
                                      const int8_t *restrict x, const float *restrict x_scale,
                                      const float *restrict weight, float *restrict total)
{
    const size_t stride = SL_INDEX_TILES_AT_ONCE * SL_R16_ROWS;
    float scores[SL_INDEX_HEADS_AT_ONCE * SL_INDEX_TILES_AT_ONCE * SL_R16_ROWS];

    for (size_t tile = 0; tile < tile_count; tile += SL_INDEX_TILES_AT_ONCE) {
        size_t n_tiles =
            tile_count - tile < SL_INDEX_TILES_AT_ONCE ? tile_count - tile : SL_INDEX_TILES_AT_ONCE;
        float *sum = total + tile * SL_R16_ROWS;

        for (size_t n = 0; n < n_tiles * SL_R16_ROWS; n++)
            sum[n] = 0;
        for (size_t head = 0; head < head_count; head += SL_INDEX_HEADS_AT_ONCE) {
            size_t n_heads = head_count - head < SL_INDEX_HEADS_AT_ONCE ? head_count - head
                                                                        : SL_INDEX_HEADS_AT_ONCE;

            matmul(n_tiles, cols, n_heads, keys + tile * sl_r16_fp4_tile_bytes(cols),
                   x + head * cols, x_scale + head * (cols / SL_FP4_BLOCK_COLS), scores, stride);
            for (size_t h = 0; h < n_heads; h++) {
                for (size_t n = 0; n < n_tiles * SL_R16_ROWS; n++) {
                    float s = scores[h * stride + n];

                    sum[n] += weight[head + h] * (s > 0 ? s : 0.0f);
                }
            }
        }
    }
}

#endif
