/* sluice perplexity: measures how well a model predicts a text, in nats per token and bits per
 * byte. */
#include <argp.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/text/logprobs.h"
#include "daemon/engine/feed.h"
#include "tools/cli/command_line.h"
#include "tools/cli/commands.h"
#include "tools/cli/engine_options.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/json_lines.h"
#include "tools/cli/progress.h"
#include "tools/cli/prompt.h"
#include "tools/cli/prompt_options.h"
#include "tools/cli/version.h"

struct command {
    struct sl_engine_options options;
    struct sl_prompt_options prompt; /* one document, or with --jsonl many */
    uint32_t window_tokens;
    bool json;

    struct sl_config config;
    struct sl_prompt_maker prompts;
    struct sl_token_list ids;  /* of all documents, one after the other */
    struct sl_token_list ends; /* where each document ends in ids */
    struct sl_engine *engine;
    struct sl_kv_cache *kv;

    int32_t *piece; /* the tokens scored at a time: up to a window of them, mostly begin-of-sentence
                       first */
    uint32_t n_piece;

    struct sl_text_progress progress;
    uint64_t n_scored;
    uint64_t text_bytes; /* of the tokens scored */
    double nats;
    double seconds;
};

enum { OPTION_WINDOW = 256, OPTION_JSON };

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct command *command = state->input;

    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &command->options;
        state->child_inputs[1] = &command->prompt;
        return 0;
    case OPTION_JSON:
        command->json = true;
        return 0;
    case OPTION_WINDOW:
        command->window_tokens = sl_parse_count(state, "--window", value, 1u << 24);
        if (command->window_tokens < 2)
            argp_error(state, "--window takes 2 tokens or more");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* Returns how many bytes of the text a token stands for; a control token stands for none. */
static size_t text_bytes(const struct command *command, uint32_t id)
{
    size_t n_bytes;

    sl_tokenizer_bytes(command->prompts.tok, id, &n_bytes);
    return sl_tokenizer_is_added(command->prompts.tok, id) ? 0 : n_bytes;
}

static void on_logits(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    struct command *command = context;

    for (uint32_t i = 0; i < n_rows; i++) {
        const uint32_t next = rows[i].token_index + 1;
        uint32_t id;

        if (next >= command->n_piece)
            break;
        id = (uint32_t)command->piece[next];
        command->nats +=
            sl_log_sum_exp(rows[i].logits, command->config.vocab_size) - (double)rows[i].logits[id];
        command->text_bytes += text_bytes(command, id);
        command->n_scored++;
    }
    if (command->n_scored > 0)
        snprintf(command->progress.progress.note, SL_PROGRESS_NOTE_BYTES, "%.4f nats/token",
                 command->nats / (double)command->n_scored);
}

/* Returns how many tokens are put before each piece: 1 with a begin-of-sentence token, else 0. */
static uint32_t n_put_before(const struct command *command)
{
    return command->prompt.flags & SL_PROMPT_NO_BOS ? 0 : 1;
}

/* Adds the ids of one document. The begin-of-sentence token that each piece gets is not among them.
 */
static int add_document(struct command *command, const char *text, size_t length,
                        struct sl_err *err)
{
    struct sl_token_list *ids = &command->ids;
    struct sl_prompt document;
    uint32_t n;
    int rc = sl_prompt_make(&command->prompts, text, length, &document, err);

    if (rc < 0)
        return rc;
    n = document.n_tokens - n_put_before(command);
    if (ids->n + n > UINT32_MAX)
        rc = sl_err_set(err, -SL_EFORMAT, "more than %u tokens of text", UINT32_MAX);
    else if (sl_token_list_reserve(ids, n) < 0 ||
             sl_token_list_push(&command->ends, (uint32_t)ids->n + n) < 0)
        rc = sl_err_set(err, -ENOMEM, "out of memory");
    if (rc == 0 && n > 0) {
        memcpy(ids->ids + ids->n, document.tokens + n_put_before(command), n * sizeof(*ids->ids));
        ids->n += n;
    }
    sl_prompt_fini(&document);
    return rc;
}

static int add_line(void *context, const json_t *value, struct sl_err *err)
{
    const char *text;
    size_t length;
    int rc = sl_json_line_text(value, NULL, &text, &length, err);

    return rc < 0 ? rc : add_document(context, text, length, err);
}

static int add_file(struct command *command, struct sl_err *err)
{
    char *text;
    size_t length;
    int rc = sl_input_read_all(command->prompt.file, SL_ENCODE_BYTES_MAX, &text, &length, err);

    if (rc < 0)
        return rc;
    rc = add_document(command, text, length, err);
    free(text);
    return rc;
}

/* Returns the length of the longest piece, begin-of-sentence included. */
static uint32_t longest_piece(const struct command *command)
{
    uint32_t start = 0, longest = 0;

    for (size_t i = 0; i < command->ends.n; i++) {
        uint32_t n = command->ends.ids[i] - start + n_put_before(command);

        if (command->window_tokens && n > command->window_tokens)
            n = command->window_tokens;
        longest = n > longest ? n : longest;
        start = command->ends.ids[i];
    }
    return longest;
}

