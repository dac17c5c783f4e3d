#include "core/model/kv_paging.h"

#include <errno.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/clock.h"

/* Reading ahead gets no more than one part in so many of what the pool has left: others grow, too.
 */
#define AHEAD_SHARE 2u

/* Parts that are only appended to, so that full pages stay as they are. Ids are not among them:
 * they are few bytes, and looked at between steps. */
static const enum sl_kv_part paged_parts[] = {SL_KV_ENTRIES, SL_KV_KEYS};

static uint8_t **list_of(const struct sl_kv_cache *kv, uint32_t layer_index, size_t part)
{
    return kv->pages[layer_index * SL_KV_PARTS + (uint32_t)paged_parts[part]];
}

/* The pages of a part that hold something of the tokens seen: more are taken only in a step, or are
 * left of one that was given up. */
static uint32_t n_listed(const struct sl_kv_cache *kv, uint32_t layer_index, size_t part)
{
    return sl_kv_part_pages(&kv->pool->layout.parts[layer_index][paged_parts[part]], kv->n_tokens);
}

/* ---- paging out --------------------------------------------------------------------------------
 */

/* The first pages of a part, which are full. */
static uint32_t full_pages(const struct sl_kv_layout *layout, uint32_t layer_index, size_t part,
                           uint32_t n_tokens)
{
    const struct sl_kv_part_layout *p = &layout->parts[layer_index][paged_parts[part]];

    return p->item_bytes ? n_tokens / p->ratio / p->units_per_item / p->items_per_page : 0;
}

static uint32_t n_full(const struct sl_kv_cache *kv, uint32_t layer_index, size_t part)
{
    return full_pages(&kv->pool->layout, layer_index, part, kv->n_tokens);
}

uint64_t sl_kv_full_pages(const struct sl_kv_layout *layout, uint32_t n_tokens)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < layout->n_hidden_layers; i++)
        for (size_t part = 0; part < SL_ARRAY_LEN(paged_parts); part++)
            n += full_pages(layout, i, part, n_tokens);
    return n;
}

static bool can_go(const struct sl_kv_cache *kv, const uint8_t *page)
{
    return !sl_kv_is_far(page) && !sl_kv_pool_is_shared(kv->pool, page);
}

uint64_t sl_kv_cache_page_out_bytes(const struct sl_kv_cache *kv)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < kv->pool->layout.n_hidden_layers; i++)
        for (size_t part = 0; part < SL_ARRAY_LEN(paged_parts); part++)
            for (uint32_t p = 0; p < n_full(kv, i, part); p++)
                n += can_go(kv, list_of(kv, i, part)[p]);
    return n * sl_kv_page_cost(&kv->pool->layout);
}

/* Pages that go to disk together. */
struct batch {
    uint8_t **cells[SL_KV_WRITE_PAGES_MAX]; /* where the tables list them */
    uint8_t *pages[SL_KV_WRITE_PAGES_MAX];
    uint32_t n;
    int n_freed;
};

static int write_batch(struct sl_kv_pool *pool, struct batch *batch, struct sl_err *err)
{
    uint32_t places[SL_KV_WRITE_PAGES_MAX];
    int rc = sl_kv_pager_write(pool->pager, batch->pages, batch->n, places, err);

    for (uint32_t i = 0; rc == 0 && i < batch->n; i++) {
        *batch->cells[i] = sl_kv_far(places[i]);
        sl_kv_pool_release(pool, batch->pages[i]);
        batch->n_freed++;
    }
    batch->n = 0;
    return rc;
}

