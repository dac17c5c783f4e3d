/* Whole small files (configs, tokenizers, prompts), and parts of large ones. */
#ifndef SL_BASE_FILE_H
#define SL_BASE_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "core/base/err.h"

/* Reads a regular file or a pipe of at most `size_max_bytes` into memory that the caller frees. A
 * zero byte follows the last one and is not counted. Fails with -errno, -ENOMEM, or -SL_EFORMAT for
 * a file that is too large; then the outputs are untouched. */
int sl_file_read_all(const char *path, uint64_t size_max_bytes, char **ret_text, size_t *ret_length,
                     struct sl_err *err);

/* Reads at `offset_bytes` until `size_bytes` are there or the file ends. Returns how many there
 * are, or -errno. */
int64_t sl_file_read_at(int fd, void *dst, uint64_t size_bytes, uint64_t offset_bytes);

#endif
