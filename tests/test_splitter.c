/* Cutting text into words: by the three expressions of DeepSeek-V4 every code point and 100,000
 * random strings are cut as the tokenizers of Hugging Face cut them (tests/tokenizer/words.txt has
 * hashes of their words). PCRE2 cuts ASCII in the same way. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/base/json.h"
#include "core/text/splitter.h"
#include "core/text/unicode_classes.h"

#define TOKENIZER_PATH "tests/small/tokenizer.json"
#define WORDS_PATH "tests/tokenizer/words.txt"
#define CODE_POINTS 0x110000u
#define BLOCK 4096u
#define N_RANDOM 100000u
#define TEXT_BYTES_MAX 512

static struct sl_splitter *splitter, *pcre2; /* the latter: expressions that say the same */
static struct sl_split_scratch *scratch;

static int open_splitters(void **state)
{
    const json_t *steps, *regex;
    json_t *root;
    char other[256];
    int rc = 0;

    (void)state;
    splitter = sl_splitter_create();
    pcre2 = sl_splitter_create();
    scratch = sl_split_scratch_create();
    if (sl_json_read_file(&root, TOKENIZER_PATH, 1 << 20, NULL) < 0)
        return -1;
    steps = json_object_get(json_object_get(root, "pre_tokenizer"), "pretokenizers");
    for (size_t i = 0; i < 3; i++) {
        regex = json_object_get(json_object_get(json_array_get(steps, i), "pattern"), "Regex");
        snprintf(other, sizeof(other), "(?:%s)", json_string_value(regex));
        rc |= sl_splitter_add(splitter, json_string_value(regex), json_string_length(regex), "own",
                              NULL);
        rc |= sl_splitter_add(pcre2, other, strlen(other), "other", NULL);
    }
    json_decref(root);
    return rc;
}

static int close_splitters(void **state)
{
    (void)state;
    sl_splitter_destroy(splitter);
    sl_splitter_destroy(pcre2);
    sl_split_scratch_destroy(scratch);
    return 0;
}

static int hash_word(void *context, const uint8_t *word, size_t n)
{
    uint32_t *hash = context;

    (void)word;
    *hash = (*hash ^ (uint32_t)n) * 16777619u;
    return 0;
}

static uint32_t hash_words(const struct sl_splitter *by, uint32_t hash, const char *text, size_t n)
{
    assert_int_equal(sl_split(by, scratch, (const uint8_t *)text, n, hash_word, &hash, NULL), 0);
    return hash;
}

struct text {
    char bytes[TEXT_BYTES_MAX];
    size_t n;
};

static void append(struct text *text, const char *more)
{
    size_t n = strlen(more);

    assert_true(n <= TEXT_BYTES_MAX - text->n);
    memcpy(text->bytes + text->n, more, n);
    text->n += n;
}

static void append_character(struct text *text, uint32_t c)
{
    char *out = text->bytes + text->n;
    int n_more = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    static const uint8_t lead[] = {0, 0xC0, 0xE0, 0xF0};

    assert_true(text->n + 4 <= TEXT_BYTES_MAX);
    *out++ = (char)(lead[n_more] | c >> 6 * n_more);
    for (int i = n_more - 1; i >= 0; i--)
        *out++ = (char)(0x80 | (c >> 6 * i & 0x3F));
    text->n = (size_t)(out - text->bytes);
}

static bool is_surrogate(uint32_t c)
{
    return c >= 0xD800 && c <= 0xDFFF;
}

/* Here and below, the texts of tests/tokenizer/reference_words.mjs. */
static uint32_t hash_block(uint32_t first)
{
    static const char *const between[] = {"a", "b1",       "2 ",     " !", "a\n", "\n",
                                          "",  "中",       "あ・",   " ",  "!",   "\u0301  ",
                                          ".", ".\r\n \t", "x 1234", "5"};
    const size_t n_between = sizeof(between) / sizeof(between[0]);
    uint32_t hash = 2166136261u;

    for (uint32_t c = first; c < first + BLOCK; c++) {
        struct text text = {.n = 0};

        if (is_surrogate(c))
            continue;
        for (size_t i = 0; i < n_between; i++) {
            if (i > 0)
                append_character(&text, c);
            append(&text, between[i]);
        }
        hash = hash_words(splitter, hash, text.bytes, text.n);
    }
    return hash;
}

