#include "storage/store/store_format.h"

#include <stdio.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/size.h"

/* No file is larger than this, a thousand terabytes; sums of two such numbers do not overflow. */
#define OFFSET_BYTES_MAX (UINT64_C(1) << 50)

const char *const sl_store_copied_names[SL_STORE_COPIED_NAMES] = {
    "config.json",         "tokenizer.json",     "tokenizer_config.json", "generation_config.json",
    "chat_template.jinja", SL_STORE_ENCODER_FILE};

/* ---- keys -------------------------------------------------------------------------------------
 */

void sl_store_file_key(char key[SL_STORE_KEY_BYTES], uint32_t file_index)
{
    snprintf(key, SL_STORE_KEY_BYTES, SL_STORE_PREFIX_FILE "%u", file_index);
}

void sl_store_copied_file_key(char key[SL_STORE_KEY_BYTES], const char *name)
{
    snprintf(key, SL_STORE_KEY_BYTES, SL_STORE_PREFIX_COPIED "%s", name);
}

void sl_store_tensor_key(char key[SL_STORE_KEY_BYTES], uint32_t tensor_index)
{
    snprintf(key, SL_STORE_KEY_BYTES, SL_STORE_PREFIX_TENSOR "%05u", tensor_index);
}

void sl_store_expert_key(char key[SL_STORE_KEY_BYTES], struct sl_expert_key expert)
{
    snprintf(key, SL_STORE_KEY_BYTES, SL_STORE_PREFIX_EXPERT "%05u %05u", expert.layer_index,
             expert.expert_index);
}

/* ---- writing ----------------------------------------------------------------------------------
 */

struct out {
    uint8_t *start, *at;
};

static void put(struct out *out, uint64_t value, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes; i++)
        *out->at++ = (uint8_t)(value >> 8 * i);
}

static void put_u32(struct out *out, uint32_t value)
{
    put(out, value, 4);
}

static void put_u64(struct out *out, uint64_t value)
{
    put(out, value, 8);
}

/* Writes a text's length, then its bytes. */
static void put_text(struct out *out, const char *text)
{
    size_t length = strlen(text);

    put_u32(out, (uint32_t)length);
    memcpy(out->at, text, length);
    out->at += length;
}

static void put_extent(struct out *out, const struct sl_extent *extent)
{
    put_u32(out, extent->file_index);
    put_u64(out, extent->offset_bytes);
    put_u64(out, extent->size_bytes);
}

static size_t length_of(const struct out *out)
{
    sl_assert(out->at - out->start <= (ptrdiff_t)SL_STORE_VALUE_BYTES_MAX);
    return (size_t)(out->at - out->start);
}

size_t sl_store_model_encode(const struct sl_store_model *model,
                             uint8_t value[SL_STORE_VALUE_BYTES_MAX])
{
    struct out out = {value, value};

    sl_assert(model->layout == sl_store_layout_of(model->shape.expert_dtype,
                                                  sl_store_layout_compresses(model->layout)));
    put_u32(&out, model->format_version);
    put_u32(&out, model->layout);
    put_u64(&out, model->config_checksum);
    put_u64(&out, model->index_checksum);
    put_u32(&out, model->shape.num_hidden_layers);
    put_u32(&out, model->shape.n_mtp_layers);
    put_u32(&out, model->shape.n_routed_experts);
    put_u32(&out, model->shape.hidden_size);
    put_u32(&out, model->shape.moe_intermediate_size);
    put_u32(&out, model->n_files);
    put_u32(&out, model->n_tensors);
    return length_of(&out);
}

size_t sl_store_state_encode(const struct sl_store_state *state,
                             uint8_t value[SL_STORE_VALUE_BYTES_MAX])
{
    struct out out = {value, value};

    put_u32(&out, state->n_tensors_done);
    put_u32(&out, state->n_experts_done);
    put_u32(&out, state->complete);
    return length_of(&out);
}

