/* A ticket: one request between the thread that reads it and the engine's thread, and what has come
 * of it.
 *
 *     HTTP thread                     ticket                        engine's thread
 *     prompts, rules, seeds ───────►  texts  ──────────────────►  makes them, step by step
 *     replies  ◄───────────────────  news, a bounded queue  ◄───  tokens, ends, errors
 *     "nobody wants this any more" ► flags ────────────────────►  looks at them between layers
 *
 * Both threads hold it, and whoever lets go last frees it. A reader that is slow lets the queue
 * fill up: then the engine's thread leaves the texts out of its steps until there is room. */
#ifndef SL_DAEMON_WORKER_TICKET_H
#define SL_DAEMON_WORKER_TICKET_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/base/bytes.h"
#include "core/base/list.h"
#include "daemon/engine/generation.h"
#include "daemon/protocol/reply.h"
#include "daemon/scheduler/scheduler.h"
#include "daemon/worker/session_pool.h"

/* Bytes of news that wait for a reader before its texts are held. The queue has room for what a
 * step adds then: a piece of text for each choice, and the ends. */
#define SL_TICKET_NEWS_BYTES (32u << 10)

/* Marks of a prompt: those of SL_PROMPT_MARKS, and for images. */
#define SL_TEXT_MARKS_MAX (SL_PROMPT_MARKS + SL_IMAGE_PLACES)

/* One text of a request. */
struct sl_text {
    /* Set before the ticket is submitted. */
    const int32_t *tokens; /* (n_tokens) the prompt, borrowed from the ticket's owner */
    uint32_t n_tokens;
    struct sl_generation *generation; /* the ticket's */
    uint32_t n_new_max;               /* 0: no limit but the context's */
    uint64_t seed;
    bool with_logprobs;
    /* A text that was begun before: the last n_made of its tokens are no prompt, but were made, and
     * are told again first. `made` (n_made) has their probabilities; NULL where none are wanted. */
    uint32_t n_made;
    const struct sl_generated *made;
    /* Another text that will come begins with so many of the tokens, for which a mark is worth its
     * step; 0: nothing is known of others. */
    uint32_t n_shared;

    atomic_bool is_unwanted; /* set by the reader, which has seen enough of it */

    /* The engine thread's. */
    struct sl_job job;
    struct sl_ticket *ticket;
    uint32_t choice_index;
    struct sl_kept_session *session;   /* NULL while it waits */
    struct sl_resumed stored;          /* the longest image of the prompt, */
    uint64_t n_images_seen;            /* among so many and one more; 0: nobody has looked */
    uint32_t n_told_stored;            /* its part of the ticket's n_stored_tokens */
    uint32_t n_cached;                 /* tokens of the prompt that the session had seen before */
    uint32_t marks[SL_TEXT_MARKS_MAX]; /* (n_marks) places in the prompt where a mark is to be */
    uint32_t n_marks;
    uint32_t n_step_tokens; /* of the sequence before the open step */
    uint64_t admitted_ns, first_token_ns, last_token_ns;
    bool in_step;          /* the forward pass has its sequence */
    bool waits_for_memory; /* for its next step */
    bool has_ended;
};

typedef void sl_ticket_notify_fn(void *owner);
typedef void sl_ticket_release_fn(void *owner);

struct sl_ticket {
    /* Set before it is submitted. */
    enum sl_job_class class;
    /* For who will ask again after a crash, as batches do: images of prompts, and of what is made,
     * are kept after every so many tokens, and each text's latest one is pinned until it ends.
     * Steps are not cut for them. 0: as for everybody else. Without a folder of images nothing is
     * kept. */
    uint32_t image_every_tokens;
    uint32_t n_texts;
    struct sl_text *texts; /* (n_texts) */
    void *owner;
    sl_ticket_notify_fn *notify; /* there is news; called by the engine's thread */
    sl_ticket_release_fn
        *release; /* both have let go: frees what the texts borrow, and the ticket */

    atomic_uint n_holders;
    atomic_bool is_abandoned; /* by the reader: the client has gone */

    /* How far the prompts are, for heartbeats: written by the engine's thread, read by others,
     * where a value that is a moment old does no harm. */
    atomic_bool has_begun;
    atomic_uint n_prompt_tokens, n_cached_tokens, n_done_tokens;
    atomic_uint n_part_tokens;   /* about so many more in the open step */
    atomic_uint n_stored_tokens; /* of texts that have not begun: those that images know */
    atomic_ullong begun_ns;

    pthread_mutex_t lock; /* guards the next three */
    struct sl_bytes news;
    bool is_held;    /* the texts are, because there is much news */
    bool has_notice; /* is in the worker's list of tickets to look at */

    /* The worker's lists, under its lock. */
    struct sl_link submitted, noticed;

    /* The engine thread's. */
    struct sl_link live;
    uint32_t n_left; /* texts that have not ended, or are in a step still */
    uint32_t n_unadmitted;
    uint64_t submitted_ns;
    uint64_t last_step; /* that `usage` counts */
    struct sl_usage usage;
    bool is_over; /* nothing more is told */
};

/* Allocates `n_texts` zeroed texts, and is held once. Fails with -ENOMEM. */
int sl_ticket_init(struct sl_ticket *ticket, uint32_t n_texts);

/* Frees texts and news; for release(). */
void sl_ticket_fini(struct sl_ticket *ticket);

void sl_ticket_hold(struct sl_ticket *ticket);
void sl_ticket_let_go(struct sl_ticket *ticket);

/* ---- news --------------------------------------------------------------------------------------
 */

enum sl_news_kind {
    SL_NEWS_PIECE,  /* a token, or text that had been held back */
    SL_NEWS_FINISH, /* a text has ended */
    SL_NEWS_END,    /* all of them have: `usage` */
    SL_NEWS_FAILED, /* nothing more comes: `status`, and why in `text` */
};

struct sl_news {
    enum sl_news_kind kind;
    uint32_t choice_index;
    bool has_token; /* a token was made: one more for the usage */
    bool has_logprobs;
    struct sl_generated token; /* if has_token; without has_logprobs only its id */
    enum sl_finish finish;
    const char *stop_string; /* the generation's */
    struct sl_usage usage;
    int status;
    const char *text; /* (length) valid as long as the list that it was read from */
    size_t length;
};

/* Adds news; for the engine's thread. Returns false where the queue has become so long that the
 * texts are to be held. */
bool sl_ticket_tell(struct sl_ticket *ticket, const struct sl_news *news);

/* Takes all news there is, in exchange for the list *news, which is emptied before. If that is
 * out_of_memory then, some is missing. Returns whether the texts had been held: then the worker is
 * to be told that there is room (sl_worker_notice()). */
bool sl_ticket_take(struct sl_ticket *ticket, struct sl_bytes *news);

/* Reads the next piece of news from a list; returns false at its end. *at begins at 0. */
bool sl_news_next(const struct sl_bytes *list, size_t *at, struct sl_news *ret_news);

#endif
