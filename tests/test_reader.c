/* The reader: any run of bytes is delivered whole or reported, whatever the device does. Random
 * reads of a random file go through every back end, clean and with seeded faults, and the 1st, 2nd,
 * 3rd ... read of a run is made to fail, once and for good. */
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
#include "storage/reader.h"
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
    sl_io_open_fn *open_io = uring ? sl_io_uring_open : sl_io_threads_open;
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
    uint64_t span_bytes = sl_read_span_bytes(read->offset_bytes, read->size_bytes);

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
    uint64_t span = sl_read_span_bytes(read->offset_bytes, read->size_bytes);

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
    while ((read = sl_reader_reap(rig->reader, true))) {
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
        counters = sl_reader_counters(rig.reader);
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
        counters = sl_reader_counters(rig.reader);
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
        while ((read = sl_reader_reap(rig.reader, true))) {
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
    assert_ptr_equal(sl_reader_reap(rig.reader, true), read);
    check_content(f, read);
    assert_int_equal(sl_reader_counters(rig.reader).n_retries, 1);
    assert_int_equal(sl_reader_counters(rig.reader).n_reads, 5);
    assert_int_equal(sl_reader_counters(rig.reader).read_bytes, 4 * PIECE_BYTES);
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
        assert_ptr_equal(sl_reader_reap(rig.reader, true), read);
        check_content(f, read);

        read = rig_queue(&rig, f, 0, FILE_BYTES - 9 * BLOCK, 9 * BLOCK + 1, SL_READ_DEMAND);
        assert_ptr_equal(sl_reader_reap(rig.reader, true), read);
        assert_int_equal(sl_reader_explain(rig.reader, read, &err), -SL_ECORRUPT);
        assert_non_null(strstr(err.message, f->path));
        assert_non_null(strstr(err.message, ends_at));

        read = rig_queue(&rig, f, 0, FILE_BYTES + 5 * BLOCK, 1, SL_READ_DEMAND);
        assert_ptr_equal(sl_reader_reap(rig.reader, true), read);
        assert_int_equal(read->rc, -SL_ECORRUPT);
        rig_fini(&rig);
    }
}

/* With one read in flight at a time, the order in which reads end is the order of cutting. */
static void test_urgent_first_and_promotion(void **state)
{
    struct fixture *f = *state;
    struct sl_read *a, *b, *c;
    struct rig rig;

    rig_init(&rig, f, true, 1);
    a = rig_queue(&rig, f, 0, 0, 30 * BLOCK, SL_READ_PREFETCH);
    b = rig_queue(&rig, f, 1, 5 * BLOCK, 30 * BLOCK, SL_READ_PREFETCH);
    sl_reader_start(rig.reader); /* the first piece of `a` is under way */
    c = rig_queue(&rig, f, 2, 7 * BLOCK, 30 * BLOCK, SL_READ_DEMAND);
    assert_ptr_equal(sl_reader_reap(rig.reader, true), c);
    sl_reader_promote(rig.reader, c); /* harmless: it has ended */
    sl_reader_promote(rig.reader, b);
    assert_ptr_equal(sl_reader_reap(rig.reader, true), b);
    assert_ptr_equal(sl_reader_reap(rig.reader, true), a);
    assert_null(sl_reader_reap(rig.reader, true));
    check_content(f, a);
    check_content(f, b);
    check_content(f, c);
    rig_fini(&rig);
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
        cmocka_unit_test(test_urgent_first_and_promotion),
    };

    return cmocka_run_group_tests_name("reader", tests, set_up, tear_down);
}
