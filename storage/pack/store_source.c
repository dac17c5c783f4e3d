#include "storage/pack/store_source.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/file.h"
#include "storage/store/record_read.h"
#include "storage/pack/store_records.h"

#define ITEM_EXTENTS_MAX (2 * SL_EXPERT_MATRICES)

static uint32_t items_total(const struct sl_packer *p)
{
    return p->o->n_tensors + sl_store_expert_count(&p->model.shape);
}

static uint32_t items_done(const struct sl_packer *p)
{
    return p->state.n_tensors_done + p->state.n_experts_done;
}

static struct sl_expert_key item_expert(const struct sl_packer *p, uint32_t pack_item)
{
    return sl_store_expert_at(&p->model.shape, pack_item - p->o->n_tensors);
}

/* ---- reading it -------------------------------------------------------------------------------
 */

int sl_packer_open_source(struct sl_packer *p, struct sl_err *err)
{
    if (!p->o->from) {
        p->weights = sl_checkpoint_weights(p->o->checkpoint);
        return 0;
    }
    p->weights = sl_store_weights(p->o->from, true);
    for (uint32_t i = 0; i < sl_store_file_count(p->o->from); i++)
        p->source_paths[i] = sl_store_file_path(p->o->from, i);
    return sl_record_files_open(p->source_fds, p->source_paths, sl_store_file_count(p->o->from),
                                err);
}

/* ---- where it has what ------------------------------------------------------------------------
 */

/* Gives the extents of a pack item in the checkpoint. Returns their number. */
static uint32_t item_extents(const struct sl_packer *p, uint32_t pack_item,
                             struct sl_extent ret_extents[ITEM_EXTENTS_MAX])
{
    const struct sl_checkpoint_expert *record;

    if (pack_item < p->o->n_tensors) {
        const struct sl_checkpoint_tensor *tensor =
            sl_checkpoint_find(p->o->checkpoint, p->o->tensors[pack_item]);

        ret_extents[0] = (struct sl_extent){.offset_bytes = tensor->offset_bytes,
                                            .size_bytes = tensor->info.size_bytes,
                                            .file_index = tensor->file_index};
        return 1;
    }
    record = sl_expert_map_find(p->o->experts, item_expert(p, pack_item));
    sl_assert(record);
    memcpy(ret_extents, record->codes, sizeof(record->codes));
    memcpy(ret_extents + SL_EXPERT_MATRICES, record->scales, sizeof(record->scales));
    return ITEM_EXTENTS_MAX;
}

/* Returns the first extent that was cut off from the checkpoint; -1 if it has all. */
static int missing_extent(const struct sl_packer *p, const struct sl_extent *extents, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (!sl_checkpoint_has(p->o->checkpoint, extents[i].file_index, extents[i].offset_bytes,
                               extents[i].size_bytes))
            return (int)i;
    }
    return -1;
}

/* ---- is it there, and what was packed ---------------------------------------------------------
 */

static int explain_missing(const struct sl_packer *p, uint32_t pack_item, uint32_t file_index,
                           struct sl_err *err)
{
    char text[SL_EXPERT_TEXT_BYTES];
    const char *what = pack_item < p->o->n_tensors
                           ? p->o->tensors[pack_item]
                           : sl_expert_format(&p->model.shape, item_expert(p, pack_item), text);

    return sl_err_set(
        err, -SL_EFORMAT,
        "%s: the file was cut: it ends at byte %llu, but %s is in it, which is not packed yet",
        sl_checkpoint_file_path(p->o->checkpoint, file_index),
        (unsigned long long)sl_checkpoint_file_bytes(p->o->checkpoint, file_index), what);
}

/* Refuses files with another name, since shortening them would also destroy that other file, which
 * the user did not ask for. */
static int check_freeable(const struct sl_packer *p, struct sl_err *err)
{
    for (uint32_t i = 0; i < sl_checkpoint_file_count(p->o->checkpoint); i++) {
        const char *path = sl_checkpoint_file_path(p->o->checkpoint, i);
        struct stat status;

        if (p->shards[i].n_pack_items == 0)
            continue;
        if (lstat(path, &status) < 0 || access(path, W_OK) < 0)
            return sl_err_set(err, -errno, "%s: cannot be freed: %s", path, sl_strerror(errno));
        if (S_ISLNK(status.st_mode))
            return sl_err_set(err, -SL_EFORMAT,
                              "%s: cannot be freed: a symbolic link, and what it points to would "
                              "be lost there as well",
                              path);
        if (status.st_nlink > 1)
            return sl_err_set(err, -SL_EFORMAT,
                              "%s: cannot be freed: the file has %llu names, and would be lost "
                              "under all of them",
                              path, (unsigned long long)status.st_nlink);
    }
    return 0;
}

