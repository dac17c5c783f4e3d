/* Owns the catalog's contents in memory, and compares them with the files. */
#include "storage/store/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/file.h"
#include "core/base/size.h"
#include "storage/store/catalog_entries.h"
#include "storage/io/plain_file.h"
#include "storage/store/store_copies.h"
#include "storage/store/store_internal.h"

static int no_memory(const struct sl_store *store, struct sl_err *err)
{
    return sl_err_set(err, -ENOMEM, "%s: out of memory", store->folder);
}

static int bad_entry(const struct sl_store *store, const char *key, struct sl_err *err)
{
    return sl_err_set(err, -SL_ECORRUPT, "%s: the catalog's entry \"%s\" is not valid",
                      store->folder, key);
}

static bool has(const char *folder, const char *name)
{
    char *path = sl_store_path(folder, name);
    struct stat status;
    bool found = path && lstat(path, &status) == 0;

    free(path);
    return found;
}

bool sl_store_is(const char *folder)
{
    return has(folder, SL_STORE_SEALED_FILE) || has(folder, SL_STORE_CATALOG_FILE) ||
           has(folder, SL_STORE_VERSION_1_FILE);
}

/* ---- reading the catalog ----------------------------------------------------------------------
 */

static int not_complete(const char *folder, struct sl_err *err)
{
    return sl_err_set(err, -SL_EFORMAT,
                      "%s: the store is not complete: run sluice pack again to go on", folder);
}

static int read_model(struct sl_store *store, const struct sl_catalog_entries *catalog,
                      enum sl_store_use use, struct sl_err *err)
{
    const uint8_t *value;
    size_t size;

    if (!sl_catalog_entries_get(catalog, SL_STORE_KEY_MODEL, &value, &size))
        return sl_err_set(err, -SL_EFORMAT, "%s: the catalog is not of a packed model",
                          store->folder);
    if (!sl_store_model_decode(&store->model, value, size))
        return bad_entry(store, SL_STORE_KEY_MODEL, err);
    if (store->model.format_version != SL_STORE_VERSION)
        return sl_err_set(err, -SL_EUNSUPPORTED,
                          "%s: the store has format version %u; this sluice knows version %u",
                          store->folder, store->model.format_version, SL_STORE_VERSION);
    if (!sl_catalog_entries_get(catalog, SL_STORE_KEY_STATE, &value, &size) ||
        !sl_store_state_decode(&store->state, value, size) ||
        store->state.n_tensors_done > store->model.n_tensors ||
        store->state.n_experts_done > sl_store_expert_count(&store->model.shape))
        return bad_entry(store, SL_STORE_KEY_STATE, err);
    if (!store->state.complete && use != SL_STORE_RESUME)
        return not_complete(store->folder, err);
    if (store->state.complete &&
        (store->state.n_tensors_done != store->model.n_tensors ||
         store->state.n_experts_done != sl_store_expert_count(&store->model.shape)))
        return bad_entry(store, SL_STORE_KEY_STATE, err);
    return 0;
}

static int take_copied_file(void *context, const char *key, const uint8_t *value, size_t size_bytes,
                            struct sl_err *err)
{
    struct sl_store *store = context;

    if (store->n_copied == COPIED_FILES_MAX ||
        !sl_store_copied_file_decode(&store->copied[store->n_copied], value, size_bytes))
        return bad_entry(store, key, err);
    store->n_copied++;
    return 0;
}

/* Tensors and experts must come in the order of their numbers, with none missing and none beyond
 * those that the state counts as done. */
static int take_tensor(void *context, const char *key, const uint8_t *value, size_t size_bytes,
                       struct sl_err *err)
{
    struct sl_store *store = context;
    char wanted[SL_STORE_KEY_BYTES];

    sl_store_tensor_key(wanted, store->n_read);
    if (store->n_read == store->state.n_tensors_done || strcmp(key, wanted) != 0 ||
        !sl_store_tensor_decode(&store->tensors[store->n_read], value, size_bytes))
        return bad_entry(store, key, err);
    store->n_read++;
    return 0;
}

/* Returns whether a record has its size, or less if it is compressed, and all its parts are in
 * files of the store. */
