/* A protocol: how requests look, and replies. Each is one file of pure functions, which know
 * nothing of HTTP, threads or the engine:
 *
 *     body ──read()──► struct sl_request      events ──write()──► bytes of the reply
 */
#ifndef SL_DAEMON_PROTOCOL_PROTOCOL_H
#define SL_DAEMON_PROTOCOL_PROTOCOL_H

#include "daemon/protocol/reply.h"
#include "daemon/protocol/request.h"

struct sl_protocol {
    const char *name; /* in logs: "chat" */

    /* Fills a zeroed request from request->body, an object. Returns 0, or -1 with the refusal; the
     * caller calls sl_request_fini() in either case. */
    int (*read)(struct sl_request *request, struct sl_refusal *refusal);

    /* Begins a reply. Both are borrowed until destroy(). Returns NULL when out of memory. */
    void *(*create)(const struct sl_request *request, const struct sl_reply_identity *identity);
    void (*destroy)(void *reply); /* NULL is allowed */

    /* Adds the bytes of the reply's next event to *out: events of a stream, or, where no stream is
     * asked for, one JSON object at the end (and nothing before). */
    void (*write)(void *reply, const struct sl_reply_event *event, struct sl_bytes *out);

    /* Adds the body that goes with a refusal's status. */
    void (*refuse)(const struct sl_refusal *refusal, struct sl_bytes *out);
};

extern const struct sl_protocol sl_protocol_chat;        /* /v1/chat/completions */
extern const struct sl_protocol sl_protocol_completions; /* /v1/completions, and with `suffix` */
extern const struct sl_protocol sl_protocol_messages;    /* /v1/messages */
extern const struct sl_protocol sl_protocol_responses;   /* /v1/responses */

/* /v1/messages/count_tokens: a request whose prompt is counted, and nothing made. */
extern const struct sl_protocol sl_protocol_count_tokens;

#endif
