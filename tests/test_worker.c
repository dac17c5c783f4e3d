/* The worker: whole engines on the tiny model, with clients that come all at once, read or let the
 * news pile up, go away, or want no more of a text. What is made must be what each text is alone;
 * everybody is told an end; a failed read ends the requests of its step with an error that names
 * it, after one more try, and nobody else's. SL_SEED repeats the clients, not the threads' timing.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/base/size.h"
#include "tests/worker_rig.h"

/* ---- tests -------------------------------------------------------------------------------------
 */

static void check_company(void **state, uint32_t drafts)
{
    static struct worker_rig w;
    struct sl_worker_status status;

    w = (struct worker_rig){.kv_bytes = UINT64_C(64) << 20, .drafts = drafts};
    worker_rig_init(&w, *state);
    worker_rig_start(&w, WORKER_CLIENTS);
    for (uint32_t round = 0; round < 2; round++) {
        for (uint32_t i = 0; i < WORKER_CLIENTS; i++)
            assert_int_equal(worker_rig_submit(&w, i), 0);
        for (uint32_t i = 0; i < WORKER_CLIENTS; i++) {
            struct worker_client *client =
                &w.clients[(i * 7) % WORKER_CLIENTS]; /* 7 has no factor of them */

            if (round > 0 && i % 5 == 1) {
                worker_rig_leave(client);
                continue;
            }
            worker_rig_read_all(client);
            assert_false(client->has_failed);
            assert_string_equal(client->text, client->alone);
            assert_int_equal(client->usage.n_new_tokens, client->n_new);
            assert_int_equal(client->usage.n_prompt_tokens, client->n_prompt);
            assert_true(client->usage.n_cached_tokens < client->n_prompt);
        }
        worker_rig_wait_released(&w); /* a ticket's memory is used again */
    }
    sl_worker_status(w.worker, &status);
    assert_int_equal(status.counters.n_requests, 2 * WORKER_CLIENTS);
    assert_int_equal(status.counters.n_failed, 0);
    assert_true(status.counters.n_cached_tokens > 1000); /* of prompts that begin alike */
    assert_int_equal(status.counters.n_drafts > 0, drafts > 0);
    worker_rig_stop(&w, 10 * NS_PER_S);
    worker_rig_assert_released(&w);
    worker_rig_fini(&w);
}

static void test_company(void **state)
{
    check_company(state, 0);
}

static void test_company_with_drafts(void **state)
{
    check_company(state, 3);
}

/* A batch's texts share large steps, filled with each other's prompts, while users come one after
 * the other: each text is what it is alone, and the users are served first. */
static void test_batch_beside_users(void **state)
{
    static struct worker_rig w = {.kv_bytes = UINT64_C(64) << 20};
    const uint32_t n_users = WORKER_CLIENTS / 4;
    uint32_t n_tokens = 0; /* of the batch's answers */
    struct sl_worker_status status;

    worker_rig_init(&w, *state);
    for (uint32_t i = 0; i < WORKER_CLIENTS; i++)
        w.clients[i].class = i < n_users ? SL_JOB_INTERACTIVE : SL_JOB_BATCH;
    worker_rig_start(&w, WORKER_CLIENTS);
    for (uint32_t i = n_users; i < WORKER_CLIENTS; i++)
        assert_int_equal(worker_rig_submit(&w, i), 0);
    for (uint32_t i = 0; i < WORKER_CLIENTS; i++) {
        struct worker_client *client = &w.clients[i];

        n_tokens += i < n_users ? 0 : client->n_new;
        if (i < n_users)
            assert_int_equal(worker_rig_submit(&w, i), 0);
        worker_rig_read_all(client);
        assert_false(client->has_failed);
        assert_string_equal(client->text, client->alone);
    }
    sl_worker_status(w.worker, &status);
    assert_int_equal(status.counters.n_failed, 0);
    assert_true(status.counters.n_large_steps > 0 && status.counters.n_batch_rows >= 1);
    /* Each text alone would take a step for each token that it makes. */
    assert_true(status.counters.n_large_steps < n_tokens);
    worker_rig_stop(&w, 10 * NS_PER_S);
    worker_rig_assert_released(&w);
    worker_rig_fini(&w);
}

