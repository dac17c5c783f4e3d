/* The batches are the runner's. Results become files when its thread tells that a batch has ended,
 * again and again until that goes well, or at the next start. */
#include "daemon/batch/batch_service.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/base/size.h"
#include "daemon/batch/batch_files.h"
#include "daemon/batch/batch_line.h"

#define STATUS_MAX 20u

struct sl_batch_service {
    struct sl_batch_service_options options;
    char *folder, *model_identity;
    struct sl_batch_files files;
    struct sl_journal *journal;
    struct sl_batch_runner *runner;
    /* Why results did not become files; the runner's thread's. */
    char failure[SL_ERR_MESSAGE_BYTES];

    pthread_mutex_t lock;               /* guards the next */
    struct sl_batch_counters forgotten; /* of batches that were; counters do not fall */
};

static const struct sl_metric metrics[] = {
    {"batches_live", SL_METRIC_COUNT, "Batches that have not ended",
     offsetof(struct sl_batch_counters, n_live), true},
    {"batches_ended", SL_METRIC_COUNT, "Batches that have ended",
     offsetof(struct sl_batch_counters, n_ended), true},
    {"batch_items_left", SL_METRIC_COUNT, "Items of batches that are to be answered",
     offsetof(struct sl_batch_counters, n_items_left), true},
    {"batch_items_done", SL_METRIC_COUNT, "Items of batches that were answered",
     offsetof(struct sl_batch_counters, n_items_done), false},
    {"batch_items_failed", SL_METRIC_COUNT, "Items of batches that failed",
     offsetof(struct sl_batch_counters, n_items_failed), false},
    {"batch_tokens", SL_METRIC_COUNT, "Tokens of prompts and answers of items that were answered",
     offsetof(struct sl_batch_counters, n_tokens), false},
};

const struct sl_metrics sl_batch_metrics = {metrics, SL_ARRAY_LEN(metrics)};

/* ---- what the runner tells ---------------------------------------------------------------------
 */

/* A failure is told once, however often it is tried again. */
static void tell_failure(struct sl_batch_service *service, const char *message)
{
    const bool is_new = strcmp(service->failure, message) != 0;

    snprintf(service->failure, sizeof(service->failure), "%s", message);
    if (is_new && message[0] && service->options.note)
        service->options.note(service->options.context, message);
}

static int on_change(void *context, const struct sl_batch_record *record)
{
    struct sl_batch_service *service = context;
    struct sl_err err = {.message = ""};
    const int rc = sl_batch_files_finalize(&service->files, record, &err);
    char line[256];

    tell_failure(service, rc < 0 ? err.message : "");
    if (rc < 0 || !service->options.note)
        return rc;
    snprintf(line, sizeof(line), "%s: %s, %u of %u items done, %u failed", record->id,
             sl_batch_state_name(record->state), record->n_done, record->n_items, record->n_failed);
    service->options.note(service->options.context, line);
    return 0;
}

static void on_note(void *context, const char *line)
{
    struct sl_batch_service *service = context;

    if (service->options.note)
        service->options.note(service->options.context, line);
}

/* ---- what clients see --------------------------------------------------------------------------
 */

static bool is_there(const struct sl_batch_service *service, const char *id)
{
    struct sl_stored_file file;

    return sl_file_store_find(service->options.files, id, &file);
}

/* Clients see what they wanted, and what has become true for good. */
static const char *status_of(const struct sl_batch_record *record)
{
    if (!sl_batch_has_ended(record->state))
        return record->cancelling_s > 0 ? sl_batch_state_name(SL_BATCH_CANCELLING)
                                        : sl_batch_state_name(record->state);
    if (!sl_batch_is_finalizing(record))
        return sl_batch_state_name(record->state);
    return record->state == SL_BATCH_CANCELLED ? "cancelling"
           : record->state == SL_BATCH_FAILED  ? "validating"
                                               : "finalizing";
}

