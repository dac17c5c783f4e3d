#include "core/model/attend.h"

#include <math.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/model/exact.h"
#include "core/model/indexer.h"

#define GROUPS_MAX 16u /* laid out at the same time */
#define GROUP_QUERIES_MAX 16u
#define ENTRIES_PER_ITEM 64u /* gathered by a thread at a time; even */
#define TILES_AT_ONCE 4u     /* of 16 heads, over which a thread reads the entries once */

/* Queries that share their entries, and where those are laid out. */
struct group {
    uint32_t first, n_queries; /* step indices */
    uint32_t window_first;     /* position of window entry 0, even; may lie before the window */
    uint32_t window_slots;     /* even; the compressed entries follow */
    uint32_t n_compressed;
    uint32_t n_entries; /* window_slots + n_compressed, rounded up to even */
    bool selected;      /* `chosen` holds the compressed entries, else they are 0, 1, ... */
    uint32_t *chosen;   /* (index_topk) */

    uint16_t *rows;   /* native: (n_entries, head_dim) BF16 */
    uint8_t *columns; /* native: R16 tiles (head_dim, n_entries) BF16 */
};

/* Up to TILES_AT_ONCE tiles of 16 heads of one group's queries, whose tiles lie one after the
 * other, and room to attend with them. */
struct bundle {
    const struct group *group;
    uint32_t first_tile, n_tiles;
    float *scores; /* (entries_max, n_tiles * 16) */
    uint16_t *p;   /* (n_tiles * 16, entries_max) */
    float *sums;   /* (n_tiles * 16, head_dim rounded up to 16) */
    float *total;  /* (n_tiles * 16) */
    double *exact_p;
    const float **exact_entries; /* (entries_max) */
};

struct sl_attend {
    uint32_t n_groups_max;
    uint32_t entries_max; /* of one group, even */
    uint32_t entry_bytes;
    struct group groups[GROUPS_MAX];
    struct bundle *bundles; /* one for each thread */
    struct sl_indexer *indexer;
};

/* The groups at hand. */
struct work {
    struct sl_attend *a;
    const struct sl_step *step;
    const struct sl_attend_run *run;
    uint32_t n_groups;
    uint32_t gather_items[GROUPS_MAX + 1]; /* items before each group */
    uint32_t attend_items[GROUPS_MAX + 1];
    uint32_t n_bundles; /* of a->bundles, where threads share them */
    uint32_t n_parts;   /* that the entries of each are cut into */
};

static uint32_t heads_dim(const struct sl_config *c)
{
    return c->num_attention_heads * c->head_dim;
}

static uint32_t head_tiles(const struct sl_config *c)
{
    return (uint32_t)sl_r16_tile_count(c->num_attention_heads);
}

uint64_t sl_attend_tile_bytes(const struct sl_config *config)
{
    return head_tiles(config) * sl_r16_bf16_tile_bytes(config->head_dim);
}

static uint32_t round_up_even(uint32_t n)
{
    return (n + 1) & ~1u;
}

/* The most entries that a group can have in any layer. */
static uint32_t entries_max(const struct sl_config *c, uint32_t context_max)
{
    uint32_t most = 0;

    for (uint32_t i = 0; i < c->num_hidden_layers + c->num_nextn_predict_layers; i++) {
        uint32_t ratio = c->compress_ratios[i], n = ratio ? context_max / ratio : 0;

        if (ratio == SL_CSA_RATIO && n > c->index_topk)
            n = c->index_topk;
        most = n > most ? n : most;
    }
    return round_up_even(c->sliding_window + GROUP_QUERIES_MAX + 1) + round_up_even(most);
}

static struct bundle carve_bundle(const struct sl_attend *a, struct sl_arena *arena,
                                  const struct sl_config *c, enum sl_numerics numerics)
{
    const uint64_t heads = TILES_AT_ONCE * SL_R16_ROWS;
    struct bundle bundle = {0};

    if (numerics == SL_NUMERICS_EXACT) {
        bundle.exact_p = sl_arena_take(arena, a->entries_max, sizeof(double));
        bundle.exact_entries = sl_arena_take(arena, a->entries_max, sizeof(float *));
    } else {
        bundle.scores = sl_arena_take(arena, a->entries_max * heads, sizeof(float));
        bundle.p = sl_arena_take(arena, a->entries_max * heads, sizeof(uint16_t));
        bundle.sums = sl_arena_take(arena, heads * sl_r16_padded_rows(c->head_dim), sizeof(float));
        bundle.total = sl_arena_take(arena, heads, sizeof(float));
    }
    return bundle;
}

