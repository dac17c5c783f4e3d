/* Steps that take turns: three forwards of one engine, over the same weights, expert cache and
 * drives, begin, advance, end, abandon and roll back steps at random (SL_SEED=n gives others), now
 * and then stopped, losing a span, or failing by reads that go wrong. Whatever happened before,
 * every row of logits is that of one sequence alone, and every sequence is where it must be.
 * Drafts, which are wrong from some token on, ride along and leave no trace. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/model/kv_rollback.h"
#include "tests/engine_rig.h"
#include "tests/kernel_inputs.h"

#define TOKENS ENGINE_RIG_TOKENS
#define SEQUENCES 6u /* all of the model's tokens */
#define PLAYERS 3u
#define SPANS_MAX 3u
#define EVENTS 4000u
#define EVENTS_SLOW 3000u

struct world;

/* A forward and the step that it has open. */
struct player {
    struct world *world;
    struct sl_forward *forward;
    uint32_t tokens_max;
    atomic_bool stop;
    bool open, mtp;
    uint32_t n_spans;
    struct sl_span spans[SPANS_MAX];
    uint32_t first[SPANS_MAX]; /* position of each span's first token */
    uint32_t
        n_right[SPANS_MAX];     /* tokens of each that are the model's; the rest are wrong drafts */
    uint32_t n_rows[SPANS_MAX]; /* of logits that were given */
    int32_t tokens[SPANS_MAX][TOKENS];
};

enum count {
    ENDED,
    SHORTENED, /* ended with some tokens of a span not kept */
    STOPPED,
    FAILED,
    ABANDONED,
    DROPPED, /* spans that left a step */
    ROLLED_BACK,
    PARKED, /* advances while another step was open */
    COUNTS
};
static const char *const count_names[COUNTS] = {
    "ended",     "shortened", "stopped",     "failed",
    "abandoned", "dropped",   "rolled back", "advances beside others"};

struct world {
    const struct engine_rig *m;
    struct sl_engine *engine;
    struct player players[PLAYERS];
    bool with_mtp; /* a pass of the MTP block follows each step */
    uint64_t random;
    uint64_t counts[COUNTS];
};

static uint32_t below(struct world *w, uint32_t limit)
{
    return fixture_below(&w->random, limit);
}

/* ---- what must hold ----------------------------------------------------------------------------
 */

/* Rows of a span that are still to come. */
static uint32_t n_rows_due(const struct player *p, uint32_t i)
{
    const uint32_t n = p->spans[i].n_tokens;

    return (p->spans[i].logits == SL_LOGITS_ALL || n == 0 ? n : 1) - p->n_rows[i];
}

static void check_rows(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    struct player *p = context;
    const struct engine_rig *m = p->world->m;

    for (uint32_t i = 0; i < n_rows; i++) {
        const uint32_t span = rows[i].span_index;
        const uint32_t position = p->first[span] + rows[i].token_index;

        assert_int_equal(rows[i].token_index, p->spans[span].n_tokens - n_rows_due(p, span));
        p->n_rows[span]++;
        if (rows[i].token_index >= p->n_right[span])
            continue;
        if (memcmp(rows[i].logits,
                   (p->mtp ? m->mtp_logits : m->logits) + position * m->config.vocab_size,
                   m->row_bytes) != 0)
            fail_msg("%slogits after token %u differ", p->mtp ? "MTP " : "", position);
    }
}

/* Layers run over the tokens that are in the step, and no others. */
static void check_route(void *context, uint32_t layer_index, uint32_t n_tokens,
                        const uint16_t *experts)
{
    const struct player *p = context;
    uint32_t n = 0;

    (void)layer_index;
    (void)experts;
    for (uint32_t i = 0; i < p->n_spans; i++)
        n += p->spans[i].n_tokens;
    assert_int_equal(n_tokens, n);
}

/* Nobody has the sequences of the player's step any more, and they have seen n_kept[i] tokens of it
 * each (NULL: none). */
static void check_sequences(const struct player *p, const uint32_t *n_kept)
{
    for (uint32_t i = 0; i < p->n_spans; i++) {
        const struct sl_kv_cache *kv = p->spans[i].kv;

        assert_false(kv->in_step);
        assert_int_equal(kv->n_tokens, p->first[i] + (n_kept ? n_kept[i] : 0));
        if (p->world->with_mtp)
            assert_int_equal(kv->n_mtp_tokens, p->first[i]);
    }
}

