/* The engine: what it joins gives the bytes that the forward pass gives over sources in memory, its
 * plan is what it takes, and what cannot be opened leaves nothing behind. The tiny model is written
 * as a checkpoint; then options are refused, and every allocation while opening fails in turn. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/base/size.h"

#include "tests/engine_rig.h"
#include "tests/fault_alloc.h"
#include "tests/store_rig.h"

#define TOKENS ENGINE_RIG_TOKENS

static void test_bytes_are_those_of_the_forward(void **state)
{
    const struct engine_rig *m = *state;
    float *logits = calloc(1, m->logits_bytes), *mtp_logits = calloc(1, m->logits_bytes);

    assert_non_null(logits);
    assert_non_null(mtp_logits);
    for (int round = 0; round < 2; round++) {
        struct sl_engine_options options = engine_rig_options(m);
        struct sl_expert_cache_counters counters;
        struct sl_engine *engine;

        options.cache_min = round == 0;
        assert_int_equal(sl_engine_open(&engine, &options, NULL, NULL), 0);
        assert_int_equal(sl_engine_config(engine)->vocab_size, m->config.vocab_size);
        for (uint32_t s = 0; s < 2; s++) {
            engine_rig_run(m, sl_engine_forward(engine, SL_STEP_LARGE), engine_rig_kv(engine, s),
                           s ? 1 : 16, logits, mtp_logits);
            assert_memory_equal(logits, m->logits, m->logits_bytes);
            assert_memory_equal(mtp_logits, m->mtp_logits, m->logits_bytes);
        }
        counters = sl_engine_counters(engine);
        assert_true(counters.n_requests > 0 && counters.n_hits > 0);
        /* The whole model fits the second time, and is read once. */
        assert_true(round == 0 ? counters.n_evictions > 0 : counters.n_evictions == 0);
        assert_true(round == 0 || counters.n_loads <= 40);
        sl_engine_close(engine);
    }
    free(logits);
    free(mtp_logits);
}

static void count_up_to_15(void *context, uint64_t done, uint64_t total)
{
    uint64_t *last = context;

    assert_int_equal(done, ++*last);
    assert_int_equal(total, 15);
}

/* What was hot in one run is there before the next one begins, and the answer stays. A list that
 * makes no sense, or cannot be kept, is an error that stops nobody. */
static void test_store_remembers_what_was_hot(void **state)
{
    static const uint64_t preloads[] = {0, 15, 15, 15, 0, 0};
    const struct engine_rig *m = *state;
    float *logits = calloc(1, m->logits_bytes), *mtp_logits = calloc(1, m->logits_bytes);
    struct sl_engine_options options = engine_rig_options(m);
    char store_folder[FIXTURE_PATH_BYTES], moved[FIXTURE_PATH_BYTES + 8];
    atomic_bool stop = false;

    assert_non_null(logits);
    assert_non_null(mtp_logits);
    engine_rig_pack(m, "store", 0, false, store_folder);
    snprintf(moved, sizeof(moved), "%s.moved", store_folder);
    options.model = store_folder;
    for (int round = 0; round < 6; round++) {
        struct sl_expert_cache_counters counters;
        struct sl_engine *engine;
        uint64_t last = 0;
        struct sl_err err;

        if (round == 4)
            fixture_flip_byte(store_folder, "hot", 0);
        if (round == 5)
            options.model = m->folder;  /* a checkpoint remembers nothing */
        options.cache_min = round != 2; /* else there is room for more than the list has */
        options.io = round == 3 ? sl_io_choose(NULL) : sl_io_threads_open;
        assert_int_equal(sl_engine_open(&engine, &options, NULL, NULL), 0);
        assert_int_equal(sl_engine_slot_count(engine), options.cache_min ? 15 : 40);
        stop = round == 1;
        assert_int_equal(sl_engine_load_hot_list(engine, &stop, count_up_to_15, &last, &err),
                         round == 4 ? -SL_ECORRUPT : 0);
        if (round == 1) { /* stopped: nothing is loaded, until it is asked for again */
            assert_int_equal(sl_engine_counters(engine).n_loads, 0);
            stop = false;
            assert_int_equal(sl_engine_load_hot_list(engine, &stop, count_up_to_15, &last, &err),
                             0);
        }
        counters = sl_engine_counters(engine);
        assert_int_equal(counters.n_preloads, preloads[round]);
        assert_int_equal(counters.n_loads, preloads[round]);
        assert_int_equal(last, preloads[round]);
        engine_rig_run(m, sl_engine_forward(engine, SL_STEP_LARGE), engine_rig_kv(engine, 0), 1,
                       logits, mtp_logits);
        assert_memory_equal(logits, m->logits, m->logits_bytes);
        assert_memory_equal(mtp_logits, m->mtp_logits, m->logits_bytes);
        if (round == 4) {
            assert_int_equal(rename(store_folder, moved), 0);
            assert_int_equal(sl_engine_save_hot_list(engine, &err), -ENOENT);
            assert_non_null(strstr(err.message, store_folder));
            assert_int_equal(rename(moved, store_folder), 0);
        }
        if (round != 1 && round != 2)
            assert_int_equal(sl_engine_save_hot_list(engine, NULL), 0);
        sl_engine_close(engine);
    }
    store_rig_remove(store_folder);
    free(logits);
    free(mtp_logits);
}

