/* Owns the opening and closing of the files that all back ends read from. */
#include "storage/io/io.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/file.h"
#include "core/base/size.h"

/* Returns the drive of an earlier file on the same device, or a new one. */
static uint32_t find_drive(struct sl_io *io, uint32_t file_index)
{
    for (uint32_t i = 0; i < file_index; i++) {
        if (io->files[i].device == io->files[file_index].device)
            return io->files[i].drive_index;
    }
    return io->n_drives++;
}

int sl_io_files_open(struct sl_io *io, const char *const *paths, uint32_t n_files, uint32_t depth,
                     uint32_t reads_max_limit, struct sl_err *err)
{
    uint64_t reads_max;

    sl_assert(depth >= 1);
    io->direct = true;
    io->files = calloc(n_files ? n_files : 1, sizeof(*io->files));
    if (!io->files)
        return sl_err_set(err, -ENOMEM, "file table: out of memory");
    for (uint32_t i = 0; i < n_files; i++) {
        int fd = sl_file_open(paths[i], err);
        struct stat status;

        if (fd < 0)
            return fd;
        io->direct = sl_file_set_direct(fd, SL_BLOCK_BYTES) && io->direct;
        io->files[i].fd = fd;
        io->n_files = i + 1;
        io->files[i].path = strdup(paths[i]);
        if (!io->files[i].path)
            return sl_err_set(err, -ENOMEM, "%s: out of memory", paths[i]);
        if (fstat(fd, &status) < 0)
            return sl_err_set(err, -errno, "%s: cannot look up its drive: %s", paths[i],
                              sl_strerror(errno));
        io->files[i].device = status.st_dev;
        io->files[i].drive_index = find_drive(io, i);
    }
    reads_max = (uint64_t)depth * io->n_drives;
    io->reads_max = (uint32_t)(reads_max < reads_max_limit ? reads_max : reads_max_limit);
    if (io->reads_max < io->n_drives)
        io->reads_max = io->n_drives;
    return 0;
}

void sl_io_files_close(struct sl_io *io)
{
    for (uint32_t i = 0; i < io->n_files; i++) {
        close(io->files[i].fd);
        free(io->files[i].path);
    }
    free(io->files);
}
