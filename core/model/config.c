#include "core/model/config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/size.h"
#include "core/model/config_keys.h"
#include "core/model/model_folder.h"

#define CONFIG_BYTES_MAX (UINT64_C(4) << 20)

/* YaRN divides by the logarithm of theta. With this and a scaling factor of at least 1, frequencies
 * lie between 0 and 1, and angles stay as small as rope.c asks. */
#define THETA_MIN 2

struct reader {
    const json_t *root;
    const char *where;
    struct sl_err *err;
};

static int broken(const struct reader *in, const char *relation, uint64_t found)
{
    return sl_err_set(in->err, -SL_EFORMAT, "%s: %s (found %llu)", in->where, relation,
                      (unsigned long long)found);
}

struct field {
    const char *key;
    size_t offset;
    uint32_t min, max;
    bool optional; /* missing counts as 0 */
};

/* clang-format off */
#define FIELD(name, min, max) {#name, offsetof(struct sl_config, name), min, max, false}
#define OPTIONAL(name, max) {#name, offsetof(struct sl_config, name), 0, max, true}
/* clang-format on */

/* The upper bounds keep every product of sizes that we form within 64 bits and every index within
 * 32; the released models use a fraction of each. */
static const struct field fields[] = {
    FIELD(vocab_size, 1, 1u << 22),
    FIELD(bos_token_id, 0, 1u << 22),
    FIELD(eos_token_id, 0, 1u << 22),
    FIELD(hidden_size, 128, 1u << 16),
    FIELD(num_hidden_layers, 1, SL_LAYERS_MAX),
    FIELD(num_hash_layers, 0, SL_LAYERS_MAX),
    OPTIONAL(num_nextn_predict_layers, 16),
    FIELD(num_attention_heads, 1, 1024),
    FIELD(head_dim, 2, 4096),
    FIELD(qk_rope_head_dim, 2, 4096),
    FIELD(q_lora_rank, 128, 1u << 16),
    FIELD(o_groups, 1, 1024),
    FIELD(o_lora_rank, 128, 1u << 16),
    OPTIONAL(index_n_heads, 1024),
    OPTIONAL(index_head_dim, 1024),
    OPTIONAL(index_topk, 1u << 20),
    FIELD(sliding_window, 1, 1u << 16),
    FIELD(n_routed_experts, 1, 1u << 12),
    FIELD(num_experts_per_tok, 1, SL_EXPERTS_PER_TOKEN_MAX),
    FIELD(moe_intermediate_size, 128, 1u << 16),
    FIELD(hc_mult, 1, SL_HC_MULT_MAX),
    FIELD(hc_sinkhorn_iters, 1, 1000),
    FIELD(max_position_embeddings, 1, 1u << 24),
};

static int read_integers(const struct reader *in, struct sl_config *config)
{
    for (size_t i = 0; i < SL_ARRAY_LEN(fields); i++) {
        const struct field *field = &fields[i];
        uint64_t value = 0;
        uint32_t narrow;
        int rc;

        if (!field->optional || json_object_get(in->root, field->key)) {
            rc = sl_json_get_u64(in->root, field->key, field->min, field->max, &value, in->where,
                                 in->err);
            if (rc < 0)
                return rc;
        }
        narrow = (uint32_t)value;
        memcpy((char *)config + field->offset, &narrow, sizeof(narrow));
    }
    return 0;
}

/* A finite number of at least `min` that float32 can hold. */
static int read_number(const struct reader *in, const json_t *object, const char *key, double min,
                       double *ret_value)
{
    double value;
    int rc = sl_json_get_f64(object, key, &value, in->where, in->err);

    if (rc < 0)
        return rc;
    if (value < min || value > 1e30)
        return sl_err_set(in->err, -SL_EFORMAT, "%s: \"%s\" is %g, expected %g to 1e30", in->where,
                          key, value, min);
    *ret_value = value;
    return 0;
}

static int read_numbers(const struct reader *in, struct sl_config *config)
{
    double scaling_factor = 0, limit = 0, hc_eps = 0, norm_eps = 0;
    int rc;

    if ((rc = read_number(in, in->root, "routed_scaling_factor", 1e-30, &scaling_factor)) < 0 ||
        (rc = read_number(in, in->root, "hc_eps", 1e-30, &hc_eps)) < 0 ||
        (rc = read_number(in, in->root, "rms_norm_eps", 1e-30, &norm_eps)) < 0 ||
        (rc = read_number(in, in->root, "rope_theta", THETA_MIN, &config->rope_theta)) < 0 ||
        (rc = read_number(in, in->root, "swiglu_limit", 0, &limit)) < 0 ||
        (rc = read_number(in, in->root, "compress_rope_theta", THETA_MIN,
                          &config->compress_rope_theta)) < 0)
        return rc;
    config->routed_scaling_factor = (float)scaling_factor;
    config->swiglu_limit = (float)limit;
    config->hc_eps = (float)hc_eps;
    config->rms_norm_eps = (float)norm_eps;
    return 0;
}

