/* The table of experts: every expert's six tensors are found where the files hold them, what is
 * missing or misshapen is named, and running out of memory anywhere is an error that leaks nothing.
 * Each case works on a small sound model of which at most one thing is wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "storage/checkpoint/checkpoint.h"
#include "storage/experts/expert_map.h"
#include "tests/fault_alloc.h"
#include "tests/fixture_checkpoint.h"

#define MISSING_NAME "layers.0.ffn.experts.1.w2.scale"

static const struct sl_expert_shape shape = {.num_hidden_layers = 1,
                                             .n_mtp_layers = 1,
                                             .n_routed_experts = FIXTURE_MODEL_EXPERTS,
                                             .hidden_size = FIXTURE_MODEL_HIDDEN,
                                             .moe_intermediate_size = FIXTURE_MODEL_INTER};

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
    const struct fixture_model *model = *state;
    struct sl_checkpoint *checkpoint;
    struct sl_expert_map *store;
    char name[96];

    assert_int_equal(sl_checkpoint_open(&checkpoint, model->folder, NULL), 0);
    assert_int_equal(sl_expert_map_of_checkpoint(&store, checkpoint, &shape, NULL), 0);
    for (uint16_t layer = 0; layer < 2; layer++) {
        for (uint16_t e = 0; e < 3; e++) {
            const struct sl_checkpoint_expert *record =
                sl_expert_map_find(store, (struct sl_expert_key){layer, e});

            for (uint32_t m = 0; m < SL_EXPERT_MATRICES; m++) {
                const char *prefix = layer ? "mtp.0" : "layers.0";

                snprintf(name, sizeof(name), "%s.ffn.experts.%u.w%u.weight", prefix, e, m + 1);
                check_extent(checkpoint, &record->codes[m], name);
                snprintf(name, sizeof(name), "%s.ffn.experts.%u.w%u.scale", prefix, e, m + 1);
                check_extent(checkpoint, &record->scales[m], name);
            }
        }
    }
    assert_null(sl_expert_map_find(store, (struct sl_expert_key){0, 3}));
    assert_null(sl_expert_map_find(store, (struct sl_expert_key){2, 0}));
    assert_int_equal(sl_expert_map_file_count(store), 2);
    assert_non_null(strstr(sl_expert_map_file_path(store, 1), FIXTURE_SHARD_2));
    assert_memory_equal(sl_expert_map_shape(store), &shape, sizeof(shape));
    sl_expert_map_close(store);
    sl_checkpoint_close(checkpoint);
}

static void test_reads_are_merged_blocks(void **state)
{
    /* Byte 0 of block b is at b * 4096. */
    struct sl_checkpoint_expert record = {
        .codes = {{9 * 4096 + 1, 4096, 1}, {20 * 4096, 4096, 1}, {0, 5000, 0}},
        .scales = {{100, 50, 1}, {11 * 4096 - 1, 1, 1}, {5000, 1, 0}},
    };
    static const struct sl_extent expected[] = {
        {0, 2 * 4096, 0}, {0, 4096, 1}, {9 * 4096, 2 * 4096, 1}, {20 * 4096, 4096, 1}};
    struct sl_extent reads[SL_EXPERT_READS_MAX];

    (void)state;
    assert_int_equal(sl_checkpoint_expert_reads(&record, reads), 4);
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(reads[i].offset_bytes, expected[i].offset_bytes);
        assert_int_equal(reads[i].size_bytes, expected[i].size_bytes);
        assert_int_equal(reads[i].file_index, expected[i].file_index);
    }
    record.scales[1].offset_bytes++; /* begins where the read of codes[0] ends: still one read */
    assert_int_equal(sl_checkpoint_expert_reads(&record, reads), 4);
    assert_int_equal(reads[2].size_bytes, 3 * 4096);
    record.scales[1].offset_bytes += 4096; /* a block between them */
    assert_int_equal(sl_checkpoint_expert_reads(&record, reads), 5);
}

static void test_bad_experts(void **state)
{
    static const struct {
        struct sl_expert_shape shape;
        const char *says[3];
    } cases[] = {
        {{1, 1, 4, 128, 256, SL_EXPERT_FP4},
         {"layers.0.ffn.experts.3.w1.weight\" is missing", "I8 [256, 64]"}},
        {{1, 2, 3, 128, 256, SL_EXPERT_FP4}, {"mtp.1.ffn.experts.0.w1.weight\" is missing"}},
        {{2, 1, 3, 128, 256, SL_EXPERT_FP4}, {"num_hidden_layers is 2", "no tensors of layer 1: "}},
        {{1, 1, 3, 256, 256, SL_EXPERT_FP4},
         {FIXTURE_SHARD_1, "experts.0.w1.weight\" is I8 [256, 64]", "I8 [256, 128]"}},
        {{1, 1, 3, 128, 512, SL_EXPERT_FP4},
         {FIXTURE_SHARD_1, "experts.0.w1.weight\" is I8 [256, 64]", "I8 [512, 64]"}},
    };
    const struct fixture_model *model = *state;
    struct sl_checkpoint *checkpoint;
    struct sl_expert_map *store;

    assert_int_equal(sl_checkpoint_open(&checkpoint, model->folder, NULL), 0);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct sl_err err = {0};

        assert_int_equal(sl_expert_map_of_checkpoint(&store, checkpoint, &cases[i].shape, &err),
                         -SL_EFORMAT);
        for (size_t k = 0; k < 3 && cases[i].says[k]; k++) {
            if (!strstr(err.message, cases[i].says[k]))
                fail_msg("case %zu: \"%s\" lacks \"%s\"", i, err.message, cases[i].says[k]);
        }
    }
    sl_checkpoint_close(checkpoint);
}

