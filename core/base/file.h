/* Whole small files: configs, tokenizers, prompts. */
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

#endif
