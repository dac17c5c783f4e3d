#include "tests/crash_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/file.h"
#include "storage/io/plain_file.h"
#include "tests/io_fault.h"

#define PATH_BYTES 512
#define FILES_MAX 48
#define NAMES_MAX 32
#define RENAMES_MAX 4
#define WRITES_MAX 256
#define CUTS_MAX 8
#define SECTOR_BYTES 512u

/* A write that was not synced, and what was there before. */
struct unsynced {
    uint8_t *old;
    uint64_t offset_bytes, size_bytes;
    int file;
};

/* A file that was cut, and what was behind the cut. Never synced. */
struct cut {
    char path[PATH_BYTES];
    uint8_t *tail;
    uint64_t at_bytes, size_bytes;
};

struct file {
    char path[PATH_BYTES];
    uint64_t synced_bytes; /* its size when it was synced last */
    int fd;                /* kept until the writer closes; -1 if there is none */
};

/* A name that was given to a file and not synced, and what had it before. */
struct renamed {
    char from[PATH_BYTES], to[PATH_BYTES];
    char *old; /* NULL if there was none */
    size_t old_bytes;
};

struct crash_writer {
    struct sl_file_writer writer; /* first */
    pthread_mutex_t lock;         /* guards the rest in calls of the writer */
    uint64_t random, nth, count;
    int fail_code;
    bool dead;
    struct file files[FILES_MAX];
    int n_files;
    char names[NAMES_MAX][PATH_BYTES]; /* made, and their folders not synced since */
    int n_names;
    struct renamed renames[RENAMES_MAX];
    int n_renames;
    struct unsynced writes[WRITES_MAX];
    int n_writes;
    struct cut cuts[CUTS_MAX];
    int n_cuts;
};

static struct crash_writer *of(struct sl_file_writer *writer)
{
    return (struct crash_writer *)(void *)writer;
}

static uint64_t below(struct crash_writer *w, uint64_t limit)
{
    return io_fault_random(&w->random) % limit;
}

/* Counts a call. Returns 0, 1 for the one in which the power goes, or what it fails with. */
static int step(struct crash_writer *w)
{
    if (w->dead)
        return -EIO;
    if (++w->count != w->nth)
        return 0;
    if (w->fail_code < 0)
        return w->fail_code;
    w->dead = true;
    return 1;
}

static uint64_t size_of(const struct file *file)
{
    struct stat status;

    sl_assert(fstat(file->fd, &status) == 0);
    return (uint64_t)status.st_size;
}

static void name_made(struct crash_writer *w, const char *path)
{
    sl_assert(w->n_names < NAMES_MAX);
    sl_assert(snprintf(w->names[w->n_names++], PATH_BYTES, "%s", path) < PATH_BYTES);
}

static int make_folder(struct sl_file_writer *writer, const char *path)
{
    struct crash_writer *w = of(writer);
    int rc = step(w);

    if (rc < 0)
        return rc;
    if (mkdir(path, 0777) < 0 && errno != EEXIST)
        return -errno;
    return rc ? -EIO : 0;
}

static bool is_in(const char *path, const char *folder)
{
    size_t length = (size_t)(strrchr(path, '/') - path);

    return strlen(folder) == length && strncmp(path, folder, length) == 0;
}

static int sync_folder(struct sl_file_writer *writer, const char *path)
{
    struct crash_writer *w = of(writer);
    int rc = step(w), kept = 0;

    if (rc)
        return rc < 0 ? rc : -EIO;
    for (int i = 0; i < w->n_names; i++) {
        if (!is_in(w->names[i], path))
            memmove(w->names[kept++], w->names[i], PATH_BYTES);
    }
    w->n_names = kept;
    kept = 0;
    for (int i = 0; i < w->n_renames; i++) {
        if (is_in(w->renames[i].to, path))
            free(w->renames[i].old);
        else
            w->renames[kept++] = w->renames[i];
    }
    w->n_renames = kept;
    return 0;
}

static int open_either(struct sl_file_writer *writer, const char *path, bool keeps, int *ret_file)
{
    struct crash_writer *w = of(writer);
    bool is_new = !keeps || access(path, F_OK) != 0;
    struct file *file = &w->files[w->n_files];
    int rc = step(w);

    if (rc < 0)
        return rc;
    sl_assert(w->n_files < FILES_MAX);
    if (!keeps)
        unlink(path);
    file->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | (keeps ? 0 : O_EXCL), 0666);
    if (file->fd < 0)
        return -errno;
    sl_assert(snprintf(file->path, PATH_BYTES, "%s", path) < PATH_BYTES);
    file->synced_bytes = size_of(file);
    if (is_new)
        name_made(w, path);
    *ret_file = w->n_files++;
    return rc ? -EIO : 0;
}

static int open_file(struct sl_file_writer *writer, const char *path, bool bulk, int *ret_file)
{
    return open_either(writer, path, bulk, ret_file);
}

static int open_kept(struct sl_file_writer *writer, const char *path, int *ret_file)
{
    return open_either(writer, path, true, ret_file);
}

