/* The protocols that agents speak, Messages and Responses: what their conversations become, and
 * what a reply looks like, streamed and whole. Bodies are cut from those that the clients send. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/base/size.h"
#include "daemon/protocol/protocol.h"

#define TEST cmocka_unit_test

/* Reads a body; JSON with ' for ". */
static int read_body(const struct sl_protocol *protocol, const char *body,
                     struct sl_request *request, struct sl_refusal *refusal)
{
    char *text = strdup(body);

    for (char *at = text; *at; at++)
        *at = *at == '\'' ? '"' : *at;
    *request = (struct sl_request){.body = json_loads(text, 0, NULL)};
    free(text);
    assert_non_null(request->body);
    return protocol->read(request, refusal);
}

/* The conversation that a body becomes, as JSON with ' for ". */
static void expect_conversation(const struct sl_protocol *protocol, const char *body,
                                const char *expected)
{
    struct sl_request request;
    struct sl_refusal refusal = {0};
    char *messages;

    if (read_body(protocol, body, &request, &refusal) < 0)
        fail_msg("%s", refusal.message);
    messages = json_dumps(request.messages, JSON_COMPACT);
    for (char *at = messages; *at; at++)
        *at = *at == '"' ? '\'' : *at;
    assert_string_equal(messages, expected);
    free(messages);
    sl_request_fini(&request);
}

static void expect_refusal(const struct sl_protocol *protocol, const char *body, const char *param)
{
    struct sl_request request;
    struct sl_refusal refusal = {0};

    assert_int_equal(read_body(protocol, body, &request, &refusal), -1);
    assert_int_equal(refusal.status, 400);
    assert_string_equal(refusal.param, param);
    sl_request_fini(&request);
}

/* ---- a reply -----------------------------------------------------------------------------------
 */

static const struct sl_reply_identity identity = {.id = "x", .created_s = 7, .model = "m"};
static const struct sl_usage usage = {
    .n_prompt_tokens = 10, .n_cached_tokens = 4, .n_new_tokens = 6, .n_reasoning_tokens = 2};

/* Reasoning in two pieces with a heartbeat between them, an answer, a call. */
static void write_reply(const struct sl_protocol *protocol, const struct sl_request *request,
                        const char *tool, const char *arguments, struct sl_bytes *out)
{
    const struct sl_reply_progress progress = {.n_prompt_tokens = 10, .left_s = -1};
    const struct sl_reply_event events[] = {
        {.kind = SL_REPLY_BEGIN},
        {.kind = SL_REPLY_HEARTBEAT, .progress = &progress},
        {.kind = SL_REPLY_REASONING, .text = "hm", .length = 2},
        {.kind = SL_REPLY_HEARTBEAT, .progress = &progress},
        {.kind = SL_REPLY_REASONING, .text = "mm", .length = 2},
        {.kind = SL_REPLY_CONTENT, .text = "ok", .length = 2},
        {.kind = SL_REPLY_CALL, .call = {"call_1", tool, 0, arguments}},
        {.kind = SL_REPLY_FINISH, .finish = SL_FINISH_END_OF_TEXT, .n_calls = 1},
        {.kind = SL_REPLY_END, .usage = &usage},
    };
    void *reply = protocol->create(request, &identity);

    assert_non_null(reply);
    for (size_t i = 0; i < SL_ARRAY_LEN(events); i++)
        if (request->stream || events[i].kind != SL_REPLY_HEARTBEAT)
            protocol->write(reply, &events[i], out);
    protocol->destroy(reply);
    assert_false(out->out_of_memory);
    sl_bytes_add(out, "", 1);
}

/* Calls `fn` with the data of each event of a stream, whose name must be its type. */
static void each_event(const struct sl_bytes *stream, void (*fn)(void *, json_t *), void *context)
{
    for (const char *at = stream->data; *at;) {
        const char *end = strstr(at, "\n\n"), *data = strstr(at, "data: ");
        char name[64];
        json_t *object;

        assert_non_null(end);
        if (*at == ':') {
            at = end + 2;
            continue;
        }
        assert_int_equal(sscanf(at, "event: %63s", name), 1);
        object = json_loadb(data + 6, (size_t)(end - data - 6), 0, NULL);
        assert_string_equal(json_string_value(json_object_get(object, "type")), name);
        fn(context, object);
        json_decref(object);
        at = end + 2;
    }
}

/* ---- Messages ----------------------------------------------------------------------------------
 */

