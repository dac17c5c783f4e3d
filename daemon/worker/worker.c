#include "daemon/worker/worker.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "core/base/assert.h"
#include "core/base/clock.h"
#include "core/base/metrics.h"
#include "core/base/size.h"
#include "daemon/worker/worker_internal.h"

#define NS_PER_S UINT64_C(1000000000)

/* How long the rate of tokens is measured before it is shown. */
#define RATE_NS (5 * NS_PER_S)

/* How often an idle thread looks whether an image has been written. */
#define IMAGES_LOOK_NS (NS_PER_S / 500)

static const struct sl_metric metrics[] = {
#define COUNTER(field, name, help)                                                                 \
    {                                                                                              \
        name, SL_METRIC_COUNT, help, offsetof(struct sl_worker_counters, field), false             \
    }
#define GAUGE(field, name, help)                                                                   \
    {                                                                                              \
        name, SL_METRIC_COUNT, help, offsetof(struct sl_worker_counters, field), true              \
    }
    COUNTER(n_requests, "requests", "Requests that were taken on"),
    COUNTER(n_finished, "requests_finished", "Requests that were answered whole"),
    COUNTER(n_failed, "requests_failed", "Requests that ended with an error"),
    COUNTER(n_abandoned, "requests_abandoned", "Requests whose client went away"),
    COUNTER(n_refused, "requests_refused", "Requests that found the queue full"),
    COUNTER(n_prompt_tokens, "prompt_tokens", "Tokens of prompts"),
    COUNTER(n_cached_tokens, "prompt_tokens_cached", "Tokens of prompts that a session knew"),
    COUNTER(n_resumed, "sessions_resumed", "Sessions that came from images"),
    COUNTER(n_resumed_tokens, "prompt_tokens_resumed", "Tokens of prompts that images knew"),
    COUNTER(n_new_tokens, "new_tokens", "Tokens that were made"),
    COUNTER(n_verifications, "verifications", "Times a step checked guesses of a text"),
    COUNTER(n_drafts, "drafts", "Guesses that steps checked"),
    COUNTER(n_drafts_right, "drafts_right", "Guesses that were right"),
    COUNTER(n_steps, "steps", "Steps that have ended"),
    COUNTER(n_large_steps, "steps_large", "Large steps among them"),
    COUNTER(n_batch_steps, "steps_batch", "Steps of batches among them"),
    COUNTER(n_failed_steps, "steps_failed", "Steps that failed"),
    GAUGE(n_batch_rows, "batch_step_rows",
          "Rows of a batch's step, with which reading and computing take equally long"),
    {"busy_seconds", SL_METRIC_NANOSECONDS, "Time spent in steps",
     offsetof(struct sl_worker_counters, busy_ns), false},
    {"wait_seconds", SL_METRIC_NANOSECONDS, "Time of it spent waiting for the drives",
     offsetof(struct sl_worker_counters, wait_ns), false},
    {"images_busy_seconds", SL_METRIC_NANOSECONDS, "Time between layers that images took",
     offsetof(struct sl_worker_counters, images_ns), false},
    {"images_longest_seconds", SL_METRIC_NANOSECONDS, "The most that they took between two layers",
     offsetof(struct sl_worker_counters, images_longest_ns), true},
    GAUGE(n_waiting, "texts_waiting", "Texts that wait for a session"),
    GAUGE(n_running, "texts_running", "Texts that have a session"),
    GAUGE(n_sessions, "sessions", "Sessions that are kept"),
    {"kv_bytes", SL_METRIC_BYTES, "Memory that KV caches take",
     offsetof(struct sl_worker_counters, n_kv_bytes), true},
#undef COUNTER
#undef GAUGE
};

const struct sl_metrics sl_worker_metrics = {metrics, SL_ARRAY_LEN(metrics)};

/* ---- the mailbox -------------------------------------------------------------------------------
 */

int sl_worker_submit(struct sl_worker *w, struct sl_ticket *ticket)
{
    int rc = 0;

    pthread_mutex_lock(&w->lock);
    if (w->status.state != SL_WORKER_READY || w->stop_wanted) {
        rc = -ESHUTDOWN;
    } else if (ticket->class == SL_JOB_INTERACTIVE && w->n_waiting >= w->options.queue_max) {
        w->n_refused++;
        rc = -EBUSY;
    } else {
        sl_ticket_hold(ticket);
        w->n_waiting += ticket->class == SL_JOB_INTERACTIVE;
        sl_list_append(&w->submitted, &ticket->submitted);
        pthread_cond_signal(&w->has_mail);
    }
    pthread_mutex_unlock(&w->lock);
    return rc;
}

