#include "tools/cli/json_lines.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/size.h"

#define FIRST_CAPACITY_BYTES (UINT64_C(1) << 20)

/* Lines are handed out from the buffer; what follows them moves to its start when more is read. */
struct lines {
    int fd;
    char *buffer;
    size_t capacity, start, end; /* of the buffer, and of what has not been handed out */
    bool at_end;                 /* of the file */
};

static int read_more(struct lines *lines, struct sl_err *err)
{
    char size_text[SL_SIZE_TEXT_BYTES];
    int64_t got;

    memmove(lines->buffer, lines->buffer + lines->start, lines->end - lines->start);
    lines->end -= lines->start;
    lines->start = 0;
    if (lines->end == lines->capacity) {
        char *larger;

        if (lines->end >= SL_JSON_LINE_BYTES_MAX)
            return sl_err_set(err, -SL_EFORMAT, "longer than the %s that a line may have",
                              sl_size_format(SL_JSON_LINE_BYTES_MAX, size_text));
        larger = realloc(lines->buffer, 2 * lines->capacity);
        if (!larger)
            return sl_err_set(err, -ENOMEM, "out of memory");
        lines->buffer = larger;
        lines->capacity *= 2;
    }
    got = sl_input_read(lines->fd, lines->buffer + lines->end, lines->capacity - lines->end);
    if (got < 0)
        return sl_err_set(err, (int)got, "cannot read: %s", sl_strerror((int)got));
    lines->end += (size_t)got;
    lines->at_end = got == 0;
    return 0;
}

/* Gives the next line, without its end. Returns 1, 0 when there is none left, or negative. */
static int next_line(struct lines *lines, const char **ret_line, size_t *ret_length,
                     struct sl_err *err)
{
    size_t searched = 0;

    for (;;) {
        const size_t length = lines->end - lines->start;
        const char *line = lines->buffer + lines->start;
        const char *stop =
            length > searched ? memchr(line + searched, '\n', length - searched) : NULL;
        int rc;

        if (stop || (lines->at_end && length > 0)) {
            *ret_line = line;
            *ret_length = stop ? (size_t)(stop - line) : length;
            lines->start += *ret_length + (stop != NULL);
            return 1;
        }
        if (lines->at_end)
            return 0;
        searched = length;
        rc = read_more(lines, err);
        if (rc < 0)
            return rc;
    }
}

static int take_line(const char *line, size_t length, sl_json_line_fn *fn, void *context,
                     struct sl_err *err)
{
    json_error_t error;
    /* Unlike a file's own JSON, a text may hold zero bytes. */
    json_t *value = json_loadb(line, length, JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
    int rc = value ? fn(context, value, err)
                   : sl_err_set(err, -SL_EFORMAT, "not valid JSON: %s", error.text);

    json_decref(value);
    return rc;
}

int sl_json_lines_each(const char *path, sl_json_line_fn *fn, void *context, struct sl_err *err)
{
    struct lines lines = {.fd = sl_input_open(path, err), .capacity = FIRST_CAPACITY_BYTES};
    size_t length = 0, skipped, n_lines = 0;
    const char *line = NULL;
    bool more;
    int rc;

    if (lines.fd < 0)
        return lines.fd;
    lines.buffer = malloc(lines.capacity);
    if (!lines.buffer) {
        close(lines.fd);
        return sl_err_set(err, -ENOMEM, "%s: out of memory", path);
    }
    do {
        n_lines++;
        rc = next_line(&lines, &line, &length, err);
        more = rc == 1;
        skipped = more && n_lines == 1 ? sl_json_mark_bytes(line, length) : 0;
        if (more)
            rc = take_line(line + skipped, length - skipped, fn, context, err);
    } while (rc >= 0 && more);
    if (rc < 0)
        sl_err_prefix(err, rc, "%s: line %zu", path, n_lines);
    free(lines.buffer);
    close(lines.fd);
    return rc;
}

int sl_json_line_text(const json_t *value, const char *other_key, const char **ret_text,
                      size_t *ret_length, struct sl_err *err)
{
    const json_t *other = other_key ? json_object_get(value, other_key) : NULL;
    const json_t *text = other                   ? other
                         : json_is_object(value) ? json_object_get(value, "text")
                                                 : value;

    if (!json_is_string(text))
        return sl_err_set(
            err, -SL_EFORMAT, "expected a JSON string, or an object whose \"text\"%s%s%s is one",
            other_key ? " or \"" : "", other_key ? other_key : "", other_key ? "\"" : "");
    *ret_text = json_string_value(text);
    *ret_length = json_string_length(text);
    return 0;
}

void sl_json_line_print(json_t *object)
{
    if (!object)
        return;
    json_dumpf(object, stdout, 0);
    putchar('\n');
    json_decref(object);
}
