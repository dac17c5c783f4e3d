/* The memory of KV caches: what sequences, marks and forks see of it, what they take of the budget,
 * and that nothing is lost or left. No model runs: where a step would write an item, a number is
 * written that depends on all tokens before it, and everything a sequence can see is compared with
 * what its tokens say, at lengths around all that lies in pages. Budgets of the released models are
 * computed by hand. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/base/file.h"
#include "core/base/size.h"
#include "core/model/kv_mark.h"
#include "tests/fault_alloc.h"
#include "tests/fixture_model.h"
#include "tests/kv_rig.h"

#define TOKENS_MAX 9000u
#define CACHES_MAX 12u
#define MARKS_MAX 6u

/* A cache, and what its tokens say: after[t] stands for tokens 0 to t - 1. */
struct text {
    struct sl_kv_cache kv;
    uint64_t *after; /* (TOKENS_MAX + 1) */
    struct sl_kv_mark marks[MARKS_MAX];
    uint32_t n_marks;
    bool lives;
};

struct world {
    struct sl_config config;
    struct sl_kv_pool pool;
    struct text texts[CACHES_MAX];
    uint64_t random;
    uint32_t n_refused, n_forks, n_rewinds, n_grown;
};

static uint32_t below(struct world *w, uint32_t limit)
{
    return fixture_below(&w->random, limit);
}

/* Windows and compressor rows of several pages. */
static void make_config(struct sl_config *config)
{
    fixture_config(config);
    config->sliding_window = 400;
    config->compress_ratios[4] = 4;
}

/* ---- what steps write --------------------------------------------------------------------------
 */

static uint32_t seen(const struct text *text, uint32_t layer_index)
{
    return layer_index < text->kv.pool->layout.n_hidden_layers ? text->kv.n_tokens
                                                               : text->kv.n_mtp_tokens;
}

/* Where the number of a unit of a part lies; its end says how many tokens it stands for. */
static uint8_t *place(const struct text *text, uint32_t layer_index, int p, uint32_t unit,
                      uint32_t *ret_end)
{
    const struct sl_kv_part_layout *part = &text->kv.pool->layout.parts[layer_index][p];
    uint32_t item = unit / part->units_per_item;

    *ret_end = (unit + 1) * part->ratio;
    if (part->n_rows > 0)
        item %= part->n_rows;
    if (p == SL_KV_IDS)
        return (uint8_t *)sl_kv_id(&text->kv, unit);
    return sl_kv_item(&text->kv, layer_index, (enum sl_kv_part)p, item) +
           unit % part->units_per_item * sizeof(uint64_t);
}

static size_t number_bytes(int p)
{
    return p == SL_KV_IDS ? sizeof(int32_t) : sizeof(uint64_t);
}

/* Writes what a step of n tokens would; each token's id is drawn. */
static void write_tokens(struct world *w, struct text *text, uint32_t n)
{
    const struct sl_kv_layout *layout = &w->pool.layout;
    const uint32_t end = text->kv.n_tokens + n;
    uint32_t unit_end;

    for (uint32_t t = text->kv.n_tokens; t < end; t++) {
        uint64_t state = text->after[t] + below(w, 1000);

        text->after[t + 1] = fixture_random(&state);
    }
    for (uint32_t i = 0; i < layout->n_layers; i++)
        for (int p = 0; p < SL_KV_PARTS; p++) {
            const struct sl_kv_part_layout *part = &layout->parts[i][p];

            for (uint32_t u = part->ratio ? seen(text, i) / part->ratio : 0;
                 part->ratio && u < end / part->ratio; u++) {
                uint8_t *at = place(text, i, p, u, &unit_end);

                memcpy(at, &text->after[unit_end], number_bytes(p));
            }
        }
    text->kv.n_tokens = text->kv.n_mtp_tokens = end;
}

