/* The runner's thread, and what others ask of it. */
#include "daemon/batch/batch_runner.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/clock.h"
#include "core/base/size.h"
#include "daemon/batch/batch_runner_internal.h"

#define NS_PER_S UINT64_C(1000000000)

#define COMMIT_NS_DEFAULT (10 * NS_PER_S)

/* Results are committed so soon after they have come; a commit waits for the drive. */
#define RESULT_NS NS_PER_S

#define RETRY_NS_DEFAULT (5 * NS_PER_S)

/* The thread looks around at least so often. */
#define PULSE_NS NS_PER_S

/* Items that are ended as errors in one go. */
#define ENDED_AT_ONCE 1000u

void sl_batch_wake(struct sl_batch_runner *r)
{
    pthread_mutex_lock(&r->wake_lock);
    r->has_work = true;
    pthread_cond_signal(&r->wake);
    pthread_mutex_unlock(&r->wake_lock);
}

static void note(const struct sl_batch_runner *r, const char *line)
{
    if (r->options.on_note)
        r->options.on_note(r->options.context, line);
}

static bool may_pass(int rc)
{
    return rc == -ENOSPC || rc == -EDQUOT || rc == -ENOMEM || rc == -EMFILE || rc == -ENFILE ||
           rc == -EIO;
}

void sl_batch_set_trouble(struct sl_batch_runner *r, struct sl_batch *batch,
                          const struct sl_err *err)
{
    const bool is_new = strcmp(batch->trouble, err->message) != 0;

    pthread_mutex_lock(&r->lock);
    memcpy(batch->trouble, err->message, sizeof(batch->trouble));
    batch->is_stuck = true;
    batch->stuck_until_ns = may_pass(err->code) ? sl_clock_ns() + r->options.retry_ns : UINT64_MAX;
    pthread_mutex_unlock(&r->lock);
    if (is_new)
        note(r, err->message);
}

static void try_again(struct sl_batch_runner *r, struct sl_batch *batch)
{
    pthread_mutex_lock(&r->lock);
    batch->is_stuck = false;
    pthread_mutex_unlock(&r->lock);
}

/* ---- batches -----------------------------------------------------------------------------------
 */

struct sl_batch *sl_batch_create(void)
{
    struct sl_batch *batch = calloc(1, sizeof(*batch));

    if (!batch)
        return NULL;
    sl_list_init(&batch->link);
    sl_list_init(&batch->saved);
    batch->shown.left_s = -1;
    return batch;
}

void sl_batch_empty(struct sl_batch *batch)
{
    struct sl_link *link;

    while ((link = sl_list_pop(&batch->saved)))
        sl_saved_item_free(sl_list_item(link, struct sl_saved_item, link));
    sl_batch_input_close(batch->input);
    sl_results_fini(&batch->output); /* the space of a file that is open is not given back */
    sl_results_fini(&batch->errors);
    free(batch->states);
    free(batch->tries);
    free(batch->lengths);
    batch->input = NULL;
    batch->states = batch->tries = NULL;
    batch->lengths = NULL;
}

void sl_batch_destroy(struct sl_batch *batch)
{
    sl_batch_empty(batch);
    sl_batch_record_fini(&batch->record);
    free(batch);
}

int64_t sl_batch_time(const struct sl_batch_record *record)
{
    const int64_t before[] = {record->created_s, record->in_progress_s, record->cancelling_s};
    int64_t now_s = (int64_t)time(NULL);

    for (size_t i = 0; i < SL_ARRAY_LEN(before); i++)
        now_s = now_s < before[i] ? before[i] : now_s;
    return now_s;
}

static void set_state(struct sl_batch_runner *r, struct sl_batch *batch, enum sl_batch_state state)
{
    pthread_mutex_lock(&r->lock);
    batch->record.state = state;
    if (state == SL_BATCH_IN_PROGRESS && batch->record.in_progress_s == 0)
        batch->record.in_progress_s = sl_batch_time(&batch->record);
    if (state == SL_BATCH_CANCELLING && batch->record.cancelling_s == 0)
        batch->record.cancelling_s = sl_batch_time(&batch->record);
    if (sl_batch_has_ended(state))
        batch->record.ended_s = sl_batch_time(&batch->record);
    pthread_mutex_unlock(&r->lock);
    batch->has_changed = true;
    batch->is_to_tell = true;
    r->has_ended_items = true; /* commit soon */
}

/* ---- validation --------------------------------------------------------------------------------
 */

