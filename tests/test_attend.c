/* Attention shared out among threads: neither the number of jobs nor the bits depend on how.
 *
 * Sequences of a tiny model have pasts that nobody computed, some long and some short, so that in
 * one step there are groups that one thread takes alone, groups that all share, and a rest. Jobs
 * are counted in the pool's account; logits are held against those of each sequence alone on one
 * thread. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/kernels/dispatch.h"
#include "core/model/attend.h"
#include "core/model/forward.h"
#include "tests/fixture_model.h"
#include "tests/kv_rig.h"
#include "tools/bench/bench_past.h"

#define SEQUENCES_MAX 512u
#define TOKENS_MAX 2048u /* of a step */
#define CONTEXT_MAX 10000u
#define BARRIERS_MAX 40u /* of a layer and chunk: the design's */

struct model {
    struct sl_config config;
    struct fixture_weights source;
    struct sl_weights weights;
    struct fixture_experts experts;
    int32_t tokens[TOKENS_MAX];
};

/* What computes. */
struct rig {
    struct model *m;
    struct sl_kernels kernels;
    struct sl_compute compute;
    struct sl_forward *forward;
    struct sl_kv_pool kv_pool;
    struct sl_kv_cache kv[SEQUENCES_MAX];
    struct sl_span spans[SEQUENCES_MAX];
    uint32_t n_sequences;
    float *logits; /* (n_sequences, vocab_size) after each one's last token */
};

static void rig_init(struct rig *rig, struct model *m, uint32_t n_threads,
                     enum sl_numerics numerics)
{
    const struct sl_forward_params params = {.config = &m->config,
                                             .weights = &m->weights,
                                             .compute = &rig->compute,
                                             .source = &m->experts.source,
                                             .tokens_max = TOKENS_MAX,
                                             .context_max = CONTEXT_MAX,
                                             .spans_max = SEQUENCES_MAX};

    memset(rig, 0, sizeof(*rig));
    rig->m = m;
    assert_int_equal(sl_kernels_select(&rig->kernels, NULL, NULL), 0);
    rig->compute = (struct sl_compute){.kernels = &rig->kernels, .numerics = numerics};
    assert_int_equal(sl_pool_create(&rig->compute.pool, n_threads, NULL), 0);
    assert_int_equal(sl_forward_create(&rig->forward, &params, NULL), 0);
    kv_rig_pool(&rig->kv_pool, &m->config, m->config.num_hidden_layers, numerics, SEQUENCES_MAX,
                CONTEXT_MAX);
    rig->logits = calloc((size_t)SEQUENCES_MAX * m->config.vocab_size, sizeof(float));
    assert_non_null(rig->logits);
}

static void rig_fini(struct rig *rig)
{
    sl_forward_destroy(rig->forward);
    for (uint32_t s = 0; s < rig->n_sequences; s++)
        sl_kv_cache_fini(&rig->kv[s]);
    sl_kv_pool_fini(&rig->kv_pool);
    sl_pool_destroy(rig->compute.pool);
    free(rig->logits);
}

/* A sequence that has seen `past` tokens, and takes `n_tokens` in the next step. */
static void add_sequence(struct rig *rig, uint32_t past, uint32_t n_tokens, uint64_t seed)
{
    const struct sl_config *c = &rig->m->config;
    struct sl_kv_cache *kv = &rig->kv[rig->n_sequences];

    assert_int_equal(sl_kv_cache_init(kv, &rig->kv_pool, past + n_tokens, NULL), 0);
    assert_int_equal(sl_bench_past_fill(kv, c, &rig->compute, past, seed, NULL), 0);
    rig->spans[rig->n_sequences++] = (struct sl_span){kv, rig->m->tokens, n_tokens, SL_LOGITS_LAST};
}

static void keep_logits(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    struct rig *rig = context;
    const uint32_t vocab = rig->m->config.vocab_size;

    for (uint32_t i = 0; i < n_rows; i++)
        memcpy(rig->logits + (size_t)rows[i].span_index * vocab, rows[i].logits,
               vocab * sizeof(float));
}

/* A step of all sequences. Returns what it cost. */
static struct sl_account step(struct rig *rig)
{
    const struct sl_step_request request = {.spans = rig->spans,
                                            .n_spans = rig->n_sequences,
                                            .on_logits = keep_logits,
                                            .on_logits_context = rig};
    const struct sl_account begin = sl_pool_account(rig->compute.pool);
    struct sl_account end;

