/* Sequences of an engine: each has a KV cache, and together they take no more than the memory plan
 * grants. */
#include <errno.h>
#include <stdlib.h>

#include "core/base/assert.h"
#include "core/base/size.h"
#include "daemon/engine/engine_internal.h"

static int no_room(const struct sl_engine *e, uint32_t capacity_tokens, uint64_t needed_bytes,
                   struct sl_err *err)
{
    char needed[SL_SIZE_TEXT_BYTES], left[SL_SIZE_TEXT_BYTES], all[SL_SIZE_TEXT_BYTES];

    return sl_err_set(err, -SL_EBUDGET,
                      "a sequence of %u tokens takes %s, but of %s for KV caches %s are left; end "
                      "another sequence, or give a smaller --context",
                      capacity_tokens, sl_size_format(needed_bytes, needed),
                      sl_size_format(e->plan.need_bytes[SL_MEMORY_KV], all),
                      sl_size_format(e->plan.need_bytes[SL_MEMORY_KV] - e->kv_bytes, left));
}

int sl_engine_sequence_create(struct sl_engine *e, uint32_t capacity_tokens,
                              struct sl_kv_cache **ret_kv, struct sl_err *err)
{
    const uint64_t kv_bytes = sl_arena_mapped_bytes(sl_kv_cache_measure(
        &e->config, sl_engine_layer_count(e), capacity_tokens, e->options.numerics));
    struct sl_engine_sequence *sequence;
    int rc;

    sl_assert(capacity_tokens >= 1 && capacity_tokens <= e->options.context_tokens);
    if (kv_bytes > e->plan.need_bytes[SL_MEMORY_KV] - e->kv_bytes)
        return no_room(e, capacity_tokens, kv_bytes, err);
    sequence = calloc(1, sizeof(*sequence));
    if (!sequence)
        return sl_err_set(err, -ENOMEM, "KV cache: out of memory");
    rc = sl_kv_cache_init(&sequence->kv, &e->config, sl_engine_layer_count(e), capacity_tokens,
                          e->options.numerics, err);
    if (rc < 0) {
        free(sequence);
        return rc;
    }
    sequence->kv_bytes = kv_bytes;
    e->kv_bytes += kv_bytes;
    sl_list_append(&e->sequences, &sequence->link);
    *ret_kv = &sequence->kv;
    return 0;
}

void sl_engine_sequence_destroy(struct sl_engine *e, struct sl_kv_cache *kv)
{
    struct sl_engine_sequence *sequence = (struct sl_engine_sequence *)kv;

    if (!kv)
        return;
    sl_list_remove(&sequence->link);
    e->kv_bytes -= sequence->kv_bytes;
    sl_kv_cache_fini(kv);
    free(sequence);
}
