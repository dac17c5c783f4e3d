/* /v1/messages: Anthropic's protocol, which Claude Code and its SDKs speak. */
#include <stdlib.h>
#include <string.h>

#include "daemon/protocol/fields.h"
#include "daemon/protocol/protocol.h"
#include "daemon/protocol/sse.h"

/* ---- requests: a conversation in blocks --------------------------------------------------------
 */

/* Text as the model is given it: a string, or blocks of which all must be text. Returns a new
 * reference, or NULL with the refusal. */
static json_t *read_text(json_t *content, const char *where, struct sl_refusal *refusal)
{
    json_t *parts;

    if (!content || json_is_null(content))
        return json_string("");
    if (json_is_string(content))
        return json_incref(content);
    if (!json_is_array(content)) {
        sl_refuse(refusal, 400, where, "\"%s\" is neither a string nor a list of blocks", where);
        return NULL;
    }
    parts = json_array();
    for (size_t i = 0; i < json_array_size(content); i++) {
        json_t *block = json_array_get(content, i);

        if (!sl_has_type(block, "text")) {
            sl_refuse(refusal, 400, where, "\"%s\" has a block of type \"%s\": only text is known",
                      where, sl_text_in(block, "type"));
            json_decref(parts);
            return NULL;
        }
        json_array_append_new(
            parts, json_pack("{s:s, s:s}", "type", "text", "text", sl_text_in(block, "text")));
    }
    return parts;
}

/* Adds `message`, which it takes. Returns 0, or -1 with the refusal if it is NULL or there is no
 * memory for it. */
static int add_message(struct sl_request *request, json_t *message, struct sl_refusal *refusal)
{
    if (json_array_append_new(request->messages, message) < 0)
        return sl_refuse(refusal, 500, NULL, "out of memory");
    return 0;
}

static int add_text(struct sl_request *request, const char *role, json_t *content,
                    struct sl_refusal *refusal)
{
    json_t *text = read_text(content, "messages", refusal);

    if (!text)
        return -1;
    return add_message(request, json_pack("{s:s, s:o}", "role", role, "content", text), refusal);
}

static int add_result(struct sl_request *request, const json_t *block, struct sl_refusal *refusal)
{
    json_t *text = read_text(json_object_get(block, "content"), "messages", refusal);

    if (!text)
        return -1;
    return add_message(request,
                       json_pack("{s:s, s:s, s:o}", "role", "tool", "tool_call_id",
                                 sl_text_in(block, "tool_use_id"), "content", text),
                       refusal);
}

/* A turn of the user is what he says, and what tools answered. Each block is a message of its own,
 * which the chat format joins again. */
static int read_user(struct sl_request *request, json_t *content, struct sl_refusal *refusal)
{
    int rc = 0;

    if (!json_is_array(content))
        return add_text(request, "user", content, refusal);
    for (size_t i = 0; rc == 0 && i < json_array_size(content); i++) {
        json_t *block = json_array_get(content, i), *text;

        if (sl_has_type(block, "tool_result")) {
            rc = add_result(request, block, refusal);
            continue;
        }
        text = json_pack("[O]", block);
        rc = add_text(request, "user", text, refusal);
        json_decref(text);
    }
    return rc;
}

/* Adds one block of the model's turn to what becomes a message. */
static int read_model_block(const json_t *block, struct sl_bytes *reasoning, struct sl_bytes *text,
                            json_t *calls, struct sl_refusal *refusal)
{
    char *arguments;
    int rc;

    if (sl_has_type(block, "thinking")) {
        sl_bytes_add_text(reasoning, sl_text_in(block, "thinking"));
        return 0;
    }
    if (sl_has_type(block, "text")) {
        sl_bytes_add_text(text, sl_text_in(block, "text"));
        return 0;
    }
    if (sl_has_type(block, "redacted_thinking")) /* nobody here can read it */
        return 0;
    if (!sl_has_type(block, "tool_use"))
        return sl_refuse(refusal, 400, "messages",
                         "a block of type \"%s\" in the model's turn is not known",
                         sl_text_in(block, "type"));
    arguments = json_dumps(json_object_get(block, "input"), JSON_COMPACT | JSON_ENCODE_ANY);
    rc = json_array_append_new(calls, json_pack("{s:s, s:s, s:{s:s, s:s}}", "id",
                                                sl_text_in(block, "id"), "type", "function",
                                                "function", "name", sl_text_in(block, "name"),
                                                "arguments", arguments ? arguments : "{}"));
    free(arguments);
    return rc < 0 ? sl_refuse(refusal, 500, NULL, "out of memory") : 0;
}

