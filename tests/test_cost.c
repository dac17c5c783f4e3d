/* The arithmetic of `sluice plan`: bytes, multiplications and times of steps of the released
 * models. Expected figures were worked out by hand, from the models' sizes and made-up rates. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/base/file.h"
#include "tools/plan/cost.h"

#define EXPERT_BYTES_PRO 35094528.0
#define EXPERT_BYTES_FLASH 13369344.0

static struct sl_config config_of(const char *name)
{
    struct sl_config config;
    char path[64], *text;
    size_t length;

    snprintf(path, sizeof(path), "tests/oracle/configs/%s.json", name);
    assert_int_equal(sl_file_read_all(path, 1 << 20, &text, &length, NULL), 0);
    assert_int_equal(sl_config_parse(&config, text, length, path, NULL), 0);
    free(text);
    return config;
}

static void expect_near(double value, double expected)
{
    assert_float_equal(value / expected, 1.0, 1e-6);
}

/* Drive 10 GB/s, memory 100 GB/s. */
static const struct sl_machine_speeds speeds = {
    .drive = 10, .memory = 100, .multiply = {.int8 = 600, .bf16 = 300, .f32 = 60}};

static struct sl_cost predict(const struct sl_config *config, const struct sl_dense_cost *dense,
                              struct sl_cost_case step)
{
    struct sl_cost cost;

    sl_cost_predict(config, dense, &step, &speeds, &cost);
    return cost;
}

static void test_budget(void **state)
{
    const struct sl_config pro = config_of("v4-pro"), flash = config_of("v4-flash");
    const struct sl_dense_cost none = {0};
    struct sl_cost cost;

    (void)state;
    assert_int_equal(sl_cost_expert_bytes(&pro), 35094528);
    assert_int_equal(sl_cost_expert_bytes(&flash), 13369344);
    cost = predict(&pro, &none, (struct sl_cost_case){1, 1, 0, 0, 0, false, NULL, 0});
    expect_near(cost.n_experts, 366);
    expect_near(cost.drive_bytes, 366 * EXPERT_BYTES_PRO); /* 12.84 GB */
    expect_near(cost.drive_ns, 366 * EXPERT_BYTES_PRO / 10);
    assert_int_equal(cost.limit, SL_COST_DRIVE);
    cost = predict(&flash, &none, (struct sl_cost_case){1, 1, 0, 0, 0, false, NULL, 0});
    expect_near(cost.drive_bytes, 258 * EXPERT_BYTES_FLASH); /* 3.45 GB */
    /* One sweep: 822 GB, nobody leaves an expert out. */
    cost = predict(&pro, &none, (struct sl_cost_case){1, 16384, 0, 0, 0, false, NULL, 0});
    expect_near(cost.drive_bytes, 61 * 384 * EXPERT_BYTES_PRO);
    /* With 3/4 of it found. */
    cost = predict(&pro, &none, (struct sl_cost_case){1, 1, 0, 0.75, 0, false, NULL, 0});
    expect_near(cost.drive_bytes, 366 * EXPERT_BYTES_PRO / 4);
}

/* The base models: twice the bytes, and multiplied as BF16. */
static void test_fp8_experts(void **state)
{
    const struct sl_config pro = config_of("v4-pro"), base = config_of("v4-pro-base");
    const struct sl_dense_cost none = {0};
    const struct sl_cost_case one = {1, 1, 0, 0, 0, false, NULL, 0};
    struct sl_cost cost, fp4;

    (void)state;
    assert_int_equal(sl_cost_expert_bytes(&base), 66084864);
    fp4 = predict(&pro, &none, one);
    cost = predict(&base, &none, one);
    expect_near(cost.drive_bytes, 366 * 66084864.0); /* 24.2 GB */
    expect_near(cost.multiplied.bf16 - fp4.multiplied.bf16, 366.0 * 3 * 7168 * 3072);
    expect_near(fp4.multiplied.int8 - cost.multiplied.int8, 366.0 * 3 * 7168 * 3072);
}

/* With even routing n (1 - (1 - k/n)^t). Of the published curve, one token asks for as many and
 * finds what is published; more agree more, and thousands ask for all, however seldom they are
 * chosen. */
