/* What a probe of the drives found (storage/io_probe.h), remembered in the store's catalog from one
 * run to the next. It is of the drives and file systems that the store's files are on: after they
 * were moved, or copied, nothing is remembered.
 *
 * Calls open the catalog and close it again; the second waits for other writers. */
#ifndef SL_STORAGE_PROBE_MEMORY_H
#define SL_STORAGE_PROBE_MEMORY_H

#include <stdbool.h>

#include "core/base/err.h"
#include "storage/io_probe.h"

/* `io` has the store's files open. True if something is remembered. */
bool sl_probe_recall(const char *store_folder, const struct sl_io *io,
                     struct sl_io_probe *ret_probe);

/* Durable when it returns 0. Fails as sl_catalog_open() and _put() do, with -EACCES or -EROFS where
 * the store may not be written to; it is probed again then. */
int sl_probe_remember(const char *store_folder, const struct sl_io *io,
                      const struct sl_io_probe *probe, struct sl_err *err);

#endif
