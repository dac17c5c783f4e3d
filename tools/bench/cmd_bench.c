/* sluice bench: how fast this machine runs, beside what it could do. One file for each kind. */
#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench/bench.h"
#include "tools/cli/command_line.h"
#include "tools/cli/commands.h"
#include "tools/cli/engine_options.h"
#include "tools/cli/kinds.h"
#include "core/kernels/dispatch.h"
#include "core/base/size.h"

#define SECONDS_DEFAULT 0.3
#define READ_RATE_MAX 5e10 /* bytes a second that no thread of today reads from memory */

struct arguments {
    struct sl_affinity affinity;
    const char *isa, *only;
    uint32_t n_runs;
    double seconds;
    bool json;
};

enum { OPTION_ISA = 256, OPTION_THREADS, OPTION_JSON, OPTION_SECONDS, OPTION_RUNS, OPTION_ONLY };

static error_t parse_option(int key, char *value, struct argp_state *state)
{
    struct arguments *arguments = state->input;

    switch (key) {
    case OPTION_ISA:
        arguments->isa = sl_parse_isa(state, "--isa", value);
        return 0;
    case OPTION_THREADS:
        arguments->affinity =
            sl_choose_affinity(sl_parse_count(state, "--threads", value, SL_POOL_THREADS_MAX));
        return 0;
    case OPTION_JSON:
        arguments->json = true;
        return 0;
    case OPTION_SECONDS:
        arguments->seconds = sl_parse_seconds(state, "--seconds", value);
        return 0;
    case OPTION_RUNS:
        arguments->n_runs = sl_parse_count(state, "--runs", value, SL_BENCH_RUNS);
        return 0;
    case OPTION_ONLY:
        arguments->only = value;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static int run_all(struct sl_bench *bench, struct sl_err *err)
{
    int rc;

    if ((rc = sl_bench_linears(bench, err)) < 0 || (rc = sl_bench_rows(bench, err)) < 0)
        return rc;
    return sl_bench_layers(bench, err);
}

/* Runs all parts only to collect the names, to see whether --only fits one of them. */
static int check_only(struct sl_bench *bench, struct sl_err *err)
{
    struct sl_bench_names names = {0};
    int rc;

    if (!bench->only)
        return 0;
    bench->names = &names;
    rc = run_all(bench, err);
    bench->names = NULL;
    if (rc == 0 && !names.matched)
        rc = sl_err_set(err, -EINVAL, "--only: nothing has \"%s\" in its name; there are%.*s",
                        bench->only, (int)strlen(names.text) - 2, names.text + 1);
    return rc;
}

static int run_kernels(const struct sl_compute *compute, const struct arguments *arguments,
                       struct sl_err *err)
{
    struct sl_bench bench;
    int rc;

    rc = sl_bench_init(
        &bench, compute,
        (uint64_t)(arguments->seconds * READ_RATE_MAX * sl_pool_thread_count(compute->pool)),
        arguments->json, err);
    if (rc == 0) {
        bench.seconds = arguments->seconds;
        bench.n_runs = arguments->n_runs;
        bench.only = arguments->only;
        rc = check_only(&bench, err);
    }
    if (rc == 0) {
        sl_bench_print_header(&bench);
        sl_bench_probes(&bench);
        rc = run_all(&bench, err);
    }
    sl_bench_fini(&bench);
    return rc;
}

static int bench_kernels(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"isa", OPTION_ISA, "ref|avx2|avx512|amx|neon", 0,
         "instruction set (default: the best there is)", 0},
        {"threads", OPTION_THREADS, "N", 0, "compute threads (default: one per physical core)", 0},
        {"seconds", OPTION_SECONDS, "S", 0, "time for each figure (default 0.3)", 0},
        {"runs", OPTION_RUNS, "N", 0, "so many runs take that time, 5 at most (default 5)", 0},
        {"only", OPTION_ONLY, "TEXT", 0, "only what has TEXT in its name", 0},
        {"json", OPTION_JSON, NULL, 0, "one JSON object a line", 0},
        {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .doc = "Measures the kernels on the sizes of the released models, each beside what memory "
               "and multipliers allow on the same threads in the same run. Needs no model."};
    struct arguments arguments = {
        .affinity = sl_choose_affinity(0), .n_runs = SL_BENCH_RUNS, .seconds = SECONDS_DEFAULT};
    struct sl_kernels kernels;
    struct sl_pool *pool = NULL;
    struct sl_err err = {0};
    int rc;

    sl_command_parse(&argp, argc, argv, &arguments);
    if ((rc = sl_kernels_select(&kernels, arguments.isa, &err)) == 0 &&
        (rc = sl_pool_create(&pool, arguments.affinity.n_threads, &err)) == 0) {
        struct sl_compute compute = {
            .kernels = &kernels, .pool = pool, .numerics = SL_NUMERICS_NATIVE};

        sl_pool_pin(pool, &arguments.affinity);
        rc = run_kernels(&compute, &arguments, &err);
    }
    sl_pool_destroy(pool);
    return sl_command_status(rc, &err);
}

int sl_cmd_bench(int argc, char **argv)
{
    static const struct sl_kind kinds[] = {
        {"decode", sl_bench_decode},
        {"io", sl_bench_io},
        {"kernels", bench_kernels},
        {"prefill", sl_bench_prefill},
    };
    static const char *const usage[] = {"kernels [OPTION...]", "decode|prefill MODEL [OPTION...]",
                                        "io MODEL|FILE... [OPTION...]", NULL};

    return sl_run_kind(kinds, SL_ARRAY_LEN(kinds), argc, argv, usage);
}
