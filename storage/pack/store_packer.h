/* A pack under way: its state, shared by the files that pack and by nobody else.
 *
 * storage/pack/store_source.c knows the source, storage/pack/store_begin.c finds out how far the
 * last run came and makes what has a name, storage/pack/store_write.c fills the data files and
 * decides what is committed when, and storage/pack/store_finish.c sees that it is where it should
 * be. All but the workers' buffers belongs to one thread. */
#ifndef SL_STORAGE_PACK_STORE_PACKER_H
#define SL_STORAGE_PACK_STORE_PACKER_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"
#include "storage/store/catalog.h"
#include "storage/store/store_format.h"
#include "storage/store/store_layout.h"
#include "storage/pack/store_records.h"
#include "storage/pack/pack_options.h"

/* Memory of one thread. */
struct sl_pack_worker {
    struct sl_record_maker maker;
    int rc;
    struct sl_err err;
};

struct sl_packer {
    const struct sl_pack_options *o;
    struct sl_weight_source *weights; /* the source's */
    const char *source_paths[SL_STORE_FILES_MAX];
    int source_fds[SL_STORE_FILES_MAX]; /* if the source is a store; else -1 */
    struct sl_store_model model;
    struct sl_store_state state; /* as the catalog has it, or the open transaction will */
    struct sl_store_layout layout;
    int handles[SL_STORE_FILES_MAX]; /* -1 until opened */
    uint64_t *tensor_offsets;        /* (n_tensors) */
    uint64_t dense_bytes;            /* where the dense tensors end */
    uint64_t record_bytes;
    struct sl_catalog *catalog; /* with a transaction, between sl_packer_begin() and the end */
    int lock_fd;
    struct sl_pack_worker *workers;
    uint32_t n_workers;
    uint8_t *buffer;             /* SL_TENSOR_BUFFER_BYTES */
    uint64_t batch_bytes;        /* written since the last commit */
    struct sl_shard_use *shards; /* of the source, by file; NULL unless they are to be freed */
    struct sl_pack_result result;
    uint64_t done_bytes; /* packed by this run, as if nothing were compressed */
    uint64_t left_bytes; /* bytes that were left to pack when this run began */
};

/* Writes the state to the open transaction. */
int sl_packer_put_state(struct sl_packer *p, struct sl_err *err);

/* Both report an error: they fill `err` and return its code. */
int sl_packer_stopped(const struct sl_packer *p, struct sl_err *err);
int sl_packer_no_memory(const struct sl_packer *p, struct sl_err *err);

#endif
