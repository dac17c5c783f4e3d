/* Chains of jobs, along which threads wait for each other as little as can be.
 *
 * A prompt needs the same few jobs one after the other, for chunk after chunk of its tokens or
 * expert after expert: each chunk or group of experts is a chain. Each job needs all of the one
 * before it in its chain, so that there the threads would wait for the last of them; but meanwhile
 * they can be at another chain's. */
#ifndef SL_MODEL_CHAINS_H
#define SL_MODEL_CHAINS_H

#include "core/model/compute.h"

/* See struct sl_pool_job. Without items there is none. */
struct sl_chain_job {
    sl_pool_fn *fn;
    void *context; /* the caller's */
    size_t n_items, grain;
    enum sl_phase phase;
    uint64_t multiplications, read_bytes; /* or 0 where these are few: they are not counted here */
};

/* Runs chains of n_jobs jobs each, jobs (n_chains, n_jobs), at most SL_POOL_LINE_MAX of both, and
 * returns when all are done. Jobs of different chains may run at the same time: none may touch what
 * another chain's write. Calls sl_compute_background() at the end, and in between where that would
 * be late. */
void sl_chains_run(const struct sl_compute *compute, const struct sl_chain_job *jobs,
                   uint32_t n_chains, uint32_t n_jobs);

#endif
