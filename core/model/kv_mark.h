/* Marks: places in a sequence that it can go back to, and where others can branch off.
 *
 * Entries, keys and ids are only appended, so all that a mark must keep is the rings as they were.
 * It holds their pages, and the sequence takes pages of its own as it overwrites them: a mark costs
 * a list of pages at once, and at most the rings (sl_kv_mark_measure()) as its sequence goes on.
 *
 *     sequence  ──────────●────────────────►      mark at ●: rewind() goes back to it, and
 *                         └────────────► fork     fork() begins there, sharing what lies before
 *
 * A mark belongs to its sequence and is good until that goes back to before it, or ends. */
#ifndef SL_MODEL_KV_MARK_H
#define SL_MODEL_KV_MARK_H

#include "core/model/kv_cache.h"

struct sl_kv_mark {
    uint32_t n_tokens, n_mtp_tokens, mtp_first;
    uint8_t ***pages; /* of each ring, [layer * SL_KV_RINGS + ring][page]; one block of memory */
    uint64_t table_bytes;
};

/* Bytes of the budget that a mark of a long sequence takes at most. */
uint64_t sl_kv_mark_measure(const struct sl_kv_layout *layout);

/* Takes a mark where the sequence is; no step has it, here and below. Fails with -SL_EBUDGET or
 * -ENOMEM. The caller calls sl_kv_mark_release(). */
int sl_kv_mark_take(struct sl_kv_mark *mark, const struct sl_kv_cache *kv, struct sl_err *err);

/* A zeroed mark is allowed. */
void sl_kv_mark_release(struct sl_kv_mark *mark, struct sl_kv_pool *pool);

/* The sequence is where it was when the mark was taken, and gives back what it had taken since. */
void sl_kv_mark_rewind(const struct sl_kv_mark *mark, struct sl_kv_cache *kv);

/* Makes `child` a sequence of up to capacity_tokens tokens that is where `parent` was at the mark.
 * They share what lies before it, and whoever writes to a page that both have copies it then. Fails
 * as sl_kv_cache_init(). The caller calls sl_kv_cache_fini(), before or after the parent's. */
int sl_kv_mark_fork(const struct sl_kv_mark *mark, const struct sl_kv_cache *parent,
                    uint32_t capacity_tokens, struct sl_kv_cache *child, struct sl_err *err);

/* The row that the token at `position` had in a ring when the mark was taken. */
static inline const uint8_t *sl_kv_mark_row(const struct sl_kv_mark *mark,
                                            const struct sl_kv_layout *layout, uint32_t layer_index,
                                            enum sl_kv_part ring, uint32_t position)
{
    const struct sl_kv_part_layout *part = &layout->parts[layer_index][ring];
    const uint32_t row = position % part->n_rows;

    return mark->pages[layer_index * SL_KV_RINGS + ring][row / part->items_per_page] +
           (size_t)(row % part->items_per_page) * part->item_bytes;
}

#endif
