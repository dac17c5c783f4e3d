/* A checkpoint folder: tensors are found and read where the files hold them, and every way in which
 * files and index can be wrong gives a line that names file and tensor. Each case writes a small
 * sound folder, damages one thing and opens it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "storage/checkpoint.h"
#include "storage/expert_store.h"
#include "tests/fault_alloc.h"
#include "tests/fixture_checkpoint.h"

#define SHARD_1 "model-00001-of-00002.safetensors"
#define SHARD_2 "model-00002-of-00002.safetensors"
#define INDEX "model.safetensors.index.json"
#define MISSING_NAME "layers.0.ffn.experts.1.w2.scale"

static const struct sl_expert_shape shape = {.num_hidden_layers = 1,
                                             .n_mtp_layers = 1,
                                             .n_routed_experts = 3,
                                             .hidden_size = 128,
                                             .moe_intermediate_size = 256};

struct model {
    char folder[FIXTURE_PATH_BYTES];
    struct fixture_list first, second; /* what the two shards hold */
};

static int set_up(void **state)
{
    struct model *model = calloc(1, sizeof(*model));
    FILE *index;

    fixture_folder_create(model->folder);
    fixture_add(&model->first, SL_DTYPE_BF16, 16, 8, "embed.weight");
    fixture_add_experts(&model->first, "layers.0", 3, 128, 256);
    fixture_add(&model->second, SL_DTYPE_F32, 8, 0, "norm.weight");
    fixture_add(&model->second, SL_DTYPE_I64, 4, 6, "layers.0.ffn.gate.tid2eid");
    fixture_add_experts(&model->second, "mtp.0", 3, 128, 256);
    fixture_write_shard(model->folder, SHARD_1, &model->first, false);
    fixture_write_shard(model->folder, SHARD_2, &model->second, false);
    index = fixture_index_begin(model->folder);
    fixture_index_add(index, &model->first, SHARD_1);
    fixture_index_add(index, &model->second, SHARD_2);
    fixture_index_end(index);
    *state = model;
    return 0;
}

static int tear_down(void **state)
{
    struct model *model = *state;

    fixture_folder_remove(model->folder);
    fixture_fini(&model->first);
    fixture_fini(&model->second);
    free(model);
    return 0;
}

static void remove_file(const struct model *model, const char *file)
{
    char path[2 * FIXTURE_PATH_BYTES];

    snprintf(path, sizeof(path), "%s/%s", model->folder, file);
    assert_int_equal(unlink(path), 0);
}

/* In front of the C library's: what the checkpoint reads comes in pieces, after interruptions, or
 * not at all. */
static struct {
    size_t piece_bytes;   /* 0: whole reads */
    uint64_t count;       /* reads in pieces so far; every second one is interrupted */
    int64_t error_offset; /* reads that touch this byte fail with EIO; -1: none does */
} disk = {.error_offset = -1};

ssize_t pread(int fd, void *dst, size_t size_bytes, off_t offset_bytes)
{
    if (disk.error_offset >= offset_bytes && disk.error_offset < offset_bytes + (off_t)size_bytes) {
        errno = EIO;
        return -1;
    }
    if (disk.piece_bytes && disk.count++ % 2) {
        errno = EINTR;
        return -1;
    }
    if (disk.piece_bytes && size_bytes > disk.piece_bytes)
        size_bytes = disk.piece_bytes;
    return syscall(SYS_pread64, fd, dst, size_bytes, offset_bytes);
}

/* ---- What is sound ---- */

static void check_tensors(struct sl_checkpoint *checkpoint, const struct fixture_list *list,
                          const char *file)
{
    struct sl_weight_source *source = sl_checkpoint_weights(checkpoint);

    for (uint32_t i = 0; i < list->count; i++) {
        const struct fixture_tensor *tensor = &list->tensors[i];
        struct sl_tensor_info info;
        uint8_t *data;

        assert_int_equal(source->ops->find(source, tensor->name, &info), 0);
        assert_int_equal(info.dtype, tensor->dtype);
        assert_int_equal(info.n_dims, tensor->n_dims);
        assert_int_equal(info.shape[0], tensor->shape[0]);
        assert_int_equal(info.shape[1], tensor->shape[1]);
        assert_string_equal(strrchr(source->ops->where(source, tensor->name), '/') + 1, file);
        data = malloc(info.size_bytes);
        assert_int_equal(source->ops->read(source, tensor->name, 0, info.size_bytes, data, NULL),
                         0);
        for (uint64_t k = 0; k < info.size_bytes; k++)
            assert_int_equal(data[k], fixture_byte(tensor->name, k));
        assert_int_equal(source->ops->read(source, tensor->name, 7, 5, data, NULL), 0);
        for (uint64_t k = 0; k < 5; k++)
            assert_int_equal(data[k], fixture_byte(tensor->name, 7 + k));
        free(data);
    }
}

