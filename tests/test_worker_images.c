/* The worker's sessions sleep on disk: conversations go on, one turn after the other, with memory
 * for few of them, in workers that follow each other, with files that were damaged, taken away or
 * bounded meanwhile. Every text is what it is alone, however little was computed; and where images
 * are as they were, what had been seen is not computed again. SL_SEED repeats the clients. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/base/clock.h"
#include "core/base/size.h"
#include "daemon/engine/feed.h"
#include "daemon/worker/session_images.h"
#include "tests/crash_writer.h"
#include "tests/store_rig.h"
#include "tests/worker_rig.h"

#define TURNS 3u
#define TAIL_TOKENS                                                                                \
    64u /* so many may have to be computed again: see daemon/worker/worker_texts.c */
#define IMAGE_BYTES (UINT64_C(80) << 10) /* of one of these conversations, at least */

static struct worker_rig *rig_create_with(struct engine_rig *m, uint32_t kv_sessions,
                                          uint32_t n_new_min)
{
    static char folder[FIXTURE_PATH_BYTES];
    struct worker_rig *w = calloc(1, sizeof(*w));

    assert_non_null(w);
    snprintf(folder, sizeof(folder), "%.200s/images", m->folder);
    w->images = folder;
    w->kv_sessions = kv_sessions;
    w->n_new_min = n_new_min;
    worker_rig_init(w, m);
    return w;
}

static struct worker_rig *rig_create(struct engine_rig *m, uint32_t kv_sessions)
{
    return rig_create_with(m, kv_sessions, 0);
}

static void rig_destroy(struct worker_rig *w)
{
    store_rig_remove(w->images);
    worker_rig_fini(w);
    free(w);
}

/* ---- turns -------------------------------------------------------------------------------------
 */

struct sum {
    uint64_t n_prompt_tokens, n_cached_tokens;
};

static void take(struct worker_client *client, struct sum *sum)
{
    worker_rig_read_all(client);
    if (client->has_failed)
        fail_msg("%d %s", client->status, client->why);
    assert_string_equal(client->text, client->alone);
    assert_true(client->usage.n_cached_tokens < client->n_prompt);
    sum->n_prompt_tokens += client->n_prompt;
    sum->n_cached_tokens += client->usage.n_cached_tokens;
}

/* Everybody's turn, so many at a time. */
static struct sum take_turn(struct worker_rig *w, uint32_t at_once)
{
    struct sum sum = {0};

    for (uint32_t i = 0; i < WORKER_CLIENTS; i += at_once) {
        const uint32_t end = i + at_once < WORKER_CLIENTS ? i + at_once : WORKER_CLIENTS;

        for (uint32_t k = i; k < end; k++)
            assert_int_equal(worker_rig_submit(w, k), 0);
        for (uint32_t k = i; k < end; k++)
            take(&w->clients[k], &sum);
    }
    worker_rig_wait_released(w);
    return sum;
}

/* Tokens of prompts that had been seen before the turn, but for the last ones, which are not worth
 * an image. */
static uint64_t seen_before(const struct worker_rig *w)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < WORKER_CLIENTS; i++) {
        const struct worker_client *client = &w->clients[i];
        const uint32_t n_seen = client->n_prompt - WORKER_TURN_TOKENS - 1;

        n += n_seen > TAIL_TOKENS ? n_seen - TAIL_TOKENS : 0;
    }
    return n;
}

/* ---- tests -------------------------------------------------------------------------------------
 */

/* There is memory for two of sixteen conversations, which come one after the other or in company:
 * most are on disk when their turn comes, in the same worker or in the next one, which may have
 * other drafts than the last. */
