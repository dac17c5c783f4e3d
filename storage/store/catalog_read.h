/* Reads LMDB's file without LMDB.
 *
 * LMDB maps its file and believes what it finds there: a page that was damaged, or a file that
 * somebody cuts meanwhile, can end the process. So it never opens a file that it has not made
 * itself in the same process (storage/store/catalog.h); an existing file is read here, from a copy
 * in memory, in the format of LMDB 0.9 on a little-endian machine of 64 bits. Everything is
 * checked: that pages lie inside the file, that nodes lie inside their pages, and that values have
 * the checksums that they end with. LMDB's list of free pages is not looked at, since nothing is
 * written to such a file any more. */
#ifndef SL_STORAGE_STORE_CATALOG_READ_H
#define SL_STORAGE_STORE_CATALOG_READ_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/err.h"
#include "storage/store/catalog_entries.h"

/* Reads the entries of the last commit. The caller ends *entries with sl_catalog_entries_fini(); a
 * failure leaves it empty. Fails with -SL_ECORRUPT, naming the page or the entry, with -ENOMEM, or
 * as sl_plain_file_read() does. */
int sl_catalog_read(struct sl_catalog_entries *entries, const char *path, struct sl_err *err);

/* Reads the entries from a file's bytes. `where` names the file in messages. */
int sl_catalog_read_bytes(struct sl_catalog_entries *entries, const uint8_t *file,
                          uint64_t size_bytes, const char *where, struct sl_err *err);

#endif
