#include "tools/bench/bench_run.h"

#include "core/base/clock.h"

#define READ_NS UINT64_C(10000000)    /* of a reading of memory */
#define MULTIPLY_NS UINT64_C(2000000) /* of one of a peak */
#define DRIVE_NS UINT64_C(400000000)

static uint64_t missed_bytes(const struct sl_engine *engine)
{
    const struct sl_expert_cache_counters c = sl_engine_counters(engine);

    return c.read_bytes - c.predicted_wasted_bytes;
}

static int measure_limits(const struct sl_bench_runner *runner, struct sl_bench_limits *limits,
                          struct sl_err *err)
{
    limits->read = sl_bench_probe_read(runner->probe, READ_NS);
    for (int peak = 0; peak < SL_BENCH_PEAKS; peak++)
        limits->multiply[peak] =
            sl_bench_probe_multiply(runner->probe, (enum sl_bench_peak)peak, MULTIPLY_NS);
    limits->drive.disturbed = false;
    return sl_bench_drive_rate(runner->drive, DRIVE_NS, &limits->drive.rate, err);
}

static struct sl_bench_limits between(const struct sl_bench_limits *before,
                                      const struct sl_bench_limits *after)
{
    struct sl_bench_limits limits = {
        .read = sl_bench_rate_between(before->read, after->read),
        .drive = sl_bench_rate_between(before->drive, after->drive),
    };

    for (int peak = 0; peak < SL_BENCH_PEAKS; peak++)
        limits.multiply[peak] =
            sl_bench_rate_between(before->multiply[peak], after->multiply[peak]);
    return limits;
}

static int measure_run(const struct sl_bench_runner *runner, sl_bench_work_fn *work, void *context,
                       uint32_t run_index, struct sl_bench_run *run, struct sl_err *err)
{
    struct sl_pool *pool = runner->engine->pool;
    struct sl_account begin, end;
    uint64_t start_ns;
    int rc;

    if (runner->cold && (rc = sl_expert_cache_empty(runner->engine->cache, err)) < 0)
        return rc;
    sl_bench_drive_forget(runner->drive);
    run->missed_bytes = missed_bytes(runner->engine);
    begin = sl_pool_account(pool);
    start_ns = sl_clock_ns();
    rc = work(context, run_index, err);
    run->ns = sl_clock_ns() - start_ns;
    end = sl_pool_account(pool);
    run->spent = sl_account_difference(&begin, &end);
    run->missed_bytes = missed_bytes(runner->engine) - run->missed_bytes;
    return rc;
}

int sl_bench_runs_measure(const struct sl_bench_runner *runner, sl_bench_work_fn *work,
                          void *context, struct sl_bench_run *runs, uint32_t n_runs,
                          uint32_t *ret_n_done, struct sl_err *err)
{
    struct sl_bench_limits before, after;
    int rc = measure_limits(runner, &before, err);

    *ret_n_done = 0;
    while (rc == 0 && *ret_n_done < n_runs) {
        struct sl_bench_run *run = &runs[*ret_n_done];

        if ((rc = measure_run(runner, work, context, *ret_n_done, run, err)) < 0 ||
            (rc = measure_limits(runner, &after, err)) < 0)
            break;
        run->limits = between(&before, &after);
        before = after;
        ++*ret_n_done;
    }
    return rc;
}

bool sl_bench_run_is_disturbed(const struct sl_bench_run *run)
{
    bool disturbed = run->limits.read.disturbed || run->limits.drive.disturbed;

    for (int peak = 0; peak < SL_BENCH_PEAKS; peak++)
        disturbed |= run->limits.multiply[peak].disturbed;
    return disturbed;
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

struct sl_bench_rate sl_bench_run_peak(const struct sl_bench_run *run, int phase)
{
    return run->limits.multiply[peak_of(phase)];
}

double sl_bench_run_read_ns(const struct sl_bench_run *run, int phase)
{
    return (double)run->spent.of[phase].read_bytes / run->limits.read.rate;
}

double sl_bench_run_multiply_ns(const struct sl_bench_run *run, int phase)
{
    return (double)run->spent.of[phase].multiplications / sl_bench_run_peak(run, phase).rate;
}

struct sl_bench_totals sl_bench_run_totals(const struct sl_bench_run *run)
{
    struct sl_bench_totals t = {.drive_ns = 0};

    for (int phase = SL_PHASE_OUTSIDE + 1; phase < SL_PHASES; phase++) {
        const double read_ns = sl_bench_run_read_ns(run, phase);
        const double multiply_ns = sl_bench_run_multiply_ns(run, phase);

        t.read_bytes += run->spent.of[phase].read_bytes;
        t.multiplications += run->spent.of[phase].multiplications;
        t.n_barriers += run->spent.of[phase].n_barriers;
        t.wait_ns += run->spent.of[phase].wait_ns;
        t.cores_ns += read_ns > multiply_ns ? read_ns : multiply_ns;
    }
    if (run->limits.drive.rate > 0)
        t.drive_ns = (double)run->missed_bytes / run->limits.drive.rate;
    return t;
}
