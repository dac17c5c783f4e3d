/* Connections are served by a few threads of libmicrohttpd. One that has nothing to send is
 * suspended, and resumed by wake(); while it is, a thread of the server looks after it: whether the
 * client has gone, and whether it is time for a sign of life. */
#include "daemon/http/http_server.h"

#include <errno.h>
#include <microhttpd.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/clock.h"
#include "core/base/list.h"

#define NS_PER_S UINT64_C(1000000000)
#define LISTENERS_MAX 8u
#define THREADS 4u
#define HEADER_BYTES_MAX (64u << 10)
#define BLOCK_BYTES (16u << 10)
#define LOOK_MS 100
#define DISCARD_TIMES 8u
#define FORM_BUFFER_BYTES (64u << 10)

enum call_state {
    CALL_NEW,     /* its body comes */
    CALL_HANDLED, /* waits for an answer */
    CALL_ANSWERED,
};

struct sl_http_call {
    struct sl_http_server *server;
    struct MHD_Connection *connection;
    const char *method, *path;
    bool is_tcp;
    enum call_state state;

    char *body;
    size_t body_length, body_size;
    int refused; /* status with which the rest of the body is thrown away; 0: it is wanted */

    bool is_form, is_form_whole;
    struct sl_http_form form;
    struct MHD_PostProcessor *parts; /* NULL: no more is wanted */
    uint64_t form_bytes;             /* that have come */

    bool has_source;
    struct sl_http_source source;

    /* Under the server's lock. */
    struct sl_link link; /* in `calls` */
    bool is_receiving;   /* its body */
    bool is_suspended;
    bool is_woken;   /* while it was not suspended */
    bool has_gone;   /* the client has */
    uint64_t due_ns; /* its next sign of life; or the end of the time for its body */
};

struct listener {
    struct sl_http_server *server;
    bool is_tcp;
    struct MHD_Daemon *daemon;
};

struct sl_http_server {
    struct sl_http_options options;
    struct listener listeners[LISTENERS_MAX];
    uint32_t n_listeners;
    pthread_t pulse;
    bool has_pulse;

    pthread_mutex_t lock; /* guards the rest, and parts of the calls */
    pthread_cond_t closing, call_over;
    struct sl_link calls;
    uint64_t body_bytes; /* of all bodies */
    bool is_closing;
};

/* ---- what a call is ----------------------------------------------------------------------------
 */

const char *sl_http_method(const struct sl_http_call *call)
{
    return call->method;
}

const char *sl_http_path(const struct sl_http_call *call)
{
    return call->path;
}

const char *sl_http_header(const struct sl_http_call *call, const char *name)
{
    return MHD_lookup_connection_value(call->connection, MHD_HEADER_KIND, name);
}

const char *sl_http_query(const struct sl_http_call *call, const char *name)
{
    return MHD_lookup_connection_value(call->connection, MHD_GET_ARGUMENT_KIND, name);
}

void *sl_http_form(const struct sl_http_call *call, bool *ret_is_whole)
{
    *ret_is_whole = call->is_form_whole;
    return call->is_form ? call->form.context : NULL;
}

bool sl_http_is_tcp(const struct sl_http_call *call)
{
    return call->is_tcp;
}

const char *sl_http_body(const struct sl_http_call *call, size_t *ret_length)
{
    *ret_length = call->body_length;
    return call->body ? call->body : "";
}

static int descriptor(const struct sl_http_call *call)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(call->connection, MHD_CONNECTION_INFO_CONNECTION_FD);

    return info ? info->connect_fd : -1;
}