static int read_model(struct sl_request *request, json_t *content, struct sl_refusal *refusal)
{
    struct sl_bytes reasoning = {0}, text = {0};
    json_t *calls = json_array(), *message;
    int rc = 0;

    if (json_is_string(content))
        sl_bytes_add(&text, json_string_value(content), json_string_length(content));
    for (size_t i = 0; rc == 0 && i < json_array_size(content); i++)
        rc = read_model_block(json_array_get(content, i), &reasoning, &text, calls, refusal);
    if (rc == 0) {
        message = json_pack("{s:s, s:o}", "role", "assistant", "content", sl_bytes_string(&text));
        if (reasoning.length > 0)
            json_object_set_new(message, "reasoning_content", sl_bytes_string(&reasoning));
        if (json_array_size(calls) > 0)
            json_object_set(message, "tool_calls", calls);
        rc = add_message(request, message, refusal);
    }
    json_decref(calls);
    sl_bytes_fini(&reasoning);
    sl_bytes_fini(&text);
    return rc;
}

static int read_message(struct sl_request *request, const json_t *message,
                        struct sl_refusal *refusal)
{
    const char *role = sl_text_in(message, "role");
    json_t *content = json_object_get(message, "content");

    if (!json_is_string(content) && !json_is_array(content))
        return sl_refuse(refusal, 400, "messages", "a message has no content");
    if (strcmp(role, "user") == 0)
        return read_user(request, content, refusal);
    if (strcmp(role, "assistant") == 0)
        return read_model(request, content, refusal);
    if (strcmp(role, "system") == 0)
        return add_text(request, "system", content, refusal);
    return sl_refuse(refusal, 400, "messages", "the role \"%s\" is not known", role);
}

/* A conversation that ends with the model's turn is gone on with. */
static int continue_last(struct sl_request *request, struct sl_refusal *refusal)
{
    json_t *last = json_array_get(request->messages, json_array_size(request->messages) - 1);

    if (strcmp(sl_text_in(last, "role"), "assistant") != 0)
        return 0;
    if (json_object_set_new(last, "prefix", json_true()) < 0)
        return sl_refuse(refusal, 500, NULL, "out of memory");
    return 0;
}

/* ---- requests: tools and settings --------------------------------------------------------------
 */

/* Tools that a server would have to run itself, which have a type of their own, are left out. */
static int read_tools(const json_t *tools, json_t *functions, struct sl_refusal *refusal)
{
    for (size_t i = 0; i < json_array_size(tools); i++) {
        json_t *tool = json_array_get(tools, i);
        json_t *schema = json_object_get(tool, "input_schema"), *function;

        if (sl_text_in(tool, "type")[0] && !sl_has_type(tool, "custom"))
            continue;
        if (!sl_text_in(tool, "name")[0])
            return sl_refuse(refusal, 400, "tools", "tool %zu has no name", i);
        function = json_pack("{s:s, s:s, s:O?}", "name", sl_text_in(tool, "name"), "description",
                             sl_text_in(tool, "description"), "parameters", schema);
        if (json_array_append_new(
                functions, json_pack("{s:s, s:o}", "type", "function", "function", function)) < 0)
            return sl_refuse(refusal, 500, NULL, "out of memory");
    }
    return 0;
}

/* Returns whether the model is told of tools, or -1 with the refusal. */
static int read_tool_choice(struct sl_request *request, struct sl_refusal *refusal)
{
    const json_t *choice = sl_field(request->body, "tool_choice");

    if (!choice || sl_has_type(choice, "auto"))
        return 1;
    if (sl_has_type(choice, "none"))
        return 0;
    request->must_call = true;
    if (sl_has_type(choice, "any"))
        return 1;
    request->must_call_name = json_string_value(json_object_get(choice, "name"));
    if (!sl_has_type(choice, "tool") || !request->must_call_name)
        return sl_refuse(refusal, 400, "tool_choice",
                         "\"tool_choice.type\" is auto, any, none, or tool with a name");
    return 1;
}

/* Adds the tools and the format of the answer. */
static int read_extras(struct sl_request *request, struct sl_refusal *refusal)
{
    json_t *tools = json_object_get(request->body, "tools"), *functions;
    json_t *format = json_object_get(json_object_get(request->body, "output_config"), "format");
    json_t *response_format = NULL;
    int rc, with_tools;

    if (tools && !json_is_null(tools) && !json_is_array(tools))
        return sl_refuse(refusal, 400, "tools", "\"tools\" is no list");
    with_tools = read_tool_choice(request, refusal);
    if (with_tools < 0)
        return -1;
    if (json_is_object(json_object_get(format, "schema")))
        response_format = json_pack("{s:s, s:{s:O}}", "type", "json_schema", "json_schema",
                                    "schema", json_object_get(format, "schema"));
    functions = json_array();
    rc = with_tools ? read_tools(tools, functions, refusal) : 0;
    if (rc == 0)
        rc = sl_messages_add_tools(request, functions, response_format, refusal);
    if (json_array_size(functions) == 0)
        request->must_call = false;
    json_decref(functions);
    json_decref(response_format);
    return rc;
}

