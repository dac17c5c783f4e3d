/* KV entries, softmax and the indexer's rounding with NEON, operation for operation as the plain C
 * has them (core/kernels/attention_isa.c): multiplications and additions stay two roundings. */
#include "kernels-neon/neon.h"

#include <string.h>

#include "core/kernels/scalar_math.h"
#include "kernels-neon/lanes.h"

/* ---- KV entries --------------------------------------------------------------------------------
 */

#define KV_BLOCK 64u

/* Eight codes in the upper halves of words, times a scale 2^8 times as large. The products have
 * few enough bits that the upper half of each is all of it. */
static ALWAYS_INLINE uint16x8_t decode8(int16x8_t words, float scale)
{
    float16x8_t small = fp8_to_f16(words);
    float32x4_t low = vmulq_n_f32(vcvt_f32_f16(vget_low_f16(small)), scale);
    float32x4_t high = vmulq_n_f32(vcvt_high_f32_f16(small), scale);

    return vuzp2q_u16(vreinterpretq_u16_f32(low), vreinterpretq_u16_f32(high));
}

void sl_kv_decode_neon(size_t fp8_count, size_t bf16_count, const uint8_t *restrict entry,
                       uint16_t *restrict y)
{
    const uint8_t *scale_bytes = entry + fp8_count, *rest = scale_bytes + fp8_count / KV_BLOCK;

    for (size_t b = 0; b < fp8_count / KV_BLOCK; b++) {
        float scale = sl_exp2i((int)scale_bytes[b] - (int)SL_E8M0_BIAS + 8);

        for (size_t i = b * KV_BLOCK; i < (b + 1) * KV_BLOCK; i += 16) {
            uint8x16_t codes = vld1q_u8(entry + i), zero = vdupq_n_u8(0);

            vst1q_u16(y + i, decode8(vreinterpretq_s16_u8(vzip1q_u8(zero, codes)), scale));
            vst1q_u16(y + i + 8, decode8(vreinterpretq_s16_u8(vzip2q_u8(zero, codes)), scale));
        }
    }
    memcpy(y + fp8_count, rest, bf16_count * sizeof(*y));
}

/* ---- softmax -----------------------------------------------------------------------------------
 */

#define VECTORS (ROWS / 4)
#define ENTRIES_AT_ONCE 8u

/* sl_expf() of four values that are not above 88. Powers of two are added to the exponent: results
 * that are not zero are normal. */
static ALWAYS_INLINE float32x4_t exp4(float32x4_t x)
{
    const float32x4_t magic = vdupq_n_f32(SL_ROUND_MAGIC), low = vdupq_n_f32(-87.0f);
    float32x4_t clamped = vmaxq_f32(x, low);
    float32x4_t shifted = vaddq_f32(vmulq_n_f32(clamped, 1.44269504f), magic);
    float32x4_t n = vsubq_f32(shifted, magic), r, p;
    uint32x4_t bits;

    r = vsubq_f32(clamped, vmulq_n_f32(n, 0.693359375f));
    r = vsubq_f32(r, vmulq_n_f32(n, -2.12194440e-4f));
    p = vdupq_n_f32(1.0f / 720);
    p = vaddq_f32(vmulq_f32(p, r), vdupq_n_f32(1.0f / 120));
    p = vaddq_f32(vmulq_f32(p, r), vdupq_n_f32(1.0f / 24));
    p = vaddq_f32(vmulq_f32(p, r), vdupq_n_f32(1.0f / 6));
    p = vaddq_f32(vmulq_f32(p, r), vdupq_n_f32(0.5f));
    p = vaddq_f32(vmulq_f32(p, vmulq_f32(r, r)), r);
    p = vaddq_f32(p, vdupq_n_f32(1.0f));
    bits = vaddq_u32(vreinterpretq_u32_f32(p), vshlq_n_u32(vreinterpretq_u32_f32(shifted), 23));
    return vreinterpretq_f32_u32(vandq_u32(bits, vcgeq_f32(x, low)));
}

