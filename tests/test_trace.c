/* Traces and their replay: what is written is read back, whatever is changed in the file is
 * refused, and a replay loads what a plain model of the cache loads. Random traces are written and
 * damaged; LRU is compared with a list, and the optimum against trying out every choice. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "cache/cache_replay.h"
#include "cache/trace.h"
#include "core/base/file.h"
#include "tests/fixture_checkpoint.h"
#include "tests/io_fault.h"

#define TOKENS_MAX 400u
#define LAYERS 3u
#define PER_TOKEN 2u

struct fixture {
    char folder[FIXTURE_PATH_BYTES], path[FIXTURE_PATH_BYTES + 16];
};

static uint32_t below(uint64_t *random, uint32_t limit)
{
    return (uint32_t)(io_fault_random(random) % limit);
}

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    fixture_folder_create(f->folder);
    snprintf(f->path, sizeof(f->path), "%s/trace", f->folder);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    fixture_folder_remove(f->folder);
    free(f);
    return 0;
}

static struct sl_trace_shape shape_of(uint32_t n_experts)
{
    return (struct sl_trace_shape){.num_hidden_layers = LAYERS,
                                   .num_hash_layers = 1,
                                   .n_routed_experts = n_experts,
                                   .n_per_token = PER_TOKEN,
                                   .hidden_size = 256,
                                   .moe_intermediate_size = 128,
                                   .expert_dtype = n_experts % 2 ? SL_EXPERT_FP8 : SL_EXPERT_FP4};
}

/* Writes n_tokens tokens in steps of up to step_max, and returns their experts in token-major
 * order. The caller frees them. */
static uint16_t *write_trace(const char *path, uint32_t n_experts, uint32_t n_tokens,
                             uint32_t step_max, uint64_t seed)
{
    const struct sl_trace_shape shape = shape_of(n_experts);
    uint16_t *experts = calloc(n_tokens, LAYERS * sizeof(*experts) * PER_TOKEN);
    uint16_t layer_major[TOKENS_MAX * PER_TOKEN];
    struct sl_trace_writer *writer;
    FILE *file = fopen(path, "wb");

    assert_non_null(file);
    assert_non_null(experts);
    for (uint32_t i = 0; i < n_tokens * LAYERS; i++) {
        uint16_t a = (uint16_t)below(&seed, n_experts), b;

        do /* a few are asked for more often */
            b = (uint16_t)below(&seed, below(&seed, 2) ? n_experts : 3);
        while (a == b);
        experts[i * PER_TOKEN] = a < b ? a : b;
        experts[i * PER_TOKEN + 1] = a < b ? b : a;
    }
    assert_int_equal(sl_trace_writer_create(&writer, file, &shape, NULL), 0);
    for (uint32_t first = 0; first < n_tokens;) {
        uint32_t n = 1 + below(&seed, step_max);

        n = n < n_tokens - first ? n : n_tokens - first;
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            for (uint32_t i = 0; i < n; i++)
                memcpy(layer_major + i * PER_TOKEN,
                       experts + ((first + i) * LAYERS + layer) * PER_TOKEN,
                       sizeof(*experts) * PER_TOKEN);
            sl_trace_writer_add(writer, layer, n, layer_major);
        }
        first += n;
    }
    assert_int_equal(sl_trace_writer_finish(writer, NULL), 0);
    assert_int_equal(fclose(file), 0);
    return experts;
}

static void test_what_is_written_is_read(void **state)
{
    const struct fixture *f = *state;
    static const uint32_t n_experts[] = {4, 256, 257, 4000};

    for (uint32_t i = 0; i < 4; i++) {
        const struct sl_trace_shape shape = shape_of(n_experts[i]);
        uint16_t *experts = write_trace(f->path, n_experts[i], TOKENS_MAX, 1 + 50 * i, i);
        uint64_t n_tokens = 0;
        struct sl_trace trace;

        assert_int_equal(sl_trace_read(&trace, f->path, NULL), 0);
        assert_memory_equal(&trace.shape, &shape, sizeof(shape));
        assert_int_equal(sl_trace_expert_bytes(&shape),
                         3 * (n_experts[i] % 2 ? 32768 + 2 * 4 : 32768 / 2 + 32768 / 32));
        assert_int_equal(trace.n_tokens, TOKENS_MAX);
        for (uint64_t step = 0; step < trace.n_steps; step++)
            n_tokens += trace.step_tokens[step];
        assert_int_equal(n_tokens, TOKENS_MAX);
        assert_memory_equal(trace.experts, experts,
                            TOKENS_MAX * LAYERS * PER_TOKEN * sizeof(*experts));
        sl_trace_fini(&trace);
        free(experts);
    }
}

