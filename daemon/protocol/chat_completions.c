/* /v1/chat/completions: OpenAI's chat, with DeepSeek's and llama-server's fields. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "daemon/protocol/fields.h"
#include "daemon/protocol/openai.h"
#include "daemon/protocol/protocol.h"

/* ---- requests ----------------------------------------------------------------------------------
 */

static int read_thinking(struct sl_request *request, struct sl_refusal *refusal)
{
    const json_t *thinking = sl_field(request->body, "thinking");
    const char *type = NULL, *effort = NULL;

    request->chat.thinking = true;
    if (thinking && sl_field_string(thinking, "type", &type, refusal) < 0)
        return -1;
    if (type && strcmp(type, "disabled") == 0)
        request->chat.thinking = false;
    else if (type && strcmp(type, "enabled") != 0 && strcmp(type, "adaptive") != 0)
        return sl_refuse(refusal, 400, "thinking",
                         "\"thinking.type\" is \"%s\", but enabled and disabled are known", type);
    if (sl_field_string(request->body, "reasoning_effort", &effort, refusal) < 0)
        return -1;
    return effort ? sl_set_effort(&request->chat, effort, "reasoning_effort", refusal) : 0;
}

/* Some clients send reasoning back under another name. */
static int rename_reasoning(json_t *messages)
{
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < json_array_size(messages); i++) {
        json_t *message = json_array_get(messages, i);
        json_t *reasoning = json_object_get(message, "reasoning");

        if (json_is_string(reasoning) && !json_object_get(message, "reasoning_content"))
            rc = json_object_set(message, "reasoning_content", reasoning);
    }
    return rc;
}

/* tool_choice is none, auto, required, or one function. The tools to tell the model of are put into
 * *ret_tools, which is NULL if there are none. */
static int read_tools(struct sl_request *request, json_t **ret_tools, struct sl_refusal *refusal)
{
    json_t *tools = json_object_get(request->body, "tools");
    const json_t *choice = sl_field(request->body, "tool_choice");
    const char *word = json_string_value(choice);

    *ret_tools = NULL;
    if (tools && !json_is_null(tools) && !json_is_array(tools))
        return sl_refuse(refusal, 400, "tools", "\"tools\" is no list");
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *tool = json_array_get(tools, i);
        const json_t *function = json_object_get(tool, "function");
        const char *type = json_string_value(json_object_get(tool, "type"));

        if ((type && strcmp(type, "function") != 0) ||
            !json_is_string(json_object_get(function, "name")))
            return sl_refuse(refusal, 400, "tools", "tool %zu is no function with a name", i);
    }
    if (json_array_size(tools) == 0 || (word && strcmp(word, "none") == 0))
        return 0;
    *ret_tools = tools;
    if (json_is_object(choice)) {
        request->must_call = true;
        request->must_call_name =
            json_string_value(json_object_get(json_object_get(choice, "function"), "name"));
        if (!request->must_call_name)
            return sl_refuse(refusal, 400, "tool_choice", "\"tool_choice\" names no function");
    } else if (word && strcmp(word, "required") == 0) {
        request->must_call = true;
    } else if (choice && (!word || strcmp(word, "auto") != 0)) {
        return sl_refuse(refusal, 400, "tool_choice",
                         "\"tool_choice\" is none, auto, required, or a function");
    }
    return 0;
}

static int read_format(struct sl_request *request, json_t **ret_format, struct sl_refusal *refusal)
{
    json_t *format = json_object_get(request->body, "response_format");
    const char *type = json_string_value(json_object_get(format, "type"));

    *ret_format = NULL;
    if (!format || json_is_null(format))
        return 0;
    if (type && strcmp(type, "text") == 0)
        return 0;
    if (!type || (strcmp(type, "json_object") != 0 && strcmp(type, "json_schema") != 0))
        return sl_refuse(refusal, 400, "response_format",
                         "\"response_format.type\" is text, json_object or json_schema");
    if (strcmp(type, "json_schema") == 0 &&
        !json_is_object(json_object_get(json_object_get(format, "json_schema"), "schema")))
        return sl_refuse(refusal, 400, "response_format",
                         "\"response_format.json_schema\" has no \"schema\"");
    *ret_format = format;
    return 0;
}

static int read_messages(struct sl_request *request, struct sl_refusal *refusal)
{
    json_t *messages = json_object_get(request->body, "messages"), *tools, *format;

    if (!json_is_array(messages))
        return sl_refuse(refusal, 400, "messages", "\"messages\" is no list");
    request->messages = json_incref(messages);
    if (rename_reasoning(messages) < 0)
        return sl_refuse(refusal, 500, NULL, "out of memory");
    if (read_tools(request, &tools, refusal) < 0 || read_format(request, &format, refusal) < 0 ||
        sl_messages_settle(request, refusal) < 0 ||
        sl_messages_add_tools(request, tools, format, refusal) < 0)
        return -1;
    if (request->must_call)
        request->chat.thinking = false;
    return 0;
}

