#include "tools/synth/synth_write.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/size.h"
#include "tools/synth/synth_share.h"

#define PIECE_BYTES (UINT64_C(4) << 20)
#define BLOCK_BYTES SL_SYNTH_BLOCK_BYTES /* what O_DIRECT asks of offsets, sizes and addresses */
#define THREADS_MAX 16u
#define POLL_NS 50000000

struct open_shard {
    int fd;
    uint64_t bytes_left;
    bool whole; /* on disk, so that others can share its blocks */
};

struct writer {
    const struct sl_synth_plan *plan;
    const struct sl_synth_tables *tables;
    const char *folder;
    pthread_mutex_t lock;          /* guards all below */
    pthread_cond_t shard_is_whole; /* or writing has failed */
    struct open_shard *shards;
    uint32_t next_shard; /* the piece that the next free thread takes */
    uint32_t next_run;
    uint64_t next_offset_bytes;
    uint64_t done_bytes;
    uint32_t n_running; /* threads */
    int rc;             /* of the first failure; threads stop when it is set */
    struct sl_err err;
};

struct piece {
    const struct sl_synth_shard *shard;
    uint32_t shard_index;
    uint64_t offset_bytes; /* in the file */
    uint64_t size_bytes;
    const struct sl_synth_run *run; /* the piece is this run, to be cloned; or NULL */
};

static int open_file(const char *folder, const char *name, struct sl_err *err)
{
    char *path;
    int fd;

    if (asprintf(&path, "%s/%s", folder, name) < 0)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", folder);
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        fd = sl_err_set(err, -errno, "%s: cannot create: %s", path, sl_strerror(errno));
    else
        sl_file_set_direct(fd, BLOCK_BYTES);
    free(path);
    return fd;
}

/* Cuts what is left of a file to the next piece, which is `run` if that begins here. */
static void cut_piece(struct piece *piece, const struct sl_synth_run *run)
{
    uint64_t size = PIECE_BYTES;

    if (run && run->offset_bytes == piece->offset_bytes) {
        piece->run = run;
        size = run->size_bytes;
    } else if (run && run->offset_bytes - piece->offset_bytes < size) {
        size = run->offset_bytes - piece->offset_bytes;
    }
    if (piece->size_bytes > size)
        piece->size_bytes = size;
}

/* Takes the next piece, and opens its shard if it is the first one of it. Returns false when none
 * is left or after a failure. */
static bool take_piece(struct writer *w, struct piece *piece)
{
    const struct sl_synth_shard *shard = &w->plan->shards[w->next_shard];
    struct open_shard *file = &w->shards[w->next_shard];

    if (w->rc < 0 || w->next_shard == w->plan->n_shards)
        return false;
    if (w->next_offset_bytes == 0) {
        file->fd = open_file(w->folder, shard->file_name, &w->err);
        if (file->fd < 0) {
            w->rc = file->fd;
            return false;
        }
        file->bytes_left = shard->file_bytes;
    }
    *piece = (struct piece){.shard = shard,
                            .shard_index = w->next_shard,
                            .offset_bytes = w->next_offset_bytes,
                            .size_bytes = shard->file_bytes - w->next_offset_bytes};
    cut_piece(piece, w->next_run < shard->n_runs ? &shard->runs[w->next_run] : NULL);
    w->next_run += piece->run != NULL;
    w->next_offset_bytes += piece->size_bytes;
    if (w->next_offset_bytes == shard->file_bytes) {
        w->next_offset_bytes = 0;
        w->next_run = 0;
        w->next_shard++;
    }
    return true;
}

