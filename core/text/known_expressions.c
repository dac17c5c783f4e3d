#include "core/text/known_expressions.h"

#include <stdlib.h>
#include <string.h>

#include "core/text/unicode_classes.h"
#include "core/base/size.h"

/* Past the last letter of plane 3 there are but the variation selectors, which are marks. */
#define TABLE_CODE_POINTS 0x32400
#define SELECTORS_FIRST 0xE0100
#define SELECTORS_LAST 0xE01EF

struct sl_character_classes {
    uint8_t of[TABLE_CODE_POINTS]; /* enum sl_unicode_class, by code point */
};

struct sl_character_classes *sl_character_classes_create(void)
{
    struct sl_character_classes *classes = calloc(1, sizeof(*classes));

    for (size_t i = 0; classes && i + 1 < SL_UNICODE_CLASS_RANGES; i++) {
        uint32_t first = sl_unicode_classes[i] / 8, end = sl_unicode_classes[i + 1] / 8;

        if (end <= TABLE_CODE_POINTS)
            memset(classes->of + first, (int)(sl_unicode_classes[i] % 8), end - first);
    }
    return classes;
}

struct character {
    uint32_t code_point;
    uint32_t n_bytes;
};

static inline struct character read_character(const uint8_t *text)
{
    uint32_t lead = text[0];

    if (lead < 0x80)
        return (struct character){lead, 1};
    if (lead < 0xE0)
        return (struct character){(lead & 0x1F) << 6 | (text[1] & 0x3F), 2};
    if (lead < 0xF0)
        return (struct character){(lead & 0xF) << 12 | (text[1] & 0x3Fu) << 6 | (text[2] & 0x3F),
                                  3};
    return (struct character){
        (lead & 7) << 18 | (text[1] & 0x3Fu) << 12 | (text[2] & 0x3Fu) << 6 | (text[3] & 0x3F), 4};
}

/* The class of the character that text begins with, and its bytes. */
static inline enum sl_unicode_class class_of(const struct sl_character_classes *classes,
                                             const uint8_t *text, uint32_t *ret_n_bytes)
{
    struct character c = read_character(text);

    *ret_n_bytes = c.n_bytes;
    if (c.code_point < TABLE_CODE_POINTS)
        return classes->of[c.code_point];
    return c.code_point >= SELECTORS_FIRST && c.code_point <= SELECTORS_LAST ? SL_UNICODE_LETTER
                                                                             : SL_UNICODE_OTHER;
}

/* Where the run of characters of `wanted` that begins at text[at] ends. */
static inline size_t end_of_run(const struct sl_character_classes *classes, const uint8_t *text,
                                size_t n, size_t at, enum sl_unicode_class wanted)
{
    uint32_t n_bytes;

    while (at < n && class_of(classes, text + at, &n_bytes) == wanted)
        at += n_bytes;
    return at;
}

#define EACH_BYTE UINT64_C(0x0101010101010101)

static inline uint64_t read_eight(const uint8_t *text)
{
    uint64_t eight;

    memcpy(&eight, text, sizeof(eight));
    return eight;
}

static inline bool all_ascii(uint64_t eight)
{
    return !(eight & EACH_BYTE * 0x80);
}

/* Maps eight ASCII bytes: '0' to '9' become 0 to 9, anything else 10 to 127, and 10 + 0x76 is 0x80.
 */
static inline bool no_digit(uint64_t eight)
{
    return (((eight ^ EACH_BYTE * '0') + EACH_BYTE * 0x76) & EACH_BYTE * 0x80) == EACH_BYTE * 0x80;
}

/* \p{N}{1,3} */
static bool find_number(const struct sl_character_classes *classes, const uint8_t *text, size_t n,
                        size_t from, size_t *ret_start, size_t *ret_end)
{
    size_t at = from;
    uint32_t n_bytes;

    while (at < n) {
        if (n - at >= 8 && all_ascii(read_eight(text + at)) && no_digit(read_eight(text + at))) {
            at += 8;
            continue;
        }
        if (class_of(classes, text + at, &n_bytes) == SL_UNICODE_NUMBER)
            break;
        at += n_bytes;
    }
    if (at == n)
        return false;
    *ret_start = at;
    for (int digits = 0; digits < 3 && at < n; digits++, at += n_bytes)
        if (class_of(classes, text + at, &n_bytes) != SL_UNICODE_NUMBER)
            break;
    *ret_end = at;
    return true;
}

static bool is_cjk(uint32_t c)
{
    return (c >= 0x4E00 && c <= 0x9FA5) || (c >= 0x3040 && c <= 0x30FF);
}

