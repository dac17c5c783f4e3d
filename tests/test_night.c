/* The plan of a batch: tokens are counted to the last one, steps cost what they are predicted to,
 * and the scheduler's own estimate fills them so that the drive and the cores are busy alike. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include <cmocka.h>

#include "core/base/file.h"
#include "tests/fault_alloc.h"
#include "tools/plan/night.h"

#define DOCUMENTS 200u

static const struct sl_machine_speeds speeds = {
    .drive = 10, .memory = 200, .multiply = {.int8 = 6000, .bf16 = 3000, .f32 = 1500}};
static const struct sl_dense_cost dense = {
    .read_bytes = 8e9, .head_bytes = 1e9, .multiplied = {.bf16 = 8e9}, .head_multiplied = 5e8};

static struct sl_config flash(void)
{
    static const char path[] = "tests/oracle/configs/v4-flash.json";
    struct sl_config config;
    size_t length;
    char *text;

    assert_int_equal(sl_file_read_all(path, 1 << 20, &text, &length, NULL), 0);
    assert_int_equal(sl_config_parse(&config, text, length, path, NULL), 0);
    free(text);
    return config;
}

static struct sl_night run(const struct sl_night_case *what, double until_ns)
{
    struct sl_night night;

    assert_int_equal(sl_night_run(what, until_ns, &night, NULL), 0);
    return night;
}

/* A document of 1 + 1 tokens is one step, and of 100 + 3 three: the prompt, and two of the answer.
 */
static void test_one_document(void **state)
{
    const struct sl_config config = flash();
    struct sl_night_document document = {.n_prompt = 1, .n_answer = 1};
    const struct sl_night_case what = {.config = &config,
                                       .dense = &dense,
                                       .speeds = &speeds,
                                       .documents = &document,
                                       .n_documents = 1,
                                       .n_at_once = 1,
                                       .rows_max = 4096,
                                       .n_slots = 2752};
    double ns = 0;
    struct sl_cost_case steps[] = {{.n_sequences = 0, .n_tokens = 1},
                                   {.n_sequences = 1, .n_tokens = 1, .past_tokens = 100},
                                   {.n_sequences = 1, .n_tokens = 1, .past_tokens = 101}};
    struct sl_cost_part prompt = {1, 1, 0};
    struct sl_night night;
    struct sl_cost cost;

    (void)state;
    steps[0].others = &prompt;
    steps[0].n_others = 1;
    steps[0].hit_rate = sl_cost_found(&config, 2752, 1, false);
    sl_cost_predict(&config, &dense, &steps[0], &speeds, &cost);
    night = run(&what, INFINITY);
    assert_int_equal(night.n_sweeps, 1);
    assert_int_equal(night.n_documents, 1);
    assert_float_equal(night.ns / cost.step_ns, 1, 1e-9);

    document = (struct sl_night_document){.n_prompt = 100, .n_answer = 3};
    prompt.n_tokens = 100;
    for (int i = 0; i < 3; i++) {
        steps[i].hit_rate = sl_cost_found(&config, 2752, i == 0 ? 100 : 1, false);
        sl_cost_predict(&config, &dense, &steps[i], &speeds, &cost);
        ns += cost.step_ns;
    }
    night = run(&what, INFINITY);
    assert_int_equal(night.n_sweeps, 3);
    assert_int_equal(night.n_prompt_tokens, 100);
    assert_int_equal(night.n_answer_tokens, 3);
    assert_float_equal(night.ns / ns, 1, 1e-9);
    night = run(&what, ns * 0.99);
    assert_int_equal(night.n_sweeps, 2);
    assert_int_equal(night.n_documents, 0);
}

/* While prompts wait, neither the drive nor the cores rest for long; and nobody can be faster than
 * either of them. With more at a time there are fewer sweeps. */
