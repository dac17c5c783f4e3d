/* A store may come from a stranger, and others may be at work in its folders. Links, paths and
 * folders that lead elsewhere make nobody write there; what is moved away while it is packed is
 * told before its source is freed; lost files are made again; and every byte of a file is covered
 * by something. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/base/file.h"
#include "storage/store/advice.h"
#include "storage/store/store_copies.h"
#include "storage/pack/store_relocate.h"
#include "storage/pack/store_rebuild.h"
#include "tests/store_rig.h"

static const uint64_t one_to_two[] = {1, 2};

#define NOBODY 65534

/* ---- links ------------------------------------------------------------------------------------
 */

#define SECRET "what nobody may write to\n"

static void assert_untouched(const char *path)
{
    char *text;
    size_t length;

    assert_int_equal(sl_file_read_all(path, 4096, &text, &length, NULL), 0);
    assert_string_equal(text, SECRET);
    free(text);
}

static void test_links_are_not_followed(void **state)
{
    static const char *const names[] = {SL_STORE_SEALED_FILE, SL_STORE_CATALOG_FILE, "dense.bin",
                                        "experts-1.bin",      "config.json",         "hot"};
    const struct store_fixture *f = *state;
    const struct sl_expert_key key = {0, 1};
    char victim[FIXTURE_PATH_BYTES], kept[FIXTURE_PATH_BYTES];

    fixture_write_text(f->rig.root, "victim", SECRET);
    store_rig_path(&f->rig, "victim", victim);
    store_rig_path(&f->rig, "kept", kept);
    assert_int_equal(sl_advice_write(f->rig.store_folder, "hot", &key, 4, NULL), 0);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct sl_pack_options options = store_rig_options(&f->rig, f->rig.store_folder);
        char path[FIXTURE_PATH_BYTES + 32], new_path[FIXTURE_PATH_BYTES + 64];
        const struct sl_store_relocation relocation = {.make_lost = true,
                                                       .writer = store_rig_writer()};
        struct sl_store *store;
        struct sl_err err = {0};
        uint8_t *value;
        size_t size_bytes;

        snprintf(path, sizeof(path), "%s/%s", f->rig.store_folder, names[i]);
        snprintf(new_path, sizeof(new_path), "%s.new", path);
        assert_int_equal(rename(path, kept), 0);
        assert_int_equal(symlink(victim, path), 0);
        assert_int_equal(symlink(victim, new_path), 0);
        if (strcmp(names[i], "hot") == 0)
            assert_int_equal(sl_advice_read(f->rig.store_folder, "hot", &value, &size_bytes, &err),
                             -ELOOP);
        else if (strcmp(names[i], SL_STORE_CATALOG_FILE) != 0)
            assert_int_equal(sl_store_open(&store, f->rig.store_folder, SL_STORE_RUN, &err),
                             -ELOOP);
        if (err.message[0])
            store_rig_assert_says(&err, "a symbolic link; those in a store are not followed");
        sl_store_pack(&options, NULL, NULL);
        sl_store_relocate(f->rig.store_folder, &relocation, NULL);
        sl_store_copies_repair(f->rig.store_folder, NULL, 0, store_rig_writer(), NULL);
        assert_int_equal(sl_advice_write(f->rig.store_folder, "hot", &key, 4, NULL), 0);
        assert_untouched(victim);
        unlink(path);
        unlink(new_path);
        assert_int_equal(rename(kept, path), 0);
    }
    store_rig_pack(&f->rig, f->other);
    store_rig_assert_same(f->rig.store_folder, f->other);
}

/* ---- paths in the catalog ---------------------------------------------------------------------
 */

static void test_paths_are_checked(void **state)
{
    static const struct {
        uint32_t file_index;
        const char *path;
    } cases[] = {{0, "/etc/dense.bin"},
                 {0, "../dense.bin"},
                 {1, "experts-2.bin"},
                 {1, "/tmp/experts-1.bin"}};
    static const char *const others[] = {
        "/tmp/experts-3.bin", "/tmp/../experts-2.bin", "/tmp/./experts-2.bin", "//experts-2.bin",
        "experts-2.bin",      "/tmp/experts-2.bin/",   "/tmp/.bashrc"};
    const struct store_fixture *f = *state;
    struct sl_store_file file = {.size_bytes = 4096};

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        snprintf(file.path, sizeof(file.path), "%s", cases[i].path);
        assert_false(sl_store_file_is_sound(&file, cases[i].file_index));
    }
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
        uint8_t value[SL_STORE_VALUE_BYTES_MAX];

        snprintf(file.path, sizeof(file.path), "%s", others[i]);
        assert_false(sl_store_file_is_sound(&file, 2));
        store_rig_put(f->rig.store_folder, "file 1", value, sl_store_file_encode(&file, value));
        store_rig_assert_refused(f->rig.store_folder, -SL_ECORRUPT, "\"file 1\" is not valid");
    }
    snprintf(file.path, sizeof(file.path), "/tmp/experts-2.bin");
    assert_true(sl_store_file_is_sound(&file, 2));
    snprintf(file.path, sizeof(file.path), "/experts-2.bin");
    assert_true(sl_store_file_is_sound(&file, 2));
}

