/* Which expert is in which slot, and who makes room: the part of the expert cache that knows
 * nothing of bytes and reads. The replay of a trace (cache/cache_replay.h) runs the same code.
 *
 * A slot's state, and what makes it another. sl_slot_set() asserts that no other move is made.
 *
 *   EMPTY               a prefetch begins ........... LOADING_PREFETCH
 *                       a demand begins ............. LOADING_WANTED
 *                       a resize moves one here ..... READY
 *   LOADING_PREFETCH    landed ...................... READY
 *                       demanded .................... LOADING_WANTED, or UP_READY
 *   LOADING_WANTED      the up half landed .......... UP_READY
 *                       landed ...................... CLAIMED
 *                       the demand is abandoned ..... LOADING_PREFETCH
 *   UP_READY            landed ...................... CLAIMED
 *                       acquired .................... UP_PINNED
 *                       the demand is abandoned ..... LOADING_PREFETCH
 *   UP_PINNED           the down half landed ........ PINNED
 *                       the demand is abandoned ..... UP_ABANDONED
 *                       the load failed ............. PINNED_FAILED, PINNED_QUARANTINED
 *   UP_ABANDONED        the down half landed ........ PINNED
 *                       released .................... LOADING_PREFETCH
 *                       the load failed ............. PINNED_FAILED, PINNED_QUARANTINED
 *   READY               demanded .................... CLAIMED
 *                       evicted ..................... EMPTY
 *   CLAIMED             acquired .................... PINNED
 *                       the demand is abandoned ..... READY
 *   PINNED              released .................... READY
 *   PINNED_FAILED       released .................... EMPTY
 *   PINNED_QUARANTINED  the drive answered .......... PINNED_FAILED
 *                       released .................... QUARANTINED
 *   QUARANTINED         the drive answered .......... EMPTY
 *
 * A loading slot that nobody has pinned becomes EMPTY where its load fails, or QUARANTINED where a
 * drive may still write to it then, or where the load is cancelled.
 *
 * One thread makes all calls; nothing is allocated after carving. */
#ifndef SL_CACHE_SLOT_TABLE_H
#define SL_CACHE_SLOT_TABLE_H

#include <stdbool.h>
#include <stdint.h>

#include "cache/policy.h"
#include "core/base/arena.h"
#include "core/base/list.h"
#include "core/model/expert_source.h"

enum sl_slot_state {
    SL_SLOT_EMPTY,
    SL_SLOT_LOADING_PREFETCH,   /* no open demand waits for the load */
    SL_SLOT_LOADING_WANTED,     /* the open demand waits for it */
    SL_SLOT_UP_READY,           /* LOADING_WANTED, and its up half can be computed with */
    SL_SLOT_UP_PINNED,          /* acquired with the up half alone; the down half is loading */
    SL_SLOT_UP_ABANDONED,       /* UP_PINNED, but its demand was abandoned */
    SL_SLOT_READY,              /* resident and unused: the policy may choose it for eviction */
    SL_SLOT_CLAIMED,            /* resident, and reserved for the open demand */
    SL_SLOT_PINNED,             /* acquired */
    SL_SLOT_PINNED_FAILED,      /* acquired, but the load of the down half failed */
    SL_SLOT_PINNED_QUARANTINED, /* PINNED_FAILED, and a drive may still write to it */
    SL_SLOT_QUARANTINED,        /* a drive may still write to it; it holds no expert */
    SL_SLOT_STATES,
};

/* Who asks for a load. All but a demand's are prefetches (docs/GLOSSARY.md). */
enum sl_load_kind {
    SL_LOAD_DEMAND,
    SL_LOAD_CERTAIN,
    SL_LOAD_PREDICTED,
    SL_LOAD_LAYER,
    SL_LOAD_PRELOAD,
};

struct sl_slot {
    struct sl_link link; /* in a list that its state says: of empty, up-ready or claimed slots */
    struct sl_expert_key key; /* unless it is empty or quarantined */
    uint8_t state;            /* enum sl_slot_state; sl_slot_set() alone writes it */
    bool prefetched;          /* brought by a prefetch, and not claimed since */
    bool predicted;           /* cache/prefetch.c's own: brought by the present prediction */
};

