#include "core/base/bytes.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void sl_bytes_fini(struct sl_bytes *bytes)
{
    free(bytes->data);
    *bytes = (struct sl_bytes){0};
}

void sl_bytes_clear(struct sl_bytes *bytes)
{
    bytes->length = 0;
}

/* Returns where `length` more bytes go; NULL when out of memory. */
static char *reserve(struct sl_bytes *bytes, size_t length)
{
    if (bytes->out_of_memory)
        return NULL;
    if (length > bytes->capacity - bytes->length) {
        const size_t capacity = (bytes->length + length) * 2;
        char *grown = realloc(bytes->data, capacity);

        bytes->out_of_memory = !grown;
        if (!grown)
            return NULL;
        bytes->data = grown;
        bytes->capacity = capacity;
    }
    return bytes->data + bytes->length;
}

void sl_bytes_add(struct sl_bytes *bytes, const void *data, size_t length)
{
    char *to = length > 0 ? reserve(bytes, length) : NULL;

    if (!to)
        return;
    memcpy(to, data, length);
    bytes->length += length;
}

void sl_bytes_add_text(struct sl_bytes *bytes, const char *text)
{
    sl_bytes_add(bytes, text, strlen(text));
}

void sl_bytes_add_format(struct sl_bytes *bytes, const char *format, ...)
{
    va_list args, again;
    int length;
    char *to;

    va_start(args, format);
    va_copy(again, args);
    length = vsnprintf(NULL, 0, format, args);
    va_end(args);
    to = length > 0 ? reserve(bytes, (size_t)length + 1) : NULL;
    if (to) {
        vsnprintf(to, (size_t)length + 1, format, again);
        bytes->length += (size_t)length;
    }
    va_end(again);
}

static int add_dumped(const char *data, size_t length, void *context)
{
    struct sl_bytes *bytes = context;

    sl_bytes_add(bytes, data, length);
    return bytes->out_of_memory ? -1 : 0;
}

void sl_bytes_add_json(struct sl_bytes *bytes, const json_t *value)
{
    if (!value || json_dump_callback(value, add_dumped, bytes, JSON_COMPACT | JSON_ENCODE_ANY) < 0)
        bytes->out_of_memory = true;
}

json_t *sl_bytes_string(const struct sl_bytes *bytes)
{
    return json_stringn(bytes->length ? bytes->data : "", bytes->length);
}
