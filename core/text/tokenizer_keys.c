/* A table for each object of tokenizer.json. What changes the ids is read by tokenizer_file.c, or
 * must have one of the values given here; anything else is unknown and listed. */
#include "core/text/tokenizer_keys.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/base/json_keys.h"
#include "core/base/size.h"

#define OFF                                                                                        \
    {                                                                                              \
        "null", "false"                                                                            \
    }
#define NO_TEXT                                                                                    \
    {                                                                                              \
        "null", "\"\""                                                                             \
    }

/* clang-format off */
static const struct sl_json_key file_keys[] = {
    {"added_tokens", {0}}, {"decoder", {0}}, {"model", {0}}, {"normalizer", {0}},
    {"post_processor", {0}}, {"pre_tokenizer", {0}},
    {"padding", OFF},
    {"truncation", OFF},
    {"version", {"\"1.0\""}},
};

static const struct sl_json_key model_keys[] = {
    {"merges", {0}}, {"type", {0}}, {"vocab", {0}},
    /* These say what becomes of a byte that has no token. Every byte must have one here. */
    {"byte_fallback", {0}}, {"fuse_unk", {0}}, {"unk_token", {0}},
    {"continuing_subword_prefix", NO_TEXT},
    {"dropout", {"null", "0.0", "0"}},
    {"end_of_word_suffix", NO_TEXT},
    {"ignore_merges", OFF},
};

static const struct sl_json_key added_token_keys[] = {
    {"content", {0}}, {"id", {0}}, {"lstrip", {0}}, {"normalized", {0}}, {"rstrip", {0}},
    {"single_word", {0}}, {"special", {0}},
};

static const struct sl_json_key normalizer_keys[] = {
    {"normalizers", {"[]"}},
    {"type", {"\"Sequence\""}},
};

static const struct sl_json_key pre_tokenizer_keys[] = {{"pretokenizers", {0}}, {"type", {0}}};

static const struct sl_json_key split_keys[] = {
    {"pattern", {0}}, {"type", {0}},
    {"behavior", {"\"Isolated\""}},
    {"invert", OFF},
};

static const struct sl_json_key pattern_keys[] = {{"Regex", {0}}};

static const struct sl_json_key byte_level_keys[] = {
    {"trim_offsets", {0}}, /* of no use to ids */
    {"type", {0}},
    {"add_prefix_space", {"false"}},
    {"use_regex", {"false"}},
};

/* ByteLevel as a post-processor moves offsets, which nobody asks for here, and no id. */
static const struct sl_json_key post_processor_keys[] = {
    {"add_prefix_space", {0}}, {"trim_offsets", {0}}, {"use_regex", {0}},
    {"type", {"\"ByteLevel\""}}, /* others put tokens before a text or behind it */
};

static const struct sl_json_key decoder_keys[] = {
    {"add_prefix_space", {0}}, {"trim_offsets", {0}}, {"type", {0}}, {"use_regex", {0}},
};
/* clang-format on */

static int check_steps(struct sl_json_checker *in, const json_t *steps)
{
    const json_t *step;
    char prefix[80];
    size_t i;
    int rc = 0;

    json_array_foreach(steps, i, step)
    {
        const char *type = json_string_value(json_object_get(step, "type"));

        snprintf(prefix, sizeof(prefix), "pre_tokenizer.pretokenizers[%zu].", i);
        if (type && strcmp(type, "ByteLevel") == 0) {
            rc = SL_JSON_CHECK_KEYS(in, prefix, step, byte_level_keys);
        } else if (type && strcmp(type, "Split") == 0) {
            rc = SL_JSON_CHECK_KEYS(in, prefix, step, split_keys);
            snprintf(prefix, sizeof(prefix), "pre_tokenizer.pretokenizers[%zu].pattern.", i);
            if (rc == 0)
                rc = SL_JSON_CHECK_KEYS(in, prefix, json_object_get(step, "pattern"), pattern_keys);
        }
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* There may be a thousand added tokens: each key that one of them has is looked at once. */
static int check_added_tokens(struct sl_json_checker *in, const json_t *tokens)
{
    json_t *all = json_object(), *token;
    size_t i;
    int rc = all ? 0 : -1;

    json_array_foreach(tokens, i, token)
    {
        if (rc == 0 && json_is_object(token))
            rc = json_object_update_missing(all, token);
    }
    rc = rc < 0 ? sl_err_set(in->err, -ENOMEM, "%s: out of memory", in->where)
                : SL_JSON_CHECK_KEYS(in, "added_tokens[].", all, added_token_keys);
    json_decref(all);
    return rc;
}

int sl_tokenizer_check_keys(const json_t *root, char *unknown, size_t unknown_bytes,
                            const char *where, struct sl_err *err)
{
    static const char *const objects[] = {"normalizer", "pre_tokenizer", "post_processor",
                                          "decoder", "model"};
    const json_t *pre_tokenizer = json_object_get(root, "pre_tokenizer");
    struct sl_json_checker in = sl_json_checker_start(unknown, unknown_bytes, where, err);
    int rc;

    for (size_t i = 0; i < SL_ARRAY_LEN(objects); i++) {
        const json_t *object = json_object_get(root, objects[i]);

        if (object && !json_is_null(object) && !json_is_string(json_object_get(object, "type")))
            return sl_err_set(err, -SL_EFORMAT, "%s: \"%s\" is not an object with a \"type\"",
                              where, objects[i]);
    }
    if ((rc = SL_JSON_CHECK_KEYS(&in, "", root, file_keys)) < 0 ||
        (rc = check_added_tokens(&in, json_object_get(root, "added_tokens"))) < 0 ||
        (rc = SL_JSON_CHECK_KEYS(&in, "normalizer.", json_object_get(root, "normalizer"),
                                 normalizer_keys)) < 0 ||
        (rc = SL_JSON_CHECK_KEYS(&in, "pre_tokenizer.", pre_tokenizer, pre_tokenizer_keys)) < 0 ||
        (rc = check_steps(&in, json_object_get(pre_tokenizer, "pretokenizers"))) < 0 ||
        (rc = SL_JSON_CHECK_KEYS(&in, "post_processor.", json_object_get(root, "post_processor"),
                                 post_processor_keys)) < 0 ||
        (rc = SL_JSON_CHECK_KEYS(&in, "decoder.", json_object_get(root, "decoder"), decoder_keys)) <
            0 ||
        (rc = SL_JSON_CHECK_KEYS(&in, "model.", json_object_get(root, "model"), model_keys)) < 0)
        return rc;
    sl_json_checker_end(&in);
    return 0;
}
