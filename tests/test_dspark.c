/* Drafts of DSpark: one answer, wherever its sequence has been. Sessions of a tiny model take steps
 * of any size with wrong tokens at their end, lose them, are rolled back, abandoned, dropped out of
 * steps, rewound, forked and read back from bytes (SL_SEED=n gives other lives), on two forwards in
 * turn, of which one has room for two drafts at a time. Whenever drafts are made, of any sessions
 * together, their logits and confidences are those of the tokens alone, fed one at a time on one
 * thread of the reference kernels; so are the model's own logits. A draft that fails, is stopped or
 * is given up changes nothing. */
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

#include "core/base/assert.h"
#include "core/kernels/dispatch.h"
#include "core/model/forward.h"
#include "core/model/kv_rollback.h"
#include "core/session/session_bytes.h"
#include "tests/fixture_model.h"
#include "tests/kernel_inputs.h"
#include "tests/kv_rig.h"

#define SESSIONS 4u
#define TOKENS_MAX 60u /* of a session */
#define BLOCK 5u
#define MARKS 40u
#define EVENTS 700u
#define LAST_ANCHOR 3 /* behind a session's last token */

static const uint32_t lengths[SESSIONS] = {TOKENS_MAX, 27, 19, 9};

/* What is drafted after some number of tokens. */
struct answer {
    float *logits; /* (BLOCK, vocab_size) */
    float confidence[BLOCK];
    int32_t tokens[BLOCK];
};

struct model {
    struct sl_config config;
    struct fixture_weights source;
    struct sl_weights weights;
    struct fixture_experts experts;
    int32_t tokens[SESSIONS][TOKENS_MAX + 1]; /* and the last one's anchor */
    float *logits[SESSIONS];                  /* (length, vocab_size) */
    struct answer answers[SESSIONS][TOKENS_MAX + 1];
};

struct rig {
    struct model *m;
    struct sl_kernels kernels;
    struct sl_compute compute;
    struct sl_forward *forwards[2];
    uint32_t tokens_max[2];
    struct sl_kv_pool kv_pool;
};

static struct sl_forward_params params_of(struct rig *rig, uint32_t tokens_max)
{
    return (struct sl_forward_params){.config = &rig->m->config,
                                      .weights = &rig->m->weights,
                                      .compute = &rig->compute,
                                      .source = &rig->m->experts.source,
                                      .tokens_max = tokens_max,
                                      .context_max = TOKENS_MAX,
                                      .spans_max = SESSIONS};
}

static void rig_init(struct rig *rig, struct model *m, const char *isa, uint32_t n_threads)
{
    *rig = (struct rig){.m = m, .tokens_max = {48, 12}};
    assert_int_equal(sl_kernels_select(&rig->kernels, isa, NULL), 0);
    rig->compute = (struct sl_compute){.kernels = &rig->kernels};
    assert_int_equal(sl_pool_create(&rig->compute.pool, n_threads, NULL), 0);
    for (int i = 0; i < 2; i++) {
        const struct sl_forward_params params = params_of(rig, rig->tokens_max[i]);

        assert_int_equal(sl_forward_create(&rig->forwards[i], &params, NULL), 0);
    }
    kv_rig_pool(&rig->kv_pool, &m->config, m->experts.n_layers, SL_NUMERICS_NATIVE,
                SESSIONS * (MARKS + 1), TOKENS_MAX);
}

static void rig_fini(struct rig *rig)
{
    for (int i = 0; i < 2; i++)
        sl_forward_destroy(rig->forwards[i]);
    assert_int_equal(rig->kv_pool.n_held, 0);
    sl_kv_pool_fini(&rig->kv_pool);
    sl_pool_destroy(rig->compute.pool);
}

static int32_t likeliest(const float *logits, uint32_t n)
{
    uint32_t best = 0;

    for (uint32_t v = 1; v < n; v++)
        if (logits[v] > logits[best])
            best = v;
    return (int32_t)best;
}

