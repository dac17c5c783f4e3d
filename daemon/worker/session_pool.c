#include "daemon/worker/session_pool.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/model/kv_paging.h"
#include "daemon/engine/paging_gain.h"

/* It is worth waiting for a session that will know so many tokens more than any does now. */
#define WORTH_WAITING_TOKENS 64u

/* An image is worth reading if it spares so many tokens. */
#define WORTH_LOADING_TOKENS 64u

static struct sl_kept_session *kept_of(const struct sl_link *link)
{
    return sl_list_item(link, struct sl_kept_session, link);
}

void sl_session_pool_init(struct sl_session_pool *pool, struct sl_kv_pool *kv_pool,
                          uint32_t context_tokens)
{
    *pool = (struct sl_session_pool){
        .kv_pool = kv_pool, .context_tokens = context_tokens, .piece_pages = SL_KV_WRITE_PAGES_MAX};
    sl_list_init(&pool->sessions);
}

static void destroy(struct sl_session_pool *pool, struct sl_kept_session *kept)
{
    sl_assert(!kept->user);
    if (pool->going_out == kept)
        pool->going_out = NULL;
    pool->n_idle--;
    sl_list_remove(&kept->link);
    sl_session_destroy(kept->session);
    free(kept);
}

void sl_session_pool_fini(struct sl_session_pool *pool)
{
    if (!pool->kv_pool)
        return;
    while (!sl_list_is_empty(&pool->sessions))
        destroy(pool, kept_of(pool->sessions.next));
    pool->kv_pool = NULL;
}

/* ---- memory ------------------------------------------------------------------------------------
 */

/* Nobody uses it, and it has images to be kept. */
static bool is_to_be_kept(const struct sl_kept_session *kept)
{
    return !kept->user && (kept->n_unsaved > 0 || kept->lacks_mark);
}

/* Ends the idle session that was not used for the longest time, but not `spared`, and none that has
 * images to be kept. Returns false if there is none. */
static bool evict(struct sl_session_pool *pool, const struct sl_kept_session *spared)
{
    for (struct sl_link *at = pool->sessions.next; at != &pool->sessions; at = at->next) {
        struct sl_kept_session *kept = kept_of(at);

        if (kept->user || kept == spared || is_to_be_kept(kept))
            continue;
        destroy(pool, kept);
        return true;
    }
    return false;
}

static bool awaits_images(struct sl_session_pool *pool, const struct sl_kept_session *spared)
{
    for (const struct sl_link *at = pool->sessions.next; at != &pool->sessions; at = at->next)
        pool->is_short |= kept_of(at) != spared && is_to_be_kept(kept_of(at));
    return pool->is_short;
}

bool sl_session_awaits_images(struct sl_session_pool *pool)
{
    return awaits_images(pool, NULL);
}

/* Whether there will be more memory without anybody's doing: when a text ends, or when an idle
 * session's images have been kept. */
static bool will_have_room(struct sl_session_pool *pool, const struct sl_kept_session *spared)
{
    return awaits_images(pool, spared) || pool->n_used > 0;
}

bool sl_session_give_up(struct sl_session_pool *pool)
{
    return evict(pool, NULL);
}

void sl_session_mark_is_saved(struct sl_kept_session *kept, uint32_t i)
{
    if (i == 0)
        kept->saving = (struct sl_image_saving){0};
    kept->n_unsaved--;
    memmove(&kept->unsaved[i], &kept->unsaved[i + 1],
            (kept->n_unsaved - i) * sizeof(kept->unsaved[0]));
}

/* An image of it that was to be kept is not. */
static void drop_mark(struct sl_kept_session *kept, struct sl_mark *mark)
{
    for (uint32_t i = 0; i < kept->n_unsaved; i++)
        if (kept->unsaved[i] == mark)
            sl_session_mark_is_saved(kept, i);
    sl_session_drop_mark(kept->session, mark);
}

bool sl_session_give_up_mark(struct sl_session_pool *pool)
{
    for (struct sl_link *at = pool->sessions.next; at != &pool->sessions; at = at->next) {
        struct sl_kept_session *kept = kept_of(at);
        struct sl_mark *mark =
            kept->kv->in_step ? NULL : sl_session_find_mark(kept->session, kept->kv->n_tokens);

        if (!mark)
            continue;
        drop_mark(kept, mark);
        return true;
    }
    return false;
}