/* Returns the tensor that holds byte `offset_bytes` of a shard's data. */
static uint32_t find_tensor(const struct sl_synth_shard *shard, uint64_t offset_bytes)
{
    uint32_t low = 0, high = shard->n_tensors;

    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;

        if (shard->tensors[middle].offset_bytes <= offset_bytes)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static void fill_piece(const struct writer *w, const struct piece *piece, uint8_t *buffer)
{
    const struct sl_synth_shard *shard = piece->shard;
    uint64_t at = piece->offset_bytes, end = at + piece->size_bytes;

    if (at < shard->header_bytes) {
        uint64_t size = (end < shard->header_bytes ? end : shard->header_bytes) - at;

        memcpy(buffer, shard->header + at, size);
        at += size;
    }
    for (uint32_t t = find_tensor(shard, at - shard->header_bytes); at < end; t++) {
        const struct sl_synth_tensor *tensor = &shard->tensors[t];
        uint64_t offset = at - shard->header_bytes - tensor->offset_bytes;
        uint64_t size = tensor->info.size_bytes - offset;

        if (size > end - at)
            size = end - at;
        sl_synth_fill(w->tables, &tensor->values, offset, size,
                      buffer + (at - piece->offset_bytes));
        at += size;
    }
    memset(buffer + piece->size_bytes, 0,
           sl_round_up(piece->size_bytes, BLOCK_BYTES) - piece->size_bytes);
}

/* Ends a shard after its last piece: cuts off the bytes that rounding up to whole blocks has
 * added. */
static int finish_shard(struct open_shard *file, uint64_t file_bytes)
{
    int rc = 0;

    if (ftruncate(file->fd, (off_t)file_bytes) < 0 || fdatasync(file->fd) < 0)
        rc = -errno;
    close(file->fd);
    file->fd = -1;
    return rc;
}

/* Makes a piece's data and writes it. */
static int write_piece(const struct writer *w, const struct piece *piece, int fd, uint8_t *buffer)
{
    fill_piece(w, piece, buffer);
    return sl_file_write_at(fd, buffer, sl_round_up(piece->size_bytes, BLOCK_BYTES),
                            piece->offset_bytes);
}

static int clone_piece(const struct writer *w, const struct piece *piece, int fd)
{
    const struct sl_synth_shard *donor = &w->plan->shards[piece->run->donor_shard];
    char *path;
    int donor_fd, rc;

    if (asprintf(&path, "%s/%s", w->folder, donor->file_name) < 0)
        return -ENOMEM;
    donor_fd = sl_file_open(path, NULL);
    free(path);
    if (donor_fd < 0)
        return donor_fd;
    rc = sl_synth_clone(fd, donor_fd, piece->run);
    close(donor_fd);
    return rc;
}

/* The lock is held. The donor's pieces were all taken before this one, so that they are written
 * whatever this thread waits for. */
static void wait_for_donor(struct writer *w, const struct piece *piece)
{
    while (piece->run && !w->shards[piece->run->donor_shard].whole && w->rc == 0)
        pthread_cond_wait(&w->shard_is_whole, &w->lock);
}

/* The lock is held. */
static void set_failed(struct writer *w, const struct piece *piece, int rc)
{
    if (w->rc == 0)
        w->rc = sl_err_set(&w->err, rc, "%s/%s: cannot write: %s", w->folder,
                           piece->shard->file_name, sl_strerror(rc));
    pthread_cond_broadcast(&w->shard_is_whole);
}

static void *run(void *context)
{
    struct writer *w = context;
    uint8_t *buffer = aligned_alloc(BLOCK_BYTES, PIECE_BYTES);
    struct piece piece;

    pthread_mutex_lock(&w->lock);
    if (!buffer && w->rc == 0)
        w->rc = sl_err_set(&w->err, -ENOMEM, "out of memory for a buffer");
    while (take_piece(w, &piece)) {
        struct open_shard *file = &w->shards[piece.shard_index];
        int rc;

        wait_for_donor(w, &piece);
        if (w->rc < 0)
            break;
        pthread_mutex_unlock(&w->lock);
        rc =
            piece.run ? clone_piece(w, &piece, file->fd) : write_piece(w, &piece, file->fd, buffer);
        pthread_mutex_lock(&w->lock);
        w->done_bytes += piece.run ? 0 : piece.size_bytes;
        file->bytes_left -= piece.size_bytes;
        if (file->bytes_left == 0 && rc == 0) {
            pthread_mutex_unlock(&w->lock);
            rc = finish_shard(file, piece.shard->file_bytes);
            pthread_mutex_lock(&w->lock);
            file->whole = true;
            pthread_cond_broadcast(&w->shard_is_whole);
        }
        if (rc < 0)
            set_failed(w, &piece, rc);
    }
    w->n_running--;
    pthread_cond_broadcast(&w->shard_is_whole); /* to those that wait, if it was a failure */
    pthread_mutex_unlock(&w->lock);
    free(buffer);
    return NULL;
}

/* Watches the threads and `stop` until the last thread is done. */
static void watch(struct writer *w, const atomic_bool *stop, sl_progress_fn *progress,
                  void *context)
{
    const struct timespec poll = {.tv_nsec = POLL_NS};
    bool running = true;

    while (running) {
        uint64_t done;

        nanosleep(&poll, NULL);
        pthread_mutex_lock(&w->lock);
        if (atomic_load(stop) && w->rc == 0)
            w->rc = sl_err_set(&w->err, -ECANCELED, "stopped");
        if (w->rc < 0)
            pthread_cond_broadcast(&w->shard_is_whole);
        running = w->n_running > 0;
        done = w->done_bytes;
        pthread_mutex_unlock(&w->lock);
        progress(context, done, w->plan->write_bytes);
    }
}

int sl_synth_write(const struct sl_synth_plan *plan, const struct sl_synth_tables *tables,
                   const char *folder, uint32_t n_threads, const atomic_bool *stop,
                   sl_progress_fn *progress, void *context, struct sl_err *err)
{
    struct writer w = {.plan = plan, .tables = tables, .folder = folder};
    pthread_t threads[THREADS_MAX];
    uint32_t n_started = 0;

    w.shards = calloc(plan->n_shards, sizeof(*w.shards));
    if (!w.shards)
        return sl_err_set(err, -ENOMEM, "out of memory for the shards' files");
    for (uint32_t i = 0; i < plan->n_shards; i++)
        w.shards[i].fd = -1;
    pthread_mutex_init(&w.lock, NULL);
    pthread_cond_init(&w.shard_is_whole, NULL);
    w.n_running = n_threads < THREADS_MAX ? n_threads : THREADS_MAX;
    for (uint32_t n = w.n_running; n_started < n; n_started++) {
        int error = pthread_create(&threads[n_started], NULL, run, &w);

        if (error) {
            pthread_mutex_lock(&w.lock);
            w.n_running -= n - n_started;
            if (n_started == 0)
                w.rc = sl_err_set(&w.err, -error, "cannot start a thread: %s", sl_strerror(error));
            pthread_mutex_unlock(&w.lock);
            break;
        }
    }
    watch(&w, stop, progress, context);
    for (uint32_t i = 0; i < n_started; i++)
        pthread_join(threads[i], NULL);
    for (uint32_t i = 0; i < plan->n_shards; i++)
        if (w.shards[i].fd >= 0)
            close(w.shards[i].fd);
    free(w.shards);
    pthread_cond_destroy(&w.shard_is_whole);
    pthread_mutex_destroy(&w.lock);
    return w.rc < 0 ? sl_err_set(err, w.rc, "%s", w.err.message) : 0;
}