/* Rounds to BF16, nearest even, which are the upper halves. */
static ALWAYS_INLINE uint32x4_t round_up_halves(float32x4_t value)
{
    uint32x4_t bits = vreinterpretq_u32_f32(value);
    uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));

    return vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
}

/* Eight numbers that are not negative as BF16, tiny ones as zero. */
static ALWAYS_INLINE uint16x8_t to_bf16(float32x4_t low, float32x4_t high)
{
    const uint16x8_t tiny = vdupq_n_u16((127 + SL_TINY_EXPONENT) << 7);
    uint16x8_t codes =
        vshrn_high_n_u32(vshrn_n_u32(round_up_halves(low), 16), round_up_halves(high), 16);

    return vandq_u16(codes, vcgeq_u16(codes, tiny));
}

#define TWOS(zip, a, b)                                                                            \
    vreinterpretq_u16_u32(zip##q_u32(vreinterpretq_u32_u16(a), vreinterpretq_u32_u16(b)))
#define FOURS(zip, a, b)                                                                           \
    vreinterpretq_u16_u64(zip##q_u64(vreinterpretq_u64_u16(a), vreinterpretq_u64_u16(b)))

/* Rows become columns. */
static ALWAYS_INLINE void transpose8(uint16x8_t v[8])
{
    uint16x8_t a[8], b[8];

    for (size_t i = 0; i < 8; i += 2) {
        a[i] = vtrn1q_u16(v[i], v[i + 1]);
        a[i + 1] = vtrn2q_u16(v[i], v[i + 1]);
    }
    for (size_t i = 0; i < 8; i += 4) { /* b[i + c]: columns c and 4 + c of four rows */
        for (size_t c = 0; c < 2; c++) {
            b[i + c] = TWOS(vtrn1, a[i + c], a[i + c + 2]);
            b[i + c + 2] = TWOS(vtrn2, a[i + c], a[i + c + 2]);
        }
    }
    for (size_t i = 0; i < 4; i++) {
        v[i] = FOURS(vtrn1, b[i], b[i + 4]);
        v[i + 4] = FOURS(vtrn2, b[i], b[i + 4]);
    }
}

/* Weights of n entries, eight at most, of 16 heads. */
static ALWAYS_INLINE void weigh_block(size_t n, const float *scores, size_t stride, float scale,
                                      const float32x4_t top[VECTORS], uint16_t *p, size_t p_stride,
                                      float32x4_t sum[VECTORS])
{
    uint16x8_t codes[2][ENTRIES_AT_ONCE]; /* of eight heads each */

    for (size_t i = 0; i < ENTRIES_AT_ONCE; i++) {
        float32x4_t e[VECTORS];

        for (size_t v = 0; v < VECTORS; v++) {
            e[v] = vdupq_n_f32(0);
            if (i >= n)
                continue;
            e[v] = vmulq_n_f32(vld1q_f32(scores + i * stride + v * 4), scale);
            e[v] = exp4(vsubq_f32(e[v], top[v]));
            sum[v] = vaddq_f32(sum[v], e[v]);
        }
        codes[0][i] = to_bf16(e[0], e[1]);
        codes[1][i] = to_bf16(e[2], e[3]);
    }
    for (size_t half = 0; half < 2; half++) {
        transpose8(codes[half]);
        for (size_t h = 0; h < 8; h++, p += p_stride) {
            if (n == ENTRIES_AT_ONCE)
                vst1q_u16(p, codes[half][h]);
            else
                memcpy(p, &codes[half][h], n * sizeof(*p));
        }
    }
}

void sl_attend_softmax_neon(size_t entry_count, const float *restrict scores, size_t score_stride,
                            float scale, const float *restrict sink, uint16_t *restrict p,
                            size_t p_stride, float *restrict total)
{
    float32x4_t top[VECTORS], sum[VECTORS];
    size_t n = 0;

    for (size_t v = 0; v < VECTORS; v++) {
        top[v] = vld1q_f32(scores + v * 4);
        sum[v] = vdupq_n_f32(0);
    }
    for (size_t i = 1; i < entry_count; i++)
        for (size_t v = 0; v < VECTORS; v++)
            top[v] = vmaxq_f32(top[v], vld1q_f32(scores + i * score_stride + v * 4));
    for (size_t v = 0; v < VECTORS; v++) /* rounding keeps the order */
        top[v] = vmaxq_f32(vmulq_n_f32(top[v], scale), vld1q_f32(sink + v * 4));
    for (; n + ENTRIES_AT_ONCE <= entry_count; n += ENTRIES_AT_ONCE)
        weigh_block(ENTRIES_AT_ONCE, scores + n * score_stride, score_stride, scale, top, p + n,
                    p_stride, sum);
    if (n < entry_count)
        weigh_block(entry_count - n, scores + n * score_stride, score_stride, scale, top, p + n,
                    p_stride, sum);
    for (size_t v = 0; v < VECTORS; v++)
        vst1q_f32(total + v * 4,
                  vaddq_f32(sum[v], exp4(vsubq_f32(vld1q_f32(sink + v * 4), top[v]))));
}

/* ---- indexer -----------------------------------------------------------------------------------
 */

/* sl_f32_to_e2m1() of four values of at most some 6 in magnitude: below 1 in steps of a half, above
 * with one bit behind the first. */
static ALWAYS_INLINE uint32x4_t to_e2m1(float32x4_t value)
{
    const float32x4_t halves = vdupq_n_f32(0x1p22f);
    float32x4_t magnitude = vabsq_f32(value);
    uint32x4_t bits = vreinterpretq_u32_f32(magnitude);
    uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 22), vdupq_n_u32(1));
    uint32x4_t large =
        vaddq_u32(vaddq_u32(bits, odd), vdupq_n_u32(0x1fffff - (UINT32_C(252) << 22)));
    uint32x4_t small = vsubq_u32(vreinterpretq_u32_f32(vaddq_f32(magnitude, halves)),
                                 vreinterpretq_u32_f32(halves));
    uint32x4_t code = vbslq_u32(vcltq_f32(magnitude, vdupq_n_f32(1.0f)), small,
                                vminq_u32(vshrq_n_u32(large, 22), vdupq_n_u32(7)));
    uint32x4_t sign = vshrq_n_u32(vreinterpretq_u32_f32(value), 28);

    return vbslq_u32(vdupq_n_u32(8), sign, code);
}

