/* Many sessions in too little memory are created, grown, marked, forked, rewound, written as bytes,
 * read again and destroyed at random, in steps of random company that also fail, are refused,
 * abandoned, shortened and rolled back. Every row of logits is that of a text that was run alone;
 * the budget is never exceeded, and in the end nothing is taken. `SL_SEED=n` gives other lives,
 * `SL_SESSION_EVENTS=n` longer ones in more memory (make check-sessions). */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/model/kv_rollback.h"
#include "tests/fault_alloc.h"
#include "tests/session_rig.h"

#define SESSIONS 500u

/* ---- many lives --------------------------------------------------------------------------------
 */

enum outcome { DONE, ABANDONED, FAILED, SHORTENED, ROLLED_BACK };

struct world {
    struct session_model *m;
    struct sl_kv_pool pool;
    struct session_follower lives[SESSIONS];
    uint32_t n_lives;
    uint64_t random;
    uint64_t n_steps, n_refused, n_forks, n_rewinds, n_slept, n_outcomes[ROLLED_BACK + 1];
};

static uint32_t below(struct world *w, uint32_t limit)
{
    return fixture_below(&w->random, limit);
}

/* Another text that a session of n tokens may follow from there, or the one that it follows. The
 * MTP block has seen one token more: what came after the last one. */
static uint32_t other_text(struct world *w, const struct session_follower *life, uint32_t n)
{
    const uint32_t other = below(w, TEXTS), n_alike = n + (life->with_mtp && n > 0);

    return n_alike <= w->m->alike[life->text] && n_alike <= w->m->alike[other] ? other : life->text;
}

static void end_life(struct world *w, struct session_follower *life)
{
    sl_session_destroy(life->session);
    *life = w->lives[--w->n_lives];
}

static struct sl_mark *any_mark(struct world *w, const struct session_follower *life)
{
    return sl_session_find_mark(life->session, below(w, sl_session_token_count(life->session) + 1));
}

/* Memory has run out: somebody gives theirs back. */
static void make_room(struct world *w)
{
    struct session_follower *life = &w->lives[below(w, w->n_lives)];
    struct sl_mark *mark = sl_session_find_mark(life->session, UINT32_MAX);

    w->n_refused++;
    if (mark && below(w, 2))
        sl_session_drop_mark(life->session, mark);
    else if (w->n_lives > 1)
        end_life(w, life);
    else
        sl_session_rewind(life->session, NULL);
}

static void begin_life(struct world *w)
{
    struct session_follower life = {.text = below(w, TEXTS), .with_mtp = below(w, 3) == 0};
    int rc;

    if (w->n_lives > 0 && below(w, 4)) {
        const struct session_follower *parent = &w->lives[below(w, w->n_lives)];
        struct sl_mark *mark = any_mark(w, parent);

        if (!mark)
            return;
        life.with_mtp = parent->with_mtp;
        life.text = other_text(w, parent, sl_mark_token_count(mark));
        rc = sl_session_fork(&life.session, parent->session, mark, LONG, NULL);
        w->n_forks += rc == 0;
    } else {
        rc = sl_session_create(&life.session, &w->pool, LONG, NULL);
    }
    if (rc < 0) {
        assert_int_equal(rc, -SL_EBUDGET);
        make_room(w);
        return;
    }
    w->lives[w->n_lives++] = life;
}

/* Some sessions that have tokens left, none of them twice. */
static void choose_spans(struct world *w, struct session_step *step)
{
    const uint32_t n = 1 + below(w, SPANS_MAX);
    uint32_t room = TOKENS_MAX;

    for (uint32_t i = 0; i < n && room > 0; i++) {
        struct session_follower *life = &w->lives[below(w, w->n_lives)];
        const uint32_t at = sl_session_token_count(life->session);
        const uint32_t end = w->m->length[life->text] < LENGTH ? w->m->length[life->text] : LENGTH;
        uint32_t n_tokens = below(w, 2) ? 1 : 1 + below(w, below(w, 4) ? 12 : 90);
        bool twice = at >= end;

        for (uint32_t s = 0; s < step->n_spans; s++)
            twice |= step->followers[s] == life;
        if (twice)
            continue;
        n_tokens = n_tokens < end - at ? n_tokens : end - at;
        n_tokens = n_tokens < room ? n_tokens : room;
        room -= n_tokens;
        session_rig_add_span(step, life, n_tokens, below(w, 4) ? SL_LOGITS_LAST : SL_LOGITS_ALL);
    }
}

/* Takes the step to an end of some kind. */
static void take_step(struct world *w, struct session_step *step, enum outcome outcome)
{
    struct sl_forward *forward = w->m->forward;
    const uint32_t shortest = sl_kv_rollback_tokens_max(&w->m->config);
    uint32_t n_kept[SPANS_MAX], n_left = outcome == ABANDONED ? below(w, 5) : UINT32_MAX;
    int rc = 1;

    if (outcome == FAILED) {
        w->m->experts.fail_code = -EIO;
        w->m->experts.fail_nth = 1 + below(w, 12);
    }
    while (n_left-- > 0 && rc > 0)
        rc = sl_forward_advance(forward, NULL);
    w->m->experts.fail_nth = 0;
    if (rc < 0) {
        assert_int_equal(outcome, FAILED);
        return;
    }
    if (rc > 0) {
        sl_forward_abandon(forward);
        return;
    }
    for (uint32_t s = 0; s < step->n_spans; s++) {
        const uint32_t n = step->spans[s].n_tokens;

        n_kept[s] = n;
        if (outcome == SHORTENED)
            n_kept[s] = n <= shortest ? below(w, n + 1) : below(w, 2) * n;
    }
    sl_forward_end(forward, n_kept);
    if (outcome == ROLLED_BACK && below(w, 2)) {
        sl_forward_rollback(forward);
        return;
    }
    session_rig_run_mtp(step);
    if (outcome == ROLLED_BACK)
        sl_forward_rollback(forward);
}

