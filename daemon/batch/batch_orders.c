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

        if (strcmp(batch->record.id, id) == 0)
            return batch;
    }
    return NULL;
}

int sl_batch_runner_cancel(struct sl_batch_runner *r, const char *id, struct sl_err *err)
{
    struct sl_batch *batch;
    uint32_t number = 0;
    int rc = -ENOENT;

    pthread_mutex_lock(&r->lock);
    batch = find(r, id);
    if (batch) {
        rc = sl_batch_has_ended(batch->record.state) ? -EALREADY : 0;
        number = batch->record.number;
    }
    pthread_mutex_unlock(&r->lock);
    if (rc == -ENOENT)
        return sl_err_set(err, rc, "there is no batch \"%.60s\"", id);
    if (rc == -EALREADY)
        return sl_err_set(err, rc, "batch %.60s has ended already", id);
    rc = sl_batch_put_text(r, "cancel", number, "", err);
    if (rc < 0)
        return rc;
    pthread_mutex_lock(&r->lock);
    batch->cancel_wanted = true;
    if (!sl_batch_has_ended(batch->record.state) && batch->record.cancelling_s == 0)
        batch->record.cancelling_s = (int64_t)time(NULL);
    pthread_mutex_unlock(&r->lock);
    sl_batch_wake(r);
    return 0;
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

int sl_batch_runner_set_about(struct sl_batch_runner *r, const char *id, const char *about,
                              struct sl_err *err)
{
    char *copied = strdup(about), *old = NULL;
    struct sl_batch *batch;
    int rc;

    if (!copied)
        return sl_err_set(err, -ENOMEM, "batch: out of memory");
    pthread_mutex_lock(&r->lock);
    batch = find(r, id);
    pthread_mutex_unlock(&r->lock);
    rc = batch ? sl_batch_put_text(r, "about", batch->record.number, about, err)
               : sl_err_set(err, -ENOENT, "there is no batch \"%.60s\"", id);
    if (rc == 0) {
        pthread_mutex_lock(&r->lock);
        old = batch->record.about;
        batch->record.about = copied;
        pthread_mutex_unlock(&r->lock);
        copied = NULL;
    }
    free(copied);
    free(old);
    return rc;
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
    *status = (struct sl_batch_status){.n_running = batch->shown.n_running,
                                       .n_done_tokens = batch->shown.n_done_tokens,
                                       .n_made_tokens = batch->shown.n_made_tokens,
                                       .validated = batch->shown.validated,
                                       .tokens_per_s = r->tokens_per_s,
                                       .is_stuck = batch->trouble[0] != '\0',
                                       .left_s = batch->shown.left_s};
    memcpy(status->pause, batch->trouble[0] ? batch->trouble : r->pause, sizeof(status->pause));
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
    struct sl_link *at;
    int rc = -ENOENT;

    pthread_mutex_lock(&r->lock);
    if (index < r->n_batches) {
        at = r->batches.next;
        while (index-- > 0)
            at = at->next;
        rc = fill_status(r, sl_list_item(at, struct sl_batch, link), ret_status);
    }
    pthread_mutex_unlock(&r->lock);
    return rc;
}

void sl_batch_status_fini(struct sl_batch_status *status)
{
    sl_batch_record_fini(&status->record);
}
