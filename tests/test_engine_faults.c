/* Reads that go wrong under a whole engine: the nth read of a step of three sessions fails, is
 * short, late, wrong or never comes, for each n in turn, once and for good, of a checkpoint, a
 * store, a store on three drives and a compressed one. Once, the logits are those of a run without
 * faults; for good, the step fails with one line that says where, and all its sessions go on from
 * where they were, to the logits of a run without faults. Then the same, for some n, with dense
 * weights that stream and the least cache; and before, with the first reads of a start. SL_SLOW=1,
 * and sanitizers, leave some n out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cmocka.h>

#include "core/base/size.h"

#include "tests/engine_rig.h"

/* Sessions: what they have seen before the step, and what they take in it. */
#define SESSIONS 3u
static const uint32_t n_before[SESSIONS] = {9, 0, 4}, n_tokens[SESSIONS] = {1, 1, 1};

/* Nothing in a checkpoint tells that codes were changed; its reads of no more than this are scales.
 */
#define SCALES_BYTES_MAX 8192u

static const struct io_fault_plan plans[] = {
    {.fail_code = -EIO},
    {.fail_code = -EIO, .fail_for_good = true},
    {.fail_kind = IO_FAULT_SHORT},
    {.fail_kind = IO_FAULT_SHORT, .fail_for_good = true},
    {.fail_kind = IO_FAULT_FAIL}, /* delivers what was not stored */
    {.fail_kind = IO_FAULT_FAIL, .fail_for_good = true},
    {.fail_kind = IO_FAULT_LATE, .late_ns = 2 * SL_READER_STALL_NS},
    {.fail_kind = IO_FAULT_LATE, .late_ns = IO_FAULT_NEVER},
};

static bool delivers_wrong_bytes(const struct io_fault_plan *plan)
{
    return plan->fail_kind == IO_FAULT_FAIL && plan->fail_code == 0;
}

/* What a step says that meets the fault in a read of so many bytes; 0 if it has nothing to say. */
static int code_of(const struct io_fault_plan *plan, uint32_t size_bytes)
{
    /* A read that delivers some blocks goes on behind them. */
    if (plan->fail_kind == IO_FAULT_SHORT && size_bytes > SL_BLOCK_BYTES)
        return 0;
    if (plan->late_ns == IO_FAULT_NEVER)
        return -ETIMEDOUT;
    if (!plan->fail_for_good)
        return 0;
    return plan->fail_code < 0 ? plan->fail_code : -SL_ECORRUPT;
}

/* From one n to the next where dense weights stream: there are many reads of a kind. */
#define STREAM_STRIDE 61u

struct check {
    const struct engine_rig *m;
    struct sl_span spans[SESSIONS];
    uint32_t first[SESSIONS]; /* position of each span's first token */
    uint32_t n_rows;
};

static void check_rows(void *context, const struct sl_logits_row *rows, uint32_t n_rows)
{
    struct check *check = context;

    for (uint32_t i = 0; i < n_rows; i++)
        assert_memory_equal(rows[i].logits,
                            check->m->logits +
                                (check->first[rows[i].span_index] + rows[i].token_index) *
                                    check->m->config.vocab_size,
                            check->m->row_bytes);
    check->n_rows += n_rows;
}

/* Sessions first to end take their next n[i] tokens, which are the model's for all, in one step.
 * Fails the test if the logits are wrong. */
static int step(const struct engine_rig *m, struct sl_engine *engine, uint32_t first, uint32_t end,
                const uint32_t n[SESSIONS], struct sl_err *err)
{
    struct check check = {.m = m};
    struct sl_step_request request = {
        .spans = check.spans, .on_logits = check_rows, .on_logits_context = &check};
    uint32_t n_rows = 0;
    int rc;

    for (uint32_t i = first; i < end; i++) {
        struct sl_kv_cache *kv = engine_rig_kv(engine, i);

        if (n[i] == 0)
            continue;
        check.first[request.n_spans] = kv->n_tokens;
        check.spans[request.n_spans++] =
            (struct sl_span){kv, m->tokens + kv->n_tokens, n[i], SL_LOGITS_ALL};
        n_rows += n[i];
    }
    rc = sl_engine_step(engine, &request, err);
    assert_true(rc < 0 || check.n_rows == n_rows);
    return rc;
}

