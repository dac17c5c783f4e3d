/* A chunk of tokens at a time goes through the projections; inside it a few queries at a time
 * through indexer, gather and softmax. A query's entries are laid out once as rows (for the scores)
 * and once as R16 tiles of their transpose (for the weighted sum), so that both products are the
 * BF16 matrix kernel: heads against entries, then channels against heads. */
#include "core/model/attention.h"

#include <math.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/model/compressor.h"
#include "core/model/exact.h"
#include "core/model/hyper_connection.h"
#include "core/model/indexer.h"
#include "core/model/linear.h"

#define QUERIES_AT_ONCE_MAX 16u
#define ENTRIES_PER_ITEM 64u /* gathered by a thread at a time; even */

/* One of the queries that are gathered and attended together. */
struct query {
    uint32_t token;        /* step index */
    uint32_t row;          /* of the chunk */
    uint32_t window_first; /* position of window entry 0, even; may lie before the window */
    uint32_t window_slots; /* even; the compressed entries follow */
    uint32_t n_compressed;
    uint32_t n_entries; /* window_slots + n_compressed, rounded up to even; exact: of `exacts` */
    bool selected;      /* `chosen` holds the compressed entries, else they are 0, 1, ... */
    uint32_t *chosen;   /* (index_topk) */

    uint16_t *rows;       /* native: (n_entries, head_dim) BF16 */
    uint8_t *columns;     /* native: R16 tiles (head_dim, n_entries) BF16 */
    const float **exacts; /* exact: pointers to the entries that exist */
};

struct thread_scratch {
    float *scores; /* (entries_max, 16) */
    uint16_t *p;   /* (16, entries_max) */
    float *sums;   /* (16, head_dim rounded up to 16) */
    double *exact_p;
};

struct sl_attention {
    uint32_t n_queries_at_once;
    uint32_t entries_max; /* of one query, even */
    uint32_t entry_bytes;
    struct query queries[QUERIES_AT_ONCE_MAX];
    struct thread_scratch *threads;
    struct sl_compressor_scratch *compressors; /* per thread */
    struct sl_indexer *indexer;

    uint8_t *step_entries; /* (tokens_max) this layer's window entries of the step */
    struct sl_hc_mix mix;

    /* Activations of a chunk. */
    struct sl_act_buffer x;   /* (chunk, hidden_size) */
    struct sl_act_buffer qr;  /* (chunk, q_lora_rank) */
    struct sl_act_buffer o;   /* (chunk, heads * head_dim) */
    struct sl_act_buffer o_a; /* (chunk, o_groups * o_lora_rank) */
    float *kv, *q, *out;      /* (chunk, head_dim), (chunk, heads * head_dim), (chunk, hidden) */
    uint8_t *q_tiles;         /* native: per token R16 tiles (heads, head_dim) BF16 */
    float *compressed_kv, *compressed_score; /* (chunk, 2 * head_dim) */
    float *index_kv, *index_score;           /* (chunk, 2 * index_head_dim) */
    float *index_q, *index_weights;          /* (chunk, heads * dim), (chunk, heads) */
};

/* The step's layer at hand. */
struct run {
    struct sl_attention *a;
    const struct sl_step *step;
    const struct sl_layer_weights *weights;
    uint32_t layer_index;
    uint32_t first, end; /* the chunk */
    uint32_t n_queries;  /* of a->queries in use */
};

static uint32_t heads_dim(const struct sl_config *c)
{
    return c->num_attention_heads * c->head_dim;
}

static uint64_t query_tile_bytes(const struct sl_config *c)
{
    return sl_r16_tile_count(c->num_attention_heads) * sl_r16_bf16_tile_bytes(c->head_dim);
}

static uint32_t round_up_even(uint32_t n)
{
    return (n + 1) & ~1u;
}

/* The most entries that a query can have in any layer. */
static uint32_t entries_max(const struct sl_config *c, uint32_t context_max)
{
    uint32_t most = 0;

    for (uint32_t i = 0; i < c->num_hidden_layers + c->num_nextn_predict_layers; i++) {
        uint32_t ratio = c->compress_ratios[i], n = ratio ? context_max / ratio : 0;

        if (ratio == SL_CSA_RATIO && n > c->index_topk)
            n = c->index_topk;
        most = n > most ? n : most;
    }
    return round_up_even(c->sliding_window + 2) + round_up_even(most);
}

