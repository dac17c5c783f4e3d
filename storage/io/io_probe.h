/* How fast drives deliver through the reader, and which pieces and depth they need for it.
 *
 * Both functions read through readers of their own: no read is in flight on `io` before the call,
 * nor after it unless a drive did not answer. */
#ifndef SL_STORAGE_IO_IO_PROBE_H
#define SL_STORAGE_IO_IO_PROBE_H

#include "storage/io/extent.h"
#include "storage/io/reader.h"

struct sl_io_trial {
    struct sl_reader_options options;
    uint64_t ramp_ns; /* reads for so long before it counts */
    uint64_t ns;      /* after so long, what is not in flight is given up, and what is waited for */
    uint32_t first_extent;
};

struct sl_io_timing {
    uint64_t read_bytes; /* delivered by the drives */
    uint64_t ns;
    uint32_t next_extent; /* where the next trial may begin, so that no cache knows what it reads */
};

/* Reads `extents` one after the other, from the start again after the last, into `area`: as many at
 * once as fit there, which is at least one. Fails as reads do, and with -ENOMEM. After -ETIMEDOUT a
 * drive may still write to `area`, which must never be freed or used again, and `io` is good for
 * nothing but close(). */
int sl_io_time(struct sl_io *io, const struct sl_io_trial *trial, const struct sl_extent *extents,
               uint32_t n_extents, uint8_t *area, uint64_t area_bytes,
               struct sl_io_timing *ret_timing, struct sl_err *err);

struct sl_io_probe {
    uint32_t piece_bytes;
    uint32_t depth;       /* of each drive */
    uint64_t bytes_per_s; /* of all drives together; 0 if nothing was measured */
};

/* Tries pieces and depths for about 0.3 s with random reads of all files, and gives those with the
 * fewest bytes in flight that reach nearly the best rate: a demand then waits least for what is in
 * flight already. Gives the reader's defaults, unmeasured, for files without O_DIRECT, which the
 * page cache would answer for, for files of less than 1 GiB in all, and where a read fails. Fails
 * with -ETIMEDOUT alone: a drive did not answer, and `io` is good for nothing but close().
 * `stall_ns` is as in struct sl_reader_options. */
int sl_io_probe(struct sl_io *io, uint64_t stall_ns, struct sl_io_probe *ret_probe,
                struct sl_err *err);

/* The largest depth that the probe tries; its back end must be opened with this depth. */
#define SL_IO_PROBE_DEPTH_MAX 32u

#endif
