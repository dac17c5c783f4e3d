/* A packed store holds what the checkpoint holds, and its catalog is not trusted. A small
 * checkpoint is packed and read back byte for byte; then every entry of the catalog is spoilt in
 * turn, files are cut, flipped and swapped, packers meet each other, and each must be told in one
 * line. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/base/size.h"
#include "core/kernels/r16.h"
#include "storage/store/advice.h"
#include "storage/io/checksum.h"
#include "storage/io/drive.h"
#include "storage/store/hot_list.h"
#include "storage/experts/model_files.h"
#include "storage/store/probe_memory.h"
#include "storage/store/store_copies.h"
#include "storage/pack/store_identity.h"
#include "storage/pack/store_relocate.h"
#include "storage/pack/store_repair.h"
#include "storage/pack/store_verify.h"
#include "tests/io_fault.h"
#include "tests/store_rig.h"

/* ---- what is in it ----------------------------------------------------------------------------
 */

static void test_tensors_are_the_checkpoints(void **state)
{
    const struct store_fixture *f = *state;
    struct sl_weight_source *from = sl_checkpoint_weights(f->rig.checkpoint), *to;
    uint8_t expected[32768], found[32768];
    struct sl_model_files files;
    struct sl_tensor_info info;
    uint64_t end_bytes = 0;

    assert_int_equal(sl_model_files_open(&files, f->rig.store_folder, NULL), 0);
    assert_non_null(files.store);
    to = sl_model_files_weights(&files, true);
    for (uint32_t i = 0; i < STORE_RIG_TENSORS; i++) {
        const char *name = store_rig_tensors[i];
        const struct sl_checkpoint_tensor *tensor = sl_checkpoint_find(f->rig.checkpoint, name);
        uint64_t size = tensor->info.size_bytes, half = size / 2;

        assert_int_equal(to->ops->find(to, name, &info), 0);
        assert_memory_equal(&info, &tensor->info, sizeof(info));
        assert_int_equal(from->ops->read(from, name, 0, size, expected, NULL), 0);
        assert_int_equal(to->ops->read(to, name, 0, half, found, NULL), 0);
        assert_int_equal(to->ops->read(to, name, half, size - half, found + half, NULL), 0);
        assert_memory_equal(found, expected, size);
        assert_int_equal(sl_store_tensor(files.store, i)->extent.offset_bytes, end_bytes);
        end_bytes += sl_round_up(size, SL_BLOCK_BYTES);
    }
    assert_int_equal(to->ops->find(to, "mtp.1.not_understood", &info), -ENOENT);
    assert_int_equal(sl_store_file(files.store, 0)->size_bytes, end_bytes);
    sl_model_files_close(&files);
}

static void test_records_are_tiles(void **state)
{
    const struct store_fixture *f = *state;
    struct sl_weight_source *from = sl_checkpoint_weights(f->rig.checkpoint);
    uint8_t codes[256 * 128], scales[256 * 128], tiles[16 * 1088], found[16 * 1088];
    struct sl_store *store;
    int fd;

    assert_int_equal(sl_store_open(&store, f->rig.store_folder, SL_STORE_RUN, NULL), 0);
    fd = open(sl_store_file_path(store, 1), O_RDONLY);
    assert_true(fd >= 0);
    for (uint32_t i = 0; i < sl_store_expert_count(&store_rig_shape) * 3; i++) {
        struct sl_expert_key key = sl_store_expert_at(&store_rig_shape, i / 3);
        int matrix = (int)(i % 3);
        uint32_t cols = sl_expert_matrix_cols(&store_rig_shape, matrix);
        char block[16], name[96];
        struct sl_extent at[SL_EXPERT_PARTS_MAX];

        snprintf(block, sizeof(block), "%s", key.layer_index == 2 ? "mtp.0" : "layers.0");
        block[7] = key.layer_index == 1 ? '1' : block[7];
        snprintf(name, sizeof(name), "%s.ffn.experts.%u.w%d.weight", block, key.expert_index,
                 matrix + 1);
        assert_int_equal(from->ops->read(from, name, 0, 128 * 256 / 2, codes, NULL), 0);
        snprintf(name, sizeof(name), "%s.ffn.experts.%u.w%d.scale", block, key.expert_index,
                 matrix + 1);
        assert_int_equal(from->ops->read(from, name, 0, 128 * 256 / 32, scales, NULL), 0);
        assert_int_equal(sl_r16_pack_fp4(cols, 0, 32768 / cols / 16, codes, scales, tiles), 0);
        assert_int_equal(
            sl_packed_expert_matrix(sl_store_expert(store, key), &store_rig_shape, matrix, at), 1);
        assert_int_equal(at[0].size_bytes, sizeof(tiles));
        assert_int_equal(pread(fd, found, sizeof(found), (off_t)at[0].offset_bytes), sizeof(found));
        assert_memory_equal(found, tiles, sizeof(tiles));
    }
    close(fd);
    sl_store_close(store);
}

