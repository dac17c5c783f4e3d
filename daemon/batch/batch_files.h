/* The files of a daemon's batches, between the file store and the runner, and what is kept with a
 * batch to find them. While a batch has not ended it has a folder of its own:
 *
 *     FOLDER/WORK/input          a second name of the file that was uploaded, which may go
 * meanwhile FOLDER/WORK/output, error  what the runner writes
 *
 * When it has ended these become files of the store, and WORK, which is the id that the output has
 * then, goes: its input last, so that a batch that has ended with an input is not finished with. */
#ifndef SL_DAEMON_BATCH_BATCH_FILES_H
#define SL_DAEMON_BATCH_BATCH_FILES_H

#include "daemon/batch/batch_record.h"
#include "daemon/files/file_store.h"
#include "daemon/protocol/batches.h"

#define SL_BATCH_PATH_BYTES 4096u

struct sl_batch_files {
    const char *folder;
    struct sl_file_store *store; /* on the same file system */
    struct sl_file_writer *writer;
};

/* The runner keeps it with a batch without reading it: whose file its input was, and which files
 * its results become. */
struct sl_batch_about {
    json_t *object; /* owns the strings */
    const char *input_file_id, *window, *model, *output_id, *error_id;
    json_t *metadata; /* NULL: none */
};

/* Returns it as text, the caller's, of a batch whose results will have these ids; NULL when out of
 * memory. */
char *sl_batch_about_make(const struct sl_batch_create *create, const char *model,
                          const char *output_id);

/* Returns false for a batch that nobody has made so. */
bool sl_batch_about_read(struct sl_batch_about *about, const struct sl_batch_record *record);
void sl_batch_about_fini(struct sl_batch_about *about);

/* Where a batch works. */
struct sl_batch_paths {
    char input[SL_BATCH_PATH_BYTES], output[SL_BATCH_PATH_BYTES], error[SL_BATCH_PATH_BYTES];
};
void sl_batch_files_paths(const struct sl_batch_files *files, const char *work,
                          struct sl_batch_paths *ret_paths);

/* Makes the folder of a batch with its input, or removes it with all that it has. Both fail with
 * -errno or -ENOMEM. */
int sl_batch_files_begin(const struct sl_batch_files *files, const char *work, const char *file_id,
                         struct sl_err *err);
int sl_batch_files_clear(const struct sl_batch_files *files, const char *work, struct sl_err *err);

/* Whether a batch has ended whose results have not become files, or are not even on disk: the state
 * can be seen before it is committed. */
bool sl_batch_is_finalizing(const struct sl_batch_record *record);

/* Does what is left to do for a batch whose end is on disk; again, if it was done before by half.
 * Fails as the file store does; then it is to be called once more. */
int sl_batch_files_finalize(const struct sl_batch_files *files,
                            const struct sl_batch_record *record, struct sl_err *err);

/* Deletes the results of a batch that has ended, and its input too where that is wanted. Files that
 * were deleted before are no failure. */
int sl_batch_files_remove(const struct sl_batch_files *files, const struct sl_batch_about *about,
                          bool with_input, struct sl_err *err);

#endif
