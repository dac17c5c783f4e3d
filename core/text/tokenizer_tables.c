#include "core/text/tokenizer_tables.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/plain_json.h"
#include "core/text/tokenizer.h"

#define NO_ENTRY UINT32_MAX

/* ---- filling -----------------------------------------------------------------------------------
 */

int sl_tokenizer_tables_begin(struct sl_tokenizer_tables *tables, size_t length)
{
    tables->text = malloc(length + 1);
    return tables->text ? 0 : -ENOMEM;
}

/* Makes room for one entry more. */
static int grow(void **entries, size_t *room, size_t n, size_t entry_bytes)
{
    void *larger;

    if (n < *room)
        return 0;
    *room = 2 * *room + 1024;
    larger = realloc(*entries, *room * entry_bytes);
    if (!larger)
        return -ENOMEM;
    *entries = larger;
    return 0;
}

static char *keep(struct sl_tokenizer_tables *tables, const char *text, size_t length)
{
    char *kept = memcpy(tables->text + tables->text_bytes, text, length);

    tables->text_bytes += length;
    return kept;
}

/* The text is the last that was kept. */
static int add_kept(struct sl_tokenizer_tables *tables, const char *text, size_t length,
                    uint32_t id)
{
    void *vocab = tables->vocab;
    int rc = grow(&vocab, &tables->vocab_room, tables->n_vocab, sizeof(*tables->vocab));

    tables->vocab = vocab;
    if (rc < 0)
        return rc;
    tables->text[tables->text_bytes++] = '\0';
    tables->vocab[tables->n_vocab++] = (struct sl_vocab_entry){text, (uint32_t)length, id};
    return 0;
}

int sl_tokenizer_tables_add(struct sl_tokenizer_tables *tables, const char *text, size_t length,
                            uint32_t id)
{
    return add_kept(tables, keep(tables, text, length), length, id);
}

static int add_kept_merge(struct sl_tokenizer_tables *tables, const char *text, size_t left_length,
                          size_t length)
{
    void *merges = tables->merges;
    int rc = grow(&merges, &tables->merges_room, tables->n_merges, sizeof(*tables->merges));

    tables->merges = merges;
    if (rc < 0)
        return rc;
    tables->merges[tables->n_merges++] =
        (struct sl_merge_entry){text, (uint32_t)left_length, (uint32_t)length};
    return 0;
}

int sl_tokenizer_tables_add_merge(struct sl_tokenizer_tables *tables, const char *left,
                                  size_t left_length, const char *right, size_t right_length)
{
    const char *text = keep(tables, left, left_length);

    keep(tables, right, right_length);
    return add_kept_merge(tables, text, left_length, left_length + right_length);
}

void sl_tokenizer_tables_free(struct sl_tokenizer_tables *tables)
{
    free(tables->vocab);
    free(tables->merges);
    free(tables->text);
    free(tables->slots);
    *tables = (struct sl_tokenizer_tables){0};
}

/* ---- finding -----------------------------------------------------------------------------------
 */

/* Returns the slot that has the text, or the empty one where it would go. FNV-1a. */
static uint32_t *slot_of(const struct sl_tokenizer_tables *tables, const char *text, size_t length)
{
    const size_t mask = ((size_t)1 << tables->slots_log2) - 1;
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    size_t i;

    for (i = 0; i < length; i++)
        hash = (hash ^ (uint8_t)text[i]) * UINT64_C(0x100000001b3);
    for (i = (size_t)(hash >> 32 ^ hash) & mask;; i = (i + 1) & mask) {
        const struct sl_vocab_entry *entry;

        if (tables->slots[i] == NO_ENTRY)
            return &tables->slots[i];
        entry = &tables->vocab[tables->slots[i]];
        if (entry->length == length && memcmp(entry->text, text, length) == 0)
            return &tables->slots[i];
    }
}

int sl_tokenizer_tables_index(struct sl_tokenizer_tables *tables)
{
    sl_assert(tables->n_vocab < NO_ENTRY / 4);
    tables->slots_log2 = 1;
    while ((size_t)1 << tables->slots_log2 < tables->n_vocab * 2)
        tables->slots_log2++;
    tables->slots = malloc(sizeof(*tables->slots) << tables->slots_log2);
    if (!tables->slots)
        return -ENOMEM;
    memset(tables->slots, 0xff, sizeof(*tables->slots) << tables->slots_log2);
    for (size_t i = 0; i < tables->n_vocab; i++) {
        uint32_t *slot = slot_of(tables, tables->vocab[i].text, tables->vocab[i].length);

        if (*slot != NO_ENTRY)
            return -EEXIST;
        *slot = (uint32_t)i;
    }
    return 0;
}

