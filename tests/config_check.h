/* What core relies on when it is given a struct sl_config, written down apart from config.c. For
 * tests and the fuzzer. */
#ifndef SL_TESTS_CONFIG_CHECK_H
#define SL_TESTS_CONFIG_CHECK_H

#include <math.h>

#include "core/base/assert.h"
#include "core/model/config.h"

static inline void config_check_attention(const struct sl_config *c)
{
    bool csa = false;

    for (uint32_t i = 0; i < c->num_hidden_layers + c->num_nextn_predict_layers; i++) {
        sl_assert(c->compress_ratios[i] <= 65536);
        csa |= c->compress_ratios[i] == SL_CSA_RATIO;
    }
    sl_assert(c->qk_rope_head_dim >= 2 && c->qk_rope_head_dim % 2 == 0);
    sl_assert(c->head_dim > c->qk_rope_head_dim && c->head_dim <= 4096);
    sl_assert((c->head_dim - c->qk_rope_head_dim) % 64 == 0);
    sl_assert(c->num_attention_heads >= 1 && c->o_groups >= 1);
    sl_assert(sl_config_group_cols(c) * c->o_groups == c->num_attention_heads * c->head_dim);
    sl_assert(sl_config_group_cols(c) % 128 == 0 && sl_config_group_cols(c) <= 65536);
    sl_assert(c->o_lora_rank % 128 == 0 && c->o_groups * c->o_lora_rank <= 65536);
    sl_assert(c->sliding_window >= 1);
    if (!csa)
        return;
    sl_assert(c->index_n_heads >= 1 && c->index_topk >= 1);
    sl_assert(c->index_head_dim >= 32 && c->index_head_dim <= 1024);
    sl_assert((c->index_head_dim & (c->index_head_dim - 1)) == 0);
    sl_assert(c->index_head_dim >= c->qk_rope_head_dim);
}

static inline void config_check_rope(const struct sl_config *c)
{
    const struct sl_rope_scaling *scaling = &c->rope_scaling;

    sl_assert(c->rope_theta > 1 && isfinite(c->rope_theta));
    sl_assert(c->compress_rope_theta > 1 && isfinite(c->compress_rope_theta));
    if (scaling->original_max_position_embeddings == 0)
        return;
    sl_assert(scaling->factor >= 1 && isfinite(scaling->factor));
    sl_assert(scaling->beta_fast > 0 && isfinite(scaling->beta_fast));
    sl_assert(scaling->beta_slow > 0 && isfinite(scaling->beta_slow));
}

static inline void config_check_sound(const struct sl_config *c)
{
    sl_assert(c->num_hidden_layers >= 1);
    sl_assert(c->num_hidden_layers + c->num_nextn_predict_layers <= SL_LAYERS_MAX);
    sl_assert(c->num_hash_layers <= c->num_hidden_layers);
    sl_assert(c->bos_token_id < c->vocab_size && c->eos_token_id < c->vocab_size);
    sl_assert(c->hidden_size >= 128 && c->hidden_size % 128 == 0);
    sl_assert(c->q_lora_rank >= 128 && c->q_lora_rank % 128 == 0);
    sl_assert(c->moe_intermediate_size >= 128 && c->moe_intermediate_size % 128 == 0);
    sl_assert(c->moe_intermediate_size <= 65536 && c->q_lora_rank <= 65536);
    sl_assert(c->hc_mult >= 1 && c->hc_mult <= SL_HC_MULT_MAX);
    sl_assert(c->hc_mult * c->hidden_size <= 65536);
    sl_assert(c->hc_sinkhorn_iters >= 1);
    sl_assert(c->num_experts_per_tok >= 1 && c->num_experts_per_tok <= SL_EXPERTS_PER_TOKEN_MAX);
    sl_assert(c->num_experts_per_tok <= c->n_routed_experts);
    sl_assert(c->max_position_embeddings >= 1 && c->max_position_embeddings <= 1u << 24);
    sl_assert(isnormal(c->routed_scaling_factor) && c->routed_scaling_factor > 0);
    sl_assert(isnormal(c->hc_eps) && c->hc_eps > 0);
    sl_assert(isnormal(c->rms_norm_eps) && c->rms_norm_eps > 0);
    sl_assert(isfinite(c->swiglu_limit) && c->swiglu_limit >= 0);
    config_check_attention(c);
    config_check_rope(c);
}

#endif
