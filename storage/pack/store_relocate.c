#include "storage/pack/store_relocate.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/size.h"
#include "storage/io/plain_file.h"
#include "storage/store/record_read.h"
#include "storage/store/store_copies.h"
#include "storage/pack/store_identity.h"
#include "storage/store/store_layout.h"

struct relocation {
    const struct sl_store_relocation *o;
    struct sl_store *store;
    struct sl_store_file files[SL_STORE_FILES_MAX]; /* as they will be */
    const char *paths[SL_STORE_FILES_MAX];
    bool lost[SL_STORE_FILES_MAX];
    bool any_lost, any_moved;
};

/* ---- finding ----------------------------------------------------------------------------------
 */

static void move(struct relocation *p, uint32_t file_index, const char path[SL_STORE_PATH_BYTES])
{
    p->any_moved |= strcmp(p->files[file_index].path, path) != 0;
    memcpy(p->files[file_index].path, path, SL_STORE_PATH_BYTES);
    p->paths[file_index] = p->files[file_index].path;
}

/* Notes the new path of every file of the store that is in the folder. Returns 1 if there are
 * any. */
static int look_into(struct relocation *p, const char *folder, struct sl_err *err)
{
    bool found = false;
    int rc = 0;

    for (uint32_t i = 2; i < sl_store_file_count(p->store) && rc == 0; i++) {
        char path[SL_STORE_PATH_BYTES];
        struct stat status;

        rc = sl_store_part_path(path, folder, i, err);
        if (rc == 0 && lstat(path, &status) == 0) {
            found = true;
            rc = sl_plain_file_check(path, err);
            if (rc == 0 && (uint64_t)status.st_size > p->files[i].size_bytes)
                rc = sl_err_set(
                    err, -SL_EFORMAT,
                    "%s: the file has %llu bytes, but that of %s has %llu: is it of another store?",
                    path, (unsigned long long)status.st_size, sl_store_folder(p->store),
                    (unsigned long long)p->files[i].size_bytes);
            move(p, i, path);
        }
    }
    return rc < 0 ? rc : found;
}

/* Marks lost files; each of them outside the store's folder gets the next of the empty folders. */
static int assign_lost(struct relocation *p, const char *const *empty, uint32_t n_empty,
                       struct sl_err *err)
{
    uint32_t n_taken = 0;

    for (uint32_t i = 0; i < sl_store_file_count(p->store); i++) {
        char path[SL_STORE_PATH_BYTES];
        struct stat status;
        int rc;

        p->lost[i] = lstat(p->paths[i], &status) < 0 && errno == ENOENT;
        p->any_lost |= p->lost[i];
        if (!p->lost[i] || i < 2)
            continue;
        if (n_taken == n_empty)
            return sl_err_set(err, -SL_EFORMAT,
                              "%s: is not there; name the folder that it was moved to, or where it "
                              "is to be made anew: --stripe DIR",
                              p->paths[i]);
        rc = sl_store_part_path(path, empty[n_taken++], i, err);
        if (rc < 0)
            return rc;
        move(p, i, path);
    }
    return n_taken == n_empty
               ? 0
               : sl_err_set(err, -SL_EFORMAT,
                            "%s: no part of %s is there, and none is lost that could be made there",
                            empty[n_taken], sl_store_folder(p->store));
}

static int find_files(struct relocation *p, struct sl_err *err)
{
    const char *empty[SL_STRIPES_MAX];
    uint32_t n_empty = 0;

    sl_assert(p->o->n_folders <= SL_STRIPES_MAX);
    for (uint32_t k = 0; k < p->o->n_folders; k++) {
        int rc = look_into(p, p->o->folders[k], err);

        if (rc < 0)
            return rc;
        if (rc == 0)
            empty[n_empty++] = p->o->folders[k];
    }
    if (p->o->make_lost)
        return assign_lost(p, empty, n_empty, err);
    return n_empty == 0 ? 0
                        : sl_err_set(err, -SL_EFORMAT,
                                     "%s: no part of %s is there: it has none of the files that "
                                     "begin with experts-",
                                     empty[0], sl_store_folder(p->store));
}

/* Compares the first and the last record with their checksums, which shows whether the files are
 * the store's. */
static int check_records(const struct relocation *p, struct sl_err *err)
{
    const struct sl_expert_shape *shape = &sl_store_model(p->store)->shape;
    const uint32_t last = sl_store_expert_count(shape) - 1;
    uint8_t *record = malloc(sl_packed_expert_bytes(shape));
    uint8_t *staging = aligned_alloc(64, sl_round_up(sl_record_read_staging_bytes(shape), 64));
    int fds[SL_STORE_FILES_MAX];
    int rc = sl_record_files_open(fds, p->paths, sl_store_file_count(p->store), err);

    if (rc == 0 && (!record || !staging))
        rc = sl_err_set(err, -ENOMEM, "%s: out of memory", sl_store_folder(p->store));
    for (uint32_t number = 0; number <= last && rc == 0; number += last ? last : 1)
        rc = sl_record_read(p->store, fds, p->paths, sl_store_expert_at(shape, number), staging,
                            record, err);
    sl_record_files_close(fds);
    free(staging);
    free(record);
    return rc;
}

/* ---- which may be written to ------------------------------------------------------------------
 */

static bool is_named(const char *path, uint32_t file_index, const char *const *folders,
                     uint32_t n_folders)
{
    for (uint32_t k = 0; k < n_folders; k++) {
        char named[SL_STORE_PATH_BYTES];

        if (sl_store_part_path(named, folders[k], file_index, NULL) == 0 &&
            strcmp(named, path) == 0)
            return true;
    }
    return false;
}

