/* The end of a pack, or of a batch whose source is freed: the catalog is sealed, and it is checked
 * that files end where they should and that their paths lead to them. */
#ifndef SL_STORAGE_PACK_STORE_FINISH_H
#define SL_STORAGE_PACK_STORE_FINISH_H

#include <stdbool.h>

#include "core/base/err.h"
#include "storage/pack/store_packer.h"

/* sl_packer_seal() seals the committed entries; sl_packer_is_sealed() tells whether they are sealed
 * already. */
bool sl_packer_is_sealed(const struct sl_packer *p);
int sl_packer_seal(struct sl_packer *p, struct sl_err *err);

/* Cuts off bytes behind the store's data, which an earlier run may have written. To be called when
 * all data are committed. */
int sl_packer_trim(struct sl_packer *p, struct sl_err *err);

/* Fails with -ESTALE if a path does not lead to the file that is open: somebody has moved or
 * replaced it, and what was written is not there. */
int sl_packer_check_paths(const struct sl_packer *p, struct sl_err *err);

/* Fails unless the store can be opened as far as it is done, and has its copied files. */
int sl_packer_check_whole(const struct sl_packer *p, struct sl_err *err);

#endif
