/* sluice plan: predicts how a machine would run a model, from its config alone. Everything is
 * computed (tools/plan/cost.h) except the speeds that --probe measures. */
#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cache/cache_replay.h"
#include "cache/expert_cache.h"
#include "core/base/json.h"
#include "core/base/size.h"
#include "core/model/forward.h"
#include "daemon/engine/engine.h"
#include "tools/cli/command_line.h"
#include "tools/cli/commands.h"
#include "tools/cli/config_file.h"
#include "tools/cli/engine_options.h"
#include "tools/cli/expert_files.h"
#include "tools/cli/json_lines.h"
#include "tools/cli/time_of_day.h"
#include "tools/plan/plan_batch.h"
#include "tools/plan/plan_night.h"
#include "tools/plan/plan_sizes.h"
#include "tools/plan/plan_probe.h"

#define CONTEXT_TOKENS_DEFAULT 8192u

/* A trace is too short to be taken for more texts than leave it so many steps. */
#define REPLAY_STEPS_MIN 8u
#define TOKENS_MAX (1u << 20)

struct command {
    const char *model;      /* a config.json, or the folder that holds it */
    const char *drive;      /* file to probe */
    sl_io_open_fn *open_io; /* to probe with; NULL: the machine's */
    const char *trace;
    uint64_t ram_bytes, cache_bytes, kv_bytes, kv_disk_bytes;
    enum sl_dense_mode dense_mode;
    uint32_t n_cores;
    uint32_t context_tokens;
    uint32_t segment_tokens; /* at most; 0: as many as memory allows */
    bool even;               /* the cache finds what its share of the experts is */
    bool probe;
    bool with_draft;
    bool json;
    struct sl_machine_speeds speeds; /* 0 where not given */

    /* A batch: of documents that are alike, or the input of one. */
    uint32_t n_documents, n_prompt_tokens, n_answer_tokens;
    const char *batch, *until;
    int until_second;
    struct sl_night_document *documents; /* (n_documents) */

    struct sl_config config;
    struct sl_dense_cost dense;
    struct sl_weight_sizes dense_sizes;
    struct sl_draft draft;    /* with --with-draft */
    struct sl_trace replayed; /* with --trace */
};

enum {
    OPTION_RAM = 256,
    OPTION_CACHE,
    OPTION_SSD,
    OPTION_DRAM,
    OPTION_KV,
    OPTION_KV_DISK,
    OPTION_DENSE,
    OPTION_BATCH,
    OPTION_DOCUMENTS,
    OPTION_PROMPT_TOKENS,
    OPTION_ANSWER_TOKENS,
    OPTION_UNTIL,
    OPTION_CORES,
    OPTION_CONTEXT,
    OPTION_SEGMENT,
    OPTION_PROBE,
    OPTION_DRIVE,
    OPTION_IO,
    OPTION_CURVE,
    OPTION_TRACE,
    OPTION_WITH_DRAFT,
    OPTION_JSON,
};

/* Parses a rate such as "12G/s" or "900M" to 10^9 bytes a second. Unlike sizes, rates are in powers
 * of 1000 everywhere. */
static double parse_rate(struct argp_state *state, const char *option, const char *text)
{
    static const char units[] = "MGT";
    const char *end = "", *unit;
    double value = 0;

    sl_number_parse(text, &value, &end);
    value *= 1e-3;
    unit = *end ? strchr(units, *end) : NULL;

    for (const char *u = units; unit && u < unit; u++)
        value *= 1000;
    if (unit)
        end += 1 + (end[1] == 'B');
    if (!unit || (*end && strcmp(end, "/s") != 0) || !(value > 0 && value < 1e6))
        argp_error(state, "%s takes bytes a second such as 12G/s or 900M/s, not \"%s\"", option,
                   text);
    return value;
}

