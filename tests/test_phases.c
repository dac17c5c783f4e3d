/* The account of time: phases add up to the clock, waits and barriers are those that were, and a
 * step books every kind of work. Jobs of a known make run on pools of known size between readings
 * of the clock that must enclose what was booked; then a tiny model takes steps. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/base/clock.h"
#include "core/model/phase.h"
#include "core/base/pool.h"
#include "core/model/forward.h"
#include "tests/fixture_model.h"
#include "core/kernels/dispatch.h"
#include "tests/kv_rig.h"

#define WORK_NS UINT64_C(200000)

static void work_until(uint64_t end_ns)
{
    while (sl_clock_ns() < end_ns)
        ;
}

/* ---- an account between two readings -----------------------------------------------------------
 */

struct account {
    struct sl_pool *pool;
    struct sl_account begin;
    uint64_t before_ns, after_ns; /* around the first reading */
};

static struct account account_begin(struct sl_pool *pool)
{
    struct account account = {.pool = pool};

    account.before_ns = sl_clock_ns();
    account.begin = sl_pool_account(pool);
    account.after_ns = sl_clock_ns();
    return account;
}

/* What was booked lies between the inner and the outer time: nothing is lost, nothing doubled. */
static struct sl_account account_end(const struct account *account)
{
    uint64_t inner_ns = sl_clock_ns() - account->after_ns, outer_ns, sum_ns = 0;
    struct sl_account end = sl_pool_account(account->pool);
    struct sl_account booked = sl_account_difference(&account->begin, &end);

    outer_ns = sl_clock_ns() - account->before_ns;
    for (int phase = 0; phase < (int)SL_ACCOUNT_PHASES; phase++)
        sum_ns += booked.of[phase].work_ns + booked.of[phase].wait_ns;
    assert_in_range(sum_ns, inner_ns, outer_ns);
    return booked;
}

/* ---- the pool ----------------------------------------------------------------------------------
 */

struct job {
    atomic_uint n_parts;
    atomic_bool worker_has_begun, driver_done;
    bool worker_is_late;
};

static void run_part(void *context, size_t first, size_t end, uint32_t thread_index)
{
    struct job *job = context;

    (void)first;
    (void)end;
    atomic_fetch_add(&job->n_parts, 1);
    if (job->worker_is_late && thread_index == 1) {
        atomic_store(&job->worker_has_begun, true);
        while (!atomic_load(&job->driver_done))
            ;
        work_until(sl_clock_ns() + WORK_NS);
    }
    if (thread_index == 0) {
        /* Or the driver would take over the worker's part. */
        while (job->worker_is_late && !atomic_load(&job->worker_has_begun))
            ;
        atomic_store(&job->driver_done, true);
    }
}

static void test_phases_add_up(void **state)
{
    struct sl_account booked;
    struct account account;
    struct sl_pool *pool;

    (void)state;
    assert_int_equal(sl_pool_create(&pool, 1, NULL), 0);
    account = account_begin(pool);
    assert_int_equal(sl_pool_phase(pool, SL_PHASE_ROUTER), SL_PHASE_OUTSIDE);
    work_until(sl_clock_ns() + WORK_NS);
    assert_int_equal(sl_pool_phase(pool, SL_PHASE_HEAD), SL_PHASE_ROUTER);
    work_until(sl_clock_ns() + 2 * WORK_NS);
    sl_pool_count(pool, SL_PHASE_HEAD, 10, 1000);
    sl_pool_count(pool, SL_PHASE_HEAD, 1, 100);
    assert_int_equal(sl_pool_phase(pool, SL_PHASE_OUTSIDE), SL_PHASE_HEAD);
    sl_pool_count(pool, SL_PHASE_OUTSIDE, 7, 7);
    booked = account_end(&account);
    assert_true(booked.of[SL_PHASE_ROUTER].work_ns >= WORK_NS);
    assert_true(booked.of[SL_PHASE_HEAD].work_ns >= 2 * WORK_NS);
    assert_int_equal(booked.of[SL_PHASE_HEAD].read_bytes, 11);
    assert_int_equal(booked.of[SL_PHASE_HEAD].multiplications, 1100);
    assert_int_equal(booked.of[SL_PHASE_ROUTER].read_bytes, 0);
    assert_int_equal(booked.of[SL_PHASE_OUTSIDE].read_bytes, 7);
    sl_pool_destroy(pool);
}