/* w1, w3, w2: the order in which they are wanted. */
static void test_matrices_over_parts(void **state)
{
    const struct sl_packed_expert expert = {
        .n_parts = 3,
        .parts = {{.offset_bytes = 40960, .size_bytes = 24576, .file_index = 1},
                  {.offset_bytes = 0, .size_bytes = 4096, .file_index = 2},
                  {.offset_bytes = 8192, .size_bytes = 32768, .file_index = 3}}};
    struct sl_extent at[SL_EXPERT_PARTS_MAX];

    (void)state;
    assert_int_equal(sl_packed_expert_bytes(&store_rig_shape), 3 * 20480);
    assert_int_equal(sl_packed_expert_matrix(&expert, &store_rig_shape, SL_EXPERT_W1, at), 1);
    assert_int_equal(at[0].offset_bytes, 40960);
    assert_int_equal(at[0].size_bytes, 17408);
    assert_int_equal(sl_packed_expert_matrix(&expert, &store_rig_shape, SL_EXPERT_W3, at), 3);
    assert_int_equal(at[0].offset_bytes, 40960 + 20480);
    assert_int_equal(at[0].size_bytes, 4096);
    assert_int_equal(at[1].size_bytes, 4096);
    assert_int_equal(at[2].offset_bytes, 8192);
    assert_int_equal(at[2].size_bytes, 17408 - 8192);
    assert_int_equal(sl_packed_expert_matrix(&expert, &store_rig_shape, SL_EXPERT_W2, at), 1);
    assert_int_equal(at[0].file_index, 3);
    assert_int_equal(at[0].offset_bytes, 8192 + 40960 - 28672);
    assert_int_equal(at[0].size_bytes, 17408);
}

static void test_hot_list(void **state)
{
    const struct store_fixture *f = *state;
    const struct sl_expert_key keys[] = {{2, 1}, {0, 65535}, {700, 0}};
    struct sl_expert_key found[3] = {{0}};
    uint32_t n;

    assert_int_equal(sl_hot_list_read(f->rig.store_folder, found, 3, &n, NULL), 0);
    assert_int_equal(n, 0);
    assert_int_equal(sl_hot_list_write(f->rig.store_folder, keys, 3, NULL), 0);
    assert_int_equal(sl_hot_list_read(f->rig.store_folder, found, 2, &n, NULL), 0);
    assert_int_equal(n, 2);
    assert_int_equal(sl_hot_list_read(f->rig.store_folder, found, 3, &n, NULL), 0);
    assert_int_equal(n, 3);
    assert_memory_equal(found, keys, sizeof(keys));
    assert_int_equal(sl_hot_list_write(f->rig.store_folder, keys, 0, NULL), 0);
    assert_int_equal(sl_hot_list_read(f->rig.store_folder, found, 3, &n, NULL), 0);
    assert_int_equal(n, 0);
}

static void test_probe_is_remembered(void **state)
{
    const struct store_fixture *f = *state;
    const struct sl_io_probe probe = {
        .piece_bytes = 524288, .depth = 16, .bytes_per_s = UINT64_C(7000000000)};
    char file[FIXTURE_PATH_BYTES];
    struct sl_io_probe found = {0};
    const char *paths[] = {file, "/proc/self/status"};
    uint8_t value[24];
    struct sl_io *io;

    store_rig_path(&f->rig, "store/experts-1.bin", file);
    assert_int_equal(sl_io_threads_open(&io, paths, 1, 4, NULL), 0);
    assert_false(sl_probe_recall(f->rig.store_folder, io, &found));
    assert_int_equal(sl_probe_remember(f->rig.store_folder, io, &probe, NULL), 0);
    assert_true(sl_probe_recall(f->rig.store_folder, io, &found));
    assert_memory_equal(&found, &probe, sizeof(probe));
    assert_int_equal(sl_probe_remember(f->other, io, &probe, NULL), -ENOENT);
    io->ops->close(io);

    assert_int_equal(sl_io_threads_open(&io, paths, 2, 4, NULL), 0); /* on another drive as well */
    assert_false(sl_probe_recall(f->rig.store_folder, io, &found));
    io->ops->close(io);

    memset(value, 0xff, sizeof(value)); /* no such piece, no such depth */
    assert_int_equal(sl_advice_write(f->rig.store_folder, "probe", value, sizeof(value), NULL), 0);
    assert_int_equal(sl_io_threads_open(&io, paths, 1, 4, NULL), 0);
    assert_false(sl_probe_recall(f->rig.store_folder, io, &found));
    io->ops->close(io);
}

