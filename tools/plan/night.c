#include "tools/plan/night.h"

#include <errno.h>
#include <stdlib.h>

#include "core/base/assert.h"
#include "daemon/scheduler/scheduler.h"
#include "daemon/scheduler/step_balance.h"

struct item {
    struct sl_job job;           /* first */
    uint32_t n_prompt, n_answer; /* to do */
    uint32_t n_shared;           /* that the item before knows, when it has come so far */
    uint32_t n_past;
};

struct run {
    const struct sl_night_case *what;
    struct sl_scheduler scheduler;
    struct sl_step_balance balance;
    struct item *items;          /* (n_documents) */
    struct sl_part *parts;       /* (n_at_once) of the step */
    struct sl_cost_part *others; /* (n_at_once) prompts of the step */
};

static struct item *item_of(struct sl_job *job)
{
    return (struct item *)(void *)job;
}

/* Predicts a step: those that decode are taken for alike, as long as they are on average. */
static struct sl_cost predict(struct run *run, uint32_t n_parts, uint32_t *ret_n_rows)
{
    const struct sl_night_case *what = run->what;
    struct sl_cost_case step = {
        .n_tokens = 1, .streamed_bytes = what->streamed_bytes, .even = what->even};
    uint64_t n_past = 0;
    struct sl_cost cost;

    *ret_n_rows = 0;
    step.others = run->others;
    for (uint32_t i = 0; i < n_parts; i++) {
        const struct item *item = item_of(run->parts[i].job);

        *ret_n_rows += run->parts[i].n_tokens;
        if (item->n_prompt > 0) {
            run->others[step.n_others++] =
                (struct sl_cost_part){1, run->parts[i].n_tokens, item->n_past};
            continue;
        }
        step.n_sequences++;
        n_past += item->n_past;
    }
    if (step.n_sequences > 0)
        step.past_tokens = (uint32_t)(n_past / step.n_sequences);
    step.hit_rate = sl_cost_found(what->config, what->n_slots, *ret_n_rows, what->even);
    sl_cost_predict(what->config, what->dense, &step, what->speeds, &cost);
    return cost;
}

/* The step is over, and this was the document's part of it. */
static void go_on(struct run *run, struct item *item, uint32_t n_tokens, struct sl_night *night)
{
    item->n_past += n_tokens;
    if (item->n_prompt > 0) {
        night->n_prompt_tokens += n_tokens;
        item->n_prompt -= n_tokens;
        if (item->n_prompt > 0) {
            sl_scheduler_set_left(&run->scheduler, &item->job, item->n_prompt, false);
            return;
        }
    }
    night->n_answer_tokens++;
    if (--item->n_answer > 0) {
        sl_scheduler_set_left(&run->scheduler, &item->job, 1, true);
        return;
    }
    sl_scheduler_remove(&run->scheduler, &item->job);
    night->n_documents++;
}

static void count_step(struct run *run, const struct sl_cost *cost, uint32_t n_rows,
                       struct sl_night *night)
{
    const struct sl_balance_sample sample = {
        .n_rows = n_rows,
        .elapsed_ns = (uint64_t)cost->step_ns,
        .wait_ns = (uint64_t)(cost->step_ns - cost->compute_ns),
        .busy_ns = (uint64_t)cost->drive_ns,
        .read_bytes = (uint64_t)cost->drive_bytes,
    };

    night->ns += cost->step_ns;
    night->bound_ns[cost->limit] += cost->step_ns;
    night->drive_bytes += cost->drive_bytes;
    night->compute_ns += cost->compute_ns;
    night->n_sweeps++;
    sl_step_balance_add(&run->balance, &sample);
    sl_scheduler_set_batch_rows(&run->scheduler, sl_step_balance_rows(&run->balance));
}

/* Takes the step that the scheduler has begun. Returns false, and it counts for nothing, where it
 * would end after until_ns. */
static bool take_step(struct run *run, double until_ns, struct sl_night *night)
{
    const struct sl_open_step *open = &run->scheduler.steps[SL_STEP_LARGE];
    const uint32_t n_parts = open->n_parts;
    struct sl_cost cost;
    uint32_t n_rows;

    for (uint32_t i = 0; i < n_parts; i++)
        run->parts[i] = open->parts[i];
    cost = predict(run, n_parts, &n_rows);
    if (night->ns + cost.step_ns > until_ns)
        return false;
    sl_scheduler_advanced(&run->scheduler, SL_STEP_LARGE, 0, (uint64_t)cost.step_ns);
    count_step(run, &cost, n_rows, night);
    for (uint32_t i = 0; i < n_parts; i++)
        go_on(run, item_of(run->parts[i].job), run->parts[i].n_tokens, night);
    return true;
}

/* An item that the scheduler would begin waits for what it shares. */
static void admit(struct run *run, struct item *item, struct sl_night *night)
{
    if (item->n_shared > 0 && (item - 1)->n_past < item->n_shared) {
        sl_scheduler_defer(&run->scheduler, &item->job);
        return;
    }
    item->n_past = item->n_shared;
    night->n_prompt_tokens += item->n_shared;
    night->n_shared_tokens += item->n_shared;
}

static int begin(struct run *run, struct sl_err *err)
{
    const struct sl_night_case *what = run->what;
    const struct sl_scheduler_limits limits = {
        .running_max = what->n_at_once,
        .batch_running_max = what->n_at_once,
        .spans_max = what->n_at_once,
        .step_tokens_max = {[SL_STEP_LARGE] = what->rows_max, [SL_STEP_SMALL] = 1},
        .n_layers = 1,
    };

    run->items = calloc(what->n_documents, sizeof(*run->items));
    run->parts = calloc(what->n_at_once, sizeof(*run->parts));
    run->others = calloc(what->n_at_once, sizeof(*run->others));
    if (!run->items || !run->parts || !run->others ||
        sl_scheduler_init(&run->scheduler, &limits) < 0)
        return sl_err_set(err, -ENOMEM, "plan of a night: out of memory");
    run->balance.bytes_per_ns = what->speeds->drive;
    sl_scheduler_set_batch_rows(&run->scheduler, sl_step_balance_rows(&run->balance));
    for (uint32_t i = 0; i < what->n_documents; i++) {
        const struct sl_night_document *document = &what->documents[i];
        struct item *item = &run->items[i];

        sl_assert(document->n_prompt > document->n_shared && document->n_answer >= 1);
        sl_assert(i > 0 || document->n_shared == 0);
        item->n_prompt = document->n_prompt - document->n_shared;
        item->n_answer = document->n_answer;
        item->n_shared = document->n_shared;
        sl_scheduler_submit(&run->scheduler, &item->job, SL_JOB_BATCH, item->n_prompt);
    }
    return 0;
}

int sl_night_run(const struct sl_night_case *what, double until_ns, struct sl_night *ret_night,
                 struct sl_err *err)
{
    struct run run = {.what = what};
    struct sl_night night = {0};
    bool goes_on = true;
    int rc = begin(&run, err);

    while (rc == 0 && goes_on) {
        const struct sl_action action = sl_scheduler_next(&run.scheduler, (uint64_t)night.ns);

        if (action.kind == SL_ACTION_BEGIN)
            goes_on = take_step(&run, until_ns, &night);
        else if (action.kind == SL_ACTION_ADMIT)
            admit(&run, item_of(action.job), &night);
        else
            goes_on = false;
    }
    sl_scheduler_fini(&run.scheduler);
    free(run.items);
    free(run.parts);
    free(run.others);
    if (rc == 0)
        *ret_night = night;
    return rc;
}
