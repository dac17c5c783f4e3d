/* sluice tokenize: text to token ids, or back. Needs nothing of the model but its tokenizer.json.
 */
#include <argp.h>
#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/text/detokenizer.h"
#include "core/text/tokenizer.h"
#include "tools/command_line.h"
#include "tools/commands.h"
#include "tools/json_lines.h"

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
    struct sl_tokenizer *tok;
    struct sl_encoder *encoder;
    struct sl_detokenizer *detok;
    struct sl_token_list ids; /* of the text or line in hand */
};

enum { OPTION_JSONL = 256, OPTION_SPECIAL, OPTION_DECODE };

static const struct argp_option option_table[] = {
    {.name = "prompt", .key = 'p', .arg = "TEXT", .doc = "The text (with --decode, the ids)"},
    {.name = "file", .key = 'f', .arg = "FILE", .doc = "The same from a file; - is standard input"},
    {.name = "jsonl",
     .key = OPTION_JSONL,
     .arg = "FILE",
     .doc = "One JSON string a line in, one JSON list of ids a line out (with --decode the other "
            "way round); - is standard input"},
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
        options->model = value;
        return 0;
    case ARGP_KEY_END:
        if (!options->model)
            argp_error(state, "which MODEL? A folder with tokenizer.json, or that file");
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

/* Ids in digits, with white space between them. */
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

static void decode(struct command *command, FILE *out)
{
    const struct sl_token_list *ids = &command->ids;
    const char *piece;
    size_t length;

    for (size_t i = 0; i <= ids->n; i++) {
        piece = i < ids->n ? sl_detokenizer_push(command->detok, ids->ids[i], &length)
                           : sl_detokenizer_flush(command->detok, &length);
        fwrite(piece, 1, length, out);
    }
}

static int encode(struct command *command, const char *text, size_t length, struct sl_err *err)
{
    return sl_encode(command->encoder, text, length, command->options.special ? SL_ENCODE_ADDED : 0,
                     &command->ids, err);
}

static void print_ids(const struct sl_token_list *ids, const char *separator)
{
    for (size_t i = 0; i < ids->n; i++)
        printf("%s%u", i ? separator : "", ids->ids[i]);
}

static int run_text(struct command *command, const char *text, size_t length, struct sl_err *err)
{
    int rc = command->options.decode ? parse_ids(text, &command->ids, err)
                                     : encode(command, text, length, err);

    if (rc < 0)
        return rc;
    if (command->options.decode) {
        decode(command, stdout);
    } else {
        print_ids(&command->ids, " ");
        putchar('\n');
    }
    return 0;
}

static int print_decoded_as_json(struct command *command, struct sl_err *err)
{
    size_t length = 0;
    char *text = NULL;
    FILE *memory = open_memstream(&text, &length);
    json_t *string;
    int rc = 0;

    if (!memory)
        return sl_err_set(err, -ENOMEM, "out of memory");
    decode(command, memory);
    fclose(memory);
    string = json_stringn(text, length);
    if (!string || json_dumpf(string, stdout, JSON_ENCODE_ANY) < 0)
        rc = sl_err_set(err, -ENOMEM, "out of memory");
    json_decref(string);
    free(text);
    return rc;
}

static int run_value(void *context, const json_t *value, struct sl_err *err)
{
    struct command *command = context;
    const json_t *item;
    size_t i;
    int rc;

    command->ids.n = 0;
    if (!command->options.decode) {
        if (!json_is_string(value))
            return sl_err_set(err, -SL_EFORMAT, "expected a JSON string");
        rc = encode(command, json_string_value(value), json_string_length(value), err);
        if (rc < 0)
            return rc;
        putchar('[');
        print_ids(&command->ids, ", ");
        fputs("]\n", stdout);
        return 0;
    }
    if (!json_is_array(value))
        return sl_err_set(err, -SL_EFORMAT, "expected a JSON list of ids");
    json_array_foreach(value, i, item)
    {
        json_int_t id = json_integer_value(item);

        if (!json_is_integer(item) || id < 0 || id > UINT32_MAX)
            return sl_err_set(err, -SL_EFORMAT, "item %zu of the list is not a token id", i);
        rc = append(&command->ids, (uint32_t)id, err);
        if (rc < 0)
            return rc;
    }
    rc = print_decoded_as_json(command, err);
    putchar('\n');
    return rc;
}

static int run(struct command *command, struct sl_err *err)
{
    const struct options *options = &command->options;
    char *text;
    size_t length;
    int rc = sl_tokenizer_open(&command->tok, options->model, err);

    if (rc == 0)
        rc = sl_encoder_create(&command->encoder, command->tok, err);
    if (rc == 0)
        rc = sl_detokenizer_create(&command->detok, command->tok, options->special, err);
    if (rc < 0)
        return rc;
    if (options->jsonl)
        return sl_json_lines_each(options->jsonl, run_value, command, err);
    if (options->text)
        return run_text(command, options->text, strlen(options->text), err);
    rc = sl_input_read_all(options->file, SL_ENCODE_BYTES_MAX, &text, &length, err);
    if (rc < 0)
        return rc;
    rc = run_text(command, text, length, err);
    free(text);
    return rc;
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
    sl_encoder_destroy(command.encoder);
    sl_tokenizer_close(command.tok);
    sl_token_list_fini(&command.ids);
    return sl_command_status(rc, &err);
}
