#include "daemon/batch/batch_files.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/size.h"

#define OUTPUT_PURPOSE "batch_output"

/* ---- what is kept with a batch -----------------------------------------------------------------
 */

char *sl_batch_about_make(const struct sl_batch_create *create, const char *model,
                          const char *output_id)
{
    char error_id[SL_FILE_ID_BYTES], *text;
    json_t *object;

    sl_file_id_make(error_id);
    object = json_pack("{s:s, s:s, s:s, s:s, s:s, s:O?}", "input_file_id", create->input_file_id,
                       "window", create->window, "model", model, "output_id", output_id, "error_id",
                       error_id, "metadata", (json_t *)(uintptr_t)create->metadata);
    text = object ? json_dumps(object, JSON_COMPACT) : NULL;
    json_decref(object);
    return text;
}

bool sl_batch_about_read(struct sl_batch_about *about, const struct sl_batch_record *record)
{
    json_t *object = record->about ? json_loads(record->about, 0, NULL) : NULL;

    *about = (struct sl_batch_about){.object = object};
    if (json_unpack(object, "{s:s, s:s, s:s, s:s, s:s, s?:o}", "input_file_id",
                    &about->input_file_id, "window", &about->window, "model", &about->model,
                    "output_id", &about->output_id, "error_id", &about->error_id, "metadata",
                    &about->metadata) < 0 ||
        !sl_file_is_id(about->output_id) || !sl_file_is_id(about->error_id)) {
        json_decref(object);
        return false;
    }
    if (json_is_null(about->metadata))
        about->metadata = NULL;
    return true;
}

void sl_batch_about_fini(struct sl_batch_about *about)
{
    json_decref(about->object);
}

/* ---- the folder of a batch ---------------------------------------------------------------------
 */

static void path_of(const struct sl_batch_files *files, const char *work, const char *name,
                    char path[SL_BATCH_PATH_BYTES])
{
    snprintf(path, SL_BATCH_PATH_BYTES, "%s/%s%s%s", files->folder, work, *name ? "/" : "", name);
}

void sl_batch_files_paths(const struct sl_batch_files *files, const char *work,
                          struct sl_batch_paths *ret_paths)
{
    path_of(files, work, "input", ret_paths->input);
    path_of(files, work, "output", ret_paths->output);
    path_of(files, work, "error", ret_paths->error);
}

/* The second name stays when the file is deleted, and costs nothing. */
int sl_batch_files_begin(const struct sl_batch_files *files, const char *work, const char *file_id,
                         struct sl_err *err)
{
    struct sl_file_writer *writer = files->writer;
    char *from = sl_file_store_path(files->store, file_id);
    char folder[SL_BATCH_PATH_BYTES];
    struct sl_batch_paths paths;
    int rc;

    path_of(files, work, "", folder);
    sl_batch_files_paths(files, work, &paths);
    if (!from)
        return sl_err_set(err, -ENOMEM, "batches: out of memory");
    rc = writer->ops->make_folder(writer, folder);
    if (rc < 0)
        sl_write_error(err, rc, folder, "create");
    else if (link(from, paths.input) < 0)
        rc = sl_err_set(err, -errno, "%s: cannot be given a second name: %s", from,
                        sl_strerror(errno));
    else if ((rc = sl_write_name(writer, paths.input, err)) == 0)
        rc = sl_write_name(writer, folder, err);
    free(from);
    return rc;
}

int sl_batch_files_clear(const struct sl_batch_files *files, const char *work, struct sl_err *err)
{
    struct sl_file_writer *writer = files->writer;
    char folder[SL_BATCH_PATH_BYTES];
    struct sl_batch_paths paths;
    const char *const names[] = {paths.output, paths.error, paths.input};
    int rc;

    path_of(files, work, "", folder);
    sl_batch_files_paths(files, work, &paths);
    for (size_t i = 0; i < SL_ARRAY_LEN(names); i++) {
        rc = writer->ops->remove(writer, names[i]);
        if (rc < 0 && rc != -ENOENT)
            return sl_write_error(err, rc, names[i], "remove");
    }
    rmdir(folder);
    return 0;
}

/* ---- from results to files ---------------------------------------------------------------------
 */

bool sl_batch_is_finalizing(const struct sl_batch_record *record)
{
    struct stat status;

    return sl_batch_has_ended(record->state) && stat(record->input_path, &status) == 0;
}

/* Lets results become a file; there may be none. */
static int adopt(const struct sl_batch_files *files, const char *path, const char *id,
                 const char *batch_id, const char *ending, struct sl_err *err)
{
    char name[SL_BATCH_NAME_BYTES + 32];
    struct stat status;
    int rc;

    if (stat(path, &status) == 0 && status.st_size == 0)
        return 0;
    snprintf(name, sizeof(name), "%s_%s.jsonl", batch_id, ending);
    rc = sl_file_store_adopt(files->store, path, id, name, OUTPUT_PURPOSE, err);
    return rc == -ENOENT ? 0 : rc;
}

int sl_batch_files_finalize(const struct sl_batch_files *files,
                            const struct sl_batch_record *record, struct sl_err *err)
{
    struct sl_batch_about about;
    int rc;

    if (!sl_batch_is_finalizing(record) || !sl_batch_about_read(&about, record))
        return 0;
    rc = adopt(files, record->output_path, about.output_id, record->id, "output", err);
    if (rc == 0)
        rc = adopt(files, record->error_path, about.error_id, record->id, "error", err);
    if (rc == 0)
        rc = sl_batch_files_clear(files, about.output_id, err);
    sl_batch_about_fini(&about);
    return rc;
}

int sl_batch_files_remove(const struct sl_batch_files *files, const struct sl_batch_about *about,
                          bool with_input, struct sl_err *err)
{
    const char *const ids[] = {about->output_id, about->error_id, about->input_file_id};

    for (size_t i = 0; i < SL_ARRAY_LEN(ids) - !with_input; i++) {
        const int rc = sl_file_store_remove(files->store, ids[i], err);

        if (rc < 0 && rc != -ENOENT)
            return rc;
    }
    return 0;
}
