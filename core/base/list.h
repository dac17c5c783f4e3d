/* A doubly linked list whose links live inside the items: nothing is allocated, and an item leaves
 * its list in constant time. The owner keeps a head, itself a link; an item is in at most one list
 * per link, and its link is self-linked while it is in none. */
#ifndef SL_BASE_LIST_H
#define SL_BASE_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct sl_link {
    struct sl_link *prev, *next;
};

/* The item of `type` whose link `member` is at `link`. */
#define sl_list_item(link, type, member) ((type *)(void *)((char *)(link)-offsetof(type, member)))

/* For heads, and for the links of items before their first use. */
static inline void sl_list_init(struct sl_link *link)
{
    link->prev = link->next = link;
}

static inline bool sl_list_is_empty(const struct sl_link *head)
{
    return head->next == head;
}

static inline void sl_list_append(struct sl_link *head, struct sl_link *link)
{
    link->prev = head->prev;
    link->next = head;
    head->prev->next = link;
    head->prev = link;
}

/* Allowed for an item that is in no list. */
static inline void sl_list_remove(struct sl_link *link)
{
    link->prev->next = link->next;
    link->next->prev = link->prev;
    sl_list_init(link);
}

/* The first link, removed; NULL from an empty list. */
static inline struct sl_link *sl_list_pop(struct sl_link *head)
{
    struct sl_link *link = head->next;

    if (link == head)
        return NULL;
    sl_list_remove(link);
    return link;
}

#endif
