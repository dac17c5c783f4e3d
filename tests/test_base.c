/* Base: sizes, arenas, messages, the pool. Sizes are parsed and printed as people write them; an
 * arena measures exactly what it later hands out; the pool runs every item once, whatever the
 * number of threads, and no part of a job waits for its own thread. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/base/arena.h"
#include "core/base/clock.h"
#include "core/base/err.h"
#include "core/base/pool.h"
#include "core/base/size.h"

static void test_size_parse(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"0", 0},
                {"4096", 4096},
                {"512M", UINT64_C(512) << 20},
                {"1.5G", UINT64_C(3) << 29},
                {"2TiB", UINT64_C(2) << 40},
                {"7kb", 7168}};
    static const char *const bad[] = {"",    "-1",   " 1",    "1X",   "G",     "1GG",  "inf",
                                      "nan", "1e30", "9000P", "0x10", "0x1p4", "1.0.0"};
    uint64_t bytes;

    (void)state;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        assert_int_equal(sl_size_parse(good[i].text, &bytes), 0);
        assert_int_equal(bytes, good[i].bytes);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(sl_size_parse(bad[i], &bytes), -EINVAL);
}

static void test_number_parse(void **state)
{
    static const struct {
        const char *text;
        double value;
        const char *rest;
    } good[] = {{"0", 0, ""},   {"12.5%", 12.5, "%"}, {"1e-3", 1e-3, ""}, {"2E+1x", 20, "x"},
                {"1e", 1, "e"}, {"3.", 3, ""},        {"007", 7, ""}};
    static const char *const bad[] = {"", "-1", "+1", " 1", ".5", "x", "inf", "nan", "0x10", "0X1"};
    const char *rest;
    double value;

    (void)state;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        assert_int_equal(sl_number_parse(good[i].text, &value, &rest), 0);
        assert_true(value == good[i].value);
        assert_string_equal(rest, good[i].rest);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(sl_number_parse(bad[i], &value, &rest), -EINVAL);
}

static void test_size_format(void **state)
{
    char text[SL_SIZE_TEXT_BYTES];

    (void)state;
    assert_string_equal(sl_size_format(583, text), "583 B");
    assert_string_equal(sl_size_format(UINT64_C(3) << 29, text), "1.50 GiB");
    assert_string_equal(sl_size_format(UINT64_MAX, text), "16.0 EiB");
}

static void carve(struct sl_arena *arena, char **a, double **b)
{
    *a = sl_arena_take(arena, 100, 1);
    *b = sl_arena_take_aligned(arena, 7, sizeof(double), 4096);
}

static void test_arena_hands_out_what_it_measured(void **state)
{
    struct sl_arena measure, arena;
    char *a;
    double *b;

    (void)state;
    sl_arena_init_measure(&measure);
    carve(&measure, &a, &b);
    assert_null(a);
    assert_int_equal(measure.used_bytes, 4096 + 56);
    assert_int_equal(sl_arena_init(&arena, measure.used_bytes, "test", NULL), 0);
    carve(&arena, &a, &b);
    assert_int_equal((uintptr_t)a % 64, 0);
    assert_int_equal((uintptr_t)b % 4096, 0);
    assert_int_equal(arena.used_bytes, measure.used_bytes);
    for (int i = 0; i < 7; i++)
        assert_true(b[i] == 0);
    sl_arena_fini(&arena);
    sl_arena_fini(&arena);
}

static void test_messages_are_one_line(void **state)
{
    struct sl_err err = {0};

    (void)state;
    assert_int_equal(sl_err_set(&err, -SL_EFORMAT, "key \"%s\"", "a\nb\x7f\tc"), -SL_EFORMAT);
    assert_string_equal(err.message, "key \"a?b??c\"");
    assert_int_equal(sl_err_prefix(&err, -EIO, "layer %d", 3), -EIO);
    assert_string_equal(err.message, "layer 3: key \"a?b??c\"");
    assert_int_equal(err.code, -EIO);
}

struct visits {
    unsigned char count[1000];
};

static void visit(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct visits *visits = context;

    (void)thread_index;
    for (size_t i = first; i < end; i++)
        visits->count[i]++;
}

static void test_pool_runs_each_item_once(void **state)
{
    (void)state;
    for (uint32_t n_threads = 1; n_threads <= 5; n_threads++) {
        struct sl_pool *pool;

        assert_int_equal(sl_pool_create(&pool, n_threads, NULL), 0);
        assert_int_equal(sl_pool_thread_count(pool), n_threads);
        for (size_t n = 0; n <= 1000; n = n * 3 + 1) {
            for (size_t grain = 1; grain <= 64; grain *= 8) {
                struct visits visits = {{0}};

                sl_pool_run(pool, 0, n, grain, visit, &visits);
                for (size_t i = 0; i < 1000; i++)
                    assert_int_equal(visits.count[i], i < n);
            }
        }
        sl_pool_destroy(pool);
    }
}

#define LATE_ITEMS 64u

struct late {
    atomic_uint n_done, n_gave_up;
};

/* The first piece of the second thread's part ends after all the rest of the job. */
static void visit_late(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct late *late = context;
    const uint64_t until_ns = sl_clock_ns() + 20 * UINT64_C(1000000000);

    (void)thread_index;
    if (first == LATE_ITEMS / 2)
        while (atomic_load(&late->n_done) != LATE_ITEMS - (end - first))
            if (sl_clock_ns() > until_ns) {
                atomic_fetch_add(&late->n_gave_up, 1);
                break;
            }
    atomic_fetch_add(&late->n_done, (uint32_t)(end - first));
}

