#include "core/model/indexer.h"

#include <math.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/kernels/formats.h"
#include "core/model/exact.h"

/* Keys scored at a time by one thread: their scores for all heads stay in the second-level cache.
 */
#define KEYS_AT_ONCE SL_KV_KEYS_TOGETHER

/* Ranges that a query's entries are cut into, where threads share the choice: as long as each has
 * several times what is chosen. */
#define RANGES_MAX 16u
#define RANGE_TIMES 4u

#define BLOCKS_MAX 32u /* config.c bounds index_head_dim by 1,024 */

struct query_slot {
    float *q;       /* exact: (index_n_heads, index_head_dim) */
    int8_t *q_int8; /* native: (index_n_heads, key_cols), twice the FP4 values */
    float *q_scale; /* native: (index_n_heads, key_cols / 32) */
    float *weights; /* (index_n_heads), scaled */
    float *scores;  /* (entries_max rounded up to 16) */

    /* The best of each range of the entries, range after range: (RANGES_MAX * index_topk). */
    uint32_t *best;
    float *best_scores;
};

struct sl_indexer {
    uint32_t queries_max;
    struct query_slot *slots; /* (queries_max) */
    float **rotated;          /* per thread (index_head_dim) */
    uint8_t **codes;          /* per thread (index_head_dim) */
};

struct sl_indexer *sl_indexer_carve(struct sl_arena *arena, const struct sl_config *config,
                                    enum sl_numerics numerics, uint32_t n_threads,
                                    uint32_t queries_max, uint64_t entries_max)
{
    struct sl_indexer *indexer = sl_arena_take(arena, 1, sizeof(*indexer));
    struct query_slot *slots = sl_arena_take(arena, queries_max, sizeof(*slots));
    float **rotated = sl_arena_take(arena, n_threads, sizeof(*rotated));
    uint8_t **codes = sl_arena_take(arena, n_threads, sizeof(*codes));
    const uint64_t heads = config->index_n_heads, cols = sl_index_key_cols(config);

    for (uint32_t i = 0; i < queries_max; i++) {
        struct query_slot slot = {0};

        if (numerics == SL_NUMERICS_EXACT) {
            slot.q = sl_arena_take(arena, heads * config->index_head_dim, sizeof(float));
        } else {
            slot.q_int8 = sl_arena_take(arena, heads * cols, 1);
            slot.q_scale = sl_arena_take(arena, heads * (cols / SL_FP4_BLOCK_COLS), sizeof(float));
        }
        slot.weights = sl_arena_take(arena, heads, sizeof(float));
        slot.scores = sl_arena_take(arena, sl_r16_padded_rows(entries_max), sizeof(float));
        slot.best =
            sl_arena_take(arena, (uint64_t)RANGES_MAX * config->index_topk, sizeof(*slot.best));
        slot.best_scores =
            sl_arena_take(arena, (uint64_t)RANGES_MAX * config->index_topk, sizeof(float));
        if (slots)
            slots[i] = slot;
    }
    for (uint32_t i = 0; i < n_threads; i++) {
        float *vector = sl_arena_take(arena, config->index_head_dim, sizeof(float));
        uint8_t *bytes = sl_arena_take(arena, config->index_head_dim, 1);

        if (slots) {
            rotated[i] = vector;
            codes[i] = bytes;
        }
    }
    if (indexer)
        *indexer = (struct sl_indexer){queries_max, slots, rotated, codes};
    return indexer;
}

