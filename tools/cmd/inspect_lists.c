#include "tools/cmd/inspect_lists.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/json.h"
#include "core/model/weights.h"
#include "storage/checkpoint/safetensors.h"
#include "tools/cli/json_lines.h"

static const char *base_name(const char *path)
{
    return strrchr(path, '/') + 1; /* a model's paths are folder/name */
}

/* ---- tensors -----------------------------------------------------------------------------------
 */

struct tensor_row {
    const char *name;
    const struct sl_tensor_info *info;
    const char *path;
    uint64_t offset_bytes;
    uint64_t size_bytes;
};

static void print_tensor(const struct tensor_row *row, bool json)
{
    char text[SL_TENSOR_TEXT_BYTES];
    json_t *shape;

    if (!json) {
        printf("%-44s %-24s %s %llu %llu\n", row->name, sl_tensor_format(row->info, text),
               base_name(row->path), (unsigned long long)row->offset_bytes,
               (unsigned long long)row->size_bytes);
        return;
    }
    shape = json_array();
    for (uint32_t i = 0; i < row->info->n_dims && i < SL_TENSOR_DIMS_MAX; i++)
        json_array_append_new(shape, json_integer((json_int_t)row->info->shape[i]));
    sl_json_line_print(json_pack(
        "{s:s, s:s, s:o, s:s, s:I, s:I}", "name", row->name, "dtype",
        sl_tensor_dtype_name(row->info), "shape", shape, "file", base_name(row->path),
        "offset_bytes", (json_int_t)row->offset_bytes, "bytes", (json_int_t)row->size_bytes));
}

void sl_inspect_tensors(const struct sl_model_files *files, bool json)
{
    const struct sl_store *store = files->store;
    const uint32_t n =
        store ? sl_store_model(store)->n_tensors : sl_checkpoint_tensor_count(files->checkpoint);

    if (!json)
        printf("# name  dtype [shape]  file  offset  bytes\n");
    for (uint32_t i = 0; i < n; i++) {
        struct tensor_row row;

        if (store) {
            const struct sl_store_tensor *tensor = sl_store_tensor(store, i);

            row = (struct tensor_row){tensor->name, &tensor->info,
                                      sl_store_file_path(store, tensor->extent.file_index),
                                      tensor->extent.offset_bytes, tensor->extent.size_bytes};
        } else {
            const struct sl_checkpoint_tensor *tensor =
                sl_checkpoint_tensor_at(files->checkpoint, i);

            row =
                (struct tensor_row){tensor->name, &tensor->info,
                                    sl_checkpoint_file_path(files->checkpoint, tensor->file_index),
                                    tensor->offset_bytes, tensor->info.size_bytes};
        }
        print_tensor(&row, json);
    }
}

/* ---- experts -----------------------------------------------------------------------------------
 */

struct layer_summary {
    uint32_t reads_min, reads_max; /* for one expert */
    uint64_t wanted_bytes; /* of one expert: the same for all but compressed ones, then the most */
    uint64_t read_bytes_max;
};

/* Returns the bytes of one expert as it is stored. */
static uint64_t wanted_bytes(const struct sl_expert_map *store, struct sl_expert_key key)
{
    const struct sl_checkpoint_expert *record = sl_expert_map_find(store, key);
    uint64_t bytes = 0;

    if (!record)
        return sl_packed_expert_stored_bytes(sl_expert_map_find_packed(store, key));
    for (uint32_t m = 0; m < SL_EXPERT_MATRICES; m++)
        bytes += record->codes[m].size_bytes + record->scales[m].size_bytes;
    return bytes;
}

