/* The worker's state, for the files of daemon/worker. */
#ifndef SL_DAEMON_WORKER_WORKER_INTERNAL_H
#define SL_DAEMON_WORKER_WORKER_INTERNAL_H

#include "daemon/engine/shared_step.h"
#include "daemon/scheduler/step_balance.h"
#include "daemon/worker/session_images.h"
#include "daemon/worker/worker.h"

/* An open step, as the worker has to end it. */
struct sl_worker_step {
    struct sl_shared_step *step;
    struct sl_text **texts; /* (spans_max), and below */
    uint32_t *n_tokens;
    struct sl_generation **generations; /* that it began with */
    uint32_t n_texts;
    uint64_t number;
    uint64_t elapsed_ns;
    uint32_t n_advances;
    struct sl_expert_cache_counters cache; /* what the step added */
};

struct sl_worker {
    struct sl_worker_options options;
    pthread_t thread;

    pthread_mutex_t lock; /* guards all up to `layer_bytes` */
    pthread_cond_t has_mail;
    struct sl_link submitted, noticed; /* tickets */
    uint32_t n_waiting; /* interactive tickets without a session yet, mailed ones included */
    uint64_t n_refused;
    bool stop_wanted;
    uint64_t stop_deadline_ns;
    struct sl_worker_status status;
    uint8_t *resident; /* (hidden layers, layer_bytes) as sl_engine_resident() gives it */
    uint32_t layer_bytes;

    atomic_bool stop_now; /* set by any thread: the open steps end at once */

    /* The thread's own. */
    struct sl_engine *engine;
    struct sl_scheduler scheduler;
    struct sl_step_balance balance; /* of batches' steps */
    struct sl_worker_step steps[SL_STEP_SIZES];
    struct sl_session_pool sessions;
    struct sl_session_images images;
    struct sl_link live; /* tickets */
    uint32_t spans_max, n_layers;
    struct sl_kv_cache **step_kvs; /* (spans_max) of the step that room is made for */
    uint64_t n_steps;
    struct sl_worker_counters counters;
    struct sl_histogram first_token, next_token;
    uint64_t rate_since_ns, rate_n_tokens; /* for tokens_per_s */
    double tokens_per_s;
    bool is_stopping;
    bool has_waiters; /* for memory, among the texts */
};

/* ---- tickets and texts: worker_texts.c ---------------------------------------------------------
 */

/* A ticket comes: its texts wait for sessions. */
void sl_worker_take_on(struct sl_worker *w, struct sl_ticket *ticket, uint64_t now_ns);

/* Looks at what the ticket's reader wants. */
void sl_worker_look_at(struct sl_worker *w, struct sl_ticket *ticket, uint64_t now_ns);

/* The scheduler's decisions about a text. */
void sl_worker_admit(struct sl_worker *w, struct sl_text *text, uint64_t now_ns);

/* The session of a text that was admitted is what its images could make of it: the text begins. */
void sl_worker_loaded(struct sl_worker *w, struct sl_kept_session *session);
void sl_worker_drop(struct sl_worker *w, struct sl_text *text);

/* Ends a request with an error, and all of its texts. */
void sl_worker_fail(struct sl_worker *w, struct sl_ticket *ticket, int status, const char *message);

/* Ends the texts of all whose client has gone, prompts that were kept for them included. */
void sl_worker_end_abandoned(struct sl_worker *w);

/* The step of that size is over: its texts have something new to tell (rc 0), have failed with
 * `rc`, or are where they were, since it was abandoned (1). */
void sl_worker_step_over(struct sl_worker *w, enum sl_step_size size, int rc,
                         const struct sl_err *err);

/* Makes room for a step with these tokens of these texts. Returns 0; or where there is too little
 * memory for KV caches -EBUSY, after the text that came last was taken out of steps until images
 * have been kept, or -SL_EBUDGET, after it has been failed. */
int sl_worker_make_room(struct sl_worker *w, const struct sl_open_step *step);

/* There may be more memory now: those who wait for some try again. */
void sl_worker_retry(struct sl_worker *w);

/* Returns whether the step, which is over, has left tokens in any sequence. */
bool sl_worker_step_has_moved(const struct sl_worker_step *step);

/* Tells tickets how far their prompts are while a step takes them in. */
void sl_worker_show_progress(struct sl_worker *w, const struct sl_worker_step *step);

static inline struct sl_text *sl_text_of(struct sl_job *job)
{
    return (struct sl_text *)(void *)((char *)job - offsetof(struct sl_text, job));
}

/* ---- what the status lists: worker_status.c ----------------------------------------------------
 */

void sl_worker_name_drives(struct sl_worker *w); /* once, when the engine is open */
void sl_worker_publish_lists(struct sl_worker *w);

#endif
