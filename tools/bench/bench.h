/* The shared code of the parts of `sluice bench`: it measures work in turn with the machine's
 * limits on the same threads, takes medians, makes random weights, and prints the figures beside
 * the limits.
 *
 * One thread (the pool's driver) makes all calls. */
#ifndef SL_TOOLS_BENCH_BENCH_H
#define SL_TOOLS_BENCH_BENCH_H

#include <stdbool.h>
#include <stdint.h>

#include "core/model/compute.h"
#include "core/model/linear.h"
#include "tools/bench/bench_probe.h"

/* Each figure is the median of this many runs, if fewer are not asked for, and its limit is
 * measured between the same runs. */
#define SL_BENCH_RUNS 5u

/* The names of all measurements, with a semicolon before and after each. */
struct sl_bench_names {
    char text[900];
    bool matched; /* one of them is asked for */
};

struct sl_bench {
    struct sl_compute compute;    /* borrowed */
    struct sl_bench_probe probe;  /* of the machine's limits */
    uint32_t n_runs;              /* of one figure, SL_BENCH_RUNS at most */
    double seconds;               /* for all of them */
    bool json;                    /* an object a line, or else a table */
    const char *only;             /* what is measured contains this; NULL for everything */
    struct sl_bench_names *names; /* not NULL: names are taken down, and nothing is measured */
};

/* `work_bytes` is as for sl_bench_probe_open(). Fails with -ENOMEM. The caller calls
 * sl_bench_fini(). */
int sl_bench_init(struct sl_bench *bench, const struct sl_compute *compute, uint64_t work_bytes,
                  bool json, struct sl_err *err);
void sl_bench_fini(struct sl_bench *bench);

/* Returns whether `only` asks for this measurement. While names are collected, notes the name and
 * returns false. */
bool sl_bench_wants(const struct sl_bench *bench, const char *what);

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
void sl_bench_measure(struct sl_bench *bench, const struct sl_bench_work *work);

struct sl_bench_figure {
    const char *what, *shape, *unit;
    double value, limit; /* 0: the limit is not known */
    bool disturbed;      /* the limit was, in at least half of the runs */
};
void sl_bench_print(const struct sl_bench *bench, struct sl_bench_figure figure);

/* Returns whether so many of n_runs are too many for the median to be trusted. */
bool sl_bench_is_disturbed(uint32_t n_disturbed, uint32_t n_runs);

/* Prints the table's first lines; nothing if the output is JSON. */
void sl_bench_print_header(const struct sl_bench *bench);

/* Measures the limits themselves: reading memory, and multiplying. */
void sl_bench_probes(struct sl_bench *bench);

/* Fills `tiles` with a random matrix of its kind and size, whose values are as small as trained
 * ones. Each thread fills its part, and so may be the first to touch it. */
void sl_bench_fill(struct sl_pool *pool, const struct sl_matrix *matrix, uint8_t *tiles);

/* Returns the next of a reproducible sequence of random numbers. */
uint64_t sl_bench_random(uint64_t *state);

/* Returns the 10^9 multiplications a second that a linear of that many rows and columns does with
 * many tokens, where probes give only what its instructions could. Fails with -ENOMEM. */
int sl_bench_linear_rate(struct sl_bench *bench, enum sl_matrix_kind kind, uint32_t rows,
                         uint32_t cols, struct sl_bench_rate *ret_rate, struct sl_err *err);

/* The parts, one file each. Fail with -ENOMEM. */
int sl_bench_linears(struct sl_bench *bench, struct sl_err *err);
int sl_bench_rows(struct sl_bench *bench, struct sl_err *err);
int sl_bench_layers(struct sl_bench *bench, struct sl_err *err);

/* The commands that run a model. */
int sl_bench_decode(int argc, char **argv);
int sl_bench_prefill(int argc, char **argv);

/* The command that measures drives; it needs no compute threads. */
int sl_bench_io(int argc, char **argv);

#endif
