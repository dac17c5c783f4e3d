/* Images of the worker's sessions: what the session pool holds is kept on disk as well, and what it
 * has given up comes back from there.
 *
 *     a mark was taken ──want()──► waits ──tick()──► pieces are copied, and written meanwhile
 *     a prompt has an image ──► its session has load_tokens ──tick()──► images are taken, one
 *                                                                       a call
 *
 * All of it happens between two layers: a call of tick() copies SL_IMAGE_TOKENS tokens and a mark
 * at most, or takes one image. Somebody who waits for a load goes before images that wait to be
 * written; a load and a write do not go on at the same time, since they share memory.
 *
 * Where an image cannot be kept, which the engine notes, nothing is kept for a while: a full disk
 * is told once a minute. Belongs to the engine's thread. */
#ifndef SL_DAEMON_WORKER_SESSION_IMAGES_H
#define SL_DAEMON_WORKER_SESSION_IMAGES_H

#include "daemon/engine/engine_images.h"
#include "daemon/worker/session_pool.h"

struct sl_session_images {
    struct sl_engine *engine;
    struct sl_images *images; /* NULL: the engine keeps none, and all calls do nothing */
    struct sl_session_pool *pool;
    struct sl_kept_session *loading; /* NULL: none is */
    uint64_t n_failed;               /* of the folder's counters, as seen last */
    uint64_t rest_until_ns;          /* nothing is kept before that */
    uint64_t busy_ns;                /* that calls of tick() took: all together, */
    uint64_t longest_ns;             /* and the longest of them while others had something to do */
};

/* The pool outlives it. */
void sl_session_images_init(struct sl_session_images *si, struct sl_engine *engine,
                            struct sl_session_pool *pool);

/* An image of the session at this mark of its own is wanted. */
void sl_session_images_want(struct sl_session_images *si, struct sl_kept_session *kept,
                            struct sl_mark *mark, uint64_t now_ns);

/* The session's user is done with it: loading it ends, its pin goes. */
void sl_session_images_release(struct sl_session_images *si, struct sl_kept_session *kept);

/* Goes on with what there is to do; with `wait`, waits for an image that is being read. Returns a
 * session that has been loaded, as far as its images were good, or NULL. *ret_changed is set where
 * others may find now what they had waited for. */
struct sl_kept_session *sl_session_images_tick(struct sl_session_images *si, bool wait,
                                               uint64_t now_ns, bool *ret_changed);

/* Whether tick() is to be called again, though nothing else happens. */
bool sl_session_images_are_due(struct sl_session_images *si);

/* Waits until all is on disk, when nobody uses a session any more. */
void sl_session_images_flush(struct sl_session_images *si);

#endif
