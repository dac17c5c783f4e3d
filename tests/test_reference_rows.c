/* The reference's other kernels are right: each is compared with its contract, written down again
 * plainly. Where the contract fixes every rounding the bits must be the same; where it leaves exp
 * to us, the result must be close to that in double arithmetic. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "core/kernels/scalar_math.h"
#include "tests/kernel_inputs.h"
#include "tests/reference_check.h"

enum { COLS = 384 };

static void test_rms_norm(void **state)
{
    static const size_t counts[] = {1, 15, 16, 17, 100, 384};
    enum { N_COUNTS = sizeof(counts) / sizeof(counts[0]) };
    float x[COLS], weight[COLS], y[COLS];
    struct sl_kernels k = reference();
    struct rng rng = {inputs_seed()};

    (void)state;
    for (size_t n = 0; n < 50 * N_COUNTS; n++) {
        size_t count = counts[n % N_COUNTS];
        float lane[16] = {0}, factor;
        double squares = 0, expected;

        fill_floats(&rng, INPUT_PLAIN, 0, COLS, x);
        fill_floats(&rng, INPUT_PLAIN, 0, COLS, weight);
        for (size_t i = 0; i < count; i++) {
            lane[i % 16] += x[i] * x[i];
            squares += (double)x[i] * (double)x[i];
        }
        for (size_t half = 8; half; half /= 2)
            for (size_t l = 0; l < half; l++)
                lane[l] += lane[l + half];
        factor = k.rms_factor(count, x, 1e-6f);
        expected = 1 / sqrt(squares / (double)count + 1e-6);
        assert_true(factor == 1.0f / sqrtf(lane[0] / (float)count + 1e-6f));
        assert_close((double)factor, expected, expected * 1e-6);
        k.rms_norm(count, x, weight, 1e-6f, y);
        for (size_t i = 0; i < count; i++)
            assert_true(y[i] == weight[i] * (x[i] * factor));
        k.rms_norm(count, x, NULL, 1e-6f, x);
        for (size_t i = 0; i < count; i++)
            assert_true(y[i] == weight[i] * x[i]);
    }
}

static void test_exp(void **state)
{
    (void)state;
    for (int i = -870000; i <= 880000; i++) {
        float x = (float)i * 1e-4f;
        double expected = exp((double)x);

        assert_close((double)sl_expf(x), expected, expected * 2.4e-7);
    }
    assert_true(sl_expf(-87.01f) == 0 && sl_expf(-0x1.fffffep127f) == 0);
    assert_true(sl_expf(88.01f) == sl_expf(88) && sl_expf(0x1.fffffep127f) == sl_expf(88));
    assert_true(sl_expf(0) == 1 && sl_expf(-0.0f) == 1);
}

static void test_swiglu(void **state)
{
    static const float limits[] = {0, 10, 2};
    float gate[COLS], up[COLS], y[COLS];
    struct sl_kernels k = reference();
    struct rng rng = {inputs_seed()};

    (void)state;
    for (size_t n = 0; n < 30; n++) {
        double limit = (double)limits[n % 3], bound = limit > 0 ? limit : INFINITY;

        fill_floats(&rng, INPUT_PLAIN, 0, COLS, gate);
        fill_floats(&rng, INPUT_PLAIN, 0, COLS, up);
        for (size_t i = 0; i < COLS; i++) {
            gate[i] *= 10;
            up[i] *= 10;
        }
        FLUSHED(k.swiglu(COLS, gate, up, limits[n % 3], 0.37f, y));
        for (size_t i = 0; i < COLS; i++) {
            double g = fmin((double)gate[i], bound), u = fmax(fmin((double)up[i], bound), -bound);
            double expected = g / (1 + exp(-g)) * u * (double)0.37f;

            assert_close((double)y[i], expected, fabs(expected) * 1e-6);
        }
    }
}

static void test_sqrt_softplus(void **state)
{
    struct sl_kernels k = reference();

    (void)state;
    for (int i = -80000; i <= 200000; i++) {
        float x = (float)i * 1e-3f, y;
        double expected = sqrt(log1p(exp((double)x)));

        FLUSHED(k.sqrt_softplus(1, &x, &y));
        assert_close((double)y, expected, expected * 4e-7);
    }
}

static void test_rotate(void **state)
{
    enum { PAIRS = 33 };
    float x[2 * PAIRS], y[2 * PAIRS], cosine[PAIRS], sine[PAIRS];
    struct sl_kernels k = reference();
    struct rng rng = {inputs_seed()};

    (void)state;
    fill_floats(&rng, INPUT_PLAIN, 0, 2 * PAIRS, x);
    for (size_t i = 0; i < PAIRS; i++) {
        cosine[i] = cosf((float)i);
        sine[i] = sinf((float)i);
    }
    memcpy(y, x, sizeof(y));
    k.rotate(PAIRS, y, cosine, sine, 1);
    for (size_t i = 0; i < PAIRS; i++) {
        double a = (double)x[2 * i], b = (double)x[2 * i + 1];

        assert_close((double)y[2 * i], a * cos((double)i) - b * sin((double)i), 2e-6);
        assert_close((double)y[2 * i + 1], a * sin((double)i) + b * cos((double)i), 2e-6);
    }
    k.rotate(PAIRS, y, cosine, sine, -1);
    for (size_t i = 0; i < 2 * PAIRS; i++)
        assert_close((double)y[i], (double)x[i], 2e-6);
}

static void test_hadamard(void **state)
{
    float x[1024], y[1024];
    struct sl_kernels k = reference();
    struct rng rng = {inputs_seed()};

    (void)state;
    for (size_t n = 1; n <= 1024; n *= 2) {
        fill_floats(&rng, INPUT_PLAIN, 0, n, x);
        memcpy(y, x, sizeof(y));
        k.hadamard(n, y);
        for (size_t i = 0; i < n; i++) {
            double sum = 0;

            for (size_t j = 0; j < n; j++)
                sum += __builtin_parityll(i & j) ? -(double)x[j] : (double)x[j];
            assert_close((double)y[i], sum / sqrt((double)n), 1e-5);
        }
        k.hadamard(n, y);
        for (size_t i = 0; i < n; i++)
            assert_close((double)y[i], (double)x[i], 1e-5);
    }
}

/* ---- residual streams --------------------------------------------------------------------------
 */

