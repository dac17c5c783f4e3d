/* /v1/responses: OpenAI's Responses, without a memory of earlier ones: each request brings the
 * whole conversation, as Codex does. */
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"
#include "daemon/protocol/fields.h"
#include "daemon/protocol/openai.h"
#include "daemon/protocol/protocol.h"
#include "daemon/protocol/sse.h"

static int no_memory(struct sl_refusal *refusal)
{
    return sl_refuse(refusal, 500, NULL, "out of memory");
}

/* ---- tools -------------------------------------------------------------------------------------
 *
 * To the model all tools are functions. One in a namespace is called by both names, and a custom
 * one, whose input is no JSON, has a string as its only parameter. */

#define CUSTOM_INPUT "input"

struct tool {
    const char *space; /* NULL: in no namespace */
    const char *name;
    bool is_custom;
};

/* The name by which the model knows a tool, as a new string. */
static json_t *prompt_name(const char *space, const char *name)
{
    const size_t length = space ? strlen(space) : 0;
    const char *between = length == 0 || space[length - 1] == '_' ? "" : "__";

    return json_sprintf("%s%s%s", space ? space : "", between, name);
}

static json_t *function_of(const json_t *tool, const char *space)
{
    static const char custom_schema[] =
        "{\"type\": \"object\", \"properties\": {\"" CUSTOM_INPUT "\": {\"type\": \"string\"}}, "
        "\"required\": [\"" CUSTOM_INPUT "\"]}";
    json_t *schema = sl_has_type(tool, "custom") ? json_loads(custom_schema, 0, NULL)
                                                 : json_incref(json_object_get(tool, "parameters"));

    return json_pack("{s:s, s:{s:o, s:s, s:o*}}", "type", "function", "function", "name",
                     prompt_name(space, sl_text_in(tool, "name")), "description",
                     sl_text_in(tool, "description"), "parameters", schema);
}

/* Tools that a server would have to run itself are left out. */
static int read_tools(const json_t *tools, const char *space, json_t *functions,
                      struct sl_refusal *refusal)
{
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *tool = json_array_get(tools, i);

        if (!space && sl_has_type(tool, "namespace")) {
            if (read_tools(json_object_get(tool, "tools"), sl_text_in(tool, "name"), functions,
                           refusal) < 0)
                return -1;
        } else if (sl_has_type(tool, "function") || sl_has_type(tool, "custom")) {
            if (!sl_text_in(tool, "name")[0])
                return sl_refuse(refusal, 400, "tools", "tool %zu has no name", i);
            if (json_array_append_new(functions, function_of(tool, space)) < 0)
                return no_memory(refusal);
        }
    }
    return 0;
}

static bool find_tool(const json_t *tools, const char *space, const char *called,
                      struct tool *found)
{
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *tool = json_array_get(tools, i);
        json_t *name;
        bool same;

        if (!space && sl_has_type(tool, "namespace")) {
            if (find_tool(json_object_get(tool, "tools"), sl_text_in(tool, "name"), called, found))
                return true;
            continue;
        }
        name = prompt_name(space, sl_text_in(tool, "name"));
        same = name && strcmp(json_string_value(name), called) == 0;
        json_decref(name);
        if (same) {
            *found = (struct tool){space, sl_text_in(tool, "name"), sl_has_type(tool, "custom")};
            return true;
        }
    }
    return false;
}

/* Returns whether the model is told of tools, or -1 with the refusal. */
static int read_tool_choice(struct sl_request *request, struct sl_refusal *refusal)
{
    const json_t *choice = sl_field(request->body, "tool_choice");
    const char *word = json_string_value(choice);

    if (sl_has_type(choice, "allowed_tools"))
        word = sl_text_in(choice, "mode");
    if (!choice || (word && strcmp(word, "auto") == 0))
        return 1;
    if (word && strcmp(word, "none") == 0)
        return 0;
    request->must_call = true;
    if (word && strcmp(word, "required") == 0)
        return 1;
    request->must_call_name = json_string_value(json_object_get(choice, "name"));
    if (!request->must_call_name)
        return sl_refuse(refusal, 400, "tool_choice",
                         "\"tool_choice\" is none, auto, required, or a tool with its name");
    return 1;
}

