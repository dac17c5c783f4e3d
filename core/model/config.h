/* The model's sizes, as config.json gives them and under its names.
 *
 * sl_config_parse() checks every value and every relation between values that the rest of core
 * relies on; whoever holds a struct sl_config need not check again. */
#ifndef SL_MODEL_CONFIG_H
#define SL_MODEL_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/err.h"
#include "core/model/expert_key.h"

#define SL_LAYERS_MAX 256u /* hidden layers and MTP blocks together */
#define SL_MODEL_TYPE "deepseek_v4"
#define SL_LINEAR_COLS_MAX 65536u /* of any linear */
#define SL_HC_MULT_MAX 8u         /* residual streams */
#define SL_EXPERTS_PER_TOKEN_MAX 16u

/* Attention is CSA (overlapping windows, an indexer that selects) at this ratio, HCA at any other
 * ratio above 0, a sliding window alone at 0. */
#define SL_CSA_RATIO 4u

struct sl_rope_scaling { /* YaRN; original_max_position_embeddings 0 when absent */
    double factor;
    double beta_fast;
    double beta_slow;
    uint32_t original_max_position_embeddings;
};

#define SL_DSPARK_TARGETS_MAX 8u
#define SL_DSPARK_BLOCK_MAX 16u

struct sl_dspark_config { /* of the draft of that name; 0 for what the file does not give */
    uint32_t block_size;  /* rows of a draft, the anchor's first */
    bool has_noise_token;
    uint32_t noise_token_id; /* of a draft's rows behind the anchor's */
    uint32_t markov_rank;
    uint32_t n_targets;
    uint32_t target_layer_ids[SL_DSPARK_TARGETS_MAX]; /* (n_targets) ascending */
};

struct sl_config {
    uint32_t vocab_size;
    uint32_t bos_token_id;
    uint32_t eos_token_id;
    uint32_t hidden_size;
    uint32_t num_hidden_layers;
    uint32_t num_hash_layers;
    uint32_t num_nextn_predict_layers; /* MTP blocks that config.json announces */
    uint32_t num_attention_heads;
    uint32_t head_dim;
    uint32_t qk_rope_head_dim;
    uint32_t q_lora_rank;
    uint32_t o_groups;
    uint32_t o_lora_rank;
    uint32_t index_n_heads; /* this and the next two: 0 when no layer is CSA */
    uint32_t index_head_dim;
    uint32_t index_topk;
    uint32_t sliding_window;
    uint32_t n_routed_experts;
    uint32_t num_experts_per_tok;
    uint32_t moe_intermediate_size;
    uint32_t hc_mult;
    uint32_t hc_sinkhorn_iters;
    uint32_t max_position_embeddings;
    float routed_scaling_factor;
    float swiglu_limit; /* 0: none */
    float hc_eps;
    float rms_norm_eps;
    double rope_theta;
    double compress_rope_theta;
    struct sl_rope_scaling rope_scaling;
    /* One per hidden layer, then one per MTP block (0 where the file gives none). */
    uint32_t compress_ratios[SL_LAYERS_MAX];
    struct sl_dspark_config dspark;

    enum sl_expert_dtype expert_dtype; /* the file's, or FP4; where there are tensors, theirs */
    bool names_expert_dtype;           /* the file does: */
    enum sl_expert_dtype named_expert_dtype;

    char model_type[64];    /* "" where the file gives none; see sl_config_check_model_type() */
    char unknown_keys[256]; /* keys that this engine does not know, as a list to print; "": none */
};

/* Parses the text of a config.json. `where` names it in errors. On failure (-SL_EFORMAT, -ENOMEM,
 * or -SL_EUNSUPPORTED for a model of another kind) the key is named and *ret_config untouched.
 * Every key is known to change the model and obeyed or refused, or known not to, or listed in
 * unknown_keys. */
int sl_config_parse(struct sl_config *ret_config, const char *text, size_t length,
                    const char *where, struct sl_err *err);

/* Reads folder/config.json. Also fails with -errno of open and read; where there is no such
 * file, `err` says what lies at `folder` instead. */
int sl_config_read(struct sl_config *ret_config, const char *folder, struct sl_err *err);

/* Refuses (-SL_EUNSUPPORTED) a config whose model_type is another, though all the rest makes sense:
 * for those who run or pack a model, unless they were asked not to. */
int sl_config_check_model_type(const struct sl_config *config, const char *folder,
                               struct sl_err *err);

/* Things about the file that a user should know, though it can be used: one line each, `note_index`
 * from 0 on, NULL past the last. Returns `buffer`. */
#define SL_CONFIG_NOTE_BYTES 384
const char *sl_config_note(const struct sl_config *config, uint32_t note_index,
                           char buffer[SL_CONFIG_NOTE_BYTES]);

/* Input columns of one group of the output projection. */
static inline uint32_t sl_config_group_cols(const struct sl_config *config)
{
    return config->num_attention_heads * config->head_dim / config->o_groups;
}

#endif
