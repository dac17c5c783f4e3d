/* The watch over calls that do not return. What the system would tell is written to files, look by
 * look, about descriptors and paths of this process; a thread that waits for a file is found at the
 * look that it should be, and one that waits for anything else never. */
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
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/base/call_watch.h"
#include "core/base/pool.h"
#include "tests/fixture_checkpoint.h"

#define LOOKS 3u

struct fixture {
    char root[FIXTURE_PATH_BYTES];
    char tasks[FIXTURE_PATH_BYTES + 8], thread[FIXTURE_PATH_BYTES + 16];
    char file[FIXTURE_PATH_BYTES + 8];
    int fd, pipe[2];
    struct sl_call_watch *watch;
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    fixture_folder_create(f->root);
    snprintf(f->tasks, sizeof(f->tasks), "%s/tasks", f->root);
    snprintf(f->thread, sizeof(f->thread), "%s/77", f->tasks);
    snprintf(f->file, sizeof(f->file), "%s/file", f->root);
    assert_int_equal(mkdir(f->tasks, 0700), 0);
    assert_int_equal(mkdir(f->thread, 0700), 0);
    fixture_write_text(f->thread, "comm", "sluice\n");
    fixture_write_text(f->root, "file", "some text");
    f->fd = open(f->file, O_RDONLY | O_CLOEXEC);
    assert_true(f->fd >= 0);
    assert_int_equal(lseek(f->fd, 4, SEEK_SET), 4);
    assert_int_equal(pipe2(f->pipe, O_CLOEXEC), 0);
    f->watch = sl_call_watch_create();
    assert_non_null(f->watch);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    sl_call_watch_destroy(f->watch);
    close(f->fd);
    close(f->pipe[0]);
    close(f->pipe[1]);
    unlink(f->file);
    fixture_folder_remove(f->thread);
    fixture_folder_remove(f->tasks);
    fixture_folder_remove(f->root);
    free(f);
    return 0;
}

/* As /proc has it, of a thread in call `number`. */
static void put_call(const struct fixture *f, long number, uint64_t a, uint64_t b, uint64_t c,
                     uint64_t d)
{
    char line[256];

    snprintf(line, sizeof(line), "%ld 0x%llx 0x%llx 0x%llx 0x%llx 0x0 0x0 0x7ffe1000 0x7f0a2000\n",
             number, (unsigned long long)a, (unsigned long long)b, (unsigned long long)c,
             (unsigned long long)d);
    fixture_write_text(f->thread, "syscall", line);
}

static int look(const struct fixture *f, struct sl_err *err)
{
    return sl_call_watch_look(f->watch, f->tasks, LOOKS, 120, err);
}

/* The thread's call as it stands is found LOOKS looks after the first one. */
static void assert_found(const struct fixture *f, const char *message)
{
    struct sl_err err;

    for (uint32_t i = 0; i < LOOKS; i++)
        assert_int_equal(look(f, &err), 0);
    assert_int_equal(look(f, &err), -ETIMEDOUT);
    if (!strstr(err.message, message) || strchr(err.message, '\n'))
        fail_msg("\"%s\" lacks \"%s\"", err.message, message);
}

static void assert_never_found(const struct fixture *f)
{
    struct sl_err err;

    for (uint32_t i = 0; i < 3 * LOOKS; i++)
        assert_int_equal(look(f, &err), 0);
}

