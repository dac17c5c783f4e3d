/* How many rows a batch's step gets: simulated machines with drives, cores and caches of all kinds
 * run steps of as many rows as the estimate asks for. It must come to where reading takes as long
 * as computing, and stay there; also where the machine changes under it, and from wherever it
 * begins. SL_SEED repeats a run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <inttypes.h>
#include <math.h>

#include <cmocka.h>

#include "daemon/scheduler/step_balance.h"
#include "tests/fixture_model.h"
#include "tests/kernel_inputs.h"

#define STEPS 100u

struct machine {
    double bytes_per_ns;
    double step_ns, row_ns; /* computing */
    double all_bytes;       /* of what a step reads that asks for all experts */
    double n_experts, per_row;
    double overlap; /* share of the shorter of reading and computing that the other hides */
    double noise;
    uint64_t random;
};

static double uniform(uint64_t *random, double least, double most)
{
    return least + (most - least) * fixture_below(random, 1000001) / 1e6;
}

static double bytes_of(const struct machine *m, double rows)
{
    return m->all_bytes * (1 - pow(1 - m->per_row / m->n_experts, rows));
}

/* Takes a step of so many rows. */
static struct sl_balance_sample take(struct machine *m, uint32_t rows)
{
    const double jitter = 1 + uniform(&m->random, -m->noise, m->noise);
    const double reading = bytes_of(m, rows) / m->bytes_per_ns * jitter;
    const double computing =
        (m->step_ns + m->row_ns * rows) * (1 + uniform(&m->random, -m->noise, m->noise));
    const double shorter = reading < computing ? reading : computing;
    const double longer = reading < computing ? computing : reading;
    const double elapsed = longer + (1 - m->overlap) * shorter;

    return (struct sl_balance_sample){
        .n_rows = rows,
        .elapsed_ns = (uint64_t)elapsed,
        .wait_ns = (uint64_t)(elapsed - computing),
        /* What has landed is noticed when somebody looks. */
        .busy_ns = (uint64_t)(reading > computing ? reading : (reading + elapsed) / 2),
        .read_bytes = (uint64_t)bytes_of(m, rows),
    };
}

/* The rows with which reading and computing take equally long; or more, with which what any step
 * takes is a fifth of it, or as many as a step has at least. */
static double balanced_rows(const struct machine *m)
{
    double low = 0, high = 1e6;

    while (high - low > 0.5) {
        const double rows = (low + high) / 2;

        if (m->step_ns + m->row_ns * rows < bytes_of(m, rows) / m->bytes_per_ns)
            low = rows;
        else
            high = rows;
    }
    low = low > 4 * m->step_ns / m->row_ns ? low : 4 * m->step_ns / m->row_ns;
    return low > SL_BALANCE_ROWS_MIN ? low : SL_BALANCE_ROWS_MIN;
}

static double run(struct machine *m, struct sl_step_balance *balance, uint32_t n_steps)
{
    double sum = 0;

    for (uint32_t i = 0; i < n_steps; i++) {
        const uint32_t rows = sl_step_balance_rows(balance);
        const struct sl_balance_sample sample = take(m, rows);

        sl_step_balance_add(balance, &sample);
        sum += i >= n_steps / 2 ? rows : 0;
    }
    return sum / (n_steps - n_steps / 2);
}

/* A machine whose balance is at `rows` rows. */
static struct machine make(uint64_t *random, double rows)
{
    struct machine m = {.bytes_per_ns = uniform(random, 0.2, 30),
                        .all_bytes = uniform(random, 1e9, 8e11),
                        .n_experts = 256 + 128 * fixture_below(random, 2),
                        .per_row = 6,
                        .overlap = uniform(random, 0.9, 1),
                        .noise = 0.02,
                        .random = *random};
    const double reading = bytes_of(&m, rows) / m.bytes_per_ns;

    m.step_ns = reading * uniform(random, 0.01, 0.15);
    m.row_ns = (reading - m.step_ns) / rows;
    return m;
}

/* Whatever was known at first of the drives: nothing, the truth, half or twice of it. */
static void test_balance_is_found(void **state)
{
    uint64_t random = inputs_seed();

    (void)state;
    for (uint32_t i = 0; i < 400; i++) {
        struct machine m = make(&random, exp(uniform(&random, log(300), log(8000))));
        const double at_first[] = {0, 1, 0.5, 2}, best = balanced_rows(&m);
        struct sl_step_balance balance = {.bytes_per_ns = m.bytes_per_ns * at_first[i % 4]};
        double rows = run(&m, &balance, STEPS);

        assert_true(rows > 0.75 * best && rows < 1.4 * best);
        /* The drive gets slow, as warm ones do, or another one is free again. */
        m.bytes_per_ns *= i % 2 ? 0.5 : 2;
        rows = run(&m, &balance, STEPS);
        assert_true(rows > 0.75 * balanced_rows(&m) && rows < 1.4 * balanced_rows(&m));
    }
}

/* With everything in the cache a step is as long as makes little of what any step takes. */
static void test_nothing_to_read(void **state)
{
    struct machine m = {.bytes_per_ns = 1,
                        .step_ns = 5e8,
                        .row_ns = 1e6,
                        .all_bytes = 0,
                        .n_experts = 256,
                        .per_row = 6,
                        .overlap = 1,
                        .noise = 0.02,
                        .random = inputs_seed()};
    struct sl_step_balance balance = {0};

    (void)state;
    assert_int_equal(sl_step_balance_rows(&balance), SL_BALANCE_ROWS_MIN);
    for (uint32_t rows = 200; rows <= 4000; rows += 200) { /* as others fill the steps */
        const struct sl_balance_sample sample = take(&m, rows);

        sl_step_balance_add(&balance, &sample);
    }
    assert_in_range(sl_step_balance_rows(&balance), 1000, 4000);
}

/* Whatever it is told, it names a number of rows. */
static void test_any_figures(void **state)
{
    uint64_t random = inputs_seed();

    (void)state;
    for (uint32_t i = 0; i < 20000; i++) {
        struct sl_step_balance balance = {.bytes_per_ns = fixture_below(&random, 2)};

        for (uint32_t k = 0; k < 5; k++) {
            const struct sl_balance_sample sample = {
                .n_rows = 1 + fixture_below(&random, 4096),
                .elapsed_ns = fixture_below(&random, 3) ? fixture_below(&random, 1u << 30) : 0,
                .wait_ns = fixture_below(&random, 3) ? fixture_below(&random, 1u << 30) : 0,
                .busy_ns = fixture_below(&random, 3) ? fixture_below(&random, 1u << 30) : 0,
                .read_bytes = fixture_below(&random, 3) ? fixture_below(&random, 1u << 30) : 0,
            };

            sl_step_balance_add(&balance, &sample);
            assert_true(sl_step_balance_rows(&balance) >= SL_BALANCE_ROWS_MIN);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_balance_is_found),
        cmocka_unit_test(test_nothing_to_read),
        cmocka_unit_test(test_any_figures),
    };

    print_message("SL_SEED=%" PRIu64 "\n", inputs_seed());
    return cmocka_run_group_tests_name("step balance", tests, NULL, NULL);
}
