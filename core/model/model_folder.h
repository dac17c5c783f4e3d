/* Paths that were meant to be a model: where it lies, or what they are instead, in one line. */
#ifndef SL_MODEL_MODEL_FOLDER_H
#define SL_MODEL_MODEL_FOLDER_H

#include <stdbool.h>

#include "core/base/err.h"

/* For a path that has no config.json to be read, or is a file: says what lies there, what was
 * expected, and what to give instead if that can be told. Returns `code`, a negative one. */
int sl_model_folder_explain(const char *path, int code, struct sl_err *err);

/* Where `path` is a model's folder in Hugging Face's cache (models--NAME), whose files lie in a
 * snapshot below it: gives the path of the only snapshot, which the caller frees. Gives NULL where
 * `path` is to be used as it is, whatever it is. Fails with -SL_EFORMAT, naming the snapshots,
 * where there are several, -ENOENT where there is none, and -ENOMEM. */
int sl_model_folder_find(const char *path, char **ret_path, struct sl_err *err);

/* Whether the file begins as GGUF files do. */
bool sl_model_file_is_gguf(const char *path);

/* Whether the folder has *.safetensors files. */
bool sl_model_folder_has_shards(const char *folder);

#endif
