/* Reads through io_uring. The ring has an entry for every read that may be in flight, so an entry
 * is always free and completions cannot overflow. Reads that the kernel does not take at once stay
 * in the ring and are submitted with the next call.
 *
 * One ring serves all drives. A ring only carries requests and results: the kernel has a queue for
 * each device, and the reader bounds the reads in flight on each drive. If a drive's queue is full,
 * the kernel hands the read to a worker thread and goes on with the next one; workers belong to the
 * process, so several rings would share them as well. One ring also allows one wait for all drives.
 * (Measured: docs/MICROBENCHMARKS.md.) */
#include "storage/io/io.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "core/base/assert.h"

#define READS_MAX 4096u
#define REAP_BATCH 64u
#define NS_PER_S UINT64_C(1000000000)

struct uring {
    struct sl_io io;
    struct io_uring ring;
    uint32_t n_out; /* submitted and not reaped */
    bool has_ring;
    bool files_registered;
    uintptr_t
        attached; /* part i, which is registered buffer i if held, begins part_bytes * i later */
    uint64_t attached_bytes, part_bytes;
    bool is_held[SL_IO_PARTS_MAX];
};

static struct uring *uring_of(struct sl_io *io)
{
    return (struct uring *)(void *)io;
}

/* A call that is out of memory or interrupted leaves the entries queued, and reap() submits them
 * later. Every other code means that we misuse the ring. */
static void check_enter(int rc)
{
    sl_assert(rc >= 0 || rc == -EAGAIN || rc == -EBUSY || rc == -EINTR || rc == -ENOMEM);
}

/* Returns the registered buffer that the read's destination lies in; -1 if it is in none, or in
 * two. */
static int buffer_index(const struct uring *uring, const struct sl_io_read *read)
{
    uint64_t first = (uintptr_t)read->dst - uring->attached; /* huge if it lies before */

    if (first >= uring->attached_bytes || read->size_bytes > uring->attached_bytes - first ||
        first / uring->part_bytes != (first + read->size_bytes - 1) / uring->part_bytes ||
        !uring->is_held[first / uring->part_bytes])
        return -1;
    return (int)(first / uring->part_bytes);
}

static void prepare(const struct uring *uring, struct io_uring_sqe *sqe,
                    const struct sl_io_read *read)
{
    int buffer = buffer_index(uring, read);
    int file =
        uring->files_registered ? (int)read->file_index : uring->io.files[read->file_index].fd;

    if (buffer >= 0)
        io_uring_prep_read_fixed(sqe, file, read->dst, read->size_bytes, read->offset_bytes,
                                 buffer);
    else
        io_uring_prep_read(sqe, file, read->dst, read->size_bytes, read->offset_bytes);
    if (uring->files_registered)
        sqe->flags |= IOSQE_FIXED_FILE;
    sqe->user_data = read->tag;
}

static void uring_submit(struct sl_io *io, const struct sl_io_read *reads, uint32_t n_reads)
{
    struct uring *uring = uring_of(io);

    sl_assert(n_reads <= io->reads_max - uring->n_out);
    for (uint32_t i = 0; i < n_reads; i++) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);

        sl_assert(sqe);
        sl_assert(reads[i].file_index < io->n_files);
        prepare(uring, sqe, &reads[i]);
    }
    uring->n_out += n_reads;
    check_enter(io_uring_submit(&uring->ring));
}

static void wait_for_one(struct uring *uring, uint64_t wait_ns)
{
    struct __kernel_timespec limit = {.tv_sec = (long long)(wait_ns / NS_PER_S),
                                      .tv_nsec = (long long)(wait_ns % NS_PER_S)};
    struct io_uring_cqe *cqe;
    int rc = io_uring_submit_and_wait_timeout(&uring->ring, &cqe, 1,
                                              wait_ns == SL_IO_FOREVER ? NULL : &limit, NULL);

    if (rc != -ETIME)
        check_enter(rc);
}

static uint32_t uring_reap(struct sl_io *io, uint64_t wait_ns, struct sl_io_completion *completions,
                           uint32_t n_max)
{
    struct uring *uring = uring_of(io);
    struct io_uring_cqe *cqes[REAP_BATCH];
    uint32_t n;

    if (n_max > REAP_BATCH)
        n_max = REAP_BATCH;
    if (io_uring_sq_ready(&uring->ring) > 0)
        check_enter(io_uring_submit(&uring->ring));
    n = io_uring_peek_batch_cqe(&uring->ring, cqes, n_max);
    if (n == 0 && wait_ns > 0 && uring->n_out > 0) {
        do {
            wait_for_one(uring, wait_ns);
            n = io_uring_peek_batch_cqe(&uring->ring, cqes, n_max);
        } while (n == 0 && wait_ns == SL_IO_FOREVER);
    }
    for (uint32_t i = 0; i < n; i++) {
        completions[i].tag = cqes[i]->user_data;
        completions[i].result = cqes[i]->res;
    }
    io_uring_cq_advance(&uring->ring, n);
    sl_assert(n <= uring->n_out);
    uring->n_out -= n;
    return n;
}

