/* Linears: the specification of every matrix product, and what the compiler makes of it.
 *
 * A tile's 16 rows are the lanes. Weights of one tile and 128 columns are expanded to float32 once,
 * into a block that stays in the first-level cache, and then serve up to four tokens at a time. */
#include "core/kernels/isa.h"

#include <math.h>

#include "core/kernels/formats.h"
#include "core/kernels/index_scores.h"
#include "core/kernels/scalar_math.h"

#define ROWS SL_R16_ROWS
#define BLOCK_COLS 128u
#define TOKENS_AT_ONCE 4u

/* Words of a tile: 16 lanes that the compiler can load and shift as a vector. */
typedef uint16_t __attribute__((may_alias)) word16;
typedef uint32_t __attribute__((may_alias)) word32;

/* a * b + c where a * b is exact in float32, so that fused and separate give the same bits. */
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define MUL_ADD_EXACT(a, b, c) __builtin_fmaf(a, b, c)
#else
#define MUL_ADD_EXACT(a, b, c) ((c) + (a) * (b))
#endif

/* y[t][r] += the sum of block[c][r] * x[t][c] over up to 32 columns: first the even ones, then the
 * odd ones, and then both. */
static inline __attribute__((always_inline)) void add_chains(size_t n_tokens, size_t cols,
                                                             const float *restrict block,
                                                             const float *restrict x,
                                                             float *restrict y, size_t y_stride)
{
    float chains[2][TOKENS_AT_ONCE][ROWS];

    for (size_t parity = 0; parity < 2; parity++) {
        float acc[TOKENS_AT_ONCE][ROWS] = {{0}};

        for (size_t c = parity; c < cols; c += 2) {
            for (size_t t = 0; t < n_tokens; t++) {
                float value = x[t * BLOCK_COLS + c];

                for (size_t r = 0; r < ROWS; r++)
                    acc[t][r] = MUL_ADD_EXACT(block[c * ROWS + r], value, acc[t][r]);
            }
        }
        for (size_t t = 0; t < n_tokens; t++)
            for (size_t r = 0; r < ROWS; r++)
                chains[parity][t][r] = acc[t][r];
    }
    for (size_t t = 0; t < n_tokens; t++)
        for (size_t r = 0; r < ROWS; r++)
            y[t * y_stride + r] += chains[0][t][r] + chains[1][t][r];
}

static inline __attribute__((always_inline)) void
add_block_tokens(size_t n_tokens, size_t cols, const float *restrict block, const float *restrict x,
                 float *restrict y, size_t y_stride)
{
    for (size_t c = 0; c < cols; c += SL_BLOCK_ORDER_COLS)
        add_chains(n_tokens, cols - c < SL_BLOCK_ORDER_COLS ? cols - c : SL_BLOCK_ORDER_COLS,
                   block + c * ROWS, x + c, y, y_stride);
}

/* Adds one expanded block's products to y (token_count, 16). x (token_count, cols) BF16. */
static void add_block(size_t cols, size_t token_count, const float *restrict block,
                      const uint16_t *restrict x, size_t x_stride, float *restrict y,
                      size_t y_stride)
{
    float x_block[TOKENS_AT_ONCE * BLOCK_COLS];

    for (size_t t = 0; t < token_count; t += TOKENS_AT_ONCE) {
        size_t n = token_count - t < TOKENS_AT_ONCE ? token_count - t : TOKENS_AT_ONCE;

        for (size_t i = 0; i < n; i++)
            for (size_t c = 0; c < cols; c++)
                x_block[i * BLOCK_COLS + c] = sl_bf16_to_f32(x[(t + i) * x_stride + c]);
        if (n == TOKENS_AT_ONCE) { /* a constant count lets the compiler keep acc in registers */
            add_block_tokens(TOKENS_AT_ONCE, cols, block, x_block, y + t * y_stride, y_stride);
            continue;
        }
        for (size_t i = 0; i < n; i++)
            add_block_tokens(1, cols, block, x_block + i * BLOCK_COLS, y + (t + i) * y_stride,
                             y_stride);
    }
}

static void clear_rows(size_t token_count, float *restrict y, size_t y_stride)
{
    for (size_t t = 0; t < token_count; t++)
        for (size_t r = 0; r < ROWS; r++)
            y[t * y_stride + r] = 0;
}

