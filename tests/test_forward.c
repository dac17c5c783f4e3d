/* The forward pass: one answer, whatever is cut, mixed, threaded, delayed or refused on the way.
 * Random steps over several sequences of a tiny model are compared byte for byte with each sequence
 * alone, a token at a time, on one thread of the reference kernels. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/base/assert.h"
#include "core/model/forward.h"
#include "tests/fault_alloc.h"
#include "tests/fixture_model.h"
#include "core/kernels/dispatch.h"
#include "tests/kv_rig.h"

#define SEQUENCES 5u
#define TOKENS_MAX 221u /* of all sequences together */
#define CONTEXT_MAX 160u

/* The first is longer than the longest window, a chunk, and a batch of an expert's rows. */
static const uint32_t lengths[SEQUENCES] = {140, 29, 9, 26, 17};

/* Logits of every row of one sequence. */
struct answer {
    float *logits; /* (length, vocab_size) */
    float *mtp;    /* (length - 1, vocab_size) */
};

struct model {
    struct sl_config config;
    struct fixture_weights source;
    struct sl_weights weights;
    struct fixture_experts experts;
    int32_t tokens[SEQUENCES][CONTEXT_MAX];
    struct answer native[SEQUENCES];
};

/* What computes. */
struct rig {
    struct sl_kernels kernels;
    struct sl_pool *pool;
    struct sl_compute compute;
    uint64_t n_background; /* calls of compute.background */
    struct sl_forward *forward;
    struct sl_kv_pool kv_pool;
    struct sl_kv_cache kv[SEQUENCES];
    atomic_bool stop;
};

struct rig_options {
    const char *isa;
    uint32_t n_threads;
    enum sl_numerics numerics;
    uint32_t tokens_max;
};

static const struct rig_options plain = {"ref", 1, SL_NUMERICS_NATIVE, TOKENS_MAX};

static void renew_kv(struct rig *rig, uint32_t s, uint32_t capacity)
{
    sl_kv_cache_fini(&rig->kv[s]);
    assert_int_equal(sl_kv_cache_init(&rig->kv[s], &rig->kv_pool, capacity, NULL), 0);
}

static void count_call(void *context)
{
    ++*(uint64_t *)context;
}

static void rig_init(struct rig *rig, struct model *m, const struct rig_options *options)
{
    struct sl_forward_params params = {
        .config = &m->config,
        .weights = &m->weights,
        .compute = &rig->compute,
        .source = &m->experts.source,
        .tokens_max = options->tokens_max,
        .context_max = CONTEXT_MAX,
        .spans_max = SEQUENCES,
        .prefetch = SL_PREFETCH_GATE,
    };

    *rig = (struct rig){0};
    assert_int_equal(sl_kernels_select(&rig->kernels, options->isa, NULL), 0);
    assert_int_equal(sl_pool_create(&rig->pool, options->n_threads, NULL), 0);
    rig->compute = (struct sl_compute){.kernels = &rig->kernels,
                                       .pool = rig->pool,
                                       .numerics = options->numerics,
                                       .background = {count_call, &rig->n_background}};
    assert_int_equal(sl_forward_create(&rig->forward, &params, NULL), 0);
    kv_rig_pool(&rig->kv_pool, &m->config, m->config.num_hidden_layers + 1, options->numerics,
                SEQUENCES, CONTEXT_MAX);
    for (uint32_t s = 0; s < SEQUENCES; s++)
        renew_kv(rig, s, lengths[s]);
}

static void rig_fini(struct rig *rig)
{
    sl_forward_destroy(rig->forward);
    for (uint32_t s = 0; s < SEQUENCES; s++)
        sl_kv_cache_fini(&rig->kv[s]);
    sl_kv_pool_fini(&rig->kv_pool);
    sl_pool_destroy(rig->pool);
}

/* A step of these spans, and the MTP pass after it. */
static int step(struct rig *rig, const struct sl_span *spans, uint32_t n_spans,
                sl_logits_fn *on_logits, void *context, struct sl_err *err)
{
    const struct sl_step_request request = {.spans = spans,
                                            .n_spans = n_spans,
                                            .stop = &rig->stop,
                                            .on_logits = on_logits,
                                            .on_logits_context = context};

    return sl_forward_step(rig->forward, &request, err);
}