/* ---- a catalog that is not what it should be --------------------------------------------------
 */

static void test_spoilt_entries(void **state)
{
    /* Byte `at` of the entry changes, by 64. */
    static const struct {
        const char *key;
        size_t at;
        int code;
        const char *says;
    } cases[] = {
        {"model", 0, -SL_EUNSUPPORTED, "format version 66; this sluice knows version 2"},
        {"model", 4, -SL_ECORRUPT, "\"model\""},    /* layout */
        {"model", 25, -SL_ECORRUPT, "\"state\""},   /* layers */
        {"model", 32, -SL_ECORRUPT, "\"state\""},   /* experts */
        {"model", 36, -SL_ECORRUPT, "\"model\""},   /* hidden_size, no multiple of 128 */
        {"model", 44, -SL_ECORRUPT, "\"model\""},   /* files */
        {"model", 48, -SL_ECORRUPT, "\"state\""},   /* tensors */
        {"state", 0, -SL_ECORRUPT, "\"state\""},    /* more tensors than there are */
        {"state", 4, -SL_ECORRUPT, "\"state\""},    /* more experts */
        {"state", 8, -SL_ECORRUPT, "\"state\""},    /* neither complete nor not */
        {"file 0", 9, -SL_ECORRUPT, "\"file 0\""},  /* length of the path */
        {"file 1", 12, -SL_ECORRUPT, "\"file 1\""}, /* path */
        {"carried config.json", 16, -SL_ECORRUPT, "\"carried config.json\""},
        {"tensor 00000", 8, -SL_ECORRUPT, "\"tensor 00000\""},  /* file */
        {"tensor 00000", 12, -SL_ECORRUPT, "\"tensor 00000\""}, /* offset, no multiple of 4,096 */
        {"tensor 00001", 16, -SL_ECORRUPT, "dense.bin: the file has"}, /* offset, past the end */
        {"tensor 00001", 20, -SL_ECORRUPT, "\"tensor 00001\""},        /* size */
        {"tensor 00001", 32, -SL_ECORRUPT, "\"tensor 00001\""},        /* dtype */
        {"expert 00001 00002", 24, -SL_ECORRUPT, "\"expert 00001 00002\""},      /* parts */
        {"expert 00001 00002", 28, -SL_ECORRUPT, "\"expert 00001 00002\""},      /* file */
        {"expert 00001 00002", 34, -SL_ECORRUPT, "experts-1.bin: the file has"}, /* offset */
        {"expert 00001 00002", 41, -SL_ECORRUPT, "\"expert 00001 00002\""},      /* size */
    };
    const struct store_fixture *f = *state;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        store_rig_put(f->rig.store_folder, cases[i].key, NULL, cases[i].at);
        store_rig_assert_refused(f->rig.store_folder, cases[i].code, cases[i].says);
        store_rig_put(f->rig.store_folder, cases[i].key, NULL, cases[i].at);
    }
    store_rig_put(f->rig.store_folder, "tensor 00009", "?", 1);
    store_rig_assert_refused(f->rig.store_folder, -SL_ECORRUPT, "\"tensor 00009\"");
}

/* Values of any length and any bytes are decoded or refused; what is accepted is what would be
 * written. */
static void test_decoding_any_bytes(void **state)
{
    uint8_t value[96], again[SL_STORE_VALUE_BYTES_MAX];
    struct sl_packed_expert expert = {.n_parts = 2, .parts = {{4096, 8192, 1}, {0, 4096, 2}}};
    uint64_t random = 3;
    uint32_t n_accepted = 0;

    (void)state;
    for (uint32_t i = 0; i < 20000; i++) {
        size_t size = sl_store_expert_encode(&expert, again);

        assert_true(size <= sizeof(value));
        memcpy(value, again, size);
        value[io_fault_random(&random) % size] ^= 1u << io_fault_random(&random) % 8;
        size -= i % 8 ? 0 : io_fault_random(&random) % size;
        if (!sl_store_expert_decode(&expert, value, size)) {
            expert =
                (struct sl_packed_expert){.n_parts = 2, .parts = {{4096, 8192, 1}, {0, 4096, 2}}};
            continue;
        }
        n_accepted++;
        assert_int_equal(sl_store_expert_encode(&expert, again), size);
        assert_memory_equal(again, value, size);
    }
    assert_true(n_accepted > 1000);
}

