/* One number that tells a model's weights and config from any other's, so that what one model left
 * on disk is never taken for another's, also where all sizes are the same.
 *
 * Made without reading the weights. A store's catalog has a checksum of every tensor and expert, so
 * the number stands for all of their bytes, wherever the store lies and however it is compressed or
 * striped. A checkpoint has none: there it stands for config.json, all headers, size and time of
 * modification of each shard, and samples from all dense tensors and from experts of every layer.
 * So a checkpoint that was copied with new times counts as another model. */
#ifndef SL_STORAGE_EXPERTS_MODEL_IDENTITY_H
#define SL_STORAGE_EXPERTS_MODEL_IDENTITY_H

#include <stdint.h>

#include "storage/experts/model_files.h"

/* `folder` is the model's. Fails as reading does, or with -ENOMEM. */
int sl_model_identity(const struct sl_model_files *files, const char *folder,
                      uint64_t *ret_identity, struct sl_err *err);

#endif