/* ---- answers -----------------------------------------------------------------------------------
 */

struct keeping {
    const struct model *m;
    float *logits;
    struct answer *answer;
};

static void keep_logits(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    const struct keeping *keep = context;

    assert_int_equal(n_rows, 1);
    memcpy(keep->logits, rows[0].logits, keep->m->config.vocab_size * sizeof(float));
}

static void keep_draft(void *context, struct sl_dspark_row *rows, uint32_t n_rows)
{
    const struct keeping *keep = context;
    const uint32_t vocab_size = keep->m->config.vocab_size, i = rows[0].draft_index;

    assert_int_equal(n_rows, 1);
    memcpy(keep->answer->logits + i * vocab_size, rows[0].logits, vocab_size * sizeof(float));
    keep->answer->confidence[i] = rows[0].confidence;
    rows[0].token = keep->answer->tokens[i] = likeliest(rows[0].logits, vocab_size);
}

static void answer(struct rig *rig, uint32_t s)
{
    struct model *m = rig->m;
    const size_t vocab_size = m->config.vocab_size;
    struct sl_kv_cache kv;

    m->logits[s] = calloc(lengths[s] * vocab_size, sizeof(float));
    sl_assert(m->logits[s]);
    assert_int_equal(sl_kv_cache_init(&kv, &rig->kv_pool, TOKENS_MAX, NULL), 0);
    for (uint32_t n = 1; n <= lengths[s]; n++) {
        struct keeping keep = {m, m->logits[s] + (n - 1) * vocab_size, &m->answers[s][n]};
        const struct sl_span span = {&kv, &m->tokens[s][n - 1], 1, SL_LOGITS_ALL};
        const struct sl_step_request request = {
            .spans = &span, .n_spans = 1, .on_logits = keep_logits, .on_logits_context = &keep};
        const struct sl_dspark_span block = {.kv = &kv, .anchor = m->tokens[s][n], .n_max = BLOCK};
        const struct sl_dspark_request draft = {
            .spans = &block, .n_spans = 1, .on_draft = keep_draft, .on_draft_context = &keep};

        keep.answer->logits = calloc(BLOCK * vocab_size, sizeof(float));
        sl_assert(keep.answer->logits);
        assert_int_equal(sl_forward_step(rig->forwards[0], &request, NULL), 0);
        assert_int_equal(sl_forward_dspark(rig->forwards[0], &draft, NULL), 0);
    }
    sl_kv_cache_fini(&kv);
}

static int model_create(void **state)
{
    struct model *m = calloc(1, sizeof(*m));
    uint64_t random = 5;
    struct sl_pool *pool;
    struct rig rig;

    sl_assert(m);
    fixture_config(&m->config);
    fixture_config_dspark(&m->config);
    fixture_weights_init(&m->source, &m->config, 11);
    fixture_experts_init(&m->experts, &m->config, m->config.n_routed_experts, 12);
    m->experts.passes_take_turns = true;
    assert_int_equal(sl_pool_create(&pool, 1, NULL), 0);
    assert_int_equal(fixture_weights_load(&m->source, &m->weights, &m->config, &fixture_dspark,
                                          &sl_weights_all_resident, pool, NULL),
                     0);
    sl_pool_destroy(pool);
    rig_init(&rig, m, "ref", 1);
    for (uint32_t s = 0; s < SESSIONS; s++) {
        for (uint32_t i = 0; i < lengths[s]; i++)
            m->tokens[s][i] = (int32_t)fixture_below(&random, m->config.vocab_size);
        m->tokens[s][lengths[s]] = LAST_ANCHOR;
        answer(&rig, s);
    }
    rig_fini(&rig);
    *state = m;
    return 0;
}