/* Both of a store's copies of its catalog are lost bit by bit in tests/test_store_faults.c. */
static void test_truncated_catalog(void **state)
{
    const struct store_fixture *f = *state;
    const char *folder = f->rig.store_folder;
    struct sl_catalog_entries entries, sealed;
    uint64_t size_bytes = fixture_file_size(folder, SL_STORE_CATALOG_FILE);
    struct sl_err err = {0};
    uint32_t n_told = 0;

    assert_true(size_bytes >= UINT64_C(3) * 4096);
    assert_int_equal(sl_store_sealed_read(&sealed, folder, NULL), 0);
    for (uint64_t left = size_bytes - 1; left > 0; left = left * 2 / 3) {
        int rc;

        fixture_truncate(folder, SL_STORE_CATALOG_FILE, left);
        rc = sl_store_catalog_read(&entries, folder, &err);
        if (rc < 0) {
            assert_int_equal(rc, -SL_ECORRUPT);
            store_rig_assert_says(&err, left > 4096 + 152
                                            ? "catalog.mdb: truncated: it has"
                                            : "catalog.mdb: damaged: its header pages");
            n_told++;
        } else { /* nothing was in the pages that are gone */
            assert_true(sl_catalog_entries_same(&entries, &sealed));
            sl_catalog_entries_fini(&entries);
        }
    }
    assert_true(n_told > 10);
    sl_catalog_entries_fini(&sealed);
    for (uint64_t left = fixture_file_size(folder, SL_STORE_SEALED_FILE) - 1; left > 0;
         left = left * 2 / 3) {
        fixture_truncate(folder, SL_STORE_SEALED_FILE, left);
        store_rig_assert_refused(folder, -SL_ECORRUPT, "catalog.sealed: damaged: it does not");
    }
    fixture_truncate(folder, SL_STORE_SEALED_FILE, 0);
    store_rig_assert_refused(folder, -SL_ECORRUPT, "--repair-catalog can repair it");
    fixture_unlink(folder, SL_STORE_SEALED_FILE);
    store_rig_assert_refused(folder, -SL_EFORMAT, "not complete: run sluice pack again");
    fixture_unlink(folder, SL_STORE_CATALOG_FILE);
    assert_false(sl_store_is(folder));
}

static void test_other_versions(void **state)
{
    const struct store_fixture *f = *state;
    char catalog[FIXTURE_PATH_BYTES];
    struct sl_catalog_entries entries;
    const uint8_t *sealed;
    uint8_t *changed;
    size_t size_bytes;
    uint64_t checksum;
    struct sl_err err = {0};

    assert_int_equal(sl_store_sealed_read(&entries, f->rig.store_folder, NULL), 0);
    assert_int_equal(sl_catalog_entries_seal(&entries, &sealed, &size_bytes), 0);
    changed = malloc(size_bytes);
    assert_non_null(changed);
    memcpy(changed, sealed, size_bytes);
    changed[8]++; /* the version, in what is sealed as it should be */
    checksum = sl_checksum(changed, size_bytes - 8);
    memcpy(changed + size_bytes - 8, &checksum, 8);
    sl_catalog_entries_fini(&entries);
    assert_int_equal(sl_catalog_entries_unseal(&entries, changed, size_bytes, "here", &err),
                     -SL_EUNSUPPORTED);
    store_rig_assert_says(&err,
                          "here: the store has format version 3; this sluice knows version 2");

    fixture_unlink(f->rig.store_folder, SL_STORE_SEALED_FILE);
    fixture_unlink(f->rig.store_folder, SL_STORE_CATALOG_FILE);
    store_rig_path(&f->rig, "store/catalog", catalog);
    assert_int_equal(mkdir(catalog, 0777), 0);
    fixture_write_text(catalog, "data.mdb", "as it was");
    assert_true(sl_store_is(f->rig.store_folder));
    store_rig_assert_refused(f->rig.store_folder, -SL_EUNSUPPORTED, "format version 1");
}

static void test_truncated_files(void **state)
{
    const struct store_fixture *f = *state;

    fixture_truncate(f->rig.store_folder, "experts-1.bin", 9 * 61440 - 4096);
    store_rig_assert_refused(f->rig.store_folder, -SL_ECORRUPT,
                             "experts-1.bin: the file has 548864 bytes");
    fixture_truncate(f->rig.store_folder, "dense.bin", 4096);
    store_rig_assert_refused(f->rig.store_folder, -SL_ECORRUPT,
                             "dense.bin: the file has 4096 bytes");
    fixture_unlink(f->rig.store_folder, "dense.bin");
    store_rig_assert_refused(f->rig.store_folder, -ENOENT, "dense.bin: cannot open");
}