static void count_up(void *context, uint64_t done, uint64_t total)
{
    uint64_t *last = context;

    assert_int_equal(done, ++*last);
    assert_int_equal(total, 40);
}

static void test_all_experts_can_be_loaded(void **state)
{
    const struct engine_rig *m = *state;
    float *logits = calloc(1, m->logits_bytes), *mtp_logits = calloc(1, m->logits_bytes);
    struct sl_engine_options options = engine_rig_options(m);
    struct sl_expert_cache_counters counters;
    struct sl_engine *engine;
    uint64_t last = 0;

    assert_non_null(logits);
    assert_non_null(mtp_logits);
    options.cache_min = false;
    assert_int_equal(sl_engine_open(&engine, &options, NULL, NULL), 0);
    assert_int_equal(sl_engine_slot_count(engine), 40);
    assert_int_equal(sl_engine_load_experts(engine, count_up, &last, NULL), 1);
    assert_int_equal(last, 40);
    assert_int_equal(sl_engine_counters(engine).n_loads, 40);
    engine_rig_run(m, sl_engine_forward(engine, SL_STEP_LARGE), engine_rig_kv(engine, 0), 16,
                   logits, mtp_logits);
    assert_memory_equal(logits, m->logits, m->logits_bytes);
    counters = sl_engine_counters(engine);
    assert_int_equal(counters.n_loads, 40);
    sl_engine_close(engine);

    options.cache_min = true; /* there is no room, and nothing is done */
    assert_int_equal(sl_engine_open(&engine, &options, NULL, NULL), 0);
    assert_int_equal(sl_engine_load_experts(engine, NULL, NULL, NULL), 0);
    assert_int_equal(sl_engine_counters(engine).n_requests, 0);
    sl_engine_close(engine);
    free(logits);
    free(mtp_logits);
}

/* An expert of a store may be pinned before its w2 is there: the drive takes one block after the
 * other. */
static void test_experts_that_come_in_parts(void **state)
{
    static const struct io_fault_plan plan = {.lazy = true};
    const struct engine_rig *m = *state;
    struct sl_engine_options options = engine_rig_options(m);
    char store_folder[FIXTURE_PATH_BYTES];
    struct sl_engine *engine;

    engine_rig_pack(m, "parts", 0, false, store_folder);
    options.model = store_folder;
    options.cache_min = false;
    options.reader.piece_bytes = SL_BLOCK_BYTES;
    options.reader.depth = 1;
    engine_rig_make_faulty(&options);
    assert_int_equal(sl_engine_open(&engine, &options, NULL, NULL), 0);
    io_fault_set(engine_rig_faulty(), &plan);
    assert_int_equal(sl_engine_load_experts(engine, NULL, NULL, NULL), 1);
    assert_int_equal(sl_engine_counters(engine).n_loads, ENGINE_RIG_EXPERTS);
    sl_engine_close(engine);
    store_rig_remove(store_folder);
}

