/* Repair: items that verifying found damaged are made again from the checkpoint, or from another
 * store of it, and written in their place. Parts of a record that are sound are not written again.
 *
 * The catalog's entries do not change: only bytes with the catalog's checksums are written, so a
 * checkpoint with other weights repairs nothing. Damaged copies of the catalog are made again from
 * the sealed one. */
#ifndef SL_STORAGE_PACK_STORE_REPAIR_H
#define SL_STORAGE_PACK_STORE_REPAIR_H

#include <stdatomic.h>
#include <stdint.h>

#include "core/base/err.h"
#include "storage/checkpoint/checkpoint.h"
#include "storage/experts/expert_map.h"
#include "storage/io/file_writer.h"
#include "storage/store/store.h"
#include "storage/pack/store_verify.h"

struct sl_repair_options {
    const struct sl_store *store;
    const char *checkpoint_folder; /* or that of the other store */
    struct sl_checkpoint
        *checkpoint;       /* the source, or else `from`; both NULL: repair copies only */
    struct sl_store *from; /* complete */
    const struct sl_expert_map *experts; /* of the source, all that were packed */
    const char *const *stripe_folders;   /* (n_stripes) that may be written to in any case */
    uint32_t n_stripes;
    struct sl_file_writer *writer;
    const atomic_bool *stop; /* NULL, or ends the work after the present item when true */
};

/* Makes and writes each item, in turn. They are on disk when it returns 0, or -ECANCELED if
 * stopped. An expert with several damaged matrices, which follow each other in the list, is written
 * once. Fails with -EBUSY if another process writes to the store, with -SL_EFORMAT if the source is
 * not what was packed, as sl_store_may_write() does, and as reading and writing do. */
int sl_store_repair(const struct sl_repair_options *options, const struct sl_store_item *items,
                    uint32_t n_items, struct sl_err *err);

#endif
