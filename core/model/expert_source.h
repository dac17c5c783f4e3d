/* Where the MoE gets its experts from: declared here, implemented by cache, faked by tests.
 *
 * One thread (the one that drives the forward pass) makes all calls. For each layer of a step it
 * makes one demand, takes the experts as they become ready, in any order, and releases each. Steps
 * may take turns between layers, so that nothing is demanded or held while a step stands still:
 *
 *     hint(hash-routed experts)          before the step, optional
 *     demand(layer, experts)             submits all reads that are missing; does not block
 *     guess(the next layer's experts)    while they load, optional
 *     next() ... release() ...           until next() returns 0
 *     forget()                           in place of what would follow, where the step fails
 *
 * An expert whose w1 and w3 have landed may be lent before w2 has, to somebody who would have to
 * wait otherwise; complete() waits for the rest.
 *
 * A demand may name more experts than fit in memory at once; the source then loads further ones as
 * earlier ones are released, so the caller must not hold more than `hold_max` at a time. */
#ifndef SL_MODEL_EXPERT_SOURCE_H
#define SL_MODEL_EXPERT_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"
#include "core/model/expert_key.h"

/* A loan: `w` is valid until release(). */
struct sl_expert_loan {
    struct sl_expert_key key;
    uint32_t slot_index;                  /* the source's own */
    const uint8_t *w[SL_EXPERT_MATRICES]; /* FP4 R16 tiles (core/kernels/r16.h), 64-byte aligned */
    bool partial;                         /* w2 has not landed yet: complete() before it is read */
};

/* Experts that one guess names at most. */
#define SL_GUESS_MAX 32u

struct sl_expert_source;

struct sl_expert_source_ops {
    /* These experts will be demanded soon, for certain. Starts reads as far as memory allows
     * without hurting what is in use. Never fails; a read that fails shows at the demand. */
    void (*hint)(struct sl_expert_source *source, const struct sl_expert_key *keys,
                 uint32_t n_keys);

    /* Asks for n experts of a layer, distinct and ascending. No other demand may be open.
     * Fails with -errno; then no demand is open. */
    int (*demand)(struct sl_expert_source *source, uint16_t layer_index, const uint16_t *experts,
                  uint32_t n_experts, struct sl_err *err);

    /* Lends one expert of the open demand: resident ones first, then as they land. Returns 1 with
     * *ret_loan filled; 0 when all have been lent, which ends the demand; -EAGAIN when none is
     * ready and `wait` is false. On any other error (a read that failed twice, data that is
     * corrupt) `err` names file, offset, layer and expert, the demand is over, and what was lent
     * before must still be released. */
    int (*next)(struct sl_expert_source *source, bool wait, struct sl_expert_loan *ret_loan,
                struct sl_err *err);

    void (*release)(struct sl_expert_source *source, const struct sl_expert_loan *loan);

    /* Waits for w2 of a partial loan; returns 0, at once if it is there. Fails as next() does. Each
     * partial loan is completed, then released, before the next demand; but not completed where the
     * demand failed or was abandoned. */
    int (*complete)(struct sl_expert_source *source, const struct sl_expert_loan *loan,
                    struct sl_err *err);

    /* Ends the open demand before all of it was lent. What was lent must still be released. */
    void (*abandon)(struct sl_expert_source *source);

    /* These experts of one layer may be in the next demand, distinct and the likeliest first. They
     * are read while nothing that was demanded is on its way, and given up when the next demand
     * does not ask for them. Takes the place of the guess before. NULL: guesses are of no use to
     * this source. Never fails. */
    void (*guess)(struct sl_expert_source *source, const struct sl_expert_key *keys,
                  uint32_t n_keys);

    /* A step was stopped or failed, and what it hinted and guessed may never be demanded: neither
     * counts any more, of whichever step it was. No demand is open. For another step that is under
     * way this costs reads at most. NULL: the source keeps no hints. Never fails. */
    void (*forget)(struct sl_expert_source *source);
};

/* First member of every implementation. */
struct sl_expert_source {
    const struct sl_expert_source_ops *ops;
    uint32_t hold_max; /* loans that may be out at once; at least num_experts_per_tok */
};

#endif
