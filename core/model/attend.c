/* Who attends for which group, and with which memory.
 *
 * Rows and columns of all groups at work come out of one pool of entries: a thread that works alone
 * has its share of it, groups that are worked on together take what they need one after the other.
 */
#include "core/model/attend.h"

#include <errno.h>
#include <stdatomic.h>

#include "core/base/assert.h"
#include "core/model/indexer.h"

/* The pool holds so many groups of the most entries; with fewer threads, one for each. At a context
 * of a million tokens such a group takes 17 MB. */
#define LARGEST_GROUPS_MAX 16u

/* Groups that all threads work on together. No more threads take groups alone, two each or more. */
#define TOGETHER_MAX (SL_CHUNK_TOKENS / 2)
#define ITEM_ENTRIES 64u /* gathered by a thread at a time; whole blocks */

/* The groups that threads take alone come in slices, between which the drives are looked after and
 * a step can be stopped: each of at least so much work for a thread, but no more than some slices.
 */
#define SLICES_MAX 4u
#define SLICE_COST (UINT64_C(1) << 31) /* multiplications, some 40 ms */

struct sl_attend {
    uint32_t n_threads;
    uint32_t n_places;    /* of `chosen`, and of the indexer's queries */
    uint32_t entries_max; /* of one group, whole blocks */
    uint32_t pool_entries;
    uint16_t *rows;                   /* native: (pool_entries, head_dim) */
    uint8_t *columns;                 /* native: as many, head_dim rounded up to 16 */
    uint32_t *chosen;                 /* (n_places, index_topk) */
    struct sl_attend_bundle *bundles; /* one for each thread */
    struct sl_indexer *indexer;

    /* The chunk's groups, and their order: those that a thread's share of the pool has room for
     * before the others, and cheap before expensive. */
    struct sl_attend_group *groups; /* (SL_CHUNK_TOKENS) */
    uint64_t *costs;                /* likewise */
    uint16_t *order;                /* likewise */
};

struct sl_attend *sl_attend_carve(struct sl_arena *arena, const struct sl_config *config,
                                  enum sl_numerics numerics, uint32_t n_threads,
                                  uint32_t context_max)
{
    struct sl_attend *attend = sl_arena_take(arena, 1, sizeof(*attend));
    struct sl_attend a = {.n_threads = n_threads};

    a.n_places = n_threads < TOGETHER_MAX ? n_threads : TOGETHER_MAX;
    a.entries_max = sl_attend_entries_max(config, context_max);
    a.pool_entries =
        (n_threads < LARGEST_GROUPS_MAX ? n_threads : LARGEST_GROUPS_MAX) * a.entries_max;
    if (numerics != SL_NUMERICS_EXACT) {
        a.rows = sl_arena_take(arena, (uint64_t)a.pool_entries * config->head_dim, 2);
        a.columns = sl_arena_take(
            arena, (uint64_t)a.pool_entries * sl_r16_padded_rows(config->head_dim), 2);
    }
    a.chosen = sl_arena_take(arena, (uint64_t)a.n_places * config->index_topk, sizeof(*a.chosen));
    a.bundles = sl_arena_take(arena, n_threads, sizeof(*a.bundles));
    for (uint32_t i = 0; i < n_threads; i++) {
        struct sl_attend_bundle bundle =
            sl_attend_bundle_carve(arena, config, numerics, a.entries_max);

        if (a.bundles)
            a.bundles[i] = bundle;
    }
    a.indexer = sl_indexer_carve(arena, config, numerics, n_threads, a.n_places,
                                 config->index_n_heads ? context_max / SL_CSA_RATIO : 0);
    a.groups = sl_arena_take(arena, SL_CHUNK_TOKENS, sizeof(*a.groups));
    a.costs = sl_arena_take(arena, SL_CHUNK_TOKENS, sizeof(*a.costs));
    a.order = sl_arena_take(arena, SL_CHUNK_TOKENS, sizeof(*a.order));
    if (attend)
        *attend = a;
    return attend;
}

bool sl_attend_needs_index(const struct sl_step *step, const struct sl_layer_weights *weights,
                           uint32_t first, uint32_t end)
{
    for (uint32_t i = first; i < end; i++)
        if (sl_attend_is_selected(step, weights, i))
            return true;
    return false;
}