/* Returns whether the copy has this value under this key. */
static bool copy_has(const struct sl_catalog_entries *copy, const char *key, const uint8_t *value,
                     size_t size_bytes)
{
    const uint8_t *found;
    size_t found_bytes;

    return sl_catalog_entries_get(copy, key, &found, &found_bytes) && found_bytes == size_bytes &&
           memcmp(found, value, size_bytes) == 0;
}

static bool has_copy(const struct sl_store *store, const char *path, uint32_t file_index)
{
    uint8_t model[SL_STORE_VALUE_BYTES_MAX], file[SL_STORE_VALUE_BYTES_MAX];
    char *copy_path = sl_store_copy_path(path, file_index), key[SL_STORE_KEY_BYTES];
    struct sl_catalog_entries copy = {0};
    bool same;

    sl_store_file_key(key, file_index);
    same = copy_path && sl_catalog_entries_read(&copy, copy_path, NULL) == 0 &&
           copy_has(&copy, SL_STORE_KEY_MODEL, model,
                    sl_store_model_encode(sl_store_model(store), model)) &&
           copy_has(&copy, key, file, sl_store_file_encode(sl_store_file(store, file_index), file));
    sl_catalog_entries_fini(&copy);
    free(copy_path);
    return same;
}

int sl_store_may_write(const struct sl_store *store, const char *const *paths,
                       const char *const *folders, uint32_t n_folders, struct sl_err *err)
{
    for (uint32_t i = 2; i < sl_store_file_count(store); i++) {
        if (!is_named(paths[i], i, folders, n_folders) && !has_copy(store, paths[i], i))
            return sl_err_set(err, -EPERM,
                              "%s: is outside the store's folder, and no copy of its catalog says "
                              "that it may be written to; if it may: --stripe %.*s",
                              paths[i], (int)(strrchr(paths[i], '/') - paths[i]), paths[i]);
    }
    return 0;
}

/* ---- writing ----------------------------------------------------------------------------------
 */

static int make_lost(const struct relocation *p, struct sl_err *err)
{
    struct sl_file_writer *writer = p->o->writer;
    int rc = 0;

    for (uint32_t i = 0; i < sl_store_file_count(p->store) && rc == 0; i++) {
        int file;

        if (!p->lost[i])
            continue;
        rc = writer->ops->open(writer, p->paths[i], true, &file);
        if (rc < 0)
            return sl_write_error(err, rc, p->paths[i], "create");
        writer->ops->close(writer, file);
        rc = sl_write_name(writer, p->paths[i], err);
    }
    return rc;
}

/* Copies the entries and changes the paths in them. */
struct change {
    const struct relocation *relocation;
    struct sl_catalog_entries entries;
};

static int change_entry(void *context, const char *key, const uint8_t *value, size_t size_bytes,
                        struct sl_err *err)
{
    struct change *c = context;
    uint8_t changed[SL_STORE_VALUE_BYTES_MAX];
    int rc;

    for (uint32_t i = 2; i < sl_store_file_count(c->relocation->store); i++) {
        char file_key[SL_STORE_KEY_BYTES];

        sl_store_file_key(file_key, i);
        if (strcmp(key, file_key) == 0) {
            size_bytes = sl_store_file_encode(&c->relocation->files[i], changed);
            value = changed;
        }
    }
    rc = sl_catalog_entries_add(&c->entries, key, strlen(key), value, size_bytes);
    return rc < 0 ? sl_err_set(err, rc, "%s: out of memory", sl_store_folder(c->relocation->store))
                  : 0;
}

static int write_catalog(const struct relocation *p, struct sl_err *err)
{
    const char *store_folder = sl_store_folder(p->store);
    struct sl_catalog_entries entries = {0};
    struct change c = {.relocation = p};
    int rc = sl_store_sealed_read(&entries, store_folder, err);

    if (rc == 0)
        rc = sl_catalog_entries_each(&entries, "", change_entry, &c, err);
    if (rc == 0)
        rc = sl_store_catalog_make(NULL, store_folder, &c.entries, p->o->writer, err);
    if (rc == 0)
        rc = sl_store_copies_seal(store_folder, &c.entries, p->o->writer, err);
    sl_catalog_entries_fini(&c.entries);
    sl_catalog_entries_fini(&entries);
    return rc;
}

static int relocate(struct relocation *p, const char *store_folder, struct sl_err *err)
{
    int rc = sl_store_open(&p->store, store_folder, SL_STORE_MOVED, err);

    for (uint32_t i = 0; rc == 0 && i < sl_store_file_count(p->store); i++) {
        p->files[i] = *sl_store_file(p->store, i);
        p->paths[i] = sl_store_file_path(p->store, i);
    }
    if (rc < 0 || (rc = find_files(p, err)) < 0 ||
        (p->any_moved && !p->any_lost && (rc = check_records(p, err)) < 0))
        return rc;
    if (p->o->n_folders > 0 &&
        ((rc = sl_store_may_write(p->store, p->paths, p->o->folders, p->o->n_folders, err)) < 0 ||
         (rc = make_lost(p, err)) < 0))
        return rc;
    return p->o->n_folders > 0 ? write_catalog(p, err) : make_lost(p, err);
}

int sl_store_relocate(const char *store_folder, const struct sl_store_relocation *options,
                      struct sl_err *err)
{
    int lock_fd = sl_store_lock(store_folder, err);
    struct relocation p = {.o = options};
    int rc;

    if (lock_fd < 0)
        return lock_fd;
    rc = relocate(&p, store_folder, err);
    sl_store_close(p.store);
    close(lock_fd);
    return rc;
}
