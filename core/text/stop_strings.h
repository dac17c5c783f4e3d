/* Stop strings: where a text ends because a given string has come.
 *
 * Text arrives in pieces, as tokens are made, and a stop string may begin in one and end in
 * another. So what could be the beginning of one is held back until it is known not to be. The text
 * handed out ends before the stop string. Of several the one that is complete first counts, of
 * those the longest.
 *
 * Belongs to one thread at a time. Nothing allocates. */
#ifndef SL_TEXT_STOP_STRINGS_H
#define SL_TEXT_STOP_STRINGS_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/err.h"

#define SL_STOP_STRINGS_MAX 16u
#define SL_STOP_STRING_BYTES_MAX 256u

/* Zeroed is empty. */
struct sl_stop_strings {
    const char *strings[SL_STOP_STRINGS_MAX]; /* borrowed */
    uint32_t n_strings;
};

/* Fails with -EINVAL for an empty or too long string, or one too many. */
int sl_stop_strings_add(struct sl_stop_strings *stops, const char *string, struct sl_err *err);

/* The end of a text that is held back. Zeroed is the beginning of a text. */
struct sl_stop_matcher {
    char held[SL_STOP_STRING_BYTES_MAX];
    size_t n_held;
};

/* Takes the next `length` bytes. Puts what can be shown now into `out`, which has room for
 * SL_STOP_STRING_BYTES_MAX more than `length`, and returns its length. When a stop string is
 * complete, *ret_found is set to it, all text before it has been put out, and the matcher is at the
 * beginning of another text; else *ret_found is NULL. */
size_t sl_stop_matcher_push(struct sl_stop_matcher *matcher, const struct sl_stop_strings *stops,
                            const char *text, size_t length, char *out, const char **ret_found);

/* The text has ended otherwise: puts out what was held back, at most SL_STOP_STRING_BYTES_MAX. */
size_t sl_stop_matcher_flush(struct sl_stop_matcher *matcher, char *out);

#endif
