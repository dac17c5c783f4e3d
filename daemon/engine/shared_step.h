/* A step that many generations share: their next spans in one pass over the model, and their next
 * tokens sampled by all compute threads.
 *
 *     begin() ──► advance() ──► ... ──► advance() returns 0: every generation has its output
 *                     └──fails, or abandon()──► every generation is where it was before
 *
 * Where the engine has drafts, the step carries guesses of texts that decode, in rows that nobody
 * needs, and when it is through the draft guesses on, by the same calls: from then on the texts
 * have moved, whatever becomes of the guesses.
 *
 * Between two calls of advance() the step stands still: another one, of the other size, may run,
 * and generations may leave this one. Belongs to the engine's thread. Allocates nothing after
 * create. */
#ifndef SL_DAEMON_ENGINE_SHARED_STEP_H
#define SL_DAEMON_ENGINE_SHARED_STEP_H

#include "daemon/engine/engine.h"
#include "daemon/engine/generation.h"

struct sl_shared_step;

/* Takes steps of the engine's forward of that size. Fails with -ENOMEM. The caller destroys it
 * before the engine. */
int sl_shared_step_create(struct sl_shared_step **ret_step, struct sl_engine *engine,
                          enum sl_step_size size, struct sl_err *err);

/* NULL is allowed. Abandons a step that is open. */
void sl_shared_step_destroy(struct sl_shared_step *step);

/* Begins a step with those of the n generations whose text has not ended; there must be at least
 * one. Each gets as many tokens as the others, unless it has fewer left. Where there are more
 * generations than a step has room for, the first ones take part. `hooks` says what stops the step,
 * and whom it tells of routes; the rest of it is not looked at. The generations are borrowed until
 * the step is over. Fails as sl_forward_begin(). */
int sl_shared_step_begin(struct sl_shared_step *step, struct sl_generation *const *generations,
                         uint32_t n, const struct sl_step_request *hooks, struct sl_err *err);

/* Does the same with n_tokens[i] tokens of each generation i, of which none has ended: at least 1,
 * at most those that are left. All of them fit the step. */
int sl_shared_step_begin_with(struct sl_shared_step *step, struct sl_generation *const *generations,
                              const uint32_t *n_tokens, uint32_t n,
                              const struct sl_step_request *hooks, struct sl_err *err);

/* Goes on by a layer, or a group of logits. Returns 1 if there is more to do, and 0 when the step
 * has ended. Fails as sl_forward_advance(): then the step is over, and every generation is where it
 * was before.
 *
 * Also fails with -SL_ECORRUPT at the end of a step where a generation's logits allow no choice: it
 * stays where it was, and has no output, while all others have theirs. */
int sl_shared_step_advance(struct sl_shared_step *step, struct sl_err *err);

/* Takes a generation out of the open step, if it has one and others are in it: it is where it was
 * before the step, which goes on with the others, and is borrowed no more. Returns whether it has
 * been taken out; the only one of a step leaves by abandon(), and none while the draft guesses on.
 */
bool sl_shared_step_drop(struct sl_shared_step *step, const struct sl_generation *generation);

/* How many guesses the latest step carried, in rows of their own. */
uint32_t sl_shared_step_draft_count(const struct sl_shared_step *step);

/* Gives up an open step: generations are where they were, or, if the draft was guessing on already,
 * have their output. */
void sl_shared_step_abandon(struct sl_shared_step *step);

/* Takes a whole step, from begin() to its end. Returns 0, or fails as begin() and advance() do. */
int sl_shared_step_run(struct sl_shared_step *step, struct sl_generation *const *generations,
                       uint32_t n, const struct sl_step_request *hooks, struct sl_err *err);

#endif
