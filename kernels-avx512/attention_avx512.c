/* KV entries, softmax, the indexer's rounding and its search with AVX-512, operation for operation
 * as the plain C has them (core/kernels/attention_isa.c): multiplications and additions stay two
 * roundings. */
#include "kernels-avx512/avx512.h"

#include "core/kernels/scalar_math.h"
#include "kernels-avx512/vectors.h"

/* ---- KV entries --------------------------------------------------------------------------------
 */

#define KV_BLOCK 64u

/* 32 codes of e4m3 as BF16. Exponent and mantissa move into place, and `bias` is added to the
 * exponent; the eight codes without one are looked up. */
static ALWAYS_INLINE __m512i decode32(const uint8_t *codes, __m512i bias, __m512i subnormals)
{
    __m512i code = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)codes));
    __m512i magnitude = _mm512_and_si512(_mm512_slli_epi16(code, 4), _mm512_set1_epi16(0x7f0));
    __m512i value = _mm512_mask_permutexvar_epi16(
        _mm512_add_epi16(magnitude, bias), _mm512_testn_epi16_mask(code, _mm512_set1_epi16(0x78)),
        code, subnormals);

    /* value | (code << 8 & 0x8000): the sign */
    return _mm512_ternarylogic_epi32(value, _mm512_slli_epi16(code, 8),
                                     _mm512_set1_epi16((short)0x8000), 0xf8);
}

void sl_kv_decode_avx512(size_t fp8_count, size_t bf16_count, const uint8_t *restrict entry,
                         uint16_t *restrict y)
{
    static const uint16_t eighths[8] = {0,      0x3b00, 0x3b80, 0x3bc0,
                                        0x3c00, 0x3c20, 0x3c40, 0x3c60}; /* m * 2^-9 */
    const __m512i subnormals =
        _mm512_zextsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)eighths));
    const uint8_t *scale_bytes = entry + fp8_count, *rest = scale_bytes + fp8_count / KV_BLOCK;

    for (size_t b = 0; b < fp8_count / KV_BLOCK; b++) {
        const int exponent = (int)scale_bytes[b] - (int)SL_E8M0_BIAS;
        __m512i scale = _mm512_set1_epi16((short)(exponent * 128));
        __m512i scaled = _mm512_maskz_add_epi16(0xfe, subnormals, scale); /* zero stays zero */
        __m512i bias = _mm512_add_epi16(scale, _mm512_set1_epi16(120 * 128));

        for (size_t i = b * KV_BLOCK; i < (b + 1) * KV_BLOCK; i += 32)
            _mm512_storeu_si512(y + i, decode32(entry + i, bias, scaled));
    }
    copy_row(y + fp8_count, rest, bf16_count * sizeof(*y));
}

/* 32 columns at a time, which are whole lines of the cache: rows lie a power of two apart, so that
 * few of their lines stay there. */
void sl_pair_rows_avx512(size_t pair_count, size_t count, const uint16_t *restrict rows,
                         uint8_t *restrict tiles, size_t tile_bytes)
{
    /* The fours of the first 16 columns are interleaved as low halves, the others as high ones. */
    const __m512i order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
    size_t c = 0;

    for (; c + 2 * ROWS <= count; c += 2 * ROWS, tiles += 2 * tile_bytes) {
        for (size_t pair = 0; pair < pair_count; pair++) {
            const uint16_t *row = rows + 2 * pair * count + c;
            __m512i even = _mm512_permutexvar_epi64(order, _mm512_loadu_si512(row));
            __m512i odd = _mm512_permutexvar_epi64(order, _mm512_loadu_si512(row + count));

            _mm512_storeu_si512(tiles + pair * 64, _mm512_unpacklo_epi16(even, odd));
            _mm512_storeu_si512(tiles + tile_bytes + pair * 64, _mm512_unpackhi_epi16(even, odd));
        }
    }
    for (; c < count; c += ROWS, tiles += tile_bytes) {
        const __mmask16 there = (__mmask16)(count - c < ROWS ? (1u << (count - c)) - 1 : 0xffffu);

        for (size_t pair = 0; pair < pair_count; pair++) {
            const uint16_t *row = rows + 2 * pair * count + c;
            __m512i even = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, row));
            __m512i odd = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, row + count));

            _mm512_storeu_si512(tiles + pair * 64,
                                _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
        }
    }
}

/* ---- softmax -----------------------------------------------------------------------------------
 */

