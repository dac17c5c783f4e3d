/* The KV cache: everything that one sequence leaves behind in the layers, and the ids of its
 * tokens, in pages of a pool (core/model/kv_layout.h says what there is).
 *
 * A cache grows as it is used. Before a step, sl_kv_cache_need() tells what the step will take, and
 * sl_kv_cache_grow() takes it: pages for what will be appended, and copies of pages that the step
 * will write to and that somebody else holds too, as marks and forks do (core/model/kv_mark.h).
 * During a step nothing is taken.
 *
 * Entries, keys and ids beyond n_tokens tokens do not count, so that going back there needs no more
 * than a smaller n_tokens. Rows of rings are overwritten: to go back they must have been copied
 * before, by core/model/kv_rollback.h within a step, by a mark for longer.
 *
 * Entries and keys are stored as the model was trained to have them (docs/NUMERICS.md), or as
 * float32 in `exact`. Only the forward pass writes. One thread grows the caches of a pool. */
#ifndef SL_MODEL_KV_CACHE_H
#define SL_MODEL_KV_CACHE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/model/kv_pool.h"

struct sl_kv_cache {
    struct sl_kv_pool *pool; /* borrowed */
    uint32_t capacity_tokens;
    uint32_t n_tokens;     /* seen by all hidden layers */
    uint32_t n_mtp_tokens; /* seen by the draft's blocks, which may be behind, */
    uint32_t
        mtp_first; /* but for those before this one: their window begins there at the earliest */
    bool in_step;  /* a step that has begun and not ended writes to it */

    /* Pages of each part, [layer * SL_KV_PARTS + part][page]; NULL where nothing has been written,
     * and sl_kv_is_far() where they are on disk. One block of memory, with room for so many tokens.
     */
    uint8_t ***pages;
    uint64_t table_bytes;
    uint32_t table_tokens;
};

/* A draft that has missed tokens before `position`, or has seen some that were taken back, begins
 * anew there. */
static inline void sl_kv_cache_follow_on(struct sl_kv_cache *kv, uint32_t position)
{
    if (kv->n_mtp_tokens != position)
        kv->n_mtp_tokens = kv->mtp_first = position;
}

/* Bytes of the budget that a sequence of n_tokens takes at most, whatever steps it grew by; what
 * marks and forks keep of it besides is not in this. */
uint64_t sl_kv_cache_measure(const struct sl_kv_layout *layout, uint32_t n_tokens);

/* Makes an empty sequence of up to `capacity_tokens` tokens, which takes no more than a table yet.
 * Fails with -SL_EBUDGET or -ENOMEM. The caller calls sl_kv_cache_fini(). */
int sl_kv_cache_init(struct sl_kv_cache *kv, struct sl_kv_pool *pool, uint32_t capacity_tokens,
                     struct sl_err *err);

/* Makes room for n_tokens in the table alone; sl_kv_cache_grow() does, too. Fails as above. */
int sl_kv_cache_make_room(struct sl_kv_cache *kv, uint32_t n_tokens, struct sl_err *err);

/* No step has it, here and below. A zeroed cache is allowed. */
void sl_kv_cache_fini(struct sl_kv_cache *kv);

/* Empty again, for another sequence; its pages go back to the pool. */
void sl_kv_cache_clear(struct sl_kv_cache *kv);

/* ---- growing -----------------------------------------------------------------------------------
 */

/* Bytes that sl_kv_cache_grow() will take from the pool: what a step needs that brings the sequence
 * to end_tokens, at most its capacity. Of several sequences that share pages, the sum is an upper
 * bound. */
uint64_t sl_kv_cache_need(const struct sl_kv_cache *kv, uint32_t end_tokens);

/* Takes what a step needs that brings the sequence, or its MTP block, to end_tokens; the pool has
 * as much. Fails with -ENOMEM, or as reads of pages on disk that are to be written to do; also then
 * the sequence is as it was, but for pages it may already have. */
int sl_kv_cache_grow(struct sl_kv_cache *kv, uint32_t end_tokens, struct sl_err *err);

/* Gives back the pages that hold nothing of the tokens that the sequence has seen. */
void sl_kv_cache_trim(struct sl_kv_cache *kv);

/* ---- access, for the forward pass --------------------------------------------------------------
 */

/* An item of a part, in a page that the sequence has. */
static inline uint8_t *sl_kv_item(const struct sl_kv_cache *kv, uint32_t layer_index,
                                  enum sl_kv_part part, uint32_t item)
{
    const struct sl_kv_part_layout *layout = &kv->pool->layout.parts[layer_index][part];
    const uint32_t page = item / layout->items_per_page;

    return kv->pages[layer_index * SL_KV_PARTS + part][page] +
           (size_t)(item - page * layout->items_per_page) * layout->item_bytes;
}

/* The row that the token at `position` has, or will have, in a ring of the layer. */
static inline uint8_t *sl_kv_row(const struct sl_kv_cache *kv, uint32_t layer_index,
                                 enum sl_kv_part ring, uint32_t position)
{
    return sl_kv_item(kv, layer_index, ring,
                      position % kv->pool->layout.parts[layer_index][ring].n_rows);
}

static inline struct sl_kv_ring_shape sl_kv_shape(const struct sl_kv_cache *kv,
                                                  uint32_t layer_index, enum sl_kv_part ring)
{
    const struct sl_kv_part_layout *layout = &kv->pool->layout.parts[layer_index][ring];

    return (struct sl_kv_ring_shape){layout->n_rows, layout->item_bytes};
}

/* A compressed entry. Neighbours need not lie side by side. */
static inline uint8_t *sl_kv_entry(const struct sl_kv_cache *kv, uint32_t layer_index,
                                   uint32_t entry_index)
{
    return sl_kv_item(kv, layer_index, SL_KV_ENTRIES, entry_index);
}

/* The tile of 16 keys that entry `entry_index`'s is in; in `exact` 16 rows of index_head_dim.
 * SL_KV_KEYS_TOGETHER says which tiles lie side by side. */
static inline uint8_t *sl_kv_key_tile(const struct sl_kv_cache *kv, uint32_t layer_index,
                                      uint32_t entry_index)
{
    return sl_kv_item(kv, layer_index, SL_KV_KEYS, entry_index / SL_R16_ROWS);
}

/* The id of the token at `position`. */
static inline int32_t *sl_kv_id(const struct sl_kv_cache *kv, uint32_t position)
{
    return (int32_t *)(void *)sl_kv_item(kv, 0, SL_KV_IDS, position);
}

#endif
