/* How far batches are, and how long they will take.
 *
 * Work is counted in tokens that will be computed: of an item that waits, those that the item
 * before it in the order does not share with it; of one that has begun, those that its sessions did
 * not know. */
#include <errno.h>
#include <stdlib.h>

#include "core/base/clock.h"
#include "daemon/batch/batch_runner_internal.h"

#define NS_PER_S UINT64_C(1000000000)

/* Prompts get one part in so many of a batch's step, though texts could fill it (daemon/scheduler).
 */
#define PROMPT_SHARE 8u

static double share_read(const struct sl_batch *batch)
{
    const uint64_t file_bytes = batch->input ? sl_batch_input_file_bytes(batch->input) : 0;

    if (batch->is_read)
        return 1;
    return file_bytes > 0 ? (double)sl_batch_input_done_bytes(batch->input) / (double)file_bytes
                          : 0;
}

/* ---- what is to be done ------------------------------------------------------------------------
 */

static uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Returns the pasts of the tokens from `first` on of n_tokens, which n_texts share evenly. */
static uint64_t pasts(uint64_t first, uint64_t n_tokens, uint32_t n_texts)
{
    return n_tokens > first ? (n_tokens * n_tokens - first * first) / 2 / n_texts : 0;
}

/* An item that has not begun, in this run. */
static struct sl_estimate_item waiting_item(const struct sl_batch *batch, uint32_t item_index)
{
    const struct sl_batch_item *item = &batch->input->items[item_index];
    const uint32_t n_tokens = item->n_distinct_tokens - item->n_shared_tokens;

    return (struct sl_estimate_item){
        .prompt_tokens = n_tokens,
        .pasts = item->n_texts > 0
                     ? pasts(item->n_prompt_tokens - n_tokens, item->n_prompt_tokens, item->n_texts)
                     : 0,
        .n_texts = item->n_texts,
        .n_new_max = item->n_new_max};
}

/* Faulty lines are no work. */
static void count_waiting(struct sl_batch *batch, uint32_t item_index, int n)
{
    const struct sl_estimate_item item = waiting_item(batch, item_index);

    if (batch->input->items[item_index].n_prompt_tokens > 0)
        sl_estimate_waiting_add(&batch->waiting, &item, n);
}

/* Items that have ended in an earlier run have left nothing that others could share, unless there
 * are images. */
static void forget_shared(struct sl_batch *batch)
{
    const struct sl_batch_input *input = batch->input;
    uint64_t n_known = 0;

    for (uint32_t place = 0; place < input->n_items; place++) {
        struct sl_batch_item *item = &input->items[input->order[place]];

        n_known = min_u64(n_known, item->n_shared_tokens);
        item->n_shared_tokens = (uint32_t)n_known;
        if (batch->states[input->order[place]] < SL_ITEM_DONE)
            n_known = UINT64_MAX;
    }
}

int sl_batch_begin_progress(struct sl_batch_runner *r, struct sl_batch *batch)
{
    if (!batch->lengths && !(batch->lengths = calloc(1, sizeof(*batch->lengths))))
        return -ENOMEM;
    if (!r->options.keeps_images)
        forget_shared(batch);
    for (uint32_t i = 0; i < batch->input->n_items; i++)
        if (batch->states[i] == SL_ITEM_WAITING)
            count_waiting(batch, i, 1);
        else
            batch->n_ended_tokens += batch->input->items[i].n_prompt_tokens;
    batch->n_ended_made = batch->record.n_out_tokens;
    batch->n_left_computed = batch->record.n_computed_tokens;
    return 0;
}

void sl_batch_set_item(struct sl_batch *batch, uint32_t item_index, enum sl_item_state state)
{
    const bool was_waiting = batch->states[item_index] == SL_ITEM_WAITING;

    batch->states[item_index] = (uint8_t)state;
    if (was_waiting != (state == SL_ITEM_WAITING))
        count_waiting(batch, item_index, was_waiting ? -1 : 1);
}

/* ---- what is done ------------------------------------------------------------------------------
 */

/* Tokens of prompts that were computed for an item, by steps that have ended. */
static uint64_t computed(const struct sl_live_item *live)
{
    const uint32_t n_done = atomic_load(&live->answer.ticket.n_done_tokens);
    const uint32_t n_cached = atomic_load(&live->answer.ticket.n_cached_tokens);

    return n_done > n_cached ? n_done - n_cached : 0;
}

static uint64_t computed_pasts(const struct sl_live_item *live)
{
    const struct sl_ticket *ticket = &live->answer.ticket;

    return pasts(atomic_load(&ticket->n_cached_tokens), atomic_load(&ticket->n_done_tokens),
                 ticket->n_texts);
}