int sl_kv_cache_page_out(struct sl_kv_cache *kv, uint32_t n_max, struct sl_err *err)
{
    struct batch batch = {.n = 0};
    uint32_t n = 0;
    int rc = 0;

    sl_assert(!kv->in_step && kv->pool->pager);
    for (uint32_t i = 0; i < kv->pool->layout.n_hidden_layers; i++)
        for (size_t part = 0; part < SL_ARRAY_LEN(paged_parts); part++)
            for (uint32_t p = 0; rc == 0 && n < n_max && p < n_full(kv, i, part); p++) {
                uint8_t **cell = &list_of(kv, i, part)[p];

                if (!can_go(kv, *cell))
                    continue;
                n++;
                batch.cells[batch.n] = cell;
                batch.pages[batch.n++] = *cell;
                if (batch.n == SL_KV_WRITE_PAGES_MAX)
                    rc = write_batch(kv->pool, &batch, err);
            }
    if (rc == 0 && batch.n > 0)
        rc = write_batch(kv->pool, &batch, err);
    return rc < 0 ? rc : batch.n_freed;
}

uint32_t sl_kv_cache_far_pages(const struct sl_kv_cache *kv, uint32_t layer_index)
{
    const bool all = layer_index == UINT32_MAX;
    const uint32_t end = all ? kv->pool->layout.n_hidden_layers : layer_index + 1;
    uint32_t n = 0;

    if (!kv->pool->pager)
        return 0;
    for (uint32_t i = all ? 0 : layer_index; i < end; i++)
        for (size_t part = 0; part < SL_ARRAY_LEN(paged_parts); part++)
            for (uint32_t p = 0; p < n_listed(kv, i, part); p++)
                n += sl_kv_is_far(list_of(kv, i, part)[p]);
    return n;
}

/* ---- paging in ---------------------------------------------------------------------------------
 */

uint64_t sl_kv_cache_page_in_bytes(const struct sl_kv_cache *kv)
{
    return sl_kv_cache_far_pages(kv, UINT32_MAX) * sl_kv_page_cost(&kv->pool->layout);
}

/* Pages that come from disk together. */
struct arrivals {
    uint8_t **cells[SL_KV_WRITE_PAGES_MAX];
    struct sl_kv_load loads[SL_KV_WRITE_PAGES_MAX];
    uint32_t n;
};

/* Waits for a load, and begins those from it on as there are buffers. */
static int wait_for_load(struct sl_kv_pager *pager, struct arrivals *in, uint32_t i,
                         struct sl_err *failure)
{
    struct sl_kv_load *load = &in->loads[i];
    uint32_t next = i, n = 1;

    while (load->state == SL_KV_LOAD_WAITING || load->state == SL_KV_LOAD_READING) {
        for (; next < in->n && n > 0; next += n) {
            n = 1;
            if (in->loads[next].state == SL_KV_LOAD_WAITING)
                n = sl_kv_pager_begin(pager, &in->loads[next], in->n - next, true, failure);
        }
        n = 1;
        sl_kv_pager_start(pager);
        if (!sl_kv_pager_progress(pager, load))
            return sl_err_set(failure, -ETIMEDOUT, SL_KV_NO_BUFFER);
    }
    return load->state == SL_KV_LOAD_DONE ? 0 : failure->code;
}

/* Reads a batch, or leaves it where it was. */
static int take_arrivals(struct sl_kv_pool *pool, struct arrivals *in, struct sl_err *err)
{
    struct sl_err failure = {0};
    int rc = 0;

    for (uint32_t i = 0; i < in->n && rc == 0; i++)
        rc = wait_for_load(pool->pager, in, i, &failure);
    sl_kv_pager_cancel(pool->pager, in->loads, in->n);
    for (uint32_t i = 0; i < in->n; i++) {
        sl_kv_pool_release(pool, rc < 0 ? in->loads[i].page : *in->cells[i]);
        if (rc == 0)
            *in->cells[i] = in->loads[i].page;
    }
    in->n = 0;
    if (rc < 0 && err)
        *err = failure;
    return rc;
}