static int model_destroy(void **state)
{
    struct model *m = *state;

    for (uint32_t s = 0; s < SESSIONS; s++) {
        free(m->logits[s]);
        for (uint32_t n = 0; n <= TOKENS_MAX; n++)
            free(m->answers[s][n].logits);
    }
    sl_weights_fini(&m->weights);
    fixture_weights_fini(&m->source);
    fixture_experts_fini(&m->experts);
    free(m);
    return 0;
}

/* ---- bytes --------------------------------------------------------------------------------------
 */

/* A session as bytes, from its first token. */
struct stored {
    uint32_t n_tokens;
    uint8_t *chunk, *mark;
    uint64_t mark_bytes;
};

static struct stored store(struct sl_session *session, const struct sl_kv_layout *layout)
{
    struct stored stored = {.n_tokens = sl_session_token_count(session)};
    struct sl_mark *mark;

    assert_int_equal(sl_session_mark(session, &mark, NULL), 0);
    stored.mark_bytes = sl_mark_bytes(session, mark);
    stored.chunk = malloc(sl_chunk_bytes(layout, 0, stored.n_tokens) + 1);
    stored.mark = malloc(stored.mark_bytes);
    sl_assert(stored.chunk && stored.mark);
    assert_int_equal(sl_session_export_chunk(session, 0, stored.n_tokens, stored.chunk, NULL), 0);
    sl_session_export_mark(session, mark, stored.mark);
    return stored;
}

static struct sl_session *restore(struct sl_kv_pool *pool, const int32_t *tokens,
                                  const struct stored *stored)
{
    struct sl_session *session;

    assert_int_equal(sl_session_create(&session, pool, TOKENS_MAX, NULL), 0);
    assert_int_equal(sl_session_import_begin(session, tokens, stored->n_tokens, NULL), 0);
    sl_session_import_chunk(session, 0, stored->n_tokens, stored->chunk);
    assert_int_equal(
        sl_session_import_end(session, stored->n_tokens, stored->mark, stored->mark_bytes, NULL),
        0);
    return session;
}

static void stored_free(struct stored *stored)
{
    free(stored->chunk);
    free(stored->mark);
}

/* ---- lives -------------------------------------------------------------------------------------
 */

enum count {
    DRAFTED,     /* sessions */
    CUT,         /* drafts that ended for want of confidence */
    DRAFT_LOST,  /* failed, stopped or given up */
    DRAFT_LEFT,  /* sessions dropped out of a draft */
    BESIDE,      /* drafts while a step was open */
    SHORTENED,   /* spans that not all tokens were kept of */
    STEP_LOST,   /* failed, stopped or given up */
    STEP_LEFT,   /* sessions dropped out of a step */
    ROLLED_BACK, /* steps */
    REWOUND,
    FORKED,
    READ, /* from bytes */
    COUNTS
};
static const char *const count_names[COUNTS] = {"drafts",
                                                "drafts cut short",
                                                "drafts lost",
                                                "dropped out of drafts",
                                                "drafts beside a step",
                                                "spans cut short",
                                                "steps lost",
                                                "dropped out of steps",
                                                "rolled back",
                                                "rewound",
                                                "forked",
                                                "read from bytes"};

/* A span of a pass: of a step, or of a draft. */
struct part {
    uint32_t session;
    uint32_t first;                 /* tokens that the session had before */
    uint32_t n_tokens, n_right;     /* of a step; the others are wrong */
    uint32_t n_max, n_due, n_given; /* of a draft */
};

struct pass {
    uint32_t n;
    struct part parts[SESSIONS];
};

struct world {
    struct rig rig;
    struct sl_session *sessions[SESSIONS];
    uint32_t texts[SESSIONS]; /* whose tokens each has */
    uint64_t random;
    uint64_t counts[COUNTS];
    struct pass pass; /* at hand */
};

static uint32_t below(struct world *w, uint32_t limit)
{
    return fixture_below(&w->random, limit);
}

static const struct answer *answer_of(const struct world *w, const struct part *part)
{
    return &w->rig.m->answers[w->texts[part->session]][part->first];
}