/* ---- what happens ------------------------------------------------------------------------------
 */

/* A span of a sequence that is in no step: its next tokens, the later ones perhaps wrong. */
static void add_span(struct player *p, struct sl_kv_cache *kv, uint32_t room)
{
    struct world *w = p->world;
    const uint32_t i = p->n_spans++, left = TOKENS - kv->n_tokens;
    uint32_t n = below(w, 3) ? 1 + below(w, 9) : 1 + below(w, TOKENS);

    n = n < left ? n : left;
    n = n < room ? n : room;
    p->first[i] = kv->n_tokens;
    p->n_right[i] = n;
    if (n <= sl_kv_rollback_tokens_max(&w->m->config) && below(w, 2))
        p->n_right[i] = below(w, n + 1);
    for (uint32_t t = 0; t < n; t++)
        p->tokens[i][t] = t < p->n_right[i] ? w->m->tokens[kv->n_tokens + t]
                                            : (int32_t)below(w, w->m->config.vocab_size);
    p->n_rows[i] = 0;
    p->spans[i] =
        (struct sl_span){kv, p->tokens[i], n, below(w, 4) ? SL_LOGITS_ALL : SL_LOGITS_LAST};
}

static struct sl_step_request request_of(struct player *p)
{
    return (struct sl_step_request){.spans = p->spans,
                                    .n_spans = p->n_spans,
                                    .stop = &p->stop,
                                    .on_logits = check_rows,
                                    .on_logits_context = p,
                                    .on_route = check_route,
                                    .on_route_context = p};
}

static void begin(struct player *p)
{
    struct world *w = p->world;
    const uint32_t n_wanted = 1 + below(w, SPANS_MAX), from = below(w, SEQUENCES);
    uint32_t room = p->tokens_max;
    struct sl_step_request request;

    p->n_spans = 0;
    for (uint32_t i = 0; i < SEQUENCES && p->n_spans < n_wanted && room > 0; i++) {
        struct sl_kv_cache *kv = engine_rig_kv(w->engine, (from + i) % SEQUENCES);

        if (kv->in_step)
            continue;
        if (kv->n_tokens == TOKENS)
            sl_kv_cache_clear(kv);
        add_span(p, kv, room);
        room -= p->spans[p->n_spans - 1].n_tokens;
    }
    if (p->n_spans == 0)
        return;
    request = request_of(p);
    assert_int_equal(sl_forward_begin(p->forward, &request, NULL), 0);
    p->open = true;
    p->mtp = false;
}

static void roll_back(struct player *p)
{
    sl_forward_rollback(p->forward);
    check_sequences(p, NULL);
    p->world->counts[ROLLED_BACK]++;
}

/* Also where the MTP pass has failed: the block must not miss any token. */
static void lose_step(struct player *p, enum count why)
{
    p->open = false;
    p->world->counts[why]++;
    if (p->mtp)
        roll_back(p);
    check_sequences(p, NULL);
}

/* The MTP block sees what followed the tokens that were kept, as far as known. */
static void begin_mtp(struct player *p, const uint32_t n_kept[SPANS_MAX])
{
    struct sl_step_request request;

    for (uint32_t i = 0; i < p->n_spans; i++) {
        struct sl_span *span = &p->spans[i];

        span->tokens = p->world->m->tokens + p->first[i] + 1;
        span->n_tokens = n_kept[i] - (p->first[i] + n_kept[i] == TOKENS);
        p->n_right[i] = span->n_tokens;
        p->n_rows[i] = 0;
    }
    request = request_of(p);
    assert_int_equal(sl_forward_begin_mtp(p->forward, &request, NULL), 0);
    p->open = p->mtp = true;
}

static void end_mtp(struct player *p)
{
    sl_forward_end(p->forward, NULL);
    p->open = false;
    p->world->counts[ENDED]++;
    for (uint32_t i = 0; i < p->n_spans; i++)
        assert_int_equal(p->spans[i].kv->n_mtp_tokens, p->first[i] + p->spans[i].n_tokens);
    if (below(p->world, 8) == 0)
        roll_back(p);
}

