/* Kernels on rows of activations and scores with AVX-512, operation for operation as the plain C
 * has them: multiplications and additions stay two roundings. */
#include "kernels-avx512/avx512.h"

#include "core/kernels/scalar_math.h"
#include "kernels-avx512/vectors.h"

static ALWAYS_INLINE __m512 magnitude16(const float *x)
{
    return _mm512_abs_ps(_mm512_loadu_ps(x));
}

/* x * inverse, rounded to integers: 16 bytes. */
static ALWAYS_INLINE __m128i quantise16(const float *x, __m512 inverse)
{
    const __m512 magic = _mm512_set1_ps(SL_ROUND_MAGIC);
    __m512 rounded = _mm512_add_ps(_mm512_mul_ps(_mm512_loadu_ps(x), inverse), magic);

    return _mm512_cvtepi32_epi8(
        _mm512_sub_epi32(_mm512_castps_si512(rounded), _mm512_castps_si512(magic)));
}

void sl_quantise_int8_avx512(size_t cols, const float *restrict x, int8_t *restrict q,
                             float *restrict scale)
{
    /* Each eight has its even ones first. */
    const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);

    for (size_t b = 0; b < cols / SL_FP4_BLOCK_COLS; b++, x += 32, q += 32) {
        /* A NaN is the first operand's and so never the result, as in the reference. */
        __m512 largest = _mm512_max_ps(magnitude16(x), _mm512_setzero_ps());
        float amax = _mm512_reduce_max_ps(_mm512_max_ps(magnitude16(x + 16), largest));
        bool is_zero = amax < SL_QUANTISE_AMAX_MIN;
        __m512 inverse = _mm512_set1_ps(is_zero ? 0.0f : 127.0f / amax);

        scale[b] = is_zero ? 0.0f : amax / 127.0f;
        for (size_t i = 0; i < 32; i += 16)
            _mm_storeu_si128((__m128i *)(void *)(q + i),
                             _mm_shuffle_epi8(quantise16(x + i, inverse), order));
    }
}

/* sl_expf() of 16 values. */
static ALWAYS_INLINE __m512 exp16(__m512 x)
{
    const __m512 magic = _mm512_set1_ps(SL_ROUND_MAGIC), low = _mm512_set1_ps(-87.0f);
    const __m512 high = _mm512_set1_ps(88.0f);
    const __mmask16 is_low = _mm512_cmp_ps_mask(x, low, _CMP_LT_OQ);
    __m512 clamped = _mm512_mask_mov_ps(x, is_low, low);
    __m512 shifted, n, r, p;
    __m512i power;

    clamped = _mm512_mask_mov_ps(clamped, _mm512_cmp_ps_mask(x, high, _CMP_GT_OQ), high);
    shifted = _mm512_add_ps(_mm512_mul_ps(clamped, _mm512_set1_ps(1.44269504f)), magic);
    n = _mm512_sub_ps(shifted, magic);
    r = _mm512_sub_ps(clamped, _mm512_mul_ps(n, _mm512_set1_ps(0.693359375f)));
    r = _mm512_sub_ps(r, _mm512_mul_ps(n, _mm512_set1_ps(-2.12194440e-4f)));
    p = _mm512_set1_ps(1.0f / 720);
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(1.0f / 120));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(1.0f / 24));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(1.0f / 6));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(0.5f));
    p = _mm512_add_ps(_mm512_mul_ps(p, _mm512_mul_ps(r, r)), r);
    p = _mm512_add_ps(p, _mm512_set1_ps(1.0f));
    power = _mm512_sub_epi32(_mm512_castps_si512(shifted), _mm512_castps_si512(magic));
    power = _mm512_slli_epi32(_mm512_add_epi32(power, _mm512_set1_epi32(127)), 23);
    p = _mm512_mul_ps(p, _mm512_castsi512_ps(power));
    return _mm512_mask_mov_ps(p, is_low, _mm512_setzero_ps());
}

/* To BF16, nearest even, tiny magnitudes to zero. */
static ALWAYS_INLINE __m256i round_bf16(__m512 value)
{
    const uint16_t tiny = (uint16_t)((127 + SL_TINY_EXPONENT) << 7);
    __m512i bits = _mm512_castps_si512(value);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m256i code;

    bits = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    code = _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16));
    return _mm256_maskz_mov_epi16(
        _mm256_cmpge_epu16_mask(_mm256_and_si256(code, _mm256_set1_epi16(0x7fff)),
                                _mm256_set1_epi16((short)tiny)),
        code);
}

void sl_attend_softmax_avx512(size_t entry_count, const float *restrict scores, size_t score_stride,
                              float scale, const float *restrict sink, uint16_t *restrict p,
                              size_t p_stride, float *restrict total)
{
    const __m512 factor = _mm512_set1_ps(scale), sinks = _mm512_loadu_ps(sink);
    __m512 top = sinks, sum = _mm512_setzero_ps();
    uint16_t block[ROWS][ROWS]; /* (entries, heads); then turned round */

    for (size_t n = 0; n < entry_count; n++)
        top = _mm512_max_ps(_mm512_mul_ps(_mm512_loadu_ps(scores + n * score_stride), factor), top);
    for (size_t first = 0; first < entry_count; first += ROWS, p += ROWS) {
        size_t n_block = entry_count - first < ROWS ? entry_count - first : ROWS;

        for (size_t n = 0; n < n_block; n++) {
            __m512 score = _mm512_loadu_ps(scores + (first + n) * score_stride);
            __m512 e = exp16(_mm512_sub_ps(_mm512_mul_ps(score, factor), top));

            sum = _mm512_add_ps(sum, e);
            _mm256_storeu_si256((__m256i *)(void *)block[n], round_bf16(e));
        }
        for (size_t h = 0; h < ROWS; h++)
            for (size_t n = 0; n < n_block; n++)
                p[h * p_stride + n] = block[n][h];
    }
    _mm512_storeu_ps(total, _mm512_add_ps(sum, exp16(_mm512_sub_ps(sinks, top))));
}
