/* Demands, guesses and loans of the expert cache, which owns the slab: private to it.
 *
 * The thread that drives the forward pass makes all calls. */
#ifndef SL_CACHE_EXPERT_LENDING_H
#define SL_CACHE_EXPERT_LENDING_H

#include <stdbool.h>
#include <stdint.h>

#include "cache/expert_load.h"
#include "cache/slab.h"
#include "cache/slot_table.h"
#include "core/base/arena.h"
#include "core/base/err.h"
#include "core/base/list.h"
#include "core/model/expert_source.h"

struct sl_demand {
    uint16_t *missing; /* (n_routed_experts) experts whose load is not begun, as they lie on disk */
    bool *is_missing;  /* (n_routed_experts) while `missing` is made */
    uint32_t n_missing, next_missing;
    uint32_t n_left;    /* to be lent */
    uint32_t n_awaited; /* loading */
    uint16_t layer_index;
    bool open;
};

/* The latest, until the next demand: at what the caller may ask for, or in a sweep, where most of a
 * layer's experts are demanded, at what it asks for next. */
struct sl_guess {
    uint16_t *experts; /* (n_routed_experts) of the layer */
    bool *named;       /* (n_routed_experts) is in `experts` */
    uint32_t n, next;  /* whose load is not begun */
    uint32_t n_loads;  /* begun, and neither demanded nor given up */
    uint16_t layer_index;
    bool sweep;
    bool visited; /* the policy takes the layer for the present one */
};

struct sl_lending {
    struct sl_expert_source source; /* first */
    struct sl_expert_shape shape;
    struct sl_slab slab;
    uint64_t slot_bytes;
    struct sl_slot_table table;
    struct sl_expert_loader loader;
    bool read_ahead;

    struct sl_link lendable; /* pinned and not yet lent */
    struct sl_link heads;    /* demanded, loading and not yet lent, but with w1 and w3 there */
    uint32_t n_lent;
    struct sl_demand demand;
    struct sl_guess guess;
    struct sl_err failure; /* of the open demand; code 0 if none */
    bool progressing;

    uint64_t n_guessed, n_guessed_right, n_guess_loads, n_guess_hits, n_guess_late;
    uint64_t guess_wasted_bytes;
};

/* Memory from an arena for the shape, which is set; what else is public here is the owner's to set.
 * sl_lending_start() follows, with the table started. */
void sl_lending_carve(struct sl_lending *lending, struct sl_arena *arena);
void sl_lending_start(struct sl_lending *lending);

enum sl_load_kind { SL_LOAD_DEMANDED, SL_LOAD_HINTED, SL_LOAD_GUESSED, SL_LOAD_AHEAD };

/* Returns false if no staging buffer or no slot is free. sl_reader_start() follows, sooner or
 * later.
 */
bool sl_lending_begin_load(struct sl_lending *lending, struct sl_expert_key key,
                           enum sl_load_kind kind);

/* Takes in what has landed and begins what can be begun; with `wait`, waits for one load at least,
 * if there is one. */
void sl_lending_progress(struct sl_lending *lending, bool wait);

/* The same without waiting: an sl_pool_between_fn, which keeps the drives busy while others
 * compute. */
void sl_lending_progress_between(void *lending);

/* Counts what of the guess has been demanded, and gives up the rest. */
void sl_lending_expire_guess(struct sl_lending *lending);

/* True if every slot, load and loan is accounted for. */
bool sl_lending_is_sound(const struct sl_lending *lending);

#endif
