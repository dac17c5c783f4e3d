/* config.json: every key is needed, typed and bounded, and every relation between sizes is checked.
 * One sound config is changed in one place at a time, by jansson or byte by byte; what is refused
 * must name the key, and what is accepted must be safe to use. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "tests/config_check.h"
#include "tests/fault_alloc.h"
#include "tests/kernel_inputs.h"

static const char sound_text[] =
    "{\"model_type\": \"deepseek_v4\", \"bos_token_id\": 0, \"eos_token_id\": 1,"
    " \"vocab_size\": 1024, \"hidden_size\": 256, \"num_hidden_layers\": 4,"
    " \"num_hash_layers\": 2, \"num_nextn_predict_layers\": 1,"
    " \"compress_ratios\": [0, 4, 128, 4, 0], \"num_attention_heads\": 4,"
    " \"num_key_value_heads\": 1, \"head_dim\": 128, \"qk_rope_head_dim\": 64,"
    " \"q_lora_rank\": 128, \"o_groups\": 2, \"o_lora_rank\": 128, \"index_n_heads\": 16,"
    " \"index_head_dim\": 128, \"index_topk\": 8, \"sliding_window\": 16,"
    " \"n_routed_experts\": 24, \"n_shared_experts\": 1, \"num_experts_per_tok\": 6,"
    " \"moe_intermediate_size\": 384, \"scoring_func\": \"sqrtsoftplus\","
    " \"topk_method\": \"noaux_tc\", \"norm_topk_prob\": true, \"routed_scaling_factor\": 1.5,"
    " \"swiglu_limit\": 7.5, \"hidden_act\": \"silu\", \"hc_mult\": 4, \"hc_sinkhorn_iters\": 20,"
    " \"hc_eps\": 1e-06, \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000,"
    " \"compress_rope_theta\": 160000, \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 16,"
    " \"original_max_position_embeddings\": 65536, \"beta_fast\": 32, \"beta_slow\": 1},"
    " \"max_position_embeddings\": 1048576, \"tie_word_embeddings\": false,"
    " \"expert_dtype\": \"fp4\", \"quantization_config\": {\"weight_block_size\": [128, 128]}}";

static int parse(const char *text, size_t length, struct sl_config *config, struct sl_err *err)
{
    struct sl_config untouched;
    int rc;

    memset(&untouched, 0x5a, sizeof(untouched));
    memset(config, 0x5a, sizeof(*config));
    memset(err, 0, sizeof(*err));
    rc = sl_config_parse(config, text, length, "folder/config.json", err);
    if (rc == 0) {
        config_check_sound(config);
        assert_int_equal(err->code, 0);
    } else {
        assert_memory_equal(config, &untouched, sizeof(untouched));
        assert_int_equal(err->code, rc);
        assert_int_equal(strncmp(err->message, "folder/config.json: ", 20), 0);
        assert_int_equal(sl_config_parse(config, text, length, "folder/config.json", NULL), rc);
    }
    return rc;
}

/* The sound config, with members replaced by those of `changes` ({"key": value, ...}); a member
 * "rope_scaling.key" lies inside that object, and the text "absent" takes a member away. */
static int parse_changed(const char *changes_text, struct sl_config *config, struct sl_err *err)
{
    static const char inner[] = "rope_scaling.";
    json_t *root, *changes, *value;
    const char *key;
    char *text;
    int rc;

    assert_int_equal(sl_json_parse(&root, sound_text, strlen(sound_text), "sound", NULL), 0);
    assert_int_equal(sl_json_parse(&changes, changes_text, strlen(changes_text), "changes", err),
                     0);
    json_object_foreach(changes, key, value)
    {
        bool is_inner = strncmp(key, inner, strlen(inner)) == 0;
        json_t *object = is_inner ? json_object_get(root, "rope_scaling") : root;
        const char *name = is_inner ? key + strlen(inner) : key, *word = json_string_value(value);

        if (word && strcmp(word, "absent") == 0)
            json_object_del(object, name);
        else
            json_object_set(object, name, value);
    }
    text = json_dumps(root, 0);
    rc = parse(text, strlen(text), config, err);
    free(text);
    json_decref(changes);
    json_decref(root);
    return rc;
}

static void assert_accepted(const char *changes)
{
    struct sl_config config;
    struct sl_err err;

    if (parse_changed(changes, &config, &err) != 0)
        fail_msg("%s: %s", changes, err.message);
}

static void assert_refused(const char *changes, int code, const char *named)
{
    struct sl_config config;
    struct sl_err err;
    int rc = parse_changed(changes, &config, &err);

    if (rc != code || !strstr(err.message, named))
        fail_msg("%s: code %d, \"%s\"; expected %d and \"%s\"", changes, rc,
                 rc < 0 ? err.message : "accepted", code, named);
}

/* {"key": value} and what to expect of it; the key must be named. */
static void refuse(const char *key, const char *value)
{
    const char *dot = strchr(key, '.');
    char changes[256], named[64];

    snprintf(changes, sizeof(changes), "{\"%s\": %s}", key, value);
    snprintf(named, sizeof(named), "\"%s\"", dot ? dot + 1 : key);
    assert_refused(changes, -SL_EFORMAT, named);
}

