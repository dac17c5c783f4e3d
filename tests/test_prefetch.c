/* Prefetch: of certain experts, which a step will demand, and of predicted ones, which it may not
 * demand. A certain one is read once and gives way to demands; a predicted one is read when the
 * drives have nothing else to do, and given up when the prediction was wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cache/slot_table.h"
#include "tests/cache_rig.h"

static const uint16_t all_experts[CACHE_EXPERTS] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};

/* ---- certain
 * -------------------------------------------------------------------------------------
 */

static void test_certain_experts_are_read_once(void **state)
{
    static const uint16_t experts[] = {1, 4, 6, 9};
    const struct cache_fixture *fixtures = *state;

    for (uint32_t i = 0; i < 4; i++) {
        const struct cache_rig_options options = {.threads = i % 2,
                                                  .reads_max = 2,
                                                  .piece_bytes = 8192,
                                                  .n_slots = 12,
                                                  .inflight_max = 8};
        const struct io_fault_plan plan = {.shuffle = i / 2};
        struct sl_expert_cache_counters counters;
        struct cache_rig rig;

        cache_rig_init(&rig, &fixtures[i / 2], &options);
        io_fault_set(rig.io, &plan);
        assert_int_equal(cache_rig_prefetch(&rig, 0, experts, 3).n_loads, 3);
        assert_int_equal(cache_rig_prefetch(&rig, 0, experts, 4).n_loads,
                         3); /* a quarter of the slots */
        assert_int_equal(cache_rig_demand(&rig, 0, experts, 4, NULL, NULL), 0);
        counters = sl_expert_cache_counters(rig.cache);
        assert_int_equal(counters.n_loads, 4);
        assert_int_equal(counters.n_prefetch_hits, 3);
        assert_int_equal(counters.n_hits, 0);
        cache_rig_check_counters(&rig, 4);
        /* From now on they are like any other, and prefetches have their share again. */
        assert_int_equal(cache_rig_prefetch(&rig, 0, experts, 4).n_loads, 4);
        assert_int_equal(cache_rig_prefetch(&rig, 1, experts, 4).n_loads, 7);
        assert_int_equal(cache_rig_demand(&rig, 0, experts, 4, NULL, NULL), 0);
        assert_int_equal(sl_expert_cache_counters(rig.cache).n_hits, 4);
        cache_rig_fini(&rig);
    }
}

/* A demand goes before prefetches that came earlier, and makes those it shares with them its own.
 */
static void test_demand_before_certain(void **state)
{
    static const struct cache_rig_options options = {
        .reads_max = 1, .piece_bytes = 4096, .n_slots = 12, .inflight_max = 8};
    static const struct io_fault_plan plan = {.lazy = true};
    static const uint16_t certain[] = {1, 4, 6}, demanded[] = {2, 6};
    const struct cache_fixture *fixtures = *state;
    uint64_t pieces_needed;
    struct cache_rig rig;

    cache_rig_init(&rig, fixtures, &options);
    assert_int_equal(cache_rig_demand(&rig, 1, demanded, 2, NULL, NULL), 0);
    pieces_needed = io_fault_read_count(rig.io);
    cache_rig_fini(&rig);

    cache_rig_init(&rig, fixtures, &options);
    io_fault_set(rig.io, &plan);
    cache_rig_prefetch(&rig, 1, certain, 3);
    assert_int_equal(cache_rig_demand(&rig, 1, demanded, 2, NULL, NULL), 0);
    /* One piece of the first one was under way; one more may be when the last one has landed. */
    assert_in_range(io_fault_read_count(rig.io), pieces_needed, pieces_needed + 2);
    assert_int_equal(sl_expert_cache_counters(rig.cache).n_prefetch_hits, 1);
    cache_rig_fini(&rig);
}

static void test_certain_experts_need_a_staging_buffer(void **state)
{
    static const struct cache_rig_options options = {
        .reads_max = 8, .piece_bytes = 1 << 20, .n_slots = 8, .inflight_max = 1};
    static const struct io_fault_plan plan = {.lazy = true};
    static const uint16_t experts[] = {0, 1};
    const struct cache_fixture *fixtures = *state;
    struct cache_rig rig;

    cache_rig_init(&rig, fixtures, &options);
    io_fault_set(rig.io, &plan);
    assert_int_equal(cache_rig_prefetch(&rig, 0, experts, 2).n_loads, 1);
    assert_int_equal(cache_rig_prefetch(&rig, 0, experts, 2).n_loads, 1);
    cache_rig_fini(&rig);
}

