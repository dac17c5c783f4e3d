#include "tools/chat/chat_talk.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/size.h"
#include "core/text/utf8.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/progress.h"

#define FILE_BYTES_MAX (UINT64_C(64) << 20)
#define DIM "\033[2m"
#define PLAIN "\033[0m"

/* ---- answers -----------------------------------------------------------------------------------
 */

/* The screen, while an answer comes. */
struct screen {
    bool is_terminal;
    bool in_reasoning, any;
    struct sl_progress progress;
};

static void on_progress(void *context, uint64_t n_done_tokens, uint64_t n_prompt_tokens)
{
    struct screen *screen = context;

    sl_progress_show(&screen->progress, n_done_tokens, n_prompt_tokens);
}

/* Reasoning is dim on a terminal, and goes to standard error where the output is a file, which is
 * to hold the answers alone. */
static void on_text(void *context, bool is_reasoning, const char *text, size_t length)
{
    struct screen *screen = context;
    FILE *out = is_reasoning && !screen->is_terminal ? stderr : stdout;

    if (!screen->any)
        sl_progress_end(&screen->progress);
    if (screen->is_terminal && is_reasoning && !screen->in_reasoning)
        fputs(DIM, out);
    if (!is_reasoning && screen->in_reasoning)
        fputs(screen->is_terminal ? PLAIN "\n\n" : "\n", screen->is_terminal ? out : stderr);
    screen->in_reasoning = is_reasoning;
    screen->any = true;
    fwrite(text, 1, length, out);
    fflush(out);
}

static json_t *request_body(const struct sl_chat_talk *talk)
{
    const struct sl_chat_settings *settings = &talk->settings;
    json_t *body =
        json_pack("{s:b, s:b, s:{s:b}, s:O}", "stream", 1, "return_progress", 1, "stream_options",
                  "include_usage", 1, "messages", talk->conversation.messages);

    if (settings->effort)
        json_object_set_new(body, "reasoning_effort", json_string(settings->effort));
    if (settings->has_seed)
        json_object_set_new(body, "seed", json_integer((json_int_t)settings->seed));
    json_object_update(body, settings->sampling);
    return body;
}

static void keep_figures(struct sl_chat_talk *talk, const struct sl_chat_answer *answer)
{
    json_decref(talk->usage);
    json_decref(talk->timings);
    talk->usage = json_incref(answer->usage);
    talk->timings = json_incref(answer->timings);
}

/* Asks the open question. What came of an answer that was stopped is its answer; if nothing did,
 * the question stays open. */
static int ask(struct sl_chat_talk *talk, struct sl_err *err)
{
    struct screen screen = {.is_terminal = sl_line_input_is_terminal(talk->input),
                            .progress = sl_progress_start(stderr, "reading the prompt", "tokens")};
    const struct sl_chat_listener listener = {on_progress, on_text, &screen};
    struct sl_chat_answer answer = {0};
    json_t *body = request_body(talk);
    int rc = body ? 0 : sl_err_set(err, -ENOMEM, "chat: out of memory");

    if (rc == 0)
        rc = sl_chat_ask(talk->client, body, &listener, sl_interrupt_stop(), &answer, err);
    sl_progress_end(&screen.progress);
    if (screen.in_reasoning && screen.is_terminal)
        fputs(PLAIN, stdout);
    if (screen.any)
        fputc('\n', stdout);
    fflush(stdout);
    if (answer.content.length > 0 || answer.finish[0]) {
        struct sl_err why;
        const int kept = sl_conversation_add_answer(&talk->conversation, answer.reasoning.data,
                                                    answer.reasoning.length, answer.content.data,
                                                    answer.content.length, rc < 0 ? &why : err);

        rc = rc < 0 ? rc : kept;
        keep_figures(talk, &answer);
    }
    if (rc == 0 && !answer.finish[0])
        fprintf(stderr, "(stopped%s)\n",
                answer.content.length > 0 ? "" : "; /retry asks again, /undo forgets the question");
    else if (rc == 0 && strcmp(answer.finish, "length") == 0)
        fprintf(stderr, "(cut off: no tokens are left)\n");
    talk->settings.seed++;
    sl_chat_answer_fini(&answer);
    json_decref(body);
    return rc;
}