static int write_file(struct sl_file_writer *writer, int number, uint64_t offset_bytes,
                      const void *data, uint64_t size_bytes)
{
    struct crash_writer *w = of(writer);
    struct file *file = &w->files[number];
    struct unsynced *entry = &w->writes[w->n_writes];
    int rc = step(w);

    if (rc < 0 && rc != w->fail_code)
        return rc;
    if (rc < 0)
        size_bytes /= 2;
    sl_assert(w->n_writes < WRITES_MAX);
    *entry = (struct unsynced){calloc(1, size_bytes), offset_bytes, size_bytes, number};
    sl_assert(entry->old);
    w->n_writes++;
    sl_assert(pread(file->fd, entry->old, size_bytes, (off_t)offset_bytes) >= 0);
    sl_assert(pwrite(file->fd, data, size_bytes, (off_t)offset_bytes) == (ssize_t)size_bytes);
    return rc > 0 ? -EIO : rc;
}

static int sync_file(struct sl_file_writer *writer, int number)
{
    struct crash_writer *w = of(writer);
    int rc = step(w), kept = 0;

    if (rc)
        return rc < 0 ? rc : -EIO;
    for (int i = 0; i < w->n_writes; i++) {
        if (w->writes[i].file == number)
            free(w->writes[i].old);
        else
            w->writes[kept++] = w->writes[i];
    }
    w->n_writes = kept;
    kept = 0;
    for (int i = 0; i < w->n_cuts; i++) {
        if (strcmp(w->cuts[i].path, w->files[number].path) == 0)
            free(w->cuts[i].tail);
        else
            w->cuts[kept++] = w->cuts[i];
    }
    w->n_cuts = kept;
    w->files[number].synced_bytes = size_of(&w->files[number]);
    return 0;
}

static void close_file(struct sl_file_writer *writer, int number)
{
    (void)writer;
    (void)number; /* closing does not sync: what is remembered of it stays */
}

/* A catalog's file is LMDB's: what is in it is on disk. */
static int rename_file(struct sl_file_writer *writer, const char *from, const char *to)
{
    struct crash_writer *w = of(writer);
    struct renamed *entry = &w->renames[w->n_renames];
    int rc = step(w);

    if (rc < 0)
        return rc;
    sl_assert(w->n_renames < RENAMES_MAX);
    *entry = (struct renamed){.old = NULL};
    sl_assert(snprintf(entry->from, PATH_BYTES, "%s", from) < PATH_BYTES);
    sl_assert(snprintf(entry->to, PATH_BYTES, "%s", to) < PATH_BYTES);
    if (access(to, F_OK) == 0)
        sl_assert(sl_file_read_all(to, UINT64_C(1) << 30, &entry->old, &entry->old_bytes, NULL) ==
                  0);
    if (rename(from, to) < 0)
        return -errno;
    w->n_renames++;
    return rc ? -EIO : 0;
}

static int leads(struct sl_file_writer *writer, const char *path, int number)
{
    struct crash_writer *w = of(writer);
    int rc = step(w);

    if (rc)
        return rc < 0 ? rc : -EIO;
    return sl_plain_file_leads(path, w->files[number].fd, false) ? 0 : -ESTALE;
}

/* A name that was removed may be there again after a crash; nobody may depend on that, so here the
 * removal lasts. */
static int remove_file(struct sl_file_writer *writer, const char *path)
{
    int rc = step(of(writer));

    if (rc < 0)
        return rc;
    if (unlink(path) < 0)
        return -errno;
    return rc ? -EIO : 0;
}

static int cut_file(struct sl_file_writer *writer, const char *path, uint64_t size_bytes)
{
    struct crash_writer *w = of(writer);
    struct cut *cut = &w->cuts[w->n_cuts];
    int fd, rc = step(w);
    struct stat status;

    if (rc < 0)
        return rc;
    fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    sl_assert(w->n_cuts < CUTS_MAX && fstat(fd, &status) == 0);
    sl_assert(size_bytes < (uint64_t)status.st_size);
    sl_assert(snprintf(cut->path, PATH_BYTES, "%s", path) < PATH_BYTES);
    cut->at_bytes = size_bytes;
    cut->size_bytes = (uint64_t)status.st_size - size_bytes;
    cut->tail = malloc(cut->size_bytes);
    sl_assert(cut->tail &&
              pread(fd, cut->tail, cut->size_bytes, (off_t)size_bytes) == (ssize_t)cut->size_bytes);
    sl_assert(ftruncate(fd, (off_t)size_bytes) == 0);
    close(fd);
    w->n_cuts++;
    return rc ? -EIO : 0;
}

/* ---- for any thread ----------------------------------------------------------------------------
 */

#define LOCKED(operation, parameters, arguments)                                                   \
    static int locked_##operation parameters                                                       \
    {                                                                                              \
        int rc;                                                                                    \
                                                                                                   \
        pthread_mutex_lock(&of(writer)->lock);                                                     \
        rc = operation arguments;                                                                  \
        pthread_mutex_unlock(&of(writer)->lock);                                                   \
        return rc;                                                                                 \
    }