static int step_mtp(struct rig *rig, const struct sl_span *spans, uint32_t n_spans,
                    sl_logits_fn *on_logits, void *context, struct sl_err *err)
{
    const struct sl_step_request request = {.spans = spans,
                                            .n_spans = n_spans,
                                            .stop = &rig->stop,
                                            .on_logits = on_logits,
                                            .on_logits_context = context};

    return sl_forward_mtp(rig->forward, &request, err);
}

/* ---- answers -----------------------------------------------------------------------------------
 */

struct kept {
    float *to;
    size_t vocab_size;
};

static void keep_rows(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    struct kept *kept = context;

    for (uint32_t i = 0; i < n_rows; i++) {
        memcpy(kept->to, rows[i].logits, kept->vocab_size * sizeof(float));
        kept->to += kept->vocab_size;
    }
}

/* A token at a time, alone, as `options` say. */
static void answer_init(struct answer *answer, struct model *m, const struct rig_options *options,
                        uint32_t s)
{
    const size_t vocab_size = m->config.vocab_size;
    struct kept rows = {NULL, vocab_size}, mtp = {NULL, vocab_size};
    struct rig rig;

    answer->logits = rows.to = calloc(lengths[s] * vocab_size, sizeof(float));
    answer->mtp = mtp.to = calloc(lengths[s] * vocab_size, sizeof(float));
    assert_non_null(answer->logits);
    assert_non_null(answer->mtp);
    rig_init(&rig, m, options);
    for (uint32_t i = 0; i < lengths[s]; i++) {
        struct sl_span span = {&rig.kv[s], &m->tokens[s][i], 1, SL_LOGITS_ALL};

        assert_int_equal(step(&rig, &span, 1, keep_rows, &rows, NULL), 0);
        span.tokens++;
        if (i + 1 < lengths[s])
            assert_int_equal(step_mtp(&rig, &span, 1, keep_rows, &mtp, NULL), 0);
    }
    rig_fini(&rig);
}

static void answer_fini(struct answer *answer)
{
    free(answer->logits);
    free(answer->mtp);
}

static int model_create(void **state)
{
    struct model *m = calloc(1, sizeof(*m));
    uint64_t random = 7;
    struct sl_pool *pool;
    int rc;

    sl_assert(m);
    fixture_config(&m->config);
    fixture_weights_init(&m->source, &m->config, 1);
    fixture_experts_init(&m->experts, &m->config, m->config.n_routed_experts, 2);
    rc = sl_pool_create(&pool, 1, NULL);
    sl_assert(rc == 0);
    rc = fixture_weights_load(&m->source, &m->weights, &m->config, &fixture_mtp,
                              &sl_weights_all_resident, pool, NULL);
    sl_assert(rc == 0);
    sl_pool_destroy(pool);
    for (uint32_t s = 0; s < SEQUENCES; s++)
        for (uint32_t i = 0; i < CONTEXT_MAX; i++)
            m->tokens[s][i] = (int32_t)fixture_below(&random, m->config.vocab_size);
    for (uint32_t s = 0; s < SEQUENCES; s++)
        answer_init(&m->native[s], m, &plain, s);
    *state = m;
    return 0;
}

static int model_destroy(void **state)
{
    struct model *m = *state;

    for (uint32_t s = 0; s < SEQUENCES; s++)
        answer_fini(&m->native[s]);
    sl_weights_fini(&m->weights);
    fixture_weights_fini(&m->source);
    fixture_experts_fini(&m->experts);
    free(m);
    return 0;
}

/* The source as it is between tests. */
static void calm(struct model *m)
{
    m->experts.source.pins_max = m->experts.pins_limit;
    m->experts.shuffle = false;
    m->experts.delay_permille = m->experts.partial_permille = 0;
    m->experts.fail_nth = m->experts.stop_nth = 0;
    assert_int_equal(m->experts.n_held, 0);
}

/* ---- steps, checked against the answers --------------------------------------------------------
 */

struct check {
    const struct model *m;
    const struct answer *answers; /* (SEQUENCES) */
    bool mtp;
    struct sl_span spans[SEQUENCES];
    uint32_t sequence[SEQUENCES]; /* of each span */
    uint32_t first[SEQUENCES];    /* position of each span's first token */
    uint32_t n_spans;
    uint32_t next_span, next_token; /* the row that must come next */
};

