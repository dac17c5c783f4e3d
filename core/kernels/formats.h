/* The number formats of the model, one value at a time: BF16, FP8 e4m3, FP4 e2m1, E8M0.
 *
 * All conversions round to nearest, ties to even. They are exact integer and power-of-two
 * arithmetic, the same bits on every machine. */
#ifndef SL_KERNELS_FORMATS_H
#define SL_KERNELS_FORMATS_H

#include <stdint.h>
#include <string.h>

/* E8M0 scale bytes: 2^(byte - 127); 255 is NaN. Weights whose scale is larger than
 * 2^SL_SCALE_EXPONENT_MAX are corrupt, and values below 2^SL_TINY_EXPONENT count as zero
 * (docs/NUMERICS.md, "Tiny operands"). */
#define SL_E8M0_BIAS 127u
#define SL_SCALE_EXPONENT_MAX 60
#define SL_TINY_EXPONENT (-48)

/* Where scales are float32 with any mantissa, those below this power of two count as zero: then no
 * sum of blocks can be subnormal either, of which every bit may count. */
#define SL_F32_SCALE_EXPONENT_MIN (-32)

static inline uint32_t sl_f32_bits(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static inline float sl_f32_from_bits(uint32_t bits)
{
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* An integer for each float, in the floats' order; -0 is below +0. */
static inline int32_t sl_f32_order(float value)
{
    int32_t bits = (int32_t)sl_f32_bits(value);

    return bits ^ (bits >> 31 & 0x7fffffff);
}

/* 2^exponent, -126 <= exponent <= 127. */
static inline float sl_exp2i(int exponent)
{
    return sl_f32_from_bits((uint32_t)(exponent + 127) << 23);
}

/* The smallest e with 2^e >= value, for a normal value > 0. */
static inline int sl_exponent_ceil(float value)
{
    uint32_t bits = sl_f32_bits(value);

    return (int)(bits >> 23) - 127 + ((bits & 0x7fffffu) != 0);
}

static inline float sl_f32_drop_tiny(float value)
{
    uint32_t bits = sl_f32_bits(value);

    return (bits & 0x7fffffffu) < (uint32_t)(127 + SL_TINY_EXPONENT) << 23 ? 0.0f : value;
}

static inline float sl_bf16_to_f32(uint16_t code)
{
    return sl_f32_from_bits((uint32_t)code << 16);
}

static inline uint16_t sl_bf16_drop_tiny(uint16_t code)
{
    return (code & 0x7fffu) < (uint16_t)(127 + SL_TINY_EXPONENT) << 7 ? 0 : code;
}

/* `value` is finite. */
static inline uint16_t sl_f32_to_bf16(float value)
{
    uint32_t bits = sl_f32_bits(value);

    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

/* Exact; the two NaN codes give +-480. */
static inline float sl_e4m3_to_f32(uint32_t code)
{
    uint32_t magnitude = code & 0x7fu;
    float value = magnitude < 8 ? (float)(int32_t)magnitude * 0x1p-9f
                                : sl_f32_from_bits((magnitude << 20) + (UINT32_C(120) << 23));

    return sl_f32_from_bits(sl_f32_bits(value) | (code & 0x80u) << 24);
}

/* |value| <= 448 after rounding is the caller's duty (blocks are scaled so); larger ones saturate.
 */
static inline uint8_t sl_f32_to_e4m3(float value)
{
    uint32_t bits = sl_f32_bits(value), sign = bits >> 24 & 0x80u;
    uint32_t magnitude = bits & 0x7fffffffu, code;
    float absolute = sl_f32_from_bits(magnitude);

    if (absolute < 0x1p-6f) /* subnormal in e4m3: steps of 2^-9; adding 2^14 rounds to a step */
        code = sl_f32_bits(absolute + 0x1p14f) - sl_f32_bits(0x1p14f);
    else
        code = (magnitude + 0x7ffffu + (magnitude >> 20 & 1)) >> 20, code -= 120u << 3;
    return (uint8_t)((code > 0x7eu ? 0x7eu : code) | sign);
}

/* The smallest e4m3 magnitude (0..127) that is at least 2^exponent; 127 if there is none. */
static inline uint8_t sl_e4m3_magnitude_floor(int exponent)
{
    if (exponent <= -9)
        return 1;
    if (exponent < -6)
        return (uint8_t)(1u << (exponent + 9));
    return exponent > 8 ? 127 : (uint8_t)((exponent + 7) << 3);
}

/* Twice the value, an integer: 0, 1, 2, 3, 4, 6, 8, 12 and their negatives. */
static inline int sl_e2m1_twice(uint8_t code)
{
    int magnitude = code & 7;
    int twice = magnitude + (magnitude > 4 ? magnitude - 4 : 0) + (magnitude > 6 ? 2 : 0);

    return code & 8 ? -twice : twice;
}

static inline uint8_t sl_f32_to_e2m1(float value)
{
    uint32_t bits = sl_f32_bits(value);
    float m = sl_f32_from_bits(bits & 0x7fffffffu);
    uint8_t code = (uint8_t)((m > 0.25f) + (m >= 0.75f) + (m > 1.25f) + (m >= 1.75f) + (m > 2.5f) +
                             (m >= 3.5f) + (m > 5.0f));

    return (uint8_t)(code | (bits >> 28 & 8u));
}

#endif
