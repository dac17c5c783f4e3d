/* Owns the beginning of a pack: it locks the store, finds out how far an earlier run came, and
 * makes everything that has a name in a folder. Nothing is undone after a failure, since the next
 * run goes on from there. */
#include "storage/pack/store_begin.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/size.h"
#include "storage/io/checksum.h"
#include "storage/store/store.h"
#include "storage/store/store_copies.h"
#include "storage/pack/store_finish.h"
#include "storage/pack/store_identity.h"
#include "storage/pack/store_relocate.h"
#include "storage/pack/store_records.h"
#include "storage/pack/store_source.h"

/* ---- what and where ---------------------------------------------------------------------------
 */

/* Gives each tensor its offset. */
static int lay_out_tensors(struct sl_packer *p, struct sl_err *err)
{
    p->tensor_offsets = calloc(p->o->n_tensors + 1, sizeof(*p->tensor_offsets));
    if (!p->tensor_offsets)
        return sl_packer_no_memory(p, err);
    for (uint32_t i = 0; i < p->o->n_tensors; i++) {
        struct sl_tensor_info info;
        int rc = p->weights->ops->find(p->weights, p->o->tensors[i], &info);

        sl_assert(rc == 0); /* the list is made from what was found */
        p->tensor_offsets[i] = p->dense_bytes;
        p->dense_bytes += sl_round_up(info.size_bytes, SL_BLOCK_BYTES);
    }
    return 0;
}

int sl_packer_describe(struct sl_packer *p, struct sl_err *err)
{
    const struct sl_pack_options *o = p->o;
    int rc;

    p->model = (struct sl_store_model){
        .format_version = SL_STORE_VERSION,
        .layout = sl_store_layout_of(sl_expert_map_shape(o->experts)->expert_dtype, o->compress),
        .shape = *sl_expert_map_shape(o->experts),
        .n_files = 2 + o->n_stripes,
        .n_tensors = o->n_tensors,
    };
    if (!sl_expert_shape_is_sound(&p->model.shape))
        return sl_err_set(err, -SL_EUNSUPPORTED,
                          "%s: hidden_size %u and moe_intermediate_size %u: experts need multiples "
                          "of %u",
                          o->checkpoint_folder, p->model.shape.hidden_size,
                          p->model.shape.moe_intermediate_size, SL_EXPERT_SIDE_STEP);
    p->record_bytes = sl_packed_expert_bytes(&p->model.shape);
    if ((rc = sl_packer_open_source(p, err)) < 0 || (rc = lay_out_tensors(p, err)) < 0)
        return rc;
    if (!o->from)
        return sl_store_identify(o->checkpoint, o->checkpoint_folder, &p->model.config_checksum,
                                 &p->model.index_checksum, err);
    p->model.config_checksum = sl_store_model(o->from)->config_checksum;
    p->model.index_checksum = sl_store_model(o->from)->index_checksum;
    return 0;
}

/* ---- the catalog ------------------------------------------------------------------------------
 */

static int add(struct sl_packer *p, struct sl_catalog_entries *entries, const char *key,
               const uint8_t *value, size_t size_bytes, struct sl_err *err)
{
    return sl_catalog_entries_add(entries, key, strlen(key), value, size_bytes) < 0
               ? sl_packer_no_memory(p, err)
               : 0;
}

/* Adds the entries of a new catalog, in the order of the keys. */
static int describe_new(struct sl_packer *p, struct sl_catalog_entries *entries, struct sl_err *err)
{
    uint8_t value[SL_STORE_VALUE_BYTES_MAX];
    int rc = 0;

    for (uint32_t i = 0; i < p->model.n_files && rc == 0; i++) {
        char key[SL_STORE_KEY_BYTES];

        sl_store_file_key(key, i);
        rc = add(p, entries, key, value, sl_store_file_encode(&p->layout.files[i], value), err);
    }
    if (rc == 0)
        rc = add(p, entries, SL_STORE_KEY_MODEL, value, sl_store_model_encode(&p->model, value),
                 err);
    return rc < 0 ? rc
                  : add(p, entries, SL_STORE_KEY_STATE, value,
                        sl_store_state_encode(&p->state, value), err);
}

