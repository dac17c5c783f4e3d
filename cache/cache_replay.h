/* Replay of a trace: what a cache of so many slots would have had to load.
 *
 * A plan lays the trace's tokens out in steps: as in the run that was recorded, or so many tokens
 * at a time, from the first to the last, whatever text they belonged to; or as if the trace were
 * of so many texts, each as long, of which each step takes a token. A replay takes a plan's
 * demands and prefetches through the slot table and the policy that the cache itself uses; loads
 * take no time. What it counts is what a cache counts in a run of the same steps, as long as no
 * demand names more experts than there are slots: then it depends on the drives which of them are
 * there in the end.
 *
 * Beside the policies there is the offline optimum, which knows the future: it lets go of the
 * expert that is asked for last (Belady). It too has to load all that is asked for, and to keep
 * what a demand names until that ends. Nobody can do better without changing the steps; but for
 * sweeps through a cache of a few layers, which let go of experts that their demand has used. */
#ifndef SL_CACHE_CACHE_REPLAY_H
#define SL_CACHE_CACHE_REPLAY_H

#include <stdint.h>

#include "cache/policy.h"
#include "cache/slot_table.h"
#include "cache/trace.h"
#include "core/base/err.h"

struct sl_replay_plan;

/* How the tokens are laid out. */
struct sl_replay_steps {
    uint32_t segment_tokens; /* 0: the steps that were recorded */
    uint32_t n_sequences; /* or, where this is not 0, a token of each in a step; what is left over
                           * at the trace's end is not taken */
};

/* The trace may go afterwards. Fails with -ENOMEM, or with -SL_EFORMAT where there are fewer tokens
 * than sequences. The caller destroys *ret_plan. */
int sl_replay_plan_create(struct sl_replay_plan **ret_plan, const struct sl_trace *trace,
                          const struct sl_replay_steps *steps, struct sl_err *err);

/* Returns how many tokens the steps of a plan take. */
uint64_t sl_replay_plan_tokens(const struct sl_replay_plan *plan);

/* NULL is allowed. */
void sl_replay_plan_destroy(struct sl_replay_plan *plan);

/* policy NULL is the optimum. n_slots is at least the trace's n_per_token, and at most all experts.
 * Fails with -ENOMEM. */
int sl_replay_run(const struct sl_replay_plan *plan, const struct sl_policy_ops *policy,
                  uint32_t n_slots, struct sl_slot_counters *ret_counters, struct sl_err *err);

#endif
