/* The expert cache over a packed store: what is pinned is what a checkpoint's cache would give,
 * whatever the device does, and what is corrupt is read again, then named. The cache tests'
 * checkpoint is packed, plain and compressed; its cache is demanded at random with faults, and with
 * bytes on disk changed under each way of verifying. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "cache/slot_table.h"
#include "tests/cache_rig.h"
#include "tests/store_rig.h"

#define RECORD_BYTES (3 * UINT64_C(20480))

static const struct cache_rig_options plain = {
    .threads = true, .reads_max = 8, .piece_bytes = 8192, .n_slots = 3, .inflight_max = 3};

static const uint16_t all_experts[CACHE_EXPERTS] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};

struct fixture {
    struct cache_fixture raw, packed; /* the checkpoint, and the same over the store */
};

static int set_up(void **state, bool compress)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    cache_fixture_open(&f->raw, true);
    cache_fixture_open_packed(&f->packed, &f->raw, compress);
    assert_int_equal(f->packed.expert_bytes < RECORD_BYTES, compress);
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

    cache_fixture_close(&f->packed);
    cache_fixture_close(&f->raw);
    free(f);
    return 0;
}

static void test_pins_are_the_expert(void **state)
{
    static const struct cache_rig_options variants[] = {
        {.reads_max = 64, .piece_bytes = 1 << 20, .n_slots = 20, .inflight_max = 6},
        {.threads = true, .reads_max = 5, .piece_bytes = 4096, .n_slots = 8, .inflight_max = 2},
        {.reads_max = 1, .piece_bytes = 8192, .n_slots = CACHE_PER_TOKEN, .inflight_max = 1},
        {.reads_max = 8,
         .piece_bytes = 8192,
         .n_slots = 9,
         .inflight_max = 4,
         .verify = SL_VERIFY_ALWAYS},
    };
    const struct fixture *f = *state;

    for (uint32_t i = 0; i < 8; i++) {
        struct io_fault_plan plan = {
            .seed = i, .short_permille = i / 4 ? 300 : 0, .shuffle = i / 4};
        struct sl_expert_cache_counters counters;
        struct cache_rig rig;

        cache_rig_init(&rig, &f->packed, &variants[i % 4]);
        io_fault_set(rig.io, &plan);
        for (uint32_t round = 0; round < 25; round++) {
            uint32_t n = 1 + (uint32_t)cache_rig_below(&rig.random, CACHE_EXPERTS);
            uint16_t layer = (uint16_t)cache_rig_below(&rig.random, CACHE_LAYERS);
            uint16_t experts[CACHE_EXPERTS];

            cache_rig_choose(&rig.random, experts, n);
            assert_int_equal(cache_rig_demand(&rig, layer, experts, n, NULL, NULL), 0);
        }
        counters = sl_expert_cache_counters(rig.cache);
        assert_int_equal(counters.wanted_bytes, counters.n_loads * f->packed.expert_bytes);
        assert_int_equal(counters.repack_ns, 0);
        assert_int_equal(counters.unpack_ns > 0, f->packed.expert_bytes < RECORD_BYTES);
        assert_int_equal(counters.n_retries, 0);
        cache_rig_fini(&rig);
    }
}

static void test_corrupt_reads_are_read_again(void **state)
{
    static const uint16_t experts[] = {2, 7, 9};
    const struct fixture *f = *state;

    for (uint64_t n = 1; n <= 3 * (f->packed.expert_bytes / 8192); n++) {
        struct io_fault_plan plan = {.fail_nth = n};
        struct cache_rig rig;

        cache_rig_init(&rig, &f->packed, &plain);
        io_fault_set(rig.io, &plan);
        assert_int_equal(cache_rig_demand(&rig, 1, experts, 3, NULL, NULL), 0);
        assert_int_equal(sl_expert_cache_counters(rig.cache).n_retries, 1);
        cache_rig_fini(&rig);
    }
}

/* A drive that takes one piece after the other: w1 and w3 are pinned while w2 is on its way, which
 * may come, come at the second try, fail, be corrupt, or never come. */
