#include "tests/kernel_cases.h"

#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/kernels/formats.h"

/* Enough for TILES_COLS_MAX tiles times columns in float32. */
#define BUFFER_BYTES_MAX (UINT64_C(9) << 20)

/* Sizes multiplied: larger cases are visited less often. */
#define WORK_MAX 20000u

/* Columns times tokens of a linear: more is left out. The widest rows have few tokens. */
#define ACTIVATIONS_MAX 1000000u

/* Linears with at most so many columns have many tiles and many tokens at once, and all have at
 * most so many tiles times columns. */
#define COLS_FEW 256u
#define TILES_COLS_MAX 131072u

void case_open(struct kernel_case *c)
{
    memset(c, 0, sizeof(*c));
    for (size_t i = 0; i < CASE_INPUTS; i++)
        guarded_open(&c->inputs[i], BUFFER_BYTES_MAX);
    for (size_t i = 0; i < CASE_OUTPUTS; i++)
        guarded_open(&c->outputs[i].where, BUFFER_BYTES_MAX);
}

void case_close(struct kernel_case *c)
{
    for (size_t i = 0; i < CASE_INPUTS; i++)
        guarded_close(&c->inputs[i]);
    for (size_t i = 0; i < CASE_OUTPUTS; i++)
        guarded_close(&c->outputs[i].where);
}

void case_reset_outputs(struct kernel_case *c)
{
    for (size_t i = 0; i < c->n_outputs; i++) {
        struct case_output *out = &c->outputs[i];

        guarded_place(&out->where, (out->n_rows - 1) * out->stride_bytes + out->row_bytes, c->side);
        if (out->initial)
            memcpy(out->where.data, out->initial, out->row_bytes);
    }
}

static void *place(struct kernel_case *c, size_t index, size_t size_bytes)
{
    return guarded_place(&c->inputs[index], size_bytes, c->side);
}

static float *place_floats(struct kernel_case *c, size_t index, size_t count, int exponent_max)
{
    float *x = place(c, index, count * sizeof(*x));

    fill_floats(&c->rng, c->kind, exponent_max, count, x);
    return x;
}

static void add_output(struct kernel_case *c, size_t n_rows, size_t row_bytes, size_t stride_bytes)
{
    struct case_output *out = &c->outputs[c->n_outputs++];

    sl_assert(c->n_outputs <= CASE_OUTPUTS);
    out->n_rows = n_rows;
    out->row_bytes = row_bytes;
    out->stride_bytes = stride_bytes;
    out->initial = NULL;
}

static void add_row(struct kernel_case *c, size_t row_bytes)
{
    add_output(c, 1, row_bytes, row_bytes);
}

/* Input 0, changed in place. */
static void add_changed_input(struct kernel_case *c)
{
    add_row(c, c->inputs[0].size_bytes);
    c->outputs[c->n_outputs - 1].initial = c->inputs[0].data;
}

#define IN(index) ((const void *)c->inputs[index].data)
#define OUT(index) ((void *)c->outputs[index].where.data)

/* A scalar argument: the same in every call of a case, another in the next. */
static float pick(const struct kernel_case *c, size_t n, const float *values)
{
    return values[(c->seed >> 8) % n];
}

/* ---- linears: sizes are tiles, columns, tokens -------------------------------------------------
 * Inputs: 0 the tiles, 1 the activations, 2 and 3 whatever scales there are, 4 and 5 what those are
 * made from. */

static const size_t some_tiles[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 0};
static const size_t key_tiles[] = {1, 2, 3, 4, 7, 8, 9, 16, 33, 0};
static const size_t many_tiles[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 35, 0};
static const size_t block_cols[] = {128,  256,  384,  512,  1024,  1536,
                                    2048, 3072, 4096, 7168, 65536, 0};
static const size_t even_cols[] = {2, 4, 6, 30, 126, 128, 130, 256, 384, 512, 640, 4096, 7168, 0};
static const size_t any_cols[] = {1, 2, 3, 31, 127, 128, 129, 256, 384, 4096, 7168, 0};
static const size_t tokens[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33, 48, 64, 65, 130, 300, 0};

static void add_linear_output(struct kernel_case *c)
{
    size_t row = c->dims[0] * SL_R16_ROWS;

    add_output(c, c->dims[2], row * sizeof(float), (row + c->pad) * sizeof(float));
}

