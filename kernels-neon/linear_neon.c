/* FP8 and BF16 x BF16 with NEON, by float32 multiply-adds, and int8 quantisation. The order of
 * summation is that of core/kernels/kernels.h. ARM's own BF16 dot product rounds otherwise (to
 * odd), so it cannot serve.
 *
 * A tile's 16 rows are four vectors. One token: weights go from memory through the decoder straight
 * into the sums. Several tokens: each tile's weights of a block of columns are decoded once, to
 * float32, and serve four tokens at a time. */
#include "kernels-neon/neon.h"

#include <stdbool.h>
#include <string.h>

#include "core/kernels/formats.h"
#include "kernels-neon/lanes.h"

#define VECTORS (ROWS / 4)
#define BLOCK_COLS SL_FP8_BLOCK
#define BLOCK_PAIRS (BLOCK_COLS / 2)
#define CHAIN_PAIRS (SL_BLOCK_ORDER_COLS / 2) /* the even columns' chain, and the odd ones' */
#define TILES_AT_ONCE 2u
#define TOKENS_AT_ONCE 4u
#define TOKENS_MAX 64u

/* ---- pairs of columns --------------------------------------------------------------------------
 */

/* One pair of columns of a tile, as float32. */
struct pair {
    float32x4_t even[VECTORS], odd[VECTORS];
};

/* Both halves of words of two BF16. */
static ALWAYS_INLINE float32x4_t even_bf16(uint32x4_t words)
{
    return vreinterpretq_f32_u32(vshlq_n_u32(words, 16));
}

static ALWAYS_INLINE float32x4_t odd_bf16(uint32x4_t words)
{
    return vreinterpretq_f32_u32(vandq_u32(words, vdupq_n_u32(0xffff0000)));
}

static ALWAYS_INLINE struct pair load_bf16(const uint8_t *codes)
{
    struct pair pair;

    for (size_t v = 0; v < VECTORS; v++) {
        uint32x4_t words = vreinterpretq_u32_u8(vld1q_u8(codes + v * 16));

        pair.even[v] = even_bf16(words);
        pair.odd[v] = odd_bf16(words);
    }
    return pair;
}

/* e4m3 codes times 2^-8. Conversion from float16 takes subnormal numbers whatever the float mode.
 */
static ALWAYS_INLINE struct pair load_fp8(const uint8_t *codes)
{
    struct pair pair;

    for (size_t v = 0; v < VECTORS; v += 2) {
        int16x8_t words = vreinterpretq_s16_u8(vld1q_u8(codes + v * 8));
        float16x8_t even = fp8_to_f16(vshlq_n_s16(words, 8)), odd = fp8_to_f16(words);

        pair.even[v] = vcvt_f32_f16(vget_low_f16(even));
        pair.even[v + 1] = vcvt_high_f32_f16(even);
        pair.odd[v] = vcvt_f32_f16(vget_low_f16(odd));
        pair.odd[v + 1] = vcvt_high_f32_f16(odd);
    }
    return pair;
}

static ALWAYS_INLINE struct pair scale_pair(struct pair pair, float factor)
{
    for (size_t v = 0; v < VECTORS; v++) {
        pair.even[v] = vmulq_n_f32(pair.even[v], factor);
        pair.odd[v] = vmulq_n_f32(pair.odd[v], factor);
    }
    return pair;
}

/* ---- one token ---------------------------------------------------------------------------------
 */

/* The two chains of a block, of one tile. */
static ALWAYS_INLINE struct pair no_chains(void)
{
    struct pair chains;

    for (size_t v = 0; v < VECTORS; v++)
        chains.even[v] = chains.odd[v] = vdupq_n_f32(0);
    return chains;
}

static ALWAYS_INLINE void add_pair(const struct pair *w, float32x4_t even, float32x4_t odd,
                                   struct pair *chains)
{
    for (size_t v = 0; v < VECTORS; v++)
        chains->even[v] = vfmaq_f32(chains->even[v], w->even[v], even);
    for (size_t v = 0; v < VECTORS; v++)
        chains->odd[v] = vfmaq_f32(chains->odd[v], w->odd[v], odd);
}