/* Syncs the name of the store's own folder. */
static int sync_store_name(const struct sl_packer *p, struct sl_err *err)
{
    struct sl_file_writer *writer = p->o->writer;
    char *parent = sl_store_path(p->o->store_folder, "..");
    int rc;

    if (!parent)
        return sl_packer_no_memory(p, err);
    rc = writer->ops->sync_folder(writer, parent);
    if (rc < 0)
        sl_write_error(err, rc, parent, "sync");
    free(parent);
    return rc;
}

/* LMDB writes to a new file in each run (storage/store/catalog.h). The catalog is sealed before any
 * other file gets its name, so that files without a catalog are known not to be ours. */
static int make_catalog(struct sl_packer *p, bool is_new, struct sl_err *err)
{
    struct sl_catalog_entries entries = {0};
    int rc = is_new ? describe_new(p, &entries, err)
                    : sl_store_catalog_read(&entries, p->o->store_folder, err);

    if (rc == 0)
        rc = sl_store_catalog_make(&p->catalog, p->o->store_folder, &entries, p->o->writer, err);
    if (rc == 0)
        rc = sync_store_name(p, err);
    if (rc == 0)
        rc = sl_store_copies_seal(p->o->store_folder, &entries, p->o->writer, err);
    sl_catalog_entries_fini(&entries);
    return rc;
}

/* ---- beginning --------------------------------------------------------------------------------
 */

/* A new store may only be made in a folder that is empty, or holds no more than a catalog that
 * never got its name. */
static int check_empty(const struct sl_packer *p, struct sl_err *err)
{
    DIR *dir = opendir(p->o->store_folder);
    const struct dirent *entry;
    int rc = 0;

    if (!dir)
        return sl_write_error(err, -errno, p->o->store_folder, "list the folder");
    while (rc == 0 && (entry = readdir(dir))) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 &&
            strcmp(entry->d_name, SL_STORE_CATALOG_FILE SL_WRITE_NEW) != 0)
            rc = sl_err_set(err, -SL_EFORMAT, "%s: not empty, and not a store: \"%.255s\" is in it",
                            p->o->store_folder, entry->d_name);
    }
    closedir(dir);
    return rc;
}

static int check_absent(const char *path, struct sl_err *err)
{
    struct stat status;

    return lstat(path, &status) < 0 ? 0
                                    : sl_err_set(err, -EEXIST,
                                                 "%s: the file exists already and may belong to "
                                                 "another store; name another folder",
                                                 path);
}

/* A store has one file and a copy of the catalog in each folder on another drive. For a new store
 * neither may be there yet, since it would belong to another store. */
static int check_stripes(const struct sl_packer *p, struct sl_err *err)
{
    int rc = 0;

    for (uint32_t i = 2; i < p->model.n_files && rc == 0; i++) {
        char *copy = sl_store_copy_path(p->layout.paths[i], i);

        if (!copy)
            return sl_packer_no_memory(p, err);
        rc = check_absent(p->layout.paths[i], err);
        if (rc == 0)
            rc = check_absent(copy, err);
        free(copy);
    }
    return rc;
}

static bool same_model(const struct sl_store_model *a, const struct sl_store_model *b)
{
    uint8_t a_bytes[SL_STORE_VALUE_BYTES_MAX], b_bytes[SL_STORE_VALUE_BYTES_MAX];
    size_t size_bytes = sl_store_model_encode(a, a_bytes);

    return size_bytes == sl_store_model_encode(b, b_bytes) &&
           memcmp(a_bytes, b_bytes, size_bytes) == 0;
}