static const struct {
    const char *key;
    int64_t min, max;
    bool optional;
} integers[] = {
    {"vocab_size", 1, 1 << 22, false},
    {"bos_token_id", 0, 1 << 22, false},
    {"eos_token_id", 0, 1 << 22, false},
    {"hidden_size", 128, 1 << 16, false},
    {"num_hidden_layers", 1, 256, false},
    {"num_hash_layers", 0, 256, false},
    {"num_nextn_predict_layers", 0, 16, true},
    {"num_attention_heads", 1, 1024, false},
    {"head_dim", 2, 4096, false},
    {"qk_rope_head_dim", 2, 4096, false},
    {"q_lora_rank", 128, 1 << 16, false},
    {"o_groups", 1, 1024, false},
    {"o_lora_rank", 128, 1 << 16, false},
    {"index_n_heads", 0, 1024, true},
    {"index_head_dim", 0, 1024, true},
    {"index_topk", 0, 1 << 20, true},
    {"sliding_window", 1, 1 << 16, false},
    {"n_routed_experts", 1, 1 << 12, false},
    {"num_experts_per_tok", 1, 16, false},
    {"moe_intermediate_size", 128, 1 << 16, false},
    {"hc_mult", 1, 8, false},
    {"hc_sinkhorn_iters", 1, 1000, false},
    {"max_position_embeddings", 1, 1 << 24, false},
    {"rope_scaling.original_max_position_embeddings", 0, 1 << 24, false},
};

static void test_integers(void **state)
{
    static const char *const not_integers[] = {"\"12\"", "1.5", "1.0", "true", "null", "[]", "{}"};

    (void)state;
    for (size_t i = 0; i < sizeof(integers) / sizeof(integers[0]); i++) {
        char value[32];

        for (size_t j = 0; j < sizeof(not_integers) / sizeof(not_integers[0]); j++)
            refuse(integers[i].key, not_integers[j]);
        snprintf(value, sizeof(value), "%lld", (long long)integers[i].min - 1);
        refuse(integers[i].key, value);
        snprintf(value, sizeof(value), "%lld", (long long)integers[i].max + 1);
        refuse(integers[i].key, value);
        refuse(integers[i].key, "4294967552"); /* 256 in 32 bits */
        refuse(integers[i].key, "-9223372036854775808");
        refuse(integers[i].key, "9223372036854775807");
        if (!integers[i].optional)
            refuse(integers[i].key, "\"absent\"");
    }
}

static void test_numbers(void **state)
{
    static const struct {
        const char *key, *below;
        bool optional;
    } numbers[] = {
        {"routed_scaling_factor", "0", false},
        {"swiglu_limit", "-0.001", false},
        {"hc_eps", "0", false},
        {"rms_norm_eps", "0", false},
        {"rope_theta", "1", false},
        {"compress_rope_theta", "1", false},
        {"rope_scaling.factor", "0.999", false},
        {"rope_scaling.beta_fast", "0", false},
        {"rope_scaling.beta_slow", "-1.0", false},
    };
    static const char *const bad[] = {"\"1\"", "null", "true", "[1]", "-1", "1.1e30", "1e300"};

    (void)state;
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        for (size_t j = 0; j < sizeof(bad) / sizeof(bad[0]); j++)
            refuse(numbers[i].key, bad[j]);
        refuse(numbers[i].key, numbers[i].below);
        if (!numbers[i].optional)
            refuse(numbers[i].key, "\"absent\"");
    }
    assert_accepted("{\"swiglu_limit\": 0, \"rope_scaling.factor\": 1, \"rope_theta\": 2}");
}

static void test_what_may_be_absent(void **state)
{
    static const char *const keys[] = {
        "rope_scaling", "num_key_value_heads", "n_shared_experts",    "scoring_func",
        "hidden_act",   "topk_method",         "expert_dtype",        "norm_topk_prob",
        "model_type",   "tie_word_embeddings", "quantization_config", "num_nextn_predict_layers",
    };
    struct sl_config config;
    struct sl_err err;

    (void)state;
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        char changes[64];

        snprintf(changes, sizeof(changes), "{\"%s\": \"absent\"}", keys[i]);
        assert_accepted(changes);
    }
    assert_int_equal(parse_changed("{\"swiglu_limit\": 0, \"rope_scaling\": null,"
                                   " \"num_nextn_predict_layers\": \"absent\"}",
                                   &config, &err),
                     0);
    assert_true(config.swiglu_limit == 0);
    assert_int_equal(config.rope_scaling.original_max_position_embeddings, 0);
    assert_int_equal(config.num_nextn_predict_layers, 0);
    /* Without CSA layers the indexer's sizes mean nothing. */
    assert_accepted("{\"compress_ratios\": [0, 128, 7, 0], \"index_n_heads\": \"absent\","
                    " \"index_head_dim\": \"absent\", \"index_topk\": \"absent\"}");
}

