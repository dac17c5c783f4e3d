/* The runner's state, for its files. All but what a comment says otherwise is its thread's. */
#ifndef SL_DAEMON_BATCH_BATCH_RUNNER_INTERNAL_H
#define SL_DAEMON_BATCH_BATCH_RUNNER_INTERNAL_H

#include <pthread.h>

#include "core/base/list.h"
#include "daemon/batch/batch_estimate.h"
#include "daemon/batch/batch_input.h"
#include "daemon/batch/batch_runner.h"
#include "daemon/batch/made_tokens.h"
#include "daemon/batch/results_file.h"

/* An attempt that fails by the machine's fault is repeated so often. */
#define SL_ITEM_TRIES 3u

enum sl_item_state { SL_ITEM_WAITING, SL_ITEM_RUNNING, SL_ITEM_DONE, SL_ITEM_FAILED };

/* Tokens that were made of a text. */
struct sl_text_made {
    struct sl_made_tokens made;
    size_t kept_bytes; /* of its records, in the journal */
    uint32_t n_groups; /* entries of the journal that have them */
};

/* An item that waits, though some of its answer was made. */
struct sl_saved_item {
    struct sl_link link;
    uint32_t item_index, n_texts;
    struct sl_text_made *texts; /* (n_texts) */
};

struct sl_batch {
    struct sl_link link;
    struct sl_batch_record record;  /* changed under the runner's lock */
    bool cancel_wanted;             /* under the runner's lock */
    bool is_forgotten;              /* likewise: others do not see it, and the thread frees it */
    enum sl_batch_state kept_state; /* that the journal has; under the runner's lock */
    struct sl_batch_input *input;
    bool is_read;        /* the input's pass is over: */
    uint8_t *states;     /* (n_items) enum sl_item_state */
    uint8_t *tries;      /* (n_items) */
    uint32_t next_place; /* in the input's order: no item before it waits */
    uint32_t n_running;
    struct sl_link saved; /* items */
    struct sl_results_file output, errors;
    bool has_changed;                      /* the record is to be journalled */
    bool is_to_tell;                       /* and then on_change(), */
    uint64_t tell_ns;                      /* if it has failed, not before this time */
    uint64_t n_ended_tokens, n_ended_made; /* of items that have ended: prompts, answers */
    uint64_t n_left_computed;              /* tokens of prompts, of items that left the worker */
    struct sl_estimate_waiting waiting;    /* items */
    struct sl_answer_lengths *lengths;
    struct { /* as it was when the thread last counted; under the runner's lock */
        uint32_t n_running;
        uint64_t n_done_tokens, n_made_tokens; /* with those under way */
        double validated, left_s;
    } shown;
    char trouble[SL_ERR_MESSAGE_BYTES]; /* why it stands still, or did; under the lock, */
    bool is_stuck;                      /* likewise: it does, */
    uint64_t stuck_until_ns;            /* and until then; UINT64_MAX: for good */
};

/* An item that is in the worker, or will be next. */
struct sl_live_item {
    struct sl_answer answer;
    struct sl_link link;
    struct sl_batch_runner *runner;
    struct sl_batch *batch;
    uint32_t item_index, place;
    char *custom_id;
    struct sl_text_made *texts;   /* (n_texts) */
    uint32_t *n_replayed;         /* (n_texts) tokens made before that have been told again */
    uint32_t *n_before;           /* (n_texts) of them there are */
    int32_t **tokens;             /* (n_texts) prompt and tokens made before; NULL: none were */
    struct sl_generated **before; /* (n_texts) */
    uint32_t n_texts;
    uint64_t room_due_ns; /* where it has no session by then, a less urgent item gives one up */
    atomic_bool has_news; /* set by the worker's thread */
};

static inline bool sl_live_item_has_begun(const struct sl_live_item *live)
{
    return atomic_load(&live->answer.ticket.has_begun);
}

struct sl_batch_runner {
    struct sl_batch_runner_options options;
    struct sl_worker *worker;
    pthread_t thread;
    bool is_started;

    pthread_mutex_t order_lock; /* held by an order that commits: one at a time */

    pthread_mutex_t lock;   /* guards what says so, and the rest of this paragraph */
    struct sl_link batches; /* others append; the thread alone takes them out */
    uint32_t n_batches, next_number;
    double tokens_per_s;
    char pause[SL_ERR_MESSAGE_BYTES]; /* why nothing can be written; "": it can */

    pthread_mutex_t wake_lock; /* guards the rest of this paragraph; held for moments */
    pthread_cond_t wake, released;
    bool has_work, park_wanted;
    uint32_t n_unreleased; /* live items whose memory is still there */