/* ---- requests: a conversation in items ---------------------------------------------------------
 */

/* Returns the text of an item's content, a string or a list of parts, as a new string; or NULL with
 * the refusal. */
static json_t *read_text(const json_t *content, struct sl_refusal *refusal)
{
    static const char *const types[] = {"input_text", "output_text",    "text",
                                        "refusal",    "reasoning_text", "summary_text"};
    struct sl_bytes text = {0};
    json_t *string = NULL;

    if (json_is_string(content))
        return json_string(json_string_value(content));
    if (content && !json_is_null(content) && !json_is_array(content)) {
        sl_refuse(refusal, 400, "input", "an item's text is neither a string nor a list of parts");
        return NULL;
    }
    for (size_t i = 0; i < json_array_size(content); i++) {
        const json_t *part = json_array_get(content, i);
        size_t t = 0;

        while (t < SL_ARRAY_LEN(types) && !sl_has_type(part, types[t]))
            t++;
        if (t == SL_ARRAY_LEN(types)) {
            sl_refuse(refusal, 400, "input", "a part of type \"%s\" is not known: only text is",
                      sl_text_in(part, "type"));
            sl_bytes_fini(&text);
            return NULL;
        }
        sl_bytes_add_text(&text,
                          sl_text_in(part, sl_has_type(part, "refusal") ? "refusal" : "text"));
    }
    if (!text.out_of_memory)
        string = sl_bytes_string(&text);
    if (!string)
        no_memory(refusal);
    sl_bytes_fini(&text);
    return string;
}

/* The model's turn that is being put together from items that follow each other. */
struct turn {
    json_t *message; /* of the request's messages; NULL: there is none */
    struct sl_bytes content, reasoning;
    bool has_reasoning;
};

/* Returns the turn's message, which is begun if need be; NULL when out of memory. */
static json_t *turn_message(struct sl_request *request, struct turn *turn)
{
    if (!turn->message &&
        json_array_append_new(request->messages,
                              json_pack("{s:s, s:s}", "role", "assistant", "content", "")) == 0)
        turn->message = json_array_get(request->messages, json_array_size(request->messages) - 1);
    return turn->message;
}

/* Adds text, which is taken, to the turn's content or reasoning. */
static int extend_turn(struct sl_request *request, struct turn *turn, struct sl_bytes *part,
                       json_t *text, struct sl_refusal *refusal)
{
    if (!text)
        return -1;
    sl_bytes_add(part, json_string_value(text), json_string_length(text));
    json_decref(text);
    return turn_message(request, turn) && !part->out_of_memory ? 0 : no_memory(refusal);
}

/* Completes the turn: the next item is no part of it. */
static int end_turn(struct turn *turn, struct sl_refusal *refusal)
{
    int rc = 0;

    if (turn->message)
        rc = json_object_set_new(turn->message, "content", sl_bytes_string(&turn->content));
    if (rc == 0 && turn->message && turn->has_reasoning)
        rc = json_object_set_new(turn->message, "reasoning_content",
                                 sl_bytes_string(&turn->reasoning));
    sl_bytes_fini(&turn->content);
    sl_bytes_fini(&turn->reasoning);
    *turn = (struct turn){0};
    return rc < 0 ? no_memory(refusal) : 0;
}

static int add_message(struct sl_request *request, struct turn *turn, const json_t *item,
                       struct sl_refusal *refusal)
{
    const char *role = sl_text_in(item, "role");
    json_t *text;