/* Everything that counts is there. */
static void check_text(const struct text *text)
{
    const struct sl_kv_layout *layout = &text->kv.pool->layout;
    uint32_t unit_end;

    for (uint32_t i = 0; i < layout->n_layers; i++)
        for (int p = 0; p < SL_KV_PARTS; p++) {
            const struct sl_kv_part_layout *part = &layout->parts[i][p];
            const uint32_t n = part->ratio ? seen(text, i) / part->ratio : 0;
            uint32_t u = part->n_rows > 0 && n > part->n_rows ? n - part->n_rows : 0;

            for (; u < n; u++) {
                const uint8_t *at = place(text, i, p, u, &unit_end);

                assert_memory_equal(at, &text->after[unit_end], number_bytes(p));
            }
        }
}

/* Pages that are held are those that somebody lists, each as often as its number of holders; and
 * no more is counted than that and the tables. */
static void check_pool(const struct world *w)
{
    const struct sl_kv_pool *pool = &w->pool;
    const struct sl_kv_layout *layout = &pool->layout;
    uint32_t *holders = calloc(pool->n_pages, sizeof(*holders));
    uint64_t table_bytes = 0;
    uint32_t n_held = 0;

    assert_non_null(holders);
    for (uint32_t c = 0; c < CACHES_MAX; c++) {
        const struct text *text = &w->texts[c];

        table_bytes += text->lives ? text->kv.table_bytes : 0;
        for (uint32_t list = 0; text->lives && list < layout->n_layers * SL_KV_PARTS; list++) {
            const struct sl_kv_part_layout *part =
                &layout->parts[list / SL_KV_PARTS][list % SL_KV_PARTS];
            const uint32_t n =
                sl_kv_part_pages(part, part->n_rows ? part->n_rows : text->kv.table_tokens);

            for (uint32_t i = 0; i < n; i++)
                if (text->kv.pages[list][i])
                    holders[(text->kv.pages[list][i] - pool->pages) / layout->page_bytes]++;
        }
        for (uint32_t m = 0; m < text->n_marks; m++) {
            table_bytes += text->marks[m].table_bytes;
            for (uint32_t list = 0; list < layout->n_layers * SL_KV_RINGS; list++) {
                const struct sl_kv_part_layout *part =
                    &layout->parts[list / SL_KV_RINGS][list % SL_KV_RINGS];

                for (uint32_t i = 0; i < sl_kv_part_pages(part, part->n_rows); i++)
                    if (text->marks[m].pages[list][i])
                        holders[(text->marks[m].pages[list][i] - pool->pages) /
                                layout->page_bytes]++;
            }
        }
    }
    for (uint32_t n = 0; n < pool->n_pages; n++) {
        n_held += holders[n] > 0;
        if (holders[n] > 0)
            assert_int_equal(holders[n], pool->holders[n]);
    }
    assert_int_equal(n_held, pool->n_held);
    assert_int_equal(table_bytes, pool->table_bytes);
    assert_true(sl_kv_pool_used_bytes(pool) <= pool->budget_bytes);
    free(holders);
}

/* ---- a life ------------------------------------------------------------------------------------
 */

static void end_text(struct world *w, struct text *text)
{
    while (text->n_marks > 0)
        sl_kv_mark_release(&text->marks[--text->n_marks], &w->pool);
    sl_kv_cache_fini(&text->kv);
    text->lives = false;
}

/* As a step's beginning does; returns whether it can be taken. */
static bool make_room(struct world *w, struct text *text, uint32_t n)
{
    const uint64_t needed = sl_kv_cache_need(&text->kv, text->kv.n_tokens + n);
    const uint64_t left = sl_kv_pool_left_bytes(&w->pool), table_bytes = text->kv.table_bytes;

    if (sl_kv_pool_check(&w->pool, needed, "test", NULL) < 0) {
        assert_true(needed > left);
        w->n_refused++;
        return false;
    }
    assert_int_equal(sl_kv_cache_grow(&text->kv, text->kv.n_tokens + n, NULL), 0);
    assert_int_equal(sl_kv_cache_need(&text->kv, text->kv.n_tokens + n), 0);
    /* A table that is moved is counted beside the one before it. */
    assert_true(left - sl_kv_pool_left_bytes(&w->pool) <= needed);
    if (table_bytes == text->kv.table_bytes)
        assert_int_equal(left - sl_kv_pool_left_bytes(&w->pool), needed);
    return true;
}

