#include "daemon/engine/drive_probe.h"

#include "storage/io/io_probe.h"
#include "storage/store/probe_memory.h"

static void take(struct sl_reader_options *options, const struct sl_io_probe *found,
                 uint64_t *ret_bytes_per_s)
{
    *ret_bytes_per_s = found->bytes_per_s;
    if (options->piece_bytes == 0)
        options->piece_bytes = found->piece_bytes;
    if (options->depth == 0)
        options->depth = found->depth;
}

bool sl_drive_probe_recall(struct sl_reader_options *options, struct sl_io *io, const char *store,
                           uint64_t *ret_bytes_per_s)
{
    struct sl_io_probe found;

    *ret_bytes_per_s = 0;
    if (options->piece_bytes && options->depth)
        return true;
    if (!store || !sl_probe_recall(store, io, &found))
        return false;
    take(options, &found, ret_bytes_per_s);
    return true;
}

/* A result that cannot be written is measured again by the next start. It is not written at all
 * when the user gave a piece or a depth, because it would then not apply to runs without these
 * options. */
int sl_drive_probe_run(struct sl_reader_options *options, struct sl_io *io, const char *store,
                       uint64_t *ret_bytes_per_s, struct sl_err *err)
{
    struct sl_io_probe found;
    int rc = sl_io_probe(io, options->stall_ns, &found, err);

    if (rc < 0)
        return rc;
    if (store && found.bytes_per_s > 0 && options->piece_bytes == 0 && options->depth == 0)
        sl_probe_remember(store, io, &found, NULL);
    take(options, &found, ret_bytes_per_s);
    return 0;
}
