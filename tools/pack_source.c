#include "tools/pack_source.h"

#include "core/model/weights.h"
#include "storage/store.h"

int sl_pack_source_open(struct sl_pack_source *source, const char *folder, struct sl_err *err)
{
    struct sl_weight_source *weights;
    struct sl_expert_shape shape;
    bool with_mtp;
    int rc;

    if (sl_store_is(folder))
        return sl_err_set(err, -SL_EFORMAT, "%s: a store already, expected a checkpoint", folder);
    if ((rc = sl_config_read(&source->config, folder, err)) < 0 ||
        (rc = sl_checkpoint_open_cut(&source->checkpoint, folder, err)) < 0)
        return rc;
    weights = sl_checkpoint_weights(source->checkpoint);
    with_mtp = sl_weights_mtp_known(&source->config, weights);
    shape = (struct sl_expert_shape){
        .num_hidden_layers = source->config.num_hidden_layers,
        .n_mtp_layers = with_mtp,
        .n_routed_experts = source->config.n_routed_experts,
        .hidden_size = source->config.hidden_size,
        .moe_intermediate_size = source->config.moe_intermediate_size,
    };
    rc = sl_expert_store_open(&source->experts, source->checkpoint, &shape, err);
    if (rc < 0)
        return rc;
    return sl_dense_list_make(&source->tensors, &source->config, weights, with_mtp, err);
}

void sl_pack_source_close(struct sl_pack_source *source)
{
    sl_dense_list_fini(&source->tensors);
    sl_expert_store_close(source->experts);
    sl_checkpoint_close(source->checkpoint);
    *source = (struct sl_pack_source){0};
}
