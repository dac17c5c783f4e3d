/* A past that nobody computed: for measuring, and testing, at a position.
 *
 * One thread makes all calls. */
#ifndef SL_TOOLS_BENCH_BENCH_PAST_H
#define SL_TOOLS_BENCH_BENCH_PAST_H

#include <stdint.h>

#include "core/model/compute.h"
#include "core/model/config.h"
#include "core/model/kv_cache.h"

/* Fills a KV cache as n_tokens tokens leave it: random entries, keys and rows of the rings, each in
 * the form and of about the size of those that a model computes. The same seed gives the same
 * ones. `kv` is empty, it and its pool have room for them, and no step has it. Fails with -ENOMEM.
 */
int sl_bench_past_fill(struct sl_kv_cache *kv, const struct sl_config *config,
                       const struct sl_compute *compute, uint32_t n_tokens, uint64_t seed,
                       struct sl_err *err);

#endif
