/* KV entries, pooling, softmax, the indexer's roundings and its search for high scores. */
#include "core/kernels/isa.h"

#include "core/kernels/scalar_math.h"

#define KV_BLOCK 64u
#define HEADS SL_R16_ROWS

static float largest_magnitude(size_t count, const float *x)
{
    float amax = 0;

    for (size_t i = 0; i < count; i++) {
        float magnitude = sl_f32_from_bits(sl_f32_bits(x[i]) & 0x7fffffffu);

        amax = magnitude > amax ? magnitude : amax;
    }
    return amax;
}

static void kv_encode(size_t fp8_count, size_t bf16_count, const float *restrict x,
                      uint8_t *restrict entry)
{
    uint8_t *scale_bytes = entry + fp8_count, *rest = scale_bytes + fp8_count / KV_BLOCK;

    for (size_t b = 0; b < fp8_count / KV_BLOCK; b++) {
        const float *block = x + b * KV_BLOCK;
        float amax = largest_magnitude(KV_BLOCK, block);
        int exponent = sl_exponent_ceil((amax > 1e-4f ? amax : 1e-4f) * (1.0f / 448.0f));
        float inverse = sl_exp2i(-exponent);

        scale_bytes[b] = (uint8_t)(exponent + (int)SL_E8M0_BIAS);
        for (size_t i = 0; i < KV_BLOCK; i++)
            entry[b * KV_BLOCK + i] = sl_f32_to_e4m3(block[i] * inverse);
    }
    for (size_t i = 0; i < bf16_count; i++) {
        uint16_t code = sl_bf16_drop_tiny(sl_f32_to_bf16(x[fp8_count + i]));

        memcpy(rest + 2 * i, &code, 2); /* an entry of 583 bytes keeps nothing aligned */
    }
}

static void kv_decode(size_t fp8_count, size_t bf16_count, const uint8_t *restrict entry,
                      uint16_t *restrict y)
{
    const uint8_t *scale_bytes = entry + fp8_count, *rest = scale_bytes + fp8_count / KV_BLOCK;

    for (size_t b = 0; b < fp8_count / KV_BLOCK; b++) {
        float scale = sl_exp2i((int)scale_bytes[b] - (int)SL_E8M0_BIAS);

        for (size_t i = 0; i < KV_BLOCK; i++) /* exact: four significant bits */
            y[b * KV_BLOCK + i] =
                (uint16_t)(sl_f32_bits(sl_e4m3_to_f32(entry[b * KV_BLOCK + i]) * scale) >> 16);
    }
    memcpy(y + fp8_count, rest, bf16_count * 2);
}

/* Eight columns of a row. Compilers make single moves of the plain loops. */
typedef uint16_t columns8 __attribute__((vector_size(16), aligned(2), may_alias));

static void pair_columns8(const uint16_t *even_row, const uint16_t *odd_row, uint8_t *pairs)
{
    columns8 even = *(const columns8 *)even_row, odd = *(const columns8 *)odd_row;
    columns8 first = __builtin_shufflevector(even, odd, 0, 8, 1, 9, 2, 10, 3, 11);
    columns8 second = __builtin_shufflevector(even, odd, 4, 12, 5, 13, 6, 14, 7, 15);

    memcpy(pairs, &first, sizeof(first));
    memcpy(pairs + sizeof(first), &second, sizeof(second));
}

static void pair_rows(size_t pair_count, size_t count, const uint16_t *restrict rows,
                      uint8_t *restrict tiles, size_t tile_bytes)
{
    for (size_t c = 0; c < count; c += SL_R16_ROWS, tiles += tile_bytes) {
        for (size_t pair = 0; pair < pair_count; pair++) {
            const uint16_t *even = rows + 2 * pair * count + c, *odd = even + count;
            uint16_t last[2][SL_R16_ROWS] = {{0}};

            if (count - c < SL_R16_ROWS) {
                memcpy(last[0], even, (count - c) * sizeof(*even));
                memcpy(last[1], odd, (count - c) * sizeof(*odd));
                even = last[0];
                odd = last[1];
            }
            pair_columns8(even, odd, tiles + pair * 64);
            pair_columns8(even + 8, odd + 8, tiles + pair * 64 + 32);
        }
    }
}

#define CHANNELS_AT_ONCE 64u

