/* The slab: the memory of the expert cache's slots, which costs nothing until it is used.
 *
 * It is mapped at start, inside the budget, and locked; its pages come when something is first
 * loaded into a slot. Then the threads that will read each part of an expert touch it, so that it
 * lies in their node's memory, and the system is told to hold it for reads. This happens in parts
 * of one slot, or of a few where there are more slots than parts that can be held.
 *
 * Pages are huge, unless the system must first move others' memory together for them, which can
 * take many times as long as reading what they are wanted for. Then small ones are taken for a
 * while, longer each time; such a part is tried again when it comes to be loaded into once more.
 *
 *     empty ──fill──► huge
 *       ▲  └──fill──► small ──fill, some time later──► huge
 *       └──empty──────┴──────────────────────────────────┘
 *
 * Private to the expert cache. The thread that drives the forward pass makes all calls. */
#ifndef SL_CACHE_SLAB_H
#define SL_CACHE_SLAB_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/arena.h"
#include "core/base/pool.h"
#include "storage/experts/expert_map.h"
#include "storage/io/reader.h"

enum sl_slab_pages { SL_SLAB_EMPTY, SL_SLAB_SMALL, SL_SLAB_HUGE };

struct sl_slab {
    const struct sl_expert_shape *shape;
    struct sl_pool *pool;
    struct sl_reader *reader; /* NULL: nothing is read to the slab itself */
    struct sl_arena *arena;   /* that it lies in */
    uint8_t *base;            /* (n_slots, slot_bytes) */
    uint64_t slot_bytes;
    uint32_t n_slots;
    uint32_t part_slots; /* of one part; the last one may have fewer */
    uint8_t *parts;      /* (parts) enum sl_slab_pages */
    bool held;           /* the system has held all parts that were filled so far */

    /* Huge pages that come slowly: see above. */
    uint64_t huge_page_ns_max; /* processor time that one may take to come */
    uint32_t n_small_left;     /* fills to do with small pages before the next trial */
    uint32_t n_small_last;     /* how many there were to be after the last one; 0: it was quick */
};

/* Takes memory from an arena for n_slots, with a zeroed slab. With a mapped one, start() follows;
 * it borrows all three. */
void sl_slab_carve(struct sl_slab *slab, struct sl_arena *arena, uint64_t slot_bytes,
                   uint32_t n_slots);
void sl_slab_start(struct sl_slab *slab, const struct sl_expert_shape *shape, struct sl_pool *pool,
                   struct sl_reader *reader);

static inline uint8_t *sl_slab_slot(const struct sl_slab *slab, uint32_t slot_index)
{
    return slab->base + slot_index * slab->slot_bytes;
}

/* Before something is loaded into a slot in which nothing is, or is of use: sees to its memory.
 * Where that comes for the first time a job of the pool runs, and true is returned. */
bool sl_slab_fill(struct sl_slab *slab, uint32_t slot_index);

/* Gives the memory of slots first_slot and up back to the system, parts that others reach into
 * aside. Nothing is in these slots, and no read to them is out. */
void sl_slab_empty(struct sl_slab *slab, uint32_t first_slot);

#endif
