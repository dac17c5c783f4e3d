/* The memory plan: what the expert cache gets of a budget, what is refused, and with which figures.
 * Plans are made up and the answers computed by hand, down to the last byte that does not fit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/base/arena.h"
#include "core/model/forward.h"
#include "daemon/engine/memory_plan.h"
#include "tests/fixture_model.h"

#define MIB (UINT64_C(1) << 20)

/* Fixed parts of 60 MiB; 10 experts of 4 MiB for a token, 100 in the model. Tables are 1 MiB, 8
 * bytes for each page, and 16 for each that reads go to: staging has 768. */
static struct sl_memory_plan plan_of(uint64_t budget_bytes)
{
    return (struct sl_memory_plan){
        .budget_bytes = budget_bytes,
        .budget_given = true,
        .need_bytes = {[SL_MEMORY_PROGRAM] = 5 * MIB,
                       [SL_MEMORY_WEIGHTS] = 35 * MIB,
                       [SL_MEMORY_KV] = 10 * MIB,
                       [SL_MEMORY_ACTIVATIONS] = 7 * MIB,
                       [SL_MEMORY_STAGING] = 3 * MIB},
        .table_bytes = MIB,
        .slot_bytes = 4 * MIB,
        .slots_min = 10,
        .slots_least = 10,
        .slots_max = 100,
        .segment_tokens = 512,
        .context_tokens = 4096,
        .n_sequences = 2,
        .kv_is_full = true,
    };
}

static uint64_t tables_of(uint64_t slots)
{
    return MIB + (60 + 4 * slots) * 256 * 8 + 768 * 16;
}

/* What so many slots take with all else. */
static uint64_t with(uint64_t slots)
{
    return 60 * MIB + slots * 4 * MIB + tables_of(slots);
}

/* The plan's cache is `slots` experts large, and it fits. */
static void expect_slots(uint64_t budget_bytes, uint64_t cache_bytes, bool cache_min,
                         uint64_t slots)
{
    struct sl_memory_plan plan = plan_of(budget_bytes), before = plan;
    struct sl_err err = {0};

    assert_int_equal(sl_memory_plan_cache(&plan, cache_bytes, cache_min, &err), 0);
    assert_int_equal(plan.need_bytes[SL_MEMORY_CACHE], slots * 4 * MIB);
    assert_int_equal(plan.need_bytes[SL_MEMORY_TABLES], tables_of(slots));
    assert_int_equal(sl_memory_plan_bytes(&plan), with(slots));
    before.need_bytes[SL_MEMORY_CACHE] = slots * 4 * MIB; /* and nothing else has changed */
    before.need_bytes[SL_MEMORY_TABLES] = tables_of(slots);
    assert_memory_equal(&plan, &before, sizeof(plan));
}

static void expect_refusal(uint64_t budget_bytes, uint64_t cache_bytes, bool cache_min,
                           const char *message)
{
    struct sl_memory_plan plan = plan_of(budget_bytes);
    struct sl_err err = {0};

    assert_int_equal(sl_memory_plan_cache(&plan, cache_bytes, cache_min, &err), -SL_EBUDGET);
    assert_int_equal(err.code, -SL_EBUDGET);
    assert_string_equal(err.message, message);
    assert_int_equal(sl_memory_plan_cache(&plan, cache_bytes, cache_min, NULL), -SL_EBUDGET);
}

static void test_cache_takes_what_is_left(void **state)
{
    struct sl_memory_plan plan = plan_of(with(35));

    (void)state;
    expect_slots(with(35), 0, false, 35);
    expect_slots(with(36) - 1, 0, false, 35); /* no part of an expert */
    expect_slots(with(36), 0, false, 36);
    expect_slots(with(10), 0, false, 10);
    expect_slots(UINT64_MAX, 0, false, 100); /* no more than the model has */
    /* Where reads go to the slots themselves, all of their pages are held. */
    plan.need_bytes[SL_MEMORY_STAGING] = 0;
    assert_int_equal(sl_memory_plan_cache(&plan, 0, false, NULL), 0);
    assert_int_equal(plan.need_bytes[SL_MEMORY_CACHE], 35 * 4 * MIB);
    assert_int_equal(plan.need_bytes[SL_MEMORY_TABLES],
                     MIB + (57 + 35 * 4) * 256 * 8 + 35 * 4 * 256 * 16);
}

