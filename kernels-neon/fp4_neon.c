/* FP4 x int8 with NEON: one vector holds four rows of a tile, four columns each. Compiled twice:
 * for the baseline, with widening multiplications, and with SL_NEON_DOT for CPUs that have the int8
 * dot product. The order of summation is that of core/kernels/kernels.h.
 *
 * A block's weights of four rows fill eight registers and serve all tokens before the next four. */
#include "kernels-neon/neon.h"

#include <string.h>

#include "kernels-neon/lanes.h"

#define VECTOR_ROWS 4u
#define VECTORS (ROWS / VECTOR_ROWS)
#define WEIGHTS 8u /* vectors that hold a block's 32 columns of four rows */
#define TOKENS_MAX 64u
#define TOKENS_AT_ONCE 4u

#ifdef SL_NEON_DOT
#define MATMUL_FP4 sl_matmul_fp4_neondot

/* Four rows of w[i], four columns each, times bytes 4i to 4i + 3 of x, summed over i. */
static ALWAYS_INLINE int32x4_t dot_block(const int8x16_t w[WEIGHTS], const int8_t *x)
{
    int8x16_t first = vld1q_s8(x), second = vld1q_s8(x + 16);
    int32x4_t dot = vdotq_laneq_s32(vdupq_n_s32(0), w[0], first, 0);

    dot = vdotq_laneq_s32(dot, w[1], first, 1);
    dot = vdotq_laneq_s32(dot, w[2], first, 2);
    dot = vdotq_laneq_s32(dot, w[3], first, 3);
    dot = vdotq_laneq_s32(dot, w[4], second, 0);
    dot = vdotq_laneq_s32(dot, w[5], second, 1);
    dot = vdotq_laneq_s32(dot, w[6], second, 2);
    return vdotq_laneq_s32(dot, w[7], second, 3);
}
#else
#define MATMUL_FP4 sl_matmul_fp4_neon

/* This variant widens. A product is at most 12 * 128 in magnitude, so eight of them fit into 16
 * bits. */
static ALWAYS_INLINE int32x4_t dot_block(const int8x16_t w[WEIGHTS], const int8_t *x)
{
    int16x8_t low = vdupq_n_s16(0), high = vdupq_n_s16(0); /* rows 0 and 1, rows 2 and 3 */

    for (size_t i = 0; i < WEIGHTS; i++) {
        int32_t four;

        memcpy(&four, x + 4 * i, sizeof(four));
        low = vmlal_s8(low, vget_low_s8(w[i]), vreinterpret_s8_s32(vdup_n_s32(four)));
        high = vmlal_high_s8(high, w[i], vreinterpretq_s8_s32(vdupq_n_s32(four)));
    }
    return vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
}
#endif

/* A block of four rows: twice the weights, which are integers, so `scale` holds half the scales.
 * For n tokens (1 to 4) at a time. x (n, 128); x_scale (n) at scale_stride; acc (n, 16). */
static ALWAYS_INLINE void add_block(size_t n, const int8x16_t w[WEIGHTS], float32x4_t scale,
                                    const int8_t *x, const float *x_scale, size_t scale_stride,
                                    float *acc)
{
    int32x4_t dot[TOKENS_AT_ONCE];

    for (size_t t = 0; t < n; t++)
        dot[t] = dot_block(w, x + t * SL_FP4_GROUP_COLS);
    for (size_t t = 0; t < n; t++) {
        float32x4_t both = vmulq_n_f32(scale, x_scale[t * scale_stride]);

        vst1q_f32(acc + t * ROWS,
                  vfmaq_f32(vld1q_f32(acc + t * ROWS), vcvtq_f32_s32(dot[t]), both));
    }
}

/* Four rows of a block from its 256 bytes of codes, of which these rows begin at `codes`. */
static ALWAYS_INLINE void expand_block(const uint8_t *codes, int8x16_t w[WEIGHTS])
{
    static const int8_t twice_e2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    const int8x16_t table = vld1q_s8(twice_e2m1);

    for (size_t quad = 0; quad < 4; quad++) {
        uint8x16_t both = vld1q_u8(codes + quad * 64);

        w[2 * quad] = vqtbl1q_s8(table, vandq_u8(both, vdupq_n_u8(15)));
        w[2 * quad + 1] = vqtbl1q_s8(table, vshrq_n_u8(both, 4));
    }
}

