/* sluice batch make: writes a batch's input from documents and questions. */
#include <argp.h>
#include <errno.h>
#include <fts.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/bytes.h"
#include "core/base/file.h"
#include "core/base/size.h"
#include "daemon/batch/batch_line.h"
#include "tools/batch/batch_commands.h"
#include "tools/cli/command_line.h"

#define ASKS_MAX 64u

enum {
    OPTION_ASK = 256,
    OPTION_SYSTEM,
    OPTION_MAX_TOKENS,
    OPTION_TEMP,
    OPTION_MODEL,
    OPTION_NO_THINKING,
    OPTION_PLAIN,
};

struct command {
    const char *asks[ASKS_MAX]; /* texts, or names of files */
    uint32_t n_asks;
    const char *system, *model;
    uint32_t n_tokens_max; /* 0: not told */
    double temperature;    /* below 0: not told */
    bool no_thinking, is_plain;
    char **documents; /* (n_documents) */
    int n_documents;

    char *ask_texts[ASKS_MAX], *system_text;
    uint32_t n_items;
    FILE *lines; /* that are made: a file without a name */
};

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct command *command = state->input;

    switch (key) {
    case OPTION_ASK:
        if (command->n_asks == ASKS_MAX)
            argp_error(state, "--ask can be given %u times", ASKS_MAX);
        command->asks[command->n_asks++] = value;
        return 0;
    case OPTION_SYSTEM:
        command->system = value;
        return 0;
    case OPTION_MAX_TOKENS:
        command->n_tokens_max = sl_parse_count(state, "--max-tokens", value, 1u << 24);
        return 0;
    case OPTION_TEMP:
        command->temperature = sl_parse_real(state, "--temp", value, 0, 2);
        return 0;
    case OPTION_MODEL:
        command->model = value;
        return 0;
    case OPTION_NO_THINKING:
        command->no_thinking = true;
        return 0;
    case OPTION_PLAIN:
        command->is_plain = true;
        return 0;
    case ARGP_KEY_ARGS:
        command->documents = state->argv + state->next;
        command->n_documents = state->argc - state->next;
        return 0;
    case ARGP_KEY_END:
        if (command->n_asks == 0)
            argp_error(state, "--ask is needed: what is asked of each document");
        if (command->n_documents == 0)
            argp_error(state, "DOC is missing: files with text, or folders of them");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* ---- texts -------------------------------------------------------------------------------------
 */

static int check_text(const char *path, const char *text, size_t length, struct sl_err *err)
{
    json_t *string = json_stringn(text, length);
    int rc = 0;

    if (memchr(text, '\0', length))
        rc = sl_err_set(err, -SL_EFORMAT, "%s: has zero bytes, so it is no text", path);
    else if (!string)
        rc = sl_err_set(err, -SL_EFORMAT, "%s: is no UTF-8 text; \"iconv -t UTF-8\" makes one",
                        path);
    json_decref(string);
    return rc;
}

static int read_text(const char *path, char **ret_text, struct sl_err *err)
{
    size_t length;
    int rc = sl_file_read_all(path, SL_BATCH_LINE_BYTES_MAX / 2, ret_text, &length, err);

    if (rc == 0 && (rc = check_text(path, *ret_text, length, err)) < 0)
        free(*ret_text);
    return rc;
}

/* A text that is the name of a file stands for what is in it. */
static int text_or_file(const char *value, char **ret_text, struct sl_err *err)
{
    struct stat status;

    if (stat(value, &status) == 0 && S_ISREG(status.st_mode))
        return read_text(value, ret_text, err);
    *ret_text = strdup(value);
    if (!*ret_text)
        return sl_err_set(err, -ENOMEM, "out of memory");
    return check_text("the text on the command line", value, strlen(value), err);
}

/* ---- items -------------------------------------------------------------------------------------
 */

static json_t *chat_body(const struct command *command, const json_t *text)
{
    json_t *messages = json_array();

    if (command->system_text)
        json_array_append_new(
            messages, json_pack("{s:s, s:s}", "role", "system", "content", command->system_text));
    json_array_append_new(messages,
                          json_pack("{s:s, s:O}", "role", "user", "content", (json_t *)text));
    return json_pack("{s:o}", "messages", messages);
}

static json_t *body_of(const struct command *command, const json_t *text)
{
    json_t *body =
        command->is_plain ? json_pack("{s:O}", "prompt", (json_t *)text) : chat_body(command, text);

    if (command->model)
        json_object_set_new(body, "model", json_string(command->model));
    if (command->n_tokens_max > 0)
        json_object_set_new(body, "max_tokens", json_integer(command->n_tokens_max));
    if (command->temperature >= 0)
        json_object_set_new(body, "temperature", json_real(command->temperature));
    if (command->no_thinking)
        json_object_set_new(body, "thinking", json_pack("{s:s}", "type", "disabled"));
    return body;
}

static json_t *id_of(const struct command *command, const char *path, uint32_t ask_index)
{
    while (strncmp(path, "./", 2) == 0)
        path += 2;
    return command->n_asks == 1 ? json_string(path) : json_sprintf("%s#%u", path, ask_index + 1);
}

static int lines_failed(struct sl_err *err)
{
    return sl_err_set(err, -EIO, "a temporary file for the lines: %s", sl_strerror(errno));
}

/* The document comes first and the question last, so that all questions share the document. */
static int print_item(struct command *command, const char *path, const char *document,
                      uint32_t ask_index, struct sl_err *err)
{
    const char *ask = command->ask_texts[ask_index];
    json_t *id = id_of(command, path, ask_index), *text, *object;
    const char *system = command->is_plain && command->system_text ? command->system_text : "";
    struct sl_bytes line = {0};

    sl_bytes_add_format(&line, "%s%s", system, system[0] ? "\n\n" : "");
    sl_bytes_add_text(&line, document);
    sl_bytes_add_format(&line, "\n\n%s", ask);
    text = sl_bytes_string(&line);
    object = text && id
                 ? json_pack("{s:O, s:s, s:s, s:o}", "custom_id", id, "method", "POST", "url",
                             command->is_plain ? "/v1/completions" : "/v1/chat/completions", "body",
                             body_of(command, text))
                 : NULL;
    sl_bytes_clear(&line);
    sl_bytes_add_json(&line, object);
    json_decref(object);
    json_decref(text);
    json_decref(id);
    if (line.out_of_memory) {
        sl_bytes_fini(&line);
        return sl_err_set(err, id ? -ENOMEM : -SL_EFORMAT, "%s: %s", path,
                          id ? "out of memory" : "its name is no UTF-8");
    }
    sl_bytes_add_text(&line, "\n");
    if (line.out_of_memory || fwrite(line.data, 1, line.length, command->lines) < line.length) {
        sl_bytes_fini(&line);
        return lines_failed(err);
    }
    sl_bytes_fini(&line);
    command->n_items++;
    return 0;
}

static int print_document(struct command *command, const char *path, struct sl_err *err)
{
    char *document;
    int rc;

    if (strlen(path) + 8 > SL_BATCH_ID_BYTES_MAX)
        return sl_err_set(err, -ENAMETOOLONG, "%s: the name is too long for a custom_id", path);
    rc = read_text(path, &document, err);
    if (rc < 0)
        return rc;
    for (uint32_t i = 0; rc == 0 && i < command->n_asks; i++)
        rc = print_item(command, path, document, i, err);
    free(document);
    return rc;
}

/* ---- documents ---------------------------------------------------------------------------------
 */

static int compare_names(const FTSENT **a, const FTSENT **b)
{
    return strcmp((*a)->fts_name, (*b)->fts_name);
}

static bool is_hidden(const FTSENT *entry)
{
    return entry->fts_level > 0 && entry->fts_name[0] == '.';
}

/* A folder stands for all files below it, in the order of their names; hidden ones are passed
 * over. */
static int print_all(struct command *command, char *path, struct sl_err *err)
{
    char *paths[] = {path, NULL};
    FTS *fts = fts_open(paths, FTS_LOGICAL | FTS_NOCHDIR, compare_names);
    FTSENT *entry;
    int rc = 0;

    if (!fts)
        return sl_err_set(err, -errno, "%s: %s", path, sl_strerror(errno));
    while (rc == 0 && (errno = 0, entry = fts_read(fts))) {
        if (is_hidden(entry)) {
            if (entry->fts_info == FTS_D)
                fts_set(fts, entry, FTS_SKIP);
        } else if (entry->fts_info == FTS_NS || entry->fts_info == FTS_DNR ||
                   entry->fts_info == FTS_ERR || entry->fts_info == FTS_SLNONE) {
            const int code = entry->fts_info == FTS_SLNONE ? ENOENT : entry->fts_errno;

            rc = sl_err_set(err, -code, "%s: %s", entry->fts_path, sl_strerror(code));
        } else if (entry->fts_info == FTS_F || entry->fts_info == FTS_DEFAULT) {
            rc = print_document(command, entry->fts_path, err);
        }
    }
    if (rc == 0 && errno != 0)
        rc = sl_err_set(err, -errno, "%s: %s", path, sl_strerror(errno));
    fts_close(fts);
    return rc;
}

static int compare_paths(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* A document that is named twice would have one custom_id twice. */
static int check_twice(const struct command *command, struct sl_err *err)
{
    const size_t n = (size_t)command->n_documents;
    char **sorted = malloc(n * sizeof(*sorted));
    int rc = sorted ? 0 : sl_err_set(err, -ENOMEM, "out of memory");

    if (rc == 0) {
        memcpy(sorted, command->documents, n * sizeof(*sorted));
        qsort(sorted, n, sizeof(*sorted), compare_paths);
    }
    for (size_t i = 1; rc == 0 && i < n; i++)
        if (strcmp(sorted[i - 1], sorted[i]) == 0)
            rc = sl_err_set(err, -EINVAL, "%s: is named twice", sorted[i]);
    free(sorted);
    return rc;
}

/* Prints the lines when all of them are there, so that a document that cannot be read leaves no
 * part of a batch. */
static int print_lines(FILE *lines, struct sl_err *err)
{
    char part[4096];
    size_t n;

    if (fflush(lines) != 0)
        return lines_failed(err);
    rewind(lines);
    while ((n = fread(part, 1, sizeof(part), lines)) > 0)
        fwrite(part, 1, n, stdout);
    return ferror(lines) ? lines_failed(err) : 0;
}

static int make(struct command *command, struct sl_err *err)
{
    int rc = check_twice(command, err);

    if (rc == 0 && !(command->lines = tmpfile()))
        rc = lines_failed(err);
    for (uint32_t i = 0; rc == 0 && i < command->n_asks; i++)
        rc = text_or_file(command->asks[i], &command->ask_texts[i], err);
    if (rc == 0 && command->system)
        rc = text_or_file(command->system, &command->system_text, err);
    for (int i = 0; rc == 0 && i < command->n_documents; i++)
        rc = print_all(command, command->documents[i], err);
    if (rc == 0 && command->n_items == 0)
        rc = sl_err_set(err, -ENOENT, "there is no file in what was named");
    return rc == 0 ? print_lines(command->lines, err) : rc;
}

int sl_batch_make(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"ask", OPTION_ASK, "TEXT|FILE", 0,
         "what is asked of each document; given several times, each makes an item", 0},
        {"system", OPTION_SYSTEM, "TEXT|FILE", 0, "what the model is told first", 0},
        {"max-tokens", OPTION_MAX_TOKENS, "N", 0, "most tokens of an answer", 0},
        {"temp", OPTION_TEMP, "T", 0, "temperature; 0 takes the likeliest token", 0},
        {"model", OPTION_MODEL, "NAME", 0, "the model that the requests name (default: none)", 0},
        {"no-thinking", OPTION_NO_THINKING, NULL, 0, "the model answers at once", 0},
        {"plain", OPTION_PLAIN, NULL, 0,
         "texts to be continued, for a model that knows no conversations", 0},
        {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "DOC...",
        .doc = "Prints the input of a batch: an item for each document and question, the document "
               "first and the question last. DOC is a file with text, or a folder of them; its "
               "name becomes the item's custom_id."};
    struct command command = {.temperature = -1};
    struct sl_err err = {0};
    int rc;

    sl_command_parse(&argp, argc, argv, &command);
    rc = make(&command, &err);
    for (uint32_t i = 0; i < ASKS_MAX; i++)
        free(command.ask_texts[i]);
    free(command.system_text);
    if (command.lines)
        fclose(command.lines);
    return sl_command_status(rc, &err);
}
