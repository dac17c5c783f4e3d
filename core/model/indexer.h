/* CSA's indexer: which compressed entries a query attends to.
 *
 * Scores every entry's key for a query (FP4 against FP4, exact integers) and keeps the index_topk
 * best; of equal scores the lower entry wins. Source: the V4 report, CSA; tests/oracle/v4ref.py,
 * Attention.select. */
#ifndef SL_MODEL_INDEXER_H
#define SL_MODEL_INDEXER_H

#include "core/base/arena.h"
#include "core/model/step.h"

struct sl_indexer;

/* Memory for `queries_max` queries at a time over up to `entries_max` entries, from an arena
 * (measuring: returns NULL). */
struct sl_indexer *sl_indexer_carve(struct sl_arena *arena, const struct sl_config *config,
                                    enum sl_numerics numerics, uint32_t n_threads,
                                    uint32_t queries_max, uint64_t entries_max);

/* Stores entry `entry_index`'s key: `pooled` (index_head_dim) is rotated by Hadamard and rounded;
 * it is overwritten. Different entries may be stored from different threads at the same time. */
void sl_indexer_store_key(const struct sl_step *step, struct sl_kv_cache *kv, uint32_t layer_index,
                          uint32_t entry_index, float *pooled);

/* One query's selection. */
struct sl_index_query {
    uint32_t token;       /* step index */
    uint32_t n_visible;   /* whole entries at its position; more than index_topk */
    const float *q;       /* (index_n_heads, index_head_dim): wq_b's output */
    const float *weights; /* (index_n_heads): weights_proj's output */
    uint32_t *ret_chosen; /* (index_topk) entries, ascending */
};

/* Runs one query of a layer on the calling thread, inside a job; its thread_index is below
 * queries_max, and no two threads' may be the same. */
void sl_indexer_select_alone(struct sl_indexer *indexer, const struct sl_step *step,
                             uint32_t layer_index, const struct sl_index_query *query,
                             uint32_t thread_index);

/* Runs up to queries_max queries of one layer, on all threads together. */
void sl_indexer_select(struct sl_indexer *indexer, const struct sl_step *step, uint32_t layer_index,
                       const struct sl_index_query *queries, uint32_t n_queries);

/* Counts a query over so many entries in the account, for whoever drives the pool. */
void sl_indexer_count(const struct sl_step *step, uint32_t n_visible);

/* The k highest of n scores, as ascending indices; of equal ones the lower index. k <= n. */
void sl_select_top(const struct sl_kernels *kernels, const float *scores, uint32_t n, uint32_t k,
                   uint32_t *ret_chosen);

#endif
