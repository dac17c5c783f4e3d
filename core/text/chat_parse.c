#include "core/text/chat_parse.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/json.h"
#include "core/text/chat_format.h"
#include "core/text/chat_json.h"

#define DSML_OPEN "<" SL_CHAT_DSML

enum state { REASONING, ANSWER, CALLS };

struct buffer {
    char *bytes;
    size_t length, capacity;
    bool out_of_memory;
};

struct sl_chat_parser {
    enum state state;
    sl_chat_event_fn *on_event;
    void *context;
    struct buffer held; /* has come and is not given yet */
    bool waits_for_end; /* a call is not complete, and only a '>' can change that */
    struct buffer name, arguments;
};

static void append(void *sink, const char *bytes, size_t length)
{
    struct buffer *buffer = sink;

    if (length > buffer->capacity - buffer->length) {
        size_t capacity = (buffer->length + length) * 2;
        char *grown = realloc(buffer->bytes, capacity);

        buffer->out_of_memory |= !grown;
        if (!grown)
            return;
        buffer->bytes = grown;
        buffer->capacity = capacity;
    }
    if (length > 0)
        memcpy(buffer->bytes + buffer->length, bytes, length);
    buffer->length += length;
}

static void append_text(struct buffer *buffer, const char *text)
{
    append(buffer, text, strlen(text));
}

int sl_chat_parser_create(struct sl_chat_parser **ret_parser, bool in_reasoning,
                          sl_chat_event_fn *on_event, void *context, struct sl_err *err)
{
    struct sl_chat_parser *p = calloc(1, sizeof(*p));

    if (!p)
        return sl_err_set(err, -ENOMEM, "parser: out of memory");
    p->state = in_reasoning ? REASONING : ANSWER;
    p->on_event = on_event;
    p->context = context;
    *ret_parser = p;
    return 0;
}

void sl_chat_parser_destroy(struct sl_chat_parser *p)
{
    if (!p)
        return;
    free(p->held.bytes);
    free(p->name.bytes);
    free(p->arguments.bytes);
    free(p);
}

bool sl_chat_parser_in_answer(const struct sl_chat_parser *p)
{
    return p->state == ANSWER;
}

/* ---- giving ------------------------------------------------------------------------------------
 */

static void give(struct sl_chat_parser *p, size_t length)
{
    const struct sl_chat_event event = {
        .part = p->state == REASONING ? SL_CHAT_PART_REASONING : SL_CHAT_PART_ANSWER,
        .text = p->held.bytes,
        .length = length,
    };

    if (length > 0)
        p->on_event(p->context, &event);
}

static void drop(struct sl_chat_parser *p, size_t length)
{
    p->held.length -= length;
    memmove(p->held.bytes, p->held.bytes + length, p->held.length);
}

/* ---- one call ----------------------------------------------------------------------------------
 */

/* The text of a call that is read from `at` on. */
struct cursor {
    const char *at, *end;
};

enum result { GOOD, BAD, INCOMPLETE };

/* Takes exactly this text. */
static enum result take(struct cursor *c, const char *text)
{
    const size_t length = strlen(text), left = (size_t)(c->end - c->at);
    const size_t compared = left < length ? left : length;

    if (memcmp(c->at, text, compared) != 0)
        return BAD;
    if (left < length)
        return INCOMPLETE;
    c->at += length;
    return GOOD;
}

/* Takes all up to `text`, and that too. */
static enum result take_until(struct cursor *c, const char *text, const char **ret_begin,
                              size_t *ret_length)
{
    const char *found = memmem(c->at, (size_t)(c->end - c->at), text, strlen(text));

    if (!found)
        return INCOMPLETE;
    *ret_begin = c->at;
    *ret_length = (size_t)(found - c->at);
    c->at = found + strlen(text);
    return GOOD;
}

static void skip_newlines(struct cursor *c)
{
    while (c->at < c->end && *c->at == '\n')
        c->at++;
}

/* Adds `"key": value` to the arguments. A value that should be JSON and is not becomes a string. */
static enum result add_member(struct sl_chat_parser *p, const char *key, size_t key_length,
                              const char *value, size_t value_length, bool is_string,
                              bool *is_corrected)
{
    json_t *parsed = NULL;

    if (!is_string)
        parsed = json_loadb(value, value_length, JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL, NULL);
    if (p->arguments.length > 1)
        append_text(&p->arguments, ", ");
    sl_chat_json_print_string(key, key_length, append, &p->arguments);
    append_text(&p->arguments, ": ");
    if (parsed)
        append(&p->arguments, value, value_length);
    else
        sl_chat_json_print_string(value, value_length, append, &p->arguments);
    *is_corrected |= !is_string && !parsed;
    json_decref(parsed);
    return GOOD;
}

static enum result take_parameter(struct sl_chat_parser *p, struct cursor *c, bool *is_corrected)
{
    const char *key, *kind, *value;
    size_t key_length, kind_length, value_length;
    enum result result;

    if ((result = take_until(c, "\" string=\"", &key, &key_length)) != GOOD ||
        (result = take_until(c, "\">", &kind, &kind_length)) != GOOD)
        return result;
    if ((kind_length != 4 || memcmp(kind, "true", 4) != 0) &&
        (kind_length != 5 || memcmp(kind, "false", 5) != 0))
        return BAD;
    if ((result = take_until(c, SL_CHAT_PARAMETER_END, &value, &value_length)) != GOOD)
        return result;
    return add_member(p, key, key_length, value, value_length, kind_length == 4, is_corrected);
}

