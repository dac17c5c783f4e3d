#include "core/text/chat_prompt.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void sl_chat_prompt_fini(struct sl_chat_prompt *prompt)
{
    free(prompt->bytes);
    free(prompt->pieces);
    *prompt = (struct sl_chat_prompt){0};
}

/* Makes room for `more` elements behind the `n` that `*array` has; false when out of memory. */
static bool reserve(void **array, size_t n, size_t *capacity, size_t more, size_t element_bytes)
{
    size_t wanted = *capacity * 2 + 64;
    void *grown;

    if (more <= *capacity - n)
        return true;
    wanted = wanted - n < more ? n + more : wanted;
    grown = reallocarray(*array, wanted, element_bytes);
    if (!grown)
        return false;
    *array = grown;
    *capacity = wanted;
    return true;
}

static void add(struct sl_chat_prompt *prompt, const char *bytes, size_t length, bool control)
{
    void *text = prompt->bytes, *pieces = prompt->pieces;
    const bool joins =
        !control && prompt->n_pieces > 0 && !prompt->pieces[prompt->n_pieces - 1].control;

    if (length == 0 || prompt->out_of_memory)
        return;
    prompt->out_of_memory =
        !reserve(&text, prompt->length, &prompt->capacity, length, 1) ||
        !reserve(&pieces, prompt->n_pieces, &prompt->pieces_capacity, 1, sizeof(*prompt->pieces));
    prompt->bytes = text;
    prompt->pieces = pieces;
    if (prompt->out_of_memory)
        return;
    memcpy(prompt->bytes + prompt->length, bytes, length);
    prompt->length += length;
    prompt->n_pieces += !joins;
    prompt->pieces[prompt->n_pieces - 1] = (struct sl_chat_piece){prompt->length, control};
}

void sl_chat_prompt_add(struct sl_chat_prompt *prompt, const char *text, size_t length)
{
    add(prompt, text, length, false);
}

void sl_chat_prompt_add_control(struct sl_chat_prompt *prompt, const char *token)
{
    add(prompt, token, strlen(token), true);
}

void sl_chat_prompt_add_format(struct sl_chat_prompt *prompt, const char *text,
                               const char *const *tokens)
{
    while (*text) {
        const char *first = NULL;
        size_t which = 0;

        for (size_t i = 0; tokens[i]; i++) {
            const char *at = strstr(text, tokens[i]);

            if (at && (!first || at < first)) {
                first = at;
                which = i;
            }
        }
        if (!first) {
            add(prompt, text, strlen(text), false);
            return;
        }
        add(prompt, text, (size_t)(first - text), false);
        add(prompt, tokens[which], strlen(tokens[which]), true);
        text = first + strlen(tokens[which]);
    }
}

static int encode_control(const char *bytes, size_t length, const struct sl_tokenizer *tok,
                          struct sl_token_list *out, struct sl_err *err)
{
    char token[SL_ADDED_TOKEN_BYTES_MAX + 1];
    uint32_t id;

    if (length >= sizeof(token))
        return sl_err_set(err, -SL_EUNSUPPORTED, "a control token of %zu bytes", length);
    memcpy(token, bytes, length);
    token[length] = 0;
    if (sl_tokenizer_find(tok, token, &id) < 0)
        return sl_err_set(err, -SL_EUNSUPPORTED,
                          "the tokenizer has no control token \"%s\", which the chat format needs",
                          token);
    if (sl_token_list_push(out, id) < 0)
        return sl_err_set(err, -ENOMEM, "prompt: out of memory");
    return 0;
}

int sl_chat_prompt_encode(const struct sl_chat_prompt *prompt, const struct sl_tokenizer *tok,
                          struct sl_encoder *encoder, struct sl_token_list *out, struct sl_err *err)
{
    size_t at = 0;
    int rc = 0;

    for (size_t i = 0; i < prompt->n_pieces && rc == 0; i++) {
        const struct sl_chat_piece *piece = &prompt->pieces[i];
        const char *bytes = prompt->bytes + at;

        rc = piece->control ? encode_control(bytes, piece->end - at, tok, out, err)
                            : sl_encode(encoder, bytes, piece->end - at, 0, out, err);
        at = piece->end;
    }
    return rc;
}