/* Continues from the state of a store that is there. */
static int begin_again(struct sl_packer *p, struct sl_err *err)
{
    const struct sl_store_model *found;
    struct sl_store *store;
    int rc = sl_store_open(&store, p->o->store_folder, SL_STORE_RESUME, err);

    if (rc < 0)
        return rc;
    found = sl_store_model(store);
    p->model.n_files = found->n_files; /* stripes stay as they are, and how records are stored */
    p->model.layout =
        sl_store_layout_of(p->model.shape.expert_dtype, sl_store_layout_compresses(found->layout));
    if (!same_model(found, &p->model))
        rc = sl_err_set(err, -SL_EFORMAT,
                        "%s: the store is of another model: its config.json and index have "
                        "checksums %016llx and %016llx, those of %s %016llx and %016llx",
                        p->o->store_folder, (unsigned long long)found->config_checksum,
                        (unsigned long long)found->index_checksum, p->o->checkpoint_folder,
                        (unsigned long long)p->model.config_checksum,
                        (unsigned long long)p->model.index_checksum);
    else if (p->o->compress && !sl_store_layout_compresses(found->layout))
        rc = sl_err_set(err, -SL_EFORMAT,
                        "%s: the store was begun without --compress; pack into another folder",
                        p->o->store_folder);
    else if (p->o->n_stripes > 0 && found->n_files != 2 + p->o->n_stripes)
        rc = sl_err_set(err, -SL_EFORMAT,
                        "%s: the store was begun over %u drives, not %u; pack into another folder",
                        p->o->store_folder, found->n_files - 1, 1 + p->o->n_stripes);
    p->state = *sl_store_state(store);
    if (rc == 0)
        rc = sl_store_layout_adopt(&p->layout, store, err);
    if (rc == 0 && !(p->state.complete && sl_packer_is_sealed(p)))
        rc = sl_store_may_write(store, (const char *const *)p->layout.paths, p->o->stripe_folders,
                                p->o->n_stripes, err);
    if (rc == 0)
        rc = sl_packer_check_earlier(p, store, err);
    if (rc == 0)
        p->result.saved_bytes = sl_store_saved_bytes(store);
    sl_store_close(store);
    return rc;
}

/* Data can be ahead of the last commit by a batch and the item that filled it, and must fit as
 * well. */
static int check_space(struct sl_packer *p, struct sl_err *err)
{
    uint64_t batch_bytes =
        p->o->batch_bytes < p->result.total_bytes ? p->o->batch_bytes : p->result.total_bytes;
    uint64_t item_bytes = p->n_workers * p->record_bytes;
    struct sl_space_back *back = NULL;
    int rc = sl_packer_space_back(p, &back, err);

    for (uint32_t i = 0; i < p->o->n_tensors; i++) {
        uint64_t end = i + 1 < p->o->n_tensors ? p->tensor_offsets[i + 1] : p->dense_bytes;

        if (end - p->tensor_offsets[i] > item_bytes)
            item_bytes = end - p->tensor_offsets[i];
    }
    if (rc >= 0)
        rc = sl_store_layout_check_space(&p->layout, back, (uint32_t)rc, batch_bytes + item_bytes,
                                         err);
    free(back);
    return rc;
}

int sl_packer_begin(struct sl_packer *p, struct sl_err *err)
{
    const struct sl_pack_options *o = p->o;
    bool is_new;
    int rc;

    if ((rc = o->writer->ops->make_folder(o->writer, o->store_folder)) < 0)
        return sl_write_error(err, rc, o->store_folder, "make the folder");
    if ((rc = sl_store_lock(o->store_folder, err)) < 0)
        return rc;
    p->lock_fd = rc;
    is_new = o->rebuild || !sl_store_is(o->store_folder);
    if (is_new && !o->rebuild && (rc = check_empty(p, err)) < 0)
        return rc;
    rc = is_new ? sl_store_layout_make(&p->layout, o->store_folder, &p->model.shape, p->dense_bytes,
                                       o->stripe_folders, o->weights, o->n_stripes, err)
                : begin_again(p, err);
    if (rc < 0)
        return rc;
    p->result.total_bytes = sl_store_layout_bytes(&p->layout);
    if ((rc = sl_packer_check_source(p, err)) < 0)
        return rc;
    if (p->state.complete)
        return sl_packer_seal(p, err);
    if ((rc = check_space(p, err)) < 0 ||
        (is_new && !o->rebuild && (rc = check_stripes(p, err)) < 0))
        return rc;
    return make_catalog(p, is_new, err);
}

