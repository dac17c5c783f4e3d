/* How soon an expert will be asked for again, by how often it was and by where its layer is in the
 * sweep: the one that is expected last makes room.
 *
 * Each demand of an expert counts 1 and fades to a half within HALF_LIFE_VISITS visits of its
 * layer, which for one user are tokens. Over the count of an expert that is asked for at every
 * visit this is its chance p at the next one. That is `distance` layers away, and 1 / p - 1 more
 * sweeps are to be expected. So where experts are asked for alike, as by a long prompt, those of
 * the layer just passed go first.
 *
 * Inside a layer the order is that of the counts. As they fade at the same rate, what is ranked is
 * the logarithm of the count as it would be at visit 0, a number that stays as it is until the next
 * demand. Each layer has a heap, and a choice is one among their tops. What the open demand has
 * used goes after them, for which of it is back already depends on the drives; and last what is
 * expected. */
#include <math.h>
#include <stdbool.h>

#include "cache/policy.h"
#include "cache/slot_heap.h"

#define HALF_LIFE_VISITS 48.0

/* Above all counts: an expert that is asked for at every visit comes to 69.7, 2^6.1. Should the
 * demand never come, it fades like them. */
#define EXPECTED_RANK 7.0
#define EXPECTED_CHANCE 1.01 /* more than that is no chance: 1 and an error of rounding at most */

struct count {
    double rank;    /* log2 of the count, plus what it will have faded by since visit 0 */
    uint64_t visit; /* the latest that was counted; 0: none */
};

struct frequency {
    struct sl_policy policy;
    struct sl_policy_shape shape;
    uint16_t layer_index;       /* visited last */
    uint64_t sweep;             /* the latest visit of any layer */
    uint64_t *visits;           /* (n_layers) the latest of each; they are numbered by sweeps */
    double *always_rank;        /* (n_layers) of an expert that was asked for at all visits */
    struct count *counts;       /* (n_layers, n_experts) */
    struct sl_slot_heap *heaps; /* (n_layers) by rank */
    struct sl_slot_heap used;   /* what the latest visit asked for and is on offer again */
    uint32_t *positions;        /* (n_slots) */
    struct sl_slot_heap **in;   /* (n_slots) the heap that has it */
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
    const uint64_t n_ids = (uint64_t)shape->n_layers * shape->n_experts;
    struct sl_slot_heap_item *items;

    f.visits = sl_arena_take(arena, shape->n_layers, sizeof(*f.visits));
    f.always_rank = sl_arena_take(arena, shape->n_layers, sizeof(*f.always_rank));
    f.counts = sl_arena_take(arena, n_ids, sizeof(*f.counts));
    f.heaps = sl_arena_take(arena, shape->n_layers, sizeof(*f.heaps));
    items = sl_arena_take(arena, n_ids, sizeof(*items));
    f.used.items = sl_arena_take(arena, shape->n_slots, sizeof(*f.used.items));
    f.positions = sl_arena_take(arena, shape->n_slots, sizeof(*f.positions));
    f.in = sl_arena_take(arena, shape->n_slots, sizeof(*f.in));
    if (!frequency)
        return NULL;
    for (uint32_t layer = 0; layer < shape->n_layers; layer++)
        f.heaps[layer].items = items + (size_t)layer * shape->n_experts;
    *frequency = f;
    return &frequency->policy;
}

static void push(struct frequency *f, struct sl_slot_heap *heap, struct sl_slot_heap_item item)
{
    f->in[item.slot_index] = heap;
    sl_slot_heap_push(heap, f->positions, item);
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
    uint64_t visit = next_visit(f, layer_index);

    while (f->used.n > 0) { /* from now on it is like any other */
        struct sl_slot_heap_item item = f->used.items[0];

        sl_slot_heap_pop(&f->used, f->positions);
        push(f, &f->heaps[item.id / f->shape.n_experts], item);
    }
    f->layer_index = layer_index;
    f->sweep = f->visits[layer_index] = visit;
    f->always_rank[layer_index] =
        (double)visit / HALF_LIFE_VISITS +
        log2((1 - exp2(-(double)visit / HALF_LIFE_VISITS)) / (1 - exp2(-1 / HALF_LIFE_VISITS)));
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
    const uint64_t visit = f->visits[key.layer_index];
    double rank = count->visit > visit ? (double)count->visit / HALF_LIFE_VISITS + EXPECTED_RANK
                                       : count->rank;
    bool used = key.layer_index == f->layer_index && count->visit == visit;

    push(f, used ? &f->used : &f->heaps[key.layer_index],
         (struct sl_slot_heap_item){rank, id, slot_index});
}

static void frequency_withdraw(struct sl_policy *policy, uint32_t slot_index)
{
    struct frequency *f = frequency_of(policy);

    sl_slot_heap_remove(f->in[slot_index], f->positions, slot_index);
}

/* Layers to go, as far as can be told, until the layer's least wanted expert is asked for: at least
 * 1, and less for one that is expected. */
static double expect_layers(const struct frequency *f, uint32_t layer)
{
    const uint32_t n_layers = f->shape.n_layers;
    double chance = exp2(f->heaps[layer].items[0].rank - f->always_rank[layer]);
    uint32_t distance = (layer + n_layers - f->layer_index) % n_layers;

    if (distance == 0)
        distance = n_layers;
    if (chance > EXPECTED_CHANCE)
        return 1 / chance;
    return chance < 1 ? distance + n_layers * (1 / chance - 1) : distance;
}

static uint32_t frequency_choose(struct sl_policy *policy)
{
    struct frequency *f = frequency_of(policy);
    struct sl_slot_heap *last = &f->used;
    double layers_max = 0;

    for (uint32_t layer = 0; layer < f->shape.n_layers; layer++) {
        double layers = f->heaps[layer].n > 0 ? expect_layers(f, layer) : 0;

        if (layers > layers_max) {
            layers_max = layers;
            last = &f->heaps[layer];
        }
    }
    if (layers_max < 1 && f->used.n > 0)
        last = &f->used;
    return sl_slot_heap_pop(last, f->positions);
}

static uint32_t frequency_choose_of(struct sl_policy *policy, uint16_t layer_index)
{
    struct frequency *f = frequency_of(policy);
    struct sl_slot_heap *heap = &f->heaps[layer_index];

    /* Only the layer that was visited last has experts in `used`. */
    if (heap->n == 0 && layer_index == f->layer_index)
        heap = &f->used;
    return sl_slot_heap_pop(heap, f->positions);
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
    .choose_of = frequency_choose_of,
};