struct sl_attend *sl_attend_carve(struct sl_arena *arena, const struct sl_config *config,
                                  enum sl_numerics numerics, uint32_t n_threads,
                                  uint32_t context_max)
{
    struct sl_attend *attend = sl_arena_take(arena, 1, sizeof(*attend));
    struct sl_attend a = {0};

    a.n_groups_max = n_threads < GROUPS_MAX ? n_threads : GROUPS_MAX;
    a.entries_max = entries_max(config, context_max);
    a.entry_bytes = sl_kv_cache_entry_bytes(config, numerics);
    for (uint32_t i = 0; i < a.n_groups_max; i++) {
        struct group *group = &a.groups[i];

        group->chosen = sl_arena_take(arena, config->index_topk, sizeof(*group->chosen));
        if (numerics == SL_NUMERICS_EXACT)
            continue;
        group->rows = sl_arena_take(arena, (uint64_t)a.entries_max * config->head_dim, 2);
        group->columns =
            sl_arena_take(arena, (uint64_t)a.entries_max * sl_r16_padded_rows(config->head_dim), 2);
    }
    a.bundles = sl_arena_take(arena, n_threads, sizeof(*a.bundles));
    for (uint32_t i = 0; i < n_threads; i++) {
        struct bundle bundle = carve_bundle(&a, arena, config, numerics);

        if (a.bundles)
            a.bundles[i] = bundle;
    }
    a.indexer = sl_indexer_carve(arena, config, numerics, n_threads, a.n_groups_max,
                                 config->index_n_heads ? context_max / SL_CSA_RATIO : 0);
    if (attend)
        *attend = a;
    return attend;
}

/* ---- groups ------------------------------------------------------------------------------------
 */

/* Compressed entries that are whole at token i's position. */
static uint32_t visible_entries(const struct sl_step *step, const struct sl_layer_weights *weights,
                                uint32_t i)
{
    return weights->ratio ? (step->tokens[i].position + 1) / weights->ratio : 0;
}

static bool is_selected(const struct sl_step *step, const struct sl_layer_weights *weights,
                        uint32_t i)
{
    return weights->ratio == SL_CSA_RATIO &&
           visible_entries(step, weights, i) > step->config->index_topk;
}

bool sl_attend_needs_index(const struct sl_step *step, const struct sl_layer_weights *weights,
                           uint32_t first, uint32_t end)
{
    for (uint32_t i = first; i < end; i++)
        if (is_selected(step, weights, i))
            return true;
    return false;
}

/* First position in the window of a query at `position`. */
static uint32_t window_start(const struct sl_config *c, uint32_t position)
{
    return position + 1 > c->sliding_window ? position + 1 - c->sliding_window : 0;
}

/* The group that starts with token `first`; its memory stays. */
static void set_up_group(const struct work *in, struct group *group, uint32_t first)
{
    const struct sl_step *step = in->step;
    const struct sl_step_token *tokens = step->tokens;
    const struct sl_layer_weights *weights = in->run->weights;
    uint32_t n = 1, last;

    group->selected = is_selected(step, weights, first);
    while (!group->selected && n < GROUP_QUERIES_MAX && first + n < in->run->end &&
           tokens[first + n].span_first == tokens[first].span_first &&
           !is_selected(step, weights, first + n))
        n++;
    last = first + n - 1;
    group->first = first;
    group->n_queries = n;
    group->window_first = window_start(step->config, tokens[first].position) & ~1u;
    group->window_slots = round_up_even(tokens[last].position + 1 - group->window_first);
    group->n_compressed =
        group->selected ? step->config->index_topk : visible_entries(step, weights, last);
    group->n_entries = group->window_slots + round_up_even(group->n_compressed);
    sl_assert(group->n_entries <= in->a->entries_max);
}

