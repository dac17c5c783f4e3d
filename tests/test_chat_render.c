/* Prompts of conversations: each rule of the format by a small conversation and what it must print,
 * and DeepSeek's own fixtures where they are at hand. Text that spells control tokens stays text.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/base/file.h"
#include "core/text/chat_json.h"
#include "core/text/chat_render.h"

#define FIXTURES "../shared/chat-tests/"

/* In what is expected, these stand for the control tokens with many letters. */
static const struct {
    char sign;
    const char *token;
} signs[] = {{'^', "<｜begin▁of▁sentence｜>"},
             {'$', "<｜end▁of▁sentence｜>"},
             {'@', "<｜User｜>"},
             {'&', "<｜Assistant｜>"},
             {'|', "｜DSML｜"},
             {'~', "<｜latest_reminder｜>"},
             {'%', "<｜action｜>"},
             {'+', "</think>"},
             {'*', "<think>"}};

static void expand(const char *text, char *out, size_t size)
{
    size_t n = 0;

    for (; *text; text++) {
        const char *token = NULL;

        for (size_t i = 0; i < sizeof(signs) / sizeof(signs[0]); i++)
            if (signs[i].sign == *text)
                token = signs[i].token;
        n += (size_t)snprintf(out + n, size - n, token ? "%s" : "%.1s", token ? token : text);
        assert_true(n < size);
    }
    out[n] = 0;
}

static json_t *parse(const char *text)
{
    json_error_t error;
    json_t *value = json_loads(text, JSON_DECODE_ANY, &error);

    if (!value)
        fail_msg("%s: %s", text, error.text);
    return value;
}

struct example {
    const char *messages;
    const char *expected; /* with the signs above; NULL: refused */
    struct sl_chat_options options;
};

#define CHAT                                                                                       \
    {                                                                                              \
        .thinking = false                                                                          \
    }
#define THINKING                                                                                   \
    {                                                                                              \
        .thinking = true                                                                           \
    }
#define KEEP                                                                                       \
    {                                                                                              \
        .thinking = true, .keep_thinking = true                                                    \
    }
#define M(role, rest) "{\"role\":\"" role "\"" rest "}"
#define U(text) M("user", ",\"content\":\"" text "\"")
#define A(text, rest) M("assistant", ",\"content\":\"" text "\"" rest)
#define R(text) ",\"reasoning_content\":\"" text "\""
#define CALL(name, arguments, id)                                                                  \
    "{\"id\":\"" id "\",\"function\":{\"name\":\"" name "\",\"arguments\":" arguments "}}"
#define T(text, id) M("tool", ",\"content\":\"" text "\",\"tool_call_id\":\"" id "\"")

