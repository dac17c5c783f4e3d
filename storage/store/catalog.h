/* The catalog of a store as sluice pack writes it: a small LMDB database of text keys and values,
 * each with a checksum of key and bytes behind it.
 *
 * LMDB is used for writing only, and only on new files: the entries of an existing file are read by
 * storage/store/catalog_read.h and put into a new file, which then replaces the old one. So LMDB
 * never opens a file that was damaged or made by a stranger. It needs no lock file: there is one
 * writer, who holds the store's lock, and there are no readers.
 *
 * All access is between begin and commit or abort. One thread makes all calls. */
#ifndef SL_STORAGE_STORE_CATALOG_H
#define SL_STORAGE_STORE_CATALOG_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/err.h"
#include "storage/store/catalog_entries.h"
#include "storage/io/checksum.h"
#include "storage/io/file_writer.h"

struct sl_catalog;

/* Makes a new database in place of any file at `path`; it keeps writing to that file when the file
 * is renamed. The first transaction has begun and holds `entries`, which may be NULL for none, not
 * yet committed. Fails with -errno or -ENOMEM, naming the path. */
int sl_catalog_create(struct sl_catalog **ret_catalog, const char *path,
                      const struct sl_catalog_entries *entries, struct sl_err *err);

/* Makes a database under the name `new_path`, commits `entries` to it, and lets it take the place
 * of any file at `path`. If ret_catalog is not NULL, a transaction has begun; else it is closed.
 * Fails also as `writer` does; the file at `path` is then as it was. */
int sl_catalog_make(struct sl_catalog **ret_catalog, const char *path, const char *new_path,
                    const struct sl_catalog_entries *entries, struct sl_file_writer *writer,
                    struct sl_err *err);

/* NULL is allowed. Entries that were not committed are lost. */
void sl_catalog_close(struct sl_catalog *catalog);

/* sl_catalog_begin() fails with -SL_ECORRUPT if somebody else has cut the file. */
int sl_catalog_begin(struct sl_catalog *catalog, struct sl_err *err);
void sl_catalog_abort(struct sl_catalog *catalog);

/* When this returns 0, all entries that were put are on disk; otherwise none of them is. */
int sl_catalog_commit(struct sl_catalog *catalog, struct sl_err *err);

/* Replaces a value that is there. */
int sl_catalog_put(struct sl_catalog *catalog, const char *key, const void *value,
                   size_t size_bytes, struct sl_err *err);

/* Removes an entry, if it is there. */
int sl_catalog_remove(struct sl_catalog *catalog, const char *key, struct sl_err *err);

/* Returns the descriptor of the file that commits go to. */
int sl_catalog_fd(const struct sl_catalog *catalog);

/* Computes an entry's checksum, which is stored in SL_CATALOG_CHECKSUM_BYTES behind its value. */
#define SL_CATALOG_CHECKSUM_BYTES 8u
static inline uint64_t sl_catalog_checksum(const void *key, size_t key_bytes, const void *value,
                                           size_t size_bytes)
{
    return sl_checksum_seeded(value, size_bytes, sl_checksum(key, key_bytes));
}

#endif
