/* Errors as values.
 *
 * A function that can fail returns an int: 0 or more is good, negative is -errno or one of the
 * codes below, negated. Functions at a module's boundary also take `struct sl_err *` as their last
 * parameter (NULL is allowed) and fill it with one line for a person: which file, tensor or key,
 * what was found, what was expected. Callers hand the code up unchanged. Libraries neither print
 * nor exit. */
#ifndef SL_BASE_ERR_H
#define SL_BASE_ERR_H

#include <stdarg.h>

/* Beyond every errno, so that both share one return value. */
enum sl_error_code {
    SL_ECORRUPT = 10000, /* data on disk is not what its own description says */
    SL_EFORMAT,          /* a file or text that we cannot make sense of */
    SL_EBUDGET,          /* does not fit in the memory or context that was granted */
    SL_EUNSUPPORTED,     /* well-formed, but of a kind that this build cannot run */
};

#define SL_ERR_MESSAGE_BYTES 1024

struct sl_err {
    int code; /* as returned: negative, or 0 if nothing was reported */
    char message[SL_ERR_MESSAGE_BYTES];
};

/* Fills *err, if not NULL, and returns `code`, which is negative. */
int sl_err_set(struct sl_err *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " in front of the message that *err already holds; returns err's code, or `code`
 * if err is NULL. For a caller that knows more than the callee did (which layer, which drive). */
int sl_err_prefix(struct sl_err *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* A code's meaning, for messages that end in "...: <cause>". Never NULL. `code` may have either
 * sign. Thread-safe. */
const char *sl_strerror(int code);

#endif
