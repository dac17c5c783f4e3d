/* The open demand and the pins: which of its experts are resident, on their way or missing, and
 * which the caller has acquired. */
#include "cache/cache_internal.h"

#include <errno.h>

#include "core/base/assert.h"

void sl_demand_carve(struct sl_expert_cache *cache, struct sl_arena *arena)
{
    const uint32_t experts = cache->shape.n_routed_experts;

    cache->demand.missing = sl_arena_take(arena, experts, sizeof(*cache->demand.missing));
    cache->demand.is_missing = sl_arena_take(arena, experts, sizeof(*cache->demand.is_missing));
}

void sl_demand_start(struct sl_expert_cache *cache)
{
    sl_list_init(&cache->demand.claimed);
    sl_list_init(&cache->demand.up_ready);
}

void sl_demand_begin_loads(struct sl_expert_cache *cache)
{
    struct sl_demand *demand = &cache->demand;

    while (demand->next_missing < demand->n_missing) {
        struct sl_expert_key key = {demand->layer_index, demand->missing[demand->next_missing]};

        if (!sl_cache_begin_load(cache, key, SL_LOAD_DEMAND))
            break;
        demand->next_missing++;
    }
}

bool sl_demand_needs_drives(const struct sl_expert_cache *cache)
{
    return cache->demand.next_missing < cache->demand.n_missing || cache->demand.n_awaited > 0;
}

void sl_demand_claim(struct sl_expert_cache *cache, struct sl_slot *slot)
{
    sl_slot_set(slot, SL_SLOT_CLAIMED);
    sl_list_append(&cache->demand.claimed, &slot->link);
}

/* ---- opening -----------------------------------------------------------------------------------
 */

/* Lists the missing experts in the order in which they are to be read. */
static void list_missing(struct sl_expert_cache *cache)
{
    struct sl_demand *demand = &cache->demand;

    demand->n_missing = demand->next_missing = 0;
    for (uint32_t i = 0; i < cache->shape.n_routed_experts; i++) {
        uint16_t expert = sl_expert_map_nth(cache->loader.store, demand->layer_index, i);

        if (demand->is_missing[expert])
            demand->missing[demand->n_missing++] = expert;
        demand->is_missing[expert] = false;
    }
}

/* One expert of a new demand is resident, on its way or missing. */
static void ask_for(struct sl_expert_cache *cache, struct sl_expert_key key)
{
    struct sl_demand *demand = &cache->demand;
    struct sl_slot *slot = sl_slot_table_claim(&cache->table, key);
    uint32_t index;

    sl_prefetch_judge(cache, key);
    if (!slot) {
        demand->is_missing[key.expert_index] = true;
        demand->left_bytes += cache->slot_bytes;
        return;
    }
    if (slot->state == SL_SLOT_CLAIMED) {
        sl_list_append(&demand->claimed, &slot->link);
        return;
    }
    index = sl_slot_index(&cache->table, slot);
    demand->n_awaited++;
    demand->left_bytes += cache->slot_bytes - sl_expert_loader_begun_bytes(&cache->loader, index);
    if (sl_expert_loader_is_up_ready(&cache->loader, index)) {
        sl_slot_set(slot, SL_SLOT_UP_READY);
        sl_list_append(&demand->up_ready, &slot->link);
    } else {
        sl_slot_set(slot, SL_SLOT_LOADING_WANTED);
    }
    sl_expert_loader_set_class(&cache->loader, index, SL_READ_DEMAND);
}

int sl_demand_open(struct sl_expert_source *source, uint16_t layer_index, const uint16_t *experts,
                   uint32_t n_experts, struct sl_err *err)
{
    struct sl_expert_cache *cache = sl_expert_cache_of(source);
    struct sl_demand *demand = &cache->demand;

    (void)err; /* reads that fail show in acquire() */
    sl_assert(!demand->open && demand->n_awaited == 0);
    demand->open = true;
    demand->layer_index = layer_index;
    demand->n_left = n_experts;
    demand->left_bytes = 0;
    sl_slot_table_open(&cache->table, n_experts);
    sl_prefetch_demand_opens(cache, layer_index);
    /* All resident experts are claimed before any is evicted. */
    for (uint32_t i = 0; i < n_experts; i++) {
        sl_assert(i == 0 || experts[i - 1] < experts[i]);
        ask_for(cache, (struct sl_expert_key){layer_index, experts[i]});
    }
    list_missing(cache);
    sl_prefetch_time_reads(cache);
    /* Begins the misses, and shows which predicted experts have landed. */
    sl_cache_progress(cache, false);
    sl_prefetch_expire(cache);
    sl_slot_table_spare(&cache->table);
    sl_prefetch_next_layer(cache, layer_index, n_experts);
    return 0;
}

/* ---- ending ------------------------------------------------------------------------------------
 */

/* The demand does not wait for the load any more. */
static void stop_awaiting(struct sl_expert_cache *cache, struct sl_slot *slot)
{
    sl_expert_loader_set_class(&cache->loader, sl_slot_index(&cache->table, slot),
                               SL_READ_PREFETCH);
    if (slot->state == SL_SLOT_UP_READY)
        sl_list_remove(&slot->link);
    sl_slot_set(slot,
                slot->state == SL_SLOT_UP_PINNED ? SL_SLOT_UP_ABANDONED : SL_SLOT_LOADING_PREFETCH);
}

/* Ends the demand, and with it the step. Loads that it waited for land all the same, for whoever
 * asks next, but keep nobody else waiting; the prediction would be read for nobody. */
