#include "tools/json_lines.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int sl_json_lines_each(const char *path, sl_json_line_fn *fn, void *context, struct sl_err *err)
{
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "r");
    size_t capacity = 0, n_lines = 0;
    char *line = NULL;
    ssize_t length;
    int rc = 0;

    if (!file)
        return sl_err_set(err, -errno, "%s: cannot open: %s", path, sl_strerror(errno));
    while (rc == 0 && (length = getline(&line, &capacity, file)) >= 0) {
        json_error_t error;
        /* Unlike a file's own JSON, a text may hold zero bytes. */
        json_t *value = json_loadb(line, (size_t)length, JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);

        n_lines++;
        rc = value ? fn(context, value, err)
                   : sl_err_set(err, -SL_EFORMAT, "not valid JSON: %s", error.text);
        if (rc < 0)
            sl_err_prefix(err, rc, "%s: line %zu", path, n_lines);
        json_decref(value);
    }
    if (rc == 0 && ferror(file))
        rc = sl_err_set(err, -EIO, "%s: cannot read", path);
    free(line);
    if (file != stdin)
        fclose(file);
    return rc;
}
