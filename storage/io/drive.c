#include "storage/io/drive.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* The system shows each block device as a folder of its name. A partition's folder lies in its
 * disk's and has a file "partition". Returns false where the system shows no folder. */
static bool name_block_device(dev_t device, char name[SL_DRIVE_NAME_BYTES])
{
    char link[64], folder[PATH_MAX], mark[PATH_MAX + 16];
    const char *last;

    snprintf(link, sizeof(link), "/sys/dev/block/%u:%u", major(device), minor(device));
    if (!realpath(link, folder))
        return false;
    snprintf(mark, sizeof(mark), "%s/partition", folder);
    if (access(mark, F_OK) == 0)
        *strrchr(folder, '/') = '\0';
    last = strrchr(folder, '/');
    return last && snprintf(name, SL_DRIVE_NAME_BYTES, "%s", last + 1) < SL_DRIVE_NAME_BYTES;
}

int sl_drive_of(struct sl_drive *ret_drive, const char *path, struct sl_err *err)
{
    struct statvfs filesystem;
    struct stat status;

    if (stat(path, &status) < 0 || statvfs(path, &filesystem) < 0)
        return sl_err_set(err, -errno, "%s: cannot tell its drive: %s", path, sl_strerror(errno));
    if (!name_block_device(status.st_dev, ret_drive->name))
        snprintf(ret_drive->name, sizeof(ret_drive->name), "device %u:%u", major(status.st_dev),
                 minor(status.st_dev));
    ret_drive->filesystem = filesystem.f_fsid;
    return 0;
}

int sl_drives_check(const char *const *folders, uint32_t n_folders, struct sl_err *err)
{
    struct sl_drive a, b;
    int rc = 0;

    for (uint32_t i = 1; i < n_folders && rc == 0; i++) {
        rc = sl_drive_of(&a, folders[i], err);
        for (uint32_t k = 0; k < i && rc == 0; k++) {
            rc = sl_drive_of(&b, folders[k], err);
            if (rc == 0 && strcmp(a.name, b.name) == 0)
                rc = sl_err_set(err, -SL_EFORMAT,
                                "%s and %s are on one drive, %s: striping over it gains nothing",
                                folders[k], folders[i], a.name);
        }
    }
    return rc;
}
