#include "tools/cmd/generate_images.h"

#include "core/base/size.h"

/* Steps of the prompt end on such lengths where nothing else says where. */
#define ROUND_TOKENS 128u

/* An image for what two prompts share is worth a step's end only if it is so much further. */
#define SHARED_TOKENS_MIN SL_IMAGES_TAIL_TOKENS

static void choose_stops(struct sl_generate_images *images, uint32_t n_prompt)
{
    const uint32_t n_resumed = images->resumed.n_tokens, n_shared = images->resumed.n_shared;

    if (n_shared >= n_resumed + SHARED_TOKENS_MIN)
        images->stops[0] = n_shared;
    if (n_prompt >= n_resumed + SL_IMAGES_EVERY_TOKENS)
        images->stops[1] = (n_prompt - SL_IMAGES_TAIL_TOKENS) / ROUND_TOKENS * ROUND_TOKENS;
    images->stops[2] = n_prompt - 1;
}

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
    choose_stops(images, prompt->n_tokens);
    return 0;
}

uint32_t sl_generate_images_stop(const struct sl_generate_images *images)
{
    const uint32_t n_seen = sl_session_token_count(images->session);
    uint32_t next = 0;

    for (uint32_t i = 0; i < SL_ARRAY_LEN(images->stops); i++)
        if (images->stops[i] > n_seen && (next == 0 || images->stops[i] < next))
            next = images->stops[i];
    return next;
}

void sl_generate_images_step(struct sl_generate_images *images)
{
    const uint32_t n_seen = sl_session_token_count(images->session);
    bool is_due = n_seen >= images->n_kept + SL_IMAGES_EVERY_TOKENS;

    if (!sl_engine_images(images->engine))
        return;
    for (uint32_t i = 0; i < SL_ARRAY_LEN(images->stops); i++)
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
