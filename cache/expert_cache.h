/* The expert cache: core's expert source over the files of a checkpoint or a packed store.
 *
 * One slab of equal slots holds experts in the kernels' layout (core/kernels/r16.h). What is
 * missing is read straight into its slot from a store; of a checkpoint, or compressed, it is read
 * as stored into a staging buffer, and repacked or unpacked by the compute threads when all of it
 * has landed. Then it is lent. A policy (cache/policy.h) decides what makes room.
 *
 *     empty ──load──► loading ──landed──► ready ◄──release── pinned
 *       ▲                │    └──landed, demanded──────────────►▲
 *       └──read failed───┘                └──demanded───────────┘        ready ──evicted──► loading
 *
 * A guess is loaded when all that is demanded has landed, so into time in which the drives had
 * nothing to do. When the next demand does not ask for it, it is given up: what has not been asked
 * of the drives is cancelled, and its slot is held until the rest is back; what has landed stays
 * until it makes room. Where a demand asks for most of its layer's experts, as those of a long
 * prompt do, the cache itself guesses at the next layer's and reads them in the order in which they
 * lie, while these are computed with and the next layer attends.
 *
 * A demand asks for all its misses at once, as far as slots and staging buffers allow, and for the
 * others as loads land and loans are released. A failed load ends its demand only: what else was in
 * flight lands as if hinted, and the cache goes on. Where a drive did not answer in time it may
 * still write to the slot: that one is held, out of use, until the drive has let go. With too few
 * slots left a demand fails with -ETIMEDOUT.
 *
 * Not thread-safe, and without locks: the thread that drives the forward pass makes all calls.
 * Reads progress meanwhile; each call takes in what has landed. Nothing is allocated after create.
 */
#ifndef SL_CACHE_EXPERT_CACHE_H
#define SL_CACHE_EXPERT_CACHE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "cache/policy.h"
#include "core/base/arena.h"
#include "core/base/err.h"
#include "core/base/pool.h"
#include "core/base/progress_fn.h"
#include "core/model/expert_source.h"
#include "storage/experts/expert_map.h"
#include "storage/io/reader.h"

struct sl_expert_cache;
struct sl_slot_table;

struct sl_expert_cache_options {
    uint64_t slab_bytes; /* for slots; what does not make a whole slot is not taken */
    uint32_t num_experts_per_tok;
    uint32_t slots_min;    /* fewer are refused, and fewer than num_experts_per_tok in any case */
    uint32_t inflight_max; /* loads at once, each with a staging buffer; at least 1 */
    enum sl_verify verify; /* of a packed store */
    bool read_ahead;       /* in steps that ask for most experts of each layer */
    const struct sl_policy_ops *policy; /* NULL: the default */
};

struct sl_expert_cache_counters {
    uint64_t n_requests;      /* experts demanded = n_hits + n_hinted_hits + those loaded for it */
    uint64_t n_hits;          /* of these, resident or still landing from an earlier demand or a
                               * preload */
    uint64_t n_hinted_hits;   /* of these, brought by a hint or a guess, for the first time */
    uint64_t n_guessed;       /* experts that guesses named */
    uint64_t n_guessed_right; /* of these, in the demand that followed */
    uint64_t n_guess_loads;   /* of these, loads that were begun, in n_loads too */
    uint64_t n_guess_hits;    /* of these, demanded when they had landed, */
    uint64_t n_guess_late;    /* and while they were in flight: both in n_hinted_hits too */
    uint64_t guess_wasted_bytes; /* asked of the drives for the rest of n_guess_loads */
    uint64_t n_loads;    /* reads of an expert that were begun, hints and preload included */
    uint64_t n_preloads; /* of these, for a preload */
    uint64_t n_evictions;
    uint64_t n_retries; /* reads, and loads of corrupt data, that were tried again */
    uint64_t n_stalls;  /* these two as in struct sl_reader_counters */
    uint64_t longest_ns;
    uint64_t wanted_bytes; /* of experts, as stored */
    uint64_t read_bytes;   /* delivered by the drives for that */
    uint64_t wait_ns;      /* spent waiting for the drives in next() */
    uint64_t repack_ns;    /* spent on making tiles of a checkpoint's rows, */
    uint64_t unpack_ns;    /* and on compressed records */
    uint64_t verify_ns;    /* spent on checksums */
};