/* Advances an open pass to its end. Now and then something goes wrong, or a span leaves. Returns
 * false if the pass is lost. */
static bool run_pass(struct world *w, struct sl_forward *forward, atomic_bool *stop, bool draft)
{
    struct fixture_experts *experts = &w->rig.m->experts;
    const uint32_t fate = below(w, 60), leaves_at = below(w, 30);
    struct pass *pass = &w->pass;
    int rc = 1;

    experts->fail_nth = fate < 8 ? 1 + fate : 0;
    experts->fail_code = -EIO;
    for (uint32_t i = 0; rc > 0; i++) {
        if (fate == 8 + i) { /* in one of its layers */
            sl_forward_abandon(forward);
            rc = -ECANCELED;
            break;
        }
        atomic_store(stop, fate == 18 + i);
        if (i == leaves_at && pass->n > 1) {
            const uint32_t at = below(w, pass->n);

            sl_forward_drop(forward, at);
            assert_int_equal(sl_session_token_count(w->sessions[pass->parts[at].session]),
                             pass->parts[at].first);
            pass->n--;
            memmove(&pass->parts[at], &pass->parts[at + 1],
                    (pass->n - at) * sizeof(pass->parts[0]));
            w->counts[draft ? DRAFT_LEFT : STEP_LEFT]++;
        }
        rc = sl_forward_advance(forward, NULL);
        sl_assert(rc >= 0 || rc == -EIO || rc == -ECANCELED);
    }
    experts->fail_nth = 0;
    w->counts[draft ? DRAFT_LOST : STEP_LOST] += rc < 0;
    return rc == 0;
}

/* However a draft or a lost step went, its sessions are where they were. */
static void check_untouched(const struct world *w)
{
    for (uint32_t i = 0; i < w->pass.n; i++) {
        const struct part *part = &w->pass.parts[i];

        assert_false(sl_session_kv(w->sessions[part->session])->in_step);
        assert_int_equal(sl_session_token_count(w->sessions[part->session]), part->first);
    }
}

/* ---- drafts ------------------------------------------------------------------------------------
 */

static void check_rows(void *context, struct sl_dspark_row *rows, uint32_t n_rows)
{
    struct world *w = context;
    const uint32_t vocab_size = w->rig.m->config.vocab_size;

    for (uint32_t i = 0; i < n_rows; i++) {
        struct part *part = &w->pass.parts[rows[i].span_index];
        const struct answer *a = answer_of(w, part);
        const uint32_t n = rows[i].draft_index;

        assert_int_equal(n, part->n_given++);
        assert_memory_equal(rows[i].logits, a->logits + n * vocab_size, vocab_size * sizeof(float));
        assert_memory_equal(&rows[i].confidence, &a->confidence[n], sizeof(float));
        rows[i].token = a->tokens[n];
    }
}

/* How long a draft must become. */
static uint32_t length_of(const struct answer *a, uint32_t n_max, float chance_min)
{
    float chance = 1;
    uint32_t n = 0;

    while (n < n_max && (chance *= a->confidence[n]) >= chance_min)
        n++;
    return n;
}

