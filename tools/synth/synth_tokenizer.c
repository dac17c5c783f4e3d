#include "tools/synth/synth_tokenizer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/json.h"

#define TOKEN_TEXT_BYTES 128 /* the longest: a few words in the byte alphabet */
#define SPACE "\u0120"       /* the byte alphabet's letter for a space */

/* Tokens that the chat encoding knows by name. `special` ones are left out of decoded text. */
static const struct {
    const char *text;
    bool special;
} first_tokens[] = {{"<｜begin▁of▁sentence｜>", true},
                    {"<｜end▁of▁sentence｜>", true},
                    {"<｜▁pad▁｜>", true}},
  chat_tokens[] = {
      {"<｜User｜>", false},    {"<｜Assistant｜>", false}, {"<think>", false},
      {"</think>", false},      {"｜DSML｜", false},        {"<｜latest_reminder｜>", false},
      {"<｜action｜>", false},  {"<｜query｜>", false},     {"<｜authority｜>", false},
      {"<｜domain｜>", false},  {"<｜title｜>", false},     {"<｜extracted_url｜>", false},
      {"<｜read_url｜>", false}};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static const char pairs[] = "th he in er an re on at en nd st es or te of ed is it al ar "
                            "ou to nt ng se ha le as ve co me de hi ri ro ic ne ea ra ce";

static const char words[] =
    "the and of to in is that it was for on are with as his they at be this from have or by one "
    "had not but what all were when we there can an your which their said if do will each about "
    "how up out them then she many some so these would other into has more her two like him see "
    "time could no make than first been its who now people my made over did down only way find "
    "use may water long little very after words called just where most know river stone light "
    "house field night road open small green mountain summer winter morning story garden window";

struct builder {
    json_t *vocab;  /* text -> id */
    json_t *merges; /* "left right", in the order in which they apply */
    uint32_t next_id;
    uint32_t vocab_size;
};

static bool full(const struct builder *b)
{
    return b->next_id == b->vocab_size;
}

static int add_token(struct builder *b, const char *text)
{
    return json_object_set_new(b->vocab, text, json_integer(b->next_id++)) < 0 ? -ENOMEM : 0;
}

/* Adds the token left + right; nothing if there is one already or the vocabulary is full. */
static int add_merge(struct builder *b, const char *left, const char *right)
{
    char text[2 * TOKEN_TEXT_BYTES + 2];

    snprintf(text, sizeof(text), "%s%s", left, right);
    if (full(b) || json_object_get(b->vocab, text))
        return 0;
    if (add_token(b, text) < 0)
        return -ENOMEM;
    snprintf(text, sizeof(text), "%s %s", left, right);
    return json_array_append_new(b->merges, json_string(text)) < 0 ? -ENOMEM : 0;
}

/* The GPT-2 byte alphabet: printable bytes stand for themselves, the other 68 for U+0100 on. */
static int add_bytes(struct builder *b)
{
    uint32_t others = 0;

    for (uint32_t byte = 0; byte < 256; byte++) {
        bool printable = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
        uint32_t code = printable ? byte : 0x100 + others++;
        char text[3] = {(char)code};

        if (code >= 0x80) {
            text[0] = (char)(0xc0 | code >> 6);
            text[1] = (char)(0x80 | (code & 0x3f));
        }
        if (add_token(b, text) < 0)
            return -ENOMEM;
    }
    return 0;
}

/* Copies the word that starts at *at and moves *at behind it. Returns false at the end of the
 * list. */
static bool next_word(const char **at, char word[TOKEN_TEXT_BYTES])
{
    size_t length = strcspn(*at, " ");

    if (length == 0)
        return false;
    snprintf(word, TOKEN_TEXT_BYTES, "%.*s", (int)length, *at);
    *at += length + ((*at)[length] == ' ');
    return true;
}

/* Adds a word letter by letter, each with a token for the letters so far; then the word with a
 * space before it. */
static int add_word(struct builder *b, const char *word)
{
    char left[TOKEN_TEXT_BYTES] = "", right[2] = "";
    int rc = 0;

    for (size_t i = 1; word[i] && rc == 0; i++) {
        snprintf(left, sizeof(left), "%.*s", (int)i, word);
        right[0] = word[i];
        rc = add_merge(b, left, right);
    }
    return rc < 0 ? rc : add_merge(b, SPACE, word);
}

/* Joins every token that begins with a space, new ones included, with every word, until the
 * vocabulary is full: " river", then " riverstone", then " riverstonelight". */