/* The draft's keys may be there or not; what they say must be possible. */
static void test_dspark(void **state)
{
    static const char *const keys[] = {"dspark_block_size", "dspark_noise_token_id",
                                       "dspark_markov_rank", "dspark_target_layer_ids"};
    static const char *const bad[][8] = {
        {"0", "17", "\"5\"", "null"},
        {"-1", "1000000000", "1.5"},
        {"0", "16385", "[]"},
        {"[]", "5", "[2, 1]", "[1, 1]", "[-1]", "[99]", "[\"1\"]", "[0, 0, 0, 0, 0, 0, 0, 0, 0]"}};
    struct sl_config config;
    struct sl_err err;

    (void)state;
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 8 && bad[i][j]; j++)
            refuse(keys[i], bad[i][j]);
    assert_int_equal(parse_changed("{}", &config, &err), 0);
    assert_int_equal(config.dspark.block_size + config.dspark.n_targets, 0);
    assert_int_equal(
        parse_changed("{\"dspark_block_size\": 5, \"dspark_noise_token_id\": 7,"
                      " \"dspark_markov_rank\": 256, \"dspark_target_layer_ids\": [0, 2]}",
                      &config, &err),
        0);
    assert_int_equal(config.dspark.block_size, 5);
    assert_int_equal(config.dspark.noise_token_id, 7);
    assert_int_equal(config.dspark.markov_rank, 256);
    assert_int_equal(config.dspark.n_targets, 2);
    assert_int_equal(config.dspark.target_layer_ids[1], 2);
    assert_refused("{\"dspark_target_layer_ids\": [0], \"compress_ratios\": [0, 0, 4, 128, 4]}",
                   -SL_EFORMAT, "compress_ratios");
}

