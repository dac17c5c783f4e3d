/* The reader: any run of bytes is delivered whole or reported, whatever the device does. Random
 * reads of a random file go through every back end, clean and with seeded faults, and the 1st, 2nd,
 * 3rd ... read of a run is made to fail, to be short or late, once and for good. Time is the fault
 * wrapper's. */
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
#include "storage/io/reader.h"
#include "tests/fixture_checkpoint.h"
#include "tests/io_fault.h"

#define BLOCK 4096u
#define FILE_BYTES (150u * BLOCK + 777u)
#define PIECE_BYTES (3u * BLOCK)
#define READS 8u
#define DST_BYTES (40u * BLOCK)

struct fixture {
    char folder[FIXTURE_PATH_BYTES];
    char path[FIXTURE_PATH_BYTES + 8];
    uint8_t *data;
    uint8_t *memory; /* READS destinations */
};

struct rig {
    struct sl_io *io; /* always behind the fault wrapper */
    struct sl_reader *reader;
    struct sl_read reads[READS];
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    uint64_t random = 7;
    FILE *stream;

    assert_non_null(f);
    fixture_folder_create(f->folder);
    snprintf(f->path, sizeof(f->path), "%s/file", f->folder);
    f->data = malloc(FILE_BYTES);
    assert_non_null(f->data);
    for (uint64_t k = 0; k < FILE_BYTES; k++)
        f->data[k] = (uint8_t)io_fault_random(&random);
    stream = fopen(f->path, "wb");
    assert_non_null(stream);
    assert_int_equal(fwrite(f->data, 1, FILE_BYTES, stream), FILE_BYTES);
    assert_int_equal(fclose(stream), 0);
    assert_int_equal(posix_memalign((void **)&f->memory, BLOCK, READS * DST_BYTES), 0);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    fixture_folder_remove(f->folder);
    free(f->data);
    free(f->memory);
    free(f);
    return 0;
}

static void rig_init(struct rig *rig, struct fixture *f, bool uring, uint32_t reads_max)
{
    sl_io_open_fn *open_io = uring ? sl_io_choose(NULL) : sl_io_threads_open;
    struct sl_reader_options options = {
        .piece_bytes = PIECE_BYTES, .depth = 64, .clock_ns = io_fault_clock_ns};
    const char *path = f->path;
    struct sl_io *io;

    assert_int_equal(open_io(&io, &path, 1, reads_max, NULL), 0);
    rig->io = io_fault_wrap(io);
    options.clock_context = rig->io;
    assert_int_equal(sl_reader_create(&rig->reader, rig->io, &options, NULL), 0);
}

static void rig_fini(struct rig *rig)
{
    sl_reader_destroy(rig->reader);
    rig->io->ops->close(rig->io);
}

static struct sl_read *rig_queue(struct rig *rig, const struct fixture *f, uint32_t i,
                                 uint64_t offset_bytes, uint64_t size_bytes,
                                 enum sl_read_class read_class)
{
    uint8_t *dst = f->memory + i * DST_BYTES;

    rig->reads[i] = (struct sl_read){.offset_bytes = offset_bytes,
                                     .size_bytes = size_bytes,
                                     .dst = dst,
                                     .read_class = read_class};
    memset(dst, 0x5a, DST_BYTES);
    sl_reader_queue(rig->reader, &rig->reads[i]);
    return &rig->reads[i];
}

static void check_content(const struct fixture *f, const struct sl_read *read)
{
    uint64_t span_bytes = sl_aligned_run_bytes(read->offset_bytes, read->size_bytes);

    assert_int_equal(read->rc, 0);
    assert_memory_equal(read->dst + read->offset_bytes % BLOCK, f->data + read->offset_bytes,
                        read->size_bytes);
    for (uint64_t k = span_bytes; k < span_bytes + 64; k++)
        assert_int_equal(read->dst[k], 0x5a);
}

/* What the device has of a read's aligned span. */
static uint64_t device_bytes(const struct sl_read *read)
{
    uint64_t start = sl_round_down(read->offset_bytes, BLOCK);
    uint64_t span = sl_aligned_run_bytes(read->offset_bytes, read->size_bytes);

    return start + span > FILE_BYTES ? FILE_BYTES - start : span;
}

/* READS random reads at once; returns the bytes the device must deliver for them. */
static uint64_t random_reads(struct rig *rig, const struct fixture *f, uint64_t *random)
{
    struct sl_read *read;
    uint64_t expected_bytes = 0;
    uint32_t n_done = 0;

    for (uint32_t i = 0; i < READS; i++) {
        uint64_t size =
            1 + io_fault_random(random) % (io_fault_random(random) % 2 ? 32 * BLOCK : 5);
        uint64_t offset = io_fault_random(random) % (FILE_BYTES - size + 1);

        if (io_fault_random(random) % 8 == 0)
            offset = FILE_BYTES - size; /* up to the last byte, which is in no whole block */
        rig_queue(rig, f, i, offset, size, io_fault_random(random) % SL_READ_CLASSES);
        expected_bytes += device_bytes(&rig->reads[i]);
    }
    while ((read = sl_reader_reap(rig->reader, SL_READS_OF_EXPERTS, true))) {
        check_content(f, read);
        n_done++;
    }
    assert_int_equal(n_done, READS);
    return expected_bytes;
}

