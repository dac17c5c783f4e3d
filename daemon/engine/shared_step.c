#include "daemon/engine/shared_step.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/clock.h"
#include "daemon/engine/draft_depth.h"
#include "daemon/engine/engine_internal.h"
#include "daemon/engine/step_shares.h"

/* A generation's part of the step. */
struct part {
    struct sl_generation *generation;
    uint32_t n_drafts; /* guesses that its span carries, */
    bool is_cut;       /* and the next one was not worth its row, */
    uint32_t n_asked;  /* of so many that were asked for */
    int rc;            /* result of sampling its first token */
    struct sl_err err;
};

enum phase { CLOSED, STEPPING, GUESSING };

struct sl_shared_step {
    struct sl_engine *engine;
    struct sl_forward *forward;
    uint32_t tokens_max, parts_max;
    enum phase phase;
    struct sl_step_request hooks;

    struct sl_span *spans; /* (parts_max), and below */
    struct part *parts;    /* of each span */
    uint32_t *n_tokens;    /* of each part; after the step, how many of them are kept */
    uint32_t n_parts;
    const struct sl_logits_row *rows; /* being sampled */

    /* With drafts. */
    struct sl_draft_depth depth;
    struct sl_draft_sample sample; /* of the open step */
    uint32_t window;               /* tokens that a draft sees at most of a prompt */
    uint32_t n_asked;              /* guesses that the latest pass was to make of a text, */
    float chance_min;              /* but for those that are less likely to be right, */
    uint64_t pass_ns_max;          /* and if it did not take longer */
    struct sl_draft_span *seen;    /* (parts_max) of the parts that a draft sees */
    uint32_t *seen_part;           /* (parts_max) which part each is */
    int32_t *followers;            /* (parts_max, window) */
    int32_t *guesses;              /* of the rows being sampled */
};

/* The share of a step's time that a draft's pass takes at most if its rows share nothing: it has so
 * many rows of a text in so many of the layers. */
static double pass_share(const struct sl_engine *engine)
{
    const struct sl_config *c = &engine->config;
    const uint32_t n_rows = engine->draft.kind == SL_DRAFT_DSPARK ? c->dspark.block_size : 1;

    return (double)n_rows * engine->draft.n_blocks / c->num_hidden_layers;
}

/* Returns false when out of memory. */
static bool make_drafting(struct sl_shared_step *step)
{
    const uint32_t n_max = sl_engine_drafts_max(step->engine);

    if (n_max == 0)
        return true;
    sl_draft_depth_init(&step->depth, n_max, sl_engine_drafts_are_chosen(step->engine),
                        pass_share(step->engine));
    step->window = step->engine->config.sliding_window;
    step->seen = calloc(step->parts_max, sizeof(*step->seen));
    step->seen_part = calloc(step->parts_max, sizeof(*step->seen_part));
    step->followers = calloc((size_t)step->parts_max * step->window, sizeof(*step->followers));
    return step->seen && step->seen_part && step->followers;
}

int sl_shared_step_create(struct sl_shared_step **ret_step, struct sl_engine *engine,
                          enum sl_step_size size, struct sl_err *err)
{
    struct sl_shared_step *step = calloc(1, sizeof(*step));

    if (step) {
        step->engine = engine;
        step->forward = sl_engine_forward(engine, size);
        sl_assert(step->forward);
        step->tokens_max = sl_engine_step_tokens_max(engine, size);
        step->parts_max = sl_engine_spans_max(engine);
        step->spans = calloc(step->parts_max, sizeof(*step->spans));
        step->parts = calloc(step->parts_max, sizeof(*step->parts));
        step->n_tokens = calloc(step->parts_max, sizeof(*step->n_tokens));
    }
    if (!step || !step->spans || !step->parts || !step->n_tokens || !make_drafting(step)) {
        sl_shared_step_destroy(step);
        return sl_err_set(err, -ENOMEM, "list of generations: out of memory");
    }
    *ret_step = step;
    return 0;
}

void sl_shared_step_destroy(struct sl_shared_step *step)
{
    if (!step)
        return;
    if (step->phase != CLOSED)
        sl_shared_step_abandon(step);
    free(step->seen);
    free(step->seen_part);
    free(step->followers);
    free(step->spans);
    free(step->parts);
    free(step->n_tokens);
    free(step);
}

/* ---- sampling ----------------------------------------------------------------------------------
 */

/* A pool job; its items are the rows of a group of logits. */
static void sample_rows(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct sl_shared_step *step = context;
    struct sl_candidate *scratch = step->engine->sampling[thread_index];

    for (size_t i = first; i < end; i++) {
        const struct sl_logits_row *row = &step->rows[i];
        struct part *part = &step->parts[row->span_index];
        const bool is_first =
            row->token_index + part->n_drafts + 1 == step->spans[row->span_index].n_tokens;
        int rc = sl_generation_take_logits(part->generation, row->token_index, row->logits, scratch,
                                           is_first ? &part->err : NULL);

        if (is_first)
            part->rc = rc;
    }
}

