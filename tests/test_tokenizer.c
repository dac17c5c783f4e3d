/* Tokenizer: bytes go round unchanged whatever they are, added tokens come only when asked for, and
 * a file that is not understood is refused. A small tokenizer made for the test serves all but the
 * last group, which compares the model's own tokenizer with ids known to be right. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/text/bpe.h"
#include "core/text/detokenizer.h"
#include "core/text/tokenizer.h"

#define SMALL_PATH "tests/data/tokenizer.json"

/* Ids of the small tokenizer. */
enum {
    SMALL_N_VOCAB = 334, /* then five ids without text, then the added tokens */
    SMALL_USER = 339,
    SMALL_THINK = 341,
    SMALL_A = 343,
    SMALL_AB = 344,
    SMALL_DSML = 345,
    SMALL_N_IDS = 347,
};

static struct sl_tokenizer *small;
static struct sl_encoder *small_encoder;

static int open_small(void **state)
{
    struct sl_err err;

    (void)state;
    if (sl_tokenizer_open(&small, SMALL_PATH, &err) < 0 ||
        sl_encoder_create(&small_encoder, small, &err) < 0) {
        print_error("%s\n", err.message);
        return -1;
    }
    return 0;
}

static uint64_t next_random(uint64_t *seed)
{
    uint64_t z = *seed += UINT64_C(0x9E3779B97F4A7C15);

    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    return z ^ z >> 29;
}

/* The list is good until the next call of the same thread. */
static const struct sl_token_list *encode(struct sl_encoder *encoder, const char *text,
                                          size_t length, unsigned flags)
{
    static __thread struct sl_token_list list;
    struct sl_err err;

    sl_token_list_fini(&list);
    if (!text) /* frees what the last call left */
        return NULL;
    if (sl_encode(encoder, text, length, flags, &list, &err) < 0)
        fail_msg("%s", err.message);
    return &list;
}

static int close_small(void **state)
{
    (void)state;
    encode(NULL, NULL, 0, 0);
    sl_encoder_destroy(small_encoder);
    sl_tokenizer_close(small);
    return 0;
}

static void check_ids(const struct sl_token_list *list, const uint32_t *ids, size_t n)
{
    assert_int_equal(list->n, n);
    assert_memory_equal(list->ids, ids, n * sizeof(*ids));
}

#define CHECK_SMALL(text, flags, ...)                                                              \
    do {                                                                                           \
        const uint32_t ids_[] = {__VA_ARGS__};                                                     \
        check_ids(encode(small_encoder, text, strlen(text), flags), ids_,                          \
                  sizeof(ids_) / sizeof(ids_[0]));                                                 \
    } while (0)

static void test_words(void **state)
{
    (void)state;
    CHECK_SMALL("the", 0, 259);
    CHECK_SMALL(" then", 0, 322);
    CHECK_SMALL("a  b", 0, 99, 34, 34, 100); /* "a", " ", " b": the expression leaves one space */
    CHECK_SMALL("1234", 0, 51, 52, 53, 54);
    CHECK_SMALL("\xE4\xB8\xAD\xE6\x96\x87", 0, 333);
    CHECK_SMALL("\xB8\xAD\xE6\x96", 0, 330); /* no character, and still a word */
    assert_int_equal(encode(small_encoder, "", 0, 0)->n, 0);
}

static void test_added_tokens(void **state)
{
    size_t length;
    uint32_t id;

    (void)state;
    CHECK_SMALL("<a>b<a>", SL_ENCODE_ADDED, SMALL_AB, SMALL_A);
    CHECK_SMALL("<a", SL_ENCODE_ADDED, 62, 99);
    CHECK_SMALL("the<|User|>the", SL_ENCODE_ADDED, 259, SMALL_USER, 259);
    CHECK_SMALL("<|bos|><think>\xEF\xBD\x9C"
                "DSML\xEF\xBD\x9C",
                SL_ENCODE_ADDED, 0, SMALL_THINK, SMALL_DSML);
    CHECK_SMALL("<a>", 0, 62, 99, 64);
    assert_int_equal(sl_tokenizer_find(small, "<think>", &id), 0);
    assert_int_equal(id, SMALL_THINK);
    assert_int_equal(sl_tokenizer_find(small, "<think", &id), -ENOENT);
    assert_int_equal(sl_tokenizer_find(small, "<think>!", &id), -ENOENT);
    assert_int_equal(sl_tokenizer_find(small, "the", &id), -ENOENT);
    assert_int_equal(sl_tokenizer_find(small, "", &id), -ENOENT);
    assert_true(sl_tokenizer_is_special(small, 0));
    assert_false(sl_tokenizer_is_special(small, SMALL_THINK));
    assert_false(sl_tokenizer_is_special(small, UINT32_MAX));
    assert_true(sl_tokenizer_is_added(small, SMALL_THINK));
    assert_false(sl_tokenizer_is_added(small, UINT32_MAX));
    assert_int_equal(sl_tokenizer_id_count(small), SMALL_N_IDS);
    assert_memory_equal(sl_tokenizer_bytes(small, SMALL_AB, &length), "<a>b", 4);
    assert_int_equal(length, 4);
    assert_non_null(sl_tokenizer_bytes(small, SMALL_N_VOCAB, &length));
    assert_int_equal(length, 0);
    assert_non_null(sl_tokenizer_bytes(small, UINT32_MAX, &length));
    assert_int_equal(length, 0);
}

