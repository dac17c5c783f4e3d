/* The catalog of a store: a small LMDB database of text keys and sealed values.
 *
 * It knows nothing of what its values mean (storage/store_format.h does). What it adds to LMDB: a
 * value comes back only as it was put, since each is sealed with a checksum of key and bytes; a
 * file that was cut or is no catalog is refused with one line; several processes may read while one
 * writes. LMDB's pages themselves carry no checksums.
 *
 * All access is between begin and commit or abort. One thread makes all calls, and a process has a
 * catalog open once at a time. */
#ifndef SL_STORAGE_CATALOG_H
#define SL_STORAGE_CATALOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/err.h"

#define SL_CATALOG_FOLDER "catalog" /* below the store's */
#define SL_CATALOG_FILE "data.mdb"  /* in it */
#define SL_CATALOG_KEY_BYTES_MAX 320u

struct sl_catalog;

/* Opens the catalog of the store in `store_folder`. A writable one is created where there is none;
 * its folder must be there. Fails with -errno, -ENOMEM or -SL_ECORRUPT, naming the folder. */
int sl_catalog_open(struct sl_catalog **ret_catalog, const char *store_folder, bool writable,
                    struct sl_err *err);

/* NULL is allowed. What was not committed is gone. */
void sl_catalog_close(struct sl_catalog *catalog);

/* What is read in between is one state, whatever others commit meanwhile; a writable catalog keeps
 * other writers waiting. */
int sl_catalog_begin(struct sl_catalog *catalog, struct sl_err *err);
void sl_catalog_abort(struct sl_catalog *catalog);

/* When this returns 0, all that was put is on disk. Otherwise none of it. */
int sl_catalog_commit(struct sl_catalog *catalog, struct sl_err *err);

/* Replaces a value that is there. */
int sl_catalog_put(struct sl_catalog *catalog, const char *key, const void *value,
                   size_t size_bytes, struct sl_err *err);

/* Returns 1 with a value that is valid until the next put, commit or abort; 0 if there is none.
 * Fails with -SL_ECORRUPT, naming the key. */
int sl_catalog_get(struct sl_catalog *catalog, const char *key, const uint8_t **ret_value,
                   size_t *ret_size_bytes, struct sl_err *err);

/* Calls fn for every key that starts with `prefix`, in the order of the keys' bytes; ends early
 * when fn fails, and returns what it did. */
typedef int sl_catalog_fn(void *context, const char *key, const uint8_t *value, size_t size_bytes,
                          struct sl_err *err);
int sl_catalog_each(struct sl_catalog *catalog, const char *prefix, sl_catalog_fn *fn,
                    void *context, struct sl_err *err);

/* For messages: the database's folder. */
const char *sl_catalog_path(const struct sl_catalog *catalog);

#endif
