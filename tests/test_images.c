/* Images come back as they were, or not at all. Sequences that branch are saved and loaded; then
 * files are flipped bit by bit, cut, renamed, replaced and taken away, other models and versions
 * share the folder, the limit is reached, reads fail and processes meet: whatever is loaded is
 * right, whatever is not is told in one line. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/image_rig.h"
#include "tests/io_fault.h"

#define N_TOKENS 40000u

struct fixture {
    struct image_rig rig;
    int32_t a[N_TOKENS], b[N_TOKENS]; /* begin with the same 1,000 tokens */
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    image_rig_init(&f->rig);
    image_rig_tokens(f->a, N_TOKENS, 1000, 1);
    image_rig_tokens(f->b, N_TOKENS, 1000, 2);
    image_rig_open(&f->rig);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    image_rig_fini(&f->rig);
    free(f);
    return 0;
}

static void reopen(struct fixture *f)
{
    image_rig_close(&f->rig);
    image_rig_open(&f->rig);
}

/* ---- saving and loading ------------------------------------------------------------------------
 */

static void test_prefixes_are_found(void **state)
{
    struct fixture *f = *state;
    struct image_rig *rig = &f->rig;

    assert_int_equal(image_rig_load(rig, f->a, N_TOKENS), 0);
    assert_true(image_rig_save(rig, f->a, 1));
    assert_true(image_rig_save(rig, f->a, 700));
    assert_true(image_rig_save(rig, f->a, 1500));
    assert_true(image_rig_save(rig, f->b, 1400));
    assert_true(image_rig_save(rig, f->b, 1400)); /* is there already */
    for (int again = 0; again < 2; again++) {
        assert_int_equal(image_rig_file_count(rig), 4);
        assert_int_equal(image_rig_load(rig, f->a, N_TOKENS), 1500);
        assert_int_equal(image_rig_load(rig, f->a, 1500), 1500);
        assert_int_equal(image_rig_load(rig, f->a, 1499), 700);
        assert_int_equal(image_rig_load(rig, f->b, N_TOKENS), 1400);
        assert_int_equal(image_rig_load(rig, f->b, 1399), 700);
        assert_int_equal(image_rig_load(rig, f->a, 699), 1);
        assert_int_equal(image_rig_load(rig, f->a, 0), 0);
        assert_int_equal(image_rig_load(rig, f->a + 1, 1000), 0);
        reopen(f);
    }
    assert_int_equal(rig->n_notes, 0);
}

/* Files are as large as they must be: entries of one branch are not those of another again. */
static void test_what_is_shared_is_stored_once(void **state)
{
    struct fixture *f = *state;
    struct image_rig *rig = &f->rig;
    struct sl_images_match match;

    assert_true(image_rig_save(rig, f->a, 900));
    assert_true(image_rig_save(rig, f->a, 5000));
    match = sl_images_find(rig->images, f->b, 6000);
    assert_int_equal(match.n_tokens, 900);
    assert_int_equal(match.n_shared, 1000); /* where an image would serve both */
    assert_true(image_rig_save(rig, f->b, 1000));
    assert_true(image_rig_save(rig, f->b, 6000));
    match = sl_images_find(rig->images, f->b, 6000);
    assert_int_equal(match.n_tokens, 6000);
    assert_int_equal(match.n_shared, 6000);
    assert_int_equal(image_rig_load(rig, f->a, 5000), 5000);
    assert_int_equal(image_rig_load(rig, f->b, 6000), 6000);
    assert_int_equal(sl_images_counters(rig->images).n_saved, 4);
    assert_int_equal(sl_images_counters(rig->images).n_loaded, 5); /* two, and three */
}

