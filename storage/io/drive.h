/* Which drive a file or folder lies on, as far as the system tells. No state. */
#ifndef SL_STORAGE_IO_DRIVE_H
#define SL_STORAGE_IO_DRIVE_H

#include <stdint.h>

#include "core/base/err.h"

#define SL_DRIVE_NAME_BYTES 80

struct sl_drive {
    /* All partitions of a disk have the disk's name: "nvme0n1". A file system on no block device,
     * or on several, such as tmpfs, btrfs or a network's, is named by its number: "device 0:42". */
    char name[SL_DRIVE_NAME_BYTES];

    /* The number of the file system. It differs once the files were moved to another one. */
    unsigned long filesystem;
};

/* Fails with -errno, naming the path. */
int sl_drive_of(struct sl_drive *ret_drive, const char *path, struct sl_err *err);

/* Fails with -SL_EFORMAT if two of the folders are on one drive, naming both. */
int sl_drives_check(const char *const *folders, uint32_t n_folders, struct sl_err *err);

#endif
