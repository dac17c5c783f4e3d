/* The file store keeps what it was given, whatever happens. The power is cut at each call to the
 * disk in turn, while files are written, adopted and removed: what was kept by then is there with
 * its bytes, and what is there is whole; adopting goes on where it was. Each call fails in turn,
 * once with the disk full: one line, and nothing half-written stays. Names that clients give lead
 * nowhere; lists go forwards and backwards from any file; what is damaged is told and left alone.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/base/file.h"
#include "core/base/size.h"
#include "daemon/files/file_store.h"
#include "tests/crash_writer.h"
#include "tests/fixture_checkpoint.h"

#define N_FILES 3u
#define ADOPTED N_FILES /* its place behind the others */
#define BYTES 3000u

struct fixture {
    char folder[FIXTURE_PATH_BYTES], files[FIXTURE_PATH_BYTES + 8], source[FIXTURE_PATH_BYTES + 8];
    struct sl_file_store *store;
    char ids[N_FILES + 1][SL_FILE_ID_BYTES]; /* "": was not kept */
    char adopted[SL_FILE_ID_BYTES];
    bool is_removed; /* the first one; it may have been */
    uint32_t n_notes;
};

static void shell(const char *format, const char *path)
{
    char command[FIXTURE_PATH_BYTES + 64];

    snprintf(command, sizeof(command), format, path);
    assert_int_equal(system(command), 0);
}

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    fixture_folder_create(f->folder);
    snprintf(f->files, sizeof(f->files), "%s/files", f->folder);
    snprintf(f->source, sizeof(f->source), "%s/source", f->folder);
    sl_file_id_make(f->adopted);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    sl_file_store_close(f->store);
    shell("rm -rf %s", f->folder);
    free(f);
    return 0;
}

static void note(void *context, const char *line)
{
    struct fixture *f = context;

    assert_non_null(strstr(line, "file-"));
    f->n_notes++;
}

static int open_store(struct fixture *f, struct sl_file_writer *writer, struct sl_err *err)
{
    const struct sl_file_store_options options = {
        .folder = f->files, .writer = writer, .note = note, .context = f};

    sl_file_store_close(f->store);
    f->store = NULL;
    return sl_file_store_open(&f->store, &options, err);
}

/* The bytes of each file are its own. */
static char byte_of(uint32_t file, uint32_t i)
{
    return (char)('a' + (file * 7 + i) % 26);
}

static int write_file(struct fixture *f, uint32_t index, const char *name,
                      struct sl_stored_file *file, struct sl_err *err)
{
    struct sl_file_draft *draft;
    char bytes[BYTES];
    int rc = sl_file_draft_begin(&draft, f->store, err);

    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < BYTES; i++)
        bytes[i] = byte_of(index, i);
    for (uint32_t i = 0; rc == 0 && i < BYTES; i += 1000)
        rc = sl_file_draft_add(draft, bytes + i, 1000, err);
    if (rc == 0)
        return sl_file_draft_keep(draft, name, "batch", file, err);
    sl_file_draft_discard(draft);
    return rc;
}

static void make_source(const struct fixture *f)
{
    FILE *out = fopen(f->source, "w");

    assert_non_null(out);
    for (uint32_t i = 0; i < BYTES; i++)
        putc(byte_of(ADOPTED, i), out);
    assert_int_equal(fclose(out), 0);
}

/* Opens, writes, adopts and removes; goes on after what fails. Returns the first failure. */
static int run(struct fixture *f, struct sl_file_writer *writer, struct sl_err *err)
{
    struct sl_stored_file file;
    int rc, first;

    memset(f->ids, 0, sizeof(f->ids));
    f->is_removed = false;
    first = open_store(f, writer, err);
    if (first < 0)
        return first;
    for (uint32_t i = 0; i < N_FILES; i++) {
        rc = write_file(f, i, "in.jsonl", &file, first < 0 ? NULL : err);
        first = first < 0 ? first : rc;
        if (rc == 0)
            strcpy(f->ids[i], file.id);
    }
    rc = sl_file_store_adopt(f->store, f->source, f->adopted, "out.jsonl", "batch_output",
                             first < 0 ? NULL : err);
    first = first < 0 ? first : rc;
    if (rc == 0)
        strcpy(f->ids[ADOPTED], f->adopted);
    if (f->ids[0][0]) {
        f->is_removed = true;
        rc = sl_file_store_remove(f->store, f->ids[0], first < 0 ? NULL : err);
        first = first < 0 ? first : rc;
    }
    return first;
}

