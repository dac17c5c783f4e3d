#include "tools/cmd/generate_text.h"

#include <errno.h>
#include <stdio.h>

#include "core/base/clock.h"
#include "tools/cli/interrupt.h"

int sl_generate_text_check(struct sl_generate_text *text,
                           const struct sl_generation_options *options,
                           struct sl_generate_output *output, const struct sl_config *config,
                           struct sl_err *err)
{
    text->options = *options;
    text->output = output;
    return sl_generation_create(&text->generation, options, output->tok, config->vocab_size, err);
}

int sl_generate_text_open(struct sl_generate_text *text, struct sl_engine *engine,
                          struct sl_err *err)
{
    int rc = sl_session_create(&text->session, sl_engine_kv_pool(engine),
                               text->options.rules.context_tokens, err);

    text->engine = engine;
    return rc < 0 ? rc : sl_shared_step_create(&text->step, engine, SL_STEP_LARGE, err);
}

void sl_generate_text_fini(struct sl_generate_text *text)
{
    sl_shared_step_destroy(text->step);
    sl_session_destroy(text->session);
    sl_generation_destroy(text->generation);
}

/* Takes a step. Fails with -ECANCELED where a signal came. */
static int step(struct sl_generate_text *text, struct sl_err *err)
{
    const struct sl_step_request hooks = {.stop = sl_interrupt_stop(),
                                          .on_route = sl_text_progress_route,
                                          .on_route_context = &text->progress};

    int rc;

    sl_generation_end_step_at(text->generation, sl_generate_images_stop(&text->images));
    rc = sl_shared_step_run(text->step, &text->generation, 1, &hooks, err);
    if (rc == 0)
        sl_generate_images_step(&text->images);
    return rc;
}

static int show(struct sl_generate_text *text, struct sl_err *err)
{
    struct sl_generate_totals *totals = &text->totals;
    int rc = 0;

    totals->n_verifications += sl_generation_drafts_tried(text->generation) > 0;
    totals->n_drafts += sl_generation_drafts_tried(text->generation);
    totals->n_drafts_right += sl_generation_drafts_right(text->generation);
    for (uint32_t i = 0; rc == 0 && i < sl_generation_output_count(text->generation); i++) {
        const struct sl_generation_output output = sl_generation_output(text->generation, i);

        rc = sl_generate_output_show(text->output, &output, err);
    }
    return rc;
}

/* Takes the prompt in, up to the first new token, which its last step gives. */
static int prefill(struct sl_generate_text *text, const struct sl_prompt *prompt,
                   struct sl_err *err)
{
    struct sl_text_progress *progress = &text->progress;
    const uint32_t n_resumed = text->images.resumed.n_tokens;
    uint32_t n_done = n_resumed;
    int rc = 0;

    *progress =
        (struct sl_text_progress){sl_progress_start(stderr, "prompt", "tokens"), prompt->n_tokens,
                                  n_resumed, sl_engine_config(text->engine)->num_hidden_layers};
    sl_progress_skip(&progress->progress, n_resumed);
    while (rc == 0 && n_done < prompt->n_tokens) {
        rc = step(text, err);
        n_done = n_resumed + sl_generation_prompt_count(text->generation);
    }
    sl_progress_end(&progress->progress);
    progress->n_tokens = 0; /* decoding needs no progress, since its text is shown */
    text->totals.n_prompt_tokens += n_done - n_resumed;
    text->totals.n_resumed_tokens += n_resumed;
    text->totals.prefill_ns += sl_clock_ns() - progress->progress.start_ns;
    return rc;
}

/* Makes tokens from the second one to the end. */
static int decode(struct sl_generate_text *text, struct sl_err *err)
{
    const struct sl_expert_cache_counters before = sl_engine_counters(text->engine);
    const uint64_t start_ns = sl_clock_ns();
    struct sl_expert_cache_counters after;
    int rc = show(text, err);

    while (rc == 0 && sl_generation_finish(text->generation) == SL_FINISH_NONE) {
        rc = step(text, err);
        if (rc == 0)
            rc = show(text, err);
    }
    after = sl_engine_counters(text->engine);
    text->totals.n_decode_requests += after.n_requests - before.n_requests;
    text->totals.decode_read_bytes += after.read_bytes - before.read_bytes;
    text->totals.decode_ns += sl_clock_ns() - start_ns;
    return rc;
}

/* Ends the text's images, and says how to go on with a prompt that is not through. */
static void keep(struct sl_generate_text *text, const struct sl_prompt *prompt)
{
    const bool is_kept = sl_generate_images_end(&text->images);
    const uint32_t n_seen = sl_session_token_count(text->session);

    if (is_kept && n_seen > 0 && n_seen < prompt->n_tokens)
        fprintf(stderr,
                "prompt: %u of %u tokens are done and kept; the same command goes on from there\n",
                n_seen, prompt->n_tokens);
}

int sl_generate_text_run(struct sl_generate_text *text, const struct sl_prompt *prompt,
                         uint64_t seed, struct sl_err *err)
{
    const uint64_t start_ns = sl_clock_ns();
    uint32_t n_new, n_resumed;
    int rc;

    sl_session_rewind(text->session, NULL);
    rc = sl_generate_images_begin(&text->images, text->engine, text->session, prompt, err);
    if (rc < 0)
        return rc;
    n_resumed = text->images.resumed.n_tokens;
    text->totals.resume_ns += sl_clock_ns() - start_ns;
    sl_generation_begin(text->generation, sl_session_kv(text->session), prompt->tokens + n_resumed,
                        prompt->n_tokens - n_resumed, seed);
    rc = prefill(text, prompt, err);
    if (rc == 0)
        rc = decode(text, err);
    if (rc == -ECANCELED) {
        sl_generation_cancel(text->generation);
        rc = show(text, err);
    }
    keep(text, prompt);
    n_new = sl_generation_token_count(text->generation);
    text->totals.n_texts++;
    text->totals.n_new_tokens += n_new;
    text->totals.n_decoded += n_new > 0 ? n_new - 1 : 0;
    return rc;
}
