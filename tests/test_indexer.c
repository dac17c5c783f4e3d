/* The indexer: which compressed entries a query attends to. The selection is compared with a plain
 * sort for every k, and the scores behind it against plain sums over the stored FP4 codes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/kernels/formats.h"
#include "core/model/indexer.h"
#include "tests/fixture_model.h"
#include "core/kernels/dispatch.h"
#include "tests/kv_rig.h"

#define ENTRIES_MAX 3000u
#define MANY 40001u /* scores to select among */
#define HEADS 5u
#define DIM_MAX 256u

/* Scores with their places in the order: the highest first, of equal ones the lower index. */
struct ranked {
    float score;
    uint32_t index;
};

static int by_rank(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;

    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->index < y->index ? -1 : 1;
}

static void rank(const float *scores, uint32_t n, uint32_t *ret_rank)
{
    static struct ranked sorted[MANY];

    for (uint32_t i = 0; i < n; i++)
        sorted[i] = (struct ranked){scores[i], i};
    qsort(sorted, n, sizeof(*sorted), by_rank);
    for (uint32_t i = 0; i < n; i++)
        ret_rank[sorted[i].index] = i;
}

/* `chosen` are the k of lowest rank, ascending. */
static void check_chosen(const uint32_t *chosen, const uint32_t *rank, uint32_t n, uint32_t k)
{
    uint32_t at = 0;

    for (uint32_t i = 0; i < n; i++) {
        if (rank[i] >= k)
            continue;
        if (chosen[at] != i)
            fail_msg("%u of %u: place %u holds %u, expected %u", k, n, at, chosen[at], i);
        at++;
    }
    assert_int_equal(at, k);
}

enum spread { SPREAD_ANY, SPREAD_FEW, SPREAD_EQUAL, SPREAD_NEIGHBOURS, SPREADS };

static float random_score(uint64_t *random, enum spread spread)
{
    static const float extremes[] = {INFINITY, -INFINITY, 0, 0x1p-149f, -0x1p-149f, 3e38f, -3e38f};
    float value;

    switch (spread) {
    case SPREAD_ANY:
        if (fixture_below(random, 50) == 0)
            return extremes[fixture_below(random, sizeof(extremes) / sizeof(extremes[0]))];
        value = (float)fixture_below(random, 1u << 24) * 0x1p-23f - 1.0f;
        return value == 0 ? 0 : value * sl_exp2i((int)fixture_below(random, 200) - 100);
    case SPREAD_FEW:
        return (float)fixture_below(random, 7) - 3.0f;
    case SPREAD_NEIGHBOURS: /* they differ in the last byte only */
        return sl_f32_from_bits(0xc1234500u + fixture_below(random, 256));
    default:
        return -1.5f;
    }
}

static void test_select_top_is_a_stable_sort(void **state)
{
    static const uint32_t sizes[] = {1, 2, 3, 16, 17, 255, 256, 1000, ENTRIES_MAX};
    static float scores[ENTRIES_MAX];
    static uint32_t order[ENTRIES_MAX], chosen[ENTRIES_MAX + 1];
    uint64_t random = 3;
    struct sl_kernels kernels;

    (void)state;
    assert_int_equal(sl_kernels_select(&kernels, NULL, NULL), 0);
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        for (int spread = 0; spread < SPREADS; spread++) {
            uint32_t n = sizes[s];

            for (uint32_t i = 0; i < n; i++)
                scores[i] = random_score(&random, (enum spread)spread);
            rank(scores, n, order);
            for (uint32_t k = 1; k <= n; k++) {
                chosen[k] = UINT32_MAX;
                sl_select_top(&kernels, scores, n, k, chosen);
                assert_int_equal(chosen[k], UINT32_MAX);
                check_chosen(chosen, order, n, k);
            }
        }
    }
}

/* So many that a sample narrows the search, which may mislead: every 64th score is among the best,
 * or among the worst. */
static void test_select_top_of_many(void **state)
{
    static const uint32_t counts[] = {1, 2, 63, 64, 512, 1024, 5000, MANY - 1, MANY};
    static float scores[MANY];
    static uint32_t order[MANY], chosen[MANY];
    uint64_t random = 4;
    struct sl_kernels kernels;

    (void)state;
    assert_int_equal(sl_kernels_select(&kernels, NULL, NULL), 0);
    for (int spread = 0; spread < SPREADS; spread++) {
        for (int lie = -1; lie <= 1; lie++) {
            for (uint32_t i = 0; i < MANY; i++) {
                scores[i] = random_score(&random, (enum spread)spread);
                if (lie && i % 64 == 0)
                    scores[i] = (float)lie * 3.2e38f;
            }
            rank(scores, MANY, order);
            for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
                sl_select_top(&kernels, scores, MANY, counts[i], chosen);
                check_chosen(chosen, order, MANY, counts[i]);
            }
        }
    }
}

