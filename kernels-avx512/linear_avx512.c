/* Linears with AVX-512: BF16 dot products for FP8 and BF16 weights, and F32 weights. The order of
 * summation is that of core/kernels/kernels.h.
 *
 * One token: weights go from memory through the decoder straight into the dot product, and speed is
 * that of memory. Several tokens: a block of columns at a time, its activations brought together
 * first (rows lie a power of two apart and would evict each other), the weights of two tiles
 * decoded once for all tokens, and the sums of eight tokens by two tiles kept in registers: each
 * activation that is loaded serves two products, each weight eight. */
#include "kernels-avx512/avx512.h"

#include "core/kernels/formats.h"
#include "kernels-avx512/vectors.h"

/* ---- FP8 and BF16 x BF16 -----------------------------------------------------------------------
 */

#define BLOCK_COLS 128u
#define BLOCK_PAIRS (BLOCK_COLS / 2)
#define TILES_ONE_TOKEN 4u /* at once: one tile's chain of additions alone would wait */
#define TILES_AT_ONCE 2u
#define TOKENS_AT_ONCE 8u
#define BF16_TOKENS_MAX 64u

/* The BF16 numbers that the codes 0 to 127 of e4m3 are times a scale, as tables of their low and
 * high bytes. */
struct fp8_decoder {
    __m512i low[2], high[2];
};

static ALWAYS_INLINE struct fp8_decoder fp8_decoder_for(float scale)
{
    static const uint16_t subnormals[8] = {0,      0x3b00, 0x3b80, 0x3bc0,
                                           0x3c00, 0x3c20, 0x3c40, 0x3c60}; /* m * 2^-9 */
    const __m512i subnormal =
        _mm512_zextsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)subnormals));
    const __m512i exponent =
        _mm512_set1_epi16((short)((int)(sl_f32_bits(scale) >> 16) - 127 * 128));
    __m512i code = _mm512_set_epi16(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16,
                                    15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    struct fp8_decoder decoder;
    __m256i low[4], high[4];

    for (int i = 0; i < 4; i++) {
        /* Exponent and mantissa move into place; both biases. */
        __m512i value = _mm512_add_epi16(_mm512_slli_epi16(code, 4), _mm512_set1_epi16(120 * 128));

        value = _mm512_mask_mov_epi16(value, i == 0 ? 0xff : 0, subnormal);
        value = _mm512_maskz_add_epi16(i == 0 ? ~UINT32_C(1) : ~UINT32_C(0), value, exponent);
        low[i] = _mm512_cvtepi16_epi8(value);
        high[i] = _mm512_cvtepi16_epi8(_mm512_srli_epi16(value, 8));
        code = _mm512_add_epi16(code, _mm512_set1_epi16(32));
    }
    for (int i = 0; i < 2; i++) {
        decoder.low[i] = _mm512_inserti64x4(_mm512_castsi256_si512(low[2 * i]), low[2 * i + 1], 1);
        decoder.high[i] =
            _mm512_inserti64x4(_mm512_castsi256_si512(high[2 * i]), high[2 * i + 1], 1);
    }
    return decoder;
}

/* 64 codes, two pairs of columns of 16 rows. */
static ALWAYS_INLINE void fp8_decode(struct fp8_decoder decoder, const uint8_t *codes,
                                     __m512i ret_pairs[2])
{
    /* The eights of both pairs side by side, which is how bytes are interleaved below. */
    const __m512i order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
    __m512i code = _mm512_permutexvar_epi64(order, _mm512_loadu_si512(codes));
    __m512i low = _mm512_permutex2var_epi8(decoder.low[0], code, decoder.low[1]);
    __m512i high = _mm512_permutex2var_epi8(decoder.high[0], code, decoder.high[1]);

    /* high | (code & 0x80): the sign */
    high = _mm512_ternarylogic_epi32(high, code, _mm512_set1_epi8((char)0x80), 0xf8);
    ret_pairs[0] = _mm512_unpacklo_epi8(low, high);
    ret_pairs[1] = _mm512_unpackhi_epi8(low, high);
}

static ALWAYS_INLINE __m512 dot_bf16(__m512 acc, __m512i w, __m512i x)
{
    return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)x);
}

/* FP8 weights are asked for this far ahead, since the processor's own prefetching ends with each
 * page. What lies beyond a matrix is asked for too, which has no effect. */
#define AHEAD_BYTES 2048u

static ALWAYS_INLINE void ask_for(const uint8_t *weights)
{
    _mm_prefetch((const char *)weights, _MM_HINT_T0);
}

