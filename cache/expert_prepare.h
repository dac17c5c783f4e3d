/* Preparing one expert: from the bytes that a load has brought to verified R16 tiles in its slot.
 *
 * A packed expert already has the kernels' layout, and its matrices are compared with the catalog's
 * checksums; a compressed one is unpacked before that; a checkpoint's is repacked, and its scales
 * are checked. All of it runs as jobs of the thread pool. Private to the expert cache; one thread
 * makes all calls. */
#ifndef SL_CACHE_EXPERT_PREPARE_H
#define SL_CACHE_EXPERT_PREPARE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/arena.h"
#include "core/base/err.h"
#include "core/base/pool.h"
#include "core/model/expert_key.h"
#include "storage/experts/expert_map.h"
#include "storage/store/codec.h"

struct sl_expert_preparer {
    const struct sl_expert_map *store;
    struct sl_pool *pool;
    struct sl_record_decoder **decoders; /* one for each thread, where records are compressed */
    struct sl_record_index index;        /* of the record that is being unpacked */
    bool *verified;                      /* (layers, experts); of a packed store */
    enum sl_verify verify;
    uint32_t n_threads; /* of the pool */
    uint64_t repack_ns, unpack_ns, verify_ns;
};

/* Where an expert's bytes have landed, and where its tiles go. */
struct sl_landing {
    struct sl_expert_key key;
    uint8_t *tiles;         /* of the slot; a packed store's reads land here */
    const uint8_t *staging; /* a compressed record, if it is one */
    const uint8_t *codes[SL_EXPERT_MATRICES], *scales[SL_EXPERT_MATRICES]; /* a checkpoint's */
    bool up_ready; /* w1 and w3 are there, as the catalog says; set by sl_expert_prepare_up() */
};

/* Borrows store and pool; to measure, pool may be NULL, and the caller sets n_threads. carve()
 * takes what memory it needs from a zeroed arena. */
void sl_expert_preparer_init(struct sl_expert_preparer *preparer, const struct sl_expert_map *store,
                             struct sl_pool *pool, enum sl_verify verify);
void sl_expert_preparer_carve(struct sl_expert_preparer *preparer, struct sl_arena *arena);

/* All reads are back: makes an expert of them. Returns 0, or -SL_ECORRUPT with *ret_matrix set. */
int sl_expert_prepare(struct sl_expert_preparer *preparer, const struct sl_landing *landing,
                      int *ret_matrix);

/* The reads of a packed expert's up half are back: verifies w1 and w3, and sets up_ready if they
 * are right. If not, sl_expert_prepare() will report it when all reads are back. */
bool sl_expert_prepare_up(struct sl_expert_preparer *preparer, struct sl_landing *landing);

/* Says in *err, without naming the expert, what is wrong with a matrix. Returns -SL_ECORRUPT. */
int sl_expert_explain_corrupt(const struct sl_expert_preparer *preparer, struct sl_expert_key key,
                              int matrix, struct sl_err *err);

#endif
