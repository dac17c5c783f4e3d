/* Tables that describe counters, so that each is named and explained in one place.
 *
 * Counters are the uint64_t fields of a plain struct. A table lists them by offset, and whoever
 * shows counters, as JSON or as Prometheus text, goes through the table. */
#ifndef SL_BASE_METRICS_H
#define SL_BASE_METRICS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "core/base/json.h"

enum sl_metric_unit {
    SL_METRIC_COUNT,
    SL_METRIC_BYTES,       /* its name ends in _bytes */
    SL_METRIC_NANOSECONDS, /* shown as seconds; its name ends in _seconds */
};

struct sl_metric {
    const char *name; /* [a-z_] */
    enum sl_metric_unit unit;
    const char *help;    /* one line, a sentence without its full stop */
    size_t offset_bytes; /* of the uint64_t in the struct of counters */
    bool can_fall;       /* a gauge; otherwise it only grows */
};

struct sl_metrics {
    const struct sl_metric *list;
    size_t n;
};

uint64_t sl_metric_value(const struct sl_metric *metric, const void *counters);

/* Sets one key of `object` for each metric: integers, and seconds as reals. */
void sl_metrics_set_json(json_t *object, const struct sl_metrics *metrics, const void *counters);

/* Writes the metrics in Prometheus' text format, each as sluice_NAME with its HELP and TYPE lines;
 * names of what only grows end in _total. Errors are left to be found with ferror(out). */
void sl_metrics_write_prometheus(FILE *out, const struct sl_metrics *metrics, const void *counters);

/* For each metric sets the counter in *ret_counters to what was added from `from` to `to`, and one
 * that can fall to its value in `to`. Other fields stay. */
void sl_metrics_difference(const struct sl_metrics *metrics, const void *from, const void *to,
                           void *ret_counters);

#endif
