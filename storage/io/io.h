/* Asynchronous reads from a fixed set of files: one table of operations, several back ends.
 *
 * A back end neither cuts nor repeats reads: each ends as pread() would, with the number of bytes
 * (always possibly fewer than asked for) or -errno, in any order. Cutting, reissuing and retrying
 * are the reader's work (storage/io/reader.h).
 *
 * Files are read with O_DIRECT: offset, size and destination of every read are multiples of
 * SL_BLOCK_BYTES. Where the file system has no direct I/O, or the drive wants larger blocks, the
 * file is read through the page cache, and `direct` says so. One thread makes all calls on an
 * sl_io.
 *
 * Files are grouped by the drive that they lie on, as far as the system tells (st_dev). One back
 * end serves all drives, and none waits for another: each may have its own share of reads out. */
#ifndef SL_STORAGE_IO_IO_H
#define SL_STORAGE_IO_IO_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"

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

#define SL_IO_FOREVER UINT64_MAX

/* Limits of the kernel on registered memory. */
#define SL_IO_PARTS_MAX (UINT32_C(1) << 14)
#define SL_IO_PART_BYTES_MAX (UINT64_C(1) << 30)

struct sl_io;

struct sl_io_ops {
    /* Starts n reads; returns at once. With those not yet reaped at most reads_max may be out.
     * Reads that the system cannot take now are kept, and reap() starts them. */
    void (*submit)(struct sl_io *io, const struct sl_io_read *reads, uint32_t n_reads);

    /* Hands back up to n_max finished reads and returns how many. If there is none but some are
     * out, waits for one: up to wait_ns or a little less. With SL_IO_FOREVER, returns 0 only when
     * no read is out. */
    uint32_t (*reap)(struct sl_io *io, uint64_t wait_ns, struct sl_io_completion *completions,
                     uint32_t n_max);

    /* Names memory that most reads will go to, in parts of part_bytes of which the last may be
     * shorter, in place of what was named before; none if size_bytes is 0. At most
     * SL_IO_PARTS_MAX parts of SL_IO_PART_BYTES_MAX. No page of it is touched. No read is out. On
     * failure, such as by kernels before 5.19, all works as before. NULL in back ends that have no
     * use for it; then hold() is, too. */
    int (*attach)(struct sl_io *io, void *base, uint64_t size_bytes, uint64_t part_bytes);

    /* Lets the system hold a part's pages, which spares it the lookup for each read that stays
     * inside the part. Until they are let go of again, and no read to them is out, they must not be
     * given back to it (MADV_DONTNEED and the like), or reads would land in pages that nobody sees.
     * On failure, which is -ENOMEM where the limit of locked memory is too low (ulimit -l), all
     * works as before. A part that is not held may be let go of. */
    int (*hold)(struct sl_io *io, uint32_t part, bool hold);

    /* Never waits. Reads that have not been reaped by now stay with the drive for good, and so does
     * the back end's memory for them; their dst must never be freed or used again. */
    void (*close)(struct sl_io *io);
};

struct sl_io_file {
    int fd;
    char *path;
    uint64_t device; /* st_dev */
    uint32_t drive_index;
};

/* First member of every back end. */
struct sl_io {
    const struct sl_io_ops *ops;
    struct sl_io_file *files;
    uint32_t n_files;
    uint32_t n_drives;
    uint32_t reads_max; /* that may be out at once, all drives together; at least one for each */
    bool direct;        /* all files are open with O_DIRECT */
};

/* Opens n_files files (paths are copied) for at most `depth` reads at once on each drive; the back
 * end may allow fewer. On failure `err` names the file, or says that io_uring is not to be had. The
 * caller ends with ops->close(). */
typedef int sl_io_open_fn(struct sl_io **ret_io, const char *const *paths, uint32_t n_files,
                          uint32_t depth, struct sl_err *err);

sl_io_open_fn sl_io_uring_open;   /* reads progress in the kernel; 4,096 at most */
sl_io_open_fn sl_io_threads_open; /* pread(), in as many threads as reads may be out; 64 at most */

/* Returns the back end for this machine: io_uring, or threads where the system does not allow
 * io_uring, as in most containers. `ret_why`, which may be NULL, then gets the reason, otherwise
 * the code 0. */
sl_io_open_fn *sl_io_choose(struct sl_err *ret_why);

/* For back ends: fills files, n_files, n_drives and direct of a zeroed `io`, and sets reads_max to
 * `depth` for each drive, but at most reads_max_limit in all. After a failure the caller still
 * calls sl_io_files_close(), which takes a zeroed `io` too. */
int sl_io_files_open(struct sl_io *io, const char *const *paths, uint32_t n_files, uint32_t depth,
                     uint32_t reads_max_limit, struct sl_err *err);
void sl_io_files_close(struct sl_io *io);

#endif