/* Half of each of four scales: of E8M0 bytes. */
static ALWAYS_INLINE float32x4_t half_scales(uint16x4_t bytes)
{
    return vmulq_n_f32(vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(bytes), 23)), 0.5f);
}

/* Adds 128 columns of one tile to acc (n_tokens, 16). x (n_tokens, 128); x_scale (n_tokens, 4) at
 * scale_stride. */
static void add_group(size_t n_tokens, const uint8_t *group, const int8_t *x, const float *x_scale,
                      size_t scale_stride, float *acc)
{
    const uint8_t *codes = group + 4 * ROWS;

    for (size_t b = 0; b < 4; b++, x += SL_FP4_BLOCK_COLS, x_scale++, codes += 256) {
        uint8x16_t bytes = vld1q_u8(group + b * ROWS);
        uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_high_u8(bytes);
        const float32x4_t scale[VECTORS] = {
            half_scales(vget_low_u16(low)), half_scales(vget_high_u16(low)),
            half_scales(vget_low_u16(high)), half_scales(vget_high_u16(high))};

        for (size_t v = 0; v < VECTORS; v++) {
            int8x16_t w[WEIGHTS];
            size_t t = 0;

            expand_block(codes + v * 16, w);
            for (; t + TOKENS_AT_ONCE <= n_tokens; t += TOKENS_AT_ONCE)
                add_block(TOKENS_AT_ONCE, w, scale[v], x + t * SL_FP4_GROUP_COLS,
                          x_scale + t * scale_stride, scale_stride,
                          acc + t * ROWS + v * VECTOR_ROWS);
            for (; t < n_tokens; t++)
                add_block(1, w, scale[v], x + t * SL_FP4_GROUP_COLS, x_scale + t * scale_stride,
                          scale_stride, acc + t * ROWS + v * VECTOR_ROWS);
        }
    }
}

/* Columns outside, tiles inside: a group's activations are brought together once for all tiles
 * (rows lie a power of two apart and would evict each other). */
static void add_tokens(size_t tile_count, size_t cols, size_t n_tokens, const uint8_t *w,
                       const int8_t *x, const float *x_scale, float *y, size_t y_stride)
{
    const size_t n_blocks = cols / SL_FP4_BLOCK_COLS, tile_bytes = sl_r16_fp4_tile_bytes(cols);
    int8_t x_group[TOKENS_MAX * SL_FP4_GROUP_COLS];
    float acc[TOKENS_MAX * ROWS];

    for (size_t t = 0; t < n_tokens; t++)
        memset(y + t * y_stride, 0, tile_count * ROWS * sizeof(*y));
    for (size_t g = 0; g < cols / SL_FP4_GROUP_COLS; g++) {
        for (size_t t = 0; t < n_tokens; t++)
            memcpy(x_group + t * SL_FP4_GROUP_COLS, x + t * cols + g * SL_FP4_GROUP_COLS,
                   SL_FP4_GROUP_COLS);
        for (size_t tile = 0; tile < tile_count; tile++) {
            float *y_tile = y + tile * ROWS;

            for (size_t t = 0; t < n_tokens; t++)
                memcpy(acc + t * ROWS, y_tile + t * y_stride, ROWS * sizeof(*acc));
            add_group(n_tokens, w + tile * tile_bytes + g * SL_FP4_GROUP_BYTES, x_group,
                      x_scale + g * 4, n_blocks, acc);
            for (size_t t = 0; t < n_tokens; t++)
                memcpy(y_tile + t * y_stride, acc + t * ROWS, ROWS * sizeof(*acc));
        }
    }
}

void MATMUL_FP4(size_t tile_count, size_t cols, size_t token_count, const uint8_t *restrict w,
                const int8_t *restrict x, const float *restrict x_scale, float *restrict y,
                size_t y_stride)
{
    const size_t n_blocks = cols / SL_FP4_BLOCK_COLS, tile_bytes = sl_r16_fp4_tile_bytes(cols);

    /* One token reads each tile from end to end, which memory likes best. */
    for (size_t tile = 0; token_count == 1 && tile < tile_count; tile++)
        add_tokens(1, cols, 1, w + tile * tile_bytes, x, x_scale, y + tile * ROWS, y_stride);
    for (size_t t = 0; token_count > 1 && t < token_count; t += TOKENS_MAX)
        add_tokens(tile_count, cols, token_count - t < TOKENS_MAX ? token_count - t : TOKENS_MAX, w,
                   x + t * cols, x_scale + t * n_blocks, y + t * y_stride, y_stride);
}