static void test_all_alignments(void **state)
{
    static const uint32_t reads_max[] = {1, 3, 64};
    struct fixture *f = *state;

    for (uint32_t i = 0; i < 6; i++) {
        uint64_t random = i, expected_bytes = 0, wanted_bytes = 0;
        struct rig rig;
        struct sl_reader_counters counters;

        rig_init(&rig, f, i % 2, reads_max[i / 2]);
        for (uint32_t round = 0; round < 15; round++) {
            expected_bytes += random_reads(&rig, f, &random);
            for (uint32_t k = 0; k < READS; k++)
                wanted_bytes += rig.reads[k].size_bytes;
        }
        counters = sl_reader_counters(rig.reader, SL_READS_OF_EXPERTS);
        assert_int_equal(counters.read_bytes, expected_bytes);
        assert_int_equal(counters.read_bytes, io_fault_delivered_bytes(rig.io));
        assert_int_equal(counters.n_reads, io_fault_read_count(rig.io));
        assert_int_equal(counters.wanted_bytes, wanted_bytes);
        assert_int_equal(counters.n_retries, 0);
        rig_fini(&rig);
    }
}

static void test_short_reads_in_any_order(void **state)
{
    struct fixture *f = *state;

    for (uint64_t seed = 0; seed < 12; seed++) {
        struct io_fault_plan plan = {.seed = seed, .short_permille = 400, .shuffle = true};
        struct rig rig;
        uint64_t random = seed, expected_bytes = 0;
        struct sl_reader_counters counters;

        rig_init(&rig, f, seed % 2, seed % 3 ? 16 : 2);
        io_fault_set(rig.io, &plan);
        for (uint32_t round = 0; round < 10; round++)
            expected_bytes += random_reads(&rig, f, &random);
        counters = sl_reader_counters(rig.reader, SL_READS_OF_EXPERTS);
        assert_int_equal(counters.read_bytes, io_fault_delivered_bytes(rig.io));
        assert_true(counters.read_bytes > expected_bytes); /* blocks cut off are read again */
        assert_int_equal(counters.n_retries, 0);
        rig_fini(&rig);
    }
}

static void test_nth_read_fails_once(void **state)
{
    static const int codes[] = {-EIO, -EAGAIN, -EINTR};
    struct fixture *f = *state;
    struct rig rig;
    uint64_t n = 0;

    rig_init(&rig, f, true, 4);
    do {
        struct io_fault_plan plan = {
            .seed = n, .shuffle = true, .fail_nth = n + 1, .fail_code = codes[n % 3]};
        uint64_t random = 99;

        n++;
        io_fault_set(rig.io, &plan);
        for (uint32_t round = 0; round < 4; round++)
            random_reads(&rig, f, &random);
        assert_true(n < 1000);
    } while (io_fault_read_count(rig.io) >= n);
    assert_true(n > 20);
    rig_fini(&rig);
}

static void test_nth_read_fails_for_good(void **state)
{
    static const int codes[] = {-EIO, -EAGAIN, -EINTR};
    struct fixture *f = *state;
    struct rig rig;
    uint64_t n = 0;

    rig_init(&rig, f, false, 4);
    for (;;) {
        struct io_fault_plan plan = {.seed = n,
                                     .short_permille = 200,
                                     .shuffle = true,
                                     .fail_nth = n + 1,
                                     .fail_code = codes[n % 3],
                                     .fail_for_good = true};
        struct sl_read *read;
        struct sl_err err;
        uint32_t n_failed = 0, n_done = 0;
        char offset[32];

        n++;
        io_fault_set(rig.io, &plan);
        for (uint32_t i = 0; i < READS; i++) /* of different blocks: one of them fails */
            rig_queue(&rig, f, i, i * 18 * BLOCK + 55 * i, 16 * BLOCK, i % SL_READ_CLASSES);
        while ((read = sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true))) {
            n_done++;
            if (read->rc == 0) {
                check_content(f, read);
                continue;
            }
            n_failed++;
            assert_int_equal(sl_reader_explain(rig.reader, read, &err), -EIO);
            assert_non_null(strstr(err.message, f->path));
            snprintf(offset, sizeof(offset), " %llu ", (unsigned long long)read->fail_offset_bytes);
            assert_non_null(strstr(err.message, offset));
            assert_non_null(strstr(err.message, "Input/output error"));
            assert_true(read->fail_offset_bytes + BLOCK > read->offset_bytes);
            assert_true(read->fail_offset_bytes < read->offset_bytes + read->size_bytes);
        }
        assert_int_equal(n_done, READS);
        if (io_fault_read_count(rig.io) < n)
            break;
        assert_int_equal(n_failed, 1);
    }
    assert_true(n > 20);
    rig_fini(&rig);
}

