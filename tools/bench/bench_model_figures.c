#include "tools/bench/bench_model.h"

#include <stdio.h>
#include <string.h>

#include "core/base/size.h"

/* Prints a value, or nothing if it could not be measured. Whoever prints several levels can tell
 * their figures apart by the shape. */
static void print_value(const struct sl_bench_level *level, const char *what, const char *shape,
                        const char *unit, double value, double limit, bool disturbed)
{
    char name[64], full[192];
    int used = snprintf(full, sizeof(full), "%s", shape);

    if (level->n_texts > 1 || level->prompt_rows > 0)
        used += snprintf(full + used, sizeof(full) - (size_t)used, ", %u text%s", level->n_texts,
                         sl_plural(level->n_texts));
    if (level->prompt_rows > 0)
        snprintf(full + used, sizeof(full) - (size_t)used, " and %u of a prompt",
                 level->prompt_rows);
    snprintf(name, sizeof(name), "%s%s%s", level->prefill ? "prefill" : "decode",
             what[0] ? ", " : "", what);
    if (value > 0 && limit > 0)
        sl_bench_print(level->bench,
                       (struct sl_bench_figure){name, full, unit, value, limit, disturbed});
}

/* A value and its limit, for each run. */
struct figure {
    double values[SL_BENCH_RUNS], limits[SL_BENCH_RUNS];
    uint32_t n_disturbed; /* of the limits */
};

static void print_medians(const struct sl_bench_level *level, const char *what, const char *shape,
                          const char *unit, struct figure figure)
{
    print_value(level, what, shape, unit, sl_bench_median(figure.values, level->n_runs),
                sl_bench_median(figure.limits, level->n_runs),
                sl_bench_is_disturbed(figure.n_disturbed, level->n_runs));
}

/* Tokens of all texts in one run, but for the prompt's. */
static uint32_t run_tokens(const struct sl_bench_level *level)
{
    return level->n_tokens * level->n_texts;
}

static double larger(double a, double b)
{
    return a > b ? a : b;
}

/* Tells what a run is, and what binds it, as far as that is known. */
static void describe(const struct sl_bench_level *level, bool drives_bind, char shape[96])
{
    const struct sl_config *config = sl_engine_config(level->engine);
    char where[16] = "";

    if (level->position)
        snprintf(where, sizeof(where), " at %u", level->position);
    if (level->resident)
        snprintf(shape, 96, "%u tokens%s, all resident", level->n_tokens, where);
    else
        snprintf(shape, 96, "%u tokens%s, %sroom for %u of %u, %s bind", level->n_tokens, where,
                 level->cold ? "cold, " : "", sl_engine_slot_count(level->engine),
                 config->num_hidden_layers * config->n_routed_experts,
                 drives_bind ? "the drives" : "the cores");
}

/* Prints tokens a second: the median, the spread, and the bytes or multiplications that they amount
 * to. */
static void print_speed(const struct sl_bench_level *level)
{
    const double n_tokens = run_tokens(level);
    struct figure speed = {.n_disturbed = 0}, rate = {.n_disturbed = 0};
    double amount = 0, drive_ns = 0, cores_ns = 0;
    uint32_t slowest = 0, fastest = 0;
    char shape[96];

    for (uint32_t i = 0; i < level->n_runs; i++) {
        const struct sl_bench_run *run = &level->runs[i];
        const struct sl_bench_totals t = sl_bench_run_totals(run);

        amount = (double)(level->prefill ? t.multiplications : t.read_bytes);
        speed.values[i] = n_tokens * 1e9 / (double)run->ns;
        speed.limits[i] = n_tokens * 1e9 / larger(t.cores_ns, t.drive_ns);
        rate.values[i] = amount / (double)run->ns;
        rate.limits[i] = amount / t.cores_ns;
        speed.n_disturbed += sl_bench_run_is_disturbed(run);
        slowest = run->ns > level->runs[slowest].ns ? i : slowest;
        fastest = run->ns < level->runs[fastest].ns ? i : fastest;
        drive_ns += t.drive_ns;
        cores_ns += t.cores_ns;
    }
    rate.n_disturbed = speed.n_disturbed;
    describe(level, drive_ns > cores_ns, shape);
    print_medians(level, "", shape, "tokens/s", speed);
    print_value(level, "slowest", shape, "tokens/s", speed.values[slowest], speed.limits[slowest],
                sl_bench_run_is_disturbed(&level->runs[slowest]));
    print_value(level, "fastest", shape, "tokens/s", speed.values[fastest], speed.limits[fastest],
                sl_bench_run_is_disturbed(&level->runs[fastest]));
    snprintf(shape, sizeof(shape), "%.4g %s a token", amount / n_tokens * 1e-9,
             level->prefill ? "GMAC" : "GB");
    print_medians(level, level->prefill ? "multiplying" : "reading memory", shape,
                  level->prefill ? "GMAC/s" : "GB/s", rate);
}

static uint32_t step_count(const struct sl_bench_level *level)
{
    const uint32_t step_tokens = sl_engine_step_tokens_max(level->engine, SL_STEP_LARGE);

    return level->prefill ? (level->n_tokens + step_tokens - 1) / step_tokens : level->n_tokens;
}

