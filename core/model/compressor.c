/* A window is pooled by blocks of channels, so that threads share also the only one of a chunk;
 * what takes all its channels (norm, rotation, storing) comes after. */
#include "core/model/compressor.h"

#include <string.h>

#include "core/base/assert.h"

#define CHANNELS_AT_ONCE 64u

/* Values that are worth waking a thread for: pooling one takes an exponential. */
#define VALUES_PER_SHARE 16384u

struct thread_scratch {
    const float **kv_rows; /* (rows_max) each */
    const float **score_rows;
    float *cosine, *sine;
};

struct sl_compressors {
    struct thread_scratch *threads;
    uint32_t *windows;                 /* (chunk) step indices of the tokens that complete one */
    float *pooled[SL_COMPRESSORS_MAX]; /* (chunk, head_dim or index_head_dim), by window */
};

struct sl_compressors *sl_compressors_carve(struct sl_arena *arena, const struct sl_config *config,
                                            uint32_t n_threads, uint32_t chunk_tokens)
{
    struct sl_compressors *compressors = sl_arena_take(arena, 1, sizeof(*compressors));
    struct sl_compressors c = {0};
    uint32_t rows_max = 2 * SL_CSA_RATIO;

    for (uint32_t i = 0; i < config->num_hidden_layers + config->num_nextn_predict_layers; i++)
        if (config->compress_ratios[i] > rows_max)
            rows_max = config->compress_ratios[i];
    c.threads = sl_arena_take(arena, n_threads, sizeof(*c.threads));
    for (uint32_t i = 0; i < n_threads; i++) {
        struct thread_scratch scratch;

        scratch.kv_rows = sl_arena_take(arena, rows_max, sizeof(*scratch.kv_rows));
        scratch.score_rows = sl_arena_take(arena, rows_max, sizeof(*scratch.score_rows));
        scratch.cosine = sl_arena_take(arena, config->qk_rope_head_dim / 2, sizeof(float));
        scratch.sine = sl_arena_take(arena, config->qk_rope_head_dim / 2, sizeof(float));
        if (c.threads)
            c.threads[i] = scratch;
    }
    c.windows = sl_arena_take(arena, chunk_tokens, sizeof(*c.windows));
    c.pooled[0] = sl_arena_take(arena, (uint64_t)chunk_tokens * config->head_dim, sizeof(float));
    c.pooled[1] =
        sl_arena_take(arena, (uint64_t)chunk_tokens * config->index_head_dim, sizeof(float));
    if (compressors)
        *compressors = c;
    return compressors;
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

/* Items are (run, row of the chunk), as below. */
static void add_ape(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct sl_compressor_add *in = context;
    const size_t n_rows = in->end - in->first;

    (void)thread_index;
    for (size_t item = first; item < end; item++) {
        const struct sl_compressor_run *run = &in->runs[item / n_rows];
        const size_t row = item % n_rows;
        const uint32_t position = in->step->tokens[in->first + row].position;
        const uint32_t width = run->weights->wkv.rows;
        const float *ape = run->weights->ape + (size_t)(position % run->ratio) * width;
        float *score = run->score + row * run->row_stride;

        for (uint32_t c = 0; c < width; c++)
            score[c] += ape[c];
    }
}

/* Rows of the window that token i completes: CSA's first one is half a window. */
static uint32_t window_rows(const struct sl_compressor_add *in, const struct sl_compressor_run *run,
                            uint32_t i)
{
    const bool overlaps = run->ratio == SL_CSA_RATIO;

    return overlaps && in->step->tokens[i].position >= run->ratio ? 2 * run->ratio : run->ratio;
}

/* Pools `count` channels, from `channel` on, of the window that token i completes. */
static void pool_channels(const struct sl_compressor_add *in, const struct sl_compressor_run *run,
                          uint32_t i, uint32_t channel, uint32_t count,
                          const struct thread_scratch *own, float *pooled)
{
    const struct sl_step_token *token = &in->step->tokens[i];
    const uint32_t end_position = token->position + 1; /* a multiple of ratio */
    const uint32_t n_rows = window_rows(in, run, i);

    for (uint32_t r = 0; r < n_rows; r++) {
        uint32_t position = end_position - n_rows + r;
        int64_t index = sl_step_index_of(in->step, i, position);
        /* The present window has the second half of the channels, the one before it the first. */
        size_t at =
            channel + (run->ratio == SL_CSA_RATIO && r + run->ratio >= n_rows ? run->dim : 0);

        if (index >= (int64_t)in->first) {
            at += (size_t)(index - in->first) * run->row_stride;
            own->kv_rows[r] = run->kv + at;
            own->score_rows[r] = run->score + at;
        } else {
            own->kv_rows[r] = kept_values(run, token, position) + at;
            own->score_rows[r] = kept_scores(run, token, position) + at;
        }
    }
    in->step->compute->kernels->pool_rows(n_rows, count, own->kv_rows, own->score_rows,
                                          pooled + channel);
}

static uint32_t blocks_of(const struct sl_compressor_run *run)
{
    return (run->dim + CHANNELS_AT_ONCE - 1) / CHANNELS_AT_ONCE;
}

/* Items are (window, block of channels) of one run after the other. */
static void pool_blocks(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct sl_compressor_add *in = context;
    size_t before = 0;

    for (uint32_t r = 0; r < in->n_runs; r++) {
        const struct sl_compressor_run *run = &in->runs[r];
        const size_t n = (size_t)in->n_windows * blocks_of(run);

        for (size_t at = before < first ? first - before : 0; at < n && before + at < end; at++) {
            const size_t window = at / blocks_of(run);
            const uint32_t channel = (uint32_t)(at % blocks_of(run)) * CHANNELS_AT_ONCE;
            const uint32_t left = run->dim - channel;

            pool_channels(in, run, in->c->windows[window], channel,
                          left < CHANNELS_AT_ONCE ? left : CHANNELS_AT_ONCE,
                          &in->c->threads[thread_index], in->c->pooled[r] + window * run->dim);
        }
        before += n;
    }
}

/* Norms, rotates and stores what was pooled for the window that token i completes. */
static void finish_window(const struct sl_compressor_add *in, const struct sl_compressor_run *run,
                          uint32_t i, const struct thread_scratch *own, float *pooled)
{
    const struct sl_config *config = in->step->config;
    const struct sl_kernels *k = in->step->compute->kernels;
    const uint32_t pairs = config->qk_rope_head_dim / 2, dim = run->dim;
    const uint32_t end_position = in->step->tokens[i].position + 1;

    k->rms_norm(dim, pooled, run->weights->norm, config->rms_norm_eps, pooled);
    sl_rope_angles(pairs, in->step->frequency[SL_ROPE_COMPRESSED], end_position - run->ratio,
                   own->cosine, own->sine);
    k->rotate(pairs, pooled + dim - 2 * pairs, own->cosine, own->sine, 1.0f);
    run->store(run->store_context, i, end_position / run->ratio - 1, pooled);
}

/* Keeps a row if later windows need it: if it is among the last of its sequence in this chunk. */
static void keep_row(const struct sl_compressor_add *in, const struct sl_compressor_run *run,
                     size_t row)
{
    const uint32_t i = in->first + (uint32_t)row;
    const struct sl_step_token *token = &in->step->tokens[i];
    const struct sl_kv_ring_shape shape =
        sl_kv_shape(token->kv, run->layer_index, run->is_index ? SL_KV_INDEX_VALUES : SL_KV_VALUES);

    if (i + shape.n_rows < in->end && token[shape.n_rows].span_first == token->span_first)
        return; /* a later token of this chunk takes the same row */
    memcpy(kept_values(run, token, token->position), run->kv + row * run->row_stride,
           shape.row_bytes);
    memcpy(kept_scores(run, token, token->position), run->score + row * run->row_stride,
           shape.row_bytes);
}

/* Items are rows of the chunk. */
static void finish_rows(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct sl_compressor_add *in = context;

    for (uint32_t r = 0; r < in->n_runs; r++) {
        for (size_t row = first; row < end; row++)
            keep_row(in, &in->runs[r], row);
        for (size_t w = 0; w < in->n_windows; w++) {
            const uint32_t row = in->c->windows[w] - in->first;

            if (row >= first && row < end)
                finish_window(in, &in->runs[r], in->c->windows[w], &in->c->threads[thread_index],
                              in->c->pooled[r] + w * in->runs[r].dim);
        }
    }
}

void sl_compressors_jobs(struct sl_compressor_add *add, struct sl_chain_job *ret_jobs)
{
    const uint32_t ratio = add->runs[0].ratio;
    size_t n_blocks = 0;

    sl_assert(add->n_runs >= 1 && add->n_runs <= SL_COMPRESSORS_MAX);
    add->n_windows = 0;
    for (uint32_t i = add->first; i < add->end; i++)
        if ((add->step->tokens[i].position + 1) % ratio == 0)
            add->c->windows[add->n_windows++] = i;
    for (uint32_t r = 0; r < add->n_runs; r++)
        n_blocks += (size_t)add->n_windows * blocks_of(&add->runs[r]);
    ret_jobs[0] = (struct sl_chain_job){
        .fn = add_ape, .n_items = (size_t)add->n_runs * (add->end - add->first), .grain = 16};
    ret_jobs[1] = (struct sl_chain_job){.fn = pool_blocks,
                                        .n_items = n_blocks,
                                        .grain = VALUES_PER_SHARE / (CHANNELS_AT_ONCE * ratio) + 1};
    ret_jobs[2] =
        (struct sl_chain_job){.fn = finish_rows, .n_items = add->end - add->first, .grain = 16};
    for (uint32_t i = 0; i < SL_COMPRESSOR_JOBS; i++) {
        ret_jobs[i].context = add;
        ret_jobs[i].phase = SL_PHASE_COMPRESSOR;
    }
}
