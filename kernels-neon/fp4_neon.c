/* FP4 x int8 with NEON: one vector holds four rows of a tile, four columns each. Compiled twice:
 * for the baseline, with widening multiplications, and with SL_NEON_DOT for CPUs that have the int8
 * dot product. The order of summation is that of core/kernels/kernels.h.
 *
 * A group's weights of four rows are expanded once for all tokens. With the dot product, where each
 * row's four scales are at most three powers of two apart, codes take the difference, as eight
 * times an FP4 value doubled is still an int8: then all 128 columns are one exact integer. */
#include "kernels-neon/neon.h"

#include <stdbool.h>
#include <string.h>

#include "kernels-neon/lanes.h"

#define VECTOR_ROWS 4u
#define VECTORS (ROWS / VECTOR_ROWS)
#define BLOCKS (SL_FP4_GROUP_COLS / SL_FP4_BLOCK_COLS)
#define WORDS 8u /* vectors that hold a block's 32 columns of four rows */
#define TOKENS_MAX 64u
#define TOKENS_AT_ONCE 4u
#define LEVELS_MAX 3u

#ifdef SL_NEON_DOT
#define MATMUL_FP4 sl_matmul_fp4_neondot
#define HAS_LEVELS true

/* dot plus four rows of w[i], four columns each, times bytes 4i to 4i + 3 of x, summed over i. */
static ALWAYS_INLINE int32x4_t add_dot(int32x4_t dot, const int8x16_t w[WORDS], const int8_t *x)
{
    int8x16_t first = vld1q_s8(x), second = vld1q_s8(x + 16);

    dot = vdotq_laneq_s32(dot, w[0], first, 0);
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
#define HAS_LEVELS false

/* This variant widens. A product is at most 12 * 128 in magnitude, so eight of them fit into 16
 * bits. */
static ALWAYS_INLINE int32x4_t add_dot(int32x4_t dot, const int8x16_t w[WORDS], const int8_t *x)
{
    int16x8_t low = vdupq_n_s16(0), high = vdupq_n_s16(0); /* rows 0 and 1, rows 2 and 3 */

    for (size_t i = 0; i < WORDS; i++) {
        int32_t four;

        memcpy(&four, x + 4 * i, sizeof(four));
        low = vmlal_s8(low, vget_low_s8(w[i]), vreinterpret_s8_s32(vdup_n_s32(four)));
        high = vmlal_high_s8(high, w[i], vreinterpretq_s8_s32(vdupq_n_s32(four)));
    }
    return vaddq_s32(dot, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
}
#endif

/* A group's scales: of each block and row, or, where it is even, the least of each row alone and
 * the levels of the blocks above it. */
struct scales {
    float32x4_t half[BLOCKS][VECTORS]; /* half of them, as values are doubled */
    uint8x16_t levels[BLOCKS];         /* times 16 */
    bool even;
};

/* Half of each of 16 scales: of E8M0 bytes. */
static ALWAYS_INLINE void half_scales(uint8x16_t bytes, float32x4_t half[VECTORS])
{
    const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_high_u8(bytes);
    const uint16x4_t fours[VECTORS] = {vget_low_u16(low), vget_high_u16(low), vget_low_u16(high),
                                       vget_high_u16(high)};

    for (size_t v = 0; v < VECTORS; v++)
        half[v] = vmulq_n_f32(vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(fours[v]), 23)), 0.5f);
}

static ALWAYS_INLINE void read_scales(bool with_levels, const uint8_t *group, struct scales *scales)
{
    uint8x16_t bytes[BLOCKS], least, most;

    for (size_t b = 0; b < BLOCKS; b++)
        bytes[b] = vld1q_u8(group + b * ROWS);
    least = vminq_u8(vminq_u8(bytes[0], bytes[1]), vminq_u8(bytes[2], bytes[3]));
    most = vmaxq_u8(vmaxq_u8(bytes[0], bytes[1]), vmaxq_u8(bytes[2], bytes[3]));
    scales->even = with_levels && vmaxvq_u8(vsubq_u8(most, least)) <= LEVELS_MAX;
    for (size_t b = 0; b < BLOCKS; b++)
        scales->levels[b] = scales->even ? vshlq_n_u8(vsubq_u8(bytes[b], least), 4) : vdupq_n_u8(0);
    if (scales->even)
        half_scales(least, scales->half[0]);
    for (size_t b = 0; !scales->even && b < BLOCKS; b++)
        half_scales(bytes[b], scales->half[b]);
}

