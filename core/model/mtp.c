/* The MTP block: one more layer, over the final streams of a step and the tokens that followed. */
#include <string.h>

#include "core/base/assert.h"
#include "core/model/forward_internal.h"

void sl_forward_carve_mtp(struct sl_forward *f, struct sl_arena *arena,
                          const struct sl_config *config, enum sl_numerics numerics)
{
    const uint64_t tokens = f->params.tokens_max, hidden = config->hidden_size;
    const uint64_t chunk = tokens < SL_CHUNK_TOKENS ? tokens : SL_CHUNK_TOKENS;
    const uint64_t streams = chunk * config->hc_mult;

    f->mtp_e = sl_act_buffer_carve(arena, chunk, config->hidden_size, SL_ACT_BF16, numerics);
    f->mtp_h = sl_act_buffer_carve(arena, streams, config->hidden_size, SL_ACT_BF16, numerics);
    f->mtp_e_out = sl_arena_take(arena, chunk * hidden, sizeof(float));
    f->mtp_h_out = sl_arena_take(arena, streams * hidden, sizeof(float));
}

/* The spans are those of the step before, as far as it kept them, and the MTP block has seen all
 * that came before them. */
static void assert_follows_step(const struct sl_forward *f)
{
    const struct sl_kv_rollback *step = &f->rollback[SL_FORWARD_MAIN];

    sl_assert(f->request.n_spans <= step->n_spans);
    for (uint32_t s = 0; s < f->request.n_spans; s++) {
        const struct sl_span *span = &f->spans[s];

        sl_assert(span->kv == step->spans[s].kv);
        sl_assert(span->n_tokens <= step->spans[s].n_kept);
        sl_assert(span->n_tokens == 0 || span->kv->n_mtp_tokens == step->spans[s].first);
    }
}

/* Moves the streams that have a next token to the front, as the MTP pass counts them. */
static void compact_streams(struct sl_forward *f)
{
    const size_t size = (size_t)f->params.config->hc_mult * f->params.config->hidden_size;
    const struct sl_kv_rollback *step = &f->rollback[SL_FORWARD_MAIN];
    uint32_t from = 0;

    for (uint32_t s = 0; s < f->request.n_spans; s++) {
        const uint32_t to = f->span_first[s];

        if (from != to)
            memmove(f->step.streams + to * size, f->step.streams + from * size,
                    f->spans[s].n_tokens * size * sizeof(float));
        from += step->spans[s].n_tokens;
    }
}

struct mtp_chunk {
    struct sl_forward *f;
    uint32_t first;
};

static void norm_inputs(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct mtp_chunk *chunk = context;
    struct sl_forward *f = chunk->f;
    const struct sl_compute *compute = f->params.compute;
    const struct sl_kernels *k = compute->kernels;
    const struct sl_mtp_weights *mtp = &f->params.weights->mtp;
    const size_t hidden = f->params.config->hidden_size, n = f->params.config->hc_mult;
    const float eps = f->params.config->rms_norm_eps;

    for (size_t row = first; row < end; row++) {
        float *e = f->mtp_e.f32 + row * hidden;

        k->rms_norm(hidden, e, mtp->enorm, eps, e);
        sl_act_buffer_round(&f->mtp_e, compute, thread_index, row);
        for (size_t s = row * n; s < (row + 1) * n; s++) {
            k->rms_norm(hidden, f->step.streams + (chunk->first * n + s) * hidden, mtp->hnorm, eps,
                        f->mtp_h.f32 + s * hidden);
            sl_act_buffer_round(&f->mtp_h, compute, thread_index, s);
        }
    }
}

static void add_inputs(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct mtp_chunk *chunk = context;
    struct sl_forward *f = chunk->f;
    const size_t hidden = f->params.config->hidden_size, n = f->params.config->hc_mult;

    (void)thread_index;
    for (size_t s = first * n; s < end * n; s++)
        for (size_t c = 0; c < hidden; c++)
            f->step.streams[(chunk->first * n + s) * hidden + c] =
                f->mtp_e_out[s / n * hidden + c] + f->mtp_h_out[s * hidden + c];
}

/* streams = e_proj(enorm(embedding of the next token)) + h_proj(hnorm(stream)). */
int sl_forward_set_mtp_streams(struct sl_forward *f, struct sl_err *err)
{
    struct sl_pool *pool = f->params.compute->pool;
    const struct sl_mtp_weights *mtp = &f->params.weights->mtp;
    const size_t hidden = f->params.config->hidden_size, n = f->params.config->hc_mult;

    for (uint32_t first = 0; first < f->step.n_tokens; first += SL_CHUNK_TOKENS) {
        const uint32_t rows = sl_step_chunk_end(&f->step, first) - first;
        struct mtp_chunk chunk = {f, first};
        struct sl_linear_job jobs[2] = {
            {&mtp->e_proj, sl_act_buffer_rows(&f->mtp_e, 0), f->mtp_e_out, hidden, rows, 0},
            {&mtp->h_proj, sl_act_buffer_rows(&f->mtp_h, 0), f->mtp_h_out, hidden, rows * n, 0}};

        int rc = sl_embedding_run(&f->params.weights->embedding, &f->step, first, first + rows,
                                  f->mtp_e.f32, hidden, 1, err);

        if (rc < 0)
            return rc;
        sl_pool_run(pool, SL_PHASE_HEAD, rows, 1, norm_inputs, &chunk);
        sl_linear_run(f->params.compute, SL_PHASE_HEAD, jobs, 2);
        sl_pool_run(pool, SL_PHASE_HEAD, rows, 1, add_inputs, &chunk);
    }
    return 0;
}

int sl_forward_begin_mtp(struct sl_forward *f, const struct sl_step_request *request,
                         struct sl_err *err)
{
    int rc;

    sl_assert(f->params.weights->draft.kind == SL_DRAFT_MTP);
    rc = sl_forward_begin_part(f, request, SL_FORWARD_MTP, err);
    if (rc < 0)
        return rc;
    assert_follows_step(f);
    compact_streams(f);
    sl_pool_phase(f->params.compute->pool, SL_PHASE_OUTSIDE);
    return 0;
}

int sl_forward_mtp(struct sl_forward *f, const struct sl_step_request *request, struct sl_err *err)
{
    int rc = sl_forward_begin_mtp(f, request, err);

    return rc < 0 ? rc : sl_forward_finish(f, err);
}