/* Writes the model's experts anew: FP8 with scales of these dtypes in the layer and in the MTP
 * block. SL_DTYPE_I8 leaves FP4 there. */
static void make_fp8(struct fixture_model *model, enum sl_dtype layer, enum sl_dtype mtp)
{
    const enum sl_dtype dtypes[] = {layer, mtp};
    struct fixture_list *lists[] = {&model->first, &model->second};
    FILE *index = fixture_index_begin(model->folder);

    for (int i = 0; i < 2; i++) {
        const char *block = i ? "mtp.0" : "layers.0",
                   *shard = i ? FIXTURE_SHARD_2 : FIXTURE_SHARD_1;

        fixture_fini(lists[i]);
        if (dtypes[i] == SL_DTYPE_I8)
            fixture_add_experts(lists[i], block, FIXTURE_MODEL_EXPERTS, FIXTURE_MODEL_HIDDEN,
                                FIXTURE_MODEL_INTER);
        else
            fixture_add_fp8_experts(lists[i], block, FIXTURE_MODEL_EXPERTS, FIXTURE_MODEL_HIDDEN,
                                    FIXTURE_MODEL_INTER, dtypes[i]);
        fixture_write_shard(model->folder, shard, lists[i], false);
        fixture_index_add(index, lists[i], shard);
    }
    fixture_index_end(index);
}

/* Whatever the config says, the first expert's tensors settle what all are. */
static void test_tensors_settle_the_dtype(void **state)
{
    static const struct {
        enum sl_dtype layer, mtp;
        const char *says;
    } cases[] = {
        {SL_DTYPE_F32, SL_DTYPE_F32, NULL},
        {SL_DTYPE_F8_E8M0, SL_DTYPE_F8_E8M0, NULL},
        {SL_DTYPE_I8, SL_DTYPE_I8, NULL},
        {SL_DTYPE_F32, SL_DTYPE_I8,
         "mtp.0.ffn.experts.0.w1.weight\" is I8 [256, 64], expected F8_E4M3"},
        {SL_DTYPE_I8, SL_DTYPE_F32,
         "mtp.0.ffn.experts.0.w1.weight\" is F8_E4M3 [256, 128], expected I8"},
        {SL_DTYPE_F32, SL_DTYPE_F8_E8M0,
         "mtp.0.ffn.experts.0.w1.scale\" is F8_E8M0 [2, 1], expected F32"},
        {SL_DTYPE_F8_E8M0, SL_DTYPE_F32,
         "mtp.0.ffn.experts.0.w1.scale\" is F32 [2, 1], expected F8_E8M0"},
        {SL_DTYPE_BF16, SL_DTYPE_BF16,
         "layers.0.ffn.experts.0.w1.scale\" is BF16 [2, 1], expected F32"},
    };
    struct fixture_model *model = *state;

    for (size_t i = 0; i < 2 * sizeof(cases) / sizeof(cases[0]); i++) {
        struct sl_expert_shape asked = shape;
        struct sl_checkpoint *checkpoint;
        struct sl_expert_map *map;
        struct sl_err err = {0};
        int rc;

        asked.expert_dtype = i % 2 ? SL_EXPERT_FP8 : SL_EXPERT_FP4;
        make_fp8(model, cases[i / 2].layer, cases[i / 2].mtp);
        assert_int_equal(sl_checkpoint_open(&checkpoint, model->folder, NULL), 0);
        rc = sl_expert_map_of_checkpoint(&map, checkpoint, &asked, &err);
        if (cases[i / 2].says) {
            assert_int_equal(rc, -SL_EFORMAT);
            if (!strstr(err.message, cases[i / 2].says))
                fail_msg("case %zu: %s", i, err.message);
        } else {
            const bool fp4 = cases[i / 2].layer == SL_DTYPE_I8;

            assert_int_equal(rc, 0);
            assert_int_equal(sl_expert_map_shape(map)->expert_dtype,
                             fp4 ? SL_EXPERT_FP4 : SL_EXPERT_FP8);
            assert_int_equal(sl_expert_map_scale_dtype(map),
                             fp4 ? SL_DTYPE_F8_E8M0 : cases[i / 2].layer);
            check_extent(
                checkpoint,
                &sl_expert_map_find(map, (struct sl_expert_key){1, 2})->scales[SL_EXPERT_W2],
                "mtp.0.ffn.experts.2.w2.scale");
            sl_expert_map_close(map);
        }
        sl_checkpoint_close(checkpoint);
    }
}

