#include "tools/cli/expert_files.h"

#include <errno.h>
#include <stdlib.h>

int sl_expert_files_open(struct sl_expert_files *files, const char *folder, struct sl_err *err)
{
    struct sl_expert_shape shape;
    int rc;

    *files = (struct sl_expert_files){0};
    if ((rc = sl_config_read(&files->config, folder, err)) < 0 ||
        (rc = sl_model_files_open(&files->model, folder, err)) < 0)
        return rc;
    shape = (struct sl_expert_shape){
        .num_hidden_layers = files->config.num_hidden_layers,
        .n_routed_experts = files->config.n_routed_experts,
        .hidden_size = files->config.hidden_size,
        .moe_intermediate_size = files->config.moe_intermediate_size,
    };
    rc = sl_model_files_experts(&files->model, &shape, &files->store, err);
    if (rc < 0)
        return rc;
    files->n_files = sl_expert_store_file_count(files->store);
    files->paths = sl_expert_store_file_paths(files->store);
    if (!files->paths)
        return sl_err_set(err, -ENOMEM, "list of files: out of memory");
    return 0;
}

void sl_expert_files_close(struct sl_expert_files *files)
{
    free(files->paths);
    sl_expert_store_close(files->store);
    sl_model_files_close(&files->model);
    *files = (struct sl_expert_files){0};
}
