#include "core/model/draft.h"

#include <stdbool.h>
#include <stdio.h>

#define NAME_BYTES 80

static bool find(struct sl_weight_source *source, const char *name, struct sl_tensor_info *info)
{
    return source->ops->find(source, name, info) == 0;
}

static struct sl_draft find_dspark(const struct sl_config *config, struct sl_weight_source *source,
                                   const struct sl_tensor_info *main_proj)
{
    struct sl_draft draft = {.kind = SL_DRAFT_DSPARK};
    struct sl_tensor_info info;
    char name[NAME_BYTES];

    do {
        draft.n_blocks++;
        snprintf(name, sizeof(name), "mtp.%u.attn_norm.weight", draft.n_blocks);
    } while (draft.n_blocks < SL_DRAFT_BLOCKS_MAX &&
             config->num_hidden_layers + draft.n_blocks < SL_LAYERS_MAX &&
             find(source, name, &info));
    draft.n_targets = (uint32_t)(main_proj->shape[1] / config->hidden_size);
    snprintf(name, sizeof(name), "mtp.%u.markov_head.markov_w1.weight", draft.n_blocks - 1);
    if (find(source, name, &info))
        draft.markov_rank = (uint32_t)info.shape[1];
    return draft;
}

struct sl_draft sl_draft_find(const struct sl_config *config, struct sl_weight_source *source)
{
    struct sl_tensor_info info;

    if (find(source, "mtp.0.main_proj.weight", &info))
        return find_dspark(config, source, &info);
    if (config->num_nextn_predict_layers > 0 && find(source, "mtp.0.e_proj.weight", &info))
        return (struct sl_draft){.kind = SL_DRAFT_MTP, .n_blocks = 1};
    return (struct sl_draft){.kind = SL_DRAFT_NONE};
}

int sl_draft_check(const struct sl_draft *draft, const struct sl_config *config, const char *folder,
                   struct sl_err *err)
{
    const struct sl_dspark_config *told = &config->dspark;

    if (draft->kind != SL_DRAFT_DSPARK)
        return 0;
    if (told->block_size == 0 || !told->has_noise_token || told->n_targets != draft->n_targets ||
        draft->markov_rank == 0)
        return sl_err_set(err, -SL_EUNSUPPORTED,
                          "%s: a DSpark draft that cannot be run: config.json lacks "
                          "dspark_block_size, dspark_noise_token_id or dspark_target_layer_ids of "
                          "%u layers, or the draft its Markov head",
                          folder, draft->n_targets);
    return 0;
}

uint32_t sl_draft_blocks_known(const struct sl_draft *draft, const struct sl_config *config)
{
    return draft->n_blocks > config->num_nextn_predict_layers ? draft->n_blocks
                                                              : config->num_nextn_predict_layers;
}
