#include "tools/serve/serve_state.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/files/state_folder.h"
#include "storage/experts/model_identity.h"

static void note(void *context, const char *line)
{
    sl_serve_log_line(context, "%s", line);
}

static int open_files(struct sl_serve_state *state, struct sl_err *err)
{
    struct sl_file_store_options options = {
        .writer = sl_file_writer_private(), .note = note, .context = state->options.log};
    char *folder;
    int rc;

    if (asprintf(&folder, "%s/files", state->folder) < 0)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", state->folder);
    options.folder = folder;
    rc = sl_file_store_open(&state->files, &options, err);
    free(folder);
    return rc;
}

/* Names the model as far as answers depend on it. */
static int identify(const struct sl_serve_state *state, char *name, size_t size, struct sl_err *err)
{
    struct sl_model_files files;
    uint64_t identity = 0;
    int rc = sl_model_files_open(&files, state->options.model_folder, err);

    if (rc < 0)
        return rc;
    rc = sl_model_identity(&files, state->options.model_folder, &identity, err);
    sl_model_files_close(&files);
    snprintf(name, size, "%s-%016" PRIx64,
             state->options.numerics == SL_NUMERICS_EXACT ? "exact" : SL_NATIVE_ID, identity);
    return rc;
}

/* A batch that has not ended has a folder of its own. */
static uint32_t count_live(const char *folder)
{
    DIR *entries = opendir(folder);
    struct dirent *entry;
    uint32_t n = 0;

    while (entries && (entry = readdir(entries)))
        n += sl_file_is_id(entry->d_name);
    if (entries)
        closedir(entries);
    return n;
}

/* Nobody should wait for batches that wait for another model. */
static void tell_of_others(const struct sl_serve_state *state, const char *parent, const char *own)
{
    DIR *entries = opendir(parent);
    struct dirent *entry;

    while (entries && (entry = readdir(entries))) {
        char *folder;
        uint32_t n;

        if (entry->d_name[0] == '.' || strcmp(entry->d_name, own) == 0 ||
            asprintf(&folder, "%s/%s", parent, entry->d_name) < 0)
            continue;
        n = count_live(folder);
        if (n > 0)
            sl_serve_log_line(state->options.log,
                              "%u batch%s for another model, or other numerics: %s", n,
                              n == 1 ? " waits" : "es wait", folder);
        free(folder);
    }
    if (entries)
        closedir(entries);
}

/* Batches of another model wait in a folder of their own until that is served again. */
static int open_batches(struct sl_serve_state *state, struct sl_err *err)
{
    struct sl_batch_service_options options = {.files = state->files,
                                               .writer = sl_file_writer_private(),
                                               .model = state->options.model,
                                               .items_max = state->options.items_max,
                                               .keeps_images = state->options.keeps_images,
                                               .note = note,
                                               .context = state->options.log};
    char identity[64], *parent, *folder = NULL;
    int rc = identify(state, identity, sizeof(identity), err);

    if (rc < 0)
        return rc;
    if (asprintf(&parent, "%s/batches", state->folder) < 0)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", state->folder);
    rc = sl_state_folder_make(parent, err);
    if (rc == 0 && asprintf(&folder, "%s/%s", parent, identity) < 0)
        rc = sl_err_set(err, -ENOMEM, "%s: out of memory", parent);
    options.folder = folder;
    options.model_identity = identity;
    if (rc == 0)
        rc = sl_batch_service_open(&state->batches, &options, err);
    if (rc == 0)
        tell_of_others(state, parent, identity);
    free(folder);
    free(parent);
    return rc;
}

static int open_in(struct sl_serve_state *state, struct sl_err *err)
{
    int rc = sl_state_folder_make(state->folder, err);

    if (rc < 0)
        return rc;
    state->lock = sl_state_folder_lock(state->folder, err);
    if (state->lock < 0)
        return state->lock;
    rc = open_files(state, err);
    return rc < 0 ? rc : open_batches(state, err);
}

int sl_serve_state_open(struct sl_serve_state *state, const struct sl_serve_state_options *options,
                        struct sl_err *err)
{
    const char *folder = options->folder;
    struct sl_err own_err = {0};
    int rc;

    *state = (struct sl_serve_state){.options = *options, .lock = -1};
    if (folder && strcmp(folder, "none") == 0)
        return 0;
    state->folder = folder ? strdup(folder) : sl_state_folder_default();
    rc = state->folder ? open_in(state, &own_err)
                       : sl_err_set(&own_err, -ENOENT, "there is no home folder to keep files in");
    if (rc == 0)
        return 0;
    if (folder) {
        *err = own_err;
        return rc;
    }
    sl_serve_log_line(options->log, "no files are kept, nor batches: %s", own_err.message);
    sl_serve_state_close(state);
    return 0;
}

int sl_serve_state_start(struct sl_serve_state *state, struct sl_worker *worker, struct sl_err *err)
{
    return state->batches ? sl_batch_service_start(state->batches, worker, err) : 0;
}

void sl_serve_state_let_go(struct sl_serve_state *state)
{
    struct sl_err err;

    if (state->batches && sl_batch_service_park(state->batches, &err) < 0)
        sl_serve_log_line(state->options.log, "some work on batches will be done again: %s",
                          err.message);
    if (state->lock >= 0)
        close(state->lock);
    state->lock = -1;
}

void sl_serve_state_close(struct sl_serve_state *state)
{
    sl_batch_service_close(state->batches);
    sl_file_store_close(state->files);
    if (state->lock >= 0)
        close(state->lock);
    free(state->folder);
    *state = (struct sl_serve_state){.lock = -1};
}
