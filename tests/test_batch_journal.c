/* The journal of batches and their files of results, together as the runner uses them: lines are
 * synced, then the journal says that they are there. The power goes at each call to the disk,
 * LMDB's own included: what was promised is there, no line is torn or there twice, and the next run
 * ends in the same bytes. Each call fails once, with the disk full or otherwise: one line, and it
 * goes on.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/base/file.h"
#include "daemon/batch/journal.h"
#include "daemon/batch/results_file.h"
#include "tests/crash_writer.h"
#include "tests/fixture_checkpoint.h"
#include "tests/io_fault.h"

#define ITEMS 8u
#define LINE_BYTES_MAX 6000u
#define SEEDS 4u

/* ---- a disk that loses power -------------------------------------------------------------------
 * In a process of its own, which calls are counted in. What was written since a file was synced is
 * torn, sector by sector, when the power goes. LMDB writes its header pages to a descriptor that
 * syncs each write.
 */

#define SECTOR_BYTES 512u
#define WRITES_MAX 512

static struct {
    uint64_t nth, count, random; /* nth 0: the power stays */
    bool is_counting;
    int n_writes;
    struct {
        int fd;
        ino_t inode;
        off_t at;
        size_t size;
        uint8_t *old;
    } writes[WRITES_MAX];
} disk;

static ino_t inode_of(int fd)
{
    struct stat status;

    return fstat(fd, &status) == 0 && S_ISREG(status.st_mode) ? status.st_ino : 0;
}

static void tear_all(void)
{
    while (disk.n_writes-- > 0) {
        const uint64_t lost_percent = io_fault_random(&disk.random) % 3 * 50;
        const size_t size = disk.writes[disk.n_writes].size;

        for (size_t at = 0; at < size; at += SECTOR_BYTES)
            if (io_fault_random(&disk.random) % 100 < lost_percent)
                syscall(SYS_pwrite64, disk.writes[disk.n_writes].fd,
                        disk.writes[disk.n_writes].old + at,
                        size - at < SECTOR_BYTES ? size - at : SECTOR_BYTES,
                        disk.writes[disk.n_writes].at + (off_t)at);
    }
    _exit(0);
}

/* A descriptor that cannot be written to at will, or read from, is opened again by its name. */
static void remember(int fd, off_t at, size_t size)
{
    char path[64];
    uint8_t *old = calloc(1, size);

    if (!old || disk.n_writes == WRITES_MAX)
        abort();
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    disk.writes[disk.n_writes].fd = open(path, O_RDWR);
    disk.writes[disk.n_writes].inode = inode_of(fd);
    disk.writes[disk.n_writes].at = at;
    disk.writes[disk.n_writes].size = size;
    disk.writes[disk.n_writes].old = old;
    syscall(SYS_pread64, disk.writes[disk.n_writes].fd, old, size, at);
    disk.n_writes++;
}

static void forget(ino_t inode)
{
    int kept = 0;

    for (int i = 0; i < disk.n_writes; i++) {
        if (disk.writes[i].inode == inode) {
            close(disk.writes[i].fd);
            free(disk.writes[i].old);
        } else {
            disk.writes[kept++] = disk.writes[i];
        }
    }
    disk.n_writes = kept;
}

/* Before a call, whose write may have got to the disk by half when the power goes in it. */
static void before_write(int fd, off_t at, size_t size)
{
    if (disk.is_counting && inode_of(fd) != 0) {
        disk.count++;
        remember(fd, at, size);
    }
}

static void after_write(int fd)
{
    if (!disk.is_counting || inode_of(fd) == 0)
        return;
    if (disk.count == disk.nth)
        tear_all();
    if (fcntl(fd, F_GETFL) & O_DSYNC)
        forget(inode_of(fd));
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    ssize_t n;

    before_write(fd, at, size);
    n = syscall(SYS_pwrite64, fd, data, size, at);
    after_write(fd);
    return n;
}

ssize_t writev(int fd, const struct iovec *parts, int n_parts)
{
    const off_t at = lseek(fd, 0, SEEK_CUR);
    size_t size = 0;
    ssize_t n;

    for (int i = 0; i < n_parts; i++)
        size += parts[i].iov_len;
    before_write(fd, at, size);
    n = syscall(SYS_writev, fd, parts, n_parts);
    after_write(fd);
    return n;
}

