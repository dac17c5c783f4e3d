/* JSON as programs write tables: strings of printable ASCII without escapes, and whole numbers.
 *
 * Headers and indexes of a large checkpoint are tens of megabytes of it, of which jansson makes
 * values by the hundred thousand. What is read with this needs no memory and a tenth of the time.
 * Whoever meets anything else, be it an error or only another way of writing, parses again with
 * jansson, which says what is wrong. No state: any thread may call. */
#ifndef SL_BASE_PLAIN_JSON_H
#define SL_BASE_PLAIN_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The rest of a text. */
struct sl_plain_json {
    const char *at, *end;
};

/* Each but the first passes over white space, and returns whether the next thing is what was asked
 * for; only then is it taken. */
void sl_plain_space(struct sl_plain_json *json);           /* passes over white space alone */
bool sl_plain_mark(struct sl_plain_json *json, char mark); /* such as '{' */
bool sl_plain_string(struct sl_plain_json *json, const char **ret_text, size_t *ret_length);
bool sl_plain_number(struct sl_plain_json *json, uint64_t *ret_number); /* below 10^18 */
bool sl_plain_end(struct sl_plain_json *json);

/* A string that is this word, and a colon. */
bool sl_plain_key(struct sl_plain_json *json, const char *word);

/* An object of strings and numbers alone, which are passed over; no key may come twice. */
bool sl_plain_skip_object(struct sl_plain_json *json);

#endif
