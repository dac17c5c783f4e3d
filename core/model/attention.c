/* A chunk of tokens at a time goes through the projections and then, as queries, to attend.c. The
 * output of one chunk and the first projections of the next are two chains of jobs, and so are a
 * chunk's queries and what its compressors do. */
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
    uint32_t chunk_tokens; /* of the largest chunk */
    struct sl_compressors *compressors;
    struct sl_attend *attend;

    uint8_t *step_entries; /* (tokens_max) this layer's window entries of the step */
    struct sl_hc_mix mix;  /* (2 * chunk) of chunks in turn */

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

#define FIRST_LINEARS_MAX 7u
#define INPUT_JOBS (SL_HC_BEFORE_JOBS + 2)
#define OUTPUT_JOBS 4u
_Static_assert(INPUT_JOBS == OUTPUT_JOBS, "chains of one length");
#define QUERY_JOBS SL_COMPRESSOR_JOBS /* of which the queries' own chain has two */

/* A chunk of the step's layer at hand, and what its jobs read until they are done. */
struct run {
    struct sl_attention *a;
    const struct sl_step *step;
    const struct sl_layer_weights *weights;
    uint32_t layer_index;
    uint32_t first, end;
    uint32_t mix_place; /* 0 or 1: chunks take turns */
    bool without_queries, needs_index;

    struct sl_hc_before before;
    struct sl_linear_job first_linears[FIRST_LINEARS_MAX], query_linears[2], output_linears[2];
    struct sl_linear_shares first_shares, query_shares, output_shares[2];
    struct sl_compressor_run compressor_runs[SL_COMPRESSORS_MAX];
    struct sl_compressor_add compressor_add;
    struct sl_hc_after after;
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

