#include "core/model/hyper_connection.h"

#include "core/kernels/scalar_math.h"

/* Rows of a mixing matrix: pre, post and comb of up to SL_HC_MULT_MAX streams, in whole tiles. */
#define MIX_ROWS_MAX 80u
_Static_assert((2 + SL_HC_MULT_MAX) * SL_HC_MULT_MAX <= MIX_ROWS_MAX, "rows of hc_*_fn");
_Static_assert(SL_HC_MULT_MAX <= SL_R16_ROWS, "rows of hc_head_fn");

/* A row's long sum is cut into parts that are summed apart and then added in ascending order, so
 * that one token's projection, which reads hc_fn once, can use many threads. */
#define PART_COLS 1024u
#define TOKENS_AT_ONCE 64u

static uint32_t parts_of_stream(const struct sl_config *config)
{
    return (config->hidden_size + PART_COLS - 1) / PART_COLS;
}

static uint32_t n_parts(const struct sl_config *config)
{
    return config->hc_mult * parts_of_stream(config);
}

static uint32_t rows_padded(const struct sl_config *config)
{
    return (uint32_t)sl_r16_padded_rows((2 + (size_t)config->hc_mult) * config->hc_mult);
}

struct sl_hc_mix sl_hc_mix_carve(struct sl_arena *arena, const struct sl_config *config,
                                 uint64_t tokens, uint64_t tokens_at_once)
{
    const uint64_t n = tokens < tokens_at_once ? tokens : tokens_at_once;
    struct sl_hc_mix mix;

    mix.post = sl_arena_take(arena, tokens * config->hc_mult, sizeof(float));
    mix.comb = sl_arena_take(arena, tokens * config->hc_mult * config->hc_mult, sizeof(float));
    mix.part = sl_arena_take(arena, n * n_parts(config) * rows_padded(config), sizeof(float));
    return mix;
}

struct sl_hc_mix sl_hc_mix_from(const struct sl_hc_mix *mix, const struct sl_config *config,
                                size_t first_row, size_t first_at_once)
{
    const size_t n = config->hc_mult;

    return (struct sl_hc_mix){mix->post + first_row * n, mix->comb + first_row * n * n,
                              mix->part + first_at_once * n_parts(config) * rows_padded(config)};
}

/* Part `part` of tile `tile` of fn . streams: out (token_count, 16) at out_stride. */
static void project_part(const struct sl_step *step, const struct sl_hc_weights *hc, size_t tile,
                         uint32_t part, const float *streams, size_t token_count, float *out,
                         size_t out_stride)
{
    const uint32_t hidden = step->config->hidden_size, per_stream = parts_of_stream(step->config);
    const uint32_t first = part % per_stream * PART_COLS; /* in its stream */
    const uint32_t cols = hidden - first < PART_COLS ? hidden - first : PART_COLS;
    const size_t column = (size_t)(part / per_stream) * hidden + first;
    const uint8_t *w =
        hc->fn.tiles + tile * sl_matrix_tile_bytes(&hc->fn) + column * SL_R16_ROWS * sizeof(float);

    step->compute->kernels->matmul_f32(1, cols, token_count, w, streams + column,
                                       (size_t)step->config->hc_mult * hidden, out, out_stride);
}

/* Adds the parts, each `stride` floats after the other, and divides by the streams' RMS. */
static void add_parts(const struct sl_step *step, uint32_t rows, const float *part, size_t stride,
                      const float *streams, float m[MIX_ROWS_MAX])
{
    const struct sl_config *config = step->config;
    const uint32_t n = n_parts(config);
    const float factor = step->compute->kernels->rms_factor(
        (size_t)config->hc_mult * config->hidden_size, streams, config->rms_norm_eps);

    for (uint32_t r = 0; r < rows; r++)
        m[r] = part[r];
    for (uint32_t i = 1; i < n; i++)
        for (uint32_t r = 0; r < rows; r++)
            m[r] += part[i * stride + r];
    for (uint32_t r = 0; r < rows; r++)
        m[r] *= factor;
}

static void divide_rows(uint32_t n, float *comb, float eps)
{
    for (uint32_t j = 0; j < n; j++) {
        float sum = 0;

        for (uint32_t k = 0; k < n; k++)
            sum += comb[j * n + k];
        for (uint32_t k = 0; k < n; k++)
            comb[j * n + k] /= sum + eps;
    }
}

static void divide_columns(uint32_t n, float *comb, float eps)
{
    for (uint32_t k = 0; k < n; k++) {
        float sum = 0;

        for (uint32_t j = 0; j < n; j++)
            sum += comb[j * n + k];
        for (uint32_t j = 0; j < n; j++)
            comb[j * n + k] /= sum + eps;
    }
}

void sl_hc_sinkhorn(const struct sl_config *config, float *comb)
{
    const uint32_t n = config->hc_mult;
    const float eps = config->hc_eps;

    for (uint32_t j = 0; j < n; j++) {
        float *row = comb + j * n, top = row[0], sum = 0;

        for (uint32_t k = 1; k < n; k++)
            top = row[k] > top ? row[k] : top;
        for (uint32_t k = 0; k < n; k++) {
            row[k] = sl_expf(row[k] - top);
            sum += row[k];
        }
        for (uint32_t k = 0; k < n; k++)
            row[k] = row[k] / sum + eps;
    }
    divide_columns(n, comb, eps);
    for (uint32_t i = 1; i < config->hc_sinkhorn_iters; i++) {
        divide_rows(n, comb, eps);
        divide_columns(n, comb, eps);
    }
}

