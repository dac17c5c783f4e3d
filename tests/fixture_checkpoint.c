#include "tests/fixture_checkpoint.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/assert.h"

#define PATCH_BYTES 65536
#define INDEX_BEGIN "{\"metadata\": {}, \"weight_map\": {"

static void join(char path[FIXTURE_PATH_BYTES], const char *folder, const char *file)
{
    sl_assert(snprintf(path, FIXTURE_PATH_BYTES, "%s/%s", folder, file) < FIXTURE_PATH_BYTES);
}

static FILE *open_in(const char *folder, const char *file, const char *mode)
{
    char path[FIXTURE_PATH_BYTES];
    FILE *stream;

    join(path, folder, file);
    stream = fopen(path, mode);
    sl_assert(stream);
    return stream;
}

void fixture_add(struct fixture_list *list, enum sl_dtype dtype, uint64_t rows, uint64_t cols,
                 const char *name_format, ...)
{
    uint32_t count = list->count;
    struct fixture_tensor *tensor;
    va_list args;

    if ((count & (count + 1)) == 0) {
        list->tensors = realloc(list->tensors, (2 * (size_t)count + 1) * sizeof(*tensor));
        sl_assert(list->tensors);
    }
    tensor = &list->tensors[list->count++];
    *tensor = (struct fixture_tensor){
        .dtype = dtype, .n_dims = cols ? 2 : 1, .shape = {rows, cols ? cols : 1, 1, 1}};
    va_start(args, name_format);
    vsnprintf(tensor->name, sizeof(tensor->name), name_format, args);
    va_end(args);
}

void fixture_add_experts(struct fixture_list *list, const char *prefix, uint32_t n_experts,
                         uint64_t hidden_size, uint64_t moe_intermediate_size)
{
    for (uint32_t e = 0; e < n_experts; e++) {
        for (uint32_t w = 1; w <= 3; w++) {
            uint64_t rows = w == 2 ? hidden_size : moe_intermediate_size;
            uint64_t cols = w == 2 ? moe_intermediate_size : hidden_size;

            fixture_add(list, SL_DTYPE_I8, rows, cols / 2, "%s.ffn.experts.%u.w%u.weight", prefix,
                        e, w);
            fixture_add(list, SL_DTYPE_F8_E8M0, rows, cols / 32, "%s.ffn.experts.%u.w%u.scale",
                        prefix, e, w);
        }
    }
}

void fixture_add_fp8_experts(struct fixture_list *list, const char *prefix, uint32_t n_experts,
                             uint64_t hidden_size, uint64_t moe_intermediate_size,
                             enum sl_dtype scale_dtype)
{
    for (uint32_t e = 0; e < n_experts; e++) {
        for (uint32_t w = 1; w <= 3; w++) {
            uint64_t rows = w == 2 ? hidden_size : moe_intermediate_size;
            uint64_t cols = w == 2 ? moe_intermediate_size : hidden_size;

            fixture_add(list, SL_DTYPE_F8_E4M3, rows, cols, "%s.ffn.experts.%u.w%u.weight", prefix,
                        e, w);
            fixture_add(list, scale_dtype, rows / 128, cols / 128, "%s.ffn.experts.%u.w%u.scale",
                        prefix, e, w);
        }
    }
}

void fixture_fini(struct fixture_list *list)
{
    free(list->tensors);
    *list = (struct fixture_list){0};
}

void fixture_folder_create(char folder[FIXTURE_PATH_BYTES])
{
    const char *parent = getenv("TMPDIR");

    join(folder, parent ? parent : "/tmp", "sluice-test-XXXXXX");
    sl_assert(mkdtemp(folder));
}

void fixture_folder_remove(const char *folder)
{
    char path[FIXTURE_PATH_BYTES];
    DIR *dir = opendir(folder);
    const struct dirent *entry;

    sl_assert(dir);
    while ((entry = readdir(dir))) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        join(path, folder, entry->d_name);
        sl_assert(unlink(path) == 0);
    }
    closedir(dir);
    sl_assert(rmdir(folder) == 0);
}

static uint32_t seed_of(const char *tensor_name)
{
    uint32_t hash = 2166136261u;

    for (const char *c = tensor_name; *c; c++)
        hash = (hash ^ (uint8_t)*c) * 16777619u;
    return hash;
}

