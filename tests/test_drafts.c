/* The forward pass that makes drafts. What the MTP block guesses, to the bit, is what it gives in a
 * pass over all tokens, and from its own output where it is chained; whatever company it has, from
 * wherever it begins as long as a window is there, whatever was guessed before and taken back, and
 * while reads fail and passes are stopped or abandoned. Streams and guesses are put together by
 * hand for what is expected. SL_SEED repeats a run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/model/forward_internal.h"
#include "tests/engine_rig.h"
#include "tests/fault_alloc.h"
#include "tests/kernel_inputs.h"

#define TOKENS ENGINE_RIG_TOKENS
#define DEPTH 3u
#define SEQUENCES 4u
#define EVENTS 150u
#define EVENTS_MAX 8000u /* where something has not happened yet */

struct world {
    struct engine_rig *m;
    struct sl_engine *engine;
    struct sl_forward *forward;
    float *expected; /* (TOKENS, DEPTH, vocab_size) by the last token seen */
    atomic_bool stop;
    uint64_t random;

    /* The pass at hand. */
    struct sl_draft_span spans[SEQUENCES];
    uint32_t n_seen[SEQUENCES]; /* tokens of each span's sequence */
    bool is_whole[SEQUENCES];   /* the block has had a window, or all there was */
    uint32_t n_guessed[SEQUENCES];
    uint64_t n_checked, n_begun_anew, n_failed, n_stopped, n_abandoned, n_shortened;
};

/* What is guessed, right or wrong: it depends on the place alone, so that expectations can. */
static int32_t guess(const struct world *w, uint32_t n_seen, uint32_t depth)
{
    return (int32_t)((n_seen * 7 + depth * 31 + 3) % w->m->config.vocab_size);
}

/* ---- what is expected --------------------------------------------------------------------------
 */

/* Lets the block's output stand for the streams of a step of one token, its last. */
static void feed_back(struct sl_forward *f, struct sl_kv_cache *kv, uint32_t last)
{
    const size_t size = (size_t)f->params.config->hc_mult * f->params.config->hidden_size;
    struct sl_kv_rollback *step = &f->rollback[SL_FORWARD_MAIN];

    memmove(f->step.streams, f->step.streams + last * size, size * sizeof(float));
    step->n_spans = 1;
    step->spans[0] = (struct sl_kv_rollback_span){kv, kv->n_mtp_tokens, 1, 1};
    f->state = SL_FORWARD_STREAMS_LEFT;
}

static void expect_from(struct world *w, uint32_t n_seen)
{
    const size_t vocab_size = w->m->config.vocab_size;
    struct engine_rig_rows rows = {w->expected + (n_seen - 1) * DEPTH * vocab_size,
                                   w->m->row_bytes};
    struct sl_kv_cache *kv;
    struct sl_span span;
    struct sl_step_request request = {.spans = &span,
                                      .n_spans = 1,
                                      .on_logits = engine_rig_keep_rows,
                                      .on_logits_context = &rows};
    int32_t next;

    assert_int_equal(sl_engine_sequence_create(w->engine, TOKENS, &kv, NULL), 0);
    span = (struct sl_span){kv, w->m->tokens, n_seen, SL_LOGITS_NONE};
    assert_int_equal(sl_forward_step(w->forward, &request, NULL), 0);
    span = (struct sl_span){kv, w->m->tokens + 1, n_seen, SL_LOGITS_LAST};
    assert_int_equal(sl_forward_mtp(w->forward, &request, NULL), 0);
    for (uint32_t depth = 1; depth < DEPTH && n_seen + depth <= TOKENS; depth++) {
        feed_back(w->forward, kv, depth == 1 ? n_seen - 1 : 0);
        next = guess(w, n_seen, depth - 1);
        span = (struct sl_span){kv, &next, 1, SL_LOGITS_LAST};
        assert_int_equal(sl_forward_mtp(w->forward, &request, NULL), 0);
    }
    sl_engine_sequence_destroy(w->engine, kv);
}

/* ---- passes ------------------------------------------------------------------------------------
 */

