#include "cache/slot_table.h"

#include <math.h>
#include <string.h>

#include "core/base/assert.h"

/* One in so many of the experts that a sweep reads may be prefetched in vain. */
#define WASTE_SHARE 64u

#define TO(state) (1u << SL_SLOT_##state)

/* The states that each state may be followed by, as bits. */
static const uint32_t moves[SL_SLOT_STATES] = {
    /* To READY where a resize moves an expert there. */
    [SL_SLOT_EMPTY] = TO(LOADING_PREFETCH) | TO(LOADING_WANTED) | TO(READY),
    [SL_SLOT_LOADING_PREFETCH] =
        TO(LOADING_WANTED) | TO(UP_READY) | TO(READY) | TO(EMPTY) | TO(QUARANTINED),
    [SL_SLOT_LOADING_WANTED] =
        TO(UP_READY) | TO(CLAIMED) | TO(LOADING_PREFETCH) | TO(EMPTY) | TO(QUARANTINED),
    [SL_SLOT_UP_READY] =
        TO(UP_PINNED) | TO(CLAIMED) | TO(LOADING_PREFETCH) | TO(EMPTY) | TO(QUARANTINED),
    [SL_SLOT_UP_PINNED] =
        TO(PINNED) | TO(UP_ABANDONED) | TO(PINNED_FAILED) | TO(PINNED_QUARANTINED),
    [SL_SLOT_UP_ABANDONED] =
        TO(PINNED) | TO(LOADING_PREFETCH) | TO(PINNED_FAILED) | TO(PINNED_QUARANTINED),
    [SL_SLOT_READY] = TO(CLAIMED) | TO(EMPTY),
    [SL_SLOT_CLAIMED] = TO(PINNED) | TO(READY),
    [SL_SLOT_PINNED] = TO(READY),
    [SL_SLOT_PINNED_FAILED] = TO(EMPTY),
    [SL_SLOT_PINNED_QUARANTINED] = TO(PINNED_FAILED) | TO(QUARANTINED),
    [SL_SLOT_QUARANTINED] = TO(EMPTY),
};

bool sl_slot_may_move(enum sl_slot_state from, enum sl_slot_state to)
{
    return from < SL_SLOT_STATES && to < SL_SLOT_STATES && (moves[from] & (1u << to)) != 0;
}

void sl_slot_set(struct sl_slot *slot, enum sl_slot_state state)
{
    sl_assert(sl_slot_may_move(slot->state, state));
    slot->state = (uint8_t)state;
}

uint32_t sl_sweep_experts_min(uint32_t n_experts, uint32_t n_per_row)
{
    return (uint32_t)(n_experts * (1 - pow(1 - (double)n_per_row / n_experts, SL_SWEEP_ROWS)));
}

/* The slots that are not pinned have room for the rest of a layer; or for a quarter of the slots,
 * where that is less: there a layer makes room for itself. */
uint32_t sl_sweep_pinned(uint32_t n_slots, uint32_t n_layers, uint32_t n_experts)
{
    const uint32_t n_small = (n_slots - n_slots / SL_TURNING_SHARE) / n_layers;
    uint32_t n = n_small;

    if (n_slots > n_experts && n_layers > 1)
        n = (n_slots - n_experts) / (n_layers - 1);
    n = n > n_small ? n : n_small;
    return n < n_experts ? n : n_experts;
}

uint32_t sl_sweep_read_ahead(uint32_t n_experts, uint32_t n_demanded)
{
    const uint32_t n_unused = n_experts - n_demanded;

    return n_unused > 0 ? n_demanded * n_experts / (n_unused * WASTE_SHARE) : n_experts;
}

static void set_pinned(struct sl_slot_table *table)
{
    table->n_pinned = sl_sweep_pinned(table->n_slots, table->n_layers, table->n_experts);
}

void sl_slot_table_carve(struct sl_slot_table *table, struct sl_arena *arena,
                         const struct sl_policy_ops *policy)
{
    const struct sl_policy_shape shape = {table->n_layers, table->n_experts, table->n_slots_max};

    table->slots = sl_arena_take(arena, table->n_slots_max, sizeof(*table->slots));
    table->slot_of =
        sl_arena_take(arena, (uint64_t)table->n_layers * table->n_experts, sizeof(*table->slot_of));
    table->n_resident = sl_arena_take(arena, table->n_layers, sizeof(*table->n_resident));
    table->policy = policy->carve(arena, &shape);
}

