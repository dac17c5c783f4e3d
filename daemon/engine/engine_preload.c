/* Experts that are loaded before the first step: those of the hot list that an earlier run left
 * beside the store, or all of them. */
#include <errno.h>
#include <stdlib.h>

#include "daemon/engine/engine_internal.h"
#include "storage/store/hot_list.h"
#include "storage/store/store_format.h"

/* The list has room for as many experts as the cache has slots. Returns NULL when out of memory. */
static struct sl_expert_key *make_hot_list(const struct sl_engine *e, uint32_t *ret_n_max,
                                           struct sl_err *err)
{
    uint32_t n_slots = sl_expert_cache_slot_count(e->cache);
    struct sl_expert_key *keys;

    *ret_n_max = n_slots < SL_STORE_HOT_MAX ? n_slots : SL_STORE_HOT_MAX;
    keys = calloc(*ret_n_max, sizeof(*keys));
    if (!keys)
        sl_err_set(err, -ENOMEM, "hot list: out of memory");
    return keys;
}

int sl_engine_load_hot_list(struct sl_engine *e, const atomic_bool *stop,
                            sl_progress_fn *on_progress, void *context, struct sl_err *err)
{
    struct sl_expert_key *keys;
    uint32_t n_max, n = 0;
    int rc;

    if (!e->files.store)
        return 0;
    keys = make_hot_list(e, &n_max, err);
    if (!keys)
        return -ENOMEM;
    rc = sl_hot_list_read(e->options.model, keys, n_max, &n, err);
    if (rc == 0)
        sl_expert_cache_preload(e->cache, keys, n, stop, on_progress, context);
    free(keys);
    return rc;
}

int sl_engine_save_hot_list(struct sl_engine *e, struct sl_err *err)
{
    struct sl_expert_key *keys;
    uint32_t n_max;
    int rc;

    if (!e->files.store)
        return 0;
    keys = make_hot_list(e, &n_max, err);
    if (!keys)
        return -ENOMEM;
    rc = sl_hot_list_write(e->options.model, keys, sl_expert_cache_hot_list(e->cache, keys, n_max),
                           err);
    free(keys);
    return rc;
}

int sl_engine_load_experts(struct sl_engine *e, sl_progress_fn *on_progress, void *context,
                           struct sl_err *err)
{
    struct sl_expert_source *source = sl_expert_cache_source(e->cache);
    const uint32_t n_experts = e->config.n_routed_experts;
    const uint64_t total = (uint64_t)sl_engine_layer_count(e) * n_experts;
    struct sl_expert_pin pin;
    uint16_t *experts;
    uint64_t done = 0;
    int rc = 0;

    if (sl_expert_cache_slot_count(e->cache) < total)
        return 0;
    experts = calloc(n_experts, sizeof(*experts));
    if (!experts)
        return sl_err_set(err, -ENOMEM, "list of experts: out of memory");
    for (uint32_t i = 0; i < n_experts; i++)
        experts[i] = (uint16_t)i;
    for (uint32_t layer = 0; layer < sl_engine_layer_count(e) && rc >= 0; layer++) {
        rc = source->ops->demand(source, (uint16_t)layer, experts, n_experts, err);
        while (rc >= 0 && (rc = source->ops->acquire(source, true, &pin, err)) == 1) {
            if (pin.partial)
                rc = source->ops->complete(source, &pin, err);
            source->ops->release(source, &pin);
            if (rc >= 0 && on_progress)
                on_progress(context, ++done, total);
        }
    }
    free(experts);
    return rc < 0 ? rc : 1;
}
