/* Linears with AVX-512: int8 dot products (VNNI) for FP4 weights, BF16 dot products for FP8 and
 * BF16 weights. The order of summation is that of core/kernels/kernels.h.
 *
 * One token: weights go from memory through the decoder straight into the dot product, and speed is
 * that of memory. Several tokens: a block of columns at a time, its activations brought together
 * first (rows lie a power of two apart and would evict each other), each tile's weights decoded
 * once for all tokens. */
#include "kernels-avx512/avx512.h"

#include <immintrin.h>
#include <string.h>

#include "core/kernels/formats.h"

#define ROWS SL_R16_ROWS
#define ALWAYS_INLINE inline __attribute__((always_inline))

/* ---- FP4 x int8 --------------------------------------------------------------------------------
 */

/* VPDPBUSD multiplies unsigned by signed, so weights enter as twice their value plus 12, and each
 * block's sum starts at -12 times the sum of its activations. */
#define WEIGHT_OFFSET 12

/* Block sums of a group of tokens: 32 KiB of stack. */
#define BLOCK_SUMS_MAX 8192u
#define FP4_TOKENS_MAX 64u

static ALWAYS_INLINE __m512i fp4_table(void)
{
    return _mm512_broadcast_i32x4(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
}

static ALWAYS_INLINE __m512i fp4_low(__m512i codes, __m512i table)
{
    return _mm512_shuffle_epi8(table, _mm512_and_si512(codes, _mm512_set1_epi8(15)));
}

static ALWAYS_INLINE __m512i fp4_high(__m512i codes, __m512i table)
{
    return fp4_low(_mm512_srli_epi16(codes, 4), table);
}

/* 16 E8M0 bytes as floats. */
static ALWAYS_INLINE __m512 scales16(const uint8_t *bytes)
{
    __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)bytes));

    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 23));
}

static ALWAYS_INLINE __m512i broadcast4(const void *bytes)
{
    int32_t word;

    memcpy(&word, bytes, sizeof(word));
    return _mm512_set1_epi32(word);
}

static void sum_blocks(size_t n_blocks, const int8_t *x, int32_t *sums)
{
    const __m256i offset = _mm256_set1_epi8(WEIGHT_OFFSET);

    for (size_t b = 0; b < n_blocks; b++) {
        __m256i block = _mm256_loadu_si256((const __m256i *)(const void *)(x + b * 32));
        __m256i sum = _mm256_dpbusd_epi32(_mm256_setzero_si256(), offset, block);
        __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));

        half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
        half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1));
        sums[b] = -_mm_cvtsi128_si32(half);
    }
}

/* One tile, one token. */
static ALWAYS_INLINE __m512 fp4_tile_one(size_t cols, const uint8_t *w, const int8_t *x,
                                         const float *x_scale, const int32_t *sums)
{
    const __m512i table = fp4_table();
    __m512 acc = _mm512_setzero_ps();

    for (size_t c = 0; c < cols; c += SL_FP4_GROUP_COLS, w += SL_FP4_GROUP_BYTES) {
        for (size_t b = 0; b < 4; b++, x += 32, x_scale++, sums++) {
            __m512i even = _mm512_set1_epi32(*sums), odd = _mm512_setzero_si512();
            __m512 scale = _mm512_mul_ps(scales16(w + b * ROWS), _mm512_set1_ps(*x_scale * 0.5f));

            for (size_t j = 0; j < 4; j++) {
                __m512i codes = _mm512_loadu_si512(w + 64 + b * 256 + j * 64);

                even = _mm512_dpbusd_epi32(even, fp4_low(codes, table), broadcast4(x + j * 8));
                odd = _mm512_dpbusd_epi32(odd, fp4_high(codes, table), broadcast4(x + j * 8 + 4));
            }
            acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(even, odd)), scale, acc);
        }
    }
    return acc;
}

/* One block of 32 columns, already decoded, for n tokens (1 to 4) at a time. */
static ALWAYS_INLINE void fp4_block_tokens(size_t n, const __m512i weights[8], __m512 scale,
                                           const int8_t *x, const float *x_scale,
                                           const int32_t *sums, size_t block_stride, float *acc)
{
    __m512i dot[4];

    for (size_t t = 0; t < n; t++)
        dot[t] = _mm512_set1_epi32(sums[t * block_stride]);
    for (size_t i = 0; i < 8; i++)
        for (size_t t = 0; t < n; t++)
            dot[t] = _mm512_dpbusd_epi32(dot[t], weights[i],
                                         broadcast4(x + t * SL_FP4_GROUP_COLS + i * 4));
    for (size_t t = 0; t < n; t++) {
        __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(x_scale[t * block_stride]));

        _mm512_store_ps(acc + t * ROWS, _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t]), both,
                                                        _mm512_load_ps(acc + t * ROWS)));
    }
}