/* The bytes of a file that is there are those it was written with. */
static void check_bytes(struct fixture *f, const char *id, uint32_t index)
{
    struct sl_stored_file file;
    char bytes[BYTES + 1];
    struct sl_err err;
    const int fd = sl_file_store_read(f->store, id, &file, &err);

    assert_true(fd >= 0);
    assert_int_equal(file.bytes, BYTES);
    assert_int_equal(sl_file_read_at(fd, bytes, sizeof(bytes), 0), BYTES);
    for (uint32_t i = 0; i < BYTES; i++)
        assert_int_equal(bytes[i], byte_of(index, i));
    close(fd);
}

/* Everything that was kept is there, and everything that is there is whole. */
static void check(struct fixture *f)
{
    struct sl_stored_file files[16], file;
    char command[FIXTURE_PATH_BYTES + 64];
    bool has_more;
    int64_t n;

    f->n_notes = 0;
    assert_int_equal(open_store(f, sl_file_writer_private(), NULL), 0);
    assert_int_equal(f->n_notes, 0);
    for (uint32_t i = 0; i <= N_FILES; i++) {
        const bool may_go = i == 0 && f->is_removed;

        if (f->ids[i][0] && (!may_go || sl_file_store_find(f->store, f->ids[i], &file)))
            check_bytes(f, f->ids[i], i);
    }
    n = sl_file_store_list(f->store, &(struct sl_file_query){0}, files, 16, &has_more);
    assert_in_range(n, 0, N_FILES + 1);
    for (int64_t i = 0; i < n; i++)
        assert_int_equal(files[i].bytes, BYTES);
    /* Nothing else is left: two names for each file. */
    snprintf(command, sizeof(command), "test $(ls %s | wc -l) = %d", f->files, (int)(2 * n));
    assert_int_equal(system(command), 0);
}

static void test_power_cut_at_each_call(void **state)
{
    struct fixture *f = *state;
    uint32_t n_halfway = 0;
    bool cut = true;

    for (uint64_t nth = 1; cut; nth++) {
        for (uint64_t seed = 0; seed < 3; seed++) {
            struct crash_writer *writer = crash_writer_open(nth + 1000 * seed, nth, 0);
            uint32_t n_kept = 0;

            make_source(f);
            run(f, crash_writer_ops(writer), NULL);
            cut = crash_writer_close(writer);
            for (uint32_t i = 0; i <= N_FILES; i++)
                n_kept += f->ids[i][0] != '\0';
            n_halfway += n_kept > 0 && n_kept <= N_FILES;
            assert_true(cut || n_kept == N_FILES + 1);
            check(f);
            /* Who was adopting does so again, and finds the same file. */
            assert_int_equal(sl_file_store_adopt(f->store, f->source, f->adopted, "out.jsonl",
                                                 "batch_output", NULL),
                             0);
            check_bytes(f, f->adopted, ADOPTED);
            shell("rm -rf %s/*", f->folder);
        }
    }
    assert_true(n_halfway > 30);
}

static void test_each_call_fails(void **state)
{
    struct fixture *f = *state;
    struct crash_writer *writer = crash_writer_open(1, 0, 0);
    uint64_t n_calls;

    make_source(f);
    assert_int_equal(run(f, crash_writer_ops(writer), NULL), 0);
    n_calls = crash_writer_count(writer);
    crash_writer_close(writer);
    shell("rm -rf %s/*", f->folder);
    assert_true(n_calls > 40);
    for (uint64_t nth = 1; nth <= n_calls; nth++) {
        const int code = nth % 2 ? -ENOSPC : -EIO;
        struct sl_err err = {0};
        int rc;

        make_source(f);
        writer = crash_writer_open(nth, nth, code);
        rc = run(f, crash_writer_ops(writer), &err);
        crash_writer_close(writer);
        if (rc < 0) {
            assert_int_equal(rc, code);
            assert_non_null(strstr(err.message, sl_strerror(code)));
        }
        check(f);
        shell("rm -rf %s/*", f->folder);
    }
}

