/* Items, from the line of the input to the line of the result. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/clock.h"
#include "daemon/batch/batch_runner_internal.h"

/* ---- memory ------------------------------------------------------------------------------------
 */

static void free_made(struct sl_text_made *texts, uint32_t n_texts)
{
    for (uint32_t i = 0; texts && i < n_texts; i++)
        sl_made_tokens_fini(&texts[i].made);
    free(texts);
}

void sl_saved_item_free(struct sl_saved_item *saved)
{
    free_made(saved->texts, saved->n_texts);
    free(saved);
}

/* A ticket's release function: nobody holds it any more. */
static void release(void *owner)
{
    struct sl_live_item *live = owner;
    struct sl_batch_runner *r = live->runner;

    free_made(live->texts, live->n_texts);
    for (uint32_t i = 0; i < live->n_texts; i++) {
        if (live->tokens)
            free(live->tokens[i]);
        if (live->before)
            free(live->before[i]);
    }
    free(live->tokens);
    free(live->before);
    free(live->n_replayed);
    free(live->n_before);
    free(live->custom_id);
    sl_answer_fini(&live->answer);
    free(live);
    pthread_mutex_lock(&r->wake_lock);
    if (--r->n_unreleased == 0)
        pthread_cond_broadcast(&r->released);
    pthread_mutex_unlock(&r->wake_lock);
}

/* Called by the worker's thread. */
static void notify(void *owner)
{
    struct sl_live_item *live = owner;

    atomic_store(&live->has_news, true);
    sl_batch_wake(live->runner);
}

/* ---- the end of an item ------------------------------------------------------------------------
 */

/* `length` is NULL where it has failed. */
static void count_end(struct sl_batch_runner *r, struct sl_batch *batch, uint32_t item_index,
                      const struct sl_answer_length *length)
{
    pthread_mutex_lock(&r->lock);
    if (length)
        batch->record.n_done++;
    else
        batch->record.n_failed++;
    pthread_mutex_unlock(&r->lock);
    sl_assert(batch->states[item_index] < SL_ITEM_DONE); /* no item ends twice */
    sl_batch_set_item(batch, item_index, length ? SL_ITEM_DONE : SL_ITEM_FAILED);
    batch->n_ended_tokens += batch->input->items[item_index].n_prompt_tokens;
    batch->has_changed = true;
    sl_batch_note_item(r, batch, item_index, length);
}

static void end_with_error(struct sl_batch_runner *r, struct sl_batch *batch, uint32_t item_index,
                           const char *custom_id, const char *code, const char *message)
{
    sl_batch_line_write_error(custom_id, code, message, &batch->errors.lines);
    count_end(r, batch, item_index, NULL);
}

/* Memory that did not suffice may do so again when others have left it. */
static void allow_more(struct sl_batch_runner *r)
{
    if (r->items_max == r->options.items_max || ++r->n_ended_well < r->items_max)
        return;
    r->items_max++;
    r->n_ended_well = 0;
}

static void end_well(struct sl_batch_runner *r, struct sl_live_item *live)
{
    const struct sl_usage *usage = &live->answer.usage;
    struct sl_batch *batch = live->batch;
    const struct sl_answer_length length =
        sl_batch_count_answer(batch, live->item_index, usage->n_new_tokens);

    sl_batch_line_write(live->custom_id, &live->answer, &batch->output.lines);
    count_end(r, batch, live->item_index, &length);
    allow_more(r);
    pthread_mutex_lock(&r->lock);
    batch->record.n_in_tokens += usage->n_prompt_tokens;
    batch->record.n_cached_tokens += atomic_load(&live->answer.ticket.n_cached_tokens);
    batch->record.n_out_tokens += usage->n_new_tokens;
    batch->record.n_reasoning_tokens += usage->n_reasoning_tokens;
    pthread_mutex_unlock(&r->lock);
}

/* The item waits again, and keeps what was made of it. */
static void wait_again(struct sl_live_item *live)
{
    struct sl_saved_item *saved = calloc(1, sizeof(*saved));
    struct sl_batch *batch = live->batch;

    sl_batch_set_item(batch, live->item_index, SL_ITEM_WAITING);
    if (live->place < batch->next_place)
        batch->next_place = live->place;
    if (!saved) { /* what was made has to be made again */
        sl_batch_forget_made(live->runner, batch, live->item_index, live->texts, live->n_texts);
        return;
    }
    saved->item_index = live->item_index;
    saved->n_texts = live->n_texts;
    saved->texts = live->texts;
    live->texts = NULL;
    sl_list_append(&batch->saved, &saved->link);
}

