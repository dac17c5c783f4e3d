/* KV caches on disk: what steps over them answer, read, take of the budget, and refuse. Every row
 * of logits is compared with that of a text that was run alone, in memory. Many lives at random are
 * test_session_lives'. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "core/model/kv_paging.h"
#include "daemon/engine/paging_gain.h"
#include "tests/fixture_kv_file.h"
#include "tests/session_rig.h"

struct world {
    struct session_model *m;
    struct sl_kv_pool pool;
    struct fixture_kv_file file;
};

static void open_world(struct world *w, void **state, uint64_t pool_bytes)
{
    struct sl_kv_pager_params params = {.file_bytes = UINT64_C(64) << 20};

    w->m = *state;
    session_rig_pool(&w->pool, w->m, pool_bytes);
    params.pool = w->m->compute.pool;
    params.page_bytes = w->pool.layout.page_bytes;
    fixture_kv_file_init(&w->file, params.page_bytes, params.file_bytes, 5);
    params.file = &w->file.file;
    assert_int_equal(sl_kv_pager_create(&w->pool.pager, &params, NULL), 0);
}

static void close_world(struct world *w)
{
    assert_int_equal(sl_kv_pager_counters(w->pool.pager).file_bytes, 0);
    sl_kv_pager_destroy(w->pool.pager);
    fixture_kv_file_fini(&w->file);
    sl_kv_pool_fini(&w->pool);
}

static struct session_follower begin_text(struct world *w, uint32_t text, bool with_mtp)
{
    struct session_follower follower = {.text = text, .with_mtp = with_mtp};

    assert_int_equal(sl_session_create(&follower.session, &w->pool, LONG, NULL), 0);
    return follower;
}

static uint32_t far_pages(const struct session_follower *follower)
{
    return sl_kv_cache_far_pages(sl_session_kv(follower->session), UINT32_MAX);
}

static uint32_t page_out(const struct session_follower *follower)
{
    int rc = sl_kv_cache_page_out(sl_session_kv(follower->session), UINT32_MAX, NULL);

    assert_true(rc >= 0);
    return (uint32_t)rc;
}

/* A step of one token for each, or as many as given for the first. */
static int step(struct world *w, struct session_follower *const *followers, uint32_t n,
                uint32_t n_tokens, struct sl_err *err)
{
    struct session_step step = {.m = w->m};
    int rc;

    for (uint32_t i = 0; i < n; i++)
        session_rig_add_span(&step, followers[i], i ? 1 : n_tokens, SL_LOGITS_ALL);
    rc = session_rig_run_step(&step, err);
    assert_true(rc < 0 || step.n_rows >= n);
    return rc;
}

/* ---- one answer --------------------------------------------------------------------------------
 */

/* Whether something that lies in pages begins or ends there: windows, groups of tokens, tiles and
 * pages of each layer. */
static bool is_border(const struct world *w, uint32_t n_tokens)
{
    for (uint32_t i = 0; i < w->pool.layout.n_layers; i++)
        for (uint32_t p = SL_KV_RINGS; p < SL_KV_PARTS; p++) {
            const struct sl_kv_part_layout *part = &w->pool.layout.parts[i][p];

            if (part->item_bytes > 0 && p != SL_KV_IDS &&
                n_tokens % (part->items_per_page * part->units_per_item * part->ratio) == 0)
                return true;
        }
    return n_tokens % 128 == 0;
}

/* Goes on to just before the next border, over it token by token, and is paged out each time. A
 * text in memory and one that is paged out alike go along. */
