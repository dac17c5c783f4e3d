#include "storage/store_places.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/size.h"
#include "storage/catalog.h"
#include "storage/record_read.h"
#include "storage/store_identity.h"
#include "storage/store_layout.h"

struct places {
    struct sl_store *store;
    struct sl_store_file files[SL_STORE_FILES_MAX]; /* as they will be */
    const char *paths[SL_STORE_FILES_MAX];
};

/* Takes all files of the store that are in the folder. */
static int look_into(struct places *p, const char *folder, struct sl_err *err)
{
    bool found = false;
    int rc = 0;

    for (uint32_t i = 2; i < sl_store_file_count(p->store) && rc == 0; i++) {
        char path[SL_STORE_PATH_BYTES];
        struct stat status;

        rc = sl_store_part_path(path, folder, i, err);
        if (rc == 0 && stat(path, &status) == 0) {
            found = true;
            if ((uint64_t)status.st_size > p->files[i].size_bytes)
                rc =
                    sl_err_set(err, -SL_EFORMAT,
                               "%s: the file has %llu bytes, that of %s has %llu: another store's?",
                               path, (unsigned long long)status.st_size, sl_store_folder(p->store),
                               (unsigned long long)p->files[i].size_bytes);
            memcpy(p->files[i].path, path, sizeof(path));
            p->paths[i] = p->files[i].path;
        }
    }
    if (rc == 0 && !found)
        rc = sl_err_set(err, -SL_EFORMAT,
                        "%s: no part of %s is there: it has none of the files that begin "
                        "with experts-",
                        folder, sl_store_folder(p->store));
    return rc;
}

/* The first and the last record. */
static int check_records(const struct places *p, struct sl_err *err)
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

static int write_catalog(const struct places *p, struct sl_err *err)
{
    struct sl_catalog *catalog;
    int rc = sl_catalog_open(&catalog, sl_store_folder(p->store), true, err);

    if (rc < 0)
        return rc;
    rc = sl_catalog_begin(catalog, err);
    for (uint32_t i = 2; i < sl_store_file_count(p->store) && rc == 0; i++) {
        uint8_t value[SL_STORE_VALUE_BYTES_MAX];
        char key[SL_STORE_KEY_BYTES];

        sl_store_file_key(key, i);
        rc = sl_catalog_put(catalog, key, value, sl_store_file_encode(&p->files[i], value), err);
    }
    if (rc == 0)
        rc = sl_catalog_commit(catalog, err);
    sl_catalog_close(catalog);
    return rc;
}

int sl_store_set_places(const char *store_folder, const char *const *folders, uint32_t n_folders,
                        struct sl_err *err)
{
    int lock_fd = sl_store_lock(store_folder, err);
    struct places p = {0};
    int rc;

    if (lock_fd < 0)
        return lock_fd;
    rc = sl_store_open(&p.store, store_folder, SL_STORE_MOVED, err);
    for (uint32_t i = 0; rc == 0 && i < sl_store_file_count(p.store); i++) {
        p.files[i] = *sl_store_file(p.store, i);
        p.paths[i] = sl_store_file_path(p.store, i);
    }
    for (uint32_t k = 0; k < n_folders && rc == 0; k++)
        rc = look_into(&p, folders[k], err);
    if (rc == 0)
        rc = check_records(&p, err);
    if (rc == 0)
        rc = write_catalog(&p, err);
    sl_store_close(p.store);
    close(lock_fd);
    return rc;
}
