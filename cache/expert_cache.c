/* Owns the slab: how many slots it has, and what they hold when nobody demands anything. Demands,
 * guesses and loans are cache/expert_lending.c's. */
#include "cache/expert_cache.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cache/expert_lending.h"
#include "core/base/arena.h"
#include "core/base/assert.h"
#include "core/base/size.h"
#include "core/kernels/r16.h"

struct sl_expert_cache {
    struct sl_lending lending;
    struct sl_arena arena;
    uint32_t num_experts_per_tok, n_slots_min;
    uint64_t n_preloads;
    bool staging_attached;
};

uint32_t sl_expert_cache_inflight_default(uint32_t num_experts_per_tok)
{
    return 3 * num_experts_per_tok;
}

uint64_t sl_expert_cache_slot_bytes(const struct sl_expert_shape *shape)
{
    return sl_packed_expert_bytes(shape);
}

uint32_t sl_expert_cache_slots_min(const struct sl_expert_shape *shape,
                                   uint32_t num_experts_per_tok)
{
    return num_experts_per_tok * (shape->num_hidden_layers + shape->n_mtp_layers);
}

uint64_t sl_expert_cache_staging_bytes(const struct sl_expert_map *store, uint32_t inflight_max)
{
    return inflight_max * sl_expert_load_staging_bytes(store);
}

static void carve(struct sl_expert_cache *cache, struct sl_arena *arena,
                  const struct sl_policy_ops *policy)
{
    sl_slab_carve(&cache->lending.slab, arena, cache->lending.slot_bytes,
                  cache->lending.table.n_slots_max);
    sl_expert_loader_carve(&cache->lending.loader, arena);
    sl_slot_table_carve(&cache->lending.table, arena, policy);
    sl_lending_carve(&cache->lending, arena);
}

static void set_shape(struct sl_expert_cache *cache, const struct sl_expert_map *store)
{
    struct sl_lending *lending = &cache->lending;

    lending->shape = *sl_expert_map_shape(store);
    lending->slot_bytes = sl_expert_cache_slot_bytes(&lending->shape);
    lending->table.n_layers = lending->shape.num_hidden_layers + lending->shape.n_mtp_layers;
    lending->table.n_experts = lending->shape.n_routed_experts;
}

static const struct sl_policy_ops *policy_or_default(const struct sl_policy_ops *policy)
{
    return policy ? policy : &sl_policy_frequency;
}

uint64_t sl_expert_cache_table_bytes(const struct sl_expert_map *store, uint32_t inflight_max,
                                     const struct sl_policy_ops *policy, uint32_t n_threads)
{
    struct sl_expert_cache cache = {0};
    struct sl_arena all, buffers;

    set_shape(&cache, store);
    cache.lending.table.n_slots_max = cache.lending.table.n_layers * cache.lending.table.n_experts;
    sl_expert_loader_init(&cache.lending.loader, store, NULL, NULL, inflight_max, SL_VERIFY_NEVER);
    cache.lending.loader.n_threads = n_threads;
    sl_arena_init_measure(&all);
    carve(&cache, &all, policy_or_default(policy));
    sl_arena_init_measure(&buffers);
    sl_arena_take(&buffers, cache.lending.table.n_slots_max, cache.lending.slot_bytes);
    sl_arena_take(&buffers, 1, sl_expert_cache_staging_bytes(store, inflight_max));
    return all.used_bytes - buffers.used_bytes + SL_HUGE_PAGE_BYTES; /* an arena is whole ones */
}

/* How many slots a slab makes, if they are enough. */
static int count_slots(const struct sl_expert_cache *cache, uint64_t slab_bytes,
                       uint32_t n_slots_max, uint32_t *ret_n_slots, struct sl_err *err)
{
    uint64_t n_slots = slab_bytes / cache->lending.slot_bytes;
    char granted[SL_SIZE_TEXT_BYTES], needed[SL_SIZE_TEXT_BYTES], each[SL_SIZE_TEXT_BYTES];

    if (n_slots < cache->n_slots_min)
        return sl_err_set(err, -SL_EBUDGET,
                          "the expert cache was given %s, but needs at least %s: %u experts of %s",
                          sl_size_format(slab_bytes, granted),
                          sl_size_format(cache->n_slots_min * cache->lending.slot_bytes, needed),
                          cache->n_slots_min, sl_size_format(cache->lending.slot_bytes, each));
    *ret_n_slots = (uint32_t)(n_slots < n_slots_max ? n_slots : n_slots_max);
    return 0;
}

/* Half of the slots, so that loads go on while the caller holds what it may. */
static void set_hold_max(struct sl_expert_cache *cache)
{
    cache->lending.source.hold_max = cache->lending.table.n_slots / 2 > cache->num_experts_per_tok
                                         ? cache->lending.table.n_slots / 2
                                         : cache->num_experts_per_tok;
}

/* Names what will be read to. Slots are held as they are filled, and the first one now: it shows
 * whether the limit of locked memory allows any. */
