/* The state of a forward: private to forward*.c and mtp.c. */
#ifndef SL_MODEL_FORWARD_INTERNAL_H
#define SL_MODEL_FORWARD_INTERNAL_H

#include "core/model/attention.h"
#include "core/model/dspark.h"
#include "core/model/forward.h"
#include "core/model/hyper_connection.h"
#include "core/model/kv_paging.h"
#include "core/model/kv_rollback.h"
#include "core/model/linear.h"
#include "core/model/moe.h"
#include "core/model/step.h"

/* The parts of the model that a pass runs through. The main one is all layers, and the rings of
 * DSpark's stages. Those before PARTS write to KV caches, each with its own rollback. */
enum sl_forward_part {
    SL_FORWARD_MAIN,
    SL_FORWARD_MTP,
    SL_FORWARD_PARTS,
    SL_FORWARD_DSPARK = SL_FORWARD_PARTS,
};

/*        begin            end               begin_mtp           end, abandon
 *   IDLE ────► OPEN[MAIN] ────► STREAMS_LEFT ────────► OPEN[MTP] ────────────► STREAMS_USED
 *     ▲ begin_dspark
 *     └───────────────► OPEN[DRAFT] ──end, abandon──► IDLE
 *
 * From everywhere but OPEN another step or draft may begin. Only a step that ended, and that
 * nothing has followed, can be rolled back. */
enum sl_forward_state {
    SL_FORWARD_IDLE,
    SL_FORWARD_OPEN, /* a pass through `part` */
    SL_FORWARD_STREAMS_LEFT,
    SL_FORWARD_STREAMS_USED,
};

/* DSpark's drafts, whose blocks are at work. */
struct sl_blocks {
    sl_dspark_fn *on_draft;
    void *on_draft_context;
    struct sl_dspark_span *spans; /* (spans_max) the request's, */
    uint32_t n_spans;             /* of which those from first_span on are in this round, as many */
    uint32_t first_span;          /* as the pass has spans now, */
    uint32_t next_span;           /* and the drafts of those from here on are not made yet */
    float *h;                     /* (SL_LOGITS_ROWS_MAX, hidden_size) before the head's norm */
    struct sl_act_buffer previous; /* (spans at once, rank) rows of the Markov head's table */
    float *markov;                 /* (spans at once, vocab_size rounded up to 16) */
};

/* Drafts of the MTP block: rounds through it, until no span wants more of them.
 *
 *     SEE ──► GUESS ──► CHAIN ──► CHAIN ...
 *
 * In the first round that there is, streams are set from the step's, in later ones they are here.
 */
enum sl_draft_round {
    SL_ROUND_SEE,   /* only entries are made, of all tokens that were kept; where that is enough */
    SL_ROUND_GUESS, /* the last token of each span that wants drafts goes through the block, */
    SL_ROUND_CHAIN, /* and its output with the token guessed from it, at the place behind it */
};

struct sl_forward_drafts {
    struct sl_draft_request request; /* of drafts of either kind */
    struct sl_draft_span *spans;     /* (spans_max) the request's */
    uint32_t *span_of; /* (spans_max) which of these each span of the pass, or round, is */

    bool is_open; /* drafts of the MTP block are being made */
    enum sl_draft_round round;
    int32_t *ids;                /* (spans_max) guessed in the latest round */
    uint32_t n_guessed;          /* of each span that wanted so many */
    uint32_t n_given;            /* rows of this round */
    struct sl_kv_rollback chain; /* of what CHAIN rounds overwrite, which never stays */
};

struct sl_forward {
    struct sl_forward_params params;
    enum sl_forward_state state;
    enum sl_forward_part part;

    struct sl_step_request request; /* of the open pass; its spans are these */
    struct sl_span *spans;          /* (spans_max) */
    uint32_t *span_first;           /* (spans_max) step index of each span's first token, */
    uint32_t *span_position;        /* (spans_max) and its position */
    struct sl_step step;
    struct sl_step_token *tokens; /* (tokens_max) */
    struct sl_kv_rollback rollback[SL_FORWARD_PARTS];
    struct sl_kv_window window; /* of the open pass */
    uint32_t first_layer, next_layer, end_layer;
    bool sets_streams; /* the first layer does, */
    bool saves_rows;   /* and each layer saves what it overwrites: but for later rounds of drafts */

    struct sl_attention *attention;
    struct sl_moe *moe;
    float *cosine[SL_ROPE_KINDS], *sine[SL_ROPE_KINDS], *frequency[SL_ROPE_KINDS];

