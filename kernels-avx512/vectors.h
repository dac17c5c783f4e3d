/* Helpers that the AVX-512 files share. For files compiled for AVX-512 alone. */
#ifndef SL_KERNELS_AVX512_VECTORS_H
#define SL_KERNELS_AVX512_VECTORS_H

#ifdef __AVX512F__ /* elsewhere there is nothing to share */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "core/kernels/r16.h"

#define ROWS SL_R16_ROWS
#define ALWAYS_INLINE inline __attribute__((always_inline))

/* Four bytes, sixteen times. */
static ALWAYS_INLINE __m512i broadcast4(const void *bytes)
{
    int32_t word;

    memcpy(&word, bytes, sizeof(word));
    return _mm512_set1_epi32(word);
}

/* memcpy() for rows of a few vectors, in place. */
static inline void copy_row(void *to, const void *from, size_t size_bytes)
{
    size_t i = 0;

    for (; i + 64 <= size_bytes; i += 64)
        _mm512_storeu_si512((char *)to + i, _mm512_loadu_si512((const char *)from + i));
    if (i < size_bytes)
        memcpy((char *)to + i, (const char *)from + i, size_bytes - i);
}

/* y[t][row] = 0 for the rows of tile_count tiles. */
static inline void clear_rows(size_t n_tokens, size_t tile_count, float *y, size_t y_stride)
{
    for (size_t t = 0; t < n_tokens; t++)
        for (size_t i = 0; i < tile_count * ROWS; i += ROWS)
            _mm512_storeu_ps(y + t * y_stride + i, _mm512_setzero_ps());
}

#endif

#endif
