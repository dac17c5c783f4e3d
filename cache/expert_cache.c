/* The face of the expert cache: its sizes, its memory, and how many slots it has. */
#include "cache/expert_cache.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cache/cache_internal.h"
#include "core/base/arena.h"
#include "core/base/assert.h"
#include "core/base/size.h"

static const struct sl_expert_source_ops source_ops = {
    .prefetch = sl_prefetch_ask,
    .demand = sl_demand_open,
    .acquire = sl_demand_acquire,
    .complete = sl_demand_complete,
    .release = sl_demand_release,
    .abandon = sl_demand_abandon,
    .forget = sl_prefetch_forget,
    .wants_prediction = sl_prefetch_wants,
};

/* ---- sizes -------------------------------------------------------------------------------------
 */

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

uint32_t sl_expert_cache_slots_least(const struct sl_expert_shape *shape,
                                     uint32_t num_experts_per_tok)
{
    const uint32_t all = sl_expert_layer_count(shape) * shape->n_routed_experts;

    return 2 * num_experts_per_tok < all ? 2 * num_experts_per_tok : all;
}

uint64_t sl_expert_cache_staging_bytes(const struct sl_expert_map *store, uint32_t inflight_max)
{
    return inflight_max * sl_expert_load_staging_bytes(store);
}

uint64_t sl_expert_cache_checkpoint_staging_bytes(const struct sl_expert_shape *shape,
                                                  uint32_t inflight_max)
{
    return inflight_max *
           sl_expert_load_checkpoint_bytes(
               shape, shape->expert_dtype == SL_EXPERT_FP8 ? SL_DTYPE_F32 : SL_DTYPE_F8_E8M0);
}

static void carve(struct sl_expert_cache *cache, struct sl_arena *arena,
                  const struct sl_policy_ops *policy)
{
    sl_slab_carve(&cache->slab, arena, cache->slot_bytes, cache->table.n_slots_max);
    sl_expert_loader_carve(&cache->loader, arena);
    sl_slot_table_carve(&cache->table, arena, policy);
    sl_demand_carve(cache, arena);
    sl_prefetch_carve(cache, arena);
}

static void set_shape(struct sl_expert_cache *cache, const struct sl_expert_map *store)
{
    cache->shape = *sl_expert_map_shape(store);
    cache->slot_bytes = sl_expert_cache_slot_bytes(&cache->shape);
    cache->table.n_layers = cache->shape.num_hidden_layers + cache->shape.n_mtp_layers;
    cache->table.n_experts = cache->shape.n_routed_experts;
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
    cache.table.n_slots_max = cache.table.n_layers * cache.table.n_experts;
    sl_expert_loader_init(&cache.loader, store, NULL, NULL, inflight_max, SL_VERIFY_NEVER);
    cache.loader.preparer.n_threads = n_threads;
    sl_arena_init_measure(&all);
    carve(&cache, &all, policy_or_default(policy));
    sl_arena_init_measure(&buffers);
    sl_arena_take(&buffers, cache.table.n_slots_max, cache.slot_bytes);
    sl_arena_take(&buffers, 1, sl_expert_cache_staging_bytes(store, inflight_max));
    return all.used_bytes - buffers.used_bytes + SL_HUGE_PAGE_BYTES; /* an arena is whole ones */
}

/* How many slots a slab makes, if they are enough. */
static int count_slots(const struct sl_expert_cache *cache, uint64_t slab_bytes,
                       uint32_t n_slots_max, uint32_t *ret_n_slots, struct sl_err *err)
{
    uint64_t n_slots = slab_bytes / cache->slot_bytes;
    char granted[SL_SIZE_TEXT_BYTES], needed[SL_SIZE_TEXT_BYTES], each[SL_SIZE_TEXT_BYTES];

    if (n_slots < cache->n_slots_min)
        return sl_err_set(err, -SL_EBUDGET,
                          "the expert cache was given %s, but needs at least %s: %u experts of %s",
                          sl_size_format(slab_bytes, granted),
                          sl_size_format(cache->n_slots_min * cache->slot_bytes, needed),
                          cache->n_slots_min, sl_size_format(cache->slot_bytes, each));
    *ret_n_slots = (uint32_t)(n_slots < n_slots_max ? n_slots : n_slots_max);
    return 0;
}

/* Half of the slots, so that loads go on while the caller has pinned as many experts as it may. */
static void set_pins_max(struct sl_expert_cache *cache)
{
    cache->source.pins_max = cache->table.n_slots / 2 > cache->num_experts_per_tok
                                 ? cache->table.n_slots / 2
                                 : cache->num_experts_per_tok;
}

