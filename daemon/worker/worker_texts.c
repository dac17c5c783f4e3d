/* Tickets and their texts on the thread of the worker, from their coming to their end. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/clock.h"
#include "core/model/kv_paging.h"
#include "daemon/worker/worker_internal.h"

/* A mark in a prompt is worth a step of its own if it saves so many tokens. */
#define MARK_GAIN_TOKENS 64u

/* Memory is kept for so many tokens of an answer, when it begins; it may be longer. */
#define PROMISED_TOKENS 1024u

/* ---- the end of a text, of a ticket ------------------------------------------------------------
 */

/* The queue is for those who wait; batches are fed as they are worked off. */
static void admitted(struct sl_worker *w, struct sl_ticket *ticket)
{
    if (ticket->n_unadmitted == 0 || --ticket->n_unadmitted > 0 || ticket->class == SL_JOB_BATCH)
        return;
    pthread_mutex_lock(&w->lock);
    w->n_waiting--;
    pthread_mutex_unlock(&w->lock);
}

/* Keeps an image of a session that is so much further than its latest one. */
static void keep_image(struct sl_worker *w, struct sl_kept_session *session, uint32_t n_more)
{
    if (w->images.images && session->kv->n_tokens >= session->n_kept + n_more)
        sl_session_images_want(&w->images, session, sl_session_keep_mark(session), sl_clock_ns());
}

/* Keeps an image of a session that nobody will use for a while, and that may have to go then: where
 * there is no memory for its mark, others go first, or it waits for those that have to be kept. */
static void keep_last_image(struct sl_worker *w, struct sl_kept_session *session)
{
    const uint32_t n_tokens = session->kv->n_tokens;

    do
        keep_image(w, session, MARK_GAIN_TOKENS);
    while (w->images.images && n_tokens >= session->n_kept + MARK_GAIN_TOKENS &&
           sl_session_give_up(&w->sessions));
    session->lacks_mark = w->images.images && n_tokens >= session->n_kept + MARK_GAIN_TOKENS;
}

/* Steps leave a text out whose session is being loaded, that waits for memory, or whose reader has
 * too much to read. */
static void set_held(struct sl_worker *w, struct sl_text *text)
{
    const bool is_loading = text->session && text->session->load_tokens > 0;
    struct sl_ticket *ticket = text->ticket;
    bool by_reader;

    pthread_mutex_lock(&ticket->lock);
    by_reader = ticket->is_held && !atomic_load(&ticket->is_abandoned);
    pthread_mutex_unlock(&ticket->lock);
    sl_scheduler_hold(&w->scheduler, &text->job, is_loading || text->waits_for_memory || by_reader);
}

void sl_worker_retry(struct sl_worker *w)
{
    sl_scheduler_retry(&w->scheduler);
    for (struct sl_link *at = w->live.next; w->has_waiters && at != &w->live; at = at->next) {
        struct sl_ticket *ticket = sl_list_item(at, struct sl_ticket, live);

        for (uint32_t i = 0; i < ticket->n_texts; i++)
            if (ticket->texts[i].waits_for_memory) {
                ticket->texts[i].waits_for_memory = false;
                set_held(w, &ticket->texts[i]);
            }
    }
    w->has_waiters = false;
}

/* The text needs no memory any more. */
static void release_text(struct sl_worker *w, struct sl_text *text)
{
    struct sl_ticket *ticket = text->ticket;

    if (text->session) {
        keep_last_image(w, text->session);
        sl_session_images_release(&w->images, text->session);
        sl_session_put(&w->sessions, text->session);
        sl_worker_retry(w);
    }
    text->session = NULL;
    if (--ticket->n_left > 0)
        return;
    while (ticket->n_unadmitted > 0)
        admitted(w, ticket);
    sl_list_remove(&ticket->live);
    sl_ticket_let_go(ticket);
}

static void tell(struct sl_worker *w, struct sl_ticket *ticket, const struct sl_news *news)
{
    if (!sl_ticket_tell(ticket, news))
        for (uint32_t i = 0; i < ticket->n_texts; i++)
            sl_scheduler_hold(&w->scheduler, &ticket->texts[i].job, true);
}