/* Keeps of each span what is right, or less. */
static void end(struct player *p)
{
    struct world *w = p->world;
    uint32_t n_kept[SPANS_MAX];
    bool all = true;

    for (uint32_t i = 0; i < p->n_spans; i++) {
        const uint32_t n = p->spans[i].n_tokens;

        n_kept[i] = p->n_right[i];
        if (below(w, 8) == 0)
            n_kept[i] =
                n <= sl_kv_rollback_tokens_max(&w->m->config) ? below(w, p->n_right[i] + 1) : 0;
        all &= n_kept[i] == n;
    }
    sl_forward_end(p->forward, all && below(w, 2) ? NULL : n_kept);
    p->open = false;
    w->counts[ENDED]++;
    w->counts[SHORTENED] += !all;
    check_sequences(p, n_kept);
    if (below(w, 8) == 0)
        roll_back(p);
    else if (w->with_mtp)
        begin_mtp(p, n_kept);
}

static void advance(struct player *p)
{
    struct world *w = p->world;
    const bool stops = below(w, 20) == 0;
    struct sl_err err;
    int rc;

    for (uint32_t i = 0; i < PLAYERS; i++)
        w->counts[PARKED] += w->players[i].open && &w->players[i] != p;
    atomic_store(&p->stop, stops);
    rc = sl_forward_advance(p->forward, &err);
    if (rc == -ECANCELED && stops) {
        lose_step(p, STOPPED);
    } else if (rc == -EIO || rc == -SL_ECORRUPT) { /* wrong bytes, and again when read anew */
        io_fault_mend(engine_rig_faulty());
        lose_step(p, FAILED);
    } else if (rc < 0) {
        fail_msg("%s", err.message);
    } else if (rc == 0) {
        for (uint32_t i = 0; i < p->n_spans; i++)
            assert_int_equal(n_rows_due(p, i), 0);
        p->mtp ? end_mtp(p) : end(p);
    }
}

/* Where the block has missed what the step kept, the sequence is of no more use with MTP. */
static void drop(struct player *p)
{
    const uint32_t i = below(p->world, p->n_spans), n_behind = p->n_spans - i - 1;
    struct sl_kv_cache *kv = p->spans[i].kv;
    const uint32_t n_tokens = kv->n_tokens;

    sl_forward_drop(p->forward, i);
    p->world->counts[DROPPED]++;
    assert_false(kv->in_step);
    assert_int_equal(kv->n_tokens, n_tokens);
    if (p->world->with_mtp)
        assert_int_equal(kv->n_mtp_tokens, p->first[i]);
    if (p->mtp)
        sl_kv_cache_clear(kv);
    memmove(&p->spans[i], &p->spans[i + 1], n_behind * sizeof(p->spans[0]));
    memmove(&p->first[i], &p->first[i + 1], n_behind * sizeof(p->first[0]));
    memmove(&p->n_right[i], &p->n_right[i + 1], n_behind * sizeof(p->n_right[0]));
    memmove(&p->n_rows[i], &p->n_rows[i + 1], n_behind * sizeof(p->n_rows[0]));
    p->n_spans--;
}

static void act(struct world *w)
{
    struct player *p = &w->players[below(w, PLAYERS)];

    if (!p->open) {
        begin(p);
    } else if (below(w, 30) == 0) {
        sl_forward_abandon(p->forward);
        lose_step(p, ABANDONED);
    } else if (p->n_spans > 1 && below(w, p->n_rows[0] ? 2 : 8) == 0) {
        drop(p);
    } else {
        advance(p);
    }
}

/* ---- worlds ------------------------------------------------------------------------------------
 */

static void create_world(struct world *w, const struct engine_rig *m, const char *model,
                         bool with_mtp)
{
    static const uint32_t tokens_max[PLAYERS] = {48, 16, 5};
    const struct io_fault_plan plan = {.seed = inputs_seed(),
                                       .short_permille = 20,
                                       .shuffle = true,
                                       .gap_reads = 20,
                                       .late_ns = 2 * SL_READER_STALL_NS,
                                       .fail_for_good = true};
    struct sl_engine_options options = engine_rig_options(m);

    *w = (struct world){.m = m, .with_mtp = with_mtp, .random = inputs_seed()};
    options.model = model;
    options.prefetch = SL_PREFETCH_GATE;
    options.verify = SL_VERIFY_ALWAYS;
    options.dense = with_mtp ? SL_DENSE_STREAM : SL_DENSE_AUTO;
    options.n_sequences = SEQUENCES;
    options.segment_tokens = tokens_max[0];
    engine_rig_make_faulty(&options);
    assert_int_equal(sl_engine_open(&w->engine, &options, NULL, NULL), 0);
    io_fault_set(engine_rig_faulty(), &plan);
    for (uint32_t i = 0; i < PLAYERS; i++) {
        struct sl_forward_params params = sl_engine_forward_params(w->engine, SL_STEP_LARGE);
        struct player *p = &w->players[i];

        params.tokens_max = p->tokens_max = tokens_max[i];
        params.spans_max = SPANS_MAX;
        p->world = w;
        assert_int_equal(sl_forward_create(&p->forward, &params, NULL), 0);
    }
}