LOCKED(make_folder, (struct sl_file_writer * writer, const char *path), (writer, path))
LOCKED(sync_folder, (struct sl_file_writer * writer, const char *path), (writer, path))
LOCKED(open_file, (struct sl_file_writer * writer, const char *path, bool bulk, int *ret_file),
       (writer, path, bulk, ret_file))
LOCKED(open_kept, (struct sl_file_writer * writer, const char *path, int *ret_file),
       (writer, path, ret_file))
LOCKED(write_file,
       (struct sl_file_writer * writer, int file, uint64_t offset_bytes, const void *data,
        uint64_t size_bytes),
       (writer, file, offset_bytes, data, size_bytes))
LOCKED(sync_file, (struct sl_file_writer * writer, int file), (writer, file))
LOCKED(rename_file, (struct sl_file_writer * writer, const char *from, const char *to),
       (writer, from, to))
LOCKED(leads, (struct sl_file_writer * writer, const char *path, int file), (writer, path, file))
LOCKED(remove_file, (struct sl_file_writer * writer, const char *path), (writer, path))
LOCKED(cut_file, (struct sl_file_writer * writer, const char *path, uint64_t size_bytes),
       (writer, path, size_bytes))

struct crash_writer *crash_writer_open(uint64_t seed, uint64_t nth, int fail_code)
{
    static const struct sl_file_writer_ops ops = {
        .make_folder = locked_make_folder,
        .sync_folder = locked_sync_folder,
        .open = locked_open_file,
        .open_kept = locked_open_kept,
        .write = locked_write_file,
        .sync = locked_sync_file,
        .close = close_file,
        .rename = locked_rename_file,
        .leads = locked_leads,
        .remove = locked_remove_file,
        .cut = locked_cut_file,
    };
    struct crash_writer *w = calloc(1, sizeof(*w));

    sl_assert(w);
    pthread_mutex_init(&w->lock, NULL);
    w->writer.ops = &ops;
    w->random = seed;
    w->nth = nth;
    w->fail_code = fail_code;
    return w;
}

uint64_t crash_writer_count(const struct crash_writer *writer)
{
    return writer->count;
}

struct sl_file_writer *crash_writer_ops(struct crash_writer *writer)
{
    return &writer->writer;
}

/* Now and then a write is lost or kept as a whole, else sector by sector. */
static void tear(struct crash_writer *w, const struct unsynced *entry)
{
    uint64_t lost_percent = below(w, 3) * 50;

    for (uint64_t at = 0; at < entry->size_bytes; at += SECTOR_BYTES) {
        uint64_t n = entry->size_bytes - at < SECTOR_BYTES ? entry->size_bytes - at : SECTOR_BYTES;

        if (below(w, 100) < lost_percent)
            sl_assert(pwrite(w->files[entry->file].fd, entry->old + at, n,
                             (off_t)(entry->offset_bytes + at)) == (ssize_t)n);
    }
}

static void resize(struct crash_writer *w, struct file *file)
{
    uint64_t size_bytes = size_of(file);

    if (size_bytes > file->synced_bytes && below(w, 2))
        sl_assert(ftruncate(file->fd, (off_t)(file->synced_bytes +
                                              below(w, size_bytes - file->synced_bytes + 1))) == 0);
}

/* The cut did not get to the disk, or by half: the file ends anywhere behind it. */
static void restore(struct crash_writer *w, const struct cut *cut)
{
    uint64_t n = cut->size_bytes - below(w, 2) * below(w, cut->size_bytes);
    int fd = open(cut->path, O_WRONLY | O_CLOEXEC);

    sl_assert(fd >= 0);
    sl_assert(pwrite(fd, cut->tail, n, (off_t)cut->at_bytes) == (ssize_t)n);
    close(fd);
}

/* The file has its earlier name, and the other name its earlier file. */
static void undo(const struct renamed *entry)
{
    sl_assert(rename(entry->to, entry->from) == 0);
    if (entry->old) {
        int fd = open(entry->to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);

        sl_assert(fd >= 0);
        sl_assert(write(fd, entry->old, entry->old_bytes) == (ssize_t)entry->old_bytes);
        close(fd);
    }
}

bool crash_writer_close(struct crash_writer *w)
{
    bool dead = w->dead;

    for (int i = w->n_writes; i-- > 0;) {
        if (dead)
            tear(w, &w->writes[i]);
        free(w->writes[i].old);
    }
    for (int i = 0; i < w->n_files; i++) {
        if (dead)
            resize(w, &w->files[i]);
        close(w->files[i].fd);
    }
    for (int i = 0; i < w->n_cuts; i++) {
        if (dead && below(w, 2))
            restore(w, &w->cuts[i]);
        free(w->cuts[i].tail);
    }
    for (int i = w->n_renames; i-- > 0;) {
        if (dead && below(w, 2))
            undo(&w->renames[i]);
        free(w->renames[i].old);
    }
    for (int i = 0; dead && i < w->n_names; i++) {
        if (below(w, 2))
            unlink(w->names[i]);
    }
    pthread_mutex_destroy(&w->lock);
    free(w);
    return dead;
}