/* Whoever has the late piece, the other thread must take over what is left of that part; also where
 * threads sleep between two jobs. */
static void test_pool_takes_over_from_a_late_thread(void **state)
{
    struct sl_pool *pool;

    (void)state;
    assert_int_equal(sl_pool_create(&pool, 2, NULL), 0);
    for (uint32_t i = 0; i < 200; i++) {
        struct late late = {0};

        sl_pool_run(pool, 0, LATE_ITEMS, 1, visit_late, &late);
        assert_int_equal(late.n_gave_up, 0);
        if (i % 10 == 0)
            usleep(200);
    }
    sl_pool_destroy(pool);
}

/* ---- lines -------------------------------------------------------------------------------------
 */

#define LINE_ITEMS 40u

struct line_job {
    struct line_job *first; /* of the line */
    uint32_t n_before;
    size_t n_items;
    atomic_uint n_done;
    atomic_uint n_early; /* items that began while something was missing that they need */
    atomic_uint count[LINE_ITEMS];
};

static void visit_in_line(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct line_job *job = context;

    (void)thread_index;
    for (uint32_t i = 0; i < job->n_before; i++)
        if (atomic_load(&job->first[i].n_done) != job->first[i].n_items)
            atomic_fetch_add(&job->n_early, 1);
    for (size_t i = first; i < end; i++)
        atomic_fetch_add(&job->count[i], 1);
    atomic_fetch_add(&job->n_done, (uint32_t)(end - first));
}

/* Jobs of many sizes that need some of those before them, on pools of many sizes. */
static void test_pool_runs_lines_in_order(void **state)
{
    (void)state;
    for (uint32_t n_threads = 1; n_threads <= 5; n_threads++) {
        struct sl_pool *pool;

        assert_int_equal(sl_pool_create(&pool, n_threads, NULL), 0);
        for (uint32_t turn = 0; turn < 300; turn++) {
            static struct line_job jobs[SL_POOL_LINE_MAX];
            struct sl_pool_job line[SL_POOL_LINE_MAX];
            const uint32_t n_jobs = 1 + turn % SL_POOL_LINE_MAX, lag = turn % 3;

            memset(jobs, 0, sizeof(jobs));
            for (uint32_t i = 0; i < n_jobs; i++) {
                jobs[i].first = jobs;
                jobs[i].n_before = i < lag ? 0 : i - lag;
                jobs[i].n_items = 1 + (turn * 7 + i * 13) % LINE_ITEMS;
                line[i] = (struct sl_pool_job){visit_in_line, &jobs[i], jobs[i].n_items,
                                               1 + i % 2,     0,        jobs[i].n_before};
            }
            sl_pool_run_line(pool, line, n_jobs);
            for (uint32_t i = 0; i < n_jobs; i++) {
                assert_int_equal(atomic_load(&jobs[i].n_early), 0);
                for (size_t item = 0; item < LINE_ITEMS; item++)
                    assert_int_equal(atomic_load(&jobs[i].count[item]), item < jobs[i].n_items);
            }
            if (turn % 30 == 0)
                usleep(200);
        }
        sl_pool_destroy(pool);
    }
}

struct held {
    atomic_uint n_next_done, n_gave_up;
};

/* The first item does not end before the next job's are done. */
static void hold_first(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct held *held = context;
    const uint64_t until_ns = sl_clock_ns() + 20 * UINT64_C(1000000000);

    (void)end, (void)thread_index;
    while (first == 0 && atomic_load(&held->n_next_done) != LATE_ITEMS)
        if (sl_clock_ns() > until_ns) {
            atomic_fetch_add(&held->n_gave_up, 1);
            break;
        }
}

static void count_next(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct held *held = context;

    (void)thread_index;
    atomic_fetch_add(&held->n_next_done, (uint32_t)(end - first));
}

/* A thread goes on with a job that does not need the one before, and does all of it, while another
 * is held there. */
static void test_pool_flows_on(void **state)
{
    struct sl_pool *pool;

    (void)state;
    assert_int_equal(sl_pool_create(&pool, 2, NULL), 0);
    for (uint32_t i = 0; i < 100; i++) {
        struct held held = {0};
        const struct sl_pool_job line[2] = {{hold_first, &held, 2, 1, 0, 0},
                                            {count_next, &held, LATE_ITEMS, 1, 0, 0}};

        sl_pool_run_line(pool, line, 2);
        assert_int_equal(held.n_gave_up, 0);
    }
    sl_pool_destroy(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_number_parse),
        cmocka_unit_test(test_size_parse),
        cmocka_unit_test(test_size_format),
        cmocka_unit_test(test_arena_hands_out_what_it_measured),
        cmocka_unit_test(test_messages_are_one_line),
        cmocka_unit_test(test_pool_runs_each_item_once),
        cmocka_unit_test(test_pool_takes_over_from_a_late_thread),
        cmocka_unit_test(test_pool_runs_lines_in_order),
        cmocka_unit_test(test_pool_flows_on),
    };

    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
