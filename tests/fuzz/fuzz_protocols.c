/* Any body in any protocol: it is read and rendered, or refused as its sender's fault in words that
 * the protocol can put into JSON. What was read gets a whole or streamed reply of all kinds of
 * events. The first byte chooses the protocol and the chat format. */
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/json.h"
#include "core/base/size.h"
#include "core/text/chat_format.h"
#include "core/text/chat_prompt.h"
#include "daemon/protocol/protocol.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void expect_json(const struct sl_bytes *out)
{
    json_t *object;

    sl_assert(!out->out_of_memory && out->length > 0);
    object = json_loadb(out->data, out->length, 0, NULL);
    sl_assert(json_is_object(object));
    json_decref(object);
}

static void refuse(const struct sl_protocol *protocol, const struct sl_refusal *refusal)
{
    struct sl_bytes out = {0};

    sl_assert(refusal->status == 400 && refusal->message[0]);
    protocol->refuse(refusal, &out);
    expect_json(&out);
    sl_bytes_fini(&out);
}

/* Returns whether the conversation can be rendered; no piece of it is empty. */
static bool render(const struct sl_protocol *protocol, const struct sl_request *request)
{
    struct sl_chat_prompt prompt = {0};
    struct sl_refusal refusal;
    struct sl_err err;
    size_t end = 0;
    int rc = sl_chat_render(&prompt, request->messages, &request->chat, &err);

    sl_assert(rc != -ENOMEM);
    for (size_t i = 0; rc == 0 && i < prompt.n_pieces; i++) {
        const struct sl_chat_piece *piece = &prompt.pieces[i];

        sl_assert(piece->end > end && piece->end <= prompt.length);
        sl_assert(i > 0 || (piece->control && piece->end == strlen(SL_CHAT_BOS)));
        end = piece->end;
    }
    sl_assert(rc < 0 || end == prompt.length);
    if (rc < 0) {
        sl_refuse(&refusal, 400, "messages", "%s", err.message);
        refuse(protocol, &refusal);
    }
    sl_chat_prompt_fini(&prompt);
    return rc == 0;
}

static void write_choice(const struct sl_protocol *protocol, void *reply, uint32_t index,
                         bool is_chat, struct sl_bytes *out)
{
    const struct sl_reply_event events[] = {
        {.kind = SL_REPLY_REASONING, .choice_index = index, .text = "hm", .length = 2},
        {.kind = SL_REPLY_CALL, .choice_index = index, .call = {"call_1", "f", 0, "{}"}},
        {.kind = SL_REPLY_CONTENT, .choice_index = index, .text = "ok", .length = 2},
        {.kind = SL_REPLY_FINISH, .choice_index = index, .finish = SL_FINISH_END_OF_TEXT},
    };

    for (size_t i = is_chat ? 0 : 2; i < SL_ARRAY_LEN(events); i++)
        protocol->write(reply, &events[i], out);
}

static void reply(const struct sl_protocol *protocol, const struct sl_request *request)
{
    const uint32_t n = request->messages ? request->n : request->n * request->n_prompts;
    const struct sl_reply_identity identity = {.id = "x", .created_s = 7, .model = "m"};
    const struct sl_usage usage = {.n_prompt_tokens = 10, .n_new_tokens = 6};
    const struct sl_reply_event begin = {.kind = SL_REPLY_BEGIN};
    const struct sl_reply_event end = {.kind = SL_REPLY_END, .usage = &usage};
    struct sl_bytes out = {0};
    void *made = protocol->create(request, &identity);

    sl_assert(made && n >= 1 && n <= SL_REQUEST_CHOICES_MAX);
    protocol->write(made, &begin, &out);
    for (uint32_t i = 0; i < n; i++)
        write_choice(protocol, made, i, request->messages != NULL, &out);
    protocol->write(made, &end, &out);
    if (request->stream)
        sl_assert(!out.out_of_memory && out.length > 0);
    else
        expect_json(&out);
    protocol->destroy(made);
    sl_bytes_fini(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct sl_protocol *const protocols[] = {
        &sl_protocol_chat, &sl_protocol_completions, &sl_protocol_messages, &sl_protocol_responses,
        &sl_protocol_count_tokens};
    const struct sl_protocol *protocol;
    struct sl_request request = {0};
    struct sl_refusal refusal = {0};
    struct sl_err err;

    if (size < 1)
        return 0;
    protocol = protocols[data[0] / SL_CHAT_PROFILES % SL_ARRAY_LEN(protocols)];
    request.chat.profile = data[0] % SL_CHAT_PROFILES;
    if (sl_json_parse(&request.body, (const char *)data + 1, size - 1, "body", &err) < 0) {
        sl_refuse(&refusal, 400, NULL, "%s", err.message);
        refuse(protocol, &refusal);
    } else if (json_is_object(request.body)) {
        if (protocol->read(&request, &refusal) < 0)
            refuse(protocol, &refusal);
        else if ((!request.messages || render(protocol, &request)) &&
                 protocol != &sl_protocol_count_tokens)
            reply(protocol, &request);
    }
    sl_request_fini(&request);
    return 0;
}
