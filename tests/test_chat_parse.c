/* What the model writes, taken apart: each example is fed whole, byte by byte and cut in two at
 * every place, and must give the same parts. Then what is not well formed: nothing of it is lost.
 * Last, the answers of DeepSeek's own fixtures, where they are at hand. */
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
#include "core/text/chat_parse.h"

#define FIXTURES "../shared/chat-tests/"
#define DSML "｜DSML｜"
#define CALLS "<" DSML "tool_calls>\n"
#define CALLS_END "\n</" DSML "tool_calls>"
#define INVOKE(name) "<" DSML "invoke name=\"" name "\">\n"
#define INVOKE_END "\n</" DSML "invoke>"
#define STRING(name, value)                                                                        \
    "<" DSML "parameter name=\"" name "\" string=\"true\">" value "</" DSML "parameter>"
#define JSON(name, value)                                                                          \
    "<" DSML "parameter name=\"" name "\" string=\"false\">" value "</" DSML "parameter>"

/* All parts as one text: "R:..." for reasoning, "A:..." for the answer, "C:name(...)" for a call,
 * "C!:" where it was corrected; pieces of one part joined. */
struct parts {
    char text[8192];
    size_t length;
    int last;
};

static void add(struct parts *parts, const char *format, const char *text, int length)
{
    parts->length += (size_t)snprintf(parts->text + parts->length,
                                      sizeof(parts->text) - parts->length, format, length, text);
    assert_true(parts->length < sizeof(parts->text));
}

static void on_event(void *context, const struct sl_chat_event *event)
{
    struct parts *parts = context;

    assert_true(event->length > 0);
    if (event->part == SL_CHAT_PART_CALL) {
        add(parts, event->is_corrected ? "[C!:%.*s" : "[C:%.*s", event->name,
            (int)strlen(event->name));
        add(parts, "(%.*s)", event->text, (int)event->length);
    } else {
        if (parts->last != (int)event->part)
            add(parts, event->part == SL_CHAT_PART_REASONING ? "[R:%.*s" : "[A:%.*s", "", 0);
        add(parts, "%.*s", event->text, (int)event->length);
    }
    parts->last = event->part == SL_CHAT_PART_CALL ? -1 : (int)event->part;
}

static void parse(struct parts *parts, bool in_reasoning, const char *text, size_t length,
                  size_t first, size_t step)
{
    struct sl_chat_parser *parser;

    *parts = (struct parts){.last = -1};
    assert_int_equal(sl_chat_parser_create(&parser, in_reasoning, on_event, parts, NULL), 0);
    assert_int_equal(sl_chat_parser_push(parser, text, first, NULL), 0);
    for (size_t at = first; at < length; at += step)
        assert_int_equal(
            sl_chat_parser_push(parser, text + at, length - at < step ? length - at : step, NULL),
            0);
    assert_int_equal(sl_chat_parser_finish(parser, NULL), 0);
    sl_chat_parser_destroy(parser);
}

static void expect(bool in_reasoning, const char *text, const char *expected)
{
    const size_t length = strlen(text);
    struct parts parts;

    parse(&parts, in_reasoning, text, length, 0, 1);
    assert_string_equal(parts.text, expected);
    for (size_t first = 0; first <= length; first++) {
        parse(&parts, in_reasoning, text, length, first, length);
        assert_string_equal(parts.text, expected);
    }
}

static void test_well_formed(void **state)
{
    (void)state;
    expect(false, "", "");
    expect(false, "plain\n\ntext <b> </", "[A:plain\n\ntext <b> </");
    expect(true, "why</think>so", "[R:why[A:so");
    expect(true, "why\n", "[R:why\n");
    expect(true, "</think>so", "[A:so");
    expect(true, "a</think>" CALLS INVOKE("f") INVOKE_END CALLS_END, "[R:a[C:f({})");
    expect(false,
           "Look:\n\n" CALLS INVOKE("f") STRING("a b", "x\"\n</p>") "\n" JSON("n", "[1,\n2]")
               INVOKE_END "\n" INVOKE("g") JSON("k", "{\"a\": null}") INVOKE_END CALLS_END,
           "[A:Look:[C:f({\"a b\": \"x\\\"\\n</p>\", \"n\": [1,\n2]})[C:g({\"k\": {\"a\": null}})");
    /* Keys that look like something else, an empty one, and values that end calls of others. */
    expect(false,
           CALLS INVOKE("f") STRING(" string= mode ", "</" DSML "invoke>") STRING("", "")
               INVOKE_END CALLS_END,
           "[C:f({\" string= mode \": \"</" DSML "invoke>\", \"\": \"\"})");
    expect(false,
           CALLS INVOKE("f") JSON("id", "123456789012345678901234567890") INVOKE_END CALLS_END,
           "[C:f({\"id\": 123456789012345678901234567890})");
}

