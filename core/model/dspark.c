#include "core/model/dspark.h"

#include <string.h>

#include "core/base/assert.h"

static bool is_exact(const struct sl_step *step)
{
    return step->compute->numerics == SL_NUMERICS_EXACT;
}

/* ---- memory ------------------------------------------------------------------------------------
 */

struct sl_dspark *sl_dspark_carve(struct sl_arena *arena, const struct sl_config *c,
                                  const struct sl_draft *draft, enum sl_numerics numerics,
                                  uint32_t n_threads, uint32_t tokens_max, uint32_t spans_max)
{
    struct sl_dspark *dspark = sl_arena_take(arena, 1, sizeof(*dspark));
    const uint64_t in_rings = (uint64_t)spans_max * c->sliding_window;
    const uint64_t rows = in_rings < tokens_max ? in_rings : tokens_max;
    const uint64_t read = rows * draft->n_targets * c->hidden_size;
    struct sl_dspark d = {0};

    d.row_tokens = sl_arena_take(arena, rows, sizeof(*d.row_tokens));
    if (numerics == SL_NUMERICS_EXACT) {
        d.hidden_f32 = sl_arena_take(arena, read, sizeof(float));
    } else {
        d.hidden_bf16 = sl_arena_take(arena, read, sizeof(uint16_t));
        d.mean = sl_arena_take(arena, (uint64_t)n_threads * c->hidden_size, sizeof(float));
    }
    d.main_x = sl_act_buffer_carve(arena, rows, c->hidden_size, SL_ACT_BF16, numerics);
    if (dspark)
        *dspark = d;
    return dspark;
}

/* ---- a step's rows -----------------------------------------------------------------------------
 */

void sl_dspark_begin(struct sl_dspark *dspark, const struct sl_step *step)
{
    const uint32_t window = step->config->sliding_window;

    dspark->n_rows = 0;
    for (uint32_t i = 0; i < step->n_tokens; i++) {
        const struct sl_step_token *token = &step->tokens[i];

        if (i + window < step->n_tokens && token[window].span_first == token->span_first)
            continue; /* a later token of this step takes the same place */
        dspark->row_tokens[dspark->n_rows++] = i;
    }
}

/* Moves row `from` to place `to` before it. */
static void move_row(struct sl_dspark *d, const struct sl_step *step, uint32_t from, uint32_t to)
{
    const size_t cols = d->main_x.cols, read = step->config->dspark.n_targets * cols;
    const struct sl_act_buffer a = sl_act_buffer_from(&d->main_x, from);
    const struct sl_act_buffer b = sl_act_buffer_from(&d->main_x, to);

    memcpy(b.f32, a.f32, cols * sizeof(*b.f32));
    if (is_exact(step)) {
        memcpy(d->hidden_f32 + to * read, d->hidden_f32 + from * read, read * sizeof(float));
        return;
    }
    memcpy(b.bf16, a.bf16, cols * sizeof(*b.bf16));
    memcpy(d->hidden_bf16 + to * read, d->hidden_bf16 + from * read, read * sizeof(uint16_t));
}

void sl_dspark_drop(struct sl_dspark *d, const struct sl_step *step, uint32_t first, uint32_t end)
{
    uint32_t n = 0;

    for (uint32_t row = 0; row < d->n_rows; row++) {
        const uint32_t token = d->row_tokens[row];

        if (token >= first && token < end)
            continue;
        if (n < row)
            move_row(d, step, row, n);
        d->row_tokens[n++] = token < first ? token : token - (end - first);
    }
    d->n_rows = n;
}

struct target {
    struct sl_dspark *dspark;
    const struct sl_step *step;
    uint32_t index; /* among the targets */
};

/* The mean over the streams. Items are rows. */
static void keep_means(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct target *in = context;
    const struct sl_dspark *d = in->dspark;
    const struct sl_config *c = in->step->config;
    const size_t hidden = c->hidden_size, n = c->hc_mult;

    for (size_t row = first; row < end; row++) {
        const size_t at = (row * c->dspark.n_targets + in->index) * hidden;
        const float *streams = in->step->streams + d->row_tokens[row] * n * hidden;
        float *mean = d->hidden_f32 ? d->hidden_f32 + at : d->mean + thread_index * hidden;

        memcpy(mean, streams, hidden * sizeof(*mean));
        for (size_t s = 1; s < n; s++)
            for (size_t i = 0; i < hidden; i++)
                mean[i] += streams[s * hidden + i];
        for (size_t i = 0; i < hidden; i++)
            mean[i] /= (float)n;
        if (!d->hidden_f32)
            in->step->compute->kernels->to_bf16(hidden, mean, d->hidden_bf16 + at);
    }
}

void sl_dspark_note(struct sl_dspark *dspark, const struct sl_step *step, uint32_t layer_index)
{
    const struct sl_dspark_config *told = &step->config->dspark;

    for (uint32_t t = 0; t < told->n_targets; t++)
        if (told->target_layer_ids[t] == layer_index) {
            struct target target = {dspark, step, t};

            sl_pool_run(step->compute->pool, SL_PHASE_REST, dspark->n_rows, 1, keep_means, &target);
        }
}

/* ---- the rings ---------------------------------------------------------------------------------
 */

struct filling {
    struct sl_dspark *dspark;
    const struct sl_step *step;
    const float *norm;
    uint32_t first;
};

/* Items are rows of the chunk. */
static void norm_main(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct filling *in = context;
    const struct sl_act_buffer *x = &in->dspark->main_x;
    const struct sl_compute *compute = in->step->compute;

    for (size_t row = in->first + first; row < in->first + end; row++) {
        compute->kernels->rms_norm(x->cols, x->f32 + row * x->cols, in->norm,
                                   in->step->config->rms_norm_eps, x->f32 + row * x->cols);
        sl_act_buffer_round(x, compute, thread_index, row);
    }
}

/* main_x of the chunk's rows, which all stages share. */
static void project_main(struct sl_dspark *d, const struct sl_step *step, uint32_t first,
                         uint32_t n_rows, const struct sl_dspark_weights *weights)
{
    const size_t cols = weights->main_proj.cols;
    struct filling filling = {d, step, weights->main_norm, first};
    const struct sl_linear_job job = {
        .matrix = &weights->main_proj,
        .x = {.f32 = is_exact(step) ? d->hidden_f32 + first * cols : NULL,
              .bf16 = is_exact(step) ? NULL : d->hidden_bf16 + first * cols,
              .stride = cols,
              .bf16_stride = cols},
        .y = d->main_x.f32 + (size_t)first * d->main_x.cols,
        .y_stride = d->main_x.cols,
        .token_count = n_rows,
    };

    sl_linear_run(step->compute, SL_PHASE_HEAD, &job, 1);
    sl_pool_run(step->compute->pool, SL_PHASE_HEAD, n_rows, 1, norm_main, &filling);
}

void sl_dspark_fill(struct sl_dspark *d, const struct sl_step *step, uint32_t layer_index,
                    const struct sl_layer_weights *stage, const struct sl_dspark_weights *weights)
{
    for (uint32_t first = 0; first < d->n_rows; first += SL_CHUNK_TOKENS) {
        const uint32_t left = d->n_rows - first;
        const uint32_t n = left < SL_CHUNK_TOKENS ? left : SL_CHUNK_TOKENS;

        if (layer_index == step->config->num_hidden_layers)
            project_main(d, step, first, n, weights);
        sl_attention_fill_window(d->attention, step, layer_index, stage,
                                 sl_act_buffer_rows(&d->main_x, first), d->row_tokens + first, n);
    }
}
