#include "core/session/session_bytes.h"

#include <string.h>

#include "core/base/assert.h"
#include "core/base/size.h"
#include "core/session/session_internal.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "bytes are as they lie in memory");

/* ---- chunks ------------------------------------------------------------------------------------
 */

/* Parts that chunks hold. */
static const enum sl_kv_part chunk_parts[] = {SL_KV_ENTRIES, SL_KV_KEYS};

/* Items of a part that tokens from <= t < to complete or add to. */
struct items {
    uint32_t first, end;
};

static struct items items_of(const struct sl_kv_part_layout *part, uint32_t from, uint32_t to)
{
    uint32_t units;

    if (part->item_bytes == 0)
        return (struct items){0, 0};
    units = to / part->ratio;
    return (struct items){from / part->ratio / part->units_per_item,
                          (units + part->units_per_item - 1) / part->units_per_item};
}

uint64_t sl_chunk_bytes(const struct sl_kv_layout *layout, uint32_t from, uint32_t to)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < layout->n_layers; i++)
        for (size_t n = 0; n < SL_ARRAY_LEN(chunk_parts); n++) {
            const struct sl_kv_part_layout *part = &layout->parts[i][chunk_parts[n]];
            const struct items items = items_of(part, from, to);

            bytes += (uint64_t)(items.end - items.first) * part->item_bytes;
        }
    return bytes;
}

uint64_t sl_chunk_bytes_max(const struct sl_kv_layout *layout, uint32_t n_tokens)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < layout->n_layers; i++)
        for (size_t n = 0; n < SL_ARRAY_LEN(chunk_parts); n++) {
            const struct sl_kv_part_layout *part = &layout->parts[i][chunk_parts[n]];

            if (part->item_bytes > 0) /* two items may be in other chunks, too */
                bytes += (n_tokens / part->ratio / part->units_per_item + UINT64_C(2)) *
                         part->item_bytes;
        }
    return bytes;
}

/* Zeroes all keys of a tile but the first n_keys: the others are what lay there before. */
static void clear_keys(const struct sl_kv_layout *layout, uint32_t n_keys, uint8_t *tile,
                       uint32_t tile_bytes)
{
    if (n_keys == 0)
        memset(tile, 0, tile_bytes);
    else if (layout->numerics == SL_NUMERICS_EXACT)
        memset(tile + n_keys * (tile_bytes / SL_R16_ROWS), 0,
               (SL_R16_ROWS - n_keys) * (tile_bytes / SL_R16_ROWS));
    else
        sl_r16_clear_fp4_rows(n_keys, tile_bytes / SL_FP4_GROUP_BYTES * SL_FP4_GROUP_COLS, tile);
}

/* Where pages on disk are read to, one at a time. */
struct reading {
    const struct sl_session *session;
    uint8_t *page;      /* NULL: none was read yet */
    const uint8_t *far; /* that is in it, as tables list it */
};

/* Finds an item, in memory or on disk. */
static int find_item(struct reading *reading, uint32_t layer_index, enum sl_kv_part part_index,
                     uint32_t n, const uint8_t **ret_item, struct sl_err *err)
{
    const struct sl_kv_cache *kv = &reading->session->kv;
    const struct sl_kv_part_layout *part = &kv->pool->layout.parts[layer_index][part_index];
    const uint8_t *page =
        kv->pages[layer_index * SL_KV_PARTS + (uint32_t)part_index][n / part->items_per_page];
    int rc = 0;

    if (!sl_kv_is_far(page)) {
        *ret_item = sl_kv_item(kv, layer_index, part_index, n);
        return 0;
    }
    if (!reading->page) {
        rc = sl_kv_pool_check(kv->pool, sl_kv_page_cost(&kv->pool->layout),
                              "a session that is to be stored", err);
        if (rc < 0)
            return rc;
        reading->page = sl_kv_pool_take(kv->pool);
    }
    if (reading->far != page)
        rc = sl_kv_pager_read(kv->pool->pager, sl_kv_far_place(page), reading->page, err);
    reading->far = rc < 0 ? NULL : page;
    *ret_item = reading->page + (size_t)(n % part->items_per_page) * part->item_bytes;
    return rc;
}