static json_t *object_of(const struct sl_batch_service *service,
                         const struct sl_batch_record *record)
{
    struct sl_batch_view view = {
        .id = record->id,
        .endpoint = record->endpoint ? record->endpoint : "",
        .input_file_id = "",
        .window = "none",
        .model = service->options.model->names[0],
        .status = status_of(record),
        .created_s = record->created_s,
        .in_progress_s = record->in_progress_s,
        .expires_s = record->expires_s,
        .cancelling_s = record->cancelling_s,
        .n_items = record->n_items,
        .n_completed = record->n_done,
        .n_failed = record->n_failed,
        .n_prompt_tokens = record->n_in_tokens,
        .n_cached_tokens = record->n_cached_tokens,
        .n_new_tokens = record->n_out_tokens,
        .n_reasoning_tokens = record->n_reasoning_tokens,
        .errors = record->faults ? json_loads(record->faults, 0, NULL) : NULL,
    };
    struct sl_batch_about about = {.object = NULL};
    const bool has_about = sl_batch_about_read(&about, record);
    json_t *object;

    if (has_about) {
        view.input_file_id = about.input_file_id;
        view.window = about.window;
        view.model = about.model;
        view.metadata = about.metadata;
        view.output_file_id = is_there(service, about.output_id) ? about.output_id : NULL;
        view.error_file_id = is_there(service, about.error_id) ? about.error_id : NULL;
    }
    if (record->state == SL_BATCH_COMPLETED)
        view.finalizing_s = record->ended_s;
    if (!sl_batch_is_finalizing(record))
        *(record->state == SL_BATCH_FAILED      ? &view.failed_s
          : record->state == SL_BATCH_EXPIRED   ? &view.expired_s
          : record->state == SL_BATCH_CANCELLED ? &view.cancelled_s
                                                : &view.completed_s) = record->ended_s;
    object = sl_batch_object(&view);
    json_decref(view.errors);
    if (has_about)
        sl_batch_about_fini(&about);
    return object;
}

static json_t *refuse_error(struct sl_refusal *refusal, int rc, const struct sl_err *err)
{
    if (rc == -ENOENT)
        sl_refuse(refusal, 404, "id", "there is no batch of this id");
    else if (rc == -ENOSPC || rc == -EDQUOT)
        sl_refuse(refusal, 507, NULL, "%s", err->message);
    else
        sl_refuse(refusal, 500, NULL, "%s", rc == -ENOMEM ? "out of memory" : err->message);
    return NULL;
}

json_t *sl_batch_service_get(struct sl_batch_service *service, const char *id,
                             struct sl_refusal *refusal)
{
    struct sl_batch_status status;
    struct sl_err err = {0};
    json_t *object;
    const int rc = sl_batch_runner_status(service->runner, id, &status);

    if (rc < 0)
        return refuse_error(refusal, rc, &err);
    object = object_of(service, &status.record);
    sl_batch_status_fini(&status);
    return object ? object : refuse_error(refusal, -ENOMEM, &err);
}

/* Batches stay in the order in which they were made. Returns the place behind the one of that id,
 * or -1. */
static int64_t place_of(struct sl_batch_service *service, const char *id)
{
    struct sl_batch_status status;

    for (uint32_t i = sl_batch_runner_count(service->runner); i > 0; i--) {
        bool is_it;

        if (sl_batch_runner_status_at(service->runner, i - 1, &status) < 0)
            continue;
        is_it = strcmp(status.record.id, id) == 0;
        sl_batch_status_fini(&status);
        if (is_it)
            return i - 1;
    }
    return -1;
}

int sl_batch_service_list(struct sl_batch_service *service, const char *after, uint32_t limit,
                          json_t *data, bool *ret_more, struct sl_refusal *refusal)
{
    struct sl_batch_status status;
    uint32_t n = 0;
    int64_t at = after ? place_of(service, after) : sl_batch_runner_count(service->runner);

    if (at < 0)
        return sl_refuse(refusal, 400, "after", "there is no batch of this id");
    for (; at > 0 && n < limit; at--, n++) {
        if (sl_batch_runner_status_at(service->runner, (uint32_t)at - 1, &status) < 0)
            return sl_refuse(refusal, 500, NULL, "out of memory");
        json_array_append_new(data, object_of(service, &status.record));
        sl_batch_status_fini(&status);
    }
    *ret_more = at > 0;
    return 0;
}