    struct sl_link live;
    uint32_t n_live, items_max; /* the latter falls where memory does not suffice, and grows */
    uint32_t n_ended_well;      /* again by one when so many items have ended well since */
    struct sl_live_item *next;  /* prepared, because the one before it may share its beginning */
    struct sl_journal_changes lasting; /* of items that have ended since the last commit */
    bool has_ended_items;
    uint64_t committed_ns, retry_ns;
    struct sl_batch_estimate estimate;
    uint64_t estimated_ns;
    /* In this run, of items that left the worker: tokens, and pasts (batch_estimate.h). */
    uint64_t n_left_computed, n_left_made, n_left_pasts;
    struct sl_err park_err;
};

/* ---- items: batch_items.c ----------------------------------------------------------------------
 */

/* Begins items as long as there is room for them. */
void sl_batch_begin_items(struct sl_batch_runner *r);

/* Takes in what the worker has told. */
void sl_batch_take_news(struct sl_batch_runner *r);

/* Ends up to n_max items that have not begun as errors; returns whether none is left. */
bool sl_batch_end_waiting(struct sl_batch_runner *r, struct sl_batch *batch, const char *code,
                          const char *message, uint32_t n_max);

/* Lets the worker go on without the items that are under way, of one batch or of all (NULL). They
 * wait then, with what was made of them. */
void sl_batch_leave_worker(struct sl_batch_runner *r, const struct sl_batch *batch);

/* Frees an item that waits. */
void sl_saved_item_free(struct sl_saved_item *saved);

/* ---- the journal: batch_commit.c ---------------------------------------------------------------
 */

/* Adds the removal of what was made of an item. */
void sl_batch_forget_made(struct sl_batch_runner *r, const struct sl_batch *batch,
                          uint32_t item_index, const struct sl_text_made *texts, uint32_t n_texts);

/* Adds that an item has ended: well with texts of this length, or failed (NULL). */
void sl_batch_note_item(struct sl_batch_runner *r, const struct sl_batch *batch,
                        uint32_t item_index, const struct sl_answer_length *length);

/* Writes results, then the journal. Returns 0 or why not; then it is to be tried again. */
int sl_batch_commit(struct sl_batch_runner *r, struct sl_err *err);

/* Tells on_change() what the journal has of a batch now. */
void sl_batch_tell(struct sl_batch_runner *r, struct sl_batch *batch);

/* Removes, in a commit of its own, all that the journal has of a batch that has ended. */
int sl_batch_remove(struct sl_batch_runner *r, uint32_t number, struct sl_err *err);

/* Enters, in a commit of its own, a record that the runner's thread does not have yet. */
int sl_batch_enter(struct sl_batch_runner *r, const struct sl_batch_record *record,
                   struct sl_err *err);

/* Commits a single text under "KIND/NUMBER". */
int sl_batch_put_text(struct sl_batch_runner *r, const char *kind, uint32_t number,
                      const char *text, struct sl_err *err);

/* Reads all that the journal has into the runner. */
int sl_batch_load(struct sl_batch_runner *r, struct sl_err *err);

/* Returns NULL when out of memory. */
struct sl_batch *sl_batch_create(void);
void sl_batch_destroy(struct sl_batch *batch);

/* Frees what a batch that has ended does not need. */
void sl_batch_empty(struct sl_batch *batch);

/* ---- how far batches are: batch_progress.c -----------------------------------------------------
 */

/* Sums up what waits, and what earlier runs have done, when the input is known. Fails with
 * -ENOMEM. */
int sl_batch_begin_progress(struct sl_batch_runner *r, struct sl_batch *batch);

/* All changes of an item's state. */
void sl_batch_set_item(struct sl_batch *batch, uint32_t item_index, enum sl_item_state state);

/* An item leaves the worker. */
void sl_batch_count_leave(struct sl_batch_runner *r, const struct sl_live_item *live);

/* An item has ended well, with so many tokens in all of its texts. Returns how long each is. */
struct sl_answer_length sl_batch_count_answer(struct sl_batch *batch, uint32_t item_index,
                                              uint32_t n_tokens);

/* Count what is done, those under way included, and say what is left. */
void sl_batch_count_progress(struct sl_batch_runner *r);
void sl_batch_estimate_all(struct sl_batch_runner *r);

/* Returns the time of day, under the runner's lock; where the clock was set back, nothing comes
 * before what it follows. */
int64_t sl_batch_time(const struct sl_batch_record *record);

/* Wakes the runner's thread. */
void sl_batch_wake(struct sl_batch_runner *r);

/* Says that a batch stands still: for a while where that may pass, as a full disk does. */
void sl_batch_set_trouble(struct sl_batch_runner *r, struct sl_batch *batch,
                          const struct sl_err *err);

#endif
