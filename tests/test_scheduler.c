/* The scheduler, in worlds of its own: arrivals, clients that leave, slow readers, steps that fail
 * and sequences that are short, by the thousand, on a clock that is a number. After each decision
 * everything that must always hold is looked at; nobody may wait for ever; and who waits for whom
 * is tried in small scenes. SL_SEED repeats a run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/scheduler/scheduler.h"
#include "tests/fixture_model.h"
#include "tests/kernel_inputs.h"

#define JOBS 96u
#define EVENTS 40000u
#define LAYERS 8u
#define LAYER_NS 1000u

struct text {
    struct sl_job job;
    uint32_t n_prompt, n_new; /* still to do */
    uint64_t since;           /* number of actions when it last went on */
    bool has_been_in_step;
};

struct world {
    struct sl_scheduler s;
    struct text texts[JOBS];
    struct text *in_step[SL_STEP_SIZES][JOBS];
    uint32_t n_tokens[SL_STEP_SIZES][JOBS];
    uint32_t n_in_step[SL_STEP_SIZES];
    uint32_t n_advances[SL_STEP_SIZES]; /* of the open step */
    uint64_t now_ns, n_actions, random;
    uint64_t n_done, n_failed, n_dropped, n_deferred, n_parked, n_abandoned, n_batch_layers;
};

static void create(struct world *w, uint32_t running_max, uint32_t batch_permille, uint64_t seed)
{
    const struct sl_scheduler_limits limits = {
        .running_max = running_max,
        .batch_running_max = running_max > 1 ? running_max - 1 : 1,
        .spans_max = running_max,
        .step_tokens_max = {[SL_STEP_LARGE] = 100, [SL_STEP_SMALL] = 16},
        .n_layers = LAYERS,
        .batch_permille = batch_permille,
    };

    memset(w, 0, sizeof(*w));
    w->random = seed;
    assert_int_equal(sl_scheduler_init(&w->s, &limits), 0);
}

static struct text *text_of(struct sl_job *job)
{
    return (struct text *)(void *)job;
}

static void submit(struct world *w, uint32_t i, enum sl_job_class class, uint32_t n_prompt,
                   uint32_t n_new)
{
    struct text *text = &w->texts[i];

    assert_int_equal(text->job.state, SL_JOB_OUT);
    *text = (struct text){.n_prompt = n_prompt, .n_new = n_new, .since = w->n_actions};
    sl_scheduler_submit(&w->s, &text->job, class, n_prompt);
}

/* ---- what must always hold ---------------------------------------------------------------------
 */

/* A batch's step has all that decode, as far as they leave prompts an eighth of it, and is filled
 * with prompts up to batch_rows. */
static void check_filling(const struct world *w, const struct sl_open_step *step, uint32_t n_tokens)
{
    const uint32_t rows = w->s.batch_rows, tokens_max = w->s.limits.step_tokens_max[SL_STEP_LARGE];
    const uint32_t least = rows / 8 > 1 ? rows / 8 : 1, spans_max = w->s.limits.spans_max;
    uint32_t n_decodes = 0, wanted;
    bool decodes_left = false, prompts_left = false;

    for (uint32_t i = 0; i < step->n_parts; i++) {
        n_decodes += step->parts[i].job->decodes;
        prompts_left |= step->parts[i].n_tokens < step->parts[i].job->n_left;
    }
    for (uint32_t i = 0; i < JOBS; i++) {
        const struct sl_job *job = &w->texts[i].job;

        if (job->state != SL_JOB_RUNNING || job->class != SL_JOB_BATCH || job->in_step ||
            job->is_held || (job->has_no_reader && job->decodes))
            continue;
        decodes_left |= job->decodes;
        prompts_left |= !job->decodes;
    }
    wanted = rows > n_decodes && rows - n_decodes > least ? rows : n_decodes + least;
    wanted = wanted < tokens_max ? wanted : tokens_max;
    assert_true(n_tokens <= wanted || n_tokens == n_decodes);
    if (prompts_left && step->n_parts < spans_max)
        assert_int_equal(n_tokens, wanted);
    if (decodes_left)
        assert_true(n_decodes >= tokens_max - tokens_max / 8 ||
                    n_decodes >= spans_max - (spans_max < 8 ? 1 : spans_max / 8));
}

