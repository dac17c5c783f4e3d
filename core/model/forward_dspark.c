/* Drafts of DSpark: a pass of blocks of an anchor and noise through the stages, and the tokens that
 * come of it, chosen in turn. It reads the KV caches and writes nothing to them. */
#include <errno.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/kernels/scalar_math.h"
#include "core/model/forward_internal.h"

/* ---- memory ------------------------------------------------------------------------------------
 */

/* Spans whose drafts are made at once: their rows of logits are one group. */
static uint32_t spans_at_once(const struct sl_config *config)
{
    return SL_LOGITS_ROWS_MAX / config->dspark.block_size;
}
_Static_assert(SL_DSPARK_BLOCK_MAX <= SL_LOGITS_ROWS_MAX, "a group of logits holds a block");

void sl_forward_carve_dspark(struct sl_forward *f, struct sl_arena *arena,
                             const struct sl_config *c, const struct sl_draft *draft,
                             enum sl_numerics numerics, uint32_t n_threads)
{
    const uint64_t hidden = c->hidden_size, at_once = spans_at_once(c);
    struct sl_blocks *b = &f->blocks;

    f->dspark = sl_dspark_carve(arena, c, draft, numerics, n_threads, f->params.tokens_max,
                                f->params.spans_max);
    b->spans = sl_arena_take(arena, f->params.spans_max, sizeof(*b->spans));
    b->h = sl_arena_take(arena, SL_LOGITS_ROWS_MAX * hidden, sizeof(float));
    b->previous = sl_act_buffer_carve(arena, at_once, draft->markov_rank, SL_ACT_BF16, numerics);
    b->markov = sl_arena_take(arena, at_once * sl_r16_padded_rows(c->vocab_size), sizeof(float));
    if (f->dspark)
        f->dspark->attention = f->attention;
}

/* ---- the pass ----------------------------------------------------------------------------------
 */

static int check_request(const struct sl_forward *f, const struct sl_dspark_request *request,
                         struct sl_err *err)
{
    const struct sl_config *c = f->params.config;
    const uint32_t block = c->dspark.block_size;

    sl_assert(request->n_spans <= f->params.spans_max);
    if (block > f->params.tokens_max)
        return sl_err_set(err, -SL_EBUDGET,
                          "a draft in a block of %u tokens in one step, which was made for %u",
                          block, f->params.tokens_max);
    for (uint32_t s = 0; s < request->n_spans; s++) {
        const struct sl_dspark_span *span = &request->spans[s];

        sl_assert(!span->kv->in_step && span->kv->n_tokens > 0);
        sl_assert(span->kv->n_mtp_tokens == span->kv->n_tokens);
        sl_assert(span->n_max >= 1 && span->n_max <= block);
        if (span->anchor < 0 || (uint32_t)span->anchor >= c->vocab_size)
            return sl_err_set(err, -SL_EFORMAT,
                              "token id %d (of a draft) is outside the vocabulary of %u",
                              span->anchor, c->vocab_size);
    }
    return 0;
}

/* Sets up the blocks of the round's spans: an anchor and noise behind what each sequence has seen.
 */
static void set_blocks(struct sl_forward *f)
{
    const struct sl_dspark_config *c = &f->params.config->dspark;
    uint32_t n = 0;

    for (uint32_t s = 0; s < f->request.n_spans; s++) {
        const struct sl_dspark_span *span = &f->blocks.spans[f->blocks.first_span + s];

        f->spans[s] = (struct sl_span){.kv = span->kv, .n_tokens = c->block_size};
        f->span_first[s] = n;
        for (uint32_t i = 0; i < c->block_size; i++)
            f->tokens[n + i] =
                (struct sl_step_token){.kv = span->kv,
                                       .position = span->kv->n_tokens + i,
                                       .span_first = n,
                                       .sees_first = span->kv->mtp_first,
                                       .id = i == 0 ? span->anchor : (int32_t)c->noise_token_id};
        n += c->block_size;
    }
    f->step.n_tokens = n;
    f->step.block_tokens = c->block_size;
    sl_forward_set_angles(f);
}

/* Begins a round through the stages, with as many of the spans that are left as the forward has
 * tokens for. */
static void begin_round(struct sl_forward *f)
{
    const uint32_t most = f->params.tokens_max / f->params.config->dspark.block_size;

    f->blocks.first_span = f->blocks.next_span;
    f->request.n_spans = f->n_rows_left < most ? f->n_rows_left : most;
    f->first_layer = f->next_layer = f->params.config->num_hidden_layers;
    f->end_layer = f->first_layer;
    if (f->n_rows_left > 0)
        f->end_layer += f->params.weights->draft.n_blocks;
    set_blocks(f);
}

int sl_forward_begin_dspark(struct sl_forward *f, const struct sl_dspark_request *request,
                            struct sl_err *err)
{
    struct sl_blocks *blocks = &f->blocks;
    int rc;

