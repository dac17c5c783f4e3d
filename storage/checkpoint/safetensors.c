/* Headers are written by programs, all in the same way, and that is read without jansson, which
 * would take 5 to 10 ms for a layer of Pro (2,333 tensors). Whatever is written otherwise, or is
 * wrong, it reads: the quick way accepts nothing that it would not, and no header is refused
 * without it. */
#include "storage/checkpoint/safetensors.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/plain_json.h"
#include "core/base/size.h"

#define METADATA_KEY "__metadata__"
#define DIMS_MAX 64 /* no tensor has as many */

int sl_safetensors_read_length(const uint8_t prefix[SL_SAFETENSORS_LENGTH_BYTES],
                               uint64_t file_size_bytes, size_t *ret_length, const char *where,
                               struct sl_err *err)
{
    uint64_t length = 0;
    int rc;

    if (file_size_bytes < SL_SAFETENSORS_LENGTH_BYTES)
        return sl_err_set(err, -SL_ECORRUPT,
                          "%s: the file has %llu bytes, too few for a safetensors header", where,
                          (unsigned long long)file_size_bytes);
    rc = sl_file_check_fetched(prefix, SL_SAFETENSORS_LENGTH_BYTES, where, err);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < SL_SAFETENSORS_LENGTH_BYTES; i++)
        length |= (uint64_t)prefix[i] << (8 * i);
    if (length > file_size_bytes - SL_SAFETENSORS_LENGTH_BYTES)
        return sl_err_set(err, -SL_ECORRUPT,
                          "%s: the header's length is given as %llu bytes, but the file has only "
                          "%llu in all",
                          where, (unsigned long long)length, (unsigned long long)file_size_bytes);
    if (length > SL_SAFETENSORS_HEADER_BYTES_MAX)
        return sl_err_set(err, -SL_EFORMAT,
                          "%s: the header's length is given as %llu bytes, expected at most %u",
                          where, (unsigned long long)length, SL_SAFETENSORS_HEADER_BYTES_MAX);
    *ret_length = (size_t)length;
    return 0;
}

static int check_name(const char *name, const char *where, struct sl_err *err)
{
    size_t length = strlen(name);

    if (length == 0 || length > SL_SAFETENSORS_NAME_BYTES_MAX)
        return sl_err_set(err, -SL_EFORMAT,
                          "%s: a tensor's name has %zu bytes, expected 1 to %d: \"%.64s\"", where,
                          length, SL_SAFETENSORS_NAME_BYTES_MAX, name);
    for (size_t i = 0; i < length; i++) {
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            return sl_err_set(err, -SL_EFORMAT,
                              "%s: a tensor's name has a control character after \"%.*s\"", where,
                              (int)i, name);
    }
    return 0;
}

/* Returns SL_DTYPE_OTHER for one that is not known. */
static enum sl_dtype find_dtype(const char *text, size_t length)
{
    for (uint32_t i = 0; i < SL_DTYPE_COUNT; i++) {
        const char *name = sl_dtype_name((enum sl_dtype)i);

        if (strlen(name) == length && memcmp(name, text, length) == 0)
            return (enum sl_dtype)i;
    }
    return SL_DTYPE_OTHER;
}

/* An unknown dtype is no error yet: the tensor may be one that nothing uses. */
static int parse_dtype(struct sl_tensor_info *info, const json_t *value, const char *name,
                       const char *where, struct sl_err *err)
{
    const char *text = json_string_value(json_object_get(value, "dtype"));

    if (!text)
        return sl_err_set(err, -SL_EFORMAT, "%s: tensor \"%s\": \"dtype\" is not a string", where,
                          name);
    info->dtype = find_dtype(text, strlen(text));
    if (info->dtype != SL_DTYPE_OTHER)
        return 0;
    for (size_t i = 0; text[i] && i < sizeof(info->other_dtype) - 1; i++)
        info->other_dtype[i] = text[i] > 0x20 && text[i] < 0x7f ? text[i] : '?';
    return 0;
}

/* An element of an unknown dtype has an unknown size, so the tensor's size stays 0 until its
 * offsets are read. */
