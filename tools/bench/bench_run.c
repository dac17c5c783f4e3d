#include "tools/bench/bench_run.h"

#include "core/base/clock.h"

#define PROBE_NS UINT64_C(100000000)
#define DRIVE_NS UINT64_C(400000000)

static uint64_t missed_bytes(const struct sl_engine *engine)
{
    const struct sl_expert_cache_counters c = sl_engine_counters(engine);

    return c.read_bytes - c.predicted_wasted_bytes;
}

int sl_bench_run_measure(const struct sl_bench_runner *runner, sl_bench_work_fn *work,
                         void *context, struct sl_bench_run *run, struct sl_err *err)
{
    struct sl_pool *pool = runner->engine->pool;
    struct sl_account begin, end;
    double rate_before, rate_after;
    uint64_t start_ns;
    int rc;

    run->read_rate = sl_bench_read_rate(runner->bench, PROBE_NS);
    for (int peak = 0; peak < SL_BENCH_PEAKS; peak++)
        run->multiply_rate[peak] =
            sl_bench_multiply_rate(runner->bench, (enum sl_bench_peak)peak, PROBE_NS / 10);
    if ((rc = sl_bench_drive_rate(runner->drive, DRIVE_NS, &rate_before, err)) < 0 ||
        (runner->cold && (rc = sl_expert_cache_empty(runner->engine->cache, err)) < 0))
        return rc;
    sl_bench_drive_forget(runner->drive);
    run->missed_bytes = missed_bytes(runner->engine);
    begin = sl_pool_account(pool);
    start_ns = sl_clock_ns();
    rc = work(context, err);
    run->ns = sl_clock_ns() - start_ns;
    end = sl_pool_account(pool);
    run->spent = sl_account_difference(&begin, &end);
    run->missed_bytes = missed_bytes(runner->engine) - run->missed_bytes;
    if (rc == 0)
        rc = sl_bench_drive_rate(runner->drive, DRIVE_NS, &rate_after, err);
    if (rc == 0)
        run->drive_rate = (rate_before + rate_after) / 2;
    return rc;
}

/* Returns the kind of multiplication that a phase uses. */
static enum sl_bench_peak peak_of(int phase)
{
    switch (phase) {
    case SL_PHASE_ROUTED_LINEARS:
    case SL_PHASE_INDEXER:
        return SL_BENCH_INT8;
    case SL_PHASE_HYPER_CONNECTION:
        return SL_BENCH_F32;
    default:
        return SL_BENCH_BF16;
    }
}

double sl_bench_run_peak(const struct sl_bench_run *run, int phase)
{
    return run->multiply_rate[peak_of(phase)];
}

double sl_bench_run_read_ns(const struct sl_bench_run *run, int phase)
{
    return (double)run->spent.of[phase].read_bytes / run->read_rate;
}

double sl_bench_run_multiply_ns(const struct sl_bench_run *run, int phase)
{
    return (double)run->spent.of[phase].multiplications / sl_bench_run_peak(run, phase);
}

struct sl_bench_totals sl_bench_run_totals(const struct sl_bench_run *run)
{
    struct sl_bench_totals t = {0};

    for (int phase = SL_PHASE_OUTSIDE + 1; phase < SL_PHASES; phase++) {
        const double read_ns = sl_bench_run_read_ns(run, phase);
        const double multiply_ns = sl_bench_run_multiply_ns(run, phase);

        t.read_bytes += run->spent.of[phase].read_bytes;
        t.multiplications += run->spent.of[phase].multiplications;
        t.n_barriers += run->spent.of[phase].n_barriers;
        t.wait_ns += run->spent.of[phase].wait_ns;
        t.limit_ns += read_ns > multiply_ns ? read_ns : multiply_ns;
    }
    return t;
}