/* The next row that the spans want, from (next_span, next_token) on. False if there is none. */
static bool find_next_row(struct check *check)
{
    for (; check->next_span < check->n_spans; check->next_span++, check->next_token = 0) {
        const struct sl_span *span = &check->spans[check->next_span];

        if (span->logits == SL_LOGITS_LAST && span->n_tokens > 0 && check->next_token == 0)
            check->next_token = span->n_tokens - 1;
        if (span->logits != SL_LOGITS_NONE && check->next_token < span->n_tokens)
            return true;
    }
    return false;
}

static void check_row(struct check *check, const struct sl_logits_row *row)
{
    const size_t vocab_size = check->m->config.vocab_size;
    const struct answer *answer;
    const float *expected;

    assert_true(find_next_row(check));
    assert_int_equal(row->span_index, check->next_span);
    assert_int_equal(row->token_index, check->next_token);
    answer = &check->answers[check->sequence[row->span_index]];
    expected = (check->mtp ? answer->mtp : answer->logits) +
               (check->first[row->span_index] + row->token_index) * vocab_size;
    if (memcmp(row->logits, expected, vocab_size * sizeof(float)) != 0)
        fail_msg("sequence %u: %slogits after token %u differ", check->sequence[row->span_index],
                 check->mtp ? "MTP " : "", check->first[row->span_index] + row->token_index);
    check->next_token++;
}

static void check_rows(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    assert_in_range(n_rows, 1, SL_LOGITS_ROWS_MAX);
    for (uint32_t i = 0; i < n_rows; i++)
        check_row(context, &rows[i]);
}

static void add_span(struct check *check, struct rig *rig, uint32_t s, uint32_t n_tokens,
                     enum sl_logits_wanted logits)
{
    uint32_t i = check->n_spans++;

    check->sequence[i] = s;
    check->first[i] = rig->kv[s].n_tokens;
    check->spans[i] =
        (struct sl_span){&rig->kv[s], check->m->tokens[s] + rig->kv[s].n_tokens, n_tokens, logits};
}

/* Runs the spans, and with `mtp` the MTP block after them, as far as next tokens are known. */
static int run_spans(struct check *check, struct rig *rig, bool mtp, struct sl_err *err)
{
    int rc;

    check->mtp = false;
    check->next_span = check->next_token = 0;
    rc = step(rig, check->spans, check->n_spans, check_rows, check, err);
    if (rc < 0)
        return rc;
    assert_false(find_next_row(check));
    if (!mtp)
        return 0;
    check->mtp = true;
    check->next_span = check->next_token = 0;
    for (uint32_t i = 0; i < check->n_spans; i++) {
        struct sl_span *span = &check->spans[i];

        span->tokens++;
        if (check->first[i] + span->n_tokens == lengths[check->sequence[i]])
            span->n_tokens--; /* nobody knows what follows */
        if (span->n_tokens == 0)
            span->logits = SL_LOGITS_NONE;
    }
    rc = step_mtp(rig, check->spans, check->n_spans, check_rows, check, err);
    assert_true(rc < 0 || !find_next_row(check));
    return rc;
}

struct trial {
    struct rig_options options;
    uint32_t first_sequence; /* this and all after it take part */
    bool mtp;
};

/* A random step of sequences that are not at their end. Returns false if there are none. */
static bool run_random_step(const struct model *m, struct rig *rig, const struct trial *trial,
                            uint64_t *random)
{
    struct check check = {.m = m, .answers = m->native};
    uint32_t open[SEQUENCES] = {0}, n_open = 0, n_spans, room = trial->options.tokens_max;

    for (uint32_t s = trial->first_sequence; s < SEQUENCES; s++) {
        uint32_t at = fixture_below(random, n_open + 1); /* in random order */

        if (rig->kv[s].n_tokens == lengths[s])
            continue;
        open[n_open] = open[at];
        open[at] = s;
        n_open++;
    }
    if (n_open == 0)
        return false;
    n_spans = 1 + fixture_below(random, n_open);
    for (uint32_t i = 0; i < n_spans && room > 0; i++) {
        uint32_t s = open[i], most = lengths[s] - rig->kv[s].n_tokens, n = 1;

        most = most < room ? most : room;
        if (fixture_below(random, 4) > 0)
            n = fixture_below(random, 3) > 0 ? 1 + fixture_below(random, most) : most;
        add_span(&check, rig, s, n, (enum sl_logits_wanted)fixture_below(random, 3));
        room -= n;
    }
    assert_int_equal(run_spans(&check, rig, trial->mtp, NULL), 0);
    for (uint32_t i = 0; i < check.n_spans; i++) {
        const struct sl_kv_cache *kv = &rig->kv[check.sequence[i]];

        assert_false(kv->in_step);
        assert_true(kv->n_tokens > check.first[i]);
        if (trial->mtp)
            assert_int_equal(kv->n_mtp_tokens,
                             kv->n_tokens - (kv->n_tokens == lengths[check.sequence[i]]));
    }
    return true;
}