static void take_a_while(void *context, size_t first, size_t end, uint32_t thread_index)
{
    (void)context, (void)first, (void)end, (void)thread_index;
    work_until(sl_clock_ns() + 2 * WORK_NS);
}

/* A job's time is its phase's; what is done between jobs is the phase's that was begun. */
static void test_jobs_are_booked_apart(void **state)
{
    struct sl_account booked;
    struct account account;
    struct sl_pool *pool;

    (void)state;
    assert_int_equal(sl_pool_create(&pool, 2, NULL), 0);
    account = account_begin(pool);
    sl_pool_phase(pool, SL_PHASE_REST);
    for (size_t n = 0; n <= 2; n++) { /* no item, one for the driver alone, one for each */
        sl_pool_run(pool, SL_PHASE_ROUTER, n, 1, take_a_while, NULL);
        work_until(sl_clock_ns() + WORK_NS);
    }
    assert_int_equal(sl_pool_phase(pool, SL_PHASE_OUTSIDE), SL_PHASE_REST);
    booked = account_end(&account);
    assert_true(booked.of[SL_PHASE_ROUTER].work_ns >= 4 * WORK_NS);
    assert_true(booked.of[SL_PHASE_REST].work_ns >= 3 * WORK_NS);
    assert_int_equal(booked.of[SL_PHASE_ROUTER].n_barriers, 1);
    assert_int_equal(booked.of[SL_PHASE_REST].n_barriers + booked.of[SL_PHASE_REST].wait_ns, 0);
    sl_pool_destroy(pool);
}

/* Jobs are barriers when, and only when, more than one thread takes part. */
static void test_barriers_are_counted(void **state)
{
    (void)state;
    for (uint32_t n_threads = 1; n_threads <= 4; n_threads++) {
        uint64_t n_barriers = 0;
        struct sl_account booked;
        struct account account;
        struct sl_pool *pool;

        assert_int_equal(sl_pool_create(&pool, n_threads, NULL), 0);
        account = account_begin(pool);
        for (size_t n = 0; n < 12; n++) {
            for (size_t grain = 1; grain <= 9; grain += 4) {
                struct job job = {0};

                sl_pool_run(pool, SL_PHASE_ATTENTION, n, grain, run_part, &job);
                n_barriers += atomic_load(&job.n_parts) > 1;
            }
        }
        booked = account_end(&account);
        assert_int_equal(booked.of[SL_PHASE_ATTENTION].n_barriers, n_barriers);
        assert_int_equal(n_barriers > 0, n_threads > 1);
        assert_int_equal(booked.of[SL_PHASE_OUTSIDE].n_barriers, 0);
        if (n_threads == 1)
            assert_int_equal(booked.of[SL_PHASE_ATTENTION].wait_ns, 0);
        sl_pool_destroy(pool);
    }
}

/* One of two threads is late by WORK_NS, so that they wait half of it on average. */
static void test_waits_are_barriers(void **state)
{
    struct sl_account booked;
    struct account account;
    struct sl_pool *pool;
    struct job job;
    uint64_t waited_ns = 0;

    (void)state;
    assert_int_equal(sl_pool_create(&pool, 2, NULL), 0);
    /* Several tries: the system may interrupt the driver where it would wait. */
    for (int i = 0; i < 50 && waited_ns < WORK_NS / 2; i++) {
        job = (struct job){.worker_is_late = true};
        account = account_begin(pool);
        sl_pool_run(pool, SL_PHASE_ATTENTION, 2, 1, run_part, &job);
        booked = account_end(&account);
        waited_ns = booked.of[SL_PHASE_ATTENTION].wait_ns;
        assert_true(booked.of[SL_PHASE_ATTENTION].work_ns >= WORK_NS / 2);
    }
    assert_true(waited_ns >= WORK_NS / 2);
    sl_pool_destroy(pool);
}

/* ---- steps -------------------------------------------------------------------------------------
 */