/* A number of tokens that leads to an end of something, or one before or after it. */
static uint32_t draw_length(struct world *w, const struct text *text)
{
    static const uint32_t steps[] = {1, 4, 8, 16, 64, 128, 180, 400, 512, 720, 1440, 2048, 4096};
    const uint32_t multiple = steps[below(w, SL_ARRAY_LEN(steps))], now = text->kv.n_tokens;
    const uint32_t to = (now / multiple + 1) * multiple + below(w, 3) - 1;

    if (below(w, 3) == 0)
        return 1 + below(w, 6);
    return to > now ? to - now : 1;
}

static void grow_text(struct world *w, struct text *text)
{
    uint32_t n = draw_length(w, text);

    if (n > TOKENS_MAX - text->kv.n_tokens)
        n = TOKENS_MAX - text->kv.n_tokens;
    if (make_room(w, text, n)) {
        write_tokens(w, text, n);
        w->n_grown++;
    } else if (below(w, 2)) {
        end_text(w, text);
    }
}

static void mark_text(struct world *w, struct text *text)
{
    struct sl_err err;
    int rc;

    if (text->n_marks == MARKS_MAX) {
        sl_kv_mark_release(&text->marks[0], &w->pool);
        memmove(text->marks, text->marks + 1, --text->n_marks * sizeof(text->marks[0]));
    }
    rc = sl_kv_mark_take(&text->marks[text->n_marks], &text->kv, &err);
    if (rc < 0)
        assert_int_equal(rc, -SL_EBUDGET);
    text->n_marks += rc == 0;
}

static void rewind_text(struct world *w, struct text *text)
{
    const uint32_t keep = below(w, text->n_marks + 1);

    while (text->n_marks > keep)
        sl_kv_mark_release(&text->marks[--text->n_marks], &w->pool);
    if (keep > 0)
        sl_kv_mark_rewind(&text->marks[keep - 1], &text->kv);
    else
        sl_kv_cache_clear(&text->kv);
    w->n_rewinds++;
}

static void fork_text(struct world *w, struct text *child)
{
    struct text *parent = &w->texts[below(w, CACHES_MAX)];
    const struct sl_kv_mark *mark;
    int rc;

    if (parent->lives && parent->n_marks > 0) {
        mark = &parent->marks[below(w, parent->n_marks)];
        rc = sl_kv_mark_fork(mark, &parent->kv, TOKENS_MAX, &child->kv, NULL);
        memcpy(child->after, parent->after, (mark->n_tokens + 1) * sizeof(*child->after));
        w->n_forks += rc == 0;
    } else {
        rc = sl_kv_cache_init(&child->kv, &w->pool, TOKENS_MAX, NULL);
        child->after[0] = 1;
    }
    if (rc < 0)
        assert_int_equal(rc, -SL_EBUDGET);
    child->lives = rc == 0;
}

static void live(struct world *w)
{
    struct text *text = &w->texts[below(w, CACHES_MAX)];
    const uint32_t what = below(w, 20);

    if (!text->lives)
        fork_text(w, text);
    else if (what < 13)
        grow_text(w, text);
    else if (what < 17)
        mark_text(w, text);
    else if (what < 19)
        rewind_text(w, text);
    else
        end_text(w, text);
    if (text->lives)
        check_text(text);
}

