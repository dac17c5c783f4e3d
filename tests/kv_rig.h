/* Memory of KV caches for tests. Failures are cmocka's. */
#ifndef SL_TESTS_KV_RIG_H
#define SL_TESTS_KV_RIG_H

#include "core/model/kv_cache.h"

/* Makes a pool that n_sequences of n_tokens tokens each fit into. */
void kv_rig_pool(struct sl_kv_pool *pool, const struct sl_config *config, uint32_t n_layers,
                 enum sl_numerics numerics, uint32_t n_sequences, uint32_t n_tokens);

#endif
