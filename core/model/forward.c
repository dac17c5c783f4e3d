/* A step from its beginning to its end: the setting up, the layers, and what becomes of the
 * sequences. Logits are core/model/forward_logits.c's, the MTP block core/model/mtp.c's, drafts of
 * DSpark core/model/forward_dspark.c's. */
#include "core/model/forward.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/model/forward_internal.h"
#include "core/model/rope.h"

/* ---- memory ------------------------------------------------------------------------------------
 */

static void carve(struct sl_forward *f, struct sl_arena *arena, const struct sl_config *c,
                  const struct sl_draft *draft, enum sl_numerics numerics, uint32_t n_threads)
{
    const uint64_t tokens = f->params.tokens_max, pairs = c->qk_rope_head_dim / 2;
    const bool mtp = draft->kind == SL_DRAFT_MTP;
    const uint32_t n_main = c->num_hidden_layers + (mtp ? 0 : draft->n_blocks);

    f->spans = sl_arena_take(arena, f->params.spans_max, sizeof(*f->spans));
    f->span_first = sl_arena_take(arena, f->params.spans_max, sizeof(*f->span_first));
    f->span_position = sl_arena_take(arena, f->params.spans_max, sizeof(*f->span_position));
    f->tokens = sl_arena_take(arena, tokens, sizeof(*f->tokens));
    f->step.streams = sl_arena_take(arena, tokens * c->hc_mult * c->hidden_size, sizeof(float));
    f->rollback[SL_FORWARD_MAIN] = sl_kv_rollback_carve(arena, c, numerics, 0, n_main,
                                                        f->params.tokens_max, f->params.spans_max);
    f->rollback[SL_FORWARD_MTP] =
        sl_kv_rollback_carve(arena, c, numerics, n_main, mtp ? draft->n_blocks : 0,
                             f->params.tokens_max, f->params.spans_max);
    f->window = sl_kv_window_carve(arena, f->params.spans_max);
    for (int kind = 0; kind < SL_ROPE_KINDS; kind++) {
        f->cosine[kind] = sl_arena_take(arena, tokens * pairs, sizeof(float));
        f->sine[kind] = sl_arena_take(arena, tokens * pairs, sizeof(float));
        f->frequency[kind] = sl_arena_take(arena, pairs, sizeof(float));
    }
    sl_forward_carve_logits(f, arena, c, numerics);
    if (mtp)
        sl_forward_carve_mtp(f, arena, c, numerics);
    sl_forward_carve_drafts(f, arena, c, draft, numerics);
    f->attention = sl_attention_carve(arena, c, numerics, n_threads, f->params.tokens_max,
                                      f->params.context_max);
    f->moe = sl_moe_carve(arena, c, numerics, f->params.tokens_max);
    if (draft->kind == SL_DRAFT_DSPARK)
        sl_forward_carve_dspark(f, arena, c, draft, numerics, n_threads);
}

uint64_t sl_forward_measure(const struct sl_config *config, const struct sl_draft *draft,
                            enum sl_numerics numerics, uint32_t n_threads, uint32_t tokens_max,
                            uint32_t context_max, uint32_t spans_max)
{
    static const struct sl_draft none = {.kind = SL_DRAFT_NONE};
    struct sl_forward forward = {
        .params = {.tokens_max = tokens_max, .context_max = context_max, .spans_max = spans_max}};
    struct sl_arena arena;

    sl_arena_init_measure(&arena);
    carve(&forward, &arena, config, draft ? draft : &none, numerics, n_threads);
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
    rc = sl_arena_reserve(
        &f->arena,
        sl_forward_measure(config, &params->weights->draft, params->compute->numerics, n_threads,
                           params->tokens_max, params->context_max, params->spans_max),
        "activations", err);
    if (rc < 0) {
        free(f);
        return rc;
    }
    carve(f, &f->arena, config, &params->weights->draft, params->compute->numerics, n_threads);
    f->step.config = config;
    f->step.compute = params->compute;
    f->step.tokens = f->tokens;
    f->rollback_tokens_max = sl_kv_rollback_tokens_max(config);
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
    if (forward->state == SL_FORWARD_OPEN)
        sl_forward_abandon(forward);
    sl_arena_fini(&forward->arena);
    free(forward);
}

const struct sl_arena *sl_forward_arena(const struct sl_forward *forward)
{
    return &forward->arena;
}

/* ---- setting up a step -------------------------------------------------------------------------
 */

static uint32_t seen(const struct sl_kv_cache *kv, enum sl_forward_part part)
{
    return part == SL_FORWARD_MTP ? kv->n_mtp_tokens : kv->n_tokens;
}

