/* Owns the LMDB environment. */
#include "storage/store/catalog.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <lmdb.h>

#include "core/base/assert.h"

struct sl_catalog {
    char *path; /* where it was made, for messages */
    MDB_env *env;
    MDB_txn *txn; /* NULL outside begin .. commit */
    MDB_dbi dbi;
    off_t file_bytes; /* since the last commit */
};

/* LMDB's own codes all mean that the file is damaged, except for one. */
static int fail(const struct sl_catalog *catalog, int mdb_rc, struct sl_err *err)
{
    int rc = mdb_rc > 0 ? -mdb_rc : mdb_rc == MDB_MAP_FULL ? -ENOSPC : -SL_ECORRUPT;

    return sl_err_set(err, rc, "%s: cannot write the catalog: %s", catalog->path,
                      mdb_strerror(mdb_rc));
}

/* ---- opening ----------------------------------------------------------------------------------
 */

/* Makes an empty file, which LMDB takes for a new database. */
static int make_file(const char *path)
{
    int fd;

    if (unlink(path) < 0 && errno != ENOENT)
        return errno;
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (fd < 0)
        return errno;
    close(fd);
    return 0;
}

static int open_env(struct sl_catalog *catalog)
{
    int rc;

    if ((rc = make_file(catalog->path)) != 0 || (rc = mdb_env_create(&catalog->env)) != 0 ||
        (rc = mdb_env_set_mapsize(catalog->env, SL_CATALOG_BYTES_MAX)) != 0)
        return rc;
    return mdb_env_open(catalog->env, catalog->path, MDB_NOSUBDIR | MDB_NOLOCK | MDB_NOTLS, 0666);
}

static int put_entry(void *context, const char *key, const uint8_t *value, size_t size_bytes,
                     struct sl_err *err)
{
    return sl_catalog_put(context, key, value, size_bytes, err);
}

int sl_catalog_create(struct sl_catalog **ret_catalog, const char *path,
                      const struct sl_catalog_entries *entries, struct sl_err *err)
{
    struct sl_catalog *catalog = calloc(1, sizeof(*catalog));
    int rc;

    if (!catalog)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", path);
    catalog->path = strdup(path);
    if (!catalog->path) {
        free(catalog);
        return sl_err_set(err, -ENOMEM, "%s: out of memory", path);
    }
    rc = open_env(catalog);
    rc = rc ? fail(catalog, rc, err) : sl_catalog_begin(catalog, err);
    if (rc == 0 && entries)
        rc = sl_catalog_entries_each(entries, "", put_entry, catalog, err);
    if (rc < 0) {
        sl_catalog_close(catalog);
        return rc;
    }
    *ret_catalog = catalog;
    return 0;
}

int sl_catalog_make(struct sl_catalog **ret_catalog, const char *path, const char *new_path,
                    const struct sl_catalog_entries *entries, struct sl_file_writer *writer,
                    struct sl_err *err)
{
    struct sl_catalog *catalog;
    int rc = sl_catalog_create(&catalog, new_path, entries, err), mdb_rc;

    if (rc < 0)
        return rc;
    rc = sl_catalog_commit(catalog, err);
    /* Where nothing was put, the commit has left the new file's headers unsynced. */
    if (rc == 0 && (mdb_rc = mdb_env_sync(catalog->env, 1)) != 0)
        rc = fail(catalog, mdb_rc, err);
    if (rc == 0 && (rc = writer->ops->rename(writer, new_path, path)) < 0)
        sl_write_error(err, rc, path, "make");
    if (rc == 0 && (rc = sl_write_name(writer, path, err)) == 0 && ret_catalog)
        rc = sl_catalog_begin(catalog, err);
    if (rc == 0 && ret_catalog)
        *ret_catalog = catalog;
    else
        sl_catalog_close(catalog);
    return rc;
}

