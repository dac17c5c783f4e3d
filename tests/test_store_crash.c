/* Packing survives what may happen to it: whenever the power goes or a call fails, what the catalog
 * then says is on disk is there, and packing again ends with the bytes of a pack that nothing
 * happened to. The power is cut at each call in turn, and then again while going on; each call
 * fails in turn, once with the disk full. Where shards are freed on the way, none goes that has
 * something which is not in the store. All of it with a plain store and a compressed one.
 *
 * LMDB's commits are taken to be as durable as they say, with its default of syncing each: they
 * happen for real between the simulated calls, and a commit that did not happen is one at the call
 * before. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "storage/pack/store_verify.h"
#include "tests/crash_writer.h"
#include "tests/io_fault.h"
#include "tests/store_rig.h"

#define CUTS_MAX 8u /* in a row; then it may end */

struct fixture {
    struct store_rig rig;
    char reference[FIXTURE_PATH_BYTES];
    uint64_t n_calls; /* of a pack that nothing happens to */
};

static int set_up(void **state, bool compress)
{
    struct fixture *f = calloc(1, sizeof(*f));
    struct sl_pack_options options;
    struct crash_writer *writer = crash_writer_open(1, 0, 0);

    assert_non_null(f);
    store_rig_open(&f->rig, 0);
    f->rig.compress = compress;
    store_rig_path(&f->rig, "reference", f->reference);
    options = store_rig_options(&f->rig, f->reference);
    options.writer = crash_writer_ops(writer);
    assert_int_equal(sl_store_pack(&options, NULL, NULL), 0);
    f->n_calls = crash_writer_count(writer);
    assert_false(crash_writer_close(writer));
    store_rig_pack(&f->rig, f->rig.store_folder); /* by the real writer */
    store_rig_assert_same(f->reference, f->rig.store_folder);
    store_rig_remove(f->rig.store_folder);
    *state = f;
    return 0;
}

static int set_up_plain(void **state)
{
    return set_up(state, false);
}

static int set_up_compressed(void **state)
{
    return set_up(state, true);
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    store_rig_close(&f->rig);
    free(f);
    return 0;
}

/* The sealed copies may be behind: the next run makes them. */
static void on_bad(void *context, const struct sl_store_item *item, const char *message)
{
    (void)context;
    if (item->kind != SL_STORE_COPY)
        fail_msg("the catalog says that this is there: %s", message);
}

/* Everything that the catalog says is done is on disk. Returns how many experts are. */
static uint32_t check_claims(const struct fixture *f)
{
    static const struct sl_verify_options options = {.open_io = sl_io_threads_open,
                                                     .on_bad = on_bad};
    struct sl_verify_result result;
    struct sl_err err = {0};
    struct sl_store *store;
    uint32_t n_experts, n_others; /* small files, and copies of the catalog */
    int rc;

    if (!sl_store_is(f->rig.store_folder))
        return 0;
    rc = sl_store_open(&store, f->rig.store_folder, SL_STORE_RESUME, &err);
    if (rc < 0)
        fail_msg("%s", err.message);
    assert_int_equal(sl_store_verify(store, &options, &result, NULL), 0);
    n_experts = sl_store_state(store)->n_experts_done;
    n_others = sl_store_state(store)->complete ? 1 + sl_store_file_count(store) : 0;
    assert_int_equal(result.n_items, n_others + sl_store_state(store)->n_tensors_done +
                                         (f->rig.compress ? 1 : 3) * n_experts);
    sl_store_close(store);
    return n_experts;
}

/* Packs until the power goes at the nth call; true if it did. */
static bool pack_until(const struct fixture *f, uint64_t seed, uint64_t nth)
{
    struct sl_pack_options options = store_rig_options(&f->rig, f->rig.store_folder);
    struct crash_writer *writer = crash_writer_open(seed, nth, 0);
    struct sl_err err = {0};
    int rc;

    options.writer = crash_writer_ops(writer);
    rc = sl_store_pack(&options, NULL, &err);
    if (!crash_writer_close(writer)) {
        if (rc < 0)
            fail_msg("%s", err.message);
        return false;
    }
    assert_int_equal(rc, -EIO);
    return true;
}

static void test_power_cut_at_each_call(void **state)
{
    const struct fixture *f = *state;
    uint32_t n_halfway = 0;

    for (uint64_t nth = 1; nth <= f->n_calls; nth++) {
        uint32_t n_experts;

        assert_true(pack_until(f, nth, nth));
        n_experts = check_claims(f);
        n_halfway += n_experts > 0 && n_experts < sl_store_expert_count(&store_rig_shape);
        store_rig_pack(&f->rig, f->rig.store_folder);
        store_rig_assert_same(f->reference, f->rig.store_folder);
        store_rig_remove(f->rig.store_folder);
    }
    assert_true(n_halfway > 5);
}

