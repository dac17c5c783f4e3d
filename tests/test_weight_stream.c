/* Dense weights that stream: whatever the number of layers that do, of windows, and the order in
 * which reads land, the logits are those of weights that stay. A reader in memory stands in for the
 * drives: it lands reads late and at any alignment, fails the nth one, delivers what its checksum
 * does not know, and keeps slots that a drive may still write to. Each read of a step in turn
 * fails, once and for good; forwards take turns between layers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/base/size.h"
#include "core/kernels/dispatch.h"
#include "tests/engine_rig.h"
#include "tests/kv_rig.h"

#define TOKENS ENGINE_RIG_TOKENS
#define SLOTS_MAX 192u
#define LAYERS 5u /* the MTP block's included */

/* ---- a reader in memory ------------------------------------------------------------------------
 */

struct slot {
    const char *name;
    uint64_t offset_bytes, size_bytes;
    uint8_t *dst;
    uint64_t nth; /* which read it is */
    uint32_t asked;
    bool busy, urgent, cancelled, late;
};

struct rig {
    struct sl_weight_reader reader; /* first */
    const struct engine_rig *m;
    struct slot slots[SLOTS_MAX];
    uint32_t n_slots;
    uint64_t n_begun, n_rows, random;

    uint64_t fail_nth; /* the read that fails; 0: none */
    bool for_good;     /* and all later ones of its tensor */
    enum { FAILS, CORRUPT, LATE } kind;
    char failed[64]; /* the tensor */
    bool all_late;   /* every read is late from now on */

    struct sl_pool *pool;
    struct sl_kernels kernels;
    struct sl_compute compute;
    struct sl_weights weights;
    struct sl_kv_pool kv_pool;
};

static struct rig *rig_of(struct sl_weight_reader *reader)
{
    return (struct rig *)(void *)reader;
}

static bool is_hit(struct rig *rig, const struct slot *slot)
{
    if (rig->fail_nth && slot->nth == rig->fail_nth) {
        snprintf(rig->failed, sizeof(rig->failed), "%s", slot->name);
        return true;
    }
    return rig->for_good && rig->failed[0] && strcmp(slot->name, rig->failed) == 0;
}

static void begin(struct sl_weight_reader *reader, uint32_t slot_index, const char *name,
                  uint64_t offset_bytes, uint64_t size_bytes, uint8_t *dst, bool urgent)
{
    struct rig *rig = rig_of(reader);
    struct slot *slot = &rig->slots[slot_index];

    assert_true(slot_index < rig->n_slots && !slot->busy && !slot->late);
    assert_int_equal((uintptr_t)dst % SL_BLOCK_BYTES, 0);
    *slot = (struct slot){name, offset_bytes, size_bytes, dst,   ++rig->n_begun,
                          0,    true,         urgent,     false, false};
    rig->n_rows += strcmp(name, SL_EMBED_TENSOR) == 0;
}

static void start(struct sl_weight_reader *reader)
{
    (void)reader;
}

static void hurry(struct sl_weight_reader *reader, uint32_t slot_index)
{
    rig_of(reader)->slots[slot_index].urgent = true;
}

static void cancel(struct sl_weight_reader *reader, uint32_t slot_index)
{
    rig_of(reader)->slots[slot_index].cancelled = true;
}

static int end(struct sl_weight_reader *reader, uint32_t slot_index, bool wait,
               const uint8_t **ret_bytes, struct sl_err *err)
{
    struct rig *rig = rig_of(reader);
    struct slot *slot = &rig->slots[slot_index];
    const struct fixture_weight *weight;
    uint8_t *bytes;

    assert_true(slot->busy);
    if (!wait && slot->asked++ < 3 && fixture_below(&rig->random, 3) > 0)
        return 0;
    slot->busy = false;
    if (slot->cancelled)
        return sl_err_set(err, -ECANCELED, "cancelled");
    if (rig->all_late || (rig->kind == LATE && is_hit(rig, slot))) {
        slot->late = true;
        return sl_err_set(err, -ETIMEDOUT, "tensor \"%s\": late", slot->name);
    }
    if (rig->kind == FAILS && is_hit(rig, slot))
        return sl_err_set(err, -EIO, "tensor \"%s\": failed", slot->name);
    weight = fixture_weights_find((struct fixture_weights *)(uintptr_t)&rig->m->source, slot->name);
    assert_true(slot->offset_bytes + slot->size_bytes <= weight->info.size_bytes);
    bytes =
        slot->dst + fixture_below(&rig->random, 2) * fixture_below(&rig->random, SL_BLOCK_BYTES);
    memcpy(bytes, weight->data + slot->offset_bytes, slot->size_bytes);
    *ret_bytes = bytes;
    return 1;
}

