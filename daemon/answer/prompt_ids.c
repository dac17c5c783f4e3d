#include "daemon/answer/prompt_ids.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/text/chat_format.h"
#include "core/text/chat_prompt.h"

#define FIM_BEGIN "<｜fim▁begin｜>"
#define FIM_HOLE "<｜fim▁hole｜>"
#define FIM_END "<｜fim▁end｜>"

static int refuse_error(struct sl_refusal *refusal, int rc, const char *param,
                        const struct sl_err *err)
{
    return sl_refuse(refusal, rc == -ENOMEM ? 500 : 400, param, "%s", err->message);
}

static int no_memory(struct sl_refusal *refusal)
{
    return sl_refuse(refusal, 500, NULL, "out of memory");
}

void sl_forced_call_text(const struct sl_request *request, struct sl_bytes *out)
{
    if (!request->must_call)
        return;
    sl_bytes_add_text(out, "\n\n" SL_CHAT_CALLS "\n" SL_CHAT_INVOKE);
    if (request->must_call_name) {
        sl_bytes_add_text(out, request->must_call_name);
        sl_bytes_add_text(out, "\">\n");
    }
}

/* The format's own part of a forced call holds a control token; the function's name stays text. */
static void add_forced_call(struct sl_chat_prompt *prompt, const struct sl_request *request)
{
    static const char *const tokens[] = {SL_CHAT_DSML, NULL};

    if (!request->must_call)
        return;
    sl_chat_prompt_add_format(prompt, "\n\n" SL_CHAT_CALLS "\n" SL_CHAT_INVOKE, tokens);
    if (request->must_call_name) {
        sl_chat_prompt_add(prompt, request->must_call_name, strlen(request->must_call_name));
        sl_chat_prompt_add(prompt, "\">\n", 3);
    }
}

static void add_fim(struct sl_chat_prompt *prompt, const struct sl_request *request)
{
    sl_chat_prompt_add_control(prompt, FIM_BEGIN);
    sl_chat_prompt_add(prompt, request->prompts[0].text, request->prompts[0].length);
    sl_chat_prompt_add_control(prompt, FIM_HOLE);
    sl_chat_prompt_add(prompt, request->suffix, strlen(request->suffix));
    sl_chat_prompt_add_control(prompt, FIM_END);
}

/* Ids are the client's as they are: no begin-of-sentence token is put before them. */
static int take_ids(struct sl_token_list *list, const json_t *ids, const struct sl_config *config,
                    struct sl_refusal *refusal)
{
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_int_t id = json_integer_value(json_array_get(ids, i));

        if (id < 0 || id >= (json_int_t)config->vocab_size)
            return sl_refuse(refusal, 400, "prompt",
                             "token %zu of a prompt is %lld, but the vocabulary has %u", i,
                             (long long)id, config->vocab_size);
        if (sl_token_list_push(list, (uint32_t)id) < 0)
            return no_memory(refusal);
    }
    return 0;
}

static int make_texts(struct sl_prompt_ids *ids, const struct sl_request *request,
                      const struct sl_config *config, struct sl_encoder *encoder,
                      struct sl_refusal *refusal)
{
    struct sl_err err;
    int rc = 0;

    for (uint32_t i = 0; rc == 0 && i < ids->n; i++) {
        const struct sl_text_prompt *prompt = &request->prompts[i];

        if (!prompt->text) {
            rc = take_ids(&ids->lists[i], prompt->ids, config, refusal);
            continue;
        }
        if (sl_token_list_push(&ids->lists[i], config->bos_token_id) < 0)
            return no_memory(refusal);
        rc = sl_encode(encoder, prompt->text, prompt->length, 0, &ids->lists[i], &err);
        if (rc < 0)
            return refuse_error(refusal, rc, "prompt", &err);
    }
    return rc;
}

/* A conversation, or a text with a gap: a prompt of pieces. */
static int make_pieces(struct sl_prompt_ids *ids, const struct sl_request *request,
                       const struct sl_tokenizer *tok, const struct sl_config *config,
                       struct sl_encoder *encoder, struct sl_refusal *refusal)
{
    struct sl_chat_prompt prompt = {0};
    struct sl_err err;
    int rc;

    if (request->messages) {
        rc = sl_chat_render(&prompt, request->messages, &request->chat, &err);
        add_forced_call(&prompt, request);
    } else if (sl_token_list_push(&ids->lists[0], config->bos_token_id) == 0) {
        add_fim(&prompt, request);
        rc = 0;
    } else {
        rc = sl_err_set(&err, -ENOMEM, "out of memory");
    }
    if (rc == 0)
        rc = sl_chat_prompt_encode(&prompt, tok, encoder, &ids->lists[0], &err);
    sl_chat_prompt_fini(&prompt);
    return rc < 0 ? refuse_error(refusal, rc, request->messages ? "messages" : "suffix", &err) : 0;
}

static int check_ids(const struct sl_prompt_ids *ids, const struct sl_config *config,
                     struct sl_refusal *refusal)
{
    for (uint32_t i = 0; i < ids->n; i++)
        for (size_t k = 0; k < ids->lists[i].n; k++)
            if (ids->lists[i].ids[k] >= config->vocab_size)
                return sl_refuse(refusal, 500, NULL,
                                 "tokenizer.json gives id %u, but config.json's vocab_size is %u",
                                 ids->lists[i].ids[k], config->vocab_size);
    return 0;
}

int sl_prompt_ids_make(struct sl_prompt_ids *ids, const struct sl_request *request,
                       const struct sl_tokenizer *tok, const struct sl_config *config,
                       struct sl_refusal *refusal)
{
    const bool of_pieces = request->messages || request->suffix;
    struct sl_encoder *encoder = NULL;
    int rc;

    *ids = (struct sl_prompt_ids){.n = of_pieces ? 1 : request->n_prompts};
    ids->lists = calloc(ids->n, sizeof(*ids->lists));
    if (!ids->lists || sl_encoder_create(&encoder, tok, NULL) < 0)
        return no_memory(refusal);
    rc = of_pieces ? make_pieces(ids, request, tok, config, encoder, refusal)
                   : make_texts(ids, request, config, encoder, refusal);
    sl_encoder_destroy(encoder);
    return rc < 0 ? rc : check_ids(ids, config, refusal);
}

void sl_prompt_ids_fini(struct sl_prompt_ids *ids)
{
    for (uint32_t i = 0; ids->lists && i < ids->n; i++)
        sl_token_list_fini(&ids->lists[i]);
    free(ids->lists);
    *ids = (struct sl_prompt_ids){0};
}
