#include "daemon/engine/model_check.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "core/base/size.h"

/* A tensor of the files that is not loaded with the dense weights. */
struct tensor {
    const char *name;
    const char *file;
    struct sl_err *err;
};

enum { UNUSED, IN_USE };

static bool begins(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

static bool ends(const char *text, const char *suffix)
{
    const size_t length = strlen(text), n = strlen(suffix);

    return length >= n && strcmp(text + length - n, suffix) == 0;
}

static int misplaced(const struct tensor *tensor, const char *key, unsigned long long value)
{
    return sl_err_set(tensor->err, -SL_EFORMAT,
                      "%s: there is a tensor %s, but \"%s\" in config.json is %llu%s", tensor->file,
                      tensor->name, key, value,
                      strcmp(key, "compress_ratios") == 0 ? " for this layer" : "");
}

static int check_expert(const struct tensor *tensor, const struct sl_config *config,
                        const char *rest)
{
    static const char *const parts[] = {".w1.weight", ".w1.scale",  ".w2.weight",
                                        ".w2.scale",  ".w3.weight", ".w3.scale"};
    char *end;
    unsigned long expert = strtoul(rest, &end, 10);

    if (end == rest || *end != '.')
        return UNUSED;
    if (expert >= config->n_routed_experts)
        return misplaced(tensor, "n_routed_experts", config->n_routed_experts);
    for (size_t i = 0; i < SL_ARRAY_LEN(parts); i++)
        if (strcmp(end, parts[i]) == 0)
            return IN_USE;
    return UNUSED;
}

/* `rest` is the name within the layer. */
static int check_in_layer(const struct tensor *tensor, const struct sl_config *config,
                          uint32_t layer_index, const char *rest)
{
    const uint32_t ratio = config->compress_ratios[layer_index];

    if (begins(rest, "attn.compressor.") && ratio == 0)
        return misplaced(tensor, "compress_ratios", ratio);
    if (begins(rest, "attn.indexer.") && ratio != SL_CSA_RATIO)
        return misplaced(tensor, "compress_ratios", ratio);
    if (strcmp(rest, "ffn.gate.tid2eid") == 0 || strcmp(rest, "ffn.gate.bias") == 0)
        return misplaced(tensor, "num_hash_layers", config->num_hash_layers);
    if (begins(rest, "ffn.experts."))
        return check_expert(tensor, config, rest + strlen("ffn.experts."));
    return UNUSED;
}

static int check_tensor(const struct tensor *tensor, const struct sl_config *config,
                        uint32_t n_draft_blocks)
{
    const char *name = tensor->name, *digits = name + strlen("layers.");
    const bool in_layer = begins(name, "layers.");
    char *end = NULL;
    int rc = UNUSED;

    if (begins(name, "mtp.")) {
        unsigned long block = strtoul(name + strlen("mtp."), &end, 10);

        /* In use, or left aside with the whole draft, which is said elsewhere. */
        return end > name + strlen("mtp.") && *end == '.' && block < n_draft_blocks ? IN_USE
                                                                                    : UNUSED;
    }
    if (in_layer) {
        unsigned long layer = strtoul(digits, &end, 10);

        if (end > digits && *end == '.') {
            if (layer >= config->num_hidden_layers)
                return misplaced(tensor, "num_hidden_layers", config->num_hidden_layers);
            rc = check_in_layer(tensor, config, (uint32_t)layer, end + 1);
        }
    }
    if (rc == UNUSED && ends(name, ".bias") &&
        (in_layer || begins(name, "embed.") || begins(name, "head.") || begins(name, "norm.")))
        return sl_err_set(tensor->err, -SL_EUNSUPPORTED,
                          "%s: there is a tensor %s; this engine runs without biases there",
                          tensor->file, name);
    return rc;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static uint32_t tensor_count(const struct sl_model_files *files)
{
    return files->store ? sl_store_model(files->store)->n_tensors
                        : sl_checkpoint_tensor_count(files->checkpoint);
}

static struct tensor tensor_at(const struct sl_model_files *files, uint32_t i, struct sl_err *err)
{
    const struct sl_checkpoint_tensor *tensor;

    if (files->store)
        return (struct tensor){sl_store_tensor(files->store, i)->name,
                               sl_store_folder(files->store), err};
    tensor = sl_checkpoint_tensor_at(files->checkpoint, i);
    return (struct tensor){tensor->name,
                           sl_checkpoint_file_path(files->checkpoint, tensor->file_index), err};
}

int sl_model_check(const struct sl_model_files *files, const struct sl_config *config,
                   const struct sl_dense_list *dense, struct sl_unused_tensors *ret_unused,
                   struct sl_err *err)
{
    const struct sl_draft draft = sl_draft_find(config, sl_model_files_weights(files, false));
    const uint32_t n_draft_blocks = sl_draft_blocks_known(&draft, config);
    struct sl_unused_tensors unused = {0};
    char **sorted = malloc((dense->n_names + 1) * sizeof(*sorted));
    int rc = 0;

    if (!sorted)
        return sl_err_set(err, -ENOMEM, "list of tensors: out of memory");
    memcpy(sorted, dense->names, dense->n_names * sizeof(*sorted));
    qsort(sorted, dense->n_names, sizeof(*sorted), compare_names);
    for (uint32_t i = 0; rc >= 0 && i < tensor_count(files); i++) {
        const struct tensor tensor = tensor_at(files, i, err);

        if (bsearch(&tensor.name, sorted, dense->n_names, sizeof(*sorted), compare_names))
            continue;
        rc = check_tensor(&tensor, config, n_draft_blocks);
        if (rc == UNUSED && unused.n++ == 0)
            unused.first = tensor.name;
    }
    free(sorted);
    if (rc < 0)
        return rc;
    *ret_unused = unused;
    return 0;
}