static void attach(struct sl_expert_cache *cache, struct sl_reader *reader, struct sl_pool *pool)
{
    struct sl_lending *lending = &cache->lending;
    const bool staged = lending->loader.staging_bytes > 0;

    sl_slab_start(&lending->slab, &lending->shape, pool, staged ? NULL : reader);
    sl_slab_fill(&lending->slab, 0);
    cache->staging_attached = staged && sl_expert_loader_attach(&lending->loader) == 0;
}

int sl_expert_cache_create(struct sl_expert_cache **ret_cache, const struct sl_expert_map *store,
                           struct sl_reader *reader, struct sl_pool *pool,
                           const struct sl_expert_cache_options *options, struct sl_err *err)
{
    const struct sl_policy_ops *policy = policy_or_default(options->policy);
    struct sl_expert_cache *cache;
    struct sl_arena measure;
    int rc;

    cache = calloc(1, sizeof(*cache));
    if (!cache)
        return sl_err_set(err, -ENOMEM, "expert cache: out of memory");
    set_shape(cache, store);
    if (cache->lending.shape.hidden_size % SL_FP4_GROUP_COLS != 0 ||
        cache->lending.shape.moe_intermediate_size % SL_FP4_GROUP_COLS != 0) {
        rc = sl_err_set(err, -SL_EUNSUPPORTED,
                        "hidden_size %u and moe_intermediate_size %u: experts need multiples of %u",
                        cache->lending.shape.hidden_size,
                        cache->lending.shape.moe_intermediate_size, SL_FP4_GROUP_COLS);
        goto fail;
    }
    cache->num_experts_per_tok = options->num_experts_per_tok;
    cache->lending.read_ahead = options->read_ahead;
    cache->n_slots_min = options->slots_min > options->num_experts_per_tok
                             ? options->slots_min
                             : options->num_experts_per_tok;
    rc = count_slots(cache, options->slab_bytes,
                     cache->lending.table.n_layers * cache->lending.table.n_experts,
                     &cache->lending.table.n_slots_max, err);
    if (rc < 0)
        goto fail;
    sl_expert_loader_init(&cache->lending.loader, store, reader, pool, options->inflight_max,
                          options->verify);
    sl_arena_init_measure(&measure);
    carve(cache, &measure, policy);
    rc = sl_arena_map(&cache->arena, measure.used_bytes, "expert cache", err);
    if (rc < 0)
        goto fail;
    carve(cache, &cache->arena, policy);
    sl_arena_lock(&cache->arena);
    sl_slot_table_start(&cache->lending.table, cache->lending.table.n_slots_max,
                        options->inflight_max);
    sl_lending_start(&cache->lending);
    set_hold_max(cache);
    attach(cache, reader, pool);
    sl_pool_set_between(pool, sl_lending_progress_between, &cache->lending);
    *ret_cache = cache;
    return 0;
fail:
    free(cache);
    return rc;
}

void sl_expert_cache_destroy(struct sl_expert_cache *cache)
{
    struct sl_expert_load_end end;

    if (!cache)
        return;
    sl_assert(cache->lending.n_lent == 0);
    sl_pool_set_between(cache->lending.loader.pool, NULL, NULL);
    while (sl_expert_loader_reap(&cache->lending.loader, true, &end))
        ;
    /* A drive that has not let go may still write to the memory, which is left to it then. */
    if (sl_reader_attach(cache->lending.loader.reader, NULL, 0, 0) != -EBUSY)
        sl_arena_fini(&cache->arena);
    free(cache);
}

static void move_tiles(void *context, uint32_t from, uint32_t to)
{
    struct sl_slab *slab = &((struct sl_expert_cache *)context)->lending.slab;

    sl_slab_fill(slab, to);
    memcpy(sl_slab_slot(slab, to), sl_slab_slot(slab, from), slab->slot_bytes);
}

/* Waits until nothing is loading. */
static int settle(struct sl_expert_cache *cache, const char *before, struct sl_err *err)
{
    if (cache->lending.demand.open || cache->lending.n_lent > 0)
        return sl_err_set(err, -EBUSY, "the expert cache cannot be %s in the middle of a step",
                          before);
    sl_lending_expire_guess(&cache->lending);
    while (!sl_expert_loader_is_idle(&cache->lending.loader))
        sl_lending_progress(&cache->lending, true);
    if (cache->lending.loader.n_held > 0)
        return sl_err_set(err, -EBUSY,
                          "the expert cache cannot be %s while a drive does not let go of it",
                          before);
    return 0;
}

int sl_expert_cache_empty(struct sl_expert_cache *cache, struct sl_err *err)
{
    int rc = settle(cache, "emptied", err);

    if (rc == 0)
        sl_slot_table_empty(&cache->lending.table);
    return rc;
}

int sl_expert_cache_resize(struct sl_expert_cache *cache, uint64_t slab_bytes, struct sl_err *err)
{
    const uint32_t n_before = cache->lending.table.n_slots;
    uint32_t n_slots = 0;
    int rc;

    rc = count_slots(cache, slab_bytes, cache->lending.table.n_slots_max, &n_slots, err);
    if (rc == 0)
        rc = settle(cache, "resized", err);
    if (rc < 0)
        return rc;
    sl_slot_table_resize(&cache->lending.table, n_slots, move_tiles, cache);
    if (n_slots < n_before)
        sl_slab_empty(&cache->lending.slab, n_slots);
    set_hold_max(cache);
    return 0;
}