/* Twice the value of code c times 2^level, at 16 * level + c. */
static const int8_t level_values[64] = {
    0, 1, 2,  3,  4,  6,  8,  12, 0, -1, -2,  -3,  -4,  -6,  -8,  -12,
    0, 2, 4,  6,  8,  12, 16, 24, 0, -2, -4,  -6,  -8,  -12, -16, -24,
    0, 4, 8,  12, 16, 24, 32, 48, 0, -4, -8,  -12, -16, -24, -32, -48,
    0, 8, 16, 24, 32, 48, 64, 96, 0, -8, -16, -24, -32, -48, -64, -96,
};

/* Four rows of block b of a group, from row 4 * vector on. */
static ALWAYS_INLINE void expand_block(bool with_levels, const uint8_t *group,
                                       const struct scales *scales, size_t vector, size_t b,
                                       int8x16_t w[WORDS])
{
    const int8x16x4_t table = vld1q_s8_x4(level_values);
    const uint8x16_t four_each = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
    const uint8x16_t rows = vaddq_u8(four_each, vdupq_n_u8((uint8_t)(vector * VECTOR_ROWS)));
    const uint8x16_t level = vqtbl1q_u8(scales->levels[b], rows);
    const uint8_t *codes = group + BLOCKS * ROWS + b * (WORDS / 2 * 64) + vector * 16;

    for (size_t quad = 0; quad < WORDS / 2; quad++, codes += 64) {
        const uint8x16_t both = vld1q_u8(codes);
        const uint8x16_t even = vandq_u8(both, vdupq_n_u8(15)), odd = vshrq_n_u8(both, 4);

        w[2 * quad] =
            with_levels ? vqtbl4q_s8(table, vorrq_u8(even, level)) : vqtbl1q_s8(table.val[0], even);
        w[2 * quad + 1] =
            with_levels ? vqtbl4q_s8(table, vorrq_u8(odd, level)) : vqtbl1q_s8(table.val[0], odd);
    }
}

/* The weights of four rows of a group: in w, or, if that is NULL, still to be expanded, without
 * levels. */
struct rows {
    const int8x16_t *w; /* (BLOCKS * WORDS) */
    const uint8_t *group;
    const struct scales *scales;
    size_t vector;
};

/* Four rows of a group, for n tokens (1 to 4) at a time. x (n, 128); x_scale (n) at scale_stride;
 * acc (n, 16). */
static ALWAYS_INLINE void add_rows(size_t n, struct rows rows, const int8_t *x,
                                   const float *x_scale, size_t scale_stride, float *acc)
{
    const bool even = rows.scales->even;
    float32x4_t sum[TOKENS_AT_ONCE];
    int32x4_t dot[TOKENS_AT_ONCE];

    for (size_t t = 0; t < n; t++) {
        sum[t] = vdupq_n_f32(0);
        dot[t] = vdupq_n_s32(0);
    }
#pragma GCC unroll 4
    for (size_t b = 0; b < BLOCKS; b++) {
        int8x16_t w[WORDS];

        if (!rows.w)
            expand_block(false, rows.group, rows.scales, rows.vector, b, w);
        for (size_t t = 0; t < n; t++)
            dot[t] = add_dot(dot[t], rows.w ? rows.w + b * WORDS : w,
                             x + t * SL_FP4_GROUP_COLS + b * SL_FP4_BLOCK_COLS);
        if (even && b + 1 < BLOCKS)
            continue;
        for (size_t t = 0; t < n; t++) {
            sum[t] = vfmaq_f32(sum[t], vcvtq_f32_s32(dot[t]),
                               rows.scales->half[even ? 0 : b][rows.vector]);
            dot[t] = vdupq_n_s32(0);
        }
    }
    for (size_t t = 0; t < n; t++)
        vst1q_f32(acc + t * ROWS,
                  vfmaq_n_f32(vld1q_f32(acc + t * ROWS), sum[t], x_scale[t * scale_stride]));
}

