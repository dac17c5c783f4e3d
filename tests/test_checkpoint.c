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

#include "storage/checkpoint/checkpoint.h"
#include "tests/fixture_checkpoint.h"

#define SHARD_1 FIXTURE_SHARD_1
#define SHARD_2 FIXTURE_SHARD_2
#define INDEX FIXTURE_INDEX

static int set_up(void **state)
{
    *state = calloc(1, sizeof(struct fixture_model));
    fixture_model_create(*state);
    return 0;
}

static int tear_down(void **state)
{
    fixture_model_remove(*state);
    free(*state);
    return 0;
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

static void check_model(const struct fixture_model *model)
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
    struct fixture_model *model = *state;

    fixture_unlink(model->folder, INDEX);
    fixture_write_text(model->folder, "config.json", "{}");
    fixture_write_text(model->folder, ".hidden.safetensors", "not for us");
    check_model(model);
}

/* Tensors that only some reader would know of, in a shard that the index does not name. */
static void test_files_beside_the_index(void **state)
{
    struct fixture_model *model = *state;

    fixture_write_text(model->folder, "other.safetensors", "not for us");
    check_model(model);
}

/* ---- What is not ---- */

static void lose_shard(const struct fixture_model *model)
{
    fixture_unlink(model->folder, SHARD_2);
}

static void lose_shards_and_index(const struct fixture_model *model)
{
    fixture_unlink(model->folder, SHARD_1);
    fixture_unlink(model->folder, SHARD_2);
    fixture_unlink(model->folder, INDEX);
}

static void replace_by_folder(const struct fixture_model *model)
{
    char path[2 * FIXTURE_PATH_BYTES];

    fixture_unlink(model->folder, SHARD_1);
    snprintf(path, sizeof(path), "%s/%s", model->folder, SHARD_1);
    assert_int_equal(symlink("..", path), 0);
}

static void replace_by_pipe(const struct fixture_model *model)
{
    char path[2 * FIXTURE_PATH_BYTES];

    fixture_unlink(model->folder, SHARD_1);
    snprintf(path, sizeof(path), "%s/%s", model->folder, SHARD_1);
    assert_int_equal(mkfifo(path, 0600), 0);
}

static void cut_last_byte(const struct fixture_model *model)
{
    fixture_truncate(model->folder, SHARD_1, fixture_file_size(model->folder, SHARD_1) - 1);
}

static void cut_in_header(const struct fixture_model *model)
{
    fixture_truncate(model->folder, SHARD_2, 100);
}

static void cut_in_length(const struct fixture_model *model)
{
    fixture_truncate(model->folder, SHARD_2, 5);
}

static void cut_to_nothing(const struct fixture_model *model)
{
    fixture_truncate(model->folder, SHARD_2, 0);
}

static void lengthen_header(const struct fixture_model *model)
{
    fixture_flip_byte(model->folder, SHARD_1, 7);
}

static void break_json(const struct fixture_model *model)
{
    fixture_flip_byte(model->folder, SHARD_1, 8);
}

static void rename_tensor(const struct fixture_model *model)
{
    fixture_patch(model->folder, SHARD_1, "embed.weight", "embed.weighs");
}

/* One tensor "t" and another, "u", in a folder of a single file without index. */
static void only_file(const struct fixture_model *model, const char *header)
{
    lose_shards_and_index(model);
    fixture_write_header(model->folder, "model.safetensors", header, 12);
}

static void overlap(const struct fixture_model *model)
{
    only_file(model, "{\"t\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]},"
                     "\"u\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[7,12]}}");
}

static void out_of_range(const struct fixture_model *model)
{
    only_file(model, "{\"t\":{\"dtype\":\"U8\",\"shape\":[13],\"data_offsets\":[0,13]}}");
}

static void absurd_shape(const struct fixture_model *model)
{
    only_file(model, "{\"t\":{\"dtype\":\"I64\",\"shape\":[3037000500,3037000500],"
                     "\"data_offsets\":[0,12]}}");
}

static void tensor_in_two_shards(const struct fixture_model *model)
{
    struct fixture_list list = {0};

    fixture_add(&list, SL_DTYPE_BF16, 16, 8, "embed.weight");
    fixture_write_shard(model->folder, SHARD_2, &list, false);
    fixture_fini(&list);
}