int fdatasync(int fd)
{
    if (disk.is_counting && ++disk.count == disk.nth)
        tear_all();
    forget(inode_of(fd));
    return 0; /* the real disk keeps its power */
}

/* ---- work
 * ----------------------------------------------------------------------------------------
 */

struct fixture {
    char folder[FIXTURE_PATH_BYTES];
    char journal[FIXTURE_PATH_BYTES + 16], results[FIXTURE_PATH_BYTES + 16];
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    fixture_folder_create(f->folder);
    snprintf(f->journal, sizeof(f->journal), "%s/journal", f->folder);
    snprintf(f->results, sizeof(f->results), "%s/out.jsonl", f->folder);
    *state = f;
    return 0;
}

static void clear(const struct fixture *f)
{
    char command[2 * FIXTURE_PATH_BYTES + 64];

    snprintf(command, sizeof(command), "rm -rf %s %s", f->journal, f->results);
    assert_int_equal(system(command), 0);
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    clear(f);
    fixture_folder_remove(f->folder);
    free(f);
    return 0;
}

static size_t make_line(uint32_t item, char line[LINE_BYTES_MAX])
{
    const size_t length = 20 + (item * 1733u) % (LINE_BYTES_MAX - 30);

    for (size_t i = 0; i < length; i++)
        line[i] = (char)('a' + (item + i / 7) % 26);
    line[length] = '\n';
    return length + 1;
}

static uint64_t number_at(const struct sl_journal *journal, const char *key)
{
    const uint8_t *value;
    uint64_t number = 0;
    size_t size;

    if (sl_catalog_entries_get(sl_journal_entries(journal), key, &value, &size)) {
        assert_int_equal(size, sizeof(number));
        memcpy(&number, value, sizeof(number));
    }
    return number;
}

/* An item has made something, which goes when the next one has ended; large enough to be on pages
 * of its own now and then. */
static void note_item(struct sl_journal_changes *changes, uint64_t item, uint64_t kept_bytes)
{
    static const uint8_t made[9000] = {1, 2, 3};
    const uint64_t n = item + 1;
    char key[32];

    snprintf(key, sizeof(key), "made/%08x", (unsigned)item);
    sl_journal_put(changes, key, made, item % 3 * 4000 + 100);
    if (item > 0) {
        snprintf(key, sizeof(key), "made/%08x", (unsigned)item - 1);
        sl_journal_remove(changes, key);
    }
    snprintf(key, sizeof(key), "item/%08x", (unsigned)item);
    sl_journal_put(changes, key, "d", 1);
    sl_journal_put(changes, "n", &n, sizeof(n));
    sl_journal_put(changes, "kept", &kept_bytes, sizeof(kept_bytes));
}

static int do_item(struct sl_journal *journal, struct sl_results_file *results, uint64_t item,
                   struct sl_err *err)
{
    struct sl_journal_changes changes = {0};
    char line[LINE_BYTES_MAX];
    bool was_restored;
    int rc;

    if (results->lines.length == 0)
        sl_bytes_add(&results->lines, line, make_line((uint32_t)item, line));
    rc = sl_results_write(results, &was_restored, err);
    if (rc == 0) {
        note_item(&changes, item, results->kept_bytes + results->lines.length);
        rc = sl_journal_commit(journal, &changes, err);
    }
    sl_journal_changes_fini(&changes);
    if (rc == 0)
        sl_results_keep(results);
    return rc;
}

/* Goes on where the journal says, and promises each item's end to `promises`; a failure is tried
 * again up to n_retries times. */