static uint64_t need(const struct sl_kept_session *kept, uint32_t n_tokens)
{
    return kept->kv->n_tokens < n_tokens ? sl_kv_cache_need(kept->kv, n_tokens) : 0;
}

static uint64_t page_out_bytes(const struct sl_kept_session *kept)
{
    return kept->may_page && !kept->kv->in_step ? sl_kv_cache_page_out_bytes(kept->kv) : 0;
}

/* One after the other: pages go to disk from the first layer on, and of sessions that are there in
 * part a step would have to hold more of one layer at a time. */
static struct sl_kept_session *next_to_go_out(const struct sl_session_pool *pool)
{
    struct sl_kept_session *best = pool->going_out;
    uint64_t most = best ? page_out_bytes(best) : 0;

    if (most > 0)
        return best;
    best = NULL;
    for (struct sl_link *at = pool->sessions.next; at != &pool->sessions; at = at->next) {
        const uint64_t bytes = page_out_bytes(kept_of(at));

        if (bytes > most) {
            most = bytes;
            best = kept_of(at);
        }
    }
    return best;
}

bool sl_session_page_out(struct sl_session_pool *pool)
{
    if (!pool->kv_pool->pager)
        return false;
    pool->going_out = next_to_go_out(pool);
    return pool->going_out &&
           sl_kv_cache_page_out(pool->going_out->kv, pool->piece_pages, &pool->failure) > 0;
}

/* Bytes that a session takes on its way to n_tokens, with the marks of a prompt. Of one that is
 * paged out on the way, what a step adds is in memory, and its part of the page window. */
static uint64_t way(const struct sl_session_pool *pool, const struct sl_kept_session *kept,
                    uint32_t n_tokens, bool with_marks)
{
    const struct sl_kv_layout *layout = &pool->kv_pool->layout;
    const uint64_t mark_bytes = with_marks ? SL_PROMPT_MARKS * sl_kv_mark_measure(layout) : 0;
    const uint32_t first =
        kept->load_tokens > kept->kv->n_tokens ? kept->load_tokens : kept->kv->n_tokens;

    if (!kept->may_page)
        return need(kept, n_tokens) + sl_kv_cache_page_in_bytes(kept->kv) + mark_bytes;
    if (!pool->is_paging)
        return need(kept, n_tokens) + mark_bytes;
    return need(kept, n_tokens - first < pool->step_tokens ? n_tokens : first + pool->step_tokens) +
           sl_kv_window_share(layout, n_tokens) + mark_bytes;
}

/* Bytes that those who use sessions will still take, up to their targets. */
static uint64_t promised_bytes(const struct sl_session_pool *pool)
{
    uint64_t bytes = 0;

    for (const struct sl_link *at = pool->sessions.next; at != &pool->sessions; at = at->next)
        if (kept_of(at)->user)
            bytes += way(pool, kept_of(at), kept_of(at)->target_tokens, kept_of(at)->next_mark > 0);
    return bytes;
}

/* Makes room for a session that is to grow to its target beside the others, with pages on disk
 * where that is to be: of these a piece, and *has_moved is set. */
static bool find_room(struct sl_session_pool *pool, const struct sl_kept_session *kept,
                      uint32_t target_tokens, bool with_pages, bool *has_moved)
{
    const bool was_paging = pool->is_paging;
    uint64_t needed;

    pool->is_paging |= with_pages;
    needed = way(pool, kept, target_tokens, true) + promised_bytes(pool);
    while (sl_kv_pool_left_bytes(pool->kv_pool) < needed && evict(pool, kept))
        ;
    if (sl_kv_pool_left_bytes(pool->kv_pool) < needed && pool->is_paging)
        *has_moved = sl_session_page_out(pool);
    if (sl_kv_pool_left_bytes(pool->kv_pool) >= needed)
        return true;
    pool->is_paging = was_paging || *has_moved;
    return false;
}

/* Whether pages on disk are worth it, so that one more session finds room. */
static bool should_page(const struct sl_session_pool *pool, const struct sl_kept_session *kept)
{
    return kept->may_page && pool->kv_pool->pager &&
           (pool->n_used == 0 || sl_paging_pays(pool->sweep_bytes, pool->kv_pool->budget_bytes));
}

/* A session that is to grow to its target has to find room beside the others; alone it may try with
 * what there is, if that holds at least its prompt. */