/* Prints the phases' shares of the time. */
static void print_times(const struct sl_bench_level *level)
{
    const double per_token = 1e-6 / run_tokens(level);
    struct figure figure = {.n_disturbed = 0};
    uint64_t n_barriers = 0;
    char shape[64];

    for (int phase = SL_PHASE_OUTSIDE + 1; phase <= SL_PHASES; phase++) {
        for (uint32_t i = 0; i < level->n_runs; i++) {
            const struct sl_bench_run *run = &level->runs[i];
            struct sl_bench_totals t = sl_bench_run_totals(run);
            uint64_t ns = phase < SL_PHASES ? run->spent.of[phase].work_ns : t.wait_ns;

            n_barriers = t.n_barriers;
            figure.values[i] = (double)ns * per_token;
            figure.limits[i] = (double)run->ns * per_token;
        }
        if (phase < SL_PHASES) {
            print_medians(level, sl_phase_name((enum sl_phase)phase), "time", "ms/token", figure);
            continue;
        }
        snprintf(shape, sizeof(shape), "time, %.1f a layer",
                 (double)n_barriers / step_count(level) /
                     sl_engine_config(level->engine)->num_hidden_layers);
        print_medians(level, "barriers", shape, "ms/token", figure);
    }
}

/* Prints how fast each kind of work ran, counting the waits in its own barriers: in what binds it,
 * bytes or multiplications. */
static void print_rates(const struct sl_bench_level *level)
{
    for (int phase = SL_PHASE_OUTSIDE + 1; phase < SL_PHASES; phase++) {
        struct figure figure = {.n_disturbed = 0};
        double reading_ns = 0, multiplying_ns = 0;
        bool in_bytes;

        for (uint32_t i = 0; i < level->n_runs; i++) {
            reading_ns += sl_bench_run_read_ns(&level->runs[i], phase);
            multiplying_ns += sl_bench_run_multiply_ns(&level->runs[i], phase);
        }
        in_bytes = reading_ns > multiplying_ns;
        for (uint32_t i = 0; i < level->n_runs; i++) {
            const struct sl_bench_run *run = &level->runs[i];
            const struct sl_bench_rate limit =
                in_bytes ? run->limits.read : sl_bench_run_peak(run, phase);
            uint64_t ns = run->spent.of[phase].work_ns + run->spent.of[phase].wait_ns;
            uint64_t amount =
                in_bytes ? run->spent.of[phase].read_bytes : run->spent.of[phase].multiplications;

            figure.values[i] = ns ? (double)amount / (double)ns : 0;
            figure.limits[i] = limit.rate;
            figure.n_disturbed += limit.disturbed;
        }
        print_medians(level, sl_phase_name((enum sl_phase)phase), "rate",
                      in_bytes ? "GB/s" : "GMAC/s", figure);
    }
}

/* Prints the time of a token beside the time that the drives alone would take for its misses. Where
 * the drives are the limit, the ratio shows the cost of everything else. */
static void print_drive(const struct sl_bench_level *level)
{
    const double n_tokens = run_tokens(level);
    struct figure time = {.n_disturbed = 0}, rate;
    char shape[64];
    double gigabytes = 0;

    for (uint32_t i = 0; i < level->n_runs; i++) {
        const struct sl_bench_run *run = &level->runs[i];

        gigabytes += (double)run->missed_bytes / level->n_runs / n_tokens * 1e-9;
        time.values[i] = (double)run->ns / n_tokens * 1e-6;
        time.limits[i] = sl_bench_run_totals(run).drive_ns / n_tokens * 1e-6;
        time.n_disturbed += run->limits.drive.disturbed;
    }
    rate = time;
    for (uint32_t i = 0; i < level->n_runs; i++) {
        const struct sl_bench_run *run = &level->runs[i];

        rate.values[i] = (double)run->missed_bytes / (double)run->ns;
        rate.limits[i] = run->limits.drive.rate;
    }
    snprintf(shape, sizeof(shape), "%.3g GB of misses a token", gigabytes);
    print_medians(level, "beside the drive", shape, "ms/token", time);
    print_medians(level, "reading the drive", shape, "GB/s", rate);
}

/* Prints how many of the requested experts the cache had or was loading, and had kept since the
 * step before; how often a missing one was read; and how long the drives had something to do. */
static void print_experts(const struct sl_bench_level *level)
{
    const double n_tokens = (double)run_tokens(level) * level->n_runs;
    struct sl_expert_cache_counters c;
    char shape[96], text[SL_SIZE_TEXT_BYTES];
    double run_ns = 0;

    for (uint32_t i = 0; i < level->n_runs; i++)
        run_ns += (double)level->runs[i].ns;
    sl_metrics_difference(&sl_expert_cache_metrics, &level->begin, &level->end, &c);
    snprintf(shape, sizeof(shape), "%s read a token",
             sl_size_format((uint64_t)((double)c.read_bytes / n_tokens), text));
    print_value(level, "experts found", shape, "a token",
                (double)(c.n_hits + c.n_prefetch_hits) / n_tokens, (double)c.n_requests / n_tokens,
                false);
    if (c.n_sweep_requests > 0) {
        snprintf(shape, sizeof(shape), "%llu of each layer pinned", (unsigned long long)c.n_pinned);
        print_value(level, "experts kept", shape, "a token", (double)c.n_hits / n_tokens,
                    (double)c.n_requests / n_tokens, false);
    }
    print_value(level, "reads of an expert", "in each step that misses it", "reads",
                (double)c.n_loads, (double)(c.n_requests - c.n_hits), false);
    print_value(level, "drives at work", "time", "ms/token", (double)c.busy_ns / n_tokens * 1e-6,
                run_ns / n_tokens * 1e-6, false);
}

void sl_bench_level_print(const struct sl_bench_level *level)
{
    print_speed(level);
    print_times(level);
    print_rates(level);
    print_drive(level);
    print_experts(level);
}
