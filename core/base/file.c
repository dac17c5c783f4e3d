#include "core/base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/size.h"

#define FIRST_CAPACITY_BYTES 65536u

/* ---- opening ----------------------------------------------------------------------------------
 */

int sl_file_link_error(const char *path, struct sl_err *err)
{
    return sl_err_set(err, -ELOOP, "%s: a symbolic link; those in a store are not followed", path);
}

/* O_NONBLOCK: a pipe that nobody writes to opens at once, too. */
static int open_anything(const char *path, int flags, struct stat *ret_status, struct sl_err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | flags);
    int rc = 0;

    if (fd < 0 && errno == ELOOP && flags & O_NOFOLLOW)
        return sl_file_link_error(path, err);
    if (fd < 0)
        return sl_err_set(err, -errno, "%s: cannot open: %s", path, sl_strerror(errno));
    if (fstat(fd, ret_status) < 0)
        rc = sl_err_set(err, -errno, "%s: cannot stat: %s", path, sl_strerror(errno));
    else if (S_ISDIR(ret_status->st_mode))
        rc = sl_err_set(err, -SL_EFORMAT, "%s: a folder, not a regular file", path);
    if (rc < 0) {
        close(fd);
        return rc;
    }
    return fd;
}

static int open_regular(const char *path, int flags, struct sl_err *err)
{
    struct stat status;
    int fd = open_anything(path, flags, &status, err);

    if (fd == -ENXIO) /* a socket */
        return sl_err_set(err, -SL_EFORMAT, "%s: not a regular file", path);
    if (fd < 0)
        return fd;
    if (!S_ISREG(status.st_mode)) {
        close(fd);
        return sl_err_set(err, -SL_EFORMAT, "%s: not a regular file", path);
    }
    /* With O_NONBLOCK io_uring fails reads for which it would have to wait. */
    if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK) < 0) {
        int rc = sl_err_set(err, -errno, "%s: cannot open: %s", path, sl_strerror(errno));

        close(fd);
        return rc;
    }
    return fd;
}

int sl_file_open(const char *path, struct sl_err *err)
{
    return open_regular(path, 0, err);
}

int sl_file_open_nofollow(const char *path, struct sl_err *err)
{
    return open_regular(path, O_NOFOLLOW, err);
}

int sl_input_open(const char *path, struct sl_err *err)
{
    struct stat status;
    int fd;

    if (strcmp(path, "-") != 0)
        return open_anything(path, 0, &status, err);
    fd = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    return fd < 0 ? sl_err_set(err, -errno, "standard input: %s", sl_strerror(errno)) : fd;
}

/* ---- reading whole files ----------------------------------------------------------------------
 */

/* A pipe that nobody has opened for writing yet would read as one that has ended; poll() waits for
 * the first writer. On regular files it returns at once. */
int64_t sl_input_read(int fd, void *dst, size_t size_bytes)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    ssize_t got;

    do {
        got = poll(&wait, 1, -1);
        if (got >= 0)
            got = read(fd, dst, size_bytes);
    } while (got < 0 && (errno == EINTR || errno == EAGAIN));
    return got < 0 ? -errno : got;
}

static int read_descriptor(int fd, const char *path, uint64_t size_max_bytes, char **ret_text,
                           size_t *ret_length, struct sl_err *err)
{
    char size_text[SL_SIZE_TEXT_BYTES];
    size_t capacity = FIRST_CAPACITY_BYTES, length = 0;
    char *text = malloc(capacity + 1), *larger;
    int64_t got;
    int rc;

    if (!text)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", path);
    for (;;) {
        got = sl_input_read(fd, text + length, capacity - length);
        if (got < 0) {
            rc = sl_err_set(err, (int)got, "%s: cannot read: %s", path, sl_strerror((int)got));
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
    int fd = sl_file_open(path, err);
    int rc;

    if (fd < 0)
        return fd;
    rc = read_descriptor(fd, path, size_max_bytes, ret_text, ret_length, err);
    close(fd);
    return rc;
}

int sl_input_read_all(const char *path, uint64_t size_max_bytes, char **ret_text,
                      size_t *ret_length, struct sl_err *err)
{
    int fd = sl_input_open(path, err);
    int rc;

    if (fd < 0)
        return fd;
    rc = read_descriptor(fd, strcmp(path, "-") == 0 ? "standard input" : path, size_max_bytes,
                         ret_text, ret_length, err);
    close(fd);
    return rc;
}

/* ---- parts of large ones ----------------------------------------------------------------------
 */

int sl_file_check_fetched(const void *start, size_t length, const char *where, struct sl_err *err)
{
    /* A pointer begins "version https://git-lfs.github.com/spec/v1": no JSON begins so, nor
     * tensors. */
    static const char pointer[] = "version ";

    if (length < strlen(pointer) || memcmp(start, pointer, strlen(pointer)) != 0)
        return 0;
    return sl_err_set(err, -SL_EFORMAT,
                      "%s: a Git LFS pointer in place of the file; \"git lfs pull\" in its folder "
                      "fetches it",
                      where);
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

int sl_file_write_at(int fd, const void *data, uint64_t size_bytes, uint64_t offset_bytes)
{
    uint64_t done_bytes = 0;

    while (done_bytes < size_bytes) {
        ssize_t n = pwrite(fd, (const char *)data + done_bytes, size_bytes - done_bytes,
                           (off_t)(offset_bytes + done_bytes));

        if (n < 0 && (errno == EINTR || (errno == EINVAL && sl_file_clear_direct(fd))))
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        done_bytes += (uint64_t)n;
    }
    return 0;
}

/* ---- past the page cache ----------------------------------------------------------------------
 */

/* The system tells: 1 if blocks suit, 0 if not; -1 if it does not tell. */
static int told_direct(int fd, uint64_t block_bytes)
{
#ifdef STATX_DIOALIGN
    struct statx status;

    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) == 0 &&
        status.stx_mask & STATX_DIOALIGN)
        return status.stx_dio_offset_align > 0 && block_bytes % status.stx_dio_offset_align == 0 &&
               status.stx_dio_mem_align > 0 && block_bytes % status.stx_dio_mem_align == 0;
#endif
    (void)fd;
    (void)block_bytes;
    return -1;
}

/* Direct I/O that is not aligned as the drive needs it fails with EINVAL. */
static bool try_direct(int fd, uint64_t block_bytes)
{
    void *block = aligned_alloc(block_bytes, block_bytes);
    bool suits = block && (pread(fd, block, block_bytes, 0) >= 0 || errno != EINVAL);

    free(block);
    return suits;
}

bool sl_file_set_direct(int fd, uint64_t block_bytes)
{
    int told = told_direct(fd, block_bytes);
    int flags = fcntl(fd, F_GETFL);

    if (told == 0 || flags < 0 || fcntl(fd, F_SETFL, flags | O_DIRECT) < 0)
        return false;
    if (told > 0 || (flags & O_ACCMODE) == O_WRONLY || try_direct(fd, block_bytes))
        return true;
    sl_file_clear_direct(fd);
    return false;
}

bool sl_file_clear_direct(int fd)
{
    int flags = fcntl(fd, F_GETFL);

    return flags >= 0 && flags & O_DIRECT && fcntl(fd, F_SETFL, flags & ~O_DIRECT) == 0;
}