static void test_retries_are_counted(void **state)
{
    struct fixture *f = *state;
    struct io_fault_plan plan = {.fail_nth = 2, .fail_code = -EIO};
    struct sl_read *read;
    struct rig rig;

    rig_init(&rig, f, true, 4);
    io_fault_set(rig.io, &plan);
    read = rig_queue(&rig, f, 0, 0, 4 * PIECE_BYTES, SL_READ_DEMAND);
    assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), read);
    check_content(f, read);
    assert_int_equal(sl_reader_counters(rig.reader, SL_READS_OF_EXPERTS).n_retries, 1);
    assert_int_equal(sl_reader_counters(rig.reader, SL_READS_OF_EXPERTS).n_reads, 5);
    assert_int_equal(sl_reader_counters(rig.reader, SL_READS_OF_EXPERTS).read_bytes,
                     4 * PIECE_BYTES);
    rig_fini(&rig);
}

static void test_end_of_file(void **state)
{
    struct fixture *f = *state;
    char ends_at[64];

    snprintf(ends_at, sizeof(ends_at), "from offset %u on;", FILE_BYTES);
    for (uint32_t uring = 0; uring < 2; uring++) {
        struct sl_read *read;
        struct sl_err err;
        struct rig rig;

        rig_init(&rig, f, uring, 4);
        read = rig_queue(&rig, f, 0, FILE_BYTES - 9 * BLOCK, 9 * BLOCK, SL_READ_DEMAND);
        assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), read);
        check_content(f, read);

        read = rig_queue(&rig, f, 0, FILE_BYTES - 9 * BLOCK, 9 * BLOCK + 1, SL_READ_DEMAND);
        assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), read);
        assert_int_equal(sl_reader_explain(rig.reader, read, &err), -SL_ECORRUPT);
        assert_non_null(strstr(err.message, f->path));
        assert_non_null(strstr(err.message, ends_at));

        read = rig_queue(&rig, f, 0, FILE_BYTES + 5 * BLOCK, 1, SL_READ_DEMAND);
        assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), read);
        assert_int_equal(read->rc, -SL_ECORRUPT);
        rig_fini(&rig);
    }
}

/* With one read in flight at a time, the order in which reads end is the order of cutting. */
static void test_order_of_classes(void **state)
{
    struct fixture *f = *state;
    struct sl_read *a, *b, *c;
    struct rig rig;

    rig_init(&rig, f, true, 1);
    a = rig_queue(&rig, f, 0, 0, 30 * BLOCK, SL_READ_PREFETCH);
    b = rig_queue(&rig, f, 1, 5 * BLOCK, 30 * BLOCK, SL_READ_PREFETCH);
    sl_reader_start(rig.reader); /* the first piece of `a` is under way */
    c = rig_queue(&rig, f, 2, 7 * BLOCK, 30 * BLOCK, SL_READ_DEMAND);
    assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), c);
    sl_reader_set_class(rig.reader, c, SL_READ_DEMAND); /* harmless: it has ended */
    sl_reader_set_class(rig.reader, b, SL_READ_DEMAND);
    assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), b);
    assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), a);
    assert_null(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true));
    check_content(f, a);
    check_content(f, b);
    check_content(f, c);

    a = rig_queue(&rig, f, 0, 0, 30 * BLOCK, SL_READ_DEMAND);
    b = rig_queue(&rig, f, 1, 5 * BLOCK, 30 * BLOCK, SL_READ_DEMAND);
    sl_reader_start(rig.reader);
    sl_reader_set_class(rig.reader, a, SL_READ_PREFETCH); /* with a piece under way */
    assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), b);
    assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), a);
    check_content(f, a);
    check_content(f, b);
    rig_fini(&rig);
}

/* ---- classes, drives, cancellation -------------------------------------------------------------
 */

static void test_demand_finds_room(void **state)
{
    static const struct io_fault_plan lazy = {.lazy = true};
    struct fixture *f = *state;
    struct sl_read *prefetch, *scrub, *demand;
    struct rig rig;

    rig_init(&rig, f, true, 8);
    io_fault_set(rig.io, &lazy);
    prefetch = rig_queue(&rig, f, 0, 0, 10 * PIECE_BYTES, SL_READ_PREFETCH);
    scrub = rig_queue(&rig, f, 1, 0, 10 * PIECE_BYTES, SL_READ_SCRUB);
    sl_reader_start(rig.reader);
    assert_int_equal(io_fault_read_count(rig.io), 4); /* half of the depth */
    demand = rig_queue(&rig, f, 2, 60 * BLOCK, 10 * PIECE_BYTES, SL_READ_DEMAND);
    sl_reader_start(rig.reader);
    assert_int_equal(io_fault_read_count(rig.io), 8);
    for (uint64_t nth = 5; nth <= 8; nth++)
        assert_int_equal(io_fault_read(rig.io, nth).offset_bytes,
                         60 * BLOCK + (nth - 5) * PIECE_BYTES);
    assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), demand);
    assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), prefetch);
    assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), scrub);
    check_content(f, demand);
    check_content(f, prefetch);
    check_content(f, scrub);
    rig_fini(&rig);
}