int sl_kv_cache_page_in(struct sl_kv_cache *kv, uint32_t n_max, struct sl_err *err)
{
    struct sl_kv_pool *pool = kv->pool;
    struct arrivals in = {.n = 0};
    uint32_t n = 0;
    int rc = sl_kv_pool_check(pool, sl_kv_cache_page_in_bytes(kv), "a sequence on disk", err);

    sl_assert(!kv->in_step);
    for (uint32_t i = 0; i < pool->layout.n_hidden_layers; i++)
        for (size_t part = 0; part < SL_ARRAY_LEN(paged_parts); part++)
            for (uint32_t p = 0; rc == 0 && n < n_max && p < n_listed(kv, i, part); p++) {
                uint8_t **cell = &list_of(kv, i, part)[p];

                if (!sl_kv_is_far(*cell))
                    continue;
                n++;
                in.cells[in.n] = cell;
                in.loads[in.n++] = (struct sl_kv_load){.page = sl_kv_pool_take(pool),
                                                       .place = sl_kv_far_place(*cell)};
                if (in.n == SL_KV_WRITE_PAGES_MAX)
                    rc = take_arrivals(pool, &in, err);
            }
    if (rc == 0 && in.n > 0)
        rc = take_arrivals(pool, &in, err);
    return rc < 0 ? rc : (int)n;
}

/* ---- a window's memory -------------------------------------------------------------------------
 */

/* The ring lists beside the load where its page belongs. Pages that several sequences share are
 * read once; the others' items then name the one that is read. */
struct sl_kv_window_load {
    uint8_t **cell; /* in a table, and lists a page on disk; NULL: its sequence has left */
    uint32_t layer;
    uint32_t reader; /* ring index of the item that is read: itself, or an earlier one */
};

struct sl_kv_window sl_kv_window_carve(struct sl_arena *arena, uint32_t spans_max)
{
    return (struct sl_kv_window){.kvs =
                                     sl_arena_take(arena, spans_max, sizeof(struct sl_kv_cache *))};
}

void sl_kv_window_clear(struct sl_kv_window *window)
{
    sl_assert(!window->pool);
    window->n_kvs = 0;
}

void sl_kv_window_add(struct sl_kv_window *window, struct sl_kv_cache *kv)
{
    window->kvs[window->n_kvs++] = kv;
}

/* Pages for the layer that has the most on disk, and for the two neighbours that have. */
struct sizes {
    uint64_t least, most;
};

static struct sizes measure(struct sl_kv_cache *const *kvs, uint32_t n_kvs)
{
    struct sizes sizes = {0, 0};
    uint64_t before = 0;

    if (n_kvs == 0 || !kvs[0]->pool->pager)
        return sizes;
    for (uint32_t i = 0; i < kvs[0]->pool->layout.n_hidden_layers; i++) {
        uint64_t n = 0;

        for (uint32_t k = 0; k < n_kvs; k++)
            n += sl_kv_cache_far_pages(kvs[k], i);
        sizes.least = n > sizes.least ? n : sizes.least;
        sizes.most = before + n > sizes.most ? before + n : sizes.most;
        before = n;
    }
    return sizes;
}

static uint64_t item_bytes(void)
{
    return sizeof(struct sl_kv_window_load) + sizeof(struct sl_kv_load) + sizeof(uint8_t *);
}

static uint64_t page_bytes(const struct sl_kv_layout *layout)
{
    return sl_kv_page_cost(layout) + item_bytes();
}

uint64_t sl_kv_window_bytes(struct sl_kv_cache *const *kvs, uint32_t n_kvs)
{
    const uint64_t least = measure(kvs, n_kvs).least;

    return least > 0 ? least * page_bytes(&kvs[0]->pool->layout) : 0;
}

uint64_t sl_kv_window_need(const struct sl_kv_window *window)
{
    return sl_kv_window_bytes(window->kvs, window->n_kvs);
}

