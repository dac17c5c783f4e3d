/* Reads a store's record whole with plain calls, unpacks it if it is compressed, and compares its
 * checksums: for packing it into another store and for checks, not for running. No state: any
 * thread may call. */
#ifndef SL_STORAGE_STORE_RECORD_READ_H
#define SL_STORAGE_STORE_RECORD_READ_H

#include <stdint.h>

#include "core/base/err.h"
#include "storage/store/store.h"

/* Opens the files at `paths` that hold experts, except the first one, which holds none and gets -1.
 * The caller closes *fds with sl_record_files_close() in any case. Fails with -errno. */
int sl_record_files_open(int fds[SL_STORE_FILES_MAX], const char *const *paths, uint32_t n_files,
                         struct sl_err *err);
void sl_record_files_close(int fds[SL_STORE_FILES_MAX]);

/* Reads an expert to `record`, of sl_packed_expert_bytes(), and unpacks it. `staging` has
 * sl_record_read_staging_bytes() and is aligned to 64 bytes; what is in it afterwards is undefined.
 * Fails with -errno or -SL_ECORRUPT, naming layer, expert and file. */
uint64_t sl_record_read_staging_bytes(const struct sl_expert_shape *shape);
int sl_record_read(const struct sl_store *store, const int fds[SL_STORE_FILES_MAX],
                   const char *const *paths, struct sl_expert_key key, uint8_t *staging,
                   uint8_t *record, struct sl_err *err);

#endif
