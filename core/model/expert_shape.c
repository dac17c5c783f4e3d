#include "core/model/expert_shape.h"

#include <stdio.h>

#include "core/base/size.h"
#include "core/kernels/r16.h"
#include "core/model/config.h"

_Static_assert(SL_EXPERT_SIDE_STEP % SL_FP4_GROUP_COLS == 0 &&
                   SL_EXPERT_SIDE_STEP % SL_FP8_BLOCK == 0,
               "no group and no block of an expert is cut");

#define LAYERS_AND_EXPERTS_MAX 65536u /* what struct sl_expert_key can count */

/* More than any model has; sizes of records stay far from overflow. */
#define SIDE_MAX (SL_EXPERT_MATRIX_TILES_MAX * SL_R16_ROWS)

static const char *const matrix_names[SL_EXPERT_MATRICES] = {
    [SL_EXPERT_W1] = "w1",
    [SL_EXPERT_W2] = "w2",
    [SL_EXPERT_W3] = "w3",
};

const int sl_expert_matrix_order[SL_EXPERT_MATRICES] = {SL_EXPERT_W1, SL_EXPERT_W3, SL_EXPERT_W2};

struct sl_expert_shape sl_expert_shape_of(const struct sl_config *config, uint32_t n_mtp_layers)
{
    return (struct sl_expert_shape){
        .num_hidden_layers = config->num_hidden_layers,
        .n_mtp_layers = n_mtp_layers,
        .n_routed_experts = config->n_routed_experts,
        .hidden_size = config->hidden_size,
        .moe_intermediate_size = config->moe_intermediate_size,
        .expert_dtype = config->expert_dtype,
    };
}

bool sl_expert_shape_is_sound(const struct sl_expert_shape *shape)
{
    return shape->num_hidden_layers >= 1 && shape->num_hidden_layers < LAYERS_AND_EXPERTS_MAX &&
           shape->n_mtp_layers <= LAYERS_AND_EXPERTS_MAX - shape->num_hidden_layers &&
           shape->n_routed_experts >= 1 && shape->n_routed_experts <= LAYERS_AND_EXPERTS_MAX &&
           (uint64_t)sl_expert_layer_count(shape) * shape->n_routed_experts <= UINT32_MAX &&
           shape->hidden_size >= 1 && shape->hidden_size <= SIDE_MAX &&
           shape->hidden_size % SL_EXPERT_SIDE_STEP == 0 && shape->moe_intermediate_size >= 1 &&
           shape->moe_intermediate_size <= SIDE_MAX &&
           shape->moe_intermediate_size % SL_EXPERT_SIDE_STEP == 0;
}

uint64_t sl_expert_tile_bytes(const struct sl_expert_shape *shape, int matrix)
{
    const size_t cols = sl_expert_matrix_cols(shape, matrix);

    return shape->expert_dtype == SL_EXPERT_FP8 ? sl_r16_fp8_tile_bytes(cols)
                                                : sl_r16_fp4_tile_bytes(cols);
}

uint64_t sl_expert_tiles_bytes(const struct sl_expert_shape *shape, int matrix)
{
    return sl_r16_tile_count(sl_expert_matrix_rows(shape, matrix)) *
           sl_expert_tile_bytes(shape, matrix);
}

uint64_t sl_expert_matrix_bytes(const struct sl_expert_shape *shape, int matrix)
{
    const uint64_t blocks = (uint64_t)sl_expert_matrix_rows(shape, matrix) / SL_FP8_BLOCK *
                            (sl_expert_matrix_cols(shape, matrix) / SL_FP8_BLOCK);

    return sl_expert_tiles_bytes(shape, matrix) +
           (shape->expert_dtype == SL_EXPERT_FP8 ? blocks * sizeof(float) : 0);
}

uint64_t sl_expert_matrix_offset_bytes(const struct sl_expert_shape *shape, int matrix)
{
    uint64_t offset_bytes = 0;

    for (int i = 0; sl_expert_matrix_order[i] != matrix; i++)
        offset_bytes +=
            sl_round_up(sl_expert_matrix_bytes(shape, sl_expert_matrix_order[i]), SL_BLOCK_BYTES);
    return offset_bytes;
}

uint64_t sl_packed_expert_bytes(const struct sl_expert_shape *shape)
{
    const int last = sl_expert_matrix_order[SL_EXPERT_MATRICES - 1];

    return sl_expert_matrix_offset_bytes(shape, last) +
           sl_round_up(sl_expert_matrix_bytes(shape, last), SL_BLOCK_BYTES);
}

const char *sl_expert_matrix_name(int matrix)
{
    return matrix_names[matrix];
}

const char *sl_expert_format(const struct sl_expert_shape *shape, struct sl_expert_key key,
                             char buffer[SL_EXPERT_TEXT_BYTES])
{
    bool is_mtp = key.layer_index >= shape->num_hidden_layers;

    snprintf(buffer, SL_EXPERT_TEXT_BYTES, "%s %u, expert %u", is_mtp ? "MTP block" : "layer",
             key.layer_index - (is_mtp ? shape->num_hidden_layers : 0), key.expert_index);
    return buffer;
}