static ALWAYS_INLINE void add_chains(const struct pair *chains, float32x4_t acc[VECTORS])
{
    for (size_t v = 0; v < VECTORS; v++)
        acc[v] = vaddq_f32(acc[v], vaddq_f32(chains->even[v], chains->odd[v]));
}

static ALWAYS_INLINE uint32x4_t broadcast_pair(const uint16_t *x)
{
    uint32_t word;

    memcpy(&word, x, sizeof(word));
    return vdupq_n_u32(word);
}

static ALWAYS_INLINE void store_tiles(size_t n, float32x4_t acc[][VECTORS], float *y)
{
    for (size_t i = 0; i < n; i++)
        for (size_t v = 0; v < VECTORS; v++)
            vst1q_f32(y + i * ROWS + v * 4, acc[i][v]);
}

/* n tiles (1 or 2) at a time: they share the activations. */
static ALWAYS_INLINE void bf16_tiles_one(size_t n, size_t cols, const uint8_t *w, const uint16_t *x,
                                         float *y)
{
    const size_t tile_bytes = sl_r16_bf16_tile_bytes(cols);
    float32x4_t acc[TILES_AT_ONCE][VECTORS] = {{vdupq_n_f32(0)}};

    for (size_t first = 0; first < cols / 2; first += CHAIN_PAIRS) {
        size_t end = cols / 2 - first < CHAIN_PAIRS ? cols / 2 : first + CHAIN_PAIRS;
        struct pair chains[TILES_AT_ONCE] = {no_chains(), no_chains()};

        for (size_t pair = first; pair < end; pair++) {
            uint32x4_t both = broadcast_pair(x + 2 * pair);

            for (size_t i = 0; i < n; i++) {
                struct pair weights = load_bf16(w + i * tile_bytes + pair * 64);

                add_pair(&weights, even_bf16(both), odd_bf16(both), &chains[i]);
            }
        }
        for (size_t i = 0; i < n; i++)
            add_chains(&chains[i], acc[i]);
    }
    store_tiles(n, acc, y);
}

/* Where a scale goes: into the activation, which is one multiplication for 16 rows, into the
 * weights, or nowhere. */
enum scale_goes { INTO_X, INTO_WEIGHTS, NOWHERE };

/* One block of n tiles, factor 2^8 times the scale. */
static ALWAYS_INLINE void fp8_block_one(size_t n, enum scale_goes scale_goes, size_t tile_bytes,
                                        const uint8_t *w, float factor, const uint16_t *x,
                                        float32x4_t acc[][VECTORS])
{
    for (size_t first = 0; first < BLOCK_PAIRS; first += CHAIN_PAIRS) {
        struct pair chains[TILES_AT_ONCE] = {no_chains(), no_chains()};

        for (size_t pair = first; pair < first + CHAIN_PAIRS; pair++) {
            uint32x4_t both = broadcast_pair(x + 2 * pair);
            float32x4_t even = even_bf16(both), odd = odd_bf16(both);

            if (scale_goes == INTO_X) {
                even = vmulq_n_f32(even, factor);
                odd = vmulq_n_f32(odd, factor);
            }
            for (size_t i = 0; i < n; i++) {
                struct pair weights = load_fp8(w + i * tile_bytes + pair * 32);

                if (scale_goes == INTO_WEIGHTS)
                    weights = scale_pair(weights, factor);
                add_pair(&weights, even, odd, &chains[i]);
            }
        }
        for (size_t i = 0; i < n; i++)
            add_chains(&chains[i], acc[i]);
    }
}

/* The sum of each block is scaled, not its weights, which are 2^-8 times as large here. */
static ALWAYS_INLINE void fp8_block_tiles_one(size_t n, size_t cols, const uint8_t *w,
                                              const float *scale, const uint16_t *x, float *y)
{
    const size_t tile_bytes = sl_r16_fp8_tile_bytes(cols);
    float32x4_t sum[TILES_AT_ONCE][VECTORS] = {{vdupq_n_f32(0)}};

    for (size_t c = 0; c < cols; c += BLOCK_COLS) {
        float32x4_t dot[TILES_AT_ONCE][VECTORS] = {{vdupq_n_f32(0)}};

        fp8_block_one(n, NOWHERE, tile_bytes, w + c * ROWS, 0, x + c, dot);
        for (size_t i = 0; i < n; i++)
            for (size_t v = 0; v < VECTORS; v++)
                sum[i][v] = vfmaq_n_f32(sum[i][v], dot[i][v], scale[c / BLOCK_COLS] * 0x1p8f);
    }
    store_tiles(n, sum, y);
}

