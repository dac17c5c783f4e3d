/* An expert's matrices in the form that cache, stores and kernels share. A matrix of random codes
 * and scales is packed and compared, value by value, with what its rows say: whole and in parts, at
 * odd addresses, with scales of either dtype. Whatever is no number is refused wherever it is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/base/err.h"
#include "core/kernels/r16.h"
#include "core/model/expert_pack.h"
#include "tests/fixture_model.h"

/* Several blocks in either direction, and not as many in both. */
static const struct sl_expert_shape fp8 = {.num_hidden_layers = 1,
                                           .n_routed_experts = 1,
                                           .hidden_size = 384,
                                           .moe_intermediate_size = 256,
                                           .expert_dtype = SL_EXPERT_FP8};

struct fixture {
    struct sl_expert_rows rows;
    uint8_t *codes, *scales; /* one byte off an aligned address */
    uint8_t *packed;
    uint64_t codes_bytes, scales_bytes, packed_bytes;
    size_t n_tiles;
};

static uint8_t *take(uint64_t size_bytes)
{
    uint8_t *bytes = malloc(size_bytes + 1);

    assert_non_null(bytes);
    return bytes + 1;
}

static void make(struct fixture *f, const struct sl_expert_shape *shape, int matrix,
                 enum sl_dtype scale_dtype, uint64_t random)
{
    f->codes_bytes = sl_expert_codes_bytes(shape, matrix);
    f->scales_bytes = sl_expert_scales_bytes(shape, matrix, scale_dtype);
    f->packed_bytes = sl_expert_matrix_bytes(shape, matrix);
    f->n_tiles = sl_expert_matrix_rows(shape, matrix) / SL_R16_ROWS;
    f->codes = take(f->codes_bytes);
    f->scales = take(f->scales_bytes);
    f->packed = calloc(1, f->packed_bytes); /* aligned, with nothing after it */
    assert_non_null(f->packed);
    f->rows = (struct sl_expert_rows){f->codes, f->scales, scale_dtype};
    for (uint64_t i = 0; i < f->codes_bytes; i++)
        do
            f->codes[i] = (uint8_t)fixture_below(&random, 256);
        while (shape->expert_dtype == SL_EXPERT_FP8 && (f->codes[i] & 0x7f) == 0x7f);
    for (uint64_t i = 0; i < f->scales_bytes; i++)
        f->scales[i] = (uint8_t)(SL_E8M0_BIAS - 20 + fixture_below(&random, 40));
    for (uint64_t i = 0; scale_dtype == SL_DTYPE_F32 && i < f->scales_bytes; i += sizeof(float)) {
        const float scale = (1 + (float)fixture_below(&random, 1u << 20) * 0x1p-20f) * 0x1p-9f;

        memcpy(f->scales + i, &scale, sizeof(scale));
    }
}

static void end(struct fixture *f)
{
    free(f->codes - 1);
    free(f->scales - 1);
    free(f->packed);
}

static int pack(struct fixture *f, const struct sl_expert_shape *shape, int matrix)
{
    return sl_expert_pack(shape, matrix, &f->rows, 0, f->n_tiles, f->packed);
}

static float scale_of(const struct fixture *f, uint64_t block)
{
    float scale;

    if (f->rows.scale_dtype == SL_DTYPE_F8_E8M0)
        return sl_exp2i((int)f->scales[block] - (int)SL_E8M0_BIAS);
    memcpy(&scale, f->scales + block * sizeof(scale), sizeof(scale));
    return scale;
}

static void test_values_of_fp8(void **state)
{
    static const enum sl_dtype dtypes[] = {SL_DTYPE_F32, SL_DTYPE_F8_E8M0};

    (void)state;
    for (int i = 0; i < 2 * SL_EXPERT_MATRICES; i++) {
        const int matrix = i / 2;
        const uint64_t rows = sl_expert_matrix_rows(&fp8, matrix);
        const uint64_t cols = sl_expert_matrix_cols(&fp8, matrix), block_cols = cols / 128;
        struct fixture f;

        make(&f, &fp8, matrix, dtypes[i % 2], (uint64_t)i);
        assert_int_equal(f.packed_bytes, rows * cols + rows / 128 * block_cols * 4);
        assert_int_equal(pack(&f, &fp8, matrix), 0);
        for (uint64_t row = 0; row < rows; row++) {
            for (uint64_t col = 0; col < cols; col++) {
                const uint64_t at = row / 16 * 16 * cols + col / 2 * 32 + row % 16 * 2 + col % 2;
                const uint64_t block = row / 128 * block_cols + col / 128;
                float scale;

                memcpy(&scale, f.packed + rows * cols + 4 * block, 4);
                if (f.packed[at] != f.codes[row * cols + col] || scale != scale_of(&f, block))
                    fail_msg("matrix %d, row %u, column %u", matrix, (unsigned)row, (unsigned)col);
            }
        }
        end(&f);
    }
}

