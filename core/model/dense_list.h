/* Which tensors of a checkpoint the engine loads, in the order in which it reads them. */
#ifndef SL_MODEL_DENSE_LIST_H
#define SL_MODEL_DENSE_LIST_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"
#include "core/model/config.h"
#include "core/model/draft.h"
#include "core/model/weight_source.h"

/* Zeroed is empty. */
struct sl_dense_list {
    char **names;
    uint32_t n_names;
};

/* Fails as sl_weights_measure(). The caller ends *ret_list with sl_dense_list_fini(). */
int sl_dense_list_make(struct sl_dense_list *ret_list, const struct sl_config *config,
                       struct sl_weight_source *source, const struct sl_draft *draft,
                       struct sl_err *err);
void sl_dense_list_fini(struct sl_dense_list *list);

#endif
