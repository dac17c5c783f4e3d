#include "cache/cache_replay.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cache/expert_cache.h"
#include "core/base/assert.h"

#define NEVER UINT32_MAX

struct sl_replay_plan {
    struct sl_trace_shape shape;
    uint64_t n_tokens;
    uint64_t n_demands; /* demand i is of layer i % num_hidden_layers */
    uint64_t *first;    /* (n_demands + 1) first of its experts */
    uint16_t *experts;  /* ascending inside a demand */
};

static struct sl_expert_key key_of(const struct sl_replay_plan *plan, uint64_t demand, uint64_t use)
{
    return (struct sl_expert_key){(uint16_t)(demand % plan->shape.num_hidden_layers),
                                  plan->experts[use]};
}

/* ---- the optimum -------------------------------------------------------------------------------
 * A policy that reads on in the plan. */

struct optimum {
    struct sl_policy policy;
    uint32_t n_experts;
    struct sl_slot_heap heap;
    uint32_t *positions;

    const struct sl_replay_plan *plan;
    const uint32_t *next_demand; /* by use: that asks for the same expert again, or NEVER */
    uint64_t demand, use;        /* to come */
    uint32_t *next_of;           /* by expert */
};

static struct optimum *optimum_of(struct sl_policy *policy)
{
    return (struct optimum *)(void *)policy;
}

static const struct sl_policy_ops optimum_ops;

static struct sl_policy *optimum_carve(struct sl_arena *arena, const struct sl_policy_shape *shape)
{
    struct optimum *optimum = sl_arena_take(arena, 1, sizeof(*optimum));
    struct optimum o = {.policy = {&optimum_ops}, .n_experts = shape->n_experts};

    o.heap.items = sl_arena_take(arena, shape->n_slots, sizeof(*o.heap.items));
    o.positions = sl_arena_take(arena, shape->n_slots, sizeof(*o.positions));
    o.next_of =
        sl_arena_take(arena, (uint64_t)shape->n_layers * shape->n_experts, sizeof(*o.next_of));
    if (!optimum)
        return NULL;
    *optimum = o;
    return &optimum->policy;
}

static void optimum_visit(struct sl_policy *policy, uint16_t layer_index)
{
    struct optimum *o = optimum_of(policy);

    (void)layer_index;
    o->use = o->plan->first[o->demand++];
}

static void optimum_use(struct sl_policy *policy, struct sl_expert_key key)
{
    struct optimum *o = optimum_of(policy);

    o->next_of[key.layer_index * o->n_experts + key.expert_index] = o->next_demand[o->use++];
}

static void optimum_offer(struct sl_policy *policy, uint32_t slot_index, struct sl_expert_key key)
{
    struct optimum *o = optimum_of(policy);
    uint32_t id = key.layer_index * o->n_experts + key.expert_index;

    sl_slot_heap_push(&o->heap, o->positions,
                      (struct sl_slot_heap_item){-(double)o->next_of[id], id, slot_index});
}

static void optimum_withdraw(struct sl_policy *policy, uint32_t slot_index)
{
    sl_slot_heap_remove(&optimum_of(policy)->heap, optimum_of(policy)->positions, slot_index);
}

static uint32_t optimum_choose(struct sl_policy *policy)
{
    return sl_slot_heap_pop(&optimum_of(policy)->heap, optimum_of(policy)->positions);
}

/* There is no expect(): a replay of the optimum prefetches nothing. */
static const struct sl_policy_ops optimum_ops = {
    .name = "optimum",
    .carve = optimum_carve,
    .visit = optimum_visit,
    .use = optimum_use,
    .offer = optimum_offer,
    .withdraw = optimum_withdraw,
    .choose = optimum_choose,
};

/* NULL when out of memory. */
static uint32_t *look_ahead(const struct sl_replay_plan *plan)
{
    const struct sl_trace_shape *shape = &plan->shape;
    const size_t n_ids = (size_t)shape->num_hidden_layers * shape->n_routed_experts;
    uint32_t *next_demand = malloc(plan->first[plan->n_demands] * sizeof(*next_demand));
    uint32_t *next_of = malloc(n_ids * sizeof(*next_of));

    if (next_demand && next_of) {
        memset(next_of, 0xff, n_ids * sizeof(*next_of));
        for (uint64_t d = plan->n_demands; d-- > 0;)
            for (uint64_t use = plan->first[d]; use < plan->first[d + 1]; use++) {
                struct sl_expert_key key = key_of(plan, d, use);
                uint32_t id = key.layer_index * shape->n_routed_experts + key.expert_index;

                next_demand[use] = next_of[id];
                next_of[id] = (uint32_t)d;
            }
    } else {
        free(next_demand);
        next_demand = NULL;
    }
    free(next_of);
    return next_demand;
}