/* A ticket that is being let go of is in no list any more, so this comes from somebody who holds
 * it, and the list holds it too. */
void sl_worker_notice(struct sl_worker *w, struct sl_ticket *ticket)
{
    bool is_new;

    pthread_mutex_lock(&ticket->lock);
    is_new = !ticket->has_notice;
    ticket->has_notice = true;
    pthread_mutex_unlock(&ticket->lock);
    if (!is_new)
        return;
    sl_ticket_hold(ticket);
    pthread_mutex_lock(&w->lock);
    sl_list_append(&w->noticed, &ticket->noticed);
    pthread_cond_signal(&w->has_mail);
    pthread_mutex_unlock(&w->lock);
}

void sl_worker_stop(struct sl_worker *w, uint64_t grace_ns)
{
    pthread_mutex_lock(&w->lock);
    w->stop_wanted = true;
    w->stop_deadline_ns = sl_clock_ns() + grace_ns;
    pthread_cond_signal(&w->has_mail);
    pthread_mutex_unlock(&w->lock);
    if (grace_ns == 0)
        atomic_store(&w->stop_now, true);
}

enum sl_worker_state sl_worker_state(struct sl_worker *w)
{
    enum sl_worker_state state;

    pthread_mutex_lock(&w->lock);
    state = w->status.state;
    pthread_mutex_unlock(&w->lock);
    return state;
}

void sl_worker_status(struct sl_worker *w, struct sl_worker_status *ret_status)
{
    pthread_mutex_lock(&w->lock);
    *ret_status = w->status;
    ret_status->counters.n_refused = w->n_refused;
    pthread_mutex_unlock(&w->lock);
}

bool sl_worker_resident(struct sl_worker *w, uint32_t layer_index, uint8_t *ret_bits)
{
    bool is_known;

    pthread_mutex_lock(&w->lock);
    is_known = w->resident != NULL && w->status.state != SL_WORKER_LOADING;
    if (is_known)
        memcpy(ret_bits, w->resident + (size_t)layer_index * w->layer_bytes, w->layer_bytes);
    pthread_mutex_unlock(&w->lock);
    return is_known;
}

static void set_state(struct sl_worker *w, enum sl_worker_state state)
{
    pthread_mutex_lock(&w->lock);
    w->status.state = state;
    pthread_mutex_unlock(&w->lock);
    if (w->options.on_state)
        w->options.on_state(w->options.context, state);
}

static struct timespec time_of(uint64_t ns)
{
    return (struct timespec){(time_t)(ns / NS_PER_S), (long)(ns % NS_PER_S)};
}

/* Waits until there is mail, or it is until_ns; not at all where until_ns is 0. Moves the mail to
 * lists of the thread's own. */
static void take_mail(struct sl_worker *w, uint64_t until_ns, struct sl_link *ret_submitted,
                      struct sl_link *ret_noticed)
{
    struct sl_link *link;
    int rc = 0;

    sl_list_init(ret_submitted);
    sl_list_init(ret_noticed);
    pthread_mutex_lock(&w->lock);
    while (rc == 0 && until_ns > 0 && sl_list_is_empty(&w->submitted) &&
           sl_list_is_empty(&w->noticed) && (!w->stop_wanted || w->is_stopping)) {
        const struct timespec until = time_of(until_ns);

        if (until_ns == UINT64_MAX)
            rc = pthread_cond_wait(&w->has_mail, &w->lock);
        else
            rc = pthread_cond_timedwait(&w->has_mail, &w->lock, &until);
    }
    while ((link = sl_list_pop(&w->submitted)))
        sl_list_append(ret_submitted, link);
    while ((link = sl_list_pop(&w->noticed)))
        sl_list_append(ret_noticed, link);
    pthread_mutex_unlock(&w->lock);
}

