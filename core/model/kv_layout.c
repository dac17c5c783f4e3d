#include "core/model/kv_layout.h"

#include <errno.h>
#include <stdlib.h>

#include "core/base/arena.h"
#include "core/base/size.h"
#include "core/kernels/kernels.h"

/* Pages are no smaller than this where a model has no keys, so that tables stay short. */
#define PAGE_BYTES_MIN 16384u

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

static void set_layer(struct sl_kv_part_layout parts[SL_KV_PARTS], const struct sl_config *config,
                      enum sl_numerics numerics, uint32_t layer_index)
{
    const uint32_t ratio = config->compress_ratios[layer_index];
    struct sl_kv_ring_shape shapes[SL_KV_RINGS];

    sl_kv_ring_shapes(config, numerics, layer_index, shapes);
    for (int ring = 0; ring < SL_KV_RINGS; ring++)
        if (shapes[ring].n_rows > 0)
            parts[ring] = (struct sl_kv_part_layout){.item_bytes = shapes[ring].row_bytes,
                                                     .n_rows = shapes[ring].n_rows,
                                                     .ratio = 1,
                                                     .units_per_item = 1};
    if (ratio)
        parts[SL_KV_ENTRIES] =
            (struct sl_kv_part_layout){.item_bytes = sl_kv_cache_entry_bytes(config, numerics),
                                       .ratio = ratio,
                                       .units_per_item = 1};
    if (ratio == SL_CSA_RATIO)
        parts[SL_KV_KEYS] =
            (struct sl_kv_part_layout){.item_bytes = key_tile_bytes(config, numerics),
                                       .ratio = ratio,
                                       .units_per_item = SL_R16_ROWS};
    if (layer_index == 0)
        parts[SL_KV_IDS] = (struct sl_kv_part_layout){
            .item_bytes = sizeof(int32_t), .ratio = 1, .units_per_item = 1};
}

/* Items of a part that must lie side by side. */
static uint32_t items_together(int part)
{
    return part == SL_KV_KEYS ? SL_KV_KEYS_TOGETHER / SL_R16_ROWS : 1;
}

int sl_kv_layout_init(struct sl_kv_layout *layout, const struct sl_config *config,
                      uint32_t n_layers, enum sl_numerics numerics, struct sl_err *err)
{
    const uint32_t n_hidden = config->num_hidden_layers;
    uint64_t page_bytes = PAGE_BYTES_MIN;

    *layout = (struct sl_kv_layout){.n_layers = n_layers,
                                    .n_hidden_layers = n_layers < n_hidden ? n_layers : n_hidden,
                                    .entry_bytes = sl_kv_cache_entry_bytes(config, numerics),
                                    .numerics = numerics,
                                    .parts = calloc(n_layers, sizeof(*layout->parts))};
    if (!layout->parts)
        return sl_err_set(err, -ENOMEM, "KV caches: out of memory");
    for (uint32_t i = 0; i < n_layers; i++) {
        set_layer(layout->parts[i], config, numerics, i);
        for (int p = 0; p < SL_KV_PARTS; p++) {
            const uint64_t least = (uint64_t)layout->parts[i][p].item_bytes * items_together(p);

            page_bytes = least > page_bytes ? least : page_bytes;
        }
    }
    layout->page_bytes = (uint32_t)sl_round_up(page_bytes, SL_CACHE_LINE_BYTES);
    for (uint32_t i = 0; i < n_layers; i++)
        for (int p = 0; p < SL_KV_PARTS; p++) {
            struct sl_kv_part_layout *part = &layout->parts[i][p];
            const uint32_t n = part->item_bytes ? layout->page_bytes / part->item_bytes : 0;

            part->items_per_page = n - n % items_together(p);
        }
    return 0;
}

void sl_kv_layout_fini(struct sl_kv_layout *layout)
{
    free(layout->parts);
    *layout = (struct sl_kv_layout){0};
}

uint32_t sl_kv_part_pages(const struct sl_kv_part_layout *part, uint32_t n_tokens)
{
    uint64_t units, per_page;

    if (part->item_bytes == 0)
        return 0;
    units = n_tokens / part->ratio;
    if (part->n_rows > 0 && units > part->n_rows)
        units = part->n_rows;
    per_page = (uint64_t)part->items_per_page * part->units_per_item;
    return (uint32_t)((units + per_page - 1) / per_page);
}

uint64_t sl_kv_layout_pages(const struct sl_kv_layout *layout, uint32_t n_tokens)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < layout->n_layers; i++)
        for (int p = 0; p < SL_KV_PARTS; p++)
            n += sl_kv_part_pages(&layout->parts[i][p], n_tokens);
    return n;
}