/* ---- keys and scores ---------------------------------------------------------------------------
 */

/* Two sequences with keys, a query of each, and what scores them. */
struct rig {
    struct sl_config config;
    struct sl_kernels kernels;
    struct sl_compute compute;
    struct sl_kv_pool kv_pool;
    struct sl_kv_cache kv[2];
    struct sl_step_token tokens[2];
    struct sl_step step;
    float cosine[DIM_MAX], sine[DIM_MAX]; /* (2, qk_rope_head_dim / 2) */
    struct sl_arena arena;
    struct sl_indexer *indexer;
    float *pooled[2]; /* (n_entries, dim) as given to store_key() */
    float q[2][HEADS * DIM_MAX], weights[2][HEADS];
};

struct shape {
    uint32_t dim, n_entries, n_threads;
    enum sl_numerics numerics;
};

static float random_float(uint64_t *random)
{
    return (float)fixture_below(random, 1u << 20) * 0x1p-19f - 1.0f;
}

/* Some keys repeat an earlier one, so that scores tie, and some are zero. */
static void make_keys(struct rig *rig, int s, const struct shape *shape, uint64_t *random)
{
    float own[DIM_MAX];

    rig->pooled[s] = calloc(shape->n_entries * shape->dim, sizeof(float));
    assert_non_null(rig->pooled[s]);
    for (uint32_t e = 0; e < shape->n_entries; e++) {
        float *key = rig->pooled[s] + e * shape->dim;
        uint32_t kind = fixture_below(random, 10);
        int exponent = (int)fixture_below(random, 20) - 10;

        if (kind == 0)
            continue;
        if (kind < 4 && e > 0)
            memcpy(key, rig->pooled[s] + fixture_below(random, e) * shape->dim,
                   shape->dim * sizeof(float));
        else
            for (uint32_t i = 0; i < shape->dim; i++)
                key[i] = random_float(random) * sl_exp2i(exponent);
    }
    for (uint32_t i = 0; i < shape->n_entries; i++) { /* the order of storing does not matter */
        uint32_t e = shape->n_entries - 1 - i;

        memcpy(own, rig->pooled[s] + e * shape->dim, shape->dim * sizeof(float));
        sl_indexer_store_key(&rig->step, &rig->kv[s], 0, e, own);
    }
}

static void rig_init(struct rig *rig, const struct shape *shape, uint64_t *random)
{
    const uint32_t n_tokens = SL_CSA_RATIO * shape->n_entries;
    struct sl_arena measure;

    *rig = (struct rig){0};
    fixture_config(&rig->config);
    rig->config.index_head_dim = shape->dim;
    rig->config.index_n_heads = HEADS;
    rig->config.compress_ratios[0] = SL_CSA_RATIO;
    rig->config.index_topk = shape->n_entries; /* the most that will be chosen */
    assert_int_equal(sl_kernels_select(&rig->kernels, NULL, NULL), 0);
    rig->compute = (struct sl_compute){.kernels = &rig->kernels, .numerics = shape->numerics};
    assert_int_equal(sl_pool_create(&rig->compute.pool, shape->n_threads, NULL), 0);
    rig->step = (struct sl_step){
        .config = &rig->config, .compute = &rig->compute, .tokens = rig->tokens, .n_tokens = 2};
    rig->step.cosine[SL_ROPE_COMPRESSED] = rig->cosine;
    rig->step.sine[SL_ROPE_COMPRESSED] = rig->sine;
    for (uint32_t i = 0; i < rig->config.qk_rope_head_dim; i++) { /* of both tokens */
        float angle = 3 * random_float(random);

        rig->cosine[i] = cosf(angle);
        rig->sine[i] = sinf(angle);
    }
    kv_rig_pool(&rig->kv_pool, &rig->config, 1, shape->numerics, 2, n_tokens);
    for (int s = 0; s < 2; s++) {
        assert_int_equal(sl_kv_cache_init(&rig->kv[s], &rig->kv_pool, n_tokens, NULL), 0);
        assert_int_equal(sl_kv_cache_grow(&rig->kv[s], n_tokens, NULL), 0);
        rig->tokens[s] = (struct sl_step_token){.kv = &rig->kv[s]};
        make_keys(rig, s, shape, random);
        for (uint32_t i = 0; i < HEADS * shape->dim; i++)
            rig->q[s][i] = random_float(random);
        for (uint32_t h = 0; h < HEADS; h++)
            rig->weights[s][h] = random_float(random);
    }
    sl_arena_init_measure(&measure);
    sl_indexer_carve(&measure, &rig->config, shape->numerics, shape->n_threads, 2,
                     shape->n_entries);
    assert_int_equal(sl_arena_init(&rig->arena, measure.used_bytes, "test", NULL), 0);
    rig->indexer = sl_indexer_carve(&rig->arena, &rig->config, shape->numerics, shape->n_threads, 2,
                                    shape->n_entries);
}

