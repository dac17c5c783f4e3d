/* exp, log and the rest for one value: ours, so that they give the same bits everywhere.
 *
 * Only IEEE additions, multiplications, divisions and square roots, in a fixed order, without
 * contraction; no branches, so that loops over them vectorise. Float versions are good to about two
 * units in the last place, which is far below what the formats around them keep. */
#ifndef SL_KERNELS_SCALAR_MATH_H
#define SL_KERNELS_SCALAR_MATH_H

#include "core/kernels/formats.h"

/* Adding and subtracting this rounds a float of less than 2^22 to an integer, ties to even. */
#define SL_ROUND_MAGIC 12582912.0f /* 1.5 * 2^23 */

/* Saturates above 88; 0 below -87. */
static inline float sl_expf(float x)
{
    float clamped = x > 88.0f ? 88.0f : x < -87.0f ? -87.0f : x;
    float shifted = clamped * 1.44269504f + SL_ROUND_MAGIC; /* its low bits: the exponent */
    float n = shifted - SL_ROUND_MAGIC;
    /* ln 2 in two parts, the first with few enough bits that n times it is exact */
    float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.0f / 720;

    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * (r * r) + r;
    p = p + 1.0f;
    p *= sl_f32_from_bits((sl_f32_bits(shifted) - sl_f32_bits(SL_ROUND_MAGIC) + 127u) << 23);
    return x < -87.0f ? 0.0f : p;
}

static inline float sl_sigmoidf(float x)
{
    return 1.0f / (1.0f + sl_expf(-x));
}

/* log(1 + exp(x)) = max(x, 0) + log1p(u) with u = exp(-|x|), and log1p(u) = 2 atanh(u / (2 + u)),
 * whose series in z^2 <= 1/9 is cut where it falls below float's precision. */
static inline float sl_softplusf(float x)
{
    float u = sl_expf(x < 0 ? x : -x);
    float z = u / (2.0f + u), zz = z * z;
    float p = 2.0f / 17;

    p = p * zz + 2.0f / 15;
    p = p * zz + 2.0f / 13;
    p = p * zz + 2.0f / 11;
    p = p * zz + 2.0f / 9;
    p = p * zz + 2.0f / 7;
    p = p * zz + 2.0f / 5;
    p = p * zz + 2.0f / 3;
    p = p * zz + 2.0f;
    return (x > 0 ? x : 0.0f) + p * z;
}

#endif