/* sl_config_check_keys() has seen to it that there is no other. */
static void read_expert_dtype(const struct reader *in, struct sl_config *config)
{
    const char *name = json_string_value(json_object_get(in->root, "expert_dtype"));

    config->names_expert_dtype = name;
    config->named_expert_dtype = name && strcmp(name, "fp8") == 0 ? SL_EXPERT_FP8 : SL_EXPERT_FP4;
    config->expert_dtype = config->named_expert_dtype;
}

static int read_rope_scaling(const struct reader *in, struct sl_config *config)
{
    struct sl_rope_scaling *scaling = &config->rope_scaling;
    const json_t *object = json_object_get(in->root, "rope_scaling");
    uint64_t original;
    int rc;

    if (!object || json_is_null(object))
        return 0;
    if ((rc = sl_json_get_u64(object, "original_max_position_embeddings", 0, 1u << 24, &original,
                              in->where, in->err)) < 0 ||
        (rc = read_number(in, object, "factor", 1, &scaling->factor)) < 0 ||
        (rc = read_number(in, object, "beta_fast", 1e-3, &scaling->beta_fast)) < 0 ||
        (rc = read_number(in, object, "beta_slow", 1e-3, &scaling->beta_slow)) < 0)
        return rc;
    scaling->original_max_position_embeddings = (uint32_t)original;
    return 0;
}

static int read_compress_ratios(const struct reader *in, struct sl_config *config)
{
    const json_t *list = json_object_get(in->root, "compress_ratios");
    uint32_t n_layers = config->num_hidden_layers + config->num_nextn_predict_layers;
    size_t length = json_array_size(list);

    if (n_layers > SL_LAYERS_MAX)
        return broken(in, "\"num_hidden_layers\" and \"num_nextn_predict_layers\" exceed 256",
                      n_layers);
    if (!json_is_array(list))
        return sl_err_set(in->err, -SL_EFORMAT, "%s: \"compress_ratios\" is missing or not a list",
                          in->where);
    if (length < config->num_hidden_layers)
        return broken(in, "\"compress_ratios\" has fewer entries than num_hidden_layers", length);
    for (size_t i = 0; i < length && i < n_layers; i++) {
        const json_t *item = json_array_get(list, i);
        json_int_t ratio = json_integer_value(item);

        if (!json_is_integer(item) || ratio < 0 || ratio > 65536)
            return broken(in, "\"compress_ratios\" has an entry that is not 0 to 65536; its index",
                          i);
        config->compress_ratios[i] = (uint32_t)ratio;
    }
    return 0;
}

/* The draft's keys, each of which may be missing. Its stages have no compression. */
static int read_dspark(const struct reader *in, struct sl_config *config)
{
    struct sl_dspark_config *dspark = &config->dspark;
    const json_t *targets = json_object_get(in->root, "dspark_target_layer_ids");
    const json_t *ratios = json_object_get(in->root, "compress_ratios");
    const struct {
        const char *key;
        uint32_t *value, min, max;
    } numbers[] = {
        {"dspark_block_size", &dspark->block_size, 1, SL_DSPARK_BLOCK_MAX},
        {"dspark_noise_token_id", &dspark->noise_token_id, 0, config->vocab_size - 1},
        {"dspark_markov_rank", &dspark->markov_rank, 1, 1u << 14},
    };

    for (size_t i = 0; i < SL_ARRAY_LEN(numbers); i++) {
        uint64_t value = 0;
        int rc = json_object_get(in->root, numbers[i].key)
                     ? sl_json_get_u64(in->root, numbers[i].key, numbers[i].min, numbers[i].max,
                                       &value, in->where, in->err)
                     : 0;

        if (rc < 0)
            return rc;
        *numbers[i].value = (uint32_t)value;
    }
    dspark->has_noise_token = json_object_get(in->root, "dspark_noise_token_id") != NULL;
    dspark->n_targets = (uint32_t)json_array_size(targets);
    if (targets && (dspark->n_targets < 1 || dspark->n_targets > SL_DSPARK_TARGETS_MAX))
        return broken(in, "\"dspark_target_layer_ids\" is not a list of 1 to 8 layers",
                      dspark->n_targets);
    for (uint32_t i = 0; i < dspark->n_targets; i++) {
        const json_t *item = json_array_get(targets, i);
        const json_int_t id = json_integer_value(item);

        if (!json_is_integer(item) || id < (i ? dspark->target_layer_ids[i - 1] + 1 : 0) ||
            id >= config->num_hidden_layers)
            return broken(in, "\"dspark_target_layer_ids\" are not ascending layers; the index", i);
        dspark->target_layer_ids[i] = (uint32_t)id;
    }
    for (size_t i = config->num_hidden_layers; targets && i < json_array_size(ratios); i++)
        if (json_integer_value(json_array_get(ratios, i)) != 0)
            return broken(in, "\"compress_ratios\" must be 0 for a stage of DSpark; the index", i);
    return 0;
}