static bool is_free(struct sl_weight_reader *reader, uint32_t slot_index)
{
    const struct slot *slot = &rig_of(reader)->slots[slot_index];

    return !slot->busy && !slot->late;
}

/* The slot that the bytes lie in tells which read they are of. */
static int check(struct sl_weight_reader *reader, const char *name, uint64_t offset_bytes,
                 uint64_t size_bytes, const uint8_t *bytes, struct sl_err *err)
{
    struct rig *rig = rig_of(reader);

    (void)offset_bytes;
    for (uint32_t i = 0; i < rig->n_slots; i++) {
        const struct slot *slot = &rig->slots[i];

        if (slot->dst && bytes >= slot->dst && bytes < slot->dst + SL_BLOCK_BYTES &&
            slot->size_bytes == size_bytes && rig->kind == CORRUPT && is_hit(rig, slot))
            return sl_err_set(err, -SL_ECORRUPT, "tensor \"%s\": corrupt", name);
    }
    return 0;
}

static const struct sl_weight_reader_ops ops = {begin, start, hurry, cancel, end, is_free, check};

/* ---- weights over it ---------------------------------------------------------------------------
 */

static void background(void *context)
{
    sl_weights_background(context);
}

static void rig_init(struct rig *rig, const struct engine_rig *m,
                     const struct sl_weight_residency *residency, uint64_t random)
{
    struct fixture_weights *source = (struct fixture_weights *)(uintptr_t)&m->source;
    struct sl_weight_sizes sizes;

    *rig = (struct rig){.reader = {&ops}, .m = m, .random = random};
    assert_int_equal(sl_pool_create(&rig->pool, 2, NULL), 0);
    assert_int_equal(sl_kernels_select(&rig->kernels, NULL, NULL), 0);
    assert_int_equal(sl_weights_measure(&m->config, &source->source, &fixture_mtp, &sizes, NULL),
                     0);
    assert_int_equal(sizes.n_layers, LAYERS);
    assert_int_equal(fixture_weights_load(source, &rig->weights, &m->config, &fixture_mtp,
                                          residency, rig->pool, NULL),
                     0);
    assert_in_range(sl_weights_bytes(&sizes, residency) - rig->weights.arena.used_bytes, 0,
                    SL_BLOCK_BYTES - 1);
    rig->n_slots = sl_weights_slot_count(&sizes, residency);
    assert_in_range(rig->n_slots, 0, SLOTS_MAX);
    if (rig->n_slots > 0)
        sl_weights_start(&rig->weights, &source->source, &rig->reader, rig->pool);
    rig->compute = (struct sl_compute){
        .kernels = &rig->kernels, .pool = rig->pool, .background = {background, &rig->weights}};
    kv_rig_pool(&rig->kv_pool, &m->config, LAYERS, SL_NUMERICS_NATIVE, 2, TOKENS);
}

static void rig_fini(struct rig *rig)
{
    sl_weights_stop(&rig->weights);
    for (uint32_t i = 0; i < rig->n_slots; i++)
        assert_false(rig->slots[i].busy);
    sl_kv_pool_fini(&rig->kv_pool);
    sl_weights_fini(&rig->weights);
    sl_pool_destroy(rig->pool);
}

