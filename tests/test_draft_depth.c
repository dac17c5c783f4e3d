/* How many guesses pay, in made-up worlds: steps and drafts take a time by rows and depth, with
 * noise, and guesses are right with a chance by depth. Whatever the world, and when it changes on
 * the way, choosing is never slower than no guesses by more than 3 %; where guesses pay it is
 * within a tenth of the best depth there is, or a half where that must be found out anew. SL_SEED
 * repeats a run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <inttypes.h>

#include <cmocka.h>

#include "daemon/engine/draft_depth.h"
#include "tests/fixture_model.h"
#include "tests/kernel_inputs.h"

#define STEPS 4000u
#define SHORT_STEPS 100u
#define DEPTH_MAX 3u

struct world {
    const char *name;
    uint32_t n_texts;
    double step_us, row_us;  /* a step, and each of its rows */
    double see_us, guess_us; /* of a text: its tokens are seen, and each guess is made */
    double right[DEPTH_MAX]; /* chance, if the ones before are */
    double noise;            /* of times: up to this share more */
    double pass_share;       /* what the model's sizes tell of a pass */
    double cold_us;          /* that passes take longer, together, until all they need is there */
};

static const struct world worlds[] = {
    {"nothing is right", 1, 80, 20, 1, 3, {0, 0, 0}, 0.1, 0.05, 0},
    {"rows cost as much as steps", 1, 10, 90, 1, 10, {0.5, 0.5, 0.5}, 0.1, 0.05, 0},
    {"rows cost little", 1, 95, 5, 0.5, 3, {0.8, 0.7, 0.6}, 0.1, 0.05, 0},
    {"rows cost half", 1, 50, 50, 0.5, 2, {0.8, 0.3, 0.1}, 0.1, 0.05, 0},
    {"a draft that takes long", 1, 90, 10, 0.5, 90, {0.8, 0.7, 0.6}, 0.1, 0.05, 0},
    {"many texts, rows are free", 64, 5000, 2, 1, 2, {0.6, 0.5, 0.4}, 0.1, 0.05, 0},
    {"many texts, rows are all", 64, 100, 100, 1, 5, {0.6, 0.5, 0.4}, 0.1, 0.05, 0},
    {"breaks even", 1, 60, 40, 1, 5, {0.45, 0.2, 0.1}, 0.1, 0.05, 0},
    {"loud", 1, 90, 10, 0.5, 3, {0.7, 0.6, 0.5}, 0.8, 0.05, 0},
};

static double chance(uint64_t *random)
{
    return (double)(fixture_random(random) >> 11) * 0x1p-53;
}

static double loud(const struct world *w, double us, uint64_t *random)
{
    return us * (1 + w->noise * chance(random));
}

/* Time per token of a fixed depth, which the chooser does not know. */
static double expected_us(const struct world *w, uint32_t depth)
{
    double all = 1, tokens = 1;
    const double step = w->step_us + w->row_us * w->n_texts * (1 + depth);
    const double draft = depth > 0 ? w->n_texts * (w->see_us + depth * w->guess_us) : 0;

    for (uint32_t d = 0; d < depth; d++) {
        all *= w->right[d];
        tokens += all;
    }
    return (step + draft) * (1 + w->noise / 2) / (tokens * w->n_texts);
}

static double best_us(const struct world *w)
{
    double best = expected_us(w, 0);

    for (uint32_t depth = 1; depth <= DEPTH_MAX; depth++)
        best = expected_us(w, depth) < best ? expected_us(w, depth) : best;
    return best;
}

/* A text's guesses in a step: how many tokens it makes. */
static uint32_t verify(const struct world *w, uint32_t n_drafts, struct sl_draft_sample *s,
                       uint64_t *random)
{
    uint32_t n = 0;

    for (; n < n_drafts; n++) {
        s->tried[n]++;
        if (chance(random) >= w->right[n])
            break;
        s->right[n]++;
    }
    return n + 1;
}

/* A pass through three blocks, between which it can be given up. Returns its time. */
static double pass_us(const struct world *w, uint32_t n_guesses, uint64_t most_ns, double *cold_us,
                      bool *ret_is_cut, uint64_t *random)
{
    const double warm = w->n_texts * loud(w, w->see_us + n_guesses * w->guess_us, random);
    const double block = (warm + (n_guesses > 0 ? *cold_us : 0)) / 3;
    uint32_t n = 1;

    while (n < 3 && 1000 * n * block <= (double)most_ns)
        n++;
    *ret_is_cut = n < 3;
    if (n_guesses > 0)
        *cold_us -= *cold_us * n / 3;
    return n * block;
}

