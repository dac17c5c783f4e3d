/* A table for each object of config.json. What is known to change the model is read elsewhere, or
 * must have one of the values given here; what is known not to change the forward pass is passed
 * over; anything else is unknown and listed, so that no key is ignored in silence. */
#include "core/model/config_keys.h"

#include "core/base/json_keys.h"

/* clang-format off */
static const struct sl_json_key model_keys[] = {
    /* Read by config.c and config_spelling.c. */
    {"bos_token_id", {0}}, {"compress_rate_csa", {0}}, {"compress_rate_hca", {0}},
    {"compress_rates", {0}}, {"compress_ratios", {0}}, {"compress_rope_parameters", {0}},
    {"compress_rope_theta", {0}}, {"dspark_block_size", {0}}, {"dspark_markov_rank", {0}},
    {"dspark_noise_token_id", {0}}, {"dspark_target_layer_ids", {0}}, {"eos_token_id", {0}}, {"hc_eps", {0}}, {"hc_mult", {0}},
    {"hc_sinkhorn_iters", {0}}, {"head_dim", {0}}, {"hidden_size", {0}}, {"index_head_dim", {0}},
    {"index_n_heads", {0}}, {"index_topk", {0}}, {"kv_lora_rank", {0}}, {"layer_types", {0}},
    {"max_position_embeddings", {0}}, {"mlp_layer_types", {0}}, {"model_type", {0}},
    {"moe_intermediate_size", {0}}, {"n_routed_experts", {0}}, {"num_attention_heads", {0}},
    {"num_experts_per_tok", {0}}, {"num_hash_layers", {0}}, {"num_hidden_layers", {0}},
    {"num_local_experts", {0}}, {"num_nextn_predict_layers", {0}}, {"o_groups", {0}},
    {"o_lora_rank", {0}}, {"partial_rotary_factor", {0}}, {"q_lora_rank", {0}},
    {"qk_nope_head_dim", {0}}, {"qk_rope_head_dim", {0}}, {"quantization_config", {0}},
    {"rms_norm_eps", {0}}, {"rope_parameters", {0}}, {"rope_scaling", {0}}, {"rope_theta", {0}},
    {"routed_scaling_factor", {0}}, {"sliding_window", {0}}, {"swiglu_limit", {0}},
    {"v_head_dim", {0}}, {"vocab_size", {0}},

    /* Another value would be another model. */
    {"attention_bias", {"false"}},
    {"expert_dtype", {"\"fp4\"", "\"fp8\"", "null"}},
    {"first_k_dense_replace", {"0", "null"}},
    {"hidden_act", {"\"silu\""}},
    {"mlp_bias", {"false"}},
    {"moe_layer_freq", {"1", "null"}},
    {"n_group", {"1", "null"}},
    {"n_shared_experts", {"1"}},
    {"norm_topk_prob", {"true"}},
    {"num_key_value_heads", {"1"}},
    {"rope_interleave", {"true", "null"}},
    {"scoring_func", {"\"sqrtsoftplus\""}},
    {"tie_word_embeddings", {"false"}},
    {"topk_group", {"1", "null"}},
    {"topk_method", {"\"noaux_tc\""}},

    /* For training or for other software. Widths and
     * types that tensors have themselves are taken from them. */
    {"_name_or_path", {0}}, {"architectures", {0}}, {"attention_dropout", {0}}, {"auto_map", {0}},
    {"aux_loss_alpha", {0}}, {"chunk_size_feed_forward", {0}}, {"dtype", {0}}, {"ep_size", {0}}, {"id2label", {0}}, {"initializer_range", {0}},
    {"intermediate_size", {0}}, {"is_encoder_decoder", {0}}, {"label2id", {0}},
    {"output_attentions", {0}}, {"output_hidden_states", {0}}, {"output_router_logits", {0}},
    {"pad_token_id", {0}}, {"pretraining_tp", {0}}, {"problem_type", {0}}, {"return_dict", {0}},
    {"router_aux_loss_coef", {0}}, {"router_jitter_noise", {0}}, {"seq_aux", {0}},
    {"torch_dtype", {0}}, {"transformers_version", {0}}, {"use_cache", {0}},
};

static const struct sl_json_key rope_keys[] = {
    {"beta_fast", {0}}, {"beta_slow", {0}}, {"factor", {0}},
    {"original_max_position_embeddings", {0}}, {"partial_rotary_factor", {0}}, {"rope_theta", {0}},
    {"rope_type", {"\"yarn\"", "\"default\""}},
    {"type", {"\"yarn\"", "\"default\""}},
    /* V4 scales neither cosines and sines nor scores by a factor of YaRN's. */
    {"attention_factor", {"1", "1.0"}},
    {"mscale", {"0", "0.0", "null"}},
    {"mscale_all_dim", {"0", "0.0", "null"}},
    {"truncate", {"true", "null"}},
};

/* The keys of rope_parameters when it has one object for each kind of layer. */
static const struct sl_json_key rope_kinds[] = {{"compress", {0}}, {"main", {0}}};

static const struct sl_json_key quantization_keys[] = {
    {"activation_scheme", {"\"dynamic\"", "null"}},
    {"fmt", {"\"e4m3\""}},
    {"modules_to_not_convert", {0}}, /* the tensors' own types tell */
    {"quant_method", {"\"fp8\""}},
    {"scale_fmt", {"\"ue8m0\"", "null"}},
    {"weight_block_size", {"[128, 128]"}},
};
/* clang-format on */

static int check_rope(struct sl_json_checker *in, const json_t *root)
{
    const json_t *parameters = json_object_get(root, "rope_parameters");
    const json_t *main = json_object_get(parameters, "main");
    const json_t *compress = json_object_get(parameters, "compress");
    int rc;

    rc = SL_JSON_CHECK_KEYS(in, "rope_scaling.", json_object_get(root, "rope_scaling"), rope_keys);
    if (rc == 0)
        rc = SL_JSON_CHECK_KEYS(in, "compress_rope_parameters.",
                                json_object_get(root, "compress_rope_parameters"), rope_keys);
    if (rc < 0)
        return rc;
    if (!main && !compress)
        return SL_JSON_CHECK_KEYS(in, "rope_parameters.", parameters, rope_keys);
    rc = SL_JSON_CHECK_KEYS(in, "rope_parameters.", parameters, rope_kinds);
    if (rc == 0)
        rc = SL_JSON_CHECK_KEYS(in, "rope_parameters.main.", main, rope_keys);
    return rc < 0 ? rc : SL_JSON_CHECK_KEYS(in, "rope_parameters.compress.", compress, rope_keys);
}

int sl_config_check_keys(const json_t *root, char *unknown, size_t unknown_bytes, const char *where,
                         struct sl_err *err)
{
    const json_t *quantization = json_object_get(root, "quantization_config");
    struct sl_json_checker in = sl_json_checker_start(unknown, unknown_bytes, where, err);
    int rc;

    if (quantization && !json_is_null(quantization) && !json_is_object(quantization))
        return sl_err_set(err, -SL_EFORMAT, "%s: \"quantization_config\" is not an object", where);
    if ((rc = SL_JSON_CHECK_KEYS(&in, "", root, model_keys)) < 0 ||
        (rc = check_rope(&in, root)) < 0 ||
        (rc = SL_JSON_CHECK_KEYS(&in, "quantization_config.", quantization, quantization_keys)) < 0)
        return rc;
    sl_json_checker_end(&in);
    return 0;
}
