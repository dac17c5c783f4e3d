/* A store's record, read whole with plain calls and held against its checksums: for packing anew
 * and for checks, not for running. No state: any thread may call. */
#ifndef SL_STORAGE_RECORD_READ_H
#define SL_STORAGE_RECORD_READ_H

#include <stdint.h>

#include "core/base/err.h"
#include "storage/store.h"

/* Opens the files that hold experts, by the paths, all as long as the store's files; the first,
 * which holds none, is left out and gets -1. The caller closes *fds with sl_record_files_close()
 * in any case. Fails with -errno. */
int sl_record_files_open(int fds[SL_STORE_FILES_MAX], const char *const *paths, uint32_t n_files,
                         struct sl_err *err);
void sl_record_files_close(int fds[SL_STORE_FILES_MAX]);

/* Reads an expert's record to `record`. Fails with -errno or -SL_ECORRUPT, naming layer, expert and
 * file. */
int sl_record_read(const struct sl_store *store, const int fds[SL_STORE_FILES_MAX],
                   const char *const *paths, struct sl_expert_key key, uint8_t *record,
                   struct sl_err *err);

#endif
