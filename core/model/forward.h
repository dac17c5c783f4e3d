/* The forward pass.
 *
 * A step is a list of spans: tokens of some sequences, each to be appended to its KV cache. Prefill
 * of a document, decode of one user, decode of many in lockstep: all are one call. The pass is
 * layer-major (every span passes layer n before layer n + 1 starts) and expert-major inside the
 * MoE. The logits after a token depend on weights and earlier tokens alone, bit for bit.
 *
 * One thread drives a forward; it owns all working memory and allocates nothing after creation.
 * What a step's time went to is in the pool's account (core/base/phase.h), without what
 * on_logits() took. */
#ifndef SL_MODEL_FORWARD_H
#define SL_MODEL_FORWARD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/model/compute.h"
#include "core/model/config.h"
#include "core/model/expert_source.h"
#include "core/model/kv_cache.h"
#include "core/model/weights.h"

struct sl_forward;

/* The experts that each token of a step was routed to in a layer, as soon as the layer has run:
 * (n_tokens, num_experts_per_tok), ascending for each token, spans one after the other; valid
 * during the call. */
typedef void sl_route_fn(void *context, uint32_t layer_index, uint32_t n_tokens,
                         const uint16_t *experts);

/* Which experts the source is told of before their layer's router has chosen them. */
enum sl_prefetch {
    SL_PREFETCH_HASH, /* those of the hash-routed layers, for certain */
    SL_PREFETCH_OFF,
    SL_PREFETCH_GATE, /* also guesses at the next layer's, in steps of few tokens */
};

struct sl_forward_params {
    const struct sl_config *config; /* this and the next three are borrowed */
    const struct sl_weights *weights;
    const struct sl_compute *compute;
    struct sl_expert_source *source;
    uint32_t tokens_max;  /* of one step, all spans together */
    uint32_t context_max; /* of one sequence: no KV cache has a larger capacity */
    uint32_t spans_max;
    enum sl_prefetch prefetch;
    const atomic_bool *stop; /* NULL, or looked at some times a second; may be set from anywhere */
    sl_route_fn *on_route;   /* NULL, or told, from the thread that drives the pass */
    void *on_route_context;
};

enum sl_logits_wanted { SL_LOGITS_NONE, SL_LOGITS_LAST, SL_LOGITS_ALL };

struct sl_span {
    struct sl_kv_cache *kv; /* one span per sequence and step */
    const int32_t *tokens;
    uint32_t n_tokens; /* at least 1 */
    enum sl_logits_wanted logits;
};

/* One row: logits (vocab_size) after token `token_index` of span `span_index`; valid during the
 * call. Rows come in the order of spans and tokens, from the thread that called sl_forward_step().
 */
typedef void sl_logits_fn(void *context, uint32_t span_index, uint32_t token_index,
                          const float *logits);

/* Bytes of working memory that sl_forward_create() will map. n_threads as in params->compute. */
uint64_t sl_forward_measure(const struct sl_config *config, enum sl_numerics numerics,
                            uint32_t n_threads, uint32_t tokens_max, uint32_t context_max,
                            uint32_t spans_max);

/* Fails with -ENOMEM. The caller destroys *ret_forward. */
int sl_forward_create(struct sl_forward **ret_forward, const struct sl_forward_params *params,
                      struct sl_err *err);

/* NULL is allowed. */
void sl_forward_destroy(struct sl_forward *forward);

/* All working memory: for figures. */
const struct sl_arena *sl_forward_arena(const struct sl_forward *forward);

/* Runs all spans through all layers. Fails before anything is changed with -SL_EFORMAT (a token
 * outside the vocabulary), -SL_EBUDGET (a span does not fit its KV cache, or the step this forward)
 * or -EINVAL (a broken KV cache); or, and then every KV cache of the step is broken, as the expert
 * source fails, with -SL_ECORRUPT (logits that are not finite, and so not given) or -ECANCELED
 * (stop was set). */
int sl_forward_step(struct sl_forward *forward, const struct sl_span *spans, uint32_t n_spans,
                    sl_logits_fn *on_logits, void *context, struct sl_err *err);

/* Runs the MTP block over the spans of the step before, whose final streams are still here: span
 * i's tokens are what followed each of its tokens, as far as known (n_tokens 0 to that span's
 * n_tokens). Logits row t predicts the token after tokens[t]. Only with weights that have an MTP
 * block. May be called once per step; of a sequence for all steps or none, since the block attends
 * to its own past: only the last step may leave out tokens. Fails like sl_forward_step(). */
int sl_forward_mtp(struct sl_forward *forward, const struct sl_span *spans, uint32_t n_spans,
                   sl_logits_fn *on_logits, void *context, struct sl_err *err);

#endif
