/* The expert cache: core's expert source over the files of a checkpoint or a packed store.
 *
 * One slab of equal slots holds experts in the kernels' layout (core/kernels/r16.h). A missing
 * expert is read straight into its slot from a store; of a checkpoint, or compressed, it is read as
 * stored into a staging buffer, and repacked or unpacked by the compute threads when all of it has
 * landed. Then the caller may pin it. A policy (cache/policy.h) decides what makes room. The slots'
 * states are drawn in cache/slot_table.h, the timeline of a demand in cache/README.md.
 *
 * A predicted expert is loaded when all that is demanded has landed, so into time in which the
 * drives had nothing to do. When the next demand does not name it, it is given up: reads that have
 * not begun are cancelled, and its slot is quarantined until the others are back; an expert that
 * has landed stays until it is evicted. With `paced` such loads have slots of their own, which are
 * empty again then, and are begun only where they are found to pay. In a sweep the cache itself
 * prefetches the next layer's experts in the order in which they lie on disk.
 *
 * A demand asks for all its misses at once, as far as slots and staging buffers allow, and for the
 * others as loads land and pins are released. A failed load ends its demand only: other loads in
 * flight land as if prefetched, and the cache goes on. Where a drive did not answer in time it may
 * still write to the slot, which is quarantined until the drive answers. With too few slots left a
 * demand fails with -ETIMEDOUT.
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
#include "core/base/metrics.h"
#include "core/base/pool.h"
#include "core/base/progress_fn.h"
#include "core/model/expert_source.h"
#include "storage/experts/expert_map.h"
#include "storage/io/reader.h"

struct sl_expert_cache;

struct sl_expert_cache_options {
    uint64_t slab_bytes; /* for slots; what does not make a whole slot is not taken */
    uint32_t num_experts_per_tok;
    uint32_t slots_min;    /* fewer are refused, and fewer than num_experts_per_tok in any case */
    uint32_t inflight_max; /* loads at once, each with a staging buffer; at least 1 */
    enum sl_verify verify; /* of a packed store */
    bool prefetch_layers;  /* in sweeps: the next layer's experts */
    bool paced;            /* predicted experts are only read where that pays, to spare slots */
    const struct sl_policy_ops *policy; /* NULL: the default */
};

struct sl_expert_cache_counters {
    uint64_t n_requests; /* experts demanded = n_hits + n_prefetch_hits + those loaded for it */
    uint64_t n_hits;     /* of these, resident or still landing from an earlier demand or a
                          * preload */
    uint64_t n_prefetch_hits;   /* of these, brought by a prefetch, for the first time */
    uint64_t n_sweep_requests;  /* of n_requests, in sweeps (cache/slot_table.h), */
    uint64_t n_sweep_hits;      /* and of n_hits */
    uint64_t n_pinned;          /* of each layer: what stays through a sweep; a gauge */
    uint64_t n_predicted;       /* experts that predictions named */
    uint64_t n_predicted_right; /* of these, in the demand that followed */
    uint64_t n_predicted_loads; /* of these, loads that were begun, in n_loads too */
    uint64_t n_predicted_hits;  /* of these, demanded when they had landed, */
    uint64_t n_predicted_late;  /* and while they were in flight: both in n_prefetch_hits too */
    uint64_t predicted_wasted_bytes; /* asked of the drives for the rest of n_predicted_loads */
    uint64_t n_loads;                /* reads of an expert that were begun, prefetches included */
    uint64_t n_preloads;             /* of these, for a preload */
    uint64_t n_evictions;
    uint64_t n_retries; /* reads, and loads of corrupt data, that were tried again */
    uint64_t n_stalls;  /* these two as in struct sl_reader_counters */
    uint64_t longest_ns;
    uint64_t wanted_bytes; /* of experts, as stored */
    uint64_t read_bytes;   /* delivered by the drives for that */
    uint64_t wait_ns;      /* spent waiting for the drives in next() */
    uint64_t busy_ns;      /* in which reads were under way */
    uint64_t repack_ns;    /* spent on making tiles of a checkpoint's rows, */
    uint64_t unpack_ns;    /* and on compressed records */
    uint64_t verify_ns;    /* spent on checksums */
};

/* Loads in flight at once for one token: those of the three hash-routed layers that both released
 * models have, which are prefetched together. */
uint32_t sl_expert_cache_inflight_default(uint32_t num_experts_per_tok);

/* One expert in the kernels' layout. */
uint64_t sl_expert_cache_slot_bytes(const struct sl_expert_shape *shape);

/* Slots that one token's experts take, over all layers: with fewer, least-recently-used order
 * misses always. For slots_min. */
uint32_t sl_expert_cache_slots_min(const struct sl_expert_shape *shape,
                                   uint32_t num_experts_per_tok);

/* Slots that a step takes at once: those of one token's experts in a layer, and as many that are
 * being read meanwhile. With so few, experts are read again for each token. */
