/* The slab: memory comes when a slot is first filled and goes when it is emptied; the system holds
 * what is filled and nothing else; huge pages that come slowly give way to small ones for a while,
 * longer each time. How long one may take is set to nothing or to for ever, so both ways are
 * certain; a back end that reads nothing keeps account of what is held. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "cache/slab.h"

#define N_SLOTS 40u

/* Of 3.2 MiB, and of 60 KiB. */
static const struct sl_expert_shape large = {.hidden_size = 2048, .moe_intermediate_size = 1024};
static const struct sl_expert_shape small = {.hidden_size = 256, .moe_intermediate_size = 128};

struct rig {
    struct sl_io io; /* first */
    uint32_t n_holds, n_releases, n_holds_max;
    uint64_t attached_bytes, part_bytes;
    bool is_held[SL_IO_PARTS_MAX];
    struct sl_pool *pool;
    struct sl_reader *reader;
    struct sl_arena arena;
    struct sl_slab slab;
};

static int attach(struct sl_io *io, void *base, uint64_t size_bytes, uint64_t part_bytes)
{
    struct rig *rig = (struct rig *)io;

    assert_true(size_bytes == 0 || base == rig->slab.base);
    rig->attached_bytes = size_bytes;
    rig->part_bytes = part_bytes;
    return 0;
}

static int hold(struct sl_io *io, uint32_t part, bool hold)
{
    struct rig *rig = (struct rig *)io;

    assert_false(hold && rig->is_held[part]);
    if (hold && rig->n_holds == rig->n_holds_max)
        return -ENOMEM;
    rig->n_holds += hold;
    rig->n_releases += rig->is_held[part] && !hold;
    rig->is_held[part] = hold;
    return 0;
}

static void make(struct rig *rig, const struct sl_expert_shape *shape, uint32_t n_slots)
{
    static const struct sl_io_ops ops = {.attach = attach, .hold = hold};
    const struct sl_reader_options options = {.piece_bytes = 1 << 20, .depth = 1};
    const uint64_t slot_bytes = sl_packed_expert_bytes(shape);
    struct sl_arena measure;

    *rig =
        (struct rig){.io = {.ops = &ops, .n_drives = 1, .reads_max = 1}, .n_holds_max = UINT32_MAX};
    assert_int_equal(sl_pool_create(&rig->pool, 2, NULL), 0);
    assert_int_equal(sl_reader_create(&rig->reader, &rig->io, &options, NULL), 0);
    sl_arena_init_measure(&measure);
    sl_slab_carve(&rig->slab, &measure, slot_bytes, n_slots);
    assert_int_equal(sl_arena_reserve(&rig->arena, measure.used_bytes, "test", NULL), 0);
    sl_slab_carve(&rig->slab, &rig->arena, slot_bytes, n_slots);
    sl_slab_start(&rig->slab, shape, rig->pool, rig->reader);
    assert_int_equal(rig->attached_bytes, n_slots * slot_bytes);
    assert_int_equal(rig->part_bytes, rig->slab.part_slots * slot_bytes);
}

static void unmake(struct rig *rig)
{
    sl_reader_destroy(rig->reader);
    sl_pool_destroy(rig->pool);
    sl_arena_fini(&rig->arena);
}

/* How much of a slot is in memory. */
static uint64_t resident(const struct rig *rig, uint32_t slot)
{
    const size_t n_pages = rig->slab.slot_bytes / 4096;
    unsigned char there[1024];
    uint64_t bytes = 0;

    assert_true(n_pages <= sizeof(there));
    assert_int_equal(mincore(sl_slab_slot(&rig->slab, slot), rig->slab.slot_bytes, there), 0);
    for (size_t i = 0; i < n_pages; i++)
        bytes += there[i] & 1 ? 4096 : 0;
    return bytes;
}

static void test_memory_comes_as_it_is_filled(void **state)
{
    struct rig *rig = *state;

    make(rig, &large, N_SLOTS);
    rig->slab.huge_page_ns_max = UINT64_MAX;
    assert_int_equal(rig->slab.part_slots, 1);
    assert_int_equal(sl_arena_pages(&rig->arena).resident_bytes, 0);
    assert_true(sl_slab_fill(&rig->slab, 7));
    assert_int_equal(resident(rig, 7), rig->slab.slot_bytes);
    assert_true(rig->is_held[7]);
    assert_int_equal(rig->n_holds, 1);
    assert_int_equal(resident(rig, 20), 0); /* huge pages reach a little into neighbours only */
    memset(sl_slab_slot(&rig->slab, 7), 0x55, rig->slab.slot_bytes);
    assert_false(sl_slab_fill(&rig->slab, 7)); /* what is there stays as it is */
    assert_int_equal(sl_slab_slot(&rig->slab, 7)[rig->slab.slot_bytes - 1], 0x55);
    assert_int_equal(rig->slab.parts[7], SL_SLAB_HUGE);
    for (uint32_t i = 0; i < N_SLOTS; i++)
        assert_int_equal(sl_slab_fill(&rig->slab, i), i != 7);
    assert_int_equal(rig->n_holds, N_SLOTS);
    sl_slab_empty(&rig->slab, 30);
    assert_int_equal(rig->n_releases, N_SLOTS - 30);
    for (uint32_t i = 0; i < N_SLOTS; i++)
        assert_int_equal(resident(rig, i), i < 30 ? rig->slab.slot_bytes : 0);
    assert_true(sl_slab_fill(&rig->slab, 39));
    assert_int_equal(sl_slab_slot(&rig->slab, 39)[0], 0);
    assert_true(rig->slab.held);
    unmake(rig);
}