    if (strcmp(role, "user") != 0 && strcmp(role, "assistant") != 0 &&
        strcmp(role, "system") != 0 && strcmp(role, "developer") != 0)
        return sl_refuse(refusal, 400, "input", "the role \"%s\" is not known", role);
    text = read_text(json_object_get(item, "content"), refusal);
    if (strcmp(role, "assistant") == 0)
        return extend_turn(request, turn, &turn->content, text, refusal);
    if (!text || end_turn(turn, refusal) < 0) {
        json_decref(text);
        return -1;
    }
    if (json_array_append_new(request->messages,
                              json_pack("{s:s, s:o}", "role", role, "content", text)) < 0)
        return no_memory(refusal);
    return 0;
}

static int add_reasoning(struct sl_request *request, struct turn *turn, const json_t *item,
                         struct sl_refusal *refusal)
{
    const json_t *content = json_object_get(item, "content");

    if (json_array_size(content) == 0)
        content = json_object_get(item, "summary");
    turn->has_reasoning = true;
    return extend_turn(request, turn, &turn->reasoning, read_text(content, refusal), refusal);
}

static int add_call(struct sl_request *request, struct turn *turn, const json_t *item,
                    struct sl_refusal *refusal)
{
    json_t *message = turn_message(request, turn), *arguments;
    json_t *calls = json_object_get(message, "tool_calls");
    char *dumped = NULL;

    if (sl_has_type(item, "custom_tool_call")) {
        arguments = json_pack("{s:s}", CUSTOM_INPUT, sl_text_in(item, "input"));
        dumped = json_dumps(arguments, JSON_COMPACT);
        json_decref(arguments);
    }
    if (!calls && message) {
        json_object_set_new(message, "tool_calls", json_array());
        calls = json_object_get(message, "tool_calls");
    }
    if (json_array_append_new(
            calls, json_pack("{s:s, s:s, s:{s:o, s:s}}", "id", sl_text_in(item, "call_id"), "type",
                             "function", "function", "name",
                             prompt_name(json_string_value(json_object_get(item, "namespace")),
                                         sl_text_in(item, "name")),
                             "arguments", dumped ? dumped : sl_text_in(item, "arguments"))) < 0) {
        free(dumped);
        return no_memory(refusal);
    }
    free(dumped);
    return 0;
}

static int add_output(struct sl_request *request, struct turn *turn, const json_t *item,
                      struct sl_refusal *refusal)
{
    json_t *text = read_text(json_object_get(item, "output"), refusal);

    if (!text || end_turn(turn, refusal) < 0) {
        json_decref(text);
        return -1;
    }
    if (json_array_append_new(request->messages,
                              json_pack("{s:s, s:s, s:o}", "role", "tool", "tool_call_id",
                                        sl_text_in(item, "call_id"), "content", text)) < 0)
        return no_memory(refusal);
    return 0;
}

/* Items about servers' own tools are left out, like the tools. */
static int add_item(struct sl_request *request, struct turn *turn, const json_t *item,
                    struct sl_refusal *refusal)
{
    if (!json_is_object(item))
        return sl_refuse(refusal, 400, "input", "an item of \"input\" is no object");
    if (sl_has_type(item, "message") || !sl_text_in(item, "type")[0])
        return add_message(request, turn, item, refusal);
    if (sl_has_type(item, "reasoning"))
        return add_reasoning(request, turn, item, refusal);
    if (sl_has_type(item, "function_call") || sl_has_type(item, "custom_tool_call"))
        return add_call(request, turn, item, refusal);
    if (sl_has_type(item, "function_call_output") || sl_has_type(item, "custom_tool_call_output"))
        return add_output(request, turn, item, refusal);
    if (sl_has_type(item, "item_reference"))
        return sl_refuse(refusal, 400, "input", "there is no memory of earlier items: send them");
    return 0;
}

static int add_items(struct sl_request *request, const json_t *input, struct sl_refusal *refusal)
{
    struct turn turn = {0};
    struct sl_refusal later;
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < json_array_size(input); i++)
        rc = add_item(request, &turn, json_array_get(input, i), refusal);
    return end_turn(&turn, rc < 0 ? &later : refusal) < 0 ? -1 : rc;
}