/* Of what is merely predicted only as much is in flight as was allowed: a demand waits for it. */
static void test_predicted_reads_are_few(void **state)
{
    static const struct io_fault_plan lazy = {.lazy = true};
    static const uint64_t allowed_bytes[] = {0, 3 * PIECE_BYTES, UINT64_MAX};
    static const uint32_t n_expected[] = {1, 3, 4}; /* at most half of the depth */
    struct fixture *f = *state;

    for (uint32_t i = 0; i < 3; i++) {
        struct sl_read *predicted, *demand;
        struct rig rig;

        rig_init(&rig, f, true, 8);
        io_fault_set(rig.io, &lazy);
        if (i > 0)
            sl_reader_set_predicted_bytes(rig.reader, allowed_bytes[i]);
        predicted = rig_queue(&rig, f, 0, 0, 10 * PIECE_BYTES, SL_READ_PREDICTED);
        sl_reader_start(rig.reader);
        assert_int_equal(io_fault_read_count(rig.io), n_expected[i]);
        demand = rig_queue(&rig, f, 1, 60 * BLOCK, PIECE_BYTES, SL_READ_DEMAND);
        sl_reader_start(rig.reader);
        assert_int_equal(io_fault_read_count(rig.io), n_expected[i] + 1);
        assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), demand);
        sl_reader_set_class(rig.reader, predicted, SL_READ_DEMAND);
        assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), predicted);
        check_content(f, predicted);
        rig_fini(&rig);
    }
}

/* Each user gets its own reads back, whoever waited while they landed, and its own counters.
 * Reading ahead goes behind what is demanded, and has the whole depth. */
static void test_users(void **state)
{
    static const struct io_fault_plan lazy = {.lazy = true};
    struct fixture *f = *state;
    struct sl_read *prefetch, *demand, ahead;
    struct rig rig;

    rig_init(&rig, f, true, 4);
    io_fault_set(rig.io, &lazy);
    prefetch = rig_queue(&rig, f, 0, 0, PIECE_BYTES, SL_READ_PREFETCH);
    ahead = (struct sl_read){.size_bytes = 5 * PIECE_BYTES,
                             .dst = f->memory + DST_BYTES,
                             .read_class = SL_READ_AHEAD,
                             .user = SL_READS_OF_DENSE};
    sl_reader_queue(rig.reader, &ahead);
    assert_null(sl_reader_reap(rig.reader, SL_READS_OF_DENSE, false));
    assert_int_equal(io_fault_read_count(rig.io), 4);
    demand = rig_queue(&rig, f, 2, 60 * BLOCK, PIECE_BYTES, SL_READ_DEMAND);
    assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), demand);
    assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), prefetch);
    assert_null(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true));
    assert_int_equal(io_fault_read(rig.io, 5).offset_bytes, 60 * BLOCK);
    assert_int_equal(io_fault_read(rig.io, 6).offset_bytes, 4 * PIECE_BYTES);
    assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_DENSE, true), &ahead);
    assert_null(sl_reader_reap(rig.reader, SL_READS_OF_DENSE, true));
    check_content(f, &ahead);
    assert_int_equal(sl_reader_counters(rig.reader, SL_READS_OF_EXPERTS).n_reads, 2);
    assert_int_equal(sl_reader_counters(rig.reader, SL_READS_OF_DENSE).n_reads, 5);
    assert_int_equal(sl_reader_counters(rig.reader, SL_READS_OF_DENSE).read_bytes, 5 * PIECE_BYTES);
    rig_fini(&rig);
}

/* What was in flight as a prefetch is a demand's from then on. */
static void test_promotion_in_flight(void **state)
{
    static const struct io_fault_plan plan = {
        .fail_nth = 2, .fail_kind = IO_FAULT_LATE, .late_ns = 1000};
    struct fixture *f = *state;
    struct sl_read *promoted, *prefetch;
    struct rig rig;

    rig_init(&rig, f, true, 4);
    io_fault_set(rig.io, &plan);
    promoted = rig_queue(&rig, f, 0, 0, 2 * PIECE_BYTES, SL_READ_PREFETCH);
    sl_reader_start(rig.reader);
    prefetch = rig_queue(&rig, f, 1, 0, PIECE_BYTES, SL_READ_PREFETCH);
    sl_reader_set_class(rig.reader, promoted, SL_READ_DEMAND);
    for (uint32_t i = 0; i < 5; i++)
        assert_null(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, false));
    assert_int_equal(io_fault_read_count(rig.io), 2); /* it waits for the demand's last piece */
    assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), promoted);
    assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), prefetch);
    rig_fini(&rig);
}

/* The last piece of each class but the last is held back: nothing of the next goes out meanwhile.
 */