static void check_step(struct world *w, enum sl_step_size size)
{
    const struct sl_open_step *step = &w->s.steps[size];
    uint32_t n_tokens = 0;

    assert_true(step->n_parts >= 1 && step->n_parts <= w->s.limits.spans_max);
    for (uint32_t i = 0; i < step->n_parts; i++) {
        const struct sl_part *part = &step->parts[i];

        assert_non_null(part->job);
        assert_int_equal(part->job->class, step->class);
        assert_int_equal(part->job->state, SL_JOB_RUNNING);
        assert_false(part->job->is_held);
        assert_true(part->job->in_step && part->job->size == size);
        assert_true(part->n_tokens >= 1 && part->n_tokens <= part->job->n_left);
        n_tokens += part->n_tokens;
        for (uint32_t k = 0; k < i; k++) {
            assert_ptr_not_equal(step->parts[k].job, part->job);
            /* Prompts in the order of their coming, or of their length: only the last of them is
             * cut short. */
            if (!step->parts[k].job->decodes && !part->job->decodes) {
                if (size == SL_STEP_LARGE)
                    assert_true(step->parts[k].job->arrival < part->job->arrival);
                else
                    assert_true(step->parts[k].job->n_left <= part->job->n_left);
                assert_int_equal(step->parts[k].n_tokens, step->parts[k].job->n_left);
            }
        }
    }
    assert_true(n_tokens <= w->s.limits.step_tokens_max[size]);
    if (step->class == SL_JOB_BATCH)
        check_filling(w, step, n_tokens);
    /* A small step is the users'. */
    assert_true(size == SL_STEP_LARGE || step->class == SL_JOB_INTERACTIVE);
}

static void check_counts(struct world *w)
{
    uint32_t n_running[SL_JOB_CLASSES] = {0}, n_waiting[SL_JOB_CLASSES] = {0};

    for (uint32_t i = 0; i < JOBS; i++) {
        const struct sl_job *job = &w->texts[i].job;

        n_running[job->class] += job->state == SL_JOB_RUNNING;
        n_waiting[job->class] += job->state == SL_JOB_WAITING;
        assert_true(!job->in_step || job->state == SL_JOB_RUNNING);
    }
    for (int class = 0; class < SL_JOB_CLASSES; class ++) {
        assert_int_equal(n_running[class], w->s.n_running[class]);
        assert_int_equal(n_waiting[class], w->s.n_waiting[class]);
    }
    assert_true(n_running[0] + n_running[1] <= w->s.limits.running_max);
    assert_true(n_running[SL_JOB_BATCH] <= w->s.limits.batch_running_max);
}

static bool users_wait(const struct world *w)
{
    for (uint32_t i = 0; i < JOBS; i++) {
        const struct sl_job *job = &w->texts[i].job;

        if (job->state == SL_JOB_RUNNING && job->class == SL_JOB_INTERACTIVE && !job->is_held &&
            !job->has_no_reader)
            return true;
    }
    return false;
}

/* ---- doing what the scheduler says -------------------------------------------------------------
 */

static void step_begins(struct world *w, enum sl_step_size size)
{
    const struct sl_open_step *step = &w->s.steps[size];

    assert_int_equal(w->n_in_step[size], 0);
    check_step(w, size);
    w->n_in_step[size] = step->n_parts;
    w->n_advances[size] = 0;
    for (uint32_t i = 0; i < step->n_parts; i++) {
        w->in_step[size][i] = text_of(step->parts[i].job);
        w->n_tokens[size][i] = step->parts[i].n_tokens;
        w->in_step[size][i]->has_been_in_step = true;
    }
}

static void went_on(struct world *w, struct text *text, uint32_t n_tokens)
{
    text->since = w->n_actions;
    if (text->n_prompt > 0) {
        assert_true(n_tokens <= text->n_prompt);
        text->n_prompt -= n_tokens;
        if (text->n_prompt > 0) {
            sl_scheduler_set_left(&w->s, &text->job, text->n_prompt, false);
            return;
        }
    }
    if (--text->n_new > 0) {
        sl_scheduler_set_left(&w->s, &text->job, 1, true);
        return;
    }
    sl_scheduler_remove(&w->s, &text->job);
    w->n_done++;
}