/* Checks that the bytes of the ids are the text, and without the flag that none is an added one. */
static void check_round_trip(const char *text, size_t length, unsigned flags)
{
    const struct sl_token_list *list = encode(small_encoder, text, length, flags);
    size_t at = 0, n;

    for (size_t i = 0; i < list->n; i++) {
        const uint8_t *bytes = sl_tokenizer_bytes(small, list->ids[i], &n);

        assert_true(n > 0 && n <= length - at);
        assert_memory_equal(bytes, text + at, n);
        at += n;
        if (!flags)
            assert_true(list->ids[i] >= 2 && list->ids[i] < SMALL_N_VOCAB);
    }
    assert_int_equal(at, length);
}

static void test_bytes_go_round(void **state)
{
    static const char *const scraps[] = {
        "<|User|>", "<|bos|>",  "</think>", "<a>b",         "<",    "the ",
        "   ",      "\r\n",     "2024",     "\xE4\xB8\xAD", "\xE4", "\xF0\x9F\x98",
        "\xC0",     "\xFF\x80", "aaaaaa",   "\xED\xA0\x80", "Ã¶ne"};
    uint64_t seed = 1;
    char text[600];

    (void)state;
    for (int round = 0; round < 3000; round++) {
        size_t length = 0, wanted = next_random(&seed) % 500;

        while (length < wanted) {
            const char *scrap = scraps[next_random(&seed) % (sizeof(scraps) / sizeof(*scraps))];

            if (next_random(&seed) % 2) {
                memcpy(text + length, scrap, strlen(scrap));
                length += strlen(scrap);
            } else {
                text[length++] = (char)next_random(&seed);
            }
        }
        check_round_trip(text, length, 0);
        check_round_trip(text, length, SL_ENCODE_ADDED);
    }
}

#define N_MERGES 120u

/* The plain way: look at all neighbours for the merge of lowest rank, leftmost first, do it, start
 * again. pairs[rank] makes token 256 + rank. */
static size_t merge_plainly(uint32_t pairs[N_MERGES][2], uint32_t *ids, size_t n)
{
    for (uint32_t rank = 0; rank < N_MERGES;) {
        size_t i = 0;

        while (i + 1 < n && (ids[i] != pairs[rank][0] || ids[i + 1] != pairs[rank][1]))
            i++;
        if (i + 1 >= n) {
            rank++;
            continue;
        }
        ids[i] = 256 + rank;
        n--;
        memmove(&ids[i + 1], &ids[i + 2], (n - i - 1) * sizeof(*ids));
        rank = 0; /* lower ranks may have become possible */
    }
    return n;
}

/* Random merges of four letters, in no sensible order: many pairs are waiting when a neighbour
 * changes under them. */
static void test_merges_as_the_plain_way_does(void **state)
{
    uint32_t byte_ids[256], pairs[N_MERGES][2], ids[60];
    struct sl_token_list list = {0};
    uint64_t seed = 2;
    uint8_t word[60];

    (void)state;
    for (uint32_t i = 0; i < 256; i++)
        byte_ids[i] = i;
    for (int table = 0; table < 40; table++) {
        struct sl_bpe *bpe = sl_bpe_create(byte_ids, N_MERGES);
        struct sl_bpe_scratch *scratch = sl_bpe_scratch_create(bpe);

        for (uint32_t rank = 0; rank < N_MERGES; rank++) {
            bool is_new;

            do {
                for (int side = 0; side < 2;
                     side++) { /* a letter, or what an earlier merge makes */
                    uint64_t pick = next_random(&seed) % (next_random(&seed) % 2 ? 4 : 4 + rank);

                    pairs[rank][side] = (uint32_t)(pick < 4 ? 'a' + pick : 252 + pick);
                }
                is_new = true;
                for (uint32_t r = 0; r < rank; r++)
                    is_new = is_new && memcmp(pairs[r], pairs[rank], sizeof(pairs[r])) != 0;
            } while (!is_new);
            sl_bpe_add_merge(bpe, pairs[rank][0], pairs[rank][1], rank, 256 + rank);
        }
        for (int round = 0; round < 200; round++) {
            size_t n = 1 + next_random(&seed) % sizeof(word);

            for (size_t i = 0; i < n; i++)
                ids[i] = word[i] = (uint8_t)('a' + next_random(&seed) % 4);
            list.n = 0;
            assert_int_equal(sl_bpe_encode(scratch, word, n, &list), 0);
            check_ids(&list, ids, merge_plainly(pairs, ids, n));
        }
        sl_bpe_scratch_destroy(scratch);
        sl_bpe_destroy(bpe);
    }
    sl_token_list_fini(&list);
}

