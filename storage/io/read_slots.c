#include "storage/io/read_slots.h"

#include <errno.h>
#include <stdlib.h>

#include "core/base/assert.h"

int sl_read_slots_init(struct sl_read_slots *slots, struct sl_reader *reader,
                       enum sl_read_user user, uint32_t n_slots, struct sl_err *err)
{
    *slots = (struct sl_read_slots){.reader = reader,
                                    .user = user,
                                    .n_slots = n_slots,
                                    .slots = calloc(n_slots, sizeof(*slots->slots))};
    return slots->slots ? 0 : sl_err_set(err, -ENOMEM, "list of reads: out of memory");
}

void sl_read_slots_fini(struct sl_read_slots *slots)
{
    free(slots->slots);
    *slots = (struct sl_read_slots){0};
}

void sl_read_slots_begin(struct sl_read_slots *slots, uint32_t slot_index,
                         const struct sl_extent *extent, uint8_t *dst, bool urgent)
{
    struct sl_read_slot *slot = &slots->slots[slot_index];

    sl_assert(slot_index < slots->n_slots && !slot->busy && !slot->late);
    *slot = (struct sl_read_slot){.read = {.offset_bytes = extent->offset_bytes,
                                           .size_bytes = extent->size_bytes,
                                           .dst = dst,
                                           .owner = slot,
                                           .file_index = extent->file_index,
                                           .read_class = urgent ? SL_READ_DEMAND : SL_READ_AHEAD,
                                           .user = slots->user},
                                  .busy = true};
    sl_reader_queue(slots->reader, &slot->read);
}

void sl_read_slots_hurry(struct sl_read_slots *slots, uint32_t slot_index)
{
    struct sl_read_slot *slot = &slots->slots[slot_index];

    if (slot->busy && !slot->back && slot->read.read_class != SL_READ_DEMAND)
        sl_reader_set_class(slots->reader, &slot->read, SL_READ_DEMAND);
}

void sl_read_slots_cancel(struct sl_read_slots *slots, uint32_t slot_index)
{
    struct sl_read_slot *slot = &slots->slots[slot_index];

    if (slot->busy && !slot->back)
        sl_reader_cancel(slots->reader, &slot->read);
}

/* Takes in what the reader hands back: each read once, or twice if its drive was late. */
static bool reap(struct sl_read_slots *slots, bool wait)
{
    struct sl_read *read = sl_reader_reap(slots->reader, slots->user, wait);
    struct sl_read_slot *slot;

    if (!read)
        return false;
    slot = read->owner;
    slot->back = true;
    slot->late = read->late;
    return true;
}

void sl_read_slots_go_on(struct sl_read_slots *slots)
{
    while (reap(slots, false)) /* which sends off what was queued */
        ;
}

int sl_read_slots_end(struct sl_read_slots *slots, uint32_t slot_index, bool wait,
                      const uint8_t **ret_bytes, struct sl_err *err)
{
    struct sl_read_slot *slot = &slots->slots[slot_index];

    sl_assert(slot->busy);
    while (!slot->back)
        if (!reap(slots, wait) && !slot->back) {
            sl_assert(!wait); /* a read that is out comes back */
            return 0;
        }
    slot->busy = false;
    if (slot->read.rc == -ECANCELED)
        return sl_err_set(err, -ECANCELED, "not read any more");
    if (slot->read.rc < 0)
        return sl_reader_explain(slots->reader, &slot->read, err);
    *ret_bytes = slot->read.dst + slot->read.offset_bytes % SL_BLOCK_BYTES;
    return 1;
}

bool sl_read_slots_is_free(struct sl_read_slots *slots, uint32_t slot_index)
{
    const struct sl_read_slot *slot = &slots->slots[slot_index];

    while (slot->late && reap(slots, false)) /* its drive may have answered meanwhile */
        ;
    return !slot->busy && !slot->late;
}