/* Behind the opening of an invoke: name, parameters, end. */
static enum result take_call(struct sl_chat_parser *p, struct cursor *c, bool *is_corrected)
{
    const char *name;
    size_t length;
    enum result result;

    p->name.length = p->arguments.length = 0;
    if ((result = take_until(c, "\">", &name, &length)) != GOOD)
        return result;
    append(&p->name, name, length);
    append(&p->name, "", 1);
    append_text(&p->arguments, "{");
    for (;;) {
        skip_newlines(c);
        result = take(c, SL_CHAT_INVOKE_END);
        if (result == GOOD)
            break;
        if (result == BAD)
            result = take(c, SL_CHAT_PARAMETER);
        if (result == GOOD)
            result = take_parameter(p, c, is_corrected);
        if (result != GOOD)
            return result;
    }
    append(&p->arguments, "}", 2); /* with its terminator */
    return length == 0 || memchr(p->name.bytes, 0, length) ? BAD : GOOD;
}

/* ---- the states --------------------------------------------------------------------------------
 * Each takes what is certain off the front of what is held, and returns true if it can go on. */

/* How much of the end of `text` might be the beginning of `marker`. */
static size_t open_length(const char *text, size_t length, const char *marker)
{
    const size_t marker_length = strlen(marker);
    size_t n = marker_length - 1 < length ? marker_length - 1 : length;

    while (n > 0 && memcmp(text + length - n, marker, n) != 0)
        n--;
    return n;
}

/* Newlines in front of a block of calls belong to the block. */
static size_t without_newlines(const char *text, size_t length)
{
    while (length > 0 && text[length - 1] == '\n')
        length--;
    return length;
}

static bool pass_text(struct sl_chat_parser *p)
{
    const char *held = p->held.bytes;
    const size_t length = p->held.length;
    const char *end = memmem(held, length, SL_CHAT_THINK_END, strlen(SL_CHAT_THINK_END));
    const char *calls = memmem(held, length, DSML_OPEN, strlen(DSML_OPEN));
    size_t n, open_end, open_calls;

    if (end && (!calls || end < calls)) { /* a second one is no text either */
        n = (size_t)(end - held);
        give(p, n);
        drop(p, n + strlen(SL_CHAT_THINK_END));
        p->state = ANSWER;
        return true;
    }
    if (calls) {
        n = (size_t)(calls - held);
        n = without_newlines(held, n); /* a call that turns out to be text has them back */
        give(p, n);
        drop(p, n);
        p->state = CALLS;
        return true;
    }
    open_end = open_length(held, length, SL_CHAT_THINK_END);
    open_calls = open_length(held, length, DSML_OPEN);
    n = length - (open_end > open_calls ? open_end : open_calls);
    n = without_newlines(held, n);
    give(p, n);
    drop(p, n);
    return false;
}

/* A mark that begins no call is text, and the text goes on behind it. */
static void give_mark(struct sl_chat_parser *p)
{
    struct cursor c = {p->held.bytes, p->held.bytes + p->held.length};

    skip_newlines(&c);
    if (take(&c, DSML_OPEN) == GOOD) {
        give(p, (size_t)(c.at - p->held.bytes));
        drop(p, (size_t)(c.at - p->held.bytes));
    }
}

static bool pass_call(struct sl_chat_parser *p)
{
    struct cursor c = {p->held.bytes, p->held.bytes + p->held.length};
    bool is_corrected = false;
    enum result result;
    struct sl_chat_event event;

    skip_newlines(&c);
    if ((result = take(&c, SL_CHAT_CALLS)) == GOOD) {
        drop(p, (size_t)(c.at - p->held.bytes));
        return true;
    }
    if (result == BAD && (result = take(&c, SL_CHAT_CALLS_END)) == GOOD) {
        drop(p, (size_t)(c.at - p->held.bytes));
        p->state = ANSWER;
        return true;
    }
    if (result == BAD && (result = take(&c, SL_CHAT_INVOKE)) == GOOD)
        result = take_call(p, &c, &is_corrected);
    p->waits_for_end = result == INCOMPLETE;
    if (result == INCOMPLETE)
        return false;
    if (result == BAD) {
        p->state = ANSWER;
        give_mark(p);
        return true;
    }
    event = (struct sl_chat_event){SL_CHAT_PART_CALL, p->arguments.bytes, p->arguments.length - 1,
                                   p->name.bytes, is_corrected};
    if (!p->name.out_of_memory && !p->arguments.out_of_memory)
        p->on_event(p->context, &event);
    drop(p, (size_t)(c.at - p->held.bytes));
    return true;
}

static void pass_all(struct sl_chat_parser *p)
{
    while (p->held.length > 0 && (p->state == CALLS ? pass_call(p) : pass_text(p)))
        ;
}

static int failure(const struct sl_chat_parser *p, struct sl_err *err)
{
    if (p->held.out_of_memory || p->name.out_of_memory || p->arguments.out_of_memory)
        return sl_err_set(err, -ENOMEM, "parser: out of memory");
    return 0;
}

int sl_chat_parser_push(struct sl_chat_parser *p, const char *text, size_t length,
                        struct sl_err *err)
{
    append(&p->held, text, length);
    if (!p->waits_for_end || memchr(text, '>', length))
        pass_all(p);
    return failure(p, err);
}

int sl_chat_parser_finish(struct sl_chat_parser *p, struct sl_err *err)
{
    pass_all(p);
    /* Behind a call newlines are part of the block. */
    if (p->state != CALLS || without_newlines(p->held.bytes, p->held.length) > 0)
        give(p, p->held.length);
    p->held.length = 0;
    return failure(p, err);
}
