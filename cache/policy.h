/* Replacement policies: which expert makes room for another.
 *
 * A policy is told what is asked for, and ranks the slots that it is offered: those that hold an
 * expert which nobody is using. Whoever owns the slots (cache/slot_table.h) tells it, in the cache
 * and in the replay of a trace alike. What a policy chooses follows from the calls of visit(),
 * use() and expect() and from which slots are on offer; never from the order of offers, which
 * depends on how fast the drives were. Then a run can be replayed exactly.
 *
 * All memory comes from the arena; every call takes O(log slots) at most, choose() O(layers) beside
 * that. One thread makes all calls. */
#ifndef SL_CACHE_POLICY_H
#define SL_CACHE_POLICY_H

#include <stdint.h>

#include "cache/slot_heap.h"
#include "core/base/arena.h"
#include "core/base/err.h"
#include "core/model/expert_source.h"

struct sl_policy_shape {
    uint32_t n_layers;  /* visited in turn, MTP blocks included */
    uint32_t n_experts; /* of each layer */
    uint32_t n_slots;
};

struct sl_policy;

struct sl_policy_ops {
    const char *name;

    /* Working memory from an arena (measuring: returns NULL). Starts as if nothing had ever been
     * asked for. */
    struct sl_policy *(*carve)(struct sl_arena *arena, const struct sl_policy_shape *shape);

    /* A demand for experts of this layer begins; its use() calls follow. */
    void (*visit)(struct sl_policy *policy, uint16_t layer_index);

    /* This expert is asked for, be it in a slot or not. It is not on offer. */
    void (*use)(struct sl_policy *policy, struct sl_expert_key key);

    /* This expert, which is in no slot, will be asked for at the next visit of its layer. */
    void (*expect)(struct sl_policy *policy, struct sl_expert_key key);

    /* The slot, with this expert in it, may be chosen from now on; until withdrawn. */
    void (*offer)(struct sl_policy *policy, uint32_t slot_index, struct sl_expert_key key);
    void (*withdraw)(struct sl_policy *policy, uint32_t slot_index);

    /* The slot on offer whose expert is worth least, thereby withdrawn; SL_NO_SLOT if there is
     * none. */
    uint32_t (*choose)(struct sl_policy *policy);

    /* Does that among the slots that hold experts of this layer. */
    uint32_t (*choose_of)(struct sl_policy *policy, uint16_t layer_index);
};

/* First member of every policy. */
struct sl_policy {
    const struct sl_policy_ops *ops;
};

/* Evicts the expert that will be asked for last, by how often it was lately and by how far its
 * layer is: the default. */
extern const struct sl_policy_ops sl_policy_frequency;

/* Evicts the expert that nobody has asked for the longest. */
extern const struct sl_policy_ops sl_policy_lru;

#define SL_POLICY_NAMES "frequency, lru"

/* NULL names the default. Fails with -EINVAL, naming those that there are. */
int sl_policy_find(const struct sl_policy_ops **ret_ops, const char *name, struct sl_err *err);

#endif
