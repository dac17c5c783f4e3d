#include "core/base/histogram.h"

#include <inttypes.h>

#define NS_PER_MS UINT64_C(1000000)

void sl_histogram_add(struct sl_histogram *histogram, uint64_t ns)
{
    uint32_t i = 0;

    while (i + 1 < SL_HISTOGRAM_BUCKETS && ns > NS_PER_MS << i)
        i++;
    histogram->n_in[i]++;
    histogram->n++;
    histogram->sum_ns += ns;
}

void sl_histogram_write_prometheus(FILE *out, const char *name, const char *help,
                                   const struct sl_histogram *histogram)
{
    uint64_t n = 0;

    fprintf(out, "# HELP sluice_%s_seconds %s.\n# TYPE sluice_%s_seconds histogram\n", name, help,
            name);
    for (uint32_t i = 0; i + 1 < SL_HISTOGRAM_BUCKETS; i++) {
        const uint64_t end_ms = UINT64_C(1) << i;

        n += histogram->n_in[i];
        fprintf(out, "sluice_%s_seconds_bucket{le=\"%" PRIu64 ".%03" PRIu64 "\"} %" PRIu64 "\n",
                name, end_ms / 1000, end_ms % 1000, n);
    }
    fprintf(out, "sluice_%s_seconds_bucket{le=\"+Inf\"} %" PRIu64 "\n", name, histogram->n);
    fprintf(out, "sluice_%s_seconds_sum %" PRIu64 ".%09" PRIu64 "\n", name,
            histogram->sum_ns / 1000000000, histogram->sum_ns % 1000000000);
    fprintf(out, "sluice_%s_seconds_count %" PRIu64 "\n", name, histogram->n);
}
