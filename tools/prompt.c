#include "tools/prompt.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"

int sl_prompt_encode(struct sl_prompt *ret_prompt, const struct sl_tokenizer *tok,
                     const struct sl_config *config, const char *text, size_t length,
                     unsigned encode_flags, struct sl_err *err)
{
    struct sl_prompt prompt = {0};
    struct sl_token_list ids = {0};
    struct sl_encoder *encoder = NULL;
    int rc;

    rc = sl_encoder_create(&encoder, tok, err);
    if (rc == 0)
        rc = sl_encode(encoder, text, length, encode_flags, &ids, err);
    sl_encoder_destroy(encoder);
    if (rc == 0) {
        prompt.tokens = malloc((ids.n + 1) * sizeof(*prompt.tokens));
        if (!prompt.tokens)
            rc = sl_err_set(err, -ENOMEM, "prompt: out of memory");
    }
    if (rc == 0) {
        prompt.tokens[0] = (int32_t)config->bos_token_id;
        prompt.n_tokens = (uint32_t)ids.n + 1;
    }
    for (size_t i = 0; rc == 0 && i < ids.n; i++) {
        if (ids.ids[i] >= config->vocab_size)
            rc = sl_err_set(err, -SL_EFORMAT,
                            "tokenizer.json gives id %u, but config.json's vocab_size is %u",
                            ids.ids[i], config->vocab_size);
        prompt.tokens[i + 1] = (int32_t)ids.ids[i];
    }
    sl_token_list_fini(&ids);
    if (rc < 0)
        sl_prompt_fini(&prompt);
    else
        *ret_prompt = prompt;
    return rc;
}

int sl_prompt_read(struct sl_prompt *ret_prompt, const struct sl_tokenizer *tok,
                   const struct sl_config *config, const char *text, const char *path,
                   unsigned encode_flags, struct sl_err *err)
{
    char *contents = NULL;
    size_t length;
    int rc = 0;

    if (!text) {
        rc = sl_input_read_all(path, SL_ENCODE_BYTES_MAX, &contents, &length, err);
        if (rc < 0)
            return rc;
        text = contents;
    } else {
        length = strlen(text);
    }
    rc = sl_prompt_encode(ret_prompt, tok, config, text, length, encode_flags, err);
    free(contents);
    return rc;
}

void sl_prompt_fini(struct sl_prompt *prompt)
{
    free(prompt->tokens);
    *prompt = (struct sl_prompt){0};
}