static int work(const struct fixture *f, struct sl_file_writer *writer, int promises,
                uint32_t n_retries, struct sl_err *err)
{
    struct sl_results_file results = {.writer = NULL};
    struct sl_journal *journal = NULL;
    uint64_t item = 0;
    int rc;

    do {
        rc = sl_journal_open(&journal, f->journal, writer, err);
    } while (rc < 0 && n_retries-- > 0);
    if (rc < 0)
        return rc;
    item = number_at(journal, "n");
    sl_results_init(&results, writer, f->results, number_at(journal, "kept"));
    sl_journal_forget(journal);
    while (rc == 0 && item < ITEMS) {
        rc = do_item(journal, &results, item, err);
        if (rc < 0 && n_retries > 0) {
            assert_true(err->message[0] != '\0');
            n_retries--;
            rc = 0;
        } else if (rc == 0) {
            const uint8_t byte = (uint8_t)++item;

            if (promises >= 0)
                assert_int_equal(write(promises, &byte, 1), 1);
        }
    }
    sl_results_fini(&results);
    sl_journal_close(journal);
    return rc;
}

/* Whatever the journal says is in the results, and at least what was promised. */
static void check_kept(const struct fixture *f, uint64_t n_promised)
{
    char expected[LINE_BYTES_MAX], key[32], *text = NULL;
    struct sl_journal *journal;
    size_t length = 0, at = 0;
    const uint8_t *value;
    struct sl_err err;
    uint64_t n;

    if (sl_journal_open(&journal, f->journal, sl_file_writer(), &err) < 0)
        fail_msg("%s", err.message);
    n = number_at(journal, "n");
    assert_true(n >= n_promised);
    if (n > 0)
        assert_int_equal(sl_file_read_all(f->results, UINT64_C(1) << 30, &text, &length, NULL), 0);
    for (uint32_t item = 0; item < n; item++) {
        const size_t line_length = make_line(item, expected);
        size_t size;

        assert_true(at + line_length <= length);
        assert_memory_equal(text + at, expected, line_length);
        at += line_length;
        snprintf(key, sizeof(key), "item/%08x", (unsigned)item);
        assert_true(sl_catalog_entries_get(sl_journal_entries(journal), key, &value, &size));
        snprintf(key, sizeof(key), "made/%08x", (unsigned)item);
        assert_int_equal(sl_catalog_entries_get(sl_journal_entries(journal), key, &value, &size),
                         item + 1 == n);
    }
    assert_int_equal(number_at(journal, "kept"), at);
    free(text);
    sl_journal_close(journal);
}

static void check_whole(const struct fixture *f)
{
    struct sl_err err;
    struct stat status;
    size_t length = 0;
    char line[LINE_BYTES_MAX];

    assert_int_equal(work(f, sl_file_writer(), -1, 0, &err), 0);
    check_kept(f, ITEMS);
    for (uint32_t item = 0; item < ITEMS; item++)
        length += make_line(item, line);
    assert_int_equal(stat(f->results, &status), 0);
    assert_int_equal(status.st_size, length);
}

/* ---- tests -------------------------------------------------------------------------------------
 */

static void test_names(void **state) /* ... of files, and cuts, are what is lost here */
{
    struct fixture *f = *state;
    uint32_t n_halfway = 0;
    bool cut = true;

    for (uint64_t nth = 1; cut; nth++)
        for (uint64_t seed = 0; seed < SEEDS; seed++) {
            struct crash_writer *writer = crash_writer_open(nth + 1000 * seed, nth, 0);
            uint8_t promised[ITEMS + 1];
            ssize_t n_promised;
            struct sl_err err;
            int ends[2];

            assert_int_equal(pipe(ends), 0);
            work(f, crash_writer_ops(writer), ends[1], 0, &err);
            cut = crash_writer_close(writer);
            close(ends[1]);
            n_promised = read(ends[0], promised, sizeof(promised));
            close(ends[0]);
            n_halfway += n_promised > 0 && n_promised < (ssize_t)ITEMS;
            check_kept(f, (uint64_t)n_promised);
            check_whole(f);
            clear(f);
        }
    assert_true(n_halfway > 20);
}

/* The work in a process of its own, in which the power goes at the nth call. Returns how many items
 * were promised; *ret_count is how many calls there were if it stayed. */
