/* A weight matrix in R16 tiles (core/kernels/r16.h), of any of the kinds that linears multiply. */
#ifndef SL_MODEL_MATRIX_H
#define SL_MODEL_MATRIX_H

#include <stddef.h>
#include <stdint.h>

enum sl_matrix_kind {
    SL_MATRIX_FP4,
    SL_MATRIX_FP8,       /* scales are powers of two */
    SL_MATRIX_FP8_BLOCK, /* scales are any float32 */
    SL_MATRIX_BF16,
    SL_MATRIX_F32,
};

/* A weight [rows, cols] in memory that someone else owns. */
struct sl_matrix {
    enum sl_matrix_kind kind;
    uint32_t rows;
    uint32_t cols;
    const uint8_t *tiles; /* core/kernels/r16.h */
    const float *scales;  /* both FP8: (ceil(rows / 128), cols / 128) */
};

/* Bytes of 16 rows. */
size_t sl_matrix_tile_bytes(const struct sl_matrix *matrix);

/* A table whose rows are looked up is not packed: it lies as it is stored, BF16 or F32. The first
 * returns the bytes of a row, the second writes one as float32. */
size_t sl_table_row_bytes(const struct sl_matrix *table);
void sl_table_row(const struct sl_matrix *table, const uint8_t *row, float *x);

#endif
