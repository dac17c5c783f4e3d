/* Drafts, whichever kind the model has: one request for all. */
#include <string.h>

#include "core/base/assert.h"
#include "core/model/forward_internal.h"

void sl_forward_carve_drafts(struct sl_forward *f, struct sl_arena *arena,
                             const struct sl_config *config, const struct sl_draft *draft,
                             enum sl_numerics numerics)
{
    const uint32_t spans = f->params.spans_max;
    struct sl_forward_drafts *d = &f->drafts;

    if (draft->kind == SL_DRAFT_NONE)
        return;
    d->spans = sl_arena_take(arena, spans, sizeof(*d->spans));
    d->span_of = sl_arena_take(arena, spans, sizeof(*d->span_of));
    if (draft->kind != SL_DRAFT_MTP)
        return;
    d->ids = sl_arena_take(arena, spans, sizeof(*d->ids));
    d->chain = sl_kv_rollback_carve(arena, config, numerics, config->num_hidden_layers, 1,
                                    spans * (SL_DRAFTS_MAX - 1), spans);
}

static void check_spans(const struct sl_forward *f)
{
    const struct sl_forward_drafts *d = &f->drafts;

    for (uint32_t i = 0; i < d->request.n_spans; i++) {
        const struct sl_draft_span *span = &d->spans[i];
        const struct sl_kv_rollback_span *step = sl_forward_step_span(f, i);

        sl_assert(span->span_index < f->rollback[SL_FORWARD_MAIN].n_spans);
        sl_assert(i == 0 || span->span_index > d->spans[i - 1].span_index);
        sl_assert(span->n_seen >= 1 && span->n_seen <= step->n_kept);
        sl_assert(span->n_drafts <= SL_DRAFTS_MAX &&
                  span->n_drafts <= step->kv->capacity_tokens - step->kv->n_tokens);
    }
}

/* ---- DSpark ------------------------------------------------------------------------------------
 * Its stages have seen what the step has, so that the request's spans that only see are done.
 */

static void take_dspark(void *context, struct sl_dspark_row *rows, uint32_t n_rows)
{
    struct sl_forward *f = context;
    const struct sl_draft_request *request = &f->drafts.request;
    struct sl_logits_row given[SL_LOGITS_ROWS_MAX] = {{0}};
    int32_t ids[SL_LOGITS_ROWS_MAX];

    for (uint32_t i = 0; i < n_rows; i++)
        given[i] = (struct sl_logits_row){f->drafts.span_of[rows[i].span_index],
                                          rows[i].draft_index, rows[i].logits};
    request->on_drafts(request->on_drafts_context, given, n_rows, ids);
    for (uint32_t i = 0; i < n_rows; i++)
        rows[i].token = ids[i];
}

/* The list is made where the pass will have it. */
static int begin_dspark_drafts(struct sl_forward *f, struct sl_err *err)
{
    struct sl_forward_drafts *d = &f->drafts;
    struct sl_dspark_request request = {.spans = f->blocks.spans,
                                        .stop = d->request.stop,
                                        .on_draft = take_dspark,
                                        .on_draft_context = f};

    for (uint32_t i = 0; i < d->request.n_spans; i++) {
        const struct sl_draft_span *span = &d->spans[i];
        const uint32_t block = f->params.config->dspark.block_size;

        if (span->n_drafts == 0)
            continue;
        d->span_of[request.n_spans] = i;
        f->blocks.spans[request.n_spans++] =
            (struct sl_dspark_span){.kv = sl_forward_step_span(f, i)->kv,
                                    .anchor = span->next[span->n_seen - 1],
                                    .n_max = span->n_drafts < block ? span->n_drafts : block,
                                    .chance_min = span->chance_min};
    }
    return sl_forward_begin_dspark(f, &request, err);
}

int sl_forward_begin_drafts(struct sl_forward *f, const struct sl_draft_request *request,
                            struct sl_err *err)
{
    const enum sl_draft_kind kind = f->params.weights->draft.kind;
    struct sl_forward_drafts *d = &f->drafts;

    sl_assert(kind != SL_DRAFT_NONE && request->n_spans >= 1);
    d->request = *request;
    memcpy(d->spans, request->spans, request->n_spans * sizeof(*d->spans));
    check_spans(f);
    return kind == SL_DRAFT_MTP ? sl_forward_begin_mtp_drafts(f, err) : begin_dspark_drafts(f, err);
}