static int read_lengths(struct sl_request *request, struct sl_refusal *refusal)
{
    bool logprobs = false;

    if (sl_field_u32(request->body, "max_tokens", 1, 1u << 24, &request->n_new_max, refusal) < 0 ||
        sl_field_u32(request->body, "max_completion_tokens", 1, 1u << 24, &request->n_new_max,
                     refusal) < 0 ||
        sl_field_bool(request->body, "logprobs", &logprobs, refusal) < 0 ||
        sl_field_u32(request->body, "top_logprobs", 0, SL_TOP_LOGPROBS_MAX,
                     &request->n_top_logprobs, refusal) < 0)
        return -1;
    request->with_logprobs = logprobs;
    if (!logprobs)
        request->n_top_logprobs = 0;
    return 0;
}

static int chat_read(struct sl_request *request, struct sl_refusal *refusal)
{
    if (sl_openai_read(request, refusal) < 0 || read_thinking(request, refusal) < 0 ||
        read_messages(request, refusal) < 0 || read_lengths(request, refusal) < 0)
        return -1;
    return sl_field_refuse_unsupported(request, refusal);
}

/* ---- replies -----------------------------------------------------------------------------------
 */

/* The state of a choice: all of it, where it is given whole at the end. */
struct choice {
    struct sl_bytes reasoning, content;
    json_t *calls;
    json_t *content_logprobs, *reasoning_logprobs; /* in a stream, since the last chunk */
    const char *finish;
};

struct reply {
    struct sl_openai_reply frame;
    uint32_t n_choices;
    struct choice *choices;
};

static void chat_destroy(void *context)
{
    struct reply *reply = context;

    if (!reply)
        return;
    for (uint32_t i = 0; reply->choices && i < reply->n_choices; i++) {
        struct choice *choice = &reply->choices[i];

        sl_bytes_fini(&choice->reasoning);
        sl_bytes_fini(&choice->content);
        json_decref(choice->calls);
        json_decref(choice->content_logprobs);
        json_decref(choice->reasoning_logprobs);
    }
    free(reply->choices);
    free(reply);
}

static void *chat_create(const struct sl_request *request, const struct sl_reply_identity *identity)
{
    struct reply *reply = calloc(1, sizeof(*reply));

    if (!reply)
        return NULL;
    *reply = (struct reply){
        .frame = {request, identity, "chatcmpl-", "chat.completion", "chat.completion.chunk"},
        .n_choices = request->n,
    };
    reply->choices = calloc(reply->n_choices, sizeof(*reply->choices));
    if (!reply->choices) {
        free(reply);
        return NULL;
    }
    return reply;
}

/* Takes the log probabilities that have come since the last chunk; null where none are wanted. */
static json_t *take_logprobs(struct reply *reply, struct choice *choice)
{
    json_t *logprobs;

    if (!reply->frame.request->with_logprobs)
        return json_null();
    logprobs = json_object();
    json_object_set_new(logprobs, "content",
                        choice->content_logprobs ? choice->content_logprobs : json_array());
    if (choice->reasoning_logprobs)
        json_object_set_new(logprobs, "reasoning_content", choice->reasoning_logprobs);
    choice->content_logprobs = choice->reasoning_logprobs = NULL;
    return logprobs;
}

static void keep_logprobs(struct reply *reply, const struct sl_reply_event *event)
{
    struct choice *choice = &reply->choices[event->choice_index];
    json_t **list = event->in_reasoning ? &choice->reasoning_logprobs : &choice->content_logprobs;

    if (!*list)
        *list = json_array();
    json_array_append_new(*list, sl_openai_token(reply->frame.identity->tok, event->token));
}

static json_t *call_object(const struct sl_reply_event *event)
{
    return json_pack("{s:s, s:s, s:{s:s, s:s}}", "id", event->call.id, "type", "function",
                     "function", "name", event->call.name, "arguments", event->call.arguments);
}

/* ---- streams -----------------------------------------------------------------------------------
 */

/* One choice's piece: `delta` is taken. */
static void write_delta(struct reply *reply, uint32_t choice_index, json_t *delta,
                        const char *finish, struct sl_bytes *out)
{
    struct choice *choice = &reply->choices[choice_index];
    json_t *one = json_pack("{s:I, s:o, s:o, s:o}", "index", (json_int_t)choice_index, "delta",
                            delta, "logprobs", take_logprobs(reply, choice), "finish_reason",
                            finish ? json_string(finish) : json_null());

    sl_openai_write_chunk(&reply->frame, json_pack("[o]", one), NULL, out);
}

static void write_text(struct reply *reply, const struct sl_reply_event *event,
                       struct sl_bytes *out)
{
    const char *key = event->kind == SL_REPLY_REASONING ? "reasoning_content" : "content";

