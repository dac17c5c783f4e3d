/* sluice trace replay: computes how caches of other sizes and policies would have served a recorded
 * run. */
#include <argp.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cache/expert_cache.h"
#include "cache/cache_replay.h"
#include "core/base/json.h"
#include "core/base/size.h"
#include "tools/cli/command_line.h"
#include "tools/cli/engine_options.h"
#include "tools/cli/json_lines.h"
#include "tools/trace/trace_commands.h"

#define LIST_MAX 32u

/* A cache's size as it was given: one of the two is not 0. */
struct cache_size {
    const char *text;
    double share;     /* of all experts */
    double n_experts; /* or bytes, if it is more than all */
    uint64_t bytes;
};

struct command {
    const char *path;
    struct sl_replay_steps steps;
    bool json;
    struct cache_size sizes[LIST_MAX];
    const struct sl_policy_ops *ops[LIST_MAX]; /* NULL: the optimum */
    uint32_t n_sizes, n_policies;

    struct sl_trace trace;
    uint64_t n_tokens; /* that are replayed */
    uint64_t slot_bytes;
};

enum { OPTION_CACHE = 256, OPTION_POLICY, OPTION_SEGMENT, OPTION_SEQUENCES, OPTION_JSON };

/* ---- options -----------------------------------------------------------------------------------
 */

/* Parses a cache's size: "12.5%" of all experts, "36" experts, or as many as "24G" hold. */
static void add_size(struct command *command, const char *text, struct argp_state *state)
{
    struct cache_size size = {.text = text};
    const char *end = text;
    double number = 0;

    if (sl_number_parse(text, &number, &end) == 0 && strcmp(end, "%") == 0 && number <= 100)
        size.share = number / 100;
    else if (end > text && *end == 0 && number < 9.2e18)
        size.n_experts = number;
    else if (sl_size_parse(text, &size.bytes) < 0)
        number = 0;
    if (!(number > 0))
        argp_error(
            state,
            "--cache takes sizes (24G), numbers of experts (36) or shares (11%%), not \"%s\"",
            text);
    command->sizes[command->n_sizes++] = size;
}

static void add_policy(struct command *command, const char *text, struct argp_state *state)
{
    const struct sl_policy_ops *ops = NULL;

    if (strcmp(text, "optimum") != 0 && sl_policy_find(&ops, text, NULL) < 0)
        argp_error(state, "--policy takes some of " SL_POLICY_NAMES ", optimum, not \"%s\"", text);
    command->ops[command->n_policies++] = ops;
}

/* Calls `add` for each part between commas, which it cuts `text` into. */
static void parse_list(struct command *command, char *text, const char *option,
                       void (*add)(struct command *command, const char *text,
                                   struct argp_state *state),
                       struct argp_state *state)
{
    uint32_t n = 0;
    char *part;

