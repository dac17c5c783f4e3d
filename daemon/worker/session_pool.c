#include "daemon/worker/session_pool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"

int sl_session_pool_init(struct sl_session_pool *pool, struct sl_engine *engine,
                         uint32_t n_sessions, uint32_t context_tokens, struct sl_err *err)
{
    *pool = (struct sl_session_pool){
        .engine = engine, .n_sessions = n_sessions, .context_tokens = context_tokens};
    pool->sessions = calloc(n_sessions, sizeof(*pool->sessions));
    for (uint32_t i = 0; pool->sessions && i < n_sessions; i++) {
        pool->sessions[i].ids = calloc(context_tokens, sizeof(int32_t));
        if (!pool->sessions[i].ids)
            break;
        if (i + 1 == n_sessions)
            return 0;
    }
    sl_session_pool_fini(pool);
    return sl_err_set(err, -ENOMEM, "sessions: out of memory");
}

void sl_session_pool_fini(struct sl_session_pool *pool)
{
    for (uint32_t i = 0; pool->sessions && i < pool->n_sessions; i++) {
        sl_engine_sequence_destroy(pool->engine, pool->sessions[i].kv);
        free(pool->sessions[i].ids);
    }
    free(pool->sessions);
    *pool = (struct sl_session_pool){0};
}

static bool begins_with(const int32_t *tokens, uint32_t n_tokens, const int32_t *ids, uint32_t n)
{
    return n < n_tokens && memcmp(ids, tokens, n * sizeof(*ids)) == 0;
}

/* Counts the tokens of the prompt that the session's sequence begins with; a sequence can only be
 * gone on with as it is. At least one token is left, since only a step gives logits. Of a session
 * that is ending, which goes on until it has seen all of its prompt but one token, these count. */
static uint32_t n_known(const struct sl_session *session, const int32_t *tokens, uint32_t n_tokens)
{
    const uint32_t n = !session->kv         ? 0
                       : session->is_ending ? session->n_ids - 1
                                            : session->kv->n_tokens;

    return begins_with(tokens, n_tokens, session->ids, n) ? n : 0;
}

/* Among sessions that know as much, one that has seen nothing goes first, then the one that was
 * not used for the longest time. */
static bool is_better(const struct sl_session *a, uint32_t a_known, const struct sl_session *b,
                      uint32_t b_known)
{
    if (a_known != b_known)
        return a_known > b_known;
    return a->used < b->used;
}

int sl_session_get(struct sl_session_pool *pool, const int32_t *tokens, uint32_t n_tokens,
                   struct sl_session **ret_session, uint32_t *ret_n_cached, struct sl_err *err)
{
    struct sl_session *best = NULL;
    uint32_t best_known = 0;
    int rc;

    for (uint32_t i = 0; i < pool->n_sessions; i++) {
        struct sl_session *session = &pool->sessions[i];
        const uint32_t known = n_known(session, tokens, n_tokens);

        if (session->is_used && !(session->is_ending && known > 0))
            continue;
        if (!best || is_better(session, known, best, best_known)) {
            best = session;
            best_known = known;
        }
    }
    if (!best || best->is_used)
        return -EBUSY;
    if (!best->kv) {
        rc = sl_engine_sequence_create(pool->engine, pool->context_tokens, &best->kv, err);
        if (rc < 0)
            return rc;
    }
    if (best_known == 0)
        sl_kv_cache_clear(best->kv);
    best->is_used = true;
    best->is_ending = false;
    best->used = ++pool->n_uses;
    *ret_session = best;
    *ret_n_cached = best_known;
    return 0;
}

void sl_session_note(struct sl_session_pool *pool, struct sl_session *session, uint32_t at,
                     const int32_t *ids, uint32_t n_ids)
{
    sl_assert(at + n_ids <= pool->context_tokens);
    memcpy(session->ids + at, ids, n_ids * sizeof(*ids));
    session->n_ids = at + n_ids;
}

void sl_session_put(struct sl_session *session)
{
    session->is_used = false;
    session->is_ending = false;
}

uint32_t sl_session_pool_used(const struct sl_session_pool *pool)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < pool->n_sessions; i++)
        n += pool->sessions[i].is_used;
    return n;
}
