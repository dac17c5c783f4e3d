/* The lock of a store's writers, and checks that store and source are of the same model. Packing
 * and repairing share them. */
#ifndef SL_STORAGE_PACK_STORE_IDENTITY_H
#define SL_STORAGE_PACK_STORE_IDENTITY_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/err.h"
#include "storage/checkpoint/checkpoint.h"
#include "storage/store/store.h"

/* Computes the checksums that identify a model: of its config.json and of its index. */
int sl_store_identify(const struct sl_checkpoint *checkpoint, const char *checkpoint_folder,
                      uint64_t *ret_config_checksum, uint64_t *ret_index_checksum,
                      struct sl_err *err);

/* Keeps other writers from the store until the descriptor, which it returns, is closed. Fails with
 * -EBUSY or -errno. */
int sl_store_lock(const char *store_folder, struct sl_err *err);

/* The path of a copied file, which may not be there, in a checkpoint or a store; the caller frees
 * it. NULL when out of memory. */
char *sl_copied_file_path(const char *folder, const char *name);

/* Reads that file; the caller frees *ret_text. */
#define SL_COPIED_FILE_BYTES_MAX (UINT64_C(256) << 20)
int sl_copied_file_read(const char *folder, const char *name, char **ret_text, size_t *ret_length,
                        struct sl_err *err);

/* Checks that the store has its copied file `i` as it was packed. Fails with -SL_ECORRUPT, -ENOMEM
 * or as reading does. */
int sl_copied_file_check(const struct sl_store *store, uint32_t i, struct sl_err *err);

#endif
