#include "daemon/engine/engine_images.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/assert.h"
#include "core/base/size.h"
#include "core/session/session_bytes.h"
#include "daemon/engine/engine_internal.h"
#include "daemon/engine/image_sizes.h"
#include "storage/experts/model_identity.h"

struct sl_images *sl_engine_images(const struct sl_engine *engine)
{
    return engine->images;
}

/* ---- opening -----------------------------------------------------------------------------------
 */

/* Counts the reads that images give way to: those from the folder's drive. */
static const atomic_uint *reads_ahead(const struct sl_engine *e)
{
    struct stat status;

    return stat(e->options.images, &status) == 0 ? sl_reader_ahead(e->reader, status.st_dev) : NULL;
}

/* A draft's layer that compresses, as no released one does, adds entries to those of an image. */
static bool draft_has_entries(const struct sl_engine *e)
{
    for (uint32_t i = e->config.num_hidden_layers; i < sl_engine_layer_count(e); i++)
        if (e->config.compress_ratios[i] > 0)
            return true;
    return false;
}

int sl_engine_images_open(struct sl_engine *e, struct sl_err *err)
{
    struct sl_images_options options = {
        .folder = e->options.images,
        .bytes_max = e->options.images_bytes_max,
        .owner = {.exact = e->options.numerics == SL_NUMERICS_EXACT,
                  .with_mtp = draft_has_entries(e)},
        .writer = e->options.images_writer ? e->options.images_writer : sl_file_writer_private(),
        .open_io = e->options.io,
        .reader = e->options.reader,
        .on_note = e->options.on_note,
        .note_context = e->options.on_note_context,
    };
    struct sl_image_sizes sizes;
    int rc = sl_model_identity(&e->files, e->options.model, &options.owner.model, err);

    if (rc == 0)
        rc = sl_image_sizes_make(&sizes, &e->config, e->options.numerics, e->draft.n_blocks,
                                 e->options.context_tokens, err);
    if (rc < 0)
        return rc;
    options.entries_bytes_max = sizes.entries_bytes_max;
    options.mark_bytes_max = sizes.mark_bytes_max;
    rc = sl_images_make_folder(&options, err);
    options.n_ahead = rc == 0 ? reads_ahead(e) : NULL;
    if (rc == 0)
        rc = sl_images_open(&e->images, &options, err);
    if (rc == 0)
        rc = sl_arena_reserve(&e->image_ids, sizes.ids_bytes, "ids of images", err);
    if (rc < 0) {
        sl_images_close(e->images);
        e->images = NULL;
    }
    return rc;
}

/* ---- which images ------------------------------------------------------------------------------
 */

/* Steps of the prompt end on such lengths where nothing else says where. */
#define ROUND_TOKENS 128u

uint32_t sl_engine_image_every(const struct sl_engine *e)
{
    return e->options.images_every > 0 ? e->options.images_every : SL_IMAGE_EVERY_TOKENS;
}

uint32_t sl_image_places(uint32_t n_resumed, uint32_t n_shared, uint32_t n_prompt,
                         uint32_t ret_places[SL_IMAGE_PLACES])
{
    uint32_t wanted[SL_IMAGE_PLACES] = {0, 0, n_prompt - 1}, n = 0;

    /* A place that two prompts share is worth a step's end only if it is so much further. */
    if (n_shared >= n_resumed + SL_IMAGE_TAIL_TOKENS)
        wanted[0] = n_shared;
    if (n_prompt >= n_resumed + SL_IMAGE_EVERY_TOKENS)
        wanted[1] = (n_prompt - SL_IMAGE_TAIL_TOKENS) / ROUND_TOKENS * ROUND_TOKENS;
    for (uint32_t i = 0; i < SL_IMAGE_PLACES; i++) {
        uint32_t k = n;

        if (wanted[i] <= n_resumed)
            continue;
        for (; k > 0 && ret_places[k - 1] > wanted[i]; k--)
            ret_places[k] = ret_places[k - 1];
        ret_places[k] = wanted[i];
        n++;
    }
    return n;
}

/* ---- resuming ----------------------------------------------------------------------------------
 */

/* An sl_image_take_fn. */
static int take_content(void *context, const struct sl_image_content *content)
{
    struct sl_image_loading *loading = context;
    const uint32_t first = content->first_token, end = content->end_token;

    if (content->entries_bytes != sl_chunk_bytes(loading->layout, first, end))
        return -SL_ECORRUPT;
    sl_session_import_chunk(loading->session, first, end, content->entries);
    if (!content->mark)
        return 0;
    loading->is_open = false;
    return sl_session_import_end(loading->session, end, content->mark, content->mark_bytes, NULL);
}

struct sl_resumed sl_engine_find_image(struct sl_engine *e, const int32_t *tokens,
                                       uint32_t n_tokens)
{
    const struct sl_images_match match = sl_images_find(e->images, tokens, n_tokens);

    return (struct sl_resumed){match.n_tokens, match.n_shared, match.prefix};
}

