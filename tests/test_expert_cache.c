/* The expert cache: what is pinned is the checkpoint's expert in R16, whatever the device does and
 * however few slots there are, and what stays is what a plain model of the order says. A small
 * checkpoint, its tensors laid out as in the release or scattered over two files, is demanded at
 * random through every back end, with and without seeded faults. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "tests/cache_rig.h"
#include "tests/fault_alloc.h"

static void test_pins_are_the_expert(void **state)
{
    static const struct cache_rig_options variants[] = {
        {.reads_max = 64, .piece_bytes = 1 << 20, .n_slots = 20, .inflight_max = 6},
        {.threads = true, .reads_max = 5, .piece_bytes = 4096, .n_slots = 8, .inflight_max = 2},
        {.reads_max = 1, .piece_bytes = 8192, .n_slots = CACHE_PER_TOKEN, .inflight_max = 1},
        {.threads = true, .reads_max = 64, .piece_bytes = 8192, .n_slots = 36, .inflight_max = 12},
    };
    const struct cache_fixture *fixtures = *state;

    for (uint32_t i = 0; i < 16; i++) {
        struct io_fault_plan plan = {
            .seed = i, .short_permille = i / 8 ? 300 : 0, .shuffle = i / 8};
        uint64_t n_requests = 0;
        struct cache_rig rig;

        cache_rig_init(&rig, &fixtures[i % 2], &variants[i / 2 % 4]);
        io_fault_set(rig.io, &plan);
        for (uint32_t round = 0; round < 25; round++) {
            uint32_t n = 1 + (uint32_t)cache_rig_below(&rig.random,
                                                       CACHE_EXPERTS); /* often more than slots */
            uint16_t layer = (uint16_t)cache_rig_below(&rig.random, CACHE_LAYERS),
                     experts[CACHE_EXPERTS];

            cache_rig_choose(&rig.random, experts, n);
            assert_int_equal(cache_rig_demand(&rig, layer, experts, n, NULL, NULL), 0);
            n_requests += n;
        }
        cache_rig_check_counters(&rig, n_requests);
        assert_int_equal(sl_expert_cache_counters(rig.cache).n_retries, 0);
        cache_rig_fini(&rig);
    }
}

/* As the release lies on disk, an expert is two reads, and no byte more than their blocks. */
static void test_two_reads_an_expert(void **state)
{
    const struct cache_rig_options options = {
        .reads_max = 8, .piece_bytes = 1 << 20, .n_slots = CACHE_EXPERTS, .inflight_max = 4};
    const struct cache_fixture *f = *state;
    uint16_t experts[CACHE_EXPERTS];
    uint64_t span_bytes = 0;
    struct cache_rig rig;

    cache_rig_init(&rig, f, &options);
    cache_rig_choose(&rig.random, experts, CACHE_EXPERTS);
    assert_int_equal(cache_rig_demand(&rig, 1, experts, CACHE_EXPERTS, NULL, NULL), 0);
    assert_int_equal(io_fault_read_count(rig.io), 2 * CACHE_EXPERTS);
    for (uint16_t e = 0; e < CACHE_EXPERTS; e++) {
        const struct sl_checkpoint_expert *record =
            sl_expert_map_find(f->store, (struct sl_expert_key){1, e});

        span_bytes +=
            sl_aligned_run_bytes(record->codes[0].offset_bytes, 3 * record->codes[0].size_bytes);
        span_bytes +=
            sl_aligned_run_bytes(record->scales[0].offset_bytes, 3 * record->scales[0].size_bytes);
    }
    assert_int_equal(sl_expert_cache_counters(rig.cache).read_bytes, span_bytes);
    assert_int_equal(sl_expert_cache_counters(rig.cache).n_loads, CACHE_EXPERTS);
    cache_rig_check_counters(&rig, CACHE_EXPERTS);
    cache_rig_fini(&rig);
}

/* The order as a plain list of keys, least recently demanded first. */
struct model {
    uint32_t keys[CACHE_LAYERS * CACHE_EXPERTS];
    uint32_t n;
};

static bool model_remove(struct model *model, uint32_t key)
{
    for (uint32_t i = 0; i < model->n; i++) {
        if (model->keys[i] != key)
            continue;
        model->n--;
        memmove(&model->keys[i], &model->keys[i + 1], (model->n - i) * sizeof(model->keys[0]));
        return true;
    }
    return false;
}

