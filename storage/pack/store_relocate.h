/* Telling a store where its files are, after somebody moved those on other drives or lost some; and
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
 * folder; those that are in none of them stay where they are said to be. They are taken for the
 * store's if they have their size and the first and the last record have their checksums; then the
 * catalog has the new paths when this returns 0.
 *
 * With make_lost, folders without such a file are given one each, in turn, for those that are not
 * where they are said to be, and what is missing in the store's own folder is made there; records
 * are then not looked at, since all are damaged, as verifying tells; repairing writes them.
 *
 * Fails with -SL_EFORMAT (a folder without such a file, or another store's; a lost file for which
 * there is no folder), -SL_ECORRUPT, -EBUSY if another process writes to the store, and as opening,
 * reading and writing do. */
int sl_store_relocate(const char *store_folder, const struct sl_store_relocation *options,
                      struct sl_err *err);

/* A catalog may name any path, and a store may come from a stranger. So a file outside the store's
 * own folder is written to only if the user has named its folder now, or if a sealed copy of a
 * catalog lies beside it that has the same model and the same file: that was written when the store
 * was begun there. `paths` are the files'. Fails with -EPERM, naming the file. */
int sl_store_may_write(const struct sl_store *store, const char *const *paths,
                       const char *const *folders, uint32_t n_folders, struct sl_err *err);

#endif
