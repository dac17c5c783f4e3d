#include "daemon/http/batch_pages.h"

#include <errno.h>
#include <string.h>

#include "daemon/http/pages.h"
#include "daemon/http/paging.h"

#define BATCHES_PATH "/v1/batches/"
#define LIST_DEFAULT 20u
#define LIST_MAX 100u

static void refuse(const struct sl_front *front, struct sl_http_call *call,
                   const struct sl_refusal *refusal)
{
    sl_front_answer_refusal(front, call, &sl_protocol_chat, refusal);
}

/* Refuses where there can be no batches at all. */
static bool has_batches(const struct sl_front *front, struct sl_http_call *call)
{
    struct sl_refusal refusal;

    if (front->batches)
        return true;
    sl_refuse(&refusal, 503, NULL, "this server has no folder for batches (--state)");
    refuse(front, call, &refusal);
    return false;
}

/* Answers with a batch, or with the refusal where it is NULL. */
static void answer(const struct sl_front *front, struct sl_http_call *call, json_t *object,
                   const struct sl_refusal *refusal)
{
    if (object)
        sl_front_answer_json(front, call, 200, object);
    else
        refuse(front, call, refusal);
}

void sl_page_create_batch(const struct sl_front *front, struct sl_http_call *call)
{
    struct sl_batch_create create;
    struct sl_refusal refusal;
    json_t *body, *object = NULL;

    if (!has_batches(front, call) || !(body = sl_page_read_body(front, call)))
        return;
    if (sl_batch_create_read(&create, body, &refusal) == 0)
        object = sl_batch_service_create(front->batches, &create, &refusal);
    json_decref(body);
    answer(front, call, object, &refusal);
}

void sl_page_batches(const struct sl_front *front, struct sl_http_call *call)
{
    struct sl_paging paging;
    struct sl_refusal refusal;
    json_t *data;
    bool has_more;

    if (!has_batches(front, call))
        return;
    data = json_array();
    if (sl_paging_read(&paging, call, LIST_DEFAULT, LIST_MAX, &refusal) == 0 &&
        sl_batch_service_list(front->batches, paging.after, paging.limit, data, &has_more,
                              &refusal) == 0) {
        sl_front_answer_json(front, call, 200, sl_paging_object(data, has_more));
        return;
    }
    json_decref(data);
    refuse(front, call, &refusal);
}

/* The id in the path; what is too long to be one is none. */
static void read_id(const struct sl_http_call *call, char *id, size_t size)
{
    if (!sl_id_in_path(sl_http_path(call), BATCHES_PATH, id, size))
        id[0] = '\0';
}

/* Answers with what is done with the batch that the path names. */
static void act(const struct sl_front *front, struct sl_http_call *call,
                json_t *(*on_id)(struct sl_batch_service *service, const char *id,
                                 struct sl_refusal *refusal))
{
    struct sl_refusal refusal;
    char id[64];

    if (!has_batches(front, call))
        return;
    read_id(call, id, sizeof(id));
    answer(front, call, on_id(front->batches, id, &refusal), &refusal);
}

void sl_page_batch(const struct sl_front *front, struct sl_http_call *call)
{
    act(front, call, sl_batch_service_get);
}

void sl_page_cancel_batch(const struct sl_front *front, struct sl_http_call *call)
{
    act(front, call, sl_batch_service_cancel);
}

void sl_page_forget_batch(const struct sl_front *front, struct sl_http_call *call)
{
    act(front, call, sl_batch_service_forget);
}