static void test_least_recently_demanded_goes_first(void **state)
{
    const struct cache_fixture *fixtures = *state;

    for (uint32_t seed = 0; seed < 6; seed++) {
        const struct cache_rig_options options = {.threads = seed % 2,
                                                  .reads_max = 32,
                                                  .piece_bytes = 1 << 16,
                                                  .n_slots = 8 + 2 * seed,
                                                  .inflight_max = 4,
                                                  .policy = &sl_policy_lru};
        const struct io_fault_plan plan = {.seed = seed, .shuffle = true};
        struct model model = {.n = 0};
        struct cache_rig rig;
        uint64_t n_hits = 0, n_evictions = 0, n_requests = 0;

        cache_rig_init(&rig, &fixtures[seed % 2], &options);
        io_fault_set(rig.io, &plan);
        rig.random = seed;
        for (uint32_t round = 0; round < 150; round++) {
            uint32_t n = 1 + (uint32_t)cache_rig_below(&rig.random, 4), n_resident = 0;
            uint16_t layer = (uint16_t)cache_rig_below(&rig.random, CACHE_LAYERS),
                     experts[CACHE_EXPERTS];
            uint16_t resident[CACHE_EXPERTS], order[CACHE_EXPERTS];

            cache_rig_choose(&rig.random, experts, n);
            for (uint32_t i = 0; i < n; i++) {
                if (model_remove(&model, layer * CACHE_EXPERTS + experts[i]))
                    resident[n_resident++] = experts[i];
            }
            while (model.n > options.n_slots - n) {
                model_remove(&model, model.keys[0]);
                n_evictions++;
            }
            assert_int_equal(cache_rig_demand(&rig, layer, experts, n, order, NULL), 0);
            /* Those that were there come first, in ascending order. */
            assert_memory_equal(order, resident, n_resident * sizeof(order[0]));
            for (uint32_t i = 0; i < n; i++) /* whatever the order of landing and release */
                model.keys[model.n++] = layer * CACHE_EXPERTS + experts[i];
            n_hits += n_resident;
            n_requests += n;
            assert_int_equal(sl_expert_cache_counters(rig.cache).n_hits, n_hits);
            assert_int_equal(sl_expert_cache_counters(rig.cache).n_evictions, n_evictions);
            assert_int_equal(sl_expert_cache_counters(rig.cache).n_loads, n_requests - n_hits);
        }
        assert_true(n_hits > 50 && n_evictions > 50);
        cache_rig_check_counters(&rig, n_requests);
        cache_rig_fini(&rig);
    }
}

static void test_nth_read_fails_once(void **state)
{
    const struct cache_rig_options options = {
        .reads_max = 4, .piece_bytes = 16384, .n_slots = CACHE_PER_TOKEN, .inflight_max = 2};
    const struct cache_fixture *fixtures = *state;
    uint64_t n = 0;
    bool failed;

    do {
        struct io_fault_plan plan = {
            .seed = n, .shuffle = true, .fail_nth = n + 1, .fail_code = -EIO};
        uint16_t experts[4];
        struct cache_rig rig;

        n++;
        cache_rig_init(&rig, &fixtures[n % 2], &options);
        io_fault_set(rig.io, &plan);
        cache_rig_choose(&rig.random, experts, 4);
        assert_int_equal(cache_rig_demand(&rig, 0, experts, 4, NULL, NULL), 0);
        failed = io_fault_read_count(rig.io) >= n;
        assert_int_equal(sl_expert_cache_counters(rig.cache).n_retries, failed);
        cache_rig_fini(&rig);
    } while (failed || n < 10);
}

static void check_message(const struct sl_err *err, const struct cache_fixture *f, uint32_t n_named,
                          uint16_t layer, const uint16_t *experts)
{
    char text[64];
    bool named = false;

    assert_non_null(strstr(err->message, f->folder));
    assert_non_null(strstr(err->message, ".safetensors: "));
    assert_non_null(strstr(err->message, " offset "));
    for (uint32_t i = 0; i < n_named; i++) {
        if (layer == CACHE_LAYERS - 1)
            snprintf(text, sizeof(text), "MTP block 0, expert %u: ", experts[i]);
        else
            snprintf(text, sizeof(text), "layer %u, expert %u: ", layer, experts[i]);
        named |= strncmp(err->message, text, strlen(text)) == 0;
    }
    assert_true(named);
}

/* The demand fails with a full account; with the device healed, the same cache serves the same
 * demand, and keeps what had landed. */
