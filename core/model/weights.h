/* The dense weights: everything but the routed experts, loaded once and kept in RAM.
 *
 * Linears are packed into R16 tiles as they are read. Shapes, dtypes, scales and table entries are
 * checked here; later code trusts them. */
#ifndef SL_MODEL_WEIGHTS_H
#define SL_MODEL_WEIGHTS_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/arena.h"
#include "core/base/pool.h"
#include "core/model/config.h"
#include "core/model/draft.h"
#include "core/model/linear.h"
#include "core/model/weight_source.h"

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

struct sl_weights {
    struct sl_matrix embed; /* not packed: tiles points to (vocab_size, hidden_size), BF16 or F32 */
    struct sl_matrix head;
    const float *norm; /* (hidden_size) */
    struct sl_hc_weights hc_head;
    struct sl_layer_weights *layers; /* num_hidden_layers, then the blocks of the draft */
    enum sl_draft_kind draft;
    struct sl_mtp_weights mtp;       /* SL_DRAFT_MTP */
    struct sl_dspark_weights dspark; /* SL_DRAFT_DSPARK */

    struct sl_arena arena; /* owns all of the above */
};

/* Bytes that sl_weights_load() will map, from the tensors' headers alone; fails as it does for
 * missing or misshapen tensors. `draft` is the one that there is, or NULL to leave it. */
int sl_weights_measure(const struct sl_config *config, struct sl_weight_source *source,
                       const struct sl_draft *draft, uint64_t *ret_bytes, struct sl_err *err);

/* Bytes that sl_weights_load() takes beside that while it runs, at most. */
#define SL_WEIGHTS_LOADING_BYTES (UINT64_C(32) << 20)

/* Loads everything; `pool` packs, and each of its threads will find its part of every linear on its
 * own node. On success the caller calls sl_weights_fini(). Fails with
 * -ENOMEM, -errno of reads, -SL_EFORMAT (missing tensor, wrong dtype or shape) or -SL_ECORRUPT
 * (NaN, absurd scale, table entry out of range), naming file and tensor. */
int sl_weights_load(struct sl_weights *weights, const struct sl_config *config,
                    struct sl_weight_source *source, const struct sl_draft *draft,
                    struct sl_pool *pool, struct sl_err *err);

void sl_weights_fini(struct sl_weights *weights);

/* Looks whether the linears of n_layers layers, and the head, lie on the nodes of the threads that
 * multiply with them: see sl_placement_add(). */
void sl_weights_look(const struct sl_weights *weights, uint32_t n_layers,
                     const struct sl_pool *pool, uint64_t frame_bytes,
                     struct sl_placement *placement);

#endif