/* The layout says what the experts are; no other does than the four. */
static void test_layouts(void **state)
{
    (void)state;
    for (uint32_t layout = 0; layout < 7; layout++) {
        const bool known = layout >= 1 && layout <= 4, fp8 = layout >= 3;
        struct sl_store_model model = {.format_version = SL_STORE_VERSION,
                                       .layout = known ? layout : SL_STORE_LAYOUT_FP8,
                                       .shape = store_rig_shape,
                                       .n_files = 2,
                                       .n_tensors = 1};
        uint8_t value[SL_STORE_VALUE_BYTES_MAX];
        struct sl_store_model read;
        size_t size_bytes;

        model.shape.expert_dtype = fp8 || !known ? SL_EXPERT_FP8 : SL_EXPERT_FP4;
        size_bytes = sl_store_model_encode(&model, value);
        value[4] = (uint8_t)layout;
        assert_int_equal(sl_store_model_decode(&read, value, size_bytes), known);
        if (!known)
            continue;
        assert_int_equal(read.shape.expert_dtype, fp8 ? SL_EXPERT_FP8 : SL_EXPERT_FP4);
        assert_int_equal(sl_store_layout_compresses(read.layout), layout % 2 == 0);
        assert_int_equal(sl_store_layout_of(read.shape.expert_dtype, layout % 2 == 0), layout);
    }
}

static void test_another_models_config(void **state)
{
    const struct store_fixture *f = *state;
    struct sl_expert_shape shape = store_rig_shape;
    struct sl_expert_map *experts;
    struct sl_model_files files;
    struct sl_err err = {0};

    assert_int_equal(sl_model_files_open(&files, f->rig.store_folder, NULL), 0);
    shape.n_mtp_layers = 0; /* fewer are allowed */
    assert_int_equal(sl_model_files_experts(&files, &shape, &experts, NULL), 0);
    assert_null(sl_expert_map_find_packed(experts, (struct sl_expert_key){2, 0}));
    assert_non_null(sl_expert_map_find_packed(experts, (struct sl_expert_key){1, 2}));
    sl_expert_map_close(experts);
    shape.n_routed_experts = 4;
    assert_int_equal(sl_model_files_experts(&files, &shape, &experts, &err), -SL_EFORMAT);
    store_rig_assert_says(
        &err, "2 layers and 1 MTP blocks of 3 experts, 256 by 128; config.json says 2 and 0 of 4");
    sl_model_files_close(&files);
}

/* ---- damage -----------------------------------------------------------------------------------
 */

static void test_damage_is_named_and_repaired(void **state)
{
    const struct store_fixture *f = *state;
    struct sl_weight_source *weights;
    struct sl_err err = {0};
    struct sl_store *store;
    struct store_rig_damage found;
    uint8_t bytes[1024];

    store_rig_pack(&f->rig, f->other);
    store_rig_verify(f->other, &found);
    assert_int_equal(found.n_items, 0);
    fixture_flip_byte(f->other, "experts-1.bin", 4 * 61440 + 20480 + 17407); /* last byte of w3 */
    store_rig_verify(f->other, &found);
    assert_int_equal(found.n_items, 1);
    assert_non_null(strstr(found.message, "layer 1, expert 1, w3: "));
    assert_non_null(strstr(found.message, "experts-1.bin: from offset 266240 on"));
    fixture_flip_byte(f->other, "dense.bin", 24576 + 1023); /* last byte of norm.weight */
    fixture_flip_byte(f->other, "tokenizer.json", 0);
    fixture_truncate(f->other, "experts-1.bin", 8 * 61440); /* the last expert is gone */
    store_rig_verify(f->other, &found);
    assert_int_equal(found.n_items, 3 + 3);
    assert_non_null(strstr(found.message, "MTP block 0, expert 2, w2: "));
    assert_int_equal(found.items[0].kind, SL_STORE_COPIED_FILE);
    assert_int_equal(found.items[1].kind, SL_STORE_TENSOR);

    assert_int_equal(sl_store_open(&store, f->other, SL_STORE_REPAIR, NULL), 0);
    weights = sl_store_weights(store, true);
    assert_int_equal(weights->ops->read(weights, "norm.weight", 0, 1000, bytes, &err), 0);
    assert_int_equal(weights->ops->read(weights, "norm.weight", 1000, 24, bytes, &err),
                     -SL_ECORRUPT);
    store_rig_assert_says(&err, "dense.bin: tensor \"norm.weight\" at offset 24576");
    weights = sl_store_weights(store, false);
    assert_int_equal(weights->ops->read(weights, "norm.weight", 0, 1024, bytes, &err), 0);
    sl_store_close(store);

    assert_int_equal(store_rig_repair(&f->rig, f->other, &found, NULL), 0);
    store_rig_assert_same(f->other, f->rig.store_folder);
}