static void check_areas(const struct sl_engine_options *options, bool staging)
{
    struct sl_engine_area areas[SL_ENGINE_AREAS];
    struct sl_memory_plan plan;
    struct sl_engine *engine;

    assert_int_equal(sl_engine_open(&engine, options, &plan, NULL), 0);
    engine_rig_kv(engine, options->n_sequences - 1);
    sl_engine_areas(engine, areas);
    assert_string_equal(areas[0].name, "dense weights");
    assert_int_equal(areas[0].size_bytes + plan.draft_working_bytes,
                     plan.need_bytes[SL_MEMORY_WEIGHTS] + plan.need_bytes[SL_MEMORY_DRAFT]);
    assert_int_equal(areas[1].size_bytes, plan.need_bytes[SL_MEMORY_KV]);
    assert_int_equal(areas[2].size_bytes, plan.need_bytes[SL_MEMORY_ACTIVATIONS] +
                                              plan.need_bytes[SL_MEMORY_SMALL_STEPS] +
                                              plan.draft_working_bytes);
    assert_in_range(areas[3].size_bytes,
                    plan.need_bytes[SL_MEMORY_CACHE] + plan.need_bytes[SL_MEMORY_STAGING],
                    plan.need_bytes[SL_MEMORY_CACHE] + plan.need_bytes[SL_MEMORY_STAGING] +
                        plan.need_bytes[SL_MEMORY_TABLES]);
    assert_int_equal(plan.need_bytes[SL_MEMORY_STAGING] > 0, staging);
    for (uint32_t i = 0; i < SL_ENGINE_AREAS; i++)
        assert_true(areas[i].huge_bytes <= areas[i].size_bytes);
    sl_engine_close(engine);
}

/* Experts of a plain store are read to where they are used, others go by way of buffers. */
static void test_areas_are_what_was_planned(void **state)
{
    const struct engine_rig *m = *state;
    struct sl_engine_options options = engine_rig_options(m);
    char store_folder[FIXTURE_PATH_BYTES];

    check_areas(&options, true);
    options.small_step_tokens = 3;
    check_areas(&options, true);
    options.model = store_folder;
    engine_rig_pack(m, "plain", 0, false, store_folder);
    check_areas(&options, false);
    engine_rig_pack(m, "compressed", 0, true, store_folder);
    check_areas(&options, true);
}

static void test_plan_is_what_it_takes(void **state)
{
    struct engine_rig *m = *state;
    struct sl_engine_options options = engine_rig_options(m);
    struct sl_memory_plan plan, opened;
    struct sl_engine *engine;
    struct sl_weight_sizes sizes;
    uint64_t weights_bytes;
    int verdict;

    assert_int_equal(sl_engine_plan(&options, &plan, &verdict, NULL), 0);
    assert_int_equal(verdict, 0);
    assert_int_equal(sl_engine_open(&engine, &options, &opened, NULL), 0);
    /* What the program itself has taken differs from one moment to the next. */
    assert_true(plan.need_bytes[SL_MEMORY_PROGRAM] > 0);
    opened.need_bytes[SL_MEMORY_PROGRAM] = plan.need_bytes[SL_MEMORY_PROGRAM];
    opened.need_bytes[SL_MEMORY_TABLES] = plan.need_bytes[SL_MEMORY_TABLES];
    assert_memory_equal(&plan, &opened, sizeof(plan));
    assert_int_equal(sl_weights_measure(&m->config, &m->source.source, &fixture_mtp, &sizes, NULL),
                     0);
    weights_bytes = sl_weights_bytes(&sizes, &sl_weights_all_resident);
    assert_int_equal(plan.need_bytes[SL_MEMORY_WEIGHTS] + plan.need_bytes[SL_MEMORY_DRAFT],
                     sl_arena_mapped_bytes(weights_bytes) + plan.draft_working_bytes);
    assert_true(plan.draft_working_bytes > 0);
    assert_int_equal(plan.need_bytes[SL_MEMORY_KV], sl_engine_kv_pool(engine)->arena.size_bytes);
    assert_int_equal(plan.need_bytes[SL_MEMORY_ACTIVATIONS] + plan.draft_working_bytes,
                     sl_forward_arena(sl_engine_forward(engine, SL_STEP_LARGE))->size_bytes);
    assert_true(plan.slot_bytes >= m->experts.offset_bytes[SL_EXPERT_MATRICES]);
    assert_int_equal(plan.slots_min, 5 * 3);
    assert_int_equal(plan.slots_max, 5 * 8);
    assert_int_equal(plan.need_bytes[SL_MEMORY_CACHE], 15 * plan.slot_bytes);
    sl_engine_close(engine);
    /* Without the MTP block all of it is less. */
    options.draft = SL_DRAFT_NONE;
    assert_int_equal(sl_engine_plan(&options, &opened, &verdict, NULL), 0);
    assert_int_equal(opened.slots_max, 4 * 8);
    assert_int_equal(opened.need_bytes[SL_MEMORY_DRAFT], 0);
    assert_true(opened.need_bytes[SL_MEMORY_WEIGHTS] < weights_bytes);
    assert_true(opened.need_bytes[SL_MEMORY_KV] < plan.need_bytes[SL_MEMORY_KV]);
}

