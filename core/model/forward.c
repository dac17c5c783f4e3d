#include "core/model/forward.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/kernels/formats.h"
#include "core/model/attention.h"
#include "core/model/hyper_connection.h"
#include "core/model/moe.h"
#include "core/model/rope.h"
#include "core/model/step.h"

/* Rows of logits computed at a time: the head's weights are read once for each group. */
#define LOGIT_ROWS_MAX 32u

struct sl_forward {
    struct sl_forward_params params;
    struct sl_step step;
    struct sl_step_token *tokens; /* (tokens_max) */
    struct sl_attention *attention;
    struct sl_moe *moe;
    float *cosine[SL_ROPE_KINDS], *sine[SL_ROPE_KINDS], *frequency[SL_ROPE_KINDS];

    struct sl_act_buffer head_x;   /* (LOGIT_ROWS_MAX, hidden_size) */
    float *logits;                 /* (LOGIT_ROWS_MAX, vocab_size rounded up to 16) */
    uint32_t rows[LOGIT_ROWS_MAX]; /* step indices of the group */
    uint32_t *span_first;          /* (spans_max) step index of each span's first token */

    struct sl_act_buffer mtp_e; /* (chunk, hidden_size) */
    struct sl_act_buffer mtp_h; /* (chunk * hc_mult, hidden_size) */
    float *mtp_e_out, *mtp_h_out;

    struct sl_arena arena; /* owns all of the above, and this struct's own memory is malloc's */
};

/* ---- memory ------------------------------------------------------------------------------------
 */

static void carve(struct sl_forward *f, struct sl_arena *arena, const struct sl_config *c,
                  enum sl_numerics numerics, uint32_t n_threads)
{
    const uint64_t tokens = f->params.tokens_max, pairs = c->qk_rope_head_dim / 2;
    const uint64_t chunk = tokens < SL_CHUNK_TOKENS ? tokens : SL_CHUNK_TOKENS;

    f->tokens = sl_arena_take(arena, tokens, sizeof(*f->tokens));
    f->span_first = sl_arena_take(arena, f->params.spans_max, sizeof(*f->span_first));
    f->step.streams = sl_arena_take(arena, tokens * c->hc_mult * c->hidden_size, sizeof(float));
    for (int kind = 0; kind < SL_ROPE_KINDS; kind++) {
        f->cosine[kind] = sl_arena_take(arena, tokens * pairs, sizeof(float));
        f->sine[kind] = sl_arena_take(arena, tokens * pairs, sizeof(float));
        f->frequency[kind] = sl_arena_take(arena, pairs, sizeof(float));
    }
    f->head_x = sl_act_buffer_carve(arena, LOGIT_ROWS_MAX, c->hidden_size, SL_ACT_BF16, numerics);
    f->logits = sl_arena_take(arena, LOGIT_ROWS_MAX * sl_r16_padded_rows(c->vocab_size), 4);
    if (c->num_nextn_predict_layers > 0) {
        f->mtp_e = sl_act_buffer_carve(arena, chunk, c->hidden_size, SL_ACT_BF16, numerics);
        f->mtp_h =
            sl_act_buffer_carve(arena, chunk * c->hc_mult, c->hidden_size, SL_ACT_BF16, numerics);
        f->mtp_e_out = sl_arena_take(arena, chunk * c->hidden_size, sizeof(float));
        f->mtp_h_out = sl_arena_take(arena, chunk * c->hc_mult * c->hidden_size, sizeof(float));
    }
    f->attention = sl_attention_carve(arena, c, numerics, n_threads, f->params.tokens_max,
                                      f->params.context_max);
    f->moe = sl_moe_carve(arena, c, numerics, f->params.tokens_max);
}

uint64_t sl_forward_measure(const struct sl_config *config, enum sl_numerics numerics,
                            uint32_t n_threads, uint32_t tokens_max, uint32_t context_max,
                            uint32_t spans_max)
{
    struct sl_forward forward = {
        .params = {.tokens_max = tokens_max, .context_max = context_max, .spans_max = spans_max}};
    struct sl_arena arena;

    sl_arena_init_measure(&arena);
    carve(&forward, &arena, config, numerics, n_threads);
    return arena.used_bytes;
}

