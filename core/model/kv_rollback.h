/* Copies of the rows that a step overwrites in the KV caches of its sequences, so that the step can
 * be rolled back, as a whole or from some token of each sequence on.
 *
 * A step of n tokens overwrites n rows of each ring, or all rows of a shorter one. They are copied
 * layer by layer, each just before the step writes to it; to go back, they are copied to where they
 * were. Entries and keys need no copy (core/model/kv_cache.h). One thread makes all calls. */
#ifndef SL_MODEL_KV_ROLLBACK_H
#define SL_MODEL_KV_ROLLBACK_H

#include <stdint.h>

#include "core/base/arena.h"
#include "core/model/kv_cache.h"

struct sl_kv_rollback_span {
    struct sl_kv_cache *kv;
    uint32_t first, n_tokens; /* positions that the step writes */
    uint32_t n_kept;          /* of these, the first ones that stay; 0 until the owner says more */
};

struct sl_kv_rollback {
    uint32_t first_layer, n_layers;
    uint32_t n_saved; /* layers */
    uint32_t n_spans;
    struct sl_kv_rollback_span *spans; /* (spans_max) */
    uint8_t **rows; /* (n_layers) the saved rows of a layer: by span, ring and position */
};

/* Takes memory for steps of up to tokens_max tokens in up to spans_max spans over layers
 * first_layer to first_layer + n_layers, from an arena. */
struct sl_kv_rollback sl_kv_rollback_carve(struct sl_arena *arena, const struct sl_config *config,
                                           enum sl_numerics numerics, uint32_t first_layer,
                                           uint32_t n_layers, uint32_t tokens_max,
                                           uint32_t spans_max);

/* Nothing is saved any more. sl_kv_rollback_add() follows for each span of a new step. */
void sl_kv_rollback_clear(struct sl_kv_rollback *rollback);
void sl_kv_rollback_add(struct sl_kv_rollback *rollback, struct sl_kv_cache *kv, uint32_t first,
                        uint32_t n_tokens);

/* Copies the rows of the next layer that the step will overwrite. */
void sl_kv_rollback_save(struct sl_kv_rollback *rollback);

/* Puts back what the step overwrote for the tokens of each span that are not kept. With a smaller
 * n_kept the same step can be put back further afterwards. */
void sl_kv_rollback_restore(const struct sl_kv_rollback *rollback);

/* Puts a span back as a whole. */
void sl_kv_rollback_restore_span(const struct sl_kv_rollback *rollback, uint32_t span_index);

/* Forgets a span and what was saved of it. The spans behind it move up. */
void sl_kv_rollback_remove(struct sl_kv_rollback *rollback, uint32_t span_index);

/* A span of at most this many tokens can be put back from any token on; of a longer one a row may
 * have been overwritten twice, and it is kept or put back whole. */
uint32_t sl_kv_rollback_tokens_max(const struct sl_config *config);

#endif
