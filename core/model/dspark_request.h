/* Requests for drafts of DSpark, and who chooses their tokens: see sl_forward_begin_dspark(). */
#ifndef SL_MODEL_DSPARK_REQUEST_H
#define SL_MODEL_DSPARK_REQUEST_H

#include <stdatomic.h>
#include <stdint.h>

#include "core/model/kv_cache.h"

/* A draft to be made: what may follow the anchor, which is the token chosen for the place behind
 * all that its sequence has seen, at least one token. */
struct sl_dspark_span {
    struct sl_kv_cache *kv;
    int32_t anchor;
    uint32_t n_max;   /* tokens, 1 to the config's dspark.block_size */
    float chance_min; /* it ends before the chance that all of it stands is less; 0: nowhere */
};

/* Logits (vocab_size) of token `draft_index` of a draft, given those that were chosen before, and
 * the chance that the draft gives it to stand if those before it do. Whoever is told chooses. */
struct sl_dspark_row {
    uint32_t span_index;
    uint32_t draft_index;
    const float *logits;
    float confidence;
    int32_t token; /* set by the callee */
};

/* Chooses the next token of some drafts, one row for each; called as an sl_logits_fn is. */
typedef void sl_dspark_fn(void *context, struct sl_dspark_row *rows, uint32_t n_rows);

/* The work of one such pass, and whom it tells, as in a step. */
struct sl_dspark_request {
    const struct sl_dspark_span *spans;
    uint32_t n_spans;
    const atomic_bool *stop;
    sl_dspark_fn *on_draft;
    void *on_draft_context;
};

#endif
