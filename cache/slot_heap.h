/* Slots ordered by a number, the smallest on top: a binary heap from which any slot can be taken.
 *
 * For replacement policies. Of equal numbers the lower id is above, so that the order depends on
 * what is in the heap and not on how it got there. The heap's memory and the table of positions,
 * which several heaps may share as long as a slot is in one of them, are the caller's. */
#ifndef SL_CACHE_SLOT_HEAP_H
#define SL_CACHE_SLOT_HEAP_H

#include <stdint.h>

#define SL_NO_SLOT UINT32_MAX

struct sl_slot_heap_item {
    double rank;
    uint32_t id; /* distinct within the heap */
    uint32_t slot_index;
};

struct sl_slot_heap {
    struct sl_slot_heap_item *items; /* as many as will ever be in it */
    uint32_t n;
};

/* positions: by slot index; the heap's own. */
void sl_slot_heap_push(struct sl_slot_heap *heap, uint32_t *positions,
                       struct sl_slot_heap_item item);

/* The slot on top, removed; SL_NO_SLOT from an empty heap. */
uint32_t sl_slot_heap_pop(struct sl_slot_heap *heap, uint32_t *positions);

/* The slot is in this heap. */
void sl_slot_heap_remove(struct sl_slot_heap *heap, uint32_t *positions, uint32_t slot_index);

#endif
