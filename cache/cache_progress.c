/* Begins loads and takes in those that have ended: what every call into the cache does first, and
 * what goes on beside the forward pass. */
#include "cache/cache_internal.h"
#include "cache/expert_cache.h"
#include "core/base/assert.h"
#include "core/model/phase.h"

/* Sees to the slot's memory, which takes a job of the pool where that is new. Returns whether it
 * did: then the drives should get something to do before the next slot is seen to. */
static bool fill_slot(struct sl_expert_cache *cache, uint32_t slot_index)
{
    struct sl_pool *pool = cache->loader.pool;
    enum sl_phase phase = sl_pool_phase(pool, SL_PHASE_REPACK);
    bool filled;

    filled = sl_slab_fill(&cache->slab, slot_index);
    sl_pool_phase(pool, phase);
    return filled;
}

static enum sl_read_class class_of(const struct sl_expert_cache *cache, enum sl_load_kind kind)
{
    if (kind == SL_LOAD_DEMAND)
        return SL_READ_DEMAND;
    return kind == SL_LOAD_PREDICTED && cache->is_paced ? SL_READ_PREDICTED : SL_READ_PREFETCH;
}

/* Something of the demand will be released before long, and leave its slot. */
static bool can_wait(const struct sl_demand *demand)
{
    return demand->n_awaited > 0 || !sl_list_is_empty(&demand->claimed) ||
           (demand->n_pins > 0 && !demand->is_waited_for);
}

bool sl_cache_begin_load(struct sl_expert_cache *cache, struct sl_expert_key key,
                         enum sl_load_kind kind)
{
    struct sl_slot *slot;
    uint32_t index;
    bool filled;

    if (sl_expert_loader_is_full(&cache->loader))
        return false;
    slot = sl_slot_table_take(&cache->table, key, kind, can_wait(&cache->demand));
    if (!slot)
        return false;
    cache->demand.n_awaited += sl_slot_is_awaited(slot);
    index = sl_slot_index(&cache->table, slot);
    filled = fill_slot(cache, index);
    sl_expert_loader_begin(&cache->loader, key, index, sl_slab_slot(&cache->slab, index),
                           class_of(cache, kind));
    if (filled)
        sl_reader_start(cache->loader.reader);
    return true;
}

static void begin_loads(struct sl_expert_cache *cache)
{
    sl_demand_begin_loads(cache);
    sl_prefetch_begin_loads(cache);
    sl_reader_start(cache->loader.reader);
}

/* The load of an expert that is pinned has ended. */
static void end_pinned(struct sl_slot *slot, const struct sl_expert_load_end *end)
{
    sl_slot_set(slot, end->rc == 0       ? SL_SLOT_PINNED
                      : end->quarantined ? SL_SLOT_PINNED_QUARANTINED
                                         : SL_SLOT_PINNED_FAILED);
}

/* A prefetch that failed is forgotten: its demand will read the expert again, and report if that
 * fails too. */
static void end_load(struct sl_expert_cache *cache, struct sl_slot *slot,
                     const struct sl_expert_load_end *end)
{
    const bool awaited = sl_slot_is_awaited(slot);

    if (slot->state == SL_SLOT_UP_READY)
        sl_list_remove(&slot->link);
    cache->demand.n_awaited -= awaited;
    if (end->rc < 0 && awaited && cache->demand.failure.code == 0)
        cache->demand.failure = end->err;
    if (sl_slot_is_acquired(slot))
        end_pinned(slot, end);
    else if (end->rc < 0)
        sl_slot_table_drop(&cache->table, slot, end->quarantined);
    else if (awaited)
        sl_demand_claim(cache, slot);
    else
        sl_slot_table_ready(&cache->table, slot);
}

static void take_end(struct sl_expert_cache *cache, const struct sl_expert_load_end *end)
{
    struct sl_slot *slot = &cache->table.slots[end->slot_index];

    switch (slot->state) {
    case SL_SLOT_QUARANTINED: /* a load that was cancelled may end, and its drive be late still */
        if (!end->quarantined)
            sl_slot_table_let_go(&cache->table, slot);
        return;
    case SL_SLOT_PINNED_QUARANTINED:
        sl_slot_set(slot, SL_SLOT_PINNED_FAILED);
        return;
    default:
        break;
    }
    sl_assert(sl_slot_is_loading(slot));
    if (!end->up_ready) {
        end_load(cache, slot, end);
    } else if (slot->state == SL_SLOT_LOADING_WANTED) {
        sl_slot_set(slot, SL_SLOT_UP_READY);
        sl_list_append(&cache->demand.up_ready, &slot->link);
    }
}

void sl_cache_progress(struct sl_expert_cache *cache, bool wait)
{
    struct sl_expert_load_end end;

    begin_loads(cache);
    while (sl_expert_loader_reap(&cache->loader, wait, &end)) {
        take_end(cache, &end);
        begin_loads(cache);
        wait = false;
    }
}

void sl_expert_cache_background(void *context)
{
    struct sl_expert_cache *cache = context;

    if (!sl_expert_loader_is_idle(&cache->loader))
        sl_cache_progress(cache, false);
}
