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
    static const char *const names[INPUT_KINDS] = {"plain", "wide", "tiny",
                                                   "large", "zero", "mixed"};

    return names[kind];
}

static float with_random_sign(struct rng *rng, float value)
{
    return rng_next(rng) & 1 ? -value : value;
}

/* Near a border of some kernel, in units in the last place. */
static float tiny_float(struct rng *rng)
{
    static const float borders[] = {0x1p-48f, 0x6p-48f, 0x1p-40f, 0x1p-41f, 0x1p-126f};
    uint32_t mantissa = (uint32_t)rng_below(rng, 1u << 23), bits;

    switch (rng_below(rng, 4)) {
    case 0: /* subnormal */
        return with_random_sign(rng, sl_f32_from_bits(mantissa));
    case 1: /* 2^-52 to 2^-37 */
        bits = (uint32_t)(127 - 52 + rng_below(rng, 15)) << 23 | mantissa;
        return with_random_sign(rng, sl_f32_from_bits(bits));
    default: /* a step of float32 or, as 2^-48 is a border for rounded values too, half one of BF16
              */
        bits = sl_f32_bits(borders[rng_below(rng, sizeof(borders) / sizeof(borders[0]))]);
        bits += (mantissa % 3 - 1) * (rng_next(rng) & 1 ? 0x8000u : 1u);
        return with_random_sign(rng, sl_f32_from_bits(bits));
    }
}

static void fill_block(struct rng *rng, enum input_kind kind, int exponent_max, size_t count,
                       float *x)
{
    for (size_t i = 0; i < count; i++) {
        float fraction = (float)rng_below(rng, 1u << 23) * 0x1p-23f;

        switch (kind) {
        case INPUT_PLAIN:
            x[i] = with_random_sign(rng, fraction * 4.0f);
            break;
        case INPUT_WIDE:
            x[i] = with_random_sign(
                rng,
                ldexpf(1.0f + fraction, (int)rng_below(rng, (size_t)(exponent_max + 61)) - 60));
            break;
        case INPUT_TINY:
            x[i] = tiny_float(rng);
            break;
        case INPUT_LARGE:
            x[i] = with_random_sign(rng, ldexpf(2.0f - 0x1p-23f, exponent_max));
            break;
        default:
            x[i] = with_random_sign(rng, 0.0f);
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
    for (size_t i = 0; i < count; i += BLOCK)
        fill_block(rng, kind_of_block(rng, kind), exponent_max,
                   count - i < BLOCK ? count - i : BLOCK, x + i);
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

void fill_fp4(struct rng *rng, enum input_kind kind, size_t n_bytes, uint8_t *codes,
              size_t n_scales, uint8_t *scale_bytes)
{
    fill_scales(rng, kind, n_scales, scale_bytes);
    for (size_t i = 0; i < n_bytes; i++) {
        uint8_t random = (uint8_t)(rng_next(rng) >> 56);

        codes[i] = kind == INPUT_ZERO    ? random & 0x88
                   : kind == INPUT_LARGE ? random | 0x77
                                         : random;
    }
}

void fill_fp8(struct rng *rng, enum input_kind kind, size_t n_codes, uint8_t *codes,
              size_t n_scales, uint8_t *scale_bytes)
{
    fill_scales(rng, kind, n_scales, scale_bytes);
    for (size_t i = 0; i < n_codes; i++) {
        uint8_t random = (uint8_t)(rng_next(rng) >> 56);

        codes[i] = kind == INPUT_ZERO                               ? random & 0x80
                   : kind == INPUT_LARGE || (random & 0x7f) == 0x7f ? (random & 0x80) | 0x7e
                                                                    : random;
    }
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
