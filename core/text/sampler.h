/* Sampler: from the logits of a step to the next token.
 *
 * In this order: temperature; top-k (the k most probable); top-p (the fewest of these, most
 * probable first, that together have at least the share top_p of what top-k left); min-p (drop what
 * is less than min_p times as probable as the best). The best token is never dropped. Of equal
 * logits the lower id comes first.
 *
 * A draw depends on the logits, the parameters, the seed and the position alone: not on what
 * was drawn before, nor on who shared the step. So a text can be gone on with anywhere, and drafts
 * can be checked against it. It is the same on every machine: generator, exp and the order of
 * additions are the sampler's own, in IEEE double precision without contraction. */
#ifndef SL_TEXT_SAMPLER_H
#define SL_TEXT_SAMPLER_H

#include <stdint.h>

#include "core/base/arena.h"
#include "core/base/err.h"

/* How the tokens of one request are drawn. */
struct sl_sampler {
    double temperature; /* 0: greedy, the others then have no effect */
    double top_p;       /* above 0, at most 1; 1 is off */
    double min_p;       /* 0 to 1; 0 is off */
    uint32_t top_k;     /* 0 is off */
    uint64_t seed;
};

/* The model's authors advise these. */
#define SL_SAMPLER_DEFAULT                                                                         \
    ((struct sl_sampler){.temperature = 1.0, .top_p = 1.0, .min_p = 0.0, .top_k = 0, .seed = 0})

/* Fails with -EINVAL, the message naming the parameter. */
int sl_sampler_check(const struct sl_sampler *sampler, struct sl_err *err);

/* Working memory for one thread, from an arena (measuring: returns NULL). n_vocab is at least 1. */
struct sl_candidate; /* opaque */
struct sl_candidate *sl_sampler_carve_scratch(struct sl_arena *arena, uint32_t n_vocab);

/* Chooses the token at `position` of its sequence from logits[0..n_vocab). `scratch` is for as
 * many. A logit of minus infinity is never chosen. Fails with -SL_ECORRUPT if a logit is NaN or
 * plus infinity, or none is left to choose: what made them is broken. */
int sl_sampler_sample(const struct sl_sampler *sampler, uint64_t position, const float *logits,
                      uint32_t n_vocab, struct sl_candidate *scratch, uint32_t *ret_id,
                      struct sl_err *err);

#endif