static void test_w1_and_w3_come_first(void **state)
{
    static const struct cache_rig_options options = {
        .reads_max = 1, .piece_bytes = 8192, .n_slots = 3, .inflight_max = 3, .stall_ns = 1000000};
    static const struct {
        struct io_fault_plan plan;
        int rc;
        uint32_t n_reads;
    } cases[] = {
        {{.fail_nth = 0}, 0, 5 + 3},
        {{.fail_nth = 6}, 0, 5 + 3 + 3},
        {{.fail_nth = 6, .fail_code = -EIO}, 0, 5 + 3 + 1},
        {{.fail_nth = 6, .fail_code = -EIO, .fail_for_good = true}, -EIO, 0},
        {{.fail_nth = 7, .fail_for_good = true}, -SL_ECORRUPT, 0},
        {{.fail_nth = 6, .fail_kind = IO_FAULT_LATE, .late_ns = IO_FAULT_NEVER}, -ETIMEDOUT, 0},
    };
    static const uint16_t expert = 4;
    const struct fixture *f = *state;

    for (uint32_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct io_fault_plan plan = cases[i].plan;
        struct sl_expert_pin pin;
        struct cache_rig rig;
        bool late = cases[i].rc == -ETIMEDOUT;

        plan.lazy = true;
        cache_rig_init(&rig, &f->packed, &options);
        io_fault_set(rig.io, &plan);
        assert_int_equal(rig.source->ops->demand(rig.source, 1, &expert, 1, NULL), 0);
        assert_int_equal(rig.source->ops->acquire(rig.source, false, &pin, NULL), -EAGAIN);
        assert_int_equal(rig.source->ops->acquire(rig.source, true, &pin, NULL), 1);
        assert_true(pin.partial);
        assert_in_range(io_fault_read_count(rig.io), 5, 6);
        cache_rig_check_pin(&rig, &pin);
        assert_int_equal(cache_rig_complete(&rig, &pin, NULL), cases[i].rc);
        assert_true(sl_expert_cache_is_sound(rig.cache));
        if (cases[i].rc == 0) {
            assert_int_equal(io_fault_read_count(rig.io), cases[i].n_reads);
            assert_int_equal(rig.source->ops->acquire(rig.source, true, &pin, NULL), 0);
        }
        rig.source->ops->release(rig.source, &pin);
        assert_true(sl_expert_cache_is_sound(rig.cache));
        assert_int_equal(rig.cache->table.slots[pin.slot_index].state, late ? SL_SLOT_QUARANTINED
                                                                       : cases[i].rc
                                                                           ? SL_SLOT_EMPTY
                                                                           : SL_SLOT_READY);
        io_fault_heal(rig.io);
        assert_int_equal(cache_rig_demand(&rig, 1, &expert, 1, NULL, NULL), 0);
        cache_rig_fini(&rig);
    }
}

static void test_reads_that_stay_corrupt_are_named(void **state)
{
    static const uint16_t expert = 9;
    const struct fixture *f = *state;
    struct io_fault_plan plan = {.fail_nth = 3, .fail_for_good = true};
    struct cache_rig rig;
    struct sl_err err = {0};

    cache_rig_init(&rig, &f->packed, &plain);
    io_fault_set(rig.io, &plan);
    assert_int_equal(cache_rig_demand(&rig, 2, &expert, 1, NULL, &err), -SL_ECORRUPT);
    if (!strstr(err.message, "MTP block 0, expert 9: ") ||
        !strstr(err.message, "experts-1.bin: ") || !strstr(err.message, "read twice"))
        fail_msg("%s", err.message);
    io_fault_heal(rig.io);
    assert_int_equal(cache_rig_demand(&rig, 2, &expert, 1, NULL, NULL), 0);
    cache_rig_fini(&rig);
}

/* Loads the expert anew: three others of its layer drive it out of the three slots. */
static int load_again(struct cache_rig *rig, uint16_t expert)
{
    static const uint16_t others[] = {0, 1, 2};
    int rc = cache_rig_demand(rig, 0, others, 3, NULL, NULL);

    return rc < 0 ? rc : cache_rig_demand(rig, 0, &expert, 1, NULL, NULL);
}

