#include "core/base/metrics.h"

#include <inttypes.h>
#include <string.h>

uint64_t sl_metric_value(const struct sl_metric *metric, const void *counters)
{
    uint64_t value;

    memcpy(&value, (const char *)counters + metric->offset_bytes, sizeof(value));
    return value;
}

void sl_metrics_set_json(json_t *object, const struct sl_metrics *metrics, const void *counters)
{
    for (size_t i = 0; i < metrics->n; i++) {
        const struct sl_metric *metric = &metrics->list[i];
        const uint64_t value = sl_metric_value(metric, counters);

        json_object_set_new(object, metric->name,
                            metric->unit == SL_METRIC_NANOSECONDS
                                ? json_real((double)value / 1e9)
                                : json_integer((json_int_t)value));
    }
}

void sl_metrics_write_prometheus(FILE *out, const struct sl_metrics *metrics, const void *counters)
{
    for (size_t i = 0; i < metrics->n; i++) {
        const struct sl_metric *metric = &metrics->list[i];
        const char *total = metric->can_fall ? "" : "_total";
        const uint64_t value = sl_metric_value(metric, counters);

        fprintf(out, "# HELP sluice_%s%s %s.\n", metric->name, total, metric->help);
        fprintf(out, "# TYPE sluice_%s%s %s\n", metric->name, total,
                metric->can_fall ? "gauge" : "counter");
        fprintf(out, "sluice_%s%s ", metric->name, total);
        /* Whole numbers throughout: no locale has a say in how a fraction is written. */
        if (metric->unit == SL_METRIC_NANOSECONDS)
            fprintf(out, "%" PRIu64 ".%09" PRIu64 "\n", value / 1000000000, value % 1000000000);
        else
            fprintf(out, "%" PRIu64 "\n", value);
    }
}

void sl_metrics_difference(const struct sl_metrics *metrics, const void *from, const void *to,
                           void *ret_counters)
{
    for (size_t i = 0; i < metrics->n; i++) {
        const struct sl_metric *metric = &metrics->list[i];
        uint64_t value = sl_metric_value(metric, to);

        if (!metric->can_fall)
            value -= sl_metric_value(metric, from);
        memcpy((char *)ret_counters + metric->offset_bytes, &value, sizeof(value));
    }
}