/* Whoever reads the ticket gets its figures when no text is left to be made. */
static void tell_end(struct sl_worker *w, struct sl_ticket *ticket)
{
    struct sl_news news = {.kind = SL_NEWS_END};

    if (ticket->is_over)
        return;
    for (uint32_t i = 0; i < ticket->n_texts; i++)
        if (!ticket->texts[i].has_ended)
            return;
    ticket->is_over = true;
    ticket->usage.n_prompt_tokens = atomic_load(&ticket->n_prompt_tokens);
    ticket->usage.n_cached_tokens = atomic_load(&ticket->n_cached_tokens);
    ticket->usage.seed = ticket->texts[0].seed;
    news.usage = ticket->usage;
    w->counters.n_finished++;
    tell(w, ticket, &news);
}

/* Takes the text out of the step that is open with it: the others' layers are cheaper from now on.
 * The last text of a step stays until the scheduler gives the step up, which it does next. */
static void leave_step(struct sl_worker *w, struct sl_text *text)
{
    struct sl_worker_step *step = &w->steps[text->job.size];
    uint32_t i = 0;

    if (!text->in_step || !sl_shared_step_drop(step->step, text->generation))
        return;
    text->in_step = false;
    while (step->texts[i] != text)
        i++;
    step->n_texts--;
    memmove(&step->texts[i], &step->texts[i + 1], (step->n_texts - i) * sizeof(*step->texts));
    memmove(&step->n_tokens[i], &step->n_tokens[i + 1],
            (step->n_texts - i) * sizeof(*step->n_tokens));
}

static void tell_piece(struct sl_worker *w, struct sl_text *text,
                       const struct sl_generation_output output)
{
    struct sl_news news = {.kind = SL_NEWS_PIECE,
                           .choice_index = text->choice_index,
                           .has_token = output.token != NULL,
                           .has_logprobs = output.token && text->with_logprobs,
                           .text = output.text,
                           .length = output.length};

    if (output.token)
        news.token = *output.token;
    if (output.token || output.length > 0)
        tell(w, text->ticket, &news);
}

/* Tells what the generation has added, tokens or text that had been held back, and its end. */
static void tell_output(struct sl_worker *w, struct sl_text *text)
{
    struct sl_news news;

    for (uint32_t i = 0; i < sl_generation_output_count(text->generation); i++)
        tell_piece(w, text, sl_generation_output(text->generation, i));
    if (sl_generation_finish(text->generation) == SL_FINISH_NONE)
        return;
    news = (struct sl_news){.kind = SL_NEWS_FINISH,
                            .choice_index = text->choice_index,
                            .finish = sl_generation_finish(text->generation),
                            .stop_string = sl_generation_stop_string(text->generation)};
    tell(w, text->ticket, &news);
}

static void end_text(struct sl_worker *w, struct sl_text *text)
{
    sl_assert(!text->has_ended);
    text->has_ended = true;
    sl_scheduler_remove(&w->scheduler, &text->job);
    tell_end(w, text->ticket);
    text->ticket->notify(text->ticket->owner);
    leave_step(w, text);
    if (!text->in_step)
        release_text(w, text);
}

/* The ticket may be gone afterwards. */
static void end_all_texts(struct sl_worker *w, struct sl_ticket *ticket)
{
    sl_ticket_hold(ticket);
    for (uint32_t i = 0; i < ticket->n_texts; i++)
        if (!ticket->texts[i].has_ended)
            end_text(w, &ticket->texts[i]);
    sl_ticket_let_go(ticket);
}

void sl_worker_fail(struct sl_worker *w, struct sl_ticket *ticket, int status, const char *message)
{
    const struct sl_news news = {
        .kind = SL_NEWS_FAILED, .status = status, .text = message, .length = strlen(message)};

    if (!ticket->is_over) { /* else nobody is left to tell, but there may be texts */
        ticket->is_over = true;
        w->counters.n_failed++;
        tell(w, ticket, &news);
    }
    end_all_texts(w, ticket);
}