/* ---- sharing out -------------------------------------------------------------------------------
 */

/* The groups at hand. */
struct work {
    struct sl_attend *a;
    const struct sl_attend_run *run;

    /* Alone: places first to end of a->order, the last one first. */
    atomic_uint next; /* taken so far: by each thread */
    uint32_t first, end;

    /* Together. */
    struct sl_attend_group *groups[TOGETHER_MAX];
    uint32_t n_groups;
    size_t gather_items[TOGETHER_MAX + 1];  /* before each group */
    uint64_t attend_work[TOGETHER_MAX + 1]; /* likewise: entries times tiles */

    /* Where threads share a->bundles: those before each group, parts that each is cut into, and the
     * most tiles that one has. */
    uint32_t n_bundles[TOGETHER_MAX + 1];
    uint32_t n_parts, n_tiles_max;
    bool has_bundles;
};

/* Roughly, multiplications of attention; of the indexer's, which are shorter, four count as one. A
 * decoded entry counts as some. */
static uint64_t cost_of(const struct sl_attend_run *run, const struct sl_attend_group *group)
{
    const struct sl_config *c = run->step->config;
    uint64_t cost = (uint64_t)group->n_entries * c->head_dim *
                    (2 * group->n_queries * c->num_attention_heads + 16);

    if (group->selected)
        cost += (uint64_t)sl_attend_visible(run->step, run->weights, group->first) *
                c->index_n_heads * c->index_head_dim / 4;
    return cost;
}

static void count(const struct sl_attend_run *run, const struct sl_attend_group *group)
{
    const struct sl_config *c = run->step->config;
    const struct sl_kv_cache *kv = run->step->tokens[group->first].kv;

    sl_pool_count(run->step->compute->pool, SL_PHASE_ATTENTION,
                  (uint64_t)group->n_entries * kv->pool->layout.entry_bytes,
                  2 * (uint64_t)group->n_entries * group->n_queries * c->num_attention_heads *
                      c->head_dim);
    if (group->selected)
        sl_indexer_count(run->step, sl_attend_visible(run->step, run->weights, group->first));
}

/* Whether a thread can take the group alone. */
static bool has_room(const struct sl_attend *a, uint32_t group)
{
    return a->groups[group].n_entries <= a->pool_entries / a->n_threads;
}

static bool comes_after(const struct sl_attend *a, uint32_t group, uint32_t other)
{
    if (has_room(a, group) != has_room(a, other))
        return !has_room(a, group);
    return a->costs[group] > a->costs[other];
}

/* Cuts the chunk into groups and puts them in order. Later queries of a text cost more, so that
 * there is hardly anything to be moved. Returns how many there are. */
static uint32_t set_up_groups(struct sl_attend *a, const struct sl_attend_run *run,
                              uint64_t *ret_cost)
{
    uint32_t n = 0;

    *ret_cost = 0;
    for (uint32_t next = run->first; next < run->end; n++) {
        uint32_t at = n;

        sl_assert(n < SL_CHUNK_TOKENS);
        a->groups[n] = sl_attend_group_from(run, next);
        a->costs[n] = cost_of(run, &a->groups[n]);
        *ret_cost += a->costs[n];
        next += a->groups[n].n_queries;
        sl_assert(a->groups[n].n_entries <= a->entries_max);
        count(run, &a->groups[n]);
        for (; at > 0 && comes_after(a, a->order[at - 1], n); at--)
            a->order[at] = a->order[at - 1];
        a->order[at] = (uint16_t)n;
    }
    return n;
}

static void lend(const struct sl_attend *a, const struct sl_config *c, uint32_t place,
                 uint32_t entry, struct sl_attend_group *group)
{
    sl_assert(place < a->n_places);
    group->chosen = a->chosen + (size_t)place * c->index_topk;
    if (!a->rows)
        return;
    group->rows = a->rows + (size_t)entry * c->head_dim;
    group->columns = a->columns + entry * sl_r16_padded_rows(c->head_dim) * 2;
}