static void run_random_steps(struct model *m, const struct trial *trial, uint64_t *random)
{
    struct fixture_experts *experts = &m->experts;
    const uint32_t k = m->config.num_experts_per_tok;
    struct rig rig;

    rig_init(&rig, m, &trial->options);
    for (uint32_t s = 0; s < SEQUENCES; s++)
        renew_kv(&rig, s, lengths[s] + fixture_below(random, CONTEXT_MAX - lengths[s] + 1));
    do {
        experts->source.pins_max = k + fixture_below(random, experts->pins_limit - k + 1);
        experts->shuffle = fixture_below(random, 4) > 0;
        experts->delay_permille = fixture_below(random, 1001);
        experts->partial_permille = fixture_below(random, 1001);
    } while (run_random_step(m, &rig, trial, random));
    calm(m);
    rig_fini(&rig);
}

#define ISAS_MAX 5u

/* The instruction sets that this machine has; "ref" is one of them. */
static uint32_t list_isas(const char *isas[ISAS_MAX])
{
    static const char *const all[ISAS_MAX] = {"ref", "avx2", "avx512", "amx", "neon"};
    struct sl_kernels kernels;
    uint32_t n = 0;

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        if (sl_kernels_select(&kernels, all[i], NULL) == 0)
            isas[n++] = all[i];
        else
            printf("# SKIP %s: this machine does not have it\n", all[i]);
    }
    return n;
}

static void test_any_steps_give_one_answer(void **state)
{
    static const uint32_t threads[] = {1, 2, 3, 5};
    const char *isas[ISAS_MAX];
    const uint32_t n_isas = list_isas(isas);
    struct model *m = *state;
    uint64_t random = 11;

    for (uint32_t i = 0; i < 8; i++) {
        struct trial trial = {
            .options = {isas[i % n_isas], threads[i / 2], SL_NUMERICS_NATIVE,
                        1 + fixture_below(&random, i % 3 ? 30 : TOKENS_MAX)},
            .first_sequence = i == 3 || i == 6 ? 0 : 1, /* the long one now and then */
            .mtp = i % 4 < 2 || i == 6,
        };

        run_random_steps(m, &trial, &random);
    }
}

/* All sequences whole, in one step, every row. */
static void test_all_at_once_gives_the_answer(void **state)
{
    struct model *m = *state;
    struct check check = {.m = m, .answers = m->native};
    struct rig_options options = plain;
    struct rig rig;

    options.n_threads = 2;
    rig_init(&rig, m, &options);
    for (uint32_t i = 0; i < SEQUENCES; i++) { /* chunks end inside windows of the long one */
        uint32_t s = (i + 2) % SEQUENCES;

        add_span(&check, &rig, s, lengths[s], SL_LOGITS_ALL);
    }
    assert_int_equal(run_spans(&check, &rig, true, NULL), 0);
    rig_fini(&rig);
}

/* The same promise in `exact`, over the shorter sequences, since it is slow; and the two numerics
 * are two. */
