/* Cache and reader over a drive that exists in memory, on its clock: whatever the drive does and
 * whoever asks for what, nothing is lost, doubled or pinned wrong. A seeded driver demands,
 * prefetches, predicts, acquires, releases, resizes and waits at random, a million events in
 * several worlds, half of them over a checkpoint and half over a store, and looks at everything
 * after each. SL_SEED=n gives other worlds; SL_SLOW=1, and sanitizers, shorter ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cache/slot_table.h"
#include "core/base/assert.h"
#include "core/base/size.h"
#include "tests/cache_rig.h"
#include "tests/io_simulated.h"
#include "tests/kernel_inputs.h"

#define WORLDS 20u
#define EVENTS_PER_WORLD 50000u
#define EVENTS_PER_WORLD_SLOW 3000u
#define ALL (CACHE_LAYERS * CACHE_EXPERTS)
#define BLOCK SL_BLOCK_BYTES
#define SPAN_EXTRA_BYTES (2 * SL_EXPERT_READS_MAX * BLOCK) /* around what a load reads */

/* Where an expert lies: of a checkpoint its codes, but for the blocks that its neighbours share. */
struct inside {
    uint64_t first_block;
    uint32_t n_blocks;
    uint32_t file_index;
};

struct world {
    struct cache_rig rig;
    struct inside inside[ALL];
    uint64_t submitted[ALL];  /* of the load at hand: blocks inside, a bit for each */
    uint64_t n_failures[ALL]; /* of the drive, before that */
    uint64_t random;

    struct sl_expert_pin held[ALL];
    uint32_t n_held;
    bool open; /* a demand */
    uint16_t layer;
    uint32_t n_slots_max, n_left; /* to be acquired */
    bool impatient;               /* the reader gives up slow reads */
    uint64_t n_requests, n_events, n_dropped, n_failed_demands;
    uint64_t n_corrupt_demands; /* of these */
    uint64_t n_partial;         /* pins that were completed */
    uint64_t n_held_slots;      /* by the drive, after every event */
};

static uint32_t below(struct world *w, uint32_t limit)
{
    return (uint32_t)cache_rig_below(&w->random, limit);
}

/* NULL if the expert is in no slot. */
static const struct sl_slot *slot_of(const struct world *w, uint32_t id)
{
    const struct sl_slot_table *table = &w->rig.cache->table;

    return table->slot_of[id] == SL_NO_SLOT ? NULL : &table->slots[table->slot_of[id]];
}

static bool is_loading(const struct world *w, uint32_t id)
{
    const struct sl_slot *slot = slot_of(w, id);

    return slot && sl_slot_is_loading(slot);
}

/* ---- what the drive sees ------------------------------------------------------------------------
 */

/* The blocks inside an expert that a read covers. */
static uint64_t covered(const struct inside *in, const struct sl_io_read *read)
{
    const uint64_t first = read->offset_bytes / BLOCK, end = first + read->size_bytes / BLOCK;
    uint64_t blocks = 0;

    for (uint32_t i = 0; i < in->n_blocks && read->file_index == in->file_index; i++)
        if (first <= in->first_block + i && in->first_block + i < end)
            blocks |= UINT64_C(1) << i;
    return blocks;
}

/* A piece that nobody waits for is not begun while one that somebody waits for could be. Pieces
 * that are tried again go at once, whoever waits. */
static void on_submit(void *context, const struct sl_io_read *read)
{
    struct world *w = context;
    bool demanded = false, begun = false;

    for (uint32_t id = 0; id < ALL; id++) {
        uint64_t blocks = covered(&w->inside[id], read);

        if (blocks == 0)
            continue;
        sl_assert(is_loading(w, id));
        begun |= (blocks & ~w->submitted[id]) != 0;
        w->submitted[id] |= blocks;
        demanded |= sl_slot_is_awaited(slot_of(w, id));
    }
    for (uint32_t id = 0; id < ALL && begun && !demanded && !w->impatient; id++) {
        if (!is_loading(w, id) || !sl_slot_is_awaited(slot_of(w, id)) ||
            w->n_failures[id] != io_simulated_failure_count(w->rig.io)) /* it may have given up */
            continue;
        sl_assert(w->submitted[id] == (UINT64_C(1) << w->inside[id].n_blocks) - 1);
    }
}

