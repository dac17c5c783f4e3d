/* One measured run of a model, and the least that it could have taken.
 *
 * The machine's limits are measured before the run and, the drives', after it too, on the same
 * threads. One thread (the pool's driver) makes all calls. */
#ifndef SL_TOOLS_BENCH_BENCH_RUN_H
#define SL_TOOLS_BENCH_BENCH_RUN_H

#include "core/base/account.h"
#include "core/model/phase.h"
#include "daemon/engine/engine_internal.h"
#include "tools/bench/bench.h"
#include "tools/bench/bench_drive.h"

struct sl_bench_run {
    uint64_t ns;
    struct sl_account spent;
    double read_rate;      /* of memory, 10^9 bytes a second */
    double drive_rate;     /* of the drives, before and after the run; 0: not known */
    uint64_t missed_bytes; /* read from the drives, but for predictions in vain */
    double multiply_rate[SL_BENCH_PEAKS]; /* 10^9 a second */
};

/* Everything that a run is measured with; borrowed. */
struct sl_bench_runner {
    struct sl_engine *engine;
    const struct sl_bench *bench;
    struct sl_bench_drive *drive; /* may be closed */
    bool cold;                    /* each run begins with an empty cache */
};

/* Measures the limits, then work(context), then the drives again with the experts that the work
 * asked for: it tells them to sl_bench_drive_note(). Fails as the work and reads do. */
typedef int sl_bench_work_fn(void *context, struct sl_err *err);
int sl_bench_run_measure(const struct sl_bench_runner *runner, sl_bench_work_fn *work,
                         void *context, struct sl_bench_run *ret_run, struct sl_err *err);

/* The least that a phase could have taken: reading once what it needs, or multiplying at its
 * peak. */
double sl_bench_run_read_ns(const struct sl_bench_run *run, int phase);
double sl_bench_run_multiply_ns(const struct sl_bench_run *run, int phase);

/* Returns the rate at which a phase multiplies at most. */
double sl_bench_run_peak(const struct sl_bench_run *run, int phase);

struct sl_bench_totals {
    uint64_t read_bytes, multiplications, n_barriers, wait_ns;
    double limit_ns; /* the least that the run could have taken, but for the drives */
};
struct sl_bench_totals sl_bench_run_totals(const struct sl_bench_run *run);

#endif