static size_t x_stride(const struct kernel_case *c)
{
    return c->dims[1] + c->pad;
}

static size_t y_stride(const struct kernel_case *c)
{
    return c->outputs[0].stride_bytes / sizeof(float);
}

/* Rows of x one behind another, or at x_stride. */
static void prepare_bf16_activations(struct kernel_case *c, const struct sl_kernels *ref,
                                     int exponent_max)
{
    size_t count = (c->dims[2] - 1) * x_stride(c) + c->dims[1];
    const float *x = place_floats(c, 4, count, exponent_max);

    ref->to_bf16(count, x, place(c, 1, count * sizeof(uint16_t)));
}

/* Kernels make a difference between groups all of whose scales are within three powers of two of
 * each other, those where that is so of each row's, and others: of 16 groups 8 become of the first
 * kind, 6 of the second, and one is of the third by little. */
static void bring_scales_near(struct kernel_case *c, size_t n_groups, uint8_t *tiles)
{
    for (size_t g = 0; g < n_groups; g++, tiles += SL_FP4_GROUP_BYTES) {
        const size_t kind = rng_below(&c->rng, 16);

        for (size_t row = 0; kind < 15 && row < SL_R16_ROWS; row++) {
            const size_t first = kind >= 8 && kind < 14 ? rng_below(&c->rng, 12) : 0;

            for (size_t b = 0; b < SL_FP4_GROUP_COLS / SL_FP4_BLOCK_COLS; b++)
                tiles[b * SL_R16_ROWS + row] =
                    (uint8_t)(SL_E8M0_BIAS - 8 + first + rng_below(&c->rng, kind == 14 ? 5 : 4));
        }
    }
}

static void place_fp4_tiles(struct kernel_case *c)
{
    size_t rows = c->dims[0] * SL_R16_ROWS, cols = c->dims[1], n_scales = cols / SL_FP4_BLOCK_COLS;
    uint8_t *codes = place(c, 4, rows * cols / 2), *scales = place(c, 5, rows * n_scales);
    uint8_t *tiles = place(c, 0, c->dims[0] * sl_r16_fp4_tile_bytes(cols));

    fill_fp4(&c->rng, c->kind, rows * cols / 2, codes, rows * n_scales, scales);
    sl_assert(sl_r16_pack_fp4(cols, 0, c->dims[0], codes, scales, tiles) == 0);
    if (c->seed & 2)
        bring_scales_near(c, c->dims[0] * cols / SL_FP4_GROUP_COLS, tiles);
}

static void prepare_matmul_fp4(struct kernel_case *c, const struct sl_kernels *ref)
{
    size_t cols = c->dims[1], n_scales = cols / SL_FP4_GROUP_COLS;
    int8_t *q = place(c, 1, c->dims[2] * cols);
    float *q_scale = place(c, 2, c->dims[2] * n_scales * sizeof(float)), *x;

    place_fp4_tiles(c);
    for (size_t t = 0; t < c->dims[2]; t++) {
        x = place_floats(c, 4, cols, 40);
        ref->quantise_int8(cols, x, q + t * cols, q_scale + t * n_scales);
    }
    add_linear_output(c);
}

static void call_matmul_fp4(struct kernel_case *c, const struct sl_kernels *k)
{
    k->matmul_fp4(c->dims[0], c->dims[1], c->dims[2], IN(0), IN(1), IN(2), OUT(0), y_stride(c));
}

/* Where in its block of rows a case's first tile lies: the same in every call of a case. */
static size_t first_fp8_tile(const struct kernel_case *c)
{
    return (c->seed >> 8) % (2 * SL_FP8_BLOCK_TILES);
}

static size_t fp8_scale_rows(const struct kernel_case *c)
{
    return (first_fp8_tile(c) + c->dims[0] - 1) / SL_FP8_BLOCK_TILES + 1;
}

