/* The dense weights: what is loaded is the checkpoint's, and what is wrong with a tensor is refused
 * by its name. Every tensor of a tiny model in turn is taken away, misshapen, or damaged; every
 * read and every allocation fails once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/kernels/formats.h"
#include "core/model/weights.h"
#include "tests/fault_alloc.h"
#include "tests/fixture_model.h"

struct rig {
    struct sl_config config;
    struct fixture_weights source;
    struct sl_pool *pool;
};

static int rig_create_dtype(void **state, enum sl_expert_dtype expert_dtype)
{
    struct rig *rig = calloc(1, sizeof(*rig));

    assert_non_null(rig);
    fixture_config(&rig->config);
    rig->config.expert_dtype = expert_dtype;
    fixture_weights_init(&rig->source, &rig->config, 21);
    assert_int_equal(sl_pool_create(&rig->pool, 2, NULL), 0);
    *state = rig;
    return 0;
}

static int rig_create(void **state)
{
    return rig_create_dtype(state, SL_EXPERT_FP4);
}

/* As of a base model: linears with float32 scales. */
static int rig_create_base(void **state)
{
    return rig_create_dtype(state, SL_EXPERT_FP8);
}

static int rig_destroy(void **state)
{
    struct rig *rig = *state;

    sl_pool_destroy(rig->pool);
    fixture_weights_fini(&rig->source);
    free(rig);
    return 0;
}

static int load(struct rig *rig, struct sl_weights *weights, struct sl_err *err)
{
    return fixture_weights_load(&rig->source, weights, &rig->config, &fixture_mtp,
                                &sl_weights_all_resident, rig->pool, err);
}

static void check_message(const struct sl_err *err, int rc, const char *name)
{
    assert_int_equal(err->code, rc);
    if (!strstr(err->message, name) || strncmp(err->message, "fixture: ", 9) != 0)
        fail_msg("\"%s\" does not name %s and its file", err->message, name);
}

/* Loading fails with `rc` and names the tensor; measuring does too where the headers tell. */
static void expect_failure(struct rig *rig, int rc, bool measure_too, const char *name)
{
    struct sl_weights weights;
    struct sl_err err = {0};
    struct sl_weight_sizes sizes = {0};

    if (measure_too) {
        assert_int_equal(
            sl_weights_measure(&rig->config, &rig->source.source, &fixture_mtp, &sizes, &err), rc);
        check_message(&err, rc, name);
        assert_int_equal(sizes.n_layers, 0);
    }
    assert_int_equal(load(rig, &weights, &err), rc);
    check_message(&err, rc, name);
    sl_weights_fini(&weights);
}

static bool is_mtp(const struct fixture_weight *weight)
{
    return strncmp(weight->name, "mtp.", 4) == 0;
}

/* ---- what is loaded ----------------------------------------------------------------------------
 */

/* Value [row, col] as the layouts of r16.h have it. */
static float packed_value(const struct sl_matrix *m, uint32_t row, uint32_t col)
{
    const uint32_t tile = row / 16 * (m->cols * 16), pair = col / 2 * 32 + row % 16 * 2 + col % 2;
    uint16_t code;
    float value;

    switch (m->kind) {
    case SL_MATRIX_FP8:
    case SL_MATRIX_FP8_BLOCK:
        return sl_e4m3_to_f32(m->tiles[tile + pair]) *
               m->scales[row / 128 * (m->cols / 128) + col / 128];
    case SL_MATRIX_BF16:
        memcpy(&code, m->tiles + 2 * (tile + pair), 2);
        return sl_bf16_to_f32(code);
    default:
        memcpy(&value, m->tiles + 4 * (tile + col * 16 + row % 16), 4);
        return value;
    }
}