static void test_another_kind_of_model(void **state)
{
    static const struct {
        const char *changes, *key;
    } cases[] = {
        {"{\"scoring_func\": \"softmax\"}", "\"scoring_func\" is \"softmax\""},
        {"{\"scoring_func\": null}", "\"scoring_func\" is null"},
        {"{\"hidden_act\": \"gelu\"}", "\"hidden_act\""},
        {"{\"topk_method\": \"greedy\"}", "\"topk_method\""},
        {"{\"expert_dtype\": \"bf16\"}", "\"expert_dtype\" is \"bf16\""},
        {"{\"expert_dtype\": 4}", "\"expert_dtype\" is 4"},
        {"{\"num_key_value_heads\": 8}", "\"num_key_value_heads\""},
        {"{\"num_key_value_heads\": \"1\"}", "\"num_key_value_heads\""},
        {"{\"n_shared_experts\": 2}", "\"n_shared_experts\""},
        {"{\"norm_topk_prob\": false}", "\"norm_topk_prob\" is false; this engine runs true only"},
        {"{\"norm_topk_prob\": 0}", "\"norm_topk_prob\" is 0"},
        {"{\"norm_topk_prob\": \"no\"}", "\"norm_topk_prob\" is \"no\""},
        {"{\"norm_topk_prob\": null}", "\"norm_topk_prob\""},
        {"{\"tie_word_embeddings\": true}", "\"tie_word_embeddings\""},
        {"{\"tie_word_embeddings\": 1}", "\"tie_word_embeddings\""},
        {"{\"attention_bias\": true}", "\"attention_bias\""},
        {"{\"mlp_bias\": true}", "\"mlp_bias\""},
        {"{\"first_k_dense_replace\": 3}", "\"first_k_dense_replace\""},
        {"{\"n_group\": 8}", "\"n_group\""},
        {"{\"topk_group\": 4}", "\"topk_group\""},
        {"{\"rope_interleave\": false}", "\"rope_interleave\""},
        {"{\"rope_scaling.attention_factor\": 1.2772588722239782}",
         "\"rope_scaling.attention_factor\" is 1.27"},
        {"{\"rope_scaling.mscale\": 1.0}", "\"rope_scaling.mscale\""},
        {"{\"rope_scaling.mscale_all_dim\": 1}", "\"rope_scaling.mscale_all_dim\""},
        {"{\"rope_scaling.truncate\": false}", "\"rope_scaling.truncate\""},
        {"{\"rope_scaling.type\": \"linear\"}", "\"rope_scaling.type\""},
        {"{\"rope_scaling.rope_type\": 1}", "\"rope_scaling.rope_type\""},
        {"{\"quantization_config\": {\"weight_block_size\": [64, 128]}}", "weight_block_size"},
        {"{\"quantization_config\": {\"weight_block_size\": [128, 128, 128]}}",
         "weight_block_size"},
        {"{\"quantization_config\": {\"weight_block_size\": 128}}", "weight_block_size"},
        {"{\"quantization_config\": {\"fmt\": \"e5m2\"}}",
         "\"quantization_config.fmt\" is \"e5m2\""},
        {"{\"quantization_config\": {\"quant_method\": \"int4\"}}",
         "\"quantization_config.quant_method\""},
        {"{\"quantization_config\": {\"scale_fmt\": \"float\"}}",
         "\"quantization_config.scale_fmt\""},
        {"{\"quantization_config\": {\"activation_scheme\": \"static\"}}",
         "\"quantization_config.activation_scheme\""},
        {"{\"rope_parameters\": {\"main\": {\"rope_type\": \"yarn\", \"factor\": 16},"
         " \"compress\": {\"rope_type\": \"default\"}}}",
         "\"rope_parameters.main\""},
        {"{\"rope_parameters\": {\"main\": {\"rope_type\": \"default\"},"
         " \"compress\": {\"rope_type\": \"llama3\"}}}",
         "\"rope_parameters.compress.rope_type\" is \"llama3\""},
        {"{\"rope_parameters\": {\"rope_type\": \"yarn\", \"attention_factor\": null}}",
         "\"rope_parameters.attention_factor\""},
        {"{\"compress_rates\": {\"compressed_sparse_attention\": 8}}", "\"compress_rates\""},
        {"{\"compress_rate_csa\": 8}", "\"compress_rate_csa\""},
        /* Of another model no single key is to blame. */
        {"{\"model_type\": \"deepseek_v3\", \"hc_mult\": \"absent\"}",
         "\"model_type\" is \"deepseek_v3\"; this engine runs \"deepseek_v4\""},
        {"{\"model_type\": \"deepseek_v3\", \"scoring_func\": \"sigmoid\"}", "\"model_type\""},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_refused(cases[i].changes, -SL_EUNSUPPORTED, cases[i].key);
}

/* One that makes sense but for its name is left to whoever wants to run it. */
static void test_model_type(void **state)
{
    struct sl_config config;
    struct sl_err err;

    (void)state;
    refuse("model_type", "4");
    assert_int_equal(parse_changed("{}", &config, &err), 0);
    assert_string_equal(config.model_type, SL_MODEL_TYPE);
    assert_int_equal(sl_config_check_model_type(&config, "folder", &err), 0);
    assert_int_equal(parse_changed("{\"model_type\": \"absent\"}", &config, &err), 0);
    assert_int_equal(sl_config_check_model_type(&config, "folder", &err), 0);
    assert_int_equal(parse_changed("{\"model_type\": \"my_v4\"}", &config, &err), 0);
    assert_int_equal(sl_config_check_model_type(&config, "folder", &err), -SL_EUNSUPPORTED);
    assert_non_null(strstr(err.message, "folder/config.json: \"model_type\" is \"my_v4\""));
    assert_non_null(strstr(err.message, "--any-model-type"));
}

/* A key in no table is told; one that cannot matter, or says nothing, is not. */
static void test_unknown_keys(void **state)
{
    static const struct {
        const char *changes, *unknown;
    } cases[] = {
        {"{}", ""},
        {"{\"torch_dtype\": \"bfloat16\", \"dtype\": \"float32\", \"use_cache\": false,"
         " \"architectures\": [], \"transformers_version\": \"5\", \"attention_dropout\": 0.5,"
         " \"dspark_target_layer_ids\": [1, 2], \"intermediate_size\": 7, \"n_group\": null}",
         ""},
        {"{\"z_loss\": 1, \"a\\u0007b\\u00e9\": {}, \"nothing\": null, \"rope_scaling.twist\": 2,"
         " \"quantization_config\": {\"fmt\": \"e4m3\", \"extra\": 1}}",
         "z_loss, a?b??, rope_scaling.twist, quantization_config.extra"},
        {"{\"rope_parameters\": {\"twist\": 0, \"main\": {\"rope_type\": \"default\", \"x\": 1},"
         " \"compress\": {\"rope_type\": \"yarn\", \"factor\": 16, \"beta_fast\": 32, \"y\": 1,"
         " \"beta_slow\": 1, \"original_max_position_embeddings\": 65536}}}",
         "rope_parameters.twist, rope_parameters.main.x, rope_parameters.compress.y"},
    };
    char changes[8192], *end = changes;
    struct sl_config config;
    struct sl_err err;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (parse_changed(cases[i].changes, &config, &err) != 0)
            fail_msg("%s: %s", cases[i].changes, err.message);
        assert_string_equal(config.unknown_keys, cases[i].unknown);
    }
    end += sprintf(end, "{");
    for (int i = 0; i < 100; i++)
        end += sprintf(end, "\"a_long_key_number_%d\": %d%s", i, i, i < 99 ? ", " : "}");
    assert_int_equal(parse_changed(changes, &config, &err), 0);
    assert_non_null(strstr(config.unknown_keys, "a_long_key_number_0, a_long_key_number_1"));
    assert_non_null(strstr(config.unknown_keys, " more"));
}

#define YARN_16                                                                                    \
    "\"rope_type\": \"yarn\", \"factor\": 16, \"beta_fast\": 32, \"beta_slow\": 1,"                \
    " \"original_max_position_embeddings\": 65536"
#define LAYER_TYPES                                                                                \
    "\"layer_types\": [\"sliding_attention\", \"compressed_sparse_attention\","                    \
    " \"heavily_compressed_attention\", \"compressed_sparse_attention\"]"

/* All that the newer spelling says, in place of the official keys or beside them: the same model.
 */