static void index_swaps(const struct fixture_model *model)
{
    fixture_patch(model->folder, INDEX, "\"embed.weight\": \"model-00001",
                  "\"embed.weight\": \"model-00002");
}

static void index_names_absent_file(const struct fixture_model *model)
{
    fixture_patch(model->folder, INDEX, SHARD_1, "model-00009-of-00002.safetensors");
}

static void index_names_path(const struct fixture_model *model)
{
    fixture_patch(model->folder, INDEX, SHARD_1, "../el-00001-of-00002.safetensors");
}

static void index_names_slash(const struct fixture_model *model)
{
    fixture_patch(model->folder, INDEX, SHARD_1, "model/00001-of-00002.safetensors");
}

static void index_is_cut(const struct fixture_model *model)
{
    fixture_truncate(model->folder, INDEX, 1000);
}

static void index_without_map(const struct fixture_model *model)
{
    fixture_patch(model->folder, INDEX, "weight_map", "weight_mop");
}

static void index_of_numbers(const struct fixture_model *model)
{
    fixture_write_text(model->folder, INDEX, "{\"weight_map\": {\"embed.weight\": 1}}");
}

static void index_names_twice(const struct fixture_model *model)
{
    fixture_write_text(model->folder, INDEX,
                       "{\"weight_map\": {\"norm.weight\": \"" SHARD_2
                       "\", \"norm.weight\": \"" SHARD_2 "\"}}");
}

static const struct damage {
    void (*inflict)(const struct fixture_model *model);
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
    {rename_tensor, -SL_EFORMAT, {INDEX, "\"embed.weight\"", "in no file"}},
    {overlap, -SL_ECORRUPT, {"/model.safetensors", "\"t\" and \"u\" overlap"}},
    {out_of_range, -SL_ECORRUPT, {"/model.safetensors", "\"t\" ends at byte"}},
    {absurd_shape, -SL_EFORMAT, {"/model.safetensors", "\"t\": I64 [3037000500, 3037000500]"}},
    {tensor_in_two_shards, -SL_EFORMAT, {"\"embed.weight\" is in two files", SHARD_1, SHARD_2}},
    {index_swaps, -SL_EFORMAT, {INDEX, "\"embed.weight\" is said to be in " SHARD_2, SHARD_1}},
    {index_names_absent_file, -ENOENT, {INDEX " names", "model-00009"}},
    {index_names_path, -SL_EFORMAT, {INDEX, "\"../el-00001"}},
    {index_names_slash, -SL_EFORMAT, {INDEX, "\"model/00001"}},
    {index_names_twice, -SL_EFORMAT, {INDEX, "\"norm.weight\" comes twice"}},
    {index_is_cut, -SL_EFORMAT, {INDEX, "not valid JSON"}},
    {index_without_map, -SL_EFORMAT, {INDEX, "\"weight_map\""}},
    {index_of_numbers, -SL_EFORMAT, {INDEX, "\"embed.weight\""}},
};

/* Whoever uses the tensor says what is wrong with it. */
static void test_unknown_dtype(void **state)
{
    struct sl_checkpoint *checkpoint;
    const struct sl_checkpoint_tensor *tensor;
    struct fixture_model model;

    (void)state;
    fixture_model_create(&model);
    fixture_patch(model.folder, SHARD_1, "\"BF16\"", "\"BF17\"");
    assert_int_equal(sl_checkpoint_open(&checkpoint, model.folder, NULL), 0);
    tensor = sl_checkpoint_find(checkpoint, "embed.weight");
    assert_int_equal(tensor->info.dtype, SL_DTYPE_OTHER);
    assert_string_equal(sl_tensor_dtype_name(&tensor->info), "BF17");
    sl_checkpoint_close(checkpoint);
    fixture_model_remove(&model);
}

