/* Owns the probes' loops and the form of the output. */
#include "tools/bench/bench.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/json.h"
#include "core/base/size.h"
#include "tools/cli/json_lines.h"

#define AREA_BYTES_MIN (UINT64_C(64) << 20)
#define AREA_BYTES_MAX (UINT64_C(2) << 30)
#define READ_RATE_MAX 2e12 /* bytes a second that no machine of today reads from memory */

/* Between two looks at the clock a thread reads this many bytes, or multiplies this often. */
#define READ_PIECE_BYTES (UINT64_C(2) << 20)
#define MULTIPLY_ROUNDS 200000u

/* Returns the size of the last-level cache of processor `cpu`, if it is the first of those that
 * share the cache; 0 beyond the last processor, and where the system does not tell. (sysconf() also
 * tells, but counts differently on some machines.) */
static uint64_t last_level_cache_bytes(uint32_t cpu)
{
    char path[96];
    unsigned long kilobytes = 0;
    uint32_t first = 0;
    FILE *file;

    snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%u/cache/index3/shared_cpu_list", cpu);
    file = fopen(path, "re");
    if (!file || fscanf(file, "%u", &first) != 1)
        first = UINT32_MAX;
    if (file)
        fclose(file);
    if (first != cpu)
        return 0;
    snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%u/cache/index3/size", cpu);
    file = fopen(path, "re");
    if (file && fscanf(file, "%luK", &kilobytes) != 1)
        kilobytes = 0;
    if (file)
        fclose(file);
    return (uint64_t)kilobytes << 10;
}

uint64_t sl_bench_area_bytes(const struct sl_bench *bench)
{
    const double seen = bench->seconds * READ_RATE_MAX;
    uint64_t bytes = 0;

    for (uint32_t cpu = 0; cpu < SL_CPU_NUMBERS_MAX; cpu++)
        bytes += 4 * last_level_cache_bytes(cpu);
    if ((double)bytes > seen)
        bytes = (uint64_t)seen;
    return bytes < AREA_BYTES_MIN   ? AREA_BYTES_MIN
           : bytes > AREA_BYTES_MAX ? AREA_BYTES_MAX
                                    : bytes;
}

uint64_t sl_bench_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static size_t piece_count(const struct sl_bench *bench)
{
    return bench->area.size_bytes / READ_PIECE_BYTES;
}

