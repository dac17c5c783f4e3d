/* Owns the worker threads and the hand-over of one line of jobs at a time. A line is published by
 * raising `generation`; each worker works through its part of each job piece by piece and then
 * helps with the others', and the last to reach the line's end wakes the driver. Workers look at
 * `generation` for a short while before they sleep, since inside a step lines follow each other
 * within microseconds. They sleep on the word itself (futex): behind a condition variable's lock
 * they would all queue when woken. */
#include "core/base/pool.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/base/arena.h"
#include "core/base/assert.h"
#include "core/base/clock.h"
#include "core/base/cpu.h"

/* How long an idle thread watches for the next job before it sleeps: longer than the gap between
 * two jobs of a step, far shorter than a wait for the drive. */
#define WATCH_NS 50000

/* Pieces that a thread's part is cut into, so that others can take what a late thread leaves: a
 * core that another program uses, or a slower one, keeps the rest waiting for a piece, not a part.
 */
#define PIECES_PER_PART 4u

#define PAGE_BYTES                                                                                 \
    4096u /* the smallest there is; touching larger ones several times is harmless                 \
           */

/* One thread's part of a job. Anybody takes pieces from its front. */
struct part {
    _Alignas(SL_CACHE_LINE_BYTES) atomic_size_t next;
    size_t end;
};

/* Counts what is left until threads that wait for it may go on. */
struct countdown {
    _Alignas(SL_CACHE_LINE_BYTES) atomic_uint n_left;
    atomic_uint n_asleep; /* threads that wait for it to be 0 */
};

/* A job of the line, cut into parts. */
struct stage {
    struct sl_pool_job job;
    struct part *parts; /* n_threads; n_parts of them are the job's */
    uint32_t n_parts;
    size_t piece_items; /* that are taken at a time */
    bool is_tied;       /* each part is for its own thread */
    struct countdown pieces;
};

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

    /* The line. Written by the driver before it raises `generation` (release); read by workers
     * after they saw it raised (acquire). */
    struct stage *stages; /* SL_POOL_LINE_MAX */
    struct part *parts;   /* (SL_POOL_LINE_MAX, n_threads) */
    uint32_t n_stages;

    _Alignas(SL_CACHE_LINE_BYTES) atomic_uint generation; /* written by the driver only */
    atomic_uint n_asleep;         /* workers that wait for it to be raised */
    struct countdown walkers;     /* workers that have not reached the end of the line */
    atomic_uint_fast64_t busy_ns; /* of the present line: each worker adds its time in jobs */
    atomic_bool stop;

    /* The account of time: the driver's own. */
    struct sl_account account;
    uint32_t phase;    /* that time belongs to now */
    uint64_t since_ns; /* when it was last brought up to date */
    uint64_t wait_ns;  /* the driver's waits inside a line since then */
};

/* The first item of one of n_parts parts, the parts being as equal as they can be. */
static size_t part_start(size_t n_items, uint32_t n_parts, uint32_t part)
{
    return n_items * part / n_parts;
}