static void take_guesses(void *context, const struct sl_logits_row *rows, uint32_t n_rows,
                         int32_t *ret_ids)
{
    struct world *w = context;
    const size_t vocab_size = w->m->config.vocab_size;

    for (uint32_t i = 0; i < n_rows; i++) {
        const uint32_t s = rows[i].span_index, depth = rows[i].token_index;

        assert_int_equal(depth, w->n_guessed[s]++);
        assert_true(depth < w->spans[s].n_drafts);
        ret_ids[i] = guess(w, w->n_seen[s], depth);
        if (!w->is_whole[s])
            continue;
        w->n_checked++;
        if (memcmp(rows[i].logits, w->expected + ((w->n_seen[s] - 1) * DEPTH + depth) * vocab_size,
                   w->m->row_bytes) != 0)
            fail_msg("guess %u after %u tokens differs", depth, w->n_seen[s]);
    }
}

/* Adds a span of the step for the draft to see, wholly or in part, and perhaps to go on from. */
static void add_span(struct world *w, uint32_t i, uint32_t span_index, struct sl_kv_cache *kv,
                     uint32_t n_kept)
{
    const uint32_t window = w->m->config.sliding_window, room = TOKENS - kv->n_tokens;
    const uint32_t n_drafts = fixture_below(&w->random, DEPTH + 1);
    struct sl_draft_span *span = &w->spans[i];
    uint32_t first;

    *span = (struct sl_draft_span){
        .span_index = span_index,
        .n_seen = fixture_below(&w->random, 3) ? n_kept : 1 + fixture_below(&w->random, n_kept),
        .n_drafts = n_drafts < room ? n_drafts : room};
    first = kv->n_tokens - span->n_seen;
    span->next = w->m->tokens + first + 1;
    w->n_seen[i] = kv->n_tokens;
    w->n_guessed[i] = 0;
    w->n_begun_anew += kv->n_mtp_tokens != first;
    if (kv->n_mtp_tokens == first)
        first = kv->mtp_first;
    w->is_whole[i] = first == 0 || kv->n_tokens - first >= window;
}

/* The pass has failed, or was given up: nobody is in it, and the block has missed the tokens. */
static void lose_pass(struct world *w, struct sl_kv_cache *const *kvs, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        assert_false(kvs[i]->in_step);
        assert_int_equal(kvs[i]->n_tokens, w->n_seen[i]);
        assert_int_equal(kvs[i]->n_mtp_tokens, w->n_seen[i] - w->spans[i].n_seen);
    }
}

static void run_pass(struct world *w, struct sl_kv_cache *const *kvs, uint32_t n)
{
    const struct sl_draft_request request = {w->spans, n, &w->stop, take_guesses, w};
    const uint64_t n_allocations = fault_alloc_total_count();
    struct sl_err err;
    int rc = sl_forward_begin_drafts(w->forward, &request, &err);

    assert_int_equal(rc, 0);
    do {
        if (fixture_below(&w->random, 40) == 0) {
            sl_forward_abandon(w->forward);
            lose_pass(w, kvs, n);
            w->n_abandoned++;
            return;
        }
        atomic_store(&w->stop, fixture_below(&w->random, 40) == 0);
        rc = sl_forward_advance(w->forward, &err);
    } while (rc > 0);
    atomic_store(&w->stop, false);
    if (rc == 0) {
        sl_forward_end(w->forward, NULL);
        assert_int_equal(fault_alloc_total_count(), n_allocations);
        for (uint32_t i = 0; i < n; i++) {
            assert_int_equal(w->n_guessed[i], w->spans[i].n_drafts);
            assert_int_equal(kvs[i]->n_mtp_tokens, kvs[i]->n_tokens);
        }
        return;
    }
    if (rc != -EIO && rc != -ECANCELED)
        fail_msg("%d: %s", rc, err.message);
    lose_pass(w, kvs, n);
    w->n_stopped += rc == -ECANCELED;
    w->n_failed += rc == -EIO;
    io_fault_mend(engine_rig_faulty());
}

/* Takes a step up to its end, as often as it fails. */
static void take_step(struct world *w, const struct sl_step_request *request)
{
    int rc;

    do {
        assert_int_equal(sl_forward_begin(w->forward, request, NULL), 0);
        while ((rc = sl_forward_advance(w->forward, NULL)) > 0)
            ;
        if (rc < 0)
            io_fault_mend(engine_rig_faulty());
    } while (rc < 0);
}