int sl_forward_create(struct sl_forward **ret_forward, const struct sl_forward_params *params,
                      struct sl_err *err)
{
    const struct sl_config *config = params->config;
    const uint32_t n_threads = sl_pool_thread_count(params->compute->pool);
    struct sl_forward *f;
    int rc;

    f = calloc(1, sizeof(*f));
    if (!f)
        return sl_err_set(err, -ENOMEM, "forward pass: out of memory");
    f->params = *params;
    rc = sl_arena_init(&f->arena,
                       sl_forward_measure(config, params->compute->numerics, n_threads,
                                          params->tokens_max, params->context_max,
                                          params->spans_max),
                       "activations", err);
    if (rc < 0) {
        free(f);
        return rc;
    }
    carve(f, &f->arena, config, params->compute->numerics, n_threads);
    f->step.config = config;
    f->step.compute = params->compute;
    f->step.tokens = f->tokens;
    f->step.stop = params->stop;
    for (int kind = 0; kind < SL_ROPE_KINDS; kind++) {
        sl_rope_frequencies(config, (enum sl_rope_kind)kind, f->frequency[kind]);
        f->step.frequency[kind] = f->frequency[kind];
        f->step.cosine[kind] = f->cosine[kind];
        f->step.sine[kind] = f->sine[kind];
    }
    *ret_forward = f;
    return 0;
}

void sl_forward_destroy(struct sl_forward *forward)
{
    if (!forward)
        return;
    sl_arena_fini(&forward->arena);
    free(forward);
}

const struct sl_arena *sl_forward_arena(const struct sl_forward *forward)
{
    return &forward->arena;
}

/* ---- setting up a step -------------------------------------------------------------------------
 */

static int check_spans(const struct sl_forward *f, const struct sl_span *spans, uint32_t n_spans,
                       bool mtp, struct sl_err *err)
{
    uint64_t total = 0;

    sl_assert(n_spans <= f->params.spans_max);
    for (uint32_t s = 0; s < n_spans; s++) {
        const struct sl_span *span = &spans[s];
        uint32_t seen = mtp ? span->kv->n_mtp_tokens : span->kv->n_tokens;

        sl_assert(span->kv->capacity_tokens <= f->params.context_max);
        if (span->kv->broken)
            return sl_err_set(err, -EINVAL, "an earlier step of this sequence failed");
        if (span->n_tokens > span->kv->capacity_tokens - seen)
            return sl_err_set(err, -SL_EBUDGET,
                              "%llu tokens do not fit the KV cache, which was made for %u",
                              (unsigned long long)seen + span->n_tokens, span->kv->capacity_tokens);
        for (uint32_t i = 0; i < span->n_tokens; i++)
            if (span->tokens[i] < 0 || (uint32_t)span->tokens[i] >= f->params.config->vocab_size)
                return sl_err_set(err, -SL_EFORMAT,
                                  "token id %d (number %u) is outside the vocabulary of %u",
                                  span->tokens[i], seen + i, f->params.config->vocab_size);
        total += span->n_tokens;
    }
    if (total > f->params.tokens_max)
        return sl_err_set(err, -SL_EBUDGET, "%llu tokens in one step, which was made for %u",
                          (unsigned long long)total, f->params.tokens_max);
    return 0;
}

static void set_angles(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct sl_forward *f = context;
    const uint32_t pairs = f->params.config->qk_rope_head_dim / 2;

    (void)thread_index;
    for (size_t i = first; i < end; i++)
        for (int kind = 0; kind < SL_ROPE_KINDS; kind++)
            sl_rope_angles(pairs, f->frequency[kind], f->tokens[i].position,
                           f->cosine[kind] + i * pairs, f->sine[kind] + i * pairs);
}

/* Lays the spans' tokens out one after the other. */
static void set_tokens(struct sl_forward *f, const struct sl_span *spans, uint32_t n_spans,
                       bool mtp)
{
    uint32_t n = 0;

    for (uint32_t s = 0; s < n_spans; s++) {
        const struct sl_span *span = &spans[s];
        uint32_t seen = mtp ? span->kv->n_mtp_tokens : span->kv->n_tokens;

        f->span_first[s] = n;
        for (uint32_t i = 0; i < span->n_tokens; i++)
            f->tokens[n + i] =
                (struct sl_step_token){span->kv, seen + i, f->span_first[s], span->tokens[i]};
        n += span->n_tokens;
    }
    f->step.n_tokens = n;
    sl_pool_run(f->params.compute->pool, n, 4, set_angles, f);
}

