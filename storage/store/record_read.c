#include "storage/store/record_read.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/size.h"
#include "storage/io/checksum.h"
#include "storage/store/codec.h"

int sl_record_files_open(int fds[SL_STORE_FILES_MAX], const char *const *paths, uint32_t n_files,
                         struct sl_err *err)
{
    for (uint32_t i = 0; i < SL_STORE_FILES_MAX; i++)
        fds[i] = -1;
    for (uint32_t i = 1; i < n_files; i++) {
        fds[i] = sl_file_open_nofollow(paths[i], err);
        if (fds[i] < 0)
            return fds[i];
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

uint64_t sl_record_read_staging_bytes(const struct sl_expert_shape *shape)
{
    return sl_packed_expert_bytes(shape) + sl_record_decoder_bytes(shape);
}

/* Unpacks the compressed record at `staging`, which has room for a decoder behind it, including the
 * zeros between matrices. Returns the first matrix that cannot be unpacked, or -1. */
static int unpack(const struct sl_expert_shape *shape, uint8_t *staging, uint64_t stored_bytes,
                  uint8_t *record)
{
    struct sl_record_decoder *decoder =
        sl_record_decoder_init(staging + sl_packed_expert_bytes(shape));
    struct sl_record_index index;

    if (!sl_record_index_read(&index, shape, staging, stored_bytes))
        return sl_expert_matrix_order[0];
    for (uint32_t i = 0; i < index.n_chunks; i++) {
        if (!sl_record_unpack(decoder, &index.chunks[i], record))
            return index.chunks[i].matrix;
    }
    for (int m = 0; m < SL_EXPERT_MATRICES; m++) {
        uint64_t size_bytes = sl_expert_matrix_bytes(shape, m);

        memset(record + sl_expert_matrix_offset_bytes(shape, m) + size_bytes, 0,
               sl_round_up(size_bytes, SL_BLOCK_BYTES) - size_bytes);
    }
    return -1;
}

/* Returns the first matrix whose tiles do not have the catalog's checksum, or -1. */
static int other_matrix(const struct sl_expert_shape *shape, const struct sl_packed_expert *expert,
                        const uint8_t *record)
{
    for (int m = 0; m < SL_EXPERT_MATRICES; m++) {
        if (sl_checksum(record + sl_expert_matrix_offset_bytes(shape, m),
                        sl_expert_matrix_bytes(shape, m)) != expert->checksums[m])
            return m;
    }
    return -1;
}

static int explain(const struct sl_expert_shape *shape, const struct sl_packed_expert *expert,
                   const char *const *paths, int matrix, struct sl_err *err)
{
    struct sl_extent at[SL_EXPERT_PARTS_MAX];

    if (expert->compressed)
        return sl_err_set(err, -SL_ECORRUPT,
                          "%s: the compressed record at offset %llu does not give the %s that the "
                          "catalog names",
                          paths[expert->parts[0].file_index],
                          (unsigned long long)expert->parts[0].offset_bytes,
                          sl_expert_matrix_name(matrix));
    sl_packed_expert_matrix(expert, shape, matrix, at);
    return sl_err_set(err, -SL_ECORRUPT,
                      "%s: %s at offset %llu does not have the checksum that the catalog names",
                      paths[at[0].file_index], sl_expert_matrix_name(matrix),
                      (unsigned long long)at[0].offset_bytes);
}

int sl_record_read(const struct sl_store *store, const int fds[SL_STORE_FILES_MAX],
                   const char *const *paths, struct sl_expert_key key, uint8_t *staging,
                   uint8_t *record, struct sl_err *err)
{
    const struct sl_expert_shape *shape = &sl_store_model(store)->shape;
    const struct sl_packed_expert *expert = sl_store_expert(store, key);
    char text[SL_EXPERT_TEXT_BYTES];
    int matrix = -1;
    int rc = read_parts(expert, fds, paths, expert->compressed ? staging : record, err);

    if (rc == 0 && expert->compressed)
        matrix = unpack(shape, staging, sl_packed_expert_stored_bytes(expert), record);
    if (rc == 0 && matrix < 0)
        matrix = other_matrix(shape, expert, record);
    if (matrix >= 0)
        rc = explain(shape, expert, paths, matrix, err);
    return rc < 0 ? sl_err_prefix(err, rc, "%s", sl_expert_format(shape, key, text)) : 0;
}