static void check_matrix(struct rig *rig, const struct sl_matrix *m, enum sl_matrix_kind kind,
                         const char *name)
{
    const struct fixture_weight *weight = fixture_weights_find(&rig->source, name);

    assert_int_equal(m->kind, kind);
    assert_int_equal(m->rows, weight->info.shape[0]);
    assert_int_equal(m->cols, weight->info.shape[1]);
    for (uint32_t row = 0; row < m->rows; row++)
        for (uint32_t col = 0; col < m->cols; col++)
            assert_true(packed_value(m, row, col) ==
                        fixture_weights_value(&rig->source, weight, (uint64_t)row * m->cols + col));
    for (uint32_t row = m->rows; row % 16 != 0; row++)
        for (uint32_t col = 0; col < m->cols; col++)
            assert_true(packed_value(m, row, col) == 0);
}

static void check_vector(struct rig *rig, const float *values, const char *name)
{
    const struct fixture_weight *weight = fixture_weights_find(&rig->source, name);
    uint64_t count = weight->info.shape[0] * weight->info.shape[1];

    for (uint64_t i = 0; i < count; i++)
        assert_true(values[i] == fixture_weights_value(&rig->source, weight, i));
}

static void check_table(struct rig *rig, const uint16_t *table, const char *name)
{
    const struct fixture_weight *weight = fixture_weights_find(&rig->source, name);

    for (uint64_t i = 0; i < weight->info.shape[0] * weight->info.shape[1]; i++) {
        int64_t expected = weight->info.dtype == SL_DTYPE_I32
                               ? ((const int32_t *)(const void *)weight->data)[i]
                               : ((const int64_t *)(const void *)weight->data)[i];

        assert_int_equal(table[i], expected);
    }
}

static void check_embed(struct rig *rig, const struct sl_matrix *embed)
{
    const struct fixture_weight *weight = fixture_weights_find(&rig->source, "embed.weight");

    assert_memory_equal(embed->tiles, weight->data, weight->info.size_bytes);
}

/* One of each kind of tensor, in the layers that have them. */
static void check_loaded(struct rig *rig, const struct sl_weights *w)
{
    const struct sl_layer_weights *csa = &w->layers[1];
    const enum sl_matrix_kind fp8 = rig->source.f32_scales ? SL_MATRIX_FP8_BLOCK : SL_MATRIX_FP8;

    check_embed(rig, &w->embedding.table);
    check_vector(rig, w->head.norm, "norm.weight");
    check_matrix(rig, &w->head.linear, SL_MATRIX_BF16, "head.weight");
    check_matrix(rig, &w->head.hc.fn, SL_MATRIX_F32, "hc_head_fn");
    check_vector(rig, w->head.hc.scale, "hc_head_scale");
    check_matrix(rig, &csa->hc_ffn.fn, SL_MATRIX_F32, "layers.1.hc_ffn_fn");
    check_vector(rig, csa->hc_attn.base, "layers.1.hc_attn_base");
    check_matrix(rig, &csa->wq_b, fp8, "layers.1.attn.wq_b.weight");
    check_matrix(rig, &csa->wo_b, fp8, "layers.1.attn.wo_b.weight");
    check_vector(rig, csa->attn_sink, "layers.1.attn.attn_sink");
    for (uint32_t i = rig->config.num_attention_heads; i < 16; i++)
        assert_true(csa->attn_sink[i] == 0);
    check_matrix(rig, &csa->compressor.wgate, SL_MATRIX_BF16,
                 "layers.1.attn.compressor.wgate.weight");
    check_vector(rig, csa->compressor.ape, "layers.1.attn.compressor.ape");
    check_matrix(rig, &csa->index_wq_b, fp8, "layers.1.attn.indexer.wq_b.weight");
    check_matrix(rig, &csa->index_weights, SL_MATRIX_BF16,
                 "layers.1.attn.indexer.weights_proj.weight");
    check_matrix(rig, &csa->index_compressor.wkv, SL_MATRIX_BF16,
                 "layers.1.attn.indexer.compressor.wkv.weight");
    check_vector(rig, csa->index_compressor.norm, "layers.1.attn.indexer.compressor.norm.weight");
    check_table(rig, csa->tid2eid, "layers.1.ffn.gate.tid2eid");
    assert_null(csa->gate_bias);
    assert_null(w->layers[2].tid2eid);
    check_vector(rig, w->layers[2].gate_bias, "layers.2.ffn.gate.bias");
    check_vector(rig, w->layers[3].compressor.ape, "layers.3.attn.compressor.ape");
    check_matrix(rig, &w->layers[3].shared_w2, fp8, "layers.3.ffn.shared_experts.w2.weight");
    check_matrix(rig, &w->layers[4].wkv, fp8, "mtp.0.attn.wkv.weight");
    check_matrix(rig, &w->mtp.h_proj, fp8, "mtp.0.h_proj.weight");
    check_vector(rig, w->mtp.hc_head.base, "mtp.0.hc_head_base");
}

