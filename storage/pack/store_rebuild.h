/* Makes a store again over its own data when no copy of its catalog is left. */
#ifndef SL_STORAGE_PACK_STORE_REBUILD_H
#define SL_STORAGE_PACK_STORE_REBUILD_H

#include "core/base/err.h"
#include "storage/pack/store_write.h"

/* Packs the source into the options' store_folder, which holds the data of a store of this source;
 * all data are written again. The stripe folders are the store's, in the order in which they were
 * given to sluice pack; the weights and whether records are compressed follow from the files. If it
 * is stopped or killed, packing goes on with it.
 *
 * Fails with -SL_EFORMAT if config.json in the folder is not the source's, if most of the dense
 * tensors differ from the source's, or if a folder has no part of the store, and as sl_store_pack()
 * does. */
int sl_store_rebuild(const struct sl_pack_options *options, struct sl_err *err);

#endif