uint64_t sl_kv_window_share(const struct sl_kv_layout *layout, uint32_t n_tokens)
{
    uint64_t most = 0;

    for (uint32_t i = 0; i < layout->n_hidden_layers; i++) {
        uint64_t n = 0;

        for (size_t part = 0; part < SL_ARRAY_LEN(paged_parts); part++)
            n += full_pages(layout, i, part, n_tokens);
        most = n > most ? n : most;
    }
    return most * page_bytes(layout);
}

static void read_on(struct sl_kv_window *window);

int sl_kv_window_open(struct sl_kv_window *window, struct sl_err *err)
{
    const struct sizes sizes = measure(window->kvs, window->n_kvs);
    struct sl_kv_pool *pool = sizes.least > 0 ? window->kvs[0]->pool : NULL;
    uint64_t n = sizes.least, left;
    void *memory;
    int rc;

    sl_assert(!window->pool);
    if (!pool)
        return 0;
    rc = sl_kv_pool_check(pool, n * page_bytes(&pool->layout), "pages on disk of the next step",
                          err);
    if (rc < 0)
        return rc;
    left =
        (sl_kv_pool_left_bytes(pool) - n * page_bytes(&pool->layout)) / page_bytes(&pool->layout);
    n += left / AHEAD_SHARE < sizes.most - n ? left / AHEAD_SHARE : sizes.most - n;
    rc = sl_kv_pool_table(pool, n * item_bytes(), &memory, err);
    if (rc < 0)
        return rc;
    window->pool = pool;
    window->table_bytes = n * item_bytes();
    window->loads = memory;
    window->ring = (struct sl_kv_window_load *)(void *)(window->loads + n);
    window->free_pages = (uint8_t **)(void *)(window->ring + n);
    window->n_pages = (uint32_t)n;
    for (window->n_free = 0; window->n_free < n; window->n_free++)
        window->free_pages[window->n_free] = sl_kv_pool_take(pool);
    window->first = window->n_used = window->n_begun = 0;
    window->ready_layer = window->wanted_layer = UINT32_MAX;
    memset(&window->next, 0, sizeof(window->next));
    read_on(window);
    return 0;
}

/* ---- the ring ----------------------------------------------------------------------------------
 */

static uint32_t at(const struct sl_kv_window *window, uint32_t n)
{
    return (window->first + n) % window->n_pages;
}

/* The next cell of a table whose page is on disk, in the order of use; NULL behind the last one. */
static uint8_t **next_cell(struct sl_kv_window *window)
{
    const uint32_t end_layer = window->pool->layout.n_hidden_layers;

    for (; window->next.layer < end_layer; window->next.layer++, window->next.kv = 0)
        for (; window->next.kv < window->n_kvs; window->next.kv++, window->next.part = 0) {
            const struct sl_kv_cache *kv = window->kvs[window->next.kv];

            for (; kv && window->next.part < SL_ARRAY_LEN(paged_parts);
                 window->next.part++, window->next.page = 0)
                while (window->next.page < n_listed(kv, window->next.layer, window->next.part)) {
                    uint8_t **cell =
                        &list_of(kv, window->next.layer, window->next.part)[window->next.page++];

                    if (sl_kv_is_far(*cell))
                        return cell;
                }
        }
    return NULL;
}

/* The item of the ring that reads this place for the same layer, or n_pages. */
static uint32_t reader_of(const struct sl_kv_window *window, uint32_t place, uint32_t layer)
{
    const uint32_t hint = *sl_kv_pager_hint(window->pool->pager, place);
    const uint32_t n = hint < window->n_pages
                           ? (hint + window->n_pages - window->first) % window->n_pages
                           : window->n_pages;

    return n < window->n_used && window->loads[hint].place == place &&
                   window->ring[hint].reader == hint && window->ring[hint].layer == layer
               ? hint
               : window->n_pages;
}