static void test_copied_names_are_known(void **state)
{
    static const char *const names[] = {"../config.json", "dense.bin", "..", "catalog.sealed"};

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct sl_store_copied_file copied = {.size_bytes = 1};
        uint8_t value[SL_STORE_VALUE_BYTES_MAX];
        size_t size_bytes;

        snprintf(copied.name, sizeof(copied.name), "%s", names[i]);
        size_bytes = sl_store_copied_file_encode(&copied, value);
        assert_false(sl_store_copied_file_decode(&copied, value, size_bytes));
    }
}

/* Packs over two folders, up to the end or half of it. */
static int pack_striped(const struct store_fixture *f, const char *drive, bool to_half,
                        struct sl_err *err)
{
    const char *const folders[] = {drive};
    struct sl_pack_options options = store_rig_options(&f->rig, f->other);
    atomic_bool stop = false;

    options.stripe_folders = folders;
    options.weights = one_to_two;
    options.n_stripes = 1;
    options.writer = store_rig_writer();
    if (to_half) {
        options.stop = &stop;
        options.on_progress = store_rig_stop_at_half;
        options.progress_context = &stop;
    }
    return sl_store_pack(&options, NULL, err);
}

static void make_drive(const struct store_fixture *f, char drive[FIXTURE_PATH_BYTES],
                       const char *name)
{
    store_rig_path(&f->rig, name, drive);
    assert_int_equal(mkdir(drive, 0777), 0);
}

/* Where no copy of the catalog says so, only what is named is written to. */
static void test_elsewhere_is_asked_for(void **state)
{
    const struct store_fixture *f = *state;
    struct sl_pack_options options = store_rig_options(&f->rig, f->other);
    char drive[FIXTURE_PATH_BYTES];
    struct store_rig_damage found;
    struct sl_err err = {0};

    make_drive(f, drive, "drive");
    assert_int_equal(pack_striped(f, drive, true, NULL), -ECANCELED);
    fixture_truncate(drive, "catalog-2.sealed", 10);
    assert_int_equal(sl_store_pack(&options, NULL, &err), -EPERM);
    store_rig_assert_says(&err, "drive/experts-2.bin: is outside the store's folder");
    store_rig_assert_says(&err, "--stripe ");
    assert_int_equal(pack_striped(f, drive, false, NULL), 0);
    fixture_flip_byte(drive, "experts-2.bin", 5000);
    fixture_flip_byte(drive, "catalog-2.sealed", 40);
    store_rig_verify(f->other, &found);
    assert_int_equal(found.n_items, 2);
    assert_int_equal(found.items[0].kind, SL_STORE_COPY);
    assert_int_equal(store_rig_repair(&f->rig, f->other, &found, &err), -EPERM);
    fixture_flip_byte(drive, "catalog-2.sealed", 40);
    assert_int_equal(store_rig_repair(&f->rig, f->other, &found, &err), 0);
    store_rig_verify(f->other, &found);
    assert_int_equal(found.n_items, 0);
}

/* ---- others at work ---------------------------------------------------------------------------
 */

/* What somebody else does when half is packed. */
struct meddler {
    char from[FIXTURE_PATH_BYTES];
    char to[FIXTURE_PATH_BYTES]; /* empty: `from` is removed */
    bool replace;                /* by an empty file, or a folder with the same files */
    bool is_folder;
    bool done;
};

static void replace_folder(const struct meddler *m)
{
    static const char *const names[] = {"dense.bin", "experts-1.bin", SL_STORE_CATALOG_FILE,
                                        "config.json", "tokenizer.json"};

    assert_int_equal(mkdir(m->from, 0777), 0);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char from[FIXTURE_PATH_BYTES + 32], to[FIXTURE_PATH_BYTES + 32];

        snprintf(from, sizeof(from), "%s/%s", m->to, names[i]);
        snprintf(to, sizeof(to), "%s/%s", m->from, names[i]);
        assert_int_equal(link(from, to), 0);
    }
}

