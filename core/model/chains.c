/* Puts chains into lines of the pool: job j of chain c comes in round c + j. So between a job and
 * the one that needs it are other chains' jobs, which have the time that these take to let the last
 * threads end the first. */
#include "core/model/chains.h"

#include "core/base/assert.h"

/* Each thread's share of a line, after which what goes on beside gets its turn: some milliseconds,
 * in which the drives have enough to read. Reading a byte takes about as long as so many
 * multiplications. */
#define LINE_WORK (UINT64_C(1) << 31)
#define WORK_PER_BYTE 64u

struct line {
    const struct sl_compute *compute;
    struct sl_pool_job jobs[SL_POOL_LINE_MAX];
    uint32_t n_jobs;
    uint32_t n_before[SL_POOL_LINE_MAX]; /* of each chain's next job */
    uint64_t work;
};

static uint64_t work_of(const struct sl_chain_job *job)
{
    const uint64_t reading = job->read_bytes * WORK_PER_BYTE;

    return reading > job->multiplications ? reading : job->multiplications;
}

static void run_line(struct line *line)
{
    if (line->n_jobs == 0)
        return;
    sl_pool_run_line(line->compute->pool, line->jobs, line->n_jobs);
    line->n_jobs = 0;
    line->work = 0;
    for (uint32_t i = 0; i < SL_POOL_LINE_MAX; i++)
        line->n_before[i] = 0;
    sl_compute_background(line->compute);
}

static void add(struct line *line, uint32_t chain, const struct sl_chain_job *job)
{
    if (job->n_items == 0)
        return;
    line->jobs[line->n_jobs++] = (struct sl_pool_job){
        job->fn, job->context, job->n_items, job->grain, job->phase, line->n_before[chain]};
    line->n_before[chain] = line->n_jobs;
    line->work += work_of(job);
    if (line->work / sl_pool_thread_count(line->compute->pool) >= LINE_WORK)
        run_line(line);
}

void sl_chains_run(const struct sl_compute *compute, const struct sl_chain_job *jobs,
                   uint32_t n_chains, uint32_t n_jobs)
{
    struct line line = {.compute = compute};

    sl_assert(n_chains * n_jobs <= SL_POOL_LINE_MAX);
    for (uint32_t round = 0; round + 1 < n_chains + n_jobs; round++)
        for (uint32_t j = 0; j < n_jobs && j <= round; j++)
            if (round - j < n_chains)
                add(&line, round - j, &jobs[(round - j) * n_jobs + j]);
    run_line(&line);
}