    assert_int_equal(sl_forward_step(rig->forward, &request, NULL), 0);
    end = sl_pool_account(rig->compute.pool);
    return sl_account_difference(&begin, &end);
}

/* ---- jobs --------------------------------------------------------------------------------------
 */

static uint64_t barriers_of(const struct sl_account *account, bool attention_alone)
{
    uint64_t n = 0;

    for (int phase = SL_PHASE_OUTSIDE + 1; phase < SL_PHASES; phase++)
        if (!attention_alone || phase == SL_PHASE_ATTENTION || phase == SL_PHASE_INDEXER)
            n += account->of[phase].n_barriers;
    return n - (attention_alone ? 0 : account->of[SL_PHASE_HEAD].n_barriers);
}

/* A layer's barriers for each chunk of a step of n_sequences spans of n_tokens. */
static void check_barriers(struct model *m, uint32_t n_threads, uint32_t n_sequences, uint32_t past,
                           uint32_t n_tokens)
{
    static struct rig rig;
    const uint32_t n_chunks = (n_sequences * n_tokens + SL_CHUNK_TOKENS - 1) / SL_CHUNK_TOKENS;
    struct sl_account spent;
    uint64_t all, attention;

    rig_init(&rig, m, n_threads, SL_NUMERICS_NATIVE);
    for (uint32_t s = 0; s < n_sequences; s++)
        add_sequence(&rig, past, n_tokens, s);
    spent = step(&rig);
    all = barriers_of(&spent, false) / n_chunks / m->config.num_hidden_layers;
    attention = barriers_of(&spent, true) / n_chunks / m->config.num_hidden_layers;
    if (all > BARRIERS_MAX || attention > SL_ATTEND_JOBS_MAX)
        fail_msg("%u threads, %u sequences with %u tokens behind them take %u: %u barriers a layer "
                 "and chunk, %u of them in attention",
                 n_threads, n_sequences, past, n_tokens, (unsigned)all, (unsigned)attention);
    rig_fini(&rig);
}

static void test_barriers_are_of_chunks_not_of_tokens(void **state)
{
    static const uint32_t threads[] = {2, 3, 8};

    for (size_t t = 0; t < sizeof(threads) / sizeof(threads[0]); t++) {
        for (uint32_t n = 8; n <= (t == 0 ? 512 : 64); n *= 8)
            check_barriers(*state, threads[t], n, 200, 1);
        check_barriers(*state, threads[t], 1, 200, 1);
        check_barriers(*state, threads[t], 1, 3000, 128);
        check_barriers(*state, threads[t], 1, 0, TOKENS_MAX);
        check_barriers(*state, threads[t], 16, 100, 100);
    }
}

/* ---- bits --------------------------------------------------------------------------------------
 */

/* What takes part in a step: the past of a sequence, and its tokens. */
struct part {
    uint32_t past, n_tokens;
};

/* One long text among short ones; many alike, with a rest; prompts beside single tokens. */
static const struct part parts[] = {
    {9999, 1}, {0, 1},   {1, 1},    {17, 1},   {300, 1},  {301, 1},  {302, 1},   {303, 1},
    {304, 1},  {305, 1}, {306, 1},  {307, 1},  {5000, 3}, {4000, 1}, {3000, 40}, {0, 150},
    {8000, 1}, {12, 1},  {127, 20}, {128, 20}, {2500, 1}, {2500, 2}, {2500, 1},
};
#define PARTS (sizeof(parts) / sizeof(parts[0]))

static void add_part(struct rig *rig, size_t i)
{
    add_sequence(rig, parts[i].past, parts[i].n_tokens, i);
}

static void check_company(struct model *m, uint32_t n_threads, enum sl_numerics numerics,
                          size_t first, size_t end, const float *expected)
{
    static struct rig rig;
    const size_t vocab = m->config.vocab_size;

    rig_init(&rig, m, n_threads, numerics);
    for (size_t i = first; i < end; i++)
        add_part(&rig, i);
    step(&rig);
    for (size_t i = first; i < end; i++)
        if (memcmp(rig.logits + (i - first) * vocab, expected + i * vocab, vocab * sizeof(float)) !=
            0)
            fail_msg("%u threads, parts %zu to %zu: part %zu has other logits than alone",
                     n_threads, first, end, i);
    rig_fini(&rig);
}