static struct sl_forward *make_forward(struct rig *rig, const struct fixture_experts *experts,
                                       struct sl_kv_cache *kv)
{
    const struct sl_forward_params params = {
        .config = &rig->m->config,
        .weights = &rig->weights,
        .compute = &rig->compute,
        .source = (struct sl_expert_source *)(uintptr_t)&experts->source,
        .tokens_max = TOKENS,
        .context_max = TOKENS,
        .spans_max = 1};
    struct sl_forward *forward;

    assert_int_equal(sl_forward_create(&forward, &params, NULL), 0);
    assert_int_equal(sl_kv_cache_init(kv, &rig->kv_pool, TOKENS, NULL), 0);
    return forward;
}

/* All tokens, `at_once` at a time, and the MTP block after each step. */
static void check_answer(struct rig *rig, uint32_t at_once)
{
    const struct engine_rig *m = rig->m;
    float *logits = calloc(2, m->logits_bytes);
    float *mtp_logits = logits + m->logits_bytes / sizeof(float);
    struct sl_forward *forward;
    struct sl_kv_cache kv;

    assert_non_null(logits);
    forward = make_forward(rig, &m->experts, &kv);
    engine_rig_run(m, forward, &kv, at_once, logits, mtp_logits);
    assert_memory_equal(logits, m->logits, m->logits_bytes);
    assert_memory_equal(mtp_logits, m->mtp_logits, m->logits_bytes - m->row_bytes);
    sl_forward_destroy(forward);
    sl_kv_cache_fini(&kv);
    free(logits);
}

/* ---- tests -------------------------------------------------------------------------------------
 */

static void test_layers_are_spread_evenly(void **state)
{
    (void)state;
    for (uint32_t n_layers = 1; n_layers <= 62; n_layers += 3)
        for (uint32_t n = 0; n <= n_layers; n++) {
            const struct sl_weight_residency residency = {.n_streamed = n, .n_windows = 2};
            uint32_t n_found = 0;

            for (uint32_t i = 0; i < n_layers; i++) {
                n_found += sl_weights_streams(&residency, n_layers, i);
                assert_int_equal(n_found, (i + 1) * n / n_layers);
            }
        }
}

static void test_one_answer(void **state)
{
    static const uint32_t at_once[] = {1, 7, TOKENS};
    struct sl_weight_stream_counters counters;
    struct rig rig;

    for (uint32_t n = 0; n <= LAYERS; n++)
        for (uint32_t n_windows = SL_WINDOWS_MIN; n_windows <= SL_WINDOWS_MAX; n_windows++)
            for (uint32_t k = 0; k < SL_ARRAY_LEN(at_once); k++) {
                const struct sl_weight_residency residency = {.n_streamed = n,
                                                              .n_windows = n_windows};

                rig_init(&rig, *state, &residency, 100 * n + 10 * n_windows + k);
                check_answer(&rig, at_once[k]);
                if (n > 0) {
                    counters = sl_weight_stream_counters(rig.weights.stream);
                    assert_true(counters.n_acquired + 1 >=
                                n * (TOKENS / at_once[k])); /* MTP ends earlier */
                    /* With as many windows nothing is read twice; with fewer, each time. */
                    if (n <= n_windows)
                        assert_int_equal(counters.n_loads, n);
                    else
                        assert_in_range(counters.n_loads, counters.n_acquired,
                                        counters.n_acquired + n_windows);
                }
                rig_fini(&rig);
            }
}

/* A step reads each row of the embedding once, however many tokens have it. */
static void test_rows_are_read_once(void **state)
{
    const struct engine_rig *m = *state;
    const struct sl_weight_residency residency = {0};
    uint32_t n_distinct = 0, n_mtp = 0;
    struct rig rig;

    for (uint32_t i = 0; i < TOKENS; i++) {
        bool again = false, again_mtp = i == 0;

        for (uint32_t k = 0; k < i; k++) {
            again |= m->tokens[k] == m->tokens[i];
            again_mtp |= k > 0 && m->tokens[k] == m->tokens[i];
        }
        n_distinct += !again;
        n_mtp += !again_mtp;
    }
    rig_init(&rig, m, &residency, 1);
    check_answer(&rig, TOKENS);
    assert_int_equal(rig.n_rows, n_distinct + n_mtp);
    assert_int_equal(rig.n_begun, rig.n_rows);
    rig_fini(&rig);
}

