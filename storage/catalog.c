/* Owns the LMDB environment and the seals.
 *
 * LMDB maps its file and believes what it finds there: pages beyond the end of a file that was cut,
 * or wild offsets in one that was damaged, would end the process. So all pages are checked before
 * anything is looked up (storage/catalog_check.h): once, for what comes after is LMDB's own. */
#include "storage/catalog.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <lmdb.h>

#include "core/base/assert.h"
#include "core/base/file.h"
#include "storage/catalog_check.h"
#include "storage/checksum.h"

/* Address space, not memory: room for a million experts. */
#define MAP_BYTES (UINT64_C(1) << 30)
#define BEGIN_TRIES 3u
#define SEAL_BYTES sizeof(uint64_t)

struct sl_catalog {
    char *path;
    MDB_env *env;
    MDB_txn *txn; /* NULL outside begin .. commit */
    MDB_dbi dbi;
    bool writable;
    bool checked;
};

/* LMDB's own codes are all about a file that is not what it should be, but for two. */
static int fail(const struct sl_catalog *catalog, int mdb_rc, const char *what, struct sl_err *err)
{
    int rc = mdb_rc > 0                   ? -mdb_rc
             : mdb_rc == MDB_MAP_FULL     ? -ENOSPC
             : mdb_rc == MDB_READERS_FULL ? -EBUSY
                                          : -SL_ECORRUPT;

    return sl_err_set(err, rc, "%s: %s the catalog: %s", catalog->path, what, mdb_strerror(mdb_rc));
}

static uint64_t seal_of(const char *key, const void *value, size_t size_bytes)
{
    return sl_checksum_seeded(value, size_bytes, sl_checksum(key, strlen(key)));
}

/* ---- Opening ---- */

static int open_env(struct sl_catalog *catalog, unsigned flags)
{
    int rc;

    if ((rc = mdb_env_create(&catalog->env)) != 0)
        return rc;
    rc = mdb_env_set_mapsize(catalog->env, MAP_BYTES);
    return rc ? rc : mdb_env_open(catalog->env, catalog->path, flags | MDB_NOTLS, 0644);
}

/* LMDB would take an empty file for a new database, and try to begin one. Of a file that is not
 * there it tells itself. */
static int check_file(const struct sl_catalog *catalog, struct sl_err *err)
{
    struct stat status;
    char *path;
    int fd, rc = 0;

    if (asprintf(&path, "%s/%s", catalog->path, SL_CATALOG_FILE) < 0)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", catalog->path);
    fd = sl_file_open(path, err);
    free(path);
    if (fd < 0)
        return fd == -SL_EFORMAT ? fd : 0;
    if (!catalog->writable && fstat(fd, &status) == 0 && status.st_size == 0)
        rc = sl_err_set(err, -SL_ECORRUPT, "%s: the catalog is empty", catalog->path);
    else
        rc = sl_catalog_check_header(fd, catalog->path, err);
    close(fd);
    return rc;
}

/* A transaction that writes stands on the state before it. */
static int check_pages(struct sl_catalog *catalog, struct sl_err *err)
{
    uint64_t txn_id = mdb_txn_id(catalog->txn) - catalog->writable;
    int fd, rc = mdb_env_get_fd(catalog->env, &fd);

    if (rc)
        return fail(catalog, rc, "cannot read", err);
    rc = sl_catalog_check_pages(fd, txn_id, catalog->path, err);
    catalog->checked = rc == 0;
    return rc;
}

/* A folder that may not be written to has no place for LMDB's lock file. Nobody else can write
 * there either, so it is read without. */
static int open_reading(struct sl_catalog *catalog)
{
    int rc = open_env(catalog, MDB_RDONLY);

    if (rc != EACCES && rc != EROFS)
        return rc;
    mdb_env_close(catalog->env);
    catalog->env = NULL;
    return open_env(catalog, MDB_RDONLY | MDB_NOLOCK);
}

int sl_catalog_open(struct sl_catalog **ret_catalog, const char *store_folder, bool writable,
                    struct sl_err *err)
{
    struct sl_catalog *catalog = calloc(1, sizeof(*catalog));
    int rc;