/* A ticket that was noticed before it was submitted cannot be: its owner does both, in order. */
static void read_mail(struct sl_worker *w, uint64_t until_ns)
{
    struct sl_link submitted, noticed, *link;
    uint64_t now_ns;

    take_mail(w, until_ns, &submitted, &noticed);
    now_ns = sl_clock_ns();
    while ((link = sl_list_pop(&submitted)))
        sl_worker_take_on(w, sl_list_item(link, struct sl_ticket, submitted), now_ns);
    while ((link = sl_list_pop(&noticed))) {
        struct sl_ticket *ticket = sl_list_item(link, struct sl_ticket, noticed);

        sl_worker_look_at(w, ticket, now_ns);
        sl_ticket_let_go(ticket);
    }
}

static void publish_resident(struct sl_worker *w)
{
    pthread_mutex_lock(&w->lock);
    for (uint32_t i = 0; i < w->n_layers; i++)
        sl_engine_resident(w->engine, (uint16_t)i, w->resident + (size_t)i * w->layer_bytes);
    pthread_mutex_unlock(&w->lock);
}

static void publish(struct sl_worker *w, uint64_t now_ns)
{
    const struct sl_scheduler *s = &w->scheduler;

    if (now_ns - w->rate_since_ns >= RATE_NS) {
        publish_resident(w);
        w->tokens_per_s = (double)w->rate_n_tokens * 1e9 / (double)(now_ns - w->rate_since_ns);
        w->rate_n_tokens = 0;
        w->rate_since_ns = now_ns;
    }
    w->counters.n_waiting = s->n_waiting[SL_JOB_INTERACTIVE] + s->n_waiting[SL_JOB_BATCH];
    w->counters.n_running = s->n_running[SL_JOB_INTERACTIVE] + s->n_running[SL_JOB_BATCH];
    w->counters.n_sessions = w->sessions.n_idle + w->sessions.n_used;
    w->counters.n_kv_bytes = sl_kv_pool_used_bytes(w->sessions.kv_pool);
    w->counters.images_ns = w->images.busy_ns;
    w->counters.images_longest_ns = w->images.longest_ns;
    pthread_mutex_lock(&w->lock);
    w->status.counters = w->counters;
    w->status.cache = sl_engine_counters(w->engine);
    w->status.keeps_images = w->images.images != NULL;
    if (w->images.images)
        w->status.images = sl_images_counters(w->images.images);
    w->status.keeps_pages = w->sessions.kv_pool->pager != NULL;
    w->status.pages = sl_engine_pages(w->engine);
    w->status.first_token = w->first_token;
    w->status.next_token = w->next_token;
    w->status.slot_count = sl_engine_slot_count(w->engine);
    sl_worker_publish_lists(w);
    w->status.tokens_per_s = w->tokens_per_s;
    pthread_mutex_unlock(&w->lock);
}

/* ---- steps -------------------------------------------------------------------------------------
 */

static int begin_step(struct sl_worker *w, enum sl_step_size size, struct sl_err *err)
{
    const struct sl_step_request hooks = {.stop = &w->stop_now};
    const struct sl_open_step *open = &w->scheduler.steps[size];
    struct sl_worker_step *step = &w->steps[size];

    step->n_texts = open->n_parts;
    step->number = ++w->n_steps;
    step->n_advances = 0;
    step->elapsed_ns = 0;
    step->cache = (struct sl_expert_cache_counters){0};
    for (uint32_t i = 0; i < open->n_parts; i++) {
        struct sl_text *text = sl_text_of(open->parts[i].job);

        step->texts[i] = text;
        step->generations[i] = text->generation;
        step->n_tokens[i] = open->parts[i].n_tokens;
        text->in_step = true;
        text->n_step_tokens = text->session->kv->n_tokens;
    }
    return sl_shared_step_begin_with(step->step, step->generations, step->n_tokens, step->n_texts,
                                     &hooks, err);
}

static void set_batch_rows(struct sl_worker *w)
{
    const uint32_t n_max = w->scheduler.limits.step_tokens_max[SL_STEP_LARGE];
    const uint32_t n_rows = sl_step_balance_rows(&w->balance);

    w->counters.n_batch_rows = n_rows < n_max ? n_rows : n_max;
    sl_scheduler_set_batch_rows(&w->scheduler, n_rows);
}

static void add_counters(struct sl_expert_cache_counters *sum,
                         const struct sl_expert_cache_counters *from,
                         const struct sl_expert_cache_counters *to)
{
    sum->n_requests += to->n_requests - from->n_requests;
    sum->n_hits += to->n_hits - from->n_hits;
    sum->n_prefetch_hits += to->n_prefetch_hits - from->n_prefetch_hits;
    sum->read_bytes += to->read_bytes - from->read_bytes;
    sum->wait_ns += to->wait_ns - from->wait_ns;
    sum->busy_ns += to->busy_ns - from->busy_ns;
}

