/* Sampler: the filters keep exactly the tokens that a full sort would keep, draws follow the
 * probabilities, and seed and position give the same token again. Small vocabularies are drawn from
 * often enough to see every token that can come, and none other. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/text/sampler.h"

#define N_VOCAB_MAX 64u

static struct sl_arena arena;
static struct sl_candidate *scratch; /* for N_VOCAB_MAX */

/* What a test draws from: the parameters, over some first tokens, at one position after another. */
struct draws {
    struct sl_sampler sampler;
    uint32_t n_vocab;
    uint64_t position;
};

static int make_scratch(void **state)
{
    struct sl_arena measure;

    (void)state;
    sl_arena_init_measure(&measure);
    sl_sampler_carve_scratch(&measure, N_VOCAB_MAX);
    if (sl_arena_init(&arena, measure.used_bytes, "sampler", NULL) < 0)
        return -1;
    scratch = sl_sampler_carve_scratch(&arena, N_VOCAB_MAX);
    return 0;
}

static int free_scratch(void **state)
{
    (void)state;
    sl_arena_fini(&arena);
    return 0;
}

static void init(struct draws *draws, struct sl_sampler sampler, uint64_t seed, uint32_t n_vocab)
{
    assert_int_equal(sl_sampler_check(&sampler, NULL), 0);
    assert_true(n_vocab <= N_VOCAB_MAX);
    sampler.seed = seed;
    *draws = (struct draws){sampler, n_vocab, 0};
}

static uint32_t sample(struct draws *draws, const float *logits)
{
    struct sl_err err;
    uint32_t id;

    if (sl_sampler_sample(&draws->sampler, draws->position++, logits, draws->n_vocab, scratch, &id,
                          &err) < 0)
        fail_msg("%s", err.message);
    assert_true(id < draws->n_vocab);
    return id;
}

static void count(struct draws *sampler, const float *logits, uint32_t n_draws,
                  uint32_t counts[N_VOCAB_MAX])
{
    memset(counts, 0, N_VOCAB_MAX * sizeof(*counts));
    for (uint32_t i = 0; i < n_draws; i++)
        counts[sample(sampler, logits)]++;
}

static void test_greedy(void **state)
{
    static const float logits[] = {-1.0f, 2.5f, 2.5f, -INFINITY, 2.0f};
    struct sl_sampler params = SL_SAMPLER_DEFAULT;
    struct draws sampler;

    (void)state;
    params.temperature = 0;
    params.top_k = 3; /* changes nothing */
    init(&sampler, params, 1, 5);
    for (int i = 0; i < 10; i++)
        assert_int_equal(sample(&sampler, logits), 1);
}

/* These ids were written down once: they must not change, here or on another machine. */
static void test_a_seed_gives_these_tokens(void **state)
{
    static const uint8_t all[] = {4, 7, 5, 1, 6, 1, 2, 6, 1, 6, 6, 2};
    static const uint8_t few[] = {6, 7, 7, 6, 7, 6, 6, 7, 6, 7, 7, 6};
    struct sl_sampler params = SL_SAMPLER_DEFAULT;
    struct draws sampler;
    float logits[8];

    (void)state;
    for (int i = 0; i < 8; i++)
        logits[i] = 0.2f * (float)i;
    init(&sampler, params, 42, 8);
    for (size_t i = 0; i < sizeof(all); i++)
        assert_int_equal(sample(&sampler, logits), all[i]);
    params.temperature = 0.5;
    params.top_k = 6;
    params.top_p = 0.6;
    params.min_p = 0.5;
    init(&sampler, params, 42, 8);
    for (size_t i = 0; i < sizeof(few); i++)
        assert_int_equal(sample(&sampler, logits), few[i]);
}

/* Position by position in any order; other seeds and positions give other draws. */
static void test_only_seed_and_position_count(void **state)
{
    struct sl_sampler params = SL_SAMPLER_DEFAULT;
    float logits[N_VOCAB_MAX] = {0};
    uint32_t forth[100], n_same = 0;
    struct draws draws;

    (void)state;
    init(&draws, params, 11, N_VOCAB_MAX);
    for (int i = 0; i < 100; i++)
        forth[i] = sample(&draws, logits);
    for (int i = 100; i-- > 0;) {
        draws.position = (uint64_t)i;
        assert_int_equal(sample(&draws, logits), forth[i]);
    }
    draws.sampler.seed = 12;
    draws.position = 0;
    for (int i = 0; i < 100; i++)
        n_same += sample(&draws, logits) == forth[i];
    assert_in_range(n_same, 0, 10); /* 1.6 by chance */
    for (int i = 1; i < 100; i++)
        n_same += forth[i] == forth[i - 1];
    assert_in_range(n_same, 0, 20);
}

