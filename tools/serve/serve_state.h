/* The state of a server, on disk: the files that clients upload, and batches. */
#ifndef SL_TOOLS_SERVE_SERVE_STATE_H
#define SL_TOOLS_SERVE_SERVE_STATE_H

#include "daemon/batch/batch_service.h"
#include "daemon/files/file_store.h"
#include "tools/serve/serve_log.h"

struct sl_serve_state_options {
    const char *folder; /* NULL: the default; "none": no folder */
    const char *model_folder;
    enum sl_numerics numerics;
    const struct sl_answer_model *model; /* outlives the state */
    uint32_t items_max;                  /* of batches, that are under way at a time */
    bool keeps_images;                   /* the engine does */
    struct sl_serve_log *log;
};

struct sl_serve_state {
    struct sl_serve_state_options options;
    char *folder; /* NULL: there is none */
    int lock;
    struct sl_file_store *files;      /* NULL: none are kept */
    struct sl_batch_service *batches; /* NULL: likewise */
};

/* Opens the state. A default folder that cannot be used is told in the log and done without. The
 * state stays where it is, and is closed in any case. */
int sl_serve_state_open(struct sl_serve_state *state, const struct sl_serve_state_options *options,
                        struct sl_err *err);

/* Goes on with the batches, when there is a worker. */
int sl_serve_state_start(struct sl_serve_state *state, struct sl_worker *worker,
                         struct sl_err *err);

/* Parks the batches and lets another server have the folder; uploads that are under way go on. The
 * worker is still there. */
void sl_serve_state_let_go(struct sl_serve_state *state);

/* When the worker has ended. */
void sl_serve_state_close(struct sl_serve_state *state);

#endif