/* Repacks spell names and types in other ways; index and headers may differ in that. */
static void test_other_spellings(void **state)
{
    static const struct {
        const char *other, *official;
        enum sl_dtype dtype, official_dtype;
    } tensors[] = {
        {"model.layers.0.self_attn.wq_a.weight_scale_inv", "layers.0.attn.wq_a.scale", SL_DTYPE_U8,
         SL_DTYPE_F8_E8M0},
        {"model.layers.0.self_attn.wq_a.weight", "layers.0.attn.wq_a.weight", SL_DTYPE_U8,
         SL_DTYPE_U8},
        {"model.layers.0.mlp.gate.e_score_correction_bias", "layers.0.ffn.gate.bias", SL_DTYPE_F32,
         SL_DTYPE_F32},
        {"layers.1.ffn.experts.10.w1.weight", "layers.1.ffn.experts.10.w1.weight", SL_DTYPE_U8,
         SL_DTYPE_I8},
        {"model.mtp.2.mlp.experts.3.w2.weight", "mtp.2.ffn.experts.3.w2.weight", SL_DTYPE_U8,
         SL_DTYPE_I8},
        {"mtp.0.ffn.shared_experts.w1.scale", "mtp.0.ffn.shared_experts.w1.scale", SL_DTYPE_F32,
         SL_DTYPE_F32},
        {"model.norm.weight", "norm.weight", SL_DTYPE_BF16, SL_DTYPE_BF16},
        {"model.", "model.", SL_DTYPE_U8, SL_DTYPE_U8},
        {"a..mlp", "a..ffn", SL_DTYPE_U8, SL_DTYPE_U8},
    };
    char folder[FIXTURE_PATH_BYTES];
    struct sl_checkpoint *checkpoint;
    struct fixture_list list = {0};
    FILE *index;

    (void)state;
    fixture_folder_create(folder);
    for (size_t i = 0; i < sizeof(tensors) / sizeof(tensors[0]); i++)
        fixture_add(&list, tensors[i].dtype, 4, 8, "%s", tensors[i].other);
    fixture_write_shard(folder, SHARD_1, &list, false);
    for (int with_index = 0; with_index < 2; with_index++) {
        if (with_index) {
            index = fixture_index_begin(folder);
            fixture_index_add(index, &list, SHARD_1);
            fixture_index_end(index);
        }
        assert_int_equal(sl_checkpoint_open(&checkpoint, folder, NULL), 0);
        for (size_t i = 0; i < sizeof(tensors) / sizeof(tensors[0]); i++) {
            const struct sl_checkpoint_tensor *tensor =
                sl_checkpoint_find(checkpoint, tensors[i].official);

            assert_non_null(tensor);
            assert_int_equal(tensor->info.dtype, tensors[i].official_dtype);
        }
        sl_checkpoint_close(checkpoint);
    }
    fixture_fini(&list);
    fixture_folder_remove(folder);
}

static void test_damaged_folders(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(damages) / sizeof(damages[0]); i++) {
        const struct damage *damage = &damages[i];
        struct sl_checkpoint *checkpoint = NULL;
        struct sl_err err = {0};
        struct fixture_model model;

        fixture_model_create(&model);
        damage->inflict(&model);
        if (sl_checkpoint_open(&checkpoint, model.folder, &err) != damage->code)
            fail_msg("damage %zu: code %d, \"%s\"", i, err.code, err.message);
        assert_null(checkpoint);
        for (size_t k = 0; k < 3 && damage->says[k]; k++) {
            if (!strstr(err.message, damage->says[k]))
                fail_msg("damage %zu: \"%s\" lacks \"%s\"", i, err.message, damage->says[k]);
        }
        assert_null(strchr(err.message, '\n'));
        fixture_model_remove(&model);
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
    const struct fixture_model *model = *state;
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
    const struct fixture_model *model = *state;
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

#define WITH_MODEL(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_MODEL(test_with_index),
        WITH_MODEL(test_without_index),
        WITH_MODEL(test_files_beside_the_index),
        cmocka_unit_test(test_unknown_dtype),
        cmocka_unit_test(test_other_spellings),
        cmocka_unit_test(test_damaged_folders),
        cmocka_unit_test(test_no_folder),
        WITH_MODEL(test_file_cut_after_opening),
        WITH_MODEL(test_short_and_interrupted_reads),
        WITH_MODEL(test_read_errors),
    };

    return cmocka_run_group_tests_name("checkpoint", tests, NULL, NULL);
}