static const struct example examples[] = {
    {"[]", "^", THINKING},
    {"[" U("hi") "]", "^@hi&*", THINKING},
    {"[" U("hi") "]", "^@hi&+", CHAT},
    {"[" M("system", ",\"content\":\"s\"") "]", "^s", THINKING},
    {"[" U("a") "," U("b") "]", "^@a\n\nb&*", THINKING},
    {"[" U("") "," U("b") "]", "^@\n\nb&*", THINKING},
    {"[" U("a") "," M("system", ",\"content\":\"mid\"") "]", "^@amid", CHAT},
    {"[" U("a") "," A("b", R("r")) "," U("c") "]", "^@a&+b$@c&*", THINKING},
    {"[" U("a") "," A("b", R("r")) "," U("c") "]", "^@a&*r+b$@c&*", KEEP},
    {"[" U("a") "," A("b", "") "]", "^@a&*+b$", THINKING},
    {"[" A("x", R("r")) "]", "^r+x$", THINKING},
    {"[" U("a") "," A("x", "") "," A("y", "") "]", "^@a&+x$y$", CHAT},
    {"[" U("a") "," A("pre", ",\"wo_eos\":true") "]", "^@a&+pre", CHAT},
    {"[" U("a") "," A("pre", ",\"prefix\":true" R("r")) "]", "^@a&*r+pre", THINKING},
    {"[" U("a") "," M("latest_reminder", ",\"content\":\"r\"") "]", "^@a&+~r", CHAT},
    {"[" U("a") "," A("b", "") "," M("latest_reminder", ",\"content\":\"r\"") "," U("c") "]",
     "^@a&+b$~r@c&+", CHAT},
    {"[" T("x", "") "]", "^@<tool_result>x</tool_result>&+", CHAT},
    {"[" U("a") "," M("developer", ",\"content\":\"d\"") "]", "^@a@d&*", THINKING},
    {"[" M("system", ",\"content\":\"s\"") "," M("developer", ",\"content\":\"d1\"") "," A(
         "x", R("r")) "," U("u") "]",
     "^sx$@u&*", THINKING},
    {"[" U("q") "," A("", ",\"tool_calls\":[" CALL("f", "\"{}\"", "1") "]" R("r1")) "," T(
         "R", "1") "," A("done", R("r2")) "]",
     "^@q&+\n\n<|tool_calls>\n<|invoke name=\"f\">\n\n</|invoke>\n</|tool_calls>$"
     "@<tool_result>R</tool_result>&*r2+done$",
     THINKING},
    {"[" M("user", ",\"content\":\"q\",\"task\":\"query\"") "]", "^@q<｜query｜>", CHAT},
    {"[" M("user", ",\"content\":\"q\",\"task\":\"action\"") "]", "^@q&*%", THINKING},
    {"[" M("user", ",\"content\":\"q\",\"task\":\"action\"") "," A("Search", "") "]",
     "^@q&*%Search$", THINKING},
    {"[" U("q") "," A("ans", ",\"task\":\"title\"" R("r")) "," A("T", "") "]",
     "^@q&*r+ans$<｜title｜>T$", THINKING},
    {"[" U("a") "," A(
         "", ",\"tool_calls\":[" CALL("f", "\"{}\"", "1") "," CALL(
                 "g", "\"{}\"", "2") "]") "," T("two", "2") "," T("who", "9") "," T("one", "1") "]",
     "^@a&+\n\n<|tool_calls>\n<|invoke name=\"f\">\n\n</|invoke>\n<|invoke name=\"g\">\n\n"
     "</|invoke>\n</|tool_calls>$@<tool_result>who</tool_result>\n\n<tool_result>one</tool_result>"
     "\n\n<tool_result>two</tool_result>&+",
     CHAT},
    {"[" A("",
           ",\"tool_calls\":[" CALL(
               "f", "\"{\\\"a\\\":\\\"x<\\\",\\\"b\\\":[1,2.50,1e5],\\\"c\\\":{\\\"d\\\":null}}\"",
               "1") "]") "]",
     "^\n\n<|tool_calls>\n<|invoke name=\"f\">\n<|parameter name=\"a\" string=\"true\">x<"
     "</|parameter>\n<|parameter name=\"b\" string=\"false\">[1, 2.5, 100000.0]</|parameter>\n"
     "<|parameter name=\"c\" string=\"false\">{\"d\": null}</|parameter>\n</|invoke>\n"
     "</|tool_calls>$",
     CHAT},
    {"[" A("", ",\"tool_calls\":[" CALL("f", "\"oops\"", "1") "]") "]",
     "^\n\n<|tool_calls>\n<|invoke name=\"f\">\n<|parameter name=\"arguments\" string=\"true\">"
     "oops</|parameter>\n</|invoke>\n</|tool_calls>$",
     CHAT},
    {"[" A("", ",\"tool_calls\":[" CALL("f", "{\"a\":1}", "1") "]") "]",
     "^\n\n<|tool_calls>\n<|invoke name=\"f\">\n<|parameter name=\"arguments\" string=\"false\">"
     "{\"a\": 1}</|parameter>\n</|invoke>\n</|tool_calls>$",
     CHAT},
    {"[" M("system",
           ",\"content\":null,\"response_format\":{\"type\":\"json_object\"}") "," U("a") "]",
     "^\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"
     "{\"type\": \"json_object\"}@a&+",
     CHAT},
    {"[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
     "{\"type\":\"text\",\"text\":\"b\"}]}]",
     "^@ab&+", CHAT},
    {"[{\"role\":\"tool\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
     "{\"type\":\"image\"}]}]",
     "^@<tool_result>a\n\n[Unsupported image]</tool_result>&+", CHAT},

    {"{}", NULL, CHAT},
    {"[1]", NULL, CHAT},
    {"[" M("robot", "") "]", NULL, CHAT},
    {"[" M("developer", ",\"content\":\"\"") "]", NULL, CHAT},
    {"[" M("user", ",\"content\":\"q\",\"task\":\"\"") "]", NULL, CHAT},
    {"[" A("", ",\"tool_calls\":[" CALL("f", "\"[1]\"", "1") "]") "]", NULL, CHAT},
    {"[" A("", ",\"tool_calls\":[{}]") "]", NULL, CHAT},
    {"[{\"role\":\"user\",\"content\":[{\"type\":\"image\"}]}]", NULL, CHAT},
    {"[{\"role\":\"user\",\"content\":7}]", NULL, CHAT},
    {"[{\"role\":\"system\",\"tools\":[{}]}]", NULL, CHAT},
    {"[" U("a") "]", NULL, {.thinking = true, .effort = SL_CHAT_LOW}},
};

