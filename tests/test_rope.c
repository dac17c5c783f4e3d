/* Rotary positions: our own log, exp, sine and cosine against those of libm in double arithmetic,
 * over the released models' parameters, YaRN's extremes and random ones.
 *
 * With arguments (a config.json, and positions) it prints the angles' cosines and sines instead,
 * for tests/oracle/angles.py to compare. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "core/model/rope.h"
#include "tests/kernel_inputs.h"

#define PAIRS_MAX 256u

static struct sl_config released(void)
{
    return (struct sl_config){
        .qk_rope_head_dim = 64,
        .rope_theta = 10000,
        .compress_rope_theta = 160000,
        .rope_scaling = {.factor = 16,
                         .beta_fast = 32,
                         .beta_slow = 1,
                         .original_max_position_embeddings = 65536},
    };
}

/* The pair that turns `rotations` times in a full context. */
static double turning_pair(const struct sl_config *c, double rotations)
{
    double original = c->rope_scaling.original_max_position_embeddings;

    return c->qk_rope_head_dim * log(original / (rotations * 2 * M_PI)) /
           (2 * log(c->compress_rope_theta));
}

/* What share of its frequency a pair keeps; the rest of it is divided by the factor. */
static double kept_share(const struct sl_config *c, uint32_t pair)
{
    double low = fmax(floor(turning_pair(c, c->rope_scaling.beta_fast)), 0);
    double high = fmin(ceil(turning_pair(c, c->rope_scaling.beta_slow)), c->qk_rope_head_dim - 1);

    return 1 - fmin(fmax((pair - low) / (high == low ? 0.001 : high - low), 0), 1);
}

static void check_frequencies(const struct sl_config *c)
{
    float window[PAIRS_MAX], compressed[PAIRS_MAX];

    sl_rope_frequencies(c, SL_ROPE_WINDOW, window);
    sl_rope_frequencies(c, SL_ROPE_COMPRESSED, compressed);
    for (uint32_t i = 0; i < c->qk_rope_head_dim / 2; i++) {
        double plain = pow(c->rope_theta, -2.0 * i / c->qk_rope_head_dim);
        double far = pow(c->compress_rope_theta, -2.0 * i / c->qk_rope_head_dim);

        if (c->rope_scaling.original_max_position_embeddings) {
            double kept = kept_share(c, i);

            far = far / c->rope_scaling.factor * (1 - kept) + far * kept;
        }
        if (!(fabs((double)window[i] - plain) <= 1e-6 * plain))
            fail_msg("window frequency %u is %.9g, expected %.9g", i, (double)window[i], plain);
        if (!(fabs((double)compressed[i] - far) <= 1e-6 * far))
            fail_msg("compressed frequency %u is %.9g, expected %.9g", i, (double)compressed[i],
                     far);
    }
}

static void test_frequencies(void **state)
{
    struct sl_config c = released();

    (void)state;
    check_frequencies(&c);
    for (uint32_t dim = 2; dim <= 2 * PAIRS_MAX; dim += 2) {
        c.qk_rope_head_dim = dim;
        check_frequencies(&c);
    }
}

static void test_kinds(void **state)
{
    (void)state;
    assert_int_equal(sl_rope_kind_of(0), SL_ROPE_WINDOW);
    assert_int_equal(sl_rope_kind_of(4), SL_ROPE_COMPRESSED);
    assert_int_equal(sl_rope_kind_of(128), SL_ROPE_COMPRESSED);
}

static void test_yarn_extremes(void **state)
{
    /* Where the ramp begins and ends, in pairs of 64 rotary values over a base of 160,000. */
    static const struct {
        uint32_t original;
        double beta_fast, beta_slow, factor;
    } cases[] = {
        {0, 32, 1, 16},            /* no YaRN */
        {6, 32, 1, 16},            /* both ends at 0 */
        {1, 1, 1, 16},             /* it ends before it begins: nothing is slowed down */
        {64, 4, 0.5, 40},          /* a small original context */
        {65536, 32, 32, 16},       /* one step wide */
        {65536, 1, 32, 16},        /* fast and slow exchanged */
        {1 << 24, 1e-3, 1e-3, 16}, /* near the last pair */
        {1 << 24, 1e-3, 1e-3, 1},  /* a factor that changes nothing */
        {65536, 1e30, 1e-3, 1e30}, /* all pairs on the ramp */
        {65536, 1e30, 1e30, 1000},
    };
    struct sl_config c = released();

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        c.rope_scaling.original_max_position_embeddings = cases[i].original;
        c.rope_scaling.beta_fast = cases[i].beta_fast;
        c.rope_scaling.beta_slow = cases[i].beta_slow;
        c.rope_scaling.factor = cases[i].factor;
        check_frequencies(&c);
    }
    /* Both ends at the last pair. */
    c.compress_rope_theta = 2;
    c.rope_scaling = (struct sl_rope_scaling){16, 1, 1, 1 << 24};
    check_frequencies(&c);
    assert_true(turning_pair(&c, 1) > c.qk_rope_head_dim - 1);
}

