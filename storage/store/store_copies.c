#include "storage/store/store_copies.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "storage/store/catalog_read.h"

char *sl_store_path(const char *folder, const char *name)
{
    char *path;

    return asprintf(&path, "%s/%s", folder, name) < 0 ? NULL : path;
}

char *sl_store_copy_path(const char *path, uint32_t file_index)
{
    char *copy;

    return asprintf(&copy, "%.*s/catalog-%u.sealed", (int)(strrchr(path, '/') - path), path,
                    file_index) < 0
               ? NULL
               : copy;
}

static int no_memory(const char *where, struct sl_err *err)
{
    return sl_err_set(err, -ENOMEM, "%s: out of memory", where);
}

/* ---- reading ----------------------------------------------------------------------------------
 */

int sl_store_catalog_read(struct sl_catalog_entries *entries, const char *store_folder,
                          struct sl_err *err)
{
    char *path = sl_store_path(store_folder, SL_STORE_CATALOG_FILE);
    int rc;

    *entries = (struct sl_catalog_entries){0};
    if (!path)
        return no_memory(store_folder, err);
    rc = sl_catalog_read(entries, path, err);
    free(path);
    return rc;
}

int sl_store_sealed_read(struct sl_catalog_entries *entries, const char *store_folder,
                         struct sl_err *err)
{
    char *path = sl_store_path(store_folder, SL_STORE_SEALED_FILE);
    int rc;

    *entries = (struct sl_catalog_entries){0};
    if (!path)
        return no_memory(store_folder, err);
    rc = sl_catalog_entries_read(entries, path, err);
    free(path);
    return rc;
}

/* ---- writing ----------------------------------------------------------------------------------
 */

/* Takes over `path`, which may be NULL. */
static int write_sealed(char *path, struct sl_catalog_entries *entries,
                        struct sl_file_writer *writer, struct sl_err *err)
{
    const uint8_t *bytes;
    size_t size_bytes;
    int rc;

    if (!path || sl_catalog_entries_seal(entries, &bytes, &size_bytes) < 0) {
        free(path);
        return no_memory(SL_STORE_SEALED_FILE, err);
    }
    rc = sl_write_small(writer, path, bytes, size_bytes, err);
    if (rc == 0)
        rc = sl_write_name(writer, path, err);
    free(path);
    return rc;
}

int sl_store_copy_seal(const char *path, uint32_t file_index, struct sl_catalog_entries *entries,
                       struct sl_file_writer *writer, struct sl_err *err)
{
    return write_sealed(sl_store_copy_path(path, file_index), entries, writer, err);
}

int sl_store_copies_seal(const char *store_folder, struct sl_catalog_entries *entries,
                         struct sl_file_writer *writer, struct sl_err *err)
{
    int rc = 0;

    for (uint32_t i = 2; i < SL_STORE_FILES_MAX && rc == 0; i++) {
        char key[SL_STORE_KEY_BYTES];
        struct sl_store_file file;
        const uint8_t *value;
        size_t size_bytes;

        sl_store_file_key(key, i);
        if (sl_catalog_entries_get(entries, key, &value, &size_bytes) &&
            sl_store_file_decode(&file, value, size_bytes) && sl_store_file_is_sound(&file, i))
            rc = sl_store_copy_seal(file.path, i, entries, writer, err);
    }
    return rc < 0 ? rc
                  : write_sealed(sl_store_path(store_folder, SL_STORE_SEALED_FILE), entries, writer,
                                 err);
}

int sl_store_catalog_make(struct sl_catalog **ret_catalog, const char *store_folder,
                          const struct sl_catalog_entries *entries, struct sl_file_writer *writer,
                          struct sl_err *err)
{
    char *path = sl_store_path(store_folder, SL_STORE_CATALOG_FILE);
    char *new_path = sl_store_path(store_folder, SL_STORE_CATALOG_FILE SL_WRITE_NEW);
    int rc = path && new_path ? sl_catalog_make(ret_catalog, path, new_path, entries, writer, err)
                              : no_memory(store_folder, err);

    free(path);
    free(new_path);
    return rc;
}

/* ---- repairing ----------------------------------------------------------------------------------
 */

/* Returns a number that is the larger the more a catalog counts as packed; 0 if it is empty or has
 * no sound state. */
static uint64_t progress_of(const struct sl_catalog_entries *entries)
{
    struct sl_store_state state;
    const uint8_t *value;
    size_t size_bytes;

    if (!sl_catalog_entries_get(entries, SL_STORE_KEY_STATE, &value, &size_bytes) ||
        !sl_store_state_decode(&state, value, size_bytes))
        return 0;
    return 1 + state.n_tensors_done + (uint64_t)state.n_experts_done +
           ((uint64_t)state.complete << 40);
}

