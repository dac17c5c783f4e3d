/* Any bytes as the body of a request, in every protocol: it is refused with a status and a message,
 * or it becomes token ids of the model, and the reply to it is JSON. The first byte chooses the
 * protocol. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/size.h"
#include "daemon/answer/prompt_ids.h"
#include "daemon/protocol/protocol.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct sl_protocol *const protocols[] = {
    &sl_protocol_chat,      &sl_protocol_completions,  &sl_protocol_messages,
    &sl_protocol_responses, &sl_protocol_count_tokens,
};

/* Opened once: reading it takes longer than all else. */
static struct sl_tokenizer *tok;
static struct sl_config config = {.bos_token_id = 0, .eos_token_id = 1};

static void check_refusal(const struct sl_protocol *protocol, const struct sl_refusal *refusal)
{
    struct sl_bytes out = {0};
    json_t *object;

    sl_assert(refusal->status >= 400 && refusal->status < 600 && refusal->message[0]);
    protocol->refuse(refusal, &out);
    sl_assert(sl_json_parse(&object, out.data, out.length, "refusal", NULL) == 0);
    json_decref(object);
    sl_bytes_fini(&out);
}

static void say(const struct sl_protocol *protocol, void *reply, struct sl_reply_event event,
                struct sl_bytes *out)
{
    protocol->write(reply, &event, out);
}

/* A reply with something of every kind. */
static void check_reply(const struct sl_protocol *protocol, const struct sl_request *request,
                        uint32_t n_choices)
{
    const struct sl_reply_identity identity = {.id = "abc", .model = "m", .tok = tok};
    const struct sl_reply_progress progress = {.n_prompt_tokens = 9, .left_s = 1};
    const struct sl_usage usage = {.n_prompt_tokens = 9, .n_new_tokens = 3};
    void *reply = protocol->create(request, &identity);
    struct sl_bytes out = {0};
    json_t *object;

    sl_assert(reply);
    say(protocol, reply, (struct sl_reply_event){.kind = SL_REPLY_BEGIN}, &out);
    if (request->stream)
        say(protocol, reply,
            (struct sl_reply_event){.kind = SL_REPLY_HEARTBEAT, .progress = &progress}, &out);
    for (uint32_t i = 0; i < n_choices; i++) {
        say(protocol, reply,
            (struct sl_reply_event){
                .kind = SL_REPLY_REASONING, .choice_index = i, .text = "why", .length = 3},
            &out);
        say(protocol, reply,
            (struct sl_reply_event){
                .kind = SL_REPLY_CONTENT, .choice_index = i, .text = "so\n", .length = 3},
            &out);
        if (request->messages)
            say(protocol, reply,
                (struct sl_reply_event){.kind = SL_REPLY_CALL,
                                        .choice_index = i,
                                        .call = {.id = "c", .name = "f", .arguments = "{}"}},
                &out);
        say(protocol, reply,
            (struct sl_reply_event){.kind = SL_REPLY_FINISH,
                                    .choice_index = i,
                                    .finish = SL_FINISH_END_OF_TEXT,
                                    .n_calls = request->messages != NULL},
            &out);
    }
    say(protocol, reply, (struct sl_reply_event){.kind = SL_REPLY_END, .usage = &usage}, &out);
    sl_assert(!out.out_of_memory && out.length > 0);
    if (!request->stream) {
        sl_assert(sl_json_parse(&object, out.data, out.length, "reply", NULL) == 0);
        json_decref(object);
    }
    protocol->destroy(reply);
    sl_bytes_fini(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sl_request request = {.chat.profile = SL_CHAT_V4_0731};
    const struct sl_protocol *protocol;
    struct sl_prompt_ids ids = {0};
    struct sl_refusal refusal;

    if (!tok) {
        sl_assert(sl_tokenizer_open(&tok, "tests/data/tokenizer.json", NULL) == 0);
        config.vocab_size = sl_tokenizer_id_count(tok);
    }
    if (size < 2)
        return 0;
    protocol = protocols[data[0] % SL_ARRAY_LEN(protocols)];
    if (sl_json_parse(&request.body, (const char *)data + 1, size - 1, "body", NULL) < 0)
        return 0;
    if (json_is_object(request.body)) {
        if (protocol->read(&request, &refusal) < 0 ||
            sl_prompt_ids_make(&ids, &request, tok, &config, &refusal) < 0)
            check_refusal(protocol, &refusal);
        else if (protocol != &sl_protocol_count_tokens)
            check_reply(protocol, &request, ids.n * request.n);
    }
    sl_prompt_ids_fini(&ids);
    sl_request_fini(&request);
    return 0;
}
