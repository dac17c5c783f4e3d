/* The reference's linears are right: each, and the rounding of its activations, is held bit by bit
 * against its contract written down again plainly, from a checkpoint's rows on. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernel_inputs.h"
#include "tests/reference_check.h"

/* No product or sum of these linears is ever subnormal: flushing or not must be the same. */
#define CHECK_BOTH_MODES(y, expected, call)                                                        \
    do {                                                                                           \
        memset(y, 0x5a, sizeof(y));                                                                \
        call;                                                                                      \
        assert_same_floats(&(y)[0][0], &(expected)[0][0], sizeof(y) / 4);                          \
        memset(y, 0x5a, sizeof(y));                                                                \
        FLUSHED(call);                                                                             \
        assert_same_floats(&(y)[0][0], &(expected)[0][0], sizeof(y) / 4);                          \
    } while (0)

enum { TILES = 3, ROWS = 48, COLS = 384, TOKENS = 6 };

/* ---- linears -----------------------------------------------------------------------------------
 */

/* The column of eight that quantise_int8() stores at each place. */
static const size_t column_at[8] = {0, 2, 4, 6, 1, 3, 5, 7};

/* The sum of a group's blocks from column `first` on, each times its scale and, if given, x_scale.
 */
static float fp4_group_sum(const uint8_t *codes, const uint8_t *scales, const int8_t *q,
                           size_t first, const float *x_scale)
{
    float sum = 0;

    for (size_t b = first / 32; b < first / 32 + 4; b++) {
        double scale = scales[b] < 127 - 48 ? 0 : ldexp(1, scales[b] - 127), dot = 0;

        for (size_t i = 0; i < 32; i++) {
            size_t col = b * 32 + i / 8 * 8 + column_at[i % 8];
            uint32_t code = col % 2 ? codes[col / 2] >> 4 : codes[col / 2] & 15;

            dot += value_of_e2m1(code) * q[b * 32 + i];
        }
        sum = fmaf((float)dot, (float)(scale * (x_scale ? (double)x_scale[b] : 1)), sum);
    }
    return sum;
}

static void test_matmul_fp4(void **state)
{
    static uint8_t codes[ROWS][COLS / 2], scales[ROWS][COLS / 32];
    static uint8_t tiles[TILES * COLS / 128 * SL_FP4_GROUP_BYTES] __attribute__((aligned(64)));
    static float x[COLS], q_scale[TOKENS][COLS / 128], y[TOKENS][ROWS], expected[TOKENS][ROWS];
    static int8_t q[TOKENS][COLS];
    struct sl_kernels k = reference();
    struct rng rng = {inputs_seed()};

    (void)state;
    for (unsigned kind = 0; kind < INPUT_KINDS; kind++) {
        fill_fp4(&rng, kind, sizeof(codes), &codes[0][0], sizeof(scales), &scales[0][0]);
        assert_int_equal(sl_r16_pack_fp4(COLS, 0, TILES, &codes[0][0], &scales[0][0], tiles), 0);
        for (size_t t = 0; t < TOKENS; t++) {
            fill_floats(&rng, kind, 40, COLS, x);
            k.quantise_int8(COLS, x, q[t], q_scale[t]);
            for (size_t row = 0; row < ROWS; row++) {
                expected[t][row] = 0;
                for (size_t c = 0; c < COLS; c += 128)
                    expected[t][row] = fmaf(fp4_group_sum(codes[row], scales[row], q[t], c, NULL),
                                            q_scale[t][c / 128], expected[t][row]);
            }
        }
        CHECK_BOTH_MODES(
            y, expected,
            k.matmul_fp4(TILES, COLS, TOKENS, tiles, &q[0][0], &q_scale[0][0], &y[0][0], ROWS));
    }
}

/* Scales of a head's blocks: one for each group, near each other, far apart, or none. */
static void fill_head_scales(struct rng *rng, size_t head, float scale[COLS / 32])
{
    static const int ranges[] = {1, 4, 60};

    for (size_t b = 0; b < COLS / 32; b++) {
        int exponent = (int)rng_below(rng, (size_t)ranges[head % 3]) - 40;

        scale[b] = head % 4 == 3 && rng_below(rng, 3) == 0 ? 0 : ldexpf(1, exponent);
    }
}

