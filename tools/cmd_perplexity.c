/* sluice perplexity: how well a model predicts a text, in nats per token and bits per byte. */
#include <argp.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/text/tokenizer.h"
#include "tools/command_line.h"
#include "tools/commands.h"
#include "tools/engine_options.h"
#include "tools/json_lines.h"
#include "tools/progress.h"

struct command {
    struct sl_engine_options options;
    const char *file;  /* -f: one document */
    const char *jsonl; /* --jsonl: many */
    uint32_t window_tokens;
    bool special;

    struct sl_config config;
    struct sl_tokenizer *tok;
    struct sl_encoder *encoder;
    struct sl_token_list ids;  /* of all documents, one after the other */
    struct sl_token_list ends; /* where each document ends in ids */
    struct sl_engine *engine;

    int32_t *piece; /* what is scored at a time: begin-of-sentence, then up to a window of tokens */
    uint32_t n_piece;
    uint32_t n_given; /* of the piece, before the step at hand */

    struct sl_text_progress progress;
    uint64_t n_scored;
    uint64_t text_bytes;
    double nats;
};

enum { OPTION_JSONL = 256, OPTION_SPECIAL, OPTION_WINDOW };

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
    case OPTION_JSONL:
        command->jsonl = value;
        return 0;
    case OPTION_SPECIAL:
        command->special = true;
        return 0;
    case OPTION_WINDOW:
        command->window_tokens = sl_parse_count(state, "--window", value, 1u << 24);
        if (command->window_tokens < 2)
            argp_error(state, "--window takes 2 tokens or more");
        return 0;
    case ARGP_KEY_END:
        if (!command->file == !command->jsonl)
            argp_error(state, "give the text with one of -f and --jsonl");
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

static void on_logits(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    struct command *command = context;

    for (uint32_t i = 0; i < n_rows; i++) {
        const uint32_t next = command->n_given + rows[i].token_index + 1;

        if (next >= command->n_piece)
            return;
        command->nats += surprise(rows[i].logits, command->config.vocab_size, command->piece[next]);
        command->n_scored++;
    }
}

/* Adds the ids of one document. The begin-of-sentence token that each piece gets is not among them.
 */
static int add_document(struct command *command, const char *text, size_t length,
                        struct sl_err *err)
{
    size_t first = command->ids.n, n_bytes;
    uint32_t bos = command->config.bos_token_id;
    int rc = sl_encode(command->encoder, text, length, command->special ? SL_ENCODE_ADDED : 0,
                       &command->ids, err);

    if (rc < 0)
        return rc;
    if (command->ids.n > first && command->ids.ids[first] == bos)
        memmove(command->ids.ids + first, command->ids.ids + first + 1,
                (--command->ids.n - first) * sizeof(*command->ids.ids));
    for (size_t i = first; i < command->ids.n; i++) {
        uint32_t id = command->ids.ids[i];

        if (id >= command->config.vocab_size)
            return sl_err_set(err, -SL_EFORMAT,
                              "tokenizer.json gives id %u, but config.json's vocab_size is %u", id,
                              command->config.vocab_size);
        sl_tokenizer_bytes(command->tok, id, &n_bytes);
        command->text_bytes += sl_tokenizer_is_added(command->tok, id) ? 0 : n_bytes;
    }
    if (command->ids.n > UINT32_MAX)
        return sl_err_set(err, -SL_EFORMAT, "more than %u tokens of text", UINT32_MAX);
    return sl_token_list_push(&command->ends, (uint32_t)command->ids.n) < 0
               ? sl_err_set(err, -ENOMEM, "out of memory")
               : 0;
}

static int add_line(void *context, const json_t *value, struct sl_err *err)
{
    if (!json_is_string(value))
        return sl_err_set(err, -SL_EFORMAT, "expected a JSON string");
    return add_document(context, json_string_value(value), json_string_length(value), err);
}

static int add_file(struct command *command, struct sl_err *err)
{
    char *text;
    size_t length;
    int rc = sl_input_read_all(command->file, SL_ENCODE_BYTES_MAX, &text, &length, err);

    if (rc < 0)
        return rc;
    rc = add_document(command, text, length, err);
    free(text);
    return rc;
}