static void check_batch(const struct command *command, struct argp_state *state)
{
    if (command->batch && (command->n_documents > 0 || command->n_prompt_tokens > 0))
        argp_error(state, "--batch has the documents that --documents would make");
    if (command->batch && command->model && sl_config_file_is(command->model))
        argp_error(state, "--batch needs a MODEL with a tokenizer, not a config alone");
    if (command->n_documents > 0 &&
        (command->n_prompt_tokens == 0 || command->n_answer_tokens == 0))
        argp_error(state, "--documents needs --prompt-tokens and --answer-tokens");
    if (!command->batch && command->n_documents == 0 &&
        (command->n_prompt_tokens > 0 || command->n_answer_tokens > 0 || command->until))
        argp_error(state, "--prompt-tokens, --answer-tokens and --until are for --documents or "
                          "--batch");
}

static void check_arguments(const struct command *command, struct argp_state *state)
{
    if (!command->model)
        argp_error(state, "CONFIG.json or MODEL is missing");
    if (!command->probe && (command->speeds.drive == 0 || command->speeds.memory == 0))
        argp_error(state, "give --ssd and --dram, or --probe to measure this machine");
    if (command->probe && command->speeds.drive == 0 && !command->drive &&
        sl_config_file_is(command->model))
        argp_error(state, "--probe needs a drive: give --drive FILE, or --ssd");
    if (command->even && command->trace)
        argp_error(state, "--curve and --trace exclude each other");
    check_batch(command, state);
}

static const struct sl_word curve_words[] = {{"flash", false}, {"even", true}, {0}};