/* Nobody waits for a prefetch: what was corrupt of it is read again behind other prefetches. */
static void test_corrupt_certain_experts_are_not_urgent(void **state)
{
    static const struct cache_rig_options options = {
        .reads_max = 1, .piece_bytes = 1 << 20, .n_slots = 8, .inflight_max = 2};
    static const struct io_fault_plan plan = {.fail_nth = 1};
    static const uint16_t experts[] = {3, 7};
    const struct cache_fixture *fixtures = *state;
    struct cache_rig rig;

    cache_rig_init(&rig, fixtures, &options);
    io_fault_set(rig.io, &plan);
    cache_rig_prefetch(&rig, 0, experts, 2);
    while (io_fault_read_count(rig.io) < 6)
        cache_rig_prefetch(&rig, 0, experts, 0);
    for (uint64_t nth = 1; nth <= 4; nth++) /* the first expert, the other one, and the first */
        assert_int_equal(io_fault_read(rig.io, nth).offset_bytes ==
                             io_fault_read(rig.io, nth + 2 + 2 * (nth <= 2)).offset_bytes,
                         nth <= 2);
    assert_int_equal(cache_rig_demand(&rig, 0, experts, 2, NULL, NULL), 0);
    assert_int_equal(sl_expert_cache_counters(rig.cache).n_prefetch_hits, 2);
    cache_rig_fini(&rig);
}

/* A certain expert that is evicted before anybody asked for it no longer counts in their share. */
static void test_evicted_certain_experts_give_back_their_share(void **state)
{
    static const struct cache_rig_options options = {
        .reads_max = 8, .piece_bytes = 1 << 20, .n_slots = 4, .inflight_max = 2};
    static const uint16_t certain[] = {0, 1}, others[] = {4, 5, 6, 7};
    const struct cache_fixture *fixtures = *state;
    struct cache_rig rig;

    cache_rig_init(&rig, fixtures, &options);
    assert_int_equal(cache_rig_prefetch(&rig, 0, certain, 2).n_loads, 1);
    assert_int_equal(cache_rig_demand(&rig, 1, others, 4, NULL, NULL), 0);
    assert_int_equal(cache_rig_demand(&rig, 2, others, 4, NULL, NULL), 0);
    assert_int_equal(cache_rig_prefetch(&rig, 0, certain, 2).n_loads, 10);
    cache_rig_fini(&rig);
}

/* A step that failed has no use for what it prefetched: the next step has the whole share of
 * prefetches for its own, and what is there or lands is found by whoever asks. */
static void test_forgotten_certain_experts_give_back_their_share(void **state)
{
    static const struct cache_rig_options options = {
        .reads_max = 1, .piece_bytes = 4096, .n_slots = 12, .inflight_max = 8};
    static const uint16_t certain[] = {0, 1, 2}, others[] = {4, 5, 6};
    const struct cache_fixture *fixtures = *state;
    struct cache_rig rig;

    cache_rig_init(&rig, fixtures, &options);
    assert_int_equal(cache_rig_prefetch(&rig, 0, certain, 3).n_loads, 3);
    assert_int_equal(cache_rig_prefetch(&rig, 0, others, 3).n_loads, 3);
    rig.source->ops->forget(rig.source);
    assert_true(sl_expert_cache_is_sound(rig.cache));
    assert_int_equal(rig.cache->table.n_prefetched, 0);
    assert_int_equal(cache_rig_prefetch(&rig, 0, others, 3).n_loads, 6);
    assert_int_equal(cache_rig_demand(&rig, 0, certain, 3, NULL, NULL), 0);
    assert_int_equal(sl_expert_cache_counters(rig.cache).n_loads, 6);
    assert_int_equal(sl_expert_cache_counters(rig.cache).n_prefetch_hits, 0);
    cache_rig_fini(&rig);
}