static void test_stuck_calls(void **state)
{
    struct fixture *f = *state;
    const uint64_t path = (uintptr_t)f->file, fd = (uint64_t)f->fd;
    char message[FIXTURE_PATH_BYTES + 128];
    struct stat status;

    assert_int_equal(fstat(f->fd, &status), 0);
    put_call(f, __NR_pread64, fd, 0x5000, 100, 123456);
    snprintf(message, sizeof(message),
             "%s: drive %u:%u: no answer for 120 s, reading at offset 123456", f->file,
             major(status.st_dev), minor(status.st_dev));
    assert_found(f, message);
    put_call(f, __NR_read, fd, 0x5000, 100, 0);
    assert_found(f, "no answer for 120 s, reading at offset 4");
    put_call(f, __NR_pwrite64, fd, 0x5000, 100, 8192);
    assert_found(f, "no answer for 120 s, writing at offset 8192");
    put_call(f, __NR_openat, (uint64_t)AT_FDCWD, path, 0, 0);
    snprintf(message, sizeof(message), "%s: no answer for 120 s, opening it", f->file);
    assert_found(f, message);
    put_call(f, __NR_statx, (uint64_t)AT_FDCWD, path, 0, 0);
    assert_found(f, "file: no answer for 120 s, looking it up");
    fixture_write_text(f->thread, "syscall", "-1 0x7ffe1000 0x7f0a2000\n");
    assert_found(f, "waiting for a page of memory");
}

static void test_what_may_wait(void **state)
{
    struct fixture *f = *state;
    const uint64_t fd = (uint64_t)f->fd;

    put_call(f, __NR_read, (uint64_t)f->pipe[0], 0x5000, 100, 0);
    assert_never_found(f);
    put_call(f, __NR_futex, 0x5000, 0, 0, 0);
    assert_never_found(f);
    put_call(f, __NR_io_uring_enter, fd, 0, 1, 1);
    assert_never_found(f);
    put_call(f, __NR_fdatasync, fd, 0, 0, 0);
    assert_never_found(f);
    put_call(f, __NR_openat, (uint64_t)AT_FDCWD, (uintptr_t)f->file, O_WRONLY | O_CREAT, 0);
    assert_never_found(f);      /* it may be a pipe */
    put_call(f, 0, 0, 0, 0, 0); /* io_uring's workers, which are no threads of ours */
    assert_never_found(f);
    fixture_write_text(f->thread, "syscall", "running\n");
    assert_never_found(f);
    fixture_write_text(f->thread, "syscall", "");
    assert_never_found(f);
    put_call(f, __NR_pread64, fd, 0x5000, 100, 0);
    fixture_write_text(f->thread, "comm", "sluice-io\n");
    assert_never_found(f);
    fixture_unlink(f->thread, "comm"); /* it ended meanwhile */
    assert_never_found(f);
    assert_int_equal(sl_call_watch_look(f->watch, "/nowhere", 0, 1, NULL), 0);
}

/* One call after the other is no long call, and neither is one of another thread. */
static void test_calls_that_return(void **state)
{
    struct fixture *f = *state;
    char other[FIXTURE_PATH_BYTES + 16];
    struct sl_err err;

    for (uint32_t i = 0; i < 3 * LOOKS; i++) {
        put_call(f, __NR_pread64, (uint64_t)f->fd, 0x5000, 100, i / LOOKS * 4096);
        assert_int_equal(look(f, &err), 0);
    }
    put_call(f, __NR_pread64, (uint64_t)f->fd, 0x5000, 100, 0);
    for (uint32_t i = 0; i < LOOKS; i++)
        assert_int_equal(look(f, &err), 0);
    snprintf(other, sizeof(other), "%s/78", f->tasks);
    assert_int_equal(rename(f->thread, other), 0);
    assert_int_equal(look(f, &err), 0);
    assert_int_equal(rename(other, f->thread), 0);
    assert_found(f, "offset 0");
}

/* Threads of this very process, which wait for work. */
static void test_this_process(void **state)
{
    struct fixture *f = *state;
    struct sl_pool *pool;

    assert_int_equal(sl_pool_create(&pool, 3, NULL), 0);
    for (uint32_t i = 0; i < 3 * LOOKS; i++)
        assert_int_equal(sl_call_watch_look(f->watch, SL_CALL_WATCH_FOLDER, LOOKS, 1, NULL), 0);
    sl_pool_destroy(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_stuck_calls, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_what_may_wait, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_calls_that_return, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_this_process, set_up, tear_down),
    };

    return cmocka_run_group_tests_name("call_watch", tests, NULL, NULL);
}