/* Adds a group of 128 columns of one tile to acc (n_tokens, 16). x (n_tokens, 128); x_scale and
 * sums (n_tokens, 4) at block_stride. */
static void fp4_group_tokens(size_t n_tokens, const uint8_t *group, const int8_t *x,
                             const float *x_scale, const int32_t *sums, size_t block_stride,
                             float *acc)
{
    const __m512i table = fp4_table();

    for (size_t b = 0; b < 4; b++, x += SL_FP4_BLOCK_COLS, x_scale++, sums++) {
        __m512 scale = _mm512_mul_ps(scales16(group + b * ROWS), _mm512_set1_ps(0.5f));
        __m512i weights[8];
        size_t t = 0;

        for (size_t j = 0; j < 4; j++) {
            __m512i codes = _mm512_loadu_si512(group + 64 + b * 256 + j * 64);

            weights[2 * j] = fp4_low(codes, table);
            weights[2 * j + 1] = fp4_high(codes, table);
        }
        for (; t + 4 <= n_tokens; t += 4)
            fp4_block_tokens(4, weights, scale, x + t * SL_FP4_GROUP_COLS,
                             x_scale + t * block_stride, sums + t * block_stride, block_stride,
                             acc + t * ROWS);
        for (; t < n_tokens; t++)
            fp4_block_tokens(1, weights, scale, x + t * SL_FP4_GROUP_COLS,
                             x_scale + t * block_stride, sums + t * block_stride, block_stride,
                             acc + t * ROWS);
    }
}

/* y (n_tokens, 16) to acc or back. */
static ALWAYS_INLINE void move_rows(size_t n_tokens, const float *from, size_t from_stride,
                                    float *to, size_t to_stride)
{
    for (size_t t = 0; t < n_tokens; t++)
        _mm512_storeu_ps(to + t * to_stride, _mm512_loadu_ps(from + t * from_stride));
}

static void clear_rows(size_t n_tokens, size_t tile_count, float *y, size_t y_stride)
{
    for (size_t t = 0; t < n_tokens; t++)
        memset(y + t * y_stride, 0, tile_count * ROWS * sizeof(*y));
}

static void fp4_tokens(size_t tile_count, size_t cols, size_t n_tokens, const uint8_t *w,
                       const int8_t *x, const float *x_scale, const int32_t *sums, float *y,
                       size_t y_stride)
{
    const size_t n_blocks = cols / SL_FP4_BLOCK_COLS, tile_bytes = sl_r16_fp4_tile_bytes(cols);
    _Alignas(64) int8_t x_group[FP4_TOKENS_MAX * SL_FP4_GROUP_COLS];
    _Alignas(64) float acc[FP4_TOKENS_MAX * ROWS];

    clear_rows(n_tokens, tile_count, y, y_stride);
    for (size_t g = 0; g < cols / SL_FP4_GROUP_COLS; g++) {
        for (size_t t = 0; t < n_tokens; t++)
            memcpy(x_group + t * SL_FP4_GROUP_COLS, x + t * cols + g * SL_FP4_GROUP_COLS,
                   SL_FP4_GROUP_COLS);
        for (size_t tile = 0; tile < tile_count; tile++) {
            move_rows(n_tokens, y + tile * ROWS, y_stride, acc, ROWS);
            fp4_group_tokens(n_tokens, w + tile * tile_bytes + g * SL_FP4_GROUP_BYTES, x_group,
                             x_scale + g * 4, sums + g * 4, n_blocks, acc);
            move_rows(n_tokens, acc, ROWS, y + tile * ROWS, y_stride);
        }
    }
}

void sl_matmul_fp4_avx512vnni(size_t tile_count, size_t cols, size_t token_count,
                              const uint8_t *restrict w, const int8_t *restrict x,
                              const float *restrict x_scale, float *restrict y, size_t y_stride)
{
    const size_t n_blocks = cols / SL_FP4_BLOCK_COLS, tile_bytes = sl_r16_fp4_tile_bytes(cols);
    int32_t sums[BLOCK_SUMS_MAX];
    size_t at_once = BLOCK_SUMS_MAX / n_blocks; /* at least 4: a linear has up to 65,536 columns */

    at_once = at_once < FP4_TOKENS_MAX ? at_once : FP4_TOKENS_MAX;
    for (size_t t = 0; t < token_count; t += at_once) {
        size_t n = token_count - t < at_once ? token_count - t : at_once;
        const int8_t *xt = x + t * cols;
        const float *xs = x_scale + t * n_blocks;

        sum_blocks(n * n_blocks, xt, sums);
        if (n > 1) {
            fp4_tokens(tile_count, cols, n, w, xt, xs, sums, y + t * y_stride, y_stride);
            continue;
        }
        for (size_t tile = 0; tile < tile_count; tile++)
            _mm512_storeu_ps(y + t * y_stride + tile * ROWS,
                             fp4_tile_one(cols, w + tile * tile_bytes, xt, xs, sums));
    }
}

