#include "storage/pack/store_finish.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/io/plain_file.h"
#include "storage/store/store.h"
#include "storage/store/store_copies.h"
#include "storage/pack/store_identity.h"

/* Reads the committed entries. Returns 1 if they are sealed already. */
static int read_catalog(const struct sl_packer *p, struct sl_catalog_entries *catalog,
                        struct sl_err *err)
{
    struct sl_catalog_entries sealed;
    int rc = sl_store_catalog_read(catalog, p->o->store_folder, err);

    if (rc == 0 && sl_store_sealed_read(&sealed, p->o->store_folder, NULL) == 0) {
        rc = sl_catalog_entries_same(&sealed, catalog);
        sl_catalog_entries_fini(&sealed);
    }
    return rc;
}

bool sl_packer_is_sealed(const struct sl_packer *p)
{
    struct sl_catalog_entries catalog;
    bool sealed = read_catalog(p, &catalog, NULL) == 1;

    sl_catalog_entries_fini(&catalog);
    return sealed;
}

int sl_packer_seal(struct sl_packer *p, struct sl_err *err)
{
    struct sl_catalog_entries catalog;
    int rc = read_catalog(p, &catalog, err);

    if (rc == 0)
        rc = sl_store_copies_seal(p->o->store_folder, &catalog, p->o->writer, err);
    sl_catalog_entries_fini(&catalog);
    return rc < 0 ? rc : 0;
}

int sl_packer_trim(struct sl_packer *p, struct sl_err *err)
{
    struct sl_store *store;
    int rc = sl_store_open(&store, p->o->store_folder, SL_STORE_RESUME, err);

    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < p->model.n_files && rc == 0; i++) {
        const uint64_t end_bytes = sl_store_file_end_bytes(store, i);
        struct stat status;

        if (lstat(p->layout.paths[i], &status) == 0 && (uint64_t)status.st_size > end_bytes &&
            (rc = p->o->writer->ops->cut(p->o->writer, p->layout.paths[i], end_bytes)) < 0)
            sl_write_error(err, rc, p->layout.paths[i], "shorten");
    }
    sl_store_close(store);
    return rc;
}

/* Checks that `path`, which the function frees, leads to the catalog. */
static int check_catalog(const struct sl_packer *p, char *path, struct sl_err *err)
{
    int rc = 0;

    if (!path)
        rc = sl_packer_no_memory(p, err);
    else if (!sl_plain_file_leads(path, sl_catalog_fd(p->catalog), false))
        rc = sl_write_error(err, -ESTALE, path, "find");
    free(path);
    return rc;
}

int sl_packer_check_paths(const struct sl_packer *p, struct sl_err *err)
{
    int rc = 0;

    if (!sl_plain_file_leads(p->o->store_folder, p->lock_fd, true))
        return sl_write_error(err, -ESTALE, p->o->store_folder, "find");
    for (uint32_t i = 0; i < p->model.n_files && rc == 0; i++) {
        if (p->handles[i] >= 0)
            rc = p->o->writer->ops->leads(p->o->writer, p->layout.paths[i], p->handles[i]);
        if (rc < 0)
            sl_write_error(err, rc, p->layout.paths[i], "find");
    }
    if (rc == 0 && p->catalog)
        rc = check_catalog(p, sl_store_path(p->o->store_folder, SL_STORE_CATALOG_FILE), err);
    return rc;
}

int sl_packer_check_whole(const struct sl_packer *p, struct sl_err *err)
{
    struct sl_store *store;
    int rc = sl_store_open(&store, p->o->store_folder,
                           p->state.complete ? SL_STORE_RUN : SL_STORE_RESUME, err);

    if (rc < 0)
        return rc;
    for (uint32_t i = 0; i < sl_store_copied_file_count(store) && rc == 0; i++)
        rc = sl_copied_file_check(store, i, err);
    sl_store_close(store);
    return rc;
}