/* x = the token's embedding (hidden_size). */
static void embed(const struct sl_forward *f, int32_t id, float *x)
{
    const struct sl_matrix *table = &f->params.weights->embed;
    const size_t cols = table->cols, at = (size_t)id * cols;

    if (table->kind == SL_MATRIX_F32) {
        memcpy(x, (const float *)(const void *)table->tiles + at, cols * sizeof(float));
        return;
    }
    for (size_t c = 0; c < cols; c++)
        x[c] = sl_bf16_to_f32(((const uint16_t *)(const void *)table->tiles)[at + c]);
}

static void embed_tokens(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct sl_forward *f = context;
    const size_t hidden = f->params.config->hidden_size, n = f->params.config->hc_mult;

    (void)thread_index;
    for (size_t i = first; i < end; i++) {
        float *streams = f->step.streams + i * n * hidden;

        embed(f, f->tokens[i].id, streams);
        for (size_t s = 1; s < n; s++)
            memcpy(streams + s * hidden, streams, hidden * sizeof(float));
    }
}

/* ---- logits ------------------------------------------------------------------------------------
 */

struct head {
    struct sl_forward *f;
    const struct sl_hc_weights *hc;
    const float *norm;
};

static void head_rows(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct head *head = context;
    struct sl_forward *f = head->f;
    const size_t hidden = f->params.config->hidden_size;

    for (size_t row = first; row < end; row++) {
        sl_hc_head(&f->step, head->hc, head->norm,
                   f->step.streams + f->rows[row] * f->params.config->hc_mult * hidden,
                   f->head_x.f32 + row * hidden);
        sl_act_buffer_round(&f->head_x, f->params.compute, thread_index, row);
    }
}

/* Rows of logits that are computed together. */
struct logit_group {
    uint32_t span_index[LOGIT_ROWS_MAX];
    uint32_t token_index[LOGIT_ROWS_MAX];
    uint32_t n;
};

static bool all_finite(const float *values, size_t count)
{
    bool finite = true;

    for (size_t i = 0; i < count; i++)
        finite &= (sl_f32_bits(values[i]) & 0x7f800000u) != 0x7f800000u;
    return finite;
}

/* Weights are finite, which was seen to when they were loaded, but damaged ones can be so large
 * that what is computed from them is not. */
static int give_group(const struct head *head, struct logit_group *group, sl_logits_fn *on_logits,
                      void *context, struct sl_err *err)
{
    struct sl_forward *f = head->f;
    const size_t stride = sl_r16_padded_rows(f->params.config->vocab_size);
    struct sl_linear_job job = {&f->params.weights->head,
                                sl_act_buffer_rows(&f->head_x, 0),
                                f->logits,
                                stride,
                                group->n,
                                0};
    struct sl_pool *pool = f->params.compute->pool;

    if (group->n == 0)
        return 0;
    sl_pool_phase(pool, SL_PHASE_HEAD);
    sl_pool_run(pool, group->n, 1, head_rows, (void *)head);
    sl_linear_run(f->params.compute, &job, 1);
    for (uint32_t row = 0; row < group->n; row++) {
        if (!all_finite(f->logits + row * stride, f->params.config->vocab_size))
            return sl_err_set(err, -SL_ECORRUPT,
                              "the logits after token %u are not finite: weights of the model, or "
                              "of experts that it used, are damaged",
                              f->tokens[f->rows[row]].position);
        sl_pool_phase(pool, SL_PHASE_OUTSIDE);
        on_logits(context, group->span_index[row], group->token_index[row],
                  f->logits + row * stride);
        sl_pool_phase(pool, SL_PHASE_HEAD);
    }
    group->n = 0;
    return 0;
}

/* Hands out the logits of every row that a span wants. */
static int give_logits(const struct head *head, const struct sl_span *spans, uint32_t n_spans,
                       sl_logits_fn *on_logits, void *context, struct sl_err *err)
{
    struct logit_group group = {.n = 0};
    int rc;

    for (uint32_t s = 0; s < n_spans; s++) {
        uint32_t first = spans[s].logits == SL_LOGITS_ALL ? 0 : spans[s].n_tokens - 1;

        if (spans[s].logits == SL_LOGITS_NONE || spans[s].n_tokens == 0)
            continue;
        for (uint32_t i = first; i < spans[s].n_tokens; i++) {
            if (group.n == LOGIT_ROWS_MAX) {
                rc = give_group(head, &group, on_logits, context, err);
                if (rc < 0)
                    return rc;
            }
            head->f->rows[group.n] = head->f->span_first[s] + i;
            group.span_index[group.n] = s;
            group.token_index[group.n++] = i;
        }
    }
    return give_group(head, &group, on_logits, context, err);
}

