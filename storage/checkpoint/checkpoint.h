/* An official checkpoint folder: every tensor of its *.safetensors files, by name.
 *
 * Opening reads the shards' headers and model.safetensors.index.json and trusts neither: offsets
 * lie inside the file, do not overlap, and match dtype and shape; every tensor of the index is in
 * the file that the index names. Names and types are in the release's spelling, however the files
 * spell them (storage/checkpoint/tensor_spelling.h). Tensor data are read on request. After
 * opening, reads may come from any thread.
 *
 * sluice pack --consume cuts a shard off behind its header once all of its tensors are in a store.
 * Such a folder is no complete checkpoint any more, but an interrupted pack can go on from it. */
#ifndef SL_STORAGE_CHECKPOINT_CHECKPOINT_H
#define SL_STORAGE_CHECKPOINT_CHECKPOINT_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"
#include "core/model/weight_source.h"

#define SL_CHECKPOINT_INDEX "model.safetensors.index.json"

struct sl_checkpoint;

struct sl_checkpoint_tensor {
    const char *name;
    struct sl_tensor_info info;
    uint64_t offset_bytes; /* of the data, from the start of the file */
    uint32_t file_index;
};

/* Fails with -errno, -ENOMEM, -SL_EFORMAT or -SL_ECORRUPT; `err` names file, tensor and what was
 * expected. The caller closes *ret_checkpoint. */
int sl_checkpoint_open(struct sl_checkpoint **ret_checkpoint, const char *folder,
                       struct sl_err *err);

/* Opens a checkpoint whose shards may be cut off anywhere behind their headers: see
 * sl_checkpoint_has(). Fails as sl_checkpoint_open() does. */
int sl_checkpoint_open_cut(struct sl_checkpoint **ret_checkpoint, const char *folder,
                           struct sl_err *err);

/* Is told of a file that is bad: missing, cut, or with a header that cannot be. `message` names it
 * and says what is wrong. */
typedef void sl_bad_file_fn(void *context, const char *path, const char *message);

/* Opens what there is of a checkpoint, to look at the rest of it: tensors of bad files are left
 * out, and each such file is reported once. Fails as sl_checkpoint_open() does where more than
 * single files are wrong. */
int sl_checkpoint_survey(struct sl_checkpoint **ret_checkpoint, const char *folder,
                         sl_bad_file_fn *on_bad, void *context, struct sl_err *err);

/* NULL is allowed. */
void sl_checkpoint_close(struct sl_checkpoint *checkpoint);

/* Computes a checksum over the bytes of model.safetensors.index.json, or, where there is none, over
 * every tensor's name, dtype, shape, file and offset. Fails as reading that file does. */
int sl_checkpoint_index_checksum(const struct sl_checkpoint *checkpoint, uint64_t *ret_checksum,
                                 struct sl_err *err);

/* Returns the checkpoint as core's weight source, which lives as long as the checkpoint. */
struct sl_weight_source *sl_checkpoint_weights(struct sl_checkpoint *checkpoint);

const char *sl_checkpoint_folder(const struct sl_checkpoint *checkpoint);

uint32_t sl_checkpoint_tensor_count(const struct sl_checkpoint *checkpoint);

/* Returns tensor number `i` in the order of their names (strcmp). */
const struct sl_checkpoint_tensor *sl_checkpoint_tensor_at(const struct sl_checkpoint *checkpoint,
                                                           uint32_t tensor_index);

/* Returns the tensor of that name, or NULL if there is none. */
const struct sl_checkpoint_tensor *sl_checkpoint_find(const struct sl_checkpoint *checkpoint,
                                                      const char *name);

/* Returns whether there is a tensor whose name begins so. */
bool sl_checkpoint_has_prefix(const struct sl_checkpoint *checkpoint, const char *prefix);

/* Reads bytes of a file that lie within its tensors. Fails with -errno or -SL_ECORRUPT (the file
 * was cut after it was opened), naming file and offset. Any thread. */
int sl_checkpoint_read(const struct sl_checkpoint *checkpoint, uint32_t file_index,
                       uint64_t offset_bytes, uint64_t size_bytes, void *dst, struct sl_err *err);

uint32_t sl_checkpoint_file_count(const struct sl_checkpoint *checkpoint);
const char *sl_checkpoint_file_path(const struct sl_checkpoint *checkpoint, uint32_t file_index);

/* The first returns a file's size when it was opened; the second where in it the header ends. */
uint64_t sl_checkpoint_file_bytes(const struct sl_checkpoint *checkpoint, uint32_t file_index);
uint64_t sl_checkpoint_header_bytes(const struct sl_checkpoint *checkpoint, uint32_t file_index);

/* Whether sl_checkpoint_survey() has reported the file. */
bool sl_checkpoint_file_is_bad(const struct sl_checkpoint *checkpoint, uint32_t file_index);

/* Returns whether the file had all of these bytes when it was opened. */
bool sl_checkpoint_has(const struct sl_checkpoint *checkpoint, uint32_t file_index,
                       uint64_t offset_bytes, uint64_t size_bytes);

#endif
