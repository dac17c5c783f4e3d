#include "core/model/kv_pool.h"

#include <errno.h>
#include <stdlib.h>

#include "core/base/assert.h"
#include "core/base/size.h"

#define NO_PAGE UINT32_MAX

int sl_kv_pool_init(struct sl_kv_pool *pool, const struct sl_config *config, uint32_t n_layers,
                    enum sl_numerics numerics, uint64_t budget_bytes, struct sl_err *err)
{
    uint64_t n_pages;
    int rc;

    *pool = (struct sl_kv_pool){.budget_bytes = budget_bytes, .first_free = NO_PAGE};
    if ((rc = sl_kv_layout_init(&pool->layout, config, n_layers, numerics, err)) < 0 ||
        (rc = sl_arena_reserve(&pool->arena, budget_bytes, "KV caches", err)) < 0) {
        sl_kv_pool_fini(pool);
        return rc;
    }
    n_pages = budget_bytes / sl_kv_page_cost(&pool->layout);
    pool->n_pages = n_pages < NO_PAGE ? (uint32_t)n_pages : NO_PAGE;
    pool->pages = sl_arena_take(&pool->arena, pool->n_pages, pool->layout.page_bytes);
    pool->holders = sl_arena_take(&pool->arena, pool->n_pages, sizeof(*pool->holders));
    return 0;
}

void sl_kv_pool_fini(struct sl_kv_pool *pool)
{
    sl_assert(pool->n_held == 0 && pool->table_bytes == 0);
    sl_arena_fini(&pool->arena);
    sl_kv_layout_fini(&pool->layout);
    *pool = (struct sl_kv_pool){0};
}

uint64_t sl_kv_pool_used_bytes(const struct sl_kv_pool *pool)
{
    return pool->n_held * sl_kv_page_cost(&pool->layout) + pool->table_bytes;
}

uint64_t sl_kv_pool_left_bytes(const struct sl_kv_pool *pool)
{
    return pool->budget_bytes - sl_kv_pool_used_bytes(pool);
}

int sl_kv_pool_check(const struct sl_kv_pool *pool, uint64_t needed_bytes, const char *what,
                     struct sl_err *err)
{
    const uint64_t left_bytes = sl_kv_pool_left_bytes(pool);
    char needed[SL_SIZE_TEXT_BYTES], left[SL_SIZE_TEXT_BYTES], all[SL_SIZE_TEXT_BYTES];

    if (needed_bytes <= left_bytes)
        return 0;
    return sl_err_set(err, -SL_EBUDGET,
                      "%s needs %s more for KV caches, but %s of %s (--kv) are left", what,
                      sl_size_format(needed_bytes, needed), sl_size_format(left_bytes, left),
                      sl_size_format(pool->budget_bytes, all));
}

/* ---- pages -------------------------------------------------------------------------------------
 */

/* The number of the page that has the byte at `at`. */
static uint32_t number_of(const struct sl_kv_pool *pool, const uint8_t *at)
{
    const uint64_t n = (uint64_t)(at - pool->pages) / pool->layout.page_bytes;

    sl_assert(at >= pool->pages && n < pool->n_touched);
    return (uint32_t)n;
}

uint8_t *sl_kv_pool_take(struct sl_kv_pool *pool)
{
    uint32_t n = pool->first_free;

    if (n == NO_PAGE) {
        n = pool->n_touched;
        sl_assert(n < pool->n_pages);
        pool->n_touched++;
    } else {
        pool->first_free = pool->holders[n];
    }
    pool->n_held++;
    sl_assert(sl_kv_pool_used_bytes(pool) <= pool->budget_bytes);
    pool->holders[n] = 1;
    return pool->pages + (uint64_t)n * pool->layout.page_bytes;
}

void sl_kv_pool_hold(struct sl_kv_pool *pool, uint8_t *page)
{
    if (sl_kv_is_far(page))
        sl_kv_pager_hold(pool->pager, sl_kv_far_place(page));
    else if (page)
        pool->holders[number_of(pool, page)]++;
}

void sl_kv_pool_release(struct sl_kv_pool *pool, uint8_t *page)
{
    uint32_t n;

    if (!page)
        return;
    if (sl_kv_is_far(page)) {
        sl_kv_pager_release(pool->pager, sl_kv_far_place(page));
        return;
    }
    n = number_of(pool, page);
    sl_assert(pool->holders[n] > 0);
    if (--pool->holders[n] > 0)
        return;
    pool->holders[n] = pool->first_free;
    pool->first_free = n;
    pool->n_held--;
}

bool sl_kv_pool_is_shared(const struct sl_kv_pool *pool, const uint8_t *at)
{
    return pool->holders[number_of(pool, at)] > 1;
}

/* ---- tables ------------------------------------------------------------------------------------
 */

int sl_kv_pool_table(struct sl_kv_pool *pool, uint64_t size_bytes, void **ret_table,
                     struct sl_err *err)
{
    int rc = sl_kv_pool_check(pool, size_bytes, "a list of pages", err);
    void *table;

    if (rc < 0)
        return rc;
    table = calloc(1, size_bytes);
    if (!table)
        return sl_err_set(err, -ENOMEM, "KV cache: out of memory");
    pool->table_bytes += size_bytes;
    *ret_table = table;
    return 0;
}

void sl_kv_pool_free_table(struct sl_kv_pool *pool, void *table, uint64_t size_bytes)
{
    if (!table)
        return;
    free(table);
    sl_assert(pool->table_bytes >= size_bytes);
    pool->table_bytes -= size_bytes;
}
