#include "daemon/worker/session_images.h"

#include "core/base/assert.h"
#include "core/base/clock.h"

/* How long nothing is kept after an image could not be. */
#define REST_NS (60 * UINT64_C(1000000000))

void sl_session_images_init(struct sl_session_images *si, struct sl_engine *engine,
                            struct sl_session_pool *pool)
{
    *si = (struct sl_session_images){
        .engine = engine, .images = sl_engine_images(engine), .pool = pool};
}

static bool has_to_load(const struct sl_kept_session *kept)
{
    return kept->load_tokens > 0;
}

static bool has_to_save(const struct sl_kept_session *kept)
{
    return kept->n_unsaved > 0;
}

static bool lacks_mark(const struct sl_kept_session *kept)
{
    return kept->lacks_mark;
}

/* The first session in the pool's order of which that is so. Those that were used the longest time
 * ago come first, so nobody is passed over for ever. */
static struct sl_kept_session *find(const struct sl_session_images *si,
                                    bool (*is_so)(const struct sl_kept_session *kept))
{
    for (const struct sl_link *at = si->pool->sessions.next; at != &si->pool->sessions;
         at = at->next) {
        struct sl_kept_session *kept = sl_list_item(at, struct sl_kept_session, link);

        if (is_so(kept))
            return kept;
    }
    return NULL;
}

/* ---- saving ------------------------------------------------------------------------------------
 */

void sl_session_images_want(struct sl_session_images *si, struct sl_kept_session *kept,
                            struct sl_mark *mark, uint64_t now_ns)
{
    if (!si->images || !mark)
        return;
    kept->n_kept = sl_mark_token_count(mark);
    if (now_ns < si->rest_until_ns)
        return;
    if (kept->n_unsaved > 0 && kept->unsaved[kept->n_unsaved - 1] == mark)
        return;
    sl_assert(kept->n_unsaved < SL_SESSION_MARKS_MAX);
    kept->unsaved[kept->n_unsaved++] = mark;
}

/* Nothing that waits is kept, and nothing else for a while; so all sessions may go. */
static void rest(struct sl_session_images *si, uint64_t now_ns)
{
    struct sl_kept_session *kept;

    si->rest_until_ns = now_ns + REST_NS;
    si->pool->is_short = false;
    while ((kept = find(si, has_to_save))) {
        kept->n_unsaved = 0;
        kept->saving = (struct sl_image_saving){0};
    }
    while ((kept = find(si, lacks_mark)))
        kept->lacks_mark = false;
}

/* Whether an image failed since the last look, also one that had been on its way. */
static bool has_failed(struct sl_session_images *si)
{
    const uint64_t n_failed = sl_images_counters(si->images).n_failed;
    const bool is_new = n_failed > si->n_failed;

    si->n_failed = n_failed;
    return is_new;
}

static void pin(struct sl_session_images *si, struct sl_kept_session *kept, uint64_t prefix)
{
    if (!kept->is_pinning)
        return;
    sl_images_pin(si->images, prefix);
    if (kept->has_pin)
        sl_images_unpin(si->images, kept->pin);
    kept->has_pin = true;
    kept->pin = prefix;
}

/* Copies a piece of the session's next image, which waits for one that is being written. Returns
 * whether that was the image's last one. */
static bool save_piece(struct sl_session_images *si, struct sl_kept_session *kept)
{
    const int rc = sl_engine_save_piece(si->engine, kept->session, kept->unsaved[0], &kept->saving);

    if (rc > 0)
        return false;
    if (rc == 0)
        pin(si, kept, kept->saving.prefix);
    sl_session_mark_is_saved(kept, 0);
    return true;
}

/* Takes the mark that a session lacks, now that all images which others had to keep are kept, and
 * these may go. Where that is not enough, this image is not kept. */
static void mark_end(struct sl_session_images *si, struct sl_kept_session *kept, uint64_t now_ns)
{
    struct sl_mark *mark;

    do
        mark = sl_session_keep_mark(kept);
    while (!mark && sl_session_give_up(si->pool));
    kept->lacks_mark = false;
    sl_session_images_want(si, kept, mark, now_ns);
}

