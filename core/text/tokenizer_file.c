/* Reading tokenizer.json: what is understood becomes a struct sl_tokenizer, anything else that
 * would change a token is refused. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/assert.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/size.h"
#include "core/text/tokenizer.h"
#include "core/text/tokenizer_internal.h"
#include "core/text/tokenizer_keys.h"
#include "core/text/tokenizer_tables.h"

#define NO_ID UINT32_MAX

/* ByteLevel writes each byte as one character: the printable ones of Latin-1 as themselves, the
 * others, in order, from U+0100 on. */
#define ALPHABET_SIZE (256 + 68)

struct reader {
    struct sl_tokenizer *tok;
    const char *where;
    struct sl_err *err;
    struct sl_tokenizer_tables tables;
    int16_t byte_of[ALPHABET_SIZE]; /* by code point; -1 where there is none */
    uint32_t byte_ids[256];
};

#define QUOTE_BYTES 64

/* Text from the file for a message: one line, not too long. Returns `buffer`. */
static const char *quote(char buffer[QUOTE_BYTES], const char *text, size_t length)
{
    size_t n = length < QUOTE_BYTES ? length : QUOTE_BYTES - 4;

    while (n < length && n > 0 && ((uint8_t)text[n] & 0xC0) == 0x80)
        n--; /* not in the middle of a character */
    for (size_t i = 0; i < n; i++)
        buffer[i] = (uint8_t)text[i] < ' ' || text[i] == 0x7F ? '?' : text[i];
    strcpy(buffer + n, n < length ? "..." : "");
    return buffer;
}

static void fill_alphabet(struct reader *reader)
{
    int16_t next = 256;

    memset(reader->byte_of, -1, sizeof(reader->byte_of));
    for (int16_t byte = 0; byte < 256; byte++) {
        bool printable = (byte > ' ' && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);

        reader->byte_of[printable ? byte : next++] = byte;
    }
}

/* Bytes of a vocabulary entry, at most `length` of them. Returns their number, or -1 if a character
 * is not of the alphabet. */
static int32_t from_alphabet(const struct reader *reader, const char *text, size_t length,
                             uint8_t *ret_bytes)
{
    const uint8_t *in = (const uint8_t *)text;
    int32_t n = 0;

    for (size_t i = 0; i < length; i++) {
        uint32_t code_point = in[i];

        if (code_point >= 0xE0) /* past U+07FF */
            return -1;
        if (code_point >= 0xC0) /* jansson hands out well-formed UTF-8 only */
            code_point = (code_point & 0x1F) << 6 | (in[++i] & 0x3F);
        if (code_point >= ALPHABET_SIZE || reader->byte_of[code_point] < 0)
            return -1;
        ret_bytes[n++] = (uint8_t)reader->byte_of[code_point];
    }
    return n;
}

static int refuse(const struct reader *reader, int code, const char *key, const char *expected)
{
    return sl_err_set(reader->err, code, "%s: key \"%s\": expected %s", reader->where, key,
                      expected);
}

/* object[key] is an object with the given "type". */
static int get_typed(const struct reader *reader, const json_t *object, const char *key,
                     const char *type, const json_t **ret_value)
{
    const json_t *value = json_object_get(object, key);
    const char *found = json_string_value(json_object_get(value, "type"));
    char quoted[QUOTE_BYTES];

    if (!json_is_object(value))
        return sl_err_set(reader->err, -SL_EFORMAT, "%s: key \"%s\" is missing or not an object",
                          reader->where, key);
    if (!found || strcmp(found, type) != 0)
        return sl_err_set(reader->err, -SL_EUNSUPPORTED,
                          "%s: \"%s\" is of type \"%s\", expected \"%s\"", reader->where, key,
                          found ? quote(quoted, found, strlen(found)) : "", type);
    *ret_value = value;
    return 0;
}

/* Absent, null, false and empty all mean that something is not wanted. */
static bool is_off(const json_t *value)
{
    return !value || json_is_null(value) || json_is_false(value) ||
           (json_is_string(value) && json_string_length(value) == 0);
}