static void add_item(struct sl_kv_window *window, uint8_t **cell)
{
    const uint32_t index = at(window, window->n_used), place = sl_kv_far_place(*cell);
    const uint32_t layer = window->next.layer, reader = reader_of(window, place, layer);
    const bool reads = reader == window->n_pages;

    window->ring[index] = (struct sl_kv_window_load){cell, layer, reads ? index : reader};
    window->loads[index] =
        (struct sl_kv_load){.place = place,
                            .page = reads ? window->free_pages[--window->n_free] : NULL,
                            .state = reads ? SL_KV_LOAD_WAITING : SL_KV_LOAD_DONE};
    *sl_kv_pager_hint(window->pool->pager, place) = reads ? index : reader;
    window->n_used++;
}

/* Begins to read items from number n of the ring on, which wait, as many as lie side by side. */
static uint32_t begin_run(struct sl_kv_window *window, uint32_t n, bool urgent)
{
    const uint32_t index = at(window, n), in_ring = window->n_pages - index;
    const uint32_t left = window->n_used - n;

    return sl_kv_pager_begin(window->pool->pager, &window->loads[index],
                             left < in_ring ? left : in_ring, urgent, &window->failure);
}

/* Fills the ring, and sends for its pages, as many as there are buffers for. */
static void read_on(struct sl_kv_window *window)
{
    uint32_t n, n_sent = 0;
    uint8_t **cell;

    while (window->n_used < window->n_pages && (cell = next_cell(window)))
        add_item(window, cell);
    while (window->n_begun < window->n_used) {
        const uint32_t index = at(window, window->n_begun);

        n = 1;
        if (window->loads[index].state == SL_KV_LOAD_WAITING)
            n = begin_run(window, window->n_begun,
                          window->ring[index].layer == window->wanted_layer);
        if (n == 0)
            break;
        window->n_begun += n;
        n_sent += n;
    }
    if (n_sent > 0)
        sl_kv_pager_start(window->pool->pager);
}

void sl_kv_window_background(struct sl_kv_window *window)
{
    if (!window->pool)
        return;
    sl_kv_pager_progress(window->pool->pager, NULL);
    read_on(window);
}

/* Items at the ring's front that are of the layer. */
static uint32_t items_of(const struct sl_kv_window *window, uint32_t layer_index)
{
    uint32_t n = 0;

    while (n < window->n_used && window->ring[at(window, n)].layer == layer_index)
        n++;
    return n;
}

/* ---- layers ------------------------------------------------------------------------------------
 */

/* Somebody waits for the first n items. Those that failed while they were read ahead are read once
 * more. */
static void hurry(struct sl_kv_window *window, uint32_t n)
{
    const uint32_t in_ring = window->n_pages - window->first;
    const uint32_t n_first = n < in_ring ? n : in_ring;

    for (uint32_t i = 0; i < n; i++)
        if (window->loads[at(window, i)].state == SL_KV_LOAD_FAILED)
            window->loads[at(window, i)].state = SL_KV_LOAD_WAITING;
    sl_kv_pager_hurry(window->pool->pager, &window->loads[window->first], n_first);
    sl_kv_pager_hurry(window->pool->pager, window->loads, n - n_first);
}

/* Waits for an item of the ring. */
static int wait_for(struct sl_kv_window *window, uint32_t index, struct sl_err *err)
{
    const uint32_t n = (index + window->n_pages - window->first) % window->n_pages;
    struct sl_kv_load *load = &window->loads[index];

    while (load->state != SL_KV_LOAD_DONE) {
        if (load->state == SL_KV_LOAD_FAILED) {
            if (err)
                *err = window->failure;
            return window->failure.code;
        }
        if (load->state == SL_KV_LOAD_WAITING && begin_run(window, n, true) > 0)
            sl_kv_pager_start(window->pool->pager);
        read_on(window);
        if (!sl_kv_pager_progress(window->pool->pager, load))
            return sl_err_set(err, -ETIMEDOUT, SL_KV_NO_BUFFER);
    }
    return 0;
}

