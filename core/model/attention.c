/* A chunk of tokens at a time goes through the projections and then, as queries, to attend.c. */
#include "core/model/attention.h"

#include <errno.h>
#include <string.h>

#include "core/model/attend.h"
#include "core/model/compressor.h"
#include "core/model/hyper_connection.h"
#include "core/model/indexer.h"
#include "core/model/linear.h"

struct sl_attention {
    uint32_t entry_bytes;
    struct sl_compressors *compressors;
    struct sl_attend *attend;

    uint8_t *step_entries; /* (tokens_max) this layer's window entries of the step */
    struct sl_hc_mix mix;

    /* Activations of a chunk. */
    struct sl_act_buffer x;   /* (chunk, hidden_size) */
    struct sl_act_buffer qr;  /* (chunk, q_lora_rank) */
    struct sl_act_buffer o;   /* (chunk, heads * head_dim) */
    struct sl_act_buffer o_a; /* (chunk, o_groups * o_lora_rank) */
    float *kv, *q, *out;      /* (chunk, head_dim), (chunk, heads * head_dim), (chunk, hidden) */
    uint16_t *rounded_heads;  /* native: per thread (16, head_dim) BF16 */
    uint8_t *q_tiles;         /* native: per token sl_attend_tile_bytes() */
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
    bool without_queries;
};

static uint32_t heads_dim(const struct sl_config *c)
{
    return c->num_attention_heads * c->head_dim;
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
        a->q_tiles = sl_arena_take(arena, chunk, sl_attend_tile_bytes(c));
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

    a.entry_bytes = sl_kv_cache_entry_bytes(config, numerics);
    a.compressors = sl_compressors_carve(arena, config, n_threads, chunk);
    if (numerics != SL_NUMERICS_EXACT)
        a.rounded_heads =
            sl_arena_take(arena, (uint64_t)n_threads * SL_R16_ROWS * config->head_dim, 2);
    a.attend = sl_attend_carve(arena, config, numerics, n_threads, context_max);
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

    store_entry(in, pooled, sl_kv_entry(in->step->tokens[i].kv, in->layer_index, entry_index));
}

static void store_key(void *context, uint32_t i, uint32_t entry_index, float *pooled)
{
    const struct run *in = context;

    sl_indexer_store_key(in->step, in->step->tokens[i].kv, in->layer_index, entry_index, pooled);
}

static void compress(const struct run *in)
{
    const struct sl_config *c = in->step->config;
    const struct sl_layer_weights *w = in->weights;
    const struct sl_compressor_run runs[SL_COMPRESSORS_MAX] = {
        {.weights = &w->compressor,
         .ratio = w->ratio,
         .dim = c->head_dim,
         .layer_index = in->layer_index,
         .kv = in->a->compressed_kv,
         .score = in->a->compressed_score,
         .row_stride = sl_r16_padded_rows(w->compressor.wkv.rows),
         .store = store_compressed,
         .store_context = (void *)in},
        {.weights = &w->index_compressor,
         .ratio = w->ratio,
         .dim = c->index_head_dim,
         .is_index = true,
         .layer_index = in->layer_index,
         .kv = in->a->index_kv,
         .score = in->a->index_score,
         .row_stride = sl_r16_padded_rows(w->index_compressor.wkv.rows),
         .store = store_key,
         .store_context = (void *)in},
    };

    if (w->ratio)
        sl_compressors_add(in->a->compressors, in->step, runs, w->ratio == SL_CSA_RATIO ? 2 : 1,
                           in->first, in->end);
}

/* A window entry of what wkv gave for step token i: normed, rotated and stored. */
static void make_entry(const struct run *in, size_t i, float *kv, uint8_t *entry)
{
    const struct sl_config *c = in->step->config;
    const struct sl_kernels *k = in->step->compute->kernels;
    const enum sl_rope_kind kind = sl_rope_kind_of(in->weights->ratio);
    const uint32_t pairs = c->qk_rope_head_dim / 2;

    k->rms_norm(c->head_dim, kv, in->weights->kv_norm, c->rms_norm_eps, kv);
    k->rotate(pairs, kv + c->head_dim - 2 * pairs, in->step->cosine[kind] + i * pairs,
              in->step->sine[kind] + i * pairs, 1.0f);
    store_entry(in, kv, entry);
}