void sl_worker_end_abandoned(struct sl_worker *w)
{
    for (struct sl_link *at = w->live.next, *next; at != &w->live; at = next) {
        struct sl_ticket *ticket = sl_list_item(at, struct sl_ticket, live);

        next = at->next;
        if (atomic_load(&ticket->is_abandoned))
            end_all_texts(w, ticket);
    }
}

/* ---- beginnings --------------------------------------------------------------------------------
 */

static void tell_stored(struct sl_text *text, uint32_t n_tokens)
{
    atomic_fetch_add(&text->ticket->n_stored_tokens, n_tokens - text->n_told_stored);
    text->n_told_stored = n_tokens;
}

/* A text that waits looks again when there are others. */
static void look_for_image(struct sl_worker *w, struct sl_text *text)
{
    uint64_t n_seen;

    if (!w->images.images)
        return;
    n_seen = 1 + sl_images_counters(w->images.images).n_saved;
    if (text->n_images_seen < n_seen)
        text->stored = sl_engine_find_image(w->engine, text->tokens, text->n_tokens - 1);
    text->n_images_seen = n_seen;
    tell_stored(text, text->stored.n_tokens);
}

void sl_worker_take_on(struct sl_worker *w, struct sl_ticket *ticket, uint64_t now_ns)
{
    uint32_t n_prompt_tokens = 0;

    ticket->submitted_ns = now_ns;
    sl_list_append(&w->live, &ticket->live);
    w->counters.n_requests++;
    for (uint32_t i = 0; i < ticket->n_texts; i++) {
        struct sl_text *text = &ticket->texts[i];

        n_prompt_tokens += text->n_tokens - text->n_made;
        sl_scheduler_submit(&w->scheduler, &text->job, ticket->class, text->n_tokens);
        look_for_image(w, text);
    }
    atomic_store(&ticket->n_prompt_tokens, n_prompt_tokens);
}

static int by_number(const void *a, const void *b)
{
    const uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;

    return (left > right) - (left < right);
}

/* A conversation that goes on shares with this one what lies before the answer; another one perhaps
 * what lies before its first turn. Where there is little to gain, no step is cut for it. */
static void choose_marks(const struct sl_worker *w, struct sl_text *text)
{
    uint32_t wanted[SL_TEXT_MARKS_MAX], n = 0, first_turn = 0;

    text->n_marks = 0;
    while (first_turn < text->n_tokens && text->tokens[first_turn] != w->options.turn_token)
        first_turn++;
    wanted[n++] = first_turn;
    wanted[n++] = text->n_shared;
    wanted[n++] = text->n_tokens - 1;
    if (w->images.images)
        n += sl_image_places(text->n_cached, text->stored.n_shared, text->n_tokens, wanted + n);
    qsort(wanted, n, sizeof(wanted[0]), by_number);
    for (uint32_t i = 0; i < n; i++) {
        const bool is_last = wanted[i] == text->n_tokens - 1;
        const uint32_t latest = text->n_marks > 0 ? text->marks[text->n_marks - 1] : 0;
        const uint32_t before = latest > 0 && !is_last ? latest : text->n_cached;

        if (wanted[i] > latest && wanted[i] < text->n_tokens &&
            wanted[i] + 1 >= before + MARK_GAIN_TOKENS)
            text->marks[text->n_marks++] = wanted[i];
    }
}

/* How far the next step may go: to the next mark, or the prompt's end. */
static uint32_t next_stop(const struct sl_text *text)
{
    for (uint32_t i = 0; i < text->n_marks; i++)
        if (text->marks[i] > text->session->kv->n_tokens)
            return text->marks[i];
    return text->n_tokens;
}

/* Tells scheduler and session how far the text is, in its prompt or behind it. */
static void set_left(struct sl_worker *w, struct sl_text *text)
{
    const uint32_t n_seen = text->session->kv->n_tokens;
    const bool decodes = n_seen >= text->n_tokens;
    const uint32_t stop = decodes ? 0 : next_stop(text);

    text->session->next_mark = stop < text->n_tokens ? stop : 0;
    sl_scheduler_set_left(&w->scheduler, &text->job, decodes ? 1 : stop - n_seen, decodes);
}

