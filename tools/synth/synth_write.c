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

#define PIECE_BYTES (UINT64_C(4) << 20)
#define BLOCK_BYTES 4096u /* what O_DIRECT asks of offsets, sizes and addresses */
#define THREADS_MAX 16u
#define POLL_NS 50000000

struct open_shard {
    int fd;
    uint64_t pieces_left;
};

struct writer {
    const struct sl_synth_plan *plan;
    const struct sl_synth_tables *tables;
    const char *folder;
    pthread_mutex_t lock; /* guards all below */
    struct open_shard *shards;
    uint32_t next_shard; /* the piece that the next free thread takes */
    uint64_t next_piece;
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

/* Takes the next piece, and opens its shard if it is the first one of it. Returns false when none
 * is left or after a failure. */
static bool take_piece(struct writer *w, struct piece *piece)
{
    const struct sl_synth_shard *shard = &w->plan->shards[w->next_shard];
    struct open_shard *file = &w->shards[w->next_shard];

    if (w->rc < 0 || w->next_shard == w->plan->n_shards)
        return false;
    if (w->next_piece == 0) {
        file->fd = open_file(w->folder, shard->file_name, &w->err);
        if (file->fd < 0) {
            w->rc = file->fd;
            return false;
        }
        file->pieces_left = (shard->file_bytes + PIECE_BYTES - 1) / PIECE_BYTES;
    }
    *piece = (struct piece){shard, w->next_shard, w->next_piece * PIECE_BYTES, PIECE_BYTES};
    if (piece->size_bytes > shard->file_bytes - piece->offset_bytes)
        piece->size_bytes = shard->file_bytes - piece->offset_bytes;
    w->next_piece++;
    if (w->next_piece * PIECE_BYTES >= shard->file_bytes) {
        w->next_piece = 0;
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
        bool last;
        int rc;

        pthread_mutex_unlock(&w->lock);
        fill_piece(w, &piece, buffer);
        rc = sl_file_write_at(file->fd, buffer, sl_round_up(piece.size_bytes, BLOCK_BYTES),
                              piece.offset_bytes);
        pthread_mutex_lock(&w->lock);
        w->done_bytes += piece.size_bytes;
        last = --file->pieces_left == 0;
        if (last && rc == 0) {
            pthread_mutex_unlock(&w->lock);
            rc = finish_shard(file, piece.shard->file_bytes);
            pthread_mutex_lock(&w->lock);
        }
        if (rc < 0 && w->rc == 0)
            w->rc = sl_err_set(&w->err, rc, "%s/%s: cannot write: %s", w->folder,
                               piece.shard->file_name, sl_strerror(rc));
    }
    w->n_running--;
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
        running = w->n_running > 0;
        done = w->done_bytes;
        pthread_mutex_unlock(&w->lock);
        progress(context, done, w->plan->file_bytes);
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
    pthread_mutex_destroy(&w.lock);
    return w.rc < 0 ? sl_err_set(err, w.rc, "%s", w.err.message) : 0;
}
