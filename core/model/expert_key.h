/* Which expert, which of its matrices, and what their weights are: the model, the cache and storage
 * name these alike. */
#ifndef SL_MODEL_EXPERT_KEY_H
#define SL_MODEL_EXPERT_KEY_H

#include <stdint.h>

struct sl_expert_key {
    uint16_t layer_index; /* num_hidden_layers + i for MTP block i */
    uint16_t expert_index;
};

enum sl_expert_matrix { SL_EXPERT_W1, SL_EXPERT_W2, SL_EXPERT_W3, SL_EXPERT_MATRICES };

/* All routed experts of a model are of one dtype. */
enum sl_expert_dtype {
    SL_EXPERT_FP4, /* e2m1 with an E8M0 scale for each row's 32 columns */
    SL_EXPERT_FP8, /* e4m3 with a scale for each 128 x 128, float32 in memory */
};

/* "fp4" or "fp8", as config.json spells it. */
static inline const char *sl_expert_dtype_name(enum sl_expert_dtype dtype)
{
    return dtype == SL_EXPERT_FP8 ? "fp8" : "fp4";
}

#endif