/* Pieces between the images that a sequence can begin at have no mark. */
static void test_long_sequences_are_cut(void **state)
{
    struct fixture *f = *state;
    struct image_rig *rig = &f->rig;
    struct sl_images_match match;

    assert_true(image_rig_save(rig, f->a, 38000));
    assert_int_equal(image_rig_file_count(rig), 38000 / SL_IMAGE_TOKENS + 1);
    assert_int_equal(image_rig_load(rig, f->a, 38000), 38000);
    match = sl_images_find(rig->images, f->a, 37999);
    assert_int_equal(match.n_tokens, 0);
    assert_int_equal(match.n_shared, 37999);
    assert_true(image_rig_save(rig, f->a, SL_IMAGE_TOKENS)); /* now with a mark, in its place */
    assert_true(image_rig_save(rig, f->a, SL_IMAGE_TOKENS + 1));
    for (int again = 0; again < 2; again++) {
        assert_int_equal(image_rig_file_count(rig), 38000 / SL_IMAGE_TOKENS + 2);
        assert_int_equal(image_rig_load(rig, f->a, 37999), SL_IMAGE_TOKENS + 1);
        assert_int_equal(image_rig_load(rig, f->a, SL_IMAGE_TOKENS), SL_IMAGE_TOKENS);
        assert_int_equal(image_rig_load(rig, f->a, N_TOKENS), 38000);
        reopen(f);
    }
    assert_int_equal(rig->n_notes, 0);
}

/* A mark that is larger than the entries before it is not there for others to continue: the next
 * image holds these entries as well, and what nobody continues can go. */
static void test_few_entries_are_stored_again(void **state)
{
    static const uint32_t ends[] = {3, 6, 30, 35}; /* 3 bytes a token, and 20 a mark */
    struct fixture *f = *state;
    struct image_rig *rig = &f->rig;
    int32_t parts[40];

    for (int i = 0; i < 3; i++)
        assert_true(image_rig_save(rig, f->a, ends[i]));
    for (int i = 0; i < 40; i++)
        parts[i] = i < 25 ? f->a[i] : -f->a[i] - 1;
    assert_int_equal(sl_images_find(rig->images, parts, 40).n_tokens, 6);
    assert_int_equal(sl_images_find(rig->images, parts, 40).n_shared, 25);
    assert_true(image_rig_save(rig, f->a, ends[3])); /* thirty tokens are worth being continued */
    reopen(f);
    for (int i = 0; i < 4; i++)
        assert_int_equal(image_rig_load(rig, f->a, ends[i]), ends[i]);
    assert_int_equal(sl_images_counters(rig->images).n_loaded, 5);
    rig->options.bytes_max = sl_images_counters(rig->images).folder_bytes;
    reopen(f);
    assert_true(image_rig_save(rig, f->b + 1, 3));
    assert_true(image_rig_save(rig, f->b + 2, 3));
    assert_int_equal(image_rig_load(rig, f->a, 29), 0);
    assert_int_equal(image_rig_load(rig, f->a, 35), 35);
    assert_int_equal(rig->n_notes, 0);
}

/* More images in a row than are open at once. */
static void test_long_chains(void **state)
{
    struct fixture *f = *state;
    uint32_t n;

    for (n = 1; n <= 150; n++)
        assert_true(image_rig_save(&f->rig, f->a, 7 * n));
    reopen(f);
    assert_int_equal(image_rig_load(&f->rig, f->a, N_TOKENS), 7 * 150);
    assert_int_equal(sl_images_counters(f->rig.images).n_loaded, 150);
}

static void test_nobody_else_is_served(void **state)
{
    struct fixture *f = *state;
    struct image_rig *rig = &f->rig;
    const struct sl_image_owner ours = rig->options.owner;
    struct sl_image_owner others[3] = {ours, ours, ours};

    others[0].model++;
    others[1].exact = true;
    others[2].with_mtp = true;
    assert_true(image_rig_save(rig, f->a, 500));
    for (int i = 0; i < 3; i++) {
        rig->options.owner = others[i];
        reopen(f);
        assert_int_equal(image_rig_load(rig, f->a, N_TOKENS), 0);
        assert_true(image_rig_save(rig, f->a, 500));
        assert_int_equal(image_rig_load(rig, f->a, N_TOKENS), 500);
    }
    rig->options.owner = ours;
    reopen(f);
    assert_int_equal(image_rig_load(rig, f->a, N_TOKENS), 500);
    assert_int_equal(image_rig_file_count(rig), 4);
    assert_int_equal(rig->n_notes, 0);
}

static void test_only_the_owner_can_read(void **state)
{
    struct fixture *f = *state;
    char path[FIXTURE_PATH_BYTES];
    struct stat status;

    assert_true(image_rig_save(&f->rig, f->a, 500));
    image_rig_path(&f->rig, f->a, 500, path);
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_mode & 0777, 0600);
    assert_int_equal(stat(f->rig.folder, &status), 0);
    assert_int_equal(status.st_mode & 0777, 0700);
}

