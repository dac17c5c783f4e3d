/* Compressors: `ratio` tokens pooled into one KV entry or one indexer key, channel by channel, by a
 * softmax over learned scores. CSA's windows overlap: an entry also pools the window before it,
 * through the first half of the projected channels.
 *
 * Source: the V4 report, CSA and HCA; tests/oracle/v4ref.py, Compressor. */
#ifndef SL_MODEL_COMPRESSOR_H
#define SL_MODEL_COMPRESSOR_H

#include "core/base/arena.h"
#include "core/model/step.h"
#include "core/model/weights.h"

/* A pooled, normed and rotated entry `entry_index` of token i's sequence, to be stored. `pooled`
 * (dim) may be overwritten. Called from compute threads, never twice for the same entry. */
typedef void sl_compressed_fn(void *context, uint32_t i, uint32_t entry_index, float *pooled);

/* One compressor of a layer at work. */
struct sl_compressor_run {
    const struct sl_compressor_weights *weights;
    uint32_t ratio;
    uint32_t dim;
    bool is_index; /* pools indexer keys, from the KV cache's index rings */
    uint32_t layer_index;
    float *kv;    /* (chunk tokens, width): wkv of the chunk, at row_stride */
    float *score; /* (chunk tokens, width): wgate of the chunk; ape is added in place */
    size_t row_stride;
    sl_compressed_fn *store;
    void *store_context;
};

/* Scratch of one thread. */
struct sl_compressor_scratch {
    const float **kv_rows; /* rows_max each */
    const float **score_rows;
    float *pooled; /* head_dim or index_head_dim, whichever is larger */
    float *cosine, *sine;
};

struct sl_compressor_scratch sl_compressor_scratch_carve(struct sl_arena *arena,
                                                         const struct sl_config *config);

/* Adds tokens first <= t < end of the step to every sequence's compressor and stores each entry
 * that becomes whole. Chunks of a step must come in order. `scratch` has one element per thread. */
void sl_compressor_add(const struct sl_step *step, const struct sl_compressor_run *run,
                       uint32_t first, uint32_t end, const struct sl_compressor_scratch *scratch);

#endif
