/* Log probabilities: what a row of logits says about tokens, at temperature 1 and before a sampler
 * leaves anything out. In nats. Allocates nothing; any thread. */
#ifndef SL_TEXT_LOGPROBS_H
#define SL_TEXT_LOGPROBS_H

#include <stdint.h>

/* log of the sum of exp(logits[0..n)), n at least 1: the log probability of token `id` is
 * logits[id] less this. */
double sl_log_sum_exp(const float *logits, uint32_t n);

/* The k most probable tokens, best first, of equal ones the lower id first; k is at most n. */
void sl_most_probable(const float *logits, uint32_t n, uint32_t k, uint32_t *ret_ids);

#endif
