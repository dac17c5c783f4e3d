/* The machine's limits, measured on the threads that do the work: reading memory, and multiplying.
 *
 * A probe takes short readings, until the best few of them agree; where none do, something else was
 * at work all the while, and the rate says that it was disturbed. One thread (the pool's driver)
 * makes all calls. */
#ifndef SL_TOOLS_BENCH_BENCH_PROBE_H
#define SL_TOOLS_BENCH_BENCH_PROBE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/arena.h"
#include "core/model/compute.h"

/* Kinds of multiplication, by the instruction that the kernels use. */
enum sl_bench_peak { SL_BENCH_F32, SL_BENCH_BF16, SL_BENCH_INT8, SL_BENCH_PEAKS };

struct sl_bench_rate {
    double rate; /* 10^9 bytes, or multiplications, a second */
    bool disturbed;
};

/* A zeroed one is closed. */
struct sl_bench_probe {
    const struct sl_compute *compute; /* borrowed */
    struct sl_arena area;             /* that is read */
    size_t n_read;                    /* pieces of it, by each thread */
};

/* `work_bytes` is what the work to be compared goes through before it meets the same memory again.
 * As much is read here, so that the caches help both alike; but no more than it takes to pass the
 * last-level caches of this machine by, and no less than a few pieces for each thread. Fails with
 * -ENOMEM. */
int sl_bench_probe_open(struct sl_bench_probe *probe, const struct sl_compute *compute,
                        uint64_t work_bytes, struct sl_err *err);
void sl_bench_probe_close(struct sl_bench_probe *probe);

/* Each takes at least three readings of some reading_ns (a hundredth of a second and more is no
 * better), and at most eight times as many. */
struct sl_bench_rate sl_bench_probe_read(struct sl_bench_probe *probe, uint64_t reading_ns);
struct sl_bench_rate sl_bench_probe_multiply(struct sl_bench_probe *probe, enum sl_bench_peak peak,
                                             uint64_t reading_ns);

/* Takes readings of a rate, of a hundredth of a second each, until the best few agree. */
struct sl_bench_rate sl_bench_readings(double (*take)(void *context), void *context);

/* The mean of what was found before some work and after it. It is disturbed where either is, or
 * where they are far apart. */
struct sl_bench_rate sl_bench_rate_between(struct sl_bench_rate before, struct sl_bench_rate after);

#endif