static int check_room(struct sl_session_pool *pool, struct sl_kept_session *kept, uint32_t n_tokens,
                      uint32_t target_tokens, struct sl_err *err)
{
    bool has_moved = false;

    pool->is_paging &= pool->n_used > 0;
    if (find_room(pool, kept, target_tokens, false, &has_moved) ||
        (!has_moved && should_page(pool, kept) &&
         find_room(pool, kept, target_tokens, true, &has_moved)))
        return 0;
    pool->is_moving |= has_moved;
    if (has_moved || will_have_room(pool, kept))
        return -EBUSY;
    return sl_kv_pool_check(pool->kv_pool, need(kept, n_tokens + 1), "the prompt", err);
}

/* ---- finding -----------------------------------------------------------------------------------
 */

struct candidate {
    struct sl_kept_session *kept; /* NULL: none knows anything */
    struct sl_mark *mark;         /* NULL: it is at its end there */
    uint32_t n_known;
};

static uint32_t common(const int32_t *a, uint32_t n_a, const int32_t *b, uint32_t n_b)
{
    uint32_t n = 0;

    while (n < n_a && n < n_b && a[n] == b[n])
        n++;
    return n;
}

/* Looks at what a session knows of the prompt. It can be gone on with at its end, unless somebody
 * else does that, and forked off at a mark. */
static void consider(struct candidate *best, struct sl_kept_session *kept, const int32_t *tokens,
                     uint32_t n_max)
{
    const uint32_t n_common = sl_session_common_prefix(kept->session, tokens, n_max);
    struct candidate candidate = {.kept = kept, .n_known = kept->kv->n_tokens};

    if (candidate.n_known > n_common || (kept->user && !kept->is_ending)) {
        candidate.mark = sl_session_find_mark(kept->session, n_common);
        candidate.n_known = candidate.mark ? sl_mark_token_count(candidate.mark) : 0;
    }
    if (candidate.n_known > best->n_known)
        *best = candidate;
}

/* Tokens of the prompt that the session will know when it has its next mark. */
static uint32_t will_know(const struct sl_kept_session *kept, const int32_t *tokens, uint32_t n_max)
{
    if (!kept->user || kept->next_mark == 0 || kept->next_mark > n_max)
        return 0;
    return common(kept->tokens, kept->n_tokens, tokens, n_max) >= kept->next_mark ? kept->next_mark
                                                                                  : 0;
}

/* Finds the session that knows most; returns false where one will soon know much more, also than
 * what is stored, or is just reading that. */
static bool find(const struct sl_session_pool *pool, const int32_t *tokens, uint32_t n_tokens,
                 uint32_t n_stored, struct candidate *best)
{
    uint32_t soon = 0, n_now;
    bool is_loading = false;

    *best = (struct candidate){.kept = NULL};
    for (const struct sl_link *at = pool->sessions.next; at != &pool->sessions; at = at->next) {
        struct sl_kept_session *kept = kept_of(at);
        const uint32_t will = will_know(kept, tokens, n_tokens - 1);

        if (!kept->kv->in_step)
            consider(best, kept, tokens, n_tokens - 1);
        /* One that is ending does not get there any more when it gives way. */
        if (will > soon && (kept->kv->in_step || !kept->is_ending))
            soon = will;
        is_loading |= kept->load_tokens > 0 && will > 0 && will >= n_stored;
    }
    n_now = best->n_known > n_stored ? best->n_known : n_stored;
    return soon < n_now + WORTH_WAITING_TOKENS && !(is_loading && n_stored >= n_now);
}

/* ---- getting -----------------------------------------------------------------------------------
 */

static int begin(struct sl_session_pool *pool, const struct candidate *from,
                 struct sl_kept_session **ret_kept, struct sl_err *err)
{
    struct sl_kept_session *kept = calloc(1, sizeof(*kept));
    int rc;

    if (!kept)
        return sl_err_set(err, -ENOMEM, "session: out of memory");
    do {
        if (from->kept)
            rc = sl_session_fork(&kept->session, from->kept->session, from->mark,
                                 pool->context_tokens, err);
        else
            rc = sl_session_create(&kept->session, pool->kv_pool, pool->context_tokens, err);
    } while (rc == -SL_EBUDGET && evict(pool, from->kept));
    if (rc < 0) {
        free(kept);
        return rc == -SL_EBUDGET && will_have_room(pool, from->kept) ? -EBUSY : rc;
    }
    kept->kv = sl_session_kv(kept->session);
    sl_list_append(&pool->sessions, &kept->link);
    pool->n_idle++;
    if (from->kept)
        sl_session_keep_mark(kept); /* its parent may go */
    *ret_kept = kept;
    return 0;
}

