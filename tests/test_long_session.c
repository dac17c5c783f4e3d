/* One answer for a long session of the trained small model, in a whole engine: a session that grew
 * in random steps goes back to marks around multiples of all that lies in pages, is forked there,
 * and is written as bytes and read again; the logits that follow are those of a sequence that was
 * fed once. 1,500 tokens, or `SL_SESSION_TOKENS=n` (make check-sessions: 40,000). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/session/session_bytes.h"
#include "daemon/engine/engine.h"
#include "tests/fixture_model.h"

#define MODEL "tests/small"
#define TOKENS_DEFAULT 1500u
#define POSITIONS_MAX 64u
#define ROWS 5u /* compared at each position */
#define STEP_TOKENS 512u

struct story {
    struct sl_engine *engine;
    int32_t *ids; /* (n_tokens + ROWS) */
    uint32_t n_tokens;
    uint32_t positions[POSITIONS_MAX];
    uint32_t n_positions;
    float *answers; /* (n_positions, ROWS, vocab_size) */
    uint64_t random;
};

/* Where rows go, or what they are compared with. */
struct rows {
    float *at;
    uint32_t vocab_size;
    bool compares;
};

static void take_rows(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    struct rows *to = context;

    for (uint32_t i = 0; i < n_rows; i++, to->at += to->vocab_size)
        if (to->compares)
            assert_memory_equal(rows[i].logits, to->at, to->vocab_size * sizeof(float));
        else
            memcpy(to->at, rows[i].logits, to->vocab_size * sizeof(float));
}

static float *answer(const struct story *story, uint32_t i)
{
    return story->answers + (size_t)i * ROWS * sl_engine_config(story->engine)->vocab_size;
}

/* Feeds up to `end`, without logits. */
static void feed(struct story *story, struct sl_kv_cache *kv, uint32_t end, uint32_t step_max)
{
    while (kv->n_tokens < end) {
        const uint32_t left = end - kv->n_tokens;
        const uint32_t n = 1 + fixture_below(&story->random, left < step_max ? left : step_max);
        const struct sl_span span = {kv, story->ids + kv->n_tokens, n, SL_LOGITS_NONE};
        const struct sl_step_request request = {.spans = &span, .n_spans = 1};

        assert_int_equal(sl_engine_step(story->engine, &request, NULL), 0);
    }
}

/* Takes the next ROWS tokens at position i, from the start of a session or of a sequence. */
static void rows_at(struct story *story, struct sl_kv_cache *kv, uint32_t i, bool compares)
{
    struct rows rows = {answer(story, i), sl_engine_config(story->engine)->vocab_size, compares};
    struct sl_span span = {kv, story->ids + kv->n_tokens, ROWS, SL_LOGITS_ALL};
    const struct sl_step_request request = {
        .spans = &span, .n_spans = 1, .on_logits = take_rows, .on_logits_context = &rows};

    assert_int_equal(kv->n_tokens, story->positions[i]);
    assert_int_equal(sl_engine_step(story->engine, &request, NULL), 0);
}

static int ascending(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return (x > y) - (x < y);
}

/* Around multiples, somewhere in each quarter; ROWS apart at least, as each has rows of its own. */
static void choose_positions(struct story *story)
{
    static const uint32_t multiples[] = {4, 128, 512, 720, 2048};
    uint32_t n = 0;

    for (uint32_t quarter = 1; quarter <= 4; quarter++)
        for (uint32_t m = 0; m < 5; m++) {
            const uint32_t at = story->n_tokens / 4 * quarter - 60 * m;
            const uint32_t to = at / multiples[m] * multiples[m] + (m + quarter) % 3;

            if (to > 1 && to <= story->n_tokens)
                story->positions[n++] = to - 1;
        }
    qsort(story->positions, n, sizeof(story->positions[0]), ascending);
    for (uint32_t i = 0; i < n; i++)
        if (story->n_positions == 0 ||
            story->positions[i] >= story->positions[story->n_positions - 1] + ROWS)
            story->positions[story->n_positions++] = story->positions[i];
    assert_true(story->n_positions >= 10);
}