static void find_insides(struct world *w)
{
    for (uint32_t id = 0; id < ALL; id++) {
        const struct sl_expert_key key = {(uint16_t)(id / CACHE_EXPERTS),
                                          (uint16_t)(id % CACHE_EXPERTS)};
        const struct sl_extent *codes;
        uint64_t end_bytes;

        if (w->rig.f->packed) {
            const struct sl_packed_expert *record = sl_expert_map_find_packed(w->rig.f->store, key);

            w->inside[id] = (struct inside){.first_block = record->parts[0].offset_bytes / BLOCK,
                                            .n_blocks = (uint32_t)(w->rig.f->expert_bytes / BLOCK),
                                            .file_index = record->parts[0].file_index};
            continue;
        }
        codes = sl_expert_map_find(w->rig.f->store, key)->codes;
        end_bytes = codes[SL_EXPERT_W3].offset_bytes + codes[SL_EXPERT_W3].size_bytes;
        w->inside[id] = (struct inside){.first_block = codes[SL_EXPERT_W1].offset_bytes / BLOCK + 1,
                                        .file_index = codes[SL_EXPERT_W1].file_index};
        w->inside[id].n_blocks = (uint32_t)(end_bytes / BLOCK - w->inside[id].first_block);
        assert_in_range(w->inside[id].n_blocks, 8, 63);
    }
}

/* ---- what must hold after every event -----------------------------------------------------------
 */

static void check(struct world *w)
{
    const struct sl_expert_cache_counters c = sl_expert_cache_counters(w->rig.cache);
    const struct sl_slot_table *table = &w->rig.cache->table;
    uint32_t n_there = 0, n_held = 0, n_pins = 0;
    uint64_t n_dropped, n_in_vain;

    w->n_events++;
    assert_true(sl_expert_cache_is_sound(w->rig.cache));
    assert_true(table->n_slots <= w->n_slots_max);
    for (uint32_t i = 0; i < table->n_slots; i++) {
        n_there +=
            table->slots[i].state != SL_SLOT_EMPTY && table->slots[i].state != SL_SLOT_QUARANTINED;
        n_held += table->slots[i].state == SL_SLOT_QUARANTINED;
        n_pins += sl_slot_is_acquired(&table->slots[i]);
    }
    assert_int_equal(n_pins, w->n_held);
    assert_int_equal(c.n_requests, w->n_requests);
    assert_true(c.n_hits + c.n_prefetch_hits <= c.n_requests);
    assert_int_equal(c.wanted_bytes, c.n_loads * w->rig.f->expert_bytes);
    assert_int_equal(c.read_bytes, io_simulated_delivered_bytes(w->rig.io));
    /* Loads whose expert is neither there nor was evicted are those that failed, and predictions
     * that were given up. */
    n_dropped = c.n_loads - c.n_evictions - n_there;
    assert_true(n_dropped >= w->n_dropped);
    n_in_vain = c.n_predicted_loads - c.n_predicted_hits - c.n_predicted_late;
    assert_true(n_in_vain <= c.n_predicted_loads);
    assert_true(w->impatient || n_dropped <= io_simulated_failure_count(w->rig.io) + n_in_vain);
    assert_true(n_held == 0 || c.n_stalls > 0 || n_in_vain > 0);
    assert_true(c.predicted_wasted_bytes <=
                n_in_vain * (w->rig.f->expert_bytes + SPAN_EXTRA_BYTES));
    assert_true(c.n_predicted_hits + c.n_predicted_late <= c.n_prefetch_hits);
    w->n_held_slots += n_held;
    w->n_dropped = n_dropped;
    for (uint32_t id = 0; id < ALL; id++)
        if (!is_loading(w, id)) {
            w->submitted[id] = 0;
            w->n_failures[id] = io_simulated_failure_count(w->rig.io);
        }
}

/* ---- what the driver does -----------------------------------------------------------------------
 */

/* A pin of a demand that is over is not completed any more. */
static void end_demand(struct world *w)
{
    w->open = false;
    for (uint32_t i = 0; i < w->n_held; i++)
        w->held[i].partial = false;
}

static void fail_demand(struct world *w, int rc, const struct sl_err *err)
{
    assert_true(rc == -EIO || (rc == -ETIMEDOUT && w->impatient) ||
                (rc == -SL_ECORRUPT && w->rig.f->packed));
    assert_int_equal(err->code, rc);
    assert_non_null(strstr(err->message, w->rig.f->packed ? ".bin: " : ".safetensors: "));
    w->n_failed_demands++;
    w->n_corrupt_demands += rc == -SL_ECORRUPT;
    end_demand(w);
}

static void complete(struct world *w, uint32_t i)
{
    struct sl_err err = {.code = 0};
    int rc;

    if (!w->held[i].partial)
        return;
    w->n_partial++;
    rc = cache_rig_complete(&w->rig, &w->held[i], &err);
    if (rc < 0)
        fail_demand(w, rc, &err);
}