/* Writes item n of a part of a layer that has seen n_seen tokens. */
static int export_item(struct reading *reading, uint32_t layer_index, enum sl_kv_part part_index,
                       uint32_t n, uint32_t n_seen, uint8_t *to, struct sl_err *err)
{
    const struct sl_kv_layout *layout = &reading->session->kv.pool->layout;
    const struct sl_kv_part_layout *part = &layout->parts[layer_index][part_index];
    const uint32_t n_units = n_seen / part->ratio, first_unit = n * part->units_per_item;
    const uint32_t n_whole = n_units > first_unit ? n_units - first_unit : 0;
    const uint8_t *item;
    int rc;

    if (n_whole > 0) {
        rc = find_item(reading, layer_index, part_index, n, &item, err);
        if (rc < 0)
            return rc;
        memcpy(to, item, part->item_bytes);
    }
    if (n_whole >= part->units_per_item)
        return 0;
    if (part_index == SL_KV_KEYS)
        clear_keys(layout, n_whole, to, part->item_bytes);
    else
        memset(to, 0, part->item_bytes);
    return 0;
}

int sl_session_export_chunk(const struct sl_session *session, uint32_t from, uint32_t to,
                            uint8_t *ret_bytes, struct sl_err *err)
{
    const struct sl_kv_layout *layout = &session->kv.pool->layout;
    struct reading reading = {.session = session};
    uint32_t n_seen = to;
    int rc = 0;

    sl_assert(from <= to && to <= session->kv.n_tokens);
    for (uint32_t i = 0; i < layout->n_layers; i++) {
        if (i == layout->n_hidden_layers && session->kv.n_mtp_tokens < n_seen)
            n_seen = session->kv.n_mtp_tokens;
        for (size_t p = 0; p < SL_ARRAY_LEN(chunk_parts); p++) {
            const struct sl_kv_part_layout *part = &layout->parts[i][chunk_parts[p]];
            const struct items items = items_of(part, from, to);

            for (uint32_t n = items.first; rc == 0 && n < items.end;
                 n++, ret_bytes += part->item_bytes)
                rc = export_item(&reading, i, chunk_parts[p], n, n_seen, ret_bytes, err);
        }
    }
    sl_kv_pool_release(session->kv.pool, reading.page);
    return rc;
}

void sl_session_import_chunk(struct sl_session *session, uint32_t from, uint32_t to,
                             const uint8_t *bytes)
{
    const struct sl_kv_layout *layout = &session->kv.pool->layout;

    sl_assert(session->kv.in_step && from <= to && to <= session->kv.capacity_tokens);
    for (uint32_t i = 0; i < layout->n_layers; i++)
        for (size_t p = 0; p < SL_ARRAY_LEN(chunk_parts); p++) {
            const struct sl_kv_part_layout *part = &layout->parts[i][chunk_parts[p]];
            const struct items items = items_of(part, from, to);

            for (uint32_t n = items.first; n < items.end; n++, bytes += part->item_bytes)
                memcpy(sl_kv_item(&session->kv, i, chunk_parts[p], n), bytes, part->item_bytes);
        }
}

/* ---- marks -------------------------------------------------------------------------------------
 */

struct mark_head {
    uint32_t n_tokens, n_mtp_tokens, mtp_first;
    uint32_t reserved; /* 0 */
};

/* Positions whose rows of a ring are there: first <= t < end. */
struct rows {
    uint32_t first, end;
};

static struct rows rows_of(const struct sl_kv_layout *layout, const struct mark_head *head,
                           uint32_t layer_index, int ring)
{
    const uint32_t n_rows = layout->parts[layer_index][ring].n_rows;
    const bool is_hidden = layer_index < layout->n_hidden_layers;
    const uint32_t end = is_hidden ? head->n_tokens : head->n_mtp_tokens;
    const uint32_t seen_from = is_hidden ? 0 : head->mtp_first;
    const uint32_t kept_from = end < n_rows ? 0 : end - n_rows;

    return (struct rows){kept_from > seen_from ? kept_from : seen_from, end};
}

static uint64_t bytes_of(const struct sl_kv_layout *layout, const struct mark_head *head)
{
    uint64_t bytes = sizeof(*head);

    for (uint32_t i = 0; i < layout->n_layers; i++)
        for (int ring = 0; ring < SL_KV_RINGS; ring++) {
            const struct rows rows = rows_of(layout, head, i, ring);

            bytes += (uint64_t)(rows.end - rows.first) * layout->parts[i][ring].item_bytes;
        }
    return bytes;
}

static struct mark_head head_of(const struct sl_mark *mark)
{
    return (struct mark_head){mark->kv.n_tokens, mark->kv.n_mtp_tokens, mark->kv.mtp_first, 0};
}

uint64_t sl_mark_bytes_max(const struct sl_kv_layout *layout)
{
    const struct mark_head head = {UINT32_MAX, UINT32_MAX, 0, 0};

    return bytes_of(layout, &head);
}

uint64_t sl_mark_bytes(const struct sl_session *session, const struct sl_mark *mark)
{
    const struct mark_head head = head_of(mark);

    return bytes_of(&session->kv.pool->layout, &head);
}