/* `instructions` and a lone string are messages, too. */
static int add_text(struct sl_request *request, const char *role, const json_t *text,
                    struct sl_refusal *refusal)
{
    if (json_array_append_new(request->messages, json_pack("{s:s, s:s}", "role", role, "content",
                                                           json_string_value(text))) < 0)
        return no_memory(refusal);
    return 0;
}

static int read_conversation(struct sl_request *request, struct sl_refusal *refusal)
{
    const json_t *input = json_object_get(request->body, "input");
    const json_t *instructions = sl_field(request->body, "instructions");
    const json_t *tools = sl_field(request->body, "tools");
    json_t *functions, *format = json_object_get(json_object_get(request->body, "text"), "format");
    json_t *response_format = NULL;
    int rc, with_tools = read_tool_choice(request, refusal);

    request->messages = json_array();
    if (instructions && !json_is_string(instructions))
        return sl_refuse(refusal, 400, "instructions", "\"instructions\" is no string");
    if (tools && !json_is_array(tools))
        return sl_refuse(refusal, 400, "tools", "\"tools\" is no list");
    if (with_tools < 0 || (instructions && add_text(request, "system", instructions, refusal) < 0))
        return -1;
    if (!json_is_string(input) && !json_is_array(input))
        return sl_refuse(refusal, 400, "input", "\"input\" is neither a string nor a list");
    if (json_is_string(input) && add_text(request, "user", input, refusal) < 0)
        return -1;
    if (add_items(request, input, refusal) < 0)
        return -1;
    if (sl_has_type(format, "json_schema") || sl_has_type(format, "json_object"))
        response_format = json_pack("{s:s, s:{s:O*}}", "type", sl_text_in(format, "type"),
                                    "json_schema", "schema", json_object_get(format, "schema"));
    functions = json_array();
    rc = with_tools ? read_tools(tools, NULL, functions, refusal) : 0;
    if (rc == 0)
        rc = sl_messages_settle(request, refusal);
    if (rc == 0)
        rc = sl_messages_add_tools(request, functions, response_format, refusal);
    if (json_array_size(functions) == 0)
        request->must_call = false;
    if (request->must_call)
        request->chat.thinking = false;
    json_decref(functions);
    json_decref(response_format);
    return rc;
}

static int responses_read(struct sl_request *request, struct sl_refusal *refusal)
{
    static const char *const objects[] = {"reasoning", "text", NULL};
    const json_t *reasoning = sl_field(request->body, "reasoning");
    const char *effort = NULL;
    bool in_background = false;

    request->n = 1;
    request->chat.thinking = true;
    if (sl_field(request->body, "previous_response_id") || sl_field(request->body, "conversation"))
        return sl_refuse(refusal, 400, "previous_response_id",
                         "responses are not kept: send the whole conversation as \"input\"");
    if (sl_field_objects(request->body, objects, refusal) < 0 ||
        sl_field_string(request->body, "model", &request->model, refusal) < 0 ||
        sl_field_bool(request->body, "stream", &request->stream, refusal) < 0 ||
        sl_field_bool(request->body, "background", &in_background, refusal) < 0 ||
        sl_field_u32(request->body, "max_output_tokens", 1, 1u << 24, &request->n_new_max,
                     refusal) < 0 ||
        sl_field_sampling(request, refusal) < 0 ||
        sl_field_string(reasoning, "effort", &effort, refusal) < 0)
        return -1;
    if (in_background)
        return sl_refuse(refusal, 400, "background", "\"background\" is not supported");
    if (effort && sl_set_effort(&request->chat, effort, "reasoning.effort", refusal) < 0)
        return -1;
    return read_conversation(request, refusal);
}

/* ---- replies -----------------------------------------------------------------------------------
 */

enum item { NO_ITEM, REASONING, MESSAGE };