static void test_malformed(void **state)
{
    (void)state;
    /* The reasoning was not ended, or ended twice, or the block has no end. */
    expect(true, "why\n\n" CALLS INVOKE("f") INVOKE_END CALLS_END, "[R:why[C:f({})");
    expect(false, "</think>a</think>b", "[A:ab");
    expect(false, CALLS INVOKE("f") INVOKE_END, "[C:f({})");
    expect(false, CALLS INVOKE("f") INVOKE_END CALLS_END "\nmore", "[C:f({})[A:\nmore");
    /* Calls without a block. */
    expect(false, "a\n" INVOKE("f") INVOKE_END, "[A:a[C:f({})");
    /* Not JSON, where it should be. */
    expect(false, CALLS INVOKE("f") JSON("a", "{oops") INVOKE_END CALLS_END,
           "[C!:f({\"a\": \"{oops\"})");
    /* Cut off, as by a limit: no half call, and no text lost. */
    expect(false, CALLS INVOKE("f") "<" DSML "parameter name=\"a\" string=\"true\">val",
           "[A:\n" INVOKE("f") "<" DSML "parameter name=\"a\" string=\"true\">val");
    expect(false, "a\n\n<" DSML "tool_ca", "[A:a\n\n<" DSML "tool_ca");
    /* Something else where a call should be: as it was written; a later call still counts. */
    expect(false, "a\n\n<" DSML "what>b", "[A:a\n\n<" DSML "what>b");
    expect(false, CALLS "text " INVOKE("g") INVOKE_END CALLS_END, "[A:\ntext [C:g({})");
    expect(false,
           CALLS INVOKE("f") "<" DSML "parameter name=\"a\" string=\"maybe\">v</" DSML
                             "parameter>" INVOKE_END "\n" INVOKE("g") INVOKE_END CALLS_END,
           "[A:\n" INVOKE("f") "<" DSML "parameter name=\"a\" string=\"maybe\">v</" DSML
                               "parameter>" INVOKE_END "[C:g({})");
    expect(false, CALLS INVOKE("") INVOKE_END, "[A:\n" INVOKE("") INVOKE_END);
}

/* The text of an assistant's turn, behind the token that begins it and before the next turn. */
static void expect_turn(const char *text, const char *begin, const char *expected)
{
    const char *from = strstr(text, begin), *end;
    struct parts parts;

    assert_non_null(from);
    from += strlen(begin);
    end = strstr(from, "<｜end▁of▁sentence｜>");
    assert_non_null(end);
    parse(&parts, true, from, (size_t)(end - from), 0, 7);
    assert_memory_equal(parts.text, "[R:", 3);
    assert_non_null(strstr(parts.text, expected));
}

static void test_fixtures(void **state)
{
    char *text;
    size_t length;

    (void)state;
    if (access(FIXTURES, R_OK) != 0)
        skip();
    assert_int_equal(sl_file_read_all(FIXTURES "test_output_1.txt", 1 << 20, &text, &length, NULL),
                     0);
    expect_turn(text, "<｜Assistant｜><think>",
                "[C:get_weather({\"location\": \"Beijing\", \"unit\": \"celsius\"})");
    free(text);
    assert_int_equal(sl_file_read_all(FIXTURES "test_output_2.txt", 1 << 20, &text, &length, NULL),
                     0);
    expect_turn(text, "<｜Assistant｜><think>", "[A:The capital of France is Paris.");
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_well_formed),
        cmocka_unit_test(test_malformed),
        cmocka_unit_test(test_fixtures),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