static void step_ends(struct world *w, enum sl_step_size size, int rc)
{
    const uint32_t n = w->n_in_step[size];

    w->n_in_step[size] = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct text *text = w->in_step[size][i];

        assert_false(text->job.in_step);
        if (rc == 0) {
            assert_int_equal(text->job.n_failures, 0);
            went_on(w, text, w->n_tokens[size][i]);
        } else if (sl_job_has_failed(&text->job)) {
            sl_scheduler_remove(&w->s, &text->job);
            w->n_failed++;
        }
    }
}

static void advance(struct world *w, enum sl_step_size size, bool fails)
{
    const bool is_over = ++w->n_advances[size] == LAYERS;
    const int rc = fails ? -5 : is_over ? 0 : 1;

    assert_true(w->n_in_step[size] > 0);
    w->now_ns += LAYER_NS;
    w->n_batch_layers += w->s.steps[size].class == SL_JOB_BATCH;
    sl_scheduler_advanced(&w->s, size, rc, LAYER_NS);
    if (rc <= 0)
        step_ends(w, size, rc);
}

/* It goes at once; a step with nobody left goes on no more, and is abandoned. */
static void leave(struct world *w, struct text *text)
{
    const enum sl_step_size size = text->job.size;
    const bool was_in_step = text->job.in_step;
    uint32_t i = 0;

    sl_scheduler_remove(&w->s, &text->job);
    if (!was_in_step)
        return;
    while (w->in_step[size][i] != text)
        i++;
    for (w->n_in_step[size]--; i < w->n_in_step[size]; i++) {
        w->in_step[size][i] = w->in_step[size][i + 1];
        w->n_tokens[size][i] = w->n_tokens[size][i + 1];
    }
}

/* Returns the kind of the action that was done. */
static enum sl_action_kind act(struct world *w, bool fails, bool has_no_sequence)
{
    const struct sl_action action = sl_scheduler_next(&w->s, w->now_ns);

    w->n_actions++;
    switch (action.kind) {
    case SL_ACTION_WAIT:
        break;
    case SL_ACTION_ADMIT:
        if (has_no_sequence) {
            sl_scheduler_defer(&w->s, action.job);
            w->n_deferred++;
        }
        break;
    case SL_ACTION_DROP:
        assert_true(action.job->has_no_reader && !action.job->in_step);
        sl_scheduler_remove(&w->s, action.job);
        w->n_dropped++;
        break;
    case SL_ACTION_BEGIN:
        step_begins(w, action.size);
        advance(w, action.size, fails);
        break;
    case SL_ACTION_ADVANCE:
        w->n_parked += action.size == SL_STEP_SMALL && w->n_in_step[SL_STEP_LARGE] > 0;
        advance(w, action.size, fails);
        break;
    case SL_ACTION_ABANDON:
        w->n_abandoned++;
        step_ends(w, action.size, 1);
        break;
    }
    check_counts(w);
    return action.kind;
}

/* ---- the simulation ----------------------------------------------------------------------------
 */

static void random_event(struct world *w)
{
    struct text *text = &w->texts[fixture_below(&w->random, JOBS)];
    const uint32_t kind = fixture_below(&w->random, 100);

    if (text->job.state == SL_JOB_OUT) {
        const bool is_long = fixture_below(&w->random, 4) == 0;

        if (kind < 60)
            submit(w, (uint32_t)(text - w->texts), kind < 40 ? SL_JOB_INTERACTIVE : SL_JOB_BATCH,
                   1 + fixture_below(&w->random, is_long ? 400 : 20),
                   1 + fixture_below(&w->random, 12));
    } else if (kind < 4) {
        leave(w, text);
    } else if (kind < 8 && !text->job.decodes) {
        sl_scheduler_set_reader(&w->s, &text->job, false,
                                w->now_ns + fixture_below(&w->random, 20 * LAYER_NS));
    } else if (kind < 9) {
        sl_scheduler_set_batch_rows(&w->s, 1 + fixture_below(&w->random, 150));
    } else if (kind < 12) {
        sl_scheduler_hold(&w->s, &text->job, !text->job.is_held);
    }
}

