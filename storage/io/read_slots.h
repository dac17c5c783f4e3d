/* Reads by number, through a reader that others use too: each slot has one read at a time, which is
 * asked for when its owner needs it.
 *
 *     begin() ──► sl_reader_start() ──► end() ... ──► end()    free again, once is_free() says so
 *
 * The thread that the reader belongs to makes all calls. */
#ifndef SL_STORAGE_IO_READ_SLOTS_H
#define SL_STORAGE_IO_READ_SLOTS_H

#include "storage/io/extent.h"
#include "storage/io/reader.h"

struct sl_read_slot {
    struct sl_read read;
    bool busy; /* its read has not ended */
    bool back; /* it has been reaped */
    bool late; /* it has ended, but a drive may still write to its dst */
};

struct sl_read_slots {
    struct sl_reader *reader; /* borrowed */
    enum sl_read_user user;   /* all reads of which are these */
    uint32_t n_slots;
    struct sl_read_slot *slots;
};

/* Fails with -ENOMEM. The caller calls fini(): when all reads have ended, but for those of late
 * drives; then sl_reader_drain() comes before it. */
int sl_read_slots_init(struct sl_read_slots *slots, struct sl_reader *reader,
                       enum sl_read_user user, uint32_t n_slots, struct sl_err *err);
void sl_read_slots_fini(struct sl_read_slots *slots); /* a zeroed one is allowed */

/* Queues a read into a free slot; `dst` as in struct sl_read. Somebody waits for what is urgent,
 * which is a demand; the rest is read ahead. */
void sl_read_slots_begin(struct sl_read_slots *slots, uint32_t slot, const struct sl_extent *extent,
                         uint8_t *dst, bool urgent);
void sl_read_slots_hurry(struct sl_read_slots *slots, uint32_t slot);
void sl_read_slots_cancel(struct sl_read_slots *slots, uint32_t slot);

/* Sends off what was queued, and takes in what has landed. */
void sl_read_slots_go_on(struct sl_read_slots *slots);

/* Returns 1 with the bytes, which lie in dst; or 0 while the read is under way, which with `wait`
 * does not happen. Fails with -ECANCELED, or as sl_reader_explain(). */
int sl_read_slots_end(struct sl_read_slots *slots, uint32_t slot, bool wait,
                      const uint8_t **ret_bytes, struct sl_err *err);

/* False while a drive that did not answer in time may still write to the dst of a read that has
 * ended. */
bool sl_read_slots_is_free(struct sl_read_slots *slots, uint32_t slot);

#endif