/* Takes tokens from `next` on; returns the first that is left. */
static uint32_t set_up_groups(struct work *in, uint32_t next)
{
    const uint32_t tiles = head_tiles(in->step->config);

    in->n_groups = 0;
    while (in->n_groups < in->a->n_groups_max && next < in->run->end) {
        struct group *group = &in->a->groups[in->n_groups];

        set_up_group(in, group, next);
        next += group->n_queries;
        in->gather_items[in->n_groups + 1] =
            in->gather_items[in->n_groups] +
            (group->n_entries + ENTRIES_PER_ITEM - 1) / ENTRIES_PER_ITEM;
        in->attend_items[in->n_groups + 1] =
            in->attend_items[in->n_groups] + group->n_queries * tiles;
        in->n_groups++;
    }
    return next;
}

/* The group that an item belongs to, given the items before each. */
static uint32_t group_of(const uint32_t *items, size_t item)
{
    uint32_t g = 0;

    while (item >= items[g + 1])
        g++;
    return g;
}

static void select_entries(const struct work *in)
{
    const struct sl_config *c = in->step->config;
    struct sl_index_query queries[GROUPS_MAX];
    uint32_t n = 0;

    for (uint32_t i = 0; i < in->n_groups; i++) {
        const struct group *group = &in->a->groups[i];
        const size_t row = group->first - in->run->first;

        if (!group->selected)
            continue;
        queries[n++] = (struct sl_index_query){
            .token = group->first,
            .n_visible = visible_entries(in->step, in->run->weights, group->first),
            .q = in->run->index_q + row * sl_r16_padded_rows(c->index_n_heads * c->index_head_dim),
            .weights = in->run->index_weights + row * sl_r16_padded_rows(c->index_n_heads),
            .ret_chosen = group->chosen,
        };
    }
    if (n == 0)
        return;
    sl_indexer_select(in->a->indexer, in->step, in->run->layer_index, queries, n);
}

/* Where entry n of a group is stored; NULL for padding. */
static const uint8_t *entry_at(const struct work *in, const struct group *group, uint32_t n)
{
    const struct sl_config *c = in->step->config;
    const struct sl_step_token *last = &in->step->tokens[group->first + group->n_queries - 1];
    const uint32_t layer_index = in->run->layer_index;

    if (n < group->window_slots) {
        uint32_t position = group->window_first + n;
        int64_t index;

        if (position > last->position ||
            position < window_start(c, in->step->tokens[group->first].position))
            return NULL;
        index = sl_step_index_of(in->step, group->first, position);
        return index >= 0 ? in->run->step_entries + (size_t)index * in->a->entry_bytes
                          : sl_kv_row(last->kv, layer_index, SL_KV_WINDOW, position);
    }
    n -= group->window_slots;
    if (n >= group->n_compressed)
        return NULL;
    return sl_kv_entry(last->kv, layer_index, group->selected ? group->chosen[n] : n);
}

/* The part of a group's entries that its token `token` sees: window slots first to end, and the
 * first n_compressed of the compressed ones. */
struct sight {
    uint32_t window_first, window_end, n_compressed;
};

static struct sight sight_of(const struct work *in, const struct group *group, uint32_t token)
{
    uint32_t position = in->step->tokens[token].position;

    return (struct sight){
        .window_first = window_start(in->step->config, position) - group->window_first,
        .window_end = position + 1 - group->window_first,
        .n_compressed = group->selected ? group->n_compressed
                                        : visible_entries(in->step, in->run->weights, token),
    };
}

/* ---- native ------------------------------------------------------------------------------------
 */

