#include "daemon/engine/shared_step.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "daemon/engine/engine_internal.h"
#include "daemon/engine/step_shares.h"

/* A generation's part of the step. */
struct part {
    struct sl_generation *generation;
    int rc; /* result of sampling its token */
    struct sl_err err;
};

struct sl_shared_step {
    struct sl_engine *engine;
    struct sl_forward *forward;
    uint32_t tokens_max, parts_max;
    bool is_open;

    struct sl_span *spans; /* (parts_max), and below */
    struct part *parts;    /* of each span */
    uint32_t *n_tokens;    /* of each part; after the step, how many of them are kept */
    uint32_t n_parts;
    const struct sl_logits_row *rows; /* being sampled */
};

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
    if (!step || !step->spans || !step->parts || !step->n_tokens) {
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
    if (step->is_open)
        sl_shared_step_abandon(step);
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
        struct part *part = &step->parts[step->rows[i].span_index];

        part->rc =
            sl_generation_take_logits(part->generation, step->rows[i].logits, scratch, &part->err);
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
    step->is_open = false;
    for (uint32_t i = 0; i < step->n_parts; i++)
        sl_generation_step_ended(step->parts[i].generation, rc < 0 ? rc : step->parts[i].rc);
}

/* Begins the step with the parts that were chosen. */
static int begin(struct sl_shared_step *step, const struct sl_step_request *hooks,
                 struct sl_err *err)
{
    struct sl_step_request request = *hooks;
    int rc;

    for (uint32_t i = 0; i < step->n_parts; i++)
        step->spans[i] = sl_generation_next_span(step->parts[i].generation, step->n_tokens[i]);
    request.spans = step->spans;
    request.n_spans = step->n_parts;
    request.on_logits = on_logits;
    request.on_logits_context = step;
    step->is_open = true;
    rc = sl_forward_begin(step->forward, &request, err);
    if (rc < 0)
        tell_generations(step, rc);
    return rc;
}

int sl_shared_step_begin(struct sl_shared_step *step, struct sl_generation *const *generations,
                         uint32_t n, const struct sl_step_request *hooks, struct sl_err *err)
{
    sl_assert(!step->is_open);
    choose_parts(step, generations, n);
    return begin(step, hooks, err);
}

int sl_shared_step_begin_with(struct sl_shared_step *step, struct sl_generation *const *generations,
                              const uint32_t *n_tokens, uint32_t n,
                              const struct sl_step_request *hooks, struct sl_err *err)
{
    sl_assert(!step->is_open && n >= 1 && n <= step->parts_max);
    for (uint32_t i = 0; i < n; i++) {
        step->parts[i] = (struct part){.generation = generations[i]};
        step->n_tokens[i] = n_tokens[i];
    }
    step->n_parts = n;
    return begin(step, hooks, err);
}

static int end(struct sl_shared_step *step, struct sl_err *err)
{
    int rc = 0;

    for (uint32_t i = 0; i < step->n_parts; i++) {
        const struct part *part = &step->parts[i];

        if (part->rc == 0)
            continue;
        step->n_tokens[i] = 0;
        if (rc == 0 && err)
            *err = part->err;
        rc = rc == 0 ? part->rc : rc;
    }
    sl_forward_end(step->forward, step->n_tokens);
    tell_generations(step, 0);
    return rc;
}

int sl_shared_step_advance(struct sl_shared_step *step, struct sl_err *err)
{
    int rc;

    sl_assert(step->is_open);
    rc = sl_forward_advance(step->forward, err);
    if (rc < 0)
        tell_generations(step, rc);
    return rc == 0 ? end(step, err) : rc;
}

bool sl_shared_step_drop(struct sl_shared_step *step, const struct sl_generation *generation)
{
    uint32_t i = 0, n_behind;

    if (!step->is_open || step->n_parts == 1)
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
    step->n_parts--;
    return true;
}

void sl_shared_step_abandon(struct sl_shared_step *step)
{
    sl_assert(step->is_open);
    sl_forward_abandon(step->forward);
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
