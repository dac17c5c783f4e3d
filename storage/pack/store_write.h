/* Packing: a store made from a checkpoint, or from another store, durably and in any number of
 * runs.
 *
 * Data are written and synced before the catalog's commit that says so, a batch at a time. Whatever
 * ends the work (a signal, a full disk, a power cut), doing it again goes on after the last batch
 * and ends with the same bytes. Only one process at a time may write to a store; a second one is
 * refused. A complete store is left as it is. */
#ifndef SL_STORAGE_PACK_STORE_WRITE_H
#define SL_STORAGE_PACK_STORE_WRITE_H

#include <stdint.h>

#include "core/base/err.h"
#include "core/model/expert_shape.h"
#include "storage/pack/pack_options.h"

/* Returns the bytes of memory that one thread takes. */
uint64_t sl_pack_thread_bytes(const struct sl_expert_shape *shape);

/* Packs, or goes on with it. Fails with -errno (-ENOSPC before anything is written if the disk is
 * too small, -EBUSY if another process writes, -ECANCELED if stopped), -ENOMEM, -SL_EFORMAT (a
 * folder that is not empty, the store of another model) or -SL_ECORRUPT. ret_result, if not NULL,
 * is filled in any case. */
int sl_store_pack(const struct sl_pack_options *options, struct sl_pack_result *ret_result,
                  struct sl_err *err);

#endif
