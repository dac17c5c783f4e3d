/* Owns the measuring of single jobs, and the form of the output. */
#include "tools/bench/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/json.h"
#include "core/base/size.h"
#include "tools/cli/json_lines.h"

/* Shares of the time of a run of one job: of the work, and of a reading of a limit, of which there
 * are three and more. */
#define WORK_SHARE 0.7
#define PROBE_SHARE 0.05

uint64_t sl_bench_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

int sl_bench_init(struct sl_bench *bench, const struct sl_compute *compute, uint64_t work_bytes,
                  bool json, struct sl_err *err)
{
    *bench = (struct sl_bench){.compute = *compute, .json = json, .n_runs = SL_BENCH_RUNS};
    return sl_bench_probe_open(&bench->probe, compute, work_bytes, err);
}

void sl_bench_fini(struct sl_bench *bench)
{
    sl_bench_probe_close(&bench->probe);
}

static void take_down(struct sl_bench_names *names, const char *what)
{
    const size_t used = strlen(names->text);
    char entry[64];

    snprintf(entry, sizeof(entry), "; %s;", what);
    if (strstr(names->text, entry))
        return;
    snprintf(names->text + used, sizeof(names->text) - used, "%s %s;", used ? "" : ";", what);
}

bool sl_bench_wants(const struct sl_bench *bench, const char *what)
{
    const bool asked = !bench->only || strstr(what, bench->only);

    if (!bench->names)
        return asked;
    take_down(bench->names, what);
    bench->names->matched |= asked;
    return false;
}

/* ---- figures -----------------------------------------------------------------------------------
 */

static int ascending(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;

    return (left > right) - (left < right);
}

double sl_bench_median(double *values, size_t n)
{
    qsort(values, n, sizeof(*values), ascending);
    return (values[(n - 1) / 2] + values[n / 2]) / 2;
}

bool sl_bench_is_disturbed(uint32_t n_disturbed, uint32_t n_runs)
{
    return n_disturbed > 0 && 2 * n_disturbed >= n_runs;
}

/* A job is held against these; rates that nobody asked for are 0. */
struct limits {
    struct sl_bench_rate read, multiply;
};

static struct limits probe(struct sl_bench *bench, const struct sl_bench_work *work)
{
    const uint64_t reading_ns = (uint64_t)(bench->seconds * 1e9 / bench->n_runs * PROBE_SHARE);
    struct limits limits = {.read.rate = 0};

    if (work->bytes)
        limits.read = sl_bench_probe_read(&bench->probe, reading_ns);
    if (work->multiplications)
        limits.multiply = sl_bench_probe_multiply(&bench->probe, work->peak, reading_ns);
    return limits;
}

/* Returns the least time for one run of the work, in nanoseconds. */
static double limit_ns(const struct sl_bench_work *work, const struct limits *limits)
{
    const double read_ns = work->bytes ? (double)work->bytes / limits->read.rate : 0;
    const double multiply_ns =
        work->multiplications ? (double)work->multiplications / limits->multiply.rate : 0;

    return read_ns > multiply_ns ? read_ns : multiply_ns;
}

void sl_bench_measure(struct sl_bench *bench, const struct sl_bench_work *work)
{
    const uint64_t run_ns = (uint64_t)(bench->seconds * 1e9 / bench->n_runs * WORK_SHARE);
    const double amount = (double)(work->in_bytes ? work->bytes : work->multiplications);
    double values[SL_BENCH_RUNS], bounds[SL_BENCH_RUNS];
    struct limits before, after, limits;
    uint32_t n_disturbed = 0;

    if (!sl_bench_wants(bench, work->what))
        return;
    work->run(work->context); /* what is touched for the first time is now */
    before = probe(bench, work);
    for (uint32_t i = 0; i < bench->n_runs; i++) {
        uint64_t start_ns = sl_clock_ns(), spent_ns = 0, n = 0;

        do {
            spent_ns += work->run(work->context);
            n++;
        } while (sl_clock_ns() - start_ns < run_ns);
        after = probe(bench, work);
        limits.read = sl_bench_rate_between(before.read, after.read);
        limits.multiply = sl_bench_rate_between(before.multiply, after.multiply);
        before = after;
        values[i] = amount * (double)n / (double)spent_ns;
        bounds[i] = amount / limit_ns(work, &limits);
        n_disturbed += limits.read.disturbed || limits.multiply.disturbed;
    }
    sl_bench_print(bench, (struct sl_bench_figure){
                              .what = work->what,
                              .shape = work->shape,
                              .unit = work->in_bytes ? "GB/s" : "GMAC/s",
                              .value = sl_bench_median(values, bench->n_runs),
                              .limit = sl_bench_median(bounds, bench->n_runs),
                              .disturbed = sl_bench_is_disturbed(n_disturbed, bench->n_runs),
                          });
}