int64_t sl_http_peer_user(const struct sl_http_call *call)
{
    struct ucred peer;
    socklen_t size = sizeof(peer);

    if (call->is_tcp || getsockopt(descriptor(call), SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
        return -1;
    return (int64_t)peer.uid;
}

void sl_http_drop_body(struct sl_http_call *call)
{
    struct sl_http_server *server = call->server;

    pthread_mutex_lock(&server->lock);
    server->body_bytes -= call->body_size;
    pthread_mutex_unlock(&server->lock);
    free(call->body);
    call->body = NULL;
    call->body_length = call->body_size = 0;
}

/* ---- suspending and waking ---------------------------------------------------------------------
 */

/* Returns false, and does nothing, if the call was woken meanwhile. */
static bool suspend(struct sl_http_call *call)
{
    struct sl_http_server *server = call->server;
    bool is_done;

    pthread_mutex_lock(&server->lock);
    is_done = !call->is_woken && !server->is_closing;
    call->is_woken = false;
    if (is_done) {
        call->is_suspended = true;
        call->due_ns = sl_clock_ns() + SL_HTTP_PULSE_NS;
        MHD_suspend_connection(call->connection);
    }
    pthread_mutex_unlock(&server->lock);
    return is_done;
}

/* Under the lock. */
static void wake(struct sl_http_call *call)
{
    if (!call->is_suspended) {
        call->is_woken = true;
        return;
    }
    call->is_suspended = false;
    MHD_resume_connection(call->connection);
}

void sl_http_wake(struct sl_http_call *call)
{
    pthread_mutex_lock(&call->server->lock);
    wake(call);
    pthread_mutex_unlock(&call->server->lock);
}

static bool has_gone(struct sl_http_call *call)
{
    bool gone;

    pthread_mutex_lock(&call->server->lock);
    gone = call->has_gone || call->server->is_closing;
    pthread_mutex_unlock(&call->server->lock);
    return gone;
}

/* A sender who takes too long for its body gets an answer past libmicrohttpd, which has none for
 * that, and the connection is ended. */
static void end_receiving(struct sl_http_call *call)
{
    struct sl_bytes body = {0}, reply = {0};
    const struct sl_http_options *options = &call->server->options;
    const int fd = descriptor(call);
    ssize_t sent;

    options->refuse(options->context, call, 408, "the request's body took too long", &body);
    sl_bytes_add_format(&reply,
                        "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\n"
                        "Content-Length: %zu\r\nConnection: close\r\n\r\n",
                        body.length);
    sl_bytes_add(&reply, body.data, body.length);
    sent = send(fd, reply.data, reply.length, MSG_DONTWAIT | MSG_NOSIGNAL);
    (void)sent; /* who does not take it loses it */
    shutdown(fd, SHUT_RDWR);
    sl_bytes_fini(&body);
    sl_bytes_fini(&reply);
}

static void look_at_calls(struct sl_http_server *server, uint64_t now_ns)
{
    for (struct sl_link *at = server->calls.next; at != &server->calls; at = at->next) {
        struct sl_http_call *call = sl_list_item(at, struct sl_http_call, link);
        struct pollfd peer = {.events = POLLRDHUP};

        if (call->is_suspended) {
            peer.fd = descriptor(call);
            if (poll(&peer, 1, 0) > 0 && peer.revents & (POLLRDHUP | POLLHUP | POLLERR))
                call->has_gone = true;
            if (call->has_gone || now_ns >= call->due_ns)
                wake(call);
        } else if (call->is_receiving && now_ns >= call->due_ns) {
            call->due_ns = UINT64_MAX;
            end_receiving(call);
        }
    }
}

static void *pulse_main(void *context)
{
    struct sl_http_server *server = context;
    struct timespec until;

    pthread_mutex_lock(&server->lock);
    while (!server->is_closing) {
        look_at_calls(server, sl_clock_ns());
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += LOOK_MS * 1000000L;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&server->closing, &server->lock, &until);
    }
    pthread_mutex_unlock(&server->lock);
    return NULL;
}

/* ---- replies -----------------------------------------------------------------------------------
 */

static void queue(struct sl_http_call *call, int status, struct MHD_Response *response,
                  const struct sl_http_header *headers, size_t n_headers)
{
    sl_assert(call->state != CALL_ANSWERED);
    call->state = CALL_ANSWERED;
    if (!response)
        return; /* the connection is closed */
    for (size_t i = 0; i < n_headers; i++)
        MHD_add_response_header(response, headers[i].name, headers[i].value);
    MHD_queue_response(call->connection, (unsigned)status, response);
    MHD_destroy_response(response);
}

void sl_http_answer(struct sl_http_call *call, int status, const struct sl_http_header *headers,
                    size_t n_headers, const void *body, size_t length)
{
    /* The library copies the body. */
    queue(call, status,
          MHD_create_response_from_buffer(length, length ? (void *)(uintptr_t)body : (void *)"",
                                          MHD_RESPMEM_MUST_COPY),
          headers, n_headers);
}

void sl_http_answer_file(struct sl_http_call *call, int status,
                         const struct sl_http_header *headers, size_t n_headers, int fd,
                         uint64_t length)
{
    struct MHD_Response *response = MHD_create_response_from_fd64(length, fd);

    if (!response)
        close(fd);
    queue(call, status, response, headers, n_headers);
}

static ssize_t read_source(void *context, uint64_t offset, char *to, size_t size)
{
    struct sl_http_call *call = context;

    (void)offset;
    for (;;) {
        int64_t n;

        if (has_gone(call))
            return MHD_CONTENT_READER_END_WITH_ERROR;
        n = call->source.read(call->source.context, to, size);
        if (n > 0)
            return (ssize_t)n;
        if (n < 0)
            return n == SL_HTTP_END ? MHD_CONTENT_READER_END_OF_STREAM
                                    : MHD_CONTENT_READER_END_WITH_ERROR;
        if (suspend(call))
            return 0;
    }
}

void sl_http_stream(struct sl_http_call *call, int status, const struct sl_http_header *headers,
                    size_t n_headers, const struct sl_http_source *source)
{
    call->source = *source;
    call->has_source = true;
    queue(call, status,
          MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, BLOCK_BYTES, read_source, call, NULL),
          headers, n_headers);
}