static bool record_is_sound(const struct sl_store *store, const struct sl_packed_expert *expert)
{
    const uint64_t record_bytes = sl_packed_expert_bytes(&store->model.shape);
    const uint64_t stored_bytes = sl_packed_expert_stored_bytes(expert);

    for (uint32_t i = 0; i < expert->n_parts; i++) {
        if (expert->parts[i].file_index >= store->model.n_files)
            return false;
    }
    return expert->compressed
               ? sl_store_layout_compresses(store->model.layout) && stored_bytes < record_bytes
               : stored_bytes == record_bytes;
}

static int take_expert(void *context, const char *key, const uint8_t *value, size_t size_bytes,
                       struct sl_err *err)
{
    struct sl_store *store = context;
    struct sl_packed_expert *expert = &store->experts[store->n_read];
    char wanted[SL_STORE_KEY_BYTES];

    sl_store_expert_key(wanted, sl_store_expert_at(&store->model.shape, store->n_read));
    if (store->n_read == store->state.n_experts_done || strcmp(key, wanted) != 0 ||
        !sl_store_expert_decode(expert, value, size_bytes) || !record_is_sound(store, expert))
        return bad_entry(store, key, err);
    store->n_read++;
    return 0;
}

static int read_entries(struct sl_store *store, const struct sl_catalog_entries *catalog,
                        const char *prefix, sl_catalog_entry_fn *take, uint32_t n_expected,
                        struct sl_err *err)
{
    int rc;

    store->n_read = 0;
    rc = sl_catalog_entries_each(catalog, prefix, take, store, err);
    if (rc == 0 && store->n_read != n_expected)
        return sl_err_set(err, -SL_ECORRUPT,
                          "%s: the catalog has %u entries \"%s...\", expected %u", store->folder,
                          store->n_read, prefix, n_expected);
    return rc;
}

/* Reads the sealed copy, or the catalog that a pack under way has written. */
static int open_catalog(struct sl_catalog_entries *catalog, const char *folder,
                        enum sl_store_use use, struct sl_err *err)
{
    struct sl_err why = {0};
    int rc;

    if (!has(folder, SL_STORE_SEALED_FILE) && !has(folder, SL_STORE_CATALOG_FILE) &&
        has(folder, SL_STORE_VERSION_1_FILE))
        return sl_err_set(err, -SL_EUNSUPPORTED,
                          "%s: the store has format version 1; this sluice knows version %u: pack "
                          "the checkpoint again",
                          folder, SL_STORE_VERSION);
    if (use != SL_STORE_RESUME && !has(folder, SL_STORE_SEALED_FILE) &&
        has(folder, SL_STORE_CATALOG_FILE))
        return sl_err_set(err, -SL_EFORMAT,
                          "%s: the store is not complete: run sluice pack again to go on; or if "
                          "%s was lost: sluice verify --repair-catalog",
                          folder, SL_STORE_SEALED_FILE);
    rc = use == SL_STORE_RESUME ? sl_store_catalog_read(catalog, folder, &why)
                                : sl_store_sealed_read(catalog, folder, &why);
    return rc < 0 ? sl_err_set(err, rc, "%s%s", why.message,
                               rc == -SL_ECORRUPT || rc == -ENOENT
                                   ? "; sluice verify --repair-catalog can repair it from a copy"
                                   : "")
                  : 0;
}

static int read_files(struct sl_store *store, const struct sl_catalog_entries *catalog,
                      struct sl_err *err)
{
    for (uint32_t i = 0; i < store->model.n_files; i++) {
        char key[SL_STORE_KEY_BYTES];
        const char *path = store->files[i].path;
        const uint8_t *value;
        size_t size;

        sl_store_file_key(key, i);
        if (!sl_catalog_entries_get(catalog, key, &value, &size) ||
            !sl_store_file_decode(&store->files[i], value, size) ||
            !sl_store_file_is_sound(&store->files[i], i))
            return bad_entry(store, key, err);
        if (asprintf(&store->paths[i], "%s%s%s", path[0] == '/' ? "" : store->folder,
                     path[0] == '/' ? "" : "/", path) < 0) {
            store->paths[i] = NULL;
            return no_memory(store, err);
        }
    }
    return 0;
}