static void test_messages_conversation(void **state)
{
    (void)state;
    expect_conversation(
        &sl_protocol_messages,
        "{'max_tokens': 9, 'system': [{'type': 'text', 'text': 'S', 'cache_control': {}}],"
        " 'tools': [{'name': 'f', 'description': 'd', 'input_schema': {'type': 'object'}},"
        "           {'type': 'web_search_20250305', 'name': 'web_search'}],"
        " 'messages': [{'role': 'user', 'content': 'Q'},"
        "  {'role': 'assistant', 'content': [{'type': 'thinking', 'thinking': 'T',"
        "    'signature': ''}, {'type': 'text', 'text': 'A'},"
        "    {'type': 'tool_use', 'id': 'i', 'name': 'f', 'input': {'x': 1}}]},"
        "  {'role': 'user', 'content': [{'type': 'tool_result', 'tool_use_id': 'i',"
        "    'content': [{'type': 'text', 'text': 'R'}]}, {'type': 'text', 'text': 'go on'}]}]}",
        "[{'role':'system','content':[{'type':'text','text':'S'}],'tools':[{'type':'function',"
        "'function':{'name':'f','description':'d','parameters':{'type':'object'}}}]},"
        "{'role':'user','content':'Q'},"
        "{'role':'assistant','content':'A','reasoning_content':'T','tool_calls':[{'id':'i','type':"
        "'function','function':{'name':'f','arguments':'{\\'x\\':1}'}}]},"
        "{'role':'tool','tool_call_id':'i','content':[{'type':'text','text':'R'}]},"
        "{'role':'user','content':[{'type':'text','text':'go on'}]}]");
}

static void test_messages_settings(void **state)
{
    struct sl_request request;
    struct sl_refusal refusal;

    (void)state;
    assert_int_equal(read_body(&sl_protocol_messages,
                               "{'max_tokens': 9, 'thinking': {'type': 'adaptive'},"
                               " 'output_config': {'effort': 'max'}, 'stop_sequences': ['E'],"
                               " 'messages': [{'role': 'user', 'content': 'Q'},"
                               "  {'role': 'assistant', 'content': 'so'}]}",
                               &request, &refusal),
                     0);
    assert_true(request.chat.thinking);
    assert_int_equal(request.chat.effort, SL_CHAT_MAX);
    assert_int_equal(request.n_new_max, 9);
    assert_true(request.continues);
    sl_request_fini(&request);
    assert_int_equal(read_body(&sl_protocol_messages,
                               "{'max_tokens': 9, 'tools': [{'name': 'f'}],"
                               " 'tool_choice': {'type': 'tool', 'name': 'f'},"
                               " 'messages': [{'role': 'user', 'content': 'Q'}]}",
                               &request, &refusal),
                     0);
    assert_false(request.chat.thinking);
    assert_true(request.must_call);
    assert_string_equal(request.must_call_name, "f");
    sl_request_fini(&request);
}

static void test_messages_refusals(void **state)
{
    struct sl_refusal refusal;
    struct sl_bytes out = {0};

    (void)state;
    expect_refusal(&sl_protocol_messages, "{'messages': [{'role': 'user', 'content': 'Q'}]}",
                   "max_tokens");
    expect_refusal(&sl_protocol_messages, "{'max_tokens': 1, 'messages': []}", "messages");
    expect_refusal(&sl_protocol_messages,
                   "{'max_tokens': 1, 'messages': [{'role': 'user', 'content':"
                   " [{'type': 'image', 'source': {}}]}]}",
                   "messages");
    expect_refusal(&sl_protocol_messages,
                   "{'max_tokens': 1, 'thinking': {'type': 'much'},"
                   " 'messages': [{'role': 'user', 'content': 'Q'}]}",
                   "thinking");
    expect_refusal(&sl_protocol_messages,
                   "{'max_tokens': 1, 'messages': [{'role': 'judge', 'content': 'Q'}]}",
                   "messages");
    expect_refusal(&sl_protocol_messages,
                   "{'max_tokens': 1, 'output_config': 'much',"
                   " 'messages': [{'role': 'user', 'content': 'Q'}]}",
                   "output_config");
    expect_refusal(&sl_protocol_messages,
                   "{'max_tokens': 1, 'tools': [{'name': 'f'}],"
                   " 'tool_choice': {'type': 'tool', 'name': 'g'},"
                   " 'messages': [{'role': 'user', 'content': 'Q'}]}",
                   "tool_choice");
    sl_refuse(&refusal, 429, NULL, "full");
    sl_protocol_messages.refuse(&refusal, &out);
    assert_memory_equal(out.data,
                        "{\"type\":\"error\",\"error\":{\"type\":\"rate_limit_error\","
                        "\"message\":\"full\"},\"request_id\":null}",
                        out.length);
    sl_bytes_fini(&out);
}

