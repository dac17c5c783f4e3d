/* The file store: what clients have uploaded, and what batches have made, in one folder.
 *
 *     file-ID.new    is being written
 *     file-ID.json   what it is called and for what: written and synced first
 *     file-ID        its bytes; the file exists from the moment on at which this has its name
 *
 * So a file exists only when it is whole, whatever happens in between, and what a crash left over
 * is removed when the store is opened. Names that clients give are kept as text and lead nowhere.
 * Files and folder can be read by their owner alone.
 *
 * All calls may come from any thread. */
#ifndef SL_DAEMON_FILES_FILE_STORE_H
#define SL_DAEMON_FILES_FILE_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "core/base/err.h"
#include "storage/io/file_writer.h"

#define SL_FILE_ID_BYTES 32
#define SL_FILE_NAME_BYTES 256
#define SL_FILE_PURPOSE_BYTES 24
#define SL_FILES_MAX 10000u

struct sl_stored_file {
    char id[SL_FILE_ID_BYTES];
    char name[SL_FILE_NAME_BYTES]; /* as the client calls it: UTF-8, any characters */
    char purpose[SL_FILE_PURPOSE_BYTES];
    uint64_t bytes;
    int64_t created_s; /* since 1970 */
    uint64_t number;   /* rises with every file: the order in which they came */
};

struct sl_file_store_options {
    const char *folder;            /* is made if need be, but not what it is in */
    struct sl_file_writer *writer; /* such as sl_file_writer_private() */
    /* Is told of files in the folder that cannot be used, a line each; NULL is allowed. */
    void (*note)(void *context, const char *line);
    void *context;
};

struct sl_file_store;

/* Fails with -errno or -ENOMEM. The caller closes it; NULL is allowed there. */
int sl_file_store_open(struct sl_file_store **ret_store,
                       const struct sl_file_store_options *options, struct sl_err *err);
void sl_file_store_close(struct sl_file_store *store);

/* ---- writing -----------------------------------------------------------------------------------
 */

/* A file that is being written; belongs to one thread at a time. */
struct sl_file_draft;

/* All fail with -errno, or -ENOSPC also where there are SL_FILES_MAX files. A draft is the caller's
 * to keep or discard. */
int sl_file_draft_begin(struct sl_file_draft **ret_draft, struct sl_file_store *store,
                        struct sl_err *err);
int sl_file_draft_add(struct sl_file_draft *draft, const void *bytes, size_t n_bytes,
                      struct sl_err *err);

/* Makes a file of it; frees the draft in any case. `name` and `purpose` are cut where they are too
 * long. */
int sl_file_draft_keep(struct sl_file_draft *draft, const char *name, const char *purpose,
                       struct sl_stored_file *ret_file, struct sl_err *err);
void sl_file_draft_discard(struct sl_file_draft *draft); /* NULL is allowed */

/* Takes a whole, synced file from `path`, on the same file system, and gives it the id, which
 * sl_file_id_make() has made. Can be done again after a crash or a failure in the middle, also
 * where `path` is gone by then; fails with -ENOENT where nothing ever was. */
int sl_file_store_adopt(struct sl_file_store *store, const char *path, const char *id,
                        const char *name, const char *purpose, struct sl_err *err);
void sl_file_id_make(char id[SL_FILE_ID_BYTES]);
bool sl_file_is_id(const char *text);

/* Fails with -ENOENT if there is none. Readers that have it open go on. */
int sl_file_store_remove(struct sl_file_store *store, const char *id, struct sl_err *err);

/* ---- reading -----------------------------------------------------------------------------------
 */

/* Returns false if there is none of this id. */
bool sl_file_store_find(struct sl_file_store *store, const char *id,
                        struct sl_stored_file *ret_file);

/* Returns a descriptor for reading, the caller's to close. Fails with -ENOENT or -errno. */
int sl_file_store_read(struct sl_file_store *store, const char *id, struct sl_stored_file *ret_file,
                       struct sl_err *err);

/* The file's path; the caller frees it. NULL when out of memory. */
char *sl_file_store_path(const struct sl_file_store *store, const char *id);

struct sl_file_query {
    const char *purpose;  /* NULL: any */
    const char *after;    /* an id: those that follow it; NULL: from the beginning */
    bool is_oldest_first; /* else those come first that were made last */
};

/* Fills up to n_max files and returns how many; *ret_more says whether others follow. Fails with
 * -ENOENT where there is no file `after`. */
int64_t sl_file_store_list(struct sl_file_store *store, const struct sl_file_query *query,
                           struct sl_stored_file *files, uint32_t n_max, bool *ret_more);

#endif