/* Tells the reader which memory reads will land in. Slots are registered with the system as they
 * are filled, and the first one now: it shows whether the limit of locked memory allows any. */
static void attach(struct sl_expert_cache *cache, struct sl_reader *reader, struct sl_pool *pool)
{
    const bool staged = cache->loader.staging_bytes > 0;

    sl_slab_start(&cache->slab, &cache->shape, pool, staged ? NULL : reader);
    sl_slab_fill(&cache->slab, 0);
    cache->staging_attached = staged && sl_expert_loader_attach(&cache->loader) == 0;
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
    if (cache->shape.hidden_size % SL_EXPERT_SIDE_STEP != 0 ||
        cache->shape.moe_intermediate_size % SL_EXPERT_SIDE_STEP != 0) {
        rc = sl_err_set(err, -SL_EUNSUPPORTED,
                        "hidden_size %u and moe_intermediate_size %u: experts need multiples of %u",
                        cache->shape.hidden_size, cache->shape.moe_intermediate_size,
                        SL_EXPERT_SIDE_STEP);
        goto fail;
    }
    cache->num_experts_per_tok = options->num_experts_per_tok;
    cache->prefetch_layers = options->prefetch_layers;
    cache->is_paced = options->paced;
    cache->table.sweep_experts_min =
        sl_sweep_experts_min(cache->table.n_experts, options->num_experts_per_tok);
    cache->n_slots_min = options->slots_min > options->num_experts_per_tok
                             ? options->slots_min
                             : options->num_experts_per_tok;
    rc = count_slots(cache, options->slab_bytes, cache->table.n_layers * cache->table.n_experts,
                     &cache->table.n_slots_max, err);
    if (rc < 0)
        goto fail;
    sl_expert_loader_init(&cache->loader, store, reader, pool, options->inflight_max,
                          options->verify);
    sl_arena_init_measure(&measure);
    carve(cache, &measure, policy);
    rc = sl_arena_map(&cache->arena, measure.used_bytes, "expert cache", err);
    if (rc < 0)
        goto fail;
    carve(cache, &cache->arena, policy);
    sl_arena_lock(&cache->arena);
    sl_slot_table_start(&cache->table, cache->table.n_slots_max, options->inflight_max);
    cache->source.ops = &source_ops;
    sl_demand_start(cache);
    sl_prefetch_start(cache);
    set_pins_max(cache);
    attach(cache, reader, pool);
    *ret_cache = cache;
    return 0;
fail:
    free(cache);
    return rc;
}

bool sl_expert_cache_fill_ahead(struct sl_expert_cache *cache, uint32_t n_slots)
{
    bool filled = false;

    while (!filled && cache->n_filled_ahead < n_slots &&
           cache->n_filled_ahead < cache->table.n_slots)
        filled = sl_slab_fill(&cache->slab, cache->n_filled_ahead++);
    return filled;
}

void sl_expert_cache_destroy(struct sl_expert_cache *cache)
{
    struct sl_expert_load_end end;

    if (!cache)
        return;
    sl_assert(cache->demand.n_pins == 0);
    while (sl_expert_loader_reap(&cache->loader, true, &end))
        ;
    /* A drive that never answered may still write to the memory, which is then not unmapped. */
    if (sl_reader_attach(cache->loader.reader, NULL, 0, 0) != -EBUSY)
        sl_arena_fini(&cache->arena);
    free(cache);
}

static void move_tiles(void *context, uint32_t from, uint32_t to)
{
    struct sl_slab *slab = &((struct sl_expert_cache *)context)->slab;

    sl_slab_fill(slab, to);
    memcpy(sl_slab_slot(slab, to), sl_slab_slot(slab, from), slab->slot_bytes);
}

/* Waits until nothing is loading. */
static int settle(struct sl_expert_cache *cache, const char *before, struct sl_err *err)
{
    if (cache->demand.open || cache->demand.n_pins > 0)
        return sl_err_set(err, -EBUSY, "the expert cache cannot be %s in the middle of a step",
                          before);
    sl_prefetch_expire(cache);
    while (!sl_expert_loader_is_idle(&cache->loader))
        sl_cache_progress(cache, true);
    if (cache->loader.n_quarantined > 0)
        return sl_err_set(
            err, -EBUSY,
            "the expert cache cannot be %s while a drive that did not answer may still "
            "write to it",
            before);
    return 0;
}

int sl_expert_cache_empty(struct sl_expert_cache *cache, struct sl_err *err)
{
    int rc = settle(cache, "emptied", err);

    if (rc == 0)
        sl_slot_table_empty(&cache->table);
    return rc;
}