/* Reads of one expert fail for good, until four steps have failed, of which two at least had the
 * same requests: these end with the error that names it, and all others as if nothing had been. */
static void test_failed_reads(void **state)
{
    static const struct io_fault_plan plan = {
        .fail_nth = 60, .fail_kind = IO_FAULT_FAIL, .fail_code = -EIO, .fail_for_good = true};
    static struct worker_rig w = {.heal_after = 4};
    uint32_t n_failed = 0;

    w.plan = NULL;
    worker_rig_init(&w, *state);
    w.plan = &plan;
    worker_rig_start(&w, WORKER_CLIENTS);
    for (uint32_t i = 0; i < WORKER_CLIENTS; i++)
        assert_int_equal(worker_rig_submit(&w, i), 0);
    for (uint32_t i = 0; i < WORKER_CLIENTS; i++) {
        struct worker_client *client = &w.clients[i];

        worker_rig_read_all(client);
        n_failed += client->has_failed;
        if (!client->has_failed) {
            assert_string_equal(client->text, client->alone);
            continue;
        }
        assert_int_equal(client->status, 500);
        assert_non_null(strstr(client->why, "layer"));
        assert_non_null(strstr(client->why, "expert"));
    }
    assert_int_equal(w.n_failures, 4);
    assert_true(n_failed >= 1 && n_failed <= 12); /* those of one step, or two */
    worker_rig_stop(&w, 10 * NS_PER_S);
    worker_rig_assert_released(&w);
    worker_rig_fini(&w);
}

/* A step that fails once is taken once more, and nobody is told. */
static void test_one_failed_step(void **state)
{
    static const struct io_fault_plan plan = {
        .fail_nth = 60, .fail_kind = IO_FAULT_FAIL, .fail_code = -EIO, .fail_for_good = true};
    static struct worker_rig w = {.heal_after = 1};

    w.plan = NULL;
    worker_rig_init(&w, *state);
    w.plan = &plan;
    worker_rig_start(&w, WORKER_CLIENTS);
    for (uint32_t i = 0; i < WORKER_CLIENTS; i++)
        assert_int_equal(worker_rig_submit(&w, i), 0);
    for (uint32_t i = 0; i < WORKER_CLIENTS; i++) {
        worker_rig_read_all(&w.clients[i]);
        assert_false(w.clients[i].has_failed);
        assert_string_equal(w.clients[i].text, w.clients[i].alone);
    }
    assert_int_equal(w.n_failures, 1);
    worker_rig_stop(&w, 10 * NS_PER_S);
    worker_rig_assert_released(&w);
    worker_rig_fini(&w);
}

/* The clients of the next test, by their numbers: one has a step at each token that it makes, two
 * share the large step beside it, and one waits for a place. */
enum { WATCHES = 3, STAYS = 1, LEAVES = 2, WAITS = 6 };

/* Its state; written by the worker's thread, and read when that has ended. */
static struct {
    int stage;
    uint32_t part_before, part_after; /* of the prompt that stays: taken in by the open step */
    bool has_ended_step, has_left_step, is_released, has_begun;
} leaving;

/* Each token of WATCHES ends a small step, between two layers of the large one. What is done here
 * is seen by the worker before the next of them. */