static void test_exact_has_one_answer_too(void **state)
{
    struct model *m = *state;
    struct rig_options options = {"ref", 3, SL_NUMERICS_EXACT, TOKENS_MAX};
    struct answer answers[SEQUENCES];
    struct check check = {.m = m, .answers = answers};
    struct rig rig;

    answer_init(&answers[4], m, &options, 4);
    answer_init(&answers[2], m, &options, 2);
    rig_init(&rig, m, &options);
    add_span(&check, &rig, 4, 11, SL_LOGITS_ALL);
    add_span(&check, &rig, 2, 9, SL_LOGITS_ALL);
    assert_int_equal(run_spans(&check, &rig, true, NULL), 0);
    check.n_spans = 0;
    add_span(&check, &rig, 4, 6, SL_LOGITS_LAST);
    assert_int_equal(run_spans(&check, &rig, true, NULL), 0);
    assert_memory_not_equal(answers[4].logits, m->native[4].logits,
                            m->config.vocab_size * sizeof(float));
    rig_fini(&rig);
    answer_fini(&answers[4]);
    answer_fini(&answers[2]);
}

/* Logits that say nothing, or the same to everything, would pass all of the above. */
static void test_answers_are_alive(void **state)
{
    const struct model *m = *state;
    const size_t vocab_size = m->config.vocab_size;

    for (uint32_t s = 0; s < SEQUENCES; s++) {
        for (uint32_t row = 0; row < lengths[s]; row++) {
            const float *logits = m->native[s].logits + row * vocab_size;
            float low = INFINITY, high = -INFINITY;

            for (size_t i = 0; i < vocab_size; i++) {
                assert_true(isfinite(logits[i]));
                low = logits[i] < low ? logits[i] : low;
                high = logits[i] > high ? logits[i] : high;
            }
            assert_true(high - low > 0.1f && high - low < 1000);
            if (row > 0)
                assert_memory_not_equal(logits, logits - vocab_size, vocab_size * sizeof(float));
        }
    }
    for (uint32_t layer = 0; layer <= m->config.num_hidden_layers; layer++)
        assert_true(m->experts.n_demanded[layer] >= m->config.num_experts_per_tok);
}

/* ---- refusals ----------------------------------------------------------------------------------
 */

/* A span at fault, and what is said about it. */
struct refusal {
    bool mtp;
    uint32_t sequence;
    const int32_t *tokens;
    uint32_t n_tokens;
    int rc;
    const char *says;
};

/* The second of two spans is at fault: nothing happens to either. */
static void expect_refusal(const struct model *m, struct rig *rig, const struct refusal *refusal)
{
    struct sl_span spans[2] = {
        {&rig->kv[3], m->tokens[3] + rig->kv[3].n_tokens + refusal->mtp, 1, SL_LOGITS_ALL},
        {&rig->kv[refusal->sequence], refusal->tokens, refusal->n_tokens, SL_LOGITS_ALL}};
    struct sl_kv_cache before[2] = {*spans[0].kv, *spans[1].kv};
    const struct sl_kv_pool pool = rig->kv_pool;
    uint64_t n_requests = m->experts.n_requests;
    uint8_t *memory = malloc(pool.arena.size_bytes);
    struct sl_err err;
    int rc;

    assert_non_null(memory);
    memcpy(memory, pool.arena.base, pool.arena.size_bytes);
    rc = (refusal->mtp ? step_mtp : step)(rig, spans, 2, NULL, NULL, &err);
    assert_int_equal(rc, refusal->rc);
    assert_int_equal(err.code, refusal->rc);
    if (!strstr(err.message, refusal->says))
        fail_msg("\"%s\" does not say \"%s\"", err.message, refusal->says);
    assert_int_equal(m->experts.n_requests, n_requests);
    for (int i = 0; i < 2; i++)
        assert_memory_equal(spans[i].kv, &before[i], sizeof(before[i]));
    assert_memory_equal(&rig->kv_pool, &pool, sizeof(pool));
    assert_memory_equal(memory, pool.arena.base, pool.arena.size_bytes);
    free(memory);
}

