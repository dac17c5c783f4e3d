#include "tests/store_rig.h"

#include <fcntl.h>
#include <ftw.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/base/file.h"
#include "storage/store/store_copies.h"
#include "storage/pack/store_repair.h"
#include "tests/io_fault.h"

#define FILE_BYTES_MAX (UINT64_C(64) << 20)

const struct sl_expert_shape store_rig_shape = {.num_hidden_layers = 2,
                                                .n_mtp_layers = 1,
                                                .n_routed_experts = 3,
                                                .hidden_size = 256,
                                                .moe_intermediate_size = 128};

const char *const store_rig_tensors[STORE_RIG_TENSORS] = {
    "embed.weight", "norm.weight", "layers.0.attn.wkv.scale", "layers.0.attn.wkv.weight"};

static const char *const shards[STORE_RIG_SHARDS] = {
    "model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors",
    "model-00003-of-00004.safetensors", "model-00004-of-00004.safetensors"};

/* Bytes that any kind of tensor may have. Scales are few, as real ones are, and zstd halves them;
 * of the rest it makes nothing. */
static void fill(const struct store_rig *rig, uint8_t weights)
{
    for (uint32_t i = 0; i < sl_checkpoint_tensor_count(rig->checkpoint); i++) {
        const struct sl_checkpoint_tensor *tensor = sl_checkpoint_tensor_at(rig->checkpoint, i);
        int fd = open(sl_checkpoint_file_path(rig->checkpoint, tensor->file_index), O_WRONLY);
        const bool is_scale = strstr(tensor->name, ".scale");
        uint8_t *bytes = malloc(tensor->info.size_bytes);
        uint64_t random = i + 1;

        assert_non_null(bytes);
        assert_true(fd >= 0);
        for (uint64_t k = 0; k < tensor->info.size_bytes; k++) {
            uint64_t byte = io_fault_random(&random);

            bytes[k] = (uint8_t)((is_scale ? 112 + byte % 3 : byte % 180) ^ weights);
        }
        assert_int_equal(pwrite(fd, bytes, tensor->info.size_bytes, (off_t)tensor->offset_bytes),
                         tensor->info.size_bytes);
        free(bytes);
        close(fd);
    }
}

void store_rig_path(const struct store_rig *rig, const char *name, char path[FIXTURE_PATH_BYTES])
{
    assert_true(snprintf(path, FIXTURE_PATH_BYTES, "%s/%s", rig->root, name) < FIXTURE_PATH_BYTES);
}

static void open_checkpoint(struct store_rig *rig)
{
    assert_int_equal(sl_checkpoint_open_cut(&rig->checkpoint, rig->checkpoint_folder, NULL), 0);
    assert_int_equal(
        sl_expert_map_of_checkpoint(&rig->experts, rig->checkpoint, &store_rig_shape, NULL), 0);
}

void store_rig_reopen(struct store_rig *rig)
{
    sl_expert_map_close(rig->experts);
    sl_checkpoint_close(rig->checkpoint);
    open_checkpoint(rig);
}

void store_rig_refill(struct store_rig *rig)
{
    fill(rig, 0);
    store_rig_reopen(rig);
}

void store_rig_open(struct store_rig *rig, uint8_t weights)
{
    struct fixture_list lists[STORE_RIG_SHARDS] = {0};
    FILE *index;

    rig->compress = false;
    fixture_folder_create(rig->root);
    store_rig_path(rig, "checkpoint", rig->checkpoint_folder);
    store_rig_path(rig, "store", rig->store_folder);
    assert_int_equal(mkdir(rig->checkpoint_folder, 0777), 0);
    fixture_add(&lists[0], SL_DTYPE_BF16, 41, 256, "embed.weight");
    fixture_add(&lists[0], SL_DTYPE_F8_E4M3, 32, 128, "layers.0.attn.wkv.weight");
    fixture_add(&lists[0], SL_DTYPE_F8_E8M0, 1, 1, "layers.0.attn.wkv.scale");
    fixture_add_experts(&lists[1], "layers.0", 3, 256, 128);
    fixture_add_experts(&lists[2], "layers.1", 3, 256, 128);
    fixture_add_experts(&lists[0], "mtp.0", 3, 256, 128);
    fixture_add(&lists[1], SL_DTYPE_F32, 256, 0, "norm.weight");
    fixture_add(&lists[3], SL_DTYPE_BF16, 3, 5, "mtp.1.not_understood");
    index = fixture_index_begin(rig->checkpoint_folder);
    for (uint32_t i = 0; i < STORE_RIG_SHARDS; i++) {
        fixture_write_shard(rig->checkpoint_folder, shards[i], &lists[i], true);
        fixture_index_add(index, &lists[i], shards[i]);
        fixture_fini(&lists[i]);
    }
    fixture_index_end(index);
    fixture_write_text(rig->checkpoint_folder, "config.json", "{\"of\": \"a test\"}\n");
    fixture_write_text(rig->checkpoint_folder, "tokenizer.json", "{}\n");
    open_checkpoint(rig);
    assert_int_equal(sl_pool_create(&rig->pool, 1, NULL), 0);
    fill(rig, weights);
}

