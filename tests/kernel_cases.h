/* The cases that every kernel of the table is tried on: shapes that the model can have, inputs by
 * kind and seed, and how to call the kernel on them. What is done with the outputs is the caller's.
 *
 * Not for several threads at once. */
#ifndef SL_TESTS_KERNEL_CASES_H
#define SL_TESTS_KERNEL_CASES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/kernels/kernels.h"
#include "tests/kernel_inputs.h"

#define CASE_DIMS 3u
#define CASE_INPUTS 6u
#define CASE_OUTPUTS 3u

/* Where a kernel writes: rows of row_bytes at stride_bytes. What lies between is not its own. */
struct case_output {
    struct guarded where;
    size_t n_rows, row_bytes, stride_bytes;
    const void *initial; /* what it changes in place (one row); NULL for a pure output */
};

struct kernel_case {
    /* What makes the case: set by whoever asks for it. */
    size_t dims[CASE_DIMS];
    size_t pad; /* elements that each stride exceeds its row by */
    enum input_kind kind;
    enum guard_side side;
    uint64_t seed;
    /* Filled by the kernel's prepare(). */
    struct rng rng;
    struct guarded inputs[CASE_INPUTS];
    struct case_output outputs[CASE_OUTPUTS];
    size_t n_outputs;
};

struct kernel_spec {
    const char *name;
    size_t entry; /* offset of its pointer in struct sl_kernels */
    const char *dim_names[CASE_DIMS];
    const size_t *dims[CASE_DIMS]; /* sizes to try, ended by a 0; NULL for none */
    bool is_linear;                /* its first size goes round instead of with all others */
    void (*prepare)(struct kernel_case *c, const struct sl_kernels *ref);
    void (*call)(struct kernel_case *c, const struct sl_kernels *kernels);
};

/* One for every entry of struct sl_kernels, in its order. */
extern const struct kernel_spec kernel_specs[];
extern const size_t kernel_specs_count;

void case_open(struct kernel_case *c);
void case_close(struct kernel_case *c);

/* Sets every output to its initial content, or to the pattern, again. */
void case_reset_outputs(struct kernel_case *c);

/* Returns false to go no further. */
typedef bool case_visit_fn(const struct kernel_spec *spec, struct kernel_case *c, void *context);

/* Prepares every case of a kernel, with the help of the reference kernels, and calls visit(). */
void case_for_each(const struct kernel_spec *spec, struct kernel_case *c,
                   const struct sl_kernels *ref, uint64_t seed, case_visit_fn *visit,
                   void *context);

#endif
