/* Progress, rate and time left: one line redrawn on a terminal, a plain line every ten seconds
 * otherwise. */
#ifndef SL_TOOLS_PROGRESS_H
#define SL_TOOLS_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct sl_progress {
    const char *what;
    const char *unit; /* "tokens"; NULL for bytes */
    FILE *out;
    uint64_t start_ns;
    uint64_t shown_ns;
    bool terminal;
};

struct sl_progress sl_progress_start(FILE *out, const char *what, const char *unit);

/* An sl_progress_fn; `context` is the struct sl_progress. */
void sl_progress_show(void *context, uint64_t done, uint64_t total);

/* Clears the line. */
void sl_progress_end(struct sl_progress *progress);

#endif