static void test_both_are_busy(void **state)
{
    const struct sl_config config = flash();
    struct sl_night_document documents[DOCUMENTS];
    struct sl_night_case what = {.config = &config,
                                 .dense = &dense,
                                 .speeds = &speeds,
                                 .documents = documents,
                                 .n_documents = DOCUMENTS,
                                 .rows_max = 8192,
                                 .n_slots = 2752,
                                 .even = true};
    uint64_t n_in = 0, n_out = 0, last = UINT64_MAX;

    (void)state;
    for (uint32_t i = 0; i < DOCUMENTS; i++) {
        documents[i] = (struct sl_night_document){.n_prompt = 4000 + i * 37 % 2000,
                                                  .n_answer = 100 + i * 13 % 50};
        n_in += documents[i].n_prompt;
        n_out += documents[i].n_answer;
    }
    for (what.n_at_once = 16; what.n_at_once <= 128; what.n_at_once *= 2) {
        const struct sl_night night = run(&what, INFINITY), half = run(&what, night.ns / 2);
        const double reading_ns = night.drive_bytes / speeds.drive;
        double bound_ns = 0;

        assert_int_equal(night.n_documents, DOCUMENTS);
        assert_int_equal(night.n_prompt_tokens, n_in);
        assert_int_equal(night.n_answer_tokens, n_out);
        assert_true(reading_ns <= night.ns * 1.000001 && night.compute_ns <= night.ns * 1.000001);
        /* The last documents have no prompts to fill their steps with. */
        if (what.n_at_once >= 64)
            assert_true(reading_ns > 0.95 * night.ns && night.compute_ns > 0.75 * night.ns);
        for (int i = 0; i < SL_COST_LIMITS; i++)
            bound_ns += night.bound_ns[i];
        assert_float_equal(bound_ns / night.ns, 1, 1e-9);
        assert_true(half.ns <= night.ns / 2 && half.n_documents > DOCUMENTS / 4 &&
                    half.n_documents < DOCUMENTS * 3 / 4);
        assert_true(night.n_sweeps <= last);
        last = night.n_sweeps;
    }
}

/* A second question waits for its document, and then costs its own tokens: as much as documents
 * that share nothing and are so much shorter, but for the order of things. */
static void test_shared(void **state)
{
    const struct sl_config config = flash();
    struct sl_night_document documents[DOCUMENTS];
    struct sl_night_case what = {.config = &config,
                                 .dense = &dense,
                                 .speeds = &speeds,
                                 .documents = documents,
                                 .n_documents = 2,
                                 .n_at_once = 64,
                                 .rows_max = 8192,
                                 .n_slots = 2752};
    struct sl_night_case one = what;
    struct sl_night night, alone;

    (void)state;
    one.n_documents = 1;
    for (uint32_t i = 0; i < DOCUMENTS; i++)
        documents[i] = (struct sl_night_document){
            .n_prompt = 4030, .n_answer = 100, .n_shared = i % 2 > 0 ? 4000 : 0};
    alone = run(&one, INFINITY);
    night = run(&what, INFINITY); /* the question is in the step after the document's last */
    assert_int_equal(night.n_sweeps, alone.n_sweeps + 1);
    what.n_documents = DOCUMENTS;
    night = run(&what, INFINITY);
    assert_int_equal(night.n_prompt_tokens, 4030 * DOCUMENTS);
    assert_int_equal(night.n_shared_tokens, 4000 * DOCUMENTS / 2);
    for (uint32_t i = 0; i < DOCUMENTS; i++) {
        documents[i].n_prompt -= documents[i].n_shared;
        documents[i].n_shared = 0;
    }
    alone = run(&what, INFINITY);
    assert_int_equal(alone.n_prompt_tokens, night.n_prompt_tokens - night.n_shared_tokens);
    assert_true(fabs(night.ns / alone.ns - 1) < 0.1);
    assert_int_equal(night.n_documents, DOCUMENTS);
}

/* Whichever allocation fails, it is told, and nothing is left behind. */
static void test_failing_allocations(void **state)
{
    const struct sl_config config = flash();
    const struct sl_night_document documents[] = {{.n_prompt = 300, .n_answer = 4},
                                                  {.n_prompt = 20, .n_answer = 9},
                                                  {.n_prompt = 700, .n_answer = 2}};
    const struct sl_night_case what = {.config = &config,
                                       .dense = &dense,
                                       .speeds = &speeds,
                                       .documents = documents,
                                       .n_documents = 3,
                                       .n_at_once = 2,
                                       .rows_max = 64,
                                       .n_slots = 2752};
    const int64_t live = fault_alloc_live_count();
    struct sl_night night;
    struct sl_err err;
    uint64_t nth = 1;
    int rc;

    (void)state;
    if (!fault_alloc_works())
        skip();
    do {
        fault_alloc_set(nth++, false);
        rc = sl_night_run(&what, INFINITY, &night, &err);
        assert_true(rc == 0 || rc == -ENOMEM);
        assert_int_equal(fault_alloc_live_count(), live);
    } while (rc < 0);
    fault_alloc_set(0, false);
    assert_true(nth > 5);
    assert_int_equal(night.n_documents, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_document),
        cmocka_unit_test(test_both_are_busy),
        cmocka_unit_test(test_shared),
        cmocka_unit_test(test_failing_allocations),
    };

    return cmocka_run_group_tests_name("night", tests, NULL, NULL);
}
