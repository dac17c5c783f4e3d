/* A compressed store holds what a plain one does, in less. A small checkpoint is packed both ways
 * and the records compared; then the compressed store is stopped and gone on with, packed anew,
 * striped, damaged wherever it can be and repaired, and the kinds are mixed up. */
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

#include "storage/io/checksum.h"
#include "storage/store/codec.h"
#include "storage/pack/store_repair.h"
#include "storage/pack/store_verify.h"
#include "tests/store_rig.h"

#define RECORD_BYTES UINT64_C(61440)
#define STORED_BYTES UINT64_C(53248) /* 3 x 17,408, less what 3 x 1,024 bytes of scales lose */
#define N_EXPERTS 9u

struct fixture {
    struct store_rig rig;           /* packs compressed, to store_folder */
    char plain[FIXTURE_PATH_BYTES]; /* the same, not compressed */
    char other[FIXTURE_PATH_BYTES]; /* not made yet */
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    store_rig_open(&f->rig, 0);
    store_rig_path(&f->rig, "plain", f->plain);
    store_rig_path(&f->rig, "other", f->other);
    store_rig_pack(&f->rig, f->plain);
    f->rig.compress = true;
    store_rig_pack(&f->rig, f->rig.store_folder);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    store_rig_close(&f->rig);
    free(f);
    return 0;
}

/* A record as it is stored, from all its parts. Returns its size. */
static uint64_t read_record(const struct sl_store *store, uint32_t number,
                            uint8_t record[RECORD_BYTES])
{
    const struct sl_packed_expert *expert =
        sl_store_expert(store, sl_store_expert_at(&store_rig_shape, number));
    uint64_t size_bytes = 0;

    for (uint32_t i = 0; i < expert->n_parts; i++) {
        const struct sl_extent *part = &expert->parts[i];
        int fd = open(sl_store_file_path(store, part->file_index), O_RDONLY);

        assert_true(fd >= 0);
        assert_true(size_bytes + part->size_bytes <= RECORD_BYTES);
        assert_int_equal(
            pread(fd, record + size_bytes, part->size_bytes, (off_t)part->offset_bytes),
            part->size_bytes);
        size_bytes += part->size_bytes;
        close(fd);
    }
    return size_bytes;
}

/* Both stores give the same tiles, by way of the same checksums. */
static void assert_same_tiles(const char *compressed_folder, const char *plain_folder)
{
    uint8_t stored[RECORD_BYTES], record[RECORD_BYTES], expected[RECORD_BYTES];
    uint8_t *memory = aligned_alloc(64, sl_record_decoder_bytes(&store_rig_shape));
    struct sl_store *compressed, *plain;
    struct sl_record_decoder *decoder;
    struct sl_record_index index;

    assert_non_null(memory);
    decoder = sl_record_decoder_init(memory);
    assert_int_equal(sl_store_open(&compressed, compressed_folder, SL_STORE_RUN, NULL), 0);
    assert_int_equal(sl_store_open(&plain, plain_folder, SL_STORE_RUN, NULL), 0);
    for (uint32_t i = 0; i < N_EXPERTS; i++) {
        struct sl_expert_key key = sl_store_expert_at(&store_rig_shape, i);
        const struct sl_packed_expert *expert = sl_store_expert(compressed, key);

        assert_true(expert->compressed);
        assert_memory_equal(expert->checksums, sl_store_expert(plain, key)->checksums, 24);
        assert_int_equal(read_record(compressed, i, stored), STORED_BYTES);
        assert_int_equal(sl_checksum(stored, STORED_BYTES), expert->stored_checksum);
        assert_true(sl_record_index_read(&index, &store_rig_shape, stored, STORED_BYTES));
        memset(record, 0, sizeof(record));
        for (uint32_t k = 0; k < index.n_chunks; k++)
            assert_true(sl_record_unpack(decoder, &index.chunks[k], record));
        assert_int_equal(read_record(plain, i, expected), RECORD_BYTES);
        assert_memory_equal(record, expected, RECORD_BYTES);
    }
    assert_int_equal(sl_store_saved_bytes(compressed), N_EXPERTS * (RECORD_BYTES - STORED_BYTES));
    assert_int_equal(sl_store_saved_bytes(plain), 0);
    sl_store_close(compressed);
    sl_store_close(plain);
    free(memory);
}