    sl_assert(f->dspark && f->state != SL_FORWARD_OPEN);
    rc = check_request(f, request, err);
    if (rc < 0)
        return rc;
    f->state = SL_FORWARD_OPEN;
    f->part = SL_FORWARD_DSPARK;
    f->sets_streams = true;
    f->request = (struct sl_step_request){.spans = f->spans, .stop = request->stop};
    f->step.stop = request->stop;
    blocks->on_draft = request->on_draft;
    blocks->on_draft_context = request->on_draft_context;
    blocks->n_spans = f->n_rows_left = request->n_spans;
    blocks->next_span = 0;
    memmove(blocks->spans, request->spans, request->n_spans * sizeof(*blocks->spans));
    sl_pool_phase(f->params.compute->pool, SL_PHASE_REST);
    for (uint32_t s = 0; s < request->n_spans; s++) {
        sl_assert(!request->spans[s].kv->in_step); /* two drafts of one sequence */
        request->spans[s].kv->in_step = true;
    }
    sl_kv_window_clear(&f->window); /* rings are never on disk */
    begin_round(f);
    sl_pool_phase(f->params.compute->pool, SL_PHASE_OUTSIDE);
    return 0;
}

/* Whether the round's drafts are made, and others are left. */
static bool is_round_over(const struct sl_forward *f)
{
    return f->n_rows_left > 0 && f->blocks.next_span == f->blocks.first_span + f->request.n_spans;
}

/* The span may be of this round, of an earlier one or of a later one. */
void sl_forward_drop_block(struct sl_forward *f, uint32_t span_index)
{
    struct sl_blocks *blocks = &f->blocks;
    struct sl_dspark_span *span = &blocks->spans[span_index];
    const uint32_t i = span_index - blocks->first_span; /* in the round, if it is in it */
    const bool in_round = span_index >= blocks->first_span && i < f->request.n_spans;

    sl_assert(span_index < blocks->n_spans && blocks->n_spans > 1);
    span->kv->in_step = false;
    blocks->n_spans--;
    memmove(span, span + 1, (blocks->n_spans - span_index) * sizeof(*span));
    if (span_index < blocks->next_span)
        blocks->next_span--;
    else
        f->n_rows_left--;
    if (span_index < blocks->first_span)
        blocks->first_span--;
    if (in_round) {
        sl_forward_close_gap(f, f->span_first[i], f->span_first[i] + f->spans[i].n_tokens);
        f->request.n_spans--;
        set_blocks(f);
    }
    if (is_round_over(f))
        begin_round(f);
    if (f->n_rows_left == 0)
        f->next_layer = f->end_layer;
}

void sl_forward_end_dspark(struct sl_forward *f)
{
    for (uint32_t s = 0; s < f->blocks.n_spans; s++)
        f->blocks.spans[s].kv->in_step = false;
    f->state = SL_FORWARD_IDLE;
}

int sl_forward_dspark(struct sl_forward *f, const struct sl_dspark_request *request,
                      struct sl_err *err)
{
    int rc = sl_forward_begin_dspark(f, request, err);

    return rc < 0 ? rc : sl_forward_finish(f, err);
}

/* ---- choosing the tokens -----------------------------------------------------------------------
 */

/* A draft of which more tokens may be made. */
struct chain {
    uint32_t span_index;
    uint32_t first_row; /* of the group's */
    int32_t previous;
    float chance; /* that all of it so far stands */
};

struct chains {
    struct sl_forward *f;
    struct chain list[SL_LOGITS_ROWS_MAX];
    struct sl_dspark_row rows[SL_LOGITS_ROWS_MAX]; /* of each in turn */
    uint32_t n;
    uint32_t index; /* of the draft's token at hand */
};

/* The head's input, before its norm and after. Items are rows of the group. */
static void set_head_input(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct sl_forward *f = context;
    const struct sl_dspark_weights *w = &f->params.weights->dspark;
    const struct sl_config *c = f->params.config;
    const size_t hidden = c->hidden_size;

    for (size_t row = first; row < end; row++) {
        float *h = f->blocks.h + row * hidden;

        sl_hc_head(&f->step, &w->hc_head,
                   f->step.streams + f->row_tokens[row] * c->hc_mult * hidden, h);
        f->params.compute->kernels->rms_norm(hidden, h, w->norm, c->rms_norm_eps,
                                             f->head_x.f32 + row * hidden);
        sl_act_buffer_round(&f->head_x, f->params.compute, thread_index, row);
    }
}

/* The logits that the stages alone give, of all rows that the next spans may want. */
static void run_heads(struct chains *in, uint32_t n_spans)
{
    struct sl_forward *f = in->f;
    struct sl_blocks *blocks = &f->blocks;
    struct sl_pool *pool = f->params.compute->pool;
    uint32_t n_rows = 0;

    for (uint32_t i = 0; i < n_spans; i++) {
        const uint32_t s = blocks->next_span + i;

        in->list[in->n++] = (struct chain){s, n_rows, blocks->spans[s].anchor, 1.0f};
        for (uint32_t row = 0; row < blocks->spans[s].n_max; row++)
            f->row_tokens[n_rows++] = f->span_first[s - blocks->first_span] + row;
    }
    sl_pool_run(pool, SL_PHASE_HEAD, n_rows, 1, set_head_input, f);
    sl_forward_run_head(f, n_rows);
}

