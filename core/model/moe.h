/* The expert half of a layer: router, shared expert, routed experts.
 *
 * Expert-major: each distinct expert of the step is asked for once and serves all its tokens. What
 * the experts give is added per token in ascending expert number, then the shared expert's,
 * whatever order they arrived in. Source: the V4 report; tests/oracle/v4ref.py, MoE and Expert. */
#ifndef SL_MODEL_MOE_H
#define SL_MODEL_MOE_H

#include "core/base/arena.h"
#include "core/model/expert_source.h"
#include "core/model/step.h"
#include "core/model/weights.h"

struct sl_moe;

/* Working memory for steps of up to `tokens_max` tokens, from an arena (measuring: returns NULL).
 */
struct sl_moe *sl_moe_carve(struct sl_arena *arena, const struct sl_config *config,
                            enum sl_numerics numerics, uint32_t tokens_max);

/* Tells the source which experts the hash-routed layers of this step will want. */
void sl_moe_prefetch(struct sl_moe *moe, const struct sl_step *step,
                     const struct sl_layer_weights *layers, struct sl_expert_source *source);

/* Runs the expert half of layer `layer_index` for all tokens: reads and updates their streams.
 * `next`, if not NULL, is the layer after it, whose experts are predicted for the source while
 * those of this one load: by its own router on the streams as they are. Only for a few tokens, and
 * not where it is hash-routed. Fails as the source does; then the step cannot be completed. */
int sl_moe_run(struct sl_moe *moe, const struct sl_step *step, uint32_t layer_index,
               const struct sl_layer_weights *weights, const struct sl_layer_weights *next,
               struct sl_expert_source *source, struct sl_err *err);

/* The experts of the layer that ran last: (n_tokens, num_experts_per_tok), ascending for each
 * token; valid until the next run. */
const uint16_t *sl_moe_picked(const struct sl_moe *moe);

#endif