static void test_failed_certain_expert_is_read_again(void **state)
{
    static const struct cache_rig_options options = {
        .reads_max = 8, .piece_bytes = 1 << 20, .n_slots = 4, .inflight_max = 2};
    static const struct io_fault_plan plan = {
        .fail_nth = 1, .fail_code = -EIO, .fail_for_good = true};
    const struct cache_fixture *fixtures = *state;
    const uint16_t expert = 3, other = 9;
    struct cache_rig rig;

    cache_rig_init(&rig, fixtures, &options);
    io_fault_set(rig.io, &plan);
    cache_rig_prefetch(&rig, 0, &expert, 1);
    while (io_fault_read_count(rig.io) < 3) /* two, and the retry */
        cache_rig_prefetch(&rig, 0, &expert, 0);
    cache_rig_prefetch(&rig, 0, &expert, 0); /* takes in the failure */
    io_fault_heal(rig.io);
    assert_int_equal(cache_rig_demand(&rig, 0, &expert, 1, NULL, NULL), 0);
    assert_int_equal(sl_expert_cache_counters(rig.cache).n_loads, 2);
    assert_int_equal(sl_expert_cache_counters(rig.cache).n_prefetch_hits, 0);
    assert_int_equal(cache_rig_prefetch(&rig, 0, &other, 1).n_loads,
                     3); /* its share is free again */
    cache_rig_fini(&rig);
}

/* ---- predicted
 * -----------------------------------------------------------------------------------
 */

static struct sl_expert_cache_counters predict(struct cache_rig *rig, uint16_t layer,
                                               const uint16_t *experts, uint32_t n)
{
    struct sl_expert_key keys[CACHE_EXPERTS];

    for (uint32_t i = 0; i < n; i++)
        keys[i] = (struct sl_expert_key){layer, experts[i]};
    rig->source->ops->prefetch(rig->source, SL_PREFETCH_PREDICTED, keys, n);
    return sl_expert_cache_counters(rig->cache);
}

/* Nothing that is predicted is read before all that is demanded has landed. */
static void test_predictions_wait_for_demands(void **state)
{
    static const struct cache_rig_options options = {
        .reads_max = 4, .piece_bytes = 8192, .n_slots = 12, .inflight_max = 8};
    static const struct io_fault_plan plan = {.lazy = true};
    static const uint16_t demanded[] = {0, 3, 5}, predicted[] = {7, 1}, next[] = {1, 2};
    const struct cache_fixture *fixtures = *state;
    struct sl_expert_cache_counters c;
    struct sl_expert_pin pin;
    struct cache_rig rig;

    cache_rig_init(&rig, fixtures, &options);
    io_fault_set(rig.io, &plan);
    assert_int_equal(rig.source->ops->demand(rig.source, 1, demanded, 3, NULL), 0);
    assert_int_equal(predict(&rig, 2, predicted, 2).n_predicted_loads, 0);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(rig.source->ops->acquire(rig.source, true, &pin, NULL), 1);
        rig.source->ops->release(rig.source, &pin);
    }
    assert_int_equal(rig.source->ops->acquire(rig.source, true, &pin, NULL), 0);
    assert_int_equal(sl_expert_cache_counters(rig.cache).n_predicted_loads, 2);
    assert_int_equal(cache_rig_demand(&rig, 2, next, 2, NULL, NULL), 0);
    c = sl_expert_cache_counters(rig.cache);
    assert_int_equal(c.n_loads, 6); /* three, two predicted, and the one that was not */
    assert_int_equal(c.n_predicted, 2);
    assert_int_equal(c.n_predicted_right, 1);
    assert_int_equal(c.n_predicted_hits + c.n_predicted_late, 1);
    assert_int_equal(c.n_prefetch_hits, 1);
    assert_true(sl_expert_cache_is_sound(rig.cache));
    cache_rig_fini(&rig);
}