static uint32_t target_tokens(const struct sl_worker *w, const struct sl_text *text)
{
    const uint32_t n_new = text->n_new_max > 0 && text->n_new_max < PROMISED_TOKENS
                               ? text->n_new_max
                               : PROMISED_TOKENS;
    const uint32_t room = w->options.context_tokens - text->n_tokens;

    return text->n_tokens + (n_new < room ? n_new : room);
}

/* Tells what was made before as if it were made now; returns whether the text goes on. */
static bool tell_made(struct sl_worker *w, struct sl_text *text)
{
    const int32_t *ids = text->tokens + text->n_tokens - text->n_made;

    for (uint32_t i = 0; i < text->n_made; i++) {
        const struct sl_generated id_alone = {.id = (uint32_t)ids[i]};

        sl_generation_replay(text->generation, text->made ? &text->made[i] : &id_alone);
        tell_output(w, text);
        if (sl_generation_finish(text->generation) != SL_FINISH_NONE)
            return false;
    }
    return true;
}

/* The text has a session, which may have to be loaded before it begins. */
static void use_session(struct sl_worker *w, struct sl_text *text, uint64_t now_ns)
{
    struct sl_kept_session *session = text->session;
    struct sl_ticket *ticket = text->ticket;

    session->user = text;
    session->tokens = text->tokens;
    session->n_tokens = text->n_tokens;
    session->target_tokens = target_tokens(w, text);
    session->next_mark = session->load_tokens;
    session->is_pinning = ticket->image_every_tokens > 0;
    text->admitted_ns = now_ns;
    admitted(w, ticket);
    if (!atomic_load(&ticket->has_begun)) {
        atomic_store(&ticket->begun_ns, now_ns);
        atomic_store(&ticket->has_begun, true);
    }
}

static void begin_text(struct sl_worker *w, struct sl_text *text)
{
    struct sl_kept_session *session = text->session;
    struct sl_ticket *ticket = text->ticket;

    text->n_cached = session->kv->n_tokens;
    choose_marks(w, text);
    sl_generation_begin_again(text->generation, session->kv, text->tokens + text->n_cached,
                              text->n_tokens - text->n_cached, text->n_made, text->seed);
    set_left(w, text);
    w->counters.n_prompt_tokens += text->n_tokens;
    w->counters.n_cached_tokens += text->n_cached;
    atomic_fetch_add(&ticket->n_cached_tokens, text->n_cached);
    atomic_fetch_add(&ticket->n_done_tokens, text->n_cached);
    tell_stored(text, 0);
    if (text->n_made == 0)
        return;
    if (tell_made(w, text))
        ticket->notify(ticket->owner);
    else
        end_text(w, text);
}

/* Pages that could not be put on disk stay in memory, so that fewer texts find room. */
static void tell_paging(struct sl_worker *w)
{
    if (w->sessions.failure.code < 0 && w->options.on_failure)
        w->options.on_failure(w->options.context, &w->sessions.failure);
    w->sessions.failure.code = 0;
}

void sl_worker_admit(struct sl_worker *w, struct sl_text *text, uint64_t now_ns)
{
    struct sl_text *gives_way;
    struct sl_err err;
    int rc;

    look_for_image(w, text);
    while ((rc = sl_session_get(&w->sessions, text->tokens, text->n_tokens, text->stored.n_tokens,
                                target_tokens(w, text), text->ticket->class == SL_JOB_BATCH,
                                &text->session, &gives_way, &err)) == 1)
        end_text(w, gives_way);
    tell_paging(w);
    if (rc == -EBUSY) {
        sl_scheduler_defer(&w->scheduler, &text->job);
        return;
    }
    if (rc < 0) {
        sl_worker_fail(w, text->ticket, 503, err.message);
        return;
    }
    use_session(w, text, now_ns);
    if (text->session->load_tokens > 0)
        set_held(w, text);
    else
        begin_text(w, text);
}

void sl_worker_loaded(struct sl_worker *w, struct sl_kept_session *session)
{
    struct sl_text *text = session->user;

    w->counters.n_resumed += session->kv->n_tokens > 0;
    w->counters.n_resumed_tokens += session->kv->n_tokens;
    set_held(w, text);
    begin_text(w, text);
}

