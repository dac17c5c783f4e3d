/* mHC: residual streams mixed into a block's input, and its output mixed back.
 *
 * Source: the V4 report, manifold-constrained hyper-connections; tests/oracle/v4ref.py,
 * HyperConnection. All in float32. Its jobs are booked in the phase of mHC. */
#ifndef SL_MODEL_HYPER_CONNECTION_H
#define SL_MODEL_HYPER_CONNECTION_H

#include "core/base/arena.h"
#include "core/model/linear.h"
#include "core/model/step.h"
#include "core/model/weights.h"

/* How each token's streams are mixed, between before and after. */
struct sl_hc_mix {
    float *post; /* (tokens, hc_mult) */
    float *comb; /* (tokens, hc_mult, hc_mult) */
    float *part; /* before's own: sums over parts of the columns, of the tokens at once */
};

/* For so many tokens, of which some at a time are between the two jobs of before. */
struct sl_hc_mix sl_hc_mix_carve(struct sl_arena *arena, const struct sl_config *config,
                                 uint64_t tokens, uint64_t tokens_at_once);

/* The mix of the tokens from first_row on, the first_at_once-th and next of those at once. */
struct sl_hc_mix sl_hc_mix_from(const struct sl_hc_mix *mix, const struct sl_config *config,
                                size_t first_row, size_t first_at_once);

/* For n_tokens tokens t of the step from `first` on: x row t - first = norm(pre . streams of t),
 * rounded into x's other forms; mix row t - first is kept for after. */
struct sl_hc_before {
    const struct sl_step *step;
    const struct sl_hc_weights *hc;
    const float *norm;
    uint32_t first, n_tokens;
    struct sl_hc_mix mix;
    struct sl_act_buffer x;
};

#define SL_HC_BEFORE_JOBS 2u

/* That as SL_HC_BEFORE_JOBS jobs of a chain; *before must last until it is done. */
void sl_hc_before_jobs(const struct sl_hc_before *before, struct sl_chain_job *ret_jobs);

/* streams of t become post * out row t - first + comb . streams of t. out (tokens, hidden_size). */
struct sl_hc_after {
    const struct sl_step *step;
    uint32_t first, n_tokens;
    struct sl_hc_mix mix;
    const float *out;
    size_t out_stride;
};

/* That as a job of a chain, for all tokens, and one row of it. */
struct sl_chain_job sl_hc_after_job(const struct sl_hc_after *after);
void sl_hc_after_row(const struct sl_hc_after *after, size_t row);

/* comb (hc_mult, hc_mult): softmax over each row, then rows and columns are divided by their sums
 * in turn. */
void sl_hc_sinkhorn(const struct sl_config *config, float *comb);

/* For one token's streams (hc_mult, hidden_size): x = head mix of streams, for the head's norm. */
void sl_hc_head(const struct sl_step *step, const struct sl_hc_weights *hc, const float *streams,
                float *x);

#endif