static void test_hyper_connection(void **state)
{
    enum { STREAMS = 8, COUNT = 131 };
    static float streams[STREAMS][COUNT], expected[STREAMS][COUNT];
    float pre[STREAMS], comb[STREAMS * STREAMS], out[COUNT], reduced[COUNT];
    struct sl_kernels k = reference();
    struct rng rng = {inputs_seed()};

    (void)state;
    for (size_t n = 1; n <= STREAMS; n++) {
        fill_floats(&rng, INPUT_WIDE, 50, n * COUNT, &streams[0][0]);
        fill_floats(&rng, INPUT_PLAIN, 0, n, pre);
        fill_floats(&rng, INPUT_PLAIN, 0, n * n, comb);
        fill_floats(&rng, INPUT_WIDE, 50, COUNT, out);
        k.hc_reduce(n, COUNT, pre, &streams[0][0], reduced);
        for (size_t c = 0; c < COUNT; c++) {
            float sum = pre[0] * streams[0][c];

            for (size_t s = 1; s < n; s++)
                sum += pre[s] * streams[s][c];
            assert_true(reduced[c] == sum);
            for (size_t to = 0; to < n; to++) {
                expected[to][c] = pre[to] * out[c];
                for (size_t from = 0; from < n; from++)
                    expected[to][c] += comb[from * n + to] * streams[from][c];
            }
        }
        k.hc_update(n, COUNT, pre, comb, out, &streams[0][0]);
        assert_same_floats(&streams[0][0], &expected[0][0], n * COUNT);
    }
}

/* ---- KV entries, attention, indexer ------------------------------------------------------------
 */

/* The code whose value is nearest, the even one of two. */
static uint32_t nearest_code(double value, uint32_t n_codes, double (*value_of)(uint32_t))
{
    uint32_t best = 0;

    for (uint32_t code = 1; code < n_codes; code++) {
        double distance = fabs(value - value_of(code)), least = fabs(value - value_of(best));

        if (distance < least || (distance == least && code % 2 == 0))
            best = code;
    }
    return best;
}

/* The scale is the smallest power of two that keeps `amax` within `largest`, give or take the
 * rounding of one float32 product. */
static void check_scale(uint8_t scale_byte, double amax, double largest)
{
    double scale = ldexp(1, scale_byte - 127);

    assert_true(scale * largest >= amax * (1 - 0x1p-22));
    assert_true(scale / 2 * largest <= amax * (1 + 0x1p-22));
}

static double largest_of(const float *x, size_t count)
{
    double amax = 0;

    for (size_t i = 0; i < count; i++)
        amax = fmax(amax, fabs((double)x[i]));
    return amax;
}