static ALWAYS_INLINE void fp8_tiles_one(size_t n, size_t cols, const uint8_t *w, const float *scale,
                                        const uint16_t *x, float *y)
{
    const size_t tile_bytes = sl_r16_fp8_tile_bytes(cols);
    float32x4_t acc[TILES_AT_ONCE][VECTORS] = {{vdupq_n_f32(0)}};

    for (size_t c = 0; c < cols; c += BLOCK_COLS) {
        float factor = scale[c / BLOCK_COLS] * 0x1p8f;

        /* An activation made smaller cannot overflow. Should it underflow, the block's weights are
         * all zero, since none is tiny once scaled. */
        if (factor <= 1.0f)
            fp8_block_one(n, INTO_X, tile_bytes, w + c * ROWS, factor, x + c, acc);
        else
            fp8_block_one(n, INTO_WEIGHTS, tile_bytes, w + c * ROWS, factor, x + c, acc);
    }
    store_tiles(n, acc, y);
}

/* ---- several tokens ----------------------------------------------------------------------------
 * Here each 32 columns' even ones lie before their odd ones, in activations and weights alike. */

/* A block's activations as float32, token after token: x (n_tokens, n_cols) to (n_tokens,
 * BLOCK_COLS), with zeros where the last 32 columns are fewer. */
static void gather_block(size_t n_tokens, size_t n_cols, const uint16_t *x, size_t x_stride,
                         float *block)
{
    for (size_t t = 0; t < n_tokens; t++, x += x_stride, block += BLOCK_COLS) {
        if (n_cols < BLOCK_COLS)
            memset(block, 0, BLOCK_COLS * sizeof(*block));
        for (size_t c = 0; c < n_cols; c += SL_BLOCK_ORDER_COLS) {
            size_t n = n_cols - c < SL_BLOCK_ORDER_COLS ? n_cols - c : SL_BLOCK_ORDER_COLS;

            for (size_t i = 0; i < n / 2; i++) {
                block[c + i] = sl_bf16_to_f32(x[c + 2 * i]);
                block[c + CHAIN_PAIRS + i] = sl_bf16_to_f32(x[c + 2 * i + 1]);
            }
        }
    }
}

/* Puts pair i of a block where it belongs in its weights (columns, 16). */
static ALWAYS_INLINE void store_pair(struct pair pair, size_t i, float *weights)
{
    float *even = weights + (i / CHAIN_PAIRS * SL_BLOCK_ORDER_COLS + i % CHAIN_PAIRS) * ROWS;

    for (size_t v = 0; v < VECTORS; v++) {
        vst1q_f32(even + v * 4, pair.even[v]);
        vst1q_f32(even + CHAIN_PAIRS * ROWS + v * 4, pair.odd[v]);
    }
}

/* acc = the sums of one chain of one tile, weights (16, 16), of n tokens (1 to 4). */
static ALWAYS_INLINE void sum_chain(size_t n, const float *weights, const float *x,
                                    float32x4_t acc[][VECTORS])
{
    for (size_t t = 0; t < n; t++)
        for (size_t v = 0; v < VECTORS; v++)
            acc[t][v] = vdupq_n_f32(0);
    for (size_t c = 0; c < CHAIN_PAIRS; c += 4, weights += 4 * ROWS) {
        for (size_t t = 0; t < n; t++) {
            float32x4_t four = vld1q_f32(x + t * BLOCK_COLS + c);

            for (size_t v = 0; v < VECTORS; v++)
                acc[t][v] = vfmaq_laneq_f32(acc[t][v], vld1q_f32(weights + v * 4), four, 0);
            for (size_t v = 0; v < VECTORS; v++)
                acc[t][v] = vfmaq_laneq_f32(acc[t][v], vld1q_f32(weights + ROWS + v * 4), four, 1);
            for (size_t v = 0; v < VECTORS; v++)
                acc[t][v] =
                    vfmaq_laneq_f32(acc[t][v], vld1q_f32(weights + 2 * ROWS + v * 4), four, 2);
            for (size_t v = 0; v < VECTORS; v++)
                acc[t][v] =
                    vfmaq_laneq_f32(acc[t][v], vld1q_f32(weights + 3 * ROWS + v * 4), four, 3);
        }
    }
}