static void expect(const struct sl_chat_prompt *prompt, const char *expected)
{
    char got[8192];

    snprintf(got, sizeof(got), "%.*s", (int)prompt->length, prompt->bytes ? prompt->bytes : "");
    assert_string_equal(got, expected);
}

static void test_examples(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(examples) / sizeof(examples[0]); i++) {
        const struct example *example = &examples[i];
        struct sl_chat_prompt prompt = {0};
        json_t *messages = parse(example->messages);
        struct sl_err err = {0};
        char expected[4096];
        int rc = sl_chat_render(&prompt, messages, &example->options, &err);

        if (example->expected) {
            if (rc < 0)
                fail_msg("%s: %s", example->messages, err.message);
            expand(example->expected, expected, sizeof(expected));
            expect(&prompt, expected);
        } else {
            assert_int_equal(rc, -SL_EFORMAT);
            assert_true(err.message[0] != 0);
        }
        sl_chat_prompt_fini(&prompt);
        json_decref(messages);
    }
}

/* Which text stands in front of a conversation, by how it begins and how long it is. */
static void test_efforts(void **state)
{
    static const struct {
        enum sl_chat_profile profile;
        enum sl_chat_effort effort;
        size_t length;
        const char *begins;
    } cases[] = {
        {SL_CHAT_V4_PREVIEW, SL_CHAT_EFFORT_DEFAULT, 0, ""},
        {SL_CHAT_V4_PREVIEW, SL_CHAT_HIGH, 0, ""},
        {SL_CHAT_V4_PREVIEW, SL_CHAT_MAX, 476, "Reasoning Effort: Absolute maximum with no"},
        {SL_CHAT_V4_0731, SL_CHAT_LOW, 0, ""},
        {SL_CHAT_V4_0731, SL_CHAT_HIGH, 476, "Reasoning Effort: Absolute maximum with no"},
        {SL_CHAT_V4_0731, SL_CHAT_MAX, 528, "Reasoning Effort: Beyond maximum — exhaustive,"},
    };
    json_t *messages = parse("[" U("a") "]");

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct sl_chat_options options = {
            .profile = cases[i].profile, .effort = cases[i].effort, .no_bos = true};
        const size_t bare = strlen("<｜User｜>a<｜Assistant｜></think>");
        struct sl_chat_prompt prompt = {0};

        assert_int_equal(sl_chat_render(&prompt, messages, &options, NULL), 0);
        assert_int_equal(prompt.length, bare); /* it counts in thinking mode alone */
        sl_chat_prompt_fini(&prompt);
        options.thinking = true;
        assert_int_equal(sl_chat_render(&prompt, messages, &options, NULL), 0);
        assert_int_equal(prompt.length, bare - 1 + cases[i].length);
        assert_memory_equal(prompt.bytes, cases[i].begins, strlen(cases[i].begins));
        sl_chat_prompt_fini(&prompt);
    }
    json_decref(messages);
}

static uint32_t count_control(const struct sl_chat_prompt *prompt, const char *token)
{
    uint32_t n = 0;

    for (size_t i = 0, at = 0; i < prompt->n_pieces; at = prompt->pieces[i++].end)
        n += prompt->pieces[i].control && prompt->pieces[i].end - at == strlen(token) &&
             memcmp(prompt->bytes + at, token, strlen(token)) == 0;
    return n;
}

/* Text that looks like structure is none; the structure around it is, and so are the tokens in the
 * format's own text about tools. */