/* Returns the counters that steps add up, with what streamed weights cost in the last three. */
static struct sl_expert_cache_counters costs(const struct sl_worker *w)
{
    const struct sl_engine_dense dense = sl_engine_dense(w->engine);
    struct sl_expert_cache_counters costs = sl_engine_counters(w->engine);

    costs.read_bytes += dense.reads.read_bytes;
    costs.wait_ns += dense.reads.wait_ns;
    costs.busy_ns += dense.reads.busy_ns;
    return costs;
}

/* A batch's step has ended well: the next one may have more rows, or fewer. */
static void balance(struct sl_worker *w, const struct sl_worker_step *step)
{
    struct sl_balance_sample sample = {.elapsed_ns = step->elapsed_ns,
                                       .wait_ns = step->cache.wait_ns,
                                       .busy_ns = step->cache.busy_ns,
                                       .read_bytes = step->cache.read_bytes};

    for (uint32_t i = 0; i < step->n_texts; i++)
        sample.n_rows += step->n_tokens[i];
    sample.n_rows += sl_shared_step_draft_count(step->step);
    sl_step_balance_add(&w->balance, &sample);
    set_batch_rows(w);
}

/* Begins the step, if it is not open yet, and takes it on by a layer. */
static void run_step(struct sl_worker *w, enum sl_step_size size, bool is_new)
{
    const struct sl_expert_cache_counters before = costs(w);
    const uint64_t start_ns = sl_clock_ns();
    struct sl_worker_step *step = &w->steps[size];
    struct sl_expert_cache_counters after;
    struct sl_err err = {0};
    uint64_t elapsed_ns;
    int rc = is_new ? begin_step(w, size, &err) : 0;

    if (rc == 0)
        rc = sl_shared_step_advance(step->step, &err);
    after = costs(w);
    elapsed_ns = sl_clock_ns() - start_ns;
    add_counters(&step->cache, &before, &after);
    w->counters.busy_ns += elapsed_ns;
    w->counters.wait_ns += after.wait_ns - before.wait_ns;
    step->elapsed_ns += elapsed_ns;
    step->n_advances++;
    if (rc > 0) {
        sl_scheduler_advanced(&w->scheduler, size, rc, elapsed_ns);
        sl_worker_show_progress(w, step);
        return;
    }
    w->counters.n_steps++;
    w->counters.n_large_steps += size == SL_STEP_LARGE;
    w->counters.n_batch_steps += w->scheduler.steps[size].class == SL_JOB_BATCH;
    w->counters.n_failed_steps += rc < 0;
    if (rc < 0 && rc != -ECANCELED && w->options.on_failure)
        w->options.on_failure(w->options.context, &err);
    /* A step whose logits were of no use to some has ended for the others. */
    if (rc < 0 && sl_worker_step_has_moved(step))
        rc = 0;
    if (rc == 0 && w->scheduler.steps[size].class == SL_JOB_BATCH)
        balance(w, step);
    sl_scheduler_advanced(&w->scheduler, size, rc, elapsed_ns);
    sl_worker_step_over(w, size, rc, &err);
}

static void act(struct sl_worker *w, const struct sl_action *action, uint64_t now_ns)
{
    switch (action->kind) {
    case SL_ACTION_WAIT:
        break;
    case SL_ACTION_ADMIT:
        sl_worker_admit(w, sl_text_of(action->job), now_ns);
        break;
    case SL_ACTION_DROP:
        sl_worker_drop(w, sl_text_of(action->job));
        break;
    case SL_ACTION_BEGIN:
        if (sl_worker_make_room(w, &w->scheduler.steps[action->size]) == 0)
            run_step(w, action->size, true);
        else
            sl_scheduler_give_up(&w->scheduler, action->size);
        break;
    case SL_ACTION_ADVANCE:
        run_step(w, action->size, false);
        break;
    case SL_ACTION_ABANDON:
        sl_shared_step_abandon(w->steps[action->size].step);
        sl_worker_step_over(w, action->size, 1, NULL);
        break;
    }
}