static int read_catalog(struct sl_store *store, const struct sl_catalog_entries *catalog,
                        enum sl_store_use use, struct sl_err *err)
{
    const struct sl_store_state *state = &store->state;
    int rc;

    if ((rc = read_model(store, catalog, use, err)) < 0 ||
        (rc = read_files(store, catalog, err)) < 0 ||
        (rc = sl_catalog_entries_each(catalog, SL_STORE_PREFIX_COPIED, take_copied_file, store,
                                      err)) < 0)
        return rc;
    /* + 1: there may be none yet. */
    store->tensors = calloc(state->n_tensors_done + 1, sizeof(*store->tensors));
    store->experts = calloc(state->n_experts_done + 1, sizeof(*store->experts));
    if (!store->tensors || !store->experts)
        return no_memory(store, err);
    if ((rc = read_entries(store, catalog, SL_STORE_PREFIX_TENSOR, take_tensor,
                           state->n_tensors_done, err)) < 0)
        return rc;
    return read_entries(store, catalog, SL_STORE_PREFIX_EXPERT, take_expert, state->n_experts_done,
                        err);
}

/* ---- against the files ------------------------------------------------------------------------
 */

/* Explains an error of a file outside the store's folder, which may have been moved. */
static int explain_elsewhere(const struct sl_store *store, uint32_t i, int code, struct sl_err *err)
{
    return sl_err_set(
        err, code,
        "%s: cannot open: %s; if it was moved: sluice verify STORE --stripe DIR; if it "
        "is lost: sluice verify STORE --repair SOURCE --stripe NEWDIR",
        store->paths[i], sl_strerror(code));
}

/* Checks a file's size. A file may be missing as long as the catalog has nothing in it. */
static int look_at_file(struct sl_store *store, uint32_t i, enum sl_store_use use,
                        struct sl_err *err)
{
    struct stat status;
    int rc = sl_plain_file_check(store->paths[i], err);

    if (rc == 0 && stat(store->paths[i], &status) == 0) {
        store->file_bytes[i] = (uint64_t)status.st_size;
        return 0;
    }
    if (rc == -ELOOP || rc == -SL_EFORMAT)
        return rc;
    if (!store->state.complete || use == SL_STORE_MOVED)
        return 0;
    return i >= 2 ? explain_elsewhere(store, i, rc, err) : rc;
}

static int look_at_files(struct sl_store *store, enum sl_store_use use, struct sl_err *err)
{
    int rc = 0;

    for (uint32_t i = 0; i < store->model.n_files && rc == 0; i++)
        rc = look_at_file(store, i, use, err);
    for (uint32_t i = 0; i < store->n_copied && rc == 0; i++) {
        char *path = sl_store_path(store->folder, store->copied[i].name);

        if (!path)
            return no_memory(store, err);
        rc = sl_plain_file_check(path, err);
        free(path);
        if (rc != -ELOOP && rc != -SL_EFORMAT)
            rc = 0; /* who needs it will tell that it is not there */
    }
    return rc;
}

uint64_t sl_store_file_end_bytes(const struct sl_store *store, uint32_t file_index)
{
    uint64_t end_bytes = 0;

    for (uint32_t i = 0; file_index == 0 && i < store->state.n_tensors_done; i++) {
        const struct sl_extent *extent = &store->tensors[i].extent;
        uint64_t bytes = extent->offset_bytes + sl_round_up(extent->size_bytes, SL_BLOCK_BYTES);

        end_bytes = bytes > end_bytes ? bytes : end_bytes;
    }
    for (uint32_t i = 0; file_index > 0 && i < store->state.n_experts_done; i++) {
        for (uint32_t k = 0; k < store->experts[i].n_parts; k++) {
            const struct sl_extent *part = &store->experts[i].parts[k];
            uint64_t bytes = part->offset_bytes + part->size_bytes;

            if (part->file_index == file_index && bytes > end_bytes)
                end_bytes = bytes;
        }
    }
    return end_bytes;
}

static int check_extent(const struct sl_store *store, const struct sl_extent *extent,
                        struct sl_err *err)
{
    uint64_t end_bytes = extent->offset_bytes + extent->size_bytes;

