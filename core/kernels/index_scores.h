/* index_scores (core/kernels/kernels.h) by way of an instruction set's matmul_fp4, for those sets
 * that have nothing better. */
#ifndef SL_KERNELS_INDEX_SCORES_H
#define SL_KERNELS_INDEX_SCORES_H

#include <stdbool.h>
#include <string.h>

#include "core/kernels/kernels.h"

#define SL_INDEX_TILES_AT_ONCE 4u
#define SL_INDEX_HEADS_AT_ONCE 64u
#define SL_INDEX_SCALES_MAX 512u /* of groups, of all heads at once: 65,536 columns of one head */
#define SL_INDEX_BLOCKS (SL_FP4_GROUP_COLS / SL_FP4_BLOCK_COLS)

/* The scale of each group of a head's columns. Returns whether all blocks of each have it. */
static inline bool sl_index_group_scales(size_t n_groups, const float *x_scale, float *group_scale)
{
    bool even = true;

    for (size_t g = 0; g < n_groups; g++, x_scale += SL_INDEX_BLOCKS) {
        group_scale[g] = x_scale[0];
        for (size_t b = 1; b < SL_INDEX_BLOCKS; b++)
            even &= x_scale[b] == x_scale[0];
    }
    return even;
}

/* Scores of one head whose blocks have scales of their own: each block is multiplied as if the rest
 * of its group were zero. Scales are powers of two, so what comes out is exact, and only the sums
 * of that round. */
static inline void sl_index_uneven_head(sl_matmul_fp4_fn *matmul, size_t tile_count, size_t cols,
                                        const uint8_t *restrict keys, const int8_t *restrict x,
                                        const float *restrict x_scale, float *restrict scores)
{
    const size_t n_groups = cols / SL_FP4_GROUP_COLS;

    memset(scores, 0, tile_count * SL_R16_ROWS * sizeof(*scores));
    for (size_t g = 0; g < n_groups; g++, x += SL_FP4_GROUP_COLS, x_scale += SL_INDEX_BLOCKS) {
        int8_t blocks[SL_INDEX_BLOCKS][SL_FP4_GROUP_COLS] = {{0}};

        for (size_t b = 0; b < SL_INDEX_BLOCKS; b++)
            memcpy(blocks[b] + b * SL_FP4_BLOCK_COLS, x + b * SL_FP4_BLOCK_COLS, SL_FP4_BLOCK_COLS);
        for (size_t tile = 0; tile < tile_count; tile++) {
            float parts[SL_INDEX_BLOCKS][SL_R16_ROWS];

            matmul(1, SL_FP4_GROUP_COLS, SL_INDEX_BLOCKS,
                   keys + (tile * n_groups + g) * SL_FP4_GROUP_BYTES, blocks[0], x_scale, parts[0],
                   SL_R16_ROWS);
            for (size_t n = 0; n < SL_R16_ROWS; n++)
                scores[tile * SL_R16_ROWS + n] +=
                    parts[0][n] + parts[1][n] + parts[2][n] + parts[3][n];
        }
    }
}

static inline void sl_index_scores_by(sl_matmul_fp4_fn *matmul, size_t tile_count, size_t cols,
                                      size_t head_count, const uint8_t *restrict keys,
                                      const int8_t *restrict x, const float *restrict x_scale,
                                      const float *restrict weight, float *restrict total)
{
    const size_t stride = SL_INDEX_TILES_AT_ONCE * SL_R16_ROWS, blocks = cols / SL_FP4_BLOCK_COLS;
    const size_t tile_bytes = sl_r16_fp4_tile_bytes(cols), groups = cols / SL_FP4_GROUP_COLS;
    const size_t heads_at_once = SL_INDEX_SCALES_MAX / groups < SL_INDEX_HEADS_AT_ONCE
                                     ? SL_INDEX_SCALES_MAX / groups
                                     : SL_INDEX_HEADS_AT_ONCE;
    float scores[SL_INDEX_HEADS_AT_ONCE * SL_INDEX_TILES_AT_ONCE * SL_R16_ROWS];

    memset(total, 0, tile_count * SL_R16_ROWS * sizeof(*total));
    for (size_t head = 0; head < head_count; head += heads_at_once) {
        const size_t left = head_count - head,
                     n_heads = left < heads_at_once ? left : heads_at_once;
        const int8_t *q = x + head * cols;
        const float *q_scale = x_scale + head * blocks;
        float group_scale[SL_INDEX_SCALES_MAX];
        bool even[SL_INDEX_HEADS_AT_ONCE];

        for (size_t h = 0; h < n_heads; h++)
            even[h] = sl_index_group_scales(groups, q_scale + h * blocks, group_scale + h * groups);
        for (size_t tile = 0; tile < tile_count; tile += SL_INDEX_TILES_AT_ONCE) {
            const size_t n_tiles = tile_count - tile < SL_INDEX_TILES_AT_ONCE
                                       ? tile_count - tile
                                       : SL_INDEX_TILES_AT_ONCE;
            const uint8_t *some = keys + tile * tile_bytes;
            float *sum = total + tile * SL_R16_ROWS;

            matmul(n_tiles, cols, n_heads, some, q, group_scale, scores, stride);
            for (size_t h = 0; h < n_heads; h++) {
                if (!even[h])
                    sl_index_uneven_head(matmul, n_tiles, cols, some, q + h * cols,
                                         q_scale + h * blocks, scores + h * stride);
                for (size_t n = 0; n < n_tiles * SL_R16_ROWS; n++) {
                    float s = scores[h * stride + n];

                    sum[n] += weight[head + h] * (s > 0 ? s : 0.0f);
                }
            }
        }
    }
}

#endif
