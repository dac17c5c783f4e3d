#include "daemon/files/file_store.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "core/base/bytes.h"
#include "core/base/file.h"
#include "core/base/json.h"
#include "core/base/random.h"
#include "core/text/utf8.h"
#include "storage/io/plain_file.h"

#define PREFIX "file-"
#define ID_LETTERS 24u
#define JSON_ENDING ".json"
#define JSON_BYTES_MAX (16u << 10)

struct sl_file_store {
    struct sl_file_store_options options;
    char *folder;

    pthread_mutex_t lock;         /* guards the rest */
    struct sl_stored_file *files; /* (n_files) numbers ascending */
    uint32_t n_files, n_room;
    uint32_t n_drafts;
    uint64_t number; /* the last one */
};

struct sl_file_draft {
    struct sl_file_store *store;
    char id[SL_FILE_ID_BYTES];
    char *path;
    int file;
    uint64_t bytes;
};

/* ---- names -------------------------------------------------------------------------------------
 */

/* Ids become names of files, so that nothing else may look like one. */
bool sl_file_is_id(const char *text)
{
    const size_t length = strlen(PREFIX) + ID_LETTERS;

    return strncmp(text, PREFIX, strlen(PREFIX)) == 0 && strlen(text) == length &&
           strspn(text + strlen(PREFIX), "0123456789abcdefghijklmnopqrstuvwxyz"
                                         "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == ID_LETTERS;
}

void sl_file_id_make(char id[SL_FILE_ID_BYTES])
{
    strcpy(id, PREFIX);
    sl_random_name(id + strlen(PREFIX), ID_LETTERS + 1);
}

static char *path_of(const struct sl_file_store *store, const char *id, const char *ending)
{
    char *path;

    return asprintf(&path, "%s/%s%s", store->folder, id, ending) < 0 ? NULL : path;
}

char *sl_file_store_path(const struct sl_file_store *store, const char *id)
{
    return path_of(store, id, "");
}

static int no_memory(struct sl_err *err)
{
    return sl_err_set(err, -ENOMEM, "files: out of memory");
}

static int no_file(struct sl_err *err)
{
    return sl_err_set(err, -ENOENT, "there is no file of this id");
}

/* Cuts between characters, and mends what is no text. */
static void copy_text(char *to, size_t size, const char *from)
{
    size_t length = strlen(from), at = 0;

    while (at < length) {
        const int scanned = sl_utf8_scan((const uint8_t *)from + at, length - at);
        const size_t n = scanned > 0 ? (size_t)scanned : 1;

        if (at + n >= size)
            break;
        at += n;
    }
    memcpy(to, from, at);
    to[at] = '\0';
    sl_utf8_mend(to);
}

/* ---- the list ----------------------------------------------------------------------------------
 */

static struct sl_stored_file *find(const struct sl_file_store *store, const char *id)
{
    for (uint32_t i = 0; i < store->n_files; i++)
        if (strcmp(store->files[i].id, id) == 0)
            return &store->files[i];
    return NULL;
}

static int make_room(struct sl_file_store *store)
{
    const uint32_t n_room = store->n_room ? store->n_room * 2 : 16;
    struct sl_stored_file *grown;

    if (store->n_files < store->n_room)
        return 0;
    grown = realloc(store->files, n_room * sizeof(*grown));
    if (!grown)
        return -ENOMEM;
    store->files = grown;
    store->n_room = n_room;
    return 0;
}

static int by_number(const void *a, const void *b)
{
    const struct sl_stored_file *x = a, *y = b;

    return x->number < y->number ? -1 : x->number > y->number;
}

/* Adds a file to its place; one of the same id is replaced. */
static int enter(struct sl_file_store *store, const struct sl_stored_file *file)
{
    struct sl_stored_file *old = find(store, file->id);

    if (old) {
        *old = *file;
    } else {
        if (make_room(store) < 0)
            return -ENOMEM;
        store->files[store->n_files++] = *file;
    }
    qsort(store->files, store->n_files, sizeof(*store->files), by_number);
    return 0;
}

bool sl_file_store_find(struct sl_file_store *store, const char *id,
                        struct sl_stored_file *ret_file)
{
    const struct sl_stored_file *file;

    pthread_mutex_lock(&store->lock);
    file = find(store, id);
    if (file)
        *ret_file = *file;
    pthread_mutex_unlock(&store->lock);
    return file != NULL;
}

int64_t sl_file_store_list(struct sl_file_store *store, const struct sl_file_query *query,
                           struct sl_stored_file *files, uint32_t n_max, bool *ret_more)
{
    const struct sl_stored_file *after = NULL;
    int64_t n = 0, at, step = query->is_oldest_first ? 1 : -1;

    *ret_more = false;
    pthread_mutex_lock(&store->lock);
    at = query->is_oldest_first ? 0 : (int64_t)store->n_files - 1;
    if (query->after) {
        after = find(store, query->after);
        at = after ? after - store->files + step : -1;
    }
    for (; !*ret_more && at >= 0 && at < store->n_files; at += step) {
        const struct sl_stored_file *file = &store->files[at];

        if (query->purpose && strcmp(query->purpose, file->purpose) != 0)
            continue;
        if (n == n_max)
            *ret_more = true;
        else
            files[n++] = *file;
    }
    pthread_mutex_unlock(&store->lock);
    return query->after && !after ? -ENOENT : n;
}

int sl_file_store_read(struct sl_file_store *store, const char *id, struct sl_stored_file *ret_file,
                       struct sl_err *err)
{
    char *path;
    int fd;

    if (!sl_file_store_find(store, id, ret_file))
        return no_file(err);
    path = path_of(store, id, "");
    fd = path ? sl_file_open_nofollow(path, err) : no_memory(err);
    free(path);
    return fd;
}

/* ---- what is on disk ---------------------------------------------------------------------------
 */

static int write_description(struct sl_file_store *store, const struct sl_stored_file *file,
                             struct sl_err *err)
{
    json_t *object =
        json_pack("{s:i, s:I, s:I, s:I, s:s, s:s}", "version", 1, "number",
                  (json_int_t)file->number, "bytes", (json_int_t)file->bytes, "created_at",
                  (json_int_t)file->created_s, "filename", file->name, "purpose", file->purpose);
    char *path = path_of(store, file->id, JSON_ENDING);
    struct sl_bytes text = {0};
    int rc;

    sl_bytes_add_json(&text, object);
    json_decref(object);
    rc = !path || text.out_of_memory
             ? no_memory(err)
             : sl_write_small(store->options.writer, path, text.data, text.length, err);
    if (rc == 0)
        rc = sl_write_name(store->options.writer, path, err);
    sl_bytes_fini(&text);
    free(path);
    return rc;
}

static int read_description(const char *path, struct sl_stored_file *file, struct sl_err *err)
{
    const char *name, *purpose;
    uint64_t version, created_s;
    json_t *object;
    int rc;

    rc = sl_plain_file_check(path, err);
    if (rc == 0)
        rc = sl_json_read_file(&object, path, JSON_BYTES_MAX, err);
    if (rc < 0)
        return rc;
    if ((rc = sl_json_get_u64(object, "version", 1, 1, &version, path, err)) == 0 &&
        (rc = sl_json_get_u64(object, "number", 1, INT64_MAX, &file->number, path, err)) == 0 &&
        (rc = sl_json_get_u64(object, "bytes", 0, INT64_MAX, &file->bytes, path, err)) == 0 &&
        (rc = sl_json_get_u64(object, "created_at", 0, INT64_MAX, &created_s, path, err)) == 0 &&
        (rc = sl_json_get_string(object, "filename", &name, path, err)) == 0 &&
        (rc = sl_json_get_string(object, "purpose", &purpose, path, err)) == 0) {
        file->created_s = (int64_t)created_s;
        copy_text(file->name, sizeof(file->name), name);
        copy_text(file->purpose, sizeof(file->purpose), purpose);
    }
    json_decref(object);
    return rc;
}

/* Takes in the file of that id whose bytes are there. */
static int scan_file(struct sl_file_store *store, const char *id, struct sl_err *err)
{
    char *path = path_of(store, id, ""), *json_path = path_of(store, id, JSON_ENDING);
    struct sl_stored_file file = {0};
    struct stat status;
    int rc;

    strcpy(file.id, id);
    if (!path || !json_path)
        rc = no_memory(err);
    else if (access(json_path, F_OK) < 0 && errno == ENOENT)
        rc =
            store->options.writer->ops->remove(store->options.writer, path); /* was being removed */
    else if ((rc = sl_plain_file_check(path, err)) == 0 &&
             (rc = read_description(json_path, &file, err)) == 0) {
        if (stat(path, &status) < 0 || (uint64_t)status.st_size != file.bytes)
            rc = sl_err_set(err, -SL_ECORRUPT, "%s: has not the size that it was written with",
                            path);
        else if (enter(store, &file) < 0)
            rc = no_memory(err);
        else if (file.number > store->number)
            store->number = file.number;
    }
    free(path);
    free(json_path);
    return rc;
}

/* Removes what a run that was ended had not finished, or had removed by half. */
static void remove_leftover(struct sl_file_store *store, const char *name)
{
    char id[SL_FILE_ID_BYTES], *path = path_of(store, name, ""), *bytes_path = NULL;
    const size_t length = strlen(name), id_length = strlen(PREFIX) + ID_LETTERS;
    bool is_left = length > 4 && strcmp(name + length - 4, SL_WRITE_NEW) == 0;

    if (strncmp(name, PREFIX, strlen(PREFIX)) != 0 || length <= id_length)
        goto out;
    stpncpy(id, name, id_length)[0] = '\0';
    if (!is_left && sl_file_is_id(id) && strcmp(name + id_length, JSON_ENDING) == 0) {
        bytes_path = path_of(store, id, "");
        is_left = bytes_path && access(bytes_path, F_OK) < 0 && errno == ENOENT;
    }
    if (is_left && path)
        store->options.writer->ops->remove(store->options.writer, path);
out:
    free(bytes_path);
    free(path);
}

static int scan(struct sl_file_store *store, struct sl_err *err)
{
    struct sl_err file_err;
    struct dirent *entry;
    DIR *folder = opendir(store->folder);
    int rc = 0;

    if (!folder)
        return sl_err_set(err, -errno, "%s: %s", store->folder, sl_strerror(errno));
    while (rc == 0 && (entry = readdir(folder))) {
        if (!sl_file_is_id(entry->d_name)) {
            remove_leftover(store, entry->d_name);
            continue;
        }
        rc = scan_file(store, entry->d_name, &file_err);
        if (rc < 0 && rc != -ENOMEM) { /* the others can be used */
            if (store->options.note)
                store->options.note(store->options.context, file_err.message);
            rc = 0;
        }
    }
    closedir(folder);
    return rc < 0 ? no_memory(err) : 0;
}

/* ---- drafts ------------------------------------------------------------------------------------
 */

static void free_draft(struct sl_file_draft *draft)
{
    struct sl_file_store *store = draft->store;

    pthread_mutex_lock(&store->lock);
    store->n_drafts--;
    pthread_mutex_unlock(&store->lock);
    free(draft->path);
    free(draft);
}

int sl_file_draft_begin(struct sl_file_draft **ret_draft, struct sl_file_store *store,
                        struct sl_err *err)
{
    struct sl_file_writer *writer = store->options.writer;
    struct sl_file_draft *draft = calloc(1, sizeof(*draft));
    bool is_full;
    int rc;

    if (!draft)
        return no_memory(err);
    draft->store = store;
    pthread_mutex_lock(&store->lock);
    is_full = store->n_files + store->n_drafts >= SL_FILES_MAX;
    store->n_drafts++;
    pthread_mutex_unlock(&store->lock);
    sl_file_id_make(draft->id);
    draft->path = path_of(store, draft->id, SL_WRITE_NEW);
    if (is_full)
        rc = sl_err_set(err, -ENOSPC, "there are %u files already; delete some", SL_FILES_MAX);
    else if (!draft->path)
        rc = no_memory(err);
    else if ((rc = writer->ops->open(writer, draft->path, false, &draft->file)) < 0)
        sl_write_error(err, rc, draft->path, "create");
    if (rc < 0) {
        free_draft(draft);
        return rc;
    }
    *ret_draft = draft;
    return 0;
}

int sl_file_draft_add(struct sl_file_draft *draft, const void *bytes, size_t n_bytes,
                      struct sl_err *err)
{
    struct sl_file_writer *writer = draft->store->options.writer;
    const int rc = writer->ops->write(writer, draft->file, draft->bytes, bytes, n_bytes);

    if (rc < 0)
        return sl_write_error(err, rc, draft->path, "write");
    draft->bytes += n_bytes;
    return 0;
}

/* Lets a file exist whose description is on disk: gives its bytes, which may have it already, their
 * name. */
static int publish(struct sl_file_store *store, const char *from, const struct sl_stored_file *file,
                   struct sl_err *err)
{
    struct sl_file_writer *writer = store->options.writer;
    char *path = path_of(store, file->id, "");
    int rc = path ? 0 : no_memory(err);

    if (rc == 0 && strcmp(from, path) != 0 && (rc = writer->ops->rename(writer, from, path)) < 0)
        sl_write_error(err, rc, from, "rename");
    if (rc == 0 && (rc = sl_write_name(writer, path, err)) == 0) {
        pthread_mutex_lock(&store->lock);
        rc = enter(store, file) < 0 ? no_memory(err) : 0;
        pthread_mutex_unlock(&store->lock);
    }
    free(path);
    return rc;
}

static void describe(struct sl_file_store *store, const char *id, const char *name,
                     const char *purpose, uint64_t bytes, struct sl_stored_file *file)
{
    *file = (struct sl_stored_file){.bytes = bytes, .created_s = (int64_t)time(NULL)};
    strcpy(file->id, id);
    copy_text(file->name, sizeof(file->name), name);
    copy_text(file->purpose, sizeof(file->purpose), purpose);
    pthread_mutex_lock(&store->lock);
    file->number = ++store->number;
    pthread_mutex_unlock(&store->lock);
}

static void remove_description(struct sl_file_store *store, const char *id)
{
    char *path = path_of(store, id, JSON_ENDING);

    if (path)
        store->options.writer->ops->remove(store->options.writer, path);
    free(path);
}

int sl_file_draft_keep(struct sl_file_draft *draft, const char *name, const char *purpose,
                       struct sl_stored_file *ret_file, struct sl_err *err)
{
    struct sl_file_store *store = draft->store;
    struct sl_file_writer *writer = store->options.writer;
    struct sl_stored_file file;
    int rc = writer->ops->sync(writer, draft->file);

    writer->ops->close(writer, draft->file);
    describe(store, draft->id, name, purpose, draft->bytes, &file);
    if (rc < 0)
        sl_write_error(err, rc, draft->path, "write");
    else if ((rc = write_description(store, &file, err)) == 0)
        rc = publish(store, draft->path, &file, err);
    if (rc == 0) {
        *ret_file = file;
    } else {
        char *path = path_of(store, draft->id, "");

        writer->ops->remove(writer, draft->path);
        if (path) /* it had got its name, but that may not be on disk */
            writer->ops->remove(writer, path);
        free(path);
        remove_description(store, draft->id);
    }
    free_draft(draft);
    return rc;
}

void sl_file_draft_discard(struct sl_file_draft *draft)
{
    struct sl_file_writer *writer;

    if (!draft)
        return;
    writer = draft->store->options.writer;
    writer->ops->close(writer, draft->file);
    writer->ops->remove(writer, draft->path);
    free_draft(draft);
}

int sl_file_store_adopt(struct sl_file_store *store, const char *path, const char *id,
                        const char *name, const char *purpose, struct sl_err *err)
{
    char *own_path = path_of(store, id, "");
    struct sl_stored_file file;
    struct stat status;
    int rc = 0;

    if (!own_path)
        return no_memory(err);
    if (!sl_file_store_find(store, id, &file)) {
        if (stat(path, &status) < 0) /* an attempt that has failed may have moved it */
            path = own_path;
        if (stat(path, &status) < 0)
            rc = sl_err_set(err, -errno, "%s: %s", path, sl_strerror(errno));
        if (rc == 0) {
            describe(store, id, name, purpose, (uint64_t)status.st_size, &file);
            rc = write_description(store, &file, err);
        }
        if (rc == 0)
            rc = publish(store, path, &file, err);
    }
    free(own_path);
    return rc;
}

int sl_file_store_remove(struct sl_file_store *store, const char *id, struct sl_err *err)
{
    struct sl_file_writer *writer = store->options.writer;
    struct sl_stored_file *file;
    char *path = NULL;
    int rc = 0;

    pthread_mutex_lock(&store->lock);
    file = find(store, id);
    if (!file)
        rc = no_file(err);
    else if (!(path = path_of(store, id, "")))
        rc = no_memory(err);
    else if ((rc = writer->ops->remove(writer, path)) < 0 && rc != -ENOENT)
        sl_write_error(err, rc, path, "remove");
    else {
        store->n_files--;
        memmove(file, file + 1, (size_t)(store->files + store->n_files - file) * sizeof(*file));
        rc = 0;
    }
    pthread_mutex_unlock(&store->lock);
    if (rc == 0)
        remove_description(store, id);
    free(path);
    return rc;
}

/* ---- opening -----------------------------------------------------------------------------------
 */

int sl_file_store_open(struct sl_file_store **ret_store,
                       const struct sl_file_store_options *options, struct sl_err *err)
{
    struct sl_file_writer *writer = options->writer;
    struct sl_file_store *store = calloc(1, sizeof(*store));
    int rc;

    if (!store)
        return no_memory(err);
    pthread_mutex_init(&store->lock, NULL);
    store->options = *options;
    store->folder = strdup(options->folder);
    if (!store->folder)
        rc = no_memory(err);
    else if ((rc = writer->ops->make_folder(writer, store->folder)) < 0)
        sl_write_error(err, rc, store->folder, "create");
    else if ((rc = sl_write_name(writer, store->folder, err)) == 0)
        rc = scan(store, err);
    if (rc < 0) {
        sl_file_store_close(store);
        return rc;
    }
    *ret_store = store;
    return 0;
}

void sl_file_store_close(struct sl_file_store *store)
{
    if (!store)
        return;
    pthread_mutex_destroy(&store->lock);
    free(store->files);
    free(store->folder);
    free(store);
}
