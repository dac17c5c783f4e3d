#include "storage/images/image_write.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/assert.h"

/* A piece takes a drive a tenth of a millisecond, which is what a demand may have to wait; when
 * somebody waits for the image, pieces are of a size that reaches the drive's rate. */
#define PIECE_BYTES (UINT64_C(128) << 10)
#define PIECE_WAITED_FOR_BYTES (UINT64_C(4) << 20)

/* How often the writer looks whether the reads ahead of it are through. */
#define LOOK_NS 200000

enum state { IDLE, WORKING, ENDED, QUITTING };

struct sl_image_writer {
    struct sl_file_writer *files;
    const char *folder_path;
    const atomic_uint *n_ahead;
    pthread_t thread;
    pthread_mutex_t
        lock; /* guards `state`, and with it the rest: the caller's when IDLE or ENDED */
    pthread_cond_t changed; /* of `state` */
    enum state state;
    atomic_bool waited_for; /* written by the caller */
    struct sl_image_job job;
    int rc;
    struct sl_err err;
};

/* ---- the thread --------------------------------------------------------------------------------
 */

static bool is_waited_for(const struct sl_image_writer *w)
{
    return atomic_load_explicit(&w->waited_for, memory_order_relaxed);
}

static void give_way(const struct sl_image_writer *w)
{
    const struct timespec pause = {.tv_nsec = LOOK_NS};

    while (w->n_ahead && atomic_load_explicit(w->n_ahead, memory_order_relaxed) > 0 &&
           !is_waited_for(w))
        nanosleep(&pause, NULL);
}

/* Fills in what the caller left out, so that its thread need not. */
static void complete(struct sl_image_job *job)
{
    struct sl_image_header *header = &job->header;

    for (int i = 0; i < SL_IMAGE_PARTS; i++) {
        const enum sl_image_part part = (enum sl_image_part)i;
        const uint64_t stored_bytes = sl_image_part_stored_bytes(header, part);
        uint8_t *bytes = job->bytes + sl_image_part_offset(header, part);

        memset(bytes + header->part_bytes[part], 0, stored_bytes - header->part_bytes[part]);
        header->checksums[part] = sl_checksum(bytes, stored_bytes);
    }
    sl_image_header_encode(header, job->bytes);
}

static int write_bytes(struct sl_image_writer *w, int file, const char *path)
{
    const uint64_t size_bytes = sl_image_file_bytes(&w->job.header);

    for (uint64_t at = 0, n; at < size_bytes; at += n) {
        int rc;

        give_way(w);
        n = is_waited_for(w) ? PIECE_WAITED_FOR_BYTES : PIECE_BYTES;
        n = size_bytes - at < n ? size_bytes - at : n;
        rc = w->files->ops->write(w->files, file, at, w->job.bytes + at, n);
        if (rc < 0)
            return sl_write_error(&w->err, rc, path, "write");
    }
    return 0;
}

static int write_file(struct sl_image_writer *w, const char *path, const char *new_path)
{
    const struct sl_file_writer_ops *ops = w->files->ops;
    int file, rc = ops->open(w->files, new_path, true, &file);

    if (rc < 0)
        return sl_write_error(&w->err, rc, new_path, "create");
    rc = write_bytes(w, file, path);
    if (rc == 0) {
        give_way(w);
        rc = ops->sync(w->files, file);
        if (rc < 0)
            sl_write_error(&w->err, rc, path, "write");
    }
    ops->close(w->files, file);
    if (rc == 0 && (rc = ops->rename(w->files, new_path, path)) < 0)
        sl_write_error(&w->err, rc, path, "rename");
    if (rc < 0)
        ops->remove(w->files, new_path);
    else if ((rc = ops->sync_folder(w->files, w->folder_path)) < 0)
        sl_write_error(&w->err, rc, w->folder_path, "sync");
    return rc;
}

/* Files that cannot be removed are found again when the folder is opened next. */
static void remove_files(struct sl_image_writer *w)
{
    for (uint32_t i = 0; i < w->job.n_removed; i++) {
        char name[SL_IMAGE_NAME_BYTES], *path;

        sl_image_name(w->job.removed[i], name);
        if (asprintf(&path, "%s/%s", w->folder_path, name) < 0)
            return;
        w->files->ops->remove(w->files, path);
        free(path);
    }
}

