#include "storage/pack/drive_speed.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/size.h"

#include "storage/io/file_writer.h"
#include "storage/io/io_probe.h"
#include "storage/pack/store_records.h"

#define TRIAL_BYTES (UINT64_C(64) << 20)
#define READ_BYTES (UINT64_C(4) << 20)
#define READS_IN_FLIGHT_MAX 32u
#define RAMP_NS UINT64_C(200000000)
#define TRIAL_NS UINT64_C(400000000)

/* Fills with numbers that do not repeat, since a drive may answer for zeros without reading. */
static void fill(uint8_t *bytes)
{
    uint64_t state = 1;

    for (uint64_t i = 0; i < TRIAL_BYTES; i += sizeof(state)) {
        state = state * UINT64_C(6364136223846793005) + 1;
        memcpy(bytes + i, &state, sizeof(state));
    }
}

/* Writes a file without a name, so that none is left behind. Returns its descriptor. */
static int write_trial(const char *folder, const uint8_t *bytes, struct sl_err *err)
{
    struct sl_file_writer *writer = sl_file_writer();
    char *path;
    int file, rc;

    if (asprintf(&path, "%s/.sluice-speed-XXXXXX", folder) < 0)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", folder);
    file = mkostemp(path, O_CLOEXEC);
    if (file < 0) {
        rc = sl_write_error(err, -errno, folder, "make a file in the folder");
    } else {
        unlink(path);
        rc = writer->ops->write(writer, file, 0, bytes, TRIAL_BYTES);
        if (rc == 0)
            rc = writer->ops->sync(writer, file);
        if (rc < 0) {
            sl_write_error(err, rc, folder, "write to the drive");
            close(file);
        }
    }
    free(path);
    return rc < 0 ? rc : file;
}

/* The first reads do not count, because a drive that is held to a rate lets some through at
 * once. */
static int read_trial(const char *path, sl_io_open_fn *open_io, uint8_t *bytes,
                      struct sl_io_timing *ret_timing, struct sl_err *err)
{
    static const struct sl_io_trial trial = {.ramp_ns = RAMP_NS, .ns = TRIAL_NS};
    struct sl_extent extents[TRIAL_BYTES / READ_BYTES];
    struct sl_io *io;
    int rc = open_io(&io, &path, 1, READS_IN_FLIGHT_MAX, err);

    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < TRIAL_BYTES / READ_BYTES; i++)
        extents[i] = (struct sl_extent){.offset_bytes = i * READ_BYTES, .size_bytes = READ_BYTES};
    rc = sl_io_time(io, &trial, extents, TRIAL_BYTES / READ_BYTES, bytes, TRIAL_BYTES, ret_timing,
                    err);
    io->ops->close(io);
    return rc;
}

int sl_drive_speed(const char *folder, sl_io_open_fn *open_io, uint64_t *ret_bytes_per_s,
                   struct sl_err *err)
{
    uint8_t *bytes = aligned_alloc(SL_BLOCK_BYTES, TRIAL_BYTES);
    struct sl_io_timing timing;
    char path[32];
    int file, rc;

    if (!bytes)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", folder);
    fill(bytes);
    file = write_trial(folder, bytes, err);
    if (file < 0) {
        free(bytes);
        return file;
    }
    snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
    rc = read_trial(path, open_io, bytes, &timing, err);
    if (rc == 0)
        *ret_bytes_per_s =
            (uint64_t)((double)timing.read_bytes * 1e9 / (double)(timing.ns + 1)) + 1;
    close(file);
    if (rc != -ETIMEDOUT) /* or they are left to the drive */
        free(bytes);
    return rc;
}