/* Same config and index, but other numbers. */
static void test_other_weights_repair_nothing(void **state)
{
    const struct store_fixture *f = *state;
    struct store_rig tuned;
    struct sl_err err = {0};
    struct store_rig_damage found;

    store_rig_open(&tuned, 4);
    fixture_flip_byte(f->rig.store_folder, "experts-1.bin", 0);
    store_rig_verify(f->rig.store_folder, &found);
    assert_int_equal(found.n_items, 1);
    assert_int_equal(store_rig_repair(&tuned, f->rig.store_folder, &found, &err), -SL_EFORMAT);
    store_rig_assert_says(&err, "layer 0, expert 0 is not what");
    found.items[0] = (struct sl_store_item){.kind = SL_STORE_TENSOR, .index = 2};
    assert_int_equal(store_rig_repair(&tuned, f->rig.store_folder, &found, &err), -SL_EFORMAT);
    store_rig_assert_says(&err, "layers.0.attn.wkv.scale is not what");
    fixture_write_text(tuned.checkpoint_folder, "config.json", "{}\n");
    assert_int_equal(store_rig_repair(&tuned, f->rig.store_folder, &found, &err), -SL_EFORMAT);
    store_rig_assert_says(&err, "config.json is not what");
    store_rig_close(&tuned);
}

/* ---- striped ---
 */

static const uint64_t one_to_two[] = {1, 2};

static struct sl_pack_options striped(const struct store_fixture *f, const char *const *folder)
{
    struct sl_pack_options options = store_rig_options(&f->rig, f->other);

    options.stripe_folders = folder;
    options.weights = one_to_two;
    options.n_stripes = 1;
    return options;
}

static void read_bytes(const char *path, uint64_t offset_bytes, void *bytes, uint64_t size_bytes)
{
    int fd = open(path, O_RDONLY);

    assert_true(fd >= 0);
    assert_int_equal(pread(fd, bytes, size_bytes, (off_t)offset_bytes), size_bytes);
    close(fd);
}

/* The parts of each record together are the record of the store that is not striped. */
static void assert_striped(const struct store_fixture *f)
{
    struct sl_store *store, *plain;

    assert_int_equal(sl_store_open(&store, f->other, SL_STORE_RUN, NULL), 0);
    assert_int_equal(sl_store_open(&plain, f->rig.store_folder, SL_STORE_RUN, NULL), 0);
    for (uint32_t i = 0; i < sl_store_expert_count(&store_rig_shape); i++) {
        struct sl_expert_key key = sl_store_expert_at(&store_rig_shape, i);
        const struct sl_packed_expert *expert = sl_store_expert(store, key);
        uint8_t whole[61440], parts[61440];

        assert_memory_equal(expert->checksums, sl_store_expert(plain, key)->checksums, 24);
        assert_int_equal(expert->n_parts, 2);
        assert_int_equal(expert->parts[0].size_bytes, 5 * 4096); /* of 15 blocks */
        assert_int_equal(expert->parts[1].size_bytes, 10 * 4096);
        for (uint32_t k = 0; k < 2; k++)
            read_bytes(sl_store_file_path(store, expert->parts[k].file_index),
                       expert->parts[k].offset_bytes, parts + k * UINT64_C(20480),
                       expert->parts[k].size_bytes);
        read_bytes(sl_store_file_path(plain, 1), i * sizeof(whole), whole, sizeof(whole));
        assert_memory_equal(parts, whole, sizeof(whole));
    }
    sl_store_close(store);
    sl_store_close(plain);
}

static void test_striped(void **state)
{
    const struct store_fixture *f = *state;
    char folder[FIXTURE_PATH_BYTES];
    const char *const folders[] = {folder};
    struct sl_pack_options options = striped(f, folders);
    struct sl_err err = {0};
    struct store_rig_damage found;

    store_rig_path(&f->rig, "drive", folder);
    assert_int_equal(sl_store_pack(&options, NULL, &err), -ENOENT);
    store_rig_assert_says(&err, "drive: cannot hold a part of the store: No such file");
    store_rig_path(&f->rig, "two\nlines", folder); /* the catalog would be refused ever after */
    assert_int_equal(mkdir(folder, 0777), 0);
    assert_int_equal(sl_store_pack(&options, NULL, &err), -EINVAL);
    store_rig_assert_says(&err, "control characters");
    store_rig_path(&f->rig, "drive", folder);
    assert_int_equal(mkdir(folder, 0777), 0);
    assert_int_equal(sl_store_pack(&options, NULL, NULL), 0);
    assert_striped(f);
    store_rig_verify(f->other, &found);
    assert_int_equal(found.n_items, 0);
    fixture_flip_byte(folder, "experts-2.bin", 2 * 40960 - 3072 - 1); /* the last of its tiles */
    store_rig_verify(f->other, &found);
    assert_int_equal(found.n_items, 1);
    assert_non_null(strstr(found.message, "layer 0, expert 1, w2: "));
    assert_int_equal(store_rig_repair(&f->rig, f->other, &found, NULL), 0);
    assert_striped(f);
}