/* ---- damage ------------------------------------------------------------------------------------
 */

static void flip(const char *path, uint64_t at_bytes, int bit)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    uint8_t byte;

    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, (off_t)at_bytes), 1);
    byte ^= (uint8_t)(1 << bit);
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)at_bytes), 1);
    close(fd);
}

static uint64_t size_of(const char *path)
{
    struct stat status;

    assert_int_equal(stat(path, &status), 0);
    return (uint64_t)status.st_size;
}

/* In each file of a chain, and everywhere in it: header, ids, entries, mark, and what fills up the
 * blocks. Found when the folder is opened, or when the image is loaded. */
static void test_flipped_bits(void **state)
{
    static const uint32_t ends[] = {300, 800, 1200};
    static const uint32_t left[] = {0, 300, 800};
    struct fixture *f = *state;
    struct image_rig *rig = &f->rig;
    char path[FIXTURE_PATH_BYTES];

    for (int i = 0; i < 3; i++) {
        uint64_t size_bytes = UINT64_MAX;

        for (uint64_t at = 0; at < size_bytes; at += at < 100 ? 1 : 331) {
            const bool is_open = at % 2 == 0;
            uint32_t n_notes, n_expected = left[i];

            for (int k = 0; k < 3; k++)
                assert_true(image_rig_save(rig, f->a, ends[k]));
            image_rig_path(rig, f->a, ends[i], path);
            size_bytes = size_of(path);
            if (!is_open)
                image_rig_close(rig);
            n_notes = rig->n_notes;
            flip(path, at, (int)(at % 8));
            if (!is_open)
                image_rig_open(rig);
            /* Of images before the last one, the mark is not read. */
            if (i < 2 && at >= size_bytes - sl_round_up(IMAGE_RIG_MARK_BYTES, SL_BLOCK_BYTES)) {
                assert_int_equal(image_rig_load(rig, f->a, 1200), 1200);
                assert_int_equal(image_rig_load(rig, f->a, ends[i]), left[i]);
            } else {
                assert_int_equal(image_rig_load(rig, f->a, 1200), n_expected);
            }
            assert_true(rig->n_notes > n_notes);
            assert_non_null(strstr(rig->note, "it is dropped"));
            assert_int_equal(access(path, F_OK), -1);
        }
    }
    for (int k = 0; k < 3; k++)
        assert_true(image_rig_save(rig, f->a, ends[k]));
    assert_int_equal(image_rig_load(rig, f->a, 1200), 1200);
}

static void test_sizes_are_checked(void **state)
{
    static const int64_t sizes[] = {0, 1, 4095, 4096, 8192, -1, 1, 4096};
    struct fixture *f = *state;
    struct image_rig *rig = &f->rig;
    char path[FIXTURE_PATH_BYTES];

    image_rig_path(rig, f->a, 400, path);
    for (int i = 0; i < 8; i++) {
        for (int is_open = 0; is_open < 2; is_open++) {
            const uint32_t n_notes = rig->n_notes;
            uint64_t size_bytes;

            assert_true(image_rig_save(rig, f->a, 400));
            size_bytes = size_of(path);
            if (!is_open)
                image_rig_close(rig);
            size_bytes = i < 5 ? (uint64_t)sizes[i] : size_bytes + (uint64_t)sizes[i];
            assert_int_equal(truncate(path, (off_t)size_bytes), 0);
            if (!is_open)
                image_rig_open(rig);
            assert_int_equal(image_rig_load(rig, f->a, 400), 0);
            assert_int_equal(rig->n_notes, n_notes + 1);
        }
    }
}

/* An image of other tokens under the name of ours, and sound in itself: as if two prefixes had the
 * same checksum. */
