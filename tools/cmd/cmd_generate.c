/* sluice generate: continues texts, printing them as they are made. */
#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/json.h"
#include "core/base/size.h"
#include "core/text/sampler.h"
#include "tools/cli/command_line.h"
#include "tools/cli/commands.h"
#include "tools/cli/engine_options.h"
#include "tools/cmd/generate_figures.h"
#include "tools/cmd/generate_output.h"
#include "tools/cmd/generate_text.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/json_lines.h"
#include "tools/cli/output_file.h"
#include "tools/cli/progress.h"
#include "tools/cli/prompt.h"
#include "tools/cli/prompt_options.h"

#define TOKENS_DEFAULT 128u

enum {
    OPTION_TEMP = 256,
    OPTION_TOP_P,
    OPTION_TOP_K,
    OPTION_MIN_P,
    OPTION_SEED,
    OPTION_STOP,
    OPTION_LOGPROBS,
    OPTION_JSON,
    OPTION_NO_HOT_LIST,
    OPTION_STATS
};

struct command {
    struct sl_engine_options options;
    struct sl_generation_options making;
    struct sl_prompt_options prompt;
    const char *stats_path;
    bool no_hot_list;
    bool json;
    json_t *arguments; /* as they were given */

    struct sl_config config;
    struct sl_prompt_maker prompts;
    struct sl_prompt *texts; /* (n_texts) */
    size_t n_texts;
    uint32_t longest; /* of them, in tokens */
    struct sl_output_file stats;
    struct sl_engine *engine;
    struct sl_generate_text writer;
    struct sl_generate_output output;
};

/* ---- options -----------------------------------------------------------------------------------
 */

static void add_stop(struct command *command, const char *text, struct argp_state *state)
{
    struct sl_err err;

    if (sl_stop_strings_add(&command->making.rules.stops, text, &err) < 0)
        argp_error(state, "--stop: %s", err.message);
}

static void set_sampler(struct command *command, int key, const char *value,
                        struct argp_state *state)
{
    struct sl_sampler *sampler = &command->making.sampler;

    switch (key) {
    case OPTION_TEMP:
        sampler->temperature = sl_parse_real(state, "--temp", value, 0, 1e6);
        break;
    case OPTION_TOP_P:
        sampler->top_p = sl_parse_real(state, "--top-p", value, 1e-9, 1);
        break;
    case OPTION_TOP_K:
        sampler->top_k = sl_parse_count(state, "--top-k", value, 1u << 24);
        break;
    case OPTION_MIN_P:
        sampler->min_p = sl_parse_real(state, "--min-p", value, 0, 1);
        break;
    case OPTION_SEED:
        sampler->seed = sl_parse_seed(state, "--seed", value);
        break;
    }
}

static void set_logprobs(struct command *command, const char *value, struct argp_state *state)
{
    command->making.with_logprobs = true;
    if (value)
        command->making.n_top_logprobs =
            sl_parse_count(state, "--logprobs", value, SL_TOP_LOGPROBS_MAX);
}

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct command *command = state->input;

    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &command->options;
        state->child_inputs[1] = &command->options;
        state->child_inputs[2] = &command->options;
        state->child_inputs[3] = &command->prompt;
        return 0;
    case OPTION_JSON:
        command->json = true;
        return 0;
    case 'n':
        command->making.rules.n_new_max =
            strcmp(value, "-1") == 0 ? 0
                                     : sl_parse_count(state, "-n, besides -1,", value, 1u << 24);
        return 0;
    case OPTION_TEMP:
    case OPTION_TOP_P:
    case OPTION_TOP_K:
    case OPTION_MIN_P:
    case OPTION_SEED:
        set_sampler(command, key, value, state);
        return 0;
    case OPTION_STOP:
        add_stop(command, value, state);
        return 0;
    case OPTION_LOGPROBS:
        set_logprobs(command, value, state);
        return 0;
    case OPTION_NO_HOT_LIST:
        command->no_hot_list = true;
        return 0;
    case OPTION_STATS:
        command->stats_path = value;
        return 0;
    case ARGP_KEY_ARG: /* the engine's options take the first, MODEL */
        if (command->options.model)
            argp_error(state, "give the text with -p, as in -p \"%s\"", value);
        return ARGP_ERR_UNKNOWN;
    case ARGP_KEY_END:
        command->json |= command->prompt.jsonl != NULL;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* argp reorders the arguments, so they are copied before it runs. */
static json_t *copy_arguments(int argc, char **argv)
{
    json_t *list = json_array();

    for (int i = 1; i < argc; i++) {
        json_t *string = json_string(argv[i]);

        json_array_append_new(list, string ? string : json_string("(not UTF-8)"));
    }
    return list;
}

/* ---- before the weights are read ---------------------------------------------------------------
 */

