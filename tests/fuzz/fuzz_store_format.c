/* A value of a store's catalog from anywhere: whatever is accepted is sound in itself, and is what
 * would have been written. The first byte says which kind of value the rest is. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/size.h"
#include "storage/store/store_format.h"

#define HOT_MAX 100u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What was accepted, written again. */
struct again {
    uint8_t value[SL_STORE_VALUE_BYTES_MAX];
    size_t size_bytes;
};

static void check_extent(const struct sl_extent *extent)
{
    sl_assert(extent->file_index < SL_STORE_FILES_MAX && extent->size_bytes > 0);
    sl_assert(extent->offset_bytes % SL_BLOCK_BYTES == 0);
    sl_assert(extent->offset_bytes < extent->offset_bytes + extent->size_bytes);
}

static bool check_model(const uint8_t *data, size_t size, struct again *again)
{
    struct sl_store_model model;

    if (!sl_store_model_decode(&model, data, size) || model.format_version != SL_STORE_VERSION)
        return false;
    sl_assert(sl_expert_shape_is_sound(&model.shape));
    sl_assert(model.n_files >= 2 && model.n_files <= SL_STORE_FILES_MAX);
    again->size_bytes = sl_store_model_encode(&model, again->value);
    return true;
}

static bool check_file(const uint8_t *data, size_t size, struct again *again)
{
    struct sl_store_file file;

    if (!sl_store_file_decode(&file, data, size))
        return false;
    sl_assert(file.path[0] && memchr(file.path, 0, sizeof(file.path)));
    sl_assert(file.size_bytes % SL_BLOCK_BYTES == 0);
    again->size_bytes = sl_store_file_encode(&file, again->value);
    return true;
}

static bool check_copied_file(const uint8_t *data, size_t size, struct again *again)
{
    struct sl_store_copied_file copied;

    if (!sl_store_copied_file_decode(&copied, data, size))
        return false;
    sl_assert(copied.name[0] && !strchr(copied.name, '/'));
    again->size_bytes = sl_store_copied_file_encode(&copied, again->value);
    return true;
}

static bool check_tensor(const uint8_t *data, size_t size, struct again *again)
{
    struct sl_store_tensor tensor;
    uint64_t bytes;

    if (!sl_store_tensor_decode(&tensor, data, size))
        return false;
    check_extent(&tensor.extent);
    bytes = sl_dtype_size_bytes(tensor.info.dtype);
    for (uint32_t i = 0; i < SL_TENSOR_DIMS_MAX; i++)
        bytes *= tensor.info.shape[i];
    sl_assert(bytes == tensor.info.size_bytes && bytes == tensor.extent.size_bytes);
    again->size_bytes = sl_store_tensor_encode(&tensor, again->value);
    return true;
}

static bool check_expert(const uint8_t *data, size_t size, struct again *again)
{
    struct sl_packed_expert expert;

    if (!sl_store_expert_decode(&expert, data, size))
        return false;
    sl_assert(expert.n_parts >= 1 && expert.n_parts <= SL_EXPERT_PARTS_MAX);
    for (uint32_t i = 0; i < expert.n_parts; i++)
        check_extent(&expert.parts[i]);
    again->size_bytes = sl_store_expert_encode(&expert, again->value);
    return true;
}

static bool check_state(const uint8_t *data, size_t size, struct again *again)
{
    struct sl_store_state state;

    if (!sl_store_state_decode(&state, data, size))
        return false;
    again->size_bytes = sl_store_state_encode(&state, again->value);
    return true;
}

static bool check_probe(const uint8_t *data, size_t size, struct again *again)
{
    struct sl_store_probe probe;

    if (!sl_store_probe_decode(&probe, data, size))
        return false;
    sl_assert(probe.piece_bytes > 0 && probe.piece_bytes % SL_BLOCK_BYTES == 0);
    sl_assert(probe.depth > 0);
    again->size_bytes = sl_store_probe_encode(&probe, again->value);
    return true;
}

/* Longer than there is room for: the rest is left out. */
static bool check_hot(const uint8_t *data, size_t size, struct again *again)
{
    struct sl_expert_key keys[HOT_MAX];
    uint32_t n_keys;

    if (!sl_store_hot_decode(keys, HOT_MAX, &n_keys, data, size))
        return false;
    sl_assert(n_keys <= HOT_MAX);
    again->size_bytes = sl_store_hot_encode(keys, n_keys, again->value);
    return n_keys < HOT_MAX;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool (*const checks[])(const uint8_t *data, size_t size, struct again *again) = {
        check_model,  check_state,  check_file,  check_copied_file,
        check_tensor, check_expert, check_probe, check_hot};
    struct again again;

    if (size < 1)
        return 0;
    if (checks[data[0] % (sizeof(checks) / sizeof(checks[0]))](data + 1, size - 1, &again)) {
        sl_assert(again.size_bytes == size - 1);
        sl_assert(memcmp(again.value, data + 1, size - 1) == 0);
    }
    return 0;
}
