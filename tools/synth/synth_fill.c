#include "tools/synth/synth_fill.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/kernels/formats.h"

/* Random numbers come in blocks, each from a state of its own, so that blocks can be made in any
 * order. One block is LANES independent xorshift128+ generators side by side, which compilers
 * vectorise: a core makes several gigabytes a second, more than a drive takes. */
#define BLOCK_BYTES 4096u
#define LANES 8u
#define BLOCK_ROUNDS (BLOCK_BYTES / (LANES * sizeof(uint64_t)))

union block {
    uint64_t u64[BLOCK_BYTES / 8];
    uint32_t u32[BLOCK_BYTES / 4];
    uint16_t u16[BLOCK_BYTES / 2];
    uint8_t u8[BLOCK_BYTES];
    float f32[BLOCK_BYTES / 4];
};

/* The finaliser of splitmix64 over a Weyl sequence. */
uint64_t sl_synth_mix(uint64_t key, uint64_t counter)
{
    uint64_t z = key + (counter + 1) * UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static void random_block(uint64_t key, uint64_t block_index, union block *out)
{
    uint64_t a[LANES], b[LANES];

    for (uint32_t lane = 0; lane < LANES; lane++) {
        a[lane] = sl_synth_mix(key, (block_index * LANES + lane) * 2);
        b[lane] = sl_synth_mix(key, (block_index * LANES + lane) * 2 + 1);
    }
    for (uint32_t round = 0; round < BLOCK_ROUNDS; round++)
        for (uint32_t lane = 0; lane < LANES; lane++) {
            uint64_t x = a[lane], y = b[lane];

            a[lane] = y;
            x ^= x << 23;
            b[lane] = x ^ y ^ x >> 18 ^ y >> 5;
            out->u64[round * LANES + lane] = b[lane] + y;
        }
}

static int compare_floats(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return (x > y) - (x < y);
}

/* Makes normal samples by Box-Muller, then shifts and scales them so that mean and variance are
 * exact, and numbers drawn from the table have the spread that was asked for. */
static void make_normals(float normal[SL_SYNTH_NORMALS])
{
    double sum = 0, squares = 0;

    for (uint32_t i = 0; i < SL_SYNTH_NORMALS; i++) {
        double u = ((double)(sl_synth_mix(1, 2 * i) >> 11) + 0.5) * 0x1p-53;
        double v = ((double)(sl_synth_mix(1, 2 * i + 1) >> 11) + 0.5) * 0x1p-53;
        double x = sqrt(-2 * log(u)) * cos(2 * M_PI * v);

        normal[i] = (float)x;
        sum += x;
        squares += x * x;
    }
    sum /= SL_SYNTH_NORMALS;
    squares = sqrt(squares / SL_SYNTH_NORMALS - sum * sum);
    for (uint32_t i = 0; i < SL_SYNTH_NORMALS; i++)
        normal[i] = (float)((normal[i] - sum) / squares);
    qsort(normal, SL_SYNTH_NORMALS, sizeof(normal[0]), compare_floats);
}

void sl_synth_tables_init(struct sl_synth_tables *tables)
{
    const uint32_t step = SL_SYNTH_NORMALS / 256;
    double squares = 0;

    make_normals(tables->normal);
    for (uint32_t i = 0; i < 256; i++) {
        /* The largest of 128 x 128 normals is about 4: the codes reach the end of the range. */
        tables->e4m3[i] = sl_f32_to_e4m3(tables->normal[i * step + step / 2] * (448.0f / 4));
        squares += pow(sl_e4m3_to_f32(tables->e4m3[i]), 2);
    }
    tables->fp8_rms = (float)sqrt(squares / 256);
    squares = 0;
    for (uint8_t code = 0; code < 16; code++)
        squares += pow(sl_e2m1_twice(code) / 2.0, 2);
    tables->fp4_rms = (float)sqrt(squares / 16);
}

/* Draws exponents: k + 1 with a probability p, and otherwise k, k - 1 or k - 2, all equally likely,
 * such that the mean of 4^exponent is spread^2. So blocks differ in scale, and the matrix has the
 * norm that was asked for. */
static void fill_scales(float spread, union block *block)
{
    double target = (double)spread * spread;
    int k = (int)floor(log2(spread));
    double low = (1 + 1 / 4.0 + 1 / 16.0) / 3;
    uint8_t threshold = (uint8_t)lrint((target / pow(4, k) - low) / (4 - low) * 255);

    for (uint32_t i = 0; i < BLOCK_BYTES; i++) {
        uint8_t random = block->u8[i];
        int exponent = random < threshold ? k + 1 : k - random % 3;

        block->u8[i] = (uint8_t)(exponent + (int)SL_E8M0_BIAS);
    }
}

static void fill_block(const struct sl_synth_tables *tables, const struct sl_synth_values *values,
                       uint64_t block_index, union block *block)
{
    const uint32_t mask = SL_SYNTH_NORMALS - 1;
    float mean = values->mean, spread = values->spread;

    random_block(values->key, block_index, block);
    switch (values->kind) {
    case SL_SYNTH_FP4:
    case SL_SYNTH_BYTES:
        break;
    case SL_SYNTH_FP8:
        for (uint32_t i = 0; i < BLOCK_BYTES; i++)
            block->u8[i] = tables->e4m3[block->u8[i]];
        break;
    case SL_SYNTH_SCALE:
        fill_scales(spread, block);
        break;
    case SL_SYNTH_BF16:
        for (uint32_t i = 0; i < BLOCK_BYTES / 2; i++)
            block->u16[i] = sl_f32_to_bf16(mean + spread * tables->normal[block->u16[i] & mask]);
        break;
    case SL_SYNTH_F32:
        for (uint32_t i = 0; i < BLOCK_BYTES / 4; i++)
            block->f32[i] = mean + spread * tables->normal[block->u32[i] & mask];
        break;
    case SL_SYNTH_UNIFORM:
        for (uint32_t i = 0; i < BLOCK_BYTES / 4; i++)
            block->f32[i] = mean + spread * (float)((double)block->u32[i] * 0x1p-31 - 1);
        break;
    }
}

void sl_synth_fill(const struct sl_synth_tables *tables, const struct sl_synth_values *values,
                   uint64_t offset_bytes, size_t size_bytes, uint8_t *dst)
{
    union block block;

    if (values->kind == SL_SYNTH_BYTES) {
        memcpy(dst, values->bytes + offset_bytes, size_bytes);
        return;
    }
    while (size_bytes > 0) {
        size_t skip = offset_bytes % BLOCK_BYTES;
        size_t take = BLOCK_BYTES - skip < size_bytes ? BLOCK_BYTES - skip : size_bytes;

        fill_block(tables, values, offset_bytes / BLOCK_BYTES, &block);
        memcpy(dst, block.u8 + skip, take);
        dst += take;
        offset_bytes += take;
        size_bytes -= take;
    }
}