/* ---- the plan ----------------------------------------------------------------------------------
 */

static uint64_t count_steps(const struct sl_trace *trace, const struct sl_replay_steps *steps)
{
    const uint32_t segment = steps->segment_tokens;

    if (steps->n_sequences)
        return trace->n_tokens / steps->n_sequences;
    return segment ? (trace->n_tokens + segment - 1) / segment : trace->n_steps;
}

/* A step's tokens: `n` of them, from `first`, `stride` apart. */
struct step_tokens {
    uint64_t first, n, stride;
};

static struct step_tokens step_tokens(const struct sl_trace *trace,
                                      const struct sl_replay_steps *steps, uint64_t step,
                                      uint64_t first)
{
    const uint64_t left = trace->n_tokens - first;
    uint64_t n = steps->segment_tokens;

    if (steps->n_sequences)
        return (struct step_tokens){step, steps->n_sequences, count_steps(trace, steps)};
    if (n == 0)
        n = trace->step_tokens[step];
    return (struct step_tokens){first, n < left ? n : left, 1};
}

/* The distinct experts of the tokens in each layer, as the step's demands. */
static void add_step(struct sl_replay_plan *plan, const struct sl_trace *trace,
                     const struct step_tokens *tokens, uint8_t *wanted)
{
    const uint32_t layers = trace->shape.num_hidden_layers, k = trace->shape.n_per_token;
    const uint32_t experts = trace->shape.n_routed_experts;

    for (uint32_t layer = 0; layer < layers; layer++) {
        uint64_t use = plan->first[plan->n_demands];

        memset(wanted, 0, experts);
        for (uint64_t i = 0; i < tokens->n; i++) {
            const uint64_t token = tokens->first + i * tokens->stride;

            for (uint32_t s = 0; s < k; s++)
                wanted[trace->experts[(token * layers + layer) * k + s]] = 1;
        }
        for (uint32_t e = 0; e < experts; e++)
            if (wanted[e])
                plan->experts[use++] = (uint16_t)e;
        plan->first[++plan->n_demands] = use;
    }
    plan->n_tokens += tokens->n;
}

int sl_replay_plan_create(struct sl_replay_plan **ret_plan, const struct sl_trace *trace,
                          const struct sl_replay_steps *steps, struct sl_err *err)
{
    const uint64_t n_steps = count_steps(trace, steps);
    const uint64_t n_demands = n_steps * trace->shape.num_hidden_layers;
    struct sl_replay_plan *plan;
    uint8_t *wanted;
    int rc = 0;

    if (n_steps == 0)
        return sl_err_set(err, -SL_EFORMAT, "a trace of %llu tokens is none of %u sequences",
                          (unsigned long long)trace->n_tokens, steps->n_sequences);
    plan = calloc(1, sizeof(*plan));
    wanted = malloc(trace->shape.n_routed_experts);
    if (plan) {
        plan->shape = trace->shape;
        plan->first = calloc(n_demands + 1, sizeof(*plan->first));
        plan->experts =
            calloc(trace->n_tokens, sizeof(*plan->experts) * trace->shape.num_hidden_layers *
                                        trace->shape.n_per_token);
    }
    if (!plan || !wanted || !plan->first || !plan->experts || n_demands >= NEVER)
        rc = sl_err_set(err, -ENOMEM, "replay: out of memory");
    for (uint64_t step = 0; step < n_steps && rc == 0; step++) {
        const struct step_tokens tokens = step_tokens(trace, steps, step, plan->n_tokens);

        add_step(plan, trace, &tokens, wanted);
    }
    free(wanted);
    if (rc == 0)
        *ret_plan = plan;
    else
        sl_replay_plan_destroy(plan);
    return rc;
}

uint64_t sl_replay_plan_tokens(const struct sl_replay_plan *plan)
{
    return plan->n_tokens;
}

void sl_replay_plan_destroy(struct sl_replay_plan *plan)
{
    if (!plan)
        return;
    free(plan->first);
    free(plan->experts);
    free(plan);
}

/* ---- the run -----------------------------------------------------------------------------------
 */

struct replay {
    const struct sl_replay_plan *plan;
    struct sl_slot_table table;
    struct sl_slot **claimed; /* (n_slots) of the open demand */
    uint32_t n_claimed;
    uint64_t *missing; /* (n_routed_experts) uses */
};

static void release_all(struct replay *replay)
{
    for (uint32_t i = 0; i < replay->n_claimed; i++)
        sl_slot_table_ready(&replay->table, replay->claimed[i]);
    replay->n_claimed = 0;
}

