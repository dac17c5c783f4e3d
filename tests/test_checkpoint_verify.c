/* Downloads that are checked: SHA-256 by published examples; each way in which a list or a folder
 * tells the hashes of files; and a small sound folder that is damaged in one way after the other,
 * of which exactly the damaged file is reported. Scales that are no number are found wherever they
 * lie, also across the pieces that are read at a time. */
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
#include <unistd.h>

#include <cmocka.h>

#include "storage/checkpoint/checkpoint.h"
#include "storage/checkpoint/checkpoint_verify.h"
#include "tests/fixture_checkpoint.h"
#include "tests/io_fault.h"

#define PIECE_BYTES (1u << 20) /* that are read at a time */
#define LARGE "large.safetensors"

#define FOUND_MAX 32u

struct found {
    uint32_t n;
    char names[FOUND_MAX][64]; /* the first ones */
    char messages[FOUND_MAX][512];
};

static void on_bad(void *context, const char *name, const char *message)
{
    struct found *found = context;

    if (found->n < FOUND_MAX) {
        snprintf(found->names[found->n], sizeof(found->names[0]), "%s", name);
        snprintf(found->messages[found->n], sizeof(found->messages[0]), "%s", message);
    }
    found->n++;
}

static void on_progress(void *context, uint64_t done, uint64_t total)
{
    (void)context;
    assert_true(done <= total);
}

static atomic_bool stop;

static int verify(const char *folder, const struct sl_file_hashes *list, sl_io_open_fn *open_io,
                  struct found *found, struct sl_checkpoint_verify_result *result,
                  struct sl_err *err)
{
    const struct sl_checkpoint_verify_options options = {
        .folder = folder,
        .list = list,
        .open_io = open_io ? open_io : sl_io_threads_open,
        .n_threads = 2,
        .on_bad = on_bad,
        .bad_context = found,
        .on_progress = on_progress,
        .stop = &stop,
    };

    *found = (struct found){0};
    return sl_checkpoint_verify(&options, result, err);
}

/* One file is bad, with these words. */
static void assert_bad(const char *folder, const struct sl_file_hashes *list, const char *name,
                       const char *says)
{
    struct sl_checkpoint_verify_result result;
    struct sl_err err = {0};
    struct found found;

    if (verify(folder, list, NULL, &found, &result, &err) != 0)
        fail_msg("%s", err.message);
    assert_int_equal(found.n, 1);
    assert_int_equal(result.n_bad, 1);
    assert_string_equal(found.names[0], name);
    if (!strstr(found.messages[0], says) || !strstr(found.messages[0], name))
        fail_msg("\"%s\" does not say \"%s\"", found.messages[0], says);
}

static void assert_sound(const char *folder, const struct sl_file_hashes *list, uint32_t n_files,
                         uint32_t n_hashed)
{
    struct sl_checkpoint_verify_result result;
    struct sl_err err = {0};
    struct found found;

    if (verify(folder, list, NULL, &found, &result, &err) != 0 || found.n > 0)
        fail_msg("%s", found.n ? found.messages[0] : err.message);
    assert_int_equal(result.n_bad, 0);
    assert_int_equal(result.n_files, n_files);
    assert_int_equal(result.n_hashed, n_hashed);
}

/* ---- hashes ------------------------------------------------------------------------------------
 */

static void test_sha256(void **state)
{
    /* FIPS 180-2, appendix B. */
    static const char empty[] = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    static const char million[] =
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";
    struct sl_sha256 *hash = sl_sha256_create();
    char hex[SL_SHA256_HEX + 1], as[1000];

    (void)state;
    assert_non_null(hash);
    for (int round = 0; round < 2; round++) {
        sl_sha256_reset(hash);
        sl_sha256_end(hash, hex);
        assert_string_equal(hex, empty);
        sl_sha256_reset(hash);
        memset(as, 'a', sizeof(as));
        for (int i = 0; i < 1000; i++)
            sl_sha256_add(hash, as, sizeof(as));
        sl_sha256_end(hash, hex);
        assert_string_equal(hex, million);
    }
    sl_sha256_destroy(hash);
    sl_sha256_destroy(NULL);
    assert_true(sl_sha256_is_hex(empty));
    assert_false(sl_sha256_is_hex(empty + 1));
    assert_false(
        sl_sha256_is_hex("cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cdg"));
}

