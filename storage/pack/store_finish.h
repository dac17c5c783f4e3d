/* What a pack does before it says that something is there: the catalog is sealed, files end where
 * they should, and their paths lead to them. */
#ifndef SL_STORAGE_PACK_STORE_FINISH_H
#define SL_STORAGE_PACK_STORE_FINISH_H

#include <stdbool.h>

#include "core/base/err.h"
#include "storage/pack/store_packer.h"

/* Seals what is committed, if it is not sealed yet. */
bool sl_packer_is_sealed(const struct sl_packer *p);
int sl_packer_seal(struct sl_packer *p, struct sl_err *err);

/* Cuts off what lies in the data files behind the store's data, all of which is committed: an
 * earlier run may have written more. */
int sl_packer_trim(struct sl_packer *p, struct sl_err *err);

/* Fails with -ESTALE if a path does not lead to the file that is open: somebody has moved or
 * replaced it, and what was written is not there. */
int sl_packer_check_paths(const struct sl_packer *p, struct sl_err *err);

/* Fails unless the store can be opened as far as it is done, and has its copied files. */
int sl_packer_check_whole(const struct sl_packer *p, struct sl_err *err);

#endif
