/* How far batches are, and how long they will take. */
#include <stdlib.h>

#include "core/base/clock.h"
#include "daemon/batch/batch_runner_internal.h"

#define NS_PER_S UINT64_C(1000000000)

static double share_read(const struct sl_batch *batch)
{
    const uint64_t file_bytes = batch->input ? sl_batch_input_file_bytes(batch->input) : 0;

    if (batch->is_read)
        return 1;
    return file_bytes > 0 ? (double)sl_batch_input_done_bytes(batch->input) / (double)file_bytes
                          : 0;
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
    }
    for (struct sl_link *at = r->live.next; at != &r->live; at = at->next) {
        struct sl_live_item *live = sl_list_item(at, struct sl_live_item, link);
        const struct sl_ticket *ticket = &live->answer.ticket;
        const uint32_t n_max = atomic_load(&ticket->n_prompt_tokens);
        const uint32_t n_done =
            atomic_load(&ticket->n_done_tokens) + atomic_load(&ticket->n_part_tokens);

        live->batch->shown.n_done_tokens += n_done < n_max ? n_done : n_max;
        live->batch->shown.n_made_tokens += live->answer.n_new_tokens;
    }
    pthread_mutex_unlock(&r->lock);
}

/* ---- how long it will take ---------------------------------------------------------------------
 */

static bool goes_before(const struct sl_batch *a, const struct sl_batch *b)
{
    return a->record.priority > b->record.priority ||
           (a->record.priority == b->record.priority && a->record.number <= b->record.number);
}

/* A batch waits for those that go first. */
static double left_of(struct sl_batch_runner *r, const struct sl_batch *batch, const uint32_t *made)
{
    struct sl_estimate_work work = {.made = made,
                                    .n_running = r->n_live,
                                    .n_slots = r->items_max,
                                    .answer_tokens_max = batch->answer_tokens_max};

    for (struct sl_link *at = r->batches.next; at != &r->batches; at = at->next) {
        const struct sl_batch *other = sl_list_item(at, struct sl_batch, link);

        if (!other->is_read || sl_batch_has_ended(other->record.state) || other->is_stuck ||
            !goes_before(other, batch))
            continue;
        work.prompt_tokens += other->record.n_prompt_tokens > other->shown.n_done_tokens
                                  ? other->record.n_prompt_tokens - other->shown.n_done_tokens
                                  : 0;
        work.n_waiting += other->record.n_items - other->record.n_done - other->record.n_failed -
                          other->n_running;
    }
    return sl_batch_estimate_left(&r->estimate, &work);
}

static void note_sample(struct sl_batch_runner *r)
{
    struct sl_worker_status status;
    struct sl_estimate_sample sample = {.seconds = (double)sl_clock_ns() / 1e9};

    sl_worker_status(r->worker, &status);
    sample.steps = (double)status.counters.n_steps;
    sample.prompt_tokens = (double)r->n_gone_tokens;
    sample.made_tokens = (double)r->n_gone_made;
    for (struct sl_link *at = r->batches.next; at != &r->batches; at = at->next) {
        const struct sl_batch *batch = sl_list_item(at, struct sl_batch, link);

        sample.prompt_tokens += (double)batch->shown.n_done_tokens;
        sample.made_tokens += (double)batch->shown.n_made_tokens;
    }
    sl_batch_estimate_note(&r->estimate, &sample);
    r->tokens_per_s = sl_batch_estimate_rate(&r->estimate);
}

/* Only while something is under way: a pause says nothing about costs. */
void sl_batch_estimate_all(struct sl_batch_runner *r)
{
    uint32_t *made, n = 0;

    if (r->n_live == 0 || sl_clock_ns() - r->estimated_ns < NS_PER_S)
        return;
    r->estimated_ns = sl_clock_ns();
    made = calloc(r->n_live, sizeof(*made));
    for (struct sl_link *at = r->live.next; made && at != &r->live; at = at->next)
        made[n++] = sl_list_item(at, struct sl_live_item, link)->answer.n_new_tokens;
    pthread_mutex_lock(&r->lock);
    note_sample(r);
    for (struct sl_link *at = r->batches.next; made && at != &r->batches; at = at->next) {
        struct sl_batch *batch = sl_list_item(at, struct sl_batch, link);

        if (batch->is_read && !sl_batch_has_ended(batch->record.state))
            batch->shown.left_s = left_of(r, batch, made);
    }
    pthread_mutex_unlock(&r->lock);
    free(made);
}
