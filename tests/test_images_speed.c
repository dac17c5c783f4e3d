/* How fast images are saved and loaded, beside the drive, what writing them costs those who demand
 * reads of the same drive, and how long copies keep the engine's thread. Only with SL_BENCH=1, in
 * $TMPDIR or /tmp; figures go to standard output. Sizes are those of V4-Pro: 8,192 tokens of
 * entries, and marks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/base/clock.h"
#include "core/base/file.h"
#include "core/session/session_bytes.h"
#include "storage/io/reader.h"
#include "tests/image_rig.h"
#include "tests/kv_rig.h"

#define ENTRIES_BYTES (UINT64_C(5300) * SL_IMAGE_TOKENS)
#define MARK_BYTES (UINT64_C(24) << 20)
#define PIECES 8u
#define N_TOKENS (PIECES * SL_IMAGE_TOKENS)
#define RAW_BYTES (UINT64_C(360) << 20)
#define RAW_PIECE_BYTES (UINT64_C(4) << 20)
#define DEMAND_BYTES (UINT64_C(4) << 20)
#define DEMANDS 200u
#define ROUNDS 8u
#define THINK_NS 4000000 /* between two demands: what a layer's work takes */

struct fixture {
    struct image_rig rig;
    int32_t *tokens;
    char raw[FIXTURE_PATH_BYTES + 8]; /* a file of RAW_BYTES beside the images */
    uint8_t *memory;                  /* RAW_PIECE_BYTES */
};

static double rate(uint64_t bytes, uint64_t start_ns)
{
    return (double)bytes / (double)(sl_clock_ns() - start_ns);
}

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    uint64_t start_ns;
    int fd;

    assert_non_null(f);
    *state = f;
    if (!getenv("SL_BENCH"))
        return 0;
    image_rig_init(&f->rig);
    f->rig.options.writer = sl_file_writer_private();
    f->rig.options.open_io = sl_io_choose(NULL);
    f->rig.options.reader.depth = 0;
    f->rig.options.entries_bytes_max = ENTRIES_BYTES;
    f->rig.options.mark_bytes_max = MARK_BYTES;
    f->tokens = calloc(N_TOKENS, sizeof(*f->tokens));
    assert_non_null(f->tokens);
    image_rig_tokens(f->tokens, N_TOKENS, 0, 1);
    assert_int_equal(posix_memalign((void **)&f->memory, SL_BLOCK_BYTES, RAW_PIECE_BYTES), 0);
    memset(f->memory, 7, RAW_PIECE_BYTES);
    snprintf(f->raw, sizeof(f->raw), "%s/raw", f->rig.root);
    start_ns = sl_clock_ns();
    fd = open(f->raw, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    sl_file_set_direct(fd, SL_BLOCK_BYTES);
    for (uint64_t at = 0; at < RAW_BYTES; at += RAW_PIECE_BYTES)
        assert_int_equal(sl_file_write_at(fd, f->memory, RAW_PIECE_BYTES, at), 0);
    assert_int_equal(fdatasync(fd), 0);
    close(fd);
    printf("the drive, written in pieces of 4 MiB: %.2f GB/s\n", rate(RAW_BYTES, start_ns));
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    if (getenv("SL_BENCH"))
        image_rig_fini(&f->rig);
    free(f->memory);
    free(f->tokens);
    free(f);
    return 0;
}

/* Opens the drive's reader over the raw file. */
static struct sl_io *open_reader(const struct fixture *f, struct sl_reader **ret_reader)
{
    const char *const paths[] = {f->raw};
    struct sl_io *io;

    assert_int_equal(sl_io_choose(NULL)(&io, paths, 1, SL_READER_DEPTH, NULL), 0);
    assert_int_equal(sl_reader_create(ret_reader, io, NULL, NULL), 0);
    return io;
}

/* Only the last one has a mark, as when a long prompt is saved at once. */
static void begin_image(struct fixture *f, uint32_t number)
{
    struct sl_images_piece piece = {.tokens = f->tokens,
                                    .first_token = number * SL_IMAGE_TOKENS,
                                    .end_token = (number + 1) * SL_IMAGE_TOKENS,
                                    .entries_bytes = ENTRIES_BYTES,
                                    .mark_bytes = number + 1 == PIECES ? MARK_BYTES : 0};

    assert_int_equal(sl_images_begin(f->rig.images, &piece), 0);
    memset(piece.entries, (int)number, piece.entries_bytes);
    if (piece.mark_bytes > 0)
        memset(piece.mark, (int)number, piece.mark_bytes);
    sl_images_commit(f->rig.images);
}

