#include "daemon/engine/feed.h"

#include "core/base/assert.h"
#include "daemon/engine/step_shares.h"

/* One step on its way. */
struct step {
    struct sl_engine *engine;
    struct sl_feed *feeds;
    const struct sl_step_request *hooks;
    struct sl_span spans[SL_FEEDS_MAX];
    uint32_t feed_index[SL_FEEDS_MAX]; /* of each span */
    uint32_t n_spans;
};

/* Passes rows of logits on, numbered as the feeds count their tokens. */
static void give_rows(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    const struct step *step = context;
    struct sl_logits_row given[SL_LOGITS_ROWS_MAX];

    for (uint32_t i = 0; i < n_rows; i++) {
        const uint32_t feed = step->feed_index[rows[i].span_index];

        given[i] = (struct sl_logits_row){feed, step->feeds[feed].n_done + rows[i].token_index,
                                          rows[i].logits};
    }
    step->hooks->on_logits(step->hooks->on_logits_context, given, n_rows);
}

static void make_spans(struct step *step, uint32_t n_feeds, bool mtp)
{
    uint32_t n_tokens[SL_FEEDS_MAX];

    for (uint32_t i = 0; i < n_feeds; i++)
        n_tokens[i] = step->feeds[i].n_tokens - step->feeds[i].n_done;
    sl_step_shares(n_tokens, n_feeds, sl_engine_step_tokens_max(step->engine, SL_STEP_LARGE));
    for (uint32_t i = 0; i < n_feeds; i++) {
        const struct sl_feed *feed = &step->feeds[i];
        const bool is_last = feed->n_done + n_tokens[i] == feed->n_tokens;

        if (n_tokens[i] == 0)
            continue;
        step->feed_index[step->n_spans] = i;
        step->spans[step->n_spans++] = (struct sl_span){
            .kv = feed->kv,
            .tokens = feed->tokens + feed->n_done,
            .n_tokens = n_tokens[i],
            .logits =
                mtp || (feed->logits == SL_LOGITS_LAST && !is_last) ? SL_LOGITS_NONE : feed->logits,
        };
    }
}

/* The MTP block needs, for each token of the step, the one that follows it. A feed's last token has
 * none, so it is left out. */
static int run_mtp(struct step *step, struct sl_step_request *request, struct sl_err *err)
{
    for (uint32_t s = 0; s < step->n_spans; s++) {
        const struct sl_feed *feed = &step->feeds[step->feed_index[s]];
        struct sl_span *span = &step->spans[s];

        span->tokens++;
        span->n_tokens -= feed->n_done + span->n_tokens == feed->n_tokens;
        span->logits = SL_LOGITS_ALL;
    }
    return sl_forward_mtp(sl_engine_forward(step->engine, SL_STEP_LARGE), request, err);
}

static int take_step(struct sl_engine *engine, struct sl_feed *feeds, uint32_t n_feeds, bool mtp,
                     const struct sl_step_request *hooks, struct sl_err *err)
{
    struct step step = {.engine = engine, .feeds = feeds, .hooks = hooks};
    struct sl_step_request request = *hooks;
    uint32_t n_given[SL_FEEDS_MAX] = {0};
    int more = 0, rc;

    sl_assert(n_feeds <= SL_FEEDS_MAX);
    make_spans(&step, n_feeds, mtp);
    if (step.n_spans == 0)
        return 0;
    for (uint32_t s = 0; s < step.n_spans; s++)
        n_given[step.feed_index[s]] = step.spans[s].n_tokens;
    request.spans = step.spans;
    request.n_spans = step.n_spans;
    request.on_logits = give_rows;
    request.on_logits_context = &step;
    rc = sl_engine_step(engine, &request, err);
    if (rc == 0 && mtp)
        rc = run_mtp(&step, &request, err);
    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < n_feeds; i++) {
        feeds[i].n_done += n_given[i];
        more |= feeds[i].n_done < feeds[i].n_tokens;
    }
    return more;
}

int sl_feed_step(struct sl_engine *engine, struct sl_feed *feeds, uint32_t n_feeds,
                 const struct sl_step_request *hooks, struct sl_err *err)
{
    return take_step(engine, feeds, n_feeds, false, hooks, err);
}

int sl_feed_mtp_step(struct sl_engine *engine, struct sl_feed *feeds, uint32_t n_feeds,
                     const struct sl_step_request *hooks, struct sl_err *err)
{
    return take_step(engine, feeds, n_feeds, true, hooks, err);
}

int sl_feed_run(struct sl_engine *engine, struct sl_feed *feed, const struct sl_step_request *hooks,
                struct sl_err *err)
{
    int rc;

    do
        rc = sl_feed_step(engine, feed, 1, hooks, err);
    while (rc > 0);
    return rc;
}
