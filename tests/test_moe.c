/* The expert half of a layer: which experts it asks for, and that how they come does not matter.
 * The layer runs alone over random streams; its demands are compared with a plain sort, and its
 * output against the same layer with other pins. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/kernels/formats.h"
#include "core/model/moe.h"
#include "tests/fixture_model.h"
#include "core/kernels/dispatch.h"

#define TOKENS_MAX 1100u /* more than the rows of a batch, and than the router's chains */
#define ROWS_MAX 1024u   /* of a batch */
#define EXPERTS_MAX 160u

struct rig {
    struct sl_config config;
    struct fixture_weights source;
    struct fixture_experts experts;
    struct sl_weights weights;
    struct sl_kernels kernels;
    struct sl_compute compute;
    struct sl_step_token tokens[TOKENS_MAX];
    struct sl_step step;
    struct sl_arena arena;
    struct sl_moe *moe;
    uint64_t random;
};

static struct sl_moe *carve(struct rig *rig, struct sl_arena *arena)
{
    rig->step.streams = sl_arena_take(
        arena, TOKENS_MAX * rig->config.hc_mult * rig->config.hidden_size, sizeof(float));
    return sl_moe_carve(arena, &rig->config, SL_NUMERICS_NATIVE, TOKENS_MAX);
}

/* One layer with router bias, or hash-routed. */
static void rig_init_dtype(struct rig *rig, uint32_t n_experts, uint32_t k, bool hash,
                           enum sl_expert_dtype expert_dtype)
{
    struct sl_arena measure;

    *rig = (struct rig){.random = 9};
    fixture_config(&rig->config);
    rig->config.num_hidden_layers = 1;
    rig->config.num_nextn_predict_layers = 0;
    rig->config.num_hash_layers = hash;
    rig->config.n_routed_experts = n_experts;
    rig->config.num_experts_per_tok = k;
    rig->config.expert_dtype = expert_dtype;
    fixture_weights_init(&rig->source, &rig->config, 4);
    fixture_experts_init(&rig->experts, &rig->config, n_experts, 5);
    assert_int_equal(sl_kernels_select(&rig->kernels, NULL, NULL), 0);
    rig->compute = (struct sl_compute){.kernels = &rig->kernels};
    assert_int_equal(sl_pool_create(&rig->compute.pool, 2, NULL), 0);
    assert_int_equal(fixture_weights_load(&rig->source, &rig->weights, &rig->config, NULL,
                                          &sl_weights_all_resident, rig->compute.pool, NULL),
                     0);
    rig->step =
        (struct sl_step){.config = &rig->config, .compute = &rig->compute, .tokens = rig->tokens};
    sl_arena_init_measure(&measure);
    carve(rig, &measure);
    assert_int_equal(sl_arena_init(&rig->arena, measure.used_bytes, "test", NULL), 0);
    rig->moe = carve(rig, &rig->arena);
}

static void rig_init(struct rig *rig, uint32_t n_experts, uint32_t k, bool hash)
{
    rig_init_dtype(rig, n_experts, k, hash, SL_EXPERT_FP4);
}

static void rig_fini(struct rig *rig)
{
    sl_arena_fini(&rig->arena);
    sl_pool_destroy(rig->compute.pool);
    sl_weights_fini(&rig->weights);
    fixture_experts_fini(&rig->experts);
    fixture_weights_fini(&rig->source);
}

static size_t stream_count(const struct rig *rig, uint32_t n_tokens)
{
    return (size_t)n_tokens * rig->config.hc_mult * rig->config.hidden_size;
}