/* Puts a message together again from its events, as the SDK does. */
struct assembly {
    json_t *message;
    bool stopped;
};

static void append_text(json_t *block, const char *key, const json_t *delta, const char *delta_key)
{
    const char *old = json_string_value(json_object_get(block, key));

    json_object_set_new(
        block, key,
        json_sprintf("%s%s", old ? old : "", json_string_value(json_object_get(delta, delta_key))));
}

static void assemble(void *context, json_t *event)
{
    struct assembly *a = context;
    const char *type = json_string_value(json_object_get(event, "type"));
    json_t *content = json_object_get(a->message, "content");
    json_t *delta = json_object_get(event, "delta"), *block;

    assert_false(a->stopped);
    if (strcmp(type, "message_start") == 0) {
        a->message = json_incref(json_object_get(event, "message"));
    } else if (strcmp(type, "content_block_start") == 0) {
        assert_int_equal(json_integer_value(json_object_get(event, "index")),
                         json_array_size(content));
        json_array_append(content, json_object_get(event, "content_block"));
    } else if (strcmp(type, "content_block_delta") == 0) {
        block = json_array_get(content, json_array_size(content) - 1);
        type = json_string_value(json_object_get(delta, "type"));
        if (strcmp(type, "thinking_delta") == 0) {
            append_text(block, "thinking", delta, "thinking");
        } else if (strcmp(type, "text_delta") == 0) {
            append_text(block, "text", delta, "text");
        } else {
            assert_string_equal(type, "input_json_delta");
            json_object_set_new(
                block, "input",
                json_loads(json_string_value(json_object_get(delta, "partial_json")), 0, NULL));
        }
    } else if (strcmp(type, "message_delta") == 0) {
        json_object_update(a->message, delta);
        json_object_set(a->message, "usage", json_object_get(event, "usage"));
    } else if (strcmp(type, "message_stop") == 0) {
        a->stopped = true;
    }
}

/* What is streamed is what is given whole. */
static void test_messages_replies(void **state)
{
    struct sl_request request = {.n = 1, .stream = true};
    struct sl_bytes stream = {0}, whole = {0};
    struct assembly a = {0};
    json_t *message;

    (void)state;
    write_reply(&sl_protocol_messages, &request, "f", "{\"x\": 1}", &stream);
    each_event(&stream, assemble, &a);
    assert_true(a.stopped);
    request.stream = false;
    write_reply(&sl_protocol_messages, &request, "f", "{\"x\": 1}", &whole);
    message = json_loads(whole.data, 0, NULL);
    assert_true(json_equal(message, a.message));
    assert_string_equal(json_string_value(json_object_get(message, "stop_reason")), "tool_use");
    assert_int_equal(json_array_size(json_object_get(message, "content")), 3);
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(message, "usage"), "input_tokens")), 6);
    json_decref(message);
    json_decref(a.message);
    sl_bytes_fini(&stream);
    sl_bytes_fini(&whole);
}

/* ---- Responses ---------------------------------------------------------------------------------
 */

#define TOOLS                                                                                      \
    "'tools': [{'type': 'function', 'name': 'f', 'description': 'd', 'parameters': {}},"           \
    " {'type': 'namespace', 'name': 'mcp__a__', 'tools': [{'type': 'function', 'name': 'g'}]},"    \
    " {'type': 'custom', 'name': 'patch'}, {'type': 'web_search'}]"