static int check_span(const struct sl_forward *f, const struct sl_span *span,
                      enum sl_forward_part part, struct sl_err *err)
{
    const uint32_t first = seen(span->kv, part), vocab_size = f->params.config->vocab_size;

    sl_assert(!span->kv->in_step);
    sl_assert(span->kv->capacity_tokens <= f->params.context_max);
    if (span->n_tokens > span->kv->capacity_tokens - first)
        return sl_err_set(err, -SL_EBUDGET,
                          "%llu tokens do not fit the KV cache, which was made for %u",
                          (unsigned long long)first + span->n_tokens, span->kv->capacity_tokens);
    for (uint32_t i = 0; i < span->n_tokens; i++)
        if (span->tokens[i] < 0 || (uint32_t)span->tokens[i] >= vocab_size)
            return sl_err_set(err, -SL_EFORMAT,
                              "token id %d (number %u) is outside the vocabulary of %u",
                              span->tokens[i], first + i, vocab_size);
    return 0;
}

static int check_request(const struct sl_forward *f, const struct sl_step_request *request,
                         enum sl_forward_part part, struct sl_err *err)
{
    uint64_t total = 0;
    int rc;

    sl_assert(request->n_spans <= f->params.spans_max);
    for (uint32_t s = 0; s < request->n_spans; s++) {
        rc = check_span(f, &request->spans[s], part, err);
        if (rc < 0)
            return rc;
        total += request->spans[s].n_tokens;
    }
    if (total > f->params.tokens_max)
        return sl_err_set(err, -SL_EBUDGET, "%llu tokens in one step, which was made for %u",
                          (unsigned long long)total, f->params.tokens_max);
    return 0;
}

/* Takes all that the pass will write to in the KV caches, and memory for what of them is on disk;
 * or nothing if the pool has too little. */
static int take_memory(struct sl_forward *f, const struct sl_step_request *request,
                       enum sl_forward_part part, struct sl_err *err)
{
    uint64_t needed_bytes = 0;
    int rc = 0;

    sl_kv_window_clear(&f->window);
    for (uint32_t s = 0; s < request->n_spans; s++) {
        const struct sl_span *span = &request->spans[s];

        sl_assert(span->kv->pool == request->spans[0].kv->pool);
        if (part == SL_FORWARD_MAIN)
            sl_kv_window_add(&f->window, span->kv);
        needed_bytes += sl_kv_cache_need(span->kv, seen(span->kv, part) + span->n_tokens);
    }
    needed_bytes += sl_kv_window_need(&f->window);
    if (needed_bytes > 0) {
        rc = sl_kv_pool_check(request->spans[0].kv->pool, needed_bytes,
                              "the next step of its sequences", err);
    }
    for (uint32_t s = 0; rc == 0 && s < request->n_spans; s++) {
        const struct sl_span *span = &request->spans[s];

        rc = sl_kv_cache_grow(span->kv, seen(span->kv, part) + span->n_tokens, err);
    }
    return rc < 0 ? rc : sl_kv_window_open(&f->window, err);
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

void sl_forward_set_angles(struct sl_forward *f)
{
    sl_pool_run(f->params.compute->pool, SL_PHASE_REST, f->step.n_tokens, 4, set_angles, f);
}

void sl_forward_set_tokens(struct sl_forward *f)
{
    uint32_t n = 0;

    for (uint32_t s = 0; s < f->request.n_spans; s++) {
        const struct sl_span *span = &f->spans[s];
        const uint32_t first = f->span_position[s];

        f->span_first[s] = n;
        for (uint32_t i = 0; i < span->n_tokens; i++) {
            f->tokens[n + i] = (struct sl_step_token){
                .kv = span->kv,
                .position = first + i,
                .span_first = n,
                .sees_first = f->part == SL_FORWARD_MTP ? span->kv->mtp_first : 0,
                .id = span->tokens[i]};
            if (f->part == SL_FORWARD_MAIN)
                *sl_kv_id(span->kv, first + i) = span->tokens[i];
        }
        n += span->n_tokens;
    }
    f->step.n_tokens = n;
    f->step.block_tokens = 0;
    sl_forward_set_angles(f);
}

/* Takes the sequences for the pass. */
static void take_sequences(struct sl_forward *f)
{
    struct sl_kv_rollback *rollback = &f->rollback[f->part];

    sl_kv_rollback_clear(&f->rollback[SL_FORWARD_MTP]);
    sl_kv_rollback_clear(rollback);
    for (uint32_t s = 0; s < f->request.n_spans; s++) {
        const struct sl_span *span = &f->spans[s];

        sl_assert(!span->kv->in_step); /* two spans of one sequence */
        span->kv->in_step = true;
        if (f->dspark && f->part == SL_FORWARD_MAIN) /* the stages see what the step does */
            sl_kv_cache_follow_on(span->kv, span->kv->n_tokens);
        f->span_position[s] = seen(span->kv, f->part);
        sl_kv_rollback_add(rollback, span->kv, f->span_position[s], span->n_tokens);
    }
}

int sl_forward_begin_part(struct sl_forward *f, const struct sl_step_request *request,
                          enum sl_forward_part part, struct sl_err *err)
{
    const uint32_t n_hidden = f->params.config->num_hidden_layers;
    const uint32_t n_stages = f->dspark ? f->params.weights->draft.n_blocks : 0;
    int rc;