/* Runs the layer over n tokens of random streams, the same for the same seed. */
static void run(struct rig *rig, uint32_t n_tokens, uint64_t seed)
{
    struct sl_layer_weights *layer = &rig->weights.layers[0];

    rig->step.n_tokens = n_tokens;
    for (uint32_t i = 0; i < n_tokens; i++)
        rig->tokens[i].id = (int32_t)fixture_below(&seed, rig->config.vocab_size);
    for (size_t i = 0; i < stream_count(rig, n_tokens); i++)
        rig->step.streams[i] = (float)fixture_below(&seed, 1u << 20) * 0x1p-19f - 1.0f;
    sl_moe_prefetch(rig->moe, &rig->step, layer, &rig->experts.source);
    assert_int_equal(sl_moe_run(rig->moe, &rig->step, 0, layer, NULL, &rig->experts.source, NULL),
                     0);
    assert_int_equal(rig->experts.n_held, 0);
    for (size_t i = 0; i < stream_count(rig, n_tokens); i++)
        assert_true(isfinite(rig->step.streams[i]));
}

/* ---- the router --------------------------------------------------------------------------------
 */

/* The k experts of highest bias, of equal ones the lower, are those that one token demanded. */
static void check_picks(const struct rig *rig, const float *bias)
{
    const uint32_t n = rig->config.n_routed_experts, k = rig->config.num_experts_per_tok;
    uint32_t at = 0;

    assert_int_equal(rig->experts.n_demanded[0], k);
    for (uint32_t e = 0; e < n; e++) {
        uint32_t rank = 0;

        for (uint32_t other = 0; other < n; other++)
            rank += bias[other] > bias[e] || (bias[other] == bias[e] && other < e);
        if (rank < k)
            assert_int_equal(rig->experts.demanded[at++], e);
    }
    assert_int_equal(at, k);
}

/* A router of zeros gives every expert the same score, so that the bias alone decides. */
static void test_picks_are_a_stable_sort(void **state)
{
    static const uint32_t sizes[][2] = {{8, 3}, {EXPERTS_MAX, 6}, {5, 5}, {7, 1}, {20, 16}};

    (void)state;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        float bias[EXPERTS_MAX];
        struct rig rig;

        rig_init(&rig, sizes[i][0], sizes[i][1], false);
        memset((void *)(uintptr_t)rig.weights.layers[0].gate.tiles, 0,
               sl_r16_tile_count(sizes[i][0]) * sl_matrix_tile_bytes(&rig.weights.layers[0].gate));
        rig.weights.layers[0].gate_bias = bias;
        for (uint32_t round = 0; round < 60; round++) {
            uint32_t n_values = round < 20 ? 1 + round % 3 : 1 + fixture_below(&rig.random, 1000);

            for (uint32_t e = 0; e < sizes[i][0]; e++)
                bias[e] = (float)fixture_below(&rig.random, n_values) * 0.125f - 1.0f;
            run(&rig, 1, round);
            check_picks(&rig, bias);
        }
        rig_fini(&rig);
    }
}

/* Experts e and e + 4 have the same row and bias: whatever the scores, the lower goes first. */
static void test_equal_scores_pick_the_lower(void **state)
{
    struct fixture_weight *gate, *bias;
    uint32_t n_alone = 0;
    struct rig rig;

    (void)state;
    rig_init(&rig, 8, 3, false);
    gate = fixture_weights_find(&rig.source, "layers.0.ffn.gate.weight");
    bias = fixture_weights_find(&rig.source, "layers.0.ffn.gate.bias");
    memcpy(gate->data + gate->info.size_bytes / 2, gate->data, gate->info.size_bytes / 2);
    memcpy(bias->data + bias->info.size_bytes / 2, bias->data, bias->info.size_bytes / 2);
    sl_weights_fini(&rig.weights);
    assert_int_equal(fixture_weights_load(&rig.source, &rig.weights, &rig.config, NULL,
                                          &sl_weights_all_resident, rig.compute.pool, NULL),
                     0);
    for (uint32_t round = 0; round < 50; round++) {
        bool picked[8] = {false};

        run(&rig, 1, round);
        for (uint32_t i = 0; i < rig.experts.n_demanded[0]; i++)
            picked[rig.experts.demanded[i]] = true;
        for (uint32_t e = 0; e < 4; e++) {
            assert_true(picked[e] || !picked[e + 4]);
            n_alone += picked[e] && !picked[e + 4];
        }
    }
    assert_int_equal(n_alone, 50); /* three of two pairs: one of them is cut */
    rig_fini(&rig);
}