static void test_same_tiles_in_less(void **state)
{
    const struct fixture *f = *state;

    assert_same_tiles(f->rig.store_folder, f->plain);
}

/* ---- packing ----------------------------------------------------------------------------------
 */

/* Whether it is asked for again or not, it goes on compressed. */
static void test_stopped_and_gone_on(void **state)
{
    struct fixture *f = *state;

    for (int again = 0; again < 2; again++) {
        struct sl_pack_options options = store_rig_options(&f->rig, f->other);
        struct sl_pack_result result;
        atomic_bool stop = false;

        options.stop = &stop;
        options.on_progress = store_rig_stop_at_half;
        options.progress_context = &stop;
        assert_int_equal(sl_store_pack(&options, &result, NULL), -ECANCELED);
        assert_in_range(result.gain.scales_bytes, 1, N_EXPERTS * 3 * 1024 - 1);
        options = store_rig_options(&f->rig, f->other);
        options.compress = again;
        assert_int_equal(sl_store_pack(&options, &result, NULL), 0);
        assert_true(result.compressed);
        assert_int_equal(result.saved_bytes, N_EXPERTS * (RECORD_BYTES - STORED_BYTES));
        store_rig_assert_same(f->other, f->rig.store_folder);
        assert_int_equal(sl_store_pack(&options, &result, NULL), 0); /* nothing left to do */
        assert_int_equal(result.written_bytes, 0);
        assert_int_equal(result.saved_bytes, N_EXPERTS * (RECORD_BYTES - STORED_BYTES));
        store_rig_remove(f->other);
    }
}

static void test_what_packing_tells(void **state)
{
    const struct fixture *f = *state;
    struct sl_pack_options options = store_rig_options(&f->rig, f->other);
    struct sl_pack_result result;
    struct sl_err err = {0};
    struct stat status;
    char path[FIXTURE_PATH_BYTES];

    assert_int_equal(sl_pool_create(&options.pool, 3, NULL), 0);
    options.batch_bytes = UINT64_MAX / 2;
    assert_int_equal(sl_store_pack(&options, &result, NULL), 0);
    sl_pool_destroy(options.pool);
    store_rig_assert_same(f->other, f->rig.store_folder);
    assert_int_equal(result.gain.scales_bytes, N_EXPERTS * 3 * 1024);
    assert_true(2 * result.gain.scales_stored_bytes < result.gain.scales_bytes);
    assert_int_equal(result.gain.codes_bytes, N_EXPERTS * 3 * 16384);
    assert_int_equal(result.gain.codes_stored_bytes, result.gain.codes_bytes);
    assert_int_equal(result.written_bytes, result.total_bytes);
    store_rig_path(&f->rig, "other/experts-1.bin", path);
    assert_int_equal(stat(path, &status), 0);
    assert_in_range(status.st_blocks * 512, 1, N_EXPERTS * RECORD_BYTES - 1); /* it has holes */

    options = store_rig_options(&f->rig, f->plain);
    assert_int_equal(sl_store_pack(&options, NULL, &err), -SL_EFORMAT);
    store_rig_assert_says(&err, "the store was begun without --compress");
}

/* Of a store another one of either kind: the bytes are those that the checkpoint gives. Stopped at
 * half, it goes on. */
