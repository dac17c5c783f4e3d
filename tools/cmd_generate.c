/* sluice generate: continues a text, printing it as it is made. */
#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/clock.h"
#include "core/base/json.h"
#include "core/base/size.h"
#include "core/text/detokenizer.h"
#include "core/text/sampler.h"
#include "core/text/tokenizer.h"
#include "tools/command_line.h"
#include "tools/commands.h"
#include "tools/engine_options.h"
#include "tools/interrupt.h"
#include "tools/output_file.h"
#include "tools/progress.h"
#include "tools/prompt.h"

#define TOKENS_DEFAULT 128u

enum {
    OPTION_TEMP = 256,
    OPTION_TOP_P,
    OPTION_TOP_K,
    OPTION_MIN_P,
    OPTION_SEED,
    OPTION_SPECIAL,
    OPTION_NO_BOS,
    OPTION_NO_HOT_LIST,
    OPTION_STATS
};

struct command {
    struct sl_engine_options options;
    struct sl_sampler sampler;
    const char *text;
    const char *file;
    const char *stats_path;
    struct sl_output_file stats;
    unsigned prompt_flags; /* enum sl_prompt_flag */
    bool no_hot_list;
    uint32_t n_new_max;

    struct sl_config config;
    struct sl_prompt_maker prompts;
    struct sl_detokenizer *detok;
    struct sl_prompt prompt;
    struct sl_arena arena; /* the sampler's scratch */
    struct sl_candidate *scratch;
    struct sl_engine *engine;

    struct sl_err sample_err;
    int sample_rc;
    uint32_t next_id; /* what on_logits() chose */

    struct sl_text_progress progress;
    uint32_t n_prefilled; /* all of the prompt, unless interrupted */
    uint32_t n_new;
    uint64_t prefill_ns;
    uint64_t decode_ns;
    struct sl_expert_cache_counters prefill_counters;
};

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct command *command = state->input;

    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &command->options;
        command->sampler = SL_SAMPLER_DEFAULT;
        command->n_new_max = TOKENS_DEFAULT;
        return 0;
    case 'p':
        command->text = value;
        return 0;
    case 'f':
        command->file = value;
        return 0;
    case 'n':
        command->n_new_max = sl_parse_count(state, "-n", value, 1u << 24);
        return 0;
    case OPTION_TEMP:
        command->sampler.temperature = sl_parse_real(state, "--temp", value, 0, 1e6);
        return 0;
    case OPTION_TOP_P:
        command->sampler.top_p = sl_parse_real(state, "--top-p", value, 1e-9, 1);
        return 0;
    case OPTION_TOP_K:
        command->sampler.top_k = sl_parse_count(state, "--top-k", value, 1u << 24);
        return 0;
    case OPTION_MIN_P:
        command->sampler.min_p = sl_parse_real(state, "--min-p", value, 0, 1);
        return 0;
    case OPTION_SEED:
        command->sampler.seed = sl_parse_seed(state, "--seed", value);
        return 0;
    case OPTION_SPECIAL:
        command->prompt_flags |= SL_PROMPT_SPECIAL;
        return 0;
    case OPTION_NO_BOS:
        command->prompt_flags |= SL_PROMPT_NO_BOS;
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
        if (!command->text == !command->file)
            argp_error(state, "give the text with -p or the file with -f");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static void on_logits(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    struct command *command = context;

    sl_assert(n_rows == 1);
    command->sample_rc = sl_sampler_sample(
        &command->sampler, command->prompt.n_tokens + command->n_new, rows[0].logits,
        command->config.vocab_size, command->scratch, &command->next_id, &command->sample_err);
}

static int show(const char *text, size_t length, struct sl_err *err)
{
    if (fwrite(text, 1, length, stdout) != length || fflush(stdout) != 0)
        return sl_err_set(err, -errno, "cannot write the text: %s", sl_strerror(errno));
    return 0;
}

static int step(struct command *command, const int32_t *tokens, uint32_t n_tokens, bool want_next,
                struct sl_err *err)
{
    struct sl_span span = {sl_engine_kv(command->engine, 0), tokens, n_tokens,
                           want_next ? SL_LOGITS_LAST : SL_LOGITS_NONE};
    const struct sl_step_request request = {
        .spans = &span,
        .n_spans = 1,
        .stop = sl_interrupt_stop(),
        .on_logits = on_logits,
        .on_logits_context = command,
        .on_route = sl_text_progress_route,
        .on_route_context = &command->progress,
    };
    int rc;

