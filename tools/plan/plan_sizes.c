/* Takes the tensors that `sluice synth` would write, and lets the model's own code go over them to
 * find out which are loaded. */
#include "tools/plan/plan_sizes.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cache/expert_cache.h"
#include "core/base/process.h"
#include "core/model/weights.h"
#include "core/text/sampler.h"
#include "daemon/engine/memory_room.h"
#include "storage/checkpoint/checkpoint.h"
#include "tools/synth/synth_plan.h"

struct listed_source {
    struct sl_weight_source source; /* first */
    const struct sl_config *config;
    const struct sl_synth_plan *plan;
    struct sl_dense_cost cost; /* of what was found so far */
};

/* Each shard holds the embedding, a layer, the head or a block of the draft, in that order: so a
 * tensor's name tells its shard. */
static int listed_find(struct sl_weight_source *source, const char *name,
                       struct sl_tensor_info *ret_info)
{
    struct listed_source *in = (struct listed_source *)source;
    uint32_t layer, first = 0, step = in->config->num_hidden_layers + 1;

    if (sscanf(name, "layers.%u.", &layer) == 1) {
        first = layer + 1;
        step = in->plan->n_shards;
    } else if (sscanf(name, "mtp.%u.", &layer) == 1) {
        first = in->config->num_hidden_layers + 2 + layer;
        step = in->plan->n_shards;
    }
    for (uint32_t s = first; s < in->plan->n_shards; s += step) {
        const struct sl_synth_shard *shard = &in->plan->shards[s];

        for (uint32_t i = 0; i < shard->n_tensors; i++) {
            if (strcmp(shard->tensors[i].name, name) != 0)
                continue;
            *ret_info = shard->tensors[i].info;
            sl_cost_add_dense(&in->cost, name, ret_info);
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

static int list_tensors(const struct sl_config *config, bool without_experts,
                        struct sl_synth_plan **ret_plan, struct sl_err *err)
{
    const struct sl_synth_wishes wishes = {.sizes_of_dense = without_experts};
    struct sl_synth_tables *tables = malloc(sizeof(*tables));
    int rc;

    if (!tables)
        return sl_err_set(err, -ENOMEM, "list of tensors: out of memory");
    sl_synth_tables_init(tables);
    rc = sl_synth_plan_create(ret_plan, config, tables, &wishes, err);
    free(tables);
    return rc;
}

/* Takes the draft's sizes in. */
static int add_draft(struct listed_source *in, struct sl_draft *ret_draft,
                     struct sl_weight_sizes *ret_sizes, struct sl_err *err)
{
    *ret_draft = sl_draft_find(in->config, &in->source);
    if (ret_draft->kind == SL_DRAFT_NONE)
        return sl_err_set(err, -SL_EUNSUPPORTED, "the config announces no draft");
    return sl_weights_measure(in->config, &in->source, ret_draft, ret_sizes, err);
}

int sl_plan_dense(const struct sl_config *config, struct sl_draft *ret_draft,
                  struct sl_dense_cost *ret_cost, struct sl_weight_sizes *ret_sizes,
                  struct sl_err *err)
{
    /* There is no read, since measuring reads nothing. */
    static const struct sl_weight_source_ops ops = {.find = listed_find, .where = listed_where};
    struct listed_source in = {.source = {&ops}, .config = config};
    struct sl_config body = *config;
    struct sl_synth_plan *plan = NULL;
    int rc;

    if (!ret_draft)
        body.num_nextn_predict_layers = body.dspark.n_targets = 0;
    rc = list_tensors(&body, true, &plan, err);
    if (rc == 0) {
        in.plan = plan;
        rc = sl_weights_measure(&body, &in.source, NULL, ret_sizes, err);
    }
    if (rc == 0)
        *ret_cost = in.cost;
    if (rc == 0 && ret_draft)
        rc = add_draft(&in, ret_draft, ret_sizes, err);
    sl_synth_plan_destroy(plan);
    return rc;
}

int sl_plan_disk(const struct sl_config *config, struct sl_disk_sizes *ret_sizes,
                 struct sl_err *err)
{
    struct sl_synth_plan *plan;
    int rc = list_tensors(config, false, &plan, err);

    if (rc < 0)
        return rc;
    *ret_sizes = (struct sl_disk_sizes){.n_bytes = plan->file_bytes, .n_files = plan->n_shards};
    for (uint32_t i = 0; i < plan->n_shards; i++)
        ret_sizes->n_tensors += plan->shards[i].n_tensors;
    sl_synth_plan_destroy(plan);
    return 0;
}

/* A checkpoint's headers, and the table of its experts, as far as they do not depend on names. */
static uint64_t headers_bytes(const struct sl_config *config)
{
    const uint64_t n_experts = (uint64_t)config->num_hidden_layers * config->n_routed_experts;

    return n_experts * (sizeof(struct sl_checkpoint_expert) +
                        2 * SL_EXPERT_MATRICES * sizeof(struct sl_checkpoint_tensor));
}

int sl_plan_memory(const struct sl_config *config, const struct sl_memory_case *what,
                   struct sl_memory_plan *ret_plan, struct sl_err *err)
{
    const struct sl_expert_shape shape =
        sl_expert_shape_of(config, what->draft ? what->draft->n_blocks : 0);
    const uint32_t inflight_max = sl_expert_cache_inflight_default(config->num_experts_per_tok);
    const struct sl_process_memory process = sl_process_memory();
    struct sl_memory_case with_budget = *what;
    struct sl_memory_room room;
    struct sl_arena sampling;

    sl_arena_init_measure(&sampling);
    for (uint32_t i = 0; i < what->n_threads; i++)
        sl_sampler_carve_scratch(&sampling, config->vocab_size);
    with_budget.program_bytes = process.bytes + headers_bytes(config) +
                                sl_memory_run_bytes(what->n_threads, sampling.used_bytes);
    with_budget.staging_bytes = sl_expert_cache_checkpoint_staging_bytes(&shape, inflight_max);

    with_budget.ram_given = what->ram_bytes != 0;
    if (!with_budget.ram_given) {
        sl_memory_room_read("", &room);
        with_budget.ram_bytes = room.default_bytes;
    }
    return sl_memory_plan_make(ret_plan, config, &shape, &with_budget, err);
}
