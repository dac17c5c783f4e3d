/* The `exact` numerics: scalar twins of what the kernels do, with nothing rounded on the way.
 *
 * For tests only (docs/NUMERICS.md): they prove the architecture, the kernels prove the arithmetic.
 * Inputs and outputs are float32; sums run in double. */
#ifndef SL_MODEL_EXACT_H
#define SL_MODEL_EXACT_H

#include <stddef.h>

#include "core/model/matrix.h"

/* y (token_count, (end_tile - first_tile) * 16) = tiles of the dequantised matrix times x. */
void sl_exact_matmul(const struct sl_matrix *matrix, size_t first_tile, size_t end_tile,
                     size_t token_count, const float *x, size_t x_stride, float *y,
                     size_t y_stride);

/* One head of one query: out (head_dim) = softmax with sink over entries (entry_count pointers to
 * head_dim values). `p` is scratch for entry_count values. */
void sl_exact_attend(size_t head_dim, size_t entry_count, const float *q,
                     const float *const *entries, float sink, double *p, float *out);

/* total[n] = sum over heads of weight * relu(q . key) for one query; q (head_count, dim), keys
 * (key_count, dim). */
void sl_exact_index_scores(size_t head_count, size_t dim, size_t key_count, const float *q,
                           const float *weight, const float *keys, float *total);

#endif