static void carve_queries(struct sl_attention *a, struct sl_arena *arena, const struct sl_config *c,
                          enum sl_numerics numerics)
{
    uint64_t dim_padded = sl_r16_padded_rows(c->head_dim);

    for (uint32_t i = 0; i < a->n_queries_at_once; i++) {
        struct query *query = &a->queries[i];

        query->chosen = sl_arena_take(arena, c->index_topk, sizeof(*query->chosen));
        if (numerics == SL_NUMERICS_EXACT) {
            query->exacts = sl_arena_take(arena, a->entries_max, sizeof(*query->exacts));
            continue;
        }
        query->rows = sl_arena_take(arena, (uint64_t)a->entries_max * c->head_dim, 2);
        query->columns = sl_arena_take(arena, (uint64_t)a->entries_max * dim_padded, 2);
    }
}

static void carve_threads(struct sl_attention *a, struct sl_arena *arena, const struct sl_config *c,
                          enum sl_numerics numerics, uint32_t n_threads)
{
    a->threads = sl_arena_take(arena, n_threads, sizeof(*a->threads));
    a->compressors = sl_arena_take(arena, n_threads, sizeof(*a->compressors));
    for (uint32_t i = 0; i < n_threads; i++) {
        struct sl_compressor_scratch compressor = sl_compressor_scratch_carve(arena, c);
        struct thread_scratch thread = {0};

        if (numerics == SL_NUMERICS_EXACT) {
            thread.exact_p = sl_arena_take(arena, a->entries_max, sizeof(double));
        } else {
            thread.scores =
                sl_arena_take(arena, (uint64_t)a->entries_max * SL_R16_ROWS, sizeof(float));
            thread.p = sl_arena_take(arena, (uint64_t)a->entries_max * SL_R16_ROWS, 2);
            thread.sums =
                sl_arena_take(arena, SL_R16_ROWS * sl_r16_padded_rows(c->head_dim), sizeof(float));
        }
        if (a->threads) {
            a->threads[i] = thread;
            a->compressors[i] = compressor;
        }
    }
}

static void carve_chunk(struct sl_attention *a, struct sl_arena *arena, const struct sl_config *c,
                        enum sl_numerics numerics, uint64_t chunk)
{
    a->x = sl_act_buffer_carve(arena, chunk, c->hidden_size, SL_ACT_BF16, numerics);
    a->qr = sl_act_buffer_carve(arena, chunk, c->q_lora_rank, SL_ACT_BF16, numerics);
    a->o = sl_act_buffer_carve(arena, chunk, heads_dim(c), SL_ACT_BF16, numerics);
    a->o_a = sl_act_buffer_carve(arena, chunk, c->o_groups * c->o_lora_rank, SL_ACT_BF16, numerics);
    a->kv = sl_arena_take(arena, chunk * sl_r16_padded_rows(c->head_dim), sizeof(float));
    a->q = sl_arena_take(arena, chunk * sl_r16_padded_rows(heads_dim(c)), sizeof(float));
    a->out = sl_arena_take(arena, chunk * c->hidden_size, sizeof(float));
    if (numerics != SL_NUMERICS_EXACT)
        a->q_tiles = sl_arena_take(arena, chunk, query_tile_bytes(c));
    a->compressed_kv = sl_arena_take(arena, chunk * sl_r16_padded_rows(2 * c->head_dim), 4);
    a->compressed_score = sl_arena_take(arena, chunk * sl_r16_padded_rows(2 * c->head_dim), 4);
    a->index_kv = sl_arena_take(arena, chunk * sl_r16_padded_rows(2 * c->index_head_dim), 4);
    a->index_score = sl_arena_take(arena, chunk * sl_r16_padded_rows(2 * c->index_head_dim), 4);
    a->index_q = sl_arena_take(
        arena, chunk * sl_r16_padded_rows(c->index_n_heads * c->index_head_dim), sizeof(float));
    a->index_weights =
        sl_arena_take(arena, chunk * sl_r16_padded_rows(c->index_n_heads), sizeof(float));
}

