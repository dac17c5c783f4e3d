/* How many guesses each text's next step carries: as many as pay, down to none.
 *
 * Told what each step took and which guesses were right, it keeps the time of a step by its rows,
 * the time of a draft's pass by its depth, and how often the guess at each depth is right. A depth
 * pays where it makes more tokens in a time than none would:
 *
 *     tokens = 1 + p1 + p1 p2 + ...          time = step(rows + texts x depth) + draft(depth)
 *
 * A depth that is not known is tried, one after the other, and one that does not pay is tried again
 * some time. An account of what was lost against steps without guesses bounds that: SL_DRAFT_LOSS
 * of the time of the last two thousand or so steps, and a step. A trial that has used it up ends,
 * and so does a pass in the middle: the first ones read experts that no step has asked for, and say
 * nothing about what later ones take. Until one was made, a pass is taken to cost the share of a
 * step that the model's sizes tell. Where nothing pays the draft is not even shown the tokens.
 *
 * Pure: no clock, no memory of its own. Allocates nothing. */
#ifndef SL_DAEMON_ENGINE_DRAFT_DEPTH_H
#define SL_DAEMON_ENGINE_DRAFT_DEPTH_H

#include <stdbool.h>
#include <stdint.h>

#define SL_DRAFT_DEPTH_MAX 5u

/* Trying may cost this share of the time. */
#define SL_DRAFT_LOSS 0.01

/* Steps are told apart by their rows: each number up to 8, then four groups from each power of two
 * to the next. */
#define SL_DRAFT_ROW_GROUPS 64u

/* A mean over the last samples. */
struct sl_draft_mean {
    double weight, sum;
};

struct sl_draft_depth {
    uint32_t depth_max;
    double pass_share; /* of a step's time: the draft's pass, as long as none has been timed */
    bool is_chosen;    /* by what pays; otherwise always depth_max */
    struct sl_draft_mean step_ns[SL_DRAFT_ROW_GROUPS];
    struct sl_draft_mean draft_ns[SL_DRAFT_DEPTH_MAX + 1]; /* by depth, for a text */
    struct sl_draft_mean right[SL_DRAFT_DEPTH_MAX];        /* of guesses whose earlier ones were */
    struct sl_draft_mean carried[SL_DRAFT_DEPTH_MAX];      /* of guesses: worth their rows */
    double total_ns, lost_ns;                              /* fading */
    uint64_t n_steps;
    uint32_t n_rows;    /* of the latest step, without guesses */
    uint32_t n_warming; /* steps whose guesses say little, since the draft has just begun anew */
    uint32_t n_probing; /* steps that are left of a trial */
    bool guesses;       /* the draft did, after the latest step */
};

/* One step, with the draft's pass after it. */
struct sl_draft_sample {
    uint32_t n_rows;       /* without guesses */
    uint32_t n_tried;      /* guesses that it carried */
    uint32_t n_texts;      /* that made tokens, */
    uint32_t n_made;       /* and these */
    uint32_t n_guessing;   /* texts that it was to guess on for */
    uint32_t depth_wanted; /* of these guesses */
    bool is_cut;           /* the draft's pass was given up at its longest time */
    uint64_t step_ns, draft_ns;
    uint32_t tried[SL_DRAFT_DEPTH_MAX], right[SL_DRAFT_DEPTH_MAX]; /* by depth, as above */
    uint32_t carried[SL_DRAFT_DEPTH_MAX], left_out[SL_DRAFT_DEPTH_MAX];
};

/* depth_max is 1 to SL_DRAFT_DEPTH_MAX. */
void sl_draft_depth_init(struct sl_draft_depth *depth, uint32_t depth_max, bool is_chosen,
                         double pass_share);

/* How many guesses each of n_ready texts should add to a step of n_rows. */
uint32_t sl_draft_depth_choose(const struct sl_draft_depth *depth, uint32_t n_rows,
                               uint32_t n_ready);

/* A step of n_texts is through: how many guesses are wanted of each text for the next one; or
 * SL_DRAFT_BLIND: the draft need not even see it. */
#define SL_DRAFT_BLIND UINT32_MAX
uint32_t sl_draft_depth_wanted(const struct sl_draft_depth *depth, uint32_t n_texts);

/* The time after which the draft's pass, which is to make so many guesses of each of n_texts, had
 * better be given up. */
uint64_t sl_draft_depth_pass_ns_max(const struct sl_draft_depth *depth, uint32_t n_guesses,
                                    uint32_t n_texts);

/* The least chance to be right with which a guess is worth its row, where n_guesses are
 * wanted of each of n_texts: for drafts that know their chances. */
double sl_draft_depth_chance_min(const struct sl_draft_depth *depth, uint32_t n_guesses,
                                 uint32_t n_texts);

/* Takes in a step that ended. */
void sl_draft_depth_add(struct sl_draft_depth *depth, const struct sl_draft_sample *sample);

#endif
