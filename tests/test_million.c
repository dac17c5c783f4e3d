/* A context of a million tokens: what it takes in memory at the released models' sizes, by a sum of
 * its own and in pages that are really there, and that the last of its tokens are computed like any
 * others. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/kernels/dispatch.h"
#include "core/model/forward.h"
#include "tests/fixture_model.h"
#include "tests/kv_rig.h"
#include "tools/bench/bench_past.h"

#define MILLION 1048576u
#define PRO_BYTES_MAX 5.5e9 /* the design's */

static void read_config(const char *path, struct sl_config *config)
{
    char text[8192];
    FILE *file = fopen(path, "re");
    size_t length;

    assert_non_null(file);
    length = fread(text, 1, sizeof(text), file);
    fclose(file);
    assert_int_equal(sl_config_parse(config, text, length, path, NULL), 0);
}

/* ---- memory ------------------------------------------------------------------------------------
 */

/* What the entries and keys of all hidden layers amount to, by the sizes in docs/NUMERICS.md. */
static double summed_bytes(const struct sl_config *c)
{
    const double entry = c->head_dim - c->qk_rope_head_dim +
                         (c->head_dim - c->qk_rope_head_dim) / 64.0 + 2.0 * c->qk_rope_head_dim;
    const double key = c->index_head_dim / 2.0 + c->index_head_dim / 32.0;
    double bytes = 4.0 * MILLION; /* ids */

    for (uint32_t i = 0; i < c->num_hidden_layers; i++)
        if (c->compress_ratios[i])
            bytes += MILLION / c->compress_ratios[i] *
                     (entry + (c->compress_ratios[i] == SL_CSA_RATIO ? key : 0));
    return bytes;
}

static void test_a_million_tokens_take_what_is_planned(void **state)
{
    static const char *const paths[] = {"tools/configs/v4-flash.json", "tools/configs/v4-pro.json"};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct sl_kv_layout layout;
        struct sl_config c;
        double bytes;

        read_config(paths[i], &c);
        assert_true(c.max_position_embeddings >= MILLION);
        assert_int_equal(
            sl_kv_layout_init(&layout, &c, c.num_hidden_layers, SL_NUMERICS_NATIVE, NULL), 0);
        bytes = (double)sl_kv_cache_measure(&layout, MILLION);
        print_message("%s: %.3f GB of KV cache, %.3f of entries, keys and ids\n", paths[i],
                      bytes * 1e-9, summed_bytes(&c) * 1e-9);
        /* Rings, ends of pages and tables come on top. */
        assert_true(bytes > summed_bytes(&c) && bytes < summed_bytes(&c) * 1.03);
        assert_true(bytes <= PRO_BYTES_MAX);
        sl_kv_layout_fini(&layout);
    }
}

/* What of an arena is in memory. */
static double resident_bytes(const struct sl_arena *arena)
{
    const size_t page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    const size_t n_pages = (arena->size_bytes + page_bytes - 1) / page_bytes;
    unsigned char *resident = calloc(n_pages, 1);
    size_t n = 0;

    assert_non_null(resident);
    assert_int_equal(mincore(arena->base, arena->size_bytes, resident), 0);
    for (size_t i = 0; i < n_pages; i++)
        n += resident[i] & 1;
    free(resident);
    return (double)(n * page_bytes);
}

/* The first layers of Pro, filled: HCA, HCA, CSA, HCA. */
static void test_a_full_cache_has_what_was_measured(void **state)
{
    struct sl_kernels kernels;
    struct sl_compute compute = {.kernels = &kernels, .numerics = SL_NUMERICS_NATIVE};
    struct sl_kv_pool pool;
    struct sl_kv_cache kv;
    struct sl_config c;
    double resident, measured;

    (void)state;
    read_config("tools/configs/v4-pro.json", &c);
    c.num_hidden_layers = 4;
    c.num_nextn_predict_layers = 0;
    assert_int_equal(sl_kernels_select(&kernels, NULL, NULL), 0);
    assert_int_equal(sl_pool_create(&compute.pool, 2, NULL), 0);
    kv_rig_pool(&pool, &c, 4, SL_NUMERICS_NATIVE, 1, MILLION);
    measured = (double)sl_kv_cache_measure(&pool.layout, MILLION);
    assert_int_equal(sl_kv_cache_init(&kv, &pool, MILLION, NULL), 0);
    assert_int_equal(sl_bench_past_fill(&kv, &c, &compute, MILLION, 1, NULL), 0);
    resident = resident_bytes(&pool.arena);
    print_message("%.1f MB measured, %.1f used, %.1f resident\n", measured * 1e-6,
                  (double)sl_kv_pool_used_bytes(&pool) * 1e-6, resident * 1e-6);
    assert_true(resident >= summed_bytes(&c));
    assert_true(resident <= measured + (double)SL_HUGE_PAGE_BYTES);
    assert_true((double)sl_kv_pool_used_bytes(&pool) <= measured);
    sl_kv_cache_fini(&kv);
    sl_kv_pool_fini(&pool);
    sl_pool_destroy(compute.pool);
}

/* ---- the last tokens ---------------------------------------------------------------------------
 */

#define LAST_TOKENS 140u /* more than a chunk, and an HCA window */