struct sl_slot_counters {
    uint64_t n_requests;
    uint64_t n_hits;           /* of these, resident or landing, and claimed before */
    uint64_t n_prefetch_hits;  /* of these, brought by a prefetch and claimed for the first time */
    uint64_t n_sweep_requests; /* of n_requests, in sweeps, */
    uint64_t n_sweep_hits;     /* and of n_hits */
    uint64_t n_loads;
    uint64_t n_evictions;
};

struct sl_slot_table {
    uint32_t n_layers, n_experts; /* of each layer */
    uint32_t n_slots_max;
    uint32_t n_slots; /* in use: the first ones */
    uint32_t n_held;  /* slots that hold an expert, or are to */
    uint32_t n_spare; /* slots that stay empty for predicted experts, but not in sweeps */
    uint32_t n_prefetched, inflight_max;
    struct sl_slot *slots; /* (n_slots_max) */
    uint32_t *slot_of;     /* (n_layers, n_experts), SL_NO_SLOT if not there */
    uint32_t *n_resident;  /* (n_layers) experts that have a slot */

    /* Sweeps. */
    uint32_t sweep_experts_min; /* a demand of fewer experts is none */
    uint32_t n_pinned;          /* of each layer: what stays through a sweep */
    bool in_sweep;              /* the demand that opened last is one */
    uint16_t layer_index;       /* visited last */
    struct sl_link empty;
    struct sl_policy *policy;
    struct sl_slot_counters counters;
};

/* Prefetched experts hold at most this share of the slots until they are claimed. */
#define SL_PREFETCHED_SHARE 4u

/* A demand for as many experts of a layer as so many rows ask for that choose evenly, each for
 * itself, is a sweep's: the next layer's will be as large, and this layer's comes again when the
 * whole model has been through, which is more than most caches hold. Then whatever is evicted by
 * the time of its last use is evicted before it is used again. So sweeps pin: each layer keeps
 * n_pinned of its experts, those that the policy values most, and what is beyond them makes room,
 * of the layer just passed first. The rest of the slots is room for a layer's other experts, or a
 * quarter of all: what a sweep reads turns over in it. Every layer keeps as many, so that each
 * reads as much while as much is computed.
 *
 * Smaller demands evict what the policy chooses, be it pinned or not: pins give way to users, and
 * come back with a later sweep. */
#define SL_SWEEP_ROWS 16u
#define SL_TURNING_SHARE 4u

/* The least demand of a sweep, where each layer has n_experts of which a row takes n_per_row. */
uint32_t sl_sweep_experts_min(uint32_t n_experts, uint32_t n_per_row);

/* How many experts of each layer are pinned. */
uint32_t sl_sweep_pinned(uint32_t n_slots, uint32_t n_layers, uint32_t n_experts);

/* How many experts of the next layer are read ahead where n_demanded of this one's are demanded:
 * the next one will leave about as many unused, and only a small share of the reads may be in vain.
 */
uint32_t sl_sweep_read_ahead(uint32_t n_experts, uint32_t n_demanded);

/* True if a slot may go from one state to the other. */
bool sl_slot_may_move(enum sl_slot_state from, enum sl_slot_state to);

/* Changes a slot's state by a legal move; asserts that it is one. */
void sl_slot_set(struct sl_slot *slot, enum sl_slot_state state);

/* A load into the slot is under way. */
static inline bool sl_slot_is_loading(const struct sl_slot *slot)
{
    return slot->state >= SL_SLOT_LOADING_PREFETCH && slot->state <= SL_SLOT_UP_ABANDONED;
}

/* A load into the slot is under way, and the demand waits for it. */
static inline bool sl_slot_is_awaited(const struct sl_slot *slot)
{
    return slot->state >= SL_SLOT_LOADING_WANTED && slot->state <= SL_SLOT_UP_PINNED;
}

/* The caller has acquired the slot's expert and not released it. */
static inline bool sl_slot_is_acquired(const struct sl_slot *slot)
{
    return slot->state == SL_SLOT_UP_PINNED || slot->state == SL_SLOT_UP_ABANDONED ||
           (slot->state >= SL_SLOT_PINNED && slot->state <= SL_SLOT_PINNED_QUARANTINED);
}

/* Takes memory from an arena for the sizes set in a zeroed table (n_layers, n_experts, n_slots_max,
 * sweep_experts_min). With a mapped one, start() follows: the first n_slots slots are empty.
 * inflight_max is how many loads there may be at once. */