void sl_session_export_mark(const struct sl_session *session, const struct sl_mark *mark,
                            uint8_t *ret_bytes)
{
    const struct sl_kv_layout *layout = &session->kv.pool->layout;
    const struct mark_head head = head_of(mark);

    memcpy(ret_bytes, &head, sizeof(head));
    ret_bytes += sizeof(head);
    for (uint32_t i = 0; i < layout->n_layers; i++)
        for (int ring = 0; ring < SL_KV_RINGS; ring++) {
            const struct sl_kv_part_layout *part = &layout->parts[i][ring];
            const struct rows rows = rows_of(layout, &head, i, ring);

            for (uint32_t t = rows.first; t < rows.end; t++, ret_bytes += part->item_bytes)
                memcpy(ret_bytes, sl_kv_mark_row(&mark->kv, layout, i, (enum sl_kv_part)ring, t),
                       part->item_bytes);
        }
}

static void import_rings(struct sl_session *session, const struct mark_head *head,
                         const uint8_t *bytes)
{
    const struct sl_kv_layout *layout = &session->kv.pool->layout;

    for (uint32_t i = 0; i < layout->n_layers; i++)
        for (int ring = 0; ring < SL_KV_RINGS; ring++) {
            const struct sl_kv_part_layout *part = &layout->parts[i][ring];
            const struct rows rows = rows_of(layout, head, i, ring);

            for (uint32_t t = rows.first; t < rows.end; t++, bytes += part->item_bytes)
                memcpy(sl_kv_row(&session->kv, i, (enum sl_kv_part)ring, t), bytes,
                       part->item_bytes);
        }
}

/* ---- reading a session -------------------------------------------------------------------------
 */

/* A mark holds rows of the draft's layers behind all others, if it was taken where they were
 * loaded. Where they are not, those rows are left. */
static bool is_mark(const struct sl_kv_layout *layout, const struct mark_head *head,
                    uint32_t n_tokens, uint64_t size_bytes)
{
    const bool leaves_rows =
        layout->n_layers == layout->n_hidden_layers && head->mtp_first < head->n_mtp_tokens;
    const uint64_t bytes = bytes_of(layout, head);

    return head->n_tokens == n_tokens && head->n_mtp_tokens <= n_tokens &&
           head->mtp_first <= head->n_mtp_tokens && head->reserved == 0 &&
           (leaves_rows ? size_bytes > bytes : size_bytes == bytes);
}

/* The session counts as being in a step until its end, so that nobody else takes it. */
int sl_session_import_begin(struct sl_session *session, const int32_t *tokens, uint32_t n_tokens,
                            struct sl_err *err)
{
    struct sl_kv_cache *kv = &session->kv;
    int rc;

    sl_assert(kv->n_tokens == 0 && sl_list_is_empty(&session->marks));
    if (n_tokens > kv->capacity_tokens)
        return sl_err_set(err, -SL_EBUDGET, "%u tokens do not fit a session of %u", n_tokens,
                          kv->capacity_tokens);
    rc = sl_kv_pool_check(kv->pool, sl_kv_cache_need(kv, n_tokens), "a session that was stored",
                          err);
    if (rc == 0)
        rc = sl_kv_cache_grow(kv, n_tokens, err);
    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < n_tokens; i++)
        *sl_kv_id(kv, i) = tokens[i];
    kv->in_step = true;
    return 0;
}

int sl_session_import_end(struct sl_session *session, uint32_t n_tokens, const uint8_t *bytes,
                          uint64_t size_bytes, struct sl_err *err)
{
    struct sl_kv_cache *kv = &session->kv;
    const struct sl_kv_layout *layout = &kv->pool->layout;
    struct mark_head head = {0};

    sl_assert(kv->in_step);
    if (size_bytes >= sizeof(head))
        memcpy(&head, bytes, sizeof(head));
    if (size_bytes < sizeof(head) || !is_mark(layout, &head, n_tokens, size_bytes)) {
        sl_session_import_abandon(session);
        return sl_err_set(err, -SL_ECORRUPT, "%llu bytes that are no mark behind %u tokens",
                          (unsigned long long)size_bytes, n_tokens);
    }
    import_rings(session, &head, bytes + sizeof(head));
    kv->in_step = false;
    kv->n_tokens = head.n_tokens;
    if (layout->n_layers > layout->n_hidden_layers) {
        kv->n_mtp_tokens = head.n_mtp_tokens;
        kv->mtp_first = head.mtp_first;
    }
    sl_kv_cache_trim(kv);
    return 0;
}

void sl_session_import_abandon(struct sl_session *session)
{
    session->kv.in_step = false;
    sl_kv_cache_clear(&session->kv);
}
