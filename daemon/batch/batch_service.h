/* The batches of a daemon, as its clients know them: the runner's, whose input is a file of the
 * file store and whose results become files there. What it has promised is on disk: after a crash
 * it goes on by itself.
 *
 * The journal is in the service's folder, with one for each batch that has not ended
 * (daemon/batch/batch_files.h). A batch whose results are complete, and no files yet, is
 * "finalizing". All calls may come from any thread. */
#ifndef SL_DAEMON_BATCH_BATCH_SERVICE_H
#define SL_DAEMON_BATCH_BATCH_SERVICE_H

#include "core/base/metrics.h"
#include "daemon/batch/batch_runner.h"
#include "daemon/files/file_store.h"
#include "daemon/protocol/batches.h"

/* Batches that have not ended, at most. */
#define SL_BATCHES_LIVE_MAX 1000u

struct sl_batch_service_options {
    const char *folder;          /* is made if need be, but not what it is in; copied */
    struct sl_file_store *files; /* on the same file system */
    struct sl_file_writer *writer;
    const struct sl_answer_model *model;
    const char *model_identity;   /* as the runner has it; copied */
    uint32_t items_max;           /* that are under way at a time */
    uint64_t commit_ns, retry_ns; /* as the runner has them */
    bool keeps_images;            /* the engine does */
    /* Is told what happens to batches, a line each; NULL is allowed. */
    void (*note)(void *context, const char *line);
    void *context;
};

struct sl_batch_service;

/* Reads what there is. Fails with -errno or as sl_batch_runner_create() does. */
int sl_batch_service_open(struct sl_batch_service **ret_service,
                          const struct sl_batch_service_options *options, struct sl_err *err);

/* Goes on with it; before, batches can only be looked at and created. */
int sl_batch_service_start(struct sl_batch_service *service, struct sl_worker *worker,
                           struct sl_err *err);

/* Stops: what is under way goes on at the next start. The worker is still there. */
int sl_batch_service_park(struct sl_batch_service *service, struct sl_err *err);

/* Parks, too, and frees the service when the worker has ended. NULL is allowed. */
void sl_batch_service_close(struct sl_batch_service *service);

/* Returns the object of a batch, the caller's, or NULL with the refusal. */
json_t *sl_batch_service_create(struct sl_batch_service *service,
                                const struct sl_batch_create *create, struct sl_refusal *refusal);
json_t *sl_batch_service_get(struct sl_batch_service *service, const char *id,
                             struct sl_refusal *refusal);
json_t *sl_batch_service_cancel(struct sl_batch_service *service, const char *id,
                                struct sl_refusal *refusal);

/* Forgets a batch that has ended, with its results and, unless another batch was made of it, its
 * input. Returns what says so. */
json_t *sl_batch_service_forget(struct sl_batch_service *service, const char *id,
                                struct sl_refusal *refusal);

/* Adds up to `limit` objects to `data`, the last made first, from the one behind `after` on (NULL:
 * the first). Returns 0, or -1 with the refusal; *ret_more says whether others follow. */
int sl_batch_service_list(struct sl_batch_service *service, const char *after, uint32_t limit,
                          json_t *data, bool *ret_more, struct sl_refusal *refusal);

/* The latest batches, those that have not ended first, for a person: a list of {id, status,
 * priority, total, completed, failed, prompt_tokens, prompt_tokens_done, prompt_tokens_computed,
 * new_tokens, tokens_per_s, left_s or null, paused or null}. */
json_t *sl_batch_service_status(struct sl_batch_service *service);

struct sl_batch_counters {
    uint64_t n_live, n_ended; /* batches */
    uint64_t n_items_left;    /* of those that have not ended */
    uint64_t n_items_done, n_items_failed;
    uint64_t n_tokens; /* in and out, of items that are done */
};
extern const struct sl_metrics sl_batch_metrics;
struct sl_batch_counters sl_batch_service_counters(struct sl_batch_service *service);

#endif
