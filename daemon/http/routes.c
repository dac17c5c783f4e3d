#include "daemon/http/routes.h"

#include <string.h>
#include <strings.h>

#include "core/base/size.h"
#include "daemon/http/batch_pages.h"
#include "daemon/http/exchange.h"
#include "daemon/http/file_pages.h"
#include "daemon/http/pages.h"
#include "daemon/http/status_page.h"

#define FORM_TYPE "multipart/form-data"

enum route_body { BODY_NONE, BODY_JSON, BODY_FORM };

/* A path, its method, and who answers: an exchange in a protocol, or a page. "*" in a path stands
 * for a name; one that ends in "/" for all that begin so. */
struct route {
    const char *path, *method; /* HEAD goes where GET does */
    enum route_body body;
    const struct sl_protocol *protocol;
    void (*page)(const struct sl_front *front, struct sl_http_call *call);
    bool is_open; /* needs no key */
};

static const struct route routes[] = {
    {"/v1/chat/completions", "POST", BODY_JSON, &sl_protocol_chat, NULL, false},
    {"/chat/completions", "POST", BODY_JSON, &sl_protocol_chat, NULL, false},
    {"/v1/completions", "POST", BODY_JSON, &sl_protocol_completions, NULL, false},
    {"/completions", "POST", BODY_JSON, &sl_protocol_completions, NULL, false},
    {"/beta/completions", "POST", BODY_JSON, &sl_protocol_completions, NULL, false},
    {"/v1/responses", "POST", BODY_JSON, &sl_protocol_responses, NULL, false},
    {"/v1/messages", "POST", BODY_JSON, &sl_protocol_messages, NULL, false},
    {"/v1/messages/count_tokens", "POST", BODY_JSON, &sl_protocol_count_tokens, sl_exchange_count,
     false},
    {"/v1/files", "POST", BODY_FORM, NULL, sl_page_upload, false},
    {"/v1/files", "GET", BODY_NONE, NULL, sl_page_files, false},
    {"/v1/files/*", "GET", BODY_NONE, NULL, sl_page_file, false},
    {"/v1/files/*", "DELETE", BODY_NONE, NULL, sl_page_remove_file, false},
    {"/v1/files/*/content", "GET", BODY_NONE, NULL, sl_page_file_content, false},
    {"/v1/batches", "POST", BODY_JSON, NULL, sl_page_create_batch, false},
    {"/v1/batches", "GET", BODY_NONE, NULL, sl_page_batches, false},
    {"/v1/batches/*", "GET", BODY_NONE, NULL, sl_page_batch, false},
    {"/v1/batches/*", "DELETE", BODY_NONE, NULL, sl_page_forget_batch, false},
    {"/v1/batches/*/cancel", "POST", BODY_NONE, NULL, sl_page_cancel_batch, false},
    {"/v1/models", "GET", BODY_NONE, NULL, sl_page_models, false},
    {"/models", "GET", BODY_NONE, NULL, sl_page_models, false},
    {"/v1/models/", "GET", BODY_NONE, NULL, sl_page_model, false},
    {"/", "GET", BODY_NONE, NULL, sl_status_page, true},
    {"/page.js", "GET", BODY_NONE, NULL, sl_status_page_script, true},
    {"/health", "GET", BODY_NONE, NULL, sl_page_health, true},
    {"/health/live", "GET", BODY_NONE, NULL, sl_page_live, true},
    {"/metrics", "GET", BODY_NONE, NULL, sl_page_metrics, false},
    {"/status", "GET", BODY_NONE, NULL, sl_page_status, false},
    {"/tokenize", "POST", BODY_JSON, NULL, sl_page_tokenize, false},
    {"/detokenize", "POST", BODY_JSON, NULL, sl_page_detokenize, false},
};

static bool is_at(const struct route *route, const char *path)
{
    const char *at = route->path;

    while (*at) {
        if (at[0] == '/' && at[1] == '\0' && at != route->path)
            return path[0] == '/' && path[1] != '\0';
        if (*at == '*') {
            const size_t length = strcspn(path, "/");

            if (length == 0)
                return false;
            path += length;
        } else if (*path++ != *at) {
            return false;
        }
        at++;
    }
    return *path == '\0';
}

/* Errors about a path come in the form of whoever speaks there. */
static const struct sl_protocol *protocol_at(const char *path)
{
    for (size_t i = 0; i < SL_ARRAY_LEN(routes); i++)
        if (routes[i].protocol && is_at(&routes[i], path))
            return routes[i].protocol;
    return &sl_protocol_chat;
}

void sl_routes_refuse(void *context, struct sl_http_call *call, int status, const char *why,
                      struct sl_bytes *out)
{
    const struct sl_front *front = context;
    struct sl_refusal refusal;

    sl_refuse(&refusal, status, NULL, "%s", why);
    protocol_at(sl_http_path(call))->refuse(&refusal, out);
    sl_front_log(front, call, status, why);
}

/* ---- who may ask -------------------------------------------------------------------------------
 */

/* Takes as long for any key of the same length. */
static bool is_same_key(const char *given, const char *key)
{
    const size_t length = strlen(key);
    unsigned char different = 0;

    if (strlen(given) != length)
        return false;
    for (size_t i = 0; i < length; i++)
        different |= (unsigned char)(given[i] ^ key[i]);
    return different == 0;
}

static bool has_key(const struct sl_front *front, struct sl_http_call *call)
{
    const char *bearer = sl_http_header(call, "Authorization");
    const char *key = sl_http_header(call, "x-api-key");

    if (bearer && strncasecmp(bearer, "Bearer ", 7) == 0 && is_same_key(bearer + 7, front->api_key))
        return true;
    return key && is_same_key(key, front->api_key);
}

