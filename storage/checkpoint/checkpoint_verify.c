/* Each thread takes the next file, the largest first, and reads it from its start to its end
 * through a reader of its own: pieces are queued at the head of a ring of buffers, and hashed at
 * its tail in the order of the file. Scales are looked at in the same buffers as they pass. */
#include "storage/checkpoint/checkpoint_verify.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "core/base/arena.h"
#include "core/base/assert.h"
#include "core/base/clock.h"
#include "storage/checkpoint/checkpoint.h"
#include "storage/io/reader.h"

#define PIECE_BYTES (UINT64_C(1) << 20)
#define PIECES_MAX 16u
#define THREADS_MAX 16u
#define POLL_NS 50000000
#define E8M0_NAN 0xff
#define F32_EXPONENT UINT32_C(0x7f800000) /* all ones: infinite or NaN */

/* A file to be read. */
struct job {
    char *path;
    uint64_t size_bytes;
    char hex[SL_SHA256_HEX + 1];    /* "": not known */
    uint32_t first_scale, n_scales; /* in the run's list */
    bool bad;                       /* whoever works on it writes */
};

struct run {
    const struct sl_checkpoint_verify_options *o;
    struct sl_checkpoint *checkpoint;
    const struct sl_checkpoint_tensor **scales; /* of all files, by file and offset */
    uint32_t n_scales;
    struct job *jobs; /* the largest first, once they are all there */
    uint32_t n_jobs;
    uint64_t total_bytes;

    pthread_cond_t ended; /* a thread */
    pthread_mutex_t lock; /* guards all below, and calls of on_bad */
    uint32_t next_job, n_running;
    uint32_t n_bad, n_unread; /* files; those that are bad without having been read */
    uint64_t done_bytes;
    int rc; /* of the first failure; threads stop when it is set */
    struct sl_err err;
};

struct piece {
    struct sl_read read;
    bool landed;
};

/* A thread, and all that it reads with. */
struct worker {
    struct run *run;
    struct job *job;
    struct sl_io *io;
    struct sl_reader *reader;
    struct sl_sha256 *hash;
    struct sl_arena arena;
    uint8_t *buffers; /* (PIECES_MAX, PIECE_BYTES) */
    struct piece pieces[PIECES_MAX];
    uint64_t head, tail;    /* counts of pieces queued and looked at */
    uint32_t n_passed;      /* tensors of scales that lie before the tail */
    bool scale_reported;    /* of the one that does not */
    uint8_t float_bytes[4]; /* of a float32 scale that two pieces share */
    struct sl_err err;
};

static int no_memory(const struct run *run, struct sl_err *err)
{
    return sl_err_set(err, -ENOMEM, "%s: out of memory", run->o->folder);
}

static const char *base_name(const char *path)
{
    return strrchr(path, '/') + 1;
}

/* `bad` is whether the file was reported before. */
static void report(struct run *run, const char *path, bool *bad, const char *message)
{
    pthread_mutex_lock(&run->lock);
    run->n_bad += !*bad;
    *bad = true;
    run->o->on_bad(run->o->bad_context, base_name(path), message);
    pthread_mutex_unlock(&run->lock);
}

/* ---- which files -------------------------------------------------------------------------------
 */

static void on_bad_shard(void *context, const char *path, const char *message)
{
    struct run *run = context;
    bool bad = false; /* each is told of once */

    report(run, path, &bad, message);
    run->n_unread++;
}

static int compare_scales(const void *a, const void *b)
{
    const struct sl_checkpoint_tensor *x = *(const struct sl_checkpoint_tensor *const *)a;
    const struct sl_checkpoint_tensor *y = *(const struct sl_checkpoint_tensor *const *)b;

    if (x->file_index != y->file_index)
        return x->file_index < y->file_index ? -1 : 1;
    return (x->offset_bytes > y->offset_bytes) - (x->offset_bytes < y->offset_bytes);
}

static bool is_scale(const struct sl_checkpoint_tensor *tensor)
{
    const size_t length = strlen(tensor->name), n = strlen(".scale");

    return (tensor->info.dtype == SL_DTYPE_F8_E8M0 || tensor->info.dtype == SL_DTYPE_F32) &&
           length > n && strcmp(tensor->name + length - n, ".scale") == 0;
}

