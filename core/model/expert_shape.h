/* The sizes of a model's experts, and of one expert as the kernels want it: its three matrices as
 * R16 tiles (core/kernels/r16.h) in the order w1, w3, w2, since what is computed with first comes
 * first. FP4 tiles have their scales in them; FP8 tiles are followed by the matrix's scales,
 * float32 (rows / 128, cols / 128). Each matrix starts on a block and is padded to whole blocks
 * with zeros. A slot of the expert cache and a record of a store that is not compressed look like
 * that. */
#ifndef SL_MODEL_EXPERT_SHAPE_H
#define SL_MODEL_EXPERT_SHAPE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/model/expert_key.h"

struct sl_config;

/* Names as in config.json. */
struct sl_expert_shape {
    uint32_t num_hidden_layers;
    uint32_t n_mtp_layers; /* blocks mtp.0 .. whose experts are wanted too; 0 leaves them aside */
    uint32_t n_routed_experts;
    uint32_t hidden_size;
    uint32_t moe_intermediate_size;
    enum sl_expert_dtype expert_dtype;
};

/* Both sides of an expert's matrices are multiples of this, in either dtype: groups of columns, and
 * blocks that share a scale. */
#define SL_EXPERT_SIDE_STEP 128u

/* Tiles of one matrix of any model whose shape is sound. */
#define SL_EXPERT_MATRIX_TILES_MAX 4096u

/* The shape of a config's experts, with those of the first n_mtp_layers MTP blocks. Their dtype is
 * the one that the config names; where there are tensors, these decide. */
struct sl_expert_shape sl_expert_shape_of(const struct sl_config *config, uint32_t n_mtp_layers);

/* False for sizes that no model has and that the functions below could not count with. */
bool sl_expert_shape_is_sound(const struct sl_expert_shape *shape);

/* Layers and MTP blocks together. */
static inline uint32_t sl_expert_layer_count(const struct sl_expert_shape *shape)
{
    return shape->num_hidden_layers + shape->n_mtp_layers;
}

static inline uint32_t sl_expert_matrix_rows(const struct sl_expert_shape *shape, int matrix)
{
    return matrix == SL_EXPERT_W2 ? shape->hidden_size : shape->moe_intermediate_size;
}

static inline uint32_t sl_expert_matrix_cols(const struct sl_expert_shape *shape, int matrix)
{
    return matrix == SL_EXPERT_W2 ? shape->moe_intermediate_size : shape->hidden_size;
}

/* The matrices as they lie one after the other. */
extern const int sl_expert_matrix_order[SL_EXPERT_MATRICES];

/* Bytes of 16 rows, and of the tiles of all rows. */
uint64_t sl_expert_tile_bytes(const struct sl_expert_shape *shape, int matrix);
uint64_t sl_expert_tiles_bytes(const struct sl_expert_shape *shape, int matrix);

/* Bytes of a matrix, scales included, without padding, and where it starts in the expert. */
uint64_t sl_expert_matrix_bytes(const struct sl_expert_shape *shape, int matrix);
uint64_t sl_expert_matrix_offset_bytes(const struct sl_expert_shape *shape, int matrix);

/* Bytes of the whole expert, padding included. */
uint64_t sl_packed_expert_bytes(const struct sl_expert_shape *shape);

/* "w1" and so on. */
const char *sl_expert_matrix_name(int matrix);

/* "layer 3, expert 17" or "MTP block 0, expert 17". Returns `buffer`. */
#define SL_EXPERT_TEXT_BYTES 48
const char *sl_expert_format(const struct sl_expert_shape *shape, struct sl_expert_key key,
                             char buffer[SL_EXPERT_TEXT_BYTES]);

#endif