/* It goes on with the stripes that it has, asked for or not; another store cannot have them. */
static void test_striped_and_gone_on(void **state)
{
    const struct store_fixture *f = *state;
    char folder[FIXTURE_PATH_BYTES], third[FIXTURE_PATH_BYTES];
    const char *const folders[] = {folder}, *const two_folders[] = {folder, third};
    struct sl_pack_options options = striped(f, folders);
    struct sl_err err = {0};
    atomic_bool stop = false;

    store_rig_path(&f->rig, "drive", folder);
    assert_int_equal(mkdir(folder, 0777), 0);
    options.stop = &stop;
    options.on_progress = store_rig_stop_at_half;
    options.progress_context = &stop;
    assert_int_equal(sl_store_pack(&options, NULL, NULL), -ECANCELED);
    store_rig_path(&f->rig, "third", third);
    options = striped(f, folders);
    options.store_folder = third;
    assert_int_equal(sl_store_pack(&options, NULL, &err), -EEXIST);
    store_rig_assert_says(&err, "experts-2.bin: the file exists already");
    options = striped(f, two_folders);
    options.n_stripes = 2;
    assert_int_equal(sl_store_pack(&options, NULL, &err), -SL_EFORMAT);
    store_rig_assert_says(&err, "begun over 2 drives, not 3");
    store_rig_pack(&f->rig, f->other);
    assert_striped(f);
}

/* The message is about a file that is not in the store's folder. */
static void assert_unable(const char *folder, const char *text)
{
    struct sl_store *store;
    struct sl_err err = {0};

    assert_int_equal(sl_store_open(&store, folder, SL_STORE_RUN, &err), -ENOENT);
    store_rig_assert_says(&err, text);
}

static int relocate(const char *store_folder, const char *folder, struct sl_err *err)
{
    const struct sl_store_relocation relocation = {
        .folders = &folder, .n_folders = 1, .writer = sl_file_writer()};

    return sl_store_relocate(store_folder, &relocation, err);
}

/* Its part on the other drive is moved, and mixed up with another model's. */
static void test_moved_parts(void **state)
{
    const struct store_fixture *f = *state;
    char folder[FIXTURE_PATH_BYTES], moved[FIXTURE_PATH_BYTES];
    const char *const folders[] = {folder};
    struct sl_pack_options options = striped(f, folders);
    struct sl_err err = {0};
    struct store_rig_damage found;
    int lock_fd;

    store_rig_path(&f->rig, "drive", folder);
    store_rig_path(&f->rig, "moved", moved);
    assert_int_equal(mkdir(folder, 0777), 0);
    assert_int_equal(sl_store_pack(&options, NULL, NULL), 0);
    assert_int_equal(relocate(f->other, moved, &err), -ENOENT);
    store_rig_assert_says(&err, "moved: cannot hold a part of the store: No such file");
    assert_int_equal(rename(folder, moved), 0);
    assert_int_equal(mkdir(folder, 0777), 0);
    assert_unable(f->other, "if it was moved: sluice verify STORE --stripe DIR");
    assert_int_equal(relocate(f->other, folder, &err), -SL_EFORMAT);
    store_rig_assert_says(&err, "drive: no part of");
    lock_fd = sl_store_lock(f->other, NULL);
    assert_int_equal(relocate(f->other, moved, &err), -EBUSY);
    close(lock_fd);

    fixture_flip_byte(moved, "experts-2.bin", 8 * 40960); /* of the last record */
    assert_int_equal(relocate(f->other, moved, &err), -SL_ECORRUPT);
    store_rig_assert_says(&err, "MTP block 0, expert 2: ");
    store_rig_assert_says(&err,
                          "moved/experts-2.bin: w3 at offset 327680 does not have the checksum");
    fixture_flip_byte(moved, "experts-2.bin", 8 * 40960);
    fixture_truncate(moved, "experts-2.bin", 9 * 40960 + 1);
    assert_int_equal(relocate(f->other, moved, &err), -SL_EFORMAT);
    store_rig_assert_says(&err, "experts-2.bin: the file has 368641 bytes");
    fixture_truncate(moved, "experts-2.bin", 9 * 40960);
    assert_unable(f->other, "drive/experts-2.bin: cannot open");
    assert_int_equal(relocate(f->other, moved, NULL), 0);
    assert_striped(f);
    store_rig_verify(f->other, &found);
    assert_int_equal(found.n_items, 0);
}