/* sl_expf() of 16 values that are not above 88. Powers of two are added to the exponent: results
 * that are not zero are normal. */
static ALWAYS_INLINE __m512 exp16(__m512 x)
{
    const __m512 magic = _mm512_set1_ps(SL_ROUND_MAGIC), low = _mm512_set1_ps(-87.0f);
    const __mmask16 is_there = _mm512_cmp_ps_mask(x, low, _CMP_GE_OQ);
    __m512 clamped = _mm512_max_ps(x, low);
    __m512 shifted = _mm512_add_ps(_mm512_mul_ps(clamped, _mm512_set1_ps(1.44269504f)), magic);
    __m512 n = _mm512_sub_ps(shifted, magic), r, p;

    r = _mm512_sub_ps(clamped, _mm512_mul_ps(n, _mm512_set1_ps(0.693359375f)));
    r = _mm512_sub_ps(r, _mm512_mul_ps(n, _mm512_set1_ps(-2.12194440e-4f)));
    p = _mm512_set1_ps(1.0f / 720);
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(1.0f / 120));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(1.0f / 24));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(1.0f / 6));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(0.5f));
    p = _mm512_add_ps(_mm512_mul_ps(p, _mm512_mul_ps(r, r)), r);
    p = _mm512_add_ps(p, _mm512_set1_ps(1.0f));
    return _mm512_castsi512_ps(_mm512_maskz_add_epi32(
        is_there, _mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
}

/* Rounds to BF16, nearest even, which are the upper halves. */
static ALWAYS_INLINE __m512i round_up_halves(__m512 value)
{
    __m512i bits = _mm512_castps_si512(value);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));

    return _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
}

/* Two vectors of numbers that are not negative as BF16, tiny ones as zero, side by side. */
static ALWAYS_INLINE __m512i pair_bf16(__m512 even, __m512 odd)
{
    const __m512i tiny = _mm512_set1_epi32((127 + SL_TINY_EXPONENT) << 23);
    __m512i low = round_up_halves(even), high = round_up_halves(odd);

    low = _mm512_maskz_srli_epi32(_mm512_cmpge_epi32_mask(low, tiny), low, 16);
    /* low | (high & 0xffff0000) */
    return _mm512_mask_ternarylogic_epi32(low, _mm512_cmpge_epi32_mask(high, tiny), high,
                                          _mm512_set1_epi32((int)0xffff0000u), 0xf8);
}

/* Rows become columns. */
static ALWAYS_INLINE void transpose16(__m512i v[16])
{
    __m512i a[16], b[16];

    for (size_t i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (size_t i = 0; i < 16; i += 4) { /* b[i + c]: columns c, 4 + c, 8 + c, 12 + c of four */
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (size_t c = 0; c < 4; c++) {
        __m512i even = _mm512_shuffle_i32x4(b[c], b[4 + c], 0x88);
        __m512i odd = _mm512_shuffle_i32x4(b[c], b[4 + c], 0xdd);
        __m512i even_end = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0x88);
        __m512i odd_end = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0xdd);

        v[c] = _mm512_shuffle_i32x4(even, even_end, 0x88);
        v[4 + c] = _mm512_shuffle_i32x4(odd, odd_end, 0x88);
        v[8 + c] = _mm512_shuffle_i32x4(even, even_end, 0xdd);
        v[12 + c] = _mm512_shuffle_i32x4(odd, odd_end, 0xdd);
    }
}

/* The largest score of each head. */
static ALWAYS_INLINE __m512 largest_scores(size_t entry_count, const float *scores, size_t stride)
{
    __m512 most[4]; /* one would wait for itself */
    size_t n = 0;

    for (size_t i = 0; i < 4; i++)
        most[i] = _mm512_loadu_ps(scores);
    for (; n + 4 <= entry_count; n += 4)
        for (size_t i = 0; i < 4; i++)
            most[i] = _mm512_max_ps(_mm512_loadu_ps(scores + (n + i) * stride), most[i]);
    for (; n < entry_count; n++)
        most[0] = _mm512_max_ps(_mm512_loadu_ps(scores + n * stride), most[0]);
    return _mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3]));
}

#define ENTRIES_AT_ONCE 32u