static void on_logits(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    struct sl_shared_step *step = context;

    step->rows = rows;
    sl_pool_run(step->engine->pool, SL_PHASE_OUTSIDE, n_rows, 1, sample_rows, step);
}

/* ---- the step ----------------------------------------------------------------------------------
 */

/* Chooses which generations take part, and with how many tokens. */
static void choose_parts(struct sl_shared_step *step, struct sl_generation *const *generations,
                         uint32_t n)
{
    uint32_t n_parts = 0;

    for (uint32_t i = 0; i < n && n_parts < step->parts_max && n_parts < step->tokens_max; i++) {
        const uint32_t n_left = sl_generation_tokens_left(generations[i]);

        if (n_left == 0)
            continue;
        step->parts[n_parts] = (struct part){.generation = generations[i]};
        step->n_tokens[n_parts++] = n_left;
    }
    sl_assert(n_parts > 0);
    step->n_parts = n_parts;
    sl_step_shares(step->n_tokens, n_parts, step->tokens_max);
}

/* Tells the generations that the step is over: it has failed for all, or for those whose logits
 * allowed no choice. */
static void tell_generations(struct sl_shared_step *step, int rc)
{
    step->phase = CLOSED;
    for (uint32_t i = 0; i < step->n_parts; i++)
        sl_generation_step_ended(step->parts[i].generation, rc < 0 ? rc : step->parts[i].rc);
}

/* ---- guesses that the step carries -------------------------------------------------------------
 */

static bool have_pages(const struct sl_shared_step *step)
{
    uint64_t needed_bytes = 0;

    for (uint32_t i = 0; i < step->n_parts; i++) {
        const struct sl_kv_cache *kv = sl_generation_sequence(step->parts[i].generation);

        needed_bytes +=
            sl_kv_cache_need(kv, kv->n_tokens + step->n_tokens[i] + step->parts[i].n_drafts);
    }
    return needed_bytes <= sl_kv_pool_left_bytes(&step->engine->kv_pool);
}

static void drop_drafts(struct sl_shared_step *step)
{
    step->sample.n_tried = 0;
    for (uint32_t i = 0; i < step->n_parts; i++)
        step->parts[i].n_drafts = 0;
}

/* Guesses go into rows that nobody else needs, and into pages that are free: they are not worth
 * somebody else's. */
static void choose_drafts(struct sl_shared_step *step)
{
    uint32_t n_rows = 0, n_ready = 0, depth, spare;

    step->sample = (struct sl_draft_sample){0};
    for (uint32_t i = 0; i < step->n_parts; i++) {
        step->parts[i].n_drafts = 0;
        n_rows += step->n_tokens[i];
        n_ready += sl_generation_draft_count(step->parts[i].generation) > 0;
    }
    step->sample.n_rows = n_rows;
    if (step->window == 0)
        return;
    spare = step->tokens_max - n_rows;
    depth = n_ready > 0 ? sl_draft_depth_choose(&step->depth, n_rows, n_ready) : 0;
    for (uint32_t i = 0; i < step->n_parts; i++) {
        struct part *part = &step->parts[i];
        const uint32_t n = sl_generation_draft_count(part->generation);

        part->n_drafts = n < depth ? n : depth;
        part->n_drafts = part->n_drafts < spare ? part->n_drafts : spare;
        part->is_cut = step->chance_min > 0 && step->n_tokens[i] == 1 && part->n_drafts == n &&
                       n < step->n_asked;
        part->n_asked = step->n_asked;
        spare -= part->n_drafts;
        step->sample.n_tried += part->n_drafts;
    }
    if (step->sample.n_tried > 0 && !have_pages(step))
        drop_drafts(step);
}

/* Begins the step with the parts that were chosen. */
static int begin_forward(struct sl_shared_step *step, struct sl_err *err)
{
    struct sl_step_request request = step->hooks;
    int rc;

    for (uint32_t i = 0; i < step->n_parts; i++)
        step->spans[i] = sl_generation_next_span(step->parts[i].generation, step->n_tokens[i],
                                                 step->parts[i].n_drafts);
    request.spans = step->spans;
    request.n_spans = step->n_parts;
    request.on_logits = on_logits;
    request.on_logits_context = step;
    step->phase = STEPPING;
    rc = sl_forward_begin(step->forward, &request, err);
    if (rc < 0)
        tell_generations(step, rc);
    return rc;
}

static int begin(struct sl_shared_step *step, const struct sl_step_request *hooks,
                 struct sl_err *err)
{
    const uint64_t start_ns = sl_clock_ns();
    int rc;