static void empty_session(struct sl_image_loading *loading)
{
    if (loading->is_open)
        sl_session_import_abandon(loading->session);
    loading->is_open = false;
}

int sl_engine_resume_begin(struct sl_engine *e, struct sl_session *session, const int32_t *tokens,
                           uint32_t n_tokens, struct sl_err *err)
{
    uint32_t n_found;
    int rc;

    sl_assert(sl_session_token_count(session) == 0);
    sl_images_wait(e->images);
    n_found = sl_images_find(e->images, tokens, n_tokens).n_tokens;
    if (n_found == 0)
        return 0;
    rc = sl_session_import_begin(session, tokens, n_found, err);
    if (rc < 0)
        return rc;
    e->image_loading = (struct sl_image_loading){session, &e->kv_pool.layout, true};
    rc = sl_images_load_begin(e->images, tokens, n_found, take_content, &e->image_loading);
    if (rc < 0) {
        empty_session(&e->image_loading);
        return sl_err_set(err, rc, "images: out of memory");
    }
    return 1;
}

int sl_engine_resume_next(struct sl_engine *e, bool wait)
{
    const int rc = sl_images_load_next(e->images, wait);

    if (rc < 0)
        empty_session(&e->image_loading);
    return rc > 0;
}

void sl_engine_resume_abandon(struct sl_engine *e)
{
    sl_images_load_abandon(e->images);
    empty_session(&e->image_loading);
}

int sl_engine_resume(struct sl_engine *e, struct sl_session *session, const int32_t *tokens,
                     uint32_t n_tokens, struct sl_resumed *ret_resumed, struct sl_err *err)
{
    int rc;

    sl_images_wait(e->images);
    while (*ret_resumed = sl_engine_find_image(e, tokens, n_tokens),
           (rc = sl_engine_resume_begin(e, session, tokens, n_tokens, err)) > 0) {
        while (sl_engine_resume_next(e, true))
            ;
        if (sl_session_token_count(session) > 0)
            return 0;
    }
    return rc;
}

/* ---- saving ------------------------------------------------------------------------------------
 */

static void not_kept(const struct sl_engine *e, struct sl_err *err)
{
    sl_err_prefix(err, err->code, "this image is not kept");
    if (e->options.on_note)
        e->options.on_note(e->options.on_note_context, err->message);
}

int sl_engine_save_piece(struct sl_engine *e, const struct sl_session *session,
                         const struct sl_mark *mark, struct sl_image_saving *saving)
{
    const struct sl_kv_layout *layout = &e->kv_pool.layout;
    const uint32_t n_tokens = sl_mark_token_count(mark);
    int32_t *tokens = (int32_t *)(void *)e->image_ids.base;
    struct sl_images_piece piece = {.tokens = tokens};
    struct sl_err err;
    uint32_t cut;
    int rc;

    if (n_tokens == 0)
        return 0;
    sl_session_tokens(session, 0, n_tokens, tokens);
    piece.first_token = sl_images_base(e->images, tokens, n_tokens, &saving->prefix);
    if (piece.first_token == n_tokens)
        return 0;
    if (piece.first_token < saving->n_tokens)
        return -ENOENT; /* the piece before was not written, which has been noted */
    cut = (piece.first_token / SL_IMAGE_TOKENS + 1) * SL_IMAGE_TOKENS;
    piece.end_token = cut < n_tokens ? cut : n_tokens;
    piece.entries_bytes = sl_chunk_bytes(layout, piece.first_token, piece.end_token);
    piece.mark_bytes = piece.end_token == n_tokens ? sl_mark_bytes(session, mark) : 0;
    rc = sl_images_begin(e->images, &piece);
    if (rc < 0)
        return rc;
    rc = sl_session_export_chunk(session, piece.first_token, piece.end_token, piece.entries, &err);
    if (rc < 0) {
        sl_images_abandon(e->images);
        not_kept(e, &err);
        return rc;
    }
    if (piece.mark_bytes > 0)
        sl_session_export_mark(session, mark, piece.mark);
    sl_images_commit(e->images);
    *saving = (struct sl_image_saving){piece.end_token, piece.prefix};
    return piece.end_token < n_tokens;
}

bool sl_engine_save_image(struct sl_engine *e, struct sl_session *session)
{
    const uint32_t n_tokens = sl_session_token_count(session);
    struct sl_mark *mark = sl_session_find_mark(session, n_tokens);
    const bool had_mark = mark && sl_mark_token_count(mark) == n_tokens;
    struct sl_image_saving saving = {0};
    struct sl_err err;
    int rc;

    if (!had_mark && sl_session_mark(session, &mark, &err) < 0) {
        not_kept(e, &err);
        return false;
    }
    while ((rc = sl_engine_save_piece(e, session, mark, &saving)) > 0)
        ;
    if (!had_mark)
        sl_session_drop_mark(session, mark);
    return rc == 0;
}