static void test_predictions_that_land_in_time(void **state)
{
    static const struct cache_rig_options options = {
        .reads_max = 4, .piece_bytes = 8192, .n_slots = 8, .inflight_max = 4};
    static const uint16_t predicted[] = {7, 1}, demanded[] = {1};
    const struct cache_fixture *fixtures = *state;
    const struct sl_slot_table *table;
    struct sl_expert_cache_counters c;
    struct cache_rig rig;

    cache_rig_init(&rig, fixtures, &options);
    table = &rig.cache->table;
    assert_int_equal(predict(&rig, 2, predicted, 2).n_predicted_loads, 2);
    while (table->slots[0].state != SL_SLOT_READY || table->slots[1].state != SL_SLOT_READY)
        cache_rig_prefetch(&rig, 0, predicted, 0); /* takes in what has landed */
    assert_int_equal(cache_rig_demand(&rig, 2, demanded, 1, NULL, NULL), 0);
    c = sl_expert_cache_counters(rig.cache);
    assert_int_equal(c.n_loads, 2);
    assert_int_equal(c.n_predicted_hits, 1);
    assert_int_equal(c.n_predicted_late, 0);
    assert_int_equal(c.predicted_wasted_bytes, sl_expert_cache_slot_bytes(&cache_shape));
    /* The other one is still there, like any other, and predictions have their share again. */
    assert_int_equal(predict(&rig, 0, predicted, 2).n_predicted_loads, 4);
    assert_int_equal(cache_rig_demand(&rig, 2, predicted, 1, NULL, NULL), 0);
    assert_int_equal(sl_expert_cache_counters(rig.cache).n_hits, 1);
    cache_rig_fini(&rig);
}

/* A demand for something else: of three predictions, little more is read than what had gone out. */
static void test_wrong_predictions_are_given_up(void **state)
{
    static const struct cache_rig_options options = {
        .reads_max = 1, .piece_bytes = 4096, .n_slots = 12, .inflight_max = 8};
    static const struct io_fault_plan plan = {.lazy = true};
    static const uint16_t predicted[] = {1, 4, 6}, demanded[] = {2, 5};
    const struct cache_fixture *fixtures = *state;
    struct sl_expert_cache_counters c;
    uint64_t pieces_needed;
    struct cache_rig rig;

    cache_rig_init(&rig, fixtures, &options);
    assert_int_equal(cache_rig_demand(&rig, 1, demanded, 2, NULL, NULL), 0);
    pieces_needed = io_fault_read_count(rig.io);
    cache_rig_fini(&rig);

    cache_rig_init(&rig, fixtures, &options);
    io_fault_set(rig.io, &plan);
    assert_int_equal(predict(&rig, 1, predicted, 3).n_predicted_loads, 3);
    assert_int_equal(cache_rig_demand(&rig, 1, demanded, 2, NULL, NULL), 0);
    assert_in_range(io_fault_read_count(rig.io), pieces_needed, pieces_needed + 2);
    c = sl_expert_cache_counters(rig.cache);
    assert_int_equal(c.n_predicted_hits + c.n_predicted_late, 0);
    assert_in_range(c.predicted_wasted_bytes, 1, 2 * 4096);
    for (uint32_t round = 0; round < 2; round++) { /* their slots and share are free again */
        assert_int_equal(cache_rig_demand(&rig, 1, predicted, 3, NULL, NULL), 0);
        assert_int_equal(sl_expert_cache_counters(rig.cache).n_loads, 8);
    }
    assert_int_equal(predict(&rig, 0, predicted, 3).n_predicted_loads, 6);
    cache_rig_fini(&rig);
}

/* Where the pace rules, predictions fill the slots that are kept empty for them and no others: what
 * is resident stays until a demand drives it out. */