/* How FP8 weights are scaled: each as it is decoded, or the sum of each block of columns. */
enum fp8_scaling { SCALE_WEIGHTS, SCALE_BLOCKS };

/* One token over n tiles (1 to 4) at a time. */
static ALWAYS_INLINE void fp8_tiles_one(enum fp8_scaling scaling, size_t n, size_t cols,
                                        const uint8_t *w, const float *scale, const uint16_t *x,
                                        float *y)
{
    const size_t tile_bytes = sl_r16_fp8_tile_bytes(cols);
    __m512 acc[TILES_ONE_TOKEN], sum[TILES_ONE_TOKEN];

    for (size_t i = 0; i < n; i++)
        acc[i] = sum[i] = _mm512_setzero_ps();
    for (size_t c = 0; c < cols; c += BLOCK_COLS) {
        struct fp8_decoder decoder =
            fp8_decoder_for(scaling == SCALE_WEIGHTS ? scale[c / BLOCK_COLS] : 1.0f);

        for (size_t pair = c / 2; pair < (c + BLOCK_COLS) / 2; pair += 2) {
            __m512i first = broadcast4(x + 2 * pair), second = broadcast4(x + 2 * pair + 2);

            for (size_t i = 0; i < n; i++) {
                const uint8_t *codes = w + i * tile_bytes + pair * 32;
                __m512i weights[2];

                ask_for(codes + AHEAD_BYTES);
                fp8_decode(decoder, codes, weights);
                acc[i] = dot_bf16(dot_bf16(acc[i], weights[0], first), weights[1], second);
            }
        }
        for (size_t i = 0; scaling == SCALE_BLOCKS && i < n; i++) {
            sum[i] = _mm512_fmadd_ps(acc[i], _mm512_set1_ps(scale[c / BLOCK_COLS]), sum[i]);
            acc[i] = _mm512_setzero_ps();
        }
    }
    for (size_t i = 0; i < n; i++)
        _mm512_storeu_ps(y + i * ROWS, scaling == SCALE_BLOCKS ? sum[i] : acc[i]);
}

static ALWAYS_INLINE void bf16_tiles_one(size_t n, size_t cols, const uint8_t *w, const uint16_t *x,
                                         float *y)
{
    const size_t tile_bytes = sl_r16_bf16_tile_bytes(cols);
    __m512 acc[TILES_ONE_TOKEN];

    for (size_t i = 0; i < n; i++)
        acc[i] = _mm512_setzero_ps();
    for (size_t pair = 0; pair < cols / 2; pair++) {
        __m512i both = broadcast4(x + 2 * pair);

        for (size_t i = 0; i < n; i++)
            acc[i] = dot_bf16(acc[i], _mm512_loadu_si512(w + i * tile_bytes + pair * 64), both);
    }
    for (size_t i = 0; i < n; i++)
        _mm512_storeu_ps(y + i * ROWS, acc[i]);
}

/* Adds n_pairs pairs of columns of n_tiles tiles (1 or 2), as BF16 and tile_bytes apart, to n
 * tokens (1 to 8). With a scale the pairs are summed by themselves, and the scaled sum is added. */
static ALWAYS_INLINE void add_pairs(size_t n_tiles, size_t n, size_t n_pairs,
                                    const uint8_t *weights, size_t tile_bytes, const float *scale,
                                    const uint16_t *x, size_t x_stride, float *y, size_t y_stride)
{
    __m512 acc[TOKENS_AT_ONCE][TILES_AT_ONCE];

    for (size_t t = 0; t < n; t++)
        for (size_t tile = 0; tile < n_tiles; tile++)
            acc[t][tile] =
                scale ? _mm512_setzero_ps() : _mm512_loadu_ps(y + t * y_stride + tile * ROWS);
    for (size_t pair = 0; pair < n_pairs; pair++) {
        __m512i w[TILES_AT_ONCE];

        for (size_t tile = 0; tile < n_tiles; tile++)
            w[tile] = _mm512_loadu_si512(weights + tile * tile_bytes + pair * 64);
        for (size_t t = 0; t < n; t++) {
            __m512i both = broadcast4(x + t * x_stride + 2 * pair);

            for (size_t tile = 0; tile < n_tiles; tile++)
                acc[t][tile] = dot_bf16(acc[t][tile], w[tile], both);
        }
    }
    for (size_t t = 0; t < n; t++) {
        for (size_t tile = 0; tile < n_tiles; tile++) {
            float *to = y + t * y_stride + tile * ROWS;

            if (scale)
                acc[t][tile] =
                    _mm512_fmadd_ps(acc[t][tile], _mm512_set1_ps(*scale), _mm512_loadu_ps(to));
            _mm512_storeu_ps(to, acc[t][tile]);
        }
    }
}