static int check_indexer(const struct reader *in, const struct sl_config *config)
{
    uint32_t d = config->index_head_dim;
    bool csa = false;

    for (uint32_t i = 0; i < config->num_hidden_layers + config->num_nextn_predict_layers; i++)
        csa |= config->compress_ratios[i] == SL_CSA_RATIO;
    if (!csa)
        return 0;
    if (config->index_n_heads == 0)
        return broken(in, "\"index_n_heads\" must be at least 1 when a layer has ratio 4", 0);
    if (config->index_topk == 0)
        return broken(in, "\"index_topk\" must be at least 1 when a layer has ratio 4", 0);
    if (d < 32 || (d & (d - 1)) != 0) /* FP4 blocks of 32; the Hadamard rotation */
        return broken(in, "\"index_head_dim\" must be a power of two of at least 32", d);
    if (d < config->qk_rope_head_dim)
        return broken(in, "\"index_head_dim\" must not be less than qk_rope_head_dim", d);
    return 0;
}

static int check_relations(const struct reader *in, const struct sl_config *config)
{
    uint32_t rope_dim = config->qk_rope_head_dim;

    if (config->bos_token_id >= config->vocab_size)
        return broken(in, "\"bos_token_id\" is outside vocab_size", config->bos_token_id);
    if (config->eos_token_id >= config->vocab_size)
        return broken(in, "\"eos_token_id\" is outside vocab_size", config->eos_token_id);
    if (config->hidden_size % 128 != 0)
        return broken(in, "\"hidden_size\" must be a multiple of 128", config->hidden_size);
    if (config->moe_intermediate_size % 128 != 0)
        return broken(in, "\"moe_intermediate_size\" must be a multiple of 128",
                      config->moe_intermediate_size);
    if (config->q_lora_rank % 128 != 0)
        return broken(in, "\"q_lora_rank\" must be a multiple of 128", config->q_lora_rank);
    if (config->o_lora_rank % 128 != 0)
        return broken(in, "\"o_lora_rank\" must be a multiple of 128", config->o_lora_rank);
    if (config->hc_mult * config->hidden_size > SL_LINEAR_COLS_MAX)
        return broken(in, "\"hc_mult\" streams of hidden_size exceed 65536 columns",
                      config->hc_mult);
    if (config->num_hash_layers > config->num_hidden_layers)
        return broken(in, "\"num_hash_layers\" exceeds num_hidden_layers", config->num_hash_layers);
    if (rope_dim % 2 != 0)
        return broken(in, "\"qk_rope_head_dim\" must be even", rope_dim);
    if (config->head_dim <= rope_dim || (config->head_dim - rope_dim) % 64 != 0)
        return broken(in, "\"head_dim\" must exceed qk_rope_head_dim by a multiple of 64",
                      config->head_dim);
    if (config->num_attention_heads * config->head_dim % (config->o_groups * 128) != 0)
        return broken(in,
                      "\"o_groups\" must cut num_attention_heads * head_dim into multiples of 128",
                      config->o_groups);
    if (sl_config_group_cols(config) > SL_LINEAR_COLS_MAX ||
        config->o_groups * config->o_lora_rank > SL_LINEAR_COLS_MAX)
        return broken(in, "\"o_groups\" makes an output projection wider than 65536 columns",
                      config->o_groups);
    if (config->num_experts_per_tok > config->n_routed_experts)
        return broken(in, "\"num_experts_per_tok\" exceeds n_routed_experts",
                      config->num_experts_per_tok);
    return check_indexer(in, config);
}

static int read_model_type(const struct reader *in, struct sl_config *config)
{
    const json_t *value = json_object_get(in->root, "model_type");
    const char *text = json_string_value(value);

    if (value && !text)
        return sl_err_set(in->err, -SL_EFORMAT, "%s: \"model_type\" is not a string", in->where);
    snprintf(config->model_type, sizeof(config->model_type), "%s", text ? text : "");
    return 0;
}

static bool is_other_type(const struct sl_config *config)
{
    return config->model_type[0] && strcmp(config->model_type, SL_MODEL_TYPE) != 0;
}