static void test_paced_predictions(void **state)
{
    static const struct cache_rig_options options = {
        .reads_max = 4, .piece_bytes = 8192, .n_slots = 9, .inflight_max = 4, .paced = true};
    static const uint16_t first[] = {0, 1, 2, 3}, second[] = {4, 5, 6, 7}, predicted[] = {8, 9};
    const struct cache_fixture *fixtures = *state;
    struct sl_expert_cache_counters c;
    struct sl_slot_table *table;
    struct cache_rig rig;

    cache_rig_init(&rig, &fixtures[1], &options);
    table = &rig.cache->table;
    assert_false(rig.source->ops->wants_prediction(rig.source, 1)); /* nothing has been missing */
    table->n_spare = 1; /* as the pace says in a larger cache */
    assert_int_equal(cache_rig_demand(&rig, 0, first, 4, NULL, NULL), 0);
    assert_int_equal(cache_rig_demand(&rig, 1, second, 4, NULL, NULL), 0);
    assert_int_equal(predict(&rig, 1, predicted, 2).n_predicted_loads, 1);
    assert_int_equal(cache_rig_demand(&rig, 1, second, 4, NULL, NULL), 0); /* it was wrong */
    assert_int_equal(cache_rig_demand(&rig, 0, first, 4, NULL, NULL), 0);
    assert_int_equal(cache_rig_demand(&rig, 1, second, 4, NULL, NULL), 0);
    c = sl_expert_cache_counters(rig.cache);
    assert_int_equal(c.n_hits, 12); /* all of both layers stayed */
    assert_int_equal(c.n_loads, 9);
    assert_true(c.predicted_wasted_bytes > 0);
    assert_int_equal(table->n_slots - table->n_held, 1);

    assert_int_equal(predict(&rig, 2, predicted, 2).n_predicted_loads, 2);
    assert_int_equal(sl_expert_cache_counters(rig.cache).n_evictions, c.n_evictions);
    assert_int_equal(cache_rig_demand(&rig, 2, predicted, 1, NULL, NULL), 0);
    c = sl_expert_cache_counters(rig.cache);
    assert_int_equal(c.n_predicted_hits + c.n_predicted_late, 1);
    assert_int_equal(c.n_loads, 10);
    assert_int_equal(table->n_slots - table->n_held, 1); /* the next one has a slot again */

    /* A demand for as much as there is takes it, where nothing can be evicted. */
    assert_int_equal(cache_rig_demand(&rig, 0, all_experts, 9, NULL, NULL), 0);
    assert_true(sl_expert_cache_is_sound(rig.cache));
    cache_rig_fini(&rig);
}

/* ---- sweeps ------------------------------------------------------------------------------------
 */

/* After a demand of all experts of a layer, as long prompts make them, the next one's are read, in
 * the order in which the files have them, and each once. */
static void test_sweeps_read_ahead(void **state)
{
    static const struct cache_rig_options options = {.reads_max = 8,
                                                     .piece_bytes = 1 << 20,
                                                     .n_slots = 20,
                                                     .inflight_max = 4,
                                                     .prefetch_layers = true};
    const uint32_t n_ahead = options.n_slots / SL_PREFETCHED_SHARE;
    const struct cache_fixture *fixtures = *state;
    struct sl_expert_cache_counters c;

    for (uint32_t i = 0; i < 2; i++) {
        const struct sl_slot_table *table;
        struct cache_rig rig;

        cache_rig_init(&rig, &fixtures[i], &options);
        table = &rig.cache->table;
        assert_int_equal(cache_rig_demand(&rig, 0, all_experts, CACHE_EXPERTS, NULL, NULL), 0);
        while (sl_expert_cache_counters(rig.cache).n_predicted_loads < n_ahead)
            cache_rig_prefetch(&rig, 0, all_experts, 0); /* takes in what has landed */
        assert_int_equal(sl_expert_cache_counters(rig.cache).n_loads, CACHE_EXPERTS + n_ahead);
        for (uint32_t n = 0; n < CACHE_EXPERTS; n++) {
            uint16_t expert = sl_expert_map_nth(fixtures[i].store, 1, n);

            assert_int_equal(table->slot_of[CACHE_EXPERTS + expert] != SL_NO_SLOT, n < n_ahead);
        }
        assert_int_equal(cache_rig_demand(&rig, 1, all_experts, CACHE_EXPERTS, NULL, NULL), 0);
        c = sl_expert_cache_counters(rig.cache);
        assert_int_equal(c.n_prefetch_hits, n_ahead);
        assert_int_equal(c.n_loads, 2 * CACHE_EXPERTS);
        assert_int_equal(c.predicted_wasted_bytes, 0);
        /* Nothing is ahead of the last layer; and where a sixth is not wanted, it is not a sweep.
         */
        assert_int_equal(cache_rig_demand(&rig, 0, all_experts, 10, NULL, NULL), 0);
        assert_int_equal(sl_expert_cache_counters(rig.cache).n_predicted_loads, n_ahead);
        cache_rig_fini(&rig);
    }
}

/* Nothing is read ahead for a step that has ended in the middle, and what is on its way gives up.
 */
