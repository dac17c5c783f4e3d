/* KV caches beyond memory: pages of entries and keys that are full lie on disk, and come back layer
 * by layer as a step needs them.
 *
 *     page out   full pages ──► disk, between steps; rings, ids and pages that grow stay
 *
 *     window     layer n       ▒▒▒▒▒▒ in the sequences' tables, while the layer attends
 *                layer n + 1   ▒▒▒▒   on their way, while layer n attends and its experts run
 *
 * The MTP block's layer has none in the released models, and stays in memory in others.
 *
 * A page that is full changes no more, so it is written once, and nothing is written back. A
 * sequence may have some pages on disk and others in memory; forks and marks share either kind.
 * Whoever has to write to a page on disk (after a rewind into it) reads it first, as part of what
 * the step takes (core/model/kv_cache.h).
 *
 * A window belongs to a forward pass. Its memory comes from the pool when a pass begins: pages for
 * the largest layer at least, and for two layers that follow each other where that is left. The
 * thread that drives the forward pass makes all calls. */
#ifndef SL_MODEL_KV_PAGING_H
#define SL_MODEL_KV_PAGING_H

#include "core/model/kv_cache.h"

/* Writes full pages of a sequence to disk that nobody else holds, n_max at most, and gives their
 * memory back to the pool, which has a pager. Returns how many pages that were. Fails as
 * sl_kv_pager_write(); pages that were written by then are on disk, and nothing is lost. */
int sl_kv_cache_page_out(struct sl_kv_cache *kv, uint32_t n_max, struct sl_err *err);

/* Bytes of memory that page_out() would free, and that page_in() would take, without a limit. */
uint64_t sl_kv_cache_page_out_bytes(const struct sl_kv_cache *kv);
uint64_t sl_kv_cache_page_in_bytes(const struct sl_kv_cache *kv);

/* Brings pages of a sequence back, for good, n_max at most; there is memory for all. Blocks.
 * Returns how many pages that were. Fails with -SL_EBUDGET, and as reads do; what has not come back
 * then is on disk, and nothing is lost. */
int sl_kv_cache_page_in(struct sl_kv_cache *kv, uint32_t n_max, struct sl_err *err);

/* Pages that are full in a sequence of n_tokens. */
uint64_t sl_kv_full_pages(const struct sl_kv_layout *layout, uint32_t n_tokens);

/* Pages of a layer, or with UINT32_MAX of all layers, that are on disk. */
uint32_t sl_kv_cache_far_pages(const struct sl_kv_cache *kv, uint32_t layer_index);

/* ---- windows -----------------------------------------------------------------------------------
 */

struct sl_kv_window {
    struct sl_kv_cache **kvs; /* (spans_max); NULL: it has left the pass */
    uint32_t n_kvs;
    struct sl_kv_pool *pool; /* NULL: nothing of the pass is on disk */

    /* Pages that are there or on their way: a ring, in the order in which they are used. */
    struct sl_kv_window_load *ring; /* (n_pages) */
    uint8_t **free_pages;           /* (n_pages) */
    struct sl_kv_load *loads;       /* (n_pages), of the ring's items */
    uint32_t n_pages, n_free;
    uint64_t table_bytes;
    uint32_t first, n_used; /* of the ring */
    uint32_t n_begun; /* of these: the first ones, up to the first that has to wait for a buffer */
    uint32_t wanted_layer; /* that was asked for last */
    uint32_t ready_layer;  /* in the tables; UINT32_MAX: none is */
    struct {               /* the next page that may be on disk */
        uint32_t layer, kv, part, page;
    } next;
    struct sl_err failure;
};

/* Takes memory for passes of up to spans_max sequences from an arena. */
struct sl_kv_window sl_kv_window_carve(struct sl_arena *arena, uint32_t spans_max);

/* Nobody is in the next pass yet. sl_kv_window_add() follows for each sequence. */
void sl_kv_window_clear(struct sl_kv_window *window);
void sl_kv_window_add(struct sl_kv_window *window, struct sl_kv_cache *kv);

/* Bytes of the pool that a pass over these sequences takes at least; 0 where nothing is on disk. */
uint64_t sl_kv_window_need(const struct sl_kv_window *window);

/* They do so for a list of sequences; and tell what one of n_tokens adds to it at most, if all its
 * full pages are on disk. */
uint64_t sl_kv_window_bytes(struct sl_kv_cache *const *kvs, uint32_t n_kvs);
uint64_t sl_kv_window_share(const struct sl_kv_layout *layout, uint32_t n_tokens);

/* Takes the memory, and begins to read. close() follows, also after a failure of what comes between
 * them, but not of this: with -SL_EBUDGET or -ENOMEM. */
int sl_kv_window_open(struct sl_kv_window *window, struct sl_err *err);
void sl_kv_window_close(struct sl_kv_window *window); /* one that is not open is allowed */

/* A sequence leaves the pass, between two layers, and may end at once. */
void sl_kv_window_drop(struct sl_kv_window *window, const struct sl_kv_cache *kv);

/* All pages of the layer are in the sequences' tables, until release(); layers come in order. What
 * failed while it was read ahead is read again. Fails as the file's end() and with -SL_ECORRUPT. */
int sl_kv_window_acquire(struct sl_kv_window *window, uint32_t layer_index, struct sl_err *err);
void sl_kv_window_release(struct sl_kv_window *window);

/* Takes in what has landed, and reads on. */
void sl_kv_window_background(struct sl_kv_window *window);

#endif
