/* A tiny model in memory, for tests of core/model: a config, a weight source over random tensors,
 * and an expert source that can be slow, out of order, short of memory, or fail.
 *
 * The same seed gives the same model. What a caller of the sources gets wrong (an expert that was
 * not demanded, a demand that is not ascending, too many pins) aborts. One thread makes all calls.
 */
#ifndef SL_TESTS_FIXTURE_MODEL_H
#define SL_TESTS_FIXTURE_MODEL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/model/config.h"
#include "core/model/draft.h"
#include "core/model/expert_pack.h"
#include "core/model/expert_source.h"
#include "core/model/weight_source.h"
#include "core/model/weights.h"

/* splitmix64, and a number below `limit` made of it. */
uint64_t fixture_random(uint64_t *state);
uint32_t fixture_below(uint64_t *state, uint32_t limit);

/* Hidden layers of ratio 0, 4, 8 and 128, the first two hash-routed, and an MTP block of ratio
 * 0. The window (8) and index_topk (3) are small enough that short sequences leave them. Sizes are
 * no multiples of 16 where they need not be. A test may change any of it. */
void fixture_config(struct sl_config *config);

/* The draft of that config, and what makes another one of it: DSpark in three stages. */
extern const struct sl_draft fixture_mtp, fixture_dspark;
void fixture_config_dspark(struct sl_config *config);

/* ---- weights -----------------------------------------------------------------------------------
 */

struct fixture_weight {
    char name[64];
    struct sl_tensor_info info;
    uint8_t *data; /* info.size_bytes, with nothing after it; malloc's */
    bool missing;  /* find() does not find it */
};

struct fixture_weights_read {
    const char *name; /* NULL: the slot is free */
    uint64_t offset_bytes, size_bytes;
    uint8_t *dst;
    bool asked; /* for the first time: it lands when it is asked for again */
};

struct fixture_weights {
    struct sl_weight_source source;
    struct sl_weight_reader reader; /* for loading: its reads land late, and at any alignment */
    struct fixture_weights_read reads[SL_WEIGHT_LOADING_SLOTS];
    struct fixture_weight *list; /* every dense tensor of the model */
    uint32_t count;
    uint64_t random;
    bool f32_scales;

    uint64_t fail_nth; /* the nth read from now on fails with -EIO; 0: none */
    uint64_t n_reads;
    uint64_t n_waits; /* calls for other work, of which there is some two times in three */
};

/* As in the release: FP8 linears, BF16 router, compressors and norms, and the draft that the config
 * tells. Where its experts are FP8, scales are float32, as the base models have them. Borrows
 * nothing. */
void fixture_weights_init(struct fixture_weights *weights, const struct sl_config *config,
                          uint64_t seed);
void fixture_weights_fini(struct fixture_weights *weights);

/* An sl_weights_load() of them. */
int fixture_weights_load(struct fixture_weights *weights, struct sl_weights *loaded,
                         const struct sl_config *config, const struct sl_draft *draft,
                         const struct sl_weight_residency *residency, struct sl_pool *pool,
                         struct sl_err *err);

/* The tensor; aborts if there is none. A test may change its info and its data. */
struct fixture_weight *fixture_weights_find(struct fixture_weights *weights, const char *name);

/* Value i, in row-major order, of an FP8 (scaled), BF16 or F32 tensor. */
float fixture_weights_value(struct fixture_weights *weights, const struct fixture_weight *weight,
                            uint64_t i);

/* Stores such a tensor as BF16 or F32 instead: the same values, where BF16 can hold them. The
 * scales of one that was FP8 are then missing. */
void fixture_weights_convert(struct fixture_weights *weights, struct fixture_weight *weight,
                             enum sl_dtype dtype);

/* ---- experts -----------------------------------------------------------------------------------
 */

struct fixture_experts {
    struct sl_expert_source source; /* pins_max may be changed, from 1 to pins_limit */
    uint32_t pins_limit;

    /* How it behaves; may be changed between steps. */
    bool shuffle;              /* gives experts in random order, else ascending */
    uint32_t delay_permille;   /* of calls to acquire() without `wait` say -EAGAIN */
    bool passes_take_turns;    /* what one prefetches may be forgotten, or demanded, by another */
    uint32_t partial_permille; /* of pins that were waited for lack w2 */
    uint64_t fail_nth;         /* the nth request from now on fails; 0: none. Requests are demands,
                                  and calls of acquire() that would pin, and of complete() */
    int fail_code;
    uint64_t stop_nth; /* likewise, sets *stop */
    atomic_bool *stop;
    uint64_t random;

    /* What it saw. */
    uint64_t n_requests;
    uint64_t n_demands;
    uint64_t n_pins;
    uint32_t n_held;      /* pins that are out */
    uint32_t n_held_max;  /* the most that ever were */
    uint16_t *demanded;   /* (layers, n_routed_experts) of the latest demand of each layer */
    uint32_t *n_demanded; /* (layers) */
    uint64_t n_predicted, n_predicted_right;
    uint64_t n_abandoned; /* demands */
    uint64_t n_forgotten; /* times that prefetches were taken back */

    /* Its own. */
    uint64_t seed;
    struct sl_expert_shape shape;
    uint32_t n_layers, n_experts, n_hash_layers;
    uint8_t *tiles; /* (layers, n_routed_experts) packed experts */
    uint64_t offset_bytes[SL_EXPERT_MATRICES + 1];
    uint8_t **slots; /* (pins_limit) filled when acquired, spoilt when released */
    bool *slot_held;
    uint16_t predicted[SL_PREDICTED_MAX]; /* of predicted_layer, until its demand */
    uint32_t n_in_prediction, predicted_layer;
    bool *certain;  /* (layers, n_routed_experts) and not demanded since */
    uint16_t *left; /* of the open demand, in the order of pinning */
    uint32_t n_left;
    uint32_t open_layer;
};

/* pins_max and pins_limit are `pins_limit`. */
void fixture_experts_init(struct fixture_experts *experts, const struct sl_config *config,
                          uint32_t pins_limit, uint64_t seed);
void fixture_experts_fini(struct fixture_experts *experts);

/* One matrix of an expert as a checkpoint has it: codes and scales of 2^-6 to 2^-4, E8M0 where the
 * experts are FP4, and F32 where they are FP8. `matrix` is one of enum sl_expert_matrix. */
struct sl_expert_rows fixture_experts_raw(const struct fixture_experts *experts,
                                          struct sl_expert_key key, int matrix, uint8_t *codes,
                                          uint8_t *scales);

#define FIXTURE_EXPERT_FAILURE "the fixture's expert source failed as told"

#endif
