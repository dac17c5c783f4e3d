/* Lists that are given page by page, and ids in paths, as OpenAI's clients ask for them. */
#ifndef SL_DAEMON_HTTP_PAGING_H
#define SL_DAEMON_HTTP_PAGING_H

#include "daemon/http/http_server.h"
#include "daemon/protocol/request.h"

struct sl_paging {
    uint32_t limit;    /* entries of a page */
    const char *after; /* the id of the entry before the page's first; NULL: it begins the list */
    bool is_ascending; /* by time */
};

/* Reads limit, after and order from the call's query. Returns 0, or -1 with the refusal. */
int sl_paging_read(struct sl_paging *paging, const struct sl_http_call *call, uint32_t limit,
                   uint32_t limit_max, struct sl_refusal *refusal);

/* The object of a page, whose entries it takes. */
json_t *sl_paging_object(json_t *data, bool has_more);

/* Copies the id that follows `start` in a path, up to its end or a "/". Returns false where that is
 * too long to be one. */
bool sl_id_in_path(const char *path, const char *start, char *id, size_t size);

#endif
