/* Where each routed expert of a checkpoint lies on disk.
 *
 * The store answers "where", never "what": it reads nothing after it was opened. Opening checks
 * that all six tensors of every expert are there, with the dtype and shape that the model's sizes
 * ask for. Any thread may call sl_expert_store_find(). */
#ifndef SL_STORAGE_EXPERT_STORE_H
#define SL_STORAGE_EXPERT_STORE_H

#include <stdint.h>

#include "core/base/err.h"
#include "core/model/expert_source.h"

struct sl_checkpoint;
struct sl_expert_store;

/* What the store must know of the model; names as in config.json. */
struct sl_expert_shape {
    uint32_t num_hidden_layers;
    uint32_t n_mtp_layers; /* blocks mtp.0 .. whose experts are wanted too; 0 leaves them aside */
    uint32_t n_routed_experts;
    uint32_t hidden_size;
    uint32_t moe_intermediate_size;
};

/* A run of bytes in one file; offset and size are whatever the file has, aligned to nothing. */
struct sl_extent {
    uint64_t offset_bytes;
    uint64_t size_bytes;
    uint32_t file_index;
};

/* Indexed by enum sl_expert_matrix. Codes (rows, cols / 2) and scales (rows, cols / 32), row-major:
 * w1, w3 (moe_intermediate_size, hidden_size), w2 (hidden_size, moe_intermediate_size). */
struct sl_expert_record {
    struct sl_extent codes[SL_EXPERT_MATRICES];
    struct sl_extent scales[SL_EXPERT_MATRICES];
};

/* `checkpoint` must outlive the store. Fails with -ENOMEM or -SL_EFORMAT, naming the tensor. */
int sl_expert_store_open(struct sl_expert_store **ret_store, struct sl_checkpoint *checkpoint,
                         const struct sl_expert_shape *shape, struct sl_err *err);

/* NULL is allowed. */
void sl_expert_store_close(struct sl_expert_store *store);

const struct sl_expert_shape *sl_expert_store_shape(const struct sl_expert_store *store);

/* NULL if the model has no such expert. */
const struct sl_expert_record *sl_expert_store_find(const struct sl_expert_store *store,
                                                    struct sl_expert_key key);

/* The reads that bring one expert in past the page cache: its six extents, each widened to whole
 * blocks of SL_READ_ALIGN_BYTES, and those that touch or overlap merged, by file and offset. As the
 * release lays experts out these are two. The last may reach past the end of its file. Returns
 * their number, 1 to SL_EXPERT_READS_MAX. */
#define SL_READ_ALIGN_BYTES UINT64_C(4096)
#define SL_EXPERT_READS_MAX (2 * SL_EXPERT_MATRICES)
uint32_t sl_expert_record_reads(const struct sl_expert_record *record,
                                struct sl_extent ret_reads[SL_EXPERT_READS_MAX]);

uint32_t sl_expert_store_file_count(const struct sl_expert_store *store);
const char *sl_expert_store_file_path(const struct sl_expert_store *store, uint32_t file_index);

#endif
