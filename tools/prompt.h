/* Text that a command gives to a model: from -p or -f, as token ids behind the model's
 * begin-of-sentence token. */
#ifndef SL_TOOLS_PROMPT_H
#define SL_TOOLS_PROMPT_H

#include <stdint.h>

#include "core/base/err.h"
#include "core/model/config.h"
#include "core/text/tokenizer.h"

struct sl_prompt {
    int32_t *tokens;
    uint32_t n_tokens;
};

/* Takes `text`, or the contents of `path` ("-": standard input) when text is NULL; encode_flags are
 * those of sl_encode(). The tokenizer's ids must lie in the model's vocabulary: -SL_EFORMAT
 * otherwise. Freed by the caller. */
int sl_prompt_read(struct sl_prompt *ret_prompt, const struct sl_tokenizer *tok,
                   const struct sl_config *config, const char *text, const char *path,
                   unsigned encode_flags, struct sl_err *err);

/* The same for `length` bytes of text. */
int sl_prompt_encode(struct sl_prompt *ret_prompt, const struct sl_tokenizer *tok,
                     const struct sl_config *config, const char *text, size_t length,
                     unsigned encode_flags, struct sl_err *err);

void sl_prompt_fini(struct sl_prompt *prompt);

#endif