static void test_classes_wait_for_each_other(void **state)
{
    struct fixture *f = *state;
    struct rig rig;

    rig_init(&rig, f, true, 8);
    for (uint32_t k = 0; k < SL_READ_SCRUB; k++) {
        const struct io_fault_plan plan = {
            .fail_nth = 5, .fail_kind = IO_FAULT_LATE, .late_ns = 1000};
        struct sl_read *first, *second;

        io_fault_set(rig.io, &plan);
        second = rig_queue(&rig, f, 1, 0, PIECE_BYTES, k + 1);
        first = rig_queue(&rig, f, 0, 0, 5 * PIECE_BYTES, k);
        for (uint32_t i = 0; i < 5; i++)
            assert_null(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, false));
        assert_int_equal(io_fault_read_count(rig.io), 5);
        assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), first);
        assert_int_equal(io_fault_read_count(rig.io), 6);
        assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), second);
    }
    rig_fini(&rig);
}

/* So that of reads queued together the first is there first. */
static void test_pieces_go_out_in_order(void **state)
{
    struct fixture *f = *state;
    struct rig rig;
    uint64_t nth = 0;

    rig_init(&rig, f, true, 3);
    for (uint32_t i = 0; i < 4; i++)
        rig_queue(&rig, f, i, (30 - 9 * i) * BLOCK, 3 * PIECE_BYTES, SL_READ_DEMAND);
    for (uint32_t i = 0; i < 4; i++)
        assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), &rig.reads[i]);
    for (uint32_t i = 0; i < 4; i++) {
        for (uint32_t k = 0; k < 3; k++)
            assert_int_equal(io_fault_read(rig.io, ++nth).offset_bytes,
                             (30 - 9 * i) * BLOCK + k * PIECE_BYTES);
    }
    rig_fini(&rig);
}

static void test_cancel(void **state)
{
    static const struct io_fault_plan lazy = {.lazy = true, .short_permille = 1000};
    struct fixture *f = *state;
    struct sl_read *out, *queued, *other;
    struct rig rig;

    rig_init(&rig, f, true, 2);
    io_fault_set(rig.io, &lazy);
    out = rig_queue(&rig, f, 0, 0, 5 * PIECE_BYTES, SL_READ_DEMAND);
    queued = rig_queue(&rig, f, 1, 0, 5 * PIECE_BYTES, SL_READ_PREFETCH);
    sl_reader_start(rig.reader);
    other = rig_queue(&rig, f, 2, 77, 2 * PIECE_BYTES, SL_READ_SCRUB);
    sl_reader_cancel(rig.reader, queued);
    sl_reader_cancel(rig.reader, out);
    sl_reader_cancel(rig.reader, out);
    sl_reader_set_class(rig.reader, out, SL_READ_DEMAND);
    assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, false),
                     queued); /* nothing of it was out */
    assert_null(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, false));
    assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), out);
    assert_int_equal(queued->rc, -ECANCELED);
    assert_int_equal(out->rc, -ECANCELED);
    assert_false(out->late);
    for (uint32_t k = 2 * PIECE_BYTES; k < DST_BYTES; k++)
        assert_int_equal(out->dst[k], 0x5a);
    assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), other);
    check_content(f, other);
    /* Two pieces of the one that was out, whose rests nobody wanted; the others are the third's. */
    for (uint64_t nth = 3; nth <= io_fault_read_count(rig.io); nth++)
        assert_true((uint8_t *)io_fault_read(rig.io, nth).dst >= other->dst);

    /* What has ended stays as it is. */
    io_fault_set(rig.io, &(struct io_fault_plan){0});
    out = rig_queue(&rig, f, 0, 0, PIECE_BYTES, SL_READ_DEMAND);
    other = rig_queue(&rig, f, 1, 0, PIECE_BYTES, SL_READ_DEMAND);
    assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), out);
    sl_reader_cancel(rig.reader, other);
    assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), other);
    check_content(f, other);
    rig_fini(&rig);
}

/* ---- time --------------------------------------------------------------------------------------
 */

#define SECOND UINT64_C(1000000000)
#define DEADLINE_NS (SL_READER_STALL_NS * SL_READER_DEADLINE_STALLS)

static void test_slow_is_counted(void **state)
{
    static const uint64_t late_ns[] = {SL_READER_STALL_NS / 2, 2 * SL_READER_STALL_NS,
                                       DEADLINE_NS - SECOND};
    struct fixture *f = *state;

    for (uint32_t i = 0; i < 3; i++) {
        const struct io_fault_plan plan = {
            .fail_nth = 3, .fail_kind = IO_FAULT_LATE, .late_ns = late_ns[i]};
        struct sl_reader_counters counters;
        struct rig rig;

        rig_init(&rig, f, true, 4);
        io_fault_set(rig.io, &plan);
        rig_queue(&rig, f, 0, 0, 4 * PIECE_BYTES, SL_READ_DEMAND);
        rig_queue(&rig, f, 1, 0, 4 * PIECE_BYTES, SL_READ_DEMAND);
        assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true),
                         &rig.reads[1]); /* it does not wait */
        assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), &rig.reads[0]);
        check_content(f, &rig.reads[0]);
        check_content(f, &rig.reads[1]);
        counters = sl_reader_counters(rig.reader, SL_READS_OF_EXPERTS);
        assert_int_equal(counters.n_stalls, i > 0);
        assert_true(counters.longest_ns <= late_ns[i]);
        assert_true(i == 0 || counters.longest_ns > late_ns[i] - SL_READER_STALL_NS / 4);
        assert_int_equal(counters.wait_ns, late_ns[i]);
        assert_int_equal(io_fault_clock_ns(rig.io), late_ns[i]);
        rig_fini(&rig);
    }
}

