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

int sl_engine_images_open(struct sl_engine *e, struct sl_err *err)
{
    struct sl_images_options options = {
        .folder = e->options.images,
        .bytes_max = e->options.images_bytes_max,
        .owner = {.exact = e->options.numerics == SL_NUMERICS_EXACT,
                  .with_mtp = e->options.draft != SL_DRAFT_NONE},
        .writer = sl_file_writer_private(),
        .open_io = e->options.io,
        .reader = e->options.reader,
        .on_note = e->options.on_note,
        .note_context = e->options.on_note_context,
    };
    struct sl_kv_layout layout;
    int rc = sl_model_identity(&e->files, e->options.model, &options.owner.model, err);

    if (rc == 0)
        rc = sl_kv_layout_init(&layout, &e->config, sl_engine_layer_count(e), e->options.numerics,
                               err);
    if (rc < 0)
        return rc;
    options.entries_bytes_max = sl_image_entries_max(&layout);
    options.mark_bytes_max = sl_mark_bytes_max(&layout);
    sl_kv_layout_fini(&layout);
    rc = sl_images_make_folder(&options, err);
    options.n_ahead = rc == 0 ? reads_ahead(e) : NULL;
    if (rc == 0)
        rc = sl_images_open(&e->images, &options, err);
    return rc < 0 ? rc
                  : sl_arena_reserve(&e->image_ids, sl_image_ids_bytes(e->options.context_tokens),
                                     "ids of images", err);
}

/* ---- loading -----------------------------------------------------------------------------------
 */

struct loading {
    struct sl_session *session;
    const struct sl_kv_layout *layout;
    bool is_open; /* the session is between import_begin() and its end */
};

/* An sl_image_take_fn. */
static int take_content(void *context, const struct sl_image_content *content)
{
    struct loading *loading = context;
    const uint32_t first = content->first_token, end = content->end_token;

    if (content->entries_bytes != sl_chunk_bytes(loading->layout, first, end))
        return -SL_ECORRUPT;
    sl_session_import_chunk(loading->session, first, end, content->entries);
    if (!content->mark)
        return 0;
    loading->is_open = false;
    return sl_session_import_end(loading->session, end, content->mark, content->mark_bytes, NULL);
}

int sl_engine_resume(struct sl_engine *e, struct sl_session *session, const int32_t *tokens,
                     uint32_t n_tokens, struct sl_resumed *ret_resumed, struct sl_err *err)
{
    struct loading loading = {session, &e->kv_pool.layout, false};
    struct sl_images_match match;

    sl_assert(sl_session_token_count(session) == 0);
    do {
        int rc;

        match = sl_images_find(e->images, tokens, n_tokens);
        if (match.n_tokens == 0)
            break;
        rc = sl_session_import_begin(session, tokens, match.n_tokens, err);
        if (rc < 0)
            return rc;
        loading.is_open = true;
        rc = sl_images_load(e->images, tokens, match.n_tokens, take_content, &loading);
        if (rc < 0 && loading.is_open)
            sl_session_import_abandon(session);
        if (rc == -ENOMEM)
            return sl_err_set(err, rc, "images: out of memory");
    } while (sl_session_token_count(session) == 0);
    *ret_resumed = (struct sl_resumed){match.n_tokens, match.n_shared, match.prefix};
    return 0;
}

/* ---- saving ------------------------------------------------------------------------------------
 */

static void note(const struct sl_engine *e, const struct sl_err *err)
{
    if (e->options.on_note)
        e->options.on_note(e->options.on_note_context, err->message);
}

/* Copies one piece, and its mark if a sequence is to begin there. */
static int save_piece(struct sl_engine *e, const struct sl_session *session,
                      const struct sl_mark *mark, struct sl_images_piece *piece)
{
    const struct sl_kv_layout *layout = &e->kv_pool.layout;
    int rc;

    piece->entries_bytes = sl_chunk_bytes(layout, piece->first_token, piece->end_token);
    piece->mark_bytes = mark ? sl_mark_bytes(session, mark) : 0;
    rc = sl_images_begin(e->images, piece);
    if (rc < 0)
        return rc;
    sl_session_export_chunk(session, piece->first_token, piece->end_token, piece->entries);
    if (mark)
        sl_session_export_mark(session, mark, piece->mark);
    sl_images_commit(e->images);
    return 0;
}

bool sl_engine_save_image(struct sl_engine *e, struct sl_session *session)
{
    const uint32_t n_tokens = sl_session_token_count(session);
    int32_t *tokens = (int32_t *)(void *)e->image_ids.base;
    struct sl_images_piece piece = {.tokens = tokens};
    bool had_mark;
    struct sl_mark *mark;
    struct sl_err err;
    int rc = 0;

    if (n_tokens == 0)
        return true;
    sl_session_tokens(session, 0, n_tokens, tokens);
    piece.first_token = sl_images_base(e->images, tokens, n_tokens);
    if (piece.first_token == n_tokens)
        return true;
    mark = sl_session_find_mark(session, n_tokens);
    had_mark = mark && sl_mark_token_count(mark) == n_tokens;
    if (!had_mark && sl_session_mark(session, &mark, &err) < 0) {
        sl_err_prefix(&err, err.code, "this image is not kept");
        note(e, &err);
        return false;
    }
    while (rc == 0 && piece.first_token < n_tokens) {
        const uint32_t cut = (piece.first_token / SL_IMAGE_TOKENS + 1) * SL_IMAGE_TOKENS;

        piece.end_token = cut < n_tokens ? cut : n_tokens;
        rc = save_piece(e, session, piece.end_token == n_tokens ? mark : NULL, &piece);
        piece.first_token = piece.end_token;
    }
    if (!had_mark)
        sl_session_drop_mark(session, mark);
    return rc == 0;
}
