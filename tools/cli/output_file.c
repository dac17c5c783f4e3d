#include "tools/cli/output_file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NAMES_TRIED 100u     /* for the temporary file: a crash may have left some */
#define NAME_BYTES_MAX 200u  /* that the temporary name takes from the file's */
#define FOLDERS_DEPTH_MAX 3u /* of a model: a store's catalog is one level down */

/* The temporary files. They stay in the list, with `unfinished` false, since a signal handler may
 * be reading it at any time. */
static struct {
    char *path;
    atomic_bool unfinished;
} parts[SL_OUTPUT_FILES_MAX];
static uint32_t n_parts;
static const char *_Atomic part_folder; /* written by the command's thread */

#define REMOVALS_TRIED 100 /* other threads may make a file while the folder is emptied */

void sl_output_folder(const char *path)
{
    atomic_store(&part_folder, path);
}

/* Calls nothing but what signal handlers may call, which opendir() is not. */
static void remove_folder(const char *path)
{
    static _Alignas(struct dirent64) char entries[4096];

    for (int i = 0; i < REMOVALS_TRIED && rmdir(path) < 0 && errno == ENOTEMPTY; i++) {
        int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        long n;

        while ((n = syscall(SYS_getdents64, fd, entries, sizeof(entries))) > 0)
            for (long at = 0; at < n;) {
                const struct dirent64 *entry = (const void *)(entries + at);

                unlinkat(fd, entry->d_name, 0); /* refuses "." and ".." */
                at += entry->d_reclen;
            }
        close(fd);
    }
}

void sl_output_remove_unfinished(void)
{
    const char *folder = atomic_load(&part_folder);

    if (folder)
        remove_folder(folder);
    for (uint32_t i = 0; i < SL_OUTPUT_FILES_MAX; i++)
        if (atomic_load(&parts[i].unfinished))
            unlink(parts[i].path);
}

static int set_error(const struct sl_output_file *out, const char *what, int error,
                     struct sl_err *err)
{
    return sl_err_set(err, -error, "%s: cannot %s: %s", out->name, what, sl_strerror(error));
}

/* ---- opening -----------------------------------------------------------------------------------
 */

/* A write function for fopencookie(), which keeps the errno of a write that failed; a plain stream
 * would lose it. */
static ssize_t write_all(void *cookie, const char *bytes, size_t n_bytes)
{
    struct sl_output_file *out = cookie;
    size_t done = 0;

    while (done < n_bytes && out->write_errno == 0) {
        ssize_t n = write(out->fd, bytes + done, n_bytes - done);

        if (n >= 0)
            done += (size_t)n;
        else if (errno != EINTR)
            out->write_errno = errno;
    }
    return done < n_bytes ? 0 : (ssize_t)n_bytes;
}

/* Returns the descriptor that a name such as /dev/stdout stands for; -1 for any other name. The
 * descriptor is used because opening the name would begin at the file's start again. */
static int standard_descriptor(const char *name)
{
    unsigned number;
    char end;

    if (strcmp(name, "-") == 0 || strcmp(name, "/dev/stdout") == 0)
        return STDOUT_FILENO;
    if (strcmp(name, "/dev/stderr") == 0)
        return STDERR_FILENO;
    if (sscanf(name, "/dev/fd/%9u%c", &number, &end) == 1 ||
        sscanf(name, "/proc/self/fd/%9u%c", &number, &end) == 1)
        return (int)number;
    return -1;
}

/* Returns the path that the file will have, with no symbolic link in it. */
static char *resolve(const char *name, bool exists)
{
    char *copy, *folder, *path = NULL;
    const char *last = strrchr(name, '/');

    if (exists)
        return realpath(name, NULL);
    copy = strdup(name);
    folder = copy ? realpath(dirname(copy), NULL) : NULL;
    if (folder && asprintf(&path, "%s/%s", folder, last ? last + 1 : name) < 0)
        path = NULL;
    free(folder);
    free(copy);
    return path;
}

/* Returns the temporary file's descriptor, or -errno. */
static int open_part(struct sl_output_file *out)
{
    const char *last = strrchr(out->path, '/') + 1;
    int fd = -1;

    if (n_parts == SL_OUTPUT_FILES_MAX)
        return -EMFILE;
    for (uint32_t i = 0; fd < 0 && i < NAMES_TRIED; i++) {
        char *part;

        if (asprintf(&part, "%.*s%.*s.part.%d-%u", (int)(last - out->path), out->path,
                     (int)NAME_BYTES_MAX, last, (int)getpid(), i) < 0)
            return -ENOMEM;
        fd = open(part, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd < 0) {
            int error = errno;

            free(part);
            if (error != EEXIST)
                return -error;
            continue;
        }
        parts[n_parts].path = part;
        out->part_index = n_parts++;
        atomic_store(&parts[out->part_index].unfinished, true);
    }
    return fd < 0 ? -EEXIST : fd;
}