/* ---- commands ----------------------------------------------------------------------------------
 */

static int command_effort(struct sl_chat_talk *talk, const char *word, struct sl_err *err)
{
    char *copy = *word ? strdup(word) : NULL;

    if (*word && !copy)
        return sl_err_set(err, -ENOMEM, "chat: out of memory");
    free(talk->effort);
    talk->effort = copy;
    talk->settings.effort = copy;
    return 0;
}

static int command_system(struct sl_chat_talk *talk, const char *text, struct sl_err *err)
{
    return sl_conversation_set_system(&talk->conversation, text, err);
}

static int command_file(struct sl_chat_talk *talk, const char *path, struct sl_err *err)
{
    size_t length, at = 0;
    char *text;
    int rc;

    if (!*path)
        return sl_err_set(err, -EINVAL, "/file needs a path");
    rc = sl_input_read_all(path, FILE_BYTES_MAX, &text, &length, err);
    if (rc < 0)
        return rc;
    while (at < length) {
        const int n = sl_utf8_scan((const uint8_t *)text + at, length - at);

        if (n <= 0) {
            free(text);
            return sl_err_set(err, -SL_EFORMAT, "%s: is not text in UTF-8 (byte %zu)", path, at);
        }
        at += (size_t)n;
    }
    if (memchr(text, '\0', length)) {
        free(text);
        return sl_err_set(err, -SL_EFORMAT, "%s: has a NUL byte, which no prompt can hold", path);
    }
    sl_bytes_add(&talk->attached, text, length);
    sl_bytes_add_text(&talk->attached, "\n\n");
    free(text);
    fprintf(stderr, "(%s: %zu bytes go with the next message)\n", path, length);
    return 0;
}

static int command_save(struct sl_chat_talk *talk, const char *path, struct sl_err *err)
{
    if (!*path)
        return sl_err_set(err, -EINVAL, "/save needs a path");
    return sl_conversation_save(&talk->conversation, path, err);
}

static int command_load(struct sl_chat_talk *talk, const char *path, struct sl_err *err)
{
    int rc;

    if (!*path)
        return sl_err_set(err, -EINVAL, "/load needs a path");
    rc = sl_conversation_load(&talk->conversation, path, err);
    if (rc == 0)
        fprintf(stderr, "(%zu messages)\n", json_array_size(talk->conversation.messages));
    return rc;
}

static int command_undo(struct sl_chat_talk *talk, const char *none, struct sl_err *err)
{
    (void)none;
    if (!sl_conversation_drop_question(&talk->conversation))
        return sl_err_set(err, -EINVAL, "there is nothing to undo");
    return 0;
}

static int command_retry(struct sl_chat_talk *talk, const char *none, struct sl_err *err)
{
    (void)none;
    sl_conversation_drop_answer(&talk->conversation);
    if (!sl_conversation_is_open(&talk->conversation))
        return sl_err_set(err, -EINVAL, "there is no question to ask again");
    return ask(talk, err);
}

static int command_clear(struct sl_chat_talk *talk, const char *none, struct sl_err *err)
{
    (void)none;
    (void)err;
    sl_conversation_fini(&talk->conversation);
    sl_bytes_clear(&talk->attached);
    return 0;
}

static void print_figures(FILE *out, const json_t *figures)
{
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)figures, name, value)
    {
        if (json_is_integer(value))
            fprintf(out, "%-26s %" JSON_INTEGER_FORMAT "\n", name, json_integer_value(value));
        else if (json_is_real(value))
            fprintf(out, "%-26s %.2f\n", name, json_real_value(value));
    }
}

static int command_stats(struct sl_chat_talk *talk, const char *none, struct sl_err *err)
{
    (void)none;
    if (!talk->usage)
        return sl_err_set(err, -EINVAL, "there has been no answer yet");
    print_figures(stderr, talk->usage);
    print_figures(stderr, talk->timings);
    return 0;
}

static int command_help(struct sl_chat_talk *talk, const char *none, struct sl_err *err);