static void prepare_matmul_fp8(struct kernel_case *c, const struct sl_kernels *ref)
{
    size_t cols = c->dims[1], tile_bytes = sl_r16_fp8_tile_bytes(cols);
    size_t n_scales = fp8_scale_rows(c) * (cols / SL_FP8_BLOCK),
           end = first_fp8_tile(c) + c->dims[0];
    uint8_t *codes = place(c, 4, c->dims[0] * SL_R16_ROWS * cols),
            *scale_bytes = place(c, 5, n_scales);
    uint8_t *tiles = place(c, 0, c->dims[0] * tile_bytes);
    float *scale = place(c, 2, n_scales * sizeof(*scale));

    fill_fp8(&c->rng, c->kind, c->dims[0] * SL_R16_ROWS * cols, codes, n_scales, scale_bytes);
    for (size_t tile = first_fp8_tile(c), n; tile < end; tile += n) {
        size_t at = tile - first_fp8_tile(c);

        n = sl_fp8_tiles_of_block(tile, end);
        sl_assert(sl_r16_pack_fp8(n * SL_R16_ROWS, cols, codes + at * SL_R16_ROWS * cols,
                                  scale_bytes + tile / SL_FP8_BLOCK_TILES * (cols / SL_FP8_BLOCK),
                                  tiles + at * tile_bytes) == 0);
    }
    for (size_t i = 0; i < n_scales; i++)
        scale[i] = sl_exp2i((int)scale_bytes[i] - (int)SL_E8M0_BIAS);
    prepare_bf16_activations(c, ref, 40);
    add_linear_output(c);
}

static void call_matmul_fp8(struct kernel_case *c, const struct sl_kernels *k)
{
    k->matmul_fp8(first_fp8_tile(c), c->dims[0], c->dims[1], c->dims[2], IN(0), IN(2), IN(1),
                  x_stride(c), OUT(0), y_stride(c));
}

/* Scales with any mantissa, brought into the kernel's range. */
static void prepare_matmul_fp8_block(struct kernel_case *c, const struct sl_kernels *ref)
{
    size_t rows = c->dims[0] * SL_R16_ROWS, cols = c->dims[1];
    size_t n_scales = fp8_scale_rows(c) * (cols / SL_FP8_BLOCK);
    uint8_t *codes = place(c, 4, rows * cols), *scale_bytes = place(c, 5, n_scales);
    uint8_t *tiles = place(c, 0, c->dims[0] * sl_r16_fp8_tile_bytes(cols));
    float *scale = place(c, 2, n_scales * sizeof(*scale));

    fill_fp8(&c->rng, c->kind, rows * cols, codes, n_scales, scale_bytes);
    sl_assert(sl_r16_pack_fp8_codes(rows, cols, codes, tiles) == 0);
    for (size_t i = 0; i < n_scales; i++) {
        float mantissa = 1.0f - (float)rng_below(&c->rng, 1u << 23) * 0x1p-24f;

        scale[i] = scale_bytes[i] ? sl_exp2i((int)scale_bytes[i] - (int)SL_E8M0_BIAS) : 0;
        scale[i] *= mantissa;
    }
    sl_assert(sl_f32_scales_read(n_scales, scale, scale) == 0);
    prepare_bf16_activations(c, ref, 40);
    add_linear_output(c);
}

static void call_matmul_fp8_block(struct kernel_case *c, const struct sl_kernels *k)
{
    k->matmul_fp8_block(first_fp8_tile(c), c->dims[0], c->dims[1], c->dims[2], IN(0), IN(2), IN(1),
                        x_stride(c), OUT(0), y_stride(c));
}

static void prepare_matmul_bf16(struct kernel_case *c, const struct sl_kernels *ref)
{
    size_t rows = c->dims[0] * SL_R16_ROWS, cols = c->dims[1];
    const float *values = place_floats(c, 4, rows * cols, 60);
    uint16_t *codes = place(c, 5, rows * cols * sizeof(*codes));
    uint8_t *tiles = place(c, 0, c->dims[0] * sl_r16_bf16_tile_bytes(cols));

    for (size_t i = 0; i < rows * cols; i++)
        codes[i] = sl_f32_to_bf16(values[i]);
    sl_assert(sl_r16_pack_bf16(rows, cols, codes, tiles) == 0);
    prepare_bf16_activations(c, ref, 50);
    add_linear_output(c);
}

static void call_matmul_bf16(struct kernel_case *c, const struct sl_kernels *k)
{
    k->matmul_bf16(c->dims[0], c->dims[1], c->dims[2], IN(0), IN(1), x_stride(c), OUT(0),
                   y_stride(c));
}

