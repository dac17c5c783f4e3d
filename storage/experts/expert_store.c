/* Of a checkpoint one flat table of records, filled by looking up every expert's six tensors by
 * name: Pro has 142,848 of them, its MTP block included. A packed store has such a table itself. */
#include "storage/experts/expert_store.h"

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

#define LAYERS_AND_EXPERTS_MAX 65536u /* what struct sl_expert_key can count */
#define NAME_BYTES 80

/* More than any model has; sizes of records stay far from overflow. */
#define SIDE_MAX (SL_EXPERT_MATRIX_TILES_MAX * SL_R16_ROWS)

_Static_assert(SL_EXPERT_READS_MAX >= 2 * SL_EXPERT_MATRICES, "six extents are six reads at most");

struct sl_expert_store {
    struct sl_checkpoint *checkpoint; /* or packed: one is NULL */
    const struct sl_store *packed;
    struct sl_expert_shape shape;
    struct sl_expert_record *records; /* (layers, experts) */
    uint16_t *in_order;               /* (layers, experts) by where they lie */
};

static const char *const matrix_names[SL_EXPERT_MATRICES] = {
    [SL_EXPERT_W1] = "w1",
    [SL_EXPERT_W2] = "w2",
    [SL_EXPERT_W3] = "w3",
};

const int sl_expert_matrix_order[SL_EXPERT_MATRICES] = {SL_EXPERT_W1, SL_EXPERT_W3, SL_EXPERT_W2};

static uint32_t layer_count(const struct sl_expert_shape *shape)
{
    return shape->num_hidden_layers + shape->n_mtp_layers;
}

bool sl_expert_shape_is_sound(const struct sl_expert_shape *shape)
{
    return shape->num_hidden_layers >= 1 && shape->num_hidden_layers < LAYERS_AND_EXPERTS_MAX &&
           shape->n_mtp_layers <= LAYERS_AND_EXPERTS_MAX - shape->num_hidden_layers &&
           shape->n_routed_experts >= 1 && shape->n_routed_experts <= LAYERS_AND_EXPERTS_MAX &&
           (uint64_t)layer_count(shape) * shape->n_routed_experts <= UINT32_MAX &&
           shape->hidden_size >= 1 && shape->hidden_size <= SIDE_MAX &&
           shape->hidden_size % SL_FP4_GROUP_COLS == 0 && shape->moe_intermediate_size >= 1 &&
           shape->moe_intermediate_size <= SIDE_MAX &&
           shape->moe_intermediate_size % SL_FP4_GROUP_COLS == 0;
}

uint64_t sl_expert_matrix_bytes(const struct sl_expert_shape *shape, int matrix)
{
    return sl_r16_tile_count(sl_expert_matrix_rows(shape, matrix)) *
           sl_r16_fp4_tile_bytes(sl_expert_matrix_cols(shape, matrix));
}

uint64_t sl_expert_matrix_offset_bytes(const struct sl_expert_shape *shape, int matrix)
{
    uint64_t offset_bytes = 0;

    for (int i = 0; sl_expert_matrix_order[i] != matrix; i++)
        offset_bytes += sl_round_up(sl_expert_matrix_bytes(shape, sl_expert_matrix_order[i]),
                                    SL_READ_ALIGN_BYTES);
    return offset_bytes;
}

uint64_t sl_packed_expert_bytes(const struct sl_expert_shape *shape)
{
    const int last = sl_expert_matrix_order[SL_EXPERT_MATRICES - 1];

    return sl_expert_matrix_offset_bytes(shape, last) +
           sl_round_up(sl_expert_matrix_bytes(shape, last), SL_READ_ALIGN_BYTES);
}

uint64_t sl_packed_expert_stored_bytes(const struct sl_packed_expert *expert)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < expert->n_parts; i++)
        bytes += expert->parts[i].size_bytes;
    return bytes;
}

uint32_t sl_packed_expert_matrix(const struct sl_packed_expert *expert,
                                 const struct sl_expert_shape *shape, int matrix,
                                 struct sl_extent ret_extents[SL_EXPERT_PARTS_MAX])
{
    uint64_t skip_bytes = sl_expert_matrix_offset_bytes(shape, matrix);
    uint64_t left_bytes = sl_expert_matrix_bytes(shape, matrix);
    uint32_t count = 0;

