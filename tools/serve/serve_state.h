/* The state of a server: what it keeps on disk. */
#ifndef SL_TOOLS_SERVE_SERVE_STATE_H
#define SL_TOOLS_SERVE_SERVE_STATE_H

#include "daemon/files/file_store.h"
#include "tools/serve/serve_log.h"

struct sl_serve_state {
    char *folder; /* NULL: there is none */
    int lock;
    struct sl_file_store *files; /* NULL: none are kept */
};

/* Opens the state in `folder`; NULL is the default, where one that cannot be used is told in the
 * log and done without. "none" stands for no folder. `state` is zeroed, and closed in any case. */
int sl_serve_state_open(struct sl_serve_state *state, const char *folder, struct sl_serve_log *log,
                        struct sl_err *err);

/* Lets another server have the folder; what is under way goes on. */
void sl_serve_state_let_go(struct sl_serve_state *state);
void sl_serve_state_close(struct sl_serve_state *state);

#endif
