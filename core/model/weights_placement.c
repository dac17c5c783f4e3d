/* Where the dense weights lie on machines of several memory nodes. */
#include <stddef.h>

#include "core/model/weights.h"

/* A layer's linears. The small ones of mHC belong to no thread. */
static const size_t layer_matrices[] = {
    offsetof(struct sl_layer_weights, wq_a),
    offsetof(struct sl_layer_weights, wq_b),
    offsetof(struct sl_layer_weights, wkv),
    offsetof(struct sl_layer_weights, wo_a),
    offsetof(struct sl_layer_weights, wo_b),
    offsetof(struct sl_layer_weights, compressor.wkv),
    offsetof(struct sl_layer_weights, compressor.wgate),
    offsetof(struct sl_layer_weights, index_wq_b),
    offsetof(struct sl_layer_weights, index_weights),
    offsetof(struct sl_layer_weights, index_compressor.wkv),
    offsetof(struct sl_layer_weights, index_compressor.wgate),
    offsetof(struct sl_layer_weights, gate),
    offsetof(struct sl_layer_weights, shared_w1),
    offsetof(struct sl_layer_weights, shared_w2),
    offsetof(struct sl_layer_weights, shared_w3),
};

static void look(const struct sl_matrix *matrix, const struct sl_pool *pool, uint64_t frame_bytes,
                 struct sl_placement *placement)
{
    if (matrix->tiles)
        sl_pool_look(pool, matrix->tiles, sl_r16_tile_count(matrix->rows),
                     sl_matrix_tile_bytes(matrix), frame_bytes, placement);
}

void sl_weights_look(const struct sl_weights *weights, uint32_t n_layers,
                     const struct sl_pool *pool, uint64_t frame_bytes,
                     struct sl_placement *placement)
{
    look(&weights->head.linear, pool, frame_bytes, placement);
    for (uint32_t i = 0; i < n_layers; i++)
        for (size_t m = 0; m < sizeof(layer_matrices) / sizeof(layer_matrices[0]); m++)
            look((const struct sl_matrix *)(const void *)((const uint8_t *)&weights->layers[i] +
                                                          layer_matrices[m]),
                 pool, frame_bytes, placement);
}
