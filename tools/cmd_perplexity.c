/* sluice perplexity: how well a model predicts a text, in nats per token and bits per byte. */
#include <argp.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/clock.h"
#include "core/text/tokenizer.h"
#include "tools/commands.h"
#include "tools/engine_options.h"
#include "tools/progress.h"
#include "tools/prompt.h"

struct command {
    struct sl_engine_options options;
    const char *file;
    struct sl_config config;
    struct sl_prompt prompt;
    struct sl_engine *engine;
    uint32_t n_given; /* tokens before the step at hand */
    uint32_t n_scored;
    double nats;
};

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct command *command = state->input;

    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &command->options;
        return 0;
    case 'f':
        command->file = value;
        return 0;
    case ARGP_KEY_END:
        if (!command->file)
            argp_error(state, "give the text with -f");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* -log p(next) of one row. */
static double surprise(const float *logits, uint32_t n, int32_t next)
{
    double top = (double)logits[0], sum = 0;

    for (uint32_t i = 1; i < n; i++)
        top = (double)logits[i] > top ? (double)logits[i] : top;
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)logits[i] - top);
    return top + log(sum) - (double)logits[next];
}

static void on_logits(void *context, uint32_t span_index, uint32_t token_index, const float *logits)
{
    struct command *command = context;
    uint32_t next = command->n_given + token_index + 1;

    (void)span_index;
    if (next >= command->prompt.n_tokens)
        return;
    command->nats += surprise(logits, command->config.vocab_size, command->prompt.tokens[next]);
    command->n_scored++;
}

static int prepare(struct command *command, struct sl_err *err)
{
    struct sl_tokenizer *tok = NULL;
    int rc;

    if ((rc = sl_config_read(&command->config, command->options.model, err)) < 0 ||
        (rc = sl_tokenizer_open(&tok, command->options.model, err)) < 0)
        return rc;
    rc = sl_prompt_read(&command->prompt, tok, &command->config, NULL, command->file, err);
    sl_tokenizer_close(tok);
    if (rc == 0 && command->prompt.n_tokens < 2)
        rc = sl_err_set(err, -SL_EFORMAT, "%s: holds no text", command->file);
    if (rc == 0 && command->options.context_tokens == 0)
        command->options.context_tokens = command->prompt.n_tokens;
    if (rc == 0 && command->prompt.n_tokens > command->options.context_tokens)
        rc = sl_err_set(err, -SL_EBUDGET, "%s: %u tokens do not fit --context %u", command->file,
                        command->prompt.n_tokens, command->options.context_tokens);
    return rc;
}

static int run(struct command *command, struct sl_err *err)
{
    struct sl_progress progress = sl_progress_start(stderr, "text", "tokens");
    double seconds;
    int rc = 0;

    while (rc == 0 && command->n_given < command->prompt.n_tokens) {
        uint32_t left = command->prompt.n_tokens - command->n_given;
        uint32_t n =
            left < command->options.segment_tokens ? left : command->options.segment_tokens;
        struct sl_span span = {sl_engine_kv(command->engine, 0),
                               command->prompt.tokens + command->n_given, n, SL_LOGITS_ALL};

        sl_progress_show(&progress, command->n_given, command->prompt.n_tokens);
        rc = sl_forward_step(sl_engine_forward(command->engine), &span, 1, on_logits, command, err);
        command->n_given += n;
    }
    sl_progress_end(&progress);
    if (rc < 0)
        return rc;
    seconds = (double)(sl_clock_ns() - progress.start_ns) / 1e9;
    printf("tokens          %u\n", command->n_scored);
    printf("bytes           %llu\n", (unsigned long long)command->prompt.text_bytes);
    printf("nats per token  %.6f\n", command->nats / command->n_scored);
    printf("perplexity      %.4f\n", exp(command->nats / command->n_scored));
    printf("bits per byte   %.6f\n", command->nats / log(2.0) / (double)command->prompt.text_bytes);
    printf("seconds         %.2f (%.1f tokens/s)\n", seconds,
           (double)command->prompt.n_tokens / seconds);
    if (fflush(stdout) != 0)
        return sl_err_set(err, -errno, "cannot write the figures: %s", sl_strerror(errno));
    return 0;
}

int sl_cmd_perplexity(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"file", 'f', "FILE", 0, "the text; - is standard input", 0}, {0}};
    static const struct argp_child children[] = {{&sl_engine_argp, 0, "Running the model:", 1},
                                                 {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "MODEL",
        .doc =
            "Measures how well the model in the checkpoint folder MODEL predicts a text, read as "
            "one document.",
        .children = children};
    struct command command = {0};
    struct sl_err err = {0};
    int rc;

    argp_parse(&argp, argc, argv, 0, NULL, &command);
    rc = prepare(&command, &err);
    if (rc == 0)
        rc = sl_open_engine(&command.engine, &command.options, &err);
    if (rc == 0)
        rc = run(&command, &err);
    if (rc < 0)
        fprintf(stderr, "sluice: %s\n", err.message);
    sl_engine_close(command.engine);
    sl_prompt_fini(&command.prompt);
    return rc < 0 ? 1 : 0;
}
