/* sluice logits: writes the logits after each token of given lists, as float32 .npy files, or the
 * drafts that DSpark makes along them. For tests and for comparing engines: since it takes ids, it
 * needs no tokenizer. Several lists share their passes, each as a sequence of its own. */
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
#include "tools/cli/npy.h"
#include "tools/cli/output_file.h"
#include "tools/cli/progress.h"
#include "tools/cmd/logits_drafts.h"

#define LISTS_MAX SL_FEEDS_MAX
#define TOKENS_FILE_BYTES_MAX (UINT64_C(256) << 20) /* 2^24 ids, of up to 15 letters */

#define DRAFT_LISTS_MAX (SL_OUTPUT_FILES_MAX / (SL_DRAFT_FILES + 1))
#define DRAFT_EVERY 16u /* as tests/oracle/v4ref.py makes them */

enum { OPTION_TOKENS = 256, OPTION_OUT, OPTION_MTP, OPTION_DRAFT_OUT, OPTION_DRAFT_EVERY };

struct list {
    const char *tokens_path;
    const char *out_path;   /* NULL: no logits, */
    const char *draft_path; /* no drafts */
    int32_t *tokens;
    uint32_t n_tokens;
    struct sl_output_file out;
    struct sl_draft_files drafts;
    int32_t next; /* the likeliest token after the last one */
};

struct command {
    struct sl_engine_options options;
    struct list lists[LISTS_MAX];
    uint32_t n_tokens_given, n_out_given, n_draft_given;
    uint32_t draft_every; /* tokens */
    struct sl_engine *engine;
    bool mtp, write_failed;
    struct sl_text_progress progress;
};

/* Each list has as many outputs as the others. */
static void check_counts(struct command *command, struct argp_state *state)
{
    const uint32_t n = command->n_tokens_given, n_drafts = command->n_draft_given;

    if (n == 0 || (command->n_out_given == 0 && n_drafts == 0) ||
        (command->n_out_given != n && command->n_out_given > 0) || (n_drafts != n && n_drafts > 0))
        argp_error(state, "give --tokens and --out (or --draft-out), as many of one as of the "
                          "other");
    if (command->mtp && n_drafts > 0)
        argp_error(state, "--mtp and --draft-out are for drafts of different kinds");
    command->options.draft = command->mtp   ? SL_DRAFT_MTP
                             : n_drafts > 0 ? SL_DRAFT_DSPARK
                                            : SL_DRAFT_NONE;
}

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct command *command = state->input;

    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &command->options;
        return 0;
    case OPTION_TOKENS:
        if (command->n_tokens_given == LISTS_MAX)
            argp_error(state, "at most %u lists", LISTS_MAX);
        command->lists[command->n_tokens_given++].tokens_path = value;
        return 0;
    case OPTION_OUT:
        if (command->n_out_given == LISTS_MAX)
            argp_error(state, "at most %u lists", LISTS_MAX);
        command->lists[command->n_out_given++].out_path = value;
        return 0;
    case OPTION_DRAFT_OUT:
        if (command->n_draft_given == DRAFT_LISTS_MAX)
            argp_error(state, "drafts for at most %u lists", (unsigned)DRAFT_LISTS_MAX);
        command->lists[command->n_draft_given++].draft_path = value;
        return 0;
    case OPTION_DRAFT_EVERY:
        command->draft_every = sl_parse_count(state, "--draft-every", value, 1u << 24);
        return 0;
    case OPTION_MTP:
        command->mtp = true;
        return 0;
    case ARGP_KEY_END:
        check_counts(command, state);
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

/* Opens an output, which must not be one of the inputs or another output. */
static int open_output(struct command *command, uint32_t index, struct sl_err *err)
{
    struct list *list = &command->lists[index];
    int rc = 0;

    if (list->draft_path)
        rc = sl_draft_files_open(&list->drafts, list->draft_path, err);
    if (rc < 0 || !list->out_path)
        return rc;
    rc = sl_output_open(&list->out, list->out_path, err);

    if (rc == 0)
        rc = sl_output_keep_off(&list->out, command->options.model, err);
    for (uint32_t i = 0; rc == 0 && i < command->n_tokens_given; i++)
        rc = sl_output_keep_off(&list->out, command->lists[i].tokens_path, err);
    for (uint32_t i = 0; rc == 0 && i < index; i++)
        if (sl_output_same(&list->out, &command->lists[i].out))
            rc = sl_err_set(err, -EINVAL, "%s: given for two lists", list->out_path);
    return rc;
}

