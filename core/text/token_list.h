/* A growing list of token ids. Start from {0}; the owner frees it with sl_token_list_fini(). */
#ifndef SL_TEXT_TOKEN_LIST_H
#define SL_TEXT_TOKEN_LIST_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

struct sl_token_list {
    uint32_t *ids;
    size_t n;
    size_t capacity;
};

/* Makes room for `more` ids behind the last one. Returns 0 or -ENOMEM; the list stays as it was. */
static inline int sl_token_list_reserve(struct sl_token_list *list, size_t more)
{
    size_t capacity = list->capacity * 2 + 64;
    uint32_t *ids;

    if (more <= list->capacity - list->n)
        return 0;
    if (capacity - list->n < more)
        capacity = list->n + more;
    ids = reallocarray(list->ids, capacity, sizeof(*ids));
    if (!ids)
        return -ENOMEM;
    list->ids = ids;
    list->capacity = capacity;
    return 0;
}

static inline int sl_token_list_push(struct sl_token_list *list, uint32_t id)
{
    int rc = sl_token_list_reserve(list, 1);

    if (rc == 0)
        list->ids[list->n++] = id;
    return rc;
}

static inline void sl_token_list_fini(struct sl_token_list *list)
{
    free(list->ids);
    *list = (struct sl_token_list){0};
}

#endif
