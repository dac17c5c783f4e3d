#include "tests/worker_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/base/clock.h"
#include "daemon/engine/shared_step.h"
#include "tests/kernel_inputs.h"

/* ---- the engine, and texts alone ---------------------------------------------------------------
 */

uint64_t worker_rig_kv_bytes(const struct worker_rig *w)
{
    const uint32_t n_layers = w->m->config.num_hidden_layers;
    struct sl_kv_layout layout;
    uint64_t bytes;

    if (w->kv_sessions == 0)
        return w->kv_bytes;
    assert_int_equal(sl_kv_layout_init(&layout, &w->m->config, n_layers, SL_NUMERICS_NATIVE, NULL),
                     0);
    bytes = w->kv_sessions * sl_kv_cache_measure(&layout, WORKER_CONTEXT_TOKENS);
    sl_kv_layout_fini(&layout);
    return bytes;
}

static void count_note(void *context, const char *line)
{
    struct worker_rig *w = context;

    w->n_notes++;
    snprintf(w->note, sizeof(w->note), "%s", line);
}

static struct sl_engine_options engine_options(struct worker_rig *w)
{
    struct sl_engine_options options = engine_rig_options(w->m);

    options.draft = SL_DRAFT_NONE;
    options.drafts = w->drafts;
    options.n_sequences = 6;
    options.context_tokens = WORKER_CONTEXT_TOKENS;
    options.segment_tokens = w->segment_tokens > 0 ? w->segment_tokens : 48;
    options.small_step_tokens = 12;
    options.kv_bytes = worker_rig_kv_bytes(w);
    options.images = w->images;
    options.images_bytes_max = w->images_bytes_max > 0 ? w->images_bytes_max : UINT64_MAX;
    options.images_writer = w->images_writer;
    options.images_optional = true;
    options.on_note = count_note;
    options.on_note_context = w;
    if (w->plan)
        engine_rig_make_faulty(&options);
    return options;
}

static int open_engine(void *context, struct sl_engine **ret_engine, struct sl_err *err)
{
    struct worker_rig *w = context;
    const struct sl_engine_options options = engine_options(w);
    int rc = sl_engine_open(ret_engine, &options, NULL, err);

    if (rc == 0 && w->plan)
        io_fault_set(engine_rig_faulty(), w->plan);
    return rc;
}

