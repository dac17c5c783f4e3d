#include "core/model/hyper_connection.h"

#include "core/kernels/scalar_math.h"

/* Rows of a mixing matrix: pre, post and comb of up to SL_HC_MULT_MAX streams, in whole tiles. */
#define MIX_ROWS_MAX 80u
_Static_assert((2 + SL_HC_MULT_MAX) * SL_HC_MULT_MAX <= MIX_ROWS_MAX, "rows of hc_*_fn");

struct sl_hc_mix sl_hc_mix_carve(struct sl_arena *arena, const struct sl_config *config,
                                 uint64_t tokens)
{
    struct sl_hc_mix mix;

    mix.post = sl_arena_take(arena, tokens * config->hc_mult, sizeof(float));
    mix.comb = sl_arena_take(arena, tokens * config->hc_mult * config->hc_mult, sizeof(float));
    return mix;
}

/* m = fn . streams / rms(streams). Each stream's columns are summed apart, then streams ascending:
 * four short chains of additions instead of a long one. */
static void mixes(const struct sl_step *step, const struct sl_hc_weights *hc, const float *streams,
                  float m[MIX_ROWS_MAX])
{
    const struct sl_kernels *k = step->compute->kernels;
    const uint32_t hidden = step->config->hidden_size, hc_mult = step->config->hc_mult;
    const uint32_t rows = hc->fn.rows;
    const size_t n_tiles = sl_r16_tile_count(rows), tile_bytes = sl_matrix_tile_bytes(&hc->fn);
    float factor = k->rms_factor((size_t)hc_mult * hidden, streams, step->config->rms_norm_eps);
    float part[SL_R16_ROWS];

    for (size_t tile = 0; tile < n_tiles; tile++) {
        float *out = m + tile * SL_R16_ROWS;

        for (uint32_t s = 0; s < hc_mult; s++) {
            k->matmul_f32(1, hidden, 1,
                          hc->fn.tiles + tile * tile_bytes +
                              (size_t)s * hidden * SL_R16_ROWS * sizeof(float),
                          streams + (size_t)s * hidden, hidden, part, SL_R16_ROWS);
            for (uint32_t r = 0; r < SL_R16_ROWS; r++)
                out[r] = s == 0 ? part[r] : out[r] + part[r];
        }
    }
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

/* Softmax over each row, then Sinkhorn: rows and columns divided by their sums in turn. */
static void sinkhorn(const struct sl_config *config, float *comb)
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

struct before {
    const struct sl_step *step;
    const struct sl_hc_weights *hc;
    const float *norm;
    uint32_t first;
    const struct sl_hc_mix *mix;
    const struct sl_act_buffer *x;
};

static void before_rows(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct before *in = context;
    const struct sl_config *config = in->step->config;
    const struct sl_kernels *k = in->step->compute->kernels;
    const uint32_t n = config->hc_mult, hidden = config->hidden_size;
    const float *scale = in->hc->scale, *base = in->hc->base;

    (void)thread_index;
    for (size_t row = first; row < end; row++) {
        const float *streams = in->step->streams + (in->first + row) * n * hidden;
        float *post = in->mix->post + row * n, *comb = in->mix->comb + row * n * n;
        float *x = in->x->f32 + row * hidden;
        float m[MIX_ROWS_MAX], pre[SL_HC_MULT_MAX];

        mixes(in->step, in->hc, streams, m);
        for (uint32_t s = 0; s < n; s++) {
            pre[s] = sl_sigmoidf(m[s] * scale[0] + base[s]) + config->hc_eps;
            post[s] = 2.0f * sl_sigmoidf(m[n + s] * scale[1] + base[n + s]);
        }
        for (uint32_t i = 0; i < n * n; i++)
            comb[i] = m[2 * n + i] * scale[2] + base[2 * n + i];
        sinkhorn(config, comb);
        k->hc_reduce(n, hidden, pre, streams, x);
        k->rms_norm(hidden, x, in->norm, config->rms_norm_eps, x);
        sl_act_buffer_round(in->x, k, row);
    }
}

void sl_hc_before(const struct sl_step *step, const struct sl_hc_weights *hc, const float *norm,
                  uint32_t first, uint32_t end, const struct sl_hc_mix *mix,
                  const struct sl_act_buffer *x)
{
    struct before in = {step, hc, norm, first, mix, x};

    sl_pool_run(step->compute->pool, end - first, 1, before_rows, &in);
}

struct after {
    const struct sl_step *step;
    uint32_t first;
    const struct sl_hc_mix *mix;
    const float *out;
    size_t out_stride;
};

static void after_rows(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct after *in = context;
    const uint32_t n = in->step->config->hc_mult, hidden = in->step->config->hidden_size;

    (void)thread_index;
    for (size_t row = first; row < end; row++)
        in->step->compute->kernels->hc_update(
            n, hidden, in->mix->post + row * n, in->mix->comb + row * n * n,
            in->out + row * in->out_stride, in->step->streams + (in->first + row) * n * hidden);
}

void sl_hc_after(const struct sl_step *step, uint32_t first, uint32_t end,
                 const struct sl_hc_mix *mix, const float *out, size_t out_stride)
{
    struct after in = {step, first, mix, out, out_stride};

    sl_pool_run(step->compute->pool, end - first, 1, after_rows, &in);
}

void sl_hc_head(const struct sl_step *step, const struct sl_hc_weights *hc, const float *norm,
                const float *streams, float *x)
{
    const struct sl_config *config = step->config;
    const struct sl_kernels *k = step->compute->kernels;
    float m[MIX_ROWS_MAX], pre[SL_HC_MULT_MAX];

    mixes(step, hc, streams, m);
    for (uint32_t s = 0; s < config->hc_mult; s++)
        pre[s] = sl_sigmoidf(m[s] * hc->scale[0] + hc->base[s]) + config->hc_eps;
    k->hc_reduce(config->hc_mult, config->hidden_size, pre, streams, x);
    k->rms_norm(config->hidden_size, x, norm, config->rms_norm_eps, x);
}