static int read_thinking(struct sl_request *request, struct sl_refusal *refusal)
{
    static const char *const objects[] = {"thinking", "output_config", "tool_choice", NULL};
    const json_t *thinking = sl_field(request->body, "thinking");
    const json_t *output = sl_field(request->body, "output_config");
    const char *effort = NULL;

    if (sl_field_objects(request->body, objects, refusal) < 0)
        return -1;
    /* Who does not ask for thinking does not expect its blocks. */
    request->chat.thinking = sl_has_type(thinking, "enabled") || sl_has_type(thinking, "adaptive");
    if (thinking && !request->chat.thinking && !sl_has_type(thinking, "disabled"))
        return sl_refuse(refusal, 400, "thinking",
                         "\"thinking.type\" is enabled, adaptive or disabled");
    if (sl_field_string(output, "effort", &effort, refusal) < 0)
        return -1;
    return effort ? sl_set_effort(&request->chat, effort, "output_config.effort", refusal) : 0;
}

static int read_conversation(struct sl_request *request, struct sl_refusal *refusal)
{
    json_t *messages = json_object_get(request->body, "messages");
    json_t *system = json_object_get(request->body, "system");

    request->messages = json_array();
    if (!json_is_array(messages) || json_array_size(messages) == 0)
        return sl_refuse(refusal, 400, "messages", "\"messages\" is no list with a message");
    if (system && !json_is_null(system)) {
        json_t *text = read_text(system, "system", refusal);

        if (!text ||
            add_message(request, json_pack("{s:s, s:o}", "role", "system", "content", text),
                        refusal) < 0)
            return -1;
    }
    for (size_t i = 0; i < json_array_size(messages); i++)
        if (read_message(request, json_array_get(messages, i), refusal) < 0)
            return -1;
    if (continue_last(request, refusal) < 0 || sl_messages_settle(request, refusal) < 0 ||
        read_extras(request, refusal) < 0)
        return -1;
    if (request->must_call)
        request->chat.thinking = false;
    return 0;
}

static int count_read(struct sl_request *request, struct sl_refusal *refusal)
{
    request->n = 1;
    if (sl_field_string(request->body, "model", &request->model, refusal) < 0 ||
        read_thinking(request, refusal) < 0)
        return -1;
    return read_conversation(request, refusal);
}

static int messages_read(struct sl_request *request, struct sl_refusal *refusal)
{
    if (!sl_field(request->body, "max_tokens"))
        return sl_refuse(refusal, 400, "max_tokens", "\"max_tokens\" is missing");
    if (sl_field_u32(request->body, "max_tokens", 1, 1u << 24, &request->n_new_max, refusal) < 0 ||
        sl_field_bool(request->body, "stream", &request->stream, refusal) < 0 ||
        sl_field_stops(request, "stop_sequences", refusal) < 0 ||
        sl_field_sampling(request, refusal) < 0)
        return -1;
    if (json_array_size(json_object_get(request->body, "mcp_servers")) > 0)
        return sl_refuse(refusal, 400, "mcp_servers", "\"mcp_servers\" is not supported");
    return count_read(request, refusal);
}

/* ---- replies -----------------------------------------------------------------------------------
 */

enum block { NO_BLOCK, THINKING, TEXT };

struct reply {
    const struct sl_request *request;
    const struct sl_reply_identity *identity;
    json_t *content;         /* the blocks that are complete, where the reply is given whole */
    enum block open;         /* the block that is being written, */
    struct sl_bytes text;    /* and what it has, where the reply is given whole */
    uint32_t n_blocks;       /* that were begun */
    const char *stop_reason; /* NULL until the text has ended */
    const char *stop_string; /* NULL: none ended it */
};

static void *messages_create(const struct sl_request *request,
                             const struct sl_reply_identity *identity)
{
    struct reply *reply = calloc(1, sizeof(*reply));

    if (!reply)
        return NULL;
    reply->request = request;
    reply->identity = identity;
    reply->content = json_array();
    return reply;
}

