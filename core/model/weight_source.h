/* Where core gets tensors from: declared here, implemented by storage, faked by tests.
 *
 * Names, dtypes and shapes are those of the official checkpoint (shapes [out, in], row-major).
 * Dense weights are read through this: those that stay, at start; those that do not, again in each
 * step. Routed experts come through expert_source.h. */
#ifndef SL_MODEL_WEIGHT_SOURCE_H
#define SL_MODEL_WEIGHT_SOURCE_H

#include <stdbool.h>
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

/* Reads of the same tensors that go on while others compute: for those that do not stay in memory.
 *
 * A reader has a fixed number of slots, each for one read. All calls come from the thread that
 * drives the forward pass, or one at a time from its pool's: check().
 *
 *     begin() ──► start() ──► end() ... ──► end()       the slot is free, once is_free() says so
 */
struct sl_weight_reader;

struct sl_weight_reader_ops {
    /* Queues a read into a free slot: bytes offset .. offset + size of a tensor that is there.
     * `dst` is aligned to SL_BLOCK_BYTES and has room for two blocks more than `size`. Somebody
     * waits for what is urgent. `name` stays until end(). */
    void (*begin)(struct sl_weight_reader *reader, uint32_t slot, const char *name,
                  uint64_t offset_bytes, uint64_t size_bytes, uint8_t *dst, bool urgent);

    /* Sends off what was queued, and takes in what has landed, so that the drives go on. */
    void (*start)(struct sl_weight_reader *reader);

    /* Somebody waits for the slot's read now. */
    void (*hurry)(struct sl_weight_reader *reader, uint32_t slot);

    /* Nobody wants it any more. It still ends, sooner or later. */
    void (*cancel)(struct sl_weight_reader *reader, uint32_t slot);

    /* Returns 1 with the tensor's bytes, which lie in dst, aligned to nothing; or 0 while the read
     * is under way, which with `wait` does not happen. Fails with -ECANCELED, or as reads do, and
     * then `err` names the tensor, its file, drive and offset. */
    int (*end)(struct sl_weight_reader *reader, uint32_t slot, bool wait, const uint8_t **ret_bytes,
               struct sl_err *err);

    /* False while a drive that did not answer in time may still write to the dst of a read that
     * has ended. */
    bool (*is_free)(struct sl_weight_reader *reader, uint32_t slot);

    /* Is given all of a tensor's bytes in order, by any thread of the pool, and compares them with
     * a checksum where there is one that is to be looked at. Returns 0 or -SL_ECORRUPT. */
    int (*check)(struct sl_weight_reader *reader, const char *name, uint64_t offset_bytes,
                 uint64_t size_bytes, const uint8_t *bytes, struct sl_err *err);
};

/* First member of every implementation. */
struct sl_weight_reader {
    const struct sl_weight_reader_ops *ops;
};

/* "BF16" and so on, as safetensors spells them. Neither takes SL_DTYPE_OTHER. */
const char *sl_dtype_name(enum sl_dtype dtype);
uint32_t sl_dtype_size_bytes(enum sl_dtype dtype);

/* Names the place of any tensor; the text may be the tensor's own. */
const char *sl_tensor_dtype_name(const struct sl_tensor_info *info);

#endif