/* Adds n_cols columns of one tile, weights (n_cols, 16), to n tokens (1 to 4). */
static ALWAYS_INLINE void add_chains_tokens(size_t n, size_t n_cols, const float *weights,
                                            const float *x, float *y, size_t y_stride)
{
    float32x4_t even[TOKENS_AT_ONCE][VECTORS], odd[TOKENS_AT_ONCE][VECTORS];

    for (size_t c = 0; c < n_cols;
         c += SL_BLOCK_ORDER_COLS, weights += SL_BLOCK_ORDER_COLS * ROWS) {
        sum_chain(n, weights, x + c, even);
        sum_chain(n, weights + CHAIN_PAIRS * ROWS, x + c + CHAIN_PAIRS, odd);
        for (size_t t = 0; t < n; t++) {
            for (size_t v = 0; v < VECTORS; v++) {
                float *to = y + t * y_stride + v * 4;

                vst1q_f32(to, vaddq_f32(vld1q_f32(to), vaddq_f32(even[t][v], odd[t][v])));
            }
        }
    }
}

static void add_columns(size_t n_tokens, size_t n_cols, const float *weights, const float *x,
                        float *y, size_t y_stride)
{
    size_t t = 0;

    for (; t + 4 <= n_tokens; t += 4)
        add_chains_tokens(4, n_cols, weights, x + t * BLOCK_COLS, y + t * y_stride, y_stride);
    for (; t + 2 <= n_tokens; t += 2)
        add_chains_tokens(2, n_cols, weights, x + t * BLOCK_COLS, y + t * y_stride, y_stride);
    for (; t < n_tokens; t++)
        add_chains_tokens(1, n_cols, weights, x + t * BLOCK_COLS, y + t * y_stride, y_stride);
}

static void clear_rows(size_t n_tokens, size_t tile_count, float *y, size_t y_stride)
{
    for (size_t t = 0; t < n_tokens; t++)
        memset(y + t * y_stride, 0, tile_count * ROWS * sizeof(*y));
}

static void fp8_tokens(size_t tile_count, size_t cols, size_t n_tokens, const uint8_t *w,
                       const float *scale, const uint16_t *x, size_t x_stride, float *y,
                       size_t y_stride)
{
    const size_t tile_bytes = sl_r16_fp8_tile_bytes(cols);
    float x_block[TOKENS_MAX * BLOCK_COLS], weights[BLOCK_COLS * ROWS];

    clear_rows(n_tokens, tile_count, y, y_stride);
    for (size_t c = 0; c < cols; c += BLOCK_COLS) {
        float factor = scale[c / BLOCK_COLS] * 0x1p8f;

        gather_block(n_tokens, BLOCK_COLS, x + c, x_stride, x_block);
        for (size_t tile = 0; tile < tile_count; tile++) {
            const uint8_t *codes = w + tile * tile_bytes + c * ROWS;

            for (size_t pair = 0; pair < BLOCK_PAIRS; pair++)
                store_pair(scale_pair(load_fp8(codes + pair * 32), factor), pair, weights);
            add_columns(n_tokens, BLOCK_COLS, weights, x_block, y + tile * ROWS, y_stride);
        }
    }
}

