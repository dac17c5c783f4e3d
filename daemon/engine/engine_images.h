/* Images of an engine's sessions: what texts left in the KV cache, kept on disk.
 *
 *     sl_engine_resume() ──► steps ──► sl_engine_save_image() ──► steps ──► ...
 *
 * Between steps only, by the engine's thread. Saving costs it a copy of what the session holds
 * beyond its longest stored prefix; a thread of its own writes that (storage/images/images.h). */
#ifndef SL_DAEMON_ENGINE_ENGINE_IMAGES_H
#define SL_DAEMON_ENGINE_ENGINE_IMAGES_H

#include <stdint.h>

#include "core/session/session.h"
#include "daemon/engine/engine.h"
#include "storage/images/images.h"

/* Returns the images; NULL if the engine's options name no folder. */
struct sl_images *sl_engine_images(const struct sl_engine *engine);

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

/* Keeps an image of the session as it is. Returns whether it is stored already or on its way; if
 * not, the reason has been noted. */
bool sl_engine_save_image(struct sl_engine *engine, struct sl_session *session);

#endif