static void test_power_cut_again_and_again(void **state)
{
    const struct fixture *f = *state;
    uint64_t random = 7;

    for (uint32_t round = 0; round < 12; round++) {
        uint32_t n_cuts = 0;

        while (n_cuts < CUTS_MAX &&
               pack_until(f, io_fault_random(&random), 1 + io_fault_random(&random) % 30)) {
            check_claims(f);
            n_cuts++;
        }
        assert_true(n_cuts > 0);
        store_rig_pack(&f->rig, f->rig.store_folder);
        store_rig_assert_same(f->reference, f->rig.store_folder);
        store_rig_remove(f->rig.store_folder);
    }
}

/* Over two folders. What is complete at the end is compared with checksums that are those of the
 * store that nothing happened to. */
static void test_power_cut_while_striping(void **state)
{
    static const uint64_t weights[] = {1, 2};
    const struct fixture *f = *state;
    char folder[FIXTURE_PATH_BYTES];
    const char *const folders[] = {folder};
    bool cut = true;

    store_rig_path(&f->rig, "drive", folder);
    for (uint64_t nth = 1; cut; nth += 2) {
        struct sl_pack_options options = store_rig_options(&f->rig, f->rig.store_folder);
        struct crash_writer *writer = crash_writer_open(nth, nth, 0);
        int rc;

        assert_int_equal(mkdir(folder, 0777), 0);
        options.stripe_folders = folders;
        options.weights = weights;
        options.n_stripes = 1;
        options.writer = crash_writer_ops(writer);
        rc = sl_store_pack(&options, NULL, NULL);
        cut = crash_writer_close(writer);
        assert_int_equal(rc, cut ? -EIO : 0);
        check_claims(f);
        options.writer = sl_file_writer();
        assert_int_equal(sl_store_pack(&options, NULL, NULL), 0);
        assert_int_equal(check_claims(f), sl_store_expert_count(&store_rig_shape));
        store_rig_remove(f->rig.store_folder);
        store_rig_remove(folder);
    }
}

/* Everything of a shard that was cut is in the store, says its catalog; and what no store takes is
 * not touched. Returns how many were. */
static uint32_t check_freed(struct fixture *f)
{
    struct sl_store_state state = {0};
    struct sl_store *store;
    uint32_t n_cut = 0, layer, number;

    store_rig_reopen(&f->rig);
    if (sl_store_is(f->rig.store_folder) &&
        sl_store_open(&store, f->rig.store_folder, SL_STORE_RESUME, NULL) == 0) {
        state = *sl_store_state(store);
        sl_store_close(store);
    }
    for (uint32_t i = 0; i < sl_checkpoint_tensor_count(f->rig.checkpoint); i++) {
        const struct sl_checkpoint_tensor *tensor = sl_checkpoint_tensor_at(f->rig.checkpoint, i);
        const uint32_t n_each = store_rig_shape.n_routed_experts;
        bool is_packed = false;

        if (sl_checkpoint_has(f->rig.checkpoint, tensor->file_index, tensor->offset_bytes,
                              tensor->info.size_bytes))
            continue;
        n_cut++;
        for (uint32_t k = 0; k < state.n_tensors_done; k++)
            is_packed |= strcmp(tensor->name, store_rig_tensors[k]) == 0;
        if (sscanf(tensor->name, "layers.%u.ffn.experts.%u.", &layer, &number) == 2)
            is_packed = layer * n_each + number < state.n_experts_done;
        else if (sscanf(tensor->name, "mtp.0.ffn.experts.%u.", &number) == 1)
            is_packed = 2 * n_each + number < state.n_experts_done;
        if (!is_packed)
            fail_msg("%s is gone", tensor->name);
    }
    return n_cut;
}

/* With shards freed as it goes: nothing is lost, and a pack goes on with what is left. */
static void test_power_cut_while_consuming(void **state)
{
    struct fixture *f = *state;
    uint32_t n_halfway = 0, n_cut;
    bool cut = true;

    for (uint64_t nth = 1; cut; nth++) {
        struct sl_pack_options options;
        struct sl_pack_result result;
        struct crash_writer *writer;

        store_rig_refill(&f->rig);
        for (uint32_t run = 0; run < 3; run++) { /* the third is left alone */
            struct sl_err err = {0};
            int rc;

            options = store_rig_options(&f->rig, f->rig.store_folder);
            options.consume = true;
            writer = crash_writer_open(nth + run, run == 2 ? 0 : run == 1 ? nth / 2 : nth, 0);
            options.writer = crash_writer_ops(writer);
            rc = sl_store_pack(&options, &result, &err);
            cut = crash_writer_close(writer) || (run > 0 && cut);
            if (rc < 0 && (rc != -EIO || run == 2))
                fail_msg("call %d, run %d: %s", (int)nth, (int)run, err.message);
            check_claims(f);
            n_cut = check_freed(f);
            n_halfway += run < 2 && n_cut > 0;
        }
        assert_int_equal(n_cut, sl_checkpoint_tensor_count(f->rig.checkpoint) - 1);
        store_rig_assert_same(f->reference, f->rig.store_folder);
        store_rig_remove(f->rig.store_folder);
    }
    assert_true(n_halfway > 5);
    store_rig_refill(&f->rig);
}

