/* Chooses how reads are cut into pieces and how many are in flight on a drive, where the options
 * leave it open (piece_bytes or depth is 0). A store keeps the result for later runs. */
#ifndef SL_DAEMON_ENGINE_DRIVE_PROBE_H
#define SL_DAEMON_ENGINE_DRIVE_PROBE_H

#include <stdbool.h>

#include "core/base/err.h"
#include "storage/io/reader.h"

/* Fills the open options from the result that the store in folder `store` has kept; `store` is NULL
 * where nothing is kept. Returns whether both options are set afterwards. *ret_bytes_per_s is what
 * the drives delivered together, 0 if that is not known. */
bool sl_drive_probe_recall(struct sl_reader_options *options, struct sl_io *io, const char *store,
                           uint64_t *ret_bytes_per_s);

/* Fills the open options by a probe of the drives, which takes a third of a second, and lets the
 * store keep the result. Fails as the probe's reads do. */
int sl_drive_probe_run(struct sl_reader_options *options, struct sl_io *io, const char *store,
                       uint64_t *ret_bytes_per_s, struct sl_err *err);

#endif
