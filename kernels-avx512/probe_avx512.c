/* Probes of the dot products that the linears use: as many independent sums as keep the units busy,
 * and nothing else. */
#include "kernels-avx512/avx512.h"

#include <immintrin.h>

#define CHAINS 12

uint64_t sl_probe_int8_avx512vnni(size_t rounds, float *sum)
{
    const __m512i a = _mm512_set1_epi8((char)(1 + (int)*sum)), b = _mm512_set1_epi8(1);
    __m512i acc[CHAINS];

    for (int i = 0; i < CHAINS; i++)
        acc[i] = _mm512_set1_epi32(i);
    for (size_t round = 0; round < rounds; round++)
        for (int i = 0; i < CHAINS; i++)
            acc[i] = _mm512_dpbusd_epi32(acc[i], a, b);
    for (int i = 1; i < CHAINS; i++)
        acc[0] = _mm512_add_epi32(acc[0], acc[i]);
    *sum += (float)_mm512_reduce_add_epi32(acc[0]);
    return (uint64_t)rounds * CHAINS * 64;
}

uint64_t sl_probe_bf16_avx512bf16(size_t rounds, float *sum)
{
    const __m512i one = _mm512_set1_epi32(0x3f803f80); /* 1.0, 1.0 */
    const __m512i small = _mm512_set1_epi32(0x3a803a80 + (int)*sum);
    __m512 acc[CHAINS];

    for (int i = 0; i < CHAINS; i++)
        acc[i] = _mm512_set1_ps((float)i);
    for (size_t round = 0; round < rounds; round++)
        for (int i = 0; i < CHAINS; i++)
            acc[i] = _mm512_dpbf16_ps(acc[i], (__m512bh)one, (__m512bh)small);
    for (int i = 1; i < CHAINS; i++)
        acc[0] = _mm512_add_ps(acc[0], acc[i]);
    *sum += _mm512_reduce_add_ps(acc[0]);
    return (uint64_t)rounds * CHAINS * 32;
}

uint64_t sl_probe_f32_avx512(size_t rounds, float *sum)
{
    const __m512 factor = _mm512_set1_ps(*sum + 0.999f), addend = _mm512_set1_ps(*sum + 0.001f);
    __m512 acc[CHAINS];

    for (int i = 0; i < CHAINS; i++)
        acc[i] = _mm512_set1_ps((float)i);
    for (size_t round = 0; round < rounds; round++)
        for (int i = 0; i < CHAINS; i++)
            acc[i] = _mm512_fmadd_ps(acc[i], factor, addend);
    for (int i = 1; i < CHAINS; i++)
        acc[0] = _mm512_add_ps(acc[0], acc[i]);
    *sum += _mm512_reduce_add_ps(acc[0]);
    return (uint64_t)rounds * CHAINS * 16;
}
