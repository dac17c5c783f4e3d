/* Where each routed expert of a model lies on disk: six extents in a checkpoint, as the release has
 * them, or one packed record in a store, as the kernels want it (docs/FORMAT.md).
 *
 * It answers "where", never "what": it reads nothing after it was opened. Opening checks that all
 * experts are there, of the sizes that the model's config asks for. Any thread may ask. */
#ifndef SL_STORAGE_EXPERTS_EXPERT_STORE_H
#define SL_STORAGE_EXPERTS_EXPERT_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"
#include "core/model/expert_source.h"

struct sl_checkpoint;
struct sl_store;
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

/* A packed record holds the matrices as FP4 R16 tiles, w1, w3, w2, each from a block's start on and
 * padded to whole blocks with zeros: what a slot of the expert cache holds. A compressed one has to
 * be unpacked first (storage/store/codec.h), and is smaller. Its parts one after the other are the
 * record; each is of whole blocks. */
#define SL_EXPERT_PARTS_MAX 8u
struct sl_packed_expert {
    uint64_t checksums[SL_EXPERT_MATRICES]; /* of the tiles (storage/io/checksum.h) */
    bool compressed;
    uint64_t stored_checksum; /* of a compressed record: of its bytes as they are stored */
    uint32_t n_parts;
    struct sl_extent parts[SL_EXPERT_PARTS_MAX];
};

/* When a packed expert that was read is held against its checksums. */
enum sl_verify {
    SL_VERIFY_FIRST, /* the first time in a run */
    SL_VERIFY_ALWAYS,
    SL_VERIFY_NEVER,
};

/* ---- the sizes of a packed expert -------------------------------------------------------------
 */

/* False for sizes that no record can have: the asserts of the functions below. */
bool sl_expert_shape_is_sound(const struct sl_expert_shape *shape);

static inline uint32_t sl_expert_matrix_rows(const struct sl_expert_shape *shape, int matrix)
{
    return matrix == SL_EXPERT_W2 ? shape->hidden_size : shape->moe_intermediate_size;
}

static inline uint32_t sl_expert_matrix_cols(const struct sl_expert_shape *shape, int matrix)
{
    return matrix == SL_EXPERT_W2 ? shape->moe_intermediate_size : shape->hidden_size;
}

/* As they lie in a record: what is computed with first comes first. */
extern const int sl_expert_matrix_order[SL_EXPERT_MATRICES];

/* Of its tiles, and where they start in the record. */
uint64_t sl_expert_matrix_bytes(const struct sl_expert_shape *shape, int matrix);
uint64_t sl_expert_matrix_offset_bytes(const struct sl_expert_shape *shape, int matrix);

/* Of a matrix of any model whose shape is sound. */
#define SL_EXPERT_MATRIX_TILES_MAX 4096u

/* Of a record that is not compressed, and of a slot. */
uint64_t sl_packed_expert_bytes(const struct sl_expert_shape *shape);

/* Of the record as it is stored. */
uint64_t sl_packed_expert_stored_bytes(const struct sl_packed_expert *expert);

/* Where a matrix's tiles are, in a record that is not compressed: as many extents, of any size, as
 * parts hold some of it. Returns their number. */
uint32_t sl_packed_expert_matrix(const struct sl_packed_expert *expert,
                                 const struct sl_expert_shape *shape, int matrix,
                                 struct sl_extent ret_extents[SL_EXPERT_PARTS_MAX]);

/* "w1" and so on. */
const char *sl_expert_matrix_name(int matrix);

/* "layer 3, expert 17" or "MTP block 0, expert 17". Returns `buffer`. */
#define SL_EXPERT_TEXT_BYTES 48
const char *sl_expert_format(const struct sl_expert_shape *shape, struct sl_expert_key key,
                             char buffer[SL_EXPERT_TEXT_BYTES]);

/* ---- where they are ---------------------------------------------------------------------------
 */

/* Experts of a checkpoint, which must outlive this. Fails with -ENOMEM or -SL_EFORMAT, naming the
 * tensor. */
int sl_expert_store_open(struct sl_expert_store **ret_store, struct sl_checkpoint *checkpoint,
                         const struct sl_expert_shape *shape, struct sl_err *err);

/* Experts of a packed store, which must outlive this. Fails with -ENOMEM, or -SL_EFORMAT if the
 * store's sizes are not the model's; but it may have MTP blocks that are not wanted. */
int sl_expert_store_open_packed(struct sl_expert_store **ret_store, const struct sl_store *packed,
                                const struct sl_expert_shape *shape, struct sl_err *err);

/* NULL is allowed. */
void sl_expert_store_close(struct sl_expert_store *store);

const struct sl_expert_shape *sl_expert_store_shape(const struct sl_expert_store *store);

bool sl_expert_store_is_packed(const struct sl_expert_store *store);

/* Packed, and some experts may be compressed. */
bool sl_expert_store_is_compressed(const struct sl_expert_store *store);

/* NULL if the model has no such expert, or the experts are packed; and the other way round. */
const struct sl_expert_record *sl_expert_store_find(const struct sl_expert_store *store,
                                                    struct sl_expert_key key);
const struct sl_packed_expert *sl_expert_store_find_packed(const struct sl_expert_store *store,
                                                           struct sl_expert_key key);

/* The reads that bring an expert of a checkpoint in past the page cache: its six extents, each
 * widened to whole blocks of SL_READ_ALIGN_BYTES, and those that touch or overlap merged, by file
 * and offset. As the release lays experts out these are two. The last may reach past the end of its
 * file. Returns their number, 1 to SL_EXPERT_READS_MAX. A packed expert's parts are its reads, but
 * that w2 has reads of its own unless it is compressed. */
#define SL_READ_ALIGN_BYTES UINT64_C(4096)
#define SL_EXPERT_READS_MAX (SL_EXPERT_PARTS_MAX + 1)
uint32_t sl_expert_record_reads(const struct sl_expert_record *record,
                                struct sl_extent ret_reads[SL_EXPERT_READS_MAX]);

/* The layer's expert that is number `i` in the order in which they lie on disk. */
uint16_t sl_expert_store_nth(const struct sl_expert_store *store, uint32_t layer_index, uint32_t i);

/* The reads that bring an expert in, of either kind: a packed one's parts, or its record's reads as
 * far as the files go. Returns their number. */
uint32_t sl_expert_store_reads(const struct sl_expert_store *store, struct sl_expert_key key,
                               struct sl_extent ret_reads[SL_EXPERT_READS_MAX]);

uint32_t sl_expert_store_file_count(const struct sl_expert_store *store);
const char *sl_expert_store_file_path(const struct sl_expert_store *store, uint32_t file_index);

/* All of them, in order, for an sl_io_open_fn; NULL when out of memory. The caller frees the array,
 * and not what it names. */
const char **sl_expert_store_file_paths(const struct sl_expert_store *store);

#endif
