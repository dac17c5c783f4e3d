/* Reads through pread() in threads, for systems where io_uring is not to be had. Reads wait in one
 * ring buffer and results in another; both hold as many as may be out, so neither can run over.
 * There is a thread for every read that may be in flight, so a drive that does not answer delays
 * its own reads and no others. */
#include "storage/io/io.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/call_watch.h"

#define THREADS_MAX 64u
#define NS_PER_S UINT64_C(1000000000)

struct threads {
    struct sl_io io;
    uint32_t n_started;
    uint32_t n_out;     /* submitted and not reaped; the caller's thread only */
    pthread_t *threads; /* reads_max */

    pthread_mutex_t lock;    /* guards all below */
    pthread_cond_t posted;   /* the threads wait here */
    pthread_cond_t finished; /* the caller waits here */
    struct sl_io_read *pending;
    struct sl_io_completion *done;
    uint32_t first_pending, n_pending;
    uint32_t first_done, n_done;
    bool stop;
};

static struct threads *threads_of(struct sl_io *io)
{
    return (struct threads *)(void *)io;
}

static void *thread_main(void *argument)
{
    struct threads *threads = argument;
    const uint32_t capacity = threads->io.reads_max;

    pthread_mutex_lock(&threads->lock);
    for (;;) {
        struct sl_io_read read;
        ssize_t got;

        while (threads->n_pending == 0 && !threads->stop)
            pthread_cond_wait(&threads->posted, &threads->lock);
        if (threads->n_pending == 0)
            break;
        read = threads->pending[threads->first_pending];
        threads->first_pending = (threads->first_pending + 1) % capacity;
        threads->n_pending--;
        pthread_mutex_unlock(&threads->lock);

        got = pread(threads->io.files[read.file_index].fd, read.dst, read.size_bytes,
                    (off_t)read.offset_bytes);
        if (got < 0)
            got = -errno;

        pthread_mutex_lock(&threads->lock);
        threads->done[(threads->first_done + threads->n_done) % capacity] =
            (struct sl_io_completion){.tag = read.tag, .result = (int32_t)got};
        threads->n_done++;
        pthread_cond_signal(&threads->finished);
    }
    pthread_mutex_unlock(&threads->lock);
    return NULL;
}

static void threads_submit(struct sl_io *io, const struct sl_io_read *reads, uint32_t n_reads)
{
    struct threads *threads = threads_of(io);

    sl_assert(n_reads <= io->reads_max - threads->n_out);
    threads->n_out += n_reads;
    pthread_mutex_lock(&threads->lock);
    for (uint32_t i = 0; i < n_reads; i++) {
        sl_assert(reads[i].file_index < io->n_files);
        threads->pending[(threads->first_pending + threads->n_pending) % io->reads_max] = reads[i];
        threads->n_pending++;
    }
    pthread_cond_broadcast(&threads->posted);
    pthread_mutex_unlock(&threads->lock);
}

/* Caller holds the lock. */
static void wait_for_one(struct threads *threads, uint64_t wait_ns)
{
    struct timespec until;
    int rc = 0;

    if (wait_ns == SL_IO_FOREVER) {
        while (threads->n_done == 0)
            pthread_cond_wait(&threads->finished, &threads->lock);
        return;
    }
    clock_gettime(CLOCK_MONOTONIC, &until);
    wait_ns += (uint64_t)until.tv_nsec;
    until.tv_sec += (time_t)(wait_ns / NS_PER_S);
    until.tv_nsec = (long)(wait_ns % NS_PER_S);
    while (threads->n_done == 0 && rc == 0)
        rc = pthread_cond_timedwait(&threads->finished, &threads->lock, &until);
}

static uint32_t threads_reap(struct sl_io *io, uint64_t wait_ns,
                             struct sl_io_completion *completions, uint32_t n_max)
{
    struct threads *threads = threads_of(io);
    uint32_t n = 0;

    pthread_mutex_lock(&threads->lock);
    if (wait_ns > 0 && threads->n_out > 0)
        wait_for_one(threads, wait_ns);
    for (; n < n_max && threads->n_done > 0; n++, threads->n_done--) {
        completions[n] = threads->done[threads->first_done];
        threads->first_done = (threads->first_done + 1) % io->reads_max;
    }
    pthread_mutex_unlock(&threads->lock);
    threads->n_out -= n;
    return n;
}

static void threads_close(struct sl_io *io)
{
    struct threads *threads = threads_of(io);

    pthread_mutex_lock(&threads->lock);
    threads->stop = true;
    pthread_cond_broadcast(&threads->posted);
    pthread_mutex_unlock(&threads->lock);
    if (threads->n_out > 0) { /* a thread may be in pread() for ever, and then needs all this */
        for (uint32_t i = 0; i < threads->n_started; i++)
            pthread_detach(threads->threads[i]);
        return;
    }
    for (uint32_t i = 0; i < threads->n_started; i++)
        pthread_join(threads->threads[i], NULL);
    pthread_cond_destroy(&threads->finished);
    pthread_cond_destroy(&threads->posted);
    pthread_mutex_destroy(&threads->lock);
    free(threads->threads);
    free(threads->pending);
    free(threads->done);
    sl_io_files_close(io);
    free(threads);
}

static const struct sl_io_ops threads_ops = {
    .submit = threads_submit,
    .reap = threads_reap,
    .close = threads_close,
};

static int start_threads(struct threads *threads, struct sl_err *err)
{
    uint32_t n = threads->io.reads_max;
    int rc;

    threads->threads = calloc(n, sizeof(*threads->threads));
    threads->pending = calloc(n, sizeof(*threads->pending));
    threads->done = calloc(n, sizeof(*threads->done));
    if (!threads->threads || !threads->pending || !threads->done)
        return sl_err_set(err, -ENOMEM, "I/O threads: out of memory");
    for (uint32_t i = 0; i < n; i++) {
        rc = pthread_create(&threads->threads[i], NULL, thread_main, threads);
        if (rc != 0)
            return sl_err_set(err, -rc, "cannot start I/O thread %u of %u: %s", i + 1, n,
                              sl_strerror(rc));
        pthread_setname_np(threads->threads[i], SL_CALL_WATCH_NOT); /* the reader has a deadline */
        threads->n_started++;
    }
    return 0;
}

int sl_io_threads_open(struct sl_io **ret_io, const char *const *paths, uint32_t n_files,
                       uint32_t depth, struct sl_err *err)
{
    struct threads *threads;
    pthread_condattr_t monotonic;
    int rc;

    threads = calloc(1, sizeof(*threads));
    if (!threads)
        return sl_err_set(err, -ENOMEM, "I/O threads: out of memory");
    threads->io.ops = &threads_ops;
    pthread_mutex_init(&threads->lock, NULL);
    pthread_cond_init(&threads->posted, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&threads->finished, &monotonic);
    pthread_condattr_destroy(&monotonic);
    rc = sl_io_files_open(&threads->io, paths, n_files, depth, THREADS_MAX, err);
    if (rc == 0)
        rc = start_threads(threads, err);
    if (rc < 0) {
        threads_close(&threads->io);
        return rc;
    }
    *ret_io = &threads->io;
    return 0;
}
