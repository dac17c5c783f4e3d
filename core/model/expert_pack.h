/* An expert's matrix from a checkpoint's rows into the form that core/model/expert_shape.h
 * describes. Pure functions, for any thread. */
#ifndef SL_MODEL_EXPERT_PACK_H
#define SL_MODEL_EXPERT_PACK_H

#include <stddef.h>
#include <stdint.h>

#include "core/model/expert_shape.h"
#include "core/model/weight_source.h"

/* A matrix in a checkpoint: row-major, at any address. FP4: codes (rows, cols / 2), two in a byte,
 * and E8M0 scales (rows, cols / 32). FP8: codes (rows, cols) and scales (rows / 128, cols / 128) of
 * either dtype, F32 or F8_E8M0. */
struct sl_expert_rows {
    const uint8_t *codes, *scales;
    enum sl_dtype scale_dtype;
};

/* The sizes of codes and scales in bytes. */
uint64_t sl_expert_codes_bytes(const struct sl_expert_shape *shape, int matrix);
uint64_t sl_expert_scales_bytes(const struct sl_expert_shape *shape, int matrix,
                                enum sl_dtype scale_dtype);

/* Packs tiles first_tile <= t < end_tile, and the scales of blocks of rows that begin with one of
 * these; `packed` is the whole matrix. Parts may be packed in any order and at the same time.
 * Returns 0, or -SL_ECORRUPT for a scale that is negative, NaN or above 2^60, or a code that is
 * NaN. */
int sl_expert_pack(const struct sl_expert_shape *shape, int matrix,
                   const struct sl_expert_rows *rows, size_t first_tile, size_t end_tile,
                   uint8_t *packed);

/* Tells what sl_expert_pack() refuses in a matrix, as the end of a sentence. */
const char *sl_expert_unsound_text(enum sl_expert_dtype dtype);

#endif