void store_rig_close(struct store_rig *rig)
{
    sl_pool_destroy(rig->pool);
    sl_expert_map_close(rig->experts);
    sl_checkpoint_close(rig->checkpoint);
    store_rig_remove(rig->root);
}

static const uint64_t weights[] = {1, 1};

struct sl_pack_options store_rig_options(const struct store_rig *rig, const char *store_folder)
{
    return (struct sl_pack_options){
        .store_folder = store_folder,
        .checkpoint_folder = rig->checkpoint_folder,
        .checkpoint = rig->checkpoint,
        .experts = rig->experts,
        .tensors = store_rig_tensors,
        .n_tensors = STORE_RIG_TENSORS,
        .weights = weights,
        .compress = rig->compress,
        .pool = rig->pool,
        .writer = sl_file_writer(),
        .batch_bytes = 2 * sl_packed_expert_bytes(&store_rig_shape),
    };
}

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

struct sl_file_writer *store_rig_writer(void)
{
    static struct sl_file_writer_ops ops;
    static struct sl_file_writer writer = {&ops};

    ops = *sl_file_writer()->ops;
    ops.sync = no_sync;
    ops.sync_folder = no_sync_folder;
    return &writer;
}

void store_rig_of_store(struct sl_pack_options *options, const char *store_folder)
{
    options->checkpoint = NULL;
    options->checkpoint_folder = store_folder;
    assert_int_equal(sl_store_open(&options->from, store_folder, SL_STORE_RUN, NULL), 0);
}

void store_rig_pack(const struct store_rig *rig, const char *store_folder)
{
    struct sl_pack_options options = store_rig_options(rig, store_folder);
    struct sl_err err = {0};

    options.batch_bytes = UINT64_MAX; /* in one go: the fewest syncs */
    options.writer = store_rig_writer();
    if (sl_store_pack(&options, NULL, &err) < 0)
        fail_msg("pack: %s", err.message);
}

/* ---- comparing --------------------------------------------------------------------------------
 */

static void assert_same_file(const char *folder_a, const char *folder_b, const char *name)
{
    char path[FIXTURE_PATH_BYTES + 64], *a, *b;
    size_t a_bytes, b_bytes;

    snprintf(path, sizeof(path), "%s/%s", folder_a, name);
    assert_int_equal(sl_file_read_all(path, FILE_BYTES_MAX, &a, &a_bytes, NULL), 0);
    snprintf(path, sizeof(path), "%s/%s", folder_b, name);
    assert_int_equal(sl_file_read_all(path, FILE_BYTES_MAX, &b, &b_bytes, NULL), 0);
    assert_int_equal(a_bytes, b_bytes);
    if (memcmp(a, b, a_bytes) != 0)
        fail_msg("%s differs", name);
    free(a);
    free(b);
}

void store_rig_assert_same(const char *store_a, const char *store_b)
{
    static const char *const names[] = {"config.json", "tokenizer.json", "dense.bin",
                                        "experts-1.bin", SL_STORE_SEALED_FILE};
    struct sl_catalog_entries a, b;
    struct sl_store *store;

    assert_int_equal(sl_store_catalog_read(&a, store_a, NULL), 0);
    assert_int_equal(sl_store_catalog_read(&b, store_b, NULL), 0);
    assert_true(sl_catalog_entries_same(&a, &b));
    sl_catalog_entries_fini(&a);
    sl_catalog_entries_fini(&b);
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        assert_same_file(store_a, store_b, names[i]);
    assert_int_equal(sl_store_open(&store, store_a, SL_STORE_RUN, NULL), 0);
    sl_store_close(store);
}

/* ---- damage -----------------------------------------------------------------------------------
 */

static int remove_one(const char *path, const struct stat *status, int type, struct FTW *walk)
{
    (void)status;
    (void)type;
    (void)walk;
    return remove(path);
}

void store_rig_remove(const char *folder)
{
    if (access(folder, F_OK) == 0)
        assert_int_equal(nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS), 0);
}

/* The entries, but that one of them is changed. */
struct change {
    struct sl_catalog_entries entries;
    const char *key;
    const void *value;
    size_t size_bytes;
    bool done;
};

static void change_add(struct change *c, const char *key, const void *value, size_t size_bytes)
{
    assert_int_equal(sl_catalog_entries_add(&c->entries, key, strlen(key), value, size_bytes), 0);
}

static int change_entry(void *context, const char *key, const uint8_t *value, size_t size_bytes,
                        struct sl_err *err)
{
    uint8_t changed[SL_STORE_VALUE_BYTES_MAX];
    struct change *c = context;