static char *faults_json(const struct sl_batch_input *input)
{
    json_t *list = json_array();
    char *text;

    for (uint32_t i = 0; i < input->n_faults; i++) {
        const struct sl_batch_fault *fault = &input->faults[i];

        json_array_append_new(
            list, json_pack("{s:s, s:o, s:s, s:o}", "code", fault->code, "line",
                            fault->line_number ? json_integer(fault->line_number) : json_null(),
                            "message", fault->message, "param",
                            fault->param[0] ? json_string(fault->param) : json_null()));
    }
    text = json_dumps(list, JSON_COMPACT);
    json_decref(list);
    return text;
}

/* The first time the input says what there is to do; later it has to be the one that it was. */
static int take_input(struct sl_batch_runner *r, struct sl_batch *batch, struct sl_err *err)
{
    const struct sl_batch_input *input = batch->input;
    struct sl_batch_record *record = &batch->record;

    if (record->state != SL_BATCH_VALIDATING) {
        if (record->input_bytes != input->size_bytes || record->n_items != input->n_items ||
            strcmp(record->input_sha256, input->sha256) != 0)
            return sl_err_set(err, -ESTALE,
                              "%s: the input has changed since the batch began; %u of its %u items "
                              "have ended",
                              record->input_path, record->n_done + record->n_failed,
                              record->n_items);
        return 0;
    }
    if (!batch->states)
        batch->states = calloc((size_t)input->n_items + 1, 1);
    if (!batch->tries)
        batch->tries = calloc((size_t)input->n_items + 1, 1);
    if (!batch->states || !batch->tries)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", record->input_path);
    pthread_mutex_lock(&r->lock);
    record->n_items = input->n_items;
    record->input_bytes = input->size_bytes;
    record->n_prompt_tokens = input->n_prompt_tokens;
    memcpy(record->input_sha256, input->sha256, sizeof(record->input_sha256));
    pthread_mutex_unlock(&r->lock);
    return 0;
}

static void refuse_batch(struct sl_batch_runner *r, struct sl_batch *batch)
{
    char *faults = faults_json(batch->input);

    pthread_mutex_lock(&r->lock);
    batch->record.faults = faults;
    pthread_mutex_unlock(&r->lock);
    set_state(r, batch, SL_BATCH_FAILED);
}

static void begin_batch(struct sl_batch_runner *r, struct sl_batch *batch)
{
    const bool is_new = batch->record.state == SL_BATCH_VALIDATING;
    struct sl_err err;
    int rc;

    if (is_new && batch->input->n_faults > 0 &&
        (!batch->record.skip_bad || batch->input->n_items == 0)) {
        refuse_batch(r, batch);
        return;
    }
    rc = take_input(r, batch, &err);
    if (rc == 0)
        rc = sl_results_open(&batch->output, &err);
    if (rc == 0 && batch->record.error_bytes > 0)
        rc = sl_results_open(&batch->errors, &err);
    if (rc == 0 && (rc = sl_batch_begin_progress(r, batch)) < 0)
        sl_err_set(&err, rc, "%s: out of memory", batch->record.input_path);
    if (rc < 0) {
        sl_batch_set_trouble(r, batch, &err);
        return;
    }
    batch->is_read = true;
    pthread_mutex_lock(&r->lock);
    batch->trouble[0] = '\0';
    pthread_mutex_unlock(&r->lock);
    if (is_new)
        set_state(r, batch, SL_BATCH_IN_PROGRESS);
}

/* Reads on in the input of a batch; returns whether there is more to read. */
static bool validate(struct sl_batch_runner *r, struct sl_batch *batch)
{
    const struct sl_batch_input_options options = {r->options.model, batch->record.endpoint};
    struct sl_err err;
    int rc = 0;

    if (batch->is_read || batch->is_stuck)
        return false;
    if (!batch->input)
        rc = sl_batch_input_open(&batch->input, batch->record.input_path, &options, &err);
    if (rc == 0 && batch->input->sha256[0] == '\0')
        rc = sl_batch_input_step(batch->input, &err);
    if (rc < 0) { /* the next attempt begins at the first line */
        sl_batch_input_close(batch->input);
        batch->input = NULL;
        sl_batch_set_trouble(r, batch, &err);
    } else if (rc == 0) {
        begin_batch(r, batch);
    }
    return rc > 0;
}

/* ---- the end of batches ------------------------------------------------------------------------
 */

/* Ends what waits of a batch that is not to go on, and then the batch. Returns whether there is
 * more to end. */