/* One line, with layer, expert, file and drive or offset. */
static void check_line(const struct engine_rig *m, const struct io_fault_plan *plan,
                       const struct sl_err *err)
{
    const bool dense = strstr(err->message, "tensor ");
    const struct sl_io_read read = io_fault_read(engine_rig_faulty(), plan->fail_nth);
    const char *path = engine_rig_faulty()->files[read.file_index].path;
    struct stat status;
    char drive[32];

    assert_int_equal(stat(path, &status), 0);
    snprintf(drive, sizeof(drive), "drive %u:%u", major(status.st_dev), minor(status.st_dev));
    if (dense && delivers_wrong_bytes(plan)) {
        assert_non_null(strstr(err->message, m->folder));
        return;
    }
    if (!strstr(err->message, dense ? "" : "layer ") ||
        !strstr(err->message, dense ? "" : ", expert ") ||
        !strstr(err->message, delivers_wrong_bytes(plan) ? m->folder : path) ||
        !strstr(err->message, "at offset ") ||
        !(delivers_wrong_bytes(plan) || strstr(err->message, drive)) || strchr(err->message, '\n'))
        fail_msg("%s", err->message);
}

static struct sl_engine *open_engine(const struct engine_rig *m, const char *model, bool streams)
{
    struct sl_engine_options options = engine_rig_options(m);
    struct sl_engine *engine;

    options.model = model;
    options.draft = SL_DRAFT_NONE;
    options.verify = SL_VERIFY_ALWAYS; /* the sessions' pasts have brought in some before */
    options.n_sequences = SESSIONS;
    options.segment_tokens = 16;
    if (streams) {
        options.dense = SL_DENSE_STREAM;
        options.cache_min = false;
        options.cache_bytes = 2 * m->config.num_experts_per_tok * m->slot_bytes;
    }
    engine_rig_make_faulty(&options);
    assert_int_equal(sl_engine_open(&engine, &options, NULL, NULL), 0);
    assert_int_equal(step(m, engine, 0, SESSIONS, n_before, NULL), 0);
    return engine;
}

/* How large the reads of the step are that nth_read() makes. Returns how many there are. */
static uint32_t measure_reads(const struct engine_rig *m, const char *model, bool streams,
                              uint32_t sizes_bytes[IO_FAULT_LOG])
{
    static const struct io_fault_plan none;
    struct sl_engine *engine = open_engine(m, model, streams);
    uint64_t n;

    io_fault_set(engine_rig_faulty(), &none);
    assert_int_equal(step(m, engine, 0, SESSIONS, n_tokens, NULL), 0);
    n = io_fault_read_count(engine_rig_faulty());
    assert_in_range(n, 8, IO_FAULT_LOG);
    for (uint64_t nth = 1; nth <= n; nth++)
        sizes_bytes[nth - 1] = io_fault_read(engine_rig_faulty(), nth).size_bytes;
    sl_engine_close(engine);
    return (uint32_t)n;
}

/* The nth read of the step goes wrong. Returns what the step says. */
static int nth_read(const struct engine_rig *m, const char *model, bool streams,
                    const struct io_fault_plan *plan)
{
    struct sl_engine *engine = open_engine(m, model, streams);
    struct sl_err err = {0};
    uint64_t n_stalls;
    int rc;

    io_fault_set(engine_rig_faulty(), plan);
    rc = step(m, engine, 0, SESSIONS, n_tokens, &err);
    if (rc < 0)
        check_line(m, plan, &err);
    n_stalls = sl_engine_counters(engine).n_stalls + sl_engine_dense(engine).reads.n_stalls;
    assert_true(n_stalls == (plan->late_ns > 0) || (streams && n_stalls == 0));
    io_fault_heal(engine_rig_faulty());
    for (uint32_t i = 0; i < SESSIONS; i++)
        assert_int_equal(engine_rig_kv(engine, i)->n_tokens,
                         n_before[i] + (rc == 0 ? n_tokens[i] : 0));
    assert_int_equal(step(m, engine, 1, 2, n_tokens, NULL), 0);
    assert_int_equal(step(m, engine, 0, SESSIONS, n_tokens, NULL), 0);
    sl_engine_close(engine);
    return rc;
}

/* From one n to the next. */
static uint32_t stride(void)
{
#ifdef SL_DEBUG
    return 5;
#else
    return getenv("SL_SLOW") ? 5 : 1;
#endif
}

