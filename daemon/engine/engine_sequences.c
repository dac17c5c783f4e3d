/* Sequences of an engine: each has a KV cache, and all grow in the memory plan's one pool. */
#include <errno.h>
#include <stdlib.h>

#include "core/base/assert.h"
#include "daemon/engine/engine_internal.h"

struct sl_kv_pool *sl_engine_kv_pool(struct sl_engine *e)
{
    return &e->kv_pool;
}

int sl_engine_sequence_create(struct sl_engine *e, uint32_t capacity_tokens,
                              struct sl_kv_cache **ret_kv, struct sl_err *err)
{
    struct sl_engine_sequence *sequence;
    int rc;

    sl_assert(capacity_tokens >= 1 && capacity_tokens <= e->options.context_tokens);
    sequence = calloc(1, sizeof(*sequence));
    if (!sequence)
        return sl_err_set(err, -ENOMEM, "KV cache: out of memory");
    rc = sl_kv_cache_init(&sequence->kv, &e->kv_pool, capacity_tokens, err);
    if (rc < 0) {
        free(sequence);
        return rc;
    }
    sl_list_append(&e->sequences, &sequence->link);
    *ret_kv = &sequence->kv;
    return 0;
}

void sl_engine_sequence_destroy(struct sl_engine *e, struct sl_kv_cache *kv)
{
    struct sl_engine_sequence *sequence = (struct sl_engine_sequence *)kv;

    if (!kv)
        return;
    sl_assert(kv->pool == &e->kv_pool);
    sl_list_remove(&sequence->link);
    sl_kv_cache_fini(kv);
    free(sequence);
}
