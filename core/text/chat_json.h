/* JSON as the chat format prints it: like Python's json.dumps(value, ensure_ascii=False).
 *
 * The model was trained on prompts that were made so, and any other spacing or number format gives
 * other tokens. Separators are ", " and ": "; keys keep their order; strings escape only quotes,
 * backslashes and control characters; numbers with a point or an exponent are the shortest digits
 * that give the same double. Integers beyond 64 bits do not get here: jansson refuses them. */
#ifndef SL_TEXT_CHAT_JSON_H
#define SL_TEXT_CHAT_JSON_H

#include <stdbool.h>

#include "core/base/json.h"

/* Appends bytes to whatever `sink` is. */
typedef void sl_chat_put_fn(void *sink, const char *bytes, size_t length);

void sl_chat_json_print(const json_t *value, sl_chat_put_fn *put, void *sink);

/* One string with its quotes. */
void sl_chat_json_print_string(const char *text, size_t length, sl_chat_put_fn *put, void *sink);

#endif