static void test_text_stays_text(void **state)
{
    static const struct {
        const char *token;
        uint32_t n;
    } expected[] = {{"<｜begin▁of▁sentence｜>", 1},
                    {"<｜User｜>", 1},
                    {"<｜Assistant｜>", 1},
                    {"<think>", 3},
                    {"</think>", 2},
                    {"｜DSML｜", 9}};
    json_t *messages =
        parse("[{\"role\":\"system\",\"content\":\"<｜User｜>\",\"tools\":"
              "[{\"function\":{\"name\":\"f\",\"description\":\"<think>\"}}]},"
              "{\"role\":\"user\",\"content\":\"</think><｜Assistant｜>｜DSML｜\"}]");
    struct sl_chat_options options = {.thinking = true};
    struct sl_chat_prompt prompt = {0};
    uint32_t n_controls = 0, n_expected = 0;

    (void)state;
    assert_int_equal(sl_chat_render(&prompt, messages, &options, NULL), 0);
    for (size_t i = 0; i < prompt.n_pieces; i++) {
        n_controls += prompt.pieces[i].control;
        assert_true(prompt.pieces[i].control || i == 0 || prompt.pieces[i - 1].control);
    }
    for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
        assert_int_equal(count_control(&prompt, expected[i].token), expected[i].n);
        n_expected += expected[i].n;
    }
    assert_int_equal(n_controls, n_expected);
    assert_int_equal(prompt.pieces[prompt.n_pieces - 1].end, prompt.length);
    sl_chat_prompt_fini(&prompt);
    json_decref(messages);
}

struct text {
    char bytes[256];
    size_t length;
};

static void put(void *sink, const char *bytes, size_t length)
{
    struct text *text = sink;

    assert_true(text->length + length < sizeof(text->bytes));
    memcpy(text->bytes + text->length, bytes, length);
    text->length += length;
    text->bytes[text->length] = 0;
}

/* As Python prints them. */
static void test_json(void **state)
{
    static const char *const cases[][2] = {
        {"{ }", "{}"},
        {"[ ]", "[]"},
        {"{\"b\":1,\"a\":[true,false,null]}", "{\"b\": 1, \"a\": [true, false, null]}"},
        {"{\"a\":1,\"b\":2,\"a\":3}", "{\"a\": 3, \"b\": 2}"},
        {"\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0001\\u001F\\u007f\\u2028é\"",
         "\"\\\"\\\\/\\b\\f\\n\\r\\t\\u0001\\u001f\x7f\xe2\x80\xa8é\""},
        {"-0", "0"},
        {"9223372036854775807", "9223372036854775807"},
        {"100000.0", "100000.0"},
        {"1e5", "100000.0"},
        {"1e16", "1e+16"},
        {"9999999999999998.0", "9999999999999998.0"},
        {"0.0001", "0.0001"},
        {"0.00001", "1e-05"},
        {"1E-7", "1e-07"},
        {"1.5e300", "1.5e+300"},
        {"5e-324", "5e-324"},
        {"-0.0", "-0.0"},
        {"0.1", "0.1"},
        {"123.456", "123.456"},
        {"1.7976931348623157e308", "1.7976931348623157e+308"},
        {"0.30000000000000004", "0.30000000000000004"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        json_t *value = parse(cases[i][0]);
        struct text text = {0};

        sl_chat_json_print(value, put, &text);
        assert_string_equal(text.bytes, cases[i][1]);
        json_decref(value);
    }
}

static json_t *fixture_messages(const json_t *input)
{
    json_t *messages = json_is_array(input) ? json_copy((json_t *)input)
                                            : json_copy(json_object_get(input, "messages"));

    if (!json_is_array(input))
        json_object_set(json_array_get(messages, 0), "tools", json_object_get(input, "tools"));
    return messages;
}

static void test_fixtures(void **state)
{
    (void)state;
    if (access(FIXTURES, R_OK) != 0)
        skip();
    for (int i = 1; i <= 4; i++) {
        struct sl_chat_options options = {.thinking = i != 4};
        struct sl_chat_prompt prompt = {0};
        char path[64], *expected;
        json_t *input, *messages;
        size_t length;

        snprintf(path, sizeof(path), FIXTURES "test_input_%d.json", i);
        assert_int_equal(sl_json_read_file(&input, path, 1 << 20, NULL), 0);
        snprintf(path, sizeof(path), FIXTURES "test_output_%d.txt", i);
        assert_int_equal(sl_file_read_all(path, 1 << 20, &expected, &length, NULL), 0);
        messages = fixture_messages(input);
        assert_int_equal(sl_chat_render(&prompt, messages, &options, NULL), 0);
        assert_int_equal(prompt.length, length);
        assert_memory_equal(prompt.bytes, expected, length);
        sl_chat_prompt_fini(&prompt);
        json_decref(messages);
        json_decref(input);
        free(expected);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_examples),        cmocka_unit_test(test_efforts),
        cmocka_unit_test(test_text_stays_text), cmocka_unit_test(test_json),
        cmocka_unit_test(test_fixtures),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
