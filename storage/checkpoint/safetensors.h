/* The header of one safetensors file: which tensors it holds and where.
 *
 *     8 bytes   length of the header, little-endian
 *     header    a JSON object: name -> {"dtype", "shape", "data_offsets": [begin, end]}
 *     data      offsets count from here
 *
 * This module reads no files: it is given bytes in memory and the file's size, and trusts neither.
 * A header that it accepts is safe to use: every tensor's bytes lie inside the file, their number
 * is what dtype and shape ask for (if the dtype is a known one), and no two tensors share a byte.
 * Holes between tensors and bytes after the last one are allowed; "__metadata__" is ignored. No
 * state: any thread may call. */
#ifndef SL_STORAGE_CHECKPOINT_SAFETENSORS_H
#define SL_STORAGE_CHECKPOINT_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/err.h"
#include "core/model/weight_source.h"

#define SL_SAFETENSORS_LENGTH_BYTES 8

/* All of Pro in a single file would need 18 MB. */
#define SL_SAFETENSORS_HEADER_BYTES_MAX (64u << 20)

/* Longer names are refused, as are names with control characters: they end up in messages. */
#define SL_SAFETENSORS_NAME_BYTES_MAX 255

struct sl_safetensors_tensor {
    const char *name;
    struct sl_tensor_info info;
    uint64_t offset_bytes; /* of the data, from the start of the file */
};

struct sl_safetensors {
    struct sl_safetensors_tensor *tensors; /* by ascending offset */
    uint32_t tensor_count;
    char *names; /* the block that the names point into */
};

/* Takes the file's first 8 bytes (fewer if it has fewer; the rest is not looked at) and gives the
 * header's length. Fails with -SL_ECORRUPT if the header would not fit in the file and with
 * -SL_EFORMAT if it is absurdly long, or the file a Git LFS pointer. `where` names the file in
 * errors, here and below. */
int sl_safetensors_read_length(const uint8_t prefix[SL_SAFETENSORS_LENGTH_BYTES],
                               uint64_t file_size_bytes, size_t *ret_length, const char *where,
                               struct sl_err *err);

/* Parses the header's text, which begins at byte 8 of the file. The caller ends *ret_header with
 * sl_safetensors_fini(). Fails with -SL_EFORMAT, -SL_ECORRUPT (offsets that contradict the shape,
 * each other or the file's size) or -ENOMEM; then *ret_header is untouched. */
int sl_safetensors_parse(struct sl_safetensors *ret_header, const char *text, size_t length,
                         uint64_t file_size_bytes, const char *where, struct sl_err *err);

/* A zeroed header is allowed. */
void sl_safetensors_fini(struct sl_safetensors *header);

/* Writes dtype and shape, such as "BF16 [7168, 1536]"; of a longer shape only the first
 * SL_TENSOR_DIMS_MAX sizes. Returns `buffer`. */
#define SL_TENSOR_TEXT_BYTES 112
const char *sl_tensor_format(const struct sl_tensor_info *info, char buffer[SL_TENSOR_TEXT_BYTES]);

#endif