void sl_catalog_close(struct sl_catalog *catalog)
{
    if (!catalog)
        return;
    sl_catalog_abort(catalog);
    if (catalog->env)
        mdb_env_close(catalog->env);
    free(catalog->path);
    free(catalog);
}

int sl_catalog_fd(const struct sl_catalog *catalog)
{
    int fd = -1;

    mdb_env_get_fd(catalog->env, &fd);
    return fd;
}

/* ---- transactions -----------------------------------------------------------------------------
 */

static int look_at_size(const struct sl_catalog *catalog, off_t *ret_file_bytes, struct sl_err *err)
{
    struct stat status;

    if (fstat(sl_catalog_fd(catalog), &status) < 0)
        return fail(catalog, errno, err);
    *ret_file_bytes = status.st_size;
    return 0;
}

/* LMDB reads pages through a mapping. If somebody has cut the file, reading a page that is gone
 * would end the process, so the size is checked before. */
static int check_size(const struct sl_catalog *catalog, struct sl_err *err)
{
    off_t file_bytes;
    int rc = look_at_size(catalog, &file_bytes, err);

    return rc < 0 || file_bytes >= catalog->file_bytes
               ? rc
               : sl_err_set(err, -SL_ECORRUPT, "%s: the catalog was cut while it was written to",
                            catalog->path);
}

int sl_catalog_begin(struct sl_catalog *catalog, struct sl_err *err)
{
    int rc = check_size(catalog, err);

    sl_assert(!catalog->txn);
    if (rc < 0)
        return rc;
    rc = mdb_txn_begin(catalog->env, NULL, 0, &catalog->txn);
    if (rc == 0)
        rc = mdb_dbi_open(catalog->txn, NULL, 0, &catalog->dbi);
    if (rc)
        sl_catalog_abort(catalog);
    return rc ? fail(catalog, rc, err) : 0;
}

void sl_catalog_abort(struct sl_catalog *catalog)
{
    if (catalog->txn)
        mdb_txn_abort(catalog->txn);
    catalog->txn = NULL;
}

int sl_catalog_commit(struct sl_catalog *catalog, struct sl_err *err)
{
    int rc;

    sl_assert(catalog->txn);
    rc = mdb_txn_commit(catalog->txn);
    catalog->txn = NULL; /* gone, whatever came of it */
    return rc ? fail(catalog, rc, err) : look_at_size(catalog, &catalog->file_bytes, err);
}

int sl_catalog_put(struct sl_catalog *catalog, const char *key, const void *value,
                   size_t size_bytes, struct sl_err *err)
{
    uint64_t checksum = sl_catalog_checksum(key, strlen(key), value, size_bytes);
    MDB_val mdb_key = {strlen(key), (void *)(uintptr_t)key};
    MDB_val place = {size_bytes + SL_CATALOG_CHECKSUM_BYTES, NULL};
    uint8_t *bytes;
    int rc;

    sl_assert(catalog->txn);
    sl_assert(mdb_key.mv_size >= 1 && mdb_key.mv_size <= SL_CATALOG_KEY_BYTES_MAX);
    rc = mdb_put(catalog->txn, catalog->dbi, &mdb_key, &place, MDB_RESERVE);
    if (rc)
        return fail(catalog, rc, err);
    bytes = place.mv_data;
    memcpy(bytes, value, size_bytes);
    for (size_t i = 0; i < SL_CATALOG_CHECKSUM_BYTES; i++)
        bytes[size_bytes + i] = (uint8_t)(checksum >> 8 * i);
    return 0;
}

int sl_catalog_remove(struct sl_catalog *catalog, const char *key, struct sl_err *err)
{
    MDB_val mdb_key = {strlen(key), (void *)(uintptr_t)key};
    int rc;

    sl_assert(catalog->txn);
    rc = mdb_del(catalog->txn, catalog->dbi, &mdb_key, NULL);
    return rc && rc != MDB_NOTFOUND ? fail(catalog, rc, err) : 0;
}