struct sl_attention *sl_attention_carve(struct sl_arena *arena, const struct sl_config *config,
                                        enum sl_numerics numerics, uint32_t n_threads,
                                        uint32_t tokens_max, uint32_t context_max)
{
    struct sl_attention *attention = sl_arena_take(arena, 1, sizeof(*attention));
    struct sl_attention a = {0};
    uint32_t chunk = tokens_max < SL_CHUNK_TOKENS ? tokens_max : SL_CHUNK_TOKENS;

    a.n_queries_at_once = n_threads < QUERIES_AT_ONCE_MAX ? n_threads : QUERIES_AT_ONCE_MAX;
    a.entries_max = entries_max(config, context_max);
    a.entry_bytes = sl_kv_cache_entry_bytes(config, numerics);
    carve_queries(&a, arena, config, numerics);
    carve_threads(&a, arena, config, numerics, n_threads);
    a.indexer = sl_indexer_carve(arena, config, numerics, n_threads, a.n_queries_at_once,
                                 config->index_n_heads ? context_max / SL_CSA_RATIO : 0);
    a.step_entries = sl_arena_take(arena, tokens_max, a.entry_bytes);
    a.mix = sl_hc_mix_carve(arena, config, chunk);
    carve_chunk(&a, arena, config, numerics, chunk);
    if (attention)
        *attention = a;
    return attention;
}

/* ---- KV entries --------------------------------------------------------------------------------
 */

static void store_entry(const struct run *in, const float *values, uint8_t *entry)
{
    const struct sl_config *c = in->step->config;

    if (in->step->compute->numerics == SL_NUMERICS_EXACT)
        memcpy(entry, values, in->a->entry_bytes);
    else
        in->step->compute->kernels->kv_encode(c->head_dim - c->qk_rope_head_dim,
                                              c->qk_rope_head_dim, values, entry);
}

static void store_compressed(void *context, uint32_t i, uint32_t entry_index, float *pooled)
{
    const struct run *in = context;
    struct sl_kv_layer *layer = &in->step->tokens[i].kv->layers[in->layer_index];

    store_entry(in, pooled, layer->entries + (size_t)entry_index * in->a->entry_bytes);
}

static void store_key(void *context, uint32_t i, uint32_t entry_index, float *pooled)
{
    const struct run *in = context;

    sl_indexer_store_key(in->step, &in->step->tokens[i].kv->layers[in->layer_index], entry_index,
                         pooled);
}

static void compress(const struct run *in)
{
    const struct sl_config *c = in->step->config;
    struct sl_compressor_run run = {
        .weights = &in->weights->compressor,
        .ratio = in->weights->ratio,
        .dim = c->head_dim,
        .layer_index = in->layer_index,
        .kv = in->a->compressed_kv,
        .score = in->a->compressed_score,
        .row_stride = sl_r16_padded_rows(in->weights->compressor.wkv.rows),
        .store = store_compressed,
        .store_context = (void *)in,
    };

    if (in->weights->ratio == 0)
        return;
    sl_pool_phase(in->step->compute->pool, SL_PHASE_COMPRESSOR);
    sl_compressor_add(in->step, &run, in->first, in->end, in->a->compressors);
    if (in->weights->ratio != SL_CSA_RATIO)
        return;
    run.weights = &in->weights->index_compressor;
    run.dim = c->index_head_dim;
    run.is_index = true;
    run.kv = in->a->index_kv;
    run.score = in->a->index_score;
    run.row_stride = sl_r16_padded_rows(in->weights->index_compressor.wkv.rows);
    run.store = store_key;
    sl_compressor_add(in->step, &run, in->first, in->end, in->a->compressors);
}

/* Norms of what the first projections gave: the query's low-rank form, and the KV entry, which is
 * rotated and stored. Items are rows of the chunk. */
static void finish_first_projections(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct run *in = context;
    const struct sl_config *c = in->step->config;
    const struct sl_kernels *k = in->step->compute->kernels;
    const enum sl_rope_kind kind = sl_rope_kind_of(in->weights->ratio);
    const uint32_t pairs = c->qk_rope_head_dim / 2;

    for (size_t row = first; row < end; row++) {
        size_t i = in->first + row;
        float *kv = in->a->kv + row * sl_r16_padded_rows(c->head_dim);
        float *qr = in->a->qr.f32 + row * c->q_lora_rank;

        k->rms_norm(c->q_lora_rank, qr, in->weights->q_norm, c->rms_norm_eps, qr);
        sl_act_buffer_round(&in->a->qr, in->step->compute, thread_index, row);
        k->rms_norm(c->head_dim, kv, in->weights->kv_norm, c->rms_norm_eps, kv);
        k->rotate(pairs, kv + c->head_dim - 2 * pairs, in->step->cosine[kind] + i * pairs,
                  in->step->sine[kind] + i * pairs, 1.0f);
        store_entry(in, kv, in->a->step_entries + i * in->a->entry_bytes);
    }
}