/* Makes room for one more text. Returns NULL when out of memory. */
static struct sl_prompt *next_text(struct command *command)
{
    struct sl_prompt *texts =
        reallocarray(command->texts, command->n_texts + 1, sizeof(*command->texts));

    if (!texts)
        return NULL;
    command->texts = texts;
    return &texts[command->n_texts];
}

static void add_text(struct command *command)
{
    const uint32_t n_tokens = command->texts[command->n_texts++].n_tokens;

    command->longest = n_tokens > command->longest ? n_tokens : command->longest;
}

static int add_line(void *context, const json_t *value, struct sl_err *err)
{
    struct command *command = context;
    struct sl_prompt *next = next_text(command);
    const char *text;
    size_t length;
    int rc;

    if (!next)
        return sl_err_set(err, -ENOMEM, "out of memory");
    rc = sl_json_line_text(value, "prompt", &text, &length, err);
    if (rc == 0)
        rc = sl_prompt_make(&command->prompts, text, length, next, err);
    if (rc == 0 && next->n_tokens == 0) {
        sl_prompt_fini(next);
        rc = sl_err_set(err, -SL_EFORMAT, "no token to begin with");
    }
    if (rc == 0)
        add_text(command);
    return rc;
}

static int read_texts(struct command *command, struct sl_err *err)
{
    int rc;

    if (command->prompt.jsonl) {
        rc = sl_json_lines_each(command->prompt.jsonl, add_line, command, err);
        if (rc == 0 && command->n_texts == 0)
            rc = sl_err_set(err, -SL_EFORMAT, "%s: holds no prompt", command->prompt.jsonl);
        return rc;
    }
    if (!next_text(command))
        return sl_err_set(err, -ENOMEM, "out of memory");
    rc = sl_prompt_read(&command->prompts, command->prompt.text, command->prompt.file,
                        &command->texts[0], err);
    if (rc == 0)
        add_text(command);
    return rc;
}

/* Sets the context to what the longest prompt needs, or to the model's maximum if only the model
 * ends the text. */
static int set_context(struct command *command, struct sl_err *err)
{
    struct sl_completion_rules *rules = &command->making.rules;
    const uint32_t n_new = rules->n_new_max ? rules->n_new_max : 1;
    const uint64_t needed = (uint64_t)command->longest + n_new;
    uint32_t *context = &command->options.context_tokens;

    if (*context == 0 && rules->n_new_max == 0)
        *context = command->config.max_position_embeddings;
    if (*context == 0)
        *context = needed < UINT32_MAX ? (uint32_t)needed : UINT32_MAX;
    if (needed > *context)
        return sl_err_set(err, -SL_EBUDGET,
                          "a prompt of %u tokens and %u new ones do not fit --context %u",
                          command->longest, n_new, *context);
    rules->context_tokens = *context;
    rules->eos_token_id = command->config.eos_token_id;
    return 0;
}

static int open_stats(struct command *command, struct sl_err *err)
{
    const char *const inputs[] = {command->options.model, command->prompt.file,
                                  command->prompt.jsonl};
    int rc;

    if (!command->stats_path)
        return 0;
    rc = sl_output_open(&command->stats, command->stats_path, err);
    for (uint32_t i = 0; rc == 0 && i < SL_ARRAY_LEN(inputs); i++)
        if (inputs[i])
            rc = sl_output_keep_off(&command->stats, inputs[i], err);
    return rc;
}

static int prepare(struct command *command, struct sl_err *err)
{
    int rc = sl_config_read(&command->config, command->options.model, err);

    if (rc == 0)
        rc = sl_prompt_maker_open(&command->prompts, command->options.model, &command->config,
                                  command->prompt.flags, err);
    if (rc == 0)
        rc = read_texts(command, err);
    if (rc == 0)
        rc = set_context(command, err);
    if (rc == 0)
        rc = sl_generate_output_init(&command->output, &command->making, command->prompts.tok,
                                     command->json, err);
    if (rc == 0)
        rc = sl_generate_text_check(&command->writer, &command->making, &command->output,
                                    &command->config, err);
    return rc == 0 ? open_stats(command, err) : rc;
}

/* ---- the run -----------------------------------------------------------------------------------
 */

/* Loads the hot list. A list that cannot be read or written costs time and nothing else, so it is
 * no error. */
static void load_hot_list(struct command *command)
{
    struct sl_progress progress = sl_progress_start(stderr, "loading hot experts", "experts");
    struct sl_err err;
    int rc = sl_engine_load_hot_list(command->engine, sl_interrupt_stop(), sl_progress_show,
                                     &progress, &err);

    sl_progress_end(&progress);
    if (rc < 0)
        fprintf(stderr, "note: begins with an empty cache, without the hot list: %s\n",
                err.message);
}

static void save_hot_list(struct command *command)
{
    struct sl_err err;

    if (sl_engine_save_hot_list(command->engine, &err) < 0)
        fprintf(stderr, "note: the hot list is not saved for the next run: %s\n", err.message);
}

