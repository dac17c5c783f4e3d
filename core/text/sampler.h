/* Sampler: from the logits of a step to the next token.
 *
 * In this order: temperature; top-k (the k most probable); top-p (the fewest of these, most
 * probable first, that together have at least the share top_p of what top-k left); min-p (drop what
 * is less than min_p times as probable as the best). The best token is never dropped. Of equal
 * logits the lower id comes first.
 *
 * The same logits, parameters and seed give the same tokens on every machine: generator, exp and
 * the order of additions are the sampler's own, in IEEE double precision without contraction.
 *
 * Belongs to one thread at a time. Nothing allocates after init. */
#ifndef SL_TEXT_SAMPLER_H
#define SL_TEXT_SAMPLER_H

#include <stdint.h>

#include "core/base/arena.h"
#include "core/base/err.h"

struct sl_sampler_params {
    double temperature; /* 0: greedy, the others then have no effect */
    double top_p;       /* above 0, at most 1; 1 is off */
    double min_p;       /* 0 to 1; 0 is off */
    uint32_t top_k;     /* 0 is off */
};

/* What the model's authors advise. */
#define SL_SAMPLER_PARAMS_DEFAULT                                                                  \
    ((struct sl_sampler_params){.temperature = 1.0, .top_p = 1.0, .min_p = 0.0, .top_k = 0})

struct sl_candidate; /* opaque */

/* The caller's memory; its fields are not for the caller, except to save and restore `state`. */
struct sl_sampler {
    struct sl_sampler_params params;
    uint32_t n_vocab;
    uint64_t state[4];               /* of the generator; one step a token, none when greedy */
    struct sl_candidate *candidates; /* n_vocab of them */
};

/* Takes its memory from `arena`, which keeps it and may be a measuring one (then the sampler is not
 * to be used). n_vocab is at least 1. Fails with -EINVAL, the message naming the parameter. */
int sl_sampler_init(struct sl_sampler *sampler, const struct sl_sampler_params *params,
                    uint64_t seed, uint32_t n_vocab, struct sl_arena *arena, struct sl_err *err);

/* Chooses from logits[0..n_vocab). A logit of minus infinity is never chosen. Fails with
 * -SL_ECORRUPT if a logit is NaN or plus infinity, or none is left to choose: what made them is
 * broken. */
int sl_sampler_sample(struct sl_sampler *sampler, const float *logits, uint32_t *ret_id,
                      struct sl_err *err);

#endif