    step->hooks = *hooks;
    choose_drafts(step);
    rc = begin_forward(step, err);
    step->sample.step_ns = sl_clock_ns() - start_ns;
    return rc;
}

int sl_shared_step_begin(struct sl_shared_step *step, struct sl_generation *const *generations,
                         uint32_t n, const struct sl_step_request *hooks, struct sl_err *err)
{
    sl_assert(step->phase == CLOSED);
    choose_parts(step, generations, n);
    return begin(step, hooks, err);
}

int sl_shared_step_begin_with(struct sl_shared_step *step, struct sl_generation *const *generations,
                              const uint32_t *n_tokens, uint32_t n,
                              const struct sl_step_request *hooks, struct sl_err *err)
{
    sl_assert(step->phase == CLOSED && n >= 1 && n <= step->parts_max);
    for (uint32_t i = 0; i < n; i++) {
        step->parts[i] = (struct part){.generation = generations[i]};
        step->n_tokens[i] = n_tokens[i];
    }
    step->n_parts = n;
    return begin(step, hooks, err);
}

/* A step that carries guesses must not fail a text that would not fail without: it is begun again
 * without them. Returns 1 where it goes on. */
static int fail(struct sl_shared_step *step, int rc, struct sl_err *err)
{
    const bool again = rc != -ECANCELED && step->sample.n_tried > 0;

    tell_generations(step, rc);
    if (!again)
        return rc;
    drop_drafts(step);
    for (uint32_t i = 0; i < step->n_parts; i++)
        step->parts[i].rc = 0;
    rc = begin_forward(step, err);
    return rc < 0 ? rc : 1;
}

/* ---- the draft's pass --------------------------------------------------------------------------
 */

/* A pool job; its items are rows of the draft's logits. */
static void guess_rows(void *context, size_t first, size_t end, uint32_t thread_index)
{
    const struct sl_shared_step *step = context;
    struct sl_candidate *scratch = step->engine->sampling[thread_index];

    for (size_t i = first; i < end; i++) {
        const struct part *part = &step->parts[step->seen_part[step->rows[i].span_index]];

        step->guesses[i] = sl_generation_guess(part->generation, step->rows[i].logits, scratch);
    }
}

static void on_drafts(void *context, const struct sl_logits_row *rows, uint32_t n_rows,
                      int32_t *ret_ids)
{
    struct sl_shared_step *step = context;

    step->rows = rows;
    step->guesses = ret_ids;
    sl_pool_run(step->engine->pool, SL_PHASE_OUTSIDE, n_rows, 1, guess_rows, step);
}

/* Begins the pass in which the draft sees what the step has added, and guesses on. Returns 1, or 0
 * where there is nothing to see or it cannot begin: then it will begin anew some time. */
static int begin_guessing(struct sl_shared_step *step)
{
    struct sl_draft_request request = {.spans = step->seen,
                                       .stop = step->hooks.stop,
                                       .on_drafts = on_drafts,
                                       .on_drafts_context = step};
    const uint32_t depth = sl_draft_depth_wanted(&step->depth, step->n_parts);

    step->n_asked = 0;
    step->chance_min = 0;
    if (depth != SL_DRAFT_BLIND && step->engine->draft.kind == SL_DRAFT_DSPARK)
        step->chance_min = (float)sl_draft_depth_chance_min(&step->depth, depth, step->n_parts);
    for (uint32_t i = 0; depth != SL_DRAFT_BLIND && i < step->n_parts; i++) {
        const struct part *part = &step->parts[i];
        int32_t *next = step->followers + (size_t)request.n_spans * step->window;
        const uint32_t n_seen =
            part->rc < 0 ? 0 : sl_generation_followers(part->generation, step->window, next);
        const uint32_t n_max = n_seen > 0 ? sl_generation_drafts_max(part->generation) : 0;

        if (n_seen == 0)
            continue;
        step->seen_part[request.n_spans] = i;
        step->seen[request.n_spans++] =
            (struct sl_draft_span){.span_index = i,
                                   .next = next,
                                   .n_seen = n_seen,
                                   .n_drafts = depth < n_max ? depth : n_max,
                                   .chance_min = step->chance_min};
        step->sample.n_guessing += n_max > 0;
    }
    if (request.n_spans == 0 || sl_forward_begin_drafts(step->forward, &request, NULL) < 0)
        return 0;
    step->sample.depth_wanted = step->n_asked = depth;
    step->pass_ns_max = sl_draft_depth_pass_ns_max(&step->depth, depth, step->sample.n_guessing);
    step->phase = GUESSING;
    return 1;
}

