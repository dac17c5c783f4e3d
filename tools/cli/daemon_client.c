#include "tools/cli/daemon_client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <curl/curl.h>

/* How often a request looks whether it is to stop. */
#define LOOK_MS 100

struct sl_daemon_client {
    CURL *http;
    CURLM *waiting; /* waits for the one request */
    char *socket_path;
    char message[CURL_ERROR_SIZE];
};

/* A request that is under way. */
struct exchange {
    CURL *http;
    const struct sl_daemon_request *request;
    struct sl_bytes *reply;
    bool is_ended; /* by on_bytes() */
};

static size_t on_bytes(char *data, size_t size, size_t n, void *context)
{
    struct exchange *exchange = context;
    const struct sl_daemon_request *request = exchange->request;
    struct sl_bytes *reply = exchange->reply;
    const size_t length = size * n;
    long status = 0;
    int64_t taken;

    sl_bytes_add(reply, data, length);
    if (reply->out_of_memory)
        return 0;
    curl_easy_getinfo(exchange->http, CURLINFO_RESPONSE_CODE, &status);
    if (!request->on_bytes || status != 200)
        return length;
    taken = request->on_bytes(request->context, reply->data, reply->length);
    if (taken < 0) {
        exchange->is_ended = true;
        return 0;
    }
    memmove(reply->data, reply->data + taken, reply->length - (size_t)taken);
    reply->length -= (size_t)taken;
    return length;
}

int sl_daemon_client_create(struct sl_daemon_client **ret_client, const char *socket_path,
                            struct sl_err *err)
{
    struct sl_daemon_client *client = calloc(1, sizeof(*client));

    if (!client || curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
        free(client);
        return sl_err_set(err, -ENOMEM, "client: out of memory");
    }
    client->http = curl_easy_init();
    client->waiting = curl_multi_init();
    client->socket_path = strdup(socket_path);
    if (!client->http || !client->waiting || !client->socket_path) {
        sl_daemon_client_destroy(client);
        return sl_err_set(err, -ENOMEM, "client: out of memory");
    }
    if (curl_easy_setopt(client->http, CURLOPT_UNIX_SOCKET_PATH, socket_path) != CURLE_OK) {
        sl_daemon_client_destroy(client);
        return sl_err_set(err, -EINVAL, "%s: cannot be the path of a socket", socket_path);
    }
    curl_easy_setopt(client->http, CURLOPT_ERRORBUFFER, client->message);
    curl_easy_setopt(client->http, CURLOPT_WRITEFUNCTION, on_bytes);
    curl_easy_setopt(client->http, CURLOPT_NOSIGNAL, 1L);
    *ret_client = client;
    return 0;
}

void sl_daemon_client_destroy(struct sl_daemon_client *client)
{
    if (!client)
        return;
    curl_multi_cleanup(client->waiting);
    curl_easy_cleanup(client->http);
    curl_global_cleanup();
    free(client->socket_path);
    free(client);
}

/* Runs the request that client->http describes to its end, or until *stop (which may be NULL).
 * Returns a CURLcode; CURLE_ABORTED_BY_CALLBACK if it was stopped. */
static CURLcode run(struct sl_daemon_client *client, const atomic_bool *stop)
{
    CURLcode result = CURLE_ABORTED_BY_CALLBACK;
    int n_running = 1, n_messages;
    CURLMsg *message;

    client->message[0] = '\0';
    if (curl_multi_add_handle(client->waiting, client->http) != CURLM_OK)
        return CURLE_OUT_OF_MEMORY;
    while (n_running > 0 && !(stop && atomic_load(stop))) {
        if (curl_multi_perform(client->waiting, &n_running) != CURLM_OK)
            break;
        if (n_running > 0)
            curl_multi_poll(client->waiting, NULL, 0, LOOK_MS, NULL);
    }
    while ((message = curl_multi_info_read(client->waiting, &n_messages)) != NULL)
        if (message->msg == CURLMSG_DONE)
            result = message->data.result;
    curl_multi_remove_handle(client->waiting, client->http);
    return result;
}

/* Why no reply came. curl's own words for a socket that nobody listens at are of a port. */
static int unreachable(const struct sl_daemon_client *client, CURLcode result, struct sl_err *err)
{
    const char *why = client->message[0] ? client->message : curl_easy_strerror(result);
    long os_errno = 0;

    if (result == CURLE_COULDNT_CONNECT)
        curl_easy_getinfo(client->http, CURLINFO_OS_ERRNO, &os_errno);
    if (os_errno == ENOENT || os_errno == ECONNREFUSED)
        return sl_err_set(err, -EIO, "%s: no daemon listens there; sluice serve MODEL starts one",
                          client->socket_path);
    if (os_errno > 0)
        why = sl_strerror((int)-os_errno);
    return sl_err_set(err, -EIO, "%s: the daemon cannot be reached: %s", client->socket_path, why);
}

