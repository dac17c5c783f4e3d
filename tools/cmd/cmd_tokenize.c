/* sluice tokenize: turns text into token ids, or back. It needs no file of the model but
 * tokenizer.json. */
#include <argp.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/text/detokenizer.h"
#include "tools/cli/command_line.h"
#include "tools/cli/commands.h"
#include "tools/cli/json_lines.h"
#include "tools/cli/prompt.h"

struct options {
    const char *model;
    const char *text;  /* -p */
    const char *file;  /* -f */
    const char *jsonl; /* --jsonl */
    bool special;
    bool decode;
};

struct command {
    struct options options;
    struct sl_prompt_maker prompts;
    struct sl_detokenizer *detok;
    struct sl_token_list ids; /* to decode: of the text or line in hand */
};

enum { OPTION_JSONL = 256, OPTION_SPECIAL, OPTION_DECODE };

static const struct argp_option option_table[] = {
    {.name = "prompt", .key = 'p', .arg = "TEXT", .doc = "The text (with --decode, the ids)"},
    {.name = "file", .key = 'f', .arg = "FILE", .doc = "The same from a file; - is standard input"},
    {.name = "jsonl",
     .key = OPTION_JSONL,
     .arg = "FILE",
     .doc =
         "One JSON string, or object with a \"text\", a line in, one JSON list of ids a line out "
         "(with --decode lists in, strings out); - is standard input"},
    {.name = "special",
     .key = OPTION_SPECIAL,
     .doc = "Recognise the model's control tokens in the text; with --decode show those that are "
            "left out otherwise"},
    {.name = "decode",
     .key = OPTION_DECODE,
     .doc = "From ids, separated by white space, to text; bytes that belong to no character become "
            "U+FFFD"},
    {0}};

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct options *options = state->input;

    switch (key) {
    case 'p':
        options->text = value;
        return 0;
    case 'f':
        options->file = value;
        return 0;
    case OPTION_JSONL:
        options->jsonl = value;
        return 0;
    case OPTION_SPECIAL:
        options->special = true;
        return 0;
    case OPTION_DECODE:
        options->decode = true;
        return 0;
    case ARGP_KEY_ARG:
        if (options->model)
            argp_error(state, "one MODEL, not \"%s\" as well", value);
        options->model = sl_parse_model(value);
        return 0;
    case ARGP_KEY_END:
        if (!options->model)
            argp_error(state, "give MODEL: a folder with tokenizer.json, or that file");
        if (!!options->text + !!options->file + !!options->jsonl != 1)
            argp_error(state, "one of -p, -f and --jsonl is needed");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static int append(struct sl_token_list *ids, uint32_t id, struct sl_err *err)
{
    return sl_token_list_push(ids, id) < 0 ? sl_err_set(err, -ENOMEM, "out of memory") : 0;
}

/* Parses ids in digits, with white space between them. */
static int parse_ids(const char *text, struct sl_token_list *ids, struct sl_err *err)
{
    unsigned long id;
    char *end;
    int rc;

    for (;;) {
        while (isspace((unsigned char)*text))
            text++;
        if (!*text)
            return 0;
        errno = 0;
        id = strtoul(text, &end, 10);
        if (!isdigit((unsigned char)*text) || (*end && !isspace((unsigned char)*end)) || errno ||
            id > UINT32_MAX)
            return sl_err_set(err, -SL_EFORMAT,
                              "\"%.*s\" is not a token id; expected numbers and white space",
                              (int)strcspn(text, " \t\r\n\v\f"), text);
        rc = append(ids, (uint32_t)id, err);
        if (rc < 0)
            return rc;
        text = end;
    }
}

static int decode(struct command *command, FILE *out, struct sl_err *err)
{
    const struct sl_token_list *ids = &command->ids;
    const char *piece;
    size_t length;

    for (size_t i = 0; i < ids->n; i++)
        if (!sl_tokenizer_is_known(command->prompts.tok, ids->ids[i]))
            return sl_err_set(err, -SL_EFORMAT, "token %zu is %u, which no text stands for", i + 1,
                              ids->ids[i]);
    for (size_t i = 0; i <= ids->n; i++) {
        piece = i < ids->n ? sl_detokenizer_push(command->detok, ids->ids[i], &length)
                           : sl_detokenizer_flush(command->detok, &length);
        fwrite(piece, 1, length, out);
    }
    return 0;
}

static void print_ids(const struct sl_prompt *text, const char *separator)
{
    for (uint32_t i = 0; i < text->n_tokens; i++)
        printf("%s%" PRId32, i ? separator : "", text->tokens[i]);
}

static int decode_file(struct command *command, const char *path, struct sl_err *err)
{
    char *text;
    size_t length;
    int rc = sl_input_read_all(path, SL_ENCODE_BYTES_MAX, &text, &length, err);

    if (rc < 0)
        return rc;
    rc = parse_ids(text, &command->ids, err);
    free(text);
    return rc;
}

static int run_text(struct command *command, struct sl_err *err)
{
    const struct options *options = &command->options;
    struct sl_prompt text;
    int rc;

    if (options->decode) {
        rc = options->text ? parse_ids(options->text, &command->ids, err)
                           : decode_file(command, options->file, err);
        return rc < 0 ? rc : decode(command, stdout, err);
    }
    rc = sl_prompt_read(&command->prompts, options->text, options->file, &text, err);
    if (rc < 0)
        return rc;
    print_ids(&text, " ");
    putchar('\n');
    sl_prompt_fini(&text);
    return 0;
}

static int print_decoded_as_json(struct command *command, struct sl_err *err)
{
    size_t length = 0;
    char *text = NULL;
    FILE *memory = open_memstream(&text, &length);
    json_t *string;
    int rc;

    if (!memory)
        return sl_err_set(err, -ENOMEM, "out of memory");
    rc = decode(command, memory, err);
    fclose(memory);
    string = json_stringn(text, length);
    if (rc == 0 && (!string || json_dumpf(string, stdout, JSON_ENCODE_ANY) < 0))
        rc = sl_err_set(err, -ENOMEM, "out of memory");
    json_decref(string);
    free(text);
    return rc;
}

static int encode_value(struct command *command, const json_t *value, struct sl_err *err)
{
    struct sl_prompt prompt;
    const char *text;
    size_t length;
    int rc = sl_json_line_text(value, NULL, &text, &length, err);

    if (rc == 0)
        rc = sl_prompt_make(&command->prompts, text, length, &prompt, err);
    if (rc < 0)
        return rc;
    putchar('[');
    print_ids(&prompt, ", ");
    fputs("]\n", stdout);
    sl_prompt_fini(&prompt);
    return 0;
}

static int decode_value(struct command *command, const json_t *value, struct sl_err *err)
{
    const json_t *item;
    size_t i;
    int rc;

    command->ids.n = 0;
    if (!json_is_array(value))
        return sl_err_set(err, -SL_EFORMAT, "expected a JSON list of ids");
    json_array_foreach(value, i, item)
    {
        json_int_t id = json_integer_value(item);

        if (!json_is_integer(item) || id < 0 || id > UINT32_MAX)
            return sl_err_set(err, -SL_EFORMAT, "token %zu is not a token id", i + 1);
        rc = append(&command->ids, (uint32_t)id, err);
        if (rc < 0)
            return rc;
    }
    rc = print_decoded_as_json(command, err);
    if (rc == 0)
        putchar('\n');
    return rc;
}

static int run_value(void *context, const json_t *value, struct sl_err *err)
{
    struct command *command = context;

    return (command->options.decode ? decode_value : encode_value)(command, value, err);
}

static int run(struct command *command, struct sl_err *err)
{
    const struct options *options = &command->options;
    int rc =
        sl_prompt_maker_open(&command->prompts, options->model, NULL,
                             SL_PROMPT_NO_BOS | (options->special ? SL_PROMPT_SPECIAL : 0), err);

    if (rc == 0)
        rc = sl_detokenizer_create(&command->detok, command->prompts.tok, options->special, err);
    if (rc < 0)
        return rc;
    return options->jsonl ? sl_json_lines_each(options->jsonl, run_value, command, err)
                          : run_text(command, err);
}

int sl_cmd_tokenize(int argc, char **argv)
{
    static const struct argp argp = {
        .options = option_table,
        .parser = parse_option,
        .args_doc = "MODEL",
        .doc = "Turns text into the model's token ids, or ids into text. MODEL is a folder with "
               "tokenizer.json, or that file."};
    struct command command = {0};
    struct sl_err err;
    int rc;

    sl_command_parse(&argp, argc, argv, &command.options);
    rc = run(&command, &err);
    sl_detokenizer_destroy(command.detok);
    sl_prompt_maker_close(&command.prompts);
    sl_token_list_fini(&command.ids);
    return sl_command_status(rc, &err);
}