static void release_one(struct world *w)
{
    uint32_t i = below(w, w->n_held);

    complete(w, i);
    w->rig.source->ops->release(w->rig.source, &w->held[i]);
    w->held[i] = w->held[--w->n_held];
}

static bool is_held(const struct world *w, uint16_t layer, uint16_t expert)
{
    for (uint32_t i = 0; i < w->n_held; i++)
        if (w->held[i].key.layer_index == layer && w->held[i].key.expert_index == expert)
            return true;
    return false;
}

/* Experts of low number more often; all at times; none that is pinned. */
static uint32_t choose(struct world *w, uint16_t layer, uint16_t experts[CACHE_EXPERTS])
{
    uint32_t share = below(w, 4) ? 1 + below(w, 12) : 12 + CACHE_EXPERTS, n = 0;

    for (uint16_t e = 0; e < CACHE_EXPERTS; e++)
        if (below(w, 12 + e) < share && !is_held(w, layer, e))
            experts[n++] = e;
    return n;
}

static void demand(struct world *w)
{
    uint16_t experts[CACHE_EXPERTS];
    uint32_t n;

    w->layer = (uint16_t)(below(w, 2) ? below(w, CACHE_LAYERS) : (w->layer + 1) % CACHE_LAYERS);
    for (uint32_t i = 0; i < w->n_held; i++)
        complete(w, i);
    n = choose(w, w->layer, experts);
    w->open = true;
    w->n_left = n;
    w->n_requests += n;
    assert_int_equal(w->rig.source->ops->demand(w->rig.source, w->layer, experts, n, NULL), 0);
    for (uint32_t id = 0; id < ALL; id++) /* no prediction outlives it */
        assert_true(!slot_of(w, id) || !slot_of(w, id)->predicted);
}

/* Half of the time a prediction, often at the layer that is demanded next; with slots kept empty
 * for it or not, where the pace may rule. */
static void prefetch(struct world *w)
{
    struct sl_expert_key keys[CACHE_EXPERTS];
    uint16_t experts[CACHE_EXPERTS], layer = (uint16_t)below(w, CACHE_LAYERS);
    uint32_t n = choose(w, layer, experts);

    for (uint32_t i = 0; i < n; i++)
        keys[i] = (struct sl_expert_key){layer, experts[i]};
    if (w->rig.cache->is_paced)
        w->rig.cache->table.n_spare = below(w, 3);
    if (below(w, 2))
        w->rig.source->ops->prefetch(w->rig.source, SL_PREFETCH_CERTAIN, keys, n);
    else
        w->rig.source->ops->prefetch(w->rig.source, SL_PREFETCH_PREDICTED, keys, n);
}

static void next(struct world *w)
{
    const bool wait = below(w, 3) > 0;
    struct sl_expert_pin *pin = &w->held[w->n_held];
    struct sl_err err = {.code = 0};
    int rc = w->rig.source->ops->acquire(w->rig.source, wait, pin, &err);

    if (rc == 1) {
        assert_int_equal(pin->key.layer_index, w->layer);
        assert_false(is_held(w, pin->key.layer_index, pin->key.expert_index));
        cache_rig_check_pin(&w->rig, pin);
        assert_true(w->n_left-- > 0);
        w->n_held++;
    } else if (rc == 0) {
        assert_int_equal(w->n_left, 0);
        w->open = false;
    } else if (rc == -EAGAIN) {
        assert_false(wait);
    } else {
        fail_demand(w, rc, &err);
    }
}

static void abandon(struct world *w)
{
    w->rig.source->ops->abandon(w->rig.source);
    end_demand(w);
}

/* A step fails between two demands. */
static void forget(struct world *w)
{
    w->rig.source->ops->forget(w->rig.source);
    assert_int_equal(w->rig.cache->table.n_prefetched, 0);
}

/* Or empties it. */
static void resize(struct world *w)
{
    const uint64_t slot_bytes = sl_expert_cache_slot_bytes(&cache_shape);
    uint32_t n = CACHE_PER_TOKEN + below(w, w->n_slots_max + 3 - CACHE_PER_TOKEN);
    const bool empties = below(w, 2);
    int rc = empties ? sl_expert_cache_empty(w->rig.cache, NULL)
                     : sl_expert_cache_resize(w->rig.cache, n * slot_bytes, NULL);

    if (w->open || w->n_held > 0) {
        assert_int_equal(rc, -EBUSY);
        return;
    }
    if (rc == -EBUSY && w->impatient) /* the drive has not let go of something */
        return;
    assert_int_equal(rc, 0);
    if (empties) {
        for (uint32_t id = 0; id < ALL; id++)
            assert_null(slot_of(w, id));
        return;
    }
    n = n < w->n_slots_max ? n : w->n_slots_max;
    assert_int_equal(sl_expert_cache_slot_count(w->rig.cache), n);
}