/* Returns whether a copy is missing or damaged, so that another one may replace it. It may not be
 * replaced when memory is short, the drive fails, or a later sluice has written it. */
static bool is_lost(int rc)
{
    return rc == 0 || rc == -ENOENT || rc == -SL_ECORRUPT || rc == -SL_EFORMAT || rc == -ELOOP;
}

/* Reads a copy, and keeps it in `best` if that is still empty. */
static int take_other(const char *path, struct sl_catalog_entries *best, struct sl_err *err)
{
    struct sl_catalog_entries found;
    struct sl_err why = {0};
    int rc = sl_catalog_entries_read(&found, path, &why);

    if (!is_lost(rc))
        return sl_err_set(err, rc, "%s", why.message);
    if (progress_of(&found) == 0) {
        rc = 0;
    } else if (best->n_entries == 0) {
        *best = found;
        return 0;
    } else if (!sl_catalog_entries_same(best, &found)) {
        rc = sl_err_set(err, -SL_EFORMAT,
                        "%s: belongs to another store than the copies found before; name only "
                        "folders of this store",
                        path);
    }
    sl_catalog_entries_fini(&found);
    return rc;
}

/* Reads the copies in a folder that holds parts of stores. */
static int look_into(const char *folder, struct sl_catalog_entries *best, struct sl_err *err)
{
    int rc = 0;

    for (uint32_t i = 2; i < SL_STORE_FILES_MAX && rc == 0; i++) {
        char name[32], *path;

        snprintf(name, sizeof(name), "catalog-%u.sealed", i);
        path = sl_store_path(folder, name);
        rc = path ? take_other(path, best, err) : no_memory(folder, err);
        free(path);
    }
    return rc;
}

/* The sound copies in the store's own folder, and the best copy: one of these, or else one of
 * another folder. */
struct copies {
    struct sl_catalog_entries sealed, catalog, other;
    struct sl_catalog_entries *best;
};

static int find_best(struct copies *c, const char *store_folder, const char *const *folders,
                     uint32_t n_folders, struct sl_err *err)
{
    struct sl_err sealed_err = {0}, catalog_err = {0};
    int sealed_rc = sl_store_sealed_read(&c->sealed, store_folder, &sealed_err);
    int catalog_rc = sl_store_catalog_read(&c->catalog, store_folder, &catalog_err), rc = 0;

    if (!is_lost(sealed_rc))
        return sl_err_set(err, sealed_rc, "%s", sealed_err.message);
    if (!is_lost(catalog_rc))
        return sl_err_set(err, catalog_rc, "%s", catalog_err.message);
    c->best = progress_of(&c->catalog) > progress_of(&c->sealed) ? &c->catalog : &c->sealed;
    if (progress_of(c->best) > 0)
        return 0;
    for (uint32_t i = 0; i < n_folders && rc == 0; i++)
        rc = look_into(folders[i], &c->other, err);
    c->best = &c->other;
    if (rc == 0 && progress_of(c->best) == 0)
        rc = sl_err_set(err, -SL_ECORRUPT, "%s; nor is there a sound copy of it",
                        sealed_err.message);
    return rc;
}

/* Makes the copies from the best one. While a store is being packed, catalog.mdb is ahead of the
 * sealed copy, so it may be the best. */
static int repair(struct copies *c, const char *store_folder, struct sl_file_writer *writer,
                  struct sl_err *err)
{
    const bool catalog_bad =
        progress_of(&c->catalog) == 0 ||
        (progress_of(c->best) >> 40 && !sl_catalog_entries_same(&c->catalog, c->best));
    const bool sealed_bad =
        progress_of(&c->sealed) == 0 ||
        (progress_of(c->best) >> 40 && !sl_catalog_entries_same(&c->sealed, c->best));
    int rc = 0;

    if (catalog_bad)
        rc = sl_store_catalog_make(NULL, store_folder, c->best, writer, err);
    if (rc == 0 && sealed_bad)
        rc = write_sealed(sl_store_path(store_folder, SL_STORE_SEALED_FILE), c->best, writer, err);
    return rc < 0 ? rc
                  : catalog_bad * SL_STORE_REPAIRED_CATALOG + sealed_bad * SL_STORE_REPAIRED_SEALED;
}

int sl_store_copies_repair(const char *store_folder, const char *const *folders, uint32_t n_folders,
                           struct sl_file_writer *writer, struct sl_err *err)
{
    struct copies c = {0};
    int rc = find_best(&c, store_folder, folders, n_folders, err);

    if (rc == 0)
        rc = repair(&c, store_folder, writer, err);
    sl_catalog_entries_fini(&c.sealed);
    sl_catalog_entries_fini(&c.catalog);
    sl_catalog_entries_fini(&c.other);
    return rc;
}
