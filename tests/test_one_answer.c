/* One answer: whatever the streaming does, the logits are the same bytes. The tiny model runs as a
 * checkpoint, a store, stores on two and three drives, and a compressed one on three, under every
 * policy, prefetch and way of verifying, in steps of different lengths, while the cache changes its
 * size and reads are tried again, with FP4 experts and with FP8 ones; and the replay of a recorded
 * trace counts what its run counted. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cache/cache_replay.h"
#include "tests/engine_rig.h"

#define TOKENS ENGINE_RIG_TOKENS
#define MODELS 5u

static const struct sl_policy_ops *const policies[] = {&sl_policy_frequency, &sl_policy_lru};

/* ---- ways to run -------------------------------------------------------------------------------
 */

/* The model's tokens, a few at a time; with `resize` the cache gets another size before each step.
 * With `faulty` every fifth read is cut short, they land in any order, and one fails and is tried
 * again, unless it was a prediction that was given up. Returns whether that happened. */
static bool check_answer(const struct engine_rig *m, struct sl_engine_options options, bool faulty,
                         bool resize, uint64_t random)
{
    const struct io_fault_plan plan = {.seed = random,
                                       .short_permille = 200,
                                       .shuffle = true,
                                       .fail_nth = 1 + random,
                                       .fail_code = -EIO};
    float *logits = calloc(1, m->logits_bytes);
    struct engine_rig_rows rows = {logits, m->row_bytes};
    struct sl_engine *engine;
    bool retried;
    uint32_t n;

    assert_non_null(logits);
    if (faulty)
        engine_rig_make_faulty(&options);
    assert_int_equal(sl_engine_open(&engine, &options, NULL, NULL), 0);
    if (faulty)
        io_fault_set(engine_rig_faulty(), &plan);
    for (uint32_t done = 0; done < TOKENS; done += n) {
        const uint32_t n_slots =
            ENGINE_RIG_SLOTS_MIN +
            fixture_below(&random, ENGINE_RIG_EXPERTS - ENGINE_RIG_SLOTS_MIN + 1);
        struct sl_span span = {engine_rig_kv(engine, 0), m->tokens + done, 0, SL_LOGITS_ALL};

        n = 1 + fixture_below(&random, TOKENS - done < 8 ? TOKENS - done : 8);
        span.n_tokens = n;
        if (resize)
            assert_int_equal(sl_engine_resize_cache(engine, n_slots * m->slot_bytes, NULL), 0);
        assert_int_equal(sl_engine_step(engine,
                                        &(struct sl_step_request){
                                            .spans = &span,
                                            .n_spans = 1,
                                            .on_logits = engine_rig_keep_rows,
                                            .on_logits_context = &rows,
                                        },
                                        NULL),
                         0);
    }
    assert_memory_equal(logits, m->logits, m->logits_bytes);
    retried = sl_engine_counters(engine).n_retries > 0;
    sl_engine_close(engine);
    free(logits);
    return retried;
}

/* All ways to say where experts come from and when, and of the rest one after the other. */
static void test_every_way_gives_the_same_bytes(void **state)
{
    static const enum sl_prefetch prefetches[] = {SL_PREFETCH_OFF, SL_PREFETCH_HASH,
                                                  SL_PREFETCH_GATE, SL_PREFETCH_AUTO};
    static const enum sl_verify verifies[] = {SL_VERIFY_FIRST, SL_VERIFY_ALWAYS, SL_VERIFY_NEVER};
    const struct engine_rig *m = *state;
    /* FP8 experts take the same ways, and are verified in one way only. */
    const uint32_t n_ways = MODELS * 2 * 3 * (m->config.expert_dtype == SL_EXPERT_FP8 ? 1 : 3);
    char stores[MODELS - 1][FIXTURE_PATH_BYTES];
    uint32_t n_retried = 0;

    for (uint32_t i = 0; i < MODELS - 1; i++) {
        char name[16];

        snprintf(name, sizeof(name), "store-%u", i);
        engine_rig_pack(m, name, i < 3 ? i : 2, i == 3, stores[i]);
    }
    for (uint32_t i = 0; i < n_ways; i++) {
        const uint32_t model = i % MODELS;
        struct sl_engine_options options = engine_rig_options(m);
        const bool faulty = i / 3 % 2, resize = i / 7 % 2;

        options.model = model ? stores[model - 1] : m->folder;
        options.policy = policies[i / MODELS % 2];
        options.prefetch = prefetches[i / (MODELS * 2) % 3];
        options.verify = verifies[i / (MODELS * 2 * 3)];
        options.io = i / 2 % 2 ? sl_io_threads_open : sl_io_choose(NULL);
        options.cache_min = !resize;
        if (!resize && i % 2) { /* the least that a step can do with */
            options.dense = SL_DENSE_STREAM;
            options.cache_min = false;
            options.cache_bytes = 2 * m->config.num_experts_per_tok * m->slot_bytes;
        }
        n_retried += check_answer(m, options, faulty, resize, i);
    }
    assert_true(n_retried > n_ways / 5);
}