static int parse(const uint8_t *bytes, size_t n, struct sl_err *err)
{
    uint8_t *exact = malloc(n ? n : 1); /* so that reading past it shows */
    struct sl_trace trace;
    int rc;

    assert_non_null(exact);
    memcpy(exact, bytes, n);
    err->code = 0;
    rc = sl_trace_parse(&trace, exact, n, "damaged", err);
    if (rc == 0)
        sl_trace_fini(&trace);
    free(exact);
    return rc;
}

/* Every byte changed, and every length. */
static void test_damage_is_refused(void **state)
{
    const struct fixture *f = *state;
    struct sl_err err;
    size_t size;
    char *text;
    uint8_t *bytes;

    free(write_trace(f->path, 9, 30, 4, 1));
    assert_int_equal(sl_file_read_all(f->path, 1 << 20, &text, &size, NULL), 0);
    bytes = (uint8_t *)text;
    assert_int_equal(parse(bytes, size, &err), 0);
    for (size_t i = 0; i < size; i++) {
        int rc;

        for (uint32_t bit = 0; bit < 8; bit++) {
            bytes[i] ^= (uint8_t)(1u << bit);
            rc = parse(bytes, size, &err);
            assert_true(rc == -SL_ECORRUPT || rc == -SL_EFORMAT);
            assert_int_equal(err.code, rc);
            assert_non_null(strstr(err.message, "damaged: "));
            bytes[i] ^= (uint8_t)(1u << bit);
        }
        rc = parse(bytes, i, &err);
        assert_true(rc == -SL_ECORRUPT || rc == -SL_EFORMAT);
    }
    free(text);
    assert_int_equal(sl_trace_read(&(struct sl_trace){0}, f->folder, &err), -SL_EFORMAT);
    assert_int_equal(sl_trace_read(&(struct sl_trace){0}, "no/such/file", &err), -ENOENT);
}

/* A run that failed inside a step, and a disk that is full. */
static void test_half_a_trace_is_refused(void **state)
{
    const struct sl_trace_shape shape = shape_of(9);
    const struct fixture *f = *state;
    const uint16_t experts[PER_TOKEN] = {2, 5};
    struct sl_trace_writer *writer;
    struct sl_trace trace;
    struct sl_err err;

    for (uint32_t layers = 0; layers < LAYERS; layers++) {
        FILE *file = fopen(f->path, "wb");

        assert_non_null(file);
        assert_int_equal(sl_trace_writer_create(&writer, file, &shape, NULL), 0);
        for (uint32_t layer = 0; layer < layers; layer++)
            sl_trace_writer_add(writer, layer, 1, experts);
        assert_int_equal(sl_trace_writer_finish(writer, &err), layers ? -EIO : 0);
        assert_int_equal(fclose(file), 0);
        assert_int_equal(sl_trace_read(&trace, f->path, &err), -SL_ECORRUPT);
        assert_true(layers || strstr(err.message, "no token"));
    }
}

/* ---- replay -----------------------------------------------------------------------------------
 */

static int create_plan(struct sl_replay_plan **ret_plan, const struct sl_trace *trace,
                       uint32_t segment_tokens)
{
    const struct sl_replay_steps steps = {.segment_tokens = segment_tokens};

    return sl_replay_plan_create(ret_plan, trace, &steps, NULL);
}

/* Misses of LRU without prefetch, one token at a time: resident ids by latest demand, oldest first.
 */
static uint64_t count_lru_loads(const uint16_t *experts, uint32_t n_experts, uint32_t n_tokens,
                                uint32_t n_slots)
{
    uint32_t ids[256], n = 0;
    uint64_t n_loads = 0;

    for (uint32_t i = 0; i < n_tokens * LAYERS; i++) {
        for (uint32_t s = 0; s < PER_TOKEN; s++) {
            uint32_t id = i % LAYERS * n_experts + experts[i * PER_TOKEN + s], at = 0;

            while (at < n && ids[at] != id)
                at++;
            n_loads += at == n;
            if (at < n)
                memmove(ids + at, ids + at + 1, (--n - at) * sizeof(*ids));
        }
        while (n + PER_TOKEN > n_slots)
            memmove(ids, ids + 1, --n * sizeof(*ids));
        for (uint32_t s = 0; s < PER_TOKEN; s++)
            ids[n++] = i % LAYERS * n_experts + experts[i * PER_TOKEN + s];
    }
    return n_loads;
}

