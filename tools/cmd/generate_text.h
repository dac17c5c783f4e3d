/* The texts of `sluice generate`, one after the other: each is made by steps of its own, shown as
 * it comes, and timed. Ctrl-C ends a text early (tools/cli/interrupt.h), which is no error. */
#ifndef SL_TOOLS_CMD_GENERATE_TEXT_H
#define SL_TOOLS_CMD_GENERATE_TEXT_H

#include <stdint.h>

#include "daemon/engine/engine.h"
#include "daemon/engine/generation.h"
#include "daemon/engine/shared_step.h"
#include "tools/cli/progress.h"
#include "tools/cli/prompt.h"
#include "tools/cmd/generate_images.h"
#include "tools/cmd/generate_output.h"

/* Sums over all texts so far. */
struct sl_generate_totals {
    uint32_t n_texts;
    uint64_t n_prompt_tokens;  /* that went into the model, */
    uint64_t n_resumed_tokens; /* and those that images had */
    uint64_t resume_ns;
    uint64_t n_new_tokens;
    uint64_t n_decoded; /* new tokens but the first of each text, which its prompt's pass gives */
    uint64_t prefill_ns, decode_ns;
    uint64_t n_verifications, n_drafts,
        n_drafts_right;                            /* steps with guesses, these, the right ones */
    uint64_t n_decode_requests, decode_read_bytes; /* experts, while tokens were made */
};

/* State of the command's texts; zeroed before its first use. */
struct sl_generate_text {
    struct sl_generation_options options;
    struct sl_generation *generation; /* after check() */
    struct sl_generate_output *output;
    struct sl_engine *engine; /* after open(), and below */
    struct sl_session *session;
    struct sl_generate_images images;
    struct sl_shared_step *step;
    struct sl_generate_totals totals;
    struct sl_text_progress progress;
};

/* Finds all mistakes in the options, which are copied, before there is an engine. `output` is
 * borrowed. Fails with -EINVAL or -ENOMEM. The caller calls fini() in any case, and closes the
 * engine after it. */
int sl_generate_text_check(struct sl_generate_text *text,
                           const struct sl_generation_options *options,
                           struct sl_generate_output *output, const struct sl_config *config,
                           struct sl_err *err);
int sl_generate_text_open(struct sl_generate_text *text, struct sl_engine *engine,
                          struct sl_err *err);
void sl_generate_text_fini(struct sl_generate_text *text);

/* Makes one text and shows it. Fails as steps do, as sl_generate_output_show() does, or with
 * -SL_ECORRUPT where the logits allow no choice. */
int sl_generate_text_run(struct sl_generate_text *text, const struct sl_prompt *prompt,
                         uint64_t seed, struct sl_err *err);

#endif
