/* The front: all that the server's answers are made of, and how one is given and logged. */
#ifndef SL_DAEMON_HTTP_FRONT_H
#define SL_DAEMON_HTTP_FRONT_H

#include <stdio.h>

#include "daemon/answer/answer.h"
#include "daemon/batch/batch_service.h"
#include "daemon/files/file_store.h"
#include "daemon/http/http_server.h"
#include "daemon/protocol/protocol.h"
#include "daemon/worker/worker.h"

/* One request as it is logged; nothing of its content. Strings may be NULL. */
struct sl_log_entry {
    const char *method, *path, *protocol, *id;
    int status;      /* 499: the client went away */
    int64_t user;    /* at the other end; -1: not known */
    const char *why; /* of an error */
    bool has_usage;
    struct sl_usage usage;
    uint64_t first_ns, total_ns; /* until the first token, 0: there was none; and until the end */
};

/* Borrowed by everything in daemon/http; nothing of it changes while the server runs. */
struct sl_front {
    struct sl_worker *worker;
    struct sl_answer_model model;
    int64_t started_s; /* since 1970 */
    const char *version;
    const char *api_key;  /* that TCP asks for; NULL: none */
    const char *tcp_host; /* that TCP requests may name beside localhost; NULL: none */
    uint64_t body_bytes_max;
    struct sl_file_store *files;      /* NULL: there is no folder for them */
    uint64_t file_bytes_max;          /* of one that is uploaded */
    struct sl_batch_service *batches; /* NULL: likewise */

    void (*log)(void *context, const struct sl_log_entry *entry);
    /* Is given bodies and replies, for --trace; NULL: nobody wants them. */
    void (*trace)(void *context, const char *id, const char *what, const char *text, size_t length);
    void *context;
};

/* Answers with JSON, which it takes; NULL is answered as out of memory. */
void sl_front_answer_json(const struct sl_front *front, struct sl_http_call *call, int status,
                          json_t *object);
void sl_front_answer_text(const struct sl_front *front, struct sl_http_call *call,
                          const char *content_type, const char *text, size_t length);
void sl_front_answer_refusal(const struct sl_front *front, struct sl_http_call *call,
                             const struct sl_protocol *protocol, const struct sl_refusal *refusal);

/* Does the same with one header more; NULL: none. */
void sl_front_answer_refusal_with(const struct sl_front *front, struct sl_http_call *call,
                                  const struct sl_protocol *protocol,
                                  const struct sl_refusal *refusal,
                                  const struct sl_http_header *more);

/* Logs a call that no exchange logs. */
void sl_front_log(const struct sl_front *front, struct sl_http_call *call, int status,
                  const char *why);

#endif
