/* Which expert, and which of its matrices: what the model, the cache and storage name alike. */
#ifndef SL_MODEL_EXPERT_KEY_H
#define SL_MODEL_EXPERT_KEY_H

#include <stdint.h>

struct sl_expert_key {
    uint16_t layer_index; /* num_hidden_layers + i for MTP block i */
    uint16_t expert_index;
};

enum sl_expert_matrix { SL_EXPERT_W1, SL_EXPERT_W2, SL_EXPERT_W3, SL_EXPERT_MATRICES };

#endif