static error_t parse_batch_option(int key, char *value, struct argp_state *state)
{
    struct command *command = state->input;

    switch (key) {
    case OPTION_BATCH:
        command->batch = value;
        return 0;
    case OPTION_DOCUMENTS:
        command->n_documents = sl_parse_count(state, "--documents", value, 1u << 20);
        return 0;
    case OPTION_PROMPT_TOKENS:
        command->n_prompt_tokens = sl_parse_count(state, "--prompt-tokens", value, TOKENS_MAX);
        return 0;
    case OPTION_ANSWER_TOKENS:
        command->n_answer_tokens = sl_parse_count(state, "--answer-tokens", value, TOKENS_MAX);
        return 0;
    case OPTION_UNTIL:
        command->until = value;
        command->until_second = sl_parse_time_of_day(state, "--until", value);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct command *command = state->input;

    switch (key) {
    case OPTION_RAM:
        command->ram_bytes = sl_parse_size(state, "--ram", value);
        return 0;
    case OPTION_CACHE:
        command->cache_bytes = sl_parse_size(state, "--cache", value);
        return 0;
    case OPTION_SSD:
        command->speeds.drive = parse_rate(state, "--ssd", value);
        return 0;
    case OPTION_DRAM:
        command->speeds.memory = parse_rate(state, "--dram", value);
        return 0;
    case OPTION_KV:
        command->kv_bytes = sl_parse_size(state, "--kv", value);
        return 0;
    case OPTION_KV_DISK:
        command->kv_disk_bytes = sl_parse_size(state, "--kv-disk", value);
        return 0;
    case OPTION_DENSE:
        command->dense_mode = sl_parse_dense(state, value);
        return 0;
    case OPTION_CORES:
        command->n_cores = sl_parse_count(state, "--cores", value, SL_POOL_THREADS_MAX);
        return 0;
    case OPTION_CONTEXT:
        command->context_tokens = sl_parse_count(state, "--context", value, TOKENS_MAX);
        return 0;
    case OPTION_SEGMENT:
        command->segment_tokens = sl_parse_count(state, "--segment", value, TOKENS_MAX);
        return 0;
    case OPTION_PROBE:
        command->probe = true;
        return 0;
    case OPTION_DRIVE:
        command->drive = value;
        return 0;
    case OPTION_IO:
        command->open_io = sl_parse_io(state, value);
        return 0;
    case OPTION_CURVE:
        command->even = sl_parse_word(state, "--curve", value, curve_words);
        return 0;
    case OPTION_WITH_DRAFT:
        command->with_draft = true;
        return 0;
    case OPTION_TRACE:
        command->trace = value;
        return 0;
    case OPTION_JSON:
        command->json = true;
        return 0;
    case ARGP_KEY_ARG:
        if (command->model)
            argp_error(state, "one CONFIG.json or MODEL, not \"%s\" as well", value);
        command->model = sl_parse_model(value);
        return 0;
    case ARGP_KEY_END:
        check_arguments(command, state);
        return 0;
    default:
        return parse_batch_option(key, value, state);
    }
}

/* ---- what is given -----------------------------------------------------------------------------
 */

/* Finds the machine's speeds. Those given as options have precedence over measured ones. */
static int find_speeds(struct command *command, struct sl_err *err)
{
    const struct sl_multiplications core = sl_plan_core_rates();
    struct sl_machine_speeds *s = &command->speeds;
    struct sl_machine_speeds measured = *s;
    bool disturbed = false;
    int rc = 0;

    if (!command->probe) {
        s->multiply = (struct sl_multiplications){.int8 = core.int8 * command->n_cores,
                                                  .bf16 = core.bf16 * command->n_cores,
                                                  .f32 = core.f32 * command->n_cores};
        return 0;
    }
    if (s->drive == 0)
        rc = sl_plan_probe_drive(command->drive ? command->drive : command->model,
                                 sl_choose_io(command->open_io), &s->drive, err);
    if (rc == 0)
        rc = sl_plan_probe_cores(command->n_cores, &measured, &disturbed, err);
    if (disturbed)
        fprintf(stderr, "note: other work disturbed the cores while they were measured\n");
    s->multiply = measured.multiply;
    if (s->memory == 0)
        s->memory = measured.memory;
    return rc;
}

static int read_trace(struct command *command, struct sl_err *err)
{
    const struct sl_config *c = &command->config;
    const struct sl_trace_shape *shape = &command->replayed.shape;
    int rc;

    if (!command->trace)
        return 0;
    rc = sl_trace_read(&command->replayed, command->trace, err);
    if (rc < 0)
        return rc;
    if (shape->num_hidden_layers != c->num_hidden_layers ||
        shape->n_routed_experts != c->n_routed_experts ||
        shape->n_per_token != c->num_experts_per_tok)
        return sl_err_set(err, -SL_EFORMAT,
                          "%s: of %u layers with %u experts, %u for each token; the model has %u, "
                          "%u and %u",
                          command->trace, shape->num_hidden_layers, shape->n_routed_experts,
                          shape->n_per_token, c->num_hidden_layers, c->n_routed_experts,
                          c->num_experts_per_tok);
    return 0;
}

/* ---- memory ------------------------------------------------------------------------------------
 */

static struct sl_memory_case memory_case(const struct command *command)
{
    return (struct sl_memory_case){
        .ram_bytes = command->ram_bytes,
        .cache_bytes = command->cache_bytes,
        .kv_bytes = command->kv_bytes,
        .dense = &command->dense_sizes,
        .draft = command->with_draft ? &command->draft : NULL,
        .dense_mode = command->dense_mode,
        .n_threads = command->n_cores,
        .segment_tokens = command->segment_tokens,
    };
}

/* Makes the plan that an engine would make for a checkpoint, with room for sequences at their
 * longest. */
static int plan_memory(const struct command *command, uint32_t n_sequences, uint32_t context_tokens,
                       struct sl_memory_plan *ret_plan, struct sl_err *err)
{
    struct sl_memory_case what = memory_case(command);
    int rc;

    what.context_tokens = context_tokens;
    what.n_sequences = n_sequences;
    rc = sl_plan_memory(&command->config, &what, ret_plan, err);
    if (rc == 0 && !ret_plan->kv_is_full)
        rc = sl_err_set(err, -SL_EBUDGET, "%u sequences of %u tokens take more than --kv",
                        n_sequences, context_tokens);
    return rc;
}

/* Returns the longest prompt that fits into one step, with room for its own context; 0 if none
 * does. */
static uint32_t longest_segment(const struct command *command)
{
    uint32_t low = 0, high = command->config.max_position_embeddings;
    struct sl_memory_plan plan;

    while (low < high) {
        uint32_t middle = high - (high - low) / 2;

        if (plan_memory(command, 1, middle, &plan, NULL) == 0 && plan.segment_tokens == middle)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* ---- figures -----------------------------------------------------------------------------------
 */

static const char *curve_name(const struct command *command)
{
    return command->trace
               ? "the trace's experts, replayed with the default policy for as many texts"
           : command->even ? "even routing: all experts are chosen alike"
                           : "V4-Flash's as published: some experts are chosen more often, by all "
                             "texts alike";
}

/* Takes the trace for so many texts. Returns 1, or 0 where it is too short for that. */
static int replay(const struct command *command, uint32_t n_slots, uint32_t n_sequences,
                  double *ret_rate, struct sl_err *err)
{
    const struct sl_replay_steps steps = {.n_sequences = n_sequences};
    const struct sl_policy_ops *policy;
    struct sl_slot_counters counters;
    struct sl_replay_plan *plan;
    int rc;

    if (command->replayed.n_tokens / n_sequences < REPLAY_STEPS_MIN)
        return 0;
    if ((rc = sl_policy_find(&policy, NULL, err)) < 0 ||
        (rc = sl_replay_plan_create(&plan, &command->replayed, &steps, err)) < 0)
        return rc;
    rc = sl_replay_run(plan, policy, n_slots, &counters, err);
    sl_replay_plan_destroy(plan);
    if (rc < 0)
        return rc;
    *ret_rate = 1 - (double)counters.n_loads / (double)counters.n_requests;
    return 1;
}

/* Finds what the cache has of a step's experts: of n_sequences texts that decode, or with one of
 * them of a prompt of n_tokens. All rows go by the same assumption. */
static int find_hit_rate(const struct command *command, const struct sl_memory_plan *plan,
                         uint32_t n_sequences, uint32_t n_tokens, double *ret_rate,
                         struct sl_err *err)
{
    const uint64_t n_slots = plan->need_bytes[SL_MEMORY_CACHE] / plan->slot_bytes;
    int rc = 0;

    if (command->trace && n_tokens == 1)
        rc = replay(command, (uint32_t)n_slots, n_sequences, ret_rate, err);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    *ret_rate =
        sl_cost_found(&command->config, n_slots, (double)n_sequences * n_tokens, command->even);
    return 0;
}

static void print_memory(const struct command *command, const struct sl_memory_plan *plan)
{
    const struct sl_machine_speeds *s = &command->speeds;
    char slow[SL_SLOW_TEXT_BYTES];
    json_t *object;

    if (!command->json) {
        sl_memory_plan_print(plan, stdout);
        if (sl_memory_plan_is_slow(plan))
            printf("  slow: %s\n",
                   sl_memory_plan_tell_slow(plan, (uint64_t)(s->drive * 1e9), slow));
        printf("machine%s\n  drive %.2f GB/s, memory %.1f GB/s, %u core%s: %.0f int8, %.0f BF16, "
               "%.0f float32 10^9 multiplications a second\n",
               command->probe ? " (measured but for what was given)" : "", s->drive, s->memory,
               command->n_cores, sl_plural(command->n_cores), s->multiply.int8, s->multiply.bf16,
               s->multiply.f32);
        printf("found in the cache\n  %s\n  from some %u texts on: of the share of each layer that "
               "is pinned\n\n",
               curve_name(command), SL_SWEEP_ROWS);
        printf("%-8s %9s %9s %9s %7s %12s %12s %12s  %s\n", "", "sequences", "tokens", "cache",
               "found", "drive GB/tok", "RAM GB/tok", "tokens/s", "bound by");
        return;
    }
    object = json_pack("{s:s, s:I, s:I, s:I, s:f, s:f, s:i, s:f, s:f, s:f, s:s}", "what", "machine",
                       "budget_bytes", (json_int_t)plan->budget_bytes, "dense_bytes",
                       (json_int_t)plan->need_bytes[SL_MEMORY_WEIGHTS], "expert_bytes",
                       (json_int_t)sl_cost_expert_bytes(&command->config), "drive_gb_per_s",
                       s->drive, "memory_gb_per_s", s->memory, "cores", (int)command->n_cores,
                       "int8_gmac_per_s", s->multiply.int8, "bf16_gmac_per_s", s->multiply.bf16,
                       "f32_gmac_per_s", s->multiply.f32, "curve", curve_name(command));
    sl_json_line_print(object);
}

static void print_misfit(const struct command *command, const char *what, uint32_t n_sequences,
                         const char *why)
{
    json_t *object;

    if (!command->json) {
        printf("%-8s %9u%s does not fit: %s\n", what, n_sequences,
               strcmp(what, "decode") == 0 ? " and more" : "", why);
        return;
    }
    object = json_pack("{s:s, s:i, s:b, s:s}", "what", what, "sequences", (int)n_sequences, "fits",
                       0, "why", why);
    sl_json_line_print(object);
}

static void print_cost(const struct command *command, const char *what,
                       const struct sl_memory_plan *plan, const struct sl_cost_case *step,
                       const struct sl_cost *cost)
{
    static const char *const limits[] = {"drive", "memory", "multiplication"};
    const double n_tokens = (double)step->n_sequences * step->n_tokens;
    const uint64_t cache_bytes = plan->need_bytes[SL_MEMORY_CACHE];
    char text[SL_SIZE_TEXT_BYTES];
    json_t *object;

    if (!command->json) {
        printf("%-8s %9u %9u %9s %5.1f %% %12.3f %12.3f %12.2f  %s\n", what, step->n_sequences,
               step->n_tokens, sl_size_format(cache_bytes, text), 100 * step->hit_rate,
               cost->drive_bytes / 1e9 / n_tokens, cost->memory_bytes / 1e9 / n_tokens,
               n_tokens * 1e9 / cost->step_ns, limits[cost->limit]);
        return;
    }
    object = json_pack(
        "{s:s, s:i, s:b, s:i, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:s}", "what", what,
        "sequences", (int)step->n_sequences, "fits", 1, "tokens", (int)step->n_tokens,
        "cache_bytes", (json_int_t)cache_bytes, "hit_rate", step->hit_rate, "experts",
        cost->n_experts, "drive_bytes_per_token", cost->drive_bytes / n_tokens,
        "memory_bytes_per_token", cost->memory_bytes / n_tokens, "drive_s", cost->drive_ns * 1e-9,
        "memory_s", cost->memory_ns * 1e-9, "multiply_s", cost->multiply_ns * 1e-9, "step_s",
        cost->step_ns * 1e-9, "tokens_per_s", n_tokens * 1e9 / cost->step_ns, "limit",
        limits[cost->limit]);
    sl_json_line_print(object);
}

/* Plans decode, with each context full but for the token that is made. Returns 1, or 0 if so many
 * sequences do not fit. */
static int plan_decode(const struct command *command, uint32_t n_sequences, struct sl_err *err)
{
    struct sl_cost_case step = {
        .n_sequences = n_sequences, .n_tokens = 1, .past_tokens = command->context_tokens - 1};
    struct sl_memory_plan plan;
    struct sl_cost cost;
    struct sl_err misfit;
    int fits = plan_memory(command, n_sequences, command->context_tokens, &plan, &misfit);
    int rc;

    if (n_sequences == 1)
        print_memory(command, &plan);
    if (fits < 0) {
        print_misfit(command, "decode", n_sequences, misfit.message);
        return 0;
    }
    rc = find_hit_rate(command, &plan, n_sequences, 1, &step.hit_rate, err);
    if (rc < 0)
        return rc;
    step.streamed_bytes = plan.streamed_bytes;
    step.even = command->even;
    sl_cost_predict(&command->config, &command->dense, &step, &command->speeds, &cost);
    print_cost(command, "decode", &plan, &step, &cost);
    return 1;
}

/* Plans prefill of one document that is as long as a step. */
static int plan_prefill(const struct command *command, struct sl_err *err)
{
    struct sl_cost_case step = {.n_sequences = 1, .n_tokens = longest_segment(command)};
    struct sl_memory_plan plan;
    struct sl_cost cost;
    int rc;

    if (step.n_tokens == 0) {
        print_misfit(command, "prefill", 1, "not even one token");
        return 0;
    }
    if ((rc = plan_memory(command, 1, step.n_tokens, &plan, err)) < 0 ||
        (rc = find_hit_rate(command, &plan, 1, step.n_tokens, &step.hit_rate, err)) < 0)
        return rc;
    step.streamed_bytes = plan.streamed_bytes;
    step.even = command->even;
    sl_cost_predict(&command->config, &command->dense, &step, &command->speeds, &cost);
    print_cost(command, "prefill", &plan, &step, &cost);
    return 0;
}

/* Lists the batch's documents before anything is printed, so that a faulty file is all that is
 * told. */
static int list_documents(struct command *command, struct sl_err *err)
{
    const struct sl_night_document alike = {.n_prompt = command->n_prompt_tokens,
                                            .n_answer = command->n_answer_tokens};

    if (command->batch)
        return sl_plan_read_batch(command->model, command->batch, command->n_answer_tokens,
                                  &command->documents, &command->n_documents, err);
    return command->n_documents > 0
               ? sl_plan_make_batch(command->n_documents, alike, &command->documents, err)
               : 0;
}

static int plan_night(const struct command *command, struct sl_err *err)
{
    struct sl_plan_night night = {
        .config = &command->config,
        .dense = &command->dense,
        .speeds = &command->speeds,
        .memory = memory_case(command),
        .kv_disk_bytes = command->kv_disk_bytes,
        .even = command->even,
        .json = command->json,
        .documents = command->documents,
        .n_documents = command->n_documents,
        .until = command->until,
    };
    const time_t now = time(NULL);

    if (command->until)
        night.until_ns = 1e9 * difftime(sl_next_time_of_day(command->until_second, now), now);
    return sl_plan_night_print(&night, err);
}

/* A folder may have tensors, which know the experts' dtype better than config.json. */
static void settle_experts(struct command *command)
{
    struct sl_expert_files files;

    if (sl_config_file_is(command->model))
        return;
    if (sl_expert_files_open(&files, command->model, NULL) == 0)
        command->config.expert_dtype = files.config.expert_dtype;
    sl_expert_files_close(&files);
}

static int run(struct command *command, struct sl_err *err)
{
    static const uint32_t sequences[] = {1, 8, 16, 32, 64, 128, 256, 512};
    const uint32_t longest = CONTEXT_TOKENS_DEFAULT;
    int rc;

    rc = sl_config_file_read(command->model, &command->config, NULL, err);
    if (rc < 0)
        return rc;
    settle_experts(command);
    if (command->context_tokens > command->config.max_position_embeddings)
        return sl_err_set(err, -SL_EBUDGET,
                          "--context %u exceeds the model's max_position_embeddings, %u",
                          command->context_tokens, command->config.max_position_embeddings);
    if (command->context_tokens == 0)
        command->context_tokens = command->config.max_position_embeddings < longest
                                      ? command->config.max_position_embeddings
                                      : longest;
    if ((rc = list_documents(command, err)) < 0 || (rc = read_trace(command, err)) < 0 ||
        (rc = sl_plan_dense(&command->config, command->with_draft ? &command->draft : NULL,
                            &command->dense, &command->dense_sizes, err)) < 0 ||
        (rc = find_speeds(command, err)) < 0)
        return rc;
    /* Larger numbers of sequences are tried only while they fit. */
    rc = 1;
    for (size_t i = 0; i < SL_ARRAY_LEN(sequences) && rc == 1; i++)
        rc = plan_decode(command, sequences[i], err);
    if (rc >= 0)
        rc = plan_prefill(command, err);
    return rc == 0 && command->documents ? plan_night(command, err) : rc;
}

int sl_cmd_plan(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"ram", OPTION_RAM, "SIZE", 0,
         "memory for everything together (default: what is available)", 0},
        {"cache", OPTION_CACHE, "SIZE", 0, "of it for experts (default: what is left)", 0},
        {"kv", OPTION_KV, "SIZE", 0,
         "of it for KV caches (default: for all sequences at their longest)", 0},
        {"dense", OPTION_DENSE, "resident|stream|auto", 0,
         "which dense weights stay in memory, as for the commands that run a model", 0},
        {"ssd", OPTION_SSD, "RATE", 0, "what the drives deliver together, such as 12G/s", 0},
        {"dram", OPTION_DRAM, "RATE", 0, "what all cores together read from memory", 0},
        {"cores", OPTION_CORES, "N", 0,
         "cores, each as fast as a Zen 4 core unless --probe measures (default: as many as here)",
         0},
        {"context", OPTION_CONTEXT, "TOKENS", 0, "of each sequence that is decoded (default 8192)",
         0},
        {"segment", OPTION_SEGMENT, "TOKENS", 0,
         "of the prompt, which goes through at once (default: as long as memory allows)", 0},
        {"probe", OPTION_PROBE, NULL, 0,
         "measure this machine: memory, multiplications, and the drive that MODEL is on", 0},
        {"drive", OPTION_DRIVE, "FILE", 0, "the drive that holds this file instead; for --probe",
         0},
        {"io", OPTION_IO, "uring|threads", 0,
         "how it is read (default uring, or threads where io_uring is not available)", 0},
        {"curve", OPTION_CURVE, "flash|even", 0,
         "how often experts are chosen: as V4-Flash's published curve of what caches find has it "
         "(default), or all alike",
         0},
        {"trace", OPTION_TRACE, "FILE", 0, "or what a replay of this trace finds", 0},
        {"with-draft", OPTION_WITH_DRAFT, NULL, 0,
         "with the model's draft in memory, as --draft loads it; the speeds are without", 0},
        {"batch", OPTION_BATCH, "IN.jsonl", 0,
         "plan this batch, too: how many texts at a time, sweeps, hours, and what binds", 0},
        {"documents", OPTION_DOCUMENTS, "N", 0, "or one of N documents that are alike", 0},
        {"prompt-tokens", OPTION_PROMPT_TOKENS, "N", 0, "of each document", 0},
        {"answer-tokens", OPTION_ANSWER_TOKENS, "N", 0, "that each gets at most", 0},
        {"kv-disk", OPTION_KV_DISK, "SIZE", 0,
         "let KV caches of the batch be on disk, as far as memory has no room and it pays", 0},
        {"until", OPTION_UNTIL, "HH:MM", 0, "tell how much is done by then, beginning now", 0},
        {"json", OPTION_JSON, NULL, 0, "one JSON object a line", 0},
        {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "CONFIG.json|MODEL",
        .doc = "Tells from the sizes of a model, packed, and the speeds of a machine what fits in "
               "memory, what the cache would find, and how fast it would decode, alone and in "
               "batches, and take in a prompt; and what binds each. Upper bounds rather than "
               "promises."};
    struct command command = {.n_cores = sl_choose_affinity(0).n_threads};
    struct sl_err err = {0};
    int rc;

    sl_command_parse(&argp, argc, argv, &command);
    rc = run(&command, &err);
    sl_trace_fini(&command.replayed);
    free(command.documents);
    return sl_command_status(rc, &err);
}