static void rig_fini(struct rig *rig)
{
    for (int s = 0; s < 2; s++) {
        free(rig->pooled[s]);
        sl_kv_cache_fini(&rig->kv[s]);
    }
    sl_kv_pool_fini(&rig->kv_pool);
    sl_arena_fini(&rig->arena);
    sl_pool_destroy(rig->compute.pool);
}

/* Twice the value of an FP4 code. */
static int twice(unsigned code)
{
    static const int magnitudes[8] = {0, 1, 2, 3, 4, 6, 8, 12};

    return code & 8 ? -magnitudes[code & 7] : magnitudes[code & 7];
}

/* Column `col` of key `entry` as the layout of r16.h has it: twice the value, and the scale. */
static int stored_key(const struct rig *rig, int s, uint32_t entry, uint32_t col, float *ret_scale)
{
    const uint32_t lane = entry % 16;
    const uint8_t *group = sl_kv_key_tile(&rig->kv[s], 0, entry) + col / 128 * 1088;
    uint8_t byte = group[64 + col % 128 / 8 * 64 + 4 * lane + col % 8 / 2];

    *ret_scale = ldexpf(1, group[col % 128 / 32 * 16 + lane] - 127);
    return twice(col % 2 ? byte >> 4 : byte & 15);
}

/* A key is the Hadamard transform of what was pooled, rounded to FP4 on the smallest power-of-two
 * scale that holds it. */
static void check_stored_key(const struct rig *rig, int s, uint32_t entry)
{
    const uint32_t dim = rig->config.index_head_dim;
    const float *pooled = rig->pooled[s] + (size_t)entry * dim;

    for (uint32_t block = 0; block < dim; block += 32) {
        double transformed[32], largest = 0;
        float scale = 0;

        for (uint32_t i = 0; i < 32; i++) {
            transformed[i] = 0;
            for (uint32_t c = 0; c < dim; c++)
                transformed[i] += __builtin_popcount(c & (block + i)) % 2 ? -(double)pooled[c]
                                                                          : (double)pooled[c];
            transformed[i] /= sqrt(dim);
            largest = fmax(largest, fabs(transformed[i]));
        }
        for (uint32_t i = 0; i < 32; i++) {
            double value = stored_key(rig, s, entry, block + i, &scale) / 2.0;
            double exact = transformed[i] / (double)scale, step;

            if (largest == 0) {
                assert_true(value == 0);
                continue;
            }
            step = fabs(exact) < 2 ? 0.5 : fabs(exact) < 4 ? 1 : 2;
            assert_true(fabs(value - exact) <= step / 2 + 1e-5);
        }
        assert_true(largest == 0 ||
                    (largest <= (double)scale * 6.00001 && largest > (double)scale * 2.99999));
    }
}

/* One head's codes of a query, by the kernels that have tests of their own. */
static void encode_query(const struct rig *rig, int s, uint32_t head, uint8_t *codes,
                         uint8_t *scale_bytes, float *rotated)
{
    const uint32_t dim = rig->config.index_head_dim, pairs = rig->config.qk_rope_head_dim / 2;

    memcpy(rotated, rig->q[s] + head * dim, dim * sizeof(float));
    rig->kernels.rotate(pairs, rotated + dim - 2 * pairs, rig->cosine + (uint32_t)s * pairs,
                        rig->sine + (uint32_t)s * pairs, 1.0f);
    rig->kernels.hadamard(dim, rotated);
    rig->kernels.index_encode(dim, rotated, codes, scale_bytes);
}

