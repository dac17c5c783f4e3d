/* sluice trace record: runs a model over text and records which experts each token asked for. */
#include <argp.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cache/trace.h"
#include "core/text/tokenizer.h"
#include "daemon/engine/feed.h"
#include "tools/cli/command_line.h"
#include "tools/cli/engine_options.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/json_lines.h"
#include "tools/cli/output_file.h"
#include "tools/cli/progress.h"
#include "tools/cli/prompt.h"
#include "tools/cli/prompt_options.h"
#include "tools/trace/trace_commands.h"
#include "core/base/size.h"

struct command {
    struct sl_engine_options options;
    struct sl_prompt_options prompt;
    const char *out;

    struct sl_config config;
    struct sl_prompt_maker prompts;
    struct sl_prompt *documents;
    size_t n_documents;
    uint64_t n_tokens;
    struct sl_engine *engine;
    struct sl_output_file output;
    struct sl_trace_writer *writer;
    struct sl_text_progress progress;
};

enum { OPTION_OUT = 256 };

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct command *command = state->input;

    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &command->options;
        state->child_inputs[1] = &command->prompt;
        return 0;
    case OPTION_OUT:
        command->out = value;
        return 0;
    case ARGP_KEY_END:
        if (!command->out)
            argp_error(state, "say with --out where the trace goes");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* ---- the text ----------------------------------------------------------------------------------
 */

/* Makes room for one more document. Returns NULL when out of memory. */
static struct sl_prompt *next_document(struct command *command)
{
    struct sl_prompt *documents =
        reallocarray(command->documents, command->n_documents + 1, sizeof(*documents));

    if (!documents)
        return NULL;
    command->documents = documents;
    return &documents[command->n_documents];
}

static void add_document(struct command *command)
{
    const uint32_t n_tokens = command->documents[command->n_documents++].n_tokens;

    command->n_tokens += n_tokens;
    if (command->options.context_tokens < n_tokens)
        command->options.context_tokens = n_tokens;
}

static int add_line(void *context, const json_t *value, struct sl_err *err)
{
    struct command *command = context;
    struct sl_prompt *document = next_document(command);
    const char *text;
    size_t length;
    int rc;

    if (!document)
        return sl_err_set(err, -ENOMEM, "out of memory");
    rc = sl_json_line_text(value, NULL, &text, &length, err);
    if (rc == 0)
        rc = sl_prompt_make(&command->prompts, text, length, document, err);
    if (rc == 0)
        add_document(command);
    return rc;
}

static int read_text(struct command *command, struct sl_err *err)
{
    struct sl_prompt *document;
    int rc;

    if (command->prompt.jsonl) {
        rc = sl_json_lines_each(command->prompt.jsonl, add_line, command, err);
        if (rc == 0 && command->n_documents == 0)
            rc = sl_err_set(err, -SL_EFORMAT, "%s: holds no text", command->prompt.jsonl);
        return rc;
    }
    document = next_document(command);
    if (!document)
        return sl_err_set(err, -ENOMEM, "out of memory");
    rc = sl_prompt_read(&command->prompts, command->prompt.text, command->prompt.file, document,
                        err);
    if (rc == 0)
        add_document(command);
    return rc;
}

/* ---- the run -----------------------------------------------------------------------------------
 */

static void on_route(void *context, uint32_t layer_index, uint32_t n_tokens,
                     const uint16_t *experts)
{
    struct command *command = context;

    sl_trace_writer_add(command->writer, layer_index, n_tokens, experts);
    sl_text_progress_route(&command->progress, layer_index, n_tokens, experts);
}

static int run(struct command *command, struct sl_err *err)
{
    struct sl_text_progress *text = &command->progress;
    const struct sl_step_request hooks = {
        .stop = sl_interrupt_stop(), .on_route = on_route, .on_route_context = command};
    struct sl_kv_cache *kv;
    int rc = sl_engine_sequence_create(command->engine, command->options.context_tokens, &kv, err);

    *text = (struct sl_text_progress){sl_progress_start(stderr, "text", "tokens"),
                                      command->n_tokens, 0, command->config.num_hidden_layers};
    for (size_t i = 0; i < command->n_documents && rc == 0; i++) {
        const struct sl_prompt *document = &command->documents[i];
        struct sl_feed feed = {
            .kv = kv, .tokens = document->tokens, .n_tokens = document->n_tokens};

        sl_kv_cache_clear(kv);
        rc = sl_feed_run(command->engine, &feed, &hooks, err);
    }
    sl_progress_end(&text->progress);
    return rc;
}