/* A way of merging whose time grows with the square would not come back here. */
static void test_long_run_of_one_letter(void **state)
{
    const size_t length = 1 << 19;
    char *text = malloc(length);
    const struct sl_token_list *list;

    (void)state;
    memset(text, 'a', length);
    list = encode(small_encoder, text, length, 0);
    assert_int_equal(list->n, length / 4);
    assert_int_equal(list->ids[0], list->ids[list->n - 1]);
    memset(text, ' ', length);
    check_round_trip(text, length, 0);
    free(text);
}

/* Decodes piece by piece into *out, with an optional flush at the end. */
static void detokenize(struct sl_detokenizer *detok, const uint32_t *ids, size_t n, char *out)
{
    size_t length, total = 0;
    const char *piece;

    for (size_t i = 0; i <= n; i++) {
        piece = i < n ? sl_detokenizer_push(detok, ids[i], &length)
                      : sl_detokenizer_flush(detok, &length);
        memcpy(out + total, piece, length);
        total += length;
    }
    out[total] = '\0';
}

static uint32_t byte_token(uint8_t byte)
{
    char text = (char)byte;

    return encode(small_encoder, &text, 1, 0)->ids[0];
}

static void test_detokenizer_waits_for_whole_characters(void **state)
{
    struct sl_detokenizer *detok;
    char out[200];
    size_t length;
    uint32_t e4 = byte_token(0xE4), b8 = byte_token(0xB8), ad = byte_token(0xAD);
    uint32_t f0 = byte_token(0xF0), letter = byte_token('x');

    (void)state;
    assert_int_equal(sl_detokenizer_create(&detok, small, false, NULL), 0);
    sl_detokenizer_push(detok, e4, &length);
    assert_int_equal(length, 0);
    sl_detokenizer_push(detok, b8, &length);
    assert_int_equal(length, 0);
    assert_memory_equal(sl_detokenizer_push(detok, ad, &length), "\xE4\xB8\xAD", 3);
    assert_int_equal(length, 3);
    sl_detokenizer_flush(detok, &length);
    assert_int_equal(length, 0);

    detokenize(detok, (const uint32_t[]){e4, 331, letter}, 3,
               out); /* 331: the rest and a whole one */
    assert_string_equal(out, "\xE4\xB8\xAD\xE6\x96\x87x");
    detokenize(detok, (const uint32_t[]){e4, b8, letter, b8, ad}, 5, out);
    assert_string_equal(out, "\xEF\xBF\xBDx\xEF\xBF\xBD\xEF\xBF\xBD");
    detokenize(detok, (const uint32_t[]){f0, e4, b8}, 3, out);
    assert_string_equal(out, "\xEF\xBF\xBD\xEF\xBF\xBD");
    detokenize(detok, (const uint32_t[]){e4, SMALL_N_VOCAB, UINT32_MAX, 0, b8, ad}, 6, out);
    assert_string_equal(out, "\xE4\xB8\xAD"); /* neither ids without text nor hidden ones disturb */
    sl_detokenizer_destroy(detok);
}

/* Each byte sequence, given byte by byte, and what is to be seen (? for U+FFFD): one sign for the
 * longest beginning of a character, as the Unicode standard advises. */
static void test_detokenizer_replaces_malformed_bytes(void **state)
{
    static const char *const cases[][2] = {
        {"\xED\xA0\x80x", "???x"},      {"\xED\x9F\xBFx", "\xED\x9F\xBFx"},
        {"\xE0\x9F\xBFx", "???x"},      {"\xE0\xA0\x80x", "\xE0\xA0\x80x"},
        {"\xF0\x8F\xBF\xBFx", "????x"}, {"\xF0\x90\x80\x80x", "\xF0\x90\x80\x80x"},
        {"\xF4\x90\x80\x80x", "????x"}, {"\xF4\x8F\xBF\xBFx", "\xF4\x8F\xBF\xBFx"},
        {"\xC1\xBFx", "??x"},           {"\xC2\x80x", "\xC2\x80x"},
        {"\xF5\x80x", "??x"},           {"\xFFx", "?x"},
        {"\xF0\x9F\x98x", "?x"},        {"\xE4\xB8\xE4\xB8", "??"},
        {"\xF0\x9F\x98", "?"},          {"\xDF", "?"},
    };
    struct sl_detokenizer *detok;
    uint32_t ids[8];
    char out[40];

    (void)state;
    assert_int_equal(sl_detokenizer_create(&detok, small, false, NULL), 0);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        size_t n = strlen(cases[i][0]), total = 0;
        char expected[40] = "";

        for (size_t k = 0; k < n; k++)
            ids[k] = byte_token((uint8_t)cases[i][0][k]);
        for (const char *at = cases[i][1]; *at; at++)
            total += (size_t)sprintf(expected + total, "%s",
                                     *at == '?' ? "\xEF\xBF\xBD" : (char[]){*at, '\0'});
        detokenize(detok, ids, n, out);
        if (strcmp(out, expected) != 0)
            fail_msg("case %zu: %s, expected %s", i, out, expected);
    }
    sl_detokenizer_destroy(detok);
}

