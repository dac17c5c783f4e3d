/* The newer spelling of some keys, brought back to the official one before config.c reads it. */
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "core/model/config.h"
#include "core/model/config_keys.h"
#include "core/base/size.h"

struct speller {
    json_t *root;
    const char *where;
    struct sl_err *err;
};

static const json_t *given(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);

    return json_is_null(value) ? NULL : value;
}

static int broken(const struct speller *in, const char *key, const char *relation)
{
    return sl_err_set(in->err, -SL_EFORMAT, "%s: \"%s\" %s", in->where, key, relation);
}

static int contradiction(const struct speller *in, const char *newer, const char *key)
{
    return sl_err_set(in->err, -SL_EFORMAT, "%s: \"%s\" and \"%s\" contradict each other",
                      in->where, newer, key);
}

/* Takes `value` over, which it frees. */
static int set(const struct speller *in, const char *key, json_t *value)
{
    if (json_object_set_new(in->root, key, value) < 0)
        return sl_err_set(in->err, -ENOMEM, "%s: out of memory", in->where);
    return 0;
}

/* The number that `newer` says is the official key's. NULL says nothing. */
static int settle(const struct speller *in, const char *newer, const json_t *value, const char *key)
{
    const json_t *official = given(in->root, key);

    if (!value)
        return 0;
    if (!json_is_number(value))
        return broken(in, newer, "is not a number");
    if (!official)
        return set(in, key, json_deep_copy(value));
    if (json_number_value(official) != json_number_value(value))
        return contradiction(in, newer, key);
    return 0;
}

/* ---- rotary embedding --------------------------------------------------------------------------
 */

/* head_dim times the factor are rotary. */
static int settle_rope_dim(const struct speller *in, const json_t *object)
{
    const json_t *factor = given(object, "partial_rotary_factor");
    const json_t *official = given(in->root, "qk_rope_head_dim");
    double dim =
        json_number_value(factor) * json_number_value(json_object_get(in->root, "head_dim"));

    if (!factor)
        return 0;
    if (!json_is_number(factor) || !(dim >= 1 && dim <= 65536) || fabs(dim - rint(dim)) > 1e-3)
        return broken(in, "partial_rotary_factor", "gives no whole number of \"head_dim\"");
    if (!official)
        return set(in, "qk_rope_head_dim", json_integer((json_int_t)rint(dim)));
    if (json_number_value(official) != rint(dim))
        return contradiction(in, "partial_rotary_factor", "qk_rope_head_dim");
    return 0;
}

/* Without a type, rope_scaling means YaRN; the newer objects mean nothing, and so must not have a
 * factor. */
static int is_yarn(const struct speller *in, const json_t *object, const char *name,
                   bool *ret_is_yarn)
{
    const char *type = json_string_value(json_object_get(object, "type"));
    const char *rope_type = json_string_value(json_object_get(object, "rope_type"));
    const bool official = strcmp(name, "rope_scaling") == 0;

    if (type && rope_type && strcmp(type, rope_type) != 0)
        return contradiction(in, "rope_type", "type");
    type = type ? type : rope_type;
    if (!type && !official && given(object, "factor"))
        return broken(in, name, "has a \"factor\" and no \"rope_type\"");
    *ret_is_yarn = type ? strcmp(type, "yarn") == 0 : official;
    return 0;
}

static int settle_scaling(const struct speller *in, const json_t *compress, const char *name)
{
    static const char *const keys[] = {"factor", "beta_fast", "beta_slow",
                                       "original_max_position_embeddings"};
    const json_t *official = given(in->root, "rope_scaling");
    bool newer_yarn, official_yarn;
    int rc = is_yarn(in, compress, name, &newer_yarn);

    if (rc < 0)
        return rc;
    if (!official)
        return newer_yarn ? set(in, "rope_scaling", json_deep_copy(compress)) : 0;
    rc = is_yarn(in, official, "rope_scaling", &official_yarn);
    if (rc < 0)
        return rc;
    if (newer_yarn != official_yarn)
        return contradiction(in, name, "rope_scaling");
    for (size_t i = 0; newer_yarn && i < SL_ARRAY_LEN(keys); i++)
        if (json_number_value(json_object_get(compress, keys[i])) !=
            json_number_value(json_object_get(official, keys[i])))
            return contradiction(in, name, "rope_scaling");
    return 0;
}

/* Layers without compression, which are never scaled. */
static int respell_plain(const struct speller *in, const json_t *plain, const char *name)
{
    bool yarn;
    int rc = is_yarn(in, plain, name, &yarn);

    if (rc < 0)
        return rc;
    if (yarn)
        return sl_err_set(in->err, -SL_EUNSUPPORTED,
                          "%s: \"%s\" scales the layers without compression; this engine runs "
                          "\"default\" there only",
                          in->where, name);
    rc = settle_rope_dim(in, plain);
    return rc < 0 ? rc : settle(in, name, given(plain, "rope_theta"), "rope_theta");
}