__attribute__((format(printf, 2, 3))) static int add_note(const struct reader *reader,
                                                          const char *format, ...)
{
    struct sl_tokenizer *tok = reader->tok;
    va_list args;
    int rc;

    sl_assert(tok->n_notes < SL_TOKENIZER_NOTES_MAX);
    va_start(args, format);
    rc = vasprintf(&tok->notes[tok->n_notes], format, args);
    va_end(args);
    if (rc < 0)
        return sl_err_set(reader->err, -ENOMEM, "%s: out of memory", reader->where);
    tok->n_notes++;
    return 0;
}

static int check_keys(const struct reader *reader, const json_t *root)
{
    char unknown[256];
    int rc;

    if (!json_is_object(root))
        return sl_err_set(reader->err, -SL_EFORMAT, "%s: not an object", reader->where);
    rc = sl_tokenizer_check_keys(root, unknown, sizeof(unknown), reader->where, reader->err);
    if (rc < 0 || !unknown[0])
        return rc;
    return add_note(reader, "%s has keys that are not known and have no effect: %s", reader->where,
                    unknown);
}

static int add_split(const struct reader *reader, const json_t *step, const char *name)
{
    const json_t *regex = json_object_get(json_object_get(step, "pattern"), "Regex");
    char where[SL_ERR_MESSAGE_BYTES / 2];

    if (!json_is_string(regex))
        return refuse(reader, -SL_EUNSUPPORTED, name, "a \"pattern\" with a \"Regex\"");
    if (!json_object_get(step, "behavior"))
        return refuse(reader, -SL_EFORMAT, name, "a \"behavior\"");
    snprintf(where, sizeof(where), "%s: %s.pattern", reader->where, name);
    return sl_splitter_add(reader->tok->splitter, json_string_value(regex),
                           json_string_length(regex), where, reader->err);
}

/* Where these keys are left out they are true. */
static int check_byte_level(const struct reader *reader, const json_t *step, const char *name)
{
    if (!json_object_get(step, "add_prefix_space") || !json_object_get(step, "use_regex"))
        return refuse(reader, -SL_EUNSUPPORTED, name,
                      "\"add_prefix_space\" and \"use_regex\" to be false");
    return 0;
}

static int read_pre_tokenizer(const struct reader *reader, const json_t *root)
{
    const json_t *sequence, *steps;
    size_t n;
    int rc;

    reader->tok->splitter = sl_splitter_create();
    if (!reader->tok->splitter)
        return sl_err_set(reader->err, -ENOMEM, "%s: out of memory", reader->where);
    rc = get_typed(reader, root, "pre_tokenizer", "Sequence", &sequence);
    if (rc < 0)
        return rc;
    steps = json_object_get(sequence, "pretokenizers");
    n = json_array_size(steps);
    if (n == 0 || n > SL_SPLIT_STEPS_MAX + 1)
        return refuse(reader, -SL_EFORMAT, "pre_tokenizer.pretokenizers",
                      "a list of at most 16 Splits, then ByteLevel");
    for (size_t i = 0; i < n; i++) {
        const json_t *step = json_array_get(steps, i);
        const char *type = json_string_value(json_object_get(step, "type"));
        bool is_last = i + 1 == n;
        char name[64];

        snprintf(name, sizeof(name), "pre_tokenizer.pretokenizers[%zu]", i);
        if (!type || strcmp(type, is_last ? "ByteLevel" : "Split") != 0)
            return refuse(reader, -SL_EUNSUPPORTED, name,
                          is_last ? "type ByteLevel, for it is the last"
                                  : "type Split, for it is not the last");
        rc = (is_last ? check_byte_level : add_split)(reader, step, name);
        if (rc < 0)
            return rc;
    }
    if (!sl_splitter_asks_pcre2(reader->tok->splitter))
        return 0;
    return add_note(
        reader,
        "%s cuts words by an expression that is not DeepSeek-V4's: PCRE2 matches it, by "
        "the Unicode version that it has on this system",
        reader->where);
}