/* ---- the pass ----------------------------------------------------------------------------------
 */

static int run_layer(struct sl_forward *f, uint32_t layer_index, struct sl_err *err)
{
    const struct sl_layer_weights *layer = &f->params.weights->layers[layer_index];
    const bool guess = f->params.prefetch == SL_PREFETCH_GATE &&
                       layer_index + 1 < f->params.config->num_hidden_layers;
    int rc;

    rc = sl_attention_run(f->attention, &f->step, layer_index, layer);
    if (rc == 0)
        rc = sl_moe_run(f->moe, &f->step, layer_index, layer, guess ? layer + 1 : NULL,
                        f->params.source, err);
    if (rc == -ECANCELED)
        return sl_err_set(err, rc, "stopped in layer %u", layer_index);
    if (rc == 0 && f->params.on_route)
        f->params.on_route(f->params.on_route_context, layer_index, f->step.n_tokens,
                           sl_moe_picked(f->moe));
    return rc;
}

/* The end of a step: its tokens have been seen, or its sequences are of no use any more. */
static int settle(const struct sl_forward *f, const struct sl_span *spans, uint32_t n_spans,
                  bool mtp, int rc)
{
    for (uint32_t s = 0; s < n_spans; s++) {
        struct sl_kv_cache *kv = spans[s].kv;

        if (rc < 0)
            kv->broken = true;
        else if (mtp)
            kv->n_mtp_tokens += spans[s].n_tokens;
        else
            kv->n_tokens += spans[s].n_tokens;
    }
    sl_pool_phase(f->params.compute->pool, SL_PHASE_OUTSIDE);
    return rc;
}

int sl_forward_step(struct sl_forward *f, const struct sl_span *spans, uint32_t n_spans,
                    sl_logits_fn *on_logits, void *context, struct sl_err *err)
{
    const struct sl_weights *weights = f->params.weights;
    const struct head head = {f, &weights->hc_head, weights->norm};
    int rc;

    rc = check_spans(f, spans, n_spans, false, err);
    if (rc < 0)
        return rc;
    sl_pool_phase(f->params.compute->pool, SL_PHASE_REST);
    set_tokens(f, spans, n_spans, false);
    if (f->params.prefetch != SL_PREFETCH_OFF)
        sl_moe_hint(f->moe, &f->step, weights->layers, f->params.source);
    sl_pool_run(f->params.compute->pool, f->step.n_tokens, 4, embed_tokens, f);
    for (uint32_t i = 0; i < f->params.config->num_hidden_layers && rc == 0; i++)
        rc = run_layer(f, i, err);
    if (rc == 0)
        rc = give_logits(&head, spans, n_spans, on_logits, context, err);
    return settle(f, spans, n_spans, false, rc);
}

/* ---- the MTP block -----------------------------------------------------------------------------
 */

/* The spans are those of the step before, and the MTP block has seen all that came before them. */
static void assert_follows_step(const struct sl_forward *f, const struct sl_span *spans,
                                uint32_t n_spans)
{
    for (uint32_t s = 0; s < n_spans; s++) {
        const struct sl_step_token *token = &f->tokens[f->span_first[s]];

        if (spans[s].n_tokens == 0)
            continue;
        sl_assert(token->kv == spans[s].kv);
        sl_assert(token->position == spans[s].kv->n_mtp_tokens);
        sl_assert(token[spans[s].n_tokens - 1].span_first == f->span_first[s]);
    }
}

/* Moves the streams that have a next token to the front, as the MTP step counts them. */
static void compact_streams(struct sl_forward *f, const struct sl_span *spans, uint32_t n_spans)
{
    const size_t size = (size_t)f->params.config->hc_mult * f->params.config->hidden_size;
    uint32_t n = 0;

    for (uint32_t s = 0; s < n_spans; s++) {
        if (n != f->span_first[s])
            memmove(f->step.streams + n * size, f->step.streams + f->span_first[s] * size,
                    spans[s].n_tokens * size * sizeof(float));
        n += spans[s].n_tokens;
    }
}

