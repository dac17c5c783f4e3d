#include "tools/bench/bench_probe.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "core/base/clock.h"
#include "core/base/topology.h"

/* Caches that the system tells of may be those of a machine of which this one is a small part, so
 * there is a bound: clearing a gigabyte takes a virtual machine seconds. */
#define AREA_BYTES_MIN (UINT64_C(64) << 20)
#define AREA_BYTES_MAX (UINT64_C(1) << 30)
#define CACHES_PASSED 4u /* so many times the caches are read before the same comes again */

/* A thread reads so much, or multiplies so often, without a look at the clock. */
#define PIECE_BYTES (UINT64_C(2) << 20)
#define MULTIPLY_ROUNDS 20000u

#define READINGS_MAX 24u
#define READINGS_AGREE 3u /* the best so many */
#define AGREE_RATIO 1.04
#define PAIR_RATIO 1.1

/* ---- what is read ------------------------------------------------------------------------------
 */

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

static uint64_t clamp(uint64_t value, uint64_t low, uint64_t high)
{
    return value < low ? low : value > high ? high : value;
}

static size_t piece_count(const struct sl_bench_probe *probe)
{
    return probe->area.size_bytes / PIECE_BYTES;
}

int sl_bench_probe_open(struct sl_bench_probe *probe, const struct sl_compute *compute,
                        uint64_t work_bytes, struct sl_err *err)
{
    const uint64_t least = 4 * PIECE_BYTES * sl_pool_thread_count(compute->pool);
    uint64_t caches_bytes = 0, bytes;
    int rc;

    for (uint32_t cpu = 0; cpu < SL_CPU_NUMBERS_MAX; cpu++)
        caches_bytes += last_level_cache_bytes(cpu);
    bytes = clamp(CACHES_PASSED * caches_bytes, AREA_BYTES_MIN, AREA_BYTES_MAX);
    bytes = clamp(work_bytes, least, bytes > least ? bytes : least);
    *probe = (struct sl_bench_probe){.compute = compute};
    rc = sl_arena_map(&probe->area, bytes, "what is read to measure memory", err);
    if (rc == 0)
        sl_pool_first_touch(compute->pool, probe->area.base, piece_count(probe), PIECE_BYTES, 1, 0);
    return rc;
}

void sl_bench_probe_close(struct sl_bench_probe *probe)
{
    sl_arena_fini(&probe->area);
}

/* ---- readings ----------------------------------------------------------------------------------
 */

/* One reading: a job of an item for each thread, which does as much as there is time for. */
struct reading {
    struct sl_bench_probe *probe;
    sl_probe_multiply_fn *multiply; /* NULL: reads */
    uint64_t ns;
    atomic_uint_fast64_t amount, sum; /* the sum keeps the compiler from leaving things out */
    atomic_size_t n_read;             /* the most pieces of any thread */
};

/* Reads the share of the area that thread `share` was the first to touch. */
static void read_share(struct reading *reading, size_t share)
{
    const struct sl_bench_probe *probe = reading->probe;
    const size_t n_threads = sl_pool_thread_count(probe->compute->pool);
    const size_t first = share * piece_count(probe) / n_threads;
    const size_t n_pieces = (share + 1) * piece_count(probe) / n_threads - first;
    const uint64_t end_ns = sl_clock_ns() + reading->ns;
    uint64_t sum = 0;
    size_t n = 0, most;

    do {
        const size_t piece = first + (probe->n_read + n) % n_pieces;

        sum ^= probe->compute->kernels->probes.read(PIECE_BYTES,
                                                    probe->area.base + piece * PIECE_BYTES);
        n++;
    } while (sl_clock_ns() < end_ns);
    atomic_fetch_add(&reading->sum, sum);
    atomic_fetch_add(&reading->amount, n * PIECE_BYTES);
    most = atomic_load(&reading->n_read);
    while (most < n && !atomic_compare_exchange_weak(&reading->n_read, &most, n))
        ;
}

static void read_shares(void *context, size_t first, size_t end, uint32_t thread_index)
{
    (void)thread_index;
    for (size_t share = first; share < end; share++)
        read_share(context, share);
}

static void multiply_once(struct reading *reading)
{
    const uint64_t end_ns = sl_clock_ns() + reading->ns;
    uint64_t n = 0;
    float sum = 0;

    do
        n += reading->multiply(MULTIPLY_ROUNDS, &sum);
    while (sl_clock_ns() < end_ns);
    atomic_fetch_add(&reading->amount, n);
    atomic_fetch_add(&reading->sum, sum > 0);
}

static void multiply(void *context, size_t first, size_t end, uint32_t thread_index)
{
    (void)thread_index;
    for (size_t i = first; i < end; i++)
        multiply_once(context);
}

static double take_reading(void *context)
{
    struct reading *reading = context;
    struct sl_bench_probe *probe = reading->probe;
    struct sl_pool *pool = probe->compute->pool;
    const uint64_t start_ns = sl_clock_ns();

    atomic_store(&reading->amount, 0);
    sl_pool_run(pool, SL_PHASE_OUTSIDE, sl_pool_thread_count(pool), 1,
                reading->multiply ? multiply : read_shares, reading);
    probe->n_read += atomic_exchange(&reading->n_read, 0);
    return (double)atomic_load(&reading->amount) / (double)(sl_clock_ns() - start_ns);
}

static int descending(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;

    return (left < right) - (left > right);
}

/* The best readings are of the moments in which nothing else was at work. The one in the middle of
 * them is given, since a clock that ticks late makes one too good. */
struct sl_bench_rate sl_bench_readings(double (*take)(void *context), void *context)
{
    double rates[READINGS_MAX];
    bool agree = false;

    for (uint32_t n = 0; n < READINGS_MAX && !agree; n++) {
        rates[n] = take(context);
        qsort(rates, n + 1, sizeof(*rates), descending);
        agree = n + 1 >= READINGS_AGREE && rates[0] <= AGREE_RATIO * rates[READINGS_AGREE - 1];
    }
    return (struct sl_bench_rate){rates[READINGS_AGREE / 2], !agree};
}

struct sl_bench_rate sl_bench_probe_read(struct sl_bench_probe *probe, uint64_t reading_ns)
{
    struct reading reading = {.probe = probe, .ns = reading_ns};

    return sl_bench_readings(take_reading, &reading);
}

struct sl_bench_rate sl_bench_probe_multiply(struct sl_bench_probe *probe, enum sl_bench_peak peak,
                                             uint64_t reading_ns)
{
    const struct sl_probes *probes = &probe->compute->kernels->probes;
    struct reading reading = {.probe = probe, .ns = reading_ns, .multiply = probes->f32};

    if (peak == SL_BENCH_BF16 && probes->bf16)
        reading.multiply = probes->bf16;
    if (peak == SL_BENCH_INT8 && probes->int8)
        reading.multiply = probes->int8;
    return sl_bench_readings(take_reading, &reading);
}

struct sl_bench_rate sl_bench_rate_between(struct sl_bench_rate before, struct sl_bench_rate after)
{
    return (struct sl_bench_rate){
        (before.rate + after.rate) / 2,
        before.disturbed || after.disturbed || before.rate > PAIR_RATIO * after.rate ||
            after.rate > PAIR_RATIO * before.rate,
    };
}
