/* What a store holds, made from a checkpoint: an expert's record, a dense tensor's bytes.
 *
 * The same checkpoint gives the same bytes. No state: any thread may call, each with buffers of its
 * own. */
#ifndef SL_STORAGE_STORE_RECORDS_H
#define SL_STORAGE_STORE_RECORDS_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/err.h"
#include "storage/checkpoint.h"
#include "storage/expert_store.h"
#include "storage/file_writer.h"

/* An expert as a checkpoint has it: all its codes and scales. */
uint64_t sl_record_staging_bytes(const struct sl_expert_shape *shape);

/* Makes an expert's record of sl_packed_expert_bytes() in `record`, all of it, and the checksums of
 * its matrices. Fails as reading does, and with -SL_ECORRUPT for a scale that is NaN or too large;
 * names file, layer and expert. `experts` are the checkpoint's. */
int sl_record_make(const struct sl_checkpoint *checkpoint, const struct sl_expert_store *experts,
                   struct sl_expert_key key, uint8_t *staging, uint8_t *record,
                   uint64_t ret_checksums[SL_EXPERT_MATRICES], struct sl_err *err);

/* Writes a record to its parts. `files` and `paths` by the parts' file_index. */
int sl_record_write(struct sl_file_writer *writer, const int *files, const char *const *paths,
                    const struct sl_packed_expert *expert, const uint8_t *record,
                    struct sl_err *err);

/* Where a tensor goes. */
struct sl_tensor_target {
    struct sl_file_writer *writer; /* NULL: nowhere, for the checksum alone */
    int file;
    const char *path;      /* for messages */
    uint64_t offset_bytes; /* a multiple of SL_WRITE_ALIGN_BYTES */
};

/* Copies a tensor, all of its size_bytes, padded with zeros to whole blocks. `buffer` has
 * SL_TENSOR_BUFFER_BYTES and is aligned to SL_WRITE_ALIGN_BYTES. */
#define SL_TENSOR_BUFFER_BYTES (UINT64_C(16) << 20)
int sl_tensor_copy(struct sl_weight_source *weights, const char *name, uint64_t size_bytes,
                   const struct sl_tensor_target *target, uint8_t *buffer, uint64_t *ret_checksum,
                   struct sl_err *err);

/* A small file, whole and synced. */
int sl_write_small(struct sl_file_writer *writer, const char *path, const char *text, size_t length,
                   struct sl_err *err);

/* Fills `err` for a call of a file writer that failed with `rc`, and returns it. */
int sl_write_error(struct sl_err *err, int rc, const char *path, const char *what);

#endif