static void test_newer_spelling(void **state)
{
    static const char *const same[] = {
        "{\"rope_scaling\": \"absent\", \"rope_theta\": \"absent\","
        " \"compress_rope_theta\": \"absent\", \"qk_rope_head_dim\": \"absent\","
        " \"rope_parameters\": {\"main\": {\"rope_type\": \"default\", \"rope_theta\": 10000.0,"
        " \"partial_rotary_factor\": 0.5}, \"compress\": {" YARN_16 ", \"rope_theta\": 160000,"
        " \"partial_rotary_factor\": 0.5, \"attention_factor\": 1.0}}}",
        "{\"rope_parameters\": {\"main\": {\"rope_theta\": 10000},"
        " \"compress\": {" YARN_16 ", \"rope_theta\": 160000.0}}, \"partial_rotary_factor\": 0.5}",
        "{\"rope_scaling\": null, \"rope_parameters\": {" YARN_16 "}}",
        "{\"rope_scaling.type\": \"absent\"}",
        "{\"rope_scaling.type\": \"absent\", \"rope_parameters\": {" YARN_16 "}}",
        "{\"rope_scaling\": \"absent\", \"rope_theta\": \"absent\","
        " \"rope_parameters\": {" YARN_16 ", \"type\": \"yarn\", \"rope_theta\": 10000}}",
        "{\"rope_scaling\": \"absent\", \"compress_rope_theta\": \"absent\","
        " \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 10000},"
        " \"compress_rope_parameters\": {" YARN_16 ", \"rope_theta\": 160000}}",
        "{\"compress_ratios\": \"absent\", " LAYER_TYPES ", \"compress_rates\":"
        " {\"compressed_sparse_attention\": 4, \"heavily_compressed_attention\": 128}}",
        "{\"compress_ratios\": null, " LAYER_TYPES ", \"compress_rate_hca\": 128}",
        "{" LAYER_TYPES "}",
        "{" LAYER_TYPES ", \"compress_rates\": {\"heavily_compressed_attention\": 128}}",
        "{\"num_hash_layers\": \"absent\", \"mlp_layer_types\":"
        " [\"hash_moe\", \"hash_moe\", \"moe\", \"moe\"]}",
        "{\"mlp_layer_types\": [\"hash_moe\", \"hash_moe\", \"moe\", \"moe\"]}",
        "{\"kv_lora_rank\": 128, \"v_head_dim\": 128, \"qk_nope_head_dim\": 64,"
        " \"num_local_experts\": 24}",
        "{\"kv_lora_rank\": null, \"v_head_dim\": null, \"quantization_config\": null}",
    };
    struct sl_config sound, config;
    struct sl_err err;

    (void)state;
    assert_int_equal(parse(sound_text, strlen(sound_text), &sound, &err), 0);
    for (size_t i = 0; i < sizeof(same) / sizeof(same[0]); i++) {
        if (parse_changed(same[i], &config, &err) != 0)
            fail_msg("%s: %s", same[i], err.message);
        if (memcmp(&config, &sound, sizeof(config)) != 0)
            fail_msg("%s: another config", same[i]);
    }
    /* No scaling is what these say. */
    assert_int_equal(parse_changed("{\"rope_scaling\": {\"type\": \"default\"}}", &config, &err),
                     0);
    assert_int_equal(config.rope_scaling.original_max_position_embeddings, 0);
    assert_int_equal(parse_changed("{\"rope_scaling\": \"absent\", \"rope_parameters\": {\"main\":"
                                   " {\"rope_type\": \"default\"}, \"compress\": {}}}",
                                   &config, &err),
                     0);
    assert_int_equal(config.rope_scaling.original_max_position_embeddings, 0);
}