static struct sl_index_query index_query(const struct sl_attend_run *run,
                                         const struct sl_attend_group *group)
{
    const struct sl_config *c = run->step->config;
    const size_t row = group->first - run->first;

    return (struct sl_index_query){
        .token = group->first,
        .n_visible = sl_attend_visible(run->step, run->weights, group->first),
        .q = run->index_q + row * sl_r16_padded_rows(c->index_n_heads * c->index_head_dim),
        .weights = run->index_weights + row * sl_r16_padded_rows(c->index_n_heads),
        .ret_chosen = group->chosen,
    };
}

static bool is_exact(const struct sl_attend_run *run)
{
    return run->step->compute->numerics == SL_NUMERICS_EXACT;
}

/* ---- alone -------------------------------------------------------------------------------------
 */

static void select_alone(const struct work *in, const struct sl_attend_group *group,
                         uint32_t thread_index)
{
    const struct sl_step *step = in->run->step;
    const struct sl_index_query query = index_query(in->run, group);
    uint32_t phase = SL_PHASE_OUTSIDE;

    if (thread_index == 0)
        phase = sl_pool_phase(step->compute->pool, SL_PHASE_INDEXER);
    sl_indexer_select_alone(in->a->indexer, step, in->run->layer_index, &query, thread_index);
    if (thread_index == 0)
        sl_pool_phase(step->compute->pool, phase);
}

/* Items are the threads: each takes the group that costs most of those left, until none is. */
static void attend_alone(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct work *in = context;
    struct sl_attend *a = in->a;
    uint32_t taken;

    (void)first;
    (void)end;
    /* Relaxed: a number is all that threads tell each other here. */
    while ((taken = atomic_fetch_add_explicit(&in->next, 1, memory_order_relaxed)) <
           in->end - in->first) {
        struct sl_attend_group *group = &a->groups[a->order[in->end - 1 - taken]];

        lend(a, in->run->step->config, thread_index, a->pool_entries / a->n_threads * thread_index,
             group);
        if (group->selected)
            select_alone(in, group, thread_index);
        sl_attend_alone(in->run, group, &a->bundles[thread_index]);
    }
}

/* Has places first to end of the order done, in slices: two or more for each thread. */
static int run_alone(struct work *in, uint32_t first, uint32_t end, uint64_t cost)
{
    const struct sl_compute *compute = in->run->step->compute;
    const uint32_t n_threads = in->a->n_threads, n = end - first;
    uint64_t n_slices = cost / (SLICE_COST * n_threads) + 1;

    n_slices = n_slices < SLICES_MAX ? n_slices : SLICES_MAX;
    if (n_slices > n / (2 * n_threads))
        n_slices = n / (2 * n_threads);
    for (uint64_t i = n_slices; i-- > 0;) {
        in->first = first + (uint32_t)(n * i / n_slices);
        in->end = first + (uint32_t)(n * (i + 1) / n_slices);
        atomic_store_explicit(&in->next, 0, memory_order_relaxed);
        sl_pool_run(compute->pool, SL_PHASE_ATTENTION, n_threads, 1, attend_alone, in);
        sl_compute_background(compute);
        if (sl_step_is_stopped(in->run->step))
            return -ECANCELED;
    }
    return 0;
}

/* ---- together ----------------------------------------------------------------------------------
 */

/* Items are ITEM_ENTRIES entries of a group: decoded, laid out, and scored if there are bundles for
 * all tiles. */
static void gather_items(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct work *in = context;

    (void)thread_index;
    for (uint32_t g = 0; g < in->n_groups; g++) {
        const struct sl_attend_group *group = in->groups[g];
        const size_t before = in->gather_items[g], after = in->gather_items[g + 1];
        const size_t from = first > before ? first : before, to = end < after ? end : after;
        const uint32_t first_entry = (uint32_t)(from - before) * ITEM_ENTRIES;
        const uint32_t end_entry =
            to == after ? group->n_entries : (uint32_t)(to - before) * ITEM_ENTRIES;

        if (from >= to)
            continue;
        if (in->has_bundles)
            sl_attend_gather_scored(in->run, in->a->bundles + in->n_bundles[g],
                                    in->n_bundles[g + 1] - in->n_bundles[g], first_entry,
                                    end_entry);
        else
            sl_attend_gather(in->run, group, first_entry, end_entry);
    }
}