struct reply {
    const struct sl_request *request;
    const struct sl_reply_identity *identity;
    json_t *output;       /* the items that are complete */
    enum item open;       /* the item that is being written, */
    struct sl_bytes text; /* and what it has */
    uint64_t n_events;
    bool is_cut; /* the answer ended for want of tokens */
};

static void *responses_create(const struct sl_request *request,
                              const struct sl_reply_identity *identity)
{
    struct reply *reply = calloc(1, sizeof(*reply));

    if (!reply)
        return NULL;
    reply->request = request;
    reply->identity = identity;
    reply->output = json_array();
    return reply;
}

static void responses_destroy(void *context)
{
    struct reply *reply = context;

    if (!reply)
        return;
    json_decref(reply->output);
    sl_bytes_fini(&reply->text);
    free(reply);
}

static json_t *usage_object(const struct sl_usage *usage)
{
    const json_int_t prompt = usage->n_prompt_tokens, made = usage->n_new_tokens;

    return json_pack("{s:I, s:{s:I}, s:I, s:{s:I}, s:I}", "input_tokens", prompt,
                     "input_tokens_details", "cached_tokens", (json_int_t)usage->n_cached_tokens,
                     "output_tokens", made, "output_tokens_details", "reasoning_tokens",
                     (json_int_t)usage->n_reasoning_tokens, "total_tokens", prompt + made);
}

/* The response so far. `usage` and `refusal` may be NULL. */
static json_t *response_object(const struct reply *reply, const char *status,
                               const struct sl_usage *usage, const struct sl_refusal *refusal)
{
    json_t *object =
        json_pack("{s:s+, s:s, s:I, s:s, s:s, s:O, s:b, s:b, s:n, s:n, s:n, s:n}", "id", "resp_",
                  reply->identity->id, "object", "response", "created_at",
                  (json_int_t)reply->identity->created_s, "status", status, "model",
                  reply->identity->model, "output", reply->output, "parallel_tool_calls", 1,
                  "store", 0, "previous_response_id", "error", "incomplete_details", "usage");

    if (usage)
        json_object_set_new(object, "usage", usage_object(usage));
    if (usage && reply->is_cut)
        json_object_set_new(object, "incomplete_details",
                            json_pack("{s:s}", "reason", "max_output_tokens"));
    if (refusal)
        json_object_set_new(object, "error",
                            json_pack("{s:s, s:s}", "code",
                                      refusal->code ? refusal->code : "server_error", "message",
                                      refusal->message));
    return object;
}

/* An event of a stream; `object` is taken. Every one tells its type and number. */
static void send(struct reply *reply, const char *type, json_t *object, struct sl_bytes *out)
{
    if (!reply->request->stream) {
        json_decref(object);
        return;
    }
    json_object_set_new(object, "type", json_string(type));
    json_object_set_new(object, "sequence_number", json_integer((json_int_t)reply->n_events++));
    sl_sse_write(out, type, object);
}

static void send_response(struct reply *reply, const char *type, json_t *response,
                          struct sl_bytes *out)
{
    send(reply, type, json_pack("{s:o}", "response", response), out);
}

/* ---- items -------------------------------------------------------------------------------------
 */

static json_int_t output_index(const struct reply *reply)
{
    return (json_int_t)json_array_size(reply->output);
}

/* Items are named after the response and their place in it. */
static json_t *item_id(const struct reply *reply, const char *prefix)
{
    return json_sprintf("%s_%s_%d", prefix, reply->identity->id, (int)output_index(reply));
}

static json_t *open_item_id(const struct reply *reply)
{
    return item_id(reply, reply->open == REASONING ? "rs" : "msg");
}