static void test_draws_follow_probabilities(void **state)
{
    static const double temperatures[] = {0.3, 1.0, 2.5};
    static const float logits[] = {0.0f, -1.5f, 1.0f, 0.25f, -INFINITY, 3.0f, -40.0f};
    const uint32_t n_draws = 40000, n = sizeof(logits) / sizeof(logits[0]);
    uint32_t counts[N_VOCAB_MAX];

    (void)state;
    for (size_t t = 0; t < 3; t++) {
        struct sl_sampler params = SL_SAMPLER_DEFAULT;
        struct draws sampler;
        double total = 0;

        params.temperature = temperatures[t];
        init(&sampler, params, 7, n);
        count(&sampler, logits, n_draws, counts);
        for (uint32_t i = 0; i < n; i++)
            total += exp(logits[i] / temperatures[t]);
        for (uint32_t i = 0; i < n; i++) {
            double p = exp(logits[i] / temperatures[t]) / total, mean = p * n_draws;

            /* Five standard deviations, and one for what is hardly ever drawn. */
            assert_true(fabs(counts[i] - mean) <= 5 * sqrt(mean * (1 - p)) + 1);
        }
        assert_int_equal(counts[4], 0);
    }
}

struct ranked {
    double p;
    float logit;
    uint32_t id;
};

static int compare_ranked(const void *left, const void *right)
{
    const struct ranked *a = left, *b = right;

    return a->logit != b->logit ? (a->logit < b->logit) - (a->logit > b->logit)
                                : (a->id > b->id) - (a->id < b->id);
}

/* Marks what the header says may come, by sorting everything. */
static void allow(const struct sl_sampler *params, const float *logits, uint32_t n,
                  bool allowed[N_VOCAB_MAX])
{
    struct ranked ranked[N_VOCAB_MAX];
    double total = 0, sum = 0;
    uint32_t limit = params->top_k && params->top_k < n ? params->top_k : n;

    memset(allowed, 0, N_VOCAB_MAX * sizeof(*allowed));
    for (uint32_t i = 0; i < n; i++)
        ranked[i] = (struct ranked){exp(logits[i] / params->temperature), logits[i], i};
    qsort(ranked, n, sizeof(ranked[0]), compare_ranked);
    for (uint32_t i = 0; i < limit; i++)
        total += ranked[i].p;
    for (uint32_t i = 0; i < limit && sum < params->top_p * total; i++) {
        allowed[ranked[i].id] = ranked[i].p >= params->min_p * ranked[0].p;
        sum += ranked[i].p;
    }
}

static void test_filters_keep_what_a_sort_would(void **state)
{
    static const uint32_t top_ks[] = {0, 1, 2, 5, 100};
    static const double top_ps[] = {1, 0.93, 0.51, 0.07}, min_ps[] = {0, 0.13, 1};
    uint32_t counts[N_VOCAB_MAX], n = 2, seed = 1;
    bool allowed[N_VOCAB_MAX];
    float logits[N_VOCAB_MAX];

    (void)state;
    for (int round = 0; round < 60; round++, n = 1 + n * 7 % 20) {
        struct sl_sampler params = {.temperature = 3.0,
                                    .top_k = top_ks[round % 5],
                                    .top_p = top_ps[round % 4],
                                    .min_p = min_ps[round % 3]};
        struct draws sampler;

        for (uint32_t i = 0; i < n; i++) { /* few different values: many are equal */
            seed = seed * 1664525 + 1013904223;
            logits[i] = (float)(seed >> 28) * 0.37f;
        }
        init(&sampler, params, seed, n);
        count(&sampler, logits, 4000, counts);
        allow(&params, logits, n, allowed);
        for (uint32_t i = 0; i < n; i++)
            if ((counts[i] > 0) != allowed[i])
                fail_msg("round %d: token %u of %u: drawn %u times, allowed %d", round, i, n,
                         counts[i], allowed[i]);
    }
}

/* Shares of 1/2, 1/4, 1/8, 1/8 in exact arithmetic: the sum that reaches top_p is the last. */
static void test_top_p_at_its_edge(void **state)
{
    struct sl_sampler params = SL_SAMPLER_DEFAULT;
    float logits[2] = {0.0f, 0.0f};
    uint32_t counts[N_VOCAB_MAX];
    struct draws sampler;

    (void)state;
    params.top_p = 0.5;
    init(&sampler, params, 3, 2);
    count(&sampler, logits, 100, counts);
    assert_int_equal(counts[0], 100);
    params.top_p = 0.500001;
    init(&sampler, params, 3, 2);
    count(&sampler, logits, 100, counts);
    assert_in_range(counts[0], 20, 80);
}

