#include "tools/chat/chat_client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* An answer that comes. */
struct exchange {
    const struct sl_chat_listener *listener;
    struct sl_chat_answer *answer;
    char refusal[512]; /* what the daemon said; "": nothing */
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

/* Takes all events that are whole. */
static int64_t take_events(void *context, const char *received, size_t length)
{
    static const char field[] = "data: ";
    size_t taken = 0;
    const char *end;

    while ((end = memmem(received + taken, length - taken, "\n\n", 2)) != NULL) {
        const char *event = received + taken;
        const size_t event_length = (size_t)(end - event);

        if (event_length > sizeof(field) - 1 && memcmp(event, field, sizeof(field) - 1) == 0)
            take_event(context, event + sizeof(field) - 1, event_length - (sizeof(field) - 1));
        taken += event_length + 2;
    }
    return (int64_t)taken;
}

int sl_chat_ask(struct sl_daemon_client *client, const json_t *body,
                const struct sl_chat_listener *listener, const atomic_bool *stop,
                struct sl_chat_answer *answer, struct sl_err *err)
{
    struct exchange exchange = {.listener = listener, .answer = answer};
    char *text = json_dumps(body, JSON_COMPACT);
    const struct sl_daemon_request request = {.method = "POST",
                                              .path = "/v1/chat/completions",
                                              .body = text,
                                              .on_bytes = take_events,
                                              .context = &exchange,
                                              .stop = stop};
    struct sl_bytes reply = {0};
    int rc = text ? sl_daemon_client_send(client, &request, &reply, err)
                  : sl_err_set(err, -ENOMEM, "client: out of memory");

    if (rc > 0 && rc != 200)
        rc = sl_daemon_client_refused(rc, &reply, err);
    else if (rc >= 0 && exchange.refusal[0])
        rc = sl_err_set(err, -EIO, "%s", exchange.refusal);
    else if (rc == 200 && !answer->finish[0])
        rc = sl_err_set(err, -EIO, "the daemon went away in the middle of the answer");
    sl_bytes_fini(&reply);
    free(text);
    return rc < 0 ? rc : 0;
}

void sl_chat_answer_fini(struct sl_chat_answer *answer)
{
    sl_bytes_fini(&answer->reasoning);
    sl_bytes_fini(&answer->content);
    json_decref(answer->usage);
    json_decref(answer->timings);
    *answer = (struct sl_chat_answer){0};
}