void sl_slot_table_start(struct sl_slot_table *table, uint32_t n_slots, uint32_t inflight_max)
{
    sl_assert(n_slots <= table->n_slots_max);
    table->n_slots = n_slots;
    table->inflight_max = inflight_max;
    sl_list_init(&table->empty);
    for (uint32_t i = 0; i < n_slots; i++)
        sl_list_append(&table->empty, &table->slots[i].link);
    memset(table->slot_of, 0xff, sizeof(*table->slot_of) * table->n_layers * table->n_experts);
    set_pinned(table);
}

void sl_slot_table_open(struct sl_slot_table *table, uint32_t n_experts)
{
    table->in_sweep = n_experts >= table->sweep_experts_min;
}

void sl_slot_table_visit(struct sl_slot_table *table, uint16_t layer_index)
{
    table->layer_index = layer_index;
    table->policy->ops->visit(table->policy, layer_index);
}

static uint32_t *entry_of(const struct sl_slot_table *table, struct sl_expert_key key)
{
    sl_assert(key.layer_index < table->n_layers);
    sl_assert(key.expert_index < table->n_experts);
    return &table->slot_of[key.layer_index * table->n_experts + key.expert_index];
}

void sl_slot_table_end_prefetch(struct sl_slot_table *table, struct sl_slot *slot)
{
    if (slot->prefetched)
        table->n_prefetched--;
    slot->prefetched = false;
}

struct sl_slot *sl_slot_table_find(struct sl_slot_table *table, struct sl_expert_key key)
{
    uint32_t index = *entry_of(table, key);

    return index == SL_NO_SLOT ? NULL : &table->slots[index];
}

struct sl_slot *sl_slot_table_claim(struct sl_slot_table *table, struct sl_expert_key key)
{
    struct sl_slot *slot = sl_slot_table_find(table, key);

    table->counters.n_requests++;
    table->counters.n_sweep_requests += table->in_sweep;
    if (slot) {
        sl_assert(slot->state == SL_SLOT_LOADING_PREFETCH || slot->state == SL_SLOT_READY);
        table->counters.n_prefetch_hits += slot->prefetched;
        table->counters.n_hits += !slot->prefetched;
        table->counters.n_sweep_hits += !slot->prefetched && table->in_sweep;
        sl_slot_table_end_prefetch(table, slot);
        if (slot->state == SL_SLOT_READY) {
            table->policy->ops->withdraw(table->policy, sl_slot_index(table, slot));
            sl_slot_set(slot, SL_SLOT_CLAIMED);
        }
    }
    table->policy->ops->use(table->policy, key);
    return slot;
}

/* The slot holds no expert any more. */
static void forget(struct sl_slot_table *table, const struct sl_slot *slot)
{
    *entry_of(table, slot->key) = SL_NO_SLOT;
    table->n_resident[slot->key.layer_index]--;
    table->n_held--;
}

static struct sl_slot *evict(struct sl_slot_table *table, uint32_t index)
{
    struct sl_slot *slot;

    if (index == SL_NO_SLOT)
        return NULL;
    slot = &table->slots[index];
    sl_assert(slot->state == SL_SLOT_READY);
    forget(table, slot);
    sl_slot_table_end_prefetch(table, slot);
    sl_slot_set(slot, SL_SLOT_EMPTY);
    table->counters.n_evictions++;
    return slot;
}

static struct sl_slot *evict_any(struct sl_slot_table *table)
{
    return evict(table, table->policy->ops->choose(table->policy));
}

/* Evicts what is not pinned, in the layer that is furthest ahead: the one just passed. While a
 * demand is open, or its layer is being read ahead, that is the one before the present layer; when
 * certain experts are prefetched for the next step, it is the present one. Nothing is read ahead in
 * place of its own layer's experts. Returns NULL where there is nothing to evict. */
static struct sl_slot *evict_unpinned(struct sl_slot_table *table, uint16_t for_layer,
                                      enum sl_load_kind kind)
{
    const uint32_t n_layers = table->n_layers, first_back = kind != SL_LOAD_CERTAIN;
    struct sl_slot *slot = NULL;

    for (uint32_t i = 0; i < n_layers && !slot; i++) {
        const uint32_t back = first_back + i;
        const uint32_t layer = (table->layer_index + n_layers - back) % n_layers;

        if (table->n_resident[layer] > table->n_pinned &&
            (layer != for_layer || kind == SL_LOAD_DEMAND))
            slot = evict(table, table->policy->ops->choose_of(table->policy, (uint16_t)layer));
    }
    return slot;
}