static void test_tokens_are_compared(void **state)
{
    struct fixture *f = *state;
    struct image_rig *rig = &f->rig;
    char a[FIXTURE_PATH_BYTES], b[FIXTURE_PATH_BYTES];
    uint8_t bytes[SL_IMAGE_HEADER_BYTES];
    struct sl_image_header header;
    FILE *file;
    bool is_new;

    assert_true(image_rig_save(rig, f->b, 1100));
    image_rig_path(rig, f->a, 1100, a);
    image_rig_path(rig, f->b, 1100, b);
    image_rig_close(rig);
    assert_int_equal(rename(b, a), 0);
    file = fopen(a, "r+");
    assert_non_null(file);
    assert_int_equal(fread(bytes, sizeof(bytes), 1, file), 1);
    assert_true(sl_image_header_decode(&header, bytes));
    assert_true(sl_image_name_parse(strrchr(a, '/') + 1, &header.prefix, &is_new));
    sl_image_header_encode(&header, bytes);
    rewind(file);
    assert_int_equal(fwrite(bytes, sizeof(bytes), 1, file), 1);
    fclose(file);
    image_rig_open(rig);
    assert_int_equal(sl_images_find(rig->images, f->a, 1100).n_tokens, 1100);
    assert_int_equal(image_rig_load(rig, f->a, 1100), 0);
    assert_int_equal(rig->n_notes, 1);
}

/* A file under another's name, one that takes another's place while the folder is open, links,
 * pipes, folders, and names that are nobody's. */
static void test_files_that_do_not_belong(void **state)
{
    struct fixture *f = *state;
    struct image_rig *rig = &f->rig;
    char a[FIXTURE_PATH_BYTES], b[FIXTURE_PATH_BYTES], other[FIXTURE_PATH_BYTES + 32];

    image_rig_path(rig, f->a, 1100, a);
    image_rig_path(rig, f->b, 1100, b);
    assert_true(image_rig_save(rig, f->a, 1100));
    assert_true(image_rig_save(rig, f->b, 1100));
    assert_int_equal(rename(a, b), 0); /* noticed when it is loaded */
    assert_int_equal(image_rig_load(rig, f->b, 1100), 0);
    assert_int_equal(rig->n_notes, 1);

    assert_true(image_rig_save(rig, f->b, 1100));
    image_rig_close(rig);
    assert_int_equal(rename(b, a), 0);
    image_rig_open(rig); /* or when the folder is opened */
    assert_int_equal(rig->n_notes, 2);
    assert_int_equal(image_rig_load(rig, f->a, 1100), 0);

    image_rig_close(rig);
    assert_int_equal(symlink("/etc/passwd", a), 0);
    assert_int_equal(mkfifo(b, 0600), 0);
    snprintf(other, sizeof(other), "%s/0123456789abcdef.image", rig->folder);
    assert_int_equal(mkdir(other, 0700), 0);
    image_rig_open(rig);
    assert_int_equal(rig->n_notes, 5);
    assert_non_null(strstr(rig->note, "it is not used"));
    assert_int_equal(image_rig_load(rig, f->a, 1100), 0);
    assert_int_equal(access(other, F_OK), 0); /* no file of ours: left alone */

    image_rig_close(rig);
    fixture_write_text(rig->folder, "notes.txt", "a user's own");
    fixture_write_text(rig->folder, "0123456789ABCDEF.image", "");
    fixture_write_text(rig->folder, "0123456789abcdef.image.old", "");
    fixture_write_text(rig->folder, "fedcba9876543210.image.new", "a run was ended here");
    image_rig_open(rig);
    assert_int_equal(rig->n_notes, 8); /* the link, the pipe and the folder */
    snprintf(other, sizeof(other), "%s/notes.txt", rig->folder);
    assert_int_equal(access(other, F_OK), 0);
    snprintf(other, sizeof(other), "%s/fedcba9876543210.image.new", rig->folder);
    assert_int_equal(access(other, F_OK), -1);
}

static void test_orphans_are_dropped(void **state)
{
    struct fixture *f = *state;
    struct image_rig *rig = &f->rig;
    char path[FIXTURE_PATH_BYTES];

    for (uint32_t n = 200; n <= 1000; n += 200)
        assert_true(image_rig_save(rig, f->a, n));
    assert_true(image_rig_save(rig, f->b, 1300));
    image_rig_path(rig, f->a, 400, path);
    image_rig_close(rig);
    assert_int_equal(unlink(path), 0);
    image_rig_open(rig);
    assert_int_equal(rig->n_notes, 4); /* 600, 800, 1000 and the branch */
    assert_int_equal(image_rig_file_count(rig), 1);
    assert_int_equal(image_rig_load(rig, f->b, 1300), 200);

    /* While it is open, all that continue what is missing go with it. */
    for (uint32_t n = 400; n <= 1000; n += 200)
        assert_true(image_rig_save(rig, f->a, n));
    assert_true(image_rig_save(rig, f->b, 1300));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(image_rig_load(rig, f->b, 1300), 200);
    assert_int_equal(sl_images_counters(rig->images).n_dropped, 4 + 5);
}

