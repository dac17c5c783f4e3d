/* Packing in several runs: what stops it, what it refuses, and what it frees. A small checkpoint is
 * packed whole, halfway, by several threads, beside others and into what is there already, and the
 * folders are compared byte for byte. */
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

#include "storage/pack/store_identity.h"
#include "tests/store_rig.h"

static void test_stopped_and_gone_on(void **state)
{
    const struct store_fixture *f = *state;
    struct sl_pack_options options = store_rig_options(&f->rig, f->other);
    struct sl_pack_result result;
    struct sl_err err = {0};
    struct store_rig tuned;
    atomic_bool stop = false;

    options.stop = &stop;
    options.on_progress = store_rig_stop_at_half;
    options.progress_context = &stop;
    assert_int_equal(sl_store_pack(&options, &result, &err), -ECANCELED);
    store_rig_assert_says(&err, "run sluice pack again to go on");
    assert_true(result.written_bytes > result.total_bytes / 2);
    assert_true(result.written_bytes < result.total_bytes);
    store_rig_assert_refused(f->other, -SL_EFORMAT, "the store is not complete");

    store_rig_open(&tuned, 4); /* its experts must not be mixed with those that are there */
    options = store_rig_options(&tuned, f->other);
    assert_int_equal(sl_store_pack(&options, NULL, &err), -SL_EFORMAT);
    store_rig_assert_says(&err, "other weights");
    store_rig_close(&tuned);

    options = store_rig_options(&f->rig, f->other);
    assert_int_equal(sl_store_pack(&options, &result, NULL), 0);
    assert_true(result.written_bytes < result.total_bytes / 2);
    store_rig_assert_same(f->other, f->rig.store_folder);
    assert_int_equal(sl_store_pack(&options, &result, NULL), 0); /* nothing left to do */
    assert_int_equal(result.written_bytes, 0);
}

/* Writes the shard with the dense tensors anew, two of them of other sizes, under the same index.
 */
static void write_other_shapes(struct store_rig *rig, uint64_t embed_rows, uint64_t wkv_rows)
{
    struct fixture_list list = {0};

    fixture_add(&list, SL_DTYPE_BF16, embed_rows, 256, "embed.weight");
    fixture_add(&list, SL_DTYPE_F8_E4M3, wkv_rows, 128, "layers.0.attn.wkv.weight");
    fixture_add(&list, SL_DTYPE_F8_E8M0, 1, 1, "layers.0.attn.wkv.scale");
    fixture_add_experts(&list, "mtp.0", 3, 256, 128);
    fixture_write_shard(rig->checkpoint_folder, "model-00001-of-00004.safetensors", &list, true);
    fixture_fini(&list);
    store_rig_reopen(rig);
    store_rig_refill(rig);
}

/* An index names tensors and files, and no shapes: those of a store that was begun are compared. */
static void test_other_shapes_do_not_go_on(void **state)
{
    struct store_fixture *f = *state;
    struct sl_pack_options options = store_rig_options(&f->rig, f->other);
    atomic_bool stop = true;
    struct sl_err err = {0};

    options.stop = &stop;
    options.batch_bytes = 1;
    assert_int_equal(sl_store_pack(&options, NULL, NULL), -ECANCELED); /* behind embed.weight */
    write_other_shapes(&f->rig, 40, 32); /* as many blocks, but less than was packed */
    options = store_rig_options(&f->rig, f->other);
    assert_int_equal(sl_store_pack(&options, NULL, &err), -SL_EFORMAT);
    store_rig_assert_says(&err, "other weights");
    write_other_shapes(&f->rig, 41, 64); /* what was packed is the same, what comes is not */
    options = store_rig_options(&f->rig, f->other);
    assert_int_equal(sl_store_pack(&options, NULL, &err), -SL_EFORMAT);
    store_rig_assert_says(&err, "other weights");
    write_other_shapes(&f->rig, 41, 32);
    store_rig_pack(&f->rig, f->other);
    store_rig_assert_same(f->other, f->rig.store_folder);
}

static void test_threads_write_the_same(void **state)
{
    const struct store_fixture *f = *state;
    struct sl_pack_options options = store_rig_options(&f->rig, f->other);

    assert_int_equal(sl_pool_create(&options.pool, 3, NULL), 0);
    options.batch_bytes = UINT64_MAX / 2;
    assert_int_equal(sl_store_pack(&options, NULL, NULL), 0);
    sl_pool_destroy(options.pool);
    store_rig_assert_same(f->other, f->rig.store_folder);
}

