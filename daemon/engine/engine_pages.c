/* Pages of KV caches on disk: joins the file of storage with the pager of core. */
#include "core/base/size.h"
#include "daemon/engine/engine_internal.h"

static int page_bytes(const struct sl_engine *e, uint32_t *ret_page_bytes, struct sl_err *err)
{
    struct sl_kv_layout layout;
    int rc =
        sl_kv_layout_init(&layout, &e->config, sl_engine_layer_count(e), e->options.numerics, err);

    if (rc < 0)
        return rc;
    *ret_page_bytes = layout.page_bytes;
    sl_kv_layout_fini(&layout);
    return 0;
}

int sl_engine_pages_create(struct sl_engine *e, struct sl_err *err)
{
    uint32_t bytes;
    int rc = page_bytes(e, &bytes, err);

    return rc < 0 ? rc
                  : sl_page_file_create(&e->page_file, e->options.images, bytes,
                                        sl_file_writer_private(), err);
}

int sl_engine_pages_start(struct sl_engine *e, struct sl_err *err)
{
    struct sl_kv_pager_params params = {.file = sl_page_file_pages(e->page_file),
                                        .pool = e->pool,
                                        .page_bytes = e->kv_pool.layout.page_bytes,
                                        .file_bytes = e->options.kv_disk_bytes};

    return sl_kv_pager_create(&e->kv_pool.pager, &params, err);
}

struct sl_engine_pages sl_engine_pages(const struct sl_engine *e)
{
    struct sl_engine_pages pages = {0};

    if (e->kv_pool.pager) {
        pages.pager = sl_kv_pager_counters(e->kv_pool.pager);
        pages.reads = sl_reader_counters(e->reader, SL_READS_OF_KV);
    }
    return pages;
}

uint64_t sl_engine_sweep_bytes(const struct sl_engine *e)
{
    const uint64_t n_slots = sl_expert_cache_slot_count(e->cache);

    return (e->plan.slots_max > n_slots ? e->plan.slots_max - n_slots : 0) * e->plan.slot_bytes +
           e->plan.streamed_bytes;
}

static const struct sl_metric metrics[] = {
#define COUNTER(field, name, unit, help, falls)                                                    \
    {                                                                                              \
        name, unit, help, offsetof(struct sl_engine_pages, pager.field), falls                     \
    }
    COUNTER(out_bytes, "kv_paged_out_bytes", SL_METRIC_BYTES, "Bytes of KV caches put on disk",
            false),
    COUNTER(in_bytes, "kv_paged_in_bytes", SL_METRIC_BYTES, "Bytes of KV caches read back", false),
    COUNTER(n_layers, "kv_paged_layers", SL_METRIC_COUNT,
            "Layers of steps that had KV caches on disk", false),
    COUNTER(n_waits, "kv_paged_waits", SL_METRIC_COUNT,
            "Layers of steps that waited for KV caches on disk", false),
    COUNTER(wait_ns, "kv_paged_wait_seconds", SL_METRIC_NANOSECONDS,
            "Time that steps waited for KV caches on disk", false),
    COUNTER(n_rereads, "kv_paged_rereads", SL_METRIC_COUNT,
            "Reads of KV caches that came back corrupt and were repeated", false),
    COUNTER(file_bytes, "kv_disk_bytes", SL_METRIC_BYTES, "Bytes of KV caches on disk now", true),
#undef COUNTER
};

const struct sl_metrics sl_engine_pages_metrics = {metrics, SL_ARRAY_LEN(metrics)};