/* Bytes that a step takes; *ret_last is the text of it that came last. */
static uint64_t step_bytes(struct sl_worker *w, const struct sl_open_step *step,
                           struct sl_text **ret_last)
{
    uint64_t bytes = 0;

    *ret_last = NULL;
    for (uint32_t i = 0; i < step->n_parts; i++) {
        struct sl_text *text = sl_text_of(step->parts[i].job);
        struct sl_kv_cache *kv = text->session->kv;

        w->step_kvs[i] = kv;
        bytes += sl_kv_cache_need(kv, kv->n_tokens + step->parts[i].n_tokens);
        if (!*ret_last || text->job.arrival > (*ret_last)->job.arrival)
            *ret_last = text;
    }
    return bytes + sl_kv_window_bytes(w->step_kvs, step->n_parts);
}

int sl_worker_make_room(struct sl_worker *w, const struct sl_open_step *step)
{
    const struct sl_kv_pool *kv_pool = w->sessions.kv_pool;
    struct sl_text *last;
    struct sl_err err;
    int rc;

    while (step_bytes(w, step, &last) > sl_kv_pool_left_bytes(kv_pool)) {
        if (sl_session_give_up(&w->sessions) || sl_session_page_out(&w->sessions))
            continue;
        if (sl_session_awaits_images(&w->sessions)) {
            last->waits_for_memory = w->has_waiters = true;
            set_held(w, last);
            return -EBUSY;
        }
        /* Without a mark fewer pages are shared, so that fewer have to be copied. */
        if (!sl_session_give_up_mark(&w->sessions))
            break;
    }
    tell_paging(w);
    rc = sl_kv_pool_check(kv_pool, step_bytes(w, step, &last), "the next step", &err);
    if (rc < 0)
        sl_worker_fail(w, last->ticket, 503, err.message);
    return rc;
}

void sl_worker_drop(struct sl_worker *w, struct sl_text *text)
{
    end_text(w, text);
}

void sl_worker_look_at(struct sl_worker *w, struct sl_ticket *ticket, uint64_t now_ns)
{
    const bool is_abandoned = atomic_load(&ticket->is_abandoned);

    pthread_mutex_lock(&ticket->lock);
    ticket->has_notice = false;
    pthread_mutex_unlock(&ticket->lock);
    sl_ticket_hold(ticket);
    if (is_abandoned && !ticket->is_over) {
        ticket->is_over = true;
        w->counters.n_abandoned++;
    }
    for (uint32_t i = 0; i < ticket->n_texts; i++) {
        struct sl_text *text = &ticket->texts[i];

        if (text->has_ended)
            continue;
        set_held(w, text);
        if (atomic_load(&text->is_unwanted)) {
            end_text(w, text);
        } else if (is_abandoned &&
                   (text->job.decodes || !text->session || ticket->class == SL_JOB_BATCH)) {
            end_text(w, text);
        } else if (is_abandoned) {
            text->session->is_ending = true;
            sl_scheduler_set_reader(&w->scheduler, &text->job, false,
                                    now_ns + w->options.keep_prompt_ns);
        }
    }
    sl_ticket_let_go(ticket);
}

/* ---- after a step ------------------------------------------------------------------------------
 */

static void count_token(struct sl_worker *w, struct sl_text *text, uint64_t now_ns)
{
    struct sl_usage *usage = &text->ticket->usage;

    w->counters.n_new_tokens++;
    w->rate_n_tokens++;
    usage->n_new_tokens++;
    if (text->first_token_ns == 0) {
        text->first_token_ns = now_ns;
        usage->prompt_ns += now_ns - text->admitted_ns;
        sl_histogram_add(&w->first_token, now_ns - text->ticket->submitted_ns);
    } else {
        usage->n_decoded_tokens++;
        usage->decode_ns += now_ns - text->last_token_ns;
        sl_histogram_add(&w->next_token, now_ns - text->last_token_ns);
    }
    text->last_token_ns = now_ns;
}