static double random_power(struct rng *rng, double exponent_min, double exponent_max)
{
    double share = (double)rng_below(rng, 1u << 24) * 0x1p-24;

    return pow(10, exponent_min + (exponent_max - exponent_min) * share);
}

static void test_random_parameters(void **state)
{
    struct rng rng = {inputs_seed()};

    (void)state;
    for (int i = 0; i < 2000; i++) {
        struct sl_config c = {
            .qk_rope_head_dim = (uint32_t)(2 + 2 * rng_below(&rng, PAIRS_MAX)),
            .rope_theta = random_power(&rng, 0.302, 30),
            .compress_rope_theta = random_power(&rng, 0.302, 8),
            .rope_scaling = {.factor = random_power(&rng, 0, 4),
                             .beta_fast = random_power(&rng, -3, 3),
                             .beta_slow = random_power(&rng, -3, 3),
                             .original_max_position_embeddings =
                                 (uint32_t)random_power(&rng, 0, 7.2)},
        };

        check_frequencies(&c);
    }
}

static void check_angles(uint32_t n_pairs, const float *frequency, uint32_t position)
{
    float cosine[PAIRS_MAX], sine[PAIRS_MAX];

    sl_rope_angles(n_pairs, frequency, position, cosine, sine);
    for (uint32_t i = 0; i < n_pairs; i++) {
        double angle = (double)((float)position * frequency[i]); /* rounded to float32 first */

        if (!(fabs((double)cosine[i] - cos(angle)) <= 1e-7) ||
            !(fabs((double)sine[i] - sin(angle)) <= 1e-7))
            fail_msg("position %u, pair %u: cosine %.9g, sine %.9g; expected %.9g, %.9g", position,
                     i, (double)cosine[i], (double)sine[i], cos(angle), sin(angle));
    }
}

static void test_angles(void **state)
{
    struct sl_config c = released();
    float frequency[SL_ROPE_KINDS][PAIRS_MAX];

    (void)state;
    for (unsigned kind = 0; kind < SL_ROPE_KINDS; kind++) {
        sl_rope_frequencies(&c, (enum sl_rope_kind)kind, frequency[kind]);
        for (uint32_t position = 0; position < 2000; position++)
            check_angles(32, frequency[kind], position);
        for (uint32_t position = 2000; position < 1u << 24; position += position / 37)
            check_angles(32, frequency[kind], position);
        for (uint32_t power = 1u << 15; power <= 1u << 24; power *= 2)
            for (uint32_t position = power - 3; position <= power; position++)
                check_angles(32, frequency[kind], position);
    }
}

/* Where sine or cosine is nearly 0 the reduction has to be exact to far below the angle's own last
 * bit; these are the floats nearest to multiples of pi / 2. */
static void test_angles_near_quarter_turns(void **state)
{
    (void)state;
    for (uint32_t k = 1; k < 21000000; k += 1 + k / 5000) {
        float angle = (float)(k * M_PI_2), cosine, sine;
        double s, c;

        sl_rope_angles(1, &angle, 1, &cosine, &sine);
        s = sin((double)angle);
        c = cos((double)angle);
        assert_true(fabs((double)sine - s) <= 1e-7 * fabs(s));
        assert_true(fabs((double)cosine - c) <= 1e-7 * fabs(c));
    }
}

/* A line for each kind of layer, position and pair. */
static int print_angles(const char *path, char **positions)
{
    char text[8192];
    struct sl_config config;
    FILE *file = fopen(path, "re");
    size_t length = file ? fread(text, 1, sizeof(text), file) : 0;

    if (file)
        fclose(file);
    if (sl_config_parse(&config, text, length, path, NULL) < 0)
        return 1;
    for (unsigned kind = 0; kind < SL_ROPE_KINDS; kind++) {
        const uint32_t n_pairs = config.qk_rope_head_dim / 2;
        float frequency[PAIRS_MAX], cosine[PAIRS_MAX], sine[PAIRS_MAX];

        if (n_pairs > PAIRS_MAX)
            return 1;
        sl_rope_frequencies(&config, (enum sl_rope_kind)kind, frequency);
        for (char **at = positions; *at; at++) {
            const uint32_t position = (uint32_t)strtoul(*at, NULL, 10);

            sl_rope_angles(n_pairs, frequency, position, cosine, sine);
            for (uint32_t i = 0; i < n_pairs; i++)
                printf("%u %u %u %.9g %.9g\n", kind, position, i, (double)cosine[i],
                       (double)sine[i]);
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frequencies),   cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_yarn_extremes), cmocka_unit_test(test_random_parameters),
        cmocka_unit_test(test_angles),        cmocka_unit_test(test_angles_near_quarter_turns),
    };

    if (argc > 2)
        return print_angles(argv[1], argv + 2);
    return cmocka_run_group_tests_name("rope", tests, NULL, NULL);
}
