/* Command lines: the options that all commands share, and how numbers in options are read.
 *
 * If the text is not valid for the option, every sl_parse_...() ends the program with status 2 and
 * a line that names the option. */
#ifndef SL_TOOLS_CLI_COMMAND_LINE_H
#define SL_TOOLS_CLI_COMMAND_LINE_H

#include <argp.h>
#include <stdint.h>

#include "core/base/err.h"

/* Calls argp_parse() with the options that all commands have added: --help and -h, --version and
 * -V. `input` is that of `argp`. */
void sl_command_parse(const struct argp *argp, int argc, char **argv, void *input);

/* Returns the exit status of a command that ends with `rc`. If it failed, prints why. */
int sl_command_status(int rc, const struct sl_err *err);

/* Parses a whole number from 1 to `max`. */
uint32_t sl_parse_count(struct argp_state *state, const char *option, const char *text,
                        uint32_t max);

/* Parses a whole number of 64 bits. */
uint64_t sl_parse_seed(struct argp_state *state, const char *option, const char *text);

/* Parses a decimal number from `min` to `max`. */
double sl_parse_real(struct argp_state *state, const char *option, const char *text, double min,
                     double max);

/* Parses a number of seconds above 0, of at most an hour. */
double sl_parse_seconds(struct argp_state *state, const char *option, const char *text);

/* Parses a size of at least a byte, such as "512M". */
uint64_t sl_parse_size(struct argp_state *state, const char *option, const char *text);

/* Returns MODEL's folder: `text`, or the snapshot in it where that is a folder of Hugging Face's
 * cache. Where there are several the program ends with status 1 and a line that names them. */
const char *sl_parse_model(const char *text);

/* A word that an option takes, and its value. */
struct sl_word {
    const char *name; /* NULL ends the list */
    int value;
};
int sl_parse_word(struct argp_state *state, const char *option, const char *text,
                  const struct sl_word *words);

#endif