static void fp8_block_tokens(size_t tile_count, size_t cols, size_t n_tokens, const uint8_t *w,
                             const float *scale, const uint16_t *x, size_t x_stride, float *y,
                             size_t y_stride)
{
    const size_t tile_bytes = sl_r16_fp8_tile_bytes(cols);
    float x_block[TOKENS_MAX * BLOCK_COLS], weights[BLOCK_COLS * ROWS], dot[TOKENS_MAX * ROWS];

    clear_rows(n_tokens, tile_count, y, y_stride);
    for (size_t c = 0; c < cols; c += BLOCK_COLS) {
        gather_block(n_tokens, BLOCK_COLS, x + c, x_stride, x_block);
        for (size_t tile = 0; tile < tile_count; tile++) {
            const uint8_t *codes = w + tile * tile_bytes + c * ROWS;

            for (size_t pair = 0; pair < BLOCK_PAIRS; pair++)
                store_pair(load_fp8(codes + pair * 32), pair, weights);
            clear_rows(n_tokens, 1, dot, ROWS);
            add_columns(n_tokens, BLOCK_COLS, weights, x_block, dot, ROWS);
            for (size_t t = 0; t < n_tokens; t++) {
                float *to = y + t * y_stride + tile * ROWS;

                for (size_t v = 0; v < ROWS; v += 4)
                    vst1q_f32(to + v, vfmaq_n_f32(vld1q_f32(to + v), vld1q_f32(dot + t * ROWS + v),
                                                  scale[c / BLOCK_COLS] * 0x1p8f));
            }
        }
    }
}

static void bf16_tokens(size_t tile_count, size_t cols, size_t n_tokens, const uint8_t *w,
                        const uint16_t *x, size_t x_stride, float *y, size_t y_stride)
{
    const size_t tile_bytes = sl_r16_bf16_tile_bytes(cols);
    float x_block[TOKENS_MAX * BLOCK_COLS], weights[BLOCK_COLS * ROWS];

    clear_rows(n_tokens, tile_count, y, y_stride);
    for (size_t c = 0; c < cols; c += BLOCK_COLS) {
        size_t n_cols = cols - c < BLOCK_COLS ? cols - c : BLOCK_COLS;

        gather_block(n_tokens, n_cols, x + c, x_stride, x_block);
        if (n_cols < BLOCK_COLS)
            memset(weights, 0, sizeof(weights));
        for (size_t tile = 0; tile < tile_count; tile++) {
            const uint8_t *codes = w + tile * tile_bytes + c * ROWS * 2;

            for (size_t pair = 0; pair < n_cols / 2; pair++)
                store_pair(load_bf16(codes + pair * 64), pair, weights);
            add_columns(n_tokens, n_cols, weights, x_block, y + tile * ROWS, y_stride);
        }
    }
}

/* ---- entries -----------------------------------------------------------------------------------
 */

/* Tiles that lie in one block of rows, whose scales these are. */
typedef void block_rows_fn(size_t tile_count, size_t cols, size_t token_count, const uint8_t *w,
                           const float *scale, const uint16_t *x, size_t x_stride, float *y,
                           size_t y_stride);

static void fp8_rows(size_t tile_count, size_t cols, size_t token_count, const uint8_t *w,
                     const float *scale, const uint16_t *x, size_t x_stride, float *y,
                     size_t y_stride)
{
    const size_t tile_bytes = sl_r16_fp8_tile_bytes(cols);
    size_t tile = 0;

    for (size_t t = 0; token_count > 1 && t < token_count; t += TOKENS_MAX)
        fp8_tokens(tile_count, cols, token_count - t < TOKENS_MAX ? token_count - t : TOKENS_MAX, w,
                   scale, x + t * x_stride, x_stride, y + t * y_stride, y_stride);
    if (token_count > 1)
        return;
    for (; tile + 2 <= tile_count; tile += 2)
        fp8_tiles_one(2, cols, w + tile * tile_bytes, scale, x, y + tile * ROWS);
    for (; tile < tile_count; tile++)
        fp8_tiles_one(1, cols, w + tile * tile_bytes, scale, x, y + tile * ROWS);
}

static void fp8_block_rows(size_t tile_count, size_t cols, size_t token_count, const uint8_t *w,
                           const float *scale, const uint16_t *x, size_t x_stride, float *y,
                           size_t y_stride)
{
    const size_t tile_bytes = sl_r16_fp8_tile_bytes(cols);
    size_t tile = 0;

    for (size_t t = 0; token_count > 1 && t < token_count; t += TOKENS_MAX)
        fp8_block_tokens(tile_count, cols,
                         token_count - t < TOKENS_MAX ? token_count - t : TOKENS_MAX, w, scale,
                         x + t * x_stride, x_stride, y + t * y_stride, y_stride);
    if (token_count > 1)
        return;
    for (; tile + 2 <= tile_count; tile += 2)
        fp8_block_tiles_one(2, cols, w + tile * tile_bytes, scale, x, y + tile * ROWS);
    for (; tile < tile_count; tile++)
        fp8_block_tiles_one(1, cols, w + tile * tile_bytes, scale, x, y + tile * ROWS);
}