static void prepare_matmul_f32(struct kernel_case *c, const struct sl_kernels *ref)
{
    size_t rows = c->dims[0] * SL_R16_ROWS, cols = c->dims[1];
    const float *values = place_floats(c, 4, rows * cols, 50);

    (void)ref;
    sl_assert(sl_r16_pack_f32(rows, cols, values,
                              place(c, 0, c->dims[0] * sl_r16_f32_tile_bytes(cols))) == 0);
    place_floats(c, 1, (c->dims[2] - 1) * x_stride(c) + cols, 50);
    add_linear_output(c);
}

static void call_matmul_f32(struct kernel_case *c, const struct sl_kernels *k)
{
    k->matmul_f32(c->dims[0], c->dims[1], c->dims[2], IN(0), IN(1), x_stride(c), OUT(0),
                  y_stride(c));
}

/* ---- activations -------------------------------------------------------------------------------
 */

static const size_t groups_of_128[] = {128, 256, 384, 1024, 1536, 2048, 3072, 4096, 7168, 0};
static const size_t counts[] = {1,   2,    3,    4,    5,    7,    8,    9,    15,    16,  17,
                                31,  32,   33,   63,   64,   65,   100,  127,  128,   129, 255,
                                384, 1000, 1024, 1536, 2048, 3072, 4096, 7168, 28672, 0};
static const size_t pairs[] = {1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 32, 33, 64, 0};
static const size_t powers_of_two[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 0};

static void prepare_quantise_int8(struct kernel_case *c, const struct sl_kernels *ref)
{
    (void)ref;
    place_floats(c, 0, c->dims[0], 120);
    add_row(c, c->dims[0]);
    add_row(c, c->dims[0] / SL_FP4_GROUP_COLS * sizeof(float));
}

static void call_quantise_int8(struct kernel_case *c, const struct sl_kernels *k)
{
    k->quantise_int8(c->dims[0], IN(0), OUT(0), OUT(1));
}

static void prepare_to_bf16(struct kernel_case *c, const struct sl_kernels *ref)
{
    (void)ref;
    place_floats(c, 0, c->dims[0], 126);
    add_row(c, c->dims[0] * sizeof(uint16_t));
}

static void call_to_bf16(struct kernel_case *c, const struct sl_kernels *k)
{
    k->to_bf16(c->dims[0], IN(0), OUT(0));
}

static const float epsilons[] = {1e-6f, 1e-5f, 1e-30f};

static void prepare_rms_factor(struct kernel_case *c, const struct sl_kernels *ref)
{
    (void)ref;
    place_floats(c, 0, c->dims[0], 50);
    add_row(c, sizeof(float));
}

static void call_rms_factor(struct kernel_case *c, const struct sl_kernels *k)
{
    float factor = k->rms_factor(c->dims[0], IN(0), pick(c, 3, epsilons));

    memcpy(OUT(0), &factor, sizeof(factor));
}

/* Kernels that may work in place do so in every other case. */
static bool is_in_place(const struct kernel_case *c)
{
    return c->seed & 1;
}

static void prepare_rms_norm(struct kernel_case *c, const struct sl_kernels *ref)
{
    (void)ref;
    place_floats(c, 0, c->dims[0], 50);
    place_floats(c, 1, c->dims[0], 20);
    add_changed_input(c);
}

static void call_rms_norm(struct kernel_case *c, const struct sl_kernels *k)
{
    k->rms_norm(c->dims[0], is_in_place(c) ? OUT(0) : IN(0), c->seed & 2 ? IN(1) : NULL,
                pick(c, 3, epsilons), OUT(0));
}

static void prepare_swiglu(struct kernel_case *c, const struct sl_kernels *ref)
{
    (void)ref;
    place_floats(c, 0, c->dims[0], 40);
    place_floats(c, 1, c->dims[0], 40);
    add_row(c, c->dims[0] * sizeof(float));
}

static void call_swiglu(struct kernel_case *c, const struct sl_kernels *k)
{
    static const float limits[] = {0.0f, 10.0f, 2.0f}, weights[] = {1.0f, 0.37f, 2.5f, 0.0f};

    k->swiglu(c->dims[0], IN(0), IN(1), pick(c, 3, limits), pick(c, 4, weights), OUT(0));
}

