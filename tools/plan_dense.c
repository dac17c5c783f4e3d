/* The model's own walk over its tensors, done on the list that `sluice synth` would write. */
#include "tools/plan_dense.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/model/weights.h"
#include "tools/synth_plan.h"

struct listed_source {
    struct sl_weight_source source; /* first */
    const struct sl_config *config;
    const struct sl_synth_plan *plan;
    struct sl_dense_cost cost; /* of what was found so far */
};

/* Shards are the embedding, the layers, and the head: so a name says where to look. */
static int listed_find(struct sl_weight_source *source, const char *name,
                       struct sl_tensor_info *ret_info)
{
    struct listed_source *in = (struct listed_source *)source;
    uint32_t layer, first = 0, step = in->config->num_hidden_layers + 1;

    if (sscanf(name, "layers.%u.", &layer) == 1) {
        first = layer + 1;
        step = in->plan->n_shards;
    }
    for (uint32_t s = first; s < in->plan->n_shards; s += step) {
        const struct sl_synth_shard *shard = &in->plan->shards[s];

        for (uint32_t i = 0; i < shard->n_tensors; i++) {
            if (strcmp(shard->tensors[i].name, name) != 0)
                continue;
            *ret_info = shard->tensors[i].info;
            sl_dense_cost_add(&in->cost, name, ret_info);
            return 0;
        }
    }
    return -ENOENT;
}

static const char *listed_where(struct sl_weight_source *source, const char *name)
{
    (void)source;
    (void)name;
    return "the official layout";
}

int sl_plan_dense(const struct sl_config *config, struct sl_dense_cost *ret_cost,
                  uint64_t *ret_bytes, struct sl_err *err)
{
    /* Measuring reads nothing. */
    static const struct sl_weight_source_ops ops = {.find = listed_find, .where = listed_where};
    struct listed_source in = {.source = {&ops}, .config = config};
    struct sl_synth_tables *tables = malloc(sizeof(*tables));
    struct sl_config body = *config;
    struct sl_synth_plan *plan = NULL;
    int rc;

    if (!tables)
        return sl_err_set(err, -ENOMEM, "list of tensors: out of memory");
    sl_synth_tables_init(tables);
    body.num_nextn_predict_layers = 0;
    rc = sl_synth_plan_create(&plan, &body, tables, 0, 0, err);
    if (rc == 0) {
        in.plan = plan;
        rc = sl_weights_measure(&body, &in.source, false, ret_bytes, err);
    }
    if (rc == 0)
        *ret_cost = in.cost;
    sl_synth_plan_destroy(plan);
    free(tables);
    return rc;
}