/* ---- queries -----------------------------------------------------------------------------------
 */

/* Per head: norm without weights, rotation, and in native the heads side by side as BF16 tiles. */
static void finish_queries(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct run *in = context;
    const struct sl_config *c = in->step->config;
    const struct sl_kernels *k = in->step->compute->kernels;
    const enum sl_rope_kind kind = sl_rope_kind_of(in->weights->ratio);
    const uint32_t pairs = c->qk_rope_head_dim / 2, dim = c->head_dim;
    uint16_t head[4096]; /* config.c bounds head_dim */

    (void)thread_index;
    for (size_t row = first; row < end; row++) {
        size_t i = in->first + row;
        float *q = in->a->q + row * sl_r16_padded_rows(heads_dim(c));

        for (uint32_t h = 0; h < c->num_attention_heads; h++, q += dim) {
            uint16_t *tile;

            k->rms_norm(dim, q, NULL, c->rms_norm_eps, q);
            k->rotate(pairs, q + dim - 2 * pairs, in->step->cosine[kind] + i * pairs,
                      in->step->sine[kind] + i * pairs, 1.0f);
            if (!in->a->q_tiles)
                continue;
            tile = (uint16_t *)(void *)(in->a->q_tiles + row * query_tile_bytes(c) +
                                        h / SL_R16_ROWS * sl_r16_bf16_tile_bytes(dim));
            k->to_bf16(dim, q, head);
            for (uint32_t d = 0; d < dim; d++)
                tile[(d / 2 * SL_R16_ROWS + h % SL_R16_ROWS) * 2 + d % 2] = head[d];
        }
    }
}

static bool chunk_needs_index(const struct run *in)
{
    if (in->weights->ratio != SL_CSA_RATIO)
        return false;
    for (uint32_t i = in->first; i < in->end; i++)
        if ((in->step->tokens[i].position + 1) / SL_CSA_RATIO > in->step->config->index_topk)
            return true;
    return false;
}

/* Takes tokens from `next` on as the queries at hand. */
static void set_up_queries(struct run *in, uint32_t next)
{
    const struct sl_config *c = in->step->config;
    struct sl_attention *a = in->a;

    in->n_queries = in->end - next < a->n_queries_at_once ? in->end - next : a->n_queries_at_once;
    for (uint32_t i = 0; i < in->n_queries; i++) {
        struct query *query = &a->queries[i];
        uint32_t position = in->step->tokens[next + i].position;
        uint32_t window = c->sliding_window;
        uint32_t visible = in->weights->ratio ? (position + 1) / in->weights->ratio : 0;

        query->token = next + i;
        query->row = next + i - in->first;
        query->window_first = (position + 1 > window ? position + 1 - window : 0) & ~1u;
        query->window_slots = round_up_even(position + 1 - query->window_first);
        query->selected = in->weights->ratio == SL_CSA_RATIO && visible > c->index_topk;
        query->n_compressed = query->selected ? c->index_topk : visible;
        query->n_entries = query->window_slots + round_up_even(query->n_compressed);
        sl_assert(query->n_entries <= a->entries_max);
    }
}

static void select_entries(const struct run *in)
{
    const struct sl_config *c = in->step->config;
    struct sl_pool *pool = in->step->compute->pool;
    struct sl_index_query queries[QUERIES_AT_ONCE_MAX];
    uint32_t n = 0;

    for (uint32_t i = 0; i < in->n_queries; i++) {
        const struct query *query = &in->a->queries[i];

        if (!query->selected)
            continue;
        queries[n++] = (struct sl_index_query){
            .token = query->token,
            .n_visible = (in->step->tokens[query->token].position + 1) / SL_CSA_RATIO,
            .q = in->a->index_q +
                 query->row * sl_r16_padded_rows(c->index_n_heads * c->index_head_dim),
            .weights = in->a->index_weights + query->row * sl_r16_padded_rows(c->index_n_heads),
            .ret_chosen = query->chosen,
        };
    }
    if (n == 0)
        return;
    sl_pool_phase(pool, SL_PHASE_INDEXER);
    sl_indexer_select(in->a->indexer, in->step, in->layer_index, queries, n);
    sl_pool_phase(pool, SL_PHASE_ATTENTION);
}

