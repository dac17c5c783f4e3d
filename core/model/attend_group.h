/* Queries that attend together, and the pieces of work that attention over their entries is.
 *
 * Queries of one sequence that see the same entries (the window, all of HCA, and CSA while there
 * are no more entries than the indexer would choose) form a group: its entries are decoded and laid
 * out once, as rows for the scores and as R16 tiles of their transpose for the weighted sum, so
 * that both products are the BF16 matrix kernel: heads against entries, then channels against
 * heads. What a query of a group does not see has weight zero, which changes no sum. A query that
 * the indexer chose entries for is a group of its own; a draft's block is one, too.
 *
 * Who does which piece on which thread is core/model/attend.c's to say: nothing here starts jobs,
 * and all functions may be called inside one. */
#ifndef SL_MODEL_ATTEND_GROUP_H
#define SL_MODEL_ATTEND_GROUP_H

#include "core/base/arena.h"
#include "core/model/linear.h"
#include "core/model/step.h"
#include "core/model/weights.h"

/* Entries are laid out in the blocks that their weighted sum has, window entries by their positions
 * and then compressed ones by their rank: which of them share a block does not depend on the rest
 * of the group. */
#define SL_ATTEND_BLOCK_ENTRIES SL_BLOCK_ORDER_COLS

#define SL_ATTEND_QUERIES_MAX 16u /* of a group */
_Static_assert(SL_DSPARK_BLOCK_MAX <= SL_ATTEND_QUERIES_MAX, "a block is one group");

/* The queries of tokens first to end of the step, all arrays by their row: token - first. */
struct sl_attend_run {
    const struct sl_step *step;
    const struct sl_layer_weights *weights;
    uint32_t layer_index;
    uint32_t first, end;
    const float *q;         /* exact: (rows, heads * head_dim) at sl_r16_padded_rows() */
    const uint8_t *q_tiles; /* native: per row sl_attend_tile_bytes(), heads as R16 rows */
    const float *index_q;   /* where the indexer is needed: wq_b's and weights_proj's output */
    const float *index_weights;
    const uint8_t *step_entries; /* window entries by step index, sl_kv_cache_entry_bytes() each */
    struct sl_act_buffer *o;     /* (rows, heads * head_dim): the heads' outputs, also rounded */
};

/* Queries that share their entries, and where those are laid out. */
struct sl_attend_group {
    uint32_t first, n_queries; /* step indices */
    uint32_t window_first;     /* position of window entry 0; may lie before the window */
    uint32_t window_slots;     /* in whole blocks; the compressed entries follow */
    uint32_t n_compressed;
    uint32_t n_entries; /* window_slots + n_compressed, in whole blocks */
    bool selected;      /* `chosen` holds the compressed entries, else they are 0, 1, ... */

    /* Memory that its caller lends it. */
    uint32_t *chosen; /* (index_topk) */
    uint16_t *rows;   /* native: (n_entries, head_dim) BF16 */
    uint8_t *columns; /* native: R16 tiles (head_dim, n_entries) BF16 */
};

/* Up to SL_ATTEND_TILES_AT_ONCE tiles of 16 heads of one group's queries, whose tiles lie one after
 * the other, over which the entries are read once; and room to attend with them. */
#define SL_ATTEND_TILES_AT_ONCE 8u
struct sl_attend_bundle {
    const struct sl_attend_group *group;
    uint32_t first_tile, n_tiles;
    float *scores; /* (entries_max * n_tiles * 16), as attend_group.c lays them out */
    uint16_t *p;   /* (n_tiles * 16, entries_max) */
    float *sums;   /* (n_tiles * 16, head_dim rounded up to 16) */
    float *total;  /* (n_tiles * 16) */
    double *exact_p;
    const float **exact_entries; /* (entries_max) */
};

/* R16 BF16 tiles of one token's query: (num_attention_heads, head_dim). */
uint64_t sl_attend_tile_bytes(const struct sl_config *config);

/* The most entries that a group can have in any layer, of sequences of up to context_max tokens. */
uint32_t sl_attend_entries_max(const struct sl_config *config, uint32_t context_max);

/* Takes a bundle's memory from an arena (measuring: all NULL). */
struct sl_attend_bundle sl_attend_bundle_carve(struct sl_arena *arena,
                                               const struct sl_config *config,
                                               enum sl_numerics numerics, uint32_t entries_max);

/* Compressed entries that are whole at token i's position. */
uint32_t sl_attend_visible(const struct sl_step *step, const struct sl_layer_weights *weights,
                           uint32_t i);

/* Whether the indexer chooses among them for token i. */
bool sl_attend_is_selected(const struct sl_step *step, const struct sl_layer_weights *weights,
                           uint32_t i);

/* The group that begins with token `first`, as long as it can be; without memory. */
struct sl_attend_group sl_attend_group_from(const struct sl_attend_run *run, uint32_t first);

/* Tiles of 16 heads of all its queries. */
uint32_t sl_attend_group_tiles(const struct sl_attend_run *run,
                               const struct sl_attend_group *group);

/* native: decodes entries first to end of a group, whole blocks, and lays them out. */
void sl_attend_gather(const struct sl_attend_run *run, const struct sl_attend_group *group,
                      uint32_t first, uint32_t end);

/* native: the same for bundles that have all tiles of their group, which scores the entries while
 * their rows are in the cache: rows are not kept, but all at the place of the first ones. */
void sl_attend_gather_scored(const struct sl_attend_run *run,
                             const struct sl_attend_bundle *bundles, uint32_t n_bundles,
                             uint32_t first, uint32_t end);

/* Attends with tiles first to end of a group whose entries are laid out (exact: chosen, with the
 * room of a bundle alone), and puts the heads' outputs into run->o. */
void sl_attend_tiles(const struct sl_attend_run *run, const struct sl_attend_group *group,
                     uint32_t first, uint32_t end, struct sl_attend_bundle *bundle);

/* Lays out a group's entries and attends with all its tiles. */
void sl_attend_alone(const struct sl_attend_run *run, const struct sl_attend_group *group,
                     struct sl_attend_bundle *bundle);

/* native: what follows for bundles whose scores are there, in three pieces, one after the other.
 * Each can be cut into parts that do not depend on each other: tiles, channels (16 at a time),
 * tiles. */
void sl_attend_weigh(const struct sl_attend_run *run, const struct sl_attend_bundle *bundle,
                     uint32_t tile);
void sl_attend_sum(const struct sl_attend_run *run, const struct sl_attend_bundle *bundle,
                   uint32_t first, uint32_t end);
void sl_attend_finish(const struct sl_attend_run *run, const struct sl_attend_bundle *bundle,
                      uint32_t tile);

#endif
