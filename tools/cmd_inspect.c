/* sluice inspect: what a checkpoint folder holds and where. Reads headers only. */
#include <argp.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/json.h"
#include "core/kernels/r16.h"
#include "storage/checkpoint.h"
#include "storage/expert_store.h"
#include "storage/safetensors.h"
#include "tools/commands.h"

#define CONFIG_BYTES_MAX (UINT64_C(16) << 20)

struct arguments {
    const char *model;
    bool tensors;
    bool experts;
};

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct arguments *arguments = state->input;

    switch (key) {
    case 't':
        arguments->tensors = true;
        return 0;
    case 'e':
        arguments->experts = true;
        return 0;
    case ARGP_KEY_ARG:
        if (arguments->model)
            argp_error(state, "only one MODEL, please: \"%s\" is too many", arg);
        arguments->model = arg;
        return 0;
    case ARGP_KEY_END:
        if (!arguments->model)
            argp_error(state, "MODEL is missing");
        if (!arguments->tensors && !arguments->experts)
            argp_error(state, "say what to show: --tensors or --experts");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const char *base_name(const char *path)
{
    return strrchr(path, '/') + 1; /* a checkpoint's paths are folder/name */
}

static void print_tensors(const struct sl_checkpoint *checkpoint)
{
    char text[SL_TENSOR_TEXT_BYTES];

    printf("# name  dtype [shape]  file  offset  bytes\n");
    for (uint32_t i = 0; i < sl_checkpoint_tensor_count(checkpoint); i++) {
        const struct sl_checkpoint_tensor *tensor = sl_checkpoint_tensor_at(checkpoint, i);

        printf("%-44s %-24s %s %llu %llu\n", tensor->name, sl_tensor_format(&tensor->info, text),
               base_name(sl_checkpoint_file_path(checkpoint, tensor->file_index)),
               (unsigned long long)tensor->offset_bytes,
               (unsigned long long)tensor->info.size_bytes);
    }
}

static int read_shape(struct sl_expert_shape *ret_shape, const char *folder, struct sl_err *err)
{
    const struct {
        const char *key;
        uint32_t *value;
        uint32_t min, max, multiple;
    } keys[] = {
        {"num_hidden_layers", &ret_shape->num_hidden_layers, 1, 4096, 1},
        {"num_nextn_predict_layers", &ret_shape->n_mtp_layers, 0, 4096, 1},
        {"n_routed_experts", &ret_shape->n_routed_experts, 1, 65536, 1},
        {"hidden_size", &ret_shape->hidden_size, 1, 1u << 24, SL_FP4_GROUP_COLS},
        {"moe_intermediate_size", &ret_shape->moe_intermediate_size, 1, 1u << 24,
         SL_FP4_GROUP_COLS},
    };
    json_t *root = NULL;
    uint64_t value;
    char *path;
    int rc;

    if (asprintf(&path, "%s/config.json", folder) < 0)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", folder);
    rc = sl_json_read_file(&root, path, CONFIG_BYTES_MAX, err);
    for (size_t i = 0; rc == 0 && i < sizeof(keys) / sizeof(keys[0]); i++) {
        rc = sl_json_get_u64(root, keys[i].key, keys[i].min, keys[i].max, &value, path, err);
        if (rc == 0 && value % keys[i].multiple)
            rc = sl_err_set(err, -SL_EFORMAT, "%s: \"%s\" is %llu, expected a multiple of %u", path,
                            keys[i].key, (unsigned long long)value, keys[i].multiple);
        if (rc == 0)
            *keys[i].value = (uint32_t)value;
    }
    json_decref(root);
    free(path);
    return rc;
}

struct layer_summary {
    uint32_t reads_min, reads_max; /* for one expert */
    uint64_t wanted_bytes;         /* of one expert: the same for all */
    uint64_t read_bytes_max;
};

/* Sets used[file_index] for every file that holds a part of the layer's experts. */
static struct layer_summary summarize(const struct sl_expert_store *store, uint32_t layer_index,
                                      bool *used)
{
    struct layer_summary summary = {.reads_min = UINT32_MAX};
    uint32_t n_experts = sl_expert_store_shape(store)->n_routed_experts;

    for (uint32_t e = 0; e < n_experts; e++) {
        const struct sl_expert_record *record =
            sl_expert_store_find(store, (struct sl_expert_key){(uint16_t)layer_index, (uint16_t)e});
        struct sl_extent reads[SL_EXPERT_READS_MAX];
        uint32_t count = sl_expert_record_reads(record, reads);
        uint64_t read_bytes = 0;

        for (uint32_t i = 0; i < count; i++) {
            read_bytes += reads[i].size_bytes;
            used[reads[i].file_index] = true;
        }
        summary.reads_min = count < summary.reads_min ? count : summary.reads_min;
        summary.reads_max = count > summary.reads_max ? count : summary.reads_max;
        if (read_bytes > summary.read_bytes_max)
            summary.read_bytes_max = read_bytes;
        summary.wanted_bytes = 0;
        for (uint32_t m = 0; m < SL_EXPERT_MATRICES; m++)
            summary.wanted_bytes += record->codes[m].size_bytes + record->scales[m].size_bytes;
    }
    return summary;
}

static void print_layer(const struct sl_expert_store *store, uint32_t layer_index, bool *used)
{
    const struct sl_expert_shape *shape = sl_expert_store_shape(store);
    uint32_t file_count = sl_expert_store_file_count(store);
    struct layer_summary summary;
    char reads[24], layer[24];
    const char *separator = "";

    memset(used, 0, file_count * sizeof(*used));
    summary = summarize(store, layer_index, used);
    if (layer_index < shape->num_hidden_layers)
        snprintf(layer, sizeof(layer), "%u", layer_index);
    else
        snprintf(layer, sizeof(layer), "mtp.%u", layer_index - shape->num_hidden_layers);
    if (summary.reads_min == summary.reads_max)
        snprintf(reads, sizeof(reads), "%u", summary.reads_min);
    else
        snprintf(reads, sizeof(reads), "%u-%u", summary.reads_min, summary.reads_max);
    printf("%-7s %7u %12llu %5s %12llu  ", layer, shape->n_routed_experts,
           (unsigned long long)summary.wanted_bytes, reads,
           (unsigned long long)summary.read_bytes_max);
    for (uint32_t i = 0; i < file_count; i++) {
        if (!used[i])
            continue;
        printf("%s%s", separator, base_name(sl_expert_store_file_path(store, i)));
        separator = ",";
    }
    putchar('\n');
}

static int print_experts(struct sl_checkpoint *checkpoint, const char *folder, struct sl_err *err)
{
    struct sl_expert_store *store;
    struct sl_expert_shape shape;
    bool *used;
    int rc;

    rc = read_shape(&shape, folder, err);
    if (rc < 0)
        return rc;
    rc = sl_expert_store_open(&store, checkpoint, &shape, err);
    if (rc < 0)
        return rc;
    used = calloc(sl_expert_store_file_count(store), sizeof(*used));
    if (used) {
        printf("# layer experts bytes/expert reads   bytes read  files\n");
        for (uint32_t i = 0; i < shape.num_hidden_layers + shape.n_mtp_layers; i++)
            print_layer(store, i, used);
    } else {
        rc = sl_err_set(err, -ENOMEM, "%s: out of memory", folder);
    }
    free(used);
    sl_expert_store_close(store);
    return rc;
}

int sl_cmd_inspect(int argc, char **argv)
{
    static const struct argp_option options[] = {
        {"tensors", 't', NULL, 0, "list all tensors: name, dtype, shape, file, offset, bytes", 0},
        {"experts", 'e', NULL, 0,
         "list the layers' experts: number, bytes of one, reads it takes (as whole blocks, "
         "neighbours merged), bytes these read, files",
         0},
        {0}};
    static const struct argp argp = {
        .options = options,
        .parser = parse_option,
        .args_doc = "MODEL",
        .doc = "Shows what the checkpoint folder MODEL holds, without reading its data."};
    struct arguments arguments = {0};
    struct sl_checkpoint *checkpoint = NULL;
    struct sl_err err = {0};
    int rc;

    argp_err_exit_status = 2;
    argp_parse(&argp, argc, argv, 0, NULL, &arguments);
    rc = sl_checkpoint_open(&checkpoint, arguments.model, &err);
    if (rc == 0 && arguments.tensors)
        print_tensors(checkpoint);
    if (rc == 0 && arguments.experts)
        rc = print_experts(checkpoint, arguments.model, &err);
    sl_checkpoint_close(checkpoint);
    if (fflush(stdout) != 0 && rc == 0)
        rc = sl_err_set(&err, -errno, "cannot write the listing: %s", sl_strerror(errno));
    if (rc < 0)
        fprintf(stderr, "sluice: %s\n", err.message);
    return rc < 0 ? 1 : 0;
}
