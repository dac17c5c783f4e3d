/* File numbers are descriptors. */
#include "storage/file_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/file.h"

static int make_folder(struct sl_file_writer *writer, const char *path)
{
    (void)writer;
    return mkdir(path, 0777) == 0 || errno == EEXIST ? 0 : -errno;
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

static int open_file(struct sl_file_writer *writer, const char *path, bool bulk, int *ret_file)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | (bulk ? 0 : O_TRUNC), 0666);

    (void)writer;
    if (fd < 0)
        return -errno;
    if (bulk)
        sl_file_set_direct(fd, SL_WRITE_ALIGN_BYTES);
    *ret_file = fd;
    return 0;
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

static int cut_file(struct sl_file_writer *writer, const char *path, uint64_t size_bytes)
{
    (void)writer;
    return truncate(path, (off_t)size_bytes) == 0 ? 0 : -errno;
}

struct sl_file_writer *sl_file_writer(void)
{
    static const struct sl_file_writer_ops ops = {
        .make_folder = make_folder,
        .sync_folder = sync_folder,
        .open = open_file,
        .write = write_file,
        .sync = sync_file,
        .close = close_file,
        .cut = cut_file,
    };
    static struct sl_file_writer writer = {&ops};

    return &writer;
}
