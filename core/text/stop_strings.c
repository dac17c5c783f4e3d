#include "core/text/stop_strings.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

int sl_stop_strings_add(struct sl_stop_strings *stops, const char *string, struct sl_err *err)
{
    const size_t length = strlen(string);

    if (length == 0)
        return sl_err_set(err, -EINVAL, "a stop string is empty");
    if (length > SL_STOP_STRING_BYTES_MAX)
        return sl_err_set(err, -EINVAL, "a stop string has %zu bytes, at most %u are possible",
                          length, SL_STOP_STRING_BYTES_MAX);
    if (stops->n_strings == SL_STOP_STRINGS_MAX)
        return sl_err_set(err, -EINVAL, "more than %u stop strings", SL_STOP_STRINGS_MAX);
    stops->strings[stops->n_strings++] = string;
    return 0;
}

/* The longest string that what is held ends with; NULL if there is none. */
static const char *find_end(const struct sl_stop_matcher *m, const struct sl_stop_strings *stops)
{
    const char *found = NULL;

    for (uint32_t i = 0; i < stops->n_strings; i++) {
        const char *string = stops->strings[i];
        const size_t length = strlen(string);

        if (length <= m->n_held && memcmp(m->held + m->n_held - length, string, length) == 0 &&
            (!found || length > strlen(found)))
            found = string;
    }
    return found;
}

/* Whether what is held from `at` on is the beginning of a string. */
static bool may_begin(const struct sl_stop_matcher *m, const struct sl_stop_strings *stops,
                      size_t at)
{
    for (uint32_t i = 0; i < stops->n_strings; i++)
        if (strncmp(stops->strings[i], m->held + at, m->n_held - at) == 0)
            return true;
    return false;
}

/* Puts out the first n held bytes. */
static size_t put_out(struct sl_stop_matcher *m, size_t n, char *out)
{
    memcpy(out, m->held, n);
    m->n_held -= n;
    memmove(m->held, m->held + n, m->n_held);
    return n;
}

/* Byte by byte; strings are short and few. Held is always the longest end of the text that a string
 * begins with, so that it is shorter than every string that it may become. */
size_t sl_stop_matcher_push(struct sl_stop_matcher *m, const struct sl_stop_strings *stops,
                            const char *text, size_t length, char *out, const char **ret_found)
{
    size_t n_out = 0;

    *ret_found = NULL;
    for (size_t i = 0; i < length && !*ret_found; i++) {
        size_t at = 0;

        m->held[m->n_held++] = text[i];
        *ret_found = find_end(m, stops);
        if (*ret_found) {
            n_out += put_out(m, m->n_held - strlen(*ret_found), out + n_out);
            m->n_held = 0;
            break;
        }
        while (at < m->n_held && !may_begin(m, stops, at))
            at++;
        n_out += put_out(m, at, out + n_out);
    }
    return n_out;
}

size_t sl_stop_matcher_flush(struct sl_stop_matcher *m, char *out)
{
    return put_out(m, m->n_held, out);
}