static void test_cache_of_a_given_size(void **state)
{
    (void)state;
    expect_slots(200 * MIB, 60 * MIB, false, 15);
    expect_slots(200 * MIB, 64 * MIB - 1, false, 15);
    expect_slots(200 * MIB, 40 * MIB, false, 10);
    expect_slots(with(35), 140 * MIB, false, 35);
    expect_slots(with(100), UINT64_MAX, false, 100);
}

static void test_least_cache(void **state)
{
    (void)state;
    expect_slots(200 * MIB, 0, true, 10);
    expect_slots(with(10), 0, true, 10);
    expect_slots(UINT64_MAX, 77 * MIB, true, 10);
}

static void test_cache_below_one_token(void **state)
{
    (void)state;
    expect_refusal(
        200 * MIB, 40 * MIB - 1, false,
        "an expert cache of 40.0 MiB is below one token's working set (10 experts, 40.0 "
        "MiB), so each expert would be read again for each token; give --cache min, or more");
    expect_refusal(
        200 * MIB, 1, false,
        "an expert cache of 1 B is below one token's working set (10 experts, 40.0 "
        "MiB), so each expert would be read again for each token; give --cache min, or more");
}

static void test_parts_that_do_not_fit(void **state)
{
    struct sl_memory_plan plan = plan_of(99 * MIB);
    struct sl_err err = {0};

    (void)state;
    expect_refusal(
        with(10) - 1, 0, false,
        "needs 101 MiB of memory, of which 40.0 MiB for the expert cache, but the budget "
        "is 101 MiB (--ram); give a smaller --context or --segment, or more --ram");
    expect_refusal(
        with(10) - 1, 0, true,
        "needs 101 MiB of memory, of which 40.0 MiB for the expert cache, but the budget "
        "is 101 MiB (--ram); give a smaller --context or --segment, or more --ram");
    expect_refusal(200 * MIB, 144 * MIB, false,
                   "needs 205 MiB of memory, of which 144 MiB for the expert cache, but the budget "
                   "is 200 MiB (--ram); give a smaller --cache or --context or --segment, or "
                   "more --ram");
    expect_refusal(
        0, 0, false,
        "needs 101 MiB of memory, of which 40.0 MiB for the expert cache, but the budget "
        "is 0 B (--ram); it takes more --ram");
    /* Nothing but the least cache and weights is left to make smaller. */
    plan = plan_of(84 * MIB - 1);
    assert_int_equal(sl_memory_plan_cache(&plan, 0, false, &err), -SL_EBUDGET);
    assert_non_null(strstr(err.message, "; it takes more --ram"));
    plan = plan_of(84 * MIB);
    plan.context_tokens = plan.segment_tokens = 1;
    assert_int_equal(sl_memory_plan_cache(&plan, 0, false, &err), -SL_EBUDGET);
    assert_non_null(strstr(err.message, "; it takes more --ram"));
    plan = plan_of(99 * MIB);
    plan.budget_given = false;
    assert_int_equal(sl_memory_plan_cache(&plan, 0, false, &err), -SL_EBUDGET);
    assert_non_null(strstr(err.message, "99.0 MiB (what is available less a reserve)"));
}

/* ---- steps ------------------------------------------------------------------------------------
 */

static uint64_t activations_of(const struct sl_config *config, const struct sl_memory_case *what,
                               uint32_t n_tokens)
{
    return sl_arena_mapped_bytes(sl_forward_measure(config, what->draft, what->numerics,
                                                    what->n_threads, n_tokens, what->context_tokens,
                                                    what->n_sequences));
}

/* With their pages' entries in the system's tables. */
static uint64_t mapped(uint64_t bytes)
{
    return bytes + bytes / 4096 * 8;
}