static int32_t likeliest(const float *logits, uint32_t n)
{
    uint32_t best = 0;

    for (uint32_t v = 1; v < n; v++)
        if (logits[v] > logits[best])
            best = v;
    return (int32_t)best;
}

static void take_rows(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    struct command *command = context;
    const uint32_t n = sl_engine_config(command->engine)->vocab_size;

    for (uint32_t i = 0; i < n_rows; i++) {
        struct list *list = &command->lists[rows[i].span_index];

        if (list->out.stream)
            command->write_failed |=
                fwrite(rows[i].logits, sizeof(float), n, list->out.stream) != n;
        if (list->draft_path && rows[i].token_index + 1 == list->n_tokens)
            list->next = likeliest(rows[i].logits, n);
    }
}

static int make_feeds(struct command *command, struct sl_feed feeds[LISTS_MAX], struct sl_err *err)
{
    int rc = 0;

    for (uint32_t i = 0; rc == 0 && i < command->n_tokens_given; i++) {
        const struct list *list = &command->lists[i];

        feeds[i] = (struct sl_feed){.tokens = list->tokens,
                                    .n_tokens = list->n_tokens,
                                    .logits = list->out_path ? SL_LOGITS_ALL : SL_LOGITS_LAST};
        rc = sl_engine_sequence_create(command->engine, command->options.context_tokens,
                                       &feeds[i].kv, err);
    }
    return rc;
}

/* ---- drafts ------------------------------------------------------------------------------------
 */

struct drafting {
    struct command *command;
    struct sl_dspark_span spans[LISTS_MAX];
    uint32_t lists[LISTS_MAX]; /* of each span */
    uint32_t n;
};

static void take_drafts(void *context, struct sl_dspark_row *rows, uint32_t n_rows)
{
    const struct drafting *in = context;
    const uint32_t vocab_size = sl_engine_config(in->command->engine)->vocab_size;

    for (uint32_t i = 0; i < n_rows; i++) {
        rows[i].token = likeliest(rows[i].logits, vocab_size);
        sl_draft_files_add_token(&in->command->lists[in->lists[rows[i].span_index]].drafts,
                                 &rows[i], vocab_size);
    }
}

/* Makes the drafts that are listed. */
static int make_drafts(struct drafting *in, const struct sl_step_request *hooks, struct sl_err *err)
{
    const struct sl_dspark_request request = {.spans = in->spans,
                                              .n_spans = in->n,
                                              .stop = hooks->stop,
                                              .on_draft = take_drafts,
                                              .on_draft_context = in};

    in->n = 0;
    return sl_forward_dspark(sl_engine_forward(in->command->engine, SL_STEP_LARGE), &request, err);
}

/* Drafts behind all lists that have come to a place for one, or to their end, as many at once as a
 * step has room for. */
static int draft_lists(struct command *command, const struct sl_feed *feeds, uint32_t place,
                       const struct sl_step_request *hooks, struct sl_err *err)
{
    const uint32_t block = sl_engine_config(command->engine)->dspark.block_size;
    const uint32_t tokens_max = sl_engine_step_tokens_max(command->engine, SL_STEP_LARGE);
    struct drafting in = {.command = command};
    int rc = 0;

    for (uint32_t i = 0; rc == 0 && i < command->n_tokens_given; i++) {
        struct list *list = &command->lists[i];
        const uint32_t n_seen = feeds[i].n_done;
        const int32_t anchor = n_seen < list->n_tokens ? list->tokens[n_seen] : list->next;

        if (place - n_seen >= command->draft_every) /* it had ended at the place before */
            continue;
        if (in.n > 0 && (in.n + 1) * block > tokens_max)
            rc = make_drafts(&in, hooks, err);
        sl_draft_files_add(&list->drafts, (int32_t)n_seen - 1, anchor);
        in.lists[in.n] = i;
        in.spans[in.n++] =
            (struct sl_dspark_span){.kv = feeds[i].kv, .anchor = anchor, .n_max = block};
    }
    return rc == 0 && in.n > 0 ? make_drafts(&in, hooks, err) : rc;
}

