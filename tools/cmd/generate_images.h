/* The images of `sluice generate --images`: where the texts of a run take them and keep them.
 *
 * A text begins at the longest stored prefix of its prompt. Images are kept at the places of
 * sl_image_places(), after every sl_engine_image_every() tokens of the text, and at its end, also
 * where Ctrl-C or an error ends it. */
#ifndef SL_TOOLS_CMD_GENERATE_IMAGES_H
#define SL_TOOLS_CMD_GENERATE_IMAGES_H

#include "daemon/engine/engine_images.h"
#include "tools/cli/prompt.h"

/* The state of one text's images. With an engine that keeps no images, all calls do nothing. */
struct sl_generate_images {
    struct sl_engine *engine;
    struct sl_session *session;
    struct sl_resumed resumed;
    uint32_t stops[SL_IMAGE_PLACES]; /* (n_stops) lengths at which steps of the prompt end */
    uint32_t n_stops;
    uint32_t n_kept; /* length of the session at the latest image */
};

/* Begins a text with an empty session, which is brought to the longest stored prefix; n_tokens of
 * `images->resumed` says how long that is. Fails as sl_engine_resume(). */
int sl_generate_images_begin(struct sl_generate_images *images, struct sl_engine *engine,
                             struct sl_session *session, const struct sl_prompt *prompt,
                             struct sl_err *err);

/* Returns the length of the session at which the next step must end; 0: anywhere. */
uint32_t sl_generate_images_stop(const struct sl_generate_images *images);

/* After a step: keeps an image where one is due. */
void sl_generate_images_step(struct sl_generate_images *images);

/* Ends the text. Returns whether the session as it is is kept. */
bool sl_generate_images_end(struct sl_generate_images *images);

#endif