static void test_responses_conversation(void **state)
{
    (void)state;
    expect_conversation(
        &sl_protocol_responses,
        "{'model': 'm', 'instructions': 'S', " TOOLS ", 'input': ["
        " {'type': 'message', 'role': 'developer', 'content': [{'type': 'input_text',"
        "   'text': 'D'}]},"
        " {'role': 'user', 'content': 'Q'},"
        " {'type': 'reasoning', 'summary': [], 'content': [{'type': 'reasoning_text',"
        "   'text': 'T'}], 'encrypted_content': null},"
        " {'type': 'function_call', 'call_id': 'i', 'namespace': 'mcp__a__', 'name': 'g',"
        "   'arguments': '{}'},"
        " {'type': 'custom_tool_call', 'call_id': 'j', 'name': 'patch', 'input': 'P'},"
        " {'type': 'web_search_call', 'id': 'w'},"
        " {'type': 'function_call_output', 'call_id': 'i', 'output': 'R'},"
        " {'type': 'custom_tool_call_output', 'call_id': 'j', 'output': [{'type': 'input_text',"
        "   'text': 'O'}]}]}",
        "[{'role':'system','content':[{'type':'text','text':'S'},{'type':'text','text':'\\n\\n'},"
        "{'type':'text','text':'D'}],'tools':["
        "{'type':'function','function':{'name':'f','description':'d','parameters':{}}},"
        "{'type':'function','function':{'name':'mcp__a__g','description':''}},"
        "{'type':'function','function':{'name':'patch','description':'','parameters':{'type':"
        "'object','properties':{'input':{'type':'string'}},'required':['input']}}}]},"
        "{'role':'user','content':'Q'},"
        "{'role':'assistant','content':'','tool_calls':["
        "{'id':'i','type':'function','function':{'name':'mcp__a__g','arguments':'{}'}},"
        "{'id':'j','type':'function','function':{'name':'patch','arguments':"
        "'{\\'input\\':\\'P\\'}'}}],'reasoning_content':'T'},"
        "{'role':'tool','tool_call_id':'i','content':'R'},"
        "{'role':'tool','tool_call_id':'j','content':'O'}]");
    expect_conversation(&sl_protocol_responses, "{'input': 'Q'}",
                        "[{'role':'user','content':'Q'}]");
}

static void test_responses_refusals(void **state)
{
    (void)state;
    expect_refusal(&sl_protocol_responses, "{'input': 'Q', 'previous_response_id': 'resp_1'}",
                   "previous_response_id");
    expect_refusal(&sl_protocol_responses, "{'input': 'Q', 'text': 'json'}", "text");
    expect_refusal(&sl_protocol_responses,
                   "{'input': 'Q', " TOOLS ", 'tool_choice': {'type': 'function', 'name': 'h'}}",
                   "tool_choice");
    expect_refusal(&sl_protocol_responses, "{'input': 7}", "input");
    expect_refusal(&sl_protocol_responses, "{}", "input");
    expect_refusal(&sl_protocol_responses,
                   "{'input': [{'role': 'user', 'content': [{'type': 'input_image'}]}]}", "input");
    expect_refusal(&sl_protocol_responses, "{'input': [{'role': 'user', 'content': 7}]}", "input");
    expect_refusal(&sl_protocol_responses, "{'input': 'Q', 'instructions': 7}", "instructions");
    expect_refusal(&sl_protocol_responses, "{'input': 'Q', 'tools': 'f'}", "tools");
    expect_refusal(&sl_protocol_responses, "{'input': 'Q', 'background': true}", "background");
    expect_refusal(&sl_protocol_responses, "{'input': 'Q', 'reasoning': {'effort': 'some'}}",
                   "reasoning.effort");
}

struct responses {
    json_t *output; /* what output_item.done gave */
    json_t *last;   /* the response of the last event that had one */
    int n_events;
};

static void collect(void *context, json_t *event)
{
    struct responses *r = context;
    const char *type = json_string_value(json_object_get(event, "type"));

    assert_int_equal(json_integer_value(json_object_get(event, "sequence_number")), r->n_events++);
    if (strcmp(type, "response.output_item.done") == 0)
        json_array_append(r->output, json_object_get(event, "item"));
    if (json_object_get(event, "response")) {
        json_decref(r->last);
        r->last = json_incref(json_object_get(event, "response"));
    }
}

static const char *field_of(const json_t *list, size_t index, const char *name)
{
    return json_string_value(json_object_get(json_array_get(list, index), name));
}

static void expect_responses(const char *tool, const char *arguments, const char *type,
                             const char *name, const char *space, const char *given)
{
    struct sl_request request;
    struct sl_refusal refusal;
    struct sl_bytes stream = {0}, whole = {0};
    struct responses r = {.output = json_array()};
    json_t *response, *output;

    assert_int_equal(
        read_body(&sl_protocol_responses, "{'input': 'Q', " TOOLS "}", &request, &refusal), 0);
    request.stream = true;
    write_reply(&sl_protocol_responses, &request, tool, arguments, &stream);
    each_event(&stream, collect, &r);
    assert_true(r.n_events > 0);
    request.stream = false;
    write_reply(&sl_protocol_responses, &request, tool, arguments, &whole);
    response = json_loads(whole.data, 0, NULL);
    assert_true(json_equal(response, r.last));
    output = json_object_get(response, "output");
    assert_true(json_equal(output, r.output));
    assert_int_equal(json_array_size(output), 3);
    assert_string_equal(field_of(output, 0, "type"), "reasoning");
    assert_string_equal(field_of(output, 1, "type"), "message");
    assert_string_equal(field_of(output, 2, "type"), type);
    assert_string_equal(field_of(output, 2, "name"), name);
    if (space)
        assert_string_equal(field_of(output, 2, "namespace"), space);
    assert_string_equal(
        field_of(output, 2, strcmp(type, "function_call") == 0 ? "arguments" : "input"), given);
    json_decref(response);
    json_decref(r.last);
    json_decref(r.output);
    sl_bytes_fini(&stream);
    sl_bytes_fini(&whole);
    sl_request_fini(&request);
}

