#include "tools/chat/chat_client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <curl/curl.h>

/* How often a request looks whether it is to stop. */
#define LOOK_MS 100

struct sl_chat_client {
    CURL *http;
    CURLM *waiting; /* waits for the one request */
    char message[CURL_ERROR_SIZE];
};

/* A request that is under way. */
struct exchange {
    CURL *http;
    const struct sl_chat_listener *listener; /* NULL: the reply is of no interest */
    struct sl_chat_answer *answer;
    struct sl_bytes received; /* since the last whole event */
    char refusal[512];        /* what the daemon said; "": nothing */
};

/* ---- what comes --------------------------------------------------------------------------------
 */

static void take_refusal(struct exchange *exchange, const json_t *object)
{
    const json_t *error = json_object_get(object, "error");
    const char *message = json_string_value(json_object_get(error, "message"));

    if (error)
        snprintf(exchange->refusal, sizeof(exchange->refusal), "%s",
                 message ? message : "the daemon gives no reason");
}

static void take_text(struct exchange *exchange, bool is_reasoning, const json_t *text)
{
    struct sl_chat_answer *answer = exchange->answer;
    const size_t length = json_string_length(text);

    if (length == 0)
        return;
    sl_bytes_add(is_reasoning ? &answer->reasoning : &answer->content, json_string_value(text),
                 length);
    exchange->listener->on_text(exchange->listener->context, is_reasoning, json_string_value(text),
                                length);
}

/* A conversation without tools expects no calls: one is shown as text, so that nothing is lost. */
static void take_call(struct exchange *exchange, const json_t *call)
{
    const json_t *function = json_object_get(call, "function");
    const json_t *name = json_object_get(function, "name");

    if (name) {
        json_t *title = json_sprintf("\n[calls %s] ", json_string_value(name));

        take_text(exchange, false, title);
        json_decref(title);
    }
    take_text(exchange, false, json_object_get(function, "arguments"));
}

static void take_choice(struct exchange *exchange, const json_t *choice)
{
    const json_t *delta = json_object_get(choice, "delta");
    const json_t *calls = json_object_get(delta, "tool_calls");
    const char *finish = json_string_value(json_object_get(choice, "finish_reason"));

    take_text(exchange, true, json_object_get(delta, "reasoning_content"));
    take_text(exchange, false, json_object_get(delta, "content"));
    for (size_t i = 0; i < json_array_size(calls); i++)
        take_call(exchange, json_array_get(calls, i));
    if (finish)
        snprintf(exchange->answer->finish, sizeof(exchange->answer->finish), "%s", finish);
}

static void keep(json_t **kept, json_t *object)
{
    if (!json_is_object(object))
        return;
    json_decref(*kept);
    *kept = json_incref(object);
}

static void take_event(struct exchange *exchange, const char *data, size_t length)
{
    json_t *object = json_loadb(data, length, 0, NULL);
    const json_t *progress = json_object_get(object, "prompt_progress");
    const json_t *choices = json_object_get(object, "choices");

    if (progress)
        exchange->listener->on_progress(
            exchange->listener->context,
            (uint64_t)json_integer_value(json_object_get(progress, "processed")),
            (uint64_t)json_integer_value(json_object_get(progress, "total")));
    for (size_t i = 0; i < json_array_size(choices); i++)
        take_choice(exchange, json_array_get(choices, i));
    keep(&exchange->answer->usage, json_object_get(object, "usage"));
    keep(&exchange->answer->timings, json_object_get(object, "timings"));
    take_refusal(exchange, object);
    json_decref(object);
}

/* Takes all events that are whole from what was received. */
static void take_events(struct exchange *exchange)
{
    static const char field[] = "data: ";
    struct sl_bytes *received = &exchange->received;
    size_t taken = 0;
    const char *end;

    while ((end = memmem(received->data + taken, received->length - taken, "\n\n", 2)) != NULL) {
        const char *event = received->data + taken;
        const size_t length = (size_t)(end - event);

        if (length > sizeof(field) - 1 && memcmp(event, field, sizeof(field) - 1) == 0)
            take_event(exchange, event + sizeof(field) - 1, length - (sizeof(field) - 1));
        taken += length + 2;
    }
    memmove(received->data, received->data + taken, received->length - taken);
    received->length -= taken;
}

static size_t on_bytes(char *data, size_t size, size_t n, void *context)
{
    struct exchange *exchange = context;
    const size_t length = size * n;
    long status = 0;

    sl_bytes_add(&exchange->received, data, length);
    if (exchange->received.out_of_memory)
        return 0;
    curl_easy_getinfo(exchange->http, CURLINFO_RESPONSE_CODE, &status);
    if (exchange->listener && status == 200)
        take_events(exchange);
    return length;
}

/* ---- requests ----------------------------------------------------------------------------------
 */

