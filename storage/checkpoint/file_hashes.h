/* Which SHA-256 the files of a checkpoint's folder are to have, as far as that is known:
 *
 * - from a list in the format of sha256sum(1), in which files go by the last part of their names;
 * - in Hugging Face's cache, where a file is a link to one that is named by its hash;
 * - in a folder that `hf download --local-dir` filled, from what that noted below .cache.
 *
 * Small files have no such hash in the latter two. */
#ifndef SL_STORAGE_CHECKPOINT_FILE_HASHES_H
#define SL_STORAGE_CHECKPOINT_FILE_HASHES_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"
#include "storage/io/sha256.h"

struct sl_file_hash {
    char hex[SL_SHA256_HEX + 1]; /* in lower case */
    char *name;
};

/* Zeroed is empty. */
struct sl_file_hashes {
    struct sl_file_hash *list;
    uint32_t n;
};

/* Reads a list; the caller ends it with sl_file_hashes_fini() in any case. Fails as reading does,
 * or with -SL_EFORMAT, naming the line. */
int sl_file_hashes_read(struct sl_file_hashes *hashes, const char *path, struct sl_err *err);
void sl_file_hashes_fini(struct sl_file_hashes *hashes);

/* Finds the hash of folder/name: in `list` (NULL: there is none), else from the folder. Returns
 * whether it is known. */
bool sl_file_hash_find(const struct sl_file_hashes *list, const char *folder, const char *name,
                       char ret_hex[SL_SHA256_HEX + 1]);

#endif
