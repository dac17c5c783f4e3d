/* The HTTP server: connections, bodies and replies, and the one user of libmicrohttpd. What is
 * asked for and answered is its handler's.
 *
 *     request comes ──► body is complete ──► handler ──► answer()   whole
 *                                               ├──────► stream()   as the source has bytes
 *                                               └──────► wait()     neither yet: ready() is called
 *                                                                   after wake(), and may do either
 *
 * Bounded are: connections, headers, bodies (each, and all together), the time that a body may
 * take, and the time in which nothing of a reply can be sent. A call that waits is woken when its
 * client has gone, and every SL_HTTP_PULSE_NS.
 *
 * A call belongs to one of the server's threads; only sl_http_wake() may come from another one. */
#ifndef SL_DAEMON_HTTP_HTTP_SERVER_H
#define SL_DAEMON_HTTP_HTTP_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/bytes.h"
#include "core/base/err.h"

#define SL_HTTP_PULSE_NS (UINT64_C(10) * 1000000000)

struct sl_http_call;

/* Where the bytes of a stream come from, and who is told about a call. All of it is called by the
 * call's thread. */
struct sl_http_source {
    void *context;
    /* The call, which waited, was woken; answers, streams or waits. */
    void (*ready)(void *context, struct sl_http_call *call);
    /* Puts up to `size` bytes into `to`; returns how many, or 0 where there are none yet, or one of
     * the below. */
    int64_t (*read)(void *context, char *to, size_t size);
    /* The call is over, and does not exist any more; `is_whole` if all of the reply was sent. */
    void (*closed)(void *context, bool is_whole);
};
#define SL_HTTP_END (-1)
#define SL_HTTP_ABORT (-2)

struct sl_http_header {
    const char *name, *value;
};

/* Who takes the parts of a form (multipart/form-data) as they come, since one of them may be larger
 * than memory. Called by the call's thread. */
struct sl_http_form {
    void *context;
    /* `length` bytes of the part `name`, from `offset` on; `filename` is NULL where it is none.
     * Once it returns false, the rest of the form is thrown away. NULL: all of it is. */
    bool (*part)(void *context, const char *name, const char *filename, uint64_t offset,
                 const char *data, size_t length);
    /* The call is over, after handle() or without. */
    void (*closed)(void *context);
};

struct sl_http_options {
    /* Gets each request with its body; `body` lives until the call is over. */
    void (*handle)(void *context, struct sl_http_call *call);
    /* Is asked when the headers are there. Returns true, with *form filled, where the body is a
     * form to be taken in parts; handle() then gets the call without a body. NULL: none is. */
    bool (*begin_form)(void *context, struct sl_http_call *call, struct sl_http_form *form);
    /* A request that the server refuses itself, with status 400, 408, 413 or 503. Fills *out with
     * the body of the answer. */
    void (*refuse)(void *context, struct sl_http_call *call, int status, const char *why,
                   struct sl_bytes *out);
    void *context;
    uint64_t body_bytes_max; /* of one body, and of all that are there at once */
    uint64_t form_bytes_max; /* of one form */
    uint32_t connections_max;
    uint32_t body_s; /* that a body may take, and a second more for each MiB */
    uint32_t idle_s; /* without a byte either way */
};

struct sl_http_server;

/* Starts to answer on a socket that listens, which it takes. Can be called once for each socket.
 * Fails with -ENOMEM. The caller destroys *ret_server. */
int sl_http_server_create(struct sl_http_server **ret_server, const struct sl_http_options *options,
                          struct sl_err *err);
int sl_http_server_listen(struct sl_http_server *server, int fd, bool is_tcp, struct sl_err *err);

/* Takes no more connections; what is under way goes on. */
void sl_http_server_quiesce(struct sl_http_server *server);

/* Waits until all replies have been sent, but not for longer than that: their sources have come to
 * an end, and what is left is up to the clients. */
void sl_http_server_finish(struct sl_http_server *server, uint64_t patience_ns);

/* Ends all calls. NULL is allowed. */
void sl_http_server_destroy(struct sl_http_server *server);

/* ---- calls -------------------------------------------------------------------------------------
 */

const char *sl_http_method(const struct sl_http_call *call);
const char *sl_http_path(const struct sl_http_call *call); /* without the query */
const char *sl_http_header(const struct sl_http_call *call, const char *name); /* NULL: none */
const char *sl_http_query(const struct sl_http_call *call, const char *name);  /* NULL: none */
bool sl_http_is_tcp(const struct sl_http_call *call);
const char *sl_http_body(const struct sl_http_call *call, size_t *ret_length);

/* The context of the form that the call's body was; NULL: it was none. *ret_is_whole says whether
 * all of it came, and was well formed. */
void *sl_http_form(const struct sl_http_call *call, bool *ret_is_whole);

/* The user at the other end of a Unix socket; -1 where that is not known. */
int64_t sl_http_peer_user(const struct sl_http_call *call);

/* Frees the body early, when it is read. */
void sl_http_drop_body(struct sl_http_call *call);

/* Each call gets one of these in the end. `headers` (n_headers) go with the reply; Content-Type is
 * one of them. `source` is copied, and told when the call is over. */
void sl_http_answer(struct sl_http_call *call, int status, const struct sl_http_header *headers,
                    size_t n_headers, const void *body, size_t length);
void sl_http_stream(struct sl_http_call *call, int status, const struct sl_http_header *headers,
                    size_t n_headers, const struct sl_http_source *source);
/* With the first `length` bytes of a file, whose descriptor it takes. */
void sl_http_answer_file(struct sl_http_call *call, int status,
                         const struct sl_http_header *headers, size_t n_headers, int fd,
                         uint64_t length);
void sl_http_wait(struct sl_http_call *call, const struct sl_http_source *source);

/* Lets a call that waits, or whose source had no bytes, look again. From any thread, as long as the
 * source has not been told that the call is over. */
void sl_http_wake(struct sl_http_call *call);

#endif