/* The item that is being written, with its parts, which are taken. */
static json_t *open_item(const struct reply *reply, json_t *parts, const char *status)
{
    if (reply->open == REASONING)
        return json_pack("{s:o, s:s, s:[], s:o, s:n, s:s}", "id", open_item_id(reply), "type",
                         "reasoning", "summary", "content", parts, "encrypted_content", "status",
                         status);
    return json_pack("{s:o, s:s, s:s, s:o, s:s}", "id", open_item_id(reply), "type", "message",
                     "role", "assistant", "content", parts, "status", status);
}

static json_t *open_part(const struct reply *reply, json_t *text)
{
    if (reply->open == REASONING)
        return json_pack("{s:s, s:o}", "type", "reasoning_text", "text", text);
    return json_pack("{s:s, s:o, s:[], s:[]}", "type", "output_text", "text", text, "annotations",
                     "logprobs");
}

static void send_item(struct reply *reply, const char *type, json_t *item, struct sl_bytes *out)
{
    send(reply, type, json_pack("{s:I, s:o}", "output_index", output_index(reply), "item", item),
         out);
}

/* About the only part of the open item; `value` is taken and is the event's field `key`. */
static void send_part(struct reply *reply, const char *type, const char *key, json_t *value,
                      struct sl_bytes *out)
{
    send(reply, type,
         json_pack("{s:o, s:I, s:i, s:o}", "item_id", open_item_id(reply), "output_index",
                   output_index(reply), "content_index", 0, key, value),
         out);
}

static void begin_item(struct reply *reply, enum item item, struct sl_bytes *out)
{
    reply->open = item;
    send_item(reply, "response.output_item.added", open_item(reply, json_array(), "in_progress"),
              out);
    send_part(reply, "response.content_part.added", "part", open_part(reply, json_string("")), out);
}

static void close_item(struct reply *reply, struct sl_bytes *out)
{
    json_t *item;

    if (reply->open == NO_ITEM)
        return;
    out->out_of_memory |= reply->text.out_of_memory;
    send_part(reply,
              reply->open == REASONING ? "response.reasoning_text.done"
                                       : "response.output_text.done",
              "text", sl_bytes_string(&reply->text), out);
    send_part(reply, "response.content_part.done", "part",
              open_part(reply, sl_bytes_string(&reply->text)), out);
    item = open_item(reply, json_pack("[o]", open_part(reply, sl_bytes_string(&reply->text))),
                     "completed");
    send_item(reply, "response.output_item.done", json_incref(item), out);
    json_array_append_new(reply->output, item);
    sl_bytes_clear(&reply->text);
    reply->open = NO_ITEM;
}

static void write_text(struct reply *reply, const struct sl_reply_event *event,
                       struct sl_bytes *out)
{
    const enum item item = event->kind == SL_REPLY_REASONING ? REASONING : MESSAGE;

    if (reply->open != item) {
        close_item(reply, out);
        begin_item(reply, item, out);
    }
    sl_bytes_add(&reply->text, event->text, event->length);
    send_part(reply,
              item == REASONING ? "response.reasoning_text.delta" : "response.output_text.delta",
              "delta", json_stringn(event->text, event->length), out);
}

/* A call with what it is given, which is taken: JSON, or the input of a custom tool. */
static json_t *call_item(const struct reply *reply, const struct sl_reply_event *event,
                         const struct tool *tool, json_t *given, const char *status)
{
    json_t *item = json_pack(
        "{s:o, s:s, s:s, s:s, s:o, s:s}", "id", item_id(reply, tool->is_custom ? "ctc" : "fc"),
        "type", tool->is_custom ? "custom_tool_call" : "function_call", "call_id", event->call.id,
        "name", tool->name, tool->is_custom ? "input" : "arguments", given, "status", status);

    if (tool->space)
        json_object_set_new(item, "namespace", json_string(tool->space));
    return item;
}

/* Returns what a custom tool is given, as a new string: all of it, if the model did not keep to the
 * only parameter. */
static json_t *custom_input(const char *arguments)
{
    json_t *object = json_loads(arguments, 0, NULL);
    json_t *input = json_incref(json_object_get(object, CUSTOM_INPUT));

    json_decref(object);
    if (json_is_string(input))
        return input;
    json_decref(input);
    return json_string(arguments);
}

