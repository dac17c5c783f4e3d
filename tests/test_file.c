/* Files read as a whole. What is no regular file is refused at once, where a plain open() or read()
 * would wait for ever; inputs may be pipes, whose writers come when they like; and nothing is read
 * beyond its limit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/base/file.h"
#include "tests/fixture_checkpoint.h"

#define TEXT_BYTES 300000u /* more than a pipe holds */

struct fixture {
    char folder[FIXTURE_PATH_BYTES];
    char file[FIXTURE_PATH_BYTES + 8], pipe[FIXTURE_PATH_BYTES + 8];
    char socket[FIXTURE_PATH_BYTES + 8];
    char text[TEXT_BYTES];
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    FILE *stream;

    assert_non_null(f);
    fixture_folder_create(f->folder);
    snprintf(f->file, sizeof(f->file), "%s/file", f->folder);
    snprintf(f->pipe, sizeof(f->pipe), "%s/pipe", f->folder);
    snprintf(f->socket, sizeof(f->socket), "%s/socket", f->folder);
    for (uint32_t i = 0; i < TEXT_BYTES; i++)
        f->text[i] = (char)(i * 7 + i / 251);
    stream = fopen(f->file, "w");
    assert_non_null(stream);
    assert_int_equal(fwrite(f->text, 1, TEXT_BYTES, stream), TEXT_BYTES);
    assert_int_equal(fclose(stream), 0);
    assert_int_equal(mkfifo(f->pipe, 0600), 0);
    assert_int_equal(mknod(f->socket, S_IFSOCK | 0600, 0), 0);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    fixture_folder_remove(f->folder);
    free(f);
    return 0;
}

static void assert_is_text(const struct fixture *f, char *text, size_t length)
{
    assert_int_equal(length, TEXT_BYTES);
    assert_memory_equal(text, f->text, TEXT_BYTES);
    assert_int_equal(text[TEXT_BYTES], 0);
    free(text);
}

static void test_only_regular_files(void **state)
{
    struct fixture *f = *state;
    const char *const others[] = {f->pipe, f->socket, f->folder, "/dev/zero", "/dev/null"};
    struct sl_err err;
    size_t length;
    char *text;

    for (uint32_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        assert_int_equal(sl_file_read_all(others[i], TEXT_BYTES, &text, &length, &err),
                         -SL_EFORMAT);
        assert_non_null(strstr(err.message, others[i]));
        assert_non_null(strstr(err.message, "not a regular file"));
    }
    assert_int_equal(sl_file_read_all("/no/such/file", TEXT_BYTES, &text, &length, &err), -ENOENT);
    assert_int_equal(sl_file_read_all(f->file, TEXT_BYTES, &text, &length, &err), 0);
    assert_is_text(f, text, length);
}

static void test_limits(void **state)
{
    struct fixture *f = *state;
    struct sl_err err;
    size_t length;
    char *text;

    assert_int_equal(sl_file_read_all(f->file, TEXT_BYTES - 1, &text, &length, &err), -SL_EFORMAT);
    assert_non_null(strstr(err.message, "larger than"));
    assert_int_equal(sl_input_read_all("/dev/zero", 1 << 20, &text, &length, &err), -SL_EFORMAT);
    assert_non_null(strstr(err.message, "/dev/zero: larger than"));
    assert_int_equal(sl_input_read_all(f->file, TEXT_BYTES, &text, &length, &err), 0);
    assert_is_text(f, text, length);
    assert_int_equal(sl_input_read_all("/dev/null", 1, &text, &length, &err), 0);
    assert_int_equal(length, 0);
    free(text);
    assert_int_equal(sl_input_read_all(f->folder, 1, &text, &length, &err), -SL_EFORMAT);
}

/* Opens the pipe after its reader has, and writes in pieces. */
static void *write_to_pipe(void *context)
{
    const struct fixture *f = context;
    int fd;

    do /* until there is a reader, which must wait then, though nobody writes yet */
        fd = open(f->pipe, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    while (fd < 0 && errno == ENXIO);
    fcntl(fd, F_SETFL, 0);
    for (uint32_t at = 0; at < TEXT_BYTES; at += 10000) {
        if (write(fd, f->text + at, 10000) != 10000)
            return NULL;
    }
    close(fd);
    return NULL;
}

static void test_inputs_may_be_pipes(void **state)
{
    struct fixture *f = *state;
    pthread_t writer;
    size_t length;
    char *text;
    int stdin_fd = dup(STDIN_FILENO), fd;

    assert_int_equal(pthread_create(&writer, NULL, write_to_pipe, f), 0);
    assert_int_equal(sl_input_read_all(f->pipe, TEXT_BYTES, &text, &length, NULL), 0);
    pthread_join(writer, NULL);
    assert_is_text(f, text, length);

    fd = open(f->file, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0 && dup2(fd, STDIN_FILENO) == STDIN_FILENO);
    assert_int_equal(sl_input_read_all("-", TEXT_BYTES, &text, &length, NULL), 0);
    assert_is_text(f, text, length);
    assert_int_equal(fcntl(STDIN_FILENO, F_GETFL) & O_NONBLOCK, 0);
    dup2(stdin_fd, STDIN_FILENO);
    close(stdin_fd);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_only_regular_files),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_inputs_may_be_pipes),
    };

    return cmocka_run_group_tests_name("file", tests, set_up, tear_down);
}