/* Steps as long as their share of the memory allows, and not by one token longer. */
static void test_steps_take_their_share(void **state)
{
    const struct sl_weight_sizes dense = {.fixed_bytes = 5 * MIB, .n_layers = 4};
    struct sl_expert_shape experts = {.num_hidden_layers = 4};
    struct sl_config config;
    uint32_t n_given = 0;

    (void)state;
    fixture_config(&config);
    experts.n_routed_experts = config.n_routed_experts;
    experts.hidden_size = config.hidden_size;
    experts.moe_intermediate_size = config.moe_intermediate_size;
    for (uint64_t ram_mib = 64; ram_mib <= 4096; ram_mib *= 4) {
        struct sl_memory_case what = {.ram_bytes = ram_mib * MIB,
                                      .dense = &dense,
                                      .refuse_slow = true,
                                      .staging_bytes = 3 * MIB,
                                      .n_threads = 3,
                                      .context_tokens = 20000,
                                      .n_sequences = 2};
        struct sl_memory_plan plan;
        uint64_t left_bytes;

        assert_int_equal(sl_memory_plan_make(&plan, &config, &experts, &what, NULL), 0);
        left_bytes = what.ram_bytes - plan.need_bytes[SL_MEMORY_WEIGHTS] - 3 * MIB -
                     plan.need_bytes[SL_MEMORY_KV];
        assert_int_equal(plan.need_bytes[SL_MEMORY_ACTIVATIONS],
                         activations_of(&config, &what, plan.segment_tokens));
        assert_in_range(plan.segment_tokens, 512, 40000);
        if (plan.segment_tokens > 512)
            assert_true(plan.need_bytes[SL_MEMORY_ACTIVATIONS] <= left_bytes / SL_SEGMENT_SHARE);
        if (plan.segment_tokens < 40000)
            assert_true(activations_of(&config, &what, plan.segment_tokens + 1) >
                        left_bytes / SL_SEGMENT_SHARE);
        /* No more than a given cache leaves. */
        what.cache_bytes = left_bytes - left_bytes / SL_SEGMENT_SHARE / 2;
        if (activations_of(&config, &what, 512) > left_bytes - what.cache_bytes)
            continue;
        assert_int_equal(sl_memory_plan_make(&plan, &config, &experts, &what, NULL), 0);
        assert_true(sl_memory_plan_bytes(&plan) <= what.ram_bytes);
        /* One token more would not fit beside the cache and the tables. */
        assert_true(plan.segment_tokens == 40000 ||
                    activations_of(&config, &what, plan.segment_tokens + 1) >
                        left_bytes - what.cache_bytes - what.ram_bytes / 4096 * 8 - 768 * 16);
        n_given++;
        /* What is given is kept, but for tokens that no sequence has room for. */
        what.cache_bytes = 0;
        what.n_sequences = 1;
        what.segment_tokens = 700;
        what.context_tokens = 701;
        assert_int_equal(sl_memory_plan_make(&plan, &config, &experts, &what, NULL), 0);
        assert_int_equal(plan.segment_tokens, 700);
        what.context_tokens = 600;
        assert_int_equal(sl_memory_plan_make(&plan, &config, &experts, &what, NULL), 0);
        assert_int_equal(plan.segment_tokens, 600);
    }
    assert_true(n_given > 0);
}

/* What fits with short steps is not refused for the sake of longer ones. Experts are so large that
 * activations stay below their share of the memory. */
static void test_steps_leave_one_token_its_cache(void **state)
{
    const struct sl_weight_sizes dense = {.n_layers = 4};
    struct sl_memory_case what = {.ram_bytes = 1,
                                  .dense = &dense,
                                  .refuse_slow = true,
                                  .n_threads = 3,
                                  .context_tokens = 20000,
                                  .n_sequences = 1};
    struct sl_expert_shape experts = {.num_hidden_layers = 4, .moe_intermediate_size = 131072};
    struct sl_memory_plan plan;
    struct sl_config config;
    uint64_t least_bytes;

    (void)state;
    fixture_config(&config);
    experts.n_routed_experts = config.n_routed_experts;
    experts.hidden_size = config.hidden_size;
    assert_int_equal(sl_memory_plan_make(&plan, &config, &experts, &what, NULL), -SL_EBUDGET);
    least_bytes = sl_memory_plan_bytes(&plan) - mapped(plan.need_bytes[SL_MEMORY_ACTIVATIONS]);
    for (uint32_t n_tokens = 512; n_tokens < 800; n_tokens += 100) {
        what.ram_bytes = least_bytes + mapped(activations_of(&config, &what, n_tokens)) + 8;
        assert_int_equal(sl_memory_plan_make(&plan, &config, &experts, &what, NULL), 0);
        assert_true(plan.segment_tokens >= n_tokens);
        assert_int_equal(plan.need_bytes[SL_MEMORY_ACTIVATIONS],
                         activations_of(&config, &what, n_tokens));
    }
    what.ram_bytes = least_bytes + mapped(activations_of(&config, &what, 512)) - 9;
    assert_int_equal(sl_memory_plan_make(&plan, &config, &experts, &what, NULL), -SL_EBUDGET);
}

/* KV caches get what all sequences take at their longest, or a share, or what is given; but always
 * one sequence fits. */