static void prepare_sqrt_softplus(struct kernel_case *c, const struct sl_kernels *ref)
{
    (void)ref;
    place_floats(c, 0, c->dims[0], (int)(c->seed >> 8) % 2 ? 100 : 6);
    add_changed_input(c);
}

static void call_sqrt_softplus(struct kernel_case *c, const struct sl_kernels *k)
{
    k->sqrt_softplus(c->dims[0], is_in_place(c) ? OUT(0) : IN(0), OUT(0));
}

static void prepare_rotate(struct kernel_case *c, const struct sl_kernels *ref)
{
    (void)ref;
    place_floats(c, 0, 2 * c->dims[0], 100);
    place_floats(c, 1, c->dims[0], 0);
    place_floats(c, 2, c->dims[0], 0);
    add_changed_input(c);
}

static void call_rotate(struct kernel_case *c, const struct sl_kernels *k)
{
    k->rotate(c->dims[0], OUT(0), IN(1), IN(2), c->seed & 1 ? -1.0f : 1.0f);
}

static void prepare_hadamard(struct kernel_case *c, const struct sl_kernels *ref)
{
    (void)ref;
    place_floats(c, 0, c->dims[0], 100);
    add_changed_input(c);
}

static void call_hadamard(struct kernel_case *c, const struct sl_kernels *k)
{
    k->hadamard(c->dims[0], OUT(0));
}

/* ---- residual streams: sizes are streams, columns ----------------------------------------------
 */

static const size_t streams[] = {1, 2, 3, 4, 5, 8, 0};
static const size_t stream_cols[] = {1, 3, 16, 63, 64, 65, 127, 128, 130, 256, 384, 4096, 7168, 0};

static void prepare_hc_reduce(struct kernel_case *c, const struct sl_kernels *ref)
{
    (void)ref;
    place_floats(c, 0, c->dims[0] * c->dims[1], 50);
    place_floats(c, 1, c->dims[0], 50);
    add_row(c, c->dims[1] * sizeof(float));
}

static void call_hc_reduce(struct kernel_case *c, const struct sl_kernels *k)
{
    k->hc_reduce(c->dims[0], c->dims[1], IN(1), IN(0), OUT(0));
}

static void prepare_hc_update(struct kernel_case *c, const struct sl_kernels *ref)
{
    (void)ref;
    place_floats(c, 0, c->dims[0] * c->dims[1], 50);
    place_floats(c, 1, c->dims[0], 50);
    place_floats(c, 2, c->dims[0] * c->dims[0], 50);
    place_floats(c, 3, c->dims[1], 50);
    add_changed_input(c);
}

static void call_hc_update(struct kernel_case *c, const struct sl_kernels *k)
{
    k->hc_update(c->dims[0], c->dims[1], IN(1), IN(2), IN(3), OUT(0));
}

/* ---- KV entries, attention, indexer ------------------------------------------------------------
 */

static const size_t fp8_counts[] = {64, 128, 192, 448, 512, 0};
static const size_t bf16_counts[] = {2, 6, 30, 32, 64, 128, 0};
static const size_t pooled_rows[] = {1, 2, 3, 4, 8, 16, 128, 0};
static const size_t pooled_cols[] = {1, 31, 63, 64, 65, 128, 192, 512, 0};
static const size_t entries[] = {1, 2, 3, 4, 5, 16, 127, 128, 129, 640, 1152, 0};
static const size_t index_counts[] = {32, 64, 128, 256, 512, 1024, 0};

static void prepare_kv_encode(struct kernel_case *c, const struct sl_kernels *ref)
{
    (void)ref;
    place_floats(c, 0, c->dims[0] + c->dims[1], 120);
    add_row(c, sl_kv_entry_bytes(c->dims[0], c->dims[1]));
}

static void call_kv_encode(struct kernel_case *c, const struct sl_kernels *k)
{
    k->kv_encode(c->dims[0], c->dims[1], IN(0), OUT(0));
}

