/* Computes what a model takes on disk and in memory from its config alone; no checkpoint is
 * needed. */
#ifndef SL_TOOLS_PLAN_PLAN_SIZES_H
#define SL_TOOLS_PLAN_PLAN_SIZES_H

#include <stdint.h>

#include "core/base/err.h"
#include "core/model/config.h"
#include "daemon/engine/memory_plan.h"
#include "tools/plan/cost.h"

/* Computes the cost of the layers' dense weights, and the sizes of all that is loaded: with the
 * draft that the config announces, unless ret_draft is NULL. Fails with -ENOMEM, or
 * -SL_EUNSUPPORTED where there is no draft. */
int sl_plan_dense(const struct sl_config *config, struct sl_draft *ret_draft,
                  struct sl_dense_cost *ret_cost, struct sl_weight_sizes *ret_sizes,
                  struct sl_err *err);

/* The sizes of a checkpoint in the official layout: all tensors, MTP blocks included. Computing
 * them fails with -ENOMEM. */
struct sl_disk_sizes {
    uint64_t n_bytes;
    uint32_t n_tensors;
    uint32_t n_files;
};
int sl_plan_disk(const struct sl_config *config, struct sl_disk_sizes *ret_sizes,
                 struct sl_err *err);

/* Calls sl_memory_plan_make() for a run, with what->draft if there is one, of a checkpoint as it
 * is: a store that is not compressed takes no memory for reads in flight. The program's bytes and
 * theirs are filled in. Where no budget is given, takes the one that a run on this machine would
 * choose. */
int sl_plan_memory(const struct sl_config *config, const struct sl_memory_case *what,
                   struct sl_memory_plan *ret_plan, struct sl_err *err);

#endif