/* A table may name an expert twice for a token. It is asked for once, and three thirds of an expert
 * are the expert. */
static void test_duplicates_in_a_hash_row(void **state)
{
    static uint16_t thrice[75 * 3], once[75];
    static float expected[TOKENS_MAX * 3 * 128];
    struct rig rig;

    (void)state;
    rig_init(&rig, 8, 3, true);
    assert_int_equal(rig.config.vocab_size, 75);
    for (uint32_t t = 0; t < 75; t++) {
        once[t] = (uint16_t)(t * 5 % 8);
        for (uint32_t s = 0; s < 3; s++)
            thrice[t * 3 + s] = once[t];
    }
    rig.config.num_experts_per_tok = 1;
    rig.weights.layers[0].tid2eid = once;
    run(&rig, 150, 1);
    memcpy(expected, rig.step.streams, stream_count(&rig, 150) * sizeof(float));
    rig.config.num_experts_per_tok = 3;
    rig.weights.layers[0].tid2eid = thrice;
    run(&rig, 150, 1);
    assert_int_equal(rig.experts.n_demanded[0], 8);
    for (size_t i = 0; i < stream_count(&rig, 150); i++)
        assert_true(fabsf(rig.step.streams[i] - expected[i]) < 1e-4f * (1 + fabsf(expected[i])));
    for (uint32_t t = 0; t < 75; t++) /* and a pair beside another one */
        thrice[t * 3 + t % 3] = (uint16_t)(t % 8);
    run(&rig, 150, 1);
    rig_fini(&rig);
}

/* Experts are added in ascending number, not as a row of the table lists them. */
static void test_order_in_a_hash_row(void **state)
{
    static uint16_t table[75 * 3];
    static float expected[TOKENS_MAX * 3 * 128];
    struct rig rig;

    (void)state;
    rig_init(&rig, 8, 3, true);
    rig.weights.layers[0].tid2eid = table;
    for (uint32_t turn = 0; turn < 3; turn++) {
        for (uint32_t t = 0; t < 75; t++)
            for (uint32_t s = 0; s < 3; s++)
                table[t * 3 + (s + turn) % 3] = (uint16_t)((t + 3 * s) % 8);
        run(&rig, 100, 1);
        if (turn == 0)
            memcpy(expected, rig.step.streams, stream_count(&rig, 100) * sizeof(float));
        assert_memory_equal(rig.step.streams, expected, stream_count(&rig, 100) * sizeof(float));
    }
    rig_fini(&rig);
}

/* ---- pins --------------------------------------------------------------------------------------
 */

/* More experts at once than fit a batch, and more tokens; down to as few pins as a token needs. */
static void check_pins(enum sl_expert_dtype expert_dtype)
{
    static const uint32_t counts[] = {
        1, 2, 21, 2 * SL_CHUNK_TOKENS - 1, 2 * SL_CHUNK_TOKENS + 1, ROWS_MAX, TOKENS_MAX};
    static const float no_bias[EXPERTS_MAX];
    struct rig rig;

    rig_init_dtype(&rig, EXPERTS_MAX, 6, false, expert_dtype);
    rig.weights.layers[0].gate_bias = no_bias; /* all experts have a chance */
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        size_t size_bytes = stream_count(&rig, counts[i]) * sizeof(float);
        float *expected = malloc(size_bytes);

        assert_non_null(expected);
        rig.experts.source.pins_max = EXPERTS_MAX;
        rig.experts.shuffle = false;
        rig.experts.delay_permille = rig.experts.partial_permille = 0;
        rig.experts.n_held_max = 0;
        run(&rig, counts[i], i);
        memcpy(expected, rig.step.streams, size_bytes);
        if (counts[i] == 21) /* the batch is cut by its experts, not its rows */
            assert_true(rig.experts.n_demanded[0] > 64 && rig.experts.n_held_max == 64);
        for (uint32_t pins_max = 6; pins_max <= EXPERTS_MAX; pins_max += 77) {
            rig.experts.source.pins_max = pins_max;
            rig.experts.shuffle = true;
            rig.experts.delay_permille = 300;
            rig.experts.partial_permille = 500;
            run(&rig, counts[i], i);
            assert_memory_equal(rig.step.streams, expected, size_bytes);
        }
        free(expected);
    }
    rig_fini(&rig);
}

