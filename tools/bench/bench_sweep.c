/* sluice bench sweep: how fast many texts advance in lockstep, one token of each in a step, beside
 * what the drives and the multipliers would allow for the same steps. */
#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"
#include "tools/bench/bench_past.h"
#include "tools/bench/bench_run.h"
#include "tools/cli/command_line.h"
#include "tools/cli/engine_options.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/progress.h"

#define LIST_MAX 16u
#define TEXTS_MAX 4096u
#define STEPS_DEFAULT 3u
#define POSITION_DEFAULT 128u
#define PROBE_SECONDS 0.1

struct command {
    struct sl_engine_options options;
    uint32_t n_texts[LIST_MAX]; /* each is measured */
    uint32_t n_lists, n_texts_max;
    uint32_t n_steps;     /* of one run */
    uint32_t position;    /* where texts begin, behind a past that nobody computed */
    uint32_t prompt_rows; /* of another text, in each step */
    uint64_t seed;
    bool json;

    struct sl_config config;
    struct sl_engine *engine;
    struct sl_kv_cache **kv; /* (n_texts_max + 1): the last is of the prompt */
    struct sl_span *spans;   /* as many */
    int32_t *tokens;         /* (n_texts_max + prompt_rows) of a step */
    struct sl_bench bench;
    struct sl_bench_drive drive;
    uint64_t random;
    struct sl_progress progress;
    uint64_t n_done;
};

/* A number of texts, as it is measured. */
struct level {
    struct command *command;
    uint32_t n_texts;
    struct sl_bench_run runs[SL_BENCH_RUNS];
    struct sl_expert_cache_counters begin, end; /* around the runs */
};

enum {
    OPTION_SEQUENCES = 256,
    OPTION_STEPS,
    OPTION_POSITION,
    OPTION_PROMPT_ROWS,
    OPTION_SEED,
    OPTION_JSON,
};

static void parse_texts(struct command *command, char *text, struct argp_state *state)
{
    char *rest = text, *part;

    command->n_lists = command->n_texts_max = 0;
    while ((part = strsep(&rest, ","))) {
        const uint32_t n = sl_parse_count(state, "--sequences", part, TEXTS_MAX);

        if (command->n_lists == LIST_MAX)
            argp_error(state, "--sequences takes at most %u numbers", LIST_MAX);
        command->n_texts[command->n_lists++] = n;
        command->n_texts_max = n > command->n_texts_max ? n : command->n_texts_max;
    }
}

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct command *command = state->input;
    char texts_default[] = "1,8,64,256,512";

    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &command->options;
        return 0;
    case OPTION_SEQUENCES:
        parse_texts(command, value, state);
        return 0;
    case OPTION_STEPS:
        command->n_steps = sl_parse_count(state, "--steps", value, 1u << 16);
        return 0;
    case OPTION_POSITION:
        command->position = sl_parse_count(state, "--position", value, 1u << 24);
        return 0;
    case OPTION_PROMPT_ROWS:
        command->prompt_rows = sl_parse_count(state, "--prompt-rows", value, 1u << 20);
        return 0;
    case OPTION_SEED:
        command->seed = sl_parse_seed(state, "--seed", value);
        return 0;
    case OPTION_JSON:
        command->json = true;
        return 0;
    case ARGP_KEY_END:
        if (command->n_lists == 0)
            parse_texts(command, texts_default, state);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* ---- steps -------------------------------------------------------------------------------------
 */

static void ignore_logits(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    (void)context;
    (void)rows;
    (void)n_rows;
}

static int32_t next_token(struct command *command)
{
    return (int32_t)(sl_bench_random(&command->random) * UINT64_C(0x9e3779b97f4a7c15) >> 33) %
           (int32_t)command->config.vocab_size;
}

/* Takes a step: a token of each text, and the prompt's rows, which begin a text anew each time. */
static int take_step(struct command *command, uint32_t n_texts, struct sl_err *err)
{
    struct sl_step_request request = {
        .spans = command->spans,
        .n_spans = n_texts,
        .stop = sl_interrupt_stop(),
        .on_logits = ignore_logits,
        .on_route = sl_bench_drive_note,
        .on_route_context = &command->drive,
    };

    for (uint32_t i = 0; i < n_texts + command->prompt_rows; i++)
        command->tokens[i] = next_token(command);
    for (uint32_t i = 0; i < n_texts; i++)
        command->spans[i] =
            (struct sl_span){command->kv[i], command->tokens + i, 1, SL_LOGITS_LAST};
    if (command->prompt_rows > 0) {
        struct sl_kv_cache *kv = command->kv[command->n_texts_max];

        sl_kv_cache_clear(kv);
        command->spans[request.n_spans++] =
            (struct sl_span){kv, command->tokens + n_texts, command->prompt_rows, SL_LOGITS_NONE};
    }
    return sl_engine_step(command->engine, &request, err);
}