/* An id from the file, within bounds. */
static int get_id(const struct reader *reader, const json_t *value, const char *key,
                  uint32_t *ret_id)
{
    json_int_t id = json_integer_value(value);
    char quoted[QUOTE_BYTES];

    if (!json_is_integer(value) || id < 0 || id >= SL_TOKENIZER_IDS_MAX)
        return sl_err_set(reader->err, -SL_EFORMAT,
                          "%s: token \"%s\" has no id, or one outside of 0 to %u", reader->where,
                          quote(quoted, key, strlen(key)), SL_TOKENIZER_IDS_MAX - 1);
    *ret_id = (uint32_t)id;
    return 0;
}

/* One more than the highest id in vocabulary and added tokens; those of the latter are checked. */
static int count_ids(const struct reader *reader, const json_t *added, uint32_t *ret_n_ids)
{
    const struct sl_tokenizer_tables *tables = &reader->tables;
    const json_t *value;
    uint32_t id = 0, n_ids = 0;
    const char *key;
    size_t i;
    int rc;

    for (i = 0; i < tables->n_vocab; i++)
        n_ids = tables->vocab[i].id < n_ids ? n_ids : tables->vocab[i].id + 1;
    json_array_foreach(added, i, value)
    {
        rc = sl_json_get_string(value, "content", &key, reader->where, reader->err);
        if (rc == 0)
            rc = get_id(reader, json_object_get(value, "id"), key, &id);
        if (rc < 0)
            return sl_err_prefix(reader->err, rc, "added_tokens[%zu]", i);
        n_ids = id < n_ids ? n_ids : id + 1;
    }
    *ret_n_ids = n_ids;
    return 0;
}

static void set_token(struct sl_tokenizer *tok, uint32_t id, uint32_t length, uint32_t flags)
{
    tok->tokens[id] = (struct sl_token){
        .offset_bytes = tok->n_bytes, .length_bytes = length, .flags = SL_TOKEN_KNOWN | flags};
    tok->n_bytes += length;
    if (length > tok->token_bytes_max)
        tok->token_bytes_max = length;
}

static int read_vocab(struct reader *reader)
{
    struct sl_tokenizer *tok = reader->tok;
    char quoted[QUOTE_BYTES];

    memset(reader->byte_ids, 0xFF, sizeof(reader->byte_ids));
    for (size_t i = 0; i < reader->tables.n_vocab; i++) {
        const char *key = reader->tables.vocab[i].text;
        const size_t length = reader->tables.vocab[i].length;
        const uint32_t id = reader->tables.vocab[i].id;
        uint8_t *bytes = tok->bytes + tok->n_bytes;
        int32_t n = from_alphabet(reader, key, length, bytes);

        if (tok->tokens[id].flags & SL_TOKEN_KNOWN)
            return sl_err_set(reader->err, -SL_EFORMAT,
                              "%s: model.vocab: \"%s\" has id %u, which another token has too",
                              reader->where, quote(quoted, key, length), id);
        if (n == 1)
            reader->byte_ids[bytes[0]] = id;
        if (n < 0) /* not made by ByteLevel, such as `<｜end▁of▁sentence｜>`: stands for itself */
            memcpy(bytes, key, length);
        set_token(tok, id, n < 0 ? (uint32_t)length : (uint32_t)n, 0);
    }
    for (int byte = 0; byte < 256; byte++)
        if (reader->byte_ids[byte] == NO_ID)
            return sl_err_set(reader->err, -SL_EFORMAT,
                              "%s: model.vocab: no token for the byte 0x%02X", reader->where,
                              (unsigned)byte);
    return 0;
}