static void meddle(void *context, uint64_t done, uint64_t total)
{
    struct meddler *m = context;

    if (m->done || done < total / 2)
        return;
    m->done = true;
    assert_int_equal(m->to[0] ? rename(m->from, m->to) : unlink(m->from), 0);
    if (m->replace && m->is_folder)
        replace_folder(m);
    else if (m->replace)
        close(open(m->from, O_WRONLY | O_CREAT, 0666));
}

static void test_moved_while_packed(void **state)
{
    static const struct {
        const char *name;
        bool away, replace;
        int code;
    } cases[] = {
        {"", true, false, -ENOENT}, /* the folder: its catalog cannot be sealed */
        {"", true, true, -ESTALE},
        {"/dense.bin", false, false, -ESTALE},
        {"/experts-1.bin", true, false, -ESTALE},
        {"/experts-1.bin", true, true, -ESTALE},
        {"/" SL_STORE_CATALOG_FILE, false, false, -ENOENT},
        {"/tokenizer.json", false, false, -ENOENT},
        {"/tokenizer.json", false, true, -SL_ECORRUPT},
    };
    struct store_fixture *f = *state;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct sl_pack_options options = store_rig_options(&f->rig, f->other);
        struct meddler m = {.replace = cases[i].replace, .is_folder = !cases[i].name[0]};
        struct sl_err err = {0};
        struct sl_pack_result result;

        assert_true(snprintf(m.from, sizeof(m.from), "%s%s", f->other, cases[i].name) <
                    FIXTURE_PATH_BYTES);
        if (cases[i].away)
            store_rig_path(&f->rig, "away", m.to);
        options.consume = true;
        options.batch_bytes = UINT64_MAX; /* all at the end */
        options.on_progress = meddle;
        options.progress_context = &m;
        options.writer = store_rig_writer();
        assert_int_equal(sl_store_pack(&options, &result, &err), cases[i].code);
        assert_true(m.done);
        store_rig_assert_says(&err, m.from);
        assert_int_equal(result.freed_bytes, 0);
        store_rig_remove(f->other);
        if (cases[i].away)
            store_rig_remove(m.to);
        store_rig_reopen(&f->rig);
        for (uint32_t k = 0; k < sl_checkpoint_tensor_count(f->rig.checkpoint); k++) {
            const struct sl_checkpoint_tensor *tensor =
                sl_checkpoint_tensor_at(f->rig.checkpoint, k);

            assert_true(sl_checkpoint_has(f->rig.checkpoint, tensor->file_index,
                                          tensor->offset_bytes, tensor->info.size_bytes));
        }
    }
}

/* Neither the file nor the copy of the catalog may be there when a store is begun. */
static void test_other_stores_keep_their_files(void **state)
{
    static const char *const names[] = {"experts-2.bin", "catalog-2.sealed"};
    const struct store_fixture *f = *state;
    char drive[FIXTURE_PATH_BYTES];
    struct sl_err err = {0};

    make_drive(f, drive, "drive");
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        fixture_write_text(drive, names[i], "another store's");
        assert_int_equal(pack_striped(f, drive, false, &err), -EEXIST);
        store_rig_assert_says(&err, names[i]);
        fixture_unlink(drive, names[i]);
    }
    assert_int_equal(pack_striped(f, drive, false, NULL), 0);
}

/* Another packer has this folder's file open already. */
static void test_one_packer_for_a_file(void **state)
{
    const struct store_fixture *f = *state;
    char drive[FIXTURE_PATH_BYTES], path[FIXTURE_PATH_BYTES + 16];
    struct sl_err err = {0};
    int fd;

    make_drive(f, drive, "drive");
    assert_int_equal(pack_striped(f, drive, true, NULL), -ECANCELED);
    snprintf(path, sizeof(path), "%s/experts-2.bin", drive);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), 0);
    assert_int_equal(pack_striped(f, drive, false, &err), -EBUSY);
    store_rig_assert_says(&err, "experts-2.bin: another process is writing to this file");
    close(fd);
    assert_int_equal(pack_striped(f, drive, false, NULL), 0);
}

/* ---- every byte -------------------------------------------------------------------------------
 */