/* Memory that did not suffice beside others may do alone. Faults of drives may pass. */
static void end_badly(struct sl_batch_runner *r, struct sl_live_item *live)
{
    const struct sl_refusal *refusal = &live->answer.refusal;
    struct sl_batch *batch = live->batch;

    if (sl_worker_state(r->worker) != SL_WORKER_READY) {
        wait_again(live);
    } else if (refusal->status == 503 && r->n_live > 0) {
        r->items_max = r->n_live;
        r->n_ended_well = 0;
        wait_again(live);
    } else if (++batch->tries[live->item_index] < SL_ITEM_TRIES && refusal->status != 503) {
        wait_again(live);
    } else {
        sl_batch_forget_made(r, batch, live->item_index, live->texts, live->n_texts);
        end_with_error(r, batch, live->item_index, live->custom_id, "server_error",
                       refusal->message);
    }
}

/* The item is in the worker no more. */
static void leave(struct sl_batch_runner *r, struct sl_live_item *live)
{
    sl_batch_count_leave(r, live);
    sl_list_remove(&live->link);
    r->n_live--;
    live->batch->n_running--;
}

static void item_over(struct sl_batch_runner *r, struct sl_live_item *live)
{
    leave(r, live);
    if (live->answer.has_failed) {
        end_badly(r, live);
    } else {
        sl_batch_forget_made(r, live->batch, live->item_index, live->texts, live->n_texts);
        end_well(r, live);
    }
    sl_ticket_let_go(&live->answer.ticket);
}

void sl_batch_take_news(struct sl_batch_runner *r)
{
    for (struct sl_link *at = r->live.next, *next; at != &r->live; at = next) {
        struct sl_live_item *live = sl_list_item(at, struct sl_live_item, link);

        next = at->next;
        if (!atomic_exchange(&live->has_news, false))
            continue;
        if (sl_answer_take_news(&live->answer))
            sl_worker_notice(r->worker, &live->answer.ticket);
        if (live->answer.has_ended)
            item_over(r, live);
    }
}

/* Told of each token, those that were made before included. */
static void on_token(void *context, uint32_t choice_index, const struct sl_generated *token)
{
    struct sl_live_item *live = context;

    if (live->n_replayed[choice_index] < live->n_before[choice_index])
        live->n_replayed[choice_index]++;
    else
        sl_made_tokens_add(&live->texts[choice_index].made, token);
}

/* The worker goes on without the item, which keeps what was made of it. */
static void put_back(struct sl_batch_runner *r, struct sl_live_item *live)
{
    leave(r, live);
    wait_again(live);
    atomic_store(&live->answer.ticket.is_abandoned, true);
    sl_worker_notice(r->worker, &live->answer.ticket);
    sl_ticket_let_go(&live->answer.ticket);
}

static void put_next_back(struct sl_batch_runner *r)
{
    wait_again(r->next);
    sl_ticket_let_go(&r->next->answer.ticket);
    r->next = NULL;
}

void sl_batch_leave_worker(struct sl_batch_runner *r, const struct sl_batch *batch)
{
    for (struct sl_link *at = r->live.next, *next; at != &r->live; at = next) {
        struct sl_live_item *live = sl_list_item(at, struct sl_live_item, link);

        next = at->next;
        if (!batch || live->batch == batch)
            put_back(r, live);
    }
    if (r->next && (!batch || r->next->batch == batch))
        put_next_back(r);
}

/* ---- preparing ---------------------------------------------------------------------------------
 */

static struct sl_saved_item *take_saved(struct sl_batch *batch, uint32_t item_index)
{
    for (struct sl_link *at = batch->saved.next; at != &batch->saved; at = at->next) {
        struct sl_saved_item *saved = sl_list_item(at, struct sl_saved_item, link);

        if (saved->item_index != item_index)
            continue;
        sl_list_remove(&saved->link);
        return saved;
    }
    return NULL;
}