static int add_token(struct reader *reader, const json_t *entry, struct sl_added_token *ret_added)
{
    static const char *const unsupported[] = {"single_word", "lstrip", "rstrip"};
    struct sl_tokenizer *tok = reader->tok;
    uint32_t id = (uint32_t)json_integer_value(json_object_get(entry, "id"));
    const char *content = json_string_value(json_object_get(entry, "content"));
    size_t length = strlen(content);
    const struct sl_vocab_entry *in_vocab =
        sl_tokenizer_tables_find(&reader->tables, content, length);

    if (length == 0 || length > SL_ADDED_TOKEN_BYTES_MAX)
        return refuse(reader, -SL_EFORMAT, "content", "1 to 256 bytes");
    for (size_t i = 0; i < SL_ARRAY_LEN(unsupported); i++)
        if (!is_off(json_object_get(entry, unsupported[i])))
            return refuse(reader, -SL_EUNSUPPORTED, unsupported[i], "false");
    if (in_vocab ? in_vocab->id != id : tok->tokens[id].flags & SL_TOKEN_KNOWN)
        return refuse(reader, -SL_EFORMAT, "id", "one that no other token has");
    *ret_added =
        (struct sl_added_token){.bytes = tok->bytes + tok->n_bytes,
                                .length_bytes = (uint32_t)length,
                                .id = id,
                                .round = json_is_true(json_object_get(entry, "normalized"))};
    memcpy(tok->bytes + tok->n_bytes, content, length);
    set_token(tok, id, (uint32_t)length,
              json_is_true(json_object_get(entry, "special")) ? SL_TOKEN_ADDED | SL_TOKEN_SPECIAL
                                                              : SL_TOKEN_ADDED);
    return 0;
}

static int compare_added(const void *left, const void *right)
{
    const struct sl_added_token *a = left, *b = right;
    uint32_t length = a->length_bytes < b->length_bytes ? a->length_bytes : b->length_bytes;
    int order = memcmp(a->bytes, b->bytes, length);

    return order ? order
                 : (a->length_bytes > b->length_bytes) - (a->length_bytes < b->length_bytes);
}

/* The tokenizers of Hugging Face do not go by the ids in the file: they count on from the end of
 * the vocabulary. Where that gives others it is not known which the model was trained with. */
static int check_added_ids(const struct reader *reader, const json_t *list)
{
    uint32_t next = (uint32_t)reader->tables.n_vocab;
    char quoted[QUOTE_BYTES];
    const json_t *entry;
    size_t i;

    json_array_foreach(list, i, entry)
    {
        uint32_t id = (uint32_t)json_integer_value(json_object_get(entry, "id"));
        const char *content = json_string_value(json_object_get(entry, "content"));

        if (!sl_tokenizer_tables_find(&reader->tables, content, strlen(content)) && id != next)
            return add_note(reader,
                            "%s gives \"%s\" the id %u; Hugging Face's tokenizers, which count the "
                            "ids of added tokens themselves, would give it %u",
                            reader->where, quote(quoted, content, strlen(content)), id, next);
        if (id >= next)
            next = id + 1;
    }
    return 0;
}

static int read_added(struct reader *reader, const json_t *list)
{
    struct sl_tokenizer *tok = reader->tok;
    size_t n = json_array_size(list);
    char quoted[QUOTE_BYTES];
    int rc;

    tok->added = calloc(n + 1, sizeof(*tok->added));
    if (!tok->added)
        return sl_err_set(reader->err, -ENOMEM, "%s: out of memory", reader->where);
    for (size_t i = 0; i < n; i++) {
        rc = add_token(reader, json_array_get(list, i), &tok->added[i]);
        if (rc < 0)
            return sl_err_prefix(reader->err, rc, "added_tokens[%zu]", i);
    }
    tok->n_added = (uint32_t)n;
    qsort(tok->added, n, sizeof(*tok->added), compare_added);
    for (uint32_t i = 0; i < n; i++) {
        const struct sl_added_token *added = &tok->added[i];

        tok->added_first[added->bytes[0] + 1] = i + 1;
        if (i > 0 && compare_added(added - 1, added) == 0)
            return sl_err_set(reader->err, -SL_EFORMAT, "%s: added_tokens: \"%s\" comes twice",
                              reader->where,
                              quote(quoted, (const char *)added->bytes, added->length_bytes));
    }
    for (int byte = 0; byte < 256; byte++) /* first bytes that no token has: empty ranges */
        if (tok->added_first[byte + 1] < tok->added_first[byte])
            tok->added_first[byte + 1] = tok->added_first[byte];
    for (int byte = 0; byte < 256; byte++)
        if (tok->tokens[reader->byte_ids[byte]].flags & SL_TOKEN_ADDED)
            return sl_err_set(reader->err, -SL_EUNSUPPORTED,
                              "%s: the token of byte 0x%02X is an added token, so plain text "
                              "would yield it",
                              reader->where, (unsigned)byte);
    return 0;
}