uint32_t sl_expert_cache_slots_least(const struct sl_expert_shape *shape,
                                     uint32_t num_experts_per_tok);

/* The staging buffers' bytes on top of the slab: none for a packed store, unless it is compressed.
 */
uint64_t sl_expert_cache_staging_bytes(const struct sl_expert_map *store, uint32_t inflight_max);

/* Returns them for a checkpoint of that shape that is not there, with scales as its kind has them.
 */
uint64_t sl_expert_cache_checkpoint_staging_bytes(const struct sl_expert_shape *shape,
                                                  uint32_t inflight_max);

/* At most so many bytes go to tables beside slab and staging buffers: with the whole model cached.
 */
uint64_t sl_expert_cache_table_bytes(const struct sl_expert_map *store, uint32_t inflight_max,
                                     const struct sl_policy_ops *policy, uint32_t n_threads);

/* Borrows store, reader (its counters are the cache's from now on) and pool until destroy; the
 * reader's files are the store's, in its order. hidden_size and moe_intermediate_size that R16
 * cannot hold are refused with -SL_EUNSUPPORTED, too small a slab with -SL_EBUDGET and the figures.
 * Fails also with -ENOMEM. */
int sl_expert_cache_create(struct sl_expert_cache **ret_cache, const struct sl_expert_map *store,
                           struct sl_reader *reader, struct sl_pool *pool,
                           const struct sl_expert_cache_options *options, struct sl_err *err);

/* Waits for reads in flight. NULL is allowed. Nothing is pinned. */
void sl_expert_cache_destroy(struct sl_expert_cache *cache);

/* Gives the cache that many bytes for slots from now on: at most what it was created with, less
 * than a whole slot is not taken. Shrinking evicts what is worth least and gives the memory back to
 * the system. Waits for loads in flight; -EBUSY while a demand is open, an expert is pinned or a
 * slot quarantined. Too little is refused with -SL_EBUDGET, as by create. */
int sl_expert_cache_resize(struct sl_expert_cache *cache, uint64_t slab_bytes, struct sl_err *err);

/* Evicts every expert, under the same conditions: -EBUSY. The policy keeps what it has learnt. */
int sl_expert_cache_empty(struct sl_expert_cache *cache, struct sl_err *err);

/* The resident experts that nobody uses, in order of worth, at most n_max: for
 * sl_expert_cache_preload() of a later run. Returns how many. */
uint32_t sl_expert_cache_hot_list(struct sl_expert_cache *cache, struct sl_expert_key *ret_keys,
                                  uint32_t n_max);

/* Loads the first of these experts, as many as there are empty slots, behind all demands, and waits
 * for them. No demand is open. Experts that the model does not have and reads that fail are passed
 * over. on_progress may be NULL, and so may `stop`, which ends it early when true. */
void sl_expert_cache_preload(struct sl_expert_cache *cache, const struct sl_expert_key *keys,
                             uint32_t n_keys, const atomic_bool *stop, sl_progress_fn *on_progress,
                             void *context);

/* Sees to the memory of one more slot, of the first n_slots that will be loaded into, which
 * otherwise comes with the first load: for when the threads have nothing else to do. Returns false
 * if all of these have theirs. */
bool sl_expert_cache_fill_ahead(struct sl_expert_cache *cache, uint32_t n_slots);

/* Lives as long as the cache. Beyond the contract of expert_source.h: an expert that is still
 * pinned from before is not demanded again, and pins_max counts the pins of an earlier demand too.
 */
struct sl_expert_source *sl_expert_cache_source(struct sl_expert_cache *cache);

/* Takes in what has landed and begins what can be begun, without waiting: for the forward pass to
 * call while it computes (sl_compute.background), so that the drives stay busy. `cache` is the
 * struct sl_expert_cache. */
void sl_expert_cache_background(void *cache);

/* False where the memory that reads go to could not be registered with io_uring, for which the
 * limit of locked memory may be too low: then reads cost more processor time. */
bool sl_expert_cache_is_attached(const struct sl_expert_cache *cache);

/* Slab and staging buffers: for figures. */
const struct sl_arena *sl_expert_cache_arena(const struct sl_expert_cache *cache);

uint32_t sl_expert_cache_slot_count(const struct sl_expert_cache *cache);

/* The names and meanings of struct sl_expert_cache_counters, for whoever shows them. */
extern const struct sl_metrics sl_expert_cache_metrics;

/* Sets a bit for each expert of the layer that is resident: expert e's is 0x80 >> e % 8 of byte
 * e / 8. ret_bits has room for n_experts. */
void sl_expert_cache_resident(struct sl_expert_cache *cache, uint16_t layer_index,
                              uint8_t *ret_bits);

struct sl_expert_cache_counters sl_expert_cache_counters(const struct sl_expert_cache *cache);

#endif