static void converse(struct engine_rig *m, bool restart, uint32_t drafts)
{
    struct worker_rig *w =
        rig_create(m, drafts > 0 ? 3 : 2); /* counted without the draft's layer */
    struct sl_worker_status status;
    uint64_t n_resumed = 0;

    worker_rig_start(w, WORKER_CLIENTS);
    for (uint32_t turn = 0; turn < TURNS; turn++) {
        struct sum sum;

        if (turn > 0 && restart) {
            worker_rig_stop(w, 10 * NS_PER_S);
            worker_rig_next_turn(w);
            w->drafts = turn % 2 ? drafts : 0;
            worker_rig_start(w, WORKER_CLIENTS);
        } else if (turn > 0) {
            worker_rig_next_turn(w);
        }
        sum = take_turn(w, 1 + 2 * (turn % 2));
        sl_worker_status(w->worker, &status);
        assert_true(status.counters.n_kv_bytes <= worker_rig_kv_bytes(w));
        if (turn > 0)
            assert_true(sum.n_cached_tokens >= seen_before(w));
        n_resumed = (restart ? n_resumed : 0) + status.counters.n_resumed;
    }
    assert_true(n_resumed >= (TURNS - 1) * WORKER_CLIENTS / 2);
    assert_int_equal(status.images.n_failed + status.images.n_dropped, 0);
    worker_rig_stop(w, 10 * NS_PER_S);
    worker_rig_assert_released(w);
    assert_int_equal(w->n_notes, 0);
    print_message("%llu sessions woke up\n", (unsigned long long)n_resumed);
    rig_destroy(w);
}

static void test_little_memory(void **state)
{
    converse(*state, false, 0);
}

static void test_restarts(void **state)
{
    converse(*state, true, 0);
}

static void test_drafts_come_and_go(void **state)
{
    converse(*state, true, 3);
}

/* ---- folders that change -----------------------------------------------------------------------
 */

/* Calls for each image in the folder, in any order. */
static void each_image(const struct worker_rig *w,
                       void (*do_it)(const char *path, uint64_t *random), uint64_t *random)
{
    DIR *folder = opendir(w->images);
    const struct dirent *entry;

    assert_non_null(folder);
    while ((entry = readdir(folder))) {
        char path[2 * FIXTURE_PATH_BYTES];

        snprintf(path, sizeof(path), "%s/%s", w->images, entry->d_name);
        if (strstr(entry->d_name, SL_IMAGE_SUFFIX))
            do_it(path, random);
    }
    closedir(folder);
}

static void flip(const char *path, uint64_t at)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    uint8_t byte;

    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, (off_t)at), 1);
    byte ^= (uint8_t)(1 << at % 8);
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
    close(fd);
}

/* Some stay as they are, others are flipped somewhere, cut, or taken away. */
static void damage(const char *path, uint64_t *random)
{
    const uint32_t kind = fixture_below(random, 5);
    struct stat status;

    assert_int_equal(stat(path, &status), 0);
    if (kind == 0)
        assert_int_equal(unlink(path), 0);
    else if (kind == 1)
        assert_int_equal(truncate(path, fixture_below(random, (uint32_t)status.st_size)), 0);
    else if (kind < 4)
        flip(path, fixture_below(random, (uint32_t)status.st_size));
}

/* Between two workers, or beneath one. */
static void test_damage(void **state)
{
    struct worker_rig *w = rig_create(*state, 2);

    worker_rig_start(w, WORKER_CLIENTS);
    for (uint32_t turn = 0; turn < TURNS; turn++) {
        if (turn == 1)
            worker_rig_stop(w, 10 * NS_PER_S);
        if (turn > 0) {
            each_image(w, damage, &w->random);
            worker_rig_next_turn(w);
        }
        if (turn == 1)
            worker_rig_start(w, WORKER_CLIENTS);
        take_turn(w, 2);
    }
    worker_rig_stop(w, 10 * NS_PER_S);
    assert_true(w->n_notes > 0);
    print_message("%u notes, such as: %s\n", w->n_notes, w->note);
    rig_destroy(w);
}

/* A limit that holds few images, one that holds none, a folder that is taken away, one that another
 * process has, and one that cannot be made. */