    (void)err;
    if (!c->done && strcmp(key, c->key) > 0) { /* a new one */
        c->done = true;
        change_add(c, c->key, c->value, c->size_bytes);
    }
    if (strcmp(key, c->key) == 0) {
        c->done = true;
        assert_true(size_bytes <= sizeof(changed));
        if (c->value) {
            value = c->value;
            size_bytes = c->size_bytes;
        } else {
            assert_true(c->size_bytes < size_bytes);
            memcpy(changed, value, size_bytes);
            changed[c->size_bytes] ^= 0x40;
            value = changed;
        }
    }
    change_add(c, key, value, size_bytes);
    return 0;
}

void store_rig_put(const char *store_folder, const char *key, const void *value, size_t size_bytes)
{
    struct change c = {.key = key, .value = value, .size_bytes = size_bytes};
    struct sl_catalog_entries entries;

    assert_int_equal(sl_store_sealed_read(&entries, store_folder, NULL), 0);
    assert_int_equal(sl_catalog_entries_each(&entries, "", change_entry, &c, NULL), 0);
    if (!c.done)
        change_add(&c, key, value, size_bytes);
    assert_int_equal(
        sl_store_catalog_make(NULL, store_folder, &c.entries, store_rig_writer(), NULL), 0);
    assert_int_equal(sl_store_copies_seal(store_folder, &c.entries, store_rig_writer(), NULL), 0);
    sl_catalog_entries_fini(&c.entries);
    sl_catalog_entries_fini(&entries);
}

void store_rig_stop_at_half(void *context, uint64_t done, uint64_t total)
{
    atomic_bool *stop = context;

    atomic_store(stop, done > total / 2);
}

void store_rig_assert_says(const struct sl_err *err, const char *text)
{
    if (!strstr(err->message, text) || strchr(err->message, '\n'))
        fail_msg("\"%s\" lacks \"%s\"", err->message, text);
}

void store_rig_assert_refused(const char *store_folder, int code, const char *text)
{
    struct sl_store *store;
    struct sl_err err = {0};

    assert_int_equal(sl_store_open(&store, store_folder, SL_STORE_RUN, &err), code);
    store_rig_assert_says(&err, text);
    store_rig_assert_says(&err, store_folder);
}

int store_fixture_create(void **state)
{
    struct store_fixture *f = calloc(1, sizeof(*f));

    assert_non_null(f);
    store_rig_open(&f->rig, 0);
    store_rig_path(&f->rig, "other", f->other);
    store_rig_pack(&f->rig, f->rig.store_folder);
    *state = f;
    return 0;
}

int store_fixture_destroy(void **state)
{
    struct store_fixture *f = *state;

    store_rig_close(&f->rig);
    free(f);
    return 0;
}

static void on_bad(void *context, const struct sl_store_item *item, const char *message)
{
    struct store_rig_damage *found = context;

    assert_true(found->n_items < STORE_RIG_DAMAGE_MAX);
    found->items[found->n_items++] = *item;
    snprintf(found->message, sizeof(found->message), "%s", message);
}

/* Items that only damage makes. */
static uint32_t n_tails(const struct store_rig_damage *found)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < found->n_items; i++)
        n += found->items[i].kind == SL_STORE_TAIL;
    return n;
}

void store_rig_verify(const char *folder, struct store_rig_damage *found)
{
    const struct sl_verify_options options = {
        .open_io = sl_io_threads_open, .on_bad = on_bad, .bad_context = found};
    struct sl_verify_result result;
    struct sl_store *store;
    uint32_t n_copies, items_each; /* a compressed record is one, else each matrix is */

    *found = (struct store_rig_damage){0};
    assert_int_equal(sl_store_open(&store, folder, SL_STORE_REPAIR, NULL), 0);
    assert_int_equal(sl_store_verify(store, &options, &result, NULL), 0);
    items_each = sl_store_layout_compresses(sl_store_model(store)->layout) ? 1 : SL_EXPERT_MATRICES;
    n_copies = sl_store_file_count(store) - 1; /* of the catalog, beside the one that is read */
    assert_int_equal(result.n_items - n_tails(found),
                     n_copies + 2 + STORE_RIG_TENSORS +
                         items_each * sl_store_expert_count(&store_rig_shape));
    assert_int_equal(result.n_bad, found->n_items);
    sl_store_close(store);
}

int store_rig_repair(const struct store_rig *from, const char *folder,
                     const struct store_rig_damage *found, struct sl_err *err)
{
    struct sl_repair_options options = {.checkpoint_folder = from->checkpoint_folder,
                                        .checkpoint = from->checkpoint,
                                        .experts = from->experts,
                                        .writer = store_rig_writer()};
    struct sl_store *store;
    int rc;

    assert_int_equal(sl_store_open(&store, folder, SL_STORE_REPAIR, NULL), 0);
    options.store = store;
    rc = sl_store_repair(&options, found->items, found->n_items, err);
    sl_store_close(store);
    return rc;
}