/* With few threads most groups are one thread's; with eight, bundles are cut into pieces; with 19
 * the pool has no room for the largest group of each, and with 70 there are more threads than
 * places. */
static void test_bits_do_not_depend_on_the_company(void **state)
{
    static const uint32_t threads[] = {3, 1, 2, 5, 8, 19, 70};
    struct model *m = *state;
    const size_t vocab = m->config.vocab_size;
    static struct rig rig;

    for (int numerics = SL_NUMERICS_NATIVE; numerics <= SL_NUMERICS_EXACT; numerics++) {
        float *expected = calloc(PARTS * vocab, sizeof(float));

        assert_non_null(expected);
        for (size_t i = 0; i < PARTS; i++) {
            rig_init(&rig, m, 1, (enum sl_numerics)numerics);
            add_part(&rig, i);
            step(&rig);
            memcpy(expected + i * vocab, rig.logits, vocab * sizeof(float));
            rig_fini(&rig);
        }
        for (size_t t = 0; t < sizeof(threads) / sizeof(threads[0]); t++) {
            check_company(m, threads[t], (enum sl_numerics)numerics, 0, PARTS, expected);
            if (numerics == SL_NUMERICS_EXACT)
                break;
            if (threads[t] > 8)
                continue;
            check_company(m, threads[t], SL_NUMERICS_NATIVE, 0, 1, expected);
            check_company(m, threads[t], SL_NUMERICS_NATIVE, 0, 3, expected);
            check_company(m, threads[t], SL_NUMERICS_NATIVE, 4, 12, expected);
        }
        free(expected);
    }
}

/* More threads than the pool of entries has room for the largest group of, and a crowd of such
 * groups that cost less than others that are smaller. */
static void test_large_groups_need_not_cost_most(void **state)
{
    enum { CROWD = 80, PROMPTS = 3 };
    struct model *m = *state;
    const size_t count = (PROMPTS + CROWD) * (size_t)m->config.vocab_size;
    float *expected = calloc(count, sizeof(float));
    static struct rig rig;

    assert_non_null(expected);
    for (uint32_t n_threads = 1; n_threads <= 17; n_threads += 16) {
        rig_init(&rig, m, n_threads, SL_NUMERICS_NATIVE);
        for (uint32_t i = 0; i < PROMPTS + CROWD; i++)
            add_sequence(&rig, i < PROMPTS ? 3000 : CONTEXT_MAX - 1, i < PROMPTS ? 16 : 1, i);
        step(&rig);
        if (n_threads == 1)
            memcpy(expected, rig.logits, count * sizeof(float));
        assert_memory_equal(rig.logits, expected, count * sizeof(float));
        rig_fini(&rig);
    }
    free(expected);
}

/* ---- the model ---------------------------------------------------------------------------------
 */

static int set_up(void **state)
{
    static struct model m;
    struct sl_pool *pool;

    fixture_config(&m.config);
    fixture_weights_init(&m.source, &m.config, 1);
    fixture_experts_init(&m.experts, &m.config, m.config.n_routed_experts, 2);
    assert_int_equal(sl_pool_create(&pool, 1, NULL), 0);
    assert_int_equal(fixture_weights_load(&m.source, &m.weights, &m.config, NULL,
                                          &sl_weights_all_resident, pool, NULL),
                     0);
    sl_pool_destroy(pool);
    for (uint32_t i = 0; i < TOKENS_MAX; i++)
        m.tokens[i] = (int32_t)(i * 7 % m.config.vocab_size);
    *state = &m;
    return 0;
}

static int tear_down(void **state)
{
    struct model *m = *state;

    sl_weights_fini(&m->weights);
    fixture_experts_fini(&m->experts);
    fixture_weights_fini(&m->source);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_barriers_are_of_chunks_not_of_tokens),
        cmocka_unit_test(test_bits_do_not_depend_on_the_company),
        cmocka_unit_test(test_large_groups_need_not_cost_most),
    };

    return cmocka_run_group_tests_name("attend", tests, set_up, tear_down);
}
