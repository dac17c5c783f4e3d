/* Stores under faults that are not the disk's. Memory runs out at each allocation in turn while a
 * store is packed, opened, verified, packed anew, moved and repaired, and each bit of the catalog's
 * files flips once: each time it is told, or nothing has come of it, nothing leaks or ends the
 * process, and what is found or repaired is what was written. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "storage/io/checksum.h"
#include "storage/store/catalog_read.h"
#include "storage/io/plain_file.h"
#include "storage/store/store_copies.h"
#include "storage/pack/store_relocate.h"
#include "storage/pack/store_verify.h"
#include "tests/fault_alloc.h"
#include "tests/store_rig.h"

#define REPAIRED_BITS 40u /* of each file */
#define HEADERS_BYTES (2 * UINT64_C(4096))

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

static int pack_into(const struct fixture *f, struct sl_store *from, struct sl_err *err)
{
    static const uint64_t weights[] = {1, 2};
    const char *const folders[] = {f->drive};
    struct sl_pack_options options = store_rig_options(&f->rig, f->other);

    options.writer = store_rig_writer();
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
    (void)context;
    (void)item;
    fail_msg("damaged for want of memory: %s", message);
}

static int verify(const struct fixture *f, struct sl_err *err)
{
    struct sl_verify_options options = {.open_io = sl_io_threads_open, .on_bad = on_bad};
    struct sl_verify_result result;
    struct sl_store *store;
    int rc = sl_store_open(&store, f->rig.store_folder, SL_STORE_RUN, err);

    if (rc < 0)
        return rc;
    rc = sl_store_verify(store, &options, &result, err);
    sl_store_close(store);
    return rc;
}

static int relocate(const struct fixture *f, struct sl_err *err)
{
    const char *const folders[] = {f->drive};
    const struct sl_store_relocation relocation = {
        .folders = folders, .n_folders = 1, .writer = store_rig_writer()};

    return sl_store_relocate(f->other, &relocation, err);
}

/* Both of the store's copies are lost; that on the other drive is left. */
static int repair(const struct fixture *f, struct sl_err *err)
{
    const char *const folders[] = {f->drive};
    int rc;

    fixture_truncate(f->other, SL_STORE_SEALED_FILE, 100);
    fixture_truncate(f->other, SL_STORE_CATALOG_FILE, 100);
    rc = sl_store_copies_repair(f->other, folders, 1, store_rig_writer(), err);
    return rc < 0 ? rc : 0;
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
    static const struct attempt moving = {relocate, leave}, repairing = {repair, leave};
    const struct fixture *f = *state;

    if (!fault_alloc_works())
        skip();
    for (size_t i = 0; i < sizeof(attempts) / sizeof(attempts[0]); i++)
        fail_each_allocation(f, &attempts[i]);
    assert_int_equal(pack(f, NULL), 0);
    fail_each_allocation(f, &moving);
    fail_each_allocation(f, &repairing);
}

/* ---- bits -------------------------------------------------------------------------------------
 */

struct flips {
    const struct fixture *f;
    char path[FIXTURE_PATH_BYTES];
    const char *name;
    uint8_t *bytes;
    size_t size_bytes;
    struct sl_catalog_entries expected;
    uint32_t n_told, n_harmless;
};

static void flips_open(struct flips *flips, const struct fixture *f, const char *name)
{
    *flips = (struct flips){.f = f, .name = name};
    assert_true(snprintf(flips->path, FIXTURE_PATH_BYTES, "%s/%s", f->rig.store_folder, name) <
                FIXTURE_PATH_BYTES);
    assert_int_equal(sl_plain_file_read(flips->path, SL_CATALOG_BYTES_MAX, &flips->bytes,
                                        &flips->size_bytes, NULL),
                     0);
    assert_int_equal(sl_store_sealed_read(&flips->expected, f->rig.store_folder, NULL), 0);
}

static void flips_close(struct flips *flips)
{
    sl_catalog_entries_fini(&flips->expected);
    free(flips->bytes);
}

