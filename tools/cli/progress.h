/* Progress, rate and time left: one line redrawn on a terminal, cut to its width; a plain line
 * every ten seconds where the terminal knows no escapes, or where it is not one. */
#ifndef SL_TOOLS_CLI_PROGRESS_H
#define SL_TOOLS_CLI_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "tools/cli/work_rate.h"

#define SL_PROGRESS_NOTE_BYTES 48

struct sl_progress {
    const char *what;
    const char *unit; /* "tokens"; NULL for bytes */
    FILE *out;
    uint64_t start_ns;
    uint64_t shown_ns;
    bool redrawn; /* rather than line after line */
    struct sl_work_rate rate;
    char note[SL_PROGRESS_NOTE_BYTES]; /* the caller's, at the end of the line */
};

/* `what` is ASCII, and so must be `note`. The time left assumes that later tokens cost more than
 * earlier ones, while other work has an even cost. */
struct sl_progress sl_progress_start(FILE *out, const char *what, const char *unit);

/* So much was done before the work began: it counts in what is shown, not in the rate. */
void sl_progress_skip(struct sl_progress *progress, uint64_t done);

/* On a terminal, shows at once what is begun, before the first of it is done. */
void sl_progress_announce(const struct sl_progress *progress);

/* An sl_progress_fn; `context` is the struct sl_progress. */
void sl_progress_show(void *context, uint64_t done, uint64_t total);

/* Shows a line of the caller's instead, where one is due. */
bool sl_progress_is_due(const struct sl_progress *progress);
void sl_progress_show_line(struct sl_progress *progress, const char *line);

/* Progress of a text, layer by layer, because one step may take minutes. A zeroed one shows
 * nothing. */
struct sl_text_progress {
    struct sl_progress progress;
    uint64_t n_tokens; /* in all */
    uint64_t n_done;   /* through all layers; counted here */
    uint32_t n_layers;
};

/* An sl_route_fn (core/model/forward.h); `context` is the struct sl_text_progress. */
void sl_text_progress_route(void *context, uint32_t layer_index, uint32_t n_tokens,
                            const uint16_t *experts);

/* Clears the line. */
void sl_progress_end(struct sl_progress *progress);

#endif