static void run_world(uint64_t seed, enum sl_numerics numerics)
{
    struct world w = {.random = seed};

    make_config(&w.config);
    kv_rig_pool(&w.pool, &w.config, 5, numerics, 1 + (uint32_t)seed % 3, TOKENS_MAX);
    for (uint32_t c = 0; c < CACHES_MAX; c++) {
        w.texts[c].after = calloc(TOKENS_MAX + 1, sizeof(*w.texts[c].after));
        assert_non_null(w.texts[c].after);
    }
    for (uint32_t i = 0; i < 1200; i++) {
        live(&w);
        if (i % 8 == 0)
            check_pool(&w);
        for (uint32_t c = 0; c < CACHES_MAX && i % 32 == 0; c++)
            if (w.texts[c].lives)
                check_text(&w.texts[c]);
    }
    assert_true(w.n_refused > 5 && w.n_forks > 20 && w.n_rewinds > 20 && w.n_grown > 80);
    for (uint32_t c = 0; c < CACHES_MAX; c++) {
        if (w.texts[c].lives)
            end_text(&w, &w.texts[c]);
        free(w.texts[c].after);
    }
    assert_int_equal(sl_kv_pool_used_bytes(&w.pool), 0);
    sl_kv_pool_fini(&w.pool);
}

static void test_everybody_sees_their_own(void **state)
{
    const char *seed = getenv("SL_SEED");

    (void)state;
    for (uint64_t i = 0; i < 6; i++)
        run_world((seed ? strtoull(seed, NULL, 10) * 100 : 7) + i, SL_NUMERICS_NATIVE);
    run_world(3, SL_NUMERICS_EXACT);
}

/* ---- budgets -----------------------------------------------------------------------------------
 */

/* The pages of a session of 100 tokens of V4-Pro. Of 34,816 bytes, they hold 59 entries of 583
 * bytes, 17 compressor rows of an HCA layer, 8 of a CSA layer, 34 of its indexer, 512 keys, or
 * 8,704 ids. */
#define PRO "tools/configs/v4-pro.json"
#define CSA_PAGES (2 /* window */ + 1 + 1 + 1 + 1 /* rows */ + 1 /* entries */ + 1 /* keys */)
#define HCA_PAGES (2 /* window */ + 6 + 6 /* rows */)
#define PRO_PAGES (30u * CSA_PAGES + 31u * HCA_PAGES + 1u /* ids */)

static void read_pro(struct sl_config *config)
{
    size_t length;
    char *text;

    assert_int_equal(sl_file_read_all(PRO, 1 << 16, &text, &length, NULL), 0);
    assert_int_equal(sl_config_parse(config, text, length, PRO, NULL), 0);
    free(text);
}

static void test_500_sessions_of_pro(void **state)
{
    static struct sl_kv_cache kv[500];
    struct sl_kv_cache one_more;
    struct sl_kv_layout layout;
    struct sl_config config;
    struct sl_kv_pool pool;
    uint64_t each_bytes;
    struct sl_err err;

    (void)state;
    read_pro(&config);
    assert_int_equal(sl_kv_layout_init(&layout, &config, 61, SL_NUMERICS_NATIVE, NULL), 0);
    assert_int_equal(layout.page_bytes, 34816);
    assert_int_equal(sl_kv_layout_pages(&layout, 100), PRO_PAGES);
    assert_true(PRO_PAGES * UINT64_C(34820) < 24u << 20);
    assert_true(sl_kv_cache_measure(&layout, 1u << 20) <= UINT64_C(5500000000));
    each_bytes = sl_kv_cache_measure(&layout, 100);
    assert_in_range(each_bytes, PRO_PAGES * UINT64_C(34820), PRO_PAGES * UINT64_C(34820) + 65536);
    sl_kv_layout_fini(&layout);
    assert_int_equal(
        sl_kv_pool_init(&pool, &config, 61, SL_NUMERICS_NATIVE, 500 * each_bytes, NULL), 0);
    for (uint32_t i = 0; i < 500; i++) {
        assert_int_equal(sl_kv_cache_init(&kv[i], &pool, 1u << 20, NULL), 0);
        assert_int_equal(sl_kv_pool_check(&pool, sl_kv_cache_need(&kv[i], 100), "t", NULL), 0);
        assert_int_equal(sl_kv_cache_grow(&kv[i], 100, NULL), 0);
    }
    assert_int_equal(pool.n_held, 500 * PRO_PAGES);
    assert_int_equal(sl_kv_cache_init(&one_more, &pool, 1u << 20, NULL), 0);
    assert_int_equal(sl_kv_pool_check(&pool, sl_kv_cache_need(&one_more, 100), "a step", &err),
                     -SL_EBUDGET);
    assert_non_null(strstr(err.message, "a step needs 22.4 MiB more for KV caches, but "));
    sl_kv_cache_fini(&one_more);
    for (uint32_t i = 0; i < 500; i++)
        sl_kv_cache_fini(&kv[i]);
    assert_int_equal(sl_kv_pool_used_bytes(&pool), 0);
    sl_kv_pool_fini(&pool);
}

