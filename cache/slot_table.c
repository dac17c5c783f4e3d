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
    table->n_hinted_max =
        n_slots / SL_HINTED_SHARE < inflight_max ? n_slots / SL_HINTED_SHARE : inflight_max;
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

static void unhint(struct sl_slot_table *table, struct sl_slot *slot)
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
        unhint(table, slot);
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
    unhint(table, slot);
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
    if (hinted)
        table->policy->ops->expect(table->policy, key);
    return slot;
}

void sl_slot_table_ready(struct sl_slot_table *table, struct sl_slot *slot)
{
    sl_assert(slot->state == SL_SLOT_LOADING || slot->state == SL_SLOT_PINNED);
    slot->state = SL_SLOT_READY;
    table->policy->ops->offer(table->policy, sl_slot_index(table, slot), slot->key);
}

void sl_slot_table_drop(struct sl_slot_table *table, struct sl_slot *slot)
{
    sl_assert(slot->state == SL_SLOT_LOADING);
    *entry_of(table, slot->key) = SL_NO_SLOT;
    unhint(table, slot);
    slot->state = SL_SLOT_EMPTY;
    sl_list_append(&table->empty, &slot->link);
}

bool sl_slot_table_is_sound(const struct sl_slot_table *table)
{
    uint32_t n_empty = 0, n_found = 0, n_held = 0, n_hinted = 0;
    const struct sl_link *link;

    for (link = table->empty.next; link != &table->empty; link = link->next) {
        const struct sl_slot *slot = sl_list_item(link, struct sl_slot, link);

        if (slot->state != SL_SLOT_EMPTY || sl_slot_index(table, slot) >= table->n_slots)
            return false;
        n_empty++;
    }
    for (uint32_t i = 0; i < table->n_slots; i++) {
        const struct sl_slot *slot = &table->slots[i];

        if (slot->state == SL_SLOT_EMPTY)
            continue;
        n_held++;
        n_hinted += slot->hinted;
        if (*entry_of(table, slot->key) != i)
            return false;
    }
    for (uint32_t i = 0; i < table->n_layers * table->n_experts; i++)
        n_found += table->slot_of[i] != SL_NO_SLOT;
    return n_empty + n_held == table->n_slots && n_found == n_held && n_hinted == table->n_hinted &&
           n_hinted <= table->n_hinted_max;
}
