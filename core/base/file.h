/* Whole small files (configs, tokenizers, prompts), and parts of large ones.
 *
 * The files of a model are regular files. A name that leads to anything else (a pipe, a device, a
 * folder) is refused without waiting for it; only inputs that a user names may be pipes. */
#ifndef SL_BASE_FILE_H
#define SL_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/err.h"

/* Opens a regular file for reading. Returns its descriptor, the caller's to close; or -errno, or
 * -SL_EFORMAT where the name leads to something else. */
int sl_file_open(const char *path, struct sl_err *err);

/* Opens like sl_file_open(), but the name must not be a symbolic link (-ELOOP): for files that lie
 * in a store, which may come from a stranger. Folders on the way may be links. */
int sl_file_open_nofollow(const char *path, struct sl_err *err);

/* Says of a path that it is a symbolic link; returns -ELOOP. */
int sl_file_link_error(const char *path, struct sl_err *err);

/* Reads a regular file of at most `size_max_bytes` into memory that the caller frees. A zero byte
 * follows the last one and is not counted. Fails with -errno, -ENOMEM, or -SL_EFORMAT for a file
 * that is too large or not regular; then the outputs are untouched. */
int sl_file_read_all(const char *path, uint64_t size_max_bytes, char **ret_text, size_t *ret_length,
                     struct sl_err *err);

/* Opens an input that the user named: a regular file, a pipe or a device; "-" is standard input.
 * Returns a descriptor, the caller's to close, that sl_input_read() reads from; or -errno, or
 * -SL_EFORMAT for a folder. */
int sl_input_open(const char *path, struct sl_err *err);

/* Reads up to `size_bytes` more of an input, and waits where there is nothing yet. Returns how many
 * bytes it got, 0 at the end, or -errno. */
int64_t sl_input_read(int fd, void *dst, size_t size_bytes);

/* Reads a whole input; otherwise like sl_file_read_all(). */
int sl_input_read_all(const char *path, uint64_t size_max_bytes, char **ret_text,
                      size_t *ret_length, struct sl_err *err);

/* Git leaves small texts in place of large files that it was not asked to fetch. Fails with
 * -SL_EFORMAT if the bytes are the beginning of one; `where` names the file. */
int sl_file_check_fetched(const void *start, size_t length, const char *where, struct sl_err *err);

/* Reads at `offset_bytes` until `size_bytes` are there or the file ends. Returns how many there
 * are, or -errno. */
int64_t sl_file_read_at(int fd, void *dst, uint64_t size_bytes, uint64_t offset_bytes);

/* Writes all of it. Returns 0 or -errno. Where blocks turn out not to suit direct I/O on the file,
 * it goes through the page cache from then on. */
int sl_file_write_at(int fd, const void *data, uint64_t size_bytes, uint64_t offset_bytes);

/* Makes I/O on an open file go past the page cache, if offsets, sizes and memory that are multiples
 * of `block_bytes` suit the drive and the file system. Returns whether it does; if not, the file
 * can be used as before. Where the system does not tell (before Linux 6.1, and on some file
 * systems) this tries a read, if the file is open for reading. */
bool sl_file_set_direct(int fd, uint64_t block_bytes);

/* Takes that back. Returns false if the file was not set so. */
bool sl_file_clear_direct(int fd);

#endif
