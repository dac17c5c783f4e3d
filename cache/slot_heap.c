#include "cache/slot_heap.h"

#include <stdbool.h>

#include "core/base/assert.h"

static bool is_above(const struct sl_slot_heap_item *a, const struct sl_slot_heap_item *b)
{
    return a->rank < b->rank || (a->rank == b->rank && a->id < b->id);
}

static void put(struct sl_slot_heap *heap, uint32_t *positions, uint32_t at,
                struct sl_slot_heap_item item)
{
    heap->items[at] = item;
    positions[item.slot_index] = at;
}

/* Puts `item` where it belongs, from the hole at `at` upwards. */
static void rise(struct sl_slot_heap *heap, uint32_t *positions, uint32_t at,
                 struct sl_slot_heap_item item)
{
    while (at > 0 && is_above(&item, &heap->items[(at - 1) / 2])) {
        put(heap, positions, at, heap->items[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    put(heap, positions, at, item);
}

void sl_slot_heap_push(struct sl_slot_heap *heap, uint32_t *positions,
                       struct sl_slot_heap_item item)
{
    rise(heap, positions, heap->n++, item);
}

void sl_slot_heap_remove(struct sl_slot_heap *heap, uint32_t *positions, uint32_t slot_index)
{
    uint32_t at = positions[slot_index], child;
    struct sl_slot_heap_item last;

    sl_assert(at < heap->n && heap->items[at].slot_index == slot_index);
    last = heap->items[--heap->n];
    if (at == heap->n)
        return;
    /* The hole sinks to the bottom, and the last item rises from there. */
    while ((child = 2 * at + 1) < heap->n) {
        if (child + 1 < heap->n && is_above(&heap->items[child + 1], &heap->items[child]))
            child++;
        put(heap, positions, at, heap->items[child]);
        at = child;
    }
    rise(heap, positions, at, last);
}

uint32_t sl_slot_heap_pop(struct sl_slot_heap *heap, uint32_t *positions)
{
    uint32_t slot_index = heap->n > 0 ? heap->items[0].slot_index : SL_NO_SLOT;

    if (slot_index != SL_NO_SLOT)
        sl_slot_heap_remove(heap, positions, slot_index);
    return slot_index;
}