static void test_detokenizer_hides_special_tokens(void **state)
{
    static const uint32_t ids[] = {0, 259, SMALL_THINK, 1};
    struct sl_detokenizer *detok;
    char out[100];

    (void)state;
    assert_int_equal(sl_detokenizer_create(&detok, small, false, NULL), 0);
    detokenize(detok, ids, 4, out);
    assert_string_equal(out, "the<think>");
    sl_detokenizer_destroy(detok);
    assert_int_equal(sl_detokenizer_create(&detok, small, true, NULL), 0);
    detokenize(detok, ids, 4, out);
    assert_string_equal(out, "<|bos|>the<think><|eos|>");
    sl_detokenizer_destroy(detok);
}

/* The small file with the first `from` replaced by `to`. The caller frees it. */
static char *changed(const char *from, const char *to)
{
    char *text, *place, *result;
    size_t length;

    assert_int_equal(sl_file_read_all(SMALL_PATH, 1 << 20, &text, &length, NULL), 0);
    place = strstr(text, from);
    if (!place)
        fail_msg("%s is not in the file", from);
    result = malloc(length + strlen(to) + 1);
    *place = '\0';
    sprintf(result, "%s%s%s", text, to, place + strlen(from));
    free(text);
    return result;
}

static const struct {
    const char *from, *to;
    int code;
    const char *message;
} refused[] = {
    {"{", "", SL_EFORMAT, "not valid JSON"},
    {"\"model\"", "\"modell\"", SL_EFORMAT, "\"model\" is missing"},
    {"\"BPE\"", "\"Unigram\"", SL_EUNSUPPORTED, "\"model\" is of type \"Unigram\""},
    {"\"vocab\"", "\"vocal\"", SL_EFORMAT, "model.vocab"},
    {"\"merges\"", "\"merge\"", SL_EFORMAT, "model.merges"},
    {"\"merges\": [", "\"merges\": [], \"rest\": [", SL_EFORMAT, "model.merges"},
    {"\"h e\"", "\"h \xD0\x96\"", SL_EFORMAT, "merges[0]: \"\xD0\x96\" is not in"},
    {"\"h e\"", "\"q x\"", SL_EFORMAT, "merges[0]: \"qx\" is not in"},
    {"\"h e\"", "\"he\"", SL_EFORMAT, "merges[0]"},
    {"\"h e\"", "\"h e \"", SL_EFORMAT, "merges[0]"},
    {"\"h e\"", "[\"h\"]", SL_EFORMAT, "merges[0]"},
    {"\"h e\"", "[\"h\", 1]", SL_EFORMAT, "merges[0]"},
    {"\"h e\"", "7", SL_EFORMAT, "merges[0]"},
    {"\"fuse_unk\": false", "\"ignore_merges\": true", SL_EUNSUPPORTED, "ignore_merges"},
    {"\"dropout\": null", "\"dropout\": 0.1", SL_EUNSUPPORTED, "\"model.dropout\" is 0.1"},
    {"\"version\": \"1.0\"", "\"version\": \"2.0\"", SL_EUNSUPPORTED, "\"version\" is \"2.0\""},
    {"\"truncation\": null", "\"truncation\": {\"max_length\": 3}", SL_EUNSUPPORTED,
     "\"truncation\" is {"},
    {"\"padding\": null", "\"padding\": {\"strategy\": {\"Fixed\": 9}}", SL_EUNSUPPORTED,
     "\"padding\" is {"},
    {"\"post_processor\": null", "\"post_processor\": {\"type\": \"TemplateProcessing\"}",
     SL_EUNSUPPORTED, "\"post_processor.type\" is \"TemplateProcessing\""},
    {"\"post_processor\": null", "\"post_processor\": {}", SL_EFORMAT, "post_processor"},
    {"\"continuing_subword_prefix\": null", "\"continuing_subword_prefix\": \"##\"",
     SL_EUNSUPPORTED, "continuing_subword_prefix"},
    {"\"fuse_unk\": false", "\"merges\": [\"h e\"]", SL_EFORMAT, "duplicate object key"},
    {"\\\\p{N}{1,3}", "([", SL_EFORMAT, "pretokenizers[0].pattern: not a valid regular"},
    {"\\\\p{N}{1,3}", "a)", SL_EFORMAT, "parenthesis (at byte 1)"},
    {"\\\\p{N}{1,3}", "\\\\C", SL_EFORMAT, "\\C is disabled"},
    {"\"Regex\"", "\"String\"", SL_EUNSUPPORTED, "pretokenizers[0]"},
    {"\"Isolated\"", "\"Removed\"", SL_EUNSUPPORTED, "behavior"},
    {"\"invert\": false", "\"invert\": true", SL_EUNSUPPORTED, "invert"},
    {"\"Split\"", "\"Digits\"", SL_EUNSUPPORTED, "pretokenizers[0]"},
    {"\"use_regex\": false", "\"use_regex\": true", SL_EUNSUPPORTED, "use_regex"},
    {"\"add_prefix_space\": false", "\"x\": 1", SL_EUNSUPPORTED, "add_prefix_space"},
    {"\"pretokenizers\"", "\"tokenizers\"", SL_EFORMAT, "pre_tokenizer.pretokenizers"},
    {"\"normalizers\": []", "\"normalizers\": [{}]", SL_EUNSUPPORTED, "normalizer"},
    {"\"type\": \"Sequence\"", "\"type\": \"NFC\"", SL_EUNSUPPORTED, "normalizer"},
    {"\"decoder\": {\"type\": \"ByteLevel\"", "\"decoder\": {\"type\": \"Fuse\"", SL_EUNSUPPORTED,
     "decoder"},
    {"\"he\": 258", "\"he\": 1048576", SL_EFORMAT, "\"he\""},
    {"\"he\": 258", "\"he\": -1", SL_EFORMAT, "\"he\""},
    {"\"he\": 258", "\"he\": \"258\"", SL_EFORMAT, "\"he\""},
    {"\"he\": 258", "\"he\": 259", SL_EFORMAT, "id 259"},
    {"\"he\": 258", "\"the\": 258", SL_EFORMAT, "duplicate"},
    {"\"\xC4\x80\": 2, ", "", SL_EFORMAT, "byte 0x00"},
    {"\"id\": 339", "\"id\": 340", SL_EFORMAT, "added_tokens[3]"},
    {"\"id\": 339", "\"id\": 258", SL_EFORMAT, "added_tokens[2]"},
    {"\"id\": 0", "\"id\": 338", SL_EFORMAT, "added_tokens[0]"},
    {"\"id\": 339", "\"id\": 1e3", SL_EFORMAT, "added_tokens[2]"},
    {"<|User|>", "", SL_EFORMAT, "added_tokens[2]"},
    {"<think>", "</think>", SL_EFORMAT, "\"</think>\" comes twice"},
    {"\"lstrip\": false", "\"lstrip\": true", SL_EUNSUPPORTED, "lstrip"},
    {"\"id\": 339, \"content\": \"<|User|>\"", "\"id\": 34, \"content\": \"\xC4\xA0\"",
     SL_EUNSUPPORTED, "byte 0x20"},
    {"\"id\": 339, \"content\": \"<|User|>\"", "\"id\": 259, \"content\": \"the\"", SL_EUNSUPPORTED,
     "merges[1] makes the added token \"the\""},
};