size_t sl_store_file_encode(const struct sl_store_file *file,
                            uint8_t value[SL_STORE_VALUE_BYTES_MAX])
{
    struct out out = {value, value};

    put_u64(&out, file->size_bytes);
    put_text(&out, file->path);
    return length_of(&out);
}

size_t sl_store_copied_file_encode(const struct sl_store_copied_file *copied,
                                   uint8_t value[SL_STORE_VALUE_BYTES_MAX])
{
    struct out out = {value, value};

    put_u64(&out, copied->size_bytes);
    put_u64(&out, copied->checksum);
    put_text(&out, copied->name);
    return length_of(&out);
}

size_t sl_store_tensor_encode(const struct sl_store_tensor *tensor,
                              uint8_t value[SL_STORE_VALUE_BYTES_MAX])
{
    struct out out = {value, value};

    put_u64(&out, tensor->checksum);
    put_extent(&out, &tensor->extent);
    put_text(&out, sl_dtype_name(tensor->info.dtype));
    put_u32(&out, tensor->info.n_dims);
    for (uint32_t i = 0; i < tensor->info.n_dims; i++)
        put_u64(&out, tensor->info.shape[i]);
    put_text(&out, tensor->name);
    return length_of(&out);
}

size_t sl_store_expert_encode(const struct sl_packed_expert *expert,
                              uint8_t value[SL_STORE_VALUE_BYTES_MAX])
{
    struct out out = {value, value};

    for (uint32_t i = 0; i < SL_EXPERT_MATRICES; i++)
        put_u64(&out, expert->checksums[i]);
    put_u32(&out, expert->n_parts);
    for (uint32_t i = 0; i < expert->n_parts; i++)
        put_extent(&out, &expert->parts[i]);
    if (expert->compressed)
        put_u64(&out, expert->stored_checksum);
    return length_of(&out);
}

size_t sl_store_probe_encode(const struct sl_store_probe *probe,
                             uint8_t value[SL_STORE_VALUE_BYTES_MAX])
{
    struct out out = {value, value};

    put_u64(&out, probe->drives_checksum);
    put_u64(&out, probe->bytes_per_s);
    put_u32(&out, probe->piece_bytes);
    put_u32(&out, probe->depth);
    return length_of(&out);
}

size_t sl_store_hot_encode(const struct sl_expert_key *keys, uint32_t n_keys, uint8_t *value)
{
    struct out out = {value, value};

    for (uint32_t i = 0; i < n_keys; i++) {
        put(&out, keys[i].layer_index, 2);
        put(&out, keys[i].expert_index, 2);
    }
    return (size_t)(out.at - out.start);
}

/* ---- reading ----------------------------------------------------------------------------------
 */

/* A value that is being read. If it ends too early or is unsound, `bad` is set, and everything read
 * from then on is zero. */
struct in {
    const uint8_t *at, *end;
    bool bad;
};

static uint64_t get(struct in *in, size_t n_bytes)
{
    uint64_t value = 0;

    if ((size_t)(in->end - in->at) < n_bytes)
        in->bad = true;
    if (in->bad)
        return 0;
    for (size_t i = 0; i < n_bytes; i++)
        value |= (uint64_t)*in->at++ << 8 * i;
    return value;
}

static uint32_t get_u32(struct in *in)
{
    return (uint32_t)get(in, 4);
}

static uint64_t get_u64(struct in *in)
{
    return get(in, 8);
}

/* Reads a text of at most text_bytes, its zero byte included. It may not be empty or have control
 * characters. */
static void get_text(struct in *in, char *text, size_t text_bytes)
{
    size_t length = get_u32(in);

    in->bad |= length == 0 || length >= text_bytes || length > (size_t)(in->end - in->at);
    text[0] = '\0';
    if (in->bad)
        return;
    for (size_t i = 0; i < length; i++)
        in->bad |= in->at[i] < 0x20 || in->at[i] == 0x7f;
    memcpy(text, in->at, length);
    text[length] = '\0';
    in->at += length;
}

