/* Many sessions in too little memory are created, grown, marked, forked, rewound, written as bytes,
 * read again and destroyed at random, in steps of random company that also fail, are refused,
 * abandoned, shortened and rolled back. Every row of logits is that of a text that was run alone;
 * the budget is never exceeded, and in the end nothing is taken.
 *
 * Then the same with pages on disk (core/model/kv_paging.h), on a file that is slow, fails, comes
 * late, gives back what was never written and fills up; sessions are paged out at any time, and
 * leave steps whose reads are under way.
 *
 * `SL_SEED=n` gives other lives, `SL_SESSION_EVENTS=n` longer ones in more memory (make
 * check-sessions). */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/model/kv_paging.h"
#include "core/model/kv_rollback.h"
#include "tests/fault_alloc.h"
#include "tests/fixture_kv_file.h"
#include "tests/session_rig.h"

#define SESSIONS 500u

/* ---- many lives --------------------------------------------------------------------------------
 */

enum outcome { DONE, ABANDONED, FAILED, SHORTENED, ROLLED_BACK, DROPPED };

struct world {
    struct session_model *m;
    struct sl_kv_pool pool;
    struct session_follower lives[SESSIONS];
    uint32_t n_lives, lives_max, long_span;
    uint64_t random;
    uint64_t n_steps, n_refused, n_forks, n_rewinds, n_slept, n_outcomes[DROPPED + 1];

