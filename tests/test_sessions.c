/* One answer for sessions: after growth, rewinding, forking, and being written as bytes and read
 * again, the logits are those of a text that was run alone and never disturbed, byte for byte, at
 * positions around the ends of everything that lies in pages. What is refused, or for which memory
 * runs out, has changed nothing. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/base/size.h"
#include "tests/fault_alloc.h"
#include "tests/session_rig.h"

/* ---- positions around the ends of things -------------------------------------------------------
 */

/* Positions up to LONG - 20 at multiples of these and one before and after: what compressors pool,
 * tiles, windows, entries that a page holds, keys side by side, what a table has room for. */
static uint32_t list_positions(uint32_t *positions)
{
    static const uint32_t multiples[][2] = {{4, 3},   {8, 3},    {64, 3},   {128, 4}, {512, 4},
                                            {720, 5}, {1440, 2}, {2048, 2}, {4096, 1}};
    bool wanted[LONG] = {false};
    uint32_t n = 0;

    for (uint32_t i = 0; i < SL_ARRAY_LEN(multiples); i++)
        for (uint32_t times = 1; times <= multiples[i][1]; times++)
            for (uint32_t at = multiples[i][0] * times - 1; at <= multiples[i][0] * times + 1; at++)
                if (at < LONG - 20)
                    wanted[at] = true;
    for (uint32_t at = 1; at < LONG; at++)
        if (wanted[at])
            positions[n++] = at;
    return n;
}

/* The child goes the right way while the parent goes another, both in one step; then the parent
 * goes back, and does so alone. */
static void branch_at(struct session_model *m, struct session_follower *parent,
                      struct sl_mark *mark, bool in_pairs)
{
    struct session_follower child = {.text = 0, .with_mtp = parent->with_mtp};
    struct session_step step = {.m = m};
    const int32_t wrong[5] = {3, 1, 4, 1, 5};

    assert_int_equal(sl_session_fork(&child.session, parent->session, mark, LONG, NULL), 0);
    sl_session_rewind(parent->session, mark);
    if (in_pairs) {
        session_rig_add_span(&step, &child, 9, SL_LOGITS_ALL);
        session_rig_add_span(&step, parent, 5, SL_LOGITS_NONE);
        step.spans[1].tokens = wrong;
        assert_int_equal(session_rig_run_step(&step, NULL), 0);
        sl_session_rewind(parent->session, mark);
    }
    session_rig_run_on(m, parent, 10);
    session_rig_run_on(m, &child, in_pairs ? 4 : 13);
    sl_session_rewind(parent->session, mark);
    sl_session_destroy(child.session);
}

static void test_marks_wherever_things_end(void **state)
{
    struct session_model *m = *state;
    struct session_follower walker = {.text = 0, .with_mtp = true}, reader = walker;
    static uint32_t positions[LONG];
    const uint32_t n = list_positions(positions);
    struct sl_kv_pool pool, other;
    uint64_t random = 5;

    session_rig_pool(&pool, m, 80 << 20);
    session_rig_pool(&other, m, 4 << 20);
    assert_int_equal(sl_session_create(&walker.session, &pool, LONG, NULL), 0);
    for (uint32_t i = 0; i < n; i++) {
        struct sl_mark *mark, *again;

        session_rig_run_on(m, &walker, positions[i] - sl_session_token_count(walker.session));
        assert_int_equal(sl_session_mark(walker.session, &mark, NULL), 0);
        assert_int_equal(sl_session_mark(walker.session, &again, NULL), 0);
        assert_ptr_equal(mark, again);
    }
    session_rig_run_on(m, &walker, 15);
    for (uint32_t i = n; i-- > 0;) {
        struct sl_mark *mark = sl_session_find_mark(walker.session, positions[i]);
        struct session_image image;

        assert_int_equal(sl_mark_token_count(mark), positions[i]);
        session_rig_export(walker.session, mark, &image, &random);
        branch_at(m, &walker, mark, i % 2);
        session_rig_check(walker.session, mark, &image);
        assert_int_equal(sl_session_create(&reader.session, &other, LONG, NULL), 0);
        assert_int_equal(session_rig_import(m, &reader, &image, NULL), 0);
        assert_int_equal(sl_session_common_prefix(reader.session, m->ids[0], LONG), positions[i]);
        assert_int_equal(sl_session_mark(reader.session, &mark, NULL), 0);
        session_rig_check(reader.session, mark, &image);
        session_rig_run_on(m, &reader, 14);
        sl_session_destroy(reader.session);
        session_rig_free(&image);
    }
    sl_session_rewind(walker.session, NULL);
    session_rig_run_on(m, &walker, 140);
    sl_session_destroy(walker.session);
    assert_int_equal(sl_kv_pool_used_bytes(&pool) + sl_kv_pool_used_bytes(&other), 0);
    sl_kv_pool_fini(&pool);
    sl_kv_pool_fini(&other);
}