/* Returns the time per token of so many steps. */
static double run(struct sl_draft_depth *d, const struct world *w, uint32_t n_steps,
                  uint64_t *random)
{
    double us = 0, n_tokens = 0, cold_us = w->cold_us;
    uint32_t n_ready = 0;

    for (uint32_t i = 0; i < n_steps; i++) {
        const uint32_t wish = n_ready > 0 ? sl_draft_depth_choose(d, w->n_texts, w->n_texts) : 0;
        const uint32_t depth = wish < n_ready ? wish : n_ready;
        struct sl_draft_sample s = {.n_rows = w->n_texts, .n_texts = w->n_texts};
        uint32_t wanted;

        s.n_tried = depth * w->n_texts;
        s.step_ns =
            (uint64_t)(1000 * loud(w, w->step_us + w->row_us * (s.n_rows + s.n_tried), random));
        for (uint32_t t = 0; t < w->n_texts; t++)
            s.n_made += verify(w, depth, &s, random);
        wanted = sl_draft_depth_wanted(d, w->n_texts);
        n_ready = 0;
        if (wanted != SL_DRAFT_BLIND) {
            assert_true(wanted <= DEPTH_MAX);
            s.depth_wanted = wanted;
            s.n_guessing = w->n_texts;
            s.draft_ns =
                (uint64_t)(1000 * pass_us(w, wanted,
                                          sl_draft_depth_pass_ns_max(d, wanted, w->n_texts),
                                          &cold_us, &s.is_cut, random));
            n_ready = s.is_cut ? 0 : wanted;
        }
        sl_draft_depth_add(d, &s);
        us += (double)(s.step_ns + s.draft_ns) / 1000;
        n_tokens += s.n_made;
    }
    return us / n_tokens;
}

/* `within`: times the best depth's time that are allowed. */
static void check(const struct world *w, double us, double within)
{
    const double off = expected_us(w, 0), best = best_us(w);

    print_message("%-28s off %.1f, best %.1f, chosen %.1f us a token\n", w->name, off, best, us);
    if (us > 1.03 * off)
        fail_msg("%s: %.1f %% slower than without guesses", w->name, 100 * (us / off - 1));
    if (best < 0.9 * off && us > within * best)
        fail_msg("%s: %.1f %% slower than the best depth", w->name, 100 * (us / best - 1));
}

static void test_what_pays_is_found(void **state)
{
    uint64_t random = inputs_seed();

    (void)state;
    for (size_t i = 0; i < sizeof(worlds) / sizeof(worlds[0]); i++) {
        struct sl_draft_depth d;

        sl_draft_depth_init(&d, DEPTH_MAX, true, worlds[i].pass_share);
        check(&worlds[i], run(&d, &worlds[i], STEPS, &random), 1.1);
    }
}

/* First passes that read what no step has asked for are given up where they have cost enough. What
 * they read is there for later ones, so that guesses that pay are found all the same. */
static void test_cold_drafts(void **state)
{
    static const struct world cold[] = {
        {"cold, and pays", 1, 95, 5, 0.5, 30, {0.8, 0.7, 0.6}, 0.1, 0.35, 1000},
        {"cold, and nothing is right", 1, 95, 5, 0.5, 30, {0, 0, 0}, 0.1, 0.35, 1000},
    };
    uint64_t random = inputs_seed();

    (void)state;
    for (size_t i = 0; i < sizeof(cold) / sizeof(cold[0]); i++) {
        struct sl_draft_depth d;

        sl_draft_depth_init(&d, DEPTH_MAX, true, cold[i].pass_share);
        check(&cold[i], run(&d, &cold[i], STEPS, &random), 1.25);
    }
}

/* A text that ends soon pays for no more of a trial than a few steps, however dear one is: whether
 * guesses are, or the first pass reads for as long as four steps take, or both are so. */
static void test_short_texts(void **state)
{
    static const struct world dear[] = {
        {"a draft of a whole step", 1, 90, 10, 10, 110, {0, 0, 0}, 0.1, 0.25, 0},
        {"a draft told to be dear", 1, 90, 10, 0.01, 250, {0, 0, 0}, 0.1, 3.75, 1500},
        {"a cold draft", 1, 90, 10, 0, 30, {0, 0, 0}, 0.1, 0.35, 400},
    };
    uint64_t random = inputs_seed();

    (void)state;
    for (size_t w = 0; w < sizeof(dear) / sizeof(dear[0]); w++) {
        double off = 0, us = 0;

        for (uint32_t i = 0; i < 100; i++) {
            struct sl_draft_depth d;

            sl_draft_depth_init(&d, DEPTH_MAX, true, dear[w].pass_share);
            us += run(&d, &dear[w], SHORT_STEPS, &random);
            off += expected_us(&dear[w], 0);
        }
        print_message("%-28s off %.1f, chosen %.1f us a token\n", dear[w].name, off / 100,
                      us / 100);
        if (us > 1.03 * off)
            fail_msg("%s: %.1f %% slower than without guesses", dear[w].name, 100 * (us / off - 1));
    }
}

