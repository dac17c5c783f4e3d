/* Number formats and tiles. Conversions are compared with their definitions in double arithmetic,
 * for all codes and at every midpoint between two of them; packed tiles are read back byte by byte
 * where r16.h says that each weight lies. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/base/err.h"
#include "core/kernels/formats.h"
#include "core/kernels/r16.h"
#include "tests/kernel_inputs.h"

static void assert_same_bits(float a, double b)
{
    assert_int_equal(sl_f32_bits(a), sl_f32_bits((float)b));
}

/* A rounding to codes of 0..n_magnitudes - 1 and a sign bit: exact values keep their code, what
 * lies between two goes to the nearer, and the midpoint to the even one. */
static void check_rounding(uint32_t n_magnitudes, uint32_t sign_bit, double (*value_of)(uint32_t),
                           uint32_t (*round)(float))
{
    for (uint32_t code = 0; code < n_magnitudes; code++) {
        for (int sign = 0; sign < 2; sign++) {
            uint32_t low = code | (sign ? sign_bit : 0), high = low + 1;
            float middle = (float)((value_of(low) + value_of(high)) / 2);
            float outward = sign ? -INFINITY : INFINITY;

            assert_int_equal(round((float)value_of(low)), low);
            if (code + 1 == n_magnitudes)
                continue;
            assert_true((double)middle == (value_of(low) + value_of(high)) / 2);
            assert_int_equal(round(middle), code % 2 ? high : low);
            assert_int_equal(round(nextafterf(middle, -outward)), low);
            assert_int_equal(round(nextafterf(middle, outward)), high);
        }
    }
}

static uint32_t round_bf16(float value)
{
    return sl_f32_to_bf16(value);
}

static void test_bf16(void **state)
{
    (void)state;
    for (uint32_t code = 0; code < 65536; code++) {
        bool tiny = fabs(value_of_bf16(code)) < 0x1p-48;

        if ((code & 0x7f80) == 0x7f80)
            continue;
        assert_same_bits(sl_bf16_to_f32((uint16_t)code), value_of_bf16(code));
        assert_int_equal(sl_bf16_drop_tiny((uint16_t)code), tiny ? 0 : code);
    }
    check_rounding(0x7f80, 0x8000, value_of_bf16, round_bf16);
}

static void test_drop_tiny(void **state)
{
    static const struct {
        float value, kept;
    } cases[] = {{0x1p-48f, 0x1p-48f},  {-0x1p-48f, -0x1p-48f}, {0x1.fffffep-49f, 0},
                 {-0x1.fffffep-49f, 0}, {0x1p-149f, 0},         {-0.0f, 0},
                 {0x1p127f, 0x1p127f},  {-1.5f, -1.5f}};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_same_bits(sl_f32_drop_tiny(cases[i].value), (double)cases[i].kept);
}

static uint32_t round_e4m3(float value)
{
    return sl_f32_to_e4m3(value);
}

static void test_e4m3(void **state)
{
    static const float above[] = {449, 464, 480, 1000, 0x1p100f, 0x1.fffffep127f};

    (void)state;
    for (uint32_t code = 0; code < 256; code++)
        assert_same_bits(sl_e4m3_to_f32(code), value_of_e4m3(code));
    assert_true(value_of_e4m3(0x7e) == 448); /* the largest; 0x7f is NaN */
    check_rounding(127, 0x80, value_of_e4m3, round_e4m3);
    for (size_t i = 0; i < sizeof(above) / sizeof(above[0]); i++) {
        assert_int_equal(sl_f32_to_e4m3(above[i]), 0x7e);
        assert_int_equal(sl_f32_to_e4m3(-above[i]), 0xfe);
    }
    for (int exponent = -300; exponent <= 300; exponent++) {
        uint32_t least = 0;

        while (least < 127 && value_of_e4m3(least) < ldexp(1, exponent))
            least++;
        assert_int_equal(sl_e4m3_magnitude_floor(exponent), least);
    }
}