/* A run begins where all others did: what follows is written over. */
static int work(void *context, struct sl_err *err)
{
    const struct level *level = context;
    struct command *command = level->command;
    int rc = 0;

    for (uint32_t i = 0; i < level->n_texts; i++)
        command->kv[i]->n_tokens = command->position;
    for (uint32_t i = 0; i < command->n_steps && rc == 0; i++) {
        rc = take_step(command, level->n_texts, err);
        sl_progress_show(&command->progress, ++command->n_done,
                         (uint64_t)command->n_steps * (SL_BENCH_RUNS + 1) * command->n_lists);
    }
    return rc;
}

static int measure(struct level *level, struct sl_err *err)
{
    struct command *command = level->command;
    const struct sl_bench_runner runner = {command->engine, &command->bench, &command->drive,
                                           false};
    int rc = work(level, err); /* the cache fills, and pins what it will */

    level->begin = sl_engine_counters(command->engine);
    for (uint32_t i = 0; i < SL_BENCH_RUNS && rc == 0; i++)
        rc = sl_bench_run_measure(&runner, work, level, &level->runs[i], err);
    level->end = sl_engine_counters(command->engine);
    return rc;
}

/* ---- figures -----------------------------------------------------------------------------------
 */

static void print(const struct level *level, const char *what, const char *unit, double value,
                  double limit, const char *note)
{
    const struct command *command = level->command;
    char name[64], shape[128];
    int used =
        snprintf(shape, sizeof(shape), "%u text%s", level->n_texts, level->n_texts == 1 ? "" : "s");

    if (command->prompt_rows > 0)
        used += snprintf(shape + used, sizeof(shape) - (size_t)used, " and %u of a prompt",
                         command->prompt_rows);
    snprintf(shape + used, sizeof(shape) - (size_t)used, "%s", note);
    snprintf(name, sizeof(name), "sweep%s", what);
    if (value > 0 && limit > 0)
        sl_bench_print(&command->bench, name, shape, value, unit, limit);
}

/* A step's time: of the run, of the drives alone for what was read, of the cores alone. */
struct times {
    double step[SL_BENCH_RUNS], drive[SL_BENCH_RUNS], cores[SL_BENCH_RUNS], least[SL_BENCH_RUNS];
};

static void print_times(const struct level *level)
{
    const double per_step = 1e-9 / level->command->n_steps;
    double step, drive, cores, least;
    struct times t;
    char note[64];

    for (uint32_t i = 0; i < SL_BENCH_RUNS; i++) {
        const struct sl_bench_run *run = &level->runs[i];

        t.step[i] = (double)run->ns * per_step;
        t.drive[i] =
            run->drive_rate > 0 ? (double)run->missed_bytes / run->drive_rate * per_step : 0;
        t.cores[i] = sl_bench_run_totals(run).limit_ns * per_step;
        t.least[i] = t.drive[i] > t.cores[i] ? t.drive[i] : t.cores[i];
    }
    step = sl_bench_median(t.step, SL_BENCH_RUNS);
    drive = sl_bench_median(t.drive, SL_BENCH_RUNS);
    cores = sl_bench_median(t.cores, SL_BENCH_RUNS);
    least = sl_bench_median(t.least, SL_BENCH_RUNS);
    print(level, "", "tokens/s", level->n_texts / step, level->n_texts / least, "");
    snprintf(note, sizeof(note), ", %s", drive > cores ? "the drives bind" : "the cores bind");
    print(level, ", step", "s", step, least, note);
    print(level, ", beside the drives", "s", step, drive, "");
    print(level, ", beside the cores", "s", step, cores, "");
}

static void print_experts(const struct level *level)
{
    const double n_steps = (double)level->command->n_steps * SL_BENCH_RUNS;
    struct sl_expert_cache_counters c;
    char note[96], text[SL_SIZE_TEXT_BYTES];

    sl_metrics_difference(&sl_expert_cache_metrics, &level->begin, &level->end, &c);
    snprintf(note, sizeof(note), ", %s read a step",
             sl_size_format((uint64_t)((double)c.read_bytes / n_steps), text));
    if (c.n_sweep_requests > 0)
        snprintf(note + strlen(note), sizeof(note) - strlen(note), ", %llu of each layer pinned",
                 (unsigned long long)c.n_pinned);
    print(level, ", experts kept", "a step", (double)c.n_hits / n_steps,
          (double)c.n_requests / n_steps, note);
    print(level, ", reads of an expert", "reads", (double)c.n_loads,
          (double)(c.n_requests - c.n_hits), ", in each step that misses it");
    print(level, ", waiting for the drives", "s a step", (double)c.wait_ns * 1e-9 / n_steps,
          (double)c.busy_ns * 1e-9 / n_steps, ", beside their being busy");
}