static void check_kv_block(const float *x, const uint8_t *codes, uint8_t scale_byte,
                           const uint16_t *decoded)
{
    check_scale(scale_byte, fmax(largest_of(x, 64), 1e-4), 448);
    for (size_t i = 0; i < 64; i++) {
        double scaled = ldexp(fabs((double)x[i]), 127 - scale_byte);
        uint32_t code = nearest_code(scaled, 127, value_of_e4m3);

        assert_int_equal(codes[i], code | (signbit(x[i]) ? 0x80 : 0));
        assert_true(value_of_bf16(decoded[i]) == ldexp(value_of_e4m3(codes[i]), scale_byte - 127));
    }
}

static void test_kv_entry(void **state)
{
    enum { FP8 = 448, BF16 = 66, BLOCKS = FP8 / 64 };
    static const float borders[BLOCKS] = {448, 0x1.bffffep8f, 0x1.c00002p8f, 448.05f, 447.9f, 256,
                                          511};
    float x[FP8 + BF16];
    uint8_t entry[FP8 + BLOCKS + 2 * BF16];
    uint16_t decoded[FP8 + BF16], rounded[BF16];
    struct sl_kernels k = reference();
    struct rng rng = {inputs_seed()};

    (void)state;
    assert_int_equal(sl_kv_entry_bytes(FP8, BF16), sizeof(entry));
    for (unsigned n = 0; n < 5 * INPUT_KINDS; n++) {
        fill_floats(&rng, n % INPUT_KINDS, 100, FP8 + BF16, x);
        for (size_t i = 0; n % INPUT_KINDS == INPUT_LARGE && i < FP8; i++)
            x[i] = i % 64 ? 100.0f : ldexpf(borders[i / 64], (int)n);
        FLUSHED(k.kv_encode(FP8, BF16, x, entry));
        FLUSHED(k.kv_decode(FP8, BF16, entry, decoded));
        for (size_t b = 0; b < BLOCKS; b++)
            check_kv_block(x + b * 64, entry + b * 64, entry[FP8 + b], decoded + b * 64);
        FLUSHED(k.to_bf16(BF16, x + FP8, rounded));
        assert_memory_equal(entry + FP8 + BLOCKS, rounded, sizeof(rounded));
        assert_memory_equal(decoded + FP8, rounded, sizeof(rounded));
    }
}

static void test_index_encode(void **state)
{
    enum { COUNT = 512 };
    float x[COUNT];
    uint8_t codes[COUNT], scale_bytes[COUNT / 32];
    struct sl_kernels k = reference();
    struct rng rng = {inputs_seed()};

    (void)state;
    for (unsigned n = 0; n < 20 * INPUT_KINDS; n++) {
        fill_floats(&rng, n % INPUT_KINDS, 120, COUNT, x);
        for (size_t i = 0; n % INPUT_KINDS == INPUT_PLAIN && i < COUNT; i++) /* quarters: ties */
            x[i] = i % 32 ? rintf(x[i] * 8) * 0.25f : 6.0f;
        FLUSHED(k.index_encode(COUNT, x, codes, scale_bytes));
        for (size_t b = 0; b < COUNT / 32; b++) {
            double amax = largest_of(x + b * 32, 32);
            bool is_zero = amax < 0x6p-48;

            if (is_zero)
                assert_int_equal(scale_bytes[b], 0);
            else
                check_scale(scale_bytes[b], amax, 6);
            for (size_t i = b * 32; i < b * 32 + 32; i++) {
                double scaled = ldexp(fabs((double)x[i]), 127 - scale_bytes[b]);
                uint32_t code = is_zero ? 0 : nearest_code(scaled, 8, value_of_e2m1);

                assert_int_equal(codes[i], code | (signbit(x[i]) ? 8 : 0));
            }
        }
    }
}

