/* Repairing: what verifying found damaged, made again from the checkpoint and written in its place.
 *
 * The catalog stays as it is: only bytes that have its checksums are written, so a checkpoint with
 * other weights repairs nothing. */
#ifndef SL_STORAGE_STORE_REPAIR_H
#define SL_STORAGE_STORE_REPAIR_H

#include <stdint.h>

#include "core/base/err.h"
#include "storage/checkpoint.h"
#include "storage/expert_store.h"
#include "storage/file_writer.h"
#include "storage/store.h"
#include "storage/store_verify.h"

struct sl_repair_options {
    const struct sl_store *store;
    const char *checkpoint_folder;
    struct sl_checkpoint *checkpoint;
    const struct sl_expert_store *experts; /* of the checkpoint, all that were packed */
    struct sl_file_writer *writer;
};

/* Makes and writes each item, in turn; on disk when it returns 0. Of an expert with several damaged
 * matrices, which follow each other in the list, the record is written once. Fails with -EBUSY if
 * another process writes to the store, with -SL_EFORMAT if the checkpoint is not what was packed,
 * and as reading and writing do. */
int sl_store_repair(const struct sl_repair_options *options, const struct sl_store_item *items,
                    uint32_t n_items, struct sl_err *err);

#endif
