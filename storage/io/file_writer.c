/* The writer for real files; its file numbers are descriptors. */
#include "storage/io/file_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/size.h"
#include "storage/io/plain_file.h"

static int make_folder(struct sl_file_writer *writer, const char *path)
{
    (void)writer;
    return mkdir(path, 0777) == 0 || errno == EEXIST ? 0 : -errno;
}

static int make_private_folder(struct sl_file_writer *writer, const char *path)
{
    (void)writer;
    return mkdir(path, 0700) == 0 || errno == EEXIST ? 0 : -errno;
}

static int sync_folder(struct sl_file_writer *writer, const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc;

    (void)writer;
    if (fd < 0)
        return -errno;
    rc = fsync(fd) == 0 ? 0 : -errno;
    close(fd);
    return rc;
}

/* Without a lock, two packers that begin at the same time with the same folder for their parts
 * would both write to the file. */
static int lock_file(int fd)
{
    struct stat status;
    int rc;

    if (fstat(fd, &status) == 0 && !S_ISREG(status.st_mode))
        errno = EINVAL;
    else if (flock(fd, LOCK_EX | LOCK_NB) == 0)
        return fd;
    rc = errno == EWOULDBLOCK ? -EBUSY : -errno;
    close(fd);
    return rc;
}

static int open_bulk(const char *path, mode_t mode)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, mode);

    fd = fd < 0 ? -errno : lock_file(fd);
    if (fd >= 0)
        sl_file_set_direct(fd, SL_BLOCK_BYTES);
    return fd;
}

/* O_EXCL makes a new file, because an old one may have another name elsewhere and would change
 * there, too. */
static int open_new(const char *path, mode_t mode)
{
    int fd;

    if (unlink(path) < 0 && errno != ENOENT)
        return -errno;
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
    return fd < 0 ? -errno : fd;
}

static int open_with_mode(const char *path, bool bulk, mode_t mode, int *ret_file)
{
    int fd = bulk ? open_bulk(path, mode) : open_new(path, mode);

    if (fd < 0)
        return fd;
    *ret_file = fd;
    return 0;
}

static int open_file(struct sl_file_writer *writer, const char *path, bool bulk, int *ret_file)
{
    (void)writer;
    return open_with_mode(path, bulk, 0666, ret_file);
}

static int open_private(struct sl_file_writer *writer, const char *path, bool bulk, int *ret_file)
{
    (void)writer;
    return open_with_mode(path, bulk, 0600, ret_file);
}

static int open_kept_with_mode(const char *path, mode_t mode, int *ret_file)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, mode);

    if (fd < 0)
        return -errno;
    *ret_file = fd;
    return 0;
}

static int open_kept(struct sl_file_writer *writer, const char *path, int *ret_file)
{
    (void)writer;
    return open_kept_with_mode(path, 0666, ret_file);
}

static int open_kept_private(struct sl_file_writer *writer, const char *path, int *ret_file)
{
    (void)writer;
    return open_kept_with_mode(path, 0600, ret_file);
}

static int write_file(struct sl_file_writer *writer, int file, uint64_t offset_bytes,
                      const void *data, uint64_t size_bytes)
{
    (void)writer;
    return sl_file_write_at(file, data, size_bytes, offset_bytes);
}

static int sync_file(struct sl_file_writer *writer, int file)
{
    (void)writer;
    return fdatasync(file) == 0 ? 0 : -errno;
}

static void close_file(struct sl_file_writer *writer, int file)
{
    (void)writer;
    close(file); /* what matters has been synced */
}

static int rename_file(struct sl_file_writer *writer, const char *from, const char *to)
{
    (void)writer;
    return rename(from, to) == 0 ? 0 : -errno;
}

static int leads(struct sl_file_writer *writer, const char *path, int file)
{
    (void)writer;
    return sl_plain_file_leads(path, file, false) ? 0 : -ESTALE;
}

static int remove_file(struct sl_file_writer *writer, const char *path)
{
    (void)writer;
    return unlink(path) == 0 ? 0 : -errno;
}

static int cut_file(struct sl_file_writer *writer, const char *path, uint64_t size_bytes)
{
    int fd = open(path, O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    int rc;

    (void)writer;
    if (fd < 0)
        return -errno;
    rc = ftruncate(fd, (off_t)size_bytes) == 0 ? 0 : -errno;
    close(fd);
    return rc;
}

struct sl_file_writer *sl_file_writer(void)
{
    static const struct sl_file_writer_ops ops = {
        .make_folder = make_folder,
        .sync_folder = sync_folder,
        .open = open_file,
        .open_kept = open_kept,
        .write = write_file,
        .sync = sync_file,
        .close = close_file,
        .rename = rename_file,
        .leads = leads,
        .remove = remove_file,
        .cut = cut_file,
    };
    static struct sl_file_writer writer = {&ops};

    return &writer;
}

struct sl_file_writer *sl_file_writer_private(void)
{
    static const struct sl_file_writer_ops ops = {
        .make_folder = make_private_folder,
        .sync_folder = sync_folder,
        .open = open_private,
        .open_kept = open_kept_private,
        .write = write_file,
        .sync = sync_file,
        .close = close_file,
        .rename = rename_file,
        .leads = leads,
        .remove = remove_file,
        .cut = cut_file,
    };
    static struct sl_file_writer writer = {&ops};

    return &writer;
}

/* ---- over any of them -------------------------------------------------------------------------
 */

int sl_write_error(struct sl_err *err, int rc, const char *path, const char *what)
{
    if (rc == -ELOOP)
        return sl_file_link_error(path, err);
    if (rc == -EBUSY)
        return sl_err_set(err, rc, "%s: another process is writing to this file", path);
    if (rc == -ESTALE)
        return sl_err_set(
            err, rc,
            "%s: moved, replaced or removed while the store was written; nothing more "
            "is done, and what is not packed yet is still in the source",
            path);
    return sl_err_set(err, rc, "%s: cannot %s: %s", path, what, sl_strerror(rc));
}

static int write_new(struct sl_file_writer *writer, const char *path, const void *bytes,
                     size_t size_bytes, struct sl_err *err)
{
    int file, rc = writer->ops->open(writer, path, false, &file);

    if (rc < 0)
        return sl_write_error(err, rc, path, "create");
    rc = writer->ops->write(writer, file, 0, bytes, size_bytes);
    if (rc == 0)
        rc = writer->ops->sync(writer, file);
    writer->ops->close(writer, file);
    return rc < 0 ? sl_write_error(err, rc, path, "write") : 0;
}

int sl_write_small(struct sl_file_writer *writer, const char *path, const void *bytes,
                   size_t size_bytes, struct sl_err *err)
{
    char *new_path;
    int rc;

    if (asprintf(&new_path, "%s" SL_WRITE_NEW, path) < 0)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", path);
    rc = write_new(writer, new_path, bytes, size_bytes, err);
    if (rc == 0 && (rc = writer->ops->rename(writer, new_path, path)) < 0)
        sl_write_error(err, rc, path, "write");
    free(new_path);
    return rc;
}

int sl_write_name(struct sl_file_writer *writer, const char *path, struct sl_err *err)
{
    const char *name = strrchr(path, '/');
    char *folder = name ? strndup(path, (size_t)(name - path)) : strdup(".");
    int rc;

    if (!folder)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", path);
    rc = writer->ops->sync_folder(writer, folder[0] ? folder : "/");
    if (rc < 0)
        sl_write_error(err, rc, folder, "sync");
    free(folder);
    return rc;
}
