/* Text that a command gives to a model: from -p or -f, as token ids behind the model's
 * begin-of-sentence token. */
#ifndef SL_TOOLS_CLI_PROMPT_H
#define SL_TOOLS_CLI_PROMPT_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"
#include "core/model/config.h"
#include "core/text/tokenizer.h"

enum sl_prompt_flag {
    SL_PROMPT_SPECIAL = 1u << 0, /* --special: control tokens in the text become their ids */
    SL_PROMPT_NO_BOS = 1u << 1,  /* --no-bos: nothing is put before the text */
};

/* Makes prompts with one model's tokenizer. What a user may not expect of a text (that it brings
 * its own begin-of-sentence token, that its control tokens are taken as letters, that a file ends
 * in a newline) is said on standard error, each once. */
struct sl_prompt_maker {
    struct sl_tokenizer *tok;
    struct sl_encoder *encoder;
    const struct sl_config *config;
    unsigned flags; /* enum sl_prompt_flag */
    unsigned said;
};

struct sl_prompt {
    int32_t *tokens;
    uint32_t n_tokens;
};

/* Opens the tokenizer of the folder `model` and prints its notes. `config` must outlive the maker;
 * NULL where there is but a tokenizer: then SL_PROMPT_NO_BOS must be set, and no id is too high.
 * The caller closes the maker, also after an error; then it must have been zero before. */
int sl_prompt_maker_open(struct sl_prompt_maker *maker, const char *model,
                         const struct sl_config *config, unsigned flags, struct sl_err *err);
void sl_prompt_maker_close(struct sl_prompt_maker *maker);

/* The prompt of `length` bytes of text. A text that begins with the begin-of-sentence token itself,
 * under SL_PROMPT_SPECIAL, gets no second one. The tokenizer's ids must lie in the model's
 * vocabulary: -SL_EFORMAT otherwise. Freed by the caller. */
int sl_prompt_make(struct sl_prompt_maker *maker, const char *text, size_t length,
                   struct sl_prompt *ret_prompt, struct sl_err *err);

/* The same of `text`, or of the contents of `path` ("-": standard input) when text is NULL.
 * For a model, a prompt without a token is refused. */
int sl_prompt_read(struct sl_prompt_maker *maker, const char *text, const char *path,
                   struct sl_prompt *ret_prompt, struct sl_err *err);

void sl_prompt_fini(struct sl_prompt *prompt);

#endif
