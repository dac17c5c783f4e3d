/* The runner of batches with a worker and a whole engine on the tiny model: reads of experts that
 * fail, priorities, cancellation, expiry, a clock that is set back, parking, a disk that fails at
 * each call in turn, and batches that are forgotten. Each time every item has one line, in the
 * results or among the errors, and lines of results are those of a run that nothing disturbed. Time
 * of day is the test's own.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/base/file.h"
#include "core/base/size.h"
#include "daemon/batch/batch_service.h"
#include "tests/crash_writer.h"
#include "tests/fixture_checkpoint.h"
#include "tests/worker_rig.h"

#define ITEMS 12u
#define NEW_TOKENS 12u
#define LONG_TOKENS 150u
#define BATCHES_MAX 4u
#define LINES_MAX 64u
#define BEGINNING 1800000000 /* seconds since 1970 */

static atomic_llong now_s = BEGINNING;

/* In place of the system's. */
time_t time(time_t *ret_time)
{
    const time_t now = (time_t)atomic_load(&now_s);

    if (ret_time)
        *ret_time = now;
    return now;
}

/* ---- a runner, or a service, at work -----------------------------------------------------------
 */

static struct worker_rig w; /* its engines are made anew for each test */
static const char *const names[] = {"tiny"};

struct rig {
    char folder[FIXTURE_PATH_BYTES];
    struct sl_answer_model model;
    struct sl_journal *journal;
    struct sl_batch_runner *runner;
    struct sl_file_writer *writer;
    uint32_t items_max;

    pthread_mutex_t lock; /* guards the rest */
    pthread_cond_t changed;
    char ended[BATCHES_MAX][SL_BATCH_NAME_BYTES]; /* (n_ended) in that order */
    uint32_t n_ended, n_notes;
    char note[SL_ERR_MESSAGE_BYTES];
};

static struct sl_batch_status status_of(const struct rig *r, const char *id)
{
    struct sl_batch_status status, plain;

    assert_int_equal(sl_batch_runner_status(r->runner, id, &status), 0);
    plain = status; /* its strings are not looked at */
    sl_batch_status_fini(&status);
    return plain;
}

static int on_change(void *context, const struct sl_batch_record *record)
{
    struct rig *r = context;

    pthread_mutex_lock(&r->lock);
    if (sl_batch_has_ended(record->state)) {
        assert_true(r->n_ended < BATCHES_MAX);
        memcpy(r->ended[r->n_ended++], record->id, SL_BATCH_NAME_BYTES);
    }
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
    return 0;
}

static void on_note(void *context, const char *line)
{
    struct rig *r = context;

    pthread_mutex_lock(&r->lock);
    r->n_notes++;
    snprintf(r->note, sizeof(r->note), "%s", line);
    pthread_mutex_unlock(&r->lock);
}

static void path_in(const struct rig *r, const char *name, char path[FIXTURE_PATH_BYTES + 64])
{
    snprintf(path, FIXTURE_PATH_BYTES + 64, "%s/%s", r->folder, name);
}

static int open_runner(struct rig *r, struct sl_err *err)
{
    char path[FIXTURE_PATH_BYTES + 64];
    struct sl_batch_runner_options options = {.writer = r->writer,
                                              .model = &r->model,
                                              .model_identity = "native tiny",
                                              .items_max = r->items_max,
                                              .commit_ns = 1000000,
                                              .retry_ns = 1000000,
                                              .image_tokens = 64,
                                              .keeps_images = w.images != NULL,
                                              .on_change = on_change,
                                              .on_note = on_note,
                                              .context = r};
    int rc;

    path_in(r, "journal", path);
    rc = sl_journal_open(&r->journal, path, r->writer, err);
    options.journal = r->journal;
    return rc < 0 ? rc : sl_batch_runner_create(&r->runner, &options, err);
}

static void start(struct rig *r)
{
    assert_int_equal(sl_batch_runner_start(r->runner, w.worker, NULL), 0);
}

static void close_runner(struct rig *r)
{
    sl_batch_runner_destroy(r->runner);
    sl_journal_close(r->journal);
    r->runner = NULL;
    r->journal = NULL;
}

static void start_worker(const struct io_fault_plan *plan, uint32_t heal_after)
{
    w.plan = plan;
    w.heal_after = heal_after;
    w.n_failures = 0;
    worker_rig_start(&w, 1);
}