static void test_files_that_are_refused(void **state)
{

    (void)state;
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        char *json = changed(refused[i].from, refused[i].to);
        struct sl_tokenizer *tok = NULL;
        struct sl_err err;
        int rc = sl_tokenizer_parse(&tok, json, strlen(json), "a/file", &err);

        if (rc != -refused[i].code || !strstr(err.message, refused[i].message) ||
            !strstr(err.message, "a/file"))
            fail_msg("case %zu (%s): %d %s", i, refused[i].to, rc, rc < 0 ? err.message : "");
        assert_null(strchr(err.message, '\n'));
        assert_null(tok);
        free(json);
    }
}

/* Keys that change no id, and keys that nobody knows; each with its notes, all in one. */
static void test_files_that_are_taken(void **state)
{
    static const struct {
        const char *from, *to, *note; /* NULL: no note on keys */
    } cases[] = {
        {"\"byte_fallback\": false", "\"byte_fallback\": true", NULL},
        {"\"unk_token\": null", "\"unk_token\": \"<|bos|>\"", NULL},
        {"\"dropout\": null", "\"dropout\": 0.0", NULL},
        {"{", "\xEF\xBB\xBF{", NULL}, /* a byte order mark */
        {"\"post_processor\": null", "\"post_processor\": {\"type\": \"ByteLevel\"}", NULL},
        {"\"padding\": null", "\"colour\": \"red\", \"shade\": null", "no effect: colour"},
        {"\"fuse_unk\": false", "\"a\": 1, \"b\\n\": 2", "no effect: model.a, model.b?"},
        {"\"special\": true", "\"special\": true, \"x\": 1", "no effect: added_tokens[].x"},
        {"\"invert\": false", "\"y\": 1", "no effect: pre_tokenizer.pretokenizers[0].y"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *json = changed(cases[i].from, cases[i].to);
        struct sl_tokenizer *tok = NULL;
        const char *note, *on_keys = NULL;

        if (sl_tokenizer_parse(&tok, json, strlen(json), "a/file", NULL) < 0)
            fail_msg("case %zu (%s) is refused", i, cases[i].to);
        for (size_t k = 0; (note = sl_tokenizer_note(tok, k)); k++) {
            assert_int_equal(strncmp(note, "a/file ", 7), 0);
            assert_null(strchr(note, '\n'));
            if (strstr(note, "keys that are not known"))
                on_keys = note;
        }
        if (!cases[i].note != !on_keys)
            fail_msg("case %zu: %s", i, on_keys ? on_keys : "no note on keys");
        if (on_keys)
            assert_string_equal(strstr(on_keys, "no effect"), cases[i].note);
        sl_tokenizer_close(tok);
        free(json);
    }
    /* The small file has an expression of its own, and ids that leave a gap. */
    assert_non_null(strstr(sl_tokenizer_note(small, 0), "PCRE2"));
    assert_non_null(strstr(sl_tokenizer_note(small, 1), "\"<|User|>\" the id 339"));
    assert_non_null(strstr(sl_tokenizer_note(small, 1), "give it 334"));
    assert_null(sl_tokenizer_note(small, 2));
}

/* Ids that the tokenizers package of Hugging Face, 0.23.2, gives for files changed like this. */
static void test_ids_of_odd_files(void **state)
{
    static const struct {
        const char *from, *to, *text;
        uint32_t ids[8];
        size_t n_ids;
    } cases[] = {
        /* A merge that comes twice has the rank of the last one. */
        {"\"\u00e4\", \"\u00b8\u0143\u00e6\u0138\u0129\"]",
         "\"\u00e4\", \"\u00b8\u0143\u00e6\u0138\u0129\"], \"h e\"",
         "he then the",
         {258, 34, 118, 106, 261, 260},
         6},
        /* Added tokens that are not "normalized" are looked for first, so "<a>b" is not found. */
        {"  {\"id\": 339",
         "  {\"id\": 347, \"content\": \"b<\", \"normalized\": false},\n  {\"id\": 339",
         "<a>b<a>",
         {SMALL_A, 347, 99, 64},
         4},
        {"  {\"id\": 339",
         "  {\"id\": 347, \"content\": \"b<\", \"normalized\": true},\n  {\"id\": 339",
         "<a>b<a>",
         {SMALL_AB, SMALL_A},
         2},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *json = changed(cases[i].from, cases[i].to);
        struct sl_encoder *encoder;
        struct sl_tokenizer *tok;
        struct sl_err err;

        if (sl_tokenizer_parse(&tok, json, strlen(json), "odd", &err) < 0)
            fail_msg("case %zu: %s", i, err.message);
        assert_int_equal(sl_encoder_create(&encoder, tok, NULL), 0);
        check_ids(encode(encoder, cases[i].text, strlen(cases[i].text), SL_ENCODE_ADDED),
                  cases[i].ids, cases[i].n_ids);
        sl_encoder_destroy(encoder);
        sl_tokenizer_close(tok);
        free(json);
    }
}

/* Makes the file one whose tables jansson reads. Returns NULL where it has no "model" that can be
 * spelled otherwise. */
static char *spelled_otherwise(const char *text)
{
    const char *key = strstr(text, "\"model\"");
    char *other;

    if (!key || asprintf(&other, "%.*s\"mod\\u0065l\"%s", (int)(key - text), text, key + 7) < 0)
        return NULL;
    return other;
}

static void assert_same_tokens(const struct sl_tokenizer *tok, const struct sl_tokenizer *other)
{
    assert_int_equal(sl_tokenizer_id_count(tok), sl_tokenizer_id_count(other));
    for (uint32_t id = 0; id < sl_tokenizer_id_count(tok); id++) {
        size_t length = 0, other_length = 0;
        const uint8_t *bytes = sl_tokenizer_bytes(tok, id, &length);
        const uint8_t *other_bytes = sl_tokenizer_bytes(other, id, &other_length);

        assert_int_equal(length, other_length);
        if (length > 0)
            assert_memory_equal(bytes, other_bytes, length);
    }
}

/* Plain tables are read in a quick way, others by jansson: the same comes of both, whichever byte
 * of a file is another. */
static void test_tables_are_read_both_ways(void **state)
{
    static const char bytes[] = "\"\\{}[]:, 019a.-\n\x01\x80\xC3\xE4";
    uint32_t n_taken = 0, n_refused = 0;
    uint64_t seed = 7;
    size_t length;
    char *text;

    (void)state;
    assert_int_equal(
        sl_file_read_all(SMALL_PATH, SL_TOKENIZER_FILE_BYTES_MAX, &text, &length, NULL), 0);
    for (uint32_t i = 0; i < 4000; i++) {
        const size_t at = next_random(&seed) % length;
        const char was = text[at];
        struct sl_tokenizer *quick = NULL, *slow = NULL;
        char *other;
        int rc;

        if (i > 0)
            text[at] = bytes[next_random(&seed) % (sizeof(bytes) - 1)];
        other = spelled_otherwise(text);
        if (other) {
            rc = sl_tokenizer_parse(&quick, text, strlen(text), "file", NULL);
            assert_int_equal(sl_tokenizer_parse(&slow, other, strlen(other), "file", NULL), rc);
            if (rc == 0)
                assert_same_tokens(quick, slow);
            n_taken += rc == 0;
            n_refused += rc < 0;
        }
        sl_tokenizer_close(quick);
        sl_tokenizer_close(slow);
        free(other);
        text[at] = was;
    }
    free(text);
    assert_true(n_taken > 200 && n_refused > 200);
}

static void test_files_that_cannot_be_read(void **state)
{
    struct sl_tokenizer *tok = NULL;
    struct sl_err err;

    (void)state;
    assert_int_equal(sl_tokenizer_open(&tok, "tests/data/none.json", &err), -ENOENT);
    assert_non_null(strstr(err.message, "tests/data/none.json"));
    assert_int_equal(sl_tokenizer_open(&tok, "core", &err), -ENOENT);
    assert_non_null(strstr(err.message, "core/tokenizer.json"));
    assert_int_equal(sl_tokenizer_parse(&tok, "", SL_TOKENIZER_FILE_BYTES_MAX + 1u, "large", &err),
                     -SL_EFORMAT);
    assert_int_equal(sl_tokenizer_open(&tok, "tests/data", &err), 0); /* a folder that has one */
    sl_tokenizer_close(tok);
}

static void test_expression_that_takes_for_ever(void **state)
{
    char *json = changed("\\\\p{N}{1,3}", "1|(a+)+$"), text[64];
    struct sl_token_list list = {0};
    struct sl_tokenizer *tok;
    struct sl_encoder *encoder;
    struct sl_err err;

    (void)state;
    assert_int_equal(sl_tokenizer_parse(&tok, json, strlen(json), "slow", NULL), 0);
    assert_int_equal(sl_encoder_create(&encoder, tok, NULL), 0);
    assert_int_equal(sl_encode(encoder, "b", 1, 0, &list, &err), 0);
    memset(text, 'a', sizeof(text));
    text[0] = '1'; /* a word comes out before it fails */
    text[63] = '!';
    assert_int_equal(sl_encode(encoder, text, sizeof(text), 0, &list, &err), -SL_EFORMAT);
    assert_non_null(strstr(err.message, "step 0"));
    assert_int_equal(list.n, 1); /* as before the call */
    sl_token_list_fini(&list);
    sl_encoder_destroy(encoder);
    sl_tokenizer_close(tok);
    free(json);
}

/* An expression that can match nothing cuts, and drops nothing. */
static void test_empty_matches(void **state)
{
    char *json = changed("\\\\p{N}{1,3}", "(?=n)|x*");
    struct sl_token_list list = {0};
    struct sl_tokenizer *tok;
    struct sl_encoder *encoder;

    (void)state;
    assert_int_equal(sl_tokenizer_parse(&tok, json, strlen(json), "empty", NULL), 0);
    assert_int_equal(sl_encoder_create(&encoder, tok, NULL), 0);
    assert_int_equal(sl_encode(encoder, "then\xE4\xB8\xAD", 7, 0, &list, NULL), 0);
    /* A cut before every character: t, h, e, n, and two tokens for the last one's three bytes. */
    assert_int_equal(list.n, 6);
    sl_token_list_fini(&list);
    sl_encoder_destroy(encoder);
    sl_tokenizer_close(tok);
    free(json);
}

static void *encode_in_thread(void *context)
{
    static const char text[] = "the hen and <|User|> \xE4\xB8\xAD 12345";
    struct sl_token_list *list = context;
    struct sl_encoder *encoder;

    if (sl_encoder_create(&encoder, small, NULL) < 0)
        return NULL;
    for (int i = 0; i < 200; i++)
        sl_encode(encoder, text, sizeof(text) - 1, i & 1, list, NULL);
    sl_encoder_destroy(encoder);
    return NULL;
}

static void test_threads_share_a_tokenizer(void **state)
{
    struct sl_token_list lists[2] = {{0}};
    pthread_t threads[2];

    (void)state;
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, encode_in_thread, &lists[i]), 0);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    assert_true(lists[0].n > 1000);
    check_ids(&lists[0], lists[1].ids, lists[1].n);
    for (int i = 0; i < 2; i++)
        sl_token_list_fini(&lists[i]);
}

