#include "daemon/engine/image_sizes.h"

#include "core/base/arena.h"
#include "storage/images/images.h"

int sl_image_sizes_make(struct sl_image_sizes *ret_sizes, const struct sl_config *config,
                        enum sl_numerics numerics, uint32_t n_draft_blocks, uint32_t context_tokens,
                        struct sl_err *err)
{
    struct sl_kv_layout layout;
    struct sl_image_sizes sizes;
    int rc = sl_kv_layout_init(&layout, config, config->num_hidden_layers + n_draft_blocks,
                               numerics, err);

    if (rc < 0)
        return rc;
    sizes.entries_bytes_max = sl_chunk_bytes_max(&layout, SL_IMAGE_TOKENS);
    sizes.mark_bytes_max = sl_mark_bytes_max(&layout);
    sizes.ids_bytes = sl_arena_mapped_bytes(context_tokens * sizeof(int32_t));
    sizes.memory_bytes =
        sl_images_memory_bytes(sizes.entries_bytes_max, sizes.mark_bytes_max) + sizes.ids_bytes;
    sl_kv_layout_fini(&layout);
    *ret_sizes = sizes;
    return 0;
}
