/* Drafts by the MTP block. It predicts the token after next from a token's final streams and the
 * token that followed; chained, it goes on from its own output and its own guess, at the next
 * position. Its layer has nothing but a window, so that it can begin anywhere, and tokens whose
 * guesses nobody wants need no more than their entries there. */
#include <string.h>

#include "core/base/assert.h"
#include "core/model/forward_internal.h"

/* ---- the beginning -----------------------------------------------------------------------------
 */

/* The tokens of the sequence when the block has seen those of the span, and when it has guessed as
 * well. */
static uint32_t seen_tokens(const struct sl_forward *f, uint32_t i)
{
    const struct sl_kv_rollback_span *span = sl_forward_step_span(f, i);

    return span->first + span->n_kept;
}

static uint32_t end_tokens(const struct sl_forward *f, uint32_t i)
{
    const uint32_t n_drafts = f->drafts.spans[i].n_drafts;

    return seen_tokens(f, i) + (n_drafts > 0 ? n_drafts - 1 : 0);
}

/* Takes the pages for guesses, and those that the step's tokens need. */
static int grow_caches(const struct sl_forward *f, struct sl_err *err)
{
    const uint32_t n = f->drafts.request.n_spans;
    uint64_t needed_bytes = 0;
    int rc = 0;

    for (uint32_t i = 0; i < n; i++)
        needed_bytes += sl_kv_cache_need(sl_forward_step_span(f, i)->kv, end_tokens(f, i));
    if (needed_bytes > 0)
        rc = sl_kv_pool_check(sl_forward_step_span(f, 0)->kv->pool, needed_bytes, "guesses", err);
    for (uint32_t i = 0; rc == 0 && i < n; i++)
        rc = sl_kv_cache_grow(sl_forward_step_span(f, i)->kv, end_tokens(f, i), err);
    return rc;
}

/* Moves the streams of the tokens that the block is to see to the front. */
static void compact_seen(struct sl_forward *f)
{
    const size_t size = (size_t)f->params.config->hc_mult * f->params.config->hidden_size;
    const struct sl_kv_rollback *step = &f->rollback[SL_FORWARD_MAIN];
    uint32_t s = 0, from = 0, to = 0;

    for (uint32_t i = 0; i < f->drafts.request.n_spans; i++) {
        const struct sl_draft_span *span = &f->drafts.spans[i];
        uint32_t first;

        for (; s < span->span_index; s++)
            from += step->spans[s].n_tokens;
        first = from + step->spans[s].n_kept - span->n_seen;
        if (first != to)
            memmove(f->step.streams + to * size, f->step.streams + first * size,
                    span->n_seen * size * sizeof(float));
        to += span->n_seen;
    }
}

/* The rows of the present round's logits: guesses. */
static void take_drafts(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    struct sl_forward *f = context;
    struct sl_forward_drafts *d = &f->drafts;
    struct sl_logits_row given[SL_LOGITS_ROWS_MAX] = {{0}};

    for (uint32_t i = 0; i < n_rows; i++)
        given[i] =
            (struct sl_logits_row){d->span_of[rows[i].span_index], d->n_guessed, rows[i].logits};
    d->request.on_drafts(d->request.on_drafts_context, given, n_rows, d->ids + d->n_given);
    for (uint32_t i = 0; i < n_rows; i++)
        sl_assert(d->ids[d->n_given + i] >= 0 &&
                  (uint32_t)d->ids[d->n_given + i] < f->params.config->vocab_size);
    d->n_given += n_rows;
}

/* Whether every span is one token and wants a guess: then none is left to be seen alone. */
static bool all_guess(const struct sl_forward_drafts *d)
{
    for (uint32_t i = 0; i < d->request.n_spans; i++)
        if (d->spans[i].n_seen > 1 || d->spans[i].n_drafts == 0)
            return false;
    return true;
}

