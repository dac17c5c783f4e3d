#include "core/model/kv_mark.h"

#include "core/base/assert.h"

static uint32_t ring_pages(const struct sl_kv_layout *layout, uint32_t layer_index, int ring)
{
    const struct sl_kv_part_layout *part = &layout->parts[layer_index][ring];

    return sl_kv_part_pages(part, part->n_rows);
}

static uint64_t all_ring_pages(const struct sl_kv_layout *layout)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < layout->n_layers; i++)
        for (int ring = 0; ring < SL_KV_RINGS; ring++)
            n += ring_pages(layout, i, ring);
    return n;
}

static uint64_t table_bytes(const struct sl_kv_layout *layout)
{
    return (layout->n_layers * (uint64_t)SL_KV_RINGS + all_ring_pages(layout)) * sizeof(void *);
}

uint64_t sl_kv_mark_measure(const struct sl_kv_layout *layout)
{
    return all_ring_pages(layout) * sl_kv_page_cost(layout) + table_bytes(layout);
}

/* Makes `to` list the pages of `from`, and hold them. */
static void share_pages(struct sl_kv_pool *pool, uint8_t *const *from, uint8_t **to, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        sl_kv_pool_hold(pool, from[i]);
        sl_kv_pool_release(pool, to[i]);
        to[i] = from[i];
    }
}

int sl_kv_mark_take(struct sl_kv_mark *mark, const struct sl_kv_cache *kv, struct sl_err *err)
{
    const struct sl_kv_layout *layout = &kv->pool->layout;
    const uint64_t bytes = table_bytes(layout);
    uint8_t **list;
    void *memory;
    int rc;

    sl_assert(!kv->in_step);
    rc = sl_kv_pool_table(kv->pool, bytes, &memory, err);
    if (rc < 0)
        return rc;
    *mark = (struct sl_kv_mark){kv->n_tokens, kv->n_mtp_tokens, kv->mtp_first, memory, bytes};
    list = (uint8_t **)(mark->pages + (size_t)layout->n_layers * SL_KV_RINGS);
    for (uint32_t i = 0; i < layout->n_layers; i++)
        for (uint32_t ring = 0; ring < SL_KV_RINGS; ring++) {
            const uint32_t n = ring_pages(layout, i, (int)ring);

            mark->pages[i * SL_KV_RINGS + ring] = list;
            share_pages(kv->pool, kv->pages[i * SL_KV_PARTS + ring], list, n);
            list += n;
        }
    return 0;
}

void sl_kv_mark_release(struct sl_kv_mark *mark, struct sl_kv_pool *pool)
{
    const struct sl_kv_layout *layout = &pool->layout;

    for (uint32_t i = 0; mark->pages && i < layout->n_layers; i++)
        for (uint32_t ring = 0; ring < SL_KV_RINGS; ring++)
            for (uint32_t n = 0; n < ring_pages(layout, i, (int)ring); n++)
                sl_kv_pool_release(pool, mark->pages[i * SL_KV_RINGS + ring][n]);
    sl_kv_pool_free_table(pool, mark->pages, mark->table_bytes);
    *mark = (struct sl_kv_mark){0};
}

static void put_back_rings(const struct sl_kv_mark *mark, struct sl_kv_cache *kv)
{
    const struct sl_kv_layout *layout = &kv->pool->layout;

    for (uint32_t i = 0; i < layout->n_layers; i++)
        for (uint32_t ring = 0; ring < SL_KV_RINGS; ring++)
            share_pages(kv->pool, mark->pages[i * SL_KV_RINGS + ring],
                        kv->pages[i * SL_KV_PARTS + ring], ring_pages(layout, i, (int)ring));
    kv->n_tokens = mark->n_tokens;
    kv->n_mtp_tokens = mark->n_mtp_tokens;
    kv->mtp_first = mark->mtp_first;
}

void sl_kv_mark_rewind(const struct sl_kv_mark *mark, struct sl_kv_cache *kv)
{
    sl_assert(!kv->in_step && kv->n_tokens >= mark->n_tokens);
    put_back_rings(mark, kv);
    sl_kv_cache_trim(kv);
}

int sl_kv_mark_fork(const struct sl_kv_mark *mark, const struct sl_kv_cache *parent,
                    uint32_t capacity_tokens, struct sl_kv_cache *child, struct sl_err *err)
{
    const struct sl_kv_layout *layout = &parent->pool->layout;
    int rc;

    sl_assert(parent->n_tokens >= mark->n_tokens && capacity_tokens >= mark->n_tokens);
    rc = sl_kv_cache_init(child, parent->pool, capacity_tokens, err);
    if (rc == 0)
        rc = sl_kv_cache_make_room(child, mark->n_tokens, err);
    if (rc < 0) {
        sl_kv_cache_fini(child);
        return rc;
    }
    put_back_rings(mark, child);
    for (uint32_t i = 0; i < layout->n_layers; i++) {
        const uint32_t n_seen = i < layout->n_hidden_layers ? mark->n_tokens : mark->n_mtp_tokens;

        for (uint32_t p = SL_KV_RINGS; p < SL_KV_PARTS; p++)
            share_pages(child->pool, parent->pages[i * SL_KV_PARTS + p],
                        child->pages[i * SL_KV_PARTS + p],
                        sl_kv_part_pages(&layout->parts[i][p], n_seen));
    }
    return 0;
}