/* With nothing allowed, each trial fails: 4 fills with small pages follow, then 8, then 16. */
static void test_slow_huge_pages_give_way(void **state)
{
    static const uint32_t trials[] = {0, 5, 14, 31};
    struct rig *rig = *state;
    uint32_t next = 0;

    make(rig, &large, N_SLOTS);
    for (uint32_t i = 0; i < N_SLOTS; i++) {
        const bool is_trial = next < 4 && trials[next] == i;

        rig->slab.huge_page_ns_max = 0;
        assert_true(sl_slab_fill(&rig->slab, i));
        assert_int_equal(rig->slab.parts[i], is_trial ? SL_SLAB_HUGE : SL_SLAB_SMALL);
        /* What small pages cost, huge ones may cost too. */
        assert_int_equal(rig->slab.huge_page_ns_max > 0, !is_trial);
        next += is_trial;
    }
    assert_int_equal(next, 4);
    assert_int_equal(rig->n_holds, N_SLOTS);
    assert_int_equal(rig->n_releases, 0);
    /* Small ones are tried again when they are loaded into, after the rest of the 32. */
    rig->slab.huge_page_ns_max = UINT64_MAX;
    memset(sl_slab_slot(&rig->slab, 1), 0x55, rig->slab.slot_bytes);
    for (uint32_t i = 0; i < 32 - (N_SLOTS - 32); i++)
        assert_false(sl_slab_fill(&rig->slab, 1));
    assert_true(sl_slab_fill(&rig->slab, 1));
    assert_int_equal(rig->slab.parts[1], SL_SLAB_HUGE);
    assert_int_equal(resident(rig, 1), rig->slab.slot_bytes);
    assert_int_equal(rig->n_releases, 1);
    assert_int_equal(rig->n_holds, N_SLOTS + 1);
    /* They came quickly, so the next is tried at once. */
    assert_true(sl_slab_fill(&rig->slab, 2));
    assert_false(sl_slab_fill(&rig->slab, 1));
    assert_int_equal(rig->slab.n_small_last, 0);
    unmake(rig);
}

/* The limit of locked memory ends the holding, and nothing else. */
static void test_what_may_not_be_held_works(void **state)
{
    struct rig *rig = *state;

    make(rig, &large, N_SLOTS);
    rig->n_holds_max = 3;
    for (uint32_t i = 0; i < N_SLOTS; i++) {
        assert_true(sl_slab_fill(&rig->slab, i));
        assert_int_equal(rig->slab.held, i < 3);
        assert_int_equal(resident(rig, i), rig->slab.slot_bytes);
    }
    sl_slab_empty(&rig->slab, 0);
    assert_int_equal(rig->n_releases, 3);
    unmake(rig);
}

/* More slots than parts: neighbours come and go together. */
static void test_parts_of_several_slots(void **state)
{
    const uint32_t n_slots = SL_IO_PARTS_MAX + 1;
    struct rig *rig = *state;

    make(rig, &small, n_slots);
    rig->slab.huge_page_ns_max = 0;
    assert_int_equal(rig->slab.part_slots, 2);
    assert_true(sl_slab_fill(&rig->slab, 5));
    assert_false(sl_slab_fill(&rig->slab, 4));
    assert_int_equal(resident(rig, 4), rig->slab.slot_bytes);
    assert_true(rig->is_held[2]);
    assert_true(sl_slab_fill(&rig->slab, n_slots - 1)); /* alone in its part, in small pages */
    assert_int_equal(resident(rig, n_slots - 1), rig->slab.slot_bytes);
    for (uint32_t i = 0; i < 20; i++) /* neighbours may be in use: small ones stay */
        assert_false(sl_slab_fill(&rig->slab, n_slots - 1));
    sl_slab_empty(&rig->slab, 5);
    assert_int_equal(resident(rig, 4), rig->slab.slot_bytes);
    assert_int_equal(resident(rig, 5), rig->slab.slot_bytes);
    assert_int_equal(resident(rig, n_slots - 1), 0);
    sl_slab_empty(&rig->slab, 4);
    assert_int_equal(resident(rig, 5), 0);
    assert_int_equal(rig->n_releases, 2);
    unmake(rig);
}

static int set_up(void **state)
{
    *state = malloc(sizeof(struct rig));
    return *state ? 0 : -1;
}

static int tear_down(void **state)
{
    free(*state);
    return 0;
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_memory_comes_as_it_is_filled),
        TEST(test_slow_huge_pages_give_way),
        TEST(test_what_may_not_be_held_works),
        TEST(test_parts_of_several_slots),
    };

    return cmocka_run_group_tests_name("slab", tests, NULL, NULL);
}
