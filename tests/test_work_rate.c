/* The time left that progress lines tell. A fake clock runs work of known cost; what is told must
 * be near what is left in truth, where the total average is far from it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tools/cli/work_rate.h"

#define UNITS 1000000u
#define STEP 100u /* units between two looks */

/* Seconds for the first n units. */
typedef double cost_fn(double n);

static double even(double n)
{
    return 0.001 * n;
}

/* Each token costs more than the one before it, the last 21 times the first. */
static double longer(double n)
{
    return 0.001 * (n + 10 * n * n / UNITS);
}

/* A tenth of the work was done at a hundred times the speed. */
static double quick_start(double n)
{
    return n < 0.1 * UNITS ? 0.00001 * n : 0.001 * (n - 0.099 * UNITS);
}

/* Runs all work, or what is left when `skipped` units are done already; from the share `from` on,
 * what is told may be wrong by `tolerance` of the truth, give or take a second. Returns the worst
 * error of the total average, as such a share. */
static double run(cost_fn *cost, bool growing, uint32_t skipped, double from, double tolerance)
{
    const uint64_t start_ns = UINT64_C(5000000000);
    struct sl_work_rate rate = sl_work_rate_start(start_ns, growing, skipped);
    double worst = 0;

    assert_true(sl_work_rate_per_second(&rate) == 0);
    assert_true(sl_work_rate_seconds_left(&rate, UNITS) == 0);
    for (uint32_t n = skipped + STEP; n < UNITS; n += STEP) {
        const double truth = cost(UNITS) - cost(n), average = cost(n) / n * (UNITS - n);
        double told;

        sl_work_rate_note(&rate, start_ns + (uint64_t)((cost(n) - cost(skipped)) * 1e9), n);
        told = sl_work_rate_seconds_left(&rate, UNITS);
        if (n < from * UNITS)
            continue;
        assert_true(told >= (1 - tolerance) * truth - 1 && told <= (1 + tolerance) * truth + 1);
        if (1 - average / truth > worst)
            worst = 1 - average / truth;
    }
    return worst;
}

static void test_even_work(void **state)
{
    (void)state;
    run(even, false, 0, 0, 0.01);
    run(even, true, 0, 0, 0.01);
}

static void test_later_tokens_cost_more(void **state)
{
    (void)state;
    assert_true(run(longer, true, 0, 0.02, 0.05) > 0.7);
}

/* The text's beginning was there: the rate is that of the rest, which costs more still. */
static void test_what_need_not_be_done(void **state)
{
    (void)state;
    run(longer, true, UNITS / 2, 0.55, 0.05);
    run(longer, true, UNITS / 10, 0.15, 0.05);
    run(even, true, UNITS / 2, 0.5, 0.01);
}

static void test_a_beginning_that_says_nothing(void **state)
{
    (void)state;
    assert_true(run(quick_start, false, 0, 0.15, 0.01) > 0.3);
}

static void test_the_rate_is_the_recent_one(void **state)
{
    struct sl_work_rate rate = sl_work_rate_start(0, false, 0);

    (void)state;
    for (uint64_t second = 1; second <= 100; second++)
        sl_work_rate_note(&rate, second * 1000000000, second <= 50 ? second * 100 : 4950 + second);
    assert_true(sl_work_rate_per_second(&rate) > 0.99 && sl_work_rate_per_second(&rate) < 1.01);
}

/* Nothing new for long: the rate goes down, and what is left is not told as nothing. */
static void test_work_that_stands_still(void **state)
{
    struct sl_work_rate rate = sl_work_rate_start(0, true, 0);

    (void)state;
    sl_work_rate_note(&rate, 1000000000, 10);
    sl_work_rate_note(&rate, 100000000000, 10);
    assert_true(sl_work_rate_per_second(&rate) <= 0.1);
    assert_true(sl_work_rate_seconds_left(&rate, 20) >= 0);
    assert_true(sl_work_rate_seconds_left(&rate, 10) == 0);
}

static void test_seconds_as_people_say_them(void **state)
{
    static const struct {
        double seconds;
        const char *text;
    } cases[] = {{0, "0 s"},
                 {119.4, "119 s"},
                 {120, "2 min"},
                 {7100, "118 min"},
                 {3 * 3600 + 300, "3 h 05 min"},
                 {86400.0 * 30, "30 days"}};
    char text[SL_SECONDS_TEXT_BYTES];

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_string_equal(sl_seconds_format(cases[i].seconds, text), cases[i].text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_even_work),
        cmocka_unit_test(test_later_tokens_cost_more),
        cmocka_unit_test(test_what_need_not_be_done),
        cmocka_unit_test(test_a_beginning_that_says_nothing),
        cmocka_unit_test(test_the_rate_is_the_recent_one),
        cmocka_unit_test(test_work_that_stands_still),
        cmocka_unit_test(test_seconds_as_people_say_them),
    };

    return cmocka_run_group_tests_name("work_rate", tests, NULL, NULL);
}