    command->sample_rc = 0;
    rc = sl_forward_step(sl_engine_forward(command->engine), &request, err);
    if (rc == -ECANCELED) /* the callers' loops ask sl_interrupted() themselves */
        return 0;
    if (rc == 0 && command->sample_rc < 0) {
        rc = command->sample_rc;
        *err = command->sample_err;
    }
    return rc;
}

static int prefill(struct command *command, struct sl_err *err)
{
    const struct sl_prompt *prompt = &command->prompt;
    struct sl_text_progress *text = &command->progress;
    int rc = 0;

    *text = (struct sl_text_progress){sl_progress_start(stderr, "prompt", "tokens"),
                                      prompt->n_tokens, 0, command->config.num_hidden_layers};
    while (rc == 0 && command->n_prefilled < prompt->n_tokens && !sl_interrupted()) {
        uint32_t left = prompt->n_tokens - command->n_prefilled;
        uint32_t n = sl_engine_segment(command->engine, left);

        text->n_done = command->n_prefilled;
        rc = step(command, prompt->tokens + command->n_prefilled, n, n == left, err);
        command->n_prefilled += rc == 0 && !sl_interrupted() ? n : 0;
    }
    sl_progress_end(&text->progress);
    text->n_tokens = 0; /* what is decoded shows itself */
    command->prefill_ns = sl_clock_ns() - text->progress.start_ns;
    command->prefill_counters = sl_engine_counters(command->engine);
    return rc;
}

static int decode(struct command *command, struct sl_err *err)
{
    uint64_t start_ns = sl_clock_ns();
    const char *text;
    size_t length;
    int rc = 0;

    while (rc == 0 && !sl_interrupted() && command->next_id != command->config.eos_token_id) {
        int32_t token = (int32_t)command->next_id;

        text = sl_detokenizer_push(command->detok, command->next_id, &length);
        rc = show(text, length, err);
        if (++command->n_new == command->n_new_max)
            break;
        if (rc == 0)
            rc = step(command, &token, 1, true, err);
    }
    text = sl_detokenizer_flush(command->detok, &length);
    if (rc == 0)
        rc = show(text, length, err);
    if (rc == 0)
        rc = show("\n", 1, err);
    command->decode_ns = sl_clock_ns() - start_ns;
    return rc;
}

/* ---- figures -----------------------------------------------------------------------------------
 */

static double per_second(double count, uint64_t ns)
{
    return ns ? count * 1e9 / (double)ns : 0;
}

static double hit_rate(const struct sl_expert_cache_counters *c)
{
    return c->n_requests ? (double)(c->n_hits + c->n_hinted_hits) / (double)c->n_requests : 0;
}

static void print_figures(const struct command *command)
{
    struct sl_expert_cache_counters c = sl_engine_counters(command->engine);
    char wanted[SL_SIZE_TEXT_BYTES], read[SL_SIZE_TEXT_BYTES];
    /* The first new token comes from the prompt's pass. */
    uint32_t n_decoded = command->n_new ? command->n_new - 1 : 0;

    fprintf(stderr, "\nprompt   %u token%s in %.2f s (%.2f tokens/s)\n", command->n_prefilled,
            sl_plural(command->n_prefilled), (double)command->prefill_ns / 1e9,
            per_second(command->n_prefilled, command->prefill_ns));
    fprintf(stderr, "text     %u token%s, %u of them in %.2f s (%.2f tokens/s)%s\n", command->n_new,
            sl_plural(command->n_new), n_decoded, (double)command->decode_ns / 1e9,
            per_second(n_decoded, command->decode_ns), sl_interrupted() ? ", interrupted" : "");
    fprintf(stderr,
            "experts  %llu asked for; %.1f %% found in the cache, %llu of them kept and %llu "
            "hinted\n",
            (unsigned long long)c.n_requests, 100 * hit_rate(&c), (unsigned long long)c.n_hits,
            (unsigned long long)c.n_hinted_hits);
    if (c.n_preloads > 0)
        fprintf(stderr, "hot      %llu expert%s of an earlier run loaded before the prompt\n",
                (unsigned long long)c.n_preloads, sl_plural(c.n_preloads));
    if (c.n_guessed > 0)
        fprintf(
            stderr,
            "guesses  %llu, %.1f %% right; %llu read ahead, %llu of them in time and %llu late, "
            "%s wasted\n",
            (unsigned long long)c.n_guessed, 100 * (double)c.n_guessed_right / (double)c.n_guessed,
            (unsigned long long)c.n_guess_loads, (unsigned long long)c.n_guess_hits,
            (unsigned long long)c.n_guess_late, sl_size_format(c.guess_wasted_bytes, wanted));
    fprintf(stderr, "disk     %s wanted, %s read, %.2f s waited for\n",
            sl_size_format(c.wanted_bytes, wanted), sl_size_format(c.read_bytes, read),
            (double)c.wait_ns / 1e9);
    if (c.n_stalls > 0)
        fprintf(stderr, "stalls   %llu read%s took longer than --io-stall, the longest %.0f s\n",
                (unsigned long long)c.n_stalls, sl_plural(c.n_stalls), (double)c.longest_ns / 1e9);
    sl_print_resources(command->engine, &command->options.placement, stderr);
}