/* ---- FP8 and BF16 x BF16 -----------------------------------------------------------------------
 */

#define BLOCK_COLS 128u
#define BLOCK_PAIRS (BLOCK_COLS / 2)
#define TILES_AT_ONCE 4u
#define BF16_TOKENS_MAX 64u

/* Decodes e4m3 to BF16 times a power of two: exponent and mantissa move into place, the exponent
 * gets both biases and the scale's; subnormals and zero come from a table. */
struct fp8_decoder {
    __m512i exponent;   /* per word: what is added to the exponent field */
    __m512i subnormals; /* BF16 of 0 to 7 times 2^-9 times the scale */
};

static ALWAYS_INLINE struct fp8_decoder fp8_decoder_for(float scale)
{
    struct fp8_decoder decoder;
    uint16_t table[32] = {0};
    int exponent = (int)(sl_f32_bits(scale) >> 23) - 127;

    for (int m = 1; m < 8; m++)
        table[m] = (uint16_t)(sl_f32_bits((float)m * 0x1p-9f * scale) >> 16);
    decoder.exponent = _mm512_set1_epi16((short)((120 + exponent) * 128));
    decoder.subnormals = _mm512_loadu_si512(table);
    return decoder;
}

/* 32 codes, the pairs of 16 rows. */
static ALWAYS_INLINE __m512i fp8_decode(struct fp8_decoder decoder, const uint8_t *codes)
{
    __m512i wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)codes));
    __m512i magnitude = _mm512_and_si512(wide, _mm512_set1_epi16(0x7f));
    __m512i value = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), decoder.exponent);
    __mmask32 small = _mm512_cmplt_epu16_mask(magnitude, _mm512_set1_epi16(8));

    value = _mm512_mask_permutexvar_epi16(value, small, magnitude, decoder.subnormals);
    /* value | (wide << 8 & 0x8000) */
    return _mm512_ternarylogic_epi32(value, _mm512_slli_epi16(wide, 8),
                                     _mm512_set1_epi16((short)0x8000), 0xf8);
}

static ALWAYS_INLINE __m512 dot_bf16(__m512 acc, __m512i w, __m512i x)
{
    return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)x);
}

/* One token over n tiles (1 to 4) at a time: one tile's chain of additions alone would wait. */
static ALWAYS_INLINE void fp8_tiles_one(size_t n, size_t cols, const uint8_t *w, const float *scale,
                                        const uint16_t *x, float *y)
{
    const size_t tile_bytes = sl_r16_fp8_tile_bytes(cols);
    __m512 acc[TILES_AT_ONCE];

    for (size_t i = 0; i < n; i++)
        acc[i] = _mm512_setzero_ps();
    for (size_t c = 0; c < cols; c += BLOCK_COLS) {
        struct fp8_decoder decoder = fp8_decoder_for(scale[c / BLOCK_COLS]);

        for (size_t pair = c / 2; pair < (c + BLOCK_COLS) / 2; pair++) {
            __m512i both = broadcast4(x + 2 * pair);

            for (size_t i = 0; i < n; i++)
                acc[i] =
                    dot_bf16(acc[i], fp8_decode(decoder, w + i * tile_bytes + pair * 32), both);
        }
    }
    for (size_t i = 0; i < n; i++)
        _mm512_storeu_ps(y + i * ROWS, acc[i]);
}