static uint8_t byte_at(uint32_t seed, uint64_t i)
{
    return (uint8_t)((seed + (uint32_t)i) * 2654435761u >> 24);
}

uint8_t fixture_byte(const char *tensor_name, uint64_t i)
{
    return byte_at(seed_of(tensor_name), i);
}

static uint64_t tensor_bytes(const struct fixture_tensor *tensor)
{
    uint64_t bytes = sl_dtype_size_bytes(tensor->dtype);

    for (uint32_t i = 0; i < tensor->n_dims; i++)
        bytes *= tensor->shape[i];
    return bytes;
}

static int compare_layout(const void *a, const void *b)
{
    static const int order[SL_DTYPE_COUNT] = {
        [SL_DTYPE_I64] = 0,     [SL_DTYPE_F32] = 1, [SL_DTYPE_BF16] = 2, [SL_DTYPE_F8_E8M0] = 3,
        [SL_DTYPE_F8_E4M3] = 4, [SL_DTYPE_I8] = 5,  [SL_DTYPE_U8] = 6,   [SL_DTYPE_I32] = 7};
    const struct fixture_tensor *x = a, *y = b;

    if (x->dtype != y->dtype)
        return order[x->dtype] - order[y->dtype];
    return strcmp(x->name, y->name);
}

static void write_data(FILE *stream, const struct fixture_tensor *tensor)
{
    uint64_t bytes = tensor_bytes(tensor);
    uint32_t seed = seed_of(tensor->name);
    uint8_t *data = malloc(bytes);

    sl_assert(data);
    for (uint64_t i = 0; i < bytes; i++)
        data[i] = byte_at(seed, i);
    sl_assert(fwrite(data, 1, bytes, stream) == bytes);
    free(data);
}

/* The header's length is only known afterwards: room is left for it. */
static void begin_shard(FILE *stream)
{
    static const uint8_t zeros[8];

    sl_assert(fwrite(zeros, sizeof(zeros), 1, stream) == 1);
}

/* Called at the header's end; returns the file's size once data_bytes have been added. */
static uint64_t end_header(FILE *stream, uint64_t data_bytes)
{
    long end = ftell(stream);
    uint64_t length = (uint64_t)end - 8;

    sl_assert(end >= 8);
    rewind(stream);
    for (int i = 0; i < 8; i++)
        fputc((int)(length >> (8 * i) & 0xff), stream);
    fseek(stream, 0, SEEK_END);
    return (uint64_t)end + data_bytes;
}

static void end_shard(FILE *stream, uint64_t size_bytes)
{
    sl_assert(fflush(stream) == 0);
    sl_assert(ftruncate(fileno(stream), (off_t)size_bytes) == 0);
    sl_assert(fclose(stream) == 0);
}