static uint32_t next_random(uint32_t *state, uint32_t n)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state % n;
}

static void random_text(uint32_t index, struct text *text)
{
    static const char *const scraps[] = {"1234", " ",      "  ",     "\n",    "\r\n", "\t",
                                         "a",    "'s",     "!",      "?\n",   "中文", "あ",
                                         "・",   "\u00a0", "\u3000", "\u180e"};
    uint32_t state = (index + 1) * 2654435761u;

    text->n = 0;
    for (uint32_t runs = 1 + next_random(&state, 8); runs > 0; runs--) {
        uint32_t base;

        if (next_random(&state, 4) == 0) {
            append(text, scraps[next_random(&state, sizeof(scraps) / sizeof(scraps[0]))]);
            continue;
        }
        base = next_random(&state, SL_UNICODE_CLASS_RANGES - 5);
        for (uint32_t n = 1 + next_random(&state, 6); n > 0; n--) {
            uint32_t i = base + next_random(&state, 5), first = sl_unicode_classes[i] / 8;
            uint32_t c = first + next_random(&state, sl_unicode_classes[i + 1] / 8 - first);

            append_character(text, is_surrogate(c) ? 'a' : c);
        }
    }
}

static uint32_t hash_random_texts(uint32_t first)
{
    uint32_t hash = 2166136261u;
    struct text text;

    for (uint32_t i = first; i < first + 1000; i++) {
        random_text(i, &text);
        hash = hash_words(splitter, hash, text.bytes, text.n);
    }
    return hash;
}

static void test_words_as_the_reference_cuts_them(void **state)
{
    uint32_t first, expected, hash, n_blocks = 0, n_random = 0;
    FILE *file = fopen(WORDS_PATH, "r");
    char line[100];

    (void)state;
    assert_non_null(file);
    while (fgets(line, sizeof(line), file)) {
        if (sscanf(line, "from U+%" SCNx32 " %" SCNx32, &first, &expected) == 2) {
            hash = hash_block(first);
            n_blocks++;
        } else if (sscanf(line, "random %" SCNu32 " %" SCNx32, &first, &expected) == 2) {
            hash = hash_random_texts(first);
            n_random++;
        } else {
            continue;
        }
        if (hash != expected)
            fail_msg("words differ: %s", line);
    }
    fclose(file);
    assert_int_equal(n_blocks, CODE_POINTS / BLOCK);
    assert_int_equal(n_random, N_RANDOM / 1000);
}

/* ASCII has been the same in every version of Unicode. */
static void test_ascii_as_pcre2_cuts_it(void **state)
{
    static const char letters[] = "ab 0189/:  \n\r\t!.,'x\x0b\x0c\x01";
    uint32_t random = 1;
    char text[40];

    (void)state;
    assert_false(sl_splitter_asks_pcre2(splitter));
    assert_true(sl_splitter_asks_pcre2(pcre2));
    for (int round = 0; round < 100000; round++) {
        size_t n = next_random(&random, sizeof(text));

        for (size_t i = 0; i < n; i++)
            text[i] = letters[next_random(&random, sizeof(letters) - 1)];
        if (hash_words(splitter, 1, text, n) != hash_words(pcre2, 1, text, n))
            fail_msg("\"%.*s\" is cut otherwise", (int)n, text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_words_as_the_reference_cuts_them),
        cmocka_unit_test(test_ascii_as_pcre2_cuts_it),
    };

    return cmocka_run_group_tests_name("splitter", tests, open_splitters, close_splitters);
}