static void test_contradictions(void **state)
{
    static const struct {
        const char *changes, *key;
    } cases[] = {
        {"{\"rope_parameters\": {\"rope_type\": \"default\"}}", "\"rope_parameters\""},
        {"{\"rope_parameters\": {\"rope_type\": \"yarn\", \"factor\": 4}}", "\"rope_parameters\""},
        {"{\"rope_parameters\": {" YARN_16 ", \"rope_theta\": 500}}", "\"rope_theta\""},
        {"{\"rope_parameters\": {\"main\": {\"rope_theta\": 500}, \"compress\": {" YARN_16 "}}}",
         "\"rope_parameters.main\" and \"rope_theta\""},
        {"{\"rope_parameters\": {\"main\": {}, \"compress\": {" YARN_16 ", \"rope_theta\": 5}}}",
         "\"compress_rope_theta\""},
        {"{\"rope_parameters\": {\"main\": {}, \"compress\": {}}}", "\"rope_scaling\""},
        {"{\"rope_parameters\": {\"main\": {}}}", "\"rope_parameters\""},
        {"{\"rope_parameters\": {\"compress\": {" YARN_16 "}}}", "\"rope_parameters\""},
        {"{\"rope_parameters\": 3}", "\"rope_parameters\""},
        {"{\"rope_parameters\": {\"main\": 3, \"compress\": {" YARN_16 "}}}",
         "\"rope_parameters\""},
        {"{\"rope_parameters\": {\"rope_theta\": \"x\"}}", "\"rope_parameters\""},
        {"{\"rope_scaling\": \"absent\", \"rope_parameters\": {\"main\": {},"
         " \"compress\": {\"factor\": 16}}}",
         "\"rope_parameters.compress\""},
        {"{\"rope_scaling.rope_type\": \"default\"}", "\"rope_type\" and \"type\""},
        {"{\"compress_rope_parameters\": 3}", "\"compress_rope_parameters\""},
        {"{\"partial_rotary_factor\": 0.25}", "\"partial_rotary_factor\""},
        {"{\"partial_rotary_factor\": 0.3, \"qk_rope_head_dim\": \"absent\"}",
         "\"partial_rotary_factor\""},
        {"{\"partial_rotary_factor\": \"half\"}", "\"partial_rotary_factor\""},
        {"{" LAYER_TYPES ", \"compress_ratios\": [0, 4, 0, 4]}", "\"layer_types\""},
        {"{" LAYER_TYPES ", \"compress_ratios\": [4, 4, 128, 4]}", "\"layer_types\""},
        {"{" LAYER_TYPES ", \"compress_ratios\": \"absent\"}", "\"compress_rates\""},
        {"{" LAYER_TYPES ", \"num_hidden_layers\": 3}", "\"layer_types\""},
        {"{\"layer_types\": [\"full_attention\", \"a\", \"b\", \"c\"]}", "\"layer_types\""},
        {"{\"layer_types\": 4}", "\"layer_types\""},
        {"{\"compress_rates\": {\"heavily_compressed_attention\": 64}}", "\"compress_rates\""},
        {"{\"compress_rates\": {\"heavily_compressed_attention\": 4}}", "\"compress_rates\""},
        {"{\"compress_rates\": {\"heavily_compressed_attention\": \"x\"}}", "\"compress_rates\""},
        {"{\"compress_rates\": {\"heavily_compressed_attention\": 128},"
         " \"compress_rate_hca\": 64}",
         "\"compress_rate_hca\""},
        {"{\"compress_rates\": 128}", "\"compress_rates\""},
        {"{\"mlp_layer_types\": [\"hash_moe\", \"moe\", \"moe\", \"moe\"]}", "\"mlp_layer_types\""},
        {"{\"mlp_layer_types\": [\"moe\", \"hash_moe\", \"hash_moe\", \"moe\"]}",
         "\"mlp_layer_types\""},
        {"{\"mlp_layer_types\": [\"hash_moe\", \"hash_moe\"]}", "\"mlp_layer_types\""},
        {"{\"mlp_layer_types\": [\"hash_moe\", \"hash_moe\", \"dense\", \"moe\"]}",
         "\"mlp_layer_types\""},
        {"{\"kv_lora_rank\": 512}", "\"kv_lora_rank\""},
        {"{\"v_head_dim\": 64}", "\"v_head_dim\""},
        {"{\"qk_nope_head_dim\": 128}", "\"qk_nope_head_dim\""},
        {"{\"num_local_experts\": 8}", "\"num_local_experts\""},
        {"{\"quantization_config\": \"int4\"}", "\"quantization_config\""},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_refused(cases[i].changes, -SL_EFORMAT, cases[i].key);
}

static void test_relations(void **state)
{
    static const struct {
        const char *changes, *key;
    } cases[] = {
        {"{\"bos_token_id\": 1024}", "\"bos_token_id\""},
        {"{\"eos_token_id\": 1024}", "\"eos_token_id\""},
        {"{\"hidden_size\": 192}", "\"hidden_size\""},
        {"{\"moe_intermediate_size\": 448}", "\"moe_intermediate_size\""},
        {"{\"q_lora_rank\": 192}", "\"q_lora_rank\""},
        {"{\"o_lora_rank\": 192}", "\"o_lora_rank\""},
        {"{\"hc_mult\": 5, \"hidden_size\": 13184}", "\"hc_mult\""},
        {"{\"num_hash_layers\": 5}", "\"num_hash_layers\""},
        {"{\"qk_rope_head_dim\": 63, \"head_dim\": 127}", "\"qk_rope_head_dim\""},
        {"{\"head_dim\": 64}", "\"head_dim\""},
        {"{\"head_dim\": 32}", "\"head_dim\""},
        {"{\"head_dim\": 160}", "\"head_dim\""},
        {"{\"o_groups\": 3}", "\"o_groups\""},
        {"{\"o_groups\": 8}", "\"o_groups\""},
        {"{\"num_attention_heads\": 1024, \"o_groups\": 1}", "\"o_groups\""},
        {"{\"o_groups\": 4, \"o_lora_rank\": 16512}", "\"o_groups\""},
        {"{\"num_experts_per_tok\": 7, \"n_routed_experts\": 6}", "\"num_experts_per_tok\""},
        {"{\"index_n_heads\": 0}", "\"index_n_heads\""},
        {"{\"index_n_heads\": \"absent\"}", "\"index_n_heads\""},
        {"{\"index_topk\": 0}", "\"index_topk\""},
        {"{\"index_topk\": \"absent\"}", "\"index_topk\""},
        {"{\"index_head_dim\": \"absent\"}", "\"index_head_dim\""},
        {"{\"index_head_dim\": 16, \"qk_rope_head_dim\": 2, \"head_dim\": 66,"
         " \"num_attention_heads\": 128}",
         "\"index_head_dim\""},
        {"{\"index_head_dim\": 96}", "\"index_head_dim\""},
        {"{\"index_head_dim\": 32}", "\"index_head_dim\""},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_refused(cases[i].changes, -SL_EFORMAT, cases[i].key);
    /* The same, one step on the good side. */
    assert_accepted("{\"bos_token_id\": 1023, \"eos_token_id\": 1023}");
    assert_accepted("{\"hc_mult\": 5, \"hidden_size\": 13056}");
    assert_accepted("{\"hc_mult\": 8, \"hidden_size\": 8192}");
    assert_accepted("{\"num_hash_layers\": 4}");
    assert_accepted("{\"o_groups\": 4, \"o_lora_rank\": 16384}");
    assert_accepted("{\"num_attention_heads\": 512, \"o_groups\": 1}");
    assert_accepted("{\"num_experts_per_tok\": 6, \"n_routed_experts\": 6}");
    assert_accepted("{\"index_head_dim\": 64}");
    assert_accepted("{\"qk_rope_head_dim\": 2, \"head_dim\": 66, \"num_attention_heads\": 128,"
                    " \"index_head_dim\": 32}");
}

static void test_compress_ratios(void **state)
{
    static const char *const bad[] = {
        "\"absent\"",
        "null",
        "4",
        "{}",
        "[]",
        "[0, 4, 128]",
        "[0, 4, 128, -1]",
        "[0, 4, 128, 65537]",
        "[0, 4, 128, 4.0]",
        "[0, 4, \"4\", 0]",
        "[null, 4, 4, 0]",
        "[0, 4, 128, 4, 65537]",
        "[0, 4, 128, 4294967300]",
    };
    struct sl_config config;
    struct sl_err err;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        refuse("compress_ratios", bad[i]);
    /* The MTP block's may be missing, and what lies beyond is of no interest. */
    assert_int_equal(parse_changed("{\"compress_ratios\": [1, 65536, 0, 7]}", &config, &err), 0);
    assert_int_equal(config.compress_ratios[1], 65536);
    assert_int_equal(config.compress_ratios[4], 0);
    assert_int_equal(parse_changed("{\"compress_ratios\": [1, 4, 0, 7, 5, \"x\"]}", &config, &err),
                     0);
    assert_int_equal(config.compress_ratios[4], 5);
    refuse("rope_scaling", "[]");
    refuse("rope_scaling", "16");
}

static void test_most_layers(void **state)
{
    char changes[2048], *end = changes;

    (void)state;
    end += sprintf(end, "{\"num_hidden_layers\": 256, \"compress_ratios\": [1");
    for (int i = 1; i < 272; i++)
        end += sprintf(end, ", 9");
    end += sprintf(end, "], \"num_nextn_predict_layers\": ");
    strcpy(end, "0}");
    assert_accepted(changes);
    strcpy(end, "1}");
    assert_refused(changes, -SL_EFORMAT, "\"num_hidden_layers\"");
    strcpy(end, "16}");
    assert_refused(changes, -SL_EFORMAT, "\"num_hidden_layers\"");
}

static void test_values_arrive(void **state)
{
    static const uint32_t ratios[] = {0, 4, 128, 4, 0};
    struct sl_config c;
    struct sl_err err;
    const uint32_t *sizes = &c.vocab_size;
    /* in the order of struct sl_config */
    static const uint32_t expected[] = {1024, 0,  1,   256, 4,  2,  1, 4,   128, 64, 128,    2,
                                        128,  16, 128, 8,   16, 24, 6, 384, 4,   20, 1048576};

    (void)state;
    assert_int_equal(parse(sound_text, strlen(sound_text), &c, &err), 0);
    for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++)
        assert_int_equal(sizes[i], expected[i]);
    assert_int_equal((char *)&c.max_position_embeddings - (char *)sizes,
                     sizeof(expected) - sizeof(expected[0]));
    assert_memory_equal(c.compress_ratios, ratios, sizeof(ratios));
    assert_true(c.routed_scaling_factor == 1.5f && c.swiglu_limit == 7.5f);
    assert_true(c.hc_eps == 1e-6f && c.rms_norm_eps == 1e-5f);
    assert_true(c.rope_theta == 10000 && c.compress_rope_theta == 160000);
    assert_true(c.rope_scaling.factor == 16);
    assert_true(c.rope_scaling.beta_fast == 32 && c.rope_scaling.beta_slow == 1);
    assert_int_equal(c.rope_scaling.original_max_position_embeddings, 65536);
    assert_int_equal(sl_config_group_cols(&c), 256);
}

static void test_expert_dtype(void **state)
{
    static const struct {
        const char *changes;
        enum sl_expert_dtype dtype;
        bool named;
    } cases[] = {{"{\"expert_dtype\": \"fp4\"}", SL_EXPERT_FP4, true},
                 {"{\"expert_dtype\": \"fp8\"}", SL_EXPERT_FP8, true},
                 {"{\"expert_dtype\": null}", SL_EXPERT_FP4, false},
                 {"{\"expert_dtype\": \"absent\"}", SL_EXPERT_FP4, false}};
    struct sl_config config;
    struct sl_err err;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(parse_changed(cases[i].changes, &config, &err), 0);
        assert_int_equal(config.expert_dtype, cases[i].dtype);
        assert_int_equal(config.names_expert_dtype, cases[i].named);
    }
}