static void write_call(struct reply *reply, const struct sl_reply_event *event,
                       struct sl_bytes *out)
{
    struct tool tool = {NULL, event->call.name, false};
    json_t *given, *item;

    close_item(reply, out);
    find_tool(json_object_get(reply->request->body, "tools"), NULL, event->call.name, &tool);
    given =
        tool.is_custom ? custom_input(event->call.arguments) : json_string(event->call.arguments);
    item = call_item(reply, event, &tool, json_string(""), "in_progress");
    send_item(reply, "response.output_item.added", json_incref(item), out);
    send(reply,
         tool.is_custom ? "response.custom_tool_call_input.delta"
                        : "response.function_call_arguments.delta",
         json_pack("{s:O, s:I, s:O}", "item_id", json_object_get(item, "id"), "output_index",
                   output_index(reply), "delta", given),
         out);
    send(reply,
         tool.is_custom ? "response.custom_tool_call_input.done"
                        : "response.function_call_arguments.done",
         json_pack("{s:O, s:I, s:O}", "item_id", json_object_get(item, "id"), "output_index",
                   output_index(reply), tool.is_custom ? "input" : "arguments", given),
         out);
    json_decref(item);
    item = call_item(reply, event, &tool, given, "completed");
    send_item(reply, "response.output_item.done", json_incref(item), out);
    json_array_append_new(reply->output, item);
}

/* ---- the whole ---------------------------------------------------------------------------------
 */

static void write_end(struct reply *reply, const struct sl_usage *usage, struct sl_bytes *out)
{
    const char *status = reply->is_cut ? "incomplete" : "completed";
    json_t *response = response_object(reply, status, usage, NULL);

    if (reply->request->stream) {
        send_response(reply, reply->is_cut ? "response.incomplete" : "response.completed", response,
                      out);
        return;
    }
    sl_bytes_add_json(out, response);
    json_decref(response);
}

static void write_error(struct reply *reply, const struct sl_refusal *refusal, struct sl_bytes *out)
{
    if (reply->request->stream)
        send_response(reply, "response.failed", response_object(reply, "failed", NULL, refusal),
                      out);
    else
        sl_openai_refuse(refusal, out);
}

static void responses_write(void *context, const struct sl_reply_event *event, struct sl_bytes *out)
{
    struct reply *reply = context;

    switch (event->kind) {
    case SL_REPLY_BEGIN:
        send_response(reply, "response.created", response_object(reply, "in_progress", NULL, NULL),
                      out);
        send_response(reply, "response.in_progress",
                      response_object(reply, "in_progress", NULL, NULL), out);
        break;
    case SL_REPLY_HEARTBEAT: /* Codex gives up on comments alone */
        sl_sse_write_progress(out, event->progress);
        send_response(reply, "response.in_progress",
                      response_object(reply, "in_progress", NULL, NULL), out);
        break;
    case SL_REPLY_TOKEN: /* log probabilities are not given here */
        break;
    case SL_REPLY_REASONING:
    case SL_REPLY_CONTENT:
        write_text(reply, event, out);
        break;
    case SL_REPLY_CALL:
        write_call(reply, event, out);
        break;
    case SL_REPLY_FINISH:
        close_item(reply, out);
        reply->is_cut = event->finish == SL_FINISH_TOKENS_MAX || event->finish == SL_FINISH_CONTEXT;
        break;
    case SL_REPLY_END:
        write_end(reply, event->usage, out);
        break;
    case SL_REPLY_ERROR:
        write_error(reply, event->refusal, out);
        break;
    }
}

const struct sl_protocol sl_protocol_responses = {
    .name = "responses",
    .read = responses_read,
    .create = responses_create,
    .destroy = responses_destroy,
    .write = responses_write,
    .refuse = sl_openai_refuse,
};