#define HEX_A "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define HEX_B "BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB"
#define HEX_B_LOWER "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

static void test_lists(void **state)
{
    static const struct {
        const char *text, *says; /* NULL: a list */
        uint32_t n;
    } cases[] = {
        {HEX_A "  a.bin\n" HEX_B " *./some/b.bin\r\n\n" HEX_A "  c d.bin", NULL, 3},
        {"", "holds no SHA-256", 0},
        {HEX_A "  a\nnonsense\n", "line 2 is not a SHA-256", 0},
        {HEX_A "a  a.bin\n", "line 1", 0},
        {HEX_A " a.bin\n", "line 1", 0},
        {HEX_A "  \n", "line 1", 0},
    };
    char folder[FIXTURE_PATH_BYTES], path[FIXTURE_PATH_BYTES + 8], hex[SL_SHA256_HEX + 1];

    (void)state;
    fixture_folder_create(folder);
    snprintf(path, sizeof(path), "%s/list", folder);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct sl_file_hashes list = {0};
        struct sl_err err = {0};
        int rc;

        fixture_write_text(folder, "list", cases[i].text);
        rc = sl_file_hashes_read(&list, path, &err);
        if (cases[i].says) {
            assert_int_equal(rc, -SL_EFORMAT);
            assert_non_null(strstr(err.message, cases[i].says));
        } else {
            assert_int_equal(rc, 0);
            assert_int_equal(list.n, cases[i].n);
            assert_true(sl_file_hash_find(&list, folder, "b.bin", hex));
            assert_string_equal(hex, HEX_B_LOWER);
            assert_true(sl_file_hash_find(&list, folder, "c d.bin", hex));
            assert_false(sl_file_hash_find(&list, folder, "d.bin", hex));
        }
        sl_file_hashes_fini(&list);
    }
    fixture_folder_remove(folder);
}

/* The name of a link's target, and what hf download has noted; a list goes before both. */
static void test_hashes_by_the_folder(void **state)
{
    static struct sl_file_hash one = {HEX_A, (char *)"linked"};
    const struct sl_file_hashes list = {&one, 1};
    char folder[FIXTURE_PATH_BYTES], path[FIXTURE_PATH_BYTES + 64], hex[SL_SHA256_HEX + 1];
    const char *const folders[] = {".cache", ".cache/huggingface", ".cache/huggingface/download"};

    (void)state;
    fixture_folder_create(folder);
    snprintf(path, sizeof(path), "%s/linked", folder);
    assert_int_equal(symlink("../../blobs/" HEX_B, path), 0);
    assert_true(sl_file_hash_find(NULL, folder, "linked", hex));
    assert_string_equal(hex, HEX_B_LOWER);
    assert_true(sl_file_hash_find(&list, folder, "linked", hex));
    assert_string_equal(hex, HEX_A);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink("../../blobs/" HEX_B "5", path), 0);
    assert_false(sl_file_hash_find(NULL, folder, "linked", hex));
    for (size_t i = 0; i < 3; i++) {
        snprintf(path, sizeof(path), "%s/%s", folder, folders[i]);
        assert_int_equal(mkdir(path, 0700), 0);
    }
    fixture_write_text(path, "noted.metadata", "0123456789\n" HEX_A "\n1790000000.5\n");
    assert_true(sl_file_hash_find(NULL, folder, "noted", hex));
    assert_string_equal(hex, HEX_A);
    fixture_write_text(path, "noted.metadata", "0123456789\n0123456789abcdef\n1790000000.5\n");
    assert_false(sl_file_hash_find(NULL, folder, "noted", hex));
    fixture_unlink(path, "noted.metadata");
    for (size_t i = 3; i-- > 0;) {
        snprintf(path, sizeof(path), "%s/%s", folder, folders[i]);
        assert_int_equal(rmdir(path), 0);
    }
    fixture_folder_remove(folder);
}