/* From each world to each other: what held before does not count any more. */
static void test_worlds_that_change(void **state)
{
    uint64_t random = inputs_seed();

    (void)state;
    for (size_t i = 0; i < sizeof(worlds) / sizeof(worlds[0]); i++)
        for (size_t k = 0; k < sizeof(worlds) / sizeof(worlds[0]); k++) {
            struct sl_draft_depth d;

            if (worlds[i].n_texts != worlds[k].n_texts)
                continue;
            sl_draft_depth_init(&d, DEPTH_MAX, true, worlds[i].pass_share);
            run(&d, &worlds[i], STEPS, &random);
            check(&worlds[k], run(&d, &worlds[k], STEPS, &random), 1.7);
        }
}

/* ---- chances that are told ---------------------------------------------------------------------
 */

#define SURE 0.95
#define UNSURE 0.05

/* One text, whose guesses are nearly certain or nearly wrong, as often as makes the world's chance.
 * Those that are told are made as far as they are worth it. Returns the time per token. */
static double run_told(const struct world *w, bool told, uint64_t *random)
{
    uint32_t n_ready = 0, n_asked = 0, wanted;
    double us = 0, n_tokens = 0, chances[DEPTH_MAX], least = 0;
    struct sl_draft_depth d;

    sl_draft_depth_init(&d, DEPTH_MAX, true, w->pass_share);
    for (uint32_t i = 0; i < STEPS; i++) {
        const uint32_t wish = sl_draft_depth_choose(&d, 1, n_ready > 0);
        const uint32_t depth = wish < n_ready ? wish : n_ready;
        struct sl_draft_sample s = {.n_rows = 1, .n_texts = 1, .n_tried = depth};
        uint32_t n = 0;
        double all = 1;

        for (; n < depth && chance(random) < chances[n]; n++)
            s.tried[n]++, s.right[n]++;
        if (n < depth || (least > 0 && depth == n_ready && n_ready < n_asked))
            s.tried[n]++;
        for (uint32_t k = 0; k < depth; k++)
            s.carried[k]++;
        for (uint32_t k = depth; least > 0 && depth == n_ready && k < n_asked; k++)
            s.left_out[k]++;
        s.n_made = n + 1;
        s.step_ns = (uint64_t)(1000 * loud(w, w->step_us + w->row_us * (1 + depth), random));
        wanted = sl_draft_depth_wanted(&d, 1);
        n_ready = n_asked = 0;
        if (wanted != SL_DRAFT_BLIND) {
            s.depth_wanted = n_asked = wanted;
            s.n_guessing = 1;
            s.draft_ns = (uint64_t)(1000 * loud(w, w->see_us + wanted * w->guess_us, random));
            least = told ? sl_draft_depth_chance_min(&d, wanted, 1) : 0;
            for (; n_ready < wanted; n_ready++) {
                const double often = (w->right[n_ready] - UNSURE) / (SURE - UNSURE);

                chances[n_ready] = chance(random) < often ? SURE : UNSURE;
                all *= chances[n_ready];
                if (all < least)
                    break;
            }
        }
        sl_draft_depth_add(&d, &s);
        us += (double)(s.step_ns + s.draft_ns) / 1000;
        n_tokens += s.n_made;
    }
    return us / n_tokens;
}

/* What a row costs is not spent on a guess that will be wrong; where rows cost little, all are
 * made. */
static void test_chances_that_are_told(void **state)
{
    static const struct world dear = {"half, even chances", 1,   50,   50, 0.5, 2,
                                      {0.6, 0.5, 0.4},      0.1, 0.05, 0};
    uint64_t random = inputs_seed();
    double told, untold;

    (void)state;
    for (size_t i = 0; i < sizeof(worlds) / sizeof(worlds[0]); i++) {
        if (worlds[i].n_texts > 1)
            continue;
        untold = run_told(&worlds[i], false, &random);
        told = run_told(&worlds[i], true, &random);
        print_message("%-28s untold %.1f, told %.1f us a token\n", worlds[i].name, untold, told);
        if (told > 1.03 * untold || told > 1.03 * expected_us(&worlds[i], 0))
            fail_msg("%s: slower when chances are told", worlds[i].name);
    }
    untold = run_told(&dear, false, &random);
    told = run_told(&dear, true, &random);
    print_message("%-28s untold %.1f, told %.1f us a token\n", dear.name, untold, told);
    assert_true(told < 0.93 * untold);
}

static void test_a_depth_that_is_set_stays(void **state)
{
    uint64_t random = inputs_seed();
    struct sl_draft_depth d;

    (void)state;
    sl_draft_depth_init(&d, 2, false, 1);
    run(&d, &worlds[0], 100, &random);
    assert_int_equal(sl_draft_depth_wanted(&d, 1), 2);
    assert_int_equal(sl_draft_depth_choose(&d, 1, 1), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_pays_is_found),
        cmocka_unit_test(test_cold_drafts),
        cmocka_unit_test(test_short_texts),
        cmocka_unit_test(test_worlds_that_change),
        cmocka_unit_test(test_chances_that_are_told),
        cmocka_unit_test(test_a_depth_that_is_set_stays),
    };

    print_message("SL_SEED=%" PRIu64 "\n", inputs_seed());
    return cmocka_run_group_tests_name("draft depth", tests, NULL, NULL);
}
