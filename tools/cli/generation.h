/* Generation: one text after the other with one engine: prompt, tokens, text, figures.
 *
 * Knows nothing of command lines and prints nothing but the prompt's progress. Ctrl-C ends a text
 * early (tools/cli/interrupt.h), which is no error. Belongs to the thread that owns the engine. */
#ifndef SL_TOOLS_CLI_GENERATION_H
#define SL_TOOLS_CLI_GENERATION_H

#include <stdint.h>

#include "core/text/completion.h"
#include "core/text/sampler.h"
#include "daemon/engine/engine.h"
#include "tools/cli/progress.h"
#include "tools/cli/prompt.h"

#define SL_TOP_LOGPROBS_MAX 20u

/* A token that was made, and what else the model might have said, best first. */
struct sl_generated {
    uint32_t id;
    double logprob; /* at temperature 1, nothing left out */
    uint32_t top_ids[SL_TOP_LOGPROBS_MAX];
    double top_logprobs[SL_TOP_LOGPROBS_MAX];
};

struct sl_generation_options {
    struct sl_sampler sampler;
    struct sl_completion_rules rules;
    bool with_logprobs; /* on_token is told, with so many alternatives */
    uint32_t n_top_logprobs;

    /* The text as it is made, and each token before its text. Return 0, or an error that ends the
     * generation. */
    int (*on_text)(void *context, const char *text, size_t length, struct sl_err *err);
    int (*on_token)(void *context, const struct sl_generated *token, struct sl_err *err);
    void *context;
};

/* Sums over all texts so far. */
struct sl_generation_totals {
    uint32_t n_texts;
    uint64_t n_prompt_tokens; /* that went into the model */
    uint64_t n_new_tokens;
    uint64_t n_decoded; /* new tokens but the first of each text, which its prompt's pass gives */
    uint64_t prefill_ns, decode_ns;
    uint64_t n_decode_requests, decode_read_bytes; /* experts, while tokens were made */
};

struct sl_generation {
    struct sl_generation_options options;
    struct sl_engine *engine;
    struct sl_completion *completion;
    struct sl_arena arena; /* the sampler's scratch */
    struct sl_candidate *scratch;
    struct sl_generation_totals totals;
    struct sl_text_progress progress;

    /* The text at hand. */
    uint64_t position; /* of the token that is sampled next */
    struct sl_generated next;
    int sample_rc;
    struct sl_err sample_err;
};

/* All that can be wrong with the options shows here. Fails with -EINVAL or -ENOMEM. The caller
 * calls fini(), also after a failure, on what was zero before. */
int sl_generation_init(struct sl_generation *generation,
                       const struct sl_generation_options *options, const struct sl_tokenizer *tok,
                       const struct sl_config *config, struct sl_err *err);
void sl_generation_fini(struct sl_generation *generation);

/* Makes one text, with the engine's first sequence, which it clears before. Why it ended is then in
 * sl_completion_finish(generation->completion). Fails as steps do, as on_text() does, or with
 * -SL_ECORRUPT where the logits allow no choice. */
int sl_generation_run(struct sl_generation *generation, const struct sl_prompt *prompt,
                      struct sl_err *err);

#endif