/* What is hot is there; what is preloaded comes to be there. */
static void rank_and_preload(struct world *w)
{
    struct sl_expert_key keys[ALL];
    uint32_t n = sl_expert_cache_hot_list(w->rig.cache, keys, 1 + below(w, ALL));

    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(
            slot_of(w, keys[i].layer_index * CACHE_EXPERTS + keys[i].expert_index)->state,
            SL_SLOT_READY);
    for (uint32_t i = 0; i < 3; i++)
        keys[i] = (struct sl_expert_key){(uint16_t)below(w, CACHE_LAYERS + 1),
                                         (uint16_t)below(w, CACHE_EXPERTS + 1)};
    if (!w->open)
        sl_expert_cache_preload(w->rig.cache, keys, 3, NULL, NULL, NULL);
}

static void act(struct world *w)
{
    uint32_t what = below(w, 100);

    if (what < 20)
        io_simulated_advance(w->rig.io, 1 + below(w, 500000));
    else if (what < 30)
        prefetch(w);
    else if (what < 31)
        resize(w);
    else if (what < 32)
        rank_and_preload(w);
    else if (what < 33 && w->open)
        abandon(w);
    else if (what < 33)
        forget(w);
    else if (w->n_held > 0 && (what < 60 || w->n_held == w->rig.source->pins_max))
        release_one(w);
    else if (w->open && w->n_held < w->rig.source->pins_max)
        next(w);
    else if (!w->open)
        demand(w);
}

/* ---- worlds -------------------------------------------------------------------------------------
 */

static void create_world(struct world *w, const struct cache_fixture *f, uint64_t seed)
{
    struct io_simulated_plan plan = {.seed = seed, .on_submit = on_submit, .context = w};
    struct cache_rig_options options = {.piece_bytes = 4096};
    const char *paths[CACHE_FILES];

    memset(w, 0, sizeof(*w));
    w->random = seed;
    w->n_slots_max = CACHE_PER_TOKEN + below(w, 22);
    plan.latency_ns_max = 1 + below(w, 2000000);
    plan.slow_permille = below(w, 20);
    plan.short_permille = below(w, 2) * below(w, 300);
    plan.again_permille = below(w, 2) * below(w, 100);
    plan.fail_permille = below(w, 2) * below(w, 60);
    for (uint32_t i = 0; i < CACHE_FILES; i++)
        paths[i] = sl_expert_map_file_path(f->store, i);
    options.reads_max = 1 + below(w, 16);
    options.piece_bytes <<= below(w, 6);
    options.n_slots = w->n_slots_max;
    options.inflight_max = 1 + below(w, 8);
    options.prefetch_layers = below(w, 4) > 0;
    options.paced = below(w, 2);
    options.policy = below(w, 2) ? &sl_policy_frequency : &sl_policy_lru;
    if (f->packed) { /* a checkpoint has nothing to tell wrong codes by */
        plan.flip_permille = below(w, 2) * below(w, 40);
        options.verify = plan.flip_permille ? SL_VERIFY_ALWAYS : (enum sl_verify)below(w, 3);
    }
    w->impatient = below(w, 3) == 0;
    if (w->impatient) { /* the slow ones take twice as long as it waits, or less */
        options.stall_ns = plan.latency_ns_max * 100 / (2 * SL_READER_DEADLINE_STALLS);
        plan.slow_permille += 5;
    }
    options.io = io_simulated_open(paths, CACHE_FILES, options.reads_max, &plan);
    cache_rig_init(&w->rig, f, &options);
    find_insides(w);
}

static void destroy_world(struct world *w)
{
    while (w->open) {
        while (w->n_held > 0)
            release_one(w);
        if (w->open)
            next(w);
    }
    while (w->n_held > 0)
        release_one(w);
    check(w);
    cache_rig_fini(&w->rig);
}

static uint64_t events_per_world(void)
{
#ifdef SL_DEBUG
    return EVENTS_PER_WORLD_SLOW;
#else
    return getenv("SL_SLOW") ? EVENTS_PER_WORLD_SLOW : EVENTS_PER_WORLD;
#endif
}