static int set(json_t *object, const char *key, json_t *value)
{
    return json_object_set_new(object, key, value);
}

static int write_stats(struct command *command, struct sl_err *err)
{
    struct sl_expert_cache_counters c = sl_engine_counters(command->engine);
    json_t *object = json_object();

    set(object, "prompt_tokens", json_integer(command->n_prefilled));
    set(object, "new_tokens", json_integer(command->n_new));
    set(object, "prefill_seconds", json_real((double)command->prefill_ns / 1e9));
    set(object, "decode_seconds", json_real((double)command->decode_ns / 1e9));
    set(object, "expert_requests", json_integer((json_int_t)c.n_requests));
    set(object, "expert_hits", json_integer((json_int_t)c.n_hits));
    set(object, "expert_hinted_hits", json_integer((json_int_t)c.n_hinted_hits));
    set(object, "expert_loads", json_integer((json_int_t)c.n_loads));
    set(object, "expert_preloads", json_integer((json_int_t)c.n_preloads));
    set(object, "guesses", json_integer((json_int_t)c.n_guessed));
    set(object, "guesses_right", json_integer((json_int_t)c.n_guessed_right));
    set(object, "guess_loads", json_integer((json_int_t)c.n_guess_loads));
    set(object, "guess_hits", json_integer((json_int_t)c.n_guess_hits));
    set(object, "guess_late", json_integer((json_int_t)c.n_guess_late));
    set(object, "guess_wasted_bytes", json_integer((json_int_t)c.guess_wasted_bytes));
    set(object, "expert_evictions", json_integer((json_int_t)c.n_evictions));
    set(object, "read_retries", json_integer((json_int_t)c.n_retries));
    set(object, "read_stalls", json_integer((json_int_t)c.n_stalls));
    set(object, "wanted_bytes", json_integer((json_int_t)c.wanted_bytes));
    set(object, "read_bytes", json_integer((json_int_t)c.read_bytes));
    set(object, "wait_seconds", json_real((double)c.wait_ns / 1e9));
    set(object, "repack_seconds", json_real((double)c.repack_ns / 1e9));
    set(object, "unpack_seconds", json_real((double)c.unpack_ns / 1e9));
    set(object, "verify_seconds", json_real((double)c.verify_ns / 1e9));
    set(object, "decode_expert_requests",
        json_integer((json_int_t)(c.n_requests - command->prefill_counters.n_requests)));
    set(object, "decode_read_bytes",
        json_integer((json_int_t)(c.read_bytes - command->prefill_counters.read_bytes)));
    json_dumpf(object, command->stats.stream, JSON_INDENT(2));
    fputc('\n', command->stats.stream);
    json_decref(object);
    return sl_output_commit(&command->stats, err);
}

/* ---- the command -------------------------------------------------------------------------------
 */

static int open_stats(struct command *command, struct sl_err *err)
{
    int rc = sl_output_open(&command->stats, command->stats_path, err);

    if (rc == 0)
        rc = sl_output_keep_off(&command->stats, command->options.model, err);
    if (rc == 0 && command->file)
        rc = sl_output_keep_off(&command->stats, command->file, err);
    return rc;
}

