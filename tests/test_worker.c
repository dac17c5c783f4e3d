/* The worker: whole engines on the tiny model, with clients that come all at once, read or let the
 * news pile up, go away, or want no more of a text. What is made must be what each text is alone;
 * everybody is told an end; a failed read ends the requests of its step with an error that names
 * it, after one more try, and nobody else's. SL_SEED repeats the clients, not the threads' timing.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/base/clock.h"
#include "daemon/engine/shared_step.h"
#include "daemon/worker/worker.h"
#include "tests/engine_rig.h"
#include "tests/kernel_inputs.h"

#define CLIENTS 16u
#define CONTEXT_TOKENS 192u
#define TEXT_BYTES 4096u
#define NS_PER_S UINT64_C(1000000000)

struct world;

struct client {
    struct sl_ticket ticket; /* first */
    struct world *w;
    int32_t prompt[CONTEXT_TOKENS];
    uint32_t n_prompt, n_new;
    char text[TEXT_BYTES], alone[TEXT_BYTES];
    size_t length;
    bool is_done, has_failed, has_left;
    bool is_released; /* under the world's lock */
    int status;
    char why[1024];
    struct sl_usage usage;
};

struct world {
    struct engine_rig *m;
    uint64_t kv_bytes; /* 0: little, so that sessions give way to each other */
    struct sl_tokenizer *tok;
    struct sl_worker *worker;
    struct client clients[CLIENTS];
    const struct io_fault_plan *plan; /* NULL: reads do not fail */
    uint32_t heal_after;              /* failed steps */
    uint32_t n_failures;              /* the worker's thread counts */
    char failure[1024];
    uint64_t random;

    pthread_mutex_t lock; /* guards the rest, and is_released */
    pthread_cond_t changed;
    uint64_t n_news;
    bool is_ready;
};

/* ---- the engine, and texts alone ---------------------------------------------------------------
 */

static struct sl_engine_options engine_options(const struct world *w)
{
    struct sl_engine_options options = engine_rig_options(w->m);

    options.draft = SL_DRAFT_NONE;
    options.n_sequences = 6;
    options.context_tokens = CONTEXT_TOKENS;
    options.segment_tokens = 48;
    options.small_step_tokens = 12;
    options.kv_bytes = w->kv_bytes;
    if (w->plan)
        engine_rig_make_faulty(&options);
    return options;
}

static int open_engine(void *context, struct sl_engine **ret_engine, struct sl_err *err)
{
    struct world *w = context;
    const struct sl_engine_options options = engine_options(w);
    int rc = sl_engine_open(ret_engine, &options, NULL, err);

    if (rc == 0 && w->plan)
        io_fault_set(engine_rig_faulty(), w->plan);
    return rc;
}

