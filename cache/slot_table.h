/* Which expert is in which slot, and who makes room: the part of the expert cache that knows
 * nothing of bytes, reads and loans. The replay of a trace (cache/cache_replay.h) runs the same
 * code.
 *
 *     empty ──take──► loading ──ready──► ready ──claim──► pinned
 *      ▲ ▲               │                 │  ▲             │
 *      │ └─────drop──────┤                 │  └────ready────┘        ready ──take──► loading
 *      └──let_go── held ◄┘
 *
 * A claimed slot that is loading stays so; its owner pins it when it has landed. A slot whose load
 * failed, but which the drive may still write to, is held: out of use until it is let go. One
 * thread makes all calls; nothing is allocated after carving. */
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
    SL_SLOT_LOADING,
    SL_SLOT_READY,
    SL_SLOT_PINNED,
    SL_SLOT_HELD,
};

struct sl_slot {
    struct sl_link link; /* empty: the table's; else its owner's */
    struct sl_expert_key key;
    uint8_t state;
    bool hinted; /* brought by a hint or guess, and not claimed since */

    /* The owner's alone. */
    bool demanded; /* loading: the open demand waits for it */
    bool guessed;  /* brought by the latest guess, and not demanded since */
    bool lent;     /* pinned; or loading, without w2 */
    bool failed;   /* pinned: its load failed while it was lent, */
    bool late;     /* and the drive may still write to it */
};

struct sl_slot_counters {
    uint64_t n_requests;
    uint64_t n_hits;        /* of these, resident or landing, and claimed before */
    uint64_t n_hinted_hits; /* of these, brought by a hint and claimed for the first time */
    uint64_t n_loads;
    uint64_t n_evictions;
};

struct sl_slot_table {
    uint32_t n_layers, n_experts; /* of each layer */
    uint32_t n_slots_max;
    uint32_t n_slots; /* in use: the first ones */
    uint32_t n_hinted, inflight_max;
    struct sl_slot *slots; /* (n_slots_max) */
    uint32_t *slot_of;     /* (n_layers, n_experts), SL_NO_SLOT if not there */
    struct sl_link empty;
    struct sl_policy *policy;
    struct sl_slot_counters counters;
};

/* Hints hold at most this share of the slots until they are claimed. */
#define SL_HINTED_SHARE 4u

/* Takes memory from an arena for the sizes set in a zeroed table (n_layers, n_experts,
 * n_slots_max). With a mapped one, start() follows: the first n_slots slots are empty. inflight_max
 * is how many loads there may be at once. */
void sl_slot_table_carve(struct sl_slot_table *table, struct sl_arena *arena,
                         const struct sl_policy_ops *policy);
void sl_slot_table_start(struct sl_slot_table *table, uint32_t n_slots, uint32_t inflight_max);

/* Changes how many slots there are, while none is loading, pinned or held. Of what is there too
 * many the policy chooses which to evict; `move` brings the rest out of the slots that go: it
 * copies what is in slot `from` to slot `to`. */
typedef void sl_slot_move_fn(void *context, uint32_t from, uint32_t to);
void sl_slot_table_resize(struct sl_slot_table *table, uint32_t n_slots, sl_slot_move_fn *move,
                          void *context);

/* Evicts all that is ready, while nothing is loading, pinned or held. */
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

/* Asks for an expert of the layer that sl_policy_ops.visit() named last. Returns its slot, pinned
 * or still loading; NULL if it is in none, and then it is to be loaded. */
struct sl_slot *sl_slot_table_claim(struct sl_slot_table *table, struct sl_expert_key key);

/* A slot to load this expert into, by evicting another if need be; NULL if all are loading or
 * pinned. What is hinted is for the caller to tell the policy of. */
struct sl_slot *sl_slot_table_take(struct sl_slot_table *table, struct sl_expert_key key,
                                   bool hinted);

static inline bool sl_slot_table_may_read_ahead(const struct sl_slot_table *table)
{
    return table->n_hinted < table->n_slots / SL_HINTED_SHARE;
}

/* Also bounded by the loads that there may be at once, so that which hints are taken does not
 * depend on how fast others land. */
static inline bool sl_slot_table_may_hint(const struct sl_slot_table *table)
{
    return sl_slot_table_may_read_ahead(table) && table->n_hinted < table->inflight_max;
}

/* What was loading or pinned may be evicted from now on. */
void sl_slot_table_ready(struct sl_slot_table *table, struct sl_slot *slot);

/* What a hint brought has not been claimed and is like any other from now on. */
void sl_slot_table_unhint(struct sl_slot_table *table, struct sl_slot *slot);

/* What was loading, or seemed to be there, is not; the slot is empty, or else held until let go. */
void sl_slot_table_drop(struct sl_slot_table *table, struct sl_slot *slot, bool held);
void sl_slot_table_let_go(struct sl_slot_table *table, struct sl_slot *slot);

/* True if every slot is accounted for: for tests. */
bool sl_slot_table_is_sound(const struct sl_slot_table *table);

#endif
