/* The inside of the expert cache, for its own files and for tests.
 *
 * Each file does one job on the one struct: expert_cache.c owns the memory and is the face,
 * demand.c has the open demand and the pins, prefetch.c all speculation, cache_progress.c begins
 * loads and takes in those that ended. Below them, slot_table.c knows which expert is in which
 * slot, expert_load.c and expert_prepare.c bring one expert in, slab.c has the slots' memory.
 *
 * The thread that drives the forward pass makes all calls. */
#ifndef SL_CACHE_CACHE_INTERNAL_H
#define SL_CACHE_CACHE_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "cache/expert_load.h"
#include "cache/prefetch_pace.h"
#include "cache/slab.h"
#include "cache/slot_table.h"
#include "core/base/arena.h"
#include "core/base/err.h"
#include "core/base/list.h"
#include "core/model/expert_source.h"

/* A visit of a layer whose time tells what predictions gain. It is open from the first question
 * whether its experts are to be predicted, while the layer before computes, to its demand's end. */
struct sl_visit {
    bool is_open;
    bool is_predicted; /* or is to be */
    uint16_t layer_index;
    double n_missing; /* this and the next as struct sl_pace_visit has them */
    uint32_t n_found;
    uint64_t since_ns;
};

/* The open demand, and all pins. */
struct sl_demand {
    uint16_t *missing; /* (n_routed_experts) experts whose load is not begun, in order on disk */
    bool *is_missing;  /* (n_routed_experts) while `missing` is made */
    uint32_t n_missing, next_missing;
    uint32_t n_left;     /* to be acquired */
    uint32_t n_awaited;  /* loads */
    uint64_t left_bytes; /* of the experts named, to be asked of the drives when it opened */
    uint16_t layer_index;
    bool open;
    bool is_waited_for;      /* the caller will not release a pin before it has another */
    struct sl_link claimed;  /* slots that are CLAIMED */
    struct sl_link up_ready; /* slots that are UP_READY */
    uint32_t n_pins;         /* acquired and not released, whichever demand they are of */
    bool is_timed;           /* its reads, which have not ended, tell how fast the drives are: */
    uint64_t began_ns, read_bytes;
    struct sl_visit visit; /* that it is of, where the pace rules */
    struct sl_err failure; /* of the open demand; code 0 if none */
};

/* The current prediction; it ends with the next demand. Either the caller's
 * (SL_PREFETCH_PREDICTED) or, in sweeps, the cache's own for the next layer. */
enum sl_foreseen { SL_UNFORESEEN, SL_FORESEEN, SL_FORESEEN_RIGHTLY };
struct sl_prediction {
    uint16_t *experts; /* (n_routed_experts) of the layer, those to be read first at the start */
    uint8_t *foreseen; /* (n_routed_experts) enum sl_foreseen: is in `experts`, and demanded */
    bool *was_missing; /* (n_routed_experts) those in `experts`, when they were predicted */
    uint32_t n, next;  /* whose load is not begun */
    uint32_t n_loads;  /* begun, and neither demanded nor given up */
    uint32_t n_begun;  /* loads, whatever became of them */
    uint16_t layer_index;
    bool whole_layer; /* of the kind "layer" */
    bool visited;     /* the policy takes the layer for the present one */

    /* For the pace, where it rules. */
    bool is_judged; /* the demand that was meant has come */
    bool is_idle;   /* the drives have had nothing else to do, since: */
    uint64_t idle_since_ns;
    uint64_t idle_ns; /* that was so, before the demand */
};

struct sl_prefetch_counters {
    uint64_t n_predicted, n_predicted_right, n_loads, n_hits, n_late;
    uint64_t wasted_bytes;
    uint64_t n_preloads;
};

struct sl_expert_cache {
    struct sl_expert_source source; /* first */
    struct sl_arena arena;
    struct sl_expert_shape shape;
    uint64_t slot_bytes;
    uint32_t num_experts_per_tok, n_slots_min;
    struct sl_slab slab;
    struct sl_slot_table table;
    struct sl_expert_loader loader;
    struct sl_demand demand;
    struct sl_prediction prediction;
    struct sl_prefetch_counters prefetches;
    bool prefetch_layers; /* the kind "layer" is allowed */
    bool is_paced;        /* predictions are only read where that pays: */
    struct sl_prefetch_pace pace;
    struct sl_visit visit; /* to come */
    bool staging_attached;
    uint32_t n_filled_ahead; /* slots whose memory was seen to before the first load */
};