static ALWAYS_INLINE void add_pairs_tokens(size_t n_tiles, size_t n_tokens, size_t n_pairs,
                                           const uint8_t *weights, size_t tile_bytes,
                                           const float *scale, const uint16_t *x, size_t x_stride,
                                           float *y, size_t y_stride)
{
    while (n_tokens) {
        size_t n = n_tokens >= TOKENS_AT_ONCE ? TOKENS_AT_ONCE : n_tokens >= 4 ? 4 : 1;

        if (n == TOKENS_AT_ONCE) /* a constant count keeps the sums in registers */
            add_pairs(n_tiles, TOKENS_AT_ONCE, n_pairs, weights, tile_bytes, scale, x, x_stride, y,
                      y_stride);
        else if (n == 4)
            add_pairs(n_tiles, 4, n_pairs, weights, tile_bytes, scale, x, x_stride, y, y_stride);
        else
            add_pairs(n_tiles, 1, n_pairs, weights, tile_bytes, scale, x, x_stride, y, y_stride);
        n_tokens -= n;
        x += n * x_stride;
        y += n * y_stride;
    }
}

/* Does one or two tiles, as many as there are. */
static void add_tiles(size_t n_tiles, size_t n_tokens, size_t n_pairs, const uint8_t *weights,
                      size_t tile_bytes, const uint16_t *x, size_t x_stride, float *y,
                      size_t y_stride)
{
    if (n_tiles == 2)
        add_pairs_tokens(2, n_tokens, n_pairs, weights, tile_bytes, NULL, x, x_stride, y, y_stride);
    else
        add_pairs_tokens(1, n_tokens, n_pairs, weights, tile_bytes, NULL, x, x_stride, y, y_stride);
}

/* Does them with the scale of the block that the pairs are. */
static void add_tiles_scaled(size_t n_tiles, size_t n_tokens, const uint8_t *weights, float scale,
                             const uint16_t *x, float *y, size_t y_stride)
{
    const size_t tile_bytes = BLOCK_PAIRS * 64;

    if (n_tiles == 2)
        add_pairs_tokens(2, n_tokens, BLOCK_PAIRS, weights, tile_bytes, &scale, x, BLOCK_COLS, y,
                         y_stride);
    else
        add_pairs_tokens(1, n_tokens, BLOCK_PAIRS, weights, tile_bytes, &scale, x, BLOCK_COLS, y,
                         y_stride);
}

/* A block's activations, token after token: x (n_tokens, n_cols) to (n_tokens, BLOCK_COLS). */
static void gather_block(size_t n_tokens, size_t n_cols, const uint16_t *x, size_t x_stride,
                         uint16_t *block)
{
    for (size_t t = 0; t < n_tokens; t++)
        copy_row(block + t * BLOCK_COLS, x + t * x_stride, n_cols * sizeof(*x));
}

static ALWAYS_INLINE void fp8_tokens(enum fp8_scaling scaling, size_t tile_count, size_t cols,
                                     size_t n_tokens, const uint8_t *w, const float *scale,
                                     const uint16_t *x, size_t x_stride, float *y, size_t y_stride)
{
    const size_t tile_bytes = sl_r16_fp8_tile_bytes(cols);
    _Alignas(64) uint16_t x_block[BF16_TOKENS_MAX * BLOCK_COLS];
    __m512i weights[TILES_AT_ONCE][BLOCK_PAIRS];

    clear_rows(n_tokens, tile_count, y, y_stride);
    for (size_t c = 0; c < cols; c += BLOCK_COLS) {
        struct fp8_decoder decoder =
            fp8_decoder_for(scaling == SCALE_WEIGHTS ? scale[c / BLOCK_COLS] : 1.0f);

        gather_block(n_tokens, BLOCK_COLS, x + c, x_stride, x_block);
        for (size_t tile = 0; tile < tile_count; tile += TILES_AT_ONCE) {
            size_t n = tile_count - tile < TILES_AT_ONCE ? tile_count - tile : TILES_AT_ONCE;

            for (size_t i = 0; i < n; i++) {
                const uint8_t *codes = w + (tile + i) * tile_bytes + c * ROWS;

                for (size_t pair = 0; pair < BLOCK_PAIRS; pair += 2) {
                    ask_for(codes + TILES_AT_ONCE * tile_bytes + pair * 32);
                    fp8_decode(decoder, codes + pair * 32, &weights[i][pair]);
                }
            }
            if (scaling == SCALE_BLOCKS)
                add_tiles_scaled(n, n_tokens, (const uint8_t *)weights, scale[c / BLOCK_COLS],
                                 x_block, y + tile * ROWS, y_stride);
            else
                add_tiles(n, n_tokens, BLOCK_PAIRS, (const uint8_t *)weights, sizeof(weights[0]),
                          x_block, BLOCK_COLS, y + tile * ROWS, y_stride);
        }
    }
}

