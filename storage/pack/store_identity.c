#include "storage/pack/store_identity.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "core/base/file.h"
#include "storage/io/checksum.h"
#include "storage/io/plain_file.h"
#include "storage/store/store_copies.h"

int sl_store_lock(const char *store_folder, struct sl_err *err)
{
    int fd = open(store_folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc;

    if (fd < 0)
        return sl_err_set(err, -errno, "%s: cannot open the folder: %s", store_folder,
                          sl_strerror(errno));
    if (flock(fd, LOCK_EX | LOCK_NB) == 0)
        return fd;
    if (errno == EWOULDBLOCK)
        rc = sl_err_set(err, -EBUSY, "%s: another process is writing to this store", store_folder);
    else
        rc = sl_err_set(err, -errno, "%s: cannot lock the folder: %s", store_folder,
                        sl_strerror(errno));
    close(fd);
    return rc;
}

char *sl_copied_file_path(const char *folder, const char *name)
{
    char *path = sl_store_path(folder, name), *inner;

    if (!path || strcmp(name, SL_STORE_ENCODER_FILE) != 0 || access(path, F_OK) == 0 ||
        asprintf(&inner, "%s/" SL_STORE_ENCODER_FOLDER "/%s", folder, name) < 0)
        return path;
    if (access(inner, F_OK) == 0) {
        free(path);
        return inner;
    }
    free(inner);
    return path;
}

int sl_copied_file_read(const char *folder, const char *name, char **ret_text, size_t *ret_length,
                        struct sl_err *err)
{
    char *path = sl_copied_file_path(folder, name);
    int rc;

    if (!path)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", folder);
    rc = sl_file_read_all(path, SL_COPIED_FILE_BYTES_MAX, ret_text, ret_length, err);
    free(path);
    return rc;
}

int sl_copied_file_check(const struct sl_store *store, uint32_t i, struct sl_err *err)
{
    const struct sl_store_copied_file *copied = sl_store_copied_file(store, i);
    char *path = sl_store_path(sl_store_folder(store), copied->name);
    uint8_t *bytes;
    size_t size_bytes;
    int rc;

    if (!path)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", copied->name);
    rc = sl_plain_file_read(path, SL_COPIED_FILE_BYTES_MAX, &bytes, &size_bytes, err);
    if (rc == 0) {
        if (size_bytes != copied->size_bytes || sl_checksum(bytes, size_bytes) != copied->checksum)
            rc = sl_err_set(err, -SL_ECORRUPT, "%s: not the file that was packed", path);
        free(bytes);
    }
    free(path);
    return rc;
}

int sl_store_identify(const struct sl_checkpoint *checkpoint, const char *checkpoint_folder,
                      uint64_t *ret_config_checksum, uint64_t *ret_index_checksum,
                      struct sl_err *err)
{
    char *text;
    size_t length;
    int rc = sl_copied_file_read(checkpoint_folder, "config.json", &text, &length, err);

    if (rc < 0)
        return rc;
    *ret_config_checksum = sl_checksum(text, length);
    free(text);
    return sl_checkpoint_index_checksum(checkpoint, ret_index_checksum, err);
}
