#include "core/model/kv_cache.h"

uint32_t sl_kv_cache_entry_bytes(const struct sl_config *config, enum sl_numerics numerics)
{
    uint32_t rope_dim = config->qk_rope_head_dim;

    if (numerics == SL_NUMERICS_EXACT)
        return config->head_dim * (uint32_t)sizeof(float);
    return (uint32_t)sl_kv_entry_bytes(config->head_dim - rope_dim, rope_dim);
}

static struct sl_compressor_state carve_compressor(struct sl_arena *arena, uint32_t ratio,
                                                   uint32_t dim)
{
    bool overlaps = ratio == SL_CSA_RATIO;
    struct sl_compressor_state state = {
        .n_rows = overlaps ? 2 * ratio : ratio,
        .width = overlaps ? 2 * dim : dim,
    };

    state.kv = sl_arena_take(arena, (uint64_t)state.n_rows * state.width, sizeof(float));
    state.score = sl_arena_take(arena, (uint64_t)state.n_rows * state.width, sizeof(float));
    return state;
}

static void carve(struct sl_kv_cache *kv, struct sl_arena *arena, const struct sl_config *config,
                  uint32_t n_layers, uint32_t capacity_tokens, enum sl_numerics numerics)
{
    struct sl_kv_layer *layers = sl_arena_take(arena, n_layers, sizeof(*layers));
    uint32_t entry_bytes = sl_kv_cache_entry_bytes(config, numerics);

    for (uint32_t i = 0; i < n_layers; i++) {
        uint32_t ratio = config->compress_ratios[i];
        struct sl_kv_layer layer = {0};

        layer.window = sl_arena_take(arena, config->sliding_window, entry_bytes);
        if (ratio) {
            layer.entries = sl_arena_take(arena, capacity_tokens / ratio, entry_bytes);
            layer.compressor = carve_compressor(arena, ratio, config->head_dim);
        }
        if (ratio == SL_CSA_RATIO) {
            uint64_t n_keys = capacity_tokens / ratio;

            layer.keys = numerics == SL_NUMERICS_EXACT
                             ? sl_arena_take(arena, n_keys * config->index_head_dim, sizeof(float))
                             : sl_arena_take(arena, sl_r16_tile_count(n_keys),
                                             sl_r16_fp4_tile_bytes(sl_index_key_cols(config)));
            layer.index_compressor = carve_compressor(arena, ratio, config->index_head_dim);
        }
        if (layers)
            layers[i] = layer;
    }
    if (layers) {
        kv->layers = layers;
        kv->entry_bytes = entry_bytes;
        kv->capacity_tokens = capacity_tokens;
    }
}

uint64_t sl_kv_cache_measure(const struct sl_config *config, uint32_t n_layers,
                             uint32_t capacity_tokens, enum sl_numerics numerics)
{
    struct sl_arena arena;

    sl_arena_init_measure(&arena);
    carve(NULL, &arena, config, n_layers, capacity_tokens, numerics);
    return arena.used_bytes;
}

int sl_kv_cache_init(struct sl_kv_cache *kv, const struct sl_config *config, uint32_t n_layers,
                     uint32_t capacity_tokens, enum sl_numerics numerics, struct sl_err *err)
{
    int rc;

    *kv = (struct sl_kv_cache){0};
    rc = sl_arena_init(&kv->arena, sl_kv_cache_measure(config, n_layers, capacity_tokens, numerics),
                       "KV cache", err);
    if (rc < 0)
        return rc;
    carve(kv, &kv->arena, config, n_layers, capacity_tokens, numerics);
    return 0;
}

void sl_kv_cache_fini(struct sl_kv_cache *kv)
{
    sl_arena_fini(&kv->arena);
    *kv = (struct sl_kv_cache){0};
}

void sl_kv_cache_clear(struct sl_kv_cache *kv)
{
    kv->n_tokens = 0;
    kv->n_mtp_tokens = 0;
    kv->broken = false;
}