static void test_names_lead_nowhere(void **state)
{
    static const char *const names[] = {"../../x", "/etc/passwd", "file-",    "",
                                        ".",       "a\nb",        "\xff\xfe", "日本語.jsonl"};
    struct fixture *f = *state;
    struct sl_stored_file file, found;
    char longer[2 * SL_FILE_NAME_BYTES];
    struct stat status;

    assert_int_equal(open_store(f, sl_file_writer_private(), NULL), 0);
    for (uint32_t i = 0; i < SL_ARRAY_LEN(names); i++) {
        assert_int_equal(write_file(f, i, names[i], &file, NULL), 0);
        assert_int_equal(open_store(f, sl_file_writer_private(), NULL), 0);
        assert_true(sl_file_store_find(f->store, file.id, &found));
        assert_string_equal(found.name, i == 6 ? "??" : names[i]);
    }
    for (size_t i = 0; i + 3 < sizeof(longer); i += 3)
        memcpy(longer + i, "日", 4);
    assert_int_equal(write_file(f, 1, longer, &file, NULL), 0);
    assert_int_equal(strlen(file.name), (SL_FILE_NAME_BYTES - 1) / 3 * 3);
    assert_int_equal(stat(f->files, &status), 0);
    assert_int_equal(status.st_mode & 0777, 0700);
    /* What is no id is no file, also where it would be a path. */
    assert_int_equal(sl_file_store_remove(f->store, "../source", NULL), -ENOENT);
    assert_false(sl_file_store_find(f->store, "", &found));
    shell("test -z \"$(find %s -type f -perm /077)\"", f->files);
}

static void test_lists(void **state)
{
    struct fixture *f = *state;
    struct sl_stored_file made[9], page[9];
    bool has_more;

    assert_int_equal(open_store(f, sl_file_writer_private(), NULL), 0);
    for (uint32_t i = 0; i < 9; i++)
        assert_int_equal(write_file(f, i, "a", &made[i], NULL), 0);
    assert_int_equal(sl_file_store_remove(f->store, made[4].id, NULL), 0);
    assert_int_equal(open_store(f, sl_file_writer_private(), NULL), 0);
    for (int oldest = 0; oldest < 2; oldest++) {
        struct sl_file_query query = {.is_oldest_first = oldest};
        uint32_t n = 0;

        for (has_more = true; has_more; query.after = page[2].id) {
            const int64_t got = sl_file_store_list(f->store, &query, page, 3, &has_more);

            for (int64_t i = 0; i < got; i++, n++) {
                uint32_t place = oldest ? n : 7 - n;

                place += place >= 4;
                assert_string_equal(page[i].id, made[place].id);
            }
        }
        assert_int_equal(n, 8);
    }
    assert_int_equal(sl_file_store_list(f->store, &(struct sl_file_query){.after = made[4].id},
                                        page, 3, &has_more),
                     -ENOENT);
    assert_int_equal(sl_file_store_list(f->store, &(struct sl_file_query){.purpose = "other"}, page,
                                        3, &has_more),
                     0);
}

static void test_damage_is_told(void **state)
{
    struct fixture *f = *state;
    struct sl_stored_file made[4], found;
    char command[1024];

    assert_int_equal(open_store(f, sl_file_writer_private(), NULL), 0);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(write_file(f, i, "a", &made[i], NULL), 0);
    snprintf(command, sizeof(command),
             "cd %s && echo x >>%s && echo '{' >%s.json && ln -sf /etc/passwd %s", f->files,
             made[0].id, made[1].id, made[2].id);
    assert_int_equal(system(command), 0);
    assert_int_equal(open_store(f, sl_file_writer_private(), NULL), 0);
    assert_int_equal(f->n_notes, 3);
    for (uint32_t i = 0; i < 3; i++)
        assert_false(sl_file_store_find(f->store, made[i].id, &found));
    assert_true(sl_file_store_find(f->store, made[3].id, &found));
    shell("test $(ls %s | wc -l) = 8", f->files); /* all of it is still there */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_power_cut_at_each_call, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_each_call_fails, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_names_lead_nowhere, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_lists, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_damage_is_told, set_up, tear_down),
    };

    return cmocka_run_group_tests_name("file_store", tests, NULL, NULL);
}