/* Two forwards over the same windows, a layer of one or the other at random. */
static void test_forwards_take_turns(void **state)
{
    const struct engine_rig *m = *state;
    const struct sl_weight_residency residency = {.n_streamed = LAYERS, .n_windows = 2};
    float *logits[2] = {calloc(1, m->logits_bytes), calloc(1, m->logits_bytes)};
    struct engine_rig_rows rows[2];
    struct sl_span spans[2];
    struct sl_forward *forwards[2];
    struct sl_kv_cache kvs[2];
    bool open[2] = {false, false};
    struct fixture_experts second; /* each is asked by one forward */
    struct rig rig;

    fixture_experts_init(&second, &m->config, m->config.n_routed_experts, 42);
    rig_init(&rig, m, &residency, 5);
    for (int i = 0; i < 2; i++) {
        forwards[i] = make_forward(&rig, i ? &second : &m->experts, &kvs[i]);
        rows[i] = (struct engine_rig_rows){logits[i], m->row_bytes};
    }
    while (kvs[0].n_tokens < TOKENS || kvs[1].n_tokens < TOKENS) {
        const uint32_t i = fixture_below(&rig.random, 2), done = kvs[i].n_tokens;

        if (!open[i] && done == TOKENS)
            continue;
        if (!open[i]) {
            const uint32_t n =
                1 + fixture_below(&rig.random, TOKENS - done < 9 ? TOKENS - done : 9);
            const struct sl_step_request request = {.spans = &spans[i],
                                                    .n_spans = 1,
                                                    .on_logits = engine_rig_keep_rows,
                                                    .on_logits_context = &rows[i]};

            spans[i] = (struct sl_span){&kvs[i], m->tokens + done, n, SL_LOGITS_ALL};
            assert_int_equal(sl_forward_begin(forwards[i], &request, NULL), 0);
            open[i] = true;
        } else {
            const int rc = sl_forward_advance(forwards[i], NULL);

            assert_true(rc >= 0);
            if (rc == 0)
                sl_forward_end(forwards[i], NULL);
            open[i] = rc > 0;
        }
    }
    for (int i = 0; i < 2; i++) {
        assert_memory_equal(logits[i], m->logits, m->logits_bytes);
        sl_forward_destroy(forwards[i]);
        sl_kv_cache_fini(&kvs[i]);
        free(logits[i]);
    }
    fixture_experts_fini(&second);
    rig_fini(&rig);
}

static int take_step(struct rig *rig, struct sl_forward *forward, struct sl_kv_cache *kv,
                     uint32_t n_tokens, float *logits, struct sl_err *err)
{
    struct engine_rig_rows rows = {logits, rig->m->row_bytes};
    struct sl_span span = {kv, rig->m->tokens + kv->n_tokens, n_tokens, SL_LOGITS_ALL};
    const struct sl_step_request request = {.spans = &span,
                                            .n_spans = 1,
                                            .on_logits = engine_rig_keep_rows,
                                            .on_logits_context = &rows};

    return sl_forward_step(forward, &request, err);
}

