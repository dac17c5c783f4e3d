/* How long batches will still take.
 *
 * Time goes to steps, to tokens of prompts and to tokens that are made, where tokens that a session
 * or an image knows already cost nothing:
 *
 *     time = steps x step_s + prompt tokens x prompt_s + made tokens x made_s + pasts x past_s
 *
 * where a token of a prompt has as many pasts as there are tokens before it, which it looks back
 * at: long prompts come first, and cost more. The four are fitted, none below 0, to what steps have
 * taken, and scaled to give the time that all of them have taken together, whatever else the
 * machine did meanwhile. Where all steps have as many tokens, nobody can tell what a step without
 * any would take: then it is the time in which nothing was done but wait for the drives.
 *
 * How long the answers of a batch will be is taken from those that have ended and from how far the
 * others are, which will be longer (Kaplan and Meier's estimate). An answer that its limit has cut
 * is one of the latter. Steps are counted by dealing the items out to as many places as there were
 * on average: at the end there are fewer items than places, and steps are less full.
 *
 * Pure: no clock. One thread. */
#ifndef SL_DAEMON_BATCH_BATCH_ESTIMATE_H
#define SL_DAEMON_BATCH_BATCH_ESTIMATE_H

#include <stdbool.h>
#include <stdint.h>

/* ---- what has happened -------------------------------------------------------------------------
 */

struct sl_estimate_sample {
    double seconds, steps, prompt_tokens, made_tokens; /* sums since some beginning */
    double pasts, wait_seconds;                        /* likewise; the latter for drives */
    /* Now: items that have begun, texts that are behind their prompts, and tokens of prompts that a
     * step has room for; whether more items wait. */
    uint32_t n_begun, n_decoding, prompt_rows;
    bool items_wait;
};

struct sl_batch_estimate {
    struct sl_estimate_sample last;
    bool has_last;
    /* Sums, of which older parts fade: products of steps, prompt, made, pasts and seconds; each. */
    double products[5][5], totals[5];
    double elapsed_s;               /* of all samples */
    double recent_s, recent_tokens; /* for the rate; fade sooner */
    double places;                  /* items at a time while others waited: the most, fading */
    double decode_steps, rows;      /* texts that made tokens, and prompt_rows, in steps */
};

/* Takes in where the work is. Samples that are closer than half a second or a step are left out. */
void sl_batch_estimate_note(struct sl_batch_estimate *estimate,
                            const struct sl_estimate_sample *sample);

/* Nothing will be under way for a while: the time until the next sample says nothing. */
void sl_batch_estimate_pause(struct sl_batch_estimate *estimate);

/* Computed tokens a second, of prompts and answers together, over the last minute or so. */
double sl_batch_estimate_rate(const struct sl_batch_estimate *estimate);

/* Answers that are remembered, the latest ones. */
#define SL_ANSWER_LENGTHS_MAX 2048u

struct sl_answer_length {
    uint32_t n_tokens;
    bool is_cut; /* it would have been longer */
};

struct sl_answer_lengths {
    struct sl_answer_length ended[SL_ANSWER_LENGTHS_MAX]; /* a ring */
    uint32_t n;
};

void sl_answer_lengths_add(struct sl_answer_lengths *lengths, uint32_t n_tokens, bool is_cut);

/* ---- what is left ------------------------------------------------------------------------------
 */

/* An item and its texts, which are alike. */
struct sl_estimate_item {
    uint64_t prompt_tokens; /* of all texts, that are to be computed yet, */
    uint64_t pasts;         /* and theirs */
    uint32_t n_texts;       /* at least 1 */
    uint32_t n_made;        /* tokens of each text */
    uint32_t n_new_max;     /* of each text; 0: not known */
};

/* Items that wait, summed up. They are told apart by their limits, rounded to a power of two. */
#define SL_ESTIMATE_LIMITS 34u
struct sl_estimate_waiting {
    uint64_t prompt_tokens, pasts, n_texts;
    uint32_t n_items;
    struct {
        uint64_t n_items, n_new_max; /* of all together */
    } limits[SL_ESTIMATE_LIMITS];    /* the first: no limit is known */
};

/* `n` is 1 to add the item, and -1 to take it out. */
void sl_estimate_waiting_add(struct sl_estimate_waiting *waiting,
                             const struct sl_estimate_item *item, int n);

struct sl_estimate_batch {
    const struct sl_answer_lengths *lengths;
    const struct sl_estimate_item *running; /* (n_running) that have begun */
    uint32_t n_running;
    struct sl_estimate_waiting waiting;
};

/* Tells, for each of these batches, of which the first goes first, the seconds until it has ended;
 * below 0 while nobody can tell. n_places is how many items may be under way at a time, at least
 * 1. */
void sl_batch_estimate_left(const struct sl_batch_estimate *estimate,
                            const struct sl_estimate_batch *batches, uint32_t n_batches,
                            uint32_t n_places, double *ret_left);

#endif