/* ---- folders -----------------------------------------------------------------------------------
 */

/* The list of a folder's files, as they are now. */
static void make_list(const char *folder, const char *const *names, uint32_t n,
                      struct sl_file_hashes *list)
{
    struct sl_sha256 *hash = sl_sha256_create();

    *list = (struct sl_file_hashes){calloc(n, sizeof(*list->list)), n};
    for (uint32_t i = 0; i < n; i++) {
        char path[FIXTURE_PATH_BYTES + 64], bytes[4096];
        size_t got;
        FILE *file;

        snprintf(path, sizeof(path), "%s/%s", folder, names[i]);
        file = fopen(path, "r");
        assert_non_null(file);
        sl_sha256_reset(hash);
        while ((got = fread(bytes, 1, sizeof(bytes), file)) > 0)
            sl_sha256_add(hash, bytes, got);
        fclose(file);
        sl_sha256_end(hash, list->list[i].hex);
        list->list[i].name = strdup(names[i]);
    }
    sl_sha256_destroy(hash);
}

/* Zeros for data, since the fixture's own bytes may be scales that are no numbers. */
static int set_up(void **state)
{
    struct fixture_model *model = calloc(1, sizeof(*model));

    assert_non_null(model);
    fixture_model_create(model);
    fixture_write_shard(model->folder, FIXTURE_SHARD_1, &model->first, true);
    fixture_write_shard(model->folder, FIXTURE_SHARD_2, &model->second, true);
    *state = model;
    return 0;
}

static int tear_down(void **state)
{
    fixture_model_remove(*state);
    free(*state);
    return 0;
}

static const char *const names[] = {FIXTURE_SHARD_1, FIXTURE_SHARD_2, "config.json"};

static void test_damage_by_hash(void **state)
{
    struct fixture_model *model = *state;
    struct sl_file_hashes list;

    fixture_write_text(model->folder, "config.json", "{}");
    fixture_write_text(model->folder, "README.md", "not in the list");
    make_list(model->folder, names, 3, &list);
    assert_sound(model->folder, &list, 3, 3);
    fixture_flip_byte(model->folder, FIXTURE_SHARD_2,
                      fixture_file_size(model->folder, FIXTURE_SHARD_2) - 1);
    assert_bad(model->folder, &list, FIXTURE_SHARD_2, "its SHA-256 is ");
    fixture_flip_byte(model->folder, FIXTURE_SHARD_2,
                      fixture_file_size(model->folder, FIXTURE_SHARD_2) - 1);
    fixture_write_text(model->folder, "config.json", "{ }");
    assert_bad(model->folder, &list, "config.json", "its SHA-256 is ");
    fixture_unlink(model->folder, "config.json");
    assert_bad(model->folder, &list, "config.json", "is in the list, but not in the folder");
    sl_file_hashes_fini(&list);
}

