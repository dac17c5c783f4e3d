#include "daemon/http/paging.h"

#include <stdlib.h>
#include <string.h>

int sl_paging_read(struct sl_paging *paging, const struct sl_http_call *call, uint32_t limit,
                   uint32_t limit_max, struct sl_refusal *refusal)
{
    const char *after = sl_http_query(call, "after"), *order = sl_http_query(call, "order");
    const char *text = sl_http_query(call, "limit");
    unsigned long value = limit;
    char *end;

    *paging = (struct sl_paging){.after = after && *after ? after : NULL};
    if (text && *text) {
        value = strtoul(text, &end, 10);
        if (*end || text[0] == '-' || value < 1 || value > limit_max)
            return sl_refuse(refusal, 400, "limit", "\"limit\" must be from 1 to %u", limit_max);
    }
    paging->limit = (uint32_t)value;
    paging->is_ascending = order && strcmp(order, "asc") == 0;
    if (order && *order && !paging->is_ascending && strcmp(order, "desc") != 0)
        return sl_refuse(refusal, 400, "order", "\"order\" must be \"asc\" or \"desc\"");
    return 0;
}

json_t *sl_paging_object(json_t *data, bool has_more)
{
    const size_t n = json_array_size(data);
    json_t *first = json_object_get(json_array_get(data, 0), "id");
    json_t *last = n > 0 ? json_object_get(json_array_get(data, n - 1), "id") : NULL;

    return json_pack("{s:s, s:O?, s:O?, s:b, s:o}", "object", "list", "first_id", first, "last_id",
                     last, "has_more", has_more, "data", data);
}

bool sl_id_in_path(const char *path, const char *start, char *id, size_t size)
{
    const char *at = path + strlen(start);
    const size_t length = strcspn(at, "/");

    if (length >= size)
        return false;
    memcpy(id, at, length);
    id[length] = '\0';
    return true;
}
