/* What the parts of `sluice bench` share: limits measured on the same threads in the same run,
 * figures as medians beside them, random weights to run on, and how it all is printed.
 *
 * One thread (the pool's driver) makes all calls. */
#ifndef SL_TOOLS_BENCH_BENCH_H
#define SL_TOOLS_BENCH_BENCH_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/arena.h"
#include "core/model/compute.h"
#include "core/model/linear.h"

/* Figures are medians of so many runs, and the limit of each is measured between the same runs. */
#define SL_BENCH_RUNS 5u

/* What multiplies: the instruction that the kernels at hand use. */
enum sl_bench_peak { SL_BENCH_F32, SL_BENCH_BF16, SL_BENCH_INT8, SL_BENCH_PEAKS };

/* The names of all that could be measured, a semicolon before and after each. */
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

/* More memory than the last-level caches of this machine hold: what streaming work goes through. */
uint64_t sl_bench_area_bytes(void);

/* Fails with -ENOMEM. The caller calls sl_bench_fini(). */
int sl_bench_init(struct sl_bench *bench, const struct sl_compute *compute, double seconds,
                  bool json, struct sl_err *err);
void sl_bench_fini(struct sl_bench *bench);

/* Whether `only` asks for it; where names are taken down, false. */
bool sl_bench_wants(const struct sl_bench *bench, const char *what);

/* Each probes for at least `ns`. Billions a second: bytes read, multiplications. */
double sl_bench_read_rate(const struct sl_bench *bench, uint64_t ns);
double sl_bench_multiply_rate(const struct sl_bench *bench, enum sl_bench_peak peak, uint64_t ns);

double sl_bench_median(double *values, size_t n); /* sorts them */

struct sl_bench_work {
    const char *what;
    const char *shape;
    uint64_t (*run)(void *context); /* does it once; returns the nanoseconds that count */
    void *context;
    /* Of one run. One of them may be 0; the limit is the larger of their times. */
    uint64_t bytes;
    uint64_t multiplications;
    enum sl_bench_peak peak;
    bool in_bytes; /* the figure is GB/s, otherwise GMAC/s */
};

/* Measures and prints, if it is wanted. */
void sl_bench_measure(const struct sl_bench *bench, const struct sl_bench_work *work);

/* One figure. `unit` is value's and limit's; a limit of 0 is one that nobody knows. */
void sl_bench_print(const struct sl_bench *bench, const char *what, const char *shape, double value,
                    const char *unit, double limit);

/* The table's first lines; nothing before JSON. */
void sl_bench_print_header(const struct sl_bench *bench);

/* Memory and multipliers themselves. */
void sl_bench_probes(const struct sl_bench *bench);

/* Fills `tiles` with a matrix of its kind and size: random, and as harmless as trained ones. Each
 * thread fills its part, and so may be the first to touch it. */
void sl_bench_fill(struct sl_pool *pool, const struct sl_matrix *matrix, uint8_t *tiles);

/* Reproducible numbers. */
uint64_t sl_bench_random(uint64_t *state);

/* The parts, one file each. Fail with -ENOMEM. */
int sl_bench_linears(const struct sl_bench *bench, struct sl_err *err);
int sl_bench_rows(const struct sl_bench *bench, struct sl_err *err);
int sl_bench_layers(const struct sl_bench *bench, struct sl_err *err);

/* The commands: decode and prefill of a model. */
int sl_bench_decode(int argc, char **argv);
int sl_bench_prefill(int argc, char **argv);

/* And one that needs no compute: the drives. */
int sl_bench_io(int argc, char **argv);

#endif
