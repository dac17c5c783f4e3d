/* The ticket's news becomes events, and these the protocol's bytes, on the call's thread and only
 * when it has room for them. So a client that reads slowly lets the news pile up in the ticket,
 * which is bounded, and the worker leaves its texts out of the steps meanwhile.
 *
 * A reply that is given whole waits for its status until all is known. When that takes long, the
 * status is sent at once all the same, and blanks before the JSON, so that the client stays. */
#include "daemon/http/exchange.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "core/base/assert.h"
#include "core/base/clock.h"
#include "core/base/size.h"
#include "core/text/chat_parse.h"
#include "daemon/http/prompt_ids.h"

/* A reply that waits says something after that long, a little before the server looks again. */
#define SILENCE_NS (SL_HTTP_PULSE_NS - SL_HTTP_PULSE_NS / 10)

#define RETRY_AFTER_S 5u

/* One text, as its reader sees it. */
struct choice {
    struct exchange *exchange;
    uint32_t index;
    struct sl_chat_parser *parser;  /* NULL: plain text */
    struct sl_stop_matcher matcher; /* of the answer, in a conversation */
    const char *stop_string;        /* has come */
    bool in_reasoning, has_ended;
    uint32_t n_calls;
};

struct exchange {
    struct sl_ticket ticket;
    const struct sl_front *front;
    const struct sl_protocol *protocol;
    struct sl_request request;
    struct sl_prompt_ids ids;
    struct sl_reply_identity identity;
    void *reply;
    struct choice *choices; /* (ticket.n_texts) */

    pthread_mutex_t lock;      /* guards `call` against its end */
    struct sl_http_call *call; /* NULL: it is over */

    struct sl_bytes news, out, traced;
    size_t n_sent;   /* of `out` */
    bool is_sending; /* the status is on its way */
    bool has_ended, has_failed;
    struct sl_refusal refusal; /* if it has failed */
    uint64_t begun_ns, said_ns, first_ns;
    uint32_t n_new_tokens, n_reasoning_tokens;
    struct sl_usage usage;
    struct sl_log_entry entry;
};