static const struct {
    const char *name;
    int (*run)(struct sl_chat_talk *talk, const char *argument, struct sl_err *err);
    const char *help;
} commands[] = {
    {"/effort", command_effort,
     "WORD  how hard to think: none, low, high, max; alone: the default"},
    {"/system", command_system, "TEXT  what the model is told first; alone: nothing"},
    {"/file", command_file, "PATH  put a text in front of the next message"},
    {"/save", command_save, "PATH  write the conversation to a file"},
    {"/load", command_load, "PATH  go on with one from a file"},
    {"/undo", command_undo, "forget the last question and its answer"},
    {"/retry", command_retry, "ask the last question again, with another seed"},
    {"/stats", command_stats, "figures of the last answer"},
    {"/clear", command_clear, "begin a new conversation"},
    {"/help", command_help, "this list"},
    {"/quit", NULL, "leave; so does Ctrl-D"},
};

static int command_help(struct sl_chat_talk *talk, const char *none, struct sl_err *err)
{
    (void)talk;
    (void)none;
    (void)err;
    for (size_t i = 0; i < SL_ARRAY_LEN(commands); i++)
        fprintf(stderr, "%-8s %s\n", commands[i].name, commands[i].help);
    fprintf(stderr, "Ctrl-C stops an answer. A line that ends in \\ goes on in the next; lines "
                    "between two of\n\"\"\" are one message; one that begins with // says /.\n");
    return 0;
}

/* Runs a command. Returns 1 for /quit. */
static int run_command(struct sl_chat_talk *talk, const char *text, struct sl_err *err)
{
    const size_t length = strcspn(text, " \t\n");
    const char *argument = text + length + strspn(text + length, " \t\n");

    for (size_t i = 0; i < SL_ARRAY_LEN(commands); i++)
        if (strlen(commands[i].name) == length && memcmp(commands[i].name, text, length) == 0)
            return commands[i].run ? commands[i].run(talk, argument, err) : 1;
    return sl_err_set(err, -EINVAL, "%.*s is no command; /help lists them", (int)length, text);
}

/* ---- the talk ----------------------------------------------------------------------------------
 */

/* `text` is terminated; length does not count that. */
static int take_message(struct sl_chat_talk *talk, const char *text, size_t length,
                        struct sl_err *err)
{
    int rc;

    if (memchr(text, '\0', length))
        return sl_err_set(err, -SL_EFORMAT, "the message has a NUL byte, which no prompt can hold");
    if (text[0] == '/' && text[1] != '/')
        return run_command(talk, text, err);
    if (text[0] == '/') {
        text++;
        length--;
    }
    if (length == 0)
        return 0;
    sl_bytes_add(&talk->attached, text, length);
    if (talk->attached.out_of_memory)
        return sl_err_set(err, -ENOMEM, "chat: out of memory");
    rc = sl_conversation_add_question(&talk->conversation, talk->attached.data,
                                      talk->attached.length, err);
    sl_bytes_clear(&talk->attached);
    return rc == 0 ? ask(talk, err) : rc;
}

int sl_chat_talk_run(struct sl_chat_talk *talk, struct sl_err *err)
{
    const bool is_terminal = sl_line_input_is_terminal(talk->input);
    struct sl_bytes text = {0};
    int rc = 0, got;

    if (is_terminal)
        fprintf(stderr, "/help lists the commands; Ctrl-D leaves.\n");
    while (rc <= 0) {
        got = sl_line_input_read(talk->input, &text, err);
        if (got == -EINTR && is_terminal) {
            sl_interrupt_clear();
            fputc('\n', stdout);
            continue;
        }
        if (got <= 0) {
            rc = got;
            break;
        }
        sl_bytes_add(&text, "", 1); /* for those who look for the end of a string */
        rc = text.out_of_memory ? sl_err_set(err, -ENOMEM, "chat: out of memory")
                                : take_message(talk, text.data, text.length - 1, err);
        if (rc < 0 && !is_terminal)
            break;
        if (rc < 0)
            fprintf(stderr, "%s\n", err->message);
        if (is_terminal)
            sl_interrupt_clear();
        else if (sl_interrupted())
            break;
    }
    sl_bytes_fini(&text);
    return rc < 0 ? rc : 0;
}

void sl_chat_talk_fini(struct sl_chat_talk *talk)
{
    sl_conversation_fini(&talk->conversation);
    sl_bytes_fini(&talk->attached);
    json_decref(talk->settings.sampling);
    json_decref(talk->usage);
    json_decref(talk->timings);
    free(talk->effort);
}