/* A store is packed over other drives, from there back onto one, and is what it was. */
static void test_packed_anew(void **state)
{
    struct store_fixture *f = *state;
    char folder[FIXTURE_PATH_BYTES], third[FIXTURE_PATH_BYTES];
    const char *const folders[] = {folder};
    struct sl_pack_options options = striped(f, folders);
    struct sl_pack_result result;
    struct sl_store *store;
    struct sl_err err = {0};
    atomic_bool stop = false;

    store_rig_path(&f->rig, "drive", folder);
    store_rig_path(&f->rig, "third", third);
    assert_int_equal(mkdir(folder, 0777), 0);
    store_rig_of_store(&options, f->rig.store_folder);
    options.stop = &stop;
    options.on_progress = store_rig_stop_at_half;
    options.progress_context = &stop;
    assert_int_equal(sl_store_pack(&options, NULL, NULL), -ECANCELED);
    options.stop = NULL;
    options.on_progress = NULL;
    assert_int_equal(sl_store_pack(&options, &result, NULL), 0);
    assert_true(result.written_bytes < result.total_bytes / 2);
    sl_store_close(options.from);
    assert_striped(f);

    options = store_rig_options(&f->rig, third);
    store_rig_of_store(&options, f->other);
    assert_int_equal(sl_store_pack(&options, NULL, NULL), 0);
    sl_store_close(options.from);
    store_rig_assert_same(third, f->rig.store_folder);
    assert_int_equal(sl_store_open(&store, third, SL_STORE_RUN, NULL), 0);
    sl_store_close(store);

    store_rig_remove(third);
    options = store_rig_options(&f->rig, third);
    store_rig_of_store(&options, f->other);
    fixture_flip_byte(folder, "experts-2.bin", 4 * 40960);
    assert_int_equal(sl_store_pack(&options, NULL, &err), -SL_ECORRUPT);
    store_rig_assert_says(&err, "layer 1, expert 1: ");
    store_rig_assert_says(&err,
                          "drive/experts-2.bin: w3 at offset 163840 does not have the checksum");
    fixture_flip_byte(f->other, "dense.bin", 0);
    store_rig_remove(third);
    assert_int_equal(sl_store_pack(&options, NULL, &err), -SL_ECORRUPT);
    store_rig_assert_says(&err, "dense.bin: tensor \"embed.weight\"");
    fixture_flip_byte(f->other, "tokenizer.json", 0);
    store_rig_remove(third);
    assert_int_equal(sl_store_pack(&options, NULL, &err), -SL_ECORRUPT);
    store_rig_assert_says(&err, "other/tokenizer.json: does not have the checksum");
    fixture_unlink(f->other, "tokenizer.json");
    store_rig_remove(third);
    assert_int_equal(sl_store_pack(&options, NULL, &err), -ENOENT);
    store_rig_assert_says(&err, "other/tokenizer.json");
    sl_store_close(options.from);
}

static void test_drives(void **state)
{
    const struct store_fixture *f = *state;
    const char *const folders[] = {"/proc", f->rig.root, f->rig.store_folder};
    struct sl_drive a, b;
    struct sl_err err = {0};

    assert_int_equal(sl_drives_check(folders, 2, &err), 0);
    assert_int_equal(sl_drives_check(folders, 3, &err), -SL_EFORMAT);
    store_rig_assert_says(&err, "/store are on one drive, ");
    assert_int_equal(sl_drive_of(&a, f->rig.root, NULL), 0);
    assert_int_equal(sl_drive_of(&b, f->rig.store_folder, NULL), 0);
    assert_string_equal(a.name, b.name);
    assert_true(a.filesystem == b.filesystem);
    assert_int_equal(sl_drive_of(&a, f->other, &err), -ENOENT);
}

#define WITH_STORE(test)                                                                           \
    cmocka_unit_test_setup_teardown(test, store_fixture_create, store_fixture_destroy)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_STORE(test_tensors_are_the_checkpoints),
        WITH_STORE(test_records_are_tiles),
        cmocka_unit_test(test_matrices_over_parts),
        WITH_STORE(test_hot_list),
        WITH_STORE(test_probe_is_remembered),
        WITH_STORE(test_spoilt_entries),
        cmocka_unit_test(test_decoding_any_bytes),
        WITH_STORE(test_truncated_catalog),
        WITH_STORE(test_other_versions),
        WITH_STORE(test_truncated_files),
        WITH_STORE(test_another_models_config),
        cmocka_unit_test(test_layouts),
        WITH_STORE(test_damage_is_named_and_repaired),
        WITH_STORE(test_other_weights_repair_nothing),
        WITH_STORE(test_striped),
        WITH_STORE(test_striped_and_gone_on),
        WITH_STORE(test_moved_parts),
        WITH_STORE(test_packed_anew),
        WITH_STORE(test_drives),
    };

    return cmocka_run_group_tests_name("store", tests, NULL, NULL);
}
