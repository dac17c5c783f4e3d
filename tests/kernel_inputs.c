#include "tests/kernel_inputs.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/kernels/formats.h"

#define PATTERN 0xa5
#define MARGIN_BYTES 256u
#define BLOCK 32u /* values of one kind in INPUT_MIXED */

uint64_t inputs_seed(void)
{
    const char *text = getenv("SL_SEED");

    return text ? strtoull(text, NULL, 0) : 20260422;
}

uint64_t rng_next(struct rng *rng)
{
    uint64_t z = rng->state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

size_t rng_below(struct rng *rng, size_t n)
{
    return (size_t)((rng_next(rng) >> 32) * n >> 32);
}

const char *input_kind_name(enum input_kind kind)
{
    static const char *const names[INPUT_KINDS] = {"plain", "wide", "tiny", "large",
                                                   "ties",  "zero", "mixed"};

    return names[kind];
}

double value_of_bf16(uint32_t code)
{
    int exponent = (int)(code >> 7 & 255);
    double value = exponent ? ldexp(128 + (code & 127), exponent - 134) : ldexp(code & 127, -133);

    return code & 0x8000 ? -value : value;
}

double value_of_e4m3(uint32_t code)
{
    int exponent = (int)(code >> 3 & 15);
    double value = exponent ? ldexp(8 + (code & 7), exponent - 10) : ldexp(code & 7, -9);

    return code & 0x80 ? -value : value;
}

double value_of_e2m1(uint32_t code)
{
    static const double magnitudes[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};

    return code & 8 ? -magnitudes[code & 7] : magnitudes[code & 7];
}

static float with_random_sign(struct rng *rng, float value)
{
    return rng_next(rng) & 1 ? -value : value;
}

static const float tiny_borders[] = {0x1p-48f, 0x6p-48f, 0x1p-40f, 0x1p-41f, 0x1p-126f};
#define N_TINY_BORDERS (sizeof(tiny_borders) / sizeof(tiny_borders[0]))

/* At a border, or a step of float32 or half a step of BF16 from it: 2^-48 is one for rounded values
 * too. */
static float near_border(struct rng *rng)
{
    uint32_t bits = sl_f32_bits(tiny_borders[rng_below(rng, N_TINY_BORDERS)]);
    uint32_t steps = (uint32_t)rng_below(rng, 3) - 1;

    return sl_f32_from_bits(bits + steps * (rng_next(rng) & 1 ? 0x8000u : 1u));
}

static float tiny_float(struct rng *rng)
{
    uint32_t mantissa = (uint32_t)rng_below(rng, 1u << 23);

    switch (rng_below(rng, 4)) {
    case 0: /* subnormal */
        return sl_f32_from_bits(mantissa);
    case 1: /* 2^-52 to 2^-37 */
        return sl_f32_from_bits((uint32_t)(127 - 52 + rng_below(rng, 15)) << 23 | mantissa);
    default:
        return near_border(rng);
    }
}

/* Most blocks have their largest magnitude at a border. Bits are compared, since the lesser of two
 * floats is zero on some processors where subnormals are flushed, and a subnormal on others. */
static void fill_tiny(struct rng *rng, size_t count, float *x)
{
    const uint32_t most = sl_f32_bits(rng_below(rng, 4) ? near_border(rng) : 1.0f);

    for (size_t i = 0; i < count; i++) {
        const uint32_t bits = sl_f32_bits(tiny_float(rng));

        x[i] = with_random_sign(rng, sl_f32_from_bits(bits < most ? bits : most));
    }
}

/* Small multiples of a power of two. Either the largest is 127 of them, so that int8 blocks have
 * halves, or some have nine bits, which is one more than BF16 keeps; FP8 and FP4 keep fewer. */
static void fill_ties(struct rng *rng, int exponent_max, size_t count, float *x)
{
    bool is_int8 = rng_next(rng) & 1;
    size_t most = is_int8 ? 254 : 511;
    int exponent = (exponent_max < 8 ? exponent_max : 8) - 8 - (int)rng_below(rng, 8);

    for (size_t i = 0; i < count; i++) {
        size_t multiple = is_int8 && i == 0 ? most : rng_below(rng, most + 1);

        x[i] = with_random_sign(rng, ldexpf((float)multiple, exponent - 1));
    }
}

/* One random number makes sign, exponent and mantissa. */
static void fill_block(struct rng *rng, enum input_kind kind, int exponent_max, size_t count,
                       float *x)
{
    bool is_one_sign = kind == INPUT_LARGE && rng_next(rng) & 1;

    for (size_t i = 0; i < count; i++) {
        uint64_t random = rng_next(rng), range = (uint64_t)exponent_max + 61;
        uint32_t sign = is_one_sign ? 0 : (uint32_t)random & 0x80000000u;
        uint32_t mantissa = (uint32_t)random & 0x7fffffu;
        uint32_t exponent = (uint32_t)((random >> 32) * range >> 32) + 127 - 60;

        switch (kind) {
        case INPUT_PLAIN:
            x[i] = (float)(int32_t)(uint32_t)random * 0x1p-29f;
            break;
        case INPUT_WIDE:
            x[i] = sl_f32_from_bits(sign | exponent << 23 | mantissa);
            break;
        case INPUT_LARGE:
            x[i] = sl_f32_from_bits(sign | (uint32_t)(exponent_max + 127) << 23 | 0x7fffffu);
            break;
        default:
            x[i] = sl_f32_from_bits(sign);
            break;
        }
    }
}

static enum input_kind kind_of_block(struct rng *rng, enum input_kind kind)
{
    return kind == INPUT_MIXED ? (enum input_kind)rng_below(rng, INPUT_MIXED) : kind;
}

void fill_floats(struct rng *rng, enum input_kind kind, int exponent_max, size_t count, float *x)
{
    for (size_t i = 0; i < count; i += BLOCK) {
        size_t n = count - i < BLOCK ? count - i : BLOCK;
        enum input_kind block_kind = kind_of_block(rng, kind);

        if (block_kind == INPUT_TINY)
            fill_tiny(rng, n, x + i);
        else if (block_kind == INPUT_TIES)
            fill_ties(rng, exponent_max, n, x + i);
        else
            fill_block(rng, block_kind, exponent_max, n, x + i);
    }
}

static void fill_scales(struct rng *rng, enum input_kind kind, size_t n_scales,
                        uint8_t *scale_bytes)
{
    const size_t largest = SL_E8M0_BIAS + SL_SCALE_EXPONENT_MAX;

    for (size_t i = 0; i < n_scales; i++) {
        switch (kind_of_block(rng, kind)) {
        case INPUT_PLAIN:
            scale_bytes[i] = (uint8_t)(SL_E8M0_BIAS - 10 + rng_below(rng, 10));
            break;
        case INPUT_TIES: /* near each other, as a model's are */
            scale_bytes[i] = (uint8_t)(SL_E8M0_BIAS - 10 + rng_below(rng, 4));
            break;
        case INPUT_WIDE:
            scale_bytes[i] = (uint8_t)rng_below(rng, largest + 1);
            break;
        case INPUT_TINY:
            scale_bytes[i] = (uint8_t)(SL_E8M0_BIAS - 60 + rng_below(rng, 16));
            break;
        case INPUT_LARGE:
            scale_bytes[i] = (uint8_t)largest;
            break;
        default:
            scale_bytes[i] = (uint8_t)(rng_next(rng) & 1 ? SL_E8M0_BIAS : 0);
            break;
        }
    }
}

/* Random codes. If its kind says so, a block is all zeros, or all of the largest magnitude: with
 * random signs or, so that sums reach their limit, with one. */
static void fill_codes(struct rng *rng, enum input_kind kind, uint8_t sign, uint8_t largest,
                       size_t n_bytes, uint8_t *codes)
{
    for (size_t first = 0; first < n_bytes; first += BLOCK) {
        enum input_kind block_kind = kind_of_block(rng, kind);
        uint8_t signs = block_kind == INPUT_LARGE && rng_next(rng) & 1 ? 0 : sign;

        for (size_t i = first; i < n_bytes && i < first + BLOCK; i++) {
            uint8_t random = (uint8_t)(rng_next(rng) >> 56);

            codes[i] = block_kind == INPUT_ZERO    ? random & sign
                       : block_kind == INPUT_LARGE ? (random & signs) | largest
                                                   : random;
        }
    }
}

void fill_fp4(struct rng *rng, enum input_kind kind, size_t n_bytes, uint8_t *codes,
              size_t n_scales, uint8_t *scale_bytes)
{
    fill_scales(rng, kind, n_scales, scale_bytes);
    fill_codes(rng, kind, 0x88, 0x77, n_bytes, codes);
}

void fill_fp8(struct rng *rng, enum input_kind kind, size_t n_codes, uint8_t *codes,
              size_t n_scales, uint8_t *scale_bytes)
{
    fill_scales(rng, kind, n_scales, scale_bytes);
    fill_codes(rng, kind, 0x80, 0x7e, n_codes, codes);
    for (size_t i = 0; i < n_codes; i++)
        codes[i] -= (codes[i] & 0x7f) == 0x7f; /* NaN becomes the largest number */
}

void guarded_open(struct guarded *buffer, size_t size_bytes_max)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint8_t *map;

    buffer->room_bytes = (size_bytes_max + MARGIN_BYTES + page - 1) / page * page;
    map = mmap(NULL, buffer->room_bytes + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sl_assert(map != MAP_FAILED);
    buffer->room = map + page;
    sl_assert(mprotect(buffer->room, buffer->room_bytes, PROT_READ | PROT_WRITE) == 0);
}

void guarded_close(struct guarded *buffer)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);

    if (buffer->room)
        munmap(buffer->room - page, buffer->room_bytes + 2 * page);
    buffer->room = NULL;
}

void *guarded_place(struct guarded *buffer, size_t size_bytes, enum guard_side side)
{
    size_t used_bytes = size_bytes + MARGIN_BYTES;

    sl_assert(used_bytes <= buffer->room_bytes);
    buffer->side = side;
    buffer->size_bytes = size_bytes;
    buffer->data = buffer->room + (side == GUARD_AFTER ? buffer->room_bytes - size_bytes : 0);
    memset(side == GUARD_AFTER ? buffer->data - MARGIN_BYTES : buffer->data, PATTERN, used_bytes);
    return buffer->data;
}

static bool is_pattern(const uint8_t *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (bytes[i] != PATTERN)
            return false;
    return true;
}

bool guarded_is_intact(const struct guarded *buffer, size_t n_rows, size_t row_bytes,
                       size_t stride_bytes)
{
    const uint8_t *margin = buffer->side == GUARD_AFTER ? buffer->data - MARGIN_BYTES
                                                        : buffer->data + buffer->size_bytes;

    for (size_t row = 0; row + 1 < n_rows; row++)
        if (!is_pattern(buffer->data + row * stride_bytes + row_bytes, stride_bytes - row_bytes))
            return false;
    return is_pattern(margin, MARGIN_BYTES);
}