/* "deepseek_v41" and the like. */
static bool is_v41(const struct sl_config *config)
{
    const char *rest = config->model_type + strlen(SL_MODEL_TYPE);

    return strncmp(config->model_type, SL_MODEL_TYPE, strlen(SL_MODEL_TYPE)) == 0 &&
           rest[strspn(rest, "._")] == '1';
}

static int other_model_type(const struct sl_config *config, const char *where, const char *remedy,
                            struct sl_err *err)
{
    if (is_v41(config))
        return sl_err_set(err, -SL_EUNSUPPORTED,
                          "%s: DeepSeek-V4.1 (\"model_type\" is \"%s\"), another architecture than "
                          "V4, which this engine does not run",
                          where, config->model_type);
    return sl_err_set(err, -SL_EUNSUPPORTED,
                      "%s: \"model_type\" is \"%s\"; this engine runs \"" SL_MODEL_TYPE "\"%s",
                      where, config->model_type, remedy);
}

static int read_all(const struct reader *in, json_t *root, struct sl_config *config)
{
    int rc = sl_config_check_keys(root, config->unknown_keys, sizeof(config->unknown_keys),
                                  in->where, in->err);

    if (rc < 0 || (rc = sl_config_respell(root, in->where, in->err)) < 0 ||
        (rc = read_integers(in, config)) < 0 || (rc = read_numbers(in, config)) < 0 ||
        (rc = read_rope_scaling(in, config)) < 0 || (rc = read_compress_ratios(in, config)) < 0 ||
        (rc = read_dspark(in, config)) < 0)
        return rc;
    read_expert_dtype(in, config);
    return check_relations(in, config);
}

int sl_config_parse(struct sl_config *ret_config, const char *text, size_t length,
                    const char *where, struct sl_err *err)
{
    struct sl_config config = {0};
    struct reader in = {.where = where, .err = err};
    json_t *root;
    int rc;

    rc = sl_json_parse(&root, text, length, where, err);
    if (rc < 0)
        return rc;
    in.root = root;
    if (!json_is_object(root))
        rc = sl_err_set(err, -SL_EFORMAT, "%s: not a JSON object", where);
    if (rc < 0 || (rc = read_model_type(&in, &config)) < 0)
        goto out;
    rc = read_all(&in, root, &config);
    /* No single key is to blame where the model is another one. */
    if ((rc == -SL_EFORMAT || rc == -SL_EUNSUPPORTED) && is_other_type(&config))
        rc = other_model_type(&config, where, "", err);
    if (rc == 0)
        *ret_config = config;
out:
    json_decref(root);
    return rc;
}

int sl_config_read(struct sl_config *ret_config, const char *folder, struct sl_err *err)
{
    char *path, *text;
    size_t length;
    int rc;

    if (asprintf(&path, "%s/config.json", folder) < 0)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", folder);
    rc = sl_file_read_all(path, CONFIG_BYTES_MAX, &text, &length, err);
    if (rc == 0) {
        rc = sl_config_parse(ret_config, text, length, path, err);
        free(text);
    } else if (rc == -ENOENT || rc == -ENOTDIR) {
        rc = sl_model_folder_explain(folder, rc, err);
    }
    free(path);
    return rc;
}

int sl_config_check_model_type(const struct sl_config *config, const char *folder,
                               struct sl_err *err)
{
    char where[SL_ERR_MESSAGE_BYTES / 2];

    if (!is_other_type(config))
        return 0;
    snprintf(where, sizeof(where), "%s/config.json", folder);
    return other_model_type(config, where, " (--any-model-type tries all the same)", err);
}

const char *sl_config_note(const struct sl_config *config, uint32_t note_index,
                           char buffer[SL_CONFIG_NOTE_BYTES])
{
    if (!config->model_type[0] && note_index-- == 0)
        snprintf(buffer, SL_CONFIG_NOTE_BYTES,
                 "config.json has no \"model_type\"; the model is taken for " SL_MODEL_TYPE);
    else if (config->names_expert_dtype && config->named_expert_dtype != config->expert_dtype &&
             note_index-- == 0)
        snprintf(buffer, SL_CONFIG_NOTE_BYTES,
                 "\"expert_dtype\" in config.json is \"%s\"; the experts are taken for what their "
                 "tensors are, %s",
                 sl_expert_dtype_name(config->named_expert_dtype),
                 config->expert_dtype == SL_EXPERT_FP8 ? "FP8" : "FP4");
    else if (config->unknown_keys[0] && note_index == 0)
        snprintf(buffer, SL_CONFIG_NOTE_BYTES,
                 "config.json has keys that are not known and have no effect: %s",
                 config->unknown_keys);
    else
        return NULL;
    return buffer;
}