/* Where entry n of a query is stored; NULL for a gap (before the window, or padding). */
static const uint8_t *entry_at(const struct run *in, const struct query *query, uint32_t n)
{
    const struct sl_config *c = in->step->config;
    const struct sl_step_token *token = &in->step->tokens[query->token];
    const struct sl_kv_layer *layer = &token->kv->layers[in->layer_index];
    const size_t bytes = in->a->entry_bytes;

    if (n < query->window_slots) {
        uint32_t position = query->window_first + n;
        int64_t index;

        if (position > token->position || position + c->sliding_window <= token->position)
            return NULL;
        index = sl_step_index_of(in->step, query->token, position);
        return index >= 0 ? in->a->step_entries + (size_t)index * bytes
                          : layer->window + position % c->sliding_window * bytes;
    }
    n -= query->window_slots;
    if (n >= query->n_compressed)
        return NULL;
    return layer->entries + (query->selected ? query->chosen[n] : n) * bytes;
}

/* Items are (query, ENTRIES_PER_ITEM entries). */
static void gather(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct run *in = context;
    const struct sl_config *c = in->step->config;
    const uint32_t items = (in->a->entries_max + ENTRIES_PER_ITEM - 1) / ENTRIES_PER_ITEM;
    const uint32_t dim = c->head_dim;

    (void)thread_index;
    for (size_t item = first; item < end; item++) {
        const struct query *query = &in->a->queries[item / items];
        uint32_t from = (uint32_t)(item % items) * ENTRIES_PER_ITEM;
        uint32_t to =
            from + ENTRIES_PER_ITEM < query->n_entries ? from + ENTRIES_PER_ITEM : query->n_entries;

        for (uint32_t n = from; n < to; n++) {
            const uint8_t *entry = entry_at(in, query, n);
            uint16_t *row = query->rows + (size_t)n * dim;
            uint16_t *column =
                (uint16_t *)(void *)query->columns + (size_t)(n / 2) * SL_R16_ROWS * 2 + n % 2;

            if (entry)
                in->step->compute->kernels->kv_decode(dim - c->qk_rope_head_dim,
                                                      c->qk_rope_head_dim, entry, row);
            else
                memset(row, 0, dim * sizeof(*row));
            for (uint32_t d = 0; d < dim; d++) /* tile d / 16, pair n / 2, lane d % 16 */
                column[(size_t)(d / SL_R16_ROWS) * query->n_entries * SL_R16_ROWS +
                       d % SL_R16_ROWS * 2] = row[d];
        }
    }
}

/* Undoes the rotation of one head's output and puts it where the output projection reads it. */
static void finish_head(const struct run *in, const struct query *query, uint32_t head, float *out)
{
    const struct sl_config *c = in->step->config;
    const struct sl_kernels *k = in->step->compute->kernels;
    const enum sl_rope_kind kind = sl_rope_kind_of(in->weights->ratio);
    const uint32_t pairs = c->qk_rope_head_dim / 2;
    size_t at = (size_t)query->row * heads_dim(c) + (size_t)head * c->head_dim;

    k->rotate(pairs, out + c->head_dim - 2 * pairs,
              in->step->cosine[kind] + (size_t)query->token * pairs,
              in->step->sine[kind] + (size_t)query->token * pairs, -1.0f);
    memcpy(in->a->o.f32 + at, out, c->head_dim * sizeof(float));
    if (in->a->o.bf16)
        k->to_bf16(c->head_dim, out, in->a->o.bf16 + at);
}

