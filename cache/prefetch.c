/* All loads that no open demand asks for: certain ones, the current prediction (of the caller, or
 * in sweeps of the next layer), and the preload. Nothing else in the cache speculates. */
#include "cache/cache_internal.h"
#include "cache/expert_cache.h"
#include "core/base/assert.h"

/* A preload ranks its experts by a made-up past of so many sweeps. */
#define PRELOAD_SWEEPS 8u

void sl_prefetch_carve(struct sl_expert_cache *cache, struct sl_arena *arena)
{
    const uint32_t experts = cache->shape.n_routed_experts;

    cache->prediction.experts = sl_arena_take(arena, experts, sizeof(*cache->prediction.experts));
    cache->prediction.foreseen = sl_arena_take(arena, experts, sizeof(*cache->prediction.foreseen));
    cache->prediction.was_missing =
        sl_arena_take(arena, experts, sizeof(*cache->prediction.was_missing));
    cache->pace.n_layers = cache->table.n_layers;
    cache->pace.expert_bytes = cache->slot_bytes;
    sl_pace_carve(&cache->pace, arena);
}

void sl_prefetch_start(struct sl_expert_cache *cache)
{
    sl_pace_start(&cache->pace);
}

/* ---- certain -----------------------------------------------------------------------------------
 */

static void prefetch_certain(struct sl_expert_cache *cache, const struct sl_expert_key *keys,
                             uint32_t n_keys)
{
    struct sl_policy *policy = cache->table.policy;

    /* Starts the open demand's loads first, so that the prefetch only takes what they leave. */
    sl_cache_progress(cache, false);
    for (uint32_t i = 0; i < n_keys; i++) {
        if (sl_slot_table_find(&cache->table, keys[i]))
            continue;
        if (!sl_slot_table_may_prefetch(&cache->table) ||
            !sl_cache_begin_load(cache, keys[i], SL_LOAD_CERTAIN))
            break;
        policy->ops->expect(policy, keys[i]);
    }
    sl_reader_start(cache->loader.reader);
}

/* ---- the current prediction --------------------------------------------------------------------
 */

static void add_predicted(struct sl_expert_cache *cache, uint16_t expert_index)
{
    const struct sl_expert_key key = {cache->prediction.layer_index, expert_index};

    cache->prediction.was_missing[cache->prediction.n] = !sl_slot_table_find(&cache->table, key);
    cache->prediction.experts[cache->prediction.n++] = expert_index;
    cache->prediction.foreseen[expert_index] = SL_FORESEEN;
    cache->prefetches.n_predicted++;
}

static void predict(struct sl_expert_cache *cache, const struct sl_expert_key *keys,
                    uint32_t n_keys)
{
    sl_assert(n_keys <= SL_PREDICTED_MAX);
    sl_prefetch_expire(cache);
    for (uint32_t i = 0; i < n_keys; i++) {
        sl_assert(keys[i].layer_index == keys[0].layer_index);
        cache->prediction.layer_index = keys[i].layer_index;
        add_predicted(cache, keys[i].expert_index);
    }
    sl_cache_progress(cache, false);
}

/* A sweep demands most of each layer's experts, so the next layer's are prefetched while this
 * layer's are computed with and while the next layer attends. */
void sl_prefetch_next_layer(struct sl_expert_cache *cache, uint16_t layer_index, uint32_t n_experts)
{
    const uint32_t n_all = cache->shape.n_routed_experts;
    const uint32_t n_max = sl_sweep_read_ahead(n_all, n_experts);

    if (!cache->prefetch_layers || n_max == 0 || layer_index + 1u >= cache->shape.num_hidden_layers)
        return;
    cache->prediction.whole_layer = true;
    cache->prediction.layer_index = (uint16_t)(layer_index + 1);
    for (uint32_t i = 0; i < n_all && cache->prediction.n < n_max; i++) {
        uint16_t expert = sl_expert_map_nth(cache->loader.store, layer_index + 1u, i);
        struct sl_expert_key key = {cache->prediction.layer_index, expert};

        if (!sl_slot_table_find(&cache->table, key))
            add_predicted(cache, expert);
    }
}

/* The layer just computed is evicted first from now on. Experts of the next layer that are already
 * resident count as used, so they are evicted last. */
static void pass_layer(struct sl_expert_cache *cache)
{
    struct sl_policy *policy = cache->table.policy;
    struct sl_expert_key key = {.layer_index = cache->prediction.layer_index};

    cache->prediction.visited = true;
    sl_slot_table_visit(&cache->table, key.layer_index);
    for (; key.expert_index < cache->shape.n_routed_experts; key.expert_index++) {
        struct sl_slot *slot = sl_slot_table_find(&cache->table, key);

        if (!slot || slot->state != SL_SLOT_READY)
            continue;
        policy->ops->withdraw(policy, sl_slot_index(&cache->table, slot));
        policy->ops->use(policy, key);
        policy->ops->offer(policy, sl_slot_index(&cache->table, slot), key);
    }
}

