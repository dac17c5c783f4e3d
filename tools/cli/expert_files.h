/* Opens the files of a MODEL's experts, for commands that measure drives without an engine. */
#ifndef SL_TOOLS_CLI_EXPERT_FILES_H
#define SL_TOOLS_CLI_EXPERT_FILES_H

#include <stdint.h>

#include "core/base/err.h"
#include "core/model/config.h"
#include "storage/experts/model_files.h"

struct sl_expert_files {
    struct sl_config config;
    struct sl_model_files model;
    struct sl_expert_map *store;
    const char **paths; /* (n_files); the names belong to the store */
    uint32_t n_files;
};

/* Fails as its parts do. sl_expert_files_close() takes zeroed and half-open ones too. */
int sl_expert_files_open(struct sl_expert_files *ret_files, const char *folder, struct sl_err *err);
void sl_expert_files_close(struct sl_expert_files *files);

#endif
