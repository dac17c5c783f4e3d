/* A worker without a model, for tests of clients: it answers as a script says, so that an agent can
 * be led through a call of a tool. It stands in for daemon/worker/worker.c in a server that is
 * otherwise whole.
 *
 * The file $SLUICE_SCRIPT holds a JSON list of {"if": TEXT, "answer": TEXT, "delay_s": N}: the
 * first whose "if" is in the prompt answers, a few characters at a time, after the delay.
 * $SLUICE_MODEL is the model's folder, for its tokenizer. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/bytes.h"
#include "core/base/json.h"
#include "core/text/tokenizer.h"
#include "core/text/utf8.h"
#include "daemon/worker/worker.h"

#define PIECE_US 20000

struct sl_worker {
    struct sl_worker_options options;
    struct sl_tokenizer *tok;
    json_t *script;
    atomic_int state;
    pthread_mutex_t lock;
    pthread_cond_t is_idle;
    uint32_t n_running;
};

const struct sl_metrics sl_worker_metrics = {NULL, 0};

struct turn {
    struct sl_worker *worker;
    struct sl_ticket *ticket;
};

/* ---- answers -----------------------------------------------------------------------------------
 */

static const json_t *choose(const struct sl_worker *w, const struct sl_text *text)
{
    struct sl_bytes prompt = {0};
    const json_t *chosen = NULL;

    for (uint32_t i = 0; i < text->n_tokens; i++) {
        size_t length;
        const uint8_t *bytes = sl_tokenizer_bytes(w->tok, (uint32_t)text->tokens[i], &length);

        sl_bytes_add(&prompt, bytes, length);
    }
    for (size_t i = 0; !chosen && i < json_array_size(w->script); i++) {
        const json_t *entry = json_array_get(w->script, i);
        const char *words = json_string_value(json_object_get(entry, "if"));

        if (memmem(prompt.data, prompt.length, words, strlen(words)))
            chosen = entry;
    }
    sl_bytes_fini(&prompt);
    return chosen;
}

static void tell_pieces(struct sl_ticket *ticket, const char *answer)
{
    const size_t length = strlen(answer);

    for (size_t at = 0; at < length && !atomic_load(&ticket->is_abandoned);) {
        struct sl_news news = {.kind = SL_NEWS_PIECE, .has_token = true, .text = answer + at};

        for (int i = 0; i < 7 && at + news.length < length; i++)
            news.length += (size_t)sl_utf8_scan((const uint8_t *)answer + at + news.length,
                                                length - at - news.length);
        at += news.length;
        sl_ticket_tell(ticket, &news);
        ticket->notify(ticket->owner);
        usleep(PIECE_US);
    }
}

static void answer(const struct sl_worker *w, struct sl_ticket *ticket)
{
    const struct sl_text *text = &ticket->texts[0];
    const json_t *entry = choose(w, text);
    const json_int_t delay_s = json_integer_value(json_object_get(entry, "delay_s"));
    struct sl_news finish = {.kind = SL_NEWS_FINISH, .finish = SL_FINISH_END_OF_TEXT};
    struct sl_news end = {.kind = SL_NEWS_END, .usage = {.n_prompt_tokens = text->n_tokens}};

    atomic_store(&ticket->has_begun, true);
    atomic_store(&ticket->n_prompt_tokens, text->n_tokens);
    for (json_int_t s = 0; s < delay_s && !atomic_load(&ticket->is_abandoned); s++)
        sleep(1);
    tell_pieces(ticket, entry ? json_string_value(json_object_get(entry, "answer")) : "?");
    sl_ticket_tell(ticket, &finish);
    sl_ticket_tell(ticket, &end);
    ticket->notify(ticket->owner);
}

static void *turn_main(void *context)
{
    struct turn turn = *(struct turn *)context;

    free(context);
    answer(turn.worker, turn.ticket);
    sl_ticket_let_go(turn.ticket);
    pthread_mutex_lock(&turn.worker->lock);
    turn.worker->n_running--;
    pthread_cond_broadcast(&turn.worker->is_idle);
    pthread_mutex_unlock(&turn.worker->lock);
    return NULL;
}

/* ---- what the server calls ---------------------------------------------------------------------
 */

int sl_worker_start(struct sl_worker **ret_worker, const struct sl_worker_options *options,
                    struct sl_err *err)
{
    struct sl_worker *w = calloc(1, sizeof(*w));
    int rc;

    sl_assert(w);
    w->options = *options;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->is_idle, NULL);
    rc = sl_tokenizer_open(&w->tok, getenv("SLUICE_MODEL"), err);
    if (rc == 0)
        rc = sl_json_read_file(&w->script, getenv("SLUICE_SCRIPT"), 1u << 20, err);
    if (rc < 0)
        return rc;
    atomic_store(&w->state, SL_WORKER_READY);
    *ret_worker = w;
    options->on_state(options->context, SL_WORKER_READY);
    return 0;
}

void sl_worker_stop(struct sl_worker *w, uint64_t grace_ns)
{
    (void)grace_ns;
    atomic_store(&w->state, SL_WORKER_ENDED);
    w->options.on_state(w->options.context, SL_WORKER_ENDED);
}

void sl_worker_join(struct sl_worker *w)
{
    pthread_mutex_lock(&w->lock);
    while (w->n_running > 0)
        pthread_cond_wait(&w->is_idle, &w->lock);
    pthread_mutex_unlock(&w->lock);
    json_decref(w->script);
    sl_tokenizer_close(w->tok);
    free(w);
}

int sl_worker_submit(struct sl_worker *w, struct sl_ticket *ticket)
{
    struct turn *turn = malloc(sizeof(*turn));
    pthread_t thread;

    sl_assert(turn);
    *turn = (struct turn){w, ticket};
    sl_ticket_hold(ticket);
    pthread_mutex_lock(&w->lock);
    w->n_running++;
    pthread_mutex_unlock(&w->lock);
    sl_assert(pthread_create(&thread, NULL, turn_main, turn) == 0);
    pthread_detach(thread);
    return 0;
}

void sl_worker_notice(struct sl_worker *w, struct sl_ticket *ticket)
{
    (void)w;
    (void)ticket;
}

enum sl_worker_state sl_worker_state(struct sl_worker *w)
{
    return (enum sl_worker_state)atomic_load(&w->state);
}

void sl_worker_status(struct sl_worker *w, struct sl_worker_status *ret_status)
{
    *ret_status = (struct sl_worker_status){.state = sl_worker_state(w)};
}

bool sl_worker_resident(struct sl_worker *w, uint32_t layer_index, uint8_t *ret_bits)
{
    (void)w;
    (void)layer_index;
    (void)ret_bits;
    return false;
}
