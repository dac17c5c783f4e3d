/* Linears: a weight matrix in R16 tiles times rows of activations.
 *
 * Several linears that are ready at the same time run as one job of the thread pool. */
#ifndef SL_MODEL_LINEAR_H
#define SL_MODEL_LINEAR_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/arena.h"
#include "core/model/chains.h"
#include "core/model/matrix.h"

/* Rows of activations in the forms that linears read: FP8 and BF16 weights take bf16, FP4 weights
 * int8 with their scales, F32 weights and all of `exact` float32. Only what is read need be set. */
struct sl_act {
    const float *f32;
    const uint16_t *bf16;
    size_t stride; /* elements between tokens, of f32 */
    size_t bf16_stride;
    const int8_t *int8;
    const float *int8_scale; /* (tokens, cols / 128); int8 rows lie cols apart */
};

/* Rows of float32 activations that linears are about to read, with their rounded forms beside them.
 * Pointers of forms that were not asked for are NULL; `exact` has float32 alone. */
struct sl_act_buffer {
    float *f32;     /* (rows, cols) */
    uint16_t *bf16; /* (rows, cols) at bf16_stride */
    int8_t *int8;
    float *int8_scale; /* (rows, cols / 128) */
    uint32_t cols;
    /* Rows of bf16 begin with a line of the cache and are an odd number of lines apart: a column of
     * many rows that were a power of two apart would not fit into the caches' sets. */
    uint32_t bf16_stride;
};

enum sl_act_forms {
    SL_ACT_BF16 = 1,
    SL_ACT_INT8 = 2,
    SL_ACT_ROUNDED_ALONE = 4, /* f32 is NULL but for `exact`: rows are copied from another buffer */
};

/* Takes a buffer's memory from `arena` (measuring or mapped). */
struct sl_act_buffer sl_act_buffer_carve(struct sl_arena *arena, uint64_t rows, uint32_t cols,
                                         unsigned forms, enum sl_numerics numerics);

/* Rounds row `row` of f32 into the other forms. For jobs of the pool, hence thread_index. */
void sl_act_buffer_round(const struct sl_act_buffer *buffer, const struct sl_compute *compute,
                         uint32_t thread_index, size_t row);

/* The rows from first_row on: to write, and to read. */
struct sl_act_buffer sl_act_buffer_from(const struct sl_act_buffer *buffer, size_t first_row);
struct sl_act sl_act_buffer_rows(const struct sl_act_buffer *buffer, size_t first_row);

struct sl_linear_job {
    const struct sl_matrix *matrix;
    struct sl_act x;
    float *y; /* (token_count, rows rounded up to 16) at y_stride */
    size_t y_stride;
    size_t token_count;
    /* 0, or a multiple of 16: each so many rows read x further on by the matrix's columns. */
    uint32_t group_rows;
};

/* How linears are shared out among the threads. */
struct sl_linear_shares {
    const struct sl_compute *compute;
    const struct sl_linear_job *jobs; /* (n_jobs) */
    size_t n_jobs;
    size_t n_parts;    /* of each matrix: a thread's, or where there is little to do fewer */
    size_t n_subparts; /* of a part: what others can take over */
};

/* All jobs as one job of a chain. They are counted in `phase` now. *ret_shares and the jobs stay
 * the caller's and must last until the chain is done. Outputs must not overlap any input. Thread i
 * of n always takes the same part of a matrix: its tiles from i / n on, as sl_pool_run() cuts them.
 */
struct sl_chain_job sl_linear_chain(struct sl_linear_shares *ret_shares,
                                    const struct sl_compute *compute, enum sl_phase phase,
                                    const struct sl_linear_job *jobs, size_t n_jobs);

/* Runs all jobs likewise and returns when they are done. */
void sl_linear_run(const struct sl_compute *compute, enum sl_phase phase,
                   const struct sl_linear_job *jobs, size_t n_jobs);

#endif