/* Bytes that are no mark leave an empty session, which can be used. */
static void test_bytes_that_are_no_mark(void **state)
{
    struct session_model *m = *state;
    struct session_follower walker = {.text = 1};
    struct sl_mark *mark;
    struct session_image image;
    struct sl_kv_pool pool;
    uint64_t random = 6;
    struct sl_err err;

    session_rig_pool(&pool, m, 8 << 20);
    assert_int_equal(sl_session_create(&walker.session, &pool, 200, NULL), 0);
    session_rig_run_on(m, &walker, 77);
    assert_int_equal(sl_session_mark(walker.session, &mark, NULL), 0);
    session_rig_export(walker.session, mark, &image, &random);
    for (int way = 0; way < 6; way++) {
        uint32_t head[2];
        struct session_image bad = image;

        memcpy(head, image.mark, sizeof(head));
        assert_int_equal(head[0], 77);
        sl_session_rewind(walker.session, NULL);
        bad.mark_bytes = way == 0 ? 0 : way == 1 ? 7 : image.mark_bytes - (way == 2);
        bad.n_tokens -= way == 3;
        bad.n_cuts -= way == 3; /* the last chunk goes further */
        head[0] += way == 4;
        head[1] += way == 5 ? 78 : 0;
        memcpy(image.mark, head, sizeof(head));
        assert_int_equal(session_rig_import(m, &walker, &bad, &err), -SL_ECORRUPT);
        assert_non_null(strstr(err.message, "that are no mark behind "));
        assert_int_equal(sl_session_token_count(walker.session), 0);
        head[0] = 77;
        head[1] -= way == 5 ? 78 : 0;
        memcpy(image.mark, head, sizeof(head));
        session_rig_run_on(m, &walker, 20);
    }
    sl_session_rewind(walker.session, NULL);
    assert_int_equal(session_rig_import(m, &walker, &image, NULL), 0);
    session_rig_run_on(m, &walker, 20);
    sl_session_rewind(walker.session, NULL);
    image.n_tokens = 201;
    assert_int_equal(session_rig_import(m, &walker, &image, &err), -SL_EBUDGET);
    assert_int_equal(sl_session_import_begin(walker.session, m->ids[1], 100, NULL), 0);
    sl_session_import_abandon(walker.session);
    session_rig_run_on(m, &walker, 20);
    session_rig_free(&image);
    sl_session_destroy(walker.session);
    sl_kv_pool_fini(&pool);
}

/* ---- what is refused ---------------------------------------------------------------------------
 */

/* A step for which one page is missing is refused with the figures, and nothing has changed; then
 * memory is made, and it goes on. */