static void test_zeros_and_ends_are_covered(void **state)
{
    const struct store_fixture *f = *state;
    struct store_rig_damage found;

    store_rig_pack(&f->rig, f->other);
    fixture_flip_byte(f->other, "experts-1.bin", 61440 + 17408); /* behind w1 of the second */
    fixture_flip_byte(f->other, "experts-1.bin", 9 * 61440 - 1); /* behind w2 of the last */
    fixture_flip_byte(f->other, "dense.bin", 24576 + 1024);      /* behind norm.weight */
    fixture_truncate(f->other, "dense.bin", fixture_file_size(f->other, "dense.bin") + 1);
    fixture_truncate(f->other, "experts-1.bin", 10 * 61440);
    store_rig_verify(f->other, &found);
    assert_int_equal(found.n_items, 5);
    assert_int_equal(found.items[0].kind, SL_STORE_TAIL);
    assert_int_equal(found.items[1].kind, SL_STORE_TAIL);
    assert_int_equal(found.items[1].index, 1);
    assert_non_null(
        strstr(found.message, "is right, but what follows up to the next block is not"));
    assert_int_equal(store_rig_repair(&f->rig, f->other, &found, NULL), 0);
    store_rig_assert_same(f->other, f->rig.store_folder);
}

/* ---- lost -------------------------------------------------------------------------------------
 */

static int place(const char *store_folder, const char *folder, struct sl_err *err)
{
    const struct sl_store_relocation relocation = {.folders = &folder,
                                                   .n_folders = folder ? 1 : 0,
                                                   .make_lost = true,
                                                   .writer = store_rig_writer()};

    return sl_store_relocate(store_folder, &relocation, err);
}

static void assert_sound_after_repair(const struct store_fixture *f)
{
    struct store_rig_damage found;

    store_rig_verify(f->other, &found);
    assert_true(found.n_items > 0);
    assert_int_equal(store_rig_repair(&f->rig, f->other, &found, NULL), 0);
    store_rig_verify(f->other, &found);
    assert_int_equal(found.n_items, 0);
}

static void test_lost_drive(void **state)
{
    const struct store_fixture *f = *state;
    char drive[FIXTURE_PATH_BYTES], third[FIXTURE_PATH_BYTES], fourth[FIXTURE_PATH_BYTES];
    struct sl_err err = {0};

    make_drive(f, drive, "drive");
    make_drive(f, third, "third");
    make_drive(f, fourth, "fourth");
    assert_int_equal(pack_striped(f, drive, false, NULL), 0);
    store_rig_remove(drive);
    assert_int_equal(place(f->other, NULL, &err), -SL_EFORMAT);
    store_rig_assert_says(&err, "where it is to be made anew: --stripe DIR");
    assert_int_equal(place(f->other, third, NULL), 0);
    assert_sound_after_repair(f);
    assert_int_equal(place(f->other, fourth, &err), -SL_EFORMAT);
    store_rig_assert_says(&err, "fourth: no part of");

    store_rig_remove(f->other); /* now the store's own drive */
    assert_int_equal(mkdir(f->other, 0777), 0);
    assert_int_equal(sl_store_copies_repair(f->other, NULL, 0, store_rig_writer(), &err),
                     -SL_ECORRUPT);
    assert_int_equal(
        sl_store_copies_repair(f->other, (const char *const[]){third}, 1, store_rig_writer(), NULL),
        SL_STORE_REPAIRED_CATALOG | SL_STORE_REPAIRED_SEALED);
    assert_int_equal(place(f->other, third, NULL), 0);
    assert_sound_after_repair(f);
}

/* No copy of the catalog is left: the source makes all of it again, over what is there. */
static void test_lost_catalog(void **state)
{
    const struct store_fixture *f = *state;
    struct store_rig compressed = f->rig, tuned;
    struct sl_pack_options options = store_rig_options(&f->rig, f->other);
    struct sl_err err = {0};

    for (int compress = 0; compress < 2; compress++) {
        char reference[FIXTURE_PATH_BYTES];

        compressed.compress = compress;
        store_rig_path(&f->rig, compress ? "compressed" : "plain", reference);
        store_rig_pack(&compressed, reference);
        store_rig_pack(&compressed, f->other);
        fixture_truncate(f->other, SL_STORE_SEALED_FILE, 5);
        fixture_unlink(f->other, SL_STORE_CATALOG_FILE);
        fixture_flip_byte(f->other, "experts-1.bin", 0);
        fixture_truncate(f->other, "dense.bin", fixture_file_size(f->other, "dense.bin") + 4096);
        options.writer = store_rig_writer();
        assert_int_equal(sl_store_rebuild(&options, &err), 0);
        store_rig_assert_same(f->other, reference);
        store_rig_remove(f->other);
    }
    store_rig_open(&tuned, 4);
    options = store_rig_options(&tuned, f->rig.store_folder);
    assert_int_equal(sl_store_rebuild(&options, &err), -SL_EFORMAT);
    store_rig_assert_says(&err, "dense.bin: 4 of 4 tensors are not those of");
    fixture_write_text(tuned.checkpoint_folder, "config.json", "{}\n");
    assert_int_equal(sl_store_rebuild(&options, &err), -SL_EFORMAT);
    store_rig_assert_says(&err, "its config.json is not that of");
    store_rig_close(&tuned);
    store_rig_pack(&f->rig, f->other);
    store_rig_assert_same(f->other, f->rig.store_folder);
}