/* One of a later version is neither used nor removed, but counts, and goes when its turn comes. */
static void test_other_versions(void **state)
{
    struct fixture *f = *state;
    struct image_rig *rig = &f->rig;
    uint8_t header[SL_IMAGE_HEADER_BYTES];
    char path[FIXTURE_PATH_BYTES];
    uint64_t checksum;
    FILE *file;

    assert_true(image_rig_save(rig, f->a, 300));
    image_rig_path(rig, f->a, 300, path);
    image_rig_close(rig);
    file = fopen(path, "r+");
    assert_non_null(file);
    assert_int_equal(fread(header, sizeof(header), 1, file), 1);
    header[8] = 99;
    checksum = sl_checksum(header, sizeof(header) - 8);
    memcpy(header + sizeof(header) - 8, &checksum, 8);
    rewind(file);
    assert_int_equal(fwrite(header, sizeof(header), 1, file), 1);
    fclose(file);
    image_rig_open(rig);
    assert_int_equal(image_rig_load(rig, f->a, 300), 0);
    assert_int_equal(image_rig_file_count(rig), 1);
    rig->options.bytes_max = 3 * size_of(path) / 2;
    reopen(f);
    assert_true(image_rig_save(rig, f->b, 300));
    assert_int_equal(image_rig_file_count(rig), 1);
    assert_int_equal(image_rig_load(rig, f->b, 300), 300);
}

/* Reads that fail lose nothing on disk; one that never comes back takes the memory with it, and
 * everything goes on without images. */
static struct io_fault_plan plan;
static struct sl_io *faulty; /* the latest */

static int open_faulty(struct sl_io **ret_io, const char *const *paths, uint32_t n_files,
                       uint32_t depth, struct sl_err *err)
{
    int rc = sl_io_threads_open(ret_io, paths, n_files, depth, err);

    if (rc == 0) {
        *ret_io = faulty = io_fault_wrap(*ret_io);
        io_fault_set(*ret_io, &plan);
    }
    return rc;
}

static uint64_t faulty_clock_ns(void *context)
{
    (void)context;
    return io_fault_clock_ns(faulty);
}

static void test_reads_that_never_come(void **state)
{
    struct fixture *f = *state;
    struct image_rig *rig = &f->rig;

    assert_true(image_rig_save(rig, f->a, 300));
    assert_true(image_rig_save(rig, f->a, 600));
    plan = (struct io_fault_plan){.fail_nth = 2,
                                  .fail_kind = IO_FAULT_LATE,
                                  .late_ns = IO_FAULT_NEVER,
                                  .fail_for_good = true};
    rig->options.open_io = open_faulty;
    rig->options.reader.clock_ns = faulty_clock_ns;
    reopen(f);
    assert_int_equal(image_rig_load(rig, f->a, 600), 0);
    assert_int_equal(rig->n_notes, 1);
    assert_false(image_rig_save(rig, f->a, 900));
    assert_int_equal(image_rig_load(rig, f->a, 300), 0);
    assert_int_equal(rig->n_notes, 1);
    rig->options.open_io = sl_io_threads_open;
    rig->options.reader.clock_ns = NULL;
    reopen(f);
    assert_int_equal(image_rig_load(rig, f->a, 900), 600);
}

