/* Compressors: `ratio` tokens pooled into one KV entry or one indexer key, channel by channel, by a
 * softmax over learned scores. CSA's windows overlap: an entry also pools the window before it,
 * through the first half of the projected channels.
 *
 * Source: the V4 report, CSA and HCA; tests/oracle/v4ref.py, Compressor. */
#ifndef SL_MODEL_COMPRESSOR_H
#define SL_MODEL_COMPRESSOR_H

#include "core/base/arena.h"
#include "core/model/chains.h"
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

struct sl_compressors;

/* Memory for the compressors of a layer over up to chunk_tokens tokens, from an arena (measuring:
 * returns NULL). */
struct sl_compressors *sl_compressors_carve(struct sl_arena *arena, const struct sl_config *config,
                                            uint32_t n_threads, uint32_t chunk_tokens);

#define SL_COMPRESSORS_MAX 2u /* of a layer: entries and keys */

/* Adds tokens first <= t < end of the step to every sequence's compressors, which are all of a
 * layer's, and stores each entry and key that becomes whole. Chunks of a step must come in order.
 */
struct sl_compressor_add {
    struct sl_compressors *c;
    const struct sl_step *step;
    const struct sl_compressor_run *runs; /* (n_runs) */
    uint32_t n_runs;
    uint32_t first, end;
    uint32_t n_windows; /* set by sl_compressors_jobs() */
};

#define SL_COMPRESSOR_JOBS 3u

/* That as SL_COMPRESSOR_JOBS jobs of a chain, of which some may have no items; *add and the runs
 * must last until it is done. */
void sl_compressors_jobs(struct sl_compressor_add *add, struct sl_chain_job *ret_jobs);

#endif