static void test_sweeps_end_with_their_step(void **state)
{
    static const struct cache_rig_options options = {.reads_max = 1,
                                                     .piece_bytes = 4096,
                                                     .n_slots = 20,
                                                     .inflight_max = 4,
                                                     .prefetch_layers = true};
    static const struct io_fault_plan plan = {.lazy = true};
    static const uint16_t predicted[] = {1, 4};
    const struct cache_fixture *fixtures = *state;
    struct sl_expert_cache_counters c;
    struct sl_expert_pin pin;
    struct cache_rig rig;

    cache_rig_init(&rig, fixtures, &options);
    assert_int_equal(rig.source->ops->demand(rig.source, 0, all_experts, CACHE_EXPERTS, NULL), 0);
    assert_int_equal(rig.source->ops->acquire(rig.source, true, &pin, NULL), 1);
    rig.source->ops->abandon(rig.source);
    rig.source->ops->release(rig.source, &pin);
    assert_true(sl_expert_cache_is_sound(rig.cache));
    assert_int_equal(cache_rig_demand(&rig, 2, predicted, 2, NULL, NULL), 0);
    assert_int_equal(sl_expert_cache_counters(rig.cache).n_predicted_loads, 0);

    io_fault_set(rig.io, &plan);
    assert_int_equal(rig.source->ops->demand(rig.source, 2, predicted, 2, NULL), 0);
    assert_int_equal(predict(&rig, 1, predicted, 2).n_predicted_loads, 2);
    rig.source->ops->abandon(rig.source);
    assert_true(sl_expert_cache_is_sound(rig.cache));
    c = cache_rig_prefetch(&rig, 0, all_experts, 0); /* takes in what has landed */
    assert_in_range(c.predicted_wasted_bytes, 1, 4096);
    cache_rig_fini(&rig);
}

/* The same for a step that ends between two demands, as one that is stopped while it attends. */
static void test_sweeps_end_between_demands(void **state)
{
    static const struct cache_rig_options options = {.reads_max = 1,
                                                     .piece_bytes = 4096,
                                                     .n_slots = 20,
                                                     .inflight_max = 4,
                                                     .prefetch_layers = true};
    static const struct io_fault_plan plan = {.lazy = true};
    const struct cache_fixture *fixtures = *state;
    struct sl_expert_cache_counters c;
    struct cache_rig rig;

    cache_rig_init(&rig, fixtures, &options);
    assert_int_equal(cache_rig_demand(&rig, 0, all_experts, CACHE_EXPERTS, NULL, NULL), 0);
    io_fault_set(rig.io, &plan);
    c = cache_rig_prefetch(&rig, 0, all_experts, 0); /* takes in what has landed */
    assert_true(c.n_predicted_loads > 0);
    rig.source->ops->forget(rig.source);
    assert_true(sl_expert_cache_is_sound(rig.cache));
    assert_int_equal(rig.cache->table.n_prefetched, 0);
    assert_int_equal(cache_rig_demand(&rig, 2, all_experts, 1, NULL, NULL), 0);
    assert_int_equal(sl_expert_cache_counters(rig.cache).n_predicted_loads, c.n_predicted_loads);
    cache_rig_fini(&rig);
}

/* What is wanted again and again stays through sweeps, which make do with one layer's room, and is
 * not read again for them either. */
static void test_sweeps_spare_what_is_hot(void **state)
{
    static const struct cache_rig_options options = {.reads_max = 8,
                                                     .piece_bytes = 1 << 20,
                                                     .n_slots = CACHE_EXPERTS + 2 * 2,
                                                     .inflight_max = 4,
                                                     .prefetch_layers = true};
    static const uint16_t hot[] = {2, 5};
    const struct cache_fixture *fixtures = *state;
    struct sl_expert_cache_counters before, after;
    struct cache_rig rig;

    cache_rig_init(&rig, fixtures, &options);
    for (uint32_t token = 0; token < 40; token++)
        assert_int_equal(cache_rig_demand(&rig, token % 2, hot, 2, NULL, NULL), 0);
    for (uint32_t sweep = 0; sweep < 3; sweep++) {
        before = sl_expert_cache_counters(rig.cache);
        for (uint16_t layer = 0; layer < 2; layer++)
            assert_int_equal(cache_rig_demand(&rig, layer, all_experts, CACHE_EXPERTS, NULL, NULL),
                             0);
        after = sl_expert_cache_counters(rig.cache);
        assert_in_range(after.n_loads - before.n_loads, 0, 2 * (CACHE_EXPERTS - 2));
        for (uint16_t layer = 0; layer < 2; layer++)
            assert_int_equal(cache_rig_demand(&rig, layer, hot, 2, NULL, NULL), 0);
        assert_int_equal(sl_expert_cache_counters(rig.cache).n_loads, after.n_loads);
    }
    cache_rig_fini(&rig);
}