    if (end_bytes > store->file_bytes[extent->file_index])
        return sl_err_set(err, -SL_ECORRUPT,
                          "%s: the file has %llu bytes, but the catalog has data up to %llu",
                          store->paths[extent->file_index],
                          (unsigned long long)store->file_bytes[extent->file_index],
                          (unsigned long long)end_bytes);
    return 0;
}

static int check_extents(const struct sl_store *store, struct sl_err *err)
{
    int rc = 0;

    for (uint32_t i = 0; rc == 0 && i < store->state.n_tensors_done; i++)
        rc = check_extent(store, &store->tensors[i].extent, err);
    for (uint32_t i = 0; rc == 0 && i < store->state.n_experts_done; i++) {
        for (uint32_t k = 0; rc == 0 && k < store->experts[i].n_parts; k++)
            rc = check_extent(store, &store->experts[i].parts[k], err);
    }
    return rc;
}

/* ---- the outside ------------------------------------------------------------------------------
 */

int sl_store_open(struct sl_store **ret_store, const char *folder, enum sl_store_use use,
                  struct sl_err *err)
{
    struct sl_store *store = calloc(1, sizeof(*store));
    struct sl_catalog_entries catalog = {0};
    int rc;

    if (!store)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", folder);
    sl_store_weights_init(&store->weights);
    store->folder = strdup(folder);
    if (!store->folder) {
        rc = sl_err_set(err, -ENOMEM, "%s: out of memory", folder);
        goto out;
    }
    if ((rc = open_catalog(&catalog, folder, use, err)) < 0 ||
        (rc = read_catalog(store, &catalog, use, err)) < 0 ||
        (rc = look_at_files(store, use, err)) < 0 ||
        (use < SL_STORE_REPAIR && (rc = check_extents(store, err)) < 0) ||
        (rc = sl_store_weights_open(store, err)) < 0)
        goto out;
    *ret_store = store;
    store = NULL; /* now the caller's */
out:
    sl_catalog_entries_fini(&catalog);
    sl_store_close(store);
    return rc;
}

void sl_store_close(struct sl_store *store)
{
    if (!store)
        return;
    sl_store_weights_fini(&store->weights);
    for (uint32_t i = 0; i < SL_STORE_FILES_MAX; i++)
        free(store->paths[i]);
    free(store->tensors);
    free(store->experts);
    free(store->folder);
    free(store);
}

const char *sl_store_folder(const struct sl_store *store)
{
    return store->folder;
}

const struct sl_store_model *sl_store_model(const struct sl_store *store)
{
    return &store->model;
}

const struct sl_store_state *sl_store_state(const struct sl_store *store)
{
    return &store->state;
}

uint32_t sl_store_file_count(const struct sl_store *store)
{
    return store->model.n_files;
}

const char *sl_store_file_path(const struct sl_store *store, uint32_t file_index)
{
    sl_assert(file_index < store->model.n_files);
    return store->paths[file_index];
}

const struct sl_store_file *sl_store_file(const struct sl_store *store, uint32_t file_index)
{
    sl_assert(file_index < store->model.n_files);
    return &store->files[file_index];
}

uint32_t sl_store_copied_file_count(const struct sl_store *store)
{
    return store->n_copied;
}

const struct sl_store_copied_file *sl_store_copied_file(const struct sl_store *store, uint32_t i)
{
    sl_assert(i < store->n_copied);
    return &store->copied[i];
}

const struct sl_store_tensor *sl_store_tensor(const struct sl_store *store, uint32_t tensor_index)
{
    sl_assert(tensor_index < store->state.n_tensors_done);
    return &store->tensors[tensor_index];
}

const struct sl_packed_expert *sl_store_expert(const struct sl_store *store,
                                               struct sl_expert_key key)
{
    uint32_t number = key.layer_index * store->model.shape.n_routed_experts + key.expert_index;

    sl_assert(number < store->state.n_experts_done);
    return &store->experts[number];
}

uint64_t sl_store_saved_bytes(const struct sl_store *store)
{
    uint64_t bytes = store->state.n_experts_done * sl_packed_expert_bytes(&store->model.shape);

    for (uint32_t i = 0; i < store->state.n_experts_done; i++)
        bytes -= sl_packed_expert_stored_bytes(&store->experts[i]);
    return bytes;
}