/* ---- files ------------------------------------------------------------------------------------
 */

static int open_data_files(struct sl_packer *p, struct sl_err *err)
{
    struct sl_file_writer *writer = p->o->writer;
    int rc = 0;

    for (uint32_t i = 0; i < p->model.n_files && rc == 0; i++) {
        rc = writer->ops->open(writer, p->layout.paths[i], true, &p->handles[i]);
        if (rc < 0)
            sl_write_error(err, rc, p->layout.paths[i], "create");
        else if (i > 0) /* the first is where the second is */
            rc = sl_write_name(writer, p->layout.paths[i], err);
    }
    return rc;
}

/* A store as the source lists its copied files, so a lost one is an error and not left out. */
static bool must_copy(const struct sl_packer *p, const char *name)
{
    for (uint32_t i = 0; p->o->from && i < sl_store_copied_file_count(p->o->from); i++) {
        if (strcmp(sl_store_copied_file(p->o->from, i)->name, name) == 0)
            return true;
    }
    return false;
}

/* A store as the source also has a checksum for each copied file. */
static int check_copied_file(const struct sl_packer *p, const struct sl_store_copied_file *copied,
                             struct sl_err *err)
{
    for (uint32_t i = 0; p->o->from && i < sl_store_copied_file_count(p->o->from); i++) {
        const struct sl_store_copied_file *known = sl_store_copied_file(p->o->from, i);

        if (strcmp(known->name, copied->name) == 0 && known->checksum != copied->checksum)
            return sl_err_set(err, -SL_ECORRUPT,
                              "%s/%s: does not have the checksum that the catalog names",
                              p->o->checkpoint_folder, copied->name);
    }
    return 0;
}

static int copy_file(struct sl_packer *p, const char *name, struct sl_err *err)
{
    uint8_t value[SL_STORE_VALUE_BYTES_MAX];
    char key[SL_STORE_KEY_BYTES], *text, *path;
    struct sl_store_copied_file copied;
    size_t length;
    int rc = sl_copied_file_read(p->o->checkpoint_folder, name, &text, &length, err);

    if (rc < 0)
        return rc;
    snprintf(copied.name, sizeof(copied.name), "%s", name);
    copied.size_bytes = length;
    copied.checksum = sl_checksum(text, length);
    path = sl_store_path(p->o->store_folder, name);
    rc = path ? check_copied_file(p, &copied, err) : sl_packer_no_memory(p, err);
    if (rc == 0)
        rc = sl_write_small(p->o->writer, path, text, length, err);
    free(path);
    free(text);
    sl_store_copied_file_key(key, name);
    return rc < 0 ? rc
                  : sl_catalog_put(p->catalog, key, value,
                                   sl_store_copied_file_encode(&copied, value), err);
}

/* Copied files are written again in each run: they are small, and the last run may have ended
 * before they were on disk. Their names are synced with those of the data files. */
static int copy_files(struct sl_packer *p, struct sl_err *err)
{
    int rc = 0;

    for (size_t i = 0; i < SL_STORE_COPIED_NAMES && rc == 0; i++) {
        const char *name = sl_store_copied_names[i];
        char *path = sl_copied_file_path(p->o->checkpoint_folder, name);
        bool found;

        if (!path)
            return sl_packer_no_memory(p, err);
        found = access(path, F_OK) == 0;
        free(path);
        if (found || must_copy(p, name))
            rc = copy_file(p, name, err);
    }
    return rc;
}

int sl_packer_open_files(struct sl_packer *p, struct sl_err *err)
{
    int rc = copy_files(p, err);

    return rc < 0 ? rc : open_data_files(p, err);
}
