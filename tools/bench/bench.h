/* The shared code of the parts of `sluice bench`: it measures the machine's limits on the same
 * threads in the same run, takes medians, makes random weights, and prints the figures beside the
 * limits.
 *
 * One thread (the pool's driver) makes all calls. */
#ifndef SL_TOOLS_BENCH_BENCH_H
#define SL_TOOLS_BENCH_BENCH_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/arena.h"
#include "core/model/compute.h"
#include "core/model/linear.h"

/* Each figure is the median of this many runs, and its limit is measured between the same runs. */
#define SL_BENCH_RUNS 5u

/* Kinds of multiplication, by the instruction that the kernels use. */
enum sl_bench_peak { SL_BENCH_F32, SL_BENCH_BF16, SL_BENCH_INT8, SL_BENCH_PEAKS };

/* The names of all measurements, with a semicolon before and after each. */
struct sl_bench_names {
    char text[900];
    bool matched; /* one of them is asked for */
};

struct sl_bench {
    struct sl_compute compute;    /* borrowed */
    struct sl_arena area;         /* that the probe of memory reads */
    double seconds;               /* for one figure */
    bool json;                    /* an object a line, or else a table */
    const char *only;             /* what is measured contains this; NULL for everything */
    struct sl_bench_names *names; /* not NULL: names are taken down, and nothing is measured */
};

/* The bytes of memory that streaming work goes through: more than the last-level caches of this
 * machine hold, as far as one figure's time is enough to go through it. */
uint64_t sl_bench_area_bytes(const struct sl_bench *bench);

/* Fails with -ENOMEM. The caller calls sl_bench_fini(). */
int sl_bench_init(struct sl_bench *bench, const struct sl_compute *compute, double seconds,
                  bool json, struct sl_err *err);
void sl_bench_fini(struct sl_bench *bench);

/* Returns whether `only` asks for this measurement. While names are collected, notes the name and
 * returns false. */
bool sl_bench_wants(const struct sl_bench *bench, const char *what);

/* Each measures for at least `ns`, and returns 10^9 a second: the first bytes read, the second
 * multiplications. */
double sl_bench_read_rate(const struct sl_bench *bench, uint64_t ns);
double sl_bench_multiply_rate(const struct sl_bench *bench, enum sl_bench_peak peak, uint64_t ns);

double sl_bench_median(double *values, size_t n); /* sorts them */

struct sl_bench_work {
    const char *what;
    const char *shape;
    uint64_t (*run)(void *context); /* does it once; returns the nanoseconds that count */
    void *context;
    /* The work of one run. One of them may be 0; the limit is the larger of their times. */
    uint64_t bytes;
    uint64_t multiplications;
    enum sl_bench_peak peak;
    bool in_bytes; /* the figure is GB/s, otherwise GMAC/s */
};

/* Measures the work and prints its figure, if it is wanted. */
void sl_bench_measure(const struct sl_bench *bench, const struct sl_bench_work *work);

/* Prints one figure. `unit` is that of value and limit; 0 stands for an unknown limit. */
void sl_bench_print(const struct sl_bench *bench, const char *what, const char *shape, double value,
                    const char *unit, double limit);

/* Prints the table's first lines; nothing if the output is JSON. */
void sl_bench_print_header(const struct sl_bench *bench);

/* Measures the limits themselves: reading memory, and multiplying. */
void sl_bench_probes(const struct sl_bench *bench);

/* Fills `tiles` with a random matrix of its kind and size, whose values are as small as trained
 * ones. Each thread fills its part, and so may be the first to touch it. */
void sl_bench_fill(struct sl_pool *pool, const struct sl_matrix *matrix, uint8_t *tiles);

/* Returns the next of a reproducible sequence of random numbers. */
uint64_t sl_bench_random(uint64_t *state);

/* The parts, one file each. Fail with -ENOMEM. */
int sl_bench_linears(const struct sl_bench *bench, struct sl_err *err);
int sl_bench_rows(const struct sl_bench *bench, struct sl_err *err);
int sl_bench_layers(const struct sl_bench *bench, struct sl_err *err);

/* The commands: decode and prefill of a model, and many texts in lockstep. */
int sl_bench_decode(int argc, char **argv);
int sl_bench_prefill(int argc, char **argv);
int sl_bench_sweep(int argc, char **argv);

/* The command that measures drives; it needs no compute threads. */
int sl_bench_io(int argc, char **argv);

#endif