/* Items are ENTRIES_PER_ITEM entries of a group. */
static void gather(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct work *in = context;
    const struct sl_config *c = in->step->config;
    const struct sl_kernels *k = in->step->compute->kernels;
    const uint32_t dim = c->head_dim;

    (void)thread_index;
    for (size_t item = first; item < end; item++) {
        uint32_t g = group_of(in->gather_items, item);
        const struct group *group = &in->a->groups[g];
        uint32_t from = (uint32_t)(item - in->gather_items[g]) * ENTRIES_PER_ITEM;
        uint32_t to =
            from + ENTRIES_PER_ITEM < group->n_entries ? from + ENTRIES_PER_ITEM : group->n_entries;

        for (uint32_t n = from; n < to; n++) {
            const uint8_t *entry = entry_at(in, group, n);
            uint16_t *row = group->rows + (size_t)n * dim;

            if (entry)
                k->kv_decode(dim - c->qk_rope_head_dim, c->qk_rope_head_dim, entry, row);
            else
                memset(row, 0, dim * sizeof(*row));
        }
        k->pair_rows((to - from) / 2, dim, group->rows + (size_t)from * dim,
                     group->columns + from * sl_r16_bf16_tile_bytes(1),
                     sl_r16_bf16_tile_bytes(group->n_entries));
    }
}

static void hide(float *scores, size_t stride, uint32_t first, uint32_t end)
{
    for (uint32_t n = first; n < end; n++)
        for (uint32_t h = 0; h < SL_R16_ROWS; h++)
            scores[n * stride + h] = SL_SCORE_ABSENT;
}

/* Undoes the rotation of one head's output and puts it where the output projection reads it. */
static void finish_head(const struct work *in, uint32_t token, uint32_t head, float *out)
{
    const struct sl_config *c = in->step->config;
    const struct sl_kernels *k = in->step->compute->kernels;
    const enum sl_rope_kind kind = sl_rope_kind_of(in->run->weights->ratio);
    const struct sl_act_buffer *o = in->run->o;
    const uint32_t pairs = c->qk_rope_head_dim / 2;
    size_t at = (size_t)(token - in->run->first) * heads_dim(c) + (size_t)head * c->head_dim;

    k->rotate(pairs, out + c->head_dim - 2 * pairs, in->step->cosine[kind] + (size_t)token * pairs,
              in->step->sine[kind] + (size_t)token * pairs, -1.0f);
    memcpy(o->f32 + at, out, c->head_dim * sizeof(float));
    if (o->bf16)
        k->to_bf16(c->head_dim, out, o->bf16 + at);
}

/* Attending with a bundle is four pieces of work, each of which can be cut into parts that do not
 * depend on each other: entries, tiles, channels, heads. */

/* Scores of entries first to end. */
static void score(const struct work *in, const struct bundle *bundle, uint32_t first, uint32_t end)
{
    const struct sl_config *c = in->step->config;
    const size_t row = bundle->group->first - in->run->first,
                 stride = bundle->n_tiles * SL_R16_ROWS;

    if (first < end)
        in->step->compute->kernels->matmul_bf16(
            bundle->n_tiles, c->head_dim, end - first,
            in->run->q_tiles + row * sl_attend_tile_bytes(c) +
                bundle->first_tile * sl_r16_bf16_tile_bytes(c->head_dim),
            bundle->group->rows + (size_t)first * c->head_dim, c->head_dim,
            bundle->scores + first * stride, stride);
}

/* Scores become weights; entries that tile i's query does not see get none. */
static void weigh(const struct work *in, const struct bundle *bundle, uint32_t i)
{
    const struct sl_config *c = in->step->config;
    const struct group *group = bundle->group;
    const uint32_t tiles = head_tiles(c), tile = bundle->first_tile + i;
    const size_t stride = bundle->n_tiles * SL_R16_ROWS;
    struct sight sight = sight_of(in, group, group->first + tile / tiles);
    float *scores = bundle->scores + i * SL_R16_ROWS;

    hide(scores, stride, 0, sight.window_first);
    hide(scores, stride, sight.window_end, group->window_slots);
    hide(scores, stride, group->window_slots + sight.n_compressed, group->n_entries);
    in->step->compute->kernels->attend_softmax(
        group->n_entries, scores, stride, 1.0f / sqrtf((float)c->head_dim),
        in->run->weights->attn_sink + tile % tiles * SL_R16_ROWS,
        bundle->p + (size_t)i * SL_R16_ROWS * group->n_entries, group->n_entries,
        bundle->total + i * SL_R16_ROWS);
}