void sl_indexer_store_key(const struct sl_step *step, struct sl_kv_cache *kv, uint32_t layer_index,
                          uint32_t entry_index, float *pooled)
{
    const struct sl_config *config = step->config;
    const struct sl_kernels *k = step->compute->kernels;
    const uint32_t dim = config->index_head_dim, lane = entry_index % SL_R16_ROWS;
    const uint32_t cols = sl_index_key_cols(config);
    uint8_t *tile = sl_kv_key_tile(kv, layer_index, entry_index);
    uint8_t codes[SL_FP4_BLOCK_COLS], scale_byte;

    k->hadamard(dim, pooled);
    if (step->compute->numerics == SL_NUMERICS_EXACT) {
        memcpy((float *)(void *)tile + lane * dim, pooled, dim * sizeof(float));
        return;
    }
    for (uint32_t col = 0; col < cols; col += SL_FP4_BLOCK_COLS) { /* as sl_r16_pack_fp4() does */
        uint8_t *group = tile + col / SL_FP4_GROUP_COLS * SL_FP4_GROUP_BYTES;
        uint32_t in_group = col % SL_FP4_GROUP_COLS;

        memset(codes, 0, sizeof(codes)); /* columns beyond dim pad the key */
        scale_byte = 0;
        if (col < dim)
            k->index_encode(SL_FP4_BLOCK_COLS, pooled + col, codes, &scale_byte);
        group[in_group / SL_FP4_BLOCK_COLS * SL_R16_ROWS + lane] = scale_byte;
        for (uint32_t i = 0; i < SL_FP4_BLOCK_COLS; i += 2)
            group[64 + (in_group + i) / 8 * 64 + lane * 4 + i % 8 / 2] =
                (uint8_t)(codes[i] | codes[i + 1] << 4);
    }
}

/* ---- scores ------------------------------------------------------------------------------------
 */

/* Where the scales of a head's blocks differ by few powers of two, gives them the smallest one, and
 * the codes what that takes: the same values, and index_scores multiplies less. A code is 12 at
 * most. */
#define SHIFT_MAX 3

static void share_scale(uint32_t n_blocks, const uint8_t *scale_bytes, int8_t *q, float *q_scale)
{
    int least = 255, most = 0;

    for (uint32_t b = 0; b < n_blocks; b++) {
        if (scale_bytes[b] == 0) /* all its codes are zero */
            continue;
        least = scale_bytes[b] < least ? scale_bytes[b] : least;
        most = scale_bytes[b] > most ? scale_bytes[b] : most;
    }
    if (most == 0 || most - least > SHIFT_MAX)
        return;
    for (uint32_t b = 0; b < n_blocks; b++, q += SL_FP4_BLOCK_COLS) {
        q_scale[b] = 0.5f * sl_f32_from_bits((uint32_t)least << 23);
        for (uint32_t i = 0; scale_bytes[b] > least && i < SL_FP4_BLOCK_COLS; i++)
            q[i] = (int8_t)(q[i] * (1 << (scale_bytes[b] - least)));
    }
}

/* Rotates, transforms and rounds one head of a query. */
static void prepare_head(const struct sl_indexer *indexer, const struct sl_step *step,
                         const struct sl_index_query *query, const struct query_slot *slot,
                         uint32_t head, uint32_t thread_index)
{
    const struct sl_config *config = step->config;
    const struct sl_kernels *k = step->compute->kernels;
    const uint32_t heads = config->index_n_heads, dim = config->index_head_dim;
    const uint32_t cols = sl_index_key_cols(config), pairs = config->qk_rope_head_dim / 2;
    const float scale = 1.0f / sqrtf((float)dim) / sqrtf((float)heads);
    const uint32_t n_blocks = cols / SL_FP4_BLOCK_COLS;
    float *x = indexer->rotated[thread_index], *q_scale = slot->q_scale + (size_t)head * n_blocks;
    uint8_t *codes = indexer->codes[thread_index], scale_bytes[BLOCKS_MAX];
    int8_t *q = slot->q_int8 + (size_t)head * cols;

    memcpy(x, query->q + (size_t)head * dim, dim * sizeof(float));
    k->rotate(pairs, x + dim - 2 * pairs,
              step->cosine[SL_ROPE_COMPRESSED] + (size_t)query->token * pairs,
              step->sine[SL_ROPE_COMPRESSED] + (size_t)query->token * pairs, 1.0f);
    k->hadamard(dim, x);
    slot->weights[head] = query->weights[head] * scale;
    if (step->compute->numerics == SL_NUMERICS_EXACT) {
        memcpy(slot->q + (size_t)head * dim, x, dim * sizeof(float));
        return;
    }
    memset(q, 0, cols);
    memset(scale_bytes, 0, sizeof(scale_bytes));
    k->index_encode(dim, x, codes, scale_bytes);
    for (uint32_t i = 0; i < dim; i++) /* quantise_int8()'s order */
        q[i / 8 * 8 + i % 8 / 2 + i % 2 * 4] = (int8_t)sl_e2m1_twice(codes[i]);
    for (uint32_t b = 0; b < n_blocks; b++)
        q_scale[b] = 0.5f * sl_f32_from_bits((uint32_t)scale_bytes[b] << 23);
    share_scale(n_blocks, scale_bytes, q, q_scale);
}