static void print_figures(const struct command *command)
{
    struct sl_expert_cache_counters c = sl_engine_counters(command->engine);
    FILE *out = strcmp(command->out, "-") == 0 ? stderr : stdout;

    fprintf(out, "tokens        %llu\n", (unsigned long long)command->progress.n_done);
    for (size_t i = 0; i < sl_expert_cache_metrics.n; i++) {
        const struct sl_metric *metric = &sl_expert_cache_metrics.list[i];

        if (strncmp(metric->name, "expert_", 7) == 0)
            fprintf(out, "%-13s %" PRIu64 "\n", metric->name + 7, sl_metric_value(metric, &c));
    }
}

static int open_output(struct command *command, struct sl_err *err)
{
    const char *const inputs[] = {command->options.model, command->prompt.file,
                                  command->prompt.jsonl};
    int rc = sl_output_open(&command->output, command->out, err);

    for (uint32_t i = 0; i < SL_ARRAY_LEN(inputs) && rc == 0; i++)
        if (inputs[i])
            rc = sl_output_keep_off(&command->output, inputs[i], err);
    return rc;
}

static int record(struct command *command, struct sl_err *err)
{
    const struct sl_config *config = &command->config;
    struct sl_trace_shape shape;
    int rc, finished;

    if ((rc = sl_config_read(&command->config, command->options.model, err)) < 0 ||
        (rc = sl_prompt_maker_open(&command->prompts, command->options.model, &command->config,
                                   command->prompt.flags, err)) < 0 ||
        (rc = read_text(command, err)) < 0 || (rc = open_output(command, err)) < 0)
        return rc;
    rc = sl_open_engine(&command->engine, &command->options, err);
    if (rc < 0)
        return rc;
    shape = (struct sl_trace_shape){
        .num_hidden_layers = config->num_hidden_layers,
        .num_hash_layers = config->num_hash_layers,
        .n_routed_experts = config->n_routed_experts,
        .n_per_token = config->num_experts_per_tok,
        .hidden_size = config->hidden_size,
        .moe_intermediate_size = config->moe_intermediate_size,
        .expert_dtype = sl_engine_config(command->engine)->expert_dtype,
    };
    if ((rc = sl_keep_off_experts(&command->output, command->engine, err)) < 0 ||
        (rc = sl_trace_writer_create(&command->writer, command->output.stream, &shape, err)) < 0)
        return rc;
    rc = run(command, err);
    finished = sl_trace_writer_finish(command->writer, rc < 0 ? NULL : err);
    rc = rc < 0 ? rc : finished;
    if (rc == 0)
        rc = sl_output_commit(&command->output, err);
    if (rc == 0 || rc == -ECANCELED)
        print_figures(command);
    return rc;
}

int sl_trace_record(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"out", OPTION_OUT, "TRACE", 0, "the file to write; - is standard output", 0}, {0}};
    static const struct argp_child children[] = {
        {&sl_engine_argp, 0, "Running the model:", 2}, {&sl_prompt_argp, 0, "The text:", 1}, {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "MODEL",
        .doc = "Runs the model in the checkpoint folder MODEL over a text, and writes which "
               "experts each token asked for in each layer. Prints what the run's own cache "
               "counted.",
        .children = children};
    struct command command = {0};
    struct sl_err err = {0};
    int rc;

    sl_command_parse(&argp, argc, argv, &command);
    rc = record(&command, &err);
    sl_output_discard(&command.output);
    sl_engine_close(command.engine);
    for (size_t i = 0; i < command.n_documents; i++)
        sl_prompt_fini(&command.documents[i]);
    free(command.documents);
    sl_prompt_maker_close(&command.prompts);
    return sl_command_status(rc, &err);
}
