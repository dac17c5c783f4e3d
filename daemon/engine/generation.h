/* Generation: one text that is being made, from its prompt to the rule that ends it.
 *
 * A state machine between a model's steps and whoever reads the text. It neither takes steps nor
 * waits: daemon/engine/shared_step.h drives any number of them together.
 *
 *     begin() ──► next_span() ──► the step runs, and take_logits() ──► settle() ──► step_ended()
 *                     ▲           samples where the span wants it                        │
 *                     └──────────── until something has ended it ◄────── outputs ◄───────┘
 *
 * Behind the prompt a span can carry guesses of the tokens to come, drafts. Each row of its logits
 * is sampled as if it were the only one, and a guess counts if it is what was sampled before it: so
 * a step makes several tokens, and they are those that steps of one token would have made.
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
 * the output is each time what it was then. */
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

/* Returns the next span, of n_tokens, which is between 1 and sl_generation_tokens_left(), and the
 * first n_drafts of the guesses that there are; valid until the step has ended. It asks for logits
 * if a token is to be made. */
struct sl_span sl_generation_next_span(struct sl_generation *generation, uint32_t n_tokens,
                                       uint32_t n_drafts);

/* Samples a token from the logits after token `token_index` of the span, which asked for them.
 * `scratch` is one thread's (core/text/sampler.h); several may sample rows of one span at once.
 * Fails with -SL_ECORRUPT where the logits allow no choice. */
int sl_generation_take_logits(struct sl_generation *generation, uint32_t token_index,
                              const float *logits, struct sl_candidate *scratch,
                              struct sl_err *err);

/* All rows have been sampled: makes the step's tokens. Returns how many tokens of the span the
 * sequence is to keep; 0 where its logits allowed no choice, and step_ended() gets an error. */
uint32_t sl_generation_settle(struct sl_generation *generation);

/* Tells the generation that the step is over. If `rc` is negative, the step has failed, for all or
 * for this sequence alone, and the sequence is as it was before. */
void sl_generation_step_ended(struct sl_generation *generation, int rc);

/* ---- drafts: after settle(), when the sequence has kept the step's tokens ----------------------
 */

struct sl_kv_cache *sl_generation_sequence(const struct sl_generation *generation);

/* Writes the tokens that followed the last ones that were kept, those of the rows that a draft is
 * to see: at most n_max, and of a prompt only as many as are among its last n_max tokens. That of a
 * text's last row is the token that ended it: a conversation goes on with it. Returns how many; 0:
 * none is to be seen. */
uint32_t sl_generation_followers(const struct sl_generation *generation, uint32_t n_max,
                                 int32_t *ret_ids);

/* How many guesses the next step can make use of, and how many there are. */
uint32_t sl_generation_drafts_max(const struct sl_generation *generation);
uint32_t sl_generation_draft_count(const struct sl_generation *generation);

/* Adds the next guess, sampled from a draft's logits as the token will be from the model's. Returns
 * it. Threads as in take_logits(). */
int32_t sl_generation_guess(struct sl_generation *generation, const float *logits,
                            struct sl_candidate *scratch);

/* Ends the text between steps, before a rule does. */
void sl_generation_cancel(struct sl_generation *generation);

/* The latest step, replay() or cancel() made these: tokens with the text that each brought, in
 * order; valid until the next call. */
struct sl_generation_output {
    const struct sl_generated *token; /* NULL: none; an end-of-sentence token is none */
    const char *text;                 /* (length) what can be shown by now, often none */
    size_t length;
};
uint32_t sl_generation_output_count(const struct sl_generation *generation);
struct sl_generation_output sl_generation_output(const struct sl_generation *generation,
                                                 uint32_t output_index);

/* How many guesses the span of the last step carried, and how many of them counted. */
uint32_t sl_generation_drafts_tried(const struct sl_generation *generation);
uint32_t sl_generation_drafts_right(const struct sl_generation *generation);

/* The first returns why the text has ended, or SL_FINISH_NONE; the second the stop string that
 * ended it, or NULL. */
enum sl_finish sl_generation_finish(const struct sl_generation *generation);
const char *sl_generation_stop_string(const struct sl_generation *generation);

/* The first counts the tokens made, without an end-of-sentence token; the second those of the
 * prompt that the model has seen. */
uint32_t sl_generation_token_count(const struct sl_generation *generation);
uint32_t sl_generation_prompt_count(const struct sl_generation *generation);

#endif
