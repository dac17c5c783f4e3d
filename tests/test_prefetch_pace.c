/* The pace of predictions, in worlds of its own: drives, layers and predictions of all kinds. It
 * costs next to nothing where there is nothing to gain, and gains where there is. `SL_SEED=n` gives
 * other worlds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "cache/prefetch_pace.h"
#include "tests/fixture_model.h"

#define LAYERS 4u
#define RANKS 6u
#define EXPERT_BYTES 13369344u /* V4-Flash's */
#define WORLDS 1600u
#define TOKENS 600u

/* ---- a pace ------------------------------------------------------------------------------------
 */

struct rig {
    struct sl_arena arena;
    struct sl_prefetch_pace pace;
};

static void rig_init(struct rig *rig)
{
    struct sl_arena measure;

    *rig = (struct rig){.pace = {.n_layers = LAYERS, .n_slots = 320, .expert_bytes = EXPERT_BYTES}};
    sl_arena_init_measure(&measure);
    sl_pace_carve(&rig->pace, &measure);
    assert_int_equal(sl_arena_map(&rig->arena, measure.used_bytes, "pace", NULL), 0);
    sl_pace_carve(&rig->pace, &rig->arena);
    sl_pace_start(&rig->pace);
}

static void rig_fini(struct rig *rig)
{
    sl_arena_fini(&rig->arena);
}

static void test_what_pays(void **state)
{
    struct rig rig;

    (void)state;
    rig_init(&rig);
    assert_false(sl_pace_wants(&rig.pace)); /* nothing has been missing */
    sl_pace_read(&rig.pace, EXPERT_BYTES, 5000000);
    assert_true(sl_pace_pays(&rig.pace, 1, 0, 0)); /* it is tried */

    /* Two experts' time, of which the first takes one. */
    sl_pace_idled(&rig.pace, 1, 10000000);
    assert_true(sl_pace_pays(&rig.pace, 1, 0, EXPERT_BYTES));
    assert_false(sl_pace_pays(&rig.pace, 1, 0, 2 * (uint64_t)EXPERT_BYTES));
    assert_int_equal(sl_pace_spare_slots(&rig.pace), 2);

    /* A rank that is never right, and one that always is; each layer for itself. */
    for (uint32_t i = 0; i < 400; i++) {
        sl_pace_judge(&rig.pace, 1, 4, false);
        sl_pace_judge(&rig.pace, 1, 5, true);
    }
    assert_false(sl_pace_pays(&rig.pace, 1, 4, 0));
    assert_true(sl_pace_pays(&rig.pace, 1, 5, 0));
    assert_true(sl_pace_pays(&rig.pace, 2, 4, 0));

    for (uint32_t i = 0; i < 400; i++) /* no time to spare */
        sl_pace_idled(&rig.pace, 1, 0);
    assert_false(sl_pace_pays(&rig.pace, 1, 5, 0));
    assert_int_equal(sl_pace_spare_slots(&rig.pace), 1);
    rig_fini(&rig);
}

/* Returns how many of so many visits were predicted for, which take ns, and without_ns else. */
static uint32_t visits(struct sl_prefetch_pace *pace, uint32_t n, uint64_t ns, uint64_t without_ns)
{
    uint32_t n_predicted = 0;

    for (uint32_t i = 0; i < n; i++) {
        struct sl_pace_visit visit = {.layer_index = i % LAYERS,
                                      .is_predicted = sl_pace_wants(pace),
                                      .n_missing = i / LAYERS % 5,
                                      .n_found = 2};

        visit.elapsed_ns = (visit.is_predicted ? ns : without_ns) + 700000 * visit.n_missing +
                           400000 * visit.layer_index;
        n_predicted += visit.is_predicted;
        sl_pace_visited(pace, &visit);
    }
    return n_predicted;
}

/* Predictions are made while visits with them are shorter than without, and seldom while not; and
 * when that changes it is noticed. */
static void test_what_is_tried(void **state)
{
    struct rig rig;

    (void)state;
    rig_init(&rig);
    sl_pace_read(&rig.pace, EXPERT_BYTES, 5000000);
    assert_in_range(visits(&rig.pace, 1000, 10000000, 9800000), 8, 60);
    assert_false(sl_pace_is_on(&rig.pace));
    assert_in_range(visits(&rig.pace, 10000, 10000000, 9800000), 10, 160);
    visits(&rig.pace, 40000, 9500000, 9800000);
    assert_true(sl_pace_is_on(&rig.pace));
    assert_in_range(visits(&rig.pace, 1000, 9500000, 9800000), 900, 970);
    visits(&rig.pace, 2000, 10000000, 9800000);
    assert_false(sl_pace_is_on(&rig.pace));

    /* A cache with hardly any slots has none to spare. */
    rig.pace.n_slots = SL_PACE_SPARE_SHARE - 1;
    assert_int_equal(visits(&rig.pace, 1000, 9000000, 9800000), 0);
    rig_fini(&rig);
}

