/* Helpers that the NEON files share. */
#ifndef SL_KERNELS_NEON_LANES_H
#define SL_KERNELS_NEON_LANES_H

#ifdef __ARM_NEON /* elsewhere there is nothing to share */

#include <arm_neon.h>

#include "core/kernels/r16.h"

#define ROWS SL_R16_ROWS
#define ALWAYS_INLINE inline __attribute__((always_inline))

/* Eight e4m3 codes, each in the upper half of a word (the lower is ignored), as float16 numbers
 * 2^-8 times as large: sign, exponent and mantissa only move. What is subnormal stays so. */
static ALWAYS_INLINE float16x8_t fp8_to_f16(int16x8_t words)
{
    int16x8_t bits = vandq_s16(vshrq_n_s16(words, 1), vdupq_n_s16((int16_t)0xbf80));

    return vreinterpretq_f16_s16(bits);
}

#endif

#endif
