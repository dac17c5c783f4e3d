/* For a checkpoint this is one flat table, filled by looking up every expert's six tensors by name:
 * Pro has 142,848 of them, its MTP block included. A store has such a table itself. */
#include "storage/experts/expert_map.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/size.h"
#include "core/kernels/r16.h"
#include "storage/checkpoint/checkpoint.h"
#include "storage/checkpoint/safetensors.h"
#include "storage/store/store.h"

#define NAME_BYTES 80

_Static_assert(SL_EXPERT_READS_MAX >= 2 * SL_EXPERT_MATRICES, "six extents are six reads at most");

struct sl_expert_map {
    struct sl_checkpoint *checkpoint; /* or store: one is NULL */
    const struct sl_store *store;
    struct sl_expert_shape shape;
    enum sl_dtype scale_dtype;            /* of a checkpoint */
    struct sl_checkpoint_expert *experts; /* (layers, experts) */
    uint16_t *in_order;                   /* (layers, experts) by where they lie */
};

static int find_extent(const struct sl_expert_map *map, const char *name, enum sl_dtype dtype,
                       uint64_t rows, uint64_t cols, struct sl_extent *ret_extent,
                       struct sl_err *err)
{
    const struct sl_tensor_info expected = {
        .dtype = dtype, .n_dims = 2, .shape = {rows, cols, 1, 1}};
    const struct sl_checkpoint_tensor *tensor = sl_checkpoint_find(map->checkpoint, name);
    char found_text[SL_TENSOR_TEXT_BYTES], expected_text[SL_TENSOR_TEXT_BYTES];
    struct sl_weight_source *weights = sl_checkpoint_weights(map->checkpoint);

    if (!tensor)
        return sl_err_set(err, -SL_EFORMAT, "%s: tensor \"%s\" is missing, expected %s",
                          weights->ops->where(weights, name), name,
                          sl_tensor_format(&expected, expected_text));
    if (tensor->info.dtype != dtype || tensor->info.n_dims != 2 || tensor->info.shape[0] != rows ||
        tensor->info.shape[1] != cols)
        return sl_err_set(err, -SL_EFORMAT, "%s: tensor \"%s\" is %s, expected %s",
                          sl_checkpoint_file_path(map->checkpoint, tensor->file_index), name,
                          sl_tensor_format(&tensor->info, found_text),
                          sl_tensor_format(&expected, expected_text));
    *ret_extent = (struct sl_extent){.offset_bytes = tensor->offset_bytes,
                                     .size_bytes = tensor->info.size_bytes,
                                     .file_index = tensor->file_index};
    return 0;
}

/* Names `part`, "weight" or "scale", of a matrix of an expert. */
static const char *tensor_name(const struct sl_expert_shape *shape, struct sl_expert_key key,
                               int matrix, const char *part, char name[NAME_BYTES])
{
    const bool is_mtp = key.layer_index >= shape->num_hidden_layers;

    snprintf(name, NAME_BYTES, "%s.%u.ffn.experts.%u.%s.%s", is_mtp ? "mtp" : "layers",
             key.layer_index - (is_mtp ? shape->num_hidden_layers : 0), key.expert_index,
             sl_expert_matrix_name(matrix), part);
    return name;
}

static int find_expert(const struct sl_expert_map *map, struct sl_expert_key key,
                       struct sl_err *err)
{
    const struct sl_expert_shape *shape = &map->shape;
    const bool fp8 = shape->expert_dtype == SL_EXPERT_FP8;
    struct sl_checkpoint_expert *expert =
        &map->experts[(size_t)key.layer_index * shape->n_routed_experts + key.expert_index];
    char name[NAME_BYTES];

