/* The plan of a random checkpoint: every tensor of the official layout with its shard, its place in
 * it and its kind of values. It is made from the sizes alone and writes nothing. */
#ifndef SL_TOOLS_SYNTH_SYNTH_PLAN_H
#define SL_TOOLS_SYNTH_SYNTH_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"
#include "core/model/config.h"
#include "core/model/weight_source.h"
#include "tools/synth/synth_fill.h"

#define SL_SYNTH_BLOCK_BYTES 4096u /* of XFS and Btrfs, and what direct I/O asks for */

struct sl_synth_tensor {
    char *name;
    struct sl_tensor_info info;
    uint64_t offset_bytes; /* from the end of the shard's header */
    struct sl_synth_values values;
    const struct sl_synth_tensor *donor; /* has the same bytes, in an earlier shard; or NULL */
    uint32_t donor_shard;
};

/* Whole blocks of a shard that another shard has too. */
struct sl_synth_run {
    uint64_t offset_bytes; /* in the file, as is the donor's; all are multiples of a block */
    uint64_t size_bytes;
    uint32_t donor_shard; /* comes before this one in the plan */
    uint64_t donor_offset_bytes;
};

struct sl_synth_shard {
    char file_name[40];
    char block[24]; /* the prefix of its names, "layers.7" or "mtp.0"; empty where they have none */
    char *header;   /* with its leading length: all bytes before the data */
    uint64_t header_bytes;
    uint64_t file_bytes;
    struct sl_synth_tensor *tensors; /* in the order of the file */
    uint32_t n_tensors;
    uint32_t room;             /* tensors allocated */
    struct sl_synth_run *runs; /* what need not be written, ascending */
    uint32_t n_runs;
};

struct sl_synth_plan {
    struct sl_synth_shard *shards;
    uint32_t n_shards;
    uint64_t file_bytes;  /* of all shards */
    uint64_t write_bytes; /* those that are not shared with an earlier shard */
    char *index;          /* text of model.safetensors.index.json */
};

/* The user's choice of values. */
struct sl_synth_wishes {
    uint64_t seed;
    float skew;
    uint32_t share_layers; /* 0: each layer has values of its own */
    bool sizes_of_dense;   /* for their names and sizes: without experts, and no values are drawn */
};

/* `skew` is the standard deviation of the experts' popularity, in units of the router's scores:
 * the router's bias has it, and the tables of hash-routed layers are drawn to match.
 * Where layers are to share, headers are padded so that they can (sl_synth_share()). The caller
 * destroys *ret_plan. Fails with -ENOMEM. */
int sl_synth_plan_create(struct sl_synth_plan **ret_plan, const struct sl_config *config,
                         const struct sl_synth_tables *tables, const struct sl_synth_wishes *wishes,
                         struct sl_err *err);

/* NULL is allowed. */
void sl_synth_plan_destroy(struct sl_synth_plan *plan);

#endif
