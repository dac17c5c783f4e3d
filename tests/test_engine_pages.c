/* An engine whose sequences are on disk answers as one that has them in memory, from a real file,
 * through either back end, also when reads fail for good and are taken again; the file has no name
 * and is its owner's alone, and what memory it takes is in the plan. The daemon's pool of sessions
 * moves pages piece by piece. */
#include <dirent.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/model/kv_paging.h"
#include "core/session/session.h"
#include "daemon/worker/ticket.h"
#include "tests/engine_rig.h"

#define TOKENS 1600u
#define PAGED_AT 1440u /* two pages of the layer that compresses least are full, and one more */

struct world {
    const struct engine_rig *m;
    char folder[FIXTURE_PATH_BYTES];
    int32_t tokens[TOKENS];
    float *rows[TOKENS]; /* logits of an undisturbed run, from PAGED_AT on */
};

static struct sl_engine *open_engine(struct world *w, struct sl_engine_options *options)
{
    struct sl_engine *engine;
    struct sl_err err = {0};

    options->images = w->folder;
    options->images_bytes_max = UINT64_MAX;
    options->context_tokens = TOKENS;
    if (sl_engine_open(&engine, options, NULL, &err) < 0)
        fail_msg("%s", err.message);
    return engine;
}

static struct sl_engine_options paged_options(const struct world *w)
{
    struct sl_engine_options options = engine_rig_options(w->m);

    options.kv_disk_bytes = UINT64_C(16) << 20;
    return options;
}

struct step {
    struct world *w;
    uint32_t first;
};

static void take_rows(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    const struct step *step = context;

    for (uint32_t i = 0; i < n_rows; i++) {
        float **row = &step->w->rows[step->first + rows[i].token_index];

        if (*row)
            assert_memory_equal(rows[i].logits, *row, step->w->m->row_bytes);
        else if ((*row = malloc(step->w->m->row_bytes)))
            memcpy(*row, rows[i].logits, step->w->m->row_bytes);
    }
}

/* Takes the session on by up to n tokens in one step. */
static int step_on(struct world *w, struct sl_engine *engine, struct sl_session *session,
                   uint32_t n, struct sl_err *err)
{
    const uint32_t at_once = sl_engine_step_tokens_max(engine, SL_STEP_LARGE);
    struct step step = {w, sl_session_token_count(session)};
    struct sl_span span = {.kv = sl_session_kv(session),
                           .tokens = w->tokens + step.first,
                           .n_tokens = n < at_once ? n : at_once};
    const struct sl_step_request request = {
        .spans = &span, .n_spans = 1, .on_logits = take_rows, .on_logits_context = &step};

    span.logits = step.first >= PAGED_AT ? SL_LOGITS_ALL : SL_LOGITS_NONE;
    return sl_engine_step(engine, &request, err);
}

static void go_to(struct world *w, struct sl_engine *engine, struct sl_session *session, uint32_t n)
{
    struct sl_err err = {0};

    while (sl_session_token_count(session) < n)
        if (step_on(w, engine, session, n - sl_session_token_count(session), &err) < 0)
            fail_msg("%s", err.message);
}

static struct sl_session *begin(struct world *w, struct sl_engine *engine)
{
    struct sl_session *session;

    assert_int_equal(sl_session_create(&session, sl_engine_kv_pool(engine), TOKENS, NULL), 0);
    go_to(w, engine, session, PAGED_AT);
    return session;
}

static void end(struct sl_engine *engine, struct sl_session *session)
{
    sl_session_destroy(session);
    sl_engine_close(engine);
}