static void test_at_every_border(void **state)
{
    struct world w;
    uint32_t n_borders = 0;
    struct session_follower paged, other, near;
    struct session_follower *const all[] = {&paged, &other, &near};

    open_world(&w, state, UINT64_C(64) << 20);
    w.file.delay_permille = 700;
    paged = begin_text(&w, 0, true);
    other = begin_text(&w, 1, false);
    near = begin_text(&w, 2, true);
    session_rig_run_on(w.m, &other, 300);
    session_rig_run_on(w.m, &near, 250);
    for (uint32_t at = 0; at < 2300;) {
        uint32_t next = at + 3;

        while (!is_border(&w, next))
            next++;
        session_rig_run_on(w.m, &paged, next - 2 - at);
        page_out(&paged);
        for (uint32_t i = 0; i < 4; i++) {
            const uint32_t n = next < 1200 ? 3 : 1; /* the others are shorter */

            assert_int_equal(step(&w, all, n, 1, NULL), 0);
            page_out(&paged);
            page_out(&other);
            page_out(&near);
        }
        n_borders++;
        at = next + 2;
    }
    /* Two pages of entries at least are on disk in each layer that compresses by little, and one of
     * keys. */
    assert_true(n_borders > 20 && far_pages(&paged) > 10 && far_pages(&other) > 0);
    assert_true(sl_kv_pager_counters(w.pool.pager).in_bytes > 100 * w.pool.layout.page_bytes);
    sl_session_destroy(paged.session);
    sl_session_destroy(other.session);
    sl_session_destroy(near.session);
    close_world(&w);
}

/* ---- forks -------------------------------------------------------------------------------------
 */

/* Forks of a sequence on disk share its places, which a step reads once for all of them. */
static void test_forks_read_once(void **state)
{
    struct session_follower parent, child = {.text = 0};
    struct session_follower *const alone[] = {&parent}, *const both[] = {&parent, &child};
    struct sl_mark *mark;
    uint64_t before, in_bytes;
    uint32_t n;
    struct world w;

    open_world(&w, state, UINT64_C(64) << 20);
    parent = begin_text(&w, 0, false);
    session_rig_run_on(w.m, &parent, 1000);
    assert_int_equal(sl_session_mark(parent.session, &mark, NULL), 0);
    assert_true(page_out(&parent) > 0);
    n = far_pages(&parent);
    assert_int_equal(sl_session_fork(&child.session, parent.session, mark, LONG, NULL), 0);
    assert_int_equal(far_pages(&child), n);
    assert_int_equal(step(&w, alone, 1, 1, NULL), 0);
    in_bytes = sl_kv_pager_counters(w.pool.pager).in_bytes;
    before = in_bytes;
    assert_int_equal(step(&w, both, 2, 1, NULL), 0);
    in_bytes = sl_kv_pager_counters(w.pool.pager).in_bytes - before;
    assert_int_equal(in_bytes, before);
    assert_int_equal(sl_kv_pager_counters(w.pool.pager).file_bytes, n * w.file.place_bytes);

    /* The parent goes: what it shared stays. */
    sl_session_destroy(parent.session);
    session_rig_run_on(w.m, &child, 300);
    sl_session_destroy(child.session);
    close_world(&w);
}

/* A sequence goes back into what is on disk: the page that it will write to comes back whole. */
static void test_rewind_into_disk(void **state)
{
    struct session_follower life;
    struct sl_mark *mark;
    struct world w;

    open_world(&w, state, UINT64_C(64) << 20);
    life = begin_text(&w, 0, true);
    session_rig_run_on(w.m, &life, 300);
    assert_int_equal(sl_session_mark(life.session, &mark, NULL), 0);
    session_rig_run_on(w.m, &life, 500);
    page_out(&life);
    sl_session_rewind(life.session, mark);
    assert_true(far_pages(&life) > 0);
    session_rig_run_on(w.m, &life, 600);
    sl_session_destroy(life.session);
    close_world(&w);
}