static uint32_t round_e2m1(float value)
{
    return sl_f32_to_e2m1(value);
}

static void test_e2m1(void **state)
{
    (void)state;
    for (uint32_t code = 0; code < 16; code++)
        assert_true(sl_e2m1_twice((uint8_t)code) == 2 * value_of_e2m1(code));
    check_rounding(8, 8, value_of_e2m1, round_e2m1);
    assert_int_equal(sl_f32_to_e2m1(100.0f), 7);
    assert_int_equal(sl_f32_to_e2m1(-100.0f), 15);
}

static void test_powers_of_two(void **state)
{
    struct rng rng = {inputs_seed()};

    (void)state;
    for (int exponent = -126; exponent <= 127; exponent++) {
        float power = sl_exp2i(exponent);

        assert_same_bits(power, ldexp(1, exponent));
        assert_int_equal(sl_exponent_ceil(power), exponent);
        assert_int_equal(sl_exponent_ceil(nextafterf(power, INFINITY)), exponent + 1);
        if (exponent > -126)
            assert_int_equal(sl_exponent_ceil(nextafterf(power, 0)), exponent);
    }
    for (int i = 0; i < 10000; i++) {
        float value = sl_f32_from_bits(0x00800000u + (uint32_t)rng_below(&rng, 0x7f000000u));

        assert_int_equal(sl_exponent_ceil(value), (int)ceil(log2((double)value)));
    }
}

/* ---- tiles -------------------------------------------------------------------------------------
 */

#define COLS 256u
#define ROWS_MAX 80u

static uint8_t random_byte(struct rng *rng)
{
    return (uint8_t)(rng_next(rng) >> 40);
}

static bool is_filled(const uint8_t *bytes, size_t count, uint8_t value)
{
    for (size_t i = 0; i < count; i++)
        if (bytes[i] != value)
            return false;
    return true;
}

static void test_pack_fp4(void **state)
{
    enum { N_TILES = 5, FIRST = 1, END = 4 };
    static uint8_t codes[ROWS_MAX][COLS / 2], scales[ROWS_MAX][COLS / 32];
    static uint8_t tiles[N_TILES][COLS / 128][SL_FP4_GROUP_BYTES];
    struct rng rng = {inputs_seed()};

    (void)state;
    for (size_t row = 0; row < ROWS_MAX; row++) {
        for (size_t i = 0; i < COLS / 2; i++)
            codes[row][i] = random_byte(&rng);
        for (size_t i = 0; i < COLS / 32; i++)
            scales[row][i] = (uint8_t)rng_below(&rng, 127 + 60 + 1);
    }
    memset(tiles, 0x5a, sizeof(tiles));
    assert_int_equal(
        sl_r16_pack_fp4(COLS, FIRST, END, &codes[0][0], &scales[0][0], &tiles[0][0][0]), 0);
    assert_true(is_filled(&tiles[0][0][0], sizeof(tiles[0]) * FIRST, 0x5a));
    assert_true(is_filled(&tiles[END][0][0], sizeof(tiles[0]) * (N_TILES - END), 0x5a));
    for (size_t row = FIRST * 16; row < END * 16; row++) {
        for (size_t col = 0; col < COLS; col++) {
            const uint8_t *group = tiles[row / 16][col / 128];
            size_t in_group = col % 128, in_eight = col % 8;
            uint8_t stored = group[64 + in_group / 8 * 64 + row % 16 * 4 + in_eight / 2];
            uint8_t given = codes[row][col / 2], scale = scales[row][col / 32];

            assert_int_equal(stored >> (in_eight % 2 * 4) & 15, given >> (col % 2 * 4) & 15);
            assert_int_equal(group[in_group / 32 * 16 + row % 16], scale < 127 - 48 ? 0 : scale);
        }
    }
}

