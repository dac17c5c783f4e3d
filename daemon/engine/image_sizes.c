#include "daemon/engine/image_sizes.h"

#include "core/base/arena.h"
#include "storage/images/images.h"

uint64_t sl_image_entries_max(const struct sl_kv_layout *layout)
{
    return sl_chunk_bytes_max(layout, SL_IMAGE_TOKENS);
}

uint64_t sl_image_ids_bytes(uint32_t context_tokens)
{
    return sl_arena_mapped_bytes(context_tokens * sizeof(int32_t));
}

uint64_t sl_image_memory_bytes(const struct sl_kv_layout *layout, uint32_t context_tokens)
{
    return sl_images_memory_bytes(sl_image_entries_max(layout), sl_mark_bytes_max(layout)) +
           sl_image_ids_bytes(context_tokens);
}
