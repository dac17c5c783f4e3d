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

    for (size_t g = 0; g < cols / SL_FP4_GROUP_COLS; g++, x += SL_FP4_GROUP_COLS) {
        /* A NaN is the first operand's and so never the result, as in the reference. */
        __m512 most[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};

        for (size_t i = 0; i < SL_FP4_GROUP_COLS; i += 16)
            most[i / 16 % 2] = _mm512_max_ps(magnitude16(x + i), most[i / 16 % 2]);
        float amax = _mm512_reduce_max_ps(_mm512_max_ps(most[0], most[1]));
        bool is_zero = amax < SL_QUANTISE_AMAX_MIN;
        __m512 inverse = _mm512_set1_ps(is_zero ? 0.0f : 127.0f / amax);

        scale[g] = is_zero ? 0.0f : amax / 127.0f;
        for (size_t i = 0; i < SL_FP4_GROUP_COLS; i += 16, q += 16)
            _mm_storeu_si128((__m128i *)(void *)q,
                             _mm_shuffle_epi8(quantise16(x + i, inverse), order));
    }
}