static int list_scales(struct run *run, struct sl_err *err)
{
    const uint32_t n_tensors = sl_checkpoint_tensor_count(run->checkpoint);

    run->scales = calloc((size_t)n_tensors + 1, sizeof(*run->scales));
    if (!run->scales)
        return no_memory(run, err);
    for (uint32_t i = 0; i < n_tensors; i++) {
        const struct sl_checkpoint_tensor *tensor = sl_checkpoint_tensor_at(run->checkpoint, i);

        if (is_scale(tensor))
            run->scales[run->n_scales++] = tensor;
    }
    qsort(run->scales, run->n_scales, sizeof(*run->scales), compare_scales);
    return 0;
}

/* Adds a file that is there. Returns NULL when out of memory. */
static struct job *add_job(struct run *run, const char *path, uint64_t size_bytes)
{
    struct job *jobs = reallocarray(run->jobs, run->n_jobs + 1, sizeof(*jobs)), *job;

    if (!jobs)
        return NULL;
    run->jobs = jobs;
    job = &jobs[run->n_jobs];
    *job = (struct job){.path = strdup(path), .size_bytes = size_bytes};
    if (!job->path)
        return NULL;
    if (!sl_file_hash_find(run->o->list, run->o->folder, base_name(path), job->hex))
        job->hex[0] = '\0';
    run->total_bytes += size_bytes;
    run->n_jobs++;
    return job;
}

/* Bytes behind the last tensor do no harm to those who look up tensors, but no release has any. */
static void check_end(struct run *run, struct job *job, uint32_t file_index)
{
    uint64_t end_bytes = sl_checkpoint_header_bytes(run->checkpoint, file_index);
    char message[SL_ERR_MESSAGE_BYTES];

    for (uint32_t i = 0; i < sl_checkpoint_tensor_count(run->checkpoint); i++) {
        const struct sl_checkpoint_tensor *tensor = sl_checkpoint_tensor_at(run->checkpoint, i);
        const uint64_t end = tensor->offset_bytes + tensor->info.size_bytes;

        if (tensor->file_index == file_index && end > end_bytes)
            end_bytes = end;
    }
    if (job->size_bytes == end_bytes)
        return;
    snprintf(message, sizeof(message),
             "%s: the file has %llu bytes, but its last tensor ends at byte %llu", job->path,
             (unsigned long long)job->size_bytes, (unsigned long long)end_bytes);
    report(run, job->path, &job->bad, message);
}

static int list_shards(struct run *run, struct sl_err *err)
{
    uint32_t scale = 0;

    for (uint32_t i = 0; i < sl_checkpoint_file_count(run->checkpoint); i++) {
        const uint32_t first = scale;
        struct job *job;

        while (scale < run->n_scales && run->scales[scale]->file_index == i)
            scale++;
        if (sl_checkpoint_file_is_bad(run->checkpoint, i))
            continue;
        job = add_job(run, sl_checkpoint_file_path(run->checkpoint, i),
                      sl_checkpoint_file_bytes(run->checkpoint, i));
        if (!job)
            return no_memory(run, err);
        job->first_scale = first;
        job->n_scales = scale - first;
        check_end(run, job, i);
    }
    return 0;
}

static bool is_shard(const struct run *run, const char *name)
{
    for (uint32_t i = 0; i < sl_checkpoint_file_count(run->checkpoint); i++)
        if (strcmp(base_name(sl_checkpoint_file_path(run->checkpoint, i)), name) == 0)
            return true;
    return false;
}

/* Adds a file beside the shards if its hash is known. Returns 1 if it is not there. */
static int add_other(struct run *run, const char *name, struct sl_err *err)
{
    char hex[SL_SHA256_HEX + 1], *path;
    struct stat status;
    int rc = 0;

    if (is_shard(run, name) || !sl_file_hash_find(run->o->list, run->o->folder, name, hex))
        return 0;
    if (asprintf(&path, "%s/%s", run->o->folder, name) < 0)
        return no_memory(run, err);
    if (stat(path, &status) < 0)
        rc = 1;
    else if (S_ISREG(status.st_mode) && !add_job(run, path, (uint64_t)status.st_size))
        rc = no_memory(run, err);
    free(path);
    return rc;
}

static int list_others(struct run *run, struct sl_err *err)
{
    DIR *dir = opendir(run->o->folder);
    const struct dirent *entry;
    int rc = 0;

    if (!dir)
        return sl_err_set(err, -errno, "%s: cannot open the folder: %s", run->o->folder,
                          sl_strerror(errno));
    while (rc >= 0 && (entry = readdir(dir)))
        if (entry->d_name[0] != '.')
            rc = add_other(run, entry->d_name, err);
    closedir(dir);
    return rc < 0 ? rc : 0;
}

