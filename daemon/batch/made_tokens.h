/* Tokens of an answer that is under way, as the journal keeps them: so that a text can be begun
 * again behind them. A list of records, one for each token; with its log probabilities where the
 * request asks for them. */
#ifndef SL_DAEMON_BATCH_MADE_TOKENS_H
#define SL_DAEMON_BATCH_MADE_TOKENS_H

#include "core/base/bytes.h"
#include "daemon/engine/generation.h"

struct sl_made_tokens {
    struct sl_bytes bytes;
    uint32_t n;
};

void sl_made_tokens_fini(struct sl_made_tokens *made);
void sl_made_tokens_add(struct sl_made_tokens *made, const struct sl_generated *token);

/* Adds a list of records from disk: all of them, or none where it makes no sense (-SL_EFORMAT),
 * also where ids are not below n_vocab. */
int sl_made_tokens_append(struct sl_made_tokens *made, const void *records, size_t size_bytes,
                          uint32_t n_vocab);

/* Reads the record at *at, which begins at 0; returns false at the end. */
bool sl_made_tokens_next(const struct sl_made_tokens *made, size_t *at,
                         struct sl_generated *ret_token);

#endif