/* Takes the model's tokens from where the sequence is, and compares the logits. Returns 0, or fails
 * as the step that was refused. */
static int run_on(const struct engine_rig *m, struct sl_engine *engine, struct sl_kv_cache *kv,
                  float *logits, struct sl_err *err)
{
    while (kv->n_tokens < TOKENS) {
        struct engine_rig_rows rows = {logits, m->row_bytes};
        const uint32_t first = kv->n_tokens;
        struct sl_span span = {kv, m->tokens + first, TOKENS - first < 16 ? TOKENS - first : 16,
                               SL_LOGITS_ALL};
        int rc = sl_engine_step(engine,
                                &(struct sl_step_request){.spans = &span,
                                                          .n_spans = 1,
                                                          .on_logits = engine_rig_keep_rows,
                                                          .on_logits_context = &rows},
                                err);

        if (rc < 0) {
            assert_int_equal(kv->n_tokens, first);
            return rc;
        }
        assert_memory_equal(logits, m->logits + first * m->row_bytes / sizeof(float),
                            span.n_tokens * m->row_bytes);
    }
    return 0;
}

/* Sequences come and go, as many as the memory for KV caches has room for. A step for which too
 * little is left is refused with the figures, and goes on when another sequence has ended. */
static void test_sequences_come_and_go(void **state)
{
    const struct engine_rig *m = *state;
    struct sl_engine_options options = engine_rig_options(m);
    struct sl_kv_cache *kv[64];
    float *logits = calloc(1, m->logits_bytes);
    struct sl_engine *engine;
    struct sl_err err;
    uint32_t n = 0;

    assert_non_null(logits);
    options.draft = SL_DRAFT_NONE;
    options.n_sequences = 1;
    options.kv_bytes = 8 << 20;
    assert_int_equal(sl_engine_open(&engine, &options, NULL, NULL), 0);
    do
        assert_int_equal(sl_engine_sequence_create(engine, TOKENS, &kv[n], NULL), 0);
    while (run_on(m, engine, kv[n++], logits, &err) == 0 && n < 64);
    assert_in_range(n, 3, 63); /* and the last one was refused */
    assert_int_equal(err.code, -SL_EBUDGET);
    assert_non_null(strstr(err.message, " more for KV caches, but "));
    assert_non_null(strstr(err.message, " of 8.00 MiB (--kv) are left"));
    for (uint32_t round = 0; round < 20; round++) {
        assert_int_equal(run_on(m, engine, kv[n - 1], logits, &err), -SL_EBUDGET);
        sl_engine_sequence_destroy(engine, kv[round % (n - 1)]);
        assert_int_equal(run_on(m, engine, kv[n - 1], logits, &err), 0);
        kv[round % (n - 1)] = kv[n - 1];
        assert_int_equal(sl_engine_sequence_create(engine, TOKENS, &kv[n - 1], NULL), 0);
    }
    sl_engine_sequence_destroy(engine, NULL);
    sl_engine_close(engine); /* with what is left */
    free(logits);
}

