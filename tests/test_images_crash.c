/* Saving images survives what may happen to it. The power is cut at each call to the disk in turn:
 * what was kept by then is there, whatever is there is right, nothing is damaged, and the next run
 * goes on. Each call fails in turn, once with the disk full: one line, nothing half-written stays,
 * and the run goes on. All of it while the limit makes earlier images go. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "tests/crash_writer.h"
#include "tests/image_rig.h"

#define N_TOKENS 2000u
#define N_SAVES 5u

struct fixture {
    struct image_rig rig;
    int32_t a[N_TOKENS], b[N_TOKENS]; /* begin with the same 300 tokens */
    int32_t other[N_TOKENS];          /* like neither */
    struct sl_file_writer *quick;     /* syncs nothing */
    bool kept[N_SAVES];
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    image_rig_init(&f->rig);
    f->quick = f->rig.options.writer;
    image_rig_tokens(f->a, N_TOKENS, 300, 1);
    image_rig_tokens(f->b, N_TOKENS, 300, 2);
    image_rig_tokens(f->other, N_TOKENS, 0, 3);
    f->rig.options.bytes_max = 4 * UINT64_C(16384); /* the first one must go for the last */
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

static const struct {
    uint32_t n_tokens;
    char sequence;
} saves[N_SAVES] = {{400, 'o'}, {300, 'a'}, {900, 'a'}, {1500, 'a'}, {1100, 'b'}};

static const int32_t *tokens_of(const struct fixture *f, uint32_t i)
{
    return saves[i].sequence == 'a' ? f->a : saves[i].sequence == 'b' ? f->b : f->other;
}

/* Opens the folder and saves; ends early if the folder cannot be opened, and returns what that
 * says. */
static int run(struct fixture *f, struct sl_file_writer *writer, struct sl_err *err)
{
    int rc;

    f->rig.options.writer = writer;
    f->rig.n_notes = 0;
    memset(f->kept, 0, sizeof(f->kept));
    rc = sl_images_open(&f->rig.images, &f->rig.options, err);
    for (uint32_t i = 0; rc == 0 && i < N_SAVES; i++)
        f->kept[i] = image_rig_save(&f->rig, tokens_of(f, i), saves[i].n_tokens);
    image_rig_close(&f->rig);
    return rc;
}

/* Everything that was kept is there, but the first one, which makes room for the last. */
static void check(struct fixture *f)
{
    f->rig.options.writer = f->quick;
    f->rig.n_notes = 0;
    image_rig_open(&f->rig);
    assert_int_equal(f->rig.n_notes, 0);
    for (uint32_t i = 0; i < N_SAVES; i++) {
        const uint32_t n = image_rig_load(&f->rig, tokens_of(f, i), saves[i].n_tokens);

        if (f->kept[i] && i > 0)
            assert_int_equal(n, saves[i].n_tokens);
    }
    assert_int_equal(f->rig.n_notes, 0);
    image_rig_close(&f->rig);
}

static bool is_unfinished(const struct fixture *f)
{
    char command[FIXTURE_PATH_BYTES + 32];

    snprintf(command, sizeof(command), "ls %s | grep -q new", f->rig.folder);
    return system(command) == 0;
}

static void remove_folder(const struct fixture *f)
{
    char command[FIXTURE_PATH_BYTES + 16];

    snprintf(command, sizeof(command), "rm -rf %s", f->rig.folder);
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

            run(f, crash_writer_ops(writer), NULL);
            cut = crash_writer_close(writer);
            for (uint32_t i = 0; i < N_SAVES; i++)
                n_kept += f->kept[i];
            n_halfway += n_kept > 0 && n_kept < N_SAVES;
            assert_true(cut || n_kept == N_SAVES);
            check(f);
            assert_int_equal(run(f, f->quick, NULL), 0);
            for (uint32_t i = 0; i < N_SAVES; i++)
                assert_true(f->kept[i]);
            check(f);
            assert_int_equal(image_rig_file_count(&f->rig), N_SAVES - 1);
            remove_folder(f);
        }
    }
    assert_true(n_halfway > 30);
}

static void test_each_call_fails(void **state)
{
    struct fixture *f = *state;
    struct crash_writer *writer = crash_writer_open(1, 0, 0);
    uint64_t n_calls;

    assert_int_equal(run(f, crash_writer_ops(writer), NULL), 0);
    n_calls = crash_writer_count(writer);
    crash_writer_close(writer);
    remove_folder(f);
    assert_true(n_calls > 25);
    for (uint64_t nth = 1; nth <= n_calls; nth++) {
        const int code = nth % 2 ? -ENOSPC : -EIO;
        struct sl_err err = {0};
        uint32_t n_lost = 0;
        int rc;

        writer = crash_writer_open(nth, nth, code);
        rc = run(f, crash_writer_ops(writer), &err);
        crash_writer_close(writer);
        for (uint32_t i = 0; i < N_SAVES; i++)
            n_lost += !f->kept[i];
        if (rc < 0) { /* the folder could not be made */
            assert_int_equal(rc, code);
            assert_non_null(strstr(err.message, sl_strerror(code)));
        } else if (n_lost > 0) { /* but one whose base was lost has that in it, as far as it fits */
            assert_int_equal(n_lost, 1);
            assert_int_equal(f->rig.n_notes, 1);
            assert_non_null(strstr(f->rig.note, sl_strerror(code)));
            assert_non_null(strstr(f->rig.note, "not kept"));
        }
        if (rc == 0)
            assert_false(is_unfinished(f));
        check(f);
        assert_int_equal(run(f, f->quick, NULL), 0);
        check(f);
        remove_folder(f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_power_cut_at_each_call, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_each_call_fails, set_up, tear_down),
    };

    return cmocka_run_group_tests_name("images_crash", tests, NULL, NULL);
}
