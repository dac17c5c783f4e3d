/* The walk over the model's dense tensors: which there are, of which shape and type, and where in
 * memory each goes. It reads no data. With measuring arenas it adds up sizes; with mapped ones,
 * whoever is told of a tensor reads it.
 *
 * The order of the walk is that of loading, and of a store's dense tensors. */
#ifndef SL_MODEL_WEIGHT_WALK_H
#define SL_MODEL_WEIGHT_WALK_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/arena.h"
#include "core/base/pool.h"
#include "core/model/config.h"
#include "core/model/draft.h"
#include "core/model/layer_weights.h"
#include "core/model/tensor_load.h"
#include "core/model/weight_source.h"

struct sl_weight_walk {
    /* Set by the caller. */
    const struct sl_config *config;
    struct sl_weight_source *source;
    enum sl_draft_kind draft; /* whose blocks are layers too */
    struct sl_arena *arena;
    struct sl_arena *own_arena; /* for what layers do not have in common; it may be the same one */
    struct sl_pool *touching;   /* NULL, or lets its threads touch the memory of tiles first */
    sl_take_tensor_fn *take;    /* is told of each tensor that has its memory */
    void *take_context;
    struct sl_err *err;

    /* The first failure: -SL_EFORMAT for a tensor that is missing, misshapen or of another type,
     * which `err` names with its file, or what `take` returned. Later calls do nothing. */
    int rc;

    char prefix[SL_TENSOR_NAME_BYTES / 2]; /* the walk's own: of the layer, with its dot */
};

/* With `stays` the table is taken, otherwise its header is checked alone. */
void sl_weight_walk_embed(struct sl_weight_walk *walk, struct sl_matrix *embed, bool stays);

void sl_weight_walk_head(struct sl_weight_walk *walk, struct sl_head_weights *head);

/* A hidden layer, or a block of the draft, which routes by scores. `tid2eid`
 * is the table of a hash-routed layer, if it is there already, or NULL. */
void sl_weight_walk_layer(struct sl_weight_walk *walk, struct sl_layer_weights *layer,
                          uint32_t layer_index, const uint16_t *tid2eid);

/* Returns by how much a layer's attention compresses, and the table of a hash-routed layer alone.
 */
uint32_t sl_weight_walk_ratio(const struct sl_weight_walk *walk, uint32_t layer_index);
const uint16_t *sl_weight_walk_table(struct sl_weight_walk *walk, uint32_t layer_index);

/* The tensors that a draft has beside its blocks' layers: fills the struct of its kind. */
void sl_weight_walk_draft(struct sl_weight_walk *walk, const struct sl_draft *draft,
                          struct sl_mtp_weights *mtp, struct sl_dspark_weights *dspark);

#endif