/* Everybody who is not held is served in the end. */
static void run_out(struct world *w)
{
    enum sl_action_kind kind;

    for (uint32_t i = 0; i < JOBS; i++)
        sl_scheduler_hold(&w->s, &w->texts[i].job, false);
    do {
        kind = act(w, false, false);
        if (kind == SL_ACTION_WAIT) { /* for prompts without readers, at most */
            const struct sl_action action = sl_scheduler_next(&w->s, w->now_ns);

            if (action.kind == SL_ACTION_WAIT && action.until_ns != UINT64_MAX) {
                w->now_ns = action.until_ns;
                kind = SL_ACTION_ADMIT;
            }
        }
        assert_true(w->n_actions < UINT64_C(100) * EVENTS);
    } while (kind != SL_ACTION_WAIT);
    for (uint32_t i = 0; i < JOBS; i++)
        assert_int_equal(w->texts[i].job.state, SL_JOB_OUT);
    assert_false(w->s.steps[SL_STEP_LARGE].is_open || w->s.steps[SL_STEP_SMALL].is_open);
}

static void test_simulation(void **state)
{
    struct world sum = {0};

    (void)state;
    for (uint32_t world = 0; world < 12; world++) {
        struct world w;
        uint64_t random = inputs_seed() + world;
        const uint32_t running_max = 1 + fixture_below(&random, 24);

        create(&w, running_max, world % 3 * 200, random);
        for (uint32_t i = 0; i < EVENTS; i++) {
            const uint32_t chance = fixture_below(&w.random, 1000);

            if (chance < 150)
                random_event(&w);
            else
                act(&w, chance > 990, chance % 16 == 0);
        }
        run_out(&w);
        sum.n_done += w.n_done;
        sum.n_failed += w.n_failed;
        sum.n_dropped += w.n_dropped;
        sum.n_deferred += w.n_deferred;
        sum.n_abandoned += w.n_abandoned;
        sum.n_batch_layers += w.n_batch_layers;
        sum.n_parked += w.n_parked;
        sl_scheduler_fini(&w.s);
    }
    assert_true(sum.n_done > 3000 && sum.n_failed > 300 && sum.n_dropped > 300);
    assert_true(sum.n_deferred > 300 && sum.n_abandoned > 50);
    assert_true(sum.n_batch_layers > 3000 && sum.n_parked > 3000);
}

/* With everybody reading and everything working, no job goes without progress for longer than the
 * others take to have theirs. */
static void test_nobody_starves(void **state)
{
    struct world w;
    uint64_t longest = 0;

    (void)state;
    create(&w, 40, 0, inputs_seed());
    for (uint32_t i = 0; i < EVENTS; i++) {
        const uint32_t k = fixture_below(&w.random, JOBS);

        if (w.texts[k].job.state == SL_JOB_OUT && fixture_below(&w.random, 8) == 0)
            submit(&w, k, SL_JOB_INTERACTIVE, 1 + fixture_below(&w.random, 120),
                   1 + fixture_below(&w.random, 30));
        act(&w, false, false);
        for (uint32_t t = 0; t < JOBS; t++)
            if (w.texts[t].job.state == SL_JOB_RUNNING && w.n_actions - w.texts[t].since > longest)
                longest = w.n_actions - w.texts[t].since;
    }
    assert_true(w.n_done > 500);
    /* 40 running in small steps of 16 tokens, half of them for prompts: each decodes in one step of
     * five; a prompt's turn comes when those before it are in. */
    assert_true(longest < 40 * 30 * LAYERS);
    run_out(&w);
    sl_scheduler_fini(&w.s);
}

/* ---- scenes ------------------------------------------------------------------------------------
 */

/* A user's short request comes while a long prompt, or a batch, is being taken in. */
static void first_step_waits_a_layer(enum sl_job_class of_the_long)
{
    struct world w;
    uint64_t come_ns;

    create(&w, 8, 0, 1);
    submit(&w, 0, of_the_long, 1000, 5);
    for (uint32_t i = 0; i < 5; i++)
        act(&w, false, false);
    assert_int_equal(w.n_in_step[SL_STEP_LARGE], 1);
    come_ns = w.now_ns;
    submit(&w, 1, SL_JOB_INTERACTIVE, 6, 3);
    while (!w.texts[1].has_been_in_step)
        act(&w, false, false);
    assert_int_equal(w.n_in_step[SL_STEP_LARGE], 1); /* stands still */
    assert_true(w.now_ns - come_ns <= 2 * LAYER_NS); /* a layer's end, and its own first layer */
    sl_scheduler_fini(&w.s);
}

