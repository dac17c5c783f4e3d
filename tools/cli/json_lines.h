/* Reads files with one JSON value a line, and prints such lines. */
#ifndef SL_TOOLS_CLI_JSON_LINES_H
#define SL_TOOLS_CLI_JSON_LINES_H

#include "core/base/json.h"

typedef int sl_json_line_fn(void *context, const json_t *value, struct sl_err *err);

/* Calls `fn` for the value of each line of `path` ("-": standard input) until one fails; an error
 * names file and line. A byte order mark before the first line is passed over. Lines of more than
 * SL_JSON_LINE_BYTES_MAX fail. */
#define SL_JSON_LINE_BYTES_MAX (UINT64_C(1) << 30)
int sl_json_lines_each(const char *path, sl_json_line_fn *fn, void *context, struct sl_err *err);

/* Gives the text of a line that is a string, or an object with a string as its "text", or under
 * `other_key` if that is not NULL. The text belongs to the value and may hold zero bytes. Fails
 * with -SL_EFORMAT. */
int sl_json_line_text(const json_t *value, const char *other_key, const char **ret_text,
                      size_t *ret_length, struct sl_err *err);

/* Prints an object, which it frees, as a line of standard output. NULL prints nothing. */
void sl_json_line_print(json_t *object);

#endif
