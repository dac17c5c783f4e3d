/* The forward pass.
 *
 * A step is a list of spans: tokens of some sequences, each to be appended to its KV cache. Prefill
 * of a document, decode of one user, decode of many in lockstep: all are one call. The pass is
 * layer-major (every span passes layer n before layer n + 1 starts) and expert-major inside the
 * MoE. The logits after a token depend on weights and earlier tokens alone, bit for bit.
 *
 * A step goes on layer by layer and can be left between layers for as long as one likes:
 *
 *     begin() ──► advance() ──► advance() ... ──► end()      its tokens, or the first ones of each
 *                     │             │                        span, are part of their sequences
 *                     └──failed─────┴──abandon()──►          every sequence is as it was before
 *
 * Between two calls of advance() a span can be dropped: its sequence is as it was before, and the
 * layers that follow compute only what is left.
 *
 * Several forwards can share weights, compute and expert source, each with a step of its own open:
 * a large one for long prompts stands still while a small one serves somebody who waits. No
 * sequence is in two steps at a time. One thread drives all of them. A forward owns its working
 * memory and allocates nothing after creation; what a step will write to in the KV caches, begin()
 * takes from their pool (core/model/kv_pool.h), or refuses the step.
 *
 * A step's time is broken down in the pool's account (core/model/phase.h), without what
 * on_logits() took. */
#ifndef SL_MODEL_FORWARD_H
#define SL_MODEL_FORWARD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/model/compute.h"
#include "core/model/config.h"
#include "core/model/dspark_request.h"
#include "core/model/expert_source.h"
#include "core/model/kv_cache.h"
#include "core/model/weights.h"

struct sl_forward;

/* Which experts the source is told of before their layer's router has chosen them. */
enum sl_prefetch {
    SL_PREFETCH_HASH, /* those of the hash-routed layers, for certain */
    SL_PREFETCH_OFF,
    SL_PREFETCH_AUTO, /* also predicted ones of the next layer, in steps of few tokens, where the
                       * source wants to know */
    SL_PREFETCH_GATE, /* those always: for comparisons */
};

struct sl_forward_params {
    const struct sl_config *config; /* this and the next three are borrowed */
    struct sl_weights *weights;
    const struct sl_compute *compute;
    struct sl_expert_source *source;
    uint32_t tokens_max;  /* of one step, all spans together */
    uint32_t context_max; /* of one sequence: no KV cache has a larger capacity */
    uint32_t spans_max;
    enum sl_prefetch prefetch;
};

enum sl_logits_wanted { SL_LOGITS_NONE, SL_LOGITS_LAST, SL_LOGITS_ALL };

struct sl_span {
    struct sl_kv_cache *kv; /* one span per sequence and step */
    const int32_t *tokens;
    uint32_t n_tokens; /* at least 1 */
    enum sl_logits_wanted logits;
};

/* Logits (vocab_size) after token `token_index` of span `span_index`. */
struct sl_logits_row {
    uint32_t span_index;
    uint32_t token_index;
    const float *logits;
};

/* Rows come in the order of spans and tokens, up to this many at a time. */
#define SL_LOGITS_ROWS_MAX 32u

/* The next rows that the step's spans want; valid during the call, which comes from the thread that
 * drives the forward and may run jobs on the pool. Rows of a step that fails afterwards are of no
 * use: its tokens have not happened. */
typedef void sl_logits_fn(void *context, const struct sl_logits_row *rows, uint32_t n_rows);

/* The experts that each token of a step was routed to in a layer, as soon as the layer has run:
 * (n_tokens, num_experts_per_tok), ascending for each token, spans one after the other; valid
 * during the call. */
typedef void sl_route_fn(void *context, uint32_t layer_index, uint32_t n_tokens,
                         const uint16_t *experts);

/* The work of one step, and whom it tells. The token ids, `stop` and the contexts are borrowed
 * until the step has ended; the list of spans until begin() returns. */
struct sl_step_request {
    const struct sl_span *spans;
    uint32_t n_spans;
    const atomic_bool *stop; /* NULL, or looked at some times a second; may be set from anywhere */
    sl_logits_fn *on_logits; /* NULL where no span wants any */
    void *on_logits_context;
    sl_route_fn *on_route; /* NULL, or told after each layer */
    void *on_route_context;
};

/* Bytes of working memory that sl_forward_create() will map, what rolls a step back included.
 * `draft` is the one that is loaded, or NULL; n_threads as in params->compute. */
uint64_t sl_forward_measure(const struct sl_config *config, const struct sl_draft *draft,
                            enum sl_numerics numerics, uint32_t n_threads, uint32_t tokens_max,
                            uint32_t context_max, uint32_t spans_max);

/* Fails with -ENOMEM. The caller destroys *ret_forward. */
int sl_forward_create(struct sl_forward **ret_forward, const struct sl_forward_params *params,
                      struct sl_err *err);

/* NULL is allowed. Abandons a step that is open. */
void sl_forward_destroy(struct sl_forward *forward);

/* All working memory: for figures. */
const struct sl_arena *sl_forward_arena(const struct sl_forward *forward);

/* Begins a step; none is open. Fails, and nothing has happened, with -SL_EFORMAT (a token outside
 * the vocabulary) or -SL_EBUDGET (a span does not fit its KV cache, the step this forward, or what
 * it adds to the KV caches, with what has to come back of them from disk, their pool); with -ENOMEM
 * or an error of reading that, the caches may have taken pages for it already. */