/* What kv_encode() can have made, with all codes about equally often. */
static void prepare_kv_decode(struct kernel_case *c, const struct sl_kernels *ref)
{
    const float *x = place_floats(c, 4, c->dims[0] + c->dims[1], 100);
    uint8_t *entry = place(c, 0, sl_kv_entry_bytes(c->dims[0], c->dims[1]));

    ref->kv_encode(c->dims[0], c->dims[1], x, entry);
    for (size_t i = 0; i < c->dims[0]; i++) {
        uint8_t code = (uint8_t)(rng_next(&c->rng) >> 56);

        entry[i] = (code & 0x7f) == 0x7f ? code - 1 : code;
    }
    add_row(c, (c->dims[0] + c->dims[1]) * sizeof(uint16_t));
}

static void call_kv_decode(struct kernel_case *c, const struct sl_kernels *k)
{
    k->kv_decode(c->dims[0], c->dims[1], IN(0), OUT(0));
}

/* Inputs 2 and 3 are the lists of rows; rows lie in the reverse order. */
static void prepare_pool_rows(struct kernel_case *c, const struct sl_kernels *ref)
{
    size_t rows = c->dims[0], stride = c->dims[1] + c->pad;
    const float *kv = place_floats(c, 0, (rows - 1) * stride + c->dims[1], 60);
    const float *score = place_floats(c, 1, (rows - 1) * stride + c->dims[1], 20);
    const float **kv_rows = place(c, 2, rows * sizeof(*kv_rows));
    const float **score_rows = place(c, 3, rows * sizeof(*score_rows));

    (void)ref;
    for (size_t r = 0; r < rows; r++) {
        kv_rows[r] = kv + (rows - 1 - r) * stride;
        score_rows[r] = score + (rows - 1 - r) * stride;
    }
    add_row(c, c->dims[1] * sizeof(float));
}

static void call_pool_rows(struct kernel_case *c, const struct sl_kernels *k)
{
    k->pool_rows(c->dims[0], c->dims[1], IN(2), IN(3), OUT(0));
}

static void prepare_pair_rows(struct kernel_case *c, const struct sl_kernels *ref)
{
    size_t tile_bytes = sl_r16_bf16_tile_bytes(2 * c->dims[0]);
    uint16_t *rows = place(c, 0, 2 * c->dims[0] * c->dims[1] * sizeof(*rows));

    (void)ref;
    for (size_t i = 0; i < 2 * c->dims[0] * c->dims[1]; i++)
        rows[i] = (uint16_t)(rng_next(&c->rng) >> 48);
    add_output(c, sl_r16_tile_count(c->dims[1]), tile_bytes, tile_bytes + 64 * c->pad);
}

static void call_pair_rows(struct kernel_case *c, const struct sl_kernels *k)
{
    k->pair_rows(c->dims[0], c->dims[1], IN(0), OUT(0),
                 sl_r16_bf16_tile_bytes(2 * c->dims[0]) + 64 * c->pad);
}

static void prepare_attend_softmax(struct kernel_case *c, const struct sl_kernels *ref)
{
    const size_t stride = SL_R16_ROWS + c->pad;
    float *scores = place_floats(c, 0, c->dims[0] * stride, 20);

    (void)ref;
    for (size_t n = 0; n < c->dims[0]; n++)
        if (c->seed & 1 && rng_below(&c->rng, 4) == 0)
            for (size_t h = 0; h < SL_R16_ROWS; h++)
                scores[n * stride + h] = SL_SCORE_ABSENT;
    place_floats(c, 1, SL_R16_ROWS, 10);
    add_output(c, SL_R16_ROWS, c->dims[0] * sizeof(uint16_t),
               (c->dims[0] + c->pad) * sizeof(uint16_t));
    add_row(c, SL_R16_ROWS * sizeof(float));
}

static void call_attend_softmax(struct kernel_case *c, const struct sl_kernels *k)
{
    static const float factors[] = {0.044194173824f, 1.0f, 0.0883883476f};

    k->attend_softmax(c->dims[0], IN(0), SL_R16_ROWS + c->pad, pick(c, 3, factors), IN(1), OUT(0),
                      c->dims[0] + c->pad, OUT(1));
}

static void prepare_index_encode(struct kernel_case *c, const struct sl_kernels *ref)
{
    (void)ref;
    place_floats(c, 0, c->dims[0], 120);
    add_row(c, c->dims[0]);
    add_row(c, c->dims[0] / SL_FP4_BLOCK_COLS);
}

static void call_index_encode(struct kernel_case *c, const struct sl_kernels *k)
{
    k->index_encode(c->dims[0], IN(0), OUT(0), OUT(1));
}

