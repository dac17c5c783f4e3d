/* The decoder of FP8 weights to BF16, for files that are compiled for AVX-512 with VBMI. */
#ifndef SL_KERNELS_AVX512_FP8_DECODER_H
#define SL_KERNELS_AVX512_FP8_DECODER_H

#ifdef __AVX512VBMI__ /* elsewhere there is nothing to decode with */

#include "core/kernels/formats.h"
#include "kernels-avx512/vectors.h"

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

/* 64 codes to 64 numbers. `order` has the place of the code of each: by quarters, of which the
 * first halves come to lie in ret_numbers[0] and the second in ret_numbers[1], since low and high
 * bytes are interleaved by halves of quarters. */
static ALWAYS_INLINE void fp8_decode(struct fp8_decoder decoder, __m512i order,
                                     const uint8_t *codes, __m512i ret_numbers[2])
{
    __m512i code = _mm512_permutexvar_epi8(order, _mm512_loadu_si512(codes));
    __m512i low = _mm512_permutex2var_epi8(decoder.low[0], code, decoder.low[1]);
    __m512i high = _mm512_permutex2var_epi8(decoder.high[0], code, decoder.high[1]);

    /* high | (code & 0x80): the sign */
    high = _mm512_ternarylogic_epi32(high, code, _mm512_set1_epi8((char)0x80), 0xf8);
    ret_numbers[0] = _mm512_unpacklo_epi8(low, high);
    ret_numbers[1] = _mm512_unpackhi_epi8(low, high);
}

#endif

#endif