static void sleep_while(atomic_uint *word, uint32_t value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void wake(atomic_uint *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Whoever sees the count at zero reads what was written before it was taken down to it. */
static void count_down(struct countdown *countdown)
{
    if (atomic_fetch_sub(&countdown->n_left, 1) == 1 && atomic_load(&countdown->n_asleep) != 0)
        wake(&countdown->n_left);
}

/* Returns once the count is zero, and how long that took. */
static uint64_t await_zero(struct countdown *countdown)
{
    uint32_t n_left = atomic_load_explicit(&countdown->n_left, memory_order_acquire);
    uint64_t begin_ns, now_ns;

    if (n_left == 0)
        return 0;
    begin_ns = now_ns = sl_clock_ns();
    while (n_left != 0) {
        if (now_ns < begin_ns + WATCH_NS) {
            sl_cpu_relax();
        } else {
            /* Counted before the word is looked at for the last time, by the kernel: either that
             * sees it at zero, or whoever takes it there sees the count. */
            atomic_fetch_add(&countdown->n_asleep, 1);
            sleep_while(&countdown->n_left, n_left);
            atomic_fetch_sub(&countdown->n_asleep, 1);
        }
        now_ns = sl_clock_ns();
        n_left = atomic_load_explicit(&countdown->n_left, memory_order_acquire);
    }
    return now_ns - begin_ns;
}

static void run_pieces(struct stage *stage, struct part *part, uint32_t thread_index)
{
    const struct sl_pool_job *job = &stage->job;

    for (;;) {
        size_t first =
            atomic_fetch_add_explicit(&part->next, stage->piece_items, memory_order_relaxed);
        size_t end = first + stage->piece_items;

        if (first >= part->end)
            return;
        job->fn(job->context, first, end < part->end ? end : part->end, thread_index);
        count_down(&stage->pieces);
    }
}

/* The thread's own part of a job, then what others have left of theirs. */
static void run_stage(struct stage *stage, uint32_t thread_index)
{
    const uint32_t n_mine = stage->is_tied ? thread_index < stage->n_parts : stage->n_parts;

    /* A thread that is late does not look at every part of what others have done. */
    if (atomic_load_explicit(&stage->pieces.n_left, memory_order_relaxed) == 0)
        return;
    for (uint32_t i = 0; i < n_mine; i++)
        run_pieces(stage, &stage->parts[(thread_index + i) % stage->n_parts], thread_index);
}

/* Walks along the line. Returns how long the thread waited for others inside it. */
static uint64_t run_share(struct sl_pool *pool, uint32_t thread_index)
{
    const uint64_t saved = sl_cpu_flush_subnormals();
    uint64_t waited_ns = 0;
    uint32_t n_done = 0; /* stages that were seen done */

    for (uint32_t s = 0; s < pool->n_stages; s++) {
        struct stage *stage = &pool->stages[s];
        uint64_t wait_ns = 0;

        if (thread_index == 0 && stage->job.phase != pool->phase)
            sl_pool_phase(pool, stage->job.phase);
        while (n_done < stage->job.n_before)
            wait_ns += await_zero(&pool->stages[n_done++].pieces);
        waited_ns += wait_ns;
        if (thread_index == 0)
            pool->wait_ns += wait_ns;
        run_stage(stage, thread_index);
    }
    sl_cpu_restore_float_mode(saved);
    return waited_ns;
}

/* Returns once `generation` differs from `seen`. */
static void await_job(struct sl_pool *pool, uint32_t seen)
{
    uint64_t until_ns = sl_clock_ns() + WATCH_NS;

    while (atomic_load_explicit(&pool->generation, memory_order_acquire) == seen) {
        if (sl_clock_ns() < until_ns) {
            sl_cpu_relax();
            continue;
        }
        /* Counted before the word is looked at for the last time, by the kernel: either that sees
         * it raised, or whoever raises it sees the count. */
        atomic_fetch_add(&pool->n_asleep, 1);
        sleep_while(&pool->generation, seen);
        atomic_fetch_sub(&pool->n_asleep, 1);
    }
}

static void *worker_main(void *argument)
{
    struct worker *worker = argument;
    struct sl_pool *pool = worker->pool;
    uint32_t seen = 0;
    uint64_t start_ns, waited_ns;

    for (;;) {
        await_job(pool, seen);
        seen++;
        if (atomic_load_explicit(&pool->stop, memory_order_relaxed))
            return NULL;
        start_ns = sl_clock_ns();
        waited_ns = run_share(pool, worker->thread_index);
        atomic_fetch_add_explicit(&pool->busy_ns, sl_clock_ns() - start_ns - waited_ns,
                                  memory_order_relaxed);
        count_down(&pool->walkers);
    }
}

static void post_line(struct sl_pool *pool)
{
    atomic_store_explicit(&pool->walkers.n_left, pool->n_started, memory_order_relaxed);
    atomic_store_explicit(&pool->busy_ns, 0, memory_order_relaxed);
    atomic_fetch_add(&pool->generation, 1);
    if (atomic_load(&pool->n_asleep) != 0)
        wake(&pool->generation);
}

int sl_pool_create(struct sl_pool **ret_pool, uint32_t n_threads, struct sl_err *err)
{
    struct sl_pool *pool;
    int rc;

    sl_assert(n_threads >= 1 && n_threads <= SL_POOL_THREADS_MAX);
    pool = aligned_alloc(_Alignof(struct sl_pool), sizeof(*pool));
    if (!pool)
        return sl_err_set(err, -ENOMEM, "thread pool: out of memory");
    memset(pool, 0, sizeof(*pool));
    pool->n_threads = n_threads;
    pool->since_ns = sl_clock_ns();
    pool->workers = calloc(n_threads, sizeof(*pool->workers));
    pool->parts = aligned_alloc(_Alignof(struct part),
                                (size_t)SL_POOL_LINE_MAX * n_threads * sizeof(*pool->parts));
    pool->stages = aligned_alloc(_Alignof(struct stage), SL_POOL_LINE_MAX * sizeof(*pool->stages));
    if (!pool->workers || !pool->parts || !pool->stages) {
        sl_pool_destroy(pool);
        return sl_err_set(err, -ENOMEM, "thread pool: out of memory");
    }
    memset(pool->stages, 0, SL_POOL_LINE_MAX * sizeof(*pool->stages));
    for (uint32_t s = 0; s < SL_POOL_LINE_MAX; s++)
        pool->stages[s].parts = pool->parts + (size_t)s * n_threads;
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
        post_line(pool);
        for (uint32_t i = 0; i < pool->n_started; i++)
            pthread_join(pool->workers[i].thread, NULL);
    }
    free(pool->stages);
    free(pool->parts);
    free(pool->workers);
    free(pool);
}

uint32_t sl_pool_thread_count(const struct sl_pool *pool)
{
    return pool->n_threads;
}

/* Books waiting for what was booked as work since worked_ns was noted, in each phase its share. */
static void book_wait(struct sl_pool *pool, const uint64_t worked_ns[SL_ACCOUNT_PHASES],
                      uint64_t wait_ns)
{
    uint64_t all_ns = 0;

    for (uint32_t p = 0; p < SL_ACCOUNT_PHASES; p++)
        all_ns += pool->account.of[p].work_ns - worked_ns[p];
    wait_ns = wait_ns < all_ns ? wait_ns : all_ns;
    for (uint32_t p = 0; p < SL_ACCOUNT_PHASES && all_ns > 0; p++) {
        const uint64_t ns = pool->account.of[p].work_ns - worked_ns[p];
        const uint64_t part_ns = (uint64_t)((double)wait_ns * (double)ns / (double)all_ns);

        pool->account.of[p].work_ns -= part_ns;
        pool->account.of[p].wait_ns += part_ns;
    }
}

/* A line of several threads. What they waited is what they all had less what they used. What the
 * driver waited inside the line is booked by then, in the phases of the jobs that it waited for. */
static void run_together(struct sl_pool *pool)
{
    uint64_t start_ns = sl_clock_ns(), had_ns, busy_ns, waited_ns, wait_ns;
    uint64_t worked_ns[SL_ACCOUNT_PHASES];

    for (uint32_t p = 0; p < SL_ACCOUNT_PHASES; p++)
        worked_ns[p] = pool->account.of[p].work_ns;
    post_line(pool);
    waited_ns = run_share(pool, 0);
    busy_ns = sl_clock_ns() - start_ns - waited_ns;
    await_zero(&pool->walkers);
    sl_pool_phase(pool, pool->phase);
    had_ns = (pool->since_ns - start_ns) * pool->n_threads;
    busy_ns += atomic_load_explicit(&pool->busy_ns, memory_order_relaxed);
    /* The threads' clocks may disagree by a little. */
    wait_ns = had_ns > busy_ns ? (had_ns - busy_ns) / pool->n_threads : 0;
    if (wait_ns > waited_ns)
        book_wait(pool, worked_ns, wait_ns - waited_ns);
    pool->account.of[pool->phase].n_barriers++;
}

/* Cuts a job into parts and puts it at the end of the line. */
static void add_stage(struct sl_pool *pool, const struct sl_pool_job *job, bool is_tied)
{
    struct stage *stage = &pool->stages[pool->n_stages++];
    const size_t n_items = job->n_items, parts_useful = (n_items + job->grain - 1) / job->grain;
    uint32_t n_pieces = 0;
    size_t part_items;

    stage->job = *job;
    stage->n_parts = parts_useful < pool->n_threads ? (uint32_t)parts_useful : pool->n_threads;
    stage->is_tied = is_tied;
    part_items = (n_items + stage->n_parts - 1) / stage->n_parts;
    stage->piece_items = part_items;
    if (!is_tied && stage->n_parts > 1) {
        stage->piece_items = (part_items + PIECES_PER_PART - 1) / PIECES_PER_PART;
        if (stage->piece_items < job->grain)
            stage->piece_items = job->grain;
    }
    for (uint32_t i = 0; i < stage->n_parts; i++) {
        const size_t first = part_start(n_items, stage->n_parts, i);
        const size_t end = part_start(n_items, stage->n_parts, i + 1);

        atomic_store_explicit(&stage->parts[i].next, first, memory_order_relaxed);
        stage->parts[i].end = end;
        n_pieces += (uint32_t)((end - first + stage->piece_items - 1) / stage->piece_items);
    }
    atomic_store_explicit(&stage->pieces.n_left, n_pieces, memory_order_relaxed);
}

/* Runs what was put into the line, which is empty then. */
static void run_line(struct sl_pool *pool)
{
    const uint32_t outer = sl_pool_phase(pool, pool->stages[0].job.phase);
    bool is_shared = false;

    for (uint32_t s = 0; s < pool->n_stages; s++)
        is_shared = is_shared || pool->stages[s].n_parts > 1;
    if (is_shared)
        run_together(pool);
    else
        run_share(pool, 0);
    pool->n_stages = 0;
    sl_pool_phase(pool, outer);
}

void sl_pool_run_line(struct sl_pool *pool, const struct sl_pool_job *jobs, uint32_t n_jobs)
{
    sl_assert(n_jobs >= 1 && n_jobs <= SL_POOL_LINE_MAX);
    for (uint32_t i = 0; i < n_jobs; i++) {
        sl_assert(jobs[i].n_items >= 1 && jobs[i].grain >= 1 && jobs[i].n_before <= i);
        add_stage(pool, &jobs[i], false);
    }
    run_line(pool);
}

void sl_pool_run(struct sl_pool *pool, uint32_t phase, size_t n_items, size_t grain, sl_pool_fn *fn,
                 void *context)
{
    const struct sl_pool_job job = {fn, context, n_items, grain, phase, 0};

    if (n_items)
        sl_pool_run_line(pool, &job, 1);
}

struct first_touch {
    uint8_t *base;
    size_t item_bytes, n_copies, stride_bytes;
    size_t skipped_bytes, most_bytes; /* of each thread's share */
    atomic_uint_fast64_t taken_ns;    /* each thread adds its own */
    atomic_bool more;                 /* set by any thread whose share goes on */
};

static void touch(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct first_touch *job = context;
    const uint64_t start_ns = sl_clock_thread_ns();

    (void)thread_index;
    for (size_t copy = 0; copy < job->n_copies; copy++) {
        uint8_t *base = job->base + copy * job->stride_bytes;
        const size_t share_bytes = (end - first) * job->item_bytes;
        volatile uint8_t *at = base + first * job->item_bytes;
        volatile uint8_t *stop = at + share_bytes;

        if (share_bytes <= job->skipped_bytes)
            continue;
        at += job->skipped_bytes;
        if (share_bytes - job->skipped_bytes > job->most_bytes) {
            stop = at + job->most_bytes;
            atomic_store_explicit(&job->more, true, memory_order_relaxed);
        }
        while (at < stop) {
            *at = 0;
            at += PAGE_BYTES - (uintptr_t)at % PAGE_BYTES;
        }
    }
    atomic_fetch_add_explicit(&job->taken_ns, sl_clock_thread_ns() - start_ns,
                              memory_order_relaxed);
}

static void run_tied(struct sl_pool *pool, size_t n_items, sl_pool_fn *fn, void *context)
{
    const struct sl_pool_job job = {fn, context, n_items, 1, pool->phase, 0};

    add_stage(pool, &job, true);
    run_line(pool);
}

uint64_t sl_pool_first_touch(struct sl_pool *pool, void *base, size_t n_items, size_t item_bytes,
                             size_t n_copies, size_t stride_bytes)
{
    struct first_touch job = {.base = base,
                              .item_bytes = item_bytes,
                              .n_copies = n_copies,
                              .stride_bytes = stride_bytes,
                              .most_bytes = SIZE_MAX};

    if (n_items)
        run_tied(pool, n_items, touch, &job);
    return atomic_load_explicit(&job.taken_ns, memory_order_relaxed);
}

bool sl_pool_first_touch_part(struct sl_pool *pool, void *base, size_t n_items, size_t item_bytes,
                              size_t skipped_bytes, size_t most_bytes)
{
    struct first_touch job = {.base = base,
                              .item_bytes = item_bytes,
                              .n_copies = 1,
                              .skipped_bytes = skipped_bytes,
                              .most_bytes = most_bytes};

    if (n_items)
        run_tied(pool, n_items, touch, &job);
    return atomic_load_explicit(&job.more, memory_order_relaxed);
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

    sl_assert(phase < SL_ACCOUNT_PHASES && pool->wait_ns <= spent_ns);
    pool->account.of[ended].work_ns += spent_ns - pool->wait_ns;
    pool->account.of[ended].wait_ns += pool->wait_ns;
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