static void test_demands(void **state)
{
    const struct sl_config pro = config_of("v4-pro"), flash = config_of("v4-flash");
    struct sl_config small = flash;

    (void)state;
    small.n_routed_experts = 4;
    small.num_experts_per_tok = 2;
    expect_near(sl_cost_demanded(&flash, 1, true), 6);
    expect_near(sl_cost_demanded(&flash, 1, false), 6);
    expect_near(sl_cost_demanded(&small, 2, true), 3); /* 4 (1 - 1/4) */
    expect_near(sl_cost_demanded(&pro, 100000, true), 384);
    expect_near(sl_cost_demanded(&pro, 100000, false), 384);
    /* Two tokens: of 14.08 experts chosen 7.27 times as often as the average, and so on. */
    expect_near(sl_cost_demanded(&flash, 2, false),
                256 * (0.055 * (1 - pow(1 - 6 / 256.0 * 0.40 / 0.055, 2)) +
                       0.055 * (1 - pow(1 - 6 / 256.0 * 0.19 / 0.055, 2)) +
                       0.11 * (1 - pow(1 - 6 / 256.0 * 0.15 / 0.11, 2)) +
                       0.22 * (1 - pow(1 - 6 / 256.0 * 0.13 / 0.22, 2)) +
                       0.56 * (1 - pow(1 - 6 / 256.0 * 0.13 / 0.56, 2))));
    /* 2,422 of 11,008 experts are 22 %. */
    assert_float_equal(sl_cost_found(&flash, 2422, 1, false), 0.74, 1e-4);
    assert_float_equal(sl_cost_found(&flash, 2422, 1, true), 0.22, 1e-4);
    /* In sweeps (2,422 - 256) / 42 of each layer are pinned, 51. */
    assert_float_equal(sl_cost_found(&flash, 2422, 100000, false), 51 / 256.0, 1e-9);
    assert_float_equal(sl_cost_found(&flash, 2422, 1000, true), 51 / 256.0, 1e-9);
    /* More tokens ask for more, and find a smaller share of it. */
    for (uint32_t n = 2; n <= 4096; n *= 2) {
        assert_true(sl_cost_demanded(&flash, n, false) > sl_cost_demanded(&flash, n / 2, false));
        assert_true(sl_cost_found(&flash, 2422, n, false) <
                    sl_cost_found(&flash, 2422, n / 2, false));
    }
}

static void test_published_curve(void **state)
{
    (void)state;
    assert_float_equal(sl_cost_flash_hit_rate(0), 0, 1e-9);
    expect_near(sl_cost_flash_hit_rate(0.055), 0.40);
    expect_near(sl_cost_flash_hit_rate(0.0825), 0.495); /* half-way to 59 at 11 */
    expect_near(sl_cost_flash_hit_rate(0.22), 0.74);
    expect_near(sl_cost_flash_hit_rate(0.33), 0.805);
    expect_near(sl_cost_flash_hit_rate(0.72), 0.935);
    expect_near(sl_cost_flash_hit_rate(1), 1);
}

/* What belongs to a token's own work, and what is a table. */
static void test_dense_tensors(void **state)
{
    static const struct {
        const char *name;
        struct sl_tensor_info info;
    } tensors[] = {
        {"embed.weight", {SL_DTYPE_BF16, 2, {100, 10, 1, 1}, 2000, ""}},
        {"head.weight", {SL_DTYPE_BF16, 2, {100, 10, 1, 1}, 2000, ""}},
        {"norm.weight", {SL_DTYPE_BF16, 1, {10, 1, 1, 1}, 20, ""}},
        {"layers.0.attn.compressor.ape", {SL_DTYPE_F32, 2, {4, 10, 1, 1}, 160, ""}},
        {"layers.0.ffn.gate.tid2eid", {SL_DTYPE_I64, 2, {100, 2, 1, 1}, 1600, ""}},
        {"layers.0.attn.wq_a.weight", {SL_DTYPE_F8_E4M3, 2, {7, 10, 1, 1}, 70, ""}},
        {"layers.0.attn.wq_a.scale", {SL_DTYPE_F8_E8M0, 2, {1, 1, 1, 1}, 1, ""}},
        {"layers.0.ffn.gate.weight", {SL_DTYPE_BF16, 2, {3, 10, 1, 1}, 60, ""}},
        {"layers.0.hc_attn_fn", {SL_DTYPE_F32, 2, {24, 40, 1, 1}, 3840, ""}},
    };
    struct sl_dense_cost cost = {0};

    (void)state;
    for (size_t i = 0; i < sizeof(tensors) / sizeof(tensors[0]); i++)
        sl_cost_add_dense(&cost, tensors[i].name, &tensors[i].info);
    expect_near(cost.head_bytes, 2000);
    expect_near(cost.head_multiplied, 1000);
    expect_near(cost.read_bytes, 70 + 1 + 60 + 3840);
    expect_near(cost.multiplied.bf16, 70 + 30);
    expect_near(cost.multiplied.f32, 960);
    assert_true(cost.multiplied.int8 == 0);
}

/* Flash after 4,095 tokens: 2 layers with a window of 128 alone, 21 CSA (1,024 keys, 512 chosen),
 * 20 HCA (32 entries). An entry is 583 bytes, a key 68; 64 heads of 512. */
