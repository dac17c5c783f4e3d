/* The scheduler: who is in the next step, and which step goes on.
 *
 * Pure: it has no threads, no clock and no memory of its own. It is told what has happened and
 * when, and says what to do next; daemon/worker does it. Times are nanoseconds of any clock.
 *
 *     submit() ──► waiting ──ADMIT──► running ◄──► in a step ──► remove()
 *                     ▲                 │
 *                     └──── defer() ────┘      there is no sequence for it yet
 *
 * Two steps can be open at a time. The small one is for users: it goes on without a break. The
 * large one takes long prompts, and batches; while users want small steps, it goes on by a layer
 * between two of them, and stands still otherwise. So nobody interactive waits for longer than a
 * layer.
 *
 * A step of a batch takes all that decode, and then as many tokens of the next prompts as make
 * batch_rows together, so that the drives and the cores are busy alike (step_balance.h); where that
 * many decode already, prompts still get an eighth.
 *
 * Jobs are interactive or batch. A step is of one class. Batch gets the time that nobody
 * interactive wants, and batch_permille of the rest. Inside a class prompts are taken in the order
 * in which they came, by small steps the shortest first, and all that decode take part, the longest
 * unserved first if they are too many. */
#ifndef SL_DAEMON_SCHEDULER_SCHEDULER_H
#define SL_DAEMON_SCHEDULER_SCHEDULER_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/list.h"
#include "daemon/engine/step_size.h"

enum sl_job_class { SL_JOB_INTERACTIVE, SL_JOB_BATCH, SL_JOB_CLASSES };
enum sl_job_state { SL_JOB_OUT, SL_JOB_WAITING, SL_JOB_RUNNING };

/* A step that fails is taken once more. */
#define SL_JOB_TRIES 2u

/* A text that is to be made. The memory is its owner's; only the scheduler's calls write to it.
 * Zeroed before submit(). */
struct sl_job {
    struct sl_link link;
    enum sl_job_class class;
    enum sl_job_state state;
    uint32_t n_left; /* of the prompt; or 1, the token that was made last */
    bool decodes;    /* the prompt has been taken in */
    bool in_step;    /* is in the open step of this size: */
    enum sl_step_size size;
    bool is_held;       /* its reader has too much to read already: takes no part in steps */
    bool is_deferred;   /* there was no sequence for it; waits until something has changed */
    bool has_no_reader; /* the client went away: its prompt is taken in until keep_until_ns */
    uint64_t keep_until_ns;
    uint64_t arrival; /* the order in which jobs came */
    uint64_t served;  /* number of the last step it was in */
    uint32_t n_failures;
};

struct sl_scheduler_limits {
    uint32_t running_max;                    /* jobs that have a sequence */
    uint32_t batch_running_max;              /* of them, of the batch class */
    uint32_t spans_max;                      /* of one step */
    uint32_t step_tokens_max[SL_STEP_SIZES]; /* at least 1 each */
    uint32_t n_layers;                       /* calls of advanced() that a step takes, about */
    uint32_t batch_permille;                 /* of the time while somebody interactive is served */
};

/* A job's part of a step. */
struct sl_part {
    struct sl_job *job;
    uint32_t n_tokens;
};

/* A step that is open, or was last. The list holds the jobs that are left of those it began with:
 * one that was removed meanwhile is NULL. */
struct sl_open_step {
    bool is_open;
    enum sl_job_class class;
    struct sl_part *parts; /* (spans_max) */
    uint32_t n_parts, n_jobs;
    uint32_t n_advances;
};

struct sl_scheduler {
    struct sl_scheduler_limits limits;
    struct sl_link waiting[SL_JOB_CLASSES], running; /* in the order in which they came */
    uint32_t n_waiting[SL_JOB_CLASSES], n_running[SL_JOB_CLASSES];
    struct sl_open_step steps[SL_STEP_SIZES];
    uint32_t batch_rows;   /* of a batch's step, as far as it has room for them */
    struct sl_job **order; /* (running_max) scratch */
    uint64_t n_arrivals, n_steps;
    bool large_is_next;              /* the last small step has not been followed by a layer yet */
    uint64_t ran_ns[SL_JOB_CLASSES]; /* while somebody interactive was served */
};

enum sl_action_kind {
    SL_ACTION_WAIT,    /* nothing to do before until_ns, or before something happens */
    SL_ACTION_ADMIT,   /* get a sequence for `job`, which runs now; or defer() it */
    SL_ACTION_DROP,    /* end `job`, which nobody reads any more, and remove() it */
    SL_ACTION_BEGIN,   /* begin the step of this size, with steps[size].parts; then advanced() */
    SL_ACTION_ADVANCE, /* go on with it by a layer; then advanced() */
    SL_ACTION_ABANDON, /* give it up: the scheduler has done so */
};

struct sl_action {
    enum sl_action_kind kind;
    struct sl_job *job;
    enum sl_step_size size;
    uint64_t until_ns; /* UINT64_MAX: no time is set */
};

/* Fails with -ENOMEM. The caller calls fini(), when no job is left in it. */
int sl_scheduler_init(struct sl_scheduler *s, const struct sl_scheduler_limits *limits);
void sl_scheduler_fini(struct sl_scheduler *s);

/* Adds a job with n_left tokens of a prompt, at least 1, to the end of its class's queue. */
void sl_scheduler_submit(struct sl_scheduler *s, struct sl_job *job, enum sl_job_class class,
                         uint32_t n_left);

/* Takes a job out, whatever it is doing. If it is in a step, the caller drops it from there, unless
 * it was the last one: a step with nobody left is abandoned next. */
void sl_scheduler_remove(struct sl_scheduler *s, struct sl_job *job);

/* The answer to SL_ACTION_ADMIT where there is no sequence for the job: it waits, in its old place,
 * until a job is removed, a step has ended, or retry() says that there may be one. */
void sl_scheduler_defer(struct sl_scheduler *s, struct sl_job *job);
void sl_scheduler_retry(struct sl_scheduler *s);

/* The client has gone while the prompt is taken in; until then the same client may ask again, and
 * find that it has been. */
void sl_scheduler_set_reader(struct sl_scheduler *s, struct sl_job *job, bool has_reader,
                             uint64_t keep_until_ns);
void sl_scheduler_hold(struct sl_scheduler *s, struct sl_job *job, bool is_held);

/* From now on steps of batches are to have so many rows, at least 1. Until then they take all that
 * they have room for. */
void sl_scheduler_set_batch_rows(struct sl_scheduler *s, uint32_t n_rows);

/* Says what to do next. */
struct sl_action sl_scheduler_next(struct sl_scheduler *s, uint64_t now_ns);

/* The open step of that size went on, which took elapsed_ns. `rc` is 1 if there is more of it, 0 if
 * it has ended, and negative if it failed; in the last two cases it is over. Of a failed step, each
 * job has one try less. After a step that ended, the caller tells what is left of each job: */
void sl_scheduler_advanced(struct sl_scheduler *s, enum sl_step_size size, int rc,
                           uint64_t elapsed_ns);
void sl_scheduler_set_left(struct sl_scheduler *s, struct sl_job *job, uint32_t n_left,
                           bool decodes);

/* A step that was to begin, or to go on, cannot: it is over, and nobody has failed. */
void sl_scheduler_give_up(struct sl_scheduler *s, enum sl_step_size size);

/* A job of a step that ended well failed all the same: its logits allowed no choice. */
void sl_scheduler_job_failed(struct sl_scheduler *s, struct sl_job *job);

static inline bool sl_job_has_failed(const struct sl_job *job)
{
    return job->n_failures >= SL_JOB_TRIES;
}

#endif
