#include "storage/store/probe_memory.h"

#include <stdlib.h>
#include <string.h>

#include "storage/store/advice.h"
#include "storage/io/checksum.h"
#include "storage/io/drive.h"
#include "storage/store/store_format.h"

#define FILE_NAME "probe"

static int sum_drives(const struct sl_io *io, uint64_t *ret_checksum, struct sl_err *err)
{
    uint64_t checksum = 0;

    for (uint32_t i = 0; i < io->n_files; i++) {
        struct sl_drive drive;
        uint64_t filesystem;
        int rc = sl_drive_of(&drive, io->files[i].path, err);

        if (rc < 0)
            return rc;
        filesystem = drive.filesystem;
        checksum = sl_checksum_seeded(drive.name, strlen(drive.name), checksum);
        checksum = sl_checksum_seeded(&filesystem, sizeof(filesystem), checksum);
    }
    *ret_checksum = checksum;
    return 0;
}

bool sl_probe_recall(const char *store_folder, const struct sl_io *io,
                     struct sl_io_probe *ret_probe)
{
    struct sl_store_probe found;
    uint64_t drives_checksum;
    uint8_t *value;
    size_t size_bytes;
    bool is_known;

    if (sum_drives(io, &drives_checksum, NULL) < 0 ||
        sl_advice_read(store_folder, FILE_NAME, &value, &size_bytes, NULL) < 1)
        return false;
    is_known = sl_store_probe_decode(&found, value, size_bytes) &&
               found.drives_checksum == drives_checksum;
    free(value);
    if (is_known)
        *ret_probe = (struct sl_io_probe){.piece_bytes = found.piece_bytes,
                                          .depth = found.depth,
                                          .bytes_per_s = found.bytes_per_s};
    return is_known;
}

int sl_probe_remember(const char *store_folder, const struct sl_io *io,
                      const struct sl_io_probe *probe, struct sl_err *err)
{
    struct sl_store_probe entry = {.bytes_per_s = probe->bytes_per_s,
                                   .piece_bytes = probe->piece_bytes,
                                   .depth = probe->depth};
    uint8_t value[SL_STORE_VALUE_BYTES_MAX];
    int rc = sum_drives(io, &entry.drives_checksum, err);

    return rc < 0 ? rc
                  : sl_advice_write(store_folder, FILE_NAME, value,
                                    sl_store_probe_encode(&entry, value), err);
}