/* Items are (query, tile of 16 heads). */
static void attend(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct run *in = context;
    const struct sl_config *c = in->step->config;
    const struct sl_kernels *k = in->step->compute->kernels;
    const struct thread_scratch *own = &in->a->threads[thread_index];
    const uint32_t tiles = (uint32_t)sl_r16_tile_count(c->num_attention_heads);
    const uint32_t dim = c->head_dim, dim_padded = (uint32_t)sl_r16_padded_rows(dim);
    float total[SL_R16_ROWS];

    for (size_t item = first; item < end; item++) {
        const struct query *query = &in->a->queries[item / tiles];
        uint32_t tile = (uint32_t)(item % tiles), head = tile * SL_R16_ROWS;
        uint32_t heads = c->num_attention_heads - head < SL_R16_ROWS ? c->num_attention_heads - head
                                                                     : SL_R16_ROWS;

        k->matmul_bf16(1, dim, query->n_entries,
                       in->a->q_tiles + query->row * query_tile_bytes(c) +
                           tile * sl_r16_bf16_tile_bytes(dim),
                       query->rows, dim, own->scores, SL_R16_ROWS);
        for (uint32_t n = 0; n < query->n_entries; n++)
            if (!entry_at(in, query, n))
                for (uint32_t h = 0; h < SL_R16_ROWS; h++)
                    own->scores[n * SL_R16_ROWS + h] = SL_SCORE_ABSENT;
        k->attend_softmax(query->n_entries, own->scores, 1.0f / sqrtf((float)dim),
                          in->weights->attn_sink + head, own->p, query->n_entries, total);
        k->matmul_bf16(dim_padded / SL_R16_ROWS, query->n_entries, heads, query->columns, own->p,
                       query->n_entries, own->sums, dim_padded);
        for (uint32_t h = 0; h < heads; h++) {
            float *out = own->sums + (size_t)h * dim_padded;

            for (uint32_t d = 0; d < dim; d++)
                out[d] = out[d] / total[h];
            finish_head(in, query, head + h, out);
        }
    }
}

/* The same in `exact`; items are (query, head). */
static void attend_exact(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct run *in = context;
    const struct sl_config *c = in->step->config;
    const uint32_t heads = c->num_attention_heads;
    float out[4096]; /* config.c bounds head_dim */

    for (size_t item = first; item < end; item++) {
        const struct query *query = &in->a->queries[item / heads];
        uint32_t head = (uint32_t)(item % heads);

        sl_exact_attend(
            c->head_dim, query->n_entries,
            in->a->q + query->row * sl_r16_padded_rows(heads_dim(c)) + (size_t)head * c->head_dim,
            query->exacts, in->weights->attn_sink[head], in->a->threads[thread_index].exact_p, out);
        finish_head(in, query, head, out);
    }
}

static void attend_queries(struct run *in)
{
    const struct sl_config *c = in->step->config;
    const struct sl_attention *a = in->a;
    struct sl_pool *pool = in->step->compute->pool;
    const uint32_t items = (in->a->entries_max + ENTRIES_PER_ITEM - 1) / ENTRIES_PER_ITEM;

    for (uint32_t next = in->first; next < in->end; next += in->n_queries) {
        set_up_queries(in, next);
        select_entries(in);
        if (in->step->compute->numerics == SL_NUMERICS_EXACT) {
            for (uint32_t i = 0; i < in->n_queries; i++) {
                struct query *query = &in->a->queries[i];
                uint32_t n = 0;

                for (uint32_t e = 0; e < query->n_entries; e++) {
                    const uint8_t *entry = entry_at(in, query, e);

                    if (entry)
                        query->exacts[n++] = (const float *)(const void *)entry;
                }
                query->n_entries = n;
            }
            sl_pool_run(pool, (size_t)in->n_queries * c->num_attention_heads, 1, attend_exact, in);
            continue;
        }
        for (uint32_t i = 0; i < in->n_queries; i++)
            sl_pool_count(pool, (uint64_t)a->queries[i].n_entries * a->entry_bytes,
                          2 * (uint64_t)a->queries[i].n_entries * heads_dim(c));
        sl_pool_run(pool, (size_t)in->n_queries * items, 1, gather, in);
        sl_pool_run(pool, in->n_queries * sl_r16_tile_count(c->num_attention_heads), 1, attend, in);
    }
}

/* ---- the half layer ----------------------------------------------------------------------------
 */

static struct sl_linear_job job_of(const struct run *in, const struct sl_matrix *matrix,
                                   struct sl_act x, float *y)
{
    return (struct sl_linear_job){
        matrix, x, y, sl_r16_padded_rows(matrix->rows), in->end - in->first, 0};
}

/* All linears that read the layer's normed input. */
static void project_first(const struct run *in, bool needs_index)
{
    const struct sl_layer_weights *w = in->weights;
    struct sl_attention *a = in->a;
    struct sl_act x = sl_act_buffer_rows(&a->x, 0);
    struct sl_linear_job jobs[7];
    size_t n = 0;

    jobs[n++] = job_of(in, &w->wq_a, x, a->qr.f32);
    jobs[n++] = job_of(in, &w->wkv, x, a->kv);
    if (w->ratio) {
        jobs[n++] = job_of(in, &w->compressor.wkv, x, a->compressed_kv);
        jobs[n++] = job_of(in, &w->compressor.wgate, x, a->compressed_score);
    }
    if (w->ratio == SL_CSA_RATIO) {
        jobs[n++] = job_of(in, &w->index_compressor.wkv, x, a->index_kv);
        jobs[n++] = job_of(in, &w->index_compressor.wgate, x, a->index_score);
    }
    if (needs_index)
        jobs[n++] = job_of(in, &w->index_weights, x, a->index_weights);
    sl_linear_run(in->step->compute, jobs, n);
}