static void test_loads_what_it_measured(void **state)
{
    struct rig *rig = *state;
    struct sl_weight_sizes sizes[2];
    uint64_t measured_bytes[2];
    struct sl_weights weights;

    for (int mtp = 0; mtp < 2; mtp++) {
        assert_int_equal(sl_weights_measure(&rig->config, &rig->source.source,
                                            mtp ? &fixture_mtp : NULL, &sizes[mtp], NULL),
                         0);
        measured_bytes[mtp] = sl_weights_bytes(&sizes[mtp], &sl_weights_all_resident);
        rig->source.n_reads = rig->source.n_waits = 0;
        assert_int_equal(fixture_weights_load(&rig->source, &weights, &rig->config,
                                              mtp ? &fixture_mtp : NULL, &sl_weights_all_resident,
                                              rig->pool, NULL),
                         0);
        assert_true(rig->source.n_waits >= 3); /* until there is nothing left */
        assert_in_range(measured_bytes[mtp] - weights.arena.used_bytes, 0, SL_CACHE_LINE_BYTES - 1);
        assert_int_equal(weights.draft.kind, mtp ? SL_DRAFT_MTP : SL_DRAFT_NONE);
        if (mtp) {
            assert_int_equal(rig->source.n_reads, rig->source.count); /* each once */
            check_loaded(rig, &weights);
        }
        sl_weights_fini(&weights);
        assert_null(weights.arena.base);
    }
    assert_true(measured_bytes[0] < measured_bytes[1]);
}

/* Whatever may be stored in another dtype is: F32 for BF16, BF16 and F32 for FP8, I32 for I64. */
static void test_other_dtypes_are_the_same_values(void **state)
{
    struct rig *rig = *state;
    struct fixture_weight *table;
    struct sl_weight_sizes sizes;
    struct sl_weights w;

    for (uint32_t i = 0; i < rig->source.count; i++) {
        struct fixture_weight *weight = &rig->source.list[i];

        if (weight->info.dtype == SL_DTYPE_BF16)
            fixture_weights_convert(&rig->source, weight, SL_DTYPE_F32);
        else if (weight->info.dtype == SL_DTYPE_F8_E4M3)
            fixture_weights_convert(&rig->source, weight, i % 3 ? SL_DTYPE_BF16 : SL_DTYPE_F32);
    }
    table = fixture_weights_find(&rig->source, "layers.1.ffn.gate.tid2eid");
    for (uint64_t i = 0; i < table->info.size_bytes / 8; i++)
        ((int32_t *)(void *)table->data)[i] = (int32_t)((int64_t *)(void *)table->data)[i];
    table->info.dtype = SL_DTYPE_I32;
    table->info.size_bytes /= 2;
    assert_int_equal(
        sl_weights_measure(&rig->config, &rig->source.source, &fixture_mtp, &sizes, NULL), 0);
    assert_int_equal(load(rig, &w, NULL), 0);
    assert_in_range(sl_weights_bytes(&sizes, &sl_weights_all_resident) - w.arena.used_bytes, 0,
                    SL_CACHE_LINE_BYTES - 1);
    check_embed(rig, &w.embedding.table);
    check_matrix(rig, &w.head.linear, SL_MATRIX_F32, "head.weight");
    check_matrix(rig, &w.layers[1].gate, SL_MATRIX_F32, "layers.1.ffn.gate.weight");
    check_matrix(rig, &w.layers[1].wq_b, w.layers[1].wq_b.kind, "layers.1.attn.wq_b.weight");
    check_matrix(rig, &w.layers[1].wo_b, w.layers[1].wo_b.kind, "layers.1.attn.wo_b.weight");
    assert_true(w.layers[1].wq_b.kind != SL_MATRIX_FP8 && w.layers[1].wo_b.kind != SL_MATRIX_FP8);
    assert_null(w.layers[1].wq_b.scales);
    check_matrix(rig, &w.layers[1].compressor.wkv, SL_MATRIX_F32,
                 "layers.1.attn.compressor.wkv.weight");
    check_vector(rig, w.layers[1].ffn_norm, "layers.1.ffn_norm.weight");
    check_table(rig, w.layers[1].tid2eid, "layers.1.ffn.gate.tid2eid");
    sl_weights_fini(&w);
}