/* Tokens of its answer that earlier runs, or tries, have made. */
static uint32_t made_before(const struct sl_live_item *live)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < live->n_texts; i++)
        n += live->n_before[i];
    return n;
}

/* Tokens of its prompts, and of what was made of it before, that are known: by its sessions, or by
 * images that they will begin with. */
static uint64_t known(const struct sl_live_item *live)
{
    return (uint64_t)atomic_load(&live->answer.ticket.n_done_tokens) +
           atomic_load(&live->answer.ticket.n_stored_tokens);
}

/* Tokens of its answer that were made now. */
static uint32_t made_now(const struct sl_live_item *live)
{
    uint32_t n = live->answer.n_new_tokens;

    for (uint32_t i = 0; i < live->n_texts; i++)
        n -= live->n_replayed[i];
    return n;
}

void sl_batch_count_leave(struct sl_batch_runner *r, const struct sl_live_item *live)
{
    live->batch->n_left_computed += computed(live);
    r->n_left_computed += computed(live);
    r->n_left_pasts += computed_pasts(live);
    r->n_left_made += made_now(live);
}

struct sl_answer_length sl_batch_count_answer(struct sl_batch *batch, uint32_t item_index,
                                              uint32_t n_tokens)
{
    const struct sl_batch_item *item = &batch->input->items[item_index];
    const uint32_t n_each = n_tokens / item->n_texts;
    const struct sl_answer_length length = {n_each,
                                            item->n_new_max > 0 && n_each >= item->n_new_max};

    batch->n_ended_made += n_tokens;
    sl_answer_lengths_add(batch->lengths, length.n_tokens, length.is_cut);
    return length;
}

void sl_batch_count_progress(struct sl_batch_runner *r)
{
    pthread_mutex_lock(&r->lock);
    for (struct sl_link *at = r->batches.next; at != &r->batches; at = at->next) {
        struct sl_batch *batch = sl_list_item(at, struct sl_batch, link);

        batch->shown.n_running = batch->n_running;
        batch->shown.n_done_tokens = batch->n_ended_tokens;
        batch->shown.n_made_tokens = batch->n_ended_made;
        batch->shown.validated = share_read(batch);
        if (batch->is_read)
            batch->record.n_computed_tokens = batch->n_left_computed;
    }
    for (struct sl_link *at = r->live.next; at != &r->live; at = at->next) {
        struct sl_live_item *live = sl_list_item(at, struct sl_live_item, link);
        const struct sl_ticket *ticket = &live->answer.ticket;
        const uint32_t n_max = atomic_load(&ticket->n_prompt_tokens);
        const uint64_t n_done = known(live) + atomic_load(&ticket->n_part_tokens);

        live->batch->shown.n_done_tokens += min_u64(n_done, n_max);
        live->batch->shown.n_made_tokens += live->answer.n_new_tokens;
        live->batch->record.n_computed_tokens += computed(live);
    }
    pthread_mutex_unlock(&r->lock);
}

/* ---- how long it will take ---------------------------------------------------------------------
 */

static bool goes_before(const struct sl_batch *a, const struct sl_batch *b)
{
    return a->record.priority > b->record.priority ||
           (a->record.priority == b->record.priority && a->record.number < b->record.number);
}

/* Tokens of an item's prompts, and of what was made of it before, that are to be computed yet. */
static uint64_t prompt_left(const struct sl_live_item *live)
{
    const struct sl_batch_item *item = &live->batch->input->items[live->item_index];
    const uint64_t n_before = made_before(live), n_all = item->n_prompt_tokens + n_before;
    const uint64_t n_known = known(live);

    if (n_known >= n_all)
        return 0;
    return min_u64(n_all - n_known, item->n_distinct_tokens + n_before);
}

/* Adds an item that has begun, in this run or before, or waits in the worker. */
static void add_live(struct sl_estimate_batch *to, struct sl_estimate_item *running,
                     const struct sl_live_item *live)
{
    const uint64_t n_before = made_before(live), n_new = live->answer.n_new_tokens;
    struct sl_estimate_item item = waiting_item(live->batch, live->item_index);
    const uint64_t n_all = live->batch->input->items[live->item_index].n_prompt_tokens + n_before;

    if (sl_live_item_has_begun(live))
        item.prompt_tokens = prompt_left(live);
    else
        item.prompt_tokens = min_u64(item.prompt_tokens + n_before, prompt_left(live));
    item.pasts = pasts(n_all - item.prompt_tokens, n_all, item.n_texts);
    if (!sl_live_item_has_begun(live) && n_before == 0) {
        sl_estimate_waiting_add(&to->waiting, &item, 1);
        return;
    }
    /* Tokens that were made before are told again when it begins. */
    item.n_made = (uint32_t)(n_new > n_before ? n_new : n_before) / item.n_texts;
    running[to->n_running++] = item;
}