    for (uint32_t i = 0; left_bytes > 0; i++) {
        const struct sl_extent *part = &expert->parts[i];
        uint64_t size_bytes;

        sl_assert(i < expert->n_parts);
        if (skip_bytes >= part->size_bytes) {
            skip_bytes -= part->size_bytes;
            continue;
        }
        size_bytes =
            part->size_bytes - skip_bytes < left_bytes ? part->size_bytes - skip_bytes : left_bytes;
        ret_extents[count++] = (struct sl_extent){.offset_bytes = part->offset_bytes + skip_bytes,
                                                  .size_bytes = size_bytes,
                                                  .file_index = part->file_index};
        left_bytes -= size_bytes;
        skip_bytes = 0;
    }
    return count;
}

const char *sl_expert_matrix_name(int matrix)
{
    return matrix_names[matrix];
}

const char *sl_expert_format(const struct sl_expert_shape *shape, struct sl_expert_key key,
                             char buffer[SL_EXPERT_TEXT_BYTES])
{
    bool is_mtp = key.layer_index >= shape->num_hidden_layers;

    snprintf(buffer, SL_EXPERT_TEXT_BYTES, "%s %u, expert %u", is_mtp ? "MTP block" : "layer",
             key.layer_index - (is_mtp ? shape->num_hidden_layers : 0), key.expert_index);
    return buffer;
}

static int find_extent(const struct sl_expert_store *store, const char *name, enum sl_dtype dtype,
                       uint64_t rows, uint64_t cols, struct sl_extent *ret_extent,
                       struct sl_err *err)
{
    const struct sl_tensor_info expected = {
        .dtype = dtype, .n_dims = 2, .shape = {rows, cols, 1, 1}};
    const struct sl_checkpoint_tensor *tensor = sl_checkpoint_find(store->checkpoint, name);
    char found_text[SL_TENSOR_TEXT_BYTES], expected_text[SL_TENSOR_TEXT_BYTES];
    struct sl_weight_source *weights = sl_checkpoint_weights(store->checkpoint);

    if (!tensor)
        return sl_err_set(err, -SL_EFORMAT, "%s: tensor \"%s\" is missing, expected %s",
                          weights->ops->where(weights, name), name,
                          sl_tensor_format(&expected, expected_text));
    if (tensor->info.dtype != dtype || tensor->info.n_dims != 2 || tensor->info.shape[0] != rows ||
        tensor->info.shape[1] != cols)
        return sl_err_set(err, -SL_EFORMAT, "%s: tensor \"%s\" is %s, expected %s",
                          sl_checkpoint_file_path(store->checkpoint, tensor->file_index), name,
                          sl_tensor_format(&tensor->info, found_text),
                          sl_tensor_format(&expected, expected_text));
    *ret_extent = (struct sl_extent){.offset_bytes = tensor->offset_bytes,
                                     .size_bytes = tensor->info.size_bytes,
                                     .file_index = tensor->file_index};
    return 0;
}

