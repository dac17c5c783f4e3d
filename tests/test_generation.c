/* Generation: a text is what it is alone, whoever shares its steps. Texts with prompts, samplers
 * and rules of every kind are made one by one; then all of them in steps of a random company,
 * large ones that stand still while small ones run, with reads that fail, steps that are stopped
 * or abandoned, texts that leave their step, and texts that are cancelled. Tokens, log
 * probabilities, text and the reason of the end must be the same, and a cancelled text a beginning
 * of it. Steps allocate nothing. SL_SEED repeats a run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/engine/shared_step.h"
#include "tests/engine_rig.h"
#include "tests/fault_alloc.h"
#include "tests/kernel_inputs.h"

#define TEXTS 24u
#define SEQUENCES 6u
#define CONTEXT_TOKENS 64u
#define EVENTS 1200u
#define EVENTS_SLOW 300u
#define EVENTS_MAX 6000u /* where something has not happened yet */

/* One text: what is asked for, and what has come of it. */
struct text {
    struct sl_generation_options options;
    int32_t prompt[CONTEXT_TOKENS];
    uint32_t n_prompt;
    struct sl_generation *generation;
    struct sl_kv_cache *kv; /* NULL: it waits */
    uint32_t begun_with;    /* tokens of the sequence when its present step began */
    char tokens[32768], shown[4096];
    size_t n_tokens, n_shown;
    uint32_t step_end;    /* a step of the prompt ends at this length, */
    bool has_ended_there; /* and did */
};

struct result {
    char tokens[32768], shown[4096];
    enum sl_finish finish;
    uint32_t n_new;
};

struct world {
    const struct engine_rig *m;
    const char *folder; /* of the model */
    struct sl_config config;
    bool with_faults;
    struct sl_tokenizer *tok;
    struct sl_engine *engine;
    struct sl_shared_step *steps[SL_STEP_SIZES];
    struct sl_generation *in_step[SL_STEP_SIZES][SEQUENCES];
    uint32_t n_in_step[SL_STEP_SIZES]; /* 0: none is open */
    struct text texts[TEXTS];
    struct result alone[TEXTS];
    atomic_bool stop;
    uint64_t random;
    uint32_t drafts;                     /* that the company's engine checks at a time */
    uint64_t n_right[SL_DRAFTS_MAX + 1]; /* steps in which so many guesses were */
    uint64_t n_tried, n_shared, n_failed, n_stopped, n_abandoned, n_dropped, n_cancelled,
        n_finished;
};

/* ---- texts -------------------------------------------------------------------------------------
 */

static void make_options(struct world *w, uint32_t i, struct sl_generation_options *options)
{
    static const char *const stops[] = {"a", "!", "0", "#", "Q"};

    *options = (struct sl_generation_options){
        .sampler = {.temperature = i % 3 * 0.7,
                    .top_p = i % 4 ? 1 : 0.8,
                    .min_p = i % 5 ? 0 : 0.1,
                    .top_k = i % 2 ? 0 : 20},
        .rules = {.eos_token_id = i % 2 ? w->config.eos_token_id : UINT32_MAX,
                  .n_new_max = i % 4 == 3 ? 0 : 1 + i,
                  .context_tokens = CONTEXT_TOKENS},
        .with_logprobs = i % 2,
        .n_top_logprobs = i % 3 * 100 % 21,
    };
    for (uint32_t s = 0; s < i % 3; s++)
        assert_int_equal(sl_stop_strings_add(&options->rules.stops, stops[(i + s) % 5], NULL), 0);
}

static void create_texts(struct world *w)
{
    for (uint32_t i = 0; i < TEXTS; i++) {
        struct text *text = &w->texts[i];

        make_options(w, i, &text->options);
        text->n_prompt = i % 4 == 0 ? 1 : 1 + fixture_below(&w->random, 40);
        for (uint32_t t = 0; t < text->n_prompt; t++)
            text->prompt[t] = (int32_t)fixture_below(&w->random, w->config.vocab_size);
        assert_int_equal(sl_generation_create(&text->generation, &text->options, w->tok,
                                              w->config.vocab_size, NULL),
                         0);
    }
}

