/* Any text as the model's output: cut anywhere, it gives the same parts as when it is whole, and
 * where no call was found, all of it comes out but for what marks the parts. The first bytes say
 * where the text begins and where it is cut. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/text/chat_format.h"
#include "core/text/chat_parse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct parts {
    char *text; /* each piece behind a sign of its part, where that changes */
    size_t length;
    int last;
    size_t n_calls;
};

static void on_event(void *context, const struct sl_chat_event *event)
{
    struct parts *parts = context;

    if (parts->last != (int)event->part || event->part == SL_CHAT_PART_CALL)
        parts->text[parts->length++] = (char)event->part;
    parts->last = (int)event->part;
    memcpy(parts->text + parts->length, event->text, event->length);
    parts->length += event->length;
    if (event->part != SL_CHAT_PART_CALL)
        return;
    parts->n_calls++;
    sl_assert(event->text[0] == '{' && event->text[event->length] == 0);
    memcpy(parts->text + parts->length, event->name, strlen(event->name));
    parts->length += strlen(event->name);
}

static void parse(struct parts *parts, bool in_reasoning, const char *text, size_t length,
                  size_t step)
{
    struct sl_chat_parser *parser;

    *parts = (struct parts){.text = malloc(8 * length + 64), .last = -1};
    sl_assert(parts->text &&
              sl_chat_parser_create(&parser, in_reasoning, on_event, parts, NULL) == 0);
    for (size_t at = 0; at < length; at += step)
        sl_assert(sl_chat_parser_push(parser, text + at, length - at < step ? length - at : step,
                                      NULL) == 0);
    sl_assert(sl_chat_parser_finish(parser, NULL) == 0);
    sl_chat_parser_destroy(parser);
}

/* Takes out newlines, the marks that may be left out, and the signs of parts. */
static size_t strip_once(char *text, size_t length)
{
    static const char *const marks[] = {SL_CHAT_THINK_END, SL_CHAT_CALLS, SL_CHAT_CALLS_END};
    size_t n = 0;

    for (size_t at = 0; at < length;) {
        size_t skip = text[at] == '\n' || (uint8_t)text[at] <= SL_CHAT_PART_CALL;

        for (size_t i = 0; skip == 0 && i < sizeof(marks) / sizeof(marks[0]); i++)
            if (length - at >= strlen(marks[i]) &&
                memcmp(text + at, marks[i], strlen(marks[i])) == 0)
                skip = strlen(marks[i]);
        if (skip == 0)
            text[n++] = text[at++];
        at += skip;
    }
    return n;
}

/* Taking out one mark can make another of what stood around it. */
static size_t strip(char *text, size_t length)
{
    size_t before;

    do {
        before = length;
        length = strip_once(text, length);
    } while (length < before);
    return length;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data + 2;
    const size_t length = size - 2;
    struct parts whole, cut;
    char *input;

    if (size < 3)
        return 0;
    parse(&whole, data[0] & 1, text, length, length);
    parse(&cut, data[0] & 1, text, length, data[1] + 1u);
    sl_assert(whole.length == cut.length && memcmp(whole.text, cut.text, cut.length) == 0);
    if (whole.n_calls == 0) {
        input = malloc(length);
        sl_assert(input);
        memcpy(input, text, length);
        whole.length = strip(whole.text, whole.length);
        sl_assert(whole.length == strip(input, length) &&
                  memcmp(whole.text, input, whole.length) == 0);
        free(input);
    }
    free(whole.text);
    free(cut.text);
    return 0;
}