void sl_demand_abandon(struct sl_expert_source *source)
{
    struct sl_expert_cache *cache = sl_expert_cache_of(source);
    struct sl_demand *demand = &cache->demand;
    struct sl_link *link;

    sl_prefetch_expire(cache);
    while ((link = sl_list_pop(&demand->claimed)))
        sl_slot_table_ready(&cache->table, sl_list_item(link, struct sl_slot, link));
    for (uint32_t i = 0; i < cache->table.n_slots; i++)
        if (sl_slot_is_awaited(&cache->table.slots[i]))
            stop_awaiting(cache, &cache->table.slots[i]);
    demand->n_missing = demand->next_missing = demand->n_awaited = 0;
    demand->is_timed = demand->visit.is_open = false;
    demand->open = false;
    demand->failure.code = 0;
}

/* Ends the demand if a load of it failed, and says why. Returns 0 if none did. */
static int take_failure(struct sl_expert_cache *cache, struct sl_err *err)
{
    const int rc = cache->demand.failure.code;

    if (rc < 0) {
        if (err)
            *err = cache->demand.failure;
        sl_demand_abandon(&cache->source);
    }
    return rc;
}

/* ---- pins --------------------------------------------------------------------------------------
 */

static void pin(struct sl_expert_cache *cache, struct sl_slot *slot, struct sl_expert_pin *ret_pin)
{
    uint32_t index = sl_slot_index(&cache->table, slot);

    sl_assert(cache->demand.n_pins < cache->source.pins_max);
    sl_slot_set(slot, slot->state == SL_SLOT_UP_READY ? SL_SLOT_UP_PINNED : SL_SLOT_PINNED);
    cache->demand.n_pins++;
    cache->demand.n_left--;
    ret_pin->key = slot->key;
    ret_pin->slot_index = index;
    ret_pin->partial = slot->state == SL_SLOT_UP_PINNED;
    for (int matrix = 0; matrix < SL_EXPERT_MATRICES; matrix++)
        ret_pin->w[matrix] = sl_slab_slot(&cache->slab, index) +
                             sl_expert_matrix_offset_bytes(&cache->shape, matrix);
}

int sl_demand_acquire(struct sl_expert_source *source, bool wait, struct sl_expert_pin *ret_pin,
                      struct sl_err *err)
{
    struct sl_expert_cache *cache = sl_expert_cache_of(source);
    struct sl_demand *demand = &cache->demand;
    struct sl_link *link;
    int rc;

    sl_assert(demand->open);
    if (demand->n_left == 0) {
        demand->open = false;
        if (demand->n_pins == 0)
            sl_prefetch_demand_ends(cache);
        return 0;
    }
    demand->is_waited_for = wait;
    sl_cache_progress(cache, false);
    while (wait && demand->failure.code == 0 && sl_list_is_empty(&demand->claimed) &&
           sl_list_is_empty(&demand->up_ready)) {
        if (sl_expert_loader_is_idle(&cache->loader)) {
            /* Nothing is loading and nothing is ready. The caller cannot have pinned all slots
             * (pins_max), so drives that never answered have them. */
            sl_expert_loader_explain_quarantined(&cache->loader, &demand->failure);
            break;
        }
        sl_cache_progress(cache, true);
    }
    demand->is_waited_for = false;
    rc = take_failure(cache, err);
    if (rc < 0)
        return rc;
    link = sl_list_pop(&demand->claimed);
    if (!link && wait)
        link = sl_list_pop(&demand->up_ready);
    if (!link)
        return -EAGAIN;
    pin(cache, sl_list_item(link, struct sl_slot, link), ret_pin);
    return 1;
}

int sl_demand_complete(struct sl_expert_source *source, const struct sl_expert_pin *pin,
                       struct sl_err *err)
{
    struct sl_expert_cache *cache = sl_expert_cache_of(source);
    const struct sl_slot *slot = &cache->table.slots[pin->slot_index];

    sl_assert(sl_slot_is_acquired(slot));
    while (sl_slot_is_loading(slot) && cache->demand.failure.code == 0)
        sl_cache_progress(cache, true);
    return take_failure(cache, err);
}

void sl_demand_release(struct sl_expert_source *source, const struct sl_expert_pin *pin)
{
    struct sl_expert_cache *cache = sl_expert_cache_of(source);
    struct sl_slot *slot;

    sl_assert(pin->slot_index < cache->table.n_slots);
    slot = &cache->table.slots[pin->slot_index];
    sl_assert(sl_slot_is_acquired(slot));
    sl_assert(slot->key.layer_index == pin->key.layer_index);
    sl_assert(slot->key.expert_index == pin->key.expert_index);
    cache->demand.n_pins--;
    switch (slot->state) {
    case SL_SLOT_PINNED:
        sl_slot_table_ready(&cache->table, slot);
        break;
    case SL_SLOT_PINNED_FAILED:
        sl_slot_table_drop(&cache->table, slot, false);
        break;
    case SL_SLOT_PINNED_QUARANTINED:
        sl_slot_table_drop(&cache->table, slot, true);
        break;
    default: /* UP_ABANDONED: the load lands for whoever asks next */
        sl_slot_set(slot, SL_SLOT_LOADING_PREFETCH);
        break;
    }
    if (!cache->demand.open && cache->demand.n_pins == 0)
        sl_prefetch_demand_ends(cache);
    sl_cache_progress(cache, false);
}
