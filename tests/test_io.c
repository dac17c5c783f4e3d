/* I/O back ends: reads end as pread() would, on every back end, with and without O_DIRECT. The same
 * reads of random files, as many at once as a back end takes, are run on each and compared with the
 * files' bytes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/base/clock.h"
#include "storage/io/io.h"
#include "tests/fixture_checkpoint.h"
#include "tests/io_fault.h"

#define BLOCK 4096u
#define N_FILES 3u
#define READS_MAX 24u
#define READ_BLOCKS_MAX 9u

static const uint64_t file_bytes[N_FILES] = {100 * BLOCK, 37 * BLOCK + 1234, 5};

struct fixture {
    char folder[FIXTURE_PATH_BYTES];
    char names[N_FILES][FIXTURE_PATH_BYTES + 8];
    const char *paths[N_FILES];
    char pipe[FIXTURE_PATH_BYTES + 8];
    uint8_t *data[N_FILES];
    uint8_t *memory; /* READS_MAX buffers */
};

/* set_up() has threads for both where io_uring is not to be had. */
static sl_io_open_fn *backends[] = {sl_io_uring_open, sl_io_threads_open};

static void skip_without_uring(void)
{
    if (backends[0] != sl_io_uring_open)
        skip();
}

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    uint64_t random = 1;

    assert_non_null(f);
    fixture_folder_create(f->folder);
    for (uint32_t i = 0; i < N_FILES; i++) {
        FILE *stream;

        snprintf(f->names[i], sizeof(f->names[i]), "%s/file%u", f->folder, i);
        f->paths[i] = f->names[i];
        f->data[i] = malloc(file_bytes[i]);
        assert_non_null(f->data[i]);
        for (uint64_t k = 0; k < file_bytes[i]; k++)
            f->data[i][k] = (uint8_t)io_fault_random(&random);
        stream = fopen(f->paths[i], "wb");
        assert_non_null(stream);
        assert_int_equal(fwrite(f->data[i], 1, file_bytes[i], stream), file_bytes[i]);
        assert_int_equal(fclose(stream), 0);
    }
    backends[0] = sl_io_choose(NULL);
    snprintf(f->pipe, sizeof(f->pipe), "%s/pipe", f->folder);
    assert_int_equal(mkfifo(f->pipe, 0600), 0);
    assert_int_equal(
        posix_memalign((void **)&f->memory, BLOCK, (size_t)READS_MAX * READ_BLOCKS_MAX * BLOCK), 0);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    fixture_folder_remove(f->folder);
    for (uint32_t i = 0; i < N_FILES; i++)
        free(f->data[i]);
    free(f->memory);
    free(f);
    return 0;
}

#define N_BACKENDS 4u /* both, and both behind the fault wrapper */

static struct sl_io *open_backend(uint32_t backend, const char *const *paths, uint32_t n_files)
{
    static const struct io_fault_plan reorder = {.seed = 3, .shuffle = true};
    struct sl_io *io;

    assert_int_equal(backends[backend % 2](&io, paths, n_files, READS_MAX, NULL), 0);
    if (backend >= 2) {
        io = io_fault_wrap(io);
        io_fault_set(io, &reorder);
    }
    return io;
}

static void check_result(const struct fixture *f, const struct sl_io_read *read, int32_t result)
{
    uint64_t size = file_bytes[read->file_index], expected = 0;

    if (read->offset_bytes < size)
        expected = size - read->offset_bytes;
    if (expected > read->size_bytes)
        expected = read->size_bytes;
    assert_int_equal(result, expected);
    if (expected)
        assert_memory_equal(read->dst, f->data[read->file_index] + read->offset_bytes, expected);
}