static int parse_shape(struct sl_tensor_info *info, const json_t *value, const char *name,
                       const char *where, struct sl_err *err)
{
    const json_t *shape = json_object_get(value, "shape");
    char text[SL_TENSOR_TEXT_BYTES];
    bool fits = true;

    if (!json_is_array(shape) || json_array_size(shape) > DIMS_MAX)
        return sl_err_set(err, -SL_EFORMAT,
                          "%s: tensor \"%s\": \"shape\" is not a list of at most %d sizes", where,
                          name, DIMS_MAX);
    info->n_dims = (uint32_t)json_array_size(shape);
    info->size_bytes = info->dtype == SL_DTYPE_OTHER ? 0 : sl_dtype_size_bytes(info->dtype);
    for (uint32_t i = 0; i < SL_TENSOR_DIMS_MAX; i++)
        info->shape[i] = 1;
    for (uint32_t i = 0; i < info->n_dims; i++) {
        const json_t *size = json_array_get(shape, i);
        uint64_t n = (uint64_t)json_integer_value(size);

        if (!json_is_integer(size) || json_integer_value(size) < 0)
            return sl_err_set(err, -SL_EFORMAT,
                              "%s: tensor \"%s\": entry %u of \"shape\" is not a size", where, name,
                              i);
        if (i < SL_TENSOR_DIMS_MAX)
            info->shape[i] = n;
        fits = fits && sl_mul_u64(info->size_bytes, n, &info->size_bytes);
    }
    if (!fits)
        return sl_err_set(err, -SL_EFORMAT,
                          "%s: tensor \"%s\": %s takes more bytes than 64 bits can count", where,
                          name, sl_tensor_format(info, text));
    return 0;
}

static int parse_offsets(struct sl_safetensors_tensor *tensor, const json_t *value,
                         uint64_t data_start_bytes, const char *where, struct sl_err *err)
{
    const json_t *offsets = json_object_get(value, "data_offsets");
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    json_int_t begin_bytes = json_integer_value(begin), end_bytes = json_integer_value(end);
    char text[SL_TENSOR_TEXT_BYTES];

    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end) ||
        begin_bytes < 0 || end_bytes < begin_bytes)
        return sl_err_set(err, -SL_EFORMAT,
                          "%s: tensor \"%s\": \"data_offsets\" is not two ascending offsets", where,
                          tensor->name);
    if (tensor->info.dtype == SL_DTYPE_OTHER)
        tensor->info.size_bytes = (uint64_t)(end_bytes - begin_bytes);
    if ((uint64_t)(end_bytes - begin_bytes) != tensor->info.size_bytes)
        return sl_err_set(
            err, -SL_ECORRUPT, "%s: tensor \"%s\": data_offsets span %llu bytes, but %s takes %llu",
            where, tensor->name, (unsigned long long)(end_bytes - begin_bytes),
            sl_tensor_format(&tensor->info, text), (unsigned long long)tensor->info.size_bytes);
    /* Fits: an offset is below 2^63 and the header below 2^27. */
    tensor->offset_bytes = data_start_bytes + (uint64_t)begin_bytes;
    return 0;
}

static int parse_tensor(struct sl_safetensors_tensor *tensor, const json_t *value,
                        uint64_t data_start_bytes, const char *where, struct sl_err *err)
{
    int rc;

    if (!json_is_object(value))
        return sl_err_set(err, -SL_EFORMAT, "%s: tensor \"%s\": its description is not an object",
                          where, tensor->name);
    rc = parse_dtype(&tensor->info, value, tensor->name, where, err);
    if (rc < 0)
        return rc;
    rc = parse_shape(&tensor->info, value, tensor->name, where, err);
    if (rc < 0)
        return rc;
    return parse_offsets(tensor, value, data_start_bytes, where, err);
}

/* Fills `header`, whose parts the caller frees whatever the outcome. */
static int collect(struct sl_safetensors *header, json_t *root, uint64_t data_start_bytes,
                   const char *where, struct sl_err *err)
{
    size_t names_bytes = 0, used_bytes = 0;
    const char *key;
    json_t *value;
    int rc;

    json_object_foreach(root, key, value)
    {
        rc = check_name(key, where, err);
        if (rc < 0)
            return rc;
        names_bytes += strlen(key) + 1;
    }
    header->names = malloc(names_bytes + 1); /* + 1: an empty header is no failure */
    header->tensors = calloc(json_object_size(root) + 1, sizeof(*header->tensors));
    if (!header->names || !header->tensors)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", where);
    json_object_foreach(root, key, value)
    {
        struct sl_safetensors_tensor *tensor = &header->tensors[header->tensor_count];
        size_t bytes = strlen(key) + 1;

        if (strcmp(key, METADATA_KEY) == 0)
            continue;
        tensor->name = memcpy(header->names + used_bytes, key, bytes);
        used_bytes += bytes;
        rc = parse_tensor(tensor, value, data_start_bytes, where, err);
        if (rc < 0)
            return rc;
        header->tensor_count++;
    }
    return 0;
}

