/* The calls by which other threads order batches, and ask about them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/random.h"
#include "daemon/batch/batch_runner_internal.h"

static char *copy(const char *text, bool *is_whole)
{
    char *copied = text ? strdup(text) : NULL;

    *is_whole &= !text || copied;
    return copied;
}

static struct sl_batch *make_batch(const struct sl_batch_order *order)
{
    struct sl_batch *batch = sl_batch_create();
    struct sl_batch_record *record;
    bool is_whole = true;

    if (!batch)
        return NULL;
    record = &batch->record;
    memcpy(record->id, "batch_", 6);
    sl_random_name(record->id + 6, 25);
    record->created_s = (int64_t)time(NULL);
    record->input_path = copy(order->input_path, &is_whole);
    record->output_path = copy(order->output_path, &is_whole);
    record->error_path = copy(order->error_path, &is_whole);
    record->endpoint = copy(order->endpoint, &is_whole);
    record->about = copy(order->about, &is_whole);
    record->priority = order->priority;
    record->skip_bad = order->skip_bad;
    record->expires_s = order->expires_s;
    if (is_whole)
        return batch;
    sl_batch_destroy(batch);
    return NULL;
}

int sl_batch_runner_add(struct sl_batch_runner *r, const struct sl_batch_order *order, char *ret_id,
                        struct sl_err *err)
{
    struct sl_batch *batch = make_batch(order);
    int rc;

    if (!batch) {
        sl_batch_input_close(order->input);
        return sl_err_set(err, -ENOMEM, "batch: out of memory");
    }
    batch->input = order->input;
    sl_results_init(&batch->output, r->options.writer, batch->record.output_path, 0);
    sl_results_init(&batch->errors, r->options.writer, batch->record.error_path, 0);
    pthread_mutex_lock(&r->lock);
    batch->record.number = r->next_number++;
    pthread_mutex_unlock(&r->lock);
    rc = sl_batch_enter(r, &batch->record, err);
    if (rc < 0) {
        sl_batch_destroy(batch);
        return rc;
    }
    memcpy(ret_id, batch->record.id, SL_BATCH_NAME_BYTES);
    pthread_mutex_lock(&r->lock);
    sl_list_append(&r->batches, &batch->link);
    r->n_batches++;
    pthread_mutex_unlock(&r->lock);
    sl_batch_wake(r);
    return 0;
}

/* Under the lock. */
static struct sl_batch *find(struct sl_batch_runner *r, const char *id)
{
    for (struct sl_link *at = r->batches.next; at != &r->batches; at = at->next) {
        struct sl_batch *batch = sl_list_item(at, struct sl_batch, link);

        if (!batch->is_forgotten && strcmp(batch->record.id, id) == 0)
            return batch;
    }
    return NULL;
}

/* The batch of that id, if it has ended or not, as is wanted. What it returns stays as long as the
 * caller has the lock of orders. */
static int find_for_order(struct sl_batch_runner *r, const char *id, bool has_ended,
                          struct sl_batch **ret_batch, struct sl_err *err)
{
    bool is_so = false;

    pthread_mutex_lock(&r->lock);
    *ret_batch = find(r, id);
    if (*ret_batch)
        is_so = has_ended == sl_batch_has_ended(has_ended ? (*ret_batch)->kept_state
                                                          : (*ret_batch)->record.state);
    pthread_mutex_unlock(&r->lock);
    if (!*ret_batch)
        return sl_err_set(err, -ENOENT, "there is no batch \"%.60s\"", id);
    if (is_so)
        return 0;
    return has_ended ? sl_err_set(err, -EBUSY, "batch %.60s has not ended", id)
                     : sl_err_set(err, -EALREADY, "batch %.60s has ended already", id);
}