/* ---- what may be lost -------------------------------------------------------------------------
 */

static void test_damaged_advice(void **state)
{
    const struct store_fixture *f = *state;
    uint8_t *value;
    size_t size_bytes;
    struct sl_err err = {0};

    assert_int_equal(sl_advice_read(f->rig.store_folder, "hot", &value, &size_bytes, NULL), 0);
    assert_int_equal(sl_advice_write(f->rig.store_folder, "hot", "four", 4, NULL), 0);
    assert_int_equal(sl_advice_read(f->rig.store_folder, "hot", &value, &size_bytes, NULL), 1);
    assert_int_equal(size_bytes, 4);
    assert_memory_equal(value, "four", 4);
    free(value);
    for (uint64_t at = 0; at < 12; at++) {
        fixture_flip_byte(f->rig.store_folder, "hot", at);
        assert_int_equal(sl_advice_read(f->rig.store_folder, "hot", &value, &size_bytes, &err),
                         -SL_ECORRUPT);
        store_rig_assert_says(&err, "store/hot: damaged");
        fixture_flip_byte(f->rig.store_folder, "hot", at);
    }
    fixture_truncate(f->rig.store_folder, "hot", 7);
    assert_int_equal(sl_advice_read(f->rig.store_folder, "hot", &value, &size_bytes, NULL),
                     -SL_ECORRUPT);
    assert_int_equal(sl_advice_write(f->rig.store_folder, "hot", "", 0, NULL), 0);
    assert_int_equal(sl_advice_read(f->rig.store_folder, "hot", &value, &size_bytes, NULL), 1);
    assert_int_equal(size_bytes, 0);
    free(value);
}

/* In a process that may not write to the store. Returns 0 if the user's own folder has it then. */
static int remember_elsewhere(const char *store_folder, const char *cache)
{
    uint8_t *value;
    size_t size_bytes;

    if ((geteuid() == 0 && setresuid(NOBODY, NOBODY, NOBODY) < 0) ||
        setenv("XDG_CACHE_HOME", cache, 1) < 0)
        return 2;
    if (sl_advice_read(store_folder, "hot", &value, &size_bytes, NULL) != 1 || size_bytes != 6)
        return 3; /* the store's, as long as there is no other */
    free(value);
    if (sl_advice_write(store_folder, "hot", "mine", 4, NULL) < 0)
        return 4;
    if (sl_advice_read(store_folder, "hot", &value, &size_bytes, NULL) != 1 || size_bytes != 4)
        return 5;
    free(value);
    return 0;
}

static void test_store_that_is_only_read(void **state)
{
    const struct store_fixture *f = *state;
    char cache[FIXTURE_PATH_BYTES];
    int status;
    pid_t child;

    store_rig_path(&f->rig, "cache", cache);
    assert_int_equal(mkdir(cache, 0777), 0);
    assert_int_equal(chmod(cache, 0777), 0);
    assert_int_equal(chmod(f->rig.root, 0755), 0);
    assert_int_equal(sl_advice_write(f->rig.store_folder, "hot", "theirs", 6, NULL), 0);
    assert_int_equal(chmod(f->rig.store_folder, 0555), 0);
    child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(remember_elsewhere(f->rig.store_folder, cache));
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(chmod(f->rig.store_folder, 0755), 0);
}

#define WITH_STORE(test)                                                                           \
    cmocka_unit_test_setup_teardown(test, store_fixture_create, store_fixture_destroy)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_STORE(test_links_are_not_followed),
        WITH_STORE(test_paths_are_checked),
        cmocka_unit_test(test_copied_names_are_known),
        WITH_STORE(test_elsewhere_is_asked_for),
        WITH_STORE(test_moved_while_packed),
        WITH_STORE(test_other_stores_keep_their_files),
        WITH_STORE(test_one_packer_for_a_file),
        WITH_STORE(test_zeros_and_ends_are_covered),
        WITH_STORE(test_lost_drive),
        WITH_STORE(test_lost_catalog),
        WITH_STORE(test_damaged_advice),
        WITH_STORE(test_store_that_is_only_read),
    };

    return cmocka_run_group_tests_name("store_stranger", tests, NULL, NULL);
}
