/* The attention half of a layer: sliding window, CSA or HCA by the layer's ratio.
 *
 * Source: the V4 report, CSA and HCA; tests/oracle/v4ref.py, Attention. Queries of all heads share
 * one KV head; values are the KV entries themselves, so their rotation is undone on the output. */
#ifndef SL_MODEL_ATTENTION_H
#define SL_MODEL_ATTENTION_H

#include "core/base/arena.h"
#include "core/model/linear.h"
#include "core/model/step.h"
#include "core/model/weights.h"

struct sl_attention;

/* Working memory for steps of up to `tokens_max` tokens in sequences of up to `context_max`, from
 * an arena (measuring: returns NULL). */
struct sl_attention *sl_attention_carve(struct sl_arena *arena, const struct sl_config *config,
                                        enum sl_numerics numerics, uint32_t n_threads,
                                        uint32_t tokens_max, uint32_t context_max);

/* Runs the attention half of layer `layer_index` for all tokens of the step: reads and updates the
 * residual streams and every sequence's KV cache of that layer. Returns 0, or -ECANCELED in the
 * middle when the step is stopped. */
int sl_attention_run(struct sl_attention *attention, const struct sl_step *step,
                     uint32_t layer_index, const struct sl_layer_weights *weights);

/* Only lets the layer see the step's tokens: their entries go into the KV caches, and streams stay
 * as they are. Fails as sl_attention_run(). */
int sl_attention_see(struct sl_attention *attention, const struct sl_step *step,
                     uint32_t layer_index, const struct sl_layer_weights *weights);

/* Writes window entries of layer `layer_index` that are made of x, n_rows of (hidden_size), in
 * place of the layer's own input: row i for step token tokens[i]. At most SL_CHUNK_TOKENS rows, and
 * no two for the same row of a ring. */
void sl_attention_fill_window(struct sl_attention *attention, const struct sl_step *step,
                              uint32_t layer_index, const struct sl_layer_weights *weights,
                              struct sl_act x, const uint32_t *tokens, uint32_t n_rows);

#endif
