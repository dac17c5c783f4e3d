/* What a start tells of itself: nothing where it is quick, a line for what lasts, whatever it waits
 * for, and none for what tells for itself. Each wait is one for the line, not for a time. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/base/clock.h"
#include "tools/cli/start_report.h"

static struct sl_start_report report;
static FILE *in;

static int set_up(void **state)
{
    int ends[2];
    FILE *out;

    (void)state;
    if (pipe(ends) != 0)
        return -1;
    in = fdopen(ends[0], "r");
    out = fdopen(ends[1], "w");
    if (!in || !out)
        return -1;
    sl_start_report_begin(&report, out, "opening", "the-model");
    return 0;
}

/* Ends the report; what it said after all that was read is `expected`. */
static void expect_end(const char *expected)
{
    char rest[256];
    size_t length;

    sl_start_report_end(&report);
    fclose(report.out);
    length = fread(rest, 1, sizeof(rest) - 1, in);
    rest[length] = '\0';
    fclose(in);
    assert_string_equal(rest, expected);
}

static void test_quick_starts_are_silent(void **state)
{
    (void)state;
    sl_start_report_doing(&report, "one thing");
    sl_start_report_doing(&report, "another");
    expect_end("");
}

static void test_what_lasts_is_told(void **state)
{
    const uint64_t start_ns = sl_clock_ns();
    char line[64];

    (void)state;
    sl_start_report_doing(&report, "reading");
    assert_non_null(fgets(line, sizeof(line), in));
    assert_string_equal(line, "the-model: reading\n");
    assert_true(sl_clock_ns() - start_ns >= 500000000);
    sl_start_report_doing(&report, NULL);
    expect_end("");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup(name, set_up)
    const struct CMUnitTest tests[] = {
        TEST(test_quick_starts_are_silent),
        TEST(test_what_lasts_is_told),
    };

    return cmocka_run_group_tests_name("start_report", tests, NULL, NULL);
}
