#include "daemon/worker/ticket.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"

int sl_ticket_init(struct sl_ticket *ticket, uint32_t n_texts)
{
    *ticket = (struct sl_ticket){.n_texts = n_texts, .n_left = n_texts, .n_unadmitted = n_texts};
    ticket->texts = calloc(n_texts, sizeof(*ticket->texts));
    if (!ticket->texts)
        return -ENOMEM;
    for (uint32_t i = 0; i < n_texts; i++) {
        ticket->texts[i].ticket = ticket;
        ticket->texts[i].choice_index = i;
    }
    pthread_mutex_init(&ticket->lock, NULL);
    atomic_init(&ticket->n_holders, 1);
    sl_list_init(&ticket->submitted);
    sl_list_init(&ticket->noticed);
    sl_list_init(&ticket->live);
    return 0;
}

void sl_ticket_fini(struct sl_ticket *ticket)
{
    if (!ticket->texts)
        return;
    for (uint32_t i = 0; i < ticket->n_texts; i++)
        sl_generation_destroy(ticket->texts[i].generation);
    free(ticket->texts);
    ticket->texts = NULL;
    sl_bytes_fini(&ticket->news);
    pthread_mutex_destroy(&ticket->lock);
}

void sl_ticket_hold(struct sl_ticket *ticket)
{
    atomic_fetch_add(&ticket->n_holders, 1);
}

void sl_ticket_let_go(struct sl_ticket *ticket)
{
    if (atomic_fetch_sub(&ticket->n_holders, 1) == 1)
        ticket->release(ticket->owner);
}

/* ---- news --------------------------------------------------------------------------------------
 * A list of records, each a struct sl_news without what it does not have, then its text.
 */

/* Begins every record. */
struct record {
    uint32_t kind, choice_index;
    uint32_t has_token, has_logprobs;
    uint32_t finish;
    int32_t status;
    uint32_t token_id;
    const char *stop_string;
    size_t length;
};

bool sl_ticket_tell(struct sl_ticket *ticket, const struct sl_news *news)
{
    const struct record record = {
        .kind = news->kind,
        .choice_index = news->choice_index,
        .has_token = news->has_token,
        .has_logprobs = news->has_logprobs,
        .finish = news->finish,
        .status = news->status,
        .token_id = news->token.id,
        .stop_string = news->stop_string,
        .length = news->length,
    };
    size_t before;
    bool has_room;

    pthread_mutex_lock(&ticket->lock);
    before = ticket->news.length;
    sl_bytes_add(&ticket->news, &record, sizeof(record));
    if (news->has_logprobs)
        sl_bytes_add(&ticket->news, &news->token, sizeof(news->token));
    if (news->kind == SL_NEWS_END)
        sl_bytes_add(&ticket->news, &news->usage, sizeof(news->usage));
    sl_bytes_add(&ticket->news, news->text, news->length);
    if (ticket->news.out_of_memory) /* no half record: the reader sees that one is missing */
        ticket->news.length = before;
    has_room = ticket->news.length < SL_TICKET_NEWS_BYTES;
    ticket->is_held |= !has_room;
    pthread_mutex_unlock(&ticket->lock);
    return has_room;
}

bool sl_ticket_take(struct sl_ticket *ticket, struct sl_bytes *news)
{
    struct sl_bytes taken;
    bool was_held;

    sl_bytes_clear(news);
    pthread_mutex_lock(&ticket->lock);
    taken = ticket->news;
    ticket->news = *news;
    was_held = ticket->is_held;
    ticket->is_held = false;
    pthread_mutex_unlock(&ticket->lock);
    *news = taken;
    return was_held;
}

static void take(const struct sl_bytes *list, size_t *at, void *to, size_t length)
{
    sl_assert(length <= list->length - *at);
    memcpy(to, list->data + *at, length);
    *at += length;
}

bool sl_news_next(const struct sl_bytes *list, size_t *at, struct sl_news *ret_news)
{
    struct record record;

    if (*at == list->length)
        return false;
    take(list, at, &record, sizeof(record));
    *ret_news = (struct sl_news){
        .kind = (enum sl_news_kind)record.kind,
        .choice_index = record.choice_index,
        .has_token = record.has_token,
        .has_logprobs = record.has_logprobs,
        .finish = (enum sl_finish)record.finish,
        .status = record.status,
        .token.id = record.token_id,
        .stop_string = record.stop_string,
        .length = record.length,
    };
    if (record.has_logprobs)
        take(list, at, &ret_news->token, sizeof(ret_news->token));
    if (ret_news->kind == SL_NEWS_END)
        take(list, at, &ret_news->usage, sizeof(ret_news->usage));
    sl_assert(record.length <= list->length - *at);
    ret_news->text = list->data + *at;
    *at += record.length;
    return true;
}
