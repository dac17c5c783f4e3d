/* Reads through io_uring. The ring has an entry for every read that may be out, so an entry is
 * always to be had and completions cannot overflow; what the kernel does not take at once stays in
 * the ring and goes with the next call. */
#include "storage/io.h"

#include <errno.h>
#include <liburing.h>
#include <stdlib.h>

#include "core/base/assert.h"

#define READS_MAX 4096u
#define REAP_BATCH 64u

struct uring {
    struct sl_io io;
    struct io_uring ring;
    uint32_t n_out; /* submitted and not reaped */
    bool has_ring;
};

static struct uring *uring_of(struct sl_io *io)
{
    return (struct uring *)(void *)io;
}

/* Out of memory or interrupted: the entries stay queued, and reap() comes back to them. Every other
 * code says that the ring itself is misused. */
static void check_enter(int rc)
{
    sl_assert(rc >= 0 || rc == -EAGAIN || rc == -EBUSY || rc == -EINTR || rc == -ENOMEM);
}

static void uring_submit(struct sl_io *io, const struct sl_io_read *reads, uint32_t n_reads)
{
    struct uring *uring = uring_of(io);

    sl_assert(n_reads <= io->reads_max - uring->n_out);
    for (uint32_t i = 0; i < n_reads; i++) {
        const struct sl_io_read *read = &reads[i];
        struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);

        sl_assert(sqe);
        sl_assert(read->file_index < io->n_files);
        io_uring_prep_read(sqe, io->files[read->file_index].fd, read->dst, read->size_bytes,
                           read->offset_bytes);
        sqe->user_data = read->tag;
    }
    uring->n_out += n_reads;
    check_enter(io_uring_submit(&uring->ring));
}

static uint32_t uring_reap(struct sl_io *io, bool wait, struct sl_io_completion *completions,
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
    while (n == 0 && wait && uring->n_out > 0) {
        check_enter(io_uring_submit_and_wait(&uring->ring, 1));
        n = io_uring_peek_batch_cqe(&uring->ring, cqes, n_max);
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

static void uring_close(struct sl_io *io)
{
    struct uring *uring = uring_of(io);

    sl_assert(uring->n_out == 0);
    if (uring->has_ring)
        io_uring_queue_exit(&uring->ring);
    sl_io_files_close(io);
    free(uring);
}

static const struct sl_io_ops uring_ops = {
    .submit = uring_submit,
    .reap = uring_reap,
    .close = uring_close,
};

int sl_io_uring_open(struct sl_io **ret_io, const char *const *paths, uint32_t n_files,
                     uint32_t reads_max, struct sl_err *err)
{
    struct uring *uring;
    int rc;

    sl_assert(reads_max >= 1 && reads_max <= READS_MAX);
    uring = calloc(1, sizeof(*uring));
    if (!uring)
        return sl_err_set(err, -ENOMEM, "io_uring back end: out of memory");
    uring->io.ops = &uring_ops;
    uring->io.reads_max = reads_max;
    rc = sl_io_files_open(&uring->io, paths, n_files, err);
    if (rc < 0)
        goto fail;
    rc = io_uring_queue_init(reads_max, &uring->ring, 0);
    if (rc < 0) {
        /* Containers forbid it as a rule (EPERM, ENOSYS); old kernels count it as locked memory. */
        rc = sl_err_set(err, rc, "io_uring is not available here: %s; use --io threads",
                        sl_strerror(rc));
        goto fail;
    }
    uring->has_ring = true;
    *ret_io = &uring->io;
    return 0;
fail:
    uring_close(&uring->io);
    return rc;
}
