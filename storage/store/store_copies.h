/* The copies of a store's catalog:
 *
 *     STORE/catalog.mdb      the database that sluice pack writes to (storage/store/catalog.h)
 *     STORE/catalog.sealed   all entries with one checksum; all other commands read this one
 *     DIR/catalog-N.sealed   a sealed copy beside experts-N.bin, for each file in another folder
 *
 * Sealed copies are written when a store is begun, before anything of the source is freed, and when
 * the store is complete. STORE/catalog.sealed is written last, so it decides where copies differ. A
 * writer holds the store's lock (storage/pack/store_identity.h). */
#ifndef SL_STORAGE_STORE_STORE_COPIES_H
#define SL_STORAGE_STORE_STORE_COPIES_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"
#include "storage/store/catalog.h"
#include "storage/store/catalog_entries.h"
#include "storage/io/file_writer.h"
#include "storage/store/store_format.h"

#define SL_STORE_CATALOG_FILE "catalog.mdb"
#define SL_STORE_SEALED_FILE "catalog.sealed"
#define SL_STORE_VERSION_1_FILE "catalog/data.mdb" /* the catalog of format version 1 */

/* Returns the path folder/name, which the caller frees; NULL if out of memory. */
char *sl_store_path(const char *folder, const char *name);

/* Returns the path of the sealed copy beside file `file_index` at `path`, which lies outside the
 * store's folder. */
char *sl_store_copy_path(const char *path, uint32_t file_index);

/* Writes all sealed copies. The files are those that the entries name. Fails as writing does. */
int sl_store_copies_seal(const char *store_folder, struct sl_catalog_entries *entries,
                         struct sl_file_writer *writer, struct sl_err *err);

/* Writes the sealed copy beside a file outside the store's folder. */
int sl_store_copy_seal(const char *path, uint32_t file_index, struct sl_catalog_entries *entries,
                       struct sl_file_writer *writer, struct sl_err *err);

/* Writes a new catalog.mdb with these entries in place of the one that is there: on disk under its
 * name when it returns 0. With ret_catalog the caller goes on writing to it, in the transaction
 * that has begun then, and closes it. */
int sl_store_catalog_make(struct sl_catalog **ret_catalog, const char *store_folder,
                          const struct sl_catalog_entries *entries, struct sl_file_writer *writer,
                          struct sl_err *err);

/* Reads STORE/catalog.mdb, or STORE/catalog.sealed. Fails as sl_catalog_read() or
 * sl_catalog_entries_read(); the caller ends *entries. */
int sl_store_catalog_read(struct sl_catalog_entries *entries, const char *store_folder,
                          struct sl_err *err);
int sl_store_sealed_read(struct sl_catalog_entries *entries, const char *store_folder,
                         struct sl_err *err);

/* Repairs both copies in the store's folder from the best one there is, including those in
 * n_folders `folders`. Returns a set of SL_STORE_REPAIRED_, 0 if nothing was wrong. Fails with
 * -SL_ECORRUPT if no copy is sound, and as writing does. */
#define SL_STORE_REPAIRED_CATALOG 1
#define SL_STORE_REPAIRED_SEALED 2
int sl_store_copies_repair(const char *store_folder, const char *const *folders, uint32_t n_folders,
                           struct sl_file_writer *writer, struct sl_err *err);

#endif
