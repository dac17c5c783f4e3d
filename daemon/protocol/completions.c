/* /v1/completions: OpenAI's completions of plain text, and with `suffix` DeepSeek's filling in of
 * what stands between two texts. */
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "daemon/protocol/fields.h"
#include "daemon/protocol/openai.h"
#include "daemon/protocol/protocol.h"

/* Without max_tokens a text would go on to the end of the context; OpenAI's default is 16. */
#define N_NEW_DEFAULT 16u

/* ---- requests ----------------------------------------------------------------------------------
 */

static bool is_id_list(const json_t *value)
{
    return json_array_size(value) > 0 && json_is_integer(json_array_get(value, 0));
}

static int read_prompt(const json_t *value, struct sl_text_prompt *prompt,
                       struct sl_refusal *refusal)
{
    if (json_is_string(value)) {
        *prompt = (struct sl_text_prompt){.text = json_string_value(value),
                                          .length = json_string_length(value)};
        return 0;
    }
    *prompt = (struct sl_text_prompt){.ids = value};
    for (size_t i = 0; i < json_array_size(value); i++)
        if (!json_is_integer(json_array_get(value, i)))
            return sl_refuse(refusal, 400, "prompt", "token %zu of a prompt is no integer", i);
    if (json_array_size(value) == 0)
        return sl_refuse(refusal, 400, "prompt",
                         "a prompt is a string, or a list of token ids that is not empty");
    return 0;
}

/* A prompt is a string or a list of ids; several are a list of these. */
static int read_prompts(struct sl_request *request, struct sl_refusal *refusal)
{
    const json_t *value = sl_field(request->body, "prompt");
    const bool many = json_is_array(value) && !is_id_list(value);
    const size_t n = many ? json_array_size(value) : 1;
    int rc = 0;

    if (!value)
        return sl_refuse(refusal, 400, "prompt", "\"prompt\" is missing");
    if (n == 0 || n * request->n > SL_REQUEST_CHOICES_MAX)
        return sl_refuse(refusal, 400, "prompt",
                         "%zu prompts with %u texts each, but 1 to %u texts can be made at once", n,
                         request->n, SL_REQUEST_CHOICES_MAX);
    request->prompts = calloc(n, sizeof(*request->prompts));
    if (!request->prompts)
        return sl_refuse(refusal, 500, NULL, "out of memory");
    request->n_prompts = (uint32_t)n;
    for (size_t i = 0; rc == 0 && i < n; i++)
        rc = read_prompt(many ? json_array_get(value, i) : value, &request->prompts[i], refusal);
    return rc;
}

static int read_logprobs(struct sl_request *request, struct sl_refusal *refusal)
{
    if (!sl_field(request->body, "logprobs"))
        return 0;
    request->with_logprobs = true;
    return sl_field_u32(request->body, "logprobs", 0, SL_TOP_LOGPROBS_MAX, &request->n_top_logprobs,
                        refusal);
}

static int completions_read(struct sl_request *request, struct sl_refusal *refusal)
{
    uint32_t best_of = 0;

    request->n_new_max = N_NEW_DEFAULT;
    if (sl_openai_read(request, refusal) < 0 || read_prompts(request, refusal) < 0 ||
        read_logprobs(request, refusal) < 0 ||
        sl_field_u32(request->body, "max_tokens", 1, 1u << 24, &request->n_new_max, refusal) < 0 ||
        sl_field_bool(request->body, "echo", &request->echo, refusal) < 0 ||
        sl_field_string(request->body, "suffix", &request->suffix, refusal) < 0 ||
        sl_field_u32(request->body, "best_of", 1, SL_REQUEST_CHOICES_MAX, &best_of, refusal) < 0)
        return -1;
    if (best_of > request->n)
        return sl_refuse(refusal, 400, "best_of", "\"best_of\" above \"n\" is not supported");
    if (request->echo && request->with_logprobs)
        return sl_refuse(refusal, 400, "echo", "\"echo\" with \"logprobs\" is not supported");
    if (request->suffix && (request->n_prompts > 1 || !request->prompts[0].text))
        return sl_refuse(refusal, 400, "suffix", "\"suffix\" goes with one prompt that is a text");
    return sl_field_refuse_unsupported(request, refusal);
}

/* ---- replies -----------------------------------------------------------------------------------
 */

struct choice {
    struct sl_bytes text;
    json_t *logprobs; /* NULL: none since the last chunk */
    size_t text_offset;
    const char *finish;
};

struct reply {
    struct sl_openai_reply frame;
    uint32_t n_choices;
    struct choice *choices;
};

static void completions_destroy(void *context)
{
    struct reply *reply = context;

    if (!reply)
        return;
    for (uint32_t i = 0; reply->choices && i < reply->n_choices; i++) {
        sl_bytes_fini(&reply->choices[i].text);
        json_decref(reply->choices[i].logprobs);
    }
    free(reply->choices);
    free(reply);
}

static void *completions_create(const struct sl_request *request,
                                const struct sl_reply_identity *identity)
{
    struct reply *reply = calloc(1, sizeof(*reply));

    if (!reply)
        return NULL;
    *reply = (struct reply){
        .frame = {request, identity, "cmpl-", "text_completion", "text_completion"},
        .n_choices = request->n_prompts * request->n,
    };
    reply->choices = calloc(reply->n_choices, sizeof(*reply->choices));
    if (!reply->choices) {
        free(reply);
        return NULL;
    }
    return reply;
}