static void test_folders(void **state)
{
    struct worker_rig *w = rig_create(*state, 2);
    const char *images = w->images;
    struct sl_worker_status status;
    int lock;

    w->images_bytes_max = 6 * IMAGE_BYTES;
    for (int turn = 0; turn < 2; turn++) {
        worker_rig_start(w, WORKER_CLIENTS);
        take_turn(w, 2);
        sl_worker_status(w->worker, &status);
        assert_true(status.images.folder_bytes <= w->images_bytes_max);
        assert_true(status.images.n_saved > 0 && status.images.n_removed > 0);
        worker_rig_stop(w, 10 * NS_PER_S);
    }
    store_rig_remove(images);
    w->images_bytes_max = 1;
    worker_rig_start(w, WORKER_CLIENTS);
    take_turn(w, 2);
    sl_worker_status(w->worker, &status);
    assert_int_equal(status.images.n_images, 0);
    assert_true(status.images.n_failed > 0);
    worker_rig_stop(w, 10 * NS_PER_S);
    w->images_bytes_max = 0;
    worker_rig_start(w, WORKER_CLIENTS);
    store_rig_remove(w->images);
    w->n_notes = 0;
    take_turn(w, 2);
    assert_int_equal(w->n_notes, 1); /* and not again so soon */
    worker_rig_stop(w, 10 * NS_PER_S);

    assert_int_equal(mkdir(images, 0700), 0);
    lock = sl_images_lock(images, NULL);
    assert_true(lock >= 0);
    worker_rig_start(w, WORKER_CLIENTS);
    take_turn(w, 3);
    worker_rig_stop(w, 10 * NS_PER_S);
    close(lock);
    w->images = "/dev/null/images";
    worker_rig_start(w, WORKER_CLIENTS);
    take_turn(w, 3);
    worker_rig_stop(w, 10 * NS_PER_S);
    w->images = images;
    rig_destroy(w);
}

/* A worker that is told to end at once, in the middle of prompts and answers, keeps what it has. */
static void test_stop_in_the_middle(void **state)
{
    struct worker_rig *w = rig_create(*state, 6);
    struct sum sum = {0};

    worker_rig_start(w, WORKER_CLIENTS);
    for (uint32_t i = 0; i < WORKER_CLIENTS; i++)
        assert_int_equal(worker_rig_submit(w, i), 0);
    worker_rig_read_all(&w->clients[5]);
    sl_worker_stop(w->worker, 0);
    for (uint32_t i = 0; i < WORKER_CLIENTS; i++)
        if (i != 5)
            worker_rig_read_all(&w->clients[i]);
    sl_worker_join(w->worker);
    worker_rig_assert_released(w);
    worker_rig_start(w, WORKER_CLIENTS);
    for (uint32_t i = 0; i < WORKER_CLIENTS; i++) {
        assert_int_equal(worker_rig_submit(w, i), 0);
        take(&w->clients[i], &sum);
    }
    assert_true(sum.n_cached_tokens >= w->clients[5].n_prompt - 1);
    worker_rig_stop(w, 10 * NS_PER_S);
    rig_destroy(w);
}

/* ---- a drive that does not write ---------------------------------------------------------------
 */

/* Writes wait until it is opened. */
static struct {
    struct sl_file_writer writer; /* first */
    pthread_mutex_t lock;         /* guards is_open */
    pthread_cond_t changed;
    bool is_open;
} gate = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static int write_behind_gate(struct sl_file_writer *writer, int file, uint64_t offset_bytes,
                             const void *data, uint64_t size_bytes)
{
    struct sl_file_writer *plain = sl_file_writer_private();

    (void)writer;
    pthread_mutex_lock(&gate.lock);
    while (!gate.is_open)
        pthread_cond_wait(&gate.changed, &gate.lock);
    pthread_mutex_unlock(&gate.lock);
    return plain->ops->write(plain, file, offset_bytes, data, size_bytes);
}