static int uring_attach(struct sl_io *io, void *base, uint64_t size_bytes, uint64_t part_bytes)
{
    struct uring *uring = uring_of(io);
    uint64_t n;
    int rc;

    sl_assert(uring->n_out == 0);
    if (uring->attached_bytes > 0)
        io_uring_unregister_buffers(&uring->ring);
    uring->attached_bytes = 0;
    memset(uring->is_held, 0, sizeof(uring->is_held));
    if (size_bytes == 0)
        return 0;
    n = (size_bytes + part_bytes - 1) / part_bytes;
    sl_assert(n <= SL_IO_PARTS_MAX && part_bytes <= SL_IO_PART_BYTES_MAX);
    rc = io_uring_register_buffers_sparse(&uring->ring, (unsigned)n);
    if (rc < 0)
        return rc;
    uring->attached = (uintptr_t)base;
    uring->attached_bytes = size_bytes;
    uring->part_bytes = part_bytes;
    return 0;
}

static int uring_hold(struct sl_io *io, uint32_t part, bool hold)
{
    struct uring *uring = uring_of(io);
    const uint64_t first = part * uring->part_bytes;
    struct iovec buffer = {0};
    const __u64 tag = 0;
    int rc;

    if (uring->attached_bytes == 0)
        return -ENOSYS;
    sl_assert(first < uring->attached_bytes);
    if (!hold && !uring->is_held[part])
        return 0;
    if (hold) {
        buffer.iov_base = (uint8_t *)uring->attached + first;
        buffer.iov_len = uring->attached_bytes - first < uring->part_bytes
                             ? uring->attached_bytes - first
                             : uring->part_bytes;
    }
    rc = io_uring_register_buffers_update_tag(&uring->ring, part, &buffer, &tag, 1);
    uring->is_held[part] = hold && rc >= 0;
    return rc < 0 ? rc : 0;
}

static void uring_close(struct sl_io *io)
{
    struct uring *uring = uring_of(io);

    if (uring->n_out > 0)
        return; /* the kernel still writes to the ring, and ends it with the process */
    if (uring->has_ring)
        io_uring_queue_exit(&uring->ring);
    sl_io_files_close(io);
    free(uring);
}

static const struct sl_io_ops uring_ops = {
    .submit = uring_submit,
    .reap = uring_reap,
    .attach = uring_attach,
    .hold = uring_hold,
    .close = uring_close,
};

/* Containers may forbid a ring (EPERM, ENOSYS), or allow one and then forbid its use, so it is
 * tried once. Before Linux 5.11 a ring could not wait for a limited time, which is reported as
 * ENOSYS; such kernels also count it as locked memory (ENOMEM). */
static int open_ring(struct io_uring *ring, uint32_t n_entries)
{
    struct io_uring_cqe *cqe;
    int rc = io_uring_queue_init(n_entries, ring, 0);

    if (rc < 0)
        return rc;
    if (!(ring->features & IORING_FEAT_EXT_ARG)) {
        rc = -ENOSYS;
    } else {
        io_uring_prep_nop(io_uring_get_sqe(ring));
        do {
            rc = io_uring_submit_and_wait(ring, 1);
        } while (rc == -EINTR);
        if (rc >= 0)
            rc = io_uring_wait_cqe(ring, &cqe);
    }
    if (rc < 0) {
        io_uring_queue_exit(ring);
        return rc;
    }
    io_uring_cqe_seen(ring, cqe);
    return 0;
}

sl_io_open_fn *sl_io_choose(struct sl_err *ret_why)
{
    struct io_uring ring;
    int rc = open_ring(&ring, 1);

    if (rc < 0) {
        sl_err_set(ret_why, rc, "io_uring is not available here: %s", sl_strerror(rc));
        return sl_io_threads_open;
    }
    io_uring_queue_exit(&ring);
    if (ret_why)
        ret_why->code = 0;
    return sl_io_uring_open;
}

/* Registers the files, which spares the kernel a lookup for each read. Reads work without it,
 * too. */
static int register_files(struct uring *uring, struct sl_err *err)
{
    int *fds = calloc(uring->io.n_files ? uring->io.n_files : 1, sizeof(*fds));

    if (!fds)
        return sl_err_set(err, -ENOMEM, "io_uring back end: out of memory");
    for (uint32_t i = 0; i < uring->io.n_files; i++)
        fds[i] = uring->io.files[i].fd;
    uring->files_registered = io_uring_register_files(&uring->ring, fds, uring->io.n_files) == 0;
    free(fds);
    return 0;
}

int sl_io_uring_open(struct sl_io **ret_io, const char *const *paths, uint32_t n_files,
                     uint32_t depth, struct sl_err *err)
{
    struct uring *uring;
    int rc;

    uring = calloc(1, sizeof(*uring));
    if (!uring)
        return sl_err_set(err, -ENOMEM, "io_uring back end: out of memory");
    uring->io.ops = &uring_ops;
    rc = sl_io_files_open(&uring->io, paths, n_files, depth, READS_MAX, err);
    if (rc < 0)
        goto fail;
    rc = open_ring(&uring->ring, uring->io.reads_max);
    uring->has_ring = rc == 0;
    if (rc < 0) {
        rc = sl_err_set(err, rc, "io_uring is not available here: %s; use --io threads",
                        sl_strerror(rc));
        goto fail;
    }
    rc = register_files(uring, err);
    if (rc < 0)
        goto fail;
    *ret_io = &uring->io;
    return 0;
fail:
    uring_close(&uring->io);
    return rc;
}
