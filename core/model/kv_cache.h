/* The KV cache: everything that one sequence leaves behind in the layers.
 *
 * Two kinds of memory, per layer:
 *
 * Entries and keys are only ever appended: with compression one entry per `ratio` tokens, and in
 * CSA layers an indexer key per entry. Those beyond what `n_tokens` tokens make do not count, so
 * that going back needs no more than a smaller n_tokens.
 *
 * Rings are overwritten as the sequence grows, token t in row t % n_rows: the window's entries, and
 * the inputs of the compressors for windows not yet whole. To go back, their rows must have been
 * copied before (core/model/kv_rollback.h).
 *
 * Entries and keys are stored as the model was trained to have them (docs/NUMERICS.md), or as
 * float32 in `exact`. Everything is allocated at creation. Only the forward pass writes. */
#ifndef SL_MODEL_KV_CACHE_H
#define SL_MODEL_KV_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/arena.h"
#include "core/kernels/r16.h"
#include "core/model/compute.h"
#include "core/model/config.h"

/* The rings of a layer. A compressor's are the rows that its two projections gave, float32, with
 * ape added to the scores. */
enum sl_kv_ring {
    SL_KV_WINDOW,       /* (sliding_window) entries */
    SL_KV_VALUES,       /* (ratio, head_dim); twice as many rows, twice as wide for CSA */
    SL_KV_SCORES,       /* likewise */
    SL_KV_INDEX_VALUES, /* CSA: (2 * ratio, 2 * index_head_dim) */
    SL_KV_INDEX_SCORES, /* likewise */
    SL_KV_RINGS
};

struct sl_kv_ring_shape {
    uint32_t n_rows; /* 0: the layer has no such ring */
    uint32_t row_bytes;
};

/* A layer's memory: for core/model/kv_*.c alone, as others have the functions below. */
struct sl_kv_layer {
    struct sl_kv_ring_shape shapes[SL_KV_RINGS];
    uint8_t *rings[SL_KV_RINGS];
    uint8_t *entries; /* (capacity / ratio) entries */
    uint8_t *keys;    /* native: FP4 R16 tiles of 16 keys; exact: 16 rows of float32 for each */
};

struct sl_kv_cache {
    uint32_t capacity_tokens;
    uint32_t n_tokens;     /* seen by all hidden layers */
    uint32_t n_mtp_tokens; /* seen by the MTP block, which may be behind */
    bool in_step;          /* a step that has begun and not ended writes to it */

    uint32_t n_layers;
    uint32_t entry_bytes;
    uint32_t key_tile_bytes; /* of 16 keys */
    struct sl_kv_layer *layers;
    struct sl_arena arena;
};

/* Bytes of one entry as the numerics store it. */
uint32_t sl_kv_cache_entry_bytes(const struct sl_config *config, enum sl_numerics numerics);

/* The rings of layer `layer_index` of every KV cache of this model. */
void sl_kv_ring_shapes(const struct sl_config *config, enum sl_numerics numerics,
                       uint32_t layer_index, struct sl_kv_ring_shape ret_shapes[SL_KV_RINGS]);

/* Bytes that sl_kv_cache_init() will map for up to `capacity_tokens` tokens. n_layers counts the
 * MTP block if it is used. */
uint64_t sl_kv_cache_measure(const struct sl_config *config, uint32_t n_layers,
                             uint32_t capacity_tokens, enum sl_numerics numerics);

/* Fails with -ENOMEM. The caller calls sl_kv_cache_fini(). */
int sl_kv_cache_init(struct sl_kv_cache *kv, const struct sl_config *config, uint32_t n_layers,
                     uint32_t capacity_tokens, enum sl_numerics numerics, struct sl_err *err);

/* No step has it, here and below. */
void sl_kv_cache_fini(struct sl_kv_cache *kv);

/* Empty again, for another sequence. */
void sl_kv_cache_clear(struct sl_kv_cache *kv);

/* ---- access, for the forward pass --------------------------------------------------------------
 */

/* The row that the token at `position` has, or will have, in a ring of the layer. */
static inline uint8_t *sl_kv_row(const struct sl_kv_cache *kv, uint32_t layer_index,
                                 enum sl_kv_ring ring, uint32_t position)
{
    const struct sl_kv_layer *layer = &kv->layers[layer_index];
    const struct sl_kv_ring_shape shape = layer->shapes[ring];

    return layer->rings[ring] + (size_t)(position % shape.n_rows) * shape.row_bytes;
}

static inline struct sl_kv_ring_shape sl_kv_shape(const struct sl_kv_cache *kv,
                                                  uint32_t layer_index, enum sl_kv_ring ring)
{
    return kv->layers[layer_index].shapes[ring];
}

/* A compressed entry. Neighbours need not lie side by side. */
static inline uint8_t *sl_kv_entry(const struct sl_kv_cache *kv, uint32_t layer_index,
                                   uint32_t entry_index)
{
    return kv->layers[layer_index].entries + (size_t)entry_index * kv->entry_bytes;
}

/* Keys that lie side by side: those from a multiple of this number on, up to the next one. */
#define SL_KV_KEYS_TOGETHER 512u

/* The tile of 16 keys that entry `entry_index`'s is in; in `exact` 16 rows of index_head_dim. */
static inline uint8_t *sl_kv_key_tile(const struct sl_kv_cache *kv, uint32_t layer_index,
                                      uint32_t entry_index)
{
    return kv->layers[layer_index].keys + (size_t)(entry_index / SL_R16_ROWS) * kv->key_tile_bytes;
}

/* Columns of an indexer key in an FP4 tile: index_head_dim rounded up to whole groups. */
static inline uint32_t sl_index_key_cols(const struct sl_config *config)
{
    return (config->index_head_dim + SL_FP4_GROUP_COLS - 1) / SL_FP4_GROUP_COLS * SL_FP4_GROUP_COLS;
}

#endif