static int create_world(void **state)
{
    struct sl_engine_options options;
    struct sl_session *session;
    struct sl_engine *engine;
    uint64_t random = 17;
    struct world *w;
    void *rig;

    if (engine_rig_create(&rig) < 0 || !(w = calloc(1, sizeof(*w))))
        return -1;
    w->m = rig;
    snprintf(w->folder, sizeof(w->folder), "%.*s/pages", (int)sizeof(w->folder) - 10, w->m->folder);
    for (uint32_t i = 0; i < TOKENS; i++)
        w->tokens[i] = (int32_t)fixture_below(&random, w->m->config.vocab_size);
    options = engine_rig_options(w->m);
    engine = open_engine(w, &options);
    session = begin(w, engine);
    go_to(w, engine, session, TOKENS);
    end(engine, session);
    *state = w;
    return 0;
}

static int destroy_world(void **state)
{
    struct world *w = *state;
    void *rig = (void *)(uintptr_t)w->m;

    for (uint32_t i = 0; i < TOKENS; i++)
        free(w->rows[i]);
    free(w);
    return engine_rig_destroy(&rig);
}

static uint32_t page_out(struct sl_session *session)
{
    struct sl_err err = {0};
    int rc = sl_kv_cache_page_out(sl_session_kv(session), UINT32_MAX, &err);

    if (rc < 0)
        fail_msg("%s", err.message);
    return (uint32_t)rc;
}

static bool has_file(const char *folder, const char *name)
{
    DIR *dir = opendir(folder);
    struct dirent *entry;
    bool found = false;

    assert_non_null(dir);
    while ((entry = readdir(dir)))
        found |= strcmp(entry->d_name, name) == 0;
    closedir(dir);
    return found;
}

static void check_answers(void **state, sl_io_open_fn *io)
{
    struct world *w = *state;
    struct sl_engine_options options = paged_options(w);
    struct sl_session *session;
    struct sl_engine_pages pages;
    struct sl_engine *engine;
    uint32_t n_out;

    options.io = io;
    engine = open_engine(w, &options);
    assert_false(has_file(w->folder, "kv-pages"));
    assert_true(engine->plan.need_bytes[SL_MEMORY_PAGES] > 0);
    session = begin(w, engine);
    n_out = page_out(session);
    assert_true(n_out >= 3);
    for (uint32_t n = PAGED_AT + 1; n < TOKENS; n += n < PAGED_AT + 8 ? 1 : 40) {
        go_to(w, engine, session, n);
        n_out += page_out(session);
    }
    go_to(w, engine, session, TOKENS);
    pages = sl_engine_pages(engine);
    assert_int_equal(pages.pager.out_bytes, n_out * engine->kv_pool.layout.page_bytes);
    assert_true(pages.pager.in_bytes > 8 * pages.pager.out_bytes);
    assert_true(pages.reads.read_bytes >= pages.pager.in_bytes);
    assert_int_equal(sl_engine_dense(engine).reads.read_bytes, 0);
    end(engine, session);
}

static void test_one_answer_by_threads(void **state)
{
    check_answers(state, sl_io_threads_open);
}

static void test_one_answer_by_io_uring(void **state)
{
    struct sl_err why;

    if (sl_io_choose(&why) != sl_io_uring_open) {
        print_message("# no io_uring here: %s\n", why.message);
        skip();
    }
    check_answers(state, sl_io_uring_open);
}

/* Of the reads of a step, whatever they are for, each fails for good in turn. */
static void test_reads_fail(void **state)
{
    struct world *w = *state;
    struct sl_engine_options options = paged_options(w);
    struct io_fault_plan plan = {.fail_kind = IO_FAULT_FAIL, .fail_for_good = true};
    struct sl_session *session;
    struct sl_engine *engine;
    uint32_t n_kv = 0;

    engine_rig_make_faulty(&options);
    engine = open_engine(w, &options);
    session = begin(w, engine);
    for (uint32_t i = 0; i < 12; i++) {
        const uint32_t n = sl_session_token_count(session);
        struct sl_err err = {0};
        int rc;

        page_out(session);
        /* The first one is of pages. Bytes of 0xff are not, which a checkpoint's experts may be. */
        plan.fail_nth = i > 0 ? i : 1;
        plan.fail_code = i > 0 ? -EIO : 0;
        io_fault_set(engine_rig_faulty(), &plan);
        rc = step_on(w, engine, session, 1, &err);
        io_fault_heal(engine_rig_faulty());
        n_kv += strstr(err.message, "KV caches in layer") != NULL;
        assert_true(rc == 0 || rc == -EIO || rc == -SL_ECORRUPT);
        assert_int_equal(sl_session_token_count(session), rc == 0 ? n + 1 : n);
        go_to(w, engine, session, n + 1);
    }
    assert_true(n_kv > 1);
    end(engine, session);
}

