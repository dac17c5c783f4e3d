/* sluice logits: writes the logits after each token of given lists, as float32 .npy files. For
 * tests and for comparing engines: since it takes ids, it needs no tokenizer. Several lists share
 * their passes, each as a sequence of its own. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "daemon/engine/feed.h"
#include "tools/cli/command_line.h"
#include "tools/cli/commands.h"
#include "tools/cli/engine_options.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/output_file.h"
#include "tools/cli/progress.h"

#define LISTS_MAX SL_FEEDS_MAX
#define TOKENS_FILE_BYTES_MAX (UINT64_C(256) << 20) /* 2^24 ids, of up to 15 letters */

enum { OPTION_TOKENS = 256, OPTION_OUT, OPTION_MTP };

struct list {
    const char *tokens_path;
    const char *out_path;
    int32_t *tokens;
    uint32_t n_tokens;
    struct sl_output_file out;
};

struct command {
    struct sl_engine_options options;
    struct list lists[LISTS_MAX];
    uint32_t n_tokens_given, n_out_given;
    struct sl_engine *engine;
    bool write_failed;
    struct sl_text_progress progress;
};

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct command *command = state->input;

    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &command->options;
        return 0;
    case OPTION_TOKENS:
    case OPTION_OUT: {
        uint32_t *n = key == OPTION_TOKENS ? &command->n_tokens_given : &command->n_out_given;

        if (*n == LISTS_MAX)
            argp_error(state, "at most %u lists", LISTS_MAX);
        if (key == OPTION_TOKENS)
            command->lists[(*n)++].tokens_path = value;
        else
            command->lists[(*n)++].out_path = value;
        return 0;
    }
    case OPTION_MTP:
        command->options.draft = SL_DRAFT_MTP;
        return 0;
    case ARGP_KEY_END:
        if (command->n_tokens_given == 0 || command->n_tokens_given != command->n_out_given)
            argp_error(state, "give --tokens and --out, as many of one as of the other");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* Reads ids separated by white space. */
static int read_tokens(struct list *list, struct sl_err *err)
{
    char *text, *at;
    size_t length, n = 0;
    int rc;

    rc = sl_input_read_all(list->tokens_path, TOKENS_FILE_BYTES_MAX, &text, &length, err);
    if (rc < 0)
        return rc;
    list->tokens = malloc((length / 2 + 1) * sizeof(*list->tokens)); /* an id and a space each */
    if (!list->tokens)
        rc = sl_err_set(err, -ENOMEM, "%s: out of memory", list->tokens_path);
    for (at = text; rc == 0; n++) {
        char *end;
        long id;

        while (isspace((unsigned char)*at))
            at++;
        if (at == text + length)
            break;
        errno = 0;
        id = strtol(at, &end, 10);
        if (end == at || (*end && !isspace((unsigned char)*end)) || errno || id < 0 ||
            id > INT32_MAX)
            rc = sl_err_set(err, -SL_EFORMAT, "%s: token %zu is not a token id", list->tokens_path,
                            n + 1);
        else
            list->tokens[n] = (int32_t)id;
        at = end;
    }
    free(text);
    if (rc == 0 && n == 0)
        rc = sl_err_set(err, -SL_EFORMAT, "%s: holds no token ids", list->tokens_path);
    if (rc == 0 && n > (1u << 24))
        rc = sl_err_set(err, -SL_EFORMAT, "%s: more than 16777216 token ids", list->tokens_path);
    list->n_tokens = (uint32_t)n;
    return rc;
}

/* Finds ids outside the vocabulary and lists longer than the context before the weights are
 * loaded. */
static int check_tokens(const struct command *command, struct sl_err *err)
{
    struct sl_config config;
    int rc = sl_config_read(&config, command->options.model, err);

    for (uint32_t s = 0; rc == 0 && s < command->n_tokens_given; s++) {
        const struct list *list = &command->lists[s];

        if (list->n_tokens > command->options.context_tokens)
            rc = sl_err_set(err, -SL_EBUDGET, "%s: %u tokens do not fit --context %u",
                            list->tokens_path, list->n_tokens, command->options.context_tokens);
        for (uint32_t i = 0; rc == 0 && i < list->n_tokens; i++)
            if ((uint32_t)list->tokens[i] >= config.vocab_size)
                rc =
                    sl_err_set(err, -SL_EFORMAT, "%s: token %u is %d, outside the vocabulary of %u",
                               list->tokens_path, i + 1, list->tokens[i], config.vocab_size);
    }
    return rc;
}

static void start_npy(struct list *list, uint32_t rows, uint32_t cols)
{
    char header[128];
    int length;

    /* Version 1.0: magic, length of the text as 16 bits, the text padded to 64 in all. */
    memcpy(header, "\x93NUMPY\x01\x00", 8);
    length = snprintf(header + 10, sizeof(header) - 10,
                      "{'descr': '<f4', 'fortran_order': False, 'shape': (%u, %u), }", rows, cols);
    memset(header + 10 + length, ' ', sizeof(header) - 10 - (size_t)length);
    header[sizeof(header) - 1] = '\n';
    header[8] = (char)(sizeof(header) - 10);
    header[9] = 0;
    fwrite(header, 1, sizeof(header), list->out.stream);
}