/* Experts that are neither, such as those of a copy in BF16. */
static void test_experts_of_another_kind(void **state)
{
    struct fixture_model *model = *state;
    struct sl_checkpoint *checkpoint;
    struct sl_expert_map *map;
    struct sl_err err = {0};

    for (uint32_t i = 0; i < model->first.count; i++)
        if (strstr(model->first.tensors[i].name, "experts.0.w1.weight"))
            model->first.tensors[i].dtype = SL_DTYPE_BF16;
    fixture_write_shard(model->folder, FIXTURE_SHARD_1, &model->first, false);
    assert_int_equal(sl_checkpoint_open(&checkpoint, model->folder, NULL), 0);
    assert_int_equal(sl_expert_map_of_checkpoint(&map, checkpoint, &shape, &err), -SL_EUNSUPPORTED);
    assert_non_null(
        strstr(err.message, "experts.0.w1.weight\" is BF16 [256, 64]; this engine runs"));
    sl_checkpoint_close(checkpoint);
}

/* One scale of one expert: of the wrong dtype, of the wrong shape, absent. */
static void test_one_bad_expert_tensor(void **state)
{
    static const struct {
        struct fixture_tensor tensor;
        const char *says;
    } cases[] = {
        {{MISSING_NAME, SL_DTYPE_I8, 2, {128, 8}}, "\" is I8 [128, 8], expected F8_E8M0 [128, 8]"},
        {{MISSING_NAME, SL_DTYPE_F8_E8M0, 2, {128, 4}}, "\" is F8_E8M0 [128, 4], expected"},
        {{MISSING_NAME, SL_DTYPE_F8_E8M0, 1, {1024}}, "\" is F8_E8M0 [1024], expected"},
        {{MISSING_NAME, SL_DTYPE_F8_E8M0, 3, {128, 8, 2}}, "\" is F8_E8M0 [128, 8, 2], expected"},
        {{"other", SL_DTYPE_U8, 1, {1}}, "\" is missing, expected F8_E8M0 [128, 8]"},
    };
    struct fixture_model *model = *state;

    fixture_unlink(model->folder, FIXTURE_INDEX);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct fixture_list list = {0};
        struct sl_checkpoint *checkpoint;
        struct sl_expert_map *store;
        struct sl_err err = {0};

        fixture_add_experts(&list, "layers.0", 3, 128, 256);
        for (uint32_t k = 0; k < list.count; k++) {
            if (strcmp(list.tensors[k].name, MISSING_NAME) == 0)
                list.tensors[k] = cases[i].tensor;
        }
        fixture_write_shard(model->folder, FIXTURE_SHARD_1, &list, true);
        assert_int_equal(sl_checkpoint_open(&checkpoint, model->folder, NULL), 0);
        assert_int_equal(sl_expert_map_of_checkpoint(&store, checkpoint, &shape, &err),
                         -SL_EFORMAT);
        if (!strstr(err.message, MISSING_NAME) || !strstr(err.message, cases[i].says))
            fail_msg("case %zu: \"%s\" lacks \"%s\"", i, err.message, cases[i].says);
        sl_checkpoint_close(checkpoint);
        fixture_fini(&list);
    }
}

/* ---- Memory ---- */

static int open_both(const struct fixture_model *model, struct sl_err *err)
{
    struct sl_checkpoint *checkpoint;
    struct sl_expert_map *store;
    int rc = sl_checkpoint_open(&checkpoint, model->folder, err);

    if (rc < 0)
        return rc;
    rc = sl_expert_map_of_checkpoint(&store, checkpoint, &shape, err);
    if (rc == 0)
        sl_expert_map_close(store);
    sl_checkpoint_close(checkpoint);
    return rc;
}

/* The C library may get by without some allocation (asprintf does), so that success is allowed; but
 * an error must say something, nothing may leak, and most failures must show. */
static void fail_every_allocation(const struct fixture_model *model, bool persist,
                                  uint64_t n_at_least)
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
    assert_true(nth > n_at_least);
    assert_true(n_errors > nth * 3 / 4);
}

static void test_out_of_memory(void **state)
{
    const struct fixture_model *model = *state;

    if (!fault_alloc_works())
        skip();
    fail_every_allocation(model, false, 20);
    fail_every_allocation(model, true, 20);
    /* Written in a way that goes through jansson. */
    fixture_patch(model->folder, FIXTURE_INDEX, "\"metadata\": {}, ", "\"other\": [1] ,  ");
    fail_every_allocation(model, false, 100);
    fixture_unlink(model->folder, FIXTURE_INDEX);
    fail_every_allocation(model, false, 20);
}

#define WITH_MODEL(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_MODEL(test_experts),
        cmocka_unit_test(test_reads_are_merged_blocks),
        WITH_MODEL(test_bad_experts),
        WITH_MODEL(test_one_bad_expert_tensor),
        WITH_MODEL(test_tensors_settle_the_dtype),
        WITH_MODEL(test_experts_of_another_kind),
        WITH_MODEL(test_out_of_memory),
    };

    return cmocka_run_group_tests_name("expert_map", tests, NULL, NULL);
}