static void check_model(const struct model *model)
{
    struct sl_checkpoint *checkpoint;
    struct sl_weight_source *source;
    struct sl_tensor_info info;
    struct sl_err err = {0};

    if (sl_checkpoint_open(&checkpoint, model->folder, &err) != 0)
        fail_msg("%s", err.message);
    source = sl_checkpoint_weights(checkpoint);
    assert_int_equal(sl_checkpoint_tensor_count(checkpoint),
                     model->first.count + model->second.count);
    assert_int_equal(sl_checkpoint_file_count(checkpoint), 2);
    for (uint32_t i = 1; i < sl_checkpoint_tensor_count(checkpoint); i++)
        assert_true(strcmp(sl_checkpoint_tensor_at(checkpoint, i - 1)->name,
                           sl_checkpoint_tensor_at(checkpoint, i)->name) < 0);
    check_tensors(checkpoint, &model->first, SHARD_1);
    check_tensors(checkpoint, &model->second, SHARD_2);
    assert_int_equal(source->ops->find(source, "norm.weigh", &info), -ENOENT);
    assert_string_equal(source->ops->where(source, "norm.weigh"), model->folder);
    assert_int_equal(source->ops->read(source, "norm.weigh", 0, 0, NULL, &err), -ENOENT);
    assert_non_null(strstr(err.message, "norm.weigh"));
    sl_checkpoint_close(checkpoint);
}

static void test_with_index(void **state)
{
    check_model(*state);
}

static void test_without_index(void **state)
{
    struct model *model = *state;

    remove_file(model, INDEX);
    fixture_write_text(model->folder, "config.json", "{}");
    fixture_write_text(model->folder, ".hidden.safetensors", "not for us");
    check_model(model);
}

/* Tensors that only some reader would know of, in a shard that the index does not name. */
static void test_files_beside_the_index(void **state)
{
    struct model *model = *state;

    fixture_write_text(model->folder, "other.safetensors", "not for us");
    check_model(model);
}

/* ---- What is not ---- */

static void lose_shard(const struct model *model)
{
    remove_file(model, SHARD_2);
}

static void lose_shards_and_index(const struct model *model)
{
    remove_file(model, SHARD_1);
    remove_file(model, SHARD_2);
    remove_file(model, INDEX);
}

static void replace_by_folder(const struct model *model)
{
    char path[2 * FIXTURE_PATH_BYTES];

    remove_file(model, SHARD_1);
    snprintf(path, sizeof(path), "%s/%s", model->folder, SHARD_1);
    assert_int_equal(symlink("..", path), 0);
}

static void replace_by_pipe(const struct model *model)
{
    char path[2 * FIXTURE_PATH_BYTES];

    remove_file(model, SHARD_1);
    snprintf(path, sizeof(path), "%s/%s", model->folder, SHARD_1);
    assert_int_equal(mkfifo(path, 0600), 0);
}

static void cut_last_byte(const struct model *model)
{
    fixture_truncate(model->folder, SHARD_1, fixture_file_size(model->folder, SHARD_1) - 1);
}

static void cut_in_header(const struct model *model)
{
    fixture_truncate(model->folder, SHARD_2, 100);
}

static void cut_in_length(const struct model *model)
{
    fixture_truncate(model->folder, SHARD_2, 5);
}

static void cut_to_nothing(const struct model *model)
{
    fixture_truncate(model->folder, SHARD_2, 0);
}

static void lengthen_header(const struct model *model)
{
    fixture_flip_byte(model->folder, SHARD_1, 7);
}

static void break_json(const struct model *model)
{
    fixture_flip_byte(model->folder, SHARD_1, 8);
}

static void change_dtype(const struct model *model)
{
    fixture_patch(model->folder, SHARD_1, "\"BF16\"", "\"BF17\"");
}

static void rename_tensor(const struct model *model)
{
    fixture_patch(model->folder, SHARD_1, "embed.weight", "embed.weighs");
}

/* One tensor "t" and another, "u", in a folder of a single file without index. */
static void only_file(const struct model *model, const char *header)
{
    lose_shards_and_index(model);
    fixture_write_header(model->folder, "model.safetensors", header, 12);
}