static void test_index_scores(void **state)
{
    static uint8_t codes[ROWS][COLS / 2], scales[ROWS][COLS / 32];
    static uint8_t tiles[TILES * COLS / 128 * SL_FP4_GROUP_BYTES] __attribute__((aligned(64)));
    static float q_scale[TOKENS][COLS / 32], total[1][ROWS], expected[1][ROWS];
    static int8_t q[TOKENS][COLS];
    float weight[TOKENS], x[COLS], unused[COLS / 128];
    struct sl_kernels k = reference();
    struct rng rng = {inputs_seed()};

    (void)state;
    for (unsigned kind = 0; kind < INPUT_KINDS; kind++) {
        fill_fp4(&rng, kind, sizeof(codes), &codes[0][0], sizeof(scales), &scales[0][0]);
        assert_int_equal(sl_r16_pack_fp4(COLS, 0, TILES, &codes[0][0], &scales[0][0], tiles), 0);
        fill_floats(&rng, INPUT_PLAIN, 0, TOKENS, weight);
        for (size_t t = 0; t < TOKENS; t++) {
            fill_floats(&rng, kind, 40, COLS, x);
            k.quantise_int8(COLS, x, q[t], unused);
            fill_head_scales(&rng, t, q_scale[t]);
        }
        for (size_t row = 0; row < ROWS; row++) {
            expected[0][row] = 0;
            for (size_t t = 0; t < TOKENS; t++) {
                float s = 0;

                for (size_t c = 0; c < COLS; c += 128)
                    s += fp4_group_sum(codes[row], scales[row], q[t], c, q_scale[t]);
                expected[0][row] += weight[t] * fmaxf(s, 0);
            }
        }
        CHECK_BOTH_MODES(total, expected,
                         k.index_scores(TILES, COLS, TOKENS, tiles, &q[0][0], &q_scale[0][0],
                                        weight, &total[0][0]));
    }
}

/* Blocks of 32 columns ascend; a block's even columns and its odd ones are summed apart. */
static float block_order_sum(size_t cols, const float *w, const uint16_t *x)
{
    float sum = 0;

    for (size_t first = 0; first < cols; first += 32) {
        float chain[2] = {0, 0};

        for (size_t col = first; col < cols && col < first + 32; col++)
            chain[col % 2] = fmaf(w[col], (float)value_of_bf16(x[col]), chain[col % 2]);
        sum += chain[0] + chain[1];
    }
    return sum;
}

struct bf16_linear {
    float w[ROWS][COLS];
    uint16_t x[TOKENS][COLS];
    float y[TOKENS][ROWS], expected[TOKENS][ROWS];
};

static void fill_bf16_linear(struct bf16_linear *linear, struct rng *rng, enum input_kind kind,
                             const struct sl_kernels *k)
{
    static float x[TOKENS * COLS];

    fill_floats(rng, kind, 40, TOKENS * COLS, x);
    k->to_bf16(TOKENS * COLS, x, &linear->x[0][0]);
    for (size_t row = 0; row < ROWS; row++) {
        for (size_t col = 0; col < COLS; col++)
            if (fabsf(linear->w[row][col]) < 0x1p-48f)
                linear->w[row][col] = 0;
        for (size_t t = 0; t < TOKENS; t++)
            linear->expected[t][row] = block_order_sum(COLS, linear->w[row], linear->x[t]);
    }
}

static void test_matmul_fp8(void **state)
{
    static uint8_t codes[ROWS][COLS];
    static uint8_t tiles[ROWS * COLS] __attribute__((aligned(64)));
    static struct bf16_linear linear;
    uint8_t scale_bytes[COLS / 128];
    float scale[COLS / 128];
    struct sl_kernels k = reference();
    struct rng rng = {inputs_seed()};

    (void)state;
    for (unsigned kind = 0; kind < INPUT_KINDS; kind++) {
        fill_fp8(&rng, kind, sizeof(codes), &codes[0][0], COLS / 128, scale_bytes);
        assert_int_equal(sl_r16_pack_fp8(ROWS, COLS, &codes[0][0], scale_bytes, tiles), 0);
        for (size_t i = 0; i < COLS / 128; i++)
            scale[i] = ldexpf(1, scale_bytes[i] - 127);
        for (size_t i = 0; i < ROWS * COLS; i++)
            linear.w[i / COLS][i % COLS] =
                (float)ldexp(value_of_e4m3((&codes[0][0])[i]), scale_bytes[i % COLS / 128] - 127);
        fill_bf16_linear(&linear, &rng, kind, &k);
        CHECK_BOTH_MODES(linear.y, linear.expected,
                         k.matmul_fp8(0, TILES, COLS, TOKENS, tiles, scale, &linear.x[0][0], COLS,
                                      &linear.y[0][0], ROWS));
    }
}

