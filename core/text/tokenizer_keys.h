/* The table of all keys that a tokenizer.json may have, and how this engine treats each:
 * tokenizer_file.c's part that knows keys by name rather than by value. */
#ifndef SL_TEXT_TOKENIZER_KEYS_H
#define SL_TEXT_TOKENIZER_KEYS_H

#include <stddef.h>

#include "core/base/err.h"
#include "core/base/json.h"

/* Holds every key of `root`, an object, against tables of keys. Fails with -SL_EUNSUPPORTED for a
 * value that gives other ids than this engine's, naming key, value and what is run; also
 * -SL_EFORMAT and -ENOMEM. `unknown` takes a list of the keys that are not known; "" if none. */
int sl_tokenizer_check_keys(const json_t *root, char *unknown, size_t unknown_bytes,
                            const char *where, struct sl_err *err);

#endif
