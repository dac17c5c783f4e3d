#include "cache/slab.h"

#include "core/base/assert.h"
#include "core/base/size.h"
#include "core/kernels/r16.h"

/* About as long as drives of 1 GB/s take to read as much. To clear a huge page takes a tenth of it,
 * and more only on virtual machines, whose host must find the memory as well; to move others'
 * memory out of the way took up to 5 ms. */
#define HUGE_PAGE_NS_MAX UINT64_C(2000000)

/* Nor are huge pages slow that take no more than so many times as long as small ones. */
#define SLOW_FACTOR 3u

#define SMALL_PARTS_MIN 4u
#define SMALL_PARTS_MAX 4096u

static uint32_t part_count(const struct sl_slab *slab)
{
    return (slab->n_slots + slab->part_slots - 1) / slab->part_slots;
}

void sl_slab_carve(struct sl_slab *slab, struct sl_arena *arena, uint64_t slot_bytes,
                   uint32_t n_slots)
{
    slab->arena = arena;
    slab->slot_bytes = slot_bytes;
    slab->n_slots = n_slots;
    slab->part_slots = (n_slots + SL_IO_PARTS_MAX - 1) / SL_IO_PARTS_MAX;
    slab->base = sl_arena_take_aligned(arena, n_slots, slot_bytes, SL_BLOCK_BYTES);
    slab->parts = sl_arena_take(arena, part_count(slab), sizeof(*slab->parts));
}

void sl_slab_start(struct sl_slab *slab, const struct sl_expert_shape *shape, struct sl_pool *pool,
                   struct sl_reader *reader)
{
    slab->shape = shape;
    slab->pool = pool;
    slab->reader = reader;
    slab->huge_page_ns_max = HUGE_PAGE_NS_MAX;
    slab->held = true;
    if (reader)
        slab->held = sl_reader_attach(reader, slab->base, slab->n_slots * slab->slot_bytes,
                                      slab->part_slots * slab->slot_bytes) == 0;
}

/* Returns the processor time that it took. */
static uint64_t touch(const struct sl_slab *slab, uint32_t first_slot, uint32_t n_slots)
{
    uint64_t taken_ns = 0;

    for (int i = 0; i < SL_EXPERT_MATRICES; i++)
        taken_ns += sl_pool_first_touch(
            slab->pool,
            sl_slab_slot(slab, first_slot) + sl_expert_matrix_offset_bytes(slab->shape, i),
            sl_r16_tile_count(sl_expert_matrix_rows(slab->shape, i)),
            sl_expert_tile_bytes(slab->shape, i), n_slots, slab->slot_bytes);
    return taken_ns;
}

static void give_back(struct sl_slab *slab, uint32_t part, bool huge)
{
    const uint32_t first_slot = part * slab->part_slots, left = slab->n_slots - first_slot;

    if (slab->reader && slab->parts[part] != SL_SLAB_EMPTY)
        sl_reader_hold(slab->reader, part, false);
    sl_arena_give_back(slab->arena, sl_slab_slot(slab, first_slot),
                       (left < slab->part_slots ? left : slab->part_slots) * slab->slot_bytes,
                       huge);
    slab->parts[part] = SL_SLAB_EMPTY;
}

/* The cost of earlier pages decides which the next parts are filled with: huge ones are slow if
 * they take longer than they may, and small ones tell what memory costs here in any case. */
static void judge(struct sl_slab *slab, bool huge, uint64_t taken_ns, uint64_t bytes)
{
    const uint64_t page_ns = taken_ns / (bytes / SL_HUGE_PAGE_BYTES + 1);

    if (!huge) {
        if (slab->huge_page_ns_max < SLOW_FACTOR * page_ns)
            slab->huge_page_ns_max = SLOW_FACTOR * page_ns;
        return;
    }
    if (page_ns <= slab->huge_page_ns_max) {
        slab->n_small_last = 0;
        return;
    }
    slab->n_small_last = slab->n_small_last == 0                ? SMALL_PARTS_MIN
                         : slab->n_small_last < SMALL_PARTS_MAX ? 2 * slab->n_small_last
                                                                : SMALL_PARTS_MAX;
    slab->n_small_left = slab->n_small_last;
}

bool sl_slab_fill(struct sl_slab *slab, uint32_t slot_index)
{
    const uint32_t part = slot_index / slab->part_slots, first_slot = part * slab->part_slots;
    const uint32_t left = slab->n_slots - first_slot;
    const uint32_t n_slots = left < slab->part_slots ? left : slab->part_slots;
    const bool huge = slab->n_small_left == 0;
    uint64_t taken_ns;

    sl_assert(slot_index < slab->n_slots);
    /* Small pages can only be replaced where nothing else lies in the part. */
    if (slab->parts[part] == SL_SLAB_HUGE ||
        (slab->parts[part] == SL_SLAB_SMALL && slab->part_slots > 1))
        return false;
    slab->n_small_left -= !huge;
    if (slab->parts[part] == SL_SLAB_SMALL && !huge)
        return false;
    if (slab->parts[part] == SL_SLAB_SMALL || !huge)
        give_back(slab, part, huge);
    taken_ns = touch(slab, first_slot, n_slots);
    judge(slab, huge, taken_ns, n_slots * slab->slot_bytes);
    slab->parts[part] = huge ? SL_SLAB_HUGE : SL_SLAB_SMALL;
    if (slab->reader && slab->held)
        slab->held = sl_reader_hold(slab->reader, part, true) == 0;
    return true;
}

void sl_slab_empty(struct sl_slab *slab, uint32_t first_slot)
{
    for (uint32_t part = (first_slot + slab->part_slots - 1) / slab->part_slots;
         part < part_count(slab); part++)
        if (slab->parts[part] != SL_SLAB_EMPTY)
            give_back(slab, part, true);
}
