#include "storage/experts/model_files.h"

int sl_model_files_open(struct sl_model_files *ret_files, const char *folder, struct sl_err *err)
{
    *ret_files = (struct sl_model_files){0};
    return sl_store_is(folder) ? sl_store_open(&ret_files->store, folder, SL_STORE_RUN, err)
                               : sl_checkpoint_open(&ret_files->checkpoint, folder, err);
}

void sl_model_files_close(struct sl_model_files *files)
{
    sl_store_close(files->store);
    sl_checkpoint_close(files->checkpoint);
    *files = (struct sl_model_files){0};
}

struct sl_weight_source *sl_model_files_weights(const struct sl_model_files *files, bool check)
{
    return files->store ? sl_store_weights(files->store, check)
                        : sl_checkpoint_weights(files->checkpoint);
}

int sl_model_files_experts(const struct sl_model_files *files, const struct sl_expert_shape *shape,
                           struct sl_expert_map **ret_experts, struct sl_err *err)
{
    return files->store ? sl_expert_map_of_store(ret_experts, files->store, shape, err)
                        : sl_expert_map_of_checkpoint(ret_experts, files->checkpoint, shape, err);
}
