/* Lines from a person, with editing and a history, or from a pipe. */
#ifndef SL_TOOLS_CHAT_LINE_INPUT_H
#define SL_TOOLS_CHAT_LINE_INPUT_H

#include <stdbool.h>
#include <stddef.h>

#include "core/base/bytes.h"
#include "core/base/err.h"

struct sl_line_input;

/* The history is kept in `history_path`, with mode 0600; NULL: nowhere. Lines are edited only where
 * both standard input and output are terminals. Fails with -ENOMEM. */
int sl_line_input_create(struct sl_line_input **ret_input, const char *history_path,
                         struct sl_err *err);
void sl_line_input_destroy(struct sl_line_input *input); /* NULL is allowed */

/* Returns whether lines come from a terminal. */
bool sl_line_input_is_terminal(const struct sl_line_input *input);

/* Reads a message into *ret_text, without the last newline: a line, or several where a line ends in
 * a backslash, or where a line of three quotes begins what the next such line ends. Returns 1, 0 at
 * the end of the input, -EINTR after Ctrl-C, or -ENOMEM. */
int sl_line_input_read(struct sl_line_input *input, struct sl_bytes *ret_text, struct sl_err *err);

#endif
