/* The sessions of a worker: sequences, and the token ids that each has seen.
 *
 * A new prompt goes to the session that has seen the longest beginning of it, so that this need not
 * be computed again. Belongs to the engine's thread. */
#ifndef SL_DAEMON_WORKER_SESSION_POOL_H
#define SL_DAEMON_WORKER_SESSION_POOL_H

#include "daemon/engine/engine.h"

struct sl_session {
    struct sl_kv_cache *kv; /* NULL: it has none yet */
    int32_t *ids;           /* (context_tokens) of the tokens that kv has seen, */
    uint32_t n_ids;         /* and of those that it is about to see */
    bool is_used;           /* by a text */
    bool is_ending;         /* that text may end soon, since nobody reads it */
    uint64_t used;          /* number of the last use */
};

struct sl_session_pool {
    struct sl_engine *engine;
    struct sl_session *sessions; /* (n_sessions) */
    uint32_t n_sessions;
    uint32_t context_tokens;
    uint64_t n_uses;
};

/* Fails with -ENOMEM. The caller calls fini(), which destroys the sequences, before it closes the
 * engine. */
int sl_session_pool_init(struct sl_session_pool *pool, struct sl_engine *engine,
                         uint32_t n_sessions, uint32_t context_tokens, struct sl_err *err);
void sl_session_pool_fini(struct sl_session_pool *pool);

/* Gets a session for a prompt: *ret_session, which has seen the first *ret_n_cached of its tokens,
 * fewer than all. Returns -EBUSY where all are in use, or where it is worth waiting for the one
 * that knows most of the prompt, which is_ending. Fails as sl_engine_sequence_create(). */
int sl_session_get(struct sl_session_pool *pool, const int32_t *tokens, uint32_t n_tokens,
                   struct sl_session **ret_session, uint32_t *ret_n_cached, struct sl_err *err);

/* Notes ids that the sequence has seen, or is about to see, from position `at` on. */
void sl_session_note(struct sl_session_pool *pool, struct sl_session *session, uint32_t at,
                     const int32_t *ids, uint32_t n_ids);

/* Gives a session back. No step has its sequence. */
void sl_session_put(struct sl_session *session);

/* Counts the sessions that are in use. */
uint32_t sl_session_pool_used(const struct sl_session_pool *pool);

#endif