static void step_lives(struct world *w)
{
    const uint32_t drawn = below(w, 20);
    const enum outcome outcome = drawn <= ROLLED_BACK ? (enum outcome)drawn : DONE;
    struct session_step step = {.m = w->m};
    struct sl_step_request request;
    struct sl_kv_pool before;
    int rc;

    choose_spans(w, &step);
    if (step.n_spans == 0) {
        end_life(w, &w->lives[below(w, w->n_lives)]);
        return;
    }
    request = session_rig_request(&step);
    before = w->pool;
    rc = sl_forward_begin(w->m->forward, &request, NULL);
    if (rc < 0) {
        assert_int_equal(rc, -SL_EBUDGET);
        assert_memory_equal(&w->pool, &before, sizeof(before));
        make_room(w);
        return;
    }
    take_step(w, &step, outcome);
    w->n_outcomes[outcome]++;
    w->n_steps++;
}

static void rewind_life(struct world *w, struct session_follower *life)
{
    struct sl_mark *mark = below(w, 8) ? any_mark(w, life) : NULL;

    life->text = other_text(w, life, mark ? sl_mark_token_count(mark) : 0);
    sl_session_rewind(life->session, mark);
    w->n_rewinds++;
}

/* A session is written as bytes and ended; another one takes its place. */
static void sleep_and_wake(struct world *w, struct session_follower *life)
{
    struct sl_mark *mark = sl_session_find_mark(life->session, UINT32_MAX);
    struct session_image image;
    int rc;

    if (!mark)
        return;
    session_rig_export(life->session, mark, &image, &w->random);
    sl_session_destroy(life->session);
    rc = sl_session_create(&life->session, &w->pool, LONG, NULL);
    if (rc == 0) {
        rc = session_rig_import(w->m, life, &image, NULL);
        if (rc == 0 && (rc = sl_session_mark(life->session, &mark, NULL)) == 0)
            session_rig_check(life->session, mark, &image);
        w->n_slept += rc == 0;
    } else {
        *life = w->lives[--w->n_lives];
    }
    if (rc < 0) { /* some of what it held was others' too, and is still taken */
        assert_int_equal(rc, -SL_EBUDGET);
        if (w->n_lives > 0)
            make_room(w);
    }
    session_rig_free(&image);
}

static void check_ids(const struct world *w)
{
    static int32_t ids[LONG];

    for (uint32_t i = 0; i < w->n_lives; i++) {
        const struct session_follower *life = &w->lives[i];
        const uint32_t n = sl_session_token_count(life->session);

        sl_session_tokens(life->session, 0, n, ids);
        assert_memory_equal(ids, w->m->ids[life->text], n * sizeof(*ids));
    }
}

static void happen(struct world *w)
{
    const uint32_t what = below(w, 100);
    struct session_follower *life;
    struct sl_mark *mark;

    if (w->n_lives == 0 || (what < 25 && w->n_lives < SESSIONS)) {
        begin_life(w);
        return;
    }
    life = &w->lives[below(w, w->n_lives)];
    if (what < 75) {
        step_lives(w);
    } else if (what < 87) {
        if (sl_session_mark(life->session, &mark, NULL) < 0)
            make_room(w);
    } else if (what < 92) {
        rewind_life(w, life);
    } else if (what < 95) {
        sleep_and_wake(w, life);
    } else if (what < 97) {
        mark = any_mark(w, life);
        if (mark)
            sl_session_drop_mark(life->session, mark);
    } else if (what < 98) {
        end_life(w, life);
    }
}

static void test_many_lives(void **state)
{
    const char *seed = getenv("SL_SEED"), *events = getenv("SL_SESSION_EVENTS");
    const uint64_t n_events = events ? strtoull(events, NULL, 10) : 3000;
    const int64_t live_before = fault_alloc_live_count();
    struct world *w = calloc(1, sizeof(*w));
    uint32_t n_lives_max = 0;

    assert_non_null(w);
    w->m = *state;
    w->random = seed ? strtoull(seed, NULL, 10) : 1;
    session_rig_pool(&w->pool, w->m, UINT64_C(1) << (events ? 29 : 26));
    for (uint64_t i = 0; i < n_events; i++) {
        happen(w);
        assert_true(sl_kv_pool_used_bytes(&w->pool) <= w->pool.budget_bytes);
        n_lives_max = w->n_lives > n_lives_max ? w->n_lives : n_lives_max;
        if (i % 100 == 0)
            check_ids(w);
    }
    print_message("# %llu steps of up to %u sessions, %llu refusals, %llu forks, %llu rewinds, "
                  "%llu slept\n",
                  (unsigned long long)w->n_steps, n_lives_max, (unsigned long long)w->n_refused,
                  (unsigned long long)w->n_forks, (unsigned long long)w->n_rewinds,
                  (unsigned long long)w->n_slept);
    for (int outcome = DONE; outcome <= ROLLED_BACK; outcome++)
        assert_true(w->n_outcomes[outcome] > 10);
    assert_true(w->n_refused > 10 && w->n_forks > 50 && w->n_rewinds > 50 && w->n_slept > 20);
    while (w->n_lives > 0)
        end_life(w, &w->lives[below(w, w->n_lives)]);
    assert_int_equal(sl_kv_pool_used_bytes(&w->pool), 0);
    sl_kv_pool_fini(&w->pool);
    free(w);
    assert_int_equal(fault_alloc_live_count(), live_before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_many_lives),
    };

    return cmocka_run_group_tests_name("session_lives", tests, session_rig_create,
                                       session_rig_destroy);
}