static void test_damage_by_size(void **state)
{
    struct fixture_model *model = *state;
    const uint64_t size_bytes = fixture_file_size(model->folder, FIXTURE_SHARD_1);
    struct sl_checkpoint_verify_result result;
    struct found found;
    struct sl_err err;

    assert_sound(model->folder, NULL, 2, 0);
    fixture_truncate(model->folder, FIXTURE_SHARD_1, size_bytes - 1);
    assert_bad(model->folder, NULL, FIXTURE_SHARD_1, "is the file truncated");
    fixture_truncate(model->folder, FIXTURE_SHARD_1, size_bytes + 1);
    assert_bad(model->folder, NULL, FIXTURE_SHARD_1, "but its last tensor ends at byte");
    fixture_truncate(model->folder, FIXTURE_SHARD_1, 12);
    assert_bad(model->folder, NULL, FIXTURE_SHARD_1, "header");
    fixture_write_text(model->folder, FIXTURE_SHARD_1,
                       "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 34\n");
    assert_bad(model->folder, NULL, FIXTURE_SHARD_1, "Git LFS pointer");
    fixture_unlink(model->folder, FIXTURE_SHARD_1);
    assert_bad(model->folder, NULL, FIXTURE_SHARD_1, "No such file");
    fixture_unlink(model->folder, FIXTURE_SHARD_2);
    assert_int_equal(verify(model->folder, NULL, NULL, &found, &result, &err), 0);
    assert_int_equal(found.n, 2);
    assert_int_equal(result.n_bad, 2);
    assert_int_equal(result.n_files, 2);
}

/* A shard of its own lacks what the index says is in it. */
static void test_damage_by_index(void **state)
{
    struct fixture_model *model = *state;

    fixture_patch(model->folder, FIXTURE_SHARD_2, "norm.weight", "norm.weighs");
    assert_bad(model->folder, NULL, FIXTURE_SHARD_2, "norm.weight\" is said to be in");
}

/* ---- scales ------------------------------------------------------------------------------------
 */

static void write_at(const char *folder, const char *file, uint64_t offset_bytes, uint32_t bits,
                     size_t n)
{
    char path[FIXTURE_PATH_BYTES + 64];
    int fd;

    snprintf(path, sizeof(path), "%s/%s", folder, file);
    fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, &bits, n, (off_t)offset_bytes), n);
    close(fd);
}

/* Two tensors that are larger than a piece, and one that is no scale, in a header whose length lets
 * a float32 lie across the end of a piece. */
static void test_scales(void **state)
{
    static const struct {
        const char *tensor;
        uint32_t bits, n_bytes;
        bool bad;
    } cases[] = {
        {"a.scale", 0x7f800000, 4, true},  {"a.scale", 0xffc00001, 4, true},
        {"a.scale", 0x7f7fffff, 4, false}, {"b.scale", 0xff, 1, true},
        {"b.scale", 0xfe, 1, false},       {"c.weight", 0xffffffff, 4, false},
    };
    struct fixture_list list = {0};
    struct sl_checkpoint *checkpoint;
    char folder[FIXTURE_PATH_BYTES];

    (void)state;
    fixture_folder_create(folder);
    fixture_add(&list, SL_DTYPE_F32, 700, 1000, "a.scale");
    fixture_add(&list, SL_DTYPE_F8_E8M0, 2000, 1000, "b.scale");
    fixture_add(&list, SL_DTYPE_F32, 700, 1000, "c.weight");
    fixture_write_shard(folder, LARGE, &list, true);
    assert_sound(folder, NULL, 1, 0);
    assert_int_equal(sl_checkpoint_open(&checkpoint, folder, NULL), 0);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct sl_checkpoint_tensor *tensor = sl_checkpoint_find(checkpoint, cases[i].tensor);
        const uint64_t first = tensor->offset_bytes, n = cases[i].n_bytes;
        const uint64_t pieces_end = (first / PIECE_BYTES + 1) * PIECE_BYTES;
        /* The first scale, the last, and those around the end of a piece. */
        const uint64_t places[] = {
            first,
            first + tensor->info.size_bytes - n,
            first + (pieces_end - first) / n * n - n,
            first + (pieces_end - first) / n * n,
        };

        if (n == 4)
            assert_true(first % 4 != 0);
        for (int k = 0; k < 4; k++) {
            char says[64];

            write_at(folder, LARGE, places[k], cases[i].bits, n);
            snprintf(says, sizeof(says), "\"%s\" has a scale that is no number, at byte %llu",
                     cases[i].tensor, (unsigned long long)places[k]);
            if (cases[i].bad)
                assert_bad(folder, NULL, LARGE, says);
            else
                assert_sound(folder, NULL, 1, 0);
            write_at(folder, LARGE, places[k], 0, n);
        }
    }
    /* Of several in a tensor the first is told, of several tensors each. */
    for (uint32_t t = 0; t < 2; t++) {
        const struct sl_checkpoint_tensor *tensor =
            sl_checkpoint_find(checkpoint, t ? "b.scale" : "a.scale");

        for (uint64_t at = 0; at < tensor->info.size_bytes; at += 400000)
            write_at(folder, LARGE, tensor->offset_bytes + at, UINT32_MAX, 4);
    }
    {
        struct sl_checkpoint_verify_result result;
        struct found found;

        assert_int_equal(verify(folder, NULL, NULL, &found, &result, NULL), 0);
        assert_int_equal(found.n, 2);
        assert_int_equal(result.n_bad, 1);
    }
    sl_checkpoint_close(checkpoint);
    fixture_fini(&list);
    fixture_folder_remove(folder);
}

