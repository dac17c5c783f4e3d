/* What tests of the worker stand on: whole engines on the tiny model, and clients that come all at
 * once, read or let the news pile up, go away, or come back with the next turn. What each text is
 * alone is made first, without a worker. SL_SEED repeats the clients, not the threads' timing.
 * Failures are cmocka's. */
#ifndef SL_TESTS_WORKER_RIG_H
#define SL_TESTS_WORKER_RIG_H

#include "daemon/worker/worker.h"
#include "tests/engine_rig.h"

#define WORKER_CLIENTS 16u
#define WORKER_CONTEXT_TOKENS 256u
#define WORKER_TEXT_BYTES 4096u
#define WORKER_TURN_TOKENS 8u /* of the user in each further turn */
#define NS_PER_S UINT64_C(1000000000)

struct worker_rig;

struct worker_client {
    struct sl_ticket ticket; /* first */
    struct worker_rig *w;
    int32_t prompt[WORKER_CONTEXT_TOKENS];
    uint32_t n_prompt, n_new;
    uint32_t image_every_tokens;         /* of its tickets */
    enum sl_job_class class;             /* likewise */
    int32_t made[WORKER_CONTEXT_TOKENS]; /* (n_new) tokens of `alone` */
    char text[WORKER_TEXT_BYTES], alone[WORKER_TEXT_BYTES];
    size_t length;
    bool is_done, has_failed, has_left;
    bool is_released; /* under the rig's lock */
    int status;
    char why[1024];
    struct sl_usage usage;
};

struct worker_rig {
    struct engine_rig *m;
    uint64_t kv_bytes;    /* 0: for as many long sequences as share a step */
    uint32_t kv_sessions; /* for so many sequences instead, of the longest that there are */
    const char *images;   /* a folder; NULL: none are kept */
    uint64_t images_bytes_max;
    struct sl_file_writer *images_writer; /* NULL: they are written as ever */
    uint32_t drafts; /* as struct sl_engine_options; texts alone are made without */
    uint32_t segment_tokens, texts_max;            /* 0: 48, and 6 */
    uint32_t n_new_min;                            /* tokens of each text; 0: 1 */
    void (*on_news)(struct worker_client *client); /* by the worker's thread; NULL is allowed */
    uint32_t n_notes;                              /* the worker's thread counts */
    char note[SL_ERR_MESSAGE_BYTES];
    struct sl_tokenizer *tok;
    struct sl_worker *worker;
    struct worker_client clients[WORKER_CLIENTS];
    const struct io_fault_plan *plan; /* NULL: reads do not fail */
    uint32_t heal_after;              /* failed steps */
    uint32_t n_failures;              /* the worker's thread counts */
    char failure[1024];
    uint64_t random;

    pthread_mutex_t lock; /* guards the rest, and is_released */
    pthread_cond_t changed;
    uint64_t n_news;
    bool is_ready;
};

/* Makes prompts, of which many begin alike, and what follows each alone. The fields
 * before `tok` are set by the caller. */
void worker_rig_init(struct worker_rig *w, struct engine_rig *m);
void worker_rig_fini(struct worker_rig *w);

/* The engine's option for KV caches. */
uint64_t worker_rig_kv_bytes(const struct worker_rig *w);

/* Adds to each prompt its answer and the user's next tokens, and makes what follows. No worker
 * runs.
 */
void worker_rig_next_turn(struct worker_rig *w);

/* Starts the worker, and waits until it is ready; stop() joins it. */
void worker_rig_start(struct worker_rig *w, uint32_t queue_max);
void worker_rig_stop(struct worker_rig *w, uint64_t grace_ns);

/* Submits client i's request, as sl_worker_submit(). read() reads what there is; read_all() until
 * it has ended, and lets go of the ticket; leave() goes before that. */
int worker_rig_submit(struct worker_rig *w, uint32_t i);
void worker_rig_read(struct worker_client *client);
void worker_rig_read_all(struct worker_client *client);
void worker_rig_leave(struct worker_client *client);

/* Waits until all tickets of clients have been released, so that they can be used again. */
void worker_rig_wait_released(struct worker_rig *w);
void worker_rig_assert_released(struct worker_rig *w);

#endif