    struct fixture_kv_file *file; /* NULL: all is in memory */
    uint64_t n_paged_out, n_pages_out, n_full, n_far_steps, n_faults, n_bad_begins;
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

/* ---- the file ----------------------------------------------------------------------------------
 */

static void stop_faults(struct world *w)
{
    if (w->file)
        w->file->late_nth = w->file->n_fail = w->file->n_corrupt = 0;
}

/* The file is about to do something wrong, now or soon. */
static void draw_fault(struct world *w)
{
    w->file->delay_permille = below(w, 3) * 450;
    w->file->fault_nth = 1 + below(w, 4);
    switch (below(w, 12)) { /* once, or so often that it tells */
    case 0:
        w->file->n_fail = below(w, 2) ? 1 : 20;
        break;
    case 1:
        w->file->late_nth = 1 + below(w, 4);
        break;
    case 2:
        w->file->n_corrupt = below(w, 2) ? 1 : 20;
        break;
    default:
        break;
    }
}

/* Whether a failure is one of the file's. */
static bool is_fault(const struct world *w, int rc)
{
    return w->file && (rc == -EIO || rc == -ETIMEDOUT || rc == -SL_ECORRUPT);
}

/* Pages out somebody whom no step has. */
static void page_out(struct world *w)
{
    struct sl_kv_cache *kv = sl_session_kv(w->lives[below(w, w->n_lives)].session);
    const uint64_t left = sl_kv_pool_left_bytes(&w->pool);
    uint64_t bytes;
    int rc;

    if (!w->file || kv->in_step)
        return;
    w->file->fail_write_nth = below(w, 8) == 0;
    bytes = sl_kv_cache_page_out_bytes(kv);
    rc = sl_kv_cache_page_out(kv, UINT32_MAX, NULL);
    w->file->fail_write_nth = 0;
    if (rc < 0) {
        assert_true(rc == -ENOSPC || rc == -SL_EBUDGET);
        w->n_full++;
        return;
    }
    assert_int_equal(sl_kv_pool_left_bytes(&w->pool), left + bytes);
    assert_int_equal(sl_kv_cache_page_out_bytes(kv), 0);
    w->n_paged_out++;
    w->n_pages_out += (uint64_t)rc;
}

/* Memory has run out: somebody gives theirs back. */
static void make_room(struct world *w)
{
    struct session_follower *life = &w->lives[below(w, w->n_lives)];
    struct sl_mark *mark = sl_session_find_mark(life->session, UINT32_MAX);

    w->n_refused++;
    if (w->file && below(w, 4)) {
        page_out(w);
        return;
    }
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
        const uint32_t length = w->m->length[life->text];
        const uint32_t end = length < LENGTH || w->file ? length : LENGTH;
        uint32_t n_tokens = below(w, 2) ? 1 : 1 + below(w, below(w, 4) ? 12 : w->long_span);
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

/* Something happens between two layers: one of the sequences leaves and goes back somewhere, or one
 * that is not in the step is paged out. */
static void interrupt(struct world *w, struct session_step *step, enum outcome outcome)
{
    const uint32_t s = below(w, step->n_spans);
    struct session_follower *life = step->followers[s];

    if (below(w, 4) == 0)
        page_out(w);
    if (outcome != DROPPED || step->n_spans == 1 || below(w, 3))
        return;
    sl_forward_drop(w->m->forward, s);
    step->n_spans--;
    for (uint32_t i = s; i < step->n_spans; i++) {
        step->followers[i] = step->followers[i + 1];
        step->spans[i] = step->spans[i + 1];
        step->first[i] = step->first[i + 1];
    }
    sl_session_rewind(life->session, below(w, 2) ? any_mark(w, life) : NULL);
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
    while (n_left-- > 0 && rc > 0) {
        rc = sl_forward_advance(forward, NULL);
        if (rc > 0)
            interrupt(w, step, outcome);
    }
    w->m->experts.fail_nth = 0;
    stop_faults(w); /* a pass of the MTP block must not fail here */
    if (rc < 0) {
        assert_true(outcome == FAILED || is_fault(w, rc));
        w->n_faults += outcome != FAILED;
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
    const enum outcome outcome = drawn <= DROPPED ? (enum outcome)drawn : DONE;
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
    if (w->file)
        draw_fault(w);
    rc = sl_forward_begin(w->m->forward, &request, NULL);
    if (is_fault(w, rc)) {
        w->n_bad_begins++;
        stop_faults(w);
        return;
    }
    if (rc < 0) {
        assert_int_equal(rc, -SL_EBUDGET);
        assert_memory_equal(&w->pool, &before, sizeof(before));
        stop_faults(w);
        make_room(w);
        return;
    }
    for (uint32_t s = 0; s < step.n_spans; s++)
        if (sl_kv_cache_far_pages(step.spans[s].kv, UINT32_MAX) > 0) {
            w->n_far_steps++;
            break;
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
    if (w->file && sl_kv_pool_left_bytes(&w->pool) < sl_kv_page_cost(&w->pool.layout)) {
        make_room(w); /* pages on disk are read into one of the pool's */
        return;
    }
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

    if (w->n_lives == 0 || (what < 25 && w->n_lives < w->lives_max)) {
        begin_life(w);
        return;
    }
    life = &w->lives[below(w, w->n_lives)];
    if (w->file && below(w, 8) == 0) {
        page_out(w);
    } else if (what < 75) {
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

/* Lets them live, and die. */
static void live(struct world *w, uint64_t n_events)
{
    uint32_t n_lives_max = 0;

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
    for (int outcome = DONE; outcome <= DROPPED; outcome++)
        assert_true(w->n_outcomes[outcome] > 10);
    assert_true(w->n_refused > 3 && w->n_rewinds > 20 && w->n_slept > 5);
    while (w->n_lives > 0)
        end_life(w, &w->lives[below(w, w->n_lives)]);
    assert_int_equal(sl_kv_pool_used_bytes(&w->pool), 0);
}

static uint64_t number(const char *variable, uint64_t otherwise)
{
    const char *text = getenv(variable);

    return text ? strtoull(text, NULL, 10) : otherwise;
}

static struct world *create_world(void **state, uint64_t pool_bytes, uint32_t lives_max,
                                  uint32_t long_span)
{
    struct world *w = calloc(1, sizeof(*w));

    assert_non_null(w);
    w->m = *state;
    w->m->experts.passes_take_turns = true;
    w->lives_max = lives_max;
    w->long_span = long_span;
    w->random = number("SL_SEED", 1);
    session_rig_pool(&w->pool, w->m, pool_bytes);
    return w;
}

static void test_many_lives(void **state)
{
    const int64_t live_before = fault_alloc_live_count();
    const bool is_long = getenv("SL_SESSION_EVENTS") != NULL;
    struct world *w = create_world(state, UINT64_C(1) << (is_long ? 29 : 26), SESSIONS, 90);

    live(w, number("SL_SESSION_EVENTS", 3000));
    assert_true(w->n_forks > 50 && w->n_rewinds > 50 && w->n_slept > 20);
    sl_kv_pool_fini(&w->pool);
    free(w);
    assert_int_equal(fault_alloc_live_count(), live_before);
}

static void test_many_lives_on_disk(void **state)
{
    const int64_t live_before = fault_alloc_live_count();
    struct world *w = create_world(state, UINT64_C(15) << 20, 9, TOKENS_MAX);
    const uint32_t page_bytes = w->pool.layout.page_bytes;
    struct sl_kv_pager_params params = {
        .pool = w->m->compute.pool, .page_bytes = page_bytes, .file_bytes = UINT64_C(1) << 20};
    struct sl_kv_pager_counters counters;
    struct fixture_kv_file file;

    fixture_kv_file_init(&file, page_bytes, params.file_bytes, number("SL_SEED", 1));
    params.file = &file.file;
    assert_int_equal(sl_kv_pager_create(&w->pool.pager, &params, NULL), 0);
    w->file = &file;
    live(w, number("SL_SESSION_EVENTS", 1300));
    counters = sl_kv_pager_counters(w->pool.pager);
    print_message("# paged out %llu times, %llu pages (%llu failed), %llu steps with pages on "
                  "disk, %llu of them failed, %llu did not begin; %llu reads, %llu hurried, %llu "
                  "cancelled, %llu corrupt; %llu of %llu layers waited\n",
                  (unsigned long long)w->n_paged_out, (unsigned long long)w->n_pages_out,
                  (unsigned long long)w->n_full, (unsigned long long)w->n_far_steps,
                  (unsigned long long)w->n_faults, (unsigned long long)w->n_bad_begins,
                  (unsigned long long)file.n_reads, (unsigned long long)file.n_hurried,
                  (unsigned long long)file.n_cancelled, (unsigned long long)counters.n_rereads,
                  (unsigned long long)counters.n_waits, (unsigned long long)counters.n_layers);
    assert_true(w->n_paged_out > 50 && w->n_pages_out > 30 && w->n_full > 0 && w->n_forks > 5);
    assert_true(w->n_far_steps > 50 && w->n_faults > 3 && file.n_hurried > 10);
    assert_true(file.n_cancelled > 3 && counters.n_rereads > 3);
    assert_true(counters.n_waits > 10 && counters.n_layers > counters.n_waits);
    assert_int_equal(counters.file_bytes, 0);
    assert_int_equal(counters.out_bytes, w->n_pages_out * page_bytes);
    sl_kv_pager_destroy(w->pool.pager);
    fixture_kv_file_fini(&file);
    sl_kv_pool_fini(&w->pool);
    free(w);
    assert_int_equal(fault_alloc_live_count(), live_before);
}

int main(void)
{
    const struct CMUnitTest in_memory[] = {
        cmocka_unit_test(test_many_lives),
    };
    const struct CMUnitTest on_disk[] = {
        cmocka_unit_test(test_many_lives_on_disk),
    };
    int n_failed = cmocka_run_group_tests_name("session_lives", in_memory, session_rig_create,
                                               session_rig_destroy);

    return n_failed + cmocka_run_group_tests_name("session_lives_on_disk", on_disk,
                                                  session_rig_create_wide, session_rig_destroy);
}