static void get_extent(struct in *in, struct sl_extent *extent)
{
    extent->file_index = get_u32(in);
    extent->offset_bytes = get_u64(in);
    extent->size_bytes = get_u64(in);
    in->bad |= extent->file_index >= SL_STORE_FILES_MAX ||
               extent->offset_bytes > OFFSET_BYTES_MAX || extent->size_bytes > OFFSET_BYTES_MAX ||
               extent->size_bytes == 0 || extent->offset_bytes % SL_BLOCK_BYTES != 0;
}

static bool whole(const struct in *in)
{
    return !in->bad && in->at == in->end;
}

bool sl_store_model_decode(struct sl_store_model *model, const uint8_t *value, size_t size_bytes)
{
    struct in in = {value, value + size_bytes, false};

    *model = (struct sl_store_model){.format_version = get_u32(&in)};
    if (!in.bad && model->format_version != SL_STORE_VERSION)
        return true;
    model->layout = get_u32(&in);
    model->config_checksum = get_u64(&in);
    model->index_checksum = get_u64(&in);
    model->shape.num_hidden_layers = get_u32(&in);
    model->shape.n_mtp_layers = get_u32(&in);
    model->shape.n_routed_experts = get_u32(&in);
    model->shape.hidden_size = get_u32(&in);
    model->shape.moe_intermediate_size = get_u32(&in);
    model->shape.expert_dtype =
        model->layout >= SL_STORE_LAYOUT_FP8 ? SL_EXPERT_FP8 : SL_EXPERT_FP4;
    model->n_files = get_u32(&in);
    model->n_tensors = get_u32(&in);
    return whole(&in) && model->layout >= SL_STORE_LAYOUT_FP4 &&
           model->layout <= SL_STORE_LAYOUT_FP8_ZSTD && model->n_files >= 2 &&
           model->n_files <= SL_STORE_FILES_MAX && model->n_tensors <= SL_STORE_TENSORS_MAX &&
           sl_expert_shape_is_sound(&model->shape);
}

bool sl_store_state_decode(struct sl_store_state *state, const uint8_t *value, size_t size_bytes)
{
    struct in in = {value, value + size_bytes, false};
    uint32_t complete;

    state->n_tensors_done = get_u32(&in);
    state->n_experts_done = get_u32(&in);
    complete = get_u32(&in);
    state->complete = complete == 1;
    return whole(&in) && complete <= 1;
}

bool sl_store_file_decode(struct sl_store_file *file, const uint8_t *value, size_t size_bytes)
{
    struct in in = {value, value + size_bytes, false};

    file->size_bytes = get_u64(&in);
    get_text(&in, file->path, sizeof(file->path));
    return whole(&in) && file->size_bytes <= OFFSET_BYTES_MAX &&
           file->size_bytes % SL_BLOCK_BYTES == 0;
}

/* Returns whether no part of the path is empty, "." or "..". */
static bool is_plain_path(const char *path)
{
    while (*path == '/') {
        size_t length = strcspn(++path, "/");

        if (length == 0 || (length <= 2 && strspn(path, ".") >= length))
            return false;
        path += length;
    }
    return *path == '\0';
}

bool sl_store_file_is_sound(const struct sl_store_file *file, uint32_t file_index)
{
    static const char *const own[] = {"dense.bin", "experts-1.bin"};
    char name[32];

    if (file_index < 2)
        return strcmp(file->path, own[file_index]) == 0;
    snprintf(name, sizeof(name), "/experts-%u.bin", file_index);
    return is_plain_path(file->path) && strcmp(strrchr(file->path, '/'), name) == 0;
}

bool sl_store_copied_file_decode(struct sl_store_copied_file *copied, const uint8_t *value,
                                 size_t size_bytes)
{
    struct in in = {value, value + size_bytes, false};

    copied->size_bytes = get_u64(&in);
    copied->checksum = get_u64(&in);
    get_text(&in, copied->name, sizeof(copied->name));
    for (size_t i = 0; i < SL_STORE_COPIED_NAMES; i++)
        if (strcmp(copied->name, sl_store_copied_names[i]) == 0)
            return whole(&in);
    return false;
}

