/* Chunks of tensors on their way from the drives to the threads that convert them.
 *
 *   begin() ──► drive ──► chunk's memory ──► take(), the oldest first ──► convert() ──► its tensor
 *
 * They are taken in the order in which they were begun, so that scales come before what they scale,
 * and checksums can be followed. Those who read dense weights, once (core/model/weight_loading.h)
 * or in each step (core/model/weight_stream.h), say which chunk comes next. A chunk has the slot of
 * the reader that has its number. Nothing is allocated after carving; one thread makes all calls.
 */
#ifndef SL_MODEL_WEIGHT_CHUNKS_H
#define SL_MODEL_WEIGHT_CHUNKS_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/arena.h"
#include "core/base/err.h"
#include "core/base/pool.h"
#include "core/model/tensor_load.h"
#include "core/model/weight_source.h"

/* A chunk that was begun; `owner` and `serial` are for whoever began it. */
struct sl_weight_chunk {
    const struct sl_tensor_load *tensor;
    uint64_t offset_bytes, size_bytes;
    const void *owner;
    uint64_t serial;
};

struct sl_weight_chunks {
    /* Set by the owner before the first begin(); all borrowed. */
    struct sl_weight_source *source; /* names files */
    struct sl_weight_reader *reader;
    struct sl_pool *pool; /* converts */

    /* Used by the functions below alone. */
    struct sl_weight_chunk *list; /* (n_chunks) */
    bool *out;                    /* (n_chunks) begun, and not taken yet */
    uint32_t *fifo;               /* (n_chunks) those that are out, in order */
    uint32_t n_chunks, first_out, n_out;
    uint8_t *memory; /* (n_chunks, slot_bytes) */
    uint64_t chunk_bytes, slot_bytes;
    uint32_t taken;       /* the chunk that take() gave last, */
    const uint8_t *bytes; /* and where its bytes are */
};

/* Returns the memory that a chunk takes. */
uint64_t sl_weight_chunk_memory_bytes(uint64_t chunk_bytes);

/* Takes memory from `arena` for n_chunks of up to chunk_bytes each. */
void sl_weight_chunks_carve(struct sl_weight_chunks *chunks, struct sl_arena *arena,
                            uint32_t n_chunks, uint64_t chunk_bytes);

/* Queues the read of the tensor's chunk at chunk->offset_bytes, and fills size_bytes; start() of
 * the reader sends it off. The tensor stays until the chunk is taken. Returns false if no chunk is
 * free. */
bool sl_weight_chunks_begin(struct sl_weight_chunks *chunks, struct sl_weight_chunk *chunk,
                            bool urgent);

/* The chunks of an owner: somebody waits for them, or nobody wants them any more. Those that were
 * dropped are taken like others. */
void sl_weight_chunks_hurry(struct sl_weight_chunks *chunks, const void *owner);
void sl_weight_chunks_drop(struct sl_weight_chunks *chunks, const void *owner);

/* Returns 1 when the oldest chunk has landed; 0 while it is under way, which with `wait` does not
 * happen, or if there is none; or fails as its read did. It is *ret_chunk, unless 0 is returned. */
int sl_weight_chunks_take(struct sl_weight_chunks *chunks, bool wait,
                          struct sl_weight_chunk *ret_chunk, struct sl_err *err);

/* Checks and converts the chunk that was taken last. Its memory is free after the next begin(). */
int sl_weight_chunks_convert(struct sl_weight_chunks *chunks, struct sl_err *err);

#endif