static void test_refused_folders(void **state)
{
    const struct store_fixture *f = *state;
    struct sl_pack_options options = store_rig_options(&f->rig, f->rig.checkpoint_folder);
    struct sl_err err = {0};
    int lock_fd;

    assert_int_equal(sl_store_pack(&options, NULL, &err), -SL_EFORMAT);
    store_rig_assert_says(&err, "not empty, and not a store");
    lock_fd = sl_store_lock(f->rig.store_folder, NULL);
    assert_true(lock_fd >= 0);
    options.store_folder = f->rig.store_folder;
    assert_int_equal(sl_store_pack(&options, NULL, &err), -EBUSY);
    store_rig_assert_says(&err, "another process is writing to this store");
    close(lock_fd);
    fixture_write_text(f->rig.checkpoint_folder, "config.json", "{\"of\": \"another\"}\n");
    assert_int_equal(sl_store_pack(&options, NULL, &err), -SL_EFORMAT);
    store_rig_assert_says(&err, "the store is of another model");
    store_rig_remove(f->rig.store_folder);
    assert_int_equal(mkdir(f->rig.store_folder, 0777), 0);
    fixture_write_text(f->rig.store_folder, "precious", "text");
    assert_int_equal(sl_store_pack(&options, NULL, &err), -SL_EFORMAT);
    store_rig_assert_says(&err, "\"precious\" is in it");
    fixture_unlink(f->rig.checkpoint_folder, "config.json");
    assert_int_equal(sl_store_pack(&options, NULL, &err), -ENOENT);
    store_rig_assert_says(&err, "config.json");
}

/* ---- consuming the checkpoint -----------------------------------------------------------------
 */

static uint64_t checkpoint_bytes(const struct store_rig *rig)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < STORE_RIG_SHARDS; i++) {
        struct stat status;

        assert_int_equal(stat(sl_checkpoint_file_path(rig->checkpoint, i), &status), 0);
        bytes += (uint64_t)status.st_size;
    }
    return bytes;
}

/* A store that is complete already, of these weights or of others. */
static void test_consume_what_was_packed(void **state)
{
    const struct store_fixture *f = *state;
    struct sl_pack_options options = store_rig_options(&f->rig, f->rig.store_folder);
    uint64_t before_bytes = checkpoint_bytes(&f->rig), unused_bytes;
    struct sl_checkpoint *checkpoint;
    struct sl_pack_result result;
    struct sl_err err = {0};
    struct store_rig tuned;

    store_rig_open(&tuned, 4);
    options = store_rig_options(&tuned, f->rig.store_folder);
    options.consume = true;
    assert_int_equal(sl_store_pack(&options, NULL, &err), -SL_EFORMAT);
    store_rig_assert_says(&err, "other weights");
    assert_int_equal(checkpoint_bytes(&tuned), before_bytes);
    store_rig_close(&tuned);

    /* Nothing is freed that the store has not got. */
    options = store_rig_options(&f->rig, f->rig.store_folder);
    options.consume = true;
    for (uint32_t i = 0; i < 2; i++) {
        const char *file = i ? "experts-1.bin" : "dense.bin";
        const uint64_t offset_bytes = i ? 4 * 61440 + 100 : 24576 + 1023;

        fixture_flip_byte(f->rig.store_folder, file, offset_bytes);
        assert_int_equal(sl_store_pack(&options, NULL, &err), -SL_ECORRUPT);
        store_rig_assert_says(&err, file);
        assert_int_equal(checkpoint_bytes(&f->rig), before_bytes);
        fixture_flip_byte(f->rig.store_folder, file, offset_bytes);
    }
    assert_int_equal(sl_store_pack(&options, &result, NULL), 0);
    assert_int_equal(result.written_bytes, 0);
    assert_int_equal(before_bytes - result.freed_bytes, checkpoint_bytes(&f->rig));
    unused_bytes = sl_checkpoint_file_bytes(f->rig.checkpoint, STORE_RIG_SHARDS - 1);
    assert_true(before_bytes - result.freed_bytes > unused_bytes);
    assert_true(before_bytes - result.freed_bytes < unused_bytes + 16384); /* three headers */
    assert_int_equal(sl_checkpoint_open(&checkpoint, f->rig.checkpoint_folder, &err), -SL_ECORRUPT);
    store_rig_assert_says(&err, "was it packed with --consume?");
}