/* Keeps up to READS_MAX random reads out, until 500 have come back. */
static void test_random_reads(void **state)
{
    struct fixture *f = *state;

    for (uint32_t backend = 0; backend < N_BACKENDS; backend++) {
        struct sl_io *io = open_backend(backend, f->paths, N_FILES);
        struct sl_io_read reads[READS_MAX], batch[READS_MAX];
        bool out[READS_MAX] = {false};
        uint32_t n_out = 0, n_done = 0;
        uint64_t random = backend;

        while (n_done < 500 || n_out > 0) {
            struct sl_io_completion completions[7];
            uint32_t n = 0;

            for (uint32_t i = 0; i < READS_MAX && n_done < 500; i++) {
                if (out[i] || io_fault_random(&random) % 4 == 0)
                    continue;
                reads[i] = (struct sl_io_read){
                    .offset_bytes = io_fault_random(&random) % 110 * BLOCK,
                    .size_bytes =
                        (uint32_t)(1 + io_fault_random(&random) % READ_BLOCKS_MAX) * BLOCK,
                    .dst = f->memory + (size_t)i * READ_BLOCKS_MAX * BLOCK,
                    .file_index = (uint32_t)(io_fault_random(&random) % N_FILES),
                    .tag = i,
                };
                out[i] = true;
                batch[n++] = reads[i];
            }
            io->ops->submit(io, batch, n);
            n_out += n;
            n = io->ops->reap(io, io_fault_random(&random) % 3 ? SL_IO_FOREVER : 0, completions, 7);
            for (uint32_t i = 0; i < n; i++) {
                assert_true(completions[i].tag < READS_MAX && out[completions[i].tag]);
                out[completions[i].tag] = false;
                check_result(f, &reads[completions[i].tag], completions[i].result);
            }
            n_out -= n;
            n_done += n;
        }
        assert_int_equal(io->ops->reap(io, SL_IO_FOREVER, NULL, 0), 0);
        io->ops->close(io);
    }
}

static void test_waiting_brings_at_least_one(void **state)
{
    struct fixture *f = *state;

    for (uint32_t backend = 0; backend < N_BACKENDS; backend++) {
        struct sl_io *io = open_backend(backend, f->paths, N_FILES);
        struct sl_io_completion completion;

        for (uint64_t i = 0; i < READS_MAX; i++) {
            struct sl_io_read read = {
                .offset_bytes = i * BLOCK, .size_bytes = BLOCK, .dst = f->memory + i * BLOCK};

            io->ops->submit(io, &read, 1);
        }
        for (uint32_t i = 0; i < READS_MAX; i++)
            assert_int_equal(io->ops->reap(io, SL_IO_FOREVER, &completion, 1), 1);
        assert_memory_equal(f->memory, f->data[0], READS_MAX * BLOCK);
        assert_int_equal(io->ops->reap(io, SL_IO_FOREVER, &completion, 1), 0);
        io->ops->close(io);
    }
}

/* There is no memory where the read is to go. */
static void test_errors_are_errno(void **state)
{
    struct fixture *f = *state;

    for (uint32_t backend = 0; backend < N_BACKENDS; backend++) {
        struct sl_io *io = open_backend(backend, f->paths, 1);
        struct sl_io_read read = {.size_bytes = BLOCK, .dst = (void *)(uintptr_t)BLOCK};
        struct sl_io_completion completion;

        io->ops->submit(io, &read, 1);
        assert_int_equal(io->ops->reap(io, SL_IO_FOREVER, &completion, 1), 1);
        assert_int_equal(completion.result, -EFAULT);
        io->ops->close(io);
    }
}

/* Opening anything but a file would wait, or reading it would. */
static void test_only_regular_files(void **state)
{
    struct fixture *f = *state;
    const char *const names[] = {f->pipe, f->folder, "/dev/zero"};
    struct sl_err err;
    struct sl_io *io;

    for (uint32_t i = 0; i < 3; i++) {
        for (uint32_t backend = 0; backend < 2; backend++) {
            assert_int_equal(backends[backend](&io, &names[i], 1, READS_MAX, &err), -SL_EFORMAT);
            assert_non_null(strstr(err.message, names[i]));
        }
    }
}

static void test_missing_file_is_named(void **state)
{
    struct fixture *f = *state;
    const char *paths[] = {f->paths[0], "/nonexistent/shard"};
    struct sl_err err;
    struct sl_io *io;

    for (uint32_t backend = 0; backend < 2; backend++) {
        assert_int_equal(backends[backend](&io, paths, 2, READS_MAX, &err), -ENOENT);
        assert_non_null(strstr(err.message, "/nonexistent/shard"));
    }
}

