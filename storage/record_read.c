#include "storage/record_read.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "core/base/file.h"
#include "storage/checksum.h"

int sl_record_files_open(int fds[SL_STORE_FILES_MAX], const char *const *paths, uint32_t n_files,
                         struct sl_err *err)
{
    for (uint32_t i = 0; i < SL_STORE_FILES_MAX; i++)
        fds[i] = -1;
    for (uint32_t i = 1; i < n_files; i++) {
        fds[i] = open(paths[i], O_RDONLY | O_CLOEXEC);
        if (fds[i] < 0)
            return sl_err_set(err, -errno, "%s: cannot open: %s", paths[i], sl_strerror(errno));
    }
    return 0;
}

void sl_record_files_close(int fds[SL_STORE_FILES_MAX])
{
    for (uint32_t i = 0; i < SL_STORE_FILES_MAX; i++) {
        if (fds[i] >= 0)
            close(fds[i]);
        fds[i] = -1;
    }
}

static int read_parts(const struct sl_packed_expert *expert, const int fds[SL_STORE_FILES_MAX],
                      const char *const *paths, uint8_t *record, struct sl_err *err)
{
    for (uint32_t i = 0; i < expert->n_parts; i++) {
        const struct sl_extent *part = &expert->parts[i];
        int64_t got =
            sl_file_read_at(fds[part->file_index], record, part->size_bytes, part->offset_bytes);

        if (got < 0)
            return sl_err_set(err, (int)got, "%s: cannot read %llu bytes at %llu: %s",
                              paths[part->file_index], (unsigned long long)part->size_bytes,
                              (unsigned long long)part->offset_bytes, sl_strerror((int)got));
        if ((uint64_t)got < part->size_bytes)
            return sl_err_set(err, -SL_ECORRUPT, "%s: the file ends inside the record",
                              paths[part->file_index]);
        record += part->size_bytes;
    }
    return 0;
}

int sl_record_read(const struct sl_store *store, const int fds[SL_STORE_FILES_MAX],
                   const char *const *paths, struct sl_expert_key key, uint8_t *record,
                   struct sl_err *err)
{
    const struct sl_expert_shape *shape = &sl_store_model(store)->shape;
    const struct sl_packed_expert *expert = sl_store_expert(store, key);
    struct sl_extent extents[SL_EXPERT_PARTS_MAX];
    char text[SL_EXPERT_TEXT_BYTES];
    int rc = read_parts(expert, fds, paths, record, err);

    for (int m = 0; m < SL_EXPERT_MATRICES && rc == 0; m++) {
        uint64_t offset_bytes = sl_expert_matrix_offset_bytes(shape, m);

        if (sl_checksum(record + offset_bytes, sl_expert_matrix_bytes(shape, m)) ==
            expert->checksums[m])
            continue;
        sl_packed_expert_matrix(expert, shape, m, extents);
        rc = sl_err_set(err, -SL_ECORRUPT,
                        "%s: %s at offset %llu does not have the checksum that the catalog names",
                        paths[extents[0].file_index], sl_expert_matrix_name(m),
                        (unsigned long long)extents[0].offset_bytes);
    }
    return rc < 0 ? sl_err_prefix(err, rc, "%s", sl_expert_format(shape, key, text)) : 0;
}
