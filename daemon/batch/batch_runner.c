/* The runner's thread, and what others ask of it. */
#include "daemon/batch/batch_runner.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/assert.h"
#include "core/base/clock.h"
#include "core/base/random.h"
#include "daemon/batch/batch_runner_internal.h"

#define NS_PER_S UINT64_C(1000000000)

#define COMMIT_NS_DEFAULT (10 * NS_PER_S)

/* Results are committed so soon after they have come; a commit waits for the drive. */
#define RESULT_NS NS_PER_S

/* A commit that failed is tried again after that long. */
#define RETRY_NS (5 * NS_PER_S)

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

void sl_batch_set_trouble(struct sl_batch_runner *r, struct sl_batch *batch,
                          const struct sl_err *err)
{
    pthread_mutex_lock(&r->lock);
    memcpy(batch->trouble, err->message, sizeof(batch->trouble));
    pthread_mutex_unlock(&r->lock);
    note(r, err->message);
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
    return batch;
}

void sl_batch_empty(struct sl_batch *batch)
{
    struct sl_link *link;

    while ((link = sl_list_pop(&batch->saved)))
        sl_saved_item_free(sl_list_item(link, struct sl_saved_item, link));
    sl_batch_input_close(batch->input);
    free(batch->states);
    free(batch->tries);
    batch->input = NULL;
    batch->states = batch->tries = NULL;
}

void sl_batch_destroy(struct sl_batch *batch)
{
    sl_batch_empty(batch);
    sl_results_fini(&batch->output);
    sl_results_fini(&batch->errors);
    sl_batch_record_fini(&batch->record);
    free(batch);
}

static void set_state(struct sl_batch_runner *r, struct sl_batch *batch, enum sl_batch_state state)
{
    const int64_t now_s = (int64_t)time(NULL);

    pthread_mutex_lock(&r->lock);
    batch->record.state = state;
    if (state == SL_BATCH_IN_PROGRESS && batch->record.in_progress_s == 0)
        batch->record.in_progress_s = now_s;
    if (sl_batch_has_ended(state))
        batch->record.ended_s = now_s;
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
    batch->states = calloc((size_t)input->n_items + 1, 1);
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

/* Sums up what earlier runs have done. */
static void count_ended(struct sl_batch *batch)
{
    batch->n_ended_tokens = 0;
    for (uint32_t i = 0; i < batch->record.n_items; i++)
        if (batch->states[i] >= SL_ITEM_DONE)
            batch->n_ended_tokens += batch->input->items[i].n_prompt_tokens;
    batch->n_ended_made = batch->record.n_out_tokens;
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
    if (rc < 0) {
        sl_batch_set_trouble(r, batch, &err);
        return;
    }
    batch->is_read = true;
    count_ended(batch);
    if (is_new)
        set_state(r, batch, SL_BATCH_IN_PROGRESS);
}

/* Reads on in the input of a batch; returns whether there is more to read. */
static bool validate(struct sl_batch_runner *r, struct sl_batch *batch)
{
    const struct sl_batch_input_options options = {r->options.model, batch->record.endpoint};
    struct sl_err err;
    int rc = 0;

    if (batch->is_read || batch->trouble[0] || sl_batch_has_ended(batch->record.state))
        return false;
    if (!batch->input)
        rc = sl_batch_input_open(&batch->input, batch->record.input_path, &options, &err);
    if (rc == 0 && batch->input->sha256[0] == '\0')
        rc = sl_batch_input_step(batch->input, &err);
    if (rc < 0)
        sl_batch_set_trouble(r, batch, &err);
    else if (rc == 0)
        begin_batch(r, batch);
    return rc > 0;
}

/* ---- the end of batches ------------------------------------------------------------------------
 */

/* Ends what waits of a batch that is not to go on, and then the batch. Returns whether there is
 * more to end. */
static bool wind_up(struct sl_batch_runner *r, struct sl_batch *batch, bool is_cancelled)
{
    if (batch->record.state != SL_BATCH_CANCELLING && is_cancelled) {
        pthread_mutex_lock(&r->lock);
        if (batch->record.cancelling_s == 0)
            batch->record.cancelling_s = (int64_t)time(NULL);
        pthread_mutex_unlock(&r->lock);
        set_state(r, batch, SL_BATCH_CANCELLING);
    }
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
    if (sl_batch_has_ended(record->state))
        return false;
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

/* ---- the thread --------------------------------------------------------------------------------
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
    snprintf(line, sizeof(line), "paused: %.900s; trying again every %u s", err->message,
             (unsigned)(RETRY_NS / NS_PER_S));
    set_pause(r, line);
    r->retry_ns = sl_clock_ns() + RETRY_NS;
    return rc;
}

static void commit_if_due(struct sl_batch_runner *r)
{
    const uint64_t now_ns = sl_clock_ns();
    uint64_t due_ns = r->committed_ns + r->options.commit_ns;
    struct sl_err err;

    if (r->has_ended_items && r->committed_ns + RESULT_NS < due_ns)
        due_ns = r->committed_ns + RESULT_NS;
    if (r->pause[0])
        due_ns = r->retry_ns;
    if (now_ns >= due_ns && (r->has_ended_items || r->n_live > 0 || r->pause[0]))
        commit(r, &err);
}

static double share_read(const struct sl_batch *batch)
{
    const uint64_t file_bytes = batch->input ? sl_batch_input_file_bytes(batch->input) : 0;

    if (batch->is_read)
        return 1;
    return file_bytes > 0 ? (double)sl_batch_input_done_bytes(batch->input) / (double)file_bytes
                          : 0;
}

/* Counts what is done, those under way included. */
static void count_progress(struct sl_batch_runner *r)
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

static struct timespec time_of(uint64_t ns)
{
    return (struct timespec){(time_t)(ns / NS_PER_S), (long)(ns % NS_PER_S)};
}

/* Returns whether the thread is to end. */
static bool wait_for_work(struct sl_batch_runner *r, bool is_busy)
{
    const struct timespec until = time_of(sl_clock_ns() + PULSE_NS);
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

static void *runner_main(void *context)
{
    struct sl_batch_runner *r = context;
    bool is_busy = true;

    while (!wait_for_work(r, is_busy)) {
        sl_batch_take_news(r);
        is_busy = look_after_all(r);
        if (!r->pause[0])
            sl_batch_begin_items(r);
        count_progress(r);
        commit_if_due(r);
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
    r->items_max = options->items_max;
    r->next_number = 1;
    sl_list_init(&r->batches);
    sl_list_init(&r->live);
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
    free(r);
}

/* ---- what others ask ---------------------------------------------------------------------------
 */

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
                                       .left_s = -1};
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