/* At the places of the prompt, and after so many tokens of a long text, for its image. */
static void keep_mark(struct sl_worker *w, struct sl_text *text)
{
    struct sl_kept_session *session = text->session;
    const uint32_t every = text->ticket->image_every_tokens;

    if (session->next_mark > 0 && session->next_mark == session->kv->n_tokens)
        sl_session_images_want(&w->images, session, sl_session_keep_mark(session), sl_clock_ns());
    else
        keep_image(w, session, every > 0 ? every : sl_engine_image_every(w->engine));
}

static void went_on(struct sl_worker *w, struct sl_text *text, uint64_t now_ns)
{
    const bool took_prompt = !text->job.decodes;

    atomic_store(&text->ticket->n_part_tokens, 0);
    if (took_prompt)
        atomic_fetch_add(&text->ticket->n_done_tokens,
                         text->session->kv->n_tokens - text->n_step_tokens);
    for (uint32_t i = 0; i < sl_generation_output_count(text->generation); i++)
        if (sl_generation_output(text->generation, i).token)
            count_token(w, text, now_ns);
    w->counters.n_verifications += sl_generation_drafts_tried(text->generation) > 0;
    w->counters.n_drafts += sl_generation_drafts_tried(text->generation);
    w->counters.n_drafts_right += sl_generation_drafts_right(text->generation);
    tell_output(w, text);
    keep_mark(w, text);
    set_left(w, text);
    /* The last token of a prompt that nobody waits for is left: what follows it is not wanted. */
    if (sl_generation_tokens_left(text->generation) == 0 ||
        (text->job.has_no_reader && sl_generation_tokens_left(text->generation) == 1)) {
        end_text(w, text);
        return;
    }
    text->ticket->notify(text->ticket->owner);
}

static void add_step_to_usage(struct sl_ticket *ticket, const struct sl_worker_step *step)
{
    if (ticket->last_step == step->number)
        return;
    ticket->last_step = step->number;
    ticket->usage.n_expert_requests += step->cache.n_requests;
    ticket->usage.n_expert_hits += step->cache.n_hits + step->cache.n_prefetch_hits;
    ticket->usage.read_bytes += step->cache.read_bytes;
}

/* A text whose logits allowed no choice stays where it was, though the step has ended. */
static void text_step_over(struct sl_worker *w, const struct sl_worker_step *step,
                           struct sl_text *text, int rc, const struct sl_err *err, uint64_t now_ns)
{
    const bool has_moved = text->session->kv->n_tokens != text->n_step_tokens;
    struct sl_ticket *ticket = text->ticket;

    text->in_step = false;
    if (text->has_ended) {
        release_text(w, text);
        return;
    }
    add_step_to_usage(ticket, step);
    if (has_moved) {
        went_on(w, text, now_ns);
        return;
    }
    if (rc == 0)
        sl_scheduler_job_failed(&w->scheduler, &text->job);
    if (rc <= 0 && sl_job_has_failed(&text->job))
        sl_worker_fail(w, ticket, 500, err->message);
}

bool sl_worker_step_has_moved(const struct sl_worker_step *step)
{
    for (uint32_t i = 0; i < step->n_texts; i++)
        if (step->texts[i]->session->kv->n_tokens != step->texts[i]->n_step_tokens)
            return true;
    return false;
}

void sl_worker_step_over(struct sl_worker *w, enum sl_step_size size, int rc,
                         const struct sl_err *err)
{
    struct sl_worker_step *step = &w->steps[size];
    const uint32_t n_texts = step->n_texts;
    const uint64_t now_ns = sl_clock_ns();

    step->n_texts = 0;
    for (uint32_t i = 0; i < n_texts; i++)
        text_step_over(w, step, step->texts[i], rc, err, now_ns);
}

void sl_worker_show_progress(struct sl_worker *w, const struct sl_worker_step *step)
{
    for (uint32_t i = 0; i < step->n_texts; i++) {
        struct sl_text *text = step->texts[i];
        const uint64_t n_tokens = step->n_tokens[i];

        if (!text->job.decodes)
            atomic_store(&text->ticket->n_part_tokens,
                         (unsigned)(n_tokens * step->n_advances / (w->n_layers + 1)));
    }
}