    sl_assert(part == SL_FORWARD_MTP ? f->state == SL_FORWARD_STREAMS_LEFT
                                     : f->state != SL_FORWARD_OPEN);
    rc = check_request(f, request, part, err);
    if (rc == 0)
        rc = take_memory(f, request, part, err);
    if (rc < 0)
        return rc;
    f->state = SL_FORWARD_OPEN;
    f->part = part;
    f->saves_rows = f->sets_streams = true;
    f->request = *request;
    memmove(f->spans, request->spans, request->n_spans * sizeof(*f->spans));
    f->request.spans = f->spans;
    f->step.stop = request->stop;
    sl_pool_phase(f->params.compute->pool, SL_PHASE_REST);
    take_sequences(f);
    sl_forward_set_tokens(f);
    sl_forward_count_rows(f);
    if (f->dspark)
        sl_dspark_begin(f->dspark, &f->step);
    f->first_layer = f->next_layer = part == SL_FORWARD_MTP ? n_hidden : 0;
    f->end_layer = n_hidden + (part == SL_FORWARD_MTP ? f->step.n_tokens > 0 : n_stages);
    return 0;
}

/* Every stream of a token begins as its embedding. */
static int set_streams(struct sl_forward *f, struct sl_err *err)
{
    const struct sl_config *c = f->params.config;

    return sl_embedding_run(&f->params.weights->embedding, &f->step, 0, f->step.n_tokens,
                            f->step.streams, (size_t)c->hc_mult * c->hidden_size, c->hc_mult, err);
}

int sl_forward_begin(struct sl_forward *f, const struct sl_step_request *request,
                     struct sl_err *err)
{
    int rc;