static void test_failing_reads(void **state)
{
    struct fixture *f = *state;
    struct image_rig *rig = &f->rig;

    assert_true(image_rig_save(rig, f->a, 300));
    assert_true(image_rig_save(rig, f->a, 600));
    for (uint64_t nth = 1; nth <= 2; nth++) {
        plan = (struct io_fault_plan){
            .fail_nth = nth, .fail_kind = IO_FAULT_FAIL, .fail_code = -EIO, .fail_for_good = true};
        rig->options.open_io = open_faulty;
        reopen(f);
        rig->n_notes = 0;
        assert_int_equal(image_rig_load(rig, f->a, 600), nth == 1 ? 0 : 300);
        assert_true(rig->n_notes == 1);
        assert_non_null(strstr(rig->note, "it is not used"));
        assert_int_equal(image_rig_file_count(rig), 2);
    }
    plan = (struct io_fault_plan){.seed = 3, .short_permille = 500, .shuffle = true};
    reopen(f);
    assert_int_equal(image_rig_load(rig, f->a, 600), 600);
    plan = (struct io_fault_plan){.fail_nth = 2, .fail_kind = IO_FAULT_FAIL, .fail_for_good = true};
    reopen(f);
    assert_int_equal(image_rig_load(rig, f->a, 600), 300); /* wrong bytes */
    assert_int_equal(image_rig_file_count(rig), 1);
}

/* ---- the limit ---------------------------------------------------------------------------------
 */

static void test_oldest_goes_first(void **state)
{
    struct fixture *f = *state;
    struct image_rig *rig = &f->rig;
    char path[FIXTURE_PATH_BYTES];
    int32_t c[600], d[600];

    image_rig_tokens(c, 600, 0, 7);
    image_rig_tokens(d, 600, 0, 8);
    assert_true(image_rig_save(rig, f->a, 600));
    image_rig_path(rig, f->a, 600, path);
    rig->options.bytes_max = 7 * size_of(path) / 2; /* three */
    reopen(f);
    assert_true(image_rig_save(rig, f->b, 1200));
    assert_true(image_rig_save(rig, c, 600));
    assert_int_equal(image_rig_load(rig, f->a, 600), 600); /* used again */
    reopen(f);                                             /* which the files remember */
    assert_true(image_rig_save(rig, d, 600));
    assert_int_equal(image_rig_load(rig, f->b, 1200), 600);
    assert_int_equal(image_rig_load(rig, c, 600), 600);
    assert_int_equal(image_rig_load(rig, d, 600), 600);
    assert_int_equal(image_rig_file_count(rig), 3);
    assert_int_equal(sl_images_counters(rig->images).n_removed, 1);
    assert_int_equal(rig->n_notes, 0);
}

static void test_what_is_needed_stays(void **state)
{
    struct fixture *f = *state;
    struct image_rig *rig = &f->rig;
    char path[FIXTURE_PATH_BYTES];
    struct sl_images_match match;
    uint64_t one_bytes;
    int32_t c[600];

    image_rig_tokens(c, 600, 0, 7);
    assert_true(image_rig_save(rig, f->a, 500));
    image_rig_path(rig, f->a, 500, path);
    one_bytes = size_of(path);
    rig->options.bytes_max = 2 * one_bytes + one_bytes / 2;
    reopen(f);
    /* A base is older than what continues it, and stays. */
    assert_true(image_rig_save(rig, f->a, 900));
    assert_true(image_rig_save(rig, c, 500));
    assert_int_equal(image_rig_load(rig, f->a, 900), 500);
    assert_int_equal(image_rig_load(rig, c, 500), 500);
    /* So does what is being continued, though it is the oldest. */
    assert_int_equal(image_rig_load(rig, c, 500), 500);
    assert_true(image_rig_save(rig, f->a, 950));
    assert_int_equal(image_rig_load(rig, f->a, 950), 950);
    assert_int_equal(image_rig_load(rig, c, 500), 0);
    /* And what is pinned. */
    match = sl_images_find(rig->images, f->a, 950);
    sl_images_pin(rig->images, match.prefix);
    assert_int_equal(rig->n_notes, 0);
    assert_false(image_rig_save(rig, c, 500));
    assert_int_equal(rig->n_notes, 1);
    assert_non_null(strstr(rig->note, "no room"));
    assert_int_equal(image_rig_load(rig, f->a, 950), 950);
    sl_images_unpin(rig->images, match.prefix);
    assert_true(image_rig_save(rig, c, 500));
    assert_int_equal(image_rig_load(rig, f->a, 950), 500);
    /* What is larger than the limit takes nothing else with it. */
    assert_false(image_rig_save(rig, f->b, 8100));
    assert_int_equal(image_rig_load(rig, c, 500), 500);
    assert_int_equal(image_rig_file_count(rig), 2);
}

