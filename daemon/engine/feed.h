/* Feeding: given tokens go through the model, and none is sampled. Commands feed a text to score
 * it, to record its routes, or to measure.
 *
 * Each step takes as many tokens as fit; several sequences share it evenly. */
#ifndef SL_DAEMON_ENGINE_FEED_H
#define SL_DAEMON_ENGINE_FEED_H

#include <stdbool.h>

#include "daemon/engine/engine.h"

#define SL_FEEDS_MAX 64u

struct sl_feed {
    struct sl_kv_cache *kv;
    const int32_t *tokens; /* (n_tokens), borrowed */
    uint32_t n_tokens;
    enum sl_logits_wanted logits; /* LAST: after the last one of all */
    uint32_t n_done;              /* of the tokens, seen by the sequence */
};

/* One step with the next tokens of the feeds, at most SL_FEEDS_MAX and the engine's spans_max.
 * `hooks` says what stops the step and whom it tells; its spans are not looked at. In rows of
 * logits, span_index is the feed's index, and token_index counts from the feed's first token.
 *
 * Returns 1 if tokens are left, 0 if not, or fails as a step does: then no feed has moved. */
int sl_feed_step(struct sl_engine *engine, struct sl_feed *feeds, uint32_t n_feeds,
                 const struct sl_step_request *hooks, struct sl_err *err);

/* Does what sl_feed_step() does, and runs the MTP block over each step as well. The logits are the
 * block's, for all tokens but each feed's last: row t predicts what follows token t + 1. `logits`
 * is ignored. If the block's pass fails, the sequences can no longer be used. */
int sl_feed_mtp_step(struct sl_engine *engine, struct sl_feed *feeds, uint32_t n_feeds,
                     const struct sl_step_request *hooks, struct sl_err *err);

/* Feeds all tokens of one sequence, and returns 0, or fails as a step does. */
int sl_feed_run(struct sl_engine *engine, struct sl_feed *feed, const struct sl_step_request *hooks,
                struct sl_err *err);

#endif
