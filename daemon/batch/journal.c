/* Owns the catalog's file, and the folder's lock. A commit that failed leaves LMDB in a state that
 * is not documented well, so its file is closed then, and read and copied again as at the start
 * before the next commit. */
#include "daemon/batch/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "storage/io/plain_file.h"
#include "storage/store/catalog.h"
#include "storage/store/catalog_read.h"

#define FILE_NAME "journal.mdb"

struct sl_journal {
    char *folder, *path, *new_path;
    struct sl_file_writer *writer;
    int lock_fd; /* the folder's */

    pthread_mutex_t lock;              /* guards the rest against commits of several threads */
    struct sl_catalog *catalog;        /* NULL: the last commit failed */
    struct sl_catalog_entries entries; /* until forget() */
};

/* ---- changes -----------------------------------------------------------------------------------
 * Each is a header, the key with its zero byte, and the value.
 */

struct change {
    uint32_t is_removal, key_bytes;
    uint64_t size_bytes;
};

static void add(struct sl_journal_changes *changes, bool is_removal, const char *key,
                const void *value, size_t size_bytes)
{
    const struct change change = {is_removal, (uint32_t)strlen(key) + 1, size_bytes};

    sl_bytes_add(&changes->bytes, &change, sizeof(change));
    sl_bytes_add(&changes->bytes, key, change.key_bytes);
    sl_bytes_add(&changes->bytes, value, size_bytes);
}

void sl_journal_put(struct sl_journal_changes *changes, const char *key, const void *value,
                    size_t size_bytes)
{
    add(changes, false, key, value, size_bytes);
}

void sl_journal_remove(struct sl_journal_changes *changes, const char *key)
{
    add(changes, true, key, NULL, 0);
}

void sl_journal_put_json(struct sl_journal_changes *changes, const char *key, json_t *value)
{
    char *text = value ? json_dumps(value, JSON_COMPACT) : NULL;

    if (text)
        add(changes, false, key, text, strlen(text));
    else
        changes->bytes.out_of_memory = true;
    free(text);
    json_decref(value);
}

void sl_journal_changes_clear(struct sl_journal_changes *changes)
{
    sl_bytes_clear(&changes->bytes);
}

void sl_journal_changes_fini(struct sl_journal_changes *changes)
{
    sl_bytes_fini(&changes->bytes);
}

static int apply(struct sl_catalog *catalog, const struct sl_journal_changes *changes,
                 struct sl_err *err)
{
    const char *at = changes->bytes.data, *end = at + changes->bytes.length;
    struct change change;
    int rc = 0;

    while (rc == 0 && at < end) {
        const char *key = at + sizeof(change);

        memcpy(&change, at, sizeof(change));
        at = key + change.key_bytes + change.size_bytes;
        rc = change.is_removal
                 ? sl_catalog_remove(catalog, key, err)
                 : sl_catalog_put(catalog, key, key + change.key_bytes, change.size_bytes, err);
    }
    return rc;
}

/* ---- opening -----------------------------------------------------------------------------------
 */

