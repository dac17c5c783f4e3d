/* Owns the catalog's contents in memory and the descriptor of the dense tensors' file. */
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
#include "storage/io/checksum.h"
#include "storage/io/plain_file.h"
#include "storage/store/store_copies.h"

/* How far ahead of the loader the system is told to read: see read_ahead(). */
#define AHEAD_BYTES (UINT64_C(64) << 20)

#define COPIED_FILES_MAX 16u
#define NO_TENSOR UINT32_MAX

struct sl_store {
    struct sl_weight_source weights; /* first: the source is the store */
    char *folder;
    struct sl_store_model model;
    struct sl_store_state state;
    struct sl_store_file files[SL_STORE_FILES_MAX];
    char *paths[SL_STORE_FILES_MAX];
    uint64_t file_bytes[SL_STORE_FILES_MAX]; /* as they are */
    struct sl_store_copied_file copied[COPIED_FILES_MAX];
    uint32_t n_copied;
    struct sl_store_tensor *tensors; /* as they lie; n_tensors_done */
    uint32_t *by_name;               /* their numbers, by name */
    struct sl_packed_expert *experts;
    uint32_t n_read;      /* entries of the kind that is being read */
    int dense_fd;         /* -1 until opened */
    uint64_t asked_bytes; /* up to there the system has been asked to read ahead */

    /* The tensor that is being read in order, and how far. */
    struct sl_checksum_stream *stream;
    uint32_t stream_tensor;
    uint64_t stream_bytes;
    bool check;
};

static int no_memory(const struct sl_store *store, struct sl_err *err)
{
    return sl_err_set(err, -ENOMEM, "%s: out of memory", store->folder);
}