static void test_when_it_is_verified(void **state)
{
    struct fixture *f = *state;
    const uint64_t in_tiles = 5 * RECORD_BYTES + 100;
    /* Bytes after the tiles, or at the end, belong to no matrix: then what is pinned stays right.
     */
    const uint64_t after_tiles =
        5 * RECORD_BYTES +
        (f->packed.expert_bytes < RECORD_BYTES ? f->packed.expert_bytes - 1 : 17408);

    for (int verify = 0; verify < 3; verify++) {
        struct cache_rig_options options = plain;
        struct cache_rig rig;
        uint64_t first_ns;

        options.verify = (enum sl_verify)verify;
        cache_rig_init(&rig, &f->packed, &options);
        assert_int_equal(load_again(&rig, 5), 0);
        first_ns = sl_expert_cache_counters(rig.cache).verify_ns;
        assert_int_equal(first_ns == 0, verify == SL_VERIFY_NEVER);
        fixture_flip_byte(f->packed.folder, "experts-1.bin", after_tiles);
        assert_int_equal(load_again(&rig, 5), 0);
        if (verify != SL_VERIFY_ALWAYS)
            assert_int_equal(sl_expert_cache_counters(rig.cache).verify_ns, first_ns);
        fixture_flip_byte(f->packed.folder, "experts-1.bin", after_tiles);
        fixture_flip_byte(f->packed.folder, "experts-1.bin", in_tiles);
        if (verify == SL_VERIFY_ALWAYS) /* it is loaded again, as it was driven out meanwhile */
            assert_int_equal(load_again(&rig, 5), -SL_ECORRUPT);
        cache_rig_fini(&rig);
        fixture_flip_byte(f->packed.folder, "experts-1.bin", in_tiles);
    }
}

/* A drive that comes to write long after its read was given up writes to a slot that nobody has
 * been pinned since; where too few other slots are left, that is said. */
static void test_late_writes_hit_nobody(void **state)
{
    static const struct io_fault_plan plan = {
        .fail_nth = 1, .fail_kind = IO_FAULT_LATE, .late_ns = IO_FAULT_NEVER};
    static const uint16_t experts[] = {2, 7, 9, 11};
    const struct fixture *f = *state;

    for (uint32_t n_slots = 3; n_slots <= 4; n_slots++) {
        struct cache_rig_options options = plain;
        struct cache_rig rig;
        struct sl_err err;
        uint16_t order[3];
        uint64_t n_loads;

        options.n_slots = n_slots;
        cache_rig_init(&rig, &f->packed, &options);
        io_fault_set(rig.io, &plan);
        assert_int_equal(cache_rig_demand(&rig, 0, experts, 1, NULL, &err), -ETIMEDOUT);
        assert_true(sl_expert_cache_is_sound(rig.cache));
        if (n_slots == 3) {
            assert_int_equal(cache_rig_demand(&rig, 1, experts, 3, order, &err), -ETIMEDOUT);
            assert_non_null(strstr(err.message, "no room is left to read into"));
        }
        for (uint16_t layer = 0; layer < CACHE_LAYERS; layer++)
            assert_int_equal(cache_rig_demand(&rig, layer, experts, n_slots - 1, NULL, NULL), 0);
        n_loads = sl_expert_cache_counters(rig.cache).n_loads;
        io_fault_heal(rig.io);
        rig.source->ops->prefetch(rig.source, SL_PREFETCH_CERTAIN, NULL,
                                  0); /* takes in what was written now */
        assert_int_equal(cache_rig_demand(&rig, CACHE_LAYERS - 1, experts, n_slots - 1, NULL, NULL),
                         0);
        assert_int_equal(sl_expert_cache_counters(rig.cache).n_loads, n_loads);
        assert_int_equal(cache_rig_demand(&rig, 0, experts, 3, NULL, NULL), 0);
        assert_true(sl_expert_cache_is_sound(rig.cache));
        cache_rig_fini(&rig);
    }
}

/* Reads that go to registered memory land where the slots are, also in those that were given back
 * to the system and came again. */
static void test_slots_that_come_again(void **state)
{
    static const struct cache_rig_options options = {
        .reads_max = 8, .piece_bytes = 8192, .n_slots = 24, .inflight_max = 3};
    const struct fixture *f = *state;
    struct cache_rig rig;

    cache_rig_init(&rig, &f->packed, &options);
    if (!sl_expert_cache_is_attached(rig.cache)) {
        cache_rig_fini(&rig);
        skip();
    }
    for (uint32_t i = 0; i < 8; i++) {
        uint64_t n_slots = i % 2 ? 24 : CACHE_PER_TOKEN + i;

        for (uint16_t layer = 0; layer < CACHE_LAYERS; layer++)
            assert_int_equal(cache_rig_demand(&rig, layer, all_experts, CACHE_EXPERTS, NULL, NULL),
                             0);
        assert_int_equal(sl_expert_cache_resize(rig.cache, n_slots * RECORD_BYTES, NULL), 0);
        assert_int_equal(sl_expert_cache_slot_count(rig.cache), n_slots);
        assert_true(sl_expert_cache_is_attached(rig.cache));
    }
    cache_rig_fini(&rig);
}