/* Each block of 128 columns is summed by itself, as above, and added scaled. */
static void test_matmul_fp8_block(void **state)
{
    static uint8_t codes[ROWS][COLS], tiles[ROWS * COLS] __attribute__((aligned(64)));
    static struct bf16_linear linear;
    uint8_t scale_bytes[COLS / 128];
    float scale[COLS / 128];
    struct sl_kernels k = reference();
    struct rng rng = {inputs_seed()};

    (void)state;
    for (unsigned kind = 0; kind < INPUT_KINDS; kind++) {
        fill_fp8(&rng, kind, sizeof(codes), &codes[0][0], COLS / 128, scale_bytes);
        assert_int_equal(sl_r16_pack_fp8_codes(ROWS, COLS, &codes[0][0], tiles), 0);
        for (size_t i = 0; i < COLS / 128; i++)
            scale[i] = scale_bytes[i] < 95 ? 0 : ldexpf(1.0f / 3, scale_bytes[i] - 125);
        memset(linear.w, 0, sizeof(linear.w));
        fill_bf16_linear(&linear, &rng, kind, &k); /* for the activations */
        for (size_t i = 0; i < ROWS * COLS; i++)
            linear.w[i / COLS][i % COLS] = (float)value_of_e4m3((&codes[0][0])[i]);
        for (size_t i = 0; i < TOKENS * ROWS; i++) {
            const float *w = linear.w[i % ROWS];
            const uint16_t *x = linear.x[i / ROWS];
            float sum = 0;

            for (size_t c = 0; c < COLS; c += 128)
                sum = fmaf(block_order_sum(128, w + c, x + c), scale[c / 128], sum);
            linear.expected[i / ROWS][i % ROWS] = sum;
        }
        CHECK_BOTH_MODES(linear.y, linear.expected,
                         k.matmul_fp8_block(0, TILES, COLS, TOKENS, tiles, scale, &linear.x[0][0],
                                            COLS, &linear.y[0][0], ROWS));
    }
}

/* Scales that are refused, that count as zero, and that stay. */
static void test_f32_scales(void **state)
{
    static const float bad[] = {-1, NAN, INFINITY, 0x1.8p60f};
    static const float good[] = {0, 0x1p-33f, 0x1p-32f, 0.1f, 0x1p60f};
    float read[5];

    (void)state;
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(sl_f32_scales_read(1, &bad[i], read), -SL_ECORRUPT);
    assert_int_equal(sl_f32_scales_read(5, good, read), 0);
    for (size_t i = 0; i < 5; i++)
        assert_true(read[i] == (i < 2 ? 0 : good[i]));
}

/* Also where the last block has fewer columns: as if those missing were zero. */
static void check_matmul_bf16(size_t cols, enum input_kind kind, struct rng *rng)
{
    static uint16_t codes[ROWS * COLS];
    static uint8_t tiles[ROWS * COLS * 2] __attribute__((aligned(64)));
    static struct bf16_linear linear;
    struct sl_kernels k = reference();

    fill_floats(rng, kind, 60, ROWS * COLS, &linear.w[0][0]);
    for (size_t row = 0; row < ROWS; row++) {
        for (size_t col = 0; col < COLS; col++) {
            uint16_t code = col < cols ? sl_f32_to_bf16(linear.w[row][col]) : 0;

            linear.w[row][col] = (float)value_of_bf16(code);
            if (col < cols)
                codes[row * cols + col] = code;
        }
    }
    assert_int_equal(sl_r16_pack_bf16(ROWS, cols, codes, tiles), 0);
    fill_bf16_linear(&linear, rng, kind, &k);
    CHECK_BOTH_MODES(
        linear.y, linear.expected,
        k.matmul_bf16(TILES, cols, TOKENS, tiles, &linear.x[0][0], COLS, &linear.y[0][0], ROWS));
}

static void test_matmul_bf16(void **state)
{
    struct rng rng = {inputs_seed()};

    (void)state;
    for (unsigned kind = 0; kind < INPUT_KINDS; kind++) {
        check_matmul_bf16(COLS, kind, &rng);
        check_matmul_bf16(COLS - 2, kind, &rng);
        check_matmul_bf16(COLS - 18, kind, &rng);
        check_matmul_bf16(6, kind, &rng);
    }
}