static int respell_compress(const struct speller *in, const json_t *compress, const char *name)
{
    int rc = settle_rope_dim(in, compress);

    if (rc == 0)
        rc = settle(in, name, given(compress, "rope_theta"), "compress_rope_theta");
    return rc < 0 ? rc : settle_scaling(in, compress, name);
}

/* One object for both kinds of layers: the base of the one, the scaling of the other. */
static int respell_flat(const struct speller *in, const json_t *flat, const char *name)
{
    int rc = settle_rope_dim(in, flat);

    if (rc == 0)
        rc = settle(in, name, given(flat, "rope_theta"), "rope_theta");
    return rc < 0 ? rc : settle_scaling(in, flat, name);
}

/* The three forms that rope_parameters has had: both kinds of layers in it; the uncompressed ones'
 * alone, beside compress_rope_parameters; rope_scaling under another name. */
static int respell_parameters(const struct speller *in)
{
    const json_t *parameters = given(in->root, "rope_parameters");
    const json_t *apart = given(in->root, "compress_rope_parameters");
    const json_t *plain = given(parameters, "main"), *compress = given(parameters, "compress");
    int rc = 0;

    if (parameters && !json_is_object(parameters))
        return broken(in, "rope_parameters", "is not an object");
    if (apart && (!json_is_object(apart) || plain || compress))
        return broken(in, "compress_rope_parameters",
                      "is not an object beside a flat \"rope_parameters\"");
    if ((plain || compress) && (!json_is_object(plain) || !json_is_object(compress)))
        return broken(in, "rope_parameters", "needs both objects, \"main\" and \"compress\"");
    if (plain) {
        rc = respell_plain(in, plain, "rope_parameters.main");
        return rc < 0 ? rc : respell_compress(in, compress, "rope_parameters.compress");
    }
    if (apart) {
        rc = parameters ? respell_plain(in, parameters, "rope_parameters") : 0;
        return rc < 0 ? rc : respell_compress(in, apart, "compress_rope_parameters");
    }
    return parameters ? respell_flat(in, parameters, "rope_parameters") : 0;
}

/* Afterwards rope_scaling is there if YaRN is meant, and not otherwise. */
static int respell_rope(const struct speller *in)
{
    const json_t *scaling = given(in->root, "rope_scaling");
    bool yarn = false;
    int rc;

    if (scaling && !json_is_object(scaling))
        return broken(in, "rope_scaling", "is not an object");
    if (scaling && ((rc = is_yarn(in, scaling, "rope_scaling", &yarn)) < 0 ||
                    (rc = respell_flat(in, scaling, "rope_scaling")) < 0))
        return rc;
    rc = respell_parameters(in);
    if (rc == 0 && scaling && !yarn)
        json_object_del(in->root, "rope_scaling");
    return rc;
}

/* ---- kinds of layers ---------------------------------------------------------------------------
 */

/* How many tokens one entry stands for, of the layers that compress most; 0: not said. */
static int heavy_rate(const struct speller *in, json_int_t *ret_rate)
{
    const json_t *rates = given(in->root, "compress_rates");
    const json_t *values[2][2] = {
        {given(rates, "compressed_sparse_attention"), given(in->root, "compress_rate_csa")},
        {given(rates, "heavily_compressed_attention"), given(in->root, "compress_rate_hca")}};
    json_int_t rate;

    *ret_rate = 0;
    for (int kind = 0; kind < 2; kind++) {
        for (int i = 0; i < 2; i++) {
            if (!values[kind][i])
                continue;
            rate = json_integer_value(values[kind][i]);
            if (kind == 0 && rate != SL_CSA_RATIO)
                return sl_err_set(in->err, -SL_EUNSUPPORTED,
                                  "%s: \"%s\" gives compressed_sparse_attention another rate than "
                                  "4; this engine runs 4 only",
                                  in->where, i == 0 ? "compress_rates" : "compress_rate_csa");
            if (kind == 1 && (rate < 1 || rate == SL_CSA_RATIO || (*ret_rate && *ret_rate != rate)))
                return broken(in, i == 0 ? "compress_rates" : "compress_rate_hca",
                              "has no rate for heavily_compressed_attention that can be used");
            if (kind == 1)
                *ret_rate = rate;
        }
    }
    if (rates && !json_is_object(rates))
        return broken(in, "compress_rates", "is not an object");
    return 0;
}

/* The ratio of a layer of this type; -1 if there is no such type. `heavy` may be 0. */
static json_int_t type_ratio(const char *type, json_int_t heavy)
{
    if (type && strcmp(type, "sliding_attention") == 0)
        return 0;
    if (type && strcmp(type, "compressed_sparse_attention") == 0)
        return SL_CSA_RATIO;
    return type && strcmp(type, "heavily_compressed_attention") == 0 ? heavy : -1;
}

static bool is_heavy(json_int_t ratio)
{
    return ratio != 0 && ratio != SL_CSA_RATIO;
}

