/* Attention proper: the queries of a chunk over their window and compressed entries, shared out
 * among the compute threads.
 *
 * Threads share groups of queries (core/model/attend_group.h). Where a chunk has enough of them,
 * each thread takes one group after the other and does everything for it alone, from the indexer's
 * choice to the heads' outputs. The few that would leave threads idle (one user's next token, one
 * long text among many short ones, the rest at the end) are worked on by all threads together, a
 * kind of work at a time. So a chunk takes a bounded number of jobs, whatever its tokens and
 * entries are. */
#ifndef SL_MODEL_ATTEND_H
#define SL_MODEL_ATTEND_H

#include "core/base/arena.h"
#include "core/model/attend_group.h"

struct sl_attend;

/* A chunk takes at most so many jobs of the pool; beyond 16 threads more, where most of its groups
 * have the most entries that the context allows. */
#define SL_ATTEND_JOBS_MAX 26u

/* Memory for sequences of up to `context_max` tokens, from an arena (measuring: returns NULL). */
struct sl_attend *sl_attend_carve(struct sl_arena *arena, const struct sl_config *config,
                                  enum sl_numerics numerics, uint32_t n_threads,
                                  uint32_t context_max);

/* Whether any of the run's queries needs index_q and index_weights. */
bool sl_attend_needs_index(const struct sl_step *step, const struct sl_layer_weights *weights,
                           uint32_t first, uint32_t end);

/* Attends for a chunk: at most SL_CHUNK_TOKENS queries. Returns 0, or -ECANCELED in the middle when
 * the step is stopped. */
int sl_attend_run(struct sl_attend *attend, const struct sl_attend_run *run);

#endif