/* ---- other processes, other threads ------------------------------------------------------------
 */

static void test_one_process_at_a_time(void **state)
{
    struct fixture *f = *state;
    struct sl_images *second;
    struct sl_err err;
    int status;
    pid_t child;

    assert_int_equal(sl_images_open(&second, &f->rig.options, &err), -EBUSY);
    assert_non_null(strstr(err.message, "another process"));
    child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(sl_images_open(&second, &f->rig.options, NULL) == -EBUSY ? 7 : 8);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    reopen(f);
}

/* A writer that counts, and notes whether it wrote while it should have given way. */
struct watched_writer {
    struct sl_file_writer writer; /* first */
    struct sl_file_writer_ops ops;
    atomic_uint n_writes, n_wrong;
    atomic_uint n_ahead;
};

static int write_watched(struct sl_file_writer *writer, int file, uint64_t offset_bytes,
                         const void *data, uint64_t size_bytes)
{
    struct watched_writer *w = (struct watched_writer *)(void *)writer;

    w->n_wrong += w->n_ahead > 0;
    w->n_writes++;
    w->n_ahead = w->n_writes % 2; /* somebody comes at every second piece */
    return sl_file_writer_private()->ops->write(writer, file, offset_bytes, data, size_bytes);
}

static void test_writing_gives_way(void **state)
{
    struct fixture *f = *state;
    struct image_rig *rig = &f->rig;
    struct watched_writer watched = {.ops = *sl_file_writer_private()->ops};
    struct sl_images_piece piece = {.tokens = f->a,
                                    .end_token = SL_IMAGE_TOKENS,
                                    .entries_bytes = UINT64_C(3) << 20,
                                    .mark_bytes = IMAGE_RIG_MARK_BYTES};

    watched.writer.ops = &watched.ops;
    watched.ops.write = write_watched;
    watched.n_ahead = 1;
    rig->options.writer = &watched.writer;
    rig->options.n_ahead = &watched.n_ahead;
    rig->options.entries_bytes_max = piece.entries_bytes;
    reopen(f);
    assert_int_equal(sl_images_begin(rig->images, &piece), 0);
    memset(piece.entries, 1, piece.entries_bytes);
    memset(piece.mark, 2, piece.mark_bytes);
    sl_images_commit(rig->images);
    for (int i = 0; i < 50; i++) {
        assert_true(sl_images_is_busy(rig->images));
        sched_yield();
    }
    assert_int_equal(watched.n_writes, 0);
    while (sl_images_is_busy(rig->images)) { /* whoever came is gone again */
        watched.n_ahead = 0;
        sched_yield();
    }
    assert_true(watched.n_writes >= 6);
    assert_int_equal(watched.n_wrong, 0);

    /* Whoever waits for it does not wait for reads that he would have to take in himself. */
    piece.tokens = f->b;
    watched.n_ahead = 1;
    assert_int_equal(sl_images_begin(rig->images, &piece), 0);
    memset(piece.entries, 1, piece.entries_bytes);
    memset(piece.mark, 2, piece.mark_bytes);
    sl_images_commit(rig->images);
    sl_images_wait(rig->images);
    assert_false(sl_images_is_busy(rig->images));
    assert_int_equal(rig->n_notes, 0);
    image_rig_close(rig);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_prefixes_are_found),
        TEST(test_what_is_shared_is_stored_once),
        TEST(test_long_sequences_are_cut),
        TEST(test_few_entries_are_stored_again),
        TEST(test_long_chains),
        TEST(test_nobody_else_is_served),
        TEST(test_only_the_owner_can_read),
        TEST(test_flipped_bits),
        TEST(test_sizes_are_checked),
        TEST(test_tokens_are_compared),
        TEST(test_files_that_do_not_belong),
        TEST(test_orphans_are_dropped),
        TEST(test_other_versions),
        TEST(test_failing_reads),
        TEST(test_reads_that_never_come),
        TEST(test_oldest_goes_first),
        TEST(test_what_is_needed_stays),
        TEST(test_one_process_at_a_time),
        TEST(test_writing_gives_way),
    };

    return cmocka_run_group_tests_name("images", tests, NULL, NULL);
}