static int lock_folder(struct sl_journal *j, struct sl_err *err)
{
    j->lock_fd = open(j->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (j->lock_fd < 0)
        return sl_err_set(err, -errno, "%s: cannot open the journal's folder: %s", j->folder,
                          sl_strerror(errno));
    if (flock(j->lock_fd, LOCK_EX | LOCK_NB) == 0)
        return 0;
    if (errno == EWOULDBLOCK)
        return sl_err_set(err, -EBUSY, "%s: another process works on this journal", j->folder);
    return sl_err_set(err, -errno, "%s: cannot lock the journal: %s", j->folder,
                      sl_strerror(errno));
}

static int make_folder(struct sl_journal *j, struct sl_err *err)
{
    int rc;

    if (access(j->folder, F_OK) == 0)
        return 0;
    rc = j->writer->ops->make_folder(j->writer, j->folder);
    return rc < 0 ? sl_write_error(err, rc, j->folder, "make the journal's folder")
                  : sl_write_name(j->writer, j->folder, err);
}

/* Reads what the last commit left, and goes on in a new file. */
static int open_catalog(struct sl_journal *j, struct sl_catalog_entries *entries,
                        struct sl_err *err)
{
    int rc = 0;

    *entries = (struct sl_catalog_entries){0};
    if (access(j->path, F_OK) == 0 || errno != ENOENT)
        rc = sl_catalog_read(entries, j->path, err);
    if (rc == 0)
        rc = sl_catalog_make(&j->catalog, j->path, j->new_path, entries, j->writer, err);
    if (rc == 0)
        sl_catalog_abort(j->catalog);
    return rc;
}

static char *join(const char *folder, const char *name)
{
    char *path;

    return asprintf(&path, "%s/%s", folder, name) < 0 ? NULL : path;
}

int sl_journal_open(struct sl_journal **ret_journal, const char *folder,
                    struct sl_file_writer *writer, struct sl_err *err)
{
    struct sl_journal *j = calloc(1, sizeof(*j));
    int rc;

    if (!j)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", folder);
    j->writer = writer;
    j->lock_fd = -1;
    pthread_mutex_init(&j->lock, NULL);
    j->folder = strdup(folder);
    j->path = join(folder, FILE_NAME);
    j->new_path = join(folder, FILE_NAME SL_WRITE_NEW);
    if (!j->folder || !j->path || !j->new_path)
        rc = sl_err_set(err, -ENOMEM, "%s: out of memory", folder);
    else if ((rc = make_folder(j, err)) == 0 && (rc = lock_folder(j, err)) == 0)
        rc = open_catalog(j, &j->entries, err);
    if (rc < 0) {
        sl_journal_close(j);
        return rc;
    }
    *ret_journal = j;
    return 0;
}

void sl_journal_close(struct sl_journal *j)
{
    if (!j)
        return;
    sl_catalog_close(j->catalog);
    sl_journal_forget(j);
    if (j->lock_fd >= 0)
        close(j->lock_fd);
    pthread_mutex_destroy(&j->lock);
    free(j->folder);
    free(j->path);
    free(j->new_path);
    free(j);
}

const struct sl_catalog_entries *sl_journal_entries(const struct sl_journal *j)
{
    return &j->entries;
}

void sl_journal_forget(struct sl_journal *j)
{
    sl_catalog_entries_fini(&j->entries);
}

/* ---- commits -----------------------------------------------------------------------------------
 */

static int open_again(struct sl_journal *j, struct sl_err *err)
{
    struct sl_catalog_entries entries;
    int rc;

    if (j->catalog)
        return 0;
    if (access(j->path, F_OK) < 0 && errno == ENOENT)
        return sl_err_set(err, -ESTALE, "%s: the journal was removed while it was in use", j->path);
    rc = open_catalog(j, &entries, err);
    sl_catalog_entries_fini(&entries);
    return rc;
}

/* A commit to a file that has no name any more would be lost. */
static int check_name(const struct sl_journal *j, struct sl_err *err)
{
    if (sl_plain_file_leads(j->path, sl_catalog_fd(j->catalog), false))
        return 0;
    return sl_err_set(err, -ESTALE, "%s: the journal was removed or replaced while it was in use",
                      j->path);
}

int sl_journal_commit(struct sl_journal *j, const struct sl_journal_changes *changes,
                      struct sl_err *err)
{
    int rc;

    if (changes->bytes.out_of_memory)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", j->path);
    pthread_mutex_lock(&j->lock);
    rc = open_again(j, err);
    if (rc == 0 && (rc = check_name(j, err)) == 0) {
        rc = sl_catalog_begin(j->catalog, err);
        if (rc == 0)
            rc = apply(j->catalog, changes, err);
        if (rc == 0)
            rc = sl_catalog_commit(j->catalog, err);
        if (rc < 0) {
            sl_catalog_close(j->catalog);
            j->catalog = NULL;
        }
    }
    pthread_mutex_unlock(&j->lock);
    return rc;
}