/* `running` has room for all items that are in the worker. */
static struct sl_estimate_batch work_of(const struct sl_batch_runner *r,
                                        const struct sl_batch *batch,
                                        struct sl_estimate_item *running)
{
    struct sl_estimate_batch work = {
        .lengths = batch->lengths, .running = running, .waiting = batch->waiting};

    for (struct sl_link *at = r->live.next; at != &r->live; at = at->next)
        if (sl_list_item(at, struct sl_live_item, link)->batch == batch)
            add_live(&work, running, sl_list_item(at, struct sl_live_item, link));
    if (r->next && r->next->batch == batch)
        add_live(&work, running, r->next);
    return work;
}

static void note_sample(struct sl_batch_runner *r, const struct sl_estimate_batch *works,
                        uint32_t n_works)
{
    struct sl_worker_status status;
    struct sl_estimate_sample sample = {.seconds = (double)sl_clock_ns() / 1e9,
                                        .prompt_tokens = (double)r->n_left_computed,
                                        .made_tokens = (double)r->n_left_made,
                                        .pasts = (double)r->n_left_pasts};
    uint32_t rows;

    sl_worker_status(r->worker, &status);
    sample.steps = (double)status.counters.n_batch_steps;
    sample.wait_seconds = (double)status.counters.wait_ns / 1e9;
    for (struct sl_link *at = r->live.next; at != &r->live; at = at->next) {
        const struct sl_live_item *live = sl_list_item(at, struct sl_live_item, link);

        sample.prompt_tokens += (double)computed(live);
        sample.pasts += (double)computed_pasts(live);
        sample.made_tokens += made_now(live);
        sample.n_begun += sl_live_item_has_begun(live);
    }
    for (uint32_t i = 0; i < n_works; i++) {
        sample.items_wait |= works[i].waiting.n_items > 0;
        for (uint32_t k = 0; k < works[i].n_running; k++)
            if (works[i].running[k].prompt_tokens == 0)
                sample.n_decoding += works[i].running[k].n_texts;
    }
    rows = (uint32_t)status.counters.n_batch_rows;
    sample.prompt_rows = rows > sample.n_decoding ? rows - sample.n_decoding : 0;
    if (sample.prompt_rows < rows / PROMPT_SHARE)
        sample.prompt_rows = rows / PROMPT_SHARE;
    sl_batch_estimate_note(&r->estimate, &sample);
    r->tokens_per_s = sl_batch_estimate_rate(&r->estimate);
}

static int by_turn(const void *a, const void *b)
{
    return goes_before(*(struct sl_batch *const *)a, *(struct sl_batch *const *)b) ? -1 : 1;
}

/* Lists the batches that go on, in the order of their turn. Returns how many. */
static uint32_t list_batches(struct sl_batch_runner *r, struct sl_batch **list)
{
    uint32_t n = 0;

    for (struct sl_link *at = r->batches.next; at != &r->batches; at = at->next) {
        struct sl_batch *batch = sl_list_item(at, struct sl_batch, link);

        batch->shown.left_s = -1;
        if (batch->is_read && !sl_batch_has_ended(batch->record.state) && !batch->is_stuck)
            list[n++] = batch;
    }
    qsort(list, n, sizeof(struct sl_batch *), by_turn);
    return n;
}

static void estimate(struct sl_batch_runner *r, struct sl_batch **list, uint32_t n)
{
    struct sl_estimate_item *running = calloc((size_t)r->n_live + 1, sizeof(*running));
    struct sl_estimate_batch *works = calloc((size_t)n + 1, sizeof(*works));
    double *left = calloc((size_t)n + 1, sizeof(*left));
    struct sl_estimate_item *at = running;

    if (running && works && left) {
        for (uint32_t i = 0; i < n; i++) {
            works[i] = work_of(r, list[i], at);
            at += works[i].n_running;
        }
        note_sample(r, works, n);
        sl_batch_estimate_left(&r->estimate, works, n, r->items_max, left);
        for (uint32_t i = 0; i < n; i++)
            list[i]->shown.left_s = left[i];
    }
    free(running);
    free(works);
    free(left);
}

/* Only while something is under way: a pause says nothing about costs. */
void sl_batch_estimate_all(struct sl_batch_runner *r)
{
    struct sl_batch **list;

    if (r->n_live == 0)
        sl_batch_estimate_pause(&r->estimate);
    if (r->n_live == 0 || sl_clock_ns() - r->estimated_ns < NS_PER_S)
        return;
    r->estimated_ns = sl_clock_ns();
    pthread_mutex_lock(&r->lock);
    list = calloc(r->n_batches, sizeof(struct sl_batch *));
    if (list)
        estimate(r, list, list_batches(r, list));
    pthread_mutex_unlock(&r->lock);
    free(list);
}