/* A session of V4-Pro that grew by steps of all sizes and was written to everywhere: what it has of
 * the machine's memory is what is counted, and at a million tokens no more than 5.5 GB. */
static void test_a_filled_session_of_pro(void **state)
{
    const char *given = getenv("SL_KV_TOKENS");
    const uint32_t n_tokens = given ? (uint32_t)atoi(given) : 8000;
    struct sl_kv_layout layout;
    struct sl_config config;
    struct sl_kv_pool pool;
    struct sl_kv_cache kv;
    uint64_t bytes;

    (void)state;
    read_pro(&config);
    assert_int_equal(sl_kv_layout_init(&layout, &config, 61, SL_NUMERICS_NATIVE, NULL), 0);
    bytes = sl_kv_cache_measure(&layout, n_tokens);
    sl_kv_layout_fini(&layout);
    assert_int_equal(sl_kv_pool_init(&pool, &config, 61, SL_NUMERICS_NATIVE, bytes, NULL), 0);
    assert_int_equal(sl_kv_cache_init(&kv, &pool, n_tokens, NULL), 0);
    for (uint32_t n = 1; kv.n_tokens < n_tokens; n = n % 4096 * 2 + 1) {
        const uint32_t left = n_tokens - kv.n_tokens, end = kv.n_tokens + (n < left ? n : left);

        assert_int_equal(sl_kv_pool_check(&pool, sl_kv_cache_need(&kv, end), "t", NULL), 0);
        assert_int_equal(sl_kv_cache_grow(&kv, end, NULL), 0);
        kv.n_tokens = end;
    }
    assert_int_equal(pool.n_touched, pool.n_held);
    memset(pool.pages, 1, (size_t)pool.n_touched * pool.layout.page_bytes);
    bytes = sl_arena_pages(&pool.arena).resident_bytes + pool.table_bytes;
    assert_in_range(bytes, sl_kv_pool_used_bytes(&pool),
                    sl_kv_pool_used_bytes(&pool) + 2 * SL_HUGE_PAGE_BYTES);
    assert_true(bytes <= UINT64_C(5500000000));
    print_message("# %u tokens: %.3f GB, of which %.3f MB tables\n", n_tokens, (double)bytes * 1e-9,
                  (double)pool.table_bytes * 1e-6);
    sl_kv_cache_fini(&kv);
    sl_kv_pool_fini(&pool);
}

