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
#define WORLDS 400u
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

    *rig = (struct rig){.pace = {.n_layers = LAYERS, .expert_bytes = EXPERT_BYTES}};
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
    assert_false(sl_pace_wants(&rig.pace, 1)); /* nothing has been missing */
    sl_pace_read(&rig.pace, EXPERT_BYTES, 5000000);
    assert_true(sl_pace_wants(&rig.pace, 1));
    assert_true(sl_pace_pays(&rig.pace, 1, 0, 0)); /* it is tried */

    /* Two experts' time, of which the first takes one. */
    sl_pace_predicted(&rig.pace, 1, 10000000, 1000, EXPERT_BYTES, 0);
    assert_true(sl_pace_pays(&rig.pace, 1, 0, EXPERT_BYTES));
    assert_false(sl_pace_pays(&rig.pace, 1, 0, 2 * (uint64_t)EXPERT_BYTES));

    /* A rank that is never right, and one that always is; each layer for itself. */
    for (uint32_t i = 0; i < 400; i++) {
        sl_pace_judge(&rig.pace, 1, 4, false);
        sl_pace_judge(&rig.pace, 1, 5, true);
    }
    assert_false(sl_pace_pays(&rig.pace, 1, 4, 0));
    assert_true(sl_pace_pays(&rig.pace, 1, 5, 0));
    assert_true(sl_pace_pays(&rig.pace, 2, 4, 0));

    /* No time to spare: nothing pays, and few predictions are made. */
    for (uint32_t i = 0; i < 400; i++)
        sl_pace_predicted(&rig.pace, 1, 0, 1000, 0, 0);
    assert_false(sl_pace_pays(&rig.pace, 1, 5, 0));
    for (uint32_t i = 0, n = 0; i < 320; i++) {
        n += sl_pace_wants(&rig.pace, 1);
        assert_in_range(n, i / 33, i / 31 + 1);
    }
    rig_fini(&rig);
}

/* ---- worlds ------------------------------------------------------------------------------------
 */

struct world {
    uint64_t random;
    double bytes_per_ns, idle_ns, compute_ns; /* of each layer and token */
    double missing, right[RANKS];             /* probabilities */
    double cost_ns;                           /* of a prediction */
};

static bool happens(struct world *w, double probability)
{
    return fixture_below(&w->random, 1000000) < probability * 1e6;
}

/* Returns how much later than without predictions the layer is done. */
static double run_layer(struct world *w, struct sl_prefetch_pace *pace, uint32_t layer)
{
    const double flight_bytes = (double)sl_pace_flight_bytes(pace);
    const double idle_ns = w->idle_ns * (0.5 + fixture_below(&w->random, 1000) / 1000.0);
    double left = idle_ns * w->bytes_per_ns, right_bytes = 0, wasted_bytes = 0;
    uint64_t begun_bytes = 0;

    if (!sl_pace_wants(pace, layer))
        return 0;
    for (uint32_t rank = 0; rank < RANKS; rank++) {
        const bool is_right = happens(w, w->right[rank]);

        if (!happens(w, w->missing))
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
    sl_pace_predicted(pace, layer, (uint64_t)idle_ns, (uint64_t)w->cost_ns, (uint64_t)right_bytes,
                      (uint64_t)wasted_bytes);
    return w->cost_ns + (wasted_bytes - right_bytes) / w->bytes_per_ns;
}

static void test_worlds(void **state)
{
    const char *seed = getenv("SL_SEED");
    struct world w = {.random = seed ? strtoull(seed, NULL, 10) : 1};
    uint32_t n_gains = 0, n_idle = 0;

    (void)state;
    for (uint32_t i = 0; i < WORLDS; i++) {
        double without_ns = 0, change_ns = 0, layer_ns, expected;
        struct rig rig;

        rig_init(&rig);
        w.bytes_per_ns = 0.1 * (1 + fixture_below(&w.random, 70));
        w.idle_ns = 3e4 * fixture_below(&w.random, 100) * fixture_below(&w.random, 2);
        w.missing = fixture_below(&w.random, 100) / 100.0;
        w.cost_ns = 1e3 * fixture_below(&w.random, 300);
        for (uint32_t rank = 0; rank < RANKS; rank++)
            w.right[rank] = fixture_below(&w.random, 100) / 100.0;
        layer_ns = w.idle_ns + 2e6 + RANKS * w.missing * EXPERT_BYTES / w.bytes_per_ns;
        sl_pace_read(&rig.pace, (uint64_t)(w.bytes_per_ns * 1e6), 1000000);
        for (uint32_t token = 0; token < TOKENS; token++)
            for (uint32_t layer = 0; layer < LAYERS; layer++) {
                change_ns += run_layer(&w, &rig.pace, layer);
                without_ns += layer_ns;
            }
        assert_true(change_ns < 0.01 * without_ns);
        /* Where the first rank is mostly right, something is missing, and there is time. */
        expected = w.missing * w.right[0] * w.idle_ns;
        if (w.right[0] > 0.7 && expected > 4 * w.cost_ns && expected > 0.02 * layer_ns) {
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
        cmocka_unit_test(test_worlds),
    };

    return cmocka_run_group_tests_name("prefetch_pace", tests, NULL, NULL);
}