static void note_drafts(struct sl_shared_step *step)
{
    for (uint32_t i = 0; i < step->n_parts; i++) {
        const uint32_t n_tried = step->parts[i].n_drafts;
        const uint32_t n_right = sl_generation_drafts_right(step->parts[i].generation);

        step->sample.n_made += sl_generation_output_count(step->parts[i].generation);
        step->sample.n_texts += sl_generation_output_count(step->parts[i].generation) > 0;
        for (uint32_t d = 0; d < n_tried && d <= n_right; d++) {
            step->sample.tried[d]++;
            step->sample.right[d] += d < n_right;
        }
        /* A guess that was not worth its row makes no token either: the depth is judged by both. */
        if (step->parts[i].is_cut && n_right == n_tried && n_tried < SL_DRAFT_DEPTH_MAX)
            step->sample.tried[n_tried]++;
        for (uint32_t d = 0; d < n_tried; d++)
            step->sample.carried[d]++;
        for (uint32_t d = n_tried; step->parts[i].is_cut && d < step->parts[i].n_asked; d++)
            step->sample.left_out[d]++;
    }
}

/* The step is through: tokens are made, and what was guessed wrong is taken back. Returns 1 where
 * the draft has its turn now. */
static int settle(struct sl_shared_step *step)
{
    for (uint32_t i = 0; i < step->n_parts; i++)
        step->n_tokens[i] = sl_generation_settle(step->parts[i].generation);
    sl_forward_end(step->forward, step->n_tokens);
    if (step->window == 0)
        return 0;
    note_drafts(step);
    return begin_guessing(step);
}

/* All is over. Fails as the first part did whose logits allowed no choice. */
static int end(struct sl_shared_step *step, struct sl_err *err)
{
    int rc = 0;

    for (uint32_t i = 0; rc == 0 && i < step->n_parts; i++) {
        rc = step->parts[i].rc;
        if (rc < 0 && err)
            *err = step->parts[i].err;
    }
    if (step->window > 0)
        sl_draft_depth_add(&step->depth, &step->sample);
    tell_generations(step, 0);
    return rc;
}

static int advance_guessing(struct sl_shared_step *step, struct sl_err *err)
{
    const uint64_t start_ns = sl_clock_ns();
    int rc = sl_forward_advance(step->forward, NULL);

    if (rc == 0)
        sl_forward_end(step->forward, NULL);
    step->sample.draft_ns += sl_clock_ns() - start_ns;
    step->sample.is_cut = rc > 0 && step->sample.draft_ns > step->pass_ns_max;
    if (step->sample.is_cut)
        sl_forward_abandon(step->forward);
    else if (rc > 0)
        return 1;
    return end(step, err); /* a draft that fails or is given up has missed the step, no more */
}

int sl_shared_step_advance(struct sl_shared_step *step, struct sl_err *err)
{
    const uint64_t start_ns = sl_clock_ns();
    int rc;

    sl_assert(step->phase != CLOSED);
    if (step->phase == GUESSING)
        return advance_guessing(step, err);
    rc = sl_forward_advance(step->forward, err);
    if (rc < 0)
        return fail(step, rc, err);
    step->sample.step_ns += sl_clock_ns() - start_ns;
    if (rc > 0)
        return rc;
    return settle(step) > 0 ? 1 : end(step, err);
}

bool sl_shared_step_drop(struct sl_shared_step *step, const struct sl_generation *generation)
{
    uint32_t i = 0, n_behind;

    if (step->phase != STEPPING || step->n_parts == 1)
        return false;
    while (i < step->n_parts && step->parts[i].generation != generation)
        i++;
    if (i == step->n_parts)
        return false;
    n_behind = step->n_parts - i - 1;
    sl_forward_drop(step->forward, i);
    sl_generation_step_ended(step->parts[i].generation, -ECANCELED);
    memmove(&step->parts[i], &step->parts[i + 1], n_behind * sizeof(*step->parts));
    memmove(&step->n_tokens[i], &step->n_tokens[i + 1], n_behind * sizeof(*step->n_tokens));
    memmove(&step->spans[i], &step->spans[i + 1], n_behind * sizeof(*step->spans));
    step->n_parts--;
    return true;
}

uint32_t sl_shared_step_draft_count(const struct sl_shared_step *step)
{
    return step->sample.n_tried;
}

void sl_shared_step_abandon(struct sl_shared_step *step)
{
    sl_assert(step->phase != CLOSED);
    sl_forward_abandon(step->forward);
    if (step->phase == GUESSING)
        end(step, NULL);
    else
        tell_generations(step, -ECANCELED);
}

int sl_shared_step_run(struct sl_shared_step *step, struct sl_generation *const *generations,
                       uint32_t n, const struct sl_step_request *hooks, struct sl_err *err)
{
    int rc = sl_shared_step_begin(step, generations, n, hooks, err);

    if (rc < 0)
        return rc;
    do
        rc = sl_shared_step_advance(step, err);
    while (rc > 0);
    return rc;
}
