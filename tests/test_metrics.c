/* Tables of counters: what they show as JSON and as Prometheus text, and the expert cache's table,
 * which must describe each of its counters once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cache/expert_cache.h"
#include "core/base/metrics.h"

struct counters {
    uint64_t n_reads, wait_ns, longest_ns, read_bytes;
};

static const struct sl_metric list[] = {
    {"reads", SL_METRIC_COUNT, "Reads", offsetof(struct counters, n_reads), false},
    {"wait_seconds", SL_METRIC_NANOSECONDS, "Time waited", offsetof(struct counters, wait_ns),
     false},
    {"longest_seconds", SL_METRIC_NANOSECONDS, "Longest wait",
     offsetof(struct counters, longest_ns), true},
    {"read_bytes", SL_METRIC_BYTES, "Bytes read", offsetof(struct counters, read_bytes), false},
};
static const struct sl_metrics metrics = {list, 4};

static void test_prometheus_text(void **state)
{
    const struct counters c = {3, UINT64_C(12000000034), 5, UINT64_MAX};
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);

    (void)state;
    assert_non_null(out);
    sl_metrics_write_prometheus(out, &metrics, &c);
    assert_int_equal(fclose(out), 0);
    assert_string_equal(text, "# HELP sluice_reads_total Reads.\n"
                              "# TYPE sluice_reads_total counter\n"
                              "sluice_reads_total 3\n"
                              "# HELP sluice_wait_seconds_total Time waited.\n"
                              "# TYPE sluice_wait_seconds_total counter\n"
                              "sluice_wait_seconds_total 12.000000034\n"
                              "# HELP sluice_longest_seconds Longest wait.\n"
                              "# TYPE sluice_longest_seconds gauge\n"
                              "sluice_longest_seconds 0.000000005\n"
                              "# HELP sluice_read_bytes_total Bytes read.\n"
                              "# TYPE sluice_read_bytes_total counter\n"
                              "sluice_read_bytes_total 18446744073709551615\n");
    free(text);
}

static void test_json_and_difference(void **state)
{
    const struct counters from = {3, 1000, 9, 50}, to = {5, 500001000, 4, 75};
    struct counters d = {0};
    json_t *object = json_object();

    (void)state;
    sl_metrics_difference(&metrics, &from, &to, &d);
    assert_int_equal(d.n_reads, 2);
    assert_int_equal(d.wait_ns, 500000000);
    assert_int_equal(d.longest_ns, 4); /* can fall */
    assert_int_equal(d.read_bytes, 25);
    sl_metrics_set_json(object, &metrics, &d);
    assert_int_equal(json_object_size(object), 4);
    assert_int_equal(json_integer_value(json_object_get(object, "reads")), 2);
    assert_true(json_real_value(json_object_get(object, "wait_seconds")) == 0.5);
    assert_int_equal(json_integer_value(json_object_get(object, "read_bytes")), 25);
    json_decref(object);
}

/* Each counter is in the table once, under a name of its own that ends in its unit. */
static void test_expert_cache_is_described(void **state)
{
    const struct sl_metrics *table = &sl_expert_cache_metrics;
    uint32_t seen[sizeof(struct sl_expert_cache_counters) / sizeof(uint64_t)] = {0};

    (void)state;
    assert_int_equal(table->n, sizeof(seen) / sizeof(seen[0]));
    for (size_t i = 0; i < table->n; i++) {
        const struct sl_metric *metric = &table->list[i];
        const char *name = metric->name, *end = name + strlen(name);

        assert_int_equal(strspn(name, "abcdefghijklmnopqrstuvwxyz_"), strlen(name));
        assert_int_equal(seen[metric->offset_bytes / sizeof(uint64_t)]++, 0);
        assert_int_equal(metric->unit == SL_METRIC_BYTES,
                         end - name > 6 && strcmp(end - 6, "_bytes") == 0);
        assert_int_equal(metric->unit == SL_METRIC_NANOSECONDS,
                         end - name > 8 && strcmp(end - 8, "_seconds") == 0);
        assert_true(metric->help[0] && metric->help[strlen(metric->help) - 1] != '.');
        for (size_t j = 0; j < i; j++)
            assert_string_not_equal(name, table->list[j].name);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prometheus_text),
        cmocka_unit_test(test_json_and_difference),
        cmocka_unit_test(test_expert_cache_is_described),
    };

    return cmocka_run_group_tests_name("metrics", tests, NULL, NULL);
}