static uint64_t jumping_clock(void *context)
{
    return *(const uint64_t *)context;
}

/* A thread that looks only after hours finds what has landed meanwhile, all of it. */
static void test_busy_is_not_slow(void **state)
{
    uint64_t now_ns = SECOND;
    const struct sl_reader_options options = {
        .piece_bytes = BLOCK, .depth = 64, .clock_ns = jumping_clock, .clock_context = &now_ns};
    struct fixture *f = *state;
    struct rig rig;

    rig_init(&rig, f, true, 64);
    sl_reader_destroy(rig.reader);
    assert_int_equal(sl_reader_create(&rig.reader, rig.io, &options, NULL), 0);
    for (uint32_t i = 0; i < 5; i++) {
        rig_queue(&rig, f, i, 0, 20 * BLOCK, SL_READ_DEMAND);
        sl_reader_start(rig.reader);
        now_ns += 3 * DEADLINE_NS;
    }
    for (uint32_t i = 0; i < 5; i++) {
        struct sl_read *read = sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true);

        assert_non_null(read);
        check_content(f, read);
        now_ns += 3 * DEADLINE_NS;
    }
    assert_int_equal(sl_reader_counters(rig.reader, SL_READS_OF_EXPERTS).n_stalls, 0);
    rig_fini(&rig);
}

/* A rig of two drives with a file on each. */
static void rig_init_drives(struct rig *rig, struct fixture *f, bool uring, uint32_t depth)
{
    const char *paths[] = {f->path, f->path};
    struct sl_reader_options options = {.piece_bytes = PIECE_BYTES, .clock_ns = io_fault_clock_ns};
    struct sl_io *io;

    assert_int_equal(
        (uring ? sl_io_choose(NULL) : sl_io_threads_open)(&io, paths, 2, 2 * depth, NULL), 0);
    assert_int_equal(io->n_drives, 1);
    rig->io = io_fault_wrap(io);
    io_fault_set_drives(rig->io, 2);
    options.clock_context = rig->io;
    assert_int_equal(sl_reader_create(&rig->reader, rig->io, &options, NULL), 0);
}

static struct sl_read *queue_on(struct rig *rig, const struct fixture *f, uint32_t i,
                                uint32_t drive, uint64_t size_bytes, enum sl_read_class read_class)
{
    rig->reads[i] = (struct sl_read){.offset_bytes = 123 * i,
                                     .size_bytes = size_bytes,
                                     .dst = f->memory + i * DST_BYTES,
                                     .file_index = drive,
                                     .read_class = read_class};
    memset(rig->reads[i].dst, 0x5a, DST_BYTES);
    sl_reader_queue(rig->reader, &rig->reads[i]);
    return &rig->reads[i];
}

static void check_timed_out(const struct rig *rig, const struct fixture *f,
                            const struct sl_read *read)
{
    struct sl_err err;

    assert_int_equal(sl_reader_explain(rig->reader, read, &err), -ETIMEDOUT);
    assert_non_null(strstr(err.message, f->path));
    assert_non_null(strstr(err.message, "drive "));
    assert_non_null(strstr(err.message, ": no answer for 120 s, at offset "));
}

