/* Where core gets tensors from: declared here, implemented by storage, faked by tests.
 *
 * Names, dtypes and shapes are those of the official checkpoint (shapes [out, in], row-major).
 * Dense weights are read through this at start; routed experts come through expert_source.h. */
#ifndef SL_MODEL_WEIGHT_SOURCE_H
#define SL_MODEL_WEIGHT_SOURCE_H

#include <stdint.h>

#include "core/base/err.h"

enum sl_dtype {
    SL_DTYPE_F32,
    SL_DTYPE_BF16,
    SL_DTYPE_F8_E4M3,
    SL_DTYPE_F8_E8M0,
    SL_DTYPE_I8, /* in an expert's weight: two FP4 codes, the even column in the low nibble */
    SL_DTYPE_U8,
    SL_DTYPE_I32,
    SL_DTYPE_I64,
    SL_DTYPE_COUNT,
    SL_DTYPE_OTHER = SL_DTYPE_COUNT, /* nothing that the engine computes with */
};

#define SL_TENSOR_DIMS_MAX 4

/* Whoever uses a tensor compares dtype, n_dims and shape with what it expects. Tensors that nobody
 * uses may be of any kind: of a dtype that is not known, or of more dimensions than shape has. */
struct sl_tensor_info {
    enum sl_dtype dtype;
    uint32_t n_dims;
    uint64_t shape[SL_TENSOR_DIMS_MAX]; /* the first ones; entries from n_dims on are 1 */
    uint64_t size_bytes;                /* product of all sizes times the dtype's size */
    char other_dtype[12]; /* what the file calls SL_DTYPE_OTHER, cut short; "" for other dtypes */
};

struct sl_weight_source;

struct sl_weight_source_ops {
    /* Returns 0 or -ENOENT. */
    int (*find)(struct sl_weight_source *source, const char *name, struct sl_tensor_info *ret_info);

    /* Reads bytes offset .. offset + size of the tensor's data into dst (no alignment needed).
     * The range lies inside the tensor (the caller's duty). Blocks. Fails with -errno or
     * -SL_ECORRUPT, and `err` names the file, the tensor and the offset. */
    int (*read)(struct sl_weight_source *source, const char *name, uint64_t offset_bytes,
                uint64_t size_bytes, void *dst, struct sl_err *err);

    /* The file that holds the tensor, for messages; the checkpoint's folder if there is no such
     * tensor. Valid as long as the source. */
    const char *(*where)(struct sl_weight_source *source, const char *name);
};

/* First member of every implementation. */
struct sl_weight_source {
    const struct sl_weight_source_ops *ops;
};

/* "BF16" and so on, as safetensors spells them. Neither takes SL_DTYPE_OTHER. */
const char *sl_dtype_name(enum sl_dtype dtype);
uint32_t sl_dtype_size_bytes(enum sl_dtype dtype);

/* Names the place of any tensor; the text may be the tensor's own. */
const char *sl_tensor_dtype_name(const struct sl_tensor_info *info);

#endif
