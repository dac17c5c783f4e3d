/* Measured runs of a model, and the least that each could have taken.
 *
 * The machine's limits are measured before each run and after it, on the same threads. One thread
 * (the pool's driver) makes all calls. */
#ifndef SL_TOOLS_BENCH_BENCH_RUN_H
#define SL_TOOLS_BENCH_BENCH_RUN_H

#include "core/base/account.h"
#include "core/model/phase.h"
#include "daemon/engine/engine_internal.h"
#include "tools/bench/bench.h"
#include "tools/bench/bench_drive.h"

struct sl_bench_limits {
    struct sl_bench_rate read; /* of memory */
    struct sl_bench_rate multiply[SL_BENCH_PEAKS];
    struct sl_bench_rate drive; /* of the drives; 0: not known */
};

struct sl_bench_run {
    uint64_t ns;
    struct sl_account spent;
    uint64_t missed_bytes;         /* read from the drives, but for predictions in vain */
    struct sl_bench_limits limits; /* between those before the run and after it */
};

/* Everything that runs are measured with; borrowed. */
struct sl_bench_runner {
    struct sl_engine *engine;
    struct sl_bench_probe *probe;
    struct sl_bench_drive *drive; /* may be closed */
    bool cold;                    /* each run begins with an empty cache */
};

/* Does the work of one run. */
typedef int sl_bench_work_fn(void *context, uint32_t run_index, struct sl_err *err);

/* Measures n_runs runs of the work in turn with the limits, the drives' with the experts that the
 * work asked for: it tells them to sl_bench_drive_note(), also before the first run. *ret_n_done is
 * how many are through, also where the work or a read fails. */
int sl_bench_runs_measure(const struct sl_bench_runner *runner, sl_bench_work_fn *work,
                          void *context, struct sl_bench_run *runs, uint32_t n_runs,
                          uint32_t *ret_n_done, struct sl_err *err);

/* Returns whether the limits of the cores, or of the drives, were disturbed. */
bool sl_bench_run_is_disturbed(const struct sl_bench_run *run);

/* The least that a phase could have taken: reading once what it needs, or multiplying at its
 * peak. */
double sl_bench_run_read_ns(const struct sl_bench_run *run, int phase);
double sl_bench_run_multiply_ns(const struct sl_bench_run *run, int phase);

/* Returns the rate at which a phase multiplies at most. */
struct sl_bench_rate sl_bench_run_peak(const struct sl_bench_run *run, int phase);

struct sl_bench_totals {
    uint64_t read_bytes, multiplications, n_barriers, wait_ns;
    double cores_ns; /* the least that the run could have taken, but for the drives */
    double drive_ns; /* and they alone; 0: they were not read, or how fast they are is not known */
};
struct sl_bench_totals sl_bench_run_totals(const struct sl_bench_run *run);

#endif