/* Drafts of some sessions that are in no step. */
static void draft(struct world *w, int which)
{
    const uint32_t from = below(w, SESSIONS);
    struct sl_dspark_span spans[SESSIONS];
    struct pass *pass = &w->pass;
    atomic_bool stop = false;
    struct sl_dspark_request request = {
        .spans = spans, .stop = &stop, .on_draft = check_rows, .on_draft_context = w};

    pass->n = 0;
    for (uint32_t i = 0; i < SESSIONS; i++) {
        struct part *part = &pass->parts[pass->n];
        const uint32_t s = (from + i) % SESSIONS;
        struct sl_kv_cache *kv = sl_session_kv(w->sessions[s]);
        const float chance_min = below(w, 2) ? 0.4f : 0;

        if (kv->in_step || kv->n_tokens == 0 || below(w, 3) == 0)
            continue;
        *part = (struct part){.session = s, .first = kv->n_tokens, .n_max = 1 + below(w, BLOCK)};
        part->n_due = length_of(answer_of(w, part), part->n_max, chance_min);
        spans[pass->n++] = (struct sl_dspark_span){kv, w->rig.m->tokens[w->texts[s]][kv->n_tokens],
                                                   part->n_max, chance_min};
    }
    request.n_spans = pass->n;
    if (pass->n == 0)
        return;
    assert_int_equal(sl_forward_begin_dspark(w->rig.forwards[which], &request, NULL), 0);
    if (run_pass(w, w->rig.forwards[which], &stop, true)) {
        sl_forward_end(w->rig.forwards[which], NULL);
        for (uint32_t i = 0; i < pass->n; i++) {
            assert_int_equal(pass->parts[i].n_given, pass->parts[i].n_due);
            w->counts[CUT] += pass->parts[i].n_due < pass->parts[i].n_max;
            w->counts[DRAFTED]++;
        }
    }
    check_untouched(w);
}

/* ---- steps -------------------------------------------------------------------------------------
 */

static void check_logits(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    struct world *w = context;
    const size_t vocab_size = w->rig.m->config.vocab_size;

    for (uint32_t i = 0; i < n_rows; i++) {
        const struct part *part = &w->pass.parts[rows[i].span_index];
        const uint32_t position = part->first + rows[i].token_index;

        if (rows[i].token_index < part->n_right)
            assert_memory_equal(rows[i].logits,
                                w->rig.m->logits[w->texts[part->session]] + position * vocab_size,
                                vocab_size * sizeof(float));
    }
}

/* A span of a session's next tokens, the later ones perhaps wrong. */
static struct sl_span next_span(struct world *w, uint32_t s, uint32_t room, int32_t *tokens)
{
    const struct model *m = w->rig.m;
    struct sl_kv_cache *kv = sl_session_kv(w->sessions[s]);
    const uint32_t left = lengths[w->texts[s]] - kv->n_tokens;
    struct part *part = &w->pass.parts[w->pass.n++];
    uint32_t n = 1 + below(w, below(w, 3) ? 6 : TOKENS_MAX);

    n = n < left ? n : left;
    n = n < room ? n : room;
    *part = (struct part){.session = s, .first = kv->n_tokens, .n_tokens = n, .n_right = n};
    if (n <= sl_kv_rollback_tokens_max(&m->config) && below(w, 2))
        part->n_right = below(w, n + 1);
    for (uint32_t t = 0; t < n; t++)
        tokens[t] = t < part->n_right ? m->tokens[w->texts[s]][kv->n_tokens + t]
                                      : (int32_t)below(w, m->config.vocab_size);
    return (struct sl_span){kv, tokens, n, SL_LOGITS_ALL};
}

/* Keeps what is right of each span. */
static void end_step(struct world *w, struct sl_forward *forward)
{
    uint32_t n_kept[SESSIONS];

    for (uint32_t i = 0; i < w->pass.n; i++) {
        n_kept[i] = w->pass.parts[i].n_right;
        w->counts[SHORTENED] += n_kept[i] < w->pass.parts[i].n_tokens;
    }
    sl_forward_end(forward, n_kept);
    if (below(w, 6) == 0) {
        sl_forward_rollback(forward);
        check_untouched(w);
        w->counts[ROLLED_BACK]++;
    }
}