/* A worker is there, and a journal without any batch. */
static void begin(struct rig *r, uint32_t items_max)
{
    *r = (struct rig){.writer = sl_file_writer(), .items_max = items_max};
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->changed, NULL);
    atomic_store(&now_s, BEGINNING);
    fixture_folder_create(r->folder);
    r->model = (struct sl_answer_model){.tok = w.tok,
                                        .config = &w.m->config,
                                        .context_tokens = WORKER_CONTEXT_TOKENS,
                                        .names = names,
                                        .n_names = 1};
    assert_int_equal(open_runner(r, NULL), 0);
}

static void end(struct rig *r)
{
    char command[FIXTURE_PATH_BYTES + 16];

    if (r->runner)
        assert_int_equal(sl_batch_runner_park(r->runner, NULL), 0);
    close_runner(r);
    snprintf(command, sizeof(command), "rm -rf %s", r->folder);
    assert_int_equal(system(command), 0);
    pthread_cond_destroy(&r->changed);
    pthread_mutex_destroy(&r->lock);
}

/* Items begin alike in threes. */
static void write_input(const struct rig *r, const char *name, uint32_t n_items, uint32_t n_new)
{
    char path[FIXTURE_PATH_BYTES + 64];
    FILE *out;

    path_in(r, name, path);
    out = fopen(path, "w");
    assert_non_null(out);
    for (uint32_t i = 0; i < n_items; i++) {
        uint64_t shared = i / 3 + 1, own = 100 + i;

        fprintf(out,
                "{\"custom_id\":\"item %u\",\"method\":\"POST\",\"url\":\"/v1/completions\","
                "\"body\":{\"max_tokens\":%u,\"prompt\":[1",
                i, n_new);
        for (uint32_t t = 0; t < 70 + i; t++)
            fprintf(
                out, ",%u",
                2 + (unsigned)fixture_below(t < 66 ? &shared : &own, w.m->config.vocab_size - 2));
        fprintf(out, "]}}\n");
    }
    assert_int_equal(fclose(out), 0);
}

/* Enters a batch whose files are NAME, NAME.out and NAME.err. */
static int try_to_order(struct rig *r, const char *name, const struct sl_batch_order *order,
                        char id[SL_BATCH_NAME_BYTES], struct sl_err *err)
{
    char input[FIXTURE_PATH_BYTES + 64], output[sizeof(input) + 8], error[sizeof(input) + 8];
    struct sl_batch_order whole = *order;

    path_in(r, name, input);
    snprintf(output, sizeof(output), "%s.out", input);
    snprintf(error, sizeof(error), "%s.err", input);
    whole.input_path = input;
    whole.output_path = output;
    whole.error_path = error;
    return sl_batch_runner_add(r->runner, &whole, id, err);
}

static void order(struct rig *r, const char *name, const struct sl_batch_order *order,
                  char id[SL_BATCH_NAME_BYTES])
{
    assert_int_equal(try_to_order(r, name, order, id, NULL), 0);
}

static bool has_ended(const struct rig *r, const char *id)
{
    for (uint32_t i = 0; i < r->n_ended; i++)
        if (strcmp(r->ended[i], id) == 0)
            return true;
    return false;
}

static void wait_until_ended(struct rig *r, const char *id, enum sl_batch_state state)
{
    pthread_mutex_lock(&r->lock);
    while (!has_ended(r, id))
        pthread_cond_wait(&r->changed, &r->lock);
    pthread_mutex_unlock(&r->lock);
    assert_int_equal(status_of(r, id).record.state, state);
}

static void wait_until_done(const struct rig *r, const char *id, uint32_t n_done)
{
    while (status_of(r, id).record.n_done < n_done)
        sched_yield();
}

/* ---- lines -------------------------------------------------------------------------------------
 */

struct lines {
    char *text;
    char *line[LINES_MAX]; /* (n) sorted */
    uint32_t n;
};