/* Reports files of the list that are not there. Shards were reported already. */
static int check_list(struct run *run, struct sl_err *err)
{
    char message[SL_ERR_MESSAGE_BYTES], *path;

    for (uint32_t i = 0; run->o->list && i < run->o->list->n; i++) {
        const char *name = run->o->list->list[i].name;
        struct stat status;
        bool bad = false;

        if (asprintf(&path, "%s/%s", run->o->folder, name) < 0)
            return no_memory(run, err);
        snprintf(message, sizeof(message), "%s: is in the list, but not in the folder", path);
        if (!is_shard(run, name) && stat(path, &status) < 0) {
            report(run, path, &bad, message);
            run->n_unread++;
        }
        free(path);
    }
    return 0;
}

static int compare_jobs(const void *a, const void *b)
{
    const struct job *x = a, *y = b;

    return (x->size_bytes < y->size_bytes) - (x->size_bytes > y->size_bytes);
}

/* ---- what is read ------------------------------------------------------------------------------
 */

static void report_scale(struct worker *w, const struct sl_checkpoint_tensor *tensor,
                         uint64_t offset_bytes)
{
    char message[SL_ERR_MESSAGE_BYTES];

    if (w->scale_reported)
        return;
    w->scale_reported = true;
    snprintf(message, sizeof(message),
             "%s: tensor \"%s\" has a scale that is no number, at byte %llu", w->job->path,
             tensor->name, (unsigned long long)offset_bytes);
    report(w->run, w->job->path, &w->job->bad, message);
}

/* Scales first .. end of a tensor, as offsets in the file; `bytes` is the first one's. */
static void check_e8m0(struct worker *w, const struct sl_checkpoint_tensor *tensor, uint64_t first,
                       uint64_t end, const uint8_t *bytes)
{
    const uint8_t *nan = memchr(bytes, E8M0_NAN, end - first);

    if (nan)
        report_scale(w, tensor, first + (uint64_t)(nan - bytes));
}

static void check_f32(struct worker *w, const struct sl_checkpoint_tensor *tensor, uint64_t first,
                      uint64_t end, const uint8_t *bytes)
{
    for (uint64_t at = first; at < end;) {
        const size_t have = (at - tensor->offset_bytes) % 4;
        const size_t n = end - at < 4 - have ? end - at : 4 - have;
        uint32_t bits;

        memcpy(w->float_bytes + have, bytes + (at - first), n);
        at += n;
        memcpy(&bits, w->float_bytes, sizeof(bits));
        if (have + n == 4 && (bits & F32_EXPONENT) == F32_EXPONENT)
            report_scale(w, tensor, at - 4);
    }
}

static void check_scales(struct worker *w, const struct sl_read *piece)
{
    const uint64_t piece_end = piece->offset_bytes + piece->size_bytes;

    while (w->n_passed < w->job->n_scales) {
        const struct sl_checkpoint_tensor *tensor =
            w->run->scales[w->job->first_scale + w->n_passed];
        const uint64_t tensor_end = tensor->offset_bytes + tensor->info.size_bytes;
        const uint64_t first =
            tensor->offset_bytes > piece->offset_bytes ? tensor->offset_bytes : piece->offset_bytes;
        const uint64_t end = tensor_end < piece_end ? tensor_end : piece_end;
        const uint8_t *bytes = piece->dst + (first - piece->offset_bytes);

        if (first < end && tensor->info.dtype == SL_DTYPE_F32)
            check_f32(w, tensor, first, end, bytes);
        else if (first < end)
            check_e8m0(w, tensor, first, end, bytes);
        if (tensor_end > piece_end)
            return;
        w->n_passed++;
        w->scale_reported = false;
    }
}

static void compare_hash(struct worker *w)
{
    char found[SL_SHA256_HEX + 1], message[SL_ERR_MESSAGE_BYTES];

    sl_sha256_end(w->hash, found);
    if (strcmp(found, w->job->hex) == 0)
        return;
    snprintf(message, sizeof(message), "%s: its SHA-256 is %s, expected %s", w->job->path, found,
             w->job->hex);
    report(w->run, w->job->path, &w->job->bad, message);
}

/* ---- reading it --------------------------------------------------------------------------------
 */

