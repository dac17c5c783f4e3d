/* The worker: the thread that owns the engine, and makes the texts of all tickets.
 *
 * It opens the engine, takes tickets from a bounded mailbox, asks the scheduler what to do next,
 * and does it, a layer at a time. In between it looks whether tickets are still wanted. All calls
 * may come from any thread.
 *
 *     LOADING ──► READY ──stop()──► STOPPING ──► ENDED
 *        └────────────── cannot go on ────────────►┘ */
#ifndef SL_DAEMON_WORKER_WORKER_H
#define SL_DAEMON_WORKER_WORKER_H

#include "core/base/histogram.h"
#include "daemon/engine/engine_images.h"
#include "daemon/worker/ticket.h"
#include "storage/io/drive.h"

enum sl_worker_state { SL_WORKER_LOADING, SL_WORKER_READY, SL_WORKER_STOPPING, SL_WORKER_ENDED };

struct sl_worker_options {
    /* Opens the engine, on the worker's thread; closing it is the worker's. */
    int (*open)(void *context, struct sl_engine **ret_engine, struct sl_err *err);
    /* Is told when the state has changed, by the worker's thread. NULL is allowed. */
    void (*on_state)(void *context, enum sl_worker_state state);
    /* Is told of a step that failed, which may name the drive. NULL is allowed. */
    void (*on_failure)(void *context, const struct sl_err *err);
    void *context;

    uint32_t n_texts_max; /* that are made at a time: the engine's n_sequences */
    uint32_t context_tokens;
    int32_t turn_token;      /* begins a user's turn in a conversation; -1: there are none */
    uint32_t queue_max;      /* tickets that wait for a session */
    uint64_t keep_prompt_ns; /* a prompt is taken in for so long after its client has gone */
    uint32_t batch_permille; /* of the time while somebody interactive is served */
    bool with_hot_list;
};

/* Counters, for metrics; shown by sl_worker_metrics. */
struct sl_worker_counters {
    uint64_t n_requests, n_finished, n_failed, n_abandoned, n_refused;
    uint64_t n_prompt_tokens, n_cached_tokens, n_new_tokens;
    uint64_t n_verifications, n_drafts, n_drafts_right;
    uint64_t n_resumed, n_resumed_tokens;  /* sessions that came from images */
    uint64_t images_ns, images_longest_ns; /* that the engine's thread spent on images */
    uint64_t n_steps, n_large_steps, n_batch_steps, n_failed_steps;
    uint64_t n_batch_rows;
    uint64_t busy_ns, wait_ns;
    uint64_t n_waiting, n_running; /* texts now */
    uint64_t n_sessions, n_kv_bytes;
};
extern const struct sl_metrics sl_worker_metrics;

/* A drive that experts and weights are read from; more than these are not told of. */
#define SL_WORKER_DRIVES_MAX 16u
struct sl_worker_drive {
    char name[SL_DRIVE_NAME_BYTES]; /* such as "nvme0n1" */
    uint64_t read_bytes;
};

/* A request that waits or is served; nothing of its content. */
#define SL_WORKER_ENTRIES_MAX 32u
struct sl_worker_entry {
    enum sl_job_class class;
    bool is_waiting; /* for a session */
    uint32_t n_texts;
    uint32_t n_prompt_tokens, n_done_tokens; /* of all prompts; 0 while it waits */
    uint32_t n_new_tokens;
    uint64_t age_ns;
};

struct sl_worker_status {
    enum sl_worker_state state;
    struct sl_worker_counters counters;
    struct sl_expert_cache_counters cache;
    bool keeps_images;
    struct sl_images_counters images;
    bool keeps_pages; /* KV caches may be on disk */
    struct sl_engine_pages pages;
    struct sl_histogram first_token, next_token; /* times */
    uint32_t slot_count;
    struct sl_worker_drive drives[SL_WORKER_DRIVES_MAX]; /* (n_drives) */
    uint32_t n_drives;
    struct sl_worker_entry entries[SL_WORKER_ENTRIES_MAX]; /* (n_entries), the first of */
    uint32_t n_entries, n_entries_all;
    double tokens_per_s; /* over the last seconds, all texts together */
    struct sl_err err;   /* why it ended; code 0: it was told to */
};

struct sl_worker;

/* Starts the thread. Fails with -ENOMEM or -EAGAIN. The options are copied. */
int sl_worker_start(struct sl_worker **ret_worker, const struct sl_worker_options *options,
                    struct sl_err *err);

/* No new tickets are taken; those that there are have grace_ns to end, and then fail. */
void sl_worker_stop(struct sl_worker *worker, uint64_t grace_ns);

/* Waits for the thread's end, and frees the worker. All tickets have been told their end. */
void sl_worker_join(struct sl_worker *worker);

/* Hands a ticket over; the worker holds it too from now on. Returns 0, -EBUSY where the queue is
 * full, or -ESHUTDOWN if the worker is not ready. */
int sl_worker_submit(struct sl_worker *worker, struct sl_ticket *ticket);

/* Lets the worker look at a ticket: it was abandoned, a text is unwanted, or there is room for
 * news. Never fails. */
void sl_worker_notice(struct sl_worker *worker, struct sl_ticket *ticket);

enum sl_worker_state sl_worker_state(struct sl_worker *worker);
void sl_worker_status(struct sl_worker *worker, struct sl_worker_status *ret_status);

/* Copies which experts of a hidden layer were resident some seconds ago at most, a bit for each as
 * in sl_expert_cache_resident(). Returns false while the worker is not ready. */
bool sl_worker_resident(struct sl_worker *worker, uint32_t layer_index, uint8_t *ret_bits);

#endif