/* The model's own files, where they are present. */
struct model {
    const char *folder;
    struct sl_tokenizer *tok;
    struct sl_encoder *encoder;
};

static const char *model_path(char path[4096], const char *name)
{
    const char *folder = getenv("SL_SHARED");

    snprintf(path, 4096, "%s/%s", folder ? folder : "../shared", name);
    return path;
}

static int open_model(void **state)
{
    static struct model model;
    struct sl_err err;
    char path[4096];

    model = (struct model){0};
    *state = &model;
    if (sl_tokenizer_open(&model.tok, model_path(path, "tokenizer"), &err) < 0) {
        print_message("%s: the model's own tokenizer is not compared\n", err.message);
        return 0;
    }
    return sl_encoder_create(&model.encoder, model.tok, &err);
}

static int close_model(void **state)
{
    struct model *model = *state;

    encode(NULL, NULL, 0, 0);
    sl_encoder_destroy(model->encoder);
    sl_tokenizer_close(model->tok);
    return 0;
}

static void test_model_cases(void **state)
{
    const struct model *model = *state;
    json_t *cases, *item;
    json_error_t error;
    char path[4096];
    size_t i;

    if (!model->tok)
        skip();
    cases = json_load_file(model_path(path, "tokenizer/cases.json"), JSON_ALLOW_NUL, &error);
    assert_true(json_array_size(cases) > 0);
    json_array_foreach(cases, i, item)
    {
        const json_t *text = json_object_get(item, "text"), *ids = json_object_get(item, "ids");
        const struct sl_token_list *list = encode(model->encoder, json_string_value(text),
                                                  json_string_length(text), SL_ENCODE_ADDED);

        if (list->n != json_array_size(ids))
            fail_msg("case %zu: %zu ids, expected %zu", i, list->n, json_array_size(ids));
        for (size_t k = 0; k < list->n; k++)
            if (list->ids[k] != json_integer_value(json_array_get(ids, k)))
                fail_msg("case %zu: id %zu differs", i, k);
    }
    json_decref(cases);
}