static void pool_rows(size_t row_count, size_t count, const float *const *kv,
                      const float *const *score, float *restrict y)
{
    float top[CHANNELS_AT_ONCE], total[CHANNELS_AT_ONCE];

    for (size_t first = 0; first < count; first += CHANNELS_AT_ONCE) {
        size_t n = count - first < CHANNELS_AT_ONCE ? count - first : CHANNELS_AT_ONCE;

        for (size_t c = 0; c < n; c++) {
            top[c] = score[0][first + c];
            total[c] = 0;
            y[first + c] = 0;
        }
        for (size_t r = 1; r < row_count; r++)
            for (size_t c = 0; c < n; c++)
                top[c] = score[r][first + c] > top[c] ? score[r][first + c] : top[c];
        for (size_t r = 0; r < row_count; r++) {
            for (size_t c = 0; c < n; c++) {
                float e = sl_expf(score[r][first + c] - top[c]);

                total[c] += e;
                y[first + c] += kv[r][first + c] * e;
            }
        }
        for (size_t c = 0; c < n; c++)
            y[first + c] = y[first + c] / total[c];
    }
}

#define ENTRIES_AT_ONCE 16u

static void attend_softmax(size_t entry_count, const float *restrict scores, size_t score_stride,
                           float scale, const float *restrict sink, uint16_t *restrict p,
                           size_t p_stride, float *restrict total)
{
    uint16_t block[ENTRIES_AT_ONCE][HEADS]; /* rounded; then turned round */
    float top[HEADS], sum[HEADS];

    for (size_t h = 0; h < HEADS; h++) {
        top[h] = sink[h];
        sum[h] = 0;
    }
    for (size_t n = 0; n < entry_count; n++) {
        for (size_t h = 0; h < HEADS; h++) {
            float s = scores[n * score_stride + h] * scale;

            top[h] = s > top[h] ? s : top[h];
        }
    }
    for (size_t first = 0; first < entry_count; first += ENTRIES_AT_ONCE, p += ENTRIES_AT_ONCE) {
        size_t n_block =
            entry_count - first < ENTRIES_AT_ONCE ? entry_count - first : ENTRIES_AT_ONCE;

        for (size_t n = 0; n < n_block; n++) {
            const float *score = scores + (first + n) * score_stride;

            for (size_t h = 0; h < HEADS; h++) {
                float e = sl_expf(score[h] * scale - top[h]);

                sum[h] += e;
                block[n][h] = sl_bf16_drop_tiny(sl_f32_to_bf16(e));
            }
        }
        for (size_t h = 0; h < HEADS; h++)
            for (size_t n = 0; n < n_block; n++)
                p[h * p_stride + n] = block[n][h];
    }
    for (size_t h = 0; h < HEADS; h++)
        total[h] = sum[h] + sl_expf(sink[h] - top[h]);
}

static void index_encode(size_t count, const float *restrict x, uint8_t *restrict codes,
                         uint8_t *restrict scale_bytes)
{
    for (size_t b = 0; b < count / SL_FP4_BLOCK_COLS; b++) {
        const float *block = x + b * SL_FP4_BLOCK_COLS;
        float amax = largest_magnitude(SL_FP4_BLOCK_COLS, block);
        int exponent = sl_exponent_ceil((amax > 0x6p-48f ? amax : 0x6p-48f) * (1.0f / 6.0f));
        /* A zero block: every value times 0 rounds to code 0. */
        float inverse = amax < 0x6p-48f ? 0.0f : sl_exp2i(-exponent);

        scale_bytes[b] = amax < 0x6p-48f ? 0 : (uint8_t)(exponent + (int)SL_E8M0_BIAS);
        for (size_t i = 0; i < SL_FP4_BLOCK_COLS; i++)
            codes[b * SL_FP4_BLOCK_COLS + i] = sl_f32_to_e2m1(block[i] * inverse);
    }
}

static size_t find_scores(size_t count, const float *restrict scores, float floor, size_t found_max,
                          uint32_t *restrict places, float *restrict found)
{
    const int32_t least = sl_f32_order(floor);
    size_t n = 0;

    for (size_t i = 0; i < count && n < found_max; i++) {
        if (sl_f32_order(scores[i]) < least)
            continue;
        places[n] = (uint32_t)i;
        found[n++] = scores[i];
    }
    return n;
}

void SL_ISA_NAME(sl_install_attention)(struct sl_kernels *kernels)
{
    kernels->kv_encode = kv_encode;
    kernels->kv_decode = kv_decode;
    kernels->pair_rows = pair_rows;
    kernels->pool_rows = pool_rows;
    kernels->attend_softmax = attend_softmax;
    kernels->index_encode = index_encode;
    kernels->find_scores = find_scores;
}
