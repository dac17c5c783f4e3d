/* Measures how fast a drive reads, in a short trial, so that work can be shared among drives. */
#ifndef SL_STORAGE_PACK_DRIVE_SPEED_H
#define SL_STORAGE_PACK_DRIVE_SPEED_H

#include <stdint.h>

#include "core/base/err.h"
#include "storage/io/io.h"

/* Writes a file of 64 MiB into the folder, reads it again and again past the page cache, many
 * pieces at once, and removes it. Takes a second or so. Fails with -ENOMEM, or -errno, naming the
 * file. */
int sl_drive_speed(const char *folder, sl_io_open_fn *open_io, uint64_t *ret_bytes_per_s,
                   struct sl_err *err);

#endif