/* A step of some sequences, of which not all tokens are kept, and a pass over some of them. */
static void play(struct world *w)
{
    struct sl_kv_cache *kvs[SEQUENCES];
    struct sl_span spans[SEQUENCES];
    uint32_t n_kept[SEQUENCES], n = 0;
    const struct sl_step_request request = {.spans = spans, .n_spans = SEQUENCES};

    for (uint32_t i = 0; i < SEQUENCES; i++) {
        struct sl_kv_cache *kv = engine_rig_kv(w->engine, i);
        uint32_t left = TOKENS - 2 - kv->n_tokens, k;

        if (left == 0)
            sl_kv_cache_clear(kv);
        left = TOKENS - 2 - kv->n_tokens;
        k = fixture_below(&w->random, 3) ? 1 + fixture_below(&w->random, 4) : left;
        k = k < left ? k : left;
        spans[i] = (struct sl_span){kv, w->m->tokens + kv->n_tokens, k, SL_LOGITS_NONE};
        n_kept[i] = k;
        if (k <= sl_kv_rollback_tokens_max(&w->m->config) && fixture_below(&w->random, 2))
            n_kept[i] = fixture_below(&w->random, k + 1);
        w->n_shortened += n_kept[i] < k;
    }
    take_step(w, &request);
    sl_forward_end(w->forward, n_kept);
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        if (n_kept[i] == 0 || fixture_below(&w->random, 8) == 0)
            continue;
        kvs[n] = spans[i].kv;
        add_span(w, n, i, kvs[n], n_kept[i]);
        n++;
    }
    if (n == 0)
        return;
    run_pass(w, kvs, n);
}

static bool has_seen_all(const struct world *w)
{
    return w->n_checked > 0 && w->n_begun_anew > 0 && w->n_stopped > 0 && w->n_abandoned > 0 &&
           w->n_shortened > 0;
}

static void test_guesses_are_what_the_block_gives(void **state)
{
    static struct world w;
    const struct io_fault_plan plan = {.seed = inputs_seed(),
                                       .short_permille = 20,
                                       .shuffle = true,
                                       .gap_reads = 25,
                                       .late_ns = 2 * SL_READER_STALL_NS,
                                       .fail_for_good = true};
    struct sl_engine_options options = engine_rig_options(*state);
    char store_folder[FIXTURE_PATH_BYTES];

    engine_rig_pack(*state, "store", 0, false, store_folder);
    options.model = store_folder;
    options.verify = SL_VERIFY_ALWAYS; /* damage is found, and read again */
    w = (struct world){.m = *state, .random = inputs_seed()};
    options.n_sequences = SEQUENCES + 1;
    options.segment_tokens = SEQUENCES * TOKENS;
    engine_rig_make_faulty(&options);
    w.expected = calloc(TOKENS * DEPTH, w.m->row_bytes);
    assert_non_null(w.expected);
    assert_int_equal(sl_engine_open(&w.engine, &options, NULL, NULL), 0);
    w.forward = sl_engine_forward(w.engine, SL_STEP_LARGE);
    for (uint32_t n_seen = 1; n_seen < TOKENS; n_seen++)
        expect_from(&w, n_seen);
    /* The first guess is what a pass over all gives, so both are right or wrong together. */
    for (uint32_t n_seen = 1; n_seen < TOKENS; n_seen++)
        assert_memory_equal(w.expected + (n_seen - 1) * DEPTH * w.m->config.vocab_size,
                            w.m->mtp_logits + (n_seen - 1) * w.m->config.vocab_size,
                            w.m->row_bytes);
    io_fault_set(engine_rig_faulty(), &plan);
    for (uint32_t i = 0; i < EVENTS || (!has_seen_all(&w) && i < EVENTS_MAX); i++)
        play(&w);
    print_message("%" PRIu64 " guesses, %" PRIu64 " begun anew, %" PRIu64 " passes failed, %" PRIu64
                  " stopped, %" PRIu64 " abandoned, %" PRIu64 " spans shortened\n",
                  w.n_checked, w.n_begun_anew, w.n_failed, w.n_stopped, w.n_abandoned,
                  w.n_shortened);
    assert_true(has_seen_all(&w));
    io_fault_heal(engine_rig_faulty());
    sl_engine_close(w.engine);
    free(w.expected);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_guesses_are_what_the_block_gives),
    };

    print_message("SL_SEED=%" PRIu64 "\n", inputs_seed());
    return cmocka_run_group_tests_name("drafts", tests, engine_rig_create, engine_rig_destroy);
}
