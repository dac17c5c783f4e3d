#include "tools/serve/serve_state.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/files/state_folder.h"

static void note(void *context, const char *line)
{
    sl_serve_log_line(context, "%s", line);
}

static int open_in(struct sl_serve_state *state, struct sl_serve_log *log, struct sl_err *err)
{
    struct sl_file_store_options options = {
        .writer = sl_file_writer_private(), .note = note, .context = log};
    char *files;
    int rc = sl_state_folder_make(state->folder, err);

    if (rc < 0)
        return rc;
    state->lock = sl_state_folder_lock(state->folder, err);
    if (state->lock < 0)
        return state->lock;
    if (asprintf(&files, "%s/files", state->folder) < 0)
        return sl_err_set(err, -ENOMEM, "%s: out of memory", state->folder);
    options.folder = files;
    rc = sl_file_store_open(&state->files, &options, err);
    free(files);
    return rc;
}

int sl_serve_state_open(struct sl_serve_state *state, const char *folder, struct sl_serve_log *log,
                        struct sl_err *err)
{
    struct sl_err own_err = {0};
    int rc;

    state->lock = -1;
    if (folder && strcmp(folder, "none") == 0)
        return 0;
    state->folder = folder ? strdup(folder) : sl_state_folder_default();
    rc = state->folder ? open_in(state, log, &own_err)
                       : sl_err_set(&own_err, -ENOENT, "there is no home folder to keep files in");
    if (rc == 0)
        return 0;
    if (folder) {
        *err = own_err;
        return rc;
    }
    sl_serve_log_line(log, "no files are kept, nor batches: %s", own_err.message);
    sl_serve_state_close(state);
    return 0;
}

void sl_serve_state_let_go(struct sl_serve_state *state)
{
    if (state->lock >= 0)
        close(state->lock);
    state->lock = -1;
}

void sl_serve_state_close(struct sl_serve_state *state)
{
    sl_file_store_close(state->files);
    sl_serve_state_let_go(state);
    free(state->folder);
    *state = (struct sl_serve_state){.lock = -1};
}
