/* sluice bench decode and prefill: how fast a model runs, where the time goes, and what the machine
 * would allow. Limits are measured between the runs, on the same threads. */
#include "tools/bench/bench_model.h"

#include <argp.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/engine/feed.h"
#include "tools/bench/bench_past.h"
#include "tools/cli/command_line.h"
#include "tools/cli/engine_options.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/progress.h"
#include "tools/cli/prompt.h"

#define LEVELS_MAX 16u
#define TEXTS_MAX 4096u
#define PAST_TOKENS 16u /* before what decode measures, unless a position is given */
#define DECODE_TOKENS_DEFAULT 32u
#define PREFILL_TOKENS_DEFAULT 512u

struct command {
    struct sl_engine_options options;
    const char *file;
    uint64_t seed;
    uint32_t n_tokens;            /* of one run and text */
    uint32_t n_texts[LEVELS_MAX]; /* each is measured */
    uint32_t n_levels, n_texts_max;
    uint32_t prompt_rows; /* of another text, in each step */
    uint32_t n_runs_max;  /* that are measured */
    uint32_t position;    /* as it is given; 0: it is not */
    bool prefill;
    bool cold; /* each run begins with an empty cache */
    bool warm; /* runs begin after as much of the same text as they take */
    bool json;

    struct sl_config config;
    uint32_t past;   /* each run begins behind so many tokens that nobody computed */
    int32_t *tokens; /* (n_texts_max, text_tokens), all that is fed; malloc's */
    uint32_t text_tokens;
    int32_t *prompt; /* (prompt_rows) of a step */
    uint64_t random; /* its state */
    struct sl_engine *engine;
    struct sl_kv_cache **kvs; /* (n_texts_max + 1): the last is of the prompt, if there is one */
    struct sl_span *spans;    /* as many */
    struct sl_bench bench;
    struct sl_bench_drive drive;
    struct sl_progress progress;
    bool resident;
    uint32_t n_before;    /* runs that do not count, before those that do */
    uint32_t n_runs_done; /* of all levels */
};

enum {
    OPTION_TOKENS = 256,
    OPTION_RUNS,
    OPTION_POSITION,
    OPTION_JSON,
    OPTION_SEED,
    OPTION_COLD,
    OPTION_WARM,
    OPTION_SEQUENCES,
    OPTION_PROMPT_ROWS,
};

static void parse_texts(struct command *command, char *text, struct argp_state *state)
{
    char *rest = text, *part;

    command->n_levels = command->n_texts_max = 0;
    while ((part = strsep(&rest, ","))) {
        const uint32_t n = sl_parse_count(state, "--sequences", part, TEXTS_MAX);

        if (command->n_levels == LEVELS_MAX)
            argp_error(state, "--sequences takes at most %u numbers", LEVELS_MAX);
        command->n_texts[command->n_levels++] = n;
        command->n_texts_max = n > command->n_texts_max ? n : command->n_texts_max;
    }
}

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
    case OPTION_TOKENS:
        command->n_tokens = sl_parse_count(state, "--tokens", value, 1u << 20);
        return 0;
    case OPTION_RUNS:
        command->n_runs_max = sl_parse_count(state, "--runs", value, SL_BENCH_RUNS);
        return 0;
    case OPTION_POSITION:
        command->position = sl_parse_count(state, "--position", value, 1u << 24);
        return 0;
    case OPTION_SEQUENCES:
        parse_texts(command, value, state);
        return 0;
    case OPTION_PROMPT_ROWS:
        command->prompt_rows = sl_parse_count(state, "--prompt-rows", value, 1u << 20);
        return 0;
    case OPTION_JSON:
        command->json = true;
        return 0;
    case OPTION_SEED:
        command->seed = sl_parse_seed(state, "--seed", value);
        return 0;
    case OPTION_COLD:
        command->cold = true;
        return 0;
    case OPTION_WARM:
        command->warm = true;
        return 0;
    case ARGP_KEY_END:
        if (command->prefill && command->warm)
            argp_error(state, "--warm is for decode");
        if (command->prefill && (command->n_texts_max > 1 || command->prompt_rows > 0))
            argp_error(state, "--sequences and --prompt-rows are for decode");
        if (command->cold && command->warm)
            argp_error(state, "--cold and --warm exclude each other");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* ---- setting up --------------------------------------------------------------------------------
 */

static int32_t random_token(const struct command *command, uint64_t *state)
{
    return (int32_t)(sl_bench_random(state) * UINT64_C(0x9e3779b97f4a7c15) >> 33) %
           (int32_t)command->config.vocab_size;
}