static void leave_and_watch(struct worker_client *client)
{
    struct worker_rig *w = client->w;
    struct sl_ticket *stays = &w->clients[STAYS].ticket, *leaves = &w->clients[LEAVES].ticket;

    if (client != &w->clients[WATCHES])
        return;
    if (leaving.stage == 0) {
        worker_rig_submit(w, STAYS);
        worker_rig_submit(w, LEAVES);
        worker_rig_submit(w, WAITS);
        leaving.stage = 1;
    } else if (leaving.stage == 1 && atomic_load(&stays->n_part_tokens) > 0) {
        leaving.part_before = atomic_load(&stays->n_part_tokens);
        leaving.has_ended_step = atomic_load(&stays->n_done_tokens) > 0;
        leaving.has_left_step = !leaves->texts[0].in_step;
        atomic_store(&leaves->texts[0].is_unwanted, true);
        sl_worker_notice(w->worker, leaves);
        sl_ticket_let_go(leaves);
        leaving.stage = 2;
    } else if (leaving.stage == 2) {
        leaving.part_after = atomic_load(&stays->n_part_tokens);
        leaving.has_ended_step |= atomic_load(&stays->n_done_tokens) > 0;
        leaving.is_released = w->clients[LEAVES].is_released;
        leaving.has_begun = atomic_load(&w->clients[WAITS].ticket.has_begun);
        leaving.stage = 3;
    }
}

/* Whoever leaves in the middle of a step frees the place within a layer: the session is given back,
 * and who waits for one begins, while the others' step is still under way. */
static void test_leave_within_a_layer(void **state)
{
    static struct worker_rig w = {.kv_bytes = UINT64_C(64) << 20,
                                  .segment_tokens = 2 * WORKER_CONTEXT_TOKENS,
                                  .texts_max = 3,
                                  .n_new_min = 12, /* longer than the others' step is in layers */
                                  .on_news = leave_and_watch};
    static const uint32_t readers[] = {WATCHES, STAYS, WAITS};

    memset(&leaving, 0, sizeof(leaving));
    worker_rig_init(&w, *state);
    worker_rig_start(&w, WORKER_CLIENTS);
    assert_int_equal(worker_rig_submit(&w, WATCHES), 0);
    for (size_t i = 0; i < SL_ARRAY_LEN(readers); i++) {
        struct worker_client *client = &w.clients[readers[i]];

        worker_rig_read_all(client);
        assert_false(client->has_failed);
        assert_string_equal(client->text, client->alone);
    }
    worker_rig_stop(&w, 10 * NS_PER_S);
    assert_int_equal(leaving.stage, 3);
    assert_false(leaving.has_left_step);
    assert_false(leaving.has_ended_step);
    assert_true(leaving.part_after > leaving.part_before);
    assert_true(leaving.is_released && leaving.has_begun);
    worker_rig_fini(&w);
}

/* More than the queue takes are refused; a stop at once ends what is under way, and all are told.
 */
static void test_queue_and_stop(void **state)
{
    static struct worker_rig w;
    uint32_t n_refused = 0;

    worker_rig_init(&w, *state);
    worker_rig_start(&w, 3);
    for (uint32_t i = 0; i < WORKER_CLIENTS; i++) {
        const int rc = worker_rig_submit(&w, i);

        assert_true(rc == 0 || (rc == -EBUSY && i > 2));
        n_refused += rc < 0;
        w.clients[i].has_left = rc < 0;
        if (rc < 0)
            sl_ticket_let_go(&w.clients[i].ticket);
        else if (i == 1)
            worker_rig_leave(&w.clients[i]); /* its prompt is kept, and ends with the worker */
    }
    assert_true(n_refused > 0 && n_refused <= WORKER_CLIENTS - 3);
    sl_worker_stop(w.worker, 0);
    for (uint32_t i = 0; i < WORKER_CLIENTS; i++) {
        struct worker_client *client = &w.clients[i];

        if (client->has_left)
            continue;
        worker_rig_read_all(client);
        if (client->has_failed)
            assert_int_equal(client->status, 503);
        else
            assert_string_equal(client->text, client->alone);
    }
    sl_worker_join(w.worker);
    worker_rig_assert_released(&w);
    worker_rig_fini(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_company),
        cmocka_unit_test(test_company_with_drafts),
        cmocka_unit_test(test_batch_beside_users),
        cmocka_unit_test(test_failed_reads),
        cmocka_unit_test(test_one_failed_step),
        cmocka_unit_test(test_leave_within_a_layer),
        cmocka_unit_test(test_queue_and_stop),
    };

    return cmocka_run_group_tests_name("worker", tests, engine_rig_create, engine_rig_destroy);
}