static void overlap(const struct model *model)
{
    only_file(model, "{\"t\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]},"
                     "\"u\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[7,12]}}");
}

static void out_of_range(const struct model *model)
{
    only_file(model, "{\"t\":{\"dtype\":\"U8\",\"shape\":[13],\"data_offsets\":[0,13]}}");
}

static void absurd_shape(const struct model *model)
{
    only_file(model, "{\"t\":{\"dtype\":\"I64\",\"shape\":[3037000500,3037000500],"
                     "\"data_offsets\":[0,12]}}");
}

static void tensor_in_two_shards(const struct model *model)
{
    struct fixture_list list = {0};

    fixture_add(&list, SL_DTYPE_BF16, 16, 8, "embed.weight");
    fixture_write_shard(model->folder, SHARD_2, &list, false);
    fixture_fini(&list);
}

static void index_swaps(const struct model *model)
{
    fixture_patch(model->folder, INDEX, "\"embed.weight\": \"model-00001",
                  "\"embed.weight\": \"model-00002");
}

static void index_names_absent_file(const struct model *model)
{
    fixture_patch(model->folder, INDEX, SHARD_1, "model-00009-of-00002.safetensors");
}

static void index_names_path(const struct model *model)
{
    fixture_patch(model->folder, INDEX, SHARD_1, "../el-00001-of-00002.safetensors");
}

static void index_names_slash(const struct model *model)
{
    fixture_patch(model->folder, INDEX, SHARD_1, "model/00001-of-00002.safetensors");
}

static void index_is_cut(const struct model *model)
{
    fixture_truncate(model->folder, INDEX, 1000);
}

static void index_without_map(const struct model *model)
{
    fixture_patch(model->folder, INDEX, "weight_map", "weight_mop");
}

static void index_of_numbers(const struct model *model)
{
    fixture_write_text(model->folder, INDEX, "{\"weight_map\": {\"embed.weight\": 1}}");
}

static const struct damage {
    void (*inflict)(const struct model *model);
    int code;
    const char *says[3];
} damages[] = {
    {lose_shard, -ENOENT, {INDEX " names", SHARD_2}},
    {lose_shards_and_index, -ENOENT, {"no *.safetensors"}},
    {replace_by_folder, -SL_EFORMAT, {SHARD_1, "not a regular file"}},
    {replace_by_pipe, -SL_EFORMAT, {SHARD_1, "not a regular file"}},
    {cut_last_byte, -SL_ECORRUPT, {SHARD_1, "experts.2.w3.weight", "truncated"}},
    {cut_in_header, -SL_ECORRUPT, {SHARD_2, "the file has only 100"}},
    {cut_in_length, -SL_ECORRUPT, {SHARD_2, "has 5 bytes"}},
    {cut_to_nothing, -SL_ECORRUPT, {SHARD_2, "has 0 bytes"}},
    {lengthen_header, -SL_ECORRUPT, {SHARD_1, "length"}},
    {break_json, -SL_EFORMAT, {SHARD_1, "not valid JSON"}},
    {change_dtype, -SL_EFORMAT, {SHARD_1, "\"embed.weight\"", "\"BF17\""}},
    {rename_tensor, -SL_EFORMAT, {INDEX, "\"embed.weight\"", "in no file"}},
    {overlap, -SL_ECORRUPT, {"/model.safetensors", "\"t\" and \"u\" overlap"}},
    {out_of_range, -SL_ECORRUPT, {"/model.safetensors", "\"t\" ends at byte"}},
    {absurd_shape, -SL_EFORMAT, {"/model.safetensors", "\"t\": I64 [3037000500, 3037000500]"}},
    {tensor_in_two_shards, -SL_EFORMAT, {"\"embed.weight\" is in two files", SHARD_1, SHARD_2}},
    {index_swaps, -SL_EFORMAT, {INDEX, "\"embed.weight\" is said to be in " SHARD_2, SHARD_1}},
    {index_names_absent_file, -ENOENT, {INDEX " names", "model-00009"}},
    {index_names_path, -SL_EFORMAT, {INDEX, "\"../el-00001"}},
    {index_names_slash, -SL_EFORMAT, {INDEX, "\"model/00001"}},
    {index_is_cut, -SL_EFORMAT, {INDEX, "not valid JSON"}},
    {index_without_map, -SL_EFORMAT, {INDEX, "\"weight_map\""}},
    {index_of_numbers, -SL_EFORMAT, {INDEX, "\"embed.weight\""}},
};

