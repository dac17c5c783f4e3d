/* JSON, read with jansson; the one place that includes its header.
 *
 * Config, safetensors headers, tokenizers and line files are all JSON from disk. These helpers add
 * what every reader needs: a bound on the file's size, one-line errors that name file and key, and
 * checked conversion. For walking objects and arrays use jansson's own calls. */
#ifndef SL_BASE_JSON_H
#define SL_BASE_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/err.h"

/* The bytes of the UTF-8 byte order mark that some editors begin a file with: 3, or 0 where text
 * does not begin with one. */
size_t sl_json_mark_bytes(const char *text, size_t length);

/* Parses `length` bytes; `where` names them in errors. A byte order mark before the value is passed
 * over; duplicate keys and text after the value are refused. On success the caller owns *ret_root
 * (json_decref). Fails with -SL_EFORMAT, -ENOMEM. */
int sl_json_parse(json_t **ret_root, const char *text, size_t length, const char *where,
                  struct sl_err *err);

/* Reads and parses a file of at most `size_max_bytes`. Also fails with -errno of open and read and
 * with -SL_EFORMAT for a file that is too large. */
int sl_json_read_file(json_t **ret_root, const char *path, uint64_t size_max_bytes,
                      struct sl_err *err);

/* Members of an object. The value must be there and of the type; -SL_EFORMAT names `where` and
 * `key` otherwise. u64 takes integers min..max; f64 takes any finite number. */
int sl_json_get_u64(const json_t *object, const char *key, uint64_t min, uint64_t max,
                    uint64_t *ret_value, const char *where, struct sl_err *err);
int sl_json_get_f64(const json_t *object, const char *key, double *ret_value, const char *where,
                    struct sl_err *err);

/* The text stays with the object. */
int sl_json_get_string(const json_t *object, const char *key, const char **ret_text,
                       const char *where, struct sl_err *err);

#endif
