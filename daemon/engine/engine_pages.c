/* Pages of KV caches on disk: joins the file of storage with the pager of core. */
#include <stdlib.h>

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
