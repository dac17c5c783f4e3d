/* A session: what a conversation left behind in the model, which is the tokens seen and the KV
 * cache they left, and the marks that it can go back to.
 *
 *     create() ──► steps append tokens ──► mark() ──► more steps ──► rewind(), fork(), destroy()
 *
 * Steps are the forward pass's: their spans name sl_session_kv(), which grows by them. A session
 * that was rewound, forked off or read from bytes (core/session/session_bytes.h) gives the same
 * logits, bit for bit, as one that was never disturbed. That holds for the MTP block, too, where
 * the session goes on with the token that came next before: the block has seen that one already.
 * With another one only the block's own logits differ, which are guesses anyway.
 *
 * All memory comes from the pool: what is left of its budget decides which steps can be taken, and
 * sl_kv_cache_need() tells what the next one takes. Marks cost what sl_session_mark() says; to have
 * room, drop marks and destroy sessions. Nothing here may be called while a step has the session.
 * All sessions of a pool belong to one thread. */
#ifndef SL_SESSION_SESSION_H
#define SL_SESSION_SESSION_H

#include <stdint.h>

#include "core/model/kv_mark.h"

struct sl_session;
struct sl_mark;

/* Makes an empty session of up to capacity_tokens tokens. Fails with -SL_EBUDGET or -ENOMEM. The
 * caller destroys *ret_session, before the pool. */
int sl_session_create(struct sl_session **ret_session, struct sl_kv_pool *pool,
                      uint32_t capacity_tokens, struct sl_err *err);

/* Ends it with its marks. Sessions that were forked off it live on. NULL is allowed. */
void sl_session_destroy(struct sl_session *session);

/* For spans. */
struct sl_kv_cache *sl_session_kv(struct sl_session *session);

/* Tokens that the session has seen, and the ids of some of them. */
uint32_t sl_session_token_count(const struct sl_session *session);
void sl_session_tokens(const struct sl_session *session, uint32_t first, uint32_t n_tokens,
                       int32_t *ret_tokens);

/* How many of `tokens` the session begins with. */
uint32_t sl_session_common_prefix(const struct sl_session *session, const int32_t *tokens,
                                  uint32_t n_tokens);

/* ---- marks -------------------------------------------------------------------------------------
 */

/* Takes a mark where the session is, or finds the one that is there. At once it takes a list of
 * pages; each step after it takes copies of the rows that it overwrites, and in the end the mark
 * has cost its windows and compressor rows (sl_kv_mark_measure(); some 25 MB for Pro). The mark is
 * the session's, and good until dropped, or until the session goes back to before it or ends. Fails
 * with -SL_EBUDGET or -ENOMEM. */
int sl_session_mark(struct sl_session *session, struct sl_mark **ret_mark, struct sl_err *err);

/* Tokens before the mark. */
uint32_t sl_mark_token_count(const struct sl_mark *mark);

/* The last mark with at most n_tokens tokens before it; NULL if there is none. */
struct sl_mark *sl_session_find_mark(const struct sl_session *session, uint32_t n_tokens);

void sl_session_drop_mark(struct sl_session *session, struct sl_mark *mark);

/* Goes back to a mark, or with NULL to the beginning. Later marks are gone then; this one stays.
 * Memory that was taken since goes back to the pool. */
void sl_session_rewind(struct sl_session *session, struct sl_mark *mark);

/* Makes another session, of up to capacity_tokens tokens, that is where this one was at the mark.
 * Both share what lies before it; it has no marks. Fails as sl_session_create(). */
int sl_session_fork(struct sl_session **ret_child, const struct sl_session *session,
                    const struct sl_mark *mark, uint32_t capacity_tokens, struct sl_err *err);

#endif