void sl_index_encode_neon(size_t count, const float *restrict x, uint8_t *restrict codes,
                          uint8_t *restrict scale_bytes)
{
    for (size_t b = 0; b < count / SL_FP4_BLOCK_COLS; b++, x += SL_FP4_BLOCK_COLS) {
        float32x4_t most = vdupq_n_f32(0);
        float amax, inverse;
        int exponent;

        for (size_t i = 0; i < SL_FP4_BLOCK_COLS; i += 4)
            most = vmaxq_f32(most, vabsq_f32(vld1q_f32(x + i)));
        amax = vmaxvq_f32(most);
        exponent = sl_exponent_ceil((amax > 0x6p-48f ? amax : 0x6p-48f) * (1.0f / 6.0f));
        inverse = amax < 0x6p-48f ? 0.0f : sl_exp2i(-exponent);
        scale_bytes[b] = amax < 0x6p-48f ? 0 : (uint8_t)(exponent + (int)SL_E8M0_BIAS);
        for (size_t i = 0; i < SL_FP4_BLOCK_COLS; i += 16, codes += 16) {
            uint32x4_t code[4];

            for (size_t v = 0; v < 4; v++)
                code[v] = to_e2m1(vmulq_n_f32(vld1q_f32(x + i + v * 4), inverse));
            /* The lowest byte of each: of two words, and then of two of those. */
            vst1q_u8(codes,
                     vuzp1q_u8(vreinterpretq_u8_u16(vuzp1q_u16(vreinterpretq_u16_u32(code[0]),
                                                               vreinterpretq_u16_u32(code[1]))),
                               vreinterpretq_u8_u16(vuzp1q_u16(vreinterpretq_u16_u32(code[2]),
                                                               vreinterpretq_u16_u32(code[3])))));
        }
    }
}