static void messages_destroy(void *context)
{
    struct reply *reply = context;

    if (!reply)
        return;
    json_decref(reply->content);
    sl_bytes_fini(&reply->text);
    free(reply);
}

static json_t *usage_object(const struct sl_usage *usage)
{
    const json_int_t cached = usage->n_cached_tokens;

    return json_pack("{s:I, s:I, s:I, s:I}", "input_tokens",
                     (json_int_t)usage->n_prompt_tokens - cached, "cache_read_input_tokens", cached,
                     "cache_creation_input_tokens", (json_int_t)0, "output_tokens",
                     (json_int_t)usage->n_new_tokens);
}

/* The message so far. `content` is taken. */
static json_t *message_object(const struct reply *reply, json_t *content,
                              const struct sl_usage *usage)
{
    return json_pack("{s:s+, s:s, s:s, s:s, s:o, s:s?, s:s?, s:o}", "id", "msg_",
                     reply->identity->id, "type", "message", "role", "assistant", "model",
                     reply->identity->model, "content", content, "stop_reason", reply->stop_reason,
                     "stop_sequence", reply->stop_string, "usage", usage_object(usage));
}

static const char *stop_reason(const struct sl_reply_event *event)
{
    if (event->finish == SL_FINISH_TOKENS_MAX || event->finish == SL_FINISH_CONTEXT)
        return "max_tokens";
    if (event->n_calls > 0)
        return "tool_use";
    return event->stop_string ? "stop_sequence" : "end_turn";
}

/* ---- streams -----------------------------------------------------------------------------------
 */

/* `object` is taken, and told its type, which is also the event's name. */
static void send(struct sl_bytes *out, const char *type, json_t *object)
{
    json_object_set_new(object, "type", json_string(type));
    sl_sse_write(out, type, object);
}

static void send_delta(struct reply *reply, json_t *delta, struct sl_bytes *out)
{
    send(out, "content_block_delta",
         json_pack("{s:I, s:o}", "index", (json_int_t)reply->n_blocks - 1, "delta", delta));
}

static void send_text(struct reply *reply, enum block block, const char *text, size_t length,
                      struct sl_bytes *out)
{
    send_delta(reply,
               block == THINKING
                   ? json_pack("{s:s, s:s%}", "type", "thinking_delta", "thinking", text, length)
                   : json_pack("{s:s, s:s%}", "type", "text_delta", "text", text, length),
               out);
}

static void send_block_start(struct reply *reply, json_t *block, struct sl_bytes *out)
{
    send(out, "content_block_start",
         json_pack("{s:I, s:o}", "index", (json_int_t)reply->n_blocks++, "content_block", block));
}

static void send_block_stop(struct reply *reply, struct sl_bytes *out)
{
    send(out, "content_block_stop", json_pack("{s:I}", "index", (json_int_t)reply->n_blocks - 1));
}

static void send_call(struct reply *reply, const struct sl_reply_event *event, struct sl_bytes *out)
{
    send_block_start(reply,
                     json_pack("{s:s, s:s, s:s, s:{}}", "type", "tool_use", "id", event->call.id,
                               "name", event->call.name, "input"),
                     out);
    send_delta(
        reply,
        json_pack("{s:s, s:s}", "type", "input_json_delta", "partial_json", event->call.arguments),
        out);
    send_block_stop(reply, out);
}

static void send_message_delta(const struct reply *reply, const struct sl_usage *usage,
                               struct sl_bytes *out)
{
    send(out, "message_delta",
         json_pack("{s:{s:s?, s:s?}, s:o}", "delta", "stop_reason", reply->stop_reason,
                   "stop_sequence", reply->stop_string, "usage", usage_object(usage)));
}

/* Only events that say something keep Claude Code waiting; it gives up on comments and pings. */
static void send_heartbeat(struct reply *reply, const struct sl_reply_progress *progress,
                           struct sl_bytes *out)
{
    const struct sl_usage none = {0};

    sl_sse_write_progress(out, progress);
    if (reply->open != NO_BLOCK)
        send_text(reply, reply->open, "", 0, out);
    else
        send_message_delta(reply, &none, out);
}

/* ---- both kinds of replies ---------------------------------------------------------------------
 */

static json_t *block_object(enum block block, json_t *text)
{
    return block == THINKING
               ? json_pack("{s:s, s:o, s:s}", "type", "thinking", "thinking", text, "signature", "")
               : json_pack("{s:s, s:o}", "type", "text", "text", text);
}

