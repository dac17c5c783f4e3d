/* Loads the dense weights that stay, once: the drives read ahead while the threads convert what has
 * landed, and where nothing has landed they touch the memory that comes next, and then do what the
 * caller has for them. */
#ifndef SL_MODEL_WEIGHT_LOADING_H
#define SL_MODEL_WEIGHT_LOADING_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/arena.h"
#include "core/base/err.h"
#include "core/base/pool.h"
#include "core/base/progress_fn.h"
#include "core/model/tensor_load.h"
#include "core/model/weight_source.h"

/* Memory for chunks, at most, unless a chunk is larger; and the slots that the reader has for it.
 */
#define SL_WEIGHT_LOADING_BYTES (UINT64_C(64) << 20)
#define SL_WEIGHT_LOADING_SLOTS 16u

/* Counts of all that can be loaded: the memory that loading takes follows from this. */
struct sl_weight_loading_sizes {
    uint32_t n_tensors;
    uint64_t total_bytes;
    uint64_t chunk_bytes; /* of the largest chunk */
};

/* Counts one more tensor. */
void sl_weight_loading_measure(struct sl_weight_loading_sizes *sizes,
                               const struct sl_tensor_load *tensor);

/* Returns the bytes that loading takes while it runs. */
uint64_t sl_weight_loading_bytes(const struct sl_weight_loading_sizes *sizes);

struct sl_weight_loading {
    struct sl_weight_source *source; /* names files; this and the next two are borrowed */
    struct sl_weight_reader *reader; /* with SL_WEIGHT_LOADING_SLOTS slots at least */
    struct sl_pool *pool;            /* packs, and touches each thread's share first */
    sl_progress_fn *on_progress;     /* NULL, or is told the bytes that were loaded, and all */
    void *on_progress_context;
    bool (*on_wait)(void *context); /* NULL, or is called before the drives are waited for, to do
                                       some milliseconds of other work; false: there is none left */
    void *on_wait_context;
};

/* Tensors that are to be loaded, in order. */
struct sl_weight_list;

/* Takes what loading needs from `arena`, which the caller has mapped for sl_weight_loading_bytes(),
 * and gives back when all is loaded; after a failure, when the drives have answered. */
struct sl_weight_list *sl_weight_list_carve(struct sl_arena *arena,
                                            const struct sl_weight_loading_sizes *sizes);

/* An sl_take_tensor_fn: adds a tensor, one of those that were measured. */
int sl_weight_list_add(void *list, const struct sl_tensor_load *tensor, struct sl_err *err);

/* Reads and converts all of them. Fails as reads and sl_tensor_load_convert() do; then all reads
 * have ended, but a drive that did not answer in time may still write to the arena's memory. */
int sl_weight_list_load(struct sl_weight_list *list, const struct sl_weight_loading *loading,
                        struct sl_err *err);

#endif
