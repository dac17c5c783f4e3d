/* Paths that were meant to be a model and are something else: what they are, in one line. */
#ifndef SL_MODEL_MODEL_FOLDER_H
#define SL_MODEL_MODEL_FOLDER_H

#include <stdbool.h>

#include "core/base/err.h"

/* For a path that has no config.json to be read, or is a file: says what lies there, what was
 * expected, and what to give instead if that can be told. Returns `code`, a negative one. */
int sl_model_folder_explain(const char *path, int code, struct sl_err *err);

/* Whether the file begins as GGUF files do. */
bool sl_model_file_is_gguf(const char *path);

/* Whether the folder has *.safetensors files. */
bool sl_model_folder_has_shards(const char *folder);

#endif
