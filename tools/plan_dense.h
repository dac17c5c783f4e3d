/* What the dense weights of a model take, from its sizes alone: no checkpoint is needed. */
#ifndef SL_TOOLS_PLAN_DENSE_H
#define SL_TOOLS_PLAN_DENSE_H

#include <stdint.h>

#include "core/base/err.h"
#include "core/model/config.h"
#include "daemon/step_model.h"

/* *ret_bytes is what loading them maps, without MTP blocks. Fails with -ENOMEM. */
int sl_plan_dense(const struct sl_config *config, struct sl_dense_cost *ret_cost,
                  uint64_t *ret_bytes, struct sl_err *err);

#endif