static void on_state(void *context, enum sl_worker_state state)
{
    struct world *w = context;

    pthread_mutex_lock(&w->lock);
    w->is_ready |= state != SL_WORKER_LOADING;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

static void on_failure(void *context, const struct sl_err *err)
{
    struct world *w = context;

    memcpy(w->failure, err->message, sizeof(w->failure));
    if (++w->n_failures == w->heal_after)
        io_fault_heal(engine_rig_faulty());
}

static struct sl_generation *make_generation(struct world *w, const struct client *client)
{
    const struct sl_generation_options options = {
        .sampler = SL_SAMPLER_DEFAULT,
        .rules = {.eos_token_id = UINT32_MAX,
                  .n_new_max = client->n_new,
                  .context_tokens = CONTEXT_TOKENS},
    };
    struct sl_generation *generation;

    assert_int_equal(
        sl_generation_create(&generation, &options, w->tok, w->m->config.vocab_size, NULL), 0);
    return generation;
}

static void make_alone(struct world *w, struct sl_engine *engine, struct sl_shared_step *step,
                       uint32_t i)
{
    static const struct sl_step_request hooks;
    struct client *client = &w->clients[i];
    struct sl_generation *generation = make_generation(w, client);
    struct sl_kv_cache *kv;
    size_t length = 0;

    assert_int_equal(sl_engine_sequence_create(engine, CONTEXT_TOKENS, &kv, NULL), 0);
    sl_generation_begin(generation, kv, client->prompt, client->n_prompt, 100 + i);
    while (sl_generation_finish(generation) == SL_FINISH_NONE) {
        struct sl_generation_output output;

        assert_int_equal(sl_shared_step_run(step, &generation, 1, &hooks, NULL), 0);
        output = sl_generation_output(generation);
        assert_true(length + output.length < TEXT_BYTES);
        if (output.length > 0)
            memcpy(client->alone + length, output.text, output.length);
        length += output.length;
    }
    client->alone[length] = '\0';
    sl_engine_sequence_destroy(engine, kv);
    sl_generation_destroy(generation);
}

/* Many prompts begin alike, so that sessions are gone on with and forked. */
static void make_prompts(struct world *w)
{
    for (uint32_t i = 0; i < CLIENTS; i++) {
        struct client *client = &w->clients[i];
        uint64_t shared = i % 3;

        client->w = w;
        client->n_prompt =
            i % 4 == 0 ? 1 + fixture_below(&w->random, 8) : 70 + fixture_below(&w->random, 60);
        client->n_new = 1 + fixture_below(&w->random, 24);
        for (uint32_t t = 0; t < client->n_prompt; t++)
            client->prompt[t] =
                (int32_t)fixture_below(t < 68 ? &shared : &w->random, w->m->config.vocab_size);
    }
}

static void world_init(struct world *w, struct engine_rig *m)
{
    struct sl_engine_options options;
    struct sl_shared_step *step;
    struct sl_engine *engine;

    w->m = m;
    options = engine_options(w);
    w->random = inputs_seed();
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    assert_int_equal(sl_tokenizer_open(&w->tok, "tests/data/tokenizer.json", NULL), 0);
    make_prompts(w);
    assert_int_equal(sl_engine_open(&engine, &options, NULL, NULL), 0);
    assert_int_equal(sl_shared_step_create(&step, engine, SL_STEP_LARGE, NULL), 0);
    for (uint32_t i = 0; i < CLIENTS; i++)
        make_alone(w, engine, step, i);
    sl_shared_step_destroy(step);
    sl_engine_close(engine);
}

static void start(struct world *w, uint32_t queue_max)
{
    const struct sl_worker_options options = {
        .open = open_engine,
        .on_state = on_state,
        .on_failure = on_failure,
        .context = w,
        .n_texts_max = 6,
        .context_tokens = CONTEXT_TOKENS,
        .turn_token = -1,
        .queue_max = queue_max,
        .keep_prompt_ns = 60 * NS_PER_S,
    };

    assert_int_equal(sl_worker_start(&w->worker, &options, NULL), 0);
    pthread_mutex_lock(&w->lock);
    while (!w->is_ready)
        pthread_cond_wait(&w->changed, &w->lock);
    pthread_mutex_unlock(&w->lock);
    assert_int_equal(sl_worker_state(w->worker), SL_WORKER_READY);
}

static void world_fini(struct world *w)
{
    sl_tokenizer_close(w->tok);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
}

/* ---- clients -----------------------------------------------------------------------------------
 */

static void notify(void *owner)
{
    struct client *client = owner;

    pthread_mutex_lock(&client->w->lock);
    client->w->n_news++;
    pthread_cond_broadcast(&client->w->changed);
    pthread_mutex_unlock(&client->w->lock);
}

static void release(void *owner)
{
    struct client *client = owner;
    struct world *w = client->w;

    sl_ticket_fini(&client->ticket);
    pthread_mutex_lock(&w->lock);
    client->is_released = true;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

static int submit(struct world *w, uint32_t i)
{
    struct client *client = &w->clients[i];
    struct sl_text *text;

    assert_int_equal(sl_ticket_init(&client->ticket, 1), 0);
    client->ticket.owner = client;
    client->ticket.notify = notify;
    client->ticket.release = release;
    client->length = 0;
    client->is_done = client->has_failed = client->has_left = client->is_released = false;
    text = &client->ticket.texts[0];
    text->tokens = client->prompt;
    text->n_tokens = client->n_prompt;
    text->n_new_max = client->n_new;
    text->generation = make_generation(w, client);
    text->seed = 100 + i;
    return sl_worker_submit(w->worker, &client->ticket);
}

static void take_news(struct client *client)
{
    struct sl_bytes list = {0};
    struct sl_news news;

    if (sl_ticket_take(&client->ticket, &list))
        sl_worker_notice(client->w->worker, &client->ticket);
    for (size_t at = 0; sl_news_next(&list, &at, &news);) {
        assert_false(client->is_done); /* nothing comes after the end */
        assert_true(client->length + news.length < TEXT_BYTES);
        if (news.kind == SL_NEWS_PIECE && news.length > 0)
            memcpy(client->text + client->length, news.text, news.length);
        if (news.kind == SL_NEWS_PIECE)
            client->length += news.length;
        client->is_done = news.kind == SL_NEWS_END || news.kind == SL_NEWS_FAILED;
        client->has_failed = news.kind == SL_NEWS_FAILED;
        client->usage = news.usage;
        client->status = news.status;
        if (client->has_failed)
            memcpy(client->why, news.text, news.length < 1023 ? news.length : 1023);
    }
    client->text[client->length] = '\0';
    sl_bytes_fini(&list);
}

/* Reads until the client's text has ended, and lets go of the ticket. */
static void read_all(struct client *client)
{
    struct world *w = client->w;

    while (!client->is_done) {
        uint64_t seen;

        pthread_mutex_lock(&w->lock);
        seen = w->n_news;
        pthread_mutex_unlock(&w->lock);
        take_news(client);
        pthread_mutex_lock(&w->lock);
        while (!client->is_done && seen == w->n_news)
            pthread_cond_wait(&w->changed, &w->lock);
        pthread_mutex_unlock(&w->lock);
    }
    sl_ticket_let_go(&client->ticket);
}

static void leave(struct client *client)
{
    client->has_left = true;
    atomic_store(&client->ticket.is_abandoned, true);
    sl_worker_notice(client->w->worker, &client->ticket);
    sl_ticket_let_go(&client->ticket);
}

static void stop(struct world *w, uint64_t grace_ns)
{
    sl_worker_stop(w->worker, grace_ns);
    sl_worker_join(w->worker);
}

static void assert_all_released(struct world *w)
{
    for (uint32_t i = 0; i < CLIENTS; i++)
        assert_true(w->clients[i].is_released);
}

/* ---- tests -------------------------------------------------------------------------------------
 */

static void test_company(void **state)
{
    static struct world w = {.kv_bytes = UINT64_C(64) << 20};
    struct sl_worker_status status;

    world_init(&w, *state);
    start(&w, CLIENTS);
    for (uint32_t round = 0; round < 2; round++) {
        for (uint32_t i = 0; i < CLIENTS; i++)
            assert_int_equal(submit(&w, i), 0);
        for (uint32_t i = 0; i < CLIENTS; i++) {
            struct client *client = &w.clients[(i * 7) % CLIENTS]; /* 7 has no factor of them */

            if (round > 0 && i % 5 == 1) {
                leave(client);
                continue;
            }
            read_all(client);
            assert_false(client->has_failed);
            assert_string_equal(client->text, client->alone);
            assert_int_equal(client->usage.n_new_tokens, client->n_new);
            assert_int_equal(client->usage.n_prompt_tokens, client->n_prompt);
            assert_true(client->usage.n_cached_tokens < client->n_prompt);
        }
        pthread_mutex_lock(&w.lock); /* a ticket's memory is used again */
        for (uint32_t i = 0; i < CLIENTS; i++)
            while (!w.clients[i].is_released)
                pthread_cond_wait(&w.changed, &w.lock);
        pthread_mutex_unlock(&w.lock);
    }
    sl_worker_status(w.worker, &status);
    assert_int_equal(status.counters.n_requests, 2 * CLIENTS);
    assert_int_equal(status.counters.n_failed, 0);
    assert_true(status.counters.n_cached_tokens > 1000); /* of prompts that begin alike */
    stop(&w, 10 * NS_PER_S);
    assert_all_released(&w);
    world_fini(&w);
}

/* Reads of one expert fail for good, until four steps have failed, of which two at least had the
 * same requests: these end with the error that names it, and all others as if nothing had been. */
static void test_failed_reads(void **state)
{
    static const struct io_fault_plan plan = {
        .fail_nth = 60, .fail_kind = IO_FAULT_FAIL, .fail_code = -EIO, .fail_for_good = true};
    static struct world w = {.heal_after = 4};
    uint32_t n_failed = 0;

    w.plan = NULL;
    world_init(&w, *state);
    w.plan = &plan;
    start(&w, CLIENTS);
    for (uint32_t i = 0; i < CLIENTS; i++)
        assert_int_equal(submit(&w, i), 0);
    for (uint32_t i = 0; i < CLIENTS; i++) {
        struct client *client = &w.clients[i];

        read_all(client);
        n_failed += client->has_failed;
        if (!client->has_failed) {
            assert_string_equal(client->text, client->alone);
            continue;
        }
        assert_int_equal(client->status, 500);
        assert_non_null(strstr(client->why, "layer"));
        assert_non_null(strstr(client->why, "expert"));
    }
    assert_int_equal(w.n_failures, 4);
    assert_true(n_failed >= 1 && n_failed <= 12); /* those of one step, or two */
    stop(&w, 10 * NS_PER_S);
    assert_all_released(&w);
    world_fini(&w);
}

/* A step that fails once is taken once more, and nobody is told. */
static void test_one_failed_step(void **state)
{
    static const struct io_fault_plan plan = {
        .fail_nth = 60, .fail_kind = IO_FAULT_FAIL, .fail_code = -EIO, .fail_for_good = true};
    static struct world w = {.heal_after = 1};

    w.plan = NULL;
    world_init(&w, *state);
    w.plan = &plan;
    start(&w, CLIENTS);
    for (uint32_t i = 0; i < CLIENTS; i++)
        assert_int_equal(submit(&w, i), 0);
    for (uint32_t i = 0; i < CLIENTS; i++) {
        read_all(&w.clients[i]);
        assert_false(w.clients[i].has_failed);
        assert_string_equal(w.clients[i].text, w.clients[i].alone);
    }
    assert_int_equal(w.n_failures, 1);
    stop(&w, 10 * NS_PER_S);
    assert_all_released(&w);
    world_fini(&w);
}

/* More than the queue takes are refused; a stop at once ends what is under way, and all are told.
 */
static void test_queue_and_stop(void **state)
{
    static struct world w;
    uint32_t n_refused = 0;

    world_init(&w, *state);
    start(&w, 3);
    for (uint32_t i = 0; i < CLIENTS; i++) {
        const int rc = submit(&w, i);

        assert_true(rc == 0 || (rc == -EBUSY && i > 2));
        n_refused += rc < 0;
        w.clients[i].has_left = rc < 0;
        if (rc < 0)
            sl_ticket_let_go(&w.clients[i].ticket);
        else if (i == 1)
            leave(&w.clients[i]); /* its prompt is kept, and ends with the worker */
    }
    assert_true(n_refused > 0 && n_refused <= CLIENTS - 3);
    sl_worker_stop(w.worker, 0);
    for (uint32_t i = 0; i < CLIENTS; i++) {
        struct client *client = &w.clients[i];

        if (client->has_left)
            continue;
        read_all(client);
        if (client->has_failed)
            assert_int_equal(client->status, 503);
        else
            assert_string_equal(client->text, client->alone);
    }
    sl_worker_join(w.worker);
    assert_all_released(&w);
    world_fini(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_company),
        cmocka_unit_test(test_failed_reads),
        cmocka_unit_test(test_one_failed_step),
        cmocka_unit_test(test_queue_and_stop),
    };

    return cmocka_run_group_tests_name("worker", tests, engine_rig_create, engine_rig_destroy);
}
