/* Reading a batch's input, with progress, and telling what is wrong with it. */
#ifndef SL_TOOLS_BATCH_READ_INPUT_H
#define SL_TOOLS_BATCH_READ_INPUT_H

#include "daemon/batch/batch_input.h"

/* Reads all of the file; on success the caller closes *ret_input. Ctrl-C ends it (-ECANCELED). */
int sl_read_batch_input(struct sl_batch_input **ret_input, const char *path,
                        const struct sl_batch_input_options *options, struct sl_err *err);

/* Prints a line on standard error for each fault that is kept. */
void sl_print_batch_faults(const struct sl_batch_input *input, const char *path);

#endif