static void test_dead_drive(void **state)
{
    static const struct io_fault_plan plan = {
        .fail_nth = 2, .fail_kind = IO_FAULT_LATE, .late_ns = IO_FAULT_NEVER};
    struct fixture *f = *state;

    for (uint32_t uring = 0; uring < 2; uring++) {
        struct sl_read *stuck, *behind, *later;
        struct rig rig;

        rig_init_drives(&rig, f, uring, 1);
        io_fault_set(rig.io, &plan);
        queue_on(&rig, f, 2, 0, 1, SL_READ_DEMAND);
        assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), &rig.reads[2]);
        stuck = queue_on(&rig, f, 0, 0, 3 * PIECE_BYTES, SL_READ_DEMAND);
        behind = queue_on(&rig, f, 1, 0, 3 * PIECE_BYTES, SL_READ_DEMAND);
        for (uint32_t i = 2; i < READS; i++) { /* the other drive goes on */
            queue_on(&rig, f, i, 1, 3 * PIECE_BYTES, SL_READ_DEMAND);
            assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), &rig.reads[i]);
            check_content(f, &rig.reads[i]);
        }
        assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), stuck);
        assert_true(stuck->late);
        check_timed_out(&rig, f, stuck);
        assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), behind);
        assert_false(behind->late);
        check_timed_out(&rig, f, behind);
        assert_true(io_fault_clock_ns(rig.io) > DEADLINE_NS);
        assert_true(io_fault_clock_ns(rig.io) < DEADLINE_NS + SL_READER_STALL_NS);
        assert_int_equal(sl_reader_counters(rig.reader, SL_READS_OF_EXPERTS).n_stalls, 1);

        /* Nothing is waited for any more; the other drive works, and this one fails at once. */
        assert_null(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true));
        queue_on(&rig, f, 2, 1, 3 * PIECE_BYTES, SL_READ_DEMAND);
        assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), &rig.reads[2]);
        later = queue_on(&rig, f, 3, 0, 3 * PIECE_BYTES, SL_READ_DEMAND);
        assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), later);
        assert_true(io_fault_clock_ns(rig.io) < DEADLINE_NS + SL_READER_STALL_NS);
        assert_int_equal(later->rc, -ETIMEDOUT);

        /* It comes back: with what it had, and for more. */
        assert_int_equal(stuck->dst[0], 0x5a);
        io_fault_heal(rig.io);
        assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, false), stuck);
        assert_false(stuck->late);
        assert_int_equal(stuck->rc, -ETIMEDOUT);
        assert_memory_equal(stuck->dst, f->data, PIECE_BYTES);
        later = queue_on(&rig, f, 3, 0, 3 * PIECE_BYTES, SL_READ_DEMAND);
        assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), later);
        check_content(f, later);
        assert_null(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true));
        rig_fini(&rig);
    }
}

static void test_drain(void **state)
{
    static const struct io_fault_plan plan = {
        .fail_nth = 1, .fail_kind = IO_FAULT_LATE, .late_ns = 10 * DEADLINE_NS};
    struct fixture *f = *state;
    uint64_t time_ns;
    struct rig rig;

    rig_init_drives(&rig, f, true, 1);
    io_fault_set(rig.io, &plan);
    queue_on(&rig, f, 0, 0, PIECE_BYTES, SL_READ_DEMAND);
    sl_reader_start(rig.reader);
    sl_reader_cancel(rig.reader, &rig.reads[0]); /* also a cancelled read can be late */
    assert_ptr_equal(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true), &rig.reads[0]);
    assert_int_equal(rig.reads[0].rc, -ECANCELED);
    assert_true(rig.reads[0].late);
    time_ns = io_fault_clock_ns(rig.io);
    assert_false(sl_reader_drain(rig.reader));
    assert_int_equal(sl_reader_attach(rig.reader, NULL, 0, 0), -EBUSY);
    assert_int_equal(io_fault_clock_ns(rig.io), time_ns); /* it did not wait */
    assert_int_equal(rig.reads[0].dst[0], 0x5a);
    io_fault_heal(rig.io);
    assert_true(sl_reader_drain(rig.reader));
    assert_memory_equal(rig.reads[0].dst, f->data, PIECE_BYTES);
    assert_null(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true));
    rig_fini(&rig);
}

/* Of eight reads, whose nth piece is short, slow, or never comes back; then all of it again. */
static void nth_run(struct rig *rig, const struct fixture *f, const struct io_fault_plan *plan)
{
    const bool never = plan->late_ns == IO_FAULT_NEVER;
    struct sl_read *read, *lost = NULL;
    uint32_t n_done = 0;

    io_fault_set(rig->io, plan);
    sl_reader_set_predicted_bytes(rig->reader, UINT64_MAX); /* one that is lost leaves room */
    for (uint32_t i = 0; i < READS; i++)
        rig_queue(rig, f, i, i * 18 * BLOCK + 55 * i, 16 * BLOCK, i % SL_READ_CLASSES);
    while ((read = sl_reader_reap(rig->reader, SL_READS_OF_EXPERTS, true))) {
        n_done++;
        if (read->rc == 0) {
            check_content(f, read);
            continue;
        }
        if (read->rc == -SL_ECORRUPT) { /* half of a block is all there is of it, again and again */
            assert_true(plan->fail_kind == IO_FAULT_SHORT && plan->fail_for_good);
            continue;
        }
        assert_true(never && !lost && read->late);
        check_timed_out(rig, f, read);
        lost = read;
    }
    assert_int_equal(n_done, READS);
    assert_int_equal(lost != NULL, never && io_fault_read_count(rig->io) >= plan->fail_nth);
    io_fault_heal(rig->io);
    assert_ptr_equal(sl_reader_reap(rig->reader, SL_READS_OF_EXPERTS, false), lost);
}