/* A batch's document gives way to another one, and comes back for somebody who goes on with it: a
 * page at a time, with a layer for others in between. */
static void test_pieces(void **state)
{
    struct world *w = *state;
    struct sl_engine_options options = paged_options(w);
    struct sl_engine *engine = open_engine(w, &options);
    struct sl_kv_pool *kv_pool = sl_engine_kv_pool(engine);
    const uint64_t budget_bytes = kv_pool->budget_bytes;
    struct sl_kept_session *kept, *other;
    struct sl_text user = {0}, *gives_way;
    struct sl_session_pool pool;
    uint32_t n, n_pages;

    sl_session_pool_init(&pool, kv_pool, TOKENS);
    pool.piece_pages = 1;
    pool.step_tokens = 64;
    pool.sweep_bytes = UINT64_MAX / 2; /* so that more documents at a time pay */
    assert_int_equal(
        sl_session_get(&pool, w->tokens, TOKENS, 0, TOKENS, true, &kept, &gives_way, NULL), 0);
    kept->user = &user;
    kept->target_tokens = PAGED_AT;
    go_to(w, engine, kept->session, PAGED_AT);
    n_pages = (uint32_t)(sl_kv_cache_page_out_bytes(kept->kv) / sl_kv_page_cost(&kv_pool->layout));
    assert_true(n_pages >= 3);
    kv_pool->budget_bytes = sl_kv_pool_used_bytes(kv_pool) + 4096; /* room for a table alone */
    for (n = 1; n <= n_pages + 1; n++) {
        assert_int_equal(sl_session_get(&pool, w->tokens + 1, TOKENS - 1, 0, TOKENS - 1, true,
                                        &other, &gives_way, NULL),
                         -EBUSY);
        assert_int_equal(pool.is_moving, n <= n_pages);
        pool.is_moving = false;
        assert_int_equal(sl_kv_cache_far_pages(kept->kv, UINT32_MAX), n <= n_pages ? n : n_pages);
    }
    kv_pool->budget_bytes = budget_bytes;
    sl_session_put(&pool, kept);
    for (n = n_pages - 1; n > 0; n--) {
        assert_int_equal(
            sl_session_get(&pool, w->tokens, TOKENS, 0, TOKENS, false, &other, &gives_way, NULL),
            -EBUSY);
        assert_true(pool.is_moving);
        pool.is_moving = false;
        assert_int_equal(sl_kv_cache_far_pages(kept->kv, UINT32_MAX), n);
    }
    assert_int_equal(
        sl_session_get(&pool, w->tokens, TOKENS, 0, TOKENS, false, &other, &gives_way, NULL), 0);
    assert_ptr_equal(other, kept);
    assert_int_equal(sl_kv_cache_far_pages(kept->kv, UINT32_MAX), 0);
    kept->user = &user;
    go_to(w, engine, kept->session, TOKENS);
    sl_session_put(&pool, kept);
    sl_session_pool_fini(&pool);
    sl_engine_close(engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_answer_by_threads),
        cmocka_unit_test(test_one_answer_by_io_uring),
        cmocka_unit_test(test_reads_fail),
        cmocka_unit_test(test_pieces),
    };

    return cmocka_run_group_tests_name("engine_pages", tests, create_world, destroy_world);
}