int sl_packer_check_source(struct sl_packer *p, struct sl_err *err)
{
    struct sl_extent extents[ITEM_EXTENTS_MAX];

    if (p->o->from)
        return 0; /* complete, as opening it has seen */
    if (p->o->consume) {
        p->shards = calloc(sl_checkpoint_file_count(p->o->checkpoint), sizeof(*p->shards));
        if (!p->shards)
            return sl_packer_no_memory(p, err);
    }
    for (uint32_t pack_item = 0; pack_item < items_total(p); pack_item++) {
        uint32_t n = item_extents(p, pack_item, extents);
        int missing = pack_item < items_done(p) ? -1 : missing_extent(p, extents, n);

        if (missing >= 0)
            return explain_missing(p, pack_item, extents[missing].file_index, err);
        for (uint32_t i = 0; p->o->consume && i < n; i++)
            p->shards[extents[i].file_index].n_pack_items = pack_item + 1;
    }
    return p->o->consume ? check_freeable(p, err) : 0;
}

static int other_weights(const struct sl_packer *p, struct sl_err *err)
{
    return sl_err_set(err, -SL_EFORMAT,
                      "%s: the store was begun from a checkpoint with other weights than %s",
                      p->o->store_folder, p->o->checkpoint_folder);
}

/* Compares the shapes: two checkpoints may have the same index, since an index only names files. */
static bool is_same_tensor(const struct sl_packer *p, const struct sl_store_tensor *tensor,
                           uint32_t pack_item)
{
    struct sl_tensor_info info;

    return strcmp(tensor->name, p->o->tensors[pack_item]) == 0 &&
           p->weights->ops->find(p->weights, tensor->name, &info) == 0 &&
           info.size_bytes == tensor->info.size_bytes &&
           p->tensor_offsets[pack_item] == tensor->extent.offset_bytes;
}

static int check_item(struct sl_packer *p, const struct sl_store *store, uint32_t pack_item,
                      struct sl_err *err)
{
    bool same;
    int rc;

    if (pack_item < p->o->n_tensors) {
        const struct sl_store_tensor *tensor = sl_store_tensor(store, pack_item);
        struct sl_tensor_target nowhere = {0};
        uint64_t checksum;

        if (!is_same_tensor(p, tensor, pack_item))
            return other_weights(p, err);
        rc = sl_tensor_copy(p->weights, tensor->name, tensor->info.size_bytes, &nowhere, p->buffer,
                            &checksum, err);
        same = rc == 0 && checksum == tensor->checksum;
    } else {
        struct sl_expert_key key = item_expert(p, pack_item);
        struct sl_packed_expert expert;
        const uint8_t *record;
        uint64_t record_bytes;

        rc = sl_record_make(&p->workers[0].maker, key, &expert, &record, &record_bytes, err);
        same = rc == 0 && memcmp(expert.checksums, sl_store_expert(store, key)->checksums,
                                 sizeof(expert.checksums)) == 0;
    }
    return rc < 0 || same ? rc : other_weights(p, err);
}

/* Reads back the data of an earlier run before their source is freed: the store may have been
 * copied since, or its data may have decayed. */
struct read_back {
    struct sl_store *store;
    const char *paths[SL_STORE_FILES_MAX];
    int fds[SL_STORE_FILES_MAX]; /* but of the dense tensors' file */
    struct sl_record_maker maker;
};

static int read_back_open(struct read_back *r, struct sl_packer *p, struct sl_store *store,
                          struct sl_err *err)
{
    const struct sl_record_source source = {
        .experts = p->o->experts, .store = store, .fds = r->fds, .paths = r->paths};

    r->store = store;
    for (uint32_t i = 0; i < sl_store_file_count(store); i++)
        r->paths[i] = sl_store_file_path(store, i);
    if (sl_record_maker_init(&r->maker, &source) < 0)
        return sl_packer_no_memory(p, err);
    return sl_record_files_open(r->fds, r->paths, sl_store_file_count(store), err);
}

static void read_back_close(struct read_back *r)
{
    sl_record_files_close(r->fds);
    sl_record_maker_fini(&r->maker);
}

static int read_back_item(struct read_back *r, struct sl_packer *p, uint32_t pack_item,
                          struct sl_err *err)
{
    struct sl_tensor_target nowhere = {0};
    struct sl_packed_expert expert;
    const uint8_t *record;
    uint64_t size_bytes, checksum;

    if (pack_item >= p->o->n_tensors)
        return sl_record_make(&r->maker, item_expert(p, pack_item), &expert, &record, &size_bytes,
                              err);
    size_bytes = sl_store_tensor(r->store, pack_item)->info.size_bytes;
    return sl_tensor_copy(sl_store_weights(r->store, true), p->o->tensors[pack_item], size_bytes,
                          &nowhere, p->buffer, &checksum, err);
}