/* The nth read of the second step goes wrong. Returns false if there was no such read. */
static bool nth_read(const struct engine_rig *m, uint64_t nth, int kind, bool for_good,
                     uint32_t *n_failed)
{
    static const int codes[] = {-EIO, -SL_ECORRUPT, -ETIMEDOUT};
    const struct sl_weight_residency residency = {.n_streamed = LAYERS, .n_windows = 2};
    float *logits = calloc(1, m->logits_bytes);
    struct sl_forward *forward;
    struct sl_kv_cache kv;
    struct sl_err err = {0};
    struct rig rig;
    bool happened;
    int rc;

    assert_non_null(logits);
    rig_init(&rig, m, &residency, nth);
    forward = make_forward(&rig, &m->experts, &kv);
    assert_int_equal(take_step(&rig, forward, &kv, 9, logits, NULL), 0);
    rig.fail_nth = rig.n_begun + nth;
    rig.kind = kind;
    rig.for_good = for_good;
    rc = take_step(&rig, forward, &kv, 3, logits, &err);
    happened = rig.n_begun >= rig.fail_nth;
    assert_true(rc == 0 || rc == codes[kind]);
    /* Corrupt data are read again. Rows of the embedding have no checksum. */
    if (kind == CORRUPT && !for_good)
        assert_int_equal(rc, 0);
    assert_true(rc == 0 || happened);
    if (rc < 0 && (!strstr(err.message, "tensor \"") || !strstr(err.message, rig.failed)))
        fail_msg("%s", err.message);
    if (rc < 0 && strncmp(rig.failed, "embed", 5) != 0)
        assert_non_null(strstr(err.message, "layer "));
    *n_failed += rc < 0;
    assert_int_equal(kv.n_tokens, rc < 0 ? 9 : 12);
    rig.fail_nth = 0;
    rig.for_good = false;
    rig.failed[0] = 0;
    if (rc < 0)
        assert_int_equal(take_step(&rig, forward, &kv, 3, logits, NULL), 0);
    assert_memory_equal(logits, m->logits + 9 * m->config.vocab_size, 3 * m->row_bytes);
    sl_forward_destroy(forward);
    sl_kv_cache_fini(&kv);
    for (uint32_t i = 0; i < rig.n_slots; i++)
        rig.slots[i].late = false;
    rig_fini(&rig);
    free(logits);
    return happened;
}

static void test_nth_read_goes_wrong(void **state)
{
    for (int kind = FAILS; kind <= LATE; kind++)
        for (int for_good = 0; for_good < 2; for_good++) {
            uint32_t n_failed = 0, n_tried = 0;

            for (uint64_t nth = 1; n_tried < 1000; nth += 7, n_tried++)
                if (!nth_read(*state, nth, kind, for_good, &n_failed))
                    break;
            assert_in_range(n_tried, 10, 999);
            if (for_good)
                assert_true(n_failed > n_tried / 2);
        }
}

/* Where late drives have every slot, steps fail with a line that says so, until they answer. */
static void test_all_slots_are_late(void **state)
{
    const struct engine_rig *m = *state;
    const struct sl_weight_residency residency = {.n_streamed = LAYERS, .n_windows = 3};
    float *logits = calloc(1, m->logits_bytes);
    struct sl_forward *forward;
    struct sl_kv_cache kv;
    struct sl_err err = {0};
    uint32_t n_steps = 0;
    struct rig rig;

    assert_non_null(logits);
    rig_init(&rig, m, &residency, 1);
    forward = make_forward(&rig, &m->experts, &kv);
    rig.all_late = true;
    while (!strstr(err.message, "no room is left to read") && n_steps++ < SLOTS_MAX)
        assert_int_equal(take_step(&rig, forward, &kv, 9, logits, &err), -ETIMEDOUT);
    assert_in_range(n_steps, 1, SLOTS_MAX);
    rig.all_late = false;
    for (uint32_t i = 0; i < rig.n_slots; i++)
        rig.slots[i].late = false;
    assert_int_equal(take_step(&rig, forward, &kv, 9, logits, NULL), 0);
    assert_memory_equal(logits, m->logits, 9 * m->row_bytes);
    sl_forward_destroy(forward);
    sl_kv_cache_fini(&kv);
    rig_fini(&rig);
    free(logits);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layers_are_spread_evenly), cmocka_unit_test(test_one_answer),
        cmocka_unit_test(test_rows_are_read_once),       cmocka_unit_test(test_forwards_take_turns),
        cmocka_unit_test(test_nth_read_goes_wrong),      cmocka_unit_test(test_all_slots_are_late),
    };

    return cmocka_run_group_tests_name("weight_stream", tests, engine_rig_create,
                                       engine_rig_destroy);
}