void sl_http_wait(struct sl_http_call *call, const struct sl_http_source *source)
{
    call->source = *source;
    call->has_source = true;
}

static void refuse(struct sl_http_call *call, int status, const char *why)
{
    const struct sl_http_header headers[] = {{"Content-Type", "application/json"},
                                             {"Retry-After", "1"}};
    const struct sl_http_options *options = &call->server->options;
    struct sl_bytes body = {0};

    options->refuse(options->context, call, status, why, &body);
    sl_http_answer(call, status, headers, status == 503 ? 2 : 1, body.data, body.length);
    sl_bytes_fini(&body);
}

/* ---- requests ----------------------------------------------------------------------------------
 */

/* Makes room for a body of `size` bytes. Returns 0, or the status of the refusal. */
static int reserve_body(struct sl_http_call *call, uint64_t size)
{
    struct sl_http_server *server = call->server;
    char *grown;
    bool has_room;

    if (size > server->options.body_bytes_max)
        return 413;
    pthread_mutex_lock(&server->lock);
    has_room = size - call->body_size <= server->options.body_bytes_max - server->body_bytes;
    if (has_room)
        server->body_bytes += size - call->body_size;
    pthread_mutex_unlock(&server->lock);
    if (!has_room)
        return 503;
    grown = realloc(call->body, size + 1); /* with a zero byte behind it */
    if (!grown) {
        pthread_mutex_lock(&server->lock);
        server->body_bytes -= size - call->body_size;
        pthread_mutex_unlock(&server->lock);
        return 503;
    }
    call->body = grown;
    call->body_size = size;
    return 0;
}

static const char *why_refused(int status)
{
    return status == 413 ? "the request's body is too large"
                         : "no memory is left for another request's body; try again";
}

/* ---- forms -------------------------------------------------------------------------------------
 */

static enum MHD_Result on_part(void *context, enum MHD_ValueKind kind, const char *name,
                               const char *filename, const char *type, const char *encoding,
                               const char *data, uint64_t offset, size_t length)
{
    struct sl_http_call *call = context;

    (void)kind;
    (void)type;
    (void)encoding;
    /* After the last part the library calls once more, without a name. */
    return !name || call->form.part(call->form.context, name, filename, offset, data, length)
               ? MHD_YES
               : MHD_NO;
}

/* Returns whether the form has been read to its end. */
static bool end_parts(struct sl_http_call *call)
{
    struct MHD_PostProcessor *parts = call->parts;

    call->parts = NULL;
    return parts && MHD_destroy_post_processor(parts) == MHD_YES;
}

/* Returns the status of a refusal, or 0. */
static int begin_form(struct sl_http_call *call, uint64_t length)
{
    call->is_form = true;
    if (call->form.part)
        call->parts = MHD_create_post_processor(call->connection, FORM_BUFFER_BYTES, on_part, call);
    return length > call->server->options.form_bytes_max ? 413 : 0;
}

/* The time for a form grows with what has come of it. */
static void take_form(struct sl_http_call *call, const char *data, size_t length)
{
    const uint64_t before = call->form_bytes;

    call->form_bytes += length;
    if (call->form_bytes > call->server->options.form_bytes_max)
        call->refused = 413;
    if (before >> 20 != call->form_bytes >> 20) {
        pthread_mutex_lock(&call->server->lock);
        if (call->due_ns != UINT64_MAX)
            call->due_ns += NS_PER_S;
        pthread_mutex_unlock(&call->server->lock);
    }
    if (call->parts && (call->refused || MHD_post_process(call->parts, data, length) != MHD_YES))
        end_parts(call);
}

