/* The session pool: what conversations left behind, kept for those who go on with them.
 *
 * A new prompt begins with the session that has seen the longest beginning of it, so that this need
 * not be computed again: where that session is at its end, it goes on; where it has gone further, a
 * fork does, from the last mark before they part. Sessions that nobody uses stay as long as there
 * is memory for KV caches; the one that was not used for the longest time goes first. One that has
 * images to be kept (daemon/worker/session_images.h) stays until they are.
 *
 * Belongs to the engine's thread. */
#ifndef SL_DAEMON_WORKER_SESSION_POOL_H
#define SL_DAEMON_WORKER_SESSION_POOL_H

#include "core/base/list.h"
#include "daemon/engine/engine_images.h"

/* Sessions that nobody uses, and marks of each session; the oldest marks but the first go. */
#define SL_SESSIONS_IDLE_MAX 256u
#define SL_SESSION_MARKS_MAX 6u

/* Marks of a prompt that memory is kept for: where its first turn begins, where another text parts
 * from it, and before its last token. Others are taken where there is room. */
#define SL_PROMPT_MARKS 3u

struct sl_text;

struct sl_kept_session {
    struct sl_link link;
    struct sl_session *session;
    struct sl_kv_cache *kv; /* the session's */

    /* While a text uses it. */
    struct sl_text *user;  /* NULL: nobody does */
    bool is_ending;        /* nobody reads that text any more, so it gives way to others */
    const int32_t *tokens; /* (n_tokens) of the user's prompt */
    uint32_t n_tokens;
    uint32_t next_mark;     /* tokens before the next mark that will be taken; 0: none will */
    uint32_t target_tokens; /* memory is kept for so many */
    bool may_page;          /* its pages may go to disk: it is of a batch */
    uint32_t load_tokens;   /* it is empty, and is to be brought so far by images; 0: it is not */
    bool is_pinning;        /* its images are pinned, the latest of them: */
    bool has_pin;
    uint64_t pin;

    uint32_t n_kept; /* tokens before the latest mark that images were wanted of */
    struct sl_mark *unsaved[SL_SESSION_MARKS_MAX]; /* (n_unsaved) of them, images are to be kept */
    uint32_t n_unsaved;
    struct sl_image_saving saving; /* of the first one */
    bool lacks_mark; /* nobody uses it, and there was no memory for the mark of its last image */
};

struct sl_session_pool {
    struct sl_kv_pool *kv_pool;
    struct sl_link sessions; /* those used last at the end */
    uint32_t n_idle, n_used;
    uint32_t context_tokens;
    uint32_t step_tokens;  /* most of one step */
    uint64_t sweep_bytes;  /* see sl_engine_sweep_bytes() */
    bool is_paging;        /* memory is kept for sessions of batches as for those on disk */
    struct sl_err failure; /* of the latest page that could not be put there; code 0: none */
    bool is_short;         /* somebody waits for memory of sessions whose images are to be kept */
    uint32_t piece_pages;  /* that go to disk, or come, before others have a layer */
    bool is_moving;        /* there is more to do; its owner resets it, and tries again */
    struct sl_kept_session *going_out; /* whose they are; NULL: nobody's */
};

void sl_session_pool_init(struct sl_session_pool *pool, struct sl_kv_pool *kv_pool,
                          uint32_t context_tokens);

/* Destroys all sessions; before the engine closes. A zeroed pool is allowed. */
void sl_session_pool_fini(struct sl_session_pool *pool);

/* Puts a piece, piece_pages at most, of a session to disk that is of a batch and that no step has:
 * of the one that has most of them, until all of its are there. Returns false if there is none, or
 * it failed, which `failure` tells. */
bool sl_session_page_out(struct sl_session_pool *pool);

/* Gets a session for a prompt: *ret_kept, which has seen the first so many of its tokens, fewer
 * than all, and for which there is memory up to target_tokens, as far as can be told. Of n_stored
 * tokens there is an image: where no session knows nearly as much, an empty one with load_tokens
 * comes. With may_page its pages may go to disk, and do where memory would not suffice and more
 * documents at once pay (daemon/engine/paging_gain.h); a single one always may. The caller sets the
 * fields of its user.
 *
 * Returns -EBUSY where it is better to wait until something has changed: for memory, or for a
 * session that takes in the same prompt and will soon have a mark there; or, with is_moving, until
 * others have had a layer. Returns 1 where the text
 * *ret_gives_way has to end first, so that its session can be used. Fails with -SL_EBUDGET where
 * there will never be memory enough, or with -ENOMEM. */
int sl_session_get(struct sl_session_pool *pool, const int32_t *tokens, uint32_t n_tokens,
                   uint32_t n_stored, uint32_t target_tokens, bool may_page,
                   struct sl_kept_session **ret_kept, struct sl_text **ret_gives_way,
                   struct sl_err *err);

/* Whether idle sessions have images to be kept, so that there will be memory when they are. From
 * now on they hurry. */
bool sl_session_awaits_images(struct sl_session_pool *pool);

/* Gives a session back; no step has it. */
void sl_session_put(struct sl_session_pool *pool, struct sl_kept_session *kept);

/* Takes a mark where the session is, or returns the one that is there. Where there is no memory for
 * it, there is none: NULL. */
struct sl_mark *sl_session_keep_mark(struct sl_kept_session *kept);

/* Forgets that an image of unsaved[i] is to be kept. */
void sl_session_mark_is_saved(struct sl_kept_session *kept, uint32_t i);

/* Gives up what is worth least: a session that nobody uses and that may go; a mark of one that is
 * in use. Return false if there is none. */
bool sl_session_give_up(struct sl_session_pool *pool);
bool sl_session_give_up_mark(struct sl_session_pool *pool);

#endif
