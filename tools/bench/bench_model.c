/* sluice bench decode and prefill: how fast a model runs, where the time goes, and what the machine
 * would allow. Limits are measured between the runs, on the same threads. */
#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"
#include "daemon/engine/feed.h"
#include "tools/bench/bench.h"
#include "tools/bench/bench_past.h"
#include "tools/bench/bench_run.h"
#include "tools/cli/command_line.h"
#include "tools/cli/engine_options.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/progress.h"
#include "tools/cli/prompt.h"

#define PAST_TOKENS 16u /* before what decode measures, unless a position is given */
#define DECODE_TOKENS_DEFAULT 32u
#define PREFILL_TOKENS_DEFAULT 512u
#define PROBE_SECONDS 0.1

struct command {
    struct sl_engine_options options;
    const char *file;
    uint64_t seed;
    uint32_t n_tokens; /* of one run and sequence */
    uint32_t n_sequences;
    uint32_t n_runs_max; /* that are measured */
    uint32_t position;   /* where each run begins, behind a past that nobody computed; 0: none */
    bool prefill;
    bool cold; /* each run begins with an empty cache */
    bool warm; /* runs begin after as much of the same text as they take */
    bool json;

    struct sl_config config;
    int32_t *tokens; /* all that is fed, sequence by sequence; malloc's */
    uint32_t tokens_needed;
    struct sl_engine *engine;
    struct sl_kv_cache *kvs[SL_FEEDS_MAX]; /* (n_sequences) */
    struct sl_bench bench;
    struct sl_bench_drive drive;
    bool resident;
    uint32_t n_before; /* runs that do not count, before those that do */
    struct sl_bench_run runs[SL_BENCH_RUNS];
    uint32_t n_runs;                            /* that are through: all, unless interrupted */
    struct sl_expert_cache_counters begin, end; /* around the runs */
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
        command->n_sequences = sl_parse_count(state, "--sequences", value, SL_FEEDS_MAX);
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
        if (command->prefill && (command->cold || command->warm))
            argp_error(state, "--cold and --warm are for decode");
        if (command->prefill && command->n_sequences > 1)
            argp_error(state, "--sequences is for decode");
        if (command->cold && command->warm)
            argp_error(state, "--cold and --warm exclude each other");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* ---- setting up --------------------------------------------------------------------------------
 */

static int make_tokens(struct command *command, struct sl_err *err)
{
    struct sl_prompt_maker prompts = {0};
    struct sl_prompt text = {0};
    uint64_t state = command->seed + 1;
    int rc;

    if (!command->file) {
        command->tokens = calloc(command->tokens_needed, sizeof(*command->tokens));
        if (!command->tokens)
            return sl_err_set(err, -ENOMEM, "tokens: out of memory");
        for (uint32_t i = 0; i < command->tokens_needed; i++)
            command->tokens[i] =
                (int32_t)(sl_bench_random(&state) * UINT64_C(0x9e3779b97f4a7c15) >> 33) %
                (int32_t)command->config.vocab_size;
        return 0;
    }
    rc = sl_prompt_maker_open(&prompts, command->options.model, &command->config, 0, err);
    if (rc == 0)
        rc = sl_prompt_read(&prompts, NULL, command->file, &text, err);
    sl_prompt_maker_close(&prompts);
    if (rc == 0 && text.n_tokens < command->tokens_needed)
        rc = sl_err_set(err, -SL_EFORMAT, "%s: %u tokens, %u are needed", command->file,
                        text.n_tokens, command->tokens_needed);
    command->tokens = text.tokens;
    return rc;
}

static int prepare(struct command *command, struct sl_err *err)
{
    uint64_t needed = command->n_tokens, context;
    int rc;

    command->n_before = command->warm ? command->n_runs_max : 1;
    if (!command->prefill)
        needed =
            PAST_TOKENS + (uint64_t)command->n_tokens * (command->n_before + command->n_runs_max);
    if (needed * command->n_sequences > UINT32_MAX)
        return sl_err_set(err, -SL_EBUDGET, "too many tokens");
    command->tokens_needed = (uint32_t)needed * command->n_sequences;
    command->options.n_sequences = command->n_sequences;
    context = command->position ? (uint64_t)command->position + command->n_tokens : needed;
    if (command->options.context_tokens == 0)
        command->options.context_tokens = (uint32_t)context;
    if (context > command->options.context_tokens)
        return sl_err_set(err, -SL_EBUDGET, "%llu tokens do not fit --context %u",
                          (unsigned long long)context, command->options.context_tokens);
    rc = sl_config_read(&command->config, command->options.model, err);
    return rc < 0 ? rc : make_tokens(command, err);
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

/* Feeds tokens first .. first + n of each sequence: a token of all in each step, or one sequence
 * after the other, as many tokens as a step takes. */
static int feed(struct command *command, uint32_t first, uint32_t n, bool singly,
                struct sl_err *err)
{
    const struct sl_step_request hooks = {
        .on_logits = ignore_logits,
        .stop = sl_interrupt_stop(),
        .on_route = sl_bench_drive_note,
        .on_route_context = &command->drive,
    };
    const uint32_t stride = command->tokens_needed / command->n_sequences;
    struct sl_feed feeds[SL_FEEDS_MAX];
    int rc = 0;

    for (uint32_t i = 0; i < command->n_sequences; i++)
        feeds[i] = (struct sl_feed){.kv = command->kvs[i],
                                    .tokens = command->tokens + i * stride + first,
                                    .n_tokens = n,
                                    .logits = SL_LOGITS_LAST};
    for (uint32_t i = 0; !singly && rc == 0 && i < command->n_sequences; i++)
        rc = sl_feed_run(command->engine, &feeds[i], &hooks, err);
    for (uint32_t done = 0; singly && rc >= 0 && done < n; done++) {
        for (uint32_t i = 0; i < command->n_sequences; i++) {
            feeds[i].tokens = command->tokens + i * stride + first + done;
            feeds[i].n_tokens = 1;
            feeds[i].n_done = 0;
        }
        rc = sl_feed_step(command->engine, feeds, command->n_sequences, &hooks, err);
    }
    return rc;
}

static int feed_run(struct command *command, uint32_t index, struct sl_err *err)
{
    for (uint32_t i = 0; i < command->n_sequences; i++) {
        if (command->position)
            command->kvs[i]->n_tokens = command->position; /* what follows is written over */
        else if (command->prefill)
            sl_kv_cache_clear(command->kvs[i]);
    }
    return feed(command, command->prefill ? 0 : PAST_TOKENS + index * command->n_tokens,
                command->n_tokens, !command->prefill, err);
}

/* Has what lies before the runs in the KV caches. */
static int make_past(struct command *command, struct sl_err *err)
{
    int rc = 0;

    for (uint32_t i = 0; command->position && rc == 0 && i < command->n_sequences; i++)
        rc = sl_bench_past_fill(command->kvs[i], &command->config, &command->engine->compute,
                                command->position, command->seed + i, err);
    if (!command->position && !command->prefill)
        rc = feed(command, 0, PAST_TOKENS, false, err);
    return rc;
}

/* Tokens of all sequences in one run. */
static uint32_t run_tokens(const struct command *command)
{
    return command->n_tokens * command->n_sequences;
}

struct counted_run {
    struct command *command;
    uint32_t index;
};

static int work(void *context, struct sl_err *err)
{
    const struct counted_run *run = context;

    return feed_run(run->command, run->command->n_before + run->index, err);
}

static int measure(struct command *command, struct sl_err *err)
{
    const struct sl_bench_runner runner = {command->engine, &command->bench, &command->drive,
                                           command->cold};
    int rc = make_past(command, err);

    for (uint32_t i = 0; rc == 0 && i < command->n_before; i++)
        rc = feed_run(command, i, err);
    command->begin = sl_engine_counters(command->engine);
    while (rc == 0 && command->n_runs < command->n_runs_max) {
        struct counted_run run = {command, command->n_runs};

        rc = sl_bench_run_measure(&runner, work, &run, &command->runs[command->n_runs], err);
        if (rc < 0)
            break;
        command->end = sl_engine_counters(command->engine);
        command->n_runs++;
    }
    return rc;
}

/* ---- figures -----------------------------------------------------------------------------------
 */

/* Prints a value, or nothing if it could not be measured. */
static void print_value(const struct command *command, const char *what, const char *shape,
                        const char *unit, double value, double limit)
{
    char name[64];

    snprintf(name, sizeof(name), "%s%s%s", command->prefill ? "prefill" : "decode",
             what[0] ? ", " : "", what);
    if (value > 0 && limit > 0)
        sl_bench_print(&command->bench, name, shape, value, unit, limit);
}

/* A value and its limit, for each run. */
struct figure {
    double values[SL_BENCH_RUNS], limits[SL_BENCH_RUNS];
};

static void print_medians(const struct command *command, const char *what, const char *shape,
                          const char *unit, struct figure figure)
{
    print_value(command, what, shape, unit, sl_bench_median(figure.values, command->n_runs),
                sl_bench_median(figure.limits, command->n_runs));
}

/* Prints tokens a second: the median, the spread, and the bytes or multiplications that they amount
 * to. */
static void print_speed(const struct command *command)
{
    const uint32_t n_experts = command->config.num_hidden_layers * command->config.n_routed_experts;
    struct figure speed, rate;
    uint32_t slowest = 0, fastest = 0;
    double amount = 0;
    char shape[96], where[64] = "";

    for (uint32_t i = 0; i < command->n_runs; i++) {
        const struct sl_bench_run *run = &command->runs[i];
        struct sl_bench_totals t = sl_bench_run_totals(run);

        amount = (double)(command->prefill ? t.multiplications : t.read_bytes);
        speed.values[i] = run_tokens(command) * 1e9 / (double)run->ns;
        speed.limits[i] = run_tokens(command) * 1e9 / t.limit_ns;
        rate.values[i] = amount / (double)run->ns;
        rate.limits[i] = amount / t.limit_ns;
        slowest = run->ns > command->runs[slowest].ns ? i : slowest;
        fastest = run->ns < command->runs[fastest].ns ? i : fastest;
    }
    if (command->position)
        snprintf(where, sizeof(where), " at %u", command->position);
    if (command->n_sequences > 1)
        snprintf(where + strlen(where), sizeof(where) - strlen(where), " of %u texts",
                 command->n_sequences);
    if (command->resident)
        snprintf(shape, sizeof(shape), "%u tokens%s, all resident", command->n_tokens, where);
    else
        snprintf(shape, sizeof(shape), "%u tokens%s, %sroom for %u of %u", command->n_tokens, where,
                 command->cold ? "cold, " : "", sl_engine_slot_count(command->engine), n_experts);
    print_medians(command, "", shape, "tokens/s", speed);
    print_value(command, "slowest", shape, "tokens/s", speed.values[slowest],
                speed.limits[slowest]);
    print_value(command, "fastest", shape, "tokens/s", speed.values[fastest],
                speed.limits[fastest]);
    snprintf(shape, sizeof(shape), "%.4g %s a token", amount / run_tokens(command) * 1e-9,
             command->prefill ? "GMAC" : "GB");
    print_medians(command, command->prefill ? "multiplying" : "reading memory", shape,
                  command->prefill ? "GMAC/s" : "GB/s", rate);
}

/* Prints the phases' shares of the time. */
static void print_times(const struct command *command)
{
    const double per_token = 1e-6 / run_tokens(command);
    const uint32_t step_tokens = sl_engine_step_tokens_max(command->engine, SL_STEP_LARGE);
    const uint32_t segment = command->n_tokens < step_tokens ? command->n_tokens : step_tokens;
    const uint32_t n_steps =
        command->prefill ? (command->n_tokens + segment - 1) / segment : command->n_tokens;
    struct figure figure;
    uint64_t n_barriers = 0;
    char shape[64];

    for (int phase = SL_PHASE_OUTSIDE + 1; phase <= SL_PHASES; phase++) {
        for (uint32_t i = 0; i < command->n_runs; i++) {
            const struct sl_bench_run *run = &command->runs[i];
            struct sl_bench_totals t = sl_bench_run_totals(run);
            uint64_t ns = phase < SL_PHASES ? run->spent.of[phase].work_ns : t.wait_ns;

            n_barriers = t.n_barriers;
            figure.values[i] = (double)ns * per_token;
            figure.limits[i] = (double)run->ns * per_token;
        }
        if (phase < SL_PHASES) {
            print_medians(command, sl_phase_name((enum sl_phase)phase), "time", "ms/token", figure);
            continue;
        }
        snprintf(shape, sizeof(shape), "time, %.1f a layer",
                 (double)n_barriers / n_steps / command->config.num_hidden_layers);
        print_medians(command, "barriers", shape, "ms/token", figure);
    }
}

/* Prints how fast each kind of work ran, counting the waits in its own barriers: in what binds it,
 * bytes or multiplications. */
static void print_rates(const struct command *command)
{
    for (int phase = SL_PHASE_OUTSIDE + 1; phase < SL_PHASES; phase++) {
        double reading_ns = 0, multiplying_ns = 0;
        struct figure figure;
        bool in_bytes;

        for (uint32_t i = 0; i < command->n_runs; i++) {
            reading_ns += sl_bench_run_read_ns(&command->runs[i], phase);
            multiplying_ns += sl_bench_run_multiply_ns(&command->runs[i], phase);
        }
        in_bytes = reading_ns > multiplying_ns;
        for (uint32_t i = 0; i < command->n_runs; i++) {
            const struct sl_bench_run *run = &command->runs[i];
            uint64_t ns = run->spent.of[phase].work_ns + run->spent.of[phase].wait_ns;
            uint64_t amount =
                in_bytes ? run->spent.of[phase].read_bytes : run->spent.of[phase].multiplications;

            figure.values[i] = ns ? (double)amount / (double)ns : 0;
            figure.limits[i] = in_bytes ? run->read_rate : sl_bench_run_peak(run, phase);
        }
        print_medians(command, sl_phase_name((enum sl_phase)phase), "rate",
                      in_bytes ? "GB/s" : "GMAC/s", figure);
    }
}

/* Prints the time of a token beside the time that the drives alone would take for its misses. Where
 * the drives are the limit, the ratio shows the cost of everything else. */
static void print_drive(const struct command *command)
{
    struct figure time, rate;
    char shape[64];
    double gigabytes = 0;

    for (uint32_t i = 0; i < command->n_runs; i++) {
        const struct sl_bench_run *run = &command->runs[i];

        gigabytes += (double)run->missed_bytes / command->n_runs / run_tokens(command) * 1e-9;
        time.values[i] = (double)run->ns / run_tokens(command) * 1e-6;
        time.limits[i] = (double)run->missed_bytes / run->drive_rate / run_tokens(command) * 1e-6;
        rate.values[i] = (double)run->missed_bytes / (double)run->ns;
        rate.limits[i] = run->drive_rate;
    }
    snprintf(shape, sizeof(shape), "%.3g GB of misses a token", gigabytes);
    print_medians(command, "beside the drive", shape, "ms/token", time);
    print_medians(command, "reading the drive", shape, "GB/s", rate);
}

/* Prints how many of the requested experts the cache had or was loading, and how often a missing
 * one was read. */
static void print_experts(const struct command *command)
{
    const double n_tokens = (double)run_tokens(command) * command->n_runs;
    struct sl_expert_cache_counters c;
    char shape[64], text[SL_SIZE_TEXT_BYTES];

    sl_metrics_difference(&sl_expert_cache_metrics, &command->begin, &command->end, &c);
    snprintf(shape, sizeof(shape), "%s read a token",
             sl_size_format((uint64_t)((double)c.read_bytes / n_tokens), text));
    print_value(command, "experts found", shape, "a token",
                (double)(c.n_hits + c.n_prefetch_hits) / n_tokens, (double)c.n_requests / n_tokens);
    print_value(command, "reads of an expert", "in each step that misses it", "reads",
                (double)c.n_loads, (double)(c.n_requests - c.n_hits));
}

/* ---- the commands ------------------------------------------------------------------------------
 */

static int create_sequences(struct command *command, struct sl_err *err)
{
    int rc = 0;

    for (uint32_t i = 0; rc == 0 && i < command->n_sequences; i++)
        rc = sl_engine_sequence_create(command->engine, command->options.context_tokens,
                                       &command->kvs[i], err);
    return rc;
}

static int run(struct command *command, struct sl_err *err)
{
    int rc;

    if ((rc = sl_open_engine(&command->engine, &command->options, err)) < 0 ||
        (rc = create_sequences(command, err)) < 0 || (rc = load_experts(command, err)) < 0 ||
        (!command->resident && (rc = sl_bench_drive_open(&command->drive, command->engine,
                                                         command->options.io, err)) < 0) ||
        (rc = sl_bench_init(&command->bench, &command->engine->compute, PROBE_SECONDS,
                            command->json, err)) < 0 ||
        ((rc = measure(command, err)) < 0 && (rc != -ECANCELED || command->n_runs == 0)))
        return rc;
    sl_bench_print_header(&command->bench);
    print_speed(command);
    print_times(command);
    print_rates(command);
    print_drive(command);
    print_experts(command);
    sl_print_resources(command->engine, &command->options.affinity, stderr);
    return rc;
}

static int bench_model(int argc, char **argv, bool prefill)
{
    static const struct argp_option options[] = {
        {"tokens", OPTION_TOKENS, "N", 0, "tokens of one run (default: decode 32, prefill 512)", 0},
        {"runs", OPTION_RUNS, "N", 0, "measure so many runs, 5 at most (default 5)", 0},
        {"sequences", OPTION_SEQUENCES, "N", 0,
         "decode: so many texts at a time, each gets a token in each step (default 1)", 0},
        {"position", OPTION_POSITION, "N", 0,
         "begin behind N tokens, whose entries and keys are random ones: they are not computed", 0},
        {"file", 'f', "FILE", 0, "take the tokens from this text; - is standard input", 0},
        {"seed", OPTION_SEED, "S", 0, "other random tokens (default 0)", 0},
        {"cold", OPTION_COLD, NULL, 0, "decode: begin each run with an empty cache", 0},
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
                         "one after the other, and where the time goes.",
        .children = children};
    struct command command = {.prefill = prefill,
                              .n_sequences = 1,
                              .n_runs_max = SL_BENCH_RUNS,
                              .n_tokens = prefill ? PREFILL_TOKENS_DEFAULT : DECODE_TOKENS_DEFAULT};
    struct sl_err err = {0};
    int rc;

    sl_command_parse(&argp, argc, argv, &command);
    rc = prepare(&command, &err);
    if (rc == 0)
        rc = run(&command, &err);
    sl_bench_fini(&command.bench);
    sl_bench_drive_close(&command.drive);
    sl_engine_close(command.engine);
    free(command.tokens);
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