/* The session as bytes, and read from them; both give the answer. */
static void sleep_and_wake(struct story *story, struct sl_session *session, struct sl_mark *mark,
                           uint32_t i)
{
    const struct sl_kv_layout *layout = &sl_engine_kv_pool(story->engine)->layout;
    const uint32_t end = story->positions[i], cut = fixture_below(&story->random, end);
    uint8_t *first = malloc(sl_chunk_bytes(layout, 0, cut) + 1);
    uint8_t *second = malloc(sl_chunk_bytes(layout, cut, end) + 1);
    uint8_t *rings = malloc(sl_mark_bytes(session, mark));
    struct sl_session *woken;

    assert_true(first && second && rings);
    assert_int_equal(sl_session_export_chunk(session, 0, cut, first, NULL), 0);
    assert_int_equal(sl_session_export_chunk(session, cut, end, second, NULL), 0);
    sl_session_export_mark(session, mark, rings);
    assert_int_equal(
        sl_session_create(&woken, sl_engine_kv_pool(story->engine), story->n_tokens + ROWS, NULL),
        0);
    assert_int_equal(sl_session_import_begin(woken, story->ids, end, NULL), 0);
    sl_session_import_chunk(woken, 0, cut, first);
    sl_session_import_chunk(woken, cut, end, second);
    assert_int_equal(sl_session_import_end(woken, end, rings, sl_mark_bytes(session, mark), NULL),
                     0);
    rows_at(story, sl_session_kv(woken), i, true);
    sl_session_destroy(woken);
    free(first);
    free(second);
    free(rings);
}

static void go_back(struct story *story, struct sl_session *session)
{
    for (uint32_t i = story->n_positions; i-- > 0;) {
        struct sl_mark *mark = sl_session_find_mark(session, story->positions[i]);
        struct sl_session *child;

        assert_int_equal(sl_session_fork(&child, session, mark, story->n_tokens + ROWS, NULL), 0);
        sl_session_rewind(session, mark);
        rows_at(story, sl_session_kv(child), i, true);
        rows_at(story, sl_session_kv(session), i, true);
        sl_session_destroy(child);
        sleep_and_wake(story, session, mark, i);
    }
}

static void run_story(struct story *story)
{
    struct sl_kv_pool *pool = sl_engine_kv_pool(story->engine);
    struct sl_kv_cache *kv;
    struct sl_session *session;
    struct sl_mark *mark;

    assert_int_equal(sl_engine_sequence_create(story->engine, story->n_tokens + ROWS, &kv, NULL),
                     0);
    for (uint32_t i = 0; i < story->n_positions; i++) {
        feed(story, kv, story->positions[i], STEP_TOKENS);
        rows_at(story, kv, i, false);
    }
    sl_engine_sequence_destroy(story->engine, kv);
    assert_int_equal(sl_session_create(&session, pool, story->n_tokens + ROWS, NULL), 0);
    for (uint32_t i = 0; i < story->n_positions; i++) {
        feed(story, sl_session_kv(session), story->positions[i], STEP_TOKENS / 3);
        assert_int_equal(sl_session_mark(session, &mark, NULL), 0);
    }
    feed(story, sl_session_kv(session), story->n_tokens + 2, STEP_TOKENS);
    go_back(story, session);
    sl_session_destroy(session);
    assert_int_equal(sl_kv_pool_used_bytes(pool), 0);
}

static void test_a_long_session_has_one_answer(void **state)
{
    const char *tokens = getenv("SL_SESSION_TOKENS");
    struct story story = {.n_tokens = tokens ? (uint32_t)atoi(tokens) : TOKENS_DEFAULT,
                          .random = 1};
    const struct sl_engine_options options = {.model = MODEL,
                                              .ram_bytes = UINT64_C(3) << 30,
                                              .affinity = {.n_threads = 2},
                                              .segment_tokens = STEP_TOKENS,
                                              .context_tokens = story.n_tokens + ROWS,
                                              .n_sequences = 2,
                                              .kv_bytes = UINT64_C(1) << 29,
                                              .io = sl_io_threads_open,
                                              .reader = {.piece_bytes = 1 << 20, .depth = 4}};
    const struct sl_config *config;

    (void)state;
    assert_true(story.n_tokens >= TOKENS_DEFAULT);
    assert_int_equal(sl_engine_open(&story.engine, &options, NULL, NULL), 0);
    config = sl_engine_config(story.engine);
    choose_positions(&story);
    story.ids = calloc(story.n_tokens + ROWS, sizeof(*story.ids));
    story.answers = calloc((size_t)story.n_positions * ROWS, config->vocab_size * sizeof(float));
    assert_true(story.ids && story.answers);
    for (uint32_t t = 0; t < story.n_tokens + ROWS; t++)
        story.ids[t] = (int32_t)fixture_below(&story.random, config->vocab_size);
    run_story(&story);
    sl_engine_close(story.engine);
    free(story.ids);
    free(story.answers);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_long_session_has_one_answer),
    };

    return cmocka_run_group_tests_name("long_session", tests, NULL, NULL);
}
