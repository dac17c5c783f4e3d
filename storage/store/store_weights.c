/* Dense tensors of a store: found by name and read in any order. A tensor that is read in order
 * from its beginning, as the loader does, is checked. */
#include "storage/store/store_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/file.h"
#include "storage/store/store.h"

/* How far ahead of the loader the system is told to read: see read_ahead(). */
#define AHEAD_BYTES (UINT64_C(64) << 20)

#define NO_TENSOR UINT32_MAX /* none is followed */

static int compare_names(const void *a, const void *b, void *tensors)
{
    const struct sl_store_tensor *list = tensors;

    return strcmp(list[*(const uint32_t *)a].name, list[*(const uint32_t *)b].name);
}

static int sort_names(const struct sl_store *store, uint32_t *by_name, struct sl_err *err)
{
    uint32_t n = store->state.n_tensors_done;

    for (uint32_t i = 0; i < n; i++)
        by_name[i] = i;
    qsort_r(by_name, n, sizeof(*by_name), compare_names, store->tensors);
    for (uint32_t i = 1; i < n; i++) {
        const char *name = store->tensors[by_name[i]].name;

        if (strcmp(name, store->tensors[by_name[i - 1]].name) == 0)
            return sl_err_set(err, -SL_ECORRUPT, "%s: the catalog has tensor \"%s\" twice",
                              store->folder, name);
    }
    return 0;
}

uint32_t sl_store_find_tensor(const struct sl_store *store, const char *name)
{
    uint32_t low = 0, high = store->state.n_tensors_done;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        uint32_t index = store->weights.by_name[middle];
        int order = strcmp(name, store->tensors[index].name);

        if (order == 0)
            return index;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return store->state.n_tensors_done;
}

static struct sl_store_source *source_of(struct sl_weight_source *source)
{
    return (struct sl_store_source *)source;
}

static const struct sl_store_tensor *find(const struct sl_store *store, const char *name)
{
    uint32_t index = sl_store_find_tensor(store, name);

    return index < store->state.n_tensors_done ? &store->tensors[index] : NULL;
}

static int source_find(struct sl_weight_source *source, const char *name,
                       struct sl_tensor_info *ret_info)
{
    const struct sl_store_tensor *tensor = find(source_of(source)->store, name);

    if (!tensor)
        return -ENOENT;
    *ret_info = tensor->info;
    return 0;
}

int sl_store_check_tensor(struct sl_store *store, uint32_t tensor_index, uint64_t offset_bytes,
                          uint64_t size_bytes, const void *bytes, struct sl_err *err)
{
    struct sl_store_weights *weights = &store->weights;
    const struct sl_store_tensor *tensor = &store->tensors[tensor_index];

    if (offset_bytes == 0) {
        sl_checksum_stream_reset(weights->stream);
        weights->stream_tensor = tensor_index;
        weights->stream_bytes = 0;
    }
    if (weights->stream_tensor != tensor_index || weights->stream_bytes != offset_bytes) {
        weights->stream_tensor = NO_TENSOR;
        return 0;
    }
    sl_checksum_stream_add(weights->stream, bytes, size_bytes);
    weights->stream_bytes += size_bytes;
    if (weights->stream_bytes < tensor->extent.size_bytes)
        return 0;
    if (sl_checksum_stream_value(weights->stream) == tensor->checksum)
        return 1;
    return sl_err_set(err, -SL_ECORRUPT,
                      "%s: tensor \"%s\" at offset %llu does not have the checksum that the "
                      "catalog names; sluice verify --repair can repair it",
                      store->paths[0], tensor->name,
                      (unsigned long long)tensor->extent.offset_bytes);
}

/* Tensors are loaded in the order in which they lie, and converted in between, so the system can
 * read the next ones meanwhile. Asking it costs time for every page, so each page is asked for
 * once. */
static void read_ahead(struct sl_store_weights *weights, uint64_t from_bytes)
{
    if (from_bytes + AHEAD_BYTES / 2 < weights->asked_bytes)
        return;
    if (weights->asked_bytes < from_bytes)
        weights->asked_bytes = from_bytes;
    posix_fadvise(weights->fd, (off_t)weights->asked_bytes,
                  (off_t)(from_bytes + AHEAD_BYTES - weights->asked_bytes), POSIX_FADV_WILLNEED);
    weights->asked_bytes = from_bytes + AHEAD_BYTES;
}

static int source_read(struct sl_weight_source *source, const char *name, uint64_t offset_bytes,
                       uint64_t size_bytes, void *dst, struct sl_err *err)
{
    struct sl_store *store = source_of(source)->store;
    const struct sl_store_tensor *tensor = find(store, name);
    uint64_t from_bytes;
    int64_t got;
    int rc;

    if (!tensor)
        return sl_err_set(err, -ENOENT, "%s: there is no tensor \"%s\"", store->folder, name);
    sl_assert(offset_bytes <= tensor->info.size_bytes);
    sl_assert(size_bytes <= tensor->info.size_bytes - offset_bytes);
    from_bytes = tensor->extent.offset_bytes + offset_bytes;
    got = sl_file_read_at(store->weights.fd, dst, size_bytes, from_bytes);
    if (got >= 0 && (uint64_t)got < size_bytes)
        got = -EIO; /* cut since it was opened */
    if (got < 0)
        return sl_err_set(err, (int)got, "%s: tensor \"%s\": cannot read %llu bytes at %llu: %s",
                          store->paths[0], name, (unsigned long long)size_bytes,
                          (unsigned long long)from_bytes, sl_strerror((int)got));
    read_ahead(&store->weights, from_bytes + size_bytes);
    if (!source_of(source)->checks)
        return 0;
    rc = sl_store_check_tensor(store, (uint32_t)(tensor - store->tensors), offset_bytes, size_bytes,
                               dst, err);
    return rc < 0 ? rc : 0;
}

static const char *source_where(struct sl_weight_source *source, const char *name)
{
    const struct sl_store *store = source_of(source)->store;

    return find(store, name) ? store->paths[0] : store->folder;
}

static const struct sl_weight_source_ops source_ops = {
    .find = source_find,
    .read = source_read,
    .where = source_where,
};

void sl_store_weights_init(struct sl_store_weights *weights)
{
    *weights = (struct sl_store_weights){.fd = -1, .stream_tensor = NO_TENSOR};
}

int sl_store_weights_open(struct sl_store *store, struct sl_err *err)
{
    struct sl_store_weights *weights = &store->weights;
    struct stat status;
    int rc;

    for (int checks = 0; checks < 2; checks++)
        weights->sources[checks] = (struct sl_store_source){{&source_ops}, store, checks};
    weights->by_name = calloc(store->state.n_tensors_done + 1, sizeof(*weights->by_name));
    weights->stream = sl_checksum_stream_create();
    if (!weights->by_name || !weights->stream)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", store->folder);
    if ((rc = sort_names(store, weights->by_name, err)) < 0)
        return rc;
    if (lstat(store->paths[0], &status) == 0) { /* else a file that is missing was let pass */
        weights->fd = sl_file_open_nofollow(store->paths[0], err);
        if (weights->fd < 0)
            return weights->fd;
    }
    return 0;
}

void sl_store_weights_fini(struct sl_store_weights *weights)
{
    if (weights->fd >= 0)
        close(weights->fd);
    sl_checksum_stream_destroy(weights->stream);
    free(weights->by_name);
}

struct sl_weight_source *sl_store_weights(struct sl_store *store, bool check)
{
    return &store->weights.sources[check].source;
}
