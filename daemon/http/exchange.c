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
#include <time.h>

#include "core/base/assert.h"
#include "core/base/clock.h"
#include "core/base/random.h"
#include "core/base/size.h"
#include "daemon/answer/answer.h"

/* A reply that waits says something after that long, a little before the server looks again. */
#define SILENCE_NS (SL_HTTP_PULSE_NS - SL_HTTP_PULSE_NS / 10)

#define RETRY_AFTER_S 5u

struct exchange {
    struct sl_answer answer;
    const struct sl_front *front;

    pthread_mutex_t lock;      /* guards `call` against its end */
    struct sl_http_call *call; /* NULL: it is over */

    struct sl_bytes traced;
    size_t n_sent;   /* of the answer's bytes */
    bool is_sending; /* the status is on its way */
    uint64_t begun_ns, said_ns, first_ns;
    struct sl_log_entry entry;
};

static void say(struct exchange *x, const struct sl_reply_event *event)
{
    const size_t before = x->answer.out.length;

    sl_answer_say(&x->answer, event);
    if (x->answer.out.length > before)
        x->said_ns = sl_clock_ns();
}

/* Turns the news there is into bytes of the reply. */
static void take_news(struct exchange *x)
{
    struct sl_answer *answer = &x->answer;
    const size_t before = answer->out.length;

    if (sl_answer_take_news(answer))
        sl_worker_notice(x->front->worker, &answer->ticket);
    if (answer->n_new_tokens > 0 && x->first_ns == 0)
        x->first_ns = sl_clock_ns() - x->begun_ns;
    if (answer->out.length > before)
        x->said_ns = sl_clock_ns();
    if (x->front->trace)
        sl_bytes_add(&x->traced, answer->out.data + before, answer->out.length - before);
}

/* ---- sending -----------------------------------------------------------------------------------
 */

static struct sl_reply_progress progress_of(const struct exchange *x)
{
    const struct sl_ticket *ticket = &x->answer.ticket;
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

    if (x->answer.request.stream) {
        say(x, &event);
        return;
    }
    sl_bytes_add_text(&x->answer.out, " ");
    x->said_ns = sl_clock_ns();
}

static int64_t read_reply(void *context, char *to, size_t size)
{
    struct exchange *x = context;
    size_t n;

    if (x->n_sent == x->answer.out.length) {
        sl_bytes_clear(&x->answer.out);
        x->n_sent = 0;
        if (x->answer.has_ended)
            return SL_HTTP_END;
        take_news(x);
        if (x->answer.out.length == 0 && !x->answer.has_ended &&
            sl_clock_ns() - x->said_ns >= SILENCE_NS)
            send_heartbeat(x);
        if (x->answer.out.length == 0)
            return x->answer.has_ended ? SL_HTTP_END : 0;
    }
    if (x->answer.out.out_of_memory)
        return SL_HTTP_ABORT;
    n = x->answer.out.length - x->n_sent < size ? x->answer.out.length - x->n_sent : size;
    memcpy(to, x->answer.out.data + x->n_sent, n);
    x->n_sent += n;
    return (int64_t)n;
}

static void closed(void *context, bool is_whole)
{
    struct exchange *x = context;
    const bool was_read = x->answer.has_ended && is_whole;

    pthread_mutex_lock(&x->lock);
    x->call = NULL;
    pthread_mutex_unlock(&x->lock);
    if (!x->answer.has_ended) {
        atomic_store(&x->answer.ticket.is_abandoned, true);
        sl_worker_notice(x->front->worker, &x->answer.ticket);
    }
    x->entry.status = !was_read ? 499 : x->answer.has_failed ? x->answer.refusal.status : 200;
    x->entry.why = x->answer.has_failed ? x->answer.refusal.message : NULL;
    x->entry.has_usage = x->answer.has_ended && !x->answer.has_failed;
    x->entry.usage = x->answer.usage;
    x->entry.first_ns = x->first_ns;
    x->entry.total_ns = sl_clock_ns() - x->begun_ns;
    if (x->front->log)
        x->front->log(x->front->context, &x->entry);
    if (x->front->trace)
        x->front->trace(x->front->context, x->answer.identity.id, "reply",
                        x->traced.data ? x->traced.data : "", x->traced.length);
    sl_ticket_let_go(&x->answer.ticket);
}

static const struct sl_http_source *source_of(struct exchange *x, struct sl_http_source *source);

static void start_sending(struct exchange *x, struct sl_http_call *call)
{
    const bool stream = x->answer.request.stream;
    const struct sl_http_header headers[] = {
        {"Content-Type", stream ? "text/event-stream; charset=utf-8" : "application/json"},
        {"Cache-Control", "no-cache"},
        {"X-Accel-Buffering", "no"},
        {"X-Request-Id", x->answer.identity.id}};
    struct sl_http_source source;

    x->is_sending = true;
    sl_http_stream(call, 200, headers, SL_ARRAY_LEN(headers), source_of(x, &source));
}

/* A reply that is given whole: its end has come, or it has taken too long to stay silent. */
static void ready(void *context, struct sl_http_call *call)
{
    struct exchange *x = context;
    const struct sl_http_header headers[] = {{"Content-Type", "application/json"},
                                             {"X-Request-Id", x->answer.identity.id}};

    take_news(x);
    if (x->answer.has_ended && !x->answer.out.out_of_memory)
        sl_http_answer(call, x->answer.has_failed ? x->answer.refusal.status : 200, headers,
                       SL_ARRAY_LEN(headers), x->answer.out.data, x->answer.out.length);
    else if (x->answer.has_ended || sl_clock_ns() - x->begun_ns >= SILENCE_NS)
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

    sl_answer_fini(&x->answer);
    sl_bytes_fini(&x->traced);
    pthread_mutex_destroy(&x->lock);
    free(x);
}

static int read_request(struct exchange *x, struct sl_http_call *call, struct sl_refusal *refusal)
{
    size_t length;
    const char *body = sl_http_body(call, &length);
    int rc;

    if (x->front->trace)
        x->front->trace(x->front->context, x->answer.identity.id, "request", body, length);
    rc = sl_answer_read(&x->answer, body, length, refusal);
    sl_http_drop_body(call);
    return rc < 0 ? rc : sl_answer_make_ids(&x->answer, refusal);
}

static int prepare(struct exchange *x, struct sl_http_call *call, struct sl_refusal *refusal)
{
    struct sl_answer *answer = &x->answer;
    int rc;

    if (read_request(x, call, refusal) < 0)
        return -1;
    if (!answer->request.has_seed)
        answer->request.sampler.seed = sl_random_seed();
    if (sl_answer_make_texts(answer, refusal) < 0)
        return -1;
    answer->ticket.owner = x;
    answer->ticket.notify = notify;
    answer->ticket.release = release;
    rc = sl_worker_submit(x->front->worker, &answer->ticket);
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
    x->call = call;
    x->begun_ns = x->said_ns = sl_clock_ns();
    sl_answer_init(&x->answer, &front->model, protocol);
    x->answer.identity.created_s = (int64_t)time(NULL);
    sl_random_name(x->answer.identity.id, 25);
    pthread_mutex_init(&x->lock, NULL);
    x->entry = (struct sl_log_entry){.method = "POST",
                                     .path = path,
                                     .protocol = protocol->name,
                                     .id = x->answer.identity.id,
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
    if (x->answer.request.stream)
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
        sl_front_answer_json(
            front, call, 200,
            json_pack("{s:I}", "input_tokens", (json_int_t)x->answer.ids.lists[0].n));
    if (x)
        release(x);
}
