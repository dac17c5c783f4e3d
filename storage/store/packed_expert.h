/* One expert as a store holds it: a record of the bytes that core/model/expert_shape.h describes,
 * or fewer where it is compressed and has to be unpacked first (storage/store/codec.h). The record
 * is cut into parts of whole blocks, one for each drive. */
#ifndef SL_STORAGE_STORE_PACKED_EXPERT_H
#define SL_STORAGE_STORE_PACKED_EXPERT_H

#include <stdbool.h>
#include <stdint.h>

#include "core/model/expert_shape.h"
#include "storage/io/extent.h"

#define SL_EXPERT_PARTS_MAX 8u
struct sl_packed_expert {
    uint64_t checksums[SL_EXPERT_MATRICES]; /* of the tiles (storage/io/checksum.h) */
    bool compressed;
    uint64_t stored_checksum; /* of a compressed record: of its bytes as they are stored */
    uint32_t n_parts;
    struct sl_extent parts[SL_EXPERT_PARTS_MAX]; /* in the record's order */
};

/* When a packed expert that was read is compared with its checksums. */
enum sl_verify {
    SL_VERIFY_FIRST, /* the first time in a run */
    SL_VERIFY_ALWAYS,
    SL_VERIFY_NEVER,
};

/* Returns how many bytes the record takes in the store's files. */
uint64_t sl_packed_expert_stored_bytes(const struct sl_packed_expert *expert);

/* Gives the extents of a matrix's tiles in a record that is not compressed: one, of any size, for
 * each part that holds some of them. Returns their number. */
uint32_t sl_packed_expert_matrix(const struct sl_packed_expert *expert,
                                 const struct sl_expert_shape *shape, int matrix,
                                 struct sl_extent ret_extents[SL_EXPERT_PARTS_MAX]);

#endif