/* Weights of n entries, 32 at most, of 16 heads. */
static ALWAYS_INLINE __m512 weigh_block(size_t n, const float *scores, size_t stride, __m512 factor,
                                        __m512 top, uint16_t *p, size_t p_stride, __m512 sum)
{
    const __mmask32 there = (__mmask32)((UINT64_C(1) << n) - 1);
    __m512i pairs[16];

    for (size_t i = 0; i < ENTRIES_AT_ONCE; i += 2) {
        __m512 e[2];

        for (size_t k = 0; k < 2; k++) {
            e[k] = _mm512_setzero_ps();
            if (i + k >= n)
                continue;
            e[k] = _mm512_mul_ps(_mm512_loadu_ps(scores + (i + k) * stride), factor);
            e[k] = exp16(_mm512_sub_ps(e[k], top));
            sum = _mm512_add_ps(sum, e[k]);
        }
        pairs[i / 2] = pair_bf16(e[0], e[1]);
    }
    transpose16(pairs);
    for (size_t h = 0; h < ROWS; h++)
        _mm512_mask_storeu_epi16(p + h * p_stride, there, pairs[h]);
    return sum;
}

void sl_attend_softmax_avx512(size_t entry_count, const float *restrict scores, size_t score_stride,
                              float scale, const float *restrict sink, uint16_t *restrict p,
                              size_t p_stride, float *restrict total)
{
    const __m512 factor = _mm512_set1_ps(scale), sinks = _mm512_loadu_ps(sink);
    /* Rounding keeps the order, so the largest product is that of the largest score. */
    const __m512 top = _mm512_max_ps(
        _mm512_mul_ps(largest_scores(entry_count, scores, score_stride), factor), sinks);
    __m512 sum = _mm512_setzero_ps();
    size_t n = 0;

    for (; n + ENTRIES_AT_ONCE <= entry_count; n += ENTRIES_AT_ONCE)
        sum = weigh_block(ENTRIES_AT_ONCE, scores + n * score_stride, score_stride, factor, top,
                          p + n, p_stride, sum);
    if (n < entry_count)
        sum = weigh_block(entry_count - n, scores + n * score_stride, score_stride, factor, top,
                          p + n, p_stride, sum);
    _mm512_storeu_ps(total, _mm512_add_ps(sum, exp16(_mm512_sub_ps(sinks, top))));
}

/* ---- indexer -----------------------------------------------------------------------------------
 */

#define BLOCKS_AT_ONCE 4u

/* The largest element of each of four vectors, in all of its four places. */
static ALWAYS_INLINE __m512 largest_of_four(const __m512 v[4])
{
    __m512 ab = _mm512_max_ps(_mm512_shuffle_f32x4(v[0], v[1], 0x44),
                              _mm512_shuffle_f32x4(v[0], v[1], 0xee));
    __m512 cd = _mm512_max_ps(_mm512_shuffle_f32x4(v[2], v[3], 0x44),
                              _mm512_shuffle_f32x4(v[2], v[3], 0xee));
    __m512 most =
        _mm512_max_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));

    most = _mm512_max_ps(most, _mm512_permute_ps(most, 0x4e));
    return _mm512_max_ps(most, _mm512_permute_ps(most, 0xb1));
}

/* sl_f32_to_e2m1() of 16 values of at most some 6 in magnitude: below 1 in steps of a half, above
 * with one bit behind the first. */
static ALWAYS_INLINE __m128i to_e2m1(__m512 value)
{
    const __m512 halves = _mm512_set1_ps(0x1p22f), one = _mm512_set1_ps(1.0f);
    __m512 magnitude = _mm512_abs_ps(value);
    __m512i bits = _mm512_castps_si512(magnitude);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 22), _mm512_set1_epi32(1));
    __m512i code = _mm512_add_epi32(
        bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x1fffff - (int)(UINT32_C(252) << 22))));

    code = _mm512_min_epi32(_mm512_srli_epi32(code, 22), _mm512_set1_epi32(7));
    code = _mm512_mask_sub_epi32(code, _mm512_cmp_ps_mask(magnitude, one, _CMP_LT_OQ),
                                 _mm512_castps_si512(_mm512_add_ps(magnitude, halves)),
                                 _mm512_castps_si512(halves));
    /* code | (bits >> 28 & 8): the sign */
    return _mm512_cvtepi32_epi8(_mm512_ternarylogic_epi32(
        code, _mm512_srli_epi32(_mm512_castps_si512(value), 28), _mm512_set1_epi32(8), 0xf8));
}