/* Expands 16 rows x 128 columns to float32: (128, 16), times the scale. */
static void expand_fp8_block(const uint8_t *restrict w, float scale, float *restrict block)
{
    for (size_t pair = 0; pair < BLOCK_COLS / 2; pair++) {
        const word16 *codes = (const word16 *)(const void *)(w + pair * ROWS * 2);

        for (size_t r = 0; r < ROWS; r++) {
            block[(2 * pair) * ROWS + r] = sl_e4m3_to_f32(codes[r] & 0xff) * scale;
            block[(2 * pair + 1) * ROWS + r] = sl_e4m3_to_f32(codes[r] >> 8) * scale;
        }
    }
}

/* Scales of the block of rows that a tile lies in. */
static const float *scales_of(const float *scale, size_t cols, size_t tile)
{
    return scale + tile / SL_FP8_BLOCK_TILES * (cols / SL_FP8_BLOCK);
}

static void matmul_fp8(size_t first_tile, size_t tile_count, size_t cols, size_t token_count,
                       const uint8_t *restrict w, const float *restrict scale,
                       const uint16_t *restrict x, size_t x_stride, float *restrict y,
                       size_t y_stride)
{
    float block[BLOCK_COLS * ROWS];

    for (size_t tile = 0; tile < tile_count; tile++, y += ROWS) {
        const float *factor = scales_of(scale, cols, first_tile + tile);

        clear_rows(token_count, y, y_stride);
        for (size_t c = 0; c < cols; c += BLOCK_COLS, w += BLOCK_COLS * ROWS) {
            expand_fp8_block(w, factor[c / BLOCK_COLS], block);
            add_block(BLOCK_COLS, token_count, block, x + c, x_stride, y, y_stride);
        }
    }
}

/* y[t][r] += scale * the block's dot product, for up to four tokens. */
static void add_scaled_block(size_t n, const float *restrict block, float scale,
                             const uint16_t *restrict x, size_t x_stride, float *restrict y,
                             size_t y_stride)
{
    float dot[TOKENS_AT_ONCE * ROWS];

    clear_rows(n, dot, ROWS);
    add_block(BLOCK_COLS, n, block, x, x_stride, dot, ROWS);
    for (size_t t = 0; t < n; t++)
        for (size_t r = 0; r < ROWS; r++)
            y[t * y_stride + r] = __builtin_fmaf(dot[t * ROWS + r], scale, y[t * y_stride + r]);
}

static void matmul_fp8_block(size_t first_tile, size_t tile_count, size_t cols, size_t token_count,
                             const uint8_t *restrict w, const float *restrict scale,
                             const uint16_t *restrict x, size_t x_stride, float *restrict y,
                             size_t y_stride)
{
    float block[BLOCK_COLS * ROWS];

    for (size_t tile = 0; tile < tile_count; tile++, y += ROWS) {
        const float *factor = scales_of(scale, cols, first_tile + tile);

        clear_rows(token_count, y, y_stride);
        for (size_t c = 0; c < cols; c += BLOCK_COLS, w += BLOCK_COLS * ROWS) {
            expand_fp8_block(w, 1.0f, block);
            for (size_t t = 0; t < token_count; t += TOKENS_AT_ONCE)
                add_scaled_block(token_count - t < TOKENS_AT_ONCE ? token_count - t
                                                                  : TOKENS_AT_ONCE,
                                 block, factor[c / BLOCK_COLS], x + t * x_stride + c, x_stride,
                                 y + t * y_stride, y_stride);
        }
    }
}

static void matmul_bf16(size_t tile_count, size_t cols, size_t token_count,
                        const uint8_t *restrict w, const uint16_t *restrict x, size_t x_stride,
                        float *restrict y, size_t y_stride)
{
    const word32 *codes = (const word32 *)(const void *)w;
    float block[BLOCK_COLS * ROWS];

    for (size_t tile = 0; tile < tile_count; tile++, y += ROWS) {
        clear_rows(token_count, y, y_stride);
        for (size_t c = 0; c < cols; c += BLOCK_COLS) {
            size_t n = cols - c < BLOCK_COLS ? cols - c : BLOCK_COLS;

            for (size_t pair = 0; pair < n / 2; pair++, codes += ROWS) {
                for (size_t r = 0; r < ROWS; r++) {
                    block[(2 * pair) * ROWS + r] = sl_f32_from_bits(codes[r] << 16);
                    block[(2 * pair + 1) * ROWS + r] = sl_f32_from_bits(codes[r] & 0xffff0000u);
                }
            }
            add_block(n, token_count, block, x + c, x_stride, y, y_stride);
        }
    }
}

/* Rows of a tile, as many as a register holds: of plain loops over them gcc makes vectors along the
 * columns, and larger vectors it keeps in memory. */
#if defined(__AVX512F__)
#define LANES 16u
#elif defined(__AVX__)
#define LANES 8u
#else
#define LANES 4u
#endif
typedef float lanes __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