void sl_session_images_flush(struct sl_session_images *si)
{
    struct sl_kept_session *kept;

    if (!si->images)
        return;
    sl_assert(!si->loading);
    while ((kept = find(si, has_to_save)) || (kept = find(si, lacks_mark))) {
        if (kept->n_unsaved > 0)
            save_piece(si, kept);
        else
            mark_end(si, kept, sl_clock_ns());
        if (has_failed(si))
            rest(si, sl_clock_ns());
    }
    sl_images_wait(si->images);
}

/* ---- loading -----------------------------------------------------------------------------------
 */

void sl_session_images_release(struct sl_session_images *si, struct sl_kept_session *kept)
{
    if (si->loading == kept) {
        sl_engine_resume_abandon(si->engine);
        si->loading = NULL;
    }
    kept->load_tokens = 0;
    if (kept->has_pin)
        sl_images_unpin(si->images, kept->pin);
    kept->has_pin = kept->is_pinning = false;
}

/* Begins with a session that is to be loaded, or goes on with it. Returns 1 where there is more to
 * do; else the session stands where its images end, or is empty. */
static int load(struct sl_session_images *si, struct sl_kept_session *kept, bool wait)
{
    int rc;

    if (!si->loading) {
        rc = sl_engine_resume_begin(si->engine, kept->session, kept->tokens, kept->n_tokens - 1,
                                    NULL);
        if (rc <= 0) /* gone since, or there is no memory: it is computed */
            return 0;
        si->loading = kept;
    }
    if (sl_engine_resume_next(si->engine, wait) > 0)
        return 1;
    si->loading = NULL;
    return sl_session_token_count(kept->session) == 0; /* again, with what is left of them */
}

static void has_loaded(struct sl_session_images *si, struct sl_kept_session *kept)
{
    const uint32_t n_tokens = sl_session_token_count(kept->session);

    kept->load_tokens = 0;
    kept->n_kept = n_tokens;
    if (n_tokens == 0)
        return;
    sl_session_keep_mark(kept);
    if (kept->is_pinning)
        pin(si, kept, sl_engine_find_image(si->engine, kept->tokens, n_tokens).prefix);
}

/* ---- both --------------------------------------------------------------------------------------
 */

bool sl_session_images_are_due(struct sl_session_images *si)
{
    return si->images && (find(si, has_to_load) || find(si, has_to_save) || find(si, lacks_mark) ||
                          sl_images_is_busy(si->images));
}

static struct sl_kept_session *work(struct sl_session_images *si, bool wait, uint64_t now_ns,
                                    bool *ret_changed)
{
    struct sl_kept_session *kept = si->loading ? si->loading : find(si, has_to_load);
    const bool is_busy = sl_images_is_busy(si->images);

    if (has_failed(si)) {
        rest(si, now_ns);
        *ret_changed = true;
    }
    /* Whoever waits for a load, or for memory, waits for the image that is being written. */
    if (is_busy && (kept || si->pool->is_short))
        sl_images_hurry(si->images);
    if (is_busy)
        return NULL;
    if (kept) {
        if (load(si, kept, wait) > 0)
            return NULL;
        has_loaded(si, kept);
        *ret_changed = true;
        return kept;
    }
    if ((kept = find(si, has_to_save))) {
        *ret_changed |= save_piece(si, kept);
    } else if ((kept = find(si, lacks_mark))) {
        mark_end(si, kept, now_ns);
        *ret_changed |= kept->n_unsaved == 0;
    }
    si->pool->is_short &= !*ret_changed;
    return NULL;
}

struct sl_kept_session *sl_session_images_tick(struct sl_session_images *si, bool wait,
                                               uint64_t now_ns, bool *ret_changed)
{
    struct sl_kept_session *loaded;
    uint64_t elapsed_ns;

    *ret_changed = false;
    if (!si->images)
        return NULL;
    loaded = work(si, wait, now_ns, ret_changed);
    elapsed_ns = sl_clock_ns() - now_ns;
    si->busy_ns += elapsed_ns;
    if (!wait && elapsed_ns > si->longest_ns)
        si->longest_ns = elapsed_ns;
    return loaded;
}
