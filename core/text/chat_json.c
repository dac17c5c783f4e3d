#include "core/text/chat_json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DIGITS_MAX 17 /* these tell any two doubles apart */

static void put_text(sl_chat_put_fn *put, void *sink, const char *text)
{
    put(sink, text, strlen(text));
}

void sl_chat_json_print_string(const char *text, size_t length, sl_chat_put_fn *put, void *sink)
{
    size_t begin = 0;

    put(sink, "\"", 1);
    for (size_t i = 0; i < length; i++) {
        const unsigned char c = (unsigned char)text[i];
        const char *named = c == '"'    ? "\\\""
                            : c == '\\' ? "\\\\"
                            : c == '\b' ? "\\b"
                            : c == '\f' ? "\\f"
                            : c == '\n' ? "\\n"
                            : c == '\r' ? "\\r"
                            : c == '\t' ? "\\t"
                                        : NULL;
        char code[8];

        if (!named && c >= 0x20)
            continue;
        snprintf(code, sizeof(code), "\\u%04x", c);
        put(sink, text + begin, i - begin);
        put_text(put, sink, named ? named : code);
        begin = i + 1;
    }
    put(sink, text + begin, length - begin);
    put(sink, "\"", 1);
}

/* "d.ddde+xx" has few enough digits when it reads back as the same number. */
static void print_shortest(double value, char text[32])
{
    for (int digits = 1; digits <= DIGITS_MAX; digits++) {
        snprintf(text, 32, "%.*e", digits - 1, value);
        if (strtod(text, NULL) == value)
            return;
    }
}

/* Python's repr(): plain digits from 1e-4 to 1e16, else an exponent of two digits or more. */
static void print_real(double value, sl_chat_put_fn *put, void *sink)
{
    char shortest[32], plain[64];
    const char *exponent_text;
    int exponent, n_digits;

    print_shortest(value, shortest);
    exponent_text = strchr(shortest, 'e');
    exponent = atoi(exponent_text + 1);
    n_digits =
        strchr(shortest, '.') ? (int)(exponent_text - shortest) - (shortest[0] == '-') - 1 : 1;
    if (value != 0 && (exponent < -4 || exponent >= 16)) {
        put_text(put, sink, shortest);
        return;
    }
    snprintf(plain, sizeof(plain), "%.*f", n_digits - 1 > exponent ? n_digits - 1 - exponent : 1,
             value);
    put_text(put, sink, plain);
}

static void print_members(const json_t *object, sl_chat_put_fn *put, void *sink)
{
    const char *between = "", *key;
    json_t *value;

    put(sink, "{", 1);
    json_object_foreach((json_t *)object, key, value)
    {
        put_text(put, sink, between);
        sl_chat_json_print_string(key, strlen(key), put, sink);
        put(sink, ": ", 2);
        sl_chat_json_print(value, put, sink);
        between = ", ";
    }
    put(sink, "}", 1);
}

static void print_elements(const json_t *array, sl_chat_put_fn *put, void *sink)
{
    put(sink, "[", 1);
    for (size_t i = 0; i < json_array_size(array); i++) {
        if (i)
            put(sink, ", ", 2);
        sl_chat_json_print(json_array_get(array, i), put, sink);
    }
    put(sink, "]", 1);
}

void sl_chat_json_print(const json_t *value, sl_chat_put_fn *put, void *sink)
{
    char text[32];

    switch (json_typeof(value)) {
    case JSON_OBJECT:
        print_members(value, put, sink);
        return;
    case JSON_ARRAY:
        print_elements(value, put, sink);
        return;
    case JSON_STRING:
        sl_chat_json_print_string(json_string_value(value), json_string_length(value), put, sink);
        return;
    case JSON_INTEGER:
        snprintf(text, sizeof(text), "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        put_text(put, sink, text);
        return;
    case JSON_REAL:
        print_real(json_real_value(value), put, sink);
        return;
    case JSON_TRUE:
        put_text(put, sink, "true");
        return;
    case JSON_FALSE:
        put_text(put, sink, "false");
        return;
    case JSON_NULL:
        put_text(put, sink, "null");
        return;
    }
}