static inline __attribute__((always_inline)) void
f32_tokens(size_t n_tokens, size_t cols, const float *restrict tile, const float *restrict x,
           size_t x_stride, float *restrict y, size_t y_stride)
{
    lanes acc[TOKENS_AT_ONCE][ROWS / LANES] = {{{0}}};

    for (size_t c = 0; c < cols; c++)
        for (size_t t = 0; t < n_tokens; t++)
            for (size_t v = 0; v < ROWS / LANES; v++)
                acc[t][v] += *(const lanes *)(tile + c * ROWS + v * LANES) * x[t * x_stride + c];
    for (size_t t = 0; t < n_tokens; t++)
        memcpy(y + t * y_stride, acc[t], sizeof(acc[t]));
}

static void matmul_f32(size_t tile_count, size_t cols, size_t token_count,
                       const uint8_t *restrict w, const float *restrict x, size_t x_stride,
                       float *restrict y, size_t y_stride)
{
    const float *tile_w = (const float *)(const void *)w;

    for (size_t tile = 0; tile < tile_count; tile++, tile_w += cols * ROWS, y += ROWS) {
        size_t t = 0;

        for (; t + TOKENS_AT_ONCE <= token_count; t += TOKENS_AT_ONCE)
            f32_tokens(TOKENS_AT_ONCE, cols, tile_w, x + t * x_stride, x_stride, y + t * y_stride,
                       y_stride);
        for (; t < token_count; t++)
            f32_tokens(1, cols, tile_w, x + t * x_stride, x_stride, y + t * y_stride, y_stride);
    }
}

/* y[t][r] += x_scale * the sum of scale * dot over the four blocks of 32 columns of an expanded
 * group. Sums of products of small integers stay below 2^24 and so are exact in float32, in any
 * order. */
static inline __attribute__((always_inline)) void
add_fp4_group(size_t n_tokens, const float *restrict group, const float *restrict group_scale,
              const float *restrict x, const float *restrict x_scale, size_t x_scale_stride,
              float *restrict y, size_t y_stride)
{
    float sum[TOKENS_AT_ONCE][ROWS] = {{0}};

    for (size_t b = 0; b < SL_FP4_GROUP_COLS / SL_FP4_BLOCK_COLS; b++) {
        float dot[TOKENS_AT_ONCE][ROWS] = {{0}};

        for (size_t c = b * SL_FP4_BLOCK_COLS; c < (b + 1) * SL_FP4_BLOCK_COLS; c++)
            for (size_t t = 0; t < n_tokens; t++)
                for (size_t r = 0; r < ROWS; r++)
                    dot[t][r] =
                        MUL_ADD_EXACT(group[c * ROWS + r], x[t * SL_FP4_GROUP_COLS + c], dot[t][r]);
        for (size_t t = 0; t < n_tokens; t++)
            for (size_t r = 0; r < ROWS; r++)
                sum[t][r] = MUL_ADD_EXACT(dot[t][r], group_scale[b * ROWS + r], sum[t][r]);
    }
    for (size_t t = 0; t < n_tokens; t++)
        for (size_t r = 0; r < ROWS; r++)
            y[t * y_stride + r] =
                __builtin_fmaf(sum[t][r], x_scale[t * x_scale_stride], y[t * y_stride + r]);
}

/* Twice the value of the code in the low four bits: 0, 1 and then 2, 3, 4, 6, 8, 12, which are
 * float32 with the code's exponent and mantissa in place. */
static inline float twice_e2m1(uint32_t code)
{
    uint32_t magnitude = code & 7;
    float value = magnitude < 2 ? (float)(int32_t)magnitude
                                : sl_f32_from_bits((magnitude << 22) + (UINT32_C(127) << 23));

    return sl_f32_from_bits(sl_f32_bits(value) | (code & 8) << 28);
}

/* Expands 16 rows x 128 columns: twice the weights, as floats, in the column order of the tile, and
 * half the scales, so that their product is the weight. */
static void expand_fp4_group(const uint8_t *restrict w, float *restrict group,
                             float *restrict group_scale)
{
    for (size_t i = 0; i < 4 * ROWS; i++)
        group_scale[i] = sl_f32_from_bits((uint32_t)w[i] << 23) * 0.5f;
    w += 4 * ROWS;
    for (size_t quad = 0; quad < 16; quad++, w += 64, group += 8 * ROWS) {
        const word32 *codes = (const word32 *)(const void *)w;

        for (uint32_t i = 0; i < 4; i++) {
            for (size_t r = 0; r < ROWS; r++) {
                group[i * ROWS + r] = twice_e2m1(codes[r] >> (8 * i));
                group[(4 + i) * ROWS + r] = twice_e2m1(codes[r] >> (8 * i + 4));
            }
        }
    }
}