static void test_damaged_folders(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(damages) / sizeof(damages[0]); i++) {
        const struct damage *damage = &damages[i];
        struct sl_checkpoint *checkpoint = NULL;
        struct sl_err err = {0};
        void *model;

        set_up(&model);
        damage->inflict(model);
        if (sl_checkpoint_open(&checkpoint, ((struct model *)model)->folder, &err) != damage->code)
            fail_msg("damage %zu: code %d, \"%s\"", i, err.code, err.message);
        assert_null(checkpoint);
        for (size_t k = 0; k < 3 && damage->says[k]; k++) {
            if (!strstr(err.message, damage->says[k]))
                fail_msg("damage %zu: \"%s\" lacks \"%s\"", i, err.message, damage->says[k]);
        }
        assert_null(strchr(err.message, '\n'));
        tear_down(&model);
    }
}

static void test_no_folder(void **state)
{
    struct sl_checkpoint *checkpoint;
    struct sl_err err = {0};

    (void)state;
    assert_int_equal(sl_checkpoint_open(&checkpoint, "/nonexistent/model", &err), -ENOENT);
    assert_non_null(strstr(err.message, "/nonexistent/model"));
    assert_int_equal(sl_checkpoint_open(&checkpoint, "/dev/null", &err), -ENOTDIR);
}

static void test_file_cut_after_opening(void **state)
{
    const struct model *model = *state;
    const struct sl_checkpoint_tensor *tensor;
    struct sl_checkpoint *checkpoint;
    struct sl_weight_source *source;
    struct sl_err err = {0};
    uint8_t data[256];

    assert_int_equal(sl_checkpoint_open(&checkpoint, model->folder, NULL), 0);
    source = sl_checkpoint_weights(checkpoint);
    tensor = sl_checkpoint_find(checkpoint, "embed.weight");
    fixture_truncate(model->folder, SHARD_1, tensor->offset_bytes + 100);
    assert_int_equal(source->ops->read(source, "embed.weight", 0, 100, data, &err), 0);
    assert_int_equal(source->ops->read(source, "embed.weight", 50, 51, data, &err), -SL_ECORRUPT);
    assert_non_null(strstr(err.message, SHARD_1));
    assert_non_null(strstr(err.message, "\"embed.weight\""));
    assert_int_equal(source->ops->read(source, "embed.weight", 200, 8, data, &err), -SL_ECORRUPT);
    sl_checkpoint_close(checkpoint);
}

static void test_short_and_interrupted_reads(void **state)
{
    disk.piece_bytes = 37;
    check_model(*state);
    disk.piece_bytes = 0;
}

static void test_read_errors(void **state)
{
    const struct model *model = *state;
    struct sl_checkpoint *checkpoint;
    struct sl_weight_source *source;
    struct sl_err err = {0};
    uint8_t data[256];

    for (disk.error_offset = 0; disk.error_offset < 20; disk.error_offset += 10) {
        assert_int_equal(sl_checkpoint_open(&checkpoint, model->folder, &err), -EIO);
        assert_non_null(strstr(err.message, SHARD_1));
    }
    disk.error_offset = -1;
    assert_int_equal(sl_checkpoint_open(&checkpoint, model->folder, NULL), 0);
    source = sl_checkpoint_weights(checkpoint);
    disk.error_offset = (int64_t)sl_checkpoint_find(checkpoint, "embed.weight")->offset_bytes + 100;
    assert_int_equal(source->ops->read(source, "embed.weight", 0, 100, data, &err), 0);
    assert_int_equal(source->ops->read(source, "embed.weight", 1, 100, data, &err), -EIO);
    disk.error_offset = -1;
    assert_non_null(strstr(err.message, SHARD_1));
    assert_non_null(strstr(err.message, "\"embed.weight\""));
    sl_checkpoint_close(checkpoint);
}

/* ---- Experts ---- */

static void check_extent(struct sl_checkpoint *checkpoint, const struct sl_extent *extent,
                         const char *name)
{
    const struct sl_checkpoint_tensor *tensor = sl_checkpoint_find(checkpoint, name);

    assert_non_null(tensor);
    assert_int_equal(extent->offset_bytes, tensor->offset_bytes);
    assert_int_equal(extent->size_bytes, tensor->info.size_bytes);
    assert_int_equal(extent->file_index, tensor->file_index);
}