static void begin(struct world *w, uint32_t i)
{
    struct text *text = &w->texts[i];

    assert_int_equal(sl_engine_sequence_create(w->engine, CONTEXT_TOKENS, &text->kv, NULL), 0);
    sl_generation_begin(text->generation, text->kv, text->prompt, text->n_prompt, 100 + i);
    text->step_end = 1 + fixture_below(&w->random, text->n_prompt);
    text->has_ended_there = false;
    sl_generation_end_step_at(text->generation, text->step_end);
    text->n_tokens = text->n_shown = 0;
    text->tokens[0] = text->shown[0] = '\0';
}

static void end(struct world *w, struct text *text)
{
    assert_true(text->has_ended_there || text->kv->n_tokens < text->step_end);
    sl_engine_sequence_destroy(w->engine, text->kv);
    text->kv = NULL;
}

static void take_token(struct text *text, const struct sl_generated *token)
{
    const size_t size = sizeof(text->tokens);

    text->n_tokens +=
        (size_t)snprintf(text->tokens + text->n_tokens, size - text->n_tokens, "%u ", token->id);
    if (!text->options.with_logprobs)
        return;
    text->n_tokens += (size_t)snprintf(text->tokens + text->n_tokens, size - text->n_tokens,
                                       "%.17g ", token->logprob);
    for (uint32_t k = 0; k < token->n_top; k++)
        text->n_tokens += (size_t)snprintf(text->tokens + text->n_tokens, size - text->n_tokens,
                                           "%u:%.17g ", token->top_ids[k], token->top_logprobs[k]);
    assert_true(text->n_tokens < size);
}

static void take_output(struct text *text)
{
    text->has_ended_there |= text->kv->n_tokens == text->step_end;
    for (uint32_t i = 0; i < sl_generation_output_count(text->generation); i++) {
        const struct sl_generation_output output = sl_generation_output(text->generation, i);

        assert_true(text->n_shown + output.length < sizeof(text->shown));
        if (output.length > 0)
            memcpy(text->shown + text->n_shown, output.text, output.length);
        text->n_shown += output.length;
        text->shown[text->n_shown] = '\0';
        if (output.token)
            take_token(text, output.token);
    }
}

/* ---- alone -------------------------------------------------------------------------------------
 */

static void open_engine(struct world *w, bool in_company)
{
    const bool guesses = in_company && w->drafts > 0, faulty = in_company && w->with_faults;
    const struct io_fault_plan plan = {.seed = inputs_seed(),
                                       .short_permille = 20,
                                       .shuffle = true,
                                       .gap_reads = 25,
                                       .late_ns = 2 * SL_READER_STALL_NS,
                                       .fail_for_good = true};
    struct sl_engine_options options = engine_rig_options(w->m);

    options.model = w->folder;
    options.draft = guesses ? SL_DRAFT_ANY : SL_DRAFT_NONE;
    options.drafts = guesses ? w->drafts : 0;
    options.verify = SL_VERIFY_ALWAYS;
    options.cache_min = faulty;
    options.n_sequences = SEQUENCES;
    options.context_tokens = CONTEXT_TOKENS;
    options.segment_tokens = 24;
    options.small_step_tokens = 6; /* a block of DSpark takes five */
    if (faulty)
        engine_rig_make_faulty(&options);
    assert_int_equal(sl_engine_open(&w->engine, &options, NULL, NULL), 0);
    if (faulty)
        io_fault_set(engine_rig_faulty(), &plan);
    for (int size = 0; size < SL_STEP_SIZES; size++)
        assert_int_equal(
            sl_shared_step_create(&w->steps[size], w->engine, (enum sl_step_size)size, NULL), 0);
}

static void close_engine(struct world *w)
{
    for (int size = 0; size < SL_STEP_SIZES; size++)
        sl_shared_step_destroy(w->steps[size]);
    sl_engine_close(w->engine);
}