/* One to four blocks. */
static ALWAYS_INLINE void encode_blocks(size_t n, const float *x, uint8_t *codes,
                                        uint8_t *scale_bytes)
{
    const __m512 least = _mm512_set1_ps(0x6p-48f);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
    __m512 largest[BLOCKS_AT_ONCE], most, inverse;
    __m512i bits, exponent, bytes;
    __mmask16 is_there;
    float factors[4 * BLOCKS_AT_ONCE];

    for (size_t b = 0; b < BLOCKS_AT_ONCE; b++) {
        const float *block = x + b * SL_FP4_BLOCK_COLS;

        largest[b] = _mm512_setzero_ps();
        if (b < n)
            largest[b] = _mm512_max_ps(_mm512_abs_ps(_mm512_loadu_ps(block)),
                                       _mm512_abs_ps(_mm512_loadu_ps(block + ROWS)));
    }
    most = largest_of_four(largest);
    is_there = _mm512_cmp_ps_mask(most, least, _CMP_GE_OQ);
    bits =
        _mm512_castps_si512(_mm512_mul_ps(_mm512_max_ps(most, least), _mm512_set1_ps(1.0f / 6.0f)));
    /* sl_exponent_ceil(), biased as E8M0 has it */
    exponent = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fffff)), 23);
    bytes = _mm512_permutexvar_epi32(order, _mm512_maskz_mov_epi32(is_there, exponent));
    _mm_mask_storeu_epi8(scale_bytes, (__mmask16)((1u << n) - 1), _mm512_cvtepi32_epi8(bytes));
    inverse = _mm512_castsi512_ps(_mm512_maskz_slli_epi32(
        is_there, _mm512_sub_epi32(_mm512_set1_epi32(2 * 127), exponent), 23));
    _mm512_storeu_ps(factors, inverse);
    for (size_t b = 0; b < n; b++) {
        __m512 factor = _mm512_set1_ps(factors[4 * b]);

        for (size_t i = b * SL_FP4_BLOCK_COLS; i < (b + 1) * SL_FP4_BLOCK_COLS; i += ROWS)
            _mm_storeu_si128((__m128i *)(void *)(codes + i),
                             to_e2m1(_mm512_mul_ps(_mm512_loadu_ps(x + i), factor)));
    }
}

void sl_index_encode_avx512(size_t count, const float *restrict x, uint8_t *restrict codes,
                            uint8_t *restrict scale_bytes)
{
    size_t b = 0, n_blocks = count / SL_FP4_BLOCK_COLS;

    for (; b + BLOCKS_AT_ONCE <= n_blocks; b += BLOCKS_AT_ONCE)
        encode_blocks(BLOCKS_AT_ONCE, x + b * SL_FP4_BLOCK_COLS, codes + b * SL_FP4_BLOCK_COLS,
                      scale_bytes + b);
    if (b < n_blocks)
        encode_blocks(n_blocks - b, x + b * SL_FP4_BLOCK_COLS, codes + b * SL_FP4_BLOCK_COLS,
                      scale_bytes + b);
}

size_t sl_find_scores_avx512(size_t count, const float *restrict scores, float floor,
                             size_t found_max, uint32_t *restrict places, float *restrict found)
{
    const __m512i least = _mm512_set1_epi32(sl_f32_order(floor));
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    size_t n = 0;

    for (size_t first = 0; first < count && n < found_max; first += ROWS) {
        const size_t left = count - first, room = found_max - n;
        const __mmask16 there = (__mmask16)(left < ROWS ? (1u << left) - 1 : 0xffffu);
        const __m512i bits = _mm512_maskz_loadu_epi32(there, scores + first);
        /* bits ^ (bits >> 31 & magnitude) */
        const __m512i order =
            _mm512_ternarylogic_epi32(bits, _mm512_srai_epi32(bits, 31), magnitude, 0x78);
        const __mmask16 high = _mm512_mask_cmpge_epi32_mask(there, order, least);
        const size_t n_high = (size_t)__builtin_popcount(high),
                     n_new = n_high < room ? n_high : room;
        const __mmask16 written = (__mmask16)((1u << n_new) - 1);

        if (!high)
            continue;
        /* Compressing straight to memory is slow on some processors. */
        _mm512_mask_storeu_epi32(places + n, written,
                                 _mm512_maskz_compress_epi32(
                                     high, _mm512_add_epi32(lanes, _mm512_set1_epi32((int)first))));
        _mm512_mask_storeu_epi32(found + n, written, _mm512_maskz_compress_epi32(high, bits));
        n += n_new;
    }
    return n;
}
