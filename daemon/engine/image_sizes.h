/* How much memory an engine takes for images of its sessions. */
#ifndef SL_DAEMON_ENGINE_IMAGE_SIZES_H
#define SL_DAEMON_ENGINE_IMAGE_SIZES_H

#include "core/session/session_bytes.h"

/* Bytes of the entries of the largest image. */
uint64_t sl_image_entries_max(const struct sl_kv_layout *layout);

/* Bytes of the ids of the longest session. */
uint64_t sl_image_ids_bytes(uint32_t context_tokens);

/* Bytes in all: one image as it goes to disk or comes from there, and the ids. */
uint64_t sl_image_memory_bytes(const struct sl_kv_layout *layout, uint32_t context_tokens);

#endif