static void queue_piece(struct worker *w)
{
    const uint64_t offset_bytes = w->head * PIECE_BYTES;
    const uint64_t left_bytes = w->job->size_bytes - offset_bytes;
    struct piece *piece = &w->pieces[w->head % PIECES_MAX];

    *piece = (struct piece){
        .read = {.offset_bytes = offset_bytes,
                 .size_bytes = left_bytes < PIECE_BYTES ? left_bytes : PIECE_BYTES,
                 .dst = w->buffers + w->head % PIECES_MAX * PIECE_BYTES,
                 .owner = piece,
                 .read_class = SL_READ_SCRUB},
    };
    sl_reader_queue(w->reader, &piece->read);
    w->head++;
}

/* Waits for the piece at the tail. A drive that does not answer ends the work, since its piece's
 * buffer can never be used again. */
static int wait_for_tail(struct worker *w)
{
    while (!w->pieces[w->tail % PIECES_MAX].landed) {
        struct sl_read *read = sl_reader_reap(w->reader, SL_READS_OF_EXPERTS, true);

        sl_assert(read); /* there is one in flight */
        if (read->late)
            return sl_reader_explain(w->reader, read, &w->err);
        ((struct piece *)read->owner)->landed = true;
    }
    return 0;
}

/* Counts bytes as done. Returns whether the work is to stop. */
static bool is_stopped(struct worker *w, uint64_t more_bytes)
{
    struct run *run = w->run;
    bool stopped;

    pthread_mutex_lock(&run->lock);
    run->done_bytes += more_bytes;
    stopped = run->rc < 0;
    pthread_mutex_unlock(&run->lock);
    return stopped;
}

/* A read that fails makes the file a bad one, and is no failure of the work. */
static int read_pieces(struct worker *w)
{
    const uint64_t n_pieces = (w->job->size_bytes + PIECE_BYTES - 1) / PIECE_BYTES;
    const bool has_hash = w->job->hex[0];
    bool failed = false, stopped = false;
    int rc = 0;

    while (rc == 0 && w->tail < (failed || stopped ? w->head : n_pieces)) {
        const struct sl_read *read = &w->pieces[w->tail % PIECES_MAX].read;

        while (!failed && !stopped && w->head < n_pieces && w->head - w->tail < PIECES_MAX)
            queue_piece(w);
        sl_reader_start(w->reader);
        rc = wait_for_tail(w);
        if (rc < 0)
            break;
        if (read->rc < 0 && !failed) {
            sl_reader_explain(w->reader, read, &w->err);
            report(w->run, w->job->path, &w->job->bad, w->err.message);
            failed = true;
        }
        if (!failed && has_hash)
            sl_sha256_add(w->hash, read->dst, read->size_bytes);
        if (!failed)
            check_scales(w, read);
        w->tail++;
        stopped |= is_stopped(w, read->size_bytes);
    }
    if (rc == 0 && !failed && !stopped && has_hash)
        compare_hash(w);
    return rc;
}

/* Returns false if the buffers must be left to the drive. */
static bool close_file(struct worker *w)
{
    bool drained = true;

    if (w->reader) {
        while (sl_reader_reap(w->reader, SL_READS_OF_EXPERTS, true))
            ; /* if it ended early */
        drained = sl_reader_drain(w->reader);
    }
    sl_reader_destroy(w->reader);
    w->reader = NULL;
    if (w->io)
        w->io->ops->close(w->io);
    w->io = NULL;
    return drained;
}

static int read_file(struct worker *w)
{
    const char *path = w->job->path;
    int rc;

    w->head = w->tail = 0;
    w->n_passed = 0;
    w->scale_reported = false;
    sl_sha256_reset(w->hash);
    if ((rc = w->run->o->open_io(&w->io, &path, 1, PIECES_MAX, &w->err)) < 0 ||
        (rc = sl_reader_create(&w->reader, w->io, NULL, &w->err)) < 0)
        return rc;
    return read_pieces(w);
}

static struct job *next_job(struct run *run)
{
    struct job *job = NULL;

    pthread_mutex_lock(&run->lock);
    if (run->rc == 0 && run->next_job < run->n_jobs)
        job = &run->jobs[run->next_job++];
    pthread_mutex_unlock(&run->lock);
    return job;
}