void sl_slot_table_carve(struct sl_slot_table *table, struct sl_arena *arena,
                         const struct sl_policy_ops *policy);
void sl_slot_table_start(struct sl_slot_table *table, uint32_t n_slots, uint32_t inflight_max);

/* Changes how many slots there are, while each is empty or ready. If too many experts are resident
 * the policy evicts some; `move` copies the others out of removed slots, from slot `from` to slot
 * `to`. */
typedef void sl_slot_move_fn(void *context, uint32_t from, uint32_t to);
void sl_slot_table_resize(struct sl_slot_table *table, uint32_t n_slots, sl_slot_move_fn *move,
                          void *context);

/* Evicts every resident expert, while each slot is empty or ready. */
void sl_slot_table_empty(struct sl_slot_table *table);

/* The experts that are ready, those that would be evicted last first; at most n_max of them.
 * Returns how many. */
uint32_t sl_slot_table_rank(struct sl_slot_table *table, struct sl_expert_key *ret_keys,
                            uint32_t n_max);

static inline uint32_t sl_slot_index(const struct sl_slot_table *table, const struct sl_slot *slot)
{
    return (uint32_t)(slot - table->slots);
}

/* NULL if the expert is in no slot. */
struct sl_slot *sl_slot_table_find(struct sl_slot_table *table, struct sl_expert_key key);

/* A demand for so many experts opens; visit() names its layer, unless it did before. */
void sl_slot_table_open(struct sl_slot_table *table, uint32_t n_experts);

/* A layer is the present one. */
void sl_slot_table_visit(struct sl_slot_table *table, uint16_t layer_index);

/* Asks for an expert of the layer that visit() named last. Returns its slot, claimed or
 * LOADING_PREFETCH; NULL if it is in none, and then it is to be loaded. */
struct sl_slot *sl_slot_table_claim(struct sl_slot_table *table, struct sl_expert_key key);

/* A slot to load this expert into, evicting another if need be; NULL if no slot is empty or ready.
 * Where slots are spared, predicted experts take these alone, others only if none can be evicted.
 * In a sweep, NULL too where what could be evicted is pinned, but for a demand that cannot wait:
 * nothing else of it is on its way, or there to be acquired. The caller tells the policy of
 * prefetches. */
struct sl_slot *sl_slot_table_take(struct sl_slot_table *table, struct sl_expert_key key,
                                   enum sl_load_kind kind, bool can_wait);

/* Evicts as many experts as it takes to have n_spare slots that hold none. */
void sl_slot_table_spare(struct sl_slot_table *table);

/* True while fewer than n_spare slots hold no expert. */
bool sl_slot_table_lacks_spare(const struct sl_slot_table *table);

/* True while a layer's prefetch may load more. */
static inline bool sl_slot_table_may_prefetch_layer(const struct sl_slot_table *table)
{
    return table->n_prefetched < table->n_slots / SL_PREFETCHED_SHARE;
}

/* True while other prefetches may load more. The number of loads at once bounds them too, so that
 * which experts are prefetched does not depend on how fast others land. */
static inline bool sl_slot_table_may_prefetch(const struct sl_slot_table *table)
{
    return sl_slot_table_may_prefetch_layer(table) && table->n_prefetched < table->inflight_max;
}

/* The slot is ready: its expert landed while no demand waited for it, or is not claimed or pinned
 * any more. */
void sl_slot_table_ready(struct sl_slot_table *table, struct sl_slot *slot);

/* An expert that a prefetch brought counts as any other from now on. */
void sl_slot_table_end_prefetch(struct sl_slot_table *table, struct sl_slot *slot);

/* The expert of a slot that is ready is of no use: the slot becomes empty. */
void sl_slot_table_discard(struct sl_slot_table *table, struct sl_slot *slot);

/* The load failed or was cancelled: forgets the expert. The slot becomes empty; or quarantined, and
 * stays out of use until let_go(). */
void sl_slot_table_drop(struct sl_slot_table *table, struct sl_slot *slot, bool quarantined);
void sl_slot_table_let_go(struct sl_slot_table *table, struct sl_slot *slot);

/* True if every slot is accounted for: for tests. */
bool sl_slot_table_is_sound(const struct sl_slot_table *table);

#endif
