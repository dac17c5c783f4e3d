#include "daemon/http/front.h"

#include <string.h>

#include "core/base/size.h"

void sl_front_log(const struct sl_front *front, struct sl_http_call *call, int status,
                  const char *why)
{
    const struct sl_log_entry entry = {.method = sl_http_method(call),
                                       .path = sl_http_path(call),
                                       .status = status,
                                       .user = sl_http_peer_user(call),
                                       .why = why};

    /* The status page and service managers ask every second, and learn nothing that matters. */
    if (status < 400 && (strcmp(entry.method, "GET") == 0 || strcmp(entry.method, "HEAD") == 0))
        return;
    if (front->log)
        front->log(front->context, &entry);
}

void sl_front_answer_text(const struct sl_front *front, struct sl_http_call *call,
                          const char *content_type, const char *text, size_t length)
{
    const struct sl_http_header headers[] = {{"Content-Type", content_type},
                                             {"Cache-Control", "no-cache"}};

    sl_front_log(front, call, 200, NULL);
    sl_http_answer(call, 200, headers, SL_ARRAY_LEN(headers), text, length);
}

void sl_front_answer_json(const struct sl_front *front, struct sl_http_call *call, int status,
                          json_t *object)
{
    const struct sl_http_header headers[] = {{"Content-Type", "application/json"}};
    struct sl_bytes body = {0};

    sl_bytes_add_json(&body, object);
    json_decref(object);
    status = body.out_of_memory ? 500 : status;
    sl_front_log(front, call, status, NULL);
    sl_http_answer(call, status, headers, SL_ARRAY_LEN(headers), body.data,
                   body.out_of_memory ? 0 : body.length);
    sl_bytes_fini(&body);
}

void sl_front_answer_refusal_with(const struct sl_front *front, struct sl_http_call *call,
                                  const struct sl_protocol *protocol,
                                  const struct sl_refusal *refusal,
                                  const struct sl_http_header *more)
{
    struct sl_http_header headers[4] = {{"Content-Type", "application/json"}};
    struct sl_bytes body = {0};
    char seconds[16];
    size_t n = 1;

    if (refusal->retry_after_s > 0) {
        snprintf(seconds, sizeof(seconds), "%u", refusal->retry_after_s);
        headers[n++] = (struct sl_http_header){"Retry-After", seconds};
    }
    if (more)
        headers[n++] = *more;
    protocol->refuse(refusal, &body);
    sl_front_log(front, call, refusal->status, refusal->message);
    sl_http_answer(call, refusal->status, headers, n, body.data,
                   body.out_of_memory ? 0 : body.length);
    sl_bytes_fini(&body);
}

void sl_front_answer_refusal(const struct sl_front *front, struct sl_http_call *call,
                             const struct sl_protocol *protocol, const struct sl_refusal *refusal)
{
    sl_front_answer_refusal_with(front, call, protocol, refusal, NULL);
}
