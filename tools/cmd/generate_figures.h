/* The figures of `sluice generate`: for people, and as the file of --stats. */
#ifndef SL_TOOLS_CMD_GENERATE_FIGURES_H
#define SL_TOOLS_CMD_GENERATE_FIGURES_H

#include "core/base/json.h"
#include "tools/cmd/generate_text.h"
#include "tools/cli/output_file.h"

/* Prints the figures on standard error. `options` is what the engine was opened with. */
void sl_generate_print_figures(const struct sl_generate_text *text,
                               const struct sl_engine_options *options);

/* Writes the figures to `out`, which stays open. `arguments` is the command line, a list of
 * strings. */
void sl_generate_write_stats(const struct sl_generate_text *text,
                             const struct sl_engine_options *options, json_t *arguments,
                             struct sl_output_file *out);

#endif
