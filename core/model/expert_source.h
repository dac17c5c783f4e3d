/* Where the MoE gets its experts from: declared here, implemented by cache, faked by tests.
 *
 * One thread (the one that drives the forward pass) makes all calls. For each layer of a step it
 * makes one demand, acquires the experts as they become ready, in any order, and releases each.
 * Steps may take turns between layers, so that nothing is demanded or pinned while a step stands
 * still:
 *
 *     prefetch(certain, ...)            before the step, optional
 *     demand(layer, experts)            submits all reads that are missing; does not block
 *     prefetch(predicted, ...)          while they load, optional
 *     acquire() ... release() ...       until acquire() returns 0
 *     forget()                          in place of what would follow, where the step fails
 *
 * A caller that would have to wait otherwise may get an expert of which only the up half (w1 and
 * w3) has landed; complete() waits for the down half (w2).
 *
 * A demand may name more experts than fit in memory at once; the source then loads further ones as
 * earlier ones are released, so the caller must not have more than `pins_max` at a time. */
#ifndef SL_MODEL_EXPERT_SOURCE_H
#define SL_MODEL_EXPERT_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"
#include "core/model/expert_key.h"

/* An expert that was acquired: its memory stays until release(). */
struct sl_expert_pin {
    struct sl_expert_key key;
    uint32_t slot_index;                  /* the source's own */
    const uint8_t *w[SL_EXPERT_MATRICES]; /* as core/model/expert_shape.h says; 64-byte aligned */
    bool partial;                         /* w2 has not landed yet: complete() before it is read */
};

enum sl_prefetch_kind {
    SL_PREFETCH_CERTAIN,   /* these experts will be demanded; reads start as far as memory allows
                            * without evicting what is in use */
    SL_PREFETCH_PREDICTED, /* these experts of one layer may be in the next demand, the likeliest
                            * first; at most SL_PREDICTED_MAX. They are read while nothing that was
                            * demanded is on its way, and given up when the next demand does not
                            * name them. Replaces the prediction before */
};

#define SL_PREDICTED_MAX 64u

struct sl_expert_source;

struct sl_expert_source_ops {
    /* Experts, distinct, that a later demand names or may name. Never fails; a read that fails
     * shows at the demand. */
    void (*prefetch)(struct sl_expert_source *source, enum sl_prefetch_kind kind,
                     const struct sl_expert_key *keys, uint32_t n_keys);

    /* Asks for n experts of a layer, distinct and ascending. No other demand may be open.
     * Fails with -errno; then no demand is open. */
    int (*demand)(struct sl_expert_source *source, uint16_t layer_index, const uint16_t *experts,
                  uint32_t n_experts, struct sl_err *err);

    /* Pins one expert of the open demand: resident ones first, then as they land. Returns 1 with
     * *ret_pin filled; 0 when all have been acquired, which ends the demand; -EAGAIN when none is
     * ready and `wait` is false. On any other error (a read that failed twice, data that is
     * corrupt) `err` names file, offset, layer and expert, the demand is over, and pins acquired
     * before must still be released. */
    int (*acquire)(struct sl_expert_source *source, bool wait, struct sl_expert_pin *ret_pin,
                   struct sl_err *err);

    void (*release)(struct sl_expert_source *source, const struct sl_expert_pin *pin);

    /* Waits for w2 of a partial pin; returns 0, at once if it is there. Fails as acquire() does.
     * Each partial pin is completed, then released, before the next demand; but not completed where
     * the demand failed or was abandoned. */
    int (*complete)(struct sl_expert_source *source, const struct sl_expert_pin *pin,
                    struct sl_err *err);

    /* Ends the open demand before all of it was acquired. Pins must still be released. */
    void (*abandon)(struct sl_expert_source *source);

    /* A step was stopped or failed, and what was prefetched for it may never be demanded: it does
     * not count any more, of whichever step it was. No demand is open. For another step that is
     * under way this costs reads at most. NULL: the source does not prefetch. Never fails. */
    void (*forget)(struct sl_expert_source *source);

    /* Returns whether a prediction of the layer's experts is worth computing now; asked before each
     * acquire() of the layer before that may wait, until it is. NULL: always. */
    bool (*wants_prediction)(struct sl_expert_source *source, uint16_t layer_index);
};

/* First member of every implementation. */
struct sl_expert_source {
    const struct sl_expert_source_ops *ops;
    uint32_t pins_max; /* experts pinned at once; at least num_experts_per_tok */
};

#endif