static struct sl_slot *make_room(struct sl_slot_table *table, uint16_t for_layer,
                                 enum sl_load_kind kind, bool can_wait)
{
    struct sl_slot *slot;

    if (!table->in_sweep)
        return evict_any(table);
    slot = evict_unpinned(table, for_layer, kind);
    if (slot || can_wait || kind != SL_LOAD_DEMAND)
        return slot;
    return evict_any(table);
}

static struct sl_slot *take_empty(struct sl_slot_table *table)
{
    struct sl_link *link = sl_list_pop(&table->empty);

    return link ? sl_list_item(link, struct sl_slot, link) : NULL;
}

/* Where slots are spared. */
static struct sl_slot *take_sparing(struct sl_slot_table *table, struct sl_expert_key key,
                                    enum sl_load_kind kind, bool can_wait)
{
    struct sl_slot *slot = NULL;

    if (kind == SL_LOAD_PREDICTED)
        return take_empty(table);
    if (table->n_slots - table->n_held > table->n_spare)
        slot = take_empty(table);
    if (!slot)
        slot = make_room(table, key.layer_index, kind, can_wait);
    return slot ? slot : take_empty(table);
}

struct sl_slot *sl_slot_table_take(struct sl_slot_table *table, struct sl_expert_key key,
                                   enum sl_load_kind kind, bool can_wait)
{
    struct sl_slot *slot;

    if (table->n_spare > 0 && !table->in_sweep) {
        slot = take_sparing(table, key, kind, can_wait);
    } else {
        slot = take_empty(table);
        if (!slot)
            slot = make_room(table, key.layer_index, kind, can_wait);
    }
    if (!slot)
        return NULL;
    table->n_resident[key.layer_index]++;
    table->n_held++;
    slot->key = key;
    sl_slot_set(slot, kind == SL_LOAD_DEMAND ? SL_SLOT_LOADING_WANTED : SL_SLOT_LOADING_PREFETCH);
    slot->prefetched = kind != SL_LOAD_DEMAND && kind != SL_LOAD_PRELOAD;
    slot->predicted = false;
    table->n_prefetched += slot->prefetched;
    *entry_of(table, key) = sl_slot_index(table, slot);
    table->counters.n_loads++;
    return slot;
}

bool sl_slot_table_lacks_spare(const struct sl_slot_table *table)
{
    return table->n_slots - table->n_held < table->n_spare;
}

void sl_slot_table_spare(struct sl_slot_table *table)
{
    struct sl_slot *slot;

    while (!table->in_sweep && sl_slot_table_lacks_spare(table) && (slot = evict_any(table)))
        sl_list_append(&table->empty, &slot->link);
}

void sl_slot_table_ready(struct sl_slot_table *table, struct sl_slot *slot)
{
    sl_slot_set(slot, SL_SLOT_READY);
    table->policy->ops->offer(table->policy, sl_slot_index(table, slot), slot->key);
}

void sl_slot_table_discard(struct sl_slot_table *table, struct sl_slot *slot)
{
    table->policy->ops->withdraw(table->policy, sl_slot_index(table, slot));
    sl_list_append(&table->empty, &evict(table, sl_slot_index(table, slot))->link);
}

void sl_slot_table_drop(struct sl_slot_table *table, struct sl_slot *slot, bool quarantined)
{
    forget(table, slot);
    sl_slot_table_end_prefetch(table, slot);
    sl_slot_set(slot, quarantined ? SL_SLOT_QUARANTINED : SL_SLOT_EMPTY);
    if (!quarantined)
        sl_list_append(&table->empty, &slot->link);
}

void sl_slot_table_let_go(struct sl_slot_table *table, struct sl_slot *slot)
{
    sl_assert(slot->state == SL_SLOT_QUARANTINED);
    sl_slot_set(slot, SL_SLOT_EMPTY);
    sl_list_append(&table->empty, &slot->link);
}