/* A user's short request comes when many longer prompts wait, more than a large step takes. */
static void test_first_token_beside_many_prompts(void **state)
{
    struct world w;
    uint64_t come_ns;

    (void)state;
    create(&w, 40, 0, 1);
    for (uint32_t i = 1; i < 40; i++)
        submit(&w, i, SL_JOB_INTERACTIVE, 15, 3);
    for (uint32_t i = 0; i < 50; i++)
        act(&w, false, false);
    come_ns = w.now_ns;
    submit(&w, 0, SL_JOB_INTERACTIVE, 6, 3);
    while (!w.texts[0].has_been_in_step)
        act(&w, false, false);
    /* The small step that is under way, a layer of the large one, and its own first layer. */
    assert_true(w.now_ns - come_ns <= (LAYERS + 2) * LAYER_NS);
    sl_scheduler_fini(&w.s);
}

/* A user's short request comes together with a long prompt, for which a large step begins. */
static void test_short_prompts_stay_out_of_large_steps(void **state)
{
    struct world w;

    (void)state;
    create(&w, 8, 0, 1);
    submit(&w, 0, SL_JOB_INTERACTIVE, 6, 3);
    submit(&w, 1, SL_JOB_INTERACTIVE, 1000, 3);
    submit(&w, 2, SL_JOB_INTERACTIVE, 8, 3);
    while (!w.texts[0].has_been_in_step || !w.texts[2].has_been_in_step)
        act(&w, false, false);
    assert_int_equal(w.n_in_step[SL_STEP_LARGE], 1);
    assert_int_equal(w.n_in_step[SL_STEP_SMALL], 2);
    assert_true(w.now_ns <= 2 * LAYER_NS);
    sl_scheduler_fini(&w.s);
}

static void test_first_token_beside_a_sweep(void **state)
{
    (void)state;
    first_step_waits_a_layer(SL_JOB_INTERACTIVE);
    first_step_waits_a_layer(SL_JOB_BATCH);
}

/* While a user decodes, a user's long prompt gets a layer for each small step, a batch nothing. */
static void test_shares_of_the_large_step(void **state)
{
    (void)state;
    for (int class = 0; class < SL_JOB_CLASSES; class ++) {
        struct world w;
        uint32_t n_layers = 0, n_small_steps = 0;

        create(&w, 8, 0, 1);
        submit(&w, 0, (enum sl_job_class) class, 1000, 5);
        act(&w, false, false);
        act(&w, false, false);
        submit(&w, 1, SL_JOB_INTERACTIVE, 1, 1000);
        while (!w.texts[1].has_been_in_step)
            act(&w, false, false);
        while (n_small_steps < 20) {
            const struct sl_open_step *large = &w.s.steps[SL_STEP_LARGE];
            const uint32_t before = large->n_advances;
            const bool was_open = w.n_in_step[SL_STEP_SMALL] > 0;

            act(&w, false, false);
            n_layers += large->n_advances != before;
            n_small_steps += was_open && w.n_in_step[SL_STEP_SMALL] == 0;
        }
        if (class == SL_JOB_INTERACTIVE)
            assert_true(n_layers >= 19 && n_layers <= 21);
        else
            assert_int_equal(n_layers, 0);
        sl_scheduler_fini(&w.s);
    }
}

/* A share of a fifth is a fifth. */
static void test_batch_share(void **state)
{
    struct world w;

    (void)state;
    create(&w, 8, 200, 1);
    submit(&w, 0, SL_JOB_BATCH, 3000, 1000);
    submit(&w, 1, SL_JOB_INTERACTIVE, 1, 100000);
    for (uint32_t i = 0; i < 5000; i++) {
        act(&w, false, false);
        assert_true(users_wait(&w) || i < 3);
    }
    assert_true(w.n_batch_layers > 900 && w.n_batch_layers < 1100);
    sl_scheduler_fini(&w.s);
}

/* A user's long prompt takes the large step away from a batch that has just begun, and waits for
 * one that is half done, beside which small steps go on. */
static void test_batch_gives_way(void **state)
{
    (void)state;
    for (uint32_t n_layers = 2; n_layers <= 6; n_layers += 4) {
        struct world w;

        create(&w, 8, 0, 1);
        submit(&w, 0, SL_JOB_BATCH, 1000, 5);
        for (uint32_t i = 0; i < 1 + n_layers; i++)
            act(&w, false, false);
        assert_int_equal(w.n_advances[SL_STEP_LARGE], n_layers);
        submit(&w, 1, SL_JOB_INTERACTIVE, 500, 2);
        while (w.texts[1].job.state != SL_JOB_OUT)
            act(&w, false, false);
        assert_int_equal(w.n_abandoned, n_layers < LAYERS / 2);
        assert_int_equal(w.texts[0].n_prompt, n_layers < LAYERS / 2 ? 1000 : 900);
        sl_scheduler_fini(&w.s);
    }
}