static int read_merge(const struct reader *reader, uint32_t rank)
{
    const struct sl_merge_entry *merge = &reader->tables.merges[rank];
    const size_t left = merge->left_length, length = merge->length;
    const struct {
        const char *text;
        size_t length;
    } names[3] = {{merge->text, left}, {merge->text + left, length - left}, {merge->text, length}};
    char quoted[QUOTE_BYTES];
    uint32_t ids[3];

    for (int i = 0; i < 3; i++) {
        const struct sl_vocab_entry *entry =
            sl_tokenizer_tables_find(&reader->tables, names[i].text, names[i].length);

        if (!entry)
            return sl_err_set(reader->err, -SL_EFORMAT,
                              "%s: model.merges[%u]: \"%s\" is not in model.vocab", reader->where,
                              rank, quote(quoted, names[i].text, names[i].length));
        ids[i] = entry->id;
    }
    if (reader->tok->tokens[ids[2]].flags & SL_TOKEN_ADDED)
        return sl_err_set(reader->err, -SL_EUNSUPPORTED,
                          "%s: model.merges[%u] makes the added token \"%s\", so plain text would "
                          "yield it",
                          reader->where, rank, quote(quoted, merge->text, length));
    sl_bpe_add_merge(reader->tok->bpe, ids[0], ids[1], rank, ids[2]);
    return 0;
}

