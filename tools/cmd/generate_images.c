#include "tools/cmd/generate_images.h"

int sl_generate_images_begin(struct sl_generate_images *images, struct sl_engine *engine,
                             struct sl_session *session, const struct sl_prompt *prompt,
                             struct sl_err *err)
{
    int rc;

    *images = (struct sl_generate_images){.engine = engine, .session = session};
    if (!sl_engine_images(engine))
        return 0;
    rc = sl_engine_resume(engine, session, prompt->tokens, prompt->n_tokens - 1, &images->resumed,
                          err);
    if (rc < 0)
        return rc;
    if (images->resumed.n_tokens > 0)
        sl_images_pin(sl_engine_images(engine), images->resumed.prefix);
    images->n_kept = images->resumed.n_tokens;
    images->n_stops = sl_image_places(images->resumed.n_tokens, images->resumed.n_shared,
                                      prompt->n_tokens, images->stops);
    return 0;
}

uint32_t sl_generate_images_stop(const struct sl_generate_images *images)
{
    const uint32_t n_seen = sl_session_token_count(images->session);

    for (uint32_t i = 0; i < images->n_stops; i++)
        if (images->stops[i] > n_seen)
            return images->stops[i];
    return 0;
}

void sl_generate_images_step(struct sl_generate_images *images)
{
    const uint32_t n_seen = sl_session_token_count(images->session);
    bool is_due = n_seen >= images->n_kept + sl_engine_image_every(images->engine);

    if (!sl_engine_images(images->engine))
        return;
    for (uint32_t i = 0; i < images->n_stops; i++)
        is_due |= images->stops[i] == n_seen && n_seen > images->n_kept;
    if (is_due && sl_engine_save_image(images->engine, images->session))
        images->n_kept = n_seen;
}

bool sl_generate_images_end(struct sl_generate_images *images)
{
    bool is_kept;

    if (!sl_engine_images(images->engine))
        return false;
    is_kept = sl_engine_save_image(images->engine, images->session);
    if (images->resumed.n_tokens > 0)
        sl_images_unpin(sl_engine_images(images->engine), images->resumed.prefix);
    return is_kept;
}