static void test_knows_its_mtp_block(void **state)
{
    struct rig *rig = *state;

    assert_true(sl_draft_find(&rig->config, &rig->source.source).kind == SL_DRAFT_MTP);
    fixture_weights_find(&rig->source, "mtp.0.e_proj.weight")->missing = true;
    assert_false(sl_draft_find(&rig->config, &rig->source.source).kind == SL_DRAFT_MTP);
    fixture_weights_find(&rig->source, "mtp.0.e_proj.weight")->missing = false;
    rig->config.num_nextn_predict_layers = 0;
    assert_false(sl_draft_find(&rig->config, &rig->source.source).kind == SL_DRAFT_MTP);
}

/* ---- what the headers tell ---------------------------------------------------------------------
 */

static void test_missing_tensors(void **state)
{
    struct rig *rig = *state;
    struct sl_weight_sizes sizes;

    for (uint32_t i = 0; i < rig->source.count; i++) {
        struct fixture_weight *weight = &rig->source.list[i];

        weight->missing = true;
        expect_failure(rig, -SL_EFORMAT, true, weight->name);
        assert_int_equal(sl_weights_measure(&rig->config, &rig->source.source, NULL, &sizes, NULL),
                         is_mtp(weight) ? 0 : -SL_EFORMAT);
        weight->missing = false;
    }
}

static void test_wrong_dtypes(void **state)
{
    static const enum sl_dtype other[] = {SL_DTYPE_U8, SL_DTYPE_I8, SL_DTYPE_I32, SL_DTYPE_F8_E8M0};
    struct rig *rig = *state;

    for (uint32_t i = 0; i < rig->source.count; i++) {
        struct fixture_weight *weight = &rig->source.list[i];
        const struct sl_tensor_info right = weight->info;

        for (size_t k = 0; k < sizeof(other) / sizeof(other[0]); k++) {
            if (other[k] == right.dtype ||
                (other[k] == SL_DTYPE_I32 && right.dtype == SL_DTYPE_I64))
                continue;
            weight->info.dtype = other[k];
            weight->info.size_bytes =
                right.size_bytes / sl_dtype_size_bytes(right.dtype) * sl_dtype_size_bytes(other[k]);
            expect_failure(rig, -SL_EFORMAT, true, weight->name);
        }
        weight->info = right;
    }
}

/* One more and one fewer in each dimension, the dimensions exchanged, and of another number. */
static void test_wrong_shapes(void **state)
{
    struct rig *rig = *state;

    for (uint32_t i = 0; i < rig->source.count; i++) {
        struct fixture_weight *weight = &rig->source.list[i];
        const struct sl_tensor_info right = weight->info;

        for (uint32_t dim = 0; dim < right.n_dims; dim++) {
            for (int change = -1; change <= 1; change += 2) {
                weight->info.shape[dim] = right.shape[dim] + (uint64_t)change;
                expect_failure(rig, -SL_EFORMAT, true, weight->name);
                weight->info = right;
            }
        }
        for (uint32_t n_dims = 0; n_dims <= SL_TENSOR_DIMS_MAX; n_dims++) {
            weight->info.n_dims = n_dims;
            if (n_dims != right.n_dims)
                expect_failure(rig, -SL_EFORMAT, true, weight->name);
        }
        weight->info = right;
        weight->info.shape[0] = right.shape[1];
        weight->info.shape[1] = right.shape[0];
        if (right.shape[0] != right.shape[1])
            expect_failure(rig, -SL_EFORMAT, true, weight->name);
        weight->info = right;
    }
}

