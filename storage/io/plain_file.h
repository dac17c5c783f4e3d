/* Reads files in a store's folders, which must be regular files and no symbolic links.
 *
 * A store may come from a stranger. A link in it would lead a reader or a writer to any file of the
 * user's, and a pipe would keep a reader waiting, so both are refused. The store's folder itself is
 * named by the user and may be reached by links. */
#ifndef SL_STORAGE_IO_PLAIN_FILE_H
#define SL_STORAGE_IO_PLAIN_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/err.h"

/* Reads a whole file into memory that the caller frees. Fails as sl_file_open_nofollow() does, with
 * -ENOMEM, and with -SL_EFORMAT for a file that has more than size_max_bytes. */
int sl_plain_file_read(const char *path, uint64_t size_max_bytes, uint8_t **ret_bytes,
                       size_t *ret_size_bytes, struct sl_err *err);

/* Fails as sl_file_open_nofollow() does for a file that it would refuse. */
int sl_plain_file_check(const char *path, struct sl_err *err);

/* Returns whether the path still leads to the open file; with `follow` it may be a symbolic
 * link. */
bool sl_plain_file_leads(const char *path, int fd, bool follow);

#endif
