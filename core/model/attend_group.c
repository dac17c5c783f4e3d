/* Which entries a group sees, where they are stored, and the arithmetic of attention over them. */
#include "core/model/attend_group.h"

#include <math.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/model/exact.h"

#define ENTRIES_AT_ONCE 64u /* decoded, scored and turned while they are in the cache */

/* Tiles of a bundle whose scores lie side by side, entry after entry; behind them those of the next
 * ones. With eight a tile's own are so far apart that softmax took a third longer. */
#define TILES_SIDE_BY_SIDE 4u

static bool is_exact(const struct sl_attend_run *in)
{
    return in->step->compute->numerics == SL_NUMERICS_EXACT;
}

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

static uint32_t whole_blocks(uint32_t n)
{
    return (n + SL_ATTEND_BLOCK_ENTRIES - 1) / SL_ATTEND_BLOCK_ENTRIES * SL_ATTEND_BLOCK_ENTRIES;
}

/* ---- memory ------------------------------------------------------------------------------------
 */

uint32_t sl_attend_entries_max(const struct sl_config *c, uint32_t context_max)
{
    uint32_t most = 0;

    for (uint32_t i = 0; i < c->num_hidden_layers + c->num_nextn_predict_layers; i++) {
        uint32_t ratio = c->compress_ratios[i], n = ratio ? context_max / ratio : 0;

        if (ratio == SL_CSA_RATIO && n > c->index_topk)
            n = c->index_topk;
        most = n > most ? n : most;
    }
    return whole_blocks(SL_ATTEND_BLOCK_ENTRIES - 1 + c->sliding_window + SL_ATTEND_QUERIES_MAX) +
           whole_blocks(most);
}

struct sl_attend_bundle sl_attend_bundle_carve(struct sl_arena *arena, const struct sl_config *c,
                                               enum sl_numerics numerics, uint32_t entries_max)
{
    const uint64_t heads = SL_ATTEND_TILES_AT_ONCE * SL_R16_ROWS;
    struct sl_attend_bundle bundle = {0};

    if (numerics == SL_NUMERICS_EXACT) {
        bundle.exact_p = sl_arena_take(arena, entries_max, sizeof(double));
        bundle.exact_entries = sl_arena_take(arena, entries_max, sizeof(float *));
    } else {
        bundle.scores = sl_arena_take(arena, entries_max * heads, sizeof(float));
        bundle.p = sl_arena_take(arena, entries_max * heads, sizeof(uint16_t));
        bundle.sums = sl_arena_take(arena, heads * sl_r16_padded_rows(c->head_dim), sizeof(float));
        bundle.total = sl_arena_take(arena, heads, sizeof(float));
    }
    return bundle;
}

/* ---- groups ------------------------------------------------------------------------------------
 */

uint32_t sl_attend_visible(const struct sl_step *step, const struct sl_layer_weights *weights,
                           uint32_t i)
{
    return weights->ratio ? (step->tokens[i].position + 1) / weights->ratio : 0;
}

bool sl_attend_is_selected(const struct sl_step *step, const struct sl_layer_weights *weights,
                           uint32_t i)
{
    return weights->ratio == SL_CSA_RATIO &&
           sl_attend_visible(step, weights, i) > step->config->index_topk;
}

/* First position in the window of token i, which is one of the window itself. The tokens of a block
 * all have the window that is before it. */
static uint32_t window_start(const struct sl_step *step, uint32_t i)
{
    const uint32_t window = step->config->sliding_window, first = step->tokens[i].sees_first;
    const uint32_t end = step->block_tokens ? step->tokens[step->tokens[i].span_first].position
                                            : step->tokens[i].position + 1;

    return end > window && end - window > first ? end - window : first;
}

/* First position behind what token i sees. */
static uint32_t window_end(const struct sl_step *step, uint32_t i)
{
    if (step->block_tokens)
        return step->tokens[step->tokens[i].span_first].position + step->block_tokens;
    return step->tokens[i].position + 1;
}

struct sl_attend_group sl_attend_group_from(const struct sl_attend_run *run, uint32_t first)
{
    const struct sl_step *step = run->step;
    const struct sl_step_token *tokens = step->tokens;
    struct sl_attend_group group = {
        .first = first,
        .window_first =
            window_start(step, first) / SL_ATTEND_BLOCK_ENTRIES * SL_ATTEND_BLOCK_ENTRIES,
        .selected = sl_attend_is_selected(step, run->weights, first),
    };
    uint32_t n = 1, last;

