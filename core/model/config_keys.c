/* A table for each object of config.json. What is known to change the model is read elsewhere, or
 * must have one of the values given here; what is known not to change the forward pass is passed
 * over; anything else is unknown and listed, so that no key is ignored in silence. */
#include "core/model/config_keys.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/size.h"

#define VALUES_MAX 3
#define NAME_SHOWN_MAX 60

struct known_key {
    const char *name;
    /* The values that this engine runs, as JSON; none where any value may stand here: because
     * it is read elsewhere, or because the forward pass does not depend on it. */
    const char *values[VALUES_MAX];
};

/* clang-format off */
static const struct known_key model_keys[] = {
    /* Read by config.c and config_spelling.c. */
    {"bos_token_id", {0}}, {"compress_rate_csa", {0}}, {"compress_rate_hca", {0}},
    {"compress_rates", {0}}, {"compress_ratios", {0}}, {"compress_rope_parameters", {0}},
    {"compress_rope_theta", {0}}, {"eos_token_id", {0}}, {"hc_eps", {0}}, {"hc_mult", {0}},
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
    {"expert_dtype", {"\"fp4\""}},
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

    /* For training, for other software, or for drafts, which do not touch the answer. Widths and
     * types that tensors have themselves are taken from them. */
    {"_name_or_path", {0}}, {"architectures", {0}}, {"attention_dropout", {0}}, {"auto_map", {0}},
    {"aux_loss_alpha", {0}}, {"chunk_size_feed_forward", {0}}, {"dspark_block_size", {0}},
    {"dspark_markov_rank", {0}}, {"dspark_noise_token_id", {0}}, {"dspark_target_layer_ids", {0}},
    {"dtype", {0}}, {"ep_size", {0}}, {"id2label", {0}}, {"initializer_range", {0}},
    {"intermediate_size", {0}}, {"is_encoder_decoder", {0}}, {"label2id", {0}},
    {"output_attentions", {0}}, {"output_hidden_states", {0}}, {"output_router_logits", {0}},
    {"pad_token_id", {0}}, {"pretraining_tp", {0}}, {"problem_type", {0}}, {"return_dict", {0}},
    {"router_aux_loss_coef", {0}}, {"router_jitter_noise", {0}}, {"seq_aux", {0}},
    {"torch_dtype", {0}}, {"transformers_version", {0}}, {"use_cache", {0}},
};

static const struct known_key rope_keys[] = {
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

/* Of rope_parameters when it has one object for each kind of layer. */
static const struct known_key rope_kinds[] = {{"compress", {0}}, {"main", {0}}};

static const struct known_key quantization_keys[] = {
    {"activation_scheme", {"\"dynamic\"", "null"}},
    {"fmt", {"\"e4m3\""}},
    {"modules_to_not_convert", {0}}, /* the tensors' own types tell */
    {"quant_method", {"\"fp8\""}},
    {"scale_fmt", {"\"ue8m0\"", "null"}},
    {"weight_block_size", {"[128, 128]"}},
};
/* clang-format on */

struct checker {
    char *unknown;
    size_t unknown_bytes;
    uint32_t n_left_out; /* unknown keys that did not fit */
    const char *where;
    struct sl_err *err;
};

/* A key comes from a stranger and goes to a terminal. */
static void add_unknown(struct checker *in, const char *prefix, const char *name)
{
    const size_t room_for_rest = sizeof(" and 4294967295 more");
    size_t used = strlen(in->unknown), start = used;

    if (in->n_left_out > 0 || used + strlen(", ") + strlen(prefix) + NAME_SHOWN_MAX >=
                                  in->unknown_bytes - room_for_rest) {
        in->n_left_out++;
        return;
    }
    used += (size_t)snprintf(in->unknown + used, in->unknown_bytes - used, "%s%s%.*s",
                             used ? ", " : "", prefix, NAME_SHOWN_MAX, name);
    for (size_t i = start; i < used; i++)
        if (in->unknown[i] < 0x20 || in->unknown[i] > 0x7e)
            in->unknown[i] = '?';
}

static int check_value(const struct checker *in, const char *prefix, const struct known_key *key,
                       const json_t *value)
{
    char *text = json_dumps(value, JSON_ENCODE_ANY);
    bool good = false;
    int rc = 0;

    if (!text)
        return sl_err_set(in->err, -ENOMEM, "%s: out of memory", in->where);
    for (int i = 0; i < VALUES_MAX && key->values[i]; i++)
        good |= strcmp(text, key->values[i]) == 0;
    if (!good)
        rc = sl_err_set(in->err, -SL_EUNSUPPORTED, "%s: \"%s%s\" is %.80s; this engine runs %s%s%s",
                        in->where, prefix, key->name, text, key->values[0],
                        key->values[1] && key->values[1][0] == '"' ? " or " : " only",
                        key->values[1] && key->values[1][0] == '"' ? key->values[1] : "");
    free(text);
    return rc;
}

static int check_object(struct checker *in, const char *prefix, const json_t *object,
                        const struct known_key *keys, size_t n_keys)
{
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)object, name, value)
    {
        size_t i = 0;
        int rc;

        while (i < n_keys && strcmp(name, keys[i].name) != 0)
            i++;
        if (i == n_keys && !json_is_null(value))
            add_unknown(in, prefix, name);
        if (i == n_keys || !keys[i].values[0])
            continue;
        rc = check_value(in, prefix, &keys[i], value);
        if (rc < 0)
            return rc;
    }
    return 0;
}

#define CHECK(in, prefix, object, keys)                                                            \
    check_object(in, prefix, object, keys, sizeof(keys) / sizeof((keys)[0]))

static int check_rope(struct checker *in, const json_t *root)
{
    const json_t *parameters = json_object_get(root, "rope_parameters");
    const json_t *main = json_object_get(parameters, "main");
    const json_t *compress = json_object_get(parameters, "compress");
    int rc;

    rc = CHECK(in, "rope_scaling.", json_object_get(root, "rope_scaling"), rope_keys);
    if (rc == 0)
        rc = CHECK(in, "compress_rope_parameters.",
                   json_object_get(root, "compress_rope_parameters"), rope_keys);
    if (rc < 0)
        return rc;
    if (!main && !compress)
        return CHECK(in, "rope_parameters.", parameters, rope_keys);
    rc = CHECK(in, "rope_parameters.", parameters, rope_kinds);
    if (rc == 0)
        rc = CHECK(in, "rope_parameters.main.", main, rope_keys);
    return rc < 0 ? rc : CHECK(in, "rope_parameters.compress.", compress, rope_keys);
}

int sl_config_check_keys(const json_t *root, char *unknown, size_t unknown_bytes, const char *where,
                         struct sl_err *err)
{
    const json_t *quantization = json_object_get(root, "quantization_config");
    struct checker in = {
        .unknown = unknown, .unknown_bytes = unknown_bytes, .where = where, .err = err};
    size_t used;
    int rc;

    unknown[0] = '\0';
    if (quantization && !json_is_null(quantization) && !json_is_object(quantization))
        return sl_err_set(err, -SL_EFORMAT, "%s: \"quantization_config\" is not an object", where);
    if ((rc = CHECK(&in, "", root, model_keys)) < 0 || (rc = check_rope(&in, root)) < 0 ||
        (rc = CHECK(&in, "quantization_config.", quantization, quantization_keys)) < 0)
        return rc;
    used = strlen(unknown);
    if (in.n_left_out > 0)
        snprintf(unknown + used, unknown_bytes - used, "%s%u more", used ? " and " : "",
                 in.n_left_out);
    return 0;
}