static void test_nth_read_fails_for_good(void **state)
{
    const struct cache_fixture *fixtures = *state;
    uint64_t n = 0;
    bool failed;

    do {
        const struct cache_rig_options options = {.threads = n % 2,
                                                  .reads_max = 4,
                                                  .piece_bytes = 16384,
                                                  .n_slots =
                                                      n % 3 ? CACHE_PER_TOKEN : CACHE_EXPERTS,
                                                  .inflight_max = 2};
        struct io_fault_plan plan = {.seed = n,
                                     .shuffle = true,
                                     .fail_nth = n + 1,
                                     .fail_code = -EIO,
                                     .fail_for_good = true};
        uint16_t experts[5], layer = (uint16_t)(n % CACHE_LAYERS);
        struct sl_err err;
        struct cache_rig rig;
        int rc;

        n++;
        cache_rig_init(&rig, &fixtures[n % 2], &options);
        io_fault_set(rig.io, &plan);
        cache_rig_choose(&rig.random, experts, 5);
        rc = cache_rig_demand(&rig, layer, experts, 5, NULL, &err);
        failed = io_fault_read_count(rig.io) >= n;
        if (failed) {
            assert_int_equal(rc, -EIO);
            check_message(&err, &fixtures[n % 2], 5, layer, experts);
        } else {
            assert_int_equal(rc, 0);
        }
        io_fault_heal(rig.io);
        if (failed) {
            assert_int_equal(cache_rig_demand(&rig, layer, experts, 5, NULL, NULL), 0);
            if (options.n_slots ==
                CACHE_EXPERTS) /* each once, and again those that have the bad block */
                assert_in_range(sl_expert_cache_counters(rig.cache).n_loads, 6, 8);
        }
        cache_rig_fini(&rig);
    } while (failed || n < 10);
}

/* Bytes of 0xff are scales that are NaN. In the release an expert's scales are its first read. */
static void test_corrupt_scales(void **state)
{
    static const struct cache_rig_options options = {
        .reads_max = 4, .piece_bytes = 1 << 20, .n_slots = 4, .inflight_max = 2};
    const struct cache_fixture *f = *state;
    const uint16_t expert = 7;

    for (uint32_t i = 0; i < 4; i++) {
        const struct io_fault_plan plan = {.fail_nth = 1, .fail_for_good = i % 2};
        uint16_t layer = i / 2 ? CACHE_LAYERS - 1 : 1;
        struct sl_err err;
        struct cache_rig rig;

        cache_rig_init(&rig, f, &options);
        io_fault_set(rig.io, &plan);
        if (plan.fail_for_good) {
            assert_int_equal(cache_rig_demand(&rig, layer, &expert, 1, NULL, &err), -SL_ECORRUPT);
            check_message(&err, f, 1, layer, &expert);
            assert_non_null(strstr(err.message, "w1 has a scale that is NaN"));
            io_fault_heal(rig.io);
        }
        assert_int_equal(cache_rig_demand(&rig, layer, &expert, 1, NULL, &err), 0);
        assert_int_equal(sl_expert_cache_counters(rig.cache).n_retries, 1);
        cache_rig_fini(&rig);
    }
}

/* Three slots and a demand of eight: each release sets the next load going, and there is nothing
 * left for prefetches. */
static void test_demand_larger_than_the_cache(void **state)
{
    static const struct cache_rig_options options = {
        .reads_max = 8, .piece_bytes = 1 << 20, .n_slots = 3, .inflight_max = 4};
    static const uint16_t experts[] = {0, 1, 2, 3, 4, 5, 6, 7};
    struct sl_expert_pin pin;
    const struct cache_fixture *fixtures = *state;
    struct cache_rig rig;

    cache_rig_init(&rig, fixtures, &options);
    assert_int_equal(rig.source->ops->demand(rig.source, 1, experts, 8, NULL), 0);
    for (uint64_t i = 0; i < 8; i++) {
        uint64_t n_begun = i + 3 < 8 ? i + 3 : 8;

        assert_int_equal(cache_rig_prefetch(&rig, 2, experts, 8).n_loads, n_begun);
        assert_int_equal(rig.source->ops->acquire(rig.source, true, &pin, NULL), 1);
        assert_int_equal(sl_expert_cache_counters(rig.cache).n_loads, n_begun);
        assert_int_equal(pin.key.layer_index, 1);
        rig.source->ops->release(rig.source, &pin);
        assert_int_equal(sl_expert_cache_counters(rig.cache).n_loads, n_begun + (i < 5));
    }
    assert_int_equal(rig.source->ops->acquire(rig.source, true, &pin, NULL), 0);
    cache_rig_fini(&rig);
}

/* What a failed demand was still waiting for lands behind the next one: that one does not get it,
 * and is there for the one after. */