static int take_nothing(void *context, const struct sl_image_content *content)
{
    *(uint64_t *)context += content->entries_bytes + content->mark_bytes;
    return 0;
}

static void test_rates(void **state)
{
    struct fixture *f = *state;
    struct sl_read raw = {.size_bytes = RAW_BYTES};
    struct sl_reader *reader;
    uint64_t start_ns, bytes = 0;
    struct sl_io *io;

    if (!getenv("SL_BENCH"))
        skip();
    image_rig_open(&f->rig);
    start_ns = sl_clock_ns();
    for (uint32_t i = 0; i < PIECES; i++)
        begin_image(f, i);
    sl_images_wait(f->rig.images);
    printf("images saved, copy and sync of each included: %.2f GB/s\n",
           rate(sl_images_counters(f->rig.images).saved_bytes, start_ns));
    image_rig_close(&f->rig);

    assert_int_equal(posix_memalign((void **)&raw.dst, SL_BLOCK_BYTES, RAW_BYTES), 0);
    memset(raw.dst, 1, RAW_BYTES);
    io = open_reader(f, &reader);
    start_ns = sl_clock_ns();
    sl_reader_queue(reader, &raw);
    assert_ptr_equal(sl_reader_reap(reader, SL_READS_OF_EXPERTS, true), &raw);
    printf("the drive, read with a depth of %u: %.2f GB/s\n", SL_READER_DEPTH,
           rate(RAW_BYTES, start_ns));
    sl_reader_destroy(reader);
    io->ops->close(io);
    free(raw.dst);

    image_rig_open(&f->rig);
    for (int again = 0; again < 2; again++) {
        start_ns = sl_clock_ns();
        bytes = 0;
        assert_int_equal(sl_images_load(f->rig.images, f->tokens, N_TOKENS, take_nothing, &bytes),
                         0);
        printf("images loaded and checked%s: %.2f GB/s\n", again ? ", again" : "",
               rate(bytes, start_ns));
    }
    image_rig_close(&f->rig);
}