static void make_id(char *id, size_t size)
{
    static const char letters[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    uint8_t random[32];
    ssize_t n = getrandom(random, sizeof(random), 0);

    sl_assert(n == sizeof(random) && size <= sizeof(random) + 1);
    for (size_t i = 0; i + 1 < size; i++)
        id[i] = letters[random[i] % (sizeof(letters) - 1)];
    id[size - 1] = '\0';
}

/* Small enough to be exact where numbers are doubles. */
static uint64_t draw_seed(void)
{
    uint64_t seed = 0;
    ssize_t n = getrandom(&seed, sizeof(seed), 0);

    sl_assert(n == sizeof(seed));
    return seed >> 11;
}

/* ---- events ------------------------------------------------------------------------------------
 */

static void say(struct exchange *x, const struct sl_reply_event *event)
{
    const size_t before = x->out.length;

    x->protocol->write(x->reply, event, &x->out);
    if (x->out.length > before)
        x->said_ns = sl_clock_ns();
}

static void say_text(struct choice *choice, enum sl_reply_kind kind, const char *text,
                     size_t length)
{
    const struct sl_reply_event event = {
        .kind = kind, .choice_index = choice->index, .text = text, .length = length};

    if (length > 0)
        say(choice->exchange, &event);
}

/* The answer goes through the stop strings; reasoning and calls do not. */
static void take_answer(struct choice *choice, const char *text, size_t length)
{
    struct exchange *x = choice->exchange;
    char shown[4096 + SL_STOP_STRING_BYTES_MAX];

    if (x->request.stops.n_strings == 0) {
        say_text(choice, SL_REPLY_CONTENT, text, length);
        return;
    }
    while (length > 0 && !choice->stop_string) {
        const size_t part = length < 4096 ? length : 4096;
        const size_t n = sl_stop_matcher_push(&choice->matcher, &x->request.stops, text, part,
                                              shown, &choice->stop_string);

        say_text(choice, SL_REPLY_CONTENT, shown, n);
        text += part;
        length -= part;
    }
}

static void take_call(struct choice *choice, const struct sl_chat_event *call)
{
    struct sl_reply_event event = {.kind = SL_REPLY_CALL, .choice_index = choice->index};
    char id[32] = "call_";

    make_id(id + 5, 25);
    event.call.id = id;
    event.call.name = call->name;
    event.call.index = choice->n_calls++;
    event.call.arguments = call->text;
    say(choice->exchange, &event);
}

/* An sl_chat_event_fn. */
static void on_part(void *context, const struct sl_chat_event *event)
{
    struct choice *choice = context;

    if (choice->stop_string)
        return;
    choice->in_reasoning = event->part == SL_CHAT_PART_REASONING;
    if (event->part == SL_CHAT_PART_CALL)
        take_call(choice, event);
    else if (event->part == SL_CHAT_PART_ANSWER)
        take_answer(choice, event->text, event->length);
    else
        say_text(choice, SL_REPLY_REASONING, event->text, event->length);
}

static void fail(struct exchange *x, int status, const char *message, size_t length)
{
    const struct sl_reply_event event = {.kind = SL_REPLY_ERROR, .refusal = &x->refusal};

    if (x->has_ended)
        return;
    sl_refuse(&x->refusal, status, NULL, "%.*s", (int)length, message);
    x->has_ended = x->has_failed = true;
    say(x, &event);
}

static void finish(struct choice *choice, enum sl_finish reason, const char *stop_string)
{
    struct sl_reply_event event = {.kind = SL_REPLY_FINISH,
                                   .choice_index = choice->index,
                                   .finish = reason,
                                   .n_calls = choice->n_calls,
                                   .stop_string = stop_string};

    choice->has_ended = true;
    say(choice->exchange, &event);
}

/* The reader has seen a stop string: it wants no more of the text. */
static void end_by_stop(struct choice *choice)
{
    struct exchange *x = choice->exchange;

    finish(choice, SL_FINISH_STOP_STRING, choice->stop_string);
    atomic_store(&x->ticket.texts[choice->index].is_unwanted, true);
    sl_worker_notice(x->front->worker, &x->ticket);
}

static void take_piece(struct choice *choice, const struct sl_news *news)
{
    struct exchange *x = choice->exchange;
    struct sl_err err;

    if (news->has_token) {
        x->n_new_tokens++;
        x->n_reasoning_tokens += choice->in_reasoning;
        if (x->first_ns == 0)
            x->first_ns = sl_clock_ns() - x->begun_ns;
    }
    if (news->has_logprobs) {
        const struct sl_reply_event event = {.kind = SL_REPLY_TOKEN,
                                             .choice_index = choice->index,
                                             .token = &news->token,
                                             .in_reasoning = choice->in_reasoning};

        say(x, &event);
    }
    if (!choice->parser)
        say_text(choice, SL_REPLY_CONTENT, news->text, news->length);
    else if (sl_chat_parser_push(choice->parser, news->text, news->length, &err) < 0)
        fail(x, 500, err.message, strlen(err.message));
    else if (sl_chat_parser_in_answer(choice->parser))
        choice->in_reasoning = false;
    if (choice->stop_string)
        end_by_stop(choice);
}

static void take_finish(struct choice *choice, const struct sl_news *news)
{
    char held[SL_STOP_STRING_BYTES_MAX];

    if (choice->parser) {
        sl_chat_parser_finish(choice->parser, NULL);
        if (choice->stop_string) {
            finish(choice, SL_FINISH_STOP_STRING, choice->stop_string);
            return;
        }
        say_text(choice, SL_REPLY_CONTENT, held, sl_stop_matcher_flush(&choice->matcher, held));
    }
    finish(choice, news->finish, news->stop_string);
}

static void take_end(struct exchange *x, const struct sl_usage *usage)
{
    const struct sl_reply_event event = {.kind = SL_REPLY_END, .usage = &x->usage};

    x->usage = *usage;
    x->usage.n_new_tokens = x->n_new_tokens;
    x->usage.n_reasoning_tokens = x->n_reasoning_tokens;
    x->has_ended = true;
    say(x, &event);
}

/* Turns the news there is into bytes of the reply. */
static void take_news(struct exchange *x)
{
    const size_t before = x->out.length;
    const bool was_held = sl_ticket_take(&x->ticket, &x->news);
    struct sl_news news;

    for (size_t at = 0; !x->has_ended && sl_news_next(&x->news, &at, &news);) {
        struct choice *choice = &x->choices[news.choice_index];

        if (news.kind == SL_NEWS_END)
            take_end(x, &news.usage);
        else if (news.kind == SL_NEWS_FAILED)
            fail(x, news.status, news.text, news.length);
        else if (choice->has_ended)
            continue;
        else if (news.kind == SL_NEWS_PIECE)
            take_piece(choice, &news);
        else
            take_finish(choice, &news);
    }
    if (x->news.out_of_memory)
        fail(x, 500, "out of memory", strlen("out of memory"));
    if (was_held)
        sl_worker_notice(x->front->worker, &x->ticket);
    if (x->front->trace)
        sl_bytes_add(&x->traced, x->out.data + before, x->out.length - before);
}

/* ---- sending -----------------------------------------------------------------------------------
 */

static struct sl_reply_progress progress_of(const struct exchange *x)
{
    const struct sl_ticket *ticket = &x->ticket;
    struct sl_reply_progress progress = {
        .n_prompt_tokens = atomic_load(&ticket->n_prompt_tokens),
        .n_cached_tokens = atomic_load(&ticket->n_cached_tokens),
        .n_done_tokens = atomic_load(&ticket->n_done_tokens) + atomic_load(&ticket->n_part_tokens),
        .left_s = -1,
        .is_queued = !atomic_load(&ticket->has_begun),
    };
    uint32_t n_new;

    if (progress.is_queued)
        return progress;
    if (progress.n_done_tokens > progress.n_prompt_tokens)
        progress.n_done_tokens = progress.n_prompt_tokens;
    progress.elapsed_ns = sl_clock_ns() - atomic_load(&ticket->begun_ns);
    n_new = progress.n_done_tokens - progress.n_cached_tokens;
    if (n_new > 0)
        progress.left_s = (double)progress.elapsed_ns / 1e9 / n_new *
                          (progress.n_prompt_tokens - progress.n_done_tokens);
    return progress;
}

static void send_heartbeat(struct exchange *x)
{
    const struct sl_reply_progress progress = progress_of(x);
    const struct sl_reply_event event = {.kind = SL_REPLY_HEARTBEAT, .progress = &progress};

    if (x->request.stream) {
        say(x, &event);
        return;
    }
    sl_bytes_add_text(&x->out, " ");
    x->said_ns = sl_clock_ns();
}

static int64_t read_reply(void *context, char *to, size_t size)
{
    struct exchange *x = context;
    size_t n;

    if (x->n_sent == x->out.length) {
        sl_bytes_clear(&x->out);
        x->n_sent = 0;
        if (x->has_ended)
            return SL_HTTP_END;
        take_news(x);
        if (x->out.length == 0 && !x->has_ended && sl_clock_ns() - x->said_ns >= SILENCE_NS)
            send_heartbeat(x);
        if (x->out.length == 0)
            return x->has_ended ? SL_HTTP_END : 0;
    }
    if (x->out.out_of_memory)
        return SL_HTTP_ABORT;
    n = x->out.length - x->n_sent < size ? x->out.length - x->n_sent : size;
    memcpy(to, x->out.data + x->n_sent, n);
    x->n_sent += n;
    return (int64_t)n;
}

static void closed(void *context, bool is_whole)
{
    struct exchange *x = context;
    const bool was_read = x->has_ended && is_whole;

    pthread_mutex_lock(&x->lock);
    x->call = NULL;
    pthread_mutex_unlock(&x->lock);
    if (!x->has_ended) {
        atomic_store(&x->ticket.is_abandoned, true);
        sl_worker_notice(x->front->worker, &x->ticket);
    }
    x->entry.status = !was_read ? 499 : x->has_failed ? x->refusal.status : 200;
    x->entry.why = x->has_failed ? x->refusal.message : NULL;
    x->entry.has_usage = x->has_ended && !x->has_failed;
    x->entry.usage = x->usage;
    x->entry.first_ns = x->first_ns;
    x->entry.total_ns = sl_clock_ns() - x->begun_ns;
    if (x->front->log)
        x->front->log(x->front->context, &x->entry);
    if (x->front->trace)
        x->front->trace(x->front->context, x->identity.id, "reply",
                        x->traced.data ? x->traced.data : "", x->traced.length);
    sl_ticket_let_go(&x->ticket);
}

static const struct sl_http_source *source_of(struct exchange *x, struct sl_http_source *source);

static void start_sending(struct exchange *x, struct sl_http_call *call)
{
    const bool stream = x->request.stream;
    const struct sl_http_header headers[] = {
        {"Content-Type", stream ? "text/event-stream; charset=utf-8" : "application/json"},
        {"Cache-Control", "no-cache"},
        {"X-Accel-Buffering", "no"},
        {"X-Request-Id", x->identity.id}};
    struct sl_http_source source;

    x->is_sending = true;
    sl_http_stream(call, 200, headers, SL_ARRAY_LEN(headers), source_of(x, &source));
}

/* A reply that is given whole: its end has come, or it has taken too long to stay silent. */
static void ready(void *context, struct sl_http_call *call)
{
    struct exchange *x = context;
    const struct sl_http_header headers[] = {{"Content-Type", "application/json"},
                                             {"X-Request-Id", x->identity.id}};

    take_news(x);
    if (x->has_ended && !x->out.out_of_memory)
        sl_http_answer(call, x->has_failed ? x->refusal.status : 200, headers,
                       SL_ARRAY_LEN(headers), x->out.data, x->out.length);
    else if (x->has_ended || sl_clock_ns() - x->begun_ns >= SILENCE_NS)
        start_sending(x, call);
}

static const struct sl_http_source *source_of(struct exchange *x, struct sl_http_source *source)
{
    *source = (struct sl_http_source){x, ready, read_reply, closed};
    return source;
}

/* ---- beginning, and the end --------------------------------------------------------------------
 */

/* Called by the worker's thread. */
static void notify(void *owner)
{
    struct exchange *x = owner;

    pthread_mutex_lock(&x->lock);
    if (x->call)
        sl_http_wake(x->call);
    pthread_mutex_unlock(&x->lock);
}

static void release(void *owner)
{
    struct exchange *x = owner;

    for (uint32_t i = 0; x->choices && i < x->ticket.n_texts; i++)
        sl_chat_parser_destroy(x->choices[i].parser);
    free(x->choices);
    if (x->reply)
        x->protocol->destroy(x->reply);
    sl_ticket_fini(&x->ticket);
    sl_prompt_ids_fini(&x->ids);
    sl_request_fini(&x->request);
    sl_bytes_fini(&x->news);
    sl_bytes_fini(&x->out);
    sl_bytes_fini(&x->traced);
    pthread_mutex_destroy(&x->lock);
    free(x);
}

static int no_memory(struct sl_refusal *refusal)
{
    return sl_refuse(refusal, 500, NULL, "out of memory");
}

static int read_body(struct exchange *x, struct sl_http_call *call, struct sl_refusal *refusal)
{
    size_t length;
    const char *body = sl_http_body(call, &length);
    struct sl_err err;
    int rc = sl_json_parse(&x->request.body, body, length, "the request's body", &err);

    if (rc < 0)
        return sl_refuse(refusal, rc == -ENOMEM ? 500 : 400, NULL, "%s", err.message);
    if (x->front->trace)
        x->front->trace(x->front->context, x->identity.id, "request", body, length);
    sl_http_drop_body(call);
    if (!json_is_object(x->request.body))
        return sl_refuse(refusal, 400, NULL, "the request's body is no JSON object");
    return x->protocol->read(&x->request, refusal);
}

/* Names that the server does not know may be meant for another one. */
static int check_model(struct exchange *x, struct sl_refusal *refusal)
{
    const struct sl_front *front = x->front;

    x->identity.model = front->model_names[0];
    if (!x->request.model)
        return 0;
    for (uint32_t i = 0; i < front->n_model_names; i++)
        if (strcmp(front->model_names[i], x->request.model) == 0) {
            x->identity.model = front->model_names[i];
            return 0;
        }
    sl_refuse(refusal, 404, "model", "there is no model \"%.100s\" here, but \"%s\"",
              x->request.model, front->model_names[0]);
    refusal->code = "model_not_found";
    return -1;
}

static int make_ids(struct exchange *x, struct sl_refusal *refusal)
{
    const struct sl_front *front = x->front;

    if (x->request.messages && !front->profile.is_chat)
        return sl_refuse(refusal, 400, "messages",
                         "this is a base model, which was never taught a conversation; "
                         "/v1/completions continues texts");
    x->request.chat.profile = front->profile.profile;
    if (sl_prompt_ids_make(&x->ids, &x->request, front->tok, front->config, refusal) < 0)
        return -1;
    for (uint32_t i = 0; i < x->ids.n; i++) {
        const size_t n_tokens = x->ids.lists[i].n;

        if (n_tokens < front->context_tokens)
            continue;
        sl_refuse(refusal, 400, x->request.messages ? "messages" : "prompt",
                  "the prompt has %zu tokens, but the context %u, with the answer", n_tokens,
                  front->context_tokens);
        refusal->code = "context_length_exceeded";
        return -1;
    }
    return 0;
}

static int make_text(struct exchange *x, uint32_t index, struct sl_refusal *refusal)
{
    const struct sl_front *front = x->front;
    const struct sl_request *request = &x->request;
    const struct sl_token_list *list = &x->ids.lists[index / request->n];
    struct sl_text *text = &x->ticket.texts[index];
    struct sl_generation_options options = {
        .sampler = request->sampler,
        .rules = {.eos_token_id = front->config->eos_token_id,
                  .n_new_max = request->n_new_max,
                  .context_tokens = front->context_tokens},
        .with_logprobs = request->with_logprobs,
        .n_top_logprobs = request->n_top_logprobs,
    };
    struct sl_err err;
    int rc;

    if (!request->messages)
        options.rules.stops = request->stops;
    rc = sl_generation_create(&text->generation, &options, front->tok, front->config->vocab_size,
                              &err);
    if (rc < 0)
        return sl_refuse(refusal, rc == -ENOMEM ? 500 : 400, NULL, "%s", err.message);
    text->tokens = (const int32_t *)list->ids; /* below the vocabulary's size */
    text->n_tokens = (uint32_t)list->n;
    text->seed = request->sampler.seed + index;
    text->n_new_max = request->n_new_max;
    text->with_logprobs = request->with_logprobs;
    return 0;
}

/* Begins the reading of an answer; one that must be a call has begun in the prompt. */
static int make_choice(struct exchange *x, uint32_t index, struct sl_refusal *refusal)
{
    struct choice *choice = &x->choices[index];
    struct sl_bytes forced = {0};
    int rc = 0;

    choice->exchange = x;
    choice->index = index;
    if (!x->request.messages)
        return 0;
    choice->in_reasoning = x->request.chat.thinking && !x->request.continues;
    if (sl_chat_parser_create(&choice->parser, choice->in_reasoning, on_part, choice, NULL) < 0)
        return no_memory(refusal);
    sl_forced_call_text(&x->request, &forced);
    if (forced.length > 0)
        rc = sl_chat_parser_push(choice->parser, forced.data, forced.length, NULL);
    rc = forced.out_of_memory || rc < 0 ? no_memory(refusal) : 0;
    sl_bytes_fini(&forced);
    return rc;
}

static int read_request(struct exchange *x, struct sl_http_call *call, struct sl_refusal *refusal)
{
    if (read_body(x, call, refusal) < 0 || check_model(x, refusal) < 0)
        return -1;
    return make_ids(x, refusal);
}

static int prepare(struct exchange *x, struct sl_http_call *call, struct sl_refusal *refusal)
{
    uint32_t n_texts;
    int rc;

    if (read_request(x, call, refusal) < 0)
        return -1;
    if (!x->request.has_seed)
        x->request.sampler.seed = draw_seed();
    n_texts = x->ids.n * x->request.n;
    sl_assert(n_texts >= 1 && n_texts <= SL_REQUEST_CHOICES_MAX);
    x->reply = x->protocol->create(&x->request, &x->identity);
    x->choices = calloc(n_texts, sizeof(*x->choices));
    if (!x->reply || !x->choices || sl_ticket_init(&x->ticket, n_texts) < 0)
        return no_memory(refusal);
    x->ticket.owner = x;
    x->ticket.notify = notify;
    x->ticket.release = release;
    for (uint32_t i = 0; i < n_texts; i++)
        if (make_text(x, i, refusal) < 0 || make_choice(x, i, refusal) < 0)
            return -1;
    rc = sl_worker_submit(x->front->worker, &x->ticket);
    if (rc == 0)
        return 0;
    if (rc == -EBUSY)
        sl_refuse(refusal, 429, NULL,
                  "as many requests are waiting as the server takes; try again");
    else
        sl_refuse(refusal, 503, NULL, "the server is %s",
                  sl_worker_state(x->front->worker) == SL_WORKER_LOADING ? "loading the model"
                                                                         : "shutting down");
    refusal->retry_after_s = RETRY_AFTER_S;
    return -1;
}

static struct exchange *create(const struct sl_front *front, struct sl_http_call *call,
                               const struct sl_protocol *protocol, const char *path)
{
    struct exchange *x = calloc(1, sizeof(*x));

    if (!x)
        return NULL;
    x->front = front;
    x->protocol = protocol;
    x->call = call;
    x->begun_ns = x->said_ns = sl_clock_ns();
    x->identity.created_s = (int64_t)time(NULL);
    x->identity.tok = front->tok;
    make_id(x->identity.id, 25);
    pthread_mutex_init(&x->lock, NULL);
    x->entry = (struct sl_log_entry){.method = "POST",
                                     .path = path,
                                     .protocol = protocol->name,
                                     .id = x->identity.id,
                                     .user = sl_http_peer_user(call)};
    return x;
}

void sl_exchange_begin(const struct sl_front *front, struct sl_http_call *call,
                       const struct sl_protocol *protocol, const char *path)
{
    const struct sl_reply_event begin = {.kind = SL_REPLY_BEGIN};
    struct exchange *x = create(front, call, protocol, path);
    struct sl_http_source source;
    struct sl_refusal refusal;

    if (!x) {
        sl_refuse(&refusal, 500, NULL, "out of memory");
        sl_front_answer_refusal(front, call, protocol, &refusal);
        return;
    }
    if (prepare(x, call, &refusal) < 0) {
        sl_front_answer_refusal(front, call, protocol, &refusal);
        release(x);
        return;
    }
    say(x, &begin);
    if (x->request.stream)
        start_sending(x, call);
    else
        sl_http_wait(call, source_of(x, &source));
}

void sl_exchange_count(const struct sl_front *front, struct sl_http_call *call)
{
    const struct sl_protocol *protocol = &sl_protocol_count_tokens;
    struct exchange *x = create(front, call, protocol, NULL);
    struct sl_refusal refusal;

    if (!x)
        sl_refuse(&refusal, 500, NULL, "out of memory");
    if (!x || read_request(x, call, &refusal) < 0)
        sl_front_answer_refusal(front, call, protocol, &refusal);
    else
        sl_front_answer_json(front, call, 200,
                             json_pack("{s:I}", "input_tokens", (json_int_t)x->ids.lists[0].n));
    if (x)
        release(x);
}
