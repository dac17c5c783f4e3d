/* Histograms of times, in buckets that double from a millisecond on. */
#ifndef SL_BASE_HISTOGRAM_H
#define SL_BASE_HISTOGRAM_H

#include <stdint.h>
#include <stdio.h>

/* The bucket before the last ends at 2^21 ms, which is 35 minutes; the last has no end. */
#define SL_HISTOGRAM_BUCKETS 23u

/* Zeroed is empty. */
struct sl_histogram {
    uint64_t n_in[SL_HISTOGRAM_BUCKETS];
    uint64_t n, sum_ns;
};

void sl_histogram_add(struct sl_histogram *histogram, uint64_t ns);

/* Writes it in Prometheus' text format, as sluice_NAME_seconds. Errors are left to be found with
 * ferror(out). */
void sl_histogram_write_prometheus(FILE *out, const char *name, const char *help,
                                   const struct sl_histogram *histogram);

#endif
