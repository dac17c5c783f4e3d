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
    shape = sl_expert_shape_of(&files->config, 0);
    rc = sl_model_files_experts(&files->model, &shape, &files->store, err);
    if (rc < 0)
        return rc;
    files->config.expert_dtype = sl_expert_map_shape(files->store)->expert_dtype;
    files->n_files = sl_expert_map_file_count(files->store);
    files->paths = sl_expert_map_file_paths(files->store);
    if (!files->paths)
        return sl_err_set(err, -ENOMEM, "list of files: out of memory");
    return 0;
}

void sl_expert_files_close(struct sl_expert_files *files)
{
    free(files->paths);
    sl_expert_map_close(files->store);
    sl_model_files_close(&files->model);
    *files = (struct sl_expert_files){0};
}