/* Sets used[file_index] for every file that holds a part of the layer's experts. */
static struct layer_summary summarize(const struct sl_expert_map *store, uint32_t layer_index,
                                      bool *used)
{
    struct layer_summary summary = {.reads_min = UINT32_MAX};
    uint32_t n_experts = sl_expert_map_shape(store)->n_routed_experts;

    for (uint32_t e = 0; e < n_experts; e++) {
        const struct sl_expert_key key = {(uint16_t)layer_index, (uint16_t)e};
        struct sl_extent reads[SL_EXPERT_READS_MAX];
        uint32_t count = sl_expert_map_reads(store, key, reads);
        uint64_t read_bytes = 0;

        if (wanted_bytes(store, key) > summary.wanted_bytes)
            summary.wanted_bytes = wanted_bytes(store, key);
        for (uint32_t i = 0; i < count; i++) {
            read_bytes += reads[i].size_bytes;
            used[reads[i].file_index] = true;
        }
        summary.reads_min = count < summary.reads_min ? count : summary.reads_min;
        summary.reads_max = count > summary.reads_max ? count : summary.reads_max;
        if (read_bytes > summary.read_bytes_max)
            summary.read_bytes_max = read_bytes;
    }
    return summary;
}

static void print_text(const struct sl_expert_map *store, const char *layer,
                       const struct layer_summary *summary, const bool *used)
{
    const char *separator = "";
    char reads[24];

    if (summary->reads_min == summary->reads_max)
        snprintf(reads, sizeof(reads), "%u", summary->reads_min);
    else
        snprintf(reads, sizeof(reads), "%u-%u", summary->reads_min, summary->reads_max);
    printf("%-7s %7u %12llu %5s %12llu  ", layer, sl_expert_map_shape(store)->n_routed_experts,
           (unsigned long long)summary->wanted_bytes, reads,
           (unsigned long long)summary->read_bytes_max);
    for (uint32_t i = 0; i < sl_expert_map_file_count(store); i++) {
        if (!used[i])
            continue;
        printf("%s%s", separator, base_name(sl_expert_map_file_path(store, i)));
        separator = ",";
    }
    putchar('\n');
}

static void print_json(const struct sl_expert_map *store, const char *layer,
                       const struct layer_summary *summary, const bool *used)
{
    json_t *names = json_array();

    for (uint32_t i = 0; i < sl_expert_map_file_count(store); i++)
        if (used[i])
            json_array_append_new(names, json_string(base_name(sl_expert_map_file_path(store, i))));
    sl_json_line_print(json_pack("{s:s, s:i, s:I, s:i, s:i, s:I, s:o}", "layer", layer, "experts",
                                 (int)sl_expert_map_shape(store)->n_routed_experts, "expert_bytes",
                                 (json_int_t)summary->wanted_bytes, "reads_min",
                                 (int)summary->reads_min, "reads_max", (int)summary->reads_max,
                                 "read_bytes", (json_int_t)summary->read_bytes_max, "files",
                                 names));
}

static void print_layer(const struct sl_expert_map *store, uint32_t layer_index, bool *used,
                        bool json)
{
    const struct sl_expert_shape *shape = sl_expert_map_shape(store);
    struct layer_summary summary;
    char layer[24];

    memset(used, 0, sl_expert_map_file_count(store) * sizeof(*used));
    summary = summarize(store, layer_index, used);
    if (layer_index < shape->num_hidden_layers)
        snprintf(layer, sizeof(layer), "%u", layer_index);
    else
        snprintf(layer, sizeof(layer), "mtp.%u", layer_index - shape->num_hidden_layers);
    if (json)
        print_json(store, layer, &summary, used);
    else
        print_text(store, layer, &summary, used);
}

int sl_inspect_experts(const struct sl_model_files *files, const struct sl_config *config,
                       bool json, struct sl_err *err)
{
    const struct sl_draft draft = sl_draft_find(config, sl_model_files_weights(files, false));
    const struct sl_expert_shape shape = sl_expert_shape_of(config, draft.n_blocks);
    struct sl_expert_map *store;
    bool *used;
    int rc;

    rc = sl_model_files_experts(files, &shape, &store, err);
    if (rc < 0)
        return rc;
    used = calloc(sl_expert_map_file_count(store), sizeof(*used));
    if (used) {
        if (!json)
            printf("# layer experts bytes/expert reads   bytes read  files\n");
        for (uint32_t i = 0; i < shape.num_hidden_layers + shape.n_mtp_layers; i++)
            print_layer(store, i, used, json);
    } else {
        rc = sl_err_set(err, -ENOMEM, "expert list: out of memory");
    }
    free(used);
    sl_expert_map_close(store);
    return rc;
}