/* Few tiles do not earn the bringing together: rows are taken where they lie, all columns at once.
 */
#define TILES_FEW 4u

static void bf16_tokens(size_t tile_count, size_t cols, size_t n_tokens, const uint8_t *w,
                        const uint16_t *x, size_t x_stride, float *y, size_t y_stride)
{
    const size_t tile_bytes = sl_r16_bf16_tile_bytes(cols);
    const size_t at_once = tile_count > TILES_FEW ? BLOCK_COLS : cols;
    _Alignas(64) uint16_t x_block[BF16_TOKENS_MAX * BLOCK_COLS];

    clear_rows(n_tokens, tile_count, y, y_stride);
    for (size_t c = 0; c < cols; c += at_once) {
        size_t n_cols = cols - c < at_once ? cols - c : at_once;
        const uint16_t *block = x;
        size_t stride = x_stride;

        if (tile_count > TILES_FEW) {
            gather_block(n_tokens, n_cols, x + c, x_stride, x_block);
            block = x_block;
            stride = BLOCK_COLS;
        }
        for (size_t tile = 0; tile < tile_count; tile += TILES_AT_ONCE)
            add_tiles(tile_count - tile < TILES_AT_ONCE ? tile_count - tile : TILES_AT_ONCE,
                      n_tokens, n_cols / 2, w + tile * tile_bytes + c * ROWS * 2, tile_bytes, block,
                      stride, y + tile * ROWS, y_stride);
    }
}

static ALWAYS_INLINE void matmul_fp8(enum fp8_scaling scaling, size_t tile_count, size_t cols,
                                     size_t token_count, const uint8_t *w, const float *scale,
                                     const uint16_t *x, size_t x_stride, float *y, size_t y_stride)
{
    const size_t tile_bytes = sl_r16_fp8_tile_bytes(cols);
    size_t tile = 0;

    for (size_t t = 0; token_count > 1 && t < token_count; t += BF16_TOKENS_MAX)
        fp8_tokens(scaling, tile_count, cols,
                   token_count - t < BF16_TOKENS_MAX ? token_count - t : BF16_TOKENS_MAX, w, scale,
                   x + t * x_stride, x_stride, y + t * y_stride, y_stride);
    if (token_count > 1)
        return;
    for (; tile + TILES_ONE_TOKEN <= tile_count; tile += TILES_ONE_TOKEN)
        fp8_tiles_one(scaling, TILES_ONE_TOKEN, cols, w + tile * tile_bytes, scale, x,
                      y + tile * ROWS);
    for (; tile < tile_count; tile++)
        fp8_tiles_one(scaling, 1, cols, w + tile * tile_bytes, scale, x, y + tile * ROWS);
}

void sl_matmul_fp8_avx512bf16(size_t tile_count, size_t cols, size_t token_count,
                              const uint8_t *restrict w, const float *restrict scale,
                              const uint16_t *restrict x, size_t x_stride, float *restrict y,
                              size_t y_stride)
{
    matmul_fp8(SCALE_WEIGHTS, tile_count, cols, token_count, w, scale, x, x_stride, y, y_stride);
}

void sl_matmul_fp8_block_avx512bf16(size_t tile_count, size_t cols, size_t token_count,
                                    const uint8_t *restrict w, const float *restrict scale,
                                    const uint16_t *restrict x, size_t x_stride, float *restrict y,
                                    size_t y_stride)
{
    matmul_fp8(SCALE_BLOCKS, tile_count, cols, token_count, w, scale, x, x_stride, y, y_stride);
}

void sl_matmul_bf16_avx512bf16(size_t tile_count, size_t cols, size_t token_count,
                               const uint8_t *restrict w, const uint16_t *restrict x,
                               size_t x_stride, float *restrict y, size_t y_stride)
{
    const size_t tile_bytes = sl_r16_bf16_tile_bytes(cols);
    size_t tile = 0;

    for (size_t t = 0; token_count > 1 && t < token_count; t += BF16_TOKENS_MAX)
        bf16_tokens(tile_count, cols,
                    token_count - t < BF16_TOKENS_MAX ? token_count - t : BF16_TOKENS_MAX, w,
                    x + t * x_stride, x_stride, y + t * y_stride, y_stride);
    if (token_count > 1)
        return;
    for (; tile + TILES_ONE_TOKEN <= tile_count; tile += TILES_ONE_TOKEN)
        bf16_tiles_one(TILES_ONE_TOKEN, cols, w + tile * tile_bytes, x, y + tile * ROWS);
    for (; tile < tile_count; tile++)
        bf16_tiles_one(1, cols, w + tile * tile_bytes, x, y + tile * ROWS);
}