static void matmul_fp4(size_t tile_count, size_t cols, size_t token_count,
                       const uint8_t *restrict w, const int8_t *restrict x,
                       const float *restrict x_scale, float *restrict y, size_t y_stride)
{
    const size_t x_scale_stride = cols / SL_FP4_GROUP_COLS;
    float group[SL_FP4_GROUP_COLS * ROWS], group_scale[4 * ROWS];
    float x_group[TOKENS_AT_ONCE * SL_FP4_GROUP_COLS];

    for (size_t tile = 0; tile < tile_count; tile++, y += ROWS) {
        clear_rows(token_count, y, y_stride);
        for (size_t c = 0; c < cols; c += SL_FP4_GROUP_COLS, w += SL_FP4_GROUP_BYTES) {
            expand_fp4_group(w, group, group_scale);
            for (size_t t = 0; t < token_count; t += TOKENS_AT_ONCE) {
                size_t n = token_count - t < TOKENS_AT_ONCE ? token_count - t : TOKENS_AT_ONCE;
                const float *xs = x_scale + t * x_scale_stride + c / SL_FP4_GROUP_COLS;

                for (size_t i = 0; i < n; i++)
                    for (size_t k = 0; k < SL_FP4_GROUP_COLS; k++)
                        x_group[i * SL_FP4_GROUP_COLS + k] = (float)x[(t + i) * cols + c + k];
                if (n == TOKENS_AT_ONCE) {
                    add_fp4_group(TOKENS_AT_ONCE, group, group_scale, x_group, xs, x_scale_stride,
                                  y + t * y_stride, y_stride);
                    continue;
                }
                for (size_t i = 0; i < n; i++)
                    add_fp4_group(1, group, group_scale, x_group + i * SL_FP4_GROUP_COLS,
                                  xs + i * x_scale_stride, x_scale_stride, y + (t + i) * y_stride,
                                  y_stride);
            }
        }
    }
}

static void index_scores(size_t tile_count, size_t cols, size_t head_count,
                         const uint8_t *restrict keys, const int8_t *restrict x,
                         const float *restrict x_scale, const float *restrict weight,
                         float *restrict total)
{
    sl_index_scores_by(matmul_fp4, tile_count, cols, head_count, keys, x, x_scale, weight, total);
}

static void quantise_int8(size_t cols, const float *restrict x, int8_t *restrict q,
                          float *restrict scale)
{
    for (size_t g = 0; g < cols / SL_FP4_GROUP_COLS; g++) {
        const float *group = x + g * SL_FP4_GROUP_COLS;
        int8_t *out = q + g * SL_FP4_GROUP_COLS;
        float amax = 0, inverse;

        for (size_t i = 0; i < SL_FP4_GROUP_COLS; i++) {
            float magnitude = sl_f32_from_bits(sl_f32_bits(group[i]) & 0x7fffffffu);

            amax = magnitude > amax ? magnitude : amax;
        }
        inverse = amax < SL_QUANTISE_AMAX_MIN ? 0.0f : 127.0f / amax;
        scale[g] = amax < SL_QUANTISE_AMAX_MIN ? 0.0f : amax / 127.0f;
        for (size_t eight = 0; eight < SL_FP4_GROUP_COLS; eight += 8) {
            for (size_t i = 0; i < 8; i++) {
                float rounded = group[eight + i] * inverse + SL_ROUND_MAGIC;

                out[eight + i / 2 + i % 2 * 4] =
                    (int8_t)(sl_f32_bits(rounded) - sl_f32_bits(SL_ROUND_MAGIC));
            }
        }
    }
}

static void to_bf16(size_t count, const float *restrict x, uint16_t *restrict y)
{
    for (size_t i = 0; i < count; i++)
        y[i] = sl_bf16_drop_tiny(sl_f32_to_bf16(x[i]));
}

void SL_ISA_NAME(sl_install_linear)(struct sl_kernels *kernels)
{
    kernels->matmul_fp4 = matmul_fp4;
    kernels->index_scores = index_scores;
    kernels->matmul_fp8 = matmul_fp8;
    kernels->matmul_fp8_block = matmul_fp8_block;
    kernels->matmul_bf16 = matmul_bf16;
    kernels->matmul_f32 = matmul_f32;
    kernels->quantise_int8 = quantise_int8;
    kernels->to_bf16 = to_bf16;
}
