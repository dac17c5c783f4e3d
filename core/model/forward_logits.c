/* The model's head, and the MTP block's: logits of the rows that a step's spans want, a group at a
 * time, so that the head's weights are read once for each group. */
#include <errno.h>

#include "core/kernels/formats.h"
#include "core/model/forward_internal.h"

void sl_forward_carve_logits(struct sl_forward *f, struct sl_arena *arena,
                             const struct sl_config *config, enum sl_numerics numerics)
{
    f->head_x =
        sl_act_buffer_carve(arena, SL_LOGITS_ROWS_MAX, config->hidden_size, SL_ACT_BF16, numerics);
    f->logits = sl_arena_take(arena, SL_LOGITS_ROWS_MAX * sl_r16_padded_rows(config->vocab_size),
                              sizeof(float));
}

/* The first token of a span that wants logits; n_tokens where none does. */
static uint32_t first_wanted(const struct sl_span *span)
{
    if (span->logits == SL_LOGITS_NONE || span->n_tokens == 0)
        return span->n_tokens;
    return span->logits == SL_LOGITS_ALL ? 0 : span->n_tokens - 1;
}

void sl_forward_count_rows(struct sl_forward *f)
{
    f->n_rows_left = 0;
    for (uint32_t s = 0; s < f->request.n_spans; s++)
        f->n_rows_left += f->spans[s].n_tokens - first_wanted(&f->spans[s]);
    f->row_span = 0;
    f->row_token = f->request.n_spans ? first_wanted(&f->spans[0]) : 0;
}

void sl_forward_drop_rows(struct sl_forward *f, uint32_t span_index)
{
    const struct sl_span *span = &f->spans[span_index];
    const bool is_last = span_index + 1 == f->request.n_spans;

    if (span_index > f->row_span) {
        f->n_rows_left -= span->n_tokens - first_wanted(span);
    } else if (span_index == f->row_span) {
        f->n_rows_left -= span->n_tokens - f->row_token;
        f->row_token = is_last ? 0 : first_wanted(span + 1);
    } else {
        f->row_span--;
    }
}

/* Lists the rows of the next group. Returns how many there are. */
static uint32_t list_rows(struct sl_forward *f)
{
    const size_t stride = sl_r16_padded_rows(f->params.config->vocab_size);
    uint32_t n = 0;

    while (n < SL_LOGITS_ROWS_MAX && n < f->n_rows_left) {
        if (f->row_token == f->spans[f->row_span].n_tokens) {
            f->row_token = first_wanted(&f->spans[++f->row_span]);
            continue;
        }
        f->row_tokens[n] = f->span_first[f->row_span] + f->row_token;
        f->rows[n] = (struct sl_logits_row){f->row_span, f->row_token++, f->logits + n * stride};
        n++;
    }
    f->n_rows_left -= n;
    return n;
}

/* Items are rows of the group. */
static void set_head_input(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct sl_forward *f = context;
    const struct sl_weights *weights = f->params.weights;
    const bool mtp = f->part == SL_FORWARD_MTP;
    const struct sl_config *c = f->params.config;
    const size_t hidden = c->hidden_size;

    for (size_t row = first; row < end; row++) {
        float *x = f->head_x.f32 + row * hidden;

        sl_hc_head(&f->step, mtp ? &weights->mtp.hc_head : &weights->head.hc,
                   f->step.streams + f->row_tokens[row] * c->hc_mult * hidden, x);
        f->params.compute->kernels->rms_norm(
            hidden, x, mtp ? weights->mtp.norm : weights->head.norm, c->rms_norm_eps, x);
        sl_act_buffer_round(&f->head_x, f->params.compute, thread_index, row);
    }
}

bool sl_forward_is_finite(const float *values, size_t count)
{
    bool finite = true;

    for (size_t i = 0; i < count; i++)
        finite &= (sl_f32_bits(values[i]) & 0x7f800000u) != 0x7f800000u;
    return finite;
}

/* Weights are finite, which was seen to when they were loaded, but damaged ones can be so large
 * that what is computed from them is not. */
static int check_rows(const struct sl_forward *f, uint32_t n_rows, struct sl_err *err)
{
    for (uint32_t row = 0; row < n_rows; row++)
        if (!sl_forward_is_finite(f->rows[row].logits, f->params.config->vocab_size))
            return sl_err_set(err, -SL_ECORRUPT,
                              "the logits after token %u are not finite: weights of the model, or "
                              "of experts that it used, are damaged",
                              f->tokens[f->row_tokens[row]].position);
    return 0;
}

void sl_forward_run_head(struct sl_forward *f, uint32_t n_rows)
{
    const struct sl_linear_job job = {
        .matrix = &f->params.weights->head.linear,
        .x = sl_act_buffer_rows(&f->head_x, 0),
        .y = f->logits,
        .y_stride = sl_r16_padded_rows(f->params.config->vocab_size),
        .token_count = n_rows,
    };

    sl_linear_run(f->params.compute, SL_PHASE_HEAD, &job, 1);
}

int sl_forward_give_rows(struct sl_forward *f, struct sl_err *err)
{
    struct sl_pool *pool = f->params.compute->pool;
    const uint32_t n_rows = list_rows(f);
    int rc;

    if (sl_step_is_stopped(&f->step))
        return sl_err_set(err, -ECANCELED, "stopped before the logits");
    sl_pool_run(pool, SL_PHASE_HEAD, n_rows, 1, set_head_input, f);
    sl_forward_run_head(f, n_rows);
    rc = check_rows(f, n_rows, err);
    if (rc < 0)
        return rc;
    sl_pool_phase(pool, SL_PHASE_OUTSIDE);
    f->request.on_logits(f->request.on_logits_context, f->rows, n_rows);
    return 0;
}