static void test_leftovers_of_a_failed_demand(void **state)
{
    static const struct cache_rig_options options = {
        .reads_max = 1, .piece_bytes = 1 << 20, .n_slots = 8, .inflight_max = 4};
    static const struct io_fault_plan plan = {
        .lazy = true, .fail_nth = 1, .fail_code = -EIO, .fail_for_good = true};
    static const uint16_t experts[] = {2, 8, 9};
    const struct cache_fixture *fixtures = *state;
    struct sl_err err;
    struct cache_rig rig;

    cache_rig_init(&rig, fixtures, &options);
    io_fault_set(rig.io, &plan);
    assert_int_equal(cache_rig_demand(&rig, 0, experts, 3, NULL, &err), -EIO);
    check_message(&err, fixtures, 1, 0, experts);
    assert_int_equal(cache_rig_demand(&rig, 1, experts, 3, NULL, &err), 0);
    /* Two tries of the first expert's scales, its codes, and the next one's scales, under way. */
    for (uint64_t nth = 1; nth <= 10; nth++)
        assert_int_equal(io_fault_read(rig.io, nth).file_index, nth > 4);
    assert_int_equal(cache_rig_demand(&rig, 0, experts + 1, 2, NULL, &err), 0);
    assert_int_equal(sl_expert_cache_counters(rig.cache).n_hits, 2);
    assert_int_equal(sl_expert_cache_counters(rig.cache).n_loads, 6);
    cache_rig_fini(&rig);
}

/* A drive that keeps a read for good keeps its buffer and slot: others go on with what is left, and
 * where nothing is left it is said. When the drive comes back all is as before. */
static void test_drive_keeps_a_buffer(void **state)
{
    static const struct io_fault_plan plan = {
        .fail_nth = 1, .fail_kind = IO_FAULT_LATE, .late_ns = IO_FAULT_NEVER};
    static const uint16_t experts[] = {2, 8, 9};
    static const struct sl_expert_key keys[] = {{0, 2}, {0, 8}, {0, 9}};
    const struct cache_fixture *fixtures = *state;

    for (uint32_t inflight_max = 1; inflight_max <= 2; inflight_max++) {
        const struct cache_rig_options options = {
            .reads_max = 8, .piece_bytes = 1 << 20, .n_slots = 6, .inflight_max = inflight_max};
        struct sl_err err;
        struct cache_rig rig;
        uint64_t time_ns;

        cache_rig_init(&rig, fixtures, &options);
        io_fault_set(rig.io, &plan);
        assert_int_equal(cache_rig_demand(&rig, 0, experts, 1, NULL, &err), -ETIMEDOUT);
        check_message(&err, fixtures, 1, 0, experts);
        assert_true(sl_expert_cache_is_sound(rig.cache));
        assert_int_equal(sl_expert_cache_resize(rig.cache, UINT64_MAX, &err), -EBUSY);
        for (uint16_t layer = 0; layer < CACHE_LAYERS; layer++) {
            if (inflight_max == 2) {
                assert_int_equal(cache_rig_demand(&rig, layer, experts, 3, NULL, &err), 0);
                continue;
            }
            assert_int_equal(cache_rig_demand(&rig, layer, experts, 3, NULL, &err), -ETIMEDOUT);
            assert_non_null(strstr(err.message, "no room is left to read into"));
        }
        io_fault_heal(rig.io);
        for (uint16_t layer = 0; layer < CACHE_LAYERS; layer++)
            assert_int_equal(cache_rig_demand(&rig, layer, experts, 3, NULL, &err), 0);
        assert_int_equal(sl_expert_cache_counters(rig.cache).n_stalls, 1);
        assert_true(sl_expert_cache_is_sound(rig.cache));
        assert_int_equal(sl_expert_cache_resize(rig.cache, UINT64_MAX, &err), 0);
        cache_rig_fini(&rig);

        cache_rig_init(&rig, fixtures, &options); /* closing does not wait, and leaves the memory */
        io_fault_set(rig.io, &plan);
        assert_int_equal(cache_rig_demand(&rig, 0, experts, 1, NULL, &err), -ETIMEDOUT);
        time_ns = io_fault_clock_ns(rig.io);
        sl_expert_cache_destroy(rig.cache);
        rig.cache = NULL;
        assert_int_equal(io_fault_clock_ns(rig.io), time_ns);
        memset(io_fault_read(rig.io, 1).dst, 1, io_fault_read(rig.io, 1).size_bytes);
        cache_rig_fini(&rig);

        cache_rig_init(&rig, fixtures, &options); /* one that is loaded ahead of all demands */
        io_fault_set(rig.io, &plan);
        sl_expert_cache_preload(rig.cache, keys, 3, NULL, NULL, NULL);
        assert_int_equal(sl_expert_cache_counters(rig.cache).n_loads, inflight_max == 2 ? 3 : 1);
        assert_true(sl_expert_cache_is_sound(rig.cache));
        io_fault_heal(rig.io);
        cache_rig_fini(&rig);
    }
}

/* ---- Size and order ---- */

