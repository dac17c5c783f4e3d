/* /v1/responses: OpenAI's Responses, without a memory of earlier ones: each request brings the
 * whole conversation, as Codex does. */
#include <stdlib.h>
#include <string.h>

#include "daemon/protocol/fields.h"
#include "daemon/protocol/openai.h"
#include "daemon/protocol/protocol.h"
#include "daemon/protocol/responses_read.h"
#include "daemon/protocol/sse.h"

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
                         const struct sl_responses_tool *tool, json_t *given, const char *status)
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
    json_t *input = json_incref(json_object_get(object, SL_RESPONSES_CUSTOM_INPUT));

    json_decref(object);
    if (json_is_string(input))
        return input;
    json_decref(input);
    return json_string(arguments);
}

static void write_call(struct reply *reply, const struct sl_reply_event *event,
                       struct sl_bytes *out)
{
    struct sl_responses_tool tool = {NULL, event->call.name, false};
    json_t *given, *item;

    close_item(reply, out);
    sl_responses_find_tool(json_object_get(reply->request->body, "tools"), NULL, event->call.name,
                           &tool);
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
    .read = sl_responses_read,
    .create = responses_create,
    .destroy = responses_destroy,
    .write = responses_write,
    .refuse = sl_openai_refuse,
};