    while (!group.selected && n < SL_ATTEND_QUERIES_MAX && first + n < run->end &&
           tokens[first + n].span_first == tokens[first].span_first &&
           !sl_attend_is_selected(step, run->weights, first + n))
        n++;
    last = first + n - 1;
    group.n_queries = n;
    group.window_slots = whole_blocks(window_end(step, last) - group.window_first);
    group.n_compressed =
        group.selected ? step->config->index_topk : sl_attend_visible(step, run->weights, last);
    group.n_entries = group.window_slots + whole_blocks(group.n_compressed);
    return group;
}

uint32_t sl_attend_group_tiles(const struct sl_attend_run *run, const struct sl_attend_group *group)
{
    return group->n_queries * head_tiles(run->step->config);
}

/* Where entry n of a group is stored; NULL for padding. */
static const uint8_t *entry_at(const struct sl_attend_run *in, const struct sl_attend_group *group,
                               uint32_t n)
{
    const struct sl_step_token *last = &in->step->tokens[group->first + group->n_queries - 1];
    const uint32_t layer_index = in->layer_index;

    if (n < group->window_slots) {
        uint32_t position = group->window_first + n;
        int64_t index;

        if (position > last->position || position < window_start(in->step, group->first))
            return NULL;
        index = sl_step_index_of(in->step, group->first, position);
        return index >= 0 ? in->step_entries + (size_t)index * last->kv->pool->layout.entry_bytes
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

static struct sight sight_of(const struct sl_attend_run *in, const struct sl_attend_group *group,
                             uint32_t token)
{
    return (struct sight){
        .window_first = window_start(in->step, token) - group->window_first,
        .window_end = window_end(in->step, token) - group->window_first,
        .n_compressed =
            group->selected ? group->n_compressed : sl_attend_visible(in->step, in->weights, token),
    };
}

/* ---- native ------------------------------------------------------------------------------------
 */

static uint32_t tiles_beside(const struct sl_attend_bundle *bundle, uint32_t tile)
{
    const uint32_t left = bundle->n_tiles - tile / TILES_SIDE_BY_SIDE * TILES_SIDE_BY_SIDE;

    return left < TILES_SIDE_BY_SIDE ? left : TILES_SIDE_BY_SIDE;
}

/* Scores of an entry with a bundle's tile. */
static float *scores_at(const struct sl_attend_bundle *bundle, uint32_t tile, uint32_t entry)
{
    const uint32_t in_front = tile / TILES_SIDE_BY_SIDE * TILES_SIDE_BY_SIDE;

    return bundle->scores + ((size_t)in_front * bundle->group->n_entries +
                             (size_t)entry * tiles_beside(bundle, tile) + tile - in_front) *
                                SL_R16_ROWS;
}

/* Scores entries first to end, whose rows are `rows`. */
static void score_rows(const struct sl_attend_run *in, const struct sl_attend_bundle *bundle,
                       uint32_t first, uint32_t end, const uint16_t *rows)
{
    const struct sl_config *c = in->step->config;
    const size_t row = bundle->group->first - in->first;
    const uint8_t *q_tiles = in->q_tiles + row * sl_attend_tile_bytes(c) +
                             bundle->first_tile * sl_r16_bf16_tile_bytes(c->head_dim);

    for (uint32_t i = 0; i < bundle->n_tiles; i += TILES_SIDE_BY_SIDE) {
        const uint32_t n = tiles_beside(bundle, i);

        in->step->compute->kernels->matmul_bf16(
            n, c->head_dim, end - first, q_tiles + i * sl_r16_bf16_tile_bytes(c->head_dim), rows,
            c->head_dim, scores_at(bundle, i, first), n * SL_R16_ROWS);
    }
}

static uint32_t end_of_some(uint32_t first, uint32_t end)
{
    return end - first < ENTRIES_AT_ONCE ? end : first + ENTRIES_AT_ONCE;
}

/* Decodes entries first to end to `rows`. Chosen entries lie anywhere, so that memory is asked for
 * all of them before the first is needed: 512 of them took 187 us to gather, and 73 since. */
static void decode_some(const struct sl_attend_run *in, const struct sl_attend_group *group,
                        uint32_t first, uint32_t end, uint16_t *rows)
{
    const uint32_t dim = in->step->config->head_dim, rope_dim = in->step->config->qk_rope_head_dim;
    const size_t entry_bytes = sl_kv_entry_bytes(dim - rope_dim, rope_dim);
    const struct sl_kernels *k = in->step->compute->kernels;
    const uint8_t *entries[ENTRIES_AT_ONCE];

    for (uint32_t n = first; n < end; n++) {
        const uint8_t *entry = entry_at(in, group, n);

        entries[n - first] = entry;
        for (size_t at = 0; entry && at < entry_bytes; at += SL_CACHE_LINE_BYTES)
            __builtin_prefetch(entry + at);
    }
    for (uint32_t n = first; n < end; n++, rows += dim) {
        if (entries[n - first])
            k->kv_decode(dim - rope_dim, rope_dim, entries[n - first], rows);
        else
            memset(rows, 0, dim * sizeof(*rows));
    }
}

static void turn_some(const struct sl_attend_run *in, const struct sl_attend_group *group,
                      uint32_t first, uint32_t end, const uint16_t *rows)
{
    in->step->compute->kernels->pair_rows((end - first) / 2, in->step->config->head_dim, rows,
                                          group->columns + first * sl_r16_bf16_tile_bytes(1),
                                          sl_r16_bf16_tile_bytes(group->n_entries));
}

void sl_attend_gather(const struct sl_attend_run *run, const struct sl_attend_group *group,
                      uint32_t first, uint32_t end)
{
    for (uint32_t n = first; n < end; n = end_of_some(n, end)) {
        uint16_t *rows = group->rows + (size_t)n * run->step->config->head_dim;

        decode_some(run, group, n, end_of_some(n, end), rows);
        turn_some(run, group, n, end_of_some(n, end), rows);
    }
}

void sl_attend_gather_scored(const struct sl_attend_run *run,
                             const struct sl_attend_bundle *bundles, uint32_t n_bundles,
                             uint32_t first, uint32_t end)
{
    const struct sl_attend_group *group = bundles[0].group;
    uint16_t *rows = group->rows + (size_t)first * run->step->config->head_dim;

    for (uint32_t n = first; n < end; n = end_of_some(n, end)) {
        decode_some(run, group, n, end_of_some(n, end), rows);
        for (uint32_t i = 0; i < n_bundles; i++)
            score_rows(run, &bundles[i], n, end_of_some(n, end), rows);
        turn_some(run, group, n, end_of_some(n, end), rows);
    }
}

static void hide(float *scores, size_t stride, uint32_t first, uint32_t end)
{
    for (uint32_t n = first; n < end; n++)
        for (uint32_t h = 0; h < SL_R16_ROWS; h++)
            scores[n * stride + h] = SL_SCORE_ABSENT;
}

/* Puts one head's output, times a factor and with its rotation undone, where the output projection
 * reads it. */
static void finish_head(const struct sl_attend_run *in, uint32_t token, uint32_t head,
                        const float *out, float factor)
{
    const struct sl_config *c = in->step->config;
    const struct sl_kernels *k = in->step->compute->kernels;
    const enum sl_rope_kind kind = sl_rope_kind_of(in->weights->ratio);
    const uint32_t pairs = c->qk_rope_head_dim / 2;
    const size_t row = token - in->first, at = (size_t)head * c->head_dim;
    float *o = in->o->f32 + row * heads_dim(c) + at;

    for (uint32_t d = 0; d < c->head_dim; d++)
        o[d] = out[d] * factor;
    k->rotate(pairs, o + c->head_dim - 2 * pairs, in->step->cosine[kind] + (size_t)token * pairs,
              in->step->sine[kind] + (size_t)token * pairs, -1.0f);
    if (in->o->bf16)
        k->to_bf16(c->head_dim, o, in->o->bf16 + row * in->o->bf16_stride + at);
}

/* Scores become weights; entries that tile i's query does not see get none. */
void sl_attend_weigh(const struct sl_attend_run *in, const struct sl_attend_bundle *bundle,
                     uint32_t i)
{
    const struct sl_config *c = in->step->config;
    const struct sl_attend_group *group = bundle->group;
    const uint32_t tiles = head_tiles(c), tile = bundle->first_tile + i;
    const size_t stride = tiles_beside(bundle, i) * SL_R16_ROWS;
    struct sight sight = sight_of(in, group, group->first + tile / tiles);
    float *scores = scores_at(bundle, i, 0);

    hide(scores, stride, 0, sight.window_first);
    hide(scores, stride, sight.window_end, group->window_slots);
    hide(scores, stride, group->window_slots + sight.n_compressed, group->n_entries);
    in->step->compute->kernels->attend_softmax(
        group->n_entries, scores, stride, 1.0f / sqrtf((float)c->head_dim),
        in->weights->attn_sink + tile % tiles * SL_R16_ROWS,
        bundle->p + (size_t)i * SL_R16_ROWS * group->n_entries, group->n_entries,
        bundle->total + i * SL_R16_ROWS);
}

/* Weighted sums of the entries' channels 16 * first to 16 * end. */
void sl_attend_sum(const struct sl_attend_run *in, const struct sl_attend_bundle *bundle,
                   uint32_t first, uint32_t end)
{
    const size_t n_entries = bundle->group->n_entries;

    if (first < end)
        in->step->compute->kernels->matmul_bf16(
            end - first, n_entries, bundle->n_tiles * SL_R16_ROWS,
            bundle->group->columns + first * sl_r16_bf16_tile_bytes(n_entries), bundle->p,
            n_entries, bundle->sums + first * SL_R16_ROWS,
            sl_r16_padded_rows(in->step->config->head_dim));
}

void sl_attend_finish(const struct sl_attend_run *in, const struct sl_attend_bundle *bundle,
                      uint32_t i)
{
    const struct sl_config *c = in->step->config;
    const uint32_t tiles = head_tiles(c), tile = bundle->first_tile + i;

    for (uint32_t h = 0; h < SL_R16_ROWS; h++) {
        uint32_t head = tile % tiles * SL_R16_ROWS + h, row = i * SL_R16_ROWS + h;

        if (head >= c->num_attention_heads)
            return;
        finish_head(in, bundle->group->first + tile / tiles, head,
                    bundle->sums + row * sl_r16_padded_rows(c->head_dim),
                    1.0f / bundle->total[row]);
    }
}

/* ---- exact -------------------------------------------------------------------------------------
 */

static void attend_exact(const struct sl_attend_run *in, const struct sl_attend_group *group,
                         uint32_t tile, const struct sl_attend_bundle *room)
{
    const struct sl_config *c = in->step->config;
    const uint32_t token = group->first + tile / head_tiles(c);
    const struct sight sight = sight_of(in, group, token);
    float out[4096]; /* config.c bounds head_dim */
    uint32_t n = 0;

    for (uint32_t e = sight.window_first; e < sight.window_end; e++)
        room->exact_entries[n++] = (const float *)(const void *)entry_at(in, group, e);
    for (uint32_t e = 0; e < sight.n_compressed; e++)
        room->exact_entries[n++] =
            (const float *)(const void *)entry_at(in, group, group->window_slots + e);
    for (uint32_t h = 0; h < SL_R16_ROWS; h++) {
        const uint32_t head = tile % head_tiles(c) * SL_R16_ROWS + h;

        if (head >= c->num_attention_heads)
            return;
        sl_exact_attend(c->head_dim, n,
                        in->q + (token - in->first) * sl_r16_padded_rows(heads_dim(c)) +
                            (size_t)head * c->head_dim,
                        room->exact_entries, in->weights->attn_sink[head], room->exact_p, out);
        finish_head(in, token, head, out, 1.0f);
    }
}

/* ---- both --------------------------------------------------------------------------------------
 */

/* All but the scores. */
static void attend_scored(const struct sl_attend_run *in, const struct sl_attend_bundle *bundle)
{
    for (uint32_t i = 0; i < bundle->n_tiles; i++)
        sl_attend_weigh(in, bundle, i);
    sl_attend_sum(in, bundle, 0, (uint32_t)sl_r16_tile_count(in->step->config->head_dim));
    for (uint32_t i = 0; i < bundle->n_tiles; i++)
        sl_attend_finish(in, bundle, i);
}

static void attend_native(const struct sl_attend_run *in, const struct sl_attend_bundle *bundle)
{
    const struct sl_attend_group *group = bundle->group;

    for (uint32_t n = 0; n < group->n_entries; n = end_of_some(n, group->n_entries))
        score_rows(in, bundle, n, end_of_some(n, group->n_entries),
                   group->rows + (size_t)n * in->step->config->head_dim);
    attend_scored(in, bundle);
}

void sl_attend_tiles(const struct sl_attend_run *in, const struct sl_attend_group *group,
                     uint32_t first, uint32_t end, struct sl_attend_bundle *bundle)
{
    for (uint32_t tile = first; tile < end; tile += bundle->n_tiles) {
        bundle->group = group;
        bundle->first_tile = tile;
        if (is_exact(in)) {
            bundle->n_tiles = 1;
            attend_exact(in, group, tile, bundle);
            continue;
        }
        bundle->n_tiles =
            end - tile < SL_ATTEND_TILES_AT_ONCE ? end - tile : SL_ATTEND_TILES_AT_ONCE;
        attend_native(in, bundle);
    }
}

void sl_attend_alone(const struct sl_attend_run *in, const struct sl_attend_group *group,
                     struct sl_attend_bundle *bundle)
{
    const uint32_t n_tiles = sl_attend_group_tiles(in, group);

    if (!is_exact(in) && n_tiles <= SL_ATTEND_TILES_AT_ONCE) {
        bundle->group = group;
        bundle->first_tile = 0;
        bundle->n_tiles = n_tiles;
        sl_attend_gather_scored(in, bundle, 1, 0, group->n_entries);
        attend_scored(in, bundle);
        return;
    }
    if (!is_exact(in))
        sl_attend_gather(in, group, 0, group->n_entries);
    sl_attend_tiles(in, group, 0, n_tiles, bundle);
}