static void by_block_rows(block_rows_fn *matmul, size_t first_tile, size_t tile_count, size_t cols,
                          size_t token_count, const uint8_t *w, const float *scale,
                          const uint16_t *x, size_t x_stride, float *y, size_t y_stride)
{
    for (size_t i = 0, n; i < tile_count; i += n) {
        const size_t tile = first_tile + i;

        n = sl_fp8_tiles_of_block(tile, first_tile + tile_count);
        matmul(n, cols, token_count, w + i * sl_r16_fp8_tile_bytes(cols),
               scale + tile / SL_FP8_BLOCK_TILES * (cols / SL_FP8_BLOCK), x, x_stride, y + i * ROWS,
               y_stride);
    }
}

void sl_matmul_fp8_neon(size_t first_tile, size_t tile_count, size_t cols, size_t token_count,
                        const uint8_t *restrict w, const float *restrict scale,
                        const uint16_t *restrict x, size_t x_stride, float *restrict y,
                        size_t y_stride)
{
    by_block_rows(fp8_rows, first_tile, tile_count, cols, token_count, w, scale, x, x_stride, y,
                  y_stride);
}

void sl_matmul_fp8_block_neon(size_t first_tile, size_t tile_count, size_t cols, size_t token_count,
                              const uint8_t *restrict w, const float *restrict scale,
                              const uint16_t *restrict x, size_t x_stride, float *restrict y,
                              size_t y_stride)
{
    by_block_rows(fp8_block_rows, first_tile, tile_count, cols, token_count, w, scale, x, x_stride,
                  y, y_stride);
}

void sl_matmul_bf16_neon(size_t tile_count, size_t cols, size_t token_count,
                         const uint8_t *restrict w, const uint16_t *restrict x, size_t x_stride,
                         float *restrict y, size_t y_stride)
{
    const size_t tile_bytes = sl_r16_bf16_tile_bytes(cols);
    size_t tile = 0;

    for (size_t t = 0; token_count > 1 && t < token_count; t += TOKENS_MAX)
        bf16_tokens(tile_count, cols, token_count - t < TOKENS_MAX ? token_count - t : TOKENS_MAX,
                    w, x + t * x_stride, x_stride, y + t * y_stride, y_stride);
    if (token_count > 1)
        return;
    for (; tile + 2 <= tile_count; tile += 2)
        bf16_tiles_one(2, cols, w + tile * tile_bytes, x, y + tile * ROWS);
    for (; tile < tile_count; tile++)
        bf16_tiles_one(1, cols, w + tile * tile_bytes, x, y + tile * ROWS);
}

/* Here because a compiler does not vectorise the search for the largest magnitude. */
void sl_quantise_int8_neon(size_t cols, const float *restrict x, int8_t *restrict q,
                           float *restrict scale)
{
    for (size_t g = 0; g < cols / SL_FP4_GROUP_COLS; g++, x += SL_FP4_GROUP_COLS) {
        float32x4_t most = vdupq_n_f32(0);
        float amax, inverse;

        for (size_t i = 0; i < SL_FP4_GROUP_COLS; i += 4)
            most = vmaxq_f32(most, vabsq_f32(vld1q_f32(x + i)));
        amax = vmaxvq_f32(most);
        inverse = amax < SL_QUANTISE_AMAX_MIN ? 0.0f : 127.0f / amax;
        scale[g] = amax < SL_QUANTISE_AMAX_MIN ? 0.0f : amax / 127.0f;
        for (size_t i = 0; i < SL_FP4_GROUP_COLS; i += 8, q += 8) {
            int32x4_t low = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i), inverse));
            int32x4_t high = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i + 4), inverse));
            int16x8_t even_odd =
                vmovn_high_s32(vmovn_s32(vuzp1q_s32(low, high)), vuzp2q_s32(low, high));

            vst1_s8(q, vmovn_s16(even_odd));
        }
    }
}