/* Min-p compares a probability with a number, so it shows how exact the sampler's exp is. */
static void test_min_p_at_its_edge(void **state)
{
    struct sl_sampler params = SL_SAMPLER_DEFAULT;
    uint32_t counts[N_VOCAB_MAX];
    struct draws sampler;

    (void)state;
    for (float gap = 0.01f; gap < 3; gap += 0.0371f) {
        const float logits[2] = {5.0f - gap, 5.0f};
        double share = exp((double)logits[0] - logits[1]);

        params.min_p = share * (1 - 1e-14);
        init(&sampler, params, 5, 2);
        count(&sampler, logits, 300, counts);
        assert_true(counts[0] > 0);
        params.min_p = share * (1 + 1e-14);
        init(&sampler, params, 5, 2);
        count(&sampler, logits, 300, counts);
        assert_int_equal(counts[0], 0);
    }
}

static void test_extremes(void **state)
{
    static const float far[] = {-3e38f, 3e38f, -INFINITY}, flat[] = {1e-3f, 2e-3f, 3e-3f};
    struct sl_sampler params = SL_SAMPLER_DEFAULT;
    uint32_t counts[N_VOCAB_MAX];
    struct draws sampler;

    (void)state;
    init(&sampler, params, 1, 3);
    count(&sampler, far, 100, counts);
    assert_int_equal(counts[1], 100);
    params.temperature = 1e-300;
    init(&sampler, params, 1, 3);
    count(&sampler, flat, 100, counts);
    assert_int_equal(counts[2], 100);
    params.temperature = 1e6; /* equal weights, as good as; yet the best stays the best */
    params.top_k = 1;
    init(&sampler, params, 1, 3);
    count(&sampler, flat, 100, counts);
    assert_int_equal(counts[2], 100);
    init(&sampler, params, 1, 1);
    assert_int_equal(sample(&sampler, flat), 0);
}

static void test_broken_logits(void **state)
{
    static const struct {
        float logits[3];
        const char *message;
    } cases[] = {{{0, NAN, 1}, "token 1 is nan"},
                 {{0, 1, INFINITY}, "token 2 is inf"},
                 {{-INFINITY, -INFINITY, -INFINITY}, "all logits"}};
    struct sl_sampler params = SL_SAMPLER_DEFAULT;
    struct draws sampler;
    uint32_t id = 77;

    (void)state;
    for (int greedy = 0; greedy < 2; greedy++) {
        params.temperature = greedy ? 0 : 1;
        init(&sampler, params, 1, 3);
        for (size_t i = 0; i < 3; i++) {
            struct sl_err err;

            assert_int_equal(
                sl_sampler_sample(&sampler.sampler, 0, cases[i].logits, 3, scratch, &id, &err),
                -SL_ECORRUPT);
            if (!strstr(err.message, cases[i].message))
                fail_msg("%s", err.message);
        }
    }
    assert_int_equal(id, 77);
}

static void test_parameters_that_are_refused(void **state)
{
    static const struct {
        struct sl_sampler params;
        const char *name;
    } cases[] = {{{-0.1, 1, 0, 0, 0}, "temperature"},
                 {{NAN, 1, 0, 0, 0}, "temperature"},
                 {{INFINITY, 1, 0, 0, 0}, "temperature"},
                 {{1, 0, 0, 0, 0}, "top-p"},
                 {{1, 1.1, 0, 0, 0}, "top-p"},
                 {{1, NAN, 0, 0, 0}, "top-p"},
                 {{1, 1, -0.1, 0, 0}, "min-p"},
                 {{1, 1, 1.5, 0, 0}, "min-p"}};

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct sl_err err;

        assert_int_equal(sl_sampler_check(&cases[i].params, &err), -EINVAL);
        assert_non_null(strstr(err.message, cases[i].name));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_a_seed_gives_these_tokens),
        cmocka_unit_test(test_only_seed_and_position_count),
        cmocka_unit_test(test_draws_follow_probabilities),
        cmocka_unit_test(test_filters_keep_what_a_sort_would),
        cmocka_unit_test(test_top_p_at_its_edge),
        cmocka_unit_test(test_min_p_at_its_edge),
        cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_broken_logits),
        cmocka_unit_test(test_parameters_that_are_refused),
    };

    return cmocka_run_group_tests_name("sampler", tests, make_scratch, free_scratch);
}