static void make_alone(struct world *w, uint32_t i)
{
    static const struct sl_step_request hooks;
    struct text *text = &w->texts[i];
    struct result *alone = &w->alone[i];

    begin(w, i);
    while (sl_generation_finish(text->generation) == SL_FINISH_NONE) {
        const uint64_t n_allocations = fault_alloc_total_count();

        assert_int_equal(
            sl_shared_step_run(w->steps[SL_STEP_LARGE], &text->generation, 1, &hooks, NULL), 0);
        assert_int_equal(fault_alloc_total_count(), n_allocations);
        take_output(text);
    }
    memcpy(alone->tokens, text->tokens, sizeof(alone->tokens));
    memcpy(alone->shown, text->shown, sizeof(alone->shown));
    alone->finish = sl_generation_finish(text->generation);
    alone->n_new = sl_generation_token_count(text->generation);
    end(w, text);
}

/* ---- in company --------------------------------------------------------------------------------
 */

static bool is_in_step(const struct world *w, const struct text *text)
{
    for (int size = 0; size < SL_STEP_SIZES; size++)
        for (uint32_t i = 0; i < w->n_in_step[size]; i++)
            if (w->in_step[size][i] == text->generation)
                return true;
    return false;
}

static struct text *text_of(struct world *w, const struct sl_generation *generation)
{
    for (uint32_t i = 0; i < TEXTS; i++)
        if (w->texts[i].generation == generation)
            return &w->texts[i];
    fail();
    return NULL;
}

/* Texts that wait begin, at random, where there is room. */
static void admit(struct world *w)
{
    uint32_t n_active = 0, i;

    for (i = 0; i < TEXTS; i++)
        n_active += w->texts[i].kv != NULL;
    i = fixture_below(&w->random, TEXTS);
    if (n_active < SEQUENCES && !w->texts[i].kv)
        begin(w, i);
}

static void stop_now(void *context, uint32_t layer_index, uint32_t n_tokens,
                     const uint16_t *experts)
{
    struct world *w = context;

    (void)layer_index;
    (void)n_tokens;
    (void)experts;
    if (fixture_below(&w->random, 60) == 0)
        atomic_store(&w->stop, true);
}

/* Begins a step of a random company, in random order. */
static void begin_step(struct world *w, enum sl_step_size size)
{
    const struct sl_step_request hooks = {
        .stop = &w->stop, .on_route = stop_now, .on_route_context = w};
    const uint32_t first = fixture_below(&w->random, TEXTS);
    struct sl_generation *generations[SEQUENCES];
    uint32_t n = 0;

    for (uint32_t i = 0; i < TEXTS; i++) {
        struct text *text = &w->texts[(first + i * 5) % TEXTS]; /* 5 has no factor of TEXTS */

        if (!text->kv || is_in_step(w, text) || fixture_below(&w->random, 3) == 0)
            continue;
        text->begun_with = text->kv->n_tokens;
        generations[n++] = text->generation;
    }
    if (n == 0)
        return;
    assert_int_equal(sl_shared_step_begin(w->steps[size], generations, n, &hooks, NULL), 0);
    w->n_in_step[size] = 0;
    /* The first ones of more than a small step takes have taken part. */
    for (uint32_t i = 0; i < n; i++)
        if (text_of(w, generations[i])->kv->in_step)
            w->in_step[size][w->n_in_step[size]++] = generations[i];
    w->n_shared += w->n_in_step[size] > 1;
}

/* A text has ended: it is as it was alone. */
static void check_text(struct world *w, struct text *text)
{
    const struct result *alone = &w->alone[text - w->texts];

    assert_string_equal(text->tokens, alone->tokens);
    assert_string_equal(text->shown, alone->shown);
    assert_int_equal(sl_generation_finish(text->generation), alone->finish);
    assert_int_equal(sl_generation_token_count(text->generation), alone->n_new);
    w->n_finished++;
    end(w, text);
}

/* The step is over; where it failed, it has left nothing. */
static void step_over(struct world *w, enum sl_step_size size, int rc)
{
    const uint32_t n = w->n_in_step[size];

    w->n_in_step[size] = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct text *text = text_of(w, w->in_step[size][i]);

        assert_false(text->kv->in_step);
        assert_true(rc < 0 ? text->kv->n_tokens == text->begun_with
                           : text->kv->n_tokens > text->begun_with);
        if (rc == 0) {
            w->n_tried += sl_generation_drafts_tried(text->generation);
            w->n_right[sl_generation_drafts_right(text->generation)]++;
        }
        take_output(text);
        if (sl_generation_finish(text->generation) != SL_FINISH_NONE)
            check_text(w, text);
    }
}