/* procfs refuses O_DIRECT everywhere; what a temporary folder does depends on where it is. */
static void test_direct_where_it_can_be(void **state)
{
    struct fixture *f = *state;
    const char *proc = "/proc/version";
    char expected[BLOCK] = "";
    FILE *stream = fopen(proc, "rb");
    size_t length;

    assert_non_null(stream);
    length = fread(expected, 1, sizeof(expected), stream);
    fclose(stream);
    for (uint32_t backend = 0; backend < N_BACKENDS; backend++) {
        struct sl_io *io = open_backend(backend, &proc, 1);
        struct sl_io_read read = {.size_bytes = BLOCK, .dst = f->memory};
        struct sl_io_completion completion;

        assert_false(io->direct);
        io->ops->submit(io, &read, 1);
        assert_int_equal(io->ops->reap(io, SL_IO_FOREVER, &completion, 1), 1);
        assert_int_equal(completion.result, length);
        assert_memory_equal(f->memory, expected, length);
        io->ops->close(io);

        io = open_backend(backend, f->paths, N_FILES);
        for (uint32_t i = 0; i < N_FILES; i++)
            assert_int_equal(!!(fcntl(io->files[i].fd, F_GETFL) & O_DIRECT), io->direct);
        io->ops->close(io);
    }
}

/* Reads into attached memory, out of it, and across its edges are the same to those who ask. */
static void test_attached_memory(void **state)
{
    struct fixture *f = *state;
    const struct {
        uint32_t first, n;
    } parts[] = {{1, READS_MAX - 2}, {0, READS_MAX}, {3, 1}, {0, 0}};

    skip_without_uring();
    for (uint32_t i = 0; i < 4; i++) {
        struct sl_io *io = open_backend(0, f->paths, N_FILES);
        struct sl_io_completion completion;

        assert_int_equal(io->ops->attach(io, f->memory, READS_MAX * BLOCK, READS_MAX * BLOCK), 0);
        assert_int_equal(io->ops->hold(io, 0, true), 0);
        /* In parts of three blocks, which some reads reach out of; each second one is held, and
         * one is let go of again. */
        assert_int_equal(
            io->ops->attach(io, f->memory + parts[i].first * BLOCK, parts[i].n * BLOCK, 3 * BLOCK),
            0);
        for (uint32_t k = 0; k < (parts[i].n + 2) / 3; k += 2)
            assert_int_equal(io->ops->hold(io, k, true), 0);
        if (parts[i].n > 0)
            assert_int_equal(io->ops->hold(io, 0, false), 0);
        memset(f->memory, 0, READS_MAX * BLOCK);
        for (uint64_t k = 0; k < READS_MAX; k += 2) {
            struct sl_io_read read = {
                .offset_bytes = k * BLOCK, .size_bytes = 2 * BLOCK, .dst = f->memory + k * BLOCK};

            io->ops->submit(io, &read, 1);
        }
        for (uint32_t k = 0; k < READS_MAX; k += 2) {
            assert_int_equal(io->ops->reap(io, SL_IO_FOREVER, &completion, 1), 1);
            assert_int_equal(completion.result, 2 * BLOCK);
        }
        assert_memory_equal(f->memory, f->data[0], READS_MAX * BLOCK);
        io->ops->close(io);
    }
}

/* As an ordinary user with little memory to lock: nothing is attached, and all works. */
static int child_without_locked_memory(struct fixture *f)
{
    const struct rlimit limit = {16 * BLOCK, 16 * BLOCK};
    const size_t size_bytes = (size_t)READS_MAX * READ_BLOCKS_MAX * BLOCK;
    struct sl_io_read read = {.size_bytes = 2 * BLOCK, .dst = f->memory};
    struct sl_io_completion completion;
    struct sl_err err;
    struct sl_io *io;

    if (setrlimit(RLIMIT_MEMLOCK, &limit) < 0 || (geteuid() == 0 && setuid(65534) < 0))
        return 77;
    if (sl_io_uring_open(&io, f->paths, 1, 4, &err) < 0)
        return err.code == -EACCES ? 77 : 1; /* another user's folder */
    if (io->ops->attach(io, f->memory, size_bytes, size_bytes) != 0 ||
        io->ops->hold(io, 0, true) != -ENOMEM)
        return 2;
    io->ops->submit(io, &read, 1);
    if (io->ops->reap(io, SL_IO_FOREVER, &completion, 1) != 1 ||
        memcmp(f->memory, f->data[0], 2 * BLOCK) != 0)
        return 3;
    io->ops->close(io);
    return 0;
}