static void test_text_that_is_no_config(void **state)
{
    static const char *const bad[] = {"",
                                      "[]",
                                      "null",
                                      "1",
                                      "\"x\"",
                                      "{",
                                      "{}",
                                      "{\"hidden_size\"",
                                      "{\"a\": 1} x",
                                      "{\"a\": 1, \"a\": 1}",
                                      "{\"a\": 1e999}",
                                      "{\"vocab_size\": 99999999999999999999}",
                                      "\xff\xfe"};
    struct sl_config config;
    struct sl_err err;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(parse(bad[i], strlen(bad[i]), &config, &err), -SL_EFORMAT);
    for (size_t length = 0; length < strlen(sound_text); length++)
        assert_int_equal(parse(sound_text, length, &config, &err), -SL_EFORMAT);
}

/* Any byte changed, or a run of them taken out or doubled: refused with a message, or sound. */
static void test_damaged_text(void **state)
{
    char text[2 * sizeof(sound_text)];
    const size_t length = strlen(sound_text);
    struct rng rng = {inputs_seed()};
    struct sl_config config;
    struct sl_err err;
    size_t n_accepted = 0;

    (void)state;
    for (int i = 0; i < 6000; i++) {
        size_t from = rng_below(&rng, length), n = 1 + rng_below(&rng, 6), total = length;

        n = n < length - from ? n : length - from;
        memcpy(text, sound_text, length);
        switch (i % 3) {
        case 0:
            text[from] = i % 2 ? (char)('0' + rng_below(&rng, 10)) : (char)rng_below(&rng, 256);
            break;
        case 1:
            memmove(text + from, text + from + n, length - from - n);
            total -= n;
            break;
        default:
            memmove(text + from + n, text + from, length - from);
            total += n;
            break;
        }
        n_accepted += parse(text, total, &config, &err) == 0;
    }
    assert_in_range(n_accepted, 100, 5900);
}