static bool dtype_of(const char *name, enum sl_dtype *ret_dtype)
{
    for (int i = 0; i < SL_DTYPE_COUNT; i++) {
        if (strcmp(name, sl_dtype_name((enum sl_dtype)i)) == 0) {
            *ret_dtype = (enum sl_dtype)i;
            return true;
        }
    }
    return false;
}

/* Reads a shape, whose size must be that of the tensor's extent. */
static void get_info(struct in *in, struct sl_tensor_info *info, uint64_t extent_bytes)
{
    char dtype[16];

    get_text(in, dtype, sizeof(dtype));
    if (in->bad || !dtype_of(dtype, &info->dtype)) {
        in->bad = true;
        return;
    }
    info->n_dims = get_u32(in);
    info->size_bytes = sl_dtype_size_bytes(info->dtype);
    in->bad |= info->n_dims > SL_TENSOR_DIMS_MAX;
    for (uint32_t i = 0; i < SL_TENSOR_DIMS_MAX && !in->bad; i++) {
        info->shape[i] = i < info->n_dims ? get_u64(in) : 1;
        in->bad |= !sl_mul_u64(info->size_bytes, info->shape[i], &info->size_bytes);
    }
    in->bad |= info->size_bytes != extent_bytes;
}

bool sl_store_tensor_decode(struct sl_store_tensor *tensor, const uint8_t *value, size_t size_bytes)
{
    struct in in = {value, value + size_bytes, false};

    *tensor = (struct sl_store_tensor){.checksum = get_u64(&in)};
    get_extent(&in, &tensor->extent);
    get_info(&in, &tensor->info, tensor->extent.size_bytes);
    get_text(&in, tensor->name, sizeof(tensor->name));
    return whole(&in) && tensor->extent.file_index == 0;
}

bool sl_store_expert_decode(struct sl_packed_expert *expert, const uint8_t *value,
                            size_t size_bytes)
{
    struct in in = {value, value + size_bytes, false};

    *expert = (struct sl_packed_expert){0};
    for (uint32_t i = 0; i < SL_EXPERT_MATRICES; i++)
        expert->checksums[i] = get_u64(&in);
    expert->n_parts = get_u32(&in);
    in.bad |= expert->n_parts < 1 || expert->n_parts > SL_EXPERT_PARTS_MAX;
    for (uint32_t i = 0; i < expert->n_parts && !in.bad; i++) {
        get_extent(&in, &expert->parts[i]);
        in.bad |=
            expert->parts[i].size_bytes % SL_BLOCK_BYTES != 0 || expert->parts[i].file_index == 0;
    }
    expert->compressed = in.at < in.end;
    if (expert->compressed)
        expert->stored_checksum = get_u64(&in);
    return whole(&in);
}

bool sl_store_probe_decode(struct sl_store_probe *probe, const uint8_t *value, size_t size_bytes)
{
    struct in in = {value, value + size_bytes, false};

    probe->drives_checksum = get_u64(&in);
    probe->bytes_per_s = get_u64(&in);
    probe->piece_bytes = get_u32(&in);
    probe->depth = get_u32(&in);
    return whole(&in) && probe->piece_bytes >= 1 && probe->piece_bytes % SL_BLOCK_BYTES == 0 &&
           probe->piece_bytes <= SL_STORE_PIECE_BYTES_MAX && probe->depth >= 1 &&
           probe->depth <= SL_STORE_DEPTH_MAX;
}

bool sl_store_hot_decode(struct sl_expert_key *keys, uint32_t n_max, uint32_t *ret_n_keys,
                         const uint8_t *value, size_t size_bytes)
{
    struct in in = {value, value + size_bytes, false};
    uint32_t n = 0;

    while (in.at < in.end && !in.bad && n < n_max) {
        keys[n].layer_index = (uint16_t)get(&in, 2);
        keys[n].expert_index = (uint16_t)get(&in, 2);
        n += !in.bad;
    }
    *ret_n_keys = n;
    return size_bytes % 4 == 0;
}