/* It is pinned when all of it has been unpacked. */
static void test_compressed_comes_whole(void **state)
{
    static const struct cache_rig_options options = {
        .reads_max = 1, .piece_bytes = 8192, .n_slots = 3, .inflight_max = 3};
    static const struct io_fault_plan plan = {.lazy = true};
    static const uint16_t expert = 4;
    const struct fixture *f = *state;
    struct sl_expert_pin pin;
    struct cache_rig rig;

    cache_rig_init(&rig, &f->packed, &options);
    io_fault_set(rig.io, &plan);
    assert_int_equal(rig.source->ops->demand(rig.source, 1, &expert, 1, NULL), 0);
    assert_int_equal(rig.source->ops->acquire(rig.source, true, &pin, NULL), 1);
    assert_false(pin.partial);
    assert_int_equal(io_fault_read_count(rig.io), (f->packed.expert_bytes + 8191) / 8192);
    cache_rig_check_pin(&rig, &pin);
    rig.source->ops->release(rig.source, &pin);
    cache_rig_fini(&rig);
}

/* One that zstd made nothing of is read straight into its slot, as the last of a layer here. */
static void test_plain_record_among_compressed(void **state)
{
    static const struct cache_rig_options options = {.reads_max = 8,
                                                     .piece_bytes = 8192,
                                                     .n_slots = 9,
                                                     .inflight_max = 3,
                                                     .verify = SL_VERIFY_ALWAYS};
    struct fixture *f = *state;
    const uint32_t number = CACHE_EXPERTS - 1;
    struct sl_packed_expert expert =
        *sl_store_expert(f->packed.packed, (struct sl_expert_key){0, (uint16_t)number});
    uint8_t value[SL_STORE_VALUE_BYTES_MAX];
    struct cache_rig rig;
    int fd = open(sl_store_file_path(f->packed.packed, 1), O_WRONLY);

    assert_true(fd >= 0);
    for (int matrix = 0; matrix < SL_EXPERT_MATRICES; matrix++)
        assert_int_equal(
            pwrite(fd, f->raw.expected + number * RECORD_BYTES + (uint64_t)matrix * 20480, 20480,
                   (off_t)(number * RECORD_BYTES +
                           sl_expert_matrix_offset_bytes(&cache_shape, matrix))),
            20480);
    close(fd);
    expert.compressed = false;
    expert.parts[0].size_bytes = RECORD_BYTES;
    store_rig_put(f->packed.folder, "expert 00000 00011", value,
                  sl_store_expert_encode(&expert, value));
    cache_fixture_reopen(&f->packed);
    cache_rig_init(&rig, &f->packed, &options);
    assert_int_equal(cache_rig_demand(&rig, 0, all_experts, CACHE_EXPERTS, NULL, NULL), 0);
    assert_int_equal(sl_expert_cache_counters(rig.cache).wanted_bytes,
                     RECORD_BYTES + (CACHE_EXPERTS - 1) * f->packed.expert_bytes);
    cache_rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pins_are_the_expert),
        cmocka_unit_test(test_corrupt_reads_are_read_again),
        cmocka_unit_test(test_reads_that_stay_corrupt_are_named),
        cmocka_unit_test(test_when_it_is_verified),
        cmocka_unit_test(test_late_writes_hit_nobody),
        cmocka_unit_test(test_slots_that_come_again),
    };
    const struct CMUnitTest plain_tests[] = {cmocka_unit_test(test_w1_and_w3_come_first)};
    const struct CMUnitTest compressed_tests[] = {
        cmocka_unit_test(test_compressed_comes_whole),
        cmocka_unit_test(test_plain_record_among_compressed),
    };

    return cmocka_run_group_tests_name("packed_experts", tests, set_up_plain, tear_down) |
           cmocka_run_group_tests_name("packed_experts, compressed", tests, set_up_compressed,
                                       tear_down) |
           cmocka_run_group_tests_name("packed_experts, plain alone", plain_tests, set_up_plain,
                                       tear_down) |
           cmocka_run_group_tests_name("packed_experts, compressed alone", compressed_tests,
                                       set_up_compressed, tear_down);
}