/* Norms of what the first projections gave: the query's low-rank form, and the KV entry. Items are
 * rows of the chunk. */
static void finish_first_projections(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct run *in = context;
    const struct sl_config *c = in->step->config;
    const struct sl_kernels *k = in->step->compute->kernels;

    for (size_t row = first; row < end; row++) {
        size_t i = in->first + row;
        float *qr = in->a->qr.f32 + row * c->q_lora_rank;

        if (!in->without_queries) {
            k->rms_norm(c->q_lora_rank, qr, in->weights->q_norm, c->rms_norm_eps, qr);
            sl_act_buffer_round(&in->a->qr, in->step->compute, thread_index, row);
        }
        make_entry(in, i, in->a->kv + row * sl_r16_padded_rows(c->head_dim),
                   in->a->step_entries + i * in->a->entry_bytes);
    }
}

/* ---- queries -----------------------------------------------------------------------------------
 */

/* Per head: norm without weights, rotation, and in native the heads side by side as BF16 tiles.
 * Items are (row, tile of 16 heads). */
static void finish_queries(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct run *in = context;
    const struct sl_config *c = in->step->config;
    const struct sl_kernels *k = in->step->compute->kernels;
    const enum sl_rope_kind kind = sl_rope_kind_of(in->weights->ratio);
    const uint32_t pairs = c->qk_rope_head_dim / 2, dim = c->head_dim;
    const size_t tiles = sl_r16_tile_count(c->num_attention_heads);
    uint16_t *rounded = in->a->rounded_heads + (size_t)thread_index * SL_R16_ROWS * dim;

    for (size_t item = first; item < end; item++) {
        size_t row = item / tiles, i = in->first + row, head = item % tiles * SL_R16_ROWS;
        float *q = in->a->q + row * sl_r16_padded_rows(heads_dim(c)) + head * dim;

        for (size_t h = 0; h < SL_R16_ROWS && head + h < c->num_attention_heads; h++, q += dim) {
            k->rms_norm(dim, q, NULL, c->rms_norm_eps, q);
            k->rotate(pairs, q + dim - 2 * pairs, in->step->cosine[kind] + i * pairs,
                      in->step->sine[kind] + i * pairs, 1.0f);
            if (in->a->q_tiles)
                k->to_bf16(dim, q, rounded + h * dim);
        }
        if (in->a->q_tiles)
            sl_r16_lay_bf16(dim, rounded,
                            in->a->q_tiles + row * sl_attend_tile_bytes(c) +
                                item % tiles * sl_r16_bf16_tile_bytes(dim));
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

/* All linears that read the layer's normed input, and the norms of what they give. */
static void project_first(struct run *in, bool needs_index)
{
    const struct sl_layer_weights *w = in->weights;
    struct sl_attention *a = in->a;
    struct sl_act x = sl_act_buffer_rows(&a->x, 0);
    struct sl_linear_job jobs[7];
    size_t n = 0;

    if (!in->without_queries)
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
    sl_linear_run(in->step->compute, SL_PHASE_ATTENTION_LINEARS, jobs, n);
    sl_pool_run(in->step->compute->pool, SL_PHASE_ATTENTION, in->end - in->first, 1,
                finish_first_projections, in);
}

static void project_queries(struct run *in, bool needs_index)
{
    const size_t tiles = sl_r16_tile_count(in->step->config->num_attention_heads);
    struct sl_act qr = sl_act_buffer_rows(&in->a->qr, 0);
    struct sl_linear_job jobs[2] = {job_of(in, &in->weights->wq_b, qr, in->a->q)};

    if (needs_index)
        jobs[1] = job_of(in, &in->weights->index_wq_b, qr, in->a->index_q);
    sl_linear_run(in->step->compute, SL_PHASE_ATTENTION_LINEARS, jobs, needs_index ? 2 : 1);
    sl_pool_run(in->step->compute->pool, SL_PHASE_ATTENTION, (in->end - in->first) * tiles, 1,
                finish_queries, in);
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
    sl_linear_run(in->step->compute, SL_PHASE_ATTENTION_LINEARS, &job, 1);
    sl_pool_run(in->step->compute->pool, SL_PHASE_ATTENTION_LINEARS, in->end - in->first, 4,
                round_o_a, in);
    job = job_of(in, &in->weights->wo_b, sl_act_buffer_rows(&in->a->o_a, 0), in->a->out);
    sl_linear_run(in->step->compute, SL_PHASE_ATTENTION_LINEARS, &job, 1);
}

static int attend(const struct run *in)
{
    struct sl_attention *a = in->a;
    const struct sl_attend_run run = {
        .step = in->step,
        .weights = in->weights,
        .layer_index = in->layer_index,
        .first = in->first,
        .end = in->end,
        .q = a->q,
        .q_tiles = a->q_tiles,
        .index_q = a->index_q,
        .index_weights = a->index_weights,
        .step_entries = a->step_entries,
        .o = &a->o,
    };

    return sl_attend_run(a->attend, &run);
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
        memcpy(sl_kv_row(token->kv, in->layer_index, SL_KV_WINDOW, token->position),
               in->a->step_entries + i * in->a->entry_bytes, in->a->entry_bytes);
    }
}

int sl_attention_run(struct sl_attention *attention, const struct sl_step *step,
                     uint32_t layer_index, const struct sl_layer_weights *weights)
{
    struct run in = {.a = attention, .step = step, .weights = weights, .layer_index = layer_index};

    for (in.first = 0; in.first < step->n_tokens; in.first = in.end) {
        bool needs_index;

        if (sl_step_is_stopped(step))
            return -ECANCELED;
        in.end = sl_step_chunk_end(step, in.first);
        needs_index = sl_attend_needs_index(step, weights, in.first, in.end);
        sl_hc_before(step, &weights->hc_attn, weights->attn_norm, in.first, in.end, &attention->mix,
                     &attention->x);
        project_first(&in, needs_index);
        compress(&in);
        project_queries(&in, needs_index);
        if (attend(&in) < 0)
            return -ECANCELED;
        project_output(&in);
        sl_hc_after(step, in.first, in.end, &attention->mix, attention->out,
                    step->config->hidden_size);
    }
    if (!step->block_tokens)
        sl_pool_run(step->compute->pool, SL_PHASE_ATTENTION, step->n_tokens, 64, keep_window, &in);
    return 0;
}

int sl_attention_see(struct sl_attention *attention, const struct sl_step *step,
                     uint32_t layer_index, const struct sl_layer_weights *weights)
{
    struct run in = {.a = attention,
                     .step = step,
                     .weights = weights,
                     .layer_index = layer_index,
                     .without_queries = true};

    for (in.first = 0; in.first < step->n_tokens; in.first = in.end) {
        if (sl_step_is_stopped(step))
            return -ECANCELED;
        in.end = sl_step_chunk_end(step, in.first);
        sl_hc_before(step, &weights->hc_attn, weights->attn_norm, in.first, in.end, &attention->mix,
                     &attention->x);
        project_first(&in, false);
        compress(&in);
    }
    sl_pool_run(step->compute->pool, SL_PHASE_ATTENTION, step->n_tokens, 64, keep_window, &in);
    return 0;
}

/* ---- rows from elsewhere -----------------------------------------------------------------------
 */

struct rows {
    struct run in;
    const uint32_t *tokens;
};

/* Items are rows. */
static void write_entries(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct rows *rows = context;
    const struct run *in = &rows->in;

    (void)thread_index;
    for (size_t row = first; row < end; row++) {
        const struct sl_step_token *token = &in->step->tokens[rows->tokens[row]];

        make_entry(in, rows->tokens[row],
                   in->a->kv + row * sl_r16_padded_rows(in->step->config->head_dim),
                   sl_kv_row(token->kv, in->layer_index, SL_KV_WINDOW, token->position));
    }
}

void sl_attention_fill_window(struct sl_attention *attention, const struct sl_step *step,
                              uint32_t layer_index, const struct sl_layer_weights *weights,
                              struct sl_act x, const uint32_t *tokens, uint32_t n_rows)
{
    struct rows rows = {{.a = attention,
                         .step = step,
                         .weights = weights,
                         .layer_index = layer_index,
                         .end = n_rows},
                        tokens};
    const struct sl_linear_job job = job_of(&rows.in, &weights->wkv, x, attention->kv);

    sl_linear_run(step->compute, SL_PHASE_ATTENTION_LINEARS, &job, 1);
    sl_pool_run(step->compute->pool, SL_PHASE_ATTENTION, n_rows, 1, write_entries, &rows);
}
