/* How often an expert was asked for lately: each demand counts 1 and fades to a half within
 * HALF_LIFE_VISITS visits of its layer, which for one user are tokens.
 *
 * Visits are the clock. So an expert's rank need not change while its layer is not visited, and
 * experts of layers that this sweep has passed and of those to come compare alike. As all counts
 * fade at the same rate, what is ranked is the logarithm of the count as it would be at visit 0, a
 * number that stays as it is until the next demand.
 *
 * Tried, by replay (docs/PERFORMANCE.md), and left out: the distance to the layer's next visit, and
 * a second, slower count. */
#include <math.h>
#include <stdbool.h>

#include "cache/policy.h"
#include "cache/slot_heap.h"

#define HALF_LIFE_VISITS 48.0

/* Above all counts: an expert that is asked for at every visit comes to 69.7, 2^6.1. What is
 * expected goes after all others then; and should the demand never come, it fades like them. */
#define EXPECTED_RANK 7.0

struct count {
    double rank;    /* log2 of the count, plus what it will have faded by since visit 0 */
    uint64_t visit; /* the latest that was counted; 0: none */
};

struct frequency {
    struct sl_policy policy;
    struct sl_policy_shape shape;
    uint64_t *visits;         /* (n_layers) the latest of each; they are numbered by sweeps */
    uint64_t sweep;           /* the latest visit of any layer */
    struct count *counts;     /* (n_layers, n_experts) */
    struct sl_slot_heap heap; /* by rank */
    uint32_t *positions;      /* (n_slots) */
};

static struct frequency *frequency_of(struct sl_policy *policy)
{
    return (struct frequency *)(void *)policy;
}

static uint32_t id_of(const struct frequency *f, struct sl_expert_key key)
{
    return key.layer_index * f->shape.n_experts + key.expert_index;
}

static struct sl_policy *frequency_carve(struct sl_arena *arena,
                                         const struct sl_policy_shape *shape)
{
    struct frequency *frequency = sl_arena_take(arena, 1, sizeof(*frequency));
    struct frequency f = {.policy = {&sl_policy_frequency}, .shape = *shape};

    f.visits = sl_arena_take(arena, shape->n_layers, sizeof(*f.visits));
    f.counts =
        sl_arena_take(arena, (uint64_t)shape->n_layers * shape->n_experts, sizeof(*f.counts));
    f.heap.items = sl_arena_take(arena, shape->n_slots, sizeof(*f.heap.items));
    f.positions = sl_arena_take(arena, shape->n_slots, sizeof(*f.positions));
    if (!frequency)
        return NULL;
    *frequency = f;
    return &frequency->policy;
}

/* A layer that not every sweep comes to (an MTP block) takes up the count of the others. */
static uint64_t next_visit(const struct frequency *f, uint16_t layer_index)
{
    uint64_t visit = f->visits[layer_index] + 1;

    return visit > f->sweep ? visit : f->sweep;
}

static void frequency_visit(struct sl_policy *policy, uint16_t layer_index)
{
    struct frequency *f = frequency_of(policy);

    f->sweep = f->visits[layer_index] = next_visit(f, layer_index);
}

/* An expert that was expected is not counted again when the visit comes. */
static void count(struct frequency *f, struct sl_expert_key key, uint64_t visit)
{
    struct count *count = &f->counts[id_of(f, key)];
    double now = (double)visit / HALF_LIFE_VISITS;

    if (count->visit == visit)
        return;
    count->rank = count->visit ? now + log2(1 + exp2(count->rank - now)) : now;
    count->visit = visit;
}

static void frequency_use(struct sl_policy *policy, struct sl_expert_key key)
{
    struct frequency *f = frequency_of(policy);

    count(f, key, f->visits[key.layer_index]);
}

static void frequency_expect(struct sl_policy *policy, struct sl_expert_key key)
{
    struct frequency *f = frequency_of(policy);

    count(f, key, next_visit(f, key.layer_index));
}

static void frequency_offer(struct sl_policy *policy, uint32_t slot_index, struct sl_expert_key key)
{
    struct frequency *f = frequency_of(policy);
    uint32_t id = id_of(f, key);
    const struct count *count = &f->counts[id];
    bool expected = count->visit > f->visits[key.layer_index];
    double rank = expected ? (double)count->visit / HALF_LIFE_VISITS + EXPECTED_RANK : count->rank;

    sl_slot_heap_push(&f->heap, f->positions, (struct sl_slot_heap_item){rank, id, slot_index});
}

static void frequency_withdraw(struct sl_policy *policy, uint32_t slot_index)
{
    struct frequency *f = frequency_of(policy);

    sl_slot_heap_remove(&f->heap, f->positions, slot_index);
}

static uint32_t frequency_choose(struct sl_policy *policy)
{
    struct frequency *f = frequency_of(policy);

    return sl_slot_heap_pop(&f->heap, f->positions);
}

const struct sl_policy_ops sl_policy_frequency = {
    .name = "frequency",
    .carve = frequency_carve,
    .visit = frequency_visit,
    .use = frequency_use,
    .expect = frequency_expect,
    .offer = frequency_offer,
    .withdraw = frequency_withdraw,
    .choose = frequency_choose,
};
