/* Least recently used. An expert's place in the order is that of its latest demand, not of its
 * release, which would depend on the order in which reads landed. */
#include "cache/policy.h"
#include "cache/slot_heap.h"

struct lru {
    struct sl_policy policy;
    struct sl_policy_shape shape;
    uint64_t n_uses;
    uint64_t *last_use;       /* (n_layers, n_experts), in uses; 0: never */
    struct sl_slot_heap heap; /* by last use */
    uint32_t *positions;      /* (n_slots) */
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

    l.last_use =
        sl_arena_take(arena, (uint64_t)shape->n_layers * shape->n_experts, sizeof(*l.last_use));
    l.heap.items = sl_arena_take(arena, shape->n_slots, sizeof(*l.heap.items));
    l.positions = sl_arena_take(arena, shape->n_slots, sizeof(*l.positions));
    if (!lru)
        return NULL;
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

    sl_slot_heap_push(&lru->heap, lru->positions,
                      (struct sl_slot_heap_item){(double)lru->last_use[id], id, slot_index});
}

static void lru_withdraw(struct sl_policy *policy, uint32_t slot_index)
{
    struct lru *lru = lru_of(policy);

    sl_slot_heap_remove(&lru->heap, lru->positions, slot_index);
}

static uint32_t lru_choose(struct sl_policy *policy)
{
    struct lru *lru = lru_of(policy);

    return sl_slot_heap_pop(&lru->heap, lru->positions);
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
};
