/* Prints the lists of sluice inspect on standard output, as text or as one JSON object a line. */
#ifndef SL_TOOLS_CMD_INSPECT_LISTS_H
#define SL_TOOLS_CMD_INSPECT_LISTS_H

#include <stdbool.h>

#include "core/base/err.h"
#include "core/model/config.h"
#include "storage/experts/model_files.h"

/* Lists every tensor: name, dtype, shape, file, offset, bytes. */
void sl_inspect_tensors(const struct sl_model_files *files, bool json);

/* Lists every layer's experts: number, bytes of one, reads, bytes read, files. Fails as
 * sl_model_files_experts(). */
int sl_inspect_experts(const struct sl_model_files *files, const struct sl_config *config,
                       bool json, struct sl_err *err);

#endif