static void test_refusals_change_nothing(void **state)
{
    static const int32_t high[] = {1, 2, 75}, low[] = {-1}, least[] = {0, INT32_MIN}, good[16];
    static const struct refusal refusals[] = {
        {false, 1, high, 3, -SL_EFORMAT, "token id 75 (number 9)"},
        {true, 1, high, 3, -SL_EFORMAT, "token id 75 (number 2)"},
        {false, 1, low, 1, -SL_EFORMAT, "token id -1"},
        {true, 1, low, 1, -SL_EFORMAT, "token id -1"},
        {false, 1, least, 2, -SL_EFORMAT, "token id -2147483648"},
        {false, 1, good, 16, -SL_EBUDGET, "17 tokens in one step, which was made for 16"},
        {false, 2, good, 10, -SL_EBUDGET,
         "10 tokens do not fit the KV cache, which was made for 9"},
        {false, 2, good, UINT32_MAX, -SL_EBUDGET, "KV cache"},
    };
    struct model *m = *state;
    struct check check = {.m = m, .answers = m->native};
    struct rig_options options = plain;
    struct rig rig;

    options.tokens_max = 16;
    rig_init(&rig, m, &options);
    add_span(&check, &rig, 1, 7, SL_LOGITS_ALL);
    add_span(&check, &rig, 3, 9, SL_LOGITS_LAST);
    assert_int_equal(run_spans(&check, &rig, false, NULL), 0);
    for (size_t i = 0; i < sizeof(refusals) / sizeof(refusals[0]); i++)
        expect_refusal(m, &rig, &refusals[i]);
    /* After all that the step's streams are still here, and so are the sequences. */
    check.mtp = true;
    check.next_span = check.next_token = 0;
    check.spans[0].tokens++;
    check.spans[1].tokens++;
    assert_int_equal(step_mtp(&rig, check.spans, 2, check_rows, &check, NULL), 0);
    check.n_spans = 0;
    add_span(&check, &rig, 1, 10, SL_LOGITS_ALL);
    assert_int_equal(run_spans(&check, &rig, true, NULL), 0);
    rig_fini(&rig);
}

/* ---- failures ----------------------------------------------------------------------------------
 */

/* Sequences that take their steps together: what each has seen before the step at hand, and how
 * many tokens it takes in it. */
#define USERS 3u
static const struct user {
    uint32_t sequence, n_before, n_tokens;
} users[USERS] = {{4, 6, 2}, {1, 13, 5}, {3, 9, 1}};

/* Users first to end take a step and an MTP pass. Returns where it failed. */
static int step_users(const struct model *m, struct rig *rig, uint32_t first, uint32_t end,
                      bool *ret_in_mtp, struct sl_err *err)
{
    struct check check = {.m = m, .answers = m->native};
    int rc;

    for (uint32_t i = first; i < end; i++)
        add_span(&check, rig, users[i].sequence, users[i].n_tokens, SL_LOGITS_ALL);
    rc = run_spans(&check, rig, true, err);
    if (ret_in_mtp)
        *ret_in_mtp = check.mtp;
    return rc;
}

/* Fresh sequences with their pasts. */
static void begin_users(const struct model *m, struct rig *rig)
{
    struct check check = {.m = m, .answers = m->native};

    for (uint32_t i = 0; i < USERS; i++) {
        renew_kv(rig, users[i].sequence, lengths[users[i].sequence]);
        add_span(&check, rig, users[i].sequence, users[i].n_before, SL_LOGITS_LAST);
    }
    assert_int_equal(run_spans(&check, rig, true, NULL), 0);
}

static void check_users(const struct rig *rig, bool after_step)
{
    for (uint32_t i = 0; i < USERS; i++) {
        const struct sl_kv_cache *kv = &rig->kv[users[i].sequence];

        assert_false(kv->in_step);
        assert_int_equal(kv->n_tokens, users[i].n_before + (after_step ? users[i].n_tokens : 0));
        assert_int_equal(kv->n_mtp_tokens, users[i].n_before);
    }
}

/* A step of all users, or its MTP pass, has failed: all are where they were, and go on from there
 * with one of them alone, the others, and all again, to the answers. */
static void go_on(const struct model *m, struct rig *rig, bool in_mtp)
{
    check_users(rig, in_mtp);
    if (in_mtp) {
        sl_forward_rollback(rig->forward);
        check_users(rig, false);
    }
    assert_int_equal(step_users(m, rig, 1, 2, NULL, NULL), 0);
    assert_int_equal(step_users(m, rig, 2, USERS, NULL, NULL), 0);
    assert_int_equal(step_users(m, rig, 0, 1, NULL, NULL), 0);
    assert_int_equal(step_users(m, rig, 0, USERS, NULL, NULL), 0);
}

/* The nth request of an expert in a step of three users fails. Returns false if there was no nth.
 */