/* Lets a text begin behind the tokens that were made of it before. */
static int begin_behind(struct sl_live_item *live, uint32_t i)
{
    const struct sl_text_made *before = &live->texts[i];
    struct sl_text *text = &live->answer.ticket.texts[i];
    const uint32_t n_prompt = text->n_tokens;
    struct sl_generated *generated;
    size_t at = 0;

    if (before->made.n == 0)
        return 0;
    live->tokens[i] = malloc(((size_t)n_prompt + before->made.n) * sizeof(int32_t));
    live->before[i] = generated = malloc(before->made.n * sizeof(*generated));
    if (!live->tokens[i] || !generated)
        return -ENOMEM;
    memcpy(live->tokens[i], text->tokens, n_prompt * sizeof(int32_t));
    for (uint32_t k = 0; k < before->made.n; k++) {
        bool is_there = sl_made_tokens_next(&before->made, &at, &generated[k]);

        sl_assert(is_there);
        live->tokens[i][n_prompt + k] = (int32_t)generated[k].id;
    }
    live->n_before[i] = before->made.n;
    text->tokens = live->tokens[i];
    text->n_tokens = n_prompt + before->made.n;
    text->n_made = before->made.n;
    text->made = generated;
    return 0;
}

/* Where the input's line asks for fewer texts than the journal has, those are left aside. */
static int take_over_made(struct sl_live_item *live)
{
    const uint32_t n = live->answer.ticket.n_texts;
    struct sl_saved_item *saved;
    int rc = 0;

    live->texts = calloc(n, sizeof(*live->texts));
    live->n_replayed = calloc(n, sizeof(*live->n_replayed));
    live->n_before = calloc(n, sizeof(*live->n_before));
    live->tokens = calloc(n, sizeof(*live->tokens));
    live->before = calloc(n, sizeof(*live->before));
    if (!live->texts || !live->n_replayed || !live->n_before || !live->tokens || !live->before)
        return -ENOMEM;
    live->n_texts = n;
    saved = take_saved(live->batch, live->item_index);
    for (uint32_t i = 0; saved && i < n && i < saved->n_texts; i++) {
        live->texts[i] = saved->texts[i];
        saved->texts[i] = (struct sl_text_made){.n_groups = 0};
    }
    if (saved)
        sl_saved_item_free(saved);
    for (uint32_t i = 0; rc == 0 && i < n; i++)
        rc = begin_behind(live, i);
    return rc;
}

static struct sl_live_item *create(struct sl_batch_runner *r, struct sl_batch *batch,
                                   uint32_t place)
{
    struct sl_live_item *live = calloc(1, sizeof(*live));

    if (!live)
        return NULL;
    live->runner = r;
    live->batch = batch;
    live->place = place;
    live->item_index = batch->input->order[place];
    live->answer.on_token = on_token;
    live->answer.context = live;
    live->answer.ticket.n_holders = 1;
    live->answer.ticket.owner = live;
    live->answer.ticket.release = release;
    pthread_mutex_lock(&r->wake_lock);
    r->n_unreleased++;
    pthread_mutex_unlock(&r->wake_lock);
    return live;
}

static int read_item(struct sl_live_item *live, struct sl_batch_fault *fault, struct sl_err *err)
{
    const struct sl_batch *batch = live->batch;
    struct sl_answer *answer = &live->answer;
    const char *endpoint = batch->record.endpoint;
    struct sl_refusal refusal;
    struct sl_bytes line = {0};
    int rc = sl_batch_input_line(batch->input, live->item_index, &line, err);

    if (rc == 0)
        rc = sl_batch_line_read(answer, live->runner->options.model, endpoint, line.data,
                                line.length, &live->custom_id, fault) < 0;
    sl_bytes_fini(&line);
    if (rc != 0)
        return rc;
    if (batch->input->items[live->item_index].n_prompt_tokens == 0) {
        snprintf(fault->code, sizeof(fault->code), "duplicate_custom_id");
        snprintf(fault->message, sizeof(fault->message), "another line has this custom_id already");
        return 1;
    }
    if (sl_answer_make_texts(answer, &refusal) < 0) {
        snprintf(fault->code, sizeof(fault->code), "server_error");
        snprintf(fault->message, sizeof(fault->message), "%s", refusal.message);
        return 1;
    }
    answer->ticket.class = SL_JOB_BATCH;
    answer->ticket.image_every_tokens = live->runner->options.image_tokens;
    answer->ticket.owner = live;
    answer->ticket.notify = notify;
    answer->ticket.release = release;
    return take_over_made(live) < 0 ? sl_err_set(err, -ENOMEM, "item: out of memory") : 0;
}

/* Makes an item ready for the worker. Returns NULL where it ended as an error, or the batch stands
 * still now. */
