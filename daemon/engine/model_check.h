/* Compares a model's tensors with its config.json beyond what loading needs. A tensor whose name
 * belongs to the model, but for which the config has no place, shows that one of the two is of
 * another model. */
#ifndef SL_DAEMON_ENGINE_MODEL_CHECK_H
#define SL_DAEMON_ENGINE_MODEL_CHECK_H

#include <stdint.h>

#include "core/base/err.h"
#include "core/model/config.h"
#include "core/model/dense_list.h"
#include "storage/experts/model_files.h"

/* Tensors that nothing uses, those of the draft not counted. They do no harm and are only
 * reported. */
struct sl_unused_tensors {
    uint32_t n;
    const char *first; /* by name; the files'; NULL if there are none */
};

/* `dense` is what is loaded of `files`, whose experts have been found complete. Fails with
 * -SL_EFORMAT, naming file, tensor and key, for a layer or expert beyond the last one, for parts of
 * attention or routing that the layer should not have, and for biases, which this engine has only
 * in the router; or with -ENOMEM. */
int sl_model_check(const struct sl_model_files *files, const struct sl_config *config,
                   const struct sl_dense_list *dense, struct sl_unused_tensors *ret_unused,
                   struct sl_err *err);

#endif