/* Nothing is begun that could not be ended, and nothing taken from elsewhere. */
static void test_consume_is_refused(void **state)
{
    struct store_fixture *f = *state;
    struct sl_pack_options options = store_rig_options(&f->rig, f->other);
    char name[FIXTURE_PATH_BYTES];
    struct sl_err err = {0};
    uint64_t before_bytes = checkpoint_bytes(&f->rig);

    options.consume = true;
    store_rig_path(&f->rig, "another name", name);
    assert_int_equal(link(sl_checkpoint_file_path(f->rig.checkpoint, 2), name), 0);
    assert_int_equal(sl_store_pack(&options, NULL, &err), -SL_EFORMAT);
    store_rig_assert_says(&err,
                          "00003-of-00004.safetensors: cannot be freed: the file has 2 names");
    assert_int_equal(unlink(sl_checkpoint_file_path(f->rig.checkpoint, 2)), 0);
    assert_int_equal(symlink(name, sl_checkpoint_file_path(f->rig.checkpoint, 2)), 0);
    assert_int_equal(sl_store_pack(&options, NULL, &err), -SL_EFORMAT);
    store_rig_assert_says(&err, "00003-of-00004.safetensors: cannot be freed: a symbolic link");
    assert_int_equal(rename(name, sl_checkpoint_file_path(f->rig.checkpoint, 2)), 0);
    assert_int_equal(checkpoint_bytes(&f->rig), before_bytes);
    assert_int_equal(rmdir(f->other), 0);

    fixture_truncate(f->rig.checkpoint_folder, "model-00003-of-00004.safetensors",
                     sl_checkpoint_file_bytes(f->rig.checkpoint, 2) - 1);
    store_rig_reopen(&f->rig);
    options = store_rig_options(&f->rig, f->other);
    assert_int_equal(sl_store_pack(&options, NULL, &err), -SL_EFORMAT);
    store_rig_assert_says(&err, "00003-of-00004.safetensors: the file was cut: it ends at byte ");
    store_rig_assert_says(&err, "layer 1, expert ");
    assert_int_equal(rmdir(f->other), 0);
}

/* A tensor of 2 TiB, all of it a hole. */
static void test_disk_too_small(void **state)
{
    static const char *const tensors[] = {"embed.weight"};
    const struct store_fixture *f = *state;
    const struct sl_expert_shape shape = {1, 0, 3, 256, 128, SL_EXPERT_FP4};
    struct sl_pack_options options = store_rig_options(&f->rig, f->other);
    struct fixture_list list = {0};
    char folder[FIXTURE_PATH_BYTES];
    struct sl_checkpoint *checkpoint;
    struct sl_expert_map *experts;
    struct sl_err err = {0};

    store_rig_path(&f->rig, "vast", folder);
    assert_int_equal(mkdir(folder, 0777), 0);
    fixture_add(&list, SL_DTYPE_BF16, 1u << 20, 1u << 20, "embed.weight");
    fixture_add_experts(&list, "layers.0", 3, 256, 128);
    fixture_write_shard(folder, FIXTURE_SHARD_1, &list, true);
    fixture_write_text(folder, "config.json", "{}\n");
    fixture_fini(&list);
    assert_int_equal(sl_checkpoint_open(&checkpoint, folder, NULL), 0);
    assert_int_equal(sl_expert_map_of_checkpoint(&experts, checkpoint, &shape, NULL), 0);
    options.checkpoint_folder = folder;
    options.checkpoint = checkpoint;
    options.experts = experts;
    options.tensors = tensors;
    options.n_tensors = 1;
    assert_int_equal(sl_store_pack(&options, NULL, &err), -ENOSPC);
    store_rig_assert_says(&err, "2.00 TiB are needed, ");
    assert_int_equal(rmdir(f->other), 0); /* nothing was written */
    sl_expert_map_close(experts);
    sl_checkpoint_close(checkpoint);
}

#define WITH_STORE(test)                                                                           \
    cmocka_unit_test_setup_teardown(test, store_fixture_create, store_fixture_destroy)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_STORE(test_stopped_and_gone_on),     WITH_STORE(test_other_shapes_do_not_go_on),
        WITH_STORE(test_threads_write_the_same),  WITH_STORE(test_refused_folders),
        WITH_STORE(test_consume_what_was_packed), WITH_STORE(test_consume_is_refused),
        WITH_STORE(test_disk_too_small),
    };

    return cmocka_run_group_tests_name("packing", tests, NULL, NULL);
}
