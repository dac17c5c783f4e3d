/* The layout of a store's data: its files, their final sizes, and how a record is cut into parts
 * for several drives.
 *
 * Every record has the room that it would take if it were not compressed, and all are cut alike. So
 * all offsets follow from the sizes of the parts, and these from the sizes of the files. A
 * compressed record leaves a hole in each file behind its part. No state of its own. */
#ifndef SL_STORAGE_STORE_STORE_LAYOUT_H
#define SL_STORAGE_STORE_STORE_LAYOUT_H

#include <stdint.h>

#include "core/base/err.h"
#include "storage/store/packed_expert.h"
#include "storage/store/store.h"
#include "storage/store/store_format.h"

#define SL_STRIPES_MAX (SL_EXPERT_PARTS_MAX - 1) /* beside the store's own drive */

/* A zeroed layout is empty. */
struct sl_store_layout {
    uint32_t n_files;
    struct sl_store_file files[SL_STORE_FILES_MAX];
    char *paths[SL_STORE_FILES_MAX];
    uint64_t
        part_bytes[SL_STORE_FILES_MAX]; /* of each record, in that file; 0 for the first file */
};

/* Makes a new layout. Records lie in the store's folder and those of n_stripes others, in parts by
 * weights[0], of the store's drive, and weights[1 + i]; not all are 0. Fails with -ENOMEM, or
 * -errno for a folder that is not there. The caller ends *layout with sl_store_layout_fini(), also
 * after a failure. */
int sl_store_layout_make(struct sl_store_layout *layout, const char *store_folder,
                         const struct sl_expert_shape *shape, uint64_t dense_bytes,
                         const char *const *stripe_folders, const uint64_t *weights,
                         uint32_t n_stripes, struct sl_err *err);

/* Takes over the layout of a store. Fails with -ENOMEM, or -SL_ECORRUPT if files and records do not
 * fit. */
int sl_store_layout_adopt(struct sl_store_layout *layout, const struct sl_store *store,
                          struct sl_err *err);

/* Gives the path, as the catalog has it, of file `file_index` in another folder. It is absolute, so
 * that it holds wherever a command is run from. Fails with -errno, or -EINVAL for a path that the
 * catalog cannot hold. */
int sl_store_part_path(char path[SL_STORE_PATH_BYTES], const char *folder, uint32_t file_index,
                       struct sl_err *err);

void sl_store_layout_fini(struct sl_store_layout *layout);

/* Sums the sizes of all files. */
uint64_t sl_store_layout_bytes(const struct sl_store_layout *layout);

/* Gives the parts of record `number`, which takes stored_bytes: whole blocks, at most its room. */
void sl_store_layout_cut(const struct sl_store_layout *layout, uint32_t number,
                         uint64_t stored_bytes, struct sl_packed_expert *expert);

/* A file whose space comes back while the store's are written. */
struct sl_space_back {
    const char *path;
    uint64_t dense_bytes; /* once so much of the dense tensors is there */
    uint32_t n_experts;   /* and so many records */
};

/* Checks that each drive has room for the files' growth at all times, given the space that comes
 * back meanwhile. Fails with -ENOSPC, naming the folder, or with -errno if the free space is not
 * known. Sorts `back`. `uncommitted_bytes` says how far written data may be ahead of the commit
 * that lets space come back. */
int sl_store_layout_check_space(const struct sl_store_layout *layout, struct sl_space_back *back,
                                uint32_t n_back, uint64_t uncommitted_bytes, struct sl_err *err);

#endif