static json_t *entry_of(const struct sl_batch_status *status)
{
    const struct sl_batch_record *record = &status->record;
    const bool is_live = !sl_batch_has_ended(record->state);

    return json_pack("{s:s, s:s, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:o, s:s?}", "id",
                     record->id, "status", status_of(record), "priority", (int)record->priority,
                     "total", (json_int_t)record->n_items, "completed", (json_int_t)record->n_done,
                     "failed", (json_int_t)record->n_failed, "prompt_tokens",
                     (json_int_t)record->n_prompt_tokens, "prompt_tokens_done",
                     (json_int_t)(is_live ? status->n_done_tokens : record->n_in_tokens),
                     "prompt_tokens_computed", (json_int_t)record->n_computed_tokens, "new_tokens",
                     (json_int_t)(is_live ? status->n_made_tokens : record->n_out_tokens),
                     "tokens_per_s", status->n_running > 0 ? status->tokens_per_s : 0.0, "left_s",
                     is_live && status->left_s >= 0 ? json_real(status->left_s) : json_null(),
                     "paused", is_live && status->pause[0] ? status->pause : NULL);
}

json_t *sl_batch_service_status(struct sl_batch_service *service)
{
    json_t *live = json_array(), *ended = json_array();
    struct sl_batch_status status;

    for (uint32_t i = sl_batch_runner_count(service->runner); i > 0; i--) {
        json_t *list;

        if (sl_batch_runner_status_at(service->runner, i - 1, &status) < 0)
            continue;
        list = sl_batch_has_ended(status.record.state) ? ended : live;
        if (json_array_size(list) < STATUS_MAX)
            json_array_append_new(list, entry_of(&status));
        sl_batch_status_fini(&status);
    }
    while (json_array_size(live) + json_array_size(ended) > STATUS_MAX && json_array_size(ended))
        json_array_remove(ended, json_array_size(ended) - 1);
    json_array_extend(live, ended);
    json_decref(ended);
    return live;
}

static void count_items(struct sl_batch_counters *counters, const struct sl_batch_record *record)
{
    counters->n_items_done += record->n_done;
    counters->n_items_failed += record->n_failed;
    counters->n_tokens += record->n_in_tokens + record->n_out_tokens;
}

struct sl_batch_counters sl_batch_service_counters(struct sl_batch_service *service)
{
    struct sl_batch_counters counters;
    struct sl_batch_status status;

    pthread_mutex_lock(&service->lock);
    counters = service->forgotten;
    pthread_mutex_unlock(&service->lock);
    for (uint32_t i = sl_batch_runner_count(service->runner); i > 0; i--) {
        const struct sl_batch_record *record = &status.record;

        if (sl_batch_runner_status_at(service->runner, i - 1, &status) < 0)
            continue;
        count_items(&counters, record);
        if (sl_batch_has_ended(record->state)) {
            counters.n_ended++;
        } else {
            counters.n_live++;
            counters.n_items_left += record->n_items - record->n_done - record->n_failed;
        }
        sl_batch_status_fini(&status);
    }
    return counters;
}

/* ---- what clients do ---------------------------------------------------------------------------
 */

static int check_create(struct sl_batch_service *service, const struct sl_batch_create *create,
                        struct sl_refusal *refusal)
{
    struct sl_stored_file file;

    if (!sl_batch_speaks(create->endpoint))
        return sl_refuse(refusal, 400, "endpoint", "there are no batches for \"%.100s\"",
                         create->endpoint);
    if (!sl_file_store_find(service->options.files, create->input_file_id, &file))
        return sl_refuse(refusal, 400, "input_file_id", "there is no file of this id");
    if (strcmp(file.purpose, "batch") != 0)
        return sl_refuse(refusal, 400, "input_file_id",
                         "the file's purpose is \"%s\", not "
                         "\"batch\"",
                         file.purpose);
    if (sl_batch_service_counters(service).n_live < SL_BATCHES_LIVE_MAX)
        return 0;
    sl_refuse(refusal, 429, NULL, "%u batches are waiting already", SL_BATCHES_LIVE_MAX);
    refusal->retry_after_s = 60;
    return -1;
}