static void keep(struct replay *replay, struct sl_slot *slot)
{
    replay->claimed[replay->n_claimed++] = slot;
}

static void run_demand(struct replay *replay, uint64_t demand)
{
    const struct sl_replay_plan *plan = replay->plan;
    struct sl_slot_table *table = &replay->table;
    uint32_t n_missing = 0;

    sl_slot_table_open(table, (uint32_t)(plan->first[demand + 1] - plan->first[demand]));
    sl_slot_table_visit(table, key_of(plan, demand, 0).layer_index);
    for (uint64_t use = plan->first[demand]; use < plan->first[demand + 1]; use++) {
        struct sl_slot *slot = sl_slot_table_claim(table, key_of(plan, demand, use));

        if (slot)
            keep(replay, slot);
        else
            replay->missing[n_missing++] = use;
    }
    for (uint32_t i = 0; i < n_missing; i++) {
        struct sl_expert_key key = key_of(plan, demand, replay->missing[i]);
        struct sl_slot *slot =
            sl_slot_table_take(table, key, SL_LOAD_DEMAND, replay->n_claimed > 0);

        if (!slot) { /* more than there is room for: those claimed before have been used by now */
            release_all(replay);
            slot = sl_slot_table_take(table, key, SL_LOAD_DEMAND, false);
        }
        sl_slot_set(slot, SL_SLOT_CLAIMED);
        keep(replay, slot);
    }
    release_all(replay);
}

/* The forward pass prefetches the hash-routed layers before each step. */
static void prefetch_certain(struct replay *replay, uint64_t first_demand)
{
    const struct sl_replay_plan *plan = replay->plan;

    for (uint64_t d = first_demand; d < first_demand + plan->shape.num_hash_layers; d++)
        for (uint64_t use = plan->first[d]; use < plan->first[d + 1]; use++) {
            struct sl_expert_key key = key_of(plan, d, use);
            struct sl_slot *slot;

            if (sl_slot_table_find(&replay->table, key))
                continue;
            if (!sl_slot_table_may_prefetch(&replay->table))
                break;
            slot = sl_slot_table_take(&replay->table, key, SL_LOAD_CERTAIN, true);
            if (!slot)
                break;
            replay->table.policy->ops->expect(replay->table.policy, key);
            sl_slot_table_ready(&replay->table, slot);
        }
}

static void carve(struct replay *replay, struct sl_arena *arena, const struct sl_policy_ops *ops)
{
    sl_slot_table_carve(&replay->table, arena, ops);
    replay->claimed = sl_arena_take(arena, replay->table.n_slots_max, sizeof(*replay->claimed));
    replay->missing = sl_arena_take(arena, replay->table.n_experts, sizeof(*replay->missing));
}

int sl_replay_run(const struct sl_replay_plan *plan, const struct sl_policy_ops *policy,
                  uint32_t n_slots, struct sl_slot_counters *ret_counters, struct sl_err *err)
{
    const struct sl_policy_ops *ops = policy ? policy : &optimum_ops;
    struct replay replay = {.plan = plan};
    struct sl_arena measure, arena;
    uint32_t *next_demand = NULL;
    int rc;

    sl_assert(n_slots >= plan->shape.n_per_token);
    replay.table.n_layers = plan->shape.num_hidden_layers;
    replay.table.n_experts = plan->shape.n_routed_experts;
    replay.table.n_slots_max = n_slots;
    replay.table.sweep_experts_min =
        policy ? sl_sweep_experts_min(plan->shape.n_routed_experts, plan->shape.n_per_token)
               : UINT32_MAX; /* who knows the future pins nothing */
    sl_arena_init_measure(&measure);
    carve(&replay, &measure, ops);
    rc = sl_arena_map(&arena, measure.used_bytes, "replay", err);
    if (rc < 0)
        return rc;
    carve(&replay, &arena, ops);
    sl_slot_table_start(&replay.table, n_slots,
                        sl_expert_cache_inflight_default(plan->shape.n_per_token));
    if (!policy) {
        next_demand = look_ahead(plan);
        if (!next_demand) {
            sl_arena_fini(&arena);
            return sl_err_set(err, -ENOMEM, "replay: out of memory");
        }
        optimum_of(replay.table.policy)->plan = plan;
        optimum_of(replay.table.policy)->next_demand = next_demand;
    }
    for (uint64_t d = 0; d < plan->n_demands; d++) {
        if (policy && d % plan->shape.num_hidden_layers == 0)
            prefetch_certain(&replay, d);
        run_demand(&replay, d);
    }
    *ret_counters = replay.table.counters;
    free(next_demand);
    sl_arena_fini(&arena);
    return 0;
}
