#include "tools/cli/pack_source.h"

#include "core/model/weights.h"
#include "storage/experts/model_files.h"

/* Shards of a checkpoint may be cut, because tensors that are packed already need not be there. */
static int open_files(struct sl_pack_source *source, const char *folder, struct sl_err *err)
{
    return sl_store_is(folder) ? sl_store_open(&source->store, folder, SL_STORE_RUN, err)
                               : sl_checkpoint_open_cut(&source->checkpoint, folder, err);
}

int sl_pack_source_open(struct sl_pack_source *source, const char *folder, bool any_model_type,
                        struct sl_err *err)
{
    struct sl_model_files files;
    struct sl_weight_source *weights;
    struct sl_expert_shape shape;
    struct sl_draft draft;
    int rc;

    if ((rc = sl_config_read(&source->config, folder, err)) < 0 ||
        (!any_model_type && (rc = sl_config_check_model_type(&source->config, folder, err)) < 0) ||
        (rc = open_files(source, folder, err)) < 0)
        return rc;
    files = (struct sl_model_files){source->checkpoint, source->store};
    weights = sl_model_files_weights(&files, true);
    draft = sl_draft_find(&source->config, weights);
    shape = sl_expert_shape_of(&source->config, draft.n_blocks);
    rc = sl_model_files_experts(&files, &shape, &source->experts, err);
    if (rc < 0)
        return rc;
    source->config.expert_dtype = sl_expert_map_shape(source->experts)->expert_dtype;
    rc = sl_dense_list_make(&source->tensors, &source->config, weights, &draft, err);
    if (rc < 0)
        return rc;
    return sl_model_check(&files, &source->config, &source->tensors, &source->unused, err);
}

void sl_pack_source_close(struct sl_pack_source *source)
{
    sl_dense_list_fini(&source->tensors);
    sl_expert_map_close(source->experts);
    sl_checkpoint_close(source->checkpoint);
    sl_store_close(source->store);
    *source = (struct sl_pack_source){0};
}