/* ---- the command -------------------------------------------------------------------------------
 */

static int prepare(struct command *command, struct sl_err *err)
{
    struct sl_engine_options *o = &command->options;
    const uint32_t n_sequences = command->n_texts_max + (command->prompt_rows > 0);
    const uint32_t behind = command->position + command->n_steps;

    o->n_sequences = n_sequences;
    if (o->context_tokens == 0)
        o->context_tokens = behind > command->prompt_rows ? behind : command->prompt_rows;
    if (o->context_tokens < behind || o->context_tokens < command->prompt_rows)
        return sl_err_set(err, -SL_EBUDGET, "--context %u is too short for these steps",
                          o->context_tokens);
    if (o->segment_tokens == 0)
        o->segment_tokens = command->n_texts_max + command->prompt_rows;
    command->random = command->seed + 1;
    command->kv = calloc(n_sequences + 1, sizeof(struct sl_kv_cache *));
    command->spans = calloc(n_sequences, sizeof(*command->spans));
    command->tokens = calloc(command->n_texts_max + command->prompt_rows, sizeof(*command->tokens));
    if (!command->kv || !command->spans || !command->tokens)
        return sl_err_set(err, -ENOMEM, "lists of texts: out of memory");
    return sl_config_read(&command->config, o->model, err);
}

static int make_texts(struct command *command, struct sl_err *err)
{
    int rc = 0;

    for (uint32_t i = 0; i < command->options.n_sequences && rc == 0; i++) {
        rc = sl_engine_sequence_create(command->engine, command->options.context_tokens,
                                       &command->kv[i], err);
        if (rc == 0 && i < command->n_texts_max)
            rc = sl_bench_past_fill(command->kv[i], &command->config, &command->engine->compute,
                                    command->position, command->seed + i, err);
    }
    return rc;
}

static int measure_all(struct command *command, struct sl_err *err)
{
    int rc = 0;

    sl_bench_print_header(&command->bench);
    command->progress = sl_progress_start(stderr, "sweeps", "steps");
    for (uint32_t i = 0; i < command->n_lists && rc == 0; i++) {
        struct level level = {.command = command, .n_texts = command->n_texts[i]};

        rc = measure(&level, err);
        if (rc == 0) {
            print_times(&level);
            print_experts(&level);
        }
    }
    sl_progress_end(&command->progress);
    return rc;
}

static int run(struct command *command, struct sl_err *err)
{
    int rc;

    if ((rc = prepare(command, err)) < 0 ||
        (rc = sl_open_engine(&command->engine, &command->options, err)) < 0 ||
        (rc = make_texts(command, err)) < 0 ||
        (rc = sl_bench_drive_open(&command->drive, command->engine, command->options.io, err)) <
            0 ||
        (rc = sl_bench_init(&command->bench, &command->engine->compute, PROBE_SECONDS,
                            command->json, err)) < 0 ||
        (rc = measure_all(command, err)) < 0)
        return rc;
    sl_print_resources(command->engine, &command->options.affinity, stderr);
    return 0;
}

int sl_bench_sweep(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"sequences", OPTION_SEQUENCES, "N,...", 0,
         "texts in lockstep: each number is measured (default 1,8,64,256,512)", 0},
        {"steps", OPTION_STEPS, "N", 0, "steps of one run (default 3)", 0},
        {"position", OPTION_POSITION, "N", 0,
         "texts begin behind N tokens, whose entries and keys are random ones (default 128)", 0},
        {"prompt-rows", OPTION_PROMPT_ROWS, "N", 0, "each step takes in N tokens of a prompt, too",
         0},
        {"seed", OPTION_SEED, "S", 0, "other random tokens (default 0)", 0},
        {"json", OPTION_JSON, NULL, 0, "one JSON object a line", 0},
        {0}};
    static const struct argp_child children[] = {{&sl_engine_argp, 0, "Running the model:", 1},
                                                 {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "MODEL",
        .doc =
            "Measures how fast the model in the folder MODEL advances many texts in lockstep, as "
            "batches do, beside the larger of what the drives and what the cores take for it.",
        .children = children};
    struct command command = {.n_steps = STEPS_DEFAULT, .position = POSITION_DEFAULT};
    struct sl_err err = {0};
    int rc;

    sl_command_parse(&argp, argc, argv, &command);
    rc = run(&command, &err);
    sl_bench_fini(&command.bench);
    sl_bench_drive_close(&command.drive);
    sl_engine_close(command.engine);
    free(command.kv);
    free(command.spans);
    free(command.tokens);
    return sl_command_status(rc, &err);
}
