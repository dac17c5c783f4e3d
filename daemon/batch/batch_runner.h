/* The runner: takes the items of batches through a worker, and loses nothing.
 *
 *     input ──► items ──tickets──► worker ──news──► results, a line each ──► journal
 *                 ▲                                   │
 *                 └──── after a kill: what the journal does not have as done
 *
 * A thread of its own. It keeps as many tickets in the worker as are allowed, long items first and
 * those together that begin alike, writes results as they come, and commits now and then: results
 * are synced before the journal says that they are there, and tokens of answers that are under way
 * are journalled, so that a kill costs little. Results depend on the item alone. Where a more
 * urgent batch finds no place, items of less urgent ones give theirs up and wait again, with what
 * was made of them.
 *
 * Where results or journal cannot be written, it pauses, says why, and tries again. All calls may
 * come from any thread. */
#ifndef SL_DAEMON_BATCH_BATCH_RUNNER_H
#define SL_DAEMON_BATCH_BATCH_RUNNER_H

#include "daemon/answer/answer.h"
#include "daemon/batch/batch_input.h"
#include "daemon/batch/batch_record.h"
#include "daemon/batch/journal.h"
#include "daemon/worker/worker.h"

struct sl_batch_runner_options {
    struct sl_journal *journal; /* outlives the runner */
    struct sl_file_writer *writer;
    const struct sl_answer_model *model;
    /* Tells the weights and numerics of the model apart from others, as "native4 0123456789abcdef";
     * a journal of another one is refused. */
    const char *model_identity;
    uint32_t items_max; /* that are under way at a time */
    uint64_t commit_ns; /* tokens are journalled so often; 0: 10 s */
    /* After so long, a call that failed is tried again, and an urgent item that found no session
     * gets a less urgent one's. 0: 5 s. */
    uint64_t retry_ns;
    uint32_t image_tokens; /* between two images of what an item has seen; 0: as for everybody */
    bool keeps_images;     /* the engine does */
    /* Are told, by the runner's thread, that a batch has changed its state, and of what goes wrong
     * and goes on again. The first returns 0, or less where it could not do what it does then: it
     * is told once more after retry_ns. NULL is allowed. */
    int (*on_change)(void *context, const struct sl_batch_record *record);
    void (*on_note)(void *context, const char *line);
    void *context;
};

/* A batch and how fast it goes. */
struct sl_batch_status {
    struct sl_batch_record record;
    uint32_t n_running;     /* items that the worker has */
    uint64_t n_done_tokens; /* of the prompts, those under way and shared ones included */
    uint64_t n_made_tokens; /* of the answers */
    double validated;       /* the share of the input that was read, while it is validated */
    double tokens_per_s;    /* computed over the last minute or so, prompts and answers together */
    double left_s;          /* below 0: not known */
    bool is_stuck;          /* `pause` does not pass by itself: the input has changed, say */
    char pause[SL_ERR_MESSAGE_BYTES]; /* why nothing goes on; "": it does */
};

struct sl_batch_runner;

/* Takes over the batches that the journal has, and calls sl_journal_forget(). What results have
 * beyond the last commit is cut off when a batch goes on. Fails with -EINVAL where the journal is
 * another model's, with -SL_EFORMAT where it makes no sense, or with -ENOMEM. */
int sl_batch_runner_create(struct sl_batch_runner **ret_runner,
                           const struct sl_batch_runner_options *options, struct sl_err *err);

/* Starts the thread. Items wait until the worker is ready; inputs are validated before. */
int sl_batch_runner_start(struct sl_batch_runner *runner, struct sl_worker *worker,
                          struct sl_err *err);

/* Stops: no item is begun any more, those under way are journalled and leave the worker. Waits for
 * that; the batches go on when the journal is opened again. The worker is still there. Returns 0,
 * or -errno where the last commit failed, so that some work has to be done again. */
int sl_batch_runner_park(struct sl_batch_runner *runner, struct sl_err *err);

/* Parks, if it was not parked. The worker has ended, or goes on until it has let go of all tickets.
 * NULL is allowed. */
void sl_batch_runner_destroy(struct sl_batch_runner *runner);

struct sl_batch_order {
    const char *input_path, *output_path, *error_path; /* the latter is made when it is needed */
    const char *endpoint;                              /* NULL: any */
    const char *about;                                 /* see struct sl_batch_record */
    int32_t priority;                                  /* higher ones go first */
    bool skip_bad;                                     /* faulty lines become failed items */
    int64_t expires_s;                                 /* since 1970; 0: never */
    /* NULL, or the input after its pass, so that it need not be validated again. Taken. */
    struct sl_batch_input *input;
};

/* Enters a batch into the journal. Strings are copied. ret_id has room for SL_BATCH_NAME_BYTES.
 * Fails as sl_journal_commit() does; nothing has happened then. */
int sl_batch_runner_add(struct sl_batch_runner *runner, const struct sl_batch_order *order,
                        char *ret_id, struct sl_err *err);

/* Results stay; the rest becomes errors in the error file. Fails with -ENOENT where there is
 * no such batch, -EALREADY where it has ended. */
int sl_batch_runner_cancel(struct sl_batch_runner *runner, const char *id, struct sl_err *err);

/* Gives an input that was validated to a batch of the journal, before start(), so that it is not
 * validated again. Takes it. Fails with -ENOENT. */
int sl_batch_runner_give_input(struct sl_batch_runner *runner, const char *id,
                               struct sl_batch_input *input);

/* Forgets a batch that has ended, so that the journal has nothing of it any more. Its results are
 * left to the caller. Fails with -ENOENT, with -EBUSY where it has not ended, or as
 * sl_journal_commit() does. */
int sl_batch_runner_forget(struct sl_batch_runner *runner, const char *id, struct sl_err *err);

/* The first returns how many batches there are, those that have ended included. The others fill a
 * status, by id or by place in the order of their creation; they fail with -ENOENT or -ENOMEM. The
 * caller calls sl_batch_status_fini(). */
uint32_t sl_batch_runner_count(struct sl_batch_runner *runner);
int sl_batch_runner_status(struct sl_batch_runner *runner, const char *id,
                           struct sl_batch_status *ret_status);
int sl_batch_runner_status_at(struct sl_batch_runner *runner, uint32_t index,
                              struct sl_batch_status *ret_status);
void sl_batch_status_fini(struct sl_batch_status *status);

#endif
