/* Prompts: text from -p or -f, as token ids behind the model's begin-of-sentence token. */
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

/* Makes prompts with one model's tokenizer. It tells the user on standard error, once each, about
 * what may be unexpected: a text with a begin-of-sentence token of its own, control tokens that are
 * taken as letters, a file that ends in a newline. */
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
 * it is NULL where there is only a tokenizer: then SL_PROMPT_NO_BOS must be set, and ids are not
 * limited. The caller closes the maker, also after an error, and must have zeroed it before. */
int sl_prompt_maker_open(struct sl_prompt_maker *maker, const char *model,
                         const struct sl_config *config, unsigned flags, struct sl_err *err);
void sl_prompt_maker_close(struct sl_prompt_maker *maker);

/* Makes the prompt of `length` bytes of text, which the caller frees. A text that begins with the
 * begin-of-sentence token, under SL_PROMPT_SPECIAL, gets no second one. Fails with -SL_EFORMAT if
 * an id is outside the model's vocabulary. */
int sl_prompt_make(struct sl_prompt_maker *maker, const char *text, size_t length,
                   struct sl_prompt *ret_prompt, struct sl_err *err);

/* Makes the prompt of `text`, or of the contents of `path` ("-": standard input) when text is NULL.
 * If the maker has a config, a prompt without a token is refused. */
int sl_prompt_read(struct sl_prompt_maker *maker, const char *text, const char *path,
                   struct sl_prompt *ret_prompt, struct sl_err *err);

void sl_prompt_fini(struct sl_prompt *prompt);

#endif
