/* A client of the daemon: requests over its Unix socket, and the one user of libcurl. */
#ifndef SL_TOOLS_CLI_DAEMON_CLIENT_H
#define SL_TOOLS_CLI_DAEMON_CLIENT_H

#include <stdatomic.h>
#include <stdbool.h>

#include "core/base/bytes.h"
#include "core/base/err.h"
#include "core/base/json.h"

struct sl_daemon_client;

/* Connects with the first request. `socket_path` is copied. Fails with -ENOMEM or -EINVAL. */
int sl_daemon_client_create(struct sl_daemon_client **ret_client, const char *socket_path,
                            struct sl_err *err);
void sl_daemon_client_destroy(struct sl_daemon_client *client); /* NULL is allowed */

struct sl_daemon_request {
    const char *method, *path; /* "GET", "/v1/models" */
    const char *body;          /* JSON, terminated; NULL: none */
    const char *upload;        /* path of a file that is sent as a form for batches; NULL: none */
    /* Is given the bytes of a reply of status 200 as they come; those that it leaves are given
     * again, with what follows. Returns how many it has taken, or -1 to end the request. NULL: the
     * reply is kept. */
    int64_t (*on_bytes)(void *context, const char *bytes, size_t n_bytes);
    void *context;
    const atomic_bool *stop; /* ends the request when it is set; NULL: nothing does */
};

/* Returns the HTTP status, and *reply, which is added to, holds what was not taken; or 0 where it
 * was stopped. Fails with -EIO where the daemon cannot be reached, or with -ECANCELED by
 * on_bytes(). */
int sl_daemon_client_send(struct sl_daemon_client *client, const struct sl_daemon_request *request,
                          struct sl_bytes *reply, struct sl_err *err);

/* Fills `err` for a reply that refuses, with the daemon's words, and returns -EIO. */
int sl_daemon_client_refused(int status, const struct sl_bytes *reply, struct sl_err *err);

/* Sends a request whose reply is a JSON object, the caller's to free. Fails with -EIO also where it
 * is refused, or was stopped (-EINTR). */
int sl_daemon_client_ask(struct sl_daemon_client *client, const struct sl_daemon_request *request,
                         json_t **ret_object, struct sl_err *err);

/* Returns the HTTP status of a GET, or -EIO. */
int sl_daemon_client_get(struct sl_daemon_client *client, const char *path, struct sl_err *err);

#endif
