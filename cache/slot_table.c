#include "cache/slot_table.h"

#include <string.h>

#include "core/base/assert.h"

void sl_slot_table_carve(struct sl_slot_table *table, struct sl_arena *arena,
                         const struct sl_policy_ops *policy)
{
    const struct sl_policy_shape shape = {table->n_layers, table->n_experts, table->n_slots_max};

    table->slots = sl_arena_take(arena, table->n_slots_max, sizeof(*table->slots));
    table->slot_of =
        sl_arena_take(arena, (uint64_t)table->n_layers * table->n_experts, sizeof(*table->slot_of));
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
}

static uint32_t *entry_of(const struct sl_slot_table *table, struct sl_expert_key key)
{
    sl_assert(key.layer_index < table->n_layers);
    sl_assert(key.expert_index < table->n_experts);
    return &table->slot_of[key.layer_index * table->n_experts + key.expert_index];
}

void sl_slot_table_unhint(struct sl_slot_table *table, struct sl_slot *slot)
{
    if (slot->hinted)
        table->n_hinted--;
    slot->hinted = false;
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
    if (slot) {
        sl_assert(slot->state == SL_SLOT_LOADING || slot->state == SL_SLOT_READY);
        if (slot->hinted)
            table->counters.n_hinted_hits++;
        else
            table->counters.n_hits++;
        sl_slot_table_unhint(table, slot);
        if (slot->state == SL_SLOT_READY) {
            table->policy->ops->withdraw(table->policy, sl_slot_index(table, slot));
            slot->state = SL_SLOT_PINNED;
        }
    }
    table->policy->ops->use(table->policy, key);
    return slot;
}

static struct sl_slot *evict(struct sl_slot_table *table)
{
    uint32_t index = table->policy->ops->choose(table->policy);
    struct sl_slot *slot;

    if (index == SL_NO_SLOT)
        return NULL;
    slot = &table->slots[index];
    sl_assert(slot->state == SL_SLOT_READY);
    *entry_of(table, slot->key) = SL_NO_SLOT;
    sl_slot_table_unhint(table, slot);
    slot->state = SL_SLOT_EMPTY;
    table->counters.n_evictions++;
    return slot;
}

struct sl_slot *sl_slot_table_take(struct sl_slot_table *table, struct sl_expert_key key,
                                   bool hinted)
{
    struct sl_link *link = sl_list_pop(&table->empty);
    struct sl_slot *slot = link ? sl_list_item(link, struct sl_slot, link) : evict(table);

    if (!slot)
        return NULL;
    slot->key = key;
    slot->state = SL_SLOT_LOADING;
    slot->hinted = hinted;
    table->n_hinted += hinted;
    *entry_of(table, key) = sl_slot_index(table, slot);
    table->counters.n_loads++;
    return slot;
}

void sl_slot_table_ready(struct sl_slot_table *table, struct sl_slot *slot)
{
    sl_assert(slot->state == SL_SLOT_LOADING || slot->state == SL_SLOT_PINNED);
    slot->state = SL_SLOT_READY;
    table->policy->ops->offer(table->policy, sl_slot_index(table, slot), slot->key);
}

void sl_slot_table_drop(struct sl_slot_table *table, struct sl_slot *slot, bool held)
{
    sl_assert(slot->state == SL_SLOT_LOADING || slot->state == SL_SLOT_PINNED);
    *entry_of(table, slot->key) = SL_NO_SLOT;
    sl_slot_table_unhint(table, slot);
    slot->state = SL_SLOT_HELD;
    if (!held)
        sl_slot_table_let_go(table, slot);
}

void sl_slot_table_let_go(struct sl_slot_table *table, struct sl_slot *slot)
{
    sl_assert(slot->state == SL_SLOT_HELD);
    slot->state = SL_SLOT_EMPTY;
    sl_list_append(&table->empty, &slot->link);
}

/* Brings the expert of a slot that goes to an empty one that stays. */
static void move_out(struct sl_slot_table *table, struct sl_slot *from, sl_slot_move_fn *move,
                     void *context)
{
    struct sl_slot *to = sl_list_item(sl_list_pop(&table->empty), struct sl_slot, link);
    const uint32_t from_index = sl_slot_index(table, from), to_index = sl_slot_index(table, to);

    sl_assert(from->state == SL_SLOT_READY);
    table->policy->ops->withdraw(table->policy, from_index);
    to->key = from->key;
    to->hinted = from->hinted;
    to->state = SL_SLOT_READY;
    from->hinted = false;
    from->state = SL_SLOT_EMPTY;
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
        sl_assert(evict(table));
    sl_list_init(&table->empty);
    for (uint32_t i = 0; i < n_slots; i++)
        if (table->slots[i].state == SL_SLOT_EMPTY)
            sl_list_append(&table->empty, &table->slots[i].link);
    for (uint32_t i = n_slots; i < n_before; i++)
        if (table->slots[i].state != SL_SLOT_EMPTY)
            move_out(table, &table->slots[i], move, context);
    table->n_slots = n_slots;
}

void sl_slot_table_empty(struct sl_slot_table *table)
{
    struct sl_slot *slot;

    while ((slot = evict(table)))
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
    uint32_t n_empty = 0, n_found = 0, n_full = 0, n_held = 0, n_hinted = 0;
    const struct sl_link *link;

    for (link = table->empty.next; link != &table->empty; link = link->next) {
        const struct sl_slot *slot = sl_list_item(link, struct sl_slot, link);

        if (slot->state != SL_SLOT_EMPTY || sl_slot_index(table, slot) >= table->n_slots)
            return false;
        n_empty++;
    }
    for (uint32_t i = 0; i < table->n_slots; i++) {
        const struct sl_slot *slot = &table->slots[i];

        n_held += slot->state == SL_SLOT_HELD;
        if (slot->state == SL_SLOT_EMPTY || slot->state == SL_SLOT_HELD)
            continue;
        n_full++;
        n_hinted += slot->hinted;
        if (*entry_of(table, slot->key) != i)
            return false;
    }
    for (uint32_t i = 0; i < table->n_layers * table->n_experts; i++)
        n_found += table->slot_of[i] != SL_NO_SLOT;
    return n_empty + n_full + n_held == table->n_slots && n_found == n_full &&
           n_hinted == table->n_hinted;
}