static int read_merges(struct reader *reader)
{
    const size_t n = reader->tables.n_merges;
    int rc;

    if (n == 0)
        return refuse(reader, -SL_EFORMAT, "model.merges", "a list that is not empty");
    reader->tok->bpe = sl_bpe_create(reader->byte_ids, n);
    if (!reader->tok->bpe)
        return sl_err_set(reader->err, -ENOMEM, "%s: out of memory", reader->where);
    for (size_t i = 0; i < n; i++) {
        rc = read_merge(reader, (uint32_t)i);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* Puts a merge of either form, "a b" or ["a", "b"], into the tables. */
static int fill_merge(struct reader *reader, const json_t *merge, size_t rank)
{
    const json_t *left = json_array_get(merge, 0), *right = json_array_get(merge, 1);
    const char *a = json_string_value(left), *b = json_string_value(right), *space;
    size_t n_a = json_string_length(left), n_b = json_string_length(right);

    if (json_is_string(merge)) {
        a = json_string_value(merge);
        space = strchr(a, ' ');
        b = space && !strchr(space + 1, ' ') ? space + 1 : NULL;
        n_a = b ? (size_t)(space - a) : 0;
        n_b = b ? json_string_length(merge) - n_a - 1 : 0;
    } else if (json_array_size(merge) != 2) {
        a = NULL;
    }
    if (!a || !b || n_a == 0 || n_b == 0)
        return sl_err_set(reader->err, -SL_EFORMAT,
                          "%s: model.merges[%zu]: expected \"a b\" or [\"a\", \"b\"]",
                          reader->where, rank);
    return sl_tokenizer_tables_add_merge(&reader->tables, a, n_a, b, n_b);
}

/* Fills the tables from the values of a file that is not plain. */
static int fill_tables(struct reader *reader, const json_t *model, size_t length)
{
    const json_t *vocab = json_object_get(model, "vocab"), *value;
    struct sl_tokenizer_tables *tables = &reader->tables;
    const char *key;
    uint32_t id = 0;
    size_t i;
    int rc;

    if (!json_is_object(vocab))
        return refuse(reader, -SL_EFORMAT, "model.vocab", "an object");
    rc = sl_tokenizer_tables_begin(tables, length);
    json_object_foreach((json_t *)vocab, key, value)
    {
        if (rc == 0)
            rc = get_id(reader, value, key, &id);
        if (rc == 0) /* a zero byte in a key is refused by jansson */
            rc = sl_tokenizer_tables_add(tables, key, strlen(key), id);
    }
    json_array_foreach(json_object_get(model, "merges"), i, value)
    {
        if (rc == 0)
            rc = fill_merge(reader, value, i);
    }
    if (rc == 0)
        rc = sl_tokenizer_tables_index(tables);
    return rc == -ENOMEM ? sl_err_set(reader->err, rc, "%s: out of memory", reader->where) : rc;
}

/* `length` is the file's. */
static int read_model(struct reader *reader, const json_t *root, size_t length)
{
    const json_t *model, *added = json_object_get(root, "added_tokens");
    int rc = get_typed(reader, root, "model", "BPE", &model);

    if (rc < 0)
        return rc;
    if (added && !json_is_array(added))
        return refuse(reader, -SL_EFORMAT, "added_tokens", "a list");
    if (!reader->tables.slots)
        rc = fill_tables(reader, model, length);
    if (rc == 0)
        rc = count_ids(reader, added, &reader->tok->n_tokens);
    if (rc < 0)
        return rc;
    reader->tok->tokens = calloc(reader->tok->n_tokens + 1, sizeof(*reader->tok->tokens));
    if (!reader->tok->tokens)
        return sl_err_set(reader->err, -ENOMEM, "%s: out of memory", reader->where);
    rc = read_vocab(reader);
    if (rc == 0)
        rc = read_added(reader, added);
    if (rc == 0)
        rc = check_added_ids(reader, added);
    return rc < 0 ? rc : read_merges(reader);
}

int sl_tokenizer_parse(struct sl_tokenizer **ret_tok, const char *json, size_t length,
                       const char *where, struct sl_err *err)
{
    struct reader reader = {.where = where, .err = err};
    const json_t *decoder;
    json_t *root = NULL;
    int rc;

    if (length > SL_TOKENIZER_FILE_BYTES_MAX)
        return sl_err_set(err, -SL_EFORMAT, "%s: %zu bytes, expected at most %u", where, length,
                          SL_TOKENIZER_FILE_BYTES_MAX);
    rc = sl_tokenizer_tables_cut(&reader.tables, json, length, &root);
    if (rc < 0)
        return sl_err_set(err, rc, "%s: out of memory", where);
    if (rc == 0)
        rc = sl_json_parse(&root, json, length, where, err);
    if (rc < 0)
        return rc;
    reader.tok = calloc(1, sizeof(*reader.tok));
    if (reader.tok)
        reader.tok->bytes = malloc(length);
    if (!reader.tok || !reader.tok->bytes) {
        rc = sl_err_set(err, -ENOMEM, "%s: out of memory", where);
        goto out;
    }
    fill_alphabet(&reader);
    rc = check_keys(&reader, root);
    if (rc == 0)
        rc = read_pre_tokenizer(&reader, root);
    if (rc == 0)
        rc = get_typed(&reader, root, "decoder", "ByteLevel", &decoder);
    if (rc == 0)
        rc = read_model(&reader, root, length);
    if (rc < 0)
        goto out;
    *ret_tok = reader.tok;
    reader.tok = NULL;
out:
    sl_tokenizer_close(reader.tok);
    sl_tokenizer_tables_free(&reader.tables);
    json_decref(root);
    return rc;
}

int sl_tokenizer_open(struct sl_tokenizer **ret_tok, const char *path, struct sl_err *err)
{
    char file_path[4096];
    struct stat status;
    size_t length;
    char *json;
    int rc;

    if (stat(path, &status) == 0 && S_ISDIR(status.st_mode)) {
        if (snprintf(file_path, sizeof(file_path), "%s/tokenizer.json", path) >=
            (int)sizeof(file_path))
            return sl_err_set(err, -ENAMETOOLONG, "%s: path is too long", path);
        path = file_path;
    }
    rc = sl_file_read_all(path, SL_TOKENIZER_FILE_BYTES_MAX, &json, &length, err);
    if (rc < 0)
        return rc;
    rc = sl_tokenizer_parse(ret_tok, json, length, path, err);
    free(json);
    return rc;
}
