#include "core/session/session.h"

#include <errno.h>
#include <stdlib.h>

#include "core/base/assert.h"
#include "core/session/session_internal.h"

static struct sl_session *allocate(void)
{
    struct sl_session *session = calloc(1, sizeof(*session));

    if (session)
        sl_list_init(&session->marks);
    return session;
}

int sl_session_create(struct sl_session **ret_session, struct sl_kv_pool *pool,
                      uint32_t capacity_tokens, struct sl_err *err)
{
    struct sl_session *session = allocate();
    int rc;

    if (!session)
        return sl_err_set(err, -ENOMEM, "session: out of memory");
    rc = sl_kv_cache_init(&session->kv, pool, capacity_tokens, err);
    if (rc < 0) {
        free(session);
        return rc;
    }
    *ret_session = session;
    return 0;
}

void sl_session_destroy(struct sl_session *session)
{
    if (!session)
        return;
    while (!sl_list_is_empty(&session->marks))
        sl_session_drop_mark(session, sl_mark_of(session->marks.next));
    sl_kv_cache_fini(&session->kv);
    free(session);
}

struct sl_kv_cache *sl_session_kv(struct sl_session *session)
{
    return &session->kv;
}

/* ---- tokens ------------------------------------------------------------------------------------
 */

uint32_t sl_session_token_count(const struct sl_session *session)
{
    return session->kv.n_tokens;
}

void sl_session_tokens(const struct sl_session *session, uint32_t first, uint32_t n_tokens,
                       int32_t *ret_tokens)
{
    sl_assert(first <= session->kv.n_tokens && n_tokens <= session->kv.n_tokens - first);
    for (uint32_t i = 0; i < n_tokens; i++)
        ret_tokens[i] = *sl_kv_id(&session->kv, first + i);
}

uint32_t sl_session_common_prefix(const struct sl_session *session, const int32_t *tokens,
                                  uint32_t n_tokens)
{
    uint32_t n = 0;

    while (n < n_tokens && n < session->kv.n_tokens && *sl_kv_id(&session->kv, n) == tokens[n])
        n++;
    return n;
}

/* ---- marks -------------------------------------------------------------------------------------
 */

uint32_t sl_mark_token_count(const struct sl_mark *mark)
{
    return mark->kv.n_tokens;
}

struct sl_mark *sl_session_find_mark(const struct sl_session *session, uint32_t n_tokens)
{
    const struct sl_link *link = session->marks.prev;

    while (link != &session->marks && sl_mark_of(link)->kv.n_tokens > n_tokens)
        link = link->prev;
    return link == &session->marks ? NULL : sl_mark_of(link);
}

int sl_session_mark(struct sl_session *session, struct sl_mark **ret_mark, struct sl_err *err)
{
    struct sl_mark *last = sl_session_find_mark(session, session->kv.n_tokens), *mark;
    int rc;

    sl_assert(!session->kv.in_step);
    if (last && last->kv.n_tokens == session->kv.n_tokens &&
        last->kv.n_mtp_tokens == session->kv.n_mtp_tokens &&
        last->kv.mtp_first == session->kv.mtp_first) {
        *ret_mark = last;
        return 0;
    }
    mark = calloc(1, sizeof(*mark));
    if (!mark)
        return sl_err_set(err, -ENOMEM, "mark: out of memory");
    rc = sl_kv_mark_take(&mark->kv, &session->kv, err);
    if (rc < 0) {
        free(mark);
        return rc;
    }
    sl_list_append(&session->marks, &mark->link);
    *ret_mark = mark;
    return 0;
}

void sl_session_drop_mark(struct sl_session *session, struct sl_mark *mark)
{
    sl_list_remove(&mark->link);
    sl_kv_mark_release(&mark->kv, session->kv.pool);
    free(mark);
}

void sl_session_rewind(struct sl_session *session, struct sl_mark *mark)
{
    struct sl_link *const stays = mark ? &mark->link : &session->marks;

    while (session->marks.prev != stays)
        sl_session_drop_mark(session, sl_mark_of(session->marks.prev));
    if (mark)
        sl_kv_mark_rewind(&mark->kv, &session->kv);
    else
        sl_kv_cache_clear(&session->kv);
}

int sl_session_fork(struct sl_session **ret_child, const struct sl_session *session,
                    const struct sl_mark *mark, uint32_t capacity_tokens, struct sl_err *err)
{
    struct sl_session *child = allocate();
    int rc;

    if (!child)
        return sl_err_set(err, -ENOMEM, "session: out of memory");
    rc = sl_kv_mark_fork(&mark->kv, &session->kv, capacity_tokens, &child->kv, err);
    if (rc < 0) {
        free(child);
        return rc;
    }
    *ret_child = child;
    return 0;
}
