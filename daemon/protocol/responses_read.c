#include "daemon/protocol/responses_read.h"

#include <string.h>

#include "core/base/size.h"
#include "daemon/protocol/fields.h"

static int no_memory(struct sl_refusal *refusal)
{
    return sl_refuse(refusal, 500, NULL, "out of memory");
}

/* ---- tools -------------------------------------------------------------------------------------
 */

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
        "{\"type\": \"object\", \"properties\": {\"" SL_RESPONSES_CUSTOM_INPUT
        "\": {\"type\": \"string\"}}, "
        "\"required\": [\"" SL_RESPONSES_CUSTOM_INPUT "\"]}";
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

bool sl_responses_find_tool(const json_t *tools, const char *space, const char *called,
                            struct sl_responses_tool *found)
{
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *tool = json_array_get(tools, i);
        json_t *name;
        bool same;

        if (!space && sl_has_type(tool, "namespace")) {
            if (sl_responses_find_tool(json_object_get(tool, "tools"), sl_text_in(tool, "name"),
                                       called, found))
                return true;
            continue;
        }
        name = prompt_name(space, sl_text_in(tool, "name"));
        same = name && strcmp(json_string_value(name), called) == 0;
        json_decref(name);
        if (same) {
            *found = (struct sl_responses_tool){space, sl_text_in(tool, "name"),
                                                sl_has_type(tool, "custom")};
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
        arguments = json_pack("{s:s}", SL_RESPONSES_CUSTOM_INPUT, sl_text_in(item, "input"));
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

int sl_responses_read(struct sl_request *request, struct sl_refusal *refusal)
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