int sl_expert_cache_resize(struct sl_expert_cache *cache, uint64_t slab_bytes, struct sl_err *err)
{
    const uint32_t n_before = cache->table.n_slots;
    uint32_t n_slots = 0;
    int rc;

    rc = count_slots(cache, slab_bytes, cache->table.n_slots_max, &n_slots, err);
    if (rc == 0)
        rc = settle(cache, "resized", err);
    if (rc < 0)
        return rc;
    sl_slot_table_resize(&cache->table, n_slots, move_tiles, cache);
    if (n_slots < n_before)
        sl_slab_empty(&cache->slab, n_slots);
    set_pins_max(cache);
    return 0;
}

uint32_t sl_expert_cache_hot_list(struct sl_expert_cache *cache, struct sl_expert_key *ret_keys,
                                  uint32_t n_max)
{
    return sl_slot_table_rank(&cache->table, ret_keys, n_max);
}

struct sl_expert_source *sl_expert_cache_source(struct sl_expert_cache *cache)
{
    return &cache->source;
}

bool sl_expert_cache_is_attached(const struct sl_expert_cache *cache)
{
    return cache->staging_attached || (cache->slab.reader && cache->slab.held);
}

const struct sl_arena *sl_expert_cache_arena(const struct sl_expert_cache *cache)
{
    return &cache->arena;
}

uint32_t sl_expert_cache_slot_count(const struct sl_expert_cache *cache)
{
    return cache->table.n_slots;
}

#define METRIC(name, unit, field, help)                                                            \
    {                                                                                              \
        name, SL_METRIC_##unit, help, offsetof(struct sl_expert_cache_counters, field), false      \
    }

static const struct sl_metric metrics[] = {
    METRIC("expert_requests", COUNT, n_requests, "Experts that steps demanded"),
    METRIC("expert_hits", COUNT, n_hits,
           "Demanded experts that were resident or landing from an earlier demand or a preload"),
    METRIC("expert_prefetch_hits", COUNT, n_prefetch_hits,
           "Demanded experts that a prefetch had brought, for the first time"),
    METRIC("sweep_requests", COUNT, n_sweep_requests,
           "Demanded experts of sweeps, which pin an equal share of each layer"),
    METRIC("sweep_hits", COUNT, n_sweep_hits, "Requests of sweeps that found what was kept"),
    {"sweep_pinned", SL_METRIC_COUNT, "Experts of each layer that stay through a sweep",
     offsetof(struct sl_expert_cache_counters, n_pinned), true},
    METRIC("expert_loads", COUNT, n_loads,
           "Loads of an expert that were begun, prefetches and preloads included"),
    METRIC("expert_preloads", COUNT, n_preloads, "Loads from the hot list, before the first step"),
    METRIC("predicted_experts", COUNT, n_predicted,
           "Experts that predictions of the next layer named"),
    METRIC("predicted_right", COUNT, n_predicted_right,
           "Predicted experts that the next demand asked for"),
    METRIC("predicted_loads", COUNT, n_predicted_loads, "Loads that were begun for predictions"),
    METRIC("predicted_hits", COUNT, n_predicted_hits,
           "Experts loaded for predictions that were demanded when they had landed"),
    METRIC("predicted_late", COUNT, n_predicted_late,
           "Experts loaded for predictions that were demanded while in flight"),
    METRIC("predicted_wasted_bytes", BYTES, predicted_wasted_bytes,
           "Bytes asked of the drives for predictions that were not demanded"),
    METRIC("expert_evictions", COUNT, n_evictions, "Experts that made room for others"),
    METRIC("read_retries", COUNT, n_retries,
           "Reads, and loads of corrupt data, that were tried again"),
    METRIC("read_stalls", COUNT, n_stalls, "Reads that were in flight for longer than a stall"),
    {"longest_stall_seconds", SL_METRIC_NANOSECONDS,
     "Longest time that a stalled read was in flight",
     offsetof(struct sl_expert_cache_counters, longest_ns), true},
    METRIC("wanted_bytes", BYTES, wanted_bytes, "Bytes of experts that loads wanted, as stored"),
    METRIC("read_bytes", BYTES, read_bytes, "Bytes that the drives delivered for experts"),
    METRIC("wait_seconds", NANOSECONDS, wait_ns, "Time that steps waited for the drives"),
    METRIC("read_busy_seconds", NANOSECONDS, busy_ns,
           "Time in which reads of experts were under way"),
    METRIC("repack_seconds", NANOSECONDS, repack_ns,
           "Time spent on making tiles of a checkpoint's rows"),
    METRIC("unpack_seconds", NANOSECONDS, unpack_ns, "Time spent on compressed records"),
    METRIC("verify_seconds", NANOSECONDS, verify_ns, "Time spent on checksums of experts"),
};