/* A step of some sessions on one forward, and perhaps drafts of others meanwhile on the other. */
static void step(struct world *w)
{
    const int which = (int)below(w, 2);
    struct sl_forward *forward = w->rig.forwards[which];
    int32_t tokens[SESSIONS][TOKENS_MAX];
    struct sl_span spans[SESSIONS];
    struct pass *pass = &w->pass;
    atomic_bool stop = false;
    struct sl_step_request request = {
        .spans = spans, .stop = &stop, .on_logits = check_logits, .on_logits_context = w};
    uint32_t room = w->rig.tokens_max[which], from = below(w, SESSIONS);

    pass->n = 0;
    for (uint32_t i = 0; i < SESSIONS && room > 0; i++) {
        const uint32_t s = (from + i) % SESSIONS;

        if (sl_session_token_count(w->sessions[s]) == lengths[w->texts[s]] || below(w, 2))
            continue;
        spans[request.n_spans] = next_span(w, s, room, tokens[s]);
        room -= spans[request.n_spans++].n_tokens;
    }
    if (pass->n == 0)
        return;
    assert_int_equal(sl_forward_begin(forward, &request, NULL), 0);
    if (below(w, 3) == 0) {
        const struct pass open = *pass;

        w->counts[BESIDE]++;
        draft(w, 1 - which);
        *pass = open;
    }
    if (run_pass(w, forward, &stop, false))
        end_step(w, forward);
    else
        check_untouched(w);
}

/* ---- going back and branching off --------------------------------------------------------------
 */

static void rewind_one(struct world *w)
{
    struct sl_session *session = w->sessions[below(w, SESSIONS)];
    struct sl_mark *mark = sl_session_find_mark(session, below(w, TOKENS_MAX));

    if (sl_session_token_count(session) == 0)
        return;
    sl_session_rewind(session, mark);
    w->counts[REWOUND]++;
}

/* Another session becomes a fork of this one. */
static void fork_one(struct world *w)
{
    const uint32_t s = below(w, SESSIONS), child = (s + 1 + below(w, SESSIONS - 1)) % SESSIONS;
    struct sl_mark *mark = sl_session_find_mark(w->sessions[s], below(w, TOKENS_MAX));

    if (!mark)
        return;
    sl_session_destroy(w->sessions[child]);
    assert_int_equal(sl_session_fork(&w->sessions[child], w->sessions[s], mark, TOKENS_MAX, NULL),
                     0);
    w->texts[child] = w->texts[s];
    w->counts[FORKED]++;
}

/* A session ends, and another one is read from its bytes. */
static void read_one(struct world *w)
{
    const uint32_t s = below(w, SESSIONS);
    struct stored stored;

    if (sl_session_token_count(w->sessions[s]) == 0)
        return;
    stored = store(w->sessions[s], &w->rig.kv_pool.layout);
    sl_session_destroy(w->sessions[s]);
    w->sessions[s] = restore(&w->rig.kv_pool, w->rig.m->tokens[w->texts[s]], &stored);
    stored_free(&stored);
    w->counts[READ]++;
}

static void mark_one(struct world *w)
{
    struct sl_mark *mark;

    assert_int_equal(sl_session_mark(w->sessions[below(w, SESSIONS)], &mark, NULL), 0);
}

static void live(struct model *m, const char *isa, uint32_t n_threads, uint64_t *counts)
{
    struct world w = {.random = inputs_seed() + n_threads};

    rig_init(&w.rig, m, isa, n_threads);
    for (uint32_t s = 0; s < SESSIONS; s++) {
        assert_int_equal(sl_session_create(&w.sessions[s], &w.rig.kv_pool, TOKENS_MAX, NULL), 0);
        w.texts[s] = s;
    }
    for (uint32_t i = 0; i < EVENTS; i++) {
        const uint32_t event = below(&w, 16);

        if (event < 6)
            step(&w);
        else if (event < 11)
            draft(&w, (int)below(&w, 2));
        else if (event < 13)
            mark_one(&w);
        else if (event < 14)
            rewind_one(&w);
        else if (event < 15)
            fork_one(&w);
        else
            read_one(&w);
    }
    for (uint32_t s = 0; s < SESSIONS; s++)
        sl_session_destroy(w.sessions[s]);
    for (int i = 0; i < COUNTS; i++)
        counts[i] += w.counts[i];
    rig_fini(&w.rig);
}