/* An sl_note_fn. */
static void print_note(void *context, const char *line)
{
    (void)context;
    fprintf(stderr, "note: %s\n", line);
}

/* Every text of a file has a seed of its own, so that a prompt given twice makes two different
 * texts. */
static int make_text(struct command *command, size_t index, struct sl_err *err)
{
    const struct sl_prompt *prompt = &command->texts[index];
    int rc = sl_generate_output_begin(&command->output, err);

    if (rc == 0)
        rc = sl_generate_text_run(&command->writer, prompt, command->making.sampler.seed + index,
                                  err);
    if (rc == 0)
        rc = sl_generate_output_end(&command->output, command->writer.generation, prompt->n_tokens,
                                    err);
    return rc;
}

static int run(struct command *command, struct sl_err *err)
{
    int rc = 0;

    if (command->stats_path)
        rc = sl_keep_off_experts(&command->stats, command->engine, err);
    if (rc == 0)
        rc = sl_generate_text_open(&command->writer, command->engine, err);
    if (rc < 0)
        return rc;
    if (!command->no_hot_list)
        load_hot_list(command);
    for (size_t i = 0; rc == 0 && i < command->n_texts && (i == 0 || !sl_interrupted()); i++)
        rc = make_text(command, i, err);
    if (rc == 0 && !command->no_hot_list)
        save_hot_list(command);
    if (sl_engine_images(command->engine))
        sl_images_wait(sl_engine_images(command->engine)); /* so that figures count the last one */
    sl_generate_print_figures(&command->writer, &command->options);
    if (rc == 0 && command->stats_path) {
        sl_generate_write_stats(&command->writer, &command->options, command->arguments,
                                &command->stats);
        rc = sl_output_commit(&command->stats, err);
    }
    return rc;
}

static const struct argp_option options[] = {
    {NULL, 'n', "N", 0, "most tokens to make (default 128); -1: until the text or context ends", 0},
    {"stop", OPTION_STOP, "TEXT", 0, "end before this text; may be given several times", 0},
    {"temp", OPTION_TEMP, "T", 0, "temperature; 0 takes the most probable token (default 1)", 0},
    {"top-p", OPTION_TOP_P, "P", 0, "keep the most probable tokens of this share (default 1)", 0},
    {"top-k", OPTION_TOP_K, "K", 0, "keep the K most probable tokens (default: all)", 0},
    {"min-p", OPTION_MIN_P, "P", 0, "drop tokens P times less probable than the best (default 0)",
     0},
    {"seed", OPTION_SEED, "S", 0, "same seed, same text (default 0)", 0},
    {"logprobs", OPTION_LOGPROBS, "K", OPTION_ARG_OPTIONAL,
     "a line for each token instead: log probability, id, text, and those of the K most probable "
     "(--logprobs=K); with --json in the object",
     0},
    {"json", OPTION_JSON, NULL, 0, "print the text as a JSON object, when it is complete", 0},
    {"no-hot-list", OPTION_NO_HOT_LIST, NULL, 0,
     "begin with an empty cache, and leave the store's hot list as it is", 0},
    {"stats", OPTION_STATS, "FILE.json", 0, "write the figures there as well; - is standard output",
     0},
    {0}};

int sl_cmd_generate(int argc, char **argv)
{
    static const struct argp_child children[] = {{&sl_engine_argp, 0, "Running the model:", 2},
                                                 {&sl_images_argp, 0, NULL, 0},
                                                 {&sl_draft_argp, 0, NULL, 0},
                                                 {&sl_prompt_argp, 0, "The text:", 1},
                                                 {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "MODEL",
        .doc =
            "Continues a text with the model in the checkpoint folder MODEL. Of many (--jsonl) "
            "each line is a JSON string or an object with a \"text\" or \"prompt\", and one JSON "
            "object a line comes out.",
        .children = children};
    struct command command = {
        .making = {.sampler = SL_SAMPLER_DEFAULT, .rules.n_new_max = TOKENS_DEFAULT},
        .arguments = copy_arguments(argc, argv)};
    struct sl_err err = {0};
    int rc;

    sl_command_parse(&argp, argc, argv, &command);
    command.options.on_note = print_note;
    rc = prepare(&command, &err);
    if (rc == 0)
        rc = sl_open_engine(&command.engine, &command.options, &err);
    if (rc == 0)
        rc = run(&command, &err);
    sl_output_discard(&command.stats);
    sl_generate_text_fini(&command.writer);
    sl_generate_output_fini(&command.output);
    sl_engine_close(command.engine);
    for (size_t i = 0; i < command.n_texts; i++)
        sl_prompt_fini(&command.texts[i]);
    free(command.texts);
    sl_prompt_maker_close(&command.prompts);
    json_decref(command.arguments);
    return sl_command_status(rc, &err);
}
