#include "tools/chat/line_input.h"

#include <errno.h>
#include <langinfo.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <wchar.h>

#include <histedit.h>

#include "tools/cli/interrupt.h"

#define HISTORY_LINES 1000
#define FENCE "\"\"\""

struct sl_line_input {
    EditLine *edit; /* NULL: lines come from a pipe */
    History *history;
    char *history_path;
    bool goes_on; /* the next line belongs to the same message */
    char *line;   /* of a pipe */
    size_t line_capacity;
};

/* An EditLine's prompt function. */
static char *prompt(EditLine *edit)
{
    static char first[] = "> ", further[] = ". ";
    struct sl_line_input *input = NULL;

    el_get(edit, EL_CLIENTDATA, &input);
    return input && input->goes_on ? further : first;
}

/* An EditLine's function for reading a character: its own one would forget a Ctrl-C that comes just
 * before it reads. Bytes that are no text of the locale are left out. */
static int read_character(EditLine *edit, wchar_t *ret_character)
{
    mbstate_t state = {0};
    char byte;

    (void)edit;
    for (;;) {
        ssize_t n = sl_interrupt_wait(STDIN_FILENO);
        size_t used;

        if (n == 0)
            n = read(STDIN_FILENO, &byte, 1);
        else
            errno = EINTR;
        if (n <= 0)
            return (int)n;
        used = mbrtowc(ret_character, &byte, 1, &state);
        if (used == (size_t)-1) { /* it may begin a character, where it does not go on with one */
            state = (mbstate_t){0};
            used = mbrtowc(ret_character, &byte, 1, &state);
        }
        if (used == (size_t)-1)
            state = (mbstate_t){0};
        else if (used != (size_t)-2)
            return 1;
    }
}

static void open_history(struct sl_line_input *input, const char *path)
{
    HistEvent event;

    input->history = history_init();
    if (!input->history)
        return;
    history(input->history, &event, H_SETSIZE, HISTORY_LINES);
    history(input->history, &event, H_SETUNIQUE, 1);
    el_set(input->edit, EL_HIST, history, input->history);
    if (!path)
        return;
    input->history_path = strdup(path);
    history(input->history, &event, H_LOAD, path); /* the first time there is none */
}

/* The editor takes what is typed for characters of the locale, and prompts are UTF-8. */
static void use_utf8(void)
{
    if (!setlocale(LC_CTYPE, "") || strcmp(nl_langinfo(CODESET), "UTF-8") != 0)
        setlocale(LC_CTYPE, "C.UTF-8");
}

int sl_line_input_create(struct sl_line_input **ret_input, const char *history_path,
                         struct sl_err *err)
{
    struct sl_line_input *input = calloc(1, sizeof(*input));

    if (!input)
        return sl_err_set(err, -ENOMEM, "line input: out of memory");
    if (isatty(STDIN_FILENO) && isatty(STDOUT_FILENO)) {
        use_utf8();
        input->edit = el_init("sluice", stdin, stdout, stderr);
        if (!input->edit) {
            free(input);
            return sl_err_set(err, -ENOMEM, "line input: the terminal cannot be set up");
        }
        el_set(input->edit, EL_CLIENTDATA, input);
        el_set(input->edit, EL_PROMPT, prompt);
        el_set(input->edit, EL_GETCFN, read_character);
        el_set(input->edit, EL_EDITOR, "emacs");
        open_history(input, history_path);
        el_source(input->edit, NULL); /* the user's own keys, from ~/.editrc */
    }
    *ret_input = input;
    return 0;
}

void sl_line_input_destroy(struct sl_line_input *input)
{
    HistEvent event;

    if (!input)
        return;
    if (input->history_path) {
        const mode_t mask = umask(077);

        history(input->history, &event, H_SAVE, input->history_path);
        umask(mask);
    }
    if (input->edit)
        el_end(input->edit);
    if (input->history)
        history_end(input->history);
    free(input->history_path);
    free(input->line);
    free(input);
}

bool sl_line_input_is_terminal(const struct sl_line_input *input)
{
    return input->edit != NULL;
}

/* Reads a line with its newline. Returns its length, 0 at the end, or -EINTR. */
static ssize_t read_line(struct sl_line_input *input, const char **ret_line)
{
    int length = 0;
    ssize_t n;

    if (input->edit) {
        *ret_line = el_gets(input->edit, &length);
        if (*ret_line && length > 0)
            return length;
        return length < 0 && errno == EINTR ? -EINTR : 0;
    }
    n = getline(&input->line, &input->line_capacity, stdin);
    *ret_line = input->line;
    if (n < 0)
        return errno == EINTR && !feof(stdin) ? -EINTR : 0;
    return n;
}

/* Adds a line to the message. Returns whether the message goes on. */
static bool add_line(struct sl_bytes *text, const char *line, size_t length, bool *fenced)
{
    const bool is_fence = length == strlen(FENCE) && memcmp(line, FENCE, length) == 0;

    if (is_fence) {
        *fenced = !*fenced;
        if (!*fenced && text->length > 0)
            text->length--; /* the newline in front of the fence */
        return *fenced;
    }
    if (!*fenced && length > 0 && line[length - 1] == '\\') {
        sl_bytes_add(text, line, length - 1);
        sl_bytes_add_text(text, "\n");
        return true;
    }
    sl_bytes_add(text, line, length);
    if (*fenced)
        sl_bytes_add_text(text, "\n");
    return *fenced;
}

int sl_line_input_read(struct sl_line_input *input, struct sl_bytes *ret_text, struct sl_err *err)
{
    bool fenced = false, goes_on = true, any = false;
    HistEvent event;

    sl_bytes_clear(ret_text);
    while (goes_on) {
        const char *line;
        ssize_t length;

        errno = 0;
        input->goes_on = any;
        length = read_line(input, &line);
        if (length < 0)
            return sl_err_set(err, (int)length, "interrupted");
        if (length == 0)
            return any ? 1 : 0;
        any = true;
        if (input->history && length > 1)
            history(input->history, &event, H_ENTER, line);
        if (line[length - 1] == '\n')
            length--;
        goes_on = add_line(ret_text, line, (size_t)length, &fenced);
    }
    if (ret_text->out_of_memory)
        return sl_err_set(err, -ENOMEM, "line input: out of memory");
    return 1;
}
