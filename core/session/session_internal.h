/* The state of a session: for core/session alone. */
#ifndef SL_SESSION_SESSION_INTERNAL_H
#define SL_SESSION_SESSION_INTERNAL_H

#include "core/base/list.h"
#include "core/session/session.h"

struct sl_session {
    struct sl_kv_cache kv;
    struct sl_link marks; /* of struct sl_mark, by ascending position */
};

struct sl_mark {
    struct sl_link link;
    struct sl_kv_mark kv;
};

static inline struct sl_mark *sl_mark_of(const struct sl_link *link)
{
    return sl_list_item(link, struct sl_mark, link);
}

#endif