static void open_gate(void)
{
    pthread_mutex_lock(&gate.lock);
    gate.is_open = true;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
}

enum { SLEEPS = 1, SLEEPS_TOO = 5, GOES_ON = 2, WAITS = 3 };
static bool has_come; /* of the worker's thread, until it has ended */

/* WAITS comes when GOES_ON has made its first token. */
static void come_second(struct worker_client *client)
{
    struct worker_rig *w = client->w;

    if (client == &w->clients[GOES_ON] && !has_come)
        has_come = worker_rig_submit(w, WAITS) == 0;
}

/* Memory is full, of an idle session whose image is not on disk yet and of marks: a text whose next
 * step does not fit waits until it is, while others go on beside it. */
static void test_waits_for_a_drive(void **state)
{
    static struct sl_file_writer_ops ops;
    /* Memory for all four, but not for as many marks as the last one takes. */
    struct worker_rig *w = rig_create_with(*state, 7, 100);
    static const uint32_t sleepers[] = {SLEEPS, SLEEPS_TOO};
    struct worker_client *client;

    ops = *sl_file_writer_private()->ops;
    ops.write = write_behind_gate;
    gate.writer.ops = &ops;
    gate.is_open = has_come = false;
    w->images_writer = &gate.writer;
    w->on_news = come_second;
    worker_rig_start(w, WORKER_CLIENTS);
    w->clients[WAITS].n_new = 40;
    w->clients[WAITS].image_every_tokens = 2;
    for (size_t i = 0; i < SL_ARRAY_LEN(sleepers); i++) {
        assert_int_equal(worker_rig_submit(w, sleepers[i]), 0);
        worker_rig_read_all(&w->clients[sleepers[i]]);
    }
    assert_int_equal(worker_rig_submit(w, GOES_ON), 0);
    worker_rig_read_all(&w->clients[GOES_ON]);
    client = &w->clients[GOES_ON];
    assert_false(client->has_failed);
    assert_string_equal(client->text, client->alone);
    client = &w->clients[WAITS];
    worker_rig_read(client);
    assert_true(has_come && !client->is_done);
    open_gate();
    worker_rig_read_all(client);
    assert_false(client->has_failed);
    assert_memory_equal(client->text, client->alone, client->length);
    assert_int_equal(client->usage.n_new_tokens, 40);
    worker_rig_stop(w, 10 * NS_PER_S);
    rig_destroy(w);
}

/* ---- one by one, without a worker ---------------------------------------------------------------
 */

struct alone {
    char folder[FIXTURE_PATH_BYTES];
    struct sl_engine *engine;
    struct sl_session_pool pool;
    struct sl_session_images images;
    struct sl_text user; /* of whatever session is used */
    uint64_t random;
    uint32_t n_vocab;
};

#define ALONE_TOKENS 100u

static void alone_open(struct alone *p, const struct engine_rig *m, uint64_t bytes_max,
                       struct sl_file_writer *writer)
{
    struct sl_engine_options options = engine_rig_options(m);

    *p = (struct alone){.random = 3, .n_vocab = m->config.vocab_size};
    snprintf(p->folder, sizeof(p->folder), "%.200s/alone", m->folder);
    options.draft = SL_DRAFT_NONE;
    options.context_tokens = WORKER_CONTEXT_TOKENS;
    options.images = p->folder;
    options.images_bytes_max = bytes_max;
    options.images_writer = writer;
    options.images_optional = true;
    assert_int_equal(sl_engine_open(&p->engine, &options, NULL, NULL), 0);
    sl_session_pool_init(&p->pool, sl_engine_kv_pool(p->engine), WORKER_CONTEXT_TOKENS);
    sl_session_images_init(&p->images, p->engine, &p->pool);
}

static void alone_close(struct alone *p)
{
    sl_session_images_flush(&p->images);
    sl_session_pool_fini(&p->pool);
    sl_engine_close(p->engine);
}