/* The conversations of the model's repository, and how many tokens each is known to have. */
static void test_model_conversations(void **state)
{
    static const uint32_t second[] = {
        0,      3476, 477,  260,  11502, 22896, 16,    128803, 19923,  128804, 128822,
        23166,  1031, 3,    1730, 588,   342,   1694,  440,    33,     1,      128803,
        3085,   344,  270,  6102, 294,   8760,  33,    128804, 128821, 671,    3967,
        20407,  943,  270,  6102, 294,   8760,  16,    983,    344,    11111,  16,
        128822, 671,  6102, 294,  8760,  344,   11111, 16,     1};
    static const size_t n_tokens[] = {541, 53, 820, 582};
    const struct model *model = *state;
    const struct sl_token_list *list;
    char path[4096], name[64], *text;
    size_t length;

    if (!model->tok)
        skip();
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof(name), "chat-tests/test_output_%d.txt", i + 1);
        assert_int_equal(sl_file_read_all(model_path(path, name), 1 << 20, &text, &length, NULL),
                         0);
        list = encode(model->encoder, text, length, SL_ENCODE_ADDED);
        assert_int_equal(list->n, n_tokens[i]);
        if (i == 1)
            check_ids(list, second, sizeof(second) / sizeof(second[0]));
        list = encode(model->encoder, text, length, 0);
        for (size_t k = 0; k < list->n; k++)
            assert_in_range(list->ids[k], 3, 127999);
        free(text);
    }
}

