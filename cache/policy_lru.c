/* Least recently used. An expert's place in the order is that of its latest demand, not of its
 * release, which would depend on the order in which reads landed. */
#include "cache/policy.h"
#include "cache/slot_heap.h"

struct lru {
    struct sl_policy policy;
    struct sl_policy_shape shape;
    uint64_t n_uses;
    uint64_t *last_use;         /* (n_layers, n_experts), in uses; 0: never */
    struct sl_slot_heap *heaps; /* (n_layers) by last use */
    uint32_t *positions;        /* (n_slots) */
    struct sl_slot_heap **in;   /* (n_slots) the heap that has it */
};

static struct lru *lru_of(struct sl_policy *policy)
{
    return (struct lru *)(void *)policy;
}

static uint32_t id_of(const struct lru *lru, struct sl_expert_key key)
{
    return key.layer_index * lru->shape.n_experts + key.expert_index;
}

static struct sl_policy *lru_carve(struct sl_arena *arena, const struct sl_policy_shape *shape)
{
    struct lru *lru = sl_arena_take(arena, 1, sizeof(*lru));
    struct lru l = {.policy = {&sl_policy_lru}, .shape = *shape};
    const uint64_t n_ids = (uint64_t)shape->n_layers * shape->n_experts;
    struct sl_slot_heap_item *items;

    l.last_use = sl_arena_take(arena, n_ids, sizeof(*l.last_use));
    l.heaps = sl_arena_take(arena, shape->n_layers, sizeof(*l.heaps));
    items = sl_arena_take(arena, n_ids, sizeof(*items));
    l.positions = sl_arena_take(arena, shape->n_slots, sizeof(*l.positions));
    l.in = sl_arena_take(arena, shape->n_slots, sizeof(*l.in));
    if (!lru)
        return NULL;
    for (uint32_t layer = 0; layer < shape->n_layers; layer++)
        l.heaps[layer].items = items + (size_t)layer * shape->n_experts;
    *lru = l;
    return &lru->policy;
}

static void lru_visit(struct sl_policy *policy, uint16_t layer_index)
{
    (void)policy;
    (void)layer_index;
}

static void lru_use(struct sl_policy *policy, struct sl_expert_key key)
{
    struct lru *lru = lru_of(policy);

    lru->last_use[id_of(lru, key)] = ++lru->n_uses;
}

static void lru_offer(struct sl_policy *policy, uint32_t slot_index, struct sl_expert_key key)
{
    struct lru *lru = lru_of(policy);
    uint32_t id = id_of(lru, key);

    lru->in[slot_index] = &lru->heaps[key.layer_index];
    sl_slot_heap_push(lru->in[slot_index], lru->positions,
                      (struct sl_slot_heap_item){(double)lru->last_use[id], id, slot_index});
}

static void lru_withdraw(struct sl_policy *policy, uint32_t slot_index)
{
    struct lru *lru = lru_of(policy);

    sl_slot_heap_remove(lru->in[slot_index], lru->positions, slot_index);
}

static uint32_t lru_choose(struct sl_policy *policy)
{
    struct lru *lru = lru_of(policy);
    struct sl_slot_heap *oldest = &lru->heaps[0];

    for (uint32_t layer = 1; layer < lru->shape.n_layers; layer++) {
        struct sl_slot_heap *heap = &lru->heaps[layer];

        if (heap->n > 0 && (oldest->n == 0 || heap->items[0].rank < oldest->items[0].rank))
            oldest = heap;
    }
    return sl_slot_heap_pop(oldest, lru->positions);
}

static uint32_t lru_choose_of(struct sl_policy *policy, uint16_t layer_index)
{
    struct lru *lru = lru_of(policy);

    return sl_slot_heap_pop(&lru->heaps[layer_index], lru->positions);
}

const struct sl_policy_ops sl_policy_lru = {
    .name = "lru",
    .carve = lru_carve,
    .visit = lru_visit,
    .use = lru_use,
    .expect = lru_use,
    .offer = lru_offer,
    .withdraw = lru_withdraw,
    .choose = lru_choose,
    .choose_of = lru_choose_of,
};