/* From the store that nothing happened to. */
static void test_power_cut_while_packing_anew(void **state)
{
    const struct fixture *f = *state;
    bool cut = true;

    for (uint64_t nth = 1; cut; nth += 3) {
        struct sl_pack_options options = store_rig_options(&f->rig, f->rig.store_folder);
        struct crash_writer *writer = crash_writer_open(nth, nth, 0);
        int rc;

        store_rig_of_store(&options, f->reference);
        options.writer = crash_writer_ops(writer);
        rc = sl_store_pack(&options, NULL, NULL);
        cut = crash_writer_close(writer);
        assert_int_equal(rc, cut ? -EIO : 0);
        check_claims(f);
        options.writer = sl_file_writer();
        assert_int_equal(sl_store_pack(&options, NULL, NULL), 0);
        sl_store_close(options.from);
        store_rig_assert_same(f->reference, f->rig.store_folder);
        store_rig_remove(f->rig.store_folder);
    }
}

/* A run that ended right after its first commit, before the names of the catalog were synced,
 * leaves that to the next one. */
struct counting_writer {
    struct sl_file_writer writer; /* first */
    struct sl_file_writer_ops ops;
    uint32_t n_synced, n_before_files;
};

static int refuse_sync(struct sl_file_writer *writer, const char *path)
{
    (void)writer;
    (void)path;
    return -EIO;
}

static int count_sync(struct sl_file_writer *writer, const char *path)
{
    ((struct counting_writer *)(void *)writer)->n_synced++;
    return sl_file_writer()->ops->sync_folder(writer, path);
}

static int open_counted(struct sl_file_writer *writer, const char *path, bool bulk, int *ret_file)
{
    struct counting_writer *counting = (struct counting_writer *)(void *)writer;

    if (counting->n_before_files == 0)
        counting->n_before_files = counting->n_synced;
    return sl_file_writer()->ops->open(writer, path, bulk, ret_file);
}

static void test_names_are_synced_by_the_next_go(void **state)
{
    const struct fixture *f = *state;
    struct counting_writer counting = {.ops = *sl_file_writer()->ops};
    struct sl_pack_options options = store_rig_options(&f->rig, f->rig.store_folder);

    counting.writer.ops = &counting.ops;
    counting.ops.sync_folder = refuse_sync;
    options.writer = &counting.writer;
    assert_int_equal(sl_store_pack(&options, NULL, NULL), -EIO);
    counting.ops.sync_folder = count_sync;
    counting.ops.open = open_counted;
    assert_int_equal(sl_store_pack(&options, NULL, NULL), 0);
    assert_int_equal(counting.n_before_files, 2); /* the store's folder, and that above it */
    store_rig_assert_same(f->reference, f->rig.store_folder);
    store_rig_remove(f->rig.store_folder);
}

static void test_each_call_fails(void **state)
{
    const struct fixture *f = *state;

    for (uint64_t nth = 1; nth <= f->n_calls; nth++) {
        const int code = nth % 2 ? -ENOSPC : -EIO;
        struct crash_writer *writer = crash_writer_open(nth, nth, code);
        struct sl_pack_options options = store_rig_options(&f->rig, f->rig.store_folder);
        struct sl_err err = {0};

        options.writer = crash_writer_ops(writer);
        assert_int_equal(sl_store_pack(&options, NULL, &err), code);
        if (!strstr(err.message, sl_strerror(code)) || !strstr(err.message, f->rig.store_folder) ||
            strchr(err.message, '\n'))
            fail_msg("call %d: \"%s\"", (int)nth, err.message);
        assert_false(crash_writer_close(writer));
        check_claims(f);
        store_rig_pack(&f->rig, f->rig.store_folder);
        store_rig_assert_same(f->reference, f->rig.store_folder);
        store_rig_remove(f->rig.store_folder);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_power_cut_at_each_call),
        cmocka_unit_test(test_power_cut_again_and_again),
        cmocka_unit_test(test_power_cut_while_striping),
        cmocka_unit_test(test_power_cut_while_consuming),
        cmocka_unit_test(test_power_cut_while_packing_anew),
        cmocka_unit_test(test_names_are_synced_by_the_next_go),
        cmocka_unit_test(test_each_call_fails),
    };

    return cmocka_run_group_tests_name("store_crash", tests, set_up_plain, tear_down) |
           cmocka_run_group_tests_name("store_crash, compressed", tests, set_up_compressed,
                                       tear_down);
}