static void test_experts(void **state)
{
    const struct model *model = *state;
    struct sl_checkpoint *checkpoint;
    struct sl_expert_store *store;
    char name[96];

    assert_int_equal(sl_checkpoint_open(&checkpoint, model->folder, NULL), 0);
    assert_int_equal(sl_expert_store_open(&store, checkpoint, &shape, NULL), 0);
    for (uint16_t layer = 0; layer < 2; layer++) {
        for (uint16_t e = 0; e < 3; e++) {
            const struct sl_expert_record *record =
                sl_expert_store_find(store, (struct sl_expert_key){layer, e});

            for (uint32_t m = 0; m < SL_EXPERT_MATRICES; m++) {
                const char *prefix = layer ? "mtp.0" : "layers.0";

                snprintf(name, sizeof(name), "%s.ffn.experts.%u.w%u.weight", prefix, e, m + 1);
                check_extent(checkpoint, &record->codes[m], name);
                snprintf(name, sizeof(name), "%s.ffn.experts.%u.w%u.scale", prefix, e, m + 1);
                check_extent(checkpoint, &record->scales[m], name);
            }
        }
    }
    assert_null(sl_expert_store_find(store, (struct sl_expert_key){0, 3}));
    assert_null(sl_expert_store_find(store, (struct sl_expert_key){2, 0}));
    assert_int_equal(sl_expert_store_file_count(store), 2);
    assert_non_null(strstr(sl_expert_store_file_path(store, 1), SHARD_2));
    assert_memory_equal(sl_expert_store_shape(store), &shape, sizeof(shape));
    sl_expert_store_close(store);
    sl_checkpoint_close(checkpoint);
}

static void test_reads_are_merged_blocks(void **state)
{
    /* Byte 0 of block b is at b * 4096. */
    struct sl_expert_record record = {
        .codes = {{9 * 4096 + 1, 4096, 1}, {20 * 4096, 4096, 1}, {0, 5000, 0}},
        .scales = {{100, 50, 1}, {11 * 4096 - 1, 1, 1}, {5000, 1, 0}},
    };
    static const struct sl_extent expected[] = {
        {0, 2 * 4096, 0}, {0, 4096, 1}, {9 * 4096, 2 * 4096, 1}, {20 * 4096, 4096, 1}};
    struct sl_extent reads[SL_EXPERT_READS_MAX];

    (void)state;
    assert_int_equal(sl_expert_record_reads(&record, reads), 4);
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(reads[i].offset_bytes, expected[i].offset_bytes);
        assert_int_equal(reads[i].size_bytes, expected[i].size_bytes);
        assert_int_equal(reads[i].file_index, expected[i].file_index);
    }
    record.scales[1].offset_bytes++; /* begins where the read of codes[0] ends: still one read */
    assert_int_equal(sl_expert_record_reads(&record, reads), 4);
    assert_int_equal(reads[2].size_bytes, 3 * 4096);
    record.scales[1].offset_bytes += 4096; /* a block between them */
    assert_int_equal(sl_expert_record_reads(&record, reads), 5);
}

static void test_bad_experts(void **state)
{
    static const struct {
        struct sl_expert_shape shape;
        const char *says[3];
    } cases[] = {
        {{1, 1, 4, 128, 256}, {"layers.0.ffn.experts.3.w1.weight\" is missing", "I8 [256, 64]"}},
        {{1, 2, 3, 128, 256}, {"mtp.1.ffn.experts.0.w1.weight\" is missing"}},
        {{2, 1, 3, 128, 256}, {"layers.1.ffn.experts.0.w1.weight\" is missing"}},
        {{1, 1, 3, 256, 256}, {SHARD_1, "experts.0.w1.weight\" is I8 [256, 64]", "I8 [256, 128]"}},
        {{1, 1, 3, 128, 512}, {SHARD_1, "experts.0.w1.weight\" is I8 [256, 64]", "I8 [512, 64]"}},
    };
    const struct model *model = *state;
    struct sl_checkpoint *checkpoint;
    struct sl_expert_store *store;

    assert_int_equal(sl_checkpoint_open(&checkpoint, model->folder, NULL), 0);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct sl_err err = {0};

        assert_int_equal(sl_expert_store_open(&store, checkpoint, &cases[i].shape, &err),
                         -SL_EFORMAT);
        for (size_t k = 0; k < 3 && cases[i].says[k]; k++) {
            if (!strstr(err.message, cases[i].says[k]))
                fail_msg("case %zu: \"%s\" lacks \"%s\"", i, err.message, cases[i].says[k]);
        }
    }
    sl_checkpoint_close(checkpoint);
}