/* All entries' scores for query s, by the definition. */
static void score_all(const struct rig *rig, int s, uint32_t n_entries, float *scores)
{
    const uint32_t dim = rig->config.index_head_dim;
    uint8_t codes[HEADS][DIM_MAX], scale_bytes[HEADS][DIM_MAX / 32];
    float rotated[DIM_MAX];

    for (uint32_t h = 0; h < HEADS; h++)
        encode_query(rig, s, h, codes[h], scale_bytes[h], rotated);
    for (uint32_t e = 0; e < n_entries; e++) {
        scores[e] = 0;
        for (uint32_t h = 0; h < HEADS; h++) {
            float sum = 0, weight = rig->weights[s][h] * (1.0f / sqrtf((float)dim) / sqrtf(HEADS));

            for (uint32_t block = 0; block < dim; block += 32) {
                float scale = 0;
                int dot = 0;

                for (uint32_t c = block; c < block + 32; c++)
                    dot += stored_key(rig, s, e, c, &scale) * twice(codes[h][c]);
                /* An integer times powers of two: exact, so that only the sum rounds. */
                sum += (float)dot * 0.25f * scale * ldexpf(1, scale_bytes[h][block / 32] - 127);
            }
            scores[e] += weight * (sum > 0 ? sum : 0);
        }
    }
}

/* The same in `exact`: nothing is rounded, and sums are of double precision. */
static void score_all_exact(const struct rig *rig, int s, uint32_t n_entries, float *scores)
{
    const uint32_t dim = rig->config.index_head_dim;
    uint8_t codes[DIM_MAX], scale_bytes[DIM_MAX / 32];
    static float rotated[HEADS][DIM_MAX];

    for (uint32_t h = 0; h < HEADS; h++)
        encode_query(rig, s, h, codes, scale_bytes, rotated[h]);
    for (uint32_t e = 0; e < n_entries; e++) {
        const float *tile = (const float *)(const void *)sl_kv_key_tile(&rig->kv[s], 0, e);
        double total = 0;

        for (uint32_t h = 0; h < HEADS; h++) {
            float weight = rig->weights[s][h] * (1.0f / sqrtf((float)dim) / sqrtf(HEADS));
            double sum = 0;

            for (uint32_t c = 0; c < dim; c++)
                sum += (double)rotated[h][c] * (double)tile[e % 16 * dim + c];
            if (sum > 0)
                total += sum * (double)weight;
        }
        scores[e] = (float)total;
    }
}

/* Both queries at once, the second over fewer entries; for k = 1, 1 + stride, ... */
static void check_selections(const struct shape *shape, uint32_t stride, uint64_t *random)
{
    static uint32_t chosen[2][ENTRIES_MAX], order[2][ENTRIES_MAX];
    static float scores[ENTRIES_MAX];
    const uint32_t n_visible[2] = {shape->n_entries, shape->n_entries / 2 + 1};
    struct sl_index_query queries[2];
    struct rig rig;

    rig_init(&rig, shape, random);
    for (int s = 0; s < 2; s++) {
        for (uint32_t e = 0; shape->numerics == SL_NUMERICS_NATIVE && e < shape->n_entries; e += 7)
            check_stored_key(&rig, s, e);
        (shape->numerics == SL_NUMERICS_NATIVE ? score_all : score_all_exact)(&rig, s, n_visible[s],
                                                                              scores);
        rank(scores, n_visible[s], order[s]);
        queries[s] = (struct sl_index_query){.token = (uint32_t)s,
                                             .n_visible = n_visible[s],
                                             .q = rig.q[s],
                                             .weights = rig.weights[s],
                                             .ret_chosen = chosen[s]};
    }
    for (uint32_t k = 1; k < n_visible[1]; k += stride) {
        rig.config.index_topk = k;
        sl_indexer_select(rig.indexer, &rig.step, 0, queries, 2);
        for (int s = 0; s < 2; s++)
            check_chosen(chosen[s], order[s], n_visible[s], k);
    }
    rig_fini(&rig);
}

static void test_selection_is_by_the_codes(void **state)
{
    uint64_t random = 5;

    (void)state;
    for (uint32_t dim = 64; dim <= DIM_MAX; dim *= 2) {
        check_selections(&(struct shape){dim, 61, 1, SL_NUMERICS_NATIVE}, 1, &random);
        check_selections(&(struct shape){dim, 512 + dim, 3, SL_NUMERICS_NATIVE}, 41, &random);
        check_selections(&(struct shape){dim, 61, 2, SL_NUMERICS_EXACT}, 1, &random);
    }
    check_selections(&(struct shape){64, 1100, 5, SL_NUMERICS_NATIVE}, 61, &random);
    /* Threads share the choice, in up to 16 ranges. */
    check_selections(&(struct shape){64, 2900, 33, SL_NUMERICS_NATIVE}, 9, &random);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_select_top_is_a_stable_sort),
        cmocka_unit_test(test_select_top_of_many),
        cmocka_unit_test(test_selection_is_by_the_codes),
    };

    return cmocka_run_group_tests_name("indexer", tests, NULL, NULL);
}
