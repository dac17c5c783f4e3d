/* Owns the worker threads and the hand-over of one job at a time. A job is published under the
 * lock by raising `generation`; each worker takes its range, and the last to finish wakes the
 * driver. Workers look at `generation` for a short while before they sleep, since inside a step
 * jobs follow each other within microseconds. */
#include "core/base/pool.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "core/base/assert.h"
#include "core/base/clock.h"
#include "core/base/cpu.h"

/* How long an idle thread watches for the next job before it sleeps: longer than the gap between
 * two jobs of a step, far shorter than a wait for the drive. */
#define WATCH_NS 20000

#define PAGE_BYTES                                                                                 \
    4096u /* the smallest there is; touching larger ones several times is harmless                 \
           */

struct worker {
    struct sl_pool *pool;
    pthread_t thread;
    uint32_t thread_index;
};

struct sl_pool {
    uint32_t n_threads;
    uint32_t n_started;
    struct worker *workers;        /* n_threads - 1 */
    struct sl_affinity affinity;   /* all 0 before sl_pool_pin() */
    struct sl_cpu_mask driver_was; /* what the driver was tied to before */

    pthread_mutex_t lock;        /* guards sleeping and waking; the job is published under it */
    pthread_cond_t job_posted;   /* workers wait here */
    pthread_cond_t job_finished; /* the driver waits here */

    /* The job. Written by the driver before it raises `generation` (release); read by workers after
     * they saw it raised (acquire). */
    sl_pool_fn *fn;
    void *context;
    size_t n_items;
    uint32_t n_parts;

    atomic_uint_fast64_t generation; /* written by the driver only */
    atomic_uint_fast64_t busy_ns;    /* of the present job: each worker adds its time in it */
    atomic_uint_fast32_t n_busy;     /* workers that have not finished the present job */
    atomic_bool stop;

    /* The account of time: the driver's own. */
    struct sl_account account;
    uint32_t phase;    /* that time belongs to now */
    uint64_t since_ns; /* when it was last brought up to date */
    uint64_t wait_ns;  /* the threads' mean wait in jobs since then */
};

/* The first item of one of n_parts parts, the parts being as equal as they can be. */
static size_t part_start(size_t n_items, uint32_t n_parts, uint32_t part)
{
    return n_items * part / n_parts;
}

static void run_part(const struct sl_pool *pool, uint32_t part)
{
    size_t first = part_start(pool->n_items, pool->n_parts, part);
    size_t end = part_start(pool->n_items, pool->n_parts, part + 1);
    uint64_t saved;

    if (first == end)
        return;
    saved = sl_cpu_flush_subnormals();
    pool->fn(pool->context, first, end, part);
    sl_cpu_restore_float_mode(saved);
}

/* Returns once `generation` differs from `seen`. */
static void await_job(struct sl_pool *pool, uint64_t seen)
{
    uint64_t until_ns = sl_clock_ns() + WATCH_NS;

    while (atomic_load_explicit(&pool->generation, memory_order_acquire) == seen) {
        if (sl_clock_ns() < until_ns) {
            sl_cpu_relax();
            continue;
        }
        pthread_mutex_lock(&pool->lock);
        while (atomic_load_explicit(&pool->generation, memory_order_acquire) == seen)
            pthread_cond_wait(&pool->job_posted, &pool->lock);
        pthread_mutex_unlock(&pool->lock);
    }
}

static void *worker_main(void *argument)
{
    struct worker *worker = argument;
    struct sl_pool *pool = worker->pool;
    uint64_t seen = 0, start_ns;

    for (;;) {
        await_job(pool, seen);
        seen++;
        if (atomic_load_explicit(&pool->stop, memory_order_relaxed))
            return NULL;
        if (worker->thread_index < pool->n_parts) {
            start_ns = sl_clock_ns();
            run_part(pool, worker->thread_index);
            atomic_fetch_add_explicit(&pool->busy_ns, sl_clock_ns() - start_ns,
                                      memory_order_relaxed);
        }
        /* Release: the driver reads what this part wrote after it sees the count reach zero. */
        if (atomic_fetch_sub_explicit(&pool->n_busy, 1, memory_order_acq_rel) == 1) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_signal(&pool->job_finished);
            pthread_mutex_unlock(&pool->lock);
        }
    }
}

static void post_job(struct sl_pool *pool)
{
    atomic_store_explicit(&pool->n_busy, pool->n_started, memory_order_relaxed);
    atomic_store_explicit(&pool->busy_ns, 0, memory_order_relaxed);
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add_explicit(&pool->generation, 1, memory_order_release);
    pthread_cond_broadcast(&pool->job_posted);
    pthread_mutex_unlock(&pool->lock);
}