/* ---- what only the data tell -------------------------------------------------------------------
 */

/* Puts `code` at element i; loading fails. */
static void expect_corrupt(struct rig *rig, struct fixture_weight *weight, uint64_t i,
                           uint64_t code)
{
    const size_t size = sl_dtype_size_bytes(weight->info.dtype);
    uint8_t right[8];

    memcpy(right, weight->data + i * size, size);
    memcpy(weight->data + i * size, &code, size);
    expect_failure(rig, -SL_ECORRUPT, false, weight->name);
    memcpy(weight->data + i * size, right, size);
}

static void test_values_that_are_no_numbers(void **state)
{
    static const struct {
        enum sl_dtype dtype;
        uint32_t code;
    } bad[] = {{SL_DTYPE_F32, 0x7fc00000},   {SL_DTYPE_F32, 0xff800000}, {SL_DTYPE_BF16, 0x7f80},
               {SL_DTYPE_BF16, 0xffff},      {SL_DTYPE_F8_E4M3, 0x7f},   {SL_DTYPE_F8_E4M3, 0xff},
               {SL_DTYPE_F8_E8M0, 127 + 61}, {SL_DTYPE_F8_E8M0, 0xff}};
    struct rig *rig = *state;
    uint64_t random = 31;

    for (uint32_t i = 0; i < rig->source.count; i++) {
        struct fixture_weight *weight = &rig->source.list[i];
        uint64_t count = weight->info.size_bytes / sl_dtype_size_bytes(weight->info.dtype);

        for (size_t k = 0; k < sizeof(bad) / sizeof(bad[0]); k++) {
            uint64_t at =
                fixture_below(&random, 3) ? fixture_below(&random, (uint32_t)count) : count - 1;

            if (weight->info.dtype == bad[k].dtype && (i + k) % 2)
                expect_corrupt(rig, weight, at, bad[k].code);
        }
    }
}

/* The largest scale that is allowed, and the smallest there is, which makes zeros of all codes. */
static void test_scales_at_their_limits(void **state)
{
    struct rig *rig = *state;
    struct fixture_weight *scales = fixture_weights_find(&rig->source, "layers.1.attn.wkv.scale");
    struct sl_weights weights;

    scales->data[0] = 127 + 60;
    assert_int_equal(load(rig, &weights, NULL), 0);
    check_matrix(rig, &weights.layers[1].wkv, SL_MATRIX_FP8, "layers.1.attn.wkv.weight");
    sl_weights_fini(&weights);
    scales->data[0] = 0;
    assert_int_equal(load(rig, &weights, NULL), 0);
    for (uint32_t row = 0; row < 128; row++)
        for (uint32_t col = 0; col < 128; col++)
            assert_true(packed_value(&weights.layers[1].wkv, row, col) == 0);
    sl_weights_fini(&weights);
}

/* Float32 scales: those below 2^-32 are zero, and no code is. */
static void test_f32_scales_at_their_limits(void **state)
{
    static const struct {
        float scale;
        int rc;
        float loaded;
    } cases[] = {{0x1p60f, 0, 0x1p60f},
                 {0x1.8p60f, -SL_ECORRUPT, 0},
                 {0x1p-32f, 0, 0x1p-32f},
                 {0x1.fp-33f, 0, 0},
                 {0, 0, 0},
                 {-0x1p-4f, -SL_ECORRUPT, 0},
                 {0x1.3p-3f, 0, 0x1.3p-3f}};
    struct rig *rig = *state;
    struct fixture_weight *scales = fixture_weights_find(&rig->source, "layers.1.attn.wkv.scale");
    const struct fixture_weight *codes =
        fixture_weights_find(&rig->source, "layers.1.attn.wkv.weight");

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct sl_weights weights;
        struct sl_err err = {0};

        memcpy(scales->data, &cases[i].scale, sizeof(float));
        assert_int_equal(load(rig, &weights, &err), cases[i].rc);
        if (cases[i].rc < 0) {
            check_message(&err, cases[i].rc, scales->name);
            continue;
        }
        assert_true(weights.layers[1].wkv.scales[0] == cases[i].loaded);
        assert_int_equal(weights.layers[1].wkv.tiles[0], codes->data[0]);
        sl_weights_fini(&weights);
    }
}

