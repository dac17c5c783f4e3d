/* How much memory an engine takes for images of its sessions. */
#ifndef SL_DAEMON_ENGINE_IMAGE_SIZES_H
#define SL_DAEMON_ENGINE_IMAGE_SIZES_H

#include "core/model/config.h"
#include "core/session/session_bytes.h"

struct sl_image_sizes {
    uint64_t entries_bytes_max, mark_bytes_max; /* of one image */
    uint64_t ids_bytes;                         /* of the longest session */
    uint64_t memory_bytes; /* in all: one image as it goes to disk or comes from there, and ids */
};

/* The model's draft has n_draft_blocks. They count also where they are not loaded, since an image
 * may have been made where they were. Fails with -ENOMEM. */
int sl_image_sizes_make(struct sl_image_sizes *ret_sizes, const struct sl_config *config,
                        enum sl_numerics numerics, uint32_t n_draft_blocks, uint32_t context_tokens,
                        struct sl_err *err);

#endif