/* Some of the forwards go with a step open, which frees its sequences. */
static void destroy_world(struct world *w)
{
    for (uint32_t i = 0; i < PLAYERS; i++)
        sl_forward_destroy(w->players[i].forward);
    for (uint32_t i = 0; i < SEQUENCES; i++)
        assert_false(engine_rig_kv(w->engine, i)->in_step);
    io_fault_heal(engine_rig_faulty());
    sl_engine_close(w->engine);
}

static uint32_t event_count(void)
{
#ifdef SL_DEBUG
    return EVENTS_SLOW;
#else
    return getenv("SL_SLOW") ? EVENTS_SLOW : EVENTS;
#endif
}

static void run(void **state, bool with_mtp)
{
    char store_folder[FIXTURE_PATH_BYTES];
    static struct world w;

    engine_rig_pack(*state, with_mtp ? "mtp" : "store", 0, false, store_folder);
    create_world(&w, *state, store_folder, with_mtp);
    for (uint32_t i = 0; i < event_count(); i++)
        act(&w);
    for (int i = 0; i < COUNTS; i++) {
        print_message("%" PRIu64 " %s\n", w.counts[i], count_names[i]);
        assert_true(w.counts[i] > 0);
    }
    destroy_world(&w);
}

static void test_any_interleaving_gives_one_answer(void **state)
{
    run(state, false);
}

static void test_mtp_passes_take_turns_too(void **state)
{
    run(state, true);
}

/* ---- drafts ------------------------------------------------------------------------------------
 */

/* From every position on, for some numbers of tokens and each number of right ones among them. */
static void test_what_is_not_kept_leaves_no_trace(void **state)
{
    static const uint32_t counts[] = {2, 5, 8};
    const struct engine_rig *m = *state;
    struct sl_engine_options options = engine_rig_options(m);
    static struct world w;
    struct player *p = &w.players[0];

    w = (struct world){.m = m, .random = 3};
    options.cache_min = false;
    options.draft = SL_DRAFT_NONE;
    assert_int_equal(sl_engine_open(&w.engine, &options, NULL, NULL), 0);
    p->world = &w;
    p->forward = sl_engine_forward(w.engine, SL_STEP_LARGE);
    p->n_spans = 1;
    assert_int_equal(sl_kv_rollback_tokens_max(&m->config), 8);
    for (uint32_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        const uint32_t n = counts[i];

        for (uint32_t n_kept = 0; n_kept <= n; n_kept++) {
            struct sl_kv_cache *kv = engine_rig_kv(w.engine, n % 2);

            sl_kv_cache_clear(kv);
            for (uint32_t step = 0; kv->n_tokens + n <= TOKENS && step < 2 * TOKENS; step++) {
                struct sl_step_request request = request_of(p);
                /* In turn, so that where nothing is kept the sequence goes on all the same. */
                const uint32_t now = step % 2 ? 1 : n, kept = step % 2 ? 1 : n_kept;

                p->first[0] = kv->n_tokens;
                p->n_right[0] = kept;
                p->n_rows[0] = 0;
                for (uint32_t t = 0; t < now; t++)
                    p->tokens[0][t] = t < kept ? m->tokens[kv->n_tokens + t]
                                               : (int32_t)below(&w, m->config.vocab_size);
                p->spans[0] = (struct sl_span){kv, p->tokens[0], now, SL_LOGITS_ALL};
                assert_int_equal(sl_forward_begin(p->forward, &request, NULL), 0);
                while (sl_forward_advance(p->forward, NULL) > 0)
                    ;
                sl_forward_end(p->forward, &kept);
                check_sequences(p, &kept);
            }
        }
    }
    sl_engine_close(w.engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_interleaving_gives_one_answer),
        cmocka_unit_test(test_mtp_passes_take_turns_too),
        cmocka_unit_test(test_what_is_not_kept_leaves_no_trace),
    };

    print_message("SL_SEED=%" PRIu64 "\n", inputs_seed());
    return cmocka_run_group_tests_name("steps", tests, engine_rig_create, engine_rig_destroy);
}
