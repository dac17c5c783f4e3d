#include "core/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/base/size.h"

#define FIRST_CAPACITY_BYTES 65536u

static int read_descriptor(int fd, const char *path, uint64_t size_max_bytes, char **ret_text,
                           size_t *ret_length, struct sl_err *err)
{
    char size_text[SL_SIZE_TEXT_BYTES];
    size_t capacity = FIRST_CAPACITY_BYTES, length = 0;
    char *text = malloc(capacity + 1), *larger;
    ssize_t got;
    int rc;

    if (!text)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", path);
    for (;;) {
        got = read(fd, text + length, capacity - length);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            rc = sl_err_set(err, -errno, "%s: cannot read: %s", path, sl_strerror(errno));
            goto fail;
        }
        if (got == 0)
            break;
        length += (size_t)got;
        if (length > size_max_bytes) {
            rc = sl_err_set(err, -SL_EFORMAT, "%s: larger than the %s that such a file may have",
                            path, sl_size_format(size_max_bytes, size_text));
            goto fail;
        }
        if (length < capacity)
            continue;
        capacity *= 2;
        larger = realloc(text, capacity + 1);
        if (!larger) {
            rc = sl_err_set(err, -ENOMEM, "%s: out of memory", path);
            goto fail;
        }
        text = larger;
    }
    text[length] = '\0';
    *ret_text = text;
    *ret_length = length;
    return 0;
fail:
    free(text);
    return rc;
}

int sl_file_read_all(const char *path, uint64_t size_max_bytes, char **ret_text, size_t *ret_length,
                     struct sl_err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int rc;

    if (fd < 0)
        return sl_err_set(err, -errno, "%s: cannot open: %s", path, sl_strerror(errno));
    rc = read_descriptor(fd, path, size_max_bytes, ret_text, ret_length, err);
    close(fd);
    return rc;
}

int64_t sl_file_read_at(int fd, void *dst, uint64_t size_bytes, uint64_t offset_bytes)
{
    uint64_t done_bytes = 0;

    while (done_bytes < size_bytes) {
        ssize_t got = pread(fd, (char *)dst + done_bytes, size_bytes - done_bytes,
                            (off_t)(offset_bytes + done_bytes));

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            break;
        done_bytes += (uint64_t)got;
    }
    return (int64_t)done_bytes;
}
