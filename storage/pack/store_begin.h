/* The beginning of a pack: finds out what is to be packed and how far the last run came, and makes
 * everything that has a name in a folder: the catalog, the copied files, the data files. */
#ifndef SL_STORAGE_PACK_STORE_BEGIN_H
#define SL_STORAGE_PACK_STORE_BEGIN_H

#include "core/base/err.h"
#include "storage/pack/store_packer.h"

/* Finds out what will be packed and where its dense tensors will lie. Opens the source's files.
 * Fails as reading does, and with -SL_EUNSUPPORTED for experts of a size that records cannot
 * hold. */
int sl_packer_describe(struct sl_packer *p, struct sl_err *err);

/* Locks the store, reads its state, and leaves the catalog open in a transaction unless the store
 * is complete. Uses the memory of the first worker. */
int sl_packer_begin(struct sl_packer *p, struct sl_err *err);

/* Writes the copied files and makes the data files, with all their names on disk. */
int sl_packer_open_files(struct sl_packer *p, struct sl_err *err);

#endif
