/* One dense tensor on its way from its file to where the model uses it.
 *
 * core/model/weights.c names the tensors, checks their headers and chooses where they go; whoever
 * reads them hands their bytes here, a chunk at a time and in order, to be looked at and converted:
 * linears become R16 tiles, small tables float32. */
#ifndef SL_MODEL_TENSOR_LOAD_H
#define SL_MODEL_TENSOR_LOAD_H

#include <stdint.h>

#include "core/base/err.h"
#include "core/model/matrix.h"
#include "core/model/weight_source.h"

#define SL_TENSOR_NAME_BYTES 160

enum sl_tensor_form {
    SL_TENSOR_FLOATS, /* F32 or BF16 to float32 */
    SL_TENSOR_SCALES, /* E8M0 or F32 to float32: of the tiles that come next */
    SL_TENSOR_TILES,  /* rows of a linear to R16 tiles */
    SL_TENSOR_TABLE,  /* I64 or I32 to experts' numbers in 16 bits */
    SL_TENSOR_BYTES,  /* F32 or BF16, as they are: the embedding */
};

/* Filled by core/model/weights.c; the memory is the caller's of that. */
struct sl_tensor_load {
    char name[SL_TENSOR_NAME_BYTES]; /* in full, as in the checkpoint */
    enum sl_tensor_form form;
    struct sl_tensor_info info;
    struct sl_matrix matrix;      /* TILES; SCALES: of the linear that they belong to */
    void *dst;                    /* the tiles, numbers or bytes */
    uint64_t n_padded;            /* FLOATS: elements of dst, zeros from the tensor's end on */
    uint32_t n_experts, n_in_row; /* TABLE */
};

/* Is told of a tensor that has its memory. Returns 0 or an error, which ends the walk. */
typedef int sl_take_tensor_fn(void *context, const struct sl_tensor_load *load, struct sl_err *err);

/* The bytes that one chunk may have is a multiple of this, unless it ends the tensor. */
uint64_t sl_tensor_load_unit_bytes(const struct sl_tensor_load *load);

/* Returns the size of a tensor's chunks: as many units as make up wanted_bytes, but at least one,
 * and no more than the tensor. */
uint64_t sl_tensor_load_chunk_bytes(const struct sl_tensor_load *load, uint64_t wanted_bytes);

/* A chunk on its way: it is converted in items, each of which some thread does, at any time. */
struct sl_tensor_part {
    const struct sl_tensor_load *load;
    uint64_t offset_bytes, size_bytes;
    const uint8_t *bytes; /* aligned as the tensor's elements are */
    const char *where;    /* the file, for messages */

    /* 0 or the first failure, written by whichever thread meets it: of tiles and bytes any may, and
     * the message is written at the end; all else is one item, which writes both. */
    int rc;
    struct sl_err err;
};

/* Returns how many items there are, at least one. */
uint64_t sl_tensor_part_item_count(const struct sl_tensor_part *part);

/* Converts items first <= i < end. Scales that they need have been converted. */
void sl_tensor_part_convert(struct sl_tensor_part *part, uint64_t first, uint64_t end);

/* All items are done. Fails with -SL_ECORRUPT, naming file and tensor. */
int sl_tensor_part_end(struct sl_tensor_part *part, struct sl_err *err);

#endif
