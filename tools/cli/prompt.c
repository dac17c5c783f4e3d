#include "tools/cli/prompt.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/file.h"

enum {
    SAID_BOS = 1u << 0,
    SAID_CONTROL = 1u << 1,
    SAID_NEWLINE = 1u << 2,
};

__attribute__((format(printf, 3, 4))) static void say(struct sl_prompt_maker *maker, unsigned what,
                                                      const char *format, ...)
{
    va_list args;

    if (maker->said & what)
        return;
    maker->said |= what;
    fputs("note: ", stderr);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
}

int sl_prompt_maker_open(struct sl_prompt_maker *maker, const char *model,
                         const struct sl_config *config, unsigned flags, struct sl_err *err)
{
    const char *note;
    int rc;

    sl_assert(config || flags & SL_PROMPT_NO_BOS);
    *maker = (struct sl_prompt_maker){.config = config, .flags = flags};
    rc = sl_tokenizer_open(&maker->tok, model, err);
    if (rc < 0)
        return rc;
    for (size_t i = 0; (note = sl_tokenizer_note(maker->tok, i)); i++)
        fprintf(stderr, "note: %s\n", note);
    return sl_encoder_create(&maker->encoder, maker->tok, err);
}

void sl_prompt_maker_close(struct sl_prompt_maker *maker)
{
    sl_encoder_destroy(maker->encoder);
    sl_tokenizer_close(maker->tok);
    *maker = (struct sl_prompt_maker){0};
}

/* Text from outside must not be able to forge a conversation's structure, so control tokens are
 * recognised only with --special. A user who writes some without it may have forgotten it, so a
 * line says so. */
static void say_control(struct sl_prompt_maker *maker, const char *text, size_t length)
{
    const uint8_t *bytes;
    size_t n;
    uint32_t id;

    if (maker->flags & SL_PROMPT_SPECIAL || maker->said & SAID_CONTROL ||
        sl_tokenizer_find_in(maker->tok, text, length, &id) < 0)
        return;
    bytes = sl_tokenizer_bytes(maker->tok, id, &n);
    say(maker, SAID_CONTROL,
        "%.*s in the text is taken as letters; --special takes it as the control token", (int)n,
        (const char *)bytes);
}

/* Puts the begin-of-sentence token at ids[0], unless it is not wanted or the text begins with
 * it. */
static int put_bos(struct sl_prompt_maker *maker, struct sl_token_list *ids, struct sl_err *err)
{
    uint32_t bos;

    if (maker->flags & SL_PROMPT_NO_BOS)
        return 0;
    bos = maker->config->bos_token_id;
    if (ids->n > 0 && ids->ids[0] == bos) {
        say(maker, SAID_BOS,
            "the text begins with the begin-of-sentence token, so no second one is put before it");
        return 0;
    }
    if (sl_token_list_push(ids, bos) < 0)
        return sl_err_set(err, -ENOMEM, "prompt: out of memory");
    memmove(ids->ids + 1, ids->ids, (ids->n - 1) * sizeof(*ids->ids));
    ids->ids[0] = bos;
    return 0;
}

static int check_ids(const struct sl_prompt_maker *maker, const struct sl_token_list *ids,
                     struct sl_err *err)
{
    for (size_t i = 0; maker->config && i < ids->n; i++)
        if (ids->ids[i] >= maker->config->vocab_size)
            return sl_err_set(err, -SL_EFORMAT,
                              "tokenizer.json gives id %u, but config.json's vocab_size is %u",
                              ids->ids[i], maker->config->vocab_size);
    return 0;
}

int sl_prompt_make(struct sl_prompt_maker *maker, const char *text, size_t length,
                   struct sl_prompt *ret_prompt, struct sl_err *err)
{
    struct sl_token_list ids = {0};
    int rc;

    say_control(maker, text, length);
    rc = sl_encode(maker->encoder, text, length,
                   maker->flags & SL_PROMPT_SPECIAL ? SL_ENCODE_ADDED : 0, &ids, err);
    if (rc == 0)
        rc = put_bos(maker, &ids, err);
    if (rc == 0)
        rc = check_ids(maker, &ids, err);
    if (rc < 0) {
        sl_token_list_fini(&ids);
        return rc;
    }
    /* The casts are safe: ids are below SL_TOKENIZER_IDS_MAX, and a text has at most one token more
     * than bytes. */
    *ret_prompt = (struct sl_prompt){(int32_t *)ids.ids, (uint32_t)ids.n};
    return 0;
}

int sl_prompt_read(struct sl_prompt_maker *maker, const char *text, const char *path,
                   struct sl_prompt *ret_prompt, struct sl_err *err)
{
    char *contents = NULL;
    size_t length;
    int rc = 0;

    if (!text) {
        rc = sl_input_read_all(path, SL_ENCODE_BYTES_MAX, &contents, &length, err);
        if (rc < 0)
            return rc;
        text = contents;
        if (length > 0 && text[length - 1] == '\n')
            say(maker, SAID_NEWLINE, "%s ends in a newline, which is part of the text",
                strcmp(path, "-") == 0 ? "standard input" : path);
    } else {
        length = strlen(text);
    }
    rc = sl_prompt_make(maker, text, length, ret_prompt, err);
    free(contents);
    if (rc == 0 && maker->config && ret_prompt->n_tokens == 0) {
        sl_prompt_fini(ret_prompt);
        return sl_err_set(err, -SL_EFORMAT, "the text is empty: there is no token to begin with");
    }
    return rc;
}

void sl_prompt_fini(struct sl_prompt *prompt)
{
    free(prompt->tokens);
    *prompt = (struct sl_prompt){0};
}