/* A sequence comes back to memory whole, or where reads fail, not at all. */
static void test_page_in(void **state)
{
    struct session_follower life;
    struct sl_kv_cache *kv;
    uint64_t in_bytes, used;
    struct world w;
    uint32_t n;

    open_world(&w, state, UINT64_C(64) << 20);
    w.file.delay_permille = 500;
    life = begin_text(&w, 0, true);
    kv = sl_session_kv(life.session);
    session_rig_run_on(w.m, &life, 2200);
    used = sl_kv_pool_used_bytes(&w.pool);
    n = page_out(&life);
    w.file.fault_nth = 1;
    w.file.n_fail = 1000;
    assert_int_equal(sl_kv_cache_page_in(kv, UINT32_MAX, NULL), -EIO);
    w.file.n_fail = 0;
    assert_int_equal(far_pages(&life), n);
    assert_int_equal(sl_kv_cache_page_in(kv, 3, NULL), 3); /* or in pieces, like the way out */
    assert_int_equal(sl_kv_cache_page_out(kv, 2, NULL), 2);
    assert_int_equal(far_pages(&life), n - 1);
    assert_int_equal(sl_kv_cache_page_in(kv, UINT32_MAX, NULL), n - 1);
    assert_int_equal(far_pages(&life), 0);
    assert_int_equal(sl_kv_pool_used_bytes(&w.pool), used);
    assert_int_equal(sl_kv_pager_counters(w.pool.pager).file_bytes, 0);
    in_bytes = sl_kv_pager_counters(w.pool.pager).in_bytes;
    session_rig_run_on(w.m, &life, 50);
    assert_int_equal(sl_kv_pager_counters(w.pool.pager).in_bytes, in_bytes);
    sl_session_destroy(life.session);
    close_world(&w);
}

/* ---- failures ----------------------------------------------------------------------------------
 */

/* From the nth read of a step on, all fail: the step is as if it had never been, and then goes
 * well. Returns what the step did. */
static int fail_from(struct world *w, struct session_follower *const *followers, uint32_t n,
                     uint64_t nth, uint32_t *fault)
{
    const uint32_t n_tokens = sl_session_token_count(followers[0]->session);
    struct sl_err err = {0};
    int rc;

    for (uint32_t i = 0; i < n; i++)
        page_out(followers[i]);
    w->file.fault_nth = nth;
    *fault = 1000;
    rc = step(w, followers, n, 1, &err);
    *fault = 0;
    if (rc == 0)
        return 0;
    assert_non_null(strstr(err.message, "layer"));
    assert_int_equal(sl_session_token_count(followers[0]->session), n_tokens);
    assert_int_equal(step(w, followers, n, 1, NULL), 0);
    return rc;
}

static void test_each_read_fails(void **state)
{
    struct session_follower first, second;
    struct session_follower *const both[] = {&first, &second};
    uint64_t nth = 0;
    struct world w;
    int rc, failed;

    open_world(&w, state, UINT64_C(64) << 20);
    first = begin_text(&w, 0, false);
    second = begin_text(&w, 1, false);
    session_rig_run_on(w.m, &first, 1100);
    session_rig_run_on(w.m, &second, 500);
    do {
        nth++;
        failed = fail_from(&w, both, 2, nth, &w.file.n_fail);
        assert_int_equal(fail_from(&w, both, 2, nth, &w.file.n_corrupt), failed ? -SL_ECORRUPT : 0);
        assert_true(failed == 0 || failed == -EIO);
        w.file.late_nth = nth; /* one that was ahead of its time is read again */
        rc = step(&w, both, 2, 1, NULL);
        w.file.late_nth = 0;
        assert_true(rc == 0 || rc == -ETIMEDOUT);
        assert_int_equal(step(&w, both, 2, 1, NULL), 0);
    } while (failed != 0);
    assert_true(nth > 3);
    sl_session_destroy(first.session);
    sl_session_destroy(second.session);
    close_world(&w);
}

/* Where the file takes no more, what is not written stays in memory. */
static void test_writes_fail(void **state)
{
    struct session_follower life;
    struct sl_kv_cache *kv;
    struct world w;
    uint64_t bytes;

    open_world(&w, state, UINT64_C(64) << 20);
    life = begin_text(&w, 0, false);
    kv = sl_session_kv(life.session);
    session_rig_run_on(w.m, &life, 1000);
    bytes = sl_kv_cache_page_out_bytes(kv);
    w.file.fail_write_nth = 1;
    assert_int_equal(sl_kv_cache_page_out(kv, UINT32_MAX, NULL), -ENOSPC);
    assert_int_equal(sl_kv_cache_page_out_bytes(kv), bytes);
    assert_int_equal(far_pages(&life), 0);
    session_rig_run_on(w.m, &life, 50);
    sl_session_destroy(life.session);
    close_world(&w);
}

