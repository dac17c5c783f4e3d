#include "storage/io/plain_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/size.h"

int sl_plain_file_check(const char *path, struct sl_err *err)
{
    struct stat status;

    if (lstat(path, &status) < 0)
        return sl_err_set(err, -errno, "%s: cannot open: %s", path, sl_strerror(errno));
    if (S_ISLNK(status.st_mode))
        return sl_file_link_error(path, err);
    return S_ISREG(status.st_mode) ? 0
                                   : sl_err_set(err, -SL_EFORMAT, "%s: not a regular file", path);
}

bool sl_plain_file_leads(const char *path, int fd, bool follow)
{
    struct stat found, opened;

    return fstat(fd, &opened) == 0 &&
           fstatat(AT_FDCWD, path, &found, follow ? 0 : AT_SYMLINK_NOFOLLOW) == 0 &&
           found.st_dev == opened.st_dev && found.st_ino == opened.st_ino;
}

static int read_descriptor(int fd, const char *path, uint64_t size_max_bytes, uint8_t **ret_bytes,
                           size_t *ret_size_bytes, struct sl_err *err)
{
    char size_text[SL_SIZE_TEXT_BYTES];
    struct stat status;
    uint8_t *bytes;
    int64_t got;

    if (fstat(fd, &status) < 0)
        return sl_err_set(err, -errno, "%s: cannot read: %s", path, sl_strerror(errno));
    if ((uint64_t)status.st_size > size_max_bytes)
        return sl_err_set(err, -SL_EFORMAT, "%s: larger than the %s that such a file may have",
                          path, sl_size_format(size_max_bytes, size_text));
    bytes = malloc((size_t)status.st_size + 1); /* + 1: it may be empty */
    if (!bytes)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", path);
    got = sl_file_read_at(fd, bytes, (uint64_t)status.st_size, 0);
    if (got < 0) {
        free(bytes);
        return sl_err_set(err, (int)got, "%s: cannot read: %s", path, sl_strerror((int)got));
    }
    *ret_bytes = bytes;
    *ret_size_bytes = (size_t)got;
    return 0;
}

int sl_plain_file_read(const char *path, uint64_t size_max_bytes, uint8_t **ret_bytes,
                       size_t *ret_size_bytes, struct sl_err *err)
{
    int fd = sl_file_open_nofollow(path, err);
    int rc;

    if (fd < 0)
        return fd;
    rc = read_descriptor(fd, path, size_max_bytes, ret_bytes, ret_size_bytes, err);
    close(fd);
    return rc;
}