/* ---- worlds ------------------------------------------------------------------------------------
 */

struct world {
    uint64_t random;
    double bytes_per_ns, idle_ns, compute_ns; /* of each layer and token */
    double missing, right[RANKS];             /* probabilities */
    double cost_ns;                           /* of a prediction */
    double noise;                             /* share of a layer's time that varies by chance */
};

static bool happens(struct world *w, double probability)
{
    return fixture_below(&w->random, 1000000) < probability * 1e6;
}

/* Adds what a layer takes without predictions to *without_ns, and returns how much more it takes
 * with them. */
static double run_layer(struct world *w, struct sl_prefetch_pace *pace, uint32_t layer,
                        double *without_ns)
{
    const double flight_bytes = (double)sl_pace_flight_bytes(pace);
    const double idle_ns = w->idle_ns * (0.5 + fixture_below(&w->random, 1000) / 1000.0);
    double left = idle_ns * w->bytes_per_ns, right_bytes = 0, wasted_bytes = 0, ns = 0;
    struct sl_pace_visit visit = {.layer_index = layer, .is_predicted = sl_pace_wants(pace)};
    uint64_t begun_bytes = 0;
    double layer_ns;

    for (uint32_t rank = 0; rank < RANKS; rank++) {
        const bool is_right = happens(w, w->right[rank]);

        if (!happens(w, w->missing))
            continue;
        visit.n_missing++;
        if (!visit.is_predicted)
            continue;
        if (sl_pace_pays(pace, layer, rank, begun_bytes)) {
            const double bytes = left < EXPERT_BYTES ? left : EXPERT_BYTES;

            begun_bytes += EXPERT_BYTES;
            left -= bytes;
            if (is_right)
                right_bytes += bytes;
            else if (left <= 0)
                wasted_bytes += bytes < flight_bytes ? bytes : flight_bytes;
        }
        sl_pace_judge(pace, layer, rank, is_right);
    }
    visit.n_found = RANKS - visit.n_missing;
    layer_ns = w->idle_ns + 2e6 + visit.n_missing * EXPERT_BYTES / w->bytes_per_ns;
    layer_ns *= 1 + w->noise * (fixture_below(&w->random, 2001) / 1000.0 - 1);
    *without_ns += layer_ns;
    if (visit.is_predicted) {
        sl_pace_idled(pace, layer, (uint64_t)idle_ns);
        ns = w->cost_ns + (wasted_bytes - right_bytes) / w->bytes_per_ns;
    }
    visit.elapsed_ns = (uint64_t)(layer_ns + ns);
    sl_pace_visited(pace, &visit);
    return ns;
}

static void test_worlds(void **state)
{
    const char *seed = getenv("SL_SEED");
    struct world w = {.random = seed ? strtoull(seed, NULL, 10) : 1};
    uint32_t n_gains = 0, n_idle = 0;

    (void)state;
    for (uint32_t i = 0; i < WORLDS; i++) {
        double without_ns = 0, change_ns = 0, expected;
        struct rig rig;

        rig_init(&rig);
        w.bytes_per_ns = 0.1 * (1 + fixture_below(&w.random, 70));
        w.idle_ns = 3e4 * fixture_below(&w.random, 100) * fixture_below(&w.random, 2);
        w.missing = fixture_below(&w.random, 100) / 100.0;
        w.cost_ns = 1e3 * fixture_below(&w.random, 300);
        for (uint32_t rank = 0; rank < RANKS; rank++)
            w.right[rank] = fixture_below(&w.random, 100) / 100.0;
        w.noise = fixture_below(&w.random, 20) / 100.0;
        sl_pace_read(&rig.pace, (uint64_t)(w.bytes_per_ns * 1e6), 1000000);
        for (uint32_t token = 0; token < TOKENS; token++)
            for (uint32_t layer = 0; layer < LAYERS; layer++)
                change_ns += run_layer(&w, &rig.pace, layer, &without_ns);
        assert_true(change_ns < 0.01 * without_ns);
        /* Where the first rank is mostly right, something is missing, and there is time. */
        expected = w.missing * w.right[0] * w.idle_ns;
        if (w.right[0] > 0.7 && expected > 4 * w.cost_ns &&
            expected > 0.05 * without_ns / (TOKENS * LAYERS)) {
            n_idle++;
            n_gains += change_ns < -0.005 * without_ns;
        }
        rig_fini(&rig);
    }
    print_message("# %u of %u worlds with something to gain have gained\n", n_gains, n_idle);
    assert_true(n_idle > 10 && n_gains == n_idle);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_pays),
        cmocka_unit_test(test_what_is_tried),
        cmocka_unit_test(test_worlds),
    };

    return cmocka_run_group_tests_name("prefetch_pace", tests, NULL, NULL);
}
