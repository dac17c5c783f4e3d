/* Figures: what an engine's parts count, and the memory that they have. */
#include <string.h>

#include "daemon/engine/engine_internal.h"

uint64_t sl_engine_drive_rate(const struct sl_engine *engine)
{
    return engine->drive_bytes_per_s;
}

uint32_t sl_engine_slot_count(const struct sl_engine *engine)
{
    return sl_expert_cache_slot_count(engine->cache);
}

void sl_engine_resident(const struct sl_engine *engine, uint16_t layer_index, uint8_t *ret_bits)
{
    sl_expert_cache_resident(engine->cache, layer_index, ret_bits);
}

struct sl_expert_cache_counters sl_engine_counters(const struct sl_engine *engine)
{
    return sl_expert_cache_counters(engine->cache);
}

uint32_t sl_engine_drive_count(const struct sl_engine *e)
{
    return sl_reader_drive_count(e->reader);
}

struct sl_reader_drive sl_engine_drive(const struct sl_engine *e, uint32_t index)
{
    return sl_reader_drive(e->reader, index);
}

struct sl_engine_dense sl_engine_dense(const struct sl_engine *e)
{
    struct sl_engine_dense dense = {0};

    if (e->weights.stream)
        dense.layers = sl_weight_stream_counters(e->weights.stream);
    dense.reads = sl_reader_counters(e->reader, SL_READS_OF_DENSE);
    dense.reads.wanted_bytes -= e->loading.wanted_bytes;
    dense.reads.read_bytes -= e->loading.read_bytes;
    dense.reads.n_reads -= e->loading.n_reads;
    dense.reads.wait_ns -= e->loading.wait_ns;
    dense.reads.busy_ns -= e->loading.busy_ns;
    return dense;
}

static void add_area(struct sl_engine_area *area, const char *name, const struct sl_arena *arena)
{
    const struct sl_arena_pages pages = sl_arena_pages(arena);

    area->name = name;
    area->size_bytes += arena->size_bytes;
    area->resident_bytes += pages.resident_bytes;
    area->huge_bytes += pages.huge_bytes;
}

void sl_engine_areas(const struct sl_engine *e, struct sl_engine_area ret_areas[SL_ENGINE_AREAS])
{
    memset(ret_areas, 0, SL_ENGINE_AREAS * sizeof(*ret_areas));
    add_area(&ret_areas[0], "dense weights", &e->weights.arena);
    add_area(&ret_areas[1], "KV cache", &e->kv_pool.arena);
    for (int size = 0; size < SL_STEP_SIZES; size++)
        if (e->forwards[size])
            add_area(&ret_areas[2], "activations", sl_forward_arena(e->forwards[size]));
    add_area(&ret_areas[3], "expert cache", sl_expert_cache_arena(e->cache));
}
