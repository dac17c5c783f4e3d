/* The source of sluice pack and sluice verify --repair: a checkpoint or a store, with the list of
 * the tensors and experts that go into a store. */
#ifndef SL_TOOLS_CLI_PACK_SOURCE_H
#define SL_TOOLS_CLI_PACK_SOURCE_H

#include "core/base/err.h"
#include "core/model/config.h"
#include "storage/checkpoint/checkpoint.h"
#include "storage/experts/expert_map.h"
#include "storage/store/store.h"
#include "core/model/dense_list.h"
#include "daemon/engine/model_check.h"

/* A zeroed source is closed. */
struct sl_pack_source {
    struct sl_config config;
    struct sl_checkpoint *checkpoint; /* or store: one is NULL */
    struct sl_store *store;
    struct sl_expert_map *experts;
    struct sl_dense_list tensors;
    struct sl_unused_tensors unused; /* names are the checkpoint's */
};

/* Fails as its parts do, and for a model_type that is not ours unless any_model_type is set. The
 * caller closes *source in any case. */
int sl_pack_source_open(struct sl_pack_source *source, const char *folder, bool any_model_type,
                        struct sl_err *err);
void sl_pack_source_close(struct sl_pack_source *source);

#endif