#define PROMPT_TOKENS 32u /* long enough for the indexer to choose: index_topk is 3 */

struct rig {
    struct sl_config config;
    struct fixture_weights source;
    struct fixture_experts experts;
    struct sl_weights weights;
    struct sl_kernels kernels;
    struct sl_compute compute;
    struct sl_forward *forward;
    struct sl_kv_pool kv_pool;
    struct sl_kv_cache kv;
    int32_t tokens[PROMPT_TOKENS + 1];
};

static void rig_init(struct rig *rig, uint32_t n_threads)
{
    struct sl_forward_params params = {
        .config = &rig->config,
        .weights = &rig->weights,
        .compute = &rig->compute,
        .source = &rig->experts.source,
        .tokens_max = PROMPT_TOKENS,
        .context_max = PROMPT_TOKENS + 1,
        .spans_max = 1,
    };

    fixture_config(&rig->config);
    fixture_weights_init(&rig->source, &rig->config, 1);
    fixture_experts_init(&rig->experts, &rig->config, rig->config.n_routed_experts, 2);
    assert_int_equal(sl_kernels_select(&rig->kernels, NULL, NULL), 0);
    rig->compute = (struct sl_compute){.kernels = &rig->kernels, .numerics = SL_NUMERICS_NATIVE};
    assert_int_equal(sl_pool_create(&rig->compute.pool, n_threads, NULL), 0);
    assert_int_equal(fixture_weights_load(&rig->source, &rig->weights, &rig->config, &fixture_mtp,
                                          &sl_weights_all_resident, rig->compute.pool, NULL),
                     0);
    assert_int_equal(sl_forward_create(&rig->forward, &params, NULL), 0);
    kv_rig_pool(&rig->kv_pool, &rig->config, rig->config.num_hidden_layers + 1, SL_NUMERICS_NATIVE,
                1, PROMPT_TOKENS + 1);
    assert_int_equal(sl_kv_cache_init(&rig->kv, &rig->kv_pool, PROMPT_TOKENS + 1, NULL), 0);
    for (uint32_t i = 0; i <= PROMPT_TOKENS; i++)
        rig->tokens[i] = (int32_t)(i * 7 % rig->config.vocab_size);
}

static void rig_fini(struct rig *rig)
{
    sl_kv_cache_fini(&rig->kv);
    sl_kv_pool_fini(&rig->kv_pool);
    sl_forward_destroy(rig->forward);
    sl_weights_fini(&rig->weights);
    sl_pool_destroy(rig->compute.pool);
    fixture_experts_fini(&rig->experts);
    fixture_weights_fini(&rig->source);
}

static void take_time(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    (void)rows;
    *(uint32_t *)context += n_rows;
    work_until(sl_clock_ns() + n_rows * WORK_NS);
}

static struct sl_account step(struct rig *rig, uint32_t n_tokens, bool mtp, uint64_t *n_pins)
{
    struct sl_span span = {&rig->kv, rig->tokens, n_tokens, SL_LOGITS_ALL};
    struct account account = account_begin(rig->compute.pool);
    struct sl_account booked;
    uint32_t n_rows = 0;
    const struct sl_step_request request = {
        .spans = &span, .n_spans = 1, .on_logits = take_time, .on_logits_context = &n_rows};

    *n_pins = rig->experts.n_pins;
    assert_int_equal((mtp ? sl_forward_mtp : sl_forward_step)(rig->forward, &request, NULL), 0);
    *n_pins = rig->experts.n_pins - *n_pins;
    booked = account_end(&account);
    assert_int_equal(n_rows, n_tokens);
    assert_true(booked.of[SL_PHASE_OUTSIDE].work_ns >= n_tokens * WORK_NS);
    assert_int_equal(booked.of[SL_PHASE_OUTSIDE].n_barriers, 0);
    return booked;
}