static void test_no_memory(void **state)
{
    struct sl_config config;
    struct sl_err err;
    int rc = -ENOMEM;

    (void)state;
    if (!fault_alloc_works())
        skip();
    for (uint64_t nth = 1; rc < 0; nth++) {
        int64_t live_count = fault_alloc_live_count();

        fault_alloc_set(nth, nth % 2);
        rc = sl_config_parse(&config, sound_text, strlen(sound_text), "config", &err);
        assert_int_equal(fault_alloc_happened(), rc < 0);
        fault_alloc_set(0, false);
        assert_int_equal(fault_alloc_live_count(), live_count);
        /* jansson does not always say that memory was what it lacked */
        assert_true(rc == 0 || rc == -ENOMEM || rc == -SL_EFORMAT);
    }
}

static void test_files(void **state)
{
    const char *parent = getenv("TMPDIR");
    char folder[4096], path[4200];
    struct sl_config config;
    struct sl_err err;
    FILE *file;

    (void)state;
    snprintf(folder, sizeof(folder), "%s/sluice-config-XXXXXX", parent ? parent : "/tmp");
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/config.json", folder);
    assert_int_equal(sl_config_read(&config, folder, &err), -ENOENT);
    assert_non_null(strstr(err.message, folder)); /* an empty one is named itself */
    file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fputs(sound_text, file) < 0, 0);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(sl_config_read(&config, folder, &err), 0);
    config_check_sound(&config);
    assert_int_equal(truncate(path, (off_t)strlen(sound_text) / 2), 0);
    assert_int_equal(sl_config_read(&config, folder, &err), -SL_EFORMAT);
    assert_non_null(strstr(err.message, path));
    assert_int_equal(truncate(path, (off_t)1 << 30), 0);
    assert_int_equal(sl_config_read(&config, folder, &err), -SL_EFORMAT);
    assert_non_null(strstr(err.message, path));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_true(sl_config_read(&config, folder, &err) < 0);
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(rmdir(folder), 0);
}

/* The released models' and the made-up ones, where the tests run in the source tree. */
static void test_configs_of_the_tree(void **state)
{
    static const char folder[] = "tests/oracle/configs";
    DIR *list = opendir(folder);
    struct dirent *entry;
    size_t n_configs = 0;

    (void)state;
    if (!list)
        skip();
    while ((entry = readdir(list))) {
        char path[512], *text;
        struct sl_config config;
        struct sl_err err;
        size_t length;

        if (!strstr(entry->d_name, ".json"))
            continue;
        snprintf(path, sizeof(path), "%s/%s", folder, entry->d_name);
        assert_int_equal(sl_file_read_all(path, 1 << 20, &text, &length, NULL), 0);
        if (parse(text, length, &config, &err) != 0)
            fail_msg("%s: %s", path, err.message);
        if (config.unknown_keys[0])
            fail_msg("%s: unknown: %s", path, config.unknown_keys);
        free(text);
        n_configs++;
    }
    closedir(list);
    assert_true(n_configs >= 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_arrive),
        cmocka_unit_test(test_integers),
        cmocka_unit_test(test_expert_dtype),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_what_may_be_absent),
        cmocka_unit_test(test_dspark),
        cmocka_unit_test(test_another_kind_of_model),
        cmocka_unit_test(test_model_type),
        cmocka_unit_test(test_unknown_keys),
        cmocka_unit_test(test_newer_spelling),
        cmocka_unit_test(test_contradictions),
        cmocka_unit_test(test_relations),
        cmocka_unit_test(test_compress_ratios),
        cmocka_unit_test(test_most_layers),
        cmocka_unit_test(test_text_that_is_no_config),
        cmocka_unit_test(test_damaged_text),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_configs_of_the_tree),
    };

    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
