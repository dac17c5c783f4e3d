/* Advice: small files beside a store that one run writes for the next, such as the hot list. They
 * may be lost, since they only save time: a damaged one is reported and otherwise ignored.
 *
 * They lie in the store's folder, or, where that may not be written to, below the user's cache
 * folder ($XDG_CACHE_HOME or ~/.cache, in sluice/ and a folder for each store's path). Each is
 * written under another name and renamed, and ends with a checksum. */
#ifndef SL_STORAGE_STORE_ADVICE_H
#define SL_STORAGE_STORE_ADVICE_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/err.h"

#define SL_ADVICE_BYTES_MAX (UINT64_C(1) << 20)

/* Returns 1 with *ret_value, which the caller frees, or 0 if there is no such file. Fails with
 * -errno, -ENOMEM or -SL_ECORRUPT. */
int sl_advice_read(const char *store_folder, const char *name, uint8_t **ret_value,
                   size_t *ret_size_bytes, struct sl_err *err);

/* Replaces the file. Fails with -errno or -ENOMEM. */
int sl_advice_write(const char *store_folder, const char *name, const void *value,
                    size_t size_bytes, struct sl_err *err);

#endif