/* Moves the expert of a slot that is removed to an empty one that stays. */
static void move_out(struct sl_slot_table *table, struct sl_slot *from, sl_slot_move_fn *move,
                     void *context)
{
    struct sl_slot *to = sl_list_item(sl_list_pop(&table->empty), struct sl_slot, link);
    const uint32_t from_index = sl_slot_index(table, from), to_index = sl_slot_index(table, to);

    sl_assert(from->state == SL_SLOT_READY);
    table->policy->ops->withdraw(table->policy, from_index);
    to->key = from->key;
    to->prefetched = from->prefetched;
    sl_slot_set(to, SL_SLOT_READY);
    from->prefetched = false;
    sl_slot_set(from, SL_SLOT_EMPTY);
    *entry_of(table, to->key) = to_index;
    move(context, from_index, to_index);
    table->policy->ops->offer(table->policy, to_index, to->key);
}

void sl_slot_table_resize(struct sl_slot_table *table, uint32_t n_slots, sl_slot_move_fn *move,
                          void *context)
{
    const uint32_t n_before = table->n_slots;
    uint32_t n_ready = 0;

    sl_assert(n_slots >= 1 && n_slots <= table->n_slots_max);
    for (uint32_t i = 0; i < n_before; i++) {
        sl_assert(table->slots[i].state == SL_SLOT_EMPTY || table->slots[i].state == SL_SLOT_READY);
        n_ready += table->slots[i].state == SL_SLOT_READY;
    }
    for (; n_ready > n_slots; n_ready--)
        sl_assert(evict_any(table));
    sl_list_init(&table->empty);
    for (uint32_t i = 0; i < n_slots; i++)
        if (table->slots[i].state == SL_SLOT_EMPTY)
            sl_list_append(&table->empty, &table->slots[i].link);
    for (uint32_t i = n_slots; i < n_before; i++)
        if (table->slots[i].state != SL_SLOT_EMPTY)
            move_out(table, &table->slots[i], move, context);
    table->n_slots = n_slots;
    set_pinned(table);
}

void sl_slot_table_empty(struct sl_slot_table *table)
{
    struct sl_slot *slot;

    while ((slot = evict_any(table)))
        sl_list_append(&table->empty, &slot->link);
}

uint32_t sl_slot_table_rank(struct sl_slot_table *table, struct sl_expert_key *ret_keys,
                            uint32_t n_max)
{
    uint32_t n_ready = 0, index;
    struct sl_link order, *link;

    for (uint32_t i = 0; i < table->n_slots; i++)
        n_ready += table->slots[i].state == SL_SLOT_READY;
    /* All are chosen for eviction, the last one last, and then put on offer again. */
    sl_list_init(&order);
    for (uint32_t i = n_ready; i-- > 0;) {
        index = table->policy->ops->choose(table->policy);
        sl_assert(index != SL_NO_SLOT);
        sl_list_append(&order, &table->slots[index].link);
        if (i < n_max)
            ret_keys[i] = table->slots[index].key;
    }
    while ((link = sl_list_pop(&order))) {
        const struct sl_slot *slot = sl_list_item(link, struct sl_slot, link);

        table->policy->ops->offer(table->policy, sl_slot_index(table, slot), slot->key);
    }
    return n_ready < n_max ? n_ready : n_max;
}

bool sl_slot_table_is_sound(const struct sl_slot_table *table)
{
    uint32_t n_empty = 0, n_found = 0, n_full = 0, n_quarantined = 0, n_prefetched = 0;
    const struct sl_link *link;

    for (link = table->empty.next; link != &table->empty; link = link->next) {
        const struct sl_slot *slot = sl_list_item(link, struct sl_slot, link);

        if (slot->state != SL_SLOT_EMPTY || sl_slot_index(table, slot) >= table->n_slots)
            return false;
        n_empty++;
    }
    for (uint32_t i = 0; i < table->n_slots; i++) {
        const struct sl_slot *slot = &table->slots[i];

        n_quarantined += slot->state == SL_SLOT_QUARANTINED;
        if (slot->state == SL_SLOT_EMPTY || slot->state == SL_SLOT_QUARANTINED)
            continue;
        n_full++;
        n_prefetched += slot->prefetched;
        if (*entry_of(table, slot->key) != i)
            return false;
    }
    for (uint32_t layer = 0; layer < table->n_layers; layer++) {
        uint32_t n_of_layer = 0;

        for (uint32_t i = 0; i < table->n_experts; i++)
            n_of_layer += table->slot_of[layer * table->n_experts + i] != SL_NO_SLOT;
        if (n_of_layer != table->n_resident[layer])
            return false;
        n_found += n_of_layer;
    }
    if (table->n_held != n_full)
        return false;
    return n_empty + n_full + n_quarantined == table->n_slots && n_found == n_full &&
           n_prefetched == table->n_prefetched;
}
