/* What a probe of the drives found (storage/io/io_probe.h), remembered beside the store
 * (storage/store/advice.h) from one run to the next. It is of the drives and file systems that the
 * store's files are on: after they were moved, or copied, nothing is remembered. */
#ifndef SL_STORAGE_STORE_PROBE_MEMORY_H
#define SL_STORAGE_STORE_PROBE_MEMORY_H

#include <stdbool.h>

#include "core/base/err.h"
#include "storage/io/io_probe.h"

/* `io` has the store's files open. True if something is remembered. */
bool sl_probe_recall(const char *store_folder, const struct sl_io *io,
                     struct sl_io_probe *ret_probe);

/* Fails as sl_advice_write() does; it is probed again then. */
int sl_probe_remember(const char *store_folder, const struct sl_io *io,
                      const struct sl_io_probe *probe, struct sl_err *err);

#endif
