/* Prints the generated text on standard output, in one of three forms: the text as it comes, a line
 * for each token with its log probability, or a JSON object for each text. */
#ifndef SL_TOOLS_CMD_GENERATE_OUTPUT_H
#define SL_TOOLS_CMD_GENERATE_OUTPUT_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/json.h"
#include "core/text/detokenizer.h"
#include "daemon/engine/generation.h"

struct sl_generate_output {
    bool json;
    bool with_logprobs;
    const struct sl_tokenizer *tok;
    struct sl_detokenizer *token_text; /* shows one token at a time */
    json_t *logprobs;                  /* of the text at hand, for JSON */
    char *text; /* of the text at hand, for JSON; NULL, or text_stream's memory */
    size_t text_length;
    FILE *text_stream;
};

/* `options` say whether log probabilities are shown. Fails with -ENOMEM. The caller zeroes *output
 * before, and calls fini() in any case. */
int sl_generate_output_init(struct sl_generate_output *output,
                            const struct sl_generation_options *options,
                            const struct sl_tokenizer *tok, bool json, struct sl_err *err);
void sl_generate_output_fini(struct sl_generate_output *output);

/* To be called before and after each text. Fail with -ENOMEM, or -errno where the text cannot be
 * written. */
int sl_generate_output_begin(struct sl_generate_output *output, struct sl_err *err);
int sl_generate_output_end(struct sl_generate_output *output,
                           const struct sl_generation *generation, uint32_t n_prompt_tokens,
                           struct sl_err *err);

/* Prints a step's output. Fails with -ENOMEM, or -errno where it cannot be written. */
int sl_generate_output_show(struct sl_generate_output *output,
                            const struct sl_generation_output *news, struct sl_err *err);

/* Returns the word that JSON output has for it, such as "length". */
const char *sl_finish_name(enum sl_finish finish);

#endif
