/* Makes the contents of a store from a checkpoint or another store: records of experts and bytes of
 * dense tensors.
 *
 * Equal weights give equal bytes; compressed ones, if zstd is of the same version. Any thread may
 * call, each with a maker or buffers of its own. */
#ifndef SL_STORAGE_PACK_STORE_RECORDS_H
#define SL_STORAGE_PACK_STORE_RECORDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/err.h"
#include "storage/checkpoint/checkpoint.h"
#include "storage/store/codec.h"
#include "storage/experts/expert_map.h"
#include "storage/io/file_writer.h"
#include "storage/store/store.h"

/* The source that records are made from: a checkpoint, or a complete store. */
struct sl_record_source {
    const struct sl_expert_map *experts;    /* of either */
    const struct sl_checkpoint *checkpoint; /* or store: one is NULL */
    const struct sl_store *store;
    const int *fds; /* of the store's files (storage/store/record_read.h), and their paths */
    const char *const *paths;
};

/* Makes records; each thread has its own. A zeroed one is empty. */
struct sl_record_maker {
    struct sl_record_source source; /* its pointers are borrowed */
    uint8_t *staging;               /* an expert as the source has it, then as it will be stored */
    uint8_t *record;
    struct sl_record_encoder *encoder; /* NULL: records stay as they are */
    struct sl_codec_gain gain;         /* of all that were made */
};

/* A maker makes plain records, and after sl_record_maker_compress() compressed ones where that
 * pays. It allocates sl_record_maker_bytes(), and a little more to compress. Both return 0 or
 * -ENOMEM; the caller ends it in any case. */
int sl_record_maker_init(struct sl_record_maker *maker, const struct sl_record_source *source);
int sl_record_maker_compress(struct sl_record_maker *maker);
void sl_record_maker_fini(struct sl_record_maker *maker);
uint64_t sl_record_maker_bytes(const struct sl_expert_shape *shape);

/* Makes an expert's record. *ret_record has *ret_bytes, belongs to the maker and is valid until the
 * next call; *ret_expert is filled except for its parts. Fails as reading does, and with
 * -SL_ECORRUPT for a scale that is NaN or too large, or if the source's checksum does not fit;
 * names file, layer and expert. */
int sl_record_make(struct sl_record_maker *maker, struct sl_expert_key key,
                   struct sl_packed_expert *ret_expert, const uint8_t **ret_record,
                   uint64_t *ret_bytes, struct sl_err *err);

/* Writes a record to its parts. `files` and `paths` are indexed by the parts' file_index. */
int sl_record_write(struct sl_file_writer *writer, const int *files, const char *const *paths,
                    const struct sl_packed_expert *expert, const uint8_t *record,
                    struct sl_err *err);

/* The place that a tensor is written to. */
struct sl_tensor_target {
    struct sl_file_writer *writer; /* NULL: nowhere, for the checksum alone */
    int file;
    const char *path;      /* for messages */
    uint64_t offset_bytes; /* a multiple of SL_BLOCK_BYTES */
};

/* Copies a tensor, all of its size_bytes, padded with zeros to whole blocks. `buffer` has
 * SL_TENSOR_BUFFER_BYTES and is aligned to SL_BLOCK_BYTES. */
#define SL_TENSOR_BUFFER_BYTES (UINT64_C(16) << 20)
int sl_tensor_copy(struct sl_weight_source *weights, const char *name, uint64_t size_bytes,
                   const struct sl_tensor_target *target, uint8_t *buffer, uint64_t *ret_checksum,
                   struct sl_err *err);

#endif