static void test_pool_rows(void **state)
{
    enum { POOLED = 128, COUNT = 70 };
    static float kv[POOLED][COUNT], score[POOLED][COUNT];
    const float *kv_rows[POOLED], *score_rows[POOLED];
    float y[COUNT];
    struct sl_kernels k = reference();
    struct rng rng = {inputs_seed()};

    (void)state;
    for (size_t rows = 1; rows <= POOLED; rows = rows * 2 + 1) {
        fill_floats(&rng, INPUT_PLAIN, 0, POOLED * COUNT, &kv[0][0]);
        fill_floats(&rng, INPUT_PLAIN, 0, POOLED * COUNT, &score[0][0]);
        score[rows / 2][0] = 1e30f; /* one row wins */
        score[rows / 2][1] = -1e30f;
        for (size_t r = 0; r < rows; r++) {
            kv_rows[r] = kv[r];
            score_rows[r] = score[r];
        }
        FLUSHED(k.pool_rows(rows, COUNT, kv_rows, score_rows, y));
        for (size_t c = 0; c < COUNT; c++) {
            double top = -INFINITY, sum = 0, total = 0;

            for (size_t r = 0; r < rows; r++)
                top = fmax(top, (double)score[r][c]);
            for (size_t r = 0; r < rows; r++) {
                double e = exp((double)score[r][c] - top);

                sum += (double)kv[r][c] * e;
                total += e;
            }
            assert_close((double)y[c], sum / total, 4e-6);
        }
        assert_true(y[0] == kv[rows / 2][0]);
    }
}

static void test_attend_softmax(void **state)
{
    enum { ENTRIES = 300, STRIDE = 301, HEADS = 16 };
    static float scores[ENTRIES][HEADS];
    static uint16_t p[HEADS][STRIDE];
    float sink[HEADS], total[HEADS];
    const double scale = (double)0.125f;
    struct sl_kernels k = reference();
    struct rng rng = {inputs_seed()};

    (void)state;
    fill_floats(&rng, INPUT_PLAIN, 0, ENTRIES * HEADS, &scores[0][0]);
    fill_floats(&rng, INPUT_PLAIN, 0, HEADS, sink);
    sink[0] = 100; /* the sink takes all */
    sink[1] = -100;
    for (size_t n = 0; n < ENTRIES; n++)
        for (size_t h = 0; h < HEADS; h++)
            scores[n][h] = n % 7 == 3 ? SL_SCORE_ABSENT : scores[n][h] * 20;
    FLUSHED(k.attend_softmax(ENTRIES, &scores[0][0], HEADS, 0.125f, sink, &p[0][0], STRIDE, total));
    for (size_t h = 0; h < HEADS; h++) {
        double top = (double)sink[h], sum = 0;

        for (size_t n = 0; n < ENTRIES; n++)
            top = fmax(top, (double)scores[n][h] * scale);
        for (size_t n = 0; n < ENTRIES; n++) {
            double e = exp((double)scores[n][h] * scale - top);

            sum += e;
            assert_close(value_of_bf16(p[h][n]), e, e * 0x1.01p-8 + 0x1p-48);
            if (n % 7 == 3)
                assert_int_equal(p[h][n], 0);
        }
        sum += exp((double)sink[h] - top);
        assert_close((double)total[h], sum, sum * 3e-6);
    }
}

/* Against a walk through all scores, with floats' own comparison: none is -0. */
static void test_find_scores(void **state)
{
    enum { COUNT = 1000 };
    static float scores[COUNT], found[COUNT];
    static uint32_t places[COUNT];
    struct sl_kernels k = reference();
    struct rng rng = {inputs_seed()};

    (void)state;
    for (int round = 0; round < 200; round++) {
        const size_t count = 1 + rng_below(&rng, COUNT), found_max = rng_below(&rng, count + 1);
        size_t n, at = 0;
        float floor;

        fill_floats(&rng, round % 2 ? INPUT_PLAIN : INPUT_TIES, 0, count, scores);
        for (size_t i = 0; i < count; i++)
            scores[i] += 0.0f;
        floor = scores[rng_below(&rng, count)];
        n = k.find_scores(count, scores, floor, found_max, places, found);
        for (size_t i = 0; i < count && at < found_max; i++) {
            if (scores[i] < floor)
                continue;
            assert_true(at < n);
            assert_int_equal(places[at], i);
            assert_true(found[at++] == scores[i]);
        }
        assert_int_equal(n, at);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rms_norm),         cmocka_unit_test(test_exp),
        cmocka_unit_test(test_swiglu),           cmocka_unit_test(test_sqrt_softplus),
        cmocka_unit_test(test_rotate),           cmocka_unit_test(test_hadamard),
        cmocka_unit_test(test_hyper_connection), cmocka_unit_test(test_kv_entry),
        cmocka_unit_test(test_index_encode),     cmocka_unit_test(test_pool_rows),
        cmocka_unit_test(test_attend_softmax),   cmocka_unit_test(test_find_scores),
    };

    return cmocka_run_group_tests_name("reference rows", tests, NULL, NULL);
}