struct mtp_chunk {
    struct sl_forward *f;
    uint32_t first;
};

static void norm_mtp_inputs(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct mtp_chunk *chunk = context;
    struct sl_forward *f = chunk->f;
    const struct sl_compute *compute = f->params.compute;
    const struct sl_kernels *k = compute->kernels;
    const struct sl_mtp_weights *mtp = &f->params.weights->mtp;
    const size_t hidden = f->params.config->hidden_size, n = f->params.config->hc_mult;
    const float eps = f->params.config->rms_norm_eps;

    for (size_t row = first; row < end; row++) {
        float *e = f->mtp_e.f32 + row * hidden;

        embed(f, f->tokens[chunk->first + row].id, e);
        k->rms_norm(hidden, e, mtp->enorm, eps, e);
        sl_act_buffer_round(&f->mtp_e, compute, thread_index, row);
        for (size_t s = row * n; s < (row + 1) * n; s++) {
            k->rms_norm(hidden, f->step.streams + (chunk->first * n + s) * hidden, mtp->hnorm, eps,
                        f->mtp_h.f32 + s * hidden);
            sl_act_buffer_round(&f->mtp_h, compute, thread_index, s);
        }
    }
}

static void add_mtp_inputs(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct mtp_chunk *chunk = context;
    struct sl_forward *f = chunk->f;
    const size_t hidden = f->params.config->hidden_size, n = f->params.config->hc_mult;

    (void)thread_index;
    for (size_t s = first * n; s < end * n; s++)
        for (size_t c = 0; c < hidden; c++)
            f->step.streams[(chunk->first * n + s) * hidden + c] =
                f->mtp_e_out[s / n * hidden + c] + f->mtp_h_out[s * hidden + c];
}

/* streams = e_proj(enorm(embedding of the next token)) + h_proj(hnorm(stream)). */
static void set_mtp_streams(struct sl_forward *f)
{
    struct sl_pool *pool = f->params.compute->pool;
    const struct sl_mtp_weights *mtp = &f->params.weights->mtp;
    const size_t hidden = f->params.config->hidden_size, n = f->params.config->hc_mult;

    for (uint32_t first = 0; first < f->step.n_tokens; first += SL_CHUNK_TOKENS) {
        uint32_t rows =
            f->step.n_tokens - first < SL_CHUNK_TOKENS ? f->step.n_tokens - first : SL_CHUNK_TOKENS;
        struct mtp_chunk chunk = {f, first};
        struct sl_linear_job jobs[2] = {
            {&mtp->e_proj, sl_act_buffer_rows(&f->mtp_e, 0), f->mtp_e_out, hidden, rows, 0},
            {&mtp->h_proj, sl_act_buffer_rows(&f->mtp_h, 0), f->mtp_h_out, hidden, rows * n, 0}};

        sl_pool_phase(pool, SL_PHASE_HEAD);
        sl_pool_run(pool, rows, 1, norm_mtp_inputs, &chunk);
        sl_linear_run(f->params.compute, jobs, 2);
        sl_pool_run(pool, rows, 1, add_mtp_inputs, &chunk);
    }
}

int sl_forward_mtp(struct sl_forward *f, const struct sl_span *spans, uint32_t n_spans,
                   sl_logits_fn *on_logits, void *context, struct sl_err *err)
{
    const struct sl_weights *weights = f->params.weights;
    const struct head head = {f, &weights->mtp.hc_head, weights->mtp.norm};
    int rc;

    sl_assert(weights->has_mtp);
    rc = check_spans(f, spans, n_spans, true, err);
    if (rc < 0)
        return rc;
    assert_follows_step(f, spans, n_spans);
    sl_pool_phase(f->params.compute->pool, SL_PHASE_REST);
    compact_streams(f, spans, n_spans);
    set_tokens(f, spans, n_spans, true);
    if (f->step.n_tokens == 0)
        return settle(f, spans, n_spans, true, 0);
    set_mtp_streams(f);
    rc = run_layer(f, f->params.config->num_hidden_layers, err);
    if (rc == 0)
        rc = give_logits(&head, spans, n_spans, on_logits, context, err);
    return settle(f, spans, n_spans, true, rc);
}
