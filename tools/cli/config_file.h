/* A model's config.json alone: given as a file, as the folder that holds it, or by the name of one
 * that comes with sluice, so that a model can be planned for before it is downloaded. */
#ifndef SL_TOOLS_CLI_CONFIG_FILE_H
#define SL_TOOLS_CLI_CONFIG_FILE_H

#include <stdbool.h>

#include "core/base/err.h"
#include "core/model/config.h"

/* Finds the file that `name` stands for; the caller frees the path. "-" is standard input; pipes
 * are allowed too, but not inside a folder. A name without "/" that is no path, such as v4-pro or
 * v4-pro.json, is looked for in share/sluice/configs of the installation, or in the source tree
 * that the program was built in. Fails with -ENOENT and a list of the configs there are, as
 * sl_model_folder_explain() does, or with -ENOMEM. */
int sl_config_file_find(const char *name, char **ret_path, struct sl_err *err);

/* Reads the config. If ret_text is not NULL, it gets the file's text, to be freed by the caller. */
int sl_config_file_read(const char *name, struct sl_config *ret_config, char **ret_text,
                        struct sl_err *err);

/* Returns whether `name` stands for a config alone, which is anything but a folder. */
bool sl_config_file_is(const char *name);

#endif
