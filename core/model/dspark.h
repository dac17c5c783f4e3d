/* DSpark, the draft of the checkpoints since June: a few stages, each a block like a layer, that
 * guess a block of tokens at once.
 *
 *   layers ──outputs of the target layers──► main_x ──wkv of each stage──► ring of each stage
 *                                                                               │ keys
 *   anchor, noise, noise ... ──embedding──► stage 0 ──► stage 1 ──► stage 2 ◄───┘
 *                                                         │ head, Markov head
 *                                  tokens, one by one ◄───┴───► the chance that each stands
 *
 * The rings belong to the KV caches and are written in every step, as those of the layers are: a
 * stage's ring is always as far as its sequence. So drafts can be made after any step or none, and
 * rollback, marks, forks and images treat rings of stages as any others. A draft leaves no trace.
 *
 * This file has the step's half, core/model/forward_dspark.c the draft's. Internal to core/model.
 * Source: tests/oracle/v4ref.py, DSpark. */
#ifndef SL_MODEL_DSPARK_H
#define SL_MODEL_DSPARK_H

#include "core/base/arena.h"
#include "core/model/attention.h"
#include "core/model/linear.h"
#include "core/model/step.h"
#include "core/model/weights.h"

struct sl_dspark {
    struct sl_attention *attention; /* borrowed; set after carving */

    /* The step's rows that stay in the rings, which are the last ones of each span. */
    uint32_t n_rows;
    uint32_t *row_tokens;        /* (rows) step index of each */
    float *hidden_f32;           /* exact: (rows, n_targets * hidden_size) */
    uint16_t *hidden_bf16;       /* native: likewise */
    float *mean;                 /* native: per thread (hidden_size) */
    struct sl_act_buffer main_x; /* (rows, hidden_size) */
};

/* Working memory for steps of up to tokens_max tokens in up to spans_max spans, from an arena
 * (measuring: returns NULL). */
struct sl_dspark *sl_dspark_carve(struct sl_arena *arena, const struct sl_config *config,
                                  const struct sl_draft *draft, enum sl_numerics numerics,
                                  uint32_t n_threads, uint32_t tokens_max, uint32_t spans_max);

/* A step begins: chooses the rows. */
void sl_dspark_begin(struct sl_dspark *dspark, const struct sl_step *step);

/* A layer has run: keeps what the draft reads of it, if it is one of its targets. */
void sl_dspark_note(struct sl_dspark *dspark, const struct sl_step *step, uint32_t layer_index);

/* The step's tokens from `first` on, up to `end`, have been taken out of it. */
void sl_dspark_drop(struct sl_dspark *dspark, const struct sl_step *step, uint32_t first,
                    uint32_t end);

/* After all layers, for each stage in turn: writes its ring. */
void sl_dspark_fill(struct sl_dspark *dspark, const struct sl_step *step, uint32_t layer_index,
                    const struct sl_layer_weights *stage, const struct sl_dspark_weights *weights);

#endif
