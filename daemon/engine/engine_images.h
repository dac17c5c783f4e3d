/* Images of an engine's sessions: what texts left in the KV cache, kept on disk.
 *
 *     sl_engine_resume() ──► steps ──► sl_engine_save_image() ──► steps ──► ...
 *
 * By the engine's thread, while no step has the session. Saving costs it a copy of what the session
 * holds beyond its longest stored prefix; a thread of its own writes that
 * (storage/images/images.h). Who has others to serve meanwhile does both piece by piece. */
#ifndef SL_DAEMON_ENGINE_ENGINE_IMAGES_H
#define SL_DAEMON_ENGINE_ENGINE_IMAGES_H

#include <stdint.h>

#include "core/session/session.h"
#include "daemon/engine/engine.h"
#include "storage/images/images.h"

/* Returns the images; NULL if the engine's options name no folder. */
struct sl_images *sl_engine_images(const struct sl_engine *engine);

/* ---- which images ------------------------------------------------------------------------------
 */

/* A long prompt, or text, gets an image after the step that brings it so many tokens further: what
 * a kill can cost at most, beside that step. Returns what the engine's options say. */
#define SL_IMAGE_EVERY_TOKENS 8192u
uint32_t sl_engine_image_every(const struct sl_engine *engine);

/* Another question about the same document differs from a prompt that is longer than
 * SL_IMAGE_EVERY_TOKENS in its last tokens. */
#define SL_IMAGE_TAIL_TOKENS 512u

/* Places in a prompt of n_prompt tokens, ascending and behind n_resumed, where steps should end for
 * an image: where it leaves what another stored sequence has too, before the tail of a long prompt,
 * and before its last token, so that the same prompt needs one step when it is asked again. Returns
 * how many there are. */
#define SL_IMAGE_PLACES 3u
uint32_t sl_image_places(uint32_t n_resumed, uint32_t n_shared, uint32_t n_prompt,
                         uint32_t ret_places[SL_IMAGE_PLACES]);

/* ---- resuming ----------------------------------------------------------------------------------
 */

struct sl_resumed {
    uint32_t n_tokens; /* that the session has seen now */
    uint32_t n_shared; /* other sequences begin with so many: an image there would serve both */
    uint64_t prefix;   /* name of the image, for pins; where n_tokens is not 0 */
};

/* Brings an empty session to the longest stored prefix of the tokens, of n_tokens at most; none may
 * be. Where there is one, it gives the same logits as a session that was never stored. Fails with
 * -SL_EBUDGET or -ENOMEM where the session cannot grow so far; damage of images is no failure. The
 * session is empty then. */
int sl_engine_resume(struct sl_engine *engine, struct sl_session *session, const int32_t *tokens,
                     uint32_t n_tokens, struct sl_resumed *ret_resumed, struct sl_err *err);

/* Tells what sl_engine_resume() would find. */
struct sl_resumed sl_engine_find_image(struct sl_engine *engine, const int32_t *tokens,
                                       uint32_t n_tokens);

/* Resuming in pieces goes on with one session at a time: begin(), then next() as long as it returns
 * 1; each call takes one image at most, and with `wait` not set none that has not landed yet.
 * begin() returns 0 where there is nothing to load. At the end, with 0, the session stands where
 * the images end, or is empty where they were bad: then begin() tells what is left of them. Before
 * that, the session belongs to the engine, the tokens are borrowed, and no image can be saved;
 * abandon() leaves the session empty. begin() waits for an image that is being written, and fails
 * as resume(). */
int sl_engine_resume_begin(struct sl_engine *engine, struct sl_session *session,
                           const int32_t *tokens, uint32_t n_tokens, struct sl_err *err);
int sl_engine_resume_next(struct sl_engine *engine, bool wait);
void sl_engine_resume_abandon(struct sl_engine *engine);

/* ---- saving ------------------------------------------------------------------------------------
 */

/* Keeps an image of the session as it is. Returns whether it is stored already or on its way; if
 * not, the reason has been noted. */
bool sl_engine_save_image(struct sl_engine *engine, struct sl_session *session);

/* How far an image is that is saved in pieces; zeroed before the first one. */
struct sl_image_saving {
    uint32_t n_tokens; /* on their way */
    uint64_t prefix;   /* the image's name, for pins, when all are */
};

/* Keeps the next piece of an image of the session as it was at a mark: copies SL_IMAGE_TOKENS
 * tokens at most, and the mark with the last of them. A step that stands still may have the
 * session. Waits for an image that is being written: sl_images_is_busy() tells. Returns 1 if there
 * is more to do, and 0 if all is stored or on its way. Fails where it is not kept, which has been
 * noted. */
int sl_engine_save_piece(struct sl_engine *engine, const struct sl_session *session,
                         const struct sl_mark *mark, struct sl_image_saving *saving);

#endif
