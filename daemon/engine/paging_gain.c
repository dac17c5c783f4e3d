#include "daemon/engine/paging_gain.h"

#include "core/model/kv_cache.h"
#include "core/model/kv_paging.h"

void sl_paging_measure(const struct sl_kv_layout *layout, uint32_t n_tokens,
                       uint64_t *ret_document_bytes, uint64_t *ret_stays_bytes)
{
    const uint64_t all = sl_kv_cache_measure(layout, n_tokens);
    const uint64_t pages = sl_kv_full_pages(layout, n_tokens) * sl_kv_page_cost(layout);

    *ret_document_bytes = all;
    *ret_stays_bytes = all - pages + sl_kv_window_share(layout, n_tokens);
}

bool sl_paging_pays(uint64_t sweep_bytes, uint64_t kv_bytes)
{
    return sweep_bytes > kv_bytes;
}