static bool begin_predicted(struct sl_expert_cache *cache, struct sl_expert_key key)
{
    const bool whole_layer = cache->prediction.whole_layer;
    struct sl_policy *policy = cache->table.policy;

    if (!(whole_layer ? sl_slot_table_may_prefetch_layer(&cache->table)
                      : sl_slot_table_may_prefetch(&cache->table)) ||
        !sl_cache_begin_load(cache, key, whole_layer ? SL_LOAD_LAYER : SL_LOAD_PREDICTED))
        return false;
    sl_slot_table_find(&cache->table, key)->predicted = true;
    if (cache->prediction.visited)
        policy->ops->use(policy, key);
    else if (whole_layer || !cache->is_paced)
        policy->ops->expect(policy, key);
    cache->prediction.n_loads++;
    cache->prediction.n_begun++;
    cache->prefetches.n_loads++;
    return true;
}

/* The drives have nothing to do that was demanded. */
static void note_idle(struct sl_expert_cache *cache)
{
    struct sl_prediction *prediction = &cache->prediction;
    const bool idles = prediction->n > 0 && !prediction->is_idle && !prediction->whole_layer;
    uint64_t now_ns;

    if (!cache->is_paced || (!idles && !cache->demand.is_timed))
        return;
    now_ns = sl_reader_clock_ns(cache->loader.reader);
    if (cache->demand.is_timed) {
        sl_pace_read(&cache->pace, cache->demand.read_bytes, now_ns - cache->demand.began_ns);
        sl_reader_set_predicted_bytes(cache->loader.reader, sl_pace_flight_bytes(&cache->pace));
        cache->demand.is_timed = false;
    }
    prediction->is_idle |= idles;
    if (idles)
        prediction->idle_since_ns = now_ns;
}

/* The rank whose precision stands for the prediction's expert number i: each token has one of it.
 */
static uint32_t rank_of(const struct sl_prediction *prediction, uint32_t i)
{
    return prediction->n > SL_PACE_RANKS ? i * SL_PACE_RANKS / prediction->n : i;
}

static bool pays(const struct sl_expert_cache *cache, uint32_t i)
{
    const struct sl_prediction *prediction = &cache->prediction;

    return !cache->is_paced || prediction->whole_layer ||
           sl_pace_pays(&cache->pace, prediction->layer_index, rank_of(prediction, i),
                        prediction->n_begun * cache->slot_bytes);
}

void sl_prefetch_begin_loads(struct sl_expert_cache *cache)
{
    struct sl_prediction *prediction = &cache->prediction;

    if (sl_demand_needs_drives(cache))
        return;
    note_idle(cache);
    /* A sweep waits until all pins are released: the best eviction candidates may still be pinned.
     */
    if (prediction->whole_layer && (cache->demand.open || cache->demand.n_pins > 0))
        return;
    if (prediction->whole_layer && !prediction->visited)
        pass_layer(cache);
    for (; prediction->next < prediction->n; prediction->next++) {
        struct sl_expert_key key = {prediction->layer_index, prediction->experts[prediction->next]};

        if (sl_slot_table_find(&cache->table, key) || !pays(cache, prediction->next))
            continue;
        if (!begin_predicted(cache, key))
            return;
    }
}

void sl_prefetch_demand_opens(struct sl_expert_cache *cache, uint16_t layer_index)
{
    struct sl_prediction *prediction = &cache->prediction;

    if (cache->is_paced && prediction->n > 0 && !prediction->whole_layer &&
        prediction->layer_index == layer_index) {
        prediction->is_judged = true;
        if (prediction->is_idle)
            prediction->idle_ns =
                sl_reader_clock_ns(cache->loader.reader) - prediction->idle_since_ns;
    }
    cache->demand.visit = cache->visit;
    cache->demand.visit.is_open &= cache->visit.layer_index == layer_index;
    cache->visit.is_open = false;
    prediction->next = prediction->n; /* loads that are not begun come too late */
    prediction->whole_layer = false;  /* nor is pass_layer() due any more */
    if (!prediction->visited || prediction->layer_index != layer_index)
        sl_slot_table_visit(&cache->table, layer_index);
}