/* ---- bodies ------------------------------------------------------------------------------------
 */

/* A body whose length is told is refused before it comes. But most clients send all of it before
 * they look for an answer, so one that is not many times too large is let come, and thrown away. */
static void begin_body(struct sl_http_call *call)
{
    const char *text = sl_http_header(call, "Content-Length");
    const uint64_t length = text ? strtoull(text, NULL, 10) : 0;
    const struct sl_http_options *options = &call->server->options;
    uint64_t bytes_max = options->body_bytes_max;
    int status;

    if (options->begin_form && options->begin_form(options->context, call, &call->form)) {
        bytes_max = options->form_bytes_max;
        status = begin_form(call, length);
    } else {
        status = length > 0 ? reserve_body(call, length) : 0;
    }
    if (status && length / DISCARD_TIMES > bytes_max) {
        refuse(call, status, why_refused(status));
        return;
    }
    call->refused = status;
    pthread_mutex_lock(&call->server->lock);
    call->is_receiving = true;
    call->due_ns = sl_clock_ns() + options->body_s * NS_PER_S +
                   (call->is_form ? 0 : (length >> 20) * NS_PER_S);
    pthread_mutex_unlock(&call->server->lock);
}

static void take_body(struct sl_http_call *call, const char *data, size_t length)
{
    const size_t needed = call->body_length + length;

    if (!call->refused && needed > call->body_size)
        call->refused = reserve_body(
            call, needed * 2 < call->server->options.body_bytes_max ? needed * 2 : needed);
    if (call->refused)
        return;
    memcpy(call->body + call->body_length, data, length);
    call->body_length = needed;
    call->body[needed] = '\0';
}

static void handle(struct sl_http_call *call)
{
    pthread_mutex_lock(&call->server->lock);
    call->is_receiving = false;
    pthread_mutex_unlock(&call->server->lock);
    call->state = CALL_HANDLED;
    call->is_form_whole = end_parts(call);
    if (call->refused)
        refuse(call, call->refused, why_refused(call->refused));
    else
        call->server->options.handle(call->server->options.context, call);
}

static struct sl_http_call *new_call(struct listener *listener, struct MHD_Connection *connection,
                                     const char *path, const char *method)
{
    struct sl_http_call *call = calloc(1, sizeof(*call));

    if (!call)
        return NULL;
    *call = (struct sl_http_call){.server = listener->server,
                                  .connection = connection,
                                  .method = method,
                                  .path = path,
                                  .is_tcp = listener->is_tcp};
    pthread_mutex_lock(&listener->server->lock);
    sl_list_append(&listener->server->calls, &call->link);
    pthread_mutex_unlock(&listener->server->lock);
    return call;
}

/* libmicrohttpd calls this when the headers are there, for each piece of the body, at its end, and
 * whenever a call that has no answer yet is resumed. */
static enum MHD_Result on_request(void *context, struct MHD_Connection *connection,
                                  const char *path, const char *method, const char *version,
                                  const char *data, size_t *length, void **state)
{
    struct sl_http_call *call = *state;

    (void)version;
    if (!call) {
        call = new_call(context, connection, path, method);
        if (!call)
            return MHD_NO;
        *state = call;
        begin_body(call);
        return MHD_YES;
    }
    if (*length > 0) {
        if (call->is_form)
            take_form(call, data, *length);
        else
            take_body(call, data, *length);
        *length = 0;
        return MHD_YES;
    }
    if (call->state == CALL_NEW)
        handle(call);
    else if (call->state == CALL_HANDLED)
        call->source.ready(call->source.context, call);
    while (call->state == CALL_HANDLED) {
        sl_assert(call->has_source);
        if (has_gone(call))
            return MHD_NO;
        if (suspend(call))
            break;
        call->source.ready(call->source.context, call);
    }
    return MHD_YES;
}

static void on_completed(void *context, struct MHD_Connection *connection, void **state,
                         enum MHD_RequestTerminationCode code)
{
    struct sl_http_call *call = *state;

    (void)context;
    (void)connection;
    if (!call)
        return;
    *state = NULL;
    if (call->has_source)
        call->source.closed(call->source.context, code == MHD_REQUEST_TERMINATED_COMPLETED_OK);
    end_parts(call);
    if (call->is_form && call->form.closed)
        call->form.closed(call->form.context);
    sl_http_drop_body(call);
    pthread_mutex_lock(&call->server->lock);
    sl_list_remove(&call->link);
    pthread_cond_signal(&call->server->call_over);
    pthread_mutex_unlock(&call->server->lock);
    free(call);
}