/* Adds a token to the four lists that this protocol has instead of objects. */
static void keep_logprobs(struct reply *reply, const struct sl_reply_event *event)
{
    const struct sl_generated *token = event->token;
    struct choice *choice = &reply->choices[event->choice_index];
    const struct sl_tokenizer *tok = reply->frame.identity->tok;
    json_t *top = json_object(), *text = sl_openai_token_text(tok, token->id);

    if (!choice->logprobs)
        choice->logprobs = json_pack("{s:[], s:[], s:[], s:[]}", "tokens", "token_logprobs",
                                     "top_logprobs", "text_offset");
    for (uint32_t i = 0; i < token->n_top; i++) {
        json_t *word = sl_openai_token_text(tok, token->top_ids[i]);

        json_object_set_new(top, json_string_value(word), json_real(token->top_logprobs[i]));
        json_decref(word);
    }
    json_array_append_new(json_object_get(choice->logprobs, "text_offset"),
                          json_integer((json_int_t)choice->text_offset));
    choice->text_offset += json_string_length(text);
    json_array_append_new(json_object_get(choice->logprobs, "tokens"), text);
    json_array_append_new(json_object_get(choice->logprobs, "token_logprobs"),
                          json_real(token->logprob));
    json_array_append_new(json_object_get(choice->logprobs, "top_logprobs"), top);
}

static json_t *choice_object(struct reply *reply, uint32_t index, const char *text, size_t length,
                             const char *finish)
{
    struct choice *choice = &reply->choices[index];
    json_t *logprobs = choice->logprobs ? choice->logprobs : json_null();

    choice->logprobs = NULL;
    return json_pack("{s:I, s:s%, s:o, s:o}", "index", (json_int_t)index, "text", text, length,
                     "logprobs", logprobs, "finish_reason",
                     finish ? json_string(finish) : json_null());
}

/* The prompt that a choice belongs to, where it is to be part of the answer. */
static struct sl_text_prompt echo_of(const struct reply *reply, uint32_t index)
{
    if (!reply->frame.request->echo ||
        !reply->frame.request->prompts[index / reply->frame.request->n].text)
        return (struct sl_text_prompt){.text = ""};
    return reply->frame.request->prompts[index / reply->frame.request->n];
}

/* ---- streams -----------------------------------------------------------------------------------
 */

static void write_text(struct reply *reply, uint32_t index, const char *text, size_t length,
                       const char *finish, struct sl_bytes *out)
{
    sl_openai_write_chunk(&reply->frame,
                          json_pack("[o]", choice_object(reply, index, text, length, finish)), NULL,
                          out);
}

static void write_event(struct reply *reply, const struct sl_reply_event *event,
                        struct sl_bytes *out)
{
    switch (event->kind) {
    case SL_REPLY_BEGIN:
        for (uint32_t i = 0; reply->frame.request->echo && i < reply->n_choices; i++) {
            const struct sl_text_prompt prompt = echo_of(reply, i);

            write_text(reply, i, prompt.text, prompt.length, NULL, out);
        }
        break;
    case SL_REPLY_HEARTBEAT:
        sl_openai_write_progress(&reply->frame, event->progress, out);
        break;
    case SL_REPLY_TOKEN:
        keep_logprobs(reply, event);
        break;
    case SL_REPLY_CONTENT:
        write_text(reply, event->choice_index, event->text, event->length, NULL, out);
        break;
    case SL_REPLY_FINISH:
        write_text(reply, event->choice_index, "", 0, sl_openai_finish(event), out);
        break;
    case SL_REPLY_END:
        sl_openai_write_end(&reply->frame, event->usage, out);
        break;
    case SL_REPLY_ERROR:
        sl_openai_write_error(event->refusal, out);
        break;
    case SL_REPLY_REASONING: /* plain text has no parts */
    case SL_REPLY_CALL:
        break;
    }
}

/* ---- replies that are given whole --------------------------------------------------------------
 */

static void write_whole(struct reply *reply, const struct sl_usage *usage, struct sl_bytes *out)
{
    json_t *choices = json_array();

    for (uint32_t i = 0; i < reply->n_choices; i++) {
        const struct choice *choice = &reply->choices[i];

        out->out_of_memory |= choice->text.out_of_memory;
        json_array_append_new(choices,
                              choice_object(reply, i, choice->text.length ? choice->text.data : "",
                                            choice->text.length, choice->finish));
    }
    sl_openai_write_whole(&reply->frame, choices, usage, out);
}

static void collect(struct reply *reply, const struct sl_reply_event *event, struct sl_bytes *out)
{
    struct choice *choice = &reply->choices[event->choice_index];

    switch (event->kind) {
    case SL_REPLY_BEGIN:
        for (uint32_t i = 0; i < reply->n_choices; i++)
            sl_bytes_add(&reply->choices[i].text, echo_of(reply, i).text, echo_of(reply, i).length);
        break;
    case SL_REPLY_TOKEN:
        keep_logprobs(reply, event);
        break;
    case SL_REPLY_CONTENT:
        sl_bytes_add(&choice->text, event->text, event->length);
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
    case SL_REPLY_HEARTBEAT:
    case SL_REPLY_REASONING:
    case SL_REPLY_CALL:
        break;
    }
}

static void completions_write(void *context, const struct sl_reply_event *event,
                              struct sl_bytes *out)
{
    struct reply *reply = context;

    sl_assert(event->choice_index < reply->n_choices);
    if (reply->frame.request->stream)
        write_event(reply, event, out);
    else
        collect(reply, event, out);
}

const struct sl_protocol sl_protocol_completions = {
    .name = "completions",
    .read = completions_read,
    .create = completions_create,
    .destroy = completions_destroy,
    .write = completions_write,
    .refuse = sl_openai_refuse,
};