static void *work(void *context)
{
    struct worker *w = context;
    struct run *run = w->run;
    bool drained = true;
    int rc = sl_arena_map(&w->arena, PIECES_MAX * PIECE_BYTES, "buffers to verify in", &w->err);

    w->hash = sl_sha256_create();
    if (rc == 0 && !w->hash)
        rc = no_memory(run, &w->err);
    if (rc == 0)
        w->buffers = sl_arena_take_aligned(&w->arena, PIECES_MAX, PIECE_BYTES, SL_BLOCK_BYTES);
    while (rc == 0 && (w->job = next_job(run))) {
        rc = read_file(w);
        drained = close_file(w);
    }
    sl_sha256_destroy(w->hash);
    if (drained)
        sl_arena_fini(&w->arena);
    pthread_mutex_lock(&run->lock);
    if (rc < 0 && run->rc == 0) {
        run->rc = rc;
        run->err = w->err;
    }
    run->n_running--;
    pthread_cond_signal(&run->ended);
    pthread_mutex_unlock(&run->lock);
    return NULL;
}

/* Watches the threads and `stop` until the last one is done. */
static void watch(struct run *run)
{
    bool running = true;

    while (running) {
        const uint64_t until_ns = sl_clock_ns() + POLL_NS;
        const struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000),
                                       .tv_nsec = (long)(until_ns % 1000000000)};
        uint64_t done;

        pthread_mutex_lock(&run->lock);
        if (run->n_running > 0)
            pthread_cond_clockwait(&run->ended, &run->lock, CLOCK_MONOTONIC, &until);
        if (atomic_load(run->o->stop) && run->rc == 0)
            run->rc = sl_err_set(&run->err, -ECANCELED, "%s: stopped", run->o->folder);
        running = run->n_running > 0;
        done = run->done_bytes;
        pthread_mutex_unlock(&run->lock);
        run->o->on_progress(run->o->progress_context, done, run->total_bytes);
    }
}

static int read_all(struct run *run, struct sl_err *err)
{
    uint32_t n = run->o->n_threads < run->n_jobs ? run->o->n_threads : run->n_jobs, n_started = 0;
    struct worker *workers = calloc(THREADS_MAX, sizeof(*workers));
    pthread_t threads[THREADS_MAX];

    if (!workers)
        return no_memory(run, err);
    n = n < THREADS_MAX ? n : THREADS_MAX;
    run->n_running = n;
    for (; n_started < n; n_started++) {
        int error;

        workers[n_started].run = run;
        error = pthread_create(&threads[n_started], NULL, work, &workers[n_started]);
        if (error) {
            pthread_mutex_lock(&run->lock);
            run->n_running -= n - n_started;
            if (n_started == 0)
                run->rc =
                    sl_err_set(&run->err, -error, "cannot start a thread: %s", sl_strerror(error));
            pthread_mutex_unlock(&run->lock);
            break;
        }
    }
    watch(run);
    for (uint32_t i = 0; i < n_started; i++)
        pthread_join(threads[i], NULL);
    free(workers);
    return run->rc < 0 ? sl_err_set(err, run->rc, "%s", run->err.message) : 0;
}

/* ---- all of it ---------------------------------------------------------------------------------
 */

int sl_checkpoint_verify(const struct sl_checkpoint_verify_options *options,
                         struct sl_checkpoint_verify_result *ret_result, struct sl_err *err)
{
    struct run run = {
        .o = options, .ended = PTHREAD_COND_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER};
    int rc;

    *ret_result = (struct sl_checkpoint_verify_result){0};
    if ((rc = sl_checkpoint_survey(&run.checkpoint, options->folder, on_bad_shard, &run, err)) ==
            0 &&
        (rc = list_scales(&run, err)) == 0 && (rc = list_shards(&run, err)) == 0 &&
        (rc = list_others(&run, err)) == 0 && (rc = check_list(&run, err)) == 0) {
        if (run.n_jobs > 0)
            qsort(run.jobs, run.n_jobs, sizeof(*run.jobs), compare_jobs);
        rc = read_all(&run, err);
    }
    ret_result->n_files = run.n_jobs + run.n_unread;
    for (uint32_t i = 0; i < run.n_jobs; i++) {
        ret_result->n_hashed += run.jobs[i].hex[0] != '\0';
        free(run.jobs[i].path);
    }
    ret_result->n_bad = run.n_bad;
    ret_result->read_bytes = run.done_bytes;
    free(run.jobs);
    free(run.scales);
    sl_checkpoint_close(run.checkpoint);
    pthread_cond_destroy(&run.ended);
    pthread_mutex_destroy(&run.lock);
    return rc;
}