/* ---- drives ------------------------------------------------------------------------------------
 */

static struct io_fault_plan plan;

static int open_faulty(struct sl_io **ret_io, const char *const *paths, uint32_t n_files,
                       uint32_t depth, struct sl_err *err)
{
    struct sl_io *inner;
    int rc = sl_io_threads_open(&inner, paths, n_files, depth, err);

    if (rc < 0)
        return rc;
    *ret_io = io_fault_wrap(inner);
    io_fault_set(*ret_io, &plan);
    return 0;
}

static void test_drives(void **state)
{
    const struct fixture_model *model = *state;
    struct sl_checkpoint_verify_result result;
    struct sl_file_hashes list;
    struct found found;
    struct sl_err err;

    make_list(model->folder, names, 2, &list);
    plan = (struct io_fault_plan){.seed = 3, .short_permille = 300, .shuffle = true};
    assert_int_equal(verify(model->folder, &list, open_faulty, &found, &result, &err), 0);
    assert_int_equal(found.n, 0);
    plan = (struct io_fault_plan){.fail_nth = 1, .fail_code = -EIO};
    assert_int_equal(verify(model->folder, &list, open_faulty, &found, &result, &err), 0);
    assert_int_equal(found.n, 0); /* it was tried once more */
    plan.fail_for_good = true;
    assert_int_equal(verify(model->folder, &list, open_faulty, &found, &result, &err), 0);
    assert_int_equal(found.n, 2);
    assert_int_equal(result.n_bad, 2);
    assert_non_null(strstr(found.messages[0], found.names[0]));
    plan = (struct io_fault_plan){.fail_nth = 1}; /* wrong bytes */
    assert_int_equal(verify(model->folder, &list, open_faulty, &found, &result, &err), 0);
    assert_int_equal(result.n_bad, 2);
    assert_true(found.n > 2 && found.n <= FOUND_MAX); /* scales as well */
    sl_file_hashes_fini(&list);
}

static void test_stop_and_nothing(void **state)
{
    const struct fixture_model *model = *state;
    struct sl_checkpoint_verify_result result;
    struct found found;
    struct sl_err err;

    atomic_store(&stop, true);
    assert_int_equal(verify(model->folder, NULL, NULL, &found, &result, &err), -ECANCELED);
    atomic_store(&stop, false);
    assert_int_equal(verify("/nowhere/at/all", NULL, NULL, &found, &result, &err), -ENOENT);
    assert_non_null(strstr(err.message, "/nowhere/at/all"));
    fixture_write_text(model->folder, FIXTURE_INDEX, "{\"weight_map\": {}}");
    assert_int_equal(verify(model->folder, NULL, NULL, &found, &result, &err), -SL_EFORMAT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sha256),
        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_hashes_by_the_folder),
        cmocka_unit_test_setup_teardown(test_damage_by_hash, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_damage_by_size, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_damage_by_index, set_up, tear_down),
        cmocka_unit_test(test_scales),
        cmocka_unit_test_setup_teardown(test_drives, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_stop_and_nothing, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
