#include "tests/kv_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

void kv_rig_pool(struct sl_kv_pool *pool, const struct sl_config *config, uint32_t n_layers,
                 enum sl_numerics numerics, uint32_t n_sequences, uint32_t n_tokens)
{
    struct sl_kv_layout layout;
    uint64_t bytes;

    assert_int_equal(sl_kv_layout_init(&layout, config, n_layers, numerics, NULL), 0);
    bytes = n_sequences * sl_kv_cache_measure(&layout, n_tokens);
    sl_kv_layout_fini(&layout);
    assert_int_equal(sl_kv_pool_init(pool, config, n_layers, numerics, bytes, NULL), 0);
}