static void advance(struct world *w, enum sl_step_size size)
{
    struct sl_err err;
    int rc = sl_shared_step_advance(w->steps[size], &err);

    if (rc > 0)
        return;
    step_over(w, size, rc);
    if (rc == -ECANCELED) {
        w->n_stopped++;
        atomic_store(&w->stop, false);
    } else if (rc < 0) {
        if (rc != -EIO)
            fail_msg("%d: %s", rc, err.message);
        w->n_failed++;
        io_fault_mend(engine_rig_faulty());
    }
}

/* Cancels a text between two steps: it shows a beginning of what it is alone. */
static void cancel(struct world *w, struct text *text)
{
    const struct result *alone = &w->alone[text - w->texts];

    sl_generation_cancel(text->generation);
    take_output(text);
    assert_int_equal(sl_generation_finish(text->generation), SL_FINISH_INTERRUPTED);
    assert_int_equal(sl_generation_tokens_left(text->generation), 0);
    assert_memory_equal(text->tokens, alone->tokens, text->n_tokens);
    w->n_cancelled++;
    end(w, text);
}

/* One of the company leaves the step, and is where it was before. */
static void drop(struct world *w, enum sl_step_size size)
{
    const uint32_t i = fixture_below(&w->random, w->n_in_step[size]);
    struct text *text = text_of(w, w->in_step[size][i]);
    const bool is_alone = w->n_in_step[size] == 1;

    assert_false(sl_shared_step_drop(w->steps[!size], text->generation));
    if (!sl_shared_step_drop(w->steps[size], text->generation)) {
        assert_true(is_alone || text->kv->n_tokens > text->begun_with);
        return;
    }
    assert_false(is_alone);
    assert_false(text->kv->in_step);
    assert_int_equal(text->kv->n_tokens, text->begun_with);
    w->in_step[size][i] = w->in_step[size][--w->n_in_step[size]];
    w->n_dropped++;
}

static void play(struct world *w)
{
    const enum sl_step_size size = fixture_below(&w->random, 2) ? SL_STEP_LARGE : SL_STEP_SMALL;
    struct text *text = &w->texts[fixture_below(&w->random, TEXTS)];

    admit(w);
    if (text->kv && !is_in_step(w, text) && fixture_below(&w->random, 25) == 0)
        cancel(w, text);
    else if (w->n_in_step[size] == 0)
        begin_step(w, size);
    else if (fixture_below(&w->random, 10) == 0)
        drop(w, size);
    else if (fixture_below(&w->random, 60) == 0) {
        const struct text *first = text_of(w, w->in_step[size][0]);

        /* What was made stays, where the draft was guessing on already. */
        sl_shared_step_abandon(w->steps[size]);
        step_over(w, size, first->kv->n_tokens > first->begun_with ? 0 : -ECANCELED);
        w->n_abandoned++;
    } else
        for (uint32_t n = fixture_below(&w->random, 8); w->n_in_step[size] > 0 && n > 0; n--)
            advance(w, size);
}

static uint32_t event_count(void)
{
#ifdef SL_DEBUG
    return EVENTS_SLOW;
#else
    return getenv("SL_SLOW") ? EVENTS_SLOW : EVENTS;
#endif
}

/* A cache with room for the stages' experts has nearly all of the layers': reads, and so failures
 * of steps, are few then. */
static bool has_seen_all(const struct world *w)
{
    const bool has_failed = w->n_failed > 0 || !w->m->draft || !w->with_faults;

    return w->n_finished > 0 && w->n_shared > 0 && has_failed && w->n_stopped > 0 &&
           w->n_abandoned > 0 && w->n_dropped > 0 && w->n_cancelled > 0;
}

/* On the rig's model, with reads that fail, or on the small model that was trained, whose guesses
 * are often right. */