static void test_pins_do_not_show(void **state)
{
    (void)state;
    check_pins(SL_EXPERT_FP4);
}

static void test_pins_of_fp8_do_not_show(void **state)
{
    (void)state;
    check_pins(SL_EXPERT_FP8);
}

/* An expert of more pairs than a batch holds is in several: whichever of them fails, it is given
 * back. */
static void test_failure_leaves_no_pin(void **state)
{
    static const uint16_t table[75] = {0}; /* one expert for all tokens */
    struct rig rig;

    (void)state;
    rig_init(&rig, 8, 1, true);
    rig.weights.layers[0].tid2eid = table;
    rig.experts.partial_permille = 1000;
    run(&rig, TOKENS_MAX, 1);
    assert_int_equal(rig.experts.n_requests, 4); /* demand, next, two batches */
    for (uint64_t nth = 1; nth <= 4; nth++) {
        rig.experts.fail_nth = nth;
        rig.experts.fail_code = -EIO;
        sl_moe_prefetch(rig.moe, &rig.step, rig.weights.layers, &rig.experts.source);
        assert_int_equal(
            sl_moe_run(rig.moe, &rig.step, 0, rig.weights.layers, NULL, &rig.experts.source, NULL),
            -EIO);
        assert_int_equal(rig.experts.n_held, 0);
    }
    rig_fini(&rig);
}

/* ---- barriers ----------------------------------------------------------------------------------
 */

static uint32_t times(uint32_t n, uint32_t at_once)
{
    return (n + at_once - 1) / at_once;
}

/* Where all experts are there, the threads of a layer meet once for so many tokens in the router,
 * for so many in the shared expert and for so many rows of routed ones, and at its end. */
static void test_barriers_are_of_batches(void **state)
{
    static const uint32_t counts[] = {100, 512, ROWS_MAX, TOKENS_MAX};
    struct rig rig;

    (void)state;
    rig_init(&rig, 40, 6, false);
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        const uint32_t n = counts[i];
        const struct sl_account begin = sl_pool_account(rig.compute.pool);
        struct sl_account spent = {0};
        uint32_t n_barriers = 0;

        run(&rig, n, i);
        spent = sl_pool_account(rig.compute.pool);
        spent = sl_account_difference(&begin, &spent);
        for (int phase = 0; phase < SL_PHASES; phase++)
            n_barriers += (uint32_t)spent.of[phase].n_barriers;
        assert_int_equal(n_barriers, 2 * times(n, ROWS_MAX) + times(6 * n, ROWS_MAX) + 1);
    }
    rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_picks_are_a_stable_sort),
        cmocka_unit_test(test_equal_scores_pick_the_lower),
        cmocka_unit_test(test_duplicates_in_a_hash_row),
        cmocka_unit_test(test_order_in_a_hash_row),
        cmocka_unit_test(test_pins_do_not_show),
        cmocka_unit_test(test_pins_of_fp8_do_not_show),
        cmocka_unit_test(test_failure_leaves_no_pin),
        cmocka_unit_test(test_barriers_are_of_batches),
    };

    return cmocka_run_group_tests_name("moe", tests, NULL, NULL);
}