static int collect_any(struct sl_safetensors *header, const char *text, size_t length,
                       const char *where, struct sl_err *err)
{
    json_t *root;
    int rc = sl_json_parse(&root, text, length, where, err);

    if (rc < 0)
        return rc;
    if (json_is_object(root))
        rc = collect(header, root, SL_SAFETENSORS_LENGTH_BYTES + length, where, err);
    else
        rc = sl_err_set(err, -SL_EFORMAT, "%s: the header is not a JSON object", where);
    json_decref(root);
    return rc;
}

/* ---- the quick way ---- */

/* Returns whether the description is a plain one of a tensor that is sound. */
static bool scan_tensor(struct sl_plain_json *json, struct sl_tensor_info *info,
                        uint64_t *ret_begin_bytes)
{
    const char *dtype;
    size_t length;
    uint64_t n, end_bytes;
    bool more;

    if (!sl_plain_mark(json, '{') || !sl_plain_key(json, "dtype") ||
        !sl_plain_string(json, &dtype, &length) || !sl_plain_mark(json, ',') ||
        !sl_plain_key(json, "shape") || !sl_plain_mark(json, '['))
        return false;
    *info = (struct sl_tensor_info){.dtype = find_dtype(dtype, length)};
    if (info->dtype == SL_DTYPE_OTHER)
        return false;
    info->size_bytes = sl_dtype_size_bytes(info->dtype);
    for (uint32_t i = 0; i < SL_TENSOR_DIMS_MAX; i++)
        info->shape[i] = 1;
    for (more = !sl_plain_mark(json, ']'); more; more = sl_plain_mark(json, ',')) {
        if (info->n_dims == SL_TENSOR_DIMS_MAX || !sl_plain_number(json, &n) ||
            !sl_mul_u64(info->size_bytes, n, &info->size_bytes))
            return false;
        info->shape[info->n_dims++] = n;
    }
    return (info->n_dims == 0 || sl_plain_mark(json, ']')) && sl_plain_mark(json, ',') &&
           sl_plain_key(json, "data_offsets") && sl_plain_mark(json, '[') &&
           sl_plain_number(json, ret_begin_bytes) && sl_plain_mark(json, ',') &&
           sl_plain_number(json, &end_bytes) && sl_plain_mark(json, ']') &&
           sl_plain_mark(json, '}') && end_bytes >= *ret_begin_bytes &&
           end_bytes - *ret_begin_bytes == info->size_bytes;
}

