#include "storage/store/packed_expert.h"

#include "core/base/assert.h"

uint64_t sl_packed_expert_stored_bytes(const struct sl_packed_expert *expert)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < expert->n_parts; i++)
        bytes += expert->parts[i].size_bytes;
    return bytes;
}

uint32_t sl_packed_expert_matrix(const struct sl_packed_expert *expert,
                                 const struct sl_expert_shape *shape, int matrix,
                                 struct sl_extent ret_extents[SL_EXPERT_PARTS_MAX])
{
    uint64_t skip_bytes = sl_expert_matrix_offset_bytes(shape, matrix);
    uint64_t left_bytes = sl_expert_matrix_bytes(shape, matrix);
    uint32_t count = 0;

    for (uint32_t i = 0; left_bytes > 0; i++) {
        const struct sl_extent *part = &expert->parts[i];
        uint64_t size_bytes;

        sl_assert(i < expert->n_parts);
        if (skip_bytes >= part->size_bytes) {
            skip_bytes -= part->size_bytes;
            continue;
        }
        size_bytes =
            part->size_bytes - skip_bytes < left_bytes ? part->size_bytes - skip_bytes : left_bytes;
        ret_extents[count++] = (struct sl_extent){.offset_bytes = part->offset_bytes + skip_bytes,
                                                  .size_bytes = size_bytes,
                                                  .file_index = part->file_index};
        left_bytes -= size_bytes;
        skip_bytes = 0;
    }
    return count;
}
