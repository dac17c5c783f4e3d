/* Where a store's parts on other drives are: told anew after somebody moved them. */
#ifndef SL_STORAGE_STORE_PLACES_H
#define SL_STORAGE_STORE_PLACES_H

#include <stdint.h>

#include "core/base/err.h"

/* Each folder has one or more of the files experts-2.bin and so on that lie outside the store's own
 * folder; those that are in none of them stay where they are said to be. They are taken for the
 * store's if they have their size and the first and the last record have their checksums; then the
 * catalog has the new paths when this returns 0. Fails with -SL_EFORMAT (a folder without such a
 * file, or another store's), -SL_ECORRUPT, -EBUSY if another process writes to the store, and as
 * opening and reading do. */
int sl_store_set_places(const char *store_folder, const char *const *folders, uint32_t n_folders,
                        struct sl_err *err);

#endif