/* Reads a plain header; counts its tensors alone where `header` has no room for them. */
static bool scan(struct sl_safetensors *header, const char *text, size_t length)
{
    struct sl_plain_json json = {text, text + length};
    struct sl_safetensors_tensor tensor = {0};
    size_t name_length, used_bytes = 0;
    uint64_t begin_bytes;
    bool more;

    header->tensor_count = 0;
    if (!sl_plain_mark(&json, '{'))
        return false;
    more = !sl_plain_mark(&json, '}');
    if (more && sl_plain_key(&json, METADATA_KEY)) {
        if (!sl_plain_skip_object(&json))
            return false;
        more = sl_plain_mark(&json, ',');
        if (!more && !sl_plain_mark(&json, '}'))
            return false;
    }
    while (more) {
        if (!sl_plain_string(&json, &tensor.name, &name_length) || name_length == 0 ||
            name_length > SL_SAFETENSORS_NAME_BYTES_MAX || !sl_plain_mark(&json, ':') ||
            !scan_tensor(&json, &tensor.info, &begin_bytes))
            return false;
        if (header->tensors) {
            char *name = memcpy(header->names + used_bytes, tensor.name, name_length);

            name[name_length] = '\0';
            tensor.name = name;
            tensor.offset_bytes = SL_SAFETENSORS_LENGTH_BYTES + length + begin_bytes;
            header->tensors[header->tensor_count] = tensor;
            used_bytes += name_length + 1;
        }
        header->tensor_count++;
        more = sl_plain_mark(&json, ',');
        if (!more && !sl_plain_mark(&json, '}'))
            return false;
    }
    return sl_plain_end(&json);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Also true of METADATA_KEY, which is read where it comes first. */
static bool has_name_twice(const struct sl_safetensors *header, const char **names)
{
    names[header->tensor_count] = METADATA_KEY;
    for (uint32_t i = 0; i < header->tensor_count; i++)
        names[i] = header->tensors[i].name;
    qsort(names, header->tensor_count + 1, sizeof(*names), compare_names);
    for (uint32_t i = 0; i < header->tensor_count; i++)
        if (strcmp(names[i], names[i + 1]) == 0)
            return true;
    return false;
}

/* Returns 1 where the header is plain, and then it is filled; 0 where it is not; or -ENOMEM. Its
 * parts are the caller's to free whatever the outcome. */
static int collect_plain(struct sl_safetensors *header, const char *text, size_t length,
                         const char *where, struct sl_err *err)
{
    const char **names;
    bool is_plain;

    if (!scan(header, text, length))
        return 0;
    header->names = malloc(length + 1); /* a name is shorter than what describes the tensor */
    header->tensors = calloc(header->tensor_count + 1, sizeof(*header->tensors));
    names = malloc((header->tensor_count + 1) * sizeof(*names));
    if (!header->names || !header->tensors || !names) {
        free(names);
        return sl_err_set(err, -ENOMEM, "%s: out of memory", where);
    }
    is_plain = scan(header, text, length) && !has_name_twice(header, names);
    free(names);
    return is_plain;
}

/* ---- the layout ---- */

/* Empty tensors come before the one that begins where they lie. */
static int compare_offsets(const void *a, const void *b)
{
    const struct sl_safetensors_tensor *x = a, *y = b;

    if (x->offset_bytes != y->offset_bytes)
        return x->offset_bytes < y->offset_bytes ? -1 : 1;
    if (x->info.size_bytes != y->info.size_bytes)
        return x->info.size_bytes < y->info.size_bytes ? -1 : 1;
    return 0;
}

static int check_layout(struct sl_safetensors *header, uint64_t file_size_bytes, const char *where,
                        struct sl_err *err)
{
    const struct sl_safetensors_tensor *last;
    uint64_t end_bytes = 0;

    if (header->tensor_count == 0)
        return 0;
    qsort(header->tensors, header->tensor_count, sizeof(*header->tensors), compare_offsets);
    for (uint32_t i = 0; i < header->tensor_count; i++) {
        const struct sl_safetensors_tensor *tensor = &header->tensors[i];

        if (tensor->offset_bytes < end_bytes)
            return sl_err_set(err, -SL_ECORRUPT,
                              "%s: tensors \"%s\" and \"%s\" overlap: one ends at byte %llu, the "
                              "other begins at %llu",
                              where, header->tensors[i - 1].name, tensor->name,
                              (unsigned long long)end_bytes,
                              (unsigned long long)tensor->offset_bytes);
        end_bytes = tensor->offset_bytes + tensor->info.size_bytes;
    }
    last = &header->tensors[header->tensor_count - 1];
    if (end_bytes > file_size_bytes)
        return sl_err_set(err, -SL_ECORRUPT,
                          "%s: the file has %llu bytes, but its last tensor \"%s\" ends at byte "
                          "%llu: is the file truncated, or was it packed with --consume?",
                          where, (unsigned long long)file_size_bytes, last->name,
                          (unsigned long long)end_bytes);
    return 0;
}

int sl_safetensors_parse(struct sl_safetensors *ret_header, const char *text, size_t length,
                         uint64_t file_size_bytes, const char *where, struct sl_err *err)
{
    struct sl_safetensors header = {0};
    int rc = collect_plain(&header, text, length, where, err);

    if (rc == 0) {
        sl_safetensors_fini(&header);
        rc = collect_any(&header, text, length, where, err);
    }
    if (rc >= 0)
        rc = check_layout(&header, file_size_bytes, where, err);
    if (rc < 0) {
        sl_safetensors_fini(&header);
        return rc;
    }
    *ret_header = header;
    return 0;
}

void sl_safetensors_fini(struct sl_safetensors *header)
{
    free(header->tensors);
    free(header->names);
    *header = (struct sl_safetensors){0};
}

const char *sl_tensor_format(const struct sl_tensor_info *info, char buffer[SL_TENSOR_TEXT_BYTES])
{
    size_t used =
        (size_t)snprintf(buffer, SL_TENSOR_TEXT_BYTES, "%s [", sl_tensor_dtype_name(info));

    /* Never cut: a dtype has up to 11 characters and each size up to 20 digits. */
    for (uint32_t i = 0; i < info->n_dims && i < SL_TENSOR_DIMS_MAX; i++)
        used += (size_t)snprintf(buffer + used, SL_TENSOR_TEXT_BYTES - used, "%s%llu",
                                 i ? ", " : "", (unsigned long long)info->shape[i]);
    snprintf(buffer + used, SL_TENSOR_TEXT_BYTES - used, "%s]",
             info->n_dims > SL_TENSOR_DIMS_MAX ? ", ..." : "");
    return buffer;
}