static void test_attention(void **state)
{
    const struct sl_config flash = config_of("v4-flash");
    const struct sl_dense_cost none = {0};
    const double entries = 43 * 128 + 21 * 512 + 20 * 32, keys = 21 * 1024;
    const double experts = 258 * EXPERT_BYTES_FLASH;
    struct sl_cost cost =
        predict(&flash, &none, (struct sl_cost_case){1, 1, 4095, 1, 0, false, NULL, 0});

    (void)state;
    expect_near(cost.memory_bytes, experts + entries * 583 + keys * 68);
    expect_near(cost.multiplied.bf16, entries * 2 * 64 * 512);
    expect_near(cost.multiplied.int8, 258.0 * 3 * 4096 * 2048 + keys * 64 * 128);
    /* Three sequences have three caches, one set of experts each token, shared as chance has it. */
    cost = predict(&flash, &none, (struct sl_cost_case){3, 1, 4095, 1, 0, false, NULL, 0});
    expect_near(cost.multiplied.bf16, 3 * entries * 2 * 64 * 512);
    expect_near(cost.memory_bytes,
                cost.n_experts * EXPERT_BYTES_FLASH + 3 * (entries * 583 + keys * 68));
}

/* Dense work and experts one after the other; of each the slower resource counts. */
static void test_time_and_limit(void **state)
{
    const struct sl_config pro = config_of("v4-pro");
    struct sl_dense_cost dense = {.read_bytes = 20e9, .head_bytes = 4e9};
    const double experts = 366 * EXPERT_BYTES_PRO;
    const double attended = 61 * 583.0; /* the token itself */
    struct sl_cost cost =
        predict(&pro, &dense, (struct sl_cost_case){1, 1, 0, 1, 0, false, NULL, 0});

    (void)state;
    expect_near(cost.memory_ns, (24e9 + experts + attended) / 100);
    expect_near(cost.step_ns, cost.memory_ns);
    assert_int_equal(cost.limit, SL_COST_MEMORY);
    cost = predict(&pro, &dense, (struct sl_cost_case){1, 1, 0, 0.5, 0, false, NULL, 0});
    expect_near(cost.step_ns, (24e9 + attended) / 100 + experts / 2 / 10);
    assert_int_equal(cost.limit, SL_COST_DRIVE);

    /* 16,384 tokens, all found: 822 GB are read once for 36 million multiplications by an expert.
     */
    dense.multiplied = (struct sl_multiplications){.bf16 = 3e9, .f32 = 6e6};
    cost = predict(&pro, &dense, (struct sl_cost_case){1, 16384, 0, 1, 0, false, NULL, 0});
    assert_int_equal(cost.limit, SL_COST_MULTIPLY);
    expect_near(cost.step_ns, cost.multiply_ns);
    expect_near(cost.multiply_ns,
                cost.multiplied.int8 / 600 + cost.multiplied.bf16 / 300 + cost.multiplied.f32 / 60);
    expect_near(cost.multiplied.f32, 16384 * 6e6);
}

/* Dense weights that stream are read beside dense work, but not beside experts. */
static void test_streamed(void **state)
{
    const struct sl_config pro = config_of("v4-pro");
    const struct sl_dense_cost dense = {.read_bytes = 20e9, .head_bytes = 4e9};
    const double experts = 366 * EXPERT_BYTES_PRO;
    const double dense_ns = (24e9 + 61 * 583.0) / 100;
    struct sl_cost cost =
        predict(&pro, &dense, (struct sl_cost_case){1, 1, 0, 0, 1000000000, false, NULL, 0});

    (void)state;
    expect_near(cost.drive_bytes, experts + 1e9);
    expect_near(cost.step_ns, dense_ns + experts / 10); /* hidden behind the dense work */
    cost = predict(&pro, &dense, (struct sl_cost_case){1, 1, 0, 0, 20000000000, false, NULL, 0});
    expect_near(cost.drive_ns, (experts + 20e9) / 10);
    expect_near(cost.step_ns, cost.drive_ns);
    assert_int_equal(cost.limit, SL_COST_DRIVE);
}

/* The head is for the last token of each sequence. */
static void test_head(void **state)
{
    const struct sl_config flash = config_of("v4-flash");
    const struct sl_dense_cost with = {.head_bytes = 1e9, .head_multiplied = 5e8}, none = {0};
    const struct sl_cost_case step = {4, 32, 100, 0.5, 0, false, NULL, 0};
    struct sl_cost a = predict(&flash, &with, step), b = predict(&flash, &none, step);

    (void)state;
    expect_near(a.multiplied.bf16 - b.multiplied.bf16, 4 * 5e8);
    expect_near(a.memory_bytes - b.memory_bytes, 1e9);
    expect_near(a.drive_bytes, b.drive_bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_budget),         cmocka_unit_test(test_fp8_experts),
        cmocka_unit_test(test_demands),        cmocka_unit_test(test_published_curve),
        cmocka_unit_test(test_dense_tensors),  cmocka_unit_test(test_attention),
        cmocka_unit_test(test_time_and_limit), cmocka_unit_test(test_streamed),
        cmocka_unit_test(test_head),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