/* In parts of any length, from the last to the first. */
static void test_parts(void **state)
{
    struct sl_expert_shape shape = fp8;

    (void)state;
    for (size_t step = 1; step <= 9; step++) {
        for (int matrix = 0; matrix < SL_EXPERT_MATRICES; matrix++) {
            struct fixture f;
            uint8_t *whole;

            shape.expert_dtype = step % 2 ? SL_EXPERT_FP8 : SL_EXPERT_FP4;
            make(&f, &shape, matrix,
                 shape.expert_dtype == SL_EXPERT_FP8 ? SL_DTYPE_F32 : SL_DTYPE_F8_E8M0, step);
            assert_int_equal(pack(&f, &shape, matrix), 0);
            whole = f.packed;
            f.packed = calloc(1, f.packed_bytes);
            assert_non_null(f.packed);
            for (size_t last = f.n_tiles; last > 0; last -= last < step ? last : step)
                assert_int_equal(sl_expert_pack(&shape, matrix, &f.rows,
                                                last < step ? 0 : last - step, last, f.packed),
                                 0);
            assert_memory_equal(f.packed, whole, f.packed_bytes);
            free(whole);
            end(&f);
        }
    }
}

/* FP4 has its scales in the tiles. */
static void test_fp4_is_its_tiles(void **state)
{
    struct sl_expert_shape shape = fp8;
    struct fixture f;
    uint8_t *tiles;

    (void)state;
    shape.expert_dtype = SL_EXPERT_FP4;
    make(&f, &shape, SL_EXPERT_W2, SL_DTYPE_F8_E8M0, 5);
    assert_int_equal(f.packed_bytes, 384 / 16 * 256 / 128 * 1088);
    assert_int_equal(pack(&f, &shape, SL_EXPERT_W2), 0);
    tiles = malloc(f.packed_bytes);
    assert_non_null(tiles);
    assert_int_equal(sl_r16_pack_fp4(256, 0, f.n_tiles, f.codes, f.scales, tiles), 0);
    assert_memory_equal(f.packed, tiles, f.packed_bytes);
    free(tiles);
    end(&f);
}

static void test_codes_that_are_nan(void **state)
{
    struct fixture f;

    (void)state;
    make(&f, &fp8, SL_EXPERT_W1, SL_DTYPE_F32, 6);
    for (uint64_t i = 0; i < f.codes_bytes; i += i < 2000 ? 1 : 997) {
        const uint8_t right = f.codes[i];

        f.codes[i] = i % 2 ? 0x7f : 0xff;
        assert_int_equal(pack(&f, &fp8, SL_EXPERT_W1), -SL_ECORRUPT);
        f.codes[i] = right;
    }
    assert_int_equal(pack(&f, &fp8, SL_EXPERT_W1), 0);
    end(&f);
}

static void test_scales_that_are_none(void **state)
{
    static const uint32_t bad[] = {0x7fc00000, 0xffc00000, 0x7f800000, 0x5d800001, 0xbf800000};
    static const struct {
        uint32_t bits, packed;
    } limits[] = {{0x5d800000, 0x5d800000}, /* 2^60 */
                  {0x2f800000, 0x2f800000}, /* 2^-32 */
                  {0x2f7fffff, 0},          /* below it */
                  {0, 0},
                  {1, 0}};
    struct fixture f;

    (void)state;
    make(&f, &fp8, SL_EXPERT_W3, SL_DTYPE_F32, 7);
    for (uint64_t i = 0; i < f.scales_bytes; i += 4) {
        uint8_t right[4];

        memcpy(right, f.scales + i, 4);
        for (size_t k = 0; k < sizeof(bad) / sizeof(bad[0]); k++) {
            memcpy(f.scales + i, &bad[k], 4);
            assert_int_equal(pack(&f, &fp8, SL_EXPERT_W3), -SL_ECORRUPT);
        }
        for (size_t k = 0; k < sizeof(limits) / sizeof(limits[0]); k++) {
            memcpy(f.scales + i, &limits[k].bits, 4);
            assert_int_equal(pack(&f, &fp8, SL_EXPERT_W3), 0);
            assert_memory_equal(f.packed + f.codes_bytes + i, &limits[k].packed, 4);
        }
        memcpy(f.scales + i, right, 4);
    }
    end(&f);
}

static void test_e8m0_scales_at_their_limits(void **state)
{
    struct fixture f;

    (void)state;
    make(&f, &fp8, SL_EXPERT_W1, SL_DTYPE_F8_E8M0, 8);
    for (uint32_t byte = 0; byte < 256; byte++) {
        const float expected =
            byte < 127 - 32 ? 0 : sl_exp2i((int)byte - 127 > 60 ? 0 : (int)byte - 127);
        float scale;

        f.scales[f.scales_bytes - 1] = (uint8_t)byte;
        assert_int_equal(pack(&f, &fp8, SL_EXPERT_W1), byte > 127 + 60 ? -SL_ECORRUPT : 0);
        memcpy(&scale, f.packed + f.packed_bytes - 4, 4);
        assert_true(byte > 127 + 60 || scale == expected);
    }
    end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_of_fp8),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_fp4_is_its_tiles),
        cmocka_unit_test(test_codes_that_are_nan),
        cmocka_unit_test(test_scales_that_are_none),
        cmocka_unit_test(test_e8m0_scales_at_their_limits),
    };

    return cmocka_run_group_tests_name("expert_pack", tests, NULL, NULL);
}
