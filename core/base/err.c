#include "core/base/err.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/base/assert.h"

/* Messages quote what files hold; one message stays one line. */
static void blank_control_characters(char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            *text = '?';
}

int sl_err_set(struct sl_err *err, int code, const char *format, ...)
{
    va_list args;

    sl_assert(code < 0);
    if (!err)
        return code;
    err->code = code;
    va_start(args, format);
    vsnprintf(err->message, sizeof(err->message), format, args);
    va_end(args);
    blank_control_characters(err->message);
    return code;
}

int sl_err_prefix(struct sl_err *err, int code, const char *format, ...)
{
    char rest[SL_ERR_MESSAGE_BYTES];
    va_list args;
    int length;

    sl_assert(code < 0);
    if (!err)
        return code;
    memcpy(rest, err->message, sizeof(rest));
    va_start(args, format);
    length = vsnprintf(err->message, sizeof(err->message), format, args);
    va_end(args);
    if (length >= 0 && (size_t)length + 3 < sizeof(err->message))
        snprintf(err->message + length, sizeof(err->message) - (size_t)length, ": %.*s",
                 (int)(sizeof(err->message) - (size_t)length - 3), rest);
    err->code = code;
    return code;
}

const char *sl_strerror(int code)
{
    switch (code < 0 ? -code : code) {
    case SL_ECORRUPT:
        return "data is corrupt";
    case SL_EFORMAT:
        return "not in the expected format";
    case SL_EBUDGET:
        return "does not fit in the memory granted";
    case SL_EUNSUPPORTED:
        return "not supported";
    case EMFILE:
        return "too many open files for this process (see ulimit -Hn)";
    case EFBIG:
        return "too large for the file system, or for the files this process may write (see "
               "ulimit -f)";
    default: {
        const char *text = strerrordesc_np(code < 0 ? -code : code);

        return text ? text : "unknown error";
    }
    }
}