uint32_t sl_expert_cache_hot_list(struct sl_expert_cache *cache, struct sl_expert_key *ret_keys,
                                  uint32_t n_max)
{
    return sl_slot_table_rank(&cache->lending.table, ret_keys, n_max);
}

static bool may_preload(struct sl_expert_cache *cache, struct sl_expert_key key)
{
    return key.layer_index < cache->lending.table.n_layers &&
           key.expert_index < cache->lending.table.n_experts &&
           !sl_slot_table_find(&cache->lending.table, key);
}

/* Makes the policy rank the keys as they are ranked here, by a past of PRELOAD_SWEEPS sweeps: the
 * best were asked for in all of them, the last in the first one alone. */
#define PRELOAD_SWEEPS 8u

static void pretend_uses(struct sl_expert_cache *cache, const struct sl_expert_key *keys,
                         uint32_t n_keys)
{
    struct sl_policy *policy = cache->lending.table.policy;

    for (uint32_t sweep = 0; sweep < PRELOAD_SWEEPS; sweep++) {
        uint64_t n = (uint64_t)n_keys * (PRELOAD_SWEEPS - sweep) / PRELOAD_SWEEPS;

        for (uint32_t layer = 0; layer < cache->lending.table.n_layers; layer++)
            policy->ops->visit(policy, (uint16_t)layer);
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

    sl_assert(!cache->lending.demand.open);
    for (uint32_t i = 0; i < cache->lending.table.n_slots; i++)
        n_room += cache->lending.table.slots[i].state == SL_SLOT_EMPTY;
    while (n < n_keys && n_room > 0)
        n_room -= may_preload(cache, keys[n++]);
    if (n == 0)
        return;
    pretend_uses(cache, keys, n);
    for (uint32_t i = 0; i < n && !(stop && atomic_load(stop)); i++) {
        while (sl_expert_loader_is_full(&cache->lending.loader) &&
               !sl_expert_loader_is_idle(&cache->lending.loader))
            sl_lending_progress(&cache->lending, true);
        if (may_preload(cache, keys[i])) {
            if (!sl_lending_begin_load(&cache->lending, keys[i], SL_LOAD_AHEAD))
                break; /* drives keep what there is */
            cache->n_preloads++;
            sl_reader_start(cache->lending.loader.reader);
        }
        if (on_progress)
            on_progress(context, i + 1, n);
    }
    while (!sl_expert_loader_is_idle(&cache->lending.loader))
        sl_lending_progress(&cache->lending, true);
}

const struct sl_slot_table *sl_expert_cache_table(const struct sl_expert_cache *cache)
{
    return &cache->lending.table;
}

bool sl_expert_cache_is_sound(const struct sl_expert_cache *cache)
{
    return sl_lending_is_sound(&cache->lending);
}

struct sl_expert_source *sl_expert_cache_source(struct sl_expert_cache *cache)
{
    return &cache->lending.source;
}

bool sl_expert_cache_is_attached(const struct sl_expert_cache *cache)
{
    return cache->staging_attached || (cache->lending.slab.reader && cache->lending.slab.held);
}

const struct sl_arena *sl_expert_cache_arena(const struct sl_expert_cache *cache)
{
    return &cache->arena;
}

uint32_t sl_expert_cache_slot_count(const struct sl_expert_cache *cache)
{
    return cache->lending.table.n_slots;
}

struct sl_expert_cache_counters sl_expert_cache_counters(const struct sl_expert_cache *cache)
{
    const struct sl_slot_counters *slots = &cache->lending.table.counters;
    const struct sl_reader_counters reader = sl_reader_counters(cache->lending.loader.reader);

    return (struct sl_expert_cache_counters){
        .n_requests = slots->n_requests,
        .n_hits = slots->n_hits,
        .n_hinted_hits = slots->n_hinted_hits,
        .n_guessed = cache->lending.n_guessed,
        .n_guessed_right = cache->lending.n_guessed_right,
        .n_guess_loads = cache->lending.n_guess_loads,
        .n_guess_hits = cache->lending.n_guess_hits,
        .n_guess_late = cache->lending.n_guess_late,
        .guess_wasted_bytes = cache->lending.guess_wasted_bytes,
        .n_loads = slots->n_loads,
        .n_preloads = cache->n_preloads,
        .n_evictions = slots->n_evictions,
        .n_retries = reader.n_retries + cache->lending.loader.n_rereads,
        .n_stalls = reader.n_stalls,
        .longest_ns = reader.longest_ns,
        .wanted_bytes = cache->lending.loader.wanted_bytes,
        .read_bytes = reader.read_bytes,
        .wait_ns = reader.wait_ns,
        .repack_ns = cache->lending.loader.repack_ns,
        .unpack_ns = cache->lending.loader.unpack_ns,
        .verify_ns = cache->lending.loader.verify_ns,
    };
}