static void test_drafts_are_of_the_tokens_alone(void **state)
{
    uint64_t counts[COUNTS] = {0};

    live(*state, "ref", 2, counts);
    live(*state, NULL, 1, counts);
    live(*state, NULL, 3, counts);
    for (int i = 0; i < COUNTS; i++) {
        print_message("%" PRIu64 " %s\n", counts[i], count_names[i]);
        assert_true(counts[i] > 0);
    }
}

/* ---- without their rows ------------------------------------------------------------------------
 */

static void step_one(struct rig *rig, struct sl_session *session, float *logits)
{
    struct sl_kv_cache *kv = sl_session_kv(session);
    struct keeping keep = {rig->m, logits, NULL};
    const struct sl_span span = {kv, &rig->m->tokens[0][kv->n_tokens], 1, SL_LOGITS_ALL};
    const struct sl_step_request request = {
        .spans = &span, .n_spans = 1, .on_logits = keep_logits, .on_logits_context = &keep};

    assert_int_equal(sl_forward_step(rig->forwards[0], &request, NULL), 0);
}

static void draft_one(struct rig *rig, struct sl_session *session, struct answer *answer)
{
    struct sl_kv_cache *kv = sl_session_kv(session);
    struct keeping keep = {rig->m, NULL, answer};
    const struct sl_dspark_span block = {
        .kv = kv, .anchor = rig->m->tokens[0][kv->n_tokens], .n_max = BLOCK};
    const struct sl_dspark_request request = {
        .spans = &block, .n_spans = 1, .on_draft = keep_draft, .on_draft_context = &keep};

    assert_int_equal(sl_forward_dspark(rig->forwards[0], &request, NULL), 0);
}

/* Where the draft is not loaded, a session is read without the draft's rows; and where it is, one
 * that was stored without them. The model's own logits are the same in any case. Drafts are then of
 * the tokens since alone: those of an undisturbed session that is told to see no others; and when
 * there are as many as a window has, they are what they would have been. */
static void test_rows_are_missing(void **state)
{
    struct model *m = *state;
    const size_t row_bytes = m->config.vocab_size * sizeof(float);
    const uint32_t since = 21, window = m->config.sliding_window;
    float *const logits = malloc(row_bytes);
    struct answer answers[2] = {{malloc(BLOCK * row_bytes), {0}, {0}},
                                {malloc(BLOCK * row_bytes), {0}, {0}}};
    struct stored with, without;
    struct sl_session *whole, *plain, *late;
    struct sl_kv_pool plain_pool;
    uint32_t n_different = 0;
    struct rig rig;

    sl_assert(logits && answers[0].logits && answers[1].logits);
    rig_init(&rig, m, NULL, 2);
    kv_rig_pool(&plain_pool, &m->config, m->config.num_hidden_layers, SL_NUMERICS_NATIVE, 2,
                TOKENS_MAX);
    assert_int_equal(sl_session_create(&whole, &rig.kv_pool, TOKENS_MAX, NULL), 0);
    while (sl_session_token_count(whole) < since)
        step_one(&rig, whole, logits);
    with = store(whole, &rig.kv_pool.layout);
    plain = restore(&plain_pool, m->tokens[0], &with);
    assert_int_equal(sl_session_kv(plain)->n_mtp_tokens, 0);
    without = store(plain, &plain_pool.layout);
    assert_true(without.mark_bytes < with.mark_bytes);
    assert_memory_equal(without.mark + 16, with.mark + 16, without.mark_bytes - 16);
    late = restore(&rig.kv_pool, m->tokens[0], &without);
    step_one(&rig, late, logits);
    sl_forward_rollback(rig.forwards[0]);
    assert_int_equal(sl_session_token_count(late), since);
    sl_session_kv(whole)->mtp_first = since;
    for (uint32_t n = since + 1; n < since + 2 * window; n++) {
        const struct answer *alone = &m->answers[0][n];

        step_one(&rig, whole, logits);
        step_one(&rig, late, logits);
        assert_memory_equal(logits, m->logits[0] + (n - 1) * m->config.vocab_size, row_bytes);
        draft_one(&rig, whole, &answers[0]);
        draft_one(&rig, late, &answers[1]);
        assert_memory_equal(answers[0].logits, answers[1].logits, BLOCK * row_bytes);
        n_different += memcmp(alone->logits, answers[1].logits, BLOCK * row_bytes) != 0;
        if (n >= since + window)
            assert_memory_equal(alone->logits, answers[1].logits, BLOCK * row_bytes);
    }
    assert_true(n_different > 0);
    for (int i = 0; i < 2; i++)
        free(answers[i].logits);
    free(logits);
    stored_free(&with);
    stored_free(&without);
    sl_session_destroy(whole);
    sl_session_destroy(plain);
    sl_session_destroy(late);
    sl_kv_pool_fini(&plain_pool);
    rig_fini(&rig);
}