static void await_finish(struct sl_pool *pool)
{
    uint64_t until_ns = sl_clock_ns() + WATCH_NS;

    while (atomic_load_explicit(&pool->n_busy, memory_order_acquire) != 0) {
        if (sl_clock_ns() < until_ns) {
            sl_cpu_relax();
            continue;
        }
        pthread_mutex_lock(&pool->lock);
        while (atomic_load_explicit(&pool->n_busy, memory_order_acquire) != 0)
            pthread_cond_wait(&pool->job_finished, &pool->lock);
        pthread_mutex_unlock(&pool->lock);
    }
}

int sl_pool_create(struct sl_pool **ret_pool, uint32_t n_threads, struct sl_err *err)
{
    struct sl_pool *pool;
    int rc;

    sl_assert(n_threads >= 1 && n_threads <= SL_POOL_THREADS_MAX);
    pool = calloc(1, sizeof(*pool));
    if (!pool)
        return sl_err_set(err, -ENOMEM, "thread pool: out of memory");
    pool->n_threads = n_threads;
    pool->since_ns = sl_clock_ns();
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->job_posted, NULL);
    pthread_cond_init(&pool->job_finished, NULL);
    pool->workers = calloc(n_threads, sizeof(*pool->workers));
    if (!pool->workers) {
        sl_pool_destroy(pool);
        return sl_err_set(err, -ENOMEM, "thread pool: out of memory");
    }
    for (uint32_t i = 1; i < n_threads; i++) {
        struct worker *worker = &pool->workers[i - 1];

        worker->pool = pool;
        worker->thread_index = i;
        rc = pthread_create(&worker->thread, NULL, worker_main, worker);
        if (rc != 0) {
            sl_pool_destroy(pool);
            return sl_err_set(err, -rc, "cannot start compute thread %u of %u: %s", i + 1,
                              n_threads, sl_strerror(rc));
        }
        pool->n_started++;
    }
    *ret_pool = pool;
    return 0;
}

static void tie(pthread_t thread, const struct sl_cpu *cpu)
{
    struct sl_cpu_mask mask = {0};

    CPU_SET_S(cpu->cpu_index, sizeof(mask), mask.sets);
    pthread_setaffinity_np(thread, sizeof(mask), mask.sets); /* a wish */
}

void sl_pool_pin(struct sl_pool *pool, const struct sl_affinity *affinity)
{
    sl_assert(!pool->affinity.pinned && affinity->n_threads == pool->n_threads);
    if (!affinity->pinned || pthread_getaffinity_np(pthread_self(), sizeof(pool->driver_was),
                                                    pool->driver_was.sets) != 0)
        return;
    pool->affinity = *affinity;
    tie(pthread_self(), &affinity->cpus[0]);
    for (uint32_t i = 0; i < pool->n_started; i++)
        tie(pool->workers[i].thread, &affinity->cpus[i + 1]);
}