/* The chance that a token stands if those before it do. Double, in one order, since there is one
 * row: nothing is gained by more speed. */
static float confidence(const struct sl_forward *f, uint32_t row, const float *previous)
{
    const struct sl_dspark_weights *w = &f->params.weights->dspark;
    const uint32_t hidden = f->params.config->hidden_size;
    const float *h = f->blocks.h + (size_t)row * hidden;
    double sum = 0;

    for (uint32_t i = 0; i < hidden; i++)
        sum += (double)w->confidence[i] * (double)h[i];
    for (uint32_t i = 0; i < w->markov_w1.cols; i++)
        sum += (double)w->confidence[hidden + i] * (double)previous[i];
    return sl_sigmoidf((float)sum);
}

/* Looks up what the Markov head has for each chain's previous token, and drops the chains that have
 * come to their end. */
static void look_up(struct chains *in)
{
    struct sl_forward *f = in->f;
    struct sl_blocks *blocks = &f->blocks;
    const struct sl_matrix *w1 = &f->params.weights->dspark.markov_w1;
    uint32_t n = 0;

    for (uint32_t i = 0; i < in->n; i++) {
        struct chain chain = in->list[i];
        const struct sl_dspark_span *span = &blocks->spans[chain.span_index];
        float *previous = blocks->previous.f32 + (size_t)n * w1->cols, stands;

        if (in->index == span->n_max)
            continue;
        sl_table_row(w1, w1->tiles + (size_t)chain.previous * sl_table_row_bytes(w1), previous);
        stands = confidence(f, chain.first_row + in->index, previous);
        chain.chance *= stands;
        if (chain.chance < span->chance_min)
            continue;
        sl_act_buffer_round(&blocks->previous, f->params.compute, 0, n);
        in->rows[n] = (struct sl_dspark_row){chain.span_index, in->index, NULL, stands, -1};
        in->list[n++] = chain;
    }
    in->n = n;
}

/* Adds what the Markov head gives to the logits. Items are chains. */
static void add_markov(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct chains *in = context;
    const struct sl_forward *f = in->f;
    const size_t vocab_size = f->params.config->vocab_size;
    const size_t stride = sl_r16_padded_rows(vocab_size);

    (void)thread_index;
    for (size_t i = first; i < end; i++) {
        float *logits = f->logits + (in->list[i].first_row + in->index) * stride;
        const float *markov = f->blocks.markov + i * stride;

        for (size_t v = 0; v < vocab_size; v++)
            logits[v] += markov[v];
        in->rows[i].logits = logits;
    }
}

/* The next token of each chain. */
static int choose(struct chains *in, struct sl_err *err)
{
    struct sl_forward *f = in->f;
    struct sl_blocks *blocks = &f->blocks;
    const uint32_t vocab_size = f->params.config->vocab_size;
    const struct sl_linear_job job = {
        .matrix = &f->params.weights->dspark.markov_w2,
        .x = sl_act_buffer_rows(&blocks->previous, 0),
        .y = blocks->markov,
        .y_stride = sl_r16_padded_rows(vocab_size),
        .token_count = in->n,
    };

    sl_linear_run(f->params.compute, SL_PHASE_HEAD, &job, 1);
    sl_pool_run(f->params.compute->pool, SL_PHASE_HEAD, in->n, 1, add_markov, in);
    for (uint32_t i = 0; i < in->n; i++)
        if (!sl_forward_is_finite(in->rows[i].logits, vocab_size))
            return sl_err_set(err, -SL_ECORRUPT,
                              "the logits of a draft are not finite: weights of its stages, or of "
                              "experts that they used, are damaged");
    sl_pool_phase(f->params.compute->pool, SL_PHASE_OUTSIDE);
    blocks->on_draft(blocks->on_draft_context, in->rows, in->n);
    sl_pool_phase(f->params.compute->pool, SL_PHASE_REST);
    for (uint32_t i = 0; i < in->n; i++) {
        sl_assert(in->rows[i].token >= 0 && (uint32_t)in->rows[i].token < vocab_size);
        in->list[i].previous = in->rows[i].token;
    }
    return 0;
}

int sl_forward_give_dspark(struct sl_forward *f, struct sl_err *err)
{
    const uint32_t at_once = spans_at_once(f->params.config);
    const uint32_t left = f->blocks.first_span + f->request.n_spans - f->blocks.next_span;
    const uint32_t n_spans = left < at_once ? left : at_once;
    struct chains chains = {.f = f};
    int rc = 0;

    if (sl_step_is_stopped(&f->step))
        return sl_err_set(err, -ECANCELED, "stopped before the drafts");
    run_heads(&chains, n_spans);
    for (look_up(&chains); chains.n > 0 && rc == 0; look_up(&chains)) {
        rc = choose(&chains, err);
        chains.index++;
    }
    f->blocks.next_span += n_spans;
    f->n_rows_left -= n_spans;
    if (rc == 0 && is_round_over(f))
        begin_round(f);
    return rc;
}