static void test_without_locked_memory(void **state)
{
    struct fixture *f = *state;
    int status;
    pid_t child;

    skip_without_uring();
    assert_int_equal(chmod(f->folder, 0755), 0); /* for the user that the child becomes */
    child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(child_without_locked_memory(f));
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* Reads of a pipe wait until somebody writes to it, as reads of a drive that does not answer do.
 * Back ends take regular files alone, so a pipe passes for one while it is opened. Later pread(),
 * which knows no pipes, reads it all the same. */
static bool pipes_pass;

int fstat(int fd, struct stat *status)
{
    int rc = fstatat(fd, "", status, AT_EMPTY_PATH);

    if (rc == 0 && pipes_pass && S_ISFIFO(status->st_mode))
        status->st_mode = S_IFREG;
    return rc;
}

ssize_t pread(int fd, void *dst, size_t size_bytes, off_t offset_bytes)
{
    ssize_t got = syscall(SYS_pread64, fd, dst, size_bytes, offset_bytes);

    return got < 0 && errno == ESPIPE && !pipes_pass ? read(fd, dst, size_bytes) : got;
}

/* A back end whose first file is the pipe, and an end of it to write to. */
static struct sl_io *open_with_pipe(const struct fixture *f, uint32_t backend, int *ret_end)
{
    const char *paths[] = {f->pipe, f->paths[0]};
    struct sl_io *io;

    *ret_end = open(f->pipe, O_RDWR | O_CLOEXEC);
    assert_true(*ret_end >= 0);
    pipes_pass = true;
    io = open_backend(backend, paths, 2);
    pipes_pass = false;
    return io;
}

/* A wait that has a limit ends, also where nothing comes. */
static void test_waiting_has_a_limit(void **state)
{
    struct fixture *f = *state;

    for (uint32_t backend = 0; backend < 2; backend++) {
        struct sl_io_read read = {.size_bytes = BLOCK, .dst = f->memory};
        struct sl_io_completion completion;
        uint64_t start_ns = sl_clock_ns();
        int end;
        struct sl_io *io = open_with_pipe(f, backend, &end);

        assert_int_equal(io->ops->reap(io, 1000000000, &completion, 1), 0); /* nothing is out */
        io->ops->submit(io, &read, 1);
        assert_int_equal(io->ops->reap(io, 0, &completion, 1), 0);
        assert_int_equal(io->ops->reap(io, 2000000, &completion, 1), 0);
        assert_true(sl_clock_ns() - start_ns < 1000000000);
        assert_int_equal(write(end, "here", 4), 4);
        assert_int_equal(io->ops->reap(io, SL_IO_FOREVER, &completion, 1), 1);
        assert_int_equal(completion.result, 4);
        io->ops->close(io);
        close(end);
    }
}

/* A read that nobody answers does not keep those after it waiting. */
static void test_stuck_read_holds_up_no_other(void **state)
{
    struct fixture *f = *state;

    for (uint32_t backend = 0; backend < 2; backend++) {
        struct sl_io_read read = {.size_bytes = BLOCK, .dst = f->memory};
        struct sl_io_completion completion;
        int end;
        struct sl_io *io = open_with_pipe(f, backend, &end);

        io->ops->submit(io, &read, 1);
        for (uint64_t i = 1; i < READS_MAX; i++) {
            read = (struct sl_io_read){.offset_bytes = i * BLOCK,
                                       .size_bytes = BLOCK,
                                       .dst = f->memory + i * BLOCK,
                                       .file_index = 1,
                                       .tag = i};
            io->ops->submit(io, &read, 1);
        }
        for (uint64_t i = 1; i < READS_MAX; i++) {
            assert_int_equal(io->ops->reap(io, SL_IO_FOREVER, &completion, 1), 1);
            assert_true(completion.tag != 0);
            assert_int_equal(completion.result, BLOCK);
        }
        assert_int_equal(io->ops->reap(io, 1000000, &completion, 1), 0);
        assert_int_equal(write(end, "x", 1), 1);
        assert_int_equal(io->ops->reap(io, SL_IO_FOREVER, &completion, 1), 1);
        assert_int_equal(completion.result, 1);
        io->ops->close(io);
        close(end);
    }
}

/* Waits until a byte that a drive writes is there. Nobody tells of it, so that ThreadSanitizer
 * would take it for a race. */
__attribute__((no_sanitize("thread"))) static void await_byte(const volatile uint8_t *at,
                                                              uint8_t value)
{
    while (*at != value)
        ;
}

/* Closing leaves a read that nobody answers to the drive, with all that it needs. */
static void test_close_does_not_wait(void **state)
{
    static uint8_t memory[2][BLOCK] __attribute__((aligned(BLOCK)));
    static struct sl_io *left[2]; /* so that what was left on purpose is no leak */
    struct fixture *f = *state;

    for (uint32_t backend = 0; backend < 2; backend++) {
        struct sl_io_read read = {.size_bytes = BLOCK, .dst = memory[backend]};
        struct sl_io_completion completion;
        int end;

        left[backend] = open_with_pipe(f, backend, &end);
        left[backend]->ops->submit(left[backend], &read, 1);
        assert_int_equal(left[backend]->ops->reap(left[backend], 1000000, &completion, 1), 0);
        left[backend]->ops->close(left[backend]);
        assert_int_equal(write(end, "late", 4), 4);
        await_byte(&memory[backend][3], 'e'); /* the read still ends, in memory that is there */
    }
}

/* Files of one device share a drive. */
static void test_drives(void **state)
{
    struct fixture *f = *state;
    const char *paths[] = {f->paths[0], "/proc/version", f->paths[1], "/proc/meminfo"};

    for (uint32_t backend = 0; backend < 2; backend++) {
        struct sl_io *io = open_backend(backend, paths, 4);

        assert_int_equal(io->n_drives, 2);
        for (uint32_t i = 0; i < 4; i++)
            assert_int_equal(io->files[i].drive_index, i % 2);
        assert_int_equal(io->reads_max, 2 * READS_MAX);
        io->ops->close(io);
        assert_int_equal(backends[backend](&io, paths, 4, 5000, NULL), 0);
        assert_int_equal(io->reads_max, backends[backend] == sl_io_uring_open ? 4096 : 64);
        io->ops->close(io);
    }
}

/* In a container that filters the system call `number`, which sets a ring up or uses it. */
static int child_without_uring(const char *const *paths, uint32_t number)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof(filter) / sizeof(filter[0]), .filter = filter};
    struct sl_err err;
    struct sl_io *io;

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
        return 77; /* no such filters here */
    if (sl_io_uring_open(&io, paths, N_FILES, READS_MAX, &err) != -EPERM)
        return 1;
    if (!strstr(err.message, "--io threads"))
        return 2;
    return sl_io_choose(&err) == sl_io_threads_open && err.code == -EPERM ? 0 : 3;
}

