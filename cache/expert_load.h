/* Loading experts: from disk to R16 tiles in a slot.
 *
 * Private to the expert cache, which decides what is loaded, and where to. A loader has a fixed
 * number of loads. Of a packed store, a load reads the expert's record straight into the slot, and
 * holds it against its checksums, w1 and w3 as soon as they have landed and w2 after them. A
 * compressed record is read into a
 * staging buffer and unpacked over the thread pool first. Of a checkpoint, a load owns a staging
 * buffer, into which its reads go as aligned supersets of the six extents, neighbours merged; when
 * the last has landed, sl_expert_loader_reap() repacks over the thread pool. An expert that is
 * corrupt (a checksum, a scale) is read again once. A load whose reads passed the reader's deadline
 * ends as failed, but the device may still write to where it reads: it ends once more when that is
 * over, and until then its slot is not to be used, nor is its staging buffer. One thread makes all
 * calls. */
#ifndef SL_CACHE_EXPERT_LOAD_H
#define SL_CACHE_EXPERT_LOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/arena.h"
#include "core/base/err.h"
#include "core/base/pool.h"
#include "core/model/expert_source.h"
#include "storage/store/codec.h"
#include "storage/experts/expert_map.h"
#include "storage/io/reader.h"

struct sl_expert_load {
    struct sl_expert_key key;
    uint32_t slot_index;
    uint8_t *tiles; /* of the slot */
    struct sl_read reads[SL_EXPERT_READS_MAX];
    uint32_t n_reads, n_reads_left;
    uint32_t n_head_reads, n_head_left; /* of these, of w1 and w3 alone, which are the first; 0
                                           where w2 is not told apart */
    bool head_landed;                   /* w1 and w3 are there, as the catalog says */
    struct sl_read *failed;             /* the first read that failed */
    const uint8_t *codes[SL_EXPERT_MATRICES], *scales[SL_EXPERT_MATRICES]; /* in staging, if any */
    uint32_t late_reads; /* bit i: reads[i] was handed back late */
    bool staging_held;   /* by the system, for reads */
    bool urgent;         /* somebody waits for it */
    bool busy;
    bool held;   /* it has ended, but the device has not let go of what it reads into */
    bool reread; /* it was corrupt once */
    bool cancelled;
};

struct sl_expert_loader {
    const struct sl_expert_map *store;
    struct sl_reader *reader;
    struct sl_pool *pool;
    struct sl_expert_load *loads; /* inflight_max */
    uint8_t *staging;             /* inflight_max * staging_bytes */
    uint64_t staging_bytes;
    bool holds_staging;                  /* as far as it was tried */
    struct sl_record_decoder **decoders; /* one for each thread, where records are compressed */
    struct sl_record_index index;        /* of the record that is being unpacked */
    bool *verified;                      /* (layers, experts); of a packed store */
    enum sl_verify verify;
    uint32_t n_threads; /* of the pool */
    uint32_t inflight_max, n_busy;
    uint32_t n_held;      /* of the busy */
    uint32_t n_cancelled; /* likewise, and not held */
    uint64_t wanted_bytes, repack_ns, unpack_ns, verify_ns, n_rereads;
};

/* A load that has ended, or come so far that w1 and w3 can be computed with; one that was held ends
 * again as the device lets go, with rc as it was. */
struct sl_expert_load_end {
    uint32_t slot_index;
    bool head;         /* it has not ended, but its w1 and w3 are there; the rest does not count */
    bool held;         /* the device may still write to the slot; rc is negative */
    int rc;            /* 0, or negative */
    struct sl_err err; /* filled if rc is negative and not -ECANCELED: file, offset, layer, expert
                          and cause */
};

/* Of one load: enough for any expert, wherever its extents lie; 0 for a store in which none is
 * compressed. */
uint64_t sl_expert_load_staging_bytes(const struct sl_expert_map *store);

/* Borrows all three; to measure, reader and pool may be NULL, and n_threads is set by the caller.
 * sl_expert_loader_carve() takes what memory it needs from a zeroed arena. */
void sl_expert_loader_init(struct sl_expert_loader *loader, const struct sl_expert_map *store,
                           struct sl_reader *reader, struct sl_pool *pool, uint32_t inflight_max,
                           enum sl_verify verify);
void sl_expert_loader_carve(struct sl_expert_loader *loader, struct sl_arena *arena);

/* Where there are staging buffers, names them to the reader as what it reads to. Each is held when
 * it is first used, and the first one now: returns 0 if that can be had. See sl_reader_attach(). */
int sl_expert_loader_attach(struct sl_expert_loader *loader);

static inline bool sl_expert_loader_is_full(const struct sl_expert_loader *loader)
{
    return loader->n_busy == loader->inflight_max;
}

static inline bool sl_expert_loader_is_idle(const struct sl_expert_loader *loader)
{
    return loader->n_busy == loader->n_held;
}

/* Where nothing can be loaded because of loads that are held: the line of one of them, and
 * -ETIMEDOUT. There is one. */
int sl_expert_loader_explain_held(const struct sl_expert_loader *loader, struct sl_err *err);

/* Queues the reads of an expert of the model; the loader is not full. `tiles` is the slot's memory,
 * the loader's until the load ends. */
void sl_expert_loader_begin(struct sl_expert_loader *loader, struct sl_expert_key key,
                            uint32_t slot_index, uint8_t *tiles, bool urgent);

/* Somebody waits for the load into this slot, or nobody does any more. */
void sl_expert_loader_set_urgent(struct sl_expert_loader *loader, uint32_t slot_index, bool urgent);

/* Gives up the load into this slot: what has not been asked of the drives never will. It ends as
 * soon as the rest is back, with -ECANCELED. Returns the bytes that were asked for. */
uint64_t sl_expert_loader_cancel(struct sl_expert_loader *loader, uint32_t slot_index);

/* True if w1 and w3 of the load into this slot have landed. */
bool sl_expert_loader_has_head(struct sl_expert_loader *loader, uint32_t slot_index);

/* True with *ret_end filled for a load that has ended, or whose head has landed; false if there is
 * none now, with `wait` only if none is in flight. Also starts what begin() queued. */
bool sl_expert_loader_reap(struct sl_expert_loader *loader, bool wait,
                           struct sl_expert_load_end *ret_end);

#endif