static int add(struct sl_batch_service *service, const struct sl_batch_create *create,
               const char *work, char *id, struct sl_err *err)
{
    char *about = sl_batch_about_make(create, service->options.model->names[0], work);
    struct sl_batch_paths paths;
    const struct sl_batch_order order = {
        .input_path = paths.input,
        .output_path = paths.output,
        .error_path = paths.error,
        .endpoint = create->endpoint,
        .about = about,
        .priority = create->priority,
        .skip_bad = create->skip_bad,
        .expires_s = create->window_s ? (int64_t)time(NULL) + (int64_t)create->window_s : 0,
    };
    int rc;

    sl_batch_files_paths(&service->files, work, &paths);
    rc = about ? sl_batch_files_begin(&service->files, work, create->input_file_id, err)
               : sl_err_set(err, -ENOMEM, "batches: out of memory");
    if (rc == 0)
        rc = sl_batch_runner_add(service->runner, &order, id, err);
    if (rc < 0)
        sl_batch_files_clear(&service->files, work, NULL);
    free(about);
    return rc;
}

json_t *sl_batch_service_create(struct sl_batch_service *service,
                                const struct sl_batch_create *create, struct sl_refusal *refusal)
{
    char id[SL_BATCH_NAME_BYTES], work[SL_FILE_ID_BYTES];
    struct sl_err err;
    int rc;

    if (check_create(service, create, refusal) < 0)
        return NULL;
    sl_file_id_make(work);
    rc = add(service, create, work, id, &err);
    return rc < 0 ? refuse_error(refusal, rc, &err) : sl_batch_service_get(service, id, refusal);
}

json_t *sl_batch_service_cancel(struct sl_batch_service *service, const char *id,
                                struct sl_refusal *refusal)
{
    struct sl_err err;
    const int rc = sl_batch_runner_cancel(service->runner, id, &err);

    if (rc == -EALREADY) {
        sl_refuse(refusal, 409, NULL, "the batch has ended, and cannot be cancelled");
        return NULL;
    }
    return rc < 0 ? refuse_error(refusal, rc, &err) : sl_batch_service_get(service, id, refusal);
}

/* Whether a batch other than the one of that id was made of the file. */
static bool is_input_of_another(struct sl_batch_service *service, const char *file_id,
                                const char *id)
{
    struct sl_batch_status status;
    bool is_one = false;

    for (uint32_t i = sl_batch_runner_count(service->runner); !is_one && i > 0; i--) {
        struct sl_batch_about about;

        if (sl_batch_runner_status_at(service->runner, i - 1, &status) < 0)
            continue;
        if (strcmp(status.record.id, id) != 0 && sl_batch_about_read(&about, &status.record)) {
            is_one = strcmp(about.input_file_id, file_id) == 0;
            sl_batch_about_fini(&about);
        }
        sl_batch_status_fini(&status);
    }
    return is_one;
}

static int remove_files(struct sl_batch_service *service, const struct sl_batch_record *record,
                        struct sl_err *err)
{
    struct sl_batch_about about;
    bool with_input;
    int rc;

    if (!sl_batch_about_read(&about, record))
        return 0;
    with_input = !is_input_of_another(service, about.input_file_id, record->id);
    rc = sl_batch_files_remove(&service->files, &about, with_input, err);
    sl_batch_about_fini(&about);
    return rc;
}

/* Files go first: a batch without them can be forgotten later, files without a batch would stay. */
json_t *sl_batch_service_forget(struct sl_batch_service *service, const char *id,
                                struct sl_refusal *refusal)
{
    struct sl_batch_status status;
    struct sl_err err = {0};
    int rc = sl_batch_runner_status(service->runner, id, &status);

    if (rc < 0)
        return refuse_error(refusal, rc, &err);
    if (!sl_batch_has_ended(status.record.state) || sl_batch_is_finalizing(&status.record))
        rc = -EBUSY;
    if (rc == 0)
        rc = remove_files(service, &status.record, &err);
    if (rc == 0)
        rc = sl_batch_runner_forget(service->runner, id, &err);
    if (rc == 0) {
        pthread_mutex_lock(&service->lock);
        count_items(&service->forgotten, &status.record);
        pthread_mutex_unlock(&service->lock);
    }
    sl_batch_status_fini(&status);
    if (rc == -EBUSY)
        sl_refuse(refusal, 409, NULL, "the batch has not ended; it can be cancelled");
    else if (rc < 0)
        refuse_error(refusal, rc, &err);
    return rc == 0 ? json_pack("{s:s, s:s, s:b}", "id", id, "object", "batch", "deleted", 1) : NULL;
}

/* ---- opening and closing -----------------------------------------------------------------------
 */

