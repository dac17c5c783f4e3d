#include "core/model/compressor.h"

#include <string.h>

struct add {
    const struct sl_step *step;
    const struct sl_compressor_run *run;
    const struct sl_compressor_scratch *scratch;
    uint32_t first;
    uint32_t end;
};

struct sl_compressor_scratch sl_compressor_scratch_carve(struct sl_arena *arena,
                                                         const struct sl_config *config)
{
    struct sl_compressor_scratch scratch;
    uint32_t dim =
        config->head_dim > config->index_head_dim ? config->head_dim : config->index_head_dim;
    uint32_t rows_max = 2 * SL_CSA_RATIO;

    for (uint32_t i = 0; i < config->num_hidden_layers + config->num_nextn_predict_layers; i++)
        if (config->compress_ratios[i] > rows_max)
            rows_max = config->compress_ratios[i];
    scratch.kv_rows = sl_arena_take(arena, rows_max, sizeof(*scratch.kv_rows));
    scratch.score_rows = sl_arena_take(arena, rows_max, sizeof(*scratch.score_rows));
    scratch.pooled = sl_arena_take(arena, dim, sizeof(float));
    scratch.cosine = sl_arena_take(arena, config->qk_rope_head_dim / 2, sizeof(float));
    scratch.sine = sl_arena_take(arena, config->qk_rope_head_dim / 2, sizeof(float));
    return scratch;
}

/* The rows that the KV cache keeps of the token at `position` of a token's sequence. */
static float *kept_values(const struct sl_compressor_run *run, const struct sl_step_token *token,
                          uint32_t position)
{
    return (float *)(void *)sl_kv_row(token->kv, run->layer_index,
                                      run->is_index ? SL_KV_INDEX_VALUES : SL_KV_VALUES, position);
}

static float *kept_scores(const struct sl_compressor_run *run, const struct sl_step_token *token,
                          uint32_t position)
{
    return (float *)(void *)sl_kv_row(token->kv, run->layer_index,
                                      run->is_index ? SL_KV_INDEX_SCORES : SL_KV_SCORES, position);
}

static void add_ape(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct add *in = context;
    const struct sl_compressor_run *run = in->run;
    uint32_t width = run->weights->wkv.rows;

    (void)thread_index;
    for (size_t row = first; row < end; row++) {
        uint32_t position = in->step->tokens[in->first + row].position;
        const float *ape = run->weights->ape + (size_t)(position % run->ratio) * width;
        float *score = run->score + row * run->row_stride;

        for (uint32_t c = 0; c < width; c++)
            score[c] += ape[c];
    }
}

/* Pools the window that token i completes. */
static void pool_window(const struct add *in, uint32_t i, const struct sl_compressor_scratch *own)
{
    const struct sl_compressor_run *run = in->run;
    const struct sl_config *config = in->step->config;
    const struct sl_kernels *k = in->step->compute->kernels;
    const struct sl_step_token *token = &in->step->tokens[i];
    const uint32_t pairs = config->qk_rope_head_dim / 2, dim = run->dim;
    const uint32_t end_position = token->position + 1; /* a multiple of ratio */
    const bool overlaps = run->ratio == SL_CSA_RATIO;
    const uint32_t n_rows = overlaps && end_position > run->ratio ? 2 * run->ratio : run->ratio;

    for (uint32_t r = 0; r < n_rows; r++) {
        uint32_t position = end_position - n_rows + r;
        int64_t index = sl_step_index_of(in->step, i, position);
        /* The present window has the second half of the channels, the one before it the first. */
        size_t channel = overlaps && r + run->ratio >= n_rows ? dim : 0;

        if (index >= (int64_t)in->first) {
            own->kv_rows[r] = run->kv + (size_t)(index - in->first) * run->row_stride + channel;
            own->score_rows[r] =
                run->score + (size_t)(index - in->first) * run->row_stride + channel;
        } else {
            own->kv_rows[r] = kept_values(run, token, position) + channel;
            own->score_rows[r] = kept_scores(run, token, position) + channel;
        }
    }
    k->pool_rows(n_rows, dim, own->kv_rows, own->score_rows, own->pooled);
    k->rms_norm(dim, own->pooled, run->weights->norm, config->rms_norm_eps, own->pooled);
    sl_rope_angles(pairs, in->step->frequency[SL_ROPE_COMPRESSED], end_position - run->ratio,
                   own->cosine, own->sine);
    k->rotate(pairs, own->pooled + dim - 2 * pairs, own->cosine, own->sine, 1.0f);
    run->store(run->store_context, i, end_position / run->ratio - 1, own->pooled);
}

static void pool_windows(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct add *in = context;

    for (size_t row = first; row < end; row++) {
        uint32_t i = in->first + (uint32_t)row;

        if ((in->step->tokens[i].position + 1) % in->run->ratio == 0)
            pool_window(in, i, &in->scratch[thread_index]);
    }
}

/* Keeps the rows that later windows need: the last ones of each sequence in this chunk. */
static void keep_rows(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct add *in = context;
    const struct sl_compressor_run *run = in->run;

    (void)thread_index;
    for (size_t row = first; row < end; row++) {
        uint32_t i = in->first + (uint32_t)row;
        const struct sl_step_token *token = &in->step->tokens[i];
        const struct sl_kv_ring_shape shape = sl_kv_shape(
            token->kv, run->layer_index, run->is_index ? SL_KV_INDEX_VALUES : SL_KV_VALUES);

        if (i + shape.n_rows < in->end && token[shape.n_rows].span_first == token->span_first)
            continue; /* a later token of this chunk takes the same row */
        memcpy(kept_values(run, token, token->position), run->kv + row * run->row_stride,
               shape.row_bytes);
        memcpy(kept_scores(run, token, token->position), run->score + row * run->row_stride,
               shape.row_bytes);
    }
}

void sl_compressor_add(const struct sl_step *step, const struct sl_compressor_run *run,
                       uint32_t first, uint32_t end, const struct sl_compressor_scratch *scratch)
{
    struct add in = {step, run, scratch, first, end};
    struct sl_pool *pool = step->compute->pool;

    sl_pool_run(pool, SL_PHASE_COMPRESSOR, end - first, 16, add_ape, &in);
    sl_pool_run(pool, SL_PHASE_COMPRESSOR, end - first, 16, pool_windows, &in);
    sl_pool_run(pool, SL_PHASE_COMPRESSOR, end - first, 16, keep_rows, &in);
    sl_compute_background(step->compute);
}
