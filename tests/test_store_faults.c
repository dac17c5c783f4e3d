/* Stores under faults that are not the disk's. Memory runs out at each allocation in turn while a
 * store is packed, opened, verified, packed anew and moved, and any bit of the catalog's file
 * flips: each time it is told, nothing leaks or ends the process, and what is found is what was
 * written. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "storage/catalog.h"
#include "storage/hot_list.h"
#include "storage/store_places.h"
#include "storage/store_verify.h"
#include "tests/fault_alloc.h"
#include "tests/io_fault.h"
#include "tests/store_rig.h"

#define PAGE_BYTES 4096u
#define FLIPS_ELSEWHERE 200u
#define CHILD_SECONDS 20u

struct fixture {
    struct store_rig rig;
    char drive[FIXTURE_PATH_BYTES];
    char other[FIXTURE_PATH_BYTES];
};

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    store_rig_open(&f->rig, 0);
    store_rig_path(&f->rig, "drive", f->drive);
    store_rig_path(&f->rig, "other", f->other);
    assert_int_equal(mkdir(f->drive, 0777), 0);
    store_rig_pack(&f->rig, f->rig.store_folder);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    store_rig_close(&f->rig);
    free(f);
    return 0;
}

/* ---- memory -----------------------------------------------------------------------------------
 */

/* What is tried, and what makes it possible to try it again. Allocates as much each time. */
struct attempt {
    int (*run)(const struct fixture *f, struct sl_err *err);
    void (*undo)(const struct fixture *f);
};

static int no_sync(struct sl_file_writer *writer, int file)
{
    (void)writer;
    (void)file;
    return 0;
}

static int no_sync_folder(struct sl_file_writer *writer, const char *path)
{
    (void)writer;
    (void)path;
    return 0;
}

/* No power is cut here: what is not synced takes less time. */
static int pack_into(const struct fixture *f, struct sl_store *from, struct sl_err *err)
{
    static const uint64_t weights[] = {1, 2};
    const char *const folders[] = {f->drive};
    struct sl_pack_options options = store_rig_options(&f->rig, f->other);
    struct sl_file_writer_ops ops = *options.writer->ops;
    struct sl_file_writer writer = {&ops};

    ops.sync = no_sync;
    ops.sync_folder = no_sync_folder;
    options.writer = &writer;
    options.batch_bytes = UINT64_MAX;
    options.stripe_folders = folders;
    options.weights = weights;
    options.n_stripes = 1;
    if (from) {
        options.checkpoint = NULL;
        options.from = from;
        options.checkpoint_folder = sl_store_folder(from);
    }
    return sl_store_pack(&options, NULL, err);
}

static int pack(const struct fixture *f, struct sl_err *err)
{
    return pack_into(f, NULL, err);
}

static int pack_anew(const struct fixture *f, struct sl_err *err)
{
    struct sl_store *store;
    int rc = sl_store_open(&store, f->rig.store_folder, SL_STORE_RUN, err);

    if (rc < 0)
        return rc;
    rc = pack_into(f, store, err);
    sl_store_close(store);
    return rc;
}

static void on_bad(void *context, const struct sl_store_item *item, const char *message)
{
    (void)item;
    sl_err_set(context, -ENOMEM, "%s", message);
}

/* A carried file that cannot be read for want of memory is told like one that is damaged. */
static int verify(const struct fixture *f, struct sl_err *err)
{
    struct sl_verify_options options = {
        .open_io = sl_io_threads_open, .on_bad = on_bad, .bad_context = err};
    struct sl_verify_result result;
    struct sl_store *store;
    int rc = sl_store_open(&store, f->rig.store_folder, SL_STORE_RUN, err);

    if (rc < 0)
        return rc;
    rc = sl_store_verify(store, &options, &result, err);
    sl_store_close(store);
    return rc == 0 && result.n_bad > 0 ? -ENOMEM : rc;
}

static int set_places(const struct fixture *f, struct sl_err *err)
{
    const char *const folders[] = {f->drive};

    return sl_store_set_places(f->other, folders, 1, err);
}

static void remove_packed(const struct fixture *f)
{
    store_rig_remove(f->other);
    store_rig_remove(f->drive);
    assert_int_equal(mkdir(f->drive, 0777), 0);
}

static void leave(const struct fixture *f)
{
    (void)f;
}

/* Until nothing failed. What failed is -ENOMEM, or that something was not found for want of it. */
static void fail_each_allocation(const struct fixture *f, const struct attempt *attempt)
{
    bool happened = true;

    assert_int_equal(attempt->run(f, NULL), 0); /* so that the C library has what it keeps */
    attempt->undo(f);
    for (uint64_t nth = 1; happened; nth++) {
        int64_t live_count = fault_alloc_live_count();
        struct sl_err err = {0};
        int rc;

        fault_alloc_set(nth, nth % 2);
        rc = attempt->run(f, &err);
        happened = fault_alloc_happened();
        fault_alloc_set(0, false);
        if (rc < 0 && (!happened || !err.message[0]))
            fail_msg("allocation %d: %d: \"%s\"", (int)nth, rc, err.message);
        assert_int_equal(fault_alloc_live_count(), live_count);
        attempt->undo(f);
    }
}

static void test_memory_runs_out(void **state)
{
    static const struct attempt attempts[] = {
        {pack, remove_packed}, {pack_anew, remove_packed}, {verify, leave}};
    static const struct attempt moving = {set_places, leave};
    const struct fixture *f = *state;

    if (!fault_alloc_works())
        skip();
    for (size_t i = 0; i < sizeof(attempts) / sizeof(attempts[0]); i++)
        fail_each_allocation(f, &attempts[i]);
    assert_int_equal(pack(f, NULL), 0);
    fail_each_allocation(f, &moving);
}

