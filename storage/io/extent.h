#ifndef SL_STORAGE_IO_EXTENT_H
#define SL_STORAGE_IO_EXTENT_H

#include <stdint.h>

/* A run of bytes in one file; offset and size are whatever the file has, aligned to nothing. */
struct sl_extent {
    uint64_t offset_bytes;
    uint64_t size_bytes;
    uint32_t file_index;
};

#endif
