/* The layers that do not stay in memory: read again in every step, into a few windows.
 *
 *                 reader            fifo of chunks             window
 *   drive ──► chunk ▒▒▒▒ ──landed──► in order, by the ──pack──► layer n      in use
 *             chunk ▒▒               compute threads            layer n + 1  READY
 *             chunk                                             layer n + 2  LOADING
 *
 * A window holds one layer, packed for the kernels. While a layer is in use, the next ones that
 * stream are read into the other windows; when it is released, its window gets the one after them.
 * After the last layer comes the first. A layer is read in chunks, one after the other through all
 * its tensors, and converted in the same order, so that scales come before what they scale, and
 * checksums can be followed.
 *
 * A layer that somebody waits for is read in the class of demands, others ahead of it in a class of
 * their own (storage/io/reader.h). What fails while it is read ahead is read again when its turn
 * comes, and reported if it fails then. A tensor that is corrupt is read again once.
 *
 * Several forwards may take turns between layers: a layer that is not in a window when it is asked
 * for is read into the one whose layer is the furthest away. Nothing is allocated after carving.
 * The thread that drives the forward pass makes all calls. */
#ifndef SL_MODEL_WEIGHT_STREAM_H
#define SL_MODEL_WEIGHT_STREAM_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/arena.h"
#include "core/base/err.h"
#include "core/base/pool.h"
#include "core/model/tensor_load.h"
#include "core/model/weight_source.h"

#define SL_WINDOWS_MIN 2u
#define SL_WINDOWS_MAX 3u        /* one in use, two ahead */
#define SL_LAYER_TENSORS_MAX 64u /* a layer of V4 has 47 at most */

struct sl_weight_stream;

struct sl_weight_stream_sizes {
    uint32_t n_windows;
    uint64_t common_bytes, own_bytes; /* of each window */
    uint64_t chunk_bytes;             /* of the largest chunk */
    uint32_t n_chunks;                /* of the largest layer */
};

/* Returns how many chunks can be in memory at once: they have the reader's first slots. */
uint32_t sl_weight_stream_chunk_count(const struct sl_weight_stream_sizes *sizes);

/* Takes memory from `arena`: NULL from a measuring one. start() follows. */
struct sl_weight_stream *sl_weight_stream_carve(struct sl_arena *arena,
                                                const struct sl_weight_stream_sizes *sizes);

/* A window's memory while a layer is listed. What all layers have lies at the same place in every
 * window whatever the layer, so that the threads that touched it first stay those that use it. */
struct sl_layer_memory {
    struct sl_arena *common, *own;
    struct sl_pool *touching; /* NULL, or the memory is new: lets its threads touch it */
};

/* Tells `take` of all tensors of a layer, in order. Fails only where `take` does. */
typedef int sl_list_layer_fn(void *context, uint32_t layer_index,
                             const struct sl_layer_memory *memory, sl_take_tensor_fn *take,
                             void *take_context, struct sl_err *err);

struct sl_weight_stream_params {
    struct sl_weight_source *source; /* names files; this and the next two are borrowed */
    struct sl_weight_reader *reader;
    struct sl_pool *pool;
    sl_list_layer_fn *list;
    void *list_context;
    uint32_t n_layers;
};

void sl_weight_stream_start(struct sl_weight_stream *stream,
                            const struct sl_weight_stream_params *params);

/* Adds one of the layers that stream, before the first is acquired. */
void sl_weight_stream_add(struct sl_weight_stream *stream, uint32_t layer_index);

/* Cancels all reads, and waits for those that are under way. A stream that was not started is
 * allowed. */
void sl_weight_stream_stop(struct sl_weight_stream *stream);

/* These are sl_weights_acquire() and so on, for a layer that streams. */
int sl_weight_stream_acquire(struct sl_weight_stream *stream, uint32_t layer_index,
                             struct sl_err *err);
void sl_weight_stream_release(struct sl_weight_stream *stream, uint32_t layer_index);
void sl_weight_stream_background(struct sl_weight_stream *stream);

struct sl_weight_stream_counters {
    uint64_t n_acquired; /* layers */
    uint64_t n_ready;    /* of these, when they were asked for */
    uint64_t n_loads;    /* layers that were begun to be read */
    uint64_t n_rereads;  /* tensors that were corrupt and so read again */
    uint64_t pack_ns;    /* spent on converting what had landed */
};
struct sl_weight_stream_counters sl_weight_stream_counters(const struct sl_weight_stream *stream);

#endif
