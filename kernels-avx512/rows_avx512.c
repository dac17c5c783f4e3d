/* Activations to int8 with AVX-512, operation for operation as the plain C has it: multiplications
 * and additions stay two roundings. */
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