static int bad_entry(const struct sl_store *store, const char *key, struct sl_err *err)
{
    return sl_err_set(err, -SL_ECORRUPT, "%s: the catalog's entry \"%s\" makes no sense",
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

/* Tensors and experts come in the order of their numbers, none missing, none beyond what is done.
 */
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

/* A record has its size, or less if it is compressed, and all parts are in files of the store. */
static bool record_is_sound(const struct sl_store *store, const struct sl_packed_expert *expert)
{
    const uint64_t record_bytes = sl_packed_expert_bytes(&store->model.shape);
    const uint64_t stored_bytes = sl_packed_expert_stored_bytes(expert);

    for (uint32_t i = 0; i < expert->n_parts; i++) {
        if (expert->parts[i].file_index >= store->model.n_files)
            return false;
    }
    return expert->compressed
               ? store->model.layout == SL_STORE_LAYOUT_R16_ZSTD && stored_bytes < record_bytes
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

/* The sealed copy, or what a pack under way has written. */
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
    store->by_name = calloc(state->n_tensors_done + 1, sizeof(*store->by_name));
    store->experts = calloc(state->n_experts_done + 1, sizeof(*store->experts));
    if (!store->tensors || !store->by_name || !store->experts)
        return no_memory(store, err);
    if ((rc = read_entries(store, catalog, SL_STORE_PREFIX_TENSOR, take_tensor,
                           state->n_tensors_done, err)) < 0)
        return rc;
    return read_entries(store, catalog, SL_STORE_PREFIX_EXPERT, take_expert, state->n_experts_done,
                        err);
}

/* ---- against the files ------------------------------------------------------------------------
 */

/* Of a file that is outside the store's folder. */
static int explain_elsewhere(const struct sl_store *store, uint32_t i, int code, struct sl_err *err)
{
    return sl_err_set(
        err, code,
        "%s: cannot open: %s; if it was moved: sluice verify STORE --stripe DIR; if it "
        "is lost: sluice verify STORE --repair SOURCE --stripe NEWDIR",
        store->paths[i], sl_strerror(code));
}

/* A file need not be there as long as nothing is said to lie in it. */
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

/* ---- dense tensors ----------------------------------------------------------------------------
 */

static int compare_names(const void *a, const void *b, void *tensors)
{
    const struct sl_store_tensor *list = tensors;

    return strcmp(list[*(const uint32_t *)a].name, list[*(const uint32_t *)b].name);
}

static int sort_names(struct sl_store *store, struct sl_err *err)
{
    uint32_t n = store->state.n_tensors_done;

    for (uint32_t i = 0; i < n; i++)
        store->by_name[i] = i;
    qsort_r(store->by_name, n, sizeof(*store->by_name), compare_names, store->tensors);
    for (uint32_t i = 1; i < n; i++) {
        const char *name = store->tensors[store->by_name[i]].name;

        if (strcmp(name, store->tensors[store->by_name[i - 1]].name) == 0)
            return sl_err_set(err, -SL_ECORRUPT, "%s: the catalog has tensor \"%s\" twice",
                              store->folder, name);
    }
    return 0;
}

static uint32_t find_tensor(const struct sl_store *store, const char *name)
{
    uint32_t low = 0, high = store->state.n_tensors_done;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        int order = strcmp(name, store->tensors[store->by_name[middle]].name);

        if (order == 0)
            return store->by_name[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NO_TENSOR;
}

static int source_find(struct sl_weight_source *source, const char *name,
                       struct sl_tensor_info *ret_info)
{
    const struct sl_store *store = (struct sl_store *)source;
    uint32_t index = find_tensor(store, name);

    if (index == NO_TENSOR)
        return -ENOENT;
    *ret_info = store->tensors[index].info;
    return 0;
}

/* Follows the reads of a tensor, and compares when the last byte has been seen. */
static int check_read(struct sl_store *store, uint32_t index, uint64_t offset_bytes,
                      uint64_t size_bytes, const void *data, struct sl_err *err)
{
    const struct sl_store_tensor *tensor = &store->tensors[index];

    if (!store->check)
        return 0;
    if (offset_bytes == 0) {
        sl_checksum_stream_reset(store->stream);
        store->stream_tensor = index;
        store->stream_bytes = 0;
    }
    if (store->stream_tensor != index || store->stream_bytes != offset_bytes) {
        store->stream_tensor = NO_TENSOR;
        return 0;
    }
    sl_checksum_stream_add(store->stream, data, size_bytes);
    store->stream_bytes += size_bytes;
    if (store->stream_bytes < tensor->extent.size_bytes ||
        sl_checksum_stream_value(store->stream) == tensor->checksum)
        return 0;
    return sl_err_set(err, -SL_ECORRUPT,
                      "%s: tensor \"%s\" at offset %llu does not have the checksum that the "
                      "catalog names; sluice verify --repair can repair it",
                      store->paths[0], tensor->name,
                      (unsigned long long)tensor->extent.offset_bytes);
}

/* Tensors are loaded in the order in which they lie, and worked on in between: what comes next can
 * be read meanwhile. Asking costs time for every page, so each is asked for once. */
static void read_ahead(struct sl_store *store, uint64_t from_bytes)
{
    if (from_bytes + AHEAD_BYTES / 2 < store->asked_bytes)
        return;
    if (store->asked_bytes < from_bytes)
        store->asked_bytes = from_bytes;
    posix_fadvise(store->dense_fd, (off_t)store->asked_bytes,
                  (off_t)(from_bytes + AHEAD_BYTES - store->asked_bytes), POSIX_FADV_WILLNEED);
    store->asked_bytes = from_bytes + AHEAD_BYTES;
}

static int source_read(struct sl_weight_source *source, const char *name, uint64_t offset_bytes,
                       uint64_t size_bytes, void *dst, struct sl_err *err)
{
    struct sl_store *store = (struct sl_store *)source;
    uint32_t index = find_tensor(store, name);
    uint64_t from_bytes;
    int64_t got;

    if (index == NO_TENSOR)
        return sl_err_set(err, -ENOENT, "%s: there is no tensor \"%s\"", store->folder, name);
    sl_assert(offset_bytes <= store->tensors[index].info.size_bytes);
    sl_assert(size_bytes <= store->tensors[index].info.size_bytes - offset_bytes);
    from_bytes = store->tensors[index].extent.offset_bytes + offset_bytes;
    got = sl_file_read_at(store->dense_fd, dst, size_bytes, from_bytes);
    if (got >= 0 && (uint64_t)got < size_bytes)
        got = -EIO; /* cut since it was opened */
    if (got < 0)
        return sl_err_set(err, (int)got, "%s: tensor \"%s\": cannot read %llu bytes at %llu: %s",
                          store->paths[0], name, (unsigned long long)size_bytes,
                          (unsigned long long)from_bytes, sl_strerror((int)got));
    read_ahead(store, from_bytes + size_bytes);
    return check_read(store, index, offset_bytes, size_bytes, dst, err);
}

static const char *source_where(struct sl_weight_source *source, const char *name)
{
    const struct sl_store *store = (struct sl_store *)source;

    return find_tensor(store, name) == NO_TENSOR ? store->folder : store->paths[0];
}

static const struct sl_weight_source_ops source_ops = {
    .find = source_find,
    .read = source_read,
    .where = source_where,
};

/* ---- the outside ------------------------------------------------------------------------------
 */

static int open_dense(struct sl_store *store, struct sl_err *err)
{
    struct stat status;

    if (lstat(store->paths[0], &status) == 0) { /* else a file that is missing was let pass */
        store->dense_fd = sl_file_open_nofollow(store->paths[0], err);
        if (store->dense_fd < 0)
            return store->dense_fd;
    }
    store->stream = sl_checksum_stream_create();
    return store->stream ? 0 : no_memory(store, err);
}

int sl_store_open(struct sl_store **ret_store, const char *folder, enum sl_store_use use,
                  struct sl_err *err)
{
    struct sl_store *store = calloc(1, sizeof(*store));
    struct sl_catalog_entries catalog = {0};
    int rc;

    if (!store)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", folder);
    store->weights.ops = &source_ops;
    store->dense_fd = -1;
    store->stream_tensor = NO_TENSOR;
    store->folder = strdup(folder);
    if (!store->folder) {
        rc = sl_err_set(err, -ENOMEM, "%s: out of memory", folder);
        goto out;
    }
    if ((rc = open_catalog(&catalog, folder, use, err)) < 0 ||
        (rc = read_catalog(store, &catalog, use, err)) < 0 ||
        (rc = look_at_files(store, use, err)) < 0 ||
        (use < SL_STORE_REPAIR && (rc = check_extents(store, err)) < 0) ||
        (rc = sort_names(store, err)) < 0 || (rc = open_dense(store, err)) < 0)
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
    if (store->dense_fd >= 0)
        close(store->dense_fd);
    sl_checksum_stream_destroy(store->stream);
    for (uint32_t i = 0; i < SL_STORE_FILES_MAX; i++)
        free(store->paths[i]);
    free(store->tensors);
    free(store->by_name);
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

struct sl_weight_source *sl_store_weights(struct sl_store *store, bool check)
{
    store->check = check;
    return &store->weights;
}