/* ---- bits -------------------------------------------------------------------------------------
 */

struct file {
    int fd;
    uint8_t bytes[64 * 1024];
    ssize_t size_bytes;
};

static void restore(const struct file *file)
{
    assert_int_equal(pwrite(file->fd, file->bytes, (size_t)file->size_bytes, 0), file->size_bytes);
    assert_int_equal(ftruncate(file->fd, file->size_bytes), 0);
}

/* In a process of its own: what is found, if anything, is what was there. */
static void look(const char *folder, const struct sl_store *expected, bool write_too)
{
    const uint32_t n_experts = sl_store_expert_count(&store_rig_shape);
    const struct sl_expert_key hot = {0, 1};
    struct sl_store *store;
    struct sl_err err = {0};

    alarm(CHILD_SECONDS);
    if (write_too && sl_hot_list_write(folder, &hot, 1, &err) < 0 && !err.message[0])
        _exit(3);
    if (sl_store_open(&store, folder, SL_STORE_RUN, &err) < 0)
        _exit(err.message[0] ? 1 : 3);
    for (uint32_t i = 0; i < n_experts; i++) {
        struct sl_expert_key key = sl_store_expert_at(&store_rig_shape, i);

        if (memcmp(sl_store_expert(store, key), sl_store_expert(expected, key),
                   sizeof(struct sl_packed_expert)) != 0)
            _exit(2);
    }
    for (uint32_t i = 0; i < STORE_RIG_TENSORS; i++) {
        if (memcmp(sl_store_tensor(store, i), sl_store_tensor(expected, i),
                   sizeof(struct sl_store_tensor)) != 0)
            _exit(2);
    }
    _exit(0);
}

/* Returns true if it was told. */
static bool flip(const struct fixture *f, const struct file *file, const struct sl_store *expected,
                 size_t at, uint32_t bit, bool write_too)
{
    const uint8_t changed = file->bytes[at] ^ (uint8_t)(1u << bit);
    int status;
    pid_t child;

    assert_int_equal(pwrite(file->fd, &changed, 1, (off_t)at), 1);
    child = fork();
    assert_true(child >= 0);
    if (child == 0)
        look(f->rig.store_folder, expected, write_too);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) > 1)
        fail_msg("byte %zu, bit %u: %s %d", at, bit, WIFEXITED(status) ? "exit status" : "signal",
                 WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
    restore(file);
    return WEXITSTATUS(status) == 1;
}

/* Where pages have their headers most bits, elsewhere some. */
static void test_flipped_bits(void **state)
{
    const struct fixture *f = *state;
    struct file *file = calloc(1, sizeof(*file));
    char path[FIXTURE_PATH_BYTES];
    struct sl_store *expected;
    uint64_t random = 5;
    uint32_t n_told = 0;

    assert_non_null(file);
    store_rig_path(&f->rig, "store/catalog/data.mdb", path);
    file->fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(file->fd >= 0);
    file->size_bytes = pread(file->fd, file->bytes, sizeof(file->bytes), 0);
    assert_true(file->size_bytes > 2 * (ssize_t)PAGE_BYTES);
    assert_int_equal(sl_store_open(&expected, f->rig.store_folder, SL_STORE_RUN, NULL), 0);
    for (size_t page = 0; page < (size_t)file->size_bytes; page += PAGE_BYTES) {
        const bool is_first = page < 2 * PAGE_BYTES; /* the file's own headers, which are longer */

        for (uint32_t i = is_first ? 8 * 16 : 0; i < (is_first ? 8 * 152 : 8 * 40);
             i += is_first ? 3 : 1)
            n_told += flip(f, file, expected, page + i / 8, i % 8, i % 5 == 0);
    }
    for (uint32_t i = 0; i < FLIPS_ELSEWHERE; i++)
        n_told += flip(f, file, expected, io_fault_random(&random) % (uint64_t)file->size_bytes,
                       (uint32_t)(io_fault_random(&random) % 8), i % 5 == 0);
    assert_true(n_told > 200);
    sl_store_close(expected);
    close(file->fd);
    free(file);
}

/* Three pages of values and a branch above them, of which the flipped bit leaves one. */
static void test_branch_with_one_page(void **state)
{
    static const uint8_t value[1500];
    const struct fixture *f = *state;
    struct file *file = calloc(1, sizeof(*file));
    char path[FIXTURE_PATH_BYTES];
    struct sl_store *expected;
    uint32_t n_told = 0;

    assert_non_null(file);
    for (char key[] = "z0"; key[1] < '3'; key[1]++)
        store_rig_put(f->rig.store_folder, key, value, sizeof(value));
    store_rig_path(&f->rig, "store/catalog/data.mdb", path);
    file->fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(file->fd >= 0);
    file->size_bytes = pread(file->fd, file->bytes, sizeof(file->bytes), 0);
    assert_int_equal(sl_store_open(&expected, f->rig.store_folder, SL_STORE_RUN, NULL), 0);
    for (size_t page = 2 * PAGE_BYTES; page < (size_t)file->size_bytes; page += PAGE_BYTES) {
        const uint8_t *header = file->bytes + page;

        if (header[10] == 1 && header[12] == 16 + 2 * 3) /* a branch; the end of its offsets */
            n_told += flip(f, file, expected, page + 12, 2, false);
    }
    assert_true(n_told > 0);
    sl_store_close(expected);
    close(file->fd);
    free(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_memory_runs_out, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_flipped_bits, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_branch_with_one_page, set_up, tear_down),
    };

    return cmocka_run_group_tests_name("store_faults", tests, NULL, NULL);
}
