/* Keeps the result of a probe of the drives (storage/io/io_probe.h) beside the store
 * (storage/store/advice.h) for later runs. The result holds for the drives and file systems that
 * the store's files are on, so after the files were moved or copied it is not used. */
#ifndef SL_STORAGE_STORE_PROBE_MEMORY_H
#define SL_STORAGE_STORE_PROBE_MEMORY_H

#include <stdbool.h>

#include "core/base/err.h"
#include "storage/io/io_probe.h"

/* Reads the result; `io` has the store's files open. Returns false if there is none for these
 * drives. */
bool sl_probe_recall(const char *store_folder, const struct sl_io *io,
                     struct sl_io_probe *ret_probe);

/* Keeps the result. Fails as sl_advice_write() does; the next run then probes again. */
int sl_probe_remember(const char *store_folder, const struct sl_io *io,
                      const struct sl_io_probe *probe, struct sl_err *err);

#endif