/* Adds 128 columns of one tile to acc (n_tokens, 16). x (n_tokens, 128); x_scale (n_tokens) at
 * scale_stride. */
static ALWAYS_INLINE void add_group(size_t n_tokens, const uint8_t *group, const int8_t *x,
                                    const float *x_scale, size_t scale_stride, float *acc)
{
    struct scales scales;

    /* For one token taking levels costs more than it saves. */
    read_scales(HAS_LEVELS && n_tokens > 1, group, &scales);
    for (size_t v = 0; v < VECTORS; v++, acc += VECTOR_ROWS) {
        struct rows rows = {NULL, group, &scales, v};
        int8x16_t w[BLOCKS * WORDS];
        size_t t = 0;

        if (n_tokens == 1) { /* from the decoder into the products */
            add_rows(1, rows, x, x_scale, scale_stride, acc);
            continue;
        }
        for (size_t b = 0; b < BLOCKS; b++)
            expand_block(HAS_LEVELS, group, &scales, v, b, w + b * WORDS);
        rows.w = w;
        for (; t + TOKENS_AT_ONCE <= n_tokens; t += TOKENS_AT_ONCE)
            add_rows(TOKENS_AT_ONCE, rows, x + t * SL_FP4_GROUP_COLS, x_scale + t * scale_stride,
                     scale_stride, acc + t * ROWS);
        for (; t < n_tokens; t++)
            add_rows(1, rows, x + t * SL_FP4_GROUP_COLS, x_scale + t * scale_stride, scale_stride,
                     acc + t * ROWS);
    }
}

/* Columns outside, tiles inside: a group's activations are brought together once for all tiles
 * (rows lie a power of two apart and would evict each other). */
static void add_tokens(size_t tile_count, size_t cols, size_t n_tokens, const uint8_t *w,
                       const int8_t *x, const float *x_scale, float *y, size_t y_stride)
{
    const size_t n_groups = cols / SL_FP4_GROUP_COLS, tile_bytes = sl_r16_fp4_tile_bytes(cols);
    int8_t x_group[TOKENS_MAX * SL_FP4_GROUP_COLS];
    float acc[TOKENS_MAX * ROWS];

    for (size_t t = 0; t < n_tokens; t++)
        memset(y + t * y_stride, 0, tile_count * ROWS * sizeof(*y));
    for (size_t g = 0; g < n_groups; g++) {
        for (size_t t = 0; t < n_tokens; t++)
            memcpy(x_group + t * SL_FP4_GROUP_COLS, x + t * cols + g * SL_FP4_GROUP_COLS,
                   SL_FP4_GROUP_COLS);
        for (size_t tile = 0; tile < tile_count; tile++) {
            float *y_tile = y + tile * ROWS;

            for (size_t t = 0; t < n_tokens; t++)
                memcpy(acc + t * ROWS, y_tile + t * y_stride, ROWS * sizeof(*acc));
            add_group(n_tokens, w + tile * tile_bytes + g * SL_FP4_GROUP_BYTES, x_group,
                      x_scale + g, n_groups, acc);
            for (size_t t = 0; t < n_tokens; t++)
                memcpy(y_tile + t * y_stride, acc + t * ROWS, ROWS * sizeof(*acc));
        }
    }
}

void MATMUL_FP4(size_t tile_count, size_t cols, size_t token_count, const uint8_t *restrict w,
                const int8_t *restrict x, const float *restrict x_scale, float *restrict y,
                size_t y_stride)
{
    const size_t n_groups = cols / SL_FP4_GROUP_COLS, tile_bytes = sl_r16_fp4_tile_bytes(cols);

    /* One token reads each tile from end to end, which memory likes best. */
    for (size_t tile = 0; token_count == 1 && tile < tile_count; tile++)
        add_tokens(1, cols, 1, w + tile * tile_bytes, x, x_scale, y + tile * ROWS, y_stride);
    for (size_t t = 0; token_count > 1 && t < token_count; t += TOKENS_MAX)
        add_tokens(tile_count, cols, token_count - t < TOKENS_MAX ? token_count - t : TOKENS_MAX, w,
                   x + t * cols, x_scale + t * n_groups, y + t * y_stride, y_stride);
}