static void check_company(void **state, uint32_t drafts, bool trained)
{
    static struct world w;
    char store_folder[FIXTURE_PATH_BYTES], name[16];
    uint32_t n_finishes[SL_FINISH_INTERRUPTED + 1] = {0};

    snprintf(name, sizeof(name), "store%u", drafts);
    w = (struct world){.m = *state,
                       .folder = trained ? "tests/small" : store_folder,
                       .drafts = drafts,
                       .with_faults = !trained,
                       .random = inputs_seed()};
    w.config = w.m->config;
    if (trained)
        assert_int_equal(sl_config_read(&w.config, w.folder, NULL), 0);
    else
        engine_rig_pack(w.m, name, 0, false, store_folder);
    assert_int_equal(
        sl_tokenizer_open(&w.tok, trained ? w.folder : "tests/data/tokenizer.json", NULL), 0);
    create_texts(&w);
    open_engine(&w, false);
    for (uint32_t i = 0; i < TEXTS; i++) {
        make_alone(&w, i);
        n_finishes[w.alone[i].finish]++;
    }
    close_engine(&w);
    open_engine(&w, true);
    for (uint32_t i = 0;
         i < event_count() / (trained ? 3 : 1) || (!has_seen_all(&w) && i < EVENTS_MAX); i++)
        play(&w);
    print_message("%" PRIu64 " texts, %" PRIu64 " steps shared, %" PRIu64 " failed, %" PRIu64
                  " stopped, %" PRIu64 " abandoned, %" PRIu64 " left by one, %" PRIu64
                  " texts cancelled\n",
                  w.n_finished, w.n_shared, w.n_failed, w.n_stopped, w.n_abandoned, w.n_dropped,
                  w.n_cancelled);
    if (drafts > 0)
        print_message("%" PRIu64 " guesses; steps with none, 1, 2, 3 right: %" PRIu64 ", %" PRIu64
                      ", %" PRIu64 ", %" PRIu64 "\n",
                      w.n_tried, w.n_right[0], w.n_right[1], w.n_right[2], w.n_right[3]);
    for (uint32_t n = 1; trained && drafts != SL_DRAFTS_AUTO && n <= drafts && n < 3; n++)
        assert_true(w.n_right[n] > 0);
    if (w.with_faults)
        io_fault_heal(engine_rig_faulty());
    close_engine(&w); /* with steps and texts on their way */
    for (uint32_t i = 0; i < TEXTS; i++)
        sl_generation_destroy(w.texts[i].generation);
    sl_tokenizer_close(w.tok);
    assert_true(n_finishes[SL_FINISH_STOP_STRING] > 0 && n_finishes[SL_FINISH_TOKENS_MAX] > 0 &&
                n_finishes[SL_FINISH_CONTEXT] > 0);
    assert_true(has_seen_all(&w));
}

static void test_a_text_is_what_it_is_alone(void **state)
{
    check_company(state, 0, false);
}

/* With guesses in the company's steps, most of them wrong. */
static void test_guesses_change_no_text(void **state)
{
    check_company(state, 3, false);
}

/* Right ones, too: whole and in part, before the rules that end texts and behind them. */
static void test_right_guesses_change_no_text(void **state)
{
    check_company(state, 1, true);
    check_company(state, 3, true);
    check_company(state, SL_DRAFTS_AUTO, true);
}

/* The draft sees a text to its last token, whatever ended it, so that it need not begin anew where
 * a conversation goes on. */
static void test_the_draft_sees_the_end(void **state)
{
    static const struct sl_step_request hooks;
    static struct world w;

    w = (struct world){.m = *state, .drafts = 2, .random = inputs_seed()};
    w.folder = w.m->folder;
    w.config = w.m->config;
    assert_int_equal(sl_tokenizer_open(&w.tok, "tests/data/tokenizer.json", NULL), 0);
    create_texts(&w);
    open_engine(&w, true);
    for (uint32_t i = 0; i < TEXTS; i++) {
        struct text *text = &w.texts[i];
        const struct sl_kv_cache *kv;

        begin(&w, i);
        kv = text->kv;
        while (sl_generation_finish(text->generation) == SL_FINISH_NONE)
            assert_int_equal(
                sl_shared_step_run(w.steps[SL_STEP_LARGE], &text->generation, 1, &hooks, NULL), 0);
        assert_int_equal(kv->n_mtp_tokens, kv->n_tokens);
        assert_true(kv->mtp_first == 0 || text->n_prompt > w.config.sliding_window);
        text->has_ended_there = true;
        end(&w, text);
        sl_generation_destroy(text->generation);
    }
    close_engine(&w);
    sl_tokenizer_close(w.tok);
}