/* The name without its port. */
static bool is_host(const char *host, const char *name)
{
    const size_t length = strlen(name);

    return strncasecmp(host, name, length) == 0 && (host[length] == '\0' || host[length] == ':');
}

/* A page from elsewhere whose name was made to lead here (DNS rebinding) shows in Host; one that
 * sends requests across shows in Origin. */
static bool is_trusted_host(const struct sl_front *front, const char *host)
{
    return host && (is_host(host, "localhost") || is_host(host, "127.0.0.1") ||
                    is_host(host, "[::1]") || (front->tcp_host && is_host(host, front->tcp_host)));
}

static int check_tcp(const struct sl_front *front, struct sl_http_call *call, bool is_open,
                     struct sl_refusal *refusal)
{
    const char *host = sl_http_header(call, "Host"), *origin = sl_http_header(call, "Origin");
    static const char scheme[] = "http://";

    if (!sl_http_is_tcp(call))
        return 0;
    if (!is_trusted_host(front, host))
        return sl_refuse(refusal, 403, NULL,
                         "requests to this server name localhost as their host");
    if (origin && (strncmp(origin, scheme, strlen(scheme)) != 0 ||
                   strcmp(origin + strlen(scheme), host) != 0))
        return sl_refuse(refusal, 403, NULL, "pages from elsewhere may not use this server");
    if (front->api_key && !is_open && !has_key(front, call))
        return sl_refuse(refusal, 401, NULL,
                         "the API key is missing or wrong (Authorization: Bearer KEY)");
    return 0;
}

static bool begins_with(const char *text, const char *start)
{
    return strncasecmp(text, start, strlen(start)) == 0;
}

static int check_body(struct sl_http_call *call, enum route_body body, struct sl_refusal *refusal)
{
    const char *type = sl_http_header(call, "Content-Type");
    const char *encoding = sl_http_header(call, "Content-Encoding");

    if (body == BODY_NONE)
        return 0;
    if (body == BODY_FORM && !(type && begins_with(type, FORM_TYPE)))
        return sl_refuse(refusal, 415, NULL, "the request's body is to be " FORM_TYPE);
    if (body == BODY_JSON && type && !begins_with(type, "application/json"))
        return sl_refuse(refusal, 415, NULL, "the request's body is to be application/json");
    if (encoding && strcasecmp(encoding, "identity") != 0)
        return sl_refuse(refusal, 415, NULL, "compressed bodies are not supported");
    if (sl_http_is_tcp(call) && !type)
        return sl_refuse(refusal, 415, NULL, "the request has no Content-Type: application/json");
    return 0;
}

/* ---- routes ------------------------------------------------------------------------------------
 */

static bool is_method(const struct route *route, const char *method)
{
    return strcmp(route->method, method) == 0 ||
           (strcmp(method, "HEAD") == 0 && strcmp(route->method, "GET") == 0);
}

/* Answers where no route is; those that are at the path say which methods it takes. */
static void refuse_route(const struct sl_front *front, struct sl_http_call *call)
{
    struct sl_http_header allow = {.name = "Allow"};
    struct sl_bytes methods = {0};
    struct sl_refusal refusal;

    for (size_t i = 0; i < SL_ARRAY_LEN(routes); i++) {
        if (!is_at(&routes[i], sl_http_path(call)))
            continue;
        sl_bytes_add_text(&methods, methods.length ? ", " : "");
        sl_bytes_add_text(&methods, routes[i].method);
        if (strcmp(routes[i].method, "GET") == 0)
            sl_bytes_add_text(&methods, ", HEAD");
    }
    sl_bytes_add(&methods, "", 1);
    if (methods.length <= 1) {
        sl_refuse(&refusal, 404, NULL, "there is nothing at this path");
        sl_front_answer_refusal(front, call, &sl_protocol_chat, &refusal);
    } else {
        allow.value = methods.data;
        sl_refuse(&refusal, 405, NULL, "this path takes %s", allow.value);
        sl_front_answer_refusal_with(front, call, protocol_at(sl_http_path(call)), &refusal,
                                     &allow);
    }
    sl_bytes_fini(&methods);
}

static const struct route *find_route(const struct sl_http_call *call)
{
    for (size_t i = 0; i < SL_ARRAY_LEN(routes); i++)
        if (is_at(&routes[i], sl_http_path(call)) && is_method(&routes[i], sl_http_method(call)))
            return &routes[i];
    return NULL;
}

static int check(const struct sl_front *front, struct sl_http_call *call, const struct route *route,
                 struct sl_refusal *refusal)
{
    if (check_tcp(front, call, route && route->is_open, refusal) < 0)
        return -1;
    return route ? check_body(call, route->body, refusal) : 0;
}

/* A form from somebody who may not send one is thrown away as it comes; handle() says why. */
bool sl_routes_begin_form(void *context, struct sl_http_call *call, struct sl_http_form *form)
{
    const struct sl_front *front = context;
    const struct route *route = find_route(call);
    struct sl_refusal refusal;

    if (!route || route->body != BODY_FORM)
        return false;
    *form = (struct sl_http_form){0};
    if (check(front, call, route, &refusal) == 0)
        sl_page_begin_upload(front, form);
    return true;
}

void sl_routes_handle(void *context, struct sl_http_call *call)
{
    const struct sl_front *front = context;
    const struct route *route = find_route(call);
    struct sl_refusal refusal;

    if (check(front, call, route, &refusal) < 0)
        sl_front_answer_refusal(front, call, protocol_at(sl_http_path(call)), &refusal);
    else if (!route)
        refuse_route(front, call);
    else if (route->page)
        route->page(front, call);
    else
        sl_exchange_begin(front, call, route->protocol, route->path);
}
