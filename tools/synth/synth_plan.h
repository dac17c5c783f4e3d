/* The plan of a random checkpoint: every tensor of the official layout with its shard, its place in
 * it and its kind of values. It is made from the sizes alone and writes nothing. */
#ifndef SL_TOOLS_SYNTH_SYNTH_PLAN_H
#define SL_TOOLS_SYNTH_SYNTH_PLAN_H

#include <stdint.h>

#include "core/base/err.h"
#include "core/model/config.h"
#include "core/model/weight_source.h"
#include "tools/synth/synth_fill.h"

struct sl_synth_tensor {
    char *name;
    struct sl_tensor_info info;
    uint64_t offset_bytes; /* from the end of the shard's header */
    struct sl_synth_values values;
};

struct sl_synth_shard {
    char file_name[40];
    char *header; /* with its leading length: all bytes before the data */
    uint64_t header_bytes;
    uint64_t file_bytes;
    struct sl_synth_tensor *tensors; /* in the order of the file */
    uint32_t n_tensors;
    uint32_t room; /* tensors allocated */
};

struct sl_synth_plan {
    struct sl_synth_shard *shards;
    uint32_t n_shards;
    uint64_t file_bytes; /* of all shards */
    char *index;         /* text of model.safetensors.index.json */
};

/* `skew` is the standard deviation of the experts' popularity, in units of the router's scores:
 * the router's bias has it, and the tables of hash-routed layers are drawn to match. The caller
 * destroys *ret_plan. Fails with -ENOMEM. */
int sl_synth_plan_create(struct sl_synth_plan **ret_plan, const struct sl_config *config,
                         const struct sl_synth_tables *tables, uint64_t seed, float skew,
                         struct sl_err *err);

/* NULL is allowed. */
void sl_synth_plan_destroy(struct sl_synth_plan *plan);

#endif
