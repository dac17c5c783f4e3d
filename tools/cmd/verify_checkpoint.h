/* sluice verify of a checkpoint: whether it is whole, and what was published. */
#ifndef SL_TOOLS_CMD_VERIFY_CHECKPOINT_H
#define SL_TOOLS_CMD_VERIFY_CHECKPOINT_H

#include <stdbool.h>

#include "core/base/err.h"
#include "storage/io/io.h"

struct sl_verify_checkpoint_options {
    const char *folder;
    const char *list_path; /* of SHA-256; NULL: none */
    sl_io_open_fn *open_io;
    bool json;
};

/* Prints what is bad, and figures. Fails, naming the bad files, if there are any, or as the work
 * does. */
int sl_verify_checkpoint(const struct sl_verify_checkpoint_options *options, struct sl_err *err);

#endif