int sl_forward_begin(struct sl_forward *forward, const struct sl_step_request *request,
                     struct sl_err *err);

/* Runs the next layer; after the last one, gives the next rows of logits. Returns 1 if there is
 * more to do and 0 if not: then end() follows. Fails as the expert source and reads of weights and
 * KV caches do, with -SL_ECORRUPT (logits that are not finite, and so not given) or -ECANCELED
 * (stop was set); the step is over then, and all its sequences are where they were before it. */
int sl_forward_advance(struct sl_forward *forward, struct sl_err *err);
void sl_forward_background(struct sl_forward *forward); /* goes on with reads of KV caches */

/* Ends a step that has nothing more to do: the first n_kept[i] tokens of each span i, or with NULL
 * all of them, have now been seen by their sequences. The rest leaves no trace, as if it had not
 * been in the step. Some but not all tokens can be kept of spans of at most
 * sl_kv_rollback_tokens_max() (core/model/kv_rollback.h). */
void sl_forward_end(struct sl_forward *forward, const uint32_t *n_kept);

/* Takes span `span_index` out of the open step, which has others: its sequence is where it was
 * before the step, which knows it no more. The numbers of the spans behind it are smaller by one
 * from now on: in logits rows, in end()'s n_kept, in the MTP pass that follows. In an MTP pass it
 * is the block that is where it was: it has missed these tokens, and rollback() does not reach this
 * sequence any more. Not from a pass that makes drafts: its guesses are just not used. */
void sl_forward_drop(struct sl_forward *forward, uint32_t span_index);

/* Gives up the open step, wherever it is: all its sequences are where they were before it. */
void sl_forward_abandon(struct sl_forward *forward);

/* All of a step at once: begin(), advance() to the end, end() with all tokens kept. Fails as these
 * do, and then nothing has happened to any sequence. */
int sl_forward_step(struct sl_forward *forward, const struct sl_step_request *request,
                    struct sl_err *err);

/* Begins a pass of the MTP block over the step that ended last, whose final streams are still here:
 * span i is of the same sequence as then, and its tokens are what followed each of those that were
 * kept, as far as known (n_tokens 0 to that many). Logits row t predicts the token after tokens[t].
 * advance() and end() follow as for any step.
 *
 * Only with weights that have an MTP block. Once per step; of a sequence for all steps or none,
 * since the block attends to its own past: only the last step may leave out tokens. Fails as
 * begin(). A pass that fails later leaves the sequences as the step left them, and the block as it
 * was before: it has missed these tokens, since the streams are used up. Then the sequence goes on
 * without MTP, or sl_forward_rollback() and the step is taken once more. */
int sl_forward_begin_mtp(struct sl_forward *forward, const struct sl_step_request *request,
                         struct sl_err *err);

int sl_forward_mtp(struct sl_forward *forward, const struct sl_step_request *request,
                   struct sl_err *err);

/* Rolls back the step that ended last, and its MTP pass: its sequences, which nobody has touched
 * or marked since, are where they were before it, but for those that were dropped. Once, and before
 * another step or draft begins. */
void sl_forward_rollback(struct sl_forward *forward);

/* ---- drafts of either kind ---------------------------------------------------------------------
 * A pass of the model's draft over the step that ended last: it sees the tokens that were kept, and
 * guesses those that come next. */
#define SL_DRAFTS_MAX 5u /* guesses of a sequence */

/* Called as an sl_logits_fn: guesses ret_ids[row], number token_index of the request's span. */
typedef void sl_draft_fn(void *context, const struct sl_logits_row *rows, uint32_t n_rows,
                         int32_t *ret_ids);

struct sl_draft_span {
    uint32_t span_index; /* in the step; ascending in a request */
    const int32_t *next; /* (n_seen) the tokens that followed, the last of them not seen yet */
    uint32_t n_seen;     /* the last tokens that were kept; at least 1 */
    uint32_t n_drafts;   /* wanted, 0 included; at most as many as the KV cache has room for */
    float chance_min;    /* DSpark: fewer, if the chance that all stand would be less; 0: all */
};

struct sl_draft_request {
    const struct sl_draft_span *spans; /* (n_spans) tokens are borrowed until the pass has ended */
    uint32_t n_spans;
    const atomic_bool *stop;
    sl_draft_fn *on_drafts;
    void *on_drafts_context;
};

/* Begins such a pass; advance() and end(), with all kept, follow as for any step. Only with weights
 * that have a draft, once after a step. A draft that has not seen the tokens before a span's begins
 * anew there, so a prompt's last sliding_window tokens are as good as all. Fails as begin(). If it
 * fails later, the sequences stay as the step left them, and the draft has missed these tokens. */
int sl_forward_begin_drafts(struct sl_forward *forward, const struct sl_draft_request *request,
                            struct sl_err *err);

/* ---- drafts of DSpark, with weights that have one ------------------------------------------- */

/* Begins a pass that makes drafts; no step is open. Sequences and forward need not have been in a
 * step together, and however it ends, every sequence is as it was. advance() and end() follow as
 * for any step. Fails, and nothing has happened, with -SL_EFORMAT (an anchor outside the
 * vocabulary) or -SL_EBUDGET (the forward has tokens for no block). */
int sl_forward_begin_dspark(struct sl_forward *forward, const struct sl_dspark_request *request,
                            struct sl_err *err);

int sl_forward_dspark(struct sl_forward *forward, const struct sl_dspark_request *request,
                      struct sl_err *err);

#endif
