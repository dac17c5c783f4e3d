/* Completion: from the tokens that a model chose to the text that can be shown, and where it ends.
 *
 * A token that is pushed becomes text (core/text/detokenizer.h), less what may yet be part of a
 * stop string (core/text/stop_strings.h). The rules are looked at in this order: end-of-sentence
 * token, stop strings, number of tokens, context. Knows nothing of how tokens are made.
 *
 * Belongs to one thread at a time. Nothing allocates after create. */
#ifndef SL_TEXT_COMPLETION_H
#define SL_TEXT_COMPLETION_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/err.h"
#include "core/text/stop_strings.h"
#include "core/text/tokenizer.h"

enum sl_finish {
    SL_FINISH_NONE,        /* it goes on */
    SL_FINISH_END_OF_TEXT, /* the model said so */
    SL_FINISH_STOP_STRING, /* one of them has come */
    SL_FINISH_TOKENS_MAX,  /* as many as were asked for */
    SL_FINISH_CONTEXT,     /* the context is full */
    SL_FINISH_INTERRUPTED, /* from outside: sl_completion_interrupt() */
};

struct sl_completion_rules {
    uint32_t eos_token_id;
    struct sl_stop_strings stops;
    uint32_t n_new_max;      /* 0: no limit */
    uint32_t context_tokens; /* that the prompt and the new tokens may have together */
};

struct sl_completion;

/* `tok` must outlive it, and so must the strings of `rules`. Fails with -ENOMEM. The caller
 * destroys it. */
int sl_completion_create(struct sl_completion **ret_completion, const struct sl_tokenizer *tok,
                         const struct sl_completion_rules *rules, struct sl_err *err);
void sl_completion_destroy(struct sl_completion *completion); /* NULL is allowed */

/* The most bytes of text that a token brings. */
size_t sl_completion_text_bytes_max(const struct sl_tokenizer *tok);

/* Begins a text behind a prompt of so many tokens, fewer than the context has. */
void sl_completion_begin(struct sl_completion *completion, uint32_t n_prompt_tokens);

/* Takes the next token. Returns whether it was the last one, and why. *ret_text is the text that
 * can be shown now, *ret_length bytes, often none; it is valid until the next call. An
 * end-of-sentence token is no text. Not to be called after the last one. */
enum sl_finish sl_completion_push(struct sl_completion *completion, uint32_t id,
                                  const char **ret_text, size_t *ret_length);

/* Ends the text before a rule does: the text that was held back. */
const char *sl_completion_interrupt(struct sl_completion *completion, size_t *ret_length);

/* Tokens taken so far, without an end-of-sentence token. */
uint32_t sl_completion_token_count(const struct sl_completion *completion);

/* Why it has ended. */
enum sl_finish sl_completion_finish(const struct sl_completion *completion);

/* The stop string that ended it; NULL if none did. */
const char *sl_completion_stop_string(const struct sl_completion *completion);

#endif