static void test_packed_anew(void **state)
{
    const struct fixture *f = *state;
    const char *const folders[] = {f->plain, f->rig.store_folder};

    for (int i = 0; i < 4; i++) {
        const char *to = folders[i % 2];
        struct sl_pack_options options = store_rig_options(&f->rig, f->other);
        struct sl_pack_result result;
        atomic_bool stop = false;

        store_rig_of_store(&options, folders[i / 2]);
        options.compress = i % 2;
        options.stop = &stop;
        options.on_progress = store_rig_stop_at_half;
        options.progress_context = &stop;
        assert_int_equal(sl_store_pack(&options, &result, NULL), -ECANCELED);
        options.stop = NULL;
        options.on_progress = NULL;
        assert_int_equal(sl_store_pack(&options, &result, NULL), 0);
        sl_store_close(options.from);
        assert_int_equal(result.compressed, i % 2);
        store_rig_assert_same(f->other, to);
        store_rig_remove(f->other);
    }
}

/* What is damaged is not packed anew, neither where it does not unpack nor where it does. */
static void test_damage_is_not_packed_anew(void **state)
{
    static const uint64_t places[] = {0, 40, 10000};
    const struct fixture *f = *state;

    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        struct sl_pack_options options = store_rig_options(&f->rig, f->other);
        struct sl_err err = {0};

        fixture_flip_byte(f->rig.store_folder, "experts-1.bin", 4 * RECORD_BYTES + places[i]);
        store_rig_of_store(&options, f->rig.store_folder);
        assert_int_equal(sl_store_pack(&options, NULL, &err), -SL_ECORRUPT);
        sl_store_close(options.from);
        store_rig_assert_says(&err, "layer 1, expert 1: ");
        store_rig_assert_says(
            &err, "experts-1.bin: the compressed record at offset 245760 does not give ");
        fixture_flip_byte(f->rig.store_folder, "experts-1.bin", 4 * RECORD_BYTES + places[i]);
        store_rig_remove(f->other);
    }
}

/* ---- damage -----------------------------------------------------------------------------------
 */

static void test_damage_is_named_and_repaired(void **state)
{
    /* Sizes, a frame, codes, and the zeros at the end. */
    static const uint64_t places[] = {0, 40, 10000, STORED_BYTES - 1};
    const struct fixture *f = *state;
    struct store_rig_damage found;

    store_rig_pack(&f->rig, f->other);
    store_rig_verify(f->other, &found);
    assert_int_equal(found.n_items, 0);
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        fixture_flip_byte(f->other, "experts-1.bin", 4 * RECORD_BYTES + places[i]);
        store_rig_verify(f->other, &found);
        assert_int_equal(found.n_items, 1);
        assert_int_equal(found.items[0].kind, SL_STORE_RECORD);
        assert_non_null(strstr(found.message, "layer 1, expert 1: "));
        assert_non_null(strstr(found.message, "experts-1.bin: from offset 245760 on"));
        assert_int_equal(store_rig_repair(&f->rig, f->other, &found, NULL), 0);
        store_rig_assert_same(f->other, f->rig.store_folder);
    }
    fixture_truncate(f->other, "experts-1.bin", 7 * RECORD_BYTES + STORED_BYTES);
    store_rig_verify(f->other, &found);
    assert_int_equal(found.n_items, 1);
    assert_int_equal(store_rig_repair(&f->rig, f->other, &found, NULL), 0);
    store_rig_assert_same(f->other, f->rig.store_folder);
}

/* As if another zstd had made the record: then nothing is written over it. */
static void test_other_frames_are_not_repaired(void **state)
{
    const struct fixture *f = *state;
    const struct sl_expert_key key = {1, 1};
    uint8_t value[SL_STORE_VALUE_BYTES_MAX];
    struct sl_packed_expert expert;
    struct sl_err err = {0};
    struct sl_store *store;
    struct store_rig_damage found;

    assert_int_equal(sl_store_open(&store, f->rig.store_folder, SL_STORE_RUN, NULL), 0);
    expert = *sl_store_expert(store, key);
    sl_store_close(store);
    expert.stored_checksum ^= 1;
    store_rig_put(f->rig.store_folder, "expert 00001 00001", value,
                  sl_store_expert_encode(&expert, value));
    store_rig_verify(f->rig.store_folder, &found);
    assert_int_equal(found.n_items, 1);
    assert_int_equal(store_rig_repair(&f->rig, f->rig.store_folder, &found, &err),
                     -SL_EUNSUPPORTED);
    store_rig_assert_says(&err, "layer 1, expert 1 was compressed by another version of zstd");
}