    rc = sl_forward_begin_part(f, request, SL_FORWARD_MAIN, err);
    if (rc < 0)
        return rc;
    if (f->params.prefetch != SL_PREFETCH_OFF)
        sl_moe_prefetch(f->moe, &f->step, f->params.weights->layers, f->params.source);
    sl_pool_phase(f->params.compute->pool, SL_PHASE_OUTSIDE);
    return 0;
}

/* ---- the pass ----------------------------------------------------------------------------------
 */

static int run_in_layer(struct sl_forward *f, uint32_t layer_index,
                        const struct sl_layer_weights *layer, struct sl_err *err)
{
    const bool predict = f->params.prefetch >= SL_PREFETCH_AUTO &&
                         layer_index + 1 < f->params.config->num_hidden_layers;
    /* A layer that streams is predicted for never, though it may happen to be there: what is
     * prefetched should not depend on how fast the drives are. */
    const struct sl_layer_weights *next =
        predict ? sl_weights_resident(f->params.weights, layer_index + 1) : NULL;
    int rc;

    if (f->drafts.is_open && f->drafts.round == SL_ROUND_SEE)
        return sl_attention_see(f->attention, &f->step, layer_index, layer);
    rc = sl_kv_window_acquire(&f->window, layer_index, err);
    if (rc < 0)
        return rc;
    rc = sl_attention_run(f->attention, &f->step, layer_index, layer);
    sl_kv_window_release(&f->window);
    if (rc == 0)
        rc = sl_moe_run(f->moe, &f->step, layer_index, layer, next, f->params.source, err);
    if (rc == -ECANCELED)
        return sl_err_set(err, rc, "stopped in layer %u", layer_index);
    if (rc == 0 && f->dspark && f->part == SL_FORWARD_MAIN)
        sl_dspark_note(f->dspark, &f->step, layer_index);
    if (rc == 0 && f->request.on_route)
        f->request.on_route(f->request.on_route_context, layer_index, f->step.n_tokens,
                            sl_moe_picked(f->moe));
    return rc;
}

static int run_layer(struct sl_forward *f, uint32_t layer_index, struct sl_err *err)
{
    const struct sl_layer_weights *layer;
    int rc = 0;

    if (f->part < SL_FORWARD_PARTS && f->saves_rows)
        sl_kv_rollback_save(&f->rollback[f->part]);
    if (layer_index == f->first_layer && f->sets_streams)
        rc = f->part == SL_FORWARD_MTP ? sl_forward_set_mtp_streams(f, err) : set_streams(f, err);
    if (rc < 0 || (rc = sl_weights_acquire(f->params.weights, layer_index, &layer, err)) < 0)
        return rc;
    if (f->part == SL_FORWARD_MAIN && layer_index >= f->params.config->num_hidden_layers)
        sl_dspark_fill(f->dspark, &f->step, layer_index, layer, &f->params.weights->dspark);
    else
        rc = run_in_layer(f, layer_index, layer, err);
    sl_weights_release(f->params.weights, layer_index);
    return rc;
}

void sl_forward_background(struct sl_forward *f)
{
    sl_kv_window_background(&f->window);
}

static bool has_more(const struct sl_forward *f)
{
    return f->next_layer < f->end_layer || f->n_rows_left > 0;
}

int sl_forward_advance(struct sl_forward *f, struct sl_err *err)
{
    struct sl_pool *pool = f->params.compute->pool;
    int rc = 0;

    sl_assert(f->state == SL_FORWARD_OPEN);
    sl_pool_phase(pool, SL_PHASE_REST);
    if (f->next_layer < f->end_layer)
        rc = run_layer(f, f->next_layer++, err);
    else if (f->n_rows_left > 0)
        rc = f->part == SL_FORWARD_DSPARK ? sl_forward_give_dspark(f, err)
                                          : sl_forward_give_rows(f, err);
    if (rc < 0)
        sl_forward_abandon(f);
    else if (f->drafts.is_open && !has_more(f))
        sl_forward_next_round(f);
    sl_pool_phase(pool, SL_PHASE_OUTSIDE);
    return rc < 0 ? rc : has_more(f);
}

int sl_forward_finish(struct sl_forward *f, struct sl_err *err)
{
    int rc;

    do
        rc = sl_forward_advance(f, err);
    while (rc > 0);
    if (rc == 0)
        sl_forward_end(f, NULL);
    return rc;
}

int sl_forward_step(struct sl_forward *f, const struct sl_step_request *request, struct sl_err *err)
{
    int rc = sl_forward_begin(f, request, err);

    return rc < 0 ? rc : sl_forward_finish(f, err);
}

/* ---- what becomes of the sequences -------------------------------------------------------------
 */

/* Sets how far a span's sequence has come, and lets go of it. DSpark's stages come along. */
static void let_go_of(const struct sl_forward *f, const struct sl_kv_rollback_span *span,
                      enum sl_forward_part part)
{
    if (part == SL_FORWARD_MAIN)
        span->kv->n_tokens = span->first + span->n_kept;
    if (part == SL_FORWARD_MTP || f->dspark)
        span->kv->n_mtp_tokens = span->first + span->n_kept;
    span->kv->in_step = false;
}

static void let_go(struct sl_forward *f, enum sl_forward_part part)
{
    const struct sl_kv_rollback *rollback = &f->rollback[part];

    sl_kv_window_close(&f->window);
    for (uint32_t s = 0; s < rollback->n_spans; s++)
        let_go_of(f, &rollback->spans[s], part);
}

/* Ends a pass that writes. */
static void end_part(struct sl_forward *f, const uint32_t *n_kept)
{
    struct sl_kv_rollback *rollback = &f->rollback[f->part];
    bool all = true;

    for (uint32_t s = 0; s < rollback->n_spans; s++) {
        struct sl_kv_rollback_span *span = &rollback->spans[s];

        span->n_kept = n_kept ? n_kept[s] : span->n_tokens;
        if (span->n_kept == span->n_tokens)
            continue;
        sl_assert(span->n_kept < span->n_tokens);
        sl_assert(span->n_kept == 0 || span->n_tokens <= f->rollback_tokens_max);
        all = false;
    }
    sl_forward_end_drafts(f);
    if (!all)
        sl_kv_rollback_restore(rollback);
    let_go(f, f->part);
    f->state = f->part == SL_FORWARD_MTP ? SL_FORWARD_STREAMS_USED : SL_FORWARD_STREAMS_LEFT;
}

void sl_forward_close_gap(struct sl_forward *f, uint32_t first, uint32_t end)
{
    const size_t size = (size_t)f->params.config->hc_mult * f->params.config->hidden_size;

    memmove(f->step.streams + first * size, f->step.streams + end * size,
            (f->step.n_tokens - end) * size * sizeof(float));
}

/* From a pass that writes. */
static void drop_span(struct sl_forward *f, uint32_t span_index)
{
    struct sl_kv_rollback *rollback = &f->rollback[f->part];
    struct sl_span *span = &f->spans[span_index];
    struct sl_expert_source *source = f->params.source;
    const uint32_t first = f->span_first[span_index];

    sl_assert(span_index < f->request.n_spans && f->request.n_spans > 1);
    sl_kv_window_drop(&f->window, span->kv);
    sl_kv_rollback_restore_span(rollback, span_index);
    let_go_of(f, &rollback->spans[span_index], f->part);
    sl_kv_rollback_remove(rollback, span_index);
    if (f->part == SL_FORWARD_MTP)
        sl_kv_rollback_remove(&f->rollback[SL_FORWARD_MAIN], span_index);
    sl_forward_drop_rows(f, span_index);
    sl_forward_close_gap(f, first, first + span->n_tokens);
    if (f->dspark)
        sl_dspark_drop(f->dspark, &f->step, first, first + span->n_tokens);
    f->request.n_spans--;
    memmove(span, span + 1, (f->request.n_spans - span_index) * sizeof(*span));
    memmove(&f->span_position[span_index], &f->span_position[span_index + 1],
            (f->request.n_spans - span_index) * sizeof(*f->span_position));
    sl_forward_set_tokens(f);
    if (f->step.n_tokens == 0) /* a pass of the MTP block, with nothing left to see */
        f->next_layer = f->end_layer;
    /* Some of what was prefetched for the hash-routed layers will not be demanded. */
    if (f->next_layer < f->params.config->num_hash_layers && source->ops->forget)
        source->ops->forget(source);
}

/* Rows of a step are computed each by itself, so the others' go on where they are moved to. Nothing
 * but the streams, and what DSpark keeps of them, lasts from one layer to the next; angles are
 * computed anew. */
void sl_forward_drop(struct sl_forward *f, uint32_t span_index)
{
    struct sl_pool *pool = f->params.compute->pool;

    sl_assert(f->state == SL_FORWARD_OPEN && !f->drafts.is_open);
    sl_pool_phase(pool, SL_PHASE_REST);
    if (f->part == SL_FORWARD_DSPARK)
        sl_forward_drop_block(f, span_index);
    else
        drop_span(f, span_index);
    sl_pool_phase(pool, SL_PHASE_OUTSIDE);
}

void sl_forward_end(struct sl_forward *f, const uint32_t *n_kept)
{
    sl_assert(f->state == SL_FORWARD_OPEN && !has_more(f));
    if (f->part == SL_FORWARD_DSPARK)
        sl_forward_end_dspark(f);
    else
        end_part(f, n_kept);
}

/* Puts the sequences of a part's latest pass back to before it. */
static void roll_back_part(struct sl_forward *f, enum sl_forward_part part)
{
    struct sl_kv_rollback *rollback = &f->rollback[part];

    for (uint32_t s = 0; s < rollback->n_spans; s++)
        rollback->spans[s].n_kept = 0;
    sl_kv_rollback_restore(rollback);
    let_go(f, part);
    sl_kv_rollback_clear(rollback);
}

void sl_forward_abandon(struct sl_forward *f)
{
    struct sl_expert_source *source = f->params.source;

    sl_assert(f->state == SL_FORWARD_OPEN);
    sl_forward_end_drafts(f);
    if (source->ops->forget)
        source->ops->forget(source);
    if (f->part == SL_FORWARD_DSPARK) {
        sl_forward_end_dspark(f);
        return;
    }
    roll_back_part(f, f->part);
    f->state = f->part == SL_FORWARD_MTP ? SL_FORWARD_STREAMS_USED : SL_FORWARD_IDLE;
}

void sl_forward_rollback(struct sl_forward *f)
{
    sl_assert(f->state == SL_FORWARD_STREAMS_LEFT || f->state == SL_FORWARD_STREAMS_USED);
    for (int part = SL_FORWARD_PARTS; part-- > 0;) {
        const struct sl_kv_rollback *rollback = &f->rollback[part];

        for (uint32_t s = 0; s < rollback->n_spans; s++) {
            const struct sl_kv_rollback_span *span = &rollback->spans[s];

            sl_assert(!span->kv->in_step);
            sl_assert(seen(span->kv, (enum sl_forward_part)part) == span->first + span->n_kept);
        }
        roll_back_part(f, (enum sl_forward_part)part);
    }
    f->state = SL_FORWARD_IDLE;
}