/* Weighted sums of the entries' channels 16 * first to 16 * end. */
static void sum(const struct work *in, const struct bundle *bundle, uint32_t first, uint32_t end)
{
    const size_t n_entries = bundle->group->n_entries;

    if (first < end)
        in->step->compute->kernels->matmul_bf16(
            end - first, n_entries, bundle->n_tiles * SL_R16_ROWS,
            bundle->group->columns + first * sl_r16_bf16_tile_bytes(n_entries), bundle->p,
            n_entries, bundle->sums + first * SL_R16_ROWS,
            sl_r16_padded_rows(in->step->config->head_dim));
}

static void finish(const struct work *in, const struct bundle *bundle, uint32_t i)
{
    const struct sl_config *c = in->step->config;
    const uint32_t tiles = head_tiles(c), tile = bundle->first_tile + i;

    for (uint32_t h = 0; h < SL_R16_ROWS; h++) {
        uint32_t head = tile % tiles * SL_R16_ROWS + h, row = i * SL_R16_ROWS + h;
        float *out = bundle->sums + row * sl_r16_padded_rows(c->head_dim);

        if (head >= c->num_attention_heads)
            return;
        for (uint32_t d = 0; d < c->head_dim; d++)
            out[d] = out[d] / bundle->total[row];
        finish_head(in, bundle->group->first + tile / tiles, head, out);
    }
}

/* Items are the tiles of all groups' queries; a thread attends with several at once. */
static void attend(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct work *in = context;
    struct bundle *bundle = &in->a->bundles[thread_index];

    while (first < end) {
        uint32_t g = group_of(in->attend_items, first);
        size_t n = in->attend_items[g + 1] - first;

        n = n < end - first ? n : end - first;
        n = n < TILES_AT_ONCE ? n : TILES_AT_ONCE;
        bundle->group = &in->a->groups[g];
        bundle->first_tile = (uint32_t)first - in->attend_items[g];
        bundle->n_tiles = (uint32_t)n;
        score(in, bundle, 0, bundle->group->n_entries);
        for (uint32_t i = 0; i < n; i++)
            weigh(in, bundle, i);
        sum(in, bundle, 0, (uint32_t)sl_r16_tile_count(in->step->config->head_dim));
        for (uint32_t i = 0; i < n; i++)
            finish(in, bundle, i);
        first += n;
    }
}

/* All threads work together on each bundle, a piece of work at a time: where there are
 * fewer tiles than threads. Items are (bundle, part), and (bundle, tile). */
static void score_part(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct work *in = context;

    (void)thread_index;
    for (size_t item = first; item < end; item++) {
        const struct bundle *bundle = &in->a->bundles[item / in->n_parts];
        uint32_t n = bundle->group->n_entries, part = (uint32_t)(item % in->n_parts);

        score(in, bundle, n * part / in->n_parts, n * (part + 1) / in->n_parts);
    }
}

static void sum_part(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct work *in = context;
    const uint32_t n = (uint32_t)sl_r16_tile_count(in->step->config->head_dim);

    (void)thread_index;
    for (size_t item = first; item < end; item++) {
        uint32_t part = (uint32_t)(item % in->n_parts);

        sum(in, &in->a->bundles[item / in->n_parts], n * part / in->n_parts,
            n * (part + 1) / in->n_parts);
    }
}

static void weigh_tile(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct work *in = context;

    (void)thread_index;
    for (size_t item = first; item < end; item++) {
        const struct bundle *bundle = &in->a->bundles[item / TILES_AT_ONCE];

        if (item % TILES_AT_ONCE < bundle->n_tiles)
            weigh(in, bundle, (uint32_t)(item % TILES_AT_ONCE));
    }
}

static void finish_tile(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct work *in = context;

    (void)thread_index;
    for (size_t item = first; item < end; item++) {
        const struct bundle *bundle = &in->a->bundles[item / TILES_AT_ONCE];

        if (item % TILES_AT_ONCE < bundle->n_tiles)
            finish(in, bundle, (uint32_t)(item % TILES_AT_ONCE));
    }
}

