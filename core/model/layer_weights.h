/* The dense weights of the model's parts, as the forward pass uses them: pointers into memory that
 * someone else owns (core/model/weights.h). */
#ifndef SL_MODEL_LAYER_WEIGHTS_H
#define SL_MODEL_LAYER_WEIGHTS_H

#include <stdint.h>

#include "core/model/matrix.h"

struct sl_hc_weights {   /* one hyper-connection (mHC) */
    struct sl_matrix fn; /* F32 (rows, hc_mult * hidden_size) */
    const float *base;   /* (rows) */
    const float *scale;  /* (3), or (1) for the head */
};

struct sl_compressor_weights {
    struct sl_matrix wkv;   /* (width, hidden_size); width = dim, or 2 * dim for CSA */
    struct sl_matrix wgate; /* (width, hidden_size) */
    const float *ape;       /* (ratio, width) */
    const float *norm;      /* (dim) */
};

struct sl_layer_weights {
    uint32_t ratio;

    struct sl_hc_weights hc_attn;
    struct sl_hc_weights hc_ffn;
    const float *attn_norm; /* (hidden_size) */
    const float *ffn_norm;  /* (hidden_size) */

    struct sl_matrix wq_a, wq_b, wkv, wo_a, wo_b;
    const float *q_norm;    /* (q_lora_rank) */
    const float *kv_norm;   /* (head_dim) */
    const float *attn_sink; /* (num_attention_heads rounded up to 16); absent heads 0 */
    struct sl_compressor_weights compressor;       /* ratio > 0 */
    struct sl_matrix index_wq_b, index_weights;    /* CSA */
    struct sl_compressor_weights index_compressor; /* CSA */

    struct sl_matrix gate;   /* (n_routed_experts, hidden_size) */
    const float *gate_bias;  /* (n_routed_experts), or NULL in hash-routed layers */
    const uint16_t *tid2eid; /* (vocab_size, num_experts_per_tok), or NULL */
    struct sl_matrix shared_w1, shared_w2, shared_w3;
};

struct sl_head_weights {
    struct sl_matrix linear; /* (vocab_size, hidden_size) */
    const float *norm;       /* (hidden_size) */
    struct sl_hc_weights hc;
};

struct sl_mtp_weights {
    struct sl_matrix e_proj, h_proj;
    const float *enorm, *hnorm, *norm; /* (hidden_size) */
    struct sl_hc_weights hc_head;
};

struct sl_dspark_weights {
    struct sl_matrix main_proj;    /* (hidden_size, targets * hidden_size), of the first stage */
    const float *main_norm, *norm; /* (hidden_size), of the first stage and of the last */
    struct sl_hc_weights hc_head;
    struct sl_matrix markov_w1; /* not packed, as embed: (vocab_size, rank) */
    struct sl_matrix markov_w2; /* (vocab_size, rank) */
    const float *confidence;    /* (hidden_size + rank) */
};

#endif