static void test_pack_fp4_refuses(void **state)
{
    static uint8_t codes[16][COLS / 2], scales[16][COLS / 32], tiles[2 * SL_FP4_GROUP_BYTES];

    (void)state;
    for (size_t i = 0; i < sizeof(scales); i++) {
        uint8_t *scale = &scales[0][0] + i;

        for (unsigned byte = 0; byte < 256; byte++) {
            *scale = (uint8_t)byte;
            assert_int_equal(sl_r16_pack_fp4(COLS, 0, 1, &codes[0][0], &scales[0][0], tiles),
                             byte <= 127 + 60 ? 0 : -SL_ECORRUPT);
        }
        *scale = 0;
    }
}

/* Row counts of whole and partial tiles, the first and the last row of one among them. */
static const size_t row_counts[] = {1, 15, 16, 17, 31, 40, 64};
#define N_ROW_COUNTS (sizeof(row_counts) / sizeof(row_counts[0]))

static void test_pack_fp8(void **state)
{
    static uint8_t codes[ROWS_MAX][COLS], tiles[ROWS_MAX / 16 + 1][COLS / 2][16][2];
    struct rng rng = {inputs_seed()};

    (void)state;
    for (size_t n = 0; n < N_ROW_COUNTS * 20; n++) {
        size_t rows = row_counts[n % N_ROW_COUNTS], padded = sl_r16_padded_rows(rows);
        uint8_t scales[COLS / 128];

        /* the smallest codes become tiny from 2^-39 on, the largest below 2^-57 */
        fill_fp8(&rng, INPUT_PLAIN, sizeof(codes), &codes[0][0], 2, scales);
        scales[0] = (uint8_t)(127 - 60 + n % 24);
        scales[1] = n % 2 ? (uint8_t)rng_below(&rng, 127 + 60 + 1) : (uint8_t)(127 + 60);
        memset(tiles, 0x5a, sizeof(tiles));
        assert_int_equal(sl_r16_pack_fp8(rows, COLS, &codes[0][0], scales, &tiles[0][0][0][0]), 0);
        for (size_t row = 0; row < padded; row++) {
            for (size_t col = 0; col < COLS; col++) {
                uint8_t code = row < rows ? codes[row][col] : 0;
                double value = ldexp(value_of_e4m3(code), scales[col / 128] - 127);

                if (fabs(value) < 0x1p-48)
                    code = 0;
                assert_int_equal(tiles[row / 16][col / 2][row % 16][col % 2], code);
            }
        }
        assert_true(is_filled(&tiles[padded / 16][0][0][0], sizeof(tiles[0]), 0x5a));
    }
}

static void test_pack_fp8_refuses(void **state)
{
    static uint8_t codes[16][COLS], tiles[16 * COLS];
    uint8_t scales[COLS / 128] = {127, 127};

    (void)state;
    for (size_t i = 0; i < sizeof(codes); i += 37) {
        for (unsigned nan = 0x7f; nan < 256; nan += 0x80) {
            (&codes[0][0])[i] = (uint8_t)nan;
            assert_int_equal(sl_r16_pack_fp8(16, COLS, &codes[0][0], scales, tiles), -SL_ECORRUPT);
        }
        (&codes[0][0])[i] = 0;
    }
    for (size_t i = 0; i < COLS / 128; i++) {
        for (unsigned byte = 0; byte < 256; byte++) {
            scales[i] = (uint8_t)byte;
            assert_int_equal(sl_r16_pack_fp8(16, COLS, &codes[0][0], scales, tiles),
                             byte <= 127 + 60 ? 0 : -SL_ECORRUPT);
        }
        scales[i] = 127;
    }
}