static bool wind_up(struct sl_batch_runner *r, struct sl_batch *batch, bool is_cancelled)
{
    if (batch->record.state != SL_BATCH_CANCELLING && is_cancelled)
        set_state(r, batch, SL_BATCH_CANCELLING);
    sl_batch_leave_worker(r, batch);
    if (batch->is_read &&
        !sl_batch_end_waiting(r, batch, is_cancelled ? "batch_cancelled" : "batch_expired",
                              is_cancelled ? "the batch was cancelled before this was done"
                                           : "the batch's time was over before this was done",
                              ENDED_AT_ONCE))
        return true;
    set_state(r, batch, is_cancelled ? SL_BATCH_CANCELLED : SL_BATCH_EXPIRED);
    return false;
}

/* Returns whether the thread is to come back at once. */
static bool look_after(struct sl_batch_runner *r, struct sl_batch *batch)
{
    const struct sl_batch_record *record = &batch->record;
    bool is_cancelled, has_expired;

    pthread_mutex_lock(&r->lock);
    is_cancelled = batch->cancel_wanted;
    pthread_mutex_unlock(&r->lock);
    if (sl_batch_has_ended(record->state)) {
        if (batch->is_to_tell && !batch->has_changed && sl_clock_ns() >= batch->tell_ns)
            sl_batch_tell(r, batch);
        return false;
    }
    if (batch->is_stuck && sl_clock_ns() >= batch->stuck_until_ns)
        try_again(r, batch);
    if (validate(r, batch))
        return true;
    has_expired = record->expires_s > 0 && (int64_t)time(NULL) >= record->expires_s;
    if (is_cancelled || has_expired)
        return !sl_batch_has_ended(record->state) && wind_up(r, batch, is_cancelled);
    if (batch->is_read && record->state == SL_BATCH_IN_PROGRESS &&
        record->n_done + record->n_failed == record->n_items)
        set_state(r, batch, SL_BATCH_COMPLETED);
    return false;
}

static bool look_after_all(struct sl_batch_runner *r)
{
    bool is_busy = false;
    struct sl_link *at;

    pthread_mutex_lock(&r->lock);
    at = r->batches.next;
    pthread_mutex_unlock(&r->lock);
    while (at != &r->batches) {
        is_busy |= look_after(r, sl_list_item(at, struct sl_batch, link));
        pthread_mutex_lock(&r->lock); /* others append */
        at = at->next;
        pthread_mutex_unlock(&r->lock);
    }
    return is_busy;
}

/* ---- commits -----------------------------------------------------------------------------------
 */

static void set_pause(struct sl_batch_runner *r, const char *message)
{
    bool is_new = strcmp(r->pause, message) != 0;

    pthread_mutex_lock(&r->lock);
    snprintf(r->pause, sizeof(r->pause), "%s", message);
    pthread_mutex_unlock(&r->lock);
    if (is_new)
        note(r, message[0] ? message : "what could not be written is written; the batches go on");
}

static int commit(struct sl_batch_runner *r, struct sl_err *err)
{
    char line[SL_ERR_MESSAGE_BYTES];
    int rc = sl_batch_commit(r, err);

    if (rc == 0) {
        set_pause(r, "");
        return 0;
    }
    snprintf(line, sizeof(line), "paused: %.900s; trying again every %g s", err->message,
             (double)r->options.retry_ns / NS_PER_S);
    set_pause(r, line);
    r->retry_ns = sl_clock_ns() + r->options.retry_ns;
    return rc;
}

/* Returns when the next commit is due; UINT64_MAX where there is nothing to commit. */
static uint64_t commit_due_ns(const struct sl_batch_runner *r)
{
    const uint64_t due_ns = r->committed_ns + r->options.commit_ns;

    if (r->pause[0])
        return r->retry_ns;
    if (r->has_ended_items && r->committed_ns + RESULT_NS < due_ns)
        return r->committed_ns + RESULT_NS;
    return r->has_ended_items || r->n_live > 0 ? due_ns : UINT64_MAX;
}

/* ---- the thread ---------------------------------------------------------------------------------
 */

static struct timespec time_of(uint64_t ns)
{
    return (struct timespec){(time_t)(ns / NS_PER_S), (long)(ns % NS_PER_S)};
}

/* Returns whether the thread is to end. */
static bool wait_for_work(struct sl_batch_runner *r, bool is_busy)
{
    const uint64_t retry_ns = r->options.retry_ns, due_ns = commit_due_ns(r);
    const uint64_t pulse_ns = sl_clock_ns() + (retry_ns < PULSE_NS ? retry_ns : PULSE_NS);
    const struct timespec until = time_of(due_ns < pulse_ns ? due_ns : pulse_ns);
    bool is_over;
    int rc = 0;

    pthread_mutex_lock(&r->wake_lock);
    while (rc == 0 && !is_busy && !r->has_work && !r->park_wanted)
        rc = pthread_cond_timedwait(&r->wake, &r->wake_lock, &until);
    r->has_work = false;
    is_over = r->park_wanted;
    pthread_mutex_unlock(&r->wake_lock);
    return is_over;
}