static int add_compounds(struct builder *b)
{
    size_t at_merge = 0;

    while (!full(b) && at_merge < json_array_size(b->merges)) {
        const char *merge = json_string_value(json_array_get(b->merges, at_merge++));
        const char *gap = strchr(merge, ' '), *list = words;
        char left[TOKEN_TEXT_BYTES], word[TOKEN_TEXT_BYTES];

        if (strncmp(merge, SPACE, strlen(SPACE)) != 0)
            continue;
        snprintf(left, sizeof(left), "%.*s%s", (int)(gap - merge), merge, gap + 1);
        while (!full(b) && next_word(&list, word))
            if (add_merge(b, left, word) < 0)
                return -ENOMEM;
    }
    return 0;
}

static int add_added_token(json_t *added, uint32_t id, const char *text, bool special)
{
    json_t *token = json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", (int)id, "content", text,
                              "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", !special,
                              "special", special);

    return json_array_append_new(added, token) < 0 ? -ENOMEM : 0;
}

static int add_tokens(struct builder *b, json_t *added)
{
    char word[TOKEN_TEXT_BYTES];
    const char *list;
    int rc = 0;

    for (size_t i = 0; i < COUNT(first_tokens) && rc == 0; i++) {
        rc = add_added_token(added, b->next_id, first_tokens[i].text, first_tokens[i].special);
        rc = rc < 0 ? rc : add_token(b, first_tokens[i].text);
    }
    rc = rc < 0 ? rc : add_bytes(b);
    /* Added tokens are in the vocabulary as well: Hugging Face's tokenizers take their ids from
     * there, and would otherwise number them from its end. */
    for (size_t i = 0; i < COUNT(chat_tokens) && rc == 0; i++) {
        rc = add_added_token(added, b->next_id, chat_tokens[i].text, chat_tokens[i].special);
        rc = rc < 0 ? rc : add_token(b, chat_tokens[i].text);
    }
    for (list = pairs; rc == 0 && next_word(&list, word);) {
        char left[2] = {word[0]};

        rc = add_merge(b, left, word + 1);
    }
    for (list = words; rc == 0 && next_word(&list, word);)
        rc = add_word(b, word);
    return rc < 0 ? rc : add_compounds(b);
}

/* Splits text into digits in groups of up to three; runs of CJK and kana; and the rest: a sign and
 * letters, words with the character before them, other signs, line ends, white space. */
static json_t *pre_tokenizer(void)
{
    static const char *const expressions[] = {
        "\\p{N}{1,3}",
        "[一-龥\u3040-ゟ゠-ヿ]+",
        ("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?"
         "[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"),
    };
    json_t *list = json_array();

    for (size_t i = 0; i < COUNT(expressions); i++)
        json_array_append_new(list, json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split",
                                              "pattern", "Regex", expressions[i], "behavior",
                                              "Isolated", "invert", 0));
    json_array_append_new(list,
                          json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space",
                                    0, "trim_offsets", 1, "use_regex", 0));
    return json_pack("{s:s, s:o}", "type", "Sequence", "pretokenizers", list);
}

int sl_synth_tokenizer(uint32_t vocab_size, char **ret_text, struct sl_err *err)
{
    const uint32_t least = COUNT(first_tokens) + 256 + COUNT(chat_tokens);
    struct builder b = {.vocab = json_object(), .merges = json_array(), .vocab_size = vocab_size};
    json_t *added = json_array(), *root = NULL;
    char *text = NULL;
    int rc;

    if (vocab_size < least)
        rc = sl_err_set(err, -SL_EFORMAT,
                        "\"vocab_size\" is %u; the bytes and special tokens alone are %u",
                        vocab_size, least);
    else
        rc = add_tokens(&b, added);
    if (rc == 0) {
        root = json_pack("{s:s, s:n, s:n, s:O, s:n, s:o, s:n, s:{s:s, s:b, s:b, s:b}, "
                         "s:{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:O, s:O}}",
                         "version", "1.0", "truncation", "padding", "added_tokens", added,
                         "normalizer", "pre_tokenizer", pre_tokenizer(), "post_processor",
                         "decoder", "type", "ByteLevel", "add_prefix_space", 1, "trim_offsets", 1,
                         "use_regex", 1, "model", "type", "BPE", "dropout", "unk_token",
                         "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0,
                         "byte_fallback", 0, "vocab", b.vocab, "merges", b.merges);
        text = json_dumps(root, JSON_INDENT(1));
        if (!text)
            rc = sl_err_set(err, -ENOMEM, "out of memory for the tokenizer");
    }
    json_decref(root);
    json_decref(added);
    json_decref(b.vocab);
    json_decref(b.merges);
    if (rc == 0)
        *ret_text = text;
    return rc;
}