/* Brings a piece of a session's pages from disk: whoever is no batch does not wait for them in each
 * step, but where this fails. Then a step may do better. */
static int come_in(struct sl_session_pool *pool, struct sl_kept_session *kept)
{
    if (sl_kv_cache_page_in_bytes(kept->kv) == 0 ||
        sl_kv_cache_page_in(kept->kv, pool->piece_pages, &pool->failure) < 0)
        return 0;
    if (sl_kv_cache_page_in_bytes(kept->kv) == 0)
        return 0;
    pool->is_moving = true;
    return -EBUSY;
}

int sl_session_get(struct sl_session_pool *pool, const int32_t *tokens, uint32_t n_tokens,
                   uint32_t n_stored, uint32_t target_tokens, bool may_page,
                   struct sl_kept_session **ret_kept, struct sl_text **ret_gives_way,
                   struct sl_err *err)
{
    struct sl_kept_session *kept;
    struct candidate best;
    bool is_to_load;
    int rc = 0;

    if (!find(pool, tokens, n_tokens, n_stored, &best))
        return -EBUSY;
    is_to_load = n_stored >= best.n_known + WORTH_LOADING_TOKENS;
    if (is_to_load)
        best = (struct candidate){.kept = NULL};
    kept = best.kept;
    if (kept && !best.mark && kept->user) {
        *ret_gives_way = kept->user;
        return 1;
    }
    if (!kept || best.mark)
        rc = begin(pool, &best, &kept, err);
    if (rc == 0) {
        kept->may_page = may_page;
        kept->load_tokens = is_to_load ? n_stored : 0;
        rc = check_room(pool, kept, n_tokens, target_tokens, err);
    }
    if (rc == 0 && !may_page)
        rc = come_in(pool, kept);
    if (rc < 0) { /* a session that knows something stays, idle */
        if (kept)
            kept->load_tokens = 0;
        if (kept && kept->kv->n_tokens == 0)
            destroy(pool, kept);
        return rc;
    }
    sl_list_remove(&kept->link);
    sl_list_append(&pool->sessions, &kept->link);
    kept->lacks_mark = false;
    pool->n_idle--;
    pool->n_used++;
    *ret_kept = kept;
    return 0;
}

void sl_session_put(struct sl_session_pool *pool, struct sl_kept_session *kept)
{
    sl_assert(kept->user && !kept->kv->in_step);
    kept->user = NULL;
    kept->is_ending = false;
    kept->tokens = NULL;
    kept->next_mark = 0;
    sl_assert(kept->load_tokens == 0 && !kept->has_pin);
    pool->n_used--;
    pool->n_idle++;
    if (kept->kv->n_tokens == 0)
        destroy(pool, kept);
    while (pool->n_idle > SL_SESSIONS_IDLE_MAX && evict(pool, NULL))
        ;
}

static bool is_unsaved(const struct sl_kept_session *kept, const struct sl_mark *mark)
{
    for (uint32_t i = 0; i < kept->n_unsaved; i++)
        if (kept->unsaved[i] == mark)
            return true;
    return false;
}

/* The first mark, which mostly stands behind what many conversations begin with, and the latest
 * ones are worth most; of the others, one whose image is kept goes before one whose image is not
 * yet. */
struct sl_mark *sl_session_keep_mark(struct sl_kept_session *kept)
{
    struct sl_mark *marks[SL_SESSION_MARKS_MAX + 2];
    uint32_t n = 0, at = kept->kv->n_tokens, goes;
    struct sl_mark *mark, *kept_mark;

    if (sl_session_mark(kept->session, &kept_mark, NULL) < 0)
        return NULL;
    while (n < SL_SESSION_MARKS_MAX + 2 && (mark = sl_session_find_mark(kept->session, at))) {
        marks[n++] = mark;
        at = sl_mark_token_count(mark);
        if (at-- == 0)
            break;
    }
    if (n <= SL_SESSION_MARKS_MAX)
        return kept_mark;
    goes = n - 2;
    while (goes > 1 && is_unsaved(kept, marks[goes]))
        goes--;
    drop_mark(kept, marks[goes > 1 ? goes : n - 2]);
    return kept_mark;
}