static int fill_record(const struct sl_expert_store *store, uint32_t layer_index,
                       uint32_t expert_index, struct sl_err *err)
{
    const struct sl_expert_shape *shape = &store->shape;
    uint64_t hidden = shape->hidden_size, inter = shape->moe_intermediate_size;
    bool is_mtp = layer_index >= shape->num_hidden_layers;
    struct sl_expert_record *record;
    char name[NAME_BYTES];
    int length, rc;

    record = &store->records[(size_t)layer_index * shape->n_routed_experts + expert_index];
    for (uint32_t m = 0; m < SL_EXPERT_MATRICES; m++) {
        uint64_t rows = m == SL_EXPERT_W2 ? hidden : inter;
        uint64_t cols = m == SL_EXPERT_W2 ? inter : hidden;

        length = snprintf(name, sizeof(name), "%s.%u.ffn.experts.%u.%s.", is_mtp ? "mtp" : "layers",
                          is_mtp ? layer_index - shape->num_hidden_layers : layer_index,
                          expert_index, matrix_names[m]);
        snprintf(name + length, sizeof(name) - (size_t)length, "weight");
        rc = find_extent(store, name, SL_DTYPE_I8, rows, cols / 2, &record->codes[m], err);
        if (rc < 0)
            return rc;
        snprintf(name + length, sizeof(name) - (size_t)length, "scale");
        rc = find_extent(store, name, SL_DTYPE_F8_E8M0, rows, cols / SL_FP4_BLOCK_COLS,
                         &record->scales[m], err);
        if (rc < 0)
            return rc;
    }
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

struct place {
    struct sl_extent extent; /* first, for compare_extents() */
    uint16_t expert_index;
};

/* An expert lies where its codes do, which are most of what is read. */
static void sort_layer(struct sl_expert_store *store, uint32_t layer_index, struct place *places)
{
    const uint32_t experts = store->shape.n_routed_experts;
    const size_t first = (size_t)layer_index * experts;

    for (uint32_t e = 0; e < experts; e++)
        places[e] = (struct place){store->records[first + e].codes[SL_EXPERT_W1], (uint16_t)e};
    qsort(places, experts, sizeof(*places), compare_extents);
    for (uint32_t i = 0; i < experts; i++)
        store->in_order[first + i] = places[i].expert_index;
}

int sl_expert_store_open(struct sl_expert_store **ret_store, struct sl_checkpoint *checkpoint,
                         const struct sl_expert_shape *shape, struct sl_err *err)
{
    struct sl_expert_store *store;
    struct place *places;
    int rc = 0;

    /* The config was checked where it was read. */
    sl_assert(shape->num_hidden_layers >= 1 && shape->num_hidden_layers < LAYERS_AND_EXPERTS_MAX);
    sl_assert(shape->n_mtp_layers <= LAYERS_AND_EXPERTS_MAX - shape->num_hidden_layers);
    sl_assert(shape->n_routed_experts >= 1 && shape->n_routed_experts <= LAYERS_AND_EXPERTS_MAX);
    sl_assert(shape->hidden_size >= 1 && shape->hidden_size % SL_FP4_BLOCK_COLS == 0);
    sl_assert(shape->moe_intermediate_size >= 1);
    sl_assert(shape->moe_intermediate_size % SL_FP4_BLOCK_COLS == 0);
    store = calloc(1, sizeof(*store));
    if (!store)
        return sl_err_set(err, -ENOMEM, "table of experts: out of memory");
    store->checkpoint = checkpoint;
    store->shape = *shape;
    store->records =
        calloc((size_t)layer_count(shape) * shape->n_routed_experts, sizeof(*store->records));
    store->in_order =
        calloc((size_t)layer_count(shape) * shape->n_routed_experts, sizeof(*store->in_order));
    places = calloc(shape->n_routed_experts, sizeof(*places));
    if (!store->records || !store->in_order || !places)
        rc = sl_err_set(err, -ENOMEM, "table of experts: out of memory");
    for (uint32_t i = 0; rc == 0 && i < layer_count(shape); i++) {
        for (uint32_t e = 0; rc == 0 && e < shape->n_routed_experts; e++)
            rc = fill_record(store, i, e, err);
        if (rc == 0)
            sort_layer(store, i, places);
    }
    free(places);
    if (rc < 0) {
        sl_expert_store_close(store);
        return rc;
    }
    *ret_store = store;
    return 0;
}

int sl_expert_store_open_packed(struct sl_expert_store **ret_store, const struct sl_store *packed,
                                const struct sl_expert_shape *shape, struct sl_err *err)
{
    const struct sl_expert_shape *found = &sl_store_model(packed)->shape;
    struct sl_expert_store *store;

    if (found->num_hidden_layers != shape->num_hidden_layers ||
        found->n_mtp_layers < shape->n_mtp_layers ||
        found->n_routed_experts != shape->n_routed_experts ||
        found->hidden_size != shape->hidden_size ||
        found->moe_intermediate_size != shape->moe_intermediate_size)
        return sl_err_set(err, -SL_EFORMAT,
                          "%s: the catalog is of a model with %u layers and %u MTP blocks of %u "
                          "experts, %u by %u; config.json says %u and %u of %u, %u by %u",
                          sl_store_folder(packed), found->num_hidden_layers, found->n_mtp_layers,
                          found->n_routed_experts, found->hidden_size, found->moe_intermediate_size,
                          shape->num_hidden_layers, shape->n_mtp_layers, shape->n_routed_experts,
                          shape->hidden_size, shape->moe_intermediate_size);
    store = calloc(1, sizeof(*store));
    if (!store)
        return sl_err_set(err, -ENOMEM, "table of experts: out of memory");
    store->packed = packed;
    store->shape = *shape;
    *ret_store = store;
    return 0;
}

void sl_expert_store_close(struct sl_expert_store *store)
{
    if (!store)
        return;
    free(store->in_order);
    free(store->records);
    free(store);
}

const struct sl_expert_shape *sl_expert_store_shape(const struct sl_expert_store *store)
{
    return &store->shape;
}

bool sl_expert_store_is_packed(const struct sl_expert_store *store)
{
    return store->packed != NULL;
}

bool sl_expert_store_is_compressed(const struct sl_expert_store *store)
{
    return store->packed && sl_store_model(store->packed)->layout == SL_STORE_LAYOUT_R16_ZSTD;
}

static bool has(const struct sl_expert_store *store, struct sl_expert_key key)
{
    return key.layer_index < layer_count(&store->shape) &&
           key.expert_index < store->shape.n_routed_experts;
}

const struct sl_expert_record *sl_expert_store_find(const struct sl_expert_store *store,
                                                    struct sl_expert_key key)
{
    if (!store->records || !has(store, key))
        return NULL;
    return &store->records[(size_t)key.layer_index * store->shape.n_routed_experts +
                           key.expert_index];
}

const struct sl_packed_expert *sl_expert_store_find_packed(const struct sl_expert_store *store,
                                                           struct sl_expert_key key)
{
    return store->packed && has(store, key) ? sl_store_expert(store->packed, key) : NULL;
}

uint32_t sl_expert_record_reads(const struct sl_expert_record *record,
                                struct sl_extent ret_reads[SL_EXPERT_READS_MAX])
{
    struct sl_extent extents[2 * SL_EXPERT_MATRICES];
    uint32_t count = 0;

    for (uint32_t m = 0; m < SL_EXPERT_MATRICES; m++) {
        extents[2 * m] = record->codes[m];
        extents[2 * m + 1] = record->scales[m];
    }
    qsort(extents, 2 * SL_EXPERT_MATRICES, sizeof(extents[0]), compare_extents);
    for (uint32_t i = 0; i < 2 * SL_EXPERT_MATRICES; i++) {
        struct sl_extent *last = count ? &ret_reads[count - 1] : NULL;
        uint64_t begin = sl_round_down(extents[i].offset_bytes, SL_READ_ALIGN_BYTES);
        uint64_t end =
            sl_round_up(extents[i].offset_bytes + extents[i].size_bytes, SL_READ_ALIGN_BYTES);

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

uint16_t sl_expert_store_nth(const struct sl_expert_store *store, uint32_t layer_index, uint32_t i)
{
    sl_assert(layer_index < layer_count(&store->shape) && i < store->shape.n_routed_experts);
    return store->packed ? (uint16_t)i
                         : store->in_order[(size_t)layer_index * store->shape.n_routed_experts + i];
}

uint32_t sl_expert_store_reads(const struct sl_expert_store *store, struct sl_expert_key key,
                               struct sl_extent ret_reads[SL_EXPERT_READS_MAX])
{
    const struct sl_packed_expert *packed = sl_expert_store_find_packed(store, key);
    uint32_t n;

    if (packed) {
        memcpy(ret_reads, packed->parts, packed->n_parts * sizeof(*ret_reads));
        return packed->n_parts;
    }
    n = sl_expert_record_reads(sl_expert_store_find(store, key), ret_reads);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t file_bytes = sl_checkpoint_file_bytes(store->checkpoint, ret_reads[i].file_index);

        if (ret_reads[i].offset_bytes + ret_reads[i].size_bytes > file_bytes)
            ret_reads[i].size_bytes = file_bytes - ret_reads[i].offset_bytes;
    }
    return n;
}

uint32_t sl_expert_store_file_count(const struct sl_expert_store *store)
{
    return store->packed ? sl_store_file_count(store->packed)
                         : sl_checkpoint_file_count(store->checkpoint);
}

const char *sl_expert_store_file_path(const struct sl_expert_store *store, uint32_t file_index)
{
    return store->packed ? sl_store_file_path(store->packed, file_index)
                         : sl_checkpoint_file_path(store->checkpoint, file_index);
}

const char **sl_expert_store_file_paths(const struct sl_expert_store *store)
{
    const uint32_t n_files = sl_expert_store_file_count(store);
    const char **paths = calloc(n_files, sizeof(*paths));

    for (uint32_t i = 0; paths && i < n_files; i++)
        paths[i] = sl_expert_store_file_path(store, i);
    return paths;
}