static struct sl_live_item *prepare(struct sl_batch_runner *r, struct sl_batch *batch,
                                    uint32_t place)
{
    struct sl_live_item *live = create(r, batch, place);
    struct sl_batch_fault fault = {.code = ""};
    struct sl_err err;
    int rc;

    if (!live) {
        sl_err_set(&err, -ENOMEM, "item: out of memory");
        sl_batch_set_trouble(r, batch, &err);
        return NULL;
    }
    rc = read_item(live, &fault, &err);
    if (rc == 0) {
        sl_batch_set_item(batch, live->item_index, SL_ITEM_RUNNING);
        return live;
    }
    if (rc > 0)
        end_with_error(r, batch, live->item_index, live->custom_id, fault.code, fault.message);
    else
        sl_batch_set_trouble(r, batch, &err);
    if (rc < 0 && live->n_texts > 0) /* what was made of it is its own by now */
        wait_again(live);
    sl_ticket_let_go(&live->answer.ticket);
    return NULL;
}

/* ---- beginning ---------------------------------------------------------------------------------
 */

/* Returns the place of the next item that waits, or n_items. */
static uint32_t find_waiting(const struct sl_batch *batch, uint32_t from)
{
    while (from < batch->record.n_items &&
           batch->states[batch->input->order[from]] != SL_ITEM_WAITING)
        from++;
    return from;
}

static bool can_go_on(const struct sl_batch *batch)
{
    return batch->record.state == SL_BATCH_IN_PROGRESS && batch->is_read && !batch->is_stuck &&
           !batch->cancel_wanted;
}

/* The batch of the highest priority that has items which wait; of several the oldest. */
static struct sl_batch *choose_batch(struct sl_batch_runner *r)
{
    struct sl_batch *best = NULL;

    pthread_mutex_lock(&r->lock);
    for (struct sl_link *at = r->batches.next; at != &r->batches; at = at->next) {
        struct sl_batch *batch = sl_list_item(at, struct sl_batch, link);

        if (!can_go_on(batch) || (best && best->record.priority >= batch->record.priority))
            continue;
        batch->next_place = find_waiting(batch, batch->next_place);
        if (batch->next_place < batch->record.n_items)
            best = batch;
    }
    pthread_mutex_unlock(&r->lock);
    return best;
}

static struct sl_live_item *prepare_next(struct sl_batch_runner *r)
{
    struct sl_batch *batch;

    while ((batch = choose_batch(r))) {
        struct sl_live_item *live = prepare(r, batch, batch->next_place);

        if (live)
            return live;
    }
    return NULL;
}

/* The item that comes next where it is in the same group: it is prepared as well, so that both know
 * how much they share. */
static void look_ahead(struct sl_batch_runner *r, struct sl_live_item *live)
{
    struct sl_batch *batch = live->batch;
    const struct sl_batch_item *items = batch->input->items;
    struct sl_text *text = &live->answer.ticket.texts[0];
    const uint32_t place = find_waiting(batch, live->place + 1);
    const struct sl_text *other;
    uint32_t n = 0;

    if (place == batch->record.n_items ||
        items[batch->input->order[place]].group != items[live->item_index].group)
        return;
    r->next = prepare(r, batch, place);
    if (!r->next)
        return;
    other = &r->next->answer.ticket.texts[0];
    while (n < text->n_tokens && n < other->n_tokens && text->tokens[n] == other->tokens[n])
        n++;
    text->n_shared = n;
}

static bool submit(struct sl_batch_runner *r, struct sl_live_item *live)
{
    static const struct sl_reply_event begin = {.kind = SL_REPLY_BEGIN};

    sl_answer_say(&live->answer, &begin);
    sl_list_append(&r->live, &live->link);
    r->n_live++;
    live->batch->n_running++;
    live->room_due_ns = sl_clock_ns() + r->options.retry_ns;
    if (sl_worker_submit(r->worker, &live->answer.ticket) == 0)
        return true;
    leave(r, live);
    wait_again(live);
    sl_ticket_let_go(&live->answer.ticket);
    return false;
}

/* ---- giving way --------------------------------------------------------------------------------
 * Items of a more urgent batch get the places of those of less urgent ones, which go on later.
 */

/* Returns how many tokens may have to be computed again. */
static uint64_t spent(const struct sl_live_item *live)
{
    return atomic_load(&live->answer.ticket.n_done_tokens) + (uint64_t)live->answer.n_new_tokens;
}

/* Returns an item of the least urgent batch, of those the one on which least was spent; NULL where
 * none is less urgent than that. */
static struct sl_live_item *find_less_urgent(const struct sl_batch_runner *r, int32_t priority)
{
    struct sl_live_item *best = NULL;