static void test_pack_bf16(void **state)
{
    enum { N_COLS = 46 }; /* a cache line of them, eight more, and six that are left */
    static const enum input_kind kinds[] = {INPUT_PLAIN, INPUT_TINY, INPUT_LARGE};
    static uint16_t codes[ROWS_MAX][N_COLS], tiles[ROWS_MAX / 16 + 1][N_COLS / 2][16][2];
    static float values[ROWS_MAX * N_COLS];
    struct rng rng = {inputs_seed()};

    (void)state;
    for (size_t n = 0; n < N_ROW_COUNTS * 3; n++) {
        size_t rows = row_counts[n % N_ROW_COUNTS], padded = sl_r16_padded_rows(rows);

        fill_floats(&rng, kinds[n / N_ROW_COUNTS], 100, ROWS_MAX * N_COLS, values);
        for (size_t i = 0; i < ROWS_MAX * N_COLS; i++)
            (&codes[0][0])[i] = sl_f32_to_bf16(values[i]);
        memset(tiles, 0x5a, sizeof(tiles));
        assert_int_equal(
            sl_r16_pack_bf16(rows, N_COLS, &codes[0][0], (uint8_t *)&tiles[0][0][0][0]), 0);
        for (size_t row = 0; row < padded; row++) {
            for (size_t col = 0; col < N_COLS; col++) {
                uint16_t code = row < rows ? codes[row][col] : 0;

                assert_int_equal(tiles[row / 16][col / 2][row % 16][col % 2],
                                 fabs(value_of_bf16(code)) < 0x1p-48 ? 0 : code);
            }
        }
        assert_true(is_filled((uint8_t *)&tiles[padded / 16], sizeof(tiles[0]), 0x5a));
        for (size_t i = 0; i < rows * N_COLS; i++) {
            uint16_t was = (&codes[0][0])[i];

            (&codes[0][0])[i] = i % 2 ? 0x7f80 : 0xffc1;
            assert_int_equal(
                sl_r16_pack_bf16(rows, N_COLS, &codes[0][0], (uint8_t *)&tiles[0][0][0][0]),
                -SL_ECORRUPT);
            (&codes[0][0])[i] = was;
        }
    }
}

static void test_pack_f32(void **state)
{
    enum { N_COLS = 5 };
    static const enum input_kind kinds[] = {INPUT_PLAIN, INPUT_TINY, INPUT_LARGE};
    static float values[ROWS_MAX][N_COLS], tiles[ROWS_MAX / 16 + 1][N_COLS][16];
    struct rng rng = {inputs_seed()};

    (void)state;
    for (size_t n = 0; n < N_ROW_COUNTS * 3; n++) {
        size_t rows = row_counts[n % N_ROW_COUNTS], padded = sl_r16_padded_rows(rows);

        fill_floats(&rng, kinds[n / N_ROW_COUNTS], 127, ROWS_MAX * N_COLS, &values[0][0]);
        memset(tiles, 0x5a, sizeof(tiles));
        assert_int_equal(sl_r16_pack_f32(rows, N_COLS, &values[0][0], (uint8_t *)tiles), 0);
        for (size_t row = 0; row < padded; row++) {
            for (size_t col = 0; col < N_COLS; col++) {
                double value = row < rows ? (double)values[row][col] : 0;

                assert_same_bits(tiles[row / 16][col][row % 16], fabs(value) < 0x1p-48 ? 0 : value);
            }
        }
        assert_true(is_filled((uint8_t *)&tiles[padded / 16], sizeof(tiles[0]), 0x5a));
        values[rows - 1][N_COLS - 1] = n % 2 ? -INFINITY : NAN;
        assert_int_equal(sl_r16_pack_f32(rows, N_COLS, &values[0][0], (uint8_t *)tiles),
                         -SL_ECORRUPT);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_drop_tiny),
        cmocka_unit_test(test_e4m3),
        cmocka_unit_test(test_e2m1),
        cmocka_unit_test(test_powers_of_two),
        cmocka_unit_test(test_pack_fp4),
        cmocka_unit_test(test_pack_fp4_refuses),
        cmocka_unit_test(test_pack_fp8),
        cmocka_unit_test(test_pack_fp8_refuses),
        cmocka_unit_test(test_pack_bf16),
        cmocka_unit_test(test_pack_f32),
    };

    return cmocka_run_group_tests_name("formats", tests, NULL, NULL);
}