/* SL_BENCH=1 prints the rate on English text; SL_BENCH_TEXT names another file. */
static void test_model_rate(void **state)
{
    const struct model *model = *state;
    const char *path = getenv("SL_BENCH_TEXT");
    size_t length, n_bytes = 0;
    uint64_t start_ns;
    double seconds;
    char *text;

    if (!model->tok || !getenv("SL_BENCH"))
        skip();
    path = path ? path : "/usr/share/common-licenses/GPL-3";
    assert_int_equal(sl_file_read_all(path, 1 << 30, &text, &length, NULL), 0);
    start_ns = sl_clock_ns();
    for (; n_bytes < 20000000; n_bytes += length)
        encode(model->encoder, text, length, 0);
    seconds = (double)(sl_clock_ns() - start_ns) / 1e9;
    print_message("encode: %.1f MB/s (%s, %zu bytes)\n", (double)n_bytes / seconds / 1e6, path,
                  length);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_added_tokens),
        cmocka_unit_test(test_bytes_go_round),
        cmocka_unit_test(test_merges_as_the_plain_way_does),
        cmocka_unit_test(test_long_run_of_one_letter),
        cmocka_unit_test(test_detokenizer_waits_for_whole_characters),
        cmocka_unit_test(test_detokenizer_replaces_malformed_bytes),
        cmocka_unit_test(test_detokenizer_hides_special_tokens),
        cmocka_unit_test(test_files_that_are_refused),
        cmocka_unit_test(test_files_that_are_taken),
        cmocka_unit_test(test_ids_of_odd_files),
        cmocka_unit_test(test_tables_are_read_both_ways),
        cmocka_unit_test(test_files_that_cannot_be_read),
        cmocka_unit_test(test_expression_that_takes_for_ever),
        cmocka_unit_test(test_empty_matches),
        cmocka_unit_test(test_threads_share_a_tokenizer),
    };
    const struct CMUnitTest model_tests[] = {
        cmocka_unit_test(test_model_cases),
        cmocka_unit_test(test_model_conversations),
        cmocka_unit_test(test_model_rate),
    };
    int failed = cmocka_run_group_tests_name("tokenizer", tests, open_small, close_small);

    return failed + cmocka_run_group_tests_name("tokenizer of the model", model_tests, open_model,
                                                close_model);
}
