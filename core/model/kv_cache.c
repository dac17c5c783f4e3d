#include "core/model/kv_cache.h"

#include "core/base/assert.h"

uint32_t sl_kv_cache_entry_bytes(const struct sl_config *config, enum sl_numerics numerics)
{
    uint32_t rope_dim = config->qk_rope_head_dim;

    if (numerics == SL_NUMERICS_EXACT)
        return config->head_dim * (uint32_t)sizeof(float);
    return (uint32_t)sl_kv_entry_bytes(config->head_dim - rope_dim, rope_dim);
}

/* The input of one of a compressor's two projections. CSA's windows overlap: an entry also pools
 * the window before it, through the other half of the channels. */
static struct sl_kv_ring_shape compressor_shape(uint32_t ratio, uint32_t dim)
{
    const uint32_t times = ratio == SL_CSA_RATIO ? 2 : 1;

    return (struct sl_kv_ring_shape){times * ratio, times * dim * (uint32_t)sizeof(float)};
}

void sl_kv_ring_shapes(const struct sl_config *config, enum sl_numerics numerics,
                       uint32_t layer_index, struct sl_kv_ring_shape ret_shapes[SL_KV_RINGS])
{
    const uint32_t ratio = config->compress_ratios[layer_index];

    for (int ring = 0; ring < SL_KV_RINGS; ring++)
        ret_shapes[ring] = (struct sl_kv_ring_shape){0, 0};
    ret_shapes[SL_KV_WINDOW] = (struct sl_kv_ring_shape){config->sliding_window,
                                                         sl_kv_cache_entry_bytes(config, numerics)};
    if (ratio)
        ret_shapes[SL_KV_VALUES] = ret_shapes[SL_KV_SCORES] =
            compressor_shape(ratio, config->head_dim);
    if (ratio == SL_CSA_RATIO)
        ret_shapes[SL_KV_INDEX_VALUES] = ret_shapes[SL_KV_INDEX_SCORES] =
            compressor_shape(ratio, config->index_head_dim);
}

static uint32_t key_tile_bytes(const struct sl_config *config, enum sl_numerics numerics)
{
    if (numerics == SL_NUMERICS_EXACT)
        return SL_R16_ROWS * config->index_head_dim * (uint32_t)sizeof(float);
    return (uint32_t)sl_r16_fp4_tile_bytes(sl_index_key_cols(config));
}

static void carve(struct sl_kv_cache *kv, struct sl_arena *arena, const struct sl_config *config,
                  enum sl_numerics numerics)
{
    kv->entry_bytes = sl_kv_cache_entry_bytes(config, numerics);
    kv->key_tile_bytes = key_tile_bytes(config, numerics);
    kv->layers = sl_arena_take(arena, kv->n_layers, sizeof(*kv->layers));
    for (uint32_t i = 0; i < kv->n_layers; i++) {
        const uint32_t ratio = config->compress_ratios[i];
        struct sl_kv_layer layer = {0};

        sl_kv_ring_shapes(config, numerics, i, layer.shapes);
        for (int ring = 0; ring < SL_KV_RINGS; ring++)
            layer.rings[ring] =
                sl_arena_take(arena, layer.shapes[ring].n_rows, layer.shapes[ring].row_bytes);
        if (ratio)
            layer.entries = sl_arena_take(arena, kv->capacity_tokens / ratio, kv->entry_bytes);
        if (ratio == SL_CSA_RATIO)
            layer.keys = sl_arena_take(arena, sl_r16_tile_count(kv->capacity_tokens / ratio),
                                       kv->key_tile_bytes);
        if (kv->layers)
            kv->layers[i] = layer;
    }
}

uint64_t sl_kv_cache_measure(const struct sl_config *config, uint32_t n_layers,
                             uint32_t capacity_tokens, enum sl_numerics numerics)
{
    struct sl_kv_cache kv = {.capacity_tokens = capacity_tokens, .n_layers = n_layers};
    struct sl_arena arena;

    sl_arena_init_measure(&arena);
    carve(&kv, &arena, config, numerics);
    return arena.used_bytes;
}

int sl_kv_cache_init(struct sl_kv_cache *kv, const struct sl_config *config, uint32_t n_layers,
                     uint32_t capacity_tokens, enum sl_numerics numerics, struct sl_err *err)
{
    int rc;

    *kv = (struct sl_kv_cache){.capacity_tokens = capacity_tokens, .n_layers = n_layers};
    rc = sl_arena_reserve(&kv->arena,
                          sl_kv_cache_measure(config, n_layers, capacity_tokens, numerics),
                          "KV cache", err);
    if (rc < 0)
        return rc;
    carve(kv, &kv->arena, config, numerics);
    return 0;
}

void sl_kv_cache_fini(struct sl_kv_cache *kv)
{
    sl_assert(!kv->in_step);
    sl_arena_fini(&kv->arena);
    *kv = (struct sl_kv_cache){0};
}

void sl_kv_cache_clear(struct sl_kv_cache *kv)
{
    sl_assert(!kv->in_step);
    kv->n_tokens = 0;
    kv->n_mtp_tokens = 0;
}
