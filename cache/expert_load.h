/* Loading experts: from disk to R16 tiles in a slot.
 *
 * Private to the expert cache, which decides what is loaded, and where to. A loader has a fixed
 * number of loads. From a packed store, a load reads the expert's record straight into the slot, in
 * reads of which none is of both halves, and reports when the up half (w1 and w3) is ready. A
 * compressed record, and the six extents of a checkpoint's expert (as aligned supersets, neighbours
 * merged), are read into the load's staging buffer. When the last read is back,
 * sl_expert_loader_reap() prepares the expert (cache/expert_prepare.h). One that is corrupt (a
 * checksum, a scale) is read again once.
 *
 * A load whose reads passed the reader's deadline ends as failed, but the drive may still write to
 * where it reads: its slot and its staging buffer are quarantined. It ends once more when the drive
 * has answered. One thread makes all calls. */
#ifndef SL_CACHE_EXPERT_LOAD_H
#define SL_CACHE_EXPERT_LOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "cache/expert_prepare.h"
#include "core/base/arena.h"
#include "core/base/err.h"
#include "core/base/pool.h"
#include "core/model/expert_source.h"
#include "storage/experts/expert_map.h"
#include "storage/io/reader.h"

struct sl_expert_load {
    struct sl_landing landing;
    uint32_t slot_index;
    struct sl_read reads[SL_EXPERT_READS_MAX];
    uint32_t n_reads, n_reads_left;
    uint32_t n_up_reads, n_up_left; /* the first of these, of w1 and w3 alone; 0 where w2 is not
                                       told apart */
    struct sl_read *failed;         /* the first read that failed */
    uint32_t quarantined_reads;     /* bit i: reads[i] failed, and the drive may still write */
    bool staging_held;              /* by the system, for reads */
    enum sl_read_class read_class;  /* of its reads */
    bool busy;
    bool quarantined; /* it has ended, but for quarantined_reads */
    bool reread;      /* it was corrupt once */
    bool cancelled;
};

struct sl_expert_loader {
    const struct sl_expert_map *store;
    struct sl_reader *reader;
    struct sl_pool *pool;
    struct sl_expert_load *loads; /* inflight_max */
    uint8_t *staging;             /* inflight_max * staging_bytes */
    uint64_t staging_bytes;
    bool holds_staging; /* as far as it was tried */
    struct sl_expert_preparer preparer;
    uint32_t inflight_max, n_busy;
    uint32_t n_quarantined; /* of the busy */
    uint32_t n_cancelled;   /* of the busy, and not quarantined */
    uint64_t wanted_bytes, n_rereads;
};

/* A load that has ended, or of which the up half is ready; one that was quarantined ends again as
 * the drive answers, with rc as it was. */
struct sl_expert_load_end {
    uint32_t slot_index;
    bool up_ready;     /* it has not ended, but its up half is ready; the rest does not count */
    bool quarantined;  /* the drive may still write to the slot; rc is negative */
    int rc;            /* 0, or negative */
    struct sl_err err; /* filled if rc is negative and not -ECANCELED: file, offset, layer, expert
                          and cause */
};

/* The staging buffer of one load: enough for any expert, wherever its extents lie; 0 for a store
 * in which none is compressed. */
uint64_t sl_expert_load_staging_bytes(const struct sl_expert_map *store);

/* Returns it for a checkpoint that is not there. */
uint64_t sl_expert_load_checkpoint_bytes(const struct sl_expert_shape *shape,
                                         enum sl_dtype scale_dtype);

/* Borrows all three; to measure, reader and pool may be NULL, and the caller sets
 * preparer.n_threads.
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
    return loader->n_busy == loader->n_quarantined;
}

/* Where nothing can be loaded because of quarantined loads: says so and why, with the line of one
 * of them, and returns -ETIMEDOUT. There is one. */
int sl_expert_loader_explain_quarantined(const struct sl_expert_loader *loader, struct sl_err *err);

/* Queues the reads of an expert of the model; the loader is not full. `tiles` is the slot's memory,
 * the loader's until the load ends. */
void sl_expert_loader_begin(struct sl_expert_loader *loader, struct sl_expert_key key,
                            uint32_t slot_index, uint8_t *tiles, enum sl_read_class read_class);

/* Somebody waits for the load into this slot, or nobody does any more. */
void sl_expert_loader_set_class(struct sl_expert_loader *loader, uint32_t slot_index,
                                enum sl_read_class read_class);

/* Returns how many bytes of the load into this slot have been asked of the drives. */
uint64_t sl_expert_loader_begun_bytes(struct sl_expert_loader *loader, uint32_t slot_index);

/* Gives up the load into this slot: what has not been asked of the drives never will. It ends as
 * soon as the rest is back, with -ECANCELED. Returns the bytes that were asked for. */
uint64_t sl_expert_loader_cancel(struct sl_expert_loader *loader, uint32_t slot_index);

/* True if the up half of the load into this slot is ready. */
bool sl_expert_loader_is_up_ready(struct sl_expert_loader *loader, uint32_t slot_index);

/* True with *ret_end filled for a load that has ended, or whose up half is ready; false if there is
 * none now, with `wait` only if none is in flight. Also starts what begin() queued. */
bool sl_expert_loader_reap(struct sl_expert_loader *loader, bool wait,
                           struct sl_expert_load_end *ret_end);

#endif