/* Ends everything that is still being made. */
static void fail_all(struct sl_worker *w)
{
    while (!sl_list_is_empty(&w->live)) {
        struct sl_ticket *ticket = sl_list_item(w->live.next, struct sl_ticket, live);

        sl_ticket_hold(ticket);
        sl_list_remove(&ticket->live); /* its texts may be in a step still */
        sl_worker_fail(w, ticket, 503, "the server is shutting down");
        sl_ticket_let_go(ticket);
    }
    for (int size = 0; size < SL_STEP_SIZES; size++)
        if (w->steps[size].n_texts > 0) {
            sl_shared_step_abandon(w->steps[size].step);
            sl_worker_step_over(w, (enum sl_step_size)size, 1, NULL);
        }
}

/* Returns whether the worker is to go on, and until when at most it may wait. */
static bool goes_on(struct sl_worker *w, uint64_t now_ns, uint64_t *until_ns)
{
    uint64_t deadline_ns;
    bool is_over;

    pthread_mutex_lock(&w->lock);
    is_over = w->stop_wanted;
    deadline_ns = w->stop_deadline_ns;
    pthread_mutex_unlock(&w->lock);
    if (!is_over)
        return true;
    if (!w->is_stopping) {
        w->is_stopping = true;
        sl_worker_end_abandoned(w);
        set_state(w, SL_WORKER_STOPPING);
    }
    if (sl_list_is_empty(&w->live) || now_ns >= deadline_ns)
        return false;
    *until_ns = deadline_ns < *until_ns ? deadline_ns : *until_ns;
    return true;
}

/* Goes on with images, between two layers. Returns when the thread must be here again at the
 * latest, though nothing else happens. */
static uint64_t go_on_with_images(struct sl_worker *w, bool is_idle, uint64_t now_ns)
{
    bool has_changed;
    struct sl_kept_session *loaded =
        sl_session_images_tick(&w->images, is_idle, now_ns, &has_changed);

    if (loaded)
        sl_worker_loaded(w, loaded);
    if (has_changed)
        sl_worker_retry(w);
    if (has_changed || w->images.loading)
        return 0;
    return sl_session_images_are_due(&w->images) ? now_ns + IMAGES_LOOK_NS : UINT64_MAX;
}

static void serve(struct sl_worker *w)
{
    uint64_t until_ns = 0, now_ns;

    w->rate_since_ns = sl_clock_ns();
    for (;;) {
        struct sl_action action;
        uint64_t images_ns;

        read_mail(w, until_ns);
        now_ns = sl_clock_ns();
        until_ns = UINT64_MAX;
        if (!goes_on(w, now_ns, &until_ns))
            break;
        action = sl_scheduler_next(&w->scheduler, now_ns);
        act(w, &action, now_ns);
        /* Whose pages move has given a layer to others, who may have none. */
        if (w->sessions.is_moving && action.kind != SL_ACTION_ADMIT) {
            w->sessions.is_moving = false;
            sl_worker_retry(w);
            until_ns = 0;
        }
        images_ns = go_on_with_images(w, action.kind == SL_ACTION_WAIT, sl_clock_ns());
        publish(w, sl_clock_ns());
        if (action.kind != SL_ACTION_WAIT)
            until_ns = 0;
        else if (action.until_ns < until_ns)
            until_ns = action.until_ns;
        until_ns = images_ns < until_ns ? images_ns : until_ns;
    }
    fail_all(w);
    read_mail(w, 0); /* what was submitted before the end */
    fail_all(w);
    sl_session_images_flush(&w->images);
    publish(w, sl_clock_ns());
}

/* ---- the thread --------------------------------------------------------------------------------
 */

static int open_step(struct sl_worker *w, enum sl_step_size size, struct sl_err *err)
{
    struct sl_worker_step *step = &w->steps[size];

    step->texts = calloc(w->spans_max, sizeof(*step->texts));
    step->generations = calloc(w->spans_max, sizeof(*step->generations));
    step->n_tokens = calloc(w->spans_max, sizeof(*step->n_tokens));
    if (!step->texts || !step->generations || !step->n_tokens)
        return sl_err_set(err, -ENOMEM, "list of texts: out of memory");
    return sl_shared_step_create(&step->step, w->engine, size, err);
}