static void test_lru_is_that_of_a_list(void **state)
{
    const struct fixture *f = *state;

    for (uint32_t n_slots = PER_TOKEN; n_slots <= 36; n_slots++) {
        uint16_t *experts = write_trace(f->path, 12, TOKENS_MAX, 9, n_slots);
        struct sl_slot_counters c;
        struct sl_replay_plan *plan;
        struct sl_trace trace;

        assert_int_equal(sl_trace_read(&trace, f->path, NULL), 0);
        trace.shape.num_hash_layers = 0;
        assert_int_equal(create_plan(&plan, &trace, 1), 0);
        sl_trace_fini(&trace);
        assert_int_equal(sl_replay_run(plan, &sl_policy_lru, n_slots, &c, NULL), 0);
        assert_int_equal(c.n_requests, TOKENS_MAX * LAYERS * PER_TOKEN);
        assert_int_equal(c.n_loads, count_lru_loads(experts, 12, TOKENS_MAX, n_slots));
        assert_int_equal(c.n_hits, c.n_requests - c.n_loads);
        assert_int_equal(c.n_evictions, c.n_loads - (c.n_loads < n_slots ? c.n_loads : n_slots));
        sl_replay_plan_destroy(plan);
        free(experts);
    }
}

#define FEW_EXPERTS 4u
#define ID_SETS (1u << LAYERS * FEW_EXPERTS)

/* The fewest loads with which each set of ids can be resident after each demand; the best of them
 * at the end. */
static uint32_t fewest_loads(const uint16_t *experts, uint32_t n_demands, uint32_t n_slots)
{
    uint32_t *now = calloc(ID_SETS, sizeof(*now)), *next = calloc(ID_SETS, sizeof(*next));
    uint32_t fewest = UINT32_MAX;

    assert_true(now && next);
    memset(now, 0xff, ID_SETS * sizeof(*now));
    now[0] = 0;
    for (uint32_t i = 0; i < n_demands; i++) {
        uint32_t wanted = 0, *swap = now;

        for (uint32_t s = 0; s < PER_TOKEN; s++)
            wanted |= 1u << (i % LAYERS * FEW_EXPERTS + experts[i * PER_TOKEN + s]);
        memset(next, 0xff, ID_SETS * sizeof(*next));
        for (uint32_t set = 0; set < ID_SETS; set++) {
            const uint32_t spare = set & ~wanted;
            uint32_t loads, kept = spare;

            if (now[set] == UINT32_MAX)
                continue;
            loads = now[set] + (uint32_t)__builtin_popcount(wanted & ~set);
            for (bool more = true; more; kept = (kept - 1) & spare) {
                uint32_t after = kept | wanted;

                if ((uint32_t)__builtin_popcount(after) <= n_slots && loads < next[after])
                    next[after] = loads;
                more = kept != 0;
            }
        }
        now = next;
        next = swap;
    }
    for (uint32_t set = 0; set < ID_SETS; set++)
        fewest = now[set] < fewest ? now[set] : fewest;
    free(now);
    free(next);
    return fewest;
}

static void test_nothing_beats_the_optimum(void **state)
{
    const struct fixture *f = *state;

    for (uint64_t seed = 0; seed < 12; seed++) {
        const uint32_t n_tokens = 20, n_slots = 3 + (uint32_t)seed % 5;
        uint16_t *experts = write_trace(f->path, FEW_EXPERTS, n_tokens, 3, seed);
        struct sl_slot_counters c;
        struct sl_replay_plan *plan;
        struct sl_trace trace;

        assert_int_equal(sl_trace_read(&trace, f->path, NULL), 0);
        assert_int_equal(create_plan(&plan, &trace, 1), 0);
        assert_int_equal(sl_replay_run(plan, NULL, n_slots, &c, NULL), 0);
        assert_int_equal(c.n_loads, fewest_loads(experts, n_tokens * LAYERS, n_slots));
        sl_replay_plan_destroy(plan);
        sl_trace_fini(&trace);
        free(experts);
    }
}

/* Longer steps ask for no expert twice; all together, each is loaded once. */
static void test_segments(void **state)
{
    const struct fixture *f = *state;
    uint16_t *experts = write_trace(f->path, 12, TOKENS_MAX, 9, 3);
    static const uint32_t segments[] = {0, 1, 7, TOKENS_MAX, TOKENS_MAX + 1};
    uint64_t n_loads = 0, n_requests = UINT64_MAX;
    struct sl_trace trace;

    assert_int_equal(sl_trace_read(&trace, f->path, NULL), 0);
    for (uint32_t i = 0; i < 5; i++) {
        const struct sl_policy_ops *policies[] = {&sl_policy_frequency, &sl_policy_lru, NULL};
        struct sl_slot_counters c;
        struct sl_replay_plan *plan;

        assert_int_equal(create_plan(&plan, &trace, segments[i]), 0);
        for (uint32_t p = 0; p < 3; p++) {
            assert_int_equal(sl_replay_run(plan, policies[p], 5, &c, NULL), 0);
            assert_true(c.n_loads >= c.n_evictions && c.n_loads - c.n_evictions == 5);
            assert_int_equal(sl_replay_run(plan, policies[p], 3 * 12, &c, NULL), 0);
            assert_int_equal(c.n_loads, 36);
            assert_int_equal(c.n_hits + c.n_loads, c.n_requests);
        }
        n_loads = c.n_loads;
        if (i > 0) {
            assert_true(c.n_requests <= n_requests);
            n_requests = c.n_requests;
        }
        sl_replay_plan_destroy(plan);
    }
    assert_int_equal(n_requests, n_loads);
    sl_trace_fini(&trace);
    free(experts);
}