/* ---- entries that do not fit ---- */

static void assert_entry_refused(const char *folder, const struct sl_packed_expert *expert)
{
    uint8_t value[SL_STORE_VALUE_BYTES_MAX];
    struct sl_err err = {0};
    struct sl_store *store;

    store_rig_put(folder, "expert 00000 00002", value, sl_store_expert_encode(expert, value));
    assert_int_equal(sl_store_open(&store, folder, SL_STORE_RUN, &err), -SL_ECORRUPT);
    store_rig_assert_says(&err, "\"expert 00000 00002\"");
}

static void test_mixed_up_entries(void **state)
{
    const struct fixture *f = *state;
    struct sl_packed_expert compressed, plain;
    struct sl_store *store;

    assert_int_equal(sl_store_open(&store, f->rig.store_folder, SL_STORE_RUN, NULL), 0);
    compressed = *sl_store_expert(store, (struct sl_expert_key){0, 2});
    sl_store_close(store);
    assert_int_equal(sl_store_open(&store, f->plain, SL_STORE_RUN, NULL), 0);
    plain = *sl_store_expert(store, (struct sl_expert_key){0, 2});
    sl_store_close(store);
    assert_entry_refused(f->plain, &compressed);
    compressed.compressed = false; /* shorter than a plain one */
    assert_entry_refused(f->rig.store_folder, &compressed);
    plain.compressed = true; /* as long as a plain one */
    assert_entry_refused(f->rig.store_folder, &plain);
}

/* ---- striped ---- */

static void test_striped(void **state)
{
    /* Of a plain record's 15 blocks the first file would have 9, 13 and 1. */
    static const uint64_t weights[][2] = {{2, 1}, {1000000, 1}, {1, 1000000}};
    static const uint64_t blocks[][2] = {{7, 6}, {11, 2}, {0, 13}};
    const struct fixture *f = *state;
    char folder[FIXTURE_PATH_BYTES];
    const char *const folders[] = {folder};

    store_rig_path(&f->rig, "drive", folder);
    for (size_t i = 0; i < sizeof(weights) / sizeof(weights[0]); i++) {
        struct sl_pack_options options = store_rig_options(&f->rig, f->other);
        const struct sl_packed_expert *expert;
        struct sl_store *store;
        struct store_rig_damage found;

        options.stripe_folders = folders;
        options.weights = weights[i];
        options.n_stripes = 1;
        assert_int_equal(mkdir(folder, 0777), 0);
        assert_int_equal(sl_store_pack(&options, NULL, NULL), 0);
        assert_same_tiles(f->other, f->plain);
        assert_int_equal(sl_store_open(&store, f->other, SL_STORE_RUN, NULL), 0);
        expert = sl_store_expert(store, (struct sl_expert_key){1, 0});
        for (uint32_t k = 0, part = 0; k < 2; k++) {
            if (blocks[i][k] == 0)
                continue;
            assert_true(part < expert->n_parts);
            assert_int_equal(expert->parts[part].file_index, 1 + k);
            assert_int_equal(expert->parts[part++].size_bytes, blocks[i][k] * 4096);
        }
        sl_store_close(store);
        store_rig_verify(f->other, &found);
        assert_int_equal(found.n_items, 0);
        store_rig_remove(f->other);
        store_rig_remove(folder);
    }
}

#define WITH_STORES(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_STORES(test_same_tiles_in_less),
        WITH_STORES(test_stopped_and_gone_on),
        WITH_STORES(test_what_packing_tells),
        WITH_STORES(test_packed_anew),
        WITH_STORES(test_damage_is_not_packed_anew),
        WITH_STORES(test_damage_is_named_and_repaired),
        WITH_STORES(test_other_frames_are_not_repaired),
        WITH_STORES(test_mixed_up_entries),
        WITH_STORES(test_striped),
    };

    return cmocka_run_group_tests_name("compressed_store", tests, NULL, NULL);
}