static void attend_together(struct work *in)
{
    struct sl_pool *pool = in->step->compute->pool;

    in->n_bundles = 0;
    in->n_parts = sl_pool_thread_count(pool);
    for (uint32_t g = 0; g < in->n_groups; g++) {
        uint32_t tiles = in->attend_items[g + 1] - in->attend_items[g];

        for (uint32_t tile = 0; tile < tiles; tile += TILES_AT_ONCE) {
            struct bundle *bundle = &in->a->bundles[in->n_bundles++];

            bundle->group = &in->a->groups[g];
            bundle->first_tile = tile;
            bundle->n_tiles = tiles - tile < TILES_AT_ONCE ? tiles - tile : TILES_AT_ONCE;
        }
    }
    sl_pool_run(pool, SL_PHASE_ATTENTION, (size_t)in->n_bundles * in->n_parts, 1, score_part, in);
    sl_pool_run(pool, SL_PHASE_ATTENTION, (size_t)in->n_bundles * TILES_AT_ONCE, 1, weigh_tile, in);
    sl_pool_run(pool, SL_PHASE_ATTENTION, (size_t)in->n_bundles * in->n_parts, 1, sum_part, in);
    sl_pool_run(pool, SL_PHASE_ATTENTION, (size_t)in->n_bundles * TILES_AT_ONCE, 1, finish_tile,
                in);
}

/* ---- exact -------------------------------------------------------------------------------------
 */

/* Items are (row, head); the groups are those of a few rows at a time. */
static void attend_exact(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct work *in = context;
    const struct sl_config *c = in->step->config;
    const struct bundle *own = &in->a->bundles[thread_index];
    const uint32_t heads = head_tiles(c) * SL_R16_ROWS;
    float out[4096]; /* config.c bounds head_dim */

    for (size_t item = first * SL_R16_ROWS; item < end * SL_R16_ROWS; item++) {
        uint32_t g = group_of(in->attend_items, item / SL_R16_ROWS);
        const struct group *group = &in->a->groups[g];
        uint32_t at = (uint32_t)(item - (size_t)in->attend_items[g] * SL_R16_ROWS);
        uint32_t token = group->first + at / heads, head = at % heads, n = 0;
        struct sight sight = sight_of(in, group, token);

        if (head >= c->num_attention_heads)
            continue;
        for (uint32_t e = sight.window_first; e < sight.window_end; e++)
            own->exact_entries[n++] = (const float *)(const void *)entry_at(in, group, e);
        for (uint32_t e = 0; e < sight.n_compressed; e++)
            own->exact_entries[n++] =
                (const float *)(const void *)entry_at(in, group, group->window_slots + e);
        sl_exact_attend(c->head_dim, n,
                        in->run->q + (token - in->run->first) * sl_r16_padded_rows(heads_dim(c)) +
                            (size_t)head * c->head_dim,
                        own->exact_entries, in->run->weights->attn_sink[head], own->exact_p, out);
        finish_head(in, token, head, out);
    }
}

void sl_attend_run(struct sl_attend *a, const struct sl_step *step, const struct sl_attend_run *run)
{
    struct work in = {.a = a, .step = step, .run = run};
    struct sl_pool *pool = step->compute->pool;

    for (uint32_t next = run->first; next < run->end;) {
        next = set_up_groups(&in, next);
        select_entries(&in);
        if (step->compute->numerics == SL_NUMERICS_EXACT) {
            sl_pool_run(pool, SL_PHASE_ATTENTION, in.attend_items[in.n_groups], 1, attend_exact,
                        &in);
            sl_compute_background(step->compute);
            continue;
        }
        for (uint32_t g = 0; g < in.n_groups; g++)
            sl_pool_count(pool, SL_PHASE_ATTENTION,
                          (uint64_t)a->groups[g].n_entries * a->entry_bytes,
                          2 * (uint64_t)a->groups[g].n_entries * a->groups[g].n_queries *
                              heads_dim(step->config));
        sl_pool_run(pool, SL_PHASE_ATTENTION, in.gather_items[in.n_groups], 1, gather, &in);
        sl_compute_background(step->compute);
        if (in.attend_items[in.n_groups] < sl_pool_thread_count(pool))
            attend_together(&in);
        else
            sl_pool_run(pool, SL_PHASE_ATTENTION, in.attend_items[in.n_groups], 1, attend, &in);
        sl_compute_background(step->compute);
    }
}