/* 100 texts in lockstep ask for all experts of every layer, in a cycle of 36 through 20 slots. By
 * the time of its last use everything would be gone before it comes again; what is pinned is found.
 * Where the cache holds the cycle, and where a few texts are no sweep, nothing is different. */
static void test_sweeps_pin(void **state)
{
    static const struct sl_policy_ops *const policies[] = {&sl_policy_frequency, &sl_policy_lru};
    const uint32_t n_experts = 12, n_slots = 20, n_all = LAYERS * n_experts;
    const uint32_t n_pinned = (n_slots - n_slots / SL_TURNING_SHARE) / LAYERS,
                   n_steps = TOKENS_MAX / 100;
    const struct fixture *f = *state;
    const struct sl_replay_steps few = {.n_sequences = 2}, many = {.n_sequences = 100};
    uint16_t *experts = write_trace(f->path, n_experts, TOKENS_MAX, 9, 7);
    struct sl_replay_plan *plan;
    struct sl_slot_counters c;
    struct sl_trace trace;
    struct sl_err err;

    assert_int_equal(sl_trace_read(&trace, f->path, NULL), 0);
    trace.shape.num_hash_layers = 0;
    assert_int_equal(sl_replay_plan_create(&plan, &trace, &many, NULL), 0);
    assert_int_equal(sl_replay_plan_tokens(plan), TOKENS_MAX);
    for (uint32_t p = 0; p < 2; p++) {
        assert_int_equal(sl_replay_run(plan, policies[p], n_slots, &c, NULL), 0);
        assert_int_equal(c.n_requests, n_steps * n_all);
        assert_int_equal(c.n_sweep_requests, c.n_requests);
        assert_int_equal(c.n_sweep_hits, c.n_hits);
        /* The second sweep may find in the first's order what later ones do not. */
        assert_in_range(c.n_loads, n_all + (n_steps - 2) * (n_all - LAYERS * n_pinned),
                        n_all + (n_steps - 1) * (n_all - LAYERS * n_pinned));
        assert_int_equal(sl_replay_run(plan, policies[p], n_all, &c, NULL), 0);
        assert_int_equal(c.n_loads, n_all);
    }
    assert_int_equal(sl_replay_run(plan, NULL, n_slots, &c, NULL), 0);
    assert_int_equal(c.n_sweep_requests, 0);
    sl_replay_plan_destroy(plan);

    /* With certain experts prefetched for each step, nothing more is read for that. */
    trace.shape.num_hash_layers = 2;
    assert_int_equal(sl_replay_plan_create(&plan, &trace, &many, NULL), 0);
    for (uint32_t p = 0; p < 2; p++) {
        assert_int_equal(sl_replay_run(plan, policies[p], n_slots, &c, NULL), 0);
        assert_true(c.n_prefetch_hits > 0);
        assert_int_equal(c.n_loads + c.n_hits, c.n_requests);
        assert_in_range(c.n_hits, (n_steps - 2) * LAYERS * n_pinned,
                        (n_steps - 1) * LAYERS * n_pinned);
    }
    sl_replay_plan_destroy(plan);
    trace.shape.num_hash_layers = 0;

    assert_int_equal(sl_replay_plan_create(&plan, &trace, &few, NULL), 0);
    assert_int_equal(sl_replay_run(plan, &sl_policy_lru, n_slots, &c, NULL), 0);
    assert_int_equal(c.n_sweep_requests, 0);
    sl_replay_plan_destroy(plan);
    assert_int_equal(sl_replay_plan_create(&plan, &trace,
                                           &(struct sl_replay_steps){.n_sequences = TOKENS_MAX + 1},
                                           &err),
                     -SL_EFORMAT);
    sl_trace_fini(&trace);
    free(experts);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_written_is_read),
        cmocka_unit_test(test_damage_is_refused),
        cmocka_unit_test(test_half_a_trace_is_refused),
        cmocka_unit_test(test_lru_is_that_of_a_list),
        cmocka_unit_test(test_nothing_beats_the_optimum),
        cmocka_unit_test(test_segments),
        cmocka_unit_test(test_sweeps_pin),
    };

    return cmocka_run_group_tests_name("trace", tests, set_up, tear_down);
}