int sl_forward_begin_mtp_drafts(struct sl_forward *f, struct sl_err *err)
{
    struct sl_forward_drafts *d = &f->drafts;
    const uint32_t n_spans = d->request.n_spans;
    const struct sl_step_request pass = {.spans = f->spans,
                                         .n_spans = n_spans,
                                         .stop = d->request.stop,
                                         .on_logits = take_drafts,
                                         .on_logits_context = f};
    int rc;

    sl_assert(f->params.config->compress_ratios[f->params.config->num_hidden_layers] == 0);
    sl_assert(f->state == SL_FORWARD_STREAMS_LEFT);
    d->round = all_guess(d) ? SL_ROUND_GUESS : SL_ROUND_SEE;
    for (uint32_t i = 0; i < n_spans; i++) {
        struct sl_kv_cache *kv = sl_forward_step_span(f, i)->kv;

        sl_kv_cache_follow_on(kv, seen_tokens(f, i) - d->spans[i].n_seen);
        d->span_of[i] = i;
        f->spans[i] =
            (struct sl_span){kv, d->spans[i].next, d->spans[i].n_seen,
                             d->round == SL_ROUND_GUESS ? SL_LOGITS_LAST : SL_LOGITS_NONE};
    }
    rc = grow_caches(f, err);
    if (rc == 0)
        rc = sl_forward_begin_part(f, &pass, SL_FORWARD_MTP, err);
    if (rc < 0)
        return rc;
    d->is_open = true;
    d->n_guessed = d->n_given = 0;
    compact_seen(f);
    sl_pool_phase(f->params.compute->pool, SL_PHASE_OUTSIDE);
    return 0;
}

/* ---- further rounds ----------------------------------------------------------------------------
 */

/* Rows that guesses will overwrite in the block's ring are those of tokens that it still sees. */
static void save_chain(struct sl_forward *f)
{
    struct sl_forward_drafts *d = &f->drafts;

    for (uint32_t i = 0; i < d->request.n_spans; i++)
        if (d->spans[i].n_drafts > 1)
            sl_kv_rollback_add(&d->chain, sl_forward_step_span(f, i)->kv, seen_tokens(f, i),
                               d->spans[i].n_drafts - 1);
    sl_kv_rollback_save(&d->chain);
}

/* Makes one token of each span that wants another guess the round's: the last one that was seen, or
 * the latest guess. Its streams go to the front. Returns how many spans there are. */
static uint32_t choose_spans(struct sl_forward *f)
{
    const size_t size = (size_t)f->params.config->hc_mult * f->params.config->hidden_size;
    struct sl_forward_drafts *d = &f->drafts;
    uint32_t n = 0;

    for (uint32_t s = 0; s < f->request.n_spans; s++) {
        const uint32_t i = d->span_of[s];
        const struct sl_draft_span *span = &d->spans[i];
        const uint32_t last = f->span_first[s] + f->spans[s].n_tokens - 1;

        if (span->n_drafts <= d->n_guessed)
            continue;
        if (last != n)
            memmove(f->step.streams + n * size, f->step.streams + last * size,
                    size * sizeof(float));
        d->ids[n] = d->n_guessed == 0 ? span->next[span->n_seen - 1] : d->ids[s];
        d->span_of[n] = i;
        f->spans[n] =
            (struct sl_span){sl_forward_step_span(f, i)->kv, &d->ids[n], 1, SL_LOGITS_LAST};
        f->span_position[n] = seen_tokens(f, i) - 1 + d->n_guessed;
        n++;
    }
    return n;
}

void sl_forward_next_round(struct sl_forward *f)
{
    struct sl_forward_drafts *d = &f->drafts;
    uint32_t n;

    d->n_guessed += d->round != SL_ROUND_SEE;
    n = choose_spans(f);
    if (n == 0)
        return;
    if (d->n_guessed == 1)
        save_chain(f);
    d->round = d->n_guessed == 0 ? SL_ROUND_GUESS : SL_ROUND_CHAIN;
    d->n_given = 0;
    f->request.n_spans = n;
    f->saves_rows = false;
    f->sets_streams = d->round == SL_ROUND_CHAIN;
    f->next_layer = f->first_layer;
    sl_forward_set_tokens(f);
    sl_forward_count_rows(f);
}

void sl_forward_end_drafts(struct sl_forward *f)
{
    if (!f->drafts.is_open)
        return;
    sl_kv_rollback_restore(&f->drafts.chain);
    sl_kv_rollback_clear(&f->drafts.chain);
    f->drafts.is_open = false;
}