static int compare_times(const void *a, const void *b)
{
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

enum company { NOBODY, GIVING_WAY, NOT_GIVING_WAY, COMPANIES };

/* Demands pieces of the raw file, one after the other, with pauses; images are written meanwhile or
 * not. */
static void demand(struct fixture *f, enum company company, uint64_t *times)
{
    const struct timespec think = {.tv_nsec = THINK_NS};
    struct sl_reader *reader;
    struct sl_io *io = open_reader(f, &reader);
    uint64_t state = 1;
    uint32_t n_images = 0;

    f->rig.options.n_ahead =
        company == GIVING_WAY ? sl_reader_ahead(reader, io->files[0].device) : NULL;
    if (company != NOBODY)
        image_rig_open(&f->rig);
    for (uint32_t i = 0; i < DEMANDS; i++) {
        struct sl_read read = {.size_bytes = DEMAND_BYTES, .dst = f->memory};

        if (company != NOBODY && !sl_images_is_busy(f->rig.images))
            begin_image(f, n_images++ % PIECES);
        state = state * 6364136223846793005u + 1;
        read.offset_bytes = (state >> 33) % (RAW_BYTES / DEMAND_BYTES) * DEMAND_BYTES;
        times[i] = sl_clock_ns();
        sl_reader_queue(reader, &read);
        assert_ptr_equal(sl_reader_reap(reader, SL_READS_OF_EXPERTS, true), &read);
        times[i] = sl_clock_ns() - times[i];
        nanosleep(&think, NULL);
    }
    if (company != NOBODY)
        image_rig_close(&f->rig);
    sl_reader_destroy(reader);
    io->ops->close(io);
}

static void test_demands(void **state)
{
    static const char *const names[COMPANIES] = {"nothing else", "images that give way",
                                                 "images that do not"};
    static uint64_t times[COMPANIES][ROUNDS * DEMANDS];
    struct fixture *f = *state;

    if (!getenv("SL_BENCH"))
        skip();
    for (uint32_t round = 0; round < ROUNDS; round++)
        for (int company = 0; company < COMPANIES; company++)
            demand(f, (enum company)company, &times[company][round * DEMANDS]);
    for (int i = 0; i < COMPANIES; i++) {
        qsort(times[i], ROUNDS * DEMANDS, sizeof(times[i][0]), compare_times);
        printf("a demand of 4 MiB beside %-20s median %.2f ms, nine of ten within %.2f ms\n",
               names[i], (double)times[i][ROUNDS * DEMANDS / 2] * 1e-6,
               (double)times[i][ROUNDS * DEMANDS * 9 / 10] * 1e-6);
    }
}

/* ---- copies ------------------------------------------------------------------------------------
 */

#define COPY_PIECES 6u
#define COPY_TOKENS (COPY_PIECES * SL_IMAGE_TOKENS)

static void read_pro(struct sl_config *config)
{
    static const char path[] = "tools/configs/v4-pro.json";
    size_t length;
    char *text;

    assert_int_equal(sl_file_read_all(path, 1 << 16, &text, &length, NULL), 0);
    assert_int_equal(sl_config_parse(config, text, length, path, NULL), 0);
    free(text);
}

/* A session that has seen COPY_TOKENS tokens, as far as memory goes. */
static struct sl_session *fill_session(struct sl_kv_pool *pool)
{
    struct sl_session *session;
    struct sl_kv_cache *kv;

    assert_int_equal(sl_session_create(&session, pool, COPY_TOKENS, NULL), 0);
    kv = sl_session_kv(session);
    assert_int_equal(sl_kv_cache_grow(kv, COPY_TOKENS, NULL), 0);
    memset(pool->pages, 1, pool->n_touched * (size_t)pool->layout.page_bytes);
    kv->n_tokens = COPY_TOKENS;
    return session;
}

/* Time of this thread on a processor, whoever else wants one. */
static uint64_t worked_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* What the daemon does between two layers: a piece of 8,192 tokens of V4-Pro, and a mark. */
static void test_copies(void **state)
{
    uint64_t out_ns[COPY_PIECES], in_ns[COPY_PIECES], ids_ns;
    int32_t *ids;
    struct sl_session *from, *to;
    struct sl_config config;
    struct sl_kv_pool pool;
    struct sl_mark *mark;
    uint8_t *bytes, *mark_bytes;

    (void)state;
    if (!getenv("SL_BENCH"))
        skip();
    read_pro(&config);
    kv_rig_pool(&pool, &config, config.num_hidden_layers, SL_NUMERICS_NATIVE, 3, COPY_TOKENS);
    from = fill_session(&pool);
    assert_int_equal(sl_session_create(&to, &pool, COPY_TOKENS, NULL), 0);
    assert_int_equal(sl_session_mark(from, &mark, NULL), 0);
    ids = calloc(COPY_TOKENS, sizeof(*ids));
    bytes = calloc(1, sl_chunk_bytes_max(&pool.layout, SL_IMAGE_TOKENS));
    mark_bytes = calloc(1, sl_mark_bytes_max(&pool.layout));
    assert_true(ids && bytes && mark_bytes);
    ids_ns = worked_ns();
    sl_session_tokens(from, 0, COPY_TOKENS, ids);
    ids_ns = worked_ns() - ids_ns;
    assert_int_equal(sl_session_import_begin(to, ids, COPY_TOKENS, NULL), 0);
    for (uint32_t i = 0; i < COPY_PIECES; i++) {
        const uint32_t first = i * SL_IMAGE_TOKENS, end = first + SL_IMAGE_TOKENS;

        out_ns[i] = worked_ns();
        assert_int_equal(sl_session_export_chunk(from, first, end, bytes, NULL), 0);
        sl_session_export_mark(from, mark, mark_bytes);
        out_ns[i] = worked_ns() - out_ns[i];
        in_ns[i] = worked_ns();
        sl_session_import_chunk(to, first, end, bytes);
        in_ns[i] = worked_ns() - in_ns[i];
    }
    sl_session_import_abandon(to);
    qsort(out_ns, COPY_PIECES, sizeof(out_ns[0]), compare_times);
    qsort(in_ns, COPY_PIECES, sizeof(in_ns[0]), compare_times);
    printf(
        "8,192 tokens of V4-Pro, %.0f MiB, and a mark of %.0f MiB: copied out in %.1f to %.1f ms; "
        "taken in in %.1f to %.1f ms; %u ids in %.2f ms\n",
        (double)sl_chunk_bytes(&pool.layout, 0, SL_IMAGE_TOKENS) / 1048576,
        (double)sl_mark_bytes(from, mark) / 1048576, (double)out_ns[0] * 1e-6,
        (double)out_ns[COPY_PIECES - 1] * 1e-6, (double)in_ns[0] * 1e-6,
        (double)in_ns[COPY_PIECES - 1] * 1e-6, COPY_TOKENS, (double)ids_ns * 1e-6);
    sl_session_destroy(to);
    sl_session_destroy(from);
    sl_kv_pool_fini(&pool);
    free(mark_bytes);
    free(bytes);
    free(ids);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_copies),
        cmocka_unit_test(test_rates),
        cmocka_unit_test(test_demands),
    };

    return cmocka_run_group_tests_name("images_speed", tests, set_up, tear_down);
}