/* Whether a batch that is not finished with works there. */
static bool is_worked_in(struct sl_batch_service *service, const char *work)
{
    struct sl_batch_status status;
    bool is_it = false;

    for (uint32_t i = sl_batch_runner_count(service->runner); !is_it && i > 0; i--) {
        struct sl_batch_about about;

        if (sl_batch_runner_status_at(service->runner, i - 1, &status) < 0)
            return true; /* nothing is removed where it is not known */
        if ((!sl_batch_has_ended(status.record.state) || sl_batch_is_finalizing(&status.record)) &&
            sl_batch_about_read(&about, &status.record)) {
            is_it = strcmp(about.output_id, work) == 0;
            sl_batch_about_fini(&about);
        }
        sl_batch_status_fini(&status);
    }
    return is_it;
}

/* A crash may have come before a batch was entered, or before its results became files. The runner
 * is not told of what fails here: it is done at the next start. */
static void mend(struct sl_batch_service *service)
{
    struct sl_batch_status status;
    struct dirent *entry;
    struct sl_err err;
    DIR *folder;

    for (uint32_t i = sl_batch_runner_count(service->runner); i > 0; i--)
        if (sl_batch_runner_status_at(service->runner, i - 1, &status) == 0) {
            if (sl_batch_files_finalize(&service->files, &status.record, &err) < 0)
                tell_failure(service, err.message);
            sl_batch_status_fini(&status);
        }
    folder = opendir(service->folder);
    while (folder && (entry = readdir(folder)))
        if (sl_file_is_id(entry->d_name) && !is_worked_in(service, entry->d_name))
            sl_batch_files_clear(&service->files, entry->d_name, NULL);
    if (folder)
        closedir(folder);
}

static int open_parts(struct sl_batch_service *service, struct sl_err *err)
{
    const struct sl_batch_service_options *o = &service->options;
    const struct sl_batch_runner_options options = {.writer = o->writer,
                                                    .model = o->model,
                                                    .model_identity = service->model_identity,
                                                    .items_max = o->items_max,
                                                    .commit_ns = o->commit_ns,
                                                    .retry_ns = o->retry_ns,
                                                    .keeps_images = o->keeps_images,
                                                    .on_change = on_change,
                                                    .on_note = on_note,
                                                    .context = service};
    struct sl_batch_runner_options with_journal = options;
    int rc = sl_journal_open(&service->journal, service->folder, o->writer, err);

    if (rc < 0)
        return rc;
    with_journal.journal = service->journal;
    rc = sl_batch_runner_create(&service->runner, &with_journal, err);
    if (rc == 0)
        mend(service);
    return rc;
}

int sl_batch_service_open(struct sl_batch_service **ret_service,
                          const struct sl_batch_service_options *options, struct sl_err *err)
{
    struct sl_batch_service *service = calloc(1, sizeof(*service));
    int rc;

    if (!service)
        return sl_err_set(err, -ENOMEM, "batches: out of memory");
    service->options = *options;
    pthread_mutex_init(&service->lock, NULL);
    service->folder = strdup(options->folder);
    service->model_identity = strdup(options->model_identity);
    service->files = (struct sl_batch_files){service->folder, options->files, options->writer};
    if (!service->folder || !service->model_identity)
        rc = sl_err_set(err, -ENOMEM, "batches: out of memory");
    else if (strlen(service->folder) + 2 * SL_FILE_ID_BYTES > SL_BATCH_PATH_BYTES)
        rc = sl_err_set(err, -ENAMETOOLONG, "%s: the path is too long", service->folder);
    else
        rc = open_parts(service, err);
    if (rc < 0) {
        sl_batch_service_close(service);
        return rc;
    }
    *ret_service = service;
    return 0;
}

int sl_batch_service_start(struct sl_batch_service *service, struct sl_worker *worker,
                           struct sl_err *err)
{
    return sl_batch_runner_start(service->runner, worker, err);
}

int sl_batch_service_park(struct sl_batch_service *service, struct sl_err *err)
{
    return sl_batch_runner_park(service->runner, err);
}

void sl_batch_service_close(struct sl_batch_service *service)
{
    if (!service)
        return;
    sl_batch_runner_destroy(service->runner);
    sl_journal_close(service->journal);
    pthread_mutex_destroy(&service->lock);
    free(service->folder);
    free(service->model_identity);
    free(service);
}