const struct sl_vocab_entry *sl_tokenizer_tables_find(const struct sl_tokenizer_tables *tables,
                                                      const char *text, size_t length)
{
    const uint32_t entry = *slot_of(tables, text, length);

    return entry == NO_ENTRY ? NULL : &tables->vocab[entry];
}

/* ---- reading the text --------------------------------------------------------------------------
 * Each returns false where the text is not plain, or memory is short; which of these says `rc`. */

struct span {
    const char *first, *end; /* NULL: not met yet */
};

struct scan {
    struct sl_tokenizer_tables *tables;
    struct sl_plain_json json;
    struct span vocab, merges; /* where the tables lie */
    int rc;
};

static bool take(struct scan *s, char mark)
{
    return sl_plain_mark(&s->json, mark);
}

static bool is_next(const uint8_t *at, const uint8_t *end)
{
    return at < end && (*at & 0xC0) == 0x80;
}

/* Returns how many bytes the character has; 0 where it is none, or one that is seldom met. */
static size_t character_bytes(const uint8_t *at, const uint8_t *end)
{
    if (*at < 0x20)
        return 0;
    if (*at < 0x80)
        return 1;
    if (*at >= 0xC2 && *at <= 0xDF)
        return is_next(at + 1, end) ? 2 : 0;
    if (*at >= 0xE1 && *at <= 0xEF && *at != 0xED)
        return is_next(at + 1, end) && is_next(at + 2, end) ? 3 : 0;
    return 0;
}

/* Keeps a string's text. */
static bool take_string(struct scan *s, const char **ret_text, size_t *ret_length)
{
    struct sl_tokenizer_tables *t = s->tables;

    *ret_text = t->text + t->text_bytes;
    if (!take(s, '"'))
        return false;
    while (s->json.at < s->json.end && *s->json.at != '"') {
        size_t n;

        if (*s->json.at == '\\') {
            s->json.at++;
            if (s->json.at == s->json.end || (*s->json.at != '"' && *s->json.at != '\\'))
                return false;
        }
        n = character_bytes((const uint8_t *)s->json.at, (const uint8_t *)s->json.end);
        if (n == 0)
            return false;
        keep(t, s->json.at, n);
        s->json.at += n;
    }
    *ret_length = (size_t)(t->text + t->text_bytes - *ret_text);
    return take(s, '"');
}

static bool take_id(struct scan *s, uint32_t *ret_id)
{
    uint64_t id;

    if (!sl_plain_number(&s->json, &id) || id >= SL_TOKENIZER_IDS_MAX)
        return false;
    *ret_id = (uint32_t)id;
    return true;
}

static bool take_vocab(struct scan *s)
{
    const char *text;
    size_t length;
    uint32_t id;

    if (!take(s, '{'))
        return false;
    do {
        if (!take_string(s, &text, &length) || !take(s, ':') || !take_id(s, &id))
            return false;
        s->rc = add_kept(s->tables, text, length, id);
        if (s->rc < 0)
            return false;
    } while (take(s, ','));
    return take(s, '}');
}

/* Both forms of a merge, "a b" and ["a", "b"]. */
static bool take_merge(struct scan *s)
{
    struct sl_tokenizer_tables *t = s->tables;
    const char *text, *right;
    size_t left_length, length;

    if (take(s, '[')) {
        if (!take_string(s, &text, &left_length) || !take(s, ',') ||
            !take_string(s, &right, &length) || !take(s, ']'))
            return false;
        length += left_length;
    } else {
        const char *space;

        if (!take_string(s, &text, &length))
            return false;
        space = memchr(text, ' ', length);
        if (!space || memchr(space + 1, ' ', length - (size_t)(space + 1 - text)))
            return false;
        left_length = (size_t)(space - text);
        length--;
        memmove(t->text + (space - t->text), space + 1, length - left_length);
        t->text_bytes--;
    }
    if (left_length == 0 || length == left_length)
        return false;
    s->rc = add_kept_merge(t, text, left_length, length);
    return s->rc == 0;
}

static bool take_merges(struct scan *s)
{
    if (!take(s, '['))
        return false;
    do {
        if (!take_merge(s))
            return false;
    } while (take(s, ','));
    return take(s, ']');
}