static void flips_count(struct flips *flips, size_t bit, int rc, struct sl_catalog_entries *found,
                        const struct sl_err *err)
{
    if (rc < 0)
        store_rig_assert_says(err, "here: ");
    /* Of LMDB's two headers the other one may count then, with what was committed before. */
    else if (!sl_catalog_entries_same(found, &flips->expected) && bit >= 8 * HEADERS_BYTES)
        fail_msg("bit %zu changes what is read, and is not told", bit);
    if (rc < 0 || !sl_catalog_entries_same(found, &flips->expected))
        flips->n_told++;
    else
        flips->n_harmless++;
    sl_catalog_entries_fini(found);
}

/* A flipped bit of the sealed copy is always told. */
static void test_each_bit_of_what_is_sealed(void **state)
{
    struct flips flips;

    flips_open(&flips, *state, SL_STORE_SEALED_FILE);
    for (size_t bit = 0; bit < 8 * flips.size_bytes; bit++) {
        uint8_t *copy = malloc(flips.size_bytes);
        struct sl_catalog_entries found = {0};
        struct sl_err err = {0};
        int rc;

        assert_non_null(copy);
        memcpy(copy, flips.bytes, flips.size_bytes);
        copy[bit / 8] ^= (uint8_t)(1u << bit % 8);
        rc = sl_catalog_entries_unseal(&found, copy, flips.size_bytes, "here", &err);
        flips_count(&flips, bit, rc, &found, &err);
    }
    assert_int_equal(flips.n_harmless, 0);
    flips_close(&flips);
}

/* In LMDB's file there are bytes that nothing depends on: free pages, the header before the last,
 * gaps. A page that must not be touched follows the file. */