void sl_pool_destroy(struct sl_pool *pool)
{
    if (!pool)
        return;
    if (pool->affinity.pinned)
        pthread_setaffinity_np(pthread_self(), sizeof(pool->driver_was), pool->driver_was.sets);
    if (pool->n_started) {
        atomic_store_explicit(&pool->stop, true, memory_order_relaxed);
        post_job(pool);
        for (uint32_t i = 0; i < pool->n_started; i++)
            pthread_join(pool->workers[i].thread, NULL);
    }
    free(pool->workers);
    pthread_cond_destroy(&pool->job_finished);
    pthread_cond_destroy(&pool->job_posted);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

uint32_t sl_pool_thread_count(const struct sl_pool *pool)
{
    return pool->n_threads;
}

/* A job of several threads. What they waited is what they all had less what they used. */
static void run_together(struct sl_pool *pool)
{
    uint64_t start_ns = sl_clock_ns(), had_ns, busy_ns;

    post_job(pool);
    run_part(pool, 0);
    busy_ns = sl_clock_ns() - start_ns;
    await_finish(pool);
    had_ns = (sl_clock_ns() - start_ns) * pool->n_threads;
    busy_ns += atomic_load_explicit(&pool->busy_ns, memory_order_relaxed);
    /* The threads' clocks may disagree by a little. */
    pool->wait_ns += had_ns > busy_ns ? (had_ns - busy_ns) / pool->n_threads : 0;
    pool->account.of[pool->phase].n_barriers++;
}

void sl_pool_run(struct sl_pool *pool, uint32_t phase, size_t n_items, size_t grain, sl_pool_fn *fn,
                 void *context)
{
    size_t parts_useful;
    uint32_t outer;

    sl_assert(grain >= 1);
    if (n_items == 0)
        return;
    outer = sl_pool_phase(pool, phase);
    parts_useful = (n_items + grain - 1) / grain;
    pool->fn = fn;
    pool->context = context;
    pool->n_items = n_items;
    pool->n_parts = parts_useful < pool->n_threads ? (uint32_t)parts_useful : pool->n_threads;
    if (pool->n_parts == 1)
        run_part(pool, 0);
    else
        run_together(pool);
    sl_pool_phase(pool, outer);
}

struct first_touch {
    uint8_t *base;
    size_t item_bytes, n_copies, stride_bytes;
    atomic_uint_fast64_t taken_ns; /* each thread adds its own */
};

static void touch(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct first_touch *job = context;
    const uint64_t start_ns = sl_clock_thread_ns();

    (void)thread_index;
    for (size_t copy = 0; copy < job->n_copies; copy++) {
        uint8_t *base = job->base + copy * job->stride_bytes;
        volatile uint8_t *at = base + first * job->item_bytes;
        volatile uint8_t *stop = base + end * job->item_bytes;

        while (at < stop) {
            *at = 0;
            at += PAGE_BYTES - (uintptr_t)at % PAGE_BYTES;
        }
    }
    atomic_fetch_add_explicit(&job->taken_ns, sl_clock_thread_ns() - start_ns,
                              memory_order_relaxed);
}

uint64_t sl_pool_first_touch(struct sl_pool *pool, void *base, size_t n_items, size_t item_bytes,
                             size_t n_copies, size_t stride_bytes)
{
    struct first_touch job = {base, item_bytes, n_copies, stride_bytes, 0};

    sl_pool_run(pool, pool->phase, n_items, 1, touch, &job);
    return atomic_load_explicit(&job.taken_ns, memory_order_relaxed);
}

struct sl_node_mask sl_pool_nodes(const struct sl_pool *pool)
{
    struct sl_node_mask nodes = {0};

    for (uint32_t i = 0; pool->affinity.pinned && i < pool->n_threads; i++)
        sl_node_mask_add(&nodes, pool->affinity.cpus[i].node_index);
    return nodes;
}

uint32_t sl_pool_threads_on_node(const struct sl_pool *pool, uint32_t node_index)
{
    uint32_t n = 0;

    for (uint32_t i = 0; pool->affinity.pinned && i < pool->n_threads; i++)
        n += pool->affinity.cpus[i].node_index == node_index;
    return n;
}

void sl_pool_look(const struct sl_pool *pool, const void *base, size_t n_items, size_t item_bytes,
                  uint64_t frame_bytes, struct sl_placement *placement)
{
    const uint32_t n_parts = n_items < pool->n_threads ? (uint32_t)n_items : pool->n_threads;

    for (uint32_t part = 0; pool->affinity.pinned && part < n_parts; part++) {
        const size_t first = part_start(n_items, n_parts, part);
        const size_t end = part_start(n_items, n_parts, part + 1);

        sl_placement_add(placement, (const uint8_t *)base + first * item_bytes,
                         (end - first) * item_bytes, frame_bytes,
                         pool->affinity.cpus[part].node_index);
    }
}

uint32_t sl_pool_phase(struct sl_pool *pool, uint32_t phase)
{
    uint64_t now_ns = sl_clock_ns(), spent_ns = now_ns - pool->since_ns;
    uint32_t ended = pool->phase;
    /* The wait is the whole job's, but the driver may have booked most of its share of the job in
     * another phase, from inside: what is left is at most all waiting. */
    uint64_t wait_ns = pool->wait_ns < spent_ns ? pool->wait_ns : spent_ns;

    sl_assert(phase < SL_ACCOUNT_PHASES);
    pool->account.of[ended].work_ns += spent_ns - wait_ns;
    pool->account.of[ended].wait_ns += wait_ns;
    pool->phase = phase;
    pool->since_ns = now_ns;
    pool->wait_ns = 0;
    return ended;
}

void sl_pool_count(struct sl_pool *pool, uint32_t phase, uint64_t read_bytes,
                   uint64_t multiplications)
{
    sl_assert(phase < SL_ACCOUNT_PHASES);
    pool->account.of[phase].read_bytes += read_bytes;
    pool->account.of[phase].multiplications += multiplications;
}

struct sl_account sl_pool_account(struct sl_pool *pool)
{
    sl_pool_phase(pool, pool->phase);
    return pool->account;
}