static int make_tokens(struct command *command, struct sl_err *err)
{
    const uint32_t needed = command->text_tokens * command->n_texts_max;
    struct sl_prompt_maker prompts = {0};
    struct sl_prompt text = {0};
    uint64_t state = command->seed + 1;
    int rc;

    if (!command->file) {
        command->tokens = calloc(needed, sizeof(*command->tokens));
        if (!command->tokens)
            return sl_err_set(err, -ENOMEM, "tokens: out of memory");
        for (uint32_t i = 0; i < needed; i++)
            command->tokens[i] = random_token(command, &state);
        return 0;
    }
    rc = sl_prompt_maker_open(&prompts, command->options.model, &command->config, 0, err);
    if (rc == 0)
        rc = sl_prompt_read(&prompts, NULL, command->file, &text, err);
    sl_prompt_maker_close(&prompts);
    if (rc == 0 && text.n_tokens < needed)
        rc = sl_err_set(err, -SL_EFORMAT, "%s: %u tokens, %u are needed", command->file,
                        text.n_tokens, needed);
    command->tokens = text.tokens;
    return rc;
}

static uint32_t sequence_count(const struct command *command)
{
    return command->n_texts_max + (command->prompt_rows > 0);
}

/* Random tokens need no past that is computed: they are routed at random behind any. */
static int choose_sizes(struct command *command, struct sl_err *err)
{
    struct sl_engine_options *o = &command->options;
    uint64_t text_tokens = command->n_tokens, context;

    command->past = command->position;
    command->n_before = command->warm ? command->n_runs_max : 1;
    if (!command->prefill) {
        if (!command->position && !command->file)
            command->past = PAST_TOKENS;
        text_tokens =
            PAST_TOKENS + (uint64_t)command->n_tokens * (command->n_before + command->n_runs_max);
    }
    if (text_tokens * command->n_texts_max > UINT32_MAX)
        return sl_err_set(err, -SL_EBUDGET, "too many tokens");
    command->text_tokens = (uint32_t)text_tokens;
    context = command->past ? (uint64_t)command->past + command->n_tokens : text_tokens;
    if (context < command->prompt_rows)
        context = command->prompt_rows;
    if (o->context_tokens == 0)
        o->context_tokens = (uint32_t)context;
    if (context > o->context_tokens)
        return sl_err_set(err, -SL_EBUDGET, "%llu tokens do not fit --context %u",
                          (unsigned long long)context, o->context_tokens);
    o->n_sequences = sequence_count(command);
    if (o->segment_tokens == 0 && o->n_sequences > 1)
        o->segment_tokens = command->n_texts_max + command->prompt_rows;
    return 0;
}

static int prepare(struct command *command, struct sl_err *err)
{
    const uint32_t n_sequences = sequence_count(command);
    int rc = choose_sizes(command, err);

    if (rc < 0)
        return rc;
    command->random = command->seed + 1;
    command->kvs = calloc(n_sequences, sizeof(struct sl_kv_cache *));
    command->spans = calloc(n_sequences, sizeof(*command->spans));
    command->prompt = calloc(command->prompt_rows + 1, sizeof(*command->prompt));
    if (!command->kvs || !command->spans || !command->prompt)
        return sl_err_set(err, -ENOMEM, "lists of texts: out of memory");
    rc = sl_config_read(&command->config, command->options.model, err);
    return rc < 0 ? rc : make_tokens(command, err);
}

static int create_sequences(struct command *command, struct sl_err *err)
{
    int rc = 0;

    for (uint32_t i = 0; rc == 0 && i < sequence_count(command); i++) {
        rc = sl_engine_sequence_create(command->engine, command->options.context_tokens,
                                       &command->kvs[i], err);
        if (rc == 0 && command->past && i < command->n_texts_max)
            rc = sl_bench_past_fill(command->kvs[i], &command->config, &command->engine->compute,
                                    command->past, command->seed + i, err);
    }
    return rc;
}

static int load_experts(struct command *command, struct sl_err *err)
{
    struct sl_progress progress;
    int rc;

    if (command->cold || command->warm)
        return 0;
    progress = sl_progress_start(stderr, "loading experts", "experts");
    rc = sl_engine_load_experts(command->engine, sl_progress_show, &progress, err);
    sl_progress_end(&progress);
    command->resident = rc == 1;
    return rc < 0 ? rc : 0;
}

/* ---- running -----------------------------------------------------------------------------------
 */

static void ignore_logits(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    (void)context;
    (void)rows;
    (void)n_rows;
}