static inline struct sl_expert_cache *sl_expert_cache_of(struct sl_expert_source *source)
{
    return (struct sl_expert_cache *)(void *)source;
}

/* ---- cache_progress.c --------------------------------------------------------------------------
 */

/* Returns false if no load, or no slot, is free. sl_reader_start() follows, sooner or later. */
bool sl_cache_begin_load(struct sl_expert_cache *cache, struct sl_expert_key key,
                         enum sl_load_kind kind);

/* Takes in what has landed and begins what can be begun; with `wait`, waits for one load at least,
 * if there is one. */
void sl_cache_progress(struct sl_expert_cache *cache, bool wait);

/* ---- demand.c ----------------------------------------------------------------------------------
 * carve() takes memory for the shape, which is set. The next six are the source's operations. */

void sl_demand_carve(struct sl_expert_cache *cache, struct sl_arena *arena);
void sl_demand_start(struct sl_expert_cache *cache);

int sl_demand_open(struct sl_expert_source *source, uint16_t layer_index, const uint16_t *experts,
                   uint32_t n_experts, struct sl_err *err);
int sl_demand_acquire(struct sl_expert_source *source, bool wait, struct sl_expert_pin *ret_pin,
                      struct sl_err *err);
int sl_demand_complete(struct sl_expert_source *source, const struct sl_expert_pin *pin,
                       struct sl_err *err);
void sl_demand_release(struct sl_expert_source *source, const struct sl_expert_pin *pin);
void sl_demand_abandon(struct sl_expert_source *source);

/* Begins the loads that are missing, as far as there is room. */
void sl_demand_begin_loads(struct sl_expert_cache *cache);

/* True while something that was demanded is missing or on its way. */
bool sl_demand_needs_drives(const struct sl_expert_cache *cache);

/* The slot's expert has landed, and the open demand waits for it. */
void sl_demand_claim(struct sl_expert_cache *cache, struct sl_slot *slot);

/* ---- prefetch.c --------------------------------------------------------------------------------
 * carve() takes memory for the shape, which is set; start() follows. The next three are the
 * source's operations. */

void sl_prefetch_carve(struct sl_expert_cache *cache, struct sl_arena *arena);
void sl_prefetch_start(struct sl_expert_cache *cache);

void sl_prefetch_ask(struct sl_expert_source *source, enum sl_prefetch_kind kind,
                     const struct sl_expert_key *keys, uint32_t n_keys);
void sl_prefetch_forget(struct sl_expert_source *source);
bool sl_prefetch_wants(struct sl_expert_source *source, uint16_t layer_index);

/* A demand for this layer opens: tells the policy, and begins no more of the prediction. */
void sl_prefetch_demand_opens(struct sl_expert_cache *cache, uint16_t layer_index);

/* The demand names this expert, and no read of it has been made urgent yet: counts whether the
 * prediction named it, too. */
void sl_prefetch_judge(struct sl_expert_cache *cache, struct sl_expert_key key);

/* The open demand's reads begin: they tell how fast the drives are. */
void sl_prefetch_time_reads(struct sl_expert_cache *cache);

/* The latest demand is over, and its last pin is back. */
void sl_prefetch_demand_ends(struct sl_expert_cache *cache);

/* Ends the prediction: counts what of it has been demanded, and gives up the rest. */
void sl_prefetch_expire(struct sl_expert_cache *cache);

/* Predicts the next layer's experts where the demand names most of this one's. */
void sl_prefetch_next_layer(struct sl_expert_cache *cache, uint16_t layer_index,
                            uint32_t n_experts);

/* Begins what is predicted, unless something that was demanded still needs the drives. */
void sl_prefetch_begin_loads(struct sl_expert_cache *cache);

/* ---- for tests ---------------------------------------------------------------------------------
 */

/* True if every slot, load and pin is accounted for. */
bool sl_expert_cache_is_sound(const struct sl_expert_cache *cache);

#endif
