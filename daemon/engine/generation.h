/* Generation: one text that is being made, from its prompt to the rule that ends it.
 *
 * A state machine between a model's steps and whoever reads the text. It neither takes steps nor
 * waits: daemon/engine/shared_step.h drives any number of them together.
 *
 *     begin() ──► next_span() ──► the step runs, and take_logits() ──► step_ended() ──► output()
 *                     ▲           samples where the span wants it          │
 *                     └──────────── until something has ended it ◄─────────┘
 *
 * The sequence's length tells how far the text is. A step that failed leaves the length as it was,
 * so the next span is the same again. The text depends on model, prompt, seed and rules alone, not
 * on who shared its steps, on how its prompt was cut, or on steps that failed.
 *
 * Belongs to one thread at a time; only take_logits() may be called from another one, while the
 * step runs. Nothing allocates after create. */
#ifndef SL_DAEMON_ENGINE_GENERATION_H
#define SL_DAEMON_ENGINE_GENERATION_H

#include <stdbool.h>
#include <stdint.h>

#include "core/model/forward.h"
#include "core/text/completion.h"
#include "core/text/sampler.h"

#define SL_TOP_LOGPROBS_MAX 20u

struct sl_generation;

struct sl_generation_options {
    struct sl_sampler sampler; /* its seed is for texts that begin without one of their own */
    struct sl_completion_rules rules;
    bool with_logprobs;      /* give each token's log probability */
    uint32_t n_top_logprobs; /* and so many alternatives, up to SL_TOP_LOGPROBS_MAX */
};

/* A token that was made, and the likeliest tokens at its place, best first. The probabilities are
 * set if the options ask for them. */
struct sl_generated {
    uint32_t id;
    double logprob; /* at temperature 1, nothing left out */
    uint32_t n_top;
    uint32_t top_ids[SL_TOP_LOGPROBS_MAX];
    double top_logprobs[SL_TOP_LOGPROBS_MAX];
};

/* All mistakes in the options are found here. `tok` and the strings of the rules must outlive it.
 * Fails with -EINVAL or -ENOMEM. The caller destroys *ret_generation. */
int sl_generation_create(struct sl_generation **ret_generation,
                         const struct sl_generation_options *options,
                         const struct sl_tokenizer *tok, uint32_t n_vocab, struct sl_err *err);
void sl_generation_destroy(struct sl_generation *generation); /* NULL is allowed */

/* Begins a text: `tokens` are appended to the sequence. n_tokens is at least 1, and there must be
 * room for one token more, both in the rules' context_tokens and in the KV cache. Sequence and
 * tokens are borrowed until another text begins. */
void sl_generation_begin(struct sl_generation *generation, struct sl_kv_cache *kv,
                         const int32_t *tokens, uint32_t n_tokens, uint64_t seed);

/* Begins a text again of which tokens were made before: the last n_made of `tokens`, of which the
 * sequence has not seen one yet, though it may have seen some of the prompt. Before the first step
 * replay() is called with each of them in turn, as it was made: then the text is where it was, and
 * output() tells each time what it told then. */
void sl_generation_begin_again(struct sl_generation *generation, struct sl_kv_cache *kv,
                               const int32_t *tokens, uint32_t n_tokens, uint32_t n_made,
                               uint64_t seed);
void sl_generation_replay(struct sl_generation *generation, const struct sl_generated *made);

/* Lets a step of the prompt end where the sequence has n_tokens, so that it can be kept as it is
 * there; 0: nowhere in particular. Forgotten when another text begins. */
void sl_generation_end_step_at(struct sl_generation *generation, uint32_t n_tokens);

/* Returns how many tokens the next step can take: those left of the prompt, or 1 for the token that
 * was made last; 0 when the text has ended. */
uint32_t sl_generation_tokens_left(const struct sl_generation *generation);

/* Returns the next span, of n_tokens, which is between 1 and sl_generation_tokens_left(); valid
 * until the step has ended. It asks for logits if a token is to be made. */
struct sl_span sl_generation_next_span(struct sl_generation *generation, uint32_t n_tokens);

/* Chooses the next token from the logits that the span asked for. `scratch` is one thread's
 * (core/text/sampler.h). Fails with -SL_ECORRUPT where the logits allow no choice; the sequence
 * must then not keep the span's tokens. */
int sl_generation_take_logits(struct sl_generation *generation, const float *logits,
                              struct sl_candidate *scratch, struct sl_err *err);

/* Tells the generation that the step is over. If `rc` is negative, the step has failed, for all or
 * for this sequence alone, and the sequence is as it was before. */
void sl_generation_step_ended(struct sl_generation *generation, int rc);

/* Ends the text between steps, before a rule does. */
void sl_generation_cancel(struct sl_generation *generation);

/* The new token and text of the latest step, or of cancel(); valid until the next call. */
struct sl_generation_output {
    const struct sl_generated *token; /* NULL: none; an end-of-sentence token is none */
    const char *text;                 /* (length) what can be shown by now, often none */
    size_t length;
};
struct sl_generation_output sl_generation_output(const struct sl_generation *generation);

/* The first returns why the text has ended, or SL_FINISH_NONE; the second the stop string that
 * ended it, or NULL. */
enum sl_finish sl_generation_finish(const struct sl_generation *generation);
const char *sl_generation_stop_string(const struct sl_generation *generation);

/* The first counts the tokens made, without an end-of-sentence token; the second those of the
 * prompt that the model has seen. */
uint32_t sl_generation_token_count(const struct sl_generation *generation);
uint32_t sl_generation_prompt_count(const struct sl_generation *generation);

#endif