/* The longest piece that any document gives, begin-of-sentence included. */
static uint32_t longest_piece(const struct command *command)
{
    uint32_t start = 0, longest = 0;

    for (size_t i = 0; i < command->ends.n; i++) {
        uint32_t n = command->ends.ids[i] - start + 1;

        if (command->window_tokens && n > command->window_tokens)
            n = command->window_tokens;
        longest = n > longest ? n : longest;
        start = command->ends.ids[i];
    }
    return longest;
}

static int prepare(struct command *command, struct sl_err *err)
{
    const char *name = command->file ? command->file : command->jsonl;
    uint32_t longest;
    int rc;

    if ((rc = sl_config_read(&command->config, command->options.model, err)) < 0 ||
        (rc = sl_tokenizer_open(&command->tok, command->options.model, err)) < 0 ||
        (rc = sl_encoder_create(&command->encoder, command->tok, err)) < 0)
        return rc;
    rc = command->file ? add_file(command, err)
                       : sl_json_lines_each(command->jsonl, add_line, command, err);
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
    struct sl_kv_cache *kv = sl_engine_kv(command->engine, 0);
    struct sl_step_request request = {
        .n_spans = 1,
        .on_logits = on_logits,
        .on_logits_context = command,
        .on_route = sl_text_progress_route,
        .on_route_context = &command->progress,
    };
    uint32_t n = end - first;
    int rc = 0;

    if (command->window_tokens && n > command->window_tokens - 1)
        n = command->window_tokens - 1;
    command->piece[0] = (int32_t)command->config.bos_token_id;
    for (uint32_t i = 0; i < n; i++)
        command->piece[i + 1] = (int32_t)command->ids.ids[first + i];
    command->n_piece = n + 1;
    sl_kv_cache_clear(kv);
    for (command->n_given = 0; rc == 0 && command->n_given < n;) {
        uint32_t left = n - command->n_given; /* the last token predicts nothing that is known */
        uint32_t n_step = sl_engine_segment(command->engine, left);
        struct sl_span span = {kv, command->piece + command->n_given, n_step, SL_LOGITS_ALL};

        request.spans = &span;
        rc = sl_forward_step(sl_engine_forward(command->engine), &request, err);
        command->n_given += n_step;
        command->progress.n_done += n_step;
    }
    return rc < 0 ? rc : (int64_t)n;
}

static int run(struct command *command, struct sl_err *err)
{
    struct sl_text_progress *text = &command->progress;
    uint32_t at = 0;
    double seconds;
    int64_t took = 0;

    *text = (struct sl_text_progress){sl_progress_start(stderr, "text", "tokens"), command->ids.n,
                                      0, command->config.num_hidden_layers};
    for (size_t i = 0; took >= 0 && i < command->ends.n; i++)
        while (took >= 0 && at < command->ends.ids[i]) {
            took = score_piece(command, at, command->ends.ids[i], err);
            at += took > 0 ? (uint32_t)took : 0;
        }
    sl_progress_end(&text->progress);
    if (took < 0)
        return (int)took;
    seconds = (double)(sl_clock_ns() - text->progress.start_ns) / 1e9;
    printf("tokens          %llu\n", (unsigned long long)command->n_scored);
    printf("bytes           %llu\n", (unsigned long long)command->text_bytes);
    printf("nats per token  %.6f\n", command->nats / (double)command->n_scored);
    printf("perplexity      %.4f\n", exp(command->nats / (double)command->n_scored));
    printf("bits per byte   %.6f\n", command->nats / log(2.0) / (double)command->text_bytes);
    printf("seconds         %.2f (%.1f tokens/s)\n", seconds, (double)command->n_scored / seconds);
    return 0;
}

int sl_cmd_perplexity(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"file", 'f', "FILE", 0, "the text, as one document; - is standard input", 0},
        {"jsonl", OPTION_JSONL, "FILE", 0, "many documents: one JSON string a line", 0},
        {"special", OPTION_SPECIAL, NULL, 0, "recognise the model's control tokens in the text", 0},
        {"window", OPTION_WINDOW, "TOKENS", 0,
         "cut documents into pieces of so many tokens, each scored by itself", 0},
        {0}};
    static const struct argp_child children[] = {{&sl_engine_argp, 0, "Running the model:", 1},
                                                 {0}};
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
    sl_encoder_destroy(command.encoder);
    sl_tokenizer_close(command.tok);
    sl_token_list_fini(&command.ids);
    sl_token_list_fini(&command.ends);
    free(command.piece);
    return sl_command_status(rc, &err);
}