/* ---- by hand -----------------------------------------------------------------------------------
 */

/* Logits that allow no choice: the generation says so, and stays where it was. */
static void test_logits_that_allow_no_choice(void **state)
{
    const struct engine_rig *m = *state;
    const uint32_t n_vocab = m->config.vocab_size;
    const struct sl_generation_options options = {
        .sampler = SL_SAMPLER_DEFAULT,
        .rules = {.eos_token_id = UINT32_MAX, .context_tokens = CONTEXT_TOKENS}};
    float *broken = calloc(n_vocab, sizeof(float));
    struct sl_generation *generation;
    struct sl_tokenizer *tok;
    struct sl_engine *engine;
    struct sl_engine_options engine_options = engine_rig_options(m);
    struct sl_span first, again;
    struct sl_err err;

    assert_non_null(broken);
    broken[3] = NAN;
    engine_options.draft = SL_DRAFT_NONE;
    assert_int_equal(sl_engine_open(&engine, &engine_options, NULL, NULL), 0);
    assert_int_equal(sl_tokenizer_open(&tok, "tests/data/tokenizer.json", NULL), 0);
    assert_int_equal(sl_generation_create(&generation, &options, tok, n_vocab, NULL), 0);
    sl_generation_begin(generation, engine_rig_kv(engine, 0), m->tokens, 5, 1);
    assert_int_equal(sl_generation_tokens_left(generation), 5);
    first = sl_generation_next_span(generation, 5, 0);
    assert_int_equal(first.logits, SL_LOGITS_LAST);
    assert_int_equal(sl_generation_take_logits(generation, 4, broken, engine->sampling[0], &err),
                     -SL_ECORRUPT);
    sl_generation_step_ended(generation, -SL_ECORRUPT);
    assert_int_equal(sl_generation_output_count(generation), 0);
    assert_int_equal(sl_generation_tokens_left(generation), 5);
    again = sl_generation_next_span(generation, 5, 0);
    assert_memory_equal(&again, &first, sizeof(first));
    sl_generation_step_ended(generation, -EIO);
    again =
        sl_generation_next_span(generation, 4, 0); /* the last one is what logits are wanted of */
    assert_int_equal(again.logits, SL_LOGITS_NONE);
    sl_generation_step_ended(generation, -EIO);
    sl_generation_destroy(generation);
    sl_tokenizer_close(tok);
    sl_engine_close(engine);
    free(broken);
}

static void test_options_that_are_refused(void **state)
{
    struct sl_generation_options options = {.sampler = SL_SAMPLER_DEFAULT};
    struct sl_generation *generation = NULL;
    struct sl_tokenizer *tok;
    struct sl_err err;

    (void)state;
    assert_int_equal(sl_tokenizer_open(&tok, "tests/data/tokenizer.json", NULL), 0);
    options.sampler.top_p = 2;
    assert_int_equal(sl_generation_create(&generation, &options, tok, 10, &err), -EINVAL);
    assert_non_null(strstr(err.message, "top-p"));
    assert_null(generation);
    sl_tokenizer_close(tok);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_text_is_what_it_is_alone),
        cmocka_unit_test(test_guesses_change_no_text),
        cmocka_unit_test(test_right_guesses_change_no_text),
        cmocka_unit_test(test_the_draft_sees_the_end),
        cmocka_unit_test(test_logits_that_allow_no_choice),
        cmocka_unit_test(test_options_that_are_refused),
    };

    const struct CMUnitTest dspark[] = {
        cmocka_unit_test(test_guesses_change_no_text),
    };
    int n_failed;

    print_message("SL_SEED=%" PRIu64 "\n", inputs_seed());
    n_failed =
        cmocka_run_group_tests_name("generation", tests, engine_rig_create, engine_rig_destroy);
    return n_failed + cmocka_run_group_tests_name("generation with DSpark", dspark,
                                                  engine_rig_create_dspark, engine_rig_destroy);
}