static void test_nth_read_is_short_or_late(void **state)
{
    static const struct io_fault_plan kinds[] = {
        {.fail_kind = IO_FAULT_SHORT},
        {.fail_kind = IO_FAULT_SHORT, .fail_for_good = true},
        {.fail_kind = IO_FAULT_LATE, .late_ns = 3 * SL_READER_STALL_NS},
        {.fail_kind = IO_FAULT_LATE, .late_ns = IO_FAULT_NEVER},
    };
    struct fixture *f = *state;

    for (uint32_t kind = 0; kind < 4; kind++) {
        struct rig rig;
        uint64_t n = 0, n_reads;

        rig_init(&rig, f, kind % 2, 4);
        do {
            struct io_fault_plan plan = kinds[kind];

            plan.fail_nth = ++n;
            nth_run(&rig, f, &plan);
            n_reads = io_fault_read_count(rig.io);
        } while (n_reads >= n);
        assert_true(n > 40);
        assert_int_equal(sl_reader_counters(rig.reader, SL_READS_OF_EXPERTS).n_stalls,
                         kind >= 2 ? n - 1 : 0);
        rig_fini(&rig);
    }
}

/* ---- all of it together ------------------------------------------------------------------------
 */

/* Reads come, are promoted, demoted, cancelled and reaped at random, on two drives of which pieces
 * fail, are short, late, and in any order. Whatever happens, each read ends once (and is let go of
 * once, if it was late), and one that says so has its bytes. */
static void storm(struct rig *rig, const struct fixture *f, uint64_t random)
{
    enum { FREE, QUEUED, CANCELLED, LATE } now[READS] = {FREE};
    uint32_t n_ended = 0;

    for (uint32_t step = 0; step < 300 || n_ended > 0; step++) {
        const uint32_t i = (uint32_t)(io_fault_random(&random) % READS);
        const uint64_t dice = io_fault_random(&random) % 8;
        struct sl_read *read = NULL;

        if (step == 300)
            io_fault_heal(rig->io); /* or what never comes back would not */
        if (now[i] == FREE && step < 300) {
            queue_on(rig, f, i, (uint32_t)(dice % 2), 1 + dice * 4 * BLOCK,
                     (enum sl_read_class)(io_fault_random(&random) % SL_READ_CLASSES));
            now[i] = QUEUED;
            n_ended++; /* will have */
        } else if (now[i] == QUEUED && dice == 0) {
            sl_reader_cancel(rig->reader, &rig->reads[i]);
            now[i] = CANCELLED;
        } else if (now[i] == QUEUED && dice <= 2) {
            sl_reader_set_class(rig->reader, &rig->reads[i],
                                (enum sl_read_class)(io_fault_random(&random) % SL_READ_CLASSES));
        } else {
            read = sl_reader_reap(rig->reader, SL_READS_OF_EXPERTS, dice > 4);
        }
        if (!read)
            continue;
        assert_true(now[read - rig->reads] != FREE);
        if (read->rc == 0)
            check_content(f, read);
        else if (read->rc == -ECANCELED)
            assert_true(now[read - rig->reads] != QUEUED);
        else
            assert_true(read->rc == -EIO || read->rc == -ETIMEDOUT);
        assert_false(read->late && now[read - rig->reads] == LATE);
        now[read - rig->reads] = read->late ? LATE : FREE;
        n_ended -= !read->late;
    }
}

static void test_storm(void **state)
{
    struct fixture *f = *state;

    for (uint64_t seed = 0; seed < 15; seed++) {
        const struct io_fault_plan plan = {.seed = seed,
                                           .short_permille = 100,
                                           .shuffle = true,
                                           .lazy = seed % 3 == 0,
                                           .fail_nth = 1 + seed * 3,
                                           .fail_kind = seed % 2 ? IO_FAULT_LATE : IO_FAULT_FAIL,
                                           .fail_code = -EIO,
                                           .late_ns = seed % 4 == 1 ? DEADLINE_NS * 2 : SECOND,
                                           .fail_for_good = true};
        struct rig rig;

        rig_init_drives(&rig, f, seed % 2, 1 + seed % 5);
        io_fault_set(rig.io, &plan);
        storm(&rig, f, seed);
        assert_null(sl_reader_reap(rig.reader, SL_READS_OF_EXPERTS, true));
        rig_fini(&rig);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_alignments),
        cmocka_unit_test(test_short_reads_in_any_order),
        cmocka_unit_test(test_nth_read_fails_once),
        cmocka_unit_test(test_nth_read_fails_for_good),
        cmocka_unit_test(test_retries_are_counted),
        cmocka_unit_test(test_end_of_file),
        cmocka_unit_test(test_order_of_classes),
        cmocka_unit_test(test_demand_finds_room),
        cmocka_unit_test(test_classes_wait_for_each_other),
        cmocka_unit_test(test_predicted_reads_are_few),
        cmocka_unit_test(test_users),
        cmocka_unit_test(test_promotion_in_flight),
        cmocka_unit_test(test_pieces_go_out_in_order),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_slow_is_counted),
        cmocka_unit_test(test_busy_is_not_slow),
        cmocka_unit_test(test_dead_drive),
        cmocka_unit_test(test_drain),
        cmocka_unit_test(test_nth_read_is_short_or_late),
        cmocka_unit_test(test_storm),
    };

    return cmocka_run_group_tests_name("reader", tests, set_up, tear_down);
}