int sl_kv_window_acquire(struct sl_kv_window *window, uint32_t layer_index, struct sl_err *err)
{
    uint64_t start_ns = 0;
    uint32_t n;
    int rc;

    if (!window->pool)
        return 0;
    sl_assert(window->ready_layer == UINT32_MAX);
    sl_kv_window_background(window);
    window->wanted_layer = layer_index;
    n = items_of(window, layer_index);
    hurry(window, n);
    for (uint32_t i = 0; i < n; i++) {
        const struct sl_kv_window_load *item = &window->ring[at(window, i)];

        if (!item->cell || window->loads[item->reader].state == SL_KV_LOAD_DONE)
            continue;
        start_ns = start_ns ? start_ns : sl_clock_ns();
        rc = wait_for(window, item->reader, err);
        if (rc < 0)
            return sl_err_prefix(err, rc, "KV caches in layer %u", layer_index);
    }
    if (n > 0)
        sl_kv_pager_count_layer(window->pool->pager, start_ns ? sl_clock_ns() - start_ns : 0);
    for (uint32_t i = 0; i < n; i++) {
        const struct sl_kv_window_load *item = &window->ring[at(window, i)];

        if (item->cell)
            *item->cell = window->loads[item->reader].page;
    }
    window->ready_layer = layer_index;
    return 0;
}

/* The tables say again where the layer's pages are on disk. */
static void put_back(struct sl_kv_window *window)
{
    const uint32_t n = items_of(window, window->ready_layer);

    for (uint32_t i = 0; i < n; i++) {
        const uint32_t index = at(window, i);

        if (window->ring[index].cell)
            *window->ring[index].cell = sl_kv_far(window->loads[index].place);
        if (window->loads[index].page)
            window->free_pages[window->n_free++] = window->loads[index].page;
    }
    window->first = at(window, n);
    window->n_used -= n;
    window->n_begun = window->n_begun > n ? window->n_begun - n : 0;
    window->ready_layer = UINT32_MAX;
}

void sl_kv_window_release(struct sl_kv_window *window)
{
    if (!window->pool)
        return;
    put_back(window);
    read_on(window);
}

/* Whether the cell is one of the sequence's for a layer. */
static bool is_listed_in(const struct sl_kv_cache *kv, uint32_t layer_index, uint8_t *const *cell)
{
    for (size_t part = 0; cell && part < SL_ARRAY_LEN(paged_parts); part++) {
        uint8_t **list = list_of(kv, layer_index, part);

        if (cell >= list && cell < list + n_listed(kv, layer_index, part))
            return true;
    }
    return false;
}

/* Places that nobody holds any more may be written anew while they are read: whatever comes of that
 * is not looked at. */
void sl_kv_window_drop(struct sl_kv_window *window, const struct sl_kv_cache *kv)
{
    if (!window->pool)
        return;
    sl_assert(window->ready_layer == UINT32_MAX);
    for (uint32_t k = 0; k < window->n_kvs; k++)
        if (window->kvs[k] == kv)
            window->kvs[k] = NULL;
    for (uint32_t i = 0; i < window->n_used; i++) {
        struct sl_kv_window_load *item = &window->ring[at(window, i)];

        if (is_listed_in(kv, item->layer, item->cell))
            item->cell = NULL;
    }
}

void sl_kv_window_close(struct sl_kv_window *window)
{
    struct sl_kv_pool *pool = window->pool;

    if (!pool)
        return;
    sl_kv_pager_cancel(pool->pager, window->loads, window->n_pages);
    if (window->ready_layer != UINT32_MAX)
        put_back(window);
    for (uint32_t i = 0; i < window->n_used; i++)
        sl_kv_pool_release(pool, window->loads[at(window, i)].page);
    while (window->n_free > 0)
        sl_kv_pool_release(pool, window->free_pages[--window->n_free]);
    sl_kv_pool_free_table(pool, window->loads, window->table_bytes);
    window->pool = NULL;
}