/* A large step stands still while a small one runs, over the same weights and cache. */
static void test_two_sizes_of_steps(void **state)
{
    const struct engine_rig *m = *state;
    struct sl_engine_options options = engine_rig_options(m);
    float *logits = calloc(1, m->logits_bytes), *small = calloc(1, m->logits_bytes);
    struct engine_rig_rows rows = {logits, m->row_bytes};
    struct sl_memory_plan plan;
    struct sl_engine *engine;
    struct sl_forward *large;
    struct sl_span span;
    int more;

    assert_non_null(logits);
    assert_non_null(small);
    options.draft = SL_DRAFT_NONE;
    assert_int_equal(sl_engine_open(&engine, &options, &plan, NULL), 0);
    assert_null(sl_engine_forward(engine, SL_STEP_SMALL));
    assert_int_equal(sl_engine_step_tokens_max(engine, SL_STEP_SMALL), 0);
    assert_int_equal(plan.need_bytes[SL_MEMORY_SMALL_STEPS], 0);
    sl_engine_close(engine);

    options.segment_tokens = TOKENS;
    options.small_step_tokens = 3;
    assert_int_equal(sl_engine_open(&engine, &options, &plan, NULL), 0);
    assert_int_equal(sl_engine_step_tokens_max(engine, SL_STEP_SMALL), 3);
    assert_int_equal(plan.need_bytes[SL_MEMORY_SMALL_STEPS],
                     sl_forward_arena(sl_engine_forward(engine, SL_STEP_SMALL))->size_bytes);
    large = sl_engine_forward(engine, SL_STEP_LARGE);
    span = (struct sl_span){engine_rig_kv(engine, 0), m->tokens, TOKENS, SL_LOGITS_ALL};
    assert_int_equal(sl_forward_begin(large,
                                      &(struct sl_step_request){.spans = &span,
                                                                .n_spans = 1,
                                                                .on_logits = engine_rig_keep_rows,
                                                                .on_logits_context = &rows},
                                      NULL),
                     0);
    while ((more = sl_forward_advance(large, NULL)) > 0) {
        struct sl_kv_cache *other = engine_rig_kv(engine, 1);

        sl_kv_cache_clear(other);
        engine_rig_run(m, sl_engine_forward(engine, SL_STEP_SMALL), other, 3, small, NULL);
        assert_memory_equal(small, m->logits, m->logits_bytes);
    }
    assert_int_equal(more, 0);
    sl_forward_end(large, NULL);
    assert_memory_equal(logits, m->logits, m->logits_bytes);
    sl_engine_close(engine);
    free(logits);
    free(small);
}

static void read_text(const char *path, char *text, size_t size)
{
    FILE *file = fopen(path, "r");
    size_t length;

    assert_non_null(file);
    length = fread(text, 1, size - 1, file);
    text[length] = 0;
    fclose(file);
}

static void write_text(const char *path, const char *first, const char *second)
{
    FILE *file = fopen(path, "w");

    assert_non_null(file);
    fprintf(file, "%s%s", first, second);
    assert_int_equal(fclose(file), 0);
}

/* Each thing that a user should know is a line of its own. */
static void test_notes(void **state)
{
    struct engine_rig *m = *state;
    struct sl_engine_options options = engine_rig_options(m);
    char path[FIXTURE_PATH_BYTES + 16], config[8192];
    uint32_t n_notes[2];

    snprintf(path, sizeof(path), "%s/config.json", m->folder);
    for (int round = 0; round < 2; round++) {
        struct sl_engine *engine;

        assert_int_equal(sl_engine_open(&engine, &options, NULL, NULL), 0);
        for (n_notes[round] = 0; sl_engine_note(engine, n_notes[round]); n_notes[round]++)
            assert_null(strchr(sl_engine_note(engine, n_notes[round]), '\n'));
        assert_true(n_notes[round] < SL_ENGINE_NOTES_MAX);
        if (round == 1)
            assert_non_null(strstr(sl_engine_note(engine, 0), "have no effect: odd_key"));
        sl_engine_close(engine);
        if (round == 1)
            break;
        read_text(path, config, sizeof(config));
        write_text(path, "{\"odd_key\":1,", config + 1);
    }
    assert_int_equal(n_notes[1], n_notes[0] + 1);
    write_text(path, "", config);
}

