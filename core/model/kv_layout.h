/* The parts that the KV caches of a model consist of, and how they lie in pages.
 *
 * Two kinds of parts, per layer:
 *
 * Rings are overwritten as the sequence grows, token t in row t % n_rows: the window's entries, and
 * the inputs of the compressors for windows not yet whole.
 *
 * The others are only ever appended to: with compression one entry per `ratio` tokens, in CSA
 * layers an indexer key per entry, and with the first layer the token ids.
 *
 * Every part lies in pages of one size, the same for all parts of a model, so that one pool serves
 * them all. An item (a row, an entry, a tile of 16 keys, an id) never crosses a page's end. */
#ifndef SL_MODEL_KV_LAYOUT_H
#define SL_MODEL_KV_LAYOUT_H

#include <stdint.h>

#include "core/kernels/r16.h"
#include "core/model/compute.h"
#include "core/model/config.h"

/* The parts of a layer. A compressor's rows are what its two projections gave, float32, with ape
 * added to the scores. */
enum sl_kv_part {
    SL_KV_WINDOW,       /* (sliding_window) entries */
    SL_KV_VALUES,       /* (ratio, head_dim); twice as many rows, twice as wide for CSA */
    SL_KV_SCORES,       /* likewise */
    SL_KV_INDEX_VALUES, /* CSA: (2 * ratio, 2 * index_head_dim) */
    SL_KV_INDEX_SCORES, /* likewise */
    SL_KV_RINGS,        /* the parts before are rings */
    SL_KV_ENTRIES = SL_KV_RINGS,
    SL_KV_KEYS, /* native: FP4 R16 tiles of 16 keys; exact: 16 rows of float32 for each */
    SL_KV_IDS,  /* layer 0 alone: int32_t of each token */
    SL_KV_PARTS
};

/* Keys that lie side by side: those from a multiple of this number on, up to the next one. A page
 * holds as many of them. */
#define SL_KV_KEYS_TOGETHER 512u

struct sl_kv_part_layout {
    uint32_t item_bytes; /* 0: the layer has no such part */
    uint32_t items_per_page;
    uint32_t n_rows;         /* of a ring; 0 for parts that are appended to */
    uint32_t ratio;          /* tokens for each unit: entry, key, id, row */
    uint32_t units_per_item; /* 16 for tiles of keys, otherwise 1 */
};

struct sl_kv_layout {
    uint32_t n_layers; /* the MTP block counted, if it is used */
    uint32_t n_hidden_layers;
    uint32_t page_bytes;
    uint32_t entry_bytes;
    enum sl_numerics numerics;
    struct sl_kv_part_layout (*parts)[SL_KV_PARTS]; /* (n_layers); malloc's */
};

/* n_layers counts the MTP block if it is used. Fails with -ENOMEM. The caller calls fini(). */
int sl_kv_layout_init(struct sl_kv_layout *layout, const struct sl_config *config,
                      uint32_t n_layers, enum sl_numerics numerics, struct sl_err *err);
void sl_kv_layout_fini(struct sl_kv_layout *layout); /* a zeroed one is allowed */

/* Bytes of one entry as the numerics store it. */
uint32_t sl_kv_cache_entry_bytes(const struct sl_config *config, enum sl_numerics numerics);

struct sl_kv_ring_shape {
    uint32_t n_rows; /* 0: the layer has no such ring */
    uint32_t row_bytes;
};

/* The rings of layer `layer_index` of every KV cache of this model. */
void sl_kv_ring_shapes(const struct sl_config *config, enum sl_numerics numerics,
                       uint32_t layer_index, struct sl_kv_ring_shape ret_shapes[SL_KV_RINGS]);

/* The pages that a sequence of n_tokens has of a part. */
uint32_t sl_kv_part_pages(const struct sl_kv_part_layout *part, uint32_t n_tokens);

/* The pages of all parts of all layers. */
uint64_t sl_kv_layout_pages(const struct sl_kv_layout *layout, uint32_t n_tokens);

/* Columns of an indexer key in an FP4 tile: index_head_dim rounded up to whole groups. */
static inline uint32_t sl_index_key_cols(const struct sl_config *config)
{
    return (config->index_head_dim + SL_FP4_GROUP_COLS - 1) / SL_FP4_GROUP_COLS * SL_FP4_GROUP_COLS;
}

#endif