static void each_read(const struct engine_rig *m, const char *model, bool packed, bool streams)
{
    uint32_t sizes_bytes[IO_FAULT_LOG];
    const uint32_t n_files = engine_rig_open_file_count(),
                   n = measure_reads(m, model, streams, sizes_bytes);

    for (uint32_t i = 0; i < sizeof(plans) / sizeof(plans[0]); i++) {
        struct io_fault_plan plan = plans[i];
        uint32_t n_failed = 0, n_tried = 0;

        for (plan.fail_nth = 1; plan.fail_nth <= n;
             plan.fail_nth += streams ? STREAM_STRIDE : stride()) {
            int code, rc;

            if (!packed && delivers_wrong_bytes(&plan) &&
                sizes_bytes[plan.fail_nth - 1] > SCALES_BYTES_MAX)
                continue;
            code = code_of(&plan, sizes_bytes[plan.fail_nth - 1]);
            rc = nth_read(m, model, streams, &plan);
            /* A prefetch that failed for good is tried anew by its demand, and fails that; one that
             * never lands keeps its slot, and its demand reads the expert into another. */
            assert_true(rc == code || (rc == 0 && (streams || plan.late_ns == IO_FAULT_NEVER)));
            n_tried++;
            n_failed += rc < 0;
        }
        assert_true(n_tried > 0);
        if (plan.late_ns == IO_FAULT_NEVER && !streams)
            assert_in_range(n_failed, n_tried / 4, n_tried);
    }
    assert_int_equal(engine_rig_open_file_count(), n_files);
}

/* ---- the start ---------------------------------------------------------------------------------
 */

static const struct io_fault_plan *start_plan;
static sl_io_open_fn *open_without_plan;

static int open_with_plan(struct sl_io **ret_io, const char *const *paths, uint32_t n_files,
                          uint32_t depth, struct sl_err *err)
{
    int rc = open_without_plan(ret_io, paths, n_files, depth, err);

    if (rc == 0)
        io_fault_set(*ret_io, start_plan);
    return rc;
}

/* Each kind of fault in each of the first reads of dense weights: the start does without what went
 * wrong once, and otherwise ends with one line that says where. */
static void test_start(void **state)
{
    const struct engine_rig *m = *state;
    const uint32_t n_files = engine_rig_open_file_count();

    for (uint32_t i = 0; i < sizeof(plans) / sizeof(plans[0]); i++) {
        struct io_fault_plan plan = plans[i];

        /* Nothing in a checkpoint tells wrong bytes; and what is short for good may matter to the
         * small tensor beside the one that is read. */
        if (delivers_wrong_bytes(&plan) || (plan.fail_kind == IO_FAULT_SHORT && plan.fail_for_good))
            continue;
        for (plan.fail_nth = 1; plan.fail_nth <= 20; plan.fail_nth++) {
            struct sl_engine_options options = engine_rig_options(m);
            struct sl_engine *engine = NULL;
            struct sl_err err = {0};
            int rc;

            engine_rig_make_faulty(&options);
            open_without_plan = options.io;
            options.io = open_with_plan;
            start_plan = &plan;
            rc = sl_engine_open(&engine, &options, NULL, &err);
            assert_int_equal(rc, code_of(&plan, 0)); /* of no read does its size matter here */
            if (rc < 0 && (!strstr(err.message, "tensor ") || strchr(err.message, '\n')))
                fail_msg("%s", err.message);
            sl_engine_close(engine);
        }
    }
    assert_int_equal(engine_rig_open_file_count(), n_files);
}

static void test_checkpoint(void **state)
{
    const struct engine_rig *m = *state;

    each_read(m, m->folder, false, false);
}

static void test_streaming_checkpoint(void **state)
{
    const struct engine_rig *m = *state;

    each_read(m, m->folder, false, true);
}

static void test_store(void **state)
{
    char store_folder[FIXTURE_PATH_BYTES];

    engine_rig_pack(*state, "store", 0, false, store_folder);
    each_read(*state, store_folder, true, false);
    each_read(*state, store_folder, true, true);
}

static void test_striped_store(void **state)
{
    char store_folder[FIXTURE_PATH_BYTES];

    engine_rig_pack(*state, "striped", 2, false, store_folder);
    each_read(*state, store_folder, true, false);
}

static void test_compressed_store(void **state)
{
    char store_folder[FIXTURE_PATH_BYTES];

    engine_rig_pack(*state, "compressed", 0, true, store_folder);
    each_read(*state, store_folder, true, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_start),
        cmocka_unit_test(test_checkpoint),
        cmocka_unit_test(test_streaming_checkpoint),
        cmocka_unit_test(test_store),
        cmocka_unit_test(test_striped_store),
        cmocka_unit_test(test_compressed_store),
    };

    return cmocka_run_group_tests_name("engine_faults", tests, engine_rig_create,
                                       engine_rig_destroy);
}