static int open_parts(struct sl_worker *w, struct sl_err *err)
{
    struct sl_scheduler_limits limits = {.running_max = w->options.n_texts_max,
                                         .batch_running_max = w->options.n_texts_max,
                                         .batch_permille = w->options.batch_permille};
    int rc = w->options.open(w->options.context, &w->engine, err);

    if (rc < 0)
        return rc;
    w->spans_max = sl_engine_spans_max(w->engine);
    w->n_layers = sl_engine_config(w->engine)->num_hidden_layers;
    limits.spans_max = w->spans_max;
    limits.n_layers = w->n_layers;
    w->layer_bytes = (sl_engine_config(w->engine)->n_routed_experts + 7) / 8;
    w->resident = calloc(w->n_layers, w->layer_bytes);
    w->step_kvs = calloc(w->spans_max, sizeof(*w->step_kvs));
    if (!w->resident || !w->step_kvs)
        return sl_err_set(err, -ENOMEM, "worker: out of memory");
    /* Batch leaves a session to those who wait for one. */
    limits.batch_running_max -= limits.batch_running_max > 1;
    for (int size = 0; size < SL_STEP_SIZES; size++)
        limits.step_tokens_max[size] =
            sl_engine_step_tokens_max(w->engine, (enum sl_step_size)size);
    if (sl_scheduler_init(&w->scheduler, &limits) < 0)
        return sl_err_set(err, -ENOMEM, "scheduler: out of memory");
    w->balance.bytes_per_ns = (double)sl_engine_drive_rate(w->engine) * 1e-9;
    set_batch_rows(w);
    for (int size = 0; rc == 0 && size < SL_STEP_SIZES; size++)
        rc = open_step(w, (enum sl_step_size)size, err);
    sl_worker_name_drives(w);
    sl_session_pool_init(&w->sessions, sl_engine_kv_pool(w->engine), w->options.context_tokens);
    w->sessions.step_tokens = limits.step_tokens_max[SL_STEP_LARGE];
    w->sessions.sweep_bytes = sl_engine_sweep_bytes(w->engine);
    sl_session_images_init(&w->images, w->engine, &w->sessions);
    return rc;
}

static void close_parts(struct sl_worker *w)
{
    for (int size = 0; size < SL_STEP_SIZES; size++) {
        sl_shared_step_destroy(w->steps[size].step);
        free(w->steps[size].texts);
        free(w->steps[size].generations);
        free(w->steps[size].n_tokens);
    }
    sl_session_pool_fini(&w->sessions);
    free(w->step_kvs);
    sl_scheduler_fini(&w->scheduler);
    sl_engine_close(w->engine);
}

static void *worker_main(void *context)
{
    struct sl_worker *w = context;
    struct sl_err err = {0};
    int rc = open_parts(w, &err);

    if (rc == 0) {
        /* A hot list that cannot be read, or written, costs time and nothing else. */
        if (w->options.with_hot_list)
            sl_engine_load_hot_list(w->engine, &w->stop_now, NULL, NULL, NULL);
        publish(w, sl_clock_ns());
        set_state(w, SL_WORKER_READY);
        serve(w);
        if (w->options.with_hot_list)
            sl_engine_save_hot_list(w->engine, NULL);
    }
    close_parts(w);
    pthread_mutex_lock(&w->lock);
    w->status.err = err;
    w->status.err.code = rc;
    pthread_mutex_unlock(&w->lock);
    set_state(w, SL_WORKER_ENDED);
    return NULL;
}

int sl_worker_start(struct sl_worker **ret_worker, const struct sl_worker_options *options,
                    struct sl_err *err)
{
    struct sl_worker *w = calloc(1, sizeof(*w));
    pthread_condattr_t monotonic;
    int rc;

    if (!w)
        return sl_err_set(err, -ENOMEM, "worker: out of memory");
    w->options = *options;
    sl_list_init(&w->submitted);
    sl_list_init(&w->noticed);
    sl_list_init(&w->live);
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&w->has_mail, &monotonic);
    pthread_condattr_destroy(&monotonic);
    rc = -pthread_create(&w->thread, NULL, worker_main, w);
    if (rc < 0) {
        free(w);
        return sl_err_set(err, rc, "the worker's thread: %s", sl_strerror(rc));
    }
    pthread_setname_np(w->thread, "sluice-worker");
    *ret_worker = w;
    return 0;
}

void sl_worker_join(struct sl_worker *w)
{
    pthread_join(w->thread, NULL);
    free(w->resident);
    pthread_cond_destroy(&w->has_mail);
    pthread_mutex_destroy(&w->lock);
    free(w);
}