static void test_a_step_books_every_kind_of_work(void **state)
{
    static const enum sl_phase linears[] = {SL_PHASE_ATTENTION_LINEARS, SL_PHASE_SHARED_LINEARS,
                                            SL_PHASE_ROUTED_LINEARS,    SL_PHASE_HEAD,
                                            SL_PHASE_ATTENTION,         SL_PHASE_INDEXER,
                                            SL_PHASE_HYPER_CONNECTION,  SL_PHASE_ROUTER};
    static const enum sl_phase others[] = {SL_PHASE_COMPRESSOR, SL_PHASE_QUANTISE, SL_PHASE_REST};

    (void)state;
    for (uint32_t n_threads = 1; n_threads <= 3; n_threads += 2) {
        static struct rig rig;
        const struct sl_config *c = &rig.config;
        uint64_t hidden, inner, k, n_pins, expert_bytes;
        struct sl_account booked;

        rig = (struct rig){0};
        rig_init(&rig, n_threads);
        hidden = c->hidden_size, inner = c->moe_intermediate_size, k = c->num_experts_per_tok;
        booked = step(&rig, PROMPT_TOKENS, false, &n_pins);
        for (size_t i = 0; i < sizeof(linears) / sizeof(linears[0]); i++) {
            assert_true(booked.of[linears[i]].work_ns > 0);
            assert_true(booked.of[linears[i]].read_bytes > 0);
            assert_true(booked.of[linears[i]].multiplications > 0);
        }
        for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
            assert_true(booked.of[others[i]].work_ns > 0);
        assert_int_equal(booked.of[SL_PHASE_ROUTED_LINEARS].wait_ns > 0, n_threads > 1);
        /* The fixture has no drive. */
        assert_int_equal(booked.of[SL_PHASE_DRIVE].work_ns, 0);
        assert_int_equal(booked.of[SL_PHASE_REPACK].work_ns, 0);

        expert_bytes = 2 * sl_r16_tile_count(inner) * sl_r16_fp4_tile_bytes(hidden) +
                       sl_r16_tile_count(hidden) * sl_r16_fp4_tile_bytes(inner);
        assert_int_equal(booked.of[SL_PHASE_ROUTED_LINEARS].multiplications,
                         PROMPT_TOKENS * c->num_hidden_layers * k * 3 * hidden * inner);
        assert_int_equal(booked.of[SL_PHASE_ROUTED_LINEARS].read_bytes, n_pins * expert_bytes);
        assert_int_equal(booked.of[SL_PHASE_SHARED_LINEARS].multiplications,
                         PROMPT_TOKENS * c->num_hidden_layers * 3 * hidden * inner);
        assert_int_equal(booked.of[SL_PHASE_HEAD].multiplications,
                         PROMPT_TOKENS * c->vocab_size * hidden);

        booked = step(&rig, 1, false, &n_pins);
        assert_int_equal(n_pins, c->num_hidden_layers * k);
        assert_int_equal(booked.of[SL_PHASE_HEAD].multiplications, c->vocab_size * hidden);
        rig_fini(&rig);
    }
}

/* The MTP block's steps end outside too, also one without tokens. */
static void test_mtp_steps_are_booked(void **state)
{
    static struct rig rig;
    const struct sl_config *c = &rig.config;
    uint64_t n_pins, hidden;
    struct sl_account booked;

    (void)state;
    rig = (struct rig){0};
    rig_init(&rig, 2);
    hidden = c->hidden_size;
    step(&rig, 3, false, &n_pins);
    booked = step(&rig, 3, true, &n_pins);
    assert_int_equal(booked.of[SL_PHASE_HEAD].multiplications,
                     3 * (c->vocab_size * hidden + (1 + c->hc_mult) * hidden * hidden));
    step(&rig, 1, false, &n_pins);
    booked = step(&rig, 0, true, &n_pins);
    assert_int_equal(sl_pool_phase(rig.compute.pool, SL_PHASE_OUTSIDE), SL_PHASE_OUTSIDE);
    rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_phases_add_up),
        cmocka_unit_test(test_jobs_are_booked_apart),
        cmocka_unit_test(test_barriers_are_counted),
        cmocka_unit_test(test_waits_are_barriers),
        cmocka_unit_test(test_a_step_books_every_kind_of_work),
        cmocka_unit_test(test_mtp_steps_are_booked),
    };

    return cmocka_run_group_tests_name("phases", tests, NULL, NULL);
}