static void close_block(struct reply *reply, struct sl_bytes *out)
{
    if (reply->open == NO_BLOCK)
        return;
    if (reply->request->stream) {
        send_block_stop(reply, out);
    } else {
        out->out_of_memory |= reply->text.out_of_memory;
        json_array_append_new(reply->content,
                              block_object(reply->open, sl_bytes_string(&reply->text)));
        sl_bytes_clear(&reply->text);
    }
    reply->open = NO_BLOCK;
}

static void write_text(struct reply *reply, const struct sl_reply_event *event,
                       struct sl_bytes *out)
{
    const enum block block = event->kind == SL_REPLY_REASONING ? THINKING : TEXT;

    if (reply->open != block) {
        close_block(reply, out);
        if (reply->request->stream)
            send_block_start(reply, block_object(block, json_string("")), out);
        reply->open = block;
    }
    if (reply->request->stream)
        send_text(reply, block, event->text, event->length, out);
    else
        sl_bytes_add(&reply->text, event->text, event->length);
}

static void write_call(struct reply *reply, const struct sl_reply_event *event,
                       struct sl_bytes *out)
{
    close_block(reply, out);
    if (reply->request->stream)
        send_call(reply, event, out);
    else
        json_array_append_new(reply->content,
                              json_pack("{s:s, s:s, s:s, s:o}", "type", "tool_use", "id",
                                        event->call.id, "name", event->call.name, "input",
                                        json_loads(event->call.arguments, 0, NULL)));
}

static void write_end(struct reply *reply, const struct sl_usage *usage, struct sl_bytes *out)
{
    json_t *message;

    if (reply->request->stream) {
        send_message_delta(reply, usage, out);
        send(out, "message_stop", json_object());
        return;
    }
    message = message_object(reply, json_incref(reply->content), usage);
    sl_bytes_add_json(out, message);
    json_decref(message);
}

static const char *error_type(int status)
{
    switch (status) {
    case 401:
        return "authentication_error";
    case 403:
        return "permission_error";
    case 404:
        return "not_found_error";
    case 413:
        return "request_too_large";
    case 429:
        return "rate_limit_error";
    case 503:
        return "overloaded_error";
    default:
        return status < 500 ? "invalid_request_error" : "api_error";
    }
}

static void messages_refuse(const struct sl_refusal *refusal, struct sl_bytes *out)
{
    json_t *object =
        json_pack("{s:s, s:{s:s, s:s}, s:n}", "type", "error", "error", "type",
                  error_type(refusal->status), "message", refusal->message, "request_id");

    sl_bytes_add_json(out, object);
    json_decref(object);
}

static void write_begin(struct reply *reply, const struct sl_reply_event *event,
                        struct sl_bytes *out)
{
    struct sl_usage usage = {0};

    if (!reply->request->stream)
        return;
    if (event->progress) {
        usage.n_prompt_tokens = event->progress->n_prompt_tokens;
        usage.n_cached_tokens = event->progress->n_cached_tokens;
    }
    send(out, "message_start",
         json_pack("{s:o}", "message", message_object(reply, json_array(), &usage)));
}

static void messages_write(void *context, const struct sl_reply_event *event, struct sl_bytes *out)
{
    struct reply *reply = context;

    switch (event->kind) {
    case SL_REPLY_BEGIN:
        write_begin(reply, event, out);
        break;
    case SL_REPLY_HEARTBEAT:
        send_heartbeat(reply, event->progress, out);
        break;
    case SL_REPLY_TOKEN: /* the protocol has no log probabilities */
        break;
    case SL_REPLY_REASONING:
    case SL_REPLY_CONTENT:
        write_text(reply, event, out);
        break;
    case SL_REPLY_CALL:
        write_call(reply, event, out);
        break;
    case SL_REPLY_FINISH:
        close_block(reply, out);
        reply->stop_reason = stop_reason(event);
        reply->stop_string = event->stop_string;
        break;
    case SL_REPLY_END:
        write_end(reply, event->usage, out);
        break;
    case SL_REPLY_ERROR:
        if (reply->request->stream)
            sl_bytes_add_text(out, "event: error\ndata: ");
        messages_refuse(event->refusal, out);
        if (reply->request->stream)
            sl_bytes_add_text(out, "\n\n");
        break;
    }
}

const struct sl_protocol sl_protocol_messages = {
    .name = "messages",
    .read = messages_read,
    .create = messages_create,
    .destroy = messages_destroy,
    .write = messages_write,
    .refuse = messages_refuse,
};

const struct sl_protocol sl_protocol_count_tokens = {
    .name = "count_tokens",
    .read = count_read,
    .create = messages_create,
    .destroy = messages_destroy,
    .write = messages_write,
    .refuse = messages_refuse,
};