static bool fail_nth_request(struct model *m, struct rig *rig, uint64_t nth)
{
    const uint64_t n_forgotten = m->experts.n_forgotten;
    struct sl_err err;
    bool in_mtp;
    int rc;

    begin_users(m, rig);
    m->experts.fail_nth = nth;
    rc = step_users(m, rig, 0, USERS, &in_mtp, &err);
    assert_int_equal(m->experts.n_held, 0);
    if (m->experts.fail_nth > 0) {
        assert_int_equal(rc, 0);
        return false;
    }
    assert_int_equal(rc, m->experts.fail_code);
    assert_int_equal(err.code, m->experts.fail_code);
    assert_string_equal(err.message, FIXTURE_EXPERT_FAILURE);
    assert_int_equal(m->experts.n_forgotten, n_forgotten + 1);
    go_on(m, rig, in_mtp);
    return true;
}

static void test_failing_experts(void **state)
{
    struct model *m = *state;
    struct rig_options options = plain;
    struct rig rig;
    uint64_t nth = 1;

    options.n_threads = 2;
    rig_init(&rig, m, &options);
    m->experts.source.pins_max = m->config.num_experts_per_tok;
    m->experts.shuffle = true;
    m->experts.delay_permille = 200;
    m->experts.partial_permille = 500;
    m->experts.fail_code = -EIO;
    while (fail_nth_request(m, &rig, nth))
        nth++;
    /* Each layer and the MTP block demanded once, and took at least one token's experts. */
    assert_true(nth > (m->config.num_hidden_layers + 1) * (1 + m->config.num_experts_per_tok));
    calm(m);
    rig_fini(&rig);
}

/* Most predicted experts are those that the next layer demands; long steps predict none. */
static void test_predictions_come_true(void **state)
{
    struct model *m = *state;
    struct rig rig;
    struct sl_span span;
    uint32_t n_predictable = m->config.num_hidden_layers - m->config.num_hash_layers;
    uint64_t n_predicted;

    rig_init(&rig, m, &plain);
    m->experts.n_predicted = m->experts.n_predicted_right = 0;
    span = (struct sl_span){&rig.kv[0], m->tokens[0], 9, SL_LOGITS_NONE};
    assert_int_equal(step(&rig, &span, 1, NULL, NULL, NULL), 0);
    assert_int_equal(m->experts.n_predicted, 0);
    span.n_tokens = 1;
    for (uint32_t i = 9; i < 19; i++) {
        span.tokens = m->tokens[0] + i;
        assert_int_equal(step(&rig, &span, 1, NULL, NULL, NULL), 0);
    }
    n_predicted = m->experts.n_predicted;
    print_message("%u of %u predictions came true\n", (unsigned)m->experts.n_predicted_right,
                  (unsigned)n_predicted);
    assert_int_equal(n_predicted % (10 * n_predictable), 0);
    assert_true(n_predicted > 0 && m->experts.n_predicted_right * 2 > n_predicted);
    rig_fini(&rig);
}

/* Work beside the forward pass does not wait for the end of a layer. Of two passes and their MTP
 * blocks each layer calls it around attention, once or more in there, in front of routed experts,
 * after each batch of them and at its end; without any one of these kinds it is too few. */
static void test_background_goes_on(void **state)
{
    struct model *m = *state;
    const uint32_t n_layers = m->config.num_hidden_layers;
    bool in_mtp;
    struct rig rig;

    rig_init(&rig, m, &plain);
    assert_int_equal(rig.n_background, 0);
    begin_users(m, &rig);
    assert_int_equal(step_users(m, &rig, 0, USERS, &in_mtp, NULL), 0);
    assert_true(rig.n_background >= 2 * (n_layers + 1) * (3 + 1 + 2 + 1 + 1));
    rig_fini(&rig);
}

/* Stops a step at the nth request to the expert source. Returns false if it had fewer. */
static bool stop_at_request(struct model *m, struct rig *rig, uint64_t nth)
{
    bool in_mtp;
    int rc;

    begin_users(m, rig);
    m->experts.stop_nth = nth;
    rc = step_users(m, rig, 0, USERS, &in_mtp, NULL);
    assert_int_equal(m->experts.n_held, 0);
    if (!atomic_load(&rig->stop)) {
        assert_int_equal(rc, 0);
        m->experts.stop_nth = 0;
        return false;
    }
    assert_int_equal(rc, -ECANCELED);
    atomic_store(&rig->stop, false);
    go_on(m, rig, in_mtp);
    return true;
}

