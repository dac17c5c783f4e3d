/* A MODEL folder of either kind, open: an official checkpoint as it is, or a packed store.
 *
 * Both kinds give a weight source for the dense tensors and a map of where the experts lie. Dense
 * tensors are read by one thread. */
#ifndef SL_STORAGE_EXPERTS_MODEL_FILES_H
#define SL_STORAGE_EXPERTS_MODEL_FILES_H

#include <stdbool.h>

#include "core/base/err.h"
#include "core/model/weight_source.h"
#include "storage/checkpoint/checkpoint.h"
#include "storage/experts/expert_map.h"
#include "storage/store/store.h"

struct sl_model_files {
    struct sl_checkpoint *checkpoint; /* one is NULL */
    struct sl_store *store;
};

/* Fails as sl_checkpoint_open() or sl_store_open(). sl_model_files_close() takes zeroed ones too.
 */
int sl_model_files_open(struct sl_model_files *ret_files, const char *folder, struct sl_err *err);
void sl_model_files_close(struct sl_model_files *files);

/* Returns the dense tensors. With `check`, those of a store are compared with their checksums. */
struct sl_weight_source *sl_model_files_weights(const struct sl_model_files *files, bool check);

/* Fails as sl_expert_map_of_checkpoint() or sl_expert_map_of_store(). */
int sl_model_files_experts(const struct sl_model_files *files, const struct sl_expert_shape *shape,
                           struct sl_expert_map **ret_experts, struct sl_err *err);

#endif