/* Returns a descriptor, or -errno. */
static int open_target(struct sl_output_file *out, const char *name)
{
    int number = standard_descriptor(name), fd;
    struct stat status;

    if (number >= 0) {
        fd = fcntl(number, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
        return fd < 0 ? -errno : fd;
    }
    out->exists = stat(name, &status) == 0;
    if (!out->exists && errno != ENOENT)
        return -errno;
    if (out->exists && S_ISDIR(status.st_mode))
        return -EISDIR;
    if (out->exists && !S_ISREG(status.st_mode)) {
        fd = open(name, O_WRONLY | O_CLOEXEC | O_NOCTTY);
        return fd < 0 ? -errno : fd;
    }
    /* A write-protected file is not replaced either. */
    if (out->exists && access(name, W_OK) < 0)
        return -errno;
    if (!out->exists && (!name[0] || name[strlen(name) - 1] == '/' || lstat(name, &status) == 0))
        return -ENOENT; /* no name, a folder, or a link that leads nowhere */
    out->path = resolve(name, out->exists);
    if (!out->path)
        return -errno;
    fd = open_part(out);
    if (fd >= 0 && out->exists) {
        out->device = status.st_dev;
        out->inode = status.st_ino;
        (void)fchmod(fd, status.st_mode & 07777); /* a wish: not all file systems have modes */
    }
    return fd;
}

int sl_output_open(struct sl_output_file *out, const char *name, struct sl_err *err)
{
    const cookie_io_functions_t functions = {.write = write_all};

    *out = (struct sl_output_file){.name = name};
    if (strcmp(name, "-") == 0) {
        fflush(stdout); /* earlier output comes first */
        out->name = "standard output";
    }
    out->fd = open_target(out, name);
    if (out->fd >= 0)
        out->stream = fopencookie(out, "w", functions);
    if (!out->stream) {
        int error = out->fd < 0 ? -out->fd : ENOMEM;

        if (out->fd >= 0 && out->path) {
            unlink(parts[out->part_index].path);
            atomic_store(&parts[out->part_index].unfinished, false);
        }
        if (out->fd >= 0)
            close(out->fd);
        free(out->path);
        out->path = NULL;
        return set_error(out, "write", error, err);
    }
    return 0;
}

/* ---- what must not be written to ---------------------------------------------------------------
 */

static bool is_target(const struct sl_output_file *out, const struct stat *status)
{
    return status->st_dev == out->device && status->st_ino == out->inode;
}

/* Returns whether the target is a file in the folder, symbolic links included. */
static bool holds_target(int parent, const char *name, const struct sl_output_file *out,
                         uint32_t depth)
{
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *entry;
    struct stat status;
    bool found = false;

    if (!dir) {
        if (fd >= 0)
            close(fd);
        return false;
    }
    while (!found && (entry = readdir(dir))) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
            fstatat(fd, entry->d_name, &status, 0) < 0)
            continue;
        if (S_ISDIR(status.st_mode))
            found = depth > 1 && holds_target(fd, entry->d_name, out, depth - 1);
        else
            found = is_target(out, &status);
    }
    closedir(dir);
    return found;
}

int sl_output_keep_off(const struct sl_output_file *out, const char *path, struct sl_err *err)
{
    struct stat status;
    int rc;

    if (!out->path || !out->exists)
        return 0;
    rc = strcmp(path, "-") == 0 ? fstat(STDIN_FILENO, &status) : stat(path, &status);
    if (rc < 0)
        return 0;
    if (S_ISDIR(status.st_mode) && holds_target(AT_FDCWD, path, out, FOLDERS_DEPTH_MAX))
        return sl_err_set(err, -EINVAL,
                          "%s: a file of %s, which is read; give the output another name",
                          out->name, path);
    if (!S_ISDIR(status.st_mode) && is_target(out, &status))
        return sl_err_set(err, -EINVAL, "%s: read as well; give the output another name",
                          out->name);
    return 0;
}

bool sl_output_same(const struct sl_output_file *a, const struct sl_output_file *b)
{
    return a->path && b->path && strcmp(a->path, b->path) == 0;
}

/* ---- the end -----------------------------------------------------------------------------------
 */

/* Syncs the folder, without which the new name may be lost. A file system that cannot sync folders
 * is no error. */
static void sync_folder(const char *path)
{
    char *copy = strdup(path);
    int fd = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
    free(copy);
}

static int finish(struct sl_output_file *out)
{
    if (fclose(out->stream) != 0 && out->write_errno == 0)
        out->write_errno = errno ? errno : EIO;
    out->stream = NULL;
    if (out->write_errno)
        return -out->write_errno;
    if (!out->path)
        return 0;
    if (fsync(out->fd) < 0 && errno != EINVAL) /* a file system without it */
        return -errno;
    return rename(parts[out->part_index].path, out->path) < 0 ? -errno : 0;
}

static void fini(struct sl_output_file *out)
{
    if (out->path)
        atomic_store(&parts[out->part_index].unfinished, false);
    close(out->fd);
    free(out->path);
    out->path = NULL;
}

int sl_output_commit(struct sl_output_file *out, struct sl_err *err)
{
    int rc = finish(out);

    if (rc < 0) {
        set_error(out, "write", -rc, err);
        if (out->path)
            unlink(parts[out->part_index].path);
    } else if (out->path) {
        sync_folder(out->path);
    }
    fini(out);
    return rc;
}

void sl_output_discard(struct sl_output_file *out)
{
    if (!out->stream)
        return;
    fclose(out->stream);
    out->stream = NULL;
    if (out->path)
        unlink(parts[out->part_index].path);
    fini(out);
}