/* ---- limits ------------------------------------------------------------------------------------
 */

static void test_what_does_not_fit_is_refused(void **state)
{
    struct model *m = *state;
    struct world w = {0};
    struct sl_dspark_span spans[SESSIONS];
    struct sl_dspark_request request = {.spans = spans, .n_spans = SESSIONS};
    struct sl_forward_params params;
    struct sl_forward *small;
    struct sl_span span;
    struct sl_err err;

    rig_init(&w.rig, m, "ref", 1);
    params = params_of(&w.rig, BLOCK - 1);
    assert_int_equal(sl_forward_create(&small, &params, NULL), 0);
    for (uint32_t s = 0; s < SESSIONS; s++) {
        assert_int_equal(sl_session_create(&w.sessions[s], &w.rig.kv_pool, TOKENS_MAX, NULL), 0);
        span = (struct sl_span){sl_session_kv(w.sessions[s]), m->tokens[s], 2, SL_LOGITS_NONE};
        assert_int_equal(sl_forward_step(w.rig.forwards[0],
                                         &(struct sl_step_request){.spans = &span, .n_spans = 1},
                                         NULL),
                         0);
        spans[s] = (struct sl_dspark_span){.kv = span.kv, .n_max = BLOCK};
    }
    assert_int_equal(sl_forward_dspark(small, &request, &err), -SL_EBUDGET);
    assert_string_equal(err.message,
                        "a draft in a block of 5 tokens in one step, which was made for 4");
    sl_forward_destroy(small);
    spans[1].anchor = (int32_t)m->config.vocab_size;
    assert_int_equal(sl_forward_dspark(w.rig.forwards[0], &request, &err), -SL_EFORMAT);
    for (uint32_t s = 0; s < SESSIONS; s++) {
        assert_false(spans[s].kv->in_step);
        sl_session_destroy(w.sessions[s]);
    }
    rig_fini(&w.rig);
}

/* Without a draft that is loaded, a forward has no memory for one. */
static void test_memory_is_for_who_drafts(void **state)
{
    const struct model *m = *state;
    const uint64_t without = sl_forward_measure(&m->config, NULL, SL_NUMERICS_NATIVE, 2, 32, 64, 3);
    const uint64_t with =
        sl_forward_measure(&m->config, &fixture_dspark, SL_NUMERICS_NATIVE, 2, 32, 64, 3);
    const uint64_t rows = 3 * m->config.sliding_window;

    assert_true(with > without + rows * m->config.hidden_size * (3 * 2 + 4 + 2));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_drafts_are_of_the_tokens_alone),
        cmocka_unit_test(test_rows_are_missing),
        cmocka_unit_test(test_what_does_not_fit_is_refused),
        cmocka_unit_test(test_memory_is_for_who_drafts),
    };

    return cmocka_run_group_tests(tests, model_create, model_destroy);
}