/* Of 20 heads 14 have one power of two as scale of all blocks, or all have; the others' blocks have
 * different ones, or none. Weights are small, so that no sum overflows: infinities of both signs
 * would make a NaN, whose bits are each processor's own. */
static void prepare_index_scores(struct kernel_case *c, const struct sl_kernels *ref)
{
    const size_t n_scales = c->dims[1] / SL_FP4_BLOCK_COLS;
    int8_t *q = place(c, 1, c->dims[2] * c->dims[1]);
    float *q_scale = place(c, 2, c->dims[2] * n_scales * sizeof(float));
    float unused[TILES_COLS_MAX / SL_FP4_GROUP_COLS];

    place_fp4_tiles(c);
    for (size_t h = 0; h < c->dims[2]; h++) {
        const bool even = h % 20 < 14 || c->seed & 1;

        ref->quantise_int8(c->dims[1], place_floats(c, 4, c->dims[1], 40), q + h * c->dims[1],
                           unused);
        for (size_t b = 0; b < n_scales; b++)
            q_scale[h * n_scales + b] = even ? sl_exp2i((int)(h % 7) - 5)
                                        : rng_below(&c->rng, 9)
                                            ? sl_exp2i((int)rng_below(&c->rng, 60) - 40)
                                            : 0;
    }
    place_floats(c, 3, c->dims[2], 2);
    add_row(c, c->dims[0] * SL_R16_ROWS * sizeof(float));
}

static void call_index_scores(struct kernel_case *c, const struct sl_kernels *k)
{
    k->index_scores(c->dims[0], c->dims[1], c->dims[2], IN(0), IN(1), IN(2), IN(3), OUT(0));
}

/* The floor is one of the scores. Where few are found, or as many as there is room for, places and
 * scores behind those that were found stay as they are. */
static void prepare_find_scores(struct kernel_case *c, const struct sl_kernels *ref)
{
    float *scores = place_floats(c, 0, c->dims[0], 120);
    float *floor = place(c, 1, sizeof(*floor));

    (void)ref;
    if (c->seed & 1) /* most are equal, and below those that are not */
        for (size_t i = 0; i < c->dims[0]; i++)
            if (rng_below(&c->rng, 40))
                scores[i] = -FLT_MAX;
    *floor = scores[rng_below(&c->rng, c->dims[0])];
    add_row(c, (c->dims[0] + 1) / 2 * sizeof(uint32_t));
    add_row(c, (c->dims[0] + 1) / 2 * sizeof(float));
    add_row(c, sizeof(size_t));
}

static void call_find_scores(struct kernel_case *c, const struct sl_kernels *k)
{
    const float *floor = IN(1);
    size_t n = k->find_scores(c->dims[0], IN(0), *floor, (c->dims[0] + 1) / 2, OUT(0), OUT(1));

    memcpy(OUT(2), &n, sizeof(n));
}

/* ---- the table ---------------------------------------------------------------------------------
 */

#define SPEC(name, is_linear, ...)                                                                 \
    {                                                                                              \
#name, offsetof(struct sl_kernels, name), __VA_ARGS__, is_linear, prepare_##name,          \
            call_##name                                                                            \
    }
#define LINEAR(name, tiles, cols)                                                                  \
    SPEC(name, true, {"tiles", "columns", "tokens"}, {tiles, cols, tokens})
#define ROW(name, counts) SPEC(name, false, {"count"}, {counts})
#define PLANE(name, a, a_sizes, b, b_sizes) SPEC(name, false, {a, b}, {a_sizes, b_sizes})