/* How much of the slab is in memory, in bytes. */
static uint64_t resident_bytes(const struct sl_arena *arena)
{
    const size_t n_pages = arena->size_bytes / 4096;
    unsigned char *there = calloc(n_pages, 1);
    uint64_t n = 0;

    assert_non_null(there);
    assert_int_equal(mincore(arena->base, arena->size_bytes, there), 0);
    for (size_t i = 0; i < n_pages; i++)
        n += there[i] & 1;
    free(there);
    return n * 4096;
}

/* What is worth most survives, in other slots and with the same bytes; memory goes and comes back.
 */
static void test_resizing(void **state)
{
    static const struct cache_rig_options options = {
        .reads_max = 8, .piece_bytes = 1 << 20, .n_slots = 12, .inflight_max = 4};
    const uint64_t slot_bytes = sl_expert_cache_slot_bytes(&cache_shape);
    static const uint16_t experts[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
    const struct cache_fixture *fixtures = *state;
    struct sl_expert_cache_counters counters;
    struct sl_expert_pin pin;
    uint64_t start_bytes, before_bytes;
    struct cache_rig rig;
    struct sl_err err;

    cache_rig_init(&rig, fixtures, &options);
    start_bytes = resident_bytes(sl_expert_cache_arena(rig.cache));
    assert_int_equal(cache_rig_demand(&rig, 0, experts, 12, NULL, NULL), 0);
    /* Slots cost nothing before they are used, but for the first one. */
    assert_true(resident_bytes(sl_expert_cache_arena(rig.cache)) >= start_bytes + 11 * slot_bytes);
    for (uint32_t i = 0; i < 3; i++) /* the last ones, wherever they are */
        assert_int_equal(cache_rig_demand(&rig, 0, experts + 8, 4, NULL, NULL), 0);
    before_bytes = resident_bytes(sl_expert_cache_arena(rig.cache));
    assert_int_equal(sl_expert_cache_resize(rig.cache, 4 * slot_bytes + 100, NULL), 0);
    assert_int_equal(sl_expert_cache_slot_count(rig.cache), 4);
    assert_int_equal(rig.source->pins_max, 3);
    assert_int_equal(before_bytes - resident_bytes(sl_expert_cache_arena(rig.cache)),
                     8 * slot_bytes);
    counters = sl_expert_cache_counters(rig.cache);
    assert_int_equal(counters.n_evictions, 8);
    assert_true(sl_expert_cache_is_sound(rig.cache));
    assert_int_equal(cache_rig_demand(&rig, 0, experts + 8, 4, NULL, NULL), 0);
    assert_int_equal(sl_expert_cache_counters(rig.cache).n_loads, counters.n_loads);

    assert_int_equal(sl_expert_cache_resize(rig.cache, 100 * slot_bytes, NULL), 0);
    assert_int_equal(sl_expert_cache_slot_count(rig.cache), 12); /* no more than at first */
    assert_int_equal(before_bytes - resident_bytes(sl_expert_cache_arena(rig.cache)),
                     8 * slot_bytes); /* which come back as they are used */
    assert_int_equal(cache_rig_demand(&rig, 0, experts, 12, NULL, NULL), 0);
    assert_int_equal(resident_bytes(sl_expert_cache_arena(rig.cache)), before_bytes);
    assert_int_equal(sl_expert_cache_counters(rig.cache).n_loads, counters.n_loads + 8);
    assert_int_equal(sl_expert_cache_counters(rig.cache).n_evictions, 8);

    assert_int_equal(sl_expert_cache_resize(rig.cache, 3 * slot_bytes - 1, &err), -SL_EBUDGET);
    assert_non_null(strstr(err.message, "3 experts"));
    assert_int_equal(rig.source->ops->demand(rig.source, 1, experts, 1, NULL), 0);
    assert_int_equal(sl_expert_cache_resize(rig.cache, 4 * slot_bytes, &err), -EBUSY);
    assert_int_equal(rig.source->ops->acquire(rig.source, true, &pin, NULL), 1);
    assert_int_equal(rig.source->ops->acquire(rig.source, true, &pin, NULL), 0);
    assert_int_equal(sl_expert_cache_resize(rig.cache, 4 * slot_bytes, &err), -EBUSY);
    rig.source->ops->release(rig.source, &pin);
    cache_rig_prefetch(&rig, 2, experts, 3); /* in flight when the size changes */
    assert_int_equal(sl_expert_cache_resize(rig.cache, 4 * slot_bytes, &err), 0);
    assert_true(sl_expert_cache_is_sound(rig.cache));
    assert_int_equal(cache_rig_demand(&rig, 2, experts, 3, NULL, NULL), 0);
    cache_rig_fini(&rig);
}

/* Memory that comes before the first load comes for as many slots as were named, and not twice. */
static void test_filling_ahead(void **state)
{
    static const struct cache_rig_options options = {
        .reads_max = 8, .piece_bytes = 1 << 20, .n_slots = 12, .inflight_max = 4};
    const uint64_t slot_bytes = sl_expert_cache_slot_bytes(&cache_shape);
    static const uint16_t experts[] = {0, 1, 2, 3, 4};
    const struct cache_fixture *fixtures = *state;
    uint64_t start_bytes, ahead_bytes;
    struct cache_rig rig;

    cache_rig_init(&rig, fixtures, &options);
    start_bytes = resident_bytes(sl_expert_cache_arena(rig.cache)); /* the first slot's */
    for (uint32_t i = 0; i < 4; i++)
        assert_true(sl_expert_cache_fill_ahead(rig.cache, 5));
    assert_false(sl_expert_cache_fill_ahead(rig.cache, 5));
    ahead_bytes = resident_bytes(sl_expert_cache_arena(rig.cache));
    assert_int_equal(ahead_bytes, start_bytes + 4 * slot_bytes);
    /* What is loaded first lies there: but for the staging buffers nothing is new. */
    assert_int_equal(cache_rig_demand(&rig, 0, experts, 5, NULL, NULL), 0);
    assert_true(resident_bytes(sl_expert_cache_arena(rig.cache)) <=
                ahead_bytes + sl_expert_cache_staging_bytes(fixtures->store, 4));
    cache_rig_fini(&rig);
}

static void test_emptying(void **state)
{
    static const struct cache_rig_options options = {
        .reads_max = 8, .piece_bytes = 1 << 20, .n_slots = 6, .inflight_max = 4};
    static const uint16_t experts[] = {1, 5, 8};
    const struct cache_fixture *fixtures = *state;
    struct sl_expert_pin pin;
    struct cache_rig rig;
    struct sl_err err;

    cache_rig_init(&rig, fixtures, &options);
    assert_int_equal(cache_rig_demand(&rig, 0, experts, 3, NULL, NULL), 0);
    cache_rig_prefetch(&rig, 1, experts, 1); /* in flight */
    assert_int_equal(sl_expert_cache_empty(rig.cache, NULL), 0);
    assert_true(sl_expert_cache_is_sound(rig.cache));
    assert_int_equal(sl_expert_cache_counters(rig.cache).n_evictions, 4);
    assert_int_equal(rig.source->ops->demand(rig.source, 0, experts, 1, NULL), 0);
    assert_int_equal(sl_expert_cache_empty(rig.cache, &err), -EBUSY);
    assert_int_equal(rig.source->ops->acquire(rig.source, true, &pin, NULL), 1);
    assert_int_equal(rig.source->ops->acquire(rig.source, true, &pin, NULL), 0);
    assert_int_equal(sl_expert_cache_empty(rig.cache, &err), -EBUSY);
    rig.source->ops->release(rig.source, &pin);
    assert_int_equal(cache_rig_demand(&rig, 0, experts, 3, NULL, NULL), 0);
    assert_int_equal(sl_expert_cache_counters(rig.cache).n_loads, 4 + 3);
    cache_rig_fini(&rig);
}

/* In order of worth, whole or in part; a cache that is given the list starts with its first ones,
 * in that order. */
static void test_hot_list(void **state)
{
    static const struct sl_policy_ops *const policies[] = {&sl_policy_frequency, &sl_policy_lru};
    static const uint16_t experts[] = {0, 1, 2, 3, 4, 5, 6, 7};
    const struct cache_fixture *fixtures = *state;

    for (uint32_t i = 0; i < 2; i++) {
        struct cache_rig_options options = {.reads_max = 8,
                                            .piece_bytes = 1 << 20,
                                            .n_slots = 12,
                                            .inflight_max = 3,
                                            .policy = policies[i]};
        struct sl_expert_key hot[14] = {{CACHE_LAYERS, 0}, {0, CACHE_EXPERTS}}, again[12];
        struct cache_rig rig;

        cache_rig_init(&rig, fixtures, &options);
        assert_int_equal(sl_expert_cache_hot_list(rig.cache, again, 12), 0);
        for (uint32_t n = 8; n > 0; n--) /* expert 0 most often, and last */
            assert_int_equal(cache_rig_demand(&rig, 1, experts, n, NULL, NULL), 0);
        assert_int_equal(sl_expert_cache_hot_list(rig.cache, again, 3), 3);
        assert_int_equal(sl_expert_cache_hot_list(rig.cache, hot + 2, 12), 8);
        assert_memory_equal(again, hot + 2, 3 * sizeof(*again));
        for (uint32_t k = 0; k < 8; k++) {
            assert_int_equal(hot[2 + k].layer_index, 1);
            assert_int_equal(hot[2 + k].expert_index, k);
        }
        assert_true(sl_expert_cache_is_sound(rig.cache));
        cache_rig_fini(&rig);

        options.n_slots = 6;
        cache_rig_init(&rig, fixtures, &options);
        sl_expert_cache_preload(rig.cache, hot, 10, NULL, NULL, NULL);
        assert_int_equal(sl_expert_cache_counters(rig.cache).n_loads, 6);
        assert_int_equal(sl_expert_cache_counters(rig.cache).n_requests, 0);
        assert_int_equal(sl_expert_cache_hot_list(rig.cache, again, 12), 6);
        assert_memory_equal(again, hot + 2, 3 * sizeof(*again)); /* the last ones may be equal */
        assert_int_equal(cache_rig_demand(&rig, 1, experts, 6, NULL, NULL), 0);
        assert_int_equal(sl_expert_cache_counters(rig.cache).n_hits, 6);
        sl_expert_cache_preload(rig.cache, hot, 10, NULL, NULL, NULL); /* there is no room */
        assert_int_equal(sl_expert_cache_counters(rig.cache).n_loads, 6);
        cache_rig_fini(&rig);
    }
}

/* A read that fails is passed over: its expert is read when somebody asks for it. */
static void test_preload_passes_over_failures(void **state)
{
    static const struct cache_rig_options options = {
        .reads_max = 8, .piece_bytes = 1 << 20, .n_slots = 6, .inflight_max = 2};
    static const struct io_fault_plan plan = {
        .fail_nth = 3, .fail_code = -EIO, .fail_for_good = true};
    static const struct sl_expert_key keys[] = {{0, 1}, {0, 3}, {0, 5}};
    static const uint16_t experts[] = {1, 3, 5};
    const struct cache_fixture *fixtures = *state;
    struct cache_rig rig;

    cache_rig_init(&rig, fixtures, &options);
    io_fault_set(rig.io, &plan);
    sl_expert_cache_preload(rig.cache, keys, 3, NULL, NULL, NULL);
    assert_true(sl_expert_cache_is_sound(rig.cache));
    io_fault_heal(rig.io);
    assert_int_equal(cache_rig_demand(&rig, 0, experts, 3, NULL, NULL), 0);
    assert_int_equal(sl_expert_cache_counters(rig.cache).n_hits, 2);
    assert_int_equal(sl_expert_cache_counters(rig.cache).n_loads, 4);
    cache_rig_fini(&rig);
}

/* ---- Memory ---- */

static int open_all(const struct cache_fixture *f, bool threads, struct sl_pool *pool,
                    struct sl_err *err)
{
    const struct sl_expert_cache_options options = {
        .slab_bytes = 8 * sl_expert_cache_slot_bytes(&cache_shape),
        .num_experts_per_tok = CACHE_PER_TOKEN,
        .inflight_max = 2,
    };
    struct sl_expert_cache *cache = NULL;
    struct sl_reader *reader = NULL;
    struct sl_io *io = NULL;
    const char *paths[CACHE_FILES];
    int rc;

    for (uint32_t i = 0; i < CACHE_FILES; i++)
        paths[i] = sl_expert_map_file_path(f->store, i);
    rc = (threads ? sl_io_threads_open : sl_io_choose(NULL))(&io, paths, CACHE_FILES, 8, err);
    if (rc == 0)
        rc = sl_reader_create(&reader, io, NULL, err);
    if (rc == 0)
        rc = sl_expert_cache_create(&cache, f->store, reader, pool, &options, err);
    sl_expert_cache_destroy(cache);
    sl_reader_destroy(reader);
    if (io)
        io->ops->close(io);
    return rc;
}

static void test_failing_allocations(void **state)
{
    const struct cache_fixture *f = *state;
    struct sl_pool *pool;

    if (!fault_alloc_works())
        skip();
    assert_int_equal(sl_pool_create(&pool, 2, NULL), 0);
    for (uint32_t i = 0; i < 4; i++) {
        bool threads = i % 2, persist = i / 2, happened;
        uint64_t nth = 0;

        assert_int_equal(open_all(f, threads, pool, NULL), 0); /* glibc keeps threads' memory */
        do {
            int64_t live_count = fault_alloc_live_count();
            struct sl_err err = {.code = 0};
            int rc;

            fault_alloc_set(++nth, persist);
            rc = open_all(f, threads, pool, &err);
            happened = fault_alloc_happened();
            fault_alloc_set(0, false);
            assert_int_equal(fault_alloc_live_count(), live_count);
            if (happened) {
                assert_true(rc == -ENOMEM || rc == -EAGAIN); /* a thread's memory says -EAGAIN */
                assert_int_equal(err.code, rc);
            } else {
                assert_int_equal(rc, 0);
            }
        } while (happened);
        assert_true(nth > 6);
    }
    sl_pool_destroy(pool);
}

static void test_nothing_is_allocated_after_create(void **state)
{
    static const struct cache_rig_options options = {
        .reads_max = 4, .piece_bytes = 8192, .n_slots = 8, .inflight_max = 3};
    static const struct io_fault_plan plan = {
        .short_permille = 300, .shuffle = true, .fail_nth = 99, .fail_code = -EIO};
    const struct cache_fixture *fixtures = *state;
    struct cache_rig rig;

    cache_rig_init(&rig, &fixtures[1], &options);
    io_fault_set(rig.io, &plan);
    fault_alloc_set(1, true);
    for (uint32_t round = 0; round < 10; round++) {
        uint16_t experts[CACHE_EXPERTS];

        cache_rig_choose(&rig.random, experts, 9);
        cache_rig_prefetch(&rig, round % CACHE_LAYERS, experts, 9);
        assert_int_equal(cache_rig_demand(&rig, round % CACHE_LAYERS, experts, 9, NULL, NULL), 0);
    }
    assert_false(fault_alloc_happened());
    fault_alloc_set(0, false);
    cache_rig_fini(&rig);
}

static int create_with(struct cache_rig *rig, uint64_t slab_bytes, uint32_t slots_min,
                       struct sl_expert_cache **ret_cache, struct sl_err *err)
{
    const struct sl_expert_cache_options options = {.slab_bytes = slab_bytes,
                                                    .num_experts_per_tok = CACHE_PER_TOKEN,
                                                    .slots_min = slots_min,
                                                    .inflight_max = 2};

    return sl_expert_cache_create(ret_cache, rig->f->store, rig->reader, rig->pool, &options, err);
}

static void test_too_small_a_slab_is_refused(void **state)
{
    static const struct cache_rig_options options = {
        .reads_max = 4, .piece_bytes = 4096, .n_slots = 8, .inflight_max = 2};
    const uint64_t slot_bytes = sl_expert_cache_slot_bytes(&cache_shape);
    const uint32_t slots_min = sl_expert_cache_slots_min(&cache_shape, CACHE_PER_TOKEN);
    const struct cache_fixture *fixtures = *state;
    struct sl_expert_cache *cache;
    struct sl_err err;
    struct cache_rig rig;

    assert_int_equal(slot_bytes, 3 * 20480);
    assert_int_equal(slots_min, 9);
    cache_rig_init(&rig, fixtures, &options);
    assert_int_equal(create_with(&rig, CACHE_PER_TOKEN * slot_bytes - 1, 0, &cache, &err),
                     -SL_EBUDGET);
    assert_non_null(strstr(err.message, "needs at least 180 KiB: 3 experts of 60.0 KiB"));
    assert_int_equal(create_with(&rig, 9 * slot_bytes - 1, slots_min, &cache, &err), -SL_EBUDGET);
    assert_non_null(strstr(err.message, "9 experts"));
    assert_int_equal(create_with(&rig, 9 * slot_bytes, slots_min, &cache, &err), 0);
    assert_int_equal(sl_expert_cache_slot_count(cache), 9);
    sl_expert_cache_destroy(cache);
    assert_int_equal(create_with(&rig, 1000 * slot_bytes, slots_min, &cache, &err), 0);
    assert_int_equal(sl_expert_cache_slot_count(cache), CACHE_LAYERS * CACHE_EXPERTS);
    sl_expert_cache_destroy(cache);
    cache_rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pins_are_the_expert),
        cmocka_unit_test(test_two_reads_an_expert),
        cmocka_unit_test(test_least_recently_demanded_goes_first),
        cmocka_unit_test(test_nth_read_fails_once),
        cmocka_unit_test(test_nth_read_fails_for_good),
        cmocka_unit_test(test_corrupt_scales),
        cmocka_unit_test(test_demand_larger_than_the_cache),
        cmocka_unit_test(test_leftovers_of_a_failed_demand),
        cmocka_unit_test(test_drive_keeps_a_buffer),
        cmocka_unit_test(test_resizing),
        cmocka_unit_test(test_filling_ahead),
        cmocka_unit_test(test_emptying),
        cmocka_unit_test(test_hot_list),
        cmocka_unit_test(test_preload_passes_over_failures),
        cmocka_unit_test(test_failing_allocations),
        cmocka_unit_test(test_nothing_is_allocated_after_create),
        cmocka_unit_test(test_too_small_a_slab_is_refused),
    };

    return cmocka_run_group_tests_name("expert_cache", tests, cache_fixtures_create,
                                       cache_fixtures_destroy);
}