/* ---- the server --------------------------------------------------------------------------------
 */

int sl_http_server_create(struct sl_http_server **ret_server, const struct sl_http_options *options,
                          struct sl_err *err)
{
    struct sl_http_server *server = calloc(1, sizeof(*server));
    pthread_condattr_t monotonic;

    if (!server)
        return sl_err_set(err, -ENOMEM, "HTTP server: out of memory");
    server->options = *options;
    sl_list_init(&server->calls);
    pthread_mutex_init(&server->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&server->closing, &monotonic);
    pthread_cond_init(&server->call_over, &monotonic);
    pthread_condattr_destroy(&monotonic);
    server->has_pulse = pthread_create(&server->pulse, NULL, pulse_main, server) == 0;
    if (!server->has_pulse) {
        sl_http_server_destroy(server);
        return sl_err_set(err, -EAGAIN, "HTTP server: no thread to be had");
    }
    pthread_setname_np(server->pulse, "sluice-http");
    *ret_server = server;
    return 0;
}

/* Malformed requests are answered by the library; its lines about them help nobody. */
static void say_nothing(void *context, const char *format, va_list args)
{
    (void)context;
    (void)format;
    (void)args;
}

int sl_http_server_listen(struct sl_http_server *server, int fd, bool is_tcp, struct sl_err *err)
{
    struct listener *listener = &server->listeners[server->n_listeners];

    sl_assert(server->n_listeners < LISTENERS_MAX);
    *listener = (struct listener){.server = server, .is_tcp = is_tcp};
    listener->daemon = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_USE_SUSPEND_RESUME | MHD_USE_ITC | MHD_USE_ERROR_LOG, 0,
        NULL, NULL, on_request, listener, MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_EXTERNAL_LOGGER,
        say_nothing, NULL, MHD_OPTION_NOTIFY_COMPLETED, on_completed, listener,
        MHD_OPTION_THREAD_POOL_SIZE, THREADS, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)server->options.connections_max, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)server->options.idle_s, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)HEADER_BYTES_MAX, MHD_OPTION_END);
    if (!listener->daemon) {
        close(fd);
        return sl_err_set(err, -ENOMEM, "the HTTP server cannot be started");
    }
    server->n_listeners++;
    return 0;
}

void sl_http_server_quiesce(struct sl_http_server *server)
{
    for (uint32_t i = 0; i < server->n_listeners; i++) {
        const MHD_socket fd = MHD_quiesce_daemon(server->listeners[i].daemon);

        if (fd != MHD_INVALID_SOCKET)
            close(fd);
    }
}

/* Under the lock. A request whose body is still on its way has no reply to finish. */
static bool has_replies(const struct sl_http_server *server)
{
    for (const struct sl_link *at = server->calls.next; at != &server->calls; at = at->next)
        if (!sl_list_item(at, struct sl_http_call, link)->is_receiving)
            return true;
    return false;
}

void sl_http_server_finish(struct sl_http_server *server, uint64_t patience_ns)
{
    const uint64_t until_ns = sl_clock_ns() + patience_ns;
    const struct timespec until = {(time_t)(until_ns / NS_PER_S), (long)(until_ns % NS_PER_S)};
    int rc = 0;

    pthread_mutex_lock(&server->lock);
    while (rc == 0 && has_replies(server))
        rc = pthread_cond_timedwait(&server->call_over, &server->lock, &until);
    pthread_mutex_unlock(&server->lock);
}

void sl_http_server_destroy(struct sl_http_server *server)
{
    if (!server)
        return;
    pthread_mutex_lock(&server->lock);
    server->is_closing = true;
    pthread_cond_signal(&server->closing);
    for (struct sl_link *at = server->calls.next; at != &server->calls; at = at->next)
        wake(sl_list_item(at, struct sl_http_call, link));
    pthread_mutex_unlock(&server->lock);
    if (server->has_pulse)
        pthread_join(server->pulse, NULL);
    for (uint32_t i = 0; i < server->n_listeners; i++)
        MHD_stop_daemon(server->listeners[i].daemon);
    pthread_cond_destroy(&server->closing);
    pthread_cond_destroy(&server->call_over);
    pthread_mutex_destroy(&server->lock);
    free(server);
}