    if (!catalog)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", store_folder);
    catalog->writable = writable;
    if (asprintf(&catalog->path, "%s/%s", store_folder, SL_CATALOG_FOLDER) < 0) {
        free(catalog);
        return sl_err_set(err, -ENOMEM, "%s: out of memory", store_folder);
    }
    rc = check_file(catalog, err);
    if (rc == 0) {
        rc = writable ? open_env(catalog, 0) : open_reading(catalog);
        rc = rc ? fail(catalog, rc, "cannot open", err) : 0;
    }
    if (rc < 0) {
        sl_catalog_close(catalog);
        return rc;
    }
    *ret_catalog = catalog;
    return 0;
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

const char *sl_catalog_path(const struct sl_catalog *catalog)
{
    return catalog->path;
}

/* ---- Transactions ---- */

/* Returns 1 if others were too fast for us. */
static int begin_once(struct sl_catalog *catalog, struct sl_err *err)
{
    int rc = mdb_txn_begin(catalog->env, NULL, catalog->writable ? 0 : MDB_RDONLY, &catalog->txn);

    if (rc)
        return fail(catalog, rc, "cannot begin with", err);
    rc = catalog->checked ? 0 : check_pages(catalog, err);
    if (rc == 0) {
        rc = mdb_dbi_open(catalog->txn, NULL, 0, &catalog->dbi);
        rc = rc ? fail(catalog, rc, "cannot begin with", err) : 0;
    }
    if (rc)
        sl_catalog_abort(catalog);
    return rc;
}

int sl_catalog_begin(struct sl_catalog *catalog, struct sl_err *err)
{
    int rc = 1;

    sl_assert(!catalog->txn);
    for (uint32_t i = 0; i < BEGIN_TRIES && rc == 1; i++)
        rc = begin_once(catalog, err);
    return rc == 1 ? sl_err_set(err, -SL_ECORRUPT,
                                "%s: the catalog is damaged: the headers of %s make no sense",
                                catalog->path, SL_CATALOG_FILE)
                   : rc;
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

    sl_assert(catalog->txn && catalog->writable);
    rc = mdb_txn_commit(catalog->txn);
    catalog->txn = NULL; /* gone, whatever came of it */
    return rc ? fail(catalog, rc, "cannot write", err) : 0;
}

/* ---- Values ---- */

int sl_catalog_put(struct sl_catalog *catalog, const char *key, const void *value,
                   size_t size_bytes, struct sl_err *err)
{
    uint64_t seal = seal_of(key, value, size_bytes);
    MDB_val mdb_key = {strlen(key), (void *)(uintptr_t)key};
    MDB_val place = {size_bytes + SEAL_BYTES, NULL};
    uint8_t *bytes;
    int rc;

    sl_assert(catalog->txn && catalog->writable);
    sl_assert(mdb_key.mv_size >= 1 && mdb_key.mv_size <= SL_CATALOG_KEY_BYTES_MAX);
    rc = mdb_put(catalog->txn, catalog->dbi, &mdb_key, &place, MDB_RESERVE);
    if (rc)
        return fail(catalog, rc, "cannot write", err);
    bytes = place.mv_data;
    memcpy(bytes, value, size_bytes);
    for (size_t i = 0; i < SEAL_BYTES; i++)
        bytes[size_bytes + i] = (uint8_t)(seal >> 8 * i);
    return 0;
}

/* Checks the seal; the value without it. */
static int unseal(const struct sl_catalog *catalog, const char *key, const MDB_val *found,
                  const uint8_t **ret_value, size_t *ret_size_bytes, struct sl_err *err)
{
    const uint8_t *bytes = found->mv_data;
    uint64_t seal = 0;

    if (found->mv_size >= SEAL_BYTES) {
        for (size_t i = 0; i < SEAL_BYTES; i++)
            seal |= (uint64_t)bytes[found->mv_size - SEAL_BYTES + i] << 8 * i;
        if (seal == seal_of(key, bytes, found->mv_size - SEAL_BYTES)) {
            *ret_value = bytes;
            *ret_size_bytes = found->mv_size - SEAL_BYTES;
            return 0;
        }
    }
    return sl_err_set(err, -SL_ECORRUPT,
                      "%s: the catalog's entry \"%s\" does not have the checksum that it names",
                      catalog->path, key);
}

int sl_catalog_get(struct sl_catalog *catalog, const char *key, const uint8_t **ret_value,
                   size_t *ret_size_bytes, struct sl_err *err)
{
    MDB_val mdb_key = {strlen(key), (void *)(uintptr_t)key}, found;
    int rc;

    sl_assert(catalog->txn);
    rc = mdb_get(catalog->txn, catalog->dbi, &mdb_key, &found);
    if (rc == MDB_NOTFOUND)
        return 0;
    if (rc)
        return fail(catalog, rc, "cannot read", err);
    rc = unseal(catalog, key, &found, ret_value, ret_size_bytes, err);
    return rc < 0 ? rc : 1;
}

int sl_catalog_each(struct sl_catalog *catalog, const char *prefix, sl_catalog_fn *fn,
                    void *context, struct sl_err *err)
{
    MDB_val mdb_key = {strlen(prefix), (void *)(uintptr_t)prefix}, found;
    char key[SL_CATALOG_KEY_BYTES_MAX + 1];
    MDB_cursor *cursor;
    const uint8_t *value = NULL;
    size_t size_bytes = 0;
    int rc, fn_rc = 0;

    sl_assert(catalog->txn);
    rc = mdb_cursor_open(catalog->txn, catalog->dbi, &cursor);
    if (rc)
        return fail(catalog, rc, "cannot read", err);
    rc = mdb_cursor_get(cursor, &mdb_key, &found, prefix[0] ? MDB_SET_RANGE : MDB_FIRST);
    while (rc == 0 && fn_rc >= 0) {
        if (mdb_key.mv_size < strlen(prefix) || mdb_key.mv_size > SL_CATALOG_KEY_BYTES_MAX ||
            memcmp(mdb_key.mv_data, prefix, strlen(prefix)) != 0)
            break;
        memcpy(key, mdb_key.mv_data, mdb_key.mv_size);
        key[mdb_key.mv_size] = '\0';
        fn_rc = unseal(catalog, key, &found, &value, &size_bytes, err);
        if (fn_rc == 0)
            fn_rc = fn(context, key, value, size_bytes, err);
        rc = mdb_cursor_get(cursor, &mdb_key, &found, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
    if (fn_rc < 0)
        return fn_rc;
    return rc && rc != MDB_NOTFOUND ? fail(catalog, rc, "cannot read", err) : 0;
}
