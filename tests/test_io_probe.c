/* Timing the drives: what is counted was read, a trial ends in time and where it failed, and the
 * probe leaves alone what is too small. Real files are read, a large sparse one among them; of the
 * figures only their order of magnitude is certain. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/base/clock.h"
#include "storage/io/io_probe.h"
#include "tests/fixture_checkpoint.h"
#include "tests/io_fault.h"

#define BLOCK 4096u
#define AREA_BYTES (64u * BLOCK)
#define SMALL_BYTES (100u * BLOCK)
#define LARGE_BYTES (UINT64_C(1) << 30)

struct fixture {
    char folder[FIXTURE_PATH_BYTES];
    char small[FIXTURE_PATH_BYTES + 8], large[FIXTURE_PATH_BYTES + 8];
    uint8_t *area;
};

static void make_file(char path[FIXTURE_PATH_BYTES + 8], const char *folder, const char *name,
                      uint64_t size_bytes)
{
    int fd;

    snprintf(path, FIXTURE_PATH_BYTES + 8, "%s/%s", folder, name);
    fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)size_bytes), 0);
    close(fd);
}

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    fixture_folder_create(f->folder);
    make_file(f->small, f->folder, "small", SMALL_BYTES);
    make_file(f->large, f->folder, "large", LARGE_BYTES);
    assert_int_equal(posix_memalign((void **)&f->area, BLOCK, AREA_BYTES), 0);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    fixture_folder_remove(f->folder);
    free(f->area);
    free(f);
    return 0;
}

static struct sl_io *open_io(const char *path)
{
    struct sl_io *io;

    assert_int_equal(sl_io_choose(NULL)(&io, &path, 1, 8, NULL), 0);
    return io_fault_wrap(io);
}

static void test_reads_go_round(void **state)
{
    static const struct sl_extent extents[] = {
        {0, 10 * BLOCK, 0}, {30 * BLOCK + 5, 9 * BLOCK, 0}, {20 * BLOCK, 1, 0}};
    static const uint64_t span_blocks[] = {10, 10, 1};
    const struct sl_io_trial trial = {
        .options = {.piece_bytes = 100 * BLOCK, .depth = 8}, .ns = 3000000, .first_extent = 1};
    struct fixture *f = *state;
    struct sl_io *io = open_io(f->small);
    struct sl_io_timing timing;
    uint64_t n_reads;

    assert_int_equal(sl_io_time(io, &trial, extents, 3, f->area, AREA_BYTES, &timing, NULL), 0);
    n_reads = io_fault_read_count(io);
    assert_true(n_reads >= AREA_BYTES / (10 * BLOCK));
    assert_int_equal(timing.next_extent, (1 + n_reads) % 3);
    for (uint64_t i = 0; i < n_reads; i++)
        timing.read_bytes -= span_blocks[(1 + i) % 3] * BLOCK;
    assert_int_equal(timing.read_bytes, 0);
    assert_true(timing.ns >= trial.ns);
    io->ops->close(io);
}

/* What is read before it counts is not counted, nor is its time. */
static void test_ramp(void **state)
{
    static const struct sl_extent extent = {0, 10 * BLOCK, 0};
    const struct sl_io_trial trial = {
        .options = {.piece_bytes = BLOCK, .depth = 4}, .ramp_ns = 3000000, .ns = 1};
    struct fixture *f = *state;
    struct sl_io *io = open_io(f->small);
    const uint64_t start_ns = sl_clock_ns();
    struct sl_io_timing timing;

    assert_int_equal(sl_io_time(io, &trial, &extent, 1, f->area, AREA_BYTES, &timing, NULL), 0);
    assert_true(timing.ns + trial.ramp_ns <= sl_clock_ns() - start_ns);
    assert_true(timing.read_bytes <= io_fault_delivered_bytes(io) - 10 * BLOCK);
    io->ops->close(io);
}

static void test_time_over_ends_it(void **state)
{
    static const struct sl_extent extent = {0, 60 * BLOCK, 0};
    const struct sl_io_trial trial = {.options = {.piece_bytes = BLOCK, .depth = 4}, .ns = 1};
    const struct io_fault_plan lazy = {.lazy = true};
    struct fixture *f = *state;
    struct sl_io *io = open_io(f->small);
    struct sl_io_timing timing;

    io_fault_set(io, &lazy);
    assert_int_equal(sl_io_time(io, &trial, &extent, 1, f->area, AREA_BYTES, &timing, NULL), 0);
    assert_true(timing.read_bytes <= 60 * BLOCK);
    io->ops->close(io);
}

static void test_failure_is_named(void **state)
{
    static const struct sl_extent extent = {0, 10 * BLOCK, 0};
    const struct sl_io_trial trial = {.options = {.piece_bytes = BLOCK, .depth = 4},
                                      .ns = UINT64_C(1000000000) * 3600};
    const struct io_fault_plan plan = {.fail_nth = 33, .fail_code = -EIO, .fail_for_good = true};
    struct fixture *f = *state;
    struct sl_io *io = open_io(f->small);
    struct sl_io_timing timing;
    struct sl_err err;

    io_fault_set(io, &plan);
    assert_int_equal(sl_io_time(io, &trial, &extent, 1, f->area, AREA_BYTES, &timing, &err), -EIO);
    assert_non_null(strstr(err.message, f->small));
    io->ops->close(io);
}

static void check_defaults(struct sl_io *io)
{
    struct sl_io_probe probe;

    assert_int_equal(sl_io_probe(io, 0, &probe, NULL), 0);
    assert_int_equal(probe.piece_bytes, SL_READER_PIECE_BYTES);
    assert_int_equal(probe.depth, SL_READER_DEPTH);
    assert_int_equal(probe.bytes_per_s, 0);
    io->ops->close(io);
}

static void test_what_is_not_probed(void **state)
{
    const struct io_fault_plan plan = {.fail_nth = 1, .fail_code = -EIO, .fail_for_good = true};
    struct fixture *f = *state;
    struct sl_io *io = open_io(f->large);

    io->direct = false;
    check_defaults(io);
    check_defaults(open_io(f->small));
    io = open_io(f->large);
    io_fault_set(io, &plan);
    check_defaults(io);
}

static void test_probe(void **state)
{
    struct fixture *f = *state;
    const char *path = f->large;
    uint64_t start_ns = sl_clock_ns();
    struct sl_io_probe probe;
    struct sl_io *io;

    assert_int_equal(sl_io_choose(NULL)(&io, &path, 1, SL_IO_PROBE_DEPTH_MAX, NULL), 0);
    if (!io->direct) {
        io->ops->close(io);
        skip();
    }
    assert_int_equal(sl_io_probe(io, 0, &probe, NULL), 0);
    assert_true(probe.piece_bytes >= 512 << 10 && probe.piece_bytes <= 2 << 20);
    assert_true(probe.depth >= 8 && probe.depth <= SL_IO_PROBE_DEPTH_MAX);
    assert_true(probe.bytes_per_s > 0);
    assert_true(sl_clock_ns() - start_ns < UINT64_C(30000000000));
    io->ops->close(io);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_go_round),
        cmocka_unit_test(test_time_over_ends_it),
        cmocka_unit_test(test_ramp),
        cmocka_unit_test(test_failure_is_named),
        cmocka_unit_test(test_what_is_not_probed),
        cmocka_unit_test(test_probe),
    };

    return cmocka_run_group_tests_name("io_probe", tests, set_up, tear_down);
}