static struct sl_step_request hooks(struct command *command)
{
    return (struct sl_step_request){
        .on_logits = ignore_logits,
        .stop = sl_interrupt_stop(),
        .on_route = sl_bench_drive_note,
        .on_route_context = &command->drive,
    };
}

/* Feeds tokens first .. first + n of a text, as many as a step takes. */
static int feed(struct command *command, uint32_t text, uint32_t first, uint32_t n,
                struct sl_err *err)
{
    const struct sl_step_request request = hooks(command);
    struct sl_feed feed = {.kv = command->kvs[text],
                           .tokens = command->tokens + (size_t)text * command->text_tokens + first,
                           .n_tokens = n,
                           .logits = SL_LOGITS_LAST};

    return sl_feed_run(command->engine, &feed, &request, err);
}

/* Takes a step: a token of each text, and the prompt's rows, which begin a text anew each time. */
static int take_step(struct command *command, uint32_t n_texts, uint32_t token, struct sl_err *err)
{
    struct sl_step_request request = hooks(command);

    request.spans = command->spans;
    request.n_spans = n_texts;
    for (uint32_t i = 0; i < n_texts; i++)
        command->spans[i] = (struct sl_span){
            command->kvs[i], command->tokens + (size_t)i * command->text_tokens + token, 1,
            SL_LOGITS_LAST};
    if (command->prompt_rows > 0) {
        struct sl_kv_cache *kv = command->kvs[command->n_texts_max];

        sl_kv_cache_clear(kv);
        for (uint32_t i = 0; i < command->prompt_rows; i++)
            command->prompt[i] = random_token(command, &command->random);
        command->spans[request.n_spans++] =
            (struct sl_span){kv, command->prompt, command->prompt_rows, SL_LOGITS_NONE};
    }
    return sl_engine_step(command->engine, &request, err);
}

/* A run behind a past begins where all others did: what follows is written over. */
static int run_once(struct command *command, uint32_t n_texts, uint32_t index, struct sl_err *err)
{
    const uint32_t first = PAST_TOKENS + index * command->n_tokens;
    int rc = 0;

    for (uint32_t i = 0; command->past && i < n_texts; i++)
        command->kvs[i]->n_tokens = command->past;
    if (command->prefill) {
        if (!command->past)
            sl_kv_cache_clear(command->kvs[0]);
        rc = feed(command, 0, 0, command->n_tokens, err);
    }
    for (uint32_t i = 0; !command->prefill && rc == 0 && i < command->n_tokens; i++)
        rc = take_step(command, n_texts, first + i, err);
    sl_progress_show(&command->progress, ++command->n_runs_done,
                     (uint64_t)(command->n_before + command->n_runs_max) * command->n_levels);
    return rc;
}

/* Computes what lies before the runs, where it is not filled in. */
static int make_past(struct command *command, uint32_t n_texts, struct sl_err *err)
{
    int rc = 0;

    for (uint32_t i = 0; !command->past && !command->prefill && rc == 0 && i < n_texts; i++) {
        sl_kv_cache_clear(command->kvs[i]);
        rc = feed(command, i, 0, PAST_TOKENS, err);
    }
    return rc;
}

struct counted_runs {
    struct command *command;
    uint32_t n_texts;
};

static int work(void *context, uint32_t run_index, struct sl_err *err)
{
    const struct counted_runs *runs = context;

    return run_once(runs->command, runs->n_texts, runs->command->n_before + run_index, err);
}

static int measure(struct command *command, struct sl_bench_level *level, struct sl_err *err)
{
    const struct sl_bench_runner runner = {command->engine, &command->bench.probe, &command->drive,
                                           command->cold};
    struct counted_runs runs = {command, level->n_texts};
    int rc = make_past(command, level->n_texts, err);

    for (uint32_t i = 0; rc == 0 && i < command->n_before; i++)
        rc = run_once(command, level->n_texts, i, err);
    level->begin = sl_engine_counters(command->engine);
    if (rc == 0)
        rc = sl_bench_runs_measure(&runner, work, &runs, level->runs, command->n_runs_max,
                                   &level->n_runs, err);
    level->end = sl_engine_counters(command->engine);
    return rc;
}