static uint32_t part_count(const struct sl_index_query *query)
{
    return (query->n_visible + KEYS_AT_ONCE - 1) / KEYS_AT_ONCE;
}

/* Scores part `part` of the keys that a query sees. */
static void score_part(const struct sl_step *step, uint32_t layer_index,
                       const struct sl_index_query *query, const struct query_slot *slot,
                       uint32_t part)
{
    const struct sl_config *config = step->config;
    const struct sl_kernels *k = step->compute->kernels;
    const uint32_t heads = config->index_n_heads, from = part * KEYS_AT_ONCE;
    const uint32_t left = query->n_visible - from, n = left < KEYS_AT_ONCE ? left : KEYS_AT_ONCE;
    const uint8_t *tiles = sl_kv_key_tile(step->tokens[query->token].kv, layer_index, from);

    if (step->compute->numerics == SL_NUMERICS_EXACT) {
        sl_exact_index_scores(heads, config->index_head_dim, n, slot->q, slot->weights,
                              (const float *)(const void *)tiles, slot->scores + from);
        return;
    }
    k->index_scores(sl_r16_tile_count(n), sl_index_key_cols(config), heads, tiles, slot->q_int8,
                    slot->q_scale, slot->weights, slot->scores + from);
}

/* ---- choice ------------------------------------------------------------------------------------
 */

/* Unsigned integers in the order of the floats. No score is -0: sums start at +0. */
static uint32_t ordered(float score)
{
    return (uint32_t)sl_f32_order(score) ^ 0x80000000u;
}