/* ---- budget ------------------------------------------------------------------------------------
 */

static struct sl_kv_window window_of(struct sl_kv_cache **kvs, uint32_t n)
{
    struct sl_kv_window window = {.kvs = kvs, .n_kvs = n};

    return window;
}

/* With room for the window of one layer a step runs; with a page less it is refused, and nothing
 * has happened. */
static void test_windows_need_room(void **state)
{
    struct session_follower lives[2];
    struct session_follower *const all[] = {&lives[0], &lives[1]};
    struct sl_kv_cache *kvs[2];
    struct sl_kv_window window;
    uint8_t *taken[4096];
    uint32_t n_taken = 0;
    uint64_t need = 0;
    struct world w;

    open_world(&w, state, UINT64_C(64) << 20);
    for (uint32_t i = 0; i < 2; i++) {
        lives[i] = begin_text(&w, i, false);
        session_rig_run_on(w.m, &lives[i], 590);
        page_out(&lives[i]);
        kvs[i] = sl_session_kv(lives[i].session);
        need += sl_kv_cache_need(kvs[i], 591);
    }
    window = window_of(kvs, 2);
    assert_true(sl_kv_window_need(&window) > 0);
    need += sl_kv_window_need(&window);
    while (sl_kv_pool_left_bytes(&w.pool) >= need)
        taken[n_taken++] = sl_kv_pool_take(&w.pool);
    assert_int_equal(step(&w, all, 2, 1, NULL), -SL_EBUDGET);
    assert_int_equal(sl_session_token_count(lives[0].session), 590);
    sl_kv_pool_release(&w.pool, taken[--n_taken]);
    assert_int_equal(step(&w, all, 2, 1, NULL), 0);
    while (n_taken > 0)
        sl_kv_pool_release(&w.pool, taken[--n_taken]);
    sl_session_destroy(lives[0].session);
    sl_session_destroy(lives[1].session);
    close_world(&w);
}

/* What is told of a document's sizes before it is there holds when it is. */
static void test_sizes_hold(void **state)
{
    uint64_t document, stays = 0, share;
    struct session_follower life;
    struct sl_kv_cache *kv;
    struct world w;

    open_world(&w, state, UINT64_C(64) << 20);
    life = begin_text(&w, 0, true);
    kv = sl_session_kv(life.session);
    for (uint32_t n = 100; n <= 3000; n += 580) {
        session_rig_run_on(w.m, &life, n - sl_session_token_count(life.session));
        sl_paging_measure(&w.pool.layout, n, &document, &stays);
        share = sl_kv_window_share(&w.pool.layout, n);
        assert_true(sl_kv_pool_used_bytes(&w.pool) <= document);
        page_out(&life);
        assert_int_equal(far_pages(&life), sl_kv_full_pages(&w.pool.layout, n));
        assert_int_equal(sl_kv_window_bytes(&kv, 1), share);
        assert_true(sl_kv_pool_used_bytes(&w.pool) + share <= stays);
        assert_int_equal(stays - share + sl_kv_cache_page_in_bytes(kv), document);
        assert_int_equal(sl_kv_cache_page_in(kv, UINT32_MAX, NULL),
                         sl_kv_full_pages(&w.pool.layout, n));
    }
    sl_session_destroy(life.session);
    close_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_at_every_border),  cmocka_unit_test(test_forks_read_once),
        cmocka_unit_test(test_rewind_into_disk), cmocka_unit_test(test_page_in),
        cmocka_unit_test(test_sizes_hold),       cmocka_unit_test(test_each_read_fails),
        cmocka_unit_test(test_writes_fail),      cmocka_unit_test(test_windows_need_room),
    };

    return cmocka_run_group_tests_name("kv_paging", tests, session_rig_create_wide,
                                       session_rig_destroy);
}