static void test_without_uring_it_says_what_to_do(void **state)
{
    static const uint32_t numbers[] = {__NR_io_uring_setup, __NR_io_uring_enter};
    struct fixture *f = *state;

    for (uint32_t i = 0; i < 2; i++) {
        int status;
        pid_t child = fork();

        assert_true(child >= 0);
        if (child == 0)
            _exit(child_without_uring(f->paths, numbers[i]));
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFEXITED(status));
        if (WEXITSTATUS(status) == 77)
            skip();
        assert_int_equal(WEXITSTATUS(status), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_reads),
        cmocka_unit_test(test_waiting_brings_at_least_one),
        cmocka_unit_test(test_errors_are_errno),
        cmocka_unit_test(test_only_regular_files),
        cmocka_unit_test(test_missing_file_is_named),
        cmocka_unit_test(test_direct_where_it_can_be),
        cmocka_unit_test(test_without_uring_it_says_what_to_do),
        cmocka_unit_test(test_attached_memory),
        cmocka_unit_test(test_without_locked_memory),
        cmocka_unit_test(test_waiting_has_a_limit),
        cmocka_unit_test(test_stuck_read_holds_up_no_other),
        cmocka_unit_test(test_close_does_not_wait),
        cmocka_unit_test(test_drives),
    };

    return cmocka_run_group_tests_name("io", tests, set_up, tear_down);
}