_Static_assert(sizeof(metrics) / sizeof(metrics[0]) ==
                   sizeof(struct sl_expert_cache_counters) / sizeof(uint64_t),
               "each counter is described");

const struct sl_metrics sl_expert_cache_metrics = {metrics, sizeof(metrics) / sizeof(metrics[0])};

void sl_expert_cache_resident(struct sl_expert_cache *cache, uint16_t layer_index,
                              uint8_t *ret_bits)
{
    const uint32_t n_experts = cache->table.n_experts;

    memset(ret_bits, 0, (n_experts + 7) / 8);
    for (uint32_t i = 0; i < n_experts; i++) {
        const struct sl_slot *slot =
            sl_slot_table_find(&cache->table, (struct sl_expert_key){layer_index, (uint16_t)i});

        if (slot && !sl_slot_is_loading(slot))
            ret_bits[i / 8] |= (uint8_t)(0x80 >> i % 8);
    }
}

struct sl_expert_cache_counters sl_expert_cache_counters(const struct sl_expert_cache *cache)
{
    const struct sl_slot_counters *slots = &cache->table.counters;
    const struct sl_reader_counters reader =
        sl_reader_counters(cache->loader.reader, SL_READS_OF_EXPERTS);

    return (struct sl_expert_cache_counters){
        .n_requests = slots->n_requests,
        .n_hits = slots->n_hits,
        .n_prefetch_hits = slots->n_prefetch_hits,
        .n_sweep_requests = slots->n_sweep_requests,
        .n_sweep_hits = slots->n_sweep_hits,
        .n_pinned = cache->table.n_pinned,
        .n_predicted = cache->prefetches.n_predicted,
        .n_predicted_right = cache->prefetches.n_predicted_right,
        .n_predicted_loads = cache->prefetches.n_loads,
        .n_predicted_hits = cache->prefetches.n_hits,
        .n_predicted_late = cache->prefetches.n_late,
        .predicted_wasted_bytes = cache->prefetches.wasted_bytes,
        .n_loads = slots->n_loads,
        .n_preloads = cache->prefetches.n_preloads,
        .n_evictions = slots->n_evictions,
        .n_retries = reader.n_retries + cache->loader.n_rereads,
        .n_stalls = reader.n_stalls,
        .longest_ns = reader.longest_ns,
        .wanted_bytes = cache->loader.wanted_bytes,
        .read_bytes = reader.read_bytes,
        .wait_ns = reader.wait_ns,
        .busy_ns = reader.busy_ns,
        .repack_ns = cache->loader.preparer.repack_ns,
        .unpack_ns = cache->loader.preparer.unpack_ns,
        .verify_ns = cache->loader.preparer.verify_ns,
    };
}

/* ---- for tests ---------------------------------------------------------------------------------
 */

static uint32_t list_length(const struct sl_link *head)
{
    uint32_t n = 0;

    for (const struct sl_link *link = head->next; link != head; link = link->next)
        n++;
    return n;
}

bool sl_expert_cache_is_sound(const struct sl_expert_cache *cache)
{
    const struct sl_slot_table *table = &cache->table;
    uint32_t n_in[SL_SLOT_STATES] = {0}, n_loading = 0, n_awaited = 0, n_pins = 0, n_quarantined;

    for (uint32_t i = 0; i < table->n_slots; i++) {
        n_in[table->slots[i].state]++;
        n_loading += sl_slot_is_loading(&table->slots[i]);
        n_awaited += sl_slot_is_awaited(&table->slots[i]);
        n_pins += sl_slot_is_acquired(&table->slots[i]);
    }
    n_quarantined = n_in[SL_SLOT_QUARANTINED] + n_in[SL_SLOT_PINNED_QUARANTINED];
    return sl_slot_table_is_sound(table) && n_pins == cache->demand.n_pins &&
           n_awaited == cache->demand.n_awaited &&
           n_in[SL_SLOT_CLAIMED] == list_length(&cache->demand.claimed) &&
           n_in[SL_SLOT_UP_READY] == list_length(&cache->demand.up_ready) &&
           n_loading + n_quarantined == cache->loader.n_busy &&
           n_quarantined == cache->loader.n_quarantined + cache->loader.n_cancelled;
}
