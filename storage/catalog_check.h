/* Whether LMDB can be let loose on a file. It maps it and believes what it finds there, so a page
 * that was damaged can end the process. Here pages are looked at first, as LMDB 0.9 lays them out
 * on a little-endian machine of 64 bits: what they point to lies inside the file, inside the page,
 * and is of the right kind. Values are not looked at: storage/catalog.c has seals for them. */
#ifndef SL_STORAGE_CATALOG_CHECK_H
#define SL_STORAGE_CATALOG_CHECK_H

#include <stdint.h>

#include "core/base/err.h"

/* Before LMDB opens the file: the size of its pages is one that there can be. A file that LMDB will
 * refuse itself is passed over. Fails with -SL_ECORRUPT or -errno. `where` names the folder. */
int sl_catalog_check_header(int fd, const char *where, struct sl_err *err);

/* Within a transaction, so that nobody writes to these pages: all that can be reached from the
 * state that transaction `txn_id` left. Returns 0; or 1 if there is no header of it, which two
 * commits of others write over, so that it is to be begun again. Fails with -SL_ECORRUPT, naming
 * the page, or -errno. */
int sl_catalog_check_pages(int fd, uint64_t txn_id, const char *where, struct sl_err *err);

#endif