static void test_responses_replies(void **state)
{
    (void)state;
    expect_responses("f", "{\"x\": 1}", "function_call", "f", NULL, "{\"x\": 1}");
    expect_responses("mcp__a__g", "{}", "function_call", "g", "mcp__a__", "{}");
    expect_responses("patch", "{\"input\": \"P\"}", "custom_tool_call", "patch", NULL, "P");
    expect_responses("patch", "{\"P\": 1}", "custom_tool_call", "patch", NULL, "{\"P\": 1}");
    expect_responses("unknown", "{}", "function_call", "unknown", NULL, "{}");
}

/* ---- long conversations ------------------------------------------------------------------------
 */

#define N_MANY 20000

static json_t *message(const char *role, const char *content)
{
    return json_pack("{s:s, s:s}", "role", role, "content", content);
}

/* What grows with the square of the messages does not end. The results come in the opposite order
 * of their calls. */
static void test_many_messages(void **state)
{
    json_t *messages = json_array(), *calls = json_array(), *asks = message("assistant", "");
    struct sl_request request = {.body = json_pack("{s:o}", "messages", messages)};
    struct sl_chat_prompt prompt = {0};
    struct sl_refusal refusal;
    struct sl_err err;
    char id[16];

    (void)state;
    for (int i = 0; i < N_MANY; i++)
        json_array_append_new(messages, message("system", "s"));
    json_object_set_new(asks, "tool_calls", calls);
    json_array_append_new(messages, asks);
    for (int i = 0; i < N_MANY; i++) {
        snprintf(id, sizeof(id), "<%d>", i);
        json_array_append_new(calls, json_pack("{s:s, s:{s:s, s:s}}", "id", id, "function", "name",
                                               "f", "arguments", "{}"));
        snprintf(id, sizeof(id), "<%d>", N_MANY - 1 - i);
        json_array_append_new(messages, message("tool", id));
        json_object_set_new(json_array_get(messages, json_array_size(messages) - 1), "tool_call_id",
                            json_string(id));
    }
    assert_int_equal(sl_protocol_chat.read(&request, &refusal), 0);
    assert_int_equal(json_array_size(request.messages), 2 + N_MANY);
    assert_int_equal(sl_chat_render(&prompt, request.messages, &request.chat, &err), 0);
    sl_chat_prompt_add(&prompt, "", 1);
    assert_non_null(strstr(prompt.bytes, "s\n\ns\n\ns"));
    assert_non_null(strstr(prompt.bytes, "<tool_result><0></tool_result>\n\n<tool_result><1>"));
    sl_chat_prompt_fini(&prompt);
    sl_request_fini(&request);
}

/* A turn of the model in very many items is put together in one pass. */
static void test_many_items(void **state)
{
    json_t *input = json_array();
    struct sl_request request = {.body = json_pack("{s:o}", "input", input)};
    struct sl_refusal refusal;
    const json_t *turn;

    (void)state;
    for (int i = 0; i < N_MANY; i++) {
        json_array_append_new(input, json_pack("{s:s, s:[{s:s, s:s}]}", "type", "reasoning",
                                               "content", "type", "text", "text", "r"));
        json_array_append_new(input, message("assistant", "a"));
    }
    json_array_append_new(input, message("user", "q"));
    assert_int_equal(sl_protocol_responses.read(&request, &refusal), 0);
    assert_int_equal(json_array_size(request.messages), 2);
    turn = json_array_get(request.messages, 0);
    assert_int_equal(json_string_length(json_object_get(turn, "content")), N_MANY);
    assert_int_equal(json_string_length(json_object_get(turn, "reasoning_content")), N_MANY);
    sl_request_fini(&request);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_messages_conversation),
        TEST(test_messages_settings),
        TEST(test_messages_refusals),
        TEST(test_messages_replies),
        TEST(test_responses_conversation),
        TEST(test_responses_refusals),
        TEST(test_responses_replies),
        TEST(test_many_messages),
        TEST(test_many_items),
    };

    return cmocka_run_group_tests_name("agent_protocols", tests, NULL, NULL);
}
