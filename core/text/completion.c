#include "core/text/completion.h"

#include <errno.h>
#include <stdlib.h>

#include "core/base/assert.h"
#include "core/text/detokenizer.h"

struct sl_completion {
    struct sl_completion_rules rules;
    struct sl_detokenizer *detok;
    struct sl_stop_matcher matcher;
    uint32_t n_prompt_tokens, n_new;
    enum sl_finish finish;
    const char *stop_string;
    size_t n_out;
    char out[];
};

/* One token's text, and the end of the text, each with what the stop strings held back. */
size_t sl_completion_text_bytes_max(const struct sl_tokenizer *tok)
{
    return sl_detokenizer_text_bytes_max(tok) + 2 * (size_t)SL_STOP_STRING_BYTES_MAX;
}

int sl_completion_create(struct sl_completion **ret_completion, const struct sl_tokenizer *tok,
                         const struct sl_completion_rules *rules, struct sl_err *err)
{
    struct sl_completion *completion =
        calloc(1, sizeof(*completion) + sl_completion_text_bytes_max(tok));
    int rc;

    if (!completion)
        return sl_err_set(err, -ENOMEM, "completion: out of memory");
    completion->rules = *rules;
    rc = sl_detokenizer_create(&completion->detok, tok, false, err);
    if (rc < 0) {
        free(completion);
        return rc;
    }
    *ret_completion = completion;
    return 0;
}

void sl_completion_destroy(struct sl_completion *completion)
{
    if (!completion)
        return;
    sl_detokenizer_destroy(completion->detok);
    free(completion);
}

void sl_completion_begin(struct sl_completion *completion, uint32_t n_prompt_tokens)
{
    size_t length;

    sl_assert(n_prompt_tokens < completion->rules.context_tokens);
    sl_detokenizer_flush(completion->detok, &length); /* of a text that was given up */
    completion->matcher = (struct sl_stop_matcher){.n_held = 0};
    completion->n_prompt_tokens = n_prompt_tokens;
    completion->n_new = 0;
    completion->finish = SL_FINISH_NONE;
    completion->stop_string = NULL;
}

/* Adds text to what can be shown, unless a stop string is complete. */
static void add(struct sl_completion *completion, const char *text, size_t length)
{
    completion->n_out +=
        sl_stop_matcher_push(&completion->matcher, &completion->rules.stops, text, length,
                             completion->out + completion->n_out, &completion->stop_string);
    if (completion->stop_string)
        completion->finish = SL_FINISH_STOP_STRING;
}

/* The end of the text: nothing is held back any more. Its last bytes may complete a stop string. */
static void end(struct sl_completion *completion, enum sl_finish finish)
{
    const char *text;
    size_t length;

    completion->finish = finish;
    text = sl_detokenizer_flush(completion->detok, &length);
    add(completion, text, length);
    completion->n_out +=
        sl_stop_matcher_flush(&completion->matcher, completion->out + completion->n_out);
}

enum sl_finish sl_completion_push(struct sl_completion *completion, uint32_t id,
                                  const char **ret_text, size_t *ret_length)
{
    const struct sl_completion_rules *rules = &completion->rules;
    const char *text;
    size_t length;

    sl_assert(completion->finish == SL_FINISH_NONE);
    completion->n_out = 0;
    if (id == rules->eos_token_id) {
        end(completion, SL_FINISH_END_OF_TEXT);
    } else {
        text = sl_detokenizer_push(completion->detok, id, &length);
        add(completion, text, length);
        completion->n_new++;
        if (completion->finish == SL_FINISH_NONE && completion->n_new == rules->n_new_max)
            end(completion, SL_FINISH_TOKENS_MAX);
        else if (completion->finish == SL_FINISH_NONE &&
                 completion->n_prompt_tokens + completion->n_new == rules->context_tokens)
            end(completion, SL_FINISH_CONTEXT);
    }
    *ret_text = completion->out;
    *ret_length = completion->n_out;
    return completion->finish;
}

const char *sl_completion_interrupt(struct sl_completion *completion, size_t *ret_length)
{
    completion->n_out = 0;
    if (completion->finish == SL_FINISH_NONE)
        end(completion, SL_FINISH_INTERRUPTED);
    *ret_length = completion->n_out;
    return completion->out;
}

uint32_t sl_completion_token_count(const struct sl_completion *completion)
{
    return completion->n_new;
}

enum sl_finish sl_completion_finish(const struct sl_completion *completion)
{
    return completion->finish;
}

const char *sl_completion_stop_string(const struct sl_completion *completion)
{
    return completion->stop_string;
}