/* One scale of one expert: of the wrong dtype, of the wrong shape, absent. */
static void test_one_bad_expert_tensor(void **state)
{
    static const struct {
        struct fixture_tensor tensor;
        const char *says;
    } cases[] = {
        {{MISSING_NAME, SL_DTYPE_U8, 2, {128, 8}}, "\" is U8 [128, 8], expected F8_E8M0 [128, 8]"},
        {{MISSING_NAME, SL_DTYPE_F8_E8M0, 2, {128, 4}}, "\" is F8_E8M0 [128, 4], expected"},
        {{MISSING_NAME, SL_DTYPE_F8_E8M0, 1, {1024}}, "\" is F8_E8M0 [1024], expected"},
        {{MISSING_NAME, SL_DTYPE_F8_E8M0, 3, {128, 8, 2}}, "\" is F8_E8M0 [128, 8, 2], expected"},
        {{"other", SL_DTYPE_U8, 1, {1}}, "\" is missing, expected F8_E8M0 [128, 8]"},
    };
    struct model *model = *state;

    remove_file(model, INDEX);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct fixture_list list = {0};
        struct sl_checkpoint *checkpoint;
        struct sl_expert_store *store;
        struct sl_err err = {0};

        fixture_add_experts(&list, "layers.0", 3, 128, 256);
        for (uint32_t k = 0; k < list.count; k++) {
            if (strcmp(list.tensors[k].name, MISSING_NAME) == 0)
                list.tensors[k] = cases[i].tensor;
        }
        fixture_write_shard(model->folder, SHARD_1, &list, true);
        assert_int_equal(sl_checkpoint_open(&checkpoint, model->folder, NULL), 0);
        assert_int_equal(sl_expert_store_open(&store, checkpoint, &shape, &err), -SL_EFORMAT);
        if (!strstr(err.message, MISSING_NAME) || !strstr(err.message, cases[i].says))
            fail_msg("case %zu: \"%s\" lacks \"%s\"", i, err.message, cases[i].says);
        sl_checkpoint_close(checkpoint);
        fixture_fini(&list);
    }
}

/* ---- Memory ---- */

static int open_both(const struct model *model, struct sl_err *err)
{
    struct sl_checkpoint *checkpoint;
    struct sl_expert_store *store;
    int rc = sl_checkpoint_open(&checkpoint, model->folder, err);

    if (rc < 0)
        return rc;
    rc = sl_expert_store_open(&store, checkpoint, &shape, err);
    if (rc == 0)
        sl_expert_store_close(store);
    sl_checkpoint_close(checkpoint);
    return rc;
}

/* The C library may get by without some allocation (asprintf does), so that success is allowed; but
 * an error must say something, nothing may leak, and most failures must show. */
static void fail_every_allocation(const struct model *model, bool persist)
{
    bool happened = true;
    uint64_t nth = 0, n_errors = 0;

    while (happened) {
        int64_t live_count = fault_alloc_live_count();
        struct sl_err err = {0};
        int rc;

        fault_alloc_set(++nth, persist);
        rc = open_both(model, &err);
        happened = fault_alloc_happened();
        fault_alloc_set(0, false);
        if (rc < 0 && (!happened || err.message[0] == '\0'))
            fail_msg("allocation %d: code %d, \"%s\"", (int)nth, rc, err.message);
        assert_int_equal(fault_alloc_live_count(), live_count);
        n_errors += rc < 0;
    }
    assert_true(nth > 500);
    assert_true(n_errors > nth * 9 / 10);
}

static void test_out_of_memory(void **state)
{
    if (!fault_alloc_works())
        skip();
    fail_every_allocation(*state, false);
    fail_every_allocation(*state, true);
    remove_file(*state, INDEX);
    fail_every_allocation(*state, false);
}

#define WITH_MODEL(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_MODEL(test_with_index),
        WITH_MODEL(test_without_index),
        WITH_MODEL(test_files_beside_the_index),
        cmocka_unit_test(test_damaged_folders),
        cmocka_unit_test(test_no_folder),
        WITH_MODEL(test_file_cut_after_opening),
        WITH_MODEL(test_short_and_interrupted_reads),
        WITH_MODEL(test_read_errors),
        WITH_MODEL(test_experts),
        cmocka_unit_test(test_reads_are_merged_blocks),
        WITH_MODEL(test_bad_experts),
        WITH_MODEL(test_one_bad_expert_tensor),
        WITH_MODEL(test_out_of_memory),
    };

    return cmocka_run_group_tests_name("checkpoint", tests, NULL, NULL);
}