struct rig {
    struct sl_config config;
    struct fixture_weights source;
    struct fixture_experts experts;
    struct sl_weights weights;
    struct sl_kernels kernels;
    struct sl_compute compute;
    struct sl_kv_pool kv_pool;
    struct sl_kv_cache kv;
    int32_t tokens[LAST_TOKENS];
    float *logits; /* (LAST_TOKENS, vocab_size) */
    uint32_t n_rows;
};

static void keep_logits(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    struct rig *rig = context;
    const uint32_t vocab = rig->config.vocab_size;

    for (uint32_t i = 0; i < n_rows; i++, rig->n_rows++)
        memcpy(rig->logits + (size_t)rig->n_rows * vocab, rows[i].logits, vocab * sizeof(float));
}

/* Takes the last tokens of the context, `at_once` in a step, on so many threads. The one after them
 * is refused. */
static void run_to_the_end(struct rig *rig, uint32_t n_threads, uint32_t at_once)
{
    struct sl_forward_params params = {.config = &rig->config,
                                       .weights = &rig->weights,
                                       .compute = &rig->compute,
                                       .source = &rig->experts.source,
                                       .tokens_max = LAST_TOKENS,
                                       .context_max = MILLION,
                                       .spans_max = 1};
    struct sl_span span = {.kv = &rig->kv, .logits = SL_LOGITS_ALL};
    const struct sl_step_request request = {
        .spans = &span, .n_spans = 1, .on_logits = keep_logits, .on_logits_context = rig};
    struct sl_forward *forward;

    assert_int_equal(sl_pool_create(&rig->compute.pool, n_threads, NULL), 0);
    assert_int_equal(sl_forward_create(&forward, &params, NULL), 0);
    kv_rig_pool(&rig->kv_pool, &rig->config, rig->config.num_hidden_layers, rig->compute.numerics,
                1, MILLION);
    assert_int_equal(sl_kv_cache_init(&rig->kv, &rig->kv_pool, MILLION, NULL), 0);
    assert_int_equal(
        sl_bench_past_fill(&rig->kv, &rig->config, &rig->compute, MILLION - LAST_TOKENS, 5, NULL),
        0);
    rig->n_rows = 0;
    for (uint32_t done = 0; done < LAST_TOKENS; done += span.n_tokens) {
        span.tokens = rig->tokens + done;
        span.n_tokens = at_once < LAST_TOKENS - done ? at_once : LAST_TOKENS - done;
        assert_int_equal(sl_forward_step(forward, &request, NULL), 0);
    }
    assert_int_equal(rig->n_rows, LAST_TOKENS);
    assert_int_equal(rig->kv.n_tokens, MILLION);
    span.n_tokens = 1;
    assert_int_equal(sl_forward_step(forward, &request, NULL), -SL_EBUDGET);
    sl_forward_destroy(forward);
    sl_kv_cache_fini(&rig->kv);
    sl_kv_pool_fini(&rig->kv_pool);
    sl_pool_destroy(rig->compute.pool);
}

static void test_the_last_tokens_have_one_answer(void **state)
{
    static struct rig rig;
    const size_t count = (size_t)LAST_TOKENS * 75;
    float *expected = calloc(count, sizeof(*expected));
    struct sl_pool *pool;

    (void)state;
    assert_non_null(expected);
    fixture_config(&rig.config);
    assert_int_equal(rig.config.vocab_size, 75);
    rig.config.num_hidden_layers = 3;
    rig.config.num_nextn_predict_layers = 0;
    rig.config.compress_ratios[2] = 128;
    fixture_weights_init(&rig.source, &rig.config, 1);
    fixture_experts_init(&rig.experts, &rig.config, rig.config.n_routed_experts, 2);
    assert_int_equal(sl_pool_create(&pool, 1, NULL), 0);
    assert_int_equal(fixture_weights_load(&rig.source, &rig.weights, &rig.config, NULL,
                                          &sl_weights_all_resident, pool, NULL),
                     0);
    sl_pool_destroy(pool);
    assert_int_equal(sl_kernels_select(&rig.kernels, NULL, NULL), 0);
    rig.compute = (struct sl_compute){.kernels = &rig.kernels, .numerics = SL_NUMERICS_NATIVE};
    rig.logits = calloc(count, sizeof(*rig.logits));
    assert_non_null(rig.logits);
    for (uint32_t i = 0; i < LAST_TOKENS; i++)
        rig.tokens[i] = (int32_t)(i * 7 % rig.config.vocab_size);

    run_to_the_end(&rig, 1, LAST_TOKENS);
    memcpy(expected, rig.logits, count * sizeof(*expected));
    for (size_t i = 0; i < count; i++)
        assert_true(isfinite(expected[i]));
    run_to_the_end(&rig, 3, 11);
    assert_memory_equal(rig.logits, expected, count * sizeof(*expected));

    free(expected);
    free(rig.logits);
    sl_weights_fini(&rig.weights);
    fixture_experts_fini(&rig.experts);
    fixture_weights_fini(&rig.source);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_million_tokens_take_what_is_planned),
        cmocka_unit_test(test_a_full_cache_has_what_was_measured),
        cmocka_unit_test(test_the_last_tokens_have_one_answer),
    };

    return cmocka_run_group_tests_name("million", tests, NULL, NULL);
}