static void test_matmul_f32(void **state)
{
    static float w[ROWS][COLS], x[TOKENS][COLS], y[TOKENS][ROWS], expected[TOKENS][ROWS];
    static uint8_t tiles[ROWS * COLS * 4] __attribute__((aligned(64)));
    struct sl_kernels k = reference();
    struct rng rng = {inputs_seed()};

    (void)state;
    for (unsigned kind = 0; kind < INPUT_KINDS; kind++) {
        fill_floats(&rng, kind, 50, ROWS * COLS, &w[0][0]);
        fill_floats(&rng, kind == INPUT_TINY ? INPUT_WIDE : kind, 50, TOKENS * COLS, &x[0][0]);
        assert_int_equal(sl_r16_pack_f32(ROWS, COLS, &w[0][0], tiles), 0);
        for (size_t i = 0; i < TOKENS * ROWS; i++) {
            const float *w_row = w[i % ROWS], *x_row = x[i / ROWS];
            float sum = 0;

            for (size_t col = 0; col < COLS; col++)
                sum += (fabsf(w_row[col]) < 0x1p-48f ? 0 : w_row[col]) * x_row[col];
            expected[i / ROWS][i % ROWS] = sum;
        }
        FLUSHED(k.matmul_f32(TILES, COLS, TOKENS, tiles, &x[0][0], COLS, &y[0][0], ROWS));
        assert_same_floats(&y[0][0], &expected[0][0], TOKENS * ROWS);
    }
}

/* ---- their activations -------------------------------------------------------------------------
 */

static void check_quantised(const float *x, const int8_t *q, const float *scale)
{
    for (size_t g = 0; g < COLS / 128; g++) {
        float amax = 0;

        for (size_t i = 0; i < 128; i++)
            amax = fmaxf(amax, fabsf(x[g * 128 + i]));
        if (amax < 0x1p-40f)
            amax = 0;
        assert_true(scale[g] == amax / 127);
        for (size_t i = 0; i < 128; i++) {
            float value = x[g * 128 + i / 8 * 8 + column_at[i % 8]];

            assert_int_equal(q[g * 128 + i], amax > 0 ? rintf(value * (127 / amax)) : 0);
        }
    }
}

static void test_quantise_int8(void **state)
{
    float x[COLS], scale[COLS / 128];
    int8_t q[COLS];
    struct sl_kernels k = reference();
    struct rng rng = {inputs_seed()};

    (void)state;
    for (unsigned n = 0; n < 50 * INPUT_KINDS; n++) {
        fill_floats(&rng, n % INPUT_KINDS, 120, COLS, x);
        for (size_t i = 0; n >= 25 * INPUT_KINDS && i < COLS; i++) /* halves: ties */
            x[i] = i % 128 == n % 128 ? 127.0f : (float)rng_below(&rng, 254) * 0.5f - 63.5f;
        FLUSHED(k.quantise_int8(COLS, x, q, scale));
        check_quantised(x, q, scale);
    }
}

static void test_to_bf16(void **state)
{
    static float x[4096];
    static uint16_t y[4096];
    struct sl_kernels k = reference();
    struct rng rng = {inputs_seed()};

    (void)state;
    for (unsigned kind = 0; kind < INPUT_KINDS; kind++) {
        fill_floats(&rng, kind, 126, 4096, x);
        FLUSHED(k.to_bf16(4096, x, y));
        for (size_t i = 0; i < 4096; i++) {
            int exponent;
            double fraction = frexp((double)x[i], &exponent);
            double rounded = ldexp(rint(ldexp(fraction, 8)), exponent - 8);

            assert_true(value_of_bf16(y[i]) == (fabs(rounded) < 0x1p-48 ? 0 : rounded));
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul_fp4), cmocka_unit_test(test_index_scores),
        cmocka_unit_test(test_matmul_fp8), cmocka_unit_test(test_matmul_fp8_block),
        cmocka_unit_test(test_f32_scales), cmocka_unit_test(test_matmul_bf16),
        cmocka_unit_test(test_matmul_f32), cmocka_unit_test(test_quantise_int8),
        cmocka_unit_test(test_to_bf16),
    };

    return cmocka_run_group_tests_name("reference linears", tests, NULL, NULL);
}