static int compare_lines(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* A file that is not there has no lines. */
static void read_lines(struct lines *lines, const char *path)
{
    size_t length;
    char *at;

    *lines = (struct lines){.n = 0};
    if (sl_file_read_all(path, UINT64_C(1) << 24, &lines->text, &length, NULL) < 0)
        return;
    assert_true(length == 0 || lines->text[length - 1] == '\n');
    for (at = lines->text; *at; at = strchr(at, '\0') + 1) {
        assert_true(lines->n < LINES_MAX);
        lines->line[lines->n++] = at;
        *strchr(at, '\n') = '\0';
    }
    qsort(lines->line, lines->n, sizeof(lines->line[0]), compare_lines);
}

static bool has_line(const struct lines *lines, const char *line)
{
    return lines->n > 0 &&
           bsearch(&line, lines->line, lines->n, sizeof(lines->line[0]), compare_lines) != NULL;
}

/* What a run makes of ITEMS items that nothing disturbs, one at a time. */
static struct lines alone[2]; /* short answers, long ones */

static void make_alone(struct lines *lines, uint32_t n_new)
{
    char id[SL_BATCH_NAME_BYTES], path[FIXTURE_PATH_BYTES + 64];
    struct rig r;

    begin(&r, 1);
    write_input(&r, "in", ITEMS, n_new);
    order(&r, "in", &(struct sl_batch_order){.priority = 0}, id);
    start(&r);
    wait_until_ended(&r, id, SL_BATCH_COMPLETED);
    path_in(&r, "in.out", path);
    read_lines(lines, path);
    assert_int_equal(lines->n, ITEMS);
    end(&r);
}

/* Each item has one line: a result, which is the one that it has alone, or an error of that code.
 * Returns how many errors there are. */
static uint32_t check_lines(const struct rig *r, const char *name, const struct lines *expected,
                            const char *code)
{
    char path[FIXTURE_PATH_BYTES + 64], file[64], item[64];
    struct lines results, errors;
    uint32_t n_errors;

    snprintf(file, sizeof(file), "%s.out", name);
    path_in(r, file, path);
    read_lines(&results, path);
    snprintf(file, sizeof(file), "%s.err", name);
    path_in(r, file, path);
    read_lines(&errors, path);
    n_errors = errors.n;
    assert_int_equal(results.n + errors.n, ITEMS);
    for (uint32_t i = 0; i < results.n; i++)
        assert_true(has_line(expected, results.line[i]));
    for (uint32_t i = 0; i < errors.n; i++)
        assert_non_null(strstr(errors.line[i], code));
    for (uint32_t i = 0; i < ITEMS; i++) {
        uint32_t n = 0;

        snprintf(item, sizeof(item), "\"custom_id\":\"item %u\"", i);
        for (uint32_t k = 0; k < results.n; k++)
            n += strstr(results.line[k], item) != NULL;
        for (uint32_t k = 0; k < errors.n; k++)
            n += strstr(errors.line[k], item) != NULL;
        assert_int_equal(n, 1);
    }
    free(results.text);
    free(errors.text);
    return n_errors;
}

/* ---- reads that fail ---------------------------------------------------------------------------
 */

/* Reads of one expert fail until so many steps have failed; returns how many items have. */
static uint32_t run_with_failures(uint32_t items_max, uint32_t heal_after)
{
    static const struct io_fault_plan plan = {
        .fail_nth = 60, .fail_kind = IO_FAULT_FAIL, .fail_code = -EIO, .fail_for_good = true};
    char id[SL_BATCH_NAME_BYTES];
    struct sl_batch_status status;
    uint32_t n_errors;
    struct rig r;

    start_worker(&plan, heal_after);
    begin(&r, items_max);
    write_input(&r, "in", ITEMS, NEW_TOKENS);
    order(&r, "in", &(struct sl_batch_order){.priority = 0}, id);
    start(&r);
    wait_until_ended(&r, id, SL_BATCH_COMPLETED);
    status = status_of(&r, id);
    n_errors = check_lines(&r, "in", &alone[0], "server_error");
    assert_int_equal(status.record.n_failed, n_errors);
    assert_int_equal(status.record.n_done, ITEMS - n_errors);
    /* Whoever looks after the machine is told which layer, which expert, which file. */
    assert_non_null(strstr(w.failure, "layer"));
    assert_non_null(strstr(w.failure, "expert"));
    assert_non_null(strstr(w.failure, w.m->folder));
    end(&r);
    worker_rig_stop(&w, 0);
    return n_errors;
}

/* A step that fails is taken once more; then its items begin again from their marks, twice. The
 * three that begin alike take turns, two steps each: the first of them ends at the third turn. */
static void test_reads_fail(void **state)
{
    (void)state;
    assert_int_equal(run_with_failures(1, 13), 0);
    assert_int_equal(w.n_failures, 13);
    assert_int_equal(run_with_failures(1, 14), 1);
    assert_int_equal(w.n_failures, 14);
    /* Several at once: six failures each are more than so many steps have for all. */
    assert_true(run_with_failures(4, 17) < ITEMS);
    assert_in_range(run_with_failures(4, 0), 1, ITEMS); /* those that want that expert */
}

/* ---- the order ---------------------------------------------------------------------------------
 */

static void test_priorities(void **state)
{
    static const struct {
        const char *name;
        int32_t priority;
        uint32_t place; /* in which it ends */
    } cases[] = {{"a", 0, 2}, {"b", 5, 0}, {"c", -1, 3}, {"d", 0 + 3, 1}};
    char ids[SL_ARRAY_LEN(cases)][SL_BATCH_NAME_BYTES];
    struct rig r;

    (void)state;
    begin(&r, 1);
    for (uint32_t i = 0; i < SL_ARRAY_LEN(cases); i++) {
        write_input(&r, cases[i].name, ITEMS, NEW_TOKENS);
        order(&r, cases[i].name, &(struct sl_batch_order){.priority = cases[i].priority}, ids[i]);
    }
    start(&r);
    for (uint32_t i = 0; i < SL_ARRAY_LEN(cases); i++)
        wait_until_ended(&r, ids[i], SL_BATCH_COMPLETED);
    for (uint32_t i = 0; i < SL_ARRAY_LEN(cases); i++) {
        assert_string_equal(r.ended[cases[i].place], ids[i]);
        assert_int_equal(check_lines(&r, cases[i].name, &alone[0], ""), 0);
    }
    end(&r);
}

/* One that comes later and is more urgent has all places at once, and those whose they were go on
 * later: until it has ended, none of them does. */
static void urgent_one_comes_later(uint32_t items_max)
{
    char slow[SL_BATCH_NAME_BYTES], quick[SL_BATCH_NAME_BYTES];
    uint32_t n_done;
    struct rig r;

    begin(&r, items_max);
    write_input(&r, "slow", ITEMS, LONG_TOKENS);
    write_input(&r, "quick", ITEMS, NEW_TOKENS);
    order(&r, "slow", &(struct sl_batch_order){.priority = 0}, slow);
    start(&r);
    wait_until_done(&r, slow, 2); /* these began together; the next two do now */
    n_done = status_of(&r, slow).record.n_done;
    order(&r, "quick", &(struct sl_batch_order){.priority = 1}, quick);
    wait_until_ended(&r, quick, SL_BATCH_COMPLETED);
    assert_int_equal(status_of(&r, slow).record.n_done, n_done);
    wait_until_ended(&r, slow, SL_BATCH_COMPLETED);
    check_lines(&r, "slow", &alone[1], "");
    check_lines(&r, "quick", &alone[0], "");
    end(&r);
}

static void test_urgent_one_comes_later(void **state)
{
    (void)state;
    urgent_one_comes_later(2);
}

/* There are places for all, but memory for few: that is what they give up then. */
static void test_urgent_one_finds_no_memory(void **state)
{
    const uint64_t kv_bytes = w.kv_bytes;

    (void)state;
    w.kv_bytes = 0;
    w.kv_sessions = 2;
    start_worker(NULL, 0);
    urgent_one_comes_later(2 * ITEMS);
    worker_rig_stop(&w, 0);
    w.kv_bytes = kv_bytes;
    w.kv_sessions = 0;
}

/* ---- the end before all is done ----------------------------------------------------------------
 */

static void test_cancel(void **state)
{
    char before[SL_BATCH_NAME_BYTES], amid[SL_BATCH_NAME_BYTES];
    struct sl_batch_status status;
    uint32_t n_errors;
    struct rig r;

    (void)state;
    begin(&r, 3);
    write_input(&r, "before", ITEMS, LONG_TOKENS);
    write_input(&r, "amid", ITEMS, LONG_TOKENS);
    order(&r, "before", &(struct sl_batch_order){.priority = 1}, before);
    order(&r, "amid", &(struct sl_batch_order){.priority = 0}, amid);
    assert_int_equal(sl_batch_runner_cancel(r.runner, "batch_none", NULL), -ENOENT);
    assert_int_equal(sl_batch_runner_cancel(r.runner, before, NULL), 0);
    start(&r);
    wait_until_ended(&r, before, SL_BATCH_CANCELLED);
    assert_int_equal(check_lines(&r, "before", &alone[1], "batch_cancelled"), ITEMS);
    wait_until_done(&r, amid, 2);
    assert_int_equal(sl_batch_runner_cancel(r.runner, amid, NULL), 0);
    wait_until_ended(&r, amid, SL_BATCH_CANCELLED);
    status = status_of(&r, amid);
    n_errors = check_lines(&r, "amid", &alone[1], "batch_cancelled");
    assert_int_equal(n_errors, status.record.n_failed);
    assert_in_range(ITEMS - n_errors, 2, ITEMS - 1);
    assert_int_equal(sl_batch_runner_cancel(r.runner, amid, NULL), -EALREADY);
    end(&r);
}

static void test_expiry(void **state)
{
    char before[SL_BATCH_NAME_BYTES], amid[SL_BATCH_NAME_BYTES];
    struct sl_batch_status status;
    uint32_t n_errors;
    struct rig r;

    (void)state;
    begin(&r, 3);
    write_input(&r, "before", ITEMS, LONG_TOKENS);
    write_input(&r, "amid", ITEMS, LONG_TOKENS);
    order(&r, "before", &(struct sl_batch_order){.priority = 1, .expires_s = BEGINNING}, before);
    order(&r, "amid", &(struct sl_batch_order){.expires_s = BEGINNING + 3600}, amid);
    start(&r);
    wait_until_ended(&r, before, SL_BATCH_EXPIRED);
    assert_int_equal(check_lines(&r, "before", &alone[1], "batch_expired"), ITEMS);
    wait_until_done(&r, amid, 2);
    atomic_store(&now_s, BEGINNING + 3600);
    wait_until_ended(&r, amid, SL_BATCH_EXPIRED);
    status = status_of(&r, amid);
    n_errors = check_lines(&r, "amid", &alone[1], "batch_expired");
    assert_int_equal(n_errors, status.record.n_failed);
    assert_in_range(ITEMS - n_errors, 2, ITEMS - 1);
    assert_int_equal(status.record.ended_s, BEGINNING + 3600);
    end(&r);
}

/* Nothing is lost, and nothing comes before what it follows. */
static void test_clock_set_back(void **state)
{
    char id[SL_BATCH_NAME_BYTES];
    struct sl_batch_record record;
    struct rig r;

    (void)state;
    begin(&r, 3);
    write_input(&r, "in", ITEMS, NEW_TOKENS);
    order(&r, "in", &(struct sl_batch_order){.expires_s = BEGINNING + 3600}, id);
    start(&r);
    wait_until_done(&r, id, 1);
    atomic_store(&now_s, BEGINNING - 7200);
    wait_until_ended(&r, id, SL_BATCH_COMPLETED);
    record = status_of(&r, id).record;
    assert_int_equal(record.created_s, BEGINNING);
    assert_true(record.in_progress_s >= record.created_s);
    assert_true(record.ended_s >= record.in_progress_s);
    assert_int_equal(check_lines(&r, "in", &alone[0], ""), 0);
    end(&r);
}

/* Parked again and again while answers are under way; each time the journal is read anew. */
static void test_park(void **state)
{
    char id[SL_BATCH_NAME_BYTES];
    uint32_t n_parked = 0, n_done = 0;
    struct rig r;

    (void)state;
    begin(&r, 3);
    write_input(&r, "in", ITEMS, LONG_TOKENS);
    order(&r, "in", &(struct sl_batch_order){.priority = 0}, id);
    while (n_done < ITEMS) {
        start(&r);
        wait_until_done(&r, id, n_done + 1);
        assert_int_equal(sl_batch_runner_park(r.runner, NULL), 0);
        n_done = status_of(&r, id).record.n_done;
        close_runner(&r);
        assert_int_equal(open_runner(&r, NULL), 0);
        assert_int_equal(status_of(&r, id).record.n_done, n_done); /* all of it was kept */
        n_parked++;
    }
    assert_true(n_parked > 2);
    start(&r);
    wait_until_ended(&r, id, SL_BATCH_COMPLETED);
    assert_int_equal(check_lines(&r, "in", &alone[1], ""), 0);
    end(&r);
}

/* After a restart what images know counts as done at once, and not only when they have been read:
 * here most items wait for memory then, until others have ended. */
static void test_progress_after_restart(void **state)
{
    const uint64_t kv_bytes = w.kv_bytes;
    char id[SL_BATCH_NAME_BYTES], images[FIXTURE_PATH_BYTES];
    struct sl_batch_status before, now;
    struct rig r;

    (void)state;
    fixture_folder_create(images);
    w.images = images;
    start_worker(NULL, 0);
    begin(&r, 5);
    write_input(&r, "in", ITEMS, LONG_TOKENS);
    order(&r, "in", &(struct sl_batch_order){.priority = 0}, id);
    start(&r);
    do
        before = status_of(&r, id);
    while (before.n_made_tokens < 5 * 10); /* all prompts are behind them */
    assert_int_equal(before.record.n_done, 0);
    assert_int_equal(sl_batch_runner_park(r.runner, NULL), 0);
    close_runner(&r);
    worker_rig_stop(&w, 0);
    w.kv_bytes = 0;
    w.kv_sessions = 2;
    start_worker(NULL, 0);
    assert_int_equal(open_runner(&r, NULL), 0);
    start(&r);
    do
        now = status_of(&r, id);
    while (now.n_running < 5 || now.n_done_tokens + 5 < before.n_done_tokens);
    assert_int_equal(now.record.n_done, 0);
    wait_until_ended(&r, id, SL_BATCH_COMPLETED);
    assert_int_equal(check_lines(&r, "in", &alone[1], ""), 0);
    end(&r);
    worker_rig_stop(&w, 0);
    w.kv_bytes = kv_bytes;
    w.kv_sessions = 0;
    w.images = NULL;
    fixture_folder_remove(images);
}

/* ---- disks that fail ---------------------------------------------------------------------------
 */

/* The nth call to the disk fails once: what was ordered goes on by itself, and is told. Returns
 * whether there were so many calls. */
static bool run_with_failing_call(uint64_t nth, int code)
{
    struct crash_writer *writer;
    char id[SL_BATCH_NAME_BYTES];
    bool has_failed;
    struct sl_err err;
    struct rig r;

    begin(&r, 3);
    write_input(&r, "in", ITEMS, NEW_TOKENS);
    close_runner(&r);
    writer = crash_writer_open(nth, nth, code);
    r.writer = crash_writer_ops(writer);
    while (open_runner(&r, &err) < 0) {
        assert_non_null(strstr(err.message, sl_strerror(code)));
        close_runner(&r);
    }
    if (try_to_order(&r, "in", &(struct sl_batch_order){.priority = 0}, id, &err) < 0)
        order(&r, "in", &(struct sl_batch_order){.priority = 0}, id);
    start(&r);
    wait_until_ended(&r, id, SL_BATCH_COMPLETED);
    assert_int_equal(check_lines(&r, "in", &alone[0], ""), 0);
    assert_int_equal(sl_batch_runner_park(r.runner, NULL), 0);
    has_failed = crash_writer_count(writer) >= nth;
    close_runner(&r);
    r.writer = sl_file_writer();
    crash_writer_close(writer);
    /* The journal is whole: it says what the results have. */
    assert_int_equal(open_runner(&r, NULL), 0);
    assert_int_equal(status_of(&r, id).record.n_done, ITEMS);
    end(&r);
    return has_failed;
}

static void test_each_call_fails(void **state)
{
    uint64_t nth = 1;

    (void)state;
    while (run_with_failing_call(nth, nth % 2 ? -ENOSPC : -EIO))
        nth += nth < 16 ? 1 : 7; /* the first ones open; the others are results, alike */
    assert_true(nth > 16);
}

/* ---- the service: files, and batches that are forgotten ----------------------------------------
 */

struct shop {
    struct rig r;
    struct sl_file_store *files;
    struct sl_batch_service *service;
};

/* How many files there are in a folder and below. */
static uint32_t count_files(const struct rig *r, const char *name)
{
    char command[FIXTURE_PATH_BYTES + 64];
    unsigned n = 0;
    FILE *out;

    snprintf(command, sizeof(command), "find %s/%s -type f | wc -l", r->folder, name);
    out = popen(command, "r");
    assert_non_null(out);
    assert_int_equal(fscanf(out, "%u", &n), 1);
    pclose(out);
    return n;
}

static int open_shop(struct shop *s, struct sl_file_writer *writer, struct sl_err *err)
{
    char files[FIXTURE_PATH_BYTES + 64], batches[FIXTURE_PATH_BYTES + 64];
    const struct sl_file_store_options store = {.folder = files, .writer = writer};
    struct sl_batch_service_options options = {.folder = batches,
                                               .writer = writer,
                                               .model = &s->r.model,
                                               .model_identity = "native-tiny",
                                               .items_max = 3,
                                               .commit_ns = 1000000,
                                               .retry_ns = 1000000,
                                               .note = on_note,
                                               .context = &s->r};
    int rc;

    path_in(&s->r, "files", files);
    path_in(&s->r, "batches", batches);
    rc = sl_file_store_open(&s->files, &store, err);
    options.files = s->files;
    return rc < 0 ? rc : sl_batch_service_open(&s->service, &options, err);
}

static void close_shop(struct shop *s)
{
    sl_batch_service_close(s->service);
    sl_file_store_close(s->files);
    s->service = NULL;
    s->files = NULL;
}

/* Uploads the rig's input; whoever is refused asks again. */
static void upload(struct shop *s, struct sl_stored_file *file)
{
    char path[FIXTURE_PATH_BYTES + 64], *text;
    struct sl_file_draft *draft;
    size_t length;

    path_in(&s->r, "in", path);
    assert_int_equal(sl_file_read_all(path, UINT64_C(1) << 24, &text, &length, NULL), 0);
    for (;;) {
        if (sl_file_draft_begin(&draft, s->files, NULL) < 0)
            continue;
        if (sl_file_draft_add(draft, text, length, NULL) < 0)
            sl_file_draft_discard(draft);
        else if (sl_file_draft_keep(draft, "in.jsonl", "batch", file, NULL) == 0)
            break;
    }
    free(text);
}

static void create_batch(struct shop *s, const char *file_id, char id[SL_BATCH_NAME_BYTES])
{
    const struct sl_batch_create create = {
        .input_file_id = file_id, .endpoint = "/v1/completions", .window = "none"};
    struct sl_refusal refusal;
    json_t *batch;

    while (!(batch = sl_batch_service_create(s->service, &create, &refusal)))
        assert_in_range(refusal.status, 500, 599);
    snprintf(id, SL_BATCH_NAME_BYTES, "%s", json_string_value(json_object_get(batch, "id")));
    json_decref(batch);
}

/* Waits for the end; returns the batch, the caller's. */
static json_t *wait_for_batch(struct shop *s, const char *id)
{
    struct sl_refusal refusal;

    for (;;) {
        json_t *batch = sl_batch_service_get(s->service, id, &refusal);

        assert_non_null(batch);
        if (strcmp(json_string_value(json_object_get(batch, "status")), "completed") == 0)
            return batch;
        json_decref(batch);
        sched_yield();
    }
}

static int forget(struct shop *s, const char *id)
{
    struct sl_refusal refusal = {.status = 0};
    json_t *deleted = sl_batch_service_forget(s->service, id, &refusal);

    json_decref(deleted);
    return deleted ? 200 : refusal.status;
}

/* As above, with results that become files: none is missing, none is left over. */
static bool serve_with_failing_call(uint64_t nth, int code)
{
    static struct shop s;
    struct crash_writer *writer = crash_writer_open(nth, nth, code);
    struct sl_stored_file file, output;
    char id[SL_BATCH_NAME_BYTES];
    bool has_failed;
    json_t *batch;

    begin(&s.r, 1);
    write_input(&s.r, "in", 3, NEW_TOKENS);
    while (open_shop(&s, crash_writer_ops(writer), NULL) < 0)
        close_shop(&s);
    assert_int_equal(sl_batch_service_start(s.service, w.worker, NULL), 0);
    upload(&s, &file);
    create_batch(&s, file.id, id);
    batch = wait_for_batch(&s, id);
    assert_true(sl_file_store_find(
        s.files, json_string_value(json_object_get(batch, "output_file_id")), &output));
    assert_true(output.bytes > 0);
    json_decref(batch);
    while (forget(&s, id) != 200)
        ;
    assert_int_equal(sl_batch_service_park(s.service, NULL), 0);
    has_failed = crash_writer_count(writer) >= nth;
    close_shop(&s);
    crash_writer_close(writer);
    assert_int_equal(open_shop(&s, sl_file_writer(), NULL), 0); /* removes what is left by half */
    assert_int_equal(count_files(&s.r, "files"), 0);
    assert_int_equal(count_files(&s.r, "batches"), 1); /* the journal */
    close_shop(&s);
    end(&s.r);
    return has_failed;
}

static void test_each_call_of_the_service_fails(void **state)
{
    uint64_t nth = 1;

    (void)state;
    while (serve_with_failing_call(nth, nth % 2 ? -ENOSPC : -EIO))
        nth++;
    assert_true(nth > 30);
}

/* Forgotten batches leave nothing behind, on disk or in the process; others stay as they are. */
static void test_forget(void **state)
{
    static struct shop s;
    char ids[3][SL_BATCH_NAME_BYTES];
    struct sl_batch_counters before, after;
    struct sl_stored_file shared, own;
    uint32_t n_open;

    (void)state;
    begin(&s.r, 1);
    write_input(&s.r, "in", ITEMS, NEW_TOKENS);
    assert_int_equal(open_shop(&s, sl_file_writer_private(), NULL), 0);
    n_open = engine_rig_open_file_count();
    upload(&s, &shared);
    upload(&s, &own);
    create_batch(&s, shared.id, ids[0]);
    create_batch(&s, shared.id, ids[1]);
    create_batch(&s, own.id, ids[2]);
    assert_int_equal(forget(&s, ids[0]), 409); /* it has not ended */
    assert_int_equal(sl_batch_service_start(s.service, w.worker, NULL), 0);
    for (uint32_t i = 0; i < 3; i++)
        json_decref(wait_for_batch(&s, ids[i]));
    assert_int_equal(count_files(&s.r, "files"), 2 * 5); /* and what each is called */
    before = sl_batch_service_counters(s.service);
    assert_int_equal(forget(&s, ids[0]), 200);
    assert_int_equal(forget(&s, ids[0]), 404);
    assert_true(sl_file_store_find(s.files, shared.id, &shared)); /* another was made of it */
    assert_int_equal(forget(&s, ids[1]), 200);
    assert_false(sl_file_store_find(s.files, shared.id, &shared));
    after = sl_batch_service_counters(s.service);
    assert_int_equal(after.n_ended, 1);
    assert_int_equal(after.n_items_done, before.n_items_done);
    assert_int_equal(after.n_tokens, before.n_tokens);
    assert_int_equal(engine_rig_open_file_count(), n_open);
    assert_int_equal(sl_batch_service_park(s.service, NULL), 0);
    close_shop(&s);
    assert_int_equal(open_shop(&s, sl_file_writer_private(), NULL), 0);
    assert_int_equal(sl_batch_service_counters(s.service).n_ended, 1);
    assert_int_equal(forget(&s, ids[2]), 200);
    assert_int_equal(count_files(&s.r, "files"), 0);
    assert_int_equal(count_files(&s.r, "batches"), 1);
    close_shop(&s);
    end(&s.r);
}

/* ---- all of it ---------------------------------------------------------------------------------
 */

static int set_up(void **state)
{
    if (engine_rig_create(state) < 0)
        return -1;
    w = (struct worker_rig){.kv_bytes = UINT64_C(64) << 20};
    worker_rig_init(&w, *state);
    start_worker(NULL, 0);
    make_alone(&alone[0], NEW_TOKENS);
    make_alone(&alone[1], LONG_TOKENS);
    worker_rig_stop(&w, 0);
    return 0;
}

static int open_worker(void **state)
{
    (void)state;
    start_worker(NULL, 0);
    return 0;
}

static int close_worker(void **state)
{
    (void)state;
    worker_rig_stop(&w, 0);
    return 0;
}

static int tear_down(void **state)
{
    free(alone[0].text);
    free(alone[1].text);
    worker_rig_fini(&w);
    return engine_rig_destroy(state);
}

#define WITH_WORKER(test) cmocka_unit_test_setup_teardown(test, open_worker, close_worker)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_fail),
        WITH_WORKER(test_priorities),
        WITH_WORKER(test_urgent_one_comes_later),
        cmocka_unit_test(test_urgent_one_finds_no_memory),
        WITH_WORKER(test_cancel),
        WITH_WORKER(test_expiry),
        WITH_WORKER(test_clock_set_back),
        WITH_WORKER(test_park),
        cmocka_unit_test(test_progress_after_restart),
        WITH_WORKER(test_each_call_fails),
        WITH_WORKER(test_each_call_of_the_service_fails),
        WITH_WORKER(test_forget),
    };

    return cmocka_run_group_tests_name("batch_runner", tests, set_up, tear_down);
}
