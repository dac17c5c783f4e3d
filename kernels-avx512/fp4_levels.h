/* The decoder of FP4 weights to int8, for files that are compiled for AVX-512 with VBMI.
 *
 * Twice the value of a code is an integer of at most 12, and eight times that still is an int8. So
 * where scales differ by at most three powers of two, codes can take the difference: their level
 * above the least scale, which then is that of all. */
#ifndef SL_KERNELS_AVX512_FP4_LEVELS_H
#define SL_KERNELS_AVX512_FP4_LEVELS_H

#ifdef __AVX512VBMI__ /* elsewhere there is nothing to decode with */

#include <stdbool.h>

#include "core/kernels/formats.h"
#include "kernels-avx512/vectors.h"

#define FP4_BLOCKS (SL_FP4_GROUP_COLS / SL_FP4_BLOCK_COLS)
#define FP4_BLOCK_VECTORS 4u /* of codes: eight columns of 16 rows each */
#define FP4_LEVELS_MAX 3
#define FP4_LARGEST 96 /* 12 << FP4_LEVELS_MAX */

/* Codes of block b in a group of 128 columns. */
static ALWAYS_INLINE const uint8_t *fp4_block(const uint8_t *group, size_t b)
{
    return group + FP4_BLOCKS * ROWS + b * FP4_BLOCK_VECTORS * 64;
}

/* 16 E8M0 bytes, halved, as floats: values are doubled. */
static ALWAYS_INLINE __m512 fp4_half_scales(__m128i bytes)
{
    __m512i wide = _mm512_slli_epi32(_mm512_cvtepu8_epi32(bytes), 23);

    return _mm512_mul_ps(_mm512_castsi512_ps(wide), _mm512_set1_ps(0.5f));
}

static ALWAYS_INLINE __m128i fp4_load16(const uint8_t *bytes)
{
    return _mm_loadu_si128((const __m128i *)(const void *)bytes);
}

/* Twice the value of code c times 2^level, plus an offset, at 16 * level + c. */
static ALWAYS_INLINE __m512i fp4_table(int8_t offset)
{
    const __m512i twice = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12));
    const __m512i factor = _mm512_set_epi64(
        0x0008000800080008, 0x0008000800080008, 0x0004000400040004, 0x0004000400040004,
        0x0002000200020002, 0x0002000200020002, 0x0001000100010001, 0x0001000100010001);
    const __m512i low = _mm512_mullo_epi16(twice, factor);
    const __m512i high = _mm512_mullo_epi16(_mm512_srai_epi16(twice, 8), factor);
    const __m512i values =
        _mm512_mask_mov_epi8(low, 0xaaaaaaaaaaaaaaaa, _mm512_slli_epi16(high, 8));

    return _mm512_add_epi8(values, _mm512_set1_epi8(offset));
}

/* The levels of a group's scales. */
struct fp4_levels {
    __m512i levels; /* block after block, as tables have them */
    __m128i least;  /* of each row's four scales, or of all */
    bool even;      /* that all levels are in the tables */
};

/* The least, or the largest, of each row's four scales, four times over. */
static ALWAYS_INLINE __m512i fp4_least(__m512i scales)
{
    scales = _mm512_min_epu8(scales, _mm512_shuffle_i64x2(scales, scales, 0x4e));
    return _mm512_min_epu8(scales, _mm512_shuffle_i64x2(scales, scales, 0xb1));
}

static ALWAYS_INLINE __m512i fp4_most(__m512i scales)
{
    scales = _mm512_max_epu8(scales, _mm512_shuffle_i64x2(scales, scales, 0x4e));
    return _mm512_max_epu8(scales, _mm512_shuffle_i64x2(scales, scales, 0xb1));
}

/* least (64) is what the levels are above. */
static ALWAYS_INLINE struct fp4_levels fp4_levels_above(__m512i scales, __m512i least)
{
    const __m512i levels = _mm512_sub_epi8(scales, least);
    const __mmask64 far = _mm512_cmpgt_epu8_mask(levels, _mm512_set1_epi8(FP4_LEVELS_MAX));

    return (struct fp4_levels){_mm512_slli_epi16(levels, 4), _mm512_castsi512_si128(least),
                               far == 0};
}

static ALWAYS_INLINE struct fp4_levels fp4_levels_of(const uint8_t *group)
{
    const __m512i scales = _mm512_loadu_si512(group);

    return fp4_levels_above(scales, fp4_least(scales));
}

/* With one least scale for all rows. */
static ALWAYS_INLINE struct fp4_levels fp4_levels_of_all(const uint8_t *group)
{
    const __m512i scales = _mm512_loadu_si512(group);
    __m512i least = fp4_least(scales);

    least = _mm512_min_epu8(least, _mm512_alignr_epi8(least, least, 8));
    least = _mm512_min_epu8(least, _mm512_alignr_epi8(least, least, 4));
    least = _mm512_min_epu8(least, _mm512_alignr_epi8(least, least, 2));
    least = _mm512_min_epu8(least, _mm512_alignr_epi8(least, least, 1));
    return fp4_levels_above(scales, least);
}

/* Where a block's levels are in a group's, four columns of each row. */
static ALWAYS_INLINE __m512i fp4_block_levels(__m512i levels, size_t b)
{
    const __m512i four_each =
        _mm512_set_epi32(0x0f0f0f0f, 0x0e0e0e0e, 0x0d0d0d0d, 0x0c0c0c0c, 0x0b0b0b0b, 0x0a0a0a0a,
                         0x09090909, 0x08080808, 0x07070707, 0x06060606, 0x05050505, 0x04040404,
                         0x03030303, 0x02020202, 0x01010101, 0);

    return _mm512_permutexvar_epi8(_mm512_add_epi8(four_each, _mm512_set1_epi8((char)(b * ROWS))),
                                   levels);
}

/* Eight columns of 16 rows at their levels: the even ones, and the odd ones. */
static ALWAYS_INLINE void fp4_decode(__m512i table, __m512i level, __m512i codes, __m512i *ret_even,
                                     __m512i *ret_odd)
{
    const __m512i low = _mm512_set1_epi8(15);

    *ret_even = _mm512_permutexvar_epi8(_mm512_ternarylogic_epi32(codes, low, level, 0xea), table);
    *ret_odd = _mm512_permutexvar_epi8(
        _mm512_ternarylogic_epi32(_mm512_srli_epi16(codes, 4), low, level, 0xea), table);
}

#endif

#endif
