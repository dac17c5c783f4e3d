/* The compute threads.
 *
 * One pool for the process. A job is a function over items 0..n-1; the pool gives each thread one
 * contiguous part, so that the same thread meets the same rows again on the next step, in a few
 * pieces, of which threads that are ready take over those of others that are late. What a job
 * computes must not depend on where it is cut (docs/NUMERICS.md, one answer).
 *
 * Where the threads meet they wait for the last one. So several jobs can be a line, along which
 * each thread goes for itself: it begins with a job as soon as those are done that the job needs,
 * though others may still be at one before it. The threads meet at the line's end.
 *
 * One thread drives the pool: it calls sl_pool_run() and computes along. Workers sleep when idle.
 * Compute threads, the driver included, run with subnormals flushed to zero inside a job. */
#ifndef SL_BASE_POOL_H
#define SL_BASE_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/account.h"
#include "core/base/err.h"
#include "core/base/nodes.h"
#include "core/base/topology.h"

struct sl_pool;

/* Works on items first <= i < end; a thread may call it several times for one job. thread_index is
 * below sl_pool_thread_count(): it selects a thread's own scratch memory. */
typedef void sl_pool_fn(void *context, size_t first, size_t end, uint32_t thread_index);

/* n_threads counts the driver: 1 makes a pool without workers. At most SL_POOL_THREADS_MAX.
 * Fails with -ENOMEM or -EAGAIN (no thread to be had). The caller destroys *ret_pool. */
int sl_pool_create(struct sl_pool **ret_pool, uint32_t n_threads, struct sl_err *err);

/* Ties the threads to their processors, as far as the system allows; `affinity` is for as many.
 * The driver is the thread that calls this, and is tied from here until sl_pool_destroy(): threads
 * that it starts meanwhile would be tied to the same processor. */
void sl_pool_pin(struct sl_pool *pool, const struct sl_affinity *affinity);

/* NULL is allowed. No job may be running. */
void sl_pool_destroy(struct sl_pool *pool);

uint32_t sl_pool_thread_count(const struct sl_pool *pool);

/* Runs fn over n_items items and returns when all are done. `grain` is the least number of items
 * worth a thread's waking (at least 1): a job of up to that many runs on the driver alone, and no
 * piece has fewer, but for a part's last. The job's time is booked in `phase` of the account. */
void sl_pool_run(struct sl_pool *pool, uint32_t phase, size_t n_items, size_t grain, sl_pool_fn *fn,
                 void *context);

#define SL_POOL_LINE_MAX 32u

/* A job of a line, as sl_pool_run() takes it; at least one item. The context is the caller's. */
struct sl_pool_job {
    sl_pool_fn *fn;
    void *context;
    size_t n_items, grain;
    uint32_t phase;
    uint32_t
        n_before; /* it needs the first so many jobs of the line, and may run beside the rest */
};

/* Runs 1 to SL_POOL_LINE_MAX jobs and returns when all are done: one barrier in the account, of the
 * last job's phase. A thread waits least where a job does not need the one right before it. */
void sl_pool_run_line(struct sl_pool *pool, const struct sl_pool_job *jobs, uint32_t n_jobs);

/* For memory that nobody has touched yet: lets each thread touch its share of n_items items of
 * item_bytes, as sl_pool_run() cuts them with grain 1, so that it lies on that thread's node. The
 * same for n_copies - 1 further such runs of items, stride_bytes apart. Returns the processor time
 * that took, of all threads together, in nanoseconds. */
uint64_t sl_pool_first_touch(struct sl_pool *pool, void *base, size_t n_items, size_t item_bytes,
                             size_t n_copies, size_t stride_bytes);

/* Touches a part of that, so that the caller can look after other things in between: of each
 * thread's share most_bytes at most, behind the first skipped_bytes. Returns whether there is more
 * behind these. */
bool sl_pool_first_touch_part(struct sl_pool *pool, void *base, size_t n_items, size_t item_bytes,
                              size_t skipped_bytes, size_t most_bytes);

/* The memory nodes of the threads' processors; empty where they are not pinned. */
struct sl_node_mask sl_pool_nodes(const struct sl_pool *pool);

/* How many of the threads are on a node; 0 where they are not pinned. */
uint32_t sl_pool_threads_on_node(const struct sl_pool *pool, uint32_t node_index);

/* Looks whether memory that sl_pool_first_touch() was called for lies where it should: see
 * sl_placement_add(). Counts nothing where the threads are not pinned. */
void sl_pool_look(const struct sl_pool *pool, const void *base, size_t n_items, size_t item_bytes,
                  uint64_t frame_bytes, struct sl_placement *placement);

/* ---- the account of time: core/base/account.h ---------------------------------------------------
 * Kept by the thread that drives the pool; it alone calls these. Phases are below
 * SL_ACCOUNT_PHASES; a new pool's time belongs to phase 0. */

/* For what is no job: from now on, until it is called again, time outside jobs belongs to `phase`;
 * returns the phase that it belonged to. Costs a reading of the clock. Also allowed inside a job,
 * to the driver (thread_index 0), which puts the old phase back: its share stands for all. */
uint32_t sl_pool_phase(struct sl_pool *pool, uint32_t phase);

/* Adds to a phase what was read and multiplied in its jobs. */
void sl_pool_count(struct sl_pool *pool, uint32_t phase, uint64_t read_bytes,
                   uint64_t multiplications);

/* Up to this moment, since the pool was created. */
struct sl_account sl_pool_account(struct sl_pool *pool);

#endif