/* ---- proof -------------------------------------------------------------------------------------
 */

bool sl_avx512_dot_bf16_is_two_fmas(void)
{
    uint64_t state = 1;

    for (int round = 0; round < 4096; round++) {
        uint32_t w[16], x[16];
        float acc[16], got[16];

        for (int i = 0; i < 16; i++) {
            /* Exponents 2^-48 to 2^48 for the factors: whatever the linears may meet. */
            uint16_t half[4];

            for (int h = 0; h < 4; h++) {
                state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
                half[h] = (uint16_t)((state >> 33 & 0x807f) | (79 + (state >> 49) % 97) << 7);
            }
            w[i] = half[0] | (uint32_t)half[1] << 16;
            x[i] = half[2] | (uint32_t)half[3] << 16;
            /* Near to the products, so that the roundings show. */
            acc[i] = sl_bf16_to_f32(half[0]) * sl_bf16_to_f32(half[2]) * (1.0f + (float)i / 7);
        }
        _mm512_storeu_ps(
            got, dot_bf16(_mm512_loadu_ps(acc), _mm512_loadu_si512(w), _mm512_loadu_si512(x)));
        for (int i = 0; i < 16; i++) {
            float odd = __builtin_fmaf(sl_f32_from_bits(w[i] & 0xffff0000u),
                                       sl_f32_from_bits(x[i] & 0xffff0000u), acc[i]);
            float both =
                __builtin_fmaf(sl_f32_from_bits(w[i] << 16), sl_f32_from_bits(x[i] << 16), odd);

            if (sl_f32_bits(got[i]) != sl_f32_bits(both))
                return false;
        }
    }
    return true;
}

/* ---- F32 ---------------------------------------------------------------------------------------
 */

#define F32_TOKENS 8u
#define F32_COLS 256u

/* Eight tokens, a block of columns at a time, each column's eight values side by side. A product is
 * rounded before it is added, as in the reference: no FMA. */
static void f32_eight(size_t cols, const float *w, const float *x, size_t x_stride, float *y,
                      size_t y_stride)
{
    float block[F32_COLS * F32_TOKENS];
    __m512 sum[F32_TOKENS];

    for (size_t t = 0; t < F32_TOKENS; t++)
        sum[t] = _mm512_setzero_ps();
    for (size_t c = 0; c < cols; c += F32_COLS) {
        size_t n = cols - c < F32_COLS ? cols - c : F32_COLS;

        for (size_t t = 0; t < F32_TOKENS; t++)
            for (size_t i = 0; i < n; i++)
                block[i * F32_TOKENS + t] = x[t * x_stride + c + i];
        for (size_t i = 0; i < n; i++, w += ROWS) {
            __m512 column = _mm512_loadu_ps(w);

            for (size_t t = 0; t < F32_TOKENS; t++)
                sum[t] = _mm512_add_ps(
                    sum[t], _mm512_mul_ps(column, _mm512_set1_ps(block[i * F32_TOKENS + t])));
        }
    }
    for (size_t t = 0; t < F32_TOKENS; t++)
        _mm512_storeu_ps(y + t * y_stride, sum[t]);
}

static void f32_one(size_t cols, const float *w, const float *x, float *y)
{
    __m512 sum = _mm512_setzero_ps();

    for (size_t c = 0; c < cols; c++)
        sum =
            _mm512_add_ps(sum, _mm512_mul_ps(_mm512_loadu_ps(w + c * ROWS), _mm512_set1_ps(x[c])));
    _mm512_storeu_ps(y, sum);
}

void sl_matmul_f32_avx512(size_t tile_count, size_t cols, size_t token_count,
                          const uint8_t *restrict w, const float *restrict x, size_t x_stride,
                          float *restrict y, size_t y_stride)
{
    const float *tile = (const float *)(const void *)w;

    for (size_t i = 0; i < tile_count; i++, tile += cols * ROWS, y += ROWS) {
        size_t t = 0;

        for (; t + F32_TOKENS <= token_count; t += F32_TOKENS)
            f32_eight(cols, tile, x + t * x_stride, x_stride, y + t * y_stride, y_stride);
        for (; t < token_count; t++)
            f32_one(cols, tile, x + t * x_stride, y + t * y_stride);
    }
}
