/* The reader: reads any run of bytes of a file completely, or reports why it cannot.
 *
 * A read is cut into aligned pieces of piece_bytes. Each drive has its own queues and its own depth
 * (the number of pieces that may be in flight on it), so no drive waits for another. The rest of a
 * short read and an interrupted piece are asked for again; a piece that failed is tried once more.
 * A read fails when a piece failed twice, or when the file ends before the bytes wanted.
 *
 * Classes: a drive takes pieces of a class only while it has nothing to do of the classes before
 * it, queued or in flight; within a class, reads are cut in the order in which they were queued.
 * Prefetch and scrub together have no more than half of the depth in flight (at least one piece),
 * so that a demand that comes then finds room at the device. Under unending demand they stand
 * still. Predicted reads are cut into small pieces, of which only as many are in flight as
 * sl_reader_set_predicted_bytes() allows: a demand waits for them. Reading ahead has the whole
 * depth: all of it will be needed, so a demand that waits for some of it loses nothing.
 *
 * Users: the expert cache, the dense weights and KV caches on disk share a reader, so that the
 * classes hold among all reads of a drive. Each gets its own reads back, and has its own counters.
 *
 * Time: a piece in flight for longer than stall_ns is counted. After SL_READER_DEADLINE_STALLS
 * times that its read fails with -ETIMEDOUT; all others go on. The device may still write to the
 * destination of such a read, for io_uring cannot take a piece back from it. So it is handed back
 * twice: first with `late` set, when its owner learns that it failed but touches neither it nor
 * dst; and again, with `late` cleared, when the device has let go. Until then its pieces count
 * against the drive's depth; what they leave no room for fails as well. A drive that never answers
 * keeps them for good: see sl_reader_drain().
 *
 * One thread makes all calls. Nothing is allocated after create. */
#ifndef SL_STORAGE_IO_READER_H
#define SL_STORAGE_IO_READER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"
#include "core/base/list.h"
#include "core/base/size.h"
#include "storage/io/io.h"

#define SL_READER_PIECE_BYTES (UINT32_C(1) << 20)
#define SL_READER_DEPTH 32u
#define SL_READER_PREDICTED_PIECE_BYTES (UINT32_C(1) << 18)
#define SL_READER_STALL_NS (30 * UINT64_C(1000000000))
#define SL_READER_DEADLINE_STALLS 4u

enum sl_read_class {
    SL_READ_DEMAND,    /* somebody waits for it */
    SL_READ_AHEAD,     /* dense weights and KV caches of the next layers: certain, and soon */
    SL_READ_PREFETCH,  /* likely to be wanted soon */
    SL_READ_PREDICTED, /* perhaps wanted soon */
    SL_READ_SCRUB,     /* checking what lies on the drive */
    SL_READ_CLASSES,
};

enum sl_read_user {
    SL_READS_OF_EXPERTS, /* and of everybody who has a reader to himself */
    SL_READS_OF_DENSE,
    SL_READS_OF_KV, /* pages of KV caches */
    SL_READ_USERS,
};

/* One read. The caller owns it; the reader uses it from sl_reader_queue() until sl_reader_reap()
 * returns it. */
struct sl_read {
    /* Set by the caller. The bytes may start and end anywhere. `dst` is aligned to
     * SL_BLOCK_BYTES and receives the whole aligned run around them, sl_aligned_run_bytes() long:
     * the first byte wanted lands at dst + offset_bytes % SL_BLOCK_BYTES. */
    uint64_t offset_bytes;
    uint64_t size_bytes; /* at least 1 */
    uint8_t *dst;
    void *owner; /* for the caller alone */
    uint32_t file_index;
    enum sl_read_class read_class; /* while it is queued, see
                                      sl_reader_set_class() */
    enum sl_read_user user;

    /* Set by the reader. */
    int rc;    /* 0, or negative: -ECANCELED, or what sl_reader_explain() tells about */
    bool late; /* handed back before the device has let go of dst; will be handed back again */
    uint64_t fail_offset_bytes; /* in the file */

    /* Used by the reader alone. */
    struct sl_link link;
    uint64_t cut_bytes; /* file offset up to which pieces have been cut */
    uint32_t n_pieces_out;
    bool ended;
};

struct sl_reader_counters {
    uint64_t wanted_bytes; /* by reads queued */
    uint64_t read_bytes;   /* delivered by the device, repeats included */
    uint64_t n_reads;      /* asked of the back end */
    uint64_t n_retries;    /* of these, after a failure */
    uint64_t n_stalls;     /* pieces found in flight for longer than stall_ns */
    uint64_t longest_ns;   /* of these, as far as it was seen; 0 if there was none */
    uint64_t wait_ns;      /* spent in sl_reader_reap() with nothing to hand back */
    uint64_t busy_ns;      /* in which there were reads that had not ended */
};

struct sl_reader;

