#include "core/model/kv_cache.h"

#include <string.h>

#include "core/base/assert.h"
#include "core/base/size.h"

/* The table of a new sequence has room for so many tokens; then it doubles. */
#define TABLE_TOKENS_MIN 4096u

/* ---- tables ------------------------------------------------------------------------------------
 */

/* Pages of a part in a table with room for so many tokens. */
static uint32_t room(const struct sl_kv_part_layout *part, uint32_t table_tokens)
{
    return sl_kv_part_pages(part, part->n_rows > 0 ? part->n_rows : table_tokens);
}

static uint64_t table_bytes(const struct sl_kv_layout *layout, uint32_t table_tokens)
{
    uint64_t n = (uint64_t)layout->n_layers * SL_KV_PARTS;

    for (uint32_t i = 0; i < layout->n_layers; i++)
        for (int p = 0; p < SL_KV_PARTS; p++)
            n += room(&layout->parts[i][p], table_tokens);
    return n * sizeof(void *);
}

/* The room that a table should have that must have room for `tokens`. */
static uint32_t table_tokens_for(const struct sl_kv_cache *kv, uint32_t tokens)
{
    uint64_t room_tokens = kv->table_tokens ? kv->table_tokens : TABLE_TOKENS_MIN;

    while (room_tokens < tokens)
        room_tokens *= 2;
    return room_tokens < kv->capacity_tokens ? (uint32_t)room_tokens : kv->capacity_tokens;
}

/* Moves the lists to a table with more room. */
static int enlarge_table(struct sl_kv_cache *kv, uint32_t table_tokens, struct sl_err *err)
{
    const struct sl_kv_layout *layout = &kv->pool->layout;
    const uint64_t bytes = table_bytes(layout, table_tokens);
    uint8_t ***lists, **list;
    void *memory;
    int rc = sl_kv_pool_table(kv->pool, bytes, &memory, err);

    if (rc < 0)
        return rc;
    lists = memory;
    list = (uint8_t **)(lists + (size_t)layout->n_layers * SL_KV_PARTS);
    for (uint32_t i = 0; i < layout->n_layers; i++)
        for (int p = 0; p < SL_KV_PARTS; p++) {
            const struct sl_kv_part_layout *part = &layout->parts[i][p];
            const size_t at = (size_t)i * SL_KV_PARTS + (size_t)p;

            lists[at] = list;
            if (kv->pages && room(part, kv->table_tokens) > 0)
                memcpy(list, kv->pages[at], room(part, kv->table_tokens) * sizeof(*list));
            list += room(part, table_tokens);
        }
    sl_kv_pool_free_table(kv->pool, kv->pages, kv->table_bytes);
    kv->pages = lists;
    kv->table_bytes = bytes;
    kv->table_tokens = table_tokens;
    return 0;
}

int sl_kv_cache_make_room(struct sl_kv_cache *kv, uint32_t n_tokens, struct sl_err *err)
{
    sl_assert(n_tokens <= kv->capacity_tokens);
    if (kv->pages && n_tokens <= kv->table_tokens)
        return 0;
    return enlarge_table(kv, table_tokens_for(kv, n_tokens), err);
}

uint64_t sl_kv_cache_measure(const struct sl_kv_layout *layout, uint32_t n_tokens)
{
    const struct sl_kv_cache empty = {.capacity_tokens = UINT32_MAX};

    /* While a table is moved there are two. */
    return sl_kv_layout_pages(layout, n_tokens) * sl_kv_page_cost(layout) +
           2 * table_bytes(layout, table_tokens_for(&empty, n_tokens));
}

int sl_kv_cache_init(struct sl_kv_cache *kv, struct sl_kv_pool *pool, uint32_t capacity_tokens,
                     struct sl_err *err)
{
    *kv = (struct sl_kv_cache){.pool = pool, .capacity_tokens = capacity_tokens};
    return sl_kv_cache_make_room(kv, 0, err);
}

/* Releases the pages of a part from number `first` on. */
static void release_pages(struct sl_kv_cache *kv, uint32_t layer_index, int p, uint32_t first)
{
    const uint32_t end = room(&kv->pool->layout.parts[layer_index][p], kv->table_tokens);
    uint8_t **pages = kv->pages[layer_index * SL_KV_PARTS + (uint32_t)p];

    for (uint32_t n = first; n < end && pages[n]; n++) {
        sl_kv_pool_release(kv->pool, pages[n]);
        pages[n] = NULL;
    }
}

void sl_kv_cache_trim(struct sl_kv_cache *kv)
{
    const struct sl_kv_layout *layout = &kv->pool->layout;

    sl_assert(!kv->in_step);
    for (uint32_t i = 0; i < layout->n_layers; i++) {
        const uint32_t n_seen = i < layout->n_hidden_layers ? kv->n_tokens : kv->n_mtp_tokens;

        for (int p = 0; p < SL_KV_PARTS; p++)
            release_pages(kv, i, p, sl_kv_part_pages(&layout->parts[i][p], n_seen));
    }
}

void sl_kv_cache_clear(struct sl_kv_cache *kv)
{
    sl_assert(!kv->in_step);
    kv->n_tokens = 0;
    kv->n_mtp_tokens = kv->mtp_first = 0;
    sl_kv_cache_trim(kv);
}

void sl_kv_cache_fini(struct sl_kv_cache *kv)
{
    if (kv->pages) {
        sl_kv_cache_clear(kv);
        sl_kv_pool_free_table(kv->pool, kv->pages, kv->table_bytes);
    }
    *kv = (struct sl_kv_cache){0};
}