static struct sl_kept_session *alone_take_in(struct alone *p, int32_t tokens[ALONE_TOKENS])
{
    static const struct sl_step_request hooks;
    struct sl_feed feed = {.tokens = tokens, .n_tokens = ALONE_TOKENS - 1};
    struct sl_kept_session *kept;
    struct sl_text *gives_way;

    for (uint32_t i = 0; i < ALONE_TOKENS; i++)
        tokens[i] = (int32_t)fixture_below(&p->random, p->n_vocab);
    assert_int_equal(sl_session_get(&p->pool, tokens, ALONE_TOKENS, 0, ALONE_TOKENS, false, &kept,
                                    &gives_way, NULL),
                     0);
    kept->user = &p->user;
    kept->tokens = tokens;
    kept->n_tokens = ALONE_TOKENS;
    feed.kv = kept->kv;
    assert_int_equal(sl_feed_run(p->engine, &feed, &hooks, NULL), 0);
    return kept;
}

/* Takes in a prompt, and keeps its image. */
static struct sl_kept_session *alone_feed(struct alone *p, int32_t tokens[ALONE_TOKENS],
                                          bool is_pinning)
{
    struct sl_kept_session *kept = alone_take_in(p, tokens);
    bool has_changed;

    kept->is_pinning = is_pinning;
    sl_session_images_want(&p->images, kept, sl_session_keep_mark(kept), sl_clock_ns());
    while (sl_session_images_are_due(&p->images))
        sl_session_images_tick(&p->images, true, sl_clock_ns(), &has_changed);
    return kept;
}

static void alone_put(struct alone *p, struct sl_kept_session *kept)
{
    sl_session_images_release(&p->images, kept);
    sl_session_put(&p->pool, kept);
}

/* A session that ends where there is no memory for a mark gets it when others may go; where none
 * may, its image is not kept, and it may go itself. */
static void test_a_mark_that_waits(void **state)
{
    int32_t saved[ALONE_TOKENS], late[ALONE_TOKENS];
    struct sl_kept_session *kept;
    bool has_changed;
    struct alone p;

    for (int n_others = 1; n_others >= 0; n_others--) {
        alone_open(&p, *state, UINT64_MAX, NULL);
        for (int i = 0; i < n_others; i++)
            alone_put(&p, alone_feed(&p, saved, false));
        kept = alone_take_in(&p, late);
        p.pool.kv_pool->budget_bytes = sl_kv_pool_used_bytes(p.pool.kv_pool);
        assert_null(sl_session_keep_mark(kept));
        kept->lacks_mark = true;
        alone_put(&p, kept);
        assert_true(sl_session_awaits_images(&p.pool));
        assert_true(n_others > 0 || !sl_session_give_up(&p.pool));
        while (sl_session_images_are_due(&p.images))
            sl_session_images_tick(&p.images, true, sl_clock_ns(), &has_changed);
        assert_int_equal(sl_engine_find_image(p.engine, late, ALONE_TOKENS).n_tokens,
                         n_others > 0 ? ALONE_TOKENS - 1 : 0);
        assert_false(p.pool.is_short);
        assert_true(sl_session_give_up(&p.pool));
        assert_int_equal(p.pool.n_idle, 0);
        alone_close(&p);
        store_rig_remove(p.folder);
    }
}

/* The latest image of a text that wants it pinned stays as long as the text lasts, whatever others
 * keep; then it goes like any other. */