    write_delta(reply, event->choice_index, json_pack("{s:s%}", key, event->text, event->length),
                NULL, out);
}

static void write_call(struct reply *reply, const struct sl_reply_event *event,
                       struct sl_bytes *out)
{
    const json_int_t index = event->call.index;

    write_delta(reply, event->choice_index,
                json_pack("{s:[{s:I, s:s, s:s, s:{s:s, s:s}}]}", "tool_calls", "index", index, "id",
                          event->call.id, "type", "function", "function", "name", event->call.name,
                          "arguments", ""),
                NULL, out);
    write_delta(reply, event->choice_index,
                json_pack("{s:[{s:I, s:{s:s}}]}", "tool_calls", "index", index, "function",
                          "arguments", event->call.arguments),
                NULL, out);
}

static void write_event(struct reply *reply, const struct sl_reply_event *event,
                        struct sl_bytes *out)
{
    switch (event->kind) {
    case SL_REPLY_BEGIN:
        for (uint32_t i = 0; i < reply->n_choices; i++)
            write_delta(reply, i, json_pack("{s:s, s:s}", "role", "assistant", "content", ""), NULL,
                        out);
        break;
    case SL_REPLY_HEARTBEAT:
        sl_openai_write_progress(&reply->frame, event->progress, out);
        break;
    case SL_REPLY_TOKEN:
        keep_logprobs(reply, event);
        break;
    case SL_REPLY_REASONING:
    case SL_REPLY_CONTENT:
        write_text(reply, event, out);
        break;
    case SL_REPLY_CALL:
        write_call(reply, event, out);
        break;
    case SL_REPLY_FINISH:
        write_delta(reply, event->choice_index, json_object(), sl_openai_finish(event), out);
        break;
    case SL_REPLY_END:
        sl_openai_write_end(&reply->frame, event->usage, out);
        break;
    case SL_REPLY_ERROR:
        sl_openai_write_error(event->refusal, out);
        break;
    }
}

/* ---- replies that are given whole --------------------------------------------------------------
 */

static json_t *whole_choice(struct reply *reply, uint32_t index)
{
    struct choice *choice = &reply->choices[index];
    json_t *message = json_pack("{s:s}", "role", "assistant");

    json_object_set_new(message, "content",
                        choice->calls && choice->content.length == 0
                            ? json_null()
                            : sl_bytes_string(&choice->content));
    if (choice->reasoning.length > 0)
        json_object_set_new(message, "reasoning_content", sl_bytes_string(&choice->reasoning));
    if (choice->calls)
        json_object_set(message, "tool_calls", choice->calls);
    return json_pack("{s:I, s:o, s:o, s:s}", "index", (json_int_t)index, "message", message,
                     "logprobs", take_logprobs(reply, choice), "finish_reason", choice->finish);
}

static void write_whole(struct reply *reply, const struct sl_usage *usage, struct sl_bytes *out)
{
    json_t *choices = json_array();

    for (uint32_t i = 0; i < reply->n_choices; i++) {
        out->out_of_memory |=
            reply->choices[i].reasoning.out_of_memory || reply->choices[i].content.out_of_memory;
        json_array_append_new(choices, whole_choice(reply, i));
    }
    sl_openai_write_whole(&reply->frame, choices, usage, out);
}

static void collect(struct reply *reply, const struct sl_reply_event *event, struct sl_bytes *out)
{
    struct choice *choice = &reply->choices[event->choice_index];

    switch (event->kind) {
    case SL_REPLY_BEGIN:
    case SL_REPLY_HEARTBEAT:
        break;
    case SL_REPLY_TOKEN:
        keep_logprobs(reply, event);
        break;
    case SL_REPLY_REASONING:
        sl_bytes_add(&choice->reasoning, event->text, event->length);
        break;
    case SL_REPLY_CONTENT:
        sl_bytes_add(&choice->content, event->text, event->length);
        break;
    case SL_REPLY_CALL:
        if (!choice->calls)
            choice->calls = json_array();
        json_array_append_new(choice->calls, call_object(event));
        break;
    case SL_REPLY_FINISH:
        choice->finish = sl_openai_finish(event);
        break;
    case SL_REPLY_END:
        write_whole(reply, event->usage, out);
        break;
    case SL_REPLY_ERROR:
        sl_openai_refuse(event->refusal, out);
        break;
    }
}

static void chat_write(void *context, const struct sl_reply_event *event, struct sl_bytes *out)
{
    struct reply *reply = context;

    sl_assert(event->choice_index < reply->n_choices);
    if (reply->frame.request->stream)
        write_event(reply, event, out);
    else
        collect(reply, event, out);
}

const struct sl_protocol sl_protocol_chat = {
    .name = "chat",
    .read = chat_read,
    .create = chat_create,
    .destroy = chat_destroy,
    .write = chat_write,
    .refuse = sl_openai_refuse,
};