/* Others only say which: this thread alone holds batches without the lock. */
static void drop_forgotten(struct sl_batch_runner *r)
{
    pthread_mutex_lock(&r->lock);
    for (struct sl_link *at = r->batches.next, *next; at != &r->batches; at = next) {
        struct sl_batch *batch = sl_list_item(at, struct sl_batch, link);

        next = at->next;
        if (!batch->is_forgotten)
            continue;
        sl_list_remove(at);
        sl_batch_destroy(batch);
    }
    pthread_mutex_unlock(&r->lock);
}

static void *runner_main(void *context)
{
    struct sl_batch_runner *r = context;
    struct sl_err err;
    bool is_busy = true;

    while (!wait_for_work(r, is_busy)) {
        drop_forgotten(r);
        sl_batch_take_news(r);
        is_busy = look_after_all(r);
        if (!r->pause[0])
            sl_batch_begin_items(r);
        sl_batch_count_progress(r);
        sl_batch_estimate_all(r);
        if (sl_clock_ns() >= commit_due_ns(r))
            commit(r, &err);
    }
    sl_batch_take_news(r);
    if (sl_batch_commit(r, &r->park_err) == 0)
        r->park_err.code = 0;
    sl_batch_leave_worker(r, NULL);
    return NULL;
}

/* ---- the runner --------------------------------------------------------------------------------
 */

int sl_batch_runner_create(struct sl_batch_runner **ret_runner,
                           const struct sl_batch_runner_options *options, struct sl_err *err)
{
    struct sl_batch_runner *r = calloc(1, sizeof(*r));
    pthread_condattr_t monotonic;
    int rc;

    if (!r)
        return sl_err_set(err, -ENOMEM, "batches: out of memory");
    r->options = *options;
    if (r->options.commit_ns == 0)
        r->options.commit_ns = COMMIT_NS_DEFAULT;
    if (r->options.retry_ns == 0)
        r->options.retry_ns = RETRY_NS_DEFAULT;
    r->items_max = options->items_max;
    r->next_number = 1;
    sl_list_init(&r->batches);
    sl_list_init(&r->live);
    pthread_mutex_init(&r->order_lock, NULL);
    pthread_mutex_init(&r->lock, NULL);
    pthread_mutex_init(&r->wake_lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&r->wake, &monotonic);
    pthread_cond_init(&r->released, NULL);
    pthread_condattr_destroy(&monotonic);
    rc = sl_batch_load(r, err);
    if (rc < 0) {
        sl_batch_runner_destroy(r);
        return rc;
    }
    *ret_runner = r;
    return 0;
}

int sl_batch_runner_start(struct sl_batch_runner *r, struct sl_worker *worker, struct sl_err *err)
{
    int rc;

    r->worker = worker;
    r->committed_ns = sl_clock_ns();
    rc = -pthread_create(&r->thread, NULL, runner_main, r);
    if (rc < 0)
        return sl_err_set(err, rc, "the batches' thread: %s", sl_strerror(rc));
    pthread_setname_np(r->thread, "sluice-batch");
    r->is_started = true;
    return 0;
}

int sl_batch_runner_park(struct sl_batch_runner *r, struct sl_err *err)
{
    if (!r->is_started)
        return 0;
    pthread_mutex_lock(&r->wake_lock);
    r->park_wanted = true;
    pthread_cond_signal(&r->wake);
    pthread_mutex_unlock(&r->wake_lock);
    pthread_join(r->thread, NULL);
    r->is_started = false;
    return r->park_err.code < 0 ? sl_err_set(err, r->park_err.code, "%s", r->park_err.message) : 0;
}

void sl_batch_runner_destroy(struct sl_batch_runner *r)
{
    struct sl_link *link;

    if (!r)
        return;
    sl_batch_runner_park(r, NULL);
    pthread_mutex_lock(&r->wake_lock);
    while (r->n_unreleased > 0)
        pthread_cond_wait(&r->released, &r->wake_lock);
    pthread_mutex_unlock(&r->wake_lock);
    while ((link = sl_list_pop(&r->batches)))
        sl_batch_destroy(sl_list_item(link, struct sl_batch, link));
    sl_journal_changes_fini(&r->lasting);
    pthread_cond_destroy(&r->wake);
    pthread_cond_destroy(&r->released);
    pthread_mutex_destroy(&r->wake_lock);
    pthread_mutex_destroy(&r->lock);
    pthread_mutex_destroy(&r->order_lock);
    free(r);
}
