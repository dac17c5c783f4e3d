/* What one sequence leaves behind in every layer: the KV cache.
 *
 * Per layer: a ring of the last `sliding_window` entries; with compression one entry per `ratio`
 * tokens and the compressor's rows of the windows not yet whole; in CSA layers also an indexer key
 * per entry, and its compressor's rows. Entries and keys are stored as the model was trained to
 * have them (docs/NUMERICS.md), or as float32 in `exact`. Everything is allocated at creation.
 *
 * Written by the forward pass alone. A sequence cannot go back: compressors do not rewind. */
#ifndef SL_MODEL_KV_CACHE_H
#define SL_MODEL_KV_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/arena.h"
#include "core/model/compute.h"
#include "core/model/config.h"

/* The compressor's input of the last `n_rows` tokens; token t in row t % n_rows. */
struct sl_compressor_state {
    uint32_t n_rows; /* ratio, or 2 * ratio where windows overlap */
    uint32_t width;
    float *kv;    /* (n_rows, width) */
    float *score; /* (n_rows, width), with ape added */
};

struct sl_kv_layer {
    uint8_t *window;  /* (sliding_window) entries; token t in entry t % sliding_window */
    uint8_t *entries; /* (capacity / ratio) entries */
    uint8_t *keys; /* native: FP4 R16 tiles of 16 keys; exact: float32 (entries, index_head_dim) */
    struct sl_compressor_state compressor;
    struct sl_compressor_state index_compressor;
};

struct sl_kv_cache {
    uint32_t capacity_tokens;
    uint32_t n_tokens;     /* seen by all hidden layers */
    uint32_t n_mtp_tokens; /* seen by the MTP block */
    bool broken;           /* a step failed half-way: the contents are of no use any more */
    uint32_t entry_bytes;
    struct sl_kv_layer *layers;
    struct sl_arena arena;
};

/* Bytes of one entry as the numerics store it. */
uint32_t sl_kv_cache_entry_bytes(const struct sl_config *config, enum sl_numerics numerics);

/* Bytes that sl_kv_cache_init() will map for up to `capacity_tokens` tokens. n_layers counts the
 * MTP block if it is used. */
uint64_t sl_kv_cache_measure(const struct sl_config *config, uint32_t n_layers,
                             uint32_t capacity_tokens, enum sl_numerics numerics);

/* Fails with -ENOMEM. The caller calls sl_kv_cache_fini(). */
int sl_kv_cache_init(struct sl_kv_cache *kv, const struct sl_config *config, uint32_t n_layers,
                     uint32_t capacity_tokens, enum sl_numerics numerics, struct sl_err *err);

void sl_kv_cache_fini(struct sl_kv_cache *kv);

/* Empty again, for another sequence. */
void sl_kv_cache_clear(struct sl_kv_cache *kv);

/* Columns of an indexer key in an FP4 tile: index_head_dim rounded up to whole groups. */
static inline uint32_t sl_index_key_cols(const struct sl_config *config)
{
    return (config->index_head_dim + SL_FP4_GROUP_COLS - 1) / SL_FP4_GROUP_COLS * SL_FP4_GROUP_COLS;
}

#endif
