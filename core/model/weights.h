/* The dense weights: everything but the routed experts.
 *
 * The caller says how many layers are loaded once and stay. The others stream: each is read again
 * in every step, when its turn comes or a little before, into one of a few windows
 * (core/model/weight_stream.h). Head, norms, the tables of hash-routed layers and what the MTP
 * block has beside its layer always stay; the embedding stays where all layers do, and otherwise
 * its rows are read as they are needed (core/model/embedding.h).
 *
 * Linears are packed into R16 tiles as they are read. Shapes, dtypes, scales and table entries are
 * checked here; later code trusts them. */
#ifndef SL_MODEL_WEIGHTS_H
#define SL_MODEL_WEIGHTS_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/arena.h"
#include "core/base/pool.h"
#include "core/model/config.h"
#include "core/model/draft.h"
#include "core/model/embedding.h"
#include "core/model/layer_weights.h"
#include "core/model/weight_loading.h"
#include "core/model/weight_source.h"
#include "core/model/weight_stream.h"

/* Where the weights are. The layers that stream are spread evenly over all: so the drives have
 * something to read ahead at any time. */
struct sl_weight_residency {
    bool embed_stays;
    uint32_t n_streamed; /* layers */
    uint32_t n_windows;  /* 2 to SL_WINDOWS_MAX, if any layer streams */
};
extern const struct sl_weight_residency sl_weights_all_resident;

/* Whether the layer, one of n_layers, streams. */
bool sl_weights_streams(const struct sl_weight_residency *residency, uint32_t n_layers,
                        uint32_t layer_index);

struct sl_weights {
    struct sl_embedding embedding;
    struct sl_head_weights head;
    struct sl_layer_weights *layers; /* (n_layers) num_hidden_layers, then the blocks of the draft.
                                        Of one that streams only ratio and tid2eid are there at any
                                        time */
    uint32_t n_layers;
    struct sl_draft draft;           /* zeroed: none is loaded */
    struct sl_mtp_weights mtp;       /* SL_DRAFT_MTP */
    struct sl_dspark_weights dspark; /* SL_DRAFT_DSPARK */

    struct sl_weight_residency residency;
    struct sl_weight_stream *stream; /* NULL if no layer streams */
    const struct sl_config *config;
    struct sl_weight_source *source; /* of what streams */
    struct sl_arena arena;           /* owns all of the above but the last two */
    struct sl_arena loading;         /* what loading takes, while it runs */
};

/* The sizes that residencies are chosen by. */
struct sl_layer_size {
    uint64_t memory_bytes;            /* where it stays */
    uint64_t common_bytes, own_bytes; /* in a window: of what all layers have, and the rest */
    uint64_t table_bytes;             /* of tid2eid, which stays in any case */
    uint64_t disk_bytes;              /* read each time, where it streams */
};
struct sl_weight_sizes {
    uint64_t fixed_bytes; /* what always stays, */
    uint64_t draft_bytes; /* of it, what a draft has beside its layers */
    uint64_t embed_bytes, embed_row_bytes;
    uint32_t n_layers, n_hidden_layers;
    struct sl_layer_size layers[SL_LAYERS_MAX];
    struct sl_weight_stream_sizes stream; /* but for its windows */
    struct sl_weight_loading_sizes loading;
};

/* Computes the sizes from the tensors' headers alone; fails as sl_weights_load() does for missing
 * or misshapen tensors. `draft` is the one that there is, or NULL to leave it. */
int sl_weights_measure(const struct sl_config *config, struct sl_weight_source *source,
                       const struct sl_draft *draft, struct sl_weight_sizes *ret_sizes,
                       struct sl_err *err);

/* Returns the bytes that sl_weights_load() will map; of these, the draft's; and those that each
 * step reads from disk, rows of the embedding not counted. */
uint64_t sl_weights_bytes(const struct sl_weight_sizes *sizes,
                          const struct sl_weight_residency *residency);
uint64_t sl_weights_draft_bytes(const struct sl_weight_sizes *sizes,
                                const struct sl_weight_residency *residency);
uint64_t sl_weights_streamed_bytes(const struct sl_weight_sizes *sizes,
                                   const struct sl_weight_residency *residency);

/* Returns how many slots a weight reader needs for a residency, while it is loaded and after. */
uint32_t sl_weights_slot_count(const struct sl_weight_sizes *sizes,
                               const struct sl_weight_residency *residency);

/* Loads what stays; the pool's threads will each find their part of every linear on their own
 * node. `config` is borrowed until fini, which follows in any case: after a failure when the drives
 * have answered. Fails with -ENOMEM, as reads do, with -SL_EFORMAT (missing tensor, wrong dtype or
 * shape) or -SL_ECORRUPT (NaN, absurd scale, table entry out of range), naming file and tensor. */
int sl_weights_load(struct sl_weights *weights, const struct sl_config *config,
                    const struct sl_weight_loading *loading, const struct sl_draft *draft,
                    const struct sl_weight_residency *residency, struct sl_err *err);

void sl_weights_fini(struct sl_weights *weights);

/* Looks whether the linears of n_layers layers, and the head, lie on the nodes of the threads that
 * multiply with them: see sl_placement_add(). */
void sl_weights_look(const struct sl_weights *weights, uint32_t n_layers,
                     const struct sl_pool *pool, uint64_t frame_bytes,
                     struct sl_placement *placement);

/* ---- in steps ----------------------------------------------------------------------------------
 * One thread makes all calls. Where nothing streams, none of them does or costs anything. */

/* Names where the headers of what streams are found, its reader and the threads that pack, all
 * borrowed, before the first step; stop() ends all reads that have not landed. */
void sl_weights_start(struct sl_weights *weights, struct sl_weight_source *source,
                      struct sl_weight_reader *reader, struct sl_pool *pool);
void sl_weights_stop(struct sl_weights *weights);

/* Gives a layer's weights, which stay there until release(); one layer at a time. Waits for them if
 * need be. Fails as reads do, naming layer, tensor, file, drive and offset, or with -SL_ECORRUPT:
 * read twice, to the same end. */
int sl_weights_acquire(struct sl_weights *weights, uint32_t layer_index,
                       const struct sl_layer_weights **ret_layer, struct sl_err *err);
void sl_weights_release(struct sl_weights *weights, uint32_t layer_index);

/* Returns a layer's weights if they are always there, otherwise NULL. */
const struct sl_layer_weights *sl_weights_resident(const struct sl_weights *weights,
                                                   uint32_t layer_index);

/* Packs what has landed and reads on, without waiting: see struct sl_background. `context` is the
 * struct sl_weights. */
void sl_weights_background(void *context);

#endif