/* Opens an output, which must not be one of the inputs or another output. */
static int open_output(struct command *command, uint32_t index, struct sl_err *err)
{
    struct list *list = &command->lists[index];
    int rc = sl_output_open(&list->out, list->out_path, err);

    if (rc == 0)
        rc = sl_output_keep_off(&list->out, command->options.model, err);
    for (uint32_t i = 0; rc == 0 && i < command->n_tokens_given; i++)
        rc = sl_output_keep_off(&list->out, command->lists[i].tokens_path, err);
    for (uint32_t i = 0; rc == 0 && i < index; i++)
        if (sl_output_same(&list->out, &command->lists[i].out))
            rc = sl_err_set(err, -EINVAL, "%s: given for two lists", list->out_path);
    return rc;
}

static void write_rows(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    struct command *command = context;
    const size_t n = sl_engine_config(command->engine)->vocab_size;

    for (uint32_t i = 0; i < n_rows; i++) {
        FILE *out = command->lists[rows[i].span_index].out.stream;

        command->write_failed |= fwrite(rows[i].logits, sizeof(float), n, out) != n;
    }
}

static int make_feeds(struct command *command, struct sl_feed feeds[LISTS_MAX], struct sl_err *err)
{
    int rc = 0;

    for (uint32_t i = 0; rc == 0 && i < command->n_tokens_given; i++) {
        const struct list *list = &command->lists[i];

        feeds[i] = (struct sl_feed){
            .tokens = list->tokens, .n_tokens = list->n_tokens, .logits = SL_LOGITS_ALL};
        rc = sl_engine_sequence_create(command->engine, command->options.context_tokens,
                                       &feeds[i].kv, err);
    }
    return rc;
}

/* Feeds all lists, in steps that they share. */
static int feed_lists(struct command *command, struct sl_err *err)
{
    const struct sl_step_request hooks = {
        .on_logits = write_rows,
        .on_logits_context = command,
        .stop = sl_interrupt_stop(),
        .on_route = sl_text_progress_route,
        .on_route_context = &command->progress,
    };
    const uint32_t n = command->n_tokens_given;
    struct sl_feed feeds[LISTS_MAX];
    int rc = make_feeds(command, feeds, err);

    if (rc < 0)
        return rc;
    do
        rc = command->options.draft == SL_DRAFT_MTP
                 ? sl_feed_mtp_step(command->engine, feeds, n, &hooks, err)
                 : sl_feed_step(command->engine, feeds, n, &hooks, err);
    while (rc > 0 && !command->write_failed);
    return rc < 0 ? rc : 0;
}

static int run(struct command *command, struct sl_err *err)
{
    uint32_t vocab_size = sl_engine_config(command->engine)->vocab_size;
    struct sl_text_progress *text = &command->progress;
    int rc = 0;

    *text =
        (struct sl_text_progress){.progress = sl_progress_start(stderr, "logits", "tokens"),
                                  .n_layers = sl_engine_config(command->engine)->num_hidden_layers};
    for (uint32_t i = 0; i < command->n_tokens_given; i++)
        text->n_tokens += command->lists[i].n_tokens;
    for (uint32_t i = 0; rc == 0 && i < command->n_tokens_given; i++) {
        rc = sl_keep_off_experts(&command->lists[i].out, command->engine, err);
        start_npy(&command->lists[i],
                  command->lists[i].n_tokens - (command->options.draft == SL_DRAFT_MTP),
                  vocab_size);
    }
    if (rc == 0)
        rc = feed_lists(command, err);
    sl_progress_end(&text->progress);
    for (uint32_t i = 0; rc == 0 && i < command->n_tokens_given; i++)
        rc = sl_output_commit(&command->lists[i].out, err);
    return rc;
}

int sl_cmd_logits(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"tokens", OPTION_TOKENS, "FILE", 0,
         "token ids, separated by white space; - is standard input", 0},
        {"out", OPTION_OUT, "FILE.npy", 0,
         "where the logits go, as float32 (tokens, vocab_size); - is standard output", 0},
        {"mtp", OPTION_MTP, NULL, 0, "of the MTP block instead: (tokens - 1, vocab_size)", 0},
        {0}};
    static const struct argp_child children[] = {{&sl_engine_argp, 0, "Running the model:", 1},
                                                 {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "MODEL",
        .doc = "Writes the logits after each token. --tokens and --out may be given several times: "
               "the lists then share their passes.",
        .children = children};
    struct command *command = calloc(1, sizeof(*command));
    struct sl_err err = {0};
    uint32_t longest = 0;
    int rc = 0;

    if (!command)
        return sl_command_status(sl_err_set(&err, -ENOMEM, "out of memory"), &err);
    sl_command_parse(&argp, argc, argv, command);
    for (uint32_t i = 0; rc == 0 && i < command->n_tokens_given; i++) {
        rc = read_tokens(&command->lists[i], &err);
        if (command->lists[i].n_tokens > longest)
            longest = command->lists[i].n_tokens;
    }
    if (command->options.context_tokens == 0)
        command->options.context_tokens = longest;
    command->options.n_sequences = command->n_tokens_given;
    if (rc == 0)
        rc = check_tokens(command, &err);
    for (uint32_t i = 0; rc == 0 && i < command->n_tokens_given; i++)
        rc = open_output(command, i, &err);
    if (rc == 0)
        rc = sl_open_engine(&command->engine, &command->options, &err);
    if (rc == 0)
        rc = run(command, &err);
    sl_engine_close(command->engine);
    for (uint32_t i = 0; i < command->n_tokens_given; i++) {
        sl_output_discard(&command->lists[i].out);
        free(command->lists[i].tokens);
    }
    free(command);
    return sl_command_status(rc, &err);
}