    while ((part = strsep(&text, ","))) {
        if (n++ == LIST_MAX)
            argp_error(state, "%s takes up to %u", option, LIST_MAX);
        add(command, part, state);
    }
}

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    static char sizes_default[] = "5.5%,11%,22%,44%", policies_default[] = "frequency,lru,optimum";
    struct command *command = state->input;

    switch (key) {
    case OPTION_CACHE:
        command->n_sizes = 0;
        parse_list(command, value, "--cache", add_size, state);
        return 0;
    case OPTION_POLICY:
        command->n_policies = 0;
        parse_list(command, value, "--policy", add_policy, state);
        return 0;
    case OPTION_SEGMENT:
        command->steps.segment_tokens = strcmp(value, "recorded") == 0
                                            ? 0
                                            : sl_parse_count(state, "--segment", value, 1u << 24);
        return 0;
    case OPTION_SEQUENCES:
        command->steps.n_sequences = sl_parse_count(state, "--sequences", value, 1u << 24);
        return 0;
    case OPTION_JSON:
        command->json = true;
        return 0;
    case ARGP_KEY_ARG:
        if (command->path)
            argp_error(state, "one TRACE, not \"%s\" as well", value);
        command->path = value;
        return 0;
    case ARGP_KEY_END:
        if (!command->path)
            argp_error(state, "TRACE is missing");
        if (command->n_sizes == 0)
            parse_list(command, sizes_default, "--cache", add_size, state);
        if (command->n_policies == 0)
            parse_list(command, policies_default, "--policy", add_policy, state);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static uint32_t expert_count(const struct command *command)
{
    return command->trace.shape.num_hidden_layers * command->trace.shape.n_routed_experts;
}

/* Returns how many experts a cache holds: at most all. */
static int slot_count(const struct command *command, const struct cache_size *size,
                      uint32_t *ret_n_slots, struct sl_err *err)
{
    const uint32_t least = command->trace.shape.n_per_token, most = expert_count(command);
    uint64_t n_slots = size->bytes / command->slot_bytes;

    if (size->share > 0)
        n_slots = (uint64_t)(size->share * most + 0.5);
    else if (size->n_experts > most)
        n_slots = (uint64_t)size->n_experts / command->slot_bytes;
    else if (size->n_experts > 0)
        n_slots = (uint64_t)size->n_experts;
    if (n_slots < least)
        return sl_err_set(err, -SL_EBUDGET,
                          "--cache: \"%s\" holds %llu experts, and one layer needs %u", size->text,
                          (unsigned long long)n_slots, least);
    *ret_n_slots = n_slots < most ? (uint32_t)n_slots : most;
    return 0;
}

/* ---- figures -----------------------------------------------------------------------------------
 */

static void print_json(const struct command *command, const char *policy, uint32_t n_slots,
                       const struct sl_slot_counters *c, double hit_rate, double bytes_per_token)
{
    json_t *object = json_pack(
        "{s:s, s:i, s:I, s:f, s:i, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f}", "policy",
        policy, "experts", (int)n_slots, "cache_bytes", (json_int_t)(n_slots * command->slot_bytes),
        "share", (double)n_slots / expert_count(command), "segment",
        (int)command->steps.segment_tokens, "sequences", (int)command->steps.n_sequences,
        "requests", (json_int_t)c->n_requests, "hits", (json_int_t)c->n_hits, "prefetch_hits",
        (json_int_t)c->n_prefetch_hits, "sweep_requests", (json_int_t)c->n_sweep_requests,
        "sweep_hits", (json_int_t)c->n_sweep_hits, "loads", (json_int_t)c->n_loads, "evictions",
        (json_int_t)c->n_evictions, "hit_rate", hit_rate, "bytes_per_token", bytes_per_token);

    sl_json_line_print(object);
}

static int replay_one(const struct command *command, const struct sl_replay_plan *plan,
                      uint32_t n_slots, const struct sl_policy_ops *ops, struct sl_err *err)
{
    const char *policy = ops ? ops->name : "optimum";
    struct sl_slot_counters c;
    char size[SL_SIZE_TEXT_BYTES];
    double hit_rate, bytes_per_token;
    int rc = sl_replay_run(plan, ops, n_slots, &c, err);

    if (rc < 0)
        return rc;
    hit_rate = 1 - (double)c.n_loads / (double)c.n_requests;
    bytes_per_token = (double)c.n_loads * (double)sl_trace_expert_bytes(&command->trace.shape) /
                      (double)command->n_tokens;
    if (command->json)
        print_json(command, policy, n_slots, &c, hit_rate, bytes_per_token);
    else
        printf("%8u %6.1f %% %10s  %-10s %6.2f %% %12.3f %14.6f\n", n_slots,
               100.0 * n_slots / expert_count(command),
               sl_size_format(n_slots * command->slot_bytes, size), policy, 100 * hit_rate,
               (double)c.n_loads / (double)command->n_tokens, bytes_per_token / 1e9);
    fflush(stdout);
    return 0;
}

static int replay(struct command *command, struct sl_err *err)
{
    struct sl_replay_plan *plan;
    struct sl_expert_shape shape;
    uint32_t n_slots[LIST_MAX];
    int rc;

    rc = sl_trace_read(&command->trace, command->path, err);
    if (rc < 0)
        return rc;
    shape = (struct sl_expert_shape){
        .num_hidden_layers = command->trace.shape.num_hidden_layers,
        .n_routed_experts = command->trace.shape.n_routed_experts,
        .hidden_size = command->trace.shape.hidden_size,
        .moe_intermediate_size = command->trace.shape.moe_intermediate_size,
        .expert_dtype = command->trace.shape.expert_dtype,
    };
    command->slot_bytes = sl_expert_cache_slot_bytes(&shape);
    for (uint32_t i = 0; i < command->n_sizes && rc == 0; i++)
        rc = slot_count(command, &command->sizes[i], &n_slots[i], err);
    if (rc == 0)
        rc = sl_replay_plan_create(&plan, &command->trace, &command->steps, err);
    if (rc < 0)
        return rc;
    command->n_tokens = sl_replay_plan_tokens(plan);
    if (!command->json)
        printf(" experts    share       size  policy     hit rate  loads/token       GB/token\n");
    for (uint32_t i = 0; i < command->n_sizes && rc == 0; i++)
        for (uint32_t k = 0; k < command->n_policies && rc == 0; k++)
            rc = replay_one(command, plan, n_slots[i], command->ops[k], err);
    sl_replay_plan_destroy(plan);
    return rc;
}

int sl_trace_replay(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"cache", OPTION_CACHE, "SIZE|EXPERTS|SHARE%,...", 0,
         "sizes of the cache (default 5.5%,11%,22%,44%)", 0},
        {"policy", OPTION_POLICY, "NAME,...", 0,
         "some of " SL_POLICY_NAMES ", optimum, which knows the future (default: all)", 0},
        {"segment", OPTION_SEGMENT, "TOKENS|recorded", 0,
         "tokens of one step (default 1; recorded: as in the run)", 0},
        {"sequences", OPTION_SEQUENCES, "N", 0,
         "take the trace for N texts of the same length, of which each step takes a token", 0},
        {"json", OPTION_JSON, NULL, 0, "one JSON object a line", 0},
        {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "TRACE",
        .doc = "Takes a recorded trace through caches of several sizes and policies, and prints "
               "the share of requests that needed no read, and what was read for a token."};
    struct command command = {.steps = {.segment_tokens = 1}};
    struct sl_err err = {0};
    int rc;

    sl_command_parse(&argp, argc, argv, &command);
    rc = replay(&command, &err);
    sl_trace_fini(&command.trace);
    return sl_command_status(rc, &err);
}