/* Loads in flight at once for one token: those of the three hash-routed layers that both released
 * models have, which are hinted together. */
uint32_t sl_expert_cache_inflight_default(uint32_t num_experts_per_tok);

/* One expert in the kernels' layout. */
uint64_t sl_expert_cache_slot_bytes(const struct sl_expert_shape *shape);

/* Slots that one token's experts take, over all layers: with fewer, least-recently-used order
 * misses always. For slots_min. */
uint32_t sl_expert_cache_slots_min(const struct sl_expert_shape *shape,
                                   uint32_t num_experts_per_tok);

/* What the staging buffers take on top of the slab: nothing for a packed store, unless compressed.
 */
uint64_t sl_expert_cache_staging_bytes(const struct sl_expert_map *store, uint32_t inflight_max);

/* What the cache takes beside slab and staging buffers when it holds the whole model: at most. */
uint64_t sl_expert_cache_table_bytes(const struct sl_expert_map *store, uint32_t inflight_max,
                                     const struct sl_policy_ops *policy, uint32_t n_threads);

/* Borrows store, reader (its counters are the cache's from now on) and pool until destroy; the
 * reader's files are the store's, in its order. hidden_size and moe_intermediate_size that R16
 * cannot hold are refused with -SL_EUNSUPPORTED, too small a slab with -SL_EBUDGET and the figures.
 * Fails also with -ENOMEM. */
int sl_expert_cache_create(struct sl_expert_cache **ret_cache, const struct sl_expert_map *store,
                           struct sl_reader *reader, struct sl_pool *pool,
                           const struct sl_expert_cache_options *options, struct sl_err *err);

/* Waits for reads in flight. NULL is allowed. No loan is out. */
void sl_expert_cache_destroy(struct sl_expert_cache *cache);

/* Gives the cache that many bytes for slots from now on: at most what it was created with, less
 * than a whole slot is not taken. Shrinking evicts what is worth least and gives the memory back to
 * the system. Waits for loads in flight; not while a demand is open, a loan is out, or a drive that
 * did not answer holds a slot: -EBUSY. Too little is refused with -SL_EBUDGET, as by create. */
int sl_expert_cache_resize(struct sl_expert_cache *cache, uint64_t slab_bytes, struct sl_err *err);

/* Evicts all that is there, under the same conditions: -EBUSY. The policy keeps what it has learnt.
 */
int sl_expert_cache_empty(struct sl_expert_cache *cache, struct sl_err *err);

/* What is there and nobody uses, in order of worth, at most n_max: for sl_expert_cache_preload() of
 * a later run. Returns how many. */
uint32_t sl_expert_cache_hot_list(struct sl_expert_cache *cache, struct sl_expert_key *ret_keys,
                                  uint32_t n_max);

/* Loads the first of these experts, as many as there are empty slots, behind all demands, and waits
 * for them. No demand is open. Experts that the model does not have and reads that fail are passed
 * over. on_progress may be NULL, and so may `stop`, which ends it early when true. */
void sl_expert_cache_preload(struct sl_expert_cache *cache, const struct sl_expert_key *keys,
                             uint32_t n_keys, const atomic_bool *stop, sl_progress_fn *on_progress,
                             void *context);

/* For tests: which expert is where, and whether every slot, load and loan is accounted for. */
const struct sl_slot_table *sl_expert_cache_table(const struct sl_expert_cache *cache);
bool sl_expert_cache_is_sound(const struct sl_expert_cache *cache);

/* Lives as long as the cache. Beyond the contract of expert_source.h: an expert that is still lent
 * from before is not demanded again, and no more than hold_max loans are out, those of an earlier
 * demand included. */
struct sl_expert_source *sl_expert_cache_source(struct sl_expert_cache *cache);

/* False where the memory that reads go to could not be registered with io_uring, for which the
 * limit of locked memory may be too low: then reads cost more processor time. */
bool sl_expert_cache_is_attached(const struct sl_expert_cache *cache);

/* Slab and staging buffers: for figures. */
const struct sl_arena *sl_expert_cache_arena(const struct sl_expert_cache *cache);

uint32_t sl_expert_cache_slot_count(const struct sl_expert_cache *cache);

struct sl_expert_cache_counters sl_expert_cache_counters(const struct sl_expert_cache *cache);

#endif
