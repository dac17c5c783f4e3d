#include "daemon/batch/results_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/file.h"

#define COPY_BYTES (1u << 20)

void sl_results_init(struct sl_results_file *r, struct sl_file_writer *writer, const char *path,
                     uint64_t kept_bytes)
{
    *r = (struct sl_results_file){
        .writer = writer, .path = path, .file = -1, .read_fd = -1, .kept_bytes = kept_bytes};
}

static void close_file(struct sl_results_file *r)
{
    if (r->file >= 0)
        r->writer->ops->close(r->writer, r->file);
    if (r->read_fd >= 0)
        close(r->read_fd);
    r->file = r->read_fd = -1;
}

void sl_results_fini(struct sl_results_file *r)
{
    if (!r->writer)
        return;
    close_file(r);
    sl_bytes_fini(&r->lines);
}

/* ---- opening -----------------------------------------------------------------------------------
 */

static int check_kept(const struct sl_results_file *r, struct sl_err *err)
{
    struct stat status;

    if (stat(r->path, &status) < 0) {
        if (errno == ENOENT && r->kept_bytes == 0)
            return 0;
        if (errno == ENOENT)
            return sl_err_set(err, -ENOENT,
                              "%s: the results are gone, though the journal has %llu bytes of them",
                              r->path, (unsigned long long)r->kept_bytes);
        return sl_err_set(err, -errno, "%s: %s", r->path, sl_strerror(errno));
    }
    if (!S_ISREG(status.st_mode))
        return sl_err_set(err, -SL_EFORMAT, "%s: results go to a regular file", r->path);
    if ((uint64_t)status.st_size < r->kept_bytes)
        return sl_err_set(err, -SL_ECORRUPT,
                          "%s: somebody has cut the results: %llu bytes, but the journal has %llu",
                          r->path, (unsigned long long)status.st_size,
                          (unsigned long long)r->kept_bytes);
    return (uint64_t)status.st_size > r->kept_bytes;
}

static int open_file(struct sl_results_file *r, struct sl_err *err)
{
    int rc = r->writer->ops->open_kept(r->writer, r->path, &r->file);

    if (rc < 0) {
        r->file = -1;
        return sl_write_error(err, rc, r->path, "write the results");
    }
    r->read_fd = open(r->path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    rc = r->read_fd < 0 ? sl_err_set(err, -errno, "%s: %s", r->path, sl_strerror(errno)) : 0;
    if (rc == 0)
        rc = sl_write_name(r->writer, r->path, err);
    if (rc < 0)
        close_file(r);
    return rc;
}

static int cut(const struct sl_results_file *r, struct sl_err *err)
{
    int rc = r->writer->ops->cut(r->writer, r->path, r->kept_bytes);

    return rc < 0 ? sl_write_error(err, rc, r->path, "cut the results") : 0;
}

int sl_results_open(struct sl_results_file *r, struct sl_err *err)
{
    int rc;

    if (r->file >= 0)
        return 0;
    rc = check_kept(r, err);
    if (rc > 0)
        rc = cut(r, err);
    return rc < 0 ? rc : open_file(r, err);
}

/* ---- writing -----------------------------------------------------------------------------------
 */

static int copy_kept(struct sl_results_file *r, int from, struct sl_err *err)
{
    char *block = malloc(COPY_BYTES);
    int rc = block ? 0 : -ENOMEM;

    for (uint64_t at = 0; rc == 0 && at < r->kept_bytes;) {
        const uint64_t left = r->kept_bytes - at;
        const int64_t n = sl_file_read_at(from, block, left < COPY_BYTES ? left : COPY_BYTES, at);

        rc = n > 0 ? r->writer->ops->write(r->writer, r->file, at, block, (uint64_t)n)
                   : (n < 0 ? (int)n : -EIO);
        at += n > 0 ? (uint64_t)n : 0;
    }
    free(block);
    return rc < 0 ? sl_write_error(err, rc, r->path, "write the results again") : 0;
}

/* The file that was removed is still there while it is open. */
static int restore(struct sl_results_file *r, struct sl_err *err)
{
    struct sl_results_file gone = *r;
    int rc;

    if (access(r->path, F_OK) == 0)
        return sl_err_set(err, -ESTALE, "%s: another file has taken the place of the results",
                          r->path);
    r->file = r->read_fd = -1;
    rc = open_file(r, err);
    if (rc == 0)
        rc = copy_kept(r, gone.read_fd, err);
    if (rc == 0) {
        close_file(&gone);
        return 0;
    }
    if (r->file >= 0) {
        close_file(r);
        r->writer->ops->remove(r->writer, r->path); /* the next attempt makes it again */
    }
    r->file = gone.file;
    r->read_fd = gone.read_fd;
    return rc;
}

int sl_results_write(struct sl_results_file *r, bool *ret_restored, struct sl_err *err)
{
    int rc = sl_results_open(r, err);

    *ret_restored = false;
    if (rc < 0)
        return rc;
    if (r->lines.out_of_memory)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", r->path);
    if (r->writer->ops->leads(r->writer, r->path, r->file) == -ESTALE) {
        rc = restore(r, err);
        *ret_restored = rc == 0;
    }
    if (rc == 0 && r->lines.length > 0) {
        rc = r->writer->ops->write(r->writer, r->file, r->kept_bytes, r->lines.data,
                                   r->lines.length);
        if (rc < 0)
            sl_write_error(err, rc, r->path, "write the results");
    }
    if (rc == 0) {
        rc = r->writer->ops->sync(r->writer, r->file);
        if (rc < 0)
            sl_write_error(err, rc, r->path, "sync the results");
    }
    if (rc < 0) /* half a line is of no use to whoever reads along */
        r->writer->ops->cut(r->writer, r->path, r->kept_bytes);
    return rc;
}

void sl_results_keep(struct sl_results_file *r)
{
    r->kept_bytes += r->lines.length;
    sl_bytes_clear(&r->lines);
}