void sl_prefetch_judge(struct sl_expert_cache *cache, struct sl_expert_key key)
{
    struct sl_prediction *prediction = &cache->prediction;
    const struct sl_slot *slot = sl_slot_table_find(&cache->table, key);

    if (slot && !slot->predicted)
        cache->demand.visit.n_found++;
    else
        cache->demand.visit.n_missing++;
    if (prediction->layer_index != key.layer_index || !prediction->foreseen[key.expert_index])
        return;
    cache->prefetches.n_predicted_right++;
    prediction->foreseen[key.expert_index] = SL_FORESEEN_RIGHTLY;
}

/* Not where some of the reads were begun before. */
void sl_prefetch_time_reads(struct sl_expert_cache *cache)
{
    struct sl_demand *demand = &cache->demand;

    demand->is_timed = false;
    if (!cache->is_paced || demand->n_missing == 0 || demand->n_awaited > 0)
        return;
    demand->is_timed = true;
    demand->began_ns = sl_reader_clock_ns(cache->loader.reader);
    demand->read_bytes = demand->n_missing * cache->slot_bytes;
}

void sl_prefetch_demand_ends(struct sl_expert_cache *cache)
{
    struct sl_visit *visit = &cache->demand.visit;

    if (visit->is_open)
        sl_pace_visited(&cache->pace, &(struct sl_pace_visit){
                                          .layer_index = visit->layer_index,
                                          .is_predicted = visit->is_predicted,
                                          .n_missing = visit->n_missing,
                                          .n_found = visit->n_found,
                                          .elapsed_ns = sl_reader_clock_ns(cache->loader.reader) -
                                                        visit->since_ns,
                                      });
    visit->is_open = false;
}

static void cancel_load(struct sl_expert_cache *cache, struct sl_slot *slot)
{
    cache->prefetches.wasted_bytes +=
        sl_expert_loader_cancel(&cache->loader, sl_slot_index(&cache->table, slot));
    sl_slot_table_drop(&cache->table, slot, true);
}

/* The prediction ends while this slot holds, or loads, an expert that it brought. One that came in
 * vain leaves its slot to the next prediction, where that needs it. */
static void expire_slot(struct sl_expert_cache *cache, struct sl_slot *slot)
{
    slot->predicted = false;
    if (slot->state == SL_SLOT_READY) { /* it was not demanded, and counts as read in vain */
        if (sl_slot_table_lacks_spare(&cache->table))
            sl_slot_table_discard(&cache->table, slot);
        else
            sl_slot_table_end_prefetch(&cache->table, slot);
        return;
    }
    cache->prediction.n_loads--;
    if (slot->state == SL_SLOT_LOADING_PREFETCH)
        cancel_load(cache, slot);
    else if (sl_slot_is_loading(slot))
        cache->prefetches.n_late++;
    else
        cache->prefetches.n_hits++;
}

/* Learns from a prediction whose demand has come. */
static void learn(struct sl_expert_cache *cache)
{
    const struct sl_prediction *prediction = &cache->prediction;

    for (uint32_t i = 0; i < prediction->n; i++)
        if (prediction->was_missing[i])
            sl_pace_judge(&cache->pace, prediction->layer_index, rank_of(prediction, i),
                          prediction->foreseen[prediction->experts[i]] == SL_FORESEEN_RIGHTLY);
    sl_pace_idled(&cache->pace, prediction->layer_index, prediction->idle_ns);
}

void sl_prefetch_expire(struct sl_expert_cache *cache)
{
    struct sl_prediction *prediction = &cache->prediction;

    for (uint32_t i = 0; i < prediction->n; i++) {
        struct sl_expert_key key = {prediction->layer_index, prediction->experts[i]};
        struct sl_slot *slot = sl_slot_table_find(&cache->table, key);

        if (slot && slot->predicted)
            expire_slot(cache, slot);
    }
    if (prediction->is_judged)
        learn(cache);
    for (uint32_t i = 0; i < prediction->n; i++)
        prediction->foreseen[prediction->experts[i]] = SL_UNFORESEEN;
    cache->prefetches.wasted_bytes += prediction->n_loads * cache->slot_bytes;
    *prediction = (struct sl_prediction){.experts = prediction->experts,
                                         .foreseen = prediction->foreseen,
                                         .was_missing = prediction->was_missing};
}

/* ---- the source's operations -------------------------------------------------------------------
 */

void sl_prefetch_ask(struct sl_expert_source *source, enum sl_prefetch_kind kind,
                     const struct sl_expert_key *keys, uint32_t n_keys)
{
    struct sl_expert_cache *cache = sl_expert_cache_of(source);

    if (kind == SL_PREFETCH_CERTAIN)
        prefetch_certain(cache, keys, n_keys);
    else
        predict(cache, keys, n_keys);
}