/* ---- growing -----------------------------------------------------------------------------------
 */

/* Pages first <= n < end of a part. */
struct range {
    uint32_t first, end;
};

static struct range pages_of_units(const struct sl_kv_part_layout *part, uint32_t first_unit,
                                   uint32_t end_unit)
{
    const uint64_t per_page = (uint64_t)part->items_per_page * part->units_per_item;

    return (struct range){(uint32_t)(first_unit / per_page),
                          (uint32_t)((end_unit + per_page - 1) / per_page)};
}

/* The pages that tokens first <= t < end are written to: one range, or two where they go round a
 * ring's end. Returns how many. */
static int written(const struct sl_kv_part_layout *part, uint32_t first, uint32_t end,
                   struct range ranges[2])
{
    const uint32_t n_rows = part->n_rows;

    if (part->item_bytes == 0 || first >= end)
        return 0;
    if (n_rows == 0) {
        ranges[0] = pages_of_units(part, first / part->ratio, end / part->ratio);
        return first / part->ratio < end / part->ratio;
    }
    ranges[0] = pages_of_units(part, 0, n_rows);
    if (end - first >= n_rows)
        return 1;
    if (first % n_rows + (end - first) <= n_rows) {
        ranges[0] = pages_of_units(part, first % n_rows, first % n_rows + (end - first));
        return 1;
    }
    ranges[1] = pages_of_units(part, 0, end % n_rows);
    if (ranges[1].end > first % n_rows / part->items_per_page)
        return 1; /* both meet in a page: the whole ring */
    ranges[0].first = first % n_rows / part->items_per_page;
    return 2;
}

/* The first token that a step, and the pass of the MTP block over it, write in a layer. A block
 * that is behind may begin anew further on, and then has fewer to write. */
static uint32_t first_token(const struct sl_kv_cache *kv, uint32_t layer_index)
{
    return layer_index < kv->pool->layout.n_hidden_layers ? kv->n_tokens : kv->n_mtp_tokens;
}

static bool is_own(const struct sl_kv_cache *kv, const uint8_t *page)
{
    return page && !sl_kv_is_far(page) && !sl_kv_pool_is_shared(kv->pool, page);
}

/* Puts a page of the sequence's own, with what is in the old one, in place of that. */
static int take_page(const struct sl_kv_cache *kv, const struct sl_kv_part_layout *part,
                     uint8_t **cell, struct sl_err *err)
{
    uint8_t *page = sl_kv_pool_take(kv->pool);
    int rc = 0;

    if (sl_kv_is_far(*cell))
        rc = sl_kv_pager_read(kv->pool->pager, sl_kv_far_place(*cell), page, err);
    else if (*cell)
        memcpy(page, *cell, (size_t)part->items_per_page * part->item_bytes);
    sl_kv_pool_release(kv->pool, rc < 0 ? page : *cell);
    if (rc == 0)
        *cell = page;
    return rc;
}

/* A visit to all pages that a step will write to. */
struct visit {
    const struct sl_kv_cache *kv;
    uint32_t end_tokens;
    bool take; /* or only count */
    uint64_t n_pages;
    struct sl_err *err;
};

/* Counts the pages of a part that must be taken; with `take` takes them. */
static int visit_part(struct visit *visit, uint32_t layer_index, int p)
{
    const struct sl_kv_cache *kv = visit->kv;
    const uint32_t end_tokens = visit->end_tokens;
    const struct sl_kv_part_layout *part = &kv->pool->layout.parts[layer_index][p];
    uint8_t **pages = kv->pages[layer_index * SL_KV_PARTS + (uint32_t)p];
    const uint32_t n_listed = room(part, kv->table_tokens);
    struct range ranges[2];
    const int n_ranges = written(part, first_token(kv, layer_index), end_tokens, ranges);
    int rc = 0;

    for (int r = 0; r < n_ranges; r++)
        for (uint32_t n = ranges[r].first; rc == 0 && n < ranges[r].end; n++) {
            if (is_own(kv, n < n_listed ? pages[n] : NULL))
                continue;
            visit->n_pages++;
            if (visit->take)
                rc = take_page(kv, part, &pages[n], visit->err);
        }
    return rc;
}

static int visit_all(struct visit *visit)
{
    int rc = 0;

    for (uint32_t i = 0; i < visit->kv->pool->layout.n_layers; i++)
        for (int p = 0; rc == 0 && p < SL_KV_PARTS; p++)
            rc = visit_part(visit, i, p);
    return rc;
}

uint64_t sl_kv_cache_need(const struct sl_kv_cache *kv, uint32_t end_tokens)
{
    const struct sl_kv_layout *layout = &kv->pool->layout;
    struct visit visit = {.kv = kv, .end_tokens = end_tokens};
    uint64_t bytes = 0;

    sl_assert(end_tokens <= kv->capacity_tokens);
    if (end_tokens > kv->table_tokens)
        bytes = table_bytes(layout, table_tokens_for(kv, end_tokens));
    visit_all(&visit);
    return bytes + visit.n_pages * sl_kv_page_cost(layout);
}

int sl_kv_cache_grow(struct sl_kv_cache *kv, uint32_t end_tokens, struct sl_err *err)
{
    struct visit visit = {.kv = kv, .end_tokens = end_tokens, .take = true, .err = err};
    int rc = sl_kv_cache_make_room(kv, end_tokens, err);

    sl_assert(!kv->in_step);
    return rc < 0 ? rc : visit_all(&visit);
}
