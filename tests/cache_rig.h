/* What tests of the expert cache stand on: a small checkpoint, or a store packed of it, and a cache
 * over it whose every layer is real but for a fault wrapper around the I/O back end. Failures are
 * cmocka's. */
#ifndef SL_TESTS_CACHE_RIG_H
#define SL_TESTS_CACHE_RIG_H

#include <stdbool.h>
#include <stdint.h>

#include "cache/cache_internal.h"
#include "cache/expert_cache.h"
#include "storage/checkpoint/checkpoint.h"
#include "storage/store/store.h"
#include "tests/fixture_checkpoint.h"
#include "tests/io_fault.h"

#define CACHE_LAYERS 3u /* the last is an MTP block */
#define CACHE_EXPERTS 12u
#define CACHE_PER_TOKEN 3u
#define CACHE_FILES 2u

extern const struct sl_expert_shape cache_shape;

struct cache_fixture {
    char folder[FIXTURE_PATH_BYTES];
    struct sl_checkpoint *checkpoint; /* NULL of a store */
    struct sl_store *packed;          /* NULL of a checkpoint */
    struct sl_expert_map *store;
    uint8_t *expected;     /* (CACHE_LAYERS, CACHE_EXPERTS), as slots hold them */
    uint64_t expert_bytes; /* as stored: of a store, its record */
};

/* Tensors lie as in the release (per expert three scales together, and three codes), or scattered
 * over both files with gaps between them. */
void cache_fixture_open(struct cache_fixture *f, bool scattered);

/* The same experts in a store of their own. */
void cache_fixture_open_packed(struct cache_fixture *f, const struct cache_fixture *checkpoint,
                               bool compress);

/* The store again, whose catalog was changed. */
void cache_fixture_reopen(struct cache_fixture *f);
void cache_fixture_close(struct cache_fixture *f);

/* For a group of tests: an array of two, as in the release and scattered. */
int cache_fixtures_create(void **state);
int cache_fixtures_destroy(void **state);

struct cache_rig_options {
    bool threads; /* pread threads, else what the machine has */
    uint32_t reads_max, piece_bytes, n_slots, inflight_max;
    bool prefetch_layers, paced;
    enum sl_verify verify;              /* of a packed store */
    const struct sl_policy_ops *policy; /* NULL: the default */
    struct sl_io *io;                   /* simulated, instead of a back end; the rig's from now on.
                                           One thread repacks then, and nothing depends on time */
    uint64_t stall_ns;                  /* of the reader; 0: its default */
};

struct cache_rig {
    const struct cache_fixture *f;
    struct sl_io *io; /* the fault wrapper, with an empty plan; or the one that was given */
    struct sl_reader *reader;
    struct sl_pool *pool;
    struct sl_expert_cache *cache;
    struct sl_expert_source *source;
    uint64_t random; /* for what demands do between pins */
};

void cache_rig_init(struct cache_rig *rig, const struct cache_fixture *f,
                    const struct cache_rig_options *options);
void cache_rig_fini(struct cache_rig *rig);

/* Runs one demand to its end, checks every byte of each pin, and releases all. Returns acquire()'s
 * last word. It waits or not, and releases pins, at random; but with `order` it keeps them all
 * (n is at most pins_max), writes the experts there as they came, and releases last to first.
 */
int cache_rig_demand(struct cache_rig *rig, uint16_t layer, const uint16_t *experts, uint32_t n,
                     uint16_t *order, struct sl_err *err);

/* Prefetches n experts of a layer, as certain ones. Returns what the cache has counted then. */
struct sl_expert_cache_counters cache_rig_prefetch(struct cache_rig *rig, uint16_t layer,
                                                   const uint16_t *experts, uint32_t n);

/* What the cache has counted adds up, after so many requests. */
void cache_rig_check_counters(const struct cache_rig *rig, uint64_t n_requests);

/* Compares every byte of a pin that is there. */
void cache_rig_check_pin(const struct cache_rig *rig, const struct sl_expert_pin *pin);

/* complete() waits for the half that a pin lacks, if it does, and checks all of it; give_back()
 * releases it then. Pins of a demand that failed are released only. */
int cache_rig_complete(const struct cache_rig *rig, struct sl_expert_pin *pin, struct sl_err *err);
int cache_rig_give_back(const struct cache_rig *rig, struct sl_expert_pin *pin, struct sl_err *err);

uint64_t cache_rig_below(uint64_t *random, uint64_t limit);

/* n distinct experts, ascending. */
void cache_rig_choose(uint64_t *random, uint16_t *experts, uint32_t n);

#endif