/* The first tile of group g that begins at or after `work`. */
static uint32_t tile_at(const struct work *in, uint32_t g, uint64_t work)
{
    const uint64_t n_entries = in->groups[g]->n_entries;

    if (work <= in->attend_work[g])
        return 0;
    if (work >= in->attend_work[g + 1])
        work = in->attend_work[g + 1];
    return (uint32_t)((work - in->attend_work[g] + n_entries - 1) / n_entries);
}

/* Items are the threads: each has tiles of as much work as the others. */
static void attend_share(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct work *in = context;
    const uint64_t all = in->attend_work[in->n_groups];

    for (uint32_t g = 0; g < in->n_groups; g++)
        sl_attend_tiles(in->run, in->groups[g], tile_at(in, g, all * first / in->a->n_threads),
                        tile_at(in, g, all * end / in->a->n_threads),
                        &in->a->bundles[thread_index]);
}

/* All threads work together on each bundle, a piece of work at a time. Items are (part, bundle),
 * and (tile, bundle). */
static void sum_parts(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct work *in = context;
    const uint32_t n_bundles = in->n_bundles[in->n_groups];
    const uint32_t n = (uint32_t)sl_r16_tile_count(in->run->step->config->head_dim);

    (void)thread_index;
    for (size_t item = first; item < end; item++) {
        uint32_t part = (uint32_t)(item / n_bundles);

        sl_attend_sum(in->run, &in->a->bundles[item % n_bundles], n * part / in->n_parts,
                      n * (part + 1) / in->n_parts);
    }
}

static void weigh_tiles(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct work *in = context;
    const uint32_t n_bundles = in->n_bundles[in->n_groups];

    (void)thread_index;
    for (size_t item = first; item < end; item++) {
        const struct sl_attend_bundle *bundle = &in->a->bundles[item % n_bundles];

        if (item / n_bundles < bundle->n_tiles)
            sl_attend_weigh(in->run, bundle, (uint32_t)(item / n_bundles));
    }
}

static void finish_tiles(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct work *in = context;
    const uint32_t n_bundles = in->n_bundles[in->n_groups];

    (void)thread_index;
    for (size_t item = first; item < end; item++) {
        const struct sl_attend_bundle *bundle = &in->a->bundles[item % n_bundles];

        if (item / n_bundles < bundle->n_tiles)
            sl_attend_finish(in->run, bundle, (uint32_t)(item / n_bundles));
    }
}

/* Puts the groups' tiles into bundles. Returns false where those of the threads do not suffice. */
static bool set_up_bundles(struct work *in)
{
    uint32_t n = 0;

    in->n_tiles_max = 0;
    for (uint32_t g = 0; g < in->n_groups; g++) {
        const uint32_t tiles = sl_attend_group_tiles(in->run, in->groups[g]);

        for (uint32_t tile = 0; tile < tiles; tile += SL_ATTEND_TILES_AT_ONCE) {
            struct sl_attend_bundle *bundle = &in->a->bundles[n];

            if (n++ == in->a->n_threads)
                return false;
            bundle->group = in->groups[g];
            bundle->first_tile = tile;
            bundle->n_tiles =
                tiles - tile < SL_ATTEND_TILES_AT_ONCE ? tiles - tile : SL_ATTEND_TILES_AT_ONCE;
            if (bundle->n_tiles > in->n_tiles_max)
                in->n_tiles_max = bundle->n_tiles;
        }
        in->n_bundles[g + 1] = n;
    }
    return true;
}

static void attend_bundles(struct work *in)
{
    struct sl_pool *pool = in->run->step->compute->pool;
    const size_t n_bundles = in->n_bundles[in->n_groups];

    in->n_parts = in->a->n_threads;
    sl_pool_run(pool, SL_PHASE_ATTENTION, n_bundles * in->n_tiles_max, 1, weigh_tiles, in);
    sl_pool_run(pool, SL_PHASE_ATTENTION, n_bundles * in->n_parts, 1, sum_parts, in);
    sl_pool_run(pool, SL_PHASE_ATTENTION, n_bundles * in->n_tiles_max, 1, finish_tiles, in);
}