/* Opens the visit, and makes room for its prediction. */
static void open_visit(struct sl_expert_cache *cache, uint16_t layer_index)
{
    const uint32_t n_experts = cache->table.n_layers * cache->table.n_experts;
    bool wants;

    cache->pace.n_slots = cache->table.n_slots;
    wants = sl_pace_wants(&cache->pace);
    cache->visit =
        (struct sl_visit){.is_open = true,
                          .is_predicted = wants,
                          .layer_index = layer_index,
                          .n_missing = (double)cache->demand.left_bytes / (double)cache->slot_bytes,
                          .since_ns = sl_reader_clock_ns(cache->loader.reader)};
    /* Where there is a slot for every expert, one that is missing has an empty slot anyway. */
    cache->table.n_spare =
        (wants || sl_pace_is_on(&cache->pace)) && cache->table.n_slots < n_experts
            ? sl_pace_spare_slots(&cache->pace)
            : 0;
    sl_slot_table_spare(&cache->table);
}

/* A good moment is when the drives have nothing to do that was demanded, so that what is predicted
 * can be read; or when the step has nothing else to do than wait for them. */
bool sl_prefetch_wants(struct sl_expert_source *source, uint16_t layer_index)
{
    struct sl_expert_cache *cache = sl_expert_cache_of(source);

    sl_cache_progress(cache, false);
    if (cache->is_paced) {
        if (!cache->visit.is_open || cache->visit.layer_index != layer_index)
            open_visit(cache, layer_index);
        if (!cache->visit.is_predicted)
            return false;
    }
    return !sl_demand_needs_drives(cache) || sl_list_is_empty(&cache->demand.claimed);
}

/* Prefetched experts count as any others from now on; those on their way land, for whoever asks. */
void sl_prefetch_forget(struct sl_expert_source *source)
{
    struct sl_expert_cache *cache = sl_expert_cache_of(source);

    sl_assert(!cache->demand.open);
    sl_prefetch_expire(cache);
    for (uint32_t i = 0; i < cache->table.n_slots; i++)
        sl_slot_table_end_prefetch(&cache->table, &cache->table.slots[i]);
}

/* ---- preload -----------------------------------------------------------------------------------
 */

static bool may_preload(struct sl_expert_cache *cache, struct sl_expert_key key)
{
    return key.layer_index < cache->table.n_layers && key.expert_index < cache->table.n_experts &&
           !sl_slot_table_find(&cache->table, key);
}

/* Makes the policy rank the keys as the hot list does: as if the best had been demanded in each of
 * PRELOAD_SWEEPS sweeps, and the last in the first one alone. */
static void pretend_uses(struct sl_expert_cache *cache, const struct sl_expert_key *keys,
                         uint32_t n_keys)
{
    struct sl_policy *policy = cache->table.policy;

    for (uint32_t sweep = 0; sweep < PRELOAD_SWEEPS; sweep++) {
        uint64_t n = (uint64_t)n_keys * (PRELOAD_SWEEPS - sweep) / PRELOAD_SWEEPS;

        for (uint32_t layer = 0; layer < cache->table.n_layers; layer++)
            sl_slot_table_visit(&cache->table, (uint16_t)layer);
        while (n-- > 0)
            if (may_preload(cache, keys[n]))
                policy->ops->use(policy, keys[n]);
    }
}

void sl_expert_cache_preload(struct sl_expert_cache *cache, const struct sl_expert_key *keys,
                             uint32_t n_keys, const atomic_bool *stop, sl_progress_fn *on_progress,
                             void *context)
{
    uint32_t n_room = 0, n = 0;

    sl_assert(!cache->demand.open);
    for (uint32_t i = 0; i < cache->table.n_slots; i++)
        n_room += cache->table.slots[i].state == SL_SLOT_EMPTY;
    while (n < n_keys && n_room > 0)
        n_room -= may_preload(cache, keys[n++]);
    if (n == 0)
        return;
    pretend_uses(cache, keys, n);
    for (uint32_t i = 0; i < n && !(stop && atomic_load(stop)); i++) {
        while (sl_expert_loader_is_full(&cache->loader) &&
               !sl_expert_loader_is_idle(&cache->loader))
            sl_cache_progress(cache, true);
        if (may_preload(cache, keys[i])) {
            if (!sl_cache_begin_load(cache, keys[i], SL_LOAD_PRELOAD))
                break; /* no slot or staging buffer is free: stalled drives still own them */
            cache->prefetches.n_preloads++;
            sl_reader_start(cache->loader.reader);
        }
        if (on_progress)
            on_progress(context, i + 1, n);
    }
    while (!sl_expert_loader_is_idle(&cache->loader))
        sl_cache_progress(cache, true);
}
