#include "storage/drive_speed.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "storage/file_writer.h"
#include "storage/reader.h"
#include "storage/store_records.h"

#define TRIAL_BYTES (UINT64_C(64) << 20)
#define READS_IN_FLIGHT_MAX 32u

/* Zeros might be no reads at all: numbers that do not repeat. */
static void fill(uint8_t *bytes)
{
    uint64_t state = 1;

    for (uint64_t i = 0; i < TRIAL_BYTES; i += sizeof(state)) {
        state = state * UINT64_C(6364136223846793005) + 1;
        memcpy(bytes + i, &state, sizeof(state));
    }
}

/* A file without a name, so that none is left behind. Returns its descriptor. */
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

static int read_trial(const char *path, sl_io_open_fn *open_io, uint8_t *bytes,
                      uint64_t *ret_elapsed_ns, struct sl_err *err)
{
    struct sl_read read = {.size_bytes = TRIAL_BYTES, .dst = bytes};
    struct sl_reader *reader = NULL;
    struct sl_io *io;
    uint64_t start_ns;
    int rc = open_io(&io, &path, 1, READS_IN_FLIGHT_MAX, err);

    if (rc < 0)
        return rc;
    rc = sl_reader_create(&reader, io, NULL, err);
    if (rc == 0) {
        start_ns = sl_clock_ns();
        sl_reader_queue(reader, &read);
        sl_reader_reap(reader, true);
        *ret_elapsed_ns = sl_clock_ns() - start_ns;
        rc = read.rc < 0 ? sl_reader_explain(reader, &read, err) : 0;
        sl_reader_drain(reader);
    }
    sl_reader_destroy(reader);
    io->ops->close(io);
    return rc;
}

int sl_drive_speed(const char *folder, sl_io_open_fn *open_io, uint64_t *ret_bytes_per_s,
                   struct sl_err *err)
{
    uint8_t *bytes = aligned_alloc(SL_WRITE_ALIGN_BYTES, TRIAL_BYTES);
    uint64_t elapsed_ns = 0;
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
    rc = read_trial(path, open_io, bytes, &elapsed_ns, err);
    if (rc == 0)
        *ret_bytes_per_s = TRIAL_BYTES * UINT64_C(1000000000) / (elapsed_ns + 1) + 1;
    close(file);
    free(bytes);
    return rc;
}