/* The float whose place in the order that is. */
static float at_order(uint32_t key)
{
    return sl_f32_from_bits(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

/* The k-th highest of n scores. *ret_ties: how many equal to it belong to the k. */
static uint32_t kth_highest(const float *scores, uint32_t n, uint32_t k, uint32_t *ret_ties)
{
    uint32_t prefix = 0;

    /* Radix search, a byte at a time: k of those that share the prefix so far are to be taken. */
    for (int shift = 24; shift >= 0; shift -= 8) {
        uint32_t counts[256] = {0}, digit = 255;

        for (uint32_t i = 0; i < n; i++) {
            uint32_t key = ordered(scores[i]);

            if (shift == 24 || key >> (shift + 8) == prefix >> (shift + 8))
                counts[key >> shift & 255]++;
        }
        while (counts[digit] < k)
            k -= counts[digit--];
        prefix |= digit << shift;
    }
    *ret_ties = k;
    return prefix;
}

/* Every so many scores, or fewer of very many, are a sample of them. */
#define SAMPLE_STEP 64u

/* The sample, and after it the scores above the floor, which are looked at alone if they are not
 * too many. */
#define ABOVE_MAX 3584u

/* A bound that most scores lie below, but not the k highest, unless the sample misled. 0 where it
 * would not pay. sample (ABOVE_MAX) is room to work in. */
static uint32_t sampled_floor(const float *scores, uint32_t n, uint32_t k, float *sample)
{
    const uint32_t n_sample = n / SAMPLE_STEP < ABOVE_MAX ? n / SAMPLE_STEP : ABOVE_MAX;
    const uint32_t step = n_sample ? n / n_sample : 1, rank = k / step + 20;
    uint32_t ties;

    if (n_sample < 4 * rank)
        return 0;
    for (uint32_t i = 0; i < n_sample; i++)
        sample[i] = scores[(size_t)i * step];
    return kth_highest(sample, n_sample, rank, &ties);
}

/* The k highest of the scores at `places` (ascending, n of them), or with NULL of all. */
static void take_top(const float *scores, const uint32_t *places, uint32_t n, uint32_t k,
                     uint32_t lowest, uint32_t ties, uint32_t *ret_chosen)
{
    uint32_t n_chosen = 0;

    for (uint32_t i = 0; i < n && n_chosen < k; i++) {
        uint32_t key = ordered(scores[i]);

        if (key > lowest || (key == lowest && ties > 0)) {
            ties -= key == lowest;
            ret_chosen[n_chosen++] = places ? places[i] : i;
        }
    }
    sl_assert(n_chosen == k);
}

void sl_select_top(const struct sl_kernels *kernels, const float *scores, uint32_t n, uint32_t k,
                   uint32_t *ret_chosen)
{
    uint32_t lowest, ties, places[ABOVE_MAX], n_above = 0;
    float above[ABOVE_MAX];
    const uint32_t floor = sampled_floor(scores, n, k, above);

    sl_assert(k >= 1 && k <= n);
    if (floor > 0)
        n_above =
            (uint32_t)kernels->find_scores(n, scores, at_order(floor), ABOVE_MAX, places, above);
    if (n_above >= k && n_above < ABOVE_MAX) {
        lowest = kth_highest(above, n_above, k, &ties);
        take_top(above, places, n_above, k, lowest, ties, ret_chosen);
    } else {
        lowest = kth_highest(scores, n, k, &ties);
        take_top(scores, NULL, n, k, lowest, ties, ret_chosen);
    }
}

/* ---- queries -----------------------------------------------------------------------------------
 */

void sl_indexer_count(const struct sl_step *step, uint32_t n_visible)
{
    const uint32_t cols = sl_index_key_cols(step->config);

    sl_pool_count(step->compute->pool, SL_PHASE_INDEXER,
                  sl_r16_tile_count(n_visible) * sl_r16_fp4_tile_bytes(cols),
                  (uint64_t)n_visible * cols * step->config->index_n_heads);
}

void sl_indexer_select_alone(struct sl_indexer *indexer, const struct sl_step *step,
                             uint32_t layer_index, const struct sl_index_query *query,
                             uint32_t thread_index)
{
    const struct query_slot *slot = &indexer->slots[thread_index];

    sl_assert(thread_index < indexer->queries_max);
    for (uint32_t h = 0; h < step->config->index_n_heads; h++)
        prepare_head(indexer, step, query, slot, h, thread_index);
    for (uint32_t part = 0; part < part_count(query); part++)
        score_part(step, layer_index, query, slot, part);
    sl_select_top(step->compute->kernels, slot->scores, query->n_visible, step->config->index_topk,
                  query->ret_chosen);
}

/* Several queries that all threads share. */
struct select {
    struct sl_indexer *indexer;
    const struct sl_step *step;
    uint32_t layer_index;
    const struct sl_index_query *queries;
    uint32_t n_queries;
    uint32_t n_ranges; /* of each query that is long enough; 1: the choice is one thread's */
};

static uint32_t range_count(const struct select *in, const struct sl_index_query *query)
{
    const uint32_t most = query->n_visible / (RANGE_TIMES * in->step->config->index_topk);

    return most < 2 ? 1 : most < in->n_ranges ? most : in->n_ranges;
}

/* Items are (query, head). */
static void prepare_heads(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct select *in = context;
    const uint32_t heads = in->step->config->index_n_heads;

    for (size_t item = first; item < end; item++)
        prepare_head(in->indexer, in->step, &in->queries[item / heads],
                     &in->indexer->slots[item / heads], (uint32_t)(item % heads), thread_index);
}

/* Items are the parts of all queries' keys, one query's after the other's. */
static void score_parts(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct select *in = context;
    size_t before = 0;

    (void)thread_index;
    for (uint32_t i = 0; i < in->n_queries && before < end; i++) {
        const size_t n = part_count(&in->queries[i]);

        for (size_t part = before < first ? first - before : 0; part < n && before + part < end;
             part++)
            score_part(in->step, in->layer_index, &in->queries[i], &in->indexer->slots[i],
                       (uint32_t)part);
        before += n;
    }
}

/* Chooses in each range as if it were all: the best of all are among these, in the same order.
 * Items are (query, range). */
static void choose_in_ranges(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct select *in = context;
    const struct sl_kernels *kernels = in->step->compute->kernels;
    const uint32_t k = in->step->config->index_topk;

    (void)thread_index;
    for (size_t item = first; item < end; item++) {
        const struct sl_index_query *query = &in->queries[item / in->n_ranges];
        const struct query_slot *slot = &in->indexer->slots[item / in->n_ranges];
        const uint32_t n = range_count(in, query), range = (uint32_t)(item % in->n_ranges);
        const uint32_t from = (uint32_t)((uint64_t)query->n_visible * range / n);
        const uint32_t to = (uint32_t)((uint64_t)query->n_visible * (range + 1) / n);
        uint32_t *best = slot->best + (size_t)range * k;

        if (n == 1 || range >= n)
            continue;
        sl_select_top(kernels, slot->scores + from, to - from, k, best);
        for (uint32_t i = 0; i < k; i++) {
            best[i] += from;
            slot->best_scores[(size_t)range * k + i] = slot->scores[best[i]];
        }
    }
}

/* Items are queries. */
static void choose(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct select *in = context;
    const struct sl_kernels *kernels = in->step->compute->kernels;
    const uint32_t k = in->step->config->index_topk;

    (void)thread_index;
    for (size_t i = first; i < end; i++) {
        const struct sl_index_query *query = &in->queries[i];
        const struct query_slot *slot = &in->indexer->slots[i];
        const uint32_t n = range_count(in, query);

        if (n == 1) {
            sl_select_top(kernels, slot->scores, query->n_visible, k, query->ret_chosen);
            continue;
        }
        sl_select_top(kernels, slot->best_scores, n * k, k, query->ret_chosen);
        for (uint32_t c = 0; c < k; c++)
            query->ret_chosen[c] = slot->best[query->ret_chosen[c]];
    }
}

void sl_indexer_select(struct sl_indexer *indexer, const struct sl_step *step, uint32_t layer_index,
                       const struct sl_index_query *queries, uint32_t n_queries)
{
    struct sl_pool *pool = step->compute->pool;
    const uint32_t n_ranges = sl_pool_thread_count(pool) / n_queries;
    struct select in = {indexer, step, layer_index, queries, n_queries, 1};
    size_t n_parts = 0;

    sl_assert(n_queries <= indexer->queries_max);
    if (n_ranges > 1)
        in.n_ranges = n_ranges < RANGES_MAX ? n_ranges : RANGES_MAX;
    for (uint32_t i = 0; i < n_queries; i++)
        n_parts += part_count(&queries[i]);
    sl_pool_run(pool, SL_PHASE_INDEXER, (size_t)n_queries * step->config->index_n_heads, 8,
                prepare_heads, &in);
    sl_pool_run(pool, SL_PHASE_INDEXER, n_parts, 1, score_parts, &in);
    sl_compute_background(step->compute);
    if (in.n_ranges > 1)
        sl_pool_run(pool, SL_PHASE_INDEXER, (size_t)n_queries * in.n_ranges, 1, choose_in_ranges,
                    &in);
    sl_pool_run(pool, SL_PHASE_INDEXER, n_queries, 1, choose, &in);
    sl_compute_background(step->compute);
}