/* Passes over a string, whatever is in it. */
static bool skip_string(struct scan *s, struct span *ret_inside)
{
    if (!take(s, '"'))
        return false;
    ret_inside->first = s->json.at;
    while (s->json.at < s->json.end && *s->json.at != '"')
        s->json.at += *s->json.at == '\\' && s->json.at + 1 < s->json.end ? 2 : 1;
    ret_inside->end = s->json.at;
    return take(s, '"');
}

/* Passes over any value, which jansson will see. */
static bool skip_value(struct scan *s)
{
    struct span inside;
    size_t depth = 0;

    do {
        sl_plain_space(&s->json);
        if (s->json.at == s->json.end)
            return false;
        if (*s->json.at == '"') {
            if (!skip_string(s, &inside))
                return false;
        } else if (*s->json.at == '{' || *s->json.at == '[') {
            depth++;
            s->json.at++;
        } else if (*s->json.at == '}' || *s->json.at == ']') {
            if (depth == 0)
                return false;
            depth--;
            s->json.at++;
        } else {
            s->json.at++;
        }
        sl_plain_space(&s->json);
    } while (depth > 0 || (s->json.at < s->json.end && *s->json.at != ',' && *s->json.at != '}' &&
                           *s->json.at != ']'));
    return true;
}

static bool is_word(const struct span *span, const char *word)
{
    const size_t length = (size_t)(span->end - span->first);

    return length == strlen(word) && memcmp(span->first, word, length) == 0;
}

/* Notes where a value lies that may come once. */
static bool take_span(struct scan *s, struct span *span, bool (*take_value)(struct scan *s))
{
    if (span->first)
        return false;
    sl_plain_space(&s->json);
    span->first = s->json.at;
    if (!take_value(s))
        return false;
    span->end = s->json.at;
    return true;
}

typedef bool take_member_fn(struct scan *s, const struct span *key);

/* An object of one member or more. */
static bool take_object(struct scan *s, take_member_fn *take_member)
{
    struct span key;

    if (!take(s, '{'))
        return false;
    do {
        if (!skip_string(s, &key) || !take(s, ':') || !take_member(s, &key))
            return false;
    } while (take(s, ','));
    return take(s, '}');
}

static bool take_of_model(struct scan *s, const struct span *key)
{
    return is_word(key, "vocab")    ? take_span(s, &s->vocab, take_vocab)
           : is_word(key, "merges") ? take_span(s, &s->merges, take_merges)
                                    : skip_value(s);
}

static bool take_of_file(struct scan *s, const struct span *key)
{
    return is_word(key, "model") ? take_object(s, take_of_model) : skip_value(s);
}

/* The file with both tables empty. NULL where memory is short or the file is no JSON. */
static json_t *parse_rest(const char *json, size_t length, const struct span *vocab,
                          const struct span *merges)
{
    const bool vocab_first = vocab->first < merges->first;
    const struct span *first = vocab_first ? vocab : merges, *second = vocab_first ? merges : vocab;
    const char *end = json + length;
    char *rest = malloc(length), *at = rest;
    json_t *root = NULL;

    if (!rest)
        return NULL;
    at = mempcpy(at, json, (size_t)(first->first - json));
    at = mempcpy(at, vocab_first ? "{}" : "[]", 2);
    at = mempcpy(at, first->end, (size_t)(second->first - first->end));
    at = mempcpy(at, vocab_first ? "[]" : "{}", 2);
    at = mempcpy(at, second->end, (size_t)(end - second->end));
    if (sl_json_parse(&root, rest, (size_t)(at - rest), "", NULL) < 0)
        root = NULL;
    free(rest);
    return root;
}

int sl_tokenizer_tables_cut(struct sl_tokenizer_tables *tables, const char *json, size_t length,
                            json_t **ret_root)
{
    struct scan scan = {.tables = tables, .json = {json, json + length}};
    json_t *root;
    int rc = sl_tokenizer_tables_begin(tables, length);

    if (rc < 0)
        return rc;
    if (!take_object(&scan, take_of_file) || !scan.vocab.first || !scan.merges.first)
        rc = scan.rc; /* what comes after the object is jansson's business */
    else if ((rc = sl_tokenizer_tables_index(tables)) == 0 &&
             (root = parse_rest(json, length, &scan.vocab, &scan.merges))) {
        *ret_root = root;
        return 1;
    }
    sl_tokenizer_tables_free(tables);
    return rc == -ENOMEM ? rc : 0;
}
