/* Command lines: what all commands have in common, and how numbers on them are read.
 *
 * Every sl_parse_...() ends the program with status 2 and a line that names the option where
 * the text is not what it takes. */
#ifndef SL_TOOLS_CLI_COMMAND_LINE_H
#define SL_TOOLS_CLI_COMMAND_LINE_H

#include <argp.h>
#include <stdint.h>

#include "core/base/err.h"

/* argp_parse() with the options that all commands have: --help and -h, --version and -V. `input` is
 * that of `argp`. */
void sl_command_parse(const struct argp *argp, int argc, char **argv, void *input);

/* The exit status of a command that ends with `rc`. Prints why it failed, if it did. */
int sl_command_status(int rc, const struct sl_err *err);

/* A whole number from 1 to `max`. */
uint32_t sl_parse_count(struct argp_state *state, const char *option, const char *text,
                        uint32_t max);

/* A whole number of 64 bits. */
uint64_t sl_parse_seed(struct argp_state *state, const char *option, const char *text);

/* A decimal number from `min` to `max`. */
double sl_parse_real(struct argp_state *state, const char *option, const char *text, double min,
                     double max);

/* A number above 0, of at most an hour. */
double sl_parse_seconds(struct argp_state *state, const char *option, const char *text);

/* A size of at least a byte: "512M". */
uint64_t sl_parse_size(struct argp_state *state, const char *option, const char *text);

/* A word of a few, and what it stands for. Gives the value. */
struct sl_word {
    const char *name; /* NULL ends the list */
    int value;
};
int sl_parse_word(struct argp_state *state, const char *option, const char *text,
                  const struct sl_word *words);

#endif