int sl_batch_runner_cancel(struct sl_batch_runner *r, const char *id, struct sl_err *err)
{
    struct sl_batch *batch;
    int rc;

    pthread_mutex_lock(&r->order_lock);
    rc = find_for_order(r, id, false, &batch, err);
    if (rc == 0)
        rc = sl_batch_put_text(r, "cancel", batch->record.number, "", err);
    if (rc == 0) {
        pthread_mutex_lock(&r->lock);
        batch->cancel_wanted = true;
        if (!sl_batch_has_ended(batch->record.state) && batch->record.cancelling_s == 0)
            batch->record.cancelling_s = sl_batch_time(&batch->record);
        pthread_mutex_unlock(&r->lock);
        sl_batch_wake(r);
    }
    pthread_mutex_unlock(&r->order_lock);
    return rc;
}

int sl_batch_runner_forget(struct sl_batch_runner *r, const char *id, struct sl_err *err)
{
    struct sl_batch *batch;
    int rc;

    pthread_mutex_lock(&r->order_lock);
    rc = find_for_order(r, id, true, &batch, err);
    if (rc == 0)
        rc = sl_batch_remove(r, batch->record.number, err);
    if (rc == 0) {
        pthread_mutex_lock(&r->lock);
        batch->is_forgotten = true;
        r->n_batches--;
        pthread_mutex_unlock(&r->lock);
        sl_batch_wake(r);
    }
    pthread_mutex_unlock(&r->order_lock);
    return rc;
}

int sl_batch_runner_give_input(struct sl_batch_runner *r, const char *id,
                               struct sl_batch_input *input)
{
    struct sl_batch *batch;

    pthread_mutex_lock(&r->lock);
    batch = find(r, id);
    if (batch && !batch->input)
        batch->input = input;
    else
        sl_batch_input_close(input);
    pthread_mutex_unlock(&r->lock);
    return batch ? 0 : -ENOENT;
}

uint32_t sl_batch_runner_count(struct sl_batch_runner *r)
{
    uint32_t n;

    pthread_mutex_lock(&r->lock);
    n = r->n_batches;
    pthread_mutex_unlock(&r->lock);
    return n;
}

/* Under the lock. */
static int fill_status(const struct sl_batch_runner *r, const struct sl_batch *batch,
                       struct sl_batch_status *status)
{
    *status =
        (struct sl_batch_status){.n_running = batch->shown.n_running,
                                 .n_done_tokens = batch->shown.n_done_tokens,
                                 .n_made_tokens = batch->shown.n_made_tokens,
                                 .validated = batch->shown.validated,
                                 .tokens_per_s = r->tokens_per_s,
                                 .is_stuck = batch->is_stuck && batch->stuck_until_ns == UINT64_MAX,
                                 .left_s = batch->shown.left_s};
    memcpy(status->pause, batch->is_stuck ? batch->trouble : r->pause, sizeof(status->pause));
    if (sl_batch_record_copy(&status->record, &batch->record) < 0)
        return -ENOMEM;
    status->record.state = batch->kept_state; /* nothing is told that a kill could take back */
    if (!sl_batch_has_ended(batch->kept_state))
        status->record.ended_s = 0;
    return 0;
}

int sl_batch_runner_status(struct sl_batch_runner *r, const char *id,
                           struct sl_batch_status *ret_status)
{
    const struct sl_batch *batch;
    int rc = -ENOENT;

    pthread_mutex_lock(&r->lock);
    batch = find(r, id);
    if (batch)
        rc = fill_status(r, batch, ret_status);
    pthread_mutex_unlock(&r->lock);
    return rc;
}

int sl_batch_runner_status_at(struct sl_batch_runner *r, uint32_t index,
                              struct sl_batch_status *ret_status)
{
    int rc = -ENOENT;

    pthread_mutex_lock(&r->lock);
    for (struct sl_link *at = r->batches.next; rc == -ENOENT && at != &r->batches; at = at->next) {
        const struct sl_batch *batch = sl_list_item(at, struct sl_batch, link);

        if (!batch->is_forgotten && index-- == 0)
            rc = fill_status(r, batch, ret_status);
    }
    pthread_mutex_unlock(&r->lock);
    return rc;
}

void sl_batch_status_fini(struct sl_batch_status *status)
{
    sl_batch_record_fini(&status->record);
}