static void select_together(const struct work *in)
{
    struct sl_index_query queries[TOGETHER_MAX];
    uint32_t n = 0;

    for (uint32_t g = 0; g < in->n_groups; g++)
        if (in->groups[g]->selected)
            queries[n++] = index_query(in->run, in->groups[g]);
    if (n > 0)
        sl_indexer_select(in->a->indexer, in->run->step, in->run->layer_index, queries, n);
}

/* Takes groups from place `first` of the order on, as far as there is memory and not beyond `end`;
 * returns the place after them. */
static uint32_t take_groups(struct work *in, uint32_t first, uint32_t end)
{
    struct sl_attend *a = in->a;
    uint32_t entry = 0, g;

    for (g = 0; g < a->n_places && first + g < end; g++) {
        struct sl_attend_group *group = &a->groups[a->order[first + g]];

        if (group->n_entries > a->pool_entries - entry)
            break;
        lend(a, in->run->step->config, g, entry, group);
        entry += group->n_entries;
        in->groups[g] = group;
        in->gather_items[g + 1] =
            in->gather_items[g] + (group->n_entries + ITEM_ENTRIES - 1) / ITEM_ENTRIES;
        in->attend_work[g + 1] =
            in->attend_work[g] + (uint64_t)group->n_entries * sl_attend_group_tiles(in->run, group);
    }
    in->n_groups = g;
    return first + g;
}

/* Groups of so many entries gain more from being scored as they are gathered than two more barriers
 * take. */
#define SCORED_ENTRIES_MIN 512u

/* Whether all threads work on each bundle: also where they would wait for the one with a single
 * tile of the most entries. */
static bool share_bundles(const struct work *in)
{
    uint64_t most = 0;

    for (uint32_t g = 0; g < in->n_groups; g++)
        most = in->groups[g]->n_entries > most ? in->groups[g]->n_entries : most;
    return most >= SCORED_ENTRIES_MIN || in->attend_work[in->n_groups] < most * in->a->n_threads;
}

static int run_together(struct work *in, uint32_t first, uint32_t end)
{
    const struct sl_compute *compute = in->run->step->compute;
    struct sl_pool *pool = compute->pool;

    while (first < end) {
        first = take_groups(in, first, end);
        select_together(in);
        in->has_bundles = !is_exact(in->run) && share_bundles(in) && set_up_bundles(in);
        if (!is_exact(in->run)) {
            sl_pool_run(pool, SL_PHASE_ATTENTION, in->gather_items[in->n_groups], 1, gather_items,
                        in);
            sl_compute_background(compute);
        }
        if (in->has_bundles)
            attend_bundles(in);
        else
            sl_pool_run(pool, SL_PHASE_ATTENTION, in->a->n_threads, 1, attend_share, in);
        sl_compute_background(compute);
        if (sl_step_is_stopped(in->run->step))
            return -ECANCELED;
    }
    return 0;
}

/* ---- the chunk ---------------------------------------------------------------------------------
 */

/* Whether one thread would be at the group for longer than the others have work, `cost` being that
 * of all groups left, this one among them. */
static bool is_large(const struct sl_attend *a, uint32_t group, uint64_t cost)
{
    return a->costs[group] * 2 * a->n_threads > cost;
}

int sl_attend_run(struct sl_attend *a, const struct sl_attend_run *run)
{
    struct work in = {.a = a, .run = run};
    uint64_t cost;
    const uint32_t n = set_up_groups(a, run, &cost);
    uint32_t first = 0, end = n;
    int rc = 0;

    /* Places first to end of the order are for one thread each, the others for all. */
    while (end > 0 && (!has_room(a, a->order[end - 1]) ||
                       (n - end < a->n_places && is_large(a, a->order[end - 1], cost))))
        cost -= a->costs[a->order[--end]];
    if (end < 2 * a->n_threads)
        first = end;
    else
        first = end % a->n_threads;
    rc = run_together(&in, end, n);
    if (rc == 0 && first < end)
        rc = run_alone(&in, first, end, cost);
    if (rc == 0)
        rc = run_together(&in, 0, first);
    return rc;
}