void fixture_write_shard(const char *folder, const char *file, struct fixture_list *list,
                         bool sparse)
{
    FILE *stream = open_in(folder, file, "wb");
    uint64_t at_bytes = 0, size_bytes;

    qsort(list->tensors, list->count, sizeof(*list->tensors), compare_layout);
    begin_shard(stream);
    fprintf(stream, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (uint32_t i = 0; i < list->count; i++) {
        const struct fixture_tensor *tensor = &list->tensors[i];

        fprintf(stream, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", tensor->name,
                sl_dtype_name(tensor->dtype));
        for (uint32_t d = 0; d < tensor->n_dims; d++)
            fprintf(stream, "%s%llu", d ? "," : "", (unsigned long long)tensor->shape[d]);
        fprintf(stream, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at_bytes,
                (unsigned long long)(at_bytes + tensor_bytes(tensor)));
        at_bytes += tensor_bytes(tensor);
    }
    fprintf(stream, "}");
    size_bytes = end_header(stream, at_bytes);
    for (uint32_t i = 0; !sparse && i < list->count; i++)
        write_data(stream, &list->tensors[i]);
    end_shard(stream, size_bytes);
}

void fixture_write_header(const char *folder, const char *file, const char *header,
                          uint64_t data_bytes)
{
    FILE *stream = open_in(folder, file, "wb");

    begin_shard(stream);
    fputs(header, stream);
    end_shard(stream, end_header(stream, data_bytes));
}

void fixture_write_text(const char *folder, const char *file, const char *text)
{
    FILE *stream = open_in(folder, file, "wb");

    fputs(text, stream);
    sl_assert(fclose(stream) == 0);
}

FILE *fixture_index_begin(const char *folder)
{
    FILE *index = open_in(folder, FIXTURE_INDEX, "wb");

    fputs(INDEX_BEGIN, index);
    return index;
}

void fixture_index_add(FILE *index, const struct fixture_list *list, const char *file)
{
    for (uint32_t i = 0; i < list->count; i++) {
        bool is_first = ftell(index) == (long)strlen(INDEX_BEGIN);

        fprintf(index, "%s\n  \"%s\": \"%s\"", is_first ? "" : ",", list->tensors[i].name, file);
    }
}

void fixture_index_end(FILE *index)
{
    fprintf(index, "\n}}\n");
    sl_assert(fclose(index) == 0);
}

void fixture_model_create(struct fixture_model *model)
{
    FILE *index;

    *model = (struct fixture_model){0};
    fixture_folder_create(model->folder);
    fixture_add(&model->first, SL_DTYPE_BF16, 16, 8, "embed.weight");
    fixture_add_experts(&model->first, "layers.0", FIXTURE_MODEL_EXPERTS, FIXTURE_MODEL_HIDDEN,
                        FIXTURE_MODEL_INTER);
    fixture_add(&model->second, SL_DTYPE_F32, 8, 0, "norm.weight");
    fixture_add(&model->second, SL_DTYPE_I64, 4, 6, "layers.0.ffn.gate.tid2eid");
    fixture_add_experts(&model->second, "mtp.0", FIXTURE_MODEL_EXPERTS, FIXTURE_MODEL_HIDDEN,
                        FIXTURE_MODEL_INTER);
    fixture_write_shard(model->folder, FIXTURE_SHARD_1, &model->first, false);
    fixture_write_shard(model->folder, FIXTURE_SHARD_2, &model->second, false);
    index = fixture_index_begin(model->folder);
    fixture_index_add(index, &model->first, FIXTURE_SHARD_1);
    fixture_index_add(index, &model->second, FIXTURE_SHARD_2);
    fixture_index_end(index);
}

void fixture_model_remove(struct fixture_model *model)
{
    fixture_folder_remove(model->folder);
    fixture_fini(&model->first);
    fixture_fini(&model->second);
}

void fixture_unlink(const char *folder, const char *file)
{
    char path[FIXTURE_PATH_BYTES];

    join(path, folder, file);
    sl_assert(unlink(path) == 0);
}

void fixture_truncate(const char *folder, const char *file, uint64_t size_bytes)
{
    char path[FIXTURE_PATH_BYTES];

    join(path, folder, file);
    sl_assert(truncate(path, (off_t)size_bytes) == 0);
}

void fixture_flip_byte(const char *folder, const char *file, uint64_t offset_bytes)
{
    FILE *stream = open_in(folder, file, "r+b");
    int byte;

    sl_assert(fseek(stream, (long)offset_bytes, SEEK_SET) == 0);
    byte = fgetc(stream);
    sl_assert(byte != EOF);
    sl_assert(fseek(stream, (long)offset_bytes, SEEK_SET) == 0);
    fputc(byte ^ 0xff, stream);
    sl_assert(fclose(stream) == 0);
}

void fixture_patch(const char *folder, const char *file, const char *from, const char *to)
{
    FILE *stream = open_in(folder, file, "r+b");
    char *text = malloc(PATCH_BYTES);
    size_t got;
    char *at;

    sl_assert(text && strlen(from) == strlen(to));
    got = fread(text, 1, PATCH_BYTES, stream);
    at = memmem(text, got, from, strlen(from));
    sl_assert(at);
    sl_assert(fseek(stream, at - text, SEEK_SET) == 0);
    fputs(to, stream);
    sl_assert(fclose(stream) == 0);
    free(text);
}

uint64_t fixture_file_size(const char *folder, const char *file)
{
    char path[FIXTURE_PATH_BYTES];
    struct stat status;

    join(path, folder, file);
    sl_assert(stat(path, &status) == 0);
    return (uint64_t)status.st_size;
}