const struct kernel_spec kernel_specs[] = {
    LINEAR(matmul_fp4, some_tiles, block_cols),
    LINEAR(matmul_fp8, many_tiles, block_cols),
    LINEAR(matmul_fp8_block, many_tiles, block_cols),
    LINEAR(matmul_bf16, many_tiles, even_cols),
    LINEAR(matmul_f32, some_tiles, any_cols),
    ROW(quantise_int8, groups_of_128),
    ROW(to_bf16, counts),
    ROW(rms_factor, counts),
    ROW(rms_norm, counts),
    ROW(swiglu, counts),
    ROW(sqrt_softplus, counts),
    ROW(rotate, pairs),
    ROW(hadamard, powers_of_two),
    PLANE(hc_reduce, "streams", streams, "columns", stream_cols),
    PLANE(hc_update, "streams", streams, "columns", stream_cols),
    PLANE(kv_encode, "fp8", fp8_counts, "bf16", bf16_counts),
    PLANE(kv_decode, "fp8", fp8_counts, "bf16", bf16_counts),
    PLANE(pair_rows, "pairs", pooled_rows, "columns", pooled_cols),
    PLANE(pool_rows, "rows", pooled_rows, "columns", pooled_cols),
    ROW(attend_softmax, entries),
    ROW(index_encode, index_counts),
    LINEAR(index_scores, key_tiles, block_cols),
    ROW(find_scores, counts),
};
const size_t kernel_specs_count = sizeof(kernel_specs) / sizeof(kernel_specs[0]);
_Static_assert(sizeof(kernel_specs) / sizeof(kernel_specs[0]) ==
                   (offsetof(struct sl_kernels, probes) - offsetof(struct sl_kernels, matmul_fp4)) /
                       sizeof(void (*)(void)),
               "a kernel has no case");

static size_t list_length(const size_t *list)
{
    size_t n = 0;

    while (list && list[n])
        n++;
    return n;
}

/* Sanitizers, valgrind and qemu take ten times as long, and care for shapes more than for values.
 */
static bool is_slow_run(void)
{
#ifdef SL_DEBUG
    return true;
#else
    return getenv("SL_SLOW") != NULL;
#endif
}

/* One shape next to both guard pages, with every kind of input or, if that takes long, some. */
static bool visit_shape(const struct kernel_spec *spec, struct kernel_case *c,
                        const struct sl_kernels *ref, struct rng *rng, case_visit_fn *visit,
                        void *context)
{
    static const size_t pads[] = {0, 1, 5, 16};
    size_t work = c->dims[0] * (c->dims[1] ? c->dims[1] : 1) * (c->dims[2] ? c->dims[2] : 1);
    bool is_slow = is_slow_run(), is_large = work > (is_slow ? WORK_MAX / 10 : WORK_MAX);
    size_t n_visits = is_large ? GUARD_SIDES : INPUT_KINDS * GUARD_SIDES;

    if (is_slow && work > WORK_MAX * 2)
        return true;
    for (size_t i = 0; i < n_visits; i++) {
        size_t turn = is_large ? rng_below(rng, INPUT_KINDS) * GUARD_SIDES + i : i;

        c->kind = (enum input_kind)(turn / GUARD_SIDES);
        c->side = (enum guard_side)(turn % GUARD_SIDES);
        c->pad = pads[rng_below(rng, 4)];
        c->seed = rng_next(rng);
        c->rng.state = c->seed;
        c->n_outputs = 0;
        spec->prepare(c, ref);
        if (!visit(spec, c, context))
            return false;
    }
    return true;
}

void case_for_each(const struct kernel_spec *spec, struct kernel_case *c,
                   const struct sl_kernels *ref, uint64_t seed, case_visit_fn *visit, void *context)
{
    struct rng rng = {seed};
    size_t length[CASE_DIMS], n_shapes = 1;

    for (size_t d = 0; d < CASE_DIMS; d++) {
        length[d] = list_length(spec->dims[d]);
        if (length[d] && !(spec->is_linear && d == 0))
            n_shapes *= length[d];
    }
    for (size_t shape = 0; shape < n_shapes; shape++) {
        size_t rest = shape;

        for (size_t d = spec->is_linear ? 1 : 0; d < CASE_DIMS; d++) {
            c->dims[d] = length[d] ? spec->dims[d][rest % length[d]] : 0;
            rest /= length[d] ? length[d] : 1;
        }
        if (spec->is_linear) { /* few tiles where rows are long */
            size_t activations = c->dims[1] * c->dims[2];
            size_t n_choices = activations > WORK_MAX && c->dims[1] > COLS_FEW ? 2 : length[0];

            if (activations > ACTIVATIONS_MAX)
                continue;
            while (n_choices > 1 && spec->dims[0][n_choices - 1] * c->dims[1] > TILES_COLS_MAX)
                n_choices--;
            c->dims[0] = spec->dims[0][shape % n_choices];
        }
        if (!visit_shape(spec, c, ref, &rng, visit, context))
            return;
    }
}