static uint64_t work_until(const struct fixture *f, uint64_t nth, uint64_t seed,
                           uint64_t *ret_count)
{
    uint8_t byte;
    uint64_t n = 0;
    struct sl_err err;
    int ends[2], status;
    pid_t child;

    assert_int_equal(pipe(ends), 0);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        int rc;

        disk.nth = nth;
        disk.random = nth + 1000 * seed;
        disk.is_counting = true;
        rc = work(f, sl_file_writer(), ends[1], 0, &err);
        disk.is_counting = false;
        _exit(rc < 0 ? 1 : 2);
    }
    close(ends[1]);
    while (read(ends[0], &byte, 1) == 1)
        n++;
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) != 1);
    *ret_count = WEXITSTATUS(status) == 2;
    return n;
}

static void test_power_cut_in_lmdb(void **state)
{
    struct fixture *f = *state;
    uint32_t n_halfway = 0;
    uint64_t is_over = 0, nth = 0;

    while (!is_over && ++nth > 0)
        for (uint64_t seed = 0; seed < SEEDS; seed++) {
            const uint64_t n_promised = work_until(f, nth, seed, &is_over);

            n_halfway += n_promised > 0 && n_promised < ITEMS;
            check_kept(f, n_promised);
            check_whole(f);
            clear(f);
        }
    assert_true(nth > 5 * ITEMS); /* LMDB's writes were seen */
    assert_true(n_halfway > 50);
}

static void test_each_call_fails(void **state)
{
    struct fixture *f = *state;
    struct crash_writer *writer = crash_writer_open(1, 0, 0);
    struct sl_err err = {0};
    uint64_t n_calls;

    assert_int_equal(work(f, crash_writer_ops(writer), -1, 0, &err), 0);
    n_calls = crash_writer_count(writer);
    crash_writer_close(writer);
    assert_true(n_calls > 2 * ITEMS);
    for (uint64_t nth = 1; nth <= n_calls; nth++) {
        clear(f);
        writer = crash_writer_open(nth, nth, nth % 2 ? -ENOSPC : -EIO);
        assert_int_equal(work(f, crash_writer_ops(writer), -1, 1, &err), 0);
        crash_writer_close(writer);
        check_kept(f, ITEMS);
        check_whole(f);
    }
}

static void test_refusals(void **state)
{
    struct fixture *f = *state;
    struct sl_journal *journal, *other;
    struct sl_results_file results;
    char path[FIXTURE_PATH_BYTES + 32];
    struct sl_journal_changes changes = {0};
    struct sl_err err;
    int fd;

    assert_int_equal(work(f, sl_file_writer(), -1, 0, &err), 0);
    assert_int_equal(sl_journal_open(&journal, f->journal, sl_file_writer(), &err), 0);
    assert_int_equal(sl_journal_open(&other, f->journal, sl_file_writer(), &err), -EBUSY);
    assert_non_null(strstr(err.message, "another process"));
    snprintf(path, sizeof(path), "%s/journal.mdb", f->journal);
    assert_int_equal(unlink(path), 0);
    sl_journal_put(&changes, "n", "x", 1);
    assert_int_equal(sl_journal_commit(journal, &changes, &err), -ESTALE);
    assert_non_null(strstr(err.message, "removed"));
    sl_journal_changes_fini(&changes);
    sl_journal_close(journal);

    sl_results_init(&results, sl_file_writer(), f->results, 1u << 20);
    assert_int_equal(sl_results_open(&results, &err), -SL_ECORRUPT);
    assert_non_null(strstr(err.message, "cut"));
    assert_int_equal(unlink(f->results), 0);
    assert_int_equal(sl_results_open(&results, &err), -ENOENT);
    assert_non_null(strstr(err.message, "gone"));
    sl_results_fini(&results);

    fd = open(path, O_WRONLY | O_CREAT, 0600);
    assert_int_equal(pwrite(fd, "no database", 11, 0), 11);
    close(fd);
    assert_int_equal(sl_journal_open(&journal, f->journal, sl_file_writer(), &err), -SL_ECORRUPT);
    assert_non_null(strstr(err.message, "damaged"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_names, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_power_cut_in_lmdb, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_each_call_fails, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_refusals, set_up, tear_down),
    };

    return cmocka_run_group_tests_name("batch_journal", tests, NULL, NULL);
}