static void flip_each_bit_of_lmdb(struct flips *flips)
{
    const size_t guard_bytes = (size_t)sysconf(_SC_PAGESIZE);
    uint8_t *file;

    assert_int_equal(flips->size_bytes % guard_bytes, 0);
    file = mmap(NULL, flips->size_bytes + guard_bytes, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(file != MAP_FAILED);
    assert_int_equal(mprotect(file + flips->size_bytes, guard_bytes, PROT_NONE), 0);
    memcpy(file, flips->bytes, flips->size_bytes);
    for (size_t bit = 0; bit < 8 * flips->size_bytes; bit++) {
        struct sl_catalog_entries found;
        struct sl_err err = {0};
        int rc;

        file[bit / 8] ^= (uint8_t)(1u << bit % 8);
        rc = sl_catalog_read_bytes(&found, file, flips->size_bytes, "here", &err);
        flips_count(flips, bit, rc, &found, &err);
        file[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    munmap(file, flips->size_bytes + guard_bytes);
}

static void test_each_bit_of_lmdb(void **state)
{
    struct flips flips;

    flips_open(&flips, *state, SL_STORE_CATALOG_FILE);
    flip_each_bit_of_lmdb(&flips);
    assert_true(flips.n_told > 8000);
    flips_close(&flips);
}

/* Three pages of values, a branch above them, and a value on pages of its own. */
static void test_each_bit_of_a_larger_one(void **state)
{
    static const uint8_t value[6000] = {1};
    const struct fixture *f = *state;
    struct flips flips;

    for (char key[] = "z0"; key[1] < '5'; key[1]++)
        store_rig_put(f->rig.store_folder, key, value, key[1] == '0' ? sizeof(value) : 1500);
    flips_open(&flips, f, SL_STORE_CATALOG_FILE);
    flip_each_bit_of_lmdb(&flips);
    assert_true(flips.n_told > 16000);
    flips_close(&flips);
}

static void test_keys_come_in_order(void **state)
{
    static const char *const wrong[] = {"b", "a", "", "c\nd"};
    struct sl_catalog_entries entries = {0}, found;
    const uint8_t *sealed;
    size_t size_bytes;
    uint64_t checksum;
    uint8_t *copy;

    (void)state;
    assert_int_equal(sl_catalog_entries_add(&entries, "b", 1, "1", 1), 0);
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        assert_int_equal(sl_catalog_entries_add(&entries, wrong[i], strlen(wrong[i]), "2", 1),
                         -SL_EFORMAT);
    assert_int_equal(sl_catalog_entries_add(&entries, "c", 1, "3", 1), 0);
    assert_int_equal(sl_catalog_entries_seal(&entries, &sealed, &size_bytes), 0);
    copy = malloc(size_bytes);
    assert_non_null(copy);
    memcpy(copy, sealed, size_bytes);
    copy[16 + 8 + 6] = 'a'; /* the second key, and all is sealed again */
    checksum = sl_checksum(copy, size_bytes - 8);
    memcpy(copy + size_bytes - 8, &checksum, 8);
    assert_int_equal(sl_catalog_entries_unseal(&found, copy, size_bytes, "here", NULL),
                     -SL_ECORRUPT);
    sl_catalog_entries_fini(&entries);
}

/* Verifying tells a damaged copy, repairing makes it what it was, and packing goes on with it. */
static void repair_flipped(struct flips *flips, size_t bit, bool verify)
{
    const char *folder = flips->f->rig.store_folder;
    struct sl_catalog_entries found = {0};
    struct store_rig_damage damage;
    int fd = open(flips->path, O_WRONLY | O_TRUNC | O_CLOEXEC), rc;
    bool is_sealed = strcmp(flips->name, SL_STORE_SEALED_FILE) == 0, is_bad = is_sealed;

    assert_true(fd >= 0);
    flips->bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    assert_int_equal(write(fd, flips->bytes, flips->size_bytes), flips->size_bytes);
    flips->bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    close(fd);
    if (is_sealed) {
        struct sl_store *store;

        assert_int_equal(sl_store_open(&store, folder, SL_STORE_RUN, NULL), -SL_ECORRUPT);
    } else {
        is_bad = sl_store_catalog_read(&found, folder, NULL) < 0 ||
                 !sl_catalog_entries_same(&found, &flips->expected);
        if (verify) {
            store_rig_verify(folder, &damage);
            assert_int_equal(damage.n_items, is_bad);
            assert_true(!is_bad || damage.items[0].kind == SL_STORE_COPY);
        }
        sl_catalog_entries_fini(&found);
    }
    rc = sl_store_copies_repair(folder, NULL, 0, store_rig_writer(), NULL);
    assert_int_equal(rc, !is_bad     ? 0
                         : is_sealed ? SL_STORE_REPAIRED_SEALED
                                     : SL_STORE_REPAIRED_CATALOG);
    assert_int_equal(sl_store_sealed_read(&found, folder, NULL), 0);
    assert_true(sl_catalog_entries_same(&found, &flips->expected));
    sl_catalog_entries_fini(&found);
    assert_int_equal(sl_store_catalog_read(&found, folder, NULL), 0);
    assert_true(sl_catalog_entries_same(&found, &flips->expected));
    sl_catalog_entries_fini(&found);
}

/* SL_EVERY_BIT takes each (make check-every-bit). */
static void test_some_bits_are_repaired(void **state)
{
    static const char *const names[] = {SL_STORE_SEALED_FILE, SL_STORE_CATALOG_FILE};
    const struct fixture *f = *state;

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct flips flips;
        size_t stride;

        flips_open(&flips, f, names[i]);
        stride = getenv("SL_EVERY_BIT") ? 1 : 8 * flips.size_bytes / REPAIRED_BITS + 1;
        for (size_t bit = 0; bit < 8 * flips.size_bytes; bit += stride)
            repair_flipped(&flips, bit, stride > 1 || bit % 97 == 0);
        flips_close(&flips);
    }
    store_rig_pack(&f->rig, f->other);
    store_rig_assert_same(f->rig.store_folder, f->other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_memory_runs_out, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_each_bit_of_what_is_sealed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_each_bit_of_lmdb, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_each_bit_of_a_larger_one, set_up, tear_down),
        cmocka_unit_test(test_keys_come_in_order),
        cmocka_unit_test_setup_teardown(test_some_bits_are_repaired, set_up, tear_down),
    };

    return cmocka_run_group_tests_name("store_faults", tests, NULL, NULL);
}