/* Not only between layers: a demand is given up in the middle. */
static void test_a_step_can_be_stopped(void **state)
{
    struct model *m = *state;
    struct rig rig;
    uint64_t nth = 1, n_stopped;

    rig_init(&rig, m, &plain);
    m->experts.stop = &rig.stop;
    m->experts.source.pins_max = 1;
    m->experts.n_abandoned = 0;
    while (stop_at_request(m, &rig, nth))
        nth++;
    n_stopped = nth - 1;
    assert_true(m->experts.n_abandoned * 2 > n_stopped);
    calm(m);
    rig_fini(&rig);
}

/* What another sequence, and one that was stopped, left behind changes no byte. */
static void test_a_reset_kv_cache_is_a_new_one(void **state)
{
    struct model *m = *state;
    struct check check = {.m = m, .answers = m->native};
    struct rig_options options = {NULL, 2, SL_NUMERICS_NATIVE, TOKENS_MAX};
    struct rig rig;

    rig_init(&rig, m, &options);
    for (uint32_t s = 1; s < SEQUENCES; s++) {
        struct sl_span other = {&rig.kv[s], m->tokens[0] + s, lengths[s] - 1, SL_LOGITS_NONE};

        assert_int_equal(step(&rig, &other, 1, NULL, NULL, NULL), 0);
        other.n_tokens = 1;
        atomic_store(&rig.stop, true);
        assert_int_equal(step(&rig, &other, 1, NULL, NULL, NULL), -ECANCELED);
        atomic_store(&rig.stop, false);
        sl_kv_cache_clear(&rig.kv[s]);
        for (uint32_t n; rig.kv[s].n_tokens < lengths[s];) {
            n = lengths[s] - rig.kv[s].n_tokens < 5 ? lengths[s] - rig.kv[s].n_tokens : 5;
            check.n_spans = 0;
            add_span(&check, &rig, s, n, SL_LOGITS_ALL);
            assert_int_equal(run_spans(&check, &rig, true, NULL), 0);
        }
    }
    rig_fini(&rig);
}

/* ---- allocations -------------------------------------------------------------------------------
 */

static void test_steps_allocate_nothing(void **state)
{
    struct model *m = *state;
    struct check check = {.m = m, .answers = m->native};
    struct rig_options options = {NULL, 3, SL_NUMERICS_NATIVE, 64};
    uint64_t before;
    struct rig rig;

    if (!fault_alloc_works())
        skip();
    rig_init(&rig, m, &options);
    before = fault_alloc_total_count();
    add_span(&check, &rig, 3, 20, SL_LOGITS_ALL);
    add_span(&check, &rig, 1, 24, SL_LOGITS_NONE);
    assert_int_equal(run_spans(&check, &rig, true, NULL), 0);
    for (uint32_t i = 0; i < 5; i++) {
        check.n_spans = 0;
        add_span(&check, &rig, 1, 1, SL_LOGITS_LAST);
        add_span(&check, &rig, 3, 1, SL_LOGITS_LAST);
        assert_int_equal(run_spans(&check, &rig, true, NULL), 0);
    }
    assert_int_equal(fault_alloc_total_count(), before);
    renew_kv(&rig, 1, 1); /* the count does count */
    assert_true(fault_alloc_total_count() > before);
    rig_fini(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers_are_alive),
        cmocka_unit_test(test_any_steps_give_one_answer),
        cmocka_unit_test(test_all_at_once_gives_the_answer),
        cmocka_unit_test(test_exact_has_one_answer_too),
        cmocka_unit_test(test_refusals_change_nothing),
        cmocka_unit_test(test_failing_experts),
        cmocka_unit_test(test_predictions_come_true),
        cmocka_unit_test(test_background_goes_on),
        cmocka_unit_test(test_a_step_can_be_stopped),
        cmocka_unit_test(test_a_reset_kv_cache_is_a_new_one),
        cmocka_unit_test(test_steps_allocate_nothing),
    };

    return cmocka_run_group_tests_name("forward", tests, model_create, model_destroy);
}
