/* The memory of KV caches: one budget, in pages of one size that sequences and marks share.
 *
 * A page has one holder or more. Whoever is to write to a page that has others takes one of its own
 * first (core/model/kv_cache.h). Pages come as they are taken, and stay with the pool when they are
 * free: the budget is reserved, so nothing is gained by giving them back. Tables that list pages
 * come from malloc() and are counted against the same budget.
 *
 * With a pager, pages that nobody writes to any more can be on disk (core/model/kv_paging.h). What
 * a table lists is then no address but says where: such a page is held and released like others.
 *
 * One thread makes all calls. */
#ifndef SL_MODEL_KV_POOL_H
#define SL_MODEL_KV_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/arena.h"
#include "core/model/kv_layout.h"
#include "core/model/kv_pager.h"

/* Bytes that a page takes: itself, and its number of holders. */
static inline uint64_t sl_kv_page_cost(const struct sl_kv_layout *layout)
{
    return layout->page_bytes + sizeof(uint32_t);
}

struct sl_kv_pool {
    struct sl_kv_layout layout;
    uint64_t budget_bytes;
    uint64_t table_bytes;
    uint32_t n_pages;   /* that the budget has room for */
    uint32_t n_held;    /* of them */
    uint32_t n_touched; /* pages from this number on nobody has held yet */
    uint32_t first_free;
    uint32_t *holders; /* (n_pages) how many; of a free page, the number of the next free one */
    uint8_t *pages;    /* (n_pages, page_bytes) */
    struct sl_arena arena;
    struct sl_kv_pager *pager; /* NULL: all pages are in memory; borrowed, set by the owner */
};

/* A page on disk, as tables list it: its place in the file, and a bit that no address has. */
static inline bool sl_kv_is_far(const uint8_t *page)
{
    return ((uintptr_t)page & 1) != 0;
}

static inline uint8_t *sl_kv_far(uint32_t place)
{
    return (uint8_t *)((uintptr_t)place << 1 | 1);
}

static inline uint32_t sl_kv_far_place(const uint8_t *page)
{
    return (uint32_t)((uintptr_t)page >> 1);
}

/* For sequences of a model; n_layers counts the MTP block if it is used. The arena is of
 * budget_bytes, reserved and touched as pages are taken. Fails with -ENOMEM. The caller calls
 * sl_kv_pool_fini(). */
int sl_kv_pool_init(struct sl_kv_pool *pool, const struct sl_config *config, uint32_t n_layers,
                    enum sl_numerics numerics, uint64_t budget_bytes, struct sl_err *err);

/* Everything has been given back. A zeroed pool is allowed. */
void sl_kv_pool_fini(struct sl_kv_pool *pool);

/* Bytes of the budget that are taken: pages with their cost, and tables. */
uint64_t sl_kv_pool_used_bytes(const struct sl_kv_pool *pool);
uint64_t sl_kv_pool_left_bytes(const struct sl_kv_pool *pool);

/* Returns 0 if so many bytes are left, or -SL_EBUDGET with the figures; `what` needs them. */
int sl_kv_pool_check(const struct sl_kv_pool *pool, uint64_t needed_bytes, const char *what,
                     struct sl_err *err);

/* Takes a page, of which the caller is the one holder; its contents are anything. There is one, as
 * sl_kv_pool_check() told. */
uint8_t *sl_kv_pool_take(struct sl_kv_pool *pool);

/* One more holder, and one less. NULL is allowed. */
void sl_kv_pool_hold(struct sl_kv_pool *pool, uint8_t *page);
void sl_kv_pool_release(struct sl_kv_pool *pool, uint8_t *page);

/* Whether the page that has the byte at `at`, in memory, has several holders. */
bool sl_kv_pool_is_shared(const struct sl_kv_pool *pool, const uint8_t *at);

/* Zeroed memory for tables. Fails with -SL_EBUDGET or -ENOMEM. */
int sl_kv_pool_table(struct sl_kv_pool *pool, uint64_t size_bytes, void **ret_table,
                     struct sl_err *err);

/* NULL is allowed. */
void sl_kv_pool_free_table(struct sl_kv_pool *pool, void *table, uint64_t size_bytes);

#endif