static void on_state(void *context, enum sl_worker_state state)
{
    struct worker_rig *w = context;

    pthread_mutex_lock(&w->lock);
    w->is_ready |= state != SL_WORKER_LOADING;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

static void on_failure(void *context, const struct sl_err *err)
{
    struct worker_rig *w = context;

    memcpy(w->failure, err->message, sizeof(w->failure));
    if (++w->n_failures == w->heal_after)
        io_fault_heal(engine_rig_faulty());
}

static struct sl_generation *make_generation(struct worker_rig *w,
                                             const struct worker_client *client)
{
    const struct sl_generation_options options = {
        .sampler = SL_SAMPLER_DEFAULT,
        .rules = {.eos_token_id = UINT32_MAX,
                  .n_new_max = client->n_new,
                  .context_tokens = WORKER_CONTEXT_TOKENS},
    };
    struct sl_generation *generation;

    assert_int_equal(
        sl_generation_create(&generation, &options, w->tok, w->m->config.vocab_size, NULL), 0);
    return generation;
}

static void make_alone(struct worker_rig *w, struct sl_engine *engine, struct sl_shared_step *step,
                       uint32_t i)
{
    static const struct sl_step_request hooks;
    struct worker_client *client = &w->clients[i];
    struct sl_generation *generation = make_generation(w, client);
    struct sl_kv_cache *kv;
    uint32_t n_made = 0;
    size_t length = 0;

    assert_int_equal(sl_engine_sequence_create(engine, WORKER_CONTEXT_TOKENS, &kv, NULL), 0);
    sl_generation_begin(generation, kv, client->prompt, client->n_prompt, 100 + i);
    while (sl_generation_finish(generation) == SL_FINISH_NONE) {
        assert_int_equal(sl_shared_step_run(step, &generation, 1, &hooks, NULL), 0);
        for (uint32_t k = 0; k < sl_generation_output_count(generation); k++) {
            const struct sl_generation_output output = sl_generation_output(generation, k);

            if (output.token)
                client->made[n_made++] = (int32_t)output.token->id;
            assert_true(length + output.length < WORKER_TEXT_BYTES);
            if (output.length > 0)
                memcpy(client->alone + length, output.text, output.length);
            length += output.length;
        }
    }
    client->alone[length] = '\0';
    sl_engine_sequence_destroy(engine, kv);
    sl_generation_destroy(generation);
}

/* Many prompts begin alike, so that sessions are gone on with and forked. */
static void make_prompts(struct worker_rig *w)
{
    for (uint32_t i = 0; i < WORKER_CLIENTS; i++) {
        struct worker_client *client = &w->clients[i];
        uint64_t shared = i % 3;

        client->w = w;
        client->n_prompt =
            i % 4 == 0 ? 1 + fixture_below(&w->random, 8) : 70 + fixture_below(&w->random, 60);
        client->n_new = (w->n_new_min > 0 ? w->n_new_min : 1) + fixture_below(&w->random, 24);
        for (uint32_t t = 0; t < client->n_prompt; t++)
            client->prompt[t] =
                (int32_t)fixture_below(t < 68 ? &shared : &w->random, w->m->config.vocab_size);
    }
}

/* In one engine, one after the other, without images. */
static void make_all_alone(struct worker_rig *w)
{
    struct sl_engine_options options = engine_options(w);
    struct sl_shared_step *step;
    struct sl_engine *engine;

    options.images = NULL;
    options.drafts = 0;
    assert_int_equal(sl_engine_open(&engine, &options, NULL, NULL), 0);
    assert_int_equal(sl_shared_step_create(&step, engine, SL_STEP_LARGE, NULL), 0);
    for (uint32_t i = 0; i < WORKER_CLIENTS; i++)
        make_alone(w, engine, step, i);
    sl_shared_step_destroy(step);
    sl_engine_close(engine);
}

void worker_rig_init(struct worker_rig *w, struct engine_rig *m)
{
    w->m = m;
    w->random = inputs_seed();
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    assert_int_equal(sl_tokenizer_open(&w->tok, "tests/data/tokenizer.json", NULL), 0);
    make_prompts(w);
    make_all_alone(w);
}

void worker_rig_next_turn(struct worker_rig *w)
{
    for (uint32_t i = 0; i < WORKER_CLIENTS; i++) {
        struct worker_client *client = &w->clients[i];

        assert_true(client->n_prompt + 2 * client->n_new + WORKER_TURN_TOKENS <=
                    WORKER_CONTEXT_TOKENS);
        for (uint32_t n = 0; n < client->n_new; n++)
            client->prompt[client->n_prompt++] = client->made[n];
        for (uint32_t n = 0; n < WORKER_TURN_TOKENS; n++)
            client->prompt[client->n_prompt++] =
                (int32_t)fixture_below(&w->random, w->m->config.vocab_size);
    }
    make_all_alone(w);
}

void worker_rig_start(struct worker_rig *w, uint32_t queue_max)
{
    const struct sl_worker_options options = {
        .open = open_engine,
        .on_state = on_state,
        .on_failure = on_failure,
        .context = w,
        .n_texts_max = w->texts_max > 0 ? w->texts_max : 6,
        .context_tokens = WORKER_CONTEXT_TOKENS,
        .turn_token = -1,
        .queue_max = queue_max,
        .keep_prompt_ns = 60 * NS_PER_S,
    };

    w->is_ready = false;
    assert_int_equal(sl_worker_start(&w->worker, &options, NULL), 0);
    pthread_mutex_lock(&w->lock);
    while (!w->is_ready)
        pthread_cond_wait(&w->changed, &w->lock);
    pthread_mutex_unlock(&w->lock);
    assert_int_equal(sl_worker_state(w->worker), SL_WORKER_READY);
}

void worker_rig_fini(struct worker_rig *w)
{
    sl_tokenizer_close(w->tok);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
}

/* ---- clients -----------------------------------------------------------------------------------
 */

static void notify(void *owner)
{
    struct worker_client *client = owner;

    if (client->w->on_news)
        client->w->on_news(client);
    pthread_mutex_lock(&client->w->lock);
    client->w->n_news++;
    pthread_cond_broadcast(&client->w->changed);
    pthread_mutex_unlock(&client->w->lock);
}

static void release(void *owner)
{
    struct worker_client *client = owner;
    struct worker_rig *w = client->w;

    sl_ticket_fini(&client->ticket);
    pthread_mutex_lock(&w->lock);
    client->is_released = true;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

int worker_rig_submit(struct worker_rig *w, uint32_t i)
{
    struct worker_client *client = &w->clients[i];
    struct sl_text *text;

    assert_int_equal(sl_ticket_init(&client->ticket, 1), 0);
    client->ticket.owner = client;
    client->ticket.notify = notify;
    client->ticket.release = release;
    client->ticket.image_every_tokens = client->image_every_tokens;
    client->ticket.class = client->class;
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

void worker_rig_read(struct worker_client *client)
{
    struct sl_bytes list = {0};
    struct sl_news news;

    if (sl_ticket_take(&client->ticket, &list))
        sl_worker_notice(client->w->worker, &client->ticket);
    for (size_t at = 0; sl_news_next(&list, &at, &news);) {
        assert_false(client->is_done); /* nothing comes after the end */
        assert_true(client->length + news.length < WORKER_TEXT_BYTES);
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
void worker_rig_read_all(struct worker_client *client)
{
    struct worker_rig *w = client->w;

    while (!client->is_done) {
        uint64_t seen;

        pthread_mutex_lock(&w->lock);
        seen = w->n_news;
        pthread_mutex_unlock(&w->lock);
        worker_rig_read(client);
        pthread_mutex_lock(&w->lock);
        while (!client->is_done && seen == w->n_news)
            pthread_cond_wait(&w->changed, &w->lock);
        pthread_mutex_unlock(&w->lock);
    }
    sl_ticket_let_go(&client->ticket);
}

void worker_rig_leave(struct worker_client *client)
{
    client->has_left = true;
    atomic_store(&client->ticket.is_abandoned, true);
    sl_worker_notice(client->w->worker, &client->ticket);
    sl_ticket_let_go(&client->ticket);
}

void worker_rig_stop(struct worker_rig *w, uint64_t grace_ns)
{
    sl_worker_stop(w->worker, grace_ns);
    sl_worker_join(w->worker);
}

void worker_rig_wait_released(struct worker_rig *w)
{
    pthread_mutex_lock(&w->lock);
    for (uint32_t i = 0; i < WORKER_CLIENTS; i++)
        while (!w->clients[i].is_released)
            pthread_cond_wait(&w->changed, &w->lock);
    pthread_mutex_unlock(&w->lock);
}

void worker_rig_assert_released(struct worker_rig *w)
{
    for (uint32_t i = 0; i < WORKER_CLIENTS; i++)
        assert_true(w->clients[i].is_released);
}
