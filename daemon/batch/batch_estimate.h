/* How long a batch will still take.
 *
 * Time goes to steps, to tokens of prompts and to tokens that are made:
 *
 *     time = steps x step_s + prompt tokens x prompt_s + made tokens x made_s
 *
 * The three are fitted, none below 0, to what was measured second by second. How long the answers
 * will be is taken from those that have ended and from how far the others are, which will be longer
 * (Kaplan and Meier's estimate). Items that are fewer than may be under way leave steps less full,
 * so steps are counted by dealing the items out.
 *
 * Pure: no clock. One thread. */
#ifndef SL_DAEMON_BATCH_BATCH_ESTIMATE_H
#define SL_DAEMON_BATCH_BATCH_ESTIMATE_H

#include <stdbool.h>
#include <stdint.h>

/* Answers that are remembered, the latest ones. */
#define SL_ESTIMATE_ANSWERS_MAX 2048u

/* Sums since some beginning. */
struct sl_estimate_sample {
    double seconds, steps, prompt_tokens, made_tokens;
};

struct sl_batch_estimate {
    struct sl_estimate_sample last;
    bool has_last;
    double sums[4][4]; /* of products of steps, prompt, made, seconds; older ones fade */
    double recent_s, recent_tokens;            /* for the rate; fade sooner */
    uint32_t answers[SL_ESTIMATE_ANSWERS_MAX]; /* lengths of ended ones, a ring */
    uint32_t n_answers;
};

/* Takes in where the work is; samples that are closer than half a second are left out. */
void sl_batch_estimate_note(struct sl_batch_estimate *estimate,
                            const struct sl_estimate_sample *sample);
void sl_batch_estimate_answer(struct sl_batch_estimate *estimate, uint32_t n_tokens);

/* Tokens a second, of prompts and answers together, over the last minute or so. */
double sl_batch_estimate_rate(const struct sl_batch_estimate *estimate);

struct sl_estimate_work {
    uint64_t prompt_tokens; /* that are left */
    uint32_t n_waiting;     /* items that have not begun */
    const uint32_t *made;   /* (n_running) tokens made of those that have */
    uint32_t n_running;
    uint32_t n_slots;           /* items that may be under way at a time */
    uint32_t answer_tokens_max; /* of an item; 0: not known */
};

/* Returns the seconds left, or below 0 while nobody can tell. */
double sl_batch_estimate_left(const struct sl_batch_estimate *estimate,
                              const struct sl_estimate_work *work);

#endif