static void test_pins(void **state)
{
    int32_t pinned[ALONE_TOKENS], other[ALONE_TOKENS];
    struct sl_kept_session *kept;
    uint64_t image_bytes;
    struct alone p;

    alone_open(&p, *state, UINT64_MAX, NULL);
    alone_put(&p, alone_feed(&p, other, false));
    image_bytes = sl_images_counters(sl_engine_images(p.engine)).saved_bytes;
    alone_close(&p);

    alone_open(&p, *state, 3 * image_bytes, NULL);
    kept = alone_feed(&p, pinned, true);
    for (int i = 0; i < 6; i++)
        alone_put(&p, alone_feed(&p, other, false));
    assert_int_equal(sl_engine_find_image(p.engine, pinned, ALONE_TOKENS).n_tokens,
                     ALONE_TOKENS - 1);
    alone_put(&p, kept);
    for (int i = 0; i < 6; i++)
        alone_put(&p, alone_feed(&p, other, false));
    assert_int_equal(sl_engine_find_image(p.engine, pinned, ALONE_TOKENS).n_tokens, 0);
    assert_int_equal(sl_engine_find_image(p.engine, other, ALONE_TOKENS).n_tokens,
                     ALONE_TOKENS - 1);
    alone_close(&p);
}

/* Wakes a session up as far as its prompt's image goes; returns how far. */
static uint32_t wake(struct alone *p, const int32_t tokens[ALONE_TOKENS])
{
    const uint32_t n_stored = sl_engine_find_image(p->engine, tokens, ALONE_TOKENS - 1).n_tokens;
    struct sl_kept_session *kept;
    struct sl_text *gives_way;
    uint32_t n_tokens;
    bool has_changed;

    assert_int_equal(sl_session_get(&p->pool, tokens, ALONE_TOKENS, n_stored, ALONE_TOKENS, false,
                                    &kept, &gives_way, NULL),
                     0);
    assert_int_equal(kept->load_tokens, n_stored);
    kept->user = &p->user;
    kept->tokens = tokens;
    kept->n_tokens = ALONE_TOKENS;
    while (kept->load_tokens > 0)
        sl_session_images_tick(&p->images, true, sl_clock_ns(), &has_changed);
    n_tokens = kept->kv->n_tokens;
    alone_put(p, kept);
    return n_tokens;
}

/* Each call to the disk fails once, while two prompts' images are kept. Sessions may go whatever
 * came of their images, and wake up where these are. */
static void test_each_call_fails(void **state)
{
    uint32_t n_least = 2;
    bool has_failed = true;

    for (uint64_t nth = 1; has_failed; nth++) {
        struct crash_writer *writer = crash_writer_open(nth, nth, nth % 2 ? -ENOSPC : -EIO);
        int32_t tokens[2][ALONE_TOKENS];
        uint32_t n_woken = 0;
        struct alone p;

        alone_open(&p, *state, UINT64_MAX, crash_writer_ops(writer));
        for (int i = 0; i < 2; i++)
            alone_put(&p, alone_feed(&p, tokens[i], false));
        while (sl_session_give_up(&p.pool))
            ;
        assert_int_equal(p.pool.n_idle + p.pool.n_used, 0);
        for (int i = 0; p.images.images && i < 2; i++)
            n_woken += wake(&p, tokens[i]) == ALONE_TOKENS - 1;
        if (p.images.images)
            assert_int_equal(n_woken, sl_images_counters(p.images.images).n_saved);
        has_failed = crash_writer_count(writer) >= nth;
        alone_close(&p);
        crash_writer_close(writer);
        store_rig_remove(p.folder);
        assert_true(has_failed || n_woken == 2);
        n_least = n_woken < n_least ? n_woken : n_least;
    }
    assert_int_equal(n_least, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_little_memory),
        cmocka_unit_test(test_restarts),
        cmocka_unit_test(test_drafts_come_and_go),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_folders),
        cmocka_unit_test(test_stop_in_the_middle),
        cmocka_unit_test(test_waits_for_a_drive),
        cmocka_unit_test(test_a_mark_that_waits),
        cmocka_unit_test(test_pins),
        cmocka_unit_test(test_each_call_fails),
    };

    return cmocka_run_group_tests_name("images of the worker's sessions", tests, engine_rig_create,
                                       engine_rig_destroy);
}