/* Members that are 0 get the defaults above. */
struct sl_reader_options {
    uint32_t piece_bytes; /* a multiple of SL_BLOCK_BYTES */
    uint32_t depth;       /* of each drive; no more than the back end allows is used */
    uint64_t stall_ns;
    uint64_t (*clock_ns)(void *context); /* for tests; NULL: sl_clock_ns() */
    void *clock_context;
};

/* `io` is borrowed and used by the reader alone until destroy. `options` may be NULL. Fails with
 * -ENOMEM. */
int sl_reader_create(struct sl_reader **ret_reader, struct sl_io *io,
                     const struct sl_reader_options *options, struct sl_err *err);

/* NULL is allowed. Before, all reads must have been reaped, late ones twice, or sl_reader_drain()
 * must have been called. */
void sl_reader_destroy(struct sl_reader *reader);

/* Returns how many bytes of `dst` a read of these bytes fills at most. */
uint64_t sl_aligned_run_bytes(uint64_t offset_bytes, uint64_t size_bytes);

/* Queues a read; sl_reader_start() or sl_reader_reap() sets it going, so that several go to the
 * device in one call. */
void sl_reader_queue(struct sl_reader *reader, struct sl_read *read);
void sl_reader_start(struct sl_reader *reader);

/* How many bytes of predicted reads may be in flight on each drive from now on; it is one piece in
 * any case, and before the first call, and half of the depth at most. */
void sl_reader_set_predicted_bytes(struct sl_reader *reader, uint64_t size_bytes);

/* Moves a read that is not yet reaped into another class, behind the reads queued there: up when
 * somebody comes to wait for it, down when nobody waits any more. */
void sl_reader_set_class(struct sl_reader *reader, struct sl_read *read,
                         enum sl_read_class read_class);

/* Cancels a read that is not yet reaped: no more pieces of it go to the device. It is reaped as
 * soon as its pieces in flight are back, with -ECANCELED unless it had already ended. */
void sl_reader_cancel(struct sl_reader *reader, struct sl_read *read);

/* Returns how many bytes of a queued read have been asked of the device. */
static inline uint64_t sl_read_begun_bytes(const struct sl_read *read)
{
    return read->cut_bytes - read->offset_bytes / SL_BLOCK_BYTES * SL_BLOCK_BYTES;
}

/* Returns one of the user's reads that has ended, successfully or not, in any order. Without
 * `wait`, returns NULL if there is none now; with it, only if none of his is queued or in flight,
 * late ones not counted. */
struct sl_read *sl_reader_reap(struct sl_reader *reader, enum sl_read_user user, bool wait);

/* Returns how many reads of demand and prefetch are queued or in flight on the drive with this
 * st_dev; NULL if the reader reads from no such drive. Any thread may look at it, as long as the
 * reader is there: whoever writes to that drive gives way to them. */
const atomic_uint *sl_reader_ahead(const struct sl_reader *reader, uint64_t device);

/* To be called before memory that reads wrote to is freed; no read but late ones may be queued or
 * in flight, of any user. Takes back the late reads that the devices have let go of, without
 * handing them out, and does not wait for the others. Returns whether none is left. Otherwise a
 * device may still write at any time: the memory that reads went to must never be freed or used
 * again, and the reader and its sl_io may only be closed. */
bool sl_reader_drain(struct sl_reader *reader);

/* attach() names memory that most reads will go to; hold() lets the system hold parts of it or let
 * go of them: see sl_io_ops. attach() drains first and returns -EBUSY if a device may still write
 * to memory. Otherwise both return 0, or negative where the system cannot do it; reads then work as
 * before. */
int sl_reader_attach(struct sl_reader *reader, void *base, uint64_t size_bytes,
                     uint64_t part_bytes);
int sl_reader_hold(struct sl_reader *reader, uint32_t part, bool hold);

/* Fills `err` for a read that failed, with file, drive, offset and cause, and returns its rc:
 * -errno, -ETIMEDOUT for the deadline, or -SL_ECORRUPT when the file ends too early. Not for one
 * that was cancelled, unless it is late: that is told as the deadline. */
int sl_reader_explain(const struct sl_reader *reader, const struct sl_read *read,
                      struct sl_err *err);

/* One of the drives that the reader reads from, and what it has delivered to all users. */
struct sl_reader_drive {
    const char *path; /* of a file on it; the reader's */
    uint64_t read_bytes;
};
uint32_t sl_reader_drive_count(const struct sl_reader *reader);
struct sl_reader_drive sl_reader_drive(const struct sl_reader *reader, uint32_t index);

/* Returns the time of the clock that the reader goes by. */
uint64_t sl_reader_clock_ns(const struct sl_reader *reader);

/* Counts the reads of one user. */
struct sl_reader_counters sl_reader_counters(const struct sl_reader *reader,
                                             enum sl_read_user user);

#endif