/* 64 documents advance in lockstep while users come and go: each step has a token of all that
 * decode and is filled with the next prompts. Nobody who comes waits for longer than a layer,
 * meanwhile the batch stands still, and then it goes on where it was: no layer is computed twice.
 */
static void test_batch_beside_users(void **state)
{
    const uint32_t n_documents = 64, rows = 90;
    uint64_t come_ns = 0, n_users = 0, n_rows = 0, n_steps = 0;
    struct world w;

    (void)state;
    create(&w, 80, 0, inputs_seed());
    sl_scheduler_set_batch_rows(&w.s, rows);
    for (uint32_t i = 0; i < n_documents; i++)
        submit(&w, i, SL_JOB_BATCH, 30 + i, 12);
    while (w.n_done < n_documents + n_users || n_users < 20) {
        const struct sl_open_step *large = &w.s.steps[SL_STEP_LARGE];
        struct text *user = &w.texts[n_documents];
        const uint64_t layers_before = w.n_batch_layers;
        const bool was_open = large->is_open, is_served = user->job.state == SL_JOB_RUNNING;

        act(&w, false, false);
        if (!was_open && large->is_open) {
            n_steps++;
            for (uint32_t i = 0; i < large->n_parts; i++)
                n_rows += large->parts[i].n_tokens;
        }
        if (is_served)
            assert_int_equal(w.n_batch_layers, layers_before);
        if (user->job.state == SL_JOB_OUT && n_users < 20 &&
            (large->n_advances % LAYERS == n_users % LAYERS || w.n_done >= n_documents)) {
            submit(&w, n_documents, SL_JOB_INTERACTIVE, 5, 3);
            come_ns = w.now_ns;
            n_users++;
            while (!user->has_been_in_step)
                act(&w, false, false);
            assert_true(w.now_ns - come_ns <= 2 * LAYER_NS);
        }
    }
    assert_int_equal(w.n_abandoned + w.n_failed, 0);
    assert_true(w.n_parked > 0);
    assert_int_equal(w.n_batch_layers, n_steps * LAYERS);
    /* All tokens but the last of each text, which nobody computes. */
    assert_int_equal(n_rows, n_documents * (30 + 11) + n_documents * (n_documents - 1) / 2);
    assert_true(n_steps <= n_rows / rows + 14);
    sl_scheduler_fini(&w.s);
}

/* A failed step is taken once more; then its jobs have failed, and nobody else. */
static void test_failures(void **state)
{
    struct world w;

    (void)state;
    create(&w, 8, 0, 1);
    submit(&w, 0, SL_JOB_INTERACTIVE, 1000, 5);
    submit(&w, 1, SL_JOB_INTERACTIVE, 1, 50);
    while (w.n_in_step[SL_STEP_LARGE] == 0)
        act(&w, false, false);
    while (w.texts[0].job.state != SL_JOB_OUT) {
        const struct sl_action action = sl_scheduler_next(&w.s, w.now_ns);

        if (action.kind == SL_ACTION_BEGIN)
            step_begins(&w, action.size);
        advance(&w, action.size, action.size == SL_STEP_LARGE);
    }
    assert_int_equal(w.n_failed, 1);
    assert_int_equal(w.texts[0].n_prompt, 1000);
    assert_int_equal(w.texts[1].job.state, SL_JOB_RUNNING);
    assert_int_equal(w.texts[1].job.n_failures, 0);
    sl_scheduler_fini(&w.s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_simulation),
        cmocka_unit_test(test_nobody_starves),
        cmocka_unit_test(test_first_token_beside_a_sweep),
        cmocka_unit_test(test_first_token_beside_many_prompts),
        cmocka_unit_test(test_short_prompts_stay_out_of_large_steps),
        cmocka_unit_test(test_shares_of_the_large_step),
        cmocka_unit_test(test_batch_share),
        cmocka_unit_test(test_batch_gives_way),
        cmocka_unit_test(test_batch_beside_users),
        cmocka_unit_test(test_failures),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