/* Feeds the lists from one place to the next, with drafts at each and at a list's end. */
static int feed_with_drafts(struct command *command, struct sl_feed feeds[LISTS_MAX],
                            const struct sl_step_request *hooks, struct sl_err *err)
{
    const uint32_t n = command->n_tokens_given;
    bool more = true;
    int rc = 0;

    for (uint32_t place = command->draft_every; more && rc == 0; place += command->draft_every) {
        more = false;
        for (uint32_t i = 0; i < n; i++) {
            const uint32_t n_tokens = command->lists[i].n_tokens;

            feeds[i].n_tokens = place < n_tokens ? place : n_tokens;
            more |= place < n_tokens;
        }
        do
            rc = sl_feed_step(command->engine, feeds, n, hooks, err);
        while (rc > 0 && !command->write_failed);
        if (rc == 0)
            rc = draft_lists(command, feeds, place, hooks, err);
    }
    return rc;
}

/* ---- all together ------------------------------------------------------------------------------
 */

/* Feeds all lists, in steps that they share. */
static int feed_lists(struct command *command, struct sl_err *err)
{
    const struct sl_step_request hooks = {
        .on_logits = take_rows,
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
    if (command->n_draft_given > 0)
        return feed_with_drafts(command, feeds, &hooks, err);
    do
        rc = command->mtp ? sl_feed_mtp_step(command->engine, feeds, n, &hooks, err)
                          : sl_feed_step(command->engine, feeds, n, &hooks, err);
    while (rc > 0 && !command->write_failed);
    return rc < 0 ? rc : 0;
}

/* Nothing is written over the experts' files, and every output has its header. */
static int start_outputs(struct command *command, struct sl_err *err)
{
    const struct sl_config *config = sl_engine_config(command->engine);
    int rc = 0;

    for (uint32_t i = 0; rc == 0 && i < command->n_tokens_given; i++) {
        struct list *list = &command->lists[i];
        const uint32_t shape[2] = {list->n_tokens - command->mtp, config->vocab_size};

        for (int d = 0; rc == 0 && list->draft_path && d < SL_DRAFT_FILES; d++)
            rc = sl_keep_off_experts(&list->drafts.out[d], command->engine, err);
        if (rc == 0 && list->draft_path)
            sl_draft_files_start(&list->drafts,
                                 (list->n_tokens + command->draft_every - 1) / command->draft_every,
                                 config->dspark.block_size, config->vocab_size);
        if (rc < 0 || !list->out_path)
            continue;
        rc = sl_keep_off_experts(&list->out, command->engine, err);
        sl_npy_start(list->out.stream, SL_NPY_F32, 2, shape);
    }
    return rc;
}

static int commit_outputs(struct command *command, struct sl_err *err)
{
    int rc = 0;

    for (uint32_t i = 0; rc == 0 && i < command->n_tokens_given; i++) {
        struct list *list = &command->lists[i];

        if (list->draft_path)
            rc = sl_draft_files_commit(&list->drafts, err);
        if (rc == 0 && list->out_path)
            rc = sl_output_commit(&list->out, err);
    }
    return rc;
}

static int run(struct command *command, struct sl_err *err)
{
    struct sl_text_progress *text = &command->progress;
    int rc = 0;

    *text =
        (struct sl_text_progress){.progress = sl_progress_start(stderr, "logits", "tokens"),
                                  .n_layers = sl_engine_config(command->engine)->num_hidden_layers};
    for (uint32_t i = 0; i < command->n_tokens_given; i++)
        text->n_tokens += command->lists[i].n_tokens;
    rc = start_outputs(command, err);
    if (rc == 0)
        rc = feed_lists(command, err);
    sl_progress_end(&text->progress);
    return rc < 0 ? rc : commit_outputs(command, err);
}

int sl_cmd_logits(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"tokens", OPTION_TOKENS, "FILE", 0,
         "token ids, separated by white space; - is standard input", 0},
        {"out", OPTION_OUT, "FILE.npy", 0,
         "where the logits go, as float32 (tokens, vocab_size); - is standard output", 0},
        {"mtp", OPTION_MTP, NULL, 0, "of the MTP block instead: (tokens - 1, vocab_size)", 0},
        {"draft-out", OPTION_DRAFT_OUT, "DIR", 0,
         "where the drafts of DSpark go, as positions.npy, anchors.npy, logits.npy, tokens.npy and "
         "conf.npy; --out may then be left out",
         0},
        {"draft-every", OPTION_DRAFT_EVERY, "N", 0,
         "so many tokens from one draft to the next (16); the last is behind all tokens", 0},
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
    command->draft_every = DRAFT_EVERY;
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
        sl_draft_files_close(&command->lists[i].drafts);
        free(command->lists[i].tokens);
    }
    free(command);
    return sl_command_status(rc, &err);
}