static void expect_refusal(const struct sl_engine_options *options, int rc, const char *says,
                           bool with_plan)
{
    struct sl_memory_plan plan;
    struct sl_engine *engine;
    struct sl_err err;

    assert_int_equal(sl_engine_open(&engine, options, &plan, &err), rc);
    assert_int_equal(err.code, rc);
    if (!strstr(err.message, says))
        fail_msg("\"%s\" does not say \"%s\"", err.message, says);
    assert_int_equal(plan.budget_bytes != 0, with_plan);
}

static void test_refusals(void **state)
{
    const struct engine_rig *m = *state;
    struct sl_engine_options options = engine_rig_options(m), right = options;
    struct sl_memory_plan plan;
    struct sl_err err;
    int verdict;

    options.ram_bytes = 1 << 20;
    expect_refusal(&options, -SL_EBUDGET, "the budget is 1.00 MiB (--ram)", true);
    assert_int_equal(sl_engine_plan(&options, &plan, &verdict, &err), 0);
    assert_int_equal(verdict, -SL_EBUDGET);
    assert_int_equal(err.code, -SL_EBUDGET);
    options = right;
    options.cache_min = false;
    options.cache_bytes = 1;
    expect_refusal(&options, -SL_EBUDGET, "what a step takes at once (6 experts", true);
    options.refuse_slow = true;
    expect_refusal(&options, -SL_EBUDGET, "working set (15 experts", true);
    options = right;
    options.context_tokens = 4097;
    expect_refusal(&options, -SL_EBUDGET, "max_position_embeddings, 4096", false);
    options = right;
    options.isa = "z80";
    expect_refusal(&options, -EINVAL, "\"z80\"", false);
    options = right;
    options.model = "/nowhere/at/all";
    expect_refusal(&options, -ENOENT, "/nowhere/at/all", false);
}

/* ---- what fails on the way ---------------------------------------------------------------------
 */

/* The first hundred allocations one by one, then ever fewer. */
static void test_failing_allocations(void **state)
{
    const struct engine_rig *m = *state;
    const struct sl_engine_options options = engine_rig_options(m);
    struct sl_engine *engine = NULL;
    bool happened = true;

    if (!fault_alloc_works())
        skip();
    for (uint64_t nth = 1; happened; nth += 1 + nth / 100) {
        uint32_t n_files = engine_rig_open_file_count();
        int64_t live_count = fault_alloc_live_count();
        struct sl_err err = {0};
        int rc;

        fault_alloc_set(nth, false);
        rc = sl_engine_open(&engine, &options, NULL, &err);
        happened = fault_alloc_happened();
        fault_alloc_set(0, false);
        /* Or another error: the JSON parser does not say why it gave up. Or none: without a buffer
         * stdio goes on. */
        assert_true(rc == 0 ? engine != NULL : happened && err.code == rc && err.message[0]);
        sl_engine_close(engine);
        engine = NULL;
        assert_int_equal(fault_alloc_live_count(), live_count);
        assert_int_equal(engine_rig_open_file_count(), n_files);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes_are_those_of_the_forward),
        cmocka_unit_test(test_store_remembers_what_was_hot),
        cmocka_unit_test(test_all_experts_can_be_loaded),
        cmocka_unit_test(test_experts_that_come_in_parts),
        cmocka_unit_test(test_areas_are_what_was_planned),
        cmocka_unit_test(test_plan_is_what_it_takes),
        cmocka_unit_test(test_sequences_come_and_go),
        cmocka_unit_test(test_two_sizes_of_steps),
        cmocka_unit_test(test_notes),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_failing_allocations),
    };

    return cmocka_run_group_tests_name("engine", tests, engine_rig_create, engine_rig_destroy);
}