static void test_kv_caches_take_their_share(void **state)
{
    const struct sl_weight_sizes dense = {.fixed_bytes = 5 * MIB, .n_layers = 4};
    struct sl_expert_shape experts = {.num_hidden_layers = 4, .moe_intermediate_size = 64};
    struct sl_memory_case what = {.ram_bytes = UINT64_C(1) << 40,
                                  .dense = &dense,
                                  .refuse_slow = true,
                                  .n_threads = 3,
                                  .segment_tokens = 16,
                                  .context_tokens = 20000,
                                  .n_sequences = 100};
    struct sl_kv_layout layout;
    struct sl_memory_plan plan;
    struct sl_config config;
    uint64_t one, taken;
    struct sl_err err;

    (void)state;
    fixture_config(&config);
    experts.n_routed_experts = config.n_routed_experts;
    experts.hidden_size = config.hidden_size;
    assert_int_equal(sl_kv_layout_init(&layout, &config, 4, SL_NUMERICS_NATIVE, NULL), 0);
    one = sl_kv_cache_measure(&layout, 20000);
    sl_kv_layout_fini(&layout);
    for (int share = 0; share < 2; share++) {
        what.kv_share = share;
        assert_int_equal(sl_memory_plan_make(&plan, &config, &experts, &what, NULL), 0);
        assert_int_equal(plan.kv_one_bytes, one);
        assert_int_equal(plan.need_bytes[SL_MEMORY_KV], sl_arena_mapped_bytes(100 * one));
        assert_true(plan.kv_is_full);
    }
    taken = 6 * MIB + plan.slots_min * plan.slot_bytes; /* weights in whole huge pages */
    what.ram_bytes = taken + 80 * one;
    assert_int_equal(sl_memory_plan_make(&plan, &config, &experts, &what, NULL), 0);
    assert_int_equal(plan.need_bytes[SL_MEMORY_KV], sl_arena_mapped_bytes(80 * one / SL_KV_SHARE));
    assert_false(plan.kv_is_full);
    what.ram_bytes = taken + SL_KV_SHARE * one - 1;
    sl_memory_plan_make(&plan, &config, &experts, &what, NULL);
    assert_int_equal(plan.need_bytes[SL_MEMORY_KV], sl_arena_mapped_bytes(one));

    what.ram_bytes = UINT64_C(1) << 40;
    what.kv_bytes = one;
    assert_int_equal(sl_memory_plan_make(&plan, &config, &experts, &what, NULL), 0);
    assert_int_equal(plan.need_bytes[SL_MEMORY_KV], sl_arena_mapped_bytes(one));
    what.kv_bytes = one - 1;
    assert_int_equal(sl_memory_plan_make(&plan, &config, &experts, &what, &err), -SL_EBUDGET);
    assert_non_null(strstr(err.message, "one sequence of 20000 tokens takes "));
}

static void test_print(void **state)
{
    struct sl_memory_plan plan = plan_of(200 * MIB);
    char *text = NULL;
    size_t length;
    FILE *out;

    (void)state;
    assert_int_equal(sl_memory_plan_cache(&plan, 0, false, NULL), 0);
    out = open_memstream(&text, &length);
    assert_non_null(out);
    sl_memory_plan_print(&plan, out);
    fclose(out);
    assert_string_equal(text,
                        "memory\n"
                        "  program            5.00 MiB   code, headers, tokenizer, prompt, stacks, "
                        "buffers\n"
                        "  dense weights      35.0 MiB\n"
                        "  KV cache           10.0 MiB   2 x 4096 tokens\n"
                        "  activations        7.00 MiB   512 tokens at once\n"
                        "  reads in flight    3.00 MiB\n"
                        "  expert cache        136 MiB   34 of 100 experts, 4.00 MiB each; one "
                        "token needs 10\n"
                        "  tables             1.39 MiB   the cache's, and the system's page "
                        "tables\n"
                        "  together            197 MiB   of 200 MiB (--ram)\n");
    free(text);
    plan.kv_is_full = false;
    out = open_memstream(&text, &length);
    assert_non_null(out);
    sl_memory_plan_print(&plan, out);
    fclose(out);
    assert_non_null(strstr(text, "  KV cache           10.0 MiB   sequences of up to 4096 tokens, "
                                 "each taking what it holds\n"));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cache_takes_what_is_left),
        cmocka_unit_test(test_cache_of_a_given_size),
        cmocka_unit_test(test_least_cache),
        cmocka_unit_test(test_cache_below_one_token),
        cmocka_unit_test(test_parts_that_do_not_fit),
        cmocka_unit_test(test_steps_take_their_share),
        cmocka_unit_test(test_steps_leave_one_token_its_cache),
        cmocka_unit_test(test_kv_caches_take_their_share),
        cmocka_unit_test(test_print),
    };

    return cmocka_run_group_tests_name("memory_plan", tests, NULL, NULL);
}