/* The cache has the size that was asked for, and keeps it where another one is refused. */
static void test_sizes(void **state)
{
    const struct engine_rig *m = *state;
    struct sl_engine_options options = engine_rig_options(m);
    struct sl_engine *engine;
    struct sl_err err;

    options.cache_min = false;
    assert_int_equal(sl_engine_open(&engine, &options, NULL, NULL), 0);
    assert_int_equal(sl_engine_slot_count(engine), ENGINE_RIG_EXPERTS);
    for (uint32_t n_slots = ENGINE_RIG_EXPERTS + 5; n_slots >= ENGINE_RIG_SLOTS_MIN; n_slots -= 5) {
        assert_int_equal(sl_engine_resize_cache(engine, n_slots * m->slot_bytes, NULL), 0);
        assert_int_equal(sl_engine_slot_count(engine),
                         n_slots < ENGINE_RIG_EXPERTS ? n_slots : ENGINE_RIG_EXPERTS);
    }
    assert_int_equal(sl_engine_resize_cache(engine, ENGINE_RIG_SLOTS_MIN * m->slot_bytes - 1, &err),
                     -SL_EBUDGET);
    assert_non_null(strstr(err.message, "15 experts"));
    assert_int_equal(sl_engine_slot_count(engine), ENGINE_RIG_SLOTS_MIN);
    sl_engine_close(engine);
}

/* ---- the replay --------------------------------------------------------------------------------
 */

static void keep_route(void *context, uint32_t layer_index, uint32_t n_tokens,
                       const uint16_t *experts)
{
    sl_trace_writer_add(context, layer_index, n_tokens, experts);
}

/* A run with n_slots slots and its recorded trace: the replay counts what the cache counted. */
static void check_replay(const struct engine_rig *m, const struct sl_policy_ops *policy,
                         uint32_t n_slots, uint32_t at_once)
{
    struct sl_engine_options options = engine_rig_options(m);
    const struct sl_trace_shape shape = {
        m->config.num_hidden_layers,   m->config.num_hash_layers, m->config.n_routed_experts,
        m->config.num_experts_per_tok, m->config.hidden_size,     m->config.moe_intermediate_size,
        m->config.expert_dtype};
    struct sl_expert_cache_counters counted;
    struct sl_slot_counters replayed;
    struct sl_trace_writer *writer;
    struct sl_replay_plan *plan;
    struct sl_engine *engine;
    struct sl_trace trace;
    char path[FIXTURE_PATH_BYTES + 8];
    FILE *file;

    snprintf(path, sizeof(path), "%s/trace", m->folder);
    file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(sl_trace_writer_create(&writer, file, &shape, NULL), 0);
    options.draft = SL_DRAFT_NONE;
    options.cache_min = false;
    options.cache_bytes = n_slots * m->slot_bytes;
    options.policy = policy;
    assert_int_equal(sl_engine_open(&engine, &options, NULL, NULL), 0);
    assert_int_equal(sl_engine_slot_count(engine), n_slots);
    for (uint32_t i = 0; i < 2 * TOKENS; i += at_once) {
        struct sl_span span = {engine_rig_kv(engine, i / TOKENS), m->tokens + i % TOKENS, at_once,
                               SL_LOGITS_NONE};

        assert_int_equal(sl_engine_step(engine,
                                        &(struct sl_step_request){
                                            .spans = &span,
                                            .n_spans = 1,
                                            .on_route = keep_route,
                                            .on_route_context = writer,
                                        },
                                        NULL),
                         0);
    }
    counted = sl_engine_counters(engine);
    sl_engine_close(engine);
    assert_int_equal(sl_trace_writer_finish(writer, NULL), 0);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(sl_trace_read(&trace, path, NULL), 0);
    assert_int_equal(trace.n_steps, 2 * TOKENS / at_once);
    assert_int_equal(sl_replay_plan_create(&plan, &trace, &(struct sl_replay_steps){0}, NULL), 0);
    assert_int_equal(sl_replay_run(plan, policy, n_slots, &replayed, NULL), 0);
    assert_int_equal(replayed.n_requests, counted.n_requests);
    assert_int_equal(replayed.n_hits, counted.n_hits);
    assert_int_equal(replayed.n_prefetch_hits, counted.n_prefetch_hits);
    assert_int_equal(replayed.n_loads, counted.n_loads);
    assert_int_equal(replayed.n_evictions, counted.n_evictions);
    assert_true(counted.n_hits > 0 && counted.n_evictions > 0);
    sl_replay_plan_destroy(plan);
    sl_trace_fini(&trace);
}

static void test_replay_counts_what_the_run_counted(void **state)
{
    const struct engine_rig *m = *state;
    const uint32_t slots_min = m->config.num_hidden_layers * m->config.num_experts_per_tok;

    for (uint32_t i = 0; i < 12; i++)
        check_replay(m, policies[i % 2], slots_min + i, i % 3 ? 1 : 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_way_gives_the_same_bytes),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_replay_counts_what_the_run_counted),
    };

    const struct CMUnitTest fp8_tests[] = {
        cmocka_unit_test(test_every_way_gives_the_same_bytes),
        cmocka_unit_test(test_sizes),
    };
    int n_failed =
        cmocka_run_group_tests_name("one_answer", tests, engine_rig_create, engine_rig_destroy);

    return n_failed + cmocka_run_group_tests_name("one_answer, FP8 experts", fp8_tests,
                                                  engine_rig_create_fp8, engine_rig_destroy);
}