    uint32_t n_rows_left;         /* of logits, to be given; of a draft: spans that have none yet */
    uint32_t row_span, row_token; /* where the search for the next one goes on */
    struct sl_act_buffer head_x;  /* (SL_LOGITS_ROWS_MAX, hidden_size) */
    float *logits;                /* (SL_LOGITS_ROWS_MAX, vocab_size rounded up to 16) */
    struct sl_logits_row rows[SL_LOGITS_ROWS_MAX];
    uint32_t row_tokens[SL_LOGITS_ROWS_MAX]; /* step index of each */

    struct sl_dspark *dspark; /* NULL without such a draft */
    struct sl_blocks blocks;

    /* With an MTP block. */
    struct sl_act_buffer mtp_e; /* (chunk, hidden_size) */
    struct sl_act_buffer mtp_h; /* (chunk * hc_mult, hidden_size) */
    float *mtp_e_out, *mtp_h_out;
    struct sl_forward_drafts drafts;

    uint32_t rollback_tokens_max; /* see sl_kv_rollback_tokens_max() */
    struct sl_arena arena;        /* owns all memory above; this struct itself is malloc's */
};

/* Begins a pass through `part`, whose streams are set before its first layer. Fails as
 * sl_forward_begin(). */
int sl_forward_begin_part(struct sl_forward *f, const struct sl_step_request *request,
                          enum sl_forward_part part, struct sl_err *err);

/* Moves the streams of the tokens from `end` on to where `first` is. */
void sl_forward_close_gap(struct sl_forward *f, uint32_t first, uint32_t end);

/* Computes the angles of the step's tokens. */
void sl_forward_set_angles(struct sl_forward *f);

/* Lays the tokens of the spans out one after the other, from span_position on. */
void sl_forward_set_tokens(struct sl_forward *f);

/* Advances to the end of the open pass and ends it. */
int sl_forward_finish(struct sl_forward *f, struct sl_err *err);

/* ---- logits ------------------------------------------------------------------------------------
 */

void sl_forward_carve_logits(struct sl_forward *f, struct sl_arena *arena,
                             const struct sl_config *config, enum sl_numerics numerics);

/* Counts the rows that the open pass is to give. */
void sl_forward_count_rows(struct sl_forward *f);

/* Span `span_index` is about to leave the open pass: its rows are not given any more. */
void sl_forward_drop_rows(struct sl_forward *f, uint32_t span_index);

/* Multiplies the first rows of head_x with the head's weights, into `logits`. */
void sl_forward_run_head(struct sl_forward *f, uint32_t n_rows);

bool sl_forward_is_finite(const float *values, size_t count);

/* Gives the next rows, at most SL_LOGITS_ROWS_MAX. Returns 0, -ECANCELED or -SL_ECORRUPT. */
int sl_forward_give_rows(struct sl_forward *f, struct sl_err *err);

/* ---- drafts of DSpark --------------------------------------------------------------------------
 */

/* Behind `attention`. */
void sl_forward_carve_dspark(struct sl_forward *f, struct sl_arena *arena,
                             const struct sl_config *config, const struct sl_draft *draft,
                             enum sl_numerics numerics, uint32_t n_threads);

/* Takes a span's block out of the open pass. */
void sl_forward_drop_block(struct sl_forward *f, uint32_t span_index);

/* Ends the pass, wherever it is. */
void sl_forward_end_dspark(struct sl_forward *f);

/* Makes the drafts of the next spans. Fails as sl_forward_give_rows(). */
int sl_forward_give_dspark(struct sl_forward *f, struct sl_err *err);

/* ---- drafts of either kind ---------------------------------------------------------------------
 */

void sl_forward_carve_drafts(struct sl_forward *f, struct sl_arena *arena,
                             const struct sl_config *config, const struct sl_draft *draft,
                             enum sl_numerics numerics);

/* The span of the step that ended last that span i of the drafts' request is. */
static inline const struct sl_kv_rollback_span *sl_forward_step_span(const struct sl_forward *f,
                                                                     uint32_t i)
{
    return &f->rollback[SL_FORWARD_MAIN].spans[f->drafts.spans[i].span_index];
}

/* ---- the MTP block -----------------------------------------------------------------------------
 */

void sl_forward_carve_mtp(struct sl_forward *f, struct sl_arena *arena,
                          const struct sl_config *config, enum sl_numerics numerics);

/* Sets the streams that an MTP pass begins with. Fails as sl_embedding_run(). */
int sl_forward_set_mtp_streams(struct sl_forward *f, struct sl_err *err);

/* Begins the pass of sl_forward_begin_drafts(), whose request is in `drafts`. */
int sl_forward_begin_mtp_drafts(struct sl_forward *f, struct sl_err *err);

/* A round of drafts is through: begins the next one, or, if there is none, leaves nothing more to
 * do. */
void sl_forward_next_round(struct sl_forward *f);

/* The pass is over: what it overwrote for guesses is put back. */
void sl_forward_end_drafts(struct sl_forward *f);

#endif