static int prepare(struct command *command, struct sl_err *err)
{
    const struct sl_prompt_options *given = &command->prompt;
    const char *name = given->text ? "the text of -p" : given->file ? given->file : given->jsonl;
    uint32_t longest;
    int rc;

    if ((rc = sl_config_read(&command->config, command->options.model, err)) < 0 ||
        (rc = sl_prompt_maker_open(&command->prompts, command->options.model, &command->config,
                                   command->prompt.flags, err)) < 0)
        return rc;
    if (given->text)
        rc = add_document(command, given->text, strlen(given->text), err);
    else
        rc = given->file ? add_file(command, err)
                         : sl_json_lines_each(given->jsonl, add_line, command, err);
    if (rc < 0)
        return rc;
    if (command->ids.n == 0)
        return sl_err_set(err, -SL_EFORMAT, "%s: holds no text", name);
    longest = longest_piece(command);
    if (command->options.context_tokens == 0)
        command->options.context_tokens = longest;
    if (longest > command->options.context_tokens)
        return sl_err_set(err, -SL_EBUDGET, "%s: %u tokens do not fit --context %u", name, longest,
                          command->options.context_tokens);
    command->piece = malloc(longest * sizeof(*command->piece));
    return command->piece ? 0 : sl_err_set(err, -ENOMEM, "out of memory");
}

/* Scores the piece that begins at ids[first], of a document that ends at `end`. Returns how many
 * tokens it took, or an error. */
static int64_t score_piece(struct command *command, uint32_t first, uint32_t end,
                           struct sl_err *err)
{
    const struct sl_step_request hooks = {
        .on_logits = on_logits,
        .on_logits_context = command,
        .stop = sl_interrupt_stop(),
        .on_route = sl_text_progress_route,
        .on_route_context = &command->progress,
    };
    uint32_t n_before = n_put_before(command), n = end - first;
    struct sl_feed feed = {.kv = command->kv, .tokens = command->piece, .logits = SL_LOGITS_ALL};
    int rc;

    if (command->window_tokens && n > command->window_tokens - n_before)
        n = command->window_tokens - n_before;
    command->piece[0] = (int32_t)command->config.bos_token_id;
    memcpy(command->piece + n_before, command->ids.ids + first, n * sizeof(*command->piece));
    command->n_piece = n_before + n;
    sl_kv_cache_clear(command->kv);
    feed.n_tokens = command->n_piece - 1; /* the last one predicts nothing that is known */
    rc = sl_feed_run(command->engine, &feed, &hooks, err);
    command->progress.n_done += 1 - n_before; /* the first token, which nothing predicted */
    return rc < 0 ? rc : (int64_t)n;
}

static void print_figures(const struct command *command)
{
    const double n = (double)command->n_scored;

    printf("tokens          %llu%s\n", (unsigned long long)command->n_scored,
           sl_interrupted() ? " (interrupted)" : "");
    printf("bytes           %llu\n", (unsigned long long)command->text_bytes);
    printf("nats per token  %.6f\n", command->nats / n);
    printf("perplexity      %.4f\n", exp(command->nats / n));
    printf("bits per byte   %.6f\n", command->nats / log(2.0) / (double)command->text_bytes);
    printf("seconds         %.2f (%.1f tokens/s)\n", command->seconds, n / command->seconds);
}

static void print_json(const struct command *command)
{
    const double n = (double)command->n_scored;
    json_t *object = json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:b}", "version", sl_version, "model",
        command->options.model, "documents", (json_int_t)command->ends.n, "tokens",
        (json_int_t)command->n_scored, "bytes", (json_int_t)command->text_bytes, "nats_per_token",
        command->nats / n, "perplexity", exp(command->nats / n), "bits_per_byte",
        command->nats / log(2.0) / (double)command->text_bytes, "seconds", command->seconds,
        "tokens_per_second", n / command->seconds, "interrupted", sl_interrupted());

    if (object)
        json_dumpf(object, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(object);
}

static int run(struct command *command, struct sl_err *err)
{
    struct sl_text_progress *text = &command->progress;
    uint32_t at = 0;
    int64_t took = sl_engine_sequence_create(command->engine, command->options.context_tokens,
                                             &command->kv, err);

    *text = (struct sl_text_progress){sl_progress_start(stderr, "text", "tokens"), command->ids.n,
                                      0, command->config.num_hidden_layers};
    for (size_t i = 0; took >= 0 && i < command->ends.n; i++)
        while (took >= 0 && at < command->ends.ids[i]) {
            took = score_piece(command, at, command->ends.ids[i], err);
            at += took > 0 ? (uint32_t)took : 0;
        }
    sl_progress_end(&text->progress);
    if (took < 0 && took != -ECANCELED)
        return (int)took;
    if (command->n_scored == 0)
        return took < 0
                   ? (int)took
                   : sl_err_set(err, -SL_EFORMAT, "no token of the text has another before it");
    command->seconds = (double)(sl_clock_ns() - text->progress.start_ns) / 1e9;
    if (command->json)
        print_json(command);
    else
        print_figures(command);
    return took < 0 ? (int)took : 0;
}

int sl_cmd_perplexity(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"window", OPTION_WINDOW, "TOKENS", 0,
         "cut documents into pieces of so many tokens, each scored by itself", 0},
        {"json", OPTION_JSON, NULL, 0, "print the figures as a JSON object", 0},
        {0}};
    static const struct argp_child children[] = {
        {&sl_engine_argp, 0, "Running the model:", 2}, {&sl_prompt_argp, 0, "The text:", 1}, {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "MODEL",
        .doc =
            "Measures how well the model in the checkpoint folder MODEL predicts text. Every "
            "document, or piece of one, is read after a begin-of-sentence token and knows nothing "
            "of the others.",
        .children = children};
    struct command command = {0};
    struct sl_err err = {0};
    int rc;

    sl_command_parse(&argp, argc, argv, &command);
    rc = prepare(&command, &err);
    if (rc == 0)
        rc = sl_open_engine(&command.engine, &command.options, &err);
    if (rc == 0)
        rc = run(&command, &err);
    sl_engine_close(command.engine);
    sl_prompt_maker_close(&command.prompts);
    sl_token_list_fini(&command.ids);
    sl_token_list_fini(&command.ends);
    free(command.piece);
    return sl_command_status(rc, &err);
}