/* The list of ratios that is there, against types (may be NULL) and the rate (may be 0). */
static int compare_ratios(const struct speller *in, const json_t *types, json_int_t heavy)
{
    const json_t *ratios = json_object_get(in->root, "compress_ratios");
    const json_int_t n_layers = json_integer_value(json_object_get(in->root, "num_hidden_layers"));

    for (size_t i = 0; i < json_array_size(ratios) && (json_int_t)i < n_layers; i++) {
        const json_int_t ratio = json_integer_value(json_array_get(ratios, i));
        const char *type = json_string_value(json_array_get(types, i));
        const bool type_is_heavy = type && strcmp(type, "heavily_compressed_attention") == 0;

        if (heavy && is_heavy(ratio) && ratio != heavy)
            return contradiction(in, "compress_rates", "compress_ratios");
        if (types && (type_is_heavy ? !is_heavy(ratio) : ratio != type_ratio(type, 0)))
            return contradiction(in, "layer_types", "compress_ratios");
    }
    return 0;
}

static int respell_ratios(const struct speller *in)
{
    const json_t *types = given(in->root, "layer_types");
    const json_t *n_layers = json_object_get(in->root, "num_hidden_layers");
    json_int_t heavy;
    json_t *ratios;
    int rc = heavy_rate(in, &heavy);

    if (rc < 0)
        return rc;
    if (types && (!json_is_array(types) ||
                  (json_is_integer(n_layers) &&
                   json_integer_value(n_layers) != (json_int_t)json_array_size(types))))
        return broken(in, "layer_types", "is not a list of num_hidden_layers types");
    for (size_t i = 0; i < json_array_size(types); i++)
        if (type_ratio(json_string_value(json_array_get(types, i)), heavy) < 0)
            return broken(in, "layer_types", "has a type of layer that is not known");
    if (!types || given(in->root, "compress_ratios"))
        return compare_ratios(in, types, heavy);
    ratios = json_array();
    for (size_t i = 0; i < json_array_size(types); i++) {
        const char *type = json_string_value(json_array_get(types, i));

        if (!heavy && strcmp(type, "heavily_compressed_attention") == 0) {
            json_decref(ratios);
            return broken(
                in, "compress_rates",
                "is missing, the rate of the heavily_compressed_attention in layer_types");
        }
        json_array_append_new(ratios, json_integer(type_ratio(type, heavy)));
    }
    if (json_array_size(ratios) != json_array_size(types)) {
        json_decref(ratios);
        return sl_err_set(in->err, -ENOMEM, "%s: out of memory", in->where);
    }
    return set(in, "compress_ratios", ratios);
}

/* Hash-routed layers come first, so that their number says it all. */
static int respell_routing(const struct speller *in)
{
    const json_t *types = given(in->root, "mlp_layer_types");
    const json_t *n_layers = json_object_get(in->root, "num_hidden_layers");
    const json_t *official = given(in->root, "num_hash_layers");
    size_t n_hash = 0, length = json_array_size(types);

    if (!types)
        return 0;
    if (!json_is_array(types) ||
        (json_is_integer(n_layers) && json_integer_value(n_layers) != (json_int_t)length))
        return broken(in, "mlp_layer_types", "is not a list of num_hidden_layers types");
    for (size_t i = 0; i < length; i++) {
        const char *type = json_string_value(json_array_get(types, i));
        const bool hash = type && strcmp(type, "hash_moe") == 0;

        if (!type || (!hash && strcmp(type, "moe") != 0) || (hash && n_hash < i))
            return broken(in, "mlp_layer_types", "is not \"hash_moe\" first and then \"moe\"");
        n_hash += hash;
    }
    if (!official)
        return set(in, "num_hash_layers", json_integer((json_int_t)n_hash));
    if (json_number_value(official) != (double)n_hash)
        return contradiction(in, "mlp_layer_types", "num_hash_layers");
    return 0;
}

/* Sizes that follow from others in V4, and have keys of their own elsewhere. */
static int compare_sizes(const struct speller *in)
{
    const double head_dim = json_number_value(json_object_get(in->root, "head_dim"));
    const double rope_dim = json_number_value(json_object_get(in->root, "qk_rope_head_dim"));
    const double experts = json_number_value(json_object_get(in->root, "n_routed_experts"));
    const struct {
        const char *newer, *key;
        double value;
    } sizes[] = {
        {"kv_lora_rank", "head_dim", head_dim},
        {"v_head_dim", "head_dim", head_dim},
        {"qk_nope_head_dim", "head_dim", head_dim - rope_dim},
        {"num_local_experts", "n_routed_experts", experts},
    };

    for (size_t i = 0; i < SL_ARRAY_LEN(sizes); i++) {
        const json_t *value = given(in->root, sizes[i].newer);

        if (value && json_number_value(value) != sizes[i].value)
            return contradiction(in, sizes[i].newer, sizes[i].key);
    }
    return 0;
}

int sl_config_respell(json_t *root, const char *where, struct sl_err *err)
{
    const struct speller in = {root, where, err};
    int rc;

    if ((rc = settle_rope_dim(&in, root)) < 0 || (rc = respell_rope(&in)) < 0 ||
        (rc = respell_ratios(&in)) < 0 || (rc = respell_routing(&in)) < 0)
        return rc;
    return compare_sizes(&in);
}
