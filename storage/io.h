/* Asynchronous reads from a fixed set of files: one table of operations, several back ends.
 *
 * A back end does what it is told and no more: a read ends as pread() would, with the number of
 * bytes (fewer than asked for is possible anywhere) or -errno, in any order. Cutting, reissuing
 * and retrying are the reader's (storage/reader.h).
 *
 * Files are opened with O_DIRECT: offset, size and destination of every read are multiples of
 * SL_IO_ALIGN_BYTES. Where the filesystem refuses O_DIRECT the file is opened without, and
 * `direct` says so. One thread makes all calls on an sl_io. */
#ifndef SL_STORAGE_IO_H
#define SL_STORAGE_IO_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"

#define SL_IO_ALIGN_BYTES UINT64_C(4096)

struct sl_io_read {
    uint64_t offset_bytes;
    void *dst; /* the caller's; the back end writes to it until the read is reaped */
    uint64_t tag;
    uint32_t size_bytes;
    uint32_t file_index;
};

struct sl_io_completion {
    uint64_t tag;
    int32_t result; /* bytes read, or -errno */
};

struct sl_io;

struct sl_io_ops {
    /* Starts n reads; returns at once. With those not yet reaped at most reads_max may be out.
     * What the system cannot take now is kept and started by reap(). */
    void (*submit)(struct sl_io *io, const struct sl_io_read *reads, uint32_t n_reads);

    /* Hands back up to n_max finished reads and returns how many. With `wait`, returns 0 only when
     * no read is out. */
    uint32_t (*reap)(struct sl_io *io, bool wait, struct sl_io_completion *completions,
                     uint32_t n_max);

    /* All reads have been reaped. */
    void (*close)(struct sl_io *io);
};

struct sl_io_file {
    int fd;
    char *path;
};

/* First member of every back end. */
struct sl_io {
    const struct sl_io_ops *ops;
    struct sl_io_file *files;
    uint32_t n_files;
    uint32_t reads_max; /* that may be out at once */
    bool direct;        /* all files are open with O_DIRECT */
};

/* Opens n_files files (paths are copied) for at most reads_max reads at once. On failure `err`
 * names the file, or says that io_uring is not to be had. The caller ends with ops->close(). */
typedef int sl_io_open_fn(struct sl_io **ret_io, const char *const *paths, uint32_t n_files,
                          uint32_t reads_max, struct sl_err *err);

sl_io_open_fn sl_io_uring_open;   /* reads progress in the kernel; reads_max up to 4,096 */
sl_io_open_fn sl_io_threads_open; /* pread() in a few threads of its own */

/* For back ends: fills files, n_files and direct of a zeroed `io`. On failure what was opened stays
 * in it, for sl_io_files_close(), which takes a zeroed `io` too. */
int sl_io_files_open(struct sl_io *io, const char *const *paths, uint32_t n_files,
                     struct sl_err *err);
void sl_io_files_close(struct sl_io *io);

#endif