static void test_refused_steps_change_nothing(void **state)
{
    struct session_model *m = *state;
    struct session_follower walkers[3] = {{.text = 0}, {.text = 2}, {.text = 3}};
    struct sl_kv_pool pool, before;
    struct session_step step = {.m = m};
    uint64_t needed_bytes = 0;
    uint8_t *memory;
    struct sl_err err;

    session_rig_pool(&pool, m, 8 << 20);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(sl_session_create(&walkers[i].session, &pool, LENGTH, NULL), 0);
    for (uint32_t i = 0; i < 2; i++) {
        session_rig_run_on(m, &walkers[i], 100 + i);
        session_rig_add_span(&step, &walkers[i], 60, SL_LOGITS_ALL);
        needed_bytes += sl_kv_cache_need(step.spans[i].kv, step.spans[i].kv->n_tokens + 60);
    }
    assert_true(needed_bytes > 0);
    session_rig_run_on(m, &walkers[2], 50);
    pool.budget_bytes = sl_kv_pool_used_bytes(&pool) + needed_bytes - 1;
    before = pool;
    memory = malloc(pool.arena.size_bytes);
    assert_non_null(memory);
    memcpy(memory, pool.arena.base, pool.arena.size_bytes);
    assert_int_equal(session_rig_run_step(&step, &err), -SL_EBUDGET);
    assert_non_null(strstr(err.message, "the next step of its sequences needs "));
    assert_memory_equal(&pool, &before, sizeof(pool));
    assert_memory_equal(memory, pool.arena.base, pool.arena.size_bytes);
    assert_int_equal(sl_session_token_count(walkers[0].session), 100);
    sl_session_destroy(walkers[2].session);
    assert_int_equal(session_rig_run_step(&step, &err), 0);
    sl_session_destroy(walkers[0].session);
    sl_session_destroy(walkers[1].session);
    sl_kv_pool_fini(&pool);
    free(memory);
}

/* A session is made, takes a step for which its table must grow, is marked and forked. Where memory
 * runs out, the call is made again. Returns whether it ran out. */
static bool live_short_of_memory(struct session_model *m, const struct sl_session *base,
                                 const struct sl_mark *mark, uint64_t nth)
{
    struct session_follower walker = {.text = 0}, child = {.text = 0};
    struct sl_mark *own = NULL;
    bool failed;
    int rc = -ENOMEM;

    fault_alloc_set(nth, false);
    while (rc == -ENOMEM)
        rc = sl_session_fork(&walker.session, base, mark, LONG, NULL);
    assert_int_equal(rc, 0);
    for (rc = -ENOMEM; rc == -ENOMEM;)
        rc = sl_session_mark(walker.session, &own, NULL);
    assert_int_equal(rc, 0);
    for (rc = -ENOMEM; rc == -ENOMEM;) {
        struct session_step step = {.m = m};

        session_rig_add_span(&step, &walker, 20, SL_LOGITS_ALL);
        rc = session_rig_run_step(&step, NULL);
        assert_int_equal(sl_session_token_count(walker.session), rc ? 4090 : 4110);
    }
    assert_int_equal(rc, 0);
    for (rc = -ENOMEM; rc == -ENOMEM;)
        rc = sl_session_create(&child.session, sl_session_kv(walker.session)->pool, LONG, NULL);
    assert_int_equal(rc, 0);
    failed = fault_alloc_happened();
    fault_alloc_set(0, false);
    session_rig_run_on(m, &child, 10);
    session_rig_run_on(m, &walker, 10);
    sl_session_destroy(walker.session);
    sl_session_destroy(child.session);
    return failed;
}

static void test_memory_runs_out(void **state)
{
    struct session_model *m = *state;
    struct session_follower base = {.text = 0};
    struct sl_kv_pool pool;
    struct sl_mark *mark;
    int64_t live_before;
    uint64_t used_bytes, nth = 0;
    bool failed = true;

    if (!fault_alloc_works())
        skip();
    session_rig_pool(&pool, m, 16 << 20);
    assert_int_equal(sl_session_create(&base.session, &pool, LONG, NULL), 0);
    session_rig_run_on(m, &base, 4090); /* its table has room for 4,096 */
    assert_int_equal(sl_session_mark(base.session, &mark, NULL), 0);
    used_bytes = sl_kv_pool_used_bytes(&pool);
    live_before = fault_alloc_live_count();
    while (failed) {
        failed = live_short_of_memory(m, base.session, mark, ++nth);
        assert_int_equal(sl_kv_pool_used_bytes(&pool), used_bytes);
        assert_int_equal(fault_alloc_live_count(), live_before);
    }
    assert_true(nth >= 7);
    sl_session_destroy(base.session);
    sl_kv_pool_fini(&pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_marks_wherever_things_end),
        cmocka_unit_test(test_bytes_that_are_no_mark),
        cmocka_unit_test(test_refused_steps_change_nothing),
        cmocka_unit_test(test_memory_runs_out),
    };

    return cmocka_run_group_tests_name("sessions", tests, session_rig_create, session_rig_destroy);
}