int sl_chat_client_create(struct sl_chat_client **ret_client, const char *socket_path,
                          struct sl_err *err)
{
    struct sl_chat_client *client = calloc(1, sizeof(*client));

    if (!client || curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
        free(client);
        return sl_err_set(err, -ENOMEM, "client: out of memory");
    }
    client->http = curl_easy_init();
    client->waiting = curl_multi_init();
    if (!client->http || !client->waiting) {
        sl_chat_client_destroy(client);
        return sl_err_set(err, -ENOMEM, "client: out of memory");
    }
    if (curl_easy_setopt(client->http, CURLOPT_UNIX_SOCKET_PATH, socket_path) != CURLE_OK) {
        sl_chat_client_destroy(client);
        return sl_err_set(err, -EINVAL, "%s: cannot be the path of a socket", socket_path);
    }
    curl_easy_setopt(client->http, CURLOPT_ERRORBUFFER, client->message);
    curl_easy_setopt(client->http, CURLOPT_WRITEFUNCTION, on_bytes);
    curl_easy_setopt(client->http, CURLOPT_NOSIGNAL, 1L);
    *ret_client = client;
    return 0;
}

void sl_chat_client_destroy(struct sl_chat_client *client)
{
    if (!client)
        return;
    curl_multi_cleanup(client->waiting);
    curl_easy_cleanup(client->http);
    curl_global_cleanup();
    free(client);
}

/* Runs the request that client->http describes to its end, or until *stop (which may be NULL).
 * Returns a CURLcode; CURLE_ABORTED_BY_CALLBACK if it was stopped. */
static CURLcode run(struct sl_chat_client *client, const atomic_bool *stop)
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

/* Sends a request to `path`, a POST if there is a `body`. Returns the status, 0 if it was stopped,
 * or -EIO. */
static int send_request(struct sl_chat_client *client, const char *path, const char *body,
                        const atomic_bool *stop, struct exchange *exchange, struct sl_err *err)
{
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    char url[256];
    CURLcode result;
    long status = 0;

    exchange->http = client->http;
    snprintf(url, sizeof(url), "http://localhost%s", path);
    headers = curl_slist_append(headers, "Expect:"); /* do not wait before sending the body */
    curl_easy_setopt(client->http, CURLOPT_URL, url);
    curl_easy_setopt(client->http, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(client->http, CURLOPT_WRITEDATA, exchange);
    if (body) {
        curl_easy_setopt(client->http, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(body));
        curl_easy_setopt(client->http, CURLOPT_POSTFIELDS, body);
    } else {
        curl_easy_setopt(client->http, CURLOPT_HTTPGET, 1L);
    }
    result = run(client, stop);
    curl_easy_getinfo(client->http, CURLINFO_RESPONSE_CODE, &status);
    curl_slist_free_all(headers);
    if (result == CURLE_ABORTED_BY_CALLBACK)
        return 0;
    if (result != CURLE_OK)
        return sl_err_set(err, -EIO, "the daemon cannot be reached: %s",
                          client->message[0] ? client->message : curl_easy_strerror(result));
    return (int)status;
}

int sl_chat_client_ask(struct sl_chat_client *client, const json_t *body,
                       const struct sl_chat_listener *listener, const atomic_bool *stop,
                       struct sl_chat_answer *answer, struct sl_err *err)
{
    struct exchange exchange = {.listener = listener, .answer = answer};
    char *text = json_dumps(body, JSON_COMPACT);
    int rc = text ? send_request(client, "/v1/chat/completions", text, stop, &exchange, err)
                  : sl_err_set(err, -ENOMEM, "client: out of memory");

    if (rc > 0 && rc != 200) {
        json_t *object = json_loadb(exchange.received.data, exchange.received.length, 0, NULL);

        take_refusal(&exchange, object);
        json_decref(object);
        rc = sl_err_set(err, -EIO, "the daemon refuses (%d): %s", rc,
                        exchange.refusal[0] ? exchange.refusal : "it gives no reason");
    } else if (rc >= 0 && exchange.refusal[0]) {
        rc = sl_err_set(err, -EIO, "%s", exchange.refusal);
    } else if (rc == 200 && !answer->finish[0]) {
        rc = sl_err_set(err, -EIO, "the daemon went away in the middle of the answer");
    }
    sl_bytes_fini(&exchange.received);
    free(text);
    return rc < 0 ? rc : 0;
}

int sl_chat_client_get(struct sl_chat_client *client, const char *path, struct sl_err *err)
{
    struct exchange exchange = {0};
    int rc = send_request(client, path, NULL, NULL, &exchange, err);

    sl_bytes_fini(&exchange.received);
    return rc;
}

void sl_chat_answer_fini(struct sl_chat_answer *answer)
{
    sl_bytes_fini(&answer->reasoning);
    sl_bytes_fini(&answer->content);
    json_decref(answer->usage);
    json_decref(answer->timings);
    *answer = (struct sl_chat_answer){0};
}