/* An interrupt ends with the figures of the runs that are through. */
static int measure_all(struct command *command, struct sl_err *err)
{
    int rc = 0;

    sl_bench_print_header(&command->bench);
    for (uint32_t i = 0; i < command->n_levels && rc == 0; i++) {
        struct sl_bench_level level = {.engine = command->engine,
                                       .bench = &command->bench,
                                       .prefill = command->prefill,
                                       .resident = command->resident,
                                       .cold = command->cold,
                                       .n_tokens = command->n_tokens,
                                       .n_texts = command->n_texts[i],
                                       .prompt_rows = command->prompt_rows,
                                       .position = command->position};

        command->progress = sl_progress_start(stderr, "measuring", "runs");
        rc = measure(command, &level, err);
        sl_progress_end(&command->progress);
        if (level.n_runs > 0 && (rc == 0 || rc == -ECANCELED))
            sl_bench_level_print(&level);
    }
    return rc;
}

/* ---- the commands ------------------------------------------------------------------------------
 */

/* Returns the most that a step goes through: the probe of memory need not read more. */
static uint64_t model_bytes(const struct command *command)
{
    const struct sl_memory_plan *plan = &command->engine->plan;

    return plan->need_bytes[SL_MEMORY_WEIGHTS] + plan->need_bytes[SL_MEMORY_CACHE];
}

static int run(struct command *command, struct sl_err *err)
{
    int rc;

    if ((rc = prepare(command, err)) < 0 ||
        (rc = sl_open_engine(&command->engine, &command->options, err)) < 0 ||
        (rc = create_sequences(command, err)) < 0 || (rc = load_experts(command, err)) < 0 ||
        (!command->resident && (rc = sl_bench_drive_open(&command->drive, command->engine,
                                                         command->options.io, err)) < 0) ||
        (rc = sl_bench_init(&command->bench, &command->engine->compute, model_bytes(command),
                            command->json, err)) < 0)
        return rc;
    rc = measure_all(command, err);
    if (rc == 0 || rc == -ECANCELED)
        sl_print_resources(command->engine, &command->options.affinity, stderr);
    return rc;
}

static int bench_model(int argc, char **argv, bool prefill)
{
    static const struct argp_option options[] = {
        {"tokens", OPTION_TOKENS, "N", 0, "tokens of one run (default: decode 32, prefill 512)", 0},
        {"runs", OPTION_RUNS, "N", 0, "measure so many runs, 5 at most (default 5)", 0},
        {"sequences", OPTION_SEQUENCES, "N,...", 0,
         "decode: so many texts at a time, each gets a token in each step; each number is measured "
         "(default 1)",
         0},
        {"prompt-rows", OPTION_PROMPT_ROWS, "N", 0,
         "decode: each step takes in N tokens of a prompt, too", 0},
        {"position", OPTION_POSITION, "N", 0,
         "begin behind N tokens, whose entries and keys are random ones: they are not computed", 0},
        {"file", 'f', "FILE", 0, "take the tokens from this text; - is standard input", 0},
        {"seed", OPTION_SEED, "S", 0, "other random tokens (default 0)", 0},
        {"cold", OPTION_COLD, NULL, 0, "begin each run with an empty cache", 0},
        {"warm", OPTION_WARM, NULL, 0,
         "decode: begin with what a cache of this size holds after as much of the text", 0},
        {"json", OPTION_JSON, NULL, 0, "one JSON object a line", 0},
        {0}};
    static const struct argp_child children[] = {{&sl_engine_argp, 0, "Running the model:", 1},
                                                 {0}};
    const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "MODEL",
        .doc = prefill ? "Measures how fast a prompt goes through the model in the checkpoint "
                         "folder MODEL, and where the time goes."
                       : "Measures how fast the model in the checkpoint folder MODEL makes tokens, "
                         "one after the other of one text or of many in lockstep, and where the "
                         "time goes.",
        .children = children};
    struct command command = {.prefill = prefill,
                              .n_texts = {1},
                              .n_levels = 1,
                              .n_texts_max = 1,
                              .n_runs_max = SL_BENCH_RUNS,
                              .n_tokens = prefill ? PREFILL_TOKENS_DEFAULT : DECODE_TOKENS_DEFAULT};
    struct sl_err err = {0};
    int rc;

    sl_command_parse(&argp, argc, argv, &command);
    rc = run(&command, &err);
    sl_bench_fini(&command.bench);
    sl_bench_drive_close(&command.drive);
    sl_engine_close(command.engine);
    free(command.tokens);
    free(command.prompt);
    free(command.spans);
    free(command.kvs);
    return sl_command_status(rc, &err);
}

int sl_bench_decode(int argc, char **argv)
{
    return bench_model(argc, argv, false);
}

int sl_bench_prefill(int argc, char **argv)
{
    return bench_model(argc, argv, true);
}