void sl_bench_print(const struct sl_bench *bench, struct sl_bench_figure f)
{
    const double ratio = f.limit > 0 ? f.value / f.limit : 0;
    json_t *object;

    if (bench->json) {
        object = json_pack("{s:s, s:s, s:f, s:s, s:o, s:o, s:b}", "what", f.what, "shape", f.shape,
                           "value", f.value, "unit", f.unit, "limit",
                           f.limit > 0 ? json_real(f.limit) : json_null(), "ratio",
                           f.limit > 0 ? json_real(ratio) : json_null(), "disturbed", f.disturbed);
        sl_json_line_print(object);
    } else if (f.limit <= 0) {
        printf("%-32s %-32s %10.4g    %8s %-10s\n", f.what, f.shape, f.value, "", f.unit);
    } else {
        printf("%-32s %-32s %10.4g of %8.4g %-10s %6.1f %%%s\n", f.what, f.shape, f.value, f.limit,
               f.unit, 100 * ratio, f.disturbed ? ", disturbed" : "");
    }
    fflush(stdout);
}

void sl_bench_print_header(const struct sl_bench *bench)
{
    if (bench->json)
        return;
    printf("instruction set %s, %u thread%s\n", bench->compute.kernels->isa,
           sl_pool_thread_count(bench->compute.pool),
           sl_plural(sl_pool_thread_count(bench->compute.pool)));
    printf("%-32s %-32s %10s    %8s %-10s %8s\n", "what", "shape", "value", "limit", "unit",
           "ratio");
}

static void print_peak(const struct sl_bench *bench, const char *what, const char *unit,
                       struct sl_bench_rate rate)
{
    const uint32_t n_threads = sl_pool_thread_count(bench->compute.pool);
    char shape[64];

    snprintf(shape, sizeof(shape), "%u thread%s", n_threads, sl_plural(n_threads));
    sl_bench_print(bench, (struct sl_bench_figure){.what = what,
                                                   .shape = shape,
                                                   .unit = unit,
                                                   .value = rate.rate,
                                                   .limit = rate.rate,
                                                   .disturbed = rate.disturbed});
}

void sl_bench_probes(struct sl_bench *bench)
{
    static const char *const names[SL_BENCH_PEAKS] = {
        [SL_BENCH_F32] = "float32 multiply peak",
        [SL_BENCH_BF16] = "BF16 multiply peak",
        [SL_BENCH_INT8] = "int8 multiply peak",
    };
    const uint64_t ns = (uint64_t)(bench->seconds * 1e9 / bench->n_runs);

    print_peak(bench, "read bandwidth", "GB/s", sl_bench_probe_read(&bench->probe, ns));
    for (int peak = 0; peak < SL_BENCH_PEAKS; peak++)
        print_peak(bench, names[peak], "GMAC/s",
                   sl_bench_probe_multiply(&bench->probe, (enum sl_bench_peak)peak, ns));
}

/* ---- random weights ----------------------------------------------------------------------------
 */

/* For each 64 random bits, which are kept and which are set, so that every value is finite and
 * small. FP8: below 2; BF16 and F32: 2^-7 to 2^-6. */
struct pattern {
    uint64_t keep, set;
};

static void fill_words(uint64_t *state, struct pattern pattern, size_t size_bytes, uint8_t *to)
{
    for (size_t i = 0; i < size_bytes; i += sizeof(uint64_t)) {
        uint64_t word = (sl_bench_random(state) & pattern.keep) | pattern.set;

        memcpy(to + i, &word, sizeof(word));
    }
}

struct fill {
    const struct sl_matrix *matrix;
    uint8_t *tiles;
};

static void fill_tiles(void *context, size_t first, size_t end, uint32_t thread_index)
{
    static const struct pattern patterns[] = {
        [SL_MATRIX_FP4] = {UINT64_MAX, 0},
        [SL_MATRIX_FP8] = {UINT64_C(0xbfbfbfbfbfbfbfbf), 0},
        [SL_MATRIX_FP8_BLOCK] = {UINT64_C(0xbfbfbfbfbfbfbfbf), 0},
        [SL_MATRIX_BF16] = {UINT64_C(0x807f807f807f807f), UINT64_C(0x3c003c003c003c00)},
        [SL_MATRIX_F32] = {UINT64_C(0x807fffff807fffff), UINT64_C(0x3c0000003c000000)},
    };
    const struct fill *fill = context;
    const size_t tile_bytes = sl_matrix_tile_bytes(fill->matrix);

    (void)thread_index;
    for (size_t tile = first; tile < end; tile++) {
        uint8_t *to = fill->tiles + tile * tile_bytes;
        uint64_t state = UINT64_C(0x9e3779b97f4a7c15) * (tile + 1);

        fill_words(&state, patterns[fill->matrix->kind], tile_bytes, to);
        if (fill->matrix->kind == SL_MATRIX_FP4) /* scales of 2^-9 to 2^-7, near as a model's are */
            for (size_t group = 0; group < tile_bytes; group += SL_FP4_GROUP_BYTES)
                for (size_t i = 0; i < 4 * SL_R16_ROWS; i++)
                    to[group + i] = (uint8_t)(SL_E8M0_BIAS - 7 - to[group + i] % 3);
    }
}

void sl_bench_fill(struct sl_pool *pool, const struct sl_matrix *matrix, uint8_t *tiles)
{
    struct fill fill = {matrix, tiles};

    sl_pool_run(pool, SL_PHASE_OUTSIDE, sl_r16_tile_count(matrix->rows), 1, fill_tiles, &fill);
}