/* [一-龥぀-ゟ゠-ヿ]+: most Han characters, and both kinds of kana. Each has three bytes. */
static bool find_cjk(const struct sl_character_classes *classes, const uint8_t *text, size_t n,
                     size_t from, size_t *ret_start, size_t *ret_end)
{
    size_t at = from;

    (void)classes;
    while (at < n) {
        if (n - at >= 8 && all_ascii(read_eight(text + at))) {
            at += 8;
            continue;
        }
        if (text[at] >= 0xE3 && text[at] <= 0xE9 && is_cjk(read_character(text + at).code_point))
            break;
        at++; /* the later bytes of a character are below 0xE3 */
    }
    if (at == n)
        return false;
    *ret_start = at;
    while (at < n && is_cjk(read_character(text + at).code_point))
        at += 3;
    *ret_end = at;
    return true;
}

static bool is_line_end(uint8_t byte)
{
    return byte == '\r' || byte == '\n';
}

static bool is_ascii_letter(uint8_t byte)
{
    return (uint8_t)((byte | 0x20) - 'a') < 26;
}

/* [\p{P}\p{S}]+[\r\n]*, the first sign being before text[at]. */
static size_t end_of_signs(const struct sl_character_classes *classes, const uint8_t *text,
                           size_t n, size_t at)
{
    at = end_of_run(classes, text, n, at, SL_UNICODE_SIGN);
    while (at < n && is_line_end(text[at]))
        at++;
    return at;
}

/* \s*[\r\n]+|\s+(?!\S)|\s+, white space being at text[at]: up to the last line end of the run, or
 * else all of it but the character before a word. */
static size_t end_of_space(const struct sl_character_classes *classes, const uint8_t *text,
                           size_t n, size_t at)
{
    size_t first = at, last = at, after_line = 0;
    uint32_t n_bytes;

    while (at < n && class_of(classes, text + at, &n_bytes) == SL_UNICODE_SPACE) {
        last = at;
        at += n_bytes;
        if (is_line_end(text[last]))
            after_line = at;
    }
    if (after_line)
        return after_line;
    return at == n || last == first ? at : last;
}

/* Where the word that begins at text[at] ends; `at` if none does. The alternatives are taken in the
 * order of the expression, but for those that exclude each other. */
static size_t end_of_word(const struct sl_character_classes *classes, const uint8_t *text, size_t n,
                          size_t at)
{
    uint32_t n_bytes, next_bytes;
    enum sl_unicode_class class = class_of(classes, text + at, &n_bytes), next_class;
    size_t next = at + n_bytes;

    if (class == SL_UNICODE_LETTER)
        return end_of_run(classes, text, n, next, SL_UNICODE_LETTER);
    if (class == SL_UNICODE_SIGN) {
        /* All of ASCII's 32 signs are in the first alternative, and only these. */
        if (n_bytes > 1 || next == n || !is_ascii_letter(text[next]))
            return end_of_signs(classes, text, n, next);
        while (next < n && is_ascii_letter(text[next]))
            next++;
        return next;
    }
    if (next < n && !is_line_end(text[at])) {
        next_class = class_of(classes, text + next, &next_bytes);
        if (next_class == SL_UNICODE_LETTER)
            return end_of_run(classes, text, n, next + next_bytes, SL_UNICODE_LETTER);
        if (next_class == SL_UNICODE_SIGN && text[at] == ' ')
            return end_of_signs(classes, text, n, next + next_bytes);
    }
    return class == SL_UNICODE_SPACE ? end_of_space(classes, text, n, at) : at;
}

static bool find_word(const struct sl_character_classes *classes, const uint8_t *text, size_t n,
                      size_t from, size_t *ret_start, size_t *ret_end)
{
    for (size_t at = from; at < n; at += read_character(text + at).n_bytes) {
        size_t end = end_of_word(classes, text, n, at);

        if (end > at) {
            *ret_start = at;
            *ret_end = end;
            return true;
        }
    }
    return false;
}

sl_find_match_fn *sl_known_expression(const char *expression, size_t length)
{
    static const struct {
        const char *expression;
        sl_find_match_fn *find;
    } known[] = {
        {"\\p{N}{1,3}", find_number},
        {"[一-龥\u3040-ゟ゠-ヿ]+", find_cjk},
        {"[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
         "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
         "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
         find_word},
    };

    for (size_t i = 0; i < SL_ARRAY_LEN(known); i++)
        if (strlen(known[i].expression) == length &&
            memcmp(known[i].expression, expression, length) == 0)
            return known[i].find;
    return NULL;
}
