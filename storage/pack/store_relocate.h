/* Tells a store where its files are after those on other drives were moved or lost, and checks
 * which of them may be written to. */
#ifndef SL_STORAGE_PACK_STORE_RELOCATE_H
#define SL_STORAGE_PACK_STORE_RELOCATE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"
#include "storage/io/file_writer.h"
#include "storage/store/store.h"

struct sl_store_relocation {
    const char *const *folders; /* (n_folders) that hold parts, or are to */
    uint32_t n_folders;
    bool make_lost; /* files that are nowhere are made, empty */
    struct sl_file_writer *writer;
};

/* Each folder has one or more of the files experts-2.bin and so on that lie outside the store's own
 * folder; a file that is in no folder keeps its path in the catalog. A file is accepted as the
 * store's if its size fits and the first and the last record have their checksums. When this
 * returns 0, the catalog has the new paths.
 *
 * With make_lost, lost files are made again, empty: those outside the store's own folder in the
 * folders that have no such file, one each, in turn; the others in the store's folder. Records are
 * then not checked, since all are damaged; verifying reports them and repairing writes them.
 *
 * Fails with -SL_EFORMAT (a folder without such a file, or another store's; a lost file for which
 * there is no folder), -SL_ECORRUPT, -EBUSY if another process writes to the store, and as opening,
 * reading and writing do. */
int sl_store_relocate(const char *store_folder, const struct sl_store_relocation *options,
                      struct sl_err *err);

/* A catalog may name any path, and a store may come from a stranger. So a file outside the store's
 * own folder is written to only if the user names its folder now, or if a sealed copy of a catalog
 * with the same model and the same file lies beside it, which was written when the store was begun
 * there. `paths` has the path of each file. Fails with -EPERM, naming the file. */
int sl_store_may_write(const struct sl_store *store, const char *const *paths,
                       const char *const *folders, uint32_t n_folders, struct sl_err *err);

#endif
