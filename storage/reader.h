/* The reader: any run of bytes of a file, read whole or reported.
 *
 * A read is cut into aligned pieces of piece_bytes, as many in flight as the back end takes; urgent
 * reads go before the others. What the device leaves out is asked for again: the rest of a short
 * read, an interrupted piece; a piece that failed is tried once more. A read fails when a piece
 * failed twice, or when the file ends before the bytes wanted.
 *
 * One thread makes all calls. Nothing is allocated after create. */
#ifndef SL_STORAGE_READER_H
#define SL_STORAGE_READER_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"
#include "core/base/list.h"
#include "storage/io.h"

#define SL_READER_PIECE_BYTES (UINT32_C(1) << 20)

/* The caller's; the reader uses it from sl_reader_queue() until sl_reader_reap() returns it. */
struct sl_read {
    /* Set by the caller. The bytes may start and end anywhere. `dst` is aligned to
     * SL_IO_ALIGN_BYTES and receives the whole aligned run around them, sl_read_span_bytes() long:
     * the first byte wanted lands at dst + offset_bytes % SL_IO_ALIGN_BYTES. */
    uint64_t offset_bytes;
    uint64_t size_bytes; /* at least 1 */
    uint8_t *dst;
    void *owner; /* for the caller alone */
    uint32_t file_index;

    /* Set by the reader. */
    int rc;                     /* 0, or negative: see sl_reader_explain() */
    uint64_t fail_offset_bytes; /* in the file */

    /* The reader's own. */
    struct sl_link link;
    uint64_t cut_bytes; /* file offset up to which pieces have been cut */
    uint32_t n_pieces_out;
};

struct sl_reader_counters {
    uint64_t wanted_bytes; /* by reads queued */
    uint64_t read_bytes;   /* delivered by the device, repeats included */
    uint64_t n_reads;      /* asked of the back end */
    uint64_t n_retries;    /* of these, after a failure */
    uint64_t wait_ns;      /* spent in sl_reader_reap() with nothing to hand back */
};

struct sl_reader;

/* `io` is borrowed and used by the reader alone until destroy. piece_bytes is a multiple of
 * SL_IO_ALIGN_BYTES. Fails with -ENOMEM. */
int sl_reader_create(struct sl_reader **ret_reader, struct sl_io *io, uint32_t piece_bytes,
                     struct sl_err *err);

/* NULL is allowed. All reads have been reaped. */
void sl_reader_destroy(struct sl_reader *reader);

/* Bytes of `dst` that a read of these bytes fills at most. */
uint64_t sl_read_span_bytes(uint64_t offset_bytes, uint64_t size_bytes);

/* Queues a read; sl_reader_start() or sl_reader_reap() sets it going, so that several go to the
 * device in one call. */
void sl_reader_queue(struct sl_reader *reader, struct sl_read *read, bool urgent);
void sl_reader_start(struct sl_reader *reader);

/* Makes a read that is not yet reaped urgent. */
void sl_reader_promote(struct sl_reader *reader, struct sl_read *read);

/* A read that has ended, well or not, in any order. NULL if there is none now; with `wait`, only if
 * none is queued or in flight. */
struct sl_read *sl_reader_reap(struct sl_reader *reader, bool wait);

/* Fills `err` for a read that failed, with file, offset and cause, and returns its rc: -errno, or
 * -SL_ECORRUPT when the file ends too early. */
int sl_reader_explain(const struct sl_reader *reader, const struct sl_read *read,
                      struct sl_err *err);

struct sl_reader_counters sl_reader_counters(const struct sl_reader *reader);

#endif