/* In a cycle that is larger than the cache, each layer keeps as much of itself as any other, and
 * reads the rest once: by a policy that looks back alone, too, which would find nothing. Small
 * demands take what the policy chooses, and the next sweep but one has pinned again. */
static void test_sweeps_pin_an_equal_share(void **state)
{
    static const struct sl_policy_ops *const policies[] = {&sl_policy_frequency, &sl_policy_lru};
    const struct cache_fixture *fixtures = *state;

    for (uint32_t i = 0; i < 4; i++) {
        const struct cache_rig_options options = {.reads_max = 8,
                                                  .piece_bytes = 1 << 20,
                                                  .n_slots = 20,
                                                  .inflight_max = 4,
                                                  .prefetch_layers = i & 1,
                                                  .policy = policies[i / 2]};
        const uint32_t n_pinned = (20 - 20 / SL_TURNING_SHARE) / CACHE_LAYERS;
        struct sl_expert_cache_counters before, after;
        struct cache_rig rig;

        cache_rig_init(&rig, &fixtures[i & 1], &options);
        assert_int_equal(sl_expert_cache_counters(rig.cache).n_pinned, n_pinned);
        for (uint32_t sweep = 0; sweep < 8; sweep++)
            for (uint16_t layer = 0; layer < CACHE_LAYERS; layer++) {
                before = sl_expert_cache_counters(rig.cache);
                assert_int_equal(
                    cache_rig_demand(&rig, layer, all_experts, CACHE_EXPERTS, NULL, NULL), 0);
                after = sl_expert_cache_counters(rig.cache);
                if (sweep == 0 || sweep == 5)
                    continue;
                assert_int_equal(after.n_sweep_requests - before.n_sweep_requests, CACHE_EXPERTS);
                assert_in_range(after.n_sweep_hits - before.n_sweep_hits, n_pinned, CACHE_EXPERTS);
                if (!options.prefetch_layers) /* what is not pinned is read, and nothing else */
                    assert_int_equal(after.n_loads - before.n_loads, CACHE_EXPERTS - n_pinned);
                if (sweep == 4 && layer == CACHE_LAYERS - 1) /* somebody's, all in one layer */
                    for (uint16_t first = 0; first < CACHE_EXPERTS; first += 2)
                        assert_int_equal(
                            cache_rig_demand(&rig, 1, all_experts + first, 2, NULL, NULL), 0);
            }
        assert_int_equal(sl_expert_cache_counters(rig.cache).predicted_wasted_bytes, 0);
        assert_true(sl_expert_cache_is_sound(rig.cache));
        cache_rig_fini(&rig);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_certain_experts_are_read_once),
        cmocka_unit_test(test_demand_before_certain),
        cmocka_unit_test(test_certain_experts_need_a_staging_buffer),
        cmocka_unit_test(test_corrupt_certain_experts_are_not_urgent),
        cmocka_unit_test(test_evicted_certain_experts_give_back_their_share),
        cmocka_unit_test(test_forgotten_certain_experts_give_back_their_share),
        cmocka_unit_test(test_failed_certain_expert_is_read_again),
        cmocka_unit_test(test_predictions_wait_for_demands),
        cmocka_unit_test(test_predictions_that_land_in_time),
        cmocka_unit_test(test_wrong_predictions_are_given_up),
        cmocka_unit_test(test_paced_predictions),
        cmocka_unit_test(test_sweeps_read_ahead),
        cmocka_unit_test(test_sweeps_end_with_their_step),
        cmocka_unit_test(test_sweeps_end_between_demands),
        cmocka_unit_test(test_sweeps_spare_what_is_hot),
        cmocka_unit_test(test_sweeps_pin_an_equal_share),
    };

    return cmocka_run_group_tests_name("prefetch", tests, cache_fixtures_create,
                                       cache_fixtures_destroy);
}