/* What measure() says is enough, however a sequence grows, and what marks take at most. */
static void test_measures_hold(void **state)
{
    static const uint32_t steps[] = {1, 7, 128, 5000};
    struct sl_kv_layout layout;
    struct sl_config config;
    struct sl_kv_pool pool;

    (void)state;
    make_config(&config);
    assert_int_equal(sl_kv_layout_init(&layout, &config, 5, SL_NUMERICS_NATIVE, NULL), 0);
    for (uint32_t s = 0; s < SL_ARRAY_LEN(steps); s++)
        for (uint32_t n = 1; n <= 40000; n = n * 3 + 1) {
            const uint64_t bytes =
                sl_kv_cache_measure(&layout, n) + 2 * sl_kv_mark_measure(&layout);
            struct sl_kv_mark marks[2];
            struct sl_kv_cache kv;

            assert_int_equal(sl_kv_pool_init(&pool, &config, 5, SL_NUMERICS_NATIVE, bytes, NULL),
                             0);
            assert_int_equal(sl_kv_cache_init(&kv, &pool, n, NULL), 0);
            for (uint32_t i = 0; i < 2; i++) {
                const uint32_t end = i ? n : n / 2;

                assert_int_equal(sl_kv_mark_take(&marks[i], &kv, NULL), 0);
                while (kv.n_tokens < end) {
                    const uint32_t left = end - kv.n_tokens;
                    const uint32_t to = kv.n_tokens + (left < steps[s] ? left : steps[s]);

                    assert_int_equal(sl_kv_pool_check(&pool, sl_kv_cache_need(&kv, to), "t", NULL),
                                     0);
                    assert_int_equal(sl_kv_cache_grow(&kv, to, NULL), 0);
                    kv.n_tokens = kv.n_mtp_tokens = to;
                }
            }
            sl_kv_mark_release(&marks[0], &pool);
            sl_kv_mark_release(&marks[1], &pool);
            sl_kv_cache_fini(&kv);
            sl_kv_pool_fini(&pool);
        }
    sl_kv_layout_fini(&layout);
}

/* ---- allocations -------------------------------------------------------------------------------
 */

/* A pool, a sequence whose table grows, a mark and a fork. Returns what failed first. */
static int whole_life(const struct sl_config *config)
{
    struct sl_kv_cache kv = {0}, child = {0};
    struct sl_kv_mark mark = {0};
    struct sl_kv_pool pool = {0};
    int rc;

    if ((rc = sl_kv_pool_init(&pool, config, 5, SL_NUMERICS_NATIVE, 64 << 20, NULL)) < 0)
        return rc;
    if ((rc = sl_kv_cache_init(&kv, &pool, 1u << 20, NULL)) == 0 &&
        (rc = sl_kv_cache_grow(&kv, 100, NULL)) == 0) {
        kv.n_tokens = 100;
        rc = sl_kv_mark_take(&mark, &kv, NULL);
        if (rc == 0 && (rc = sl_kv_cache_grow(&kv, 10000, NULL)) == 0) {
            kv.n_tokens = 10000;
            rc = sl_kv_mark_fork(&mark, &kv, 1u << 20, &child, NULL);
        }
    }
    sl_kv_cache_fini(&child);
    sl_kv_mark_release(&mark, &pool);
    sl_kv_cache_fini(&kv);
    assert_int_equal(sl_kv_pool_used_bytes(&pool), 0);
    sl_kv_pool_fini(&pool);
    return rc;
}

static void test_memory_runs_out(void **state)
{
    const int64_t live_before = fault_alloc_live_count();
    struct sl_config config;
    uint64_t nth = 0;
    int rc;

    (void)state;
    if (!fault_alloc_works())
        skip();
    make_config(&config);
    do {
        fault_alloc_set(++nth, false);
        rc = whole_life(&config);
        assert_int_equal(rc, fault_alloc_happened() ? -ENOMEM : 0);
        fault_alloc_set(0, false);
        assert_int_equal(fault_alloc_live_count(), live_before);
    } while (rc < 0);
    assert_true(nth > 6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_everybody_sees_their_own), cmocka_unit_test(test_500_sessions_of_pro),
        cmocka_unit_test(test_a_filled_session_of_pro),  cmocka_unit_test(test_measures_hold),
        cmocka_unit_test(test_memory_runs_out),
    };

    return cmocka_run_group_tests_name("kv_cache", tests, NULL, NULL);
}