static void test_experts_out_of_range(void **state)
{
    static const int64_t bad[] = {-1, 8, INT64_C(1) << 32, INT64_MIN};
    struct rig *rig = *state;
    struct fixture_weight *table = fixture_weights_find(&rig->source, "layers.0.ffn.gate.tid2eid");

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        expect_corrupt(rig, table, 0, (uint64_t)bad[i]);
        expect_corrupt(rig, table, table->info.size_bytes / 8 - 1, (uint64_t)bad[i]);
    }
}

/* ---- what fails on the way ---------------------------------------------------------------------
 */

static void test_failing_reads(void **state)
{
    struct rig *rig = *state;
    struct sl_weights weights;
    uint64_t nth = 0;
    int rc;

    do {
        struct sl_err err;

        rig->source.fail_nth = ++nth;
        rc = load(rig, &weights, &err);
        if (rc == 0)
            break;
        assert_int_equal(rc, -EIO);
        check_message(&err, -EIO, "could not be read");
        sl_weights_fini(&weights);
    } while (nth < 10000);
    assert_int_equal(nth, rig->source.count + 1);
    rig->source.fail_nth = 0;
    sl_weights_fini(&weights);
}

static void test_failing_allocations(void **state)
{
    struct rig *rig = *state;
    struct sl_weights weights;
    bool happened = true;
    uint64_t nth = 0;

    if (!fault_alloc_works())
        skip();
    while (happened) {
        int64_t live_count = fault_alloc_live_count();
        int rc;

        fault_alloc_set(++nth, false);
        rc = load(rig, &weights, NULL);
        happened = fault_alloc_happened();
        fault_alloc_set(0, false);
        assert_int_equal(rc, happened ? -ENOMEM : 0);
        assert_int_equal(fault_alloc_live_count(), live_count);
        assert_true(happened || !weights.loading.base); /* what is needed no more is given back */
        sl_weights_fini(&weights);
    }
    assert_true(nth > 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_loads_what_it_measured, rig_create, rig_destroy),
        cmocka_unit_test_setup_teardown(test_loads_what_it_measured, rig_create_base, rig_destroy),
        cmocka_unit_test_setup_teardown(test_other_dtypes_are_the_same_values, rig_create,
                                        rig_destroy),
        cmocka_unit_test_setup_teardown(test_knows_its_mtp_block, rig_create, rig_destroy),
        cmocka_unit_test_setup_teardown(test_missing_tensors, rig_create, rig_destroy),
        cmocka_unit_test_setup_teardown(test_wrong_dtypes, rig_create, rig_destroy),
        cmocka_unit_test_setup_teardown(test_wrong_shapes, rig_create, rig_destroy),
        cmocka_unit_test_setup_teardown(test_values_that_are_no_numbers, rig_create, rig_destroy),
        cmocka_unit_test_setup_teardown(test_values_that_are_no_numbers, rig_create_base,
                                        rig_destroy),
        cmocka_unit_test_setup_teardown(test_scales_at_their_limits, rig_create, rig_destroy),
        cmocka_unit_test_setup_teardown(test_f32_scales_at_their_limits, rig_create_base,
                                        rig_destroy),
        cmocka_unit_test_setup_teardown(test_experts_out_of_range, rig_create, rig_destroy),
        cmocka_unit_test_setup_teardown(test_failing_reads, rig_create, rig_destroy),
        cmocka_unit_test_setup_teardown(test_failing_allocations, rig_create, rig_destroy),
    };

    return cmocka_run_group_tests_name("weights", tests, NULL, NULL);
}