    for (const struct sl_link *at = r->live.next; at != &r->live; at = at->next) {
        struct sl_live_item *live = sl_list_item(at, struct sl_live_item, link);
        const int32_t least = best ? best->batch->record.priority : priority;

        if (live->batch->record.priority < least ||
            (best && live->batch->record.priority == least && spent(live) < spent(best)))
            best = live;
    }
    return best;
}

/* Returns whether an item of that priority may begin. */
static bool make_place(struct sl_batch_runner *r, int32_t priority)
{
    struct sl_live_item *gives_way;

    if (r->n_live < r->items_max)
        return true;
    gives_way = find_less_urgent(r, priority);
    if (gives_way)
        put_back(r, gives_way);
    return gives_way != NULL;
}

/* Returns the most urgent item that waits in the worker, of several the first; NULL: none does. */
static struct sl_live_item *find_first_waiting(const struct sl_batch_runner *r)
{
    struct sl_live_item *first = NULL;

    for (const struct sl_link *at = r->live.next; at != &r->live; at = at->next) {
        struct sl_live_item *live = sl_list_item(at, struct sl_live_item, link);

        if (!sl_live_item_has_begun(live) &&
            (!first || live->batch->record.priority > first->batch->record.priority))
            first = live;
    }
    return first;
}

/* The worker takes items in the order in which they come. Less urgent ones that wait before this
 * one come again behind it; and where it waits for long, somebody who has a session gives it up. */
static void let_pass(struct sl_batch_runner *r, struct sl_live_item *first)
{
    const int32_t priority = first->batch->record.priority;
    const uint64_t now_ns = sl_clock_ns();
    struct sl_live_item *gives_way;

    for (struct sl_link *at = r->live.next, *next; at != &first->link; at = next) {
        struct sl_live_item *live = sl_list_item(at, struct sl_live_item, link);

        next = at->next;
        if (!sl_live_item_has_begun(live) && live->batch->record.priority < priority)
            put_back(r, live);
    }
    if (now_ns < first->room_due_ns)
        return;
    first->room_due_ns = now_ns + r->options.retry_ns;
    gives_way = find_less_urgent(r, priority);
    if (gives_way)
        put_back(r, gives_way);
}

/* Returns the batch whose item is to begin next, when there is a place for it; NULL: none is. */
static const struct sl_batch *choose_next(struct sl_batch_runner *r)
{
    const struct sl_batch *batch = choose_batch(r);

    if (r->next && batch && batch->record.priority > r->next->batch->record.priority)
        put_next_back(r);
    return r->next ? r->next->batch : batch;
}

void sl_batch_begin_items(struct sl_batch_runner *r)
{
    struct sl_live_item *first = find_first_waiting(r);
    const int32_t least = first ? first->batch->record.priority : INT32_MIN;
    const struct sl_batch *batch;

    if (first)
        let_pass(r, first);
    while (sl_worker_state(r->worker) == SL_WORKER_READY && (batch = choose_next(r))) {
        struct sl_live_item *live;

        if (batch->record.priority < least || !make_place(r, batch->record.priority))
            return;
        live = r->next ? r->next : prepare_next(r);
        r->next = NULL;
        if (!live)
            return;
        look_ahead(r, live);
        if (!submit(r, live))
            return;
    }
}

/* ---- items that will not begin -----------------------------------------------------------------
 */

bool sl_batch_end_waiting(struct sl_batch_runner *r, struct sl_batch *batch, const char *code,
                          const char *message, uint32_t n_max)
{
    struct sl_bytes line = {0};

    while (n_max-- > 0) {
        uint32_t item_index;
        struct sl_saved_item *saved;
        json_t *object = NULL;

        batch->next_place = find_waiting(batch, batch->next_place);
        if (batch->next_place == batch->record.n_items)
            break;
        item_index = batch->input->order[batch->next_place];
        if (sl_batch_input_line(batch->input, item_index, &line, NULL) == 0)
            sl_json_parse(&object, line.data, line.length, "the line", NULL);
        end_with_error(r, batch, item_index,
                       json_string_value(json_object_get(object, "custom_id")), code, message);
        json_decref(object);
        saved = take_saved(batch, item_index);
        if (saved) {
            sl_batch_forget_made(r, batch, item_index, saved->texts, saved->n_texts);
            sl_saved_item_free(saved);
        }
    }
    sl_bytes_fini(&line);
    return batch->next_place == batch->record.n_items;
}
