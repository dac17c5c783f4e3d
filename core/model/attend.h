/* Attention proper: some neighbouring tokens' queries over their window and compressed entries.
 *
 * Queries of one sequence that see the same entries (the window, all of HCA, and CSA while there
 * are no more entries than the indexer would choose) form a group: its entries are decoded and laid
 * out once, as rows for the scores and as R16 tiles of their transpose for the weighted sum, so
 * that both products are the BF16 matrix kernel: heads against entries, then channels against
 * heads. What a query of a group does not see has weight zero, which changes no sum. A query that
 * the indexer chose entries for is a group of its own. */
#ifndef SL_MODEL_ATTEND_H
#define SL_MODEL_ATTEND_H

#include "core/base/arena.h"
#include "core/model/linear.h"
#include "core/model/step.h"
#include "core/model/weights.h"

struct sl_attend;

/* The queries of tokens first to end of the step, all arrays by their row: token - first. */
struct sl_attend_run {
    const struct sl_layer_weights *weights;
    uint32_t layer_index;
    uint32_t first, end;
    const float *q;         /* exact: (rows, heads * head_dim) at sl_r16_padded_rows() */
    const uint8_t *q_tiles; /* native: per row sl_attend_tile_bytes(), heads as R16 rows */
    const float *index_q;   /* where the indexer is needed: wq_b's and weights_proj's output */
    const float *index_weights;
    const uint8_t *step_entries; /* window entries by step index, sl_kv_cache_entry_bytes() each */
    struct sl_act_buffer *o;     /* (rows, heads * head_dim): the heads' outputs, also rounded */
};

/* R16 BF16 tiles of one token's query: (num_attention_heads, head_dim). */
uint64_t sl_attend_tile_bytes(const struct sl_config *config);

/* Memory for sequences of up to `context_max` tokens, from an arena (measuring: returns NULL). */
struct sl_attend *sl_attend_carve(struct sl_arena *arena, const struct sl_config *config,
                                  enum sl_numerics numerics, uint32_t n_threads,
                                  uint32_t context_max);

/* Whether any of the run's queries needs index_q and index_weights. */
bool sl_attend_needs_index(const struct sl_step *step, const struct sl_layer_weights *weights,
                           uint32_t first, uint32_t end);

void sl_attend_run(struct sl_attend *attend, const struct sl_step *step,
                   const struct sl_attend_run *run);

#endif