static void test_nothing_goes_wrong(void **state)
{
    struct world *w = calloc(1, sizeof(*w));
    uint64_t n_events = 0, n_failed_demands = 0, n_completions = 0, n_hits = 0, n_evictions = 0;
    uint64_t n_held_slots = 0, n_predicted_hits = 0, n_predicted_late = 0, n_predicted_wasted = 0,
             n_partial = 0;
    uint64_t n_corrupt_demands = 0;
    struct cache_fixture fixtures[3]; /* a checkpoint, and stores: plain and compressed */

    (void)state;
    assert_non_null(w);
    cache_fixture_open(&fixtures[0], false);
    cache_fixture_open_packed(&fixtures[1], &fixtures[0], false);
    cache_fixture_open_packed(&fixtures[2], &fixtures[0], true);
    for (uint32_t i = 0; i < WORLDS; i++) {
        create_world(w, &fixtures[i % 3], inputs_seed() * WORLDS + i);
        while (w->n_events < events_per_world()) {
            act(w);
            check(w);
        }
        n_events += w->n_events;
        n_failed_demands += w->n_failed_demands;
        n_corrupt_demands += w->n_corrupt_demands;
        n_held_slots += w->n_held_slots;
        n_partial += w->n_partial;
        n_completions += io_simulated_completion_count(w->rig.io);
        n_hits += sl_expert_cache_counters(w->rig.cache).n_hits;
        n_evictions += sl_expert_cache_counters(w->rig.cache).n_evictions;
        n_predicted_hits += sl_expert_cache_counters(w->rig.cache).n_predicted_hits;
        n_predicted_late += sl_expert_cache_counters(w->rig.cache).n_predicted_late;
        n_predicted_wasted += sl_expert_cache_counters(w->rig.cache).predicted_wasted_bytes > 0;
        destroy_world(w);
    }
    for (uint32_t i = 0; i < 3; i++)
        cache_fixture_close(&fixtures[i]);
    free(w);
    print_message("%" PRIu64 " events, %" PRIu64 " reads, %" PRIu64 " hits, %" PRIu64
                  " evictions, %" PRIu64 " demands that failed, %" PRIu64
                  " of them of corrupt experts, %" PRIu64 " times a slot was held; %" PRIu64
                  " predictions in time, %" PRIu64 " late\n",
                  n_events, n_completions, n_hits, n_evictions, n_failed_demands, n_corrupt_demands,
                  n_held_slots, n_predicted_hits, n_predicted_late);
    assert_true(n_failed_demands > 10 && n_hits > 1000 && n_evictions > 1000);
    assert_true(n_corrupt_demands > 10);
    assert_true(n_held_slots > 100 && n_partial > 100);
    assert_true(n_predicted_late > 10 && n_predicted_wasted > 0);
}

/* ---- the states of a slot ----------------------------------------------------------------------
 */

/* No slot is lost: every state can be reached from every other. And a slot that a drive may still
 * write to comes back by way of EMPTY alone. */
static void test_moves_of_a_slot(void **state)
{
    bool reached[SL_SLOT_STATES][SL_SLOT_STATES] = {{false}};

    (void)state;
    for (int from = 0; from < SL_SLOT_STATES; from++)
        for (int to = 0; to < SL_SLOT_STATES; to++)
            reached[from][to] = sl_slot_may_move(from, to);
    for (int from = 0; from < SL_SLOT_STATES; from++) {
        assert_false(reached[from][from]);
        assert_false(reached[SL_SLOT_QUARANTINED][from] && from != SL_SLOT_EMPTY);
        assert_false(reached[SL_SLOT_PINNED_QUARANTINED][from] && from != SL_SLOT_PINNED_FAILED &&
                     from != SL_SLOT_QUARANTINED);
        assert_false(reached[SL_SLOT_PINNED][from] && from != SL_SLOT_READY); /* not evicted */
    }
    for (int via = 0; via < SL_SLOT_STATES; via++)
        for (int from = 0; from < SL_SLOT_STATES; from++)
            for (int to = 0; to < SL_SLOT_STATES; to++)
                reached[from][to] |= reached[from][via] && reached[via][to];
    for (int from = 0; from < SL_SLOT_STATES; from++)
        for (int to = 0; to < SL_SLOT_STATES; to++)
            assert_true(reached[from][to]);
    assert_false(sl_slot_may_move(SL_SLOT_EMPTY, SL_SLOT_STATES));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_goes_wrong),
        cmocka_unit_test(test_moves_of_a_slot),
    };

    print_message("SL_SEED=%" PRIu64 "\n", inputs_seed());
    return cmocka_run_group_tests_name("cache_simulation", tests, NULL, NULL);
}
