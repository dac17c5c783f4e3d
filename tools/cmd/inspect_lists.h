/* The lists of sluice inspect, as text or as one JSON object a line on standard output. */
#ifndef SL_TOOLS_CMD_INSPECT_LISTS_H
#define SL_TOOLS_CMD_INSPECT_LISTS_H

#include <stdbool.h>

#include "core/base/err.h"
#include "core/model/config.h"
#include "storage/experts/model_files.h"

/* Every tensor: name, dtype, shape, file, offset, bytes. */
void sl_inspect_tensors(const struct sl_model_files *files, bool json);

/* Every layer's experts: number, bytes of one, reads, bytes read, files. Fails as
 * sl_model_files_experts(). */
int sl_inspect_experts(const struct sl_model_files *files, const struct sl_config *config,
                       bool json, struct sl_err *err);

#endif