static int work(struct sl_image_writer *w)
{
    char name[SL_IMAGE_NAME_BYTES], *path = NULL, *new_path = NULL;
    int rc;

    sl_image_name(w->job.header.prefix, name);
    if (asprintf(&path, "%s/%s", w->folder_path, name) < 0)
        path = NULL;
    if (path && asprintf(&new_path, "%s" SL_IMAGE_NEW, path) < 0)
        new_path = NULL;
    if (path && new_path) {
        remove_files(w);
        complete(&w->job);
        rc = write_file(w, path, new_path);
    } else {
        rc = sl_err_set(&w->err, -ENOMEM, "%s: out of memory", w->folder_path);
    }
    free(path);
    free(new_path);
    return rc;
}

static void *run(void *context)
{
    struct sl_image_writer *w = context;

    pthread_mutex_lock(&w->lock);
    while (w->state != QUITTING) {
        int rc;

        if (w->state != WORKING) {
            pthread_cond_wait(&w->changed, &w->lock);
            continue;
        }
        pthread_mutex_unlock(&w->lock);
        rc = work(w);
        pthread_mutex_lock(&w->lock);
        w->rc = rc;
        w->state = ENDED;
        pthread_cond_broadcast(&w->changed);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* ---- the caller --------------------------------------------------------------------------------
 */

int sl_image_writer_create(struct sl_image_writer **ret_writer, struct sl_file_writer *files,
                           const char *folder_path, const atomic_uint *n_ahead, struct sl_err *err)
{
    struct sl_image_writer *w = calloc(1, sizeof(*w));
    sigset_t all, before;
    int rc;

    if (!w)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", folder_path);
    w->files = files;
    w->folder_path = folder_path;
    w->n_ahead = n_ahead;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    sigfillset(&all); /* signals are for the threads that were there before */
    pthread_sigmask(SIG_BLOCK, &all, &before);
    rc = pthread_create(&w->thread, NULL, run, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0) {
        pthread_mutex_destroy(&w->lock);
        pthread_cond_destroy(&w->changed);
        free(w);
        return sl_err_set(err, -rc, "%s: no thread to write images with: %s", folder_path,
                          sl_strerror(rc));
    }
    *ret_writer = w;
    return 0;
}

static void change_state(struct sl_image_writer *w, enum state state)
{
    pthread_mutex_lock(&w->lock);
    w->state = state;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

static void wait_until_ended(struct sl_image_writer *w)
{
    atomic_store(&w->waited_for, true);
    pthread_mutex_lock(&w->lock);
    while (w->state == WORKING)
        pthread_cond_wait(&w->changed, &w->lock);
    pthread_mutex_unlock(&w->lock);
}

void sl_image_writer_destroy(struct sl_image_writer *w)
{
    if (!w)
        return;
    wait_until_ended(w);
    change_state(w, QUITTING);
    pthread_join(w->thread, NULL);
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->changed);
    free(w);
}

void sl_image_writer_begin(struct sl_image_writer *w, const struct sl_image_job *job)
{
    sl_assert(w->state == IDLE); /* the thread changes it only from WORKING on */
    atomic_store(&w->waited_for, false);
    w->job = *job;
    change_state(w, WORKING);
}

void sl_image_writer_hurry(struct sl_image_writer *w)
{
    atomic_store(&w->waited_for, true);
}

bool sl_image_writer_end(struct sl_image_writer *w, bool wait, struct sl_image_job *ret_job,
                         int *ret_rc, struct sl_err *err)
{
    bool has_ended;

    if (wait)
        wait_until_ended(w);
    pthread_mutex_lock(&w->lock);
    has_ended = w->state == ENDED;
    if (has_ended)
        w->state = IDLE;
    pthread_mutex_unlock(&w->lock);
    if (!has_ended)
        return false;
    *ret_job = w->job;
    *ret_rc = w->rc;
    if (w->rc < 0 && err)
        *err = w->err;
    return true;
}