/* All that can be wrong with prompt and parameters shows before the weights are read. */
static int prepare(struct command *command, struct sl_err *err)
{
    struct sl_arena measure;
    uint64_t context;
    int rc;

    if ((rc = sl_config_read(&command->config, command->options.model, err)) < 0 ||
        (rc = sl_prompt_maker_open(&command->prompts, command->options.model, &command->config,
                                   command->prompt_flags, err)) < 0 ||
        (rc = sl_detokenizer_create(&command->detok, command->prompts.tok, false, err)) < 0 ||
        (rc = sl_prompt_read(&command->prompts, command->text, command->file, &command->prompt,
                             err)) < 0)
        return rc;
    context = (uint64_t)command->prompt.n_tokens + command->n_new_max;
    if (command->options.context_tokens == 0)
        command->options.context_tokens = context < UINT32_MAX ? (uint32_t)context : UINT32_MAX;
    if (context > command->options.context_tokens)
        return sl_err_set(
            err, -SL_EBUDGET, "a prompt of %u tokens and %u new ones do not fit --context %u",
            command->prompt.n_tokens, command->n_new_max, command->options.context_tokens);
    if ((rc = sl_sampler_check(&command->sampler, err)) < 0)
        return rc;
    sl_arena_init_measure(&measure);
    sl_sampler_carve_scratch(&measure, command->config.vocab_size);
    rc = sl_arena_init(&command->arena, measure.used_bytes, "sampler", err);
    if (rc == 0)
        command->scratch = sl_sampler_carve_scratch(&command->arena, command->config.vocab_size);
    return rc;
}

/* A list that cannot be had or kept costs time, and no more. */
static void load_hot_list(struct command *command)
{
    struct sl_progress progress = sl_progress_start(stderr, "loading hot experts", "experts");
    struct sl_err err;
    int rc = sl_engine_load_hot_list(command->engine, sl_interrupt_stop(), sl_progress_show,
                                     &progress, &err);

    sl_progress_end(&progress);
    if (rc < 0)
        fprintf(stderr, "note: what was hot is not known: %s\n", err.message);
}

static void save_hot_list(struct command *command)
{
    struct sl_err err;

    if (sl_engine_save_hot_list(command->engine, &err) < 0)
        fprintf(stderr, "note: what is hot is not remembered: %s\n", err.message);
}

static int run(struct command *command, struct sl_err *err)
{
    int rc;

    if (!command->no_hot_list)
        load_hot_list(command);
    rc = prefill(command, err);
    if (rc == 0 && !sl_interrupted())
        rc = decode(command, err);
    if (rc == 0 && !command->no_hot_list)
        save_hot_list(command);
    print_figures(command);
    if (rc == 0 && command->stats_path)
        rc = write_stats(command, err);
    return rc;
}

static const struct argp_option options[] = {
    {"prompt", 'p', "TEXT", 0, "the text to continue", 0},
    {"file", 'f', "FILE", 0, "the same from a file; - is standard input", 0},
    {NULL, 'n', "N", 0, "most tokens to make (default 128)", 0},
    {"temp", OPTION_TEMP, "T", 0, "temperature; 0 takes the most probable token (default 1)", 0},
    {"top-p", OPTION_TOP_P, "P", 0, "keep the most probable tokens of this share (default 1)", 0},
    {"top-k", OPTION_TOP_K, "K", 0, "keep the K most probable tokens (default: all)", 0},
    {"min-p", OPTION_MIN_P, "P", 0, "drop tokens P times less probable than the best (default 0)",
     0},
    {"seed", OPTION_SEED, "S", 0, "same seed, same text (default 0)", 0},
    {"special", OPTION_SPECIAL, NULL, 0, "recognise the model's control tokens in the text", 0},
    {"no-bos", OPTION_NO_BOS, NULL, 0, "put no begin-of-sentence token before the text", 0},
    {"no-hot-list", OPTION_NO_HOT_LIST, NULL, 0,
     "begin with an empty cache, and leave what a store remembers as it is", 0},
    {"stats", OPTION_STATS, "FILE.json", 0, "write the figures there as well", 0},
    {0}};

int sl_cmd_generate(int argc, char **argv)
{
    static const struct argp_child children[] = {{&sl_engine_argp, 0, "Running the model:", 1},
                                                 {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "MODEL",
        .doc = "Continues a text with the model in the checkpoint folder MODEL.",
        .children = children};
    struct command command = {0};
    struct sl_err err = {0};
    int rc;

    sl_command_parse(&argp, argc, argv, &command);
    rc = prepare(&command, &err);
    if (rc == 0 && command.stats_path)
        rc = open_stats(&command, &err);
    if (rc == 0)
        rc = sl_open_engine(&command.engine, &command.options, &err);
    if (rc == 0)
        rc = run(&command, &err);
    sl_output_discard(&command.stats);
    sl_engine_close(command.engine);
    sl_arena_fini(&command.arena);
    sl_prompt_fini(&command.prompt);
    sl_detokenizer_destroy(command.detok);
    sl_prompt_maker_close(&command.prompts);
    return sl_command_status(rc, &err);
}