static ALWAYS_INLINE void bf16_tiles_one(size_t n, size_t cols, const uint8_t *w, const uint16_t *x,
                                         float *y)
{
    const size_t tile_bytes = sl_r16_bf16_tile_bytes(cols);
    __m512 acc[TILES_AT_ONCE];

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

/* Adds n_pairs pairs of columns of one tile, as BF16, to n tokens (1 to 8). x (n, BLOCK_COLS). */
static ALWAYS_INLINE void add_pairs_tokens(size_t n, size_t n_pairs, const uint8_t *weights,
                                           const uint16_t *x, float *y, size_t y_stride)
{
    __m512 acc[8];

    for (size_t t = 0; t < n; t++)
        acc[t] = _mm512_loadu_ps(y + t * y_stride);
    for (size_t pair = 0; pair < n_pairs; pair++) {
        __m512i w = _mm512_loadu_si512(weights + pair * 64);

        for (size_t t = 0; t < n; t++)
            acc[t] = dot_bf16(acc[t], w, broadcast4(x + t * BLOCK_COLS + 2 * pair));
    }
    for (size_t t = 0; t < n; t++)
        _mm512_storeu_ps(y + t * y_stride, acc[t]);
}

static void add_pairs(size_t n_tokens, size_t n_pairs, const uint8_t *weights, const uint16_t *x,
                      float *y, size_t y_stride)
{
    size_t t = 0;

    for (; t + 8 <= n_tokens; t += 8)
        add_pairs_tokens(8, n_pairs, weights, x + t * BLOCK_COLS, y + t * y_stride, y_stride);
    for (; t + 4 <= n_tokens; t += 4)
        add_pairs_tokens(4, n_pairs, weights, x + t * BLOCK_COLS, y + t * y_stride, y_stride);
    for (; t < n_tokens; t++)
        add_pairs_tokens(1, n_pairs, weights, x + t * BLOCK_COLS, y + t * y_stride, y_stride);
}

/* A block's activations, token after token: x (n_tokens, n_cols) to (n_tokens, BLOCK_COLS). */
static void gather_block(size_t n_tokens, size_t n_cols, const uint16_t *x, size_t x_stride,
                         uint16_t *block)
{
    for (size_t t = 0; t < n_tokens; t++)
        memcpy(block + t * BLOCK_COLS, x + t * x_stride, n_cols * sizeof(*x));
}

static void fp8_tokens(size_t tile_count, size_t cols, size_t n_tokens, const uint8_t *w,
                       const float *scale, const uint16_t *x, size_t x_stride, float *y,
                       size_t y_stride)
{
    const size_t tile_bytes = sl_r16_fp8_tile_bytes(cols);
    _Alignas(64) uint16_t x_block[BF16_TOKENS_MAX * BLOCK_COLS];
    _Alignas(64) uint8_t weights[BLOCK_PAIRS * 64];

    clear_rows(n_tokens, tile_count, y, y_stride);
    for (size_t c = 0; c < cols; c += BLOCK_COLS) {
        struct fp8_decoder decoder = fp8_decoder_for(scale[c / BLOCK_COLS]);

        gather_block(n_tokens, BLOCK_COLS, x + c, x_stride, x_block);
        for (size_t tile = 0; tile < tile_count; tile++) {
            const uint8_t *codes = w + tile * tile_bytes + c * ROWS;

            for (size_t pair = 0; pair < BLOCK_PAIRS; pair++)
                _mm512_store_si512(weights + pair * 64, fp8_decode(decoder, codes + pair * 32));
            add_pairs(n_tokens, BLOCK_PAIRS, weights, x_block, y + tile * ROWS, y_stride);
        }
    }
}

static void bf16_tokens(size_t tile_count, size_t cols, size_t n_tokens, const uint8_t *w,
                        const uint16_t *x, size_t x_stride, float *y, size_t y_stride)
{
    const size_t tile_bytes = sl_r16_bf16_tile_bytes(cols);
    _Alignas(64) uint16_t x_block[BF16_TOKENS_MAX * BLOCK_COLS];

    clear_rows(n_tokens, tile_count, y, y_stride);
    for (size_t c = 0; c < cols; c += BLOCK_COLS) {
        size_t n_cols = cols - c < BLOCK_COLS ? cols - c : BLOCK_COLS;

        gather_block(n_tokens, n_cols, x + c, x_stride, x_block);
        for (size_t tile = 0; tile < tile_count; tile++)
            add_pairs(n_tokens, n_cols / 2, w + tile * tile_bytes + c * ROWS * 2, x_block,
                      y + tile * ROWS, y_stride);
    }
}

void sl_matmul_fp8_avx512bf16(size_t tile_count, size_t cols, size_t token_count,
                              const uint8_t *restrict w, const float *restrict scale,
                              const uint16_t *restrict x, size_t x_stride, float *restrict y,
                              size_t y_stride)
{
    const size_t tile_bytes = sl_r16_fp8_tile_bytes(cols);
    size_t tile = 0;

    for (size_t t = 0; token_count > 1 && t < token_count; t += BF16_TOKENS_MAX)
        fp8_tokens(tile_count, cols,
                   token_count - t < BF16_TOKENS_MAX ? token_count - t : BF16_TOKENS_MAX, w, scale,
                   x + t * x_stride, x_stride, y + t * y_stride, y_stride);
    if (token_count > 1)
        return;
    for (; tile + TILES_AT_ONCE <= tile_count; tile += TILES_AT_ONCE)
        fp8_tiles_one(TILES_AT_ONCE, cols, w + tile * tile_bytes, scale, x, y + tile * ROWS);
    for (; tile < tile_count; tile++)
        fp8_tiles_one(1, cols, w + tile * tile_bytes, scale, x, y + tile * ROWS);
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
    for (; tile + TILES_AT_ONCE <= tile_count; tile += TILES_AT_ONCE)
        bf16_tiles_one(TILES_AT_ONCE, cols, w + tile * tile_bytes, x, y + tile * ROWS);
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