    for (int m = 0; m < SL_EXPERT_MATRICES; m++) {
        const uint32_t rows = sl_expert_matrix_rows(shape, m);
        const uint32_t cols = sl_expert_matrix_cols(shape, m);
        int rc = find_extent(map, tensor_name(shape, key, m, "weight", name),
                             fp8 ? SL_DTYPE_F8_E4M3 : SL_DTYPE_I8, rows, fp8 ? cols : cols / 2,
                             &expert->codes[m], err);

        if (rc == 0)
            rc = find_extent(map, tensor_name(shape, key, m, "scale", name), map->scale_dtype,
                             fp8 ? rows / SL_FP8_BLOCK : rows,
                             cols / (fp8 ? SL_FP8_BLOCK : SL_FP4_BLOCK_COLS), &expert->scales[m],
                             err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* The first expert's tensors say what all have to be. What is missing there find_expert() will
 * name, with what the config leads to expect. */
static int settle_dtypes(struct sl_expert_map *map, struct sl_err *err)
{
    const struct sl_expert_key first = {0, 0};
    const struct sl_checkpoint_tensor *codes, *scales;
    char name[NAME_BYTES], text[SL_TENSOR_TEXT_BYTES];

    codes = sl_checkpoint_find(map->checkpoint,
                               tensor_name(&map->shape, first, SL_EXPERT_W1, "weight", name));
    if (codes && codes->info.dtype != SL_DTYPE_I8 && codes->info.dtype != SL_DTYPE_F8_E4M3)
        return sl_err_set(
            err, -SL_EUNSUPPORTED,
            "%s: tensor \"%s\" is %s; this engine runs experts of FP4 (I8) and of FP8 "
            "(F8_E4M3)",
            sl_checkpoint_file_path(map->checkpoint, codes->file_index), name,
            sl_tensor_format(&codes->info, text));
    if (codes)
        map->shape.expert_dtype =
            codes->info.dtype == SL_DTYPE_F8_E4M3 ? SL_EXPERT_FP8 : SL_EXPERT_FP4;
    scales = sl_checkpoint_find(map->checkpoint,
                                tensor_name(&map->shape, first, SL_EXPERT_W1, "scale", name));
    map->scale_dtype = map->shape.expert_dtype == SL_EXPERT_FP8 &&
                               !(scales && scales->info.dtype == SL_DTYPE_F8_E8M0)
                           ? SL_DTYPE_F32
                           : SL_DTYPE_F8_E8M0;
    return 0;
}

static int compare_extents(const void *a, const void *b)
{
    const struct sl_extent *x = a, *y = b;

    if (x->file_index != y->file_index)
        return x->file_index < y->file_index ? -1 : 1;
    if (x->offset_bytes != y->offset_bytes)
        return x->offset_bytes < y->offset_bytes ? -1 : 1;
    return 0;
}

struct position {
    struct sl_extent extent; /* first, for compare_extents() */
    uint16_t expert_index;
};

/* An expert lies where its codes do, which are most of what is read. */
static void sort_layer(struct sl_expert_map *map, uint32_t layer_index, struct position *positions)
{
    const uint32_t experts = map->shape.n_routed_experts;
    const size_t first = (size_t)layer_index * experts;

    for (uint32_t e = 0; e < experts; e++)
        positions[e] = (struct position){map->experts[first + e].codes[SL_EXPERT_W1], (uint16_t)e};
    qsort(positions, experts, sizeof(*positions), compare_extents);
    for (uint32_t i = 0; i < experts; i++)
        map->in_order[first + i] = positions[i].expert_index;
}

static bool has_layer(const struct sl_expert_map *map, uint32_t layer_index)
{
    char prefix[NAME_BYTES];

    snprintf(prefix, sizeof(prefix), "layers.%u.", layer_index);
    return sl_checkpoint_has_prefix(map->checkpoint, prefix);
}

/* Tells of whole layers that are missing, as of a download that was stopped or a copy that was cut,
 * in place of the first tensor that was looked for. Returns `rc`, with `err` as it is if there are
 * none. */
static int explain_layers(const struct sl_expert_map *map, int rc, struct sl_err *err)
{
    const uint32_t n_layers = map->shape.num_hidden_layers;
    char text[SL_ERR_MESSAGE_BYTES / 4] = "";
    uint32_t n_missing = 0;

    for (uint32_t i = 0, end; i < n_layers; i = end + 1) {
        const size_t used = strlen(text);

        for (end = i; end < n_layers && !has_layer(map, end);)
            end++;
        if (end == i)
            continue;
        n_missing += end - i;
        snprintf(text + used, sizeof(text) - used, end - i > 1 ? "%s%u to %u" : "%s%u",
                 used ? ", " : "", i, end - 1);
    }
    if (n_missing == 0)
        return rc;
    return sl_err_set(
        err, -SL_EFORMAT,
        "%s: config.json's num_hidden_layers is %u, but there are no tensors of layer%s "
        "%s: is the checkpoint complete?",
        sl_checkpoint_folder(map->checkpoint), n_layers, sl_plural(n_missing), text);
}

int sl_expert_map_of_checkpoint(struct sl_expert_map **ret_map, struct sl_checkpoint *checkpoint,
                                const struct sl_expert_shape *shape, struct sl_err *err)
{
    struct sl_expert_map *map;
    struct position *positions;
    int rc = 0;

    sl_assert(sl_expert_shape_is_sound(shape)); /* the config was checked where it was read */
    map = calloc(1, sizeof(*map));
    if (!map)
        return sl_err_set(err, -ENOMEM, "table of experts: out of memory");
    map->checkpoint = checkpoint;
    map->shape = *shape;
    map->experts = calloc((size_t)sl_expert_layer_count(shape) * shape->n_routed_experts,
                          sizeof(*map->experts));
    map->in_order = calloc((size_t)sl_expert_layer_count(shape) * shape->n_routed_experts,
                           sizeof(*map->in_order));
    positions = calloc(shape->n_routed_experts, sizeof(*positions));
    if (!map->experts || !map->in_order || !positions)
        rc = sl_err_set(err, -ENOMEM, "table of experts: out of memory");
    else
        rc = settle_dtypes(map, err);
    for (uint32_t i = 0; rc == 0 && i < sl_expert_layer_count(shape); i++) {
        for (uint32_t e = 0; rc == 0 && e < shape->n_routed_experts; e++)
            rc = find_expert(map, (struct sl_expert_key){(uint16_t)i, (uint16_t)e}, err);
        if (rc == 0)
            sort_layer(map, i, positions);
    }
    free(positions);
    if (rc < 0) {
        rc = rc == -SL_EFORMAT ? explain_layers(map, rc, err) : rc;
        sl_expert_map_close(map);
        return rc;
    }
    *ret_map = map;
    return 0;
}

int sl_expert_map_of_store(struct sl_expert_map **ret_map, const struct sl_store *store,
                           const struct sl_expert_shape *shape, struct sl_err *err)
{
    const struct sl_expert_shape *found = &sl_store_model(store)->shape;
    struct sl_expert_map *map;

    if (found->num_hidden_layers != shape->num_hidden_layers ||
        found->n_mtp_layers < shape->n_mtp_layers ||
        found->n_routed_experts != shape->n_routed_experts ||
        found->hidden_size != shape->hidden_size ||
        found->moe_intermediate_size != shape->moe_intermediate_size)
        return sl_err_set(err, -SL_EFORMAT,
                          "%s: the catalog is of a model with %u layers and %u MTP blocks of %u "
                          "experts, %u by %u; config.json says %u and %u of %u, %u by %u",
                          sl_store_folder(store), found->num_hidden_layers, found->n_mtp_layers,
                          found->n_routed_experts, found->hidden_size, found->moe_intermediate_size,
                          shape->num_hidden_layers, shape->n_mtp_layers, shape->n_routed_experts,
                          shape->hidden_size, shape->moe_intermediate_size);
    map = calloc(1, sizeof(*map));
    if (!map)
        return sl_err_set(err, -ENOMEM, "table of experts: out of memory");
    map->store = store;
    map->shape = *shape;
    map->shape.expert_dtype = found->expert_dtype;
    *ret_map = map;
    return 0;
}

void sl_expert_map_close(struct sl_expert_map *map)
{
    if (!map)
        return;
    free(map->in_order);
    free(map->experts);
    free(map);
}

const struct sl_expert_shape *sl_expert_map_shape(const struct sl_expert_map *map)
{
    return &map->shape;
}

enum sl_dtype sl_expert_map_scale_dtype(const struct sl_expert_map *map)
{
    sl_assert(map->checkpoint);
    return map->scale_dtype;
}

bool sl_expert_map_is_packed(const struct sl_expert_map *map)
{
    return map->store != NULL;
}

bool sl_expert_map_is_compressed(const struct sl_expert_map *map)
{
    return map->store && sl_store_layout_compresses(sl_store_model(map->store)->layout);
}

static bool has(const struct sl_expert_map *map, struct sl_expert_key key)
{
    return key.layer_index < sl_expert_layer_count(&map->shape) &&
           key.expert_index < map->shape.n_routed_experts;
}

const struct sl_checkpoint_expert *sl_expert_map_find(const struct sl_expert_map *map,
                                                      struct sl_expert_key key)
{
    if (!map->experts || !has(map, key))
        return NULL;
    return &map->experts[(size_t)key.layer_index * map->shape.n_routed_experts + key.expert_index];
}

const struct sl_packed_expert *sl_expert_map_find_packed(const struct sl_expert_map *map,
                                                         struct sl_expert_key key)
{
    return map->store && has(map, key) ? sl_store_expert(map->store, key) : NULL;
}

uint32_t sl_checkpoint_expert_reads(const struct sl_checkpoint_expert *expert,
                                    struct sl_extent ret_reads[SL_EXPERT_READS_MAX])
{
    struct sl_extent extents[2 * SL_EXPERT_MATRICES];
    uint32_t count = 0;

    for (uint32_t m = 0; m < SL_EXPERT_MATRICES; m++) {
        extents[2 * m] = expert->codes[m];
        extents[2 * m + 1] = expert->scales[m];
    }
    qsort(extents, 2 * SL_EXPERT_MATRICES, sizeof(extents[0]), compare_extents);
    for (uint32_t i = 0; i < 2 * SL_EXPERT_MATRICES; i++) {
        struct sl_extent *last = count ? &ret_reads[count - 1] : NULL;
        uint64_t begin = sl_round_down(extents[i].offset_bytes, SL_BLOCK_BYTES);
        uint64_t end = sl_round_up(extents[i].offset_bytes + extents[i].size_bytes, SL_BLOCK_BYTES);

        if (last && last->file_index == extents[i].file_index &&
            begin <= last->offset_bytes + last->size_bytes)
            last->size_bytes = end - last->offset_bytes;
        else
            ret_reads[count++] = (struct sl_extent){.offset_bytes = begin,
                                                    .size_bytes = end - begin,
                                                    .file_index = extents[i].file_index};
    }
    return count;
}

uint16_t sl_expert_map_nth(const struct sl_expert_map *map, uint32_t layer_index, uint32_t i)
{
    sl_assert(layer_index < sl_expert_layer_count(&map->shape) && i < map->shape.n_routed_experts);
    return map->store ? (uint16_t)i
                      : map->in_order[(size_t)layer_index * map->shape.n_routed_experts + i];
}

uint32_t sl_expert_map_reads(const struct sl_expert_map *map, struct sl_expert_key key,
                             struct sl_extent ret_reads[SL_EXPERT_READS_MAX])
{
    const struct sl_packed_expert *packed = sl_expert_map_find_packed(map, key);
    uint32_t n;

    if (packed) {
        memcpy(ret_reads, packed->parts, packed->n_parts * sizeof(*ret_reads));
        return packed->n_parts;
    }
    n = sl_checkpoint_expert_reads(sl_expert_map_find(map, key), ret_reads);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t file_bytes = sl_checkpoint_file_bytes(map->checkpoint, ret_reads[i].file_index);

        if (ret_reads[i].offset_bytes + ret_reads[i].size_bytes > file_bytes)
            ret_reads[i].size_bytes = file_bytes - ret_reads[i].offset_bytes;
    }
    return n;
}

uint32_t sl_expert_map_file_count(const struct sl_expert_map *map)
{
    return map->store ? sl_store_file_count(map->store) : sl_checkpoint_file_count(map->checkpoint);
}

const char *sl_expert_map_file_path(const struct sl_expert_map *map, uint32_t file_index)
{
    return map->store ? sl_store_file_path(map->store, file_index)
                      : sl_checkpoint_file_path(map->checkpoint, file_index);
}

const char **sl_expert_map_file_paths(const struct sl_expert_map *map)
{
    const uint32_t n_files = sl_expert_map_file_count(map);
    const char **paths = calloc(n_files, sizeof(*paths));

    for (uint32_t i = 0; paths && i < n_files; i++)
        paths[i] = sl_expert_map_file_path(map, i);
    return paths;
}