    a.chunk_tokens = chunk;
    a.entry_bytes = sl_kv_cache_entry_bytes(config, numerics);
    a.compressors = sl_compressors_carve(arena, config, n_threads, chunk);
    if (numerics != SL_NUMERICS_EXACT)
        a.rounded_heads =
            sl_arena_take(arena, (uint64_t)n_threads * SL_R16_ROWS * config->head_dim, 2);
    a.attend = sl_attend_carve(arena, config, numerics, n_threads, context_max);
    a.step_entries = sl_arena_take(arena, tokens_max, a.entry_bytes);
    a.mix = sl_hc_mix_carve(arena, config, 2 * (uint64_t)chunk, chunk);
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

/* Sets up the chunk's compressors as a chain. */
static void add_compressors(struct run *in, struct sl_chain_job jobs[QUERY_JOBS])
{
    const struct sl_config *c = in->step->config;
    const struct sl_layer_weights *w = in->weights;

    in->compressor_runs[0] = (struct sl_compressor_run){
        .weights = &w->compressor,
        .ratio = w->ratio,
        .dim = c->head_dim,
        .layer_index = in->layer_index,
        .kv = in->a->compressed_kv,
        .score = in->a->compressed_score,
        .row_stride = sl_r16_padded_rows(w->compressor.wkv.rows),
        .store = store_compressed,
        .store_context = in,
    };
    in->compressor_runs[1] = (struct sl_compressor_run){
        .weights = &w->index_compressor,
        .ratio = w->ratio,
        .dim = c->index_head_dim,
        .is_index = true,
        .layer_index = in->layer_index,
        .kv = in->a->index_kv,
        .score = in->a->index_score,
        .row_stride = sl_r16_padded_rows(w->index_compressor.wkv.rows),
        .store = store_key,
        .store_context = in,
    };
    in->compressor_add = (struct sl_compressor_add){.c = in->a->compressors,
                                                    .step = in->step,
                                                    .runs = in->compressor_runs,
                                                    .n_runs = w->ratio == SL_CSA_RATIO ? 2 : 1,
                                                    .first = in->first,
                                                    .end = in->end};
    sl_compressors_jobs(&in->compressor_add, jobs);
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

static struct sl_hc_mix mix_of(const struct run *in)
{
    return sl_hc_mix_from(&in->a->mix, in->step->config,
                          in->mix_place * (size_t)in->a->chunk_tokens, 0);
}

/* All linears that read the layer's normed input, and the norms of what they give. */
static void add_input(struct run *in, struct sl_chain_job jobs[INPUT_JOBS])
{
    const struct sl_layer_weights *w = in->weights;
    struct sl_attention *a = in->a;
    struct sl_act x = sl_act_buffer_rows(&a->x, 0);
    struct sl_linear_job *linears = in->first_linears;
    size_t n = 0;

    in->before = (struct sl_hc_before){.step = in->step,
                                       .hc = &w->hc_attn,
                                       .norm = w->attn_norm,
                                       .first = in->first,
                                       .n_tokens = in->end - in->first,
                                       .mix = mix_of(in),
                                       .x = a->x};
    sl_hc_before_jobs(&in->before, jobs);
    if (!in->without_queries)
        linears[n++] = job_of(in, &w->wq_a, x, a->qr.f32);
    linears[n++] = job_of(in, &w->wkv, x, a->kv);
    if (w->ratio) {
        linears[n++] = job_of(in, &w->compressor.wkv, x, a->compressed_kv);
        linears[n++] = job_of(in, &w->compressor.wgate, x, a->compressed_score);
    }
    if (w->ratio == SL_CSA_RATIO) {
        linears[n++] = job_of(in, &w->index_compressor.wkv, x, a->index_kv);
        linears[n++] = job_of(in, &w->index_compressor.wgate, x, a->index_score);
    }
    if (in->needs_index)
        linears[n++] = job_of(in, &w->index_weights, x, a->index_weights);
    jobs[SL_HC_BEFORE_JOBS] = sl_linear_chain(&in->first_shares, in->step->compute,
                                              SL_PHASE_ATTENTION_LINEARS, linears, n);
    jobs[SL_HC_BEFORE_JOBS + 1] = (struct sl_chain_job){
        finish_first_projections, in, in->end - in->first, 1, SL_PHASE_ATTENTION, 0, 0};
}

static void add_queries(struct run *in, struct sl_chain_job jobs[QUERY_JOBS])
{
    const size_t tiles = sl_r16_tile_count(in->step->config->num_attention_heads);
    struct sl_act qr = sl_act_buffer_rows(&in->a->qr, 0);

    in->query_linears[0] = job_of(in, &in->weights->wq_b, qr, in->a->q);
    if (in->needs_index)
        in->query_linears[1] = job_of(in, &in->weights->index_wq_b, qr, in->a->index_q);
    jobs[0] = sl_linear_chain(&in->query_shares, in->step->compute, SL_PHASE_ATTENTION_LINEARS,
                              in->query_linears, in->needs_index ? 2 : 1);
    jobs[1] = (struct sl_chain_job){
        finish_queries, in, (in->end - in->first) * tiles, 1, SL_PHASE_ATTENTION, 0, 0};
}

static void round_o_a(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct run *in = context;

    for (size_t row = first; row < end; row++)
        sl_act_buffer_round(&in->a->o_a, in->step->compute, thread_index, row);
}

/* The grouped output projection: each group's heads to o_lora_rank, then all to hidden_size. */
static void add_output(struct run *in, struct sl_chain_job jobs[OUTPUT_JOBS])
{
    const struct sl_compute *compute = in->step->compute;
    struct sl_linear_job *o_a = &in->output_linears[0], *o_b = &in->output_linears[1];
    const struct sl_attention *a = in->a;

    *o_a = job_of(in, &in->weights->wo_a, sl_act_buffer_rows(&a->o, 0), a->o_a.f32);
    o_a->y_stride = a->o_a.cols;
    o_a->group_rows = in->step->config->o_lora_rank;
    *o_b = job_of(in, &in->weights->wo_b, sl_act_buffer_rows(&a->o_a, 0), a->out);
    in->after = (struct sl_hc_after){.step = in->step,
                                     .first = in->first,
                                     .n_tokens = in->end - in->first,
                                     .mix = mix_of(in),
                                     .out = a->out,
                                     .out_stride = in->step->config->hidden_size};
    jobs[0] = sl_linear_chain(&in->output_shares[0], compute, SL_PHASE_ATTENTION_LINEARS, o_a, 1);
    jobs[1] = (struct sl_chain_job){
        round_o_a, in, in->end - in->first, 4, SL_PHASE_ATTENTION_LINEARS, 0, 0};
    jobs[2] = sl_linear_chain(&in->output_shares[1], compute, SL_PHASE_ATTENTION_LINEARS, o_b, 1);
    jobs[3] = sl_hc_after_job(&in->after);
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

/* The output of the chunk before, and the input of this one; either may be NULL. */
static void run_between(const struct sl_compute *compute, struct run *before, struct run *in)
{
    struct sl_chain_job jobs[2 * INPUT_JOBS];
    uint32_t n = 0;

    if (before)
        add_output(before, &jobs[INPUT_JOBS * n++]);
    if (in)
        add_input(in, &jobs[(size_t)INPUT_JOBS * n++]);
    if (n > 0)
        sl_chains_run(compute, jobs, n, INPUT_JOBS);
}

/* Runs the jobs between the input and attention. */
static void run_middle(struct run *in)
{
    struct sl_chain_job jobs[2 * QUERY_JOBS] = {0};

    if (in->weights->ratio)
        add_compressors(in, jobs);
    if (!in->without_queries)
        add_queries(in, &jobs[QUERY_JOBS]);
    sl_chains_run(in->step->compute, jobs, 2, QUERY_JOBS);
}

static struct run chunk_from(struct sl_attention *attention, const struct sl_step *step,
                             uint32_t layer_index, const struct sl_layer_weights *weights,
                             uint32_t first)
{
    return (struct run){.a = attention,
                        .step = step,
                        .weights = weights,
                        .layer_index = layer_index,
                        .first = first,
                        .end = sl_step_chunk_end(step, first)};
}

int sl_attention_run(struct sl_attention *attention, const struct sl_step *step,
                     uint32_t layer_index, const struct sl_layer_weights *weights)
{
    struct run chunks[2], *before = NULL;
    uint32_t n = 0;

    for (uint32_t first = 0; first < step->n_tokens; n++) {
        struct run *in = &chunks[n % 2];

        if (sl_step_is_stopped(step))
            return -ECANCELED;
        *in = chunk_from(attention, step, layer_index, weights, first);
        in->mix_place = n % 2;
        in->needs_index = sl_attend_needs_index(step, weights, in->first, in->end);
        run_between(step->compute, before, in);
        run_middle(in);
        if (attend(in) < 0)
            return -ECANCELED;
        before = in;
        first = in->end;
    }
    run_between(step->compute, before, NULL);
    if (before && !step->block_tokens)
        sl_pool_run(step->compute->pool, SL_PHASE_ATTENTION, step->n_tokens, 64, keep_window,
                    before);
    return 0;
}

int sl_attention_see(struct sl_attention *attention, const struct sl_step *step,
                     uint32_t layer_index, const struct sl_layer_weights *weights)
{
    struct run in;

    for (uint32_t first = 0; first < step->n_tokens; first = in.end) {
        if (sl_step_is_stopped(step))
            return -ECANCELED;
        in = chunk_from(attention, step, layer_index, weights, first);
        in.without_queries = true;
        run_between(step->compute, NULL, &in);
        run_middle(&in);
    }
    if (step->n_tokens > 0)
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