int sl_bench_init(struct sl_bench *bench, const struct sl_compute *compute, double seconds,
                  bool json, struct sl_err *err)
{
    int rc;

    *bench = (struct sl_bench){.compute = *compute, .seconds = seconds, .json = json};
    rc = sl_arena_map(&bench->area, sl_bench_area_bytes(bench), "bench", err);
    if (rc == 0)
        sl_pool_first_touch(compute->pool, bench->area.base, piece_count(bench), READ_PIECE_BYTES,
                            1, 0);
    return rc;
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

void sl_bench_fini(struct sl_bench *bench)
{
    sl_arena_fini(&bench->area);
}

/* ---- limits ------------------------------------------------------------------------------------
 */

struct probe {
    const struct sl_bench *bench;
    sl_probe_multiply_fn *multiply;
    atomic_uint_fast64_t n_multiplied;
    atomic_uint_fast64_t sum; /* keeps the compiler from leaving things out */
};

static void read_pieces(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct probe *probe = context;
    const struct sl_bench *bench = probe->bench;
    uint64_t sum = 0;

    (void)thread_index;
    for (size_t i = first; i < end; i++)
        sum ^= bench->compute.kernels->probes.read(READ_PIECE_BYTES,
                                                   bench->area.base + i * READ_PIECE_BYTES);
    atomic_fetch_add(&probe->sum, sum);
}

double sl_bench_read_rate(const struct sl_bench *bench, uint64_t ns)
{
    struct probe probe = {.bench = bench};
    uint64_t start_ns = sl_clock_ns(), spent_ns, n = 0;

    do {
        sl_pool_run(bench->compute.pool, SL_PHASE_OUTSIDE, piece_count(bench), 1, read_pieces,
                    &probe);
        spent_ns = sl_clock_ns() - start_ns;
        n++;
    } while (spent_ns < ns);
    return (double)(n * piece_count(bench) * READ_PIECE_BYTES) / (double)spent_ns;
}

static void multiply(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct probe *probe = context;
    float sum = 0;

    (void)first;
    (void)end;
    (void)thread_index;
    atomic_fetch_add(&probe->n_multiplied, probe->multiply(MULTIPLY_ROUNDS, &sum));
    atomic_fetch_add(&probe->sum, sum > 0);
}

double sl_bench_multiply_rate(const struct sl_bench *bench, enum sl_bench_peak peak, uint64_t ns)
{
    const struct sl_probes *probes = &bench->compute.kernels->probes;
    struct probe probe = {.bench = bench, .multiply = probes->f32};
    uint64_t start_ns = sl_clock_ns(), spent_ns;

    if (peak == SL_BENCH_BF16 && probes->bf16)
        probe.multiply = probes->bf16;
    if (peak == SL_BENCH_INT8 && probes->int8)
        probe.multiply = probes->int8;
    do {
        sl_pool_run(bench->compute.pool, SL_PHASE_OUTSIDE,
                    sl_pool_thread_count(bench->compute.pool), 1, multiply, &probe);
        spent_ns = sl_clock_ns() - start_ns;
    } while (spent_ns < ns);
    return (double)atomic_load(&probe.n_multiplied) / (double)spent_ns;
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

void sl_bench_measure(const struct sl_bench *bench, const struct sl_bench_work *work)
{
    const double run_ns = bench->seconds * 1e9 / SL_BENCH_RUNS;
    const double amount = (double)(work->in_bytes ? work->bytes : work->multiplications);
    double values[SL_BENCH_RUNS], limits[SL_BENCH_RUNS];

    if (!sl_bench_wants(bench, work->what))
        return;
    work->run(work->context); /* what is touched for the first time is now */
    for (uint32_t i = 0; i < SL_BENCH_RUNS; i++) {
        double limit_ns = 0;
        uint64_t start_ns, spent_ns = 0, n = 0;

        if (work->bytes)
            limit_ns = (double)work->bytes / sl_bench_read_rate(bench, (uint64_t)(run_ns * 0.2));
        if (work->multiplications) {
            double multiply_ns =
                (double)work->multiplications /
                sl_bench_multiply_rate(bench, work->peak, (uint64_t)(run_ns * 0.1));

            limit_ns = multiply_ns > limit_ns ? multiply_ns : limit_ns;
        }
        start_ns = sl_clock_ns();
        do {
            spent_ns += work->run(work->context);
            n++;
        } while (sl_clock_ns() - start_ns < (uint64_t)(run_ns * 0.7));
        values[i] = amount * (double)n / (double)spent_ns;
        limits[i] = amount / limit_ns;
    }
    sl_bench_print(bench, work->what, work->shape, sl_bench_median(values, SL_BENCH_RUNS),
                   work->in_bytes ? "GB/s" : "GMAC/s", sl_bench_median(limits, SL_BENCH_RUNS));
}

void sl_bench_print(const struct sl_bench *bench, const char *what, const char *shape, double value,
                    const char *unit, double limit)
{
    json_t *object;

    if (bench->json) {
        object = json_pack("{s:s, s:s, s:f, s:s, s:o, s:o}", "what", what, "shape", shape, "value",
                           value, "unit", unit, "limit", limit > 0 ? json_real(limit) : json_null(),
                           "ratio", limit > 0 ? json_real(value / limit) : json_null());
        sl_json_line_print(object);
    } else if (limit <= 0) {
        printf("%-32s %-32s %10.4g    %8s %-10s\n", what, shape, value, "", unit);
    } else {
        printf("%-32s %-32s %10.4g of %8.4g %-10s %6.1f %%\n", what, shape, value, limit, unit,
               100 * value / limit);
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

void sl_bench_probes(const struct sl_bench *bench)
{
    static const char *const names[SL_BENCH_PEAKS] = {
        [SL_BENCH_F32] = "float32 multiply peak",
        [SL_BENCH_BF16] = "BF16 multiply peak",
        [SL_BENCH_INT8] = "int8 multiply peak",
    };
    const uint64_t ns = (uint64_t)(bench->seconds * 1e9 / SL_BENCH_RUNS);
    double values[SL_BENCH_RUNS], median;
    char shape[64];

    snprintf(shape, sizeof(shape), "%u thread%s", sl_pool_thread_count(bench->compute.pool),
             sl_plural(sl_pool_thread_count(bench->compute.pool)));
    for (uint32_t i = 0; i < SL_BENCH_RUNS; i++)
        values[i] = sl_bench_read_rate(bench, ns);
    median = sl_bench_median(values, SL_BENCH_RUNS);
    sl_bench_print(bench, "read bandwidth", shape, median, "GB/s", median);
    for (int peak = 0; peak < SL_BENCH_PEAKS; peak++) {
        for (uint32_t i = 0; i < SL_BENCH_RUNS; i++)
            values[i] = sl_bench_multiply_rate(bench, (enum sl_bench_peak)peak, ns);
        median = sl_bench_median(values, SL_BENCH_RUNS);
        sl_bench_print(bench, names[peak], shape, median, "GMAC/s", median);
    }
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
        if (fill->matrix->kind == SL_MATRIX_FP4) /* scales of 2^-7 */
            for (size_t group = 0; group < tile_bytes; group += SL_FP4_GROUP_BYTES)
                memset(to + group, SL_E8M0_BIAS - 7, 4 * SL_R16_ROWS);
    }
}

void sl_bench_fill(struct sl_pool *pool, const struct sl_matrix *matrix, uint8_t *tiles)
{
    struct fill fill = {matrix, tiles};

    sl_pool_run(pool, SL_PHASE_OUTSIDE, sl_r16_tile_count(matrix->rows), 1, fill_tiles, &fill);
}
