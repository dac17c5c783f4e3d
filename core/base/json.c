#include "core/base/json.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"

size_t sl_json_mark_bytes(const char *text, size_t length)
{
    return length >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0;
}

int sl_json_parse(json_t **ret_root, const char *text, size_t length, const char *where,
                  struct sl_err *err)
{
    size_t skipped = sl_json_mark_bytes(text, length);
    json_error_t error;
    json_t *root = json_loadb(text + skipped, length - skipped, JSON_REJECT_DUPLICATES, &error);

    if (!root) {
        int rc = sl_file_check_fetched(text, length, where, err);

        if (rc < 0)
            return rc;
        /* jansson 2.14 mostly says nothing at all when it runs out of memory. */
        if (json_error_code(&error) == json_error_out_of_memory || !error.text[0])
            return sl_err_set(err, -ENOMEM, "%s: out of memory", where);
        return sl_err_set(err, -SL_EFORMAT, "%s: not valid JSON: %s (line %d, column %d)", where,
                          error.text, error.line, error.column);
    }
    *ret_root = root;
    return 0;
}

int sl_json_read_file(json_t **ret_root, const char *path, uint64_t size_max_bytes,
                      struct sl_err *err)
{
    char *text;
    size_t length;
    int rc;

    rc = sl_file_read_all(path, size_max_bytes, &text, &length, err);
    if (rc < 0)
        return rc;
    rc = sl_json_parse(ret_root, text, length, path, err);
    free(text);
    return rc;
}

static int member(const json_t *object, const char *key, const json_t **ret_value,
                  const char *where, struct sl_err *err)
{
    *ret_value = json_object_get(object, key);
    if (!*ret_value)
        return sl_err_set(err, -SL_EFORMAT, "%s: key \"%s\" is missing", where, key);
    return 0;
}

int sl_json_get_u64(const json_t *object, const char *key, uint64_t min, uint64_t max,
                    uint64_t *ret_value, const char *where, struct sl_err *err)
{
    const json_t *value;
    json_int_t integer;
    int rc = member(object, key, &value, where, err);

    if (rc < 0)
        return rc;
    if (!json_is_integer(value))
        return sl_err_set(err, -SL_EFORMAT, "%s: \"%s\" is not an integer", where, key);
    integer = json_integer_value(value);
    if (integer < 0 || (uint64_t)integer < min || (uint64_t)integer > max)
        return sl_err_set(err, -SL_EFORMAT,
                          "%s: \"%s\" is %" JSON_INTEGER_FORMAT ", expected %llu to %llu", where,
                          key, integer, (unsigned long long)min, (unsigned long long)max);
    *ret_value = (uint64_t)integer;
    return 0;
}

int sl_json_get_f64(const json_t *object, const char *key, double *ret_value, const char *where,
                    struct sl_err *err)
{
    const json_t *value;
    int rc = member(object, key, &value, where, err);

    if (rc < 0)
        return rc;
    if (!json_is_number(value) || !isfinite(json_number_value(value)))
        return sl_err_set(err, -SL_EFORMAT, "%s: \"%s\" is not a number", where, key);
    *ret_value = json_number_value(value);
    return 0;
}

int sl_json_get_string(const json_t *object, const char *key, const char **ret_text,
                       const char *where, struct sl_err *err)
{
    const json_t *value;
    int rc = member(object, key, &value, where, err);

    if (rc < 0)
        return rc;
    if (!json_is_string(value))
        return sl_err_set(err, -SL_EFORMAT, "%s: \"%s\" is not a string", where, key);
    *ret_text = json_string_value(value);
    return 0;
}
