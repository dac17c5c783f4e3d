/* A store of whose catalog no copy is left, made anew over its own data. */
#ifndef SL_STORAGE_PACK_STORE_REBUILD_H
#define SL_STORAGE_PACK_STORE_REBUILD_H

#include "core/base/err.h"
#include "storage/pack/store_write.h"

/* Packs the source that `options` name into their store_folder, which holds the data of a store of
 * it: all of them are written again. The stripe folders are those of the store, in the order in
 * which they were given to pack it; weights and how records are stored follow from the files.
 * Stopped or killed, it is gone on with by packing.
 *
 * Fails with -SL_EFORMAT if config.json in the folder is not the source's, if most of the dense
 * tensors are others, or if a folder has no such part, and as sl_store_pack() does. */
int sl_store_rebuild(const struct sl_pack_options *options, struct sl_err *err);

#endif