/* Syncs all files: those of a copied store may not be on disk yet, though its catalog says so. */
static int sync_files(const struct read_back *r, struct sl_err *err)
{
    for (uint32_t i = 0; i < sl_store_file_count(r->store); i++) {
        int fd = sl_file_open_nofollow(r->paths[i], err);
        int rc;

        if (fd < 0)
            return fd;
        rc = fsync(fd) < 0 ? -errno : 0;
        close(fd);
        if (rc < 0)
            return sl_write_error(err, rc, r->paths[i], "sync");
    }
    return 0;
}

/* Compares every item that an earlier run packed and whose source is still there with that
 * source. */
static int check_before_freeing(struct sl_packer *p, struct sl_store *store, struct sl_err *err)
{
    struct sl_extent extents[ITEM_EXTENTS_MAX];
    struct read_back back = {.fds = {0}};
    int rc;

    for (uint32_t i = 0; i < SL_STORE_FILES_MAX; i++)
        back.fds[i] = -1;
    rc = read_back_open(&back, p, store, err);
    for (uint32_t pack_item = 0; pack_item < items_done(p) && rc == 0; pack_item++) {
        if (p->o->stop && atomic_load(p->o->stop))
            rc = sl_packer_stopped(p, err);
        else if (missing_extent(p, extents, item_extents(p, pack_item, extents)) < 0 &&
                 (rc = check_item(p, store, pack_item, err)) == 0)
            rc = read_back_item(&back, p, pack_item, err);
    }
    if (rc == 0)
        rc = sync_files(&back, err);
    read_back_close(&back);
    return rc;
}

int sl_packer_check_earlier(struct sl_packer *p, struct sl_store *store, struct sl_err *err)
{
    const uint32_t n_done = items_done(p);
    struct sl_extent extents[ITEM_EXTENTS_MAX];

    if (p->dense_bytes != p->layout.files[0].size_bytes)
        return other_weights(p, err);
    if (n_done == 0)
        return 0;
    if (p->o->consume)
        return check_before_freeing(p, store, err);
    if (p->state.complete)
        return 0;
    if (!p->o->from && missing_extent(p, extents, item_extents(p, n_done - 1, extents)) >= 0)
        return 0;
    return check_item(p, store, n_done - 1, err);
}

/* ---- giving back ------------------------------------------------------------------------------
 */

static bool is_to_be_freed(const struct sl_packer *p, uint32_t i)
{
    return p->shards[i].n_pack_items > 0 && p->shards[i].n_pack_items <= items_done(p) &&
           !p->shards[i].freed;
}

bool sl_packer_frees(const struct sl_packer *p)
{
    for (uint32_t i = 0; p->o->consume && i < sl_checkpoint_file_count(p->o->checkpoint); i++) {
        if (is_to_be_freed(p, i))
            return true;
    }
    return false;
}

int sl_packer_free_shards(struct sl_packer *p, struct sl_err *err)
{
    for (uint32_t i = 0; p->o->consume && i < sl_checkpoint_file_count(p->o->checkpoint); i++) {
        const char *path = sl_checkpoint_file_path(p->o->checkpoint, i);
        uint64_t header_bytes = sl_checkpoint_header_bytes(p->o->checkpoint, i);
        uint64_t size_bytes = sl_checkpoint_file_bytes(p->o->checkpoint, i);
        int rc;

        if (!is_to_be_freed(p, i))
            continue;
        p->shards[i].freed = true;
        if (size_bytes <= header_bytes)
            continue; /* an earlier run freed it */
        rc = p->o->writer->ops->cut(p->o->writer, path, header_bytes);
        if (rc < 0)
            return sl_write_error(err, rc, path, "free");
        p->result.freed_bytes += size_bytes - header_bytes;
    }
    return 0;
}

int sl_packer_space_back(const struct sl_packer *p, struct sl_space_back **ret_back,
                         struct sl_err *err)
{
    uint32_t n_files = p->o->consume ? sl_checkpoint_file_count(p->o->checkpoint) : 0;
    struct sl_space_back *back = calloc(n_files + 1, sizeof(*back));
    int n = 0;

    if (!back)
        return sl_packer_no_memory(p, err);
    for (uint32_t i = 0; i < n_files; i++) {
        uint32_t n_pack_items = p->shards[i].n_pack_items;

        if (n_pack_items == 0)
            continue;
        back[n++] = (struct sl_space_back){
            .path = sl_checkpoint_file_path(p->o->checkpoint, i),
            .dense_bytes =
                n_pack_items < p->o->n_tensors ? p->tensor_offsets[n_pack_items] : p->dense_bytes,
            .n_experts = n_pack_items < p->o->n_tensors ? 0 : n_pack_items - p->o->n_tensors,
        };
    }
    *ret_back = back;
    return n;
}