/* A form as the SDKs send it. */
static curl_mime *make_form(CURL *http, const char *path)
{
    curl_mime *form = curl_mime_init(http);
    curl_mimepart *part = form ? curl_mime_addpart(form) : NULL;

    if (part) {
        curl_mime_name(part, "purpose");
        curl_mime_data(part, "batch", CURL_ZERO_TERMINATED);
        part = curl_mime_addpart(form);
    }
    if (!part || curl_mime_name(part, "file") != CURLE_OK ||
        curl_mime_filedata(part, path) != CURLE_OK) {
        curl_mime_free(form);
        return NULL;
    }
    return form;
}

static void describe(CURL *http, const struct sl_daemon_request *request, curl_mime *form)
{
    char url[512];

    snprintf(url, sizeof(url), "http://localhost%s", request->path);
    curl_easy_setopt(http, CURLOPT_URL, url);
    curl_easy_setopt(http, CURLOPT_CUSTOMREQUEST, NULL);
    if (form) {
        curl_easy_setopt(http, CURLOPT_MIMEPOST, form);
    } else if (request->body) {
        curl_easy_setopt(http, CURLOPT_POST, 1L);
        curl_easy_setopt(http, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(request->body));
        curl_easy_setopt(http, CURLOPT_POSTFIELDS, request->body);
    } else {
        curl_easy_setopt(http, CURLOPT_HTTPGET, 1L);
        curl_easy_setopt(http, CURLOPT_CUSTOMREQUEST, request->method);
    }
}

int sl_daemon_client_send(struct sl_daemon_client *client, const struct sl_daemon_request *request,
                          struct sl_bytes *reply, struct sl_err *err)
{
    struct exchange exchange = {client->http, request, reply, false};
    struct curl_slist *headers = curl_slist_append(NULL, "Expect:"); /* do not wait before a body */
    curl_mime *form = request->upload ? make_form(client->http, request->upload) : NULL;
    CURLcode result;
    long status = 0;

    if (request->upload && !form) {
        curl_slist_free_all(headers);
        return sl_err_set(err, -EIO, "%s: cannot be read", request->upload);
    }
    if (request->body)
        headers = curl_slist_append(headers, "Content-Type: application/json");
    describe(client->http, request, form);
    curl_easy_setopt(client->http, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(client->http, CURLOPT_WRITEDATA, &exchange);
    result = run(client, request->stop);
    curl_easy_getinfo(client->http, CURLINFO_RESPONSE_CODE, &status);
    if (form)
        curl_easy_setopt(client->http, CURLOPT_MIMEPOST, NULL);
    curl_mime_free(form);
    curl_slist_free_all(headers);
    if (exchange.is_ended)
        return -ECANCELED;
    if (result == CURLE_ABORTED_BY_CALLBACK)
        return 0;
    if (result != CURLE_OK)
        return unreachable(client, result, err);
    return (int)status;
}

int sl_daemon_client_refused(int status, const struct sl_bytes *reply, struct sl_err *err)
{
    json_t *object = reply->length ? json_loadb(reply->data, reply->length, 0, NULL) : NULL;
    const json_t *message = json_object_get(json_object_get(object, "error"), "message");
    const int rc = sl_err_set(err, -EIO, "the daemon refuses (%d): %s", status,
                              message ? json_string_value(message) : "it gives no reason");

    json_decref(object);
    return rc;
}

int sl_daemon_client_ask(struct sl_daemon_client *client, const struct sl_daemon_request *request,
                         json_t **ret_object, struct sl_err *err)
{
    struct sl_bytes reply = {0};
    int rc = sl_daemon_client_send(client, request, &reply, err);

    if (rc == 0)
        rc = sl_err_set(err, -EINTR, "interrupted");
    else if (rc > 0 && rc != 200)
        rc = sl_daemon_client_refused(rc, &reply, err);
    else if (rc > 0)
        rc = sl_json_parse(ret_object, reply.data ? reply.data : "", reply.length,
                           "the daemon's reply", err);
    sl_bytes_fini(&reply);
    return rc;
}

int sl_daemon_client_get(struct sl_daemon_client *client, const char *path, struct sl_err *err)
{
    const struct sl_daemon_request request = {.method = "GET", .path = path};
    struct sl_bytes reply = {0};
    int rc = sl_daemon_client_send(client, &request, &reply, err);

    sl_bytes_fini(&reply);
    return rc;
}