/* One task is a part of a tile for some tokens. */
static void project_tasks(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct sl_hc_before *in = context;
    const struct sl_config *config = in->step->config;
    const size_t tiles = sl_r16_tile_count(in->hc->fn.rows), parts = n_parts(config);
    const size_t out_stride = parts * rows_padded(config);

    (void)thread_index;
    for (size_t task = first; task < end; task++) {
        size_t token = task / (tiles * parts) * TOKENS_AT_ONCE;
        size_t part = task / tiles % parts, tile = task % tiles;
        size_t left = in->n_tokens - token;

        project_part(
            in->step, in->hc, tile, (uint32_t)part,
            in->step->streams + (in->first + token) * config->hc_mult * config->hidden_size,
            left < TOKENS_AT_ONCE ? left : TOKENS_AT_ONCE,
            in->mix.part + token * out_stride + part * rows_padded(config) + tile * SL_R16_ROWS,
            out_stride);
    }
}

static void before_rows(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct sl_hc_before *in = context;
    const struct sl_config *config = in->step->config;
    const struct sl_kernels *k = in->step->compute->kernels;
    const uint32_t n = config->hc_mult, hidden = config->hidden_size;
    const float *scale = in->hc->scale, *base = in->hc->base;

    for (size_t row = first; row < end; row++) {
        const float *streams = in->step->streams + (in->first + row) * n * hidden;
        float *post = in->mix.post + row * n, *comb = in->mix.comb + row * n * n;
        float *x = in->x.f32 + row * hidden;
        float m[MIX_ROWS_MAX], pre[SL_HC_MULT_MAX];

        add_parts(in->step, in->hc->fn.rows,
                  in->mix.part + row * n_parts(config) * rows_padded(config), rows_padded(config),
                  streams, m);
        for (uint32_t s = 0; s < n; s++) {
            pre[s] = sl_sigmoidf(m[s] * scale[0] + base[s]) + config->hc_eps;
            post[s] = 2.0f * sl_sigmoidf(m[n + s] * scale[1] + base[n + s]);
        }
        for (uint32_t i = 0; i < n * n; i++)
            comb[i] = m[2 * n + i] * scale[2] + base[2 * n + i];
        sl_hc_sinkhorn(config, comb);
        k->hc_reduce(n, hidden, pre, streams, x);
        k->rms_norm(hidden, x, in->norm, config->rms_norm_eps, x);
        sl_act_buffer_round(&in->x, in->step->compute, thread_index, row);
    }
}

void sl_hc_before_jobs(const struct sl_hc_before *before, struct sl_chain_job *ret_jobs)
{
    const struct sl_config *config = before->step->config;
    const struct sl_matrix *fn = &before->hc->fn;
    const size_t groups = (before->n_tokens + TOKENS_AT_ONCE - 1) / TOKENS_AT_ONCE;
    const struct sl_chain_job project = {
        .fn = project_tasks,
        .context = (void *)before,
        .n_items = groups * n_parts(config) * sl_r16_tile_count(fn->rows),
        .grain = 2,
        .phase = SL_PHASE_HYPER_CONNECTION,
        .multiplications = (uint64_t)fn->rows * fn->cols * before->n_tokens,
        .read_bytes = sl_r16_tile_count(fn->rows) * sl_matrix_tile_bytes(fn),
    };

    sl_pool_count(before->step->compute->pool, SL_PHASE_HYPER_CONNECTION, project.read_bytes,
                  project.multiplications);
    ret_jobs[0] = project;
    ret_jobs[1] = (struct sl_chain_job){.fn = before_rows,
                                        .context = (void *)before,
                                        .n_items = before->n_tokens,
                                        .grain = 1,
                                        .phase = SL_PHASE_HYPER_CONNECTION};
}

void sl_hc_after_row(const struct sl_hc_after *after, size_t row)
{
    const uint32_t n = after->step->config->hc_mult, hidden = after->step->config->hidden_size;

    after->step->compute->kernels->hc_update(
        n, hidden, after->mix.post + row * n, after->mix.comb + row * n * n,
        after->out + row * after->out_stride,
        after->step->streams + (after->first + row) * n * hidden);
}

static void after_rows(void *context, size_t first, size_t end, uint32_t thread_index)
{
    (void)thread_index;
    for (size_t row = first; row < end; row++)
        sl_hc_after_row(context, row);
}

struct sl_chain_job sl_hc_after_job(const struct sl_hc_after *after)
{
    return (struct sl_chain_job){.fn = after_rows,
                                 .context = (void *)after,
                                 .n_items = after->n_tokens,
                                 .grain = 1,
                                 .phase = SL_PHASE_HYPER_CONNECTION};
}

void sl_hc_head(const struct sl_step *step, const struct sl_hc_weights *hc, const float *streams,
                float *x)
{
    const struct sl_config *config = step->config;
    const struct sl_kernels *k = step->compute->kernels;
    float m[SL_R16_ROWS] = {0}, pre[SL_HC_MULT_MAX], part[SL_R16_ROWS];
    float factor =
        k->rms_factor((size_t)config->hc_mult * config->hidden_size, streams, config->rms_norm_eps);

    for (uint32_t i = 0; i < n_parts(config); i++) {
        project_part(step, hc, 0, i, streams, 1, part, SL_R16_ROWS);
        for (uint32_t r = 0; r < SL_R16_ROWS; r++)
            m[r] = i == 0 ? part[r] : m[r] + part[r];
    }
    for (uint32_t r = 0; r < config->hc_mult; r++)
        m[r] *= factor;
    for (uint32_t s = 0; s < config->hc_mult; s++)
        pre[s] = sl_sigmoidf(m[s] * hc->scale[0] + hc->base[s]) + config->hc_eps;
    k->hc_reduce(config->hc_mult, config->hidden_size, pre, streams, x);
}