static void project_queries(const struct run *in, bool needs_index)
{
    struct sl_act qr = sl_act_buffer_rows(&in->a->qr, 0);
    struct sl_linear_job jobs[2] = {job_of(in, &in->weights->wq_b, qr, in->a->q)};

    if (needs_index)
        jobs[1] = job_of(in, &in->weights->index_wq_b, qr, in->a->index_q);
    sl_linear_run(in->step->compute, jobs, needs_index ? 2 : 1);
}

static void round_o_a(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct run *in = context;

    for (size_t row = first; row < end; row++)
        sl_act_buffer_round(&in->a->o_a, in->step->compute, thread_index, row);
}

/* The grouped output projection: each group's heads to o_lora_rank, then all to hidden_size. */
static void project_output(struct run *in)
{
    struct sl_linear_job job =
        job_of(in, &in->weights->wo_a, sl_act_buffer_rows(&in->a->o, 0), in->a->o_a.f32);

    job.y_stride = in->a->o_a.cols;
    job.group_rows = in->step->config->o_lora_rank;
    sl_linear_run(in->step->compute, &job, 1);
    sl_pool_run(in->step->compute->pool, in->end - in->first, 4, round_o_a, in);
    job = job_of(in, &in->weights->wo_b, sl_act_buffer_rows(&in->a->o_a, 0), in->a->out);
    sl_linear_run(in->step->compute, &job, 1);
}

/* The last sliding_window entries of every sequence go into its ring. Items are step tokens. */
static void keep_window(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct run *in = context;
    const uint32_t window = in->step->config->sliding_window;

    (void)thread_index;
    for (size_t i = first; i < end; i++) {
        const struct sl_step_token *token = &in->step->tokens[i];

        if (i + window < in->step->n_tokens && token[window].span_first == token->span_first)
            continue; /* a later token of this step takes the same place */
        memcpy(token->kv->layers[in->layer_index].window +
                   (size_t)(token->position % window) * in->a->entry_bytes,
               in->a->step_entries + i * in->a->entry_bytes, in->a->entry_bytes);
    }
}

void sl_attention_run(struct sl_attention *attention, const struct sl_step *step,
                      uint32_t layer_index, const struct sl_layer_weights *weights)
{
    struct run in = {.a = attention, .step = step, .weights = weights, .layer_index = layer_index};
    struct sl_pool *pool = step->compute->pool;

    for (in.first = 0; in.first < step->n_tokens; in.first = in.end) {
        bool needs_index;

        in.end = step->n_tokens - in.first < SL_CHUNK_TOKENS ? step->n_tokens
                                                             : in.first + SL_CHUNK_TOKENS;
        needs_index = chunk_needs_index(&in);
        sl_hc_before(step, &weights->hc_attn, weights->attn_norm, in.first, in.end, &attention->mix,
                     &attention->x);
        sl_pool_phase(pool, SL_PHASE_ATTENTION_LINEARS);
        project_first(&in, needs_index);
        sl_pool_phase(pool, SL_PHASE_ATTENTION);
        sl_pool_run(pool, in.end - in.first, 1, finish_first_projections, &in);
        compress(&in);
        sl_pool_phase(pool, SL_PHASE_ATTENTION_LINEARS);
        project_queries(&in, needs_index);
        sl_pool_phase(pool, SL_PHASE_ATTENTION);
        sl_pool_run(pool, in.end - in.first, 1, finish_queries, &in);
        attend_queries(&in);
        sl_pool_phase(pool, SL_PHASE_ATTENTION_LINEARS);
        project_output(&in);
        sl_hc_after(step, in.first, in.end, &attention->mix, attention->out,
                    step->config->hidden_size);
    }
    sl_pool_phase(pool, SL_PHASE_ATTENTION);
    sl_pool_run(pool, step->n_tokens, 64, keep_window, &in);
}
